//! What webhooks and extension servers may answer, read by the functions that read it in earnest, without sockets (X4).
//! Not in the binary: for tests and for `fuzz/`.
//!
//! The first byte says what the rest is an answer to. It panics where a promise is broken.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mainstay_api::patch::MAX_COPIED_BYTES;
use mainstay_api::{kinds, openapi, schema};
use serde_json::{Value, json};

use crate::aggregation::{answered, described, discovery};
use crate::convert;
use crate::dynamic::asking::patched;
use crate::dynamic::review::{Response, Version};
use crate::http::warned;

/// Warnings take no more than this of an answer's head, with what stands around them (bytes).
const MAX_WARNED: usize = 8 << 10;

fn pod() -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p", "namespace": "n", "uid": "1" },
        "spec": { "containers": [{ "name": "c", "image": "i" }] } })
}

fn custom(version: &str) -> Value {
    json!({ "apiVersion": format!("x.io/{version}"), "kind": "Foo",
        "metadata": { "name": "a", "namespace": "n", "uid": "1", "labels": { "l": "1" } }, "spec": { "a": [1, 2] } })
}

/// Whole inputs.
pub fn seeds() -> Vec<Vec<u8>> {
    let review = |version: &str, response: Value| {
        json!({ "kind": "AdmissionReview",
        "apiVersion": format!("admission.k8s.io/{version}"), "response": response })
    };
    let patch = |patch: Value| {
        json!({ "uid": "u", "allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(patch.to_string()),
            "warnings": ["mind \"the\" gap", "line\nbreak"], "auditAnnotations": { "a": "b" } })
    };
    let copies: Value = (0..20).map(|_| json!({ "op": "copy", "from": "/metadata", "path": "/metadata/x" })).collect();
    let all = [
        (
            0,
            review(
                "v1",
                patch(json!([{ "op": "add", "path": "/metadata/labels", "value": { "a": "b" } },
            { "op": "test", "path": "/spec/containers/0/name", "value": "c" },
            { "op": "move", "from": "/spec/containers/0/image", "path": "/spec/containers/0/workingDir" }])),
            ),
        ),
        (0, review("v1", patch(copies))),
        (
            1,
            review(
                "v1beta1",
                json!({ "allowed": false, "status": { "code": 403, "reason": "Forbidden", "message": "no",
            "details": { "kind": "x" } } }),
            ),
        ),
        (2, review("v1", json!({ "uid": "u", "allowed": true, "warnings": ["w"] }))),
        (
            3,
            json!({ "kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "response": { "uid": "u",
            "result": { "status": "Success" }, "convertedObjects": [custom("v2")] } }),
        ),
        (
            4,
            json!({ "kind": "APIResourceList", "groupVersion": "x.io/v1", "resources": [
            { "name": "foos", "singularName": "foo", "namespaced": true, "kind": "Foo", "verbs": ["get"],
                "shortNames": ["f"] }, { "name": "foos/status", "kind": "Foo", "verbs": ["get"] }] }),
        ),
        (
            5,
            json!({ "swagger": "2.0", "paths": { "/apis/x.io/v1/foos": { "get": { "responses": { "200": {
            "description": "OK", "schema": { "$ref": "#/definitions/Foo" } } } } } }, "definitions": {
            "Foo": { "properties": { "a": { "$ref": "#/definitions/Foo" } },
                "x-kubernetes-group-version-kind": [{ "group": "x.io", "version": "v1", "kind": "Foo" }] } } }),
        ),
    ];
    all.into_iter().map(|(what, answer)| [&[what], answer.to_string().as_bytes()].concat()).collect()
}

/// One input.
pub fn run(input: &[u8]) {
    let Some((what, answer)) = input.split_first() else { return };
    match what % 6 {
        what @ 0..=2 => review(answer, if what == 1 { Version::V1Beta1 } else { Version::V1 }, what != 2),
        3 => conversion(answer),
        4 => resources(answer),
        _ => description(answer),
    }
}

fn review(answer: &[u8], version: Version, mutates: bool) {
    let Ok(response) = Response::read(answer, version, "u", mutates) else { return };
    let refusal = response.refusal("x");
    assert!((400..600).contains(&refusal.code), "a refusal refuses");
    let told: usize = warned(&response.warnings).iter().map(String::len).sum();
    assert!(told <= MAX_WARNED, "{told} bytes of warnings");
    let Some(patch) = &response.patch else { return };
    assert!(mutates, "only who may change an object patches it");
    let object = pod();
    if let Ok(Some(new)) = patched(&object, &kinds::POD, &kinds::POD, false, patch) {
        assert!(new.is_object());
        let most = object.to_string().len() + patch.len() + MAX_COPIED_BYTES;
        // Escapes and defaults add some.
        assert!(new.to_string().len() <= 8 * most, "what a patch makes grows with the patch");
    }
}

fn conversion(answer: &[u8]) {
    let before = [custom("v1")];
    let Ok(after) = convert::converted(answer, "v1", "u", &before, "x.io/v2") else { return };
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(after["apiVersion"], "x.io/v2");
        for field in ["name", "namespace", "uid"] {
            assert_eq!(before["metadata"][field], after["metadata"][field], "who it is stays");
        }
    }
}

fn resources(answer: &[u8]) {
    let Ok(parsed) = schema::parse::parse(answer) else { return };
    let extensions: Vec<_> = answered(parsed.value).into_iter().collect();
    let (mut groups, mut all) = (json!({ "groups": [] }), json!({ "items": [] }));
    discovery::add_groups(&mut groups, &extensions);
    discovery::add_aggregated(&mut all, &extensions);
}

fn description(answer: &[u8]) {
    let Ok(parsed) = schema::parse::parse(answer) else { return };
    let part = described::reduced(parsed.value, "x.io", "v1");
    let mut document = json!({ "paths": {}, "definitions": { "Foo": { "type": "object" } } });
    described::merge(&mut document, &part);
    assert_eq!(document["definitions"]["Foo"], json!({ "type": "object" }), "the server's own stay");
    openapi::v2_protobuf(&openapi::Document::of(document));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x4_seeds_and_what_is_dense_are_read_within_limits() {
        seeds().iter().for_each(|seed| run(seed));
        for what in 0..6 {
            let dense = format!("{{\"a\":[{}]}}", vec![r#"{"a":1}"#; 400_000].join(","));
            run(&[&[what], dense.as_bytes()].concat());
        }
        let many = format!("{{\"response\":{{\"status\":[{}]}}}}", vec![r#"{"a":1}"#; 400_000].join(","));
        let refused = Response::read(many.as_bytes(), Version::V1Beta1, "u", true).expect_err("too many parts");
        assert!(refused.contains("it has too many parts"), "{refused}");
    }
}
