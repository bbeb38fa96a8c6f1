//! Which keys are to be decided, and when: each once, each controller in its turn, by rank and then in the order in
//! which they were woken, failures later and later.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use mainstay_api::ObjectKey;

/// A controller's index in the list, and one of its keys.
pub type Item = (usize, ObjectKey);

/// The first delay after a failure, doubled with each further one (upstream's).
const FIRST_DELAY: SignedDuration = SignedDuration::from_millis(5);
/// The longest delay.
const MAX_DELAY: SignedDuration = SignedDuration::from_secs(60);
/// How long a key whose decision panicked is left alone.
const PARKED: SignedDuration = SignedDuration::from_mins(5);

/// The work that waits.
#[derive(Debug, Default)]
pub struct Queue {
    lanes: BTreeMap<usize, Lane>,
    /// The controller whose turn it was last.
    turn: usize,
    /// How often something was woken: what was woken earlier goes first.
    woken: u64,
    later: BTreeSet<(Timestamp, Item)>,
    /// When each item of `later` is due.
    due: BTreeMap<Item, Timestamp>,
    failures: BTreeMap<Item, u32>,
    parked: BTreeMap<Item, Timestamp>,
}

/// One controller's keys.
#[derive(Debug, Default)]
struct Lane {
    ready: BTreeSet<(i64, u64, ObjectKey)>,
    known: BTreeSet<ObjectKey>,
}

impl Queue {
    /// Something that the key looks at has changed. Whether it was not waiting before.
    pub fn wake(&mut self, item: Item) -> bool {
        self.wake_ranked(item, 0)
    }

    /// As [`Queue::wake`]; lower ranks of a controller go first.
    pub fn wake_ranked(&mut self, item: Item, rank: i64) -> bool {
        if self.parked.contains_key(&item) {
            return false;
        }
        let lane = self.lanes.entry(item.0).or_default();
        let is_new = lane.known.insert(item.1.clone());
        if is_new {
            lane.ready.insert((rank, self.woken, item.1));
            self.woken += 1;
        }
        is_new
    }

    /// The key is to be looked at again at this time even if nothing changes; the earliest such time counts.
    pub fn wake_at(&mut self, item: Item, at: Timestamp) {
        if let Some(earlier) = self.due.get(&item) {
            if *earlier <= at {
                return;
            }
            self.later.remove(&(*earlier, item.clone()));
        }
        self.due.insert(item.clone(), at);
        self.later.insert((at, item));
    }

    /// Takes the keys whose time has come out of those that wait for it.
    pub fn take_due(&mut self, now: Timestamp) -> Vec<Item> {
        let mut due = Vec::new();
        while let Some((at, item)) = self.later.first().filter(|(at, _)| *at <= now).cloned() {
            self.later.remove(&(at, item.clone()));
            self.due.remove(&item);
            self.parked.remove(&item);
            due.push(item);
        }
        due
    }

    /// The controller whose turn it is among those that have keys and are open; that is asked with how many keys wait.
    pub fn next_lane(&mut self, is_open: impl Fn(usize, usize) -> bool) -> Option<usize> {
        let after = self.lanes.range(self.turn + 1..).chain(self.lanes.range(..=self.turn));
        let mut after = after.filter(|(_, lane)| !lane.ready.is_empty());
        let next = after.find(|(index, lane)| is_open(**index, lane.ready.len())).map(|(index, _)| *index);
        self.turn = next.unwrap_or(self.turn);
        next
    }

    /// The next keys of a controller, at most so many.
    pub fn pop(&mut self, lane: usize, most: usize) -> Vec<ObjectKey> {
        let Some(lane) = self.lanes.get_mut(&lane) else { return Vec::new() };
        let mut keys = Vec::new();
        while keys.len() < most {
            let Some((_, _, key)) = lane.ready.pop_first() else { break };
            lane.known.remove(&key);
            keys.push(key);
        }
        keys
    }

