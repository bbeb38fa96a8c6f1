//! Deliberate bugs. Each must be caught by the checker that is named for it, or that checker proves nothing.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use mainstay_api::{Kind, ObjectKey, kinds};
use mainstay_logic::controllers::statefulset;
use mainstay_logic::fencing::noted;
use mainstay_logic::{Decision, Propagation, Snapshot, Write, pods, volume};
use mainstay_server::api::{Api, key};
use mainstay_server::driver::{Finish, Work};
use mainstay_store::Revision;
use serde_json::{Value, json};

use crate::checkers::{ordinals, set_of};

/// How long a renewal is believed to have been on its way.
const SENT_BEFORE: Duration = Duration::from_secs(2);

/// One thing that is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A restarted agent acts on its first list without asking, and forgets what it told to stop
    /// (kubernetes#59848): S1.
    TrustsStaleList,
    /// A node lets the API object go before the containers have stopped: S2.
    ConfirmsTooEarly,
    /// A set makes two pods at once: S4.
    SkipsOrder,
    /// A set is scaled in from the lowest ordinal: S5.
    ScalesInFromBelow,
    /// A controller deletes a claim together with its pod: S8.
    DeletesClaims,
    /// Volumes are folders named by their claim's name, and stay when the claim goes: V6.
    KeepsDirectories,
    /// A node empties a released volume that a pod still has: V3.
    RecyclesInUse,
    /// The server comes back with an old copy of its disk: A3.
    RestoresOldDisk,
    /// A pod gets another hostname than its own: S3.
    RenamesHosts,
    /// A set does not look at minReadySeconds: S4.
    IgnoresMinReady,
    /// More pods than maxUnavailable are replaced at once: S6.
    IgnoresMaxUnavailable,
    /// OnDelete is taken for RollingUpdate: S6.
    RollsOnDelete,
    /// The partition is passed over: S6.
    IgnoresPartition,
    /// A set deletes a pod whose labels match and that is nobody's: S10.
    DeletesStrangers,
    /// A node's DNS does not follow pods: N2.
    DnsIgnoresPods,
    /// A node's DNS does not follow slices: N1.
    DnsIgnoresSlices,
    /// A watch passes over some events: A4.
    WatchLosesEvents,
    /// A list is of an older state than what was shown before: A5.
    ListsThePast,
    /// A watch from a list's revision begins with what comes later: A6.
    WatchesFromNow,
    /// The pages of a list are of different moments: A6.
    PagesOfNow,
    /// A watch from a revision that is too old begins with the newest: A7.
    ForgetsCompaction,
    /// An agent's writes do not say which uid and version they are about: A8.
    ForgetsUids,
    /// A request that was refused has been carried out: A9.
    RefusesWhatItDid,
    /// An agent that starts ends the containers that it finds: S11.
    EndsWhatItFinds,
    /// The controllers are not told of some deletions: S12.
    MissesDeletions,
    /// A claim goes although a pod uses it: V2.
    UnprotectsClaims,
    /// The scheduler does not ask where a pod's volumes are: V5.
    PlacesAnywhere,
    /// The server counts no margin, and believes that it has seen every renewal when it was sent: S13.
    ForgetsMargin,
    /// An agent moves the deadlines whether or not its lease was renewed: S13.
    PushesWithoutRenewal,
    /// An agent starts a container again that was ended at its deadline, without asking for the pod: S13.
    StartsWithoutAsking,
    /// A set waits for its broken pod of an older revision, as upstream does (kubernetes#67250): S7.
    WaitsForBroken,
    /// A set makes a pod although its claim is being deleted, and never makes that claim again: S9.
    ForgetsClaims,
    /// A claim takes a volume without looking whose it is: V1.
    BindsTwice,
    /// A node removes a deleted volume's folder without asking the kernel whether it is mounted: V8.
    RemovesMounted,
    /// Neither the scheduler nor a node asks who else has a claim: V9.
    SharesClaims,
    /// A node's packet filter does not follow pods: N4.
    ProxyIgnoresPods,
    /// A node's packet filter does not follow slices: N4.
    ProxyIgnoresSlices,
    /// The driver decides about a key again before it sees what it has committed about it (its gate is open): S12.
    ForgetsOwnWrites,
    /// Decisions are committed without the uids and versions that they are about: A8.
    ForgetsPreconditions,
    /// A machine whose name another has by now goes on as that node: S1.
    SharesItsName,
    /// A machine whose name another has by now goes on removing that node's volumes: V3.
    TendsAnothersVolumes,
    /// A Service without endpoints has no rule, so that connections to it go wherever the default route leads: N4.
    ProxyForgetsRefusals,
}

