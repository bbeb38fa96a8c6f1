//! Garbage collection by owner reference: background, foreground, orphan.
//!
//! Relies on: a snapshot that holds every object of every kind that is served.
//! Guarantees: an object is deleted only when each of its owners is known, at this revision, not to exist under that
//! name with that uid, or is itself going in the foreground (S10, A8); one that still has an owner only loses the
//! dangling references. Orphans keep everything but the reference to their owner. Any prefix of the writes leaves the
//! finalizer, so that the rest follows.
//!
//! An owner whose kind is not served, and the namespaced owner of a cluster-scoped object, can't be looked up and so
//! counts as present: nothing is collected because of it. A namespaced owner is looked for in its dependent's own
//! namespace.
//!
//! A key here is `<namespace>` and `<group>/<plural>/<name>`: this controller decides about objects of every kind.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use mainstay_api::metadata::{FOREGROUND, ORPHAN};
use mainstay_api::{Kind, ObjectKey, Registry};
use serde_json::json;

use crate::decision::{Controller, Decision, Propagation, Verb, Waiting, Write, turn};
use crate::ownership::{set_owners, without_owner};
use crate::pods::is_terminating;
use crate::snapshot::{Change, Meta, Snapshot};

/// How many dependents one decision writes; the finalizer stays until all are done.
pub(super) const MAX_DEPENDENTS: usize = 500;

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "garbage-collector-controller",
    permits: &[(Verb::Patch, "*"), (Verb::Delete, "*")],
    reads: &["*"],
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
    many: None,
};

/// This controller's key for an object.
pub fn key_for(kind: &Kind, key: &ObjectKey) -> ObjectKey {
    ObjectKey::new(key.namespace.clone(), format!("{}/{}/{}", kind.group, kind.plural, key.name))
}

fn parse(registry: &Registry, key: &ObjectKey) -> Option<(Kind, ObjectKey)> {
    let mut parts = key.name.splitn(3, '/');
    let (group, plural, name) = (parts.next()?, parts.next()?, parts.next()?);
    let kind = registry.stored(group, plural)?;
    Some((kind.clone(), ObjectKey::new(key.namespace.clone(), name)))
}

/// A change concerns the object itself where its owners or its deletion changed, its dependents where it is on its way
/// out or gone, and the owners that wait for it to go.
fn keys(before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    let meta = |meta: &std::sync::Arc<Meta>| {
        (
            meta.metadata.owner_references.clone(),
            meta.metadata.deletion_timestamp.clone(),
            meta.metadata.finalizers.clone(),
        )
    };
    if change.old.as_ref().map(meta) == change.new.as_ref().map(meta)
        && change.old.as_ref().map(|old| old.uid()) == change.new.as_ref().map(|new| new.uid())
    {
        return;
    }
    if change.new.as_ref().is_some_and(|new| new.metadata.owner_references.is_some() || is_terminating(&new.metadata)) {
        wake(key_for(&change.kind, &change.key));
    }
    let going = change.new.as_ref().is_none_or(|new| {
        is_terminating(&new.metadata) || change.old.as_ref().is_some_and(|old| old.uid() != new.uid())
    });
    if let Some(uid) = change.old.as_ref().or(change.new.as_ref()).map(|meta| meta.uid()).filter(|_| going) {
        after.dependents(uid).for_each(|dependent| wake(key_for(&dependent.kind, &dependent.key)));
    }
    for meta in change.old.iter().chain(&change.new) {
        for owner in meta.metadata.owner_references.iter().flatten() {
            let found = [before, after].map(|snapshot| look_up(snapshot, meta, owner).ok().flatten());
            let waits = |owner: &&Meta| {
                is_terminating(&owner.metadata) && (has(&owner.metadata, FOREGROUND) || has(&owner.metadata, ORPHAN))
            };
            if let Some(owner) = found.into_iter().flatten().rfind(waits) {
                wake(key_for(&owner.kind, &owner.key));
            }
        }
    }
}

/// What an owner reference leads to.
enum Owner {
    /// The owner exists, or nobody can say.
    Present,
    /// The owner waits for its dependents to go first.
    Going,
    /// There is no object of that kind, name and uid.
    Absent,
}

/// Where nobody can look an owner up.
struct Unknown;

fn look_up<'a>(snapshot: &'a Snapshot, dependent: &Meta, owner: &OwnerReference) -> Result<Option<&'a Meta>, Unknown> {
    let group = owner.api_version.rsplit_once('/').map_or("", |(group, _)| group);
    let named = snapshot.registry.of_kind(group, &owner.kind).first();
    let Some(kind) = named.and_then(|kind| snapshot.registry.stored(&kind.group, &kind.plural)) else {
        return Err(Unknown);
    };
    if kind.namespaced && dependent.key.namespace.is_empty() {
        return Err(Unknown);
    }
    let namespace = if kind.namespaced { dependent.key.namespace.clone() } else { "".into() };
    let slot = (kind.clone(), ObjectKey::new(namespace, owner.name.as_str()));
    Ok(snapshot.metas.get(&slot).map(|found| &**found).filter(|found| found.uid() == owner.uid))
}

fn find(snapshot: &Snapshot, dependent: &Meta, owner: &OwnerReference) -> Owner {
    match look_up(snapshot, dependent, owner) {
        Ok(None) => Owner::Absent,
        Ok(Some(found)) if is_terminating(&found.metadata) && has(&found.metadata, FOREGROUND) => Owner::Going,
        Ok(Some(_)) | Err(Unknown) => Owner::Present,
    }
}

