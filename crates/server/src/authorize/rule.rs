//! One PolicyRule: what it allows, what it covers of another, and how it is written in a message.

use serde::{Deserialize, Serialize};

use super::Attributes;

/// `rbac.authorization.k8s.io/v1` PolicyRule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    /// `get`, …, or `*`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub verbs: Vec<String>,
    /// `""` is the core group; `*` all.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "list")]
    pub api_groups: Vec<String>,
    /// `pods`, `pods/log`, `*/scale`, `*`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "list")]
    pub resources: Vec<String>,
    /// Empty for all.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "list")]
    pub resource_names: Vec<String>,
    /// `/healthz`, `/apis/*`, `*`.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "list", rename = "nonResourceURLs")]
    pub urls: Vec<String>,
}

/// Null is no entries.
fn list<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn has(list: &[String], wanted: &str) -> bool {
    list.iter().any(|entry| entry == wanted)
}

fn has_or_star(list: &[String], wanted: &str) -> bool {
    list.iter().any(|entry| entry == "*" || entry == wanted)
}

/// Whether a rule's path is the asked one, or its beginning up to a trailing `*`.
fn covers_url(own: &str, asked: &str) -> bool {
    own == "*" || own == asked || own.strip_suffix('*').is_some_and(|prefix| asked.starts_with(prefix))
}

/// Whether a rule's resource is the asked one: `*`, the same, or `*/<the subresource>`.
fn covers_resource(own: &str, resource: &str, subresource: &str) -> bool {
    if own == "*" {
        return true;
    }
    if subresource.is_empty() {
        return own == resource;
    }
    own.strip_suffix(subresource)
        .and_then(|rest| rest.strip_suffix('/'))
        .is_some_and(|rest| rest == resource || rest == "*")
}

impl Rule {
    /// Whether the rule allows it.
    pub fn allows(&self, what: &Attributes) -> bool {
        if !has_or_star(&self.verbs, &what.verb) {
            return false;
        }
        if !what.path.is_empty() {
            return self.urls.iter().any(|url| covers_url(url, &what.path));
        }
        has_or_star(&self.api_groups, &what.group)
            && self.resources.iter().any(|own| covers_resource(own, &what.resource, &what.subresource))
            && (self.resource_names.is_empty() || has(&self.resource_names, &what.name))
    }

    /// The rule as rules of one verb each, of one group and resource (with at most one name) or of one path.
    fn atoms(&self) -> Vec<Self> {
        let mut atoms = Vec::new();
        let one = |text: &String| vec![text.clone()];
        for group in &self.api_groups {
            for resource in &self.resources {
                for verb in &self.verbs {
                    let atom =
                        Self { verbs: one(verb), api_groups: one(group), resources: one(resource), ..Self::default() };
                    if self.resource_names.is_empty() {
                        atoms.push(atom);
                    } else {
                        let named = self.resource_names.iter();
                        atoms.extend(named.map(|name| Self { resource_names: one(name), ..atom.clone() }));
                    }
                }
            }
        }
        for url in &self.urls {
            atoms.extend(self.verbs.iter().map(|verb| Self { verbs: one(verb), urls: one(url), ..Self::default() }));
        }
        atoms
    }

    /// Whether everything that an atom allows is allowed by this rule.
    fn covers(&self, atom: &Self) -> bool {
        let all = |own: &[String], asked: &[String]| asked.iter().all(|asked| has_or_star(own, asked));
        all(&self.verbs, &atom.verbs)
            && all(&self.api_groups, &atom.api_groups)
            && atom.resources.iter().all(|asked| {
                let (resource, subresource) = asked.split_once('/').unwrap_or((asked, ""));
                self.resources.iter().any(|own| covers_resource(own, resource, subresource))
            })
            && atom.urls.iter().all(|asked| self.urls.iter().any(|own| covers_url(own, asked)))
            && (self.resource_names.is_empty()
                || !atom.resource_names.is_empty()
                    && atom.resource_names.iter().all(|asked| has(&self.resource_names, asked)))
    }

    /// The rule in a message: `{APIGroups:[""], Resources:["pods"], Verbs:["get" "list"]}`.
    pub fn in_words(&self) -> String {
        let parts = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.urls),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ];
        let parts: Vec<String> = parts
            .iter()
            .filter(|(_, list)| !list.is_empty())
            .map(|(name, list)| format!("{name}:{}", quoted(list)))
            .collect();
        format!("{{{}}}", parts.join(", "))
    }
}

/// `["a" "b"]`.
pub fn quoted(list: &[String]) -> String {
    format!("[{}]", list.iter().map(|text| format!("{text:?}")).collect::<Vec<_>>().join(" "))
}

