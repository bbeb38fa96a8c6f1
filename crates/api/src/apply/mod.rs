//! Server-side apply: who owns which field (`metadata.managedFields`).
//!
//! An applied configuration is the whole of what its manager wants to own. Applying it merges it into
//! the live object ([`typed::merge`]), takes out what the manager applied before and no longer does
//! ([`typed::prune`]), and refuses to change what others own, unless forced. Every other write makes
//! its manager the owner of what it changed ([`manage_update`]).
//!
//! Lists are sets, keyed or atomic as the generated table says ([`crate::schema::list_keys`]). All
//! versions of a kind are taken to have the same fields, which holds for the kinds that are served.
//!
//! Differs: upstream also records a map or struct that an update newly made (`.` below it), depending
//! on Go's zero values; here only items, map entries and leaves are recorded.

mod managers;
mod scale;
mod set;
mod typed;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::kinds::{Kind, Subresource};
use crate::status::Status;
use crate::time::rfc3339;
use managers::{APPLY, Manager, Managers, Owned, UPDATE};
use set::Set;
use typed::{Nature, Typed, compare, merge, prune};

pub use managers::{MAX_ENTRIES, MAX_UPDATE_MANAGERS};
pub use scale::{ReplicasPath, keep_managers, show_managers};

/// Fields of `metadata` that nobody owns: the server sets them, or they name the object.
const UNOWNED_METADATA: &[&str] = &[
    "name",
    "namespace",
    "creationTimestamp",
    "selfLink",
    "uid",
    "clusterName",
    "generation",
    MANAGED_FIELDS,
    "resourceVersion",
];

const MANAGED_FIELDS: &str = "managedFields";

/// The manager of fields that were there before the first apply and have no owner.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// The manager as which kubectl applies on the server.
const KUBECTL: &str = "kubectl";

/// What kubectl's client-side apply notes on the object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The longest such note (bytes): all annotations together may not be larger.
const MAX_LAST_APPLIED: usize = 256 << 10;

/// How many conflicts are named at most; the rest are counted.
const MAX_CONFLICTS: usize = 256;

/// Who writes, and where to.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// The `fieldManager` parameter, or what stands before the `/` of the user agent; at most 128 characters (the
    /// caller checks).
    pub manager: &'a str,
    /// `status`, `scale`, or empty for the object itself.
    pub subresource: &'a str,
    /// The time of changed entries.
    pub now: Timestamp,
}

/// An object with what a configuration says, without regard to who owns what.
pub fn overlay(kind: &Kind, live: &Value, config: &Value) -> Value {
    let nature = Nature::of_kind(kind);
    merge(Typed::object(nature, live), Typed::object(nature, config))
}

