//! Tests of owners whose pods a node refuses, and of decisions of which a policy refuses a part.

use jiff::{SignedDuration, Timestamp};
use mainstay_api::kinds::{
    CONFIG_MAP, CRON_JOB, DAEMON_SET, DEPLOYMENT, ENDPOINT_SLICE, JOB, NAMESPACE, PERSISTENT_VOLUME_CLAIM, POD,
    REPLICA_SET, REPLICATION_CONTROLLER, SERVICE_ACCOUNT, STATEFUL_SET,
};
use mainstay_api::{Kind, ObjectKey};
use serde_json::{Value, json};

use super::{cronjob, daemonset, deployment, endpointslicemirroring, ephemeral, garbagecollector, job, namespace};
use super::{nodelifecycle, podgc, replicaset, replicationcontroller, serviceaccount, statefulset};
use crate::decision::{Controller, Propagation, Waiting, Write};
use crate::scheduler::tests::node;
use crate::world::World;

const OWNERS: &[Controller] =
    &[replicaset::CONTROLLER, replicationcontroller::CONTROLLER, daemonset::CONTROLLER, statefulset::CONTROLLER];

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

/// An owner with three pods (of a DaemonSet: one), whose names and labels are its kind's.
fn owner(kind: &Kind) -> Value {
    let name = kind.kind.to_lowercase();
    let labels = json!({ "app": name });
    let template =
        json!({ "metadata": { "labels": labels }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    let mut spec = json!({ "replicas": 3, "selector": { "matchLabels": labels }, "template": template });
    if *kind == DAEMON_SET {
        spec["replicas"] = Value::Null;
    } else if *kind == REPLICATION_CONTROLLER {
        spec["selector"] = labels;
    } else if *kind == STATEFUL_SET {
        spec["podManagementPolicy"] = json!("Parallel");
        spec["serviceName"] = json!("s");
    }
    let metadata = json!({ "namespace": "default", "name": name, "uid": name, "generation": 1 });
    json!({ "apiVersion": kind.api_version(), "kind": kind.kind, "metadata": metadata, "spec": spec })
}

/// Lets the owners decide, once for each second, and then the node: it refuses every pod, or takes it.
fn live(world: &mut World, seconds: std::ops::Range<i64>, accepts: bool) {
    live_ahead(world, seconds, accepts, 0);
}

/// The same with a node whose clock is so many seconds ahead.
fn live_ahead(world: &mut World, seconds: std::ops::Range<i64>, accepts: bool, ahead: i64) {
    for second in seconds {
        let now = at(second);
        for controller in OWNERS {
            for kind in [&REPLICA_SET, &REPLICATION_CONTROLLER, &DAEMON_SET, &STATEFUL_SET] {
                let is_its = controller.reads.first() == Some(&&*kind.plural);
                if is_its && !world.get(kind, "default", &kind.kind.to_lowercase()).is_null() {
                    let key = ObjectKey::new("default", kind.kind.to_lowercase().as_str());
                    while world.run(controller, &key, now, usize::MAX) > 0 {
                        date(world, now);
                    }
                }
            }
        }
        world.settle(&[podgc::CONTROLLER], now);
        let pods: Vec<Value> = world.all(&POD).cloned().collect();
        for pod in pods {
            let name = pod["metadata"]["name"].as_str().unwrap();
            if !pod["metadata"]["deletionTimestamp"].is_null() {
                world.remove(&POD, &ObjectKey::new("default", name));
            } else if pod["status"].is_null() {
                let ready = json!([{ "type": "Ready", "status": if accepts { "True" } else { "False" },
                    "lastTransitionTime": at(second + ahead).to_string() }]);
                let status = json!({ "phase": if accepts { "Running" } else { "Failed" }, "reason": "AppArmor",
                    "conditions": ready });
                let patch = json!({ "spec": { "nodeName": "n1" }, "status": status });
                world.patch(&POD, "default", name, patch);
            }
        }
    }
}

/// New pods get the time at which they were made, as from the API.
fn date(world: &mut World, now: Timestamp) {
    let new = world.all(&POD).filter(|pod| pod["metadata"]["creationTimestamp"].is_null());
    let names: Vec<String> = new.map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect();
    for name in names {
        world.patch(&POD, "default", &name, json!({ "metadata": { "creationTimestamp": now.to_string() } }));
    }
}

/// How many pods were made for an owner of a kind.
fn made(world: &World, kind: &Kind) -> usize {
    let is_its = |write: &Write| match write {
        Write::Create { kind: of, object } => {
            *of == POD && object["metadata"]["ownerReferences"][0]["kind"] == *kind.kind
        }
        _ => false,
    };
    world.log.iter().filter(|(_, write)| is_its(write)).count()
}

fn running(world: &World) -> usize {
    world.all(&POD).filter(|pod| pod["status"]["phase"] == "Running").count()
}

/// X7, S12: a node that refuses everything for an hour costs some dozens of pods, not one for every round; what it
/// takes again, it gets.
#[test]
fn x7_s12_pods_that_a_node_refuses_are_made_later_and_later() {
    for kind in [&REPLICA_SET, &REPLICATION_CONTROLLER, &DAEMON_SET, &STATEFUL_SET] {
        let mut world = World::default();
        world.put(node("n1", json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } })));
        world.put(owner(kind));
        live(&mut world, 0..3600, false);
        let most = if *kind == STATEFUL_SET { 3 * 25 } else { 30 };
        let count = made(&world, kind);
        assert!((10..=most).contains(&count), "{}: {count} pods in an hour", kind.kind);
        // It is not tried less than every five minutes, and then all of them run at once.
        live(&mut world, 3600..3600 + 302, true);
        assert_eq!(running(&world), if *kind == DAEMON_SET { 1 } else { 3 }, "{}", kind.kind);
    }
}

