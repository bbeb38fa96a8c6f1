//! The FlowSchemas and PriorityLevelConfigurations that every cluster has, and when a stored one is brought up to date.
//!
//! As upstream, two of each kind are mandatory: their specs never differ from these, but for the shares of the level
//! `exempt`. The others are suggested: they follow while their annotation `apf.kubernetes.io/autoupdate-spec` is true,
//! and are the administrator's once it is false. Whichever is missing is made again.

use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::jiff::Timestamp;
use crate::kinds::{FLOW_SCHEMA, PRIORITY_LEVEL_CONFIGURATION};
use crate::{Kind, object, parameters, time};

/// The group of both kinds.
pub const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const TABLE: &str = include_str!("flows.txt");
const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";
/// The names of the mandatory ones, of either kind.
const MANDATORY: [&str; 2] = ["exempt", "catch-all"];

static DEFAULTS: LazyLock<Vec<Default>> = LazyLock::new(read);

/// A default FlowSchema or PriorityLevelConfiguration.
#[derive(Clone, Debug)]
pub struct Default {
    /// Which of the two it is.
    pub kind: Kind,
    /// As it is created, in the form in which its spec is stored.
    pub object: Value,
}

impl Default {
    /// Its name.
    pub fn name(&self) -> &str {
        object::name(&self.object)
    }

    /// Its spec.
    pub fn spec(&self) -> &Value {
        self.object.get("spec").unwrap_or(&Value::Null)
    }

    /// Whether it is in force whatever is stored.
    pub fn is_mandatory(&self) -> bool {
        MANDATORY.contains(&self.name())
    }

    /// The stored object as it should be, where it should be another.
    pub fn updated(&self, stored: &Value) -> Option<Value> {
        let noted = parameters::boolean(object::text(stored, &["metadata", "annotations", AUTO_UPDATE]));
        let is_untouched = object::at(stored, &["metadata", "generation"]).and_then(Value::as_i64) == Some(1);
        let follows = self.is_mandatory() || noted.unwrap_or(is_untouched);
        let mut new = stored.clone();
        if noted != Some(follows) {
            let note = object::ensure(&mut new, &["metadata", "annotations"]);
            note.insert(AUTO_UPDATE.to_owned(), follows.to_string().into());
        }
        let type_of = |value| object::text(value, &["spec", "type"]);
        let is_exempt = type_of(stored) == "Exempt" && type_of(&self.object) == "Exempt";
        if follows && !is_exempt && stored.get("spec") != Some(self.spec()) {
            object::ensure(&mut new, &[]).insert("spec".to_owned(), self.spec().clone());
        }
        (new != *stored).then_some(new)
    }
}

/// All of them: the levels, then the schemas. A line that makes no sense is left out; a test sees to it that none is.
pub fn defaults() -> &'static [Default] {
    &DEFAULTS
}

/// The default object of a kind and name.
pub fn default(kind: &Kind, name: &str) -> Option<&'static Default> {
    DEFAULTS.iter().find(|made| made.kind == *kind && made.name() == name)
}

/// The spec that an object of this kind and name must have, where there is only one.
pub fn fixed_spec(kind: &Kind, name: &str) -> Option<&'static Value> {
    let found = default(kind, name).filter(|made| made.is_mandatory())?;
    // The exempt level's shares are the administrator's.
    (*kind != PRIORITY_LEVEL_CONFIGURATION || name != "exempt").then(|| found.spec())
}

/// A FlowSchema's condition `Dangling`: whether the level that it names is missing.
pub fn dangling(level: &str, is_there: bool, since: Timestamp) -> Value {
    let about = format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?}");
    let (status, reason, message) = match is_there {
        true => ("False", "Found", format!("{about} and it exists")),
        false => ("True", "NotFound", format!("{about} but there is no such object")),
    };
    json!({ "type": "Dangling", "status": status, "reason": reason, "message": message,
        "lastTransitionTime": time::rfc3339(since) })
}

fn read() -> Vec<Default> {
    let mut all: Vec<Default> = Vec::new();
    for line in TABLE.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if line.starts_with(' ') {
            if let Some(schema) = all.last_mut() {
                add_rule(&mut schema.object, &words);
            }
            continue;
        }
        match words.as_slice() {
            ["level", name, rest @ ..] => all.extend(level_spec(rest).map(|spec| Default {
                kind: PRIORITY_LEVEL_CONFIGURATION.clone(),
                object: json!({ "metadata": metadata(name), "spec": spec }),
            })),
            ["schema", name, level, precedence, distinguisher, subjects @ ..] => {
                let subjects: Vec<Value> = subjects.iter().filter_map(|text| subject(text)).collect();
                let mut object = json!({ "metadata": metadata(name), "spec": {
                    "priorityLevelConfiguration": { "name": level },
                    "matchingPrecedence": precedence.parse::<i64>().unwrap_or(0),
                    "rules": [{ "subjects": subjects }],
                } });
                if *distinguisher != "-" {
                    object["spec"]["distinguisherMethod"] = json!({ "type": distinguisher });
                }
                all.push(Default { kind: FLOW_SCHEMA.clone(), object });
            }
            _ => {}
        }
    }
    all
}

