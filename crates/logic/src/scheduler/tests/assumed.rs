//! What a round takes for done: each pod is placed as if everything that was decided before it in the round were
//! written, and nothing else.

use super::claims::{both, bound, claim, class, delayed, held_by, on, uses, volume};
use super::*;
use crate::volume::{BUILT_IN, MADE_ON, PROVISIONED_BY, SELECTED_NODE, SIZE, SIZE_IMAGE, VOLUME_ROOT};

const CORES: &str = "0/2 nodes are available: 2 Insufficient cpu.";

fn nodes(names: &[&str], over: &Value) -> World {
    let mut world = World::default();
    names.iter().for_each(|name| world.put(node(name, over.clone())));
    world
}

fn cores(cpu: &str, priority: i32) -> Value {
    json!({"spec": {"priority": priority, "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}})
}

fn running(world: &mut World, name: &str, node: &str, over: Value) {
    let there = json!({"spec": {"nodeName": node}, "status": {"phase": "Running"}});
    world.put(pod(name, both(both(json!({"metadata": {"uid": format!("uid-{name}")}}), over), there)));
}

/// Of a round over these pods, which are put into the world first.
fn round(world: &mut World, pods: &[(&str, Value)]) -> Vec<Decision> {
    for (name, over) in pods {
        world.put(pod(name, both(json!({"metadata": {"uid": format!("uid-{name}")}}), over.clone())));
    }
    let keys: Vec<ObjectKey> = pods.iter().map(|(name, _)| ObjectKey::new("default", *name)).collect();
    schedule(&world.snapshot, &keys, Timestamp::UNIX_EPOCH)
}

/// Where a pod is bound, where others are told to go for it, or why neither.
fn outcome(decision: &Decision) -> String {
    let bound = decision.writes.iter().find_map(|write| match write {
        Write::Bind { node, .. } => Some(node.clone()),
        _ => None,
    });
    match (bound, decision.waiting.first()) {
        (Some(node), _) => node,
        (None, Some(Waiting::VictimsRunning { node })) => format!("room on {node}"),
        (None, Some(Waiting::NoNodeFits { message })) => {
            message.split(" preemption:").next().unwrap_or("").trim_end_matches('.').to_owned()
        }
        (None, waiting) => format!("{waiting:?}"),
    }
}

fn outcomes(world: &mut World, pods: &[(&str, Value)]) -> Vec<String> {
    round(world, pods).iter().map(outcome).collect()
}

/// How many writes of this kind, by verb.
fn written(decision: &Decision, plural: &str) -> [usize; 3] {
    decision.writes.iter().fold([0; 3], |mut counts, write| {
        match write {
            Write::Create { kind, .. } if kind.plural == plural => counts[0] += 1,
            Write::Patch { kind, .. } if kind.plural == plural => counts[1] += 1,
            Write::Delete { kind, .. } if kind.plural == plural => counts[2] += 1,
            _ => {}
        }
        counts
    })
}

/// V1, V9, V10: volumes that one pod of a round was given are nobody else's, and where they are its claims stay.
#[test]
fn v1_volumes_given_in_a_round_are_taken() {
    let three = ["n1", "n2", "n3"];
    let bare = || class("kubernetes.io/no-provisioner", "WaitForFirstConsumer");
    // A volume for two claims.
    let mut world = nodes(&three, &json!({}));
    let free = volume("v", json!({}));
    [bare(), claim("a", json!({})), claim("b", json!({})), free].into_iter().for_each(|object| world.put(object));
    let none = "0/3 nodes are available: 3 node(s) didn't find available persistent volumes to bind";
    assert_eq!(outcomes(&mut world, &[("p", uses(&["a"])), ("q", uses(&["b"]))]), ["n1", none]);

    // One claim of two pods, whose volume is made for the first: where that is, once. V9: on one node.
    let mut world = nodes(&three, &json!({}));
    [delayed(), claim("a", json!({}))].into_iter().for_each(|object| world.put(object));
    let third = both(uses(&["a"]), json!({"spec": {"nodeSelector": {"kubernetes.io/hostname": "n3"}}}));
    let decisions = round(&mut world, &[("p", third), ("q", uses(&["a"]))]);
    assert_eq!(decisions.iter().map(outcome).collect::<Vec<_>>(), ["n3", "n3"]);
    assert_eq!(decisions.iter().map(|one| written(one, "persistentvolumes")[0]).collect::<Vec<_>>(), [1, 0]);
    assert_eq!(written(&decisions[1], "persistentvolumeclaims"), [0; 3], "it is bound already");

    // One claim that could be anywhere: the second pod follows the first.
    let mut world = nodes(&three, &json!({}));
    bound(json!({})).into_iter().for_each(|object| world.put(object));
    let third = both(uses(&["data"]), json!({"spec": {"nodeSelector": {"kubernetes.io/hostname": "n3"}}}));
    assert_eq!(outcomes(&mut world, &[("p", third), ("q", uses(&["data"]))]), ["n3", "n3"]);

    // Room for volumes.
    let roomy = json!({"metadata": {"annotations": {"mainstay.io/volume-capacity": (1_i64 << 30).to_string()}}});
    let mut world = nodes(&["n1", "n2"], &roomy);
    world.put(delayed());
    ["a", "b", "c"].into_iter().for_each(|name| world.put(claim(name, json!({}))));
    let pods = [("p", uses(&["a"])), ("q", uses(&["b"])), ("r", uses(&["c"]))];
    let none = "0/2 nodes are available: 2 node(s) did not have enough free storage";
    assert_eq!(outcomes(&mut world, &pods), ["n1", "n2", none]);
}

/// Who waits for claims of its own says nothing about those without.
#[test]
fn a_pod_is_refused_for_nobody_elses_claims() {
    let mut world = nodes(&["n1"], &json!({}));
    bound(on("n4")).into_iter().for_each(|object| world.put(object));
    let away = "0/1 nodes are available: 1 node(s) didn't match PersistentVolume's node affinity";
    assert_eq!(outcomes(&mut world, &[("p", uses(&["data"])), ("q", json!({}))]), [away, "n1"]);
}

/// Room that a pod of the round is to get is kept for it, and who goes for it goes once.
#[test]
fn room_made_in_a_round_is_kept_and_nobody_goes_twice() {
    let mut world = nodes(&["n1", "n2"], &json!({}));
    ["n1", "n2"].iter().for_each(|at| running(&mut world, &format!("low-{at}"), at, cores("4", 0)));
    let vip = |name| (name, cores("4", 10));
    let seen = outcomes(&mut world, &[vip("a"), vip("b"), vip("c")]);
    assert_eq!(seen, ["room on n1", "room on n2", CORES.trim_end_matches('.')]);

    // Two that fit where one goes.
    let mut world = nodes(&["n1"], &json!({}));
    running(&mut world, "low", "n1", cores("4", 0));
    let decisions = round(&mut world, &[("a", cores("2", 10)), ("b", cores("2", 10))]);
    assert_eq!(decisions.iter().map(outcome).collect::<Vec<_>>(), ["room on n1", "room on n1"]);
    assert_eq!(decisions.iter().map(|one| written(one, "pods")[2]).collect::<Vec<_>>(), [1, 0]);

    // What was free to pods like this one before is so no longer.
    let mut world = nodes(&["n1", "n2"], &json!({}));
    running(&mut world, "low", "n1", cores("2", 0));
    running(&mut world, "high", "n2", cores("4", 20));
    let small = |name| (name, cores("1", 5));
    let seen = outcomes(&mut world, &[small("a"), ("vip", cores("4", 10)), small("b")]);
    assert_eq!(seen, ["n1", "room on n1", CORES.trim_end_matches('.')]);
    // Nor on a node that was looked at before and that nobody of the round went to.
    let mut world = nodes(&["n1", "n2"], &json!({}));
    running(&mut world, "high", "n1", cores("3", 20));
    running(&mut world, "low", "n2", cores("3", 0));
    let seen = outcomes(&mut world, &[small("a"), ("vip", cores("4", 10)), small("b")]);
    assert_eq!(seen, ["n1", "room on n2", CORES.trim_end_matches('.')]);
}

/// What was found out for one pod is of use to those of its namespace and controller, with the same containers.
#[test]
fn pods_of_a_round_are_alike_only_within_their_namespace_and_controller() {
    let apart = json!({"spec": {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]}}}});
    let mut world = nodes(&["n1"], &json!({}));
    running(&mut world, "there", "n1", json!({}));
    world.put(pod("p", apart.clone()));
    world.put(pod("p", both(json!({"metadata": {"namespace": "other"}}), apart)));
    let keys = ["default", "other"].map(|namespace| ObjectKey::new(namespace, "p"));
    let decisions = schedule(&world.snapshot, &keys, Timestamp::UNIX_EPOCH);
    let why = "0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules";
    assert_eq!(decisions.iter().map(outcome).collect::<Vec<_>>(), [why, "n1"]);

    let of = |set: &str| {
        let owner =
            json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "name": set, "uid": set, "controller": true});
        json!({ "metadata": {"ownerReferences": [owner]} })
    };
    let mut world = nodes(&["n1", "n2", "n3"], &json!({}));
    running(&mut world, "a-0", "n1", of("a"));
    running(&mut world, "b-0", "n2", of("b"));
    ["x", "y"].iter().for_each(|name| running(&mut world, name, "n3", json!({})));
    assert_eq!(outcomes(&mut world, &[("a-1", of("a")), ("b-1", of("b"))]), ["n2", "n1"]);

    let two = |second: &str| {
        let of = |name: &str, cpu: &str| json!({"name": name, "resources": {"requests": {"cpu": cpu}}});
        json!({"spec": {"containers": [of("c", "1"), of("d", second)], "initContainers": [of("i", "1")]}})
    };
    let mut world = nodes(&["n1"], &json!({}));
    let seen = outcomes(&mut world, &[("large", two("4")), ("small", two("1")), ("again", two("4"))]);
    let none = "0/1 nodes are available: 1 Insufficient cpu";
    assert_eq!(seen, [none, "n1", none]);
}

