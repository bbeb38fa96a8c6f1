//! The Node object and its Lease, and the directories of deleted volumes.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mainstay_api::{ObjectKey, kinds, object, time};
use mainstay_logic::controllers::persistentvolume::asked;
use mainstay_logic::fencing::LEASE_SECONDS;
use mainstay_logic::volume;
use mainstay_logic::volume::RECYCLED;
use mainstay_server::api::{Part, key};
use serde_json::{Value, json};

use super::{Around, Node, create, get, owner, patch, plus};
use crate::bugs::Bug;
use crate::runtime::Directory;

/// How often the lease is renewed, milliseconds.
const LEASE_EVERY: i64 = 10_000;
/// How long it is.
const LEASE: Duration = Duration::from_secs(LEASE_SECONDS as u64);
/// After so many renewals the status is written again.
const STATUS_EVERY: u32 = 30;
/// How soon a volume that could not be removed is looked at again, milliseconds.
const VOLUME_AGAIN: i64 = 5000;

impl Node {
    pub(super) fn heartbeat(&mut self, around: &mut Around<'_>) -> bool {
        let now = around.now;
        if self.agent.lease_at.is_some_and(|at| at > now) {
            return false;
        }
        self.agent.lease_at = Some(plus(now, LEASE_EVERY));
        self.agent.round += 1;
        if !self.agent.is_registered || self.agent.round.is_multiple_of(STATUS_EVERY) {
            self.agent.is_registered = self.register(around).is_ok();
        }
        if self.agent.is_registered {
            // The next renewal makes up for one that fails.
            if self.renew(around).is_ok() {
                self.expect_answer(around);
            }
        } else {
            self.agent.lease_at = Some(plus(now, 200));
        }
        true
    }

    /// The lease was renewed by a request that was on its way for a while, as its answer is now.
    fn expect_answer(&mut self, around: &mut Around<'_>) {
        let mut delay = || if around.delays { around.seed.between(0, 6000) } else { 0 };
        let (before, after) = (delay(), delay());
        let sent = self.machine.boottime(plus(around.now, -before));
        self.agent.answer = Some((plus(around.now, after), sent));
    }

    /// The answer to a renewal moves the deadlines, unless it is lost.
    pub(super) fn take_answer(&mut self, around: &Around<'_>) -> bool {
        let Some((_, sent)) = self.agent.answer.filter(|(at, _)| *at <= around.now) else { return false };
        self.agent.answer = None;
        if self.cut_off_until.max(self.deaf_until) <= around.now {
            self.push(sent, around.now);
        }
        true
    }

    fn push(&mut self, sent: Duration, now: Timestamp) {
        let acknowledged = self.machine.boottime(now);
        self.machine.renewals = self.machine.renewals.renewed(sent, acknowledged, LEASE);
    }

    /// What a node does that is cut off: where only answers are lost, it goes on renewing its lease.
    pub(super) fn unheard(&mut self, around: &mut Around<'_>) -> bool {
        let now = around.now;
        if !self.agent.is_registered || self.agent.lease_at.is_some_and(|at| at > now) {
            return false;
        }
        self.agent.lease_at = Some(plus(now, LEASE_EVERY));
        if self.cut_off_until <= now && around.server.up.is_some() {
            let _ = self.renew(around);
        }
        if around.bug == Some(Bug::PushesWithoutRenewal) {
            self.push(self.machine.boottime(now), now);
        }
        true
    }

    fn register(&self, around: &mut Around<'_>) -> Result<(), mainstay_api::Status> {
        let at = ObjectKey::new("", self.name.as_str());
        let existing = get(around.server, &kinds::NODE, "", &self.name)?;
        if existing.is_none() {
            let node = json!({ "metadata": {
                "name": self.name, "labels": { "kubernetes.io/hostname": self.name },
                "annotations": { volume::VOLUME_ROOT: "/var/lib/mainstay/volumes" },
            } });
            create(around.server, &kinds::NODE, "", &node)?;
        }
        let capacity = json!({ "cpu": "8", "memory": "8Gi", "pods": "110", "ephemeral-storage": "100Gi" });
        let status = json!({ "status": {
            "capacity": capacity, "allocatable": capacity, "conditions": conditions(existing.as_ref(), around.now),
        } });
        patch(around.server, &kinds::NODE, &at, Part::Status, ("", ""), &status).map(|_| ())
    }

    fn renew(&self, around: &mut Around<'_>) -> Result<(), mainstay_api::Status> {
        let at = ObjectKey::new("kube-node-lease", self.name.as_str());
        let spec = json!({ "holderIdentity": self.name, "leaseDurationSeconds": LEASE_SECONDS,
            "renewTime": time::micro(around.now) });
        match patch(around.server, &kinds::LEASE, &at, Part::Main, ("", ""), &json!({ "spec": spec })) {
            Err(status) if status.code == 404 => {}
            result => return result.map(|_| ()),
        }
        let Some(node) = get(around.server, &kinds::NODE, "", &self.name)? else { return Ok(()) };
        let owners = owner(&self.name, object::uid(&node));
        let lease = json!({ "metadata": { "name": self.name, "ownerReferences": owners }, "spec": spec });
        create(around.server, &kinds::LEASE, "kube-node-lease", &lease)
    }

