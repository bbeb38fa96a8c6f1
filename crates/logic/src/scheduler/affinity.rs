//! Where a pod wants to be, and beside whom: node affinity, pod affinity and anti-affinity, topology spread.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, Node, Pod, PodAffinityTerm, TopologySpreadConstraint};
use mainstay_api::ObjectKey;

use crate::matching::{equal, selects_node, term_selects_node, tolerates};
use crate::pods::{is_finished, selects};
use crate::snapshot::Snapshot;

/// `spec.nodeSelector` and required node affinity.
pub fn admits_node(pod: &Pod, node: &Node) -> bool {
    let Some(spec) = pod.spec.as_ref() else { return true };
    let labels = node.metadata.labels.as_ref();
    let node_affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = node_affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
    spec.node_selector.as_ref().is_none_or(|wanted| equal(wanted, labels))
        && required.is_none_or(|selector| selects_node(selector, node))
}

/// The sum of the weights of the preferred node affinity terms that a node matches.
pub fn preference(pod: &Pod, node: &Node) -> i64 {
    let preferred = affinity(pod)
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref());
    preferred
        .into_iter()
        .flatten()
        .filter(|term| term_selects_node(&term.preference, node))
        .map(|term| i64::from(term.weight))
        .sum()
}

fn affinity(pod: &Pod) -> Option<&Affinity> {
    pod.spec.as_ref()?.affinity.as_ref()
}

fn required_affinity(pod: &Pod) -> &[PodAffinityTerm] {
    let terms = affinity(pod).and_then(|a| a.pod_affinity.as_ref());
    terms.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref()).unwrap_or_default()
}

fn required_anti_affinity(pod: &Pod) -> &[PodAffinityTerm] {
    let terms = affinity(pod).and_then(|a| a.pod_anti_affinity.as_ref());
    terms.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_deref()).unwrap_or_default()
}

/// Whether a pod cares where others are, so that a binding elsewhere may free it.
pub fn looks_at_others(pod: &Pod) -> bool {
    !required_affinity(pod).is_empty()
        || pod.spec.as_ref().is_some_and(|spec| spec.topology_spread_constraints.is_some())
}

fn label<'a>(node: &'a Node, key: &str) -> Option<&'a str> {
    node.metadata.labels.as_ref()?.get(key).map(String::as_str)
}

fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("")
}

/// Whether `other` is one of the pods that a term of `of` speaks of.
fn speaks_of(snapshot: &Snapshot, of: &Pod, term: &PodAffinityTerm, other: &Pod) -> bool {
    let listed = term.namespaces.as_deref().unwrap_or_default();
    let selected = |selector: &_| {
        let namespace = snapshot.namespaces.get(&ObjectKey::new("", namespace(other)));
        selects(selector, namespace.and_then(|namespace| namespace.metadata.labels.as_ref()))
    };
    let in_namespace = if listed.is_empty() && term.namespace_selector.is_none() {
        namespace(of) == namespace(other)
    } else {
        listed.iter().any(|name| name == namespace(other)) || term.namespace_selector.as_ref().is_some_and(selected)
    };
    in_namespace
        && term.label_selector.as_ref().is_some_and(|selector| selects(selector, other.metadata.labels.as_ref()))
        && same_values(term.match_label_keys.as_deref(), of, other)
        && term.mismatch_label_keys.as_deref().is_none_or(|keys| keys.is_empty() || !same_values(Some(keys), of, other))
}

/// Whether two pods have the same values of these labels (those that the first one has).
fn same_values(keys: Option<&[String]>, of: &Pod, other: &Pod) -> bool {
    let value = |pod: &Pod, key: &String| pod.metadata.labels.as_ref().and_then(|labels| labels.get(key)).cloned();
    keys.unwrap_or_default().iter().all(|key| value(of, key).is_none() || value(of, key) == value(other, key))
}

/// The pods that are on nodes and not finished, each with its node.
pub struct Placed<'a> {
    snapshot: &'a Snapshot,
    pods: Vec<(&'a Pod, &'a Node)>,
}

impl<'a> Placed<'a> {
    /// All of a snapshot's.
    pub fn of(snapshot: &'a Snapshot) -> Self {
        let mut pods = Vec::new();
        for (key, node) in &snapshot.nodes {
            pods.extend(
                snapshot.pods_of_node(&key.name).filter(|(_, pod)| !is_finished(pod)).map(|(_, pod)| (&**pod, &**node)),
            );
        }
        Self { snapshot, pods }
    }