/// The same of writes that others have overtaken: the driver lays them over a newer view.
#[test]
fn what_is_assumed_is_of_the_object_that_was_meant() {
    let view = || {
        let mut world = nodes(&["n1"], &json!({}));
        running(&mut world, "there", "n1", json!({}));
        world.put(pod("p", json!({"metadata": {"uid": "uid-p"}})));
        world.put(pod("blank", json!({"metadata": {"uid": "uid-blank"}, "spec": {"nodeName": ""}})));
        world.put(volume("v", json!({"metadata": {"uid": "uid-v"}})));
        world.put(claim("data", json!({})));
        world
    };
    let bind = |name: &str, uid: &str| Write::Bind {
        key: ObjectKey::new("default", name),
        uid: uid.to_owned(),
        node: "n2".to_owned(),
    };
    let patch = |kind: &mainstay_api::Kind, name: &str, uid: &str, patch: Value| Write::Patch {
        kind: kind.clone(),
        key: ObjectKey::new(if kind.plural == "persistentvolumes" { "" } else { "default" }, name),
        uid: uid.to_owned(),
        resource_version: None,
        patch,
        status: false,
    };
    let delete = |kind: &mainstay_api::Kind, name: &str, uid: &str| Write::Delete {
        kind: kind.clone(),
        key: ObjectKey::new(if kind.plural == "persistentvolumes" { "" } else { "default" }, name),
        uid: uid.to_owned(),
        resource_version: None,
        grace_period: None,
        propagation: crate::decision::Propagation::Background,
    };
    let create = |kind: &mainstay_api::Kind, object: Value| Write::Create { kind: kind.clone(), object };
    let marked = json!({"metadata": {"annotations": {"x": "y"}}});
    let nominated = json!({"status": {"nominatedNodeName": "n1"}});
    let node_of = |world: &Snapshot, name: &str| {
        world.pods[&ObjectKey::new("default", name)].spec.as_ref().unwrap().node_name.clone()
    };
    let (pods, volumes, claims) = (&kinds::POD, &kinds::PERSISTENT_VOLUME, &kinds::PERSISTENT_VOLUME_CLAIM);
    let table = [
        ("bound", bind("p", "uid-p"), true),
        ("bound where nobody has bound it", bind("blank", "uid-blank"), true),
        ("another of that name", bind("p", "uid-x"), false),
        ("it is gone", bind("q", "uid-q"), false),
        ("a volume", create(volumes, volume("new", json!({}))), true),
        ("there is one", create(volumes, volume("v", json!({"metadata": {"uid": "other"}}))), false),
        ("none of its kind", create(claims, volume("new", json!({}))), false),
        ("no volume at all", create(volumes, json!({"metadata": {"name": "new"}, "spec": 1})), false),
        ("a volume's patch", patch(volumes, "v", "uid-v", marked.clone()), true),
        ("another volume's", patch(volumes, "v", "uid-x", marked.clone()), false),
        ("a patch that makes none of it", patch(volumes, "v", "uid-v", json!({"spec": 1})), false),
        ("a claim's patch", patch(claims, "data", "uid-data", marked.clone()), true),
        ("another claim's", patch(claims, "data", "uid-x", marked.clone()), false),
        ("a nomination", patch(pods, "p", "uid-p", nominated.clone()), true),
        ("another pod's", patch(pods, "p", "uid-x", nominated.clone()), false),
        ("what nobody's place depends on", patch(pods, "p", "uid-p", marked.clone()), false),
        ("of another kind", patch(&kinds::SECRET, "p", "uid-p", nominated), false),
        ("going", delete(pods, "there", "uid-there"), true),
        ("another is going", delete(pods, "there", "uid-x"), false),
        ("no pod", delete(&kinds::SECRET, "there", "uid-there"), false),
    ];
    for (story, write, changes) in table {
        let before = view().snapshot;
        let mut after = before.clone();
        super::super::round::assume(&mut after, &write);
        let all = |snapshot: &Snapshot| {
            let pods: Vec<_> = snapshot.pods.iter().map(|(key, pod)| format!("{key} {pod:?}")).collect();
            let volumes: Vec<_> =
                snapshot.persistent_volumes.iter().map(|(key, one)| format!("{key} {one:?}")).collect();
            let claims = snapshot.persistent_volume_claims.iter().map(|(key, one)| format!("{key} {one:?}"));
            (pods, volumes, claims.collect::<Vec<_>>())
        };
        assert_eq!(all(&before) != all(&after), changes, "{story}");
    }
    let mut after = view().snapshot;
    super::super::round::assume(&mut after, &bind("there", "uid-there"));
    assert_eq!(node_of(&after, "there").as_deref(), Some("n1"), "where it is, it stays");
    super::super::round::assume(&mut after, &bind("p", "uid-p"));
    assert_eq!((node_of(&after, "p").as_deref(), after.indexes.count(Index::PodsOn, "n2", "")), (Some("n2"), 1));
}

