//! `PUT` and `PATCH`, of the object and of its subresources.

use std::collections::BTreeSet;

use mainstay_api::apply::Writer;
use mainstay_api::status::Cause;
use mainstay_api::{Kind, Status, kinds, object, schema};
use serde_json::Value;

use super::{Batch, Body, Outcome, admission, codec, create, delete, key, metadata, pod};
use crate::authorize::{self, escalation, restriction};
use crate::credentials;
use crate::dynamic;
use crate::dynamic::matching::{Attributes, Operation};

/// Which part of an object a write is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// Everything but the status.
    Main,
    /// `/status`: only the status, and labels and annotations.
    Status,
    /// `/finalize` of a Namespace: only `spec.finalizers`.
    Finalize,
    /// `/ephemeralcontainers` of a Pod: only `spec.ephemeralContainers`, to which more may be added.
    EphemeralContainers,
    /// `/resize` of a Pod: only the resources of its containers.
    Resize,
    /// `/approval` of a CertificateSigningRequest: only the conditions of its status.
    Approval,
}

impl Part {
    /// Its path segment.
    pub fn subresource(self) -> &'static str {
        match self {
            Self::Main => "",
            Self::Status => "status",
            Self::Finalize => "finalize",
            Self::EphemeralContainers => "ephemeralcontainers",
            Self::Resize => "resize",
            Self::Approval => "approval",
        }
    }

    /// The old object with this part of the new one.
    fn of(self, kind: &Kind, new: Value, old: &Value) -> Value {
        match self {
            Self::Main => new,
            Self::Status => only_status(kind, &new, old),
            Self::Finalize => only_finalizers(&new, old),
            Self::EphemeralContainers => pod::only_ephemeral_containers(&new, old),
            Self::Resize => pod::only_resources(&new, old),
            Self::Approval => only_conditions(&new, old),
        }
    }
}

/// Replaces an object. A `metadata.uid` or `metadata.resourceVersion` in the body must be the stored one (A8).
pub fn update(
    batch: &mut Batch<'_>,
    kind: &Kind,
    namespace: &str,
    name: &str,
    part: Part,
    mut new: Value,
) -> Result<Outcome, Status> {
    codec::fits(kind, &new)?;
    metadata::settle(kind, namespace, Some(name), &mut new)?;
    let Some(mut old) = batch.get(kind, namespace, name)? else {
        return match part {
            Part::Main => replace_nothing(batch, kind, namespace, name, new),
            _ => Err(Status::not_found(kind, name)),
        };
    };
    if object::resource_version(&new).is_empty() && !is_written_over(kind) {
        let cause = Cause {
            reason: "FieldValueInvalid",
            message: "Invalid value: 0x0: must be specified for an update".to_owned(),
            field: "metadata.resourceVersion".to_owned(),
        };
        return Err(Status::invalid(kind, name, &[cause]));
    }
    manage(batch, kind, &mut old, &mut new)?;
    replace(batch, kind, &old, new, part)
}

/// A replacement of what is not there makes it, of some kinds, as upstream. Differs: not where the body says which
/// state of it its sender has seen. That was deleted since, and upstream makes it anew.
fn replace_nothing(
    batch: &mut Batch<'_>,
    kind: &Kind,
    namespace: &str,
    name: &str,
    mut new: Value,
) -> Result<Outcome, Status> {
    const MADE: [(&str, &str); 12] = [
        ("", "endpoints"),
        ("", "events"),
        ("", "limitranges"),
        ("", "podtemplates"),
        ("", "services"),
        ("coordination.k8s.io", "leases"),
        ("events.k8s.io", "events"),
        ("rbac.authorization.k8s.io", "clusterrolebindings"),
        ("rbac.authorization.k8s.io", "clusterroles"),
        ("rbac.authorization.k8s.io", "rolebindings"),
        ("rbac.authorization.k8s.io", "roles"),
        ("scheduling.k8s.io", "priorityclasses"),
    ];
    let is_made = MADE.contains(&(&*kind.group, &*kind.plural));
    if !is_made || !object::resource_version(&new).is_empty() || !object::uid(&new).is_empty() {
        return Err(Status::not_found(kind, name));
    }
    may_create(batch, kind, namespace, name)?;
    object::ensure(&mut new, &["metadata"]).remove("managedFields");
    create::create(batch, kind, namespace, new)
}

