//! Deletion: preconditions (A8), grace, finalizers, namespaces.

use std::sync::atomic::Ordering;

use mainstay_api::{kinds, object};
use serde_json::json;

use super::*;

#[test]
fn a8_a_reused_name_is_not_deleted_for_its_predecessor() {
    let cluster = Cluster::new();
    let first = cluster.create(&kinds::CONFIG_MAP, config_map("a")).expect("created");
    cluster.delete(&kinds::CONFIG_MAP, "a", &DeleteOptions::default()).expect("deleted");
    let second = cluster.create(&kinds::CONFIG_MAP, config_map("a")).expect("created again");
    assert_ne!(object::uid(&first), object::uid(&second));
    let options = DeleteOptions { uid: Some(object::uid(&first).to_owned()), ..DeleteOptions::default() };
    assert_eq!(cluster.delete(&kinds::CONFIG_MAP, "a", &options).expect_err("another uid").code, 409);
    let options = DeleteOptions { resource_version: Some("1".into()), ..DeleteOptions::default() };
    assert_eq!(cluster.delete(&kinds::CONFIG_MAP, "a", &options).expect_err("another version").code, 409);
    assert!(cluster.get(&kinds::CONFIG_MAP, "a").is_some());
}

/// What is deleted with others is what was listed, as long as it is meant.
#[test]
fn a8_what_was_selected_is_deleted_and_nothing_that_came_after_it() {
    let cluster = Cluster::new();
    let labelled = |name: &str, label: &str| json!({ "metadata": { "name": name, "labels": { "app": label } } });
    for name in ["same", "changed", "moved", "replaced"] {
        cluster.create(&kinds::CONFIG_MAP, labelled(name, "old")).expect("created");
    }
    let query = Query::from([("labelSelector".to_owned(), "app=old".to_owned())]);
    let selection = Selection::new(&kinds::CONFIG_MAP, "default", &query).expect("a selector");
    let mut listed = cluster.api.store.range(&selection.prefix(), None, 10, None).expect("listed").entries;
    listed.retain(|entry| selection.matches(&entry.value).expect("it reads"));
    let relabel = json!({ "metadata": { "labels": { "app": "new" } } });
    cluster.merge(&kinds::CONFIG_MAP, "moved", Part::Main, relabel).expect("changed");
    cluster.merge(&kinds::CONFIG_MAP, "changed", Part::Main, json!({ "data": { "a": "b" } })).expect("changed");
    cluster.delete(&kinds::CONFIG_MAP, "replaced", &DeleteOptions::default()).expect("deleted");
    cluster.create(&kinds::CONFIG_MAP, labelled("replaced", "old")).expect("created again");
    for (name, entry) in ["changed", "moved", "replaced", "same"].iter().zip(&listed) {
        let done = cluster.write(|batch| delete_listed(batch, &selection, entry, &DeleteOptions::default()));
        let is_kept = ["moved", "replaced"].contains(name);
        assert_eq!(done.err().map(|status| status.code), is_kept.then_some(404), "{name}");
        assert_eq!(cluster.get(&kinds::CONFIG_MAP, name).is_some(), is_kept, "{name}");
    }
}

#[test]
fn s10_an_event_that_something_holds_or_counts_expires_as_any_object_goes() {
    let cluster = Cluster::new();
    let make = |name: &str, finalizers: Value| {
        let event = json!({ "metadata": { "name": name, "finalizers": finalizers }, "reason": "Made", "type": "Normal",
            "involvedObject": { "kind": "Pod", "namespace": "default", "name": "a" } });
        cluster.create(&kinds::EVENT, event).expect("created")
    };
    let end = |name: &str| {
        let done = || Outcome::ok(Body::Value(json!({})));
        cluster.write(|batch| expire(batch, "default", name).map(|()| done()))
    };
    make("free", json!([]));
    make("held", json!(["example.com/kept"]));
    let store = &cluster.api.store;
    let mut watcher = store.watch("/core/events/", store.revision()).expect("a watch");
    end("free").expect("gone");
    assert_eq!((cluster.get(&kinds::EVENT, "free"), end("free").expect_err("gone").code), (None, 404));
    let told = watcher.try_next().expect("in time").expect("an event");
    let last: Value = serde_json::from_slice(&told.value).expect("JSON");
    assert!(told.deleted && object::name(&last) == "free");
    assert_eq!(object::resource_version(&last), told.revision.to_string());
    end("held").expect("on its way");
    assert!(object::is_terminating(&cluster.get(&kinds::EVENT, "held").expect("held")));

    make("counted", json!([]));
    let hard = json!({ "count/events": "5" });
    let quota = json!({ "metadata": { "name": "q" }, "spec": { "hard": hard } });
    cluster.create(&kinds::RESOURCE_QUOTA, quota).expect("created");
    let status = json!({ "status": { "hard": hard, "used": { "count/events": "2" } } });
    cluster.merge(&kinds::RESOURCE_QUOTA, "q", Part::Status, status).expect("counted");
    end("counted").expect("gone");
    let quota = cluster.get(&kinds::RESOURCE_QUOTA, "q").expect("there");
    assert_eq!((cluster.get(&kinds::EVENT, "counted"), &quota["status"]["used"]["count/events"]), (None, &json!("1")));
}

