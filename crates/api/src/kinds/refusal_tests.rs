//! What upstream's validation refuses, kind by kind, with its fields.

use serde_json::{Value, json};

use super::*;
use crate::schema::{self, FieldValidation};

/// The fields that are wrong in a new object of these fields, each with its message.
fn refused(kind: &Kind, object: &Value) -> Vec<String> {
    let mut object = object.clone();
    if kind.namespaced {
        object["metadata"]["namespace"] = json!("default");
    }
    if let Err(status) = schema::decode(kind, &mut object, FieldValidation::Strict) {
        return vec![status.message];
    }
    (kind.defaults)(kind, &mut object);
    let mut causes = Vec::new();
    crate::metadata::validate(kind, &object, &mut causes);
    (kind.validate)(kind, &object, &mut causes);
    causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
}

/// A pod with these fields of its spec, and these of its container.
fn pod(spec: Value, container: Value) -> Value {
    let mut pod = json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "c", "image": "i" }],
        "volumes": [{ "name": "v", "emptyDir": {} }] } });
    for (at, more) in [("/spec/containers/0", container), ("/spec", spec)] {
        let into = pod.pointer_mut(at).and_then(Value::as_object_mut).expect("an object");
        into.extend(more.as_object().expect("fields").clone());
    }
    pod
}

/// Each is refused for one field, in these words; what follows is taken.
fn judge(kind: &Kind, bad: &[(Value, &str)], good: &[Value]) {
    for (object, wanted) in bad {
        let seen = refused(kind, object);
        assert!(matches!(seen.as_slice(), [one] if one.contains(wanted)), "{object}: {seen:?}\nwanted {wanted}");
    }
    for object in good {
        assert_eq!(refused(kind, object), [""; 0], "{object}");
    }
}

#[test]
fn conformance_a_null_item_is_an_empty_one_and_judged_as_that() {
    let of = |field: &str| pod(json!({ field: [null] }), json!({}));
    let container = |field: &str| pod(json!({}), json!({ field: [null] }));
    for (object, wanted) in [
        (of("containers"), "spec.containers[0].name: Required value"),
        (of("initContainers"), "spec.initContainers[0].name: Required value"),
        (of("volumes"), "spec.volumes[0].name: Required value"),
        (of("tolerations"), "spec.tolerations[0].operator: Invalid value"),
        (of("hostAliases"), "spec.hostAliases[0].ip: Invalid value"),
        (of("readinessGates"), "spec.readinessGates[0].conditionType: Invalid value"),
        (of("schedulingGates"), "spec.schedulingGates[0]: Invalid value"),
        (of("resourceClaims"), "spec.resourceClaims[0].name: Required value"),
        (of("topologySpreadConstraints"), "spec.topologySpreadConstraints[0].topologyKey: Required value"),
        (container("env"), "spec.containers[0].env[0].name: Required value"),
        (container("envFrom"), "spec.containers[0].envFrom[0]: Invalid value"),
        (container("ports"), "spec.containers[0].ports[0].containerPort: Required value"),
        (container("volumeMounts"), "spec.containers[0].volumeMounts[0].name: Required value"),
        (container("volumeDevices"), "spec.containers[0].volumeDevices[0].name: Required value"),
        (container("resizePolicy"), "spec.containers[0].resizePolicy[0].resourceName: Required value"),
    ] {
        let seen = refused(&POD, &object);
        assert!(seen.iter().any(|one| one.starts_with(wanted)), "{wanted}: {seen:?}");
    }
    let mut words = pod(json!({}), json!({ "args": [null, "b"] }));
    schema::decode(&POD, &mut words, FieldValidation::Strict).expect("a string that is null is an empty one");
    assert_eq!(words["spec"]["containers"][0]["args"], json!(["", "b"]));
    let meta = |field: &str| json!({ "metadata": { "name": "p", field: [null] } });
    for (kind, object, wanted) in [
        (&CONFIG_MAP, meta("ownerReferences"), "metadata.ownerReferences[0].apiVersion: "),
        (&CONFIG_MAP, meta("finalizers"), "metadata.finalizers[0]: Invalid value"),
        (
            &SERVICE,
            json!({ "metadata": { "name": "s" }, "spec": { "ports": [{ "port": 80 }], "ipFamilies": [null] } }),
            "spec.ipFamilies[0]: Unsupported value: \"\"",
        ),
        (&SERVICE, json!({ "metadata": { "name": "s" }, "spec": { "ports": [null] } }), "spec.ports[0].port: Invalid"),
        (
            &PERSISTENT_VOLUME_CLAIM,
            json!({ "metadata": { "name": "c" }, "spec": { "accessModes": [null],
                "resources": { "requests": { "storage": "1Gi" } } } }),
            "spec.accessModes: Unsupported value: \"\"",
        ),
        (
            &ENDPOINT_SLICE,
            json!({ "metadata": { "name": "c" }, "addressType": "IPv4", "endpoints": [null] }),
            "endpoints[0].addresses: Required value",
        ),
        (
            &ROLE_BINDING,
            json!({ "metadata": { "name": "c" }, "subjects": [null], "roleRef": { "kind": "Role", "name": "r",
                "apiGroup": "rbac.authorization.k8s.io" } }),
            "subjects[0].",
        ),
        (&ROLE, json!({ "metadata": { "name": "c" }, "rules": [null] }), "rules[0].verbs: Required value"),
        (
            &NETWORK_POLICY,
            json!({ "metadata": { "name": "c" }, "spec": { "podSelector": {}, "policyTypes": [null] } }),
            "spec.policyTypes[0]: Unsupported value",
        ),
    ] {
        let seen = refused(kind, &object);
        assert!(seen.iter().any(|one| one.starts_with(wanted)), "{wanted}: {seen:?}");
    }
}

