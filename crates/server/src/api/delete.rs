//! `DELETE`: preconditions, grace, finalizers; an object goes only when nothing holds it any more.

use mainstay_api::kinds::customresourcedefinition::CLEANUP;
use mainstay_api::metadata::{FOREGROUND, ORPHAN};
use mainstay_api::{Kind, ObjectKey, Status, kinds, object};
use mainstay_store::Entry;
use serde_json::{Value, json};

use crate::authorize::restriction;
use crate::dynamic;
use crate::dynamic::matching::{Attributes, Operation};

use super::{Batch, Body, Outcome, Selection, admission, codec, key, metadata};

/// Kinds whose dependents stay where nobody says what is to become of them, as upstream: a client that only deletes
/// the Job must not end the backup that its pod makes.
static ORPHANS_BY_DEFAULT: [&Kind; 2] = [&kinds::JOB, &kinds::REPLICATION_CONTROLLER];
/// Namespaces that the cluster itself lives in.
const IMMORTAL_NAMESPACES: [&str; 3] = ["default", "kube-system", "kube-public"];
/// Kinds whose deletion is answered with the object's last state, as upstream; others with a Status.
const ANSWERED_WITH_THE_OBJECT: [(&str, &str); 12] = [
    ("", "persistentvolumeclaims"),
    ("", "persistentvolumes"),
    ("", "pods"),
    ("", "podtemplates"),
    ("", "resourcequotas"),
    ("", "serviceaccounts"),
    ("", "services"),
    ("storage.k8s.io", "csidrivers"),
    ("storage.k8s.io", "csinodes"),
    ("storage.k8s.io", "csistoragecapacities"),
    ("storage.k8s.io", "storageclasses"),
    ("storage.k8s.io", "volumeattachments"),
];
/// A pod's grace period where nothing says otherwise, in seconds.
const DEFAULT_GRACE: i64 = 30;

/// `metav1.DeleteOptions`, as far as they matter here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeleteOptions {
    /// Seconds; `None` is the kind's default.
    pub grace: Option<i64>,
    /// Must be the object's uid (A8).
    pub uid: Option<String>,
    /// Must be the object's resourceVersion (A8).
    pub resource_version: Option<String>,
    /// `Background`, `Foreground` or `Orphan`.
    pub propagation: Option<String>,
    /// The older form of `Orphan`.
    pub orphan_dependents: Option<bool>,
}

impl DeleteOptions {
    /// Reads a `DeleteOptions` body (or what has its fields and no kind). 400 for another kind, and for a field of
    /// another type than upstream's: what is deleted, and whether, must not depend on an option that was passed over.
    pub fn from_json(body: &Value) -> Result<Self, Status> {
        fn read<T>(body: &Value, path: &[&str], as_it: fn(&Value) -> Option<T>) -> Result<Option<T>, Status> {
            match object::at(body, path) {
                None | Some(Value::Null) => Ok(None),
                Some(value) => as_it(value).map(Some).ok_or_else(|| {
                    Status::bad_request(format!(
                        "json: cannot unmarshal into Go struct field DeleteOptions.{}",
                        path.join(".")
                    ))
                }),
            }
        }
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let kind = read(body, &["kind"], text)?.unwrap_or_default();
        if !matches!(kind.as_str(), "" | "DeleteOptions") {
            let version = object::text(body, &["apiVersion"]);
            let why = format!("{kind} in version {version:?} cannot be handled as a DeleteOptions");
            return Err(Status::bad_request(why));
        }
        read(body, &["preconditions"], |value| value.is_object().then_some(()))?;
        Ok(Self {
            grace: read(body, &["gracePeriodSeconds"], Value::as_i64)?,
            uid: read(body, &["preconditions", "uid"], text)?,
            resource_version: read(body, &["preconditions", "resourceVersion"], text)?,
            propagation: read(body, &["propagationPolicy"], text)?,
            orphan_dependents: read(body, &["orphanDependents"], Value::as_bool)?,
        })
    }

    /// The fields that are set.
    fn to_json(&self) -> Value {
        let mut options = json!({});
        let fields = [
            ("gracePeriodSeconds", self.grace.map(Value::from)),
            ("propagationPolicy", self.propagation.clone().map(Value::from)),
            ("orphanDependents", self.orphan_dependents.map(Value::from)),
        ];
        for (field, value) in fields {
            if let Some(value) = value {
                options[field] = value;
            }
        }
        for (field, value) in [("uid", &self.uid), ("resourceVersion", &self.resource_version)] {
            if let Some(value) = value {
                options["preconditions"][field] = value.as_str().into();
            }
        }
        options
    }