/// Whether an object may be replaced by who does not say which state of it they have seen. As upstream: not a custom
/// resource, nor what few write and many go by.
fn is_written_over(kind: &Kind) -> bool {
    const SEEN_FIRST: [(&str, &str); 10] = [
        ("admissionregistration.k8s.io", "mutatingwebhookconfigurations"),
        ("admissionregistration.k8s.io", "validatingwebhookconfigurations"),
        ("apiextensions.k8s.io", "customresourcedefinitions"),
        ("apiregistration.k8s.io", "apiservices"),
        ("coordination.k8s.io", "leases"),
        ("node.k8s.io", "runtimeclasses"),
        ("policy", "poddisruptionbudgets"),
        ("storage.k8s.io", "csidrivers"),
        ("storage.k8s.io", "csinodes"),
        ("storage.k8s.io", "volumeattachments"),
    ];
    kind.custom.is_none() && !SEEN_FIRST.contains(&(&*kind.group, &*kind.plural))
}

/// Server-side apply: makes the object where it is missing, else changes what the configuration says and what its
/// manager has said before. 409 where others own what would change, unless `force`.
pub fn apply(
    batch: &mut Batch<'_>,
    kind: &Kind,
    namespace: &str,
    name: &str,
    part: Part,
    config: &Value,
    force: bool,
) -> Result<Outcome, Status> {
    codec::fits(kind, config)?;
    entries_fit(kind, config)?;
    let mut config = config.clone();
    metadata::settle(kind, namespace, Some(name), &mut config)?;
    let live = batch.get(kind, namespace, name)?;
    let manager = batch.manager.clone();
    let manager = manager.as_ref().ok_or_else(no_field_manager)?;
    let uid = object::uid(&config);
    if live.is_none() && !uid.is_empty() {
        return Err(Status::precondition_uid(kind, name, uid, ""));
    }
    if live.is_none() && part != Part::Main {
        return Err(Status::not_found(kind, name));
    }
    let writer = Writer { manager: &manager.name, subresource: &manager.subresource, now: batch.now };
    let mut merged = mainstay_api::apply::apply(kind, live.as_ref(), &config, force, writer)?;
    batch.warnings.extend(mainstay_api::schema::decode(
        kind,
        &mut merged,
        mainstay_api::schema::FieldValidation::Ignore,
    )?);
    match live {
        None => {
            may_create(batch, kind, namespace, name)?;
            create::create(batch, kind, namespace, merged)
        }
        Some(live) => replace(batch, kind, &live, merged, part),
    }
}

/// 403 for whoever may patch an object, but not make one. As upstream: asked with the write, when it is known that
/// there is none.
fn may_create(batch: &Batch<'_>, kind: &Kind, namespace: &str, name: &str) -> Result<(), Status> {
    let Some(requester) = &batch.requester else { return Ok(()) };
    let is_namespace = *kind == kinds::NAMESPACE;
    requester.check(&authorize::Attributes {
        verb: "create".to_owned(),
        group: kind.group.to_string(),
        resource: kind.plural.to_string(),
        namespace: if is_namespace { name } else { namespace }.to_owned(),
        name: name.to_owned(),
        ..authorize::Attributes::default()
    })
}

/// The answer to an apply that does not say who applies.
pub fn no_field_manager() -> Status {
    Status::new(
        422,
        "Invalid",
        "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
    )
}

