//! OpenAPI documents: what is in them, and that their protobuf form says the same.

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

/// A document as clients read it.
fn whole(document: &Document) -> Value {
    serde_json::from_str(&document.text()).expect("JSON")
}

#[test]
fn gnostic_bytes_hold_what_kubectl_reads() {
    let document = v2_protobuf(&v2(&crate::Registry::built_in()));
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
    let v2 = whole(&v2(&crate::Registry::built_in()));
    check(&v2, "#/definitions/", &v2["definitions"]);
    let registry = crate::Registry::built_in();
    for (group, version) in discovery::served_versions(&registry) {
        let v3 = whole(&v3(&registry, group, version).expect("a document"));
        check(&v3, "#/components/schemas/", &v3["components"]["schemas"]);
    }
    assert!(v3(&crate::Registry::built_in(), "nope", "v1").is_none());
}

#[test]
fn version_three_for_explain_and_apply() {
    let index = v3_index(&crate::Registry::built_in());
    assert_eq!(index["paths"]["apis/apps/v1"]["serverRelativeURL"], "/openapi/v3/apis/apps/v1");
    let apps = whole(&v3(&crate::Registry::built_in(), "apps", "v1").expect("apps"));
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

/// A registry with one more kind, whose schema has this field.
fn with_custom(field: &str) -> crate::Registry {
    with_schema(&json!({ "type": "object", "properties": { "spec": { "type": "object", "properties": {
        field: { "type": "string", "nullable": true, "default": "x" } } } } }))
}

/// A registry with one more kind, of this schema.
fn with_schema(schema: &serde_json::Value) -> crate::Registry {
    let definition = json!({
        "metadata": { "annotations": { "a": "b" }, "resourceVersion": "7" },
        "spec": { "group": "x.io", "scope": "Namespaced", "names": { "kind": "Foo", "plural": "foos" },
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": schema } }] },
        "status": { "conditions": [{ "type": "Established", "status": "True" }] },
    });
    let definition = definition.to_string().into();
    crate::custom::rows::serve(&crate::Registry::built_in(), &definition, false).expect("JSON")
}

#[test]
fn custom_resources_are_in_every_form_of_the_documents() {
    let registry = with_custom("colour");
    let document = v2(&registry);
    let own = &whole(&document)["definitions"]["io.x.v1.Foo"];
    assert_eq!(own["x-kubernetes-group-version-kind"][0]["kind"], "Foo");
    assert_eq!(own["properties"]["spec"]["properties"]["colour"], json!({}), "version 2 knows no null");
    let bytes = entry(&first(&v2_protobuf(&document), 9), 1, "io.x.v1.Foo");
    entry(&first(&entry(&first(&bytes, 25), 1, "spec"), 25), 1, "colour");
    let own = whole(&v3(&registry, "x.io", "v1").expect("a document"));
    let own = &own["components"]["schemas"]["io.x.v1.Foo"];
    let wanted = json!({ "type": "string", "nullable": true, "default": "x" });
    assert_eq!(own["properties"]["spec"]["properties"]["colour"], wanted);
    // What has its name in another server's part is seen to be something else.
    let mut document = v2(&registry);
    assert!(document.base_mut()["definitions"]["io.x.v1.Foo"].is_null());
    document.base_mut()["definitions"]["other"] = json!(null);
    assert!(whole(&document)["definitions"]["other"].is_null());
}

/// What upstream publishes of it in version 2 and in version 3.
fn published(schema: &serde_json::Value) -> [serde_json::Value; 2] {
    let registry = with_schema(schema);
    let mut own = whole(&v2(&registry))["definitions"]["io.x.v1.Foo"].take();
    let mut new =
        whole(&v3(&registry, "x.io", "v1").expect("a document"))["components"]["schemas"]["io.x.v1.Foo"].take();
    [&mut own, &mut new].map(|schema| {
        schema.as_object_mut().expect("a schema").remove("x-kubernetes-group-version-kind");
        schema.take()
    })
}

/// conformance: "works for CRD without validation schema", "… preserving unknown fields at the schema root". Old
/// kubectl refuses every field that the schema does not name as soon as it names one.
#[test]
fn what_keeps_unknown_fields_is_published_to_old_clients_without_any() {
    let free = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true,
        "properties": { "a": { "type": "string" } } });
    let [old, new] = published(&free);
    assert_eq!(old, json!({ "type": "object" }));
    assert_eq!(new["x-kubernetes-preserve-unknown-fields"], true);
    assert_eq!(new["properties"]["a"]["type"], "string");
    assert_eq!(
        new["properties"]["metadata"]["allOf"][0]["$ref"].as_str().map(|path| path.contains("ObjectMeta")),
        Some(true)
    );
}

