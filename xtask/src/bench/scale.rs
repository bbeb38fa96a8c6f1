//! Many pods on many nodes. Over HTTP: 10,000 pods on 100 hollow nodes, from their creation to Ready; the clients, the
//! nodes and the server share this machine's processors. Without sockets: the `scale` example of the simulator's crate.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use mainstay_api::{kinds, object};
use serde_json::{Value, json};
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

/// What is placed without sockets: what kind of pods, on how many nodes, how many, and what is aimed at.
const INSIDE: [(&str, usize, usize, &str); 7] = [
    ("plain", 1_000, 30_000, ">= 5000/s"),
    ("plain", 5_000, 150_000, ">= 5000/s"),
    ("apart", 1_000, 30_000, ""),
    ("apart", 5_000, 30_000, ""),
    ("claims", 1_000, 30_000, ""),
    ("sets", 1_000, 20_000, ""),
    ("ordered", 1_000, 3_000, ""),
];

/// Runs the simulator's example, which is the pipeline, the store and the controllers in one process.
pub fn inside(table: &mut Table) -> Result<()> {
    let own = std::env::current_exe()?;
    let example = own.parent().context("a folder")?.join("examples/scale");
    for (sort, nodes, pods, target) in INSIDE {
        let words = [nodes.to_string(), pods.to_string(), sort.to_owned()];
        let output = std::process::Command::new(&example).args(words).output();
        let output = output.with_context(|| format!("{} (cargo build --example scale)", example.display()))?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout)?;
        let number = |name: &str| report[name].as_f64().unwrap_or(f64::NAN);
        let ends = format!("first {PART}: {:.0}/s, last tenth: {:.0}/s", number("first"), number("last"));
        let name = format!("{sort}: {pods} pods placed on {nodes} nodes, no sockets");
        table.row(&name, format!("{:.0} pods/s", number("all")), ends, "", target);
        let times = |name: &str| format!("{} / {} us", report[name][0], report[name][1]);
        let beside = format!("with one node's watch: {}", times("event_us_one_watch"));
        table.row("  commit to event, all nodes watching: p50 / p99", times("event_us_all_nodes"), beside, "", "");
        let memory = format!("{:.1} KiB", number("bytes_per_pod") / 1024.0);
        table.row("  memory per pod; loading all of it", memory, format!("{} ms", report["load_ms"]), "", "");
    }
    Ok(())
}