/// Which worlds catch a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worlds {
    /// Storms from plain seeds.
    Storms,
    /// Storms whose nodes fall silent.
    Silence,
    /// Two machines of one name.
    Twins,
}

impl Bug {
    /// All, with the invariant whose checker must catch it, and the worlds that do.
    pub const ALL: [(Self, &'static str, Worlds); 42] = [
        (Self::TrustsStaleList, "S1", Worlds::Storms),
        (Self::ConfirmsTooEarly, "S2", Worlds::Storms),
        (Self::SkipsOrder, "S4", Worlds::Storms),
        (Self::ScalesInFromBelow, "S5", Worlds::Storms),
        (Self::DeletesClaims, "S8", Worlds::Storms),
        (Self::KeepsDirectories, "V6", Worlds::Storms),
        (Self::RestoresOldDisk, "A3", Worlds::Storms),
        (Self::RecyclesInUse, "V3", Worlds::Storms),
        (Self::RenamesHosts, "S3", Worlds::Storms),
        (Self::IgnoresMinReady, "S4", Worlds::Storms),
        (Self::IgnoresMaxUnavailable, "S6", Worlds::Storms),
        (Self::IgnoresPartition, "S6", Worlds::Storms),
        (Self::RollsOnDelete, "S6", Worlds::Storms),
        (Self::DeletesStrangers, "S10", Worlds::Storms),
        (Self::DnsIgnoresPods, "N2", Worlds::Storms),
        (Self::DnsIgnoresSlices, "N1", Worlds::Storms),
        (Self::WatchLosesEvents, "A4", Worlds::Storms),
        (Self::ListsThePast, "A5", Worlds::Storms),
        (Self::WatchesFromNow, "A6", Worlds::Storms),
        (Self::PagesOfNow, "A6", Worlds::Storms),
        (Self::ForgetsCompaction, "A7", Worlds::Storms),
        (Self::ForgetsUids, "A8", Worlds::Silence),
        (Self::RefusesWhatItDid, "A9", Worlds::Storms),
        (Self::EndsWhatItFinds, "S11", Worlds::Storms),
        (Self::MissesDeletions, "S12", Worlds::Storms),
        (Self::UnprotectsClaims, "V2", Worlds::Storms),
        (Self::PlacesAnywhere, "V5", Worlds::Storms),
        (Self::WaitsForBroken, "S7", Worlds::Storms),
        (Self::ForgetsClaims, "S9", Worlds::Storms),
        (Self::BindsTwice, "V1", Worlds::Storms),
        (Self::RemovesMounted, "V8", Worlds::Storms),
        (Self::SharesClaims, "V9", Worlds::Storms),
        (Self::ProxyIgnoresPods, "N4", Worlds::Storms),
        (Self::ProxyIgnoresSlices, "N4", Worlds::Storms),
        (Self::ProxyForgetsRefusals, "N4", Worlds::Storms),
        (Self::ForgetsOwnWrites, "S12", Worlds::Storms),
        (Self::ForgetsPreconditions, "A8", Worlds::Storms),
        (Self::ForgetsMargin, "S13", Worlds::Silence),
        (Self::PushesWithoutRenewal, "S13", Worlds::Silence),
        (Self::StartsWithoutAsking, "S13", Worlds::Silence),
        (Self::SharesItsName, "S1", Worlds::Twins),
        (Self::TendsAnothersVolumes, "V3", Worlds::Twins),
    ];

    /// Spoils the decision of a controller about a key.
    pub fn spoil(
        self,
        controller: &str,
        snapshot: &Snapshot,
        key: &ObjectKey,
        decision: &mut Decision,
        now: Timestamp,
    ) {
        let of_set = controller == "statefulset-controller";
        let blind = |spec: Value| (statefulset::CONTROLLER.reconcile)(&believing(snapshot, key, &spec), key, now);
        match self {
            Self::SkipsOrder if of_set => skip_order(decision),
            Self::ScalesInFromBelow if of_set => scale_in_from_below(snapshot, decision),
            Self::DeletesClaims if of_set => delete_claims(snapshot, decision),
            Self::RenamesHosts if of_set => rename_hosts(decision),
            Self::IgnoresMinReady if of_set => *decision = blind(json!({ "minReadySeconds": null })),
            Self::IgnoresMaxUnavailable if of_set => {
                *decision = blind(json!({ "updateStrategy": { "rollingUpdate": { "maxUnavailable": 9 } } }));
            }
            Self::RollsOnDelete if of_set => {
                *decision = blind(json!({ "updateStrategy": { "type": "RollingUpdate" } }));
            }
            Self::IgnoresPartition if of_set => {
                *decision = blind(json!({ "updateStrategy": { "rollingUpdate": { "partition": null } } }));
            }
            Self::DeletesStrangers if of_set => delete_stranger(snapshot, key, decision),
            Self::UnprotectsClaims if of_set => unprotect(snapshot, decision),
            Self::WaitsForBroken if of_set => wait_for_broken(snapshot, decision),
            Self::ForgetsClaims if of_set => *decision = forget_claims(snapshot, key, now),
            Self::BindsTwice => bind_twice(snapshot, decision),
            Self::SharesClaims if controller == "default-scheduler" => share_claims(snapshot, decision),
            Self::PlacesAnywhere => place_elsewhere(snapshot, decision),
            _ => {}
        }
    }
}

/// The snapshot with another spec of one set: what a controller acts on that does not look at a field.
fn believing(snapshot: &Snapshot, key: &ObjectKey, spec: &Value) -> Snapshot {
    let mut believed = snapshot.clone();
    let Some(set) = snapshot.stateful_sets.get(key) else { return believed };
    let mut object = json!(&**set);
    mainstay_api::object::merge(&mut object, json!({ "spec": spec }));
    believed.apply(&kinds::STATEFUL_SET, key.clone(), Some(object.to_string().as_bytes()), snapshot.revision);
    believed
}

/// As if what was committed were in every snapshot.
pub fn forget_own_writes(finish: &mut Finish) {
    if let Finish::Committed(revision) | Finish::Partly(revision, _) | Finish::Failed(Some(revision), _) = finish {
        *revision = Revision(0);
    }
}

/// The work, about whatever has the names now.
pub fn forget_preconditions(api: &Api, mut work: Work) -> Work {
    let uid_of = |kind: &Kind, at: &ObjectKey| {
        let entry = api.store.get(&key::object(kind, &at.namespace, &at.name))?;
        let value: Value = serde_json::from_slice(&entry.value).ok()?;
        Some(mainstay_api::object::uid(&value).to_owned())
    };
    for write in work.parts.iter_mut().flat_map(|part| &mut part.decision.writes) {
        match write {
            Write::Patch { kind, key, uid, resource_version, .. }
            | Write::Delete { kind, key, uid, resource_version, .. } => {
                *resource_version = None;
                *uid = uid_of(kind, key).unwrap_or_default();
            }
            Write::Bind { key, uid, .. } => *uid = uid_of(&kinds::POD, key).unwrap_or_default(),
            Write::Create { .. } | Write::Release { .. } => {}
        }
    }
    work
}

/// A pod that is to go, and whose deadline has passed if no margin is counted, and each renewal from when it may have
/// been sent. Its name and uid.
pub fn released_hastily(snapshot: &Snapshot) -> Option<(ObjectKey, String)> {
    snapshot.pods.iter().find_map(|(key, pod)| {
        let deadline = noted(pod).filter(|_| pods::is_terminating(&pod.metadata))?;
        let (_, silent) = snapshot.silences.of(pod.spec.as_ref()?.node_name.as_deref()?)?;
        let is_over = silent + SENT_BEFORE >= Duration::from_secs(deadline.into());
        is_over.then(|| (key.clone(), pod.metadata.uid.clone().unwrap_or_default()))
    })
}

/// Pods that are not ready are left, but for those that are too many or have ended.
fn wait_for_broken(snapshot: &Snapshot, decision: &mut Decision) {
    decision.writes.retain(|write| {
        let Write::Delete { kind, key, .. } = write else { return true };
        let Some(pod) = snapshot.pods.get(key).filter(|_| *kind == kinds::POD) else { return true };
        let is_wanted = set_of(snapshot, key, pod).is_some_and(|(set, ordinal)| ordinals(set).contains(&ordinal));
        !is_wanted || pods::is_ready(pod) || pods::is_finished(pod)
    });
}

/// What a set does that takes claims which are being deleted for good ones, and makes claims with their pods only.
fn forget_claims(snapshot: &Snapshot, key: &ObjectKey, now: Timestamp) -> Decision {
    let mut believed = snapshot.clone();
    let leaving = snapshot.persistent_volume_claims.iter();
    for (at, claim) in leaving.filter(|(_, claim)| pods::is_terminating(&claim.metadata)) {
        let mut object = json!(&**claim);
        mainstay_api::object::merge(&mut object, json!({ "metadata": { "deletionTimestamp": null } }));
        let kind = &kinds::PERSISTENT_VOLUME_CLAIM;
        believed.apply(kind, at.clone(), Some(object.to_string().as_bytes()), snapshot.revision);
    }
    let mut decision = (statefulset::CONTROLLER.reconcile)(&believed, key, now);
    decision.writes.retain(|write| {
        let Write::Create { kind, object } = write else { return true };
        let name = mainstay_api::object::name(object);
        let pod = name.split_once('-').map(|(_, pod)| ObjectKey::new(mainstay_api::object::namespace(object), pod));
        *kind != kinds::PERSISTENT_VOLUME_CLAIM || pod.is_none_or(|pod| !snapshot.pods.contains_key(&pod))
    });
    decision
}

/// A claim that is given a volume gets the first one that another has.
fn bind_twice(snapshot: &Snapshot, decision: &mut Decision) {
    for write in &mut decision.writes {
        let Write::Patch { kind, key, patch, .. } = write else { continue };
        if *kind != kinds::PERSISTENT_VOLUME_CLAIM || !patch["spec"]["volumeName"].is_string() {
            continue;
        }
        let others = snapshot.persistent_volume_claims.iter().filter(|(other, _)| *other != key);
        let taken = others.map(|(_, claim)| volume::volume_name(claim)).find(|name| !name.is_empty());
        if let Some(taken) = taken {
            patch["spec"]["volumeName"] = json!(taken);
        }
    }
}

/// A pod that waits goes to the node where another one has its claim.
fn share_claims(snapshot: &Snapshot, decision: &mut Decision) {
    let node_of = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).filter(|node| !node.is_empty());
    for (key, pod) in snapshot.pods.iter().filter(|(_, pod)| node_of(pod).is_none()) {
        let mine = pods::claim_names(pod);
        let has_one =
            |other: &Pod| pods::claim_names(other).iter().any(|(name, _)| mine.iter().any(|(own, _)| own == name));
        let other = snapshot.pods.iter().find_map(|(_, other)| node_of(other).filter(|_| has_one(other)));
        if let Some(node) = other.filter(|_| !pods::is_terminating(&pod.metadata)) {
            decision.writes.retain(|write| !matches!(write, Write::Bind { key: bound, .. } if bound == key));
            let uid = pod.metadata.uid.clone().unwrap_or_default();
            decision.writes.push(Write::Bind { key: key.clone(), uid, node });
        }
    }
}

