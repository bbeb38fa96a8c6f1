//! One PolicyRule: what it allows, what it covers of another, and how it is written in a message.

use std::collections::BTreeMap;

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

    /// Whether the rule is about all that a group, a resource and a name (or a path) stand for.
    fn is_about(&self, what: &Scope<'_>) -> bool {
        match *what {
            Scope::Path(path) => self.urls.iter().any(|own| covers_url(own, path)),
            Scope::Resource { group, resource, name } => {
                let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
                has_or_star(&self.api_groups, group)
                    && self.resources.iter().any(|own| covers_resource(own, resource, subresource))
                    && (self.resource_names.is_empty() || name.is_some_and(|name| has(&self.resource_names, name)))
            }
        }
    }

    /// Whether everything that another rule allows is allowed by this one.
    fn covers(&self, asked: &Self) -> bool {
        let all = |own: &[String], asked: &[String]| asked.iter().all(|asked| has_or_star(own, asked));
        all(&self.verbs, &asked.verbs)
            && all(&self.api_groups, &asked.api_groups)
            && asked.resources.iter().all(|asked| {
                let (resource, subresource) = asked.split_once('/').unwrap_or((asked, ""));
                self.resources.iter().any(|own| covers_resource(own, resource, subresource))
            })
            && asked.urls.iter().all(|asked| self.urls.iter().any(|own| covers_url(own, asked)))
            && (self.resource_names.is_empty()
                || !asked.resource_names.is_empty()
                    && asked.resource_names.iter().all(|asked| has(&self.resource_names, asked)))
    }

    /// How many words [`Rule::covers`] may compare.
    fn steps_to_cover(&self, asked: &Self) -> usize {
        let lists: [fn(&Self) -> usize; 5] = [
            |rule| rule.verbs.len(),
            |rule| rule.api_groups.len(),
            |rule| rule.resources.len(),
            |rule| rule.resource_names.len(),
            |rule| rule.urls.len(),
        ];
        lists.iter().map(|length| length(self).saturating_mul(length(asked))).fold(1, usize::saturating_add)
    }

    /// Every group, resource and name that the rule is about, and every path.
    fn scopes(&self) -> impl Iterator<Item = Scope<'_>> {
        let names = || {
            let all = self.resource_names.is_empty().then_some(None);
            all.into_iter().chain(self.resource_names.iter().map(|name| Some(name.as_str())))
        };
        let resources = self.api_groups.iter().flat_map(move |group| {
            let resources = self.resources.iter();
            resources.flat_map(move |resource| names().map(move |name| Scope::Resource { group, resource, name }))
        });
        resources.chain(self.urls.iter().map(|path| Scope::Path(path)))
    }

    /// About how many bytes the rule takes.
    pub fn length(&self) -> usize {
        let lists = [&self.verbs, &self.api_groups, &self.resources, &self.resource_names, &self.urls];
        lists.iter().flat_map(|list| list.iter()).map(|text| text.len() + std::mem::size_of::<String>()).sum()
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

/// What a rule is about, one by one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Scope<'a> {
    Resource { group: &'a str, resource: &'a str, name: Option<&'a str> },
    Path(&'a str),
}

impl Scope<'_> {
    /// How many bytes name it.
    fn length(&self) -> usize {
        match self {
            Self::Resource { group, resource, name } => group.len() + resource.len() + name.map_or(0, str::len),
            Self::Path(path) => path.len(),
        }
    }
}

/// How many comparisons of two words it may take to find what is missing: some tenths of a second.
const MAX_STEPS: usize = 20_000_000;
/// How much of what is missing a message tells, in bytes (about).
pub const MAX_TOLD: usize = 16 << 10;
/// What each verb of it takes beside its own name.
const WORDS: usize = 64;

/// To find what is missing would take longer than a request may take (X4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMuch;

/// What of `asked` no rule of `own` covers, by group, resource and name; empty when all is covered. Of much that is
/// missing only the first `most` bytes (about) are told.
///
/// # Errors
/// For rules that stand for so much that comparing them would keep others waiting: a few words in each list of a rule
/// stand for their product.
pub fn missing(own: &[&Rule], asked: &[Rule], most: usize) -> Result<Vec<Rule>, TooMuch> {
    let mut left = MAX_STEPS;
    let mut pay = |steps: usize| {
        left = left.checked_sub(steps).ok_or(TooMuch)?;
        Ok::<(), TooMuch>(())
    };
    let mut found: BTreeMap<Scope<'_>, Vec<&str>> = BTreeMap::new();
    let mut told = 0;
    for asked in asked {
        let mut is_covered = false;
        for rule in own {
            pay(rule.steps_to_cover(asked))?;
            if rule.covers(asked) {
                is_covered = true;
                break;
            }
        }
        if is_covered {
            continue;
        }
        for scope in asked.scopes() {
            let mut about = Vec::new();
            for rule in own {
                pay(1 + rule.api_groups.len() + rule.resources.len() + rule.resource_names.len() + rule.urls.len())?;
                if rule.is_about(&scope) {
                    about.push(*rule);
                }
            }
            let verbs: usize = about.iter().map(|rule| rule.verbs.len()).sum();
            pay(asked.verbs.len().saturating_mul(1 + verbs))?;
            let lacks = |verb: &&String| !about.iter().any(|rule| has_or_star(&rule.verbs, verb));
            for verb in asked.verbs.iter().filter(lacks) {
                let verbs = found.entry(scope).or_default();
                pay(verbs.len())?;
                if !verbs.contains(&verb.as_str()) {
                    told += verb.len() + scope.length() + WORDS;
                    verbs.push(verb);
                }
            }
            if told > most {
                return Ok(found.into_iter().map(in_rule).collect());
            }
        }
    }
    Ok(found.into_iter().map(in_rule).collect())
}

fn in_rule((scope, verbs): (Scope<'_>, Vec<&str>)) -> Rule {
    let one = |text: &str| vec![text.to_owned()];
    let verbs = verbs.into_iter().map(str::to_owned).collect();
    match scope {
        Scope::Path(path) => Rule { verbs, urls: one(path), ..Rule::default() },
        Scope::Resource { group, resource, name } => Rule {
            verbs,
            api_groups: one(group),
            resources: one(resource),
            resource_names: name.map(one).unwrap_or_default(),
            urls: Vec::new(),
        },
    }
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
        assert_eq!(
            missing(&own, &[rule("get", "", "pods", "x"), rule("patch", "apps", "deployments/scale", "-")], MAX_TOLD),
            Ok(Vec::new())
        );
        let asked = [rule("get,delete,watch", "", "pods,nodes", "-"), rule("get", "", "secrets", "-")];
        let words: Vec<String> = missing(&own, &asked, MAX_TOLD).expect("few").iter().map(Rule::in_words).collect();
        assert_eq!(
            words,
            [
                r#"{APIGroups:[""], Resources:["nodes"], Verbs:["get" "delete" "watch"]}"#,
                r#"{APIGroups:[""], Resources:["pods"], Verbs:["delete" "watch"]}"#,
                r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get"]}"#,
            ]
        );
        let everything = rule("*", "*", "*", "-");
        assert_eq!(missing(&[&everything], &asked, MAX_TOLD), Ok(Vec::new()));
        assert_eq!(missing(&own, std::slice::from_ref(&everything), MAX_TOLD), Ok(vec![everything]));
    }

    #[test]
    fn x4_a_small_rule_that_stands_for_much_is_told_in_part_or_refused_in_words() {
        let words = |count: usize| (0..count).map(|at| format!("w{at}")).collect::<Vec<_>>().join(",");
        let cube = |count: usize| rule(&words(count), &words(count), &words(count), "-");
        let began = std::time::Instant::now();
        // Nothing of 216 million is held: the first of it are told.
        let told = missing(&[], &[cube(600)], MAX_TOLD).expect("told in part");
        let length: usize = told.iter().map(|rule| rule.in_words().len()).sum();
        assert!(length < 4 * MAX_TOLD, "{} {length}", told.len());
        // Held in parts, so that all of it would have to be looked at.
        let half = |rest: usize| {
            let verbs = words(400).split(',').skip(rest).step_by(2).collect::<Vec<_>>().join(",");
            rule(&verbs, "*", "*", "-")
        };
        assert_eq!(missing(&[&half(0), &half(1)], &[cube(400)], MAX_TOLD), Err(TooMuch));
        assert_eq!(missing(&[&half(0), &half(1)], &[cube(20)], MAX_TOLD), Ok(Vec::new()));
        // What is held as it is asked for is seen at once, however much it stands for.
        assert_eq!(missing(&[&cube(600)], &[cube(600)], MAX_TOLD), Ok(Vec::new()));
        assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", began.elapsed());
    }
}
