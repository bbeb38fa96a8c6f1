//! The driver with controllers made for the test.

use jiff::Timestamp;
use mainstay_api::{ObjectKey, kinds, object};
use mainstay_logic::decision::Verb;
use mainstay_logic::{Change, Controller, Decision, Snapshot, Write};
use mainstay_store::limits::TxnLimits;
use serde_json::{Value, json};

mod custom;
mod refused;
mod release;
mod rounds;

use super::*;
use crate::api::tests::{Cluster, config_map};

fn config_maps(_: &Snapshot, _: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    if change.kind == kinds::CONFIG_MAP && change.new.is_some() && &*change.key.name != "kube-root-ca.crt" {
        wake(change.key.clone());
    }
}

fn made(key: &ObjectKey, suffix: &str, finalizer: &str) -> Write {
    let owner =
        json!({ "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "set", "uid": "u", "controller": true });
    let metadata = json!({
        "namespace": &*key.namespace, "name": format!("{}{suffix}", key.name), "ownerReferences": [owner],
            "finalizers": [finalizer],
    });
    Write::Create { kind: kinds::SECRET.clone(), object: json!({ "metadata": metadata }) }
}

/// One secret per config map; decides on nothing but its snapshot, so it would fail if it did not see its own writes.
fn mirror(snapshot: &Snapshot, key: &ObjectKey, _: Timestamp) -> Decision {
    let index = (kinds::SECRET.clone(), ObjectKey::new(key.namespace.clone(), format!("{}-s", key.name)));
    let writes = if snapshot.metas.contains_key(&index) { Vec::new() } else { vec![made(key, "-s", "x.io/kept")] };
    Decision { writes, ..Decision::default() }
}

fn run(cluster: &Cluster, controllers: &'static [Controller]) -> Driver {
    let mut driver = Driver::new(controllers);
    let now = cluster.api.now();
    let mut watcher = driver.load(&cluster.api.store, now).expect("loaded");
    for _ in 0..1000 {
        if !step(&cluster.api, &mut driver, &mut watcher, now).expect("in step") {
            assert_eq!(driver.counts().broken().collect::<Vec<_>>(), []);
            return driver;
        }
    }
    panic!("the controllers never come to rest");
}

const SECRETS: &[(Verb, &str)] = &[(Verb::Create, "secrets")];

#[test]
fn a_controller_sees_its_own_writes_and_comes_to_rest() {
    static MIRROR: &[Controller] = &[Controller {
        name: "mirror",
        permits: SECRETS,
        reads: &["*"],
        keys: config_maps,
        reconcile: mirror,
        many: None,
    }];
    let cluster = Cluster::new();
    for name in ["a", "b"] {
        cluster.create(&kinds::CONFIG_MAP, config_map(name)).expect("created");
    }
    run(&cluster, MIRROR);
    assert!(cluster.get(&kinds::SECRET, "a-s").is_some() && cluster.get(&kinds::SECRET, "b-s").is_some());
}

#[test]
fn a3_a8_what_breaks_a_promise_is_counted_by_name() {
    static ADOPTS: &[Controller] = &[Controller {
        name: "garbage-collector-controller",
        permits: &[(Verb::Delete, "*")],
        reads: &["*"],
        keys: config_maps,
        reconcile: |_, key, _| {
            let delete = Write::Delete {
                kind: kinds::PERSISTENT_VOLUME_CLAIM.clone(),
                key: key.clone(),
                uid: "claim".to_owned(),
                resource_version: None,
                grace_period: None,
                propagation: mainstay_logic::Propagation::Background,
            };
            Decision { writes: vec![delete], ..Decision::default() }
        },
        many: None,
    }];
    let cluster = Cluster::new();
    let mut driver = Driver::new(ADOPTS);
    let now = cluster.api.now();
    driver.load(&cluster.api.store, now).expect("loaded");
    let newest = cluster.api.store.revision().0;
    let tell = |driver: &mut Driver, kind: &Kind, name: &str, uid: &str, revision: u64| {
        let metadata =
            json!({ "namespace": "default", "name": name, "uid": uid, "resourceVersion": revision.to_string() });
        let event = Event {
            revision: Revision(revision),
            key: key::object(kind, "default", name),
            value: json!({ "metadata": metadata, "spec": {} }).to_string().into(),
            previous: None,
            deleted: false,
        };
        driver.on_event(&event, now);
        driver.counts().broken().collect::<Vec<_>>()
    };
    assert_eq!(tell(&mut driver, &kinds::PERSISTENT_VOLUME_CLAIM, "a", "claim", newest + 1), []);
    assert_eq!(tell(&mut driver, &kinds::SECRET, "b", "u", newest + 2), []);
    assert_eq!(tell(&mut driver, &kinds::SECRET, "b", "u", newest + 3), []);
    assert_eq!(tell(&mut driver, &kinds::SECRET, "b", "another", newest + 4), [("A8", 1)]);
    assert_eq!(tell(&mut driver, &kinds::SECRET, "c", "u", newest + 2), [("A3", 1), ("A8", 1)]);
    // The claim has no owner: nobody may delete it for one.
    assert_eq!(tell(&mut driver, &kinds::CONFIG_MAP, "a", "u", newest + 5).len(), 2);
    assert!(driver.poll(now).is_some());
    assert_eq!(driver.counts().broken().collect::<Vec<_>>(), [("A3", 1), ("A8", 1), ("S8", 1)]);
}

#[test]
fn a_rollout_that_begins_is_no_new_generation_of_its_deployment() {
    static ROLLOUT: &[Controller] = &[mainstay_logic::controllers::deployment::CONTROLLER];
    let cluster = Cluster::new();
    let template = json!({
        "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "c", "image": "busybox" }] },
    });
    let spec = json!({ "selector": { "matchLabels": { "a": "b" } }, "template": template });
    cluster.create(&kinds::DEPLOYMENT, json!({ "metadata": { "name": "web" }, "spec": spec })).expect("created");
    run(&cluster, ROLLOUT);
    let stored = cluster.get(&kinds::DEPLOYMENT, "web").expect("there");
    assert_eq!(stored["metadata"]["annotations"]["deployment.kubernetes.io/revision"], "1");
    assert_eq!((&stored["metadata"]["generation"], &stored["status"]["observedGeneration"]), (&json!(1), &json!(1)));
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
    static UNRULY: &[Controller] = &[Controller {
        name: "unruly",
        permits: SECRETS,
        reads: &["*"],
        keys: config_maps,
        reconcile: unruly,
        many: None,
    }];
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
    static BAD: &[Controller] = &[Controller {
        name: "bad",
        permits: SECRETS,
        reads: &["*"],
        keys: config_maps,
        reconcile: second_is_bad,
        many: None,
    }];
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
        let event = mainstay_logic::Event {
            kind: kinds::CONFIG_MAP.clone(),
            key,
            uid,
            warning: false,
            reason: "Told",
            message,
        };
        Decision { events: vec![event], ..Decision::default() }
    }
    static TELLS: &[Controller] =
        &[Controller { name: "tells", permits: &[], reads: &["*"], keys: config_maps, reconcile: tells, many: None }];
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

/// X7: what is told of one object is bounded, as upstream's correlator does: what is alike is combined after the tenth,
/// and after 25 there is one every five minutes; others are told of all the same.
#[test]
fn x7_one_object_is_told_of_so_much_and_no_more() {
    let cluster = Cluster::new();
    let tell = |name: &str, reason: &'static str, message: String| {
        let key = ObjectKey::new("default", name);
        let kind = kinds::CONFIG_MAP.clone();
        let event = mainstay_logic::Event { kind, key, uid: "u".to_owned(), warning: true, reason, message };
        let mut batch = cluster.api.batch();
        events::record(&mut batch, "tells", &event);
        cluster.api.store.commit_blocking(batch.into_txn()).expect("committed");
    };
    let told = |name: &str| -> Vec<(String, i64)> {
        let prefix = format!("/core/events/default/{name}.");
        let events = cluster.api.store.range(prefix.as_bytes(), None, 1000, None).expect("listed").entries;
        let parsed = events.iter().map(|entry| serde_json::from_slice::<Value>(&entry.value).expect("JSON"));
        parsed
            .map(|event| (object::text(&event, &["message"]).to_owned(), event["count"].as_i64().expect("a count")))
            .collect()
    };
    (0..100).for_each(|number| tell("a", "Alike", format!("number {number}")));
    let all = told("a");
    assert_eq!(all.len(), 11, "{all:?}");
    let (combined, count) = all.iter().find(|(message, _)| message.starts_with("(combined")).expect("one for many");
    assert!(combined.ends_with("number 19") && *count == 10, "the tenth of them, then rarely: {combined} {count}");
    tell("a", "Alike", "number 3".to_owned());
    assert!(told("a").contains(&("number 3".to_owned(), 2)), "what was told is counted up");

    let reasons: Vec<&'static str> = (0..40).map(|number| &*format!("Reason{number}").leak()).collect();
    reasons.iter().for_each(|reason| tell("b", reason, "m".to_owned()));
    assert_eq!(told("b").len(), 25);
    tell("c", "Reason", "m".to_owned());
    assert_eq!(told("c").len(), 1);
    cluster.seconds.fetch_add(301, std::sync::atomic::Ordering::Relaxed);
    reasons[25..].iter().for_each(|reason| tell("b", reason, "m".to_owned()));
    assert_eq!(told("b").len(), 26);
}

/// `kubectl get events` lists by name, and `describe` by the second: what was told first comes first, also after what a
/// server before this one told, and the same is the same Event.
#[test]
fn conformance_events_of_one_second_are_listed_as_they_were_told() {
    const TOLD: [&str; 7] = ["pulling", "pulled", "created", "started", "killing", "pulling again", "and then"];
    fn told(key: &ObjectKey, messages: &[&str]) -> Decision {
        let event = |message: &&str| mainstay_logic::Event {
            kind: kinds::CONFIG_MAP.clone(),
            key: key.clone(),
            uid: "u".to_owned(),
            warning: false,
            reason: "Told",
            message: (*message).to_owned(),
        };
        Decision { events: messages.iter().map(event).collect(), ..Decision::default() }
    }
    const fn tells(reconcile: fn(&Snapshot, &ObjectKey, Timestamp) -> Decision) -> [Controller; 1] {
        [Controller { name: "tells", permits: &[], reads: &["*"], keys: config_maps, reconcile, many: None }]
    }
    static SIX: &[Controller] = &tells(|_, key, _| told(key, &TOLD[..6]));
    static SEVEN: &[Controller] = &tells(|_, key, _| told(key, &TOLD));
    let cluster = Cluster::new();
    let long = "l".repeat(253);
    cluster.create(&kinds::CONFIG_MAP, config_map("a")).expect("created");
    cluster.create(&kinds::CONFIG_MAP, config_map(&long)).expect("created");
    let told = |of: &str| -> Vec<(String, i64)> {
        let prefix = format!("/core/events/default/{of}");
        let events = cluster.api.store.range(prefix.as_bytes(), None, 100, None).expect("listed").entries;
        let event = |entry: &mainstay_store::Entry| {
            let event: Value = serde_json::from_slice(&entry.value).expect("JSON");
            (event["message"].as_str().expect("a message").to_owned(), event["count"].as_i64().expect("a count"))
        };
        events.iter().map(event).collect()
    };
    let times = |counts: &[i64]| -> Vec<(String, i64)> {
        TOLD.iter().zip(counts).map(|(message, count)| ((*message).to_owned(), *count)).collect()
    };
    run(&cluster, SIX);
    assert_eq!((told("a."), told("lll")), (times(&[1; 6]), times(&[1; 6])));
    // Another server, which has seen none of it.
    run(&cluster, SEVEN);
    let counts = [2, 2, 2, 2, 2, 2, 1];
    assert_eq!((told("a."), told("lll")), (times(&counts), times(&counts)));
}

/// A Namespace on its way out with this in it, and what is left of it all when the controllers are at rest.
fn deleted_with<'a>(content: impl IntoIterator<Item = (&'a Kind, Value)>) -> (Cluster, Driver) {
    deleted_within(TxnLimits::EMBEDDED, content)
}