#[test]
fn conformance_signals_that_stop_a_container_are_those_of_its_system() {
    let with = |os: Value, signal: &str| pod(json!({ "os": os }), json!({ "lifecycle": { "stopSignal": signal } }));
    let (linux, windows) = (json!({ "name": "linux" }), json!({ "name": "windows" }));
    let bad = [
        (with(Value::Null, "SIGUSR1"), "may not be set for containers with empty `spec.os.name`"),
        (
            with(linux.clone(), "SIGNOT"),
            "lifecycle.stopSignal: Unsupported value: \"SIGNOT\": supported values: \"SIGAB",
        ),
        (with(linux.clone(), "15"), "Unsupported value"),
        (with(linux.clone(), "SIGRTMIN+16"), "Unsupported value"),
        (with(windows.clone(), "SIGUSR1"), "supported values: \"SIGKILL\", \"SIGTERM\""),
    ];
    let good = [with(linux.clone(), "SIGUSR1"), with(linux, "SIGRTMAX-14"), with(windows, "SIGTERM")];
    judge(&POD, &bad, &good);
}

#[test]
fn conformance_what_a_container_names_is_named_rightly() {
    let file = |path: &str, key: &str, volume: &str| {
        let reference = json!({ "path": path, "key": key, "volumeName": volume });
        pod(json!({}), json!({ "env": [{ "name": "A", "valueFrom": { "fileKeyRef": reference } }] }))
    };
    let header = |name: &str| {
        let get = json!({ "port": 80, "httpHeaders": [{ "name": name, "value": "x" }] });
        pod(json!({}), json!({ "readinessProbe": { "httpGet": get } }))
    };
    let sleep =
        |seconds: i64| pod(json!({}), json!({ "lifecycle": { "preStop": { "sleep": { "seconds": seconds } } } }));
    let port = |number: i64| {
        pod(json!({ "hostNetwork": true }), json!({ "ports": [{ "containerPort": 80, "hostPort": number }] }))
    };
    let bad = [
        (file("a/../b", "K", "v"), "fileKeyRef.path: Invalid value: \"a/../b\": must not contain '..'"),
        (file("", "K", "v"), "fileKeyRef.path: Required value"),
        (file("a", "", "v"), "fileKeyRef.key: Required value"),
        (file("a", "K", "V_"), "fileKeyRef.volumeName: Invalid value"),
        (header("X_Y"), "httpHeaders: Invalid value: \"X_Y\": a valid HTTP header"),
        (sleep(31), "preStop.sleep: Invalid value: 31: must be non-negative and less than terminationGracePeriodS"),
        (sleep(-1), "preStop.sleep: Invalid value: -1"),
        (port(81), "hostPort: Invalid value: 81: must match `containerPort` when `hostNetwork` is true"),
    ];
    judge(&POD, &bad, &[file("a/b", "K.x", "v"), header("X-Y"), sleep(0), sleep(30), port(80)]);
}

