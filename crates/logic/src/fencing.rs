//! Fencing by deadline (S13): how long after its node's last renewal the containers of a pod stop by themselves, who
//! knows that they do, and when the pod's name is free.
//!
//! ```text
//! node     the pod is begun: `wanted` says after how many seconds its supervisors stop it; on the pod (`condition`)
//! server   the node's Lease stands still for `free_after` that time, as seen here (`snapshot::Silences`): nothing runs
//! ```
//!
//! What a supervisor holds is never later than what the server assumes. Its deadline counts from when a renewal was
//! sent, the server's from when it saw that renewal; the server believes only what the node has noted, and adds a
//! margin. A Lease that changes while the server decides makes its write fail.

use core::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{PersistentVolume, Pod, PodCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::matching::tolerates;
use crate::ownership::controller_of;
use crate::pods;
use crate::volume::annotation;

/// On a pod: `deadline` asks for it, `never` declines it.
pub const ANNOTATION: &str = "mainstay.io/fence";
/// The condition by which a node says that all containers of a pod have a deadline; its reason says which.
pub const CONDITION: &str = "mainstay.io/FencingDeadline";
/// The taint of a node that is silent.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// The lease of a node that does not say how long it is, seconds; upstream's.
pub const LEASE_SECONDS: u32 = 40;

/// Two machines' clocks run apart by less than one part in so many. Those of real ones do by a tenth of that.
const DRIFT: u32 = 100;
/// How long a supervisor may take to be woken, to kill, and to see it done.
const KILL: Duration = Duration::from_secs(5);

/// Which pods a node gives a deadline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// None: it shares its process with the only server, and when that is down nobody takes a pod's place.
    #[default]
    Off,
    /// Those that ask for it: there is one server, and when it is down nothing shall stop.
    OnRequest,
    /// Those of StatefulSets that could live elsewhere, too.
    ByDefault,
}

/// How long a pod tolerates a taint: not at all is zero, `None` is for ever. The shortest of several matching
/// tolerations counts, and one without a time is for ever, as upstream.
pub fn tolerated(pod: &Pod, taint: &Taint) -> Option<SignedDuration> {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let mut matching = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).peekable();
    if matching.peek().is_none() {
        return Some(SignedDuration::ZERO);
    }
    let seconds = matching.filter_map(|toleration| toleration.toleration_seconds).min()?;
    Some(SignedDuration::from_secs(seconds.max(0)))
}

/// After how many seconds without a renewal the containers of a pod stop by themselves; `None` where they never do.
/// Never less than the lease, since a node renews it several times in that and may fail once.
pub fn wanted(pod: &Pod, policy: Policy, is_pinned: bool, lease_seconds: u32) -> Option<u32> {
    let asked = annotation(&pod.metadata, ANNOTATION);
    let is_of_set = controller_of(&pod.metadata).is_some_and(|owner| owner.kind == "StatefulSet");
    let is_default = policy == Policy::ByDefault && is_of_set && !is_pinned && asked != "never";
    if policy == Policy::Off || !(is_default || asked == "deadline") {
        return None;
    }
    let taint = Taint { key: UNREACHABLE.to_owned(), effect: "NoExecute".to_owned(), ..Taint::default() };
    let tolerated = tolerated(pod, &taint)?;
    Some(u32::try_from(tolerated.as_secs()).unwrap_or(u32::MAX).max(lease_seconds))
}

/// Whether a pod has a part of its machine in it, whatever its claims are bound to.
pub fn has_host_path(pod: &Pod) -> bool {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.into_iter().any(|volume| volume.host_path.is_some())
}

/// Whether a volume keeps its pods on its node (V5).
pub fn pins(volume: &PersistentVolume) -> bool {
    volume.spec.as_ref().is_some_and(|spec| {
        spec.node_affinity.as_ref().is_some_and(|affinity| affinity.required.is_some())
            || spec.host_path.is_some()
            || spec.local.is_some()
    })
}

/// What a node notes on a pod whose containers have a deadline.
pub fn condition(seconds: u32, now: Timestamp) -> PodCondition {
    PodCondition {
        type_: CONDITION.to_owned(),
        status: "True".to_owned(),
        reason: Some(format!("After{seconds}Seconds")),
        message: Some(format!(
            "the containers stop by themselves when the node has not renewed its lease for {seconds} s"
        )),
        last_transition_time: Some(Time(now)),
        ..PodCondition::default()
    }
}