/// The same, of a store whose transactions hold no more than this.
fn deleted_within<'a>(most: TxnLimits, content: impl IntoIterator<Item = (&'a Kind, Value)>) -> (Cluster, Driver) {
    let cluster = Cluster::within(most);
    cluster.create(&kinds::NAMESPACE, json!({ "metadata": { "name": "full" } })).expect("created");
    for (kind, object) in content {
        cluster.write(|batch| crate::api::create(batch, kind, "full", object.clone())).expect("created");
    }
    let options = crate::api::DeleteOptions::default();
    cluster.write(|batch| crate::api::delete(batch, &kinds::NAMESPACE, "", "full", &options)).expect("marked");
    let driver = run(&cluster, mainstay_logic::controllers::CONTROLLERS);
    (cluster, driver)
}

fn filled(name: usize, bytes: usize) -> Value {
    json!({ "metadata": { "namespace": "full", "name": format!("o{name}") },
        "data": { "a": "QUJD".repeat(bytes / 4) } })
}

/// What etcd does not take at once is decided in pieces; nothing waits for ever for a transaction that is too large.
#[test]
fn decisions_come_to_rest_within_what_etcd_takes_at_once_a8() {
    let counted = json!({ "metadata": { "namespace": "full", "name": "q" }, "spec": { "hard": { "pods": "1" } } });
    let secrets = (0..3).map(|name| (&kinds::SECRET, filled(name, 750 << 10)));
    let config_maps = (0..300).map(|name| (&kinds::CONFIG_MAP, filled(1000 + name, 20 << 10)));
    let content = secrets.chain(config_maps).chain([(&kinds::RESOURCE_QUOTA, counted)]);
    let (cluster, driver) = deleted_within(TxnLimits::ETCD, content);
    assert!(cluster.get(&kinds::NAMESPACE, "full").is_none(), "{:?}", driver.waiting().collect::<Vec<_>>());
}

