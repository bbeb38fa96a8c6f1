//! Roles and bindings, indexed by who is asked for: a request costs as much as its user has bindings, however many
//! there are of others.
//!
//! The index reads the store's watch whenever it is asked, so that it answers by the store's newest state: what a
//! binding gives is there with the answer to the request that made it (A5).

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use mainstay_api::{ObjectKey, object};
use mainstay_store::{ReadError, Store};
use serde::Deserialize;
use serde_json::Value;

use super::rule::Rule;
use super::{Attributes, User};
use crate::api::{Follower, News, codec};

/// The group of all four kinds.
pub const GROUP: &str = "rbac.authorization.k8s.io";
/// What the keys of all four kinds begin with.
const PREFIX: &str = "/rbac.authorization.k8s.io/";

/// One subject of one binding.
#[derive(Clone, Debug, PartialEq)]
struct Grant {
    /// The binding; its namespace is empty for a ClusterRoleBinding.
    binding: ObjectKey,
    /// The role; its namespace is empty for a ClusterRole.
    role: ObjectKey,
    /// The subject as messages name it: `Group "system:masters"`.
    subject: Arc<str>,
}

/// What one user or group was given.
#[derive(Debug, Default)]
struct Grants {
    everywhere: Vec<Arc<Grant>>,
    in_namespace: HashMap<Arc<str>, Vec<Arc<Grant>>>,
}

/// Whose name a subject is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Subject {
    User(String),
    Group(String),
}

/// Roles by name, grants by subject.
#[derive(Debug)]
pub struct Index {
    stored: Follower,
    roles: HashMap<ObjectKey, Arc<[Rule]>>,
    users: HashMap<String, Grants>,
    groups: HashMap<String, Grants>,
    /// What each binding gave, to take it away again.
    given: HashMap<ObjectKey, HashSet<Subject>>,
}

/// What a user was given, with the rules of each role that is there. Made under the index's lock, and looked through
/// outside of it: what somebody's rules take to read is nobody else's time (X7).
#[derive(Debug)]
pub struct Given(Vec<(Arc<Grant>, Option<Arc<[Rule]>>)>);

#[derive(Deserialize)]
struct OnlyRules {
    #[serde(default)]
    rules: Option<Vec<Rule>>,
}

impl Index {
    /// The index of what the store holds.
    pub fn new(store: &Store) -> Result<Self, ReadError> {
        let stored = Follower::new(store, PREFIX);
        let (roles, users, groups, given) = Default::default();
        let mut index = Self { stored, roles, users, groups, given };
        index.take_in()?;
        Ok(index)
    }

    /// Takes in what has happened since it was asked last.
    pub fn catch_up(&mut self) {
        if let Err(error) = self.take_in() {
            tracing::error!(%error, "roles and bindings could not be read again; nobody has any until they can");
            self.roles.clear();
        }
    }

    fn take_in(&mut self) -> Result<(), ReadError> {
        match self.stored.news()? {
            News::Changes(changes) => {
                changes.iter().for_each(|event| self.change(&event.key, (!event.deleted).then_some(&event.value[..])));
            }
            News::All(entries) => {
                self.roles.clear();
                self.users.clear();
                self.groups.clear();
                self.given.clear();
                entries.iter().for_each(|entry| self.change(&entry.key, Some(&entry.value)));
            }
        }
        Ok(())
    }

    fn change(&mut self, key: &[u8], value: Option<&[u8]>) {
        let Some(key) = std::str::from_utf8(key).ok().and_then(|key| key.strip_prefix(PREFIX)) else { return };
        let mut segments = key.splitn(3, '/');
        let (Some(plural), Some(namespace), Some(name)) = (segments.next(), segments.next(), segments.next()) else {
            return;
        };
        let key = ObjectKey::new(namespace, name);
        match plural {
            "clusterroles" | "roles" => {
                // A10: a role that cannot be read gives nothing.
                match value.map(serde_json::from_slice::<OnlyRules>) {
                    Some(Ok(role)) => {
                        self.roles.insert(key, role.rules.unwrap_or_default().into());
                    }
                    Some(Err(error)) => {
                        tracing::error!(%key, %error, "a stored role does not decode; it gives nothing");
                        self.roles.remove(&key);
                    }
                    None => {
                        self.roles.remove(&key);
                    }
                }
            }
            "clusterrolebindings" | "rolebindings" => {
                self.take(&key);
                match value.map(codec::decode) {
                    Some(Ok(binding)) => self.give(key, &binding),
                    Some(Err(status)) => {
                        tracing::error!(%key, error = %status.message,
                            "a stored binding does not decode; it gives nothing");
                    }
                    None => {}
                }
            }
            _ => {}
        }
    }

    fn give(&mut self, binding: ObjectKey, value: &Value) {
        let role = object::text(value, &["roleRef", "name"]);
        let role = match object::text(value, &["roleRef", "kind"]) {
            "Role" => ObjectKey::new(binding.namespace.clone(), role),
            _ => ObjectKey::new("", role),
        };
        let mut given = HashSet::new();
        for subject in value.get("subjects").and_then(Value::as_array).into_iter().flatten() {
            let Some((subject, words)) = read_subject(subject, &binding.namespace) else { continue };
            // Who is named many times has it once.
            if !given.insert(subject.clone()) {
                continue;
            }
            let grant = Arc::new(Grant { binding: binding.clone(), role: role.clone(), subject: words.into() });
            let grants = match &subject {
                Subject::User(name) => self.users.entry(name.clone()).or_default(),
                Subject::Group(name) => self.groups.entry(name.clone()).or_default(),
            };
            if binding.namespace.is_empty() {
                grants.everywhere.push(grant);
            } else {
                grants.in_namespace.entry(binding.namespace.clone()).or_default().push(grant);
            }
        }
        self.given.insert(binding, given);
    }

