//! CronJob: Jobs by the clock.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::cells::{self, AGE, NAME, SELECTOR, number, or_none, text_column, wide};
use super::field::{Field, default, inner, made};
use super::{BASE, Column, Kind, Row, Subresource, job_validation, pod_spec, pod_warnings, workload};
use crate::cron::{Schedule, zone};
use crate::jiff::Timestamp;
use crate::object::{at, name, text};
use crate::status::Cause;
use crate::time;

/// Longest name: its Jobs' names are eleven characters longer, and have to fit a label.
const MAX_NAME: usize = 52;

/// The row of CronJob.
pub static CRON_JOB: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("batch"),
    kind: Borrowed("CronJob"),
    plural: Borrowed("cronjobs"),
    singular: Borrowed("cronjob"),
    short_names: Borrowed(&[Borrowed("cj")]),
    categories: Borrowed(&[Borrowed("all")]),
    subresources: Borrowed(&[Subresource::Status]),
    type_name: Borrowed("io.k8s.api.batch.v1.CronJob"),
    columns: Borrowed(&[
        NAME,
        text_column("Schedule", "When it runs, in Cron's five fields."),
        text_column("Timezone", "The time zone of the schedule."),
        SUSPEND,
        number("Active", "Jobs of it that run."),
        text_column("Last Schedule", "Time since it last made a Job."),
        AGE,
        wide("Containers", "Names of the containers of the template."),
        wide("Images", "Images of the containers of the template."),
        SELECTOR,
    ]),
    row: |_, job, now| row(job, now),
    defaults: |_, job| {
        let Some(spec) = made(job, "spec") else { return };
        default(spec, "concurrencyPolicy", "Allow");
        default(spec, "suspend", false);
        default(spec, "successfulJobsHistoryLimit", 3);
        default(spec, "failedJobsHistoryLimit", 1);
        let made_spec = made(spec, "jobTemplate").and_then(|template| made(template, "spec"));
        if let Some(template) = made_spec.and_then(|spec| made(spec, "template")) {
            pod_spec::template_defaults(template);
        }
        // A Job's own defaults are filled in when it is made; these are not its template's.
        if let Some(metadata) = inner(spec, "jobTemplate") {
            default(metadata, "metadata", json!({}));
        }
    },
    prepare_create: |_, job| workload::prepare_create(job, json!({})),
    prepare_update: |_, new, old| workload::prepare_update(new, old),
    validate: |_, job, causes| validate(job, causes),
    warnings: |_, job| {
        let job = Field::root(job);
        let mut warnings: Vec<String> = pod_warnings::of_name(&job, pod_warnings::POD_NAMES).into_iter().collect();
        warnings.extend(pod_warnings::of_pods(&job.dig(&["spec", "jobTemplate", "spec", "template"]), true));
        warnings
    },
    ..BASE
});

const SUSPEND: Column = Column {
    name: Borrowed("Suspend"),
    type_: "boolean",
    format: "",
    priority: 0,
    description: Borrowed("Whether it makes no further Jobs."),
};

fn row(job: &Value, now: Timestamp) -> Vec<Value> {
    let spec = Field::root(job).get("spec");
    let template = json!({ "spec": spec.dig(&["jobTemplate", "spec"]).value });
    let [containers, images] = cells::containers(&template);
    let suspend = if spec.get("suspend").is_true() { "True" } else { "False" };
    let last = time::parse(text(job, &["status", "lastScheduleTime"]))
        .map_or("<none>".to_owned(), |last| time::age(last, now));
    vec![
        json!(name(job)),
        json!(spec.get("schedule").text()),
        or_none(spec.get("timeZone").text()),
        json!(suspend),
        json!(Field::root(job).dig(&["status", "active"]).len()),
        json!(last),
        cells::age(job, now),
        containers,
        images,
        match at(&template, &["spec", "selector"]).is_some_and(|selector| !selector.is_null()) {
            true => cells::selector(&template, &["spec", "selector"]),
            false => json!("<none>"),
        },
    ]
}

fn validate(job: &Value, causes: &mut Vec<Cause>) {
    let spec = Field::root(job).get("spec");
    let schedule = spec.get("schedule");
    let zone_field = spec.get("timeZone");
    if schedule.need_text(causes) {
        if let Err(why) = Schedule::parse(schedule.text()) {
            causes.push(schedule.invalid(&why));
        }
        if schedule.text().contains("TZ") {
            causes.push(schedule.invalid(match zone_field.is_set() {
                true => "cannot use both timeZone field and TZ or CRON_TZ in schedule",
                false => "cannot use TZ or CRON_TZ in schedule, use timeZone field instead",
            }));
        }
    }
    if zone_field.is_set() {
        let given = zone_field.text();
        if given.is_empty() {
            causes.push(zone_field.invalid("timeZone must be nil or non-empty string"));
        } else if given.eq_ignore_ascii_case("Local") {
            let detail = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
            causes.push(zone_field.invalid(detail));
        } else if zone(given).is_none() {
            causes.push(zone_field.invalid(&format!("unknown time zone {given}")));
        }
    }
    spec.get("startingDeadlineSeconds").not_negative(causes);
    spec.get("concurrencyPolicy").need_one_of(causes, &["Allow", "Forbid", "Replace"]);
    let template = spec.dig(&["jobTemplate", "spec"]);
    job_validation::validate_spec(&template, causes);
    let (selector, manual) = (template.get("selector"), template.get("manualSelector"));
    if selector.is_set() {
        causes.push(selector.invalid("`selector` will be auto-generated"));
    }
    if manual.is_true() {
        causes.push(Cause::not_supported(&manual.path, true, &["nil", "false"]));
    }
    spec.get("successfulJobsHistoryLimit").not_negative(causes);
    spec.get("failedJobsHistoryLimit").not_negative(causes);
    if name(job).len() > MAX_NAME {
        let detail = format!("must be no more than {MAX_NAME} characters");
        causes.push(Cause::invalid("metadata.name", name(job), &detail));
    }
}
