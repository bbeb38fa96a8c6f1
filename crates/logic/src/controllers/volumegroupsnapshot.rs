//! VolumeGroupSnapshots: the claims that a selector finds, all copied as they are at one moment. Key: the group
//! snapshot.
//!
//! Relies on: the node (`mainstay.io/snapshot-on` of the content) copying all volumes of the content at one moment and
//! saying so in its status; the snapshot controller binding each member to its content; garbage collection taking the
//! members along with their group.
//! Guarantees: which claims belong to a group is decided once, when its content is made; a member is made only of a
//! copy that is there, and not again once the group is ready.
//! Safe when cut: contents and members have names of their own.
//! Differs: one file for what upstream spreads over two controllers; all claims of a group must be on one node; copies
//! that were there before are bound one by one, as VolumeSnapshots, not as a group.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use mainstay_api::snapshots::{
    VolumeGroupSnapshot, VolumeGroupSnapshotClass, VolumeGroupSnapshotContent, VolumeSnapshot, VolumeSnapshotInfo,
};
use mainstay_api::{ObjectKey, kinds, time};
use serde_json::{Value, json};

use crate::decision::{Controller, Decision, Event, Verb, Waiting, Write, key_of};
use crate::ownership::{controller_of, controller_reference};
use crate::pods::is_terminating;
use crate::snapshot::{Change, Index, Snapshot};
use crate::volume::source::{self, SNAPSHOT_ON, key_of_reference};
use crate::volume::{self, BUILT_IN, LOCAL_PATH_FINALIZER, annotation};

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "group-snapshot-controller",
    permits: &[
        (Verb::Patch, "volumegroupsnapshots"),
        (Verb::PatchStatus, "volumegroupsnapshots"),
        (Verb::Create, "volumegroupsnapshotcontents"),
        (Verb::Delete, "volumegroupsnapshotcontents"),
        (Verb::Create, "volumesnapshots"),
        (Verb::Create, "volumesnapshotcontents"),
    ],
    reads: crate::volume::READS,
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
    many: None,
};

/// Kept on a group snapshot until its content is gone, where the policy says so.
const FINALIZER: &str = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-bound-protection";
/// On a member: the claim that it is a copy of.
pub const SOURCE_CLAIM: &str = "mainstay.io/source-claim";
/// Upstream's limit of members.
const MAX_MEMBERS: usize = 100;

/// A group snapshot, and everything that it may be made of.
pub struct Observed<'a> {
    group: &'a VolumeGroupSnapshot,
    world: &'a Snapshot,
}

fn keys(before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    match (&*change.kind.group, &*change.kind.plural) {
        ("groupsnapshot.storage.k8s.io", "volumegroupsnapshots") => wake(change.key.clone()),
        ("groupsnapshot.storage.k8s.io", "volumegroupsnapshotcontents") => {
            for content in
                [before, after].into_iter().filter_map(|world| world.volume_group_snapshot_contents.get(&change.key))
            {
                wake(key_of_reference(&content.spec.volume_group_snapshot_ref));
            }
        }
        ("groupsnapshot.storage.k8s.io", _) | ("", "persistentvolumes" | "persistentvolumeclaims") => {
            after.indexes.get(Index::GroupsUnsettled, "", "").for_each(|key| wake(key.clone()));
        }
        ("snapshot.storage.k8s.io", "volumesnapshots") => {
            let owners =
                [&change.old, &change.new].into_iter().flatten().filter_map(|meta| controller_of(&meta.metadata));
            let groups = owners.filter(|owner| owner.kind == "VolumeGroupSnapshot");
            groups.for_each(|owner| wake(ObjectKey::new(change.key.namespace.clone(), owner.name.as_str())));
        }
        _ => {}
    }
}

fn observe<'a>(world: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    world.volume_group_snapshots.get(key).map(|group| Observed { group, world })
}

fn uid(group: &VolumeGroupSnapshot) -> &str {
    group.metadata.uid.as_deref().unwrap_or("")
}

