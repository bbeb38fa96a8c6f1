//! Every kind from outside: a manifest in, the stored object, the complaints or the table's row out.

use mainstay_api::jiff::Timestamp;
use mainstay_api::kinds::{self, ALL, find, find_kind};
use mainstay_api::{Kind, Status, metadata};
use serde_json::{Map, Value, json};

/// `patch` laid over `base`, as a merge patch.
fn with(base: &Value, patch: Value) -> Value {
    let mut out = base.clone();
    merge(&mut out, patch);
    out
}

fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().map(|map| map.remove(&key));
        } else {
            merge(&mut target[&key], value);
        }
    }
}

/// What a create of this object would answer: `ok`, or the message of the 422.
fn create(kind: &Kind, object: &Value) -> String {
    let mut object = object.clone();
    (kind.defaults)(kind, &mut object);
    (kind.prepare_create)(kind, &mut object);
    let mut causes = Vec::new();
    metadata::validate(kind, &object, &mut causes);
    (kind.validate)(kind, &object, &mut causes);
    if causes.is_empty() { "ok".to_owned() } else { Status::invalid(kind, name(&object), &causes).message }
}

/// What an update from `old` to `new` would answer.
fn update(kind: &Kind, old: &Value, new: &Value) -> String {
    let (mut old, mut new) = (old.clone(), new.clone());
    (kind.defaults)(kind, &mut old);
    (kind.defaults)(kind, &mut new);
    (kind.prepare_update)(kind, &mut new, &old);
    let mut causes = Vec::new();
    metadata::validate(kind, &new, &mut causes);
    metadata::validate_update(&new, &old, &mut causes);
    (kind.validate)(kind, &new, &mut causes);
    (kind.validate_update)(kind, &new, &old, &mut causes);
    if causes.is_empty() { "ok".to_owned() } else { Status::invalid(kind, name(&new), &causes).message }
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or("")
}

fn pod() -> Value {
    json!({ "metadata": { "name": "p", "namespace": "default" }, "spec": {
        "containers": [{ "name": "c", "image": "i" }] } })
}

fn set() -> Value {
    json!({ "metadata": { "name": "web", "namespace": "default" }, "spec": {
        "serviceName": "web", "selector": { "matchLabels": { "app": "web" } },
        "template": { "metadata": { "labels": { "app": "web" } }, "spec": {
            "containers": [{ "name": "c", "image": "i:1" }] } },
        "volumeClaimTemplates": [{ "metadata": { "name": "data" }, "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1024Mi" } } } }],
    } })
}

fn claim() -> Value {
    json!({ "metadata": { "name": "c", "namespace": "default" }, "status": { "phase": "Bound",
        "capacity": { "storage": "1Gi" } }, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } }, "volumeName": "v",
            "storageClassName": "s" } })
}

fn service() -> Value {
    json!({ "metadata": { "name": "s", "namespace": "default" }, "spec": { "ports": [{ "port": 80 }],
        "selector": { "a": "b" } } })
}

fn attributes(class: Value) -> Value {
    json!({ "spec": { "volumeAttributesClassName": class } })
}

fn attributes_class() -> Value {
    json!({ "metadata": { "name": "x" }, "driverName": "p", "parameters": { "iops": "5" } })
}

fn attachment() -> Value {
    json!({ "metadata": { "name": "x" }, "spec": { "attacher": "p", "nodeName": "n",
        "source": { "persistentVolumeName": "v" } } })
}

fn volume() -> Value {
    json!({ "metadata": { "name": "v" }, "spec": {
        "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteOnce"], "nfs": { "server": "s", "path": "/x" } } })
}

#[test]
fn the_table_is_found_by_path_and_by_kind() {
    for kind in ALL {
        assert_eq!(find(&kind.group, &kind.version, &kind.plural).as_ref(), Some(*kind));
        assert_eq!(find_kind(&kind.group, &kind.version, &kind.kind).as_ref(), Some(*kind));
    }
    assert_eq!((find("", "v1", "things"), find("apps", "v1beta1", "statefulsets")), (None, None));
}

#[test]
fn good_manifests_are_accepted() {
    let cases = [
        (&kinds::POD, pod()),
        (&kinds::STATEFUL_SET, set()),
        (&kinds::SERVICE, service()),
        (&kinds::PERSISTENT_VOLUME, volume()),
    ];
    for (kind, object) in cases {
        assert_eq!(create(kind, &object), "ok", "{kind:?}");
        assert_eq!(update(kind, &object, &object), "ok", "{kind:?}");
    }
    assert_eq!(create(&kinds::PERSISTENT_VOLUME_CLAIM, &claim()), "ok");
}

