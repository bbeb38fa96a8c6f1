//! Accepts the names of CustomResourceDefinitions, and takes their objects away with them. Key: the definition.
//!
//! Relies on: an API server that serves a kind from the moment that its definition is Established, and that makes no
//! objects of one that is being deleted.
//! Guarantees: of one group no two definitions have a name in common; a definition goes only when the snapshot holds no
//! object of it, each of which was deleted by its uid (A8), its finalizers respected.

use jiff::Timestamp;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinitionCondition as Condition, CustomResourceDefinitionNames as Names,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use mainstay_api::kinds::CUSTOM_RESOURCE_DEFINITION as KIND;
use mainstay_api::kinds::customresourcedefinition::CLEANUP;
use mainstay_api::{Kind, ObjectKey};
use serde_json::json;

use crate::decision::{Controller, Decision, Verb, Waiting, Write};
use crate::definitions::Definition;
use crate::pods::is_terminating;
use crate::snapshot::{Change, Meta, Snapshot};

/// How many objects one decision deletes; the next takes the rest.
const MAX_DELETES: usize = 500;

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "customresourcedefinition-controller",
    permits: &[
        (Verb::Delete, "*"),
        (Verb::Patch, "customresourcedefinitions"),
        (Verb::PatchStatus, "customresourcedefinitions"),
    ],
    reads: &["*"],
    many: None,
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
};

fn keys(before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    if change.kind == KIND {
        wake(change.key.clone());
        // Names that become free may be what others of the group wait for.
        let [old, new] = [before, after].map(|snapshot| snapshot.definitions.get(&change.key));
        let accepted = |of: &std::sync::Arc<Definition>| of.status.accepted_names.clone();
        if let Some(old) = old.filter(|old| accepted(old).is_some() && accepted(old) != new.and_then(accepted)) {
            others(after, old).for_each(|(key, _)| wake(key.clone()));
        }
    } else if matches!(change.kind, Kind::Custom(_)) && change.new.is_none() {
        let key = ObjectKey::new("", format!("{}.{}", change.kind.plural, change.kind.group));
        if after.definitions.get(&key).is_some_and(|definition| is_terminating(&definition.metadata)) {
            wake(key);
        }
    }
}

/// The other definitions of the group.
fn others<'a>(
    snapshot: &'a Snapshot,
    definition: &'a Definition,
) -> impl Iterator<Item = (&'a ObjectKey, &'a std::sync::Arc<Definition>)> {
    let all = snapshot.definitions.iter();
    all.filter(|(_, other)| {
        other.spec.group == definition.spec.group && other.metadata.name != definition.metadata.name
    })
}

/// A definition, the names that others have, and its objects.
pub struct Observed<'a> {
    definition: &'a Definition,
    taken: Vec<&'a Names>,
    objects: Vec<&'a Meta>,
}

/// The definition at `key`.
pub fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    let definition = snapshot.definitions.get(key)?;
    let mut objects = Vec::new();
    if is_terminating(&definition.metadata)
        && let Some(kind) = snapshot.registry.stored(&definition.spec.group, &definition.spec.names.plural)
        && matches!(kind, Kind::Custom(_))
    {
        let start = (kind.clone(), ObjectKey::new("", ""));
        let all = snapshot.metas.range(start..).map(|(_, meta)| &**meta);
        objects.extend(all.take_while(|meta| meta.kind == *kind));
    }
    let taken = others(snapshot, definition).filter_map(|(_, other)| other.status.accepted_names.as_ref());
    Some(Observed { definition, taken: taken.collect(), objects })
}

