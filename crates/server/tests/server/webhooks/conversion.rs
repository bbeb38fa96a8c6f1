//! Custom resources in several versions, converted by a webhook.

use mainstay_api::Kind;
use mainstay_api::custom::rows::{is_true, rows};
use mainstay_api::kinds::CUSTOM_RESOURCE_DEFINITION;
use mainstay_client::{Client, ListOptions, PatchType, WatchEvent};
use serde_json::{Value, json};

use super::hook::{Hook, Says};
use super::{refused, server};

/// v1 has `spec.size`, v2 has `spec.width` and a default that v1 does not know.
fn definition(hook: &Hook, stored: &str) -> Value {
    let version = |name: &str, field: &str| {
        json!({
            "name": name, "served": true, "storage": name == stored, "subresources": { "status": {} },
            "selectableFields": [{ "jsonPath": format!(".spec.{field}") }],
            "schema": { "openAPIV3Schema": { "type": "object", "properties": {
                "spec": { "type": "object", "properties": { field: { "type": "integer", "minimum": 0 } } },
                "status": { "type": "object", "properties": { "ready": { "type": "boolean" } } },
            } } },
        })
    };
    json!({
        "metadata": { "name": "boxes.x.io" },
        "spec": {
            "group": "x.io", "scope": "Namespaced", "names": { "plural": "boxes", "kind": "Box" },
            "versions": [version("v1", "size"), version("v2", "width")],
            "conversion": { "strategy": "Webhook", "webhook": { "conversionReviewVersions": ["v1"],
                "clientConfig": { "url": hook.url, "caBundle": hook.bundle } } },
        },
    })
}

