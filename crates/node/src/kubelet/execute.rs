//! One action, done. Every outcome is a list of facts; nothing here decides.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use mainstay_api::{Kind, kinds, object};
use mainstay_client::{ListOptions, PatchType};
use mainstay_logic::fencing;
use mainstay_logic::kubelet::{Action, End, Fact, ProbeKind, ProbeOutcome, PullPolicy, Sandbox};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::deadline::MayStart;
use super::objects::{Reference, Watched};
use super::worker::IP_ANNOTATION;
use super::{Kubelet, PodContext, credentials, deadline, files, probe, resources, spec};
use mainstay_runtime::images::ImageError;
use mainstay_runtime::{
    ContainerSpec, ContainerState, ContainerStatus, Limits, RuntimeError, SandboxStatus, container_id,
};

/// The pause between questions to an API that does not answer.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// After a preStop hook that used up the grace period, the stop signal has at least this long.
const MINIMUM_GRACE: Duration = Duration::from_secs(2);

/// No grace period is longer than the timer can count.
const LONGEST_STOP: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// The exit code that upstream gives a container that could not be started.
const START_ERROR_CODE: i32 = 128;

/// What an action led to.
pub(super) struct Outcome {
    pub containers: Vec<ContainerStatus>,
    pub facts: Vec<Fact>,
    /// Objects whose changes concern the pod from now on.
    pub dependencies: BTreeMap<Reference, Arc<Watched>>,
    pub end: End,
    /// The pod is over.
    pub ended: bool,
}

impl Default for Outcome {
    fn default() -> Self {
        let (containers, facts, dependencies) = Default::default();
        Self { containers, facts, dependencies, end: End::Done, ended: false }
    }
}

impl From<Fact> for Outcome {
    fn from(fact: Fact) -> Self {
        Self { facts: vec![fact], ..Self::default() }
    }
}

fn failed(context: &PodContext, what: &str, error: &dyn std::fmt::Display) -> Outcome {
    tracing::warn!(pod = %context.name, uid = %context.uid, %error, "{what}");
    Outcome { end: End::Failed, ..Outcome::default() }
}

pub(super) async fn execute(
    kubelet: Arc<Kubelet>,
    context: PodContext,
    action: Action,
    early: mpsc::Sender<Fact>,
) -> Outcome {
    match action {
        Action::Remember => remember(&kubelet, context).await,
        Action::EnsureVolume { name } => ensure_volume(&kubelet, &context, name).await,
        Action::EnsureSandbox => match ensure_sandbox(&kubelet, &context).await {
            Ok(sandbox) => {
                let deadline = deadline::of(&kubelet, &context.uid).map(Fact::Deadline);
                Outcome { facts: deadline.into_iter().chain([Fact::Sandbox(sandbox)]).collect(), ..Outcome::default() }
            }
            Err(message) => Fact::SandboxFailed(message).into(),
        },
        Action::EnsureImage { container, image, policy } => {
            ensure_image(&kubelet, &context, container, image, policy, &early).await
        }
        Action::StartContainer { container, attempt, image_id } => {
            start(&kubelet, &context, container, attempt, &image_id).await
        }
        Action::ResizeContainer { container, attempt } => resize(&kubelet, &context, container, attempt).await,
        Action::PostStart { container, attempt } => {
            let handler = context.container(&container).and_then(|spec| spec.lifecycle.as_ref()?.post_start.clone());
            let result = match handler {
                Some(handler) => probe::hook(&kubelet, &context, &container, attempt, &handler, None).await,
                None => Ok(()),
            };
            if result.is_ok()
                && let Err(error) = files::note_hook(&kubelet.disk, &context.uid, &container, attempt)
            {
                tracing::warn!(pod = %context.name, %error, "that a postStart hook has run could not be noted");
            }
            Fact::PostStart { container, attempt, result }.into()
        }
        Action::RunProbe { container, attempt, kind } => run_probe(&kubelet, &context, container, attempt, kind).await,
        Action::StopContainer { container, attempt, deadline, pre_stop, why } => {
            let _ = early.send(Fact::Stopping { container: container.clone(), why }).await;
            stop(&kubelet, &context, &container, attempt, deadline, pre_stop, &early).await
        }
        Action::RemoveContainer { container, attempt } => {
            remove_container(&kubelet, &context, container, attempt).await
        }
        Action::RemoveSandbox => remove_sandbox(&kubelet, &context).await,
        Action::Unmount => match kubelet.volumes.unmount_pod(&context.uid).await {
            Ok(()) => Fact::Unmounted.into(),
            Err(error) => failed(&context, "a volume could not be unmounted", &error),
        },
        Action::ConfirmDeletion => confirm_deletion(&kubelet, &context).await,
        Action::Forget => forget(&kubelet, &context).await,
    }
}

