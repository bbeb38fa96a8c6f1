//! Many pods on many nodes, over HTTP: 10,000 pods on 100 hollow nodes, from their creation to Ready. The clients, the
//! nodes and the server share this machine's processors.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use mainstay_api::{kinds, object};
use serde_json::json;
use tokio::task::JoinSet;

use super::cluster::{Cluster, NAMESPACE, put};
use super::table::Table;
use super::{hollow, processes};

const NODES: usize = 100;
const PODS: usize = 10_000;
/// Who creates pods.
const CREATORS: usize = 16;
/// What is looked at beside each other: the first and the last so many.
const PART: usize = 1_000;
/// Nodes that share a connection.
const PER_CLIENT: usize = 10;
/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// Makes the nodes, then the pods.
pub async fn measure(cluster: &Cluster, table: &mut Table) -> Result<()> {
    let mut nodes = JoinSet::new();
    for first in (0..NODES).step_by(PER_CLIENT) {
        let client = cluster.another_client()?;
        for number in first..NODES.min(first + PER_CLIENT) {
            let name = format!("hollow-{number:04}");
            hollow::register(&client, &name, 2 * PODS / NODES).await.context("a node")?;
            nodes.spawn(hollow::live(client.clone(), name, number));
        }
    }
    let before = processes::memory(cluster.pid()?)?;
    let begun = Instant::now();
    let ready = tokio::select! {
        ready = tokio::time::timeout(PATIENCE, run(cluster)) => ready.context("not all pods became Ready")??,
        Some(ended) = nodes.join_next() => bail!("a node ended: {ended:?}"),
    };
    let after = processes::memory(cluster.pid()?)?;
    let rate = |from: usize, to: usize| {
        let begin = if from == 0 { begun } else { ready[from - 1] };
        (to - from) as f64 / ready[to - 1].duration_since(begin).as_secs_f64()
    };
    let name = format!("{PODS} pods on {NODES} hollow nodes, creation to Ready");
    let ends = format!("first {PART}: {:.0}/s, last: {:.0}/s", rate(0, PART), rate(PODS - PART, PODS));
    table.row(&name, format!("{:.0} pods/s", rate(0, PODS)), &ends, "", ">= 1000/s");
    let grown = after.rss.saturating_sub(before.rss);
    let each = format!("{:.1} KiB per pod", grown as f64 / PODS as f64);
    table.row(
        "the server's RSS before, after",
        format!("{} / {} MiB", before.rss / 1024, after.rss / 1024),
        &each,
        "",
        "",
    );
    Ok(())
}

/// Makes all pods; when each became Ready, in order.
async fn run(cluster: &Cluster) -> Result<Vec<Instant>> {
    let mut watch = cluster.watch_from_now(&kinds::POD).await?;
    let mut creators = JoinSet::new();
    for creator in 0..CREATORS {
        let client = cluster.another_client()?;
        creators.spawn(async move {
            for index in (creator..PODS).step_by(CREATORS) {
                let container = json!({ "name": "main", "image": "test.local/busybox:1",
                    "resources": { "requests": { "cpu": "10m", "memory": "16Mi" } } });
                let pod = json!({ "metadata": { "name": format!("scale-{index:05}"), "labels": { "app": "scale" } },
                    "spec": { "nodeSelector": { hollow::LABEL: "true" }, "containers": [container],
                        "terminationGracePeriodSeconds": 0 } });
                client.create(&kinds::POD, NAMESPACE, &pod).await?;
            }
            anyhow::Ok(())
        });
    }
    let (mut ready, mut seen) = (Vec::with_capacity(PODS), std::collections::BTreeSet::new());
    while ready.len() < PODS {
        let event = tokio::select! {
            event = watch.next() => event?.context("the watch ended")?,
            Some(created) = creators.join_next() => {
                created??;
                continue;
            }
        };
        let Some(pod) = put(&event) else { continue };
        if object::text(pod, &["status", "phase"]) == "Running" && seen.insert(object::name(pod).to_owned()) {
            ready.push(Instant::now());
        }
    }
    Ok(ready)
}
