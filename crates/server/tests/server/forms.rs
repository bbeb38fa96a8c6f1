//! Tables and metadata instead of objects, in both versions that upstream serves.

use http::{Method, header};
use http_body_util::BodyExt as _;
use mainstay_api::kinds;
use serde_json::{Value, json};

use super::admin;
use super::pressure::{http2, send, server, text};

const THINGS: &str = "/apis/example.com/v1/namespaces/default/things";

fn accept(form: &str, version: &str) -> String {
    format!("application/json;as={form};g=meta.k8s.io;v={version}")
}

/// A ConfigMap, and an object of a custom kind, both named `a`.
async fn make(server: &mainstay_server::Running) {
    let client = admin(server);
    let map = json!({ "metadata": { "name": "a" }, "data": { "x": "y" } });
    client.create(&kinds::CONFIG_MAP, "default", &map).await.expect("made");
    let schema = json!({ "openAPIV3Schema": { "type": "object" } });
    let definition = json!({ "metadata": { "name": "things.example.com" }, "spec": {
        "group": "example.com", "scope": "Namespaced", "names": { "plural": "things", "kind": "Thing" },
        "versions": [{ "name": "v1", "served": true, "storage": true, "schema": schema }] } });
    client.create(&kinds::CUSTOM_RESOURCE_DEFINITION, "", &definition).await.expect("made");
    let thing = json!({ "apiVersion": "example.com/v1", "kind": "Thing", "metadata": { "name": "a" } }).to_string();
    let typed = [(header::CONTENT_TYPE.as_str(), "application/json")];
    let mut sender = http2(server).await;
    for _ in 0..600 {
        if send(&mut sender, server, Method::POST, THINGS, &typed, thing.clone()).await.status() == 201 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    panic!("the custom kind is never served");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance_tables_and_metadata_are_served_as_v1beta1_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = server(folder.path()).await;
    make(&server).await;
    let mut sender = http2(&server).await;
    for list in ["/api/v1/namespaces/default/configmaps", THINGS] {
        let one = format!("{list}/a");
        let only = format!("{list}?fieldSelector=metadata.name%3Da");
        let watch = format!("{only}&watch=1&timeoutSeconds=1");
        let watch = watch.as_str();
        for version in ["v1", "v1beta1"] {
            let group = format!("meta.k8s.io/{version}");
            let cases = [
                (&*one, "Table", "/rows/0/object"),
                (&*only, "Table", "/rows/0/object"),
                (watch, "Table", "/rows/0/object"),
                (&*one, "PartialObjectMetadata", ""),
                (watch, "PartialObjectMetadata", ""),
                (&*only, "PartialObjectMetadataList", "/items/0"),
            ];
            for (path, form, inner) in cases {
                let wanted = accept(form, version);
                let headers = [(header::ACCEPT.as_str(), wanted.as_str())];
                let answer = send(&mut sender, &server, Method::GET, path, &headers, "").await;
                assert_eq!(answer.status(), 200, "{form} {version} {path}");
                let bytes = answer.into_body().collect().await.expect("an answer").to_bytes();
                let first = bytes.split(|byte| *byte == b'\n').next().expect("a line");
                let mut answer: Value = serde_json::from_slice(first).expect("JSON");
                if path == watch {
                    answer = answer["object"].take();
                }
                assert_eq!((&answer["kind"], &answer["apiVersion"]), (&json!(form), &json!(group)), "{path}");
                let metadata = answer.pointer(inner).expect("metadata");
                assert_eq!(metadata["apiVersion"], json!(group), "{form} {path}");
                assert_eq!(metadata["kind"], "PartialObjectMetadata", "{form} {path}");
                assert_eq!(metadata["metadata"]["name"], "a", "{form} {path}");
            }
            let wrong =
                [(&*one, "PartialObjectMetadataList", "is not a list"), (&*only, "PartialObjectMetadata", "is a list")];
            for (path, form, why) in wrong {
                let wanted = accept(form, version);
                let headers = [(header::ACCEPT.as_str(), wanted.as_str())];
                let answer = send(&mut sender, &server, Method::GET, path, &headers, "").await;
                assert_eq!(answer.status(), 406, "{form} {version} {path}");
                let said = text(answer).await;
                assert!(said.contains(why), "{said}");
            }
        }
        let other = accept("Table", "v1alpha1");
        let headers = [(header::ACCEPT.as_str(), other.as_str())];
        assert_eq!(send(&mut sender, &server, Method::GET, &one, &headers, "").await.status(), 406, "{one}");
    }
}
