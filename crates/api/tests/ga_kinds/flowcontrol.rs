//! `flowcontrol.apiserver.k8s.io` and `storagemigration.k8s.io`.

use mainstay_api::{flows, kinds};
use serde_json::{Value, json};

use super::Case;

fn schema() -> Value {
    json!({ "metadata": { "name": "s" }, "spec": {
        "priorityLevelConfiguration": { "name": "high" }, "matchingPrecedence": 500,
            "distinguisherMethod": { "type": "ByUser" },
        "rules": [{
            "subjects": [{ "kind": "ServiceAccount", "serviceAccount": { "name": "*", "namespace": "default" } }],
            "resourceRules": [{ "verbs": ["get"], "apiGroups": [""], "resources": ["pods"],
                "namespaces": ["default"] }],
            "nonResourceRules": [{ "verbs": ["*"], "nonResourceURLs": ["/healthz", "/livez/*"] }],
        }],
    }, "status": { "conditions": [{ "type": "Dangling", "status": "False" }] } })
}

fn rule(patch: Value) -> Value {
    json!({ "spec": { "rules": [super::with(&schema()["spec"]["rules"][0], &patch)] } })
}

fn level() -> Value {
    json!({ "metadata": { "name": "high" }, "spec": { "type": "Limited",
        "limited": { "nominalConcurrencyShares": 20, "lendablePercent": 10, "borrowingLimitPercent": 5,
        "limitResponse": { "type": "Queue", "queuing": { "queues": 64, "handSize": 6, "queueLengthLimit": 50 } } } } })
}

fn queuing(patch: Value) -> Value {
    json!({ "spec": { "limited": { "limitResponse": { "queuing": patch } } } })
}

pub fn cases() -> Vec<Case> {
    vec![
        Case {
            kind: &kinds::FLOW_SCHEMA,
            full: schema(),
            row: "s|high|500|ByUser|False",
            empty: &["spec.priorityLevelConfiguration.name: Required value: must reference a priority level"],
            invalid: vec![
                (json!({ "spec": { "matchingPrecedence": 10001 } }), "must not be greater than 10000"),
                (
                    json!({ "spec": { "matchingPrecedence": 1 } }),
                    "only the schema named 'exempt' may have matchingPrecedence 1",
                ),
                (json!({ "metadata": { "name": "catch-all" } }), "spec of 'catch-all' must equal the fixed value"),
                (
                    rule(json!({ "subjects": null })),
                    "spec.rules[0].subjects: Required value: subjects must contain at least one value",
                ),
                (
                    rule(json!({ "subjects": [{ "kind": "User" }] })),
                    "spec.rules[0].subjects[0].user: Required value: user is required when subject kind is 'User'",
                ),
                (
                    rule(json!({ "resourceRules": [{ "verbs": ["dance"], "apiGroups": ["*"], "resources": ["*"],
                            "clusterScope": true }] })),
                    "spec.rules[0].resourceRules[0].verbs: Unsupported value: [\"dance\"]",
                ),
                (
                    rule(json!({ "nonResourceRules": [{ "verbs": ["*"], "nonResourceURLs": ["a*"] }] })),
                    "must start with slash",
                ),
            ],
            frozen: vec![],
        },
        Case {
            kind: &kinds::PRIORITY_LEVEL_CONFIGURATION,
            full: level(),
            row: "high|Limited|20|64|6|50",
            empty: &[r#"spec.type: Unsupported value: "": supported values: "Exempt", "Limited""#],
            invalid: vec![
                (
                    queuing(json!({ "handSize": 65 })),
                    "spec.limited.limitResponse.queuing.handSize: Invalid value: 65: should not be greater than \
                        queues (64)",
                ),
                (
                    queuing(json!({ "handSize": 20 })),
                    "required entropy bits of deckSize 64 and handSize 20 should not be greater than 60",
                ),
                (
                    json!({ "spec": { "limited": { "limitResponse": { "type": "Reject" } } } }),
                    "spec.limited.limitResponse.queuing: Forbidden: must be nil if limited.limitResponse.type is not \
                        Limited",
                ),
                (json!({ "spec": { "type": "Exempt" } }), "type must be 'Exempt' if and only if name is 'exempt'"),
                (json!({ "spec": { "limited": { "lendablePercent": 101 } } }), "must be between 0 and 100, inclusive"),
            ],
            frozen: vec![],
        },
        Case {
            kind: &kinds::STORAGE_VERSION_MIGRATION,
            full: json!({ "metadata": { "name": "m" }, "spec": { "resource": { "group": "apps",
                "resource": "deployments" } } }),
            row: "m|deployments.apps",
            empty: &["spec.resource.resource: Required value"],
            invalid: vec![],
            frozen: vec![(json!({ "spec": { "resource": { "resource": "x" } } }), "spec: Invalid value")],
        },
    ]
}

#[test]
fn the_schemas_that_are_always_there_keep_to_their_own_rules() {
    for made in flows::defaults().iter().filter(|made| made.is_mandatory()) {
        let (kind, name, spec) = (&made.kind, made.name(), made.spec());
        let object = json!({ "metadata": { "name": name }, "spec": spec });
        assert!(super::create(kind, &object).is_ok(), "{name}: {:?}", super::create(kind, &object));
        assert_eq!((kind.warnings)(kind, &object), [""; 0], "the server acts on it");
    }
}
