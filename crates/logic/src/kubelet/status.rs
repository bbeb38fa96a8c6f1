//! The pod's status as upstream's kubelet would write it.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    ContainerUser, HostIP, Pod, PodIP, PodStatus, ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Map, Value, json};

use super::admission::Refusal;
use super::backoff::plus_seconds;
use super::containers::{Init, container_id, crash_until, init_standings, is_over, is_replaced, restarts};
use super::view::{ContainerFact, ImageState, Life, PodEvent, PodView, Sandbox};
use super::{Stage, conditions, ephemeral, probes, qos, resize, restart_all};
use crate::pods::is_sidecar;

/// How long `ErrImagePull` stands before it becomes `ImagePullBackOff`.
const PULL_ERROR_SECONDS: i64 = 2;

/// Exit code and reason of a container that nobody saw ending.
pub(super) const LOST_CODE: i32 = 137;
const LOST_REASON: &str = "ContainerStatusUnknown";

/// The reason of a container that its supervisor ended at its deadline.
const FENCED: &str = "Fenced";

/// The reason of a pod that had more on the node's disk than it may.
const EVICTED: &str = "Evicted";

/// The fields that the kubelet writes.
const FIELDS: [&str; 14] = [
    "phase",
    "conditions",
    "message",
    "reason",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "startTime",
    "initContainerStatuses",
    "containerStatuses",
    "ephemeralContainerStatuses",
    "qosClass",
    "observedGeneration",
];

/// What a merge patch must change, with uid and resourceVersion as preconditions: the conditions are one list, and
/// those of others in it must be the newest. `None` where the API has it all.
pub(super) fn patch(pod: &Pod, wanted: &PodStatus) -> Option<Value> {
    let wanted = serde_json::to_value(wanted).ok()?;
    let current = serde_json::to_value(&pod.status).ok()?;
    let mut changed = Map::new();
    for field in FIELDS {
        let (new, old) = (wanted.get(field).unwrap_or(&Value::Null), current.get(field).unwrap_or(&Value::Null));
        if new != old {
            changed.insert(field.to_owned(), new.clone());
        }
    }
    let metadata = json!({ "uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version });
    (!changed.is_empty()).then(|| json!({ "metadata": metadata, "status": changed }))
}

/// Whether the pod's own containers have all ended for good; sidecars don't count.
pub(super) fn is_complete(view: &PodView) -> bool {
    let Some(spec) = view.spec() else { return false };
    if init_standings(view).any(|(_, standing)| standing == Init::Failed) {
        return true;
    }
    !spec.containers.is_empty() && spec.containers.iter().all(|container| is_over(view, container))
}

pub(super) fn status(view: &PodView, stage: &Stage, now: Timestamp) -> PodStatus {
    let recorded = view.pod.status.clone().unwrap_or_default();
    let mut status = PodStatus {
        qos_class: Some(recorded.qos_class.clone().unwrap_or_else(|| qos::class(&view.pod).to_owned())),
        start_time: Some(recorded.start_time.clone().unwrap_or(Time(now))),
        observed_generation: view.pod.metadata.generation,
        reason: recorded.reason.clone(),
        message: recorded.message.clone(),
        host_ip: view.host_ips.first().cloned(),
        host_ips: Some(view.host_ips.iter().map(|ip| HostIP { ip: ip.clone() }).collect()),
        nominated_node_name: recorded.nominated_node_name.clone(),
        ..PodStatus::default()
    };
    if let Some(refusal) = &view.refused {
        return refused(refusal, status, &recorded);
    }
    set_address(view, stage, &recorded, &mut status);
    if let Some(spec) = view.spec() {
        let init = spec.init_containers.as_deref().unwrap_or_default();
        let was_refused = recorded.phase.as_deref() == Some("Failed") && recorded.container_statuses.is_none();
        let all = |containers: &[Container], role| {
            containers.iter().map(|container| container_status(view, container, role, stage, now)).collect()
        };
        status.init_container_statuses = Some(all(init, Role::Init)).filter(|all: &Vec<_>| !all.is_empty());
        status.container_statuses = Some(all(&spec.containers, Role::Regular));
        let ephemeral = ephemeral::of(spec).map(|container| {
            let status = container_status(view, &container, Role::Ephemeral, stage, now);
            ContainerStatus { ready: false, started: None, ..status }
        });
        status.ephemeral_container_statuses = Some(ephemeral.collect()).filter(|all: &Vec<_>| !all.is_empty());
        if was_refused && view.containers.is_empty() {
            (status.init_container_statuses, status.container_statuses) = (None, None);
        }
    }
    status.phase = Some(phase(view, stage, &recorded, &status).to_owned());
    if *stage == Stage::Expired {
        status.reason = Some("DeadlineExceeded".to_owned());
        status.message = Some("Pod was active on the node longer than the specified deadline".to_owned());
    }
    if let (Stage::Evicted, Some((message, _))) = (stage, &view.evicted) {
        status.reason = Some(EVICTED.to_owned());
        status.message = Some(message.clone());
    }
    status.conditions = Some(conditions::conditions(view, &recorded, &status, now));
    status
}

/// A pod that this node does not take: nothing is said of containers that never were.
fn refused(refusal: &Refusal, status: PodStatus, recorded: &PodStatus) -> PodStatus {
    PodStatus {
        phase: Some("Failed".to_owned()),
        reason: Some(refusal.reason.to_owned()),
        message: Some(format!("Pod was rejected: {}", refusal.message)),
        conditions: recorded.conditions.clone(),
        ..status
    }
}

/// The sandbox's address; once it is gone, the last one where the pod only waits to be taken away.
fn set_address(view: &PodView, stage: &Stage, recorded: &PodStatus, status: &mut PodStatus) {
    let host_network = view.spec().is_some_and(|spec| spec.host_network == Some(true));
    let ip = match &view.sandbox {
        Sandbox::Ready { .. } if host_network => view.host_ips.first().cloned(),
        Sandbox::Ready { ip, .. } => ip.clone(),
        _ if *stage != Stage::Live => recorded.pod_ip.clone(),
        _ => None,
    };
    status.pod_ips = ip.clone().map(|ip| vec![PodIP { ip }]);
    status.pod_ip = ip;
}

pub(super) fn recorded_status<'a>(view: &'a PodView, name: &str) -> Option<&'a ContainerStatus> {
    let status = view.pod.status.as_ref()?;
    status
        .init_container_statuses
        .iter()
        .flatten()
        .chain(status.container_statuses.iter().flatten())
        .chain(status.ephemeral_container_statuses.iter().flatten())
        .find(|status| status.name == name)
}

