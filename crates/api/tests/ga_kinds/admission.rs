//! `admissionregistration.k8s.io` and `apiregistration.k8s.io`.

use mainstay_api::kinds;
use serde_json::{Value, json};

use super::{Case, create};

fn rule() -> Value {
    json!({ "operations": ["CREATE", "UPDATE"], "apiGroups": ["apps"], "apiVersions": ["v1"],
        "resources": ["deployments"], "scope": "Namespaced" })
}

fn hook(patch: Value) -> Value {
    let hook = json!({
        "name": "pods.example.com", "rules": [rule()], "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "clientConfig": { "service": { "name": "hook", "namespace": "default", "path": "/validate" } },
        "matchConditions": [{ "name": "no-nodes", "expression": "request.userInfo.username != 'n'" }],
    });
    super::with(&hook, &patch)
}

fn hooks(patch: Value) -> Value {
    json!({ "webhooks": [hook(patch)] })
}

fn webhook_errors() -> Vec<(Value, &'static str)> {
    vec![
        (
            hooks(json!({ "name": "short" })),
            r#"webhooks[0].name: Invalid value: "short": should be a domain with at least three segments separated by dots"#,
        ),
        (
            hooks(json!({ "sideEffects": null })),
            "webhooks[0].sideEffects: Required value: must specify one of None, NoneOnDryRun",
        ),
        (
            hooks(json!({ "sideEffects": "Some" })),
            r#"webhooks[0].sideEffects: Unsupported value: "Some": supported values: "None", "NoneOnDryRun""#,
        ),
        (
            hooks(json!({ "admissionReviewVersions": null })),
            "webhooks[0].admissionReviewVersions: Required value: must specify one of v1, v1beta1",
        ),
        (
            hooks(json!({ "timeoutSeconds": 31 })),
            "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
        ),
        (
            hooks(json!({ "clientConfig": { "url": "https://x" } })),
            "webhooks[0].clientConfig: Required value: exactly one of url or service is required",
        ),
        (
            hooks(json!({ "clientConfig": { "service": null, "url": "http://x/y?z#w" } })),
            r#"webhooks[0].clientConfig.url: Invalid value: "http": 'https' is the only allowed URL scheme; desired format: https://host[/path]"#,
        ),
        (
            hooks(json!({ "clientConfig": { "service": { "path": "//" } } })),
            "webhooks[0].clientConfig.service.path: Invalid value: \"//\": segment[0] may not be empty",
        ),
        (
            hooks(json!({ "rules": [{ "operations": ["*", "CREATE"] }] })),
            "if '*' is present, must not specify other operations",
        ),
        (
            hooks(json!({ "rules": [{ "resources": ["*", "pods"] }] })),
            "if '*' is present, must not specify other resources without subresources",
        ),
        (
            json!({ "webhooks": [hook(json!({})), hook(json!({}))] }),
            r#"webhooks[1].name: Duplicate value: "pods.example.com""#,
        ),
    ]
}

fn policy_spec() -> Value {
    json!({
        "failurePolicy": "Fail", "paramKind": { "apiVersion": "rules.example.com/v1", "kind": "Limit" },
        "matchConstraints": { "resourceRules": [rule()] },
        "variables": [{ "name": "replicas", "expression": "object.spec.replicas" }],
    })
}

