//! What a Job's status may become. Upstream's paths and words.
//!
//! As upstream, most rules are asked only where something that they are about has changed: a status that breaks one
//! already (a spec that shrank under it, an older server) may still be written otherwise.

use std::collections::BTreeSet;

use serde_json::Value;

use super::field::Field;
use super::job_validation::{indexes_of, is_indexed};
use crate::status::Cause;
use crate::time;

const COMPLETE: &str = "Complete";
const FAILED: &str = "Failed";
const FAILURE_TARGET: &str = "FailureTarget";
const SUCCESS_CRITERIA_MET: &str = "SuccessCriteriaMet";
const SUSPENDED: &str = "Suspended";

/// A Job before and after.
struct Update<'a> {
    old: Field<'a>,
    new: Field<'a>,
    spec: Field<'a>,
}

fn holds(status: &Field, type_: &str) -> bool {
    let mut all = status.get("conditions").items();
    all.any(|condition| condition.get("type").text() == type_ && condition.get("status").text() == "True")
}

fn is_finished(status: &Field) -> bool {
    holds(status, COMPLETE) || holds(status, FAILED)
}

fn count(status: &Field, field: &str) -> i64 {
    status.get(field).int().unwrap_or(0)
}

impl Update<'_> {
    /// Whether one of these fields, or whether one of these conditions holds, is another one than before.
    fn changed(&self, fields: &[&str], conditions: &[&str]) -> bool {
        fields.iter().any(|field| self.new.get(field).value != self.old.get(field).value)
            || conditions.iter().any(|type_| holds(&self.new, type_) != holds(&self.old, type_))
    }

    fn finish_changed(&self) -> bool {
        is_finished(&self.new) != is_finished(&self.old)
    }

    /// A fault of the conditions as a whole, whose value is not repeated.
    fn conditions(&self, why: &str) -> Cause {
        let conditions = self.new.get("conditions");
        Cause { message: format!("Invalid value: {why}"), ..conditions.invalid("") }
    }
}

/// A Job's status, by what it was.
pub fn validate(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    let (root, before) = (Field::root(new), Field::root(old));
    let update = Update { old: before.get("status"), new: root.get("status"), spec: root.get("spec") };
    for field in ["active", "succeeded", "failed", "ready", "terminating"] {
        update.new.get(field).not_negative(causes);
    }
    validate_uncounted(&update.new.get("uncountedTerminatedPods"), causes);
    validate_conditions(&update, causes);
    validate_times(&update, causes);
    validate_finished(&update, causes);
    validate_indexes(&update, causes);
    validate_success(&update, causes);
    validate_steps(&update, causes);
}

fn validate_uncounted(uncounted: &Field, causes: &mut Vec<Cause>) {
    let mut seen = BTreeSet::new();
    for uid in ["succeeded", "failed"].iter().flat_map(|list| uncounted.get(list).items()) {
        if uid.text().is_empty() {
            causes.push(uid.invalid("must not be empty"));
        } else if !seen.insert(uid.text()) {
            causes.push(Cause::duplicate(&uid.path, uid.text()));
        }
    }
}

fn validate_conditions(update: &Update, causes: &mut Vec<Cause>) {
    let is = |type_| holds(&update.new, type_);
    if update.changed(&[], &[COMPLETE, FAILED]) && is(COMPLETE) && is(FAILED) {
        causes.push(update.conditions("cannot set Complete=True and Failed=true conditions"));
    }
    if update.changed(&[], &[COMPLETE, FAILURE_TARGET]) && is(COMPLETE) && is(FAILURE_TARGET) {
        causes.push(update.conditions("cannot set Complete=True and FailureTarget=true conditions"));
    }
    if update.changed(&[], &[FAILED, FAILURE_TARGET]) && is(FAILED) && !is(FAILURE_TARGET) {
        let why = "cannot set Failed=True condition without the FailureTarget=true condition";
        causes.push(update.conditions(why));
    }
    if update.changed(&[], &[COMPLETE, SUCCESS_CRITERIA_MET]) && is(COMPLETE) && !is(SUCCESS_CRITERIA_MET) {
        let why = "cannot set Complete=True condition without the SuccessCriteriaMet=true condition";
        causes.push(update.conditions(why));
    }
}

