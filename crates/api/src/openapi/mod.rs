//! The OpenAPI documents: version 2 as JSON and as protobuf (kubectl before 1.27 validates and explains
//! with it), version 3 as one document per group and version (later kubectl).
//!
//! All are made when they are asked for and not kept: a client reads them once and they weigh megabytes. The schemas of
//! custom resources are made one after the other while a document is written (X4).

mod definitions;
mod document;
mod gnostic;
mod paths;

use serde_json::{Map, Value, json};

use crate::discovery::{self, Review};
use crate::kinds::Kind;
use crate::registry::Registry;

pub use document::Document;

/// What old kubectl asks `/openapi/v2` for.
pub const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// The content type of [`v2_protobuf`]: as it was asked for, but without the `@`, which clients refuse in an answer.
pub const V2_PROTOBUF_CONTENT_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Whether an `Accept` header asks for [`v2_protobuf`] before JSON.
pub fn wants_protobuf(accept: &str) -> bool {
    let mut ranges = accept.split(',').map(|range| range.split(';').next().unwrap_or("").trim());
    ranges.find(|media| matches!(*media, V2_PROTOBUF | "application/json" | "*/*")) == Some(V2_PROTOBUF)
}

/// Which specification a document follows; they differ in where references point and in what a parameter is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Version {
    /// Swagger 2.0.
    V2,
    /// OpenAPI 3.0.
    V3,
}

/// `/openapi/v2`.
pub fn v2(registry: &Registry) -> Document {
    let kinds: Vec<&Kind> = registry.all().iter().collect();
    let reviews: Vec<&Review> = discovery::REVIEWS.iter().collect();
    let base = json!({
        "swagger": "2.0", "info": info(), "paths": paths::paths(&kinds, &reviews, Version::V2),
        "definitions": definitions::definitions(&kinds, &reviews, Version::V2),
    });
    Document::new(base, &kinds, Version::V2)
}

/// A document of version 2 as a gnostic `Document`; its content type is [`V2_PROTOBUF_CONTENT_TYPE`].
pub fn v2_protobuf(document: &Document) -> Vec<u8> {
    gnostic::document(document)
}

/// `/openapi/v3`: where the document of each group and version is.
pub fn v3_index(registry: &Registry) -> Value {
    let mut paths = Map::new();
    for (group, version) in discovery::served_versions(registry) {
        let path = if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
        let url = format!("/openapi/v3/{path}");
        paths.insert(path, json!({ "serverRelativeURL": url }));
    }
    json!({ "paths": paths })
}

/// `/openapi/v3/api/v1` (`group` is empty) and `/openapi/v3/apis/<group>/<version>`.
pub fn v3(registry: &Registry, group: &str, version: &str) -> Option<Document> {
    let of_group: Vec<&Kind> =
        registry.all().iter().filter(|kind| kind.group == group && kind.version == version).collect();
    let is_own = |review: &&Review| (review.group, "v1") == (group, version);
    let reviews: Vec<&Review> = discovery::REVIEWS.iter().filter(is_own).collect();
    if of_group.is_empty() && reviews.is_empty() {
        return None;
    }
    let base = json!({
        "openapi": "3.0.0", "info": info(), "paths": paths::paths(&of_group, &reviews, Version::V3),
        "components": { "schemas": definitions::definitions(&of_group, &reviews, Version::V3) },
    });
    Some(Document::new(base, &of_group, Version::V3))
}

fn info() -> Value {
    json!({ "title": "Kubernetes", "version": "v1.37.0" })
}

/// `x-kubernetes-group-version-kind` of a kind.
fn group_version_kind(kind: &Kind) -> Value {
    json!({ "group": kind.group, "kind": kind.kind, "version": kind.version })
}

#[cfg(test)]
mod tests;
