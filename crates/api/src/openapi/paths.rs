//! The paths of kinds: as much as clients read. `kubectl explain` finds a resource's kind by them,
//! and kubectl looks at `patch` to see whether the server knows `dryRun` and `fieldValidation`, and whether a kind
//! takes strategic merge patches: where version 3 does not say so, it loads all of version 2 for each `apply`.

use serde_json::{Map, Value, json};

use super::{Version, group_version_kind};
use crate::kinds::Kind;

/// The query parameters that every write takes.
const WRITE_PARAMETERS: &[&str] = &["dryRun", "fieldManager", "fieldValidation"];

/// The definition name of the body of a patch.
pub(super) const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";

/// The patches that a kind takes, by content type.
fn patch_types(kind: &Kind) -> impl Iterator<Item = &'static str> {
    let of_built_in = kind.custom.is_none().then_some("application/strategic-merge-patch+json");
    ["application/apply-patch+yaml", "application/json-patch+json", "application/merge-patch+json"]
        .into_iter()
        .chain(of_built_in)
}

/// What a write's body is, by content type; `None` for what takes none. Objects come in several encodings.
fn request_body(kind: &Kind, action: &str) -> Option<Value> {
    let of = |name: &str| json!({ "schema": { "$ref": format!("#/components/schemas/{name}") } });
    let content: Map<String, Value> = match action {
        "patch" => patch_types(kind).map(|media| (media.to_owned(), of(PATCH))).collect(),
        "post" | "put" => [("*/*".to_owned(), of(&kind.type_name))].into_iter().collect(),
        _ => return None,
    };
    Some(json!({ "content": content, "required": true }))
}

/// The path items of these kinds.
pub(super) fn paths(kinds: &[&Kind], version: Version) -> Map<String, Value> {
    let mut paths = Map::new();
    for kind in kinds {
        let prefix = if kind.group.is_empty() {
            format!("/api/{}", kind.version)
        } else {
            format!("/apis/{}/{}", kind.group, kind.version)
        };
        let operation = |action: &str, parameters: &[&str]| operation(kind, action, parameters, version);
        let every = format!("{prefix}/{}", kind.plural);
        let collection =
            if kind.namespaced { format!("{prefix}/namespaces/{{namespace}}/{}", kind.plural) } else { every.clone() };
        if kind.namespaced {
            paths.insert(every, json!({ "get": operation("list", &[]) }));
        }
        let item = json!({
            "get": operation("get", &[]), "put": operation("put", WRITE_PARAMETERS),
                "delete": operation("delete", &["dryRun"]),
            "patch": operation("patch", &["dryRun", "fieldManager", "fieldValidation", "force"]),
        });
        paths.insert(format!("{collection}/{{name}}"), item);
        let list = json!({
            "get": operation("list", &[]), "post": operation("post", WRITE_PARAMETERS),
                "delete": operation("deletecollection", &["dryRun"]),
        });
        paths.insert(collection, list);
    }
    paths
}

fn operation(kind: &Kind, action: &str, parameters: &[&str], version: Version) -> Value {
    let parameters: Vec<Value> = parameters
        .iter()
        .map(|name| {
            let type_ = if *name == "force" { "boolean" } else { "string" };
            match version {
                Version::V2 => json!({ "name": name, "in": "query", "type": type_, "uniqueItems": true }),
                Version::V3 => json!({ "name": name, "in": "query", "schema": { "type": type_, "uniqueItems": true } }),
            }
        })
        .collect();
    let mut operation = json!({
        "parameters": parameters, "responses": { "200": { "description": "OK" } },
        "x-kubernetes-action": action, "x-kubernetes-group-version-kind": group_version_kind(kind),
    });
    if let Some(body) = request_body(kind, action).filter(|_| version == Version::V3) {
        operation["requestBody"] = body;
    }
    operation
}
