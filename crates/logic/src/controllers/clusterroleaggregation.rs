//! The rules of a ClusterRole that has an `aggregationRule`: those of all ClusterRoles that its selectors choose. Key:
//! the ClusterRole.
//!
//! Relies on: nothing but the roles themselves.
//! Guarantees: rules in order of the roles' names, each once; what was written into an aggregated role by hand is
//! replaced. As upstream, an aggregated role may itself be chosen by another.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use mainstay_api::ObjectKey;
use mainstay_api::kinds::CLUSTER_ROLE;
use serde_json::json;

use crate::decision::{Controller, Decision, Verb, Write};
use crate::pods::{is_terminating, selects};
use crate::snapshot::{Change, Snapshot};

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "clusterrole-aggregation-controller",
    permits: &[(Verb::Patch, "clusterroles")],
    reads: &["clusterroles"],
    keys,
    reconcile: |snapshot, key, now| observe(snapshot, key).map(|observed| decide(&observed, now)).unwrap_or_default(),
    many: None,
};

/// The role itself, and the roles that choose it or did.
fn keys(before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    if change.kind != CLUSTER_ROLE {
        return;
    }
    wake(change.key.clone());
    let faces = [before.cluster_roles.get(&change.key), after.cluster_roles.get(&change.key)];
    for (key, role) in after.aggregated_cluster_roles.iter() {
        if faces.iter().flatten().any(|face| chooses(role, face)) {
            wake(key.clone());
        }
    }
}

fn chooses(role: &ClusterRole, other: &ClusterRole) -> bool {
    let selectors = role.aggregation_rule.iter().flat_map(|rule| rule.cluster_role_selectors.iter().flatten());
    selectors.into_iter().any(|selector| selects(selector, other.metadata.labels.as_ref()))
}

/// An aggregated role and the roles that it chooses, in order of name.
pub struct Observed<'a> {
    role: &'a ClusterRole,
    chosen: Vec<&'a Arc<ClusterRole>>,
}

fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    let role = snapshot.aggregated_cluster_roles.get(key).filter(|role| !is_terminating(&role.metadata))?;
    let others = snapshot.cluster_roles.iter().filter(|(other, _)| *other != key);
    let chosen = others.map(|(_, other)| other).filter(|other| chooses(role, other)).collect();
    Some(Observed { role, chosen })
}

/// Writes the sum where it is not there yet.
pub fn decide(observed: &Observed, _: Timestamp) -> Decision {
    let mut sum: Vec<&PolicyRule> = Vec::new();
    for rule in observed.chosen.iter().flat_map(|role| role.rules.iter().flatten()) {
        if !sum.contains(&rule) {
            sum.push(rule);
        }
    }
    let mut decision = Decision::default();
    if !sum.iter().copied().eq(observed.role.rules.iter().flatten()) {
        decision.writes.push(Write::patch(&CLUSTER_ROLE, &observed.role.metadata, json!({ "rules": sum })));
    }
    decision
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;
    use serde_json::Value;

    fn role(name: &str, labels: Value, verb: &str) -> Value {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
            "metadata": { "name": name, "labels": labels },
            "rules": [{ "verbs": [verb], "apiGroups": [""], "resources": ["pods"] }],
        })
    }

    #[test]
    fn an_aggregated_role_is_the_sum_of_those_it_chooses_and_follows_them() {
        let mut world = World::default();
        let mut sum = role("sum", json!({}), "by-hand");
        sum["aggregationRule"] = json!({ "clusterRoleSelectors": [{ "matchLabels": { "to": "sum" } }] });
        world.put(sum);
        world.put(role("b", json!({ "to": "sum" }), "list"));
        world.put(role("a", json!({ "to": "sum" }), "get"));
        world.put(role("c", json!({ "to": "sum" }), "get"));
        world.put(role("other", json!({}), "delete"));
        let now = Timestamp::UNIX_EPOCH;
        let verbs = |world: &mut World| -> Vec<String> {
            world.settle(&[CONTROLLER], now);
            let sum = world.get(&CLUSTER_ROLE, "", "sum");
            let rules = sum["rules"].as_array().cloned().unwrap_or_default();
            rules.iter().map(|rule| rule["verbs"][0].as_str().unwrap_or("").to_owned()).collect()
        };
        assert_eq!(verbs(&mut world), ["get", "list"]);
        world.put(role("a", json!({ "to": "sum" }), "watch"));
        assert_eq!(verbs(&mut world), ["watch", "list", "get"]);
        world.put(role("b", json!({}), "list"));
        assert_eq!(verbs(&mut world), ["watch", "get"]);
    }
}
