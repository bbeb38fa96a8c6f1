//! The roles and bindings that every cluster has, made and brought up to date at every start.
//!
//! As upstream: what is missing of a role's rules or a binding's subjects is added, what somebody else has added stays,
//! and an object with the annotation `rbac.authorization.kubernetes.io/autoupdate: "false"` is left alone.

use mainstay_api::{Kind, Status, kinds, object};
use serde_json::{Value, json};

use super::rbac::GROUP;
use super::rule::{Rule, TooMuch, missing};
use crate::api::{self, Batch, key};
use crate::bootstrap;

const TABLE: &str = include_str!("policy.txt");
const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// One object of the table.
struct Default {
    kind: Kind,
    namespace: String,
    object: Value,
}

/// Adds what is missing, as much as one transaction takes; whether that was all. What cannot be made or brought up to
/// date keeps no server from starting: those who can mend it need one.
pub fn reconcile(batch: &mut Batch<'_>) -> bool {
    let mut is_all = true;
    for made in defaults() {
        if batch.is_full() {
            return false;
        }
        match bring(batch, &made) {
            Ok(is_whole) => is_all &= is_whole,
            Err(status) => {
                let (kind, name) = (&*made.kind.kind, object::name(&made.object));
                tracing::error!(kind, name, error = %status.message, "a default object is not as it should be");
            }
        }
    }
    is_all
}

/// One of the table; whether the next transaction has nothing to do for it.
fn bring(batch: &mut Batch<'_>, Default { kind, namespace, object }: &Default) -> Result<bool, Status> {
    let name = object::name(object);
    let (mut is_kept, mut is_of_another, mut is_going) = (true, false, false);
    bootstrap::keep(batch, kind, namespace, object, |old| {
        is_kept = object::text(old, &["metadata", "annotations", AUTO_UPDATE]) == "true";
        is_of_another = object.get("roleRef").is_some() && old.get("roleRef") != object.get("roleRef");
        is_going = object::at(old, &["metadata", "deletionTimestamp"]).is_some();
        Some(merged(old, object)).filter(|new| is_kept && !is_of_another && new != old)
    })?;
    if !is_kept || !is_of_another {
        return Ok(true);
    }
    // A binding keeps its role for life: it is made again.
    if !is_going {
        api::delete(batch, kind, namespace, name, &api::DeleteOptions::default())?;
    }
    if batch.has(key::object(kind, namespace, name)) {
        let why = "it is of another role, and goes only when its finalizers are taken away; the next start makes it";
        return Err(Status::new(409, "Conflict", why));
    }
    if batch.may_repeat() {
        api::create(batch, kind, namespace, object.clone())?;
    }
    Ok(batch.may_repeat())
}

/// The stored object with what it lacks.
fn merged(old: &Value, wanted: &Value) -> Value {
    let mut new = old.clone();
    for field in ["labels", "annotations"] {
        for (name, value) in object::at(wanted, &["metadata", field]).and_then(Value::as_object).into_iter().flatten() {
            object::ensure(&mut new, &["metadata", field]).entry(name.clone()).or_insert_with(|| value.clone());
        }
    }
    if wanted.get("aggregationRule").is_some() {
        object::ensure(&mut new, &[]).entry("aggregationRule").or_insert_with(|| wanted["aggregationRule"].clone());
        return new;
    }
    let rules = |value: &Value| -> Vec<Rule> {
        value.get("rules").and_then(|rules| serde_json::from_value(rules.clone()).ok()).unwrap_or_default()
    };
    let has = rules(old);
    // Beside rules that are too many to compare, those of the default ones are added that are not there word for word:
    // the next start finds them.
    let lacks = missing(&has.iter().collect::<Vec<_>>(), &rules(wanted), usize::MAX);
    let lacks = lacks.unwrap_or_else(|TooMuch| rules(wanted).into_iter().filter(|rule| !has.contains(rule)).collect());
    add(&mut new, "rules", lacks.iter().map(|rule| json!(rule)));
    let known = old.get("subjects").and_then(Value::as_array).cloned().unwrap_or_default();
    let subjects = wanted.get("subjects").and_then(Value::as_array).into_iter().flatten();
    add(&mut new, "subjects", subjects.filter(|subject| !known.contains(subject)).cloned());
    new
}

fn add(object: &mut Value, field: &str, items: impl Iterator<Item = Value>) {
    let items: Vec<Value> = items.collect();
    if items.is_empty() {
        return;
    }
    let list = object::ensure(object, &[]).entry(field).or_insert_with(|| json!([]));
    match list {
        Value::Array(list) => list.extend(items),
        other => *other = items.into(),
    }
}

