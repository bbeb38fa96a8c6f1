//! The claims of a pod's ephemeral volumes: `<pod>-<volume>`, owned by the pod. Key: the pod.
//!
//! Relies on: garbage collection removing the claims with their pod.
//! Guarantees S10 (a claim of that name which the pod does not own is left alone, and the scheduler lets the pod wait).
//! Each claim is one write.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use mainstay_api::{ObjectKey, kinds};
use serde_json::json;

use crate::decision::{Controller, Decision, Event, Verb, Waiting, Write};
use crate::ownership::{controller_of, controller_reference};
use crate::pods::is_active;
use crate::snapshot::{Change, Snapshot};

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "ephemeral-volume-controller",
    permits: &[(Verb::Create, "persistentvolumeclaims")],
    reads: &["pods", "persistentvolumeclaims"],
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
    many: None,
};

/// A pod, and the claims there are.
pub struct Observed<'a> {
    pod: &'a Pod,
    snapshot: &'a Snapshot,
}

fn keys(before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    match (&*change.kind.group, &*change.kind.plural) {
        ("", "pods") => {
            let [old, new] = [before, after].map(|snapshot| snapshot.pods.get(&change.key));
            let has_any = |pod: &Arc<Pod>| {
                pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).any(|volume| volume.ephemeral.is_some())
            };
            if old.xor(new).is_some_and(has_any) {
                wake(change.key.clone());
            }
        }
        ("", "persistentvolumeclaims") if change.new.is_none() => {
            let owner =
                change.old.as_ref().and_then(|old| controller_of(&old.metadata)).filter(|owner| owner.kind == "Pod");
            owner.into_iter().for_each(|owner| wake(ObjectKey::new(change.key.namespace.clone(), owner.name.as_str())));
        }
        _ => {}
    }
}

fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    let pod = snapshot.pods.get(key).filter(|pod| is_active(pod))?;
    Some(Observed { pod, snapshot })
}

fn decide(observed: &Observed, _now: Timestamp) -> Decision {
    let mut decision = Decision::default();
    let pod = observed.pod;
    let (namespace, pod_name) =
        (pod.metadata.namespace.as_deref().unwrap_or(""), pod.metadata.name.as_deref().unwrap_or(""));
    for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
        let Some(template) = volume.ephemeral.as_ref().and_then(|source| source.volume_claim_template.as_ref()) else {
            continue;
        };
        let name = format!("{pod_name}-{}", volume.name);
        match observed.snapshot.persistent_volume_claims.get(&ObjectKey::new(namespace, name.as_str())) {
            Some(claim)
                if controller_of(&claim.metadata).map(|owner| owner.uid.as_str()) == pod.metadata.uid.as_deref() => {}
            Some(_) => {
                let message =
                    format!("PVC {namespace}/{name} was not created for pod {namespace}/{pod_name} (pod is not owner)");
                decision.events.push(Event::warning(&kinds::POD, &pod.metadata, "EphemeralVolume", message));
                decision.waiting.push(Waiting::OwnedByAnother { name });
            }
            None => {
                let template_meta = template.metadata.as_ref();
                let object = json!({
                    "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                    "metadata": {
                        "namespace": namespace, "name": name,
                        "labels": template_meta.and_then(|meta| meta.labels.clone()).unwrap_or_default(),
                        "annotations": template_meta.and_then(|meta| meta.annotations.clone()).unwrap_or_default(),
                        "ownerReferences": [controller_reference(&kinds::POD, &pod.metadata)],
                    },
                    "spec": template.spec,
                });
                decision.push_apart(Write::Create { kind: kinds::PERSISTENT_VOLUME_CLAIM.clone(), object });
            }
        }
    }
    decision
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scheduler::tests::pod;
    use crate::world::World;

    #[test]
    fn s10_a_claim_is_made_for_the_pod_and_a_foreign_one_is_left_alone() {
        let mut world = World::default();
        let source = json!({"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "1Gi"}}}}});
        world.put(json!({"kind": "PersistentVolumeClaim", "metadata": {"namespace": "default", "name": "a-theirs"},
            "spec": {}}));
        world.put(pod(
            "a",
            json!({"spec": {"volumes": [{"name": "mine", "ephemeral": source},
            {"name": "theirs", "ephemeral": source}]}}),
        ));
        let key = ObjectKey::new("default", "a");
        assert_eq!(world.run(&CONTROLLER, &key, Timestamp::UNIX_EPOCH, 9), 1);
        let claim = world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "a-mine");
        assert_eq!(
            claim["metadata"]["ownerReferences"][0]["uid"],
            world.get(&kinds::POD, "default", "a")["metadata"]["uid"]
        );
        assert_eq!(world.run(&CONTROLLER, &key, Timestamp::UNIX_EPOCH, 9), 0);
        let message = "PVC default/a-theirs was not created for pod default/a (pod is not owner)";
        assert_eq!(world.events.last(), Some(&format!("EphemeralVolume: {message}")));
        let decision = (CONTROLLER.reconcile)(&world.snapshot, &key, Timestamp::UNIX_EPOCH);
        assert_eq!(decision.waiting, [Waiting::OwnedByAnother { name: "a-theirs".to_owned() }], "its own is there");
        // Among other volumes, and by the pod alone.
        let mut mixed = World::default();
        mixed.put(pod(
            "a",
            json!({"spec": {"volumes": [{"name": "e", "emptyDir": {}}, {"name": "mine",
            "ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"]}}}}]}}),
        ));
        mixed.settle(&[CONTROLLER], Timestamp::UNIX_EPOCH);
        assert!(!mixed.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "a-mine").is_null());
        // S9: whoever takes it away, it comes back while the pod is not finished.
        for (phase, expected) in [("Running", true), ("Failed", false)] {
            let mut world = world.clone();
            world.patch(&kinds::POD, "default", "a", json!({"status": {"phase": phase}}));
            world.remove(&kinds::PERSISTENT_VOLUME_CLAIM, &ObjectKey::new("default", "a-mine"));
            world.settle(&[CONTROLLER], Timestamp::UNIX_EPOCH);
            assert_eq!(!world.get(&kinds::PERSISTENT_VOLUME_CLAIM, "default", "a-mine").is_null(), expected);
        }
    }
}
