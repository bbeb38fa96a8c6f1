//! `autoscaling/v1` and back: it knows one CPU target, and carries the rest in annotations, as upstream's conversion
//! does, so that nothing is lost between the two.

use serde_json::{Map, Value, json};

use super::super::field::{Field, remove};
use crate::object::{at, ensure, text};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";

/// Whether a metric is what wishes are, or what was seen: their fields have other names.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Wanted,
    Seen,
}

impl Side {
    /// The object in a v2 metric that holds its values.
    fn inner(self) -> &'static str {
        if self == Self::Wanted { "target" } else { "current" }
    }

    /// A v1 field: `targetAverageValue`, `currentAverageValue`.
    fn field(self, rest: &str) -> String {
        format!("{}{rest}", self.inner())
    }
}

/// v1 to v2.
pub(super) fn to_stored(scaler: &mut Value) {
    ensure(scaler, &[]).insert("apiVersion".to_owned(), json!("autoscaling/v2"));
    let mut metrics = take(scaler, METRICS).map(|list| newer_list(&list, Side::Wanted)).unwrap_or_default();
    let behavior = take(scaler, BEHAVIOR);
    let (conditions, seen) = (take(scaler, CONDITIONS), take(scaler, CURRENT_METRICS));
    let spec = ensure(scaler, &["spec"]);
    if let Some(percent) = spec.remove("targetCPUUtilizationPercentage").filter(|percent| !percent.is_null()) {
        metrics.insert(
            0,
            json!({ "type": "Resource", "resource": { "name": "cpu",
            "target": { "type": "Utilization", "averageUtilization": percent } } }),
        );
    }
    if !metrics.is_empty() {
        spec.insert("metrics".to_owned(), metrics.into());
    }
    if let Some(behavior) = behavior {
        spec.insert("behavior".to_owned(), behavior);
    }
    if at(scaler, &["status"]).is_none() {
        return;
    }
    let status = ensure(scaler, &["status"]);
    let mut seen = seen.map(|list| newer_list(&list, Side::Seen)).unwrap_or_default();
    if let Some(percent) = status.remove("currentCPUUtilizationPercentage").filter(|percent| !percent.is_null()) {
        let value = cpu_value(&mut seen);
        let mut current = json!({ "averageUtilization": percent });
        if let Some(value) = value {
            ensure(&mut current, &[]).insert("averageValue".to_owned(), value);
        }
        seen.insert(0, json!({ "type": "Resource", "resource": { "name": "cpu", "current": current } }));
    }
    status.insert("currentMetrics".to_owned(), if seen.is_empty() { Value::Null } else { seen.into() });
    if let Some(conditions) = conditions {
        status.insert("conditions".to_owned(), conditions);
    }
}

/// The CPU metric of the annotation, which says no more than v1's field but for its amount; it is taken away.
fn cpu_value(seen: &mut Vec<Value>) -> Option<Value> {
    let index = seen.iter().position(|metric| text(metric, &["resource", "name"]) == "cpu")?;
    at(&seen.remove(index), &["resource", "current", "averageValue"]).cloned()
}

/// v2 to v1.
pub(super) fn from_stored(scaler: &mut Value) {
    ensure(scaler, &[]).insert("apiVersion".to_owned(), json!("autoscaling/v1"));
    let spec = ensure(scaler, &["spec"]);
    let metrics = spec.remove("metrics");
    let behavior = spec.remove("behavior");
    let (mut others, mut cpu) = (Vec::new(), None);
    for metric in metrics.as_ref().and_then(Value::as_array).into_iter().flatten() {
        let percent = at(metric, &["resource", "target", "averageUtilization"]);
        match percent.filter(|_| cpu.is_none() && text(metric, &["resource", "name"]) == "cpu") {
            Some(percent) => cpu = Some(percent.clone()),
            None => others.push(older(metric, Side::Wanted)),
        }
    }
    if let Some(percent) = cpu {
        spec.insert("targetCPUUtilizationPercentage".to_owned(), percent);
    }
    put(scaler, METRICS, (!others.is_empty()).then(|| others.into()));
    put(scaler, BEHAVIOR, behavior);
    if at(scaler, &["status"]).is_none() {
        return;
    }
    let status = ensure(scaler, &["status"]);
    let (seen, conditions) = (status.remove("currentMetrics"), status.remove("conditions"));
    status.entry("currentReplicas").or_insert_with(|| json!(0));
    status.entry("desiredReplicas").or_insert_with(|| json!(0));
    let seen: Vec<Value> = seen.as_ref().and_then(Value::as_array).cloned().unwrap_or_default();
    let percent = seen.iter().find_map(|metric| {
        let is_cpu = text(metric, &["resource", "name"]) == "cpu";
        at(metric, &["resource", "current", "averageUtilization"]).filter(|_| is_cpu).cloned()
    });
    if let Some(percent) = percent {
        status.insert("currentCPUUtilizationPercentage".to_owned(), percent);
    }
    let seen: Vec<Value> = seen.iter().map(|metric| older(metric, Side::Seen)).collect();
    put(scaler, CURRENT_METRICS, (!seen.is_empty()).then(|| seen.into()));
    put(scaler, CONDITIONS, conditions.filter(|list| list.as_array().is_some_and(|list| !list.is_empty())));
}

