//! Whether labels, nodes and taints match what a spec asks for: equality selectors, node selectors, tolerations
//! (label selectors are in [`crate::pods::selects`]).
//!
//! Anything that upstream's validation would have refused matches nothing.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Taint, Toleration};

/// Labels as every object has them.
pub type Labels = BTreeMap<String, String>;

/// Whether every pair of `wanted` is among `labels`; an empty map matches everything.
pub fn equal(wanted: &Labels, labels: Option<&Labels>) -> bool {
    wanted.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

/// One requirement of a node selector on the value that is there.
fn required(operator: &str, value: Option<&str>, values: &[&str]) -> bool {
    let numbers = || Some((value?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
    match operator {
        "In" => value.is_some_and(|value| values.contains(&value)),
        "NotIn" => value.is_none_or(|value| !values.contains(&value)),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(have, bound)| have > bound),
        "Lt" => numbers().is_some_and(|(have, bound)| have < bound),
        _ => false,
    }
}

/// A node selector: one term is enough.
pub fn selects_node(selector: &NodeSelector, node: &Node) -> bool {
    selector.node_selector_terms.iter().any(|term| term_selects_node(term, node))
}

/// One term of a node selector: all its requirements; a term without any matches nothing, as upstream.
pub fn term_selects_node(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let holds = |requirement: &NodeSelectorRequirement, value: Option<&str>| {
        let values: Vec<&str> = requirement.values.iter().flatten().map(String::as_str).collect();
        required(&requirement.operator, value, &values)
    };
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    !(expressions.is_empty() && fields.is_empty())
        && expressions.iter().all(|requirement| holds(requirement, label(&requirement.key)))
        && fields
            .iter()
            .all(|requirement| requirement.key == "metadata.name" && holds(requirement, node.metadata.name.as_deref()))
}

/// Whether one toleration covers a taint.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let key = toleration.key.as_deref().unwrap_or("");
    let effect = toleration.effect.as_deref().unwrap_or("");
    (effect.is_empty() || effect == taint.effect)
        && (key.is_empty() || key == taint.key)
        && match toleration.operator.as_deref().unwrap_or("") {
            "Exists" => true,
            "" | "Equal" => {
                !key.is_empty() && toleration.value.as_deref().unwrap_or("") == taint.value.as_deref().unwrap_or("")
            }
            _ => false,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, from_value, json};

    #[test]
    fn tolerations_cover_taints_as_upstream_says() {
        let taint: Taint = from_value(json!({"key": "k", "value": "v", "effect": "NoExecute"})).unwrap();
        let table = [
            (json!({"operator": "Exists"}), true),
            (json!({"key": "k", "operator": "Exists"}), true),
            (json!({"key": "k", "value": "v"}), true),
            (json!({"key": "k", "value": "w"}), false),
            (json!({"value": "v"}), false),
            (json!({"key": "k", "operator": "Exists", "effect": "NoSchedule"}), false),
            (json!({"key": "k", "operator": "Sometimes"}), false),
        ];
        for (toleration, expected) in table {
            let typed: Toleration = from_value(toleration.clone()).unwrap();
            assert_eq!(tolerates(&typed, &taint), expected, "{toleration}");
        }
    }

    #[test]
    fn node_terms_match_labels_and_the_name() {
        let node: Node =
            from_value(json!({"metadata": {"name": "n1", "labels": {"zone": "a", "cores": "8"}}})).unwrap();
        let table: Vec<(Value, bool)> = vec![
            (json!({}), false),
            (json!({"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]}), true),
            (json!({"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["a"]}]}), false),
            (json!({"matchExpressions": [{"key": "gpu", "operator": "NotIn", "values": ["x"]}]}), true),
            (json!({"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["4"]}]}), true),
            (json!({"matchExpressions": [{"key": "zone", "operator": "Gt", "values": ["4"]}]}), false),
            (json!({"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["8"]}]}), false),
            (json!({"matchExpressions": [{"key": "cores", "operator": "Lt", "values": ["8"]}]}), false),
            (json!({"matchExpressions": [{"key": "cores", "operator": "Lt", "values": ["9"]}]}), true),
            (json!({"matchExpressions": [{"key": "zone", "operator": "Exists"}]}), true),
            (json!({"matchExpressions": [{"key": "gpu", "operator": "Exists"}]}), false),
            (json!({"matchExpressions": [{"key": "zone", "operator": "DoesNotExist"}]}), false),
            (json!({"matchExpressions": [{"key": "gpu", "operator": "DoesNotExist"}]}), true),
            (json!({"matchExpressions": [{"key": "zone", "operator": "NotIn", "values": ["b"]}]}), true),
            (json!({"matchExpressions": [{"key": "zone", "operator": "Near", "values": ["a"]}]}), false),
            (json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}), true),
            (json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}), false),
            (json!({"matchFields": [{"key": "metadata.uid", "operator": "In", "values": ["n1"]}]}), false),
        ];
        for (term, expected) in table {
            let typed: NodeSelectorTerm = from_value(term.clone()).unwrap();
            assert_eq!(term_selects_node(&typed, &node), expected, "{term}");
            // Of several terms one is enough; none at all is none.
            let nothing = NodeSelectorTerm::default();
            let any = NodeSelector { node_selector_terms: vec![nothing, typed] };
            assert_eq!(selects_node(&any, &node), expected, "{term}");
        }
    }
}