#[test]
fn a_bound_pod_goes_gracefully_and_an_unbound_one_at_once() {
    let cluster = Cluster::new();
    cluster.create(&kinds::POD, pod("free")).expect("created");
    cluster.delete(&kinds::POD, "free", &DeleteOptions::default()).expect("deleted");
    assert_eq!(cluster.get(&kinds::POD, "free"), None);

    let made = cluster.create(&kinds::POD, pod("a")).expect("created");
    let binding = json!({ "metadata": { "uid": object::uid(&made) }, "target": { "name": "n" } });
    cluster.write(|batch| bind(batch, "default", "a", &binding)).expect("bound");
    let deleting = cluster.delete(&kinds::POD, "a", &DeleteOptions::default()).expect("on its way");
    assert_eq!(deleting["metadata"]["deletionGracePeriodSeconds"], 30);
    let at = |pod: &Value| {
        object::text(pod, &["metadata", "deletionTimestamp"]).parse::<Timestamp>().expect("a time").as_second()
    };
    assert_eq!(at(&deleting), cluster.seconds.load(Ordering::Relaxed) + 30);
    let revision = cluster.api.store.revision();
    cluster.delete(&kinds::POD, "a", &DeleteOptions { grace: Some(60), ..DeleteOptions::default() }).expect("accepted");
    assert_eq!(cluster.api.store.revision(), revision, "the period never gets longer");
    let sooner = cluster
        .delete(&kinds::POD, "a", &DeleteOptions { grace: Some(5), ..DeleteOptions::default() })
        .expect("shorter");
    assert_eq!(at(&sooner), cluster.seconds.load(Ordering::Relaxed) + 5);
    cluster.delete(&kinds::POD, "a", &DeleteOptions { grace: Some(0), ..DeleteOptions::default() }).expect("gone");
    assert_eq!(cluster.get(&kinds::POD, "a"), None);
}

#[test]
fn finalizers_hold_and_the_last_one_lets_go() {
    let cluster = Cluster::new();
    let held = json!({ "metadata": { "name": "a", "finalizers": ["x.io/one", "x.io/two"] } });
    cluster.create(&kinds::CONFIG_MAP, held).expect("created");
    cluster.delete(&kinds::CONFIG_MAP, "a", &DeleteOptions::default()).expect("on its way");
    let add = cluster.merge(
        &kinds::CONFIG_MAP,
        "a",
        Part::Main,
        json!({ "metadata": { "finalizers": ["x.io/one", "x.io/new"] } }),
    );
    assert!(
        add.expect_err("none may come")
            .message
            .contains("no new finalizers can be added if the object is being deleted")
    );
    cluster
        .merge(&kinds::CONFIG_MAP, "a", Part::Main, json!({ "metadata": { "finalizers": ["x.io/two"] } }))
        .expect("one less");
    assert!(cluster.get(&kinds::CONFIG_MAP, "a").is_some());
    cluster.merge(&kinds::CONFIG_MAP, "a", Part::Main, json!({ "metadata": { "finalizers": null } })).expect("let go");
    assert_eq!(cluster.get(&kinds::CONFIG_MAP, "a"), None);
}

#[test]
fn the_propagation_policy_becomes_a_finalizer() {
    let cluster = Cluster::new();
    let table = [("Foreground", Some("foregroundDeletion")), ("Orphan", Some("orphan")), ("Background", None)];
    for (policy, finalizer) in table {
        cluster.create(&kinds::CONFIG_MAP, config_map("a")).expect("created");
        let options = DeleteOptions { propagation: Some(policy.into()), ..DeleteOptions::default() };
        cluster.delete(&kinds::CONFIG_MAP, "a", &options).expect("accepted");
        let left = cluster.get(&kinds::CONFIG_MAP, "a");
        let found = left.as_ref().and_then(|left| object::finalizers(left).next().map(str::to_owned));
        assert_eq!(found.as_deref(), finalizer, "{policy}");
        if left.is_some() {
            cluster
                .merge(&kinds::CONFIG_MAP, "a", Part::Main, json!({ "metadata": { "finalizers": null } }))
                .expect("let go");
        }
    }
    let both =
        DeleteOptions { propagation: Some("Orphan".into()), orphan_dependents: Some(true), ..DeleteOptions::default() };
    cluster.create(&kinds::CONFIG_MAP, config_map("a")).expect("created");
    assert_eq!(cluster.delete(&kinds::CONFIG_MAP, "a", &both).expect_err("contradictory").code, 422);
}

