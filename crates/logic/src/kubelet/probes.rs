//! When probes run, and what they mean: upstream's timing, thresholds and initial results.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Probe};

use super::backoff::{plus, plus_seconds};
use super::containers::container_id;
use super::view::{ContainerFact, Hook, Life, PodView, ProbeFact, ProbeKind};
use super::{Action, KubeletDecision};

/// Asks for every probe of these kinds that is due, and to be woken for the next.
pub(super) fn run(view: &PodView, now: Timestamp, kinds: &[ProbeKind], decision: &mut KubeletDecision) {
    for container in view.specs() {
        let Some(latest) = view.latest(&container.name) else { continue };
        let Life::Running { since } = latest.life else { continue };
        let since = view.by_this_clock(latest, since);
        let memory = view.memory_of(&container.name, latest.attempt);
        if memory.is_some_and(|memory| memory.condemned.is_some()) || !hook_done(view, container, latest.attempt) {
            continue;
        }
        let passed_startup = is_started(view, container, latest.attempt);
        for kind in kinds.iter().copied() {
            let Some(probe) = kind.of(container) else { continue };
            if passed_startup == (kind == ProbeKind::Startup) {
                continue;
            }
            let fact = memory.and_then(|memory| memory.probes.get(&kind));
            let due = early_due(probe, fact, since);
            if due <= now {
                decision.act(Action::RunProbe { container: container.name.clone(), attempt: latest.attempt, kind });
            } else {
                decision.wake(due);
            }
        }
    }
}

/// When a probe runs next: after `initialDelaySeconds`, then every `periodSeconds` from beginning to beginning.
fn due(probe: &Probe, fact: Option<&ProbeFact>, started: Timestamp) -> Timestamp {
    match fact.and_then(|fact| fact.last_run) {
        Some(last) => plus_seconds(last, probe.period_seconds.unwrap_or(10).max(1).into()),
        None => plus_seconds(started, probe.initial_delay_seconds.unwrap_or(0).max(0).into()),
    }
}

/// The first pause between early readiness runs; it doubles.
const EARLY_PAUSE: SignedDuration = SignedDuration::from_millis(25);

/// Whether a readiness run falls into the first period of a container. Differs: until that is over, failed runs are
/// repeated soon, uncounted and untold. Most servers listen within milliseconds, and upstream would look again only a
/// whole period later; an ordered set pays that once per pod.
pub(super) fn is_early(view: &PodView, probe: &Probe, fact: &ContainerFact, began: Timestamp) -> bool {
    let Life::Running { since } = fact.life else { return false };
    let since = view.by_this_clock(fact, since);
    began < plus_seconds(due(probe, None, since), probe.period_seconds.unwrap_or(10).max(1).into())
}

/// When a probe runs next: soon, where nothing but early runs have failed, else in its regular beat.
fn early_due(probe: &Probe, fact: Option<&ProbeFact>, started: Timestamp) -> Timestamp {
    let (Some(fact), first) = (fact, due(probe, None, started)) else { return due(probe, fact, started) };
    let (Some(last), 1.., None) = (fact.last_run, fact.early, fact.verdict) else {
        return due(probe, Some(fact), started);
    };
    let soon = plus(last, EARLY_PAUSE.saturating_mul(1 << fact.early.min(12)));
    // The regular beat starts one period after the first run.
    let beat = plus_seconds(first, probe.period_seconds.unwrap_or(10).max(1).into());
    if last < beat { soon.min(beat) } else { due(probe, Some(fact), started) }
}

fn verdict(view: &PodView, container: &Container, attempt: u32, kind: ProbeKind) -> Option<bool> {
    view.memory_of(&container.name, attempt)?.probes.get(&kind)?.verdict
}

/// The API's status of this very container, from before the agent was restarted.
fn recorded<'a>(view: &'a PodView, container: &Container, attempt: u32) -> Option<&'a ContainerStatus> {
    let status = view.pod.status.as_ref()?;
    let id = container_id(view.uid(), &container.name, attempt);
    let mut all = status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    all.find(|status| status.container_id.as_deref() == Some(&id))
}

fn was_started(view: &PodView, container: &Container, attempt: u32) -> bool {
    recorded(view, container, attempt).is_some_and(|status| status.started == Some(true))
}

/// Whether the container has no postStart hook, or it has run.
pub(super) fn hook_done(view: &PodView, container: &Container, attempt: u32) -> bool {
    container.lifecycle.as_ref().is_none_or(|lifecycle| lifecycle.post_start.is_none())
        || view.memory_of(&container.name, attempt).is_some_and(|memory| memory.post_start == Hook::Done)
        || was_started(view, container, attempt)
}

/// `started`: running, its hook done, its startup probe passed.
pub(super) fn is_started(view: &PodView, container: &Container, attempt: u32) -> bool {
    hook_done(view, container, attempt)
        && (container.startup_probe.is_none()
            || verdict(view, container, attempt, ProbeKind::Startup) == Some(true)
            || was_started(view, container, attempt))
}

/// `ready`: started, and its readiness probe says so (before its first verdict: no; unless the API has a verdict
/// about this same container from before a restart of the agent).
pub(super) fn is_ready(view: &PodView, container: &Container, attempt: u32) -> bool {
    is_started(view, container, attempt)
        && (container.readiness_probe.is_none()
            || verdict(view, container, attempt, ProbeKind::Readiness)
                .unwrap_or_else(|| recorded(view, container, attempt).is_some_and(|status| status.ready)))
}
