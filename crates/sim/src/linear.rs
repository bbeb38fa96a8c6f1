//! Whether a recorded history of concurrent clients is linearizable (A1, M2): whether each call can be given one moment
//! between its begin and its end, so that at these moments, one after the other, an object alone would have answered
//! so.
//!
//! The object is one key of the API: absent, or holding what one write put there; every write has a number of its own.
//! The search is Wing and Gong's: try each call that may be next, and come back where that leads nowhere; a set of
//! calls that was tried with the same state is not tried again (Lowe). Calls that change nothing are taken as soon as
//! they fit, which never hides a solution. A write of which nobody knows whether it happened may be at any moment after
//! its begin, or at none.

use std::collections::BTreeSet;

/// What a key holds: the number of the write that put it there.
pub type State = Option<u64>;

/// What a client asked, and what it was told. `None` for `done`: nothing that tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It was told this state.
    Read { found: State },
    /// Put `id` where nothing is.
    Create { id: u64, done: Option<bool> },
    /// Put `id` where `from` is.
    Swap { from: u64, id: u64, done: Option<bool> },
    /// Take `from` away.
    Remove { from: u64, done: Option<bool> },
}

/// A call: times are of one clock that all clients share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// When it was sent.
    pub begun: u64,
    /// When the answer came.
    pub ended: u64,
    /// What it was.
    pub action: Action,
}

/// A history that cannot be: how far the best order came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stuck {
    /// What the key held then.
    pub state: State,
    /// The calls that had to be next, and cannot.
    pub calls: Vec<Call>,
    /// How many calls were in order before.
    pub before: usize,
}

impl Action {
    /// The write that it is: what has to be there, and what is there after it.
    fn effect(self) -> Option<(State, State)> {
        match self {
            Self::Read { .. } => None,
            Self::Create { id, .. } => Some((None, Some(id))),
            Self::Swap { from, id, .. } => Some((Some(from), Some(id))),
            Self::Remove { from, .. } => Some((Some(from), None)),
        }
    }

    fn done(self) -> Option<bool> {
        match self {
            Self::Read { .. } => Some(false),
            Self::Create { done, .. } | Self::Swap { done, .. } | Self::Remove { done, .. } => done,
        }
    }

    /// Whether it may be at a moment of this state, changing nothing: a read of it, a write that was refused.
    fn is_seen_at(self, state: State) -> bool {
        match (self, self.effect()) {
            (Self::Read { found }, _) => found == state,
            (_, Some((from, _))) => self.done() == Some(false) && from != state,
            (_, None) => false,
        }
    }

    /// What is there after it, where it may happen at a moment of this state.
    fn after(self, state: State) -> Option<State> {
        let (from, to) = self.effect()?;
        (self.done() != Some(false) && from == state).then_some(to)
    }
}

/// A search under way.
struct Search<'a> {
    calls: &'a [Call],
    taken: Vec<u64>,
    tried: BTreeSet<(Vec<u64>, State)>,
    /// Calls of which it is known how they ended, and that are not yet in order.
    left: usize,
    /// Everything before is in order.
    first: usize,
}

impl Search<'_> {
    fn is_taken(&self, index: usize) -> bool {
        self.taken[index / 64] >> (index % 64) & 1 == 1
    }

    fn flip(&mut self, index: usize) {
        self.taken[index / 64] ^= 1 << (index % 64);
        let is_known = self.calls[index].action.done().is_some();
        match (self.is_taken(index), is_known) {
            (true, true) => self.left -= 1,
            (false, true) => self.left += 1,
            _ => {}
        }
        if !self.is_taken(index) {
            self.first = self.first.min(index);
        }
        while self.first < self.calls.len() && self.is_taken(self.first) {
            self.first += 1;
        }
    }

    /// The calls that may be next: begun before any other that has to be in order has ended.
    fn next(&self) -> Vec<usize> {
        let mut end = u64::MAX;
        let mut next = Vec::new();
        for index in (self.first..self.calls.len()).filter(|index| !self.is_taken(*index)) {
            let call = &self.calls[index];
            // They are sorted by their begin.
            if call.begun > end {
                break;
            }
            if call.action.done().is_some() {
                end = end.min(call.ended);
            }
            next.push(index);
        }
        next.retain(|index| self.calls[*index].begun <= end);
        next
    }

    /// Takes what changes nothing; what was taken.
    fn take_seen(&mut self, state: State) -> Vec<usize> {
        let mut taken = Vec::new();
        loop {
            let seen: Vec<usize> =
                self.next().into_iter().filter(|index| self.calls[*index].action.is_seen_at(state)).collect();
            if seen.is_empty() {
                return taken;
            }
            seen.iter().for_each(|index| self.flip(*index));
            taken.extend(seen);
        }
    }
}

