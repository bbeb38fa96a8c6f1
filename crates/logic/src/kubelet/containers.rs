//! Which containers start now: init containers one after the other, then all others at once; restarts by policy
//! and back-off.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerRestartRule};

use super::backoff::RESTART;
use super::status::{LOST_CODE, attempts_before, recorded_status};
use super::view::{ContainerFact, ImageState, Life, PodEvent, PodView, Sandbox};
use super::{Action, KubeletDecision, PullPolicy, probes, restart_all};
use crate::Waiting;
use crate::pods::is_sidecar;

/// `mainstay://<pod uid>/<name>/<attempt>`, as statuses show it.
pub(super) fn container_id(uid: &str, name: &str, attempt: u32) -> String {
    format!("mainstay://{uid}/{name}/{attempt}")
}

/// The pod's `restartPolicy`.
pub(super) fn restart_policy(view: &PodView) -> &str {
    view.spec().and_then(|spec| spec.restart_policy.as_deref()).unwrap_or("Always")
}

/// Whether a container that ended with `code` runs again by itself: the first of its rules that is about this code says
/// so, else its own policy, else the pod's. Another action than `Restart` is not about the container alone.
pub(super) fn restarts(view: &PodView, container: &Container, code: i32) -> bool {
    if rule_about(container, code).is_some_and(|rule| rule.action == "Restart") {
        return true;
    }
    match container.restart_policy.as_deref().unwrap_or_else(|| restart_policy(view)) {
        "Never" => false,
        "OnFailure" => code != 0,
        _ => true,
    }
}

/// The first of a container's rules that is about this exit code.
pub(super) fn rule_about(container: &Container, code: i32) -> Option<&ContainerRestartRule> {
    container.restart_policy_rules.iter().flatten().find(|rule| is_about(rule, code))
}

/// Whether a rule is about this exit code.
fn is_about(rule: &ContainerRestartRule, code: i32) -> bool {
    rule.exit_codes.as_ref().is_some_and(|codes| {
        let is_listed = codes.values.iter().flatten().any(|value| *value == code);
        is_listed == (codes.operator == "In")
    })
}

/// How a container's newest run ended, where it has. What the runtime does not know any more (`mainstay down`, a
/// damaged record) stands in the API: what ran then was killed.
pub(super) fn ended(view: &PodView, name: &str) -> Option<i32> {
    if let Some(latest) = view.latest(name) {
        return latest.exit().map(|(code, _)| code);
    }
    let recorded = recorded_status(view, name).filter(|status| status.container_id.is_some())?;
    let state = recorded.state.as_ref()?;
    let lost = state.running.as_ref().map(|_| LOST_CODE);
    state.terminated.as_ref().map(|ended| ended.exit_code).or(lost)
}

/// Whether a container was stopped to give way to another image: then it runs again, whatever its policy.
pub(super) fn is_replaced(view: &PodView, name: &str) -> bool {
    let memory = view.latest(name).and_then(|latest| view.memory_of(name, latest.attempt));
    memory.and_then(|memory| memory.condemned.as_ref()).is_some_and(|condemned| condemned.replaced)
}

/// Whether a container has ended for good.
pub(super) fn is_over(view: &PodView, container: &Container) -> bool {
    ended(view, &container.name).is_some_and(|code| !restarts(view, container, code))
        && !is_replaced(view, &container.name)
}

/// Whether a container belongs to the sandbox of now (an older one's died with it).
fn in_this_sandbox(view: &PodView, fact: &ContainerFact) -> bool {
    let Sandbox::Ready { made_at, .. } = view.sandbox else { return true };
    if let (Some(made), Some(of)) = (made_at, fact.sandbox_made_at) {
        return made == of;
    }
    // It was started by an agent from before that was noted: by the clock, which may have been set meanwhile.
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

/// The init containers with their standing.
pub(super) fn init_standings(view: &PodView) -> impl Iterator<Item = (&Container, Init)> {
    let begun = main_has_begun(view);
    let all = view.spec().into_iter().flat_map(|spec| spec.init_containers.iter().flatten());
    all.map(move |container| (container, init_standing(view, container, begun)))
}

/// Whether an init container holds back those after it. One that failed for good has, in whatever sandbox that was.
fn init_standing(view: &PodView, container: &Container, begun: bool) -> Init {
    let failed = |code: i32| code != 0 && !restarts(view, container, code);
    if !begun && ended(view, &container.name).is_some_and(failed) {
        return Init::Failed;
    }
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
    for (container, standing) in init_standings(view) {
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
    let mut held = false;
    for container in &spec.containers {
        let latest = view.latest(&container.name);
        match latest {
            Some(ContainerFact { life: Life::Running { .. }, .. }) => {}
            _ if is_over(view, container) || (held && latest.is_none()) => {}
            _ => start(view, container, latest, now, decision),
        }
        held |= holds_others(view, container);
    }
}

/// Whether the containers after this one wait for it, if they never began: as upstream, one starts after the other, and
/// a postStart hook is a part of the start. One that cannot be started holds up nobody.
fn holds_others(view: &PodView, container: &Container) -> bool {
    if container.lifecycle.as_ref().is_none_or(|lifecycle| lifecycle.post_start.is_none()) {
        return false;
    }
    let memory = view.memory.get(&container.name);
    match view.latest(&container.name) {
        Some(fact) if matches!(fact.life, Life::Running { .. }) => {
            let memory = view.memory_of(&container.name, fact.attempt);
            let is_condemned = memory.is_some_and(|memory| memory.condemned.is_some());
            !is_condemned && !probes::hook_done(view, container, fact.attempt)
        }
        Some(fact) if fact.exit().is_some() => false,
        _ => !memory.is_some_and(|memory| {
            let of_image =
                memory.image_of(container).is_some_and(|image| matches!(image.state, ImageState::Failed { .. }));
            of_image || memory.start_error.is_some()
        }),
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
    if let Some(until) = crash_until(view, container, now) {
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
        None => attempts_before(view, name),
        Some(ContainerFact { attempt, life: Life::Created, .. }) => *attempt,
        // One that never began is known to nobody but the API after a restart of the agent.
        Some(fact) => fact.attempt.saturating_add(1).max(attempts_before(view, name)),
    };
    if let Some(retry) = memory.and_then(|memory| memory.start_retry)
        && retry.until(retry.updated, RESTART) > now
    {
        return decision.back_off(retry.until(retry.updated, RESTART));
    }
    let image = container.image.clone().unwrap_or_default();
    let policy = pull_policy(&image, container.image_pull_policy.as_deref());
    match memory.and_then(|memory| memory.image_of(container)).map(|fact| &fact.state) {
        Some(ImageState::Present { id }) => {
            decision.act(Action::StartContainer { container: name.clone(), attempt, image_id: id.clone() });
        }
        Some(ImageState::Failed { reason, at, .. }) => {
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

/// When the crash back-off of a container's newest, ended attempt is over, if that is in the future. Another image does
/// not wait for it, as upstream.
pub(super) fn crash_until(view: &PodView, container: &Container, now: Timestamp) -> Option<Timestamp> {
    let crash = view.memory.get(&container.name)?.crash?;
    let finished = match view.latest(&container.name) {
        Some(latest) if latest.is_of_another_image(container) => return None,
        Some(latest) => latest.exit()?.1.map(|finished| view.by_this_clock(latest, finished)),
        None => Some(restart_all::ended_before(view, &container.name)?),
    };
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
            // A digest has a colon, too.
            let moving = name.ends_with(":latest") || !name.contains(':');
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
