//! This node's Lease, held by one agent (see [`mainstay_logic::kubelet::hold`]).

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use mainstay_api::{kinds, object};
use mainstay_client::{Error, PatchType};
use mainstay_logic::kubelet::hold::{Found, HELD_BY, Holder, Verdict, Watched, has_former_ended};
use mainstay_logic::nodes::{LEASES, MACHINE};
use mainstay_logic::pods;
use mainstay_runtime::fence;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::Kubelet;

/// The lease of a Lease that does not say how long it is.
const UPSTREAMS: i64 = 40;

/// What this agent knows of its Lease.
#[derive(Default)]
pub struct Hold {
    own: Holder,
    state: Mutex<State>,
    /// Another machine is this node: nothing begins here any more, and what runs ends.
    replaced: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    /// The Lease as this agent wrote it last.
    version: Option<String>,
    /// When this agent had it first, since the machine was started.
    taken: Option<Duration>,
    /// It was taken from one that may have been cut off.
    is_taken_over: bool,
    /// When the Node was made, as the server says.
    node_made: Option<Timestamp>,
    watched: Watched,
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
}

impl RenewError {
    /// There is no Node.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Api(error) if error.is_not_found())
    }
}

impl Hold {
    /// For an agent that begins now, on this machine's folder; none where the store is on the same machine, and a copy
    /// of the folder would be another cluster.
    pub fn new(machine: &str, folder: Option<&Path>) -> Self {
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
        let place = place.unwrap_or_else(|| "-".to_owned());
        let machine = if machine.is_empty() { "-" } else { machine }.to_owned();
        Self { own: Holder { machine, run, place }, ..Self::default() }
    }

    /// Whether another machine is this node.
    pub fn is_replaced(&self) -> bool {
        *self.replaced.borrow()
    }

    /// Changes once, when another machine is this node.
    pub fn replaced(&self) -> watch::Receiver<bool> {
        self.replaced.subscribe()
    }

    /// Another machine is this node: said once, in words that help.
    pub fn give_up(&self, node: &str) {
        if !self.replaced.send_replace(true) {
            tracing::error!(
                node,
                "another machine is this node now: this one's pods end, and it starts nothing. `mainstay leave \
                 --force` here, then `mainstay join` under another --node-name; or `kubectl delete node` if it is \
                 this machine that is to be the node, and start it again"
            );
        }
    }

    /// Whether something of a pod may begin: this agent is the node, and what a former machine of the name ran of the
    /// pod has ended. `seconds` is the pod's deadline, where it has one.
    pub(super) fn may_begin(&self, pod: &Pod, seconds: Option<u32>) -> bool {
        if self.is_replaced() {
            return false;
        }
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(taken) = state.taken else { return false };
        let Some(seconds) = seconds else { return true };
        let bound = pods::condition(pod, "PodScheduled").and_then(|at| at.last_transition_time.as_ref());
        let is_older = state.node_made.zip(bound).is_some_and(|(made, bound)| bound.0 < made);
        !(is_older || state.is_taken_over) || has_former_ended(seconds, taken, fence::boottime())
    }

    /// The Lease was written by this agent, which holds it from now on.
    fn written(&self, lease: &Value) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.version = Some(object::resource_version(lease).to_owned());
        state.taken.get_or_insert_with(fence::boottime);
        state.watched.settle();
    }

    fn version(&self) -> Option<String> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).version.clone()
    }
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
    let written = kubelet.heartbeat.patch(&kinds::LEASE, LEASES, name, "", PatchType::Merge, renewal).await?;
    kubelet.hold.written(&written);
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
    let found = lease.as_ref().map(found);
    let machine = object::text(&node, &["metadata", "annotations", MACHINE]);
    let verdict = {
        let mut state = kubelet.hold.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.node_made = object::text(&node, &["metadata", "creationTimestamp"]).parse().ok();
        let verdict =
            state.watched.judge(&kubelet.hold.own, machine, found.as_ref(), fence::boottime(), Timestamp::now());
        state.is_taken_over |= verdict == Verdict::TakeOver;
        verdict
    };
    match verdict {
        Verdict::Take | Verdict::TakeOver => {}
        Verdict::Watch => return Err(RenewError::Watching),
        Verdict::Replaced => {
            kubelet.hold.give_up(name);
            return Err(RenewError::Replaced);
        }
    }
    let owner = json!([{ "apiVersion": "v1", "kind": "Node", "name": name, "uid": object::uid(&node) }]);
    let Some(found) = found else {
        let mut lease = renewal(kubelet, json!({ "name": name, "namespace": LEASES, "ownerReferences": owner }));
        lease["apiVersion"] = json!("coordination.k8s.io/v1");
        lease["kind"] = json!("Lease");
        // One that was made meanwhile is looked at the next time.
        kubelet.hold.written(&client.create(&kinds::LEASE, LEASES, &lease).await?);
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
        let hold = Hold::new("m", Some(data.path()));
        let pod = pod("2030-01-01T00:00:00Z");
        assert!(!hold.may_begin(&pod, None), "nothing is renewed yet");
        hold.written(&json!({ "metadata": { "resourceVersion": "7" } }));
        assert!(hold.may_begin(&pod, None) && hold.may_begin(&pod, Some(5)));
        hold.give_up("n");
        assert!(!hold.may_begin(&pod, None) && !hold.may_begin(&pod, Some(5)));
    }

    #[test]
    fn s13_a_pod_of_the_former_machine_begins_when_its_deadline_there_has_passed() {
        let data = tempfile::tempdir().unwrap();
        let hold = Hold::new("m", Some(data.path()));
        hold.written(&json!({ "metadata": { "resourceVersion": "7" } }));
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
}
