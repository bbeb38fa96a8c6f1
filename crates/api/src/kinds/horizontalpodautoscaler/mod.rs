//! HorizontalPodAutoscaler: how many pods a workload has, by what they use. Two versions of one stored form: `v2` is
//! stored, `v1` is it with everything but the CPU target in annotations.

mod older;
mod validation;

use std::borrow::Cow::{self, Borrowed};

use serde_json::{Value, json};

use super::cells::{self, AGE, NAME, count, number, text_column};
use super::field::{Field, default, inner, made};
use super::{BASE, Column, Kind, Row, Subresource, lifecycle};
use crate::jiff::Timestamp;
use crate::object::{ensure, name, text};

/// How many metrics a row shows.
const SHOWN_METRICS: usize = 2;
/// Upstream's CPU target, in percent, where no metric is given.
const CPU_TARGET: i64 = 80;

/// The row of HorizontalPodAutoscaler v2, which is the stored form.
pub static HORIZONTAL_POD_AUTOSCALER: Kind = Kind::BuiltIn(&ROW);

/// The row of HorizontalPodAutoscaler v1.
pub static HORIZONTAL_POD_AUTOSCALER_V1: Kind = Kind::BuiltIn(&Row {
    version: Borrowed("v1"),
    type_name: Borrowed("io.k8s.api.autoscaling.v1.HorizontalPodAutoscaler"),
    row: |_, scaler, now| row(&as_stored(scaler), now),
    defaults: |_, scaler| {
        if let Some(spec) = made(scaler, "spec") {
            default(spec, "minReplicas", 1);
        }
    },
    prepare_create: |_, scaler| {
        lifecycle::begin_status(scaler, json!({ "currentReplicas": 0, "desiredReplicas": 0 }));
    },
    validate: |_, scaler, causes| validation::validate(&Field::root(&as_stored(scaler)).get("spec"), causes),
    stored_as: Some(&super::Conversion {
        stored: &HORIZONTAL_POD_AUTOSCALER,
        to: into_stored,
        from: older::from_stored,
    }),
    ..ROW
});