#[test]
fn a_namespace_of_more_than_one_transaction_is_deleted() {
    let secrets = (0..6).map(|name| (&kinds::SECRET, filled(name, 750 << 10)));
    assert!(deleted_with(secrets).0.get(&kinds::NAMESPACE, "full").is_none());
    let config_maps = (0..300).map(|name| (&kinds::CONFIG_MAP, filled(name, 50 << 10)));
    assert!(deleted_with(config_maps).0.get(&kinds::NAMESPACE, "full").is_none());
}

#[test]
fn a_decision_refused_for_its_shape_is_halved_until_it_fits() {
    static MIRROR: &[Controller] = &[Controller {
        name: "mirror",
        permits: SECRETS,
        reads: &["*"],
        keys: config_maps,
        reconcile: mirror,
        many: None,
    }];
    let cluster = Cluster::new();
    cluster.create(&kinds::CONFIG_MAP, config_map("a")).expect("created");
    let now = cluster.api.now();
    let mut driver = Driver::new(MIRROR);
    driver.load(&cluster.api.store, now).expect("loaded");
    let mut tried = Vec::new();
    for refused in [100, 50, 25] {
        let work = driver.poll(now).expect("decided at once");
        tried.push(work.most_writes);
        driver.finished(work, &Finish::TooLarge(refused), now);
    }
    let work = driver.poll(now).expect("decided at once");
    tried.push(work.most_writes);
    assert_eq!(tried, [usize::MAX, 50, 25, 12]);
    driver.finished(work, &Finish::TooLarge(1), now);
    assert!(driver.poll(now).is_none(), "one write alone is not tried again at once");
    assert!(driver.next_wake().is_some());
}

