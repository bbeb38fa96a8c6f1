//! The kinds that are served: those of the table of kinds, and those that were defined while the server runs.
//!
//! A [`Registry`] does not change: a new kind makes a new registry with a higher version. Whoever answers a request
//! takes the newest one once, so that one request sees one set of kinds. Routing, discovery, OpenAPI, the keys of the
//! store, namespace deletion and garbage collection ask a registry; nothing else keeps a list of kinds.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use crate::kinds::{self, Kind};

/// A set of kinds. Cheap to clone.
#[derive(Clone)]
pub struct Registry(Arc<Kinds>);

struct Kinds {
    version: u64,
    /// In the order of discovery.
    all: Vec<Kind>,
    /// By group, plural, and the order in which a group's versions are preferred.
    by_plural: Vec<Kind>,
    /// By plural: where the versions of each group's stand in that list. Every event of the store is looked up.
    runs: HashMap<Box<str>, Vec<Range<usize>>>,
    /// By group, kind, and that order.
    by_kind: Vec<Kind>,
}

static BUILT_IN: LazyLock<Registry> = LazyLock::new(|| Registry::of(0, kinds::ALL.iter().copied().cloned().collect()));

impl Default for Registry {
    fn default() -> Self {
        Self::built_in()
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} kinds at version {}", self.0.all.len(), self.0.version)
    }
}

impl Registry {
    /// The kinds that this binary knows; version 0.
    pub fn built_in() -> Self {
        BUILT_IN.clone()
    }

    fn of(version: u64, all: Vec<Kind>) -> Self {
        let (mut by_plural, mut by_kind) = (all.clone(), all.clone());
        let order = |a: &Kind, b: &Kind| a.group.cmp(&b.group).then_with(|| preference(&a.version, &b.version));
        by_plural.sort_by(|a, b| a.group.cmp(&b.group).then_with(|| a.plural.cmp(&b.plural)).then_with(|| order(a, b)));
        by_kind.sort_by(|a, b| a.group.cmp(&b.group).then_with(|| a.kind.cmp(&b.kind)).then_with(|| order(a, b)));
        let mut runs: HashMap<Box<str>, Vec<Range<usize>>> = HashMap::new();
        let mut start = 0;
        for same in by_plural.chunk_by(|a, b| a.group == b.group && a.plural == b.plural) {
            let plural = same.first().map_or("", |kind| &*kind.plural);
            runs.entry(plural.into()).or_default().push(start..start + same.len());
            start += same.len();
        }
        Self(Arc::new(Kinds { version, all, by_plural, runs, by_kind }))
    }

    /// Counts up with every change; registries of equal version are equal.
    pub fn version(&self) -> u64 {
        self.0.version
    }

    /// Whether it is this very registry: kinds that are equal may be others.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Every kind in every version, in the order of discovery.
    pub fn all(&self) -> &[Kind] {
        &self.0.all
    }

    /// Every version of the resource with this plural; the preferred one first.
    pub fn versions(&self, group: &str, plural: &str) -> &[Kind] {
        let runs = self.0.runs.get(plural).into_iter().flatten();
        let mut versions = runs.filter_map(|run| self.0.by_plural.get(run.clone()));
        versions.find(|versions| versions.first().is_some_and(|kind| kind.group == group)).unwrap_or_default()
    }

    /// The kind at `/apis/<group>/<version>/<plural>` (`group` is `""` for the core group).
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Kind> {
        self.versions(group, plural).iter().find(|kind| kind.version == version)
    }

    /// The kind of a manifest's `apiVersion` (split) and `kind`.
    pub fn find_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Kind> {
        self.of_kind(group, kind).iter().find(|found| found.version == version)
    }

    /// Every version of the kind of this name; the preferred one first.
    pub fn of_kind(&self, group: &str, kind: &str) -> &[Kind] {
        run(&self.0.by_kind, |found| (&*found.group, &*found.kind).cmp(&(group, kind)))
    }

    /// The form in which objects of a resource are stored.
    pub fn stored(&self, group: &str, plural: &str) -> Option<&Kind> {
        let versions = self.versions(group, plural);
        versions.iter().find(|kind| kind.is_stored()).or_else(|| versions.first()).map(Kind::stored)
    }

    /// Each resource once, in the form in which its objects are stored.
    pub fn all_stored(&self) -> impl Iterator<Item = &Kind> {
        self.0.all.iter().filter(|kind| kind.is_stored())
    }

