//! Job: pods that run to their end.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::cells::{self, AGE, CONTAINERS, IMAGES, NAME, SELECTOR, count, text_column};
use super::field::{Field, default, each, inner, made};
use super::{BASE, Kind, Row, Subresource, job_status_validation, job_validation, pod_spec, pod_warnings, workload};
use crate::jiff::Timestamp;
use crate::object::{at, ensure, is_terminating, name, text, uid};
use crate::time;

/// Upstream's default of `spec.backoffLimit`.
const BACKOFF_LIMIT: i64 = 6;
/// The labels that a generated selector's pods get, with the field of the Job's metadata that they hold.
pub(super) const GENERATED_LABELS: [(&str, &str); 4] = [
    ("batch.kubernetes.io/controller-uid", "uid"),
    ("batch.kubernetes.io/job-name", "name"),
    ("controller-uid", "uid"),
    ("job-name", "name"),
];

/// The row of Job.
pub static JOB: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("batch"),
    kind: Borrowed("Job"),
    plural: Borrowed("jobs"),
    singular: Borrowed("job"),
    categories: Borrowed(&[Borrowed("all")]),
    subresources: Borrowed(&[Subresource::Status]),
    type_name: Borrowed("io.k8s.api.batch.v1.Job"),
    fields: |_, job| vec![("status.successful", count(job, &["status", "succeeded"]).to_string())],
    columns: Borrowed(&[
        NAME,
        text_column("Status", "How the Job is doing, in one word."),
        text_column("Completions", "Pods that have succeeded, of those wanted."),
        text_column("Duration", "Time from the start to the end."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ]),
    row: |_, job, now| row(job, now),
    defaults: |_, job| defaults(job),
    prepare_create: |_, job| {
        workload::prepare_create(job, json!({}));
        generate_selector(job);
        workload::labels_of_template(job);
    },
    prepare_update: |_, new, old| workload::prepare_update(new, old),
    validate: |_, job, causes| job_validation::validate(job, causes),
    validate_update: |_, new, old, causes| job_validation::validate_update(new, old, causes),
    validate_status: |_, new, old, causes| job_status_validation::validate(new, old, causes),
    warnings: pod_warnings::of_named_template,
    ..BASE
});

fn row(job: &Value, now: Timestamp) -> Vec<Value> {
    let (completions, parallelism) = (at(job, &["spec", "completions"]), count(job, &["spec", "parallelism"]));
    let succeeded = count(job, &["status", "succeeded"]);
    let of = match completions.and_then(Value::as_i64) {
        Some(completions) => format!("{succeeded}/{completions}"),
        None if parallelism > 1 => format!("{succeeded}/1 of {parallelism}"),
        None => format!("{succeeded}/1"),
    };
    let moment = |field| time::parse(text(job, &["status", field]));
    let duration = match (moment("startTime"), moment("completionTime")) {
        (None, _) => String::new(),
        (Some(start), end) => time::age(start, end.unwrap_or(now)),
    };
    let [containers, images] = cells::containers(job);
    let selector = cells::selector(job, &["spec", "selector"]);
    vec![
        json!(name(job)),
        json!(status(job)),
        json!(of),
        json!(duration),
        cells::age(job, now),
        containers,
        images,
        selector,
    ]
}

fn status(job: &Value) -> &'static str {
    let holds = |type_: &str| {
        let mut all = Field::root(job).dig(&["status", "conditions"]).items();
        all.any(|condition| condition.get("type").text() == type_ && condition.get("status").text() == "True")
    };
    if holds("Complete") {
        "Complete"
    } else if holds("Failed") {
        "Failed"
    } else if is_terminating(job) {
        "Terminating"
    } else if holds("Suspended") {
        "Suspended"
    } else if holds("FailureTarget") {
        "FailureTarget"
    } else if holds("SuccessCriteriaMet") {
        "SuccessCriteriaMet"
    } else {
        "Running"
    }
}

fn defaults(job: &mut Value) {
    workload::labels_of_template(job);
    let Some(spec) = made(job, "spec") else { return };
    let is_set = |spec: &Value, field: &str| spec.get(field).is_some_and(|value| !value.is_null());
    if !is_set(spec, "completions") && !is_set(spec, "parallelism") {
        default(spec, "completions", 1);
    }
    default(spec, "parallelism", 1);
    let limit = if is_set(spec, "backoffLimitPerIndex") { i64::from(i32::MAX) } else { BACKOFF_LIMIT };
    default(spec, "backoffLimit", limit);
    default(spec, "completionMode", "NonIndexed");
    default(spec, "suspend", false);
    default(spec, "manualSelector", false);
    let replaced = if is_set(spec, "podFailurePolicy") { "Failed" } else { "TerminatingOrFailed" };
    default(spec, "podReplacementPolicy", replaced);
    if let Some(policy) = inner(spec, "podFailurePolicy") {
        for rule in each(policy, "rules") {
            each(rule, "onPodConditions").for_each(|pattern| default(pattern, "status", "True"));
        }
    }
    if let Some(template) = made(spec, "template") {
        pod_spec::template_defaults(template);
    }
}

/// A selector that no other Job has, and the labels that it asks for; what a user has put there stays, and is refused
/// by the validation where it does not fit.
fn generate_selector(job: &mut Value) {
    if at(job, &["spec", "manualSelector"]).and_then(Value::as_bool) == Some(true) {
        return;
    }
    let (uid, name) = (uid(job).to_owned(), name(job).to_owned());
    let labels = ensure(job, &["spec", "template", "metadata", "labels"]);
    for (label, field) in GENERATED_LABELS {
        labels.entry(label).or_insert_with(|| json!(if field == "uid" { &uid } else { &name }));
    }
    let (label, _) = GENERATED_LABELS[0];
    ensure(job, &["spec", "selector", "matchLabels"]).entry(label).or_insert_with(|| json!(uid));
}