/// S12: who holds a refused pod back says so, is woken for the moment that it names, and makes the pod at that moment.
#[test]
fn s12_a_refused_pod_is_made_again_at_the_moment_that_was_named() {
    for (controller, kind) in OWNERS.iter().zip([&REPLICA_SET, &REPLICATION_CONTROLLER, &DAEMON_SET, &STATEFUL_SET]) {
        let mut world = World::default();
        world.put(node("n1", json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } })));
        world.put(owner(kind));
        live(&mut world, 0..100, false);
        let key = ObjectKey::new("default", kind.kind.to_lowercase().as_str());
        let decided = |at: Timestamp| (controller.reconcile)(&world.snapshot, &key, at);
        let held = decided(at(100));
        assert!(held.waiting.contains(&Waiting::Backoff), "{}: {:?}", kind.kind, held.waiting);
        let then = held.wake_at.unwrap_or_else(|| panic!("{}: nobody wakes it", kind.kind));
        assert!(then > at(100), "{}: {then}", kind.kind);
        let makes_one = |write: &Write| match write {
            Write::Create { kind, .. } | Write::Delete { kind, .. } => *kind == POD,
            _ => false,
        };
        assert!(!held.writes.iter().any(makes_one), "{}: {:?}", kind.kind, held.writes);
        let due = decided(then);
        assert!(due.writes.iter().any(makes_one), "{}: {:?} {:?}", kind.kind, due.waiting, due.writes);
    }
}

/// S12: what a node's clock says, which may be years ahead, keeps no set from its pods.
#[test]
fn s12_a_node_whose_clock_is_ahead_holds_up_no_set() {
    const YEARS: i64 = 10 * 365 * 24 * 3600;
    for kind in [&REPLICA_SET, &REPLICATION_CONTROLLER, &DAEMON_SET, &STATEFUL_SET] {
        let mut world = World::default();
        world.put(node("n1", json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } })));
        world.put(owner(kind));
        live_ahead(&mut world, 0..600, false, YEARS);
        assert!((5..=75).contains(&made(&world, kind)), "{}: {}", kind.kind, made(&world, kind));
        live_ahead(&mut world, 600..902, true, YEARS);
        assert_eq!(running(&world), if *kind == DAEMON_SET { 1 } else { 3 }, "{}", kind.kind);
    }
}

/// S7: what was learnt of one template is not held against the next.
#[test]
fn s7_a_corrected_template_does_not_wait_for_the_pause_of_the_one_before() {
    for kind in [&REPLICA_SET, &REPLICATION_CONTROLLER, &DAEMON_SET, &STATEFUL_SET] {
        let mut world = World::default();
        world.put(node("n1", json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } })));
        world.put(owner(kind));
        live(&mut world, 0..1000, false);
        let containers = json!([{ "name": "c", "image": "better" }]);
        let patch = json!({ "metadata": { "generation": 2 }, "spec": { "template": { "spec": { "containers": containers
            } } } });
        world.patch(kind, "default", &kind.kind.to_lowercase(), patch);
        live(&mut world, 1000..1005, true);
        assert_eq!(running(&world), if *kind == DAEMON_SET { 1 } else { 3 }, "{}", kind.kind);
    }
}

