//! Where a pod wants to be, and beside whom: node affinity, pod affinity and anti-affinity, topology spread.
//!
//! What concerns other pods is found once for a pod ([`Relations::of`]), by the indexes of labels and of anti-affinity
//! terms, as sets of topology domains; each node is then only looked up in them.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Node, Pod, PodAffinityTerm, TopologySpreadConstraint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use mainstay_api::ObjectKey;

use crate::matching::{equal, selects_node, term_selects_node, tolerates};
use crate::pods::{affinity, is_finished, required_affinity, required_anti_affinity, selects, spread_constraints};
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
    let in_scope = if listed.is_empty() && term.namespace_selector.is_none() {
        namespace(of) == namespace(other)
    } else {
        listed.iter().any(|name| name == namespace(other)) || term.namespace_selector.as_ref().is_some_and(selected)
    };
    in_scope
        && term.label_selector.as_ref().is_some_and(|selector| selects(selector, other.metadata.labels.as_ref()))
        && same_values(term.match_label_keys.as_deref(), of, other)
        && term.mismatch_label_keys.as_deref().is_none_or(|keys| keys.is_empty() || !same_values(Some(keys), of, other))
}

/// Whether two pods have the same values of these labels (those that the first one has).
fn same_values(keys: Option<&[String]>, of: &Pod, other: &Pod) -> bool {
    let value = |pod: &Pod, key: &String| pod.metadata.labels.as_ref().and_then(|labels| labels.get(key)).cloned();
    keys.unwrap_or_default().iter().all(|key| value(of, key).is_none() || value(of, key) == value(other, key))
}

/// The pods of a namespace that a selector selects and that are on nodes and not finished, each with its node.
fn placed<'a>(
    snapshot: &'a Snapshot,
    namespace: &str,
    selector: &LabelSelector,
) -> impl Iterator<Item = (&'a Pod, &'a Node)> {
    let all = snapshot.selected::<Pod>(namespace, selector).into_iter().map(|(_, pod)| &**pod);
    all.filter(|pod| !is_finished(pod)).filter_map(|pod| Some((pod, node_of(snapshot, pod)?)))
}

fn node_of<'a>(snapshot: &'a Snapshot, pod: &Pod) -> Option<&'a Node> {
    let name = pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())?;
    snapshot.nodes.get(&ObjectKey::new("", name)).map(|node| &**node)
}

/// The pods on nodes that a term of `pod` speaks of.
fn spoken_of<'a>(snapshot: &'a Snapshot, pod: &'a Pod, term: &'a PodAffinityTerm) -> Vec<(&'a Pod, &'a Node)> {
    let Some(selector) = &term.label_selector else { return Vec::new() };
    let mut namespaces: BTreeSet<&str> = term.namespaces.iter().flatten().map(String::as_str).collect();
    match &term.namespace_selector {
        Some(selector) => namespaces.extend(
            snapshot
                .namespaces
                .iter()
                .filter(|(_, of)| selects(selector, of.metadata.labels.as_ref()))
                .map(|(key, _)| &*key.name),
        ),
        None if namespaces.is_empty() => drop(namespaces.insert(namespace(pod))),
        None => {}
    }
    let all = namespaces.into_iter().flat_map(|namespace| placed(snapshot, namespace, selector));
    all.filter(|(other, _)| speaks_of(snapshot, pod, term, other)).collect()
}

/// Topology domains: a label of nodes and its values.
type Domains = BTreeMap<String, BTreeSet<String>>;

/// A required affinity term: its label, the domains where its pods are, and whether the pod may be the first of them.
struct Together {
    key: String,
    values: BTreeSet<String>,
    first: bool,
}

/// A topology spread constraint and how many pods each domain has.
struct Spread {
    key: String,
    counts: BTreeMap<String, i64>,
    least: i64,
    own: i64,
    max_skew: i64,
    hard: bool,
}

/// What other pods mean for where a pod may be, and wants to be.
#[derive(Default)]
pub struct Relations {
    together: Vec<Together>,
    apart: Domains,
    kept_away: Domains,
    spread: Vec<Spread>,
    /// Weights for and against domains, by label and value.
    wishes: BTreeMap<String, BTreeMap<String, i64>>,
}

impl Relations {
    /// What they mean for this pod, as they are now.
    pub fn of(snapshot: &Snapshot, pod: &Pod) -> Self {
        let mut relations = Self::default();
        for term in required_affinity(pod) {
            let others = spoken_of(snapshot, pod, term);
            // The first of a group that wants to be together has nobody to join.
            let first = others.is_empty() && speaks_of(snapshot, pod, term, pod);
            let values = others.iter().filter_map(|(_, node)| label(node, &term.topology_key)).map(str::to_owned);
            relations.together.push(Together { key: term.topology_key.clone(), values: values.collect(), first });
        }
        for term in required_anti_affinity(pod) {
            let others = spoken_of(snapshot, pod, term);
            let values = others.iter().filter_map(|(_, node)| label(node, &term.topology_key)).map(str::to_owned);
            relations.apart.entry(term.topology_key.clone()).or_default().extend(values);
        }
        for other in snapshot.keeping_away(namespace(pod), pod.metadata.labels.as_ref()) {
            let Some(node) = node_of(snapshot, other) else { continue };
            let terms = required_anti_affinity(other).iter().filter(|term| speaks_of(snapshot, other, term, pod));
            for term in terms {
                let value = label(node, &term.topology_key).map(str::to_owned);
                relations.kept_away.entry(term.topology_key.clone()).or_default().extend(value);
            }
        }
        relations.spread = spread_constraints(pod).iter().map(|constraint| spread(snapshot, pod, constraint)).collect();
        relations.wish(snapshot, pod);
        relations
    }

