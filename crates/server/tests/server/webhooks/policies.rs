//! Admission policies and match conditions through the real server.

use mainstay_api::Kind;
use mainstay_api::kinds::{
    CONFIG_MAP, MUTATING_ADMISSION_POLICY, MUTATING_ADMISSION_POLICY_BINDING, NAMESPACE, POD, STATEFUL_SET,
    VALIDATING_ADMISSION_POLICY, VALIDATING_ADMISSION_POLICY_BINDING,
};
use mainstay_client::{Client, PatchType};
use serde_json::{Value, json};

use super::hook::{Hook, Says};
use super::{map, mutating, pod, refused, server, validating};

fn rules(operations: &[&str], group: &str, plural: &str) -> Value {
    json!({ "resourceRules": [{ "operations": operations, "apiGroups": [group], "apiVersions": ["*"],
        "resources": [plural] }] })
}

/// A policy with a binding of the same name.
async fn policy(client: &Client, mutates: bool, name: &str, spec: Value, binding: Value) {
    let (kind, bound): (&Kind, &Kind) = match mutates {
        true => (&MUTATING_ADMISSION_POLICY, &MUTATING_ADMISSION_POLICY_BINDING),
        false => (&VALIDATING_ADMISSION_POLICY, &VALIDATING_ADMISSION_POLICY_BINDING),
    };
    let object = json!({ "metadata": { "name": name }, "spec": spec });
    client.create(kind, "", &object).await.expect("a policy");
    let mut spec = json!({ "policyName": name });
    mainstay_api::object::merge(&mut spec, binding);
    let object = json!({ "metadata": { "name": name }, "spec": spec });
    client.create(bound, "", &object).await.expect("a binding");
}

#[tokio::test]
async fn x1_a_policy_refuses_in_upstreams_words_where_it_is_bound() {
    let (_folder, server, client) = server().await;
    let spec = json!({
        "matchConstraints": rules(&["CREATE", "UPDATE"], "apps", "statefulsets"),
        "variables": [{ "name": "replicas", "expression": "object.spec.replicas" }],
        "matchConditions": [{ "name": "not-exempt", "expression": "!has(object.metadata.labels) || !('exempt' in \
            object.metadata.labels)" }],
        "validations": [
            { "expression": "variables.replicas <= 3", "messageExpression": "'at most 3, not ' + \
                string(variables.replicas)" },
            { "expression": "namespaceObject.metadata.name != 'kube-public'", "reason": "Forbidden",
                "message": "not there" },
            { "expression": "request.userInfo.username != 'mallory' && request.operation in ['CREATE', 'UPDATE']" },
        ],
    });
    policy(&client, false, "replicas", spec.clone(), json!({ "validationActions": ["Deny"] })).await;
    let unbound = json!({ "metadata": { "name": "unbound" }, "spec": { "matchConstraints": rules(&["*"], "*", "*"),
        "validations": [{ "expression": "false" }] } });
    client.create(&VALIDATING_ADMISSION_POLICY, "", &unbound).await.expect("a policy");
    let set = |name: &str, replicas: i64| {
        json!({ "metadata": { "name": name }, "spec": { "serviceName": "w", "replicas": replicas,
            "selector": { "matchLabels": { "a": "b" } },
            "template": { "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "c",
                "image": "i" }] } } } })
    };
    client.create(&STATEFUL_SET, "default", &set("fine", 3)).await.expect("allowed");
    let (code, message) = refused(client.create(&STATEFUL_SET, "default", &set("many", 4)).await);
    let wanted = r#"statefulsets.apps "many" is forbidden: ValidatingAdmissionPolicy 'replicas' with binding 'replicas' denied request: at most 3, not 4"#;
    assert!(code == 422 && message.contains(wanted), "{message}");
    let (code, message) = refused(client.create(&STATEFUL_SET, "kube-public", &set("there", 1)).await);
    assert!(code == 403 && message.contains("denied request: not there"), "{code} {message}");
    let more = json!({ "spec": { "replicas": 5 } });
    let grown = client.patch(&STATEFUL_SET, "default", "fine", "", PatchType::Merge, &more).await;
    assert_eq!(refused(grown).0, 422);
    let mut exempt = set("exempt", 9);
    exempt["metadata"]["labels"] = json!({ "exempt": "yes" });
    client.create(&STATEFUL_SET, "default", &exempt).await.expect("a condition does not hold");
    server.shutdown().await;
}

