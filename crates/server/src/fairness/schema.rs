//! FlowSchemas and PriorityLevelConfigurations: which requests belong together, and how many of them at a time.

use http::HeaderValue;
use mainstay_api::object;
use serde_json::Value;

use crate::auth::{ServiceAccountName, User};
use crate::authorize::Attributes;

/// A level, as configured.
#[derive(Clone, Debug, PartialEq)]
pub struct Level {
    /// Its name.
    pub name: String,
    /// `None` for one without limits.
    pub limited: Option<Limited>,
    /// Its uid, where it is stored.
    pub uid: Option<HeaderValue>,
}

/// The limits of a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limited {
    /// Its part of all seats, against the others'.
    pub shares: u32,
    /// How many requests of one flow may wait; 0 refuses at once.
    pub flow: usize,
    /// How many may wait in all.
    pub total: usize,
}

/// A schema, as configured.
#[derive(Clone, Debug, PartialEq)]
pub struct Schema {
    /// Its name.
    pub name: String,
    /// The level of its requests.
    pub level: String,
    /// The smallest decides first.
    pub precedence: i64,
    /// `ByUser`, `ByNamespace`, or empty for one flow.
    pub distinguisher: String,
    /// Its uid, where it is stored.
    pub uid: Option<HeaderValue>,
    rules: Vec<Value>,
}

impl Level {
    /// Reads a PriorityLevelConfiguration.
    pub fn read(object: &Value) -> Self {
        let spec = object.get("spec").cloned().unwrap_or_default();
        let number = |path: &[&str], default: i64| object::at(&spec, path).and_then(Value::as_i64).unwrap_or(default);
        let limited = (object::text(&spec, &["type"]) != "Exempt").then(|| {
            let queuing = ["limited", "limitResponse", "queuing"];
            let of = |field, default| {
                usize::try_from(number(&[queuing[0], queuing[1], queuing[2], field], default)).unwrap_or(0)
            };
            let queues = object::text(&spec, &["limited", "limitResponse", "type"]) == "Queue";
            let length = if queues { of("queueLengthLimit", 50) } else { 0 };
            let shares = u32::try_from(number(&["limited", "nominalConcurrencyShares"], 30)).unwrap_or(0);
            Limited { shares, flow: length, total: length.saturating_mul(of("queues", 64)) }
        });
        Self { name: object::name(object).to_owned(), limited, uid: uid(object) }
    }
}

impl Schema {
    /// Reads a FlowSchema.
    pub fn read(object: &Value) -> Self {
        Self {
            name: object::name(object).to_owned(),
            level: object::text(object, &["spec", "priorityLevelConfiguration", "name"]).to_owned(),
            precedence: object::at(object, &["spec", "matchingPrecedence"]).and_then(Value::as_i64).unwrap_or(1000),
            distinguisher: object::text(object, &["spec", "distinguisherMethod", "type"]).to_owned(),
            uid: uid(object),
            rules: object::at(object, &["spec", "rules"]).and_then(Value::as_array).cloned().unwrap_or_default(),
        }
    }

    /// Whether the request is one of these.
    pub fn fits(&self, user: &User, what: &Attributes) -> bool {
        fn list<'a>(rule: &'a Value, field: &str) -> &'a [Value] {
            rule.get(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
        }
        self.rules.iter().any(|rule| {
            let field = if what.path.is_empty() { "resourceRules" } else { "nonResourceRules" };
            list(rule, "subjects").iter().any(|subject| is_subject(subject, user))
                && list(rule, field).iter().any(|rule| fits_rule(rule, what))
        })
    }

    /// Which of the schema's flows the request belongs to.
    pub fn flow(&self, user: &User, what: &Attributes) -> String {
        match self.distinguisher.as_str() {
            "ByUser" => format!("{}/{}", self.name, user.name),
            "ByNamespace" => format!("{}/{}", self.name, what.namespace),
            _ => self.name.clone(),
        }
    }
}

fn uid(object: &Value) -> Option<HeaderValue> {
    let uid = object::text(object, &["metadata", "uid"]);
    HeaderValue::from_str(uid).ok().filter(|uid| !uid.is_empty())
}

