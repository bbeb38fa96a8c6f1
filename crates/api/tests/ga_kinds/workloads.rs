//! What is about pods and what they may use: autoscaling, quotas, limits, runtime classes, events, certificates.

use mainstay_api::kinds;
use serde_json::{Value, json};

use super::{Case, create, with};

fn scaler() -> Value {
    json!({
        "metadata": { "name": "h", "namespace": "default" },
        "spec": {
            "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": "web" },
            "minReplicas": 2, "maxReplicas": 10,
            "metrics": [
                { "type": "Resource", "resource": { "name": "cpu", "target": { "type": "Utilization",
                    "averageUtilization": 60 } } },
                { "type": "Pods", "pods": { "metric": { "name": "hits" },
                    "target": { "type": "AverageValue", "averageValue": "1k" } } },
                { "type": "Object", "object": { "metric": { "name": "rps" },
                    "describedObject": { "kind": "Ingress", "name": "i" },
                    "target": { "type": "Value", "value": "2k" } } },
            ],
            "behavior": { "scaleDown": { "stabilizationWindowSeconds": 60 } },
        },
        "status": { "currentReplicas": 3, "desiredReplicas": 3, "currentMetrics": [
            { "type": "Resource", "resource": { "name": "cpu", "current": { "averageUtilization": 12,
                "averageValue": "10m" } } } ] },
    })
}

fn older_scaler() -> Value {
    json!({
        "metadata": { "name": "h", "namespace": "default" },
        "spec": { "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": "web" },
            "minReplicas": 2, "maxReplicas": 10, "targetCPUUtilizationPercentage": 60 },
    })
}

fn quota() -> Value {
    json!({
        "metadata": { "name": "q", "namespace": "default" },
        "spec": { "hard": { "pods": "4", "requests.cpu": "1", "limits.memory": "2Gi" }, "scopes": ["NotTerminating"],
            "scopeSelector": { "matchExpressions": [{ "scopeName": "PriorityClass", "operator": "In",
                "values": ["high"] }] } },
        "status": { "hard": { "pods": "4", "requests.cpu": "1", "limits.memory": "2Gi" },
            "used": { "pods": "1", "requests.cpu": "250m", "limits.memory": "0" } },
    })
}

fn limits(item: Value) -> Value {
    json!({ "spec": { "limits": [item] } })
}

pub fn cases() -> Vec<Case> {
    vec![
        autoscaler_case(),
        older_autoscaler_case(),
        quota_case(),
        limits_case(),
        runtime_case(),
        event_case(),
        component_case(),
    ]
    .into_iter()
    .chain(certificates())
    .collect()
}

fn autoscaler_case() -> Case {
    let metric = |metric: Value| json!({ "spec": { "metrics": [metric] } });
    Case {
        kind: &kinds::HORIZONTAL_POD_AUTOSCALER,
        full: scaler(),
        row: "h|Deployment/web|cpu: 12%/60%, <unknown>/1k + 1 more...|2|10|3",
        empty: &[
            "spec.maxReplicas: Invalid value: 0: must be greater than 0",
            "spec.maxReplicas: Invalid value: 0: must be greater than or equal to `minReplicas`",
            "spec.scaleTargetRef.kind: Required value",
            "spec.scaleTargetRef.name: Required value",
        ],
        invalid: vec![
            (
                json!({ "spec": { "minReplicas": 0 } }),
                "spec.minReplicas: Invalid value: 0: must be greater than or equal to 1",
            ),
            (
                metric(json!({ "type": "Resource" })),
                "spec.metrics[0].resource: Required value: must populate information for the given metric source",
            ),
            (
                metric(
                    json!({ "type": "Resource", "resource": { "name": "cpu", "target": { "type": "Utilization" } } }),
                ),
                "spec.metrics[0].resource.target.averageUtilization: Required value: must set either a target raw \
                    value or a target utilization",
            ),
            (
                metric(json!({ "type": "Pods", "pods": { "metric": { "name": "x" },
                        "target": { "type": "AverageValue", "averageValue": "0" } } })),
                "averageValue: Invalid value: \"0\": must be positive",
            ),
            (
                json!({ "spec": { "behavior": { "scaleDown": { "stabilizationWindowSeconds": 3601 } } } }),
                "must be less than or equal to 3600",
            ),
        ],
        frozen: vec![],
    }
}

fn older_autoscaler_case() -> Case {
    Case {
        kind: &kinds::HORIZONTAL_POD_AUTOSCALER_V1,
        full: older_scaler(),
        row: "h|Deployment/web|cpu: <unknown>/60%|2|10|0",
        empty: &["spec.maxReplicas: Invalid value: 0: must be greater than 0"],
        invalid: vec![(
            json!({ "spec": { "targetCPUUtilizationPercentage": 0 } }),
            "spec.metrics[0].resource.target.averageUtilization: Invalid value: 0: must be greater than 0",
        )],
        frozen: vec![],
    }
}