/// What a Job does must not end because its client does not know of propagation: most do not.
#[test]
fn conformance_pods_of_jobs_and_controllers_stay_where_nobody_says_otherwise() {
    let cluster = Cluster::new();
    let template = |policy: &str| {
        json!({ "metadata": { "labels": { "app": "a" } },
            "spec": { "restartPolicy": policy, "containers": [{ "name": "c", "image": "i" }] } })
    };
    let job = json!({ "metadata": { "name": "a" }, "spec": { "template": template("Never") } });
    let controller = json!({ "metadata": { "name": "a" }, "spec": { "template": template("Always") } });
    let set = json!({ "metadata": { "name": "a" },
        "spec": { "selector": { "matchLabels": { "app": "a" } }, "template": template("Always") } });
    let said = |policy: Option<&str>, orphan| DeleteOptions {
        propagation: policy.map(str::to_owned),
        orphan_dependents: orphan,
        ..DeleteOptions::default()
    };
    let table = [
        (&kinds::JOB, &job, json!([]), said(None, None), Some("orphan")),
        (&kinds::JOB, &job, json!([]), said(Some("Background"), None), None),
        (&kinds::JOB, &job, json!([]), said(Some("Foreground"), None), Some("foregroundDeletion")),
        (&kinds::JOB, &job, json!([]), said(None, Some(false)), None),
        (&kinds::JOB, &job, json!(["foregroundDeletion"]), said(None, None), Some("foregroundDeletion")),
        (&kinds::REPLICATION_CONTROLLER, &controller, json!([]), said(None, None), Some("orphan")),
        (&kinds::REPLICATION_CONTROLLER, &controller, json!([]), said(Some("Background"), None), None),
        (&kinds::REPLICA_SET, &set, json!([]), said(None, None), None),
    ];
    for (kind, object, finalizers, options, left) in table {
        let mut object = object.clone();
        object["metadata"]["finalizers"] = finalizers;
        cluster.create(kind, object).expect("created");
        cluster.delete(kind, "a", &options).expect("deleted");
        let now = cluster.get(kind, "a");
        let found = now.as_ref().and_then(|now| object::finalizers(now).next().map(str::to_owned));
        assert_eq!(found.as_deref(), left, "{} {options:?}", kind.kind);
        let is_warned = deletion_warning(kind, &options).is_some_and(|why| why.contains("propagationPolicy=Orphan"));
        assert_eq!(is_warned, *kind == kinds::JOB && options == said(None, None), "{} {options:?}", kind.kind);
        if now.is_some() {
            cluster.merge(kind, "a", Part::Main, json!({ "metadata": { "finalizers": null } })).expect("let go");
        }
    }
}

#[test]
fn a_namespace_on_its_way_out_takes_nothing_new_and_goes_when_it_is_finalized() {
    let cluster = Cluster::new();
    cluster.create(&kinds::NAMESPACE, json!({ "metadata": { "name": "ns" } })).expect("created");
    let within = |name: &str| {
        let object = config_map(name);
        cluster.write(|batch| create(batch, &kinds::CONFIG_MAP, "ns", object.clone()))
    };
    within("before").expect("created");
    cluster.delete(&kinds::NAMESPACE, "ns", &DeleteOptions::default()).expect("on its way");
    let leaving = cluster.get(&kinds::NAMESPACE, "ns").expect("still there");
    assert_eq!(object::text(&leaving, &["status", "phase"]), "Terminating");
    let refused = within("after").expect_err("too late");
    assert_eq!(
        refused.message,
        r#"configmaps "after" is forbidden: unable to create new content in namespace ns because it is being terminated"#
    );
    cluster
        .merge(&kinds::NAMESPACE, "ns", Part::Finalize, json!({ "spec": { "finalizers": null } }))
        .expect("finalized");
    assert_eq!(cluster.get(&kinds::NAMESPACE, "ns"), None);
    let missing = within("never").expect_err("no namespace");
    assert_eq!((missing.code, missing.message.as_str()), (404, r#"namespaces "ns" not found"#));
    assert_eq!(
        cluster.delete(&kinds::NAMESPACE, "default", &DeleteOptions::default()).expect_err("immortal").code,
        403
    );
}

#[test]
fn a9_options_of_another_kind_delete_nothing() {
    for good in [json!({}), json!({ "kind": "DeleteOptions", "apiVersion": "apps/v1" }), json!({ "kind": "" })] {
        DeleteOptions::from_json(&good).expect("options");
    }
    let pod = json!({ "kind": "Pod", "apiVersion": "v1", "metadata": { "name": "a" } });
    let refused = DeleteOptions::from_json(&pod).expect_err("an object");
    assert_eq!((refused.code, &*refused.message), (400, "Pod in version \"v1\" cannot be handled as a DeleteOptions"));
}
