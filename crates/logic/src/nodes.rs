//! What decisions ask of a node.

use k8s_openapi::api::core::v1::Node;

/// The namespace of node leases.
pub const LEASES: &str = "kube-node-lease";

/// On a Node: which machine it is. Two machines of one name would both run the pods of it, so it changes only from
/// none.
pub const MACHINE: &str = "mainstay.io/machine";

/// Condition Ready is True.
pub fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
