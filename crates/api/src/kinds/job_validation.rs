//! What a Job must look like. Upstream's paths and words.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::field::Field;
use super::job::GENERATED_LABELS;
use super::pod_spec_validation;
use crate::names;
use crate::object::{name, uid};
use crate::selector::Labels;
use crate::status::Cause;

/// Most rules of a failure or success policy, and most patterns of a rule; upstream's.
const MAX_RULES: usize = 20;
/// Most exit codes of a rule; upstream's.
const MAX_EXIT_CODES: usize = 255;
/// Most pods of an Indexed Job at a time, and most failed indexes; upstream's.
const MAX_INDEXED: i64 = 100_000;
/// The same where there are more completions than [`MAX_INDEXED`]; upstream's.
const MAX_OF_MANY: i64 = 10_000;
/// Longest `managedBy`; upstream's.
const MAX_MANAGED_BY: usize = 63;
/// Longest `succeededIndexes`, in bytes; upstream's.
const MAX_INDEXES_LENGTH: usize = 64 * 1024;

/// A whole Job, defaults applied and its selector generated.
pub fn validate(job: &Value, causes: &mut Vec<Cause>) {
    let root = Field::root(job);
    let spec = root.get("spec");
    validate_generated(job, &root, causes);
    validate_spec(&spec, causes);
    let (selector, labels) = (spec.get("selector"), spec.dig(&["template", "metadata", "labels"]));
    if !selector.is_set() {
        causes.push(Cause::required(&selector.path, ""));
    } else {
        crate::metadata::validate_label_selector(&selector, causes);
    }
    if let Ok(wanted) = Labels::from_json(Some(selector.value))
        && !wanted.matches_json(Some(labels.value))
    {
        causes.push(labels.invalid("`selector` does not match template `labels`"));
    }
    let completions = spec.get("completions").int().filter(|completions| *completions >= 1);
    if let (true, Some(completions)) = (is_indexed(&spec), completions) {
        let host = format!("{}-{}", name(job), completions - 1);
        for wrong in names::label(&host) {
            let detail = format!("will not able to create pod with invalid DNS name: {host}: {wrong}");
            causes.push(Cause::invalid("metadata.name", name(job), &detail));
        }
    }
}

fn validate_generated(job: &Value, root: &Field, causes: &mut Vec<Cause>) {
    let selector = root.dig(&["spec", "selector"]);
    if root.dig(&["spec", "manualSelector"]).is_true() || !selector.is_set() {
        return;
    }
    let labels = root.dig(&["spec", "template", "metadata", "labels"]);
    let mut wanted = serde_json::Map::new();
    for (label, field) in GENERATED_LABELS {
        let value = if field == "uid" { uid(job) } else { name(job) };
        wanted.insert(label.to_owned(), json!(value));
        let (path, found) = (format!("{}[{label}]", labels.path), labels.get(label));
        if !found.is_set() {
            causes.push(Cause::required(path, &format!("must be '{value}'")));
        } else if found.text() != value {
            causes.push(Cause::invalid(path, labels.value.clone(), &format!("must be '{value}'")));
        }
    }
    if let Ok(selects) = Labels::from_json(Some(selector.value))
        && !selects.matches_json(Some(&Value::Object(wanted)))
    {
        causes.push(selector.invalid("`selector` not auto-generated"));
    }
}

/// Whether each of a Job's pods has an index of its own.
pub(super) fn is_indexed(spec: &Field) -> bool {
    spec.get("completionMode").text() == "Indexed"
}

