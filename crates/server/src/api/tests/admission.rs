//! What objects are given when they are made.

use std::collections::BTreeSet;

use mainstay_api::{kinds, object};
use serde_json::json;

use super::*;

fn service(name: &str, spec: Value) -> Value {
    json!({ "metadata": { "name": name }, "spec": spec })
}

#[test]
fn every_service_has_an_address_of_its_own_until_there_is_none_left() {
    let cluster = Cluster::new();
    let ports = json!([{ "port": 80 }]);
    let mut addresses = BTreeSet::new();
    // A /27 has 30 addresses that can be given away.
    for index in 0..30 {
        let made =
            cluster.create(&kinds::SERVICE, service(&format!("s{index}"), json!({ "ports": ports }))).expect("created");
        assert!(addresses.insert(object::text(&made, &["spec", "clusterIP"]).to_owned()));
    }
    let full = cluster.create(&kinds::SERVICE, service("more", json!({ "ports": ports }))).expect_err("full");
    assert!(full.message.contains("failed to allocate a serviceIP: range is full"), "{}", full.message);
    let freed = object::text(&cluster.get(&kinds::SERVICE, "s7").expect("there"), &["spec", "clusterIP"]).to_owned();
    let asked = service("asked", json!({ "ports": ports, "clusterIP": freed }));
    let taken = cluster.create(&kinds::SERVICE, asked.clone()).expect_err("taken");
    assert!(taken.message.contains("provided IP is already allocated"), "{}", taken.message);
    cluster.delete(&kinds::SERVICE, "s7", &DeleteOptions::default()).expect("deleted");
    let made = cluster.create(&kinds::SERVICE, asked).expect("free again");
    assert_eq!(object::text(&made, &["spec", "clusterIP"]), freed);
    let headless = cluster
        .create(&kinds::SERVICE, service("headless", json!({ "ports": ports, "clusterIP": "None" })))
        .expect("created");
    assert_eq!(headless["spec"]["clusterIPs"], json!(["None"]));
}

#[test]
fn v2_a_second_range_gives_addresses_until_it_goes_and_no_address_is_anybody_elses() {
    let cluster = Cluster::new();
    let ports = json!([{ "port": 80 }]);
    let make = |name: &str, spec: Value| {
        let mut all = json!({ "ports": ports });
        merge_patch(&mut all, spec);
        let made = cluster.create(&kinds::SERVICE, service(name, all));
        made.map(|made| object::text(&made, &["spec", "clusterIP"]).to_owned()).map_err(|status| status.message)
    };
    let outside = make("early", json!({ "clusterIP": "192.0.2.9" })).expect_err("no range has it");
    assert!(outside.contains("failed to allocate IP 192.0.2.9: the provided network does not match the current range"));
    let range = json!({ "metadata": { "name": "more" }, "spec": { "cidrs": ["192.0.2.0/28"] } });
    let range = cluster.create(&kinds::SERVICE_CIDR, range).expect("created");
    assert_eq!(range["metadata"]["finalizers"], json!([kinds::servicecidr::FINALIZER]));
    assert_eq!(make("asked", json!({ "clusterIP": "192.0.2.9" })).expect("in range"), "192.0.2.9");
    let shown = cluster.get(&kinds::IP_ADDRESS, "192.0.2.9").expect("shown");
    assert_eq!(shown["spec"]["parentRef"], json!({ "resource": "services", "namespace": "default", "name": "asked" }));
    let edge = make("edge", json!({ "clusterIP": "192.0.2.15" })).expect_err("the broadcast address");
    assert!(edge.contains("is not in the valid range. The range of valid IPs is 192.0.2.0/28"), "{edge}");
    let kept = json!({ "metadata": { "name": "192.0.2.3" }, "spec": { "parentRef": {
        "group": "example.com", "resource": "gateways", "name": "g" } } });
    cluster.create(&kinds::IP_ADDRESS, kept).expect("created");
    let taken = make("kept", json!({ "clusterIP": "192.0.2.3" })).expect_err("somebody keeps it");
    assert!(taken.contains("provided IP is already allocated"), "{taken}");
    // What an IPAddress shows may be taken away; the address is nobody else's for that.
    cluster.delete(&kinds::IP_ADDRESS, "192.0.2.9", &DeleteOptions::default()).expect("deleted");
    // 30 of the first range, and of the second all but the two that are taken.
    let mut all = BTreeSet::from(["192.0.2.9".to_owned(), "192.0.2.3".to_owned()]);
    for index in 0..30 + 12 {
        let address = make(&format!("s{index}"), json!({})).expect("free");
        assert_eq!(address.starts_with("10.96.0."), index < 30, "the server's own range first: {address}");
        assert!(all.insert(address.clone()), "{address}");
    }
    assert!(make("more", json!({})).expect_err("full").contains("range is full"));
    cluster.delete(&kinds::SERVICE, "s40", &DeleteOptions::default()).expect("deleted");
    cluster.delete(&kinds::SERVICE_CIDR, "more", &DeleteOptions::default()).expect("set on its way");
    let late = make("late", json!({})).expect_err("a range that goes gives nothing");
    assert!(late.contains("range is full"), "{late}");
    let freed = cluster.get(&kinds::SERVICE, "s7").expect("there");
    cluster.delete(&kinds::SERVICE, "s7", &DeleteOptions::default()).expect("deleted");
    assert_eq!(cluster.get(&kinds::IP_ADDRESS, object::text(&freed, &["spec", "clusterIP"])), None);
    assert_eq!(make("s7", json!({})).expect("the only one"), object::text(&freed, &["spec", "clusterIP"]));
    // Whoever has one of it keeps it, also through updates.
    let labels = json!({ "metadata": { "labels": { "a": "b" } } });
    let kept = cluster.merge(&kinds::SERVICE, "asked", Part::Main, labels).expect("updated");
    assert_eq!(kept["spec"]["clusterIP"], "192.0.2.9");
    let external = json!({ "spec": { "type": "ExternalName", "externalName": "a.example.com", "clusterIP": "" } });
    cluster.merge(&kinds::SERVICE, "s7", Part::Main, external).expect("updated");
    assert_eq!(cluster.get(&kinds::IP_ADDRESS, object::text(&freed, &["spec", "clusterIP"])), None);
}