#[test]
fn bad_pods_get_upstreams_answer() {
    let container =
        |patch: Value| json!({ "spec": { "containers": [with(&json!({ "name": "c", "image": "i" }), patch)] } });
    let table = [
        (
            json!({ "metadata": { "name": "P" } }),
            r#"metadata.name: Invalid value: "P": a lowercase RFC 1123 subdomain must consist of"#,
        ),
        (json!({ "spec": { "containers": null } }), "spec.containers: Required value"),
        (container(json!({ "image": null })), "spec.containers[0].image: Required value"),
        (
            json!({ "spec": { "restartPolicy": "No" } }),
            r#"spec.restartPolicy: Unsupported value: "No": supported values: "Always", "OnFailure", "Never""#,
        ),
        (
            json!({ "spec": { "containers": [{ "name": "c", "image": "i" }, { "name": "c", "image": "i" }] } }),
            r#"spec.containers[1].name: Duplicate value: "c""#,
        ),
        (
            container(json!({ "volumeMounts": [{ "name": "x", "mountPath": "/x" }] })),
            r#"spec.containers[0].volumeMounts[0].name: Not found: "x""#,
        ),
        (
            container(json!({ "ports": [{ "containerPort": 70000 }] })),
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            container(json!({ "resources": { "requests": { "cpu": "2" }, "limits": { "cpu": "1" } } })),
            r#"spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1"#,
        ),
        (
            container(json!({ "livenessProbe": {} })),
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
        ),
        (
            json!({ "spec": { "volumes": [{ "name": "v", "emptyDir": {}, "hostPath": { "path": "/x" } }] } }),
            "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
        ),
        (
            json!({ "spec": { "volumes": [{ "name": "v", "hostPath": { "path": "/x/../y" } }] } }),
            r#"spec.volumes[0].hostPath.path: Invalid value: "/x/../y": must not contain '..'"#,
        ),
        (
            container(json!({ "env": [{ "name": "a=b" }] })),
            r#"spec.containers[0].env[0].name: Invalid value: "a=b": a valid environment variable name"#,
        ),
    ];
    for (patch, message) in table {
        let answer = create(&kinds::POD, &with(&pod(), patch));
        assert!(answer.starts_with("Pod \"") && answer.contains(message), "{answer}\nshould say {message}");
    }
}

#[test]
fn a_running_pod_changes_only_where_it_may() {
    let old = pod();
    assert_eq!(
        update(
            &kinds::POD,
            &old,
            &with(&old, json!({ "spec": { "containers": [{ "name": "c", "image": "j:latest" }] } }))
        ),
        "ok"
    );
    let toleration = json!([{ "key": "a", "operator": "Exists" }]);
    assert_eq!(update(&kinds::POD, &old, &with(&old, json!({ "spec": { "tolerations": toleration } }))), "ok");
    let answer = update(&kinds::POD, &old, &with(&old, json!({ "spec": { "nodeName": "n" } })));
    assert!(
        answer.starts_with(
            "Pod \"p\" is invalid: spec: Forbidden: pod updates may not change fields other than \
                `spec.containers[*].image`"
        ),
        "{answer}"
    );
}

#[test]
fn stateful_sets_are_stored_and_held_as_upstream_does() {
    let kind = &kinds::STATEFUL_SET;
    let mut stored = set();
    (kind.defaults)(kind, &mut stored);
    (kind.prepare_create)(kind, &mut stored);
    let spec = &stored["spec"];
    assert_eq!(stored["metadata"]["generation"], 1);
    assert_eq!(stored["status"], json!({ "replicas": 0, "availableReplicas": 0 }));
    assert_eq!(spec["updateStrategy"], json!({ "type": "RollingUpdate", "rollingUpdate": { "partition": 0 } }));
    assert_eq!(
        spec["persistentVolumeClaimRetentionPolicy"],
        json!({ "whenDeleted": "Retain", "whenScaled": "Retain" })
    );
    assert_eq!(
        (&spec["podManagementPolicy"], &spec["replicas"], &spec["revisionHistoryLimit"]),
        (&json!("OrderedReady"), &json!(1), &json!(10))
    );
    let claim = json!({ "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": "data" },
        "status": { "phase": "Pending" },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } },
            "volumeMode": "Filesystem" } });
    assert_eq!(spec["volumeClaimTemplates"][0], claim);

    assert_eq!(update(kind, &stored, &with(&stored, json!({ "spec": { "replicas": 5 } }))), "ok");
    let table = [
        (
            json!({ "spec": { "serviceName": "other" } }),
            "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
                'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
                'minReadySeconds' are forbidden",
        ),
        (
            json!({ "spec": { "template": { "metadata": { "labels": { "app": "x" } } } } }),
            r#"spec.template.metadata.labels: Invalid value: {"app":"x"}: `selector` does not match template `labels`"#,
        ),
        (json!({ "spec": { "replicas": -1 } }), "spec.replicas: Invalid value: -1: must be greater than or equal to 0"),
        (
            json!({ "spec": { "template": { "spec": { "restartPolicy": "Never" } } } }),
            r#"spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always""#,
        ),
    ];
    for (patch, message) in table {
        let answer = update(kind, &stored, &with(&stored, patch));
        assert_eq!(answer, format!("StatefulSet.apps \"web\" is invalid: {message}"));
    }
}