/// What a placement relies on: it is committed only while nobody takes that away.
#[test]
fn v6_a_placement_relies_on_its_claims_and_on_what_they_are_copied_from() {
    let relied = |decision: &Decision| -> Vec<String> {
        decision.relies.iter().map(|(kind, key)| format!("{} {}", kind.kind, key.name)).collect()
    };
    let mut world = nodes(&["n1"], &json!({}));
    bound(json!({})).into_iter().for_each(|object| world.put(object));
    assert_eq!(relied(&round(&mut world, &[("p", uses(&["data"]))])[0]), ["PersistentVolumeClaim data"]);
    let mut world = nodes(&["n1"], &json!({}));
    let made =
        json!({"metadata": {"annotations": {(PROVISIONED_BY): BUILT_IN[0], (SIZE): SIZE_IMAGE, (MADE_ON): "n1"}}});
    bound(both(on("n1"), made)).into_iter().for_each(|object| world.put(object));
    let source = json!({"spec": {"dataSource": {"kind": "PersistentVolumeClaim", "name": "data"}}});
    [delayed(), claim("copy", source)].into_iter().for_each(|object| world.put(object));
    let decision = round(&mut world, &[("p", uses(&["copy"]))]).remove(0);
    assert_eq!(relied(&decision), ["PersistentVolumeClaim copy", "PersistentVolumeClaim data"]);
}

