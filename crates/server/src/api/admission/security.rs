//! PodSecurity: what a namespace's labels say of its pods. Breaking what is enforced is refused; breaking what is
//! warned of is told.

use mainstay_api::podsecurity::{Level, LevelVersion, Policy, is_significant, told, violations};
use mainstay_api::{Kind, Status, kinds, object};
use serde_json::{Value, json};

use crate::api::Batch;

/// Kinds with a pod's template, and where: they are warned of, and not refused.
const TEMPLATES: [(&str, &str, &[&str]); 8] = [
    ("", "replicationcontrollers", &["spec", "template"]),
    ("", "podtemplates", &["template"]),
    ("apps", "daemonsets", &["spec", "template"]),
    ("apps", "deployments", &["spec", "template"]),
    ("apps", "replicasets", &["spec", "template"]),
    ("apps", "statefulsets", &["spec", "template"]),
    ("batch", "cronjobs", &["spec", "jobTemplate", "spec", "template"]),
    ("batch", "jobs", &["spec", "template"]),
];
/// How many pods of a namespace are looked at when its level changes, as upstream.
const MAX_PODS: usize = 3000;

/// Checks what is written against its namespace, and a namespace's own labels.
pub(super) fn check(batch: &mut Batch<'_>, kind: &Kind, new: &Value, old: Option<&Value>) -> Result<(), Status> {
    if *kind == kinds::NAMESPACE {
        return namespace(batch, new, old);
    }
    if *kind == kinds::POD {
        return pod(batch, new, old);
    }
    let Some((_, _, path)) = TEMPLATES.iter().find(|(group, plural, _)| kind.group == *group && kind.plural == *plural)
    else {
        return Ok(());
    };
    if let Some(template) = object::at(new, path).filter(|_| batch.is_heard) {
        let policy = policy_of(batch, object::namespace(new))?;
        warn(batch, policy.warn, template);
    }
    Ok(())
}

fn policy_of(batch: &mut Batch<'_>, namespace: &str) -> Result<Policy, Status> {
    let namespace = batch.look_at(&kinds::NAMESPACE, "", namespace)?;
    Ok(namespace.map_or_else(|| Policy::of(&json!({})).0, |namespace| Policy::of(&namespace).0))
}

fn warn(batch: &mut Batch<'_>, level: LevelVersion, pod: &Value) {
    let broken = if batch.is_heard { violations(level, pod) } else { Vec::new() };
    if !broken.is_empty() {
        batch.warnings.push(format!("would violate PodSecurity \"{level}\": {}", told(&broken)));
    }
}

fn pod(batch: &mut Batch<'_>, new: &Value, old: Option<&Value>) -> Result<(), Status> {
    let policy = policy_of(batch, object::namespace(new))?;
    if policy.is_open() || old.is_some_and(|old| !is_significant(new, old)) {
        return Ok(());
    }
    let broken = violations(policy.enforce, new);
    if !broken.is_empty() {
        let why = format!("violates PodSecurity \"{}\": {}", policy.enforce, told(&broken));
        return Err(Status::forbidden(&kinds::POD, object::name(new), &why));
    }
    warn(batch, policy.warn, new);
    Ok(())
}

/// The labels are ones that mean something; and whoever makes a namespace stricter is told which pods would not be let
/// in.
fn namespace(batch: &mut Batch<'_>, new: &Value, old: Option<&Value>) -> Result<(), Status> {
    let (policy, causes) = Policy::of(new);
    let (before, earlier) = old.map(Policy::of).unwrap_or_else(|| Policy::of(&json!({})));
    if !causes.is_empty() && causes != earlier {
        return Err(Status::invalid(&kinds::NAMESPACE, object::name(new), &causes));
    }
    let (is, was) = (policy.enforce, before.enforce);
    let relaxed = is.minor == was.minor && is.level <= was.level;
    if !batch.is_heard || old.is_none() || is == was || is.level == Level::Privileged || relaxed {
        return Ok(());
    }
    let name = object::name(new);
    let pods = batch.all_in(&kinds::POD, name)?;
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    for pod in pods.iter().take(MAX_PODS) {
        let broken = violations(is, pod);
        let reasons = broken.iter().map(|violation| violation.reason).collect::<Vec<_>>().join(", ");
        if reasons.is_empty() {
            continue;
        }
        let title = object::name(pod).to_owned();
        match found.iter_mut().find(|(known, _)| *known == reasons) {
            Some((_, titles)) => titles.push(title),
            None => found.push((reasons, vec![title])),
        }
    }
    if pods.len() > MAX_PODS {
        let count = pods.len();
        batch.warnings.push(format!(
            "new PodSecurity enforce level only checked against the first {MAX_PODS} of {count} existing pods"
        ));
    }
    if !found.is_empty() {
        batch
            .warnings
            .push(format!("existing pods in namespace {name:?} violate the new PodSecurity enforce level \"{is}\""));
    }
    let mut lines: Vec<String> = found
        .iter()
        .map(|(reasons, titles)| match titles.as_slice() {
            [one] => format!("{one}: {reasons}"),
            [first, _] => format!("{first} (and 1 other pod): {reasons}"),
            [first, others @ ..] => format!("{first} (and {} other pods): {reasons}", others.len()),
            [] => reasons.clone(),
        })
        .collect();
    lines.sort();
    batch.warnings.extend(lines);
    Ok(())
}
