//! Which containers start now: init containers one after the other, then all others at once; restarts by policy
//! and back-off.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerRestartRule};

use super::backoff::RESTART;
use super::view::{ContainerFact, ImageFact, Life, PodEvent, PodView, Sandbox};
use super::{Action, KubeletDecision, PullPolicy, probes};
use crate::Waiting;

/// `mainstay://<pod uid>/<name>/<attempt>`, as statuses show it.
pub(super) fn container_id(uid: &str, name: &str, attempt: u32) -> String {
    format!("mainstay://{uid}/{name}/{attempt}")
}

/// An init container that keeps running beside the others.
pub(super) fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The pod's `restartPolicy`.
pub(super) fn restart_policy(view: &PodView) -> &str {
    view.spec().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always")
}

/// Whether a container that ended with `code` runs again: the first of its rules that is about this code says so, else
/// its own policy, else the pod's.
pub(super) fn restarts(view: &PodView, container: &Container, code: i32) -> bool {
    if container.restart_policy_rules.iter().flatten().any(|rule| is_about(rule, code)) {
        return true;
    }
    match container.restart_policy.as_deref().unwrap_or_else(|| restart_policy(view)) {
        "Never" => false,
        "OnFailure" => code != 0,
        _ => true,
    }
}

/// Whether a rule, whose action is `Restart`, is about this exit code.
fn is_about(rule: &ContainerRestartRule, code: i32) -> bool {
    rule.exit_codes.as_ref().is_some_and(|codes| {
        let is_listed = codes.values.iter().flatten().any(|value| *value == code);
        is_listed == (codes.operator == "In")
    })
}

/// Whether a container belongs to the sandbox of now (an older one's died with it).
fn in_this_sandbox(view: &PodView, fact: &ContainerFact) -> bool {
    let Sandbox::Ready { made_at, .. } = view.sandbox else { return true };
    match &fact.life {
        Life::Created | Life::Running { .. } => true,
        // One that could not be started has no start.
        Life::Exited { started, finished, .. } if *started == Timestamp::UNIX_EPOCH => {
            made_at.is_none_or(|made| *finished >= made)
        }
        Life::Exited { started, .. } => made_at.is_none_or(|made| *started >= made),
        Life::Lost => made_at.is_none(),
    }
}

/// Whether any regular container was started in this sandbox: then the init containers are behind us.
pub(super) fn main_has_begun(view: &PodView) -> bool {
    view.spec().into_iter().flat_map(|spec| &spec.containers).any(|container| {
        view.latest(&container.name)
            .is_some_and(|fact| in_this_sandbox(view, fact) && !matches!(fact.life, Life::Created))
    })
}

/// An init container's standing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Init {
    Done,
    Pending,
    Failed,
}

/// Whether an init container holds back those after it.
pub(super) fn init_standing(view: &PodView, container: &Container) -> Init {
    let begun = main_has_begun(view);
    let Some(latest) = view.latest(&container.name).filter(|fact| in_this_sandbox(view, fact)) else {
        return if begun { Init::Done } else { Init::Pending };
    };
    if is_sidecar(container) {
        let up = matches!(latest.life, Life::Running { .. }) && probes::is_started(view, container, latest.attempt);
        return if up || begun { Init::Done } else { Init::Pending };
    }
    match latest.exit() {
        Some((0, _)) => Init::Done,
        Some(_) if begun => Init::Done,
        Some((code, _)) if !restarts(view, container, code) => Init::Failed,
        _ => Init::Pending,
    }
}

/// Starts what may start. Without its volumes nothing new starts, but what runs is looked after.
pub(super) fn run(view: &PodView, now: Timestamp, volumes_ready: bool, decision: &mut KubeletDecision) {
    let Some(spec) = view.spec() else { return };
    for container in view.specs() {
        run_post_start(view, container, decision);
    }
    if !volumes_ready {
        return;
    }
    for container in spec.init_containers.iter().flatten() {
        let standing = init_standing(view, container);
        let latest = view.latest(&container.name);
        let running = latest.is_some_and(|fact| matches!(fact.life, Life::Running { .. }));
        let wanted = if is_sidecar(container) { !running } else { standing == Init::Pending && !running };
        if wanted {
            start(view, container, latest, now, decision);
        }
        if standing != Init::Done {
            return;
        }
    }
    for container in &spec.containers {
        let latest = view.latest(&container.name);
        match latest {
            Some(ContainerFact { life: Life::Running { .. }, .. }) => {}
            Some(fact) if fact.exit().is_some_and(|(code, _)| !restarts(view, container, code)) => {}
            _ => start(view, container, latest, now, decision),
        }
    }
}

