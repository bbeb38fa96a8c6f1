//! What a PodSpec says about where its pod may go, and when: affinity, spread, gates. Upstream's paths and words. A
//! word that nobody knows would mean "anywhere" or "nowhere", without saying so.

use std::collections::BTreeSet;

use super::field::Field;
use crate::metadata::validate_label_selector;
use crate::names;
use crate::status::Cause;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

/// Those of a whole PodSpec.
pub fn pod(spec: &Field, causes: &mut Vec<Cause>) {
    let affinity = spec.get("affinity");
    node_affinity(&affinity.get("nodeAffinity"), causes);
    for terms in [affinity.get("podAffinity"), affinity.get("podAntiAffinity")] {
        for term in terms.get(REQUIRED).items() {
            pod_term(&term, causes);
        }
        for preferred in terms.get(PREFERRED).items() {
            weight(&preferred, causes);
            pod_term(&preferred.get("podAffinityTerm"), causes);
        }
    }
    spread(&spec.get("topologySpreadConstraints"), causes);
    let mut seen = BTreeSet::new();
    for gate in spec.get("schedulingGates").items() {
        let name = gate.get("name").text();
        causes.extend(names::qualified(name).iter().map(|wrong| Cause::invalid(&gate.path, name, wrong)));
        if !seen.insert(name) {
            causes.push(Cause::duplicate(&gate.path, name));
        }
    }
    for gate in spec.get("readinessGates").items() {
        let type_ = gate.get("conditionType");
        causes.extend(names::qualified(type_.text()).iter().map(|wrong| type_.invalid(wrong)));
    }
}

fn node_affinity(affinity: &Field, causes: &mut Vec<Cause>) {
    let required = affinity.get(REQUIRED);
    if required.is_set() {
        node_selector(&required, causes);
    }
    for preferred in affinity.get(PREFERRED).items() {
        weight(&preferred, causes);
        node_term(&preferred.get("preference"), causes);
    }
}

/// A NodeSelector that is there, a pod's or a volume's.
pub fn node_selector(selector: &Field, causes: &mut Vec<Cause>) {
    let terms = selector.get("nodeSelectorTerms");
    if terms.len() == 0 {
        causes.push(Cause::required(&terms.path, "must have at least one node selector term"));
    }
    for term in terms.items() {
        node_term(&term, causes);
    }
}

