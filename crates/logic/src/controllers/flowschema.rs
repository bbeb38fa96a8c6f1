//! Says in a FlowSchema's status whether there is the priority level that it names. Key: the FlowSchema.

use jiff::Timestamp;
use k8s_openapi::api::flowcontrol::v1::FlowSchema;
use mainstay_api::kinds::{FLOW_SCHEMA, PRIORITY_LEVEL_CONFIGURATION};
use mainstay_api::{ObjectKey, flows};
use serde_json::{Value, json};

use crate::decision::{Controller, Decision, Verb, Write};
use crate::snapshot::{Change, Snapshot};

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "flowschema-controller",
    permits: &[(Verb::PatchStatus, "flowschemas")],
    reads: &["flowschemas", "prioritylevelconfigurations"],
    keys,
    reconcile: |snapshot, key, now| decide(snapshot, key, now).unwrap_or_default(),
    many: None,
};

fn keys(_before: &Snapshot, after: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    if change.kind == FLOW_SCHEMA {
        wake(change.key.clone());
    } else if change.kind == PRIORITY_LEVEL_CONFIGURATION && change.old.is_some() != change.new.is_some() {
        // There are few schemas, and levels come and go seldom.
        let named = after.flow_schemas.iter().filter(|(_, schema)| level(schema) == &*change.key.name);
        named.for_each(|(key, _)| wake(key.clone()));
    }
}

fn level(schema: &FlowSchema) -> &str {
    &schema.spec.priority_level_configuration.name
}

fn decide(snapshot: &Snapshot, key: &ObjectKey, now: Timestamp) -> Option<Decision> {
    let schema = snapshot.flow_schemas.get(key)?;
    let level = level(schema);
    let is_there = snapshot.metas.contains_key(&(PRIORITY_LEVEL_CONFIGURATION.clone(), ObjectKey::new("", level)));
    let mut found = flows::dangling(level, is_there, now);
    let old = json!(schema.status.clone().unwrap_or_default());
    let conditions = old.get("conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    let (own, mut others): (Vec<Value>, Vec<Value>) =
        conditions.into_iter().partition(|condition| condition["type"] == "Dangling");
    let before = own.first().filter(|before| before["status"] == found["status"]);
    if before.is_some_and(|before| ["reason", "message"].iter().all(|field| before[*field] == found[*field])) {
        return None;
    }
    if let Some(since) = before.map(|before| before["lastTransitionTime"].clone()).filter(Value::is_string) {
        found["lastTransitionTime"] = since;
    }
    others.push(found);
    let new = json!({ "conditions": others });
    let write = Write::change_status(&FLOW_SCHEMA, &schema.metadata, &old, &new);
    Some(Decision { writes: write.into_iter().collect(), ..Decision::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;

    fn dangling(world: &World) -> Value {
        world.get(&FLOW_SCHEMA, "", "s")["status"]["conditions"][0].clone()
    }

    #[test]
    fn conformance_a_schema_says_whether_its_level_is_there() {
        let at = |second: i64| Timestamp::from_second(second).expect("a time");
        let mut world = World::default();
        world.put(json!({ "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema",
            "metadata": { "name": "s", "uid": "u" }, "spec": { "priorityLevelConfiguration": { "name": "l" } } }));
        world.settle(&[CONTROLLER], at(10));
        let (missing, words) = (dangling(&world), "object named \"l\" but there is no such object");
        assert_eq!((&missing["status"], &missing["reason"]), (&json!("True"), &json!("NotFound")));
        assert!(missing["message"].as_str().is_some_and(|message| message.ends_with(words)), "{missing}");
        let level = json!({ "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration",
            "metadata": { "name": "l", "uid": "l" }, "spec": { "type": "Exempt" } });
        world.put(level);
        world.settle(&[CONTROLLER], at(20));
        let found = dangling(&world);
        assert_eq!((&found["status"], &found["reason"]), (&json!("False"), &json!("Found")));
        assert_eq!(found["lastTransitionTime"], mainstay_api::time::rfc3339(at(20)));
        world.remove(&PRIORITY_LEVEL_CONFIGURATION, &ObjectKey::new("", "l"));
        world.settle(&[CONTROLLER], at(30));
        assert_eq!(dangling(&world)["status"], "True");
    }
}
