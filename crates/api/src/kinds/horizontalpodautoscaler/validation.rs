//! Upstream's rules for an autoscaler's spec.

use super::super::field::Field;
use crate::names;
use crate::quantity::Quantity;
use crate::status::Cause;

/// Longest period of a scaling policy, in seconds.
const MAX_PERIOD: i64 = 1800;
/// Longest stabilization window, in seconds.
const MAX_WINDOW: i64 = 3600;

const SOURCES: [(&str, &str); 5] = [
    ("Object", "object"),
    ("External", "external"),
    ("Pods", "pods"),
    ("Resource", "resource"),
    ("ContainerResource", "containerResource"),
];

/// The whole spec.
pub(super) fn validate(spec: &Field, causes: &mut Vec<Cause>) {
    let (fewest, most) = (spec.get("minReplicas"), spec.get("maxReplicas"));
    let (min, max) = (fewest.int().unwrap_or(1), most.int().unwrap_or(0));
    if min < 1 {
        causes.push(fewest.invalid("must be greater than or equal to 1"));
    }
    if max < 1 {
        causes.push(Cause::invalid(&most.path, max, "must be greater than 0"));
    }
    if max < min {
        causes.push(Cause::invalid(&most.path, max, "must be greater than or equal to `minReplicas`"));
    }
    validate_reference(&spec.get("scaleTargetRef"), causes);
    spec.get("metrics").items().for_each(|metric| validate_metric(&metric, causes));
    for rules in ["scaleUp", "scaleDown"] {
        let rules = spec.get("behavior").get(rules);
        if rules.is_set() {
            validate_rules(&rules, causes);
        }
    }
}

fn validate_reference(reference: &Field, causes: &mut Vec<Cause>) {
    reference.get("kind").need(causes, names::path_segment);
    reference.get("name").need(causes, names::path_segment);
}

fn validate_rules(rules: &Field, causes: &mut Vec<Cause>) {
    let (window, policies) = (rules.get("stabilizationWindowSeconds"), rules.get("policies"));
    if window.int().is_some_and(|seconds| seconds < 0) {
        causes.push(window.invalid("must be greater than or equal to zero"));
    }
    if window.int().is_some_and(|seconds| seconds > MAX_WINDOW) {
        causes.push(window.invalid(&format!("must be less than or equal to {MAX_WINDOW}")));
    }
    rules.get("selectPolicy").one_of(causes, &["Disabled", "Max", "Min"]);
    if policies.len() == 0 {
        causes.push(Cause::required(&policies.path, "must specify at least one Policy"));
    }
    for policy in policies.items() {
        let kind = policy.get("type");
        if !matches!(kind.text(), "Pods" | "Percent") {
            causes.push(Cause::not_supported(&kind.path, kind.text(), &["Percent", "Pods"]));
        }
        for field in [policy.get("value"), policy.get("periodSeconds")] {
            let number = field.int().unwrap_or(0);
            if number <= 0 {
                causes.push(Cause::invalid(&field.path, number, "must be greater than zero"));
            }
        }
        let period = policy.get("periodSeconds");
        if period.int().is_some_and(|seconds| seconds > MAX_PERIOD) {
            causes.push(period.invalid(&format!("must be less than or equal to {MAX_PERIOD}")));
        }
    }
    let tolerance = rules.get("tolerance");
    if Quantity::of(tolerance.value).is_ok_and(Quantity::is_negative) {
        causes.push(tolerance.invalid("must be greater than or equal to 0"));
    }
}