#[test]
fn conformance_claims_for_devices_name_one_source() {
    let claims = |claims: Value| pod(json!({ "resourceClaims": claims }), json!({}));
    let of = |name: &str| {
        let known = json!({ "resourceClaims": [{ "name": "a", "resourceClaimName": "x" }] });
        pod(known, json!({ "resources": { "claims": [{ "name": name }] } }))
    };
    let bad = [
        (claims(json!([{ "name": "a" }])), "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"),
        (claims(json!([{ "resourceClaimName": "x" }])), "resourceClaims[0].name: Required value"),
        (
            claims(json!([{ "name": "a", "resourceClaimName": "x", "resourceClaimTemplateName": "x" }])),
            "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
        ),
        (
            claims(json!([{ "name": "a", "resourceClaimName": "x" }, { "name": "a", "resourceClaimName": "y" }])),
            "resourceClaims[1].name: Duplicate value",
        ),
        (claims(json!([{ "name": "a", "resourceClaimName": "X" }])), "resourceClaimName: Invalid value"),
        (of("b"), "resources.claims[0].name: Not found: \"b\""),
    ];
    judge(&POD, &bad, &[of("a")]);
}

#[test]
fn conformance_projected_sources_are_whole() {
    let source =
        |source: Value| pod(json!({ "volumes": [{ "name": "v", "projected": { "sources": [source] } }] }), json!({}));
    let bundle = |bundle: Value| source(json!({ "clusterTrustBundle": bundle }));
    let certificate = |certificate: Value| source(json!({ "podCertificate": certificate }));
    let bad = [
        (bundle(json!({ "path": "p" })), "clusterTrustBundle: Required value: either name or signerName must be"),
        (
            bundle(json!({ "path": "p", "name": "a", "signerName": "a.b/c" })),
            "only one of name and signerName may be used",
        ),
        (bundle(json!({ "path": "p", "name": "A_" })), "not a valid clustertrustbundlename"),
        (bundle(json!({ "path": "p", "signerName": "c" })), "clusterTrustBundle.signerName: Invalid value"),
        (bundle(json!({ "name": "a" })), "clusterTrustBundle.path: Required value"),
        (
            bundle(json!({ "path": "p", "name": "a", "labelSelector": {} })),
            "labelSelector must be unset if name is specified",
        ),
        (
            certificate(json!({ "signerName": "a.b/c", "keyType": "DSA", "keyPath": "k" })),
            "podCertificate.keyType: Unsupported value",
        ),
        (certificate(json!({ "signerName": "a.b/c", "keyType": "ED25519" })), "specify at least one of"),
        (
            source(json!({ "secret": { "name": "a" }, "configMap": { "name": "b" } })),
            "may not specify more than 1 volume type per source",
        ),
        (
            source(json!({ "serviceAccountToken": { "path": "t", "expirationSeconds": 599 } })),
            "may not specify a duration less than 10 minutes",
        ),
    ];
    let good = [
        bundle(json!({ "path": "p", "name": "example.com:signer:a" })),
        bundle(json!({ "path": "p", "signerName": "a.b/c", "labelSelector": {} })),
        certificate(json!({ "signerName": "a.b/c", "keyType": "ED25519", "credentialBundlePath": "k" })),
        source(json!({ "serviceAccountToken": { "path": "t", "expirationSeconds": 600 } })),
    ];
    judge(&POD, &bad, &good);
}