fn decide(observed: &Observed, now: Timestamp) -> Decision {
    let (group, world) = (observed.group, observed.world);
    let name = format!("groupsnapcontent-{}", uid(group));
    let content =
        world.volume_group_snapshot_contents.get(&ObjectKey::new("", name.as_str())).map(|content| &**content);
    let content = content.filter(|content| content.spec.volume_group_snapshot_ref.uid == group.metadata.uid);
    let finalizers = group.metadata.finalizers.as_deref().unwrap_or_default();
    let protected = finalizers.iter().any(|present| present == FINALIZER);
    if is_terminating(&group.metadata) {
        return if protected { terminating(group, content) } else { Decision::default() };
    }
    if !protected {
        let all: Vec<&str> = finalizers.iter().map(String::as_str).chain([FINALIZER]).collect();
        let patch = json!({"metadata": {"finalizers": all}});
        return Decision {
            writes: vec![Write::patch(&kinds::VOLUME_GROUP_SNAPSHOT, &group.metadata, patch)],
            ..Decision::default()
        };
    }
    if group.spec.source.volume_group_snapshot_content_name.is_some() {
        let message =
            "copies that exist are bound one by one, by VolumeSnapshots with a volumeSnapshotContentName".to_owned();
        return failed(group, "GroupSnapshotContentMismatch", message, now);
    }
    let was_bound =
        group.status.as_ref().is_some_and(|status| status.bound_volume_group_snapshot_content_name.is_some());
    match content {
        Some(content) => follow(observed, content, now),
        None if was_bound => {
            failed(group, "GroupSnapshotContentMissing", "VolumeGroupSnapshotContent is missing".to_owned(), now)
        }
        None => begin(observed, &name, now),
    }
}

/// Decides which claims belong to the group, and has them copied.
fn begin(observed: &Observed, name: &str, now: Timestamp) -> Decision {
    let group = observed.group;
    let made = members(observed).and_then(|members| Ok((class(observed)?, members)));
    let (class, members) = match made {
        Ok(found) => found,
        Err(why) => {
            let message = format!("Failed to create group snapshot content with error {why}");
            return failed(group, "GroupSnapshotContentCreationFailed", message, now);
        }
    };
    if group.spec.volume_group_snapshot_class_name.is_none() {
        let patch = json!({"spec": {"volumeGroupSnapshotClassName": class.metadata.name}});
        return Decision {
            writes: vec![Write::patch(&kinds::VOLUME_GROUP_SNAPSHOT, &group.metadata, patch)],
            ..Decision::default()
        };
    }
    let handles: Vec<Option<&String>> = members.iter().map(|(_, volume)| volume.metadata.name.as_ref()).collect();
    let node = members.first().map_or("", |(_, volume)| annotation(&volume.metadata, volume::MADE_ON));
    let reference = json!({"apiVersion": "groupsnapshot.storage.k8s.io/v1", "kind": "VolumeGroupSnapshot",
        "namespace": group.metadata.namespace,
        "name": group.metadata.name, "uid": group.metadata.uid});
    let object = json!({
        "apiVersion": "groupsnapshot.storage.k8s.io/v1", "kind": "VolumeGroupSnapshotContent",
        "metadata": {"name": name, "annotations": {(SNAPSHOT_ON): node}, "finalizers": [LOCAL_PATH_FINALIZER]},
        "spec": {"driver": class.driver, "deletionPolicy": class.deletion_policy,
            "volumeGroupSnapshotClassName": class.metadata.name,
            "source": {"volumeHandles": handles}, "volumeGroupSnapshotRef": reference},
    });
    let message = format!("Waiting for a group snapshot {} to be created by the CSI driver.", key_of(&group.metadata));
    let status = json!({"boundVolumeGroupSnapshotContentName": name, "readyToUse": false, "error": null});
    Decision {
        writes: vec![
            Write::Create { kind: kinds::VOLUME_GROUP_SNAPSHOT_CONTENT.clone(), object },
            Write::patch_status(&kinds::VOLUME_GROUP_SNAPSHOT, &group.metadata, status),
        ],
        events: vec![Event::normal(&kinds::VOLUME_GROUP_SNAPSHOT, &group.metadata, "CreatingGroupSnapshot", message)],
        ..Decision::default()
    }
}