/// conformance: "works for CRD with validation schema" (`kubectl explain` of what every object has).
#[test]
fn what_every_object_has_is_explained_also_of_objects_within_objects() {
    let schema = json!({ "type": "object", "required": ["spec"], "properties": {
        "spec": { "type": "object", "required": ["kept", "empty"], "properties": {
            "kept": { "type": "string" }, "empty": { "type": "string", "nullable": true },
            "pod": { "type": "object", "x-kubernetes-embedded-resource": true, "properties": {} },
            "any": { "type": "object", "x-kubernetes-embedded-resource": true,
                "x-kubernetes-preserve-unknown-fields": true } } } } });
    let [old, new] = published(&schema);
    for published in [&old, &new] {
        let version = &published["properties"]["apiVersion"]["description"];
        assert!(version.as_str().is_some_and(|text| text.starts_with("APIVersion defines")), "{version}");
        let pod = &published["properties"]["spec"]["properties"]["pod"];
        assert_eq!(pod["properties"]["kind"]["type"], "string", "{pod}");
        assert_eq!(pod["required"], json!(["kind", "apiVersion"]));
        assert_eq!(published["required"], json!(["spec"]));
    }
    assert_eq!(old["properties"]["spec"]["required"], json!(["kept"]), "old clients take null for missing");
    assert_eq!(new["properties"]["spec"]["required"], json!(["kept", "empty"]));
    assert_eq!(old["properties"]["spec"]["properties"]["any"].get("properties"), None);
    assert_eq!(new["properties"]["spec"]["properties"]["any"]["properties"]["kind"]["type"], "string");
}

/// The kinds that have a schema of this document: `group/version/kind`.
fn explained(schemas: &Value) -> Vec<String> {
    let text = |of: &Value, field: &str| of[field].as_str().expect("text").to_owned();
    let schemas = schemas.as_object().expect("schemas").values();
    let kinds = schemas.filter_map(|schema| schema["x-kubernetes-group-version-kind"].as_array()).flatten();
    kinds.map(|of| format!("{}/{}/{}", text(of, "group"), text(of, "version"), text(of, "kind"))).collect()
}

/// The path of a listed resource of a group and version.
fn path_of(prefix: &str, resource: &Value) -> String {
    let namespace = if resource["namespaced"] == true { "/namespaces/{namespace}" } else { "" };
    match resource["name"].as_str().expect("a name").split_once('/') {
        None => format!("{prefix}{namespace}/{}", resource["name"].as_str().expect("a name")),
        Some((plural, sub)) => format!("{prefix}{namespace}/{plural}/{{name}}/{sub}"),
    }
}

#[test]
fn conformance_all_that_discovery_lists_is_explained() {
    let registry = crate::Registry::built_in();
    let all = whole(&v2(&registry));
    let in_v2 = explained(&all["definitions"]);
    let mut posted = 0;
    for (group, version) in discovery::served_versions(&registry) {
        let own = whole(&v3(&registry, group, version).expect("a document"));
        let in_v3 = explained(&own["components"]["schemas"]);
        let prefix = if group.is_empty() { "/api/v1".to_owned() } else { format!("/apis/{group}/{version}") };
        let list = discovery::api_resource_list(&registry, group, version).expect("a list");
        for resource in list["resources"].as_array().expect("resources") {
            let kind = resource["kind"].as_str().expect("a kind");
            // What connections are made with is no object, here and upstream.
            if kind.ends_with("Options") {
                continue;
            }
            let (group, version) =
                (resource["group"].as_str().unwrap_or(group), resource["version"].as_str().unwrap_or(version));
            let wanted = format!("{group}/{version}/{kind}");
            assert!(in_v3.contains(&wanted), "{} is {wanted}: not in version 3", resource["name"]);
            assert!(in_v2.contains(&wanted), "{} is {wanted}: not in version 2", resource["name"]);
            if resource["verbs"] != json!(["create"]) {
                continue;
            }
            // kubectl finds a kind by its path.
            posted += 1;
            for document in [&own, &all] {
                let operation = &document["paths"][path_of(&prefix, resource)]["post"];
                assert_eq!(operation["x-kubernetes-group-version-kind"]["kind"], kind, "{resource}");
            }
        }
    }
    assert_eq!(posted, 10, "reviews and bindings, and what pods and service accounts have for posting");
    // Upstream's clients do not have to send metadata.
    let review = &all["definitions"]["io.k8s.api.authentication.v1.TokenReview"];
    assert_eq!(review["required"], json!(["spec"]));
}
