//! One action, done: what the runtime, the disk and the volumes make of it, as facts.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use mainstay_api::{ObjectKey, kinds, object};
use mainstay_logic::fencing::Policy;
use mainstay_logic::kubelet::{Action, ContainerFact, End, Fact, Key, Life, ProbeOutcome, Sandbox, Task};
use mainstay_logic::{fencing, pods, volume};
use mainstay_server::api::{self, DeleteOptions, Part};
use serde_json::{Value, json};

use super::status::LOOK_AGAIN;
use super::{Around, Node, get, patch, plus};
use crate::bugs::Bug;
use crate::monkeys::STATIC;
use crate::runtime::{Container, Directory, Mount, Sandbox as Made};

impl Node {
    /// A task has come to its end.
    #[expect(clippy::too_many_lines, reason = "an arm for each action")]
    pub(super) fn finish(&mut self, index: usize, key: Key, task: Task, around: &mut Around<'_>) {
        let action = match task {
            Task::WriteStatus(wanted) => return self.write_status(index, &wanted, around),
            Task::Verify => return self.verify(index, around),
            Task::Act(action) => action,
        };
        let now = around.now;
        let Some(entry) = self.agent.entries.get(index) else { return };
        let uid = entry.agenda.view.uid().to_owned();
        let fails = around.faults && around.seed.one_in(40);
        if matches!(action, Action::StartContainer { .. }) && !self.may_start(index, &uid, around) {
            return self.end(index, &key, End::Done, now);
        }
        let Some(entry) = self.agent.entries.get(index) else { return };
        let fact = match action {
            Action::Remember => {
                let pod = entry.agenda.view.pod.clone();
                self.machine.begun.entry(uid.clone()).or_insert(pod);
                if !fails {
                    self.machine.tombstoned.insert(uid);
                }
                Some(Fact::Remembered(!fails))
            }
            Action::EnsureVolume { name } => {
                let result = if fails { Err("injected".to_owned()) } else { self.mount(index, &uid, &name, around) };
                Some(Fact::Volume { name, result: result.map(|()| None) })
            }
            Action::EnsureSandbox if fails => Some(Fact::SandboxFailed("injected".to_owned())),
            Action::EnsureSandbox => {
                let made = self.make_sandbox(index, &uid, now);
                let seconds = self.machine.sandboxes.get(&uid).and_then(|sandbox| sandbox.deadline);
                if let (Some(seconds), Some(entry)) = (seconds, self.agent.entries.get_mut(index)) {
                    entry.apply(Fact::Deadline(seconds), now);
                }
                Some(Fact::Sandbox(made))
            }
            Action::EnsureImage { container, image, .. } => {
                let result = if image.starts_with("bad") || fails {
                    Err(("ErrImagePull", "no such image".to_owned()))
                } else {
                    Ok((image.clone(), String::new()))
                };
                Some(Fact::Image { container, image, result })
            }
            Action::StartContainer { container, .. } if fails => {
                Some(Fact::StartFailed { container, reason: "RunContainerError", message: "injected".to_owned() })
            }
            Action::StartContainer { container, attempt, image_id } => {
                let key = entry.key.clone();
                self.start(key, &uid, &container, attempt, image_id, around);
                self.learn_containers(&uid, now);
                Some(Fact::Started { container, attempt })
            }
            Action::ResizeContainer { .. } => None,
            Action::PostStart { container, attempt } => Some(Fact::PostStart { container, attempt, result: Ok(()) }),
            Action::RunProbe { container, attempt, kind } => {
                let ready = self.machine.containers.get(&uid).into_iter().flatten().any(|running| {
                    running.fact.name == container
                        && running.fact.attempt == attempt
                        && running.ready_at <= now
                        && running.fact.is_alive()
                });
                let outcome = if ready { ProbeOutcome::Success } else { ProbeOutcome::Failure("not yet".to_owned()) };
                Some(Fact::Probe { container, attempt, kind, began: now, outcome })
            }
            Action::StopContainer { .. } => {
                self.machine.tick(now);
                self.learn_containers(&uid, now);
                None
            }
            Action::RemoveContainer { container, attempt } => {
                if let Some(all) = self.machine.containers.get_mut(&uid) {
                    all.retain(|made| {
                        made.fact.name != container || made.fact.attempt != attempt || made.fact.is_alive()
                    });
                }
                self.learn_containers(&uid, now);
                None
            }
            Action::RemoveSandbox => {
                self.machine.sandboxes.remove(&uid);
                Some(Fact::Sandbox(Sandbox::Absent))
            }
            Action::Unmount if fails => return self.end(index, &key, End::Failed, now),
            Action::Unmount => {
                self.machine.mounts.retain(|(of, _), _| *of != uid);
                Some(Fact::Unmounted)
            }
            Action::ConfirmDeletion => return self.confirm(index, &uid, around),
            Action::Forget => {
                self.machine.begun.remove(&uid);
                self.machine.tombstoned.remove(&uid);
                self.machine.containers.remove(&uid);
                if let Some(entry) = self.agent.entries.get_mut(index) {
                    entry.ended = true;
                }
                return;
            }
        };
        if let (Some(fact), Some(entry)) = (fact, self.agent.entries.get_mut(index)) {
            entry.apply(fact, now);
        }
        self.end(index, &key, End::Done, now);
    }