#[test]
fn no_decision_but_the_first_is_cut_where_a_transaction_is_full() {
    let cluster = Cluster::new();
    let part = |number: usize, bytes: usize| {
        let key = ObjectKey::new("default", format!("p{number}"));
        let object = |index: usize| {
            let metadata = json!({ "namespace": "default", "name": format!("p{number}-{index}") });
            json!({ "metadata": metadata, "data": { "a": "a".repeat(bytes) } })
        };
        let writes =
            (0..3).map(|index| Write::Create { kind: kinds::CONFIG_MAP.clone(), object: object(index) }).collect();
        Part { item: (EXPIRY, key.clone()), key, decision: Decision { writes, ..Decision::default() } }
    };
    let compiled = |many: usize, bytes: usize| {
        let parts = (0..many).map(|number| part(number, bytes)).collect();
        let work = Work { controller: "test", parts, expired: Vec::new(), most_writes: usize::MAX };
        let compiled = compile(&cluster.api, &work);
        assert!(compiled.is_cut && compiled.refused.is_none());
        (compiled.parts, compiled.writes)
    };
    let (parts, writes) = compiled(400, 1);
    assert!(parts > 100 && writes == 3 * parts, "{parts} {writes}");
    // By bytes, in the middle of the third.
    assert_eq!(compiled(4, 330 << 10), (2, 6));
    // The first alone is nearly too much.
    assert_eq!(compiled(2, 900 << 10), (1, 3));
}

#[test]
fn a10_an_undecodable_claim_stops_what_looks_at_claims_and_nothing_is_deleted() {
    let cluster = Cluster::new();
    let metadata =
        json!({ "name": "v", "annotations": { "pv.kubernetes.io/provisioned-by": "mainstay.io/local-path" } });
    let volume = json!({ "metadata": metadata, "spec": {
        "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteOnce"], "local": { "path": "/v" },
        "persistentVolumeReclaimPolicy": "Delete", "storageClassName": "x",
        "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchFields": [
            { "key": "metadata.name", "operator": "In", "values": ["n"] }] }] } },
        "claimRef": { "namespace": "default", "name": "data", "uid": "uid-of-claim" } } });
    cluster.create(&kinds::PERSISTENT_VOLUME, volume).expect("created");
    let claim = key::object(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "data");
    let put = |bytes: &'static [u8]| {
        let value = mainstay_store::Encoded::plain(bytes);
        let txn =
            mainstay_store::Txn { ops: vec![mainstay_store::Op::Put { key: claim.clone(), value }], expect: vec![] };
        cluster.api.store.commit_blocking(txn).expect("stored");
    };
    put(b"{\"metadata\": {\"uid\": \"uid-of-claim\", \"name\": 7}}");
    let mut driver = run(&cluster, mainstay_logic::controllers::CONTROLLERS);
    assert!(cluster.get(&kinds::PERSISTENT_VOLUME, "v").is_some(), "its claim cannot be read, which is not gone");
    assert_eq!(driver.undecodable().len(), 1);
    let held = |driver: &Driver| {
        let undecodable = |(_, _, waiting): &(_, &ObjectKey, &[mainstay_logic::Waiting])| {
            matches!(waiting,
            [mainstay_logic::Waiting::Undecodable { kind, .. }] if *kind == kinds::PERSISTENT_VOLUME_CLAIM)
        };
        driver.waiting().filter(undecodable).map(|(name, ..)| name).collect::<BTreeSet<_>>()
    };
    assert!(held(&driver).contains("persistentvolume-binder"));
    // A person takes the damaged object away: only then the volume follows.
    let last = mainstay_store::Encoded::plain("{}");
    let txn =
        mainstay_store::Txn { ops: vec![mainstay_store::Op::Delete { key: claim.clone(), last }], expect: vec![] };
    cluster.api.store.commit_blocking(txn).expect("stored");
    let now = cluster.api.now();
    let mut watcher = driver.load(&cluster.api.store, now).expect("loaded");
    while step(&cluster.api, &mut driver, &mut watcher, now).expect("in step") {}
    assert!(cluster.get(&kinds::PERSISTENT_VOLUME, "v").is_none());
    assert_eq!(held(&driver), BTreeSet::new());
}

