//! Counts what a namespace's objects use, for a quota that is new or has changed. Key: the quota.
//!
//! Relies on: admission charging each write of an object to the quotas in the same transaction, and writing a quota
//! that has no status yet when an object goes. So once counted a quota is exact without anybody looking at the objects
//! again. Guarantees: one write, guarded by uid and resourceVersion: a count of objects that changed meanwhile, which
//! has changed the quota, is not taken. Differs: upstream counts on each change and every five minutes; here only the
//! latter, against what a store with one key per transaction may have cut off.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ResourceQuota;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use mainstay_api::pod_resources::Amounts;
use mainstay_api::quantity::Quantity;
use mainstay_api::{Kind, ObjectKey, kinds, pod_resources, quota};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::decision::{Controller, Decision, Verb, Write};
use crate::snapshot::{Change, Objects, Snapshot, in_namespace};

/// How often everything is counted anew, as upstream.
const RESYNC: SignedDuration = SignedDuration::from_mins(5);

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "resourcequota-controller",
    permits: &[(Verb::PatchStatus, "resourcequotas")],
    reads: &["resourcequotas", "pods", "persistentvolumeclaims", "services"],
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
    many: None,
};

/// A quota, and what the objects of its namespace use of what it limits.
pub struct Observed<'a> {
    quota: &'a ResourceQuota,
    used: Amounts,
}

/// A charge changes the status alone, and wakes nobody once there is one.
fn keys(before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    if change.kind != kinds::RESOURCE_QUOTA {
        return;
    }
    let (old, new) = (before.resource_quotas.get(&change.key), after.resource_quotas.get(&change.key));
    let is_counted = |quota: &ResourceQuota| {
        let hard = quota.spec.as_ref().and_then(|spec| spec.hard.as_ref());
        hard == quota.status.as_ref().and_then(|status| status.hard.as_ref())
    };
    let is_same = old.zip(new).is_some_and(|(old, new)| old.spec == new.spec && is_counted(new));
    if !is_same {
        wake(change.key.clone());
    }
}

fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    let quota = snapshot.resource_quotas.get(key)?;
    let as_json = serde_json::to_value(&**quota).ok()?;
    let hard = quota.spec.as_ref().and_then(|spec| spec.hard.as_ref());
    let limited: Vec<&str> = hard.into_iter().flatten().map(|(resource, _)| resource.as_str()).collect();
    let mut used: Amounts = limited.iter().map(|resource| ((*resource).to_owned(), Quantity::ZERO)).collect();
    for kind in snapshot.registry.all_stored().filter(|kind| kind.namespaced) {
        if limited.iter().any(|resource| quota::covers(kind, resource)) {
            let all = usage_of_kind(snapshot, kind, &key.namespace, &as_json);
            let counted = all.into_iter().filter(|(resource, _)| used.contains_key(resource)).collect();
            pod_resources::add(&mut used, &counted);
        }
    }
    Some(Observed { quota, used })
}

fn usage_of_kind(snapshot: &Snapshot, kind: &Kind, namespace: &str, quota: &Value) -> Amounts {
    match (&*kind.group, &*kind.plural) {
        ("", "pods") => usage_of(&snapshot.pods, kind, namespace, quota),
        ("", "persistentvolumeclaims") => usage_of(&snapshot.persistent_volume_claims, kind, namespace, quota),
        ("", "services") => usage_of(&snapshot.services, kind, namespace, quota),
        _ if !quota::matches(kind, &Value::Null, quota) => Amounts::new(),
        _ => {
            let start = (kind.clone(), ObjectKey::new(namespace, ""));
            let own = |meta: &&Kind| **meta == *kind;
            let all = snapshot.metas.range(start..).map(|(_, meta)| meta);
            let count = all.take_while(|meta| own(&&meta.kind) && &*meta.key.namespace == namespace).count();
            let mut total = Amounts::new();
            let one = quota::usage(kind, &Value::Null);
            (0..count).for_each(|_| pod_resources::add(&mut total, &one));
            total
        }
    }
}

fn usage_of<T: Serialize>(objects: &Objects<T>, kind: &Kind, namespace: &str, quota: &Value) -> Amounts {
    let mut total = Amounts::new();
    for (_, object) in in_namespace(objects, namespace) {
        let Ok(object) = serde_json::to_value(&**object) else { continue };
        if quota::matches(kind, &object, quota) {
            pod_resources::add(&mut total, &quota::usage(kind, &object));
        }
    }
    total
}

