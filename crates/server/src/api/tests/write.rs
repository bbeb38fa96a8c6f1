//! Create, update, patch: preconditions and retries (A8, A9).

use std::cell::Cell;

use mainstay_api::{kinds, object};
use serde_json::json;

use super::*;

#[test]
fn a8_updates_honour_uid_and_resource_version() {
    let cluster = Cluster::new();
    let made = cluster.create(&kinds::CONFIG_MAP, config_map("a")).expect("created");
    let with = |field: &str, value: &str| {
        let mut changed = made.clone();
        changed["data"] = json!({ "b": value });
        changed["metadata"][field] = value.into();
        cluster.update(&kinds::CONFIG_MAP, "a", changed)
    };
    let conflict = with("resourceVersion", "1").expect_err("stale");
    assert_eq!((conflict.code, &*conflict.reason), (409, "Conflict"));
    assert!(conflict.message.contains("the object has been modified"), "{}", conflict.message);
    assert_eq!(with("uid", "another").expect_err("another object").code, 409);
    assert_eq!(cluster.get(&kinds::CONFIG_MAP, "a").as_ref(), Some(&made), "A9: what fails leaves nothing behind");
    let mut changed = made.clone();
    changed["data"] = json!({ "b": "2" });
    let updated = cluster.update(&kinds::CONFIG_MAP, "a", changed.clone()).expect("current");
    assert_ne!(object::resource_version(&updated), object::resource_version(&made));
    assert_eq!(cluster.update(&kinds::CONFIG_MAP, "a", changed).expect_err("used up").code, 409);
}

/// As upstream's PUT of what is missing; what its sender has seen is not made anew.
#[test]
fn conformance_some_kinds_are_made_by_a_replacement() {
    let cluster = Cluster::new();
    let named = |name: &str| json!({ "metadata": { "name": name } });
    let mut service = named("s");
    service["spec"] = json!({ "ports": [{ "port": 80 }] });
    let made = cluster.update(&kinds::SERVICE, "s", service).expect("made");
    assert_ne!((object::uid(&made), &made["spec"]["clusterIP"]), ("", &Value::Null));
    let answer = cluster.api.write_now(false, |batch| {
        update(batch, &kinds::LEASE, "default", "l", Part::Main, json!({ "metadata": { "name": "l" } }))
    });
    assert_eq!(answer.map(|reply| reply.code).map_err(|status| status.message), Ok(201));
    for (field, value) in [("resourceVersion", "7"), ("uid", "u")] {
        let mut seen = named("gone");
        seen["metadata"][field] = value.into();
        assert_eq!(cluster.update(&kinds::LEASE, "gone", seen).expect_err("deleted since").code, 404, "{field}");
    }
    let status = |batch: &mut Batch<'_>| update(batch, &kinds::SERVICE, "default", "t", Part::Status, named("t"));
    assert_eq!(cluster.write(status).expect_err("no status of nothing").code, 404);
    assert_eq!(cluster.update(&kinds::CONFIG_MAP, "c", config_map("c")).expect_err("not this kind").code, 404);
}

/// Clients that have read from a cache or written nothing yet send it.
#[test]
fn conformance_a_version_of_zero_is_none() {
    let cluster = Cluster::new();
    let mut map = config_map("a");
    map["metadata"]["resourceVersion"] = "0".into();
    let made = cluster.create(&kinds::CONFIG_MAP, map.clone()).expect("made");
    assert_ne!(object::resource_version(&made), "0");
    map["data"] = json!({ "b": "2" });
    let replaced = cluster.update(&kinds::CONFIG_MAP, "a", map).expect("replaced");
    assert_eq!(replaced["data"], json!({ "b": "2" }));
    let of_zero = json!({ "metadata": { "resourceVersion": "0" }, "data": { "c": "3" } });
    assert_eq!(cluster.merge(&kinds::CONFIG_MAP, "a", Part::Main, of_zero).expect("patched")["data"]["c"], "3");
}

