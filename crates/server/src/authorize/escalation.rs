//! Nobody gives what they do not have: the checks on writes of roles and bindings.
//!
//! As upstream: who writes a role must hold all of its rules there, or may `escalate` it; who writes a binding must
//! hold the rules of its role, or may `bind` it. `system:masters` may both. The check is part of the write, so that it
//! is made for creates, updates, patches and applies alike.

use std::sync::Arc;

use mainstay_api::status::Cause;
use mainstay_api::{Kind, ObjectKey, Status, kinds, object};
use serde_json::Value;

use super::rbac::GROUP;
use super::rule::{MAX_TOLD, Rule, TooMuch, missing, quoted};
use super::{Attributes, Authorizer, MASTERS, forbidden};
use crate::api::Batch;
use crate::audit::Record;
use crate::auth::User;

/// Who makes a request, and who knows what they may.
#[derive(Clone)]
pub struct Requester {
    /// The user, after impersonation.
    pub user: Arc<User>,
    /// The server's.
    pub authorizer: Arc<Authorizer>,
    /// Where the request is recorded, if it is.
    pub record: Option<Arc<Record>>,
}

impl Requester {
    /// 403 unless they also may do this, which the request's own verb does not say.
    pub fn check(&self, what: &Attributes) -> Result<(), Status> {
        self.authorizer.allows(&self.user, what).map_err(|reason| {
            if let Some(record) = &self.record {
                record.decision(false, &reason);
            }
            forbidden(&self.user, what, &reason)
        })
    }
}

/// Refuses a role or binding that gives more than its writer has. `old` is the stored object of an update.
pub fn check(batch: &mut Batch<'_>, kind: &Kind, new: &Value, old: Option<&Value>) -> Result<(), Status> {
    if kind.group != GROUP {
        return Ok(());
    }
    let Some(requester) = batch.requester.clone() else { return Ok(()) };
    if requester.user.is_in(MASTERS) || old.is_some_and(|old| changes_only_what_collects(new, old)) {
        return Ok(());
    }
    match &*kind.plural {
        "roles" | "clusterroles" => check_role(&requester, kind, new, old),
        "rolebindings" | "clusterrolebindings" => check_binding(batch, &requester, kind, new),
        _ => Ok(()),
    }
}

/// The garbage collector's and finalizers' fields alone.
fn changes_only_what_collects(new: &Value, old: &Value) -> bool {
    let bare = |value: &Value| {
        let mut value = value.clone();
        let metadata = object::ensure(&mut value, &["metadata"]);
        for field in ["ownerReferences", "finalizers", "managedFields", "resourceVersion"] {
            metadata.remove(field);
        }
        value
    };
    bare(new) == bare(old)
}

fn check_role(requester: &Requester, kind: &Kind, new: &Value, old: Option<&Value>) -> Result<(), Status> {
    let (name, namespace) = (object::name(new), object::namespace(new));
    if may(requester, "escalate", &kind.plural, namespace, name) {
        return Ok(());
    }
    let rules: Vec<Rule> =
        new.get("rules").and_then(|rules| serde_json::from_value(rules.clone()).ok()).unwrap_or_default();
    holds(requester, (kind, name), namespace, &rules)?;
    let aggregates = |role: &Value| role.get("aggregationRule").is_some_and(|rule| !rule.is_null());
    if aggregates(new) || old.is_some_and(aggregates) {
        let all = || vec!["*".to_owned()];
        let everything = [
            Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() },
            Rule { verbs: all(), urls: all(), ..Rule::default() },
        ];
        if holds(requester, (kind, name), "", &everything).is_err() {
            return Err(Status::forbidden(kind, name, "must have cluster-admin privileges to use the aggregationRule"));
        }
    }
    Ok(())
}

fn check_binding(batch: &mut Batch<'_>, requester: &Requester, kind: &Kind, new: &Value) -> Result<(), Status> {
    let namespace = object::namespace(new);
    let role = object::text(new, &["roleRef", "name"]);
    let is_local = object::text(new, &["roleRef", "kind"]) == "Role";
    let plural = if is_local { "roles" } else { "clusterroles" };
    if may(requester, "bind", plural, namespace, role) {
        return Ok(());
    }
    let (role_kind, key) = if is_local {
        (&kinds::ROLE, ObjectKey::new(namespace, role))
    } else {
        (&kinds::CLUSTER_ROLE, ObjectKey::new("", role))
    };
    let stored = batch.must_get(role_kind, &key.namespace, role)?;
    // What the role says when the binding is written is what its writer must hold.
    batch.hold(role_kind, &key.namespace, role);
    let rules: Vec<Rule> =
        stored.get("rules").and_then(|rules| serde_json::from_value(rules.clone()).ok()).unwrap_or_default();
    holds(requester, (kind, object::name(new)), namespace, &rules)
}

fn may(requester: &Requester, verb: &str, plural: &str, namespace: &str, name: &str) -> bool {
    let what = Attributes {
        verb: verb.to_owned(),
        group: GROUP.to_owned(),
        resource: plural.to_owned(),
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        ..Attributes::default()
    };
    requester.authorizer.allows(&requester.user, &what).is_ok()
}

/// Whether the requester has all these rules in a namespace; else 403 in upstream's words for the role or binding, or
/// 422 where the rules stand for too much to be compared.
fn holds(requester: &Requester, of: (&Kind, &str), namespace: &str, rules: &[Rule]) -> Result<(), Status> {
    let (kind, name) = of;
    let (own, errors) = requester.authorizer.rules(&requester.user, namespace);
    let own: Vec<&Rule> = own.iter().flat_map(|rules| rules.iter()).collect();
    let lacks = missing(&own, rules, MAX_TOLD).map_err(|TooMuch| {
        let cause = Cause::invalid("rules", "", "the rules stand for too many permissions to be compared");
        Status::invalid(kind, name, &[cause])
    })?;
    if lacks.is_empty() {
        return Ok(());
    }
    let mut words: Vec<String> = lacks.iter().map(Rule::in_words).collect();
    words.sort();
    let mut why = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        requester.user.name,
        quoted(&requester.user.groups),
        words.join("\n")
    );
    if !errors.is_empty() {
        why.push_str(&format!("; resolution errors: [{}]", errors.join(" ")));
    }
    Err(Status::forbidden(kind, name, &why))
}