/// A Job's spec, also that of a CronJob's template.
pub fn validate_spec(spec: &Field, causes: &mut Vec<Cause>) {
    for field in [
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ] {
        spec.get(field).not_negative(causes);
    }
    let (per_index, most_failed) = (spec.get("backoffLimitPerIndex"), spec.get("maxFailedIndexes"));
    if most_failed.is_set() && !per_index.is_set() {
        causes.push(Cause::required(&per_index.path, "when maxFailedIndexes is specified"));
    }
    validate_managed_by(&spec.get("managedBy"), causes);
    spec.get("completionMode").one_of(causes, &["NonIndexed", "Indexed"]);
    let success = spec.get("successPolicy");
    if is_indexed(spec) {
        validate_indexed(spec, causes);
        if success.is_set() {
            validate_success(&success, spec.get("completions").int().unwrap_or(0), causes);
        }
    } else {
        for field in [&per_index, &most_failed, &success] {
            if field.is_set() {
                causes.push(field.invalid("requires indexed completion mode"));
            }
        }
    }
    let failure = spec.get("podFailurePolicy");
    if failure.is_set() {
        validate_failure(spec, &failure, causes);
        spec.get("podReplacementPolicy").one_of(causes, &["Failed"]);
    } else {
        spec.get("podReplacementPolicy").one_of(causes, &["Failed", "TerminatingOrFailed"]);
    }
    let template = spec.get("template");
    pod_spec_validation::validate_pod_template(&template, &[], causes);
    let restart = template.dig(&["spec", "restartPolicy"]);
    match restart.text() {
        "Never" => {}
        "OnFailure" if failure.is_set() => {
            causes.push(restart.invalid("only \"Never\" is supported when podFailurePolicy is specified"));
        }
        "OnFailure" => {}
        "" | "Always" => causes.push(Cause::required(&restart.path, "valid values: \"OnFailure\", \"Never\"")),
        _ => causes.push(Cause::not_supported(&restart.path, restart.value.clone(), &["OnFailure", "Never"])),
    }
}

fn validate_managed_by(field: &Field, causes: &mut Vec<Cause>) {
    if !field.is_set() {
        return;
    }
    if field.text().is_empty() {
        causes.push(Cause::required(&field.path, ""));
        return;
    }
    match field.text().split_once('/') {
        Some((domain, path)) if !domain.is_empty() && !path.is_empty() => {
            causes.extend(names::subdomain(domain).iter().map(|wrong| Cause::invalid(&field.path, domain, wrong)));
        }
        _ => causes.push(field.invalid("must be a domain-prefixed path (such as \"acme.io/foo\")")),
    }
    if field.text().len() > MAX_MANAGED_BY {
        causes.push(Cause::too_long(&field.path, MAX_MANAGED_BY));
    }
}

fn validate_indexed(spec: &Field, causes: &mut Vec<Cause>) {
    let (completions, parallelism) = (spec.get("completions"), spec.get("parallelism"));
    let most_failed = spec.get("maxFailedIndexes");
    if !completions.is_set() {
        causes.push(Cause::required(&completions.path, "when completion mode is Indexed"));
    }
    let above = |field: &Field, limit: i64| field.int().is_some_and(|number| number > limit);
    if above(&parallelism, MAX_INDEXED) {
        let detail = format!("must be less than or equal to {MAX_INDEXED} when completion mode is Indexed");
        causes.push(parallelism.invalid(&detail));
    }
    if completions.int().is_some_and(|completions| above(&most_failed, completions)) {
        causes.push(most_failed.invalid("must be less than or equal to completions"));
    }
    if above(&most_failed, MAX_INDEXED) {
        causes.push(most_failed.invalid(&format!("must be less than or equal to {MAX_INDEXED}")));
    }
    if above(&completions, MAX_INDEXED) && spec.get("backoffLimitPerIndex").is_set() {
        if !most_failed.is_set() {
            let detail = format!("must be specified when completions is above {MAX_INDEXED}");
            causes.push(Cause::required(&most_failed.path, &detail));
        }
        let detail = format!(
            "must be less than or equal to {MAX_OF_MANY} when completions are above {MAX_INDEXED} and used with \
                backoff limit per index"
        );
        for field in [&parallelism, &most_failed].into_iter().filter(|field| above(field, MAX_OF_MANY)) {
            causes.push(field.invalid(&detail));
        }
    }
}