#[test]
fn conformance_options_of_windows_have_their_forms() {
    let options = |options: Value| {
        pod(json!({ "os": { "name": "windows" } }), json!({ "securityContext": { "windowsOptions": options } }))
    };
    let user = |name: &str| options(json!({ "runAsUserName": name }));
    let linux = json!({ "os": { "name": "linux" }, "securityContext": { "windowsOptions": { "hostProcess": false } } });
    let bad = [
        (options(json!({ "gmsaCredentialSpecName": "A_b" })), "gmsaCredentialSpecName: Invalid value: \"A_b\""),
        (options(json!({ "gmsaCredentialSpecName": "" })), "gmsaCredentialSpecName: Invalid value: \"\""),
        (options(json!({ "gmsaCredentialSpec": "" })), "gmsaCredentialSpec cannot be an empty string"),
        (
            options(json!({ "gmsaCredentialSpec": "x".repeat((64 << 10) + 1) })),
            "gmsaCredentialSpec size must be under 64 KiB",
        ),
        (user(""), "runAsUserName cannot be an empty string"),
        (user("a\\b\\c"), "runAsUserName cannot contain more than one backslash"),
        (user("a\nb"), "runAsUserName cannot contain control characters"),
        (user("d\\"), "runAsUserName's User cannot be empty"),
        (user(". ."), "runAsUserName's User cannot contain only periods or spaces"),
        (user("a@b"), "runAsUserName's User cannot contain the following characters"),
        (user(".d\\u"), "runAsUserName's Domain doesn't match the NetBios nor the DNS format"),
        (pod(linux, json!({})), "windows options cannot be set for a linux pod"),
    ];
    let good = [
        options(json!({ "gmsaCredentialSpecName": "webapp1", "gmsaCredentialSpec": "{}" })),
        user("ContainerUser"),
        user("NT AUTHORITY\\NETWORK SERVICE"),
        user("very.long.domain.example.com\\u"),
    ];
    judge(&POD, &bad, &good);
}

#[test]
fn conformance_a_service_says_only_what_goes_with_its_type() {
    let service = |type_: &str, more: Value| {
        let mut service = json!({ "metadata": { "name": "s" }, "spec": { "type": type_, "ports": [{ "port": 80 }] } });
        let spec = service["spec"].as_object_mut().expect("a spec");
        spec.extend(more.as_object().expect("fields").clone());
        service
    };
    let alone = "may only be used when `type` is 'LoadBalancer'";
    let affinity = |seconds: i64| {
        let config = json!({ "clientIP": { "timeoutSeconds": seconds } });
        service("ClusterIP", json!({ "sessionAffinity": "ClientIP", "sessionAffinityConfig": config }))
    };
    let port = |more: Value| {
        let mut port = json!({ "port": 80 });
        port.as_object_mut().expect("a port").extend(more.as_object().expect("fields").clone());
        service("NodePort", json!({ "ports": [port] }))
    };
    let two = json!({ "ports": [{ "name": "a", "port": 1, "nodePort": 30001 },
        { "name": "b", "port": 2, "nodePort": 30001 }] });
    let bad = [
        (service("ClusterIP", json!({ "loadBalancerClass": "a.b/c" })), alone),
        (service("NodePort", json!({ "loadBalancerClass": "a.b/c" })), alone),
        (service("LoadBalancer", json!({ "loadBalancerClass": "a b" })), "spec.loadBalancerClass: Invalid value"),
        (service("NodePort", json!({ "allocateLoadBalancerNodePorts": true })), alone),
        (service("NodePort", json!({ "loadBalancerSourceRanges": ["10.0.0.0/8"] })), alone),
        (
            service("ClusterIP", json!({ "externalTrafficPolicy": "Local" })),
            "may only be set for externally-accessible services",
        ),
        (service("NodePort", json!({ "healthCheckNodePort": 30000 })), "may only be set when `type` is 'LoadBalancer'"),
        (affinity(0), "must be greater than 0 and less than 86400"),
        (affinity(86_401), "must be greater than 0 and less than 86400"),
        (port(json!({ "appProtocol": "a b" })), "spec.ports[0].appProtocol: Invalid value"),
        (service("NodePort", two), "spec.ports[1].nodePort: Duplicate value: 30001"),
        (service("ClusterIP", json!({ "ipFamilies": ["IPv4", "IPv4"] })), "spec.ipFamilies[1]: Duplicate value"),
    ];
    let good = [
        service("LoadBalancer", json!({ "loadBalancerClass": "a.b/c", "loadBalancerSourceRanges": ["10.0.0.0/8"] })),
        service("ClusterIP", json!({ "externalTrafficPolicy": "Local", "externalIPs": ["192.0.2.1"] })),
        service("ClusterIP", json!({ "allocateLoadBalancerNodePorts": null })),
        affinity(86_400),
        port(json!({ "appProtocol": "kubernetes.io/h2c" })),
    ];
    judge(&SERVICE, &bad, &good);
    let mut causes = Vec::new();
    let [old, new] = ["a.b/c", "a.b/d"].map(|class| service("LoadBalancer", json!({ "loadBalancerClass": class })));
    (SERVICE.validate_update)(&SERVICE, &new, &old, &mut causes);
    assert!(matches!(causes.as_slice(), [one] if one.message.ends_with("may not change once set")), "{causes:?}");
}

