//! `resource.k8s.io`.

use mainstay_api::kinds;
use serde_json::{Value, json};

use super::{Case, create};

fn devices() -> Value {
    json!({ "devices": {
        "requests": [
            { "name": "gpu", "exactly": { "deviceClassName": "gpu.example.com",
                "selectors": [{ "cel": { "expression": "true" } }], "tolerations": [{ "key": "a",
                "operator": "Exists" }] } },
            { "name": "net", "firstAvailable": [{ "name": "fast", "deviceClassName": "net.example.com",
                "allocationMode": "All" }] },
        ],
        "constraints": [{ "requests": ["gpu", "net/fast"], "matchAttribute": "example.com/numa" }],
        "config": [{ "requests": ["gpu"], "opaque": { "driver": "gpu.example.com", "parameters": { "a": 1 } } }],
    } })
}

fn request(request: Value) -> Value {
    json!({ "spec": { "devices": { "requests": [request], "constraints": null, "config": null } } })
}

fn slice() -> Value {
    json!({ "metadata": { "name": "s" }, "spec": {
        "driver": "gpu.example.com", "nodeName": "n", "pool": { "name": "n/a", "generation": 1,
            "resourceSliceCount": 1 },
        "devices": [{ "name": "gpu-0", "attributes": { "model": { "string": "x" } },
            "capacity": { "example.com/memory": { "value": "4Gi" } },
            "taints": [{ "key": "broken", "effect": "NoSchedule", "timeAdded": "2026-01-02T03:04:05Z" }] }],
    } })
}

#[expect(clippy::too_many_lines, reason = "a list of cases")]
pub fn cases() -> Vec<Case> {
    vec![
        Case {
            kind: &kinds::RESOURCE_CLAIM,
            full: json!({ "metadata": { "name": "c", "namespace": "default" }, "spec": devices(),
                "status": { "allocation": {}, "reservedFor": [{ "resource": "pods", "name": "p", "uid": "1" }] } }),
            row: "c|allocated,reserved",
            empty: &[],
            invalid: vec![
                (
                    request(json!({ "name": "a" })),
                    "spec.devices.requests[0]: Required value: exactly one of `exactly` or `firstAvailable` is \
                        required",
                ),
                (
                    request(json!({ "name": "a", "exactly": {} })),
                    "spec.devices.requests[0].exactly.deviceClassName: Required value",
                ),
                (
                    request(json!({ "name": "a", "exactly": { "deviceClassName": "x", "count": -1 } })),
                    "spec.devices.requests[0].exactly.count: Invalid value: -1: must be greater than zero",
                ),
                (
                    request(json!({ "name": "a", "exactly": { "deviceClassName": "x", "allocationMode": "Some" } })),
                    r#"Unsupported value: "Some": supported values: "All", "ExactCount""#,
                ),
                (
                    json!({ "spec": { "devices": { "constraints": [{ "requests": ["nope"],
                        "matchAttribute": "a/b" }] } } }),
                    "must be the name of a request in the claim",
                ),
            ],
            frozen: vec![(json!({ "spec": { "devices": { "requests": [] } } }), "spec: Invalid value")],
        },
        Case {
            kind: &kinds::RESOURCE_CLAIM_TEMPLATE,
            full: json!({ "metadata": { "name": "t", "namespace": "default" },
                "spec": { "metadata": { "labels": { "a": "b" } }, "spec": devices() } }),
            row: "t",
            empty: &[],
            invalid: vec![(
                json!({ "spec": { "metadata": { "labels": { "a": "b c" } } } }),
                "spec.metadata.labels: Invalid value: \"b c\"",
            )],
            frozen: vec![(json!({ "spec": { "spec": { "devices": { "config": [] } } } }), "spec: Invalid value")],
        },
        Case {
            kind: &kinds::DEVICE_CLASS,
            full: json!({ "metadata": { "name": "gpu.example.com" }, "spec": {
                "selectors": [{ "cel": { "expression": "true" } }], "extendedResourceName": "example.com/gpu" } }),
            row: "gpu.example.com",
            empty: &[],
            invalid: vec![(json!({ "spec": { "selectors": [{}] } }), "spec.selectors[0].cel: Required value")],
            frozen: vec![],
        },
        Case {
            kind: &kinds::RESOURCE_SLICE,
            full: slice(),
            row: "s|n|gpu.example.com|n/a",
            empty: &[
                "spec.driver: Required value",
                "spec.pool.name: Required value",
                "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required",
            ],
            invalid: vec![
                (
                    json!({ "spec": { "allNodes": true } }),
                    "spec: Invalid value: \"{`nodeName`, `allNodes`}\": exactly one of",
                ),
                (
                    json!({ "spec": { "devices": [{ "name": "a" }, { "name": "a" }] } }),
                    r#"spec.devices[1]: Duplicate value: "a""#,
                ),
                (
                    json!({ "spec": { "devices": [{ "name": "a", "attributes": { "x": {} } }] } }),
                    "exactly one value must be specified",
                ),
            ],
            frozen: vec![(
                json!({ "spec": { "nodeName": "m" } }),
                "spec.nodeName: Invalid value: \"m\": field is immutable",
            )],
        },
        Case {
            kind: &kinds::DEVICE_TAINT_RULE,
            full: json!({ "metadata": { "name": "r" }, "spec": { "deviceSelector": { "driver": "gpu.example.com",
                "pool": "n", "device": "gpu-0" }, "taint": { "key": "broken", "effect": "NoExecute",
                "timeAdded": "2026-01-02T03:04:05Z" } } }),
            row: "r",
            empty: &["spec.taint.effect: Required value"],
            invalid: vec![(
                json!({ "spec": { "taint": { "effect": "Sometimes" } } }),
                r#"spec.taint.effect: Unsupported value: "Sometimes""#,
            )],
            frozen: vec![],
        },
    ]
}

#[test]
fn a_request_for_devices_is_for_one_unless_it_says_more() {
    let made = create(
        &kinds::RESOURCE_CLAIM,
        &json!({ "metadata": { "name": "c", "namespace": "default" }, "spec": devices() }),
    );
    let requests = made.expect("accepted")["spec"]["devices"]["requests"].clone();
    assert_eq!(
        (&requests[0]["exactly"]["allocationMode"], &requests[0]["exactly"]["count"]),
        (&json!("ExactCount"), &json!(1))
    );
    assert_eq!(requests[1]["firstAvailable"][0].get("count"), None);
}