/// Commits work without the driver seeing what came of it.
fn land(cluster: &Cluster, driver: &mut Driver, work: Work) {
    let compiled = compile(&cluster.api, &work);
    let done = cluster.api.store.commit_blocking(compiled.txn).expect("committed");
    let finish = match compiled.refused {
        Some(_) => Finish::Failed(Some(done.last), compiled.parts),
        None => Finish::Committed(done.last),
    };
    driver.finished(work, &finish, cluster.api.now());
}

fn feed(driver: &mut Driver, watcher: &mut Watcher, now: Timestamp) {
    while let Some(event) = watcher.try_next().expect("in the window") {
        driver.on_event(&event, now);
    }
}

fn names(work: Option<Work>) -> Vec<String> {
    work.iter().flat_map(|work| &work.parts).map(|part| part.key.name.as_ref().to_owned()).collect()
}

#[test]
fn a_key_is_decided_again_only_when_its_own_commit_is_seen_and_others_go_on() {
    static MIRROR: &[Controller] = &[Controller {
        name: "mirror",
        permits: SECRETS,
        reads: &["*"],
        keys: config_maps,
        reconcile: mirror,
        many: None,
    }];
    let cluster = Cluster::new();
    let now = cluster.api.now();
    for name in ["a", "b"] {
        cluster.create(&kinds::CONFIG_MAP, config_map(name)).expect("created");
    }
    let mut driver = Driver::new(MIRROR);
    let mut watcher = driver.load(&cluster.api.store, now).expect("loaded");
    let first = driver.poll(now).expect("a");
    let second = driver.poll(now).expect("b, while a waits for the disk");
    cluster.merge(&kinds::CONFIG_MAP, "a", crate::api::Part::Main, json!({ "data": { "b": "c" } })).expect("changed");
    feed(&mut driver, &mut watcher, now);
    assert_eq!(names(driver.poll(now)), [""; 0], "a is under way");
    land(&cluster, &mut driver, first);
    assert_eq!(names(driver.poll(now)), [""; 0], "what it wrote is not seen yet");
    land(&cluster, &mut driver, second);
    feed(&mut driver, &mut watcher, now);
    assert_eq!(names(driver.poll(now)), [""; 0], "a was decided on what it wrote itself");
    assert!(cluster.get(&kinds::SECRET, "a-s").is_some() && cluster.get(&kinds::SECRET, "b-s").is_some());
}

