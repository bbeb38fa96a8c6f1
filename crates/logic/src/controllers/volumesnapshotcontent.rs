//! VolumeSnapshotContents: protected while their snapshot is there, released when it goes. Key: the content.
//!
//! Relies on: the node that `mainstay.io/snapshot-on` names making the copy and saying so in the status, and, once the
//! content is being deleted with policy Delete and only the node's finalizer is left, removing the copy and then that
//! finalizer.
//! Guarantees V2 (a content stays while its snapshot does and while a volume is being filled from its copy), V3 (Retain
//! keeps every byte; a copy that another content names too is not removed).
//! Differs: upstream takes a content's word for what its handle is; here only the name of a copy of ours leads
//! anywhere.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use mainstay_api::snapshots::{VolumeSnapshot, VolumeSnapshotContent};
use mainstay_api::{ObjectKey, kinds, time};
use serde_json::json;

use super::volumesnapshot::CONTENT_FINALIZER;
use crate::decision::{Controller, Decision, Event, Verb, Waiting, Write};
use crate::pods::is_terminating;
use crate::snapshot::{Change, Index, Snapshot};
use crate::volume::source::{self, SNAPSHOT_ON, content_handle, is_content_of, of_handle};
use crate::volume::{BUILT_IN, LOCAL_PATH_FINALIZER, annotation};

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "snapshot-content-controller",
    permits: &[(Verb::Patch, "volumesnapshotcontents"), (Verb::PatchStatus, "volumesnapshotcontents")],
    reads: crate::volume::READS,
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
    many: None,
};

/// A content, and what keeps it.
pub struct Observed<'a> {
    content: &'a VolumeSnapshotContent,
    /// Its snapshot is there to stay, or a volume is being filled from it.
    in_use: bool,
    /// Another content has the same copy.
    shared: bool,
}

fn keys(_before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    match (&*change.kind.group, &*change.kind.plural) {
        ("snapshot.storage.k8s.io", "volumesnapshotcontents") => wake(change.key.clone()),
        // Those that are on their way out wait for their snapshot, and for what is filled from them.
        ("snapshot.storage.k8s.io", "volumesnapshots") | ("", "persistentvolumes" | "persistentvolumeclaims") => {
            after.indexes.get(Index::ContentsLeaving, "", "").for_each(|key| wake(key.clone()));
        }
        _ => {}
    }
}

/// The snapshot that a content is bound to.
fn snapshot_of<'a>(world: &'a Snapshot, content: &VolumeSnapshotContent) -> Option<&'a VolumeSnapshot> {
    let found = world.volume_snapshots.get(&source::key_of_reference(&content.spec.volume_snapshot_ref))?;
    is_content_of(content, found).then_some(found)
}

/// Whether a volume is being filled from a content's copy, or is about to be.
pub fn is_source(world: &Snapshot, content: &VolumeSnapshotContent) -> bool {
    let folder = of_handle(content_handle(content)).map_or("", |copy| copy.folder);
    if source::is_being_read(world, folder) {
        return true;
    }
    let reference = source::key_of_reference(&content.spec.volume_snapshot_ref);
    let leaving = snapshot_of(world, content);
    let waits = |claim: &PersistentVolumeClaim| {
        !is_terminating(&claim.metadata)
            && source::wanted(claim)
                .is_some_and(|wanted| wanted.is_snapshot(&reference.name) && wanted.namespace.is_none())
            && leaving.is_some_and(|snapshot| source::asked_before(claim, snapshot))
    };
    let ready = content.status.as_ref().and_then(|status| status.ready_to_use) == Some(true);
    let claims = world.found::<PersistentVolumeClaim>(Index::ClaimsWanting, "VolumeSnapshot", &reference.name);
    ready && claims.filter(|(key, _)| key.namespace == reference.namespace).any(|(_, claim)| waits(claim))
}

fn observe<'a>(world: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    let content = world.volume_snapshot_contents.get(key)?;
    let stays = snapshot_of(world, content).is_some_and(|snapshot| !is_terminating(&snapshot.metadata));
    let handle = content_handle(content);
    let shared = !handle.is_empty() && world.indexes.count(Index::ContentsOf, handle, "") > 1;
    Some(Observed { content, in_use: stays || is_source(world, content), shared })
}

fn decide(observed: &Observed, now: Timestamp) -> Decision {
    let content = observed.content;
    let built_in = BUILT_IN.contains(&content.spec.driver.as_str());
    if is_terminating(&content.metadata) {
        return terminating(observed);
    }
    let finalizers = content.metadata.finalizers.as_deref().unwrap_or_default();
    let wanted = [Some(CONTENT_FINALIZER), Some(LOCAL_PATH_FINALIZER).filter(|_| built_in)];
    let missing: Vec<&str> =
        wanted.into_iter().flatten().filter(|name| !finalizers.iter().any(|present| present == name)).collect();
    let handle = content.spec.source.snapshot_handle.as_deref().filter(|_| built_in);
    let found = handle.map(of_handle);
    let on = found.flatten().map(|copy| copy.node).filter(|node| annotation(&content.metadata, SNAPSHOT_ON) != *node);
    let mut decision = Decision::default();
    if !missing.is_empty() || on.is_some() {
        let finalizers: Vec<_> = finalizers.iter().map(String::as_str).chain(missing).collect();
        let mut patch = json!({"metadata": {"finalizers": finalizers}});
        if let Some(node) = on {
            patch["metadata"]["annotations"] = json!({(SNAPSHOT_ON): node});
        }
        decision.writes.push(Write::patch(&kinds::VOLUME_SNAPSHOT_CONTENT, &content.metadata, patch));
    }
    if let (Some(handle), Some(None)) = (handle, found) {
        unknown(content, handle, now, &mut decision);
    }
    decision
}

/// A handle that is no copy of ours: no node is asked.
fn unknown(content: &VolumeSnapshotContent, handle: &str, now: Timestamp, decision: &mut Decision) {
    let message = format!(
        "Failed to check and update snapshot content: \"{handle}\" is not the handle of a snapshot \
            (<node>/snapshot-<id>)"
    );
    let error = content.status.as_ref().and_then(|status| status.error.as_ref()?.message.as_deref());
    if error != Some(message.as_str()) {
        let status = json!({"readyToUse": false, "error": {"message": message, "time": time::rfc3339(now)}});
        decision.writes.push(Write::patch_status(&kinds::VOLUME_SNAPSHOT_CONTENT, &content.metadata, status));
        let event = Event::warning(
            &kinds::VOLUME_SNAPSHOT_CONTENT,
            &content.metadata,
            "SnapshotContentCheckandUpdateFailed",
            message,
        );
        decision.events.push(event);
    }
}

fn terminating(observed: &Observed) -> Decision {
    let content = observed.content;
    if observed.in_use {
        return Decision { waiting: vec![Waiting::InUse], ..Decision::default() };
    }
    let keeps = content.spec.deletion_policy != "Delete" || observed.shared;
    let goes = |name: &str| name == CONTENT_FINALIZER || (keeps && name == LOCAL_PATH_FINALIZER);
    let finalizers = content.metadata.finalizers.as_deref().unwrap_or_default();
    let rest: Vec<&String> = finalizers.iter().filter(|name| !goes(name)).collect();
    if rest.len() == finalizers.len() {
        return Decision::default();
    }
    let patch = json!({"metadata": {"finalizers": rest}});
    Decision {
        writes: vec![Write::patch(&kinds::VOLUME_SNAPSHOT_CONTENT, &content.metadata, patch)],
        ..Decision::default()
    }
}
