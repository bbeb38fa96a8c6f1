//! The Node object and its Lease, and the directories of deleted volumes.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mainstay_api::{ObjectKey, Status, kinds, object, time};
use mainstay_logic::controllers::persistentvolume::asked;
use mainstay_logic::fencing::LEASE_SECONDS;
use mainstay_logic::kubelet::hold::{Found, HELD_BY, Verdict};
use mainstay_logic::nodes::{LEASES, MACHINE};
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
        if self.agent.is_replaced {
            return true;
        }
        if self.agent.is_registered {
            // The next renewal makes up for one that fails.
            if let Ok(version) = self.renew(around) {
                self.expect_answer(version, around);
            }
        } else {
            self.agent.lease_at = Some(plus(now, 200));
        }
        true
    }

    /// The lease was renewed by a request that was on its way for a while, as its answer is now.
    fn expect_answer(&mut self, version: String, around: &mut Around<'_>) {
        let mut delay = || if around.delays { around.seed.between(0, 6000) } else { 0 };
        let (before, after) = (delay(), delay());
        let sent = self.machine.boottime(plus(around.now, -before));
        self.agent.answer = Some((plus(around.now, after), sent, version));
    }

    /// The answer to a renewal moves the deadlines, unless it is lost.
    pub(super) fn take_answer(&mut self, around: &Around<'_>) -> bool {
        let Some((_, sent, version)) = self.agent.answer.take_if(|(at, ..)| *at <= around.now) else { return false };
        if self.cut_off_until.max(self.deaf_until) <= around.now {
            self.push(sent, around.now);
            self.agent.lock.written(&version, LEASE, sent, self.machine.boottime(around.now));
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
            let _ = self.renew_as_known(around);
        }
        if around.bug == Some(Bug::PushesWithoutRenewal) {
            self.push(self.machine.boottime(now), now);
        }
        true
    }

    fn register(&mut self, around: &mut Around<'_>) -> Result<(), Status> {
        let at = ObjectKey::new("", self.name.as_str());
        let existing = get(around.server, &kinds::NODE, "", &self.name)?;
        let machine = existing.as_ref().map_or("", |node| object::text(node, &["metadata", "annotations", MACHINE]));
        if !machine.is_empty() && machine != self.machine_id && around.bug != Some(Bug::SharesItsName) {
            self.give_up(around);
            return Err(Status::conflict(&kinds::NODE, &self.name));
        }
        if existing.is_none() {
            let node = json!({ "metadata": {
                "name": self.name, "labels": { "kubernetes.io/hostname": self.name },
                "annotations": { volume::VOLUME_ROOT: "/var/lib/mainstay/volumes", MACHINE: self.machine_id },
            } });
            create(around.server, &kinds::NODE, "", &node)?;
        }
        let capacity = json!({ "cpu": "8", "memory": "8Gi", "pods": "110", "ephemeral-storage": "100Gi" });
        let status = json!({ "status": {
            "capacity": capacity, "allocatable": capacity, "conditions": conditions(existing.as_ref(), around.now),
        } });
        patch(around.server, &kinds::NODE, &at, Part::Status, ("", ""), &status).map(|_| ())
    }

    /// What a renewal says.
    fn renewal(&self, around: &Around<'_>) -> Value {
        json!({ "metadata": { "annotations": { HELD_BY: self.holder().to_string() } },
            "spec": { "holderIdentity": self.name, "leaseDurationSeconds": LEASE_SECONDS,
                "renewTime": time::micro(around.now) } })
    }

    /// Renews the Lease as it was written last, as far as this agent has heard; its new version.
    fn renew_as_known(&self, around: &mut Around<'_>) -> Result<String, Status> {
        let at = ObjectKey::new(LEASES, self.name.as_str());
        let trusts = around.bug == Some(Bug::SharesItsName);
        let known = if trusts { Some("") } else { self.agent.lock.version.as_deref() };
        let Some(known) = known else { return Err(Status::conflict(&kinds::LEASE, &self.name)) };
        let renewal = self.renewal(around);
        let written = patch(around.server, &kinds::LEASE, &at, Part::Main, ("", known), &renewal)?;
        Ok(object::resource_version(&written).to_owned())
    }

    /// Renews the Lease, or has it, if it is this agent's to have; as the real node's `lease::renew`. Its version.
    fn renew(&mut self, around: &mut Around<'_>) -> Result<String, Status> {
        match self.renew_as_known(around) {
            Err(status) if matches!(status.code, 404 | 409) => {}
            result => return result,
        }
        let node = get(around.server, &kinds::NODE, "", &self.name)?;
        let node = node.ok_or_else(|| Status::not_found(&kinds::NODE, &self.name))?;
        let lease = get(around.server, &kinds::LEASE, LEASES, &self.name)?;
        let text = |path: &[&str]| lease.as_ref().map_or("", |lease| object::text(lease, path)).to_owned();
        let (held_by, version) = (text(&["metadata", "annotations", HELD_BY]), text(&["metadata", "resourceVersion"]));
        let renewed = text(&["spec", "renewTime"]).parse().ok();
        let found = Found { held_by: &held_by, version: &version, renewed, lease: LEASE };
        let machine = object::text(&node, &["metadata", "annotations", MACHINE]);
        let made = object::text(&node, &["metadata", "creationTimestamp"]).parse().ok();
        let (own, shown) = (self.holder(), self.machine.boottime(around.now));
        let found = lease.is_some().then_some(&found);
        self.agent.lock.watched.is_over.clone_from(&self.takes_over);
        match self.agent.lock.judge(&own, (machine, made), found, shown, around.now) {
            Verdict::Take | Verdict::TakeOver => {}
            Verdict::Watch | Verdict::Elsewhere => return Err(Status::conflict(&kinds::LEASE, &self.name)),
            Verdict::Replaced => {
                self.give_up(around);
                return Err(Status::conflict(&kinds::LEASE, &self.name));
            }
        }
        let mut taken = self.renewal(around);
        taken["metadata"]["ownerReferences"] = owner(&self.name, object::uid(&node));
        if lease.is_some() {
            let at = ObjectKey::new(LEASES, self.name.as_str());
            let written = patch(around.server, &kinds::LEASE, &at, Part::Main, ("", &version), &taken)?;
            return Ok(object::resource_version(&written).to_owned());
        }
        taken["metadata"]["name"] = json!(self.name);
        create(around.server, &kinds::LEASE, LEASES, &taken)?;
        let made = get(around.server, &kinds::LEASE, LEASES, &self.name)?;
        Ok(made.map(|lease| object::resource_version(&lease).to_owned()).unwrap_or_default())
    }

    /// Directories of deleted volumes go when nothing has them mounted; then the finalizer (V3, V8).
    pub(super) fn reclaim(&mut self, around: &mut Around<'_>) -> bool {
        if self.agent.volumes_at.is_some_and(|at| at > around.now) {
            return false;
        }
        let first = self.agent.volumes_at.is_none();
        self.agent.volumes_at = Some(plus(around.now, VOLUME_AGAIN));
        if !self.is_held(around) {
            return first;
        }
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

    pub(super) fn reaches(&self, volume: &PersistentVolume) -> bool {
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