#[tokio::test]
async fn a_policy_takes_parameters_and_says_what_to_do_without_them() {
    let (_folder, server, client) = server().await;
    let spec = json!({
        "paramKind": { "apiVersion": "v1", "kind": "ConfigMap" },
        "matchConstraints": rules(&["CREATE"], "", "secrets"),
        "validations": [{ "expression": "object.metadata.name.startsWith(params.data.prefix)",
            "message": "a wrong name" }],
    });
    let by_name = json!({ "validationActions": ["Deny"], "paramRef": { "name": "limits", "namespace": "default",
        "parameterNotFoundAction": "Deny" } });
    policy(&client, false, "names", spec, by_name).await;
    let secret = |name: &str| json!({ "metadata": { "name": name } });
    let create = async |name: &str| client.create(&mainstay_api::kinds::SECRET, "default", &secret(name)).await;
    let (_, message) = refused(create("a-1").await);
    assert!(
        message.contains("failed to configure binding: no params found for policy binding with `Deny`"),
        "{message}"
    );
    let limits = json!({ "metadata": { "name": "limits", "labels": { "use": "yes" } }, "data": { "prefix": "a-" } });
    client.create(&CONFIG_MAP, "default", &limits).await.expect("made");
    create("a-1").await.expect("fits");
    assert!(refused(create("b-1").await).1.contains("denied request: a wrong name"));
    // The newest parameters hold from the answer on.
    let change = json!({ "data": { "prefix": "b-" } });
    client.patch(&CONFIG_MAP, "default", "limits", "", PatchType::Merge, &change).await.expect("changed");
    create("b-1").await.expect("fits now");
    // By selector, all that are selected must hold.
    let binding = json!({ "spec": { "paramRef": { "name": null, "namespace": null, "selector": { "matchLabels": {
        "use": "yes" } } } } });
    client
        .patch(&VALIDATING_ADMISSION_POLICY_BINDING, "", "names", "", PatchType::Merge, &binding)
        .await
        .expect("bound");
    create("b-2").await.expect("fits");
    let second = json!({ "metadata": { "name": "second", "labels": { "use": "yes" } }, "data": { "prefix": "c-" } });
    client.create(&CONFIG_MAP, "default", &second).await.expect("made");
    assert!(refused(create("b-3").await).1.contains("a wrong name"));
    server.shutdown().await;
}

#[tokio::test]
async fn failures_and_warnings_of_policies_are_as_their_binding_says() {
    let (_folder, server, client) = server().await;
    let of = |policy: &str, expression: &str| {
        json!({ "failurePolicy": policy, "matchConstraints": rules(&["*"], "",
        "configmaps"), "validations": [{ "expression": expression }] })
    };
    policy(
        &client,
        false,
        "broken-open",
        of("Ignore", "object.missing.field == 1"),
        json!({ "validationActions": ["Deny"] }),
    )
    .await;
    policy(&client, false, "warns", of("Fail", "false"), json!({ "validationActions": ["Warn", "Audit"] })).await;
    client.create(&CONFIG_MAP, "default", &map("a")).await.expect("ignored, and warned of");
    policy(
        &client,
        false,
        "broken-closed",
        of("Fail", "object.missing.field == 1"),
        json!({ "validationActions": ["Deny"] }),
    )
    .await;
    let (code, message) = refused(client.create(&CONFIG_MAP, "default", &map("b")).await);
    let wanted = "denied request: expression 'object.missing.field == 1' resulted in error: no such key: missing";
    assert!(code == 422 && message.contains(wanted), "{message}");
    // A deletion has only what was there.
    client.delete(&VALIDATING_ADMISSION_POLICY_BINDING, "", "broken-closed", &json!({})).await.expect("deleted");
    let keep = json!({ "matchConstraints": rules(&["DELETE"], "", "configmaps"),
        "validations": [{ "expression": "object == null && oldObject.data.a != '1'", "message": "kept" }] });
    let here = json!({ "validationActions": ["Deny"], "matchResources": { "namespaceSelector": { "matchLabels": {
        "kubernetes.io/metadata.name": "default" } } } });
    policy(&client, false, "keep", keep, here).await;
    assert!(refused(client.delete(&CONFIG_MAP, "default", "a", &json!({})).await).1.contains("denied request: kept"));
    client.create(&NAMESPACE, "", &json!({ "metadata": { "name": "other" } })).await.expect("made");
    client.create(&CONFIG_MAP, "other", &map("a")).await.expect("made");
    client.delete(&CONFIG_MAP, "other", "a", &json!({})).await.expect("not bound there");
    server.shutdown().await;
}