fn has(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().flatten().any(|name| name == finalizer)
}

/// One object, its owners and its dependents.
pub struct Observed<'a> {
    object: &'a Meta,
    owners: Vec<(&'a OwnerReference, Owner)>,
    dependents: Vec<&'a Meta>,
}

/// The object that a key of [`key_for`] names.
pub fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    let (kind, key) = parse(&snapshot.registry, key)?;
    let object = snapshot.metas.get(&(kind, key))?;
    let references = object.metadata.owner_references.iter().flatten();
    // A uid copied into a reference of another namespace makes nobody a dependent.
    let in_reach = |meta: &&Meta| object.key.namespace.is_empty() || meta.key.namespace == object.key.namespace;
    Some(Observed {
        object,
        owners: references.map(|owner| (owner, find(snapshot, object, owner))).collect(),
        dependents: snapshot.dependents(object.uid()).map(|meta| &**meta).filter(in_reach).collect(),
    })
}

/// One step of an object.
pub fn decide(o: &Observed, now: Timestamp) -> Decision {
    let mut d = Decision::default();
    let meta = &o.object.metadata;
    if is_terminating(meta) && has(meta, ORPHAN) {
        orphan_dependents(o, now, &mut d);
    } else if is_terminating(meta) && has(meta, FOREGROUND) {
        await_dependents(o, &mut d);
    } else if !is_terminating(meta) {
        collect(o, &mut d);
    }
    d
}

/// Takes the owner off its dependents; lets it go when none is left. One that may not be changed keeps the others from
/// nothing, and the owner from going: without it, it would be collected.
fn orphan_dependents(o: &Observed, now: Timestamp, d: &mut Decision) {
    if o.dependents.is_empty() {
        return remove_finalizer(o, ORPHAN, d);
    }
    let first = turn(o.dependents.len(), MAX_DEPENDENTS, now);
    for dependent in o.dependents.iter().skip(first).take(MAX_DEPENDENTS) {
        d.push_apart(without_owner(&dependent.kind, &dependent.metadata, o.object.uid()));
    }
    d.waiting.push(Waiting::DependentsRemain { count: o.dependents.len() });
}

/// Lets the owner go when no dependent is left that blocks its deletion. The dependents' own keys delete them.
fn await_dependents(o: &Observed, d: &mut Decision) {
    let uid = o.object.uid();
    let blocks = |dependent: &&&Meta| {
        dependent
            .metadata
            .owner_references
            .iter()
            .flatten()
            .any(|owner| owner.uid == uid && owner.block_owner_deletion == Some(true))
    };
    match o.dependents.iter().filter(blocks).count() {
        0 => remove_finalizer(o, FOREGROUND, d),
        count => d.waiting.push(Waiting::DependentsRemain { count }),
    }
}

fn remove_finalizer(o: &Observed, finalizer: &str, d: &mut Decision) {
    let rest: Vec<&String> = o.object.metadata.finalizers.iter().flatten().filter(|name| *name != finalizer).collect();
    let rest = if rest.is_empty() { json!(null) } else { json!(rest) };
    d.writes.push(Write::patch(&o.object.kind, &o.object.metadata, json!({ "metadata": { "finalizers": rest } })));
}

/// Deletes an object none of whose owners stays. One with an owner that stays loses the references that lead nowhere.
fn collect(o: &Observed, d: &mut Decision) {
    let meta = &o.object.metadata;
    let stays: Vec<OwnerReference> = o
        .owners
        .iter()
        .filter(|(_, owner)| matches!(owner, Owner::Present))
        .map(|(reference, _)| (*reference).clone())
        .collect();
    if stays.len() == o.owners.len() {
        return;
    }
    if !stays.is_empty() {
        d.writes.push(set_owners(&o.object.kind, meta, &stays));
        return;
    }
    // A dependent of an owner that waits takes its own dependents with it first.
    let waited_for = o.owners.iter().any(|(_, owner)| matches!(owner, Owner::Going)) && !o.dependents.is_empty();
    let propagation = if has(meta, ORPHAN) {
        Propagation::Orphan
    } else if waited_for || has(meta, FOREGROUND) {
        Propagation::Foreground
    } else {
        Propagation::Background
    };
    // Owners in a circle would wait for each other for ever: one of them stops being waited for.
    let is_waiting = |dependent: &&Meta| is_terminating(&dependent.metadata) && has(&dependent.metadata, FOREGROUND);
    let in_circle = waited_for && o.dependents.iter().any(is_waiting);
    let blocks = o.owners.iter().any(|(owner, _)| owner.block_owner_deletion == Some(true));
    if in_circle && blocks {
        let owners =
            o.owners.iter().map(|(owner, _)| OwnerReference { block_owner_deletion: Some(false), ..(*owner).clone() });
        d.writes.push(set_owners(&o.object.kind, meta, &owners.collect::<Vec<_>>()));
    }
    d.writes.push(match Write::delete(&o.object.kind, meta) {
        Write::Delete { kind, key, uid, resource_version, grace_period, .. } => {
            // The write before it has made the version an older one.
            let resource_version = resource_version.filter(|_| !(in_circle && blocks));
            Write::Delete { kind, key, uid, resource_version, grace_period, propagation }
        }
        other => other,
    });
}
