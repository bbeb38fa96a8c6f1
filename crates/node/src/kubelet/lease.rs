//! This node's Lease, held by one agent (see [`mainstay_logic::kubelet::hold`]).

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use mainstay_api::{kinds, object};
use mainstay_client::{Error, PatchType};
use mainstay_logic::kubelet::hold::{Found, HELD_BY, Holder, Lock, Verdict, Watched};
use mainstay_logic::nodes::{LEASES, MACHINE};
use mainstay_runtime::fence;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::Kubelet;

/// The lease of a Lease that does not say how long it is.
const UPSTREAMS: i64 = 40;
/// The place of an agent whose node no copy of its folder can be.
const ALONE: &str = "-";
/// How soon it is looked again whether a deadline of a former machine's has passed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What this agent knows of its Lease.
#[derive(Default)]
pub struct Hold {
    own: Holder,
    state: Mutex<Lock>,
    /// Another machine is this node: nothing begins here any more, and what runs ends.
    replaced: watch::Sender<bool>,
    /// Changes with every renewal, and when another machine is this node.
    moved: watch::Sender<()>,
    /// It was said that the Lease is held elsewhere.
    is_told: AtomicBool,
}

/// Why the Lease was not renewed.
#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    #[error(transparent)]
    Api(#[from] Error),
    #[error("an agent elsewhere has this node's lease; whether it lives is being seen")]
    Watching,
    #[error("another machine is this node")]
    Replaced,
    #[error("an agent elsewhere has this node's lease, and what it ran may run still")]
    Elsewhere,
}

impl RenewError {
    /// There is no Node.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Api(error) if error.is_not_found())
    }
}

impl Hold {
    /// For an agent that begins now, on this machine's folder; none where the store is on the same machine, and a copy
    /// of the folder would be another cluster. `is_over` is the run of an agent elsewhere, of which a person says that
    /// all that it ran has ended (`--take-over`).
    pub fn new(machine: &str, folder: Option<&Path>, is_over: &str) -> Self {
        let state = Lock { watched: Watched::told(is_over), ..Lock::default() };
        Self { own: holder(machine, folder), state: Mutex::new(state), ..Self::default() }
    }

    /// Whether another machine is this node.
    pub fn is_replaced(&self) -> bool {
        *self.replaced.borrow()
    }

    /// Changes once, when another machine is this node.
    pub fn replaced(&self) -> watch::Receiver<bool> {
        self.replaced.subscribe()
    }

    /// Of an agent without the kubelet's loops, whose node no other agent can be: it is held, and nobody renews it.
    pub fn undisputed() -> Self {
        let state = Lock { taken: Some(fence::boottime()), sure_until: Duration::MAX, ..Lock::default() };
        Self { state: Mutex::new(state), ..Self::default() }
    }