/// What is told of a container that was ended at its deadline, unless the API knows of it.
pub(super) fn fenced(view: &PodView, fact: &ContainerFact) -> Option<PodEvent> {
    let Life::Exited { fenced: true, .. } = fact.life else { return None };
    let id = container_id(view.uid(), &fact.name, fact.attempt);
    let recorded = recorded_status(view, &fact.name)
        .into_iter()
        .flat_map(|status| [&status.state, &status.last_state])
        .filter_map(|state| state.as_ref()?.terminated.as_ref());
    if recorded.into_iter().any(|ended| ended.container_id.as_ref() == Some(&id)) {
        return None;
    }
    let seconds = view.deadline.map_or_else(String::new, |seconds| format!(" for {seconds} s"));
    let message = format!("Stopped by its supervisor: this node could not renew its lease{seconds}");
    Some(PodEvent { warning: true, reason: FENCED, message, container: Some(fact.name.clone()) })
}

fn waiting(reason: &str, message: Option<String>) -> ContainerState {
    ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message }),
        ..Default::default()
    }
}

/// An ended container's state; `None` while it has not ended.
fn terminated(view: &PodView, fact: &ContainerFact) -> Option<ContainerState> {
    let id = Some(container_id(view.uid(), &fact.name, fact.attempt));
    let state = match &fact.life {
        Life::Exited { code, oom, fenced, started, finished, message, .. } => ContainerStateTerminated {
            container_id: id,
            exit_code: *code,
            finished_at: Some(Time(*finished)),
            started_at: Some(Time(*started)),
            message: message.clone(),
            reason: Some(
                if *fenced {
                    FENCED
                } else if *oom {
                    "OOMKilled"
                } else if *started == Timestamp::UNIX_EPOCH {
                    "StartError"
                } else if *code == 0 {
                    "Completed"
                } else {
                    "Error"
                }
                .to_owned(),
            ),
            signal: None,
        },
        Life::Lost => lost(id),
        Life::Created | Life::Running { .. } => return None,
    };
    Some(ContainerState { terminated: Some(state), ..Default::default() })
}

fn lost(container_id: Option<String>) -> ContainerStateTerminated {
    ContainerStateTerminated {
        container_id,
        exit_code: LOST_CODE,
        reason: Some(LOST_REASON.to_owned()),
        message: Some("The container could not be located when the pod was terminated".to_owned()),
        ..Default::default()
    }
}

/// When a pull that failed at `at` turns from `ErrImagePull` into `ImagePullBackOff`.
pub(super) fn backs_off_since(at: Timestamp) -> Timestamp {
    plus_seconds(at, PULL_ERROR_SECONDS)
}

