//! ComponentStatus: whether the cluster's parts are well. Deprecated upstream; read only.

use std::borrow::Cow::Borrowed;

use serde_json::json;

use super::cells::{NAME, text_column};
use super::field::Field;
use super::{BASE, Kind, Row};
use crate::object::name;

/// The row of ComponentStatus.
pub static COMPONENT_STATUS: Kind = Kind::BuiltIn(&Row {
    kind: Borrowed("ComponentStatus"),
    plural: Borrowed("componentstatuses"),
    singular: Borrowed("componentstatus"),
    short_names: Borrowed(&[Borrowed("cs")]),
    namespaced: false,
    type_name: Borrowed("io.k8s.api.core.v1.ComponentStatus"),
    columns: Borrowed(&[
        NAME,
        text_column("Status", "Whether it is well."),
        text_column("Message", "What it says."),
        text_column("Error", "What is wrong."),
    ]),
    row: |_, component, _| {
        let condition = Field::root(component)
            .get("conditions")
            .items()
            .find(|condition| condition.get("type").text() == "Healthy");
        let of = |field: &str| condition.as_ref().map_or("", |condition| condition.get(field).text());
        let status = match of("status") {
            "True" => "Healthy",
            "False" => "Unhealthy",
            _ => "Unknown",
        };
        vec![json!(name(component)), json!(status), json!(of("message")), json!(of("error"))]
    },
    verbs: Borrowed(&["get", "list"]),
    ..BASE
});