#[test]
fn the_generation_counts_changes_of_the_spec_and_a_client_cannot_write_the_status() {
    let old = with(&set(), json!({ "metadata": { "generation": 3 }, "status": { "replicas": 2 } }));
    let mut same =
        with(&old, json!({ "metadata": { "generation": 9, "labels": { "a": "b" } }, "status": { "replicas": 7 } }));
    (kinds::STATEFUL_SET.prepare_update)(&kinds::STATEFUL_SET, &mut same, &old);
    assert_eq!((&same["metadata"]["generation"], &same["status"]["replicas"]), (&json!(3), &json!(2)));
    let mut changed = with(&old, json!({ "spec": { "replicas": 4 } }));
    (kinds::STATEFUL_SET.prepare_update)(&kinds::STATEFUL_SET, &mut changed, &old);
    assert_eq!(changed["metadata"]["generation"], 4);
}

#[test]
#[expect(clippy::too_many_lines, reason = "a list of cases")]
fn claims_and_volumes_keep_what_holds_data() {
    let storage = |size: &str| json!({ "spec": { "resources": { "requests": { "storage": size } } } });
    let fixed = "spec: Forbidden: spec is immutable after creation except resources.requests and \
        volumeAttributesClassName for bound claims";
    let table = [
        (&kinds::PERSISTENT_VOLUME_CLAIM, claim(), storage("2Gi"), "ok"),
        (&kinds::PERSISTENT_VOLUME_CLAIM, claim(), json!({ "spec": { "volumeName": "w" } }), fixed),
        (&kinds::PERSISTENT_VOLUME_CLAIM, claim(), json!({ "spec": { "accessModes": ["ReadWriteMany"] } }), fixed),
        (
            &kinds::PERSISTENT_VOLUME_CLAIM,
            claim(),
            storage("512Mi"),
            "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity",
        ),
        (
            &kinds::PERSISTENT_VOLUME_CLAIM,
            with(&claim(), json!({ "status": { "phase": "Pending" } })),
            storage("2Gi"),
            fixed,
        ),
        // A growth that failed may be asked for smaller, but not as small as what is there.
        (&kinds::PERSISTENT_VOLUME_CLAIM, with(&claim(), storage("4Gi")), storage("2Gi"), "ok"),
        (
            &kinds::PERSISTENT_VOLUME_CLAIM,
            with(&claim(), storage("4Gi")),
            storage("1Gi"),
            "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity",
        ),
        (&kinds::PERSISTENT_VOLUME_CLAIM, claim(), attributes(json!("gold")), "ok"),
        (&kinds::PERSISTENT_VOLUME_CLAIM, with(&claim(), attributes(json!("gold"))), attributes(json!(null)), "ok"),
        (
            &kinds::PERSISTENT_VOLUME_CLAIM,
            with(&claim(), attributes(json!("gold"))),
            attributes(json!("")),
            "spec.volumeAttributesClassName: Forbidden: update from non-nil value to an empty string is forbidden",
        ),
        (
            &kinds::PERSISTENT_VOLUME_CLAIM,
            with(
                &with(&claim(), attributes(json!("gold"))),
                json!({ "status": { "currentVolumeAttributesClassName": "gold" } }),
            ),
            attributes(json!(null)),
            "spec.volumeAttributesClassName: Forbidden: update to nil is forbidden when \
                status.currentVolumeAttributesClassName is not nil",
        ),
        (
            &kinds::PERSISTENT_VOLUME,
            with(&volume(), attributes(json!("gold"))),
            attributes(json!(null)),
            "spec.volumeAttributesClassName: Forbidden: update from non-nil value to nil is forbidden",
        ),
        (
            &kinds::VOLUME_ATTRIBUTES_CLASS,
            attributes_class(),
            json!({ "parameters": { "iops": "9" }, "driverName": "d" }),
            "[driverName: Forbidden: updates to driverName are forbidden., parameters: Forbidden: updates to \
                parameters are forbidden.]",
        ),
        (
            &kinds::VOLUME_ATTACHMENT,
            attachment(),
            json!({ "spec": { "nodeName": "m" } }),
            r#"spec: Invalid value: {"attacher":"p","nodeName":"m","source":{"persistentVolumeName":"v"}}: field is immutable"#,
        ),
        (
            &kinds::PERSISTENT_VOLUME,
            volume(),
            json!({ "spec": { "nfs": { "path": "/y" } } }),
            "spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation",
        ),
        (
            &kinds::PERSISTENT_VOLUME,
            volume(),
            json!({ "spec": { "claimRef": { "name": "c", "namespace": "d" } } }),
            "ok",
        ),
    ];
    for (kind, old, patch, message) in table {
        let answer = update(kind, &old, &with(&old, patch));
        assert!(
            answer == message || answer.ends_with(&format!("is invalid: {message}")),
            "{answer}\nshould say {message}"
        );
    }
    let local = json!({ "spec": { "nfs": null, "local": { "path": "/d" } } });
    let answer = create(&kinds::PERSISTENT_VOLUME, &with(&volume(), local));
    assert!(answer.contains("Local volume requires node affinity"), "V5: {answer}");
}

