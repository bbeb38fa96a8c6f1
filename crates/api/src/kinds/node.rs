//! Node: a machine that runs pods.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::cells::{AGE, NAME, age, or_none, text_column, wide};
use super::field::{Field, inner};
use super::{BASE, Kind, Row, Subresource, workload};
use crate::names;
use crate::object::{at, name, text};
use crate::quantity;
use crate::status::Cause;

/// The row of Node.
pub static NODE: Kind = Kind::BuiltIn(&Row {
    kind: Borrowed("Node"),
    plural: Borrowed("nodes"),
    singular: Borrowed("node"),
    short_names: Borrowed(&[Borrowed("no")]),
    namespaced: false,
    subresources: Borrowed(&[Subresource::Status, Subresource::Proxy]),
    type_name: Borrowed("io.k8s.api.core.v1.Node"),
    fields: |_, node| vec![("spec.unschedulable", unschedulable(node).to_string())],
    columns: Borrowed(&[
        NAME,
        text_column("Status", "Whether it is ready, and whether pods may be placed on it."),
        text_column("Roles", "Roles that its labels name."),
        AGE,
        text_column("Version", "Version of its kubelet."),
        wide("Internal-IP", "Its address inside."),
        wide("External-IP", "Its address outside."),
        wide("OS-Image", "Its operating system."),
        wide("Kernel-Version", "Its kernel."),
        wide("Container-Runtime", "What runs its containers."),
    ]),
    row: |_, node, now| {
        let info = |field| text(node, &["status", "nodeInfo", field]);
        let unknown = |text: &str| json!(if text.is_empty() { "<unknown>" } else { text });
        let (internal, external) = (or_none(address(node, "InternalIP")), or_none(address(node, "ExternalIP")));
        let head = [
            json!(name(node)),
            json!(status(node)),
            or_none(&roles(node)),
            age(node, now),
            json!(info("kubeletVersion")),
        ];
        let tail = [
            internal,
            external,
            unknown(info("osImage")),
            unknown(info("kernelVersion")),
            unknown(info("containerRuntimeVersion")),
        ];
        head.into_iter().chain(tail).collect()
    },
    defaults: |_, node| {
        if let Some(status) = inner(node, "status") {
            quantity::canonicalize_list(status.get_mut("capacity"));
            quantity::canonicalize_list(status.get_mut("allocatable"));
        }
    },
    // A node that registers brings its status with it.
    prepare_update: |_, new, old| workload::prepare_update(new, old),
    validate: |_, node, causes| {
        for taint in Field::root(node).dig(&["spec", "taints"]).items() {
            taint.get("key").need(causes, names::qualified);
            taint.get("value").check(causes, names::label_value);
            taint.get("effect").need_one_of(causes, &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
        }
    },
    validate_update: |_, new, old, causes| {
        let changed =
            |path: &[&str]| at(old, path).is_some_and(|v| v != "" && !v.is_null()) && at(old, path) != at(new, path);
        if changed(&["spec", "podCIDR"]) || changed(&["spec", "providerID"]) {
            causes.push(Cause::forbidden(
                "spec",
                "node updates may only change labels, taints, or capacity (or \
                configSource, if the DynamicKubeletConfig feature gate is enabled)",
            ));
        }
    },
    ..BASE
});

fn unschedulable(node: &Value) -> bool {
    at(node, &["spec", "unschedulable"]).and_then(Value::as_bool).unwrap_or(false)
}

fn status(node: &Value) -> String {
    let mut conditions = Field::root(node).dig(&["status", "conditions"]).items();
    let ready = match conditions.find(|c| c.get("type").text() == "Ready").map(|c| c.get("status").text()) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    if unschedulable(node) { format!("{ready},SchedulingDisabled") } else { ready.to_owned() }
}

fn roles(node: &Value) -> String {
    let mut roles: Vec<&str> = Field::root(node)
        .dig(&["metadata", "labels"])
        .entries()
        .filter_map(|(key, value)| match key {
            "kubernetes.io/role" => Some(value.text()),
            key => key.strip_prefix("node-role.kubernetes.io/"),
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    roles.join(",")
}

fn address<'a>(node: &'a Value, kind: &str) -> &'a str {
    let mut addresses = Field::root(node).dig(&["status", "addresses"]).items();
    addresses.find(|a| a.get("type").text() == kind).map(|a| a.get("address").text()).unwrap_or_default()
}