#[test]
fn a8_every_subresource_honours_uid_and_resource_version() {
    let cluster = Cluster::new();
    let stale = cluster.create(&kinds::POD, pod("a")).expect("created");
    let touch = json!({ "metadata": { "labels": { "x": "y" } } });
    let newest = cluster.merge(&kinds::POD, "a", Part::Main, touch.clone()).expect("changed");
    let namespace = cluster.get(&kinds::NAMESPACE, "default").expect("there");
    cluster.merge(&kinds::NAMESPACE, "default", Part::Main, touch).expect("changed");
    let put = |kind: &'static Kind, part: Part, body: &Value| {
        let (namespace, name) = (if kind.namespaced { "default" } else { "" }, object::name(body));
        cluster.write(|batch| update(batch, kind, namespace, name, part, body.clone()))
    };
    for part in [Part::Main, Part::Status, Part::EphemeralContainers, Part::Resize] {
        let mut body = stale.clone();
        body["status"]["phase"] = "Running".into();
        let conflict = put(&kinds::POD, part, &body).expect_err("stale");
        assert_eq!((conflict.code, &*conflict.reason), (409, "Conflict"), "{part:?}");
        body["metadata"]["resourceVersion"] = newest["metadata"]["resourceVersion"].clone();
        body["metadata"]["uid"] = "another".into();
        assert_eq!(put(&kinds::POD, part, &body).expect_err("another pod").code, 409, "{part:?}");
        let versions = json!({ "metadata": { "resourceVersion": stale["metadata"]["resourceVersion"] } });
        assert_eq!(cluster.merge(&kinds::POD, "a", part, versions).expect_err("stale").code, 409, "{part:?} by patch");
    }
    for part in [Part::Status, Part::Finalize] {
        assert_eq!(put(&kinds::NAMESPACE, part, &namespace).expect_err("stale").code, 409, "{part:?}");
    }
    let binding = |field: &str, value: &str| {
        let binding = json!({ "metadata": { field: value }, "target": { "name": "n" } });
        cluster.write(|batch| bind(batch, "default", "a", &binding))
    };
    assert_eq!(binding("resourceVersion", object::resource_version(&stale)).expect_err("stale").code, 409);
    assert_eq!(binding("uid", "another").expect_err("another pod").code, 409);
    assert_eq!(cluster.get(&kinds::POD, "a"), Some(newest.clone()), "A9: what fails leaves nothing behind");
    let mut body = newest;
    body["status"]["phase"] = "Running".into();
    assert_eq!(put(&kinds::POD, Part::Status, &body).expect("current")["status"]["phase"], "Running");
}