/// Renames the field; fails at boxes of size 13.
async fn converter() -> Hook {
    Hook::start(|request| {
        let wanted = request["desiredAPIVersion"].as_str().unwrap_or("").to_owned();
        let (from, to) = if wanted == "x.io/v2" { ("size", "width") } else { ("width", "size") };
        let objects = request["objects"].as_array().cloned().unwrap_or_default();
        let convert = |mut object: Value| {
            object["apiVersion"] = wanted.clone().into();
            if let Some(number) = object["spec"].as_object_mut().and_then(|spec| spec.remove(from)) {
                object["spec"][to] = number;
            }
            object
        };
        let is_cursed = objects.iter().any(|object| object["spec"][from] == 13);
        let response = if is_cursed {
            json!({ "uid": request["uid"], "result": { "status": "Failed", "message": "thirteen cannot be" } })
        } else {
            let converted: Vec<Value> = objects.into_iter().map(convert).collect();
            json!({ "uid": request["uid"], "result": { "status": "Success" }, "convertedObjects": converted })
        };
        let review =
            json!({ "apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "response": response });
        Says::Bytes(200, review.to_string().into_bytes())
    })
    .await
}

/// Both versions, once they are served.
async fn established(client: &Client) -> (Kind, Kind) {
    let options = ListOptions { field_selector: "metadata.name=boxes.x.io".into(), ..ListOptions::default() };
    let mut watch = client.watch(&CUSTOM_RESOURCE_DEFINITION, "", &options).await.expect("a watch");
    while let Some(event) = watch.next().await.expect("an event") {
        if let WatchEvent::Put(definition) = event
            && is_true(&definition, "Established")
        {
            let kinds = rows(&definition.to_string().into()).expect("JSON");
            return (kinds[0].clone(), kinds[1].clone());
        }
    }
    panic!("the watch ended");
}

fn sized(name: &str, size: u32) -> Value {
    json!({ "apiVersion": "x.io/v1", "kind": "Box", "metadata": { "name": name }, "spec": { "size": size } })
}

#[tokio::test]
async fn objects_are_seen_in_every_version_and_stored_in_one() {
    let (_folder, server, client) = server().await;
    let hook = converter().await;
    client.create(&CUSTOM_RESOURCE_DEFINITION, "", &definition(&hook, "v2")).await.expect("defined");
    let (v1, v2) = established(&client).await;

    // Written in v1: stored in v2, shown in both.
    let made = client.create(&v1, "default", &sized("a", 3)).await.expect("created");
    assert_eq!((&made["apiVersion"], &made["spec"]), (&json!("x.io/v1"), &json!({ "size": 3 })));
    let seen = client.get(&v2, "default", "a").await.expect("there");
    assert_eq!((&seen["apiVersion"], &seen["spec"]), (&json!("x.io/v2"), &json!({ "width": 3 })));
    assert_eq!(seen["metadata"]["uid"], made["metadata"]["uid"]);
    let asked = hook.requests().len();
    client.get(&v2, "default", "a").await.expect("there");
    assert_eq!(hook.requests().len(), asked, "what is stored in this version is not converted");

    // A patch in v1 of what is stored in v2; validation is that of the version that is written.
    let patch = json!({ "spec": { "size": 5 } });
    let patched = client.patch(&v1, "default", "a", "", PatchType::Merge, &patch).await.expect("patched");
    assert_eq!(patched["spec"], json!({ "size": 5 }));
    assert_eq!(client.get(&v2, "default", "a").await.expect("there")["spec"], json!({ "width": 5 }));
    let (code, _) =
        refused(client.create(&v1, "default", &json!({ "metadata": { "name": "b" }, "spec": { "size": -1 } })).await);
    assert_eq!(code, 422);

    // Lists and watches are converted too.
    client
        .create(&v2, "default", &json!({ "metadata": { "name": "b" }, "spec": { "width": 7 } }))
        .await
        .expect("created");
    let list = client.list(&v1, "default", &ListOptions::default()).await.expect("a list");
    let sizes: Vec<&Value> =
        list["items"].as_array().expect("items").iter().map(|item| &item["spec"]["size"]).collect();
    assert_eq!(sizes, [&json!(5), &json!(7)]);
    let mut watch = client.watch(&v1, "default", &ListOptions::default()).await.expect("a watch");
    for wanted in [5, 7] {
        let Some(WatchEvent::Put(object)) = watch.next().await.expect("an event") else { panic!("an object") };
        assert_eq!((&object["apiVersion"], &object["spec"]["size"]), (&json!("x.io/v1"), &json!(wanted)));
    }

    // Another version is stored from now on: the old form is read all the same.
    let storage = json!({ "spec": { "versions": definition(&hook, "v1")["spec"]["versions"] } });
    let changed = client
        .patch(&CUSTOM_RESOURCE_DEFINITION, "", "boxes.x.io", "", PatchType::Merge, &storage)
        .await
        .expect("changed");
    assert_eq!(changed["status"]["storedVersions"], json!(["v2", "v1"]));
    assert_eq!(client.get(&v1, "default", "a").await.expect("there")["spec"], json!({ "size": 5 }));
    client.patch(&v2, "default", "a", "", PatchType::Merge, &json!({ "spec": { "width": 6 } })).await.expect("patched");
    assert_eq!(client.get(&v1, "default", "a").await.expect("there")["spec"], json!({ "size": 6 }));
    client.delete(&v1, "default", "a", &json!({})).await.expect("deleted");
    server.shutdown().await;
}

/// Conformance, CustomResourceFieldSelectors: lists, watches and deletions by a field that an object has only in the
/// version that is asked for.
#[tokio::test]
async fn conformance_fields_of_a_version_select_what_is_stored_in_another() {
    let (_folder, server, client) = server().await;
    let hook = converter().await;
    client.create(&CUSTOM_RESOURCE_DEFINITION, "", &definition(&hook, "v2")).await.expect("defined");
    let (v1, v2) = established(&client).await;
    let large = ListOptions { field_selector: "spec.size=7".into(), ..ListOptions::default() };
    for (name, size) in [("a", 7), ("b", 3), ("c", 7)] {
        client.create(&v1, "default", &sized(name, size)).await.expect("created");
    }
    let names = |list: Value| -> Vec<String> {
        let items = list["items"].as_array().expect("items").iter();
        items.map(|item| item["metadata"]["name"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!(names(client.list(&v1, "default", &large).await.expect("a list")), ["a", "c"]);
    let mut watch = client.watch(&v1, "default", &large).await.expect("a watch");
    let resize = |name: &'static str, width: u32| {
        let (client, v2) = (client.clone(), v2.clone());
        async move {
            let patch = json!({ "spec": { "width": width } });
            client.patch(&v2, "default", name, "", PatchType::Merge, &patch).await.expect("patched");
        }
    };
    let mut next = async || match watch.next().await.expect("an event") {
        Some(WatchEvent::Put(object)) => {
            format!("{} is {}", object["metadata"]["name"].as_str().expect("a name"), object["spec"]["size"])
        }
        Some(WatchEvent::Gone(object)) => {
            format!("{} is gone", object["metadata"]["name"].as_str().expect("a name"))
        }
        _ => panic!("an object"),
    };
    assert_eq!((next().await, next().await), ("a is 7".to_owned(), "c is 7".to_owned()));
    // One comes into the selection, one leaves it, one was never in it.
    resize("b", 4).await;
    resize("b", 7).await;
    resize("a", 8).await;
    assert_eq!((next().await, next().await), ("b is 7".to_owned(), "a is gone".to_owned()));
    client.delete(&v2, "default", "c", &json!({})).await.expect("deleted");
    assert_eq!(next().await, "c is gone");
    assert_eq!(names(client.list(&v1, "default", &large).await.expect("a list")), ["b"]);
    server.shutdown().await;
}

#[tokio::test]
async fn a10_what_a_webhook_cannot_convert_fails_the_request_and_is_never_left_out() {
    let (_folder, server, client) = server().await;
    let hook = converter().await;
    client.create(&CUSTOM_RESOURCE_DEFINITION, "", &definition(&hook, "v2")).await.expect("defined");
    let (v1, v2) = established(&client).await;
    client.create(&v1, "default", &sized("good", 1)).await.expect("created");
    let (code, message) = refused(client.create(&v1, "default", &sized("bad", 13)).await);
    assert_eq!(code, 500);
    assert!(message.contains("conversion webhook for x.io/v1, Kind=Box failed: thirteen cannot be"), "{message}");
    assert_eq!(client.get(&v2, "default", "bad").await.expect_err("A9").code(), Some(404));

    client
        .create(&v2, "default", &json!({ "metadata": { "name": "cursed" }, "spec": { "width": 13 } }))
        .await
        .expect("stored");
    let (code, _) = refused(client.list(&v1, "default", &ListOptions::default()).await);
    assert_eq!(code, 500, "a list that lacks some must not look whole");
    assert_eq!(
        client.list(&v2, "default", &ListOptions::default()).await.expect("whole")["items"].as_array().map(Vec::len),
        Some(2)
    );
    client.delete(&v2, "default", "cursed", &json!({})).await.expect("deleted");
    client.list(&v1, "default", &ListOptions::default()).await.expect("whole again");
    server.shutdown().await;
}
