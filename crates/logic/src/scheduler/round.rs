//! Many pods placed one after the other, each on the state that those before it leave.
//!
//! A round works on a snapshot of its own, to which it applies what it has decided, so that the second pod sees the
//! room that the first one took, its claims bound, and its anti-affinity. Nodes are ranked once for pods that ask for
//! the same and look at nobody else; after a placement only that node's rank is found anew. For other pods nodes are
//! looked at, beginning where the last pod's search ended, until enough will do, as upstream's
//! `percentageOfNodesToScore` does.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use mainstay_api::ObjectKey;
use serde::Deserialize;
use serde_json::Value;

use super::fit::{Refusal, Wants, consider, priority, usage_for};
use super::volumes::Binding;
use super::{bind, gated, is_due, preemption, unschedulable};
use crate::decision::{Decision, Waiting, Write};
use crate::snapshot::{Index, Snapshot, Typed, Usage};

/// Fewer nodes that will do are never enough where there are more (upstream's `minFeasibleNodesToFind`).
const MIN_FEASIBLE: usize = 100;
/// Of a large cluster's nodes, one in so many is enough (upstream's least percentage is 5).
const SAMPLE: usize = 20;
/// How many rankings are kept for pods that ask for the same.
const MAX_RANKINGS: usize = 32;

/// A node, what is used of it, and how often that has changed in this round.
pub struct Slot {
    /// The node.
    pub node: Arc<Node>,
    /// What is used of it.
    pub usage: Arc<Usage>,
    version: u32,
}

/// The nodes that will do for pods that ask for the same: score, place in the list, version of what was used.
struct Ranking {
    of: Arc<Pod>,
    nodes: BinaryHeap<(i64, Reverse<usize>, u32)>,
}

/// Pods that are placed together.
pub struct Round {
    /// The cluster with everything decided so far.
    pub snapshot: Snapshot,
    /// All nodes, by name.
    pub slots: Vec<Slot>,
    /// Whether some pod waits for victims to go, so that a node's room is not everybody's.
    nominated: bool,
    rankings: Vec<Ranking>,
    /// Pods that no node will do for, and why, as far as others may be like them.
    failures: Vec<(Arc<Pod>, String)>,
    /// Where the next search begins.
    start: usize,
}

/// Places pods in this order; a decision for each.
pub fn schedule(snapshot: &Snapshot, keys: &[ObjectKey], now: Timestamp) -> Vec<Decision> {
    let mut round = Round::new(snapshot);
    keys.iter().map(|key| round.decide(key, now)).collect()
}

impl Round {
    fn new(snapshot: &Snapshot) -> Self {
        let nominated = snapshot.indexes.count(Index::PodsNominated, "*", "") > 0;
        let slots = snapshot.nodes_with_usage();
        let slots: Vec<Slot> = slots.map(|(node, usage)| Slot { node: node.clone(), usage, version: 0 }).collect();
        let start = usize::try_from(snapshot.revision).unwrap_or(0).checked_rem(slots.len()).unwrap_or(0);
        let (rankings, failures) = (Vec::new(), Vec::new());
        Self { snapshot: snapshot.clone(), slots, nominated, rankings, failures, start }
    }

    fn decide(&mut self, key: &ObjectKey, now: Timestamp) -> Decision {
        let Some(pod) = self.snapshot.pods.get(key).filter(|pod| is_due(pod)).cloned() else {
            return Decision::default();
        };
        if let Some(decision) = gated(&pod, now) {
            return decision;
        }
        if self.slots.is_empty() {
            return unschedulable(&pod, "no nodes available to schedule pods".to_owned(), now);
        }
        let is_like = |failed: &Pod| failed.metadata.labels == pod.metadata.labels && asks_the_same(failed, &pod);
        if crate::pods::claim_names(&pod).is_empty()
            && let Some((_, message)) = self.failures.iter().find(|(failed, _)| is_like(failed))
        {
            return unschedulable(&pod, message.clone(), now);
        }
        let decision = self.place(&pod, now);
        decision.writes.iter().for_each(|write| self.charge(write));
        decision
    }

    fn place(&mut self, pod: &Arc<Pod>, now: Timestamp) -> Decision {
        // A cheap clone, so that what is found may be kept while nodes are ranked.
        let snapshot = self.snapshot.clone();
        let wants = match Wants::of(&snapshot, pod) {
            Ok(wants) => wants,
            Err(reason) => {
                let all = self.slots.len();
                let message = format!("0/{all} nodes are available: {reason}. {}", preemption::unhelpful(all, pod));
                return unschedulable(pod, message, now);
            }
        };
        let found = match wants.claims.is_none() && wants.relations.is_empty() {
            true => self.best_ranked(&wants, pod).map(|index| (index, Vec::new())),
            false => self.best_of_some(&wants),
        };
        let Some((index, bindings)) = found else { return self.none_fits(&wants, pod, now) };
        let Some(slot) = self.slots.get(index) else { return Decision::default() };
        let mut decision = Decision::default();
        let mut complete = true;
        if let Some(claims) = &wants.claims {
            (decision.writes, decision.events, complete) = claims.commit(&bindings, &slot.node);
            decision.relies = claims.relied_on();
        }
        if complete {
            bind(&mut decision, pod, &slot.node);
        } else {
            decision.waiting.push(Waiting::NoVolume);
        }
        decision
    }