/// What of `asked` no rule of `own` covers, brought together again by group, resource and name; empty when all is.
pub fn missing(own: &[&Rule], asked: &[Rule]) -> Vec<Rule> {
    let atoms = asked.iter().flat_map(Rule::atoms).filter(|atom| !own.iter().any(|rule| rule.covers(atom)));
    let mut together: Vec<Rule> = Vec::new();
    for atom in atoms {
        let same = together.iter_mut().find(|rule| {
            (&rule.api_groups, &rule.resources, &rule.resource_names, &rule.urls)
                == (&atom.api_groups, &atom.resources, &atom.resource_names, &atom.urls)
        });
        match same {
            Some(rule) => {
                rule.verbs.extend(atom.verbs.into_iter().filter(|verb| !has(&rule.verbs, verb)).collect::<Vec<_>>())
            }
            None => together.push(atom),
        }
    }
    together
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &str, groups: &str, resources: &str, names: &str) -> Rule {
        let list = |text: &str| match text {
            "-" => Vec::new(),
            text => text.split(',').map(str::to_owned).collect(),
        };
        Rule {
            verbs: list(verbs),
            api_groups: list(groups),
            resources: list(resources),
            resource_names: list(names),
            urls: Vec::new(),
        }
    }

    fn asks(verb: &str, group: &str, resource: &str, subresource: &str, name: &str) -> Attributes {
        Attributes {
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            name: name.into(),
            ..Attributes::default()
        }
    }

    #[test]
    fn x1_a_rule_allows_what_it_names_and_nothing_beside_it() {
        let table = [
            (rule("get", "", "pods", "-"), asks("get", "", "pods", "", "a"), true),
            (rule("get", "", "pods", "-"), asks("list", "", "pods", "", ""), false),
            (rule("get", "", "pods", "-"), asks("get", "", "pods", "log", "a"), false),
            (rule("get", "", "pods/log", "-"), asks("get", "", "pods", "log", "a"), true),
            (rule("get", "", "pods/log", "-"), asks("get", "", "pods", "", "a"), false),
            (rule("*", "*", "*", "-"), asks("get", "apps", "deployments", "scale", "a"), true),
            (rule("get", "*", "*/scale", "-"), asks("get", "apps", "deployments", "scale", "a"), true),
            (rule("get", "*", "*/scale", "-"), asks("get", "apps", "deployments", "autoscale", "a"), false),
            (rule("get", "*", "*/scale", "-"), asks("get", "apps", "deployments", "", "a"), false),
            (rule("get", "apps", "pods", "-"), asks("get", "", "pods", "", "a"), false),
            (rule("get", "", "pods", "a,b"), asks("get", "", "pods", "", "b"), true),
            (rule("get", "", "pods", "a,b"), asks("get", "", "pods", "", "c"), false),
            // A list without a name is not of these names.
            (rule("list", "", "pods", "a"), asks("list", "", "pods", "", ""), false),
            (
                rule("get", "", "*", "-"),
                Attributes { verb: "get".into(), path: "/healthz".into(), ..Attributes::default() },
                false,
            ),
        ];
        for (rule, what, allowed) in table {
            assert_eq!(rule.allows(&what), allowed, "{rule:?} {what:?}");
        }
        let url = |own: &str, path: &str| {
            let rule = Rule { verbs: vec!["get".into()], urls: vec![own.into()], ..Rule::default() };
            rule.allows(&Attributes { verb: "get".into(), path: path.into(), ..Attributes::default() })
        };
        assert!(url("/apis/*", "/apis/apps/v1") && url("*", "/x") && url("/healthz", "/healthz"));
        assert!(!url("/healthz", "/healthz/ping") && !url("/apis/*", "/apis"));
    }

    #[test]
    fn x1_what_is_missing_is_told_as_upstream_tells_it() {
        let own =
            [rule("get,list", "", "pods", "-"), rule("*", "apps", "*/scale", "-"), rule("get", "", "secrets", "a")];
        let own: Vec<&Rule> = own.iter().collect();
        assert_eq!(missing(&own, &[rule("get", "", "pods", "x"), rule("patch", "apps", "deployments/scale", "-")]), []);
        let asked = [rule("get,delete,watch", "", "pods,nodes", "-"), rule("get", "", "secrets", "-")];
        let words: Vec<String> = missing(&own, &asked).iter().map(Rule::in_words).collect();
        assert_eq!(
            words,
            [
                r#"{APIGroups:[""], Resources:["pods"], Verbs:["delete" "watch"]}"#,
                r#"{APIGroups:[""], Resources:["nodes"], Verbs:["get" "delete" "watch"]}"#,
                r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get"]}"#,
            ]
        );
        let everything = rule("*", "*", "*", "-");
        assert_eq!(missing(&[&everything], &asked), []);
        assert_eq!(missing(&own, std::slice::from_ref(&everything)), [everything]);
    }
}
