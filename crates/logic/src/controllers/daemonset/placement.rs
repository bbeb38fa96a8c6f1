//! Which nodes a DaemonSet's pods are for, and how a pod is told its node.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{
    Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodTemplateSpec, Taint, Toleration,
};

use crate::history::REVISION_LABEL;
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
pub fn fingerprint(node: &Node) -> (Option<Labels>, Option<Vec<Taint>>) {
    (node.metadata.labels.clone(), node.spec.as_ref().and_then(|spec| spec.taints.clone()))
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
pub fn meant_for(pod: &Pod) -> Option<&str> {
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
    labels.insert(REVISION_LABEL.to_owned(), hash.to_owned());
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn set(spec: Value) -> DaemonSet {
        let annotations = json!({"deprecated.daemonset.template.generation": "7"});
        let template = json!({"metadata": {"labels": {"app": "a"}}, "spec": spec});
        let spec = json!({"selector": {}, "template": template});
        serde_json::from_value(json!({"metadata": {"annotations": annotations}, "spec": spec})).unwrap()
    }

    fn zone(operator: &str, value: &str) -> Value {
        json!({"matchExpressions": [{"key": "zone", "operator": operator, "values": [value]}]})
    }

    fn required(terms: &[Value]) -> Value {
        let terms = json!({"nodeSelectorTerms": terms});
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}})
    }

    #[test]
    fn a_node_shall_have_a_daemon_if_it_would_be_let_in_there() {
        let taint = |key: &str, effect: &str| json!({"taints": [{"key": key, "effect": effect}]});
        let bears = |keys: &[&str]| {
            let all = keys.iter().map(|key| json!({"key": key, "operator": "Exists"})).collect::<Vec<_>>();
            json!({ "tolerations": all })
        };
        let unavailable = "node.kubernetes.io/network-unavailable";
        let two = json!({"taints": [{"key": "a", "effect": "NoSchedule"}, {"key": "b", "effect": "NoExecute"}]});
        for (spec, of_node, expected) in [
            (json!({}), json!({}), Fit::Runs),
            (json!({"nodeName": "n1"}), json!({}), Fit::Runs),
            (json!({"nodeName": "n2"}), json!({}), Fit::Leaves),
            (json!({"nodeSelector": {"zone": "a"}}), json!({}), Fit::Runs),
            (json!({"nodeSelector": {"zone": "b"}}), json!({}), Fit::Leaves),
            (required(&[zone("In", "a")]), json!({}), Fit::Runs),
            (required(&[zone("In", "b")]), json!({}), Fit::Leaves),
            (required(&[zone("In", "b"), zone("NotIn", "c")]), json!({}), Fit::Runs),
            (json!({}), taint("k", "PreferNoSchedule"), Fit::Runs),
            (json!({}), taint("k", "NoSchedule"), Fit::Stays),
            (json!({}), taint("k", "NoExecute"), Fit::Leaves),
            (bears(&["k"]), taint("k", "NoExecute"), Fit::Runs),
            (bears(&["k"]), taint("k", "NoSchedule"), Fit::Runs),
            (bears(&["other"]), taint("k", "NoSchedule"), Fit::Stays),
            (bears(&["a"]), two.clone(), Fit::Leaves),
            (bears(&["b"]), two.clone(), Fit::Stays),
            (bears(&["a", "b"]), two, Fit::Runs),
            (json!({}), taint("node.kubernetes.io/not-ready", "NoExecute"), Fit::Runs),
            (json!({}), taint("node.kubernetes.io/not-ready", "NoSchedule"), Fit::Stays),
            (json!({}), taint("node.kubernetes.io/unschedulable", "NoSchedule"), Fit::Runs),
            (json!({}), taint(unavailable, "NoSchedule"), Fit::Stays),
            (json!({"hostNetwork": true}), taint(unavailable, "NoSchedule"), Fit::Runs),
        ] {
            let mut spec = spec;
            spec["containers"] = json!([]);
            let node = json!({"metadata": {"name": "n1", "labels": {"zone": "a"}}, "spec": of_node});
            let node: Node = serde_json::from_value(node).unwrap();
            assert_eq!(fit(&set(spec.clone()), &node), expected, "{spec} {of_node}");
        }
    }

    #[test]
    fn a_daemon_is_for_the_node_that_it_is_on_or_that_its_affinity_names() {
        let field = |key: &str, operator: &str, values: &[&str]| {
            let field = json!({"key": key, "operator": operator, "values": values});
            json!({ "matchFields": [field] })
        };
        for (spec, expected) in [
            (json!({}), None),
            (json!({"nodeName": ""}), None),
            (json!({"nodeName": "n1"}), Some("n1")),
            (required(&[field("metadata.name", "In", &["n2"])]), Some("n2")),
            (required(&[zone("In", "a"), field("metadata.name", "In", &["n2", "n3"])]), Some("n2")),
            (required(&[field("metadata.name", "NotIn", &["n2"])]), None),
            (required(&[field("metadata.namespace", "In", &["n2"])]), None),
        ] {
            let mut spec = spec;
            spec["containers"] = json!([]);
            let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap();
            assert_eq!(meant_for(&pod), expected, "{spec}");
        }
    }

    /// Whatever the user's affinity says, each of its terms is for that node alone.
    #[test]
    fn the_template_of_a_node_keeps_what_its_user_asks_for() {
        let mut spec = required(&[zone("In", "a"), zone("In", "b")]);
        spec["containers"] = json!([]);
        spec["hostNetwork"] = json!(true);
        spec["tolerations"] = json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute",
            "operator": "Exists", "tolerationSeconds": 5}]);
        let made = json!(template(&set(spec), "n1", "h"));
        assert_eq!(made["metadata"]["labels"], json!({"app": "a", REVISION_LABEL: "h", GENERATION: "7"}));
        let terms = &made["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
        let fields = json!([{"key": "metadata.name", "operator": "In", "values": ["n1"]}]);
        for (index, value) in [(0, "a"), (1, "b")] {
            let term = &terms["nodeSelectorTerms"][index];
            assert_eq!(
                (&term["matchFields"], &term["matchExpressions"]),
                (&fields, &zone("In", value)["matchExpressions"])
            );
        }
        let tolerated = made["spec"]["tolerations"].as_array().unwrap();
        assert_eq!(tolerated.len(), 7);
        assert_eq!(tolerated[0]["tolerationSeconds"], Value::Null, "a daemon stays for as long as it takes");
    }
}
