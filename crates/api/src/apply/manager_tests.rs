//! Who is noted as an owner, since when, and in which order.

use serde_json::{Map, Value, json};

use super::tests::{fields_of, pod, writer};
use super::*;
use crate::kinds;

fn config_map(data: Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" }, "data": data })
}

fn applied(live: Option<&Value>, data: Value, manager: &str, second: i64) -> Value {
    apply(&kinds::CONFIG_MAP, live, &config_map(data), false, writer(manager, second)).expect("applies")
}

fn updated(live: &Value, data: Value, manager: &str, second: i64) -> Value {
    let mut new = config_map(data);
    manage_update(&kinds::CONFIG_MAP, Some(&mut live.clone()), &mut new, writer(manager, second));
    new
}

/// Manager, operation and second of each entry, in order.
fn entries(object: &Value) -> Vec<(String, String, i64)> {
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or("").to_owned();
    let second = |entry: &Value| text(entry, "time").parse::<Timestamp>().map_or(-1, Timestamp::as_second);
    let all = managed(object).and_then(Value::as_array).into_iter().flatten();
    all.map(|entry| (text(entry, "manager"), text(entry, "operation"), second(entry))).collect()
}

fn entry(manager: &str, operation: &str, second: i64) -> (String, String, i64) {
    (manager.to_owned(), operation.to_owned(), second)
}

#[test]
fn entries_are_in_upstreams_order() {
    let live = updated(&config_map(json!({})), json!({ "a": "1" }), "z", 1);
    let live = updated(&live, json!({ "a": "1", "b": "1" }), "y", 2);
    let live = applied(Some(&live), json!({ "c": "1" }), "x", 4);
    let live = applied(Some(&live), json!({ "d": "1" }), "w", 3);
    let expected = [entry("w", "Apply", 3), entry("x", "Apply", 4), entry("z", "Update", 1), entry("y", "Update", 2)];
    assert_eq!(entries(&live), expected);
    let first = &live["metadata"]["managedFields"][0];
    let written = json!({ "manager": "w", "operation": "Apply", "apiVersion": "v1", "time": "1970-01-01T00:00:03Z",
        "fieldsType": "FieldsV1", "fieldsV1": { "f:data": { "f:d": {} } } });
    assert_eq!(first, &written, "and no empty subresource");
}

#[test]
fn an_entry_is_as_old_as_what_it_says() {
    let time =
        |object: &Value, manager: &str| entries(object).into_iter().find(|one| one.0 == manager).map(|one| one.2);
    let live = applied(None, json!({ "a": "1", "b": "1" }), "one", 1);
    let shared = applied(Some(&live), json!({ "b": "1" }), "two", 2);
    assert_eq!((time(&shared, "one"), time(&shared, "two")), (Some(1), Some(2)));
    // Nothing changes in the object, but who owns it does.
    let less = applied(Some(&shared), json!({ "a": "1" }), "one", 3);
    assert_eq!((time(&less, "one"), &less["data"]), (Some(3), &json!({ "a": "1", "b": "1" })));
    // The same fields, another value.
    let other = applied(Some(&less), json!({ "a": "2" }), "one", 4);
    assert_eq!(time(&other, "one"), Some(4));
    assert_eq!(applied(Some(&other), json!({ "a": "2" }), "one", 5), other);
    // A write that changes nothing is none.
    let edited = updated(&other, json!({ "a": "2", "b": "1", "c": "1" }), "three", 6);
    assert_eq!(time(&updated(&edited, edited["data"].clone(), "three", 7), "three"), Some(6));
    assert_eq!(time(&updated(&edited, json!({ "a": "2", "b": "1", "c": "2" }), "three", 7), "three"), Some(7));
}