#[test]
fn services_keep_their_address() {
    let given = json!({ "spec": { "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"], "type": "NodePort",
        "ports": [{ "port": 80, "protocol": "TCP", "nodePort": 30080 }] } });
    let old = with(&service(), given);
    let mut again = with(&service(), json!({ "spec": { "type": "NodePort" } }));
    (kinds::SERVICE.defaults)(&kinds::SERVICE, &mut again);
    (kinds::SERVICE.prepare_update)(&kinds::SERVICE, &mut again, &old);
    assert_eq!(
        (&again["spec"]["clusterIP"], &again["spec"]["ports"][0]["nodePort"]),
        (&json!("10.96.0.9"), &json!(30080))
    );
    let answer = update(
        &kinds::SERVICE,
        &old,
        &with(&old, json!({ "spec": { "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"] } })),
    );
    assert_eq!(
        answer,
        r#"Service "s" is invalid: spec.clusterIPs[0]: Invalid value: ["10.96.0.7"]: may not change once set"#
    );
}

#[test]
fn a_service_gives_back_what_its_new_type_has_no_use_for() {
    let ports = json!([{ "port": 80, "protocol": "TCP", "targetPort": 80, "nodePort": 30080 }]);
    let old = with(
        &service(),
        json!({ "spec": { "clusterIP": "10.96.0.9", "type": "NodePort", "externalTrafficPolicy": "Cluster",
            "ports": ports } }),
    );
    let mut new = with(&old, json!({ "spec": { "type": "ClusterIP" } }));
    assert_eq!(update(&kinds::SERVICE, &old, &new), "ok");
    (kinds::SERVICE.prepare_update)(&kinds::SERVICE, &mut new, &old);
    assert_eq!((new["spec"]["ports"][0].get("nodePort"), new["spec"].get("externalTrafficPolicy")), (None, None));
    let outside = with(&old, json!({ "spec": { "type": "ExternalName", "externalName": "example.com" } }));
    assert_eq!(update(&kinds::SERVICE, &old, &outside), "ok");
    let balanced = json!({ "type": "LoadBalancer", "allocateLoadBalancerNodePorts": true,
        "externalTrafficPolicy": "Local", "healthCheckNodePort": 30081, "loadBalancerClass": "example.com/own" });
    let old = with(&service(), json!({ "spec": balanced }));
    let mut new = with(&old, json!({ "spec": { "type": "ClusterIP" } }));
    (kinds::SERVICE.prepare_update)(&kinds::SERVICE, &mut new, &old);
    for field in ["allocateLoadBalancerNodePorts", "externalTrafficPolicy", "healthCheckNodePort", "loadBalancerClass"]
    {
        assert_eq!(new["spec"].get(field), None, "{field}");
    }
}

#[test]
fn secrets_turn_string_data_into_data_and_immutable_ones_stay() {
    let mut secret =
        json!({ "metadata": { "name": "s", "namespace": "d" }, "stringData": { "k": "v" }, "data": { "k": "eA==" } });
    (kinds::SECRET.defaults)(&kinds::SECRET, &mut secret);
    assert_eq!(
        (&secret["type"], &secret["data"]["k"], secret.get("stringData")),
        (&json!("Opaque"), &json!("dg=="), None)
    );
    let old = with(&secret, json!({ "immutable": true }));
    let answer = update(&kinds::SECRET, &old, &with(&old, json!({ "data": { "k": "eA==" } })));
    assert_eq!(answer, r#"Secret "s" is invalid: data: Forbidden: field is immutable when `immutable` is set"#);
}

#[test]
fn admission_gives_a_pod_its_account_and_tolerations_once() {
    let mut new = pod();
    (kinds::POD.defaults)(&kinds::POD, &mut new);
    kinds::pod::admit(&mut new);
    let spec = &new["spec"];
    assert_eq!((&spec["serviceAccountName"], &spec["serviceAccount"]), (&json!("default"), &json!("default")));
    assert_eq!(
        spec["tolerations"][0],
        json!({ "effect": "NoExecute", "key": "node.kubernetes.io/not-ready", "operator": "Exists",
            "tolerationSeconds": 300 })
    );
    assert_eq!(spec["tolerations"].as_array().map(Vec::len), Some(2));
    let once = new.clone();
    kinds::pod::admit(&mut new);
    assert_eq!(new, once);
}

fn row(kind: &Kind, object: &Value) -> String {
    let now: Timestamp = "2026-11-21T10:00:00Z".parse().unwrap_or(Timestamp::UNIX_EPOCH);
    let cells = (kind.row)(kind, object, now);
    assert_eq!(cells.len(), kind.columns.len(), "{kind:?}: one cell per column");
    cells.iter().map(|cell| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned)).collect::<Vec<_>>().join("|")
}

