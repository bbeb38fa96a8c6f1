//! A copy of a 1 GiB volume with 100 MiB of data in it, beside `cp --sparse=always` of the same image.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use mainstay_api::{Kind, kinds, object};
use mainstay_client::WatchEvent;
use serde_json::{Value, json};

use super::cluster::{Cluster, NAMESPACE, put, wait};
use super::table::{Table, Times, ms, times};

/// How often.
const ROUNDS: usize = 5;
const FILL: &str = "dd if=/dev/urandom of=/data/filling bs=1M count=100 && sync";

/// Snapshots of a volume that no pod writes to any more, from their creation to ready, on the disk.
pub async fn measure(cluster: &Cluster, table: &mut Table) -> Result<()> {
    let mut claims = cluster.watch_from_now(&kinds::PERSISTENT_VOLUME_CLAIM).await?;
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": "bench-clone" },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } },
    });
    cluster.client.create(&kinds::PERSISTENT_VOLUME_CLAIM, NAMESPACE, &claim).await?;
    fill(cluster).await?;
    let mut volume = String::new();
    wait(&mut claims, |event| {
        let bound =
            put(event).map(|claim| object::text(claim, &["spec", "volumeName"])).filter(|name| !name.is_empty());
        volume = bound.unwrap_or_default().to_owned();
        bound.is_some()
    })
    .await?;
    let image = cluster.data_dir().join("volumes").join(&volume).join("image");
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    // In turns: what else the machine does meets both.
    for round in 0..ROUNDS {
        ours.push(snapshot(cluster, &format!("bench-{round}")).await?);
        bare.push(copy(&image)?);
    }
    let (ours, bare) = (Times::new(ours), Times::new(bare));
    let beside = format!("cp --sparse=always, sync {}", ms(bare.quantile(0.5)));
    let ratio = times(ours.quantile(0.5), bare.quantile(0.5));
    let name = format!("snapshot of a 1 GiB volume with 100 MiB in it, p50 of {ROUNDS}");
    table.row(&name, ms(ours.quantile(0.5)), beside, ratio, "");
    remove(cluster, &kinds::POD).await?;
    remove(cluster, &kinds::PERSISTENT_VOLUME_CLAIM).await
}

/// What is measured next meets none of this.
async fn remove(cluster: &Cluster, kind: &Kind) -> Result<()> {
    let mut watch = cluster.watch_from_now(kind).await?;
    cluster.client.delete(kind, NAMESPACE, "bench-clone", &json!({})).await?;
    let gone = |event: &WatchEvent| matches!(event, WatchEvent::Gone(gone) if object::name(gone) == "bench-clone");
    wait(&mut watch, gone).await.with_context(|| format!("the {} is gone", kind.singular))
}

/// A pod that fills the volume and ends.
async fn fill(cluster: &Cluster) -> Result<()> {
    let mut pods = cluster.watch_from_now(&kinds::POD).await?;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "bench-clone" },
        "spec": {
            "restartPolicy": "Never",
            "containers": [{ "name": "main", "image": format!("test.local/{}:1", super::IMAGE),
                "command": ["sh", "-c", FILL],
                "volumeMounts": [{ "name": "data", "mountPath": "/data" }] }],
            "volumes": [{ "name": "data", "persistentVolumeClaim": { "claimName": "bench-clone" } }],
        },
    });
    cluster.client.create(&kinds::POD, NAMESPACE, &pod).await?;
    let ended = |event: &WatchEvent| {
        put(event).is_some_and(|pod| object::name(pod) == "bench-clone" && pod["status"]["phase"] == "Succeeded")
    };
    wait(&mut pods, ended).await.context("the volume is filled")
}

async fn snapshot(cluster: &Cluster, name: &str) -> Result<Duration> {
    let kind = &kinds::VOLUME_SNAPSHOT;
    let mut watch = cluster.watch_from_now(kind).await?;
    let wanted = json!({
        "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot", "metadata": { "name": name },
        "spec": { "source": { "persistentVolumeClaimName": "bench-clone" } },
    });
    let begun = Instant::now();
    cluster.client.create(kind, NAMESPACE, &wanted).await?;
    let ready = |snapshot: &Value| object::name(snapshot) == name && snapshot["status"]["readyToUse"] == true;
    wait(&mut watch, |event| put(event).is_some_and(ready)).await.context("the snapshot is ready")?;
    let time = begun.elapsed();
    cluster.client.delete(kind, NAMESPACE, name, &json!({})).await?;
    wait(&mut watch, |event| matches!(event, WatchEvent::Gone(gone) if object::name(gone) == name))
        .await
        .context("the snapshot is gone")?;
    Ok(time)
}

/// The same bytes, on the disk too.
fn copy(image: &Path) -> Result<Duration> {
    let target = image.with_extension("bench");
    let begun = Instant::now();
    ensure!(Command::new("cp").arg("--sparse=always").arg(image).arg(&target).status()?.success(), "cp");
    std::fs::File::open(&target)?.sync_all()?;
    let time = begun.elapsed();
    std::fs::remove_file(target)?;
    Ok(time)
}