/// The object that applying a configuration gives, with its new `managedFields`.
///
/// `live` is none where the object does not exist yet. `config` has passed [`crate::schema::decode`];
/// the result has not (defaults and validation come after). A configuration that changes nothing gives
/// an object equal to `live`.
///
/// Errors: 400 where the configuration has managed fields; 409 with upstream's message and causes where
/// it would change what others own and `force` is not set.
pub fn apply(
    kind: &Kind,
    live: Option<&Value>,
    config: &Value,
    force: bool,
    writer: Writer<'_>,
) -> Result<Value, Status> {
    if managed(config).is_some() {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let nature = Nature::of_kind(kind);
    if let Some(repeated) = Typed::object(nature, config).repeated() {
        return Err(not_typed(config, &typed_as(kind), &repeated));
    }
    let before = live.map_or_else(|| Value::Object(Map::new()), unmanaged);
    let mut managers = Managers::of(live.and_then(managed)).unwrap_or_default();
    if managers.0.is_empty() {
        let set = owned_part(kind, writer.subresource, Typed::object(nature, &before).fields());
        let name = BEFORE_FIRST_APPLY.to_owned();
        let manager = Manager { operation: UPDATE, name, api_version: kind.api_version(), subresource: String::new() };
        managers.0.insert(manager, Owned { set, time: rfc3339(writer.now) });
    }
    let me = Manager {
        operation: APPLY,
        name: writer.manager.to_owned(),
        api_version: kind.api_version(),
        subresource: writer.subresource.to_owned(),
    };
    let last = managers.take_applied(&me);
    let set = owned_part(kind, writer.subresource, Typed::object(nature, config).fields());

    let mut merged = merge(Typed::object(nature, &before), Typed::object(nature, config));
    if let Some((last, _)) = &last {
        let mut owned = managers.union();
        // All that it says, with what nobody can own: an object's name keeps its metadata.
        owned.extend(Typed::object(nature, config).fields());
        owned.members.insert("f:metadata".to_owned());
        prune(nature, &mut merged, &last.set, Some(&owned));
    }
    let mut difference = compare(Typed::object(nature, &before), Typed::object(nature, &merged));
    let changed = owned_part(kind, writer.subresource, difference.take_changed());
    let conflicts: Vec<(&Manager, Set)> = managers
        .0
        .iter()
        .map(|(manager, owned)| (manager, owned.set.intersection(&changed)))
        .filter(|(_, fields)| !fields.is_empty())
        .collect();
    if !force && !conflicts.is_empty() && !was_applied_by_kubectl(nature, live, &conflicts, writer) {
        return Err(conflict(&conflicts));
    }
    managers.take_from_others(&me, &changed);
    managers.remove(&difference.removed);
    let time = match last {
        Some((last, true)) if last.set == set && changed.is_empty() => last.time,
        _ => rfc3339(writer.now),
    };
    managers.0.insert(me, Owned { set, time });
    managers.write(&mut merged, writer.now);
    if writer.manager == KUBECTL {
        keep_last_applied(&mut merged, config);
    }
    Ok(merged)
}

/// Whether all that others own here is what kubectl itself said in its last client-side apply: whoever goes on with
/// `kubectl apply --server-side` does not conflict with their own past.
fn was_applied_by_kubectl(
    nature: Nature<'_>,
    live: Option<&Value>,
    conflicts: &[(&Manager, Set)],
    writer: Writer<'_>,
) -> bool {
    let last_applied = live.filter(|_| writer.manager == KUBECTL).map(last_applied);
    let Some(Ok(last)) = last_applied.map(serde_json::from_str::<Value>) else { return false };
    let said = Typed::object(nature, &last).fields();
    conflicts.iter().all(|(_, fields)| fields.intersection(&said) == *fields)
}

/// Keeps the annotation of a client-side apply, where there is one, in step with what is applied here: the next
/// client-side apply compares with it.
fn keep_last_applied(merged: &mut Value, config: &Value) {
    if last_applied(merged).is_empty() {
        return;
    }
    let mut config = config.clone();
    let annotations = config.get_mut("metadata").and_then(|metadata| metadata.get_mut("annotations"));
    if let Some(annotations) = annotations.and_then(Value::as_object_mut) {
        annotations.remove(LAST_APPLIED);
    }
    let text = format!("{config}\n");
    let text = if text.len() > MAX_LAST_APPLIED { String::new() } else { text };
    crate::object::ensure(merged, &["metadata", "annotations"]).insert(LAST_APPLIED.to_owned(), text.into());
}

fn last_applied(object: &Value) -> &str {
    crate::object::text(object, &["metadata", "annotations", LAST_APPLIED])
}

/// Writes `managedFields` into `new` after a create, update or patch (not an apply): the writer owns
/// what it changed, others lose it, and what is gone nobody owns. `old` is none on create.
///
/// As upstream, managed fields that the client sends back are the ones to start from; `[{}]` drops
/// all, and what cannot be read is replaced by the live object's. `old` is as it was afterwards.
pub fn manage_update(kind: &Kind, old: Option<&mut Value>, new: &mut Value, writer: Writer<'_>) {
    let nature = Nature::of_kind(kind);
    let mut none = Value::Object(Map::new());
    let old = old.unwrap_or(&mut none);
    let (kept, sent) = (take_managed(old), take_managed(new));
    let live = || Managers::of(kept.as_ref()).unwrap_or_default();
    let reset = sent.as_ref().is_some_and(|sent| *sent == json!([{}]));
    let mut managers = match sent.as_ref().and_then(Value::as_array) {
        _ if reset => Managers::default(),
        None => live(),
        Some(all) if all.is_empty() => live(),
        Some(_) => Managers::of(sent.as_ref()).unwrap_or_else(live),
    };
    let mut difference = compare(Typed::object(nature, old), Typed::object(nature, new));
    if let Some(kept) = kept {
        crate::object::ensure(old, &["metadata"]).insert(MANAGED_FIELDS.to_owned(), kept);
    }
    let changed = owned_part(kind, writer.subresource, difference.take_changed());
    let me = Manager {
        operation: UPDATE,
        name: writer.manager.to_owned(),
        api_version: kind.api_version(),
        subresource: writer.subresource.to_owned(),
    };
    managers.take_from_others(&me, &changed);
    // What this write does not reach stays as it is, whatever the body says or leaves out.
    managers.remove(&owned_part(kind, writer.subresource, difference.removed));
    if !changed.is_empty() && !reset {
        let mine = managers.0.entry(me).or_insert_with(|| Owned { set: Set::default(), time: String::new() });
        mine.set.extend(changed);
        mine.time = rfc3339(writer.now);
    }
    managers.write(new, writer.now);
}

/// Gives `new` the managers' entries of `old` where nothing differs but when they were written, so that such a write is
/// none, as upstream. What is applied may differ from what is stored until it has its defaults (items of an atomic
/// list) or is stored as something else (a Secret's `stringData`), and is the same afterwards.
pub fn keep_times(old: &Value, new: &mut Value) {
    let (Some(old_metadata), Some(new_metadata)) = (old.get("metadata"), new.get("metadata")) else { return };
    let (was, is) = (old_metadata.get(MANAGED_FIELDS), new_metadata.get(MANAGED_FIELDS));
    if was == is || !same_but(MANAGED_FIELDS, old_metadata, new_metadata) || !same_but("metadata", old, new) {
        return;
    }
    let (Some(was), Some(is)) = (was.and_then(Value::as_array), is.and_then(Value::as_array)) else { return };
    let has_same = |entry: &Value| was.iter().any(|kept| same_but("time", kept, entry));
    if was.len() == is.len() && is.iter().all(has_same) {
        let kept = was.clone();
        crate::object::ensure(new, &["metadata"]).insert(MANAGED_FIELDS.to_owned(), kept.into());
    }
}

/// Whether two objects are equal but for one field.
fn same_but(field: &str, a: &Value, b: &Value) -> bool {
    let others = |object: &Value| object.as_object().map_or(0, |all| all.len() - usize::from(all.contains_key(field)));
    let mut fields = a.as_object().into_iter().flatten().filter(|(name, _)| *name != field);
    others(a) == others(b) && fields.all(|(name, value)| b.get(name) == Some(value))
}

/// At least how many bytes the entries take that say who owns an object's fields, all managers' together: every item of
/// a keyed list and every field has an owner, once somebody has written it.
pub fn length_of_entries(kind: &Kind, object: &Value) -> usize {
    Typed::object(Nature::of_kind(kind), object).length_of_entries()
}

/// The object without its managed fields.
fn unmanaged(object: &Value) -> Value {
    let mut object = object.clone();
    take_managed(&mut object);
    object
}

fn managed(object: &Value) -> Option<&Value> {
    object.get("metadata")?.get(MANAGED_FIELDS)
}

fn take_managed(object: &mut Value) -> Option<Value> {
    object.get_mut("metadata")?.as_object_mut()?.remove(MANAGED_FIELDS)
}

/// Drops what nobody owns, and what a write to this (sub)resource does not reach: the status through
/// the object, all but the status through `/status`.
fn owned_part(kind: &Kind, subresource: &str, mut set: Set) -> Set {
    for element in ["f:apiVersion", "f:kind"] {
        set.remove(element);
    }
    set.members.remove("f:metadata");
    if let Some(mut metadata) = set.children.remove("f:metadata") {
        for field in UNOWNED_METADATA {
            metadata.remove(&format!("f:{field}"));
        }
        set.insert_children("f:metadata", metadata);
    }
    match subresource {
        "" if kind.subresources.contains(&Subresource::Status) => set.remove("f:status"),
        "status" => {
            set.members.retain(|element| element == "f:status");
            set.children.retain(|element, _| element == "f:status");
        }
        _ => {}
    }
    set
}

/// Upstream's refusal of a configuration that has fields which the kind does not have, whatever `fieldValidation` says.
/// `config` is without them; `unknown` are their paths, as `spec.containers[0].foo`.
pub fn undeclared(kind: &Kind, config: &Value, unknown: &[&str]) -> Status {
    let whole = Typed::object(Nature::of_kind(kind), config);
    let line = |path: &&str| format!("{}: field not declared in schema", whole.shown_path(path));
    let why = match unknown {
        [one] => line(one),
        several => format!("errors:\n  {}", several.iter().map(line).collect::<Vec<_>>().join("\n  ")),
    };
    not_typed(config, &typed_as(kind), &why)
}

/// Upstream's 500 for a configuration that is not of its type (as Go prints group, version and kind) or whose lists
/// cannot be merged.
pub(crate) fn not_typed(config: &Value, typed: &str, why: &str) -> Status {
    let (namespace, name) = (crate::object::namespace(config), crate::object::name(config));
    Status::new(500, "", format!("failed to create typed patch object ({namespace}/{name}; {typed}): {why}"))
}

fn typed_as(kind: &Kind) -> String {
    format!("{}/{}, Kind={}", kind.group, kind.version, kind.kind)
}

/// Upstream's 409: one cause per field and manager, of the first [`MAX_CONFLICTS`] of them (X4).
fn conflict(conflicts: &[(&Manager, Set)]) -> Status {
    let count: usize = conflicts.iter().map(|(_, fields)| fields.len()).sum();
    let mut left = MAX_CONFLICTS;
    let named: Vec<(&Manager, Vec<String>)> = conflicts
        .iter()
        .map(|(manager, fields)| {
            let paths = fields.paths(left);
            left -= paths.len();
            (*manager, paths)
        })
        .filter(|(_, paths)| !paths.is_empty())
        .collect();
    let message = match named.as_slice() {
        [(manager, paths)] if count == 1 => {
            format!("Apply failed with 1 conflict: conflict with {}: {}", manager.shown(), paths.concat())
        }
        _ => {
            let lines = named.iter().flat_map(|(manager, paths)| {
                std::iter::once(format!("conflicts with {}:", manager.shown()))
                    .chain(paths.iter().map(|path| format!("- {path}")))
            });
            let rest = (count > MAX_CONFLICTS).then(|| format!("and {} more", count - MAX_CONFLICTS));
            let lines: Vec<String> = lines.chain(rest).collect();
            format!("Apply failed with {count} conflicts: {}", lines.join("\n"))
        }
    };
    let causes: Vec<Value> = named
        .iter()
        .flat_map(|(manager, paths)| {
            let message = format!("conflict with {}", manager.shown());
            paths.iter().map(move |path| json!({ "reason": "FieldManagerConflict", "message": message, "field": path }))
        })
        .collect();
    Status { details: json!({ "causes": causes }), ..Status::new(409, "Conflict", message) }
}

#[cfg(test)]
mod manager_tests;
#[cfg(test)]
mod removal_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod typed_tests;