#[tokio::test]
async fn mutating_policies_change_what_is_written() {
    let (_folder, server, client) = server().await;
    let spec = |name: &str, mutation: Value| {
        json!({ "matchConstraints": rules(&["CREATE"], "", name), "failurePolicy": "Fail",
            "reinvocationPolicy": "IfNeeded",
            "mutations": [mutation] })
    };
    let sidecar = r#"Object{
        metadata: Object.metadata{ labels: { "sidecar": "yes" } },
        spec: Object.spec{ containers: [Object.spec.containers{ name: "sidecar", image: "s" }] }
    }"#;
    let apply = json!({ "patchType": "ApplyConfiguration", "applyConfiguration": { "expression": sidecar } });
    policy(&client, true, "sidecar", spec("pods", apply), json!({})).await;
    let made = client.create(&POD, "default", &pod("p")).await.expect("made");
    let names: Vec<&str> =
        made["spec"]["containers"].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect();
    assert!(names.len() == 2 && names.contains(&"c") && names.contains(&"sidecar"), "{names:?}");
    assert_eq!(made["metadata"]["labels"]["sidecar"], "yes");
    assert_eq!(made["spec"]["containers"][1]["volumeMounts"], made["spec"]["containers"][0]["volumeMounts"]);

    let patch = r#"[
        JSONPatch{op: "test", path: "/data/a", value: "1"},
        JSONPatch{op: "add", path: "/data/" + jsonpatch.escapeKey("b/c"), value: object.metadata.name}
    ]"#;
    let json_patch = json!({ "patchType": "JSONPatch", "jsonPatch": { "expression": patch } });
    policy(&client, true, "patch", spec("configmaps", json_patch), json!({})).await;
    let made =
        client.create(&CONFIG_MAP, "default", &json!({ "metadata": { "name": "x" }, "data": { "a": "1" } })).await;
    let (code, message) = match made {
        Ok(made) => panic!("a key with a slash is no key of a ConfigMap: {made}"),
        error => refused(error),
    };
    assert!(code == 422 && message.contains("data[b/c]"), "{message}");

    let rename = json!({ "patchType": "ApplyConfiguration",
        "applyConfiguration": { "expression": "Object{ metadata: Object.metadata{ name: 'other' } }" } });
    policy(&client, true, "rename", spec("secrets", rename), json!({})).await;
    let (code, message) =
        refused(client.create(&mainstay_api::kinds::SECRET, "default", &json!({ "metadata": { "name": "s" } })).await);
    assert!(code == 422 && message.contains("may not mutate metadata.name"), "{message}");
    server.shutdown().await;
}

#[tokio::test]
async fn a_webhook_is_asked_only_where_its_conditions_hold() {
    let (_folder, server, client) = server().await;
    let hook = Hook::start(|_| Says::yes()).await;
    let conditions = json!({ "matchConditions": [
        { "name": "mine", "expression": "object.data.a == '1'" },
        { "name": "not-kubelet", "expression": "request.userInfo.username == 'kubernetes-admin' && \
            authorizer.group('').resource('pods').check('delete').allowed()" },
    ] });
    validating(&client, "conditions", vec![hook.webhook("conditions.x.io", "/configmaps", conditions)]).await;
    client.create(&CONFIG_MAP, "default", &map("a")).await.expect("asked");
    client
        .create(&CONFIG_MAP, "default", &json!({ "metadata": { "name": "b" }, "data": { "a": "2" } }))
        .await
        .expect("not asked");
    assert_eq!(hook.requests().len(), 1);
    // One that fails decides by the failure policy.
    let (code, message) = refused(client.create(&CONFIG_MAP, "default", &json!({ "metadata": { "name": "c" } })).await);
    assert!(
        code == 403 && message.contains("expression 'object.data.a == '1'' resulted in error: no such key: data"),
        "{message}"
    );
    let open =
        json!({ "failurePolicy": "Ignore", "matchConditions": [{ "name": "x", "expression": "object.missing == 1" }] });
    mutating(&client, "open", vec![hook.webhook("open.x.io", "/secrets", open)]).await;
    client
        .create(&mainstay_api::kinds::SECRET, "default", &json!({ "metadata": { "name": "s" } }))
        .await
        .expect("ignored");
    assert_eq!(hook.requests().len(), 1);
    server.shutdown().await;
}
