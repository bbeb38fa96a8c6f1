//! Watches: a slot in the window, and a waker that is called only for keys under the watch's prefix.
//!
//! A watcher owns no queue. It knows the first event that it has yet to see (`pending`), and reads the window from
//! there; so a slow watcher costs no memory, and one that is slower than the window is told so. Publishing an event
//! looks up the watchers of each prefix of its key, so thousands of watchers of other keys cost nothing; and of those
//! who ask for a text of the index only those whose text it is, so neither do thousands of watchers of other rows.

use crate::index::Concern;
use crate::state::{Change, State};
use crate::store::Shared;
use crate::{Event, Revision, WatchError, lock};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

/// All watchers, by prefix; and how many prefixes there are of each length, so that only these are looked up. Those who
/// ask for a text of the index are by that, each with its prefix.
#[derive(Debug, Default)]
pub(crate) struct Watchers {
    by_prefix: BTreeMap<Bytes, BTreeMap<u64, Arc<Slot>>>,
    lengths: BTreeMap<usize, usize>,
    by_text: BTreeMap<Bytes, BTreeMap<u64, (Bytes, Arc<Slot>)>>,
    next_id: u64,
}

/// What a watcher is to see.
#[derive(Clone, Debug)]
struct Wanted {
    prefix: Bytes,
    /// Only what is found by this.
    text: Option<Bytes>,
}

impl Wanted {
    fn has(&self, change: &Change) -> bool {
        change.event.key.starts_with(&self.prefix) && self.text.as_ref().is_none_or(|text| change.concern.is_of(text))
    }
}

/// Where a watcher is. Changed by publishing only under the state's write lock, by its watcher only under its read
/// lock.
#[derive(Debug, Default)]
struct Slot(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    /// The first event under the prefix that was not delivered.
    pending: Option<Revision>,
    waker: Option<Waker>,
}

impl Watchers {
    fn add(&mut self, Wanted { prefix, text }: &Wanted, pending: Option<Revision>) -> (u64, Arc<Slot>) {
        let id = self.next_id;
        self.next_id += 1;
        let slot = Arc::new(Slot(Mutex::new(Waiting { pending, waker: None })));
        if let Some(text) = text {
            self.by_text.entry(text.clone()).or_default().insert(id, (prefix.clone(), slot.clone()));
            return (id, slot);
        }
        if !self.by_prefix.contains_key(prefix) {
            *self.lengths.entry(prefix.len()).or_default() += 1;
        }
        self.by_prefix.entry(prefix.clone()).or_default().insert(id, slot.clone());
        (id, slot)
    }

    fn remove(&mut self, Wanted { prefix, text }: &Wanted, id: u64) {
        if let Some(text) = text {
            let Some(same) = self.by_text.get_mut(text) else { return };
            same.remove(&id);
            if same.is_empty() {
                self.by_text.remove(text);
            }
            return;
        }
        let Some(same) = self.by_prefix.get_mut(prefix) else { return };
        same.remove(&id);
        if same.is_empty() {
            self.by_prefix.remove(prefix);
            if let Some(count) = self.lengths.get_mut(&prefix.len()) {
                *count -= 1;
                if *count == 0 {
                    self.lengths.remove(&prefix.len());
                }
            }
        }
    }

    /// Notes the changes with the watchers that they concern. Returns who is to be woken, in order.
    pub fn note(&self, changes: &[Change]) -> Vec<Waker> {
        let mut wake = Vec::new();
        let mut note = |slot: &Slot, change: &Change| {
            let mut waiting = lock(&slot.0);
            waiting.pending.get_or_insert(change.event.revision);
            wake.extend(waiting.waker.take());
        };
        for change in changes {
            let key = &change.event.key;
            for prefix in self.lengths.keys().map_while(|length| key.get(..*length)) {
                let slots = self.by_prefix.get(prefix).into_iter().flat_map(BTreeMap::values);
                slots.for_each(|slot| note(slot, change));
            }
            let mut note_those = |those: &BTreeMap<u64, (Bytes, Arc<Slot>)>| {
                let those = those.values().filter(|(prefix, _)| key.starts_with(prefix));
                those.for_each(|(_, slot)| note(slot, change));
            };
            match &change.concern {
                Concern::Nobody => {}
                Concern::Of(texts) => {
                    texts.iter().flatten().filter_map(|text| self.by_text.get(text)).for_each(note_those);
                }
                Concern::Everybody => self.by_text.values().for_each(&mut note_those),
            }
        }
        wake
    }

