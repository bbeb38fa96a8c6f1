//! The ConfigMaps and Secrets that a pod's actions have read, and whether one of them has changed since.
//!
//! An action says what it has read only when it has ended, and what it read may change before that: so changes are kept
//! as long as an action is under way.

use std::collections::BTreeMap;

use super::objects::Reference;

/// What was read, with what keeps it watched.
pub struct Read<T> {
    known: BTreeMap<Reference, T>,
    /// How many changes there were.
    changes: u64,
    /// What changed while something was under way, with the number of its last change.
    changed: BTreeMap<Reference, u64>,
}

impl<T> Read<T> {
    pub fn new() -> Self {
        Self { known: BTreeMap::new(), changes: 0, changed: BTreeMap::new() }
    }

    /// When an action begins: what changes after this may be newer than what it reads.
    pub fn begin(&self) -> u64 {
        self.changes
    }

    /// An object has changed; whether the pod is known to depend on it. `busy`: an action is under way.
    pub fn changed(&mut self, reference: Reference, busy: bool) -> bool {
        let is_known = self.known.contains_key(&reference);
        self.changes += 1;
        if busy {
            self.changed.insert(reference, self.changes);
        }
        is_known
    }

    /// What an action that began at `begun` has read; whether some of it has changed since then.
    pub fn extend(&mut self, read: BTreeMap<Reference, T>, begun: u64) -> bool {
        let is_old = read.keys().any(|reference| self.changed.get(reference).is_some_and(|at| *at > begun));
        self.known.extend(read);
        is_old
    }

    /// No action is under way any more.
    pub fn settle(&mut self) {
        self.changed.clear();
    }
}

#[cfg(test)]
mod tests {
    use mainstay_api::ObjectKey;

    use super::*;

    fn reference(name: &str) -> Reference {
        Reference { plural: "configmaps", key: ObjectKey::new("default", name) }
    }

    fn read(name: &str) -> BTreeMap<Reference, ()> {
        BTreeMap::from([(reference(name), ())])
    }

    /// S9: a container that could not start for want of a ConfigMap waits ten seconds, unless its arrival is noticed.
    #[test]
    fn s9_what_changes_before_the_action_that_read_it_has_ended_is_not_lost() {
        let mut dependencies = Read::new();
        let first = dependencies.begin();
        assert!(!dependencies.changed(reference("a"), true), "nobody is known to have read it");
        let second = dependencies.begin();
        assert!(!dependencies.extend(read("b"), first), "another one");
        assert!(dependencies.extend(read("a"), first), "it has changed since that action began");
        assert!(!dependencies.extend(read("a"), second), "this one began later");
        assert!(dependencies.changed(reference("a"), true));
        assert!(dependencies.extend(read("a"), second), "known, and read before it changed again");
        dependencies.settle();
        let third = dependencies.begin();
        assert!(!dependencies.extend(read("a"), third));
        assert!(!dependencies.changed(reference("c"), false), "nothing was under way that could have read it");
    }
}
