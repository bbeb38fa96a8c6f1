//! `POST` of a new object.

use mainstay_api::apply::Writer;
use mainstay_api::{Kind, Status, kinds, object, schema};
use serde_json::Value;

use crate::authorize::{escalation, restriction};
use crate::credentials;
use crate::dynamic;
use crate::dynamic::matching::{Attributes, Operation};

use super::{Batch, Body, Outcome, Part, admission, codec, key, metadata, update};

/// How many random names are tried before the client is told.
const MAX_GENERATED_NAMES: usize = 8;

/// Makes an object. `namespace` is the request's; empty for a cluster-scoped kind.
pub fn create(batch: &mut Batch<'_>, kind: &Kind, namespace: &str, mut object: Value) -> Result<Outcome, Status> {
    if kind.custom.as_ref().is_some_and(|custom| custom.is_terminating) {
        let why = "create not allowed while custom resource definition is terminating";
        return Err(Status::new(405, "MethodNotAllowed", why));
    }
    codec::fits(kind, &object)?;
    metadata::settle(kind, namespace, None, &mut object)?;
    if !object::resource_version(&object).is_empty() {
        return Err(Status::new(500, "", "resourceVersion should not be set on objects to be created"));
    }
    choose_name(batch, kind, namespace, &mut object)?;
    admission::namespace_takes_new(batch, kind, namespace, object::name(&object))?;
    metadata::begin(batch, &mut object);
    (kind.defaults)(kind, &mut object);
    manage(batch, kind, &mut object)?;
    (kind.prepare_create)(kind, &mut object);
    credentials::identify(batch, kind, &mut object);
    let name = object::name(&object).to_owned();
    if batch.has(key::object(kind, namespace, &name)) {
        return Err(Status::already_exists(kind, &name));
    }
    admission::on_create(batch, kind, &mut object)?;
    let attributes = Attributes::new(kind, "", Operation::Create, namespace, &name);
    dynamic::mutate(batch, &attributes, &mut object, None, &|batch, object| {
        (kind.defaults)(kind, object);
        (kind.prepare_create)(kind, object);
        admission::on_create(batch, kind, object)
    })?;
    admission::allocate(batch, kind, &mut object, None)?;
    let mut causes = Vec::new();
    metadata::validate(kind, &object, &mut causes);
    (kind.validate)(kind, &object, &mut causes);
    (kind.validate_create)(kind, &object, &mut causes);
    if !causes.is_empty() {
        return Err(Status::invalid(kind, &name, &causes));
    }
    credentials::check(batch, kind, &object, None)?;
    escalation::check(batch, kind, &object, None)?;
    restriction::check(batch, kind, Part::Main, &object, None)?;
    if batch.is_heard {
        batch.warnings.extend((kind.warnings)(kind, &object));
    }
    admission::check(batch, kind, &object, None)?;
    dynamic::validate(batch, &attributes, Some(&object), None)?;
    admission::charge(batch, kind, Some(&object), None)?;
    // Our own controllers, too, write what is empty as clients do: not at all.
    schema::drop_empty(kind, &mut object);
    // Marks that are taken together with the object (a Service's addresses) come before it.
    admission::take(batch, kind, &object)?;
    let op = batch.put(kind, object)?;
    if *kind == kinds::NAMESPACE {
        batch.unasked(|batch| admission::furnish_namespace(batch, &name))?;
    }
    Ok(Outcome::created(Body::Op(op)))
}

/// The first manager of all fields is whoever makes the object; one that is made by an apply has its entry already.
///
/// It owns what it said and the defaults, not what the cluster gives the object (a Job's selector, a claim's class):
/// who takes over its fields with a configuration that does not name those must not take them away (S11).
fn manage(batch: &Batch<'_>, kind: &Kind, object: &mut Value) -> Result<(), Status> {
    let is_applied = object::at(object, &["metadata", "managedFields"]).is_some();
    if let Some(manager) = batch.manager.as_ref().filter(|_| !is_applied && update::is_managed(kind)) {
        update::entries_fit(kind, object)?;
        let writer = Writer { manager: &manager.name, subresource: "", now: batch.now };
        mainstay_api::apply::manage_update(kind, None, object, writer);
    }
    Ok(())
}

fn choose_name(batch: &mut Batch<'_>, kind: &Kind, namespace: &str, object: &mut Value) -> Result<(), Status> {
    if object::name(object).is_empty() && object::text(object, &["metadata", "generateName"]).is_empty() {
        let cause = mainstay_api::status::Cause::required("metadata.name", "name or generateName is required");
        return Err(Status::invalid(kind, "", &[cause]));
    }
    for _ in 0..MAX_GENERATED_NAMES {
        let is_generated = metadata::generate_name(batch, object);
        if !is_generated || !batch.has(key::object(kind, namespace, object::name(object))) {
            return Ok(());
        }
        object::ensure(object, &["metadata"]).remove("name");
    }
    Err(Status::generate_name_conflict(kind, object::text(object, &["metadata", "generateName"])))
}

/// Whether creating asks for the namespace to exist: everything in one but Events told about its end.
pub(super) fn needs_namespace(kind: &Kind) -> bool {
    kind.namespaced && *kind != kinds::NAMESPACE
}
