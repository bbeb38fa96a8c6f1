//! Which ControllerRevision the set is on and which it goes to; making, raising and forgetting revisions.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use mainstay_api::ObjectKey;
use mainstay_api::kinds::{CONTROLLER_REVISION, STATEFUL_SET};
use serde_json::{Value, json};

use super::{Observed, revision_of};
use crate::decision::{Decision, Write};
use crate::history;
use crate::ownership::controller_reference;

/// One revision: its object's name and the template in it.
#[derive(Clone)]
pub struct Revision {
    pub name: String,
    pub template: PodTemplateSpec,
}

/// What the set is on, what it goes to, and what must be written so that both exist.
pub struct Revisions {
    /// What ordinals below the partition have and regain.
    pub current: Revision,
    /// What the set's template asks for.
    pub update: Revision,
    /// How often a name was taken by another template.
    pub collisions: i32,
    /// Makes the update revision, or raises its number when the set goes back to it.
    pub write: Option<Write>,
}

/// Chooses both revisions. A template that equals a stored one (S11) takes that one up again, with the highest number.
pub fn choose(o: &Observed) -> Revisions {
    let wanted = history::normal(&STATEFUL_SET, &o.spec.template);
    let highest = o.revisions.last().and_then(|revision| revision.revision).unwrap_or(0);
    let same = o
        .revisions
        .iter()
        .rev()
        .find(|revision| history::normal(&STATEFUL_SET, &history::template(&revision.data.0)) == wanted);
    let mut collisions = o.set.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
    let (name, write) = match same {
        Some(found) if found.revision.unwrap_or(0) < highest => {
            let raise = json!({ "revision": highest.saturating_add(1) });
            (name_of(found).to_owned(), Some(Write::patch(&CONTROLLER_REVISION, &found.metadata, raise)))
        }
        Some(found) => (name_of(found).to_owned(), None),
        None => {
            let (name, hash) = free_name(o, &wanted, &mut collisions);
            let object = revision_object(o, &name, &hash, highest.saturating_add(1));
            (name, Some(Write::Create { kind: CONTROLLER_REVISION.clone(), object }))
        }
    };
    let update = Revision { name, template: o.spec.template.clone() };
    let current = current(o, &update);
    Revisions { current, update, collisions, write }
}

/// What status names. Where that is missing (a new set, one that was made again over its old pods, or a decision that
/// was cut before its status) the oldest revision that a pod carries.
fn current(o: &Observed, update: &Revision) -> Revision {
    let named = o.set.status.as_ref().and_then(|status| status.current_revision.as_deref()).unwrap_or("");
    let carried: BTreeSet<&str> = o.pods.values().map(|pod| revision_of(pod)).collect();
    let found = o.revisions.iter().find(|revision| name_of(revision) == named);
    let found = found.or_else(|| o.revisions.iter().find(|revision| carried.contains(name_of(revision))));
    match found {
        Some(found) if name_of(found) != update.name => {
            Revision { name: name_of(found).to_owned(), template: history::template(&found.data.0) }
        }
        _ => update.clone(),
    }
}

/// A name that no revision has, of whatever owner.
fn free_name(o: &Observed, wanted: &Value, collisions: &mut i32) -> (String, String) {
    loop {
        let hash = history::hash(wanted, *collisions);
        let name = format!("{}-{hash}", o.name());
        let taken = o.all_revisions.contains_key(&ObjectKey::new(o.namespace(), name.as_str()));
        if !taken || *collisions == i32::MAX {
            return (name, hash);
        }
        *collisions += 1;
    }
}

fn revision_object(o: &Observed, name: &str, hash: &str, number: i64) -> Value {
    let mut labels = o.spec.template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
    labels.insert(history::HASH_LABEL.into(), hash.into());
    let mut annotations = o.set.metadata.annotations.clone().unwrap_or_default();
    annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    let mut metadata = json!({
        "namespace": o.namespace(), "name": name, "labels": labels,
        "ownerReferences": [controller_reference(&STATEFUL_SET, &o.set.metadata)],
    });
    if !annotations.is_empty() {
        metadata["annotations"] = json!(annotations);
    }
    json!({
        "apiVersion": CONTROLLER_REVISION.api_version(), "kind": CONTROLLER_REVISION.kind,
        "metadata": metadata, "data": history::data(&o.spec.template), "revision": number,
    })
}

/// Deletes the oldest revisions that nothing uses, beyond `revisionHistoryLimit`.
pub fn truncate(o: &Observed, revisions: &Revisions, d: &mut Decision) {
    let mut live: BTreeSet<&str> = o.pods.values().map(|pod| revision_of(pod)).collect();
    live.extend([revisions.current.name.as_str(), revisions.update.name.as_str()]);
    let unused: Vec<_> = o.revisions.iter().filter(|revision| !live.contains(name_of(revision))).collect();
    let limit = usize::try_from(o.spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
    let excess = unused.len().saturating_sub(limit);
    for revision in unused.into_iter().take(excess) {
        d.push_apart(Write::delete(&CONTROLLER_REVISION, &revision.metadata));
    }
}

fn name_of(revision: &ControllerRevision) -> &str {
    revision.metadata.name.as_deref().unwrap_or("")
}