    /// When the next timer is due; `None` when nothing waits for time.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.later.first().map(|(at, _)| *at)
    }

    /// Whether a key waits to be decided now.
    pub fn has_ready(&self) -> bool {
        self.lanes.values().any(|lane| !lane.ready.is_empty())
    }

    /// The key's decision was committed.
    pub fn succeeded(&mut self, item: &Item) {
        self.failures.remove(item);
    }

    /// The key's decision was not committed: again, after a while.
    pub fn failed(&mut self, item: Item, now: Timestamp) {
        let failures = self.failures.entry(item.clone()).or_default();
        let factor = 1_i32.checked_shl(*failures).filter(|factor| *factor > 0).unwrap_or(i32::MAX);
        *failures = failures.saturating_add(1).min(31);
        let delay = FIRST_DELAY.checked_mul(factor).unwrap_or(MAX_DELAY).min(MAX_DELAY);
        self.wake_at(item, now.saturating_add(delay).unwrap_or(now));
    }

    /// The key's decision panicked: it is left alone for a long while, whatever happens.
    pub fn park(&mut self, item: Item, now: Timestamp) {
        let until = now.saturating_add(PARKED).unwrap_or(now);
        if let Some(at) = self.due.remove(&item) {
            self.later.remove(&(at, item.clone()));
        }
        self.parked.insert(item.clone(), until);
        self.wake_at(item, until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(name: &str) -> Item {
        (0, ObjectKey::new("ns", name))
    }

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millisecond(millis).expect("in range")
    }

    fn pop(queue: &mut Queue, now: Timestamp) -> Option<Item> {
        queue.take_due(now).into_iter().for_each(|item| {
            queue.wake(item);
        });
        let lane = queue.next_lane(|_, _| true)?;
        queue.pop(lane, 1).pop().map(|key| (lane, key))
    }

    #[test]
    fn each_key_waits_once_and_in_order() {
        let mut queue = Queue::default();
        for name in ["a", "b", "a", "c", "b"] {
            queue.wake(item(name));
        }
        let order: Vec<_> = std::iter::from_fn(|| pop(&mut queue, at(0))).collect();
        assert_eq!(order, [item("a"), item("b"), item("c")]);
    }

    #[test]
    fn controllers_take_turns_and_the_more_important_goes_first() {
        let mut queue = Queue::default();
        let of = |lane, name| (lane, ObjectKey::new("ns", name));
        for (lane, name, rank) in [(1, "a", 0), (1, "b", -5), (2, "c", 0), (2, "d", 0), (4, "e", 0)] {
            queue.wake_ranked(of(lane, name), rank);
        }
        let order: Vec<_> = std::iter::from_fn(|| pop(&mut queue, at(0))).collect();
        assert_eq!(order, [of(1, "b"), of(2, "c"), of(4, "e"), of(1, "a"), of(2, "d")]);
    }

    #[test]
    fn failures_come_back_later_and_later_up_to_a_minute() {
        let mut queue = Queue::default();
        let mut now = at(0);
        let mut delays = Vec::new();
        for _ in 0..40 {
            queue.failed(item("a"), now);
            let due = queue.next_due().expect("a timer");
            assert_eq!(pop(&mut queue, due.saturating_sub(SignedDuration::from_millis(1)).expect("in range")), None);
            assert_eq!(pop(&mut queue, due), Some(item("a")));
            delays.push(due.duration_since(now).as_millis());
            now = due;
        }
        assert_eq!(delays[..4], [5, 10, 20, 40]);
        assert_eq!(delays[39], 60_000);
        queue.succeeded(&item("a"));
        queue.failed(item("a"), now);
        assert_eq!(queue.next_due().expect("a timer").duration_since(now).as_millis(), 5);
    }

    #[test]
    fn the_earliest_timer_counts_and_a_parked_key_sleeps_through_wakes() {
        let mut queue = Queue::default();
        queue.wake_at(item("a"), at(50));
        queue.wake_at(item("a"), at(20));
        queue.wake_at(item("a"), at(90));
        assert_eq!(pop(&mut queue, at(19)), None);
        assert_eq!(pop(&mut queue, at(20)), Some(item("a")));
        assert_eq!(queue.next_due(), None);
        queue.park(item("a"), at(100));
        queue.wake(item("a"));
        assert_eq!(pop(&mut queue, at(101)), None);
        assert_eq!(pop(&mut queue, at(300_100)), Some(item("a")));
    }
}
