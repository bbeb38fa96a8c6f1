//! Nodes, pods and claims in; a placement or upstream's message out.

use super::*;
use crate::world::{World, merge};
use serde_json::Value;

mod assumed;
mod claims;
mod preemption;
mod relations;
mod rounds;
mod wakeups;

/// A node with 4 cores, 8 GiB and a volume root.
pub(crate) fn node(name: &str, over: Value) -> Value {
    let mut node = json!({"kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name},
        "annotations": {crate::volume::VOLUME_ROOT: "/var/lib/mainstay/volumes"}}, "spec": {},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}, "conditions": [{"type": "Ready",
            "status": "True"}]}});
    merge(&mut node, over);
    node
}

/// A pod that wants a core and a gibibyte.
pub(crate) fn pod(name: &str, over: Value) -> Value {
    let mut pod = json!({"kind": "Pod", "metadata": {"namespace": "default", "name": name, "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}]},
            "status": {"phase": "Pending"}});
    merge(&mut pod, over);
    pod
}

/// Schedules a pod of `default` and says where it went, or the message.
fn placed(world: &mut World, name: &str) -> String {
    let key = ObjectKey::new("default", name);
    world.run(&CONTROLLER, &key, Timestamp::UNIX_EPOCH, usize::MAX);
    let pod = world.get(&kinds::POD, "default", name);
    match pod["spec"]["nodeName"].as_str() {
        Some(node) => node.to_owned(),
        None => {
            let message = pod["status"]["conditions"][0]["message"].as_str().unwrap_or("(no condition)");
            message.split(" preemption:").next().unwrap_or("").to_owned()
        }
    }
}

#[test]
fn one_node_refuses_in_upstreams_words() {
    let taint = json!({"spec": {"taints": [{"key": "dedicated", "value": "gpu", "effect": "NoSchedule"}]}});
    let affinity = json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]}}}}});
    let init = json!({"spec": {"initContainers": [{"name": "i", "resources": {"requests": {"cpu": "5"}}}]}});
    let claim = json!({"spec": {"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "x"}}]}});
    let table = [
        (json!({}), json!({}), "n1"),
        (json!({"spec": {"unschedulable": true}}), json!({}), "0/1 nodes are available: 1 node(s) were unschedulable."),
        (taint.clone(), json!({}), "0/1 nodes are available: 1 node(s) had untolerated taint {dedicated: gpu}."),
        (
            taint.clone(),
            json!({"spec": {"tolerations": [{"key": "other", "operator": "Exists"}]}}),
            "0/1 nodes are available: 1 node(s) had untolerated taint {dedicated: gpu}.",
        ),
        (taint, json!({"spec": {"tolerations": [{"key": "dedicated", "operator": "Exists"}]}}), "n1"),
        (
            json!({"spec": {"unschedulable": true}}),
            json!({"spec": {"tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]}}),
            "n1",
        ),
        (
            json!({"spec": {"unschedulable": true}}),
            json!({"spec": {"tolerations": [{"key": "other", "operator": "Exists"}]}}),
            "0/1 nodes are available: 1 node(s) were unschedulable.",
        ),
        (
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": ["x.io/y"]}}),
            json!({}),
            "0/1 nodes are available: 1 node(s) were unschedulable.",
        ),
        (
            json!({}),
            json!({"spec": {"nodeSelector": {"zone": "a"}}}),
            "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
        ),
        (json!({}), affinity.clone(), "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."),
        (json!({"metadata": {"labels": {"zone": "a"}}}), affinity, "n1"),
        (
            json!({"status": {"allocatable": {"cpu": "500m", "memory": "1Mi"}}}),
            json!({}),
            "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory.",
        ),
        (json!({"status": {"allocatable": {"pods": "0"}}}), json!({}), "0/1 nodes are available: 1 Too many pods."),
        (json!({}), init, "0/1 nodes are available: 1 Insufficient cpu."),
        (
            json!({}),
            json!({"spec": {"schedulingGates": [{"name": "g"}]}}),
            "Scheduling is blocked due to non-empty scheduling gates",
        ),
        (json!({}), claim, "0/1 nodes are available: persistentvolumeclaim \"x\" not found."),
    ];
    for (of_node, of_pod, expected) in table {
        let mut world = World::default();
        world.put(node("n1", of_node.clone()));
        world.put(pod("a", of_pod.clone()));
        assert_eq!(placed(&mut world, "a"), expected, "{of_node} {of_pod}");
        let left = (CONTROLLER.reconcile)(&world.snapshot, &ObjectKey::new("default", "a"), Timestamp::UNIX_EPOCH);
        assert_eq!(left.waiting.len(), usize::from(expected != "n1"), "it says what it waits for: {expected}");
    }
    let mut world = World::default();
    world.put(pod("a", json!({})));
    assert_eq!(placed(&mut world, "a"), "no nodes available to schedule pods");
    assert_eq!(
        world.run(&CONTROLLER, &ObjectKey::new("default", "a"), Timestamp::UNIX_EPOCH, 9),
        0,
        "the same reason is not written twice"
    );
}

#[test]
fn resources_that_pods_hold_are_counted_until_they_finish() {
    let mut world = World::default();
    world.put(node("n1", json!({"status": {"allocatable": {"cpu": "2"}}})));
    for name in ["a", "b", "c"] {
        world.put(pod(name, json!({})));
    }
    assert_eq!(
        ["a", "b", "c"].map(|name| placed(&mut world, name)),
        ["n1", "n1", "0/1 nodes are available: 1 Insufficient cpu."]
    );
    world.patch(&kinds::POD, "default", "a", json!({"status": {"phase": "Succeeded"}}));
    assert_eq!(placed(&mut world, "c"), "n1");
    assert_eq!(world.events.last().map(String::as_str), Some("Scheduled: Successfully assigned default/c to n1"));
}

#[test]
fn pods_of_one_controller_spread_and_constraints_hold() {
    let mut world = World::default();
    for name in ["n1", "n2"] {
        world.put(node(name, json!({"metadata": {"labels": {"zone": name}}})));
    }
    let owner = json!({"metadata": {"ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web",
        "uid": "s", "controller": true}]}});
    for name in ["a", "b"] {
        world.put(pod(name, owner.clone()));
    }
    assert_eq!(["a", "b"].map(|name| placed(&mut world, name)), ["n1", "n2"]);
    let term = json!([{"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "web"}}}]);
    world.put(pod(
        "anti",
        json!({"spec": {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}}}),
    ));
    assert_eq!(placed(&mut world, "anti"), "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules.");
    let spread = json!([{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}}}]);
    for name in ["c", "d"] {
        world.put(pod(name, json!({"spec": {"topologySpreadConstraints": spread, "nodeSelector": {"zone": "n1"}}})));
    }
    assert_eq!(["c", "d"].map(|name| placed(&mut world, name))[0], "n1");
    let with = json!([{"topologyKey": "zone", "labelSelector": {"matchLabels": {"app": "db"}}}]);
    world.put(pod(
        "lonely",
        json!({"spec": {"affinity": {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": with}}}}),
    ));
    assert_eq!(placed(&mut world, "lonely"), "0/2 nodes are available: 2 node(s) didn't match pod affinity rules.");
}

/// S12: whatever makes room for a pod or makes a node suit it, the pod is tried again, and nothing else is needed.
#[test]
fn s12_a_pod_that_fits_nowhere_is_tried_again_when_that_changes() {
    let looking = |kind: &str, more: Value| {
        let mut term =
            json!({"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "db"}}});
        merge(&mut term, more);
        json!({"spec": {"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}}})
    };
    let sized = |cpu: &str| json!([{"name": "c", "resources": {"requests": {"cpu": cpu}}}]);
    let there = |labels: Value, cpu: &str| {
        let spec = json!({"nodeName": "n1", "containers": sized(cpu)});
        pod("there", json!({"metadata": {"labels": labels}, "spec": spec, "status": {"phase": "Running"}}))
    };
    let (web, db) = (json!({"app": "web"}), json!({"app": "db"}));
    let anyone = json!({"namespaceSelector": {"matchLabels": {"team": "a"}}});
    let in_other = |mut object: Value| {
        object["metadata"]["namespace"] = json!("other");
        object
    };
    let namespace = |labels: Value| json!({"kind": "Namespace", "metadata": {"name": "other", "labels": labels}});
    let table = [
        (vec![node("n1", json!({"spec": {"unschedulable": true}}))], json!({}), node("n1", json!({}))),
        (
            vec![node("n1", json!({}))],
            json!({"spec": {"nodeSelector": {"zone": "a"}}}),
            node("n1", json!({"metadata": {"labels": {"zone": "a"}}})),
        ),
        (vec![node("n1", json!({"status": {"allocatable": {"cpu": "1m"}}}))], json!({}), node("n1", json!({}))),
        (vec![], json!({}), node("n1", json!({}))),
        (vec![node("n1", json!({})), there(web.clone(), "4")], json!({}), there(web.clone(), "2")),
        (
            vec![node("n1", json!({})), there(web.clone(), "4")],
            json!({}),
            pod("there", json!({"spec": {"nodeName": "n1", "containers": sized("4")}, "status": {"phase": "Failed"}})),
        ),
        (vec![node("n1", json!({}))], looking("podAffinity", json!({})), there(db.clone(), "1")),
        (
            vec![node("n1", json!({})), there(web.clone(), "1")],
            looking("podAffinity", json!({})),
            there(db.clone(), "1"),
        ),
        (
            vec![node("n1", json!({})), there(db.clone(), "1")],
            looking("podAntiAffinity", json!({})),
            there(web.clone(), "1"),
        ),
        (
            vec![node("n1", json!({})), namespace(json!({})), in_other(there(db.clone(), "1"))],
            looking("podAffinity", anyone),
            namespace(json!({"team": "a"})),
        ),
        (
            vec![node("n1", json!({}))],
            json!({"spec": {"schedulingGates": [{"name": "x.io/gate"}]}}),
            pod("waiting", json!({})),
        ),
    ];
    for (objects, over, change) in table {
        let mut world = World::default();
        world.put(pod("waiting", over.clone()));
        objects.iter().for_each(|object| world.put(object.clone()));
        world.settle(&[CONTROLLER], Timestamp::UNIX_EPOCH);
        let place = |world: &World| world.get(&kinds::POD, "default", "waiting")["spec"]["nodeName"].clone();
        assert_eq!(place(&world), json!(null), "{objects:?} {over}");
        world.put(change.clone());
        world.settle(&[CONTROLLER], Timestamp::UNIX_EPOCH);
        assert_eq!(place(&world), "n1", "{over} {change}");
    }
}

#[test]
fn host_ports_exclude_each_other() {
    let mut world = World::default();
    world.put(node("n1", json!({})));
    for name in ["a", "b"] {
        world.put(pod(
            name,
            json!({"spec": {"containers": [{"name": "c", "ports": [{"containerPort": 80, "hostPort": 80}]}]}}),
        ));
    }
    assert_eq!(placed(&mut world, "a"), "n1");
    assert_eq!(
        placed(&mut world, "b"),
        "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."
    );
}

/// X8: a host port that the node itself needs is no node's to give.
#[test]
fn x8_a_host_port_of_the_clusters_own_is_not_free() {
    let mut world = World::default();
    world.put(node(
        "n1",
        json!({"metadata": {"annotations": {"mainstay.io/reserved-host-ports": "6443,10250,8472/UDP"}}}),
    ));
    let with = |port: i32, spec: serde_json::Value| {
        let mut spec = spec;
        spec["containers"] = json!([{"name": "c", "ports": [{"containerPort": port, "hostPort": port}]}]);
        json!({ "spec": spec })
    };
    world.put(pod("kubelets", with(10250, json!({}))));
    world.put(pod("own", with(10251, json!({}))));
    world.put(pod("beside", with(6443, json!({"hostNetwork": true}))));
    world.put(pod("tcp", with(8472, json!({}))));
    let mut overlays = with(8472, json!({}));
    overlays["spec"]["containers"][0]["ports"][0]["protocol"] = json!("UDP");
    world.put(pod("overlays", overlays));
    for name in ["kubelets", "overlays"] {
        assert_eq!(
            placed(&mut world, name),
            "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports."
        );
    }
    assert_eq!(placed(&mut world, "tcp"), "n1", "the overlay's is UDP's");
    assert_eq!(placed(&mut world, "own"), "n1");
    assert_eq!(placed(&mut world, "beside"), "n1", "one in the node's network finds out by itself");
}

#[test]
fn many_pods_are_placed_on_what_those_before_them_leave() {
    let mut world = World::default();
    for name in ["n1", "n2"] {
        world.put(node(name, json!({"status": {"allocatable": {"cpu": "2"}}})));
    }
    let names = ["a", "b", "c", "d", "e"];
    for name in names {
        world.put(pod(name, json!({})));
    }
    let keys = names.map(|name| ObjectKey::new("default", name));
    let decisions = schedule(&world.snapshot, &keys, Timestamp::UNIX_EPOCH);
    let node = |decision: &Decision| match decision.writes.last() {
        Some(Write::Bind { node, .. }) => node.clone(),
        other => format!("{:?}", other.is_some()),
    };
    assert_eq!(decisions.iter().map(node).collect::<Vec<_>>(), ["n1", "n2", "n1", "n2", "true"]);
    // A node's room is counted once for all of them, also with claims and where pods keep apart.
    let term = json!([{"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "apart"}}}]);
    let apart = json!({"metadata": {"labels": {"app": "apart"}}, "spec": {"containers": [{"name": "c"}],
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": term}}}});
    for name in names {
        world.put(pod(name, apart.clone()));
    }
    let decisions = schedule(&world.snapshot, &keys, Timestamp::UNIX_EPOCH);
    assert_eq!(decisions.iter().map(node).collect::<Vec<_>>(), ["n1", "n2", "true", "true", "true"]);
}

fn ranked(name: &str, priority: i32, over: Value) -> Value {
    let mut pod = pod(name, json!({"spec": {"priority": priority}, "metadata": {"uid": format!("uid-{name}")}}));
    merge(&mut pod, over);
    pod
}

#[test]
fn a_more_important_pod_takes_the_room_of_the_least_important_ones() {
    let mut world = World::default();
    for name in ["n1", "n2"] {
        world.put(node(name, json!({"status": {"allocatable": {"cpu": "2"}}})));
    }
    for (name, priority, node) in [("a", 5, "n1"), ("b", 1, "n1"), ("c", 5, "n2"), ("d", 5, "n2")] {
        world.put(ranked(name, priority, json!({"spec": {"nodeName": node}, "status": {"phase": "Running"}})));
    }
    world.put(ranked("never", 10, json!({"spec": {"preemptionPolicy": "Never"}})));
    world.run(&CONTROLLER, &ObjectKey::new("default", "never"), Timestamp::UNIX_EPOCH, usize::MAX);
    assert_eq!(
        world.get(&kinds::POD, "default", "never")["status"]["conditions"][0]["message"],
        "0/2 nodes are available: 2 Insufficient cpu. preemption: not eligible due to preemptionPolicy=Never."
    );
    world.put(ranked("vip", 10, json!({})));
    assert_eq!(placed(&mut world, "vip"), "0/2 nodes are available: 2 Insufficient cpu.");
    let vip = world.get(&kinds::POD, "default", "vip");
    assert_eq!(vip["status"]["nominatedNodeName"], "n1");
    let victim = world.get(&kinds::POD, "default", "b");
    assert_eq!(victim["status"]["conditions"][0]["reason"], "PreemptionByScheduler");
    assert!(victim["metadata"]["deletionTimestamp"].is_string(), "deleted gracefully");
    for spared in ["a", "c", "d"] {
        assert!(world.get(&kinds::POD, "default", spared)["metadata"]["deletionTimestamp"].is_null(), "{spared}");
    }
    assert!(world.events.contains(&"Preempted: Preempted by pod uid-vip on node n1".to_owned()));
    // While the victim is on its way out nobody else is taken, and once it is gone its room is not anybody's.
    world.run(&CONTROLLER, &ObjectKey::new("default", "vip"), Timestamp::UNIX_EPOCH, usize::MAX);
    assert!(world.get(&kinds::POD, "default", "a")["metadata"]["deletionTimestamp"].is_null());
    world.remove(&kinds::POD, &ObjectKey::new("default", "b"));
    world.put(ranked("late", 3, json!({})));
    assert_eq!(placed(&mut world, "late"), "0/2 nodes are available: 2 Insufficient cpu.");
    assert_eq!(placed(&mut world, "vip"), "n1");
}