/// The claims that the selector finds, with volumes that can be copied at one moment: all on one node.
fn members<'a>(observed: &Observed<'a>) -> Result<Vec<(&'a PersistentVolumeClaim, &'a PersistentVolume)>, String> {
    let (group, world) = (observed.group, observed.world);
    let Some(selector) = &group.spec.source.selector else { return Err("the source is missing".to_owned()) };
    let namespace = group.metadata.namespace.as_deref().unwrap_or("");
    let mut members: Vec<(&PersistentVolumeClaim, &PersistentVolume)> = Vec::new();
    for (_, claim) in world.selected::<PersistentVolumeClaim>(namespace, selector) {
        if is_terminating(&claim.metadata) {
            continue;
        }
        members.push((claim, source::source_volume(world, claim)?));
    }
    let node = |volume: &PersistentVolume| annotation(&volume.metadata, volume::MADE_ON).to_owned();
    let first = members.first().map(|(_, volume)| node(volume));
    match first {
        None => Err("the selector finds no persistentvolumeclaim".to_owned()),
        Some(_) if members.len() > MAX_MEMBERS => {
            Err(format!("the selector finds {} claims, more than {MAX_MEMBERS}", members.len()))
        }
        Some(first) if members.iter().any(|(_, volume)| node(volume) != first) => {
            Err("the claims' volumes are on more than one node, which cannot be copied at one moment".to_owned())
        }
        Some(_) => Ok(members),
    }
}

/// The class that the group names, else the built-in driver's default.
fn class<'a>(observed: &Observed<'a>) -> Result<&'a VolumeGroupSnapshotClass, String> {
    let (group, world) = (observed.group, observed.world);
    let built_in = |class: &VolumeGroupSnapshotClass| BUILT_IN.contains(&class.driver.as_str());
    if let Some(name) = group.spec.volume_group_snapshot_class_name.as_deref() {
        let found = world.volume_group_snapshot_classes.get(&ObjectKey::new("", name)).map(|class| &**class);
        let found = found
            .ok_or_else(|| format!("volumegroupsnapshotclass.groupsnapshot.storage.k8s.io \"{name}\" not found"))?;
        return if built_in(found) {
            Ok(found)
        } else {
            Err(format!("group snapshot class {name} is of driver \"{}\"", found.driver))
        };
    }
    let default = |class: &&VolumeGroupSnapshotClass| {
        built_in(class) && annotation(&class.metadata, kinds::volumegroupsnapshotclass::DEFAULT_ANNOTATION) == "true"
    };
    let mut classes = world.volume_group_snapshot_classes.iter().map(|(_, class)| &**class).filter(default);
    match (classes.next(), classes.count()) {
        (None, _) => Err("cannot find default group snapshot class".to_owned()),
        (Some(class), 0) => Ok(class),
        (Some(_), more) => Err(format!("{} default group snapshot classes were found", more + 1)),
    }
}

/// Makes a member of each copy that is there, and says what the members say.
fn follow(observed: &Observed, content: &VolumeGroupSnapshotContent, now: Timestamp) -> Decision {
    let (group, world) = (observed.group, observed.world);
    let was = group.status.clone().unwrap_or_default();
    let said = content.status.clone().unwrap_or_default();
    if let Some(message) =
        said.error.as_ref().and_then(|error| error.message.clone()).filter(|_| said.ready_to_use != Some(true))
    {
        return failed(group, "GroupSnapshotCreationFailed", message, now);
    }
    if was.ready_to_use == Some(true) {
        return Decision::default();
    }
    let mut decision = Decision::default();
    let copies = said.volume_snapshot_info_list.unwrap_or_default();
    let mut ready = said.ready_to_use == Some(true) && !copies.is_empty();
    for (index, copy) in copies.iter().enumerate() {
        let name = format!("snapshot-{}-{index}", uid(group));
        let content_name = format!("snapcontent-{}-{index}", uid(group));
        let key = ObjectKey::new(group.metadata.namespace.as_deref().unwrap_or(""), name.as_str());
        let member = world.volume_snapshots.get(&key);
        // A member that may not be made keeps no other.
        decision.apart(|decision| {
            if !world.volume_snapshot_contents.contains_key(&ObjectKey::new("", content_name.as_str())) {
                decision.writes.push(member_content(observed, content, copy, &content_name, &name));
            }
            if member.is_none() {
                decision.writes.push(member_snapshot(observed, copy, &content_name, &name));
            }
        });
        let is_ready =
            |member: &VolumeSnapshot| member.status.as_ref().and_then(|status| status.ready_to_use) == Some(true);
        ready &= member.is_some_and(|member| is_ready(member));
    }
    let bound = was.bound_volume_group_snapshot_content_name == content.metadata.name;
    if ready || !bound || was.error.is_some() {
        let made = said.creation_time.map(|made| time::rfc3339(made.0));
        let status = json!({"boundVolumeGroupSnapshotContentName": content.metadata.name, "readyToUse": ready,
            "creationTime": made, "error": null});
        decision.writes.push(Write::patch_status(&kinds::VOLUME_GROUP_SNAPSHOT, &group.metadata, status));
    }
    if ready {
        let message = format!("Group snapshot {} is ready to use.", key_of(&group.metadata));
        decision.events.push(Event::normal(
            &kinds::VOLUME_GROUP_SNAPSHOT,
            &group.metadata,
            "GroupSnapshotReady",
            message,
        ));
    } else {
        decision.waiting.push(Waiting::Missing { what: "the copies".to_owned() });
    }
    decision
}

