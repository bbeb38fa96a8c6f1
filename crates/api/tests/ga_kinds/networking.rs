//! `networking.k8s.io`.

use mainstay_api::kinds;
use serde_json::{Value, json};

use super::{Case, create};

fn ingress() -> Value {
    json!({
        "metadata": { "name": "web", "namespace": "default" },
        "spec": {
            "ingressClassName": "nginx",
            "defaultBackend": { "resource": { "apiGroup": "example.com", "kind": "Bucket", "name": "b" } },
            "tls": [{ "hosts": ["a.example.com", "*.example.com"], "secretName": "tls" }],
            "rules": [{ "host": "a.example.com", "http": { "paths": [{
                "path": "/", "pathType": "Prefix", "backend": { "service": { "name": "web",
                    "port": { "name": "http" } } },
            }] } }],
        },
        "status": { "loadBalancer": { "ingress": [{ "ip": "10.0.0.2" }, { "hostname": "lb" }] } },
    })
}

fn path(patch: Value) -> Value {
    let mut path = json!({ "path": "/", "pathType": "Prefix", "backend": {
        "service": { "name": "web", "port": { "number": 80 } } } });
    path = super::with(&path, &patch);
    json!({ "spec": { "rules": [{ "http": { "paths": [path] } }] } })
}

fn policy() -> Value {
    json!({
        "metadata": { "name": "p", "namespace": "default" },
        "spec": {
            "podSelector": { "matchLabels": { "app": "web" } },
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{
                "from": [{ "ipBlock": { "cidr": "172.17.0.0/16", "except": ["172.17.1.0/24"] } },
                    { "podSelector": {} }],
                "ports": [{ "protocol": "TCP", "port": 6379 }, { "port": 32000, "endPort": 32768, "protocol": "UDP" }],
            }],
            "egress": [{ "to": [{ "namespaceSelector": {}, "podSelector": {} }],
                "ports": [{ "port": "dns", "protocol": "UDP" }] }],
        },
    })
}

fn peer(peer: Value) -> Value {
    json!({ "spec": { "ingress": [{ "from": [peer] }] } })
}

pub fn cases() -> Vec<Case> {
    let mut cases = vec![ingress_case(), policy_case()];
    cases.push(Case {
        kind: &kinds::INGRESS_CLASS,
        full: json!({ "metadata": { "name": "nginx" }, "spec": { "controller": "k8s.io/ingress-nginx",
            "parameters": { "apiGroup": "k8s.example.net", "kind": "IngressParameters", "name": "external",
                "scope": "Namespace", "namespace": "x" } } }),
        row: "nginx|k8s.io/ingress-nginx|IngressParameters.k8s.example.net/external",
        empty: &["spec.controller: Required value"],
        invalid: vec![
            (
                json!({ "spec": { "controller": "nginx" } }),
                r#"spec.controller: Invalid value: "nginx": must be a domain-prefixed path (such as "acme.io/foo")"#,
            ),
            (
                json!({ "spec": { "parameters": { "scope": "Cluster" } } }),
                "spec.parameters.namespace: Forbidden: `parameters.scope` is set to 'Cluster'",
            ),
            (
                json!({ "spec": { "parameters": { "namespace": null } } }),
                "spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace'",
            ),
        ],
        frozen: vec![(
            json!({ "spec": { "controller": "example.com/other" } }),
            r#"spec.controller: Invalid value: "example.com/other": field is immutable"#,
        )],
    });
    cases.push(Case {
        kind: &kinds::IP_ADDRESS,
        full: json!({ "metadata": { "name": "10.96.0.7" }, "spec": { "parentRef": { "group": "apps",
            "resource": "things", "namespace": "default", "name": "s" } } }),
        row: "10.96.0.7|things.apps/default/s",
        empty: &[
            r#"metadata.name: Invalid value: "e": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"#,
            "spec.parentRef: Required value",
        ],
        invalid: vec![(
            json!({ "metadata": { "name": "::0" } }),
            r#"metadata.name: Invalid value: "::0": must be in canonical form ("::")"#,
        )],
        frozen: vec![(json!({ "spec": { "parentRef": { "name": "t" } } }), "spec.parentRef: Invalid value")],
    });
    cases.push(Case {
        kind: &kinds::SERVICE_CIDR,
        full: json!({ "metadata": { "name": "more" }, "spec": { "cidrs": ["10.97.0.0/16", "2001:db8::/64"] } }),
        row: "more|10.97.0.0/16,2001:db8::/64",
        empty: &["spec.cidrs: Required value: at least one CIDR required"],
        invalid: vec![
            (
                json!({ "spec": { "cidrs": ["10.0.0.0/8", "11.0.0.0/8"] } }),
                "may specify no more than one IP for each IP family",
            ),
            (
                json!({ "spec": { "cidrs": ["10.0.0.1/8"] } }),
                r#"spec.cidrs[0]: Invalid value: "10.0.0.1/8": must not have bits set beyond the prefix length"#,
            ),
        ],
        frozen: vec![(json!({ "spec": { "cidrs": ["10.97.0.0/16"] } }), "spec.cidrs: Invalid value")],
    });
    cases
}

