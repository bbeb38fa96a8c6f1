//! What a node tells the API about its pods.

use k8s_openapi::api::core::v1::Pod;
use mainstay_api::{kinds, object};
use mainstay_logic::kubelet::{Fact, KubeletDecision};
use mainstay_server::api::Part;
use serde_json::{Map, Value};

use super::{Around, Entry, Key, Node, Task, get, patch, plus};
use crate::bugs::Bug;

/// The status fields that the kubelet writes.
const FIELDS: [&str; 13] = [
    "phase",
    "conditions",
    "message",
    "reason",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "startTime",
    "initContainerStatuses",
    "containerStatuses",
    "qosClass",
    "observedGeneration",
];

impl Entry {
    /// Has the status written where it differs; whether the API has it as decided.
    pub(super) fn write_status(&mut self, decision: &KubeletDecision, around: &mut Around<'_>) -> bool {
        if self.view.gone {
            return true;
        }
        let Some(wanted) = changes(&self.view.pod, decision) else { return true };
        if self.written.as_ref() == Some(&wanted) {
            return true;
        }
        if self.running.contains_key(&Key::Status) || self.retry_status_at.is_some() || self.held {
            return false;
        }
        let due = plus(around.now, around.seed.between(0, 20));
        self.running.insert(Key::Status, (due, Task::Status(wanted)));
        false
    }
}

impl Node {
    /// The patch arrives at the server, and its answer here.
    pub(super) fn patch_status(&mut self, place: usize, wanted: Value, around: &mut Around<'_>) {
        let reachable = self.can_talk(around);
        let now = around.now;
        let Some(entry) = self.agent.entries.get_mut(place) else { return };
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let (uid, version) = (text(&entry.view.pod.metadata.uid), text(&entry.view.pod.metadata.resource_version));
        let body = serde_json::json!({ "status": wanted });
        let result = match reachable {
            true => patch(around.server, &kinds::POD, &entry.key, Part::Status, (&uid, &version), &body),
            false => Err(mainstay_api::Status::unavailable("no answer")),
        };
        match result.map(serde_json::from_value::<Pod>) {
            Ok(Ok(pod)) => {
                entry.take_pod(pod, now);
                entry.written = Some(wanted);
            }
            // The bug: it goes on with what it was told.
            Err(status) if status.code < 500 && around.bug == Some(Bug::TrustsStaleList) => entry.written = Some(wanted),
            Err(status) if matches!(status.code, 404 | 409) => drop(entry.running.insert(Key::Verify, (now, Task::Verify))),
            Ok(Err(_)) | Err(_) => entry.retry_status_at = Some(plus(now, 1000)),
        }
    }

    /// Asks whether this very pod is still there, again and again until there is an answer.
    pub(super) fn verify(&mut self, place: usize, around: &mut Around<'_>) {
        let reachable = self.can_talk(around);
        let now = around.now;
        let Some(entry) = self.agent.entries.get_mut(place) else { return };
        let found = if reachable { get(around.server, &kinds::POD, &entry.key.namespace, &entry.key.name).ok() } else { None };
        let Some(found) = found else {
            entry.running.insert(Key::Verify, (plus(now, 1000), Task::Verify));
            return;
        };
        entry.held = false;
        match found.filter(|pod| object::uid(pod) == entry.view.uid()).map(serde_json::from_value::<Pod>) {
            Some(Ok(pod)) => entry.take_pod(pod, now),
            Some(Err(_)) => {}
            None => drop(entry.view.apply(Fact::Gone, now)),
        }
    }
}

/// What a merge patch must change.
fn changes(pod: &Pod, decision: &KubeletDecision) -> Option<Value> {
    let wanted = serde_json::to_value(&decision.status).ok()?;
    let current = serde_json::to_value(&pod.status).ok()?;
    let mut changed = Map::new();
    for field in FIELDS {
        let (new, old) = (wanted.get(field).unwrap_or(&Value::Null), current.get(field).unwrap_or(&Value::Null));
        if new != old {
            changed.insert(field.to_owned(), new.clone());
        }
    }
    (!changed.is_empty()).then_some(Value::Object(changed))
}