/// What the node has noted: after how many seconds without a renewal nothing of the pod runs.
pub fn noted(pod: &Pod) -> Option<u32> {
    let noted = pods::condition(pod, CONDITION).filter(|condition| condition.status == "True")?;
    noted.reason.as_deref()?.strip_prefix("After")?.strip_suffix("Seconds")?.parse().ok()
}

/// How long a server must have seen no renewal to know that a deadline of so many seconds has passed, whichever of the
/// two clocks runs faster, and that what it stops has stopped.
pub fn free_after(seconds: u32) -> Duration {
    let deadline = Duration::from_secs(u64::from(seconds));
    deadline.saturating_add(deadline / DRIFT).saturating_add(KILL)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value, fence: &str, owner: &str) -> Pod {
        let owners = json!([{"apiVersion": "apps/v1", "kind": owner, "name": "web", "uid": "s", "controller": true}]);
        let metadata = json!({"name": "web-0", "annotations": {ANNOTATION: fence}, "ownerReferences": owners});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    #[test]
    fn s13_a_deadline_is_the_pods_toleration_and_only_pods_that_may_move_have_one() {
        let for_seconds = |seconds: Value| {
            let toleration =
                json!({"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds});
            json!({"containers": [], "tolerations": [toleration]})
        };
        let usual = || for_seconds(json!(300));
        use Policy::*;
        let table = [
            (usual(), "", "StatefulSet", ByDefault, false, Some(300)),
            (usual(), "", "StatefulSet", ByDefault, true, None),
            (usual(), "deadline", "StatefulSet", ByDefault, true, Some(300)),
            (usual(), "never", "StatefulSet", ByDefault, false, None),
            (usual(), "", "ReplicaSet", ByDefault, false, None),
            (usual(), "deadline", "ReplicaSet", ByDefault, false, Some(300)),
            (usual(), "", "StatefulSet", OnRequest, false, None),
            (usual(), "deadline", "StatefulSet", OnRequest, false, Some(300)),
            (usual(), "deadline", "StatefulSet", Off, false, None),
            (for_seconds(json!(5)), "", "StatefulSet", ByDefault, false, Some(40)),
            (json!({"containers": []}), "", "StatefulSet", ByDefault, false, Some(40)),
            (for_seconds(Value::Null), "deadline", "StatefulSet", ByDefault, false, None),
            (
                json!({"containers": [], "tolerations": [{"operator": "Exists"}]}),
                "",
                "StatefulSet",
                ByDefault,
                false,
                None,
            ),
        ];
        for (spec, fence, owner, policy, is_pinned, expected) in table {
            let pod = pod(spec.clone(), fence, owner);
            assert_eq!(wanted(&pod, policy, is_pinned, 40), expected, "{spec} {fence} {owner} {policy:?} {is_pinned}");
        }
    }

    #[test]
    fn s13_what_a_node_notes_is_what_the_server_reads() {
        let mut pod = pod(json!({"containers": []}), "", "StatefulSet");
        assert_eq!(noted(&pod), None);
        let mut note = condition(300, Timestamp::UNIX_EPOCH);
        for (status, expected) in [("True", Some(300)), ("False", None)] {
            note.status = status.to_owned();
            pod.status.get_or_insert_default().conditions = Some(vec![note.clone()]);
            assert_eq!(noted(&pod), expected);
        }
        assert_eq!(free_after(300), Duration::from_secs(308));
    }

    /// A pod that has a part of its machine in it is nowhere else what it is there.
    #[test]
    fn s13_v5_what_keeps_a_pod_on_its_node_is_its_volumes_and_its_paths() {
        let volume = |spec: Value| -> PersistentVolume { serde_json::from_value(json!({ "spec": spec })).unwrap() };
        let table = [
            (json!({}), false),
            (json!({"nfs": {"server": "s", "path": "/"}}), false),
            (json!({"nodeAffinity": {}}), false),
            (json!({"nodeAffinity": {"required": {"nodeSelectorTerms": []}}}), true),
            (json!({"hostPath": {"path": "/x"}}), true),
            (json!({"local": {"path": "/x"}}), true),
        ];
        for (spec, expected) in table {
            assert_eq!(pins(&volume(spec.clone())), expected, "{spec}");
        }
        for (volumes, expected) in [
            (json!([]), false),
            (json!([{"name": "a", "emptyDir": {}}]), false),
            (json!([{"name": "a", "emptyDir": {}}, {"name": "b", "hostPath": {"path": "/x"}}]), true),
        ] {
            assert_eq!(
                has_host_path(&pod(json!({"containers": [], "volumes": volumes}), "", "")),
                expected,
                "{volumes}"
            );
        }
    }
}
