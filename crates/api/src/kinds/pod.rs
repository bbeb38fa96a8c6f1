//! Pod.

use serde_json::Value;

use super::{BASE, Kind, Subresource};
use crate::object::{at, text};

/// The row of Pod.
pub static POD: Kind = Kind {
    kind: "Pod",
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    categories: &["all"],
    subresources: &[
        Subresource::Status,
        Subresource::Binding,
        Subresource::Eviction,
        Subresource::Log,
        Subresource::Exec,
        Subresource::Attach,
        Subresource::PortForward,
        Subresource::Resize,
        Subresource::EphemeralContainers,
    ],
    type_name: "io.k8s.api.core.v1.Pod",
    fields: |pod| {
        let host_network = at(pod, &["spec", "hostNetwork"]).and_then(Value::as_bool).unwrap_or(false);
        vec![
            ("spec.nodeName", text(pod, &["spec", "nodeName"]).to_owned()),
            ("spec.restartPolicy", text(pod, &["spec", "restartPolicy"]).to_owned()),
            ("spec.schedulerName", text(pod, &["spec", "schedulerName"]).to_owned()),
            ("spec.serviceAccountName", text(pod, &["spec", "serviceAccountName"]).to_owned()),
            ("spec.hostNetwork", host_network.to_string()),
            ("status.phase", text(pod, &["status", "phase"]).to_owned()),
            ("status.podIP", text(pod, &["status", "podIP"]).to_owned()),
            ("status.nominatedNodeName", text(pod, &["status", "nominatedNodeName"]).to_owned()),
        ]
    },
    ..BASE
};