/// Every object of the table, in its order. A line that makes no sense is left out; a test sees to it that none is.
fn defaults() -> Vec<Default> {
    let mut all: Vec<Default> = Vec::new();
    for line in TABLE.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        let words: Vec<&str> = line.split_whitespace().collect();
        if line.starts_with(' ') {
            if let (Some(rule), Some(role)) =
                (rule(&words), all.iter_mut().rev().find(|made| made.object.get("rules").is_some()))
            {
                add(&mut role.object, "rules", std::iter::once(json!(rule)));
            }
            continue;
        }
        match words.as_slice() {
            ["ClusterRole", name, labels @ ..] => all.push(cluster_role(name, labels)),
            ["aggregate", name, from, labels @ ..] => {
                let mut made = cluster_role(name, labels);
                let label = format!("{GROUP}/{from}");
                made.object["aggregationRule"] =
                    json!({ "clusterRoleSelectors": [{ "matchLabels": { label: "true" } }] });
                object::ensure(&mut made.object, &[]).remove("rules");
                all.push(made);
            }
            ["controller", name] => {
                let role = format!("system:controller:{name}");
                let account = format!("ServiceAccount/kube-system/{name}");
                all.push(binding(&kinds::CLUSTER_ROLE_BINDING, "", &role, ("ClusterRole", &role), &[&account]));
                all.push(cluster_role(&role, &[]));
            }
            ["Role", namespace, name] => all.push(Default {
                kind: kinds::ROLE.clone(),
                namespace: (*namespace).to_owned(),
                object: json!({ "metadata": metadata(name, &[]), "rules": [] }),
            }),
            ["ClusterRoleBinding", name, subjects @ ..] => {
                all.push(binding(&kinds::CLUSTER_ROLE_BINDING, "", name, ("ClusterRole", name), subjects));
            }
            ["bind", name, role, subjects @ ..] => {
                all.push(binding(&kinds::CLUSTER_ROLE_BINDING, "", name, ("ClusterRole", role), subjects));
            }
            ["RoleBinding", namespace, name, role, subjects @ ..] => {
                all.push(binding(&kinds::ROLE_BINDING, namespace, name, ("Role", role), subjects));
            }
            _ => {}
        }
    }
    sum_up(&mut all);
    all
}

