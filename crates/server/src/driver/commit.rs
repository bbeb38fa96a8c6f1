//! A decision's writes as one transaction, through the same pipeline as requests.

use std::collections::BTreeSet;
use std::sync::Arc;

use mainstay_api::{Status, kinds, object};
use mainstay_logic::controllers::customresourcedefinition;
use mainstay_logic::{Propagation, Write};
use mainstay_store::Txn;
use serde_json::{Value, json};

use super::{Part, Work, events, refusal};
use crate::api::{self, Api, Batch, DeleteOptions};
use crate::dynamic::Session;

/// Writes of one decision that go into one transaction; what is beyond is decided anew. A decision is safe when cut
/// after any of its writes.
const MAX_WRITES: usize = 128;
/// After so many objects of a decision that may not be made no further one is tried.
const MAX_REFUSED_CREATES: usize = 32;
/// So many refusals of a decision are told.
const MAX_TOLD: usize = 8;

/// What decisions came to.
#[derive(Debug)]
pub struct Compiled {
    /// To be committed; may be empty.
    pub txn: Txn,
    /// Why the write after the last one in `txn` was refused.
    pub refused: Option<Status>,
    /// Whether there are further writes.
    pub is_cut: bool,
    /// How many writes are in `txn`.
    pub writes: usize,
    /// How many parts are in `txn` as a whole.
    pub parts: usize,
}

/// As [`compile_asking`], where nobody is asked.
pub fn compile(api: &Api, work: &Work) -> Compiled {
    compile_asking(api, work, None)
}

/// Prepares the decisions' writes on the store's newest state, as many whole decisions as one transaction holds; the
/// first may be cut. Where a write is refused, those before it still go, and of those after it what [stands
/// apart](mainstay_logic::Decision::apart). Where webhooks are to be asked about any, they are about as many as
/// possible, and nothing is prepared: the session [is suspended](Session::is_suspended).
pub fn compile_asking(api: &Api, work: &Work, session: Option<&Arc<Session>>) -> Compiled {
    let mut most = work.most_writes.max(1);
    if work.parts.len() == 1 {
        most = most.min(MAX_WRITES);
    }
    loop {
        let mut batch = api.batch();
        batch.is_heard = false;
        batch.join(session);
        let (mut done, mut parts, mut next, mut begun) = (Progress::default(), 0, None, 0);
        for part in &work.parts {
            begun = done.count;
            next = match parts > 0 && batch.is_full_with(2 * part.decision.writes.len()) {
                true => Some(Stop::Full),
                false => add(&mut batch, work.controller, part, &mut done, most),
            };
            if next.is_some() {
                break;
            }
            parts += 1;
        }
        if is_suspended(&batch) {
            return Compiled { txn: Txn::default(), refused: None, is_cut: false, writes: 0, parts: 0 };
        }
        let mut is_cut = matches!(next, Some(Stop::Full)) && done.refused.is_empty();
        if is_cut && parts > 0 && done.count > begun {
            // Half a decision is safe, but a whole one is better: a pod whose volume is bound to a node and that is not
            // itself may find the node full when it is looked at again.
            most = begun;
            continue;
        }
        for key in &work.expired {
            if batch.is_full() {
                is_cut = true;
                break;
            }
            let gone = batch.unasked(|batch| api::expire(batch, &key.namespace, &key.name));
            debug_assert!(gone.is_ok() || gone.is_err_and(|status| status.code == 404));
        }
        for (part, write, status) in done.refused.iter().take(MAX_TOLD) {
            batch.unasked(|batch| refusal::record(batch, work.controller, part, write, status));
        }
        let refused = done.refused.into_iter().next().map(|(.., status)| status);
        return Compiled { txn: batch.into_txn(), refused, is_cut, writes: done.count, parts };
    }
}

/// Why the writes of a part are not all in the batch.
enum Stop {
    Full,
    Refused,
}

/// How far a batch is.
#[derive(Default)]
struct Progress<'w> {
    /// Writes that are in it.
    count: usize,
    /// Writes that were looked at.
    index: usize,
    refused: Vec<(&'w Part, &'w Write, Status)>,
}