    /// Weighs preferred affinity and anti-affinity.
    fn wish(&mut self, snapshot: &Snapshot, pod: &Pod) {
        let affinity = affinity(pod);
        let towards = affinity
            .and_then(|a| a.pod_affinity.as_ref()?.preferred_during_scheduling_ignored_during_execution.as_ref());
        let away = affinity
            .and_then(|a| a.pod_anti_affinity.as_ref()?.preferred_during_scheduling_ignored_during_execution.as_ref());
        let towards = towards.into_iter().flatten().map(|term| (i64::from(term.weight), &term.pod_affinity_term));
        let away = away.into_iter().flatten().map(|term| (-i64::from(term.weight), &term.pod_affinity_term));
        for (weight, term) in towards.chain(away) {
            let wishes = self.wishes.entry(term.topology_key.clone()).or_default();
            for (_, node) in spoken_of(snapshot, pod, term) {
                if let Some(value) = label(node, &term.topology_key) {
                    let sum = wishes.entry(value.to_owned()).or_default();
                    *sum = sum.saturating_add(weight);
                }
            }
        }
    }

    /// Whether no other pod matters to this one, wherever they are.
    pub fn is_empty(&self) -> bool {
        self.together.is_empty()
            && self.apart.is_empty()
            && self.kept_away.is_empty()
            && self.spread.is_empty()
            && self.wishes.is_empty()
    }

    /// Why the pod may not be on a node, in upstream's words: topology spread, then pod affinity.
    pub fn refusal(&self, node: &Node) -> Option<&'static str> {
        let within = |domains: &Domains| {
            domains.iter().any(|(key, values)| label(node, key).is_some_and(|value| values.contains(value)))
        };
        for spread in self.spread.iter().filter(|spread| spread.hard) {
            let Some(value) = label(node, &spread.key) else {
                return Some("node(s) didn't match pod topology spread constraints (missing required label)");
            };
            let there = spread.counts.get(value).copied().unwrap_or(0);
            if there + spread.own - spread.least > spread.max_skew {
                return Some("node(s) didn't match pod topology spread constraints");
            }
        }
        for term in &self.together {
            let value = label(node, &term.key);
            if value.is_none_or(|value| !term.first && !term.values.contains(value)) {
                return Some("node(s) didn't match pod affinity rules");
            }
        }
        if within(&self.apart) {
            return Some("node(s) didn't match pod anti-affinity rules");
        }
        within(&self.kept_away).then_some("node(s) didn't satisfy existing pods anti-affinity rules")
    }

    /// The weights that speak for a node, less those against it.
    pub fn preference(&self, node: &Node) -> i64 {
        let weight = |(key, values): (&String, &BTreeMap<String, i64>)| {
            label(node, key).and_then(|value| values.get(value)).copied().unwrap_or(0)
        };
        self.wishes.iter().map(weight).fold(0, i64::saturating_add)
    }

    /// How many more pods a node's domains have than the emptiest ones, for constraints that are only wishes.
    pub fn skew(&self, node: &Node) -> i64 {
        let more = |spread: &Spread| {
            let there = label(node, &spread.key).and_then(|value| spread.counts.get(value)).copied();
            there.map_or(spread.max_skew, |there| there - spread.least)
        };
        self.spread.iter().filter(|spread| !spread.hard).map(more).fold(0, i64::saturating_add)
    }
}

/// How many counted pods each domain has. A node that the pod's constraints pass over, as upstream's do, is no
/// domain's, and the pods on it are nobody's.
fn spread(snapshot: &Snapshot, pod: &Pod, constraint: &TopologySpreadConstraint) -> Spread {
    let alike = || spread_constraints(pod).iter().filter(|one| one.when_unsatisfiable == constraint.when_unsatisfiable);
    let counts_node = |node: &Node| {
        let admitted = constraint.node_affinity_policy.as_deref() == Some("Ignore") || admits_node(pod, node);
        let tolerated = constraint.node_taints_policy.as_deref() != Some("Honor") || untolerated(pod, node).is_none();
        admitted && tolerated && alike().all(|one| label(node, &one.topology_key).is_some())
    };
    let mut counts: BTreeMap<String, i64> = BTreeMap::new();
    let mut counted_nodes: BTreeSet<&str> = BTreeSet::new();
    for (key, node) in snapshot.nodes.iter().filter(|(_, node)| counts_node(node)) {
        counted_nodes.insert(&key.name);
        if let Some(value) = label(node, &constraint.topology_key).filter(|value| !counts.contains_key(*value)) {
            counts.insert(value.to_owned(), 0);
        }
    }
    let selector = constraint.label_selector.as_ref();
    for (other, node) in selector.into_iter().flat_map(|selector| placed(snapshot, namespace(pod), selector)) {
        if other.metadata.deletion_timestamp.is_none()
            && counted(constraint, pod, other)
            && counted_nodes.contains(node.metadata.name.as_deref().unwrap_or(""))
            && let Some(count) = label(node, &constraint.topology_key).and_then(|value| counts.get_mut(value))
        {
            *count += 1;
        }
    }
    let domains = i64::try_from(counts.len()).unwrap_or(i64::MAX);
    let few = constraint.min_domains.is_some_and(|wanted| i64::from(wanted) > domains);
    let least = if few { 0 } else { counts.values().copied().min().unwrap_or(0) };
    Spread {
        key: constraint.topology_key.clone(),
        counts,
        least,
        own: i64::from(counted(constraint, pod, pod)),
        max_skew: i64::from(constraint.max_skew),
        hard: constraint.when_unsatisfiable == "DoNotSchedule",
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