/// Why the next attempt is not there yet, where there is a reason of its own.
fn blocked(view: &PodView, container: &Container, now: Timestamp) -> Option<ContainerState> {
    let name = &container.name;
    if crash_until(view, container, now).is_some() {
        let pod = &view.pod.metadata;
        let delay = view.memory.get(name).and_then(|memory| memory.crash).map_or(0, |crash| crash.delay.as_secs());
        let delay = if delay >= 60 { format!("{}m{}s", delay / 60, delay % 60) } else { format!("{delay}s") };
        let (pod_name, namespace) = (pod.name.as_deref().unwrap_or(""), pod.namespace.as_deref().unwrap_or(""));
        let message =
            format!("back-off {delay} restarting failed container={name} pod={pod_name}_{namespace}({})", view.uid());
        return Some(waiting("CrashLoopBackOff", Some(message)));
    }
    let memory = view.memory.get(name)?;
    if let Some(ImageState::Failed { reason, message, at }) = memory.image_of(container).map(|image| &image.state) {
        if *reason == "ErrImagePull" && backs_off_since(*at) <= now {
            let image = container.image.as_deref().unwrap_or("");
            return Some(waiting(
                "ImagePullBackOff",
                Some(format!("Back-off pulling image \"{image}\": ErrImagePull: {message}")),
            ));
        }
        return Some(waiting(reason, Some(message.clone())));
    }
    let (reason, message) = memory.start_error.as_ref()?;
    Some(waiting(reason, Some(message.clone())))
}

/// Which of a pod's lists a container is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Init,
    Regular,
    /// It runs once, whatever the pod's policy.
    Ephemeral,
}

fn runs_again(view: &PodView, container: &Container, role: Role, code: i32) -> bool {
    match role {
        Role::Ephemeral => false,
        Role::Init if code == 0 && !is_sidecar(container) => false,
        Role::Init | Role::Regular => is_replaced(view, &container.name) || restarts(view, container, code),
    }
}

fn container_status(
    view: &PodView,
    container: &Container,
    role: Role,
    stage: &Stage,
    now: Timestamp,
) -> ContainerStatus {
    let name = &container.name;
    let has_init = view.spec().is_some_and(|spec| spec.init_containers.as_ref().is_some_and(|init| !init.is_empty()));
    let default = || waiting(if has_init { "PodInitializing" } else { "ContainerCreating" }, None);
    let mut status = ContainerStatus {
        name: name.clone(),
        image: container.image.clone().unwrap_or_default(),
        started: Some(false),
        last_state: Some(ContainerState::default()),
        ..Default::default()
    };
    let Some(fact) = view.latest(name) else {
        let is_due = match role {
            Role::Init => true,
            Role::Regular => !is_over(view, container) || restart_all::is_cleared(view),
            Role::Ephemeral => !ephemeral::was_there(view, name),
        };
        let runs = *stage == Stage::Live && is_due;
        return unseen(view, status, runs, blocked(view, container, now).unwrap_or_else(default));
    };
    if !fact.image.is_empty() {
        status.image.clone_from(&fact.image);
    }
    status.image_id = fact.image_id.clone();
    let wanted = container.resources.clone().unwrap_or_default();
    let applied = Some(fact).filter(|fact| fact.is_alive()).and_then(|fact| resize::applied(view, fact)).cloned();
    let is_held = resize::infeasible(view).is_some();
    let applied = applied.unwrap_or_else(|| wanted.clone());
    let allocated = if is_held { &applied } else { &wanted };
    status.allocated_resources = allocated.requests.clone().filter(|requests| !requests.is_empty());
    status.resources = Some(ResourceRequirements { claims: None, ..applied });
    status.restart_count = i32::try_from(fact.attempt).unwrap_or(i32::MAX);
    status.container_id = Some(container_id(view.uid(), name, fact.attempt));
    status.user = fact.user.clone().map(|user| ContainerUser { linux: Some(user) });
    let previous = fact
        .attempt
        .checked_sub(1)
        .and_then(|before| view.attempt(name, before))
        .and_then(|before| terminated(view, before));
    // The one before may be gone from here, and stand in the API only.
    let recorded = || {
        let recorded = recorded_status(view, name)?;
        let same = recorded.container_id.is_none() || recorded.container_id == status.container_id;
        recorded.last_state.clone().filter(|_| same)
    };
    status.last_state = Some(previous.or_else(recorded).unwrap_or_default());
    match &fact.life {
        Life::Created => {
            (status.container_id, status.user) = (None, None);
            status.state = Some(blocked(view, container, now).unwrap_or_else(default));
        }
        Life::Running { since } => {
            let running = ContainerStateRunning { started_at: Some(Time(*since)) };
            status.state = Some(ContainerState { running: Some(running), ..Default::default() });
            status.started = Some(probes::is_started(view, container, fact.attempt));
            status.ready =
                (role != Role::Init || is_sidecar(container)) && probes::is_ready(view, container, fact.attempt);
        }
        Life::Exited { .. } | Life::Lost => {
            let ended = terminated(view, fact);
            let code = fact.exit().map_or(LOST_CODE, |(code, _)| code);
            let held = (*stage == Stage::Live && runs_again(view, container, role, code))
                .then(|| blocked(view, container, now))
                .flatten();
            if let Some(held) = held {
                status.state = Some(held);
                status.last_state = ended;
            } else {
                status.state = ended;
            }
            status.ready = role == Role::Init && !is_sidecar(container) && code == 0;
        }
    }
    status
}