/// What the aggregated roles hold from the first moment on, as their controller would write it: one that is empty for a
/// while could be given away by somebody who has nothing of what it will hold.
fn sum_up(all: &mut [Default]) {
    // Each round reaches one role further: admin is the sum of others and of edit, which is the sum of others and of
    // view.
    for _ in 0..3 {
        for index in 0..all.len() {
            let Some(wanted) = all.get(index).and_then(|made| {
                let labels = object::at(&made.object, &["aggregationRule", "clusterRoleSelectors"])?.get(0)?;
                labels.get("matchLabels")?.as_object()?.keys().next().cloned()
            }) else {
                continue;
            };
            let chosen = all.iter().enumerate().filter(|(other, made)| {
                *other != index && object::text(&made.object, &["metadata", "labels", &wanted]) == "true"
            });
            let mut chosen: Vec<&Value> = chosen.map(|(_, made)| &made.object).collect();
            chosen.sort_by_key(|role| object::name(role));
            let mut rules: Vec<Value> = Vec::new();
            for rule in chosen.into_iter().flat_map(|role| role["rules"].as_array().into_iter().flatten()) {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
            if let Some(made) = all.get_mut(index) {
                made.object["rules"] = rules.into();
            }
        }
    }
}

fn metadata(name: &str, labels: &[&str]) -> Value {
    let mut metadata = json!({
        "name": name, "labels": { "kubernetes.io/bootstrapping": "rbac-defaults" },
            "annotations": { AUTO_UPDATE: "true" },
    });
    for label in labels {
        metadata["labels"][format!("{GROUP}/{label}")] = "true".into();
    }
    metadata
}

fn cluster_role(name: &str, labels: &[&str]) -> Default {
    let object = json!({ "metadata": metadata(name, labels), "rules": [] });
    Default { kind: kinds::CLUSTER_ROLE.clone(), namespace: String::new(), object }
}

fn binding(kind: &Kind, namespace: &str, name: &str, role: (&str, &str), subjects: &[&str]) -> Default {
    let subjects: Vec<Value> = subjects.iter().filter_map(|text| subject(text)).collect();
    let mut object = json!({
        "metadata": metadata(name, &[]), "roleRef": { "apiGroup": GROUP, "kind": role.0, "name": role.1 },
    });
    add(&mut object, "subjects", subjects.into_iter());
    Default { kind: kind.clone(), namespace: namespace.to_owned(), object }
}

fn subject(text: &str) -> Option<Value> {
    let (kind, name) = text.split_once('/')?;
    match kind {
        "User" | "Group" => Some(json!({ "apiGroup": GROUP, "kind": kind, "name": name })),
        "ServiceAccount" => {
            let (namespace, name) = name.split_once('/')?;
            Some(json!({ "kind": kind, "name": name, "namespace": namespace }))
        }
        _ => None,
    }
}

fn rule(words: &[&str]) -> Option<Rule> {
    let sorted = |text: &str| {
        let mut list: Vec<String> = text
            .split(',')
            .flat_map(|word| match word {
                "read" => vec!["get", "list", "watch"],
                "write" => vec!["create", "delete", "deletecollection", "patch", "update"],
                "core" => vec![""],
                word => vec![word],
            })
            .map(str::to_owned)
            .collect();
        list.sort();
        list
    };
    match words {
        [verbs, "url", urls] => Some(Rule { verbs: sorted(verbs), urls: sorted(urls), ..Rule::default() }),
        [verbs, groups, resources, names @ ..] if names.len() <= 1 => Some(Rule {
            verbs: sorted(verbs),
            api_groups: sorted(groups),
            resources: sorted(resources),
            resource_names: names.first().map(|names| sorted(names)).unwrap_or_default(),
            urls: Vec::new(),
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use mainstay_store::limits::TxnLimits;

    use super::*;
    use crate::api::tests::Cluster;
    use crate::api::{Body, DeleteOptions, Outcome, Part};

    /// A backup's restore brings such things.
    #[test]
    fn s12_m3_a_default_binding_that_cannot_go_keeps_no_server_from_starting() {
        let kind = &kinds::CLUSTER_ROLE_BINDING;
        for limits in [TxnLimits::EMBEDDED, TxnLimits::ETCD] {
            let cluster = Cluster::within(limits);
            let start = || {
                let one = |batch: &mut Batch<'_>| {
                    let code = if reconcile(batch) { 200 } else { 202 };
                    Ok(Outcome { code, body: Body::Value(Value::Null) })
                };
                let rounds = (0..100).take_while(|_| cluster.api.write_now(false, one).expect("written").code == 202);
                assert!(rounds.count() < 100, "it never starts");
            };
            let role = |name: &str| cluster.get(kind, name).map(|binding| binding["roleRef"]["name"].clone());
            start();
            for (name, finalizers) in
                [("system:basic-user", json!(["example.com/mine"])), ("system:discovery", json!([]))]
            {
                cluster.delete(kind, name, &DeleteOptions::default()).expect("deleted");
                let mut wrong = defaults()
                    .into_iter()
                    .find(|made| made.kind == *kind && object::name(&made.object) == name)
                    .expect("a default")
                    .object;
                wrong["roleRef"]["name"] = "view".into();
                wrong["metadata"]["finalizers"] = finalizers;
                cluster.create(kind, wrong).expect("made");
            }
            cluster.delete(&kinds::CLUSTER_ROLE, "view", &DeleteOptions::default()).expect("deleted");
            start();
            assert_eq!(role("system:basic-user"), Some(json!("view")), "it waits for its finalizer");
            assert_eq!(role("system:discovery"), Some(json!("system:discovery")));
            assert!(cluster.get(&kinds::CLUSTER_ROLE, "view").is_some());
            let revision = cluster.api.store.revision();
            start();
            assert_eq!(cluster.api.store.revision(), revision, "nothing is done twice");
            let free = json!({ "metadata": { "finalizers": null } });
            cluster.merge(kind, "system:basic-user", Part::Main, free).expect("patched");
            start();
            assert_eq!(role("system:basic-user"), Some(json!("system:basic-user")));
        }
    }

    #[test]
    fn x1_the_table_of_default_roles_is_read_whole() {
        let lines = TABLE.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
        let (rules, heads): (Vec<&str>, Vec<&str>) = lines.partition(|line| line.starts_with(' '));
        let all = defaults();
        let controllers = heads.iter().filter(|line| line.starts_with("controller ")).count();
        assert_eq!(all.len(), heads.len() + controllers);
        let count = |made: &Default| made.object.get("rules").and_then(Value::as_array).map_or(0, Vec::len);
        let own = all.iter().filter(|made| made.object.get("aggregationRule").is_none());
        assert_eq!(own.map(count).sum::<usize>(), rules.len());
        for made in &all {
            let mut causes = Vec::new();
            let mut object = made.object.clone();
            (made.kind.defaults)(&made.kind, &mut object);
            (made.kind.validate)(&made.kind, &object, &mut causes);
            assert_eq!(causes, [], "{}", made.object);
        }
        let of =
            |name: &str| all.iter().find(|made| object::name(&made.object) == name).map(|made| made.object.clone());
        let held = |name: &str| of(name).expect("there")["rules"].as_array().map_or(0, Vec::len);
        assert!(
            held("view") > 0 && held("edit") > held("view") && held("admin") > held("edit"),
            "from the first moment on"
        );
        let view = of("system:aggregate-to-view").expect("there");
        assert_eq!(view["rules"][0]["verbs"], json!(["get", "list", "watch"]));
        assert_eq!(view["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"], "true");
    }

    #[test]
    fn what_was_taken_from_a_default_role_comes_back_and_what_was_added_stays() {
        let all = defaults();
        let wanted =
            all.iter().find(|made| object::name(&made.object) == "system:node-problem-detector").expect("there");
        let mut old = wanted.object.clone();
        old["rules"] = json!([
            { "verbs": ["get"], "apiGroups": [""], "resources": ["nodes"] },
            { "verbs": ["get"], "apiGroups": ["mine"], "resources": ["things"] },
        ]);
        let new = merged(&old, &wanted.object);
        assert_eq!(new["rules"][1], old["rules"][1]);
        assert_eq!(new["rules"].as_array().map(Vec::len), Some(5), "{}", new["rules"]);
        assert_eq!(merged(&new, &wanted.object), new);
    }
}