/// What is decided about an object that another write changes, or replaces by one of its name, before the commit.
#[test]
fn a8_a_decision_about_an_older_state_or_another_object_is_refused_at_commit() {
    fn marks(snapshot: &Snapshot, key: &ObjectKey, _: Timestamp) -> Decision {
        let Some(meta) = snapshot.metas.get(&(kinds::CONFIG_MAP.clone(), key.clone())) else {
            return Decision::default();
        };
        let mark = Write::patch(&kinds::CONFIG_MAP, &meta.metadata, json!({ "data": { "mark": "1" } }));
        let delete = Write::delete(&kinds::CONFIG_MAP, &meta.metadata);
        let writes = match (&*key.name, mark, delete) {
            ("patch", mark, _) => vec![mark],
            ("patch-any-state", Write::Patch { kind, key, uid, status, patch, .. }, _) => {
                vec![Write::Patch { kind, key, uid, status, patch, resource_version: None }]
            }
            ("delete", _, delete) => vec![delete],
            (_, _, Write::Delete { kind, key, uid, grace_period, propagation, .. }) => {
                vec![Write::Delete { kind, key, uid, grace_period, propagation, resource_version: None }]
            }
            _ => Vec::new(),
        };
        Decision { writes, ..Decision::default() }
    }
    static MARKS: &[Controller] = &[Controller {
        name: "marks",
        permits: &[(Verb::Patch, "configmaps"), (Verb::Delete, "configmaps")],
        reads: &["*"],
        keys: config_maps,
        reconcile: marks,
        many: None,
    }];
    for (name, replaced) in
        [("patch", false), ("patch", true), ("patch-any-state", true), ("delete", false), ("delete-any-state", true)]
    {
        let cluster = Cluster::new();
        let now = cluster.api.now();
        cluster.create(&kinds::CONFIG_MAP, config_map(name)).expect("created");
        let mut driver = Driver::new(MARKS);
        let mut watcher = driver.load(&cluster.api.store, now).expect("loaded");
        let work = driver.poll(now).expect("decided");
        if replaced {
            cluster.delete(&kinds::CONFIG_MAP, name, &crate::api::DeleteOptions::default()).expect("deleted");
            cluster.create(&kinds::CONFIG_MAP, config_map(name)).expect("made again");
        } else {
            let change = json!({ "data": { "other": "1" } });
            cluster.merge(&kinds::CONFIG_MAP, name, crate::api::Part::Main, change).expect("changed");
        }
        let before = cluster.get(&kinds::CONFIG_MAP, name);
        land(&cluster, &mut driver, work);
        assert!(before.is_some() && cluster.get(&kinds::CONFIG_MAP, name) == before, "{name}, replaced: {replaced}");
        // It is decided anew, on what there is now.
        feed(&mut driver, &mut watcher, now);
        let again = driver.poll(now).expect("decided anew");
        land(&cluster, &mut driver, again);
        assert_ne!(cluster.get(&kinds::CONFIG_MAP, name), before, "{name}, replaced: {replaced}");
    }
}

#[test]
fn v2_what_a_decision_relies_on_is_written_by_nobody_until_it_is_seen() {
    fn relies(snapshot: &Snapshot, key: &ObjectKey, now: Timestamp) -> Decision {
        Decision { relies: vec![(kinds::CONFIG_MAP.clone(), key.clone())], ..mirror(snapshot, key, now) }
    }
    fn removes(snapshot: &Snapshot, key: &ObjectKey, _: Timestamp) -> Decision {
        let slot = |kind: &Kind, name: &str| (kind.clone(), ObjectKey::new(key.namespace.clone(), name));
        let used = snapshot.metas.contains_key(&slot(&kinds::SECRET, &format!("{}-s", key.name)));
        let unused = snapshot.metas.get(&slot(&kinds::CONFIG_MAP, &key.name)).filter(|_| !used);
        let writes = unused.map(|meta| Write::delete(&kinds::CONFIG_MAP, &meta.metadata)).into_iter().collect();
        Decision { writes, ..Decision::default() }
    }
    static BOTH: &[Controller] = &[
        Controller { name: "x", permits: &[], reads: &[], keys: |_, _, _, _| (), reconcile: removes, many: None },
        Controller { name: "uses", permits: SECRETS, reads: &[], keys: config_maps, reconcile: relies, many: None },
        Controller {
            name: "removes",
            permits: &[(Verb::Delete, "configmaps")],
            reads: &[],
            keys: config_maps,
            reconcile: removes,
            many: None,
        },
    ];
    let cluster = Cluster::new();
    let now = cluster.api.now();
    cluster.create(&kinds::CONFIG_MAP, config_map("a")).expect("created");
    let mut driver = Driver::new(BOTH);
    let mut watcher = driver.load(&cluster.api.store, now).expect("loaded");
    let first = driver.poll(now).expect("decided");
    assert_eq!(first.controller, "uses");
    assert!(driver.poll(now).is_none(), "the other one waits");
    land(&cluster, &mut driver, first);
    assert!(driver.poll(now).is_none(), "the other one still waits");
    feed(&mut driver, &mut watcher, now);
    assert!(driver.poll(now).is_none(), "and then sees that it is used");
    assert!(cluster.get(&kinds::CONFIG_MAP, "a").is_some());
}

