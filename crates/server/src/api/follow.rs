//! A part of the store, followed by those who ask: no task keeps what is made of it fresh. Whoever is about to use that
//! takes in what has changed first, and so answers by the store's newest state (A5).

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mainstay_store::{Entry, Event, ReadError, Store, WatchError, Watcher};

/// The rows whose keys begin alike.
#[derive(Debug)]
pub struct Follower {
    store: Store,
    prefix: Bytes,
    /// `None` before the first look, and after the watch has fallen behind.
    watcher: Option<Watcher>,
}

/// What there is to take in.
#[derive(Debug)]
pub enum News {
    /// What has changed since the last call, in order: mostly nothing.
    Changes(Vec<Event>),
    /// Everything there is: at the first call, and when the watch has fallen behind the store's window.
    All(Vec<Entry>),
}

impl Follower {
    /// Of the rows with this prefix. Nothing is read yet.
    pub fn new(store: &Store, prefix: impl Into<Bytes>) -> Self {
        Self { store: store.clone(), prefix: prefix.into(), watcher: None }
    }

    /// The store that is followed.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What is new since the last call. Of a store that is closed nothing is.
    ///
    /// # Errors
    /// When everything has to be read and cannot be: what is known may be old. The next call tries again.
    pub fn news(&mut self) -> Result<News, ReadError> {
        let Some(watcher) = &mut self.watcher else { return self.all().map(News::All) };
        let mut changes = Vec::new();
        loop {
            match watcher.try_next() {
                Ok(Some(event)) => changes.push(event),
                Ok(None) | Err(WatchError::Closed) => return Ok(News::Changes(changes)),
                Err(WatchError::Lagged { .. }) => return self.all().map(News::All),
            }
        }
    }

    /// What is new since the last call, row by row: as it is now, or `None` where it is gone. After a new reading of
    /// everything, what is `known` and is not there any more is gone.
    ///
    /// # Errors
    /// As [`Follower::news`].
    pub fn rows<T>(&mut self, known: &BTreeMap<Bytes, T>) -> Result<Vec<(Bytes, Option<Bytes>)>, ReadError> {
        Ok(match self.news()? {
            News::Changes(changes) => {
                changes.into_iter().map(|event| (event.key, (!event.deleted).then_some(event.value))).collect()
            }
            News::All(entries) => {
                let there: BTreeSet<&Bytes> = entries.iter().map(|entry| &entry.key).collect();
                let gone: Vec<Bytes> = known.keys().filter(|key| !there.contains(key)).cloned().collect();
                let gone = gone.into_iter().map(|key| (key, None));
                gone.chain(entries.into_iter().map(|entry| (entry.key, Some(entry.value)))).collect()
            }
        })
    }

    /// Everything there is; the next news are of what comes after it.
    ///
    /// # Errors
    /// As [`Follower::news`].
    pub fn all(&mut self) -> Result<Vec<Entry>, ReadError> {
        self.watcher = None;
        let page = self.store.range(&self.prefix, None, usize::MAX, None)?;
        self.watcher = Some(self.store.watch(self.prefix.clone(), page.revision)?);
        Ok(page.entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::tests::{Cluster, config_map};
    use mainstay_api::kinds;

    #[test]
    fn a5_all_is_told_once_and_then_each_change_and_all_again_when_too_much_has_happened() {
        let cluster = Cluster::new();
        let prefix = crate::api::key::prefix(&kinds::CONFIG_MAP, Some("default"));
        let mut follower = Follower::new(&cluster.api.store, prefix.clone());
        let before = cluster.api.store.count(&prefix);
        cluster.create(&kinds::CONFIG_MAP, config_map("a")).expect("created");
        assert!(matches!(follower.news(), Ok(News::All(all)) if all.len() == before + 1));
        assert!(matches!(follower.news(), Ok(News::Changes(none)) if none.is_empty()));
        cluster.create(&kinds::CONFIG_MAP, config_map("b")).expect("created");
        cluster.create(&kinds::CONFIG_MAP, config_map("c")).expect("created");
        assert!(matches!(follower.news(), Ok(News::Changes(both)) if both.len() == 2));
        cluster.create(&kinds::CONFIG_MAP, config_map("d")).expect("created");
        cluster.api.store.compact(cluster.api.store.revision());
        assert!(matches!(follower.news(), Ok(News::All(all)) if all.len() == before + 4));
        assert!(matches!(follower.news(), Ok(News::Changes(none)) if none.is_empty()));
    }

    #[test]
    fn rows_that_went_while_nothing_was_seen_are_gone() {
        let cluster = Cluster::new();
        let mut follower = Follower::new(&cluster.api.store, crate::api::key::prefix(&kinds::CONFIG_MAP, Some("x")));
        let gone = Bytes::from_static(b"/configmaps/x/gone");
        let known = BTreeMap::from([(gone.clone(), ())]);
        assert_eq!(follower.rows(&known).expect("read"), [(gone, None)]);
        assert_eq!(follower.rows(&known).expect("read"), []);
    }
}