#[test]
fn node_ports_are_kept_over_updates_and_given_back() {
    let cluster = Cluster::new();
    let made = cluster
        .create(&kinds::SERVICE, service("s", json!({ "type": "NodePort", "ports": [{ "port": 80 }] })))
        .expect("created");
    let port = made["spec"]["ports"][0]["nodePort"].as_i64().expect("given");
    assert!((30_000..=32_767).contains(&port));
    let replaced = cluster
        .update(
            &kinds::SERVICE,
            "s",
            service("s", json!({ "type": "NodePort", "ports": [{ "port": 80 }], "selector": { "a": "b" } })),
        )
        .expect("replaced");
    assert_eq!(
        (&replaced["spec"]["ports"], &replaced["spec"]["clusterIP"]),
        (&made["spec"]["ports"], &made["spec"]["clusterIP"])
    );
    let asks = |name: &str| service(name, json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": port }] }));
    assert_eq!(cluster.create(&kinds::SERVICE, asks("t")).expect_err("taken").code, 422);
    cluster.merge(&kinds::SERVICE, "s", Part::Main, json!({ "spec": { "type": "ClusterIP" } })).expect("changed");
    cluster.create(&kinds::SERVICE, asks("t")).expect("given back");
    let low = service("low", json!({ "type": "NodePort", "ports": [{ "port": 80, "nodePort": 80 }] }));
    assert!(
        cluster
            .create(&kinds::SERVICE, low)
            .expect_err("too low")
            .message
            .contains("The range of valid ports is 30000-32767")
    );
}

#[test]
fn a_pod_gets_its_service_accounts_token_unless_it_says_no() {
    let cluster = Cluster::new();
    let made = cluster.create(&kinds::POD, pod("a")).expect("created");
    assert_eq!(made["spec"]["serviceAccountName"], "default");
    let mount = &made["spec"]["containers"][0]["volumeMounts"][0];
    assert_eq!(mount["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount");
    assert_eq!(mount["name"], made["spec"]["volumes"][0]["name"]);
    let mut without = pod("b");
    without["spec"]["automountServiceAccountToken"] = json!(false);
    let made = cluster.create(&kinds::POD, without).expect("created");
    assert_eq!(made["spec"].get("volumes"), None);
    let mut unknown = pod("c");
    unknown["spec"]["serviceAccountName"] = json!("nobody");
    let refused = cluster.create(&kinds::POD, unknown).expect_err("no such account");
    assert_eq!(
        refused.message,
        r#"pods "c" is forbidden: error looking up service account default/nobody: serviceaccount "nobody" not found"#
    );
}

/// What a node says it runs of its own accord is neither given an account nor made one's mirror afterwards (M4, X2).
#[test]
fn m4_a_mirror_pod_has_no_account_and_stays_a_mirror() {
    let cluster = Cluster::new();
    let mirror = |name: &str| {
        let mut mirror = pod(name);
        mirror["metadata"]["annotations"] = json!({ "kubernetes.io/config.mirror": "x" });
        mirror["spec"]["nodeName"] = json!("n");
        mirror
    };
    let made = cluster.create(&kinds::POD, mirror("a")).expect("created");
    let given = ["serviceAccountName", "serviceAccount", "volumes"].map(|field| made["spec"].get(field).cloned());
    assert_eq!(given, [None, None, None]);
    let mut with_account = mirror("b");
    with_account["spec"]["serviceAccountName"] = json!("default");
    let mut with_secret = mirror("b");
    with_secret["spec"]["imagePullSecrets"] = json!([{ "name": "pull" }]);
    // What it names beside it hides nothing.
    with_secret["spec"]["volumes"] = json!([{ "name": "v", "configMap": { "name": "c" } }]);
    let mut with_token = mirror("b");
    with_token["spec"]["volumes"] =
        json!([{ "name": "v", "projected": { "sources": [{ "serviceAccountToken": { "path": "t" } }] } }]);
    for (pod, why) in [
        (with_account, "a mirror pod may not reference service accounts"),
        (with_secret, "a mirror pod may not reference secrets"),
        (with_token, "a mirror pod may not use service account token volume projections"),
    ] {
        let refused = cluster.create(&kinds::POD, pod).expect_err(why);
        assert!(refused.message.ends_with(why), "{}", refused.message);
    }
    cluster.create(&kinds::POD, pod("own")).expect("created");
    let annotation =
        |value: serde_json::Value| json!({ "metadata": { "annotations": { "kubernetes.io/config.mirror": value } } });
    for part in [Part::Main, Part::Status] {
        for (name, value) in [("own", json!("x")), ("a", json!(null)), ("a", json!("y"))] {
            let refused = cluster.merge(&kinds::POD, name, part, annotation(value)).expect_err("it stays what it is");
            assert_eq!(refused.code, 422, "{name} {}", refused.message);
        }
        let same = cluster.merge(&kinds::POD, "a", part, annotation(json!("x")));
        same.expect("nothing of it changes");
    }
}

#[test]
fn claims_get_the_newest_default_class_and_v2_protection() {
    let cluster = Cluster::new();
    let class = |name: &str| {
        json!({ "metadata": { "name": name, "annotations": {
        "storageclass.kubernetes.io/is-default-class": "true" } }, "provisioner": "p" })
    };
    cluster.create(&kinds::STORAGE_CLASS, class("old")).expect("created");
    cluster.seconds.fetch_add(10, std::sync::atomic::Ordering::Relaxed);
    cluster.create(&kinds::STORAGE_CLASS, class("new")).expect("created");
    let claim = |name: &str| {
        json!({ "metadata": { "name": name }, "spec": { "accessModes": ["ReadWriteOnce"],
        "resources": { "requests": { "storage": "1Gi" } } } })
    };
    let made = cluster.create(&kinds::PERSISTENT_VOLUME_CLAIM, claim("a")).expect("created");
    assert_eq!(made["spec"]["storageClassName"], "new");
    assert_eq!(made["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
    let mut none = claim("b");
    none["spec"]["storageClassName"] = json!("");
    let made = cluster.create(&kinds::PERSISTENT_VOLUME_CLAIM, none).expect("created");
    assert_eq!(made["spec"]["storageClassName"], "");
}

#[test]
fn only_claims_of_classes_that_say_so_may_grow() {
    let cluster = Cluster::new();
    let refused = "persistentvolumeclaims \"NAME\" is forbidden: only dynamically provisioned pvc can be resized and \
        the storageclass \
                   that provisions the pvc must support resize";
    for (name, allowed, answer) in [("yes", Some(true), "ok"), ("no", None, refused), ("none", None, refused)] {
        if name != "none" {
            let class = json!({ "metadata": { "name": name }, "provisioner": "p", "allowVolumeExpansion": allowed });
            cluster.create(&kinds::STORAGE_CLASS, class).expect("created");
        }
        let request = |size: &str| json!({ "spec": { "resources": { "requests": { "storage": size } } } });
        let mut claim = request("1Gi");
        claim["metadata"] = json!({ "name": name });
        claim["spec"]["accessModes"] = json!(["ReadWriteOnce"]);
        claim["spec"]["storageClassName"] = json!(name);
        cluster.create(&kinds::PERSISTENT_VOLUME_CLAIM, claim).expect("created");
        let bound = json!({ "status": { "phase": "Bound", "capacity": { "storage": "1Gi" } } });
        cluster.merge(&kinds::PERSISTENT_VOLUME_CLAIM, name, Part::Status, bound).expect("bound");
        let told = cluster.merge(&kinds::PERSISTENT_VOLUME_CLAIM, name, Part::Main, request("2Gi"));
        assert_eq!(told.map_or_else(|status| status.message, |_| "ok".to_owned()), answer.replace("NAME", name));
    }
    let class = json!({ "metadata": { "name": "gold" }, "driverName": "p", "parameters": { "iops": "5" } });
    let made = cluster.create(&kinds::VOLUME_ATTRIBUTES_CLASS, class).expect("created");
    assert_eq!(made["metadata"]["finalizers"], json!(["kubernetes.io/vac-protection"]));
}

/// Load balancers ask a port of every node which of them have endpoints of a Service that keeps clients there.
#[test]
fn conformance_a_service_with_local_endpoints_has_a_port_for_its_health_check() {
    let cluster = Cluster::new();
    let spec = json!({ "type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{ "port": 80 }] });
    let with = |change: Value| {
        let mut spec = spec.clone();
        merge_patch(&mut spec, change);
        spec
    };
    let port = |service: &Value| service["spec"]["healthCheckNodePort"].as_i64();
    let made = cluster.create(&kinds::SERVICE, service("a", spec.clone())).expect("created");
    let given = port(&made).expect("a port");
    assert!((30_000..=32_767).contains(&given) && json!(given) != made["spec"]["ports"][0]["nodePort"], "{made}");
    for (name, change) in [("b", json!({ "externalTrafficPolicy": "Cluster" })), ("c", json!({ "type": "NodePort" }))] {
        let made = cluster.create(&kinds::SERVICE, service(name, with(change))).expect("created");
        assert_eq!(port(&made), None, "{name}");
    }
    // It is nobody else's, whether as such or as a node port.
    for change in [
        json!({ "healthCheckNodePort": given }),
        json!({ "ports": [{ "port": 80, "nodePort": given }] }),
        json!({ "healthCheckNodePort": 30100, "ports": [{ "port": 80, "nodePort": 30100 }] }),
    ] {
        let taken = cluster.create(&kinds::SERVICE, service("d", with(change))).expect_err("taken");
        assert!(taken.message.contains("provided port is already allocated"), "{}", taken.message);
    }
    let outside = cluster.create(&kinds::SERVICE, service("d", with(json!({ "healthCheckNodePort": 80 }))));
    let outside = outside.expect_err("no node port").message;
    assert!(outside.contains("spec.healthCheckNodePort") && outside.contains("30000-32767"), "{outside}");
    let asked = with(json!({ "healthCheckNodePort": 30200, "ports": [{ "port": 80, "nodePort": 30201 }] }));
    let made = cluster.create(&kinds::SERVICE, service("d", asked)).expect("created");
    assert_eq!(port(&made), Some(30_200));

    // Who leaves it out keeps it; it does not change, and goes back with the policy.
    let mut left_out = made.clone();
    left_out["spec"].as_object_mut().expect("a spec").remove("healthCheckNodePort");
    assert_eq!(port(&cluster.update(&kinds::SERVICE, "d", left_out).expect("updated")), Some(30_200));
    let change =
        |name: &str, change: Value| cluster.merge(&kinds::SERVICE, name, Part::Main, json!({ "spec": change }));
    let refused = change("d", json!({ "healthCheckNodePort": 30_202 })).expect_err("refused").message;
    assert!(refused.contains("spec.healthCheckNodePort: Invalid value: 30202: field is immutable"), "{refused}");
    let changed = change("d", json!({ "externalTrafficPolicy": "Cluster" })).expect("changed");
    assert_eq!(port(&changed), None);
    assert_eq!(port(&change("a", json!({ "type": "NodePort" })).expect("changed")), None);
    for (name, freed) in [("e", 30_200), ("f", given)] {
        let asked = with(json!({ "healthCheckNodePort": freed }));
        cluster.create(&kinds::SERVICE, service(name, asked)).expect("free again");
    }
    cluster.delete(&kinds::SERVICE, "e", &DeleteOptions::default()).expect("deleted");
    assert_eq!(
        port(&change("d", json!({ "externalTrafficPolicy": "Local", "healthCheckNodePort": 30_200 })).expect("c")),
        Some(30_200)
    );
}
