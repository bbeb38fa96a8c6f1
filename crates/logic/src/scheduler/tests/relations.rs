//! Beside whom a pod may be and wants to be. Three nodes: `n1` in zone a, `n2` and `n3` in zone b; of equal ones the
//! first is taken.

use super::*;

const HOST: &str = "kubernetes.io/hostname";

fn zones() -> World {
    let mut world = World::default();
    for (name, zone) in [("n1", "a"), ("n2", "b"), ("n3", "b")] {
        world.put(node(name, json!({"metadata": {"labels": {"zone": zone}}})));
    }
    for (name, team) in [("default", "one"), ("other", "two")] {
        world.put(json!({"kind": "Namespace", "metadata": {"name": name, "labels": {"team": team}}}));
    }
    world
}

/// A pod that runs on a node and asks for nothing.
fn there(name: &str, node: &str, labels: Value, over: Value) -> Value {
    let mut there = json!({"kind": "Pod", "metadata": {"namespace": "default", "name": name, "labels": labels},
        "spec": {"nodeName": node, "containers": [{"name": "c"}]}, "status": {"phase": "Running"}});
    merge(&mut there, over);
    there
}

/// Where a pod goes, or the reason that all nodes have in common.
fn goes(mut world: World, spec: &Value) -> String {
    world.put(pod("new", json!({"spec": spec, "metadata": {"labels": {"app": "web", "tier": "x"}}})));
    let at = placed(&mut world, "new");
    let reason = at.strip_prefix("0/3 nodes are available: ").unwrap_or(&at);
    reason.strip_prefix("3 node(s) ").unwrap_or(reason).trim_end_matches('.').to_owned()
}

fn required(kind: &str, terms: &[Value]) -> Value {
    json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": terms}}})
}

fn to(app: &str, topology: &str, more: Value) -> Value {
    let mut term = json!({"topologyKey": topology, "labelSelector": {"matchLabels": {"app": app}}});
    merge(&mut term, more);
    term
}

#[test]
fn required_affinity_joins_the_pods_that_its_terms_speak_of() {
    const NOT: &str = "didn't match pod affinity rules";
    let db = |over: Value| there("db", "n2", json!({"app": "db", "tier": "y"}), over);
    let other = json!({"metadata": {"namespace": "other"}});
    let table = [
        (db(json!({})), to("db", HOST, json!({})), "n2"),
        (db(json!({})), to("db", "zone", json!({})), "n2"),
        (db(json!({})), to("web", HOST, json!({})), "n1"),
        (db(json!({})), to("web", "rack", json!({})), NOT),
        (db(json!({})), to("web", HOST, json!({"namespaces": ["other"]})), NOT),
        (db(json!({})), to("web", HOST, json!({"namespaces": ["default", "other"]})), "n1"),
        (db(json!({})), to("db", "rack", json!({})), NOT),
        (db(json!({})), json!({"topologyKey": HOST}), NOT),
        (db(json!({"status": {"phase": "Succeeded"}})), to("db", HOST, json!({})), NOT),
        (db(json!({"spec": {"nodeName": null}})), to("db", HOST, json!({})), NOT),
        (db(json!({"spec": {"nodeName": "gone"}})), to("db", HOST, json!({})), NOT),
        (db(other.clone()), to("db", HOST, json!({})), NOT),
        (db(other.clone()), to("db", HOST, json!({"namespaces": ["other"]})), "n2"),
        (db(json!({})), to("db", HOST, json!({"namespaces": ["other"]})), NOT),
        (db(other.clone()), to("db", HOST, json!({"namespaceSelector": {"matchLabels": {"team": "two"}}})), "n2"),
        (db(other.clone()), to("db", HOST, json!({"namespaceSelector": {"matchLabels": {"team": "one"}}})), NOT),
        (db(json!({})), to("db", HOST, json!({"namespaceSelector": {"matchLabels": {"team": "two"}}})), NOT),
        (db(json!({})), to("db", HOST, json!({"namespaceSelector": {}})), "n2"),
        (
            db(json!({})),
            to("db", HOST, json!({"namespaces": ["other"], "namespaceSelector": {"matchLabels": {"team": "one"}}})),
            "n2",
        ),
        (db(json!({})), to("db", HOST, json!({"matchLabelKeys": ["tier"]})), NOT),
        (db(json!({"metadata": {"labels": {"tier": "x"}}})), to("db", HOST, json!({"matchLabelKeys": ["tier"]})), "n2"),
        (db(json!({})), to("db", HOST, json!({"matchLabelKeys": ["track"]})), "n2"),
        (db(json!({})), to("db", HOST, json!({"mismatchLabelKeys": ["tier"]})), "n2"),
        (
            db(json!({"metadata": {"labels": {"tier": "x"}}})),
            to("db", HOST, json!({"mismatchLabelKeys": ["tier"]})),
            NOT,
        ),
        (db(json!({})), to("db", HOST, json!({"mismatchLabelKeys": []})), "n2"),
    ];
    for (db, term, expected) in table {
        let mut world = zones();
        world.put(db.clone());
        assert_eq!(goes(world, &required("podAffinity", std::slice::from_ref(&term))), expected, "{term} {db}");
    }
    // Every term counts; and who could be the first of a group joins it where it has begun.
    let mut world = zones();
    world.put(db(json!({})));
    world.put(there("web", "n3", json!({"app": "web"}), json!({})));
    let both = [to("db", "zone", json!({})), to("web", HOST, json!({}))];
    assert_eq!(goes(world.clone(), &required("podAffinity", &both)), "n3");
    let apart = [to("db", HOST, json!({})), to("web", HOST, json!({}))];
    assert_eq!(goes(world, &required("podAffinity", &apart)), NOT);
}