#[expect(clippy::too_many_lines, reason = "a list of cases")]
pub fn cases() -> Vec<Case> {
    let mut validating = policy_spec();
    validating["validations"] =
        json!([{ "expression": "variables.replicas <= params.max", "reason": "Invalid", "message": "too many" }]);
    validating["auditAnnotations"] = json!([{ "key": "high", "valueExpression": "'x'" }]);
    let mut mutating = policy_spec();
    mutating["mutations"] = json!([{ "patchType": "JSONPatch", "jsonPatch": { "expression": "[]" } }]);
    mutating["reinvocationPolicy"] = json!("Never");
    let binding = json!({ "policyName": "p", "paramRef": { "name": "l", "namespace": "default",
        "parameterNotFoundAction": "Deny" },
        "matchResources": { "namespaceSelector": { "matchLabels": { "a": "b" } } } });
    let spec = |patch: Value| json!({ "spec": patch });
    vec![
        Case {
            kind: &kinds::VALIDATING_WEBHOOK_CONFIGURATION,
            full: json!({ "metadata": { "name": "v" }, "webhooks": [hook(json!({}))] }),
            row: "v|1",
            empty: &[],
            invalid: webhook_errors(),
            frozen: vec![],
        },
        Case {
            kind: &kinds::MUTATING_WEBHOOK_CONFIGURATION,
            full: json!({ "metadata": { "name": "m" }, "webhooks": [hook(json!({
                "reinvocationPolicy": "IfNeeded" }))] }),
            row: "m|1",
            empty: &[],
            invalid: webhook_errors()
                .into_iter()
                .chain([(hooks(json!({ "reinvocationPolicy": "Often" })),
                    r#"webhooks[0].reinvocationPolicy: Unsupported value: "Often": supported values: "IfNeeded", "Never""#)])
                .collect(),
            frozen: vec![],
        },
        Case {
            kind: &kinds::VALIDATING_ADMISSION_POLICY,
            full: json!({ "metadata": { "name": "p" }, "spec": validating }),
            row: "p|1|rules.example.com/v1/Limit",
            empty: &["spec.matchConstraints: Required value", "spec.validations: Required value: validations or \
                auditAnnotations must contain at least one item"],
            invalid: vec![
                (spec(json!({ "validations": [{ "expression": " " }] })),
                    "spec.validations[0].expression: Required value: expression is not specified"),
                (spec(json!({ "validations": [{ "expression": "true", "message": "a\nb" }] })),
                    "message must not contain line breaks"),
                (spec(json!({ "variables": [{ "name": "in", "expression": "1" }] })),
                    r#"spec.variables[0].name: Invalid value: "in": name is not a valid CEL identifier"#),
                (spec(json!({ "paramKind": { "apiVersion": "a/b/c" } })), "unexpected GroupVersion string: a/b/c"),
                (spec(json!({ "matchConstraints": { "resourceRules": null } })),
                    "spec.matchConstraints.resourceRules: Required value"),
            ],
            frozen: vec![],
        },
        Case {
            kind: &kinds::VALIDATING_ADMISSION_POLICY_BINDING,
            full: json!({ "metadata": { "name": "b" }, "spec": super::with(&binding,
                &json!({ "validationActions": ["Deny", "Audit"] })) }),
            row: "b|p|default/l",
            empty: &["spec.policyName: Required value", "spec.validationActions: Required value: at least one \
                validation action is required"],
            invalid: vec![
                (spec(json!({ "validationActions": ["Deny", "Warn"] })), "must not contain both Deny and Warn"),
                (spec(json!({ "paramRef": { "selector": {} } })), "spec.paramRef.name: Forbidden: name and selector \
                    are mutually exclusive"),
                (spec(json!({ "paramRef": { "parameterNotFoundAction": null } })),
                    "spec.paramRef.parameterNotFoundAction: Required value"),
            ],
            frozen: vec![],
        },
        Case {
            kind: &kinds::MUTATING_ADMISSION_POLICY,
            full: json!({ "metadata": { "name": "p" }, "spec": mutating }),
            row: "p|1|rules.example.com/v1/Limit",
            empty: &["spec.mutations: Required value: mutations must contain at least one item",
                "spec.reinvocationPolicy: Required value"],
            invalid: vec![(spec(json!({ "mutations": [{ "patchType": "ApplyConfiguration" }] })),
                "spec.mutations[0].applyConfiguration: Required value: must be specified when patchType is \
                ApplyConfiguration")],
            frozen: vec![],
        },
        Case {
            kind: &kinds::MUTATING_ADMISSION_POLICY_BINDING,
            full: json!({ "metadata": { "name": "b" }, "spec": binding }),
            row: "b|p|default/l",
            empty: &["spec.policyName: Required value"],
            invalid: vec![],
            frozen: vec![],
        },
        Case {
            kind: &kinds::API_SERVICE,
            full: json!({ "metadata": { "name": "v1beta1.metrics.k8s.io" },
                "spec": { "group": "metrics.k8s.io", "version": "v1beta1",
                "service": { "name": "metrics", "namespace": "kube-system" }, "groupPriorityMinimum": 100,
                    "versionPriority": 100, "insecureSkipTLSVerify": true },
                "status": { "conditions": [{ "type": "Available", "status": "False",
                    "reason": "MissingEndpoints" }] } }),
            row: "v1beta1.metrics.k8s.io|kube-system/metrics|False (MissingEndpoints)",
            empty: &[r#"metadata.name: Invalid value: "e": must be `spec.version+".""#,
                "only v1 may have an empty group and it better be legacy kube"],
            invalid: vec![
                (spec(json!({ "service": null })), "spec.insecureSkipTLSVerify: Invalid value: true: local \
                    APIServices may not have insecureSkipTLSVerify"),
                (spec(json!({ "caBundle": "eA==" })), "spec.insecureSkipTLSVerify: Invalid value: true: may not be \
                    true if caBundle is present"),
                (spec(json!({ "versionPriority": 0 })), "spec.versionPriority: Invalid value: 0: must be positive and \
                    less than 1000"),
            ],
            frozen: vec![],
        },
    ]
}

#[test]
fn a_webhook_is_given_upstreams_defaults() {
    let made = create(
        &kinds::MUTATING_WEBHOOK_CONFIGURATION,
        &json!({ "metadata": { "name": "m" }, "webhooks": [hook(json!({
            "rules": [{ "operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"] }] }))] }),
    );
    let hook = made.expect("accepted")["webhooks"][0].clone();
    let given =
        ["failurePolicy", "matchPolicy", "timeoutSeconds", "reinvocationPolicy", "namespaceSelector", "objectSelector"]
            .map(|field| hook[field].clone());
    assert_eq!(given, [json!("Fail"), json!("Equivalent"), json!(10), json!("Never"), json!({}), json!({})]);
    assert_eq!((&hook["rules"][0]["scope"], &hook["clientConfig"]["service"]["port"]), (&json!("*"), &json!(443)));
}

#[test]
fn a_local_api_service_is_available_at_once() {
    let local = json!({ "metadata": { "name": "v1.apps" }, "spec": { "group": "apps", "version": "v1",
        "groupPriorityMinimum": 17800, "versionPriority": 15 } });
    let made = create(&kinds::API_SERVICE, &local).expect("accepted");
    assert_eq!(super::cells(&kinds::API_SERVICE, &made), "v1.apps|Local|True");
}
