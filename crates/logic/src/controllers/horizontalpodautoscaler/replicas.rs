//! How many pods the metrics ask for.
//!
//! ```text
//! ratio   = what is used / what should be used; near enough to 1 (the tolerance), nothing changes
//! pods    = ceil(ratio * ready pods)
//! ```
//!
//! Pods without a measurement count against the change: as using all they asked for where there are to be fewer pods,
//! as using nothing where there are to be more. So do, for CPU, pods that have only just started.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{MetricSpec, MetricTarget};
use k8s_openapi::api::core::v1::Pod;
use mainstay_api::quantity::Quantity as Amount;
use serde_json::{Value, json};

use super::{KIND, Observed, Target, adapted};
use crate::decision::Event;
use crate::measured::PodUsage;
use crate::pods::{condition, is_terminating, phase};

/// How far from 1 the ratio has to be (upstream's `--horizontal-pod-autoscaler-tolerance`).
const TOLERANCE: f64 = 0.1;
/// How long after its start a pod's CPU says nothing unless it was ready all that time (upstream's).
const CPU_INITIALIZATION: SignedDuration = SignedDuration::from_secs(300);
/// A pod that is not ready, and never was after this long, has not started (upstream's).
const INITIAL_READINESS: SignedDuration = SignedDuration::from_secs(30);

/// What the metrics came to together: the largest of what each asks for.
pub struct Proposal {
    pub replicas: i32,
    /// By which metric, in upstream's words.
    pub metric: String,
    /// For `status.currentMetrics`.
    pub metrics: Vec<Value>,
}

/// Why they came to nothing.
pub struct Failed {
    pub reason: &'static str,
    pub why: String,
    pub summary: String,
    pub metrics: Vec<Value>,
}

/// One metric's answer: pods, its name in words, and how it is now.
pub type Answer = (i32, String, Value);

/// What all metrics ask for.
pub fn proposed(o: &Observed, target: &Target, now: Timestamp, events: &mut Vec<Event>) -> Result<Proposal, Failed> {
    let specs = o.scaler.spec.metrics.as_deref().unwrap_or_default();
    let mut best: Option<Proposal> = None;
    let mut failed: Option<(&'static str, String)> = None;
    let (mut metrics, mut invalid) = (Vec::new(), 0);
    for spec in specs {
        match answer(o, target, spec, now) {
            Ok((replicas, metric, current)) => {
                metrics.push(current);
                if best.as_ref().is_none_or(|best| replicas > best.replicas) {
                    best = Some(Proposal { replicas, metric, metrics: Vec::new() });
                }
            }
            Err((reason, why)) => {
                invalid += 1;
                events.push(Event::warning(&KIND, &o.scaler.metadata, reason, why.clone()));
                failed.get_or_insert((reason, why));
            }
        }
    }
    match (best, failed) {
        // With a metric missing nobody knows whether fewer would do.
        (Some(best), failed) if failed.is_none() || best.replicas >= target.replicas => {
            Ok(Proposal { metrics, ..best })
        }
        (_, failed) => {
            let (reason, why) = failed.unwrap_or(("InvalidMetrics", "no metrics are given".to_owned()));
            let summary = format!("invalid metrics ({invalid} invalid out of {}), first error is: {why}", specs.len());
            Err(Failed { reason, why, summary, metrics })
        }
    }
}

fn answer(o: &Observed, target: &Target, spec: &MetricSpec, now: Timestamp) -> Result<Answer, (&'static str, String)> {
    match (spec.type_.as_str(), &spec.resource, &spec.container_resource) {
        ("Resource", Some(resource), _) => {
            let what = What { resource: &resource.name, container: None };
            let failed = |why| {
                ("FailedGetResourceMetric", format!("failed to get {} resource metric value: {why}", resource.name))
            };
            let (replicas, is_share, current) = of_resource(o, target, &what, &resource.target, now).map_err(failed)?;
            let unit = if is_share { "utilization (percentage of request)" } else { "" };
            let metric = format!("{} resource {unit}", resource.name).trim_end().to_owned();
            let current = json!({ "type": "Resource", "resource": { "name": resource.name, "current": current } });
            Ok((replicas, metric, current))
        }
        ("ContainerResource", _, Some(resource)) => {
            let what = What { resource: &resource.name, container: Some(&resource.container) };
            let failed = |why| {
                let why = format!("failed to get {} container metric value: {why}", resource.name);
                ("FailedGetContainerResourceMetric", why)
            };
            let (replicas, is_share, current) = of_resource(o, target, &what, &resource.target, now).map_err(failed)?;
            let unit = if is_share { "utilization (percentage of request)" } else { "" };
            let metric = format!("{} container resource {unit}", resource.name).trim_end().to_owned();
            let current = json!({
                "type": "ContainerResource",
                "containerResource": { "name": resource.name, "container": resource.container, "current": current },
            });
            Ok((replicas, metric, current))
        }
        (other, ..) => adapted::answer(o, target, spec)
            .unwrap_or_else(|| Err(("InvalidMetricSourceType", format!("unknown metric source type {other:?}")))),
    }
}

/// Which resource, of which container (or of all of them).
struct What<'a> {
    resource: &'a str,
    container: Option<&'a str>,
}