#[test]
fn a8_a_scale_of_an_older_state_is_refused() {
    let cluster = Cluster::new();
    let spec = json!({ "replicas": 1, "selector": { "matchLabels": { "a": "b" } }, "template": {
        "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "c", "image": "i" }] } } });
    let set = json!({ "metadata": { "name": "web" }, "spec": spec });
    let made = cluster.create(&kinds::STATEFUL_SET, set).expect("created");
    cluster.merge(&kinds::STATEFUL_SET, "web", Part::Main, json!({ "spec": { "replicas": 2 } })).expect("changed");
    let to = |version: &str, uid: &str| {
        let metadata = json!({ "name": "web", "namespace": "default", "resourceVersion": version, "uid": uid });
        let scale = json!({ "metadata": metadata, "spec": { "replicas": 5 } });
        let how = Scaling::Changed(&|_| Ok(scale.clone()));
        cluster.write(|batch| scaled(batch, &kinds::STATEFUL_SET, "default", "web", &how))
    };
    assert_eq!(to(object::resource_version(&made), "").expect_err("stale").code, 409);
    assert_eq!(to("", "another").expect_err("another set").code, 409);
    let replicas = cluster.get(&kinds::STATEFUL_SET, "web").expect("there")["spec"]["replicas"].clone();
    assert_eq!(replicas, 2);
    let scaled = to("", object::uid(&made)).expect("its own uid, any state");
    let newest = cluster.get(&kinds::STATEFUL_SET, "web").expect("there");
    assert_eq!(
        object::resource_version(&scaled),
        object::resource_version(&newest),
        "what is answered can be sent back"
    );
    to(object::resource_version(&scaled), "").expect("the newest state");
}

#[test]
fn a9_a_patch_that_raced_is_made_anew_on_what_the_other_wrote() {
    let cluster = Cluster::new();
    cluster.create(&kinds::CONFIG_MAP, config_map("a")).expect("created");
    let races = Cell::new(3);
    let patched = cluster.write(|batch| {
        patch(batch, &kinds::CONFIG_MAP, "default", "a", Part::Main, &|old| {
            if races.get() > 0 {
                races.set(races.get() - 1);
                let key = format!("k{}", races.get());
                cluster
                    .merge(&kinds::CONFIG_MAP, "a", Part::Main, json!({ "data": { key: "other" } }))
                    .expect("written");
            }
            let mut new = old.clone();
            merge_patch(&mut new, json!({ "data": { "mine": "2" } }));
            Ok(new)
        })
    });
    let data = patched.expect("patched")["data"].clone();
    assert_eq!(data, json!({ "a": "1", "k0": "other", "k1": "other", "k2": "other", "mine": "2" }));
}

#[test]
fn a_write_that_changes_nothing_is_none() {
    let cluster = Cluster::new();
    let made = cluster.create(&kinds::CONFIG_MAP, config_map("a")).expect("created");
    let revision = cluster.api.store.revision();
    assert_eq!(cluster.update(&kinds::CONFIG_MAP, "a", config_map("a")), Ok(made));
    assert_eq!(cluster.api.store.revision(), revision);
}

#[test]
fn s11_what_is_empty_is_stored_by_nobody_and_is_no_change_in_a_row_that_has_it() {
    let cluster = Cluster::new();
    // As our own controllers make a volume.
    let volume = json!({ "metadata": { "name": "v" }, "spec": { "capacity": { "storage": "1Gi" },
        "accessModes": ["ReadWriteOnce"], "mountOptions": [], "hostPath": { "path": "/v" } } });
    cluster.create(&kinds::PERSISTENT_VOLUME, volume).expect("created");
    let noted = json!({ "spec": { "mountOptions": [] }, "metadata": { "annotations": { "a": "b" } } });
    for stored in [
        cluster.get(&kinds::PERSISTENT_VOLUME, "v").expect("there"),
        cluster.merge(&kinds::PERSISTENT_VOLUME, "v", Part::Main, noted).expect("patched"),
    ] {
        assert_eq!(stored["spec"].get("mountOptions"), None, "{stored}");
    }
    // As an older version has stored a set.
    let labels = json!({ "app": "web" });
    let made = cluster.create(
        &kinds::STATEFUL_SET,
        json!({ "metadata": { "name": "web" }, "spec": {
        "serviceName": "web", "selector": { "matchLabels": labels }, "template": { "metadata": { "labels": labels },
            "spec": { "containers": [{ "name": "c", "image": "i" }] } } } }),
    );
    let mut old = made.expect("created");
    old["spec"]["template"]["spec"]["volumes"] = json!([]);
    let key = key::object(&kinds::STATEFUL_SET, "default", "web");
    let put = mainstay_store::Op::Put { key, value: codec::encode(&mut old).expect("encoded") };
    cluster.api.store.commit_blocking(Txn { expect: Vec::new(), ops: vec![put] }).expect("stored");
    let noted = json!({ "metadata": { "annotations": { "a": "b" } } });
    let patched = cluster.merge(&kinds::STATEFUL_SET, "web", Part::Main, noted).expect("patched");
    assert_eq!(
        (&patched["metadata"]["generation"], patched["metadata"]["annotations"]["a"].as_str()),
        (&json!(1), Some("b"))
    );
}

/// S11: what an earlier server took, and this one would not, can still be changed otherwise, and goes when it is done.
#[test]
fn s11_what_was_taken_once_can_be_changed_and_finished() {
    let cluster = Cluster::new();
    let spec = json!({ "type": "ClusterIP", "ports": [{ "port": 80 }] });
    let service = json!({ "metadata": { "name": "s", "finalizers": ["a.b/c"] }, "spec": spec });
    let mut old = cluster.create(&kinds::SERVICE, service).expect("created");
    old["spec"]["loadBalancerClass"] = json!("a.b/c");
    let key = key::object(&kinds::SERVICE, "default", "s");
    let put = mainstay_store::Op::Put { key, value: codec::encode(&mut old).expect("encoded") };
    cluster.api.store.commit_blocking(Txn { expect: Vec::new(), ops: vec![put] }).expect("stored");
    let merge = |change: Value| cluster.merge(&kinds::SERVICE, "s", Part::Main, change);
    let labelled = merge(json!({ "metadata": { "labels": { "x": "y" } } })).expect("changed otherwise");
    assert_eq!(labelled["spec"]["loadBalancerClass"], "a.b/c");
    let worse = merge(json!({ "spec": { "allocateLoadBalancerNodePorts": true } })).expect_err("what is new is judged");
    assert!(worse.message.contains("allocateLoad") && !worse.message.contains("Class"), "{}", worse.message);
    cluster.delete(&kinds::SERVICE, "s", &DeleteOptions::default()).expect("deleted");
    merge(json!({ "metadata": { "finalizers": null } })).expect("finished");
    assert!(cluster.get(&kinds::SERVICE, "s").is_none());
}

#[test]
fn a_dry_run_answers_and_writes_nothing() {
    let cluster = Cluster::new();
    let revision = cluster.api.store.revision();
    let reply = cluster
        .api
        .write_now(true, |batch| create(batch, &kinds::CONFIG_MAP, "default", config_map("a")))
        .expect("valid");
    assert_eq!(reply.code, 201);
    assert_eq!(cluster.api.store.revision(), revision);
}

#[test]
fn names_are_taken_once_or_generated() {
    let cluster = Cluster::new();
    cluster.create(&kinds::CONFIG_MAP, config_map("a")).expect("created");
    assert_eq!(cluster.create(&kinds::CONFIG_MAP, config_map("a")).expect_err("taken").reason, "AlreadyExists");
    let made = cluster.create(&kinds::CONFIG_MAP, json!({ "metadata": { "generateName": "web-" } })).expect("created");
    let suffix = object::name(&made).strip_prefix("web-").map(str::len);
    assert_eq!(suffix, Some(5));
    let nameless = cluster.create(&kinds::CONFIG_MAP, json!({ "metadata": {} })).expect_err("no name");
    assert_eq!(nameless.code, 422);
    let elsewhere = json!({ "metadata": { "name": "b", "namespace": "other" } });
    assert_eq!(cluster.create(&kinds::CONFIG_MAP, elsewhere).expect_err("another namespace").code, 400);
}

#[test]
fn status_and_spec_are_written_apart() {
    let cluster = Cluster::new();
    cluster.create(&kinds::POD, pod("a")).expect("created");
    let both = json!({ "metadata": { "labels": { "x": "y" } }, "spec": { "nodeName": "n" },
        "status": { "phase": "Running" } });
    let written = cluster.merge(&kinds::POD, "a", Part::Status, both.clone()).expect("status");
    assert_eq!(
        (object::text(&written, &["status", "phase"]), object::text(&written, &["spec", "nodeName"])),
        ("Running", "")
    );
    let written =
        cluster.merge(&kinds::POD, "a", Part::Main, json!({ "status": { "phase": "Failed" } })).expect("main");
    assert_eq!(object::text(&written, &["status", "phase"]), "Running");
}

#[test]
fn a_pod_is_bound_once() {
    let cluster = Cluster::new();
    let made = cluster.create(&kinds::POD, pod("a")).expect("created");
    let binding = |uid: &str, node: &str| json!({ "metadata": { "uid": uid }, "target": { "name": node } });
    let to = |uid: &str, node: &str| {
        let binding = binding(uid, node);
        cluster.write(|batch| bind(batch, "default", "a", &binding))
    };
    assert_eq!(to("another", "n").expect_err("another pod").code, 409);
    to(object::uid(&made), "n1").expect("bound");
    let again = to(object::uid(&made), "n2").expect_err("bound already");
    assert!(again.message.contains("pod a is already assigned to node \"n1\""), "{}", again.message);
}

#[test]
fn the_first_write_has_a_manager() {
    let cluster = Cluster::new();
    let by = |name: &str| Some(FieldManager { name: name.to_owned(), subresource: String::new() });
    let made = cluster.write(|batch| {
        batch.manager = by("helm");
        create(batch, &kinds::CONFIG_MAP, "default", config_map("a"))
    });
    let made = made.expect("created");
    let entry = &made["metadata"]["managedFields"][0];
    assert_eq!((&entry["manager"], &entry["operation"]), (&json!("helm"), &json!("Update")));
    assert_eq!(entry["fieldsV1"], json!({ "f:data": { "f:a": {} } }));

    let mut config = config_map("a");
    config["data"]["a"] = "2".into();
    let apply_as = |name: &'static str| {
        cluster.write(|batch| {
            batch.manager = by(name);
            apply(batch, &kinds::CONFIG_MAP, "default", "a", Part::Main, &config, false)
        })
    };
    assert_eq!(apply_as("another").expect_err("helm's").code, 409);
    let anonymous = cluster.write(|batch| apply(batch, &kinds::CONFIG_MAP, "default", "a", Part::Main, &config, false));
    assert_eq!(anonymous.expect_err("nobody").code, 422);
}

#[test]
fn s11_applying_again_is_no_write_whatever_the_stored_form_is() {
    let cluster = Cluster::new();
    let policy = json!({ "metadata": { "name": "a" }, "spec": { "podSelector": {}, "ingress": [
        { "ports": [{ "port": 3306 }] }] } });
    let affinity = json!({ "podAntiAffinity": { "preferredDuringSchedulingIgnoredDuringExecution": [
        { "weight": 1, "podAffinityTerm": { "topologyKey": "a", "labelSelector": {}, "namespaces": [] } }] } });
    let deployment = json!({ "metadata": { "name": "a", "annotations": {} }, "spec": {
        "selector": { "matchLabels": { "a": "b" } }, "template": { "metadata": { "labels": { "a": "b" } },
            "spec": { "affinity": affinity, "containers": [{ "name": "c", "image": "i" }] } } } });
    let secret = json!({ "metadata": { "name": "a" }, "stringData": { "a": "b" } });
    for (kind, config) in [(&kinds::SECRET, secret), (&kinds::NETWORK_POLICY, policy), (&kinds::DEPLOYMENT, deployment)]
    {
        let again = || {
            cluster.seconds.fetch_add(1, Ordering::Relaxed);
            let applied = cluster.write(|batch| {
                batch.manager = Some(FieldManager { name: "one".to_owned(), subresource: String::new() });
                apply(batch, kind, "default", "a", Part::Main, &config, false)
            });
            applied.expect("applied")
        };
        let first = again();
        assert_eq!(again(), first, "{}", kind.kind);
    }
}

/// What kubectl does when somebody goes over from `apply` to `apply --server-side`: the fields that its updates own
/// become those of the applying manager, whose configuration does not name what the cluster has given the object.
#[test]
fn s11_who_takes_over_fields_takes_nothing_of_the_clusters_away() {
    let cluster = Cluster::new();
    let class = json!({ "metadata": { "name": "fast", "annotations": {
        "storageclass.kubernetes.io/is-default-class": "true" } }, "provisioner": "mainstay.io/local" });
    cluster.create(&kinds::STORAGE_CLASS, class).expect("created");
    let containers = json!([{ "name": "c", "image": "i" }]);
    let job = json!({ "metadata": { "name": "a" }, "spec": { "template": { "spec": {
        "restartPolicy": "Never", "containers": containers } } } });
    let claim = json!({ "metadata": { "name": "a" }, "spec": { "accessModes": ["ReadWriteOnce"],
        "resources": { "requests": { "storage": "1Gi" } } } });
    let service = json!({ "metadata": { "name": "a" }, "spec": { "ports": [{ "port": 80 }], "type": "NodePort" } });
    let config = [
        (&kinds::JOB, job),
        (&kinds::PERSISTENT_VOLUME_CLAIM, claim),
        (&kinds::POD, json!({ "metadata": { "name": "a" }, "spec": { "containers": containers } })),
        (&kinds::SERVICE, service),
    ];
    let manager = || Some(FieldManager { name: "kubectl".to_owned(), subresource: String::new() });
    for (kind, config) in config {
        let mut made = cluster.write(|batch| {
            batch.manager = manager();
            create(batch, kind, "default", config.clone())
        });
        let made = made.as_mut().expect("created");
        made["metadata"]["managedFields"][0]["operation"] = "Apply".into();
        let moved = cluster.update(kind, "a", made.clone()).expect("moved");
        let applied = cluster.write(|batch| {
            batch.manager = manager();
            apply(batch, kind, "default", "a", Part::Main, &config, false)
        });
        let applied = applied.unwrap_or_else(|refused| panic!("{}: {}", kind.kind, refused.message));
        assert_eq!(applied["spec"], moved["spec"], "{}", kind.kind);
        assert_eq!(applied["metadata"]["finalizers"], moved["metadata"]["finalizers"], "{}", kind.kind);
    }
}

/// Conformance, CSR API operations and CRD status: `/approval` and `/status` write labels and annotations too, but for
/// the kinds that upstream excepts.
#[test]
fn conformance_what_subresources_write_of_the_metadata() {
    let cluster = Cluster::new();
    let budget = json!({ "metadata": { "name": "b" }, "spec": { "minAvailable": 1, "selector": {} } });
    cluster.create(&kinds::POD_DISRUPTION_BUDGET, budget).expect("created");
    let level = json!({ "metadata": { "name": "l" }, "spec": { "type": "Limited", "limited": {
        "nominalConcurrencyShares": 1, "limitResponse": { "type": "Reject" } } } });
    cluster.create(&kinds::PRIORITY_LEVEL_CONFIGURATION, level).expect("created");
    let noted = |kind: &Kind, name: &str| {
        let change = json!({ "metadata": { "annotations": { "a": "b" } } });
        cluster.merge(kind, name, Part::Status, change).expect("written")["metadata"]["annotations"]
            == json!({ "a": "b" })
    };
    assert!(noted(&kinds::POD_DISRUPTION_BUDGET, "b"));
    assert!(!noted(&kinds::PRIORITY_LEVEL_CONFIGURATION, "l"));
}

#[test]
fn conformance_a_resize_changes_amounts_and_nothing_else() {
    let cluster = Cluster::new();
    cluster.create(&kinds::SERVICE_ACCOUNT, json!({ "metadata": { "name": "default" } })).ok();
    let mut made = pod("a");
    made["spec"]["containers"][0]["resources"] =
        json!({ "requests": { "cpu": "1", "memory": "1Mi" }, "limits": { "cpu": "2" } });
    cluster.create(&kinds::POD, made).expect("created");
    let resize = |resources: Value| {
        let stored = cluster.get(&kinds::POD, "a").expect("there");
        let mut containers = stored["spec"]["containers"].clone();
        containers[0]["resources"] = resources;
        cluster.merge(&kinds::POD, "a", Part::Resize, json!({ "spec": { "containers": containers } }))
    };
    let table = [
        (json!({ "requests": { "cpu": "1" }, "limits": { "cpu": "2" } }), "resource requests cannot be removed"),
        (
            json!({ "requests": { "cpu": "2", "memory": "1Mi" }, "limits": { "cpu": "2", "memory": "1Mi" } }),
            "Pod QOS Class may not change",
        ),
        (
            json!({ "requests": { "cpu": "1", "memory": "1Mi", "ephemeral-storage": "1Mi" },
                "limits": { "cpu": "2" } }),
            "only cpu and memory resources are mutable",
        ),
    ];
    for (resources, why) in table {
        let refused = resize(resources).expect_err(why);
        assert!(refused.code == 422 && refused.message.contains(why), "{}", refused.message);
    }
    let fits = json!({ "requests": { "cpu": "1500m", "memory": "2Mi" }, "limits": { "cpu": "2", "memory": "4Mi" } });
    let done = resize(fits.clone()).expect("resized");
    assert_eq!((&done["spec"]["containers"][0]["resources"], &done["metadata"]["generation"]), (&fits, &json!(2)));
}

/// What a manager's apply of a Scale makes: the Scale, or the code and words of the refusal.
fn scale_applied(cluster: &Cluster, manager: &str, config: &Value, force: bool) -> Result<Value, (u16, String)> {
    let written = cluster.write(|batch| {
        batch.manager = Some(FieldManager { name: manager.to_owned(), subresource: "scale".to_owned() });
        scaled(batch, &kinds::DEPLOYMENT, "default", "web", &Scaling::Applied { config, force })
    });
    written.map_err(|status| (status.code, status.message))
}

/// A cluster with a Deployment that `whole` has applied.
fn applied_deployment(replicas: Option<i64>) -> Cluster {
    let cluster = Cluster::new();
    let mut spec = json!({ "selector": { "matchLabels": { "a": "b" } }, "template": {
        "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "c", "image": "i" }] } } });
    if let Some(replicas) = replicas {
        spec["replicas"] = json!(replicas);
    }
    let config = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web" }, "spec": spec });
    let applied = cluster.write(|batch| {
        batch.manager = Some(FieldManager { name: "whole".to_owned(), subresource: String::new() });
        apply(batch, &kinds::DEPLOYMENT, "default", "web", Part::Main, &config, false)
    });
    applied.expect("applied");
    cluster
}

/// The Deployment's replicas, and who has them, sorted.
fn owners_of_replicas(cluster: &Cluster) -> (Value, Vec<String>) {
    let set = cluster.get(&kinds::DEPLOYMENT, "web").expect("there");
    let entries = set["metadata"]["managedFields"].as_array().expect("managed");
    let owners = entries.iter().filter(|entry| entry["fieldsV1"]["f:spec"].get("f:replicas").is_some());
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or("").to_owned();
    let shown =
        |entry: &Value| ["manager", "operation", "apiVersion", "subresource"].map(|field| text(entry, field)).join(" ");
    let mut owners: Vec<String> = owners.map(shown).collect();
    owners.sort();
    (set["spec"]["replicas"].clone(), owners)
}

#[test]
fn conformance_a_scale_is_applied_and_its_owner_is_the_objects() {
    let cluster = applied_deployment(Some(2));
    let scale = |replicas: i64| {
        json!({ "apiVersion": "autoscaling/v1", "kind": "Scale",
        "metadata": { "name": "web" }, "spec": { "replicas": replicas } })
    };
    let (code, why) = scale_applied(&cluster, "scaler", &scale(3), false).expect_err("it is another's");
    assert_eq!((code, &*why), (409, "Apply failed with 1 conflict: conflict with \"whole\": .spec.replicas"));
    assert_eq!(owners_of_replicas(&cluster), (json!(2), vec!["whole Apply apps/v1 ".to_owned()]));

    let made = scale_applied(&cluster, "scaler", &scale(2), false).expect("they agree");
    assert_eq!((&made["kind"], &made["spec"]["replicas"]), (&json!("Scale"), &json!(2)));
    assert_eq!(made["metadata"].get("managedFields"), None);
    let both = vec!["scaler Apply apps/v1 scale".to_owned(), "whole Apply apps/v1 ".to_owned()];
    assert_eq!(owners_of_replicas(&cluster), (json!(2), both.clone()));
    let revision = cluster.api.store.revision();
    scale_applied(&cluster, "scaler", &scale(2), false).expect("again");
    assert_eq!(cluster.api.store.revision(), revision, "the same again is no write");

    scale_applied(&cluster, "scaler", &scale(5), true).expect("by force");
    assert_eq!(owners_of_replicas(&cluster), (json!(5), both[..1].to_vec()));
    let set = cluster.get(&kinds::DEPLOYMENT, "web").expect("there");
    let whole = set["metadata"]["managedFields"].as_array().expect("managed").iter().find(|e| e["manager"] == "whole");
    assert!(whole.expect("kept")["fieldsV1"]["f:spec"].get("f:template").is_some(), "it keeps all else");

    let (code, why) = scale_applied(&cluster, "third", &scale(7), false).expect_err("it is the scaler's");
    let wanted = "Apply failed with 1 conflict: conflict with \"scaler\" with subresource \"scale\": .spec.replicas";
    assert_eq!((code, &*why), (409, wanted));
    let stale = json!({ "metadata": { "name": "web", "resourceVersion": "1" }, "spec": { "replicas": 5 } });
    assert_eq!(scale_applied(&cluster, "scaler", &stale, false).expect_err("A8").0, 409);
    let other = json!({ "metadata": { "name": "other" }, "spec": { "replicas": 5 } });
    assert_eq!(scale_applied(&cluster, "scaler", &other, false).expect_err("another's name").0, 400);
}

#[test]
fn conformance_a_scale_whose_number_is_nobodys_conflicts_with_what_was_before() {
    let cluster = applied_deployment(None);
    let scale = |replicas: i64| json!({ "spec": { "replicas": replicas } });
    let (code, why) = scale_applied(&cluster, "scaler", &scale(3), false).expect_err("upstream's, too");
    let wanted = "conflict with \"before-first-apply\" using autoscaling/v1: .spec.replicas";
    assert_eq!((code, why.ends_with(wanted)), (409, true), "{why}");
    scale_applied(&cluster, "scaler", &scale(3), true).expect("by force");
    assert_eq!(owners_of_replicas(&cluster), (json!(3), vec!["scaler Apply apps/v1 scale".to_owned()]));
    // Differs: upstream would scale to none.
    scale_applied(&cluster, "scaler", &json!({}), false).expect("given up");
    assert_eq!(owners_of_replicas(&cluster), (json!(3), Vec::new()));
    // Whoever patches the Scale has the number next, and an apply conflicts with them.
    let patched = cluster.write(|batch| {
        batch.manager = Some(FieldManager { name: "kubectl".to_owned(), subresource: "scale".to_owned() });
        let how = Scaling::Changed(&|old| {
            let mut new = old.clone();
            new["spec"]["replicas"] = json!(4);
            Ok(new)
        });
        scaled(batch, &kinds::DEPLOYMENT, "default", "web", &how)
    });
    patched.expect("patched");
    assert_eq!(owners_of_replicas(&cluster), (json!(4), vec!["kubectl Update apps/v1 scale".to_owned()]));
    let (code, why) = scale_applied(&cluster, "scaler", &scale(6), false).expect_err("kubectl's");
    let wanted = "conflict with \"kubectl\" with subresource \"scale\" using autoscaling/v1: .spec.replicas";
    assert_eq!((code, why.ends_with(wanted)), (409, true), "{why}");
}