fn ingress_case() -> Case {
    Case {
        kind: &kinds::INGRESS,
        full: ingress(),
        row: "web|nginx|a.example.com|10.0.0.2,lb|80, 443",
        empty: &["spec: Invalid value: null: either `defaultBackend` or `rules` must be specified"],
        invalid: vec![
            (
                path(json!({ "pathType": null })),
                "spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified",
            ),
            (
                path(json!({ "pathType": "Regex" })),
                r#"pathType: Unsupported value: "Regex": supported values: "Exact", "ImplementationSpecific", "Prefix""#,
            ),
            (
                path(json!({ "path": "a" })),
                r#"spec.rules[0].http.paths[0].path: Invalid value: "a": must be an absolute path"#,
            ),
            (path(json!({ "path": "/a//b" })), "must not contain '//'"),
            (
                path(json!({ "backend": null })),
                r#"spec.rules[0].http.paths[0].backend: Invalid value: "": resource or service backend is required"#,
            ),
            (
                path(json!({ "backend": { "service": { "port": { "name": "x" } } } })),
                "cannot set both port name & port number",
            ),
            (
                json!({ "spec": { "rules": [{ "host": "10.0.0.1" }] } }),
                r#"spec.rules[0].host: Invalid value: "10.0.0.1": must be a DNS name, not an IP address"#,
            ),
            (
                json!({ "spec": { "rules": [{ "host": "*" }] } }),
                r#"spec.rules[0].host: Invalid value: "*": a wildcard DNS-1123 subdomain must start with '*.'"#,
            ),
            (
                json!({ "metadata": { "annotations": { "kubernetes.io/ingress.class": "traefik" } } }),
                "annotations.kubernetes.io/ingress.class: Invalid value: \"traefik\": must match `ingressClassName` \
                    when both are specified",
            ),
        ],
        frozen: vec![],
    }
}

fn policy_case() -> Case {
    Case {
        kind: &kinds::NETWORK_POLICY,
        full: policy(),
        row: "p|app=web",
        empty: &[],
        invalid: vec![
            (peer(json!({})), "spec.ingress[0].from[0]: Required value: must specify a peer"),
            (
                peer(json!({ "ipBlock": { "cidr": "10.0.0.0/8" }, "podSelector": {} })),
                "spec.ingress[0].from[0]: Forbidden: may not specify both ipBlock and another peer",
            ),
            (
                peer(json!({ "ipBlock": { "cidr": "10.0.0/8" } })),
                r#"spec.ingress[0].from[0].ipBlock.cidr: Invalid value: "10.0.0/8": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"#,
            ),
            (
                peer(json!({ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"] } })),
                r#"spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: "11.0.0.0/16": must be a strict subset of `cidr`"#,
            ),
            (
                json!({ "spec": { "egress": [{ "ports": [{ "port": "x", "endPort": 9 }] }] } }),
                "spec.egress[0].ports[0].endPort: Invalid value: 9: may not be specified when `port` is non-numeric",
            ),
            (
                json!({ "spec": { "policyTypes": ["Sideways"] } }),
                r#"spec.policyTypes[0]: Unsupported value: "Sideways": supported values: "Ingress", "Egress""#,
            ),
        ],
        frozen: vec![],
    }
}

#[test]
fn a_policy_is_about_what_it_has_rules_for() {
    let of = |spec: Value| {
        let object = json!({ "metadata": { "name": "p", "namespace": "default" }, "spec": spec });
        create(&kinds::NETWORK_POLICY, &object).expect("accepted")["spec"].clone()
    };
    assert_eq!(of(json!({}))["policyTypes"], json!(["Ingress"]));
    let egress = of(json!({ "egress": [{ "ports": [{ "port": 53 }] }] }));
    assert_eq!(egress["policyTypes"], json!(["Ingress", "Egress"]));
    assert_eq!(egress["egress"][0]["ports"][0]["protocol"], "TCP");
}

#[test]
fn the_generation_of_an_ingress_counts_its_spec_and_clients_do_not_write_its_status() {
    let kind = &kinds::INGRESS;
    let stored = create(kind, &ingress()).expect("accepted");
    assert_eq!((&stored["metadata"]["generation"], &stored["status"]), (&json!(1), &json!({ "loadBalancer": {} })));
    let same = super::update(
        kind,
        &stored,
        &super::with(&stored, &json!({ "metadata": { "labels": { "a": "b" } }, "status": { "x": 1 } })),
    );
    let same = same.expect("accepted");
    assert_eq!((&same["metadata"]["generation"], &same["status"]), (&json!(1), &json!({ "loadBalancer": {} })));
    let changed = super::update(kind, &stored, &super::with(&stored, &json!({ "spec": { "ingressClassName": "x" } })));
    assert_eq!(changed.expect("accepted")["metadata"]["generation"], 2);
    assert!((kind.warnings)(kind, &stored)[0].contains("nothing in this cluster acts on it"));
}

#[test]
fn endpoints_by_name_have_names_of_domains() {
    let slice = |address: &str| {
        json!({ "metadata": { "name": "s", "namespace": "d" }, "addressType": "FQDN",
            "endpoints": [{ "addresses": [address] }], "ports": [] })
    };
    for address in ["db.example.com", "db.example.com.", "10.0.0.1"] {
        assert!(create(&kinds::ENDPOINT_SLICE, &slice(address)).is_ok(), "{address}");
    }
    let field = r#"EndpointSlice.discovery.k8s.io "s" is invalid: endpoints[0].addresses[0]: Invalid value: "#;
    for address in ["localhost", "DB.example.com", "fd00::1", "a..b", ""] {
        let answer = create(&kinds::ENDPOINT_SLICE, &slice(address)).expect_err(address);
        assert!(answer.starts_with(field), "{answer}");
    }
}
