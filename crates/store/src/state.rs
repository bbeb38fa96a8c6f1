//! What is in memory: the latest bytes of every key, and the window of past changes.
//!
//! The window holds every change after `compacted`, in order. The state at an older revision is the newest state
//! with the changes since undone, last first:
//!
//! ```text
//! compacted = 4   window: 5 put a=x (was -)   6 put b=y (was z@2)   7 delete a (was x@5)   newest: b=y@6
//! at 6:  undo 7 -> a=x@5 b=y@6         at 5:  undo 6 -> a=x@5 b=z@2         at 4:  undo 5 -> b=z@2
//! at 3:  compacted
//! ```

use crate::index::{Concern, Found, Index};
use crate::{Entry, Event, Page, ReadError, Revision};
use bytes::Bytes;
use rpds::RedBlackTreeMapSync;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::time::{Duration, Instant};

/// All keys in order. A clone is cheap and does not change when the original does.
pub(crate) type Keys = RedBlackTreeMapSync<Bytes, Stored>;

/// A key's latest bytes, shared with whoever reads them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Stored {
    pub value: Bytes,
    pub revision: Revision,
}

impl Stored {
    pub fn entry(&self, key: &Bytes) -> Entry {
        Entry { key: key.clone(), value: self.value.clone(), revision: self.revision }
    }
}

/// An event, what it takes to undo it, and who asks for such.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub event: Event,
    pub previous: Option<Revision>,
    pub concern: Concern,
}

impl Change {
    /// Of nobody's concern yet.
    pub fn new(event: Event, previous: Option<Revision>) -> Self {
        Self { event, previous, concern: Concern::Nobody }
    }

    /// With what it takes itself: of short values that is most of it. What a value replaced is an older change's, or
    /// was there at the open.
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.event.key.len() + self.event.value.len()
    }

    fn undo(&self, keys: &mut Keys) {
        match (&self.event.previous, self.previous) {
            (Some(value), Some(revision)) => {
                keys.insert_mut(self.event.key.clone(), Stored { value: value.clone(), revision })
            }
            _ => {
                keys.remove_mut(&self.event.key[..]);
            }
        }
    }
}

/// How much of the past is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WindowLimits {
    /// Kept whatever their age.
    pub events: usize,
    /// Kept whatever their age.
    pub bytes: usize,
    /// Kept beyond those while they are younger.
    pub time: Duration,
    /// Never exceeded.
    pub most_bytes: usize,
}

#[derive(Debug)]
pub(crate) struct State {
    pub keys: Keys,
    pub revision: Revision,
    pub compacted: Revision,
    window: VecDeque<Change>,
    window_bytes: usize,
    /// When the store had which revision, about once a second.
    marks: VecDeque<(Instant, Revision)>,
    /// The states of lists that are being read in parts.
    pins: BTreeMap<Revision, Keys>,
    limits: WindowLimits,
    index: Option<Index>,
    /// By the index.
    found: Found,
}

/// How far back the past is kept at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Changes that are kept.
    pub events: usize,
    /// What they take, in bytes: keys, values, and the changes themselves.
    pub bytes: usize,
    /// What they never take more than, in bytes.
    pub most_bytes: usize,
    /// For how long the oldest of them is kept by now, to a second; nothing where none is, or there is no clock.
    pub age: Duration,
}

/// How often it is noted which revision the store had.
const MARK_EVERY: Duration = Duration::from_secs(1);

impl State {
    /// The state just read from disk. The window is in memory only, so what happened before is compacted:
    /// a watch from before the start is told so (A7), and never shown a gap.
    pub fn new(keys: Keys, revision: Revision, limits: WindowLimits, index: Option<Index>) -> Self {
        let mut found = Found::default();
        if let Some(index) = &index {
            for (key, stored) in under(&keys, index.prefix, None) {
                found.insert((index.text_of)(&stored.value), key.clone());
            }
        }
        Self {
            keys,
            revision,
            compacted: revision,
            window: VecDeque::new(),
            window_bytes: 0,
            marks: VecDeque::new(),
            pins: BTreeMap::new(),
            limits,
            index,
            found,
        }
    }