// Slices of their own: rows that are made of another may not drop what they replace while they are evaluated.
const COLUMNS: &[Column] = &[
    NAME,
    text_column("Reference", "What it scales."),
    text_column("Targets", "The metrics, as they are and as they should be."),
    text_column("MinPods", "The fewest pods."),
    text_column("MaxPods", "The most pods."),
    number("Replicas", "How many pods there are."),
    AGE,
];
const SHORT: &[Cow<'static, str>] = &[Borrowed("hpa")];
const CATEGORIES: &[Cow<'static, str>] = &[Borrowed("all")];
const SUBRESOURCES: &[Subresource] = &[Subresource::Status];

const ROW: Row = Row {
    group: Borrowed("autoscaling"),
    version: Borrowed("v2"),
    kind: Borrowed("HorizontalPodAutoscaler"),
    plural: Borrowed("horizontalpodautoscalers"),
    singular: Borrowed("horizontalpodautoscaler"),
    short_names: Borrowed(SHORT),
    categories: Borrowed(CATEGORIES),
    subresources: Borrowed(SUBRESOURCES),
    type_name: Borrowed("io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler"),
    columns: Borrowed(COLUMNS),
    row: |_, scaler, now| row(scaler, now),
    defaults: |_, scaler| defaults(scaler),
    prepare_create: |_, scaler| {
        lifecycle::begin_status(scaler, json!({ "currentMetrics": null, "desiredReplicas": 0 }));
    },
    prepare_update: |_, new, old| lifecycle::keep_status(new, old),
    validate: |_, scaler, causes| validation::validate(&Field::root(scaler).get("spec"), causes),
    validate_status: |_, new, _, causes| {
        for field in ["currentReplicas", "desiredReplicas"] {
            Field::root(new).dig(&["status", field]).not_negative(causes);
        }
    },
    ..BASE
};

/// The stored form of a v1 object, defaults applied.
fn as_stored(scaler: &Value) -> Value {
    let mut stored = scaler.clone();
    into_stored(&mut stored);
    stored
}

fn into_stored(scaler: &mut Value) {
    older::to_stored(scaler);
    defaults(scaler);
}

fn defaults(scaler: &mut Value) {
    let Some(spec) = made(scaler, "spec") else { return };
    default(spec, "minReplicas", 1);
    if Field::root(spec).get("metrics").len() == 0 {
        let target = json!({ "type": "Utilization", "averageUtilization": CPU_TARGET });
        let metric = json!({ "type": "Resource", "resource": { "name": "cpu", "target": target } });
        ensure(spec, &[]).insert("metrics".to_owned(), json!([metric]));
    }
    if let Some(behavior) = inner(spec, "behavior") {
        let doubling = json!({ "type": "Percent", "value": 100, "periodSeconds": 15 });
        if let Some(up) = made(behavior, "scaleUp") {
            default(up, "stabilizationWindowSeconds", 0);
            default(up, "selectPolicy", "Max");
            default(up, "policies", json!([{ "type": "Pods", "value": 4, "periodSeconds": 15 }, doubling]));
        }
        if let Some(down) = made(behavior, "scaleDown") {
            default(down, "selectPolicy", "Max");
            default(down, "policies", json!([doubling]));
        }
    }
}

fn row(scaler: &Value, now: Timestamp) -> Vec<Value> {
    let target = |field| text(scaler, &["spec", "scaleTargetRef", field]);
    let fewest =
        Field::root(scaler).dig(&["spec", "minReplicas"]).int().map_or("<unset>".to_owned(), |n| n.to_string());
    vec![
        json!(name(scaler)),
        json!(format!("{}/{}", target("kind"), target("name"))),
        json!(metrics(scaler)),
        json!(fewest),
        json!(count(scaler, &["spec", "maxReplicas"]).to_string()),
        json!(count(scaler, &["status", "currentReplicas"])),
        cells::age(scaler, now),
    ]
}

fn metrics(scaler: &Value) -> String {
    let wanted: Vec<Field> = Field::root(scaler).dig(&["spec", "metrics"]).items().collect();
    if wanted.is_empty() {
        return "<none>".to_owned();
    }
    let current: Vec<Field> = Field::root(scaler).dig(&["status", "currentMetrics"]).items().collect();
    let shown: Vec<String> = wanted
        .iter()
        .enumerate()
        .take(SHOWN_METRICS)
        .map(|(index, metric)| one_metric(metric, current.get(index)))
        .collect();
    match wanted.len().saturating_sub(SHOWN_METRICS) {
        0 => shown.join(", "),
        more => format!("{} + {more} more...", shown.join(", ")),
    }
}

/// `cpu: 12%/80%`, `3/10 (avg)`: what is, and what should be.
fn one_metric(metric: &Field, status: Option<&Field>) -> String {
    let (source, named) = match metric.get("type").text() {
        "Resource" => ("resource", true),
        "ContainerResource" => ("containerResource", true),
        "Pods" => ("pods", false),
        "Object" => ("object", false),
        "External" => ("external", false),
        _ => return "<unknown type>".to_owned(),
    };
    let (wanted, is) = (metric.dig(&[source, "target"]), status.map(|status| status.dig(&[source, "current"])));
    let amount = |field: &str| {
        let is = is.as_ref().map(|is| is.get(field)).filter(Field::is_set);
        is.map_or("<unknown>".to_owned(), |is| is.text().to_owned())
    };
    let percent = |value: Option<i64>, otherwise: &str| value.map_or(otherwise.to_owned(), |n| format!("{n}%"));
    let title = metric.dig(&[source, "name"]).text();
    match (named, wanted.get("averageValue").is_set()) {
        (true, true) => format!("{title}: {}/{}", amount("averageValue"), wanted.get("averageValue").text()),
        (true, false) => {
            let is = is.and_then(|is| is.get("averageUtilization").int());
            let wanted = percent(wanted.get("averageUtilization").int(), "<auto>");
            format!("{title}: {}/{wanted}", percent(is, "<unknown>"))
        }
        (false, true) if source == "pods" => {
            format!("{}/{}", amount("averageValue"), wanted.get("averageValue").text())
        }
        (false, true) => format!("{}/{} (avg)", amount("averageValue"), wanted.get("averageValue").text()),
        (false, false) => format!("{}/{}", amount("value"), wanted.get("value").text()),
    }
}