/// While one volume is yet to be made elsewhere, nothing else is written of the pod's claims, and it is said.
#[test]
fn a_pod_that_waits_for_one_volume_says_so_and_marks_no_other() {
    let mut world = nodes(&["n1"], &json!({}));
    let external = class("x.io/csi", "WaitForFirstConsumer");
    bound(json!({})).into_iter().chain([external, claim("mine", json!({}))]).for_each(|object| world.put(object));
    let decision = round(&mut world, &[("p", uses(&["data", "mine"]))]).remove(0);
    assert_eq!(decision.waiting, [Waiting::NoVolume]);
    assert_eq!((decision.writes.len(), written(&decision, "persistentvolumeclaims")), (1, [0, 1, 0]));
    let selected = json!({"metadata": {"annotations": {(SELECTED_NODE): "n1"}}});
    world.patch(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "mine", selected);
    let decision = round(&mut world, &[("p", uses(&["data", "mine"]))]).remove(0);
    assert_eq!((decision.waiting.as_slice(), decision.writes.len()), (&[Waiting::NoVolume][..], 0));
}

/// Room counts only for classes whose volumes are made in it, among a pod's claims and between nodes.
#[test]
fn v10_a_class_that_overcommits_takes_no_room_from_one_that_does_not() {
    let roomy = |name: &str, gib: i64| {
        let annotations = json!({(VOLUME_ROOT): "/v", "mainstay.io/volume-capacity": (gib << 30).to_string()});
        node(name, json!({"metadata": {"annotations": annotations}}))
    };
    let mut free = class(BUILT_IN[0], "WaitForFirstConsumer");
    merge(&mut free, json!({"metadata": {"name": "free"}, "parameters": {"mainstay.io/overcommit": "true"}}));
    let free_claim = claim("a", json!({"spec": {"storageClassName": "free"}}));
    let mut world = World::default();
    let objects = [roomy("n1", 1), free.clone(), delayed(), free_claim.clone(), claim("b", json!({}))];
    objects.into_iter().for_each(|object| world.put(object));
    assert_eq!(outcomes(&mut world, &[("p", uses(&["a", "b"]))]), ["n1"], "there is room for the other one");
    for (used, expected) in [("a", "n1"), ("b", "n2")] {
        let mut world = World::default();
        let objects = [roomy("n1", 2), roomy("n2", 9), free.clone(), delayed(), free_claim.clone()];
        objects.into_iter().chain([claim("b", json!({}))]).for_each(|object| world.put(object));
        assert_eq!(outcomes(&mut world, &[("p", uses(&[used]))]), [expected], "{used}");
    }
}

