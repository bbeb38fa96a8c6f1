//! Role: what may be done in a namespace. Kept for charts and tools; the server does not read it yet.

use serde_json::json;

use super::cells::{NAME, text_column};
use super::{BASE, Kind, NameRule};
use crate::object::{name, text};

/// The row of Role.
pub static ROLE: Kind = Kind {
    group: "rbac.authorization.k8s.io",
    kind: "Role",
    plural: "roles",
    singular: "role",
    type_name: "io.k8s.api.rbac.v1.Role",
    name_rule: NameRule::PathSegment,
    columns: &[NAME, text_column("Created At", "When it was created.")],
    row: |role, _| vec![json!(name(role)), json!(text(role, &["metadata", "creationTimestamp"]))],
    ..BASE
};
