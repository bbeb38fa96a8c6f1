//! The anti-affinity terms of pods on nodes, found by the labels of the pods that they keep away.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodAffinityTerm};
use mainstay_api::ObjectKey;

use super::Snapshot;
use super::index::Index;
use crate::pods::{is_finished, required_anti_affinity};

/// The terms that are in force: those of a pod that is on a node and not finished.
fn in_force(pod: &Pod) -> &[PodAffinityTerm] {
    let bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_deref().is_some_and(|node| !node.is_empty()));
    if bound && !is_finished(pod) { required_anti_affinity(pod) } else { &[] }
}

/// The namespaces that a term may speak of (`*`: any), each with the labels that it asks for by value.
fn scopes<'a>(pod: &'a Pod, term: &'a PodAffinityTerm) -> Option<(Vec<&'a str>, Vec<(&'a str, &'a str)>)> {
    let selector = term.label_selector.as_ref()?;
    let pairs = selector.match_labels.iter().flatten().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let listed = term.namespaces.as_deref().unwrap_or_default();
    let namespaces = match (listed, &term.namespace_selector) {
        (_, Some(_)) => vec!["*"],
        ([], None) => vec![pod.metadata.namespace.as_deref().unwrap_or("")],
        (listed, None) => listed.iter().map(String::as_str).collect(),
    };
    Some((namespaces, pairs))
}

/// A pod came, changed or went.
pub fn set_pod(snapshot: &mut Snapshot, key: &ObjectKey, old: Option<&Pod>, new: Option<&Pod>) {
    let terms = [old, new].map(|pod| pod.map(in_force).unwrap_or_default());
    if terms[0] == terms[1] {
        return;
    }
    // Several terms of a pod may be found under one label: those of the old state go before those of the new come.
    for (pod, terms, is_new) in [(old, terms[0], false), (new, terms[1], true)] {
        for (namespaces, pairs) in terms.iter().filter_map(|term| scopes(pod?, term)) {
            for namespace in namespaces {
                let pairs = Some(pairs.as_slice());
                let (old, new) = if is_new { (None, pairs) } else { (pairs, None) };
                snapshot.indexes.set_selector(Index::AntiAffinity, namespace, key, old, new);
            }
        }
    }
}

impl Snapshot {
    /// The pods on nodes whose anti-affinity terms may keep a pod of this namespace with these labels away.
    pub fn keeping_away(
        &self,
        namespace: &str,
        labels: Option<&BTreeMap<String, String>>,
    ) -> impl Iterator<Item = &Arc<Pod>> {
        // Most clusters have no such terms, and each pod that is placed asks.
        let scopes: &[&str] = if self.indexes.has_any(Index::AntiAffinity) { &[namespace, "*"] } else { &[] };
        let keys: BTreeSet<&ObjectKey> = scopes
            .iter()
            .flat_map(|namespace| self.indexes.selecting(Index::AntiAffinity, namespace, labels))
            .collect();
        keys.into_iter().filter_map(|key| self.pods.get(key))
    }
}