    fn usage(&self, pod: &Pod, slot: &Slot) -> Arc<Usage> {
        match self.nominated {
            true => usage_for(&self.snapshot, pod, slot.node.metadata.name.as_deref().unwrap_or("")),
            false => slot.usage.clone(),
        }
    }

    fn look<'a>(&self, wants: &Wants<'a>, slot: &Slot) -> Result<(i64, Vec<Binding<'a>>), Refusal> {
        consider(&self.snapshot, wants, &slot.node, &self.usage(wants.pod, slot))
    }

    /// The best node for a pod that looks at nothing but the node itself. Ties go to the name that comes first.
    fn best_ranked(&mut self, wants: &Wants, pod: &Arc<Pod>) -> Option<usize> {
        let found = self.rankings.iter().position(|ranking| asks_the_same(&ranking.of, pod));
        let mut ranking = match found {
            Some(found) => self.rankings.swap_remove(found),
            None => {
                let rank = |(index, slot): (usize, &Slot)| {
                    Some((self.look(wants, slot).ok()?.0, Reverse(index), slot.version))
                };
                Ranking { of: pod.clone(), nodes: self.slots.iter().enumerate().filter_map(rank).collect() }
            }
        };
        let mut best = None;
        while let Some((score, Reverse(index), version)) = ranking.nodes.pop() {
            let Some(slot) = self.slots.get(index) else { continue };
            if slot.version == version {
                // Back in its old place: it will be found to be out of date.
                ranking.nodes.push((score, Reverse(index), version));
                best = Some(index);
                break;
            }
            if let Ok((score, _)) = self.look(wants, slot) {
                ranking.nodes.push((score, Reverse(index), slot.version));
            }
        }
        if self.rankings.len() >= MAX_RANKINGS {
            self.rankings.remove(0);
        }
        self.rankings.push(ranking);
        best
    }

    /// The best of enough nodes that will do.
    fn best_of_some<'a>(&mut self, wants: &Wants<'a>) -> Option<(usize, Vec<Binding<'a>>)> {
        let enough = MIN_FEASIBLE.max(self.slots.len() / SAMPLE);
        let mut best: Option<(i64, Reverse<usize>, Vec<Binding<'a>>)> = None;
        let (mut feasible, mut looked_at) = (0, 0);
        let tied = wants.claims.as_ref().and_then(|claims| claims.tied_to());
        for offset in 0..self.slots.len() {
            let index = match tied {
                // Where its volumes are: no other node will do.
                Some(hostname) => match self.named(hostname) {
                    Some(index) if offset == 0 => index,
                    Some(_) => break,
                    None => offset,
                },
                None => (self.start + offset) % self.slots.len(),
            };
            let Some(slot) = self.slots.get(index) else { break };
            looked_at += 1;
            let Ok((score, bindings)) = self.look(wants, slot) else { continue };
            feasible += 1;
            if best.as_ref().is_none_or(|(most, at, _)| (score, Reverse(index)) > (*most, *at)) {
                best = Some((score, Reverse(index), bindings));
            }
            if feasible >= enough {
                break;
            }
        }
        if self.slots.len() > enough {
            self.start = (self.start + looked_at) % self.slots.len();
        }
        best.map(|(_, Reverse(index), bindings)| (index, bindings))
    }

    /// The node of this name, where its hostname is the same.
    fn named(&self, hostname: &str) -> Option<usize> {
        let index = self.slots.binary_search_by(|slot| slot.node.metadata.name.as_deref().unwrap_or("").cmp(hostname));
        let labels = |index: &usize| self.slots.get(*index).and_then(|slot| slot.node.metadata.labels.as_ref());
        index.ok().filter(|index| {
            labels(index).and_then(|labels| labels.get(crate::volume::HOSTNAME)).is_some_and(|name| name == hostname)
        })
    }

    /// Every node refuses: why, and whether less important pods can make room.
    fn none_fits(&mut self, wants: &Wants, pod: &Arc<Pod>, now: Timestamp) -> Decision {
        let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
        let mut resolvable = Vec::new();
        for (index, slot) in self.slots.iter().enumerate() {
            let Err(refusal) = self.look(wants, slot) else { continue };
            refusal.reasons.into_iter().for_each(|reason| *reasons.entry(reason).or_default() += 1);
            if refusal.resolvable {
                resolvable.push(index);
            }
        }
        let mut counted: Vec<String> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        counted.sort();
        let message = format!("0/{} nodes are available: {}.", self.slots.len(), counted.join(", "));
        match preemption::preempt(self, wants, &resolvable, now) {
            Ok(decision) => preemption::nominated(decision, pod, message, now),
            Err(why) => {
                let message = format!("{message} {why}");
                if wants.claims.is_none() {
                    self.failures.push((pod.clone(), message.clone()));
                }
                unschedulable(pod, message, now)
            }
        }
    }

    /// Takes a write for done.
    fn charge(&mut self, write: &Write) {
        assume(&mut self.snapshot, write);
        match write {
            Write::Bind { node, .. } => self.touch(node),
            Write::Patch { kind, patch, .. } if kind.plural == Pod::PLURAL && is_nomination(patch) => {
                self.nominated = true;
                self.rankings.clear();
            }
            _ => {}
        }
    }

    /// Less is free on a node than there was.
    fn touch(&mut self, node: &str) {
        let Ok(index) = self.slots.binary_search_by(|slot| slot.node.metadata.name.as_deref().unwrap_or("").cmp(node))
        else {
            return;
        };
        if let Some(slot) = self.slots.get_mut(index) {
            slot.usage = self.snapshot.usage(node).cloned().unwrap_or_default();
            slot.version += 1;
        }
    }
}

