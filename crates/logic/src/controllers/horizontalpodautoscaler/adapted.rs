//! Metrics that other servers serve: of the target's pods, of an object, and of what is outside of the cluster.
//!
//! ```text
//! Pods      the mean of the ready pods against `averageValue`, as an amount of a resource
//! Object    Value: pods = ceil(value / target * ready pods);  AverageValue: pods = ceil(value / target)
//! External  the same with the sum of all series
//! ```

use std::collections::BTreeMap;

use k8s_openapi::api::autoscaling::v2::{MetricIdentifier, MetricSpec, MetricTarget};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use mainstay_api::quantity::Quantity as Amount;
use serde_json::{Value, json};

use super::replicas::{Answer, Groups, ceiling, name, replicas, tolerance};
use super::{Observed, Target};
use crate::measured::{Question, Sample};
use crate::pods::{is_ready, is_terminating, phase};

/// Whether an answer to one of the autoscaler's questions is still awaited: it is not decided on the others' alone.
pub(super) fn is_awaited(o: &Observed) -> bool {
    let specs = o.scaler.spec.metrics.as_deref().unwrap_or_default();
    let mut asked = specs.iter().filter_map(|spec| Question::of(&o.scaler.metadata, spec)?.ok());
    asked.any(|question| !o.measured.answers.contains_key(&question))
}

/// What one such metric asks for; `None` for other metrics.
pub(super) fn answer(
    o: &Observed,
    target: &Target,
    spec: &MetricSpec,
) -> Option<Result<Answer, (&'static str, String)>> {
    Some(match (spec.type_.as_str(), &spec.pods, &spec.object, &spec.external) {
        ("Pods", Some(pods), ..) => of_pods(o, target, spec, &pods.metric, &pods.target)
            .map_err(|why| ("FailedGetPodsMetric", format!("failed to get pods metric value: {why}"))),
        ("Object", _, Some(object), _) => {
            let described = json!(object.described_object);
            let kind = &object.described_object.kind;
            let missing = |why: String| {
                let namespace = o.scaler.metadata.namespace.as_deref().unwrap_or("");
                let name = &object.described_object.name;
                format!("unable to get metric {}: {kind} on {namespace} {name}/{why}", object.metric.name)
            };
            let made = sum(o, spec).map_err(missing).and_then(|sum| of_value(o, target, &object.target, sum));
            made.map(|(replicas, is_average, current)| {
                let called = match is_average {
                    true => format!("external metric {}({})", object.metric.name, shown(&object.metric)),
                    false => format!("{kind} metric {}", object.metric.name),
                };
                let current = json!({ "type": "Object", "object": {
                    "metric": object.metric, "describedObject": described, "current": current } });
                (replicas, called, current)
            })
            .map_err(|why| ("FailedGetObjectMetric", format!("failed to get object metric value: {why}")))
        }
        ("External", _, _, Some(external)) => {
            let metric = &external.metric;
            let missing = |why: String| {
                let namespace = o.scaler.metadata.namespace.as_deref().unwrap_or("");
                format!("unable to get external metric {namespace}/{}/{}: {why}", metric.name, shown(metric))
            };
            let made = sum(o, spec).map_err(missing).and_then(|sum| of_value(o, target, &external.target, sum));
            made.map(|(replicas, _, current)| {
                let current = json!({ "type": "External", "external": { "metric": metric, "current": current } });
                (replicas, format!("external metric {}({})", metric.name, shown(metric)), current)
            })
            .map_err(|why| {
                ("FailedGetExternalMetric", format!("failed to get {} external metric value: {why}", metric.name))
            })
        }
        _ => return None,
    })
}

/// What was answered to a metric's question.
fn samples<'a>(o: &Observed<'a>, spec: &MetricSpec) -> Result<&'a [Sample], String> {
    let question = Question::of(&o.scaler.metadata, spec).unwrap_or_else(|| Err("it is not asked for".to_owned()))?;
    match o.measured.answers.get(&question) {
        Some(Ok(samples)) => Ok(samples),
        Some(Err(why)) => Err(why.clone()),
        None => Err("it was not asked for yet".to_owned()),
    }
}

/// All of a question's values together, in thousandths.
fn sum(o: &Observed, spec: &MetricSpec) -> Result<i64, String> {
    Ok(samples(o, spec)?.iter().fold(0, |sum, sample| sum.saturating_add(sample.milli)))
}