/// Adds the writes of a part, up to `most` writes in all and as long as it is not full, and then what is told of them.
fn add<'w>(
    batch: &mut Batch<'_>,
    controller: &'static str,
    part: &'w Part,
    done: &mut Progress<'w>,
    most: usize,
) -> Option<Stop> {
    let (mut over, mut refused) = (BTreeSet::new(), 0);
    // As upstream: a definition's objects go with it whatever webhooks and policies say, whose servers may be gone.
    let goes_with_its_kind = |write: &Write| {
        controller == customresourcedefinition::CONTROLLER.name && matches!(write, Write::Delete { .. })
    };
    for (at, write) in part.decision.writes.iter().enumerate() {
        if done.count >= most || batch.is_full() {
            return Some(Stop::Full);
        }
        if let Some(session) = &batch.session {
            session.enter(done.index);
        }
        done.index += 1;
        let group = part.decision.group(at);
        if over.contains(&group) {
            continue;
        }
        let tried = batch.try_part(|batch| match goes_with_its_kind(write) {
            true => batch.unasked(|batch| apply(batch, write)),
            false => apply(batch, write),
        });
        match tried {
            Ok(()) => done.count += 1,
            // What comes after may have questions of its own: all are asked together.
            Err(_) if is_suspended(batch) => {}
            Err(status) => {
                done.refused.push((part, write, status));
                refused += 1;
                // What is made is alike: what refuses so many refuses the others.
                let is_made = matches!(write, Write::Create { .. });
                if group == 0 || is_made && refused >= MAX_REFUSED_CREATES {
                    return Some(Stop::Refused);
                }
                over.insert(group);
            }
        }
    }
    for (at, event) in part.decision.events.iter().enumerate() {
        if batch.is_full() {
            tracing::debug!(controller, key = %part.key, "no room is left for all events");
            break;
        }
        if over.contains(&part.decision.event_group(at)) {
            continue;
        }
        // Differs: webhooks are not asked about the events of our own controllers.
        batch.unasked(|batch| events::record(batch, controller, event));
    }
    (refused > 0).then_some(Stop::Refused)
}

fn is_suspended(batch: &Batch<'_>) -> bool {
    batch.session.as_ref().is_some_and(|session| session.is_suspended())
}

fn apply(batch: &mut Batch<'_>, write: &Write) -> Result<(), Status> {
    match write {
        Write::Create { kind, object } => {
            api::create(batch, kind, object::namespace(object), object.clone()).map(|_| ())
        }
        Write::Patch { kind, key, uid, resource_version, status, patch } => {
            let part = api::part_of(kind, *status, patch);
            let change = |old: &Value| {
                check(kind, old, uid, resource_version.as_deref())?;
                let mut new = old.clone();
                api::merge_patch(&mut new, patch.clone());
                Ok(new)
            };
            api::patch(batch, kind, &key.namespace, &key.name, part, &change).map(|_| ())
        }
        Write::Delete { kind, key, uid, resource_version, grace_period, propagation } => {
            let options = DeleteOptions {
                grace: *grace_period,
                uid: Some(uid.clone()),
                resource_version: resource_version.clone(),
                propagation: Some(
                    match propagation {
                        Propagation::Background => "Background",
                        Propagation::Foreground => "Foreground",
                        Propagation::Orphan => "Orphan",
                    }
                    .to_owned(),
                ),
                orphan_dependents: None,
            };
            api::delete(batch, kind, &key.namespace, &key.name, &options).map(|_| ())
        }
        Write::Release { key, uid, lease, lease_version } => {
            let held = batch.must_get(&kinds::LEASE, &lease.namespace, &lease.name)?;
            if object::resource_version(&held) != lease_version {
                return Err(Status::conflict(&kinds::LEASE, &lease.name));
            }
            batch.hold(&kinds::LEASE, &lease.namespace, &lease.name);
            let options = DeleteOptions { grace: Some(0), uid: Some(uid.clone()), ..DeleteOptions::default() };
            api::delete(batch, &kinds::POD, &key.namespace, &key.name, &options).map(|_| ())
        }
        Write::Bind { key, uid, node } => {
            let binding = json!({ "metadata": { "uid": uid }, "target": { "kind": "Node", "name": node } });
            api::bind(batch, &key.namespace, &key.name, &binding).map(|_| ())
        }
    }
}

/// A8: a decision is about the object that it has seen, and no other of that name.
fn check(kind: &mainstay_api::Kind, old: &Value, uid: &str, resource_version: Option<&str>) -> Result<(), Status> {
    if object::uid(old) != uid {
        return Err(Status::precondition_uid(kind, object::name(old), uid, object::uid(old)));
    }
    match resource_version {
        Some(version) if version != object::resource_version(old) => Err(Status::conflict(kind, object::name(old))),
        _ => Ok(()),
    }
}
