//! A decision's writes as one transaction, through the same pipeline as requests.

use std::sync::Arc;

use mainstay_api::{Kind, ObjectKey, Status, kinds, object};
use mainstay_logic::controllers::replicaset::REPLICA_FAILURE;
use mainstay_logic::{Propagation, Write};
use mainstay_store::Txn;
use serde_json::{Value, json};

use super::{Part, Work, events};
use crate::api::{self, Api, Batch, DeleteOptions};
use crate::dynamic::Session;

/// Writes of one decision that go into one transaction; what is beyond is decided anew. A decision is safe when cut
/// after any of its writes.
const MAX_WRITES: usize = 128;

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
/// first may be cut. Where one is refused, those before it still go. Where webhooks are to be asked about any, they are
/// about as many as possible, and nothing is prepared: the session [is suspended](Session::is_suspended).
pub fn compile_asking(api: &Api, work: &Work, session: Option<&Arc<Session>>) -> Compiled {
    let fresh = || {
        let mut batch = api.batch();
        batch.is_heard = false;
        batch.join(session);
        batch
    };
    let mut most = work.most_writes.max(1);
    if work.parts.len() == 1 {
        most = most.min(MAX_WRITES);
    }
    let mut refused: Option<Status> = None;
    loop {
        let mut batch = fresh();
        let (mut count, mut index, mut parts, mut next) = (0, 0, 0, None);
        let mut begun = 0;
        for part in &work.parts {
            begun = count;
            next = match parts > 0 && batch.is_full_with(2 * part.decision.writes.len()) {
                true => Some(Stop::Full),
                false => add(&mut batch, work.controller, part, (&mut count, &mut index), most),
            };
            if next.is_some() {
                break;
            }
            parts += 1;
        }
        if is_suspended(&batch) {
            return Compiled { txn: Txn::default(), refused: None, is_cut: false, writes: 0, parts: 0 };
        }
        if let Some(Stop::Refused(status)) = next {
            // A refused verb may have left marks in the batch: prepared anew without it.
            most = count;
            refused = Some(status);
            if most == 0 {
                batch = fresh();
                tell_refused(&mut batch, work, 0, refused.as_ref());
                return Compiled { txn: batch.into_txn(), refused, is_cut: false, writes: 0, parts: 0 };
            }
            continue;
        }
        if parts > 0 && count > begun && next.is_some() && refused.is_none() {
            // Half a decision is safe, but a whole one is better: a pod whose volume is bound to a node and that is not
            // itself may find the node full when it is looked at again.
            most = begun;
            continue;
        }
        let mut is_cut = next.is_some() && refused.is_none();
        for key in &work.expired {
            if batch.is_full() {
                is_cut = true;
                break;
            }
            let options = DeleteOptions::default();
            let gone = batch.unasked(|batch| api::delete(batch, &kinds::EVENT, &key.namespace, &key.name, &options));
            debug_assert!(gone.is_ok() || gone.is_err_and(|status| status.code == 404));
        }
        tell_refused(&mut batch, work, count, refused.as_ref());
        return Compiled { txn: batch.into_txn(), refused, is_cut, writes: count, parts };
    }
}

/// Why the writes of a part are not all in the batch.
enum Stop {
    Full,
    Refused(Status),
}

/// Adds the writes of a part, up to `most` writes in all and as long as it is not full, and then what is told of them.
fn add(
    batch: &mut Batch<'_>,
    controller: &'static str,
    part: &Part,
    (count, index): (&mut usize, &mut usize),
    most: usize,
) -> Option<Stop> {
    for write in &part.decision.writes {
        if *count >= most || batch.is_full() {
            return Some(Stop::Full);
        }
        if let Some(session) = &batch.session {
            session.enter(*index);
        }
        *index += 1;
        match apply(batch, write) {
            Ok(()) => *count += 1,
            // What comes after may have questions of its own: all are asked together.
            Err(_) if is_suspended(batch) => {}
            Err(status) => return Some(Stop::Refused(status)),
        }
    }
    for event in &part.decision.events {
        if batch.is_full() {
            tracing::debug!(controller, key = %part.key, "no room is left for all events");
            break;
        }
        // Differs: webhooks are not asked about the events of our own controllers.
        batch.unasked(|batch| events::record(batch, controller, event));
    }
    None
}

