//! Deployment: interchangeable pods, replaced a few at a time.

use std::borrow::Cow::Borrowed;

use serde_json::json;

use super::cells::{self, AGE, CONTAINERS, IMAGES, NAME, SELECTOR, count, text_column};
use super::field::{Field, default, inner, made};
use super::{BASE, Kind, Row, Subresource, pod_warnings, workload};
use crate::int_or_string;
use crate::object::name;
use crate::status::Cause;

/// Upstream's default of `spec.progressDeadlineSeconds`.
const PROGRESS_SECONDS: i64 = 600;

/// The row of Deployment.
pub static DEPLOYMENT: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("apps"),
    kind: Borrowed("Deployment"),
    plural: Borrowed("deployments"),
    singular: Borrowed("deployment"),
    short_names: Borrowed(&[Borrowed("deploy")]),
    categories: Borrowed(&[Borrowed("all")]),
    subresources: Borrowed(&[Subresource::Status, Subresource::Scale]),
    type_name: Borrowed("io.k8s.api.apps.v1.Deployment"),
    columns: Borrowed(&[
        NAME,
        text_column("Ready", "Pods that are ready, of those wanted."),
        text_column("Up-to-date", "Pods made from the newest template."),
        text_column("Available", "Pods that have been ready for minReadySeconds."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ]),
    row: |_, deployment, now| {
        let status = |field| count(deployment, &["status", field]);
        let ready = format!("{}/{}", status("readyReplicas"), count(deployment, &["spec", "replicas"]));
        let [containers, images] = cells::containers(deployment);
        let selector = cells::selector(deployment, &["spec", "selector"]);
        let (updated, available) = (json!(status("updatedReplicas")), json!(status("availableReplicas")));
        vec![
            json!(name(deployment)),
            json!(ready),
            updated,
            available,
            cells::age(deployment, now),
            containers,
            images,
            selector,
        ]
    },
    defaults: |_, deployment| {
        workload::defaults(deployment);
        let Some(spec) = inner(deployment, "spec") else { return };
        default(spec, "revisionHistoryLimit", workload::HISTORY);
        default(spec, "progressDeadlineSeconds", PROGRESS_SECONDS);
        if let Some(strategy) = made(spec, "strategy") {
            default(strategy, "type", "RollingUpdate");
            if strategy.get("type").is_some_and(|t| t == "RollingUpdate")
                && let Some(rolling) = made(strategy, "rollingUpdate")
            {
                default(rolling, "maxUnavailable", "25%");
                default(rolling, "maxSurge", "25%");
            }
        }
    },
    prepare_create: |_, deployment| workload::prepare_create(deployment, json!({})),
    prepare_update: |_, new, old| {
        workload::prepare_update(new, old);
        // Unlike the other workloads, a Deployment counts changed annotations too: rollouts read them.
        let annotations = |o: &serde_json::Value| o.get("metadata").and_then(|m| m.get("annotations")).cloned();
        let changed = new.get("spec") != old.get("spec") || annotations(new) != annotations(old);
        workload::count_generation(new, old, changed);
    },
    validate: |_, deployment, causes| {
        workload::validate(deployment, "deployment", "ReplicaSet", causes);
        let spec = Field::root(deployment).get("spec");
        validate_strategy(&spec.get("strategy"), causes);
        let (deadline, ready) = (spec.get("progressDeadlineSeconds"), spec.get("minReadySeconds").int().unwrap_or(0));
        deadline.not_negative(causes);
        if deadline.int().is_some_and(|n| n <= ready) {
            causes.push(deadline.invalid("must be greater than minReadySeconds"));
        }
    },
    validate_update: |_, new, old, causes| {
        let selector = ["spec", "selector"];
        Field::root(new).dig(&selector).immutable(&Field::root(old).dig(&selector), causes);
    },
    warnings: pod_warnings::of_named_template,
    ..BASE
});

fn validate_strategy(strategy: &Field, causes: &mut Vec<Cause>) {
    let rolling = strategy.get("rollingUpdate");
    match strategy.get("type").text() {
        "Recreate" if rolling.is_set() => {
            causes.push(Cause::forbidden(&rolling.path, "may not be specified when strategy `type` is 'Recreate'"));
        }
        "Recreate" => {}
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
            workload::validate_share(&unavailable, causes);
            workload::validate_share(&surge, causes);
            // 100 pods make every share of one percent or more at least one pod.
            let nothing = |share: &Field| int_or_string::scaled(share.value, 100, true) == Some(0);
            if nothing(&unavailable) && nothing(&surge) {
                causes.push(unavailable.invalid("may not be 0 when `maxSurge` is 0"));
            }
            if int_or_string::percent(unavailable.text()).is_some_and(|p| p > 100) {
                causes.push(unavailable.invalid("must not be greater than 100%"));
            }
        }
        other => causes.push(Cause::not_supported(strategy.get("type").path, other, &["Recreate", "RollingUpdate"])),
    }
}
