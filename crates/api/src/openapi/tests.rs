use std::collections::BTreeMap;

use super::*;

/// Fields of a protobuf message, by number, in order: enough of a decoder to read our own bytes.
fn fields(mut bytes: &[u8]) -> BTreeMap<u64, Vec<Vec<u8>>> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (first, rest) = bytes.split_first().expect("a byte");
            *bytes = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                return value;
            }
        }
        panic!("a varint that does not end");
    }
    let mut all: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes);
        let value = match tag & 7 {
            0 => varint(&mut bytes).to_le_bytes().to_vec(),
            2 => {
                let length = varint(&mut bytes) as usize;
                let (value, rest) = bytes.split_at(length);
                bytes = rest;
                value.to_vec()
            }
            other => panic!("wire type {other}"),
        };
        all.entry(tag >> 3).or_default().push(value);
    }
    all
}

/// The value of an entry of a map (field `map` of the message).
fn entry(message: &[u8], map: u64, name: &str) -> Vec<u8> {
    let entries = fields(message).remove(&map).unwrap_or_default();
    let found = entries.iter().map(|entry| fields(entry)).find(|entry| entry[&1][0] == name.as_bytes());
    found.unwrap_or_else(|| panic!("no {name}"))[&2][0].clone()
}

fn first(message: &[u8], field: u64) -> Vec<u8> {
    fields(message).remove(&field).expect("the field")[0].clone()
}

#[test]
fn gnostic_bytes_hold_what_kubectl_reads() {
    let document = v2_protobuf(&v2_json(&crate::Registry::built_in()));
    assert_eq!(first(&document, 1), b"2.0");
    let definitions = first(&document, 9);
    let set = entry(&definitions, 1, "io.k8s.api.apps.v1.StatefulSet");
    let gvk = first(&entry(&set, 31, "x-kubernetes-group-version-kind"), 2);
    assert_eq!(
        serde_json::from_slice::<Value>(&gvk).expect("JSON"),
        json!([{ "group": "apps", "kind": "StatefulSet", "version": "v1" }])
    );
    assert_eq!(first(&entry(&first(&set, 25), 1, "spec"), 1), b"#/definitions/io.k8s.api.apps.v1.StatefulSetSpec");
    let pod = entry(&definitions, 1, "io.k8s.api.core.v1.PodSpec");
    let containers = entry(&first(&pod, 25), 1, "containers");
    assert_eq!(first(&first(&containers, 22), 1), b"array");
    assert_eq!(first(&first(&first(&containers, 23), 1), 1), b"#/definitions/io.k8s.api.core.v1.Container");
    assert_eq!(first(&entry(&containers, 31, "x-kubernetes-patch-merge-key"), 2), b"\"name\"");
    let patch = first(&entry(&first(&document, 8), 2, "/apis/apps/v1/namespaces/{namespace}/statefulsets/{name}"), 8);
    let parameter = first(&first(&first(&first(&patch, 8), 1), 2), 3);
    assert_eq!((first(&parameter, 4), first(&parameter, 2)), (b"dryRun".to_vec(), b"query".to_vec()));
    let gvk = first(&entry(&patch, 13, "x-kubernetes-group-version-kind"), 2);
    assert_eq!(
        serde_json::from_slice::<Value>(&gvk).expect("JSON"),
        json!({ "group": "apps", "kind": "StatefulSet", "version": "v1" })
    );
}

#[test]
fn every_reference_is_defined() {
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str));
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }
    let check = |document: &Value, prefix: &str, definitions: &Value| {
        let mut found = Vec::new();
        references(document, &mut found);
        for reference in found {
            let name = reference.strip_prefix(prefix).unwrap_or_else(|| panic!("{reference} points elsewhere"));
            assert!(definitions.get(name).is_some(), "{name} is not defined");
        }
    };
    let v2 = v2_json(&crate::Registry::built_in());
    check(&v2, "#/definitions/", &v2["definitions"]);
    let registry = crate::Registry::built_in();
    for (group, version) in discovery::served_versions(&registry) {
        let v3 = v3_document(&registry, group, version).expect("a document");
        check(&v3, "#/components/schemas/", &v3["components"]["schemas"]);
    }
    assert!(v3_document(&crate::Registry::built_in(), "nope", "v1").is_none());
}

#[test]
fn version_three_for_explain_and_apply() {
    let index = v3_index(&crate::Registry::built_in());
    assert_eq!(index["paths"]["apis/apps/v1"]["serverRelativeURL"], "/openapi/v3/apis/apps/v1");
    let apps = v3_document(&crate::Registry::built_in(), "apps", "v1").expect("apps");
    let set = &apps["components"]["schemas"]["io.k8s.api.apps.v1.StatefulSet"];
    assert_eq!(
        set["properties"]["spec"]["allOf"][0]["$ref"],
        "#/components/schemas/io.k8s.api.apps.v1.StatefulSetSpec"
    );
    assert_eq!(set["x-kubernetes-group-version-kind"][0]["kind"], "StatefulSet");
    let path = &apps["paths"]["/apis/apps/v1/namespaces/{namespace}/statefulsets/{name}"]["patch"];
    assert_eq!(path["x-kubernetes-group-version-kind"]["kind"], "StatefulSet");
    let names: Vec<&str> =
        path["parameters"].as_array().expect("parameters").iter().filter_map(|p| p["name"].as_str()).collect();
    assert_eq!(names, ["dryRun", "fieldManager", "fieldValidation", "force"]);
    // By this kubectl knows how to make its patch, without loading all of version 2.
    let patches = path["requestBody"]["content"].as_object().expect("content types");
    assert_eq!(patches.len(), 4, "{patches:?}");
    assert!(patches.contains_key("application/strategic-merge-patch+json"), "{patches:?}");
}

#[test]
fn accept_header_of_old_kubectl() {
    assert!(wants_protobuf(V2_PROTOBUF));
    assert!(!wants_protobuf("application/json, application/com.github.proto-openapi.spec.v2@v1.0+protobuf"));
    assert!(!wants_protobuf(""));
}
