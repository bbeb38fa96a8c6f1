//! ResourceQuota: what objects use is charged to their namespace's quotas in the transaction that makes, changes or
//! takes them away. A quota is written with every charge, so of two writers that would both fit alone only one commits
//! unprepared, and the other looks again: a limit is never passed, however many write at once.
//!
//! The set of a namespace's quotas is a key of its own that every write of an object expects unchanged; so no object
//! slips past a quota that is made at the same time. A quota without a status is counted up by the quota controller;
//! until then what it would limit is refused, as upstream does.

use std::collections::BTreeSet;

use mainstay_api::pod_resources::{self, Amounts};
use mainstay_api::quantity::Quantity;
use mainstay_api::{Kind, Status, kinds, object, quota};
use serde_json::{Map, Value};

use crate::api::{Batch, key};

/// Charges what a write changes: `new` is what there will be, `old` what there was. Refuses what passes a limit.
pub(super) fn charge(
    batch: &mut Batch<'_>,
    kind: &Kind,
    new: Option<&Value>,
    old: Option<&Value>,
) -> Result<(), Status> {
    let Some(object) = new.or(old).filter(|_| kind.namespaced) else { return Ok(()) };
    let namespace = object::namespace(object).to_owned();
    if *kind == kinds::RESOURCE_QUOTA && (new.is_none() || old.is_none()) {
        note_set(batch, &namespace, object::name(object), new.is_some())?;
    }
    batch.expect_mark(key::quotas(&namespace));
    if !batch.has(key::quotas(&namespace)) {
        return Ok(());
    }
    for name in batch.names_in(&kinds::RESOURCE_QUOTA, &namespace)? {
        // A quota that is made does not count itself: it has no status yet.
        let is_itself = *kind == kinds::RESOURCE_QUOTA && name == object::name(object);
        if let Some(quota) = batch.get(&kinds::RESOURCE_QUOTA, &namespace, &name)?.filter(|_| !is_itself) {
            charge_one(batch, kind, quota, new, old)?;
        }
    }
    Ok(())
}

/// The set of quotas has changed: whoever has looked at it looks again.
fn note_set(batch: &mut Batch<'_>, namespace: &str, name: &str, is_there: bool) -> Result<(), Status> {
    let others = batch.names_in(&kinds::RESOURCE_QUOTA, namespace)?.into_iter().any(|other| other != name);
    if is_there || others {
        let version = u64::from_be_bytes(batch.random());
        batch.reserve(key::quotas(namespace), &format!("{version:016x}"));
    } else {
        batch.remove_mark(key::quotas(namespace));
    }
    Ok(())
}

fn charge_one(
    batch: &mut Batch<'_>,
    kind: &Kind,
    mut quota: Value,
    new: Option<&Value>,
    old: Option<&Value>,
) -> Result<(), Status> {
    let list =
        |path: &[&str]| object::at(&quota, path).map(|value| pod_resources::amounts(&field(value))).unwrap_or_default();
    let (wanted, hard, used) = (list(&["spec", "hard"]), list(&["status", "hard"]), list(&["status", "used"]));
    let covered: BTreeSet<&str> =
        wanted.keys().map(String::as_str).filter(|resource| quota::covers(kind, resource)).collect();
    let does_count = |object: &Value| quota::matches(kind, object, &quota);
    let is_made = old.is_none();
    let (new, old) = (new.filter(|new| does_count(new)), old.filter(|old| does_count(old)));
    if covered.is_empty() || (new.is_none() && old.is_none()) {
        return Ok(());
    }
    let title = object::name(&quota).to_owned();
    let refuse = |why: &str| {
        let name = new.map_or("", object::name);
        Err(Status::forbidden(kind, name, why))
    };
    let known = covered.iter().all(|resource| hard.contains_key(*resource) && used.contains_key(*resource));
    if let Some(new) = new.filter(|_| is_made) {
        let missing = (*kind == kinds::POD).then(|| quota::missing(new, &covered)).flatten();
        if let Some(missing) = missing {
            return refuse(&format!("failed quota: {title}: {missing}"));
        }
        if !known {
            let names = covered.iter().copied().collect::<Vec<_>>().join(",");
            return refuse(&format!("status unknown for quota: {title}, resources: {names}"));
        }
    }
    let usage = |object: Option<&Value>| object.map(|object| quota::usage(kind, object)).unwrap_or_default();
    let (before, after) = (usage(old), usage(new));
    let mut changed = Amounts::new();
    for resource in covered {
        let of = |usage: &Amounts| usage.get(resource).copied().unwrap_or(Quantity::ZERO);
        let delta = of(&after) - of(&before);
        if !delta.is_zero() {
            changed.insert(resource.to_owned(), delta);
        }
    }
    if changed.is_empty() {
        return Ok(());
    }
    let exceeded: Amounts = changed
        .iter()
        .filter(|(resource, delta)| {
            let sum = used.get(*resource).copied().unwrap_or(Quantity::ZERO) + **delta;
            !delta.is_negative() && known && hard.get(*resource).is_some_and(|most| sum > *most)
        })
        .map(|(resource, delta)| (resource.clone(), *delta))
        .collect();
    if !exceeded.is_empty() {
        let only = |from: &Amounts| {
            quota::told(
                &from
                    .iter()
                    .filter(|(name, _)| exceeded.contains_key(*name))
                    .map(|(name, amount)| (name.clone(), *amount))
                    .collect(),
            )
        };
        return refuse(&format!(
            "exceeded quota: {title}, requested: {}, used: {}, limited: {}",
            quota::told(&exceeded),
            only(&used),
            only(&hard)
        ));
    }
    // Without a status there is nothing to add to; the write alone makes the controller, which counts, look again.
    if object::at(&quota, &["status", "used"]).is_some() {
        let mut sums = used;
        pod_resources::add(&mut sums, &changed.into_iter().filter(|(name, _)| hard.contains_key(name)).collect());
        let told: Map<String, Value> =
            sums.into_iter().map(|(name, amount)| (name, amount.max(Quantity::ZERO).to_string().into())).collect();
        object::ensure(&mut quota, &["status"]).insert("used".to_owned(), told.into());
    }
    batch.put(&kinds::RESOURCE_QUOTA, quota)?;
    Ok(())
}

fn field(value: &Value) -> mainstay_api::kinds::field::Field<'_> {
    mainstay_api::kinds::field::Field::root(value)
}