/// One step of a definition.
pub fn decide(o: &Observed, now: Timestamp) -> Decision {
    let mut d = Decision::default();
    if is_terminating(&o.definition.metadata) {
        terminate(o, now, &mut d);
        return d;
    }
    let wanted = &o.definition.spec.names;
    let conflict = conflict(wanted, &o.taken);
    let accepted = match &conflict {
        None => Some(wanted.clone()),
        Some(_) => o.definition.status.accepted_names.clone(),
    };
    let mut conditions = o.definition.status.conditions.clone().unwrap_or_default();
    let was_established = conditions.iter().any(|one| one.type_ == "Established" && one.status == "True");
    match conflict {
        None => {
            set(&mut conditions, ("NamesAccepted", true, "NoConflicts", "no conflicts found"), now);
            let why = "the initial names have been accepted";
            set(&mut conditions, ("Established", true, "InitialNamesAccepted", why), now);
        }
        Some((reason, message)) => {
            set(&mut conditions, ("NamesAccepted", false, reason, &message), now);
            if !was_established {
                let why = "not all names are accepted";
                set(&mut conditions, ("Established", false, "NotAccepted", why), now);
            }
            d.waiting.push(Waiting::OwnedByAnother { name: message });
        }
    }
    if Some(&conditions) != o.definition.status.conditions.as_ref() || accepted != o.definition.status.accepted_names {
        let status = json!({ "acceptedNames": accepted, "conditions": conditions });
        d.writes.push(Write::patch_status(&KIND, &o.definition.metadata, status));
    }
    d
}

/// Which name somebody else of the group has: reason and message.
fn conflict(wanted: &Names, taken: &[&Names]) -> Option<(&'static str, String)> {
    let resources = |names: &Names, name: &str| {
        names.plural == name
            || names.singular.as_deref() == Some(name)
            || names.short_names.iter().flatten().any(|short| short == name)
    };
    let kinds = |names: &Names, name: &str| names.kind == name || names.list_kind.as_deref() == Some(name);
    let singular = wanted.singular.iter().map(|name| ("SingularConflict", name));
    let short = wanted.short_names.iter().flatten().map(|name| ("ShortNamesConflict", name));
    let list = wanted.list_kind.iter().map(|name| ("ListKindConflict", name));
    let in_use = |(reason, name): (&'static str, &String)| (reason, format!("{name:?} is already in use"));
    std::iter::once(("PluralConflict", &wanted.plural))
        .chain(singular)
        .chain(short)
        .find(|(_, name)| taken.iter().any(|names| resources(names, name)))
        .or_else(|| {
            let mut all = std::iter::once(("KindConflict", &wanted.kind)).chain(list);
            all.find(|(_, name)| taken.iter().any(|names| kinds(names, name)))
        })
        .map(in_use)
}

fn set(conditions: &mut Vec<Condition>, wanted: (&str, bool, &str, &str), now: Timestamp) {
    let (type_, is_true, reason, message) = wanted;
    let status = if is_true { "True" } else { "False" };
    let known = conditions.iter_mut().find(|condition| condition.type_ == type_);
    let since = match &known {
        Some(known) if known.status == status => known.last_transition_time.clone(),
        _ => Some(Time(now)),
    };
    let new = Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: since,
        observed_generation: known.as_ref().and_then(|known| known.observed_generation),
    };
    match known {
        Some(known) => *known = new,
        None => conditions.push(new),
    }
}

fn terminate(o: &Observed, now: Timestamp, d: &mut Decision) {
    let meta = &o.definition.metadata;
    if !meta.finalizers.iter().flatten().any(|name| name == CLEANUP) {
        return;
    }
    let fresh = o.objects.iter().filter(|object| !is_terminating(&object.metadata));
    // What cannot be deleted keeps nothing else.
    fresh.take(MAX_DELETES).for_each(|object| d.push_apart(Write::delete(&object.kind, &object.metadata)));
    if o.objects.is_empty() {
        let rest: Vec<&String> = meta.finalizers.iter().flatten().filter(|name| *name != CLEANUP).collect();
        let rest = if rest.is_empty() { json!(null) } else { json!(rest) };
        d.writes.push(Write::patch(&KIND, meta, json!({ "metadata": { "finalizers": rest } })));
        return;
    }
    d.waiting.push(Waiting::DependentsRemain { count: o.objects.len() });
    let mut conditions = o.definition.status.conditions.clone().unwrap_or_default();
    let why = "CustomResource deletion is in progress";
    set(&mut conditions, ("Terminating", true, "InstanceDeletionInProgress", why), now);
    if Some(&conditions) != o.definition.status.conditions.as_ref() {
        d.writes.push(Write::patch_status(&KIND, meta, json!({ "conditions": conditions })));
    }
}

#[cfg(test)]
mod tests;