fn decide(o: &Observed, now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    decision.wake(now.checked_add(RESYNC).unwrap_or(now));
    let status = o.quota.status.clone().unwrap_or_default();
    let (had, was) = (status.hard.unwrap_or_default(), status.used.unwrap_or_default());
    let hard = o.quota.spec.as_ref().and_then(|spec| spec.hard.clone()).unwrap_or_default();
    let used: BTreeMap<String, Text> =
        o.used.iter().map(|(name, amount)| (name.clone(), Text(amount.to_string()))).collect();
    if hard == had && amounts_equal(&used, &was) {
        return decision;
    }
    let status = json!({ "hard": replacing(&had, &hard), "used": replacing(&was, &used) });
    let mut write = Write::patch_status(&kinds::RESOURCE_QUOTA, &o.quota.metadata, status);
    if let Write::Patch { resource_version, .. } = &mut write {
        *resource_version = o.quota.metadata.resource_version.clone();
    }
    decision.writes.push(write);
    decision
}

fn amounts_equal(one: &BTreeMap<String, Text>, other: &BTreeMap<String, Text>) -> bool {
    let parsed = |text: &Text| text.0.parse::<Quantity>().ok();
    one.len() == other.len()
        && one.iter().zip(other).all(|((a, x), (b, y))| a == b && parsed(x).is_some() && parsed(x) == parsed(y))
}

/// A merge patch that makes a map of `old` into `new`.
fn replacing(old: &BTreeMap<String, Text>, new: &BTreeMap<String, Text>) -> Value {
    let gone = old.keys().filter(|name| !new.contains_key(*name)).map(|name| (name.clone(), Value::Null));
    let set = new.iter().map(|(name, amount)| (name.clone(), json!(amount.0)));
    gone.chain(set).collect::<Map<_, _>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;

    const CONTROLLERS: &[Controller] = &[CONTROLLER];

    fn quota(hard: Value) -> Value {
        json!({ "apiVersion": "v1", "kind": "ResourceQuota", "metadata": { "name": "q", "namespace": "a" },
            "spec": { "hard": hard } })
    }

    fn pod(name: &str, namespace: &str, cpu: &str, phase: &str) -> Value {
        json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": namespace },
            "status": { "phase": phase },
            "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu } } }] } })
    }

    #[test]
    fn a_new_quota_is_counted_over_its_namespace_and_then_left_alone() {
        let mut world = World::default();
        world.put(pod("one", "a", "100m", "Running"));
        world.put(pod("two", "a", "1", "Succeeded"));
        world.put(pod("other", "b", "1", "Running"));
        world.put(json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "m", "namespace": "a" } }));
        world.put(quota(
            json!({ "pods": "5", "requests.cpu": "2", "count/pods": "9", "configmaps": "3", "services": "1" }),
        ));
        world.settle(CONTROLLERS, Timestamp::UNIX_EPOCH);
        let status = world.get(&kinds::RESOURCE_QUOTA, "a", "q")["status"].clone();
        assert_eq!(status["hard"], world.get(&kinds::RESOURCE_QUOTA, "a", "q")["spec"]["hard"]);
        assert_eq!(
            status["used"],
            json!({ "pods": "1", "requests.cpu": "100m", "count/pods": "2", "configmaps": "1", "services": "0" })
        );
        world.assert_quiet(CONTROLLERS, Timestamp::UNIX_EPOCH);
        // What is no longer limited is no longer counted.
        world.patch(
            &kinds::RESOURCE_QUOTA,
            "a",
            "q",
            json!({ "spec": { "hard": { "services": null, "configmaps": null, "pods": "6" } } }),
        );
        world.settle(CONTROLLERS, Timestamp::UNIX_EPOCH);
        let status = world.get(&kinds::RESOURCE_QUOTA, "a", "q")["status"].clone();
        assert_eq!(
            (&status["used"], &status["hard"]["pods"]),
            (&json!({ "pods": "1", "requests.cpu": "100m", "count/pods": "2" }), &json!("6"))
        );
    }

    #[test]
    fn a_count_that_others_have_changed_is_not_taken() {
        let mut world = World::default();
        world.put(quota(json!({ "pods": "5" })));
        let key = ObjectKey::new("a", "q");
        let decision = (CONTROLLER.reconcile)(&world.snapshot, &key, Timestamp::UNIX_EPOCH);
        let version =
            world.get(&kinds::RESOURCE_QUOTA, "a", "q")["metadata"]["resourceVersion"].as_str().map(str::to_owned);
        assert!(matches!(&decision.writes[..], [Write::Patch { resource_version, status: true,
                .. }] if *resource_version == version));
        assert_eq!(decision.wake_at.map(|at| at.as_second()), Some(300));
    }
}