/// A target's amount, in thousandths.
fn milli(text: &str) -> Option<i64> {
    text.parse::<Amount>().ok().map(Amount::milli).filter(|milli| *milli > 0)
}

fn of_pods(
    o: &Observed,
    target: &Target,
    spec: &MetricSpec,
    metric: &MetricIdentifier,
    wanted: &MetricTarget,
) -> Result<Answer, String> {
    let samples = samples(o, spec).map_err(|why| format!("unable to get metric {}: {why}", metric.name))?;
    let average = wanted.average_value.as_ref().and_then(|average| milli(&average.0));
    let average = average.ok_or("its target is no amount")?;
    if o.pods.is_empty() {
        return Err("no pods returned by selector while calculating replica count".to_owned());
    }
    let values: BTreeMap<&str, i64> = samples.iter().map(|sample| (sample.name.as_str(), sample.milli)).collect();
    let mut groups = Groups { used: BTreeMap::new(), unready: Vec::new(), missing: Vec::new() };
    for pod in o.pods.iter().filter(|pod| !is_terminating(&pod.metadata) && phase(pod) != "Failed") {
        match values.get(name(pod)) {
            _ if phase(pod) == "Pending" => groups.unready.push(name(pod)),
            Some(milli) => drop(groups.used.insert(name(pod), *milli)),
            None => groups.missing.push(name(pod)),
        }
    }
    if groups.used.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
    }
    let requests = o.pods.iter().map(|pod| (name(pod), average)).collect();
    let (size, used) = replicas(&groups, &requests, 1.0, target.replicas, 100, |up| tolerance(o, up));
    let mean = used / i64::try_from(groups.used.len().max(1)).unwrap_or(1);
    let current = json!({ "type": "Pods", "pods": {
        "metric": metric, "current": { "averageValue": Amount::from_milli(mean).to_string() } } });
    Ok((size, format!("pods metric {}", metric.name), current))
}

/// Pods for a value that is not of one of them, whether the target is one for each, and `current`.
#[expect(clippy::cast_precision_loss, reason = "amounts are far below what a double holds")]
fn of_value(o: &Observed, target: &Target, wanted: &MetricTarget, sum: i64) -> Result<(i32, bool, Value), String> {
    let is_near = |ratio: f64| {
        if ratio > 1.0 { ratio - 1.0 <= tolerance(o, true) } else { 1.0 - ratio <= tolerance(o, false) }
    };
    if let Some(average) = &wanted.average_value {
        let average = milli(&average.0).ok_or("its target is no amount")?;
        let there = target.current.max(0);
        let ratio = sum as f64 / (average as f64 * f64::from(there.max(1)));
        let size = if there > 0 && is_near(ratio) { there } else { ceiling(sum as f64 / average as f64) };
        let each = i64::from(there.max(1));
        let mean = sum.div_euclid(each) + i64::from(sum.rem_euclid(each) > 0);
        return Ok((size, true, json!({ "averageValue": Amount::from_milli(mean).to_string() })));
    }
    let value = wanted.value.as_ref().ok_or("neither a value target nor an average value target was set")?;
    let value = milli(&value.0).ok_or("its target is no amount")?;
    let ratio = sum as f64 / value as f64;
    let size = if target.replicas == 0 {
        ceiling(ratio)
    } else if is_near(ratio) {
        target.replicas
    } else if o.pods.is_empty() {
        let why = "no pods returned by selector while calculating replica count";
        return Err(format!("unable to calculate ready pods: {why}"));
    } else {
        let ready = o.pods.iter().filter(|pod| phase(pod) == "Running" && is_ready(pod)).count();
        ceiling(ratio * ready as f64)
    };
    Ok((size, false, json!({ "value": Amount::from_milli(sum).to_string() })))
}

/// A metric's selector as Go prints it.
fn shown(metric: &MetricIdentifier) -> String {
    let Some(LabelSelector { match_labels, match_expressions }) = &metric.selector else { return "nil".to_owned() };
    let labels: String = match_labels.iter().flatten().map(|(name, value)| format!("{name}: {value},")).collect();
    let expression = |one: &k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement| {
        let values = one.values.as_deref().unwrap_or_default().join(" ");
        format!("LabelSelectorRequirement{{Key:{},Operator:{},Values:[{values}],}},", one.key, one.operator)
    };
    let expressions: String = match_expressions.iter().flatten().map(expression).collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{\
         {expressions}}},}}"
    )
}