/// Of many nodes a search looks at enough, and the next one goes on where it ended.
#[test]
fn searches_go_round_the_nodes_of_a_large_cluster() {
    let names: Vec<String> = (0..250).map(|number| format!("n{number:03}")).collect();
    let mut world = nodes(&names.iter().map(String::as_str).collect::<Vec<_>>(), &json!({}));
    let apart = json!({"spec": {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "web"}}}]}}}});
    let seen = outcomes(&mut world, &[("a", apart.clone()), ("b", apart.clone()), ("c", apart)]);
    let at: Vec<i64> = seen.iter().map(|node| node[1..].parse().unwrap()).collect();
    for (one, next) in at.iter().zip(&at[1..]) {
        assert!((next - one).rem_euclid(250) >= 100, "{seen:?}");
    }
}

/// S12: a node where somebody is known not to go is no end of the search, and is so known only by the scheduler's own
/// word.
#[test]
fn s12_nodes_where_nobody_may_go_do_not_hide_those_where_somebody_may() {
    let names: Vec<String> = (0..25).map(|number| format!("n{number:02}")).collect();
    for (stubborn, reason, expected) in [
        (24, "PreemptionByScheduler", "n24"),
        (10, "PreemptionByScheduler", "n10"),
        (24, "EvictionByEvictionAPI", "n00"),
    ] {
        let mut world = nodes(&names.iter().map(String::as_str).collect::<Vec<_>>(), &json!({}));
        for (number, name) in names.iter().enumerate() {
            let mut first = cores("2", 1);
            if number < stubborn {
                first["status"] = json!({"conditions": [{"type": "DisruptionTarget", "status": "False",
                    "reason": reason}]});
            }
            running(&mut world, &format!("a-{name}"), name, first);
            running(&mut world, &format!("b-{name}"), name, cores("2", 1));
        }
        let seen = outcomes(&mut world, &[("vip", cores("4", 10))]);
        assert_eq!(seen, [format!("room on {expected}")], "{stubborn} {reason}");
    }
    // One that is on its way was not refused.
    let mut world = nodes(&["n1", "n2"], &json!({}));
    let told = json!({"status": {"conditions": [{"type": "DisruptionTarget", "status": "True",
        "reason": "PreemptionByScheduler"}]}});
    running(&mut world, "a", "n1", both(cores("4", 5), told));
    running(&mut world, "b", "n2", cores("4", 6));
    world.delete(&kinds::POD, "default", "a", None);
    assert_eq!(outcomes(&mut world, &[("vip", cores("4", 10))]), ["room on n1"]);
}