fn unprotect(snapshot: &Snapshot, decision: &mut Decision) {
    let claims = snapshot.persistent_volume_claims.iter().map(|(_, claim)| claim);
    let leaving = claims.filter(|claim| pods::is_terminating(&claim.metadata) && claim.metadata.finalizers.is_some());
    let none = json!({ "metadata": { "finalizers": null } });
    decision.writes.extend(
        leaving.map(|claim| {
            Write::patch(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, none.clone()).whatever_version()
        }),
    );
}

fn place_elsewhere(snapshot: &Snapshot, decision: &mut Decision) {
    for write in &mut decision.writes {
        if let Write::Bind { node, .. } = write
            && let Some((other, _)) = snapshot.nodes.iter().find(|(key, _)| *key.name != *node)
        {
            *node = other.name.to_string();
        }
    }
}

fn rename_hosts(decision: &mut Decision) {
    for write in &mut decision.writes {
        if let Write::Create { kind, object } = write
            && *kind == kinds::POD
        {
            object["spec"]["hostname"] = json!("another");
        }
    }
}

fn delete_stranger(snapshot: &Snapshot, key: &ObjectKey, decision: &mut Decision) {
    let stranger = ObjectKey::new(key.namespace.clone(), format!("{}-stranger", key.name));
    if let Some(pod) = snapshot.pods.get(&stranger).filter(|pod| !pods::is_terminating(&pod.metadata)) {
        decision.writes.push(Write::delete(&kinds::POD, &pod.metadata));
    }
}