#[test]
fn conformance_one_manager_of_two_versions_takes_back_what_it_said_in_either() {
    let set = |fields: Value| json!({ "f:data": fields });
    let entry = |version: &str, fields: Value| {
        json!({ "manager": "me", "operation": "Apply", "apiVersion": version, "time": "1970-01-01T00:00:01Z",
            "fieldsType": "FieldsV1", "fieldsV1": set(fields) })
    };
    let mut live = config_map(json!({ "a": "1", "b": "1", "c": "1" }));
    live["metadata"]["managedFields"] =
        json!([entry("v0", json!({ "f:a": {} })), entry("v1", json!({ "f:b": {}, "f:c": {} }))]);
    let live = applied(Some(&live), json!({ "c": "1" }), "me", 2);
    assert_eq!(live["data"], json!({ "c": "1" }));
    assert_eq!(entries(&live), [super::manager_tests::entry("me", "Apply", 2)]);
}

/// As upstream: what a client sends back of the entries is what it starts from, nothing and an empty list are not.
#[test]
fn entries_that_are_sent_back_count() {
    let kind = &kinds::CONFIG_MAP;
    let live = applied(None, json!({ "a": "1" }), "one", 1);
    let live = applied(Some(&live), json!({ "b": "1" }), "two", 2);
    let with = |entries: Value, data: Value| {
        let (mut old, mut new) = (live.clone(), config_map(data));
        new["metadata"]["managedFields"] = entries;
        manage_update(kind, Some(&mut old), &mut new, writer("me", 3));
        assert_eq!(old, live, "as it was");
        new
    };
    let same = live["data"].clone();
    let all = live["metadata"]["managedFields"].clone();
    assert_eq!(with(all.clone(), same.clone()), live);
    assert_eq!(entries(&with(json!([all[1]]), same.clone())), [entry("two", "Apply", 2)]);
    for unread in [json!([]), json!(null), json!("x"), json!([{ "operation": "Zap" }]), json!([1])] {
        assert_eq!(with(unread.clone(), same.clone()), live, "{unread}");
    }
    let reset = with(json!([{}]), json!({ "a": "1", "b": "1", "c": "1" }));
    assert_eq!(reset["metadata"].get("managedFields"), None, "and not noted again by the same write");
    // What is made without an owner, and what has lost all of them, is before the first apply's.
    let refused = apply(kind, Some(&reset), &config_map(json!({ "a": "2" })), false, writer("me", 4));
    let refused = refused.expect_err("a conflict").message;
    assert!(refused.contains("conflict with \"before-first-apply\" using v1: .data.a"), "{refused}");
}

#[test]
fn x4_the_oldest_updates_become_one_and_no_apply_does() {
    let kind = &kinds::CONFIG_MAP;
    // The names fall while the times rise.
    let data =
        |count: i64| (0..count).map(|number| (format!("k{number}"), "1".into())).collect::<Map<String, Value>>().into();
    let name = |number: i64| format!("m{:02}", 99 - number);
    let mut live = config_map(json!({}));
    for number in 0..10 {
        live = updated(&live, data(number + 1), &name(number), number + 1);
    }
    assert_eq!(entries(&live).len(), 10);
    assert!(entries(&live).iter().all(|(manager, ..)| manager != "ancient-changes"), "as many as there may be");
    let live = updated(&live, data(11), "new", 20);
    assert_eq!(entries(&live).len(), 10);
    assert_eq!(entries(&live)[0], entry("ancient-changes", "Update", 2), "of two, as old as the newer one");
    assert_eq!(fields_of(&live, "ancient-changes"), json!({ "f:data": { "f:k0": {}, "f:k1": {} } }));
    assert_eq!(fields_of(&live, &name(2)), json!({ "f:data": { "f:k2": {} } }));

    let mut live = live;
    for number in 0..12 {
        let config = config_map(json!({ format!("a{number}"): "1" }));
        live = apply(kind, Some(&live), &config, false, writer(&format!("a{number}"), 30)).expect("applies");
    }
    let applies = entries(&live).iter().filter(|(_, operation, _)| operation == "Apply").count();
    assert_eq!((applies, entries(&live).len()), (12, 22));

    // One that has no time is the oldest, and what it becomes has one.
    let many: Vec<Value> = (0..11)
        .map(|number| {
            json!({ "manager": name(number), "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1",
                "fieldsV1": { "f:data": { format!("f:k{number}"): {} } } })
        })
        .collect();
    let mut new = config_map(data(11));
    new["metadata"]["managedFields"] = json!(many);
    let old = config_map(data(11));
    manage_update(kind, Some(&mut old.clone()), &mut new, writer("me", 7));
    let told = entries(&new);
    assert_eq!(told.iter().find(|one| one.0 == "ancient-changes"), Some(&entry("ancient-changes", "Update", 7)));
    let timeless = managed(&new).and_then(Value::as_array).into_iter().flatten();
    assert_eq!(timeless.filter(|entry| entry.get("time").is_none()).count(), 9, "no empty time is written");
}