#[test]
fn many_keys_are_decided_together_by_rank_and_a_refusal_ends_only_what_follows() {
    fn all(snapshot: &Snapshot, keys: &[ObjectKey], now: Timestamp) -> Vec<Decision> {
        let decide = |key: &ObjectKey| match &*key.name {
            "bad" => Decision { writes: vec![made(key, "-s", "not a finalizer")], ..Decision::default() },
            _ => mirror(snapshot, key, now),
        };
        keys.iter().map(decide).collect()
    }
    static MANY: &[Controller] = &[Controller {
        name: "many",
        permits: SECRETS,
        reads: &[],
        keys: config_maps,
        reconcile: |snapshot, key, now| all(snapshot, std::slice::from_ref(key), now).pop().unwrap_or_default(),
        many: Some(mainstay_logic::decision::Many {
            decide: all,
            rank: |_, key| if &*key.name == "z" { -1 } else { 0 },
            all: |_| Vec::new(),
            most: 10,
            assume: None,
        }),
    }];
    let cluster = Cluster::new();
    let now = cluster.api.now();
    for name in ["a", "bad", "c", "z"] {
        cluster.create(&kinds::CONFIG_MAP, config_map(name)).expect("created");
    }
    let mut driver = Driver::new(MANY);
    let mut watcher = driver.load(&cluster.api.store, now).expect("loaded");
    let work = driver.poll(now).expect("decided");
    assert_eq!(work.parts.iter().map(|part| &*part.key.name).collect::<Vec<_>>(), ["z", "a", "bad", "c"]);
    land(&cluster, &mut driver, work);
    assert!(driver.poll(now).is_none(), "not before it is seen");
    feed(&mut driver, &mut watcher, now);
    assert_eq!(names(driver.poll(now)), ["c"]);
    assert!(driver.next_wake().is_some(), "the refused one is tried again");
    let made: Vec<bool> = ["z-s", "a-s", "bad-s"].map(|name| cluster.get(&kinds::SECRET, name).is_some()).into();
    assert_eq!(made, [true, true, false]);
}

#[test]
fn x6_many_keys_that_wait_for_one_writer_are_decided_once_until_it_is_done() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static DECIDED: AtomicUsize = AtomicUsize::new(0);
    const ALL: usize = 20;
    fn slot(index: usize) -> (Kind, ObjectKey) {
        (kinds::CONFIG_MAP.clone(), ObjectKey::new("default", format!("m{index:02}")))
    }
    fn holds_all(snapshot: &Snapshot, key: &ObjectKey, now: Timestamp) -> Decision {
        Decision { relies: (0..ALL).map(slot).collect(), ..mirror(snapshot, key, now) }
    }
    fn each(snapshot: &Snapshot, keys: &[ObjectKey], now: Timestamp) -> Vec<Decision> {
        DECIDED.fetch_add(keys.len(), Ordering::Relaxed);
        let decide = |key: &ObjectKey| Decision {
            relies: vec![(kinds::CONFIG_MAP.clone(), key.clone())],
            ..mirror(snapshot, key, now)
        };
        keys.iter().map(decide).collect()
    }
    fn first(_: &Snapshot, _: &Snapshot, change: &mainstay_logic::Change, wake: &mut dyn FnMut(ObjectKey)) {
        if change.kind == kinds::CONFIG_MAP {
            wake(slot(0).1);
        }
    }
    let many =
        mainstay_logic::decision::Many { decide: each, rank: |_, _| 0, all: |_| Vec::new(), most: 200, assume: None };
    let reconcile: fn(&Snapshot, &ObjectKey, Timestamp) -> Decision =
        |snapshot, key, now| each(snapshot, std::slice::from_ref(key), now).pop().unwrap_or_default();
    let nobody = |_: &Snapshot, _: &ObjectKey, _: Timestamp| Decision::default();
    let all = Box::leak(Box::new([
        Controller { name: "x", permits: &[], reads: &[], keys: |_, _, _, _| (), reconcile: nobody, many: None },
        Controller { name: "one", permits: SECRETS, reads: &[], keys: first, reconcile: holds_all, many: None },
        Controller { name: "many", permits: SECRETS, reads: &[], keys: config_maps, reconcile, many: Some(many) },
    ]));
    let cluster = Cluster::new();
    let now = cluster.api.now();
    for index in 0..ALL {
        cluster.create(&kinds::CONFIG_MAP, config_map(&slot(index).1.name)).expect("created");
    }
    let mut driver = Driver::new(all);
    let mut watcher = driver.load(&cluster.api.store, now).expect("loaded");
    let held = driver.poll(now).expect("decided");
    assert_eq!(held.controller, "one");
    assert!(driver.poll(now).is_none(), "all of the others wait");
    assert_eq!(DECIDED.load(Ordering::Relaxed), ALL, "each once");
    land(&cluster, &mut driver, held);
    feed(&mut driver, &mut watcher, now);
    let rest = driver.poll(now).expect("decided anew");
    assert_eq!((rest.controller, rest.parts.len()), ("many", ALL - 1), "but for what there is already");
}