/// S12: who was marked and stays is asked again without being marked again.
#[test]
fn s12_a_victim_is_marked_once() {
    for (status, marks) in [("True", 0), ("False", 1)] {
        let mut world = nodes(&["n1"], &json!({}));
        let told = json!({"status": {"conditions": [{"type": "DisruptionTarget", "status": status,
            "reason": "PreemptionByScheduler"}]}});
        running(&mut world, "a", "n1", both(cores("4", 5), told));
        let decision = round(&mut world, &[("vip", cores("4", 10))]).remove(0);
        let of_victim = |write: &&Write| matches!(write, Write::Patch { key, .. } if *key.name == *"a");
        assert_eq!(decision.writes.iter().filter(of_victim).count(), marks, "{status}");
        assert_eq!(written(&decision, "pods")[2], 1);
    }
}

/// When other words are said: at once, unless only the words of the same reason have changed.
#[test]
fn other_words_wait_and_another_reason_does_not() {
    let now = Timestamp::UNIX_EPOCH;
    let said = |reason: &str, message: &str| {
        json!({"spec": {"nodeSelector": {"x": "y"}}, "status": {"conditions": [{"type": "PodScheduled",
            "status": "False", "reason": reason, "message": message, "lastProbeTime": now.to_string(),
            "lastTransitionTime": now.to_string()}]}})
    };
    let message = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. preemption: 0/1 nodes \
                   are available: 1 Preemption is not helpful for scheduling.";
    for (reason, message, writes, waits) in [
        ("Unschedulable", "others", 0, true),
        ("Unschedulable", message, 0, false),
        ("SchedulingGated", "others", 1, false),
    ] {
        let decision = round(&mut nodes(&["n1"], &json!({})), &[("p", said(reason, message))]).remove(0);
        assert_eq!((decision.writes.len(), decision.wake_at.is_some()), (writes, waits), "{reason}: {message}");
    }
}

/// A claim whose only user has no node is nobody's.
#[test]
fn v9_a_pod_with_an_empty_node_name_uses_nothing() {
    let mut world = nodes(&["n1"], &json!({}));
    let mut objects = bound(json!({}));
    objects[0]["spec"]["accessModes"] = json!(["ReadWriteOncePod"]);
    objects.into_iter().for_each(|object| world.put(object));
    world.put(pod("other", both(uses(&["data"]), json!({"spec": {"nodeName": ""}}))));
    assert_eq!(outcomes(&mut world, &[("p", uses(&["data"]))]), ["n1"]);
    // Nor is a volume that is kept for another claim.
    let mut world = nodes(&["n1"], &json!({}));
    let bare = class("kubernetes.io/no-provisioner", "WaitForFirstConsumer");
    let objects = [bare, claim("data", json!({})), volume("v", held_by("other"))];
    objects.into_iter().for_each(|object| world.put(object));
    let none = "0/1 nodes are available: 1 node(s) didn't find available persistent volumes to bind";
    assert_eq!(outcomes(&mut world, &[("p", uses(&["data"]))]), [none]);
}
