//! What a node tells the API about its pods.

use k8s_openapi::api::core::v1::Pod;
use mainstay_api::{kinds, object};
use mainstay_logic::kubelet::{End, Fact, Key, Task};
use mainstay_server::api::Part;
use serde_json::Value;

use super::{Around, Node, get, patch, plus};
use crate::bugs::Bug;

/// How soon what waits is looked at again, milliseconds.
pub(super) const LOOK_AGAIN: i64 = 1000;

impl Node {
    /// The patch arrives at the server, and its answer here.
    pub(super) fn write_status(&mut self, index: usize, wanted: &Value, around: &mut Around<'_>) {
        let (reachable, is_replaced) = (self.can_talk(around), self.agent.is_replaced);
        let is_held = self.is_held(around);
        let now = around.now;
        let Some(entry) = self.agent.entries.get_mut(index) else { return };
        if is_replaced {
            entry.apply(Fact::Replaced, now);
            return entry.agenda.finish(&Key::Status, End::Done, now);
        }
        if !is_held {
            // As the real node: it waits until this agent is the node for certain.
            entry.running.insert(Key::Status, (plus(now, LOOK_AGAIN), Task::WriteStatus(wanted.clone())));
            return;
        }
        let preconditions = match around.bug {
            Some(Bug::ForgetsUids) => ("", ""),
            _ => (object::uid(wanted), object::resource_version(wanted)),
        };
        let body = serde_json::json!({ "status": wanted.get("status") });
        let result = match reachable {
            true => patch(around.server, &kinds::POD, &entry.key, Part::Status, preconditions, &body),
            false => Err(mainstay_api::Status::unavailable("no answer")),
        };
        let end = match result.map(serde_json::from_value::<Pod>) {
            Ok(Ok(pod)) => {
                entry.take_pod(pod, now);
                End::Done
            }
            // The bug: it goes on with what it was told.
            Err(status) if status.code < 500 && around.bug == Some(Bug::TrustsStaleList) => End::Done,
            Err(status) if matches!(status.code, 404 | 409) => {
                entry.verify(now);
                End::Refused
            }
            Ok(Err(_)) | Err(_) => End::Failed,
        };
        entry.agenda.finish(&Key::Status, end, now);
    }

    /// Asks whether this very pod is still there, again and again until there is an answer.
    pub(super) fn verify(&mut self, index: usize, around: &mut Around<'_>) {
        let (reachable, is_replaced) = (self.can_talk(around), self.agent.is_replaced);
        let now = around.now;
        let Some(entry) = self.agent.entries.get_mut(index) else { return };
        if is_replaced {
            // The pods of this node's name are another machine's, which tells of them.
            entry.apply(Fact::Replaced, now);
            return entry.agenda.finish(&Key::Verify, End::Done, now);
        }
        let found =
            if reachable { get(around.server, &kinds::POD, &entry.key.namespace, &entry.key.name).ok() } else { None };
        let Some(found) = found else {
            entry.running.insert(Key::Verify, (plus(now, LOOK_AGAIN), Task::Verify));
            return;
        };
        match found.filter(|pod| object::uid(pod) == entry.agenda.view.uid()).map(serde_json::from_value::<Pod>) {
            Some(Ok(pod)) => entry.take_pod(pod, now),
            Some(Err(_)) => {}
            None => entry.apply(Fact::Gone, now),
        }
        entry.agenda.finish(&Key::Verify, End::Done, now);
    }
}
