//! Who may do what (X1): cluster administrators everything, a node what its kubelet needs, and everybody what roles
//! and bindings give them.

pub mod escalation;
pub mod node;
pub mod policy;
pub mod rbac;
pub mod restriction;
pub mod rule;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mainstay_api::Status;
use mainstay_store::{ReadError, Store};
use serde_json::{Value, json};

use crate::auth::User;
use rule::Rule;

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
    /// The field selector of a list or a watch.
    pub fields: String,
    /// For what is not a resource.
    pub path: String,
}

/// The group that may do everything, whatever the roles say.
pub const MASTERS: &str = "system:masters";

/// Decides by the node's rules and by roles and bindings.
#[derive(Debug)]
pub struct Authorizer {
    index: Mutex<rbac::Index>,
    graph: Mutex<node::Graph>,
}

impl Authorizer {
    /// Over a store, which it follows from now on.
    pub fn new(store: &Store) -> Result<Self, ReadError> {
        Ok(Self { index: Mutex::new(rbac::Index::new(store)?), graph: Mutex::new(node::Graph::new(store)?) })
    }

    fn index(&self) -> MutexGuard<'_, rbac::Index> {
        let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
        index.catch_up();
        index
    }

    fn graph(&self) -> MutexGuard<'_, node::Graph> {
        let mut graph = self.graph.lock().unwrap_or_else(PoisonError::into_inner);
        graph.catch_up();
        graph
    }

    /// Whether a PersistentVolume is a node's business.
    pub fn owns_volume(&self, node: &str, volume: &Value) -> bool {
        node::owns_volume(&self.graph(), node, volume)
    }

    /// Whether the user may; else why not, where there is more to say than that nothing allows it.
    pub fn allows(&self, user: &User, what: &Attributes) -> Result<(), String> {
        self.decide(user, what, false).map(|_| ())
    }

    /// As [`Authorizer::allows`], with upstream's reason.
    pub fn explain(&self, user: &User, what: &Attributes) -> Result<String, String> {
        self.decide(user, what, true)
    }

    fn decide(&self, user: &User, what: &Attributes, explain: bool) -> Result<String, String> {
        if user.is_in(MASTERS) {
            return Ok(String::new());
        }
        let of_node = user.node().filter(|_| what.path.is_empty()).map(|node| self.graph().allows(node, what));
        if matches!(of_node, Some(Ok(()))) {
            return Ok(String::new());
        }
        // What the node's rules do not give, a role still may.
        let namespace = if what.path.is_empty() { what.namespace.as_str() } else { "" };
        let given = self.index().given(user, namespace);
        given.allows(what, explain).map_err(|why| match (of_node, why.as_str()) {
            (Some(Err(node)), "") => node,
            (Some(Err(node)), _) if !node.is_empty() => format!("{node}, {why}"),
            _ => why,
        })
    }

    /// Every rule that the user has in a namespace (`""`: those everywhere), role by role, and what of their roles is
    /// missing.
    pub fn rules(&self, user: &User, namespace: &str) -> (Vec<Arc<[Rule]>>, Vec<String>) {
        self.index().given(user, namespace).rules()
    }

    /// 403 in upstream's words, unless the user may.
    pub fn check(&self, user: &User, what: &Attributes) -> Result<(), Status> {
        self.allows(user, what).map_err(|reason| forbidden(user, what, &reason))
    }
}

/// 403 in upstream's words.
pub fn forbidden(user: &User, what: &Attributes, reason: &str) -> Status {
    let because = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    if !what.path.is_empty() {
        let message = format!("forbidden: User {:?} cannot {} path {:?}{because}", user.name, what.verb, what.path);
        let mut status = Status::new(403, "Forbidden", message);
        status.details = json!({});
        return status;
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
        "{about} is forbidden: User {:?} cannot {} resource {resource:?} in API group {:?} {scope}{because}",
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
        let user = User { name: "system:serviceaccount:a:b".into(), ..User::default() };
        let what = Attributes {
            verb: "get".into(),
            group: "apps".into(),
            resource: "statefulsets".into(),
            subresource: "scale".into(),
            namespace: "a".into(),
            name: "web".into(),
            ..Attributes::default()
        };
        assert_eq!(
            forbidden(&user, &what, "").message,
            r#"statefulsets.apps "web" is forbidden: User "system:serviceaccount:a:b" cannot get resource "statefulsets/scale" in API group "apps" in the namespace "a""#
        );
    }
}