fn validate_times(update: &Update, causes: &mut Vec<Cause>) {
    let (start, end) = (update.new.get("startTime"), update.new.get("completionTime"));
    let is_complete = holds(&update.new, COMPLETE);
    if update.changed(&["completionTime"], &[COMPLETE]) {
        if end.is_set() && !is_complete {
            causes.push(end.invalid("cannot set completionTime when there is no Complete=True condition"));
        } else if is_complete && !end.is_set() {
            causes.push(Cause::required(&end.path, "completionTime is required for Complete jobs"));
        }
    }
    let is_before = time::parse(end.text()).zip(time::parse(start.text())).is_some_and(|(end, start)| end < start);
    if update.changed(&["startTime", "completionTime"], &[]) && is_before {
        causes.push(end.invalid("completionTime cannot be set before startTime"));
    }
}

fn validate_finished(update: &Update, causes: &mut Vec<Cause>) {
    let (is_finished, finish_changed) = (is_finished(&update.new), update.finish_changed());
    let asked = |field: &str| is_finished && (finish_changed || update.changed(&[field], &[]));
    let (active, start) = (update.new.get("active"), update.new.get("startTime"));
    if asked("active") && count(&update.new, "active") > 0 {
        causes.push(active.invalid("active>0 is invalid for finished job"));
    }
    if asked("startTime") && !start.is_set() {
        causes.push(Cause::required(&start.path, "startTime is required for finished job"));
    }
    let uncounted = update.new.get("uncountedTerminatedPods");
    if asked("uncountedTerminatedPods") && uncounted.get("failed").len() + uncounted.get("succeeded").len() > 0 {
        causes.push(uncounted.invalid("uncountedTerminatedPods needs to be empty for finished job"));
    }
    let terminating = update.new.get("terminating");
    if asked("terminating") && count(&update.new, "terminating") > 0 {
        causes.push(terminating.invalid("terminating>0 is invalid for finished job"));
    }
    let ready = update.new.get("ready");
    if update.changed(&["ready", "active"], &[]) && count(&update.new, "ready") > count(&update.new, "active") {
        causes.push(ready.invalid("cannot set more ready pods than active"));
    }
}

fn validate_indexes(update: &Update, causes: &mut Vec<Cause>) {
    let (completed, failed) = (update.new.get("completedIndexes"), update.new.get("failedIndexes"));
    let per_index = update.spec.get("backoffLimitPerIndex");
    let completed_changed = update.changed(&["completedIndexes"], &[]);
    let failed_changed = update.changed(&["failedIndexes"], &[]);
    let limit = update.spec.get("completions").int();
    if let Some(Err(why)) = limit.filter(|_| completed_changed).map(|limit| indexes_of(completed.text(), limit)) {
        causes.push(completed.invalid(&format!("error parsing completedIndexes: {why}")));
    }
    let asked = limit.filter(|_| failed_changed && per_index.is_set() && failed.is_set());
    if let Some(Err(why)) = asked.map(|limit| indexes_of(failed.text(), limit)) {
        causes.push(failed.invalid(&format!("error parsing failedIndexes: {why}")));
    }
    if completed_changed && !completed.text().is_empty() && !is_indexed(&update.spec) {
        causes.push(completed.invalid("cannot set non-empty completedIndexes when non-indexed completion mode"));
    }
    if failed_changed && failed.is_set() && !per_index.is_set() {
        causes.push(failed.invalid("cannot set non-null failedIndexes when backoffLimitPerIndex is null"));
    }
    if (completed_changed || failed_changed)
        && failed.is_set()
        && let Some(limit) = limit
        && let (Ok(of_completed), Ok(of_failed)) =
            (indexes_of(completed.text(), limit), indexes_of(failed.text(), limit))
        && let Some(index) = overlap(&of_completed, &of_failed)
    {
        let why = format!("failedIndexes and completedIndexes overlap at index: {index}");
        causes.push(failed.invalid(&why));
    }
}

/// The first number that is in intervals of both; both ascend.
fn overlap(one: &[(i64, i64)], other: &[(i64, i64)]) -> Option<i64> {
    let (mut one, mut other) = (one.iter().peekable(), other.iter().peekable());
    while let (Some(a), Some(b)) = (one.peek(), other.peek()) {
        if a.1 < b.0 {
            one.next();
        } else if b.1 < a.0 {
            other.next();
        } else {
            return Some(a.0.max(b.0));
        }
    }
    None
}

