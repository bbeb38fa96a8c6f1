//! Sums of a snapshot: what the pods on a node ask for, what a node's volumes were promised, which volumes are free.
//! Each change adds and takes off what it is part of; nothing is ever summed up anew.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, PersistentVolume, Pod};
use mainstay_api::ObjectKey;
use rpds::RedBlackTreeMapSync;

use super::Snapshot;
use crate::pods::is_finished;
use crate::resources::{self, Amounts, HostPort};

/// What a node has, and what its pods that are not finished use of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// Allocatable amounts (capacity where it does not say); nothing while there is no such node.
    pub has: Arc<Amounts>,
    /// The sum of its pods' requests.
    pub used: Amounts,
    /// How many pods.
    pub pods: i64,
    /// How many of its pods have each host port: one, but for pods that were bound by hand.
    pub ports: BTreeMap<HostPort, u32>,
}

/// All sums.
#[derive(Clone, Default, Debug)]
pub struct Sums {
    /// By node.
    nodes: RedBlackTreeMapSync<Arc<str>, Arc<Usage>>,
    /// Bytes promised to image volumes, by the hostname that they are tied to.
    promised: RedBlackTreeMapSync<Arc<str>, i64>,
    /// Volumes that anybody may have: by class, capacity and name.
    free: RedBlackTreeMapSync<(Arc<str>, i64, Arc<str>), ()>,
    /// The same by class, hostname (`""`: not tied to one), capacity and name.
    free_on: RedBlackTreeMapSync<(Arc<str>, Arc<str>, i64, Arc<str>), ()>,
}

/// What a volume is part of.
pub struct VolumeShare<'a> {
    /// The hostname that it is tied to; `""`: none.
    pub home: &'a str,
    /// Bytes that an image volume was promised; 0 of others.
    pub promised: i64,
    /// Its class and capacity, where anybody may have it.
    pub free: Option<(&'a str, i64)>,
}

impl Snapshot {
    /// A volume came, changed or went.
    pub fn account_volume(&mut self, key: &ObjectKey, old: Option<VolumeShare<'_>>, new: Option<VolumeShare<'_>>) {
        let sums = &mut self.sums;
        for (share, sign) in [(old, -1), (new, 1)].into_iter().filter_map(|(share, sign)| Some((share?, sign))) {
            if !share.home.is_empty() && share.promised != 0 {
                let sum = sums.promised.get(share.home).copied().unwrap_or(0) + sign * share.promised;
                match sum {
                    0 => drop(sums.promised.remove_mut(share.home)),
                    sum => sums.promised.insert_mut(share.home.into(), sum),
                }
            }
            let Some((class, bytes)) = share.free else { continue };
            let (class, name): (Arc<str>, _) = (class.into(), key.name.clone());
            let (all, on) = ((class.clone(), bytes, name.clone()), (class, share.home.into(), bytes, name));
            if sign > 0 {
                sums.free.insert_mut(all, ());
                sums.free_on.insert_mut(on, ());
            } else {
                sums.free.remove_mut(&all);
                sums.free_on.remove_mut(&on);
            }
        }
    }

    /// What a node has and what is used of it; `None` where there is neither node nor pod.
    pub fn usage(&self, node: &str) -> Option<&Arc<Usage>> {
        self.sums.nodes.get(node)
    }

    /// All nodes in order of name, each with what it has and what is used of it. A walk along both, which are in one
    /// order: looking each node up by name cost a scheduler's round more than judging it.
    pub fn nodes_with_usage(&self) -> impl Iterator<Item = (&Arc<Node>, Arc<Usage>)> {
        let mut sums = self.sums.nodes.iter().peekable();
        self.nodes.iter().map(move |(key, node)| {
            while sums.next_if(|(name, _)| ***name < *key.name).is_some() {}
            let own = sums.next_if(|(name, _)| **name == key.name);
            (node, own.map(|(_, usage)| usage.clone()).unwrap_or_default())
        })
    }

    /// Bytes promised to the image volumes that are tied to a hostname.
    pub fn promised_on(&self, hostname: &str) -> i64 {
        self.sums.promised.get(hostname).copied().unwrap_or(0)
    }

    /// The free volumes of a class with at least so many bytes, smallest first, ties by name.
    pub fn free_volumes(&self, class: &str, bytes: i64) -> impl Iterator<Item = &Arc<PersistentVolume>> {
        let class: Arc<str> = class.into();
        let all = self.sums.free.range((class.clone(), bytes, Arc::from(""))..);
        let all = all.take_while(move |((of, ..), ())| *of == class);
        all.filter_map(|((.., name), ())| self.persistent_volumes.get(&ObjectKey::new("", name.clone())))
    }

    /// As [`Snapshot::free_volumes`], of those that are tied to a hostname (`""`: to none).
    pub fn free_volumes_on(
        &self,
        class: &str,
        hostname: &str,
        bytes: i64,
    ) -> impl Iterator<Item = &Arc<PersistentVolume>> {
        let (class, hostname): (Arc<str>, Arc<str>) = (class.into(), hostname.into());
        let all = self.sums.free_on.range((class.clone(), hostname.clone(), bytes, Arc::from(""))..);
        let all = all.take_while(move |((of, on, ..), ())| *of == class && *on == hostname);
        all.filter_map(|((.., name), ())| self.persistent_volumes.get(&ObjectKey::new("", name.clone())))
    }
}

fn change(snapshot: &mut Snapshot, node: &str, by: impl FnOnce(&mut Usage)) {
    let nodes = &mut snapshot.sums.nodes;
    let mut usage = nodes.get(node).cloned().unwrap_or_default();
    by(Arc::make_mut(&mut usage));
    if *usage == Usage::default() {
        nodes.remove_mut(node);
    } else {
        nodes.insert_mut(node.into(), usage);
    }
}

/// A node came, changed or went.
pub fn set_node(snapshot: &mut Snapshot, key: &ObjectKey, new: Option<&Node>) {
    let has = new.map(resources::of_node).unwrap_or_default();
    if snapshot.usage(&key.name).is_none_or(|usage| *usage.has != has) {
        change(snapshot, &key.name, |usage| usage.has = Arc::new(has));
    }
}

/// The node that a pod takes room on.
fn taken(pod: &Pod) -> Option<&str> {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or("");
    (!node.is_empty() && !is_finished(pod)).then_some(node)
}

/// A pod came, changed or went.
pub fn set_pod(snapshot: &mut Snapshot, key: &ObjectKey, old: Option<&Pod>, new: Option<&Pod>) {
    super::terms::set_pod(snapshot, key, old, new);
    super::refusals::set_pod(snapshot, key, old, new);
    let (was, is) = (old.and_then(taken), new.and_then(taken));
    let same_spec = || old.and_then(|pod| pod.spec.as_ref()) == new.and_then(|pod| pod.spec.as_ref());
    if was == is && (was.is_none() || same_spec()) {
        return;
    }
    if let (Some(node), Some(pod)) = (was, old) {
        change(snapshot, node, |usage| {
            usage.used.subtract(&resources::of_pod(pod));
            usage.pods -= 1;
            for port in resources::host_ports(pod) {
                if let Some(count) = usage.ports.get_mut(&port) {
                    *count -= 1;
                    if *count == 0 {
                        usage.ports.remove(&port);
                    }
                }
            }
        });
    }
    if let (Some(node), Some(pod)) = (is, new) {
        change(snapshot, node, |usage| {
            usage.used.add(&resources::of_pod(pod));
            usage.pods += 1;
            resources::host_ports(pod).into_iter().for_each(|port| *usage.ports.entry(port).or_default() += 1);
        });
    }
}
