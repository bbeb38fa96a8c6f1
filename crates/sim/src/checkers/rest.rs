//! The healed world at rest: S7, S9, S12.

use mainstay_api::{ObjectKey, kinds};
use mainstay_logic::{Snapshot, pods, volume};

use super::{Violation, ordinals, revision, set_of};
use crate::monkeys::STATIC;
use crate::node::Node;

/// Every set has exactly its pods, all ready and of its newest revision (S7, S12), each with its claims bound (S9).
pub fn converged(snapshot: &Snapshot) -> Result<(), Violation> {
    deployments(snapshot)?;
    for (key, set) in snapshot.stateful_sets.iter() {
        let update = set.status.as_ref().and_then(|status| status.update_revision.clone()).unwrap_or_default();
        if set.status.as_ref().and_then(|status| status.observed_generation) != set.metadata.generation {
            return Err(Violation::new("S12", format!("the status of {key} is of an older generation")));
        }
        let wanted = ordinals(set);
        let partition =
            set.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref()?.partition);
        for ordinal in wanted.clone() {
            let at = ObjectKey::new(key.namespace.clone(), format!("{}-{ordinal}", key.name));
            for template in set.spec.volume_claim_templates.iter().flatten() {
                let claim = format!("{}-{}", template.metadata.name.as_deref().unwrap_or(""), at.name);
                if !snapshot
                    .persistent_volume_claims
                    .contains_key(&ObjectKey::new(key.namespace.clone(), claim.as_str()))
                {
                    return Err(Violation::new("S9", format!("{at} waits for {claim}, which nobody makes")));
                }
            }
            let Some(pod) = snapshot.pods.get(&at) else {
                return Err(Violation::new("S12", format!("{at} is missing")));
            };
            if set_of(snapshot, &at, pod).is_none() {
                return Err(Violation::new("S12", format!("{at} is not its set's")));
            }
            if ordinal >= wanted.start + i64::from(partition.unwrap_or(0)) && revision(pod) != update {
                return Err(Violation::new("S7", format!("{at} has revision {:?} and not {update:?}", revision(pod))));
            }
            if !pods::is_running_and_ready(pod) {
                return Err(Violation::new("S12", format!("{at} is not ready")));
            }
        }
        let extra = snapshot.pods.iter().find(|(at, pod)| {
            set_of(snapshot, at, pod)
                .is_some_and(|(of, ordinal)| of.metadata.uid == set.metadata.uid && !wanted.contains(&ordinal))
        });
        if let Some((at, _)) = extra {
            return Err(Violation::new("S12", format!("{at} is beyond the replicas of its set")));
        }
    }
    Ok(())
}

/// Nothing is left of what is gone: claims whose owners are, volumes that nobody asked to keep, what is on the
/// machines.
pub fn nothing_leaks(snapshot: &Snapshot, nodes: &[Node]) -> Result<(), Violation> {
    let uid_of = |kind: &str, key: ObjectKey| {
        let kind = if kind == "Pod" { &kinds::POD } else { &kinds::STATEFUL_SET };
        snapshot.metas.get(&(kind.clone(), key)).map(|meta| meta.uid().to_owned())
    };
    for (key, claim) in snapshot.persistent_volume_claims.iter() {
        let owners = claim.metadata.owner_references.as_deref().unwrap_or_default();
        let is_there = |owner: &k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference| {
            uid_of(&owner.kind, ObjectKey::new(key.namespace.clone(), owner.name.as_str())).as_ref() == Some(&owner.uid)
        };
        if !owners.is_empty() && !owners.iter().any(is_there) {
            return Err(Violation::new("S8", format!("{key} is left, and its owners are gone: {owners:?}")));
        }
        if pods::is_terminating(&claim.metadata) {
            return Err(Violation::new("S12", format!("{key} does not go")));
        }
    }
    for (key, left) in snapshot.persistent_volumes.iter() {
        let Some(reference) = volume::claim_ref(left) else { continue };
        let claim = snapshot.persistent_volume_claims.get(&volume::claim_key(reference));
        let is_held = claim.is_some_and(|claim| volume::is_held_by(left, claim));
        let policy = left.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
        if !is_held && reference.uid.is_some() && (policy == Some("Delete") || policy == Some("Recycle")) {
            return Err(Violation::new("V3", format!("{key} is left, and its claim is gone")));
        }
    }
    for node in nodes {
        let is_wanted = |name: &str| snapshot.persistent_volumes.contains_key(&ObjectKey::new("", name));
        let folders = node.machine.directories.keys();
        let left = folders.into_iter().find(|name| !name.starts_with(STATIC) && !is_wanted(name));
        // A machine that is not its node any more keeps what it has, until a person comes.
        if let Some(left) = left.filter(|_| node.is_the_node(snapshot) && !node.was_replaced) {
            return Err(Violation::new("V3", format!("{left} is left on {}, and its volume is gone", node.name)));
        }
        let uids: Vec<&str> = snapshot.pods.iter().filter_map(|(_, pod)| pod.metadata.uid.as_deref()).collect();
        if !node.machine.is_on {
            continue;
        }
        let mut kept = node.machine.mounts.keys().map(|(uid, _)| uid).chain(node.machine.sandboxes.keys());
        if let Some(left) = kept.find(|uid| !uids.contains(&uid.as_str())) {
            return Err(Violation::new("S12", format!("something of {left} is left on {}", node.name)));
        }
        if let Some((key, uid)) = node.machine.running().find(|(_, uid)| !uids.contains(uid)) {
            return Err(Violation::new("S1", format!("{key} runs on as {uid} on {}", node.name)));
        }
    }
    Ok(())
}