    fn end(&mut self, index: usize, key: &Key, end: End, now: Timestamp) {
        if let Some(entry) = self.agent.entries.get_mut(index) {
            entry.agenda.finish(key, end, now);
        }
    }

    /// Notes the pod before anything of it is made.
    fn note(&mut self, index: usize, uid: &str) {
        if let Some(entry) = self.agent.entries.get(index) {
            let pod = entry.agenda.view.pod.clone();
            self.machine.begun.entry(uid.to_owned()).or_insert(pod);
        }
    }

    fn make_sandbox(&mut self, index: usize, uid: &str, now: Timestamp) -> Sandbox {
        self.note(index, uid);
        let ip = self.machine.next_ip(self.index);
        let Some(entry) = self.agent.entries.get(index) else { return Sandbox::Absent };
        let key = entry.key.clone();
        let pod = &entry.agenda.view.pod;
        // As the real node: what was noted stays. Volumes of claims here live on their nodes.
        let is_pinned = !pods::claim_names(pod).is_empty();
        let wanted = || fencing::wanted(pod, Policy::ByDefault, is_pinned, fencing::LEASE_SECONDS);
        let deadline = fencing::noted(pod).or_else(wanted);
        let made = self.machine.sandboxes.entry(uid.to_owned()).or_insert(Made { key, made_at: now, ip, deadline });
        Sandbox::Ready { ip: Some(made.ip.clone()), made_at: Some(made.made_at) }
    }

    fn start(
        &mut self,
        key: ObjectKey,
        uid: &str,
        container: &str,
        attempt: u32,
        image: String,
        around: &mut Around<'_>,
    ) {
        let now = around.now;
        let all = self.machine.containers.entry(uid.to_owned()).or_default();
        if all.iter().any(|made| made.fact.name == container && made.fact.attempt == attempt) {
            return;
        }
        let crashes = image.starts_with("crash").then(|| (plus(now, around.seed.between(200, 2000)), 1));
        let (name, life) = (container.to_owned(), Life::Running { since: now });
        let fact = ContainerFact {
            name,
            attempt,
            image: image.clone(),
            image_id: image,
            sandbox_made_at: None,
            user: None,
            life,
        };
        let seconds = self.machine.sandboxes.get(uid).and_then(|sandbox| sandbox.deadline);
        let deadline = seconds.map(|seconds| (seconds, self.machine.renewals.deadline(seconds)));
        all.push(Container { key, fact, ends: crashes, ready_at: plus(now, around.seed.between(0, 2000)), deadline });
        self.machine.starts += 1;
        let volumes: Vec<String> = self
            .machine
            .mounts
            .iter()
            .filter(|((of, _), _)| of == uid)
            .map(|(_, mount)| mount.volume.clone())
            .collect();
        for name in volumes {
            if let Some(directory) = self.machine.directories.get_mut(&name) {
                directory.starts += 1;
            }
        }
    }