/// X7: what has ended does not pile up, neither for one owner nor in all.
#[test]
fn x7_pods_that_have_ended_go_when_they_are_too_many() {
    let ended = |number: usize, reason: &str, owned: bool| {
        let mut pod = json!({ "kind": "Pod", "metadata": { "namespace": "default", "name": format!("p{number:05}"),
                "creationTimestamp": at(i64::try_from(number).unwrap()).to_string() },
            "spec": { "containers": [] }, "status": { "phase": "Failed", "reason": reason } });
        if owned {
            pod["metadata"]["ownerReferences"] = json!([{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web",
                "uid": "set", "controller": true }]);
        }
        pod
    };
    let mut world = World::default();
    for number in 0..60 {
        let mut pod = ended(number, "", true);
        // Whatever their names are.
        pod["metadata"]["name"] = json!(format!("p{:05}", 99 - number));
        world.put(pod);
    }
    world.settle(&[podgc::CONTROLLER], at(0));
    let left: Vec<&str> = world.all(&POD).map(|pod| pod["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!((left.len(), left[0], left[49]), (50, "p00040", "p00089"), "the oldest go");
    (0..600).for_each(|number| world.put(ended(number, "", true)));
    let all = (podgc::CONTROLLER.reconcile)(&world.snapshot, &ObjectKey::new("", "set"), at(0)).writes;
    assert_eq!(all.len(), 500, "not all of them in one transaction");

    let mut world = World::default();
    (0..12_503).for_each(|number| world.put(ended(number, if number == 9_000 { "Evicted" } else { "" }, false)));
    world.settle(&[podgc::CONTROLLER], at(0));
    assert_eq!(world.all(&POD).count(), 12_500);
    for name in ["p09000", "p00000", "p00001"] {
        assert!(world.get(&POD, "default", name).is_null(), "{name}");
    }
}

/// X7, S12: however many may not be deleted, those that come after them go: pods that have ended, what is in a
/// namespace, dependents of an owner that leaves them.
#[test]
fn x7_s12_what_may_not_be_deleted_stands_in_the_way_of_nothing() {
    let named = |number: usize, kept: usize| format!("{}{number:05}", if number < kept { "kept" } else { "p" });
    let tries = |world: &mut World, controller: &Controller, key: &ObjectKey| {
        world.refuses = Some(protects);
        (0..60).for_each(|try_| {
            world.run(controller, key, at(try_ * 30), usize::MAX);
        });
    };
    let mut world = World::default();
    for number in 0..700 {
        world.put(json!({ "kind": "Pod",
            "metadata": { "namespace": "default", "name": named(number, 500),
                "creationTimestamp": at(i64::try_from(number).unwrap()).to_string(),
                "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "set",
                    "controller": true }] },
            "spec": { "containers": [] }, "status": { "phase": "Failed" } }));
    }
    tries(&mut world, &podgc::CONTROLLER, &ObjectKey::new("", "set"));
    assert_eq!(world.all(&POD).count(), 550, "those that may not go, and fifty");
    let newest = world.all(&POD).filter(|pod| pod["metadata"]["name"].as_str().unwrap() >= "p00650").count();
    assert_eq!(newest, 50);

    let mut world = World::default();
    world.put(json!({ "kind": "Namespace", "metadata": { "name": "full", "finalizers": ["x.io/held"] } }));
    for number in 0..2100 {
        world.put(json!({ "kind": "ConfigMap",
            "metadata": { "namespace": "full", "name": named(number, 2000) } }));
    }
    world.delete(&NAMESPACE, "", "full", None);
    tries(&mut world, &namespace::CONTROLLER, &ObjectKey::new("", "full"));
    assert_eq!(world.all(&CONFIG_MAP).count(), 2000);
}

/// A name is a label, whoever makes the pod and however long the owner's name is.
#[test]
fn names_of_generated_pods_are_cut_as_the_api_server_cuts_them() {
    for kind in [&REPLICA_SET, &DAEMON_SET, &JOB] {
        let long = "n".repeat(if *kind == JOB { 63 } else { 253 });
        let mut world = World::default();
        world.put(node("n1", json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } })));
        let mut object = owner(if *kind == JOB { &REPLICA_SET } else { kind });
        (object["kind"], object["apiVersion"]) = (json!(kind.kind), json!(kind.api_version()));
        object["metadata"]["name"] = json!(long);
        world.put(object);
        world.settle(&[replicaset::CONTROLLER, daemonset::CONTROLLER, job::CONTROLLER], at(0));
        let pod = world.all(&POD).next().unwrap_or_else(|| panic!("{}: no pod", kind.kind));
        assert_eq!(pod["metadata"]["name"].as_str().unwrap().len(), 63, "{}", kind.kind);
        assert_eq!(pod["metadata"]["generateName"], format!("{long}-"), "what was asked for is kept");
    }
}

