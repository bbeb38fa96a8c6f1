//! A StatefulSet from its creation to all replicas Ready: OrderedReady, one claim each, without a readiness probe, so
//! that a replica is ready as soon as it runs.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use mainstay_api::{Kind, kinds};
use mainstay_client::WatchEvent;
use serde_json::{Value, json};

use super::cluster::{Cluster, NAMESPACE, put, wait};
use super::pod;
use super::table::Table;

const NAME: &str = "bench";

/// Makes the set, and takes it and its claims away again.
pub async fn measure(cluster: &Cluster, replicas: u32, target: &str, table: &mut Table) -> Result<()> {
    let time = create(cluster, replicas).await?;
    remove(cluster).await?;
    let each = format!("{:.0} ms each", time.as_secs_f64() * 1e3 / f64::from(replicas));
    table.row(
        &format!("set of {replicas} with claims, creation to Ready"),
        format!("{:.2} s", time.as_secs_f64()),
        each,
        "",
        target,
    );
    Ok(())
}

/// Makes the set; how long it took until all replicas were Ready.
pub async fn create(cluster: &Cluster, replicas: u32) -> Result<Duration> {
    let sets = &kinds::STATEFUL_SET;
    let mut container = pod::container();
    container["volumeMounts"] = json!([{ "name": "data", "mountPath": "/data" }]);
    let labels = json!({ "app": NAME });
    let set = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": { "name": NAME },
        "spec": {
            "serviceName": NAME, "replicas": replicas, "selector": { "matchLabels": labels },
            "template": {
                "metadata": { "labels": labels },
                "spec": { "containers": [container], "terminationGracePeriodSeconds": 5 },
            },
            "volumeClaimTemplates": [{
                "metadata": { "name": "data" },
                "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Mi" } } },
            }],
        },
    });
    let mut watch = cluster.watch_from_now(sets).await?;
    let begun = Instant::now();
    cluster.client.create(sets, NAMESPACE, &set).await?;
    let ready = |event: &WatchEvent| put(event).is_some_and(|set| set["status"]["readyReplicas"] == json!(replicas));
    wait(&mut watch, ready).await.with_context(|| format!("{replicas} replicas are Ready"))?;
    Ok(begun.elapsed())
}

async fn remove(cluster: &Cluster) -> Result<()> {
    let (sets, pods, claims) = (&kinds::STATEFUL_SET, &kinds::POD, &kinds::PERSISTENT_VOLUME_CLAIM);
    cluster.client.delete(sets, NAMESPACE, NAME, &json!({ "propagationPolicy": "Background" })).await?;
    for kind in [pods, claims] as [&Kind; 2] {
        // The watch comes first: what goes between the list and the watch would be waited for in vain.
        let mut watch = cluster.watch_from_now(kind).await?;
        let list = cluster.client.list(kind, NAMESPACE, &Default::default()).await?;
        let items = list["items"].as_array().cloned().unwrap_or_default();
        let mut left: std::collections::BTreeSet<String> = items.iter().map(|item| name(item).to_owned()).collect();
        if kind.plural == "persistentvolumeclaims" {
            for name in &left {
                cluster.client.delete(kind, NAMESPACE, name, &json!({})).await?;
            }
        }
        if !left.is_empty() {
            let gone = |event: &WatchEvent| {
                if let WatchEvent::Gone(object) = event {
                    left.remove(name(object));
                }
                left.is_empty()
            };
            wait(&mut watch, gone).await.with_context(|| format!("all {} are gone", kind.plural))?;
        }
    }
    Ok(())
}

fn name(object: &Value) -> &str {
    mainstay_api::object::name(object)
}