fn quota_case() -> Case {
    let selector = |operator: &str| {
        json!({ "spec": { "scopeSelector": {
        "matchExpressions": [{ "scopeName": "BestEffort", "operator": operator }] } } })
    };
    Case {
        kind: &kinds::RESOURCE_QUOTA,
        full: quota(),
        row: "q|pods: 1/4, requests.cpu: 250m/1|limits.memory: 0/2Gi",
        empty: &[],
        invalid: vec![
            (
                json!({ "spec": { "hard": { "gold": "1" } } }),
                r#"spec.hard[gold]: Invalid value: "gold": must be a standard resource for quota"#,
            ),
            (
                json!({ "spec": { "hard": { "pods": "1.5" } } }),
                r#"spec.hard[pods]: Invalid value: "1500m": must be an integer"#,
            ),
            (json!({ "spec": { "hard": { "pods": "-1" } } }), "must be greater than or equal to 0"),
            (
                json!({ "spec": { "scopes": ["Terminating", "NotTerminating"] } }),
                "spec.scopes: Invalid value: [\"Terminating\",\"NotTerminating\"]: conflicting scopes",
            ),
            (json!({ "spec": { "scopes": ["BestEffort"] } }), "unsupported scope applied to resource"),
            (
                selector("In"),
                "spec.scopeSelector.matchExpressions.values: Required value: must be at least one value when \
                    `operator` is 'In' or 'NotIn' for scope selector",
            ),
        ],
        frozen: vec![(json!({ "spec": { "scopes": [] } }), "spec.scopes: Invalid value: []: field is immutable")],
    }
}

fn limits_case() -> Case {
    let container = json!({ "type": "Container", "min": { "cpu": "100m" }, "max": { "cpu": "2", "memory": "1Gi" },
        "default": { "cpu": "500m", "memory": "1Gi" }, "defaultRequest": { "cpu": "200m", "memory": "1Gi" },
            "maxLimitRequestRatio": { "cpu": "10" } });
    Case {
        kind: &kinds::LIMIT_RANGE,
        full: json!({ "metadata": { "name": "l", "namespace": "default", "creationTimestamp": "2026-01-02T03:04:05Z" },
            "spec": { "limits": [container, { "type": "PersistentVolumeClaim", "max": { "storage": "2Gi" } }] } }),
        row: "l|2026-01-02T03:04:05Z",
        empty: &[],
        invalid: vec![
            (
                limits(json!({ "type": "Container", "min": { "cpu": "2" }, "max": { "cpu": "1" } })),
                r#"spec.limits[0].min[cpu]: Invalid value: "2": min value 2 is greater than max value 1"#,
            ),
            (
                limits(json!({ "type": "Pod", "default": { "cpu": "1" } })),
                "spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'",
            ),
            (
                limits(json!({ "type": "PersistentVolumeClaim" })),
                "spec.limits[0].limits: Required value: either minimum or maximum storage value is required, but \
                    neither was provided",
            ),
            (
                limits(json!({ "type": "Node" })),
                "spec.limits[0].type: Invalid value: \"Node\": must be a standard limit type or fully qualified",
            ),
            (
                limits(json!({ "type": "Container", "maxLimitRequestRatio": { "cpu": "500m" } })),
                "ratio 500m is less than 1",
            ),
            (
                limits(json!({ "type": "Container", "max": { "pods": "1" } })),
                "must be a standard resource for containers",
            ),
        ],
        frozen: vec![],
    }
}