#[test]
fn x4_as_many_entries_as_are_read() {
    let of = |count: usize| {
        let entries: Vec<Value> = (0..count)
            .map(|number| json!({ "operation": "Apply", "manager": number.to_string(), "fieldsV1": { "f:a": {} } }))
            .collect();
        Managers::of(Some(&json!(entries))).map(|managers| managers.0.len())
    };
    assert_eq!((of(MAX_ENTRIES), of(MAX_ENTRIES + 1)), (Some(MAX_ENTRIES), None));
    let nested = |depth: usize| (0..depth).fold(json!({}), |below, _| json!({ "f:a": below }));
    let max = crate::schema::parse::MAX_DEPTH;
    assert!(Set::from_json(&nested(max)).is_some() && Set::from_json(&nested(max + 1)).is_none());
}

#[test]
fn conflicts_name_subresources_items_and_values() {
    let kind = &kinds::STATEFUL_SET;
    let status = |manager: &'static str| Writer { subresource: "status", ..writer(manager, 1) };
    let of = |replicas: i64| {
        json!({ "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "a" },
            "spec": { "replicas": 3 }, "status": { "replicas": replicas } })
    };
    let live = apply(kind, Some(&of(0)), &of(1), true, status("one")).expect("applies");
    assert_eq!(fields_of(&live, "one"), json!({ "f:status": { "f:replicas": {} } }), "and nothing but the status");
    let mut edited = of(2);
    manage_update(kind, Some(&mut live.clone()), &mut edited, status("controller"));
    let told = apply(kind, Some(&edited), &of(5), false, status("two")).expect_err("a conflict").message;
    let begins =
        "Apply failed with 1 conflict: conflict with \"controller\" with subresource \"status\" using apps/v1:";
    assert_eq!(told, format!("{begins} .status.replicas"));
    let mut empty = of(1);
    (empty["status"], empty["spec"]) = (json!({}), json!({}));
    let live = apply(kind, Some(&of(1)), &empty, true, status("me")).expect("applies");
    assert_eq!(fields_of(&live, "me"), json!({ "f:status": {} }));
    // Through the object itself nobody comes to own its status.
    let live = apply(kind, None, &of(1), false, writer("me", 0)).expect("applies");
    assert_eq!(fields_of(&live, "me"), json!({ "f:spec": { "f:replicas": {} } }));

    let paths = |set: Value| Set::from_json(&set).expect("a set").paths(usize::MAX);
    let set = json!({ "f:metadata": { "f:finalizers": { "v:\"a\"": {} } }, "f:x": { "i:7": {} },
        "f:spec": { "f:ports": { "k:{\"port\": 80,\"name\":\"a\"}": { ".": {}, "f:port": {} } } } });
    let port = ".spec.ports[name=\"a\",port=80]";
    let expected = [".metadata.finalizers[=\"a\"]", port, &format!("{port}.port"), ".x[7]"];
    assert_eq!(paths(set), expected);
    for wrong in [json!({ "x": {} }), json!({ "i:x": {} }), json!({ "v:{": {} }), json!({ "f:a": 1 }), json!([])] {
        assert_eq!(Set::from_json(&wrong), None, "{wrong}");
    }
}

