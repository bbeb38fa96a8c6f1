//! The driver with controllers made for the test.

use jiff::Timestamp;
use mainstay_api::{ObjectKey, kinds, object};
use mainstay_logic::decision::Verb;
use mainstay_logic::{Change, Controller, Decision, Snapshot, Write};
use serde_json::{Value, json};

use super::*;
use crate::api::tests::{Cluster, config_map};

fn config_maps(_: &Snapshot, _: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    if *change.kind == kinds::CONFIG_MAP && change.new.is_some() && &*change.key.name != "kube-root-ca.crt" {
        wake(change.key.clone());
    }
}

fn made(key: &ObjectKey, suffix: &str, finalizer: &str) -> Write {
    let owner =
        json!({ "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "set", "uid": "u", "controller": true });
    let metadata = json!({
        "namespace": &*key.namespace, "name": format!("{}{suffix}", key.name), "ownerReferences": [owner], "finalizers": [finalizer],
    });
    Write::Create { kind: &kinds::SECRET, object: json!({ "metadata": metadata }) }
}

/// One secret per config map; decides on nothing but its snapshot, so it would fail if it did not see its own writes.
fn mirror(snapshot: &Snapshot, key: &ObjectKey, _: Timestamp) -> Decision {
    let place =
        (kinds::SECRET.plural, kinds::SECRET.group, ObjectKey::new(key.namespace.clone(), format!("{}-s", key.name)));
    let writes = if snapshot.metas.contains_key(&place) { Vec::new() } else { vec![made(key, "-s", "x.io/kept")] };
    Decision { writes, ..Decision::default() }
}

fn run(cluster: &Cluster, controllers: &'static [Controller]) -> Driver {
    let mut driver = Driver::new(controllers);
    let now = cluster.api.now();
    let mut watcher = driver.load(&cluster.api.store, now).expect("loaded");
    for _ in 0..100 {
        if !step(&cluster.api, &mut driver, &mut watcher, now).expect("in step") {
            return driver;
        }
    }
    panic!("the controllers never come to rest");
}

const SECRETS: &[(Verb, &str)] = &[(Verb::Create, "secrets")];

#[test]
fn a_controller_sees_its_own_writes_and_comes_to_rest() {
    static MIRROR: &[Controller] =
        &[Controller { name: "mirror", permits: SECRETS, keys: config_maps, reconcile: mirror }];
    let cluster = Cluster::new();
    for name in ["a", "b"] {
        cluster.create(&kinds::CONFIG_MAP, config_map(name)).expect("created");
    }
    run(&cluster, MIRROR);
    assert!(cluster.get(&kinds::SECRET, "a-s").is_some() && cluster.get(&kinds::SECRET, "b-s").is_some());
}

#[test]
fn a_panic_or_a_forbidden_write_parks_its_key_and_no_other() {
    fn unruly(snapshot: &Snapshot, key: &ObjectKey, now: Timestamp) -> Decision {
        match &*key.name {
            "panics" => panic!("as the test wants"),
            "oversteps" => {
                let uid = "u".to_owned();
                let key = key.clone();
                Decision { writes: vec![Write::Bind { key, uid, node: "n".into() }], ..Decision::default() }
            }
            _ => mirror(snapshot, key, now),
        }
    }
    static UNRULY: &[Controller] =
        &[Controller { name: "unruly", permits: SECRETS, keys: config_maps, reconcile: unruly }];
    let cluster = Cluster::new();
    for name in ["panics", "oversteps", "works"] {
        cluster.create(&kinds::CONFIG_MAP, config_map(name)).expect("created");
    }
    let driver = run(&cluster, UNRULY);
    assert!(cluster.get(&kinds::SECRET, "works-s").is_some());
    assert!(driver.next_wake().is_some_and(|at| at > cluster.api.now()), "they are looked at again later");
}

#[test]
fn what_stands_before_a_refused_write_is_kept_and_the_refusal_is_told() {
    fn second_is_bad(snapshot: &Snapshot, key: &ObjectKey, now: Timestamp) -> Decision {
        let mut decision = mirror(snapshot, key, now);
        decision.writes.push(made(key, "-bad", "not a finalizer"));
        decision.writes.push(made(key, "-after", "x.io/kept"));
        decision
    }
    static BAD: &[Controller] =
        &[Controller { name: "bad", permits: SECRETS, keys: config_maps, reconcile: second_is_bad }];
    let cluster = Cluster::new();
    cluster.create(&kinds::CONFIG_MAP, config_map("a")).expect("created");
    let driver = run(&cluster, BAD);
    assert!(cluster.get(&kinds::SECRET, "a-s").is_some() && cluster.get(&kinds::SECRET, "a-after").is_none());
    assert!(driver.next_wake().is_some(), "it is tried again");
    let events = cluster.api.store.range(b"/core/events/default/", None, 10, None).expect("listed").entries;
    let event: Value = serde_json::from_slice(&events.first().expect("told").value).expect("JSON");
    assert_eq!(
        (object::text(&event, &["reason"]), object::text(&event, &["involvedObject", "name"])),
        ("FailedCreate", "set")
    );
    assert!(object::text(&event, &["message"]).starts_with("create Secret a-bad in StatefulSet set failed error: "));
}

#[test]
fn an_event_that_repeats_is_counted_and_goes_after_an_hour() {
    fn tells(_: &Snapshot, key: &ObjectKey, _: Timestamp) -> Decision {
        let uid = "u".to_owned();
        let (key, message) = (key.clone(), "m".to_owned());
        let event =
            mainstay_logic::Event { kind: &kinds::CONFIG_MAP, key, uid, warning: false, reason: "Told", message };
        Decision { events: vec![event], ..Decision::default() }
    }
    static TELLS: &[Controller] = &[Controller { name: "tells", permits: &[], keys: config_maps, reconcile: tells }];
    let cluster = Cluster::new();
    cluster.create(&kinds::CONFIG_MAP, config_map("a")).expect("created");
    let mut driver = Driver::new(TELLS);
    let mut watcher = driver.load(&cluster.api.store, cluster.api.now()).expect("loaded");
    let mut settle = || while step(&cluster.api, &mut driver, &mut watcher, cluster.api.now()).expect("in step") {};
    let counts = || -> Vec<i64> {
        let events = cluster.api.store.range(b"/core/events/", None, 10, None).expect("listed").entries;
        events
            .iter()
            .filter_map(|entry| serde_json::from_slice::<Value>(&entry.value).ok()?["count"].as_i64())
            .collect()
    };
    settle();
    assert_eq!(counts(), [1]);
    cluster.merge(&kinds::CONFIG_MAP, "a", crate::api::Part::Main, json!({ "data": { "b": "c" } })).expect("changed");
    settle();
    assert_eq!(counts(), [2]);
    cluster.seconds.fetch_add(3601, std::sync::atomic::Ordering::Relaxed);
    settle();
    assert_eq!(counts(), [] as [i64; 0]);
}