#[test]
fn required_anti_affinity_keeps_away_on_both_sides() {
    let db = |over: Value| there("db", "n2", json!({"app": "db"}), over);
    let away = |term: Value, over: Value| {
        let mut spec = json!({"spec": required("podAntiAffinity", &[term])});
        merge(&mut spec, over);
        there("shy", "n1", json!({"app": "db"}), spec)
    };
    let free = json!({});
    let from = |topology: &str| required("podAntiAffinity", &[to("db", topology, json!({}))]);
    let table = [
        (db(json!({"spec": {"nodeName": "n1"}})), from(HOST), "n2"),
        (db(json!({"spec": {"nodeName": "n1"}})), from("zone"), "n2"),
        (db(json!({})), from("zone"), "n1"),
        (db(json!({"spec": {"nodeName": "n1"}, "status": {"phase": "Failed"}})), from(HOST), "n1"),
        (db(json!({"spec": {"nodeName": "n1"}})), from("rack"), "n1"),
        // What is there keeps others away, as far as its own terms speak of them.
        (away(to("web", HOST, json!({})), json!({})), free.clone(), "n2"),
        (away(to("web", "zone", json!({})), json!({})), free.clone(), "n2"),
        (away(to("web", "zone", json!({})), json!({"spec": {"nodeName": "n2"}})), free.clone(), "n1"),
        (away(to("db", HOST, json!({})), json!({})), free.clone(), "n1"),
        (away(to("web", "rack", json!({})), json!({})), free.clone(), "n1"),
        (away(to("web", HOST, json!({})), json!({"status": {"phase": "Succeeded"}})), free.clone(), "n1"),
        (away(to("web", HOST, json!({})), json!({"metadata": {"namespace": "other"}})), free.clone(), "n1"),
        (
            away(to("web", HOST, json!({"namespaces": ["default"]})), json!({"metadata": {"namespace": "other"}})),
            free.clone(),
            "n2",
        ),
        (
            away(
                to("web", HOST, json!({"namespaceSelector": {"matchLabels": {"team": "one"}}})),
                json!({"metadata": {"namespace": "other"}}),
            ),
            free.clone(),
            "n2",
        ),
        (away(to("web", HOST, json!({"namespaces": ["other"]})), json!({})), free.clone(), "n1"),
        (away(to("web", HOST, json!({"namespaces": ["other", "default"]})), json!({})), free.clone(), "n2"),
        (away(to("web", HOST, json!({"matchLabelKeys": ["tier"]})), json!({})), free.clone(), "n2"),
        (
            away(to("web", HOST, json!({"matchLabelKeys": ["tier"]})), json!({"metadata": {"labels": {"tier": "y"}}})),
            free.clone(),
            "n1",
        ),
    ];
    for (there, spec, expected) in table {
        let mut world = zones();
        world.put(there.clone());
        assert_eq!(goes(world, &spec), expected, "{there} {spec}");
    }
    let mut world = zones();
    for name in ["n1", "n2", "n3"] {
        world.put(there(
            name,
            name,
            json!({"app": "db"}),
            json!({"spec": required("podAntiAffinity", &[
            to("web", HOST, json!({}))])}),
        ));
    }
    assert_eq!(goes(world, &free), "didn't satisfy existing pods anti-affinity rules");
}