    /// Whether the object is the one that is meant (A8).
    pub(super) fn check_preconditions(&self, kind: &Kind, object: &Value) -> Result<(), Status> {
        let (name, uid) = (object::name(object), object::uid(object));
        if let Some(wanted) = self.uid.as_deref().filter(|wanted| *wanted != uid) {
            return Err(Status::precondition_uid(kind, name, wanted, uid));
        }
        let version = object::resource_version(object);
        if let Some(wanted) = self.resource_version.as_deref().filter(|wanted| *wanted != version) {
            return Err(Status::precondition_resource_version(kind, name, wanted, version));
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Status> {
        if self.orphan_dependents.is_some() && self.propagation.is_some() {
            return Err(Status::new(
                422,
                "Invalid",
                "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Invalid value: orphanDependents and \
                    deletionPropagation cannot be both set",
            ));
        }
        match self.propagation.as_deref() {
            None | Some("Background" | "Foreground" | "Orphan") => Ok(()),
            Some(other) => Err(Status::new(
                422,
                "Invalid",
                format!(
                    "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Unsupported value: {other:?}: \
                        supported values: \"Background\", \"Foreground\", \"Orphan\""
                ),
            )),
        }
    }
}

/// As [`delete`], of an object as it was listed. Where it is another one by now, or is not selected any more, it is
/// gone for who lists: 404 (A8).
pub fn delete_listed(
    batch: &mut Batch<'_>,
    selection: &Selection,
    listed: &Entry,
    options: &DeleteOptions,
) -> Result<Outcome, Status> {
    let kind = selection.kind();
    let Some((_, ObjectKey { namespace, name })) = key::parse(&batch.registry, &listed.key) else {
        return Err(Status::not_found(kind, ""));
    };
    let now = batch.row(listed.key.clone()).ok_or_else(|| Status::not_found(kind, &name))?;
    if now.revision != listed.revision {
        let uid = |bytes: &[u8]| Ok::<_, Status>(object::uid(&codec::decode_metadata(bytes)?).to_owned());
        if uid(&now.value)? != uid(&listed.value)? || !selection.matches(&now.value)? {
            return Err(Status::not_found(kind, &name));
        }
    }
    delete(batch, kind, &namespace, &name, options)
}

/// Deletes an object, or sets it on its way: graceful deletion and finalizers keep it until they are done.
pub fn delete(
    batch: &mut Batch<'_>,
    kind: &Kind,
    namespace: &str,
    name: &str,
    options: &DeleteOptions,
) -> Result<Outcome, Status> {
    options.check()?;
    if *kind == kinds::NAMESPACE && IMMORTAL_NAMESPACES.contains(&name) {
        return Err(Status::forbidden(kind, name, "this namespace may not be deleted"));
    }
    let old = batch.must_get(kind, namespace, name)?;
    options.check_preconditions(kind, &old)?;
    let uid = object::uid(&old);
    restriction::check_delete(batch, kind, &old)?;
    if batch.session.is_some() {
        let mut attributes = Attributes::new(kind, "", Operation::Delete, namespace, name);
        attributes.options = options.to_json();
        dynamic::mutate_deletion(batch, &attributes, &old)?;
        dynamic::validate(batch, &attributes, None, Some(&old))?;
    }
    let mut new = old.clone();
    set_finalizers(kind, &mut new, options);
    if *kind == kinds::CUSTOM_RESOURCE_DEFINITION && !object::is_terminating(&old) {
        let finalizers = object::ensure(&mut new, &["metadata"]).entry("finalizers").or_insert_with(|| json!([]));
        if let Value::Array(all) = finalizers
            && !all.iter().any(|name| name == CLEANUP)
        {
            all.push(CLEANUP.into());
        }
    }
    let waits = set_deletion(kind, &mut new, &old, options, batch);
    if *kind == kinds::NAMESPACE && has_spec_finalizers(&new) {
        object::ensure(&mut new, &["status"]).insert("phase".to_owned(), json!("Terminating"));
    }
    if !waits && is_released(kind, &new) {
        let op = finalize(batch, kind, &old, &new)?;
        return Ok(match ANSWERED_WITH_THE_OBJECT.contains(&(&*kind.group, &*kind.plural)) {
            true => Outcome::ok(Body::Op(op)),
            false => Outcome::ok(Body::Value(deleted(kind, name, uid))),
        });
    }
    if new == old {
        return Ok(Outcome::ok(Body::Value(old)));
    }
    let op = batch.put(kind, new)?;
    Ok(Outcome::ok(Body::Op(op)))
}

/// Takes away an Event whose time is over: many at a time, for as many as are made. One that nothing holds and no quota
/// counts is not decoded for that; its last state is told as it is stored, as where upstream's store lets it expire.
pub fn expire(batch: &mut Batch<'_>, namespace: &str, name: &str) -> Result<(), Status> {
    let (kind, key) = (&kinds::EVENT, key::object(&kinds::EVENT, namespace, name));
    let stored = batch.unwritten(&key).and_then(|entry| codec::with_hole(&entry.value));
    let quotas = key::quotas(namespace);
    match stored.filter(|(_, is_held)| !is_held) {
        Some((last, _)) if !batch.has(quotas.clone()) => {
            batch.expect_mark(quotas);
            batch.remove_raw(key, last);
            Ok(())
        }
        _ => delete(batch, kind, namespace, name, &DeleteOptions::default()).map(drop),
    }
}

/// Sets `deletionTimestamp`; whether a grace period keeps the object.
fn set_deletion(kind: &Kind, new: &mut Value, old: &Value, options: &DeleteOptions, batch: &Batch<'_>) -> bool {
    let earlier = object::at(old, &["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64);
    let is_terminating = object::is_terminating(old);
    let grace = if *kind == kinds::POD { pod_grace(old, options.grace) } else { 0 };
    match (is_terminating, earlier) {
        // Already on its way: the period can only get shorter, and only when asked for.
        (true, Some(earlier)) if earlier > 0 && *kind == kinds::POD => {
            if options.grace.is_none() || grace >= earlier {
                return true;
            }
            let begun = object::text(old, &["metadata", "deletionTimestamp"])
                .parse::<jiff::Timestamp>()
                .map_or(batch.now, |at| {
                    jiff::Timestamp::from_second(at.as_second().saturating_sub(earlier)).unwrap_or(batch.now)
                });
            metadata::mark_deleting(new, begun, grace);
            grace > 0
        }
        (true, _) => false,
        (false, _) => {
            metadata::mark_deleting(new, batch.now, grace);
            grace > 0
        }
    }
}

/// How long a pod may take to stop: nothing when no kubelet has it or when it has ended.
fn pod_grace(pod: &Value, asked: Option<i64>) -> i64 {
    let own = object::at(pod, &["spec", "terminationGracePeriodSeconds"]).and_then(Value::as_i64);
    let grace = asked.or(own).unwrap_or(DEFAULT_GRACE);
    let has_ended = matches!(object::text(pod, &["status", "phase"]), "Succeeded" | "Failed");
    if object::text(pod, &["spec", "nodeName"]).is_empty() || has_ended {
        return 0;
    }
    // Upstream: a negative period is the shortest one.
    if grace < 0 { 1 } else { grace }
}

/// What a client is told that deletes Jobs without saying what is to become of their pods.
pub fn warning(kind: &Kind, options: &DeleteOptions) -> Option<String> {
    let is_said = options.propagation.is_some() || options.orphan_dependents.is_some();
    (*kind == kinds::JOB && !is_said).then(|| {
        "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or \
            set propagationPolicy=Orphan to suppress this warning"
            .to_owned()
    })
}

/// Adds or takes away the garbage collector's finalizers, as the propagation policy says, else what the object carries
/// already, else the kind's default.
fn set_finalizers(kind: &Kind, object: &mut Value, options: &DeleteOptions) {
    let is_decided = object::finalizers(object).any(|finalizer| [FOREGROUND, ORPHAN].contains(&finalizer));
    let policy = match (options.orphan_dependents, options.propagation.as_deref()) {
        (Some(true), _) => "Orphan",
        (Some(false), _) => "Background",
        (None, Some(policy)) => policy,
        (None, None) if !is_decided && ORPHANS_BY_DEFAULT.contains(&kind) => "Orphan",
        (None, None) => return,
    };
    let mut finalizers: Vec<String> = object::finalizers(object)
        .filter(|finalizer| ![FOREGROUND, ORPHAN].contains(finalizer))
        .map(str::to_owned)
        .collect();
    match policy {
        "Orphan" => finalizers.push(ORPHAN.to_owned()),
        "Foreground" => finalizers.push(FOREGROUND.to_owned()),
        _ => {}
    }
    let metadata = object::ensure(object, &["metadata"]);
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".to_owned(), json!(finalizers));
    }
}

fn has_spec_finalizers(namespace: &Value) -> bool {
    object::at(namespace, &["spec", "finalizers"])
        .and_then(Value::as_array)
        .is_some_and(|finalizers| !finalizers.is_empty())
}

/// Whether an object is on its way out and nothing holds it any more.
pub(super) fn is_released(kind: &Kind, object: &Value) -> bool {
    let grace = object::at(object, &["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64).unwrap_or(0);
    object::is_terminating(object)
        && grace == 0
        && object::finalizers(object).next().is_none()
        && !(*kind == kinds::NAMESPACE && has_spec_finalizers(object))
}

/// Takes an object away, with everything that was taken for it: for what is `stored`, whatever its `last` state says.
pub(super) fn finalize(batch: &mut Batch<'_>, kind: &Kind, stored: &Value, last: &Value) -> Result<usize, Status> {
    admission::release(batch, kind, stored)?;
    admission::charge(batch, kind, None, Some(stored))?;
    batch.remove(kind, last)
}

fn deleted(kind: &Kind, name: &str, uid: &str) -> Value {
    let mut details = json!({ "name": name, "kind": kind.plural, "uid": uid });
    if !kind.group.is_empty() {
        details["group"] = kind.group.clone().into();
    }
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details })
}
