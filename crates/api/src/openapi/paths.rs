//! The paths of kinds: as much as clients read. `kubectl explain` finds a resource's kind by them,
//! and kubectl looks at `patch` to see whether the server knows `dryRun` and `fieldValidation`, and whether a kind
//! takes strategic merge patches: where version 3 does not say so, it loads all of version 2 for each `apply`.

use serde_json::{Map, Value, json};

use super::{Version, group_version_kind};
use crate::discovery::{self, Review};
use crate::kinds::{Kind, Subresource};

/// The query parameters that every write takes.
const WRITE_PARAMETERS: &[&str] = &["dryRun", "fieldManager", "fieldValidation"];
/// Those of a patch.
const PATCH_PARAMETERS: &[&str] = &["dryRun", "fieldManager", "fieldValidation", "force"];

/// The definition name of the body of a patch.
pub(super) const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";

/// What a path takes and answers.
struct Subject<'a> {
    group_version_kind: Value,
    type_name: &'a str,
    /// Whether it takes strategic merge patches.
    is_built_in: bool,
}

impl Subject<'_> {
    /// The patches that it takes, by content type.
    fn patch_types(&self) -> impl Iterator<Item = &'static str> + use<> {
        let of_built_in = self.is_built_in.then_some("application/strategic-merge-patch+json");
        ["application/apply-patch+yaml", "application/json-patch+json", "application/merge-patch+json"]
            .into_iter()
            .chain(of_built_in)
    }

    /// What a write's body is, by content type; `None` for what takes none. Objects come in several encodings.
    fn request_body(&self, action: &str) -> Option<Value> {
        let of = |name: &str| json!({ "schema": { "$ref": format!("#/components/schemas/{name}") } });
        let content: Map<String, Value> = match action {
            "patch" => self.patch_types().map(|media| (media.to_owned(), of(PATCH))).collect(),
            "post" | "put" => [("*/*".to_owned(), of(self.type_name))].into_iter().collect(),
            _ => return None,
        };
        Some(json!({ "content": content, "required": true }))
    }

    fn operation(&self, action: &str, version: Version) -> Value {
        let parameters: &[&str] = match action {
            "patch" => PATCH_PARAMETERS,
            "post" | "put" => WRITE_PARAMETERS,
            "delete" | "deletecollection" => &["dryRun"],
            _ => &[],
        };
        let parameters: Vec<Value> = parameters.iter().map(|name| parameter(name, version)).collect();
        let mut operation = json!({
            "parameters": parameters, "responses": { "200": { "description": "OK" } },
            "x-kubernetes-action": action, "x-kubernetes-group-version-kind": self.group_version_kind,
        });
        if let Some(body) = self.request_body(action).filter(|_| version == Version::V3) {
            operation["requestBody"] = body;
        }
        operation
    }
}

fn parameter(name: &str, version: Version) -> Value {
    let type_ = if name == "force" { "boolean" } else { "string" };
    match version {
        Version::V2 => json!({ "name": name, "in": "query", "type": type_, "uniqueItems": true }),
        Version::V3 => json!({ "name": name, "in": "query", "schema": { "type": type_, "uniqueItems": true } }),
    }
}

fn prefix(group: &str, version: &str) -> String {
    if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") }
}

/// The path items of these kinds and of what is only posted.
pub(super) fn paths(kinds: &[&Kind], reviews: &[&Review], version: Version) -> Map<String, Value> {
    let mut paths = Map::new();
    for review in reviews {
        let type_name = type_name(review.group, "v1", review.kind);
        let subject = Subject {
            group_version_kind: json!({ "group": review.group, "kind": review.kind, "version": "v1" }),
            type_name: &type_name,
            is_built_in: true,
        };
        let namespace = if review.namespaced { "/namespaces/{namespace}" } else { "" };
        let path = format!("{}{namespace}/{}", prefix(review.group, "v1"), review.plural);
        paths.insert(path, json!({ "post": subject.operation("post", version) }));
    }
    for kind in kinds {
        let prefix = prefix(&kind.group, &kind.version);
        let subject = Subject {
            group_version_kind: group_version_kind(kind),
            type_name: &kind.type_name,
            is_built_in: kind.custom.is_none(),
        };
        let operation = |action: &str| subject.operation(action, version);
        let every = format!("{prefix}/{}", kind.plural);
        let collection =
            if kind.namespaced { format!("{prefix}/namespaces/{{namespace}}/{}", kind.plural) } else { every.clone() };
        if kind.namespaced {
            paths.insert(every, json!({ "get": operation("list") }));
        }
        let item = json!({
            "get": operation("get"), "put": operation("put"), "delete": operation("delete"),
            "patch": operation("patch"),
        });
        paths.insert(format!("{collection}/{{name}}"), item);
        for &sub in kind.subresources.iter() {
            if let Some(item) = of_subresource(kind, sub, version) {
                paths.insert(format!("{collection}/{{name}}/{}", discovery::segment(sub)), item);
            }
        }
        let list = json!({
            "get": operation("list"), "post": operation("post"), "delete": operation("deletecollection"),
        });
        paths.insert(collection, list);
    }
    paths
}

/// The path item of a subresource that has a kind of its own.
fn of_subresource(kind: &Kind, sub: Subresource, version: Version) -> Option<Value> {
    let (group, of_version, name) = own_kind(kind, sub)?;
    let type_name = type_name(group, of_version, name);
    let subject = Subject {
        group_version_kind: json!({ "group": group, "kind": name, "version": of_version }),
        type_name: &type_name,
        is_built_in: kind.custom.is_none(),
    };
    let operation = |action: &str| subject.operation(action, version);
    Some(match sub {
        Subresource::Scale => {
            json!({ "get": operation("get"), "put": operation("put"), "patch": operation("patch") })
        }
        _ => json!({ "post": operation("post") }),
    })
}

/// The group, version and kind of a subresource that takes objects of another kind than its resource's. What
/// connections are made with (`exec`, `proxy`) has options in its query, and no schema upstream either.
pub(super) fn own_kind(kind: &Kind, sub: Subresource) -> Option<(&str, &str, &str)> {
    use Subresource::{Binding, Eviction, Scale, Token};
    let (group, version, name, _) = discovery::subresource(kind, sub);
    matches!(sub, Scale | Binding | Eviction | Token).then_some((group, version, name))
}

/// The definition name of a built-in kind, by upstream's rule.
pub(super) fn type_name(group: &str, version: &str, kind: &str) -> String {
    let package = if group.is_empty() { "core" } else { group.split('.').next().unwrap_or(group) };
    format!("io.k8s.api.{package}.{version}.{kind}")
}
