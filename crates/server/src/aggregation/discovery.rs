//! Discovery with what other servers offer: their groups stand after the server's own, with the resources that each
//! last said it has.

use std::sync::Arc;

use mainstay_api::object;
use serde_json::{Value, json};

use super::Extension;

fn name_of(extension: &Extension) -> Value {
    let Extension { group, version, .. } = extension;
    json!({ "groupVersion": format!("{group}/{version}"), "version": version })
}

/// The `APIGroup` of other servers' versions of a group.
pub fn group(extensions: &[Arc<Extension>], name: &str) -> Option<Value> {
    let versions: Vec<Value> =
        extensions.iter().filter(|extension| extension.group == name).map(|extension| name_of(extension)).collect();
    let first = versions.first()?.clone();
    Some(json!({ "kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": versions,
            "preferredVersion": first }))
}

/// Adds other servers' groups and versions to an `APIGroupList`.
pub fn add_groups(list: &mut Value, extensions: &[Arc<Extension>]) {
    let Some(groups) = list.get_mut("groups").and_then(Value::as_array_mut) else { return };
    for extension in extensions {
        let known = groups.iter_mut().find(|group| object::text(group, &["name"]) == extension.group);
        match known.and_then(|group| group.get_mut("versions")).and_then(Value::as_array_mut) {
            Some(versions) => versions.push(name_of(extension)),
            None => {
                let name = name_of(extension);
                groups.push(json!({ "name": extension.group, "versions": [name], "preferredVersion": name }));
            }
        }
    }
}

/// Adds them to an `APIGroupDiscoveryList`.
pub fn add_aggregated(list: &mut Value, extensions: &[Arc<Extension>]) {
    let Some(items) = list.get_mut("items").and_then(Value::as_array_mut) else { return };
    for extension in extensions {
        let version = aggregated(extension);
        let known = items.iter_mut().find(|item| object::text(item, &["metadata", "name"]) == extension.group);
        match known.and_then(|item| item.get_mut("versions")).and_then(Value::as_array_mut) {
            Some(versions) => versions.push(version),
            None => items.push(json!({
                "metadata": { "name": extension.group, "creationTimestamp": null }, "versions": [version],
            })),
        }
    }
}

/// Adds where their OpenAPI documents are.
pub fn add_documents(index: &mut Value, extensions: &[Arc<Extension>]) {
    for extension in extensions.iter().filter(|extension| extension.is_available()) {
        let path = format!("apis/{}/{}", extension.group, extension.version);
        let url = format!("/openapi/v3/{path}");
        object::ensure(index, &["paths"]).insert(path, json!({ "serverRelativeURL": url }));
    }
}

/// A version in the aggregated form; one that does not answer has what it had, and is said to be stale.
fn aggregated(extension: &Extension) -> Value {
    let freshness = if extension.is_available() { "Current" } else { "Stale" };
    let known = extension.resources().unwrap_or_default();
    let listed = known.get("resources").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let (mut resources, mut subresources): (Vec<Value>, Vec<(&str, Value)>) = (Vec::new(), Vec::new());
    for resource in listed {
        let name = object::text(resource, &["name"]);
        let or_own = |field: &str, own: &str| match object::text(resource, &[field]) {
            "" => own.to_owned(),
            other => other.to_owned(),
        };
        let kind = json!({
            "group": or_own("group", &extension.group), "version": or_own("version", &extension.version),
            "kind": object::text(resource, &["kind"]),
        });
        let verbs = resource.get("verbs").cloned().unwrap_or_else(|| json!([]));
        if let Some((main, sub)) = name.split_once('/') {
            subresources.push((main, json!({ "subresource": sub, "responseKind": kind, "verbs": verbs })));
            continue;
        }
        let is_namespaced = resource.get("namespaced").and_then(Value::as_bool).unwrap_or(false);
        let mut shown = json!({
            "resource": name, "responseKind": kind, "verbs": verbs,
            "scope": if is_namespaced { "Namespaced" } else { "Cluster" },
            "singularResource": object::text(resource, &["singularName"]),
        });
        for field in ["shortNames", "categories"] {
            if let Some(value) = resource.get(field) {
                shown[field] = value.clone();
            }
        }
        resources.push(shown);
    }
    for (main, sub) in subresources {
        if let Some(resource) = resources.iter_mut().find(|resource| resource["resource"] == main) {
            let all = object::ensure(resource, &[]).entry("subresources").or_insert_with(|| json!([]));
            if let Some(all) = all.as_array_mut() {
                all.push(sub);
            }
        }
    }
    json!({ "version": extension.version, "resources": resources, "freshness": freshness })
}