    /// Directories of deleted volumes go when nothing has them mounted; then the finalizer (V3, V8).
    pub(super) fn reclaim(&mut self, around: &mut Around<'_>) -> bool {
        if self.agent.volumes_at.is_some_and(|at| at > around.now) {
            return false;
        }
        let first = self.agent.volumes_at.is_none();
        self.agent.volumes_at = Some(plus(around.now, VOLUME_AGAIN));
        let Some(up) = &around.server.up else { return false };
        let Ok(page) = up.api.store.range(&key::prefix(&kinds::PERSISTENT_VOLUME, None), None, usize::MAX, None) else {
            return first;
        };
        let volumes: Vec<PersistentVolume> =
            page.entries.iter().filter_map(|entry| serde_json::from_slice(&entry.value).ok()).collect();
        let mut busy = first;
        for deleted in &volumes {
            busy |= self.is_to_reclaim(deleted) && self.reclaim_one(deleted, around);
            busy |= self.recycle_one(deleted, around);
        }
        busy
    }

    fn is_to_reclaim(&self, deleted: &PersistentVolume) -> bool {
        let made_on = volume::annotation(&deleted.metadata, volume::MADE_ON);
        // Made and not noted, by an agent that ended between the two: only a node that it may be on knows.
        let here = if made_on.is_empty() { self.reaches(deleted) } else { made_on == self.name };
        let finalizers = deleted.metadata.finalizers.as_deref().unwrap_or_default();
        deleted.metadata.deletion_timestamp.is_some()
            && here
            && finalizers.iter().any(|held| held == volume::LOCAL_PATH_FINALIZER)
    }

    fn reaches(&self, volume: &PersistentVolume) -> bool {
        let labels = BTreeMap::from([("kubernetes.io/hostname".to_owned(), self.name.clone())]);
        let metadata = ObjectMeta { name: Some(self.name.clone()), labels: Some(labels), ..ObjectMeta::default() };
        volume::reaches(&core::Node { metadata, ..core::Node::default() }, volume)
    }

    /// A Released volume that is to be emptied here, unless something has it mounted (V3).
    fn recycle_one(&mut self, released: &PersistentVolume, around: &mut Around<'_>) -> bool {
        let Some(claim) = asked(released, &self.name) else { return false };
        let name = released.metadata.name.clone().unwrap_or_default();
        let used = self.machine.mounts.values().any(|mount| mount.volume == name);
        if used && around.bug != Some(Bug::RecyclesInUse) {
            return false;
        }
        if let Some(directory) = self.machine.directories.get_mut(&name) {
            *directory = Directory::default();
        }
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let (uid, version) = (text(&released.metadata.uid), text(&released.metadata.resource_version));
        let noted = json!({ "metadata": { "annotations": { RECYCLED: claim } } });
        let at = ObjectKey::new("", name.as_str());
        patch(around.server, &kinds::PERSISTENT_VOLUME, &at, Part::Main, (&uid, &version), &noted).is_ok()
    }

    fn reclaim_one(&mut self, deleted: &PersistentVolume, around: &mut Around<'_>) -> bool {
        let name = deleted.metadata.name.clone().unwrap_or_default();
        let mut finalizers = deleted.metadata.finalizers.clone().unwrap_or_default();
        let used = self.machine.mounts.values().any(|mount| mount.volume == name);
        let is_asked = around.bug != Some(Bug::RemovesMounted);
        if finalizers.iter().any(|held| held == volume::PV_PROTECTION) || (used && is_asked) {
            return false;
        }
        let policy = deleted.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
        if policy == Some("Delete") && around.bug != Some(Bug::KeepsDirectories) {
            self.machine.directories.remove(&name);
        }
        finalizers.retain(|held| held != volume::LOCAL_PATH_FINALIZER);
        let change = json!({ "metadata": { "finalizers": finalizers } });
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let (uid, version) = (text(&deleted.metadata.uid), text(&deleted.metadata.resource_version));
        let at = ObjectKey::new("", name.as_str());
        patch(around.server, &kinds::PERSISTENT_VOLUME, &at, Part::Main, (&uid, &version), &change).is_ok()
    }
}

/// The condition of a healthy kubelet; the others stay.
fn conditions(existing: Option<&Value>, now: Timestamp) -> Value {
    let before =
        existing.and_then(|node| object::at(node, &["status", "conditions"])).and_then(Value::as_array).cloned();
    let mut all = before.unwrap_or_default();
    let names = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"];
    all.retain(|condition| !names.contains(&object::text(condition, &["type"])));
    for name in names {
        let value = if name == "Ready" { "True" } else { "False" };
        all.push(json!({ "type": name, "status": value, "reason": "Kubelet", "message": "",
            "lastHeartbeatTime": time::rfc3339(now), "lastTransitionTime": time::rfc3339(now) }));
    }
    Value::Array(all)
}