#[test]
fn x4_as_many_conflicts_as_are_named() {
    let of = |count: usize, value: &str| {
        let data: Map<String, Value> = (0..count).map(|number| (format!("k{number:04}"), value.into())).collect();
        config_map(data.into())
    };
    let refused = |count: usize| {
        let live = apply(&kinds::CONFIG_MAP, None, &of(count, "1"), false, writer("one", 0)).expect("applies");
        apply(&kinds::CONFIG_MAP, Some(&live), &of(count, "2"), false, writer("two", 0)).expect_err("conflicts")
    };
    let (all, more) = (refused(MAX_CONFLICTS).message, refused(MAX_CONFLICTS + 1).message);
    assert!(all.ends_with(&format!("- .data.k{:04}", MAX_CONFLICTS - 1)), "{all}");
    assert!(more.ends_with(&format!("- .data.k{:04}\nand 1 more", MAX_CONFLICTS - 1)), "{more}");
    // Two managers, the second of whom has no room left: it is counted, and not named without a field.
    let live = apply(&kinds::CONFIG_MAP, None, &of(MAX_CONFLICTS, "1"), false, writer("one", 0)).expect("applies");
    let live = apply(&kinds::CONFIG_MAP, Some(&live), &config_map(json!({ "z": "1" })), false, writer("two", 0));
    let mut theirs = of(MAX_CONFLICTS, "2");
    theirs["data"]["z"] = "2".into();
    let live = live.expect("applies");
    let refused = apply(&kinds::CONFIG_MAP, Some(&live), &theirs, false, writer("me", 0)).expect_err("conflicts");
    assert!(!refused.message.contains("\"two\"") && refused.message.ends_with("\nand 1 more"), "{}", refused.message);
    assert_eq!(refused.details["causes"].as_array().map(Vec::len), Some(MAX_CONFLICTS));
    // And where there is room, the second one's fields come after the first one's.
    let both = |value: &str| config_map(json!({ "a": value, "z": value }));
    let live = apply(&kinds::CONFIG_MAP, None, &config_map(json!({ "a": "1" })), false, writer("one", 0));
    let live = applied(Some(&live.expect("applies")), json!({ "z": "1" }), "two", 0);
    let told = apply(&kinds::CONFIG_MAP, Some(&live), &both("2"), false, writer("me", 0)).expect_err("two").message;
    let expected =
        "Apply failed with 2 conflicts: conflicts with \"one\":\n- .data.a\nconflicts with \"two\":\n- .data.z";
    assert_eq!(told, expected);
}

#[test]
fn keep_times_gives_back_what_differs_by_time_alone() {
    let live = applied(None, json!({ "a": "1" }), "one", 1);
    let live = applied(Some(&live), json!({ "b": "1" }), "two", 1);
    let later = |object: &Value, index: usize| {
        let mut later = object.clone();
        later["metadata"]["managedFields"][index]["time"] = "1970-01-01T00:00:09Z".into();
        later
    };
    let kept = |new: &Value| {
        let mut new = new.clone();
        keep_times(&live, &mut new);
        new
    };
    for index in [0, 1] {
        assert_eq!(kept(&later(&live, index)), live);
    }
    // An entry that has no time yet is the same as one that has.
    let mut timeless = live.clone();
    timeless["metadata"]["managedFields"][0].as_object_mut().map(|entry| entry.remove("time"));
    let mut new = live.clone();
    keep_times(&timeless, &mut new);
    assert_eq!(new, timeless);
    let changed = |path: &[&str], value: Value| {
        let mut changed = later(&live, 0);
        let (last, before) = path.split_last().expect("a path");
        crate::object::ensure(&mut changed, before).insert((*last).to_owned(), value);
        changed
    };
    let mut other_fields = later(&live, 0);
    other_fields["metadata"]["managedFields"][1]["fieldsV1"] = json!({ "f:data": { "f:c": {} } });
    let mut other_manager = later(&live, 0);
    other_manager["metadata"]["managedFields"][0]["manager"] = "three".into();
    let mut fewer = later(&live, 0);
    fewer["metadata"]["managedFields"].as_array_mut().map(Vec::pop);
    let mut without_data = later(&live, 0);
    without_data.as_object_mut().map(|object| object.remove("data"));
    let mut subresource = later(&live, 0);
    subresource["metadata"]["managedFields"][0]["subresource"] = "status".into();
    for new in [
        changed(&["data", "a"], json!("2")),
        changed(&["data", "c"], json!("1")),
        changed(&["immutable"], json!(true)),
        changed(&["metadata", "labels"], json!({ "a": "b" })),
        changed(&["metadata", "name"], json!("b")),
        other_fields,
        other_manager,
        subresource,
        fewer,
        without_data,
    ] {
        assert_eq!(kept(&new), new, "{new}");
    }
}