/// Takes an annotation that holds JSON. One that holds something else stays, and says nothing.
fn take(scaler: &mut Value, annotation: &str) -> Option<Value> {
    let value = serde_json::from_str(text(scaler, &["metadata", "annotations", annotation])).ok()?;
    let annotations = ensure(scaler, &["metadata", "annotations"]);
    annotations.remove(annotation);
    if annotations.is_empty() {
        ensure(scaler, &["metadata"]).remove("annotations");
    }
    Some(value)
}

fn put(scaler: &mut Value, annotation: &str, value: Option<Value>) {
    if let Some(value) = value {
        ensure(scaler, &["metadata", "annotations"]).insert(annotation.to_owned(), json!(value.to_string()));
    }
}

fn source(metric: &Value) -> &'static str {
    match text(metric, &["type"]) {
        "Object" => "object",
        "Pods" => "pods",
        "External" => "external",
        "ContainerResource" => "containerResource",
        _ => "resource",
    }
}

fn newer_list(list: &Value, side: Side) -> Vec<Value> {
    list.as_array().into_iter().flatten().map(|metric| newer(metric, side)).collect()
}

/// One metric of the annotations as v2 has it.
fn newer(metric: &Value, side: Side) -> Value {
    let source = source(metric);
    let old = Field::root(metric).get(source);
    let mut new = Map::new();
    let mut carry = |name: &str, value: &Value| {
        if !value.is_null() {
            new.insert(name.to_owned(), value.clone());
        }
    };
    let name = if source == "object" { "averageValue".to_owned() } else { side.field("AverageValue") };
    let average = old.get(&name).value.clone();
    let (value, percent) = (old.get(&side.field("Value")), old.get(&side.field("AverageUtilization")));
    let mut inner = Map::new();
    for (name, value) in [("averageValue", &average), ("value", value.value), ("averageUtilization", percent.value)] {
        if !value.is_null() {
            inner.insert(name.to_owned(), value.clone());
        }
    }
    if side == Side::Wanted {
        let kind = if percent.is_set() {
            "Utilization"
        } else if average.is_null() {
            "Value"
        } else {
            "AverageValue"
        };
        inner.insert("type".to_owned(), json!(kind));
    }
    carry(side.inner(), &inner.into());
    for name in ["name", "container"] {
        carry(name, old.get(name).value);
    }
    if source == "object" {
        carry("describedObject", old.get("target").value);
    }
    if old.get("metricName").is_set() {
        let selector = old.get(if source == "external" { "metricSelector" } else { "selector" });
        let mut identifier = json!({ "name": old.get("metricName").value });
        if selector.is_set() {
            ensure(&mut identifier, &[]).insert("selector".to_owned(), selector.value.clone());
        }
        carry("metric", &identifier);
    }
    json!({ "type": metric.get("type"), source: new })
}

/// One v2 metric as the annotations have it.
fn older(metric: &Value, side: Side) -> Value {
    let source = source(metric);
    let new = Field::root(metric).get(source);
    let mut old = json!({});
    let mut carry = |name: String, value: &Value| {
        if !value.is_null() {
            ensure(&mut old, &[]).insert(name, value.clone());
        }
    };
    let inner = new.get(side.inner());
    let average = if source == "object" { "averageValue".to_owned() } else { side.field("AverageValue") };
    carry(average, inner.get("averageValue").value);
    carry(side.field("Value"), inner.get("value").value);
    carry(side.field("AverageUtilization"), inner.get("averageUtilization").value);
    carry("name".to_owned(), new.get("name").value);
    carry("container".to_owned(), new.get("container").value);
    carry("metricName".to_owned(), new.dig(&["metric", "name"]).value);
    let selector = if source == "external" { "metricSelector" } else { "selector" };
    carry(selector.to_owned(), new.dig(&["metric", "selector"]).value);
    if source == "object" {
        carry("target".to_owned(), new.get("describedObject").value);
    }
    let mut whole = json!({ "type": metric.get("type"), source: old });
    if metric.get("type").is_none() {
        remove(&mut whole, "type");
    }
    whole
}