/// How many attempts of a container there were, as the API has it; what the runtime knew is gone (`mainstay down`, a
/// reboot, a damaged record). One that the API saw has been there, as upstream counts.
pub(super) fn attempts_before(view: &PodView, name: &str) -> u32 {
    let recorded = recorded_status(view, name);
    let restarts = recorded.map_or(0, |status| u32::try_from(status.restart_count).unwrap_or(0));
    restarts.saturating_add(u32::from(recorded.is_some_and(|status| status.container_id.is_some())))
}

/// How a container ended that nobody saw ending.
fn ended_unseen(recorded: &ContainerStatus) -> ContainerState {
    match &recorded.state {
        Some(state) if state.terminated.is_some() => state.clone(),
        Some(state) if state.waiting.is_some() => recorded.last_state.clone().unwrap_or_default(),
        _ => ContainerState { terminated: Some(lost(recorded.container_id.clone())), ..Default::default() },
    }
}

/// A container that the runtime does not know: not yet made, or its record is gone while the API still has it. `runs`:
/// it is to run.
fn unseen(view: &PodView, mut status: ContainerStatus, runs: bool, not_yet: ContainerState) -> ContainerStatus {
    let recorded = recorded_status(view, &status.name);
    if runs {
        status.restart_count = i32::try_from(attempts_before(view, &status.name)).unwrap_or(i32::MAX);
        status.state = Some(not_yet);
        status.last_state = Some(match recorded {
            Some(recorded) if recorded.container_id.is_some() => ended_unseen(recorded),
            recorded => recorded.and_then(|recorded| recorded.last_state.clone()).unwrap_or_default(),
        });
        return status;
    }
    let Some(recorded) = recorded else {
        status.state = Some(not_yet);
        return status;
    };
    let mut kept = recorded.clone();
    if let Some(state) = kept.state.as_mut().filter(|state| state.running.is_some()) {
        *state = ContainerState { terminated: Some(lost(recorded.container_id.clone())), ..Default::default() };
        kept.ready = false;
        kept.started = Some(false);
    }
    kept
}

/// The phase, from the containers; a pod never counts as ended while one of its containers is alive.
fn phase<'a>(view: &PodView, stage: &Stage, recorded: &'a PodStatus, status: &PodStatus) -> &'a str {
    if let Some(phase @ ("Succeeded" | "Failed")) = recorded.phase.as_deref() {
        return phase;
    }
    let alive = view.containers.iter().any(ContainerFact::is_alive);
    let Some(spec) = view.spec() else { return "Pending" };
    let ended: Vec<i32> = status
        .container_statuses
        .iter()
        .flatten()
        .filter_map(|status| Some(status.state.as_ref()?.terminated.as_ref()?.exit_code))
        .collect();
    match stage {
        Stage::Expired | Stage::Evicted if !alive => return "Failed",
        Stage::Doomed | Stage::Finished if !alive => {
            if init_standings(view).any(|(_, standing)| standing == Init::Failed) {
                return "Failed";
            }
            if !spec.containers.is_empty() && ended.len() == spec.containers.len() {
                return if ended.iter().all(|code| *code == 0) { "Succeeded" } else { "Failed" };
            }
        }
        _ => {}
    }
    let begun = spec.containers.iter().any(|container| view.latest(&container.name).is_some());
    let initialized = init_standings(view).all(|(_, standing)| standing == Init::Done);
    let all_made = status.container_statuses.iter().flatten().all(|status| {
        let held = status.state.as_ref().is_some_and(|state| state.waiting.is_some());
        !held || status.last_state.as_ref().is_some_and(|last| last.terminated.is_some())
    });
    if begun && initialized && all_made { "Running" } else { "Pending" }
}