/// What a policy protects: an object named `kept…`.
fn protects(write: &Write) -> bool {
    match write {
        Write::Delete { key, .. } | Write::Patch { key, status: false, .. } => key.name.starts_with("kept"),
        Write::Create { kind, object } => *kind == POD && object["metadata"]["name"] == "statefulset-0",
        _ => false,
    }
}

/// S12: a decision whose first part is refused does the rest: pods of a set, Jobs of the past, dependents.
#[test]
fn s12_a_refused_write_stops_only_what_needs_it() {
    let mut world = World::default();
    world.refuses = Some(protects);
    world.put(owner(&STATEFUL_SET));
    world.settle(OWNERS, at(0));
    let names: Vec<&str> = world.all(&POD).map(|pod| pod["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["statefulset-1", "statefulset-2"], "the first may not be made");
    assert_eq!(world.get(&STATEFUL_SET, "default", "statefulset")["status"]["observedGeneration"], 1);

    // The old Job may not be forgotten; the next one starts.
    let mut world = World::default();
    world.refuses = Some(protects);
    let created = json!(at(0).to_string());
    world.put(json!({ "kind": "CronJob", "metadata": { "namespace": "default", "name": "cron", "uid": "cron",
            "creationTimestamp": created },
        "spec": { "schedule": "* * * * *", "failedJobsHistoryLimit": 0,
            "jobTemplate": { "spec": { "template": { "spec": { "containers": [] } } } } } }));
    let by_cron = json!([{ "apiVersion": "batch/v1", "kind": "CronJob", "name": "cron", "uid": "cron",
        "controller": true }]);
    world.put(json!({ "kind": "Job",
        "metadata": { "namespace": "default", "name": "kept", "ownerReferences": by_cron },
        "spec": { "template": { "spec": { "containers": [] } } },
        "status": { "conditions": [{ "type": "Failed", "status": "True" }] } }));
    world.settle(&[cronjob::CONTROLLER], at(120));
    assert_eq!((world.all(&JOB).count(), world.all(&CRON_JOB).count()), (2, 1), "{:?}", world.events);

    // One dependent that may not be changed keeps the others from nothing, and is not collected in the end.
    let mut world = World::default();
    world.refuses = Some(protects);
    let of_owner = json!([{ "apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": "owner" }]);
    world.put(json!({ "kind": "ConfigMap", "metadata": { "namespace": "default", "name": "owner", "uid": "owner" } }));
    for name in ["a", "kept", "z"] {
        world.put(json!({ "kind": "ConfigMap",
            "metadata": { "namespace": "default", "name": name, "ownerReferences": of_owner } }));
    }
    world.delete_with(&CONFIG_MAP, &ObjectKey::new("default", "owner"), None, Propagation::Orphan);
    world.settle(&[garbagecollector::CONTROLLER], at(0));
    let owned: Vec<&str> = world
        .all(&CONFIG_MAP)
        .filter(|object| object["metadata"]["ownerReferences"].is_array())
        .map(|object| object["metadata"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(owned, ["kept"]);
    world.refuses = None;
    let key = garbagecollector::key_for(&CONFIG_MAP, &ObjectKey::new("default", "owner"));
    world.run(&garbagecollector::CONTROLLER, &key, at(1), usize::MAX);
    world.settle(&[garbagecollector::CONTROLLER], at(1));
    let left: Vec<&str> = world.all(&CONFIG_MAP).map(|object| object["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(left, ["a", "kept", "z"]);
}

/// What a policy protects, whatever is done to it: what is named `kept…`, and what is made of it.
fn protects_all(write: &Write) -> bool {
    match write {
        Write::Patch { key, .. } => key.name.starts_with("kept"),
        Write::Create { object, .. } => {
            let name = object["metadata"]["name"].as_str().unwrap();
            name.starts_with("kept") || name.ends_with("-0") || name == "default"
        }
        _ => protects(write),
    }
}

/// S12: the same of those that write several objects which have nothing to do with each other.
#[test]
fn s12_of_several_objects_one_that_may_not_be_written_keeps_no_other() {
    let mut world = World::default();
    world.refuses = Some(protects_all);
    world.put(node("n1", json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } })));
    for name in ["kept", "web"] {
        let ready = json!([{ "type": "Ready", "status": "True" }]);
        world.put(json!({ "kind": "Pod", "metadata": { "namespace": "default", "name": name },
            "spec": { "nodeName": "n1", "containers": [] },
            "status": { "phase": "Running", "conditions": ready } }));
    }
    world.snapshot.silences.advance(core::time::Duration::from_secs(1000));
    world.run(&nodelifecycle::CONTROLLER, &ObjectKey::new("", "n1"), at(0), usize::MAX);
    let ready = |name: &str| world.get(&POD, "default", name)["status"]["conditions"][0]["status"].clone();
    assert_eq!((ready("kept"), ready("web")), (json!("True"), json!("False")));

    // Slices of a Service that is gone, and those that replace others.
    let mut world = World::default();
    world.refuses = Some(protects_all);
    for name in ["kept", "z"] {
        world.put(json!({ "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [],
            "metadata": { "namespace": "default", "name": name, "labels": { "kubernetes.io/service-name": "db",
                "endpointslice.kubernetes.io/managed-by": "endpointslicemirroring-controller.k8s.io" } } }));
    }
    world.run(&endpointslicemirroring::CONTROLLER, &ObjectKey::new("default", "db"), at(0), usize::MAX);
    let left: Vec<&str> = world.all(&ENDPOINT_SLICE).map(|one| one["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(left, ["kept"]);

    // The account may not be made; what pods trust is there.
    let mut world = World::default();
    world.refuses = Some(protects_all);
    for name in ["a", "kube-system"] {
        world.put(json!({ "kind": "Namespace", "metadata": { "name": name } }));
    }
    world.put(json!({ "kind": "ConfigMap", "metadata": { "namespace": "kube-system", "name": "kube-root-ca.crt" },
        "data": { "ca.crt": "x" } }));
    world.run(&serviceaccount::CONTROLLER, &ObjectKey::new("", "a"), at(0), usize::MAX);
    assert_eq!((world.all(&SERVICE_ACCOUNT).count(), world.all(&CONFIG_MAP).count()), (0, 2));

    // Of a pod's own claims one is refused.
    let mut world = World::default();
    world.refuses = Some(protects_all);
    let volume = |name: &str| json!({ "name": name, "ephemeral": { "volumeClaimTemplate": { "spec": {} } } });
    world.put(json!({ "kind": "Pod", "metadata": { "namespace": "default", "name": "kept", "uid": "u" },
        "spec": { "containers": [], "volumes": [volume("a"), volume("b")] } }));
    world.refuses =
        Some(|write| matches!(write, Write::Create { object, .. } if object["metadata"]["name"] == "kept-a"));
    world.run(&ephemeral::CONTROLLER, &ObjectKey::new("default", "kept"), at(0), usize::MAX);
    let claims: Vec<&Value> = world.all(&PERSISTENT_VOLUME_CLAIM).map(|claim| &claim["metadata"]["name"]).collect();
    assert_eq!(claims, ["kept-b"]);
}

/// S12: a ReplicaSet that may not be changed keeps no other at its size; where the next one may not be made, what there
/// is is counted.
#[test]
fn s12_a_replica_set_that_may_not_be_written_keeps_no_other_and_no_status() {
    let mut world = World::default();
    world.put(owner(&DEPLOYMENT));
    let labels = json!({ "app": "deployment" });
    for name in ["kept", "z"] {
        let template =
            json!({ "metadata": { "labels": labels }, "spec": { "containers": [{ "name": "c", "image": "old" }] } });
        world.put(json!({ "kind": "ReplicaSet",
            "metadata": { "namespace": "default", "name": name, "labels": labels,
                "annotations": { "deployment.kubernetes.io/desired-replicas": "3" },
                "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "Deployment", "name": "deployment",
                    "uid": "deployment", "controller": true }] },
            "spec": { "replicas": 1, "selector": { "matchLabels": labels }, "template": template },
            "status": { "replicas": 1, "readyReplicas": 1, "availableReplicas": 1 } }));
    }
    let key = ObjectKey::new("default", "deployment");
    world.run(&deployment::CONTROLLER, &key, at(0), usize::MAX);
    let new = world.all(&REPLICA_SET).map(|set| set["metadata"]["name"].as_str().unwrap().to_owned());
    let new = new.into_iter().find(|name| name.starts_with("deployment-")).unwrap();
    let full = json!({ "replicas": 3, "readyReplicas": 3, "availableReplicas": 3 });
    world.patch(&REPLICA_SET, "default", &new, json!({ "spec": { "replicas": 3 }, "status": full }));
    world.refuses = Some(protects_all);
    world.run(&deployment::CONTROLLER, &key, at(1), usize::MAX);
    let size = |name: &str| world.get(&REPLICA_SET, "default", name)["spec"]["replicas"].clone();
    assert_eq!([size("kept"), size("z")], [json!(1), json!(0)]);
    let status = |world: &World| world.get(&DEPLOYMENT, "default", "deployment")["status"].clone();
    assert_eq!((&status(&world)["updatedReplicas"], &status(&world)["replicas"]), (&json!(3), &json!(5)));

    let image = json!({ "spec": { "containers": [{ "name": "c", "image": "new" }] } });
    world.patch(&DEPLOYMENT, "default", "deployment", json!({ "spec": { "template": image } }));
    world.patch(&REPLICA_SET, "default", &new, json!({ "status": { "readyReplicas": 1, "availableReplicas": 1 } }));
    world.refuses = Some(|write| matches!(write, Write::Create { .. }));
    for try_ in 2..4 {
        let written = world.run(&deployment::CONTROLLER, &key, at(try_), usize::MAX);
        assert!(try_ == 2 || written == 0, "what is refused again says nothing new: {:?}", world.log.last());
    }
    assert_eq!(world.all(&REPLICA_SET).count(), 3);
    assert_eq!(status(&world)["readyReplicas"], 3);
    let told = status(&world)["conditions"].to_string();
    assert!(told.contains("MinimumReplicasAvailable") && !told.contains("NewReplicaSetCreated"), "{told}");
}

/// S12: what became of a CronJob's last Job is known also where the next one may not be made.
#[test]
fn s12_a_job_that_may_not_be_made_keeps_the_others_from_no_status() {
    let mut world = World::default();
    world.put(json!({ "kind": "CronJob", "metadata": { "namespace": "default", "name": "cron", "uid": "cron",
            "creationTimestamp": at(0).to_string() },
        "spec": { "schedule": "* * * * *",
            "jobTemplate": { "spec": { "template": { "spec": { "containers": [] } } } } },
        "status": { "active": [{ "name": "gone", "uid": "gone" }] } }));
    world.refuses = Some(|write| matches!(write, Write::Create { .. }));
    world.run(&cronjob::CONTROLLER, &ObjectKey::new("default", "cron"), at(120), usize::MAX);
    let status = |world: &World| world.get(&CRON_JOB, "default", "cron")["status"].clone();
    assert_eq!((&status(&world)["active"], &status(&world)["lastScheduleTime"]), (&Value::Null, &Value::Null));
    world.refuses = None;
    world.run(&cronjob::CONTROLLER, &ObjectKey::new("default", "cron"), at(121), usize::MAX);
    assert!(status(&world)["lastScheduleTime"].is_string());
}

/// Upstream: a Deployment says what its ReplicaSet says of pods that are refused, while it does.
#[test]
fn a_deployment_says_that_its_pods_are_refused() {
    let mut world = World::default();
    world.put(owner(&DEPLOYMENT));
    world.settle(&[deployment::CONTROLLER], at(0));
    let set = world.all(&REPLICA_SET).next().unwrap()["metadata"]["name"].as_str().unwrap().to_owned();
    let failure = |world: &World| {
        let status = world.get(&DEPLOYMENT, "default", "deployment")["status"].clone();
        let all = status["conditions"].as_array().cloned().unwrap_or_default();
        let found = all.into_iter().find(|condition| condition["type"] == "ReplicaFailure");
        found.map(|condition| (condition["reason"].clone(), condition["message"].clone()))
    };
    assert_eq!(failure(&world), None);
    let refused = json!([{ "type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "quota" }]);
    world.patch(&REPLICA_SET, "default", &set, json!({ "status": { "replicas": 0, "conditions": refused } }));
    world.settle(&[deployment::CONTROLLER], at(1));
    assert_eq!(failure(&world), Some((json!("FailedCreate"), json!("quota"))));
    world.patch(&REPLICA_SET, "default", &set, json!({ "status": { "conditions": null } }));
    world.settle(&[deployment::CONTROLLER], at(2));
    assert_eq!(failure(&world), None);
    let wait = at(2).checked_add(SignedDuration::from_secs(1)).unwrap();
    world.assert_quiet(&[deployment::CONTROLLER, serviceaccount::CONTROLLER], wait);
}