/// The pods by what is known of them.
pub struct Groups<'a> {
    /// Of the ready ones, what they use: thousandths (of a core), or bytes.
    pub used: BTreeMap<&'a str, i64>,
    pub unready: Vec<&'a str>,
    pub missing: Vec<&'a str>,
}

/// Pods, whether the target is a share of the request, and `current`.
fn of_resource(
    o: &Observed,
    target: &Target,
    what: &What,
    wanted: &MetricTarget,
    now: Timestamp,
) -> Result<(i32, bool, Value), String> {
    let groups = grouped(o, what, now)?;
    let tolerance = |up: bool| tolerance(o, up);
    if let Some(average) = &wanted.average_value {
        let average = amount(what, &average.0).filter(|average| *average > 0).ok_or("its target is no amount")?;
        let requests = o.pods.iter().map(|pod| (name(pod), average)).collect();
        let (replicas, used) = replicas(&groups, &requests, 1.0, target.replicas, 100, tolerance);
        let mean = used / i64::try_from(groups.used.len().max(1)).unwrap_or(1);
        return Ok((replicas, false, json!({ "averageValue": written(what, mean) })));
    }
    let share = wanted.average_utilization.ok_or(
        "invalid resource metric source: neither an average utilization \
        target nor an average value (usage) target was set",
    )?;
    let requests = requests(o, what)?;
    let target_share = f64::from(share) / 100.0;
    let (replicas, used) = replicas(&groups, &requests, target_share, target.replicas, share.max(100), tolerance);
    let asked: i64 = groups.used.keys().filter_map(|pod| requests.get(pod)).sum();
    if asked == 0 {
        return Err(format!("no metrics returned matched known pods for resource {}", what.resource));
    }
    let mean = used / i64::try_from(groups.used.len().max(1)).unwrap_or(1);
    let current =
        json!({ "averageUtilization": used.saturating_mul(100) / asked, "averageValue": written(what, mean) });
    Ok((replicas, true, current))
}

pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or("")
}

/// The tolerance of a direction, which its rules may say.
pub fn tolerance(o: &Observed, up: bool) -> f64 {
    let behavior = o.scaler.spec.behavior.as_ref();
    let rules =
        behavior.and_then(|behavior| if up { behavior.scale_up.as_ref() } else { behavior.scale_down.as_ref() });
    let said = rules.and_then(|rules| rules.tolerance.as_ref()).and_then(|text| text.0.parse::<Amount>().ok());
    #[expect(clippy::cast_precision_loss, reason = "a share of one")]
    said.map_or(TOLERANCE, |amount| amount.milli() as f64 / 1000.0)
}

fn amount(what: &What, text: &str) -> Option<i64> {
    let amount: Amount = text.parse().ok()?;
    Some(if what.resource == "cpu" { amount.milli() } else { amount.units() })
}

fn written(what: &What, amount: i64) -> String {
    match what.resource {
        "cpu" => Amount::from_milli(amount).to_string(),
        _ => amount.to_string(),
    }
}

/// What each pod asks for.
fn requests<'a>(o: &Observed<'a>, what: &What) -> Result<BTreeMap<&'a str, i64>, String> {
    let mut all = BTreeMap::new();
    for pod in &o.pods {
        let containers = pod.spec.iter().flat_map(|spec| {
            let restarted =
                spec.init_containers.iter().flatten().filter(|one| one.restart_policy.as_deref() == Some("Always"));
            spec.containers.iter().chain(restarted)
        });
        let mut sum = 0_i64;
        for container in containers.filter(|one| what.container.is_none_or(|name| name == one.name)) {
            let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
            let request = requests.and_then(|requests| amount(what, &requests.get(what.resource)?.0));
            sum = sum.saturating_add(request.ok_or_else(|| {
                format!(
                    "failed to get {} utilization: missing request for {} in container {} of Pod {}",
                    what.resource,
                    what.resource,
                    container.name,
                    name(pod)
                )
            })?);
        }
        all.insert(name(pod), sum);
    }
    Ok(all)
}

