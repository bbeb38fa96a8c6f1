//! Subresources that are objects of their own: binding, scale.

use mainstay_api::apply::{self, Writer};
use mainstay_api::selector::Labels;
use mainstay_api::{Kind, Registry, Status, kinds, object};
use serde_json::{Value, json};

use crate::dynamic;
use crate::dynamic::matching::{Attributes, Operation};

use super::{Batch, Body, Outcome, Part, codec, metadata, update};

/// `POST pods/<name>/binding`: gives a pod to a node, once.
pub fn bind(batch: &mut Batch<'_>, namespace: &str, name: &str, binding: &Value) -> Result<Outcome, Status> {
    let kind = &kinds::POD;
    let mut pod = batch.must_get(kind, namespace, name)?;
    let uid = object::text(binding, &["metadata", "uid"]);
    if !uid.is_empty() && uid != object::uid(&pod) {
        return Err(Status::precondition_uid(kind, name, uid, object::uid(&pod)));
    }
    let version = object::resource_version(binding);
    if !version.is_empty() && version != object::resource_version(&pod) {
        return Err(Status::conflict(kind, name));
    }
    let attributes = Attributes::new(kind, "binding", Operation::Create, namespace, name);
    let binding = &dynamic::posted(batch, attributes.with_type("", "v1", "Binding"), binding)?;
    let node = object::text(binding, &["target", "name"]);
    if node.is_empty() {
        let cause = mainstay_api::status::Cause::required("target.name", "");
        return Err(Status::new(
            422,
            "Invalid",
            format!("Binding \"{name}\" is invalid: {}: {}", cause.field, cause.message),
        ));
    }
    if object::is_terminating(&pod) {
        return Err(Status::conflict_because(
            kind,
            name,
            &format!("pod {name} is being deleted, cannot be assigned to a host"),
        ));
    }
    let current = object::text(&pod, &["spec", "nodeName"]);
    if !current.is_empty() {
        return Err(Status::conflict_because(
            kind,
            name,
            &format!("pod {name} is already assigned to node {current:?}"),
        ));
    }
    object::ensure(&mut pod, &["spec"]).insert("nodeName".to_owned(), node.into());
    for (annotation, value) in
        object::at(binding, &["metadata", "annotations"]).and_then(Value::as_object).into_iter().flatten()
    {
        object::ensure(&mut pod, &["metadata", "annotations"]).insert(annotation.clone(), value.clone());
    }
    set_scheduled(&mut pod, batch);
    batch.put(kind, pod)?;
    Ok(Outcome::created(Body::Value(success())))
}

fn set_scheduled(pod: &mut Value, batch: &Batch<'_>) {
    let condition = json!({ "type": "PodScheduled", "status": "True", "lastProbeTime": null,
        "lastTransitionTime": metadata::time(batch.now) });
    let conditions = object::ensure(pod, &["status"]).entry("conditions").or_insert_with(|| json!([]));
    if let Some(conditions) = conditions.as_array_mut() {
        conditions.retain(|old| object::text(old, &["type"]) != "PodScheduled");
        conditions.push(condition);
    }
}

fn success() -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201 })
}

/// `GET …/scale`: an `autoscaling/v1` Scale of a workload, or of a custom resource whose definition says where it is.
pub fn scale_of(kind: &Kind, object: &Value) -> Value {
    let custom = kind.custom.as_ref().and_then(|custom| custom.scale.as_ref());
    let selector = match custom {
        Some(scale) => {
            let text = scale.selector.as_ref().and_then(|path| path.first(object)?.as_str());
            text.unwrap_or_default().to_owned()
        }
        None => {
            let own = object::at(object, &["spec", "selector"]);
            let is_of = |field: &str| own.is_some_and(|own| own.get(field).is_some_and(|of| !of.is_string()));
            let labels = match is_of("matchLabels") || is_of("matchExpressions") {
                true => Labels::from_json(own),
                // A ReplicationController's is a plain map.
                false => Labels::from_json(Some(&json!({ "matchLabels": own }))),
            };
            labels.map(|labels| labels.to_string()).unwrap_or_default()
        }
    };
    let metadata: Value = ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"]
        .into_iter()
        .filter_map(|field| Some((field.to_owned(), object::at(object, &["metadata", field])?.clone())))
        .collect::<serde_json::Map<_, _>>()
        .into();
    let (wanted, there) = match custom {
        Some(scale) => (
            scale.spec_replicas.first(object).and_then(Value::as_i64).unwrap_or(0),
            scale.status_replicas.first(object).and_then(Value::as_i64),
        ),
        None => (count(object, &REPLICAS).unwrap_or(1), count(object, &["status", "replicas"])),
    };
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": { "replicas": wanted }, "status": { "replicas": there.unwrap_or(0), "selector": selector },
    })
}

/// What is written to `…/scale`.
pub enum Scaling<'a> {
    /// `PUT` and `PATCH`: what becomes of the stored Scale.
    Changed(&'a dyn Fn(&Value) -> Result<Value, Status>),
    /// Server-side apply of a configuration, which has passed [`mainstay_api::schema::decode_config`].
    Applied {
        /// An `autoscaling/v1` Scale.
        config: &'a Value,
        /// Whether the number is taken from whoever owns it.
        force: bool,
    },
}

