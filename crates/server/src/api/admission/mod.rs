//! What upstream's built-in admission plugins do, in their order: the namespace's life; what pods, claims and Services
//! are given; then, on the validated object, limit ranges, pod security, and the quota last.

mod claim;
mod limits;
pub(crate) mod node;
mod pod;
mod priority;
mod quota;
mod runtimeclass;
mod security;
mod service;

use mainstay_api::{Kind, Status, kinds, object};
use serde_json::{Value, json};

use super::{Batch, create, key};

/// Refuses what would be made in a namespace that is not there or on its way out (NamespaceLifecycle). The batch fails
/// if the namespace begins to go before it is committed, so nothing slips in behind its last look.
pub(super) fn namespace_takes_new(
    batch: &mut Batch<'_>,
    kind: &Kind,
    namespace: &str,
    name: &str,
) -> Result<(), Status> {
    if !create::needs_namespace(kind) {
        return Ok(());
    }
    let found = batch.look_at(&kinds::NAMESPACE, "", namespace)?;
    let found = found.ok_or_else(|| Status::not_found(&kinds::NAMESPACE, namespace))?;
    batch.hold(&kinds::NAMESPACE, "", namespace);
    if object::is_terminating(&found) || object::text(&found, &["status", "phase"]) == "Terminating" {
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut status = Status::forbidden(kind, name, &why);
        status.details["causes"] = json!([{
            "reason": "NamespaceTerminating", "message": format!("namespace {namespace} is being terminated"),
                "field": "metadata.namespace",
        }]);
        return Err(status);
    }
    Ok(())
}

/// What a new object is given, after its defaults.
pub(super) fn on_create(batch: &mut Batch<'_>, kind: &Kind, object: &mut Value) -> Result<(), Status> {
    match (&*kind.group, &*kind.plural) {
        ("", "pods") => {
            limits::complete(batch, object)?;
            priority::complete(batch, object)?;
            pod::admit(batch, object)?;
            runtimeclass::complete(batch, object)?;
            // What was given may have made another class of it.
            let class = kinds::pod::qos_class(object);
            object::ensure(object, &["status"]).insert("qosClass".to_owned(), class.into());
            Ok(())
        }
        ("", "persistentvolumeclaims") => {
            add_finalizer(object, "kubernetes.io/pvc-protection");
            claim::default_class(batch, object)
        }
        ("", "persistentvolumes") => {
            add_finalizer(object, "kubernetes.io/pv-protection");
            Ok(())
        }
        ("certificates.k8s.io", "certificatesigningrequests") => {
            name_requester(batch, object);
            Ok(())
        }
        ("storage.k8s.io", "volumeattributesclasses") => {
            add_finalizer(object, "kubernetes.io/vac-protection");
            Ok(())
        }
        ("networking.k8s.io", "servicecidrs") => {
            add_finalizer(object, kinds::servicecidr::FINALIZER);
            Ok(())
        }
        _ => Ok(()),
    }
}

/// A request for a certificate says who makes it, in the server's words and not in the client's.
fn name_requester(batch: &Batch<'_>, request: &mut Value) {
    let Some(user) = batch.requester.as_ref().map(|requester| requester.user.clone()) else { return };
    let spec = object::ensure(request, &["spec"]);
    for field in ["username", "uid", "groups", "extra"] {
        spec.remove(field);
    }
    spec.insert("username".to_owned(), user.name.as_str().into());
    if !user.uid.is_empty() {
        spec.insert("uid".to_owned(), user.uid.as_str().into());
    }
    if !user.groups.is_empty() {
        spec.insert("groups".to_owned(), json!(user.groups));
    }
    if !user.extra.is_empty() {
        spec.insert("extra".to_owned(), json!(user.extra));
    }
}