    fn slots(&self) -> impl Iterator<Item = &Arc<Slot>> {
        let by_text = self.by_text.values().flat_map(BTreeMap::values).map(|(_, slot)| slot);
        self.by_prefix.values().flat_map(BTreeMap::values).chain(by_text)
    }

    /// Lets everyone who has seen all so far find, at the next look, that what came after is not kept.
    pub fn lag(&self, next: Revision) {
        for slot in self.slots() {
            lock(&slot.0).pending.get_or_insert(next);
        }
    }

    /// How many prefixes, lengths of such, and texts are asked for.
    #[cfg(test)]
    pub fn counts(&self) -> [usize; 3] {
        [self.by_prefix.len(), self.lengths.len(), self.by_text.len()]
    }

    /// Everyone who waits.
    pub fn all(&self) -> Vec<Waker> {
        self.slots().filter_map(|slot| lock(&slot.0).waker.take()).collect()
    }
}

/// The events under a prefix, in order, each once (A4). Made by [`crate::Store::watch`].
#[derive(Debug)]
pub struct Watcher {
    shared: Arc<Shared>,
    wanted: Wanted,
    id: u64,
    slot: Arc<Slot>,
}

impl Watcher {
    pub(crate) fn new(shared: Arc<Shared>, state: &State, prefix: Bytes, text: Option<Bytes>, after: Revision) -> Self {
        let wanted = Wanted { prefix, text };
        let first = state.changes_after(after).find(|change| wanted.has(change));
        let (id, slot) = lock(&shared.watchers).add(&wanted, first.map(|change| change.event.revision));
        Self { shared, wanted, id, slot }
    }

    /// The next event, waiting for it. Cancel-safe: an event is taken only when it is returned.
    ///
    /// # Errors
    /// [`WatchError::Lagged`] when the next event has left the window: list again, and watch from there.
    pub async fn next(&mut self) -> Result<Event, WatchError> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The next event if it has happened.
    ///
    /// # Errors
    /// As [`Watcher::next`].
    pub fn try_next(&mut self) -> Result<Option<Event>, WatchError> {
        match self.poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(event) => event.map(Some),
            Poll::Pending => Ok(None),
        }
    }

    /// As [`Watcher::next`], for those who poll. The last context's waker is woken.
    ///
    /// # Errors
    /// As [`Watcher::next`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, WatchError>> {
        let state = self.shared.read();
        let mut waiting = lock(&self.slot.0);
        let Some(next) = waiting.pending else {
            if self.shared.is_closed() {
                return Poll::Ready(Err(WatchError::Closed));
            }
            match &mut waiting.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        };
        if next <= state.compacted {
            return Poll::Ready(Err(WatchError::Lagged { next, compacted: state.compacted }));
        }
        let mut changes = state.changes_after(Revision(next.0 - 1));
        let event = changes.next().map(|change| change.event.clone());
        waiting.pending = changes.find(|change| self.wanted.has(change)).map(|change| change.event.revision);
        let event = crate::known(event, "a pending event is in the window");
        crate::must(
            event.revision == next && event.key.starts_with(&self.wanted.prefix),
            "a pending event is under the prefix",
        );
        Poll::Ready(Ok(event))
    }

    /// Up to where everything under the prefix was returned; a watch may be resumed after it (for bookmarks).
    pub fn progress(&self) -> Revision {
        let state = self.shared.read();
        match lock(&self.slot.0).pending {
            Some(next) => Revision(next.0.saturating_sub(1)),
            None => state.revision,
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        lock(&self.shared.watchers).remove(&self.wanted, self.id);
    }
}
