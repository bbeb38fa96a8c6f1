//! Resources that change while their container runs (`pods/resize`).
//!
//! What a container runs with is what was made real last: remembered since its start or its last resize, else what the
//! API's status says of the same container id, so that a restarted agent goes on where the one before it stopped.
//! CPU and memory are changed in place; a container whose `resizePolicy` wants that for what changed is stopped and
//! started again.
//!
//! Differs: what does not fit beside the other pods is not deferred. A node here admits by requests alone, so a resize
//! that the node could hold by itself is done, and only one that exceeds the whole node is Infeasible.

use k8s_openapi::api::core::v1::{Container, ResourceRequirements};
use mainstay_api::quantity::Quantity;

use super::status::recorded_status;
use super::view::{ContainerFact, Life, PodView};
use super::{Action, KubeletDecision, containers};
use crate::resources;

/// What can be resized.
const RESIZABLE: [&str; 2] = ["cpu", "memory"];

/// What a container runs with; none where nobody has noted it.
pub(super) fn applied<'a>(view: &'a PodView, fact: &ContainerFact) -> Option<&'a ResourceRequirements> {
    let remembered = view.memory_of(&fact.name, fact.attempt).and_then(|memory| memory.resources.as_ref());
    remembered.or_else(|| {
        let id = containers::container_id(view.uid(), &fact.name, fact.attempt);
        let recorded = recorded_status(view, &fact.name)?;
        recorded.resources.as_ref().filter(|_| recorded.container_id.as_deref() == Some(&*id))
    })
}

/// Thousandths of an amount; none where nothing is said, which is not the same as 0.
fn amount(resources: &ResourceRequirements, limits: bool, name: &str) -> Option<i64> {
    let list = if limits { &resources.limits } else { &resources.requests };
    let amount: Quantity = list.as_ref()?.get(name)?.0.parse().ok()?;
    Some(amount.milli())
}

/// Which resources of a running container are not what the pod's spec says.
pub(super) fn pending(view: &PodView, container: &Container, fact: &ContainerFact) -> Vec<&'static str> {
    let empty = ResourceRequirements::default();
    let Some(applied) = applied(view, fact) else { return Vec::new() };
    let wanted = container.resources.as_ref().unwrap_or(&empty);
    let differs = |name: &&str| [false, true].iter().any(|of| amount(wanted, *of, name) != amount(applied, *of, name));
    RESIZABLE.into_iter().filter(differs).collect()
}

/// Why the node can never hold what the pod asks for now, in upstream's words.
pub(super) fn infeasible(view: &PodView) -> Option<String> {
    let wanted = resources::of_pod(&view.pod);
    RESIZABLE.iter().find_map(|name| {
        let (asked, has) = (wanted.get(name), *view.capacity.get(*name)?);
        (asked > has).then(|| format!("Node didn't have enough capacity: {name}, requested: {asked}, capacity: {has}"))
    })
}

/// The running containers that are to be resized, and what of them changes.
pub(super) fn open(view: &PodView) -> impl Iterator<Item = (&Container, &ContainerFact, Vec<&'static str>)> {
    view.specs().filter_map(move |container| {
        let fact = view.latest(&container.name).filter(|fact| matches!(fact.life, Life::Running { .. }))?;
        let pending = pending(view, container, fact);
        (!pending.is_empty()).then_some((container, fact, pending))
    })
}

/// Whether a change of these resources is made by a restart.
pub(super) fn restarts(container: &Container, changed: &[&str]) -> bool {
    let policies = container.resize_policy.iter().flatten();
    policies
        .filter(|policy| policy.restart_policy == "RestartContainer")
        .any(|policy| changed.contains(&&*policy.resource_name))
}

/// Resizes what can be resized in place; what needs a restart is condemned where the view takes in the change.
pub(super) fn run(view: &PodView, decision: &mut KubeletDecision) {
    if infeasible(view).is_some() {
        return;
    }
    for (container, fact, changed) in open(view) {
        if !restarts(container, &changed) {
            let (container, attempt) = (container.name.clone(), fact.attempt);
            decision.act(Action::ResizeContainer { container, attempt });
        }
    }
}