#[test]
fn the_status_of_a_pod_is_kubectls() {
    let base = json!({ "metadata": { "name": "p", "creationTimestamp": "2026-11-21T09:54:28Z" },
        "spec": { "containers": [{ "name": "c" }], "nodeName": "n", "initContainers": [{ "name": "i" }] },
            "status": { "phase": "Running", "podIP": "10.0.0.2" } });
    let state = |state: Value| {
        json!({ "status": { "containerStatuses": [{ "name": "c",
        "ready": state.get("running").is_some(), "restartCount": 0, "state": state }] } })
    };
    let init = |state: Value| {
        json!({ "status": { "phase": "Pending", "initContainerStatuses": [{ "name": "i",
        "restartCount": 0, "state": state }] } })
    };
    let restarted = json!({ "status": { "containerStatuses": [{ "name": "c", "ready": true, "restartCount": 3,
        "state": { "running": {} },
        "lastState": { "terminated": { "finishedAt": "2026-11-21T09:55:00Z" } } }] } });
    let table = [
        (json!({ "status": { "phase": "Pending" } }), "0/1|Pending|0"),
        (state(json!({ "waiting": { "reason": "ContainerCreating" } })), "0/1|ContainerCreating|0"),
        (state(json!({ "running": {} })), "1/1|Running|0"),
        (state(json!({ "waiting": { "reason": "CrashLoopBackOff" } })), "0/1|CrashLoopBackOff|0"),
        (state(json!({ "terminated": { "reason": "Completed", "exitCode": 0 } })), "0/1|Completed|0"),
        (state(json!({ "terminated": { "reason": "Error", "exitCode": 1 } })), "0/1|Error|0"),
        (state(json!({ "terminated": { "exitCode": 137 } })), "0/1|ExitCode:137|0"),
        (restarted, "1/1|Running|3 (5m ago)"),
        (init(json!({ "running": {} })), "0/1|Init:0/1|0"),
        (init(json!({ "waiting": { "reason": "CrashLoopBackOff" } })), "0/1|Init:CrashLoopBackOff|0"),
        (init(json!({ "terminated": { "reason": "Error", "exitCode": 1 } })), "0/1|Init:Error|0"),
        (json!({ "metadata": { "deletionTimestamp": "2026-11-21T10:00:00Z" } }), "0/1|Terminating|0"),
        (json!({ "status": { "phase": "Failed", "reason": "Evicted" } }), "0/1|Evicted|0"),
    ];
    for (patch, cells) in table {
        assert_eq!(row(&kinds::POD, &with(&base, patch)), format!("p|{cells}|5m32s|10.0.0.2|n|<none>|<none>"));
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a list of cases")]
fn rows_are_upstreams() {
    let meta = json!({ "name": "x", "creationTimestamp": "2026-11-21T09:00:00Z" });
    let table: [(&Kind, Value, &str); 16] = [
        (
            &kinds::STATEFUL_SET,
            with(&set(), json!({ "metadata": meta, "spec": { "replicas": 3 }, "status": { "readyReplicas": 2 } })),
            "x|2/3|60m|c|i:1",
        ),
        (
            &kinds::REPLICA_SET,
            with(&set(), json!({ "metadata": meta, "spec": { "replicas": 3 } })),
            "x|3|0|0|60m|c|i:1|app=web",
        ),
        (
            &kinds::SERVICE,
            json!({ "metadata": meta, "spec": { "type": "NodePort", "clusterIP": "1.2.3.4",
                "ports": [{ "port": 80, "nodePort": 30000, "protocol": "TCP" }] } }),
            "x|NodePort|1.2.3.4|<none>|80:30000/TCP|60m|<none>",
        ),
        (
            &kinds::PERSISTENT_VOLUME_CLAIM,
            with(&claim(), json!({ "metadata": meta, "status": { "accessModes": ["ReadWriteOnce"] } })),
            "x|Bound|v|1Gi|RWO|s|<unset>|60m|<unset>",
        ),
        (
            &kinds::PERSISTENT_VOLUME,
            with(
                &volume(),
                json!({ "metadata": meta, "spec": { "claimRef": { "namespace": "d", "name": "c" },
                    "persistentVolumeReclaimPolicy": "Retain" }, "status": { "phase": "Bound" } }),
            ),
            "x|1Gi|RWO|Retain|Bound|d/c||<unset>||60m|<unset>",
        ),
        (
            &kinds::STORAGE_CLASS,
            json!({ "metadata": with(&meta, json!({
                "annotations": { "storageclass.kubernetes.io/is-default-class": "true" } })), "provisioner": "p" }),
            "x (default)|p|Delete|Immediate|false|60m",
        ),
        (
            &kinds::NODE,
            json!({ "metadata": with(&meta, json!({ "labels": { "node-role.kubernetes.io/control-plane": "" } })),
                "spec": { "unschedulable": true },
                "status": { "conditions": [{ "type": "Ready", "status": "True" }],
                    "nodeInfo": { "kubeletVersion": "v1.37.0" } } }),
            "x|Ready,SchedulingDisabled|control-plane|60m|v1.37.0|<none>|<none>|<unknown>|<unknown>|<unknown>",
        ),
        (
            &kinds::ENDPOINTS,
            json!({ "metadata": meta, "subsets": [{ "addresses": [{ "ip": "1.1.1.1" }, { "ip": "1.1.1.2" }],
                "ports": [{ "port": 1 }, { "port": 2 }] }] }),
            "x|1.1.1.1:1,1.1.1.2:1,1.1.1.1:2 + 1 more...|60m",
        ),
        (
            &kinds::EVENT,
            json!({ "metadata": meta, "type": "Normal", "reason": "R", "message": "m\n",
                "involvedObject": { "kind": "Pod", "name": "p" },
                "source": { "component": "k", "host": "h" }, "firstTimestamp": "2026-11-21T09:00:00Z",
                    "lastTimestamp": "2026-11-21T09:59:00Z", "count": 2 }),
            "60s|Normal|R|pod/p||k, h|m|60m|2|x",
        ),
        (
            &kinds::CONTROLLER_REVISION,
            json!({ "metadata": with(&meta, json!({ "ownerReferences": [{ "apiVersion": "apps/v1",
                "kind": "StatefulSet", "name": "web", "controller": true }] })), "revision": 2 }),
            "x|statefulset.apps/web|2|60m",
        ),
        (&kinds::VOLUME_ATTRIBUTES_CLASS, with(&attributes_class(), json!({ "metadata": meta })), "x|p|60m"),
        (
            &kinds::CSI_DRIVER,
            json!({ "metadata": meta, "spec": { "attachRequired": false } }),
            "x|false|false|false|<unset>|false|<none>|60m",
        ),
        (
            &kinds::CSI_NODE,
            json!({ "metadata": meta, "spec": { "drivers": [{ "name": "d", "nodeID": "n" }] } }),
            "x|1|60m",
        ),
        (
            &kinds::CSI_STORAGE_CAPACITY,
            json!({ "metadata": meta, "storageClassName": "s", "capacity": "1Gi" }),
            "x|s|1Gi",
        ),
        (&kinds::VOLUME_ATTACHMENT, with(&attachment(), json!({ "metadata": meta })), "x|p|v|n|false|60m"),
        (&kinds::CONFIG_MAP, json!({ "metadata": meta, "data": { "a": "b" }, "binaryData": { "c": "" } }), "x|2|60m"),
    ];
    for (kind, object, cells) in table {
        assert_eq!(row(kind, &object), cells, "{kind:?}");
    }
}

#[test]
fn bad_storage_kinds_get_upstreams_answer() {
    let capacity = json!({ "metadata": { "name": "c", "namespace": "d" }, "storageClassName": "s" });
    let node = |drivers: Value| json!({ "metadata": { "name": "n" }, "spec": { "drivers": drivers } });
    let table = [
        (&kinds::VOLUME_ATTRIBUTES_CLASS, attributes_class(), "ok"),
        (
            &kinds::VOLUME_ATTRIBUTES_CLASS,
            json!({ "metadata": { "name": "x" } }),
            "[driverName: Required value, parameters: Required value: must contain at least one key/value pair]",
        ),
        (&kinds::CSI_DRIVER, json!({ "metadata": { "name": "d" } }), "ok"),
        (
            &kinds::CSI_DRIVER,
            json!({ "metadata": { "name": "d" }, "spec": { "fsGroupPolicy": "Maybe" } }),
            r#"spec.fsGroupPolicy: Unsupported value: "Maybe""#,
        ),
        (&kinds::CSI_NODE, node(json!([{ "name": "d", "nodeID": "n" }])), "ok"),
        (
            &kinds::CSI_NODE,
            node(json!([{ "name": "d", "nodeID": "n" }, { "name": "d" }])),
            r#"[spec.drivers[1].name: Duplicate value: "d", spec.drivers[1].nodeID: Required value]"#,
        ),
        (&kinds::CSI_STORAGE_CAPACITY, with(&capacity, json!({ "capacity": "1Gi" })), "ok"),
        (
            &kinds::CSI_STORAGE_CAPACITY,
            with(&capacity, json!({ "capacity": "-1" })),
            r#"capacity: Invalid value: "-1": must be greater than or equal to 0"#,
        ),
        (&kinds::VOLUME_ATTACHMENT, attachment(), "ok"),
        (
            &kinds::VOLUME_ATTACHMENT,
            with(&attachment(), json!({ "spec": { "source": null } })),
            "spec.source: Required value",
        ),
    ];
    for (kind, object, expected) in table {
        let answer = create(kind, &object);
        assert!(answer.contains(expected), "{answer}");
    }
}

#[test]
fn every_function_of_every_kind_takes_any_json() {
    // X4: nothing that a client sends panics the server.
    let odd = [json!(null), json!([]), json!("x"), json!(1), json!({})];
    let mut objects: Vec<Value> = odd.to_vec();
    for inside in &odd {
        for field in [
            "metadata",
            "spec",
            "status",
            "data",
            "subsets",
            "ports",
            "endpoints",
            "involvedObject",
            "stringData",
            "series",
        ] {
            objects.push(json!({ field: inside }));
            objects.push(json!({ field: { "template": inside, "containers": [inside], "ports": [inside],
                "volumes": [inside, { "name": inside }],
                "selector": inside, "resources": inside, "labels": inside, "annotations": inside,
                    "ownerReferences": [inside], "tolerations": [inside],
                "strategy": inside, "updateStrategy": inside, "volumeClaimTemplates": [inside], "finalizers": inside,
                    "capacity": inside } }));
        }
    }
    for kind in ALL {
        for object in &objects {
            let mut changed = object.clone();
            (kind.defaults)(kind, &mut changed);
            (kind.prepare_create)(kind, &mut changed);
            (kind.prepare_update)(kind, &mut changed, object);
            let mut causes = Vec::new();
            metadata::validate(kind, object, &mut causes);
            metadata::validate_update(object, &changed, &mut causes);
            (kind.validate)(kind, object, &mut causes);
            (kind.validate_update)(kind, object, &changed, &mut causes);
            let _ = (kind.fields)(kind, object);
            row(kind, object);
        }
    }
}

#[test]
fn snapshots_are_checked_and_shown_as_upstreams_custom_resources() {
    let snapshot = json!({ "metadata": { "name": "s", "namespace": "default" },
        "spec": { "source": { "persistentVolumeClaimName": "c" } } });
    let content = json!({ "metadata": { "name": "v" }, "spec": { "deletionPolicy": "Delete", "driver": "d",
        "source": { "volumeHandle": "pv" }, "volumeSnapshotRef": { "name": "s", "namespace": "default" } } });
    let class = json!({ "metadata": { "name": "k" }, "driver": "d", "deletionPolicy": "Keep" });
    let group = json!({ "metadata": { "name": "g", "namespace": "default" },
        "spec": { "source": { "selector": { "matchLabels": { "a": "b" } } } } });
    let both = json!({ "spec": { "source": { "volumeSnapshotContentName": "v" } } });
    let table = [
        (&kinds::VOLUME_SNAPSHOT, snapshot.clone(), "ok"),
        (
            &kinds::VOLUME_SNAPSHOT,
            with(&snapshot, both),
            r#"spec.source: Invalid value: "object": exactly one of volumeSnapshotContentName and persistentVolumeClaimName must be set"#,
        ),
        (
            &kinds::VOLUME_SNAPSHOT,
            with(&snapshot, json!({ "spec": { "volumeSnapshotClassName": "" } })),
            "volumeSnapshotClassName must not be the empty string when set",
        ),
        (&kinds::VOLUME_SNAPSHOT_CONTENT, content.clone(), "ok"),
        (
            &kinds::VOLUME_SNAPSHOT_CONTENT,
            with(&content, json!({ "spec": { "volumeSnapshotRef": { "namespace": null } } })),
            "both spec.volumeSnapshotRef.name and spec.volumeSnapshotRef.namespace must be set",
        ),
        (
            &kinds::VOLUME_SNAPSHOT_CLASS,
            class,
            r#"deletionPolicy: Unsupported value: "Keep": supported values: "Delete", "Retain""#,
        ),
        (&kinds::VOLUME_GROUP_SNAPSHOT, group, "ok"),
    ];
    for (kind, object, answer) in table {
        let said = create(kind, &object);
        assert!(said.contains(answer), "{kind:?}: {said}");
    }
    let moved = with(&snapshot, json!({ "spec": { "source": { "persistentVolumeClaimName": "other" } } }));
    assert!(update(&kinds::VOLUME_SNAPSHOT, &snapshot, &moved).contains("persistentVolumeClaimName is immutable"));
    assert_eq!(update(&kinds::VOLUME_SNAPSHOT_CONTENT, &content, &content), "ok");
    let done = with(
        &snapshot,
        json!({ "status": { "readyToUse": true, "restoreSize": "1Gi", "boundVolumeSnapshotContentName": "v" } }),
    );
    let shown = row(&kinds::VOLUME_SNAPSHOT, &done);
    assert_eq!(shown, "s|true|c|null|1Gi|null|v|null|<unknown>");
}

#[test]
fn what_a_claim_starts_with_is_written_in_both_fields() {
    let kind = &kinds::PERSISTENT_VOLUME_CLAIM;
    let stored = |source: Value| {
        let mut object = with(&claim(), json!({ "spec": source }));
        (kind.prepare_create)(kind, &mut object);
        (object["spec"]["dataSource"].clone(), object["spec"]["dataSourceRef"].clone())
    };
    let snapshot = json!({ "apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s" });
    let both = (snapshot.clone(), snapshot.clone());
    assert_eq!(stored(json!({ "dataSource": snapshot })), both);
    assert_eq!(stored(json!({ "dataSourceRef": snapshot })), both);
    let elsewhere = with(&snapshot, json!({ "namespace": "other" }));
    assert_eq!(stored(json!({ "dataSourceRef": elsewhere })), (Value::Null, elsewhere));
    let book = json!({ "apiGroup": "example.com", "kind": "Book", "name": "b" });
    assert_eq!(
        stored(json!({ "dataSource": book })),
        (book.clone(), book.clone()),
        "a claim that asked for data does not start empty"
    );
    let asked = |source: Value| create(kind, &with(&claim(), json!({ "spec": source })));
    assert!(
        asked(json!({ "dataSource": { "kind": "Book", "name": "b" } }))
            .contains("when referencing the default apiGroup")
    );
    assert!(
        asked(json!({ "dataSource": { "kind": "PersistentVolumeClaim" } }))
            .contains("spec.dataSource.name: Required value")
    );
    assert!(asked(json!({ "dataSource": snapshot, "dataSourceRef": book })).contains("must match dataSourceRef"));
}

#[test]
fn an_empty_text_in_a_field_with_a_default_gets_the_default() {
    let mut set = json!({ "metadata": { "name": "a", "namespace": "b" }, "spec": {
        "podManagementPolicy": "", "updateStrategy": { "type": "" }, "selector": { "matchLabels": { "a": "b" } },
        "template": { "metadata": { "labels": { "a": "b" } }, "spec": {
            "restartPolicy": "", "dnsPolicy": "",
            "containers": [{ "name": "c", "image": "i", "imagePullPolicy": "",
                "ports": [{ "containerPort": 80, "protocol": "" }] }] } } } });
    (kinds::STATEFUL_SET.defaults)(&kinds::STATEFUL_SET, &mut set);
    let at = |path: &str| set.pointer(path).and_then(Value::as_str).unwrap_or("").to_owned();
    let wanted = [
        ("/spec/podManagementPolicy", "OrderedReady"),
        ("/spec/updateStrategy/type", "RollingUpdate"),
        ("/spec/template/spec/restartPolicy", "Always"),
        ("/spec/template/spec/dnsPolicy", "ClusterFirst"),
        ("/spec/template/spec/containers/0/imagePullPolicy", "Always"),
        ("/spec/template/spec/containers/0/ports/0/protocol", "TCP"),
    ];
    for (path, value) in wanted {
        assert_eq!(at(path), value, "{path}");
    }
    let mut service =
        json!({ "spec": { "type": "", "sessionAffinity": "", "ports": [{ "port": 1, "protocol": "" }] } });
    (kinds::SERVICE.defaults)(&kinds::SERVICE, &mut service);
    assert_eq!(service["spec"]["type"], "ClusterIP");
    assert_eq!(service["spec"]["sessionAffinity"], "None");
    let mut class = json!({ "provisioner": "x", "volumeBindingMode": "" });
    (kinds::STORAGE_CLASS.defaults)(&kinds::STORAGE_CLASS, &mut class);
    assert_eq!(class["volumeBindingMode"], "Immediate");
}

#[test]
fn x4_a_pod_with_very_many_wrong_containers_is_refused_at_once() {
    let containers = vec![json!({ "image": "" }); 100_000];
    let mut causes = Vec::new();
    (kinds::POD.validate)(&kinds::POD, &json!({ "metadata": {}, "spec": { "containers": containers } }), &mut causes);
    assert!((1..1000).contains(&causes.len()), "{}", causes.len());
}

/// Conformance, Services: session affinity can be switched off by its field alone.
#[test]
fn conformance_no_affinity_has_no_configuration() {
    let mut service = service();
    service["spec"]["sessionAffinity"] = json!("ClientIP");
    (kinds::SERVICE.defaults)(&kinds::SERVICE, &mut service);
    assert_eq!(service["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 10_800);
    service["spec"]["sessionAffinity"] = json!("None");
    (kinds::SERVICE.defaults)(&kinds::SERVICE, &mut service);
    assert!(service["spec"].get("sessionAffinityConfig").is_none());
}