#[test]
fn x4_the_length_of_entries_is_about_that_of_all_fields() {
    let object = pod(
        json!({ "labels": { "app": "web" }, "finalizers": ["x.io/a"], "managedFields": [{ "manager": "long" }] }),
        json!({ "hostname": "h", "tolerations": [{ "key": "a" }, { "key": "b" }],
            "containers": [{ "name": "a", "ports": [{ "containerPort": 80, "protocol": "TCP" }] }] }),
    );
    let written = Typed::object(Nature::of_kind(&kinds::POD), &unmanaged(&object)).fields().to_json().to_string();
    let length = length_of_entries(&kinds::POD, &object);
    assert_eq!(length, length_of_entries(&kinds::POD, &unmanaged(&object)), "nobody owns who owns what");
    // Less than that by what quotes take in keys, more by an ending comma each.
    assert!(length.abs_diff(written.len()) < 30, "{length} is not {}: {written}", written.len());
}

#[test]
fn the_note_of_a_client_side_apply_is_kept_by_kubectl_alone() {
    let noted = |object: &Value| last_applied(object).to_owned();
    let mut live = config_map(json!({ "a": "1" }));
    live["metadata"]["annotations"] = json!({ LAST_APPLIED: config_map(json!({ "a": "1" })).to_string() });
    let by = |manager: &str, config: &Value| {
        apply(&kinds::CONFIG_MAP, Some(&live), config, true, writer(manager, 1)).expect("forced")
    };
    assert_eq!(noted(&by("gitops", &config_map(json!({ "a": "2" })))), noted(&live));
    // The note is not noted in itself.
    let mut config = config_map(json!({ "a": "2" }));
    config["metadata"]["annotations"] = json!({ LAST_APPLIED: "old", "b": "c" });
    let after = noted(&by(KUBECTL, &config));
    let said: Value = serde_json::from_str(&after).expect("JSON");
    assert_eq!((&said["data"], &said["metadata"]["annotations"]), (&json!({ "a": "2" }), &json!({ "b": "c" })));
    // One that is too long for an annotation is empty, as upstream's.
    let empty = format!("{}\n", config_map(json!({ "a": "" }))).len();
    let of_length = |length: usize| config_map(json!({ "a": "x".repeat(length - empty) }));
    assert_eq!(noted(&by(KUBECTL, &of_length(MAX_LAST_APPLIED))).len(), MAX_LAST_APPLIED);
    assert_eq!(noted(&by(KUBECTL, &of_length(MAX_LAST_APPLIED + 1))), "");
}