    /// This registry with these rows of a resource instead of those that it has of it; none take it away.
    #[must_use]
    pub fn with(&self, group: &str, plural: &str, rows: Vec<Kind>) -> Self {
        let mut all: Vec<Kind> = Vec::with_capacity(self.0.all.len() + rows.len());
        all.extend(self.0.all.iter().filter(|kind| !(kind.group == group && kind.plural == plural)).cloned());
        all.extend(rows);
        Self::of(self.0.version + 1, all)
    }
}

impl Registry {
    /// The built-in kinds of this registry and these, and no others. A built-in resource is not replaced.
    #[must_use]
    pub fn with_custom(&self, rows: Vec<Kind>) -> Self {
        let built_in = self.0.all.iter().filter(|kind| matches!(kind, Kind::BuiltIn(_)));
        let mut all: Vec<Kind> = built_in.cloned().collect();
        all.extend(rows.into_iter().filter(|row| BUILT_IN.versions(&row.group, &row.plural).is_empty()));
        Self::of(self.0.version + 1, all)
    }
}

/// The neighbours of a sorted list that compare as equal.
fn run(sorted: &[Kind], compare: impl Fn(&Kind) -> Ordering) -> &[Kind] {
    let start = sorted.partition_point(|kind| compare(kind) == Ordering::Less);
    let rest = sorted.get(start..).unwrap_or_default();
    let count = rest.partition_point(|kind| compare(kind) == Ordering::Equal);
    rest.get(..count).unwrap_or_default()
}

/// Upstream's order of versions: `v2`, `v1`, `v1beta2`, `v1beta1`, `v1alpha1`, then everything else by name.
pub fn preference(a: &str, b: &str) -> Ordering {
    match (parsed(a), parsed(b)) {
        (Some(a), Some(b)) => b.cmp(&a),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => a.cmp(b),
    }
}

/// Stability (2 is stable), major and minor of a version such as `v1beta2`.
fn parsed(version: &str) -> Option<(u8, u64, u64)> {
    let number = |text: &str| {
        let plain = !text.is_empty() && !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| text.parse::<u64>().ok()).flatten()
    };
    let rest = version.strip_prefix('v')?;
    for (word, stability) in [("alpha", 0), ("beta", 1)] {
        if let Some((major, minor)) = rest.split_once(word) {
            return Some((stability, number(major)?, number(minor)?));
        }
    }
    Some((2, number(rest)?, 0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::{CONFIG_MAP, POD, Row};

    fn custom(version: &'static str) -> Kind {
        let row = Row {
            group: "x.io".into(),
            kind: "Foo".into(),
            plural: "foos".into(),
            version: version.into(),
            ..Row::base()
        };
        Kind::Custom(Arc::new(row))
    }

    #[test]
    fn every_kind_of_the_table_is_found() {
        let registry = Registry::built_in();
        for kind in registry.all() {
            assert_eq!(registry.find(&kind.group, &kind.version, &kind.plural), Some(kind));
            assert_eq!(registry.find_kind(&kind.group, &kind.version, &kind.kind), Some(kind));
            assert!(registry.stored(&kind.group, &kind.plural).is_some());
        }
        assert_eq!(registry.find("", "v1", "things"), None);
        assert_eq!(registry.find("apps", "v1beta1", "statefulsets"), None);
    }

    #[test]
    fn a_kind_comes_and_goes_and_a_registry_that_was_taken_stays_as_it_was() {
        let before = Registry::built_in();
        let with = before.with("x.io", "foos", vec![custom("v1"), custom("v1beta1"), custom("v2")]);
        assert_eq!((before.version(), with.version()), (0, 1));
        assert_eq!(before.find("x.io", "v1", "foos"), None);
        let names: Vec<&str> = with.versions("x.io", "foos").iter().map(|kind| &*kind.version).collect();
        assert_eq!(names, ["v2", "v1", "v1beta1"]);
        assert_eq!(with.find("", "v1", "pods"), Some(&POD));
        let without = with.with("x.io", "foos", Vec::new());
        assert_eq!((without.find("x.io", "v2", "foos"), without.version()), (None, 2));
        assert_eq!(without.stored("", "configmaps"), Some(&CONFIG_MAP));
    }

    #[test]
    fn versions_are_preferred_in_upstreams_order() {
        let mut versions =
            ["foo1", "v1alpha1", "v10", "v2", "v1beta10", "v1beta2", "v1", "v11beta2", "foo10", "v0", "v1beta0"];
        versions.sort_by(|a, b| preference(a, b));
        assert_eq!(
            versions,
            ["v10", "v2", "v1", "v11beta2", "v1beta10", "v1beta2", "v1alpha1", "foo1", "foo10", "v0", "v1beta0"]
        );
    }
}