/// What an update is given, before its defaults.
pub(super) fn on_update(batch: &mut Batch<'_>, kind: &Kind, new: &mut Value, old: &Value) -> Result<(), Status> {
    match (&*kind.group, &*kind.plural) {
        ("", "persistentvolumeclaims") => claim::may_grow(batch, new, old),
        _ => Ok(()),
    }
}

/// Gives an object that nobody changes any more what it has from the cluster: a Service its addresses, a Node its
/// range of pod addresses.
pub(super) fn allocate(batch: &mut Batch<'_>, kind: &Kind, new: &mut Value, old: Option<&Value>) -> Result<(), Status> {
    match (&*kind.group, &*kind.plural) {
        ("", "services") => service::allocate(batch, new, old),
        ("", "nodes") if old.is_none() => node::allocate(batch, new),
        _ => Ok(()),
    }
}

/// Whether an object that is valid may be written: `old` is what it replaces.
pub(super) fn check(batch: &mut Batch<'_>, kind: &Kind, new: &Value, old: Option<&Value>) -> Result<(), Status> {
    if *kind == kinds::PRIORITY_CLASS {
        priority::check_class(batch, new)?;
    }
    limits::check(batch, kind, new, old)?;
    security::check(batch, kind, new, old)
}

/// Charges what a write changes to the quotas of its namespace, in the same transaction; refuses what is too much.
pub(super) fn charge(
    batch: &mut Batch<'_>,
    kind: &Kind,
    new: Option<&Value>,
    old: Option<&Value>,
) -> Result<(), Status> {
    quota::charge(batch, kind, new, old)
}

/// Takes what a new object holds alone, in the same transaction.
pub(super) fn take(batch: &mut Batch<'_>, kind: &Kind, object: &Value) -> Result<(), Status> {
    if *kind == kinds::SERVICE {
        service::claim(batch, object, None)?;
    }
    if *kind == kinds::NODE {
        node::claim(batch, object, None);
    }
    Ok(())
}

/// Takes and gives back what an update changes of that.
pub(super) fn claim_changes(batch: &mut Batch<'_>, kind: &Kind, new: &Value, old: &Value) -> Result<(), Status> {
    if *kind == kinds::SERVICE {
        service::claim(batch, new, Some(old))?;
    }
    if *kind == kinds::NODE {
        node::claim(batch, new, Some(old));
    }
    Ok(())
}

/// Gives back what a deleted object held.
pub(super) fn release(batch: &mut Batch<'_>, kind: &Kind, last: &Value) -> Result<(), Status> {
    if *kind == kinds::SERVICE {
        service::release(batch, last)?;
    }
    if *kind == kinds::NODE {
        node::release(batch, last);
    }
    Ok(())
}

/// What comes with every namespace, in its own transaction: the CA for its pods, and the service account that they
/// run as. Upstream's controllers make both a moment later, and pods made in that moment are refused.
pub(crate) fn furnish_namespace(batch: &mut Batch<'_>, namespace: &str) -> Result<(), Status> {
    let ca = json!({ "metadata": {
        "name": "kube-root-ca.crt",
        "annotations": { "kubernetes.io/description": "Contains a CA bundle that can be used to verify the \
            kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. \
            No other usage is guaranteed across distributions of Kubernetes clusters." },
    }, "data": { "ca.crt": batch.settings.ca_pem } });
    let account = json!({ "metadata": { "name": "default" } });
    for (kind, object) in [(&kinds::CONFIG_MAP, ca), (&kinds::SERVICE_ACCOUNT, account)] {
        if !batch.has(key::object(kind, namespace, object::name(&object))) {
            create::create(batch, kind, namespace, object)?;
        }
    }
    Ok(())
}

fn add_finalizer(object: &mut Value, finalizer: &str) {
    let mut all: Vec<Value> = object::finalizers(object).filter(|found| *found != finalizer).map(Value::from).collect();
    all.push(finalizer.into());
    object::ensure(object, &["metadata"]).insert("finalizers".to_owned(), all.into());
}
