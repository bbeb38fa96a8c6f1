//! Jobs, CronJobs, DaemonSets, ReplicationControllers, PodTemplates and budgets from outside: a manifest in, the stored
//! object, the complaints or the table's row out.

use mainstay_api::jiff::Timestamp;
use mainstay_api::kinds::{CRON_JOB, DAEMON_SET, JOB, POD_DISRUPTION_BUDGET, POD_TEMPLATE, REPLICATION_CONTROLLER};
use mainstay_api::{Kind, Status, metadata};
use serde_json::{Map, Value, json};

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().map(|map| map.remove(key));
        } else {
            merge(&mut target[key], value);
        }
    }
}

/// The object as it is stored: defaults, and what a create sets.
fn stored(kind: &Kind, patch: &Value) -> Value {
    let pod = json!({ "containers": [{ "name": "c", "image": "i:1" }] });
    let template = json!({ "metadata": { "labels": { "a": "b" } }, "spec": pod });
    let job = json!({ "template": { "spec": { "restartPolicy": "Never",
        "containers": [{ "name": "c", "image": "i:1" }] } } });
    let spec = match &*kind.kind {
        "Job" => job,
        "CronJob" => json!({ "schedule": "*/5 * * * *", "jobTemplate": { "spec": job } }),
        "DaemonSet" => json!({ "selector": { "matchLabels": { "a": "b" } }, "template": template }),
        "ReplicationController" => json!({ "template": template }),
        "PodDisruptionBudget" => json!({ "minAvailable": 1, "selector": { "matchLabels": { "a": "b" } } }),
        _ => Value::Null,
    };
    let metadata =
        json!({ "name": "x", "namespace": "default", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z" });
    let mut object = json!({ "metadata": metadata, "spec": spec });
    if spec.is_null() {
        object = json!({ "metadata": object["metadata"], "template": template });
    }
    merge(&mut object, patch);
    (kind.defaults)(kind, &mut object);
    (kind.prepare_create)(kind, &mut object);
    object
}

/// What a create would answer: `ok`, or what follows `is invalid: ` in the message of the 422.
fn answer(kind: &Kind, patch: Value) -> String {
    let object = stored(kind, &patch);
    let mut causes = Vec::new();
    metadata::validate(kind, &object, &mut causes);
    (kind.validate)(kind, &object, &mut causes);
    words(kind, &causes)
}

fn words(kind: &Kind, causes: &[mainstay_api::status::Cause]) -> String {
    if causes.is_empty() {
        return "ok".to_owned();
    }
    let message = Status::invalid(kind, "x", causes).message;
    message.split_once(" is invalid: ").map_or(message.clone(), |(_, words)| words.to_owned())
}

fn update(kind: &Kind, old: Value, new: Value) -> String {
    let (old, mut new) = (stored(kind, &old), stored(kind, &new));
    (kind.prepare_update)(kind, &mut new, &old);
    let mut causes = Vec::new();
    (kind.validate)(kind, &new, &mut causes);
    (kind.validate_update)(kind, &new, &old, &mut causes);
    words(kind, &causes)
}

fn row(kind: &Kind, patch: Value) -> String {
    let now: Timestamp = "2026-01-01T00:05:00Z".parse().unwrap();
    let mut object = stored(kind, &json!({}));
    merge(&mut object, &patch);
    let cells = (kind.row)(kind, &object, now);
    assert_eq!(cells.len(), kind.columns.len(), "{kind:?}");
    let text = |cell: &Value| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned);
    cells.iter().map(text).collect::<Vec<_>>().join(" | ")
}

const ALL: [&Kind; 6] = [&JOB, &CRON_JOB, &DAEMON_SET, &REPLICATION_CONTROLLER, &POD_TEMPLATE, &POD_DISRUPTION_BUDGET];

#[test]
fn good_ones_are_accepted_and_defaulting_twice_changes_nothing_s11() {
    for kind in ALL {
        assert_eq!(answer(kind, json!({})), "ok", "{kind:?}");
        assert_eq!(update(kind, json!({}), json!({})), "ok", "{kind:?}");
        let once = stored(kind, &json!({}));
        let mut twice = once.clone();
        (kind.defaults)(kind, &mut twice);
        assert_eq!(once, twice, "{kind:?}");
    }
}

#[test]
fn defaults_are_upstreams() {
    let spec = |kind: &Kind, patch: Value| {
        let mut spec = stored(kind, &patch)["spec"].take();
        for nested in ["template", "jobTemplate", "selector"] {
            spec.as_object_mut().unwrap().remove(nested);
        }
        spec
    };
    let job = json!({
        "completions": 1, "parallelism": 1, "backoffLimit": 6, "completionMode": "NonIndexed", "suspend": false,
        "manualSelector": false, "podReplacementPolicy": "TerminatingOrFailed",
    });
    assert_eq!(spec(&JOB, json!({})), job);
    let per_index = json!({ "spec": { "completionMode": "Indexed", "completions": 2, "backoffLimitPerIndex": 1 } });
    assert_eq!(spec(&JOB, per_index)["backoffLimit"], json!(i32::MAX));
    assert_eq!(spec(&JOB, json!({ "spec": { "parallelism": 2 } })).get("completions"), None);
    let stored_job = stored(&JOB, &json!({}));
    assert_eq!(stored_job["spec"]["selector"], json!({ "matchLabels": { "batch.kubernetes.io/controller-uid": "u" } }));
    let labels = json!({
        "batch.kubernetes.io/controller-uid": "u", "batch.kubernetes.io/job-name": "x", "controller-uid": "u",
            "job-name": "x",
    });
    assert_eq!(stored_job["spec"]["template"]["metadata"]["labels"], labels);
    let cron = json!({
        "schedule": "*/5 * * * *", "concurrencyPolicy": "Allow", "suspend": false, "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 1,
    });
    assert_eq!(spec(&CRON_JOB, json!({})), cron);
    let rolling = json!({ "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 1, "maxSurge": 0 } });
    assert_eq!(spec(&DAEMON_SET, json!({})), json!({ "updateStrategy": rolling, "revisionHistoryLimit": 10 }));
    let controller = stored(&REPLICATION_CONTROLLER, &json!({}));
    assert_eq!((&controller["spec"]["selector"], &controller["spec"]["replicas"]), (&json!({ "a": "b" }), &json!(1)));
    assert_eq!(controller["metadata"]["labels"], json!({ "a": "b" }));
}

#[test]
#[expect(clippy::too_many_lines, reason = "a list of cases")]
fn bad_ones_are_refused_in_upstreams_words() {
    let job = |spec: Value| json!({ "spec": spec });
    let indexed = |spec: Value| {
        let mut all = json!({ "completionMode": "Indexed", "completions": 3 });
        merge(&mut all, &spec);
        json!({ "spec": all })
    };
    let restart = |policy: &str| json!({ "spec": { "template": { "spec": { "restartPolicy": policy } } } });
    let codes = json!({ "operator": "In", "values": [2, 1, 0] });
    let rolling = |rolling: Value| json!({ "spec": { "updateStrategy": { "rollingUpdate": rolling } } });
    for (kind, patch, expected) in [
        (
            &JOB,
            restart("Always"),
            r#"spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never""#,
        ),
        (
            &JOB,
            job(json!({ "parallelism": -1 })),
            "spec.parallelism: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            &JOB,
            job(json!({ "completionMode": "Indexed", "completions": null, "parallelism": 1 })),
            "spec.completions: Required value: when completion mode is Indexed",
        ),
        (
            &JOB,
            job(json!({ "backoffLimitPerIndex": 1 })),
            "spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode",
        ),
        (
            &JOB,
            indexed(json!({ "maxFailedIndexes": 1 })),
            "spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified",
        ),
        (
            &JOB,
            indexed(json!({ "backoffLimitPerIndex": 1, "maxFailedIndexes": 4 })),
            "spec.maxFailedIndexes: Invalid value: 4: must be less than or equal to completions",
        ),
        (
            &JOB,
            job(json!({ "managedBy": "queue" })),
            "spec.managedBy: Invalid value: \"queue\": must be a domain-prefixed path (such as \"acme.io/foo\")",
        ),
        (
            &JOB,
            job(json!({ "podReplacementPolicy": "Never" })),
            r#"spec.podReplacementPolicy: Unsupported value: "Never": supported values: "Failed", "TerminatingOrFailed""#,
        ),
        (
            &JOB,
            job(json!({ "podFailurePolicy": { "rules": [{ "action": "FailJob" }] } })),
            "spec.podFailurePolicy.rules[0]: Invalid value: specifying one of OnExitCodes and OnPodConditions is \
                required",
        ),
        (
            &JOB,
            job(json!({ "podFailurePolicy": { "rules": [{ "action": "FailJob", "onExitCodes": codes }] } })),
            "[spec.podFailurePolicy.rules[0].onExitCodes.values[2]: Invalid value: 0: must not be 0 for the In \
                operator, spec.podFailurePolicy.rules[0].onExitCodes.values: Invalid value: [2,1,0]: must be ordered]",
        ),
        (
            &JOB,
            indexed(json!({ "successPolicy": { "rules": [{ "succeededIndexes": "0-9" }] } })),
            "spec.successPolicy.rules[0].succeededIndexes: Invalid value: \"0-9\": error parsing succeededIndexes: \
                too large index: \"9\"",
        ),
        (
            &JOB,
            indexed(json!({ "successPolicy": { "rules": [{ "succeededIndexes": "0-1", "succeededCount": 3 }] } })),
            "spec.successPolicy.rules[0].succeededCount: Invalid value: 3: must be less than or equal to 2 (the \
                number of indexes in the specified succeededIndexes field)",
        ),
        (
            &CRON_JOB,
            job(json!({ "schedule": "* * * *" })),
            r#"spec.schedule: Invalid value: "* * * *": expected exactly 5 fields, found 4: [* * * *]"#,
        ),
        (
            &CRON_JOB,
            job(json!({ "timeZone": "Mars" })),
            r#"spec.timeZone: Invalid value: "Mars": unknown time zone Mars"#,
        ),
        (
            &CRON_JOB,
            job(json!({ "schedule": "TZ=UTC * * * * *" })),
            r#"spec.schedule: Invalid value: "TZ=UTC * * * * *": cannot use TZ or CRON_TZ in schedule, use timeZone field instead"#,
        ),
        (
            &CRON_JOB,
            job(json!({ "concurrencyPolicy": "Never" })),
            r#"spec.concurrencyPolicy: Unsupported value: "Never": supported values: "Allow", "Forbid", "Replace""#,
        ),
        (
            &DAEMON_SET,
            rolling(json!({ "maxUnavailable": 0 })),
            "spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when maxSurge is 0",
        ),
        (
            &DAEMON_SET,
            rolling(json!({ "maxSurge": 1 })),
            "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: 1: may not be set when maxUnavailable is \
                non-zero",
        ),
        (
            &DAEMON_SET,
            job(json!({ "selector": { "matchLabels": { "a": "c" } } })),
            "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`",
        ),
        (
            &REPLICATION_CONTROLLER,
            job(json!({ "selector": { "a": "c" } })),
            "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`",
        ),
        (
            &POD_TEMPLATE,
            json!({ "template": { "spec": { "restartPolicy": "Sometimes" } } }),
            r#"template.spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "OnFailure", "Never""#,
        ),
        (
            &POD_DISRUPTION_BUDGET,
            job(json!({ "minAvailable": "120%" })),
            "spec.minAvailable: Invalid value: \"120%\": must not be greater than 100%",
        ),
        (
            &POD_DISRUPTION_BUDGET,
            job(json!({ "unhealthyPodEvictionPolicy": "No" })),
            r#"spec.unhealthyPodEvictionPolicy: Unsupported value: "No": supported values: "AlwaysAllow", "IfHealthyBudget""#,
        ),
    ] {
        assert_eq!(answer(kind, patch.clone()), expected, "{kind:?} {patch}");
    }
    let long = "a".repeat(53);
    let words = answer(&CRON_JOB, json!({ "metadata": { "name": long } }));
    assert!(words.ends_with("must be no more than 52 characters"), "{words}");
}

#[test]
fn updates_keep_what_may_not_change() {
    let job = |spec: Value| json!({ "spec": spec });
    let image = json!({ "template": { "spec": { "containers": [{ "name": "c", "image": "i:2" }] } } });
    let selector = json!({ "template": { "spec": { "nodeSelector": { "disk": "fast" } } } });
    let with = |mut base: Value, more: &Value| {
        merge(&mut base, more);
        json!({ "spec": base })
    };
    let suspended = json!({ "suspend": true });
    let indexed = |count: i64, parallel: i64| {
        job(json!({ "completionMode": "Indexed", "completions": count, "parallelism": parallel }))
    };
    let is_immutable = |words: String, field: &str| {
        assert!(words.starts_with(field) && words.ends_with("field is immutable"), "{words}");
    };
    is_immutable(update(&JOB, job(json!({})), job(json!({ "completions": 2 }))), "spec.completions");
    is_immutable(update(&JOB, job(json!({})), job(image.clone())), "spec.template");
    is_immutable(update(&JOB, job(json!({})), job(selector.clone())), "spec.template");
    assert_eq!(update(&JOB, job(suspended.clone()), with(suspended.clone(), &selector)), "ok");
    is_immutable(update(&JOB, job(suspended.clone()), with(suspended, &image)), "spec.template");
    assert_eq!(update(&JOB, job(json!({})), job(json!({ "parallelism": 5, "completions": 1 }))), "ok");
    assert_eq!(update(&JOB, indexed(2, 2), indexed(4, 4)), "ok");
    assert!(
        update(&JOB, indexed(2, 2), indexed(4, 2)).ends_with("can only be modified in tandem with spec.parallelism")
    );
    let other =
        json!({ "selector": { "matchLabels": { "a": "c" } }, "template": { "metadata": { "labels": { "a": "c" } } } });
    is_immutable(update(&DAEMON_SET, job(json!({})), job(other)), "spec.selector");
    let old = stored(&DAEMON_SET, &json!({}));
    let mut new = stored(&DAEMON_SET, &job(image));
    (DAEMON_SET.prepare_update)(&DAEMON_SET, &mut new, &old);
    let annotation = &new["metadata"]["annotations"]["deprecated.daemonset.template.generation"];
    assert_eq!((annotation, &new["metadata"]["generation"]), (&json!("2"), &json!(2)));
}

#[test]
fn rows_are_upstreams() {
    let condition = |kind: &str| json!([{ "type": kind, "status": "True" }]);
    let begun = json!({ "startTime": "2026-01-01T00:01:00Z", "active": 1 });
    let done = json!({
        "startTime": "2026-01-01T00:01:00Z", "completionTime": "2026-01-01T00:01:42Z", "succeeded": 1,
        "conditions": condition("Complete"),
    });
    let selector = "batch.kubernetes.io/controller-uid=u";
    for (kind, patch, expected) in [
        (&JOB, json!({ "status": begun }), format!("x | Running | 0/1 | 4m | 5m | c | i:1 | {selector}")),
        (&JOB, json!({ "status": done }), format!("x | Complete | 1/1 | 42s | 5m | c | i:1 | {selector}")),
        (
            &JOB,
            json!({ "status": { "conditions": condition("Suspended") } }),
            format!("x | Suspended | 0/1 |  | 5m | c | i:1 | {selector}"),
        ),
        (
            &JOB,
            json!({ "spec": { "completions": null, "parallelism": 3 } }),
            format!("x | Running | 0/1 of 3 |  | 5m | c | i:1 | {selector}"),
        ),
        (
            &CRON_JOB,
            json!({ "status": { "lastScheduleTime": "2026-01-01T00:04:00Z" } }),
            "x | */5 * * * * | <none> | False | 0 | 60s | 5m | c | i:1 | <none>".to_owned(),
        ),
        (
            &DAEMON_SET,
            json!({ "status": { "desiredNumberScheduled": 2, "numberReady": 1 } }),
            "x | 2 | 0 | 1 | 0 | 0 | <none> | 5m | c | i:1 | a=b".to_owned(),
        ),
        (&REPLICATION_CONTROLLER, json!({}), "x | 1 | 0 | 0 | 5m | c | i:1 | a=b".to_owned()),
        (&POD_TEMPLATE, json!({}), "x | c | i:1 | a=b".to_owned()),
        (&POD_DISRUPTION_BUDGET, json!({}), "x | 1 | N/A | 0 | 5m".to_owned()),
    ] {
        assert_eq!(row(kind, patch), expected);
    }
}
