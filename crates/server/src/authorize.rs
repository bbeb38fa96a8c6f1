//! Who may do what (X1). Until the RBAC kinds come: cluster administrators everything, a node what its kubelet
//! needs, service accounts discovery and questions about themselves.

use mainstay_api::{Status, object};
use serde_json::{Value, json};

use crate::api::Api;
use crate::auth::User;

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attributes {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`.
    pub verb: String,
    /// The resource's group.
    pub group: String,
    /// `pods`.
    pub resource: String,
    /// `log`, …
    pub subresource: String,
    /// Empty for all.
    pub namespace: String,
    /// Empty for all.
    pub name: String,
    /// For what is not a resource.
    pub path: String,
}

/// Paths that everybody who is somebody may read.
const DISCOVERY: [&str; 7] = ["/api", "/apis", "/openapi", "/version", "/healthz", "/livez", "/readyz"];

/// What a kubelet reads, wherever it is.
const NODE_READS: [(&str, &str); 14] = [
    ("", "namespaces"),
    ("", "serviceaccounts"),
    ("", "pods"),
    ("", "services"),
    ("", "nodes"),
    ("", "endpoints"),
    ("", "configmaps"),
    ("", "secrets"),
    ("", "persistentvolumes"),
    ("", "persistentvolumeclaims"),
    ("discovery.k8s.io", "endpointslices"),
    ("storage.k8s.io", "storageclasses"),
    ("snapshot.storage.k8s.io", "volumesnapshotcontents"),
    ("groupsnapshot.storage.k8s.io", "volumegroupsnapshotcontents"),
];

/// Whether the user may.
pub fn allows(api: &Api, user: &User, what: &Attributes) -> bool {
    if user.is_in("system:masters") {
        return true;
    }
    if !what.path.is_empty() {
        let is_discovery = DISCOVERY
            .iter()
            .any(|root| what.path == *root || what.path.strip_prefix(root).is_some_and(|rest| rest.starts_with('/')));
        return what.verb == "get" && is_discovery && !user.is_anonymous();
    }
    if user.is_anonymous() {
        return false;
    }
    if matches!(what.resource.as_str(), "selfsubjectaccessreviews" | "selfsubjectrulesreviews" | "selfsubjectreviews") {
        return what.verb == "create";
    }
    match user.name.strip_prefix("system:node:").filter(|_| user.is_in("system:nodes")) {
        Some(node) => allows_node(api, node, what),
        None => false,
    }
}

/// A node changes its own Node and Lease, the pods that are bound to it, volumes, and tells Events.
fn allows_node(api: &Api, node: &str, what: &Attributes) -> bool {
    let resource = (what.group.as_str(), what.resource.as_str());
    let reads = matches!(what.verb.as_str(), "get" | "list" | "watch");
    let writes = matches!(what.verb.as_str(), "create" | "update" | "patch");
    if reads && what.subresource.is_empty() && NODE_READS.contains(&resource) {
        return true;
    }
    match (resource, what.subresource.as_str()) {
        (("", "nodes"), "" | "status") => (writes && (what.name == node || what.name.is_empty())) || reads,
        (("coordination.k8s.io", "leases"), "") => {
            what.namespace == "kube-node-lease" && (reads || writes) && (what.name == node || what.name.is_empty())
        }
        (("", "pods"), "status") => writes && is_bound(api, node, &what.namespace, &what.name),
        (("", "pods"), "") => what.verb == "delete" && is_bound(api, node, &what.namespace, &what.name),
        (("", "persistentvolumes"), "" | "status")
        | (("", "persistentvolumeclaims"), "status")
        | (("snapshot.storage.k8s.io", "volumesnapshotcontents"), "" | "status")
        | (("groupsnapshot.storage.k8s.io", "volumegroupsnapshotcontents"), "" | "status") => {
            matches!(what.verb.as_str(), "patch" | "update")
        }
        (("", "events"), "") => writes,
        (("", "serviceaccounts"), "token") => what.verb == "create",
        (("authentication.k8s.io", "tokenreviews"), "") => what.verb == "create",
        _ => false,
    }
}

fn is_bound(api: &Api, node: &str, namespace: &str, name: &str) -> bool {
    let pod = api.batch().get(&mainstay_api::kinds::POD, namespace, name);
    // A pod that is gone is answered with 404, not with a refusal.
    pod.is_ok_and(|pod| pod.is_none_or(|pod| object::text(&pod, &["spec", "nodeName"]) == node))
}

/// 403 in upstream's words.
pub fn forbidden(user: &User, what: &Attributes) -> Status {
    if !what.path.is_empty() {
        let message = format!("forbidden: User {:?} cannot {} path {:?}", user.name, what.verb, what.path);
        return Status::new(403, "Forbidden", message);
    }
    let resource = if what.subresource.is_empty() {
        what.resource.clone()
    } else {
        format!("{}/{}", what.resource, what.subresource)
    };
    let grouped =
        if what.group.is_empty() { what.resource.clone() } else { format!("{}.{}", what.resource, what.group) };
    let about = if what.name.is_empty() { grouped } else { format!("{grouped} {:?}", what.name) };
    let scope = if what.namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {:?}", what.namespace)
    };
    let message = format!(
        "{about} is forbidden: User {:?} cannot {} resource {resource:?} in API group {:?} {scope}",
        user.name, what.verb, what.group
    );
    let mut status = Status::new(403, "Forbidden", message);
    let mut details = json!({ "kind": what.resource });
    for (field, value) in [("name", &what.name), ("group", &what.group)] {
        if !value.is_empty() {
            details[field] = Value::from(value.as_str());
        }
    }
    status.details = details;
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_in_upstreams_words() {
        let user = User { name: "system:serviceaccount:a:b".into(), groups: Vec::new(), uid: String::new() };
        let what = Attributes {
            verb: "get".into(),
            group: "apps".into(),
            resource: "statefulsets".into(),
            subresource: "scale".into(),
            namespace: "a".into(),
            name: "web".into(),
            path: String::new(),
        };
        assert_eq!(
            forbidden(&user, &what).message,
            r#"statefulsets.apps "web" is forbidden: User "system:serviceaccount:a:b" cannot get resource "statefulsets/scale" in API group "apps" in the namespace "a""#
        );
    }
}
