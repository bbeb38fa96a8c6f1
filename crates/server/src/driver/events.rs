//! Events for people: one object per thing that is told, counted up when it is told again, gone after an hour.
//!
//! An Event's name is that of its object, when it was told first (as upstream's, so that those of one second are listed
//! in order), and a mark of what is told. By that mark it is found when the same is told again, also by a server that
//! was started since or leads since: nothing about Events is kept in memory but when they go.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use mainstay_api::{ObjectKey, kinds, object};
use mainstay_logic::Event;
use serde_json::{Value, json};

use crate::api::{self, Batch, Part};

/// How long an Event is kept after it was last told (upstream's default).
const TTL: SignedDuration = SignedDuration::from_hours(1);
/// More Events than this are not kept: the oldest go first.
const MAX_EVENTS: usize = 5000;
/// How many are taken away at a time.
const MAX_EXPIRED: usize = 64;
/// Longer messages are cut, in characters (upstream's limit).
const MAX_MESSAGE: usize = 1024;
/// The longest name of an Event.
const MAX_NAME: usize = 253;
/// Characters of a time in a name: nanoseconds since 1970 in hex, of one length from 2006 to 2554.
const TIME: usize = 16;
/// Bytes of what a name ends in.
const MARK: usize = 5;
/// After this many repeats, an Event that comes again within [`QUIET`] is not written again.
const LOUD: i64 = 10;
/// See [`LOUD`].
const QUIET: SignedDuration = SignedDuration::from_secs(10);

/// So many Events of an object are told at once by one controller, and further ones every [`REFILL`]: upstream's spam
/// filter (burst 25, one more every five minutes).
const BURST: usize = 25;
/// See [`BURST`].
const REFILL: SignedDuration = SignedDuration::from_mins(5);
/// So many Events about an object that differ in what they say only are told within [`ALIKE_FOR`]; those after them are
/// one (upstream's aggregation).
const ALIKE: usize = 10;
/// See [`ALIKE`].
const ALIKE_FOR: SignedDuration = SignedDuration::from_mins(10);

/// Adds an Event to the batch. One that cannot be written (its namespace is going) is left out.
pub fn record(batch: &mut Batch<'_>, controller: &'static str, event: &Event) {
    let namespace = if event.key.namespace.is_empty() { "default" } else { &event.key.namespace };
    let message: String = event.message.chars().take(MAX_MESSAGE).collect();
    let begin = beginning(&event.key.name);
    let now = mainstay_api::time::rfc3339(batch.now);
    let (mut message, mut mark) = (message.clone(), mark(controller, event, &message));
    let mut known = batch.named_like(&kinds::EVENT, namespace, &begin, &mark);
    let mut news = None;
    if known.is_none() {
        match crowd(batch, controller, event, namespace, &begin) {
            Crowd::Few => {}
            Crowd::Alike => {
                message = format!("{}{message}", Event::COMBINED).chars().take(MAX_MESSAGE).collect();
                mark = self::mark(controller, event, Event::COMBINED);
                known = batch.named_like(&kinds::EVENT, namespace, &begin, &mark);
                news = Some(&*message);
            }
            Crowd::Many => {
                tracing::debug!(controller, key = %event.key, reason = event.reason, message, "told too often");
                return;
            }
        }
    }
    let written = if let Some(name) = known {
        repeat(batch, namespace, &name, news, &now)
    } else {
        // What one decision tells is told at one instant, and in order.
        let told = u128::try_from(batch.now.as_nanosecond()).unwrap_or(0).saturating_add(batch.written() as u128);
        let name = format!("{begin}{told:016x}{mark}");
        let fresh = json!({
            "metadata": { "name": name },
            "involvedObject": {
                "apiVersion": event.kind.api_version(), "kind": event.kind.kind,
                    "namespace": event.key.namespace.as_ref(),
                "name": event.key.name.as_ref(), "uid": event.uid,
            },
            "reason": event.reason, "message": message, "type": if event.warning { "Warning" } else { "Normal" },
            "source": { "component": controller }, "reportingComponent": controller, "reportingInstance": "",
            "firstTimestamp": now, "lastTimestamp": now, "count": 1,
        });
        api::create(batch, &kinds::EVENT, namespace, fresh).map(|_| ())
    };
    if let Err(status) = written {
        tracing::debug!(message = %status.message, reason = event.reason, "an event could not be recorded");
    }
}

/// How much one controller has told of an object.
enum Crowd {
    Few,
    /// Much that is alike.
    Alike,
    /// As much as is told at once.
    Many,
}