/// What a pod uses, of one container or of all.
fn used(usage: &PodUsage, what: &What) -> Option<i64> {
    let of = |usage: &crate::measured::Usage| if what.resource == "cpu" { usage.cpu_milli } else { usage.memory };
    match what.container {
        Some(container) => usage.containers.get(container).map(of),
        None => Some(usage.containers.values().map(of).fold(0, i64::saturating_add)),
    }
}

fn grouped<'a>(o: &Observed<'a>, what: &What, now: Timestamp) -> Result<Groups<'a>, String> {
    if !matches!(what.resource, "cpu" | "memory") || o.measured.pods.is_empty() {
        return Err(format!(
            "failed to get {0} utilization: unable to get metrics for resource {0}: no metrics returned from resource \
                metrics API",
            what.resource
        ));
    }
    let mut groups = Groups { used: BTreeMap::new(), unready: Vec::new(), missing: Vec::new() };
    for pod in
        o.pods.iter().filter(|pod| !is_terminating(&pod.metadata) && !matches!(phase(pod), "Failed" | "Succeeded"))
    {
        let usage = o.measured.pods.get(pod.metadata.uid.as_deref().unwrap_or(""));
        let amount = usage.and_then(|usage| Some((usage, used(usage, what)?)));
        if phase(pod) == "Pending" {
            groups.unready.push(name(pod));
            continue;
        }
        let Some((usage, amount)) = amount else {
            groups.missing.push(name(pod));
            continue;
        };
        if what.resource == "cpu" && is_starting(pod, usage, now) {
            groups.unready.push(name(pod));
        } else {
            groups.used.insert(name(pod), amount);
        }
    }
    if groups.used.is_empty() {
        return Err("did not receive metrics for targeted pods (pods might be unready)".to_owned());
    }
    Ok(groups)
}

/// Whether what was measured of a pod's CPU is that of its start.
fn is_starting(pod: &Pod, usage: &PodUsage, now: Timestamp) -> bool {
    let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    let (Some(ready), Some(started)) = (condition(pod, "Ready"), started) else { return true };
    let changed = ready.last_transition_time.as_ref().map_or(started.0, |time| time.0);
    let after = |time: Timestamp, duration: SignedDuration| time.checked_add(duration).unwrap_or(time);
    if after(started.0, CPU_INITIALIZATION) > now {
        return ready.status == "False" || usage.at < after(changed, usage.window);
    }
    ready.status == "False" && after(started.0, INITIAL_READINESS) > changed
}

/// The size, and what the ready pods use together.
#[expect(clippy::cast_precision_loss, reason = "amounts are far below what a double holds")]
pub fn replicas(
    groups: &Groups,
    requests: &BTreeMap<&str, i64>,
    target: f64,
    current: i32,
    fallback: i32,
    tolerance: impl Fn(bool) -> f64,
) -> (i32, i64) {
    let ratio = |used: &BTreeMap<&str, i64>| {
        let sum: i64 = used.values().fold(0, |sum, amount| sum.saturating_add(*amount));
        let asked: i64 =
            used.keys().filter_map(|pod| requests.get(pod)).fold(0, |sum, amount| sum.saturating_add(*amount));
        sum as f64 / (asked.max(1) as f64 * target)
    };
    let total: i64 = groups.used.values().fold(0, |sum, amount| sum.saturating_add(*amount));
    let first = ratio(&groups.used);
    let is_near =
        |ratio: f64| if ratio > 1.0 { ratio - 1.0 <= tolerance(true) } else { 1.0 - ratio <= tolerance(false) };
    let counts_unready = !groups.unready.is_empty() && first > 1.0;
    if !counts_unready && groups.missing.is_empty() {
        let size = if is_near(first) { current } else { ceiling(first * groups.used.len() as f64) };
        return (size, total);
    }
    let mut all = groups.used.clone();
    let stand_in = |pod: &&str| match first.partial_cmp(&1.0) {
        Some(Ordering::Less) => Some(requests.get(pod)?.saturating_mul(i64::from(fallback)) / 100),
        Some(Ordering::Greater) => Some(0),
        _ => None,
    };
    all.extend(groups.missing.iter().filter_map(|pod| Some((*pod, stand_in(pod)?))));
    if counts_unready {
        all.extend(groups.unready.iter().map(|pod| (*pod, 0)));
    }
    let second = ratio(&all);
    if is_near(second) || (first < 1.0 && second > 1.0) || (first > 1.0 && second < 1.0) {
        return (current, total);
    }
    let size = ceiling(second * all.len() as f64);
    let is_backwards = (second < 1.0 && size > current) || (second > 1.0 && size < current);
    (if is_backwards { current } else { size }, total)
}

/// Rounded up; a hair above a whole number is that number.
#[expect(clippy::cast_possible_truncation, reason = "saturates")]
pub fn ceiling(size: f64) -> i32 {
    (size - 1e-9).ceil() as i32
}
