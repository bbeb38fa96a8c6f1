//! V1, V2, V3, V6, V8, V9: volumes and claims.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::PersistentVolume;
use mainstay_api::{ObjectKey, kinds};
use mainstay_logic::{Snapshot, volume};

use super::identity::Forced;
use super::{Seen, Violation};
use crate::monkeys::STATIC;
use crate::node::Node;

/// V1: a claim and a volume are bound one to one, by uid.
pub fn v1_one_to_one(seen: &Seen<'_>) -> Result<(), Violation> {
    if !seen.is(&kinds::PERSISTENT_VOLUME) && !seen.is(&kinds::PERSISTENT_VOLUME_CLAIM) {
        return Ok(());
    }
    let mut taken: BTreeMap<&str, &ObjectKey> = BTreeMap::new();
    for (key, claim) in seen.after.persistent_volume_claims.iter() {
        let name = volume::volume_name(claim);
        if name.is_empty() {
            continue;
        }
        if let Some(other) = taken.insert(name, key) {
            return Err(Violation::new("V1", format!("volume {name} is bound to {other} and to {key}")));
        }
        let reference =
            seen.after.persistent_volumes.get(&ObjectKey::new("", name)).and_then(|bound| volume::claim_ref(bound));
        if let Some(reference) = reference.filter(|reference| reference.uid != claim.metadata.uid) {
            return Err(Violation::new("V1", format!("{key} names {name}, which is {:?}'s", reference.uid)));
        }
    }
    let mut claims: BTreeMap<&str, &ObjectKey> = BTreeMap::new();
    for (key, bound) in seen.after.persistent_volumes.iter() {
        let uid = volume::claim_ref(bound).and_then(|reference| reference.uid.as_deref()).unwrap_or("");
        if let Some(other) = claims.insert(uid, key).filter(|_| !uid.is_empty()) {
            return Err(Violation::new("V1", format!("{key} and {other} are both claim {uid}'s")));
        }
    }
    Ok(())
}

/// V2: a claim or volume that is mounted somewhere is never removed; a pod that was deleted by force no longer counts,
/// except for what a provisioned volume's node has to remove.
pub fn v2_in_use_is_never_removed(seen: &Seen<'_>, forced: &Forced) -> Result<(), Violation> {
    let Some(old) = seen.change.old.as_ref().filter(|_| seen.change.new.is_none()) else { return Ok(()) };
    for node in seen.nodes.iter().filter(|node| node.machine.is_on) {
        for ((pod, _), mount) in &node.machine.mounts {
            let provisioned = seen.is(&kinds::PERSISTENT_VOLUME) && !mount.volume.starts_with(STATIC);
            if forced.has(pod) && !provisioned {
                continue;
            }
            let claim = seen.is(&kinds::PERSISTENT_VOLUME_CLAIM) && mount.claim_uid == old.uid();
            let bound = seen.is(&kinds::PERSISTENT_VOLUME) && mount.volume == *seen.change.key.name;
            if claim || bound {
                return Err(Violation::new(
                    "V2",
                    format!("{} is removed while {pod} on {} has it", seen.change.key, node.name),
                ));
            }
        }
    }
    Ok(())
}

/// V9: ReadWriteOncePod is one pod, ReadWriteOnce one node.
pub fn v9_access_modes(nodes: &[Node]) -> Result<(), Violation> {
    let mut users: BTreeMap<&str, (BTreeSet<&str>, BTreeSet<&str>, bool)> = BTreeMap::new();
    for node in nodes.iter().filter(|node| node.machine.is_on) {
        for ((pod, _), mount) in node.machine.mounts.iter().filter(|(_, mount)| !mount.claim_uid.is_empty()) {
            let (machines, pods, only_one) = users.entry(&mount.claim_uid).or_default();
            machines.insert(&node.name);
            pods.insert(pod);
            *only_one |= mount.modes.iter().any(|mode| mode == "ReadWriteOncePod");
        }
    }
    for (claim, (machines, pods, only_one)) in users {
        if machines.len() > 1 || (only_one && pods.len() > 1) {
            return Err(Violation::new("V9", format!("claim {claim} is mounted on {machines:?} by {pods:?}")));
        }
    }
    Ok(())
}

