//! A pod that says more than anybody can keep: log lines without end, and probes that fail every second in other words
//! each time. What is kept of it is bounded (X4).

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mainstay_api::kinds;
use mainstay_client::ListOptions;
use serde_json::{Value, json};

use crate::bench::cluster::{Cluster, NAMESPACE};

const IMAGE: &str = "test.local/busybox:1";
const POD: &str = "floods";
/// Containers, each with a probe a second.
const CONTAINERS: usize = 8;
/// For how long.
const TIME: Duration = Duration::from_secs(20);
/// What one of them writes: short lines, which a log with a time for each makes twenty times as long.
const LINES: u64 = 10 << 20;
/// Five files of 10 MiB, and one write more in each.
const MOST_LOG: u64 = 5 * (14 << 20);
/// Events of one object that may be written: a burst of 25, and what the scheduler and a container's start add.
const MOST_EVENTS: usize = 40;

/// All of it; the pod is gone afterwards.
pub async fn of_words(cluster: &Cluster) -> Result<String> {
    let probe = "head -c 3000 /dev/urandom | base64; exit 1";
    let container = |index: usize| {
        let script = if index == 0 { format!("yes | head -c {LINES}; sleep 1000") } else { "sleep 1000".to_owned() };
        json!({ "name": format!("c{index}"), "image": IMAGE, "command": ["sh", "-c", script],
            "readinessProbe": { "periodSeconds": 1, "exec": { "command": ["sh", "-c", probe] } } })
    };
    let containers: Vec<Value> = (0..CONTAINERS).map(container).collect();
    let spec = json!({ "terminationGracePeriodSeconds": 0, "containers": containers });
    let pod = json!({ "metadata": { "name": POD }, "spec": spec });
    let made = cluster.client.create(&kinds::POD, NAMESPACE, &pod).await?;
    let uid = made.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or("").to_owned();
    let logs = cluster.data_dir().join("logs").join(format!("{NAMESPACE}_{POD}_{uid}"));
    let (begun, mut most) = (Instant::now(), 0);
    while begun.elapsed() < TIME {
        tokio::time::sleep(Duration::from_millis(500)).await;
        most = most.max(bytes(&logs.join("c0")));
    }
    let kind = kinds::find("", "v1", "events").ok_or_else(|| anyhow::anyhow!("no kind Event"))?;
    let options = ListOptions { field_selector: format!("involvedObject.name={POD}"), ..ListOptions::default() };
    let events = cluster.client.list(&kind, NAMESPACE, &options).await?;
    let events = events["items"].as_array().map_or(0, Vec::len);
    cluster.client.delete(&kinds::POD, NAMESPACE, POD, &json!({ "gracePeriodSeconds": 0 })).await?;
    let failed = CONTAINERS as u64 * TIME.as_secs();
    ensure!(most > 1 << 20, "nothing was written to {}", logs.display());
    ensure!(most <= MOST_LOG, "{most} bytes of log are kept");
    ensure!(events <= MOST_EVENTS, "{events} events are kept");
    let mib = most >> 20;
    Ok(format!("about {failed} failures in other words: {events} events; {} MiB of lines: {mib} MiB", LINES >> 20))
}

/// What the files of a folder come to; those that vanish meanwhile are nothing.
fn bytes(folder: &Path) -> u64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|about| about.len()).sum()
}
