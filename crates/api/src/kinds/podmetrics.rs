//! PodMetrics and NodeMetrics: what is used now. Never stored: the server asks the nodes when it is asked.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::cells::{NAME, text_column};
use super::{BASE, Column, Kind, Row};
use crate::object::{at, name, text};
use crate::quantity::Quantity;

/// The API group of both.
pub const GROUP: &str = "metrics.k8s.io";

/// The row of PodMetrics.
pub static POD_METRICS: Kind = Kind::BuiltIn(&Row {
    kind: Borrowed("PodMetrics"),
    plural: Borrowed("pods"),
    type_name: Borrowed("io.k8s.metrics.pkg.apis.metrics.v1beta1.PodMetrics"),
    row: |_, metrics, _| {
        let containers = metrics.get("containers").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        cells(metrics, containers)
    },
    group: Borrowed(GROUP),
    version: Borrowed("v1beta1"),
    columns: Borrowed(COLUMNS),
    verbs: Borrowed(&["get", "list"]),
    ..BASE
});

/// The row of NodeMetrics.
pub static NODE_METRICS: Kind = Kind::BuiltIn(&Row {
    kind: Borrowed("NodeMetrics"),
    plural: Borrowed("nodes"),
    namespaced: false,
    type_name: Borrowed("io.k8s.metrics.pkg.apis.metrics.v1beta1.NodeMetrics"),
    row: |_, metrics, _| cells(metrics, std::slice::from_ref(metrics)),
    group: Borrowed(GROUP),
    version: Borrowed("v1beta1"),
    columns: Borrowed(COLUMNS),
    verbs: Borrowed(&["get", "list"]),
    ..BASE
});

const COLUMNS: &[Column] = &[
    NAME,
    text_column("cpu", "Cores in use."),
    text_column("memory", "Bytes in use."),
    text_column("Window", "How long was measured."),
];

fn cells(metrics: &Value, users: &[Value]) -> Vec<Value> {
    let amounts = |resource: &str| {
        let amounts = users.iter().filter_map(move |user| text(at(user, &["usage"])?, &[resource]).parse().ok());
        amounts.fold(Quantity::from_milli(0), |sum: Quantity, amount: Quantity| sum + amount)
    };
    let (cpu, memory) = (amounts("cpu").milli(), amounts("memory").units() / 1024);
    vec![
        json!(name(metrics)),
        json!(format!("{cpu}m")),
        json!(format!("{memory}Ki")),
        json!(text(metrics, &["window"])),
    ]
}
