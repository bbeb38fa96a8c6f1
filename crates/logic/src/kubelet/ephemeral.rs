//! Ephemeral containers: added to a running pod to look at it (`kubectl debug`), started once, never again.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, EphemeralContainer, PodSpec};

use super::view::PodView;
use super::{KubeletDecision, containers, status};

/// A pod's ephemeral containers, as containers that have no probes, hooks and ports.
pub fn of(spec: &PodSpec) -> impl Iterator<Item = Container> {
    spec.ephemeral_containers.iter().flatten().map(container)
}

fn container(of: &EphemeralContainer) -> Container {
    let of = of.clone();
    Container {
        name: of.name,
        image: of.image,
        command: of.command,
        args: of.args,
        working_dir: of.working_dir,
        env: of.env,
        env_from: of.env_from,
        resources: of.resources,
        volume_mounts: of.volume_mounts,
        volume_devices: of.volume_devices,
        image_pull_policy: of.image_pull_policy,
        security_context: of.security_context,
        stdin: of.stdin,
        stdin_once: of.stdin_once,
        tty: of.tty,
        termination_message_path: of.termination_message_path,
        termination_message_policy: of.termination_message_policy,
        ..Container::default()
    }
}

/// In a sandbox that is there: starts those that were never started, whatever the others wait for.
pub(super) fn run(view: &PodView, now: Timestamp, decision: &mut KubeletDecision) {
    for container in view.spec().into_iter().flat_map(of) {
        let name = &container.name;
        if view.latest(name).is_none() && !was_there(view, name) {
            containers::start(view, &container, None, now, decision);
        }
    }
}

/// Whether the API has that it was there, whatever the runtime knows of it by now.
pub(super) fn was_there(view: &PodView, name: &str) -> bool {
    status::recorded_status(view, name).is_some_and(|status| status.container_id.is_some())
}
