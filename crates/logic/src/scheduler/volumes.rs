//! Where a pod's volumes let it be, and what binds its claims when it is placed.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use mainstay_api::{ObjectKey, kinds};
use serde_json::json;

use crate::decision::{Event, Write};
use crate::ownership::controller_of;
use crate::pods::{claim_names, is_finished};
use crate::snapshot::{Index, Snapshot};
use crate::volume;

/// On a claim that any number of nodes could reach: `<node>/<pod uid>` of the last pod placed with it. Writing it with
/// the claim's resourceVersion makes two placements from stale views exclude each other (V9).
const PLACED_WITH: &str = "mainstay.io/placed-with";

/// A claim of a pod and what is known of it.
enum Claim<'a> {
    /// Both sides written.
    Bound(&'a PersistentVolumeClaim, &'a PersistentVolume),
    /// To be bound where the pod goes.
    Delayed(Delayed<'a>),
}

/// A claim that is to be bound where its pod goes, and what is the same of it wherever that is: found out once, not for
/// each node.
struct Delayed<'a> {
    claim: &'a PersistentVolumeClaim,
    class: &'a StorageClass,
    /// The volume that belongs to it already (a decision that was cut): the only one it can have.
    own: Option<&'a PersistentVolume>,
    /// Whether any volume is kept for it, or is free and of its class and size.
    may_match: bool,
    /// Whether a volume could be made for it.
    may_provision: bool,
}

impl<'a> Delayed<'a> {
    fn of(snapshot: &'a Snapshot, claim: &'a PersistentVolumeClaim, class: &'a StorageClass) -> Self {
        let named = || volume::volumes_of(snapshot, claim);
        let (name, bytes) = (volume::class_of(claim).unwrap_or(""), volume::requested(claim));
        let made = ObjectKey::new("", volume::provisioned_name(claim));
        Self {
            claim,
            class,
            own: named().find(|volume| volume::is_held_by(volume, claim)),
            may_match: named().next().is_some() || snapshot.free_volumes(name, bytes).next().is_some(),
            may_provision: volume::is_built_in(class)
                && !snapshot.persistent_volumes.contains_key(&made)
                && volume::provisionable(snapshot, claim, class).is_ok(),
        }
    }
}

/// All claims of a pod.
pub struct Claims<'a> {
    snapshot: &'a Snapshot,
    pod: &'a Pod,
    claims: Vec<Claim<'a>>,
}

/// What placing a pod does for one of its delayed claims.
pub enum Binding<'a> {
    /// Binds a volume that is there.
    Volume(&'a PersistentVolumeClaim, &'a PersistentVolume),
    /// Makes one.
    Provision(&'a PersistentVolumeClaim, &'a StorageClass),
    /// Tells an external provisioner, or a node that is to make the volume, where; the pod waits for it.
    Announce(&'a PersistentVolumeClaim),
}