/// Notes in `metadata.managedFields` what this write changes, from the first write on: as upstream, so that applying on
/// the server later conflicts with others, not with oneself. What our own controllers write has no manager and leaves
/// the entries as they are.
fn manage(batch: &Batch<'_>, kind: &Kind, old: &mut Value, new: &mut Value) -> Result<(), Status> {
    match &batch.manager {
        Some(manager) if is_managed(kind) => {
            // What is left out gets its default again, and is no change.
            (kind.defaults)(kind, new);
            entries_fit(kind, new)?;
            let writer = Writer { manager: &manager.name, subresource: &manager.subresource, now: batch.now };
            mainstay_api::apply::manage_update(kind, Some(old), new, writer);
        }
        _ => match object::at(old, &["metadata", "managedFields"]).cloned() {
            Some(kept) => drop(object::ensure(new, &["metadata"]).insert("managedFields".to_owned(), kept)),
            None => drop(object::ensure(new, &["metadata"]).remove("managedFields")),
        },
    }
    Ok(())
}

/// Refuses what could not be stored for the mere length of its managers' entries, before they are made (X4): a field of
/// a few bytes has an entry of thirty.
pub(super) fn entries_fit(kind: &Kind, object: &Value) -> Result<(), Status> {
    let entries = mainstay_api::apply::length_of_entries(kind, object);
    if entries > codec::MAX_OBJECT { Err(Status::too_large(codec::MAX_OBJECT)) } else { Ok(()) }
}

/// Differs: Events have no managers. There are many, each is written once or counted up by the one who made it, and
/// nobody applies them.
pub(super) fn is_managed(kind: &Kind) -> bool {
    *kind != mainstay_api::kinds::EVENT
}

/// Changes an object with `change`, which is given the stored one. Without a `resourceVersion` in the patch this is
/// prepared anew when others write in between, so it never conflicts by chance.
pub fn patch(
    batch: &mut Batch<'_>,
    kind: &Kind,
    namespace: &str,
    name: &str,
    part: Part,
    change: &dyn Fn(&Value) -> Result<Value, Status>,
) -> Result<Outcome, Status> {
    let mut old = batch.must_get(kind, namespace, name)?;
    let mut new = change(&old)?;
    codec::fits(kind, &new)?;
    metadata::settle(kind, namespace, Some(name), &mut new)?;
    manage(batch, kind, &mut old, &mut new)?;
    replace(batch, kind, &old, new, part)
}

/// Writes an object over the stored one, with the managers that it has.
pub(super) fn replace(
    batch: &mut Batch<'_>,
    kind: &Kind,
    old: &Value,
    mut new: Value,
    part: Part,
) -> Result<Outcome, Status> {
    let name = object::name(old);
    let (uid, old_uid) = (object::uid(&new), object::uid(old));
    if !uid.is_empty() && uid != old_uid {
        return Err(Status::precondition_uid(kind, name, uid, old_uid));
    }
    let version = object::resource_version(&new);
    if !version.is_empty() && version != object::resource_version(old) {
        return Err(Status::conflict(kind, name));
    }
    new = part.of(kind, new, old);
    metadata::carry(&mut new, old);
    schema::drop_empty(kind, &mut new);
    let attributes = Attributes::new(kind, part.subresource(), Operation::Update, object::namespace(old), name);
    if batch.session.is_some() {
        (kind.defaults)(kind, &mut new);
        let again = |_: &mut Batch<'_>, object: &mut Value| {
            (kind.defaults)(kind, object);
            Ok(())
        };
        if dynamic::mutate(batch, &attributes, &mut new, Some(old), &again)? {
            new = part.of(kind, new, old);
            metadata::carry(&mut new, old);
            schema::drop_empty(kind, &mut new);
        }
    }
    let causes = complete(batch, kind, old, &mut new, part)?;
    if !causes.is_empty() {
        return Err(Status::invalid(kind, name, &causes));
    }
    credentials::check(batch, kind, &new, Some(old))?;
    escalation::check(batch, kind, &new, Some(old))?;
    restriction::check(batch, kind, part, &new, Some(old))?;
    mainstay_api::apply::keep_times(old, &mut new);
    let (is_released, is_unchanged) = (delete::is_released(kind, &new), new == *old);
    if !is_released && !is_unchanged && matches!(part, Part::Main | Part::EphemeralContainers | Part::Resize) {
        // Of an object whose generation stays nothing has changed that they would be about.
        let generation = |object: &Value| object::at(object, &["metadata", "generation"]).cloned();
        if batch.is_heard && (generation(&new) != generation(old) || generation(&new).is_none()) {
            batch.warnings.extend((kind.warnings)(kind, &new));
        }
        admission::check(batch, kind, &new, Some(old))?;
    }
    dynamic::validate(batch, &attributes, Some(&new), Some(old))?;
    if is_released {
        let op = delete::finalize(batch, kind, old, &new)?;
        return Ok(Outcome::ok(Body::Op(op)));
    }
    if is_unchanged {
        return Ok(Outcome::ok(unchanged(batch, kind, old)?));
    }
    if part == Part::Main {
        admission::claim_changes(batch, kind, &new, old)?;
    }
    // A status counts too: a pod that has ended uses nothing more. A quota's own status is what it is counted with.
    if *kind != kinds::RESOURCE_QUOTA {
        admission::charge(batch, kind, Some(&new), Some(old))?;
    }
    let op = batch.put(kind, new)?;
    Ok(Outcome::ok(Body::Op(op)))
}

