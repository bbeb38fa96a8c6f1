//! How endpoints are put into EndpointSlices, for the two controllers that write them.

use std::collections::BTreeMap;

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mainstay_api::{Kind, ObjectKey, kinds};
use serde_json::{Value, json};

use crate::decision::{Decision, Write};
use crate::history;
use crate::matching::Labels;
use crate::ownership::controller_reference;
use crate::snapshot::Objects;

/// Endpoints in one slice; upstream's default.
pub const MAX_ENDPOINTS: usize = 100;

/// The label that says who writes a slice.
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";

/// Address family and ports: what all endpoints of one slice share.
pub type Group = (&'static str, Vec<Port>);
/// (name, protocol, number, application protocol).
pub type Port = (String, String, i32, Option<String>);
/// By (address, pod uid): what makes an endpoint the same one.
pub type Endpoints = BTreeMap<(String, String), Endpoint>;

/// The object that slices are made for.
pub struct Owner<'a> {
    /// Service, or Endpoints.
    pub kind: &'a Kind,
    /// Its metadata; its name is the slices' prefix.
    pub metadata: &'a ObjectMeta,
    /// The labels that its slices have.
    pub labels: Labels,
}

/// The writes that bring an owner's slices to the wanted endpoints. Slices of ports or families that nobody has any
/// more go last: their endpoints are in the new ones by then. `all` are all slices there are: their names are taken.
pub fn arrange(
    decision: &mut Decision,
    owner: &Owner,
    wanted: BTreeMap<Group, Endpoints>,
    slices: &[&EndpointSlice],
    all: &Objects<EndpointSlice>,
) {
    let mut existing: BTreeMap<Group, Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices {
        existing.entry(group_of(slice)).or_default().push(slice);
    }
    let mut names = Names { owner, all, next: 0 };
    let mut fresh = Vec::new();
    for (group, endpoints) in wanted {
        let slices = existing.remove(&group).unwrap_or_default();
        fresh.extend(pack(decision, &group, endpoints, &slices, &mut names));
    }
    let stale: Vec<Write> =
        existing.values().flatten().map(|slice| Write::delete(&kinds::ENDPOINT_SLICE, &slice.metadata)).collect();
    // A slice that may not be written keeps no other, but what replaces a slice is there before that goes.
    if fresh.is_empty() || stale.is_empty() {
        fresh.into_iter().chain(stale).for_each(|write| decision.push_apart(write));
    } else {
        decision.apart(|decision| decision.writes.extend(fresh.into_iter().chain(stale)));
    }
}

/// Whether a slice is written by this controller.
pub fn is_managed_by(slice: &EndpointSlice, manager: &str) -> bool {
    slice.metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|by| by == manager)
}

fn group_of(slice: &EndpointSlice) -> Group {
    let family = if slice.address_type == "IPv6" { "IPv6" } else { "IPv4" };
    let of_port = |port: &EndpointPort| {
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        (port.name.clone().unwrap_or_default(), protocol, port.port.unwrap_or(0), port.app_protocol.clone())
    };
    let mut ports: Vec<Port> = slice.ports.iter().flatten().map(of_port).collect();
    ports.sort();
    (family, ports)
}