/// V8: nothing that is mounted is removed below its mount.
pub fn v8_no_delete_below_a_mount(nodes: &[Node]) -> Result<(), Violation> {
    for node in nodes {
        let claimed = node.machine.mounts.values().filter(|mount| !mount.claim_uid.is_empty());
        if let Some(mount) = claimed.into_iter().find(|mount| !node.machine.directories.contains_key(&mount.volume)) {
            return Err(Violation::new("V8", format!("the directory of {} is gone under a mount", mount.volume)));
        }
    }
    Ok(())
}

/// V5: what lives on one node is mounted there only.
pub fn v5_mounted_where_it_lives(nodes: &[Node], snapshot: &Snapshot) -> Result<(), Violation> {
    for node in nodes.iter().filter(|node| node.machine.is_on) {
        for mount in node.machine.mounts.values() {
            let Some(bound) = snapshot.persistent_volumes.get(&ObjectKey::new("", mount.volume.as_str())) else {
                continue;
            };
            if !admits(bound, &node.name) {
                return Err(Violation::new(
                    "V5",
                    format!("{} is mounted on {}, where it does not live", mount.volume, node.name),
                ));
            }
        }
    }
    Ok(())
}

/// Whether a volume's node affinity, by host name as all here, is for this node.
fn admits(bound: &PersistentVolume, node: &str) -> bool {
    let affinity = bound.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref()?.required.as_ref());
    affinity.is_none_or(|required| {
        required.node_selector_terms.iter().any(|term| {
            let mut rules = term.match_expressions.iter().flatten();
            rules.all(|rule| rule.values.iter().flatten().any(|value| value == node))
        })
    })
}

fn is_recycled(of: &PersistentVolume, snapshot: &Snapshot) -> bool {
    let Some(reference) = volume::claim_ref(of) else { return true };
    let policy = of.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    let claim = snapshot.persistent_volume_claims.get(&volume::claim_key(reference));
    policy == Some("Recycle") && claim.is_none_or(|claim| claim.metadata.uid != reference.uid)
}

/// What was in the directories a moment ago.
#[derive(Default)]
pub struct Volumes {
    /// By machine and volume: how often it was used.
    directories: BTreeMap<(usize, String), u64>,
}

impl Volumes {
    /// V6: a directory is only ever mounted for the claim that it was made for.
    pub fn v6_fresh_for_each_claim(&self, nodes: &[Node]) -> Result<(), Violation> {
        for node in nodes {
            for mount in node.machine.mounts.values().filter(|mount| !mount.claim_uid.is_empty()) {
                let Some(directory) = node.machine.directories.get(&mount.volume) else { continue };
                if directory.claim_uid.is_empty() {
                    return Err(Violation::new("V3", format!("{} is emptied under a mount", mount.volume)));
                }
                if directory.claim_uid != mount.claim_uid {
                    let message = format!(
                        "claim {} meets the data of {} in {}",
                        mount.claim_uid, directory.claim_uid, mount.volume
                    );
                    return Err(Violation::new("V6", message));
                }
            }
        }
        Ok(())
    }

    /// V3: a directory goes only when its volume was deleted, and by the machine that is its node (S1).
    pub fn v3_removed_only_when_deleted(&mut self, nodes: &[Node], snapshot: &Snapshot) -> Result<(), Violation> {
        let mut now = BTreeMap::new();
        for node in nodes {
            for (name, directory) in &node.machine.directories {
                now.insert((node.index, name.clone()), directory.starts);
            }
        }
        for (folder, starts) in &self.directories {
            let living = snapshot.persistent_volumes.get(&ObjectKey::new("", folder.1.as_str()));
            let is_gone = now.get(folder).is_none_or(|new| new < starts);
            if let Some(node) = nodes.get(folder.0).filter(|node| is_gone && !node.is_the_node(snapshot)) {
                let message = format!("{} is taken away on {}, which is not {}", folder.1, node.machine_id, node.name);
                return Err(Violation::new("V3", message));
            }
            let is_wanted = living.is_some_and(|living| living.metadata.deletion_timestamp.is_none());
            match now.get(folder) {
                None if is_wanted => {
                    return Err(Violation::new("V3", format!("{folder:?} is removed and was not deleted")));
                }
                // Emptied, because its claim is gone and its policy says so.
                Some(0) if living.is_some_and(|living| is_recycled(living, snapshot)) => {}
                Some(new) if new < starts => {
                    return Err(Violation::new("V4", format!("{folder:?} lost what was written")));
                }
                _ => {}
            }
        }
        self.directories = now;
        Ok(())
    }
}
