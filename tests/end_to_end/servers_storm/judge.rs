//! What the clients recorded, judged.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use mainstay_sim::linear::{self, Action, Call};

use super::clients::{Records, Watched};

/// How long the client that knows all servers had no answer, at most.
fn longest(records: &Records) -> Duration {
    records.silences.iter().map(|(from, until)| *until - *from).max().unwrap_or_default()
}

/// The same while this went on, and no longer: the next trouble's silence begins with the last answer before it.
pub fn silence(records: &Records, (begun, ended): (Instant, Instant)) -> Duration {
    let of_it = |(from, until): &(Instant, Instant)| (*until).min(ended).saturating_duration_since((*from).max(begun));
    records.silences.iter().map(of_it).max().unwrap_or_default()
}

/// Fails where a promise was broken; else a line of figures.
pub fn judge(records: &Records) -> String {
    let mut by_key: BTreeMap<&str, Vec<Call>> = BTreeMap::new();
    for (key, call) in &records.calls {
        by_key.entry(key).or_default().push(*call);
    }
    for (key, calls) in &by_key {
        if let Err(stuck) = linear::judge(None, calls) {
            panic!("A1, M2: no order explains what happened to {key} among {} calls: {stuck:#?}", calls.len());
        }
    }
    revisions(records);
    let all: BTreeSet<&(String, u64, Option<u64>)> =
        records.watchers.iter().flat_map(|watched| &watched.events).collect();
    for (number, watched) in records.watchers.iter().enumerate() {
        watcher(number, watched, &all, records);
    }
    twice(&all, &by_key);
    let of = |wanted: fn(&Action) -> bool| records.calls.iter().filter(|(_, call)| wanted(&call.action)).count();
    let is_in_doubt = |action: &Action| {
        matches!(
            action,
            Action::Create { done: None, .. } | Action::Swap { done: None, .. } | Action::Remove { done: None, .. }
        )
    };
    let gaps: usize = records.watchers.iter().map(|watched| watched.gaps.len()).sum();
    assert!(!all.is_empty() && records.answers > 0, "nothing happened");
    format!(
        "{} calls ({} writes in doubt), {} events at {} watchers ({gaps} times 410); a client of all servers had {} \
         answers, and none for at most {} ms",
        records.calls.len(),
        of(is_in_doubt),
        all.len(),
        records.watchers.len(),
        records.answers,
        longest(records).as_millis()
    )
}

/// A3, A5: what is asked for after an answer came is at least as new.
fn revisions(records: &Records) {
    let mut known: BTreeMap<&str, Vec<(u64, u64)>> = BTreeMap::new();
    let mut answers: Vec<(u64, u64)> = Vec::new();
    for (call, key, version) in &records.versions {
        known.entry(key).or_default().push((call.ended, *version));
        answers.push((call.ended, *version));
    }
    let newest_before = |answers: &[(u64, u64)], begun: u64| {
        answers.iter().filter(|(ended, _)| *ended < begun).map(|(_, version)| *version).max().unwrap_or(0)
    };
    for (call, key, version) in &records.versions {
        let least = newest_before(&known[key.as_str()], call.begun);
        assert!(*version >= least, "A3: {key} was seen at {least}, and later at {version}: {call:?}");
    }
    for (begun, version) in &records.lists {
        let least = newest_before(&answers, *begun);
        assert!(*version >= least, "A5: a list at {version} was asked for after {least} was seen");
    }
}

/// A4, M2: in order, each once, none missing, but where it was told that it missed something.
fn watcher(number: usize, watched: &Watched, all: &BTreeSet<&(String, u64, Option<u64>)>, records: &Records) {
    let versions: Vec<u64> = watched.events.iter().map(|(_, version, _)| *version).collect();
    assert!(versions.is_sorted_by(|one, next| one < next), "A4: watcher {number} saw {versions:?}");
    let is_excused = |version: u64| {
        version <= watched.from || watched.gaps.iter().any(|(after, until)| *after < version && version <= *until)
    };
    let seen: BTreeSet<&(String, u64, Option<u64>)> = watched.events.iter().collect();
    let missed = all.difference(&seen).find(|event| !is_excused(event.1));
    assert_eq!(missed, None, "A4, M2: watcher {number} did not see it; {:?}", watched.gaps);
    let versions: BTreeSet<u64> = versions.into_iter().collect();
    for (call, key, version) in records.versions.iter().filter(|(call, ..)| !matches!(call.action, Action::Read { .. }))
    {
        let is_seen = versions.contains(version) || is_excused(*version);
        assert!(is_seen, "A4: watcher {number} did not see the write of {key} at {version}: {call:?}");
    }
}

/// A9: each write at most once, and none that nobody made.
fn twice(all: &BTreeSet<&(String, u64, Option<u64>)>, by_key: &BTreeMap<&str, Vec<Call>>) {
    let asked: BTreeSet<u64> = by_key
        .values()
        .flatten()
        .filter_map(|call| match call.action {
            Action::Create { id, done } | Action::Swap { id, done, .. } if done != Some(false) => Some(id),
            _ => None,
        })
        .collect();
    let mut found = BTreeSet::new();
    for (key, version, id) in all.iter().copied() {
        let Some(id) = id else { continue };
        assert!(found.insert(*id), "A9: write {id} of {key} happened twice, again at {version}");
        assert!(asked.contains(id), "A9: write {id} of {key} at {version} was refused, or made by nobody");
    }
}