    /// Whether a container of the pod may start: its deadline is ahead, and since the lease was renewed again the
    /// server has said that the pod is still there. As the real node's `deadline::may_start`.
    fn may_start(&mut self, index: usize, uid: &str, around: &mut Around<'_>) -> bool {
        let seconds = self.machine.sandboxes.get(uid).and_then(|sandbox| sandbox.deadline);
        let Some(pod) = self.agent.entries.get(index).map(|entry| &entry.agenda.view.pod) else { return false };
        let shown = self.machine.boottime(around.now);
        let is_node = !self.agent.is_replaced && self.agent.lock.may_begin(pod, seconds, shown);
        let trusts = matches!(
            around.bug,
            Some(Bug::SharesItsName | Bug::StartsWithoutAsking | Bug::TrustsStaleList | Bug::PushesWithoutRenewal)
        );
        if !is_node && !trusts {
            return false;
        }
        let Some(seconds) = seconds else { return true };
        let renewals = self.machine.renewals;
        if renewals.since.is_zero() || renewals.deadline(seconds) <= self.machine.boottime(around.now) {
            return false;
        }
        let trusts = matches!(around.bug, Some(Bug::StartsWithoutAsking | Bug::TrustsStaleList));
        if trusts || self.agent.asked.get(uid) == Some(&renewals.since) {
            return true;
        }
        if !self.can_talk(around) {
            return false;
        }
        let Some(entry) = self.agent.entries.get_mut(index) else { return false };
        let found = get(around.server, &kinds::POD, &entry.key.namespace, &entry.key.name);
        let Ok(found) = found else { return false };
        let found = found.filter(|pod| object::uid(pod) == uid);
        match found.map(serde_json::from_value::<Pod>) {
            Some(Ok(pod)) => {
                let is_to_go = pod.metadata.deletion_timestamp.is_some();
                entry.take_pod(pod, around.now);
                if is_to_go {
                    return false;
                }
                self.agent.asked.insert(uid.to_owned(), renewals.since);
                true
            }
            Some(Err(_)) => false,
            None => {
                entry.apply(Fact::Gone, around.now);
                false
            }
        }
    }

    /// A volume of the pod: its own, or its claim's, when claim and volume name each other by uid (V1).
    fn mount(&mut self, index: usize, uid: &str, name: &str, around: &mut Around<'_>) -> Result<(), String> {
        self.note(index, uid);
        let Some(entry) = self.agent.entries.get(index) else { return Ok(()) };
        let spec = entry.agenda.view.pod.spec.clone().unwrap_or_default();
        let claim = spec
            .volumes
            .iter()
            .flatten()
            .find(|volume| volume.name == name)
            .and_then(|volume| volume.persistent_volume_claim.clone());
        let at = (uid.to_owned(), name.to_owned());
        let Some(claim) = claim else {
            self.machine.mounts.entry(at).or_insert(Mount {
                volume: String::new(),
                claim_uid: String::new(),
                modes: Vec::new(),
            });
            return Ok(());
        };
        if self.machine.mounts.contains_key(&at) {
            return Ok(());
        }
        if !self.can_talk(around) {
            return Err("the server does not answer".to_owned());
        }
        if !self.is_held(around) {
            return Err("the node's lease is not held by this agent now".to_owned());
        }
        let read = |kind, namespace: &str, name: &str| {
            let found = get(around.server, kind, namespace, name).map_err(|status| status.message)?;
            found.ok_or_else(|| format!("{name} not found"))
        };
        let found = read(&kinds::PERSISTENT_VOLUME_CLAIM, &entry.key.namespace, &claim.claim_name)?;
        // As the real node: a pod that was there before its claim was told to go still gets it.
        let deleted = mainstay_api::time::parse(object::text(&found, &["metadata", "deletionTimestamp"]));
        let made = entry.agenda.view.pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
        if deleted.is_some_and(|deleted| made.is_none_or(|made| made > deleted)) {
            return Err("the claim is being deleted".to_owned());
        }
        let volume_name = object::text(&found, &["spec", "volumeName"]).to_owned();
        if volume_name.is_empty() {
            return Err("the claim is not bound".to_owned());
        }
        let bound = read(&kinds::PERSISTENT_VOLUME, "", &volume_name)?;
        let typed = serde_json::from_value(bound.clone()).map_err(|error| error.to_string())?;
        if !self.reaches(&typed) && around.bug != Some(Bug::PlacesAnywhere) {
            return Err(format!("volume {volume_name:?} is not on this node"));
        }
        let claim_uid = object::uid(&found).to_owned();
        if object::text(&bound, &["spec", "claimRef", "uid"]) != claim_uid {
            return Err("the volume is another claim's".to_owned());
        }
        let path = match around.bug {
            // A folder named by namespace and name, as other provisioners have it.
            Some(Bug::KeepsDirectories) => claim.claim_name.clone(),
            _ => volume_name.clone(),
        };
        self.ensure_directory(&bound, &volume_name, &path, &claim_uid, around)?;
        let modes = object::at(&found, &["spec", "accessModes"]).and_then(Value::as_array).into_iter().flatten();
        let modes: Vec<String> = modes.filter_map(Value::as_str).map(str::to_owned).collect();
        // As the real node: also for pods that no scheduler has placed, or whose predecessor left the API by force.
        let is_another = |((of, _), mount): (&(String, String), &Mount)| of != uid && mount.claim_uid == claim_uid;
        let is_alone = !modes.iter().any(|mode| mode == "ReadWriteOncePod");
        if !is_alone && around.bug != Some(Bug::SharesClaims) && self.machine.mounts.iter().any(is_another) {
            return Err("the claim is for one pod, and another one has it".to_owned());
        }
        self.machine.mounts.insert(at, Mount { volume: path, claim_uid, modes });
        Ok(())
    }

