//! The row of a pod in `kubectl get`, above all its STATUS.

use serde_json::{Value, json};

use super::cells::{age, or_none};
use super::field::Field;
use crate::jiff::Timestamp;
use crate::object::{name, text};
use crate::time;

/// What the containers of a pod say together.
struct Summary {
    status: String,
    restarts: i64,
    last_restart: Option<Timestamp>,
    ready: usize,
    total: usize,
}

/// The cells of a pod.
pub fn row(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = summarize(pod);
    let restarts = match summary.last_restart {
        Some(last) if summary.restarts != 0 => format!("{} ({} ago)", summary.restarts, time::age(last, now)),
        _ => summary.restarts.to_string(),
    };
    let status = Field::root(pod).get("status");
    let first_ip = status.get("podIPs").items().next().map(|ip| ip.get("ip").text()).unwrap_or_default();
    let ip = if first_ip.is_empty() { status.get("podIP").text() } else { first_ip };
    let gates = Field::root(pod).dig(&["spec", "readinessGates"]);
    let passed = gates
        .items()
        .filter(|gate| condition(pod, gate.get("conditionType").text()).is_some_and(|c| c == "True"))
        .count();
    let gates = if gates.len() == 0 { "<none>".to_owned() } else { format!("{passed}/{}", gates.len()) };
    vec![
        json!(name(pod)),
        json!(format!("{}/{}", summary.ready, summary.total)),
        json!(summary.status),
        json!(restarts),
        age(pod, now),
        or_none(ip),
        or_none(text(pod, &["spec", "nodeName"])),
        or_none(status.get("nominatedNodeName").text()),
        json!(gates),
    ]
}

/// The STATUS column: phase, or what keeps the pod from it.
pub fn status(pod: &Value) -> String {
    summarize(pod).status
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a str> {
    let mut conditions = Field::root(pod).dig(&["status", "conditions"]).items();
    conditions.find(|c| c.get("type").text() == kind).map(|c| c.get("status").text())
}

fn summarize(pod: &Value) -> Summary {
    let (spec, status) = (Field::root(pod).get("spec"), Field::root(pod).get("status"));
    let phase = status.get("phase").text();
    let reason = status.get("reason").text();
    let sidecars: Vec<&str> = spec
        .get("initContainers")
        .items()
        .filter(|c| c.get("restartPolicy").text() == "Always")
        .map(|c| c.get("name").text())
        .collect();
    let mut summary = Summary {
        status: if reason.is_empty() { phase.to_owned() } else { reason.to_owned() },
        restarts: 0,
        last_restart: None,
        ready: 0,
        total: spec.get("containers").len() + sidecars.len(),
    };
    let gated = status
        .get("conditions")
        .items()
        .any(|c| c.get("type").text() == "PodScheduled" && c.get("reason").text() == "SchedulingGated");
    if gated {
        summary.status = "SchedulingGated".to_owned();
    }
    let mut of_sidecars = (0, None);
    let initializing = init_containers(&spec, &status, &sidecars, &mut summary, &mut of_sidecars);
    if !initializing || condition(pod, "Initialized") == Some("True") {
        (summary.restarts, summary.last_restart) = of_sidecars;
        containers(pod, &status, &mut summary);
    }
    if condition(pod, "AllContainersRestarting") == Some("True") {
        summary.status = "RestartingAllContainers".to_owned();
    }
    if crate::object::is_terminating(pod) {
        if reason == "NodeLost" {
            summary.status = "Unknown".to_owned();
        } else if !matches!(phase, "Failed" | "Succeeded") {
            summary.status = "Terminating".to_owned();
        }
    }
    summary
}

/// Why a container stopped: `Error`, `OOMKilled`, else the signal or the exit code.
fn stopped(terminated: &Field) -> String {
    let reason = terminated.get("reason").text();
    let signal = terminated.get("signal").int().unwrap_or(0);
    match (reason, signal) {
        ("", 0) => format!("ExitCode:{}", terminated.get("exitCode").int().unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn finished(container: &Field) -> Option<Timestamp> {
    time::parse(container.dig(&["lastState", "terminated", "finishedAt"]).text())
}

/// Whether some init container is not through yet; if so the status says which.
fn init_containers(
    spec: &Field,
    status: &Field,
    sidecars: &[&str],
    summary: &mut Summary,
    of_sidecars: &mut (i64, Option<Timestamp>),
) -> bool {
    for (index, container) in status.get("initContainerStatuses").items().enumerate() {
        let restarts = container.get("restartCount").int().unwrap_or(0);
        summary.restarts += restarts;
        summary.last_restart = summary.last_restart.max(finished(&container));
        let sidecar = sidecars.contains(&container.get("name").text());
        if sidecar {
            of_sidecars.0 += restarts;
            of_sidecars.1 = of_sidecars.1.max(finished(&container));
        }
        let (terminated, waiting) =
            (container.dig(&["state", "terminated"]), container.dig(&["state", "waiting", "reason"]));
        if terminated.is_set() && terminated.get("exitCode").int().unwrap_or(0) == 0 {
            continue;
        }
        if sidecar && container.get("started").is_true() {
            summary.ready += usize::from(container.get("ready").is_true());
            continue;
        }
        summary.status = if terminated.is_set() {
            format!("Init:{}", stopped(&terminated))
        } else if !matches!(waiting.text(), "" | "PodInitializing") {
            format!("Init:{}", waiting.text())
        } else {
            format!("Init:{index}/{}", spec.get("initContainers").len())
        };
        return true;
    }
    false
}

fn containers(pod: &Value, status: &Field, summary: &mut Summary) {
    let mut running = false;
    let statuses: Vec<Field> = status.get("containerStatuses").items().collect();
    // The first container has the last word.
    for container in statuses.iter().rev() {
        summary.restarts += container.get("restartCount").int().unwrap_or(0);
        summary.last_restart = summary.last_restart.max(finished(container));
        let state = container.get("state");
        let (waiting, terminated) = (state.dig(&["waiting", "reason"]), state.get("terminated"));
        if !waiting.text().is_empty() {
            summary.status = waiting.text().to_owned();
        } else if terminated.is_set() {
            summary.status = stopped(&terminated);
        } else if container.get("ready").is_true() && state.get("running").is_set() {
            running = true;
            summary.ready += 1;
        }
    }
    if summary.status == "Completed" && running {
        summary.status =
            if condition(pod, "Ready") == Some("True") { "Running".to_owned() } else { "NotReady".to_owned() };
    }
}