fn validate_metric(metric: &Field, causes: &mut Vec<Cause>) {
    let kind = metric.get("type");
    let supported = ["ContainerResource", "External", "Object", "Pods", "Resource"];
    if kind.text().is_empty() {
        causes.push(Cause::required(&kind.path, "must specify a metric source type"));
    }
    if !supported.contains(&kind.text()) {
        causes.push(Cause::not_supported(&kind.path, kind.text(), &supported));
    }
    let present: Vec<(&str, &str)> = SOURCES.iter().copied().filter(|(_, field)| metric.get(field).is_set()).collect();
    if let Some((_, first)) = present.first() {
        validate_source(first, &metric.get(first), causes);
    }
    let expected = SOURCES.iter().find(|(name, _)| *name == kind.text()).map(|(_, field)| *field);
    match expected {
        Some(field) if !metric.get(field).is_set() => {
            causes
                .push(Cause::required(metric.get(field).path, "must populate information for the given metric source"));
        }
        Some(_) => {}
        None => causes.push(Cause::not_supported(&kind.path, kind.text(), &supported)),
    }
    if present.len() != 1 {
        for (_, field) in present.iter().filter(|(_, field)| Some(*field) != expected) {
            causes.push(Cause::forbidden(metric.get(field).path, "must populate the given metric source only"));
        }
    }
}

fn validate_source(kind: &str, source: &Field, causes: &mut Vec<Cause>) {
    let target = source.get("target");
    match kind {
        "object" => {
            validate_reference(&source.get("describedObject"), causes);
            validate_identifier(&source.get("metric"), causes);
        }
        "external" | "pods" => validate_identifier(&source.get("metric"), causes),
        _ => {
            if source.get("name").text().is_empty() {
                causes.push(Cause::required(source.get("name").path, "must specify a resource name"));
            }
            if kind == "containerResource" {
                let container = source.get("container");
                match container.text() {
                    "" => causes.push(Cause::required(&container.path, "must specify a container")),
                    _ => container.check(causes, names::label),
                }
            }
        }
    }
    validate_target(&target, causes);
    let (value, average) = (target.get("value"), target.get("averageValue"));
    let percent = target.get("averageUtilization");
    let mut need = |field: &Field, why: &str| causes.push(Cause::required(&field.path, why));
    match kind {
        "object" if !value.is_set() && !average.is_set() => {
            need(&average, "must set either a target value or averageValue");
        }
        "external" if !value.is_set() && !average.is_set() => {
            need(&average, "must set either a target value for metric or a per-pod target");
        }
        "external" if value.is_set() && average.is_set() => {
            let why = "may not set both a target value for metric and a per-pod target";
            causes.push(Cause::forbidden(&value.path, why));
        }
        "pods" if !average.is_set() => need(&average, "must specify a positive target averageValue"),
        "resource" | "containerResource" if !percent.is_set() && !average.is_set() => {
            need(&percent, "must set either a target raw value or a target utilization");
        }
        "resource" | "containerResource" if percent.is_set() && average.is_set() => {
            let why = "may not set both a target raw value and a target utilization";
            causes.push(Cause::forbidden(&average.path, why));
        }
        _ => {}
    }
}

fn validate_target(target: &Field, causes: &mut Vec<Cause>) {
    let kind = target.get("type");
    if kind.text().is_empty() {
        causes.push(Cause::required(&kind.path, "must specify a metric target type"));
    }
    if !matches!(kind.text(), "Utilization" | "Value" | "AverageValue") {
        causes.push(Cause::invalid(&kind.path, kind.text(), "must be either Utilization, Value, or AverageValue"));
    }
    for amount in [target.get("value"), target.get("averageValue")] {
        if Quantity::of(amount.value).is_ok_and(|quantity| quantity <= Quantity::ZERO) {
            causes.push(amount.invalid("must be positive"));
        }
    }
    let percent = target.get("averageUtilization");
    if percent.int().is_some_and(|percent| percent < 1) {
        causes.push(percent.invalid("must be greater than 0"));
    }
}

fn validate_identifier(metric: &Field, causes: &mut Vec<Cause>) {
    let title = metric.get("name");
    match title.text() {
        "" => causes.push(Cause::required(&title.path, "must specify a metric name")),
        _ => title.check(causes, names::path_segment),
    }
}
