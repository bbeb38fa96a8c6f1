//! What the store truly holds, change by change, with what was there before. It also sees what a crash did (A2, A3).

use std::collections::BTreeMap;

use bytes::Bytes;
use mainstay_api::kinds;
use mainstay_logic::{Change, Snapshot};
use mainstay_server::api::key;
use mainstay_store::{Revision, Store, Watcher};

use crate::checkers::Violation;

/// A change, between two states of the store.
pub struct Step {
    /// Before.
    pub before: Snapshot,
    /// After.
    pub after: Snapshot,
    /// What changed.
    pub change: Change,
}

/// Follows one store after the other.
#[derive(Default)]
pub struct Observer {
    /// As it is now.
    pub snapshot: Snapshot,
    revisions: BTreeMap<Bytes, Revision>,
    newest: Revision,
    watcher: Option<Watcher>,
}

impl Observer {
    /// A server came up: everything that was acknowledged must be there.
    pub fn attach(&mut self, store: &Store) -> Result<Vec<Step>, Violation> {
        let Ok(page) = store.range(b"", None, usize::MAX, None) else { return Ok(Vec::new()) };
        if page.revision < self.newest {
            return Err(Violation::new(
                "A3",
                format!("the revision went from {} back to {}", self.newest, page.revision),
            ));
        }
        self.watcher = store.watch("", page.revision).ok();
        let mut gone = std::mem::take(&mut self.revisions);
        let mut steps = Vec::new();
        for entry in &page.entries {
            let known = gone.remove(&entry.key);
            if known.is_some_and(|known| entry.revision < known) {
                return Err(Violation::new("A2", format!("{:?} is older than what was acknowledged", entry.key)));
            }
            self.revisions.insert(entry.key.clone(), entry.revision);
            if known != Some(entry.revision) {
                steps.extend(self.apply(&entry.key, Some(&entry.value), entry.revision));
            }
        }
        if !gone.is_empty() && page.revision == self.newest {
            return Err(Violation::new("A2", format!("{} keys are lost", gone.len())));
        }
        for key in gone.keys() {
            steps.extend(self.apply(key, None, page.revision));
        }
        self.newest = page.revision;
        Ok(steps)
    }

    /// What has happened since it was last asked.
    pub fn drain(&mut self) -> Result<Vec<Step>, Violation> {
        let mut steps = Vec::new();
        while let Some(Ok(Some(event))) = self.watcher.as_mut().map(Watcher::try_next) {
            if event.revision <= self.newest {
                return Err(Violation::new("A3", format!("revision {} came after {}", event.revision, self.newest)));
            }
            self.newest = event.revision;
            let value = (!event.deleted).then_some(&event.value);
            match value {
                Some(_) => drop(self.revisions.insert(event.key.clone(), event.revision)),
                None => drop(self.revisions.remove(&event.key)),
            }
            steps.extend(self.apply(&event.key, value, event.revision));
        }
        Ok(steps)
    }

    fn apply(&mut self, key: &Bytes, value: Option<&Bytes>, revision: Revision) -> Option<Step> {
        let (kind, object) = key::parse(&self.snapshot.registry, key).filter(|(kind, _)| *kind != kinds::EVENT)?;
        let before = self.snapshot.clone();
        let change = self.snapshot.apply(&kind, object, value.map(|value| &value[..]), revision.0);
        Some(Step { before, after: self.snapshot.clone(), change })
    }
}