fn skip_order(decision: &mut Decision) {
    let made = decision.writes.iter().find_map(|write| match write {
        Write::Create { kind, object } if *kind == kinds::POD => Some(object.clone()),
        _ => None,
    });
    let Some(made) = made else { return };
    let name = made["metadata"]["name"].as_str().unwrap_or("").to_owned();
    let Some((set, ordinal)) = name.rsplit_once('-') else { return };
    let ordinal = ordinal.parse::<u32>().unwrap_or(0) + 1;
    // Its name wherever it stands (hostname, label, claim): all that is wrong with it is when it comes.
    let renamed = made.to_string().replace(&name, &format!("{set}-{ordinal}"));
    let Ok(mut next) = serde_json::from_str::<Value>(&renamed) else { return };
    next["metadata"]["labels"]["apps.kubernetes.io/pod-index"] = json!(ordinal.to_string());
    decision.writes.push(Write::Create { kind: kinds::POD.clone(), object: next });
}

fn scale_in_from_below(snapshot: &Snapshot, decision: &mut Decision) {
    for write in &mut decision.writes {
        let Write::Delete { kind, key, uid, resource_version, .. } = write else { continue };
        let Some((set, _)) = key.name.rsplit_once('-').filter(|_| *kind == kinds::POD) else { continue };
        let set_key = ObjectKey::new(key.namespace.clone(), set);
        let replicas = snapshot.stateful_sets.get(&set_key).and_then(|set| set.spec.replicas).unwrap_or(0);
        let lowest = ObjectKey::new(key.namespace.clone(), format!("{set}-{replicas}"));
        if let Some(pod) = snapshot.pods.get(&lowest) {
            *uid = pod.metadata.uid.clone().unwrap_or_default();
            *resource_version = None;
            *key = lowest;
        }
    }
}

fn delete_claims(snapshot: &Snapshot, decision: &mut Decision) {
    let mut deletes = Vec::new();
    for write in &decision.writes {
        let Write::Delete { kind, key, .. } = write else { continue };
        if *kind != kinds::POD {
            continue;
        }
        let claim = ObjectKey::new(key.namespace.clone(), format!("data-{}", key.name));
        if let Some(found) = snapshot.persistent_volume_claims.get(&claim) {
            deletes.push(Write::Delete {
                kind: kinds::PERSISTENT_VOLUME_CLAIM.clone(),
                key: claim,
                uid: found.metadata.uid.clone().unwrap_or_default(),
                resource_version: None,
                grace_period: None,
                propagation: Propagation::Background,
            });
        }
    }
    decision.writes.extend(deletes);
}