fn validate_success(update: &Update, causes: &mut Vec<Cause>) {
    let is_met = holds(&update.new, SUCCESS_CRITERIA_MET);
    if is_met && holds(&update.new, FAILED) {
        causes.push(update.conditions("cannot set SuccessCriteriaMet=True and Failed=true conditions"));
    }
    if is_met && holds(&update.new, FAILURE_TARGET) {
        causes.push(update.conditions("cannot set SuccessCriteriaMet=True and FailureTarget=true conditions"));
    }
    if update.spec.get("successPolicy").is_set() && !is_met && holds(&update.new, COMPLETE) {
        let why = "cannot set Complete=True for Job with SuccessPolicy unless SuccessCriteriaMet=True";
        causes.push(update.conditions(why));
    }
}

/// What is about the way from the old status to the new one.
fn validate_steps(update: &Update, causes: &mut Vec<Cause>) {
    for type_ in [FAILED, COMPLETE, FAILURE_TARGET] {
        if holds(&update.old, type_) && !holds(&update.new, type_) {
            causes.push(update.conditions(&format!("cannot disable the terminal {type_}=True condition")));
        }
    }
    let shrank = |field: &str| count(&update.new, field) < count(&update.old, field);
    if shrank("failed") {
        causes.push(update.new.get("failed").invalid("cannot decrease the failed counter"));
    }
    // An Indexed Job whose completions go with its parallelism may be scaled down.
    let scales =
        is_indexed(&update.spec) && update.spec.get("completions").value == update.spec.get("parallelism").value;
    if shrank("succeeded") && !scales {
        causes.push(update.new.get("succeeded").invalid("cannot decrease the succeeded counter"));
    }
    let (end, ended) = (update.new.get("completionTime"), update.old.get("completionTime"));
    if end.is_set() && ended.is_set() && end.value != ended.value {
        causes.push(end.invalid("completionTime cannot be mutated"));
    }
    let (start, started) = (update.new.get("startTime"), update.old.get("startTime"));
    let is_resumed = holds(&update.old, SUSPENDED) && !holds(&update.new, SUSPENDED);
    if started.is_set() && start.value != started.value && !update.spec.get("suspend").is_true() && !is_resumed {
        causes.push(start.invalid("field is immutable for unsuspended job once set"));
    }
    let (was_met, is_met) = (holds(&update.old, SUCCESS_CRITERIA_MET), holds(&update.new, SUCCESS_CRITERIA_MET));
    if was_met && !is_met {
        causes.push(update.conditions("cannot disable the SuccessCriteriaMet=True condition"));
    }
    if holds(&update.old, COMPLETE) && !was_met && is_met {
        let why = "cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions";
        causes.push(update.conditions(why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const START: &str = "2026-01-01T00:00:00Z";
    const LATER: &str = "2026-01-01T00:01:00Z";

    fn conditions(types: &[&str]) -> Value {
        types.iter().map(|type_| json!({ "type": type_, "status": "True" })).collect()
    }

    fn faults(spec: Value, old: Value, new: Value) -> String {
        let job = |status: Value| json!({ "spec": spec, "status": status });
        let mut causes = Vec::new();
        validate(&job(new), &job(old), &mut causes);
        causes.into_iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn a_jobs_start_stays_but_when_it_is_suspended_or_resumed() {
        let immutable = "field is immutable for unsuspended job once set";
        let (old, new) = (json!({ "startTime": START }), json!({ "startTime": LATER }));
        assert_eq!(
            faults(json!({}), old.clone(), new.clone()),
            format!("status.startTime: Invalid value: \"{LATER}\": {immutable}")
        );
        assert_eq!(
            faults(json!({}), old.clone(), json!({})),
            format!("status.startTime: Invalid value: null: {immutable}")
        );
        assert_eq!(faults(json!({ "suspend": true }), old.clone(), new.clone()), "");
        assert_eq!(faults(json!({}), json!({}), new.clone()), "");
        let suspended = json!({ "startTime": START, "conditions": conditions(&["Suspended"]) });
        assert_eq!(faults(json!({}), suspended, new), "");
    }

    #[test]
    fn what_a_finished_job_must_have() {
        let done = |more: Value| {
            let mut status = json!({ "startTime": START, "completionTime": LATER,
                "conditions": conditions(&["SuccessCriteriaMet", "Complete"]) });
            crate::object::merge(&mut status, more);
            status
        };
        let running = || json!({ "startTime": START });
        let cases = [
            (done(json!({})), ""),
            (
                done(json!({ "completionTime": null })),
                "status.completionTime: Required value: completionTime is required",
            ),
            (
                done(json!({ "completionTime": "2025-01-01T00:00:00Z" })),
                "completionTime cannot be set before startTime",
            ),
            (done(json!({ "active": 1 })), "status.active: Invalid value: 1: active>0 is invalid for finished job"),
            (done(json!({ "terminating": 1 })), "terminating>0 is invalid for finished job"),
            (
                done(json!({ "uncountedTerminatedPods": { "failed": ["a"] } })),
                "uncountedTerminatedPods needs to be empty for finished job",
            ),
            (
                done(json!({ "conditions": conditions(&["Complete"]) })),
                "status.conditions: Invalid value: cannot set Complete=True condition without the \
                    SuccessCriteriaMet=true \
                    condition",
            ),
            (
                json!({ "startTime": START, "conditions": conditions(&["Failed"]) }),
                "cannot set Failed=True condition without the FailureTarget=true condition",
            ),
            (json!({ "startTime": START, "conditions": conditions(&["FailureTarget", "Failed"]) }), ""),
            (json!({ "startTime": START, "completionTime": LATER }), "when there is no Complete=True condition"),
            (json!({ "startTime": START, "active": 1, "ready": 2 }), "cannot set more ready pods than active"),
            (json!({ "startTime": START, "failed": -1 }), "status.failed: Invalid value: -1: must be greater than or"),
            (
                json!({ "startTime": START, "uncountedTerminatedPods": { "failed": ["a", "", "a"] } }),
                "status.uncountedTerminatedPods.failed[2]: Duplicate value: \"a\"",
            ),
        ];
        for (new, wanted) in cases {
            let found = faults(json!({}), running(), new.clone());
            assert!(found.contains(wanted) && found.is_empty() == wanted.is_empty(), "{new}: {found}");
        }
        assert!(faults(json!({}), done(json!({})), running()).contains("cannot disable the terminal Complete=True"));
        let worse = done(json!({ "active": 1 }));
        let noted = done(json!({ "active": 1, "ready": 1 }));
        assert_eq!(faults(json!({}), worse, noted), "", "what was wrong before may stay");
    }

    #[test]
    fn indexes_are_in_order_within_the_completions_and_apart() {
        let indexed = json!({ "completionMode": "Indexed", "completions": 5, "backoffLimitPerIndex": 1 });
        let of = |completed: &str, failed: &str| {
            faults(indexed.clone(), json!({}), json!({ "completedIndexes": completed, "failedIndexes": failed }))
        };
        assert_eq!(of("0,2-3", "1,4"), "");
        assert!(of("0,2-3", "3").contains("failedIndexes and completedIndexes overlap at index: 3"));
        assert!(
            of("2,1", "").contains("error parsing completedIndexes: non-increasing order, previous: 2, current: 1")
        );
        assert!(of("", "5").contains("error parsing failedIndexes: too large index: \"5\""));
        let plain = faults(json!({}), json!({}), json!({ "completedIndexes": "0", "failedIndexes": "" }));
        assert!(plain.contains("cannot set non-empty completedIndexes when non-indexed completion mode"), "{plain}");
        assert!(plain.contains("cannot set non-null failedIndexes when backoffLimitPerIndex is null"), "{plain}");
        let counts =
            |old: i64, new: i64| faults(indexed.clone(), json!({ "succeeded": old }), json!({ "succeeded": new }));
        assert!(counts(2, 1).contains("cannot decrease the succeeded counter"));
        let elastic = json!({ "completionMode": "Indexed", "completions": 5, "parallelism": 5 });
        assert_eq!(faults(elastic, json!({ "succeeded": 2 }), json!({ "succeeded": 1 })), "");
    }
}