async fn remember(kubelet: &Kubelet, context: PodContext) -> Outcome {
    let disk = kubelet.disk.clone();
    let result = tokio::task::spawn_blocking(move || {
        disk.write_pod(&context.uid, &context.pod).and_then(|()| disk.write_tombstone(&context.uid))
    });
    let done = matches!(result.await, Ok(Ok(())));
    if !done {
        tracing::error!("the note that a pod was recorded to stop could not be written; is the disk full?");
    }
    Fact::Remembered(done).into()
}

async fn remove_container(kubelet: &Kubelet, context: &PodContext, container: String, attempt: u32) -> Outcome {
    if let Err(error) = kubelet.runtime.remove_container(&container_id(&context.uid, &container, attempt)).await {
        return failed(context, "a container could not be removed", &error);
    }
    let (disk, of) = (kubelet.disk.clone(), context.clone());
    let removed = tokio::task::spawn_blocking(move || {
        files::forget_attempt(&disk, &of.uid, &container, attempt);
        disk.remove_logs(&of.namespace, &of.name, &of.uid, &container, attempt)
    });
    if let Ok(Err(error)) = removed.await {
        tracing::warn!(pod = %context.name, %error, "old logs could not be removed");
    }
    Outcome::default()
}

async fn forget(kubelet: &Kubelet, context: &PodContext) -> Outcome {
    let (disk, of) = (kubelet.disk.clone(), context.clone());
    match tokio::task::spawn_blocking(move || disk.forget(&of.namespace, &of.name, &of.uid)).await {
        Ok(Ok(())) => {
            kubelet.deadlines.forget(&context.uid);
            kubelet.probed.forget(&context.uid);
            Outcome { ended: true, ..Outcome::default() }
        }
        Ok(Err(error)) => failed(context, "a pod's folder could not be removed", &error),
        Err(error) => failed(context, "a pod's folder could not be removed", &error),
    }
}

async fn ensure_volume(kubelet: &Kubelet, context: &PodContext, name: String) -> Outcome {
    let volume =
        context.spec().and_then(|spec| spec.volumes.iter().flatten().find(|volume| volume.name == name)).cloned();
    let Some(volume) = volume else { return Fact::Volume { name, result: Ok(None) }.into() };
    if let Err(error) = write_pod(kubelet, context).await {
        return Fact::Volume { name, result: Err(error) }.into();
    }
    let mut dependencies = BTreeMap::new();
    let result = kubelet.volumes.ensure(kubelet, context, &volume, &mut dependencies).await;
    Outcome { dependencies, ..Fact::Volume { name, result: result.map_err(|error| error.to_string()) }.into() }
}