fn is_suspended(batch: &Batch<'_>) -> bool {
    batch.session.as_ref().is_some_and(|session| session.is_suspended())
}

/// Says what was refused: the write after the first `count`.
fn tell_refused(batch: &mut Batch<'_>, work: &Work, count: usize, refused: Option<&Status>) {
    let write = work.parts.iter().flat_map(|part| &part.decision.writes).nth(count);
    if let (Some(write), Some(status)) = (write, refused) {
        batch.unasked(|batch| record_refusal(batch, work.controller, write, status));
    }
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

/// What upstream's controllers tell when they cannot make an object: an event about its owner.
fn record_refusal(batch: &mut Batch<'_>, controller: &'static str, write: &Write, status: &Status) {
    let Write::Create { kind, object } = write else { return };
    if matches!(status.code, 404 | 409) {
        return;
    }
    let owners = object::at(object, &["metadata", "ownerReferences"]).and_then(Value::as_array).into_iter().flatten();
    for owner in owners.filter(|owner| owner.get("controller").and_then(Value::as_bool) == Some(true)) {
        let (api_version, owner_kind) = (object::text(owner, &["apiVersion"]), object::text(owner, &["kind"]));
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let Some(owner_kind) = batch.registry.find_kind(group, version, owner_kind).cloned() else { continue };
        let name = object::text(owner, &["name"]);
        let event = mainstay_logic::Event {
            kind: owner_kind.clone(),
            key: ObjectKey::new(object::namespace(object), name),
            uid: object::text(owner, &["uid"]).to_owned(),
            warning: true,
            reason: "FailedCreate",
            message: refusal(kind, object::name(object), &owner_kind, name, &status.message),
        };
        events::record(batch, controller, &event);
        note_failure(batch, &owner_kind, &event.key, &event.uid, &status.message);
    }
}

/// Upstream's words, which differ by who makes what.
fn refusal(kind: &Kind, name: &str, owner_kind: &Kind, owner: &str, why: &str) -> String {
    match (&*owner_kind.kind, &*kind.kind) {
        ("ReplicaSet" | "ReplicationController" | "DaemonSet" | "Job", "Pod") => format!("Error creating: {why}"),
        ("CronJob", "Job") => format!("Error creating job: {why}"),
        (owner_kind, made) => format!("create {made} {name} in {owner_kind} {owner} failed error: {why}"),
    }
}

/// Sets the condition by which ReplicaSets and ReplicationControllers show that their pods are refused. The controller
/// takes it away when nothing is missing any more.
fn note_failure(batch: &mut Batch<'_>, kind: &Kind, key: &ObjectKey, uid: &str, why: &str) {
    if !matches!(&*kind.kind, "ReplicaSet" | "ReplicationController") {
        return;
    }
    let Ok(Some(owner)) = batch.get(kind, &key.namespace, &key.name) else { return };
    let mut conditions: Vec<Value> =
        object::at(&owner, &["status", "conditions"]).and_then(Value::as_array).cloned().unwrap_or_default();
    if object::uid(&owner) != uid || conditions.iter().any(|one| object::text(one, &["type"]) == REPLICA_FAILURE) {
        return;
    }
    conditions.push(json!({ "type": REPLICA_FAILURE, "status": "True", "reason": "FailedCreate", "message": why,
        "lastTransitionTime": mainstay_api::time::rfc3339(batch.now) }));
    let change = |old: &Value| {
        let mut new = old.clone();
        object::ensure(&mut new, &["status"]).insert("conditions".to_owned(), conditions.clone().into());
        Ok(new)
    };
    if let Err(status) = api::patch(batch, kind, &key.namespace, &key.name, api::Part::Status, &change) {
        tracing::debug!(%key, message = %status.message, "a set's failure could not be noted");
    }
}