/// Fills in what the part's fields leave out, and says what is wrong with them.
fn complete(
    batch: &mut Batch<'_>,
    kind: &Kind,
    old: &Value,
    new: &mut Value,
    part: Part,
) -> Result<Vec<Cause>, Status> {
    let mut causes = Vec::new();
    match part {
        Part::Main | Part::EphemeralContainers | Part::Resize => {
            admission::on_update(batch, kind, new, old)?;
            admission::allocate(batch, kind, new, Some(old))?;
            (kind.defaults)(kind, new);
            (kind.prepare_update)(kind, new, old);
            metadata::validate(kind, new, &mut causes);
            validate_changed(kind, new, old, &mut causes);
            match part {
                Part::Main => (kind.validate_update)(kind, new, old, &mut causes),
                Part::EphemeralContainers => pod::validate_ephemeral_containers(new, old, &mut causes),
                Part::Resize => pod::validate_resize(new, old, &mut causes),
                _ => {}
            }
        }
        Part::Status => {
            (kind.defaults)(kind, new);
            (kind.prepare_status)(kind, new, old);
            metadata::validate(kind, new, &mut causes);
            (kind.validate_status)(kind, new, old, &mut causes);
        }
        Part::Approval => {
            kinds::certificatesigningrequest::stamp_conditions(new, &mainstay_api::time::rfc3339(batch.now));
            kinds::certificatesigningrequest::validate_approval(new, old, &mut causes);
            metadata::validate(kind, new, &mut causes);
        }
        Part::Finalize => {}
    }
    metadata::no_new_finalizers(new, old, &mut causes);
    Ok(causes)
}

/// A write that changes nothing is none: the resourceVersion stays, nobody is woken.
fn unchanged(batch: &mut Batch<'_>, kind: &Kind, old: &Value) -> Result<Body, Status> {
    let entry = batch.store.get(&key::object(kind, object::namespace(old), object::name(old)));
    Ok(match entry {
        Some(entry) if object::resource_version(old) == entry.revision.to_string() => Body::Stored(entry.value),
        _ => Body::Value(old.clone()),
    })
}

fn only_finalizers(new: &Value, old: &Value) -> Value {
    let mut kept = old.clone();
    let spec = object::ensure(&mut kept, &["spec"]);
    match object::at(new, &["spec", "finalizers"]) {
        Some(finalizers) => spec.insert("finalizers".to_owned(), finalizers.clone()),
        None => spec.remove("finalizers"),
    };
    kept
}

fn only_conditions(new: &Value, old: &Value) -> Value {
    let mut kept = old.clone();
    let status = object::ensure(&mut kept, &["status"]);
    match object::at(new, &["status", "conditions"]) {
        Some(conditions) => status.insert("conditions".to_owned(), conditions.clone()),
        None => status.remove("conditions"),
    };
    annotated(kept, new)
}