/// Every Deployment has what it wants, and every namespace that was told to go is gone.
fn deployments(snapshot: &Snapshot) -> Result<(), Violation> {
    for (key, deployment) in snapshot.deployments.iter() {
        let status = deployment.status.clone().unwrap_or_default();
        let wanted = deployment.spec.replicas.unwrap_or(1);
        let has = [status.replicas, status.updated_replicas, status.ready_replicas].map(|count| count.unwrap_or(0));
        if status.observed_generation != deployment.metadata.generation || has != [wanted; 3] {
            return Err(Violation::new("S12", format!("Deployment {key} wants {wanted} and has {has:?}")));
        }
    }
    match snapshot.namespaces.iter().find(|(_, namespace)| pods::is_terminating(&namespace.metadata)) {
        Some((key, _)) => Err(Violation::new("S12", format!("namespace {key} does not go"))),
        None => Ok(()),
    }
}

/// What the same script must lead to, whatever went wrong on the way: without uids, times and what depends on them.
pub fn end_state(snapshot: &Snapshot) -> Vec<String> {
    let mut lines = Vec::new();
    for (key, set) in snapshot.stateful_sets.iter() {
        let status = set.status.clone().unwrap_or_default();
        let ready = (status.replicas, status.ready_replicas, status.updated_replicas);
        lines.push(format!("StatefulSet {key} {:?} {ready:?}", set.spec.replicas));
    }
    for (key, deployment) in snapshot.deployments.iter() {
        lines.push(format!("Deployment {key} {:?}", deployment.spec.replicas));
    }
    lines.extend(snapshot.namespaces.iter().map(|(key, _)| format!("Namespace {key}")));
    // A pod that no controller has may be gone with its node.
    for (key, pod) in snapshot.pods.iter().filter(|(key, pod)| set_of(snapshot, key, pod).is_some()) {
        let spec = pod.spec.clone().unwrap_or_default();
        let images: Vec<_> =
            spec.containers.iter().map(|container| container.image.clone().unwrap_or_default()).collect();
        let claims = spec
            .volumes
            .iter()
            .flatten()
            .filter_map(|volume| Some(volume.persistent_volume_claim.as_ref()?.claim_name.clone()));
        lines.push(format!("Pod {key} {images:?} {:?} {}", claims.collect::<Vec<_>>(), pods::is_ready(pod)));
        for volume in spec.volumes.iter().flatten() {
            let Some(source) = &volume.persistent_volume_claim else { continue };
            let claim = ObjectKey::new(key.namespace.clone(), source.claim_name.as_str());
            let phase =
                snapshot.persistent_volume_claims.get(&claim).and_then(|claim| claim.status.as_ref()?.phase.clone());
            lines.push(format!("Claim {claim} {phase:?}"));
        }
    }
    for (key, service) in snapshot.services.iter() {
        // Which address a Service gets is a matter of chance.
        let is_headless = service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None");
        lines.push(format!("Service {key}{}", if is_headless { ", headless" } else { "" }));
    }
    for (key, endpoints) in snapshot.endpoints.iter() {
        let addresses = endpoints.subsets.iter().flatten().flat_map(|subset| subset.addresses.iter().flatten());
        let of_sets = |name: &str| super::parse_ordinal(name).is_some();
        let mut pods: Vec<&str> = addresses
            .filter_map(|address| address.target_ref.as_ref()?.name.as_deref())
            .filter(|name| of_sets(name))
            .collect();
        pods.sort_unstable();
        lines.push(format!("Endpoints {key} {pods:?}"));
    }
    lines
}