fn validate_failure(spec: &Field, policy: &Field, causes: &mut Vec<Cause>) {
    let rules = policy.get("rules");
    if rules.len() > MAX_RULES {
        causes.push(Cause::too_many(&rules.path, rules.len(), MAX_RULES));
        return;
    }
    let pod = spec.dig(&["template", "spec"]);
    let containers: BTreeSet<&str> = ["initContainers", "containers"]
        .iter()
        .flat_map(|list| pod.get(list).items())
        .map(|container| container.get("name").text())
        .collect();
    for rule in rules.items() {
        let (action, codes, conditions) = (rule.get("action"), rule.get("onExitCodes"), rule.get("onPodConditions"));
        match action.text() {
            "" => causes.push(needed(&action, r#"["Count" "FailIndex" "FailJob" "Ignore"]"#)),
            "FailIndex" if !spec.get("backoffLimitPerIndex").is_set() => {
                causes.push(action.invalid("requires the backoffLimitPerIndex to be set"));
            }
            _ => action.one_of(causes, &["Count", "FailIndex", "FailJob", "Ignore"]),
        }
        let words = match (codes.is_set(), conditions.len() > 0) {
            (true, true) => "specifying both OnExitCodes and OnPodConditions is not supported",
            (false, false) => "specifying one of OnExitCodes and OnPodConditions is required",
            _ => "",
        };
        if !words.is_empty() {
            causes.push(Cause { message: format!("Invalid value: {words}"), ..rule.invalid("") });
        }
        if codes.is_set() {
            validate_exit_codes(&codes, &containers, causes);
        }
        if conditions.len() > MAX_RULES {
            causes.push(Cause::too_many(&conditions.path, conditions.len(), MAX_RULES));
            continue;
        }
        for pattern in conditions.items() {
            pattern.get("type").need(causes, names::qualified);
            let status = pattern.get("status");
            match status.text() {
                "" => causes.push(needed(&status, r#"["False" "True" "Unknown"]"#)),
                _ => status.one_of(causes, &["False", "True", "Unknown"]),
            }
        }
    }
}

fn needed(field: &Field, values: &str) -> Cause {
    Cause::required(&field.path, &format!("valid values: {values}"))
}

fn validate_exit_codes(codes: &Field, containers: &BTreeSet<&str>, causes: &mut Vec<Cause>) {
    let (operator, values, container) = (codes.get("operator"), codes.get("values"), codes.get("containerName"));
    match operator.text() {
        "" => causes.push(needed(&operator, r#"["In" "NotIn"]"#)),
        _ => operator.one_of(causes, &["In", "NotIn"]),
    }
    if container.is_set() && !containers.contains(container.text()) {
        causes.push(container.invalid("must be one of the container or initContainer names in the pod template"));
    }
    if values.len() == 0 {
        causes.push(values.invalid("at least one value is required"));
    } else if values.len() > MAX_EXIT_CODES {
        causes.push(Cause::too_many(&values.path, values.len(), MAX_EXIT_CODES));
        return;
    }
    let mut seen = BTreeSet::new();
    let (mut last, mut is_ordered) = (i64::MIN, true);
    for value in values.items() {
        let Some(code) = value.int() else { continue };
        if operator.text() == "In" && code == 0 {
            causes.push(value.invalid("must not be 0 for the In operator"));
        }
        if !seen.insert(code) {
            causes.push(Cause::duplicate(&value.path, code));
        }
        is_ordered &= last <= code;
        last = code;
    }
    if !is_ordered {
        causes.push(values.invalid("must be ordered"));
    }
}

fn validate_success(policy: &Field, completions: i64, causes: &mut Vec<Cause>) {
    let rules = policy.get("rules");
    match rules.len() {
        0 => {
            let detail = "at least one rules must be specified when the successPolicy is specified";
            causes.push(Cause::required(&rules.path, detail));
        }
        many if many > MAX_RULES => causes.push(Cause::too_many(&rules.path, many, MAX_RULES)),
        _ => {}
    }
    for rule in rules.items().take(MAX_RULES) {
        let (indexes, count) = (rule.get("succeededIndexes"), rule.get("succeededCount"));
        if !indexes.is_set() && !count.is_set() {
            let detail = "at least one of succeededCount or succeededIndexes must be specified";
            causes.push(Cause::required(&rule.path, detail));
        }
        let mut total: Option<i64> = None;
        if indexes.text().len() > MAX_INDEXES_LENGTH {
            causes.push(Cause::too_long(&indexes.path, MAX_INDEXES_LENGTH));
        } else if indexes.is_set() {
            match indexes_of(indexes.text(), completions) {
                Ok(found) => total = Some(found.iter().map(|(first, end)| end - first + 1).sum()),
                Err(why) => causes.push(indexes.invalid(&format!("error parsing succeededIndexes: {why}"))),
            }
        }
        count.not_negative(causes);
        let number = count.int().unwrap_or(0);
        if number > completions {
            causes.push(count.invalid(&format!(
                "must be less than or equal to {completions} (the number of specified completions)"
            )));
        }
        if let Some(total) = total.filter(|total| number > *total) {
            causes.push(count.invalid(&format!(
                "must be less than or equal to {total} (the number of indexes in the specified succeededIndexes field)"
            )));
        }
    }
}

/// The indexes that a text such as `0,2-4` names, ascending and below `completions`: the first and the last of each
/// part.
///
/// # Errors
/// Upstream's words for what is wrong with it.
pub(super) fn indexes_of(text: &str, completions: i64) -> Result<Vec<(i64, i64)>, String> {
    let (mut all, mut last) = (Vec::new(), -1_i64);
    let number = |text: &str| {
        let wrong = || format!("cannot convert string to integer for index: {text:?}");
        let number = text.parse::<i64>().map_err(|_| wrong())?;
        if number >= completions { Err(format!("too large index: {text:?}")) } else { Ok(number) }
    };
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let limits: Vec<&str> = part.split('-').collect();
        let (first, end) = match limits.as_slice() {
            [one] => (number(one)?, number(one)?),
            [first, end] => (number(first)?, number(end)?),
            _ => {
                return Err(format!(
                    "the fragment {part:?} violates the requirement that an index interval can have at most two parts \
                        separated by '-'"
                ));
            }
        };
        if first <= last {
            return Err(format!("non-increasing order, previous: {last}, current: {first}"));
        }
        if limits.len() == 2 && first >= end {
            return Err(format!("non-increasing order, previous: {first}, current: {end}"));
        }
        all.push((first, end));
        last = end;
    }
    Ok(all)
}

/// What may not change. An Indexed Job grows and shrinks with its parallelism; a suspended one that has not started may
/// still be told where to run.
pub fn validate_update(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    let (now, before) = (Field::root(new).get("spec"), Field::root(old).get("spec"));
    let completions = now.get("completions");
    let both_set = completions.is_set() && before.get("completions").is_set();
    if is_indexed(&now) && both_set && completions.value != before.get("completions").value {
        if completions.value != now.get("parallelism").value {
            let detail = format!("can only be modified in tandem with {}", now.get("parallelism").path);
            causes.push(completions.invalid(&detail));
        }
    } else {
        completions.immutable(&before.get("completions"), causes);
    }
    now.get("selector").immutable(&before.get("selector"), causes);
    let started = Field::root(old).dig(&["status", "startTime"]).is_set();
    let is_open = before.get("suspend").is_true() && !started;
    let template = now.get("template");
    let fixed = |template: &Value| if is_open { without_directives(template.clone()) } else { template.clone() };
    if fixed(template.value) != fixed(before.get("template").value) {
        causes.push(template.invalid(super::field::IMMUTABLE));
    }
    for field in ["completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"] {
        now.get(field).immutable(&before.get(field), causes);
    }
}

/// A template without what says where its pods may run.
fn without_directives(mut template: Value) -> Value {
    for (part, fields) in
        [("metadata", &["annotations", "labels"][..]), ("spec", &["nodeSelector", "tolerations", "schedulingGates"])]
    {
        if let Some(part) = super::field::inner(&mut template, part) {
            fields.iter().for_each(|field| super::field::remove(part, field));
        }
    }
    let Some(spec) = super::field::inner(&mut template, "spec") else { return template };
    if let Some(affinity) = super::field::inner(spec, "affinity") {
        super::field::remove(affinity, "nodeAffinity");
        if affinity.as_object().is_some_and(serde_json::Map::is_empty) {
            super::field::remove(spec, "affinity");
        }
    }
    template
}