/// A Scale's owners are those of its object's number of replicas.
#[test]
fn conformance_who_owns_a_scale_owns_the_number_in_its_object_alone() {
    let kind = &kinds::STATEFUL_SET;
    let path = |version: &str| (version == "apps/v1").then(|| vec!["spec".to_owned(), "replicas".to_owned()]);
    let now = |second| Timestamp::from_second(second).expect("a time");
    let config = json!({ "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": "a" },
        "spec": { "replicas": 3, "serviceName": "s" } });
    let live = apply(kind, None, &config, false, writer("gitops", 1)).expect("applies");
    let mut live = apply(
        kind,
        Some(&live),
        &json!({ "apiVersion": "apps/v1", "kind": "StatefulSet",
        "metadata": { "name": "a", "labels": { "l": "1" } } }),
        false,
        writer("labels", 2),
    )
    .expect("applies");
    // Of a version that has no Scale.
    let mut other = live["metadata"]["managedFields"][0].clone();
    (other["manager"], other["apiVersion"]) = (json!("old"), json!("apps/v0"));
    live["metadata"]["managedFields"].as_array_mut().expect("entries").push(other);

    let bare = json!({ "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": { "name": "a" },
        "spec": { "replicas": 3 } });
    let mut shown = bare.clone();
    show_managers(&live, &mut shown, &path, now(3));
    assert_eq!(entries(&shown), [entry("gitops", "Apply", 1)]);
    assert_eq!(shown["metadata"]["managedFields"][0]["apiVersion"], "autoscaling/v1");
    assert_eq!(fields_of(&shown, "gitops"), json!({ "f:spec": { "f:replicas": {} } }));

    // Another one scales, by force.
    let mut scale = bare.clone();
    scale["spec"]["replicas"] = 5.into();
    let scaler = Writer { subresource: "scale", ..writer("scaler", 4) };
    let refused = apply(&kinds::SCALE, Some(&shown), &scale, false, scaler).expect_err("a conflict");
    assert!(refused.message.ends_with("conflict with \"gitops\": .spec.replicas"), "{}", refused.message);
    let mut written = apply(&kinds::SCALE, Some(&shown), &scale, true, scaler).expect("forced");
    let mut scaled = live.clone();
    scaled["spec"]["replicas"] = 5.into();
    keep_managers(kind, &mut scaled, &mut written, &path, now(4));
    assert_eq!(written["metadata"].get("managedFields"), None, "taken over");
    assert_eq!(fields_of(&scaled, "gitops"), json!({ "f:spec": { "f:serviceName": {} } }));
    assert_eq!(fields_of(&scaled, "labels"), json!({ "f:metadata": { "f:labels": { "f:l": {} } } }));
    assert_eq!(fields_of(&scaled, "scaler"), json!({ "f:spec": { "f:replicas": {} } }));
    assert_eq!(fields_of(&scaled, "old"), fields_of(&live, "old"));
    let all = managed(&scaled).and_then(Value::as_array).into_iter().flatten();
    let own = all.into_iter().find(|entry| entry["manager"] == "scaler").cloned().expect("an entry");
    assert_eq!((&own["apiVersion"], &own["subresource"]), (&json!("apps/v1"), &json!("scale")));
    assert_eq!(own["time"], "1970-01-01T00:00:04Z");

    // It goes on: its entry is the same one, and newer.
    let mut shown = bare;
    show_managers(&scaled, &mut shown, &path, now(5));
    assert_eq!(entries(&shown), [entry("scaler", "Apply", 4)]);
    scale["spec"]["replicas"] = 6.into();
    let again = Writer { now: now(6), ..scaler };
    let mut written = apply(&kinds::SCALE, Some(&shown), &scale, false, again).expect("its own");
    scaled["spec"]["replicas"] = 6.into();
    keep_managers(kind, &mut scaled, &mut written, &path, now(6));
    assert_eq!(
        entries(&scaled).into_iter().filter(|one| one.0 == "scaler").collect::<Vec<_>>(),
        [entry("scaler", "Apply", 6)]
    );
    // Who says other things of a Scale does not come to own the number.
    let mut labels = scale.clone();
    labels["metadata"]["managedFields"] = json!([{ "manager": "other", "operation": "Apply",
        "apiVersion": "autoscaling/v1", "subresource": "scale", "fieldsType": "FieldsV1",
        "fieldsV1": { "f:metadata": { "f:labels": { "f:l": {} } } } }]);
    let mut unowned = scaled.clone();
    keep_managers(kind, &mut unowned, &mut labels, &path, now(7));
    assert_eq!((fields_of(&unowned, "other"), fields_of(&unowned, "scaler")), (Value::Null, Value::Null));
    let mut bare_set = json!({ "metadata": { "name": "a", "managedFields": [own] }, "spec": { "replicas": 5 } });
    keep_managers(kind, &mut bare_set, &mut json!({ "metadata": {} }), &path, now(7));
    assert_eq!(bare_set["metadata"], json!({ "name": "a" }), "who owned nothing else is gone");
    // Where the kind's own version has no Scale, nothing is taken over.
    let before = scaled.clone();
    keep_managers(kind, &mut scaled, &mut written.clone(), &|_| None, now(7));
    assert_eq!(scaled, before);
}