fn run_post_start(view: &PodView, container: &Container, decision: &mut KubeletDecision) {
    let Some(latest) = view.latest(&container.name) else { return };
    let condemned = view.memory_of(&container.name, latest.attempt).is_some_and(|memory| memory.condemned.is_some());
    if matches!(latest.life, Life::Running { .. }) && !condemned && !probes::hook_done(view, container, latest.attempt)
    {
        decision.act(Action::PostStart { container: container.name.clone(), attempt: latest.attempt });
    }
}

/// The next step towards one more attempt: back-off, image, start.
pub(super) fn start(
    view: &PodView,
    container: &Container,
    latest: Option<&ContainerFact>,
    now: Timestamp,
    decision: &mut KubeletDecision,
) {
    let name = &container.name;
    let memory = view.memory.get(name);
    if let Some(until) = crash_until(view, name, now) {
        decision.back_off(until);
        let pod = &view.pod.metadata;
        let (pod_name, namespace) = (pod.name.as_deref().unwrap_or(""), pod.namespace.as_deref().unwrap_or(""));
        let message =
            format!("Back-off restarting failed container {name} in pod {pod_name}_{namespace}({})", view.uid());
        return decision.events.push(PodEvent {
            warning: true,
            reason: "BackOff",
            message,
            container: Some(name.clone()),
        });
    }
    let attempt = match latest {
        None => super::status::attempts_before(view, name),
        Some(ContainerFact { attempt, life: Life::Created, .. }) => *attempt,
        Some(fact) => fact.attempt.saturating_add(1),
    };
    let image = container.image.clone().unwrap_or_default();
    let policy = pull_policy(&image, container.image_pull_policy.as_deref());
    match memory.and_then(|memory| memory.image.as_ref()) {
        Some(ImageFact::Present { id }) => match memory.and_then(|memory| memory.start_retry) {
            Some(retry) if retry.until(retry.updated, RESTART) > now => {
                decision.back_off(retry.until(retry.updated, RESTART))
            }
            _ => decision.act(Action::StartContainer { container: name.clone(), attempt, image_id: id.clone() }),
        },
        Some(ImageFact::Failed { reason, at, .. }) => {
            let until = memory.and_then(|memory| memory.pull).map_or(*at, |pull| pull.until(*at, RESTART));
            if until <= now {
                return decision.act(Action::EnsureImage { container: name.clone(), image, policy });
            }
            decision.back_off(until);
            if *reason == "ErrImagePull" {
                let told_anew = super::status::backs_off_since(*at);
                if told_anew > now {
                    decision.wake(told_anew);
                }
                let mut tell = |warning, reason, message| {
                    decision.events.push(PodEvent { warning, reason, message, container: Some(name.clone()) });
                };
                tell(false, "BackOff", format!("Back-off pulling image \"{image}\""));
                tell(true, "Failed", "Error: ImagePullBackOff".to_owned());
            }
        }
        None => decision.act(Action::EnsureImage { container: name.clone(), image, policy }),
    }
}

/// When the crash back-off of a container's newest, ended attempt is over, if that is in the future.
pub(super) fn crash_until(view: &PodView, name: &str, now: Timestamp) -> Option<Timestamp> {
    let latest = view.latest(name)?;
    let crash = view.memory.get(name)?.crash?;
    let (_, finished) = latest.exit()?;
    Some(crash.until(finished.unwrap_or(crash.updated), RESTART)).filter(|until| *until > now)
}

/// An image's pull policy as given, with upstream's default by tag.
pub fn pull_policy(image: &str, given: Option<&str>) -> PullPolicy {
    match given {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        Some("IfNotPresent") => PullPolicy::IfNotPresent,
        _ => {
            let name = image.rsplit('/').next().unwrap_or(image);
            let moving = !image.contains('@') && (name.ends_with(":latest") || !name.contains(':'));
            if moving { PullPolicy::Always } else { PullPolicy::IfNotPresent }
        }
    }
}

/// Keeps the newest attempt and the one before it (`kubectl logs --previous`).
pub(super) fn drop_old_attempts(view: &PodView, decision: &mut KubeletDecision) {
    for fact in &view.containers {
        let newest = view.latest(&fact.name).map_or(0, |latest| latest.attempt);
        if fact.attempt.saturating_add(1) < newest {
            if fact.is_alive() {
                decision.wait(Waiting::InUse);
            } else {
                decision.act(Action::RemoveContainer { container: fact.name.clone(), attempt: fact.attempt });
            }
        }
    }
}