    /// Whether this agent is the node for certain now: it has the Lease, and renewed it so short a time ago that nobody
    /// else can have taken it.
    pub fn is_held(&self) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_held(fence::boottime()) && !self.is_replaced()
    }

    /// Waits until this agent is the node for certain; false where another machine is.
    pub async fn held(&self) -> bool {
        let mut moved = self.moved.subscribe();
        loop {
            // Marked before the look: what changes from here on wakes.
            moved.mark_unchanged();
            if self.is_replaced() {
                return false;
            }
            if self.is_held() {
                return true;
            }
            if moved.changed().await.is_err() {
                return false;
            }
        }
    }

    /// Waits until another machine is this node.
    pub async fn given_up(&self) {
        let mut replaced = self.replaced();
        // The sender is ours: it cannot be gone.
        let _ = replaced.wait_for(|replaced| *replaced).await;
    }

    /// Another machine is this node: said once, in words that help.
    pub fn give_up(&self, node: &str) {
        if !self.replaced.send_replace(true) {
            self.moved.send_replace(());
            tracing::error!(
                node,
                "another machine is this node now: this one's pods end, and it starts nothing. `mainstay leave \
                 --force` here, then `mainstay join` under another --node-name; or `kubectl delete node` if it is \
                 this machine that is to be the node, and start it again"
            );
        }
    }

    /// Whether the Lease is held by an agent of this folder elsewhere, which may be cut off.
    pub(super) fn is_elsewhere(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).is_elsewhere
    }

    /// Whether the Lease's holder is an agent of this folder elsewhere of which nobody said that it is over.
    pub fn is_of_another(&self, held_by: &str) -> bool {
        let is_over = |holder: &Holder| {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.watched.is_over == holder.run
        };
        Holder::parse(held_by).is_some_and(|holder| self.own.is_elsewhere(&holder) && !is_over(&holder))
    }

    /// The Lease is held elsewhere: said once, in words that help.
    fn wait_for_a_word(&self, node: &str, held_by: &str) {
        if !self.is_told.swap(true, Ordering::Relaxed) {
            let run = Holder::parse(held_by).map(|holder| holder.run).unwrap_or_default();
            tracing::error!(
                node,
                "this node was last heard of from another machine or folder, of which this data folder is a copy, and \
                 what it ran may run still: nothing begins here. If it has ended for good, start once with \
                 --take-over={run}, or `kubectl delete node {node}`; if it is to go on there, `mainstay leave --force` \
                 here"
            );
        }
    }

    /// Waits until what a former machine of the name ran of the pod has ended, as far as can be known, and this agent
    /// is the node for certain: from then on it may say that the pod has ended. False where another machine is it.
    pub(super) async fn speaks_for(&self, pod: &Pod, seconds: Option<u32>) -> bool {
        loop {
            if !self.held().await {
                return false;
            }
            if self.may_begin(pod, seconds) {
                return true;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Whether something of a pod may begin: this agent is the node, and what a former machine of the name ran of the
    /// pod has ended. `seconds` is the pod's deadline, where it has one.
    pub(super) fn may_begin(&self, pod: &Pod, seconds: Option<u32>) -> bool {
        if self.is_replaced() {
            return false;
        }
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.may_begin(pod, seconds, fence::boottime())
    }

    /// The Lease was written by this agent, by what was `sent` then: it holds it from now on.
    fn written(&self, lease: &Value, sent: Duration) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.written(object::resource_version(lease), found(lease).lease, sent, fence::boottime());
        drop(state);
        self.moved.send_replace(());
    }

    /// What is to be done about a Lease that is not as this agent wrote it.
    fn judge(&self, node: &Value, lease: Option<&Value>) -> Verdict {
        let found = lease.map(found);
        let machine = object::text(node, &["metadata", "annotations", MACHINE]);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let made = object::text(node, &["metadata", "creationTimestamp"]).parse().ok();
        let (now, clock) = (fence::boottime(), Timestamp::now());
        state.judge(&self.own, (machine, made), found.as_ref(), now, clock)
    }

    fn version(&self) -> Option<String> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).version.clone()
    }
}

/// An agent that begins now.
fn holder(machine: &str, folder: Option<&Path>) -> Holder {
    let mut random = [0; 8];
    // Without randomness the time tells one start from another.
    let run = match SystemRandom::new().fill(&mut random) {
        Ok(()) => format!("{:016x}", u64::from_be_bytes(random)),
        Err(_) => Timestamp::now().as_nanosecond().to_string(),
    };
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let place = folder.map(|folder| {
        let (device, inode) = std::fs::metadata(folder).map(|at| (at.dev(), at.ino())).unwrap_or_default();
        format!("{}.{device}.{inode}", boot.trim())
    });
    let place = place.unwrap_or_else(|| ALONE.to_owned());
    let machine = if machine.is_empty() { "-" } else { machine }.to_owned();
    let hardware = folder.map(|_| hardware(Path::new("/"))).unwrap_or_default();
    Holder { machine, run, place, hardware }
}