fn runtime_case() -> Case {
    Case {
        kind: &kinds::RUNTIME_CLASS,
        full: json!({ "metadata": { "name": "sandboxed" }, "handler": "gvisor",
            "overhead": { "podFixed": { "cpu": "250m", "memory": "120Mi" } },
            "scheduling": { "nodeSelector": { "runtime": "gvisor" }, "tolerations": [{ "key": "runtime",
                "operator": "Exists" }] } }),
        row: "sandboxed|gvisor",
        empty: &[r#"handler: Invalid value: "": a lowercase RFC 1123 label"#],
        invalid: vec![
            (
                json!({ "overhead": { "podFixed": { "cpu": "-1" } } }),
                "overhead.podFixed[cpu]: Invalid value: \"-1\": must be greater than or equal to 0",
            ),
            (
                json!({ "scheduling": { "tolerations": [{ "value": "x" }] } }),
                "operator must be Exists when `key` is empty",
            ),
        ],
        frozen: vec![(json!({ "handler": "runc" }), r#"handler: Invalid value: "runc": field is immutable"#)],
    }
}

fn event_case() -> Case {
    Case {
        kind: &kinds::EVENT_REGARDING,
        full: json!({
            "metadata": { "name": "e.1", "namespace": "default" }, "eventTime": "2026-01-02T03:04:05.000000Z",
            "regarding": { "kind": "Pod", "name": "p", "namespace": "default" }, "reason": "Started",
                "action": "Starting",
            "note": "it runs", "type": "Normal", "reportingController": "example.com/c", "reportingInstance": "c-1",
        }),
        row: "<invalid>|Normal|Started|pod/p||example.com/c, c-1|it runs|<invalid>|1|e.1",
        empty: &["eventTime: Required value", "type: Invalid value: \"\": has invalid value: "],
        invalid: vec![
            (json!({ "reportingController": null }), "reportingController: Required value"),
            (json!({ "action": null }), "action: Required value"),
            (json!({ "note": "x".repeat(1025) }), "message: Invalid value: \"\": can have at most 1024 characters"),
            (
                json!({ "series": { "count": 1, "lastObservedTime": "2026-01-02T03:04:05.000000Z" } }),
                "series.count: Invalid value: \"\": should be at least 2",
            ),
            (json!({ "deprecatedCount": 3 }), "count: Invalid value: \"\": needs to be unset"),
        ],
        frozen: Vec::new(),
    }
}

fn component_case() -> Case {
    Case {
        kind: &kinds::COMPONENT_STATUS,
        full: json!({ "metadata": { "name": "etcd-0" }, "conditions": [{ "type": "Healthy", "status": "True",
            "message": "ok" }] }),
        row: "etcd-0|Healthy|ok|",
        empty: &[],
        invalid: vec![],
        frozen: vec![],
    }
}

fn certificates() -> Vec<Case> {
    let request =
        "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlJQgotLS0tLUVORCBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0K";
    let pem = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
    let signing = Case {
        kind: &kinds::CERTIFICATE_SIGNING_REQUEST,
        full: json!({ "metadata": { "name": "Any:Name" }, "spec": { "request": request,
            "signerName": "kubernetes.io/kube-apiserver-client", "usages": ["client auth"], "expirationSeconds": 86400,
            "username": "u" },
            "status": { "conditions": [{ "type": "Approved", "status": "True" }], "certificate": "eA==" } }),
        row: "Any:Name|kubernetes.io/kube-apiserver-client|u|24h|Approved,Issued",
        empty: &[
            "spec.request: Invalid value",
            "PEM block type must be CERTIFICATE REQUEST",
            "spec.usages: Required value",
            "spec.signerName: Required value",
        ],
        invalid: vec![
            (
                json!({ "spec": { "usages": ["fun"] } }),
                r#"spec.usages[0]: Unsupported value: "fun": supported values: "any", "cert sign""#,
            ),
            (json!({ "spec": { "usages": ["any", "any"] } }), r#"spec.usages[1]: Duplicate value: "any""#),
            (
                json!({ "spec": { "expirationSeconds": 599 } }),
                "may not specify a duration less than 600 seconds (10 minutes)",
            ),
            (
                json!({ "spec": { "signerName": "kubernetes.io/legacy-unknown" } }),
                "the legacy signerName is not allowed via this API version",
            ),
            (
                json!({ "spec": { "signerName": "me" } }),
                "must be a fully qualified domain and path of the form 'example.com/signer-name'",
            ),
        ],
        frozen: vec![],
    };
    let bundle = Case {
        kind: &kinds::CLUSTER_TRUST_BUNDLE,
        full: json!({ "metadata": { "name": "example.com:mine:one" }, "spec": { "signerName": "example.com/mine",
            "trustBundle": pem } }),
        row: "example.com:mine:one|example.com/mine",
        empty: &["spec.trustBundle: Invalid value: \"<value omitted>\": at least one trust anchor must be provided"],
        invalid: vec![(
            json!({ "metadata": { "name": "one" } }),
            "ClusterTrustBundle for signerName example.com/mine must be named with prefix example.com:mine:",
        )],
        frozen: vec![(
            json!({ "metadata": {}, "spec": { "signerName": "example.com/other" } }),
            "spec.signerName: Invalid value: \"example.com/other\": field is immutable",
        )],
    };
    let pod = Case {
        kind: &kinds::POD_CERTIFICATE_REQUEST,
        full: json!({ "metadata": { "name": "r", "namespace": "default" },
            "spec": { "signerName": "example.com/s", "podName": "p", "podUID": "1", "serviceAccountName": "a",
            "serviceAccountUID": "2", "nodeName": "n", "nodeUID": "3", "maxExpirationSeconds": 3600,
            "stubPKCS10Request": "eA==" } }),
        row: "r|p|a|n|example.com/s|Pending",
        empty: &["spec.signerName: Required value", "spec.podUID: Required value"],
        invalid: vec![(
            json!({ "spec": { "maxExpirationSeconds": 60 } }),
            "spec.maxExpirationSeconds: Invalid value: 60",
        )],
        frozen: vec![(json!({ "spec": { "nodeName": "other" } }), "spec: Invalid value")],
    };
    vec![signing, bundle, pod]
}

#[test]
fn limits_without_defaults_are_the_bounds() {
    let range = json!({ "metadata": { "name": "l", "namespace": "default" },
        "spec": { "limits": [{ "type": "Container", "max": { "cpu": "2" }, "min": { "memory": "1Gi" } }] } });
    let item = create(&kinds::LIMIT_RANGE, &range).expect("accepted")["spec"]["limits"][0].clone();
    assert_eq!(
        (&item["default"], &item["defaultRequest"]),
        (&json!({ "cpu": "2" }), &json!({ "cpu": "2", "memory": "1Gi" }))
    );
}

#[test]
fn an_autoscaler_of_one_version_is_one_of_the_other_and_back() {
    let (newer, older) = (&kinds::HORIZONTAL_POD_AUTOSCALER, &kinds::HORIZONTAL_POD_AUTOSCALER_V1);
    let stored = create(newer, &scaler()).expect("accepted");
    let stored = with(&stored, &json!({ "apiVersion": "autoscaling/v2", "status": scaler()["status"] }));
    let mut seen = stored.clone();
    older.from_stored(&mut seen);
    assert_eq!(seen["spec"]["targetCPUUtilizationPercentage"], 60);
    assert_eq!((seen["spec"].get("metrics"), &seen["status"]["currentCPUUtilizationPercentage"]), (None, &json!(12)));
    let kept = seen["metadata"]["annotations"]["autoscaling.alpha.kubernetes.io/metrics"].as_str().expect("kept");
    let kept: Value = serde_json::from_str(kept).expect("JSON");
    assert_eq!(kept[0], json!({ "type": "Pods", "pods": { "metricName": "hits", "targetAverageValue": "1k" } }));
    older.to_stored(&mut seen);
    assert_eq!(seen, stored, "nothing lost, nothing invented");
    let mut plain = create(older, &older_scaler()).expect("accepted");
    plain["spec"].as_object_mut().map(|spec| spec.remove("targetCPUUtilizationPercentage"));
    older.to_stored(&mut plain);
    assert_eq!(plain["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
}

#[test]
fn an_event_of_one_group_is_one_of_the_other_and_back() {
    let kind = &kinds::EVENT_REGARDING;
    assert_eq!(kind.stored(), &kinds::EVENT);
    let made = create(kind, &event_case().full).expect("accepted");
    let mut stored = made.clone();
    kind.to_stored(&mut stored);
    assert_eq!(
        (&stored["apiVersion"], &stored["involvedObject"]["name"], &stored["message"]),
        (&json!("v1"), &json!("p"), &json!("it runs"))
    );
    let fields = (kind.fields)(kind, &stored);
    assert!(
        fields.contains(&("regarding.name", "p".to_owned()))
            && fields.contains(&("involvedObject.name", "p".to_owned()))
    );
    kind.from_stored(&mut stored);
    assert_eq!(stored, made);
}

#[test]
fn a_request_is_approved_once_and_only_where_that_is_done() {
    let kind = &kinds::CERTIFICATE_SIGNING_REQUEST;
    let full = certificates().remove(0).full;
    let old = with(
        &full,
        &json!({ "status": { "conditions": [{ "type": "Approved", "status": "True", "reason": "ok" }],
            "certificate": null } }),
    );
    let wrong = |conditions: Value| {
        let mut causes = Vec::new();
        let new = with(&old, &json!({ "status": { "conditions": conditions } }));
        kinds::certificatesigningrequest::validate_approval(&new, &old, &mut causes);
        causes.into_iter().map(|cause| cause.message).collect::<Vec<_>>().join("; ")
    };
    assert_eq!(wrong(json!([])), "Forbidden: updates may not remove a condition of type \"Approved\"");
    let approved = json!({ "type": "Approved", "status": "True", "reason": "ok" });
    assert!(wrong(json!([approved, { "type": "Denied", "status": "True" }])).contains("mutually exclusive"));
    assert!(wrong(json!([approved, { "type": "Failed", "status": "False" }])).contains("Unsupported value: \"False\""));
    // `/status` neither approves nor takes approval away.
    let mut status = with(
        &old,
        &json!({ "status": { "conditions": [{ "type": "Denied", "status": "True" },
            { "type": "Failed", "status": "True" }] } }),
    );
    (kind.prepare_status)(kind, &mut status, &old);
    let types: Vec<&Value> =
        status["status"]["conditions"].as_array().expect("a list").iter().map(|c| &c["type"]).collect();
    assert_eq!(types, ["Approved", "Failed"]);
}