#[test]
fn a_hard_spread_constraint_counts_what_upstream_counts() {
    const SKEWED: &str = "didn't match pod topology spread constraints";
    let web = |name: &str, node: &str, over: Value| there(name, node, json!({"app": "web", "tier": "x"}), over);
    // Where the pod may only be in zone a, the policy says whether the other zones count all the same.
    let spread = |more: Value| {
        let mut constraint = json!({"topologyKey": "zone", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule",
            "nodeAffinityPolicy": "Ignore", "labelSelector": {"matchLabels": {"app": "web"}}});
        merge(&mut constraint, more);
        json!({"topologySpreadConstraints": [constraint], "nodeSelector": {"zone": "a"}})
    };
    let (one, none) = (vec![web("a", "n1", json!({}))], Vec::new());
    let even = vec![web("a", "n1", json!({})), web("b", "n2", json!({}))];
    let table = [
        (&none, spread(json!({})), true),
        (&one, spread(json!({})), false),
        (&one, spread(json!({"maxSkew": 2})), true),
        (&even, spread(json!({})), true),
        (&one, spread(json!({"whenUnsatisfiable": "ScheduleAnyway"})), true),
        (&one, spread(json!({"nodeAffinityPolicy": "Honor"})), true),
        (&one, spread(json!({"nodeAffinityPolicy": null})), true),
        (&even, spread(json!({"minDomains": 2})), true),
        (&even, spread(json!({"minDomains": 3})), false),
        (&one, spread(json!({"labelSelector": {"matchLabels": {"app": null, "tier": "y"}}})), true),
        (&one, spread(json!({"labelSelector": null})), true),
        (&one, spread(json!({"matchLabelKeys": ["tier"]})), false),
    ];
    for (pods, spec, fits) in table {
        let mut world = zones();
        pods.iter().for_each(|pod| world.put(pod.clone()));
        let expected = if fits { "n1".to_owned() } else { format!("1 node(s) {SKEWED}") };
        let at = goes(world, &spec);
        let at = at.split(", ").find(|reason| fits || reason.contains("spread")).unwrap_or(&at).to_owned();
        assert_eq!(at, expected, "{spec}");
    }
    for (why, over) in [
        ("finished", json!({"status": {"phase": "Failed"}})),
        ("told to go", json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})),
        ("elsewhere", json!({"metadata": {"namespace": "other"}})),
        ("others", json!({"metadata": {"labels": {"app": "db"}}})),
        ("without a node", json!({"spec": {"nodeName": null}})),
    ] {
        let mut world = zones();
        world.put(web("a", "n1", over));
        assert_eq!(goes(world, &spread(json!({}))), "n1", "{why}: not counted");
    }
    let mut world = zones();
    world.put(web("a", "n1", json!({"metadata": {"labels": {"tier": "y"}}})));
    assert_eq!(goes(world, &spread(json!({"matchLabelKeys": ["tier"]}))), "n1", "another revision's pods");
    let rack = spread(json!({"topologyKey": "rack"}));
    assert!(goes(zones(), &rack).contains(&format!("1 node(s) {SKEWED} (missing required label)")));
}

