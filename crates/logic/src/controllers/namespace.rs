//! Namespace deletion: everything in it goes, then the namespace.
//!
//! Relies on: an API server that makes nothing new in a namespace that is being deleted.
//! Guarantees: pods go first, and nothing else is deleted while one is there. `spec.finalizers` loses `kubernetes` only
//! when the snapshot holds nothing in the namespace; each object goes by its uid (A8), gracefully, its own finalizers
//! respected (V2).

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use mainstay_api::kinds::{NAMESPACE, POD};
use mainstay_api::{Kind, ObjectKey};
use serde_json::json;

use crate::decision::{Controller, Decision, Verb, Waiting, Write, turn};
use crate::pods::is_terminating;
use crate::snapshot::{Change, Meta, Snapshot};

/// How many objects one decision deletes; the next takes the rest.
const MAX_DELETES: usize = 2000;
/// The condition by which a namespace says what of it may not be deleted; the driver sets it when it meets a refusal.
pub const CONTENT_FAILURE: &str = "NamespaceDeletionContentFailure";

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "namespace-controller",
    permits: &[(Verb::Delete, "*"), (Verb::Patch, "namespaces"), (Verb::PatchStatus, "namespaces")],
    reads: &["*"],
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
    many: None,
};

fn keys(_: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    let key =
        if change.kind == NAMESPACE { change.key.clone() } else { ObjectKey::new("", change.key.namespace.clone()) };
    if after.namespaces.get(&key).is_some_and(|namespace| is_terminating(&namespace.metadata)) {
        wake(key);
    }
}

/// A namespace on its way out and what is in it.
pub struct Observed<'a> {
    namespace: &'a Namespace,
    content: Vec<&'a Meta>,
}

/// The namespace at `key`, where it is being deleted.
pub fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    let namespace = snapshot.namespaces.get(key).filter(|namespace| is_terminating(&namespace.metadata))?;
    let content = |kind: &'a Kind| {
        let start = (kind.clone(), ObjectKey::new(key.name.clone(), ""));
        let own = move |meta: &&Meta| meta.kind == *kind && meta.key.namespace == key.name;
        snapshot.metas.range(start..).map(|(_, meta)| &**meta).take_while(own)
    };
    Some(Observed {
        namespace,
        content: snapshot.registry.all_stored().filter(|kind| kind.namespaced).flat_map(content).collect(),
    })
}

/// One step of the deletion.
pub fn decide(o: &Observed, now: Timestamp) -> Decision {
    let mut d = Decision::default();
    // What pods use stays until they are gone; what makes pods makes none here any more.
    let pods_remain = o.content.iter().any(|meta| meta.kind == POD);
    let fresh = o.content.iter().filter(|meta| !is_terminating(&meta.metadata) && (!pods_remain || meta.kind == POD));
    let fresh: Vec<&&Meta> = fresh.collect();
    // What may not be deleted keeps nothing else; the driver says so in the status.
    let first = turn(fresh.len(), MAX_DELETES, now);
    for meta in fresh.iter().skip(first).take(MAX_DELETES) {
        d.push_apart(Write::delete(&meta.kind, &meta.metadata));
    }
    status(o, fresh.len(), now, &mut d);
    if o.content.is_empty() {
        let finalizers = o.namespace.spec.as_ref().and_then(|spec| spec.finalizers.as_ref());
        let rest: Vec<&String> = finalizers.into_iter().flatten().filter(|name| *name != "kubernetes").collect();
        if finalizers.is_some_and(|all| all.len() != rest.len()) {
            // The status may be written before it in the same decision: uid alone guards this one.
            let write = Write::patch(&NAMESPACE, &o.namespace.metadata, json!({ "spec": { "finalizers": rest } }));
            d.writes.push(write.whatever_version());
        }
    } else {
        d.waiting.push(Waiting::DependentsRemain { count: o.content.len() });
    }
    d
}

/// Phase and upstream's conditions; `left` is how much was not told to go so far.
fn status(o: &Observed, left: usize, now: Timestamp, d: &mut Decision) {
    let old = o.namespace.status.clone().unwrap_or_default();
    let held: Vec<&Meta> = o
        .content
        .iter()
        .copied()
        .filter(|meta| meta.metadata.finalizers.as_ref().is_some_and(|all| !all.is_empty()))
        .collect();
    let conditions: Vec<NamespaceCondition> = [
        (
            "NamespaceDeletionDiscoveryFailure",
            false,
            "ResourcesDiscovered",
            "All resources successfully discovered".to_owned(),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed".to_owned(),
        ),
        (
            CONTENT_FAILURE,
            false,
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization".to_owned(),
        ),
        match o.content.is_empty() {
            true => {
                ("NamespaceContentRemaining", false, "ContentRemoved", "All content successfully removed".to_owned())
            }
            false => (
                "NamespaceContentRemaining",
                true,
                "SomeResourcesRemain",
                format!("Some resources are remaining: {}", by_kind(&o.content)),
            ),
        },
        match held.is_empty() {
            true => (
                "NamespaceFinalizersRemaining",
                false,
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished".to_owned(),
            ),
            false => (
                "NamespaceFinalizersRemaining",
                true,
                "SomeFinalizersRemain",
                format!("Some content in the namespace has finalizers remaining: {}", by_finalizer(&held)),
            ),
        },
    ]
    .into_iter()
    .map(|(type_, status, reason, message)| {
        let failure = old.conditions.iter().flatten().find(|old| old.type_ == type_ && type_ == CONTENT_FAILURE);
        if let Some(failure) = failure.filter(|failure| failure.status == "True" && left > 0) {
            return failure.clone();
        }
        let status = if status { "True" } else { "False" };
        let before =
            old.conditions.iter().flatten().find(|condition| condition.type_ == type_ && condition.status == status);
        NamespaceCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: before.and_then(|before| before.last_transition_time.clone()).or(Some(Time(now))),
        }
    })
    .collect();
    if old.phase.as_deref() != Some("Terminating") || old.conditions.as_ref() != Some(&conditions) {
        d.writes.push(Write::patch_status(
            &NAMESPACE,
            &o.namespace.metadata,
            json!({ "phase": "Terminating", "conditions": conditions }),
        ));
    }
}

fn by_kind(content: &[&Meta]) -> String {
    listed(
        content.iter().map(|meta| {
            if meta.kind.group.is_empty() { format!("{}.", meta.kind.plural) } else { meta.kind.resource() }
        }),
        "has",
        "resource instances",
    )
}

fn by_finalizer(content: &[&Meta]) -> String {
    listed(
        content.iter().flat_map(|meta| meta.metadata.finalizers.clone().unwrap_or_default()),
        "in",
        "resource instances",
    )
}

fn listed(names: impl Iterator<Item = String>, verb: &str, noun: &str) -> String {
    let mut counts = std::collections::BTreeMap::new();
    for name in names {
        *counts.entry(name).or_insert(0_usize) += 1;
    }
    counts.into_iter().map(|(name, count)| format!("{name} {verb} {count} {noun}")).collect::<Vec<_>>().join(", ")
}
