//! How much is said of one object, as upstream's event correlator has it: 25 events at once and then one in five
//! minutes, and what differs only in its words, ten times within ten minutes, is one event that is counted up.
//!
//! Without it a probe that fails every second, with other words each time, would write an object a second for ever
//! (X4).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mainstay_logic::Event;
use mainstay_logic::kubelet::PodEvent;

use super::Regarding;

/// How many events of one object may come at once, and how often one more.
const BURST: u32 = 25;
const ONE_MORE_EVERY: Duration = Duration::from_mins(5);
/// Of one reason, so many events of different words are written within the time; the next ones are one.
const DIFFERENT: usize = 10;
const WITHIN: Duration = Duration::from_mins(10);
/// Objects, and reasons of objects, that are remembered; those of which nothing was heard for longest are forgotten.
const REMEMBERED: usize = 4096;

/// What was said lately.
#[derive(Debug, Default)]
pub struct Correlation {
    spoken: BTreeMap<Regarding, Spoken>,
    similar: BTreeMap<(Regarding, &'static str, bool), Similar>,
}

/// How much may still be said of an object.
#[derive(Debug)]
struct Spoken {
    left: u32,
    /// As of when.
    at: Duration,
}

/// The words of one reason.
#[derive(Debug)]
struct Similar {
    messages: BTreeSet<String>,
    last: Duration,
}

impl Correlation {
    /// The event as it is to be written at a time of a clock that only goes forward; `None` where enough was said.
    pub fn pass(&mut self, regarding: &Regarding, event: PodEvent, now: Duration) -> Option<PodEvent> {
        let event = self.combine(regarding, event, now);
        forget_oldest(&mut self.spoken, |spoken| spoken.at);
        let spoken = self.spoken.entry(regarding.clone()).or_insert(Spoken { left: BURST, at: now });
        let since = now.saturating_sub(spoken.at);
        let more = u32::try_from(since.as_nanos() / ONE_MORE_EVERY.as_nanos()).unwrap_or(u32::MAX);
        if more > 0 {
            spoken.left = spoken.left.saturating_add(more).min(BURST);
            spoken.at += ONE_MORE_EVERY.saturating_mul(more);
        }
        spoken.left = spoken.left.checked_sub(1)?;
        Some(event)
    }

    fn combine(&mut self, regarding: &Regarding, event: PodEvent, now: Duration) -> PodEvent {
        forget_oldest(&mut self.similar, |similar| similar.last);
        let key = (regarding.clone(), event.reason, event.warning);
        let similar = self.similar.entry(key).or_insert_with(|| Similar { messages: BTreeSet::new(), last: now });
        if now.saturating_sub(similar.last) > WITHIN {
            similar.messages.clear();
        }
        similar.last = now;
        if similar.messages.contains(&event.message) {
            return event;
        }
        if similar.messages.len() < DIFFERENT {
            similar.messages.insert(event.message.clone());
            return event;
        }
        // The same words each time, so that it is counted up where it is written.
        let first = similar.messages.first().cloned().unwrap_or_default();
        PodEvent { message: format!("{}{first}", Event::COMBINED), container: None, ..event }
    }
}

fn forget_oldest<K: Ord, V>(all: &mut BTreeMap<K, V>, last: impl Fn(&V) -> Duration) {
    if all.len() < REMEMBERED {
        return;
    }
    // Half of them at once, so that each is looked at a few times at most.
    let mut times: Vec<Duration> = all.values().map(&last).collect();
    times.sort_unstable();
    let Some(middle) = times.get(times.len() / 2).copied() else { return };
    let before = all.len();
    all.retain(|_, value| last(value) > middle);
    if all.len() == before {
        all.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str) -> Regarding {
        Regarding { kind: "Pod".into(), namespace: "default".into(), name: name.into(), uid: name.into() }
    }

    fn event(message: impl Into<String>) -> PodEvent {
        PodEvent { warning: true, reason: "Unhealthy", message: message.into(), container: None }
    }

    #[test]
    fn x4_a_probe_that_fails_in_ever_new_words_writes_a_bounded_number_of_events() {
        let mut correlation = Correlation::default();
        let mut written = Vec::new();
        for second in 0..3600 {
            let event = event(format!("probe failed: {second}"));
            written.extend(correlation.pass(&of("a"), event, Duration::from_secs(second)));
        }
        assert_eq!(written.len(), 25 + 11, "a burst, and one in five minutes");
        let different: BTreeSet<_> = written.iter().map(|event| event.message.clone()).collect();
        assert_eq!(different.len(), 11, "ten as they were, and one for all others");
        assert!(different.contains("(combined from similar events): probe failed: 0"), "{different:?}");
        let other = correlation.pass(&of("b"), event("first"), Duration::from_secs(3600));
        assert_eq!(other.unwrap().message, "first", "of others there is nothing less to say");
        let late = correlation.pass(&of("a"), event("new"), Duration::from_secs(3600 + 601));
        assert_eq!(late.unwrap().message, "new", "after a quiet time words count again");
    }

    #[test]
    fn x4_what_is_remembered_of_many_objects_is_bounded() {
        let mut correlation = Correlation::default();
        for number in 0..3 * REMEMBERED {
            let now = Duration::from_millis(number as u64 / 3);
            assert!(correlation.pass(&of(&number.to_string()), event("x"), now).is_some());
            assert!(correlation.spoken.len() <= REMEMBERED && correlation.similar.len() <= REMEMBERED);
        }
        for number in 0..3 * REMEMBERED {
            correlation.pass(&of(&format!("same {number}")), event("x"), Duration::from_secs(9999));
        }
        assert!(correlation.spoken.len() <= REMEMBERED, "also where all came at once");
    }
}