/// Nodes that the pod cannot be on are no domains, and what is on them does not count.
#[test]
fn a_spread_constraint_passes_over_nodes_by_its_policies() {
    let spread = |more: Value| {
        let mut constraint = json!({"topologyKey": "zone", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": "web"}}});
        merge(&mut constraint, more);
        json!({ "topologySpreadConstraints": [constraint] })
    };
    let tainted = |name: &str, zone: &str| {
        let taint = json!({"taints": [{"key": "gpu", "effect": "NoSchedule"}]});
        node(name, json!({"metadata": {"labels": {"zone": zone}}, "spec": taint}))
    };
    let web = |name: &str, node: &str| there(name, node, json!({"app": "web"}), json!({}));
    let mut world = zones();
    ["n2", "n3"].into_iter().for_each(|name| world.put(tainted(name, "b")));
    world.put(web("a", "n1"));
    assert!(goes(world.clone(), &spread(json!({}))).contains("topology spread"), "the empty zone counts");
    assert_eq!(goes(world, &spread(json!({"nodeTaintsPolicy": "Honor"}))), "n1", "the empty zone is closed to it");
    // Zone a has a node that the pod may be on, and beside it one that it may not, with a pod.
    let mut world = zones();
    world.put(tainted("n0", "a"));
    world.put(web("a", "n0"));
    world.put(node("n2", json!({"metadata": {"labels": {"zone": "b"}}, "spec": {"unschedulable": true}})));
    world.put(node("n3", json!({"metadata": {"labels": {"zone": "b"}}, "spec": {"unschedulable": true}})));
    assert_eq!(
        goes(world, &spread(json!({"nodeTaintsPolicy": "Honor"}))),
        "n1",
        "what is on a closed node is not here"
    );
}

/// Upstream: a node counts for a constraint if it has the labels of all that are as strict.
#[test]
fn a_node_without_the_label_of_another_constraint_is_no_domain() {
    let constraint = |topology: &str, when: &str| {
        json!({"topologyKey": topology, "maxSkew": 1, "whenUnsatisfiable": when,
            "labelSelector": {"matchLabels": {"app": "web"}}})
    };
    let (hard, soft) = ("DoNotSchedule", "ScheduleAnyway");
    // Zone a has a pod; zone b has none, and no racks.
    let mut world = zones();
    world.put(node("n1", json!({"metadata": {"labels": {"zone": "a", "rack": "1"}}})));
    world.put(there("web", "n1", json!({"app": "web"}), json!({})));
    for (constraints, expected) in [
        (vec![constraint("zone", hard)], "n2"),
        (vec![constraint("zone", hard), constraint("rack", hard)], "n1"),
        (vec![constraint("zone", hard), constraint("rack", soft)], "n2"),
    ] {
        assert_eq!(
            goes(world.clone(), &json!({"topologySpreadConstraints": constraints})),
            expected,
            "{constraints:?}"
        );
    }
    // The pod itself counts only where it is one of those that are spread.
    let mut world = zones();
    ["n2", "n3"].into_iter().for_each(|name| world.put(there(name, name, json!({}), busy("3"))));
    world.put(there("db", "n1", json!({"app": "db"}), json!({})));
    let mut others = constraint("zone", hard);
    others["labelSelector"]["matchLabels"]["app"] = json!("db");
    assert_eq!(goes(world.clone(), &json!({"topologySpreadConstraints": [others]})), "n1");
    // With taints honored, nodes without taints are domains as ever.
    world.put(there("web", "n1", json!({"app": "web"}), json!({})));
    let mut honoring = constraint("zone", hard);
    honoring["nodeTaintsPolicy"] = json!("Honor");
    assert_eq!(goes(world, &json!({"topologySpreadConstraints": [honoring]})), "n2");
}

fn busy(cpu: &str) -> Value {
    json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}})
}