    /// Made once, on first use, and noted on the volume; one that is noted and missing is lost data (V5).
    fn ensure_directory(
        &mut self,
        bound: &Value,
        volume_name: &str,
        path: &str,
        claim_uid: &str,
        around: &mut Around<'_>,
    ) -> Result<(), String> {
        if object::text(bound, &["spec", "storageClassName"]) == STATIC {
            // A folder of the machine's: whoever has it first, has it until it was emptied.
            let directory = self.machine.directories.entry(path.to_owned()).or_default();
            if directory.claim_uid.is_empty() {
                claim_uid.clone_into(&mut directory.claim_uid);
            }
            return Ok(());
        }
        let made_on =
            object::at(bound, &["metadata", "annotations", volume::MADE_ON]).and_then(Value::as_str).unwrap_or("");
        if made_on.is_empty() {
            self.machine
                .directories
                .entry(path.to_owned())
                .or_insert(Directory { claim_uid: claim_uid.to_owned(), starts: 0 });
            let at = ObjectKey::new("", volume_name);
            let noted = json!({ "metadata": { "annotations": { volume::MADE_ON: self.name } } });
            let preconditions = (object::uid(bound), object::resource_version(bound));
            patch(around.server, &kinds::PERSISTENT_VOLUME, &at, Part::Main, preconditions, &noted)
                .map_err(|status| status.message)?;
        }
        if made_on.is_empty() || (made_on == self.name && self.machine.directories.contains_key(path)) {
            return Ok(());
        }
        Err(format!("volume {volume_name} was made on {made_on:?} and is not here"))
    }

    /// Whether this agent may say that a pod of its node has ended. As the real node's `Hold::speaks_for`.
    fn speaks_for(&self, index: usize, uid: &str, around: &Around<'_>) -> bool {
        let Some(pod) = self.agent.entries.get(index).map(|entry| &entry.agenda.view.pod) else { return false };
        let decided = self.machine.sandboxes.get(uid).and_then(|sandbox| sandbox.deadline);
        let (seconds, shown) = (decided.or_else(|| fencing::noted(pod)), self.machine.boottime(around.now));
        let is_node = self.is_held(around) && self.agent.lock.may_begin(pod, seconds, shown);
        is_node || around.bug.is_some()
    }

    /// The last step of S2: the API object may go.
    fn confirm(&mut self, index: usize, uid: &str, around: &mut Around<'_>) {
        let now = around.now;
        let (reachable, is_replaced) = (self.can_talk(around), self.agent.is_replaced);
        let speaks_for = self.speaks_for(index, uid, around);
        let Some(entry) = self.agent.entries.get_mut(index) else { return };
        if is_replaced {
            entry.apply(Fact::Replaced, now);
            return entry.agenda.finish(&Key::Confirm, End::Done, now);
        }
        if !speaks_for {
            entry.running.insert(Key::Confirm, (plus(now, LOOK_AGAIN), Task::Act(Action::ConfirmDeletion)));
            return;
        }
        let uid = (around.bug != Some(Bug::ForgetsUids)).then(|| uid.to_owned());
        let options = DeleteOptions { grace: Some(0), uid, ..DeleteOptions::default() };
        let key = entry.key.clone();
        let result = match reachable {
            true => around
                .server
                .write(|batch| api::delete(batch, &kinds::POD, &key.namespace, &key.name, &options))
                .map(|_| ()),
            false => Err(mainstay_api::Status::unavailable("no answer")),
        };
        let end = match result {
            Ok(()) => End::Done,
            Err(status) if matches!(status.code, 404 | 409) => {
                entry.verify(now);
                End::Refused
            }
            Err(_) => End::Failed,
        };
        entry.agenda.finish(&Key::Confirm, end, now);
    }
}
