//! DaemonSet: a pod on every node, or on some.

use std::borrow::Cow::Borrowed;

use serde_json::{Value, json};

use super::cells::{self, AGE, CONTAINERS, IMAGES, NAME, SELECTOR, count, number, text_column};
use super::field::{Field, default, inner, made};
use super::{BASE, Kind, Row, Subresource, pod_warnings, workload};
use crate::int_or_string;
use crate::object::{at, ensure, name};
use crate::status::Cause;

/// The annotation that counts the templates; upstream keeps it for clients of the old API.
pub const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

/// The row of DaemonSet.
pub static DAEMON_SET: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("apps"),
    kind: Borrowed("DaemonSet"),
    plural: Borrowed("daemonsets"),
    singular: Borrowed("daemonset"),
    short_names: Borrowed(&[Borrowed("ds")]),
    categories: Borrowed(&[Borrowed("all")]),
    subresources: Borrowed(&[Subresource::Status]),
    type_name: Borrowed("io.k8s.api.apps.v1.DaemonSet"),
    columns: Borrowed(&[
        NAME,
        number("Desired", "Nodes that shall have a pod."),
        number("Current", "Nodes that have one."),
        number("Ready", "Nodes whose pod is ready."),
        number("Up-to-date", "Nodes whose pod is of the newest template."),
        number("Available", "Nodes whose pod has been ready for minReadySeconds."),
        text_column("Node Selector", "Labels of the nodes that it is for."),
        AGE,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ]),
    row: |_, set, now| {
        let status = |field| json!(count(set, &["status", field]));
        let [containers, images] = cells::containers(set);
        vec![
            json!(name(set)),
            status("desiredNumberScheduled"),
            status("currentNumberScheduled"),
            status("numberReady"),
            status("updatedNumberScheduled"),
            status("numberAvailable"),
            cells::labels(set, &["spec", "template", "spec", "nodeSelector"]),
            cells::age(set, now),
            containers,
            images,
            cells::selector(set, &["spec", "selector"]),
        ]
    },
    defaults: |_, set| defaults(set),
    prepare_create: |_, set| {
        let fields = ["currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady"];
        let zeros: serde_json::Map<_, _> = fields.iter().map(|field| ((*field).to_owned(), json!(0))).collect();
        workload::prepare_create(set, zeros.into());
        ensure(set, &["metadata", "annotations"]).insert(TEMPLATE_GENERATION.to_owned(), json!("1"));
    },
    prepare_update: |_, new, old| {
        workload::prepare_update(new, old);
        let template = |set: &Value| at(set, &["spec", "template"]).cloned();
        let count = at(old, &["metadata", "annotations", TEMPLATE_GENERATION]).and_then(Value::as_str);
        let count = count.and_then(|count| count.parse::<i64>().ok()).unwrap_or(0);
        let count = count.saturating_add(i64::from(template(new) != template(old)));
        ensure(new, &["metadata", "annotations"]).insert(TEMPLATE_GENERATION.to_owned(), json!(count.to_string()));
    },
    validate: |_, set, causes| {
        workload::validate(set, "daemonset", "DaemonSet", causes);
        validate_strategy(&Field::root(set).dig(&["spec", "updateStrategy"]), causes);
    },
    validate_update: |_, new, old, causes| {
        let selector = ["spec", "selector"];
        Field::root(new).dig(&selector).immutable(&Field::root(old).dig(&selector), causes);
    },
    warnings: pod_warnings::of_template,
    ..BASE
});

fn defaults(set: &mut Value) {
    workload::template_defaults(set);
    let Some(spec) = inner(set, "spec") else { return };
    default(spec, "revisionHistoryLimit", workload::HISTORY);
    let Some(strategy) = made(spec, "updateStrategy") else { return };
    default(strategy, "type", "RollingUpdate");
    if strategy.get("type").is_some_and(|t| t == "RollingUpdate")
        && let Some(rolling) = made(strategy, "rollingUpdate")
    {
        default(rolling, "maxUnavailable", 1);
        default(rolling, "maxSurge", 0);
    }
}

fn validate_strategy(strategy: &Field, causes: &mut Vec<Cause>) {
    match strategy.get("type").text() {
        "OnDelete" => {}
        "RollingUpdate" => {
            let rolling = strategy.get("rollingUpdate");
            let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
            for share in [&unavailable, &surge] {
                workload::validate_share(share, causes);
                if int_or_string::percent(share.text()).is_some_and(|percent| percent > 100) {
                    causes.push(share.invalid("must not be greater than 100%"));
                }
            }
            // 100 nodes make every share of one percent or more at least one node.
            let some = |share: &Field| int_or_string::scaled(share.value, 100, true).is_some_and(|number| number != 0);
            match (some(&unavailable), some(&surge)) {
                (true, true) => causes.push(surge.invalid("may not be set when maxUnavailable is non-zero")),
                (false, false) => {
                    causes.push(Cause::required(&unavailable.path, "cannot be 0 when maxSurge is 0"));
                }
                _ => {}
            }
        }
        _ => {
            let value = strategy.value.clone();
            causes.push(Cause::not_supported(&strategy.path, value, &["RollingUpdate", "OnDelete"]));
        }
    }
}
