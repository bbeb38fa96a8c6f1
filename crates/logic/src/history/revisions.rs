//! The ControllerRevisions of a set (StatefulSet, DaemonSet): which one its template is, making and raising it, and
//! forgetting old ones.

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mainstay_api::kinds::CONTROLLER_REVISION;
use mainstay_api::{Kind, ObjectKey};
use serde_json::{Value, json};

use crate::decision::{Decision, Write};
use crate::ownership::controller_reference;
use crate::snapshot::Objects;

/// How many revisions that nothing uses are kept where the set does not say.
const HISTORY_LIMIT: i32 = 10;

/// A set and its revisions, as observed.
pub struct History<'a> {
    pub kind: &'a Kind,
    pub set: &'a ObjectMeta,
    pub template: &'a PodTemplateSpec,
    /// The set's own revisions, oldest first.
    pub own: &'a [&'a ControllerRevision],
    /// Those of all owners: names that are taken.
    pub all: &'a Objects<ControllerRevision>,
    /// The label of a revision with its hash, which is another one for each kind.
    pub hash_label: &'a str,
    /// `status.collisionCount`.
    pub collisions: Option<i32>,
    /// `spec.revisionHistoryLimit`.
    pub limit: Option<i32>,
}

/// The revision of the template that is asked for.
pub struct Chosen {
    /// Its object's name.
    pub name: String,
    /// Its hash, as its label says.
    pub hash: String,
    /// How often a name was taken by another template.
    pub collisions: i32,
    /// Makes it, or raises its number when the set goes back to it.
    pub write: Option<Write>,
}

impl History<'_> {
    /// Chooses the revision. A template that equals a stored one (S11) takes that one up again, with the highest
    /// number.
    pub fn choose(&self) -> Chosen {
        let wanted = super::normal(self.kind, self.template);
        let highest = self.own.last().and_then(|revision| revision.revision).unwrap_or(0);
        let is_same =
            |revision: &&&ControllerRevision| super::normal(self.kind, &super::template(&revision.data.0)) == wanted;
        let collisions = self.collisions.unwrap_or(0);
        let Some(found) = self.own.iter().rev().find(is_same) else {
            return self.new_one(&wanted, highest, collisions);
        };
        let raise = || {
            let number = json!({ "revision": highest.saturating_add(1) });
            Write::patch(&CONTROLLER_REVISION, &found.metadata, number)
        };
        let write = (found.revision.unwrap_or(0) < highest).then(raise);
        Chosen { name: name(found).to_owned(), hash: self.hash(found).to_owned(), collisions, write }
    }

    /// A revision of a name that none has, of whatever owner.
    fn new_one(&self, wanted: &Value, highest: i64, mut collisions: i32) -> Chosen {
        let (namespace, set) = (self.set.namespace.as_deref().unwrap_or(""), self.set.name.as_deref().unwrap_or(""));
        let (name, hash) = loop {
            let hash = super::hash(wanted, collisions);
            let name = format!("{set}-{hash}");
            if collisions == i32::MAX || !self.all.contains_key(&ObjectKey::new(namespace, name.as_str())) {
                break (name, hash);
            }
            collisions += 1;
        };
        let object = self.object(&name, &hash, highest.saturating_add(1));
        let write = Some(Write::Create { kind: CONTROLLER_REVISION.clone(), object });
        Chosen { name, hash, collisions, write }
    }

    /// With the template's labels and all of the set's annotations, as upstream.
    fn object(&self, name: &str, hash: &str, number: i64) -> Value {
        let mut labels = self.template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
        labels.insert(self.hash_label.to_owned(), hash.to_owned());
        json!({
            "apiVersion": CONTROLLER_REVISION.api_version(), "kind": CONTROLLER_REVISION.kind,
            "metadata": {
                "namespace": self.set.namespace, "name": name, "labels": labels, "annotations": self.set.annotations,
                "ownerReferences": [controller_reference(self.kind, self.set)],
            },
            "data": super::data(self.template), "revision": number,
        })
    }

    /// Deletes the oldest revisions that nothing uses, beyond `revisionHistoryLimit`.
    pub fn truncate(&self, is_used: impl Fn(&ControllerRevision) -> bool, d: &mut Decision) {
        let unused: Vec<_> = self.own.iter().filter(|revision| !is_used(revision)).collect();
        let limit = usize::try_from(self.limit.unwrap_or(HISTORY_LIMIT)).unwrap_or(0);
        let excess = unused.len().saturating_sub(limit);
        for revision in unused.into_iter().take(excess) {
            d.push_apart(Write::delete(&CONTROLLER_REVISION, &revision.metadata));
        }
    }

    /// What a revision's label says.
    pub fn hash<'r>(&self, revision: &'r ControllerRevision) -> &'r str {
        let labels = revision.metadata.labels.as_ref();
        labels.and_then(|labels| labels.get(self.hash_label)).map_or("", String::as_str)
    }
}

/// A revision's name.
pub fn name(revision: &ControllerRevision) -> &str {
    revision.metadata.name.as_deref().unwrap_or("")
}
