//! ReplicationControllers: what a ReplicaSet is, under its older name and with a plain map for a selector.
//!
//! Relies on and guarantees: what [`super::replicaset`] does, which decides for both.

use std::borrow::Cow;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{ReplicationController, ReplicationControllerCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use mainstay_api::ObjectKey;
use mainstay_api::kinds::{POD, REPLICATION_CONTROLLER};

use super::replicaset::{self, Observed};
use crate::decision::{Controller, Verb};
use crate::ownership::controller_of;
use crate::pods::selects;
use crate::snapshot::{Change, Snapshot};

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "replication-controller",
    permits: &[
        (Verb::Create, "pods"),
        (Verb::Patch, "pods"),
        (Verb::Delete, "pods"),
        (Verb::PatchStatus, "replicationcontrollers"),
    ],
    reads: &["replicationcontrollers", "replicasets", "pods", "namespaces"],
    keys,
    reconcile: |snapshot, key, now| {
        observe(snapshot, key).map(|observed| replicaset::decide(&observed, now)).unwrap_or_default()
    },
    many: None,
};

fn keys(_: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    let namespace = &change.key.namespace;
    if change.kind == REPLICATION_CONTROLLER {
        wake(change.key.clone());
    } else if change.kind == POD {
        for meta in change.old.iter().chain(&change.new).map(|meta| &meta.metadata) {
            match controller_of(meta) {
                Some(owner) if owner.kind == REPLICATION_CONTROLLER.kind => {
                    wake(ObjectKey::new(namespace.clone(), owner.name.as_str()));
                }
                Some(_) => {}
                None => after
                    .selecting::<ReplicationController>(namespace, meta.labels.as_ref())
                    .filter(|(_, set)| selects(&selector(set), meta.labels.as_ref()))
                    .for_each(|(key, _)| wake(key.clone())),
            }
        }
    }
}

fn selector(set: &ReplicationController) -> LabelSelector {
    let match_labels = set.spec.as_ref().and_then(|spec| spec.selector.clone());
    LabelSelector { match_labels, match_expressions: None }
}

/// The one at `key` and its pods.
pub fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    let set = as_set(snapshot.replication_controllers.get(key)?);
    Some(replicaset::observe_as(snapshot, &REPLICATION_CONTROLLER, Cow::Owned(set)))
}

/// The same as a ReplicaSet.
fn as_set(set: &ReplicationController) -> ReplicaSet {
    let spec = set.spec.clone().unwrap_or_default();
    let status = set.status.clone().map(|status| ReplicaSetStatus {
        replicas: status.replicas,
        fully_labeled_replicas: status.fully_labeled_replicas,
        ready_replicas: status.ready_replicas,
        available_replicas: status.available_replicas,
        observed_generation: status.observed_generation,
        terminating_replicas: None,
        conditions: status.conditions.map(|all| all.into_iter().map(as_condition).collect()),
    });
    ReplicaSet {
        metadata: set.metadata.clone(),
        spec: ReplicaSetSpec {
            replicas: spec.replicas,
            min_ready_seconds: spec.min_ready_seconds,
            selector: selector(set),
            template: spec.template,
        },
        status,
    }
}

fn as_condition(condition: ReplicationControllerCondition) -> ReplicaSetCondition {
    let ReplicationControllerCondition { last_transition_time, message, reason, status, type_ } = condition;
    ReplicaSetCondition { last_transition_time, message, reason, status: Some(status), type_: Some(type_) }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use serde_json::json;

    use super::*;
    use crate::controllers::garbagecollector;
    use crate::world::World;

    /// It makes, adopts and releases pods as a ReplicaSet does.
    #[test]
    fn it_keeps_its_number_adopts_and_releases_s10() {
        let controllers = [CONTROLLER, garbagecollector::CONTROLLER];
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let mut world = World::default();
        let template =
            json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        let stranger = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "default", "name": "orphan",
                "labels": {"app": "a"}},
            "spec": {"containers": []},
        });
        world.put(stranger);
        world.put(json!({
            "apiVersion": "v1", "kind": "ReplicationController", "metadata": {"namespace": "default", "name": "rc",
                "generation": 1},
            "spec": {"replicas": 3, "selector": {"app": "a"}, "template": template},
        }));
        world.settle(&controllers, now);
        let owned = |world: &World| {
            let of =
                |pod: &&serde_json::Value| pod["metadata"]["ownerReferences"][0]["kind"] == "ReplicationController";
            world.all(&POD).filter(of).count()
        };
        assert_eq!((world.all(&POD).count(), owned(&world)), (3, 3), "the orphan is one of them");
        let status = world.get(&REPLICATION_CONTROLLER, "default", "rc")["status"].clone();
        assert_eq!((status["replicas"].clone(), status.get("terminatingReplicas")), (json!(3), None));
        world.patch(&POD, "default", "orphan", json!({"metadata": {"labels": {"app": "b"}}}));
        world.settle(&controllers, now);
        assert_eq!((world.all(&POD).count(), owned(&world)), (4, 3));
        world.patch(&REPLICATION_CONTROLLER, "default", "rc", json!({"spec": {"replicas": 1}}));
        world.settle(&controllers, now);
        assert_eq!(owned(&world), 1);
        world.put(json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "default", "name": "late",
            "labels": {"app": "a"}}, "spec": {"containers": []}}));
        world.settle(&controllers, now);
        assert_eq!(owned(&world), 1, "one that comes by itself is adopted, and is one too many then");
        world.assert_quiet(&controllers, now);
    }
}
