//! Pods that an attack runs on the live cluster, and what they wrote.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mainstay_api::kinds;
use serde_json::{Value, json};

use crate::bench::cluster::{Cluster, NAMESPACE};

/// How long a pod may take to end, or to say why it does not start.
const PATIENCE: Duration = Duration::from_secs(40);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

/// How a pod came out.
pub struct Ended {
    /// What its container wrote, or why it did not start.
    pub said: String,
    /// Whether it ran.
    pub ran: bool,
}

/// Runs a container to its end, or to the reason why it cannot start; the pod is gone afterwards.
pub async fn run(cluster: &Cluster, name: &str, spec: &Value) -> Result<Ended> {
    let pod = json!({ "metadata": { "name": name }, "spec": spec });
    let made = cluster.client.create(&kinds::POD, NAMESPACE, &pod).await;
    if let Err(refused) = made {
        ensure!(matches!(refused.code(), Some(400 | 403 | 422)), "{name}: {refused}");
        return Ok(Ended { said: refused.to_string(), ran: false });
    }
    let ended = wait(cluster, name).await;
    let now = json!({ "gracePeriodSeconds": 0 });
    cluster.client.delete(&kinds::POD, NAMESPACE, name, &now).await?;
    ended
}

async fn wait(cluster: &Cluster, name: &str) -> Result<Ended> {
    let begun = Instant::now();
    loop {
        let pod = cluster.client.get(&kinds::POD, NAMESPACE, name).await?;
        let state = pod.pointer("/status/containerStatuses/0/state").unwrap_or(&Value::Null);
        let text = |pointer: &str| state.pointer(pointer).and_then(Value::as_str).unwrap_or("").to_owned();
        match (text("/terminated/reason").as_str(), text("/waiting/reason").as_str()) {
            ("", "" | "ContainerCreating" | "PodInitializing") => {}
            ("", why) => return Ok(Ended { said: format!("{why}: {}", text("/waiting/message")), ran: false }),
            ("StartError" | "ContainerCannotRun", _) => {
                return Ok(Ended { said: text("/terminated/message"), ran: false });
            }
            _ => {
                let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}/log");
                return Ok(Ended { said: cluster.client.get_text(&path).await?, ran: true });
            }
        }
        if pod["status"]["phase"] == "Failed" {
            return Ok(Ended { said: pod["status"]["message"].to_string(), ran: false });
        }
        ensure!(begun.elapsed() < PATIENCE, "pod {name} neither runs nor fails: {state}");
        tokio::time::sleep(LOOK).await;
    }
}