/// The volume that a member is a copy of.
fn source_volume<'a>(observed: &Observed<'a>, copy: &VolumeSnapshotInfo) -> Option<&'a PersistentVolume> {
    let name = copy.volume_handle.as_deref().unwrap_or("");
    observed.world.persistent_volumes.get(&ObjectKey::new("", name)).map(|volume| &**volume)
}

fn member_content(
    observed: &Observed,
    content: &VolumeGroupSnapshotContent,
    copy: &VolumeSnapshotInfo,
    name: &str,
    snapshot: &str,
) -> Write {
    let (group, volume) = (observed.group, source_volume(observed, copy));
    // Of a volume that is gone meanwhile it is not known any more.
    let mode =
        volume.map(|volume| volume::volume_mode(volume.spec.as_ref().and_then(|spec| spec.volume_mode.as_deref())));
    let object = json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent", "metadata": {"name": name},
        "spec": {
            "driver": content.spec.driver, "deletionPolicy": content.spec.deletion_policy,
                "sourceVolumeMode": mode,
            "source": {"snapshotHandle": copy.snapshot_handle},
            "volumeSnapshotRef": {"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
                "namespace": group.metadata.namespace, "name": snapshot},
        },
    });
    Write::Create { kind: kinds::VOLUME_SNAPSHOT_CONTENT.clone(), object }
}

fn member_snapshot(observed: &Observed, copy: &VolumeSnapshotInfo, content: &str, name: &str) -> Write {
    let group = observed.group;
    let claim = source_volume(observed, copy).and_then(|volume| volume::claim_ref(volume)?.name.clone());
    let annotations = claim.map_or(Value::Null, |claim| json!({(SOURCE_CLAIM): claim}));
    let object = json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
        "metadata": {"namespace": group.metadata.namespace, "name": name, "labels": group.metadata.labels,
            "annotations": annotations,
            "ownerReferences": [controller_reference(&kinds::VOLUME_GROUP_SNAPSHOT, &group.metadata)]},
        "spec": {"source": {"volumeSnapshotContentName": content}},
    });
    Write::Create { kind: kinds::VOLUME_SNAPSHOT.clone(), object }
}

fn failed(group: &VolumeGroupSnapshot, reason: &'static str, message: String, now: Timestamp) -> Decision {
    let mut decision = Decision { waiting: vec![Waiting::NoVolume], ..Decision::default() };
    let was = group.status.clone().unwrap_or_default();
    if was.error.and_then(|error| error.message).as_deref() != Some(message.as_str()) || was.ready_to_use != Some(false)
    {
        let status = json!({"readyToUse": false, "error": {"message": message, "time": time::rfc3339(now)}});
        decision.writes.push(Write::patch_status(&kinds::VOLUME_GROUP_SNAPSHOT, &group.metadata, status));
        decision.events.push(Event::warning(&kinds::VOLUME_GROUP_SNAPSHOT, &group.metadata, reason, message));
    }
    decision
}

/// On its way out: the content first, where the policy says so; the members follow their owner.
fn terminating(group: &VolumeGroupSnapshot, content: Option<&VolumeGroupSnapshotContent>) -> Decision {
    if let Some(content) = content.filter(|content| content.spec.deletion_policy == "Delete") {
        let delete = Write::delete(&kinds::VOLUME_GROUP_SNAPSHOT_CONTENT, &content.metadata);
        let writes = if is_terminating(&content.metadata) { Vec::new() } else { vec![delete] };
        return Decision { writes, waiting: vec![Waiting::InUse], ..Decision::default() };
    }
    let rest: Vec<&String> = group.metadata.finalizers.iter().flatten().filter(|name| *name != FINALIZER).collect();
    let patch = json!({"metadata": {"finalizers": rest}});
    Decision {
        writes: vec![Write::patch(&kinds::VOLUME_GROUP_SNAPSHOT, &group.metadata, patch)],
        ..Decision::default()
    }
}

#[cfg(test)]
mod tests;