fn crowd(batch: &Batch<'_>, controller: &str, event: &Event, namespace: &str, begin: &str) -> Crowd {
    if !batch.has_more_like(&kinds::EVENT, namespace, begin, ALIKE) {
        return Crowd::Few;
    }
    let type_ = if event.warning { "Warning" } else { "Normal" };
    let time = |one: &Value, field: &str| mainstay_api::time::parse(object::text(one, &[field]));
    let is_within =
        |at: Option<Timestamp>, long: SignedDuration| at.is_some_and(|at| batch.now.duration_since(at) < long);
    let (mut all, mut alike, mut newest) = (0, 0, None);
    for one in batch.begun_like(&kinds::EVENT, namespace, begin) {
        let is_its = object::text(&one, &["source", "component"]) == controller
            && object::text(&one, &["involvedObject", "kind"]) == &*event.kind.kind
            && object::text(&one, &["involvedObject", "name"]) == &*event.key.name
            && object::text(&one, &["involvedObject", "uid"]) == event.uid;
        if !is_its {
            continue;
        }
        all += 1;
        newest = newest.max(time(&one, "firstTimestamp"));
        let is_alike = object::text(&one, &["reason"]) == event.reason && object::text(&one, &["type"]) == type_;
        alike += usize::from(is_alike && is_within(time(&one, "lastTimestamp"), ALIKE_FOR));
    }
    match () {
        () if alike >= ALIKE => Crowd::Alike,
        () if all >= BURST && is_within(newest, REFILL) => Crowd::Many,
        () => Crowd::Few,
    }
}

/// Counts an Event up; with what is `news` of it, where it tells of many.
fn repeat(
    batch: &mut Batch<'_>,
    namespace: &str,
    name: &str,
    news: Option<&str>,
    now_text: &str,
) -> Result<(), mainstay_api::Status> {
    let now = batch.now;
    let change = |old: &Value| {
        let mut new = old.clone();
        let count = old.get("count").and_then(Value::as_i64).unwrap_or(1);
        let last = mainstay_api::time::parse(object::text(old, &["lastTimestamp"])).unwrap_or(Timestamp::MIN);
        if count < LOUD || now.duration_since(last) >= QUIET {
            let fields = object::ensure(&mut new, &[]);
            fields.insert("count".to_owned(), json!(count.saturating_add(1)));
            fields.insert("lastTimestamp".to_owned(), now_text.into());
            if let Some(news) = news {
                fields.insert("message".to_owned(), news.into());
            }
        }
        Ok(new)
    };
    api::patch(batch, &kinds::EVENT, namespace, name, Part::Main, &change).map(|_| ())
}

/// What the names of an object's Events begin with.
fn beginning(object: &str) -> String {
    let most = MAX_NAME - 1 - TIME - 2 * MARK;
    let shortened = object.get(..most.min(object.len())).unwrap_or("");
    format!("{}.", shortened.trim_end_matches(['.', '-']))
}

/// The same for the same thing told.
fn mark(controller: &str, event: &Event, message: &str) -> String {
    let parts =
        [controller, &*event.kind.kind, &event.key.namespace, &event.key.name, &event.uid, event.reason, message];
    let hash = ring::digest::digest(&ring::digest::SHA256, parts.join("\0").as_bytes());
    hash.as_ref().iter().take(MARK).map(|byte| format!("{byte:02x}")).collect()
}

/// When each Event goes.
#[derive(Debug, Default)]
pub struct Expiry {
    by_time: BTreeSet<(Timestamp, ObjectKey)>,
    by_key: BTreeMap<ObjectKey, Timestamp>,
}

impl Expiry {
    /// An Event was written, or is gone.
    pub fn note(&mut self, key: &ObjectKey, is_there: bool, now: Timestamp) {
        if let Some(at) = self.by_key.remove(key) {
            self.by_time.remove(&(at, key.clone()));
        }
        if is_there {
            self.set(key, now.saturating_add(TTL).unwrap_or(now));
        }
    }

    fn set(&mut self, key: &ObjectKey, at: Timestamp) {
        self.by_key.insert(key.clone(), at);
        self.by_time.insert((at, key.clone()));
    }

    /// The Events that are to go now; each is given out once.
    pub fn due(&mut self, now: Timestamp) -> Vec<ObjectKey> {
        let mut due = Vec::new();
        while due.len() < MAX_EXPIRED {
            let Some((at, key)) = self.by_time.first().cloned() else { break };
            if at > now && self.by_time.len() <= MAX_EVENTS {
                break;
            }
            self.by_time.remove(&(at, key.clone()));
            self.by_key.remove(&key);
            due.push(key);
        }
        due
    }

    /// These could not be taken away: later again.
    pub fn again(&mut self, keys: &[ObjectKey], now: Timestamp) {
        for key in keys {
            self.set(key, now.saturating_add(QUIET).unwrap_or(now));
        }
    }

    /// When the next one goes.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.by_time.first().map(|(at, _)| *at)
    }
}