    /// Inter-pod affinity: why `pod` may not be on `node`.
    pub fn refusal(&self, pod: &Pod, node: &Node) -> Option<&'static str> {
        let together = |other: &Node, key: &str| label(node, key).is_some() && label(node, key) == label(other, key);
        for term in required_affinity(pod) {
            let mut others =
                self.pods.iter().filter(|(other, _)| speaks_of(self.snapshot, pod, term, other)).peekable();
            // The first of a group that wants to be together has nobody to join.
            let first = others.peek().is_none()
                && speaks_of(self.snapshot, pod, term, pod)
                && label(node, &term.topology_key).is_some();
            if !first && !others.any(|(_, at)| together(at, &term.topology_key)) {
                return Some("node(s) didn't match pod affinity rules");
            }
        }
        for term in required_anti_affinity(pod) {
            if self
                .pods
                .iter()
                .any(|(other, at)| together(at, &term.topology_key) && speaks_of(self.snapshot, pod, term, other))
            {
                return Some("node(s) didn't match pod anti-affinity rules");
            }
        }
        for (other, at) in &self.pods {
            if required_anti_affinity(other)
                .iter()
                .any(|term| together(at, &term.topology_key) && speaks_of(self.snapshot, other, term, pod))
            {
                return Some("node(s) didn't satisfy existing pods anti-affinity rules");
            }
        }
        None
    }

    /// Topology spread with `DoNotSchedule`: why `pod` may not be on `node`.
    pub fn skewed(&self, pod: &Pod, node: &Node) -> Option<&'static str> {
        let constraints =
            pod.spec.as_ref().and_then(|spec| spec.topology_spread_constraints.as_deref()).unwrap_or_default();
        for constraint in constraints.iter().filter(|constraint| constraint.when_unsatisfiable == "DoNotSchedule") {
            let Some(value) = label(node, &constraint.topology_key) else {
                return Some("node(s) didn't match pod topology spread constraints (missing required label)");
            };
            let counts = self.counts(pod, constraint);
            let least = match constraint.min_domains {
                Some(wanted) if i64::from(wanted) > i64::try_from(counts.len()).unwrap_or(i64::MAX) => 0,
                _ => counts.values().copied().min().unwrap_or(0),
            };
            let own = i64::from(counted(constraint, pod, pod));
            if counts.get(value).copied().unwrap_or(0) + own - least > i64::from(constraint.max_skew) {
                return Some("node(s) didn't match pod topology spread constraints");
            }
        }
        None
    }

    /// How many counted pods each domain has; only domains with nodes that count.
    fn counts<'n>(&'n self, pod: &Pod, constraint: &TopologySpreadConstraint) -> BTreeMap<&'n str, i64> {
        let counts_node = |node: &Node| {
            let admitted = constraint.node_affinity_policy.as_deref() == Some("Ignore") || admits_node(pod, node);
            let tolerated =
                constraint.node_taints_policy.as_deref() != Some("Honor") || untolerated(pod, node).is_none();
            admitted && tolerated
        };
        let mut counts = BTreeMap::new();
        for (_, node) in self.snapshot.nodes.iter().filter(|(_, node)| counts_node(node)) {
            if let Some(value) = label(node, &constraint.topology_key) {
                counts.entry(value).or_insert(0);
            }
        }
        for (other, node) in &self.pods {
            let leaving = other.metadata.deletion_timestamp.is_some();
            if !leaving
                && namespace(other) == namespace(pod)
                && counted(constraint, pod, other)
                && let Some(count) = label(node, &constraint.topology_key).and_then(|value| counts.get_mut(value))
            {
                *count += 1;
            }
        }
        counts
    }

    /// How many pods of the same controller a node has.
    pub fn siblings(&self, pod: &Pod, node: &Node) -> i64 {
        let owner = |pod: &'a Pod| crate::ownership::controller_of(&pod.metadata).map(|owner| owner.uid.as_str());
        let Some(own) = crate::ownership::controller_of(&pod.metadata).map(|owner| owner.uid.as_str()) else {
            return 0;
        };
        let there =
            self.pods.iter().filter(|(other, at)| at.metadata.name == node.metadata.name && owner(other) == Some(own));
        i64::try_from(there.count()).unwrap_or(i64::MAX)
    }

    /// The weights of preferred pod (anti-)affinity that speak for a node, less those against it.
    pub fn preference(&self, pod: &Pod, node: &Node) -> i64 {
        let affinity = affinity(pod);
        let together = |other: &Node, key: &str| label(node, key).is_some() && label(node, key) == label(other, key);
        let weigh = |weight: i32, term: &PodAffinityTerm| {
            let there = self
                .pods
                .iter()
                .filter(|(other, at)| together(at, &term.topology_key) && speaks_of(self.snapshot, pod, term, other));
            i64::from(weight).saturating_mul(i64::try_from(there.count()).unwrap_or(i64::MAX))
        };
        let towards = affinity
            .and_then(|a| a.pod_affinity.as_ref()?.preferred_during_scheduling_ignored_during_execution.as_ref());
        let away = affinity
            .and_then(|a| a.pod_anti_affinity.as_ref()?.preferred_during_scheduling_ignored_during_execution.as_ref());
        let sum = |terms: Option<&Vec<k8s_openapi::api::core::v1::WeightedPodAffinityTerm>>| -> i64 {
            terms.into_iter().flatten().map(|term| weigh(term.weight, &term.pod_affinity_term)).sum()
        };
        sum(towards) - sum(away)
    }
}

fn counted(constraint: &TopologySpreadConstraint, of: &Pod, other: &Pod) -> bool {
    constraint.label_selector.as_ref().is_some_and(|selector| selects(selector, other.metadata.labels.as_ref()))
        && same_values(constraint.match_label_keys.as_deref(), of, other)
}

/// The first taint that keeps a pod off a node, as `{key: value}`.
pub fn untolerated(pod: &Pod, node: &Node) -> Option<String> {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let hard = taints.iter().filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"));
    let mut bad = hard.filter(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint)));
    bad.next().map(|taint| format!("{{{}: {}}}", taint.key, taint.value.as_deref().unwrap_or("")))
}

/// How many soft taints (`PreferNoSchedule`) of a node a pod does not tolerate.
pub fn soft_taints(pod: &Pod, node: &Node) -> i64 {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let bad = taints
        .iter()
        .filter(|taint| taint.effect == "PreferNoSchedule" && !tolerations.iter().any(|t| tolerates(t, taint)));
    i64::try_from(bad.count()).unwrap_or(i64::MAX)
}