/// The old object with the new one's status, labels and annotations. As upstream, a Deployment keeps its labels, and
/// the kinds of [`METADATA_STAYS`] keep both.
fn only_status(kind: &Kind, new: &Value, old: &Value) -> Value {
    let mut kept = old.clone();
    let fields = object::ensure(&mut kept, &[]);
    match new.get("status") {
        Some(status) => fields.insert("status".to_owned(), status.clone()),
        None => fields.remove("status"),
    };
    if kind.custom.is_some() || METADATA_STAYS.iter().any(|of| **of == *kind) {
        return with_metadata(kept, new, &["managedFields"]);
    }
    if *kind == kinds::DEPLOYMENT {
        return with_metadata(kept, new, &["annotations", "managedFields"]);
    }
    annotated(kept, new)
}

/// Kinds whose `/status` writes nothing of the metadata; so it is with custom resources.
static METADATA_STAYS: [&Kind; 4] = [
    &kinds::CUSTOM_RESOURCE_DEFINITION,
    &kinds::API_SERVICE,
    &kinds::FLOW_SCHEMA,
    &kinds::PRIORITY_LEVEL_CONFIGURATION,
];

fn annotated(kept: Value, new: &Value) -> Value {
    with_metadata(kept, new, &["labels", "annotations", "managedFields"])
}

fn with_metadata(mut kept: Value, new: &Value, fields: &[&str]) -> Value {
    for field in fields {
        let value = object::at(new, &["metadata", field]).cloned();
        let metadata = object::ensure(&mut kept, &["metadata"]);
        match value {
            Some(value) => metadata.insert((*field).to_owned(), value),
            None => metadata.remove(*field),
        };
    }
    kept
}

/// Whether a patch of a Namespace is about `spec.finalizers`, which only `/finalize` writes.
pub fn part_of(kind: &Kind, status: bool, patch: &Value) -> Part {
    match (status, object::at(patch, &["spec", "finalizers"])) {
        (true, _) => Part::Status,
        (false, Some(_)) if *kind == kinds::NAMESPACE => Part::Finalize,
        _ => Part::Main,
    }
}

/// What is wrong with an object, less what was wrong with it in the same way when it was stored: an object that an
/// earlier server took can still be changed otherwise, and finished (S11). Upstream does so field by field.
fn validate_changed(kind: &Kind, new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    let before = causes.len();
    (kind.validate)(kind, new, causes);
    if causes.len() == before || kind.custom.is_some() {
        return;
    }
    let mut stored = old.clone();
    (kind.defaults)(kind, &mut stored);
    let mut known = Vec::new();
    (kind.validate)(kind, &stored, &mut known);
    let known: BTreeSet<(&str, &str)> = known.iter().map(|cause| (&*cause.field, &*cause.message)).collect();
    let found = causes.split_off(before);
    causes.extend(found.into_iter().filter(|cause| !known.contains(&(&*cause.field, &*cause.message))));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn merge_patch_is_rfc_7396() {
        let table = [
            (json!({ "a": "b" }), json!({ "a": "c" }), json!({ "a": "c" })),
            (json!({ "a": "b" }), json!({ "b": "c" }), json!({ "a": "b", "b": "c" })),
            (json!({ "a": "b" }), json!({ "a": null }), json!({})),
            (json!({ "a": ["b"] }), json!({ "a": "c" }), json!({ "a": "c" })),
            (json!({ "a": { "b": "c" } }), json!({ "a": { "b": "d", "c": null } }), json!({ "a": { "b": "d" } })),
            (json!({ "e": null }), json!({ "a": 1 }), json!({ "e": null, "a": 1 })),
            (json!([1, 2]), json!({ "a": { "bb": { "ccc": null } } }), json!({ "a": { "bb": {} } })),
        ];
        for (mut target, patch, wanted) in table {
            mainstay_api::object::merge(&mut target, patch);
            assert_eq!(target, wanted);
        }
    }
}