fn is_subject(subject: &Value, user: &User) -> bool {
    match object::text(subject, &["kind"]) {
        "User" => matches!(object::text(subject, &["user", "name"]), name if name == "*" || name == user.name),
        "Group" => matches!(object::text(subject, &["group", "name"]), name if name == "*" || user.is_in(name)),
        "ServiceAccount" => ServiceAccountName::of(&user.name).is_some_and(|account| {
            let name = object::text(subject, &["serviceAccount", "name"]);
            object::text(subject, &["serviceAccount", "namespace"]) == account.namespace
                && (name == "*" || name == account.name)
        }),
        _ => false,
    }
}

fn fits_rule(rule: &Value, what: &Attributes) -> bool {
    let has = |field: &str, wanted: &str| {
        let all = rule.get(field).and_then(Value::as_array).into_iter().flatten();
        all.filter_map(Value::as_str).any(|entry| entry == "*" || entry == wanted)
    };
    if !has("verbs", &what.verb) {
        return false;
    }
    if !what.path.is_empty() {
        let urls = rule.get("nonResourceURLs").and_then(Value::as_array).into_iter().flatten();
        return urls
            .filter_map(Value::as_str)
            .any(|url| url == what.path || url.strip_suffix('*').is_some_and(|prefix| what.path.starts_with(prefix)));
    }
    let resource = match what.subresource.as_str() {
        "" => what.resource.clone(),
        subresource => format!("{}/{subresource}", what.resource),
    };
    let in_scope = match what.namespace.as_str() {
        "" => rule.get("clusterScope").and_then(Value::as_bool) == Some(true),
        namespace => has("namespaces", namespace),
    };
    in_scope && has("apiGroups", &what.group) && has("resources", &resource)
}

#[cfg(test)]
mod tests {
    use mainstay_api::Kind;
    use mainstay_api::flows::defaults;
    use mainstay_api::kinds::{FLOW_SCHEMA, PRIORITY_LEVEL_CONFIGURATION};

    use super::*;

    #[test]
    fn x7_every_request_has_its_flow() {
        let of =
            |kind: &'static Kind| defaults().iter().filter(move |made| made.kind == *kind).map(|made| &made.object);
        let levels: Vec<Level> = of(&PRIORITY_LEVEL_CONFIGURATION).map(Level::read).collect();
        let mut schemas: Vec<Schema> = of(&FLOW_SCHEMA).map(Schema::read).collect();
        schemas.sort_by_key(|schema| schema.precedence);
        for schema in &schemas {
            assert!(levels.iter().any(|level| level.name == schema.level), "{}", schema.name);
        }
        let of = |name: &str, groups: &[&str], group: &str, resource: &str, namespace: &str| {
            let mut groups: Vec<String> = groups.iter().map(|group| (*group).to_owned()).collect();
            groups.push("system:authenticated".to_owned());
            let user = User { name: name.into(), groups, ..User::default() };
            let what = Attributes {
                verb: "get".into(),
                group: group.into(),
                resource: resource.into(),
                namespace: namespace.into(),
                ..Attributes::default()
            };
            schemas.iter().find(|schema| schema.fits(&user, &what)).map_or("", |schema| schema.name.as_str()).to_owned()
        };
        assert_eq!(of("admin", &["system:masters"], "", "pods", "a"), "exempt");
        assert_eq!(of("system:node:n", &["system:nodes"], "", "nodes", ""), "system-node-high");
        assert_eq!(
            of("system:node:n", &["system:nodes"], "coordination.k8s.io", "leases", "kube-node-lease"),
            "system-node-high"
        );
        assert_eq!(of("system:node:n", &["system:nodes"], "", "pods", ""), "system-nodes");
        assert_eq!(
            of("system:serviceaccount:kube-system:x", &["system:serviceaccounts"], "", "pods", "a"),
            "kube-system-service-accounts"
        );
        assert_eq!(of("system:serviceaccount:a:x", &["system:serviceaccounts"], "", "pods", "a"), "service-accounts");
        assert_eq!(of("jane", &[], "", "nodes", ""), "global-default");
        let catch_all = levels.iter().find(|level| level.name == "catch-all").and_then(|level| level.limited);
        assert_eq!(catch_all, Some(Limited { shares: 5, flow: 0, total: 0 }));
    }
}
