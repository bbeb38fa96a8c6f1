//! The FlowSchemas and PriorityLevelConfigurations that every cluster has. Key: the plural and the object's name.
//!
//! Relies on: the server making them at its start.
//! Guarantees: whichever is deleted is made again, and what was written into one that follows is taken back.
//! Differs: at once, where upstream looks every minute.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mainstay_api::kinds::{FLOW_SCHEMA, PRIORITY_LEVEL_CONFIGURATION};
use mainstay_api::{ObjectKey, flows};
use serde_json::{Value, json};

use crate::decision::{Controller, Decision, Verb, Write};
use crate::pods::is_terminating;
use crate::snapshot::{Change, Snapshot};

/// Its line in the list.
pub const CONTROLLER: Controller = Controller {
    name: "priority-and-fairness-config-producer",
    permits: &[
        (Verb::Create, "flowschemas"),
        (Verb::Patch, "flowschemas"),
        (Verb::Create, "prioritylevelconfigurations"),
        (Verb::Patch, "prioritylevelconfigurations"),
    ],
    reads: &["flowschemas", "prioritylevelconfigurations"],
    keys,
    reconcile: |snapshot, key, _: Timestamp| {
        observe(snapshot, key).map(|observed| decide(&observed)).unwrap_or_default()
    },
    many: None,
};

fn keys(_: &Snapshot, _: &Snapshot, change: &Change, wake: &mut dyn FnMut(ObjectKey)) {
    if (change.kind == FLOW_SCHEMA || change.kind == PRIORITY_LEVEL_CONFIGURATION)
        && flows::default(&change.kind, &change.key.name).is_some()
    {
        wake(ObjectKey::new(&*change.kind.plural, change.key.name.clone()));
    }
}

/// One of the default objects, and what is stored of it.
pub struct Observed<'a> {
    made: &'static flows::Default,
    stored: Option<(&'a ObjectMeta, Value)>,
}

fn observe<'a>(snapshot: &'a Snapshot, key: &ObjectKey) -> Option<Observed<'a>> {
    let made = flows::defaults().iter().find(|made| made.kind.plural == *key.namespace && made.name() == &*key.name)?;
    let at = ObjectKey::new("", key.name.clone());
    let stored = if made.kind == FLOW_SCHEMA {
        snapshot.flow_schemas.get(&at).map(|schema| (&schema.metadata, json!(**schema)))
    } else {
        snapshot.priority_levels.get(&at).map(|level| (&level.metadata, json!(**level)))
    };
    Some(Observed { made, stored })
}

/// Makes it, or brings it up to date.
pub fn decide(observed: &Observed) -> Decision {
    let kind = observed.made.kind.clone();
    let write = match &observed.stored {
        None => Some(Write::Create { kind, object: observed.made.object.clone() }),
        Some((meta, _)) if is_terminating(meta) => None,
        Some((meta, old)) => observed.made.updated(old).map(|new| Write::change(&kind, meta, old, &new)),
    };
    Decision { writes: write.into_iter().collect(), ..Decision::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;

    #[test]
    fn conformance_the_default_flows_come_back_and_follow_while_nobody_has_said_otherwise() {
        let at = |second: i64| Timestamp::from_second(second).expect("a time");
        let mut world = World::default();
        for made in flows::defaults() {
            let mut object = made.object.clone();
            object["apiVersion"] = made.kind.api_version().into();
            object["kind"] = made.kind.kind.as_ref().into();
            object["metadata"]["uid"] = made.name().into();
            world.put(object);
        }
        let shares = |world: &World, name: &str| {
            world.get(&PRIORITY_LEVEL_CONFIGURATION, "", name)["spec"]["limited"]["nominalConcurrencyShares"].clone()
        };
        let versions = |world: &World| -> Vec<Value> {
            world.all(&FLOW_SCHEMA).map(|schema| schema["metadata"]["resourceVersion"].clone()).collect()
        };
        let before = versions(&world);
        world.settle(&[CONTROLLER], at(10));
        assert_eq!(versions(&world), before, "all is as it should be");
        for (name, follows) in [("system", "true"), ("workload-low", "false")] {
            let mut level = world.get(&PRIORITY_LEVEL_CONFIGURATION, "", name);
            level["spec"]["limited"]["nominalConcurrencyShares"] = 1.into();
            level["spec"]["limited"]["borrowingLimitPercent"] = 10.into();
            level["metadata"]["annotations"]["apf.kubernetes.io/autoupdate-spec"] = follows.into();
            world.put(level);
        }
        let schema = |name: &str| ObjectKey::new("", name);
        world.remove(&FLOW_SCHEMA, &schema("catch-all"));
        world.remove(&FLOW_SCHEMA, &schema("system-nodes"));
        world.settle(&[CONTROLLER], at(20));
        assert_eq!((shares(&world, "system"), shares(&world, "workload-low")), (json!(30), json!(1)));
        let system = world.get(&PRIORITY_LEVEL_CONFIGURATION, "", "system");
        assert_eq!(system["spec"]["limited"].get("borrowingLimitPercent"), None, "what was added is taken away");
        for name in ["catch-all", "system-nodes"] {
            let made = flows::default(&FLOW_SCHEMA, name).expect("a default");
            assert_eq!(world.get(&FLOW_SCHEMA, "", name)["spec"], *made.spec());
        }
    }
}
