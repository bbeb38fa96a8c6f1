//! A machine's Node: its name belongs to one machine, and its range of pod addresses comes with it.

use std::net::Ipv4Addr;
use std::path::Path;

use mainstay_api::kinds;
use mainstay_client::{Client, Error, PatchType};
use mainstay_logic::nodes::MACHINE;
use serde_json::{Value, json};

use crate::network::has_leases;

use super::{JoinError, asking, text};

/// Makes the Node, or takes the one that this machine has already. Gives its range of pod addresses; `wanted` is the
/// one that its pods have addresses of.
///
/// # Errors
/// [`JoinError::NameTaken`] when another machine is that node; [`JoinError::NoRange`]; what the server said.
pub async fn claim(
    client: &Client,
    name: &str,
    machine: &str,
    address: Ipv4Addr,
    wanted: Option<&str>,
) -> Result<String, JoinError> {
    let addresses = json!([
        { "type": "InternalIP", "address": address.to_string() },
        { "type": "Hostname", "address": name },
    ]);
    let metadata =
        json!({ "name": name, "annotations": { MACHINE: machine }, "labels": { "kubernetes.io/hostname": name } });
    let mut node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": metadata, "status": { "addresses": addresses },
    });
    if let Some(range) = wanted.filter(|range| !range.is_empty()) {
        node["spec"] = json!({ "podCIDR": range, "podCIDRs": [range] });
    }
    let found = match client.create(&kinds::NODE, "", &node).await {
        Ok(made) => made,
        Err(error) if error.is_conflict() => take(client, name, machine, &addresses).await?,
        Err(error) => return Err(JoinError::Api { what: "making this machine's Node", source: error }),
    };
    match text(&found, &["spec", "podCIDR"]) {
        "" => Err(JoinError::NoRange(name.to_owned())),
        range => Ok(range.to_owned()),
    }
}

/// As [`claim`], with a wish that is given up where another Node has that range (empty: no wish); but not by a machine
/// whose pods have addresses of it. The one way by which a machine that was a node is one again, with a server of its
/// own or without.
///
/// # Errors
/// As [`claim`]; [`JoinError::RangeTaken`].
pub async fn claim_or_other(
    client: &Client,
    data_dir: &Path,
    name: &str,
    machine: &str,
    address: Ipv4Addr,
    wanted: &str,
) -> Result<String, JoinError> {
    match claim(client, name, machine, address, Some(wanted)).await {
        Err(JoinError::Api { source, .. })
            if source.code() == Some(422) && !wanted.is_empty() && source.to_string().contains("spec.podCIDR") =>
        {
            match has_leases(&data_dir.join("network")) {
                true => Err(JoinError::RangeTaken(wanted.to_owned())),
                false => claim(client, name, machine, address, None).await,
            }
        }
        done => done,
    }
}

/// The Node that is there, if it is this machine's or nobody's.
async fn take(client: &Client, name: &str, machine: &str, addresses: &Value) -> Result<Value, JoinError> {
    let doing = "reading this machine's Node";
    let node = client.get(&kinds::NODE, "", name).await.map_err(asking(doing))?;
    let holder = text(&node, &["metadata", "annotations", MACHINE]);
    if !holder.is_empty() && holder != machine {
        return Err(JoinError::NameTaken(name.to_owned()));
    }
    if holder.is_empty() {
        // Only as it was seen: of two machines that find nobody's Node, one has it.
        let version = text(&node, &["metadata", "resourceVersion"]);
        let patch = json!({ "metadata": { "resourceVersion": version, "annotations": { MACHINE: machine } } });
        let taken = client.patch(&kinds::NODE, "", name, "", PatchType::Merge, &patch).await;
        taken.map_err(|error: Error| match error.is_conflict() {
            true => JoinError::NameTaken(name.to_owned()),
            false => JoinError::Api { what: "taking this machine's Node", source: error },
        })?;
    }
    let patch = json!({ "status": { "addresses": addresses } });
    let written = client.patch(&kinds::NODE, "", name, "status", PatchType::Merge, &patch).await;
    written.map_err(asking("writing this machine's address"))?;
    Ok(node)
}
