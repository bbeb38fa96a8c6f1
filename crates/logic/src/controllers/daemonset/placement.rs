//! Which nodes a DaemonSet's pods are for, and how a pod is told its node.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodTemplateSpec, Taint, Toleration,
};

use super::revisions::HASH;
use crate::matching::{Labels, equal, selects_node, tolerates};
use mainstay_api::kinds::daemonset::TEMPLATE_GENERATION;

/// The label of its pods that counts the templates; upstream keeps it for clients of the old API.
const GENERATION: &str = "pod-template-generation";
/// What a daemon bears that other pods do not, with the effect: it is needed most where a node is in trouble.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
];
/// The same for daemons that use the node's own network.
const TOLERATED_ON_HOST: (&str, &str) = ("node.kubernetes.io/network-unavailable", "NoSchedule");

/// What a node is to a DaemonSet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fit {
    /// It shall have a pod.
    Runs,
    /// It gets none, but keeps the one that it has.
    Stays,
    /// It shall have none.
    Leaves,
}

/// What [`fit`] looks at in a node.
pub fn fingerprint(node: &Node) -> (Option<Labels>, Option<Vec<Taint>>, bool) {
    let spec = node.spec.as_ref();
    let taints = spec.and_then(|spec| spec.taints.clone());
    (node.metadata.labels.clone(), taints, node.metadata.deletion_timestamp.is_some())
}

/// Whether a node shall have a pod of the set.
pub fn fit(set: &DaemonSet, node: &Node) -> Fit {
    let Some(spec) = &set.spec.template.spec else { return Fit::Leaves };
    let name = node.metadata.name.as_deref().unwrap_or("");
    let named = spec.node_name.as_deref().unwrap_or("");
    let wanted = spec.node_selector.clone().unwrap_or_default();
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    let fits = (named.is_empty() || named == name)
        && equal(&wanted, node.metadata.labels.as_ref())
        && required.is_none_or(|selector| selects_node(selector, node));
    if !fits {
        return Fit::Leaves;
    }
    let tolerations = tolerations(set);
    let borne = |taint: &Taint| tolerations.iter().any(|toleration| tolerates(toleration, taint));
    let taints = || node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()).filter(|taint| !borne(taint));
    if taints().any(|taint| taint.effect == "NoExecute") {
        Fit::Leaves
    } else if taints().any(|taint| taint.effect == "NoSchedule") {
        Fit::Stays
    } else {
        Fit::Runs
    }
}

/// The template's tolerations and those that every daemon has.
fn tolerations(set: &DaemonSet) -> Vec<Toleration> {
    let spec = set.spec.template.spec.as_ref();
    let mut all = spec.and_then(|spec| spec.tolerations.clone()).unwrap_or_default();
    let on_host = spec.and_then(|spec| spec.host_network).unwrap_or(false);
    for (key, effect) in TOLERATED.into_iter().chain([TOLERATED_ON_HOST].into_iter().filter(|_| on_host)) {
        let toleration = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        let exact = |old: &mut Toleration| (&old.key, &old.effect) == (&toleration.key, &toleration.effect);
        match all.iter_mut().find_map(|old| exact(old).then_some(old)) {
            Some(old) => *old = toleration,
            None => all.push(toleration),
        }
    }
    all
}

/// The node that a pod is on, or that its affinity names.
pub fn node_of(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(node) = spec.node_name.as_deref().filter(|node| !node.is_empty()) {
        return Some(node);
    }
    let required = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &required.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let fields = terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    let mut names = fields.filter(|field| field.key == "metadata.name" && field.operator == "In");
    names.find_map(|field| field.values.as_ref()?.first()).map(String::as_str)
}

/// The template of the pod of one node: only that node will do.
pub fn template(set: &DaemonSet, node: &str, hash: &str) -> PodTemplateSpec {
    let mut template = set.spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH.to_owned(), hash.to_owned());
    let generation = set.metadata.annotations.as_ref().and_then(|all| all.get(TEMPLATE_GENERATION));
    if let Some(generation) = generation {
        labels.insert(GENERATION.to_owned(), generation.clone());
    }
    let Some(spec) = &mut template.spec else { return template };
    spec.tolerations = Some(tolerations(set));
    let affinity = spec.affinity.get_or_insert_default().node_affinity.get_or_insert_default();
    let required = affinity
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_with(|| NodeSelector { node_selector_terms: Vec::new() });
    if required.node_selector_terms.is_empty() {
        required.node_selector_terms.push(NodeSelectorTerm::default());
    }
    for term in &mut required.node_selector_terms {
        term.match_fields = Some(vec![NodeSelectorRequirement {
            key: "metadata.name".to_owned(),
            operator: "In".to_owned(),
            values: Some(vec![node.to_owned()]),
        }]);
    }
    template
}