async fn write_pod(kubelet: &Kubelet, context: &PodContext) -> Result<(), String> {
    let (disk, context) = (kubelet.disk.clone(), context.clone());
    match tokio::task::spawn_blocking(move || disk.write_pod(&context.uid, &context.pod)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

async fn ensure_sandbox(kubelet: &Kubelet, context: &PodContext) -> Result<Sandbox, String> {
    write_pod(kubelet, context).await?;
    spec::check_runtime_class(kubelet, context).await?;
    let sandbox =
        kubelet.runtime.ensure_sandbox(&spec::sandbox(kubelet, context)?).await.map_err(|error| error.to_string())?;
    complete_sandbox(kubelet, context, &sandbox).await
}

/// What a pod's containers find beside the namespaces: its address and its files. The address is noted last: a sandbox
/// without that note was cut off by a crash, and has no containers yet.
pub(super) async fn complete_sandbox(
    kubelet: &Kubelet,
    context: &PodContext,
    sandbox: &SandboxStatus,
) -> Result<Sandbox, String> {
    let ip = match &sandbox.netns_path {
        None => kubelet.config.node_ip.to_string(),
        Some(netns) => kubelet.attach(&context.uid, netns).await?,
    };
    files::write(kubelet, context, Some(&ip)).map_err(|error| format!("writing /etc/hosts: {error}"))?;
    deadline::decide(kubelet, context, sandbox).await?;
    kubelet
        .runtime
        .set_sandbox_annotation(&context.uid, IP_ANNOTATION, &ip)
        .await
        .map_err(|error| error.to_string())?;
    Ok(Sandbox::Ready { ip: Some(ip), made_at: Timestamp::from_millisecond(sandbox.created_at_ms).ok() })
}

async fn remove_sandbox(kubelet: &Kubelet, context: &PodContext) -> Outcome {
    // The namespace goes first: its end of the wire disappears with it, and only then is the address free (N3).
    if let Err(error) = kubelet.runtime.remove_sandbox(&context.uid).await {
        return failed(context, "the sandbox could not be removed", &error);
    }
    match kubelet.detach(&context.uid).await {
        Ok(()) => Fact::Sandbox(Sandbox::Absent).into(),
        Err(error) => failed(context, "the pod's network could not be taken away", &error),
    }
}

async fn ensure_image(
    kubelet: &Kubelet,
    context: &PodContext,
    container: String,
    image: String,
    policy: PullPolicy,
    early: &mpsc::Sender<Fact>,
) -> Outcome {
    let done = |result| Outcome::from(Fact::Image { container: container.clone(), image: image.clone(), result });
    if let Err(error) = mainstay_runtime::images::normalize_name(&image) {
        let message = format!("Failed to apply default image tag \"{image}\": {error}");
        return done(Err(("InvalidImageName", message)));
    }
    let present = kubelet.images.resolve_apart(&image).await;
    match (present, policy) {
        (Some(present), PullPolicy::IfNotPresent | PullPolicy::Never) => done(Ok((present.id, String::new()))),
        (None, PullPolicy::Never) => {
            let message = format!("Container image \"{image}\" is not present with pull policy of Never");
            done(Err(("ErrImageNeverPull", message)))
        }
        (_, PullPolicy::Always | PullPolicy::IfNotPresent) => {
            let _ = early.send(Fact::PullBegan { container: container.clone(), image: image.clone() }).await;
            let began = std::time::Instant::now();
            match credentials::pull(kubelet, context, &image).await {
                Ok(pulled) => {
                    let took = format!("{:.3?}", began.elapsed());
                    let sentence = format!(
                        "Successfully pulled image \"{image}\" in {took} ({took} including waiting). Image size: {} \
                            bytes.",
                        pulled.size
                    );
                    done(Ok((pulled.id, sentence)))
                }
                Err(error @ ImageError::InvalidName { .. }) => done(Err(("InvalidImageName", error.to_string()))),
                Err(error) => done(Err(("ErrImagePull", error.to_string()))),
            }
        }
    }
}

async fn start(kubelet: &Kubelet, context: &PodContext, container: String, attempt: u32, image_id: &str) -> Outcome {
    // With the first process of a shared PID namespace all containers end, and so it is seen here at the latest.
    let dead_sandbox = || {
        let is_dead = kubelet.runtime.has_dead_sandbox(&context.uid);
        is_dead.then(|| Outcome::from(Fact::Sandbox(Sandbox::Dead { since: Timestamp::now() })))
    };
    if let Some(dead) = dead_sandbox() {
        return dead;
    }
    let mut dependencies = BTreeMap::new();
    let (mut facts, deadline) = match deadline::may_start(kubelet, context).await {
        MayStart::Yes(facts, deadline) => (facts, deadline),
        MayStart::No(facts) => return Outcome { facts, ..Outcome::default() },
    };
    if let Err(error) = kubelet.volumes.recover(kubelet, context, deadline, &mut dependencies).await {
        facts.push(Fact::StartFailed { container, reason: "CreateContainerConfigError", message: error.to_string() });
        return Outcome { facts, dependencies, ..Outcome::default() };
    }
    let built = spec::container(kubelet, context, &container, attempt, image_id, &mut dependencies).await;
    let spec = match built {
        Ok(spec) => ContainerSpec { deadline, ..spec },
        Err(message) => {
            facts.push(Fact::StartFailed { container, reason: "CreateContainerConfigError", message });
            return Outcome { facts, dependencies, ..Outcome::default() };
        }
    };
    let mut containers = Vec::new();
    match kubelet.runtime.start_container(&spec).await {
        Ok(status) => {
            containers.push(status);
            facts.push(Fact::Started { container: container.clone(), attempt });
            facts.extend(resources_of(context, container, attempt));
        }
        // Begun before a crash of the agent: it is there.
        Err(RuntimeError::Exists(id)) if kubelet.runtime.status(&id).is_some() => {
            containers.extend(kubelet.runtime.status(&id))
        }
        Err(error) => {
            if let Some(dead) = dead_sandbox() {
                return dead;
            }
            let reason =
                if matches!(error, RuntimeError::Start(_)) { "RunContainerError" } else { "CreateContainerError" };
            let message = error.to_string();
            if reason == "RunContainerError" {
                containers.push(start_error(kubelet, context, &container, attempt, image_id, &message));
                facts.push(Fact::NeverBegan { container, attempt, message });
            } else {
                facts.push(Fact::StartFailed { container, reason, message });
            }
        }
    }
    Outcome { containers, facts, dependencies, ..Outcome::default() }
}

/// What a container of the pod is given, by its spec.
fn resources_of(context: &PodContext, container: String, attempt: u32) -> Option<Fact> {
    let resources = Box::new(context.container(&container)?.resources.clone().unwrap_or_default());
    Some(Fact::Resources { container, attempt, resources })
}

async fn resize(kubelet: &Kubelet, context: &PodContext, container: String, attempt: u32) -> Outcome {
    let Some(spec) = context.container(&container) else { return Outcome::default() };
    let wanted = resources::of(spec);
    let limits = Limits {
        cpu_request_milli: wanted.cpu_request_milli,
        cpu_limit_milli: wanted.cpu_limit_milli,
        memory_limit: wanted.memory_limit,
    };
    match kubelet.runtime.resize(&container_id(&context.uid, &container, attempt), limits).await {
        Ok(()) => {
            Outcome { facts: resources_of(context, container, attempt).into_iter().collect(), ..Outcome::default() }
        }
        // It has ended meanwhile: the next one starts with them.
        Err(RuntimeError::NotRunning(_) | RuntimeError::ContainerNotFound(_)) => Outcome::default(),
        Err(error) => failed(context, "a container could not be resized", &error),
    }
}

/// An attempt that could not be started: it ended before it began, as upstream tells it.
fn start_error(
    kubelet: &Kubelet,
    context: &PodContext,
    name: &str,
    attempt: u32,
    image_id: &str,
    message: &str,
) -> ContainerStatus {
    if let Ok(log) = files::termination_log(&kubelet.disk, &context.uid, name, attempt)
        && let Err(error) = std::fs::write(log, message)
    {
        tracing::warn!(pod = context.name, %error, "why a container did not start could not be noted");
    }
    ContainerStatus {
        id: container_id(&context.uid, name, attempt),
        pod_uid: context.uid.clone(),
        name: name.to_owned(),
        attempt,
        image: context.container(name).and_then(|spec| spec.image.clone()).unwrap_or_default(),
        image_id: image_id.to_owned(),
        sandbox_made_at_ms: None,
        user: None,
        state: ContainerState::Exited {
            code: START_ERROR_CODE,
            signal: None,
            oom: false,
            fenced: false,
            started_at_ms: 0,
            finished_at_ms: Timestamp::now().as_millisecond(),
        },
    }
}

async fn run_probe(
    kubelet: &Kubelet,
    context: &PodContext,
    container: String,
    attempt: u32,
    kind: ProbeKind,
) -> Outcome {
    let at = std::time::Instant::now();
    let probe: Option<k8s_openapi::api::core::v1::Probe> =
        context.container(&container).and_then(|spec| kind.of(spec).cloned());
    let outcome = match probe {
        Some(probe) => probe::run(kubelet, context, &container, attempt, &probe).await,
        None => ProbeOutcome::Success,
    };
    kubelet.probed.count(&context.uid, &container, kind, &outcome, at.elapsed());
    // By the clock of now, which may have been set meanwhile.
    let now = Timestamp::now();
    let began = now.saturating_sub(at.elapsed()).unwrap_or(now);
    Fact::Probe { container, attempt, kind, began, outcome }.into()
}

fn time_left(until: Timestamp) -> Duration {
    Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO).min(LONGEST_STOP)
}

async fn stop(
    kubelet: &Kubelet,
    context: &PodContext,
    container: &str,
    attempt: u32,
    deadline: Timestamp,
    pre_stop: bool,
    early: &mpsc::Sender<Fact>,
) -> Outcome {
    // From now on by the timer: the clock may be set while it stops.
    let deadline = tokio::time::Instant::now() + time_left(deadline);
    let left = |at: tokio::time::Instant| at.saturating_duration_since(tokio::time::Instant::now());
    let spec = context.container(container);
    let handler = spec.and_then(|spec| spec.lifecycle.as_ref()?.pre_stop.clone()).filter(|_| pre_stop);
    let mut grace = left(deadline);
    if let Some(handler) = handler {
        if let Err(message) = probe::hook(kubelet, context, container, attempt, &handler, Some(grace)).await {
            let _ = early.send(Fact::PreStopFailed { container: container.to_owned(), message }).await;
        }
        grace = left(deadline).max(MINIMUM_GRACE);
    }
    let id = container_id(&context.uid, container, attempt);
    // Before the grace is counted: whoever reads it may have to wait for the disk.
    let signal = spec::stop_signal(kubelet, context, container, &id).await;
    match kubelet.runtime.stop_container(&id, signal, grace).await {
        Ok(status) => Outcome { containers: vec![status], ..Outcome::default() },
        Err(RuntimeError::ContainerNotFound(_)) => {
            let (pod_uid, name) = (context.uid.clone(), container.to_owned());
            let state = mainstay_runtime::ContainerState::Unknown;
            let (image, image_id) = Default::default();
            let (sandbox_made_at_ms, user) = (None, None);
            let gone = ContainerStatus { id, pod_uid, name, attempt, image, image_id, sandbox_made_at_ms, user, state };
            Outcome { containers: vec![gone], ..Outcome::default() }
        }
        Err(error) => failed(context, "a container could not be stopped", &error),
    }
}

/// Takes the pod out of the API: S2's last step.
async fn confirm_deletion(kubelet: &Kubelet, context: &PodContext) -> Outcome {
    let Some(kind) = kinds::find("", "v1", "pods") else { return Outcome::default() };
    let seconds = deadline::of(kubelet, &context.uid).or_else(|| fencing::noted(&context.pod));
    if !kubelet.hold.speaks_for(&context.pod, seconds).await {
        return Fact::Replaced.into();
    }
    let options = json!({ "gracePeriodSeconds": 0, "preconditions": { "uid": context.uid } });
    match kubelet.config.client.delete(&kind, &context.namespace, &context.name, &options).await {
        Ok(_) => Outcome::default(),
        // Gone, or the name is another uid's by now.
        Err(error) if error.is_not_found() || error.is_conflict() => refused(kubelet, context).await,
        Err(error) => failed(context, "the deletion could not be confirmed", &error),
    }
}

/// Writes a pod's status patch.
pub(super) async fn write_status(kubelet: &Kubelet, context: &PodContext, patch: &Value) -> Outcome {
    let Some(kind) = kinds::find("", "v1", "pods") else { return Outcome::default() };
    if !kubelet.hold.held().await {
        return Fact::Replaced.into();
    }
    match kubelet.config.client.patch(&kind, &context.namespace, &context.name, "status", PatchType::Merge, patch).await
    {
        Ok(pod) => pod_fact(pod),
        Err(error) if error.is_not_found() || error.is_conflict() => refused(kubelet, context).await,
        Err(error) => failed(context, "the pod's status could not be written", &error),
    }
}

/// The API's refusal leads to the question what has become of the pod.
async fn refused(kubelet: &Kubelet, context: &PodContext) -> Outcome {
    Outcome { end: End::Refused, ..verify(kubelet, context).await }
}

fn pod_fact(pod: Value) -> Outcome {
    match serde_json::from_value(pod) {
        Ok(pod) => Fact::Pod(Box::new(pod)).into(),
        Err(_) => Outcome { end: End::Failed, ..Outcome::default() },
    }
}

/// Asks the API until it answers whether this very pod is still there.
pub(super) async fn verify(kubelet: &Kubelet, context: &PodContext) -> Outcome {
    let Some(kind) = kinds::find("", "v1", "pods") else { return Outcome::default() };
    loop {
        // The pods of this node's name are another machine's, which tells of them.
        if kubelet.hold.is_replaced() {
            return Fact::Replaced.into();
        }
        match kubelet.config.client.get(&kind, &context.namespace, &context.name).await {
            Ok(pod) if object::uid(&pod) == context.uid => return pod_fact(pod),
            Ok(_) => return Fact::Gone.into(),
            Err(error) if error.is_not_found() => return Fact::Gone.into(),
            Err(error) => {
                if error.code() == Some(403)
                    && let Some(answer) = find_among_own(kubelet, context, &kind).await
                {
                    return answer;
                }
                tracing::debug!(pod = %context.name, %error, "asking whether a pod is still there");
                tokio::time::sleep(ASK_AGAIN).await;
            }
        }
    }
}

/// A node may read its own pods only (M4): a name that is another node's pod's by now is refused to it. Its own pods it
/// may list, and one that is not among them is not here any more. `None` where the API does not say.
async fn find_among_own(kubelet: &Kubelet, context: &PodContext, kind: &Kind) -> Option<Outcome> {
    let field_selector = format!("metadata.name={},spec.nodeName={}", context.name, kubelet.config.node_name);
    let options = ListOptions { field_selector, ..ListOptions::default() };
    let list = kubelet.config.client.list(kind, &context.namespace, &options).await.ok()?;
    let own = list.get("items")?.as_array()?.iter().find(|pod| object::uid(pod) == context.uid);
    Some(own.map_or_else(|| Fact::Gone.into(), |pod| pod_fact(pod.clone())))
}