fn is_nomination(patch: &Value) -> bool {
    patch.pointer("/status/nominatedNodeName").is_some()
}

/// Takes one of the scheduler's writes for done, as far as other pods' places depend on it. Where its object is gone,
/// is another one of that name, or has what the write gives it, there is nothing to take.
pub fn assume(snapshot: &mut Snapshot, write: &Write) {
    match write {
        Write::Bind { key, uid, node } => change::<Pod>(snapshot, key, uid, |pod| {
            let named = &mut pod.spec.get_or_insert_default().node_name;
            if named.as_deref().unwrap_or("").is_empty() {
                *named = Some(node.clone());
            }
        }),
        Write::Create { kind, object } if kind.plural == PersistentVolume::PLURAL => {
            let key = ObjectKey::of(object);
            if !snapshot.persistent_volumes.contains_key(&key)
                && let Ok(volume) = PersistentVolume::deserialize(object)
            {
                snapshot.set(&key, Some(Arc::new(volume)));
            }
        }
        Write::Patch { kind, key, uid, patch, .. } if kind.plural == PersistentVolume::PLURAL => {
            merge::<PersistentVolume>(snapshot, key, uid, patch);
        }
        Write::Patch { kind, key, uid, patch, .. } if kind.plural == PersistentVolumeClaim::PLURAL => {
            merge::<PersistentVolumeClaim>(snapshot, key, uid, patch);
        }
        Write::Patch { kind, key, uid, patch, .. } if kind.plural == Pod::PLURAL && is_nomination(patch) => {
            merge::<Pod>(snapshot, key, uid, patch);
        }
        Write::Delete { kind, key, uid, .. } if kind.plural == Pod::PLURAL => {
            change::<Pod>(snapshot, key, uid, |pod| {
                pod.metadata.deletion_timestamp.get_or_insert(Time(Timestamp::UNIX_EPOCH));
            });
        }
        _ => {}
    }
}

fn change<T: Typed + Clone>(snapshot: &mut Snapshot, key: &ObjectKey, uid: &str, change: impl FnOnce(&mut T)) {
    let Some(mut object) = T::of(snapshot).get(key).map(|object| T::clone(object)) else { return };
    // A volume that its decision has made itself has no uid yet.
    if object.object_meta_mut().uid.as_deref().unwrap_or("") == uid {
        change(&mut object);
        snapshot.set(key, Some(Arc::new(object)));
    }
}

fn merge<T>(snapshot: &mut Snapshot, key: &ObjectKey, uid: &str, patch: &Value)
where
    T: Typed + Clone + serde::Serialize + serde::de::DeserializeOwned,
{
    change::<T>(snapshot, key, uid, |object| {
        let Ok(mut merged) = serde_json::to_value(&*object) else { return };
        mainstay_api::object::merge(&mut merged, patch.clone());
        if let Ok(new) = serde_json::from_value(merged) {
            *object = new;
        }
    });
}

/// Whether two pods fit the same nodes equally well, but for their claims and what other pods make of their labels.
fn asks_the_same(one: &Pod, other: &Pod) -> bool {
    let owner = |pod: &Pod| crate::ownership::controller_of(&pod.metadata).map(|owner| owner.uid.clone());
    let (Some(a), Some(b)) = (one.spec.as_ref(), other.spec.as_ref()) else { return false };
    one.metadata.namespace == other.metadata.namespace
        && owner(one) == owner(other)
        && priority(one) == priority(other)
        && a.preemption_policy == b.preemption_policy
        && a.node_selector == b.node_selector
        && a.affinity == b.affinity
        && a.tolerations == b.tolerations
        && a.topology_spread_constraints == b.topology_spread_constraints
        && a.overhead == b.overhead
        && a.resources == b.resources
        && same_containers(&a.containers, &b.containers)
        && same_containers(
            a.init_containers.as_deref().unwrap_or_default(),
            b.init_containers.as_deref().unwrap_or_default(),
        )
}

fn same_containers(
    one: &[k8s_openapi::api::core::v1::Container],
    other: &[k8s_openapi::api::core::v1::Container],
) -> bool {
    one.len() == other.len()
        && one
            .iter()
            .zip(other)
            .all(|(a, b)| a.resources == b.resources && a.ports == b.ports && a.restart_policy == b.restart_policy)
}