/// A point of the search that may be come back to.
struct Point {
    state: State,
    /// What was taken since the point before, to be given back.
    taken: Vec<usize>,
    /// Writes that are still to be tried here.
    untried: Vec<usize>,
}

/// Judges the history of one key that begins with `state`.
///
/// # Errors
/// [`Stuck`], where no order explains it.
pub fn judge(state: State, history: &[Call]) -> Result<(), Stuck> {
    let mut calls = history.to_vec();
    calls.sort_by_key(|call| call.begun);
    let left = calls.iter().filter(|call| call.action.done().is_some()).count();
    let mut search =
        Search { calls: &calls, taken: vec![0; calls.len() / 64 + 1], tried: BTreeSet::new(), left, first: 0 };
    let mut best = Stuck { state, calls: Vec::new(), before: 0 };
    let mut least = usize::MAX;
    let mut points: Vec<Point> = Vec::new();
    let mut enter = Some((state, Vec::new()));
    loop {
        if let Some((state, mut taken)) = enter.take() {
            taken.extend(search.take_seen(state));
            if search.left == 0 {
                return Ok(());
            }
            let untried = if search.tried.insert((search.taken.clone(), state)) {
                let next = search.next();
                if search.left < least {
                    least = search.left;
                    let calls = next.iter().map(|index| search.calls[*index]).collect();
                    best = Stuck { state, calls, before: left - search.left };
                }
                next.into_iter().rev().filter(|index| search.calls[*index].action.after(state).is_some()).collect()
            } else {
                Vec::new()
            };
            points.push(Point { state, taken, untried });
        }
        let Some(point) = points.last_mut() else { return Err(best) };
        match point.untried.pop() {
            Some(index) => {
                let after = search.calls[index].action.after(point.state).unwrap_or_default();
                search.flip(index);
                enter = Some((after, vec![index]));
            }
            None => {
                point.taken.iter().for_each(|index| search.flip(*index));
                points.pop();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed::Seed;

    fn call(begun: u64, ended: u64, action: Action) -> Call {
        Call { begun, ended, action }
    }

    fn read(begun: u64, ended: u64, found: impl Into<State>) -> Call {
        call(begun, ended, Action::Read { found: found.into() })
    }

    fn create(begun: u64, ended: u64, id: u64, done: impl Into<Option<bool>>) -> Call {
        call(begun, ended, Action::Create { id, done: done.into() })
    }

    fn swap(begun: u64, ended: u64, (from, id): (u64, u64), done: impl Into<Option<bool>>) -> Call {
        call(begun, ended, Action::Swap { from, id, done: done.into() })
    }

    fn remove(begun: u64, ended: u64, from: u64, done: impl Into<Option<bool>>) -> Call {
        call(begun, ended, Action::Remove { from, done: done.into() })
    }

    #[test]
    fn what_some_order_explains_is_taken() {
        assert_eq!(judge(None, &[]), Ok(()));
        assert_eq!(
            judge(None, &[create(0, 1, 1, true), read(2, 3, 1), swap(4, 5, (1, 2), true), read(6, 7, 2)]),
            Ok(())
        );
        // Reads that overlap the write see it or not, one after the other in any one order.
        assert_eq!(judge(Some(1), &[swap(0, 9, (1, 2), true), read(1, 4, 1), read(2, 8, 2)]), Ok(()));
        // Two at once: one of them comes first, and which one is only known later.
        let both = [swap(0, 9, (1, 2), true), swap(0, 9, (1, 3), false), read(10, 11, 2), remove(12, 13, 2, true)];
        assert_eq!(judge(Some(1), &both), Ok(()));
        assert_eq!(judge(Some(1), &[remove(0, 1, 1, true), create(2, 3, 1, false), create(0, 4, 5, true)]), Ok(()));
    }

    #[test]
    fn what_no_order_explains_is_refused_a1() {
        let stale = [swap(0, 1, (1, 2), true), read(2, 3, 1)];
        let refused = judge(Some(1), &stale).unwrap_err();
        assert_eq!((refused.state, refused.before, refused.calls), (Some(2), 1, vec![stale[1]]));
        // A lost update: two writes that both replaced the same.
        assert!(judge(Some(1), &[swap(0, 9, (1, 2), true), swap(0, 9, (1, 3), true)]).is_err());
        // An acknowledged write that nobody sees.
        assert!(judge(None, &[create(0, 1, 1, true), read(2, 3, None)]).is_err());
        // A read that goes back, on two servers.
        assert!(judge(Some(1), &[swap(0, 9, (1, 2), true), read(1, 2, 2), read(3, 4, 1)]).is_err());
        // Refused, and yet it happened.
        assert!(judge(Some(1), &[swap(0, 1, (1, 2), false), read(2, 3, 2)]).is_err());
        // Refused without a reason.
        assert!(judge(None, &[create(0, 1, 1, false)]).is_err());
        assert!(judge(Some(1), &[remove(0, 1, 1, true), remove(0, 1, 1, true)]).is_err());
    }

    #[test]
    fn a_write_in_doubt_happens_once_at_any_time_or_never_a9() {
        let doubt = swap(0, 1, (1, 2), None);
        assert_eq!(judge(Some(1), &[doubt, read(2, 3, 1), read(9, 10, 1)]), Ok(()));
        assert_eq!(judge(Some(1), &[doubt, read(2, 3, 1), read(9, 10, 2)]), Ok(()), "it came late");
        assert!(judge(Some(1), &[doubt, read(2, 3, 2), read(9, 10, 1)]).is_err(), "it does not go back");
        let repeated = [doubt, read(2, 3, 2), swap(4, 5, (2, 1), true), read(6, 7, 2)];
        assert!(judge(Some(1), &repeated).is_err(), "it does not happen twice");
        assert_eq!(judge(None, &[create(5, 6, 1, None), read(7, 8, 1)]), Ok(()));
        assert!(judge(None, &[read(0, 1, 1), create(5, 6, 1, None)]).is_err(), "not before it began");
    }

    /// A history as one object makes it, seen by clients that are slow.
    fn honest(seed: &mut Seed, length: u64) -> Vec<Call> {
        let (mut state, mut history, mut known) = (None, Vec::new(), vec![1]);
        for step in 1..=length {
            let at = step * 10;
            let (begun, ended) = (at - seed.below(40).min(at), at + seed.below(40));
            let from = known[seed.index(known.len())];
            let action = match seed.below(5) {
                0 => Action::Create { id: 1000 + step, done: Some(state.is_none()) },
                1 => Action::Remove { from, done: Some(state == Some(from)) },
                2 => Action::Swap { from, id: 1000 + step, done: Some(state == Some(from)) },
                _ => Action::Read { found: state },
            };
            if let Some(after) = action.after(state) {
                state = after;
                known.extend(after);
            }
            // Now and then nobody hears how it ended.
            let action = match (seed.one_in(10), action) {
                (true, Action::Create { id, .. }) => Action::Create { id, done: None },
                (true, Action::Swap { from, id, .. }) => Action::Swap { from, id, done: None },
                (true, Action::Remove { from, .. }) => Action::Remove { from, done: None },
                (_, action) => action,
            };
            history.push(call(begun, ended, action));
        }
        history
    }

    #[test]
    fn long_histories_are_judged_and_one_wrong_read_is_found() {
        for number in 0..50 {
            let mut seed = Seed::new(number);
            let mut history = honest(&mut seed, 400);
            assert_eq!(judge(None, &history), Ok(()), "seed {number}");
            // What was never written.
            let index = seed.index(history.len());
            history[index].action = Action::Read { found: Some(7) };
            assert!(judge(None, &history).is_err(), "seed {number}");
        }
    }
}
