//! Which ControllerRevision the set is on and which it goes to.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::PodTemplateSpec;
use mainstay_api::kinds::STATEFUL_SET;

use super::{Observed, revision_of};
use crate::decision::{Decision, Write};
use crate::history::{self, Chosen, HASH_LABEL, History, name};

/// One revision: its object's name and the template in it.
#[derive(Clone)]
pub struct Revision {
    pub name: String,
    pub template: PodTemplateSpec,
}

/// What the set is on, what it goes to, and what must be written so that both exist.
pub struct Revisions {
    /// What ordinals below the partition have and regain.
    pub current: Revision,
    /// What the set's template asks for.
    pub update: Revision,
    /// How often a name was taken by another template.
    pub collisions: i32,
    /// Makes the update revision, or raises its number when the set goes back to it.
    pub write: Option<Write>,
}

/// Chooses both revisions.
pub fn choose(o: &Observed) -> Revisions {
    let Chosen { name, collisions, write, .. } = history(o).choose();
    let update = Revision { name, template: o.spec.template.clone() };
    let current = current(o, &update);
    Revisions { current, update, collisions, write }
}

fn history<'a>(o: &'a Observed) -> History<'a> {
    History {
        kind: &STATEFUL_SET,
        set: &o.set.metadata,
        template: &o.spec.template,
        own: &o.revisions,
        all: o.all_revisions,
        hash_label: HASH_LABEL,
        collisions: o.set.status.as_ref().and_then(|status| status.collision_count),
        limit: o.spec.revision_history_limit,
    }
}

/// What status names. Where that is missing (a new set, one that was made again over its old pods, or a decision that
/// was cut before its status) the oldest revision that a pod carries.
fn current(o: &Observed, update: &Revision) -> Revision {
    let named = o.set.status.as_ref().and_then(|status| status.current_revision.as_deref()).unwrap_or("");
    let carried: BTreeSet<&str> = o.pods.values().map(|pod| revision_of(pod)).collect();
    let found = o.revisions.iter().find(|revision| name(revision) == named);
    let found = found.or_else(|| o.revisions.iter().find(|revision| carried.contains(name(revision))));
    match found {
        Some(found) if name(found) != update.name => {
            Revision { name: name(found).to_owned(), template: history::template(&found.data.0) }
        }
        _ => update.clone(),
    }
}

/// Deletes the oldest revisions that no pod has and that the set is neither on nor goes to.
pub fn truncate(o: &Observed, revisions: &Revisions, d: &mut Decision) {
    let mut live: BTreeSet<&str> = o.pods.values().map(|pod| revision_of(pod)).collect();
    live.extend([revisions.current.name.as_str(), revisions.update.name.as_str()]);
    history(o).truncate(|revision| live.contains(name(revision)), d);
}