/// What is free on a node (up to 100), wishes (2 for each of their weight), soft taints (300), pods of the same
/// controller and pods too many of a domain (50 each) are one sum.
#[test]
fn what_speaks_for_a_node_is_weighed_against_what_speaks_against_it() {
    let wish = |weights: &[(i32, &str)]| {
        let term = |(weight, node): &(i32, &str)| {
            json!({"weight": weight, "preference": {"matchExpressions": [
            {"key": HOST, "operator": "In", "values": [node]}]}})
        };
        json!({"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution":
            weights.iter().map(term).collect::<Vec<_>>()}})
    };
    let taints = |count: usize| {
        let taints: Vec<Value> =
            (0..count).map(|n| json!({"key": format!("slow-{n}"), "effect": "PreferNoSchedule"})).collect();
        node("n1", json!({"metadata": {"labels": {"zone": "a"}}, "spec": {"taints": taints}}))
    };
    let spread = |when: &str, skew: i32| {
        json!([{"topologyKey": HOST, "maxSkew": skew, "whenUnsatisfiable": when,
            "labelSelector": {"matchLabels": {"app": "db"}}}])
    };
    let db = |name: &str, node: &str| there(name, node, json!({"app": "db"}), json!({}));
    let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true}]);
    let sibling = || {
        let mut sibling = there("sibling", "n1", json!({}), json!({}));
        sibling["metadata"]["ownerReferences"] = owner.clone();
        sibling
    };
    let slow = |key: &str| json!([{"key": key, "operator": "Exists"}]);
    let table = [
        // A third less is free on n1.
        (vec![there("b", "n1", json!({}), busy("3"))], json!({"affinity": wish(&[(18, "n1")])}), "n2"),
        (vec![there("b", "n1", json!({}), busy("3"))], json!({"affinity": wish(&[(20, "n1")])}), "n1"),
        (vec![taints(1)], json!({"affinity": wish(&[(100, "n1"), (60, "n1")])}), "n1"),
        (vec![taints(1)], json!({"affinity": wish(&[(100, "n1"), (40, "n1")])}), "n2"),
        (vec![taints(2)], json!({"affinity": wish(&[(100, "n1"), (100, "n1")])}), "n2"),
        // Another taint that is borne does not help; this one does.
        (vec![taints(1)], json!({"tolerations": slow("slow-9")}), "n2"),
        (vec![taints(1)], json!({"tolerations": slow("slow-0")}), "n1"),
        (vec![sibling()], json!({"affinity": wish(&[(24, "n1")])}), "n2"),
        (vec![sibling()], json!({"affinity": wish(&[(27, "n1")])}), "n1"),
        (
            vec![db("x", "n1")],
            json!({"topologySpreadConstraints": spread("ScheduleAnyway", 1),
            "affinity": wish(&[(24, "n1")])}),
            "n2",
        ),
        (
            vec![db("x", "n1")],
            json!({"topologySpreadConstraints": spread("ScheduleAnyway", 1),
            "affinity": wish(&[(27, "n1")])}),
            "n1",
        ),
        (
            vec![db("x", "n1"), db("y", "n1")],
            json!({"topologySpreadConstraints": spread("ScheduleAnyway", 1),
            "affinity": wish(&[(40, "n1")])}),
            "n2",
        ),
        // A hard constraint that is met is no wish.
        (vec![db("x", "n1")], json!({"topologySpreadConstraints": spread("DoNotSchedule", 5)}), "n1"),
    ];
    for (objects, spec, expected) in table {
        let mut world = zones();
        objects.iter().for_each(|object| world.put(object.clone()));
        let mut new = pod("new", json!({ "spec": spec }));
        new["metadata"]["ownerReferences"] = owner.clone();
        world.put(new);
        assert_eq!(placed(&mut world, "new"), expected, "{objects:?} {spec}");
    }
}