    /// Makes a group of durable changes visible, all at once. Without a time, changes are kept for their number and
    /// bytes alone.
    pub fn publish(&mut self, keys: Keys, revision: Revision, changes: Vec<Change>, now: Option<Instant>) {
        let first = changes.first().map_or(revision, |change| change.event.revision);
        let ordered = changes.is_sorted_by(|one, other| one.event.revision < other.event.revision);
        let last = changes.last().map_or(revision, |change| change.event.revision);
        crate::must(
            self.revision < first && ordered && last <= revision,
            "each change has a revision of its own, later than all before",
        );
        self.keys = keys;
        self.revision = revision;
        self.window_bytes += changes.iter().map(Change::bytes).sum::<usize>();
        if let Some(index) = &self.index {
            changes.iter().for_each(|change| self.found.apply(&change.concern, index, &change.event));
        }
        self.window.extend(changes);
        if let Some(now) = now
            && self.marks.back().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= MARK_EVERY)
        {
            self.marks.push_back((now, revision));
        }
        while self.window.len() > self.limits.events || self.window_bytes > self.limits.bytes {
            if self.window_bytes <= self.limits.most_bytes && now.is_some_and(|now| self.is_young(now)) {
                break;
            }
            self.drop_oldest();
        }
    }

    /// How long ago the oldest change that is kept happened; `None` where that was less than a second ago.
    fn age(&self, now: Instant) -> Option<Duration> {
        let oldest = self.compacted.next();
        let mark = self.marks.iter().find(|(_, revision)| *revision >= oldest);
        mark.map(|(at, _)| now.saturating_duration_since(*at))
    }

    /// Whether the oldest change that is kept happened a short time ago.
    fn is_young(&self, now: Instant) -> bool {
        self.age(now).is_none_or(|age| age < self.limits.time)
    }

    /// What the window is now.
    pub fn window(&self, now: Instant) -> Window {
        Window {
            events: self.window.len(),
            bytes: self.window_bytes,
            most_bytes: self.limits.most_bytes,
            age: self.age(now).filter(|_| !self.window.is_empty()).unwrap_or_default(),
        }
    }

    /// Keeps the present state for a list that is read in parts.
    pub fn pin(&mut self, revision: Revision, keys: Keys) {
        if revision >= self.compacted {
            self.pins.insert(revision, keys);
        }
        if self.pins.len() > crate::limits::MAX_PINS {
            self.pins.pop_first();
        }
    }

    /// Forgets how it was before `revision`.
    pub fn compact(&mut self, revision: Revision) {
        let revision = revision.min(self.revision);
        while self.window.front().is_some_and(|oldest| oldest.event.revision <= revision) {
            self.drop_oldest();
        }
        self.compacted = self.compacted.max(revision);
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.window.pop_front() {
            crate::must(oldest.event.revision > self.compacted, "the window is in order");
            self.window_bytes -= oldest.bytes();
            self.compacted = oldest.event.revision;
            while self.pins.first_key_value().is_some_and(|(revision, _)| *revision < self.compacted) {
                self.pins.pop_first();
            }
            while self.marks.front().is_some_and(|(_, revision)| *revision <= self.compacted) {
                self.marks.pop_front();
            }
        }
    }

    /// Whether the state at a revision can be shown, and a watch started after it.
    pub fn check(&self, asked: Revision) -> Result<(), ReadError> {
        if asked < self.compacted {
            Err(ReadError::Compacted { asked, compacted: self.compacted })
        } else if asked > self.revision {
            Err(ReadError::Future { asked, newest: self.revision })
        } else {
            Ok(())
        }
    }

    /// The index, whatever its rows.
    pub fn index_of_all(&self) -> Option<Index> {
        self.index
    }

    /// The index, where there is one for all rows below a prefix.
    pub fn index_of(&self, prefix: &[u8]) -> Option<&Index> {
        self.index.as_ref().filter(|index| prefix.starts_with(index.prefix))
    }

    /// The rows below a prefix that are found by a text of the index, and those of which that is not known.
    pub fn found(&self, prefix: &[u8], text: &Bytes) -> Vec<Entry> {
        let keys = self.found.keys(text).into_iter().filter(|key| key.starts_with(prefix));
        keys.filter_map(|key| Some(self.keys.get(key)?.entry(key))).collect()
    }

    /// The changes after a revision that is not compacted.
    pub fn changes_after(&self, revision: Revision) -> impl DoubleEndedIterator<Item = &Change> {
        // Not by counting: where others write too, there are revisions that are nobody's.
        let skip = self.window.partition_point(|change| change.event.revision <= revision);
        self.window.range(skip..)
    }

    /// The keys under a prefix as they were at a revision. The rest of the map is of no particular revision.
    pub fn keys_at(&self, prefix: &[u8], at: Revision) -> Result<Keys, ReadError> {
        self.check(at)?;
        if let Some(pinned) = self.pins.get(&at) {
            return Ok(pinned.clone());
        }
        let mut keys = self.keys.clone();
        for change in self.changes_after(at).rev().filter(|change| change.event.key.starts_with(prefix)) {
            change.undo(&mut keys);
        }
        Ok(keys)
    }
}

