//! Which requests are recorded, and how much of them: an `audit.k8s.io/v1` Policy.

use serde::Deserialize;

use crate::auth::User;
use crate::authorize::Attributes;

/// How much is recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Level {
    /// Nothing.
    #[default]
    None,
    /// Who asked for what, and what the answer was.
    Metadata,
    /// And the request's body.
    Request,
    /// And the answer's.
    RequestResponse,
}

impl Level {
    /// As events spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }
}

/// A moment of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Stage {
    /// Before anything else is done.
    RequestReceived,
    /// The head of a long answer (a watch) was sent.
    ResponseStarted,
    /// All of the answer was made.
    ResponseComplete,
    /// The server failed.
    Panic,
}

impl Stage {
    /// As events spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }
}

/// The policy's file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Policy {
    api_version: String,
    kind: String,
    metadata: serde_json::Value,
    rules: Vec<Rule>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Rule {
    level: Level,
    users: Vec<String>,
    user_groups: Vec<String>,
    verbs: Vec<String>,
    resources: Vec<Resources>,
    namespaces: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    urls: Vec<String>,
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Resources {
    group: String,
    resources: Vec<String>,
    resource_names: Vec<String>,
}

/// What the policy says of one request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// How much is recorded.
    pub level: Level,
    /// What is not.
    pub omitted: Vec<Stage>,
    /// Whether `managedFields` are left out of bodies.
    pub omit_managed_fields: bool,
}

impl Policy {
    /// Whether it is of the version and kind that is known here.
    pub fn is_known(&self) -> bool {
        self.api_version == "audit.k8s.io/v1" && self.kind == "Policy"
    }

    /// The first rule that fits decides; where none does, nothing is recorded.
    pub fn judge(&self, user: &User, what: &Attributes) -> Verdict {
        let Some(rule) = self.rules.iter().find(|rule| rule.fits(user, what)) else { return Verdict::default() };
        let mut omitted = self.omit_stages.clone();
        omitted.extend(rule.omit_stages.iter().copied());
        let omit_managed_fields = rule.omit_managed_fields.unwrap_or(self.omit_managed_fields);
        Verdict { level: rule.level, omitted, omit_managed_fields }
    }
}

fn any(list: &[String], wanted: &str) -> bool {
    list.is_empty() || list.iter().any(|entry| entry == wanted)
}

impl Rule {
    fn fits(&self, user: &User, what: &Attributes) -> bool {
        let in_group = || self.user_groups.is_empty() || self.user_groups.iter().any(|group| user.is_in(group));
        if !any(&self.users, &user.name) || !in_group() || !any(&self.verbs, &what.verb) {
            return false;
        }
        if what.path.is_empty() {
            if !self.urls.is_empty() && self.resources.is_empty() {
                return false;
            }
            return any(&self.namespaces, &what.namespace)
                && (self.resources.is_empty() || self.resources.iter().any(|resources| resources.fit(what)));
        }
        if !self.resources.is_empty() || !self.namespaces.is_empty() {
            return false;
        }
        let fits = |url: &String| {
            url == "*" || *url == what.path || url.strip_suffix('*').is_some_and(|prefix| what.path.starts_with(prefix))
        };
        self.urls.is_empty() || self.urls.iter().any(fits)
    }
}

impl Resources {
    fn fit(&self, what: &Attributes) -> bool {
        if self.group != what.group {
            return false;
        }
        let fits = |resource: &String| match resource.split_once('/') {
            _ if resource == "*" => true,
            Some(("*", subresource)) => subresource == what.subresource,
            Some((resource, "*")) => resource == what.resource,
            Some((resource, subresource)) => resource == what.resource && subresource == what.subresource,
            None => *resource == what.resource && what.subresource.is_empty(),
        };
        (self.resources.is_empty() || self.resources.iter().any(fits)) && any(&self.resource_names, &what.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x2_the_first_rule_that_fits_says_how_much_is_recorded() {
        let policy: Policy = serde_json::from_value(serde_json::json!({
            "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
            "rules": [
                { "level": "None", "users": ["system:kube-proxy"], "verbs": ["watch"] },
                { "level": "Metadata", "resources": [{ "group": "", "resources": ["secrets", "configmaps"] }] },
                { "level": "Request", "namespaces": ["prod"], "resources": [{ "group": "", "resources": ["pods/*"] }] },
                { "level": "None", "nonResourceURLs": ["/healthz*"] },
                { "level": "RequestResponse", "userGroups": ["dev"], "omitStages": ["ResponseStarted"] },
            ],
        }))
        .expect("a policy");
        assert!(policy.is_known());
        let level = |name: &str, groups: &[&str], verb: &str, resource: &str, namespace: &str, path: &str| {
            let user =
                User { name: name.into(), groups: groups.iter().map(|g| (*g).into()).collect(), ..User::default() };
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let what = Attributes {
                verb: verb.into(),
                resource: resource.into(),
                subresource: subresource.into(),
                namespace: namespace.into(),
                path: path.into(),
                ..Attributes::default()
            };
            policy.judge(&user, &what).level
        };
        assert_eq!(level("system:kube-proxy", &[], "watch", "secrets", "a", ""), Level::None);
        assert_eq!(level("jane", &["dev"], "get", "secrets", "a", ""), Level::Metadata);
        assert_eq!(level("jane", &["dev"], "create", "pods/exec", "prod", ""), Level::Request);
        assert_eq!(level("jane", &["dev"], "create", "pods/exec", "test", ""), Level::RequestResponse);
        assert_eq!(level("jane", &["dev"], "get", "", "", "/healthz/ping"), Level::None);
        assert_eq!(level("jane", &["dev"], "get", "", "", "/api"), Level::RequestResponse);
        assert_eq!(level("bob", &[], "get", "pods", "prod", ""), Level::Request);
        assert_eq!(level("bob", &[], "get", "nodes", "", ""), Level::None);
        let wrong = serde_json::json!({ "rules": [{ "level": "Everything" }] });
        assert!(serde_json::from_value::<Policy>(wrong).is_err());
    }
}