fn node_term(term: &Field, causes: &mut Vec<Cause>) {
    for expression in term.get("matchExpressions").items() {
        let (key, operator, values) = (expression.get("key"), expression.get("operator"), expression.get("values"));
        match operator.text() {
            "In" | "NotIn" if values.len() == 0 => {
                causes.push(Cause::required(&values.path, "must be specified when `operator` is 'In' or 'NotIn'"));
            }
            "Exists" | "DoesNotExist" if values.len() > 0 => {
                let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                causes.push(Cause::forbidden(&values.path, why));
            }
            "Gt" | "Lt" if values.len() != 1 => {
                let why = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                causes.push(Cause::required(&values.path, why));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            _ => causes.push(operator.invalid("not a valid selector operator")),
        }
        causes.extend(names::qualified(key.text()).iter().map(|wrong| key.invalid(wrong)));
    }
    for field in term.get("matchFields").items() {
        let (key, operator, values) = (field.get("key"), field.get("operator"), field.get("values"));
        match operator.text() {
            "In" | "NotIn" if values.len() != 1 => {
                let why = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
                causes.push(Cause::required(&values.path, why));
            }
            "In" | "NotIn" => {}
            _ => causes.push(operator.invalid("not a valid selector operator")),
        }
        if key.text() != "metadata.name" {
            causes.push(key.invalid("not a valid field selector key"));
        }
    }
}

fn weight(preferred: &Field, causes: &mut Vec<Cause>) {
    let weight = preferred.get("weight");
    if !(1..=100).contains(&weight.int().unwrap_or(0)) {
        causes.push(Cause::invalid(&weight.path, weight.int().unwrap_or(0), "must be in the range 1-100"));
    }
}

fn pod_term(term: &Field, causes: &mut Vec<Cause>) {
    for selector in [term.get("labelSelector"), term.get("namespaceSelector")] {
        validate_label_selector(&selector, causes);
    }
    for namespace in term.get("namespaces").items() {
        causes.extend(names::label(namespace.text()).iter().map(|wrong| namespace.invalid(wrong)));
    }
    topology_key(term, causes);
}

fn topology_key(of: &Field, causes: &mut Vec<Cause>) {
    let key = of.get("topologyKey");
    if key.text().is_empty() {
        causes.push(Cause::required(&key.path, "can not be empty"));
    }
    key.check(causes, names::qualified);
}

fn spread(constraints: &Field, causes: &mut Vec<Cause>) {
    let mut seen = BTreeSet::new();
    for constraint in constraints.items() {
        let (key, otherwise) = (constraint.get("topologyKey").text(), constraint.get("whenUnsatisfiable"));
        for number in ["maxSkew", "minDomains"].map(|number| constraint.get(number)) {
            let is_needed = number.path.ends_with("maxSkew");
            if number.int().or(is_needed.then_some(0)).is_some_and(|number| number <= 0) {
                causes.push(Cause::invalid(&number.path, number.int().unwrap_or(0), "must be greater than zero"));
            }
        }
        topology_key(&constraint, causes);
        const OTHERWISE: [&str; 2] = ["DoNotSchedule", "ScheduleAnyway"];
        if !OTHERWISE.contains(&otherwise.text()) {
            causes.push(Cause::not_supported(&otherwise.path, otherwise.text(), &OTHERWISE));
        }
        let least = constraint.get("minDomains");
        if least.is_set() && otherwise.text() != "DoNotSchedule" {
            let why = format!("can only use minDomains if whenUnsatisfiable=DoNotSchedule, not {}", otherwise.text());
            causes.push(least.invalid(&why));
        }
        if !seen.insert((key, otherwise.text())) {
            let path = format!("{}.{{topologyKey, whenUnsatisfiable}}", constraint.path);
            causes.push(Cause::duplicate(path, format!("{{{key}, {}}}", otherwise.text())));
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            constraint.get(policy).one_of(causes, &["Honor", "Ignore"]);
        }
        validate_label_selector(&constraint.get("labelSelector"), causes);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn refused(spec: Value) -> Vec<String> {
        let mut causes = Vec::new();
        pod(&Field::root(&json!({ "spec": spec })).get("spec"), &mut causes);
        causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
    }

    fn one(spec: Value, wanted: &str) {
        let seen = refused(spec.clone());
        assert!(matches!(seen.as_slice(), [one] if one.contains(wanted)), "{spec}: {seen:?}");
    }

    #[test]
    fn conformance_words_about_places_that_nobody_knows_are_refused() {
        let required = |term: Value| {
            json!({ "affinity": { "nodeAffinity": { REQUIRED: {
            "nodeSelectorTerms": [term] } } } })
        };
        let expression = |expression: Value| required(json!({ "matchExpressions": [expression] }));
        let at = "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].";
        for good in [
            expression(json!({ "key": "a", "operator": "In", "values": ["b"] })),
            expression(json!({ "key": "a", "operator": "Gt", "values": ["1"] })),
            required(json!({ "matchFields": [{ "key": "metadata.name", "operator": "In", "values": ["n"] }] })),
            json!({ "schedulingGates": [{ "name": "a.b/c" }], "readinessGates": [{ "conditionType": "a.b/c" }] }),
        ] {
            assert_eq!(refused(good.clone()), [""; 0], "{good}");
        }
        one(
            expression(json!({ "key": "a", "operator": "Like" })),
            &format!("{at}matchExpressions[0].operator: Invalid value: \"Like\": not a valid selector operator"),
        );
        one(expression(json!({ "key": "a", "operator": "In" })), "must be specified when");
        one(expression(json!({ "key": "a", "operator": "Exists", "values": ["b"] })), "may not be specified when");
        one(expression(json!({ "key": "a", "operator": "Lt", "values": ["1", "2"] })), "single value");
        one(expression(json!({ "key": "a b", "operator": "Exists" })), "matchExpressions[0].key: Invalid value");
        let field = |field: Value| required(json!({ "matchFields": [field] }));
        one(field(json!({ "key": "spec.a", "operator": "In", "values": ["n"] })), "not a valid field selector key");
        one(field(json!({ "key": "metadata.name", "operator": "In", "values": ["n", "m"] })), "only one value");
        one(json!({ "affinity": { "nodeAffinity": { REQUIRED: {} } } }), "at least one node selector term");
        one(json!({ "schedulingGates": [{ "name": "a b" }] }), "spec.schedulingGates[0]: Invalid value: \"a b\"");
        one(json!({ "schedulingGates": [{ "name": "a" }, { "name": "a" }] }), "Duplicate value: \"a\"");
        one(json!({ "readinessGates": [{ "conditionType": "a b" }] }), "spec.readinessGates[0].conditionType: Invalid");
    }

    #[test]
    fn conformance_words_about_neighbours_that_nobody_knows_are_refused() {
        let term = |term: Value| json!({ "affinity": { "podAntiAffinity": { REQUIRED: [term] } } });
        let selecting = |operator: &str| {
            json!({ "topologyKey": "t",
            "labelSelector": { "matchExpressions": [{ "key": "a", "operator": operator }] } })
        };
        assert_eq!(refused(term(selecting("Exists"))), [""; 0]);
        one(term(selecting("Like")), "labelSelector.matchExpressions[0].operator: Invalid value: \"Like\"");
        one(term(json!({})), "topologyKey: Required value: can not be empty");
        one(term(json!({ "topologyKey": "t", "namespaces": ["A_"] })), "namespaces[0]: Invalid value");
        let preferred = |weight: i64| {
            json!({ "affinity": { "podAffinity": { PREFERRED: [
            { "weight": weight, "podAffinityTerm": { "topologyKey": "t" } }] } } })
        };
        assert_eq!(refused(preferred(100)), [""; 0]);
        one(preferred(101), "weight: Invalid value: 101: must be in the range 1-100");

        let spread = |more: Value| {
            let mut one = json!({ "maxSkew": 1, "topologyKey": "t", "whenUnsatisfiable": "DoNotSchedule" });
            one.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({ "topologySpreadConstraints": [one] })
        };
        assert_eq!(refused(spread(json!({ "minDomains": 2, "nodeTaintsPolicy": "Honor" }))), [""; 0]);
        let words = "Unsupported value: \"Never\": supported values: \"DoNotSchedule\", \"ScheduleAnyway\"";
        one(spread(json!({ "whenUnsatisfiable": "Never" })), words);
        one(spread(json!({ "maxSkew": 0 })), "maxSkew: Invalid value: 0: must be greater than zero");
        one(spread(json!({ "minDomains": 2, "whenUnsatisfiable": "ScheduleAnyway" })), "can only use minDomains");
        one(spread(json!({ "nodeAffinityPolicy": "Maybe" })), "supported values: \"Honor\", \"Ignore\"");
        one(spread(json!({ "nodeTaintsPolicy": "Maybe" })), "supported values: \"Honor\", \"Ignore\"");
        let mut twice = spread(json!({}));
        let again = twice["topologySpreadConstraints"][0].clone();
        twice["topologySpreadConstraints"].as_array_mut().unwrap().push(again);
        one(twice, "[1].{topologyKey, whenUnsatisfiable}: Duplicate value: \"{t, DoNotSchedule}\"");
    }

    #[test]
    fn v5_a_volumes_node_affinity_selects_in_words_that_there_are() {
        let volume = &crate::kinds::PERSISTENT_VOLUME;
        let refused = |affinity: Value| {
            let spec = json!({ "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteOnce"],
                "hostPath": { "path": "/a" }, "nodeAffinity": affinity });
            let mut causes = Vec::new();
            (volume.validate)(volume, &json!({ "metadata": { "name": "v" }, "spec": spec }), &mut causes);
            causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect::<Vec<_>>().join(", ")
        };
        let terms = |operator: &str| {
            json!({ "required": { "nodeSelectorTerms": [
            { "matchExpressions": [{ "key": "a", "operator": operator, "values": ["b"] }] }] } })
        };
        assert_eq!(refused(terms("In")), "");
        assert!(refused(terms("Like")).contains("not a valid selector operator"));
        assert!(
            refused(json!({ "required": { "nodeSelectorTerms": [] } })).contains("at least one node selector term")
        );
        assert!(refused(json!({})).contains("spec.nodeAffinity.required: Required value: must specify"));
    }
}