/// The keys under a prefix, in order, beginning after `after`.
pub(crate) fn under<'a>(
    keys: &'a Keys,
    prefix: &'a [u8],
    after: Option<&'a [u8]>,
) -> impl Iterator<Item = (&'a Bytes, &'a Stored)> {
    let from = match after {
        Some(after) if after >= prefix => Bound::Excluded(after),
        _ => Bound::Included(prefix),
    };
    keys.range::<[u8], _>((from, Bound::Unbounded)).take_while(move |(key, _)| key.starts_with(prefix))
}

pub(crate) fn page(keys: &Keys, prefix: &[u8], after: Option<&[u8]>, limit: usize, revision: Revision) -> Page {
    let mut rest = under(keys, prefix, after);
    let entries: Vec<Entry> = rest.by_ref().take(limit).map(|(key, stored)| stored.entry(key)).collect();
    Page { entries, more: rest.next().is_some(), revision }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A state whose clock is the test's: so many writes of so many bytes at each of so many moments.
    struct Clocked {
        state: State,
        now: Instant,
    }

    impl Clocked {
        fn new(most_bytes: usize) -> Self {
            let limits = WindowLimits { events: 100, bytes: 64 << 10, time: Duration::from_secs(300), most_bytes };
            let state = State::new(Keys::default(), Revision(1), limits, None);
            Self { state, now: Instant::now() }
        }

        /// Writes for so many seconds, in groups of 100 ms.
        fn write(&mut self, seconds: u64, per_second: u64, bytes: usize) {
            let value = Bytes::from(vec![b'x'; bytes]);
            for _ in 0..seconds * 10 {
                self.now += Duration::from_millis(100);
                let first = self.state.revision.0;
                let changes: Vec<Change> = (1..=per_second / 10)
                    .map(|number| {
                        let (revision, key) = (Revision(first + number), Bytes::from_static(b"/busy"));
                        let event = Event { revision, key, value: value.clone(), previous: None, deleted: false };
                        Change::new(event, None)
                    })
                    .collect();
                let last = changes.last().expect("a change").event.revision;
                self.state.publish(Keys::default(), last, changes, Some(self.now));
            }
        }

        fn window(&self) -> Window {
            self.state.window(self.now)
        }
    }

    /// Four thousand writes of 1 KiB a second, and the bytes of a machine of 16 GiB: a watcher that stood still for
    /// ten seconds, and a list that took as long, go on.
    #[test]
    fn a7_ten_seconds_of_four_thousand_writes_are_kept() {
        let mut clocked = Clocked::new(128 << 20);
        clocked.write(60, 4_000, 1024);
        let seen = clocked.state.revision;
        clocked.write(10, 4_000, 1024);
        assert_eq!(clocked.state.check(seen), Ok(()));
        let window = clocked.window();
        assert!(window.age >= Duration::from_secs(10) && window.age < Duration::from_secs(60), "{window:?}");
        assert!(window.events >= 40_000 && window.bytes <= window.most_bytes, "{window:?}");
    }

    /// Age alone removes what few write, and no more than what is beyond the least that is always kept.
    #[test]
    fn a7_what_is_older_than_five_minutes_goes_but_for_the_least() {
        let mut clocked = Clocked::new(128 << 20);
        clocked.write(400, 10, 256);
        let window = clocked.window();
        assert!(window.age >= Duration::from_secs(299) && window.age <= Duration::from_secs(302), "{window:?}");
        let mut quiet = Clocked::new(128 << 20);
        quiet.write(5, 10, 256);
        quiet.now += Duration::from_secs(86_400);
        quiet.write(1, 10, 256);
        assert_eq!(quiet.window().events, 60, "few events are kept however old they are");
    }

    /// Values that are nearly empty take more than their bytes.
    #[test]
    fn x7_short_values_do_not_make_the_window_larger_than_its_bytes() {
        let mut clocked = Clocked::new(1 << 20);
        clocked.write(20, 4_000, 2);
        let window = clocked.window();
        assert!(window.bytes <= 1 << 20, "{window:?}");
        assert!(window.events * size_of::<Change>() <= 1 << 20, "{window:?}");
        assert!(window.events > 1_000, "{window:?}");
        clocked.state.compact(clocked.state.revision);
        assert_eq!(clocked.window(), Window { events: 0, bytes: 0, most_bytes: 1 << 20, age: Duration::ZERO });
    }
}