#[test]
fn conformance_a_class_names_its_topologies_once() {
    let class = |topologies: Value| json!({ "metadata": { "name": "c" }, "provisioner": "a.b/c", "allowedTopologies": topologies });
    let term = |key: &str, values: Value| json!({ "matchLabelExpressions": [{ "key": key, "values": values }] });
    let twice = json!({ "matchLabelExpressions": [{ "key": "z", "values": ["a"] }, { "key": "z", "values": ["b"] }] });
    let at = "allowedTopologies.matchLabelExpressions";
    let bad = [
        (class(json!([term("z", json!([]))])), format!("{at}[0].values: Required value")),
        (class(json!([term("z", json!(["a", "a"]))])), format!("{at}[0].values[1]: Duplicate value: \"a\"")),
        (class(json!([term("z z", json!(["a"]))])), format!("{at}[0].key: Invalid value")),
        (class(json!([twice])), format!("{at}[1].key: Duplicate value: \"z\"")),
        (
            class(json!([term("z", json!(["a", "b"])), term("z", json!(["b", "a"]))])),
            "allowedTopologies[1].matchLabelExpressions: Duplicate value".to_owned(),
        ),
    ];
    let bad: Vec<(Value, &str)> = bad.iter().map(|(class, wanted)| (class.clone(), wanted.as_str())).collect();
    let good = [class(json!([term("z", json!(["a"])), term("z", json!(["b"]))])), class(json!([{}]))];
    judge(&STORAGE_CLASS, &bad, &good);
}

#[test]
fn conformance_a_lease_chooses_its_leader_in_a_known_way() {
    let lease = |spec: Value| json!({ "metadata": { "name": "l" }, "spec": spec });
    let bad = [
        (
            lease(json!({ "strategy": "Youngest" })),
            "spec.strategy.strategy: Unsupported value: \"Youngest\": supported values: \"OldestEmulationVersion\"",
        ),
        (lease(json!({ "strategy": "a.b/c/d" })), "spec.strategy.strategy: Invalid value"),
        (
            lease(json!({ "preferredHolder": "me" })),
            "spec.preferredHolder: Forbidden: may only be specified if `strategy` is defined",
        ),
    ];
    let good = [
        lease(json!({ "strategy": "OldestEmulationVersion", "preferredHolder": "me" })),
        lease(json!({ "strategy": "a.b/own" })),
        lease(json!({})),
    ];
    judge(&LEASE, &bad, &good);
}

#[test]
fn conformance_a_slice_names_its_ports_and_endpoints() {
    let slice = |ports: Value, endpoint: Value| {
        let mut whole = json!({ "addresses": ["10.0.0.1"] });
        whole.as_object_mut().expect("an endpoint").extend(endpoint.as_object().expect("fields").clone());
        json!({ "metadata": { "name": "s" }, "addressType": "IPv4", "ports": ports, "endpoints": [whole] })
    };
    let none = || json!({});
    let bad = [
        (slice(json!([{ "name": "A" }]), none()), "ports[0].name: Invalid value"),
        (slice(json!([{ "name": "a" }, { "name": "a" }]), none()), "ports[1].name: Duplicate value: \"a\""),
        (slice(json!([{ "appProtocol": "a b" }]), none()), "ports[0].appProtocol: Invalid value"),
        (slice(json!([]), json!({ "hostname": "a.b" })), "endpoints[0].hostname: Invalid value"),
        (slice(json!([]), json!({ "nodeName": "A" })), "endpoints[0].nodeName: Invalid value"),
    ];
    let good = [slice(json!([{ "name": "a" }, { "name": "" }]), json!({ "hostname": "a", "nodeName": "n.x" }))];
    judge(&ENDPOINT_SLICE, &bad, &good);
}
