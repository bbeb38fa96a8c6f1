//! How much of the past is kept: by number, by bytes, by age, and for lists that are read in parts.

use crate::limits::MAX_PINS;
use crate::state::{Change, Keys, State, Stored, WindowLimits};
use crate::{Event, ReadError, Revision};
use bytes::Bytes;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);
/// What a change takes beside its key and value.
const OWN: usize = size_of::<Change>();

/// A state of one key, which each change gives another value of `size` bytes (with its key).
struct Past {
    state: State,
    begin: Instant,
}

impl Past {
    fn new(events: usize, bytes: usize, time: Duration, most_bytes: usize) -> Self {
        let limits = WindowLimits { events, bytes, time, most_bytes };
        Self { state: State::new(Keys::new_sync(), Revision(0), limits, None), begin: Instant::now() }
    }

    /// One change at a time since the beginning; without a clock where there is none.
    fn put(&mut self, size: usize, at: Option<Duration>) {
        let revision = self.state.revision.next();
        let (key, value) = (Bytes::from_static(b"k"), Bytes::from(vec![revision.0 as u8; size - 1]));
        let before = self.state.keys.get(&key).cloned();
        let mut keys = self.state.keys.clone();
        keys.insert_mut(key.clone(), Stored { value: value.clone(), revision });
        let (previous, previous_revision) = before.map(|stored| (stored.value, stored.revision)).unzip();
        let event = Event { revision, key, value, previous, deleted: false };
        let changes = vec![Change::new(event, previous_revision)];
        self.state.publish(keys, revision, changes, at.map(|at| self.begin + at));
    }

    fn kept(&self) -> u64 {
        self.state.revision.0 - self.state.compacted.0
    }
}

#[test]
fn a7_without_a_clock_the_past_is_what_fits_both_limits() {
    for (events, bytes, size, expected) in
        [(3, 1000usize, 10, 3), (10, 50, 10, 5), (10, 49, 10, 4), (10, 9, 10, 0), (0, 1000, 10, 0)]
    {
        let mut past = Past::new(events, bytes + bytes.div_ceil(size) * OWN, SECOND * 100, 1 << 20);
        (0..20).for_each(|_| past.put(size, None));
        assert_eq!(past.kept(), expected, "{events} {bytes}");
        assert_eq!(past.state.changes_after(past.state.compacted).count() as u64, expected);
        let oldest = past.state.compacted;
        assert_eq!(past.state.check(oldest), Ok(()));
        let older = Revision(oldest.0 - 1);
        assert_eq!(past.state.check(older), Err(ReadError::Compacted { asked: older, compacted: oldest }));
    }
}

#[test]
fn a7_what_is_young_is_kept_beyond_the_limits_up_to_the_last_one() {
    // A change each half second, ten seconds long: of 2 events the rest is kept by age.
    let mut past = Past::new(2, 1 << 20, SECOND * 4, 1 << 20);
    (0..20).for_each(|index| past.put(10, Some(SECOND * index / 2)));
    let kept = past.kept();
    assert!((7..=10).contains(&kept), "four seconds, to a second: {kept}");
    // Much later the next one finds all others old.
    past.put(10, Some(SECOND * 100));
    assert_eq!(past.kept(), 2);
    // However young: no more bytes than these.
    let mut past = Past::new(2, 1 << 20, SECOND * 100, 100 + 10 * OWN);
    (0..20).for_each(|_| past.put(10, Some(SECOND)));
    assert_eq!(past.kept(), 10);
    // Exactly as old as the limit is not young any more; a moment less is.
    for (age, expected) in [(4000, 2), (3999, 3)] {
        let mut past = Past::new(2, 1 << 20, SECOND * 4, 1 << 20);
        past.put(10, Some(Duration::ZERO));
        past.put(10, Some(SECOND));
        past.put(10, Some(Duration::from_millis(age)));
        assert_eq!(past.kept(), expected, "{age}");
    }
}

/// The states of lists that are read in parts stand as long as the window reaches back to them, and are few.
#[test]
fn a7_a_pinned_state_is_what_it_was_until_it_is_compacted() {
    let mut past = Past::new(100, 1 << 20, SECOND, 1 << 20);
    for _ in 0..5 {
        past.put(10, None);
    }
    let (pinned, keys) = (past.state.revision, past.state.keys.clone());
    past.state.pin(pinned, keys);
    (0..5).for_each(|_| past.put(10, None));
    let value = |past: &Past, at: u64| {
        let keys = past.state.keys_at(b"", Revision(at)).unwrap();
        keys.get(&b"k"[..]).map(|stored| stored.value[0])
    };
    assert_eq!([value(&past, 5), value(&past, 6), value(&past, 10)], [Some(5), Some(6), Some(10)]);
    past.state.compact(Revision(5));
    assert_eq!(value(&past, 5), Some(5), "the oldest that can be read");
    past.state.compact(Revision(6));
    assert!(past.state.keys_at(b"", Revision(5)).is_err());
    // What is compacted already is not pinned; and no more than so many are.
    past.state.pin(Revision(5), Keys::new_sync());
    past.state.compact(Revision(6));
    assert!(past.state.keys_at(b"", Revision(5)).is_err());
    let mut past = Past::new(1000, 1 << 20, SECOND, 1 << 20);
    let marked = |mark: u8| {
        let mut keys = Keys::new_sync();
        keys.insert_mut(Bytes::from_static(b"k"), Stored { value: Bytes::from(vec![mark]), revision: Revision(0) });
        keys
    };
    for _ in 0..=MAX_PINS {
        past.put(10, None);
        let revision = past.state.revision;
        past.state.pin(revision, marked(200));
    }
    let pins: Vec<bool> = (1..=MAX_PINS as u64 + 1).map(|at| value(&past, at) == Some(200)).collect();
    assert_eq!(pins.iter().filter(|pin| **pin).count(), MAX_PINS, "the oldest gave way");
    assert!(!pins[0] && pins[1]);
}