/// Which machine this is, by what stands outside of any data folder and stays when it is started anew: a hash of the
/// firmware's serial number or UUID and of `/etc/machine-id`. Empty where there is none of them.
fn hardware(root: &Path) -> String {
    let files = ["sys/class/dmi/id/product_uuid", "sys/firmware/devicetree/base/serial-number", "etc/machine-id"];
    let known = files.map(|file| std::fs::read(root.join(file)).unwrap_or_default());
    if known.iter().all(|text| text.trim_ascii().is_empty()) {
        tracing::warn!(
            "this machine has neither /etc/machine-id nor a serial number: when it is started anew, its node waits for \
             a person's word that it is the same one"
        );
        return String::new();
    }
    let hash = ring::digest::digest(&ring::digest::SHA256, &known.join(&0));
    hash.as_ref().iter().take(8).fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// Looks whether the node is this agent's to be, before anything is written in its name.
///
/// # Errors
/// [`RenewError::Elsewhere`], which is said; what the server said.
pub(super) async fn look(kubelet: &Kubelet) -> Result<(), RenewError> {
    let name = &kubelet.config.node_name;
    if kubelet.hold.own.place == ALONE {
        return Ok(());
    }
    let lease = match kubelet.heartbeat.get(&kinds::LEASE, LEASES, name).await {
        Err(error) if error.is_not_found() => return Ok(()),
        result => result?,
    };
    let (held_by, hold) = (found(&lease).held_by, &kubelet.hold);
    if !hold.is_of_another(held_by) {
        return Ok(());
    }
    // Where it moves, another machine is the node.
    take(kubelet).await
}

/// Renews the Lease, as it was written last; where it is another's by now, looks whose.
pub(super) async fn renew(kubelet: &Kubelet) -> Result<(), RenewError> {
    if let Some(version) = kubelet.hold.version() {
        let renewal = renewal(kubelet, json!({ "resourceVersion": version }));
        match patch(kubelet, &renewal).await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_conflict() || error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
    }
    take(kubelet).await
}

async fn patch(kubelet: &Kubelet, renewal: &Value) -> Result<(), Error> {
    let name = &kubelet.config.node_name;
    let sent = fence::boottime();
    let written = kubelet.heartbeat.patch(&kinds::LEASE, LEASES, name, "", PatchType::Merge, renewal).await?;
    kubelet.hold.written(&written, sent);
    Ok(())
}

fn renewal(kubelet: &Kubelet, mut metadata: Value) -> Value {
    let now = mainstay_api::time::micro(Timestamp::now());
    metadata["annotations"] = json!({ HELD_BY: kubelet.hold.own.to_string() });
    json!({ "metadata": metadata, "spec": {
        "holderIdentity": kubelet.config.node_name, "leaseDurationSeconds": kubelet.config.lease_seconds,
        "renewTime": now,
    } })
}

/// Has the Lease, if it is this agent's to have.
async fn take(kubelet: &Kubelet) -> Result<(), RenewError> {
    let (client, name) = (&kubelet.heartbeat, &kubelet.config.node_name);
    let node = client.get(&kinds::NODE, "", name).await?;
    let lease = match client.get(&kinds::LEASE, LEASES, name).await {
        Err(error) if error.is_not_found() => None,
        result => Some(result?),
    };
    match kubelet.hold.judge(&node, lease.as_ref()) {
        Verdict::Take | Verdict::TakeOver => {}
        Verdict::Watch => return Err(RenewError::Watching),
        Verdict::Elsewhere => {
            let held_by = lease.as_ref().map_or("", |lease| found(lease).held_by);
            kubelet.hold.wait_for_a_word(name, held_by);
            return Err(RenewError::Elsewhere);
        }
        Verdict::Replaced => {
            kubelet.hold.give_up(name);
            return Err(RenewError::Replaced);
        }
    }
    let owner = json!([{ "apiVersion": "v1", "kind": "Node", "name": name, "uid": object::uid(&node) }]);
    let Some(found) = lease.as_ref().map(found) else {
        let mut lease = renewal(kubelet, json!({ "name": name, "namespace": LEASES, "ownerReferences": owner }));
        lease["apiVersion"] = json!("coordination.k8s.io/v1");
        lease["kind"] = json!("Lease");
        // One that was made meanwhile is looked at the next time.
        let sent = fence::boottime();
        kubelet.hold.written(&client.create(&kinds::LEASE, LEASES, &lease).await?, sent);
        return Ok(());
    };
    let taken = renewal(kubelet, json!({ "resourceVersion": found.version, "ownerReferences": owner }));
    Ok(patch(kubelet, &taken).await?)
}

fn found(lease: &Value) -> Found<'_> {
    let seconds = object::at(lease, &["spec", "leaseDurationSeconds"]).and_then(Value::as_i64).unwrap_or(UPSTREAMS);
    Found {
        held_by: object::text(lease, &["metadata", "annotations", HELD_BY]),
        version: object::resource_version(lease),
        renewed: object::text(lease, &["spec", "renewTime"]).parse().ok(),
        lease: Duration::from_secs(u64::try_from(seconds).unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(bound: &str) -> Pod {
        let condition = json!({ "type": "PodScheduled", "status": "True", "lastTransitionTime": bound });
        serde_json::from_value(json!({ "metadata": {}, "status": { "conditions": [condition] } })).unwrap()
    }

    #[test]
    fn s1_nothing_begins_before_this_agent_is_the_node_nor_when_it_is_not_any_more() {
        let data = tempfile::tempdir().unwrap();
        let hold = Hold::new("m", Some(data.path()), "");
        let pod = pod("2030-01-01T00:00:00Z");
        assert!(!hold.may_begin(&pod, None), "nothing is renewed yet");
        hold.written(&json!({ "metadata": { "resourceVersion": "7" } }), fence::boottime());
        assert!(hold.may_begin(&pod, None) && hold.may_begin(&pod, Some(5)));
        hold.give_up("n");
        assert!(!hold.may_begin(&pod, None) && !hold.may_begin(&pod, Some(5)));
    }

    #[test]
    fn s1_a_machine_is_known_by_what_no_copy_of_a_folder_takes_along() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(hardware(root.path()), "", "nothing says which machine it is");
        let write = |file: &str, text: &str| {
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("etc/machine-id", "\n");
        assert_eq!(hardware(root.path()), "", "an image's, not yet filled in");
        write("etc/machine-id", "4f2a\n");
        let by_id = hardware(root.path());
        assert!(by_id.len() == 16 && !by_id.contains(' '), "one word: {by_id}");
        write("sys/class/dmi/id/product_uuid", "EC2A\n");
        let by_both = hardware(root.path());
        assert_ne!(by_id, by_both, "a disk that was copied into another machine");
        assert_eq!(by_both, hardware(root.path()));
        let of_folder = Hold::new("m", Some(root.path()), "").own;
        assert_eq!(Holder::parse(&of_folder.to_string()), Some(of_folder), "as it is written it is read");
    }

    #[test]
    fn s13_a_pod_of_the_former_machine_begins_when_its_deadline_there_has_passed() {
        let data = tempfile::tempdir().unwrap();
        let hold = Hold::new("m", Some(data.path()), "");
        hold.written(&json!({ "metadata": { "resourceVersion": "7" } }), fence::boottime());
        hold.state.lock().unwrap().node_made = Some("2030-01-01T00:00:10Z".parse().unwrap());
        let (older, newer) = (pod("2030-01-01T00:00:09Z"), pod("2030-01-01T00:00:10Z"));
        assert!(hold.may_begin(&newer, Some(40)));
        assert!(!hold.may_begin(&older, Some(40)));
        hold.state.lock().unwrap().taken = Some(fence::boottime().saturating_sub(Duration::from_secs(46)));
        assert_eq!(hold.may_begin(&older, Some(40)), fence::boottime() >= Duration::from_secs(46));
        hold.state.lock().unwrap().is_taken_over = true;
        hold.state.lock().unwrap().taken = Some(fence::boottime());
        assert!(!hold.may_begin(&newer, Some(40)), "taken from one that may be cut off");
    }

    fn lease(held_by: &str, version: &str) -> Value {
        let renewed = Timestamp::now().to_string();
        json!({ "metadata": { "resourceVersion": version, "annotations": { HELD_BY: held_by } },
            "spec": { "leaseDurationSeconds": 40, "renewTime": renewed } })
    }

    fn back(seconds: u64) -> Duration {
        fence::boottime().saturating_sub(Duration::from_secs(seconds))
    }

    #[test]
    fn s1_s13_an_agent_that_takes_the_lease_a_second_time_waits_for_who_had_it_meanwhile() {
        let data = tempfile::tempdir().unwrap();
        let mut hold = Hold::new("m", Some(data.path()), "");
        hold.own.hardware = "box".to_owned();
        let node = json!({ "metadata": { "annotations": { MACHINE: "m" } } });
        let pod = pod("2030-01-01T00:00:00Z");
        hold.written(&lease(&hold.own.to_string(), "7"), fence::boottime());
        // It has had it for long.
        hold.state.lock().unwrap().taken = Some(Duration::ZERO);
        assert!(hold.may_begin(&pod, Some(40)) && hold.is_held());
        let others = lease("m r0 before box", "9");
        assert_eq!(hold.judge(&node, Some(&others)), Verdict::Watch);
        assert!(!hold.may_begin(&pod, Some(40)) && !hold.may_begin(&pod, None), "it is the other's now");
        assert!(!hold.is_held());
        hold.state.lock().unwrap().watched = Watched::default();
        let mut still = lease("m r0 before box", "9");
        still["spec"]["renewTime"] = json!("2020-01-01T00:00:00Z");
        assert_eq!(hold.judge(&node, Some(&still)), Verdict::TakeOver);
        hold.written(&lease(&hold.own.to_string(), "10"), fence::boottime());
        assert!(!hold.may_begin(&pod, Some(40)), "what the other runs has not ended");
        hold.state.lock().unwrap().taken = Some(back(46));
        assert_eq!(hold.may_begin(&pod, Some(40)), fence::boottime() >= Duration::from_secs(46));
        // Renewed again and again it is held as before.
        hold.written(&lease(&hold.own.to_string(), "11"), fence::boottime());
        assert!(hold.is_held());
    }

    #[tokio::test]
    async fn s1_v3_an_agent_is_the_node_for_certain_only_as_long_as_nobody_can_have_taken_its_lease() {
        let data = tempfile::tempdir().unwrap();
        let hold = std::sync::Arc::new(Hold::new("m", Some(data.path()), ""));
        assert!(!hold.is_held(), "nothing is renewed yet");
        let waiting = tokio::spawn({
            let hold = hold.clone();
            async move { hold.held().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        hold.written(&lease("m r p", "7"), fence::boottime());
        assert!(waiting.await.unwrap() && hold.is_held());
        // Whoever was cut off for so long does not know.
        hold.state.lock().unwrap().sure_until = fence::boottime();
        assert!(!hold.is_held());
        hold.written(&lease("m r p", "8"), back(15));
        assert_eq!(hold.is_held(), fence::boottime() < Duration::from_secs(15));
        let waiting = tokio::spawn({
            let hold = hold.clone();
            async move { hold.held().await }
        });
        tokio::task::yield_now().await;
        hold.give_up("n");
        assert!(!waiting.await.unwrap() && !hold.is_held());
        hold.given_up().await;
    }
}
