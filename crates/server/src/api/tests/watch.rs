//! Lists and watches: each change exactly once (A4, A6), never older than seen (A5), 410 for what is gone (A7).

use std::collections::BTreeMap;
use std::task::{Context, Poll, Waker};

use mainstay_api::{kinds, object};
use serde_json::json;

use super::*;

fn query(pairs: &[(&str, &str)]) -> Query {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn open(cluster: &Cluster, pairs: &[(&str, &str)]) -> Result<Watch, Status> {
    let query = query(pairs);
    Watch::open(&cluster.api.store, Selection::new(&kinds::CONFIG_MAP, "default", &query)?, &query)
}

/// All frames that are there now, as type, name and resourceVersion.
fn drain(watch: &mut Watch) -> Vec<(&'static str, String, u64)> {
    let mut frames = Vec::new();
    while let Poll::Ready(Some(frame)) = watch.poll_next(&mut Context::from_waker(Waker::noop())) {
        let object: Value = serde_json::from_slice(&frame.object).expect("JSON");
        let version = object::resource_version(&object).parse().unwrap_or_default();
        frames.push((frame.type_, object::name(&object).to_owned(), version));
    }
    frames
}

fn listed(cluster: &Cluster, pairs: &[(&str, &str)]) -> Result<List, Status> {
    let query = query(pairs);
    let selection = Selection::new(&kinds::CONFIG_MAP, "default", &query)?;
    list(&cluster.api.store, &selection, &ListOptions::new(&query, &selection.prefix(), cluster.api.now())?)
}

#[test]
fn a6_a_list_and_the_watch_after_it_see_each_change_exactly_once_wherever_the_list_falls() {
    const STEPS: usize = 24;
    for list_at in 0..STEPS {
        let cluster = Cluster::new();
        let mut model: BTreeMap<String, u64> = BTreeMap::new();
        let mut watch = None;
        let mut seen_by_client = BTreeMap::new();
        for step in 0..STEPS {
            if step == list_at {
                let list = listed(&cluster, &[]).expect("listed");
                for entry in &list.items {
                    let object: Value = serde_json::from_slice(&entry.value).expect("JSON");
                    seen_by_client.insert(object::name(&object).to_owned(), entry.revision.0);
                }
                watch = Some(open(&cluster, &[("resourceVersion", &list.revision.to_string())]).expect("watching"));
            }
            let name = format!("m{}", step % 5);
            if model.contains_key(&name) && step % 3 == 0 {
                cluster.delete(&kinds::CONFIG_MAP, &name, &DeleteOptions::default()).expect("deleted");
                model.remove(&name);
            } else {
                if model.contains_key(&name) {
                    cluster
                        .merge(&kinds::CONFIG_MAP, &name, Part::Main, json!({ "data": { "step": step.to_string() } }))
                        .expect("patched");
                } else {
                    cluster.create(&kinds::CONFIG_MAP, config_map(&name)).expect("created");
                }
                model.insert(name, cluster.api.store.revision().0);
            }
        }
        let mut last = 0;
        for (type_, name, version) in drain(&mut watch.expect("opened")) {
            assert!(version > last, "A4: in order, none twice");
            last = version;
            let known = match type_ {
                "DELETED" => seen_by_client.remove(&name),
                _ => seen_by_client.insert(name.clone(), version),
            };
            assert_eq!(type_ == "ADDED", known.is_none(), "{type_} {name} at {version}, listed at step {list_at}");
        }
        seen_by_client.remove("kube-root-ca.crt");
        assert_eq!(seen_by_client, model, "listed at step {list_at}");
    }
}

#[test]
fn a4_a_selector_sees_objects_come_and_go() {
    let cluster = Cluster::new();
    let mut watch = open(&cluster, &[("labelSelector", "app=web"), ("resourceVersion", "0")]).expect("watching");
    let mut only = open(&cluster, &[("fieldSelector", "metadata.name=a")]).expect("watching");
    let label = |value: Value| {
        cluster.merge(&kinds::CONFIG_MAP, "a", Part::Main, json!({ "metadata": { "labels": { "app": value } } }))
    };
    cluster.create(&kinds::CONFIG_MAP, config_map("a")).expect("created");
    cluster.create(&kinds::CONFIG_MAP, config_map("ab")).expect("created");
    label(json!("web")).expect("in");
    cluster.merge(&kinds::CONFIG_MAP, "a", Part::Main, json!({ "data": { "x": "y" } })).expect("changed");
    label(json!("db")).expect("out");
    cluster.delete(&kinds::CONFIG_MAP, "a", &DeleteOptions::default()).expect("deleted");
    let types: Vec<_> = drain(&mut watch).into_iter().map(|(type_, name, _)| (type_, name)).collect();
    assert_eq!(
        types,
        [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")].map(|(type_, name)| (type_, name.to_owned()))
    );
    let types: Vec<_> = drain(&mut only).into_iter().map(|(type_, ..)| type_).collect();
    assert_eq!(types, ["ADDED", "MODIFIED", "MODIFIED", "MODIFIED", "DELETED"]);
}

#[test]
fn a4_bookmarks_promise_only_what_was_sent() {
    let cluster = Cluster::new();
    let mut watch = open(&cluster, &[("allowWatchBookmarks", "true"), ("labelSelector", "app=web")]).expect("watching");
    assert_eq!(drain(&mut watch), []);
    cluster.create(&kinds::CONFIG_MAP, config_map("a")).expect("created");
    // Not looked at yet: a bookmark now would promise what was not sent.
    assert_eq!(watch.bookmark(), None);
    assert_eq!(drain(&mut watch), []);
    let bookmark: Value = serde_json::from_slice(&watch.bookmark().expect("news").object).expect("JSON");
    assert_eq!(object::resource_version(&bookmark), cluster.api.store.revision().to_string());
    assert_eq!(watch.bookmark(), None, "no news");
}

#[test]
fn a_streaming_list_ends_with_a_bookmark_that_says_so() {
    let cluster = Cluster::new();
    cluster.create(&kinds::CONFIG_MAP, config_map("a")).expect("created");
    let asks =
        [("sendInitialEvents", "true"), ("resourceVersionMatch", "NotOlderThan"), ("allowWatchBookmarks", "true")];
    let mut watch = open(&cluster, &asks).expect("watching");
    let frames = drain(&mut watch);
    let types: Vec<_> = frames.iter().map(|(type_, ..)| *type_).collect();
    assert_eq!(types, ["ADDED", "ADDED", "BOOKMARK"]);
    assert_eq!(frames.last().map(|(_, _, version)| *version), Some(cluster.api.store.revision().0));
    assert_eq!(open(&cluster, &asks[..1]).expect_err("without a match").code, 422);
}

#[test]
fn a7_what_is_compacted_is_410_and_a5_the_future_is_not_answered() {
    let cluster = Cluster::new();
    for index in 0..5 {
        cluster.create(&kinds::CONFIG_MAP, config_map(&format!("m{index}"))).expect("created");
    }
    let first = listed(&cluster, &[("limit", "2")]).expect("a part");
    assert_eq!((first.items.len(), first.remaining), (2, Some(4)));
    cluster.delete(&kinds::CONFIG_MAP, "m4", &DeleteOptions::default()).expect("deleted");
    let rest = listed(&cluster, &[("continue", &first.next)]).expect("the rest");
    assert_eq!((rest.items.len(), rest.revision), (4, first.revision), "all parts show one revision");
    cluster.api.store.compact(cluster.api.store.revision());
    assert_eq!(listed(&cluster, &[("continue", &first.next)]).expect_err("too old").code, 410);
    only_frame_is(&cluster, &[("resourceVersion", "1")], 410);
    let future = (cluster.api.store.revision().0 + 1).to_string();
    let status = listed(&cluster, &[("resourceVersion", &future)]).expect_err("A5");
    assert_eq!((status.code, status.details["causes"][0]["reason"].as_str()), (504, Some("ResourceVersionTooLarge")));
    // Nobody is left to ask for a future that is another's.
    only_frame_is(&cluster, &[("resourceVersion", &future)], 410);
    let asks =
        [("sendInitialEvents", "true"), ("resourceVersionMatch", "NotOlderThan"), ("allowWatchBookmarks", "true")];
    only_frame_is(&cluster, &[&asks[..], &[("resourceVersion", &future)]].concat(), 504);
}

/// A watch that cannot be is one that says so and ends: a refused request is one that clients repeat as it is.
fn only_frame_is(cluster: &Cluster, pairs: &[(&str, &str)], code: u16) {
    let mut watch = open(cluster, pairs).expect("a watch");
    let mut next = || watch.poll_next(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(Some(frame)) = next() else { panic!("no frame") };
    let status: Value = serde_json::from_slice(&frame.object).expect("JSON");
    assert_eq!((frame.type_, &status["kind"], &status["code"]), ("ERROR", &json!("Status"), &json!(code)));
    assert_eq!(next(), Poll::Ready(None));
    assert_eq!(watch.bookmark(), None);
}

#[test]
fn a4_what_leaves_a_selection_is_shown_as_it_was_at_the_revision_at_which_it_left() {
    let cluster = Cluster::new();
    let mut map = config_map("a");
    (map["metadata"]["labels"], map["data"]) = (json!({ "app": "web" }), json!({ "x": "mine" }));
    cluster.create(&kinds::CONFIG_MAP, map).expect("created");
    let mut watch = open(&cluster, &[("labelSelector", "app=web")]).expect("watching");
    drain(&mut watch);
    let leaves = json!({ "metadata": { "labels": { "app": "db" } }, "data": { "x": "theirs" } });
    cluster.merge(&kinds::CONFIG_MAP, "a", Part::Main, leaves).expect("out");
    let Poll::Ready(Some(frame)) = watch.poll_next(&mut Context::from_waker(Waker::noop())) else { panic!("nothing") };
    let object: Value = serde_json::from_slice(&frame.object).expect("JSON");
    assert_eq!((frame.type_, &object["metadata"]["labels"]["app"]), ("DELETED", &json!("web")));
    assert_eq!(object["data"], json!({ "x": "mine" }));
    assert_eq!(object::resource_version(&object), cluster.api.store.revision().to_string());
}