impl<'a> Claims<'a> {
    /// The claims of a pod, or why no node can have it, in upstream's words.
    pub fn of(snapshot: &'a Snapshot, pod: &'a Pod) -> Result<Self, String> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
        let mut claims = Vec::new();
        let mut unbound_immediate = false;
        for (name, ephemeral) in claim_names(pod) {
            let Some(claim) = snapshot.persistent_volume_claims.get(&ObjectKey::new(namespace, name.as_str())) else {
                return Err(match ephemeral {
                    true => format!(
                        "waiting for ephemeral volume controller to create the persistentvolumeclaim \"{name}\""
                    ),
                    false => format!("persistentvolumeclaim \"{name}\" not found"),
                });
            };
            if claim.metadata.deletion_timestamp.is_some() {
                return Err(format!("persistentvolumeclaim \"{name}\" is being deleted"));
            }
            if ephemeral
                && controller_of(&claim.metadata).map(|owner| owner.uid.as_str()) != pod.metadata.uid.as_deref()
            {
                return Err(format!("PVC \"{namespace}/{name}\" was not created for pod (pod is not owner)"));
            }
            if claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost") {
                return Err(format!(
                    "persistentvolumeclaim \"{name}\" bound to non-existent persistentvolume \"{}\"",
                    volume::volume_name(claim)
                ));
            }
            let bound = snapshot.persistent_volumes.get(&ObjectKey::new("", volume::volume_name(claim)));
            match bound.filter(|volume| volume::is_bound(volume, claim)) {
                Some(volume) => claims.push(Claim::Bound(claim, volume)),
                None => match volume::class(snapshot, claim).filter(|class| volume::waits_for_consumer(class)) {
                    Some(class) if volume::volume_name(claim).is_empty() => {
                        claims.push(Claim::Delayed(Delayed::of(snapshot, claim, class)));
                    }
                    _ => unbound_immediate = true,
                },
            }
        }
        if unbound_immediate {
            return Err("pod has unbound immediate PersistentVolumeClaims".to_owned());
        }
        Ok(Self { snapshot, pod, claims })
    }

    /// What placing the pod on a node would bind, or why the node will not do.
    pub fn on(&self, node: &Node) -> Result<Vec<Binding<'a>>, &'static str> {
        let mut taken: BTreeSet<&str> = BTreeSet::new();
        let (mut bindings, mut promised) = (Vec::new(), 0_i64);
        for claim in &self.claims {
            match claim {
                Claim::Bound(claim, volume) => {
                    self.exclusive(claim, node)?;
                    if !volume::reaches(node, volume) {
                        return Err("node(s) didn't match PersistentVolume's node affinity");
                    }
                }
                Claim::Delayed(delayed) => {
                    let binding = self.delayed(delayed, node, &taken)?;
                    match &binding {
                        Binding::Volume(_, volume) => drop(taken.insert(volume.metadata.name.as_deref().unwrap_or(""))),
                        Binding::Provision(claim, class) if volume::room::is_counted(class) => {
                            promised = promised.saturating_add(volume::requested(claim));
                            if !volume::room::has(self.snapshot, node, class, promised) {
                                return Err(volume::room::NO_ROOM);
                            }
                        }
                        _ => {}
                    }
                    bindings.push(binding);
                }
            }
        }
        Ok(bindings)
    }

    /// What must not go while the pod is being bound: its claims, and what they are to be copies of.
    pub fn relied_on(&self) -> Vec<(mainstay_api::Kind, ObjectKey)> {
        let claims = self.claims.iter().map(|claim| match claim {
            Claim::Bound(claim, _) => *claim,
            Claim::Delayed(delayed) => delayed.claim,
        });
        claims.flat_map(|claim| volume::source::relied_on(self.snapshot, claim)).collect()
    }

    /// The hostname to which a volume that is bound to one of the claims is tied: no other node can have the pod.
    pub fn tied_to(&self) -> Option<&'a str> {
        self.claims.iter().find_map(|claim| match claim {
            Claim::Bound(_, volume) => volume::room::home(volume),
            Claim::Delayed(_) => None,
        })
    }

    /// How much room the node has left after these bindings, in hundredths; 0 where they take none.
    pub fn room_left(&self, bindings: &[Binding], node: &Node) -> i64 {
        let sizes = bindings.iter().filter_map(|binding| match binding {
            Binding::Provision(claim, class) if volume::room::is_counted(class) => Some(volume::requested(claim)),
            _ => None,
        });
        sizes.reduce(i64::saturating_add).map_or(0, |bytes| volume::room::left_after(self.snapshot, node, bytes))
    }

    /// V9: ReadWriteOncePod is one pod; ReadWriteOnce is one node.
    fn exclusive(&self, claim: &PersistentVolumeClaim, node: &Node) -> Result<(), &'static str> {
        let name = claim.metadata.name.as_deref().unwrap_or("");
        let namespace = claim.metadata.namespace.as_deref().unwrap_or("");
        let mut others = self
            .snapshot
            .found::<Pod>(Index::PodsUsing, namespace, name)
            .map(|(_, pod)| pod)
            .filter(|pod| pod.metadata.uid != self.pod.metadata.uid && !is_finished(pod))
            .filter_map(|pod| pod.spec.as_ref()?.node_name.as_deref())
            .filter(|node| !node.is_empty());
        if volume::asks_for(claim, "ReadWriteOncePod") {
            return match others.next() {
                Some(_) => {
                    Err("node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod access mode")
                }
                None => Ok(()),
            };
        }
        let one_node = !volume::asks_for(claim, "ReadWriteMany") && !volume::asks_for(claim, "ReadOnlyMany");
        match one_node && others.any(|other| Some(other) != node.metadata.name.as_deref()) {
            true => Err("node(s) unavailable due to a ReadWriteOnce volume that is in use on another node"),
            false => Ok(()),
        }
    }

    fn delayed(&self, delayed: &Delayed<'a>, node: &Node, taken: &BTreeSet<&str>) -> Result<Binding<'a>, &'static str> {
        let (claim, class) = (delayed.claim, delayed.class);
        if let Some(own) = delayed.own {
            return match volume::reaches(node, own) {
                true if volume::is_unmade(own) => Ok(Binding::Announce(claim)),
                true => Ok(Binding::Volume(claim, own)),
                false => Err("node(s) didn't match PersistentVolume's node affinity"),
            };
        }
        if delayed.may_match
            && let Some(found) = volume::matching(self.snapshot, claim, Some(node), taken)
        {
            return Ok(Binding::Volume(claim, found));
        }
        if volume::is_built_in(class) {
            if delayed.may_provision && volume::can_provision(self.snapshot, claim, node, class) {
                return Ok(Binding::Provision(claim, class));
            }
        } else if class.provisioner != "kubernetes.io/no-provisioner" {
            let selected = volume::annotation(&claim.metadata, volume::SELECTED_NODE);
            if selected.is_empty() || Some(selected) == node.metadata.name.as_deref() {
                return Ok(Binding::Announce(claim));
            }
        }
        Err("node(s) didn't find available persistent volumes to bind")
    }

    /// The writes that make the placement's volumes, and the events that tell of them. `false` when the pod must
    /// wait for an external provisioner, or for a node's copy, first.
    pub fn commit(&self, bindings: &[Binding], node: &Node) -> (Vec<Write>, Vec<Event>, bool) {
        let (mut writes, mut events, mut complete) = (Vec::new(), Vec::new(), true);
        for binding in bindings {
            match binding {
                Binding::Volume(claim, volume) => writes.extend(volume::bind(volume, claim)),
                Binding::Provision(claim, class) => {
                    writes.extend(volume::provision(self.snapshot, claim, class, node));
                    events.extend(volume::provisioned_events(claim));
                    // A copy is bound, and the pod placed, when it is whole.
                    complete &= volume::source::wanted(claim).is_none();
                }
                Binding::Announce(claim) => {
                    complete = false;
                    if volume::annotation(&claim.metadata, volume::SELECTED_NODE).is_empty() {
                        let patch = json!({"metadata": {"annotations": {volume::SELECTED_NODE: node.metadata.name}}});
                        writes.push(Write::patch(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, patch));
                    }
                }
            }
        }
        if complete {
            writes.extend(self.claims.iter().filter_map(|claim| self.mark(claim, node)));
        }
        (writes, events, complete)
    }

    /// The write that makes two placements with one exclusive claim conflict, where the volume itself is on no one
    /// node.
    fn mark(&self, claim: &Claim, node: &Node) -> Option<Write> {
        let Claim::Bound(claim, volume) = claim else { return None };
        let pinned = volume.spec.as_ref().is_some_and(|spec| spec.node_affinity.is_some());
        let shared = volume::asks_for(claim, "ReadWriteMany") || volume::asks_for(claim, "ReadOnlyMany");
        let needed = volume::asks_for(claim, "ReadWriteOncePod") || !(pinned || shared);
        let value = format!(
            "{}/{}",
            node.metadata.name.as_deref().unwrap_or(""),
            self.pod.metadata.uid.as_deref().unwrap_or("")
        );
        let patch = json!({"metadata": {"annotations": {PLACED_WITH: value}}});
        // Also when it says so already: it is the resourceVersion that another placement must have left alone.
        needed.then(|| Write::patch(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, patch))
    }
}
