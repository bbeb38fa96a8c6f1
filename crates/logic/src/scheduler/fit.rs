//! Whether a pod fits a node, and how well: upstream's filters in upstream's order, then the score.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Taint};

use super::affinity::{self, Relations};
use super::volumes::{Binding, Claims};
use crate::ownership::controller_of;
use crate::pods::is_terminating;
use crate::resources::{self, Amounts, HostPort};
use crate::snapshot::{Index, Snapshot, Usage};

/// What a preferred term weighs beside the resource score, as upstream's plugin weights.
const AFFINITY_WEIGHT: i64 = 2;
/// What a soft taint takes off a node's score.
const SOFT_TAINT: i64 = 300;
/// What each pod of the same controller takes off a node's score.
const SIBLING: i64 = 50;
/// What each pod more than in the emptiest domain takes off a node's score, for spread constraints that are wishes.
const SKEW: i64 = 50;

/// Why a node will not do, in upstream's words, and whether taking pods away there could change that.
#[derive(Debug)]
pub struct Refusal {
    /// One or more, as upstream counts them.
    pub reasons: Vec<String>,
    /// Whether preemption may help.
    pub resolvable: bool,
}

/// What a pod asks for, found out once for all nodes.
pub struct Wants<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its requests.
    pub amounts: Amounts,
    /// Its host ports.
    pub ports: BTreeSet<HostPort>,
    /// What other pods mean for it.
    pub relations: Relations,
    /// Its claims; `None` where it has none.
    pub claims: Option<Claims<'a>>,
}

impl<'a> Wants<'a> {
    /// What a pod asks for in a snapshot, or why no node can have it.
    pub fn of(snapshot: &'a Snapshot, pod: &'a Pod) -> Result<Self, String> {
        let claims = if crate::pods::claim_names(pod).is_empty() { None } else { Some(Claims::of(snapshot, pod)?) };
        Ok(Self {
            pod,
            amounts: resources::of_pod(pod),
            ports: resources::host_ports(pod),
            relations: Relations::of(snapshot, pod),
            claims,
        })
    }
}

/// `spec.priority`.
pub fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0)
}

/// What is used on a node in a pod's eyes: with the pods that are nominated to it and are at least as important.
pub fn usage_for(snapshot: &Snapshot, pod: &Pod, node: &str) -> Arc<Usage> {
    let mut usage = snapshot.usage(node).cloned().unwrap_or_default();
    let nominated = snapshot.found::<Pod>(Index::PodsNominated, node, "").map(|(_, other)| other);
    for other in nominated.filter(|other| other.metadata.uid != pod.metadata.uid && priority(other) >= priority(pod)) {
        let usage = Arc::make_mut(&mut usage);
        usage.used.add(&resources::of_pod(other));
        usage.pods += 1;
        resources::host_ports(other).into_iter().for_each(|port| *usage.ports.entry(port).or_default() += 1);
    }
    usage
}

/// The filters that pods on the node have no part in.
fn admits(pod: &Pod, node: &Node) -> Result<(), String> {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
    let tolerated = || {
        let cordon = Taint {
            key: "node.kubernetes.io/unschedulable".to_owned(),
            effect: "NoSchedule".to_owned(),
            ..Default::default()
        };
        tolerations.iter().any(|toleration| crate::matching::tolerates(toleration, &cordon))
    };
    // Upstream has no filter for a node on its way out (a new kubelet would take pods early); it must take none.
    if cordoned && !tolerated() || is_terminating(&node.metadata) {
        return Err("node(s) were unschedulable".to_owned());
    }
    if let Some(taint) = affinity::untolerated(pod, node) {
        return Err(format!("node(s) had untolerated taint {taint}"));
    }
    if !affinity::admits_node(pod, node) {
        return Err("node(s) didn't match Pod's node affinity/selector".to_owned());
    }
    Ok(())
}

/// Whether a pod fits a node, what that binds, and how well it does: more is better. The first filter that refuses
/// gives the reasons.
pub fn consider<'a>(
    snapshot: &Snapshot,
    wants: &Wants<'a>,
    node: &Node,
    usage: &Usage,
) -> Result<(i64, Vec<Binding<'a>>), Refusal> {
    let refuse = |reason: &str, resolvable| Refusal { reasons: vec![reason.to_owned()], resolvable };
    let pod = wants.pod;
    admits(pod, node).map_err(|reason| refuse(&reason, false))?;
    if resources::collide(&wants.ports, &usage.ports) {
        return Err(refuse("node(s) didn't have free ports for the requested pod ports", true));
    }
    if resources::takes_reserved(pod, &wants.ports, node) {
        return Err(refuse("node(s) didn't have free ports for the requested pod ports", false));
    }
    let shortages = resources::shortages(&wants.amounts, &usage.has, &usage.used, usage.pods);
    if !shortages.is_empty() {
        let resolvable = resources::shortages(&wants.amounts, &usage.has, &Amounts::default(), 0).is_empty();
        return Err(Refusal { reasons: shortages, resolvable });
    }
    let bindings = match &wants.claims {
        Some(claims) => claims.on(node).map_err(|reason| refuse(reason, false))?,
        None => Vec::new(),
    };
    if let Some(reason) = wants.relations.refusal(node) {
        return Err(refuse(reason, !reason.contains("missing required label")));
    }
    let name = node.metadata.name.as_deref().unwrap_or("");
    let siblings = controller_of(&pod.metadata)
        .map_or(0, |owner| snapshot.indexes.count(Index::PodsOfOn, &owner.uid, name).min(1_000));
    let wishes = affinity::preference(pod, node).saturating_add(wants.relations.preference(node));
    let score = resources::least_allocated(&wants.amounts, &usage.has, &usage.used)
        + wants.claims.as_ref().map_or(0, |claims| claims.room_left(&bindings, node))
        + AFFINITY_WEIGHT * wishes.clamp(-10_000, 10_000)
        - SOFT_TAINT * affinity::soft_taints(pod, node).min(100)
        - SIBLING * i64::try_from(siblings).unwrap_or(1_000)
        - SKEW * wants.relations.skew(node).clamp(0, 1_000);
    Ok((score, bindings))
}
