//! Nodes without machines: each registers a Node, renews its Lease, watches its own pods over HTTP and says at once
//! that they run and are ready.

use std::time::Duration;

use anyhow::{Context as _, Result};
use mainstay_api::{kinds, object};
use mainstay_client::{Client, ListOptions, PatchType, WatchEvent};
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// The label of all of them.
pub const LABEL: &str = "bench.mainstay.io/hollow";
/// As the kubelet does.
const RENEW: Duration = Duration::from_secs(10);
/// Status writes of one node on their way at once.
const AT_ONCE: usize = 16;

/// Makes the Node, ready, with room for so many pods.
pub async fn register(client: &Client, name: &str, pods: usize) -> Result<()> {
    let labels = json!({ LABEL: "true", "kubernetes.io/hostname": name });
    client.create(&kinds::NODE, "", &json!({ "metadata": { "name": name, "labels": labels } })).await?;
    let room = json!({ "cpu": "1000", "memory": "1Ti", "pods": pods.to_string() });
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let ready = json!({ "type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now,
        "lastTransitionTime": now });
    let status = json!({ "status": { "capacity": room, "allocatable": room, "conditions": [ready] } });
    client.patch(&kinds::NODE, "", name, "status", PatchType::Merge, &status).await?;
    Ok(())
}

/// Lives until it is dropped.
pub async fn live(client: Client, name: String, number: usize) -> Result<()> {
    tokio::try_join!(renew(&client, &name), serve(&client, &name, number)).map(|_| ())
}

/// Renews its Lease until it is dropped.
pub async fn renew(client: &Client, name: &str) -> Result<()> {
    let lease = |now: jiff::Timestamp| {
        let now = now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
        json!({ "metadata": { "name": name },
            "spec": { "holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": now } })
    };
    let namespace = "kube-node-lease";
    client.create(&kinds::LEASE, namespace, &lease(jiff::Timestamp::now())).await?;
    loop {
        tokio::time::sleep(RENEW).await;
        let patch = lease(jiff::Timestamp::now());
        client.patch(&kinds::LEASE, namespace, name, "", PatchType::Merge, &patch).await?;
    }
}

async fn serve(client: &Client, name: &str, number: usize) -> Result<()> {
    let options = ListOptions { field_selector: format!("spec.nodeName={name}"), ..ListOptions::default() };
    let (mut writes, mut count) = (JoinSet::new(), 0_usize);
    let mut watch = client.watch(&kinds::POD, "", &options).await?;
    loop {
        tokio::select! {
            event = watch.next(), if writes.len() < AT_ONCE => {
                let WatchEvent::Put(pod) = event?.context("the watch of a node ended")? else { continue };
                if object::text(&pod, &["status", "phase"]) == "Running" {
                    continue;
                }
                count += 1;
                let (client, status) = (client.clone(), running(&pod, number, count));
                writes.spawn(async move {
                    let (namespace, name) = (object::namespace(&pod), object::name(&pod));
                    client.patch(&kinds::POD, namespace, name, "status", PatchType::Merge, &status).await
                });
            }
            Some(written) = writes.join_next() => drop(written??),
        }
    }
}

/// What the kubelet says of a pod that runs.
pub fn running(pod: &Value, node: usize, index: usize) -> Value {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition = |of: &str| json!({ "type": of, "status": "True", "lastTransitionTime": now });
    let conditions: Vec<Value> =
        ["PodScheduled", "Initialized", "ContainersReady", "Ready"].into_iter().map(condition).collect();
    let container = |container: &Value| {
        json!({ "name": container["name"], "image": container["image"], "imageID": "", "ready": true, "started": true,
            "restartCount": 0, "state": { "running": { "startedAt": now } } })
    };
    let containers: Vec<Value> = pod["spec"]["containers"].as_array().into_iter().flatten().map(container).collect();
    let address = format!("10.{}.{}.{}", 128 + node / 256, node % 256, index % 254 + 1);
    json!({ "status": { "phase": "Running", "startTime": now, "podIP": address, "podIPs": [{ "ip": address }],
        "conditions": conditions, "containerStatuses": containers } })
}