/// Conformance, ReplicationController and ReplicaSet: a failure such as an exceeded quota is a condition while it
/// lasts.
#[test]
fn conformance_an_exceeded_quota_is_a_condition_of_the_set() {
    static SETS: &[Controller] = &[mainstay_logic::controllers::replicationcontroller::CONTROLLER];
    let cluster = Cluster::new();
    cluster.create(&kinds::SERVICE_ACCOUNT, json!({ "metadata": { "name": "default" } })).ok();
    let hard = json!({ "pods": "2" });
    cluster
        .create(&kinds::RESOURCE_QUOTA, json!({ "metadata": { "name": "q" }, "spec": { "hard": hard } }))
        .expect("created");
    let counted = json!({ "status": { "hard": hard, "used": { "pods": "0" } } });
    cluster.merge(&kinds::RESOURCE_QUOTA, "q", crate::api::Part::Status, counted).expect("counted");
    let template =
        json!({ "metadata": { "labels": { "a": "b" } }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    let spec = json!({ "replicas": 3, "selector": { "a": "b" }, "template": template });
    let kind = &kinds::REPLICATION_CONTROLLER;
    cluster.create(kind, json!({ "metadata": { "name": "rc" }, "spec": spec })).expect("created");
    run(&cluster, SETS);
    let status = || cluster.get(kind, "rc").expect("there")["status"].clone();
    assert_eq!(status()["replicas"], 2, "what could be made is counted");
    let condition = status()["conditions"][0].clone();
    assert_eq!((&condition["type"], &condition["reason"]), (&json!("ReplicaFailure"), &json!("FailedCreate")));
    assert!(condition["message"].as_str().is_some_and(|why| why.contains("exceeded quota: q")), "{condition}");
    cluster.merge(kind, "rc", crate::api::Part::Main, json!({ "spec": { "replicas": 2 } })).expect("scaled");
    run(&cluster, SETS);
    assert_eq!((status().get("conditions"), status()["replicas"].clone()), (None, json!(2)));
}

/// As upstream: whose pods are refused says so, and its status is written all the same.
#[test]
fn the_status_of_an_owner_whose_pods_are_refused_is_written() {
    use mainstay_logic::controllers::{daemonset, job, statefulset};
    static OWNERS: &[Controller] = &[daemonset::CONTROLLER, job::CONTROLLER, statefulset::CONTROLLER];
    let cluster = Cluster::new();
    cluster.create(&kinds::NODE, json!({ "metadata": { "name": "n" } })).expect("created");
    let hard = json!({ "pods": "0" });
    cluster
        .create(&kinds::RESOURCE_QUOTA, json!({ "metadata": { "name": "q" }, "spec": { "hard": hard } }))
        .expect("created");
    let counted = json!({ "status": { "hard": hard, "used": { "pods": "0" } } });
    cluster.merge(&kinds::RESOURCE_QUOTA, "q", crate::api::Part::Status, counted).expect("counted");
    let containers = json!([{ "name": "c", "image": "i" }]);
    let template = json!({ "metadata": { "labels": { "a": "b" } }, "spec": { "containers": containers } });
    let of_job = json!({ "spec": { "containers": containers, "restartPolicy": "Never" } });
    let selector = json!({ "matchLabels": { "a": "b" } });
    for (kind, spec, field, wanted) in [
        (&kinds::DAEMON_SET, json!({ "selector": selector, "template": template }), "desiredNumberScheduled", json!(1)),
        (
            &kinds::JOB,
            json!({ "template": of_job }),
            "startTime",
            json!(mainstay_api::time::rfc3339(cluster.api.now())),
        ),
        (
            &kinds::STATEFUL_SET,
            json!({ "selector": selector, "serviceName": "s", "template": template }),
            "observedGeneration",
            json!(1),
        ),
    ] {
        cluster.create(kind, json!({ "metadata": { "name": "owner" }, "spec": spec })).expect("created");
        run(&cluster, OWNERS);
        assert_eq!(cluster.get(kind, "owner").expect("there")["status"][field], wanted, "{}", kind.kind);
    }
    let events = cluster.api.store.range(b"/core/events/default/", None, 100, None).expect("listed").entries;
    let mut told: Vec<(String, bool)> = events
        .iter()
        .map(|event| serde_json::from_slice::<Value>(&event.value).expect("JSON"))
        .filter(|event| event["reason"] == "FailedCreate")
        .map(|event| {
            let message = object::text(&event, &["message"]);
            (object::text(&event, &["involvedObject", "kind"]).to_owned(), message.starts_with("Error creating: pods "))
        })
        .collect();
    told.sort();
    told.dedup();
    let wanted = [("DaemonSet", true), ("Job", true), ("StatefulSet", false)];
    assert_eq!(told, wanted.map(|(kind, is)| (kind.to_owned(), is)));
}