    fn take(&mut self, binding: &ObjectKey) {
        for subject in self.given.remove(binding).unwrap_or_default() {
            let (map, name) = match &subject {
                Subject::User(name) => (&mut self.users, name),
                Subject::Group(name) => (&mut self.groups, name),
            };
            let Some(grants) = map.get_mut(name) else { continue };
            grants.everywhere.retain(|grant| grant.binding != *binding);
            if let Some(own) = grants.in_namespace.get_mut(&binding.namespace) {
                own.retain(|grant| grant.binding != *binding);
                if own.is_empty() {
                    grants.in_namespace.remove(&binding.namespace);
                }
            }
            if grants.everywhere.is_empty() && grants.in_namespace.is_empty() {
                map.remove(name);
            }
        }
    }

    /// What the user was given everywhere, then in the namespace (`""`: nothing more).
    pub fn given(&self, user: &User, namespace: &str) -> Given {
        let of_user = self.users.get(&user.name);
        let all = || of_user.into_iter().chain(user.groups.iter().filter_map(|group| self.groups.get(group)));
        let everywhere = all().flat_map(|grants| &grants.everywhere);
        let local = all().filter_map(|grants| grants.in_namespace.get(namespace)).flatten();
        let with_rules = |grant: &Arc<Grant>| (grant.clone(), self.roles.get(&grant.role).cloned());
        Given(everywhere.chain(local).map(with_rules).collect())
    }
}

impl Given {
    /// Whether a role allows it: `Ok` with upstream's reason where `explain`, else why nothing was found where that is
    /// worth telling (a role that is bound and not there), or `""`.
    pub fn allows(&self, what: &Attributes, explain: bool) -> Result<String, String> {
        let mut errors = Vec::new();
        for (grant, rules) in &self.0 {
            match rules {
                Some(rules) if rules.iter().any(|rule| rule.allows(what)) => {
                    return Ok(if explain { format!("RBAC: allowed by {}", grant.in_words()) } else { String::new() });
                }
                Some(_) => {}
                None => errors.push(grant.missing_role()),
            }
        }
        Err(match errors.as_slice() {
            [] => String::new(),
            [one] => format!("RBAC: {one}"),
            all => format!("RBAC: [{}]", all.join(", ")),
        })
    }

    /// Every rule, role by role, and what of the roles is missing.
    pub fn rules(self) -> (Vec<Arc<[Rule]>>, Vec<String>) {
        let (mut rules, mut errors) = (Vec::new(), Vec::new());
        for (grant, found) in self.0 {
            match found {
                Some(found) => rules.push(found),
                None => errors.push(grant.missing_role()),
            }
        }
        (rules, errors)
    }
}

impl Grant {
    fn in_words(&self) -> String {
        let role_kind = if self.role.namespace.is_empty() { "ClusterRole" } else { "Role" };
        let (kind, name) = if self.binding.namespace.is_empty() {
            ("ClusterRoleBinding", self.binding.name.to_string())
        } else {
            ("RoleBinding", format!("{}/{}", self.binding.name, self.binding.namespace))
        };
        format!("{kind} {name:?} of {role_kind} {:?} to {}", &*self.role.name, self.subject)
    }

    fn missing_role(&self) -> String {
        let kind = if self.role.namespace.is_empty() { "clusterrole" } else { "role" };
        format!("{kind}.{GROUP} {:?} not found", &*self.role.name)
    }
}

/// Who a subject is, and how messages name it. A service account is the user of its name.
fn read_subject(subject: &Value, namespace: &str) -> Option<(Subject, String)> {
    let name = object::text(subject, &["name"]);
    Some(match object::text(subject, &["kind"]) {
        "User" => (Subject::User(name.to_owned()), format!("User {name:?}")),
        "Group" => (Subject::Group(name.to_owned()), format!("Group {name:?}")),
        "ServiceAccount" => {
            let namespace =
                Some(object::text(subject, &["namespace"])).filter(|own| !own.is_empty()).unwrap_or(namespace);
            if namespace.is_empty() {
                return None;
            }
            let user = format!("system:serviceaccount:{namespace}:{name}");
            (Subject::User(user), format!("ServiceAccount {:?}", format!("{name}/{namespace}")))
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn x7_a_subject_that_is_named_many_times_has_it_once_and_loses_it_once() {
        let disk = mainstay_store::Source::backend(redb::backends::InMemoryBackend::new());
        let store = Store::open(disk, mainstay_store::Options::inline()).expect("a store");
        let mut index = Index::new(&store).expect("an index");
        let subjects = vec![json!({ "kind": "User", "name": "jane" }); 20_000];
        let binding = json!({ "metadata": { "namespace": "a", "name": "b" }, "subjects": subjects,
            "roleRef": { "kind": "Role", "name": "r" } });
        let role = json!({ "rules": [{ "verbs": ["get"], "apiGroups": [""], "resources": ["pods"] }] });
        let key = b"/rbac.authorization.k8s.io/rolebindings/a/b";
        index.change(b"/rbac.authorization.k8s.io/roles/a/r", Some(role.to_string().as_bytes()));
        let user = User { name: "jane".into(), ..User::default() };
        let what = Attributes { verb: "get".into(), resource: "pods".into(), ..Attributes::default() };
        for _ in 0..2 {
            index.change(key, Some(binding.to_string().as_bytes()));
            assert_eq!(index.given(&user, "a").0.len(), 1);
        }
        // What was given is looked through without the index.
        let given = index.given(&user, "a");
        index.change(key, None);
        assert!(given.allows(&what, false).is_ok() && index.given(&user, "a").allows(&what, false).is_err());
        assert!(index.users.is_empty() && index.given.is_empty());
    }
}