/// Puts a group's endpoints into slices: each stays where it is, new ones fill the slices in order of name, what is
/// left over gets slices of its own, and slices that become empty go (but for the last one of the group). What makes
/// slices is given back.
fn pack(
    decision: &mut Decision,
    group: &Group,
    mut endpoints: Endpoints,
    slices: &[&EndpointSlice],
    names: &mut Names,
) -> Vec<Write> {
    let mut contents: Vec<Vec<Endpoint>> = Vec::new();
    for slice in slices {
        let stays =
            slice.endpoints.iter().flatten().take(MAX_ENDPOINTS).filter_map(|old| endpoints.remove(&identity(old)));
        contents.push(stays.collect());
    }
    let mut rest = endpoints.into_values();
    for content in &mut contents {
        let room = MAX_ENDPOINTS.saturating_sub(content.len());
        content.extend(rest.by_ref().take(room));
    }
    let mut fresh: Vec<Vec<Endpoint>> = Vec::new();
    loop {
        let content: Vec<Endpoint> = rest.by_ref().take(MAX_ENDPOINTS).collect();
        if content.is_empty() && (!slices.is_empty() || !fresh.is_empty()) {
            break;
        }
        fresh.push(content);
    }
    let all_empty = contents.iter().all(Vec::is_empty);
    for (index, (slice, content)) in slices.iter().zip(contents).enumerate() {
        let placeholder = all_empty && index == 0;
        if content.is_empty() && !placeholder {
            decision.push_apart(Write::delete(&kinds::ENDPOINT_SLICE, &slice.metadata));
        } else if let Some(patch) = difference(names.owner, slice, &content) {
            decision.push_apart(Write::patch(&kinds::ENDPOINT_SLICE, &slice.metadata, patch));
        }
    }
    fresh.iter().map(|content| create(names.owner, group, content, names.take())).collect()
}

/// What makes an endpoint the same one: its address and its pod.
fn identity(endpoint: &Endpoint) -> (String, String) {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.clone()).unwrap_or_default();
    (endpoint.addresses.first().cloned().unwrap_or_default(), uid)
}

/// The merge patch that brings a slice to this content, if it is not there yet.
fn difference(owner: &Owner, slice: &EndpointSlice, content: &[Endpoint]) -> Option<Value> {
    let mut patch = json!({});
    if slice.endpoints.as_deref().unwrap_or_default() != content {
        patch["endpoints"] = json!(content);
    }
    let wanted = &owner.labels;
    let have = slice.metadata.labels.clone().unwrap_or_default();
    if *wanted != have {
        let gone = have.keys().filter(|key| !wanted.contains_key(*key)).map(|key| (key.clone(), Value::Null));
        let kept = wanted.iter().map(|(key, value)| (key.clone(), json!(value)));
        patch["metadata"] = json!({ "labels": gone.chain(kept).collect::<serde_json::Map<_, _>>() });
    }
    patch.as_object().is_some_and(|patch| !patch.is_empty()).then_some(patch)
}

fn create(owner: &Owner, (family, ports): &Group, content: &[Endpoint], name: String) -> Write {
    let port = |(name, protocol, number, app_protocol): &Port| {
        json!(EndpointPort {
            name: Some(name.clone()),
            protocol: Some(protocol.clone()),
            port: Some(*number),
            app_protocol: app_protocol.clone()
        })
    };
    let object = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "namespace": owner.metadata.namespace, "name": name,
            "generateName": format!("{}-", owner.metadata.name.as_deref().unwrap_or("")),
            "labels": owner.labels,
            "ownerReferences": [controller_reference(owner.kind, owner.metadata)],
        },
        "addressType": family, "endpoints": content, "ports": ports.iter().map(port).collect::<Vec<_>>(),
    });
    Write::Create { kind: kinds::ENDPOINT_SLICE.clone(), object }
}

/// Free names for new slices: `<owner>-<five letters>`, the same whenever the same ones are taken.
struct Names<'a> {
    owner: &'a Owner<'a>,
    all: &'a Objects<EndpointSlice>,
    next: u64,
}

impl Names<'_> {
    fn take(&mut self) -> String {
        let meta = self.owner.metadata;
        loop {
            let suffix = history::suffix(meta.uid.as_deref().unwrap_or(""), 0, self.next);
            self.next += 1;
            let name = format!("{}-{suffix}", meta.name.as_deref().unwrap_or(""));
            let key = ObjectKey::new(meta.namespace.as_deref().unwrap_or(""), name.as_str());
            if !self.all.contains_key(&key) {
                return name;
            }
        }
    }
}

#[cfg(test)]
mod tests;