#[test]
fn wishes_are_weighed_and_are_only_wishes() {
    let node_term = |weight: i32, zone: &str| {
        json!({"weight": weight, "preference": {"matchExpressions": [{"key": "zone", "operator": "In",
            "values": [zone]}]}})
    };
    let pod_term =
        |weight: i32, topology: &str| json!({"weight": weight, "podAffinityTerm": to("db", topology, json!({}))});
    let wish = |kind: &str, terms: &[Value]| {
        let preferred = json!({"preferredDuringSchedulingIgnoredDuringExecution": terms});
        json!({"affinity": {kind: preferred}})
    };
    let db = |node: &str| there("db", node, json!({"app": "db"}), json!({}));
    let soft = |name: &str, zone: &str| {
        let taints = json!([{"key": "slow", "effect": "PreferNoSchedule"}]);
        node(name, json!({"metadata": {"labels": {"zone": zone}}, "spec": {"taints": taints}}))
    };
    let tolerant = json!({"tolerations": [{"key": "slow", "operator": "Exists"}]});
    let anyway = json!({"topologySpreadConstraints": [{"topologyKey": HOST, "maxSkew": 1,
        "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": {"app": "db"}}}]});
    let nowhere = json!({"topologySpreadConstraints": [{"topologyKey": "rack", "maxSkew": 1,
        "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": {"app": "db"}}}]});
    let table = [
        (vec![], json!({}), "n1"),
        (vec![], wish("nodeAffinity", &[node_term(1, "b")]), "n2"),
        (vec![], wish("nodeAffinity", &[node_term(1, "b"), node_term(2, "a")]), "n1"),
        (vec![], wish("nodeAffinity", &[node_term(1, "b"), node_term(1, "b"), node_term(1, "a")]), "n2"),
        (vec![], wish("nodeAffinity", &[node_term(1, "c")]), "n1"),
        (vec![db("n3")], wish("podAffinity", &[pod_term(1, HOST)]), "n3"),
        (vec![db("n3")], wish("podAffinity", &[pod_term(1, "zone")]), "n2"),
        (vec![db("n3")], wish("podAffinity", &[pod_term(1, "rack")]), "n1"),
        (vec![db("n1")], wish("podAntiAffinity", &[pod_term(1, HOST)]), "n2"),
        (vec![soft("n1", "a")], json!({}), "n2"),
        (vec![soft("n1", "a")], tolerant, "n1"),
        (vec![soft("n1", "a"), soft("n2", "b"), soft("n3", "b")], json!({}), "n1"),
        (vec![db("n1")], anyway, "n2"),
        (vec![db("n1")], nowhere, "n1"),
    ];
    for (objects, spec, expected) in table {
        let mut world = zones();
        objects.iter().for_each(|object| world.put(object.clone()));
        assert_eq!(goes(world, &spec), expected, "{objects:?} {spec}");
    }
    // A node of no zone is no better than one whose zone has no more pods than any other.
    let mut world = zones();
    world.put(node("n0", json!({})));
    for (name, node) in [("db-1", "n1"), ("db-2", "n1"), ("db-3", "n2"), ("db-4", "n2")] {
        world.put(there(name, node, json!({"app": "db"}), json!({})));
    }
    let zone = json!({"topologySpreadConstraints": [{"topologyKey": "zone", "maxSkew": 1,
        "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": {"app": "db"}}}]});
    assert_eq!(goes(world, &zone), "n1");
    // More pods there, more weight; and what is free on a node counts beside it.
    let mut world = zones();
    world.put(there("db-1", "n1", json!({"app": "db"}), json!({})));
    world.put(there("db-2", "n2", json!({"app": "db"}), json!({})));
    world.put(there("db-3", "n2", json!({"app": "db"}), json!({})));
    assert_eq!(goes(world.clone(), &wish("podAffinity", &[pod_term(1, HOST)])), "n2");
    assert_eq!(goes(world.clone(), &wish("podAntiAffinity", &[pod_term(1, HOST)])), "n3");
    let busy =
        json!({"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}]}});
    world.put(there("busy", "n1", json!({}), busy));
    assert_eq!(goes(world.clone(), &json!({})), "n2", "where more is free");
    assert_eq!(goes(world, &wish("nodeAffinity", &[node_term(50, "a")])), "n1", "a strong wish outweighs that");
}

#[test]
fn what_is_free_is_the_mean_of_cpu_and_memory() {
    let sized = |name: &str, cpu: &str, memory: &str| {
        let requests = json!({"cpu": cpu, "memory": memory});
        json!({"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": "c",
            "resources": {"requests": requests}}]}})
    };
    // Of 4 cores and 8 GiB each.
    for (first, second, expected) in [
        (("2", "1Gi"), ("1", "4Gi"), "n1"),
        (("2", "4Gi"), ("1", "4Gi"), "n2"),
        (("1", "4Gi"), ("1", "2Gi"), "n2"),
        (("1", "1Gi"), ("1", "1Gi"), "n1"),
        (("2", "1Gi"), ("1", "2Gi"), "n2"),
    ] {
        let mut world = World::default();
        for (name, (cpu, memory)) in [("n1", first), ("n2", second)] {
            world.put(node(name, json!({})));
            world.put(there(&format!("on-{name}"), name, json!({}), sized(name, cpu, memory)));
        }
        world.put(pod("new", json!({})));
        assert_eq!(placed(&mut world, "new"), expected, "{first:?} {second:?}");
    }
}