fn level_spec(words: &[&str]) -> Option<Value> {
    let number = |text: &str| text.parse::<i64>().ok();
    let (shares, lendable, response) = match words {
        ["exempt"] => {
            let exempt = json!({ "nominalConcurrencyShares": 0, "lendablePercent": 0 });
            return Some(json!({ "type": "Exempt", "exempt": exempt }));
        }
        [shares, lendable, "-"] => (shares, lendable, json!({ "type": "Reject" })),
        [shares, lendable, queues, hand, length] => {
            let queuing = json!({ "queues": number(queues)?, "handSize": number(hand)?,
                "queueLengthLimit": number(length)? });
            (shares, lendable, json!({ "type": "Queue", "queuing": queuing }))
        }
        _ => return None,
    };
    Some(json!({ "type": "Limited", "limited": { "nominalConcurrencyShares": number(shares)?,
        "lendablePercent": number(lendable)?, "limitResponse": response } }))
}

fn metadata(name: &str) -> Value {
    json!({ "name": name, "annotations": { AUTO_UPDATE: "true" } })
}

fn subject(text: &str) -> Option<Value> {
    let (kind, name) = text.split_once('/')?;
    Some(match kind {
        "User" => json!({ "kind": kind, "user": { "name": name } }),
        "Group" => json!({ "kind": kind, "group": { "name": name } }),
        _ => {
            let (namespace, name) = name.split_once('/')?;
            json!({ "kind": kind, "serviceAccount": { "namespace": namespace, "name": name } })
        }
    })
}

fn add_rule(schema: &mut Value, words: &[&str]) {
    let list = |text: &str| -> Vec<String> {
        text.split(',').map(|word| if word == "core" { String::new() } else { word.to_owned() }).collect()
    };
    let (field, rule) = match words {
        [verbs, "url", urls] => ("nonResourceRules", json!({ "verbs": list(verbs), "nonResourceURLs": list(urls) })),
        [verbs, groups, resources, namespaces] => {
            let mut rule = json!({
                "verbs": list(verbs), "apiGroups": list(groups), "resources": list(resources),
                "namespaces": list(namespaces.trim_end_matches('@')),
            });
            if namespaces.ends_with('@') {
                rule["clusterScope"] = true.into();
            }
            ("resourceRules", rule)
        }
        _ => return,
    };
    let rules = &mut schema["spec"]["rules"][0];
    match &mut rules[field] {
        Value::Array(all) => all.push(rule),
        none => *none = json!([rule]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the pipeline would store it.
    fn stored(made: &Default) -> Value {
        let mut object = made.object.clone();
        (made.kind.defaults)(&made.kind, &mut object);
        object["metadata"]["generation"] = 1.into();
        object
    }

    #[test]
    fn every_line_of_the_table_is_an_object_that_is_valid_and_stored_as_it_is_written() {
        let lines = |word: &str| TABLE.lines().filter(|line| line.starts_with(word)).count();
        let of = |kind: &Kind| defaults().iter().filter(|made| made.kind == *kind).count();
        assert_eq!((of(&PRIORITY_LEVEL_CONFIGURATION), of(&FLOW_SCHEMA)), (lines("level "), lines("schema ")));
        assert_eq!((lines("level "), lines("schema ")), (8, 13));
        for made in defaults() {
            let mut causes = Vec::new();
            let object = stored(made);
            (made.kind.validate)(&made.kind, &object, &mut causes);
            assert_eq!(causes, [], "{}", made.object);
            assert_eq!(made.updated(&object), None, "{}", made.object);
            assert!(made.kind == PRIORITY_LEVEL_CONFIGURATION || made.spec()["rules"][0]["subjects"][0].is_object());
        }
    }

    #[test]
    fn conformance_a_suggested_object_follows_while_nobody_has_said_otherwise() {
        let made = default(&PRIORITY_LEVEL_CONFIGURATION, "workload-low").expect("a default");
        for (note, generation, follows) in [
            (Some("true"), 7, true),
            (Some("T"), 7, true),
            (Some("false"), 1, false),
            (Some("nonsense"), 1, true),
            (Some("nonsense"), 2, false),
            (None, 1, true),
            (None, 2, false),
        ] {
            let mut object = stored(made);
            object["spec"]["limited"]["nominalConcurrencyShares"] = 1.into();
            object["metadata"]["generation"] = generation.into();
            object["metadata"]["labels"] = json!({ "team": "a" });
            match note {
                Some(note) => object["metadata"]["annotations"][AUTO_UPDATE] = note.into(),
                None => object["metadata"]["annotations"] = json!({}),
            }
            let new = made.updated(&object).unwrap_or(object);
            let shares = &new["spec"]["limited"]["nominalConcurrencyShares"];
            assert_eq!(*shares, if follows { 100 } else { 1 }, "{note:?} {generation}");
            let noted = new["metadata"]["annotations"][AUTO_UPDATE].as_str().and_then(parameters::boolean);
            assert_eq!((noted, &new["metadata"]["labels"]["team"]), (Some(follows), &json!("a")));
            assert_eq!(made.updated(&new), None, "{note:?} {generation}");
        }
    }

    #[test]
    fn conformance_a_mandatory_object_follows_whatever_anybody_said() {
        for kind in [&FLOW_SCHEMA, &PRIORITY_LEVEL_CONFIGURATION] {
            for name in MANDATORY {
                let made = default(kind, name).expect("a default");
                let mut object = stored(made);
                object["metadata"]["annotations"][AUTO_UPDATE] = "false".into();
                object["spec"] = json!({ "matchingPrecedence": 3 });
                let new = made.updated(&object).expect("another");
                assert_eq!((&new["spec"], &new["metadata"]), (made.spec(), &stored(made)["metadata"]), "{name}");
            }
        }
        let made = default(&PRIORITY_LEVEL_CONFIGURATION, "exempt").expect("a default");
        let mut object = stored(made);
        object["spec"]["exempt"]["lendablePercent"] = 50.into();
        assert_eq!(made.updated(&object), None, "its shares are the administrator's");
    }
}