/// A write of `…/scale`.
///
/// Differs: who applies a Scale without a number, after one with it, gives the number up to others and leaves it as it
/// is; upstream scales to none.
///
/// # Errors
/// 404, 409 for another state or owner, 422 for no such number, and those of an update of the object.
pub fn scaled(
    batch: &mut Batch<'_>,
    kind: &Kind,
    namespace: &str,
    name: &str,
    how: &Scaling<'_>,
) -> Result<Outcome, Status> {
    let mut workload = batch.must_get(kind, namespace, name)?;
    let stored = scale_of(kind, &workload);
    let mut scale = match how {
        Scaling::Changed(change) => change(&stored)?,
        Scaling::Applied { config, force } => applied(batch, kind, &workload, &stored, config, *force)?,
    };
    let attributes = Attributes::new(kind, "scale", Operation::Update, namespace, name);
    let attributes = attributes.with_type("autoscaling", "v1", "Scale");
    dynamic::mutate(batch, &attributes, &mut scale, Some(&stored), &|_, _| Ok(()))?;
    dynamic::validate(batch, &attributes, Some(&scale), Some(&stored))?;
    let replicas = match (object::at(&scale, &["spec", "replicas"]), how) {
        (None | Some(Value::Null), Scaling::Applied { .. }) => count(&stored, &["spec", "replicas"]).unwrap_or(0),
        (None | Some(Value::Null), Scaling::Changed(_)) => 0,
        (Some(replicas), _) => replicas.as_i64().ok_or_else(|| {
            Status::bad_request(
                "Scale in version \"v1\" cannot be handled as a Scale: json: cannot unmarshal into Go \
                struct field ScaleSpec.spec.replicas of type int32",
            )
        })?,
    };
    if replicas < 0 {
        let cause =
            mainstay_api::status::Cause::invalid("spec.replicas", replicas, "must be greater than or equal to 0");
        return Err(Status::new(
            422,
            "Invalid",
            format!("Scale.autoscaling {name:?} is invalid: {}: {}", cause.field, cause.message),
        ));
    }
    let old = workload.clone();
    for field in ["uid", "resourceVersion"] {
        if let Some(wanted) = object::at(&scale, &["metadata", field]).filter(|wanted| wanted.as_str() != Some("")) {
            object::ensure(&mut workload, &["metadata"]).insert(field.to_owned(), wanted.clone());
        }
    }
    let path = kind.custom.as_ref().and_then(|custom| custom.scale.as_ref()?.spec_replicas.fields());
    if let Some((last, before)) = path.as_deref().unwrap_or(&REPLICAS).split_last() {
        object::ensure(&mut workload, before).insert((*last).to_owned(), json!(replicas));
    }
    let written = batch.unasked(|batch| match how {
        Scaling::Changed(_) => update::update(batch, kind, namespace, name, Part::Main, workload),
        Scaling::Applied { .. } => {
            let registry = batch.registry.clone();
            let path = |version: &str| replicas_path(&registry, kind, version);
            apply::keep_managers(kind, &mut workload, &mut scale, &path, batch.now);
            update::replace(batch, kind, &old, workload, Part::Main)
        }
    })?;
    let mut scale = scale_of(kind, &batch.must_get(kind, namespace, name)?);
    Ok(Outcome::ok(match written.body {
        Body::Op(op) => Body::Shown { op, value: codec::encode(&mut scale)? },
        _ => Body::Value(scale),
    }))
}

/// The Scale that a configuration makes of the stored one, with the managers of both.
fn applied(
    batch: &Batch<'_>,
    kind: &Kind,
    workload: &Value,
    stored: &Value,
    config: &Value,
    force: bool,
) -> Result<Value, Status> {
    let manager = batch.manager.as_ref().ok_or_else(update::no_field_manager)?;
    let mut config = config.clone();
    metadata::settle(&kinds::SCALE, object::namespace(workload), Some(object::name(workload)), &mut config)?;
    let mut live = stored.clone();
    let path = |version: &str| replicas_path(&batch.registry, kind, version);
    apply::show_managers(workload, &mut live, &path, batch.now);
    let writer = Writer { manager: &manager.name, subresource: &manager.subresource, now: batch.now };
    apply::apply(&kinds::SCALE, Some(&live), &config, force, writer)
}

/// Where the objects of a kind have the number of replicas in the form of a version (`apps/v1`); `None` where that
/// version is not theirs or has no Scale.
fn replicas_path(registry: &Registry, kind: &Kind, api_version: &str) -> Option<Vec<String>> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    if group != kind.group {
        return None;
    }
    if kind.custom.is_none() {
        return Some(REPLICAS.map(str::to_owned).to_vec());
    }
    let of_version = registry.find(group, version, &kind.plural)?;
    let scale = of_version.custom.as_ref()?.scale.as_ref()?;
    Some(scale.spec_replicas.fields()?.into_iter().map(str::to_owned).collect())
}

fn count(object: &Value, path: &[&str]) -> Option<i64> {
    object::at(object, path).and_then(Value::as_i64)
}

/// Where built-in kinds have their number of replicas.
const REPLICAS: [&str; 2] = ["spec", "replicas"];
