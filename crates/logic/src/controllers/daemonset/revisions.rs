//! The history of a DaemonSet's template: ControllerRevisions that `kubectl rollout history` and `undo` read.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::ControllerRevision;
use mainstay_api::ObjectKey;
use mainstay_api::kinds::{CONTROLLER_REVISION, DAEMON_SET};
use serde_json::{Value, json};

use super::Observed;
use crate::decision::{Decision, Write};
use crate::history;
use crate::ownership::controller_reference;

/// The label of a revision and of its pods with the template's hash.
pub const HASH: &str = "controller-revision-hash";

/// The revision of the template that is asked for.
pub struct Revisions {
    /// Its hash.
    pub hash: String,
    /// Its object's name.
    name: String,
    /// How often a name was taken by another template.
    pub collisions: i32,
    /// Makes it, or raises its number when the set goes back to it.
    pub write: Option<Write>,
}

/// Chooses the revision. A template that equals a stored one (S11) takes that one up again, with the highest number.
pub fn choose(o: &Observed) -> Revisions {
    let wanted = history::normal(&DAEMON_SET, &o.spec.template);
    let highest = o.revisions.last().and_then(|revision| revision.revision).unwrap_or(0);
    let same = o
        .revisions
        .iter()
        .rev()
        .find(|revision| history::normal(&DAEMON_SET, &history::template(&revision.data.0)) == wanted);
    let mut collisions = o.set.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
    if let Some(found) = same {
        let behind = found.revision.unwrap_or(0) < highest;
        let raise = || {
            let number = json!({ "revision": highest.saturating_add(1) });
            Write::patch(&CONTROLLER_REVISION, &found.metadata, number)
        };
        let write = behind.then(raise);
        return Revisions { hash: hash_of(found).to_owned(), name: name_of(found).to_owned(), collisions, write };
    }
    let (namespace, set) = (o.set.metadata.namespace.as_deref(), o.set.metadata.name.as_deref());
    let (namespace, set) = (namespace.unwrap_or(""), set.unwrap_or(""));
    let (name, hash) = loop {
        let hash = history::hash(&wanted, collisions);
        let name = format!("{set}-{hash}");
        if collisions == i32::MAX || !o.all_revisions.contains_key(&ObjectKey::new(namespace, name.as_str())) {
            break (name, hash);
        }
        collisions += 1;
    };
    let object = object(o, &name, &hash, highest.saturating_add(1));
    Revisions { hash, name, collisions, write: Some(Write::Create { kind: CONTROLLER_REVISION.clone(), object }) }
}

fn object(o: &Observed, name: &str, hash: &str, number: i64) -> Value {
    let mut labels = o.spec.template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
    labels.insert(HASH.to_owned(), hash.to_owned());
    let annotations = o.set.metadata.annotations.clone().unwrap_or_default();
    json!({
        "apiVersion": CONTROLLER_REVISION.api_version(), "kind": CONTROLLER_REVISION.kind,
        "metadata": {
            "namespace": o.set.metadata.namespace, "name": name, "labels": labels, "annotations": annotations,
            "ownerReferences": [controller_reference(&DAEMON_SET, &o.set.metadata)],
        },
        "data": history::data(&o.spec.template), "revision": number,
    })
}

/// Deletes the oldest revisions that no pod has, beyond `revisionHistoryLimit`.
pub fn truncate(o: &Observed, revisions: &Revisions, d: &mut Decision) {
    let labels = o.pods.values().flatten().filter_map(|pod| pod.metadata.labels.as_ref()?.get(HASH));
    let live: BTreeSet<&str> = labels.map(String::as_str).collect();
    let unused =
        |revision: &&&ControllerRevision| name_of(revision) != revisions.name && !live.contains(hash_of(revision));
    let unused: Vec<_> = o.revisions.iter().filter(unused).collect();
    let limit = usize::try_from(o.spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
    let excess = unused.len().saturating_sub(limit);
    for revision in unused.into_iter().take(excess) {
        d.push_apart(Write::delete(&CONTROLLER_REVISION, &revision.metadata));
    }
}

fn name_of(revision: &ControllerRevision) -> &str {
    revision.metadata.name.as_deref().unwrap_or("")
}

fn hash_of(revision: &ControllerRevision) -> &str {
    revision.metadata.labels.as_ref().and_then(|labels| labels.get(HASH)).map_or("", String::as_str)
}
