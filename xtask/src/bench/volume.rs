//! A pod with a fresh volume of 1 GiB that keeps its size (a file system in an image): from the creation of its claim
//! to Running, beside mkfs.ext4 of such an image alone.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use mainstay_api::{kinds, object};
use mainstay_client::WatchEvent;
use serde_json::json;

use super::cluster::{Cluster, NAMESPACE, put, wait};
use super::pod;
use super::table::{Table, Times, ms, times};

/// How many pods, one after the other, each with a claim of its own.
const PODS: usize = 30;
/// Not counted.
const WARM_UP: usize = 2;
const NAME: &str = "bench-image";
const SIZE: u64 = 1 << 30;

/// Times of [`PODS`] pods and of as many images.
pub async fn measure(cluster: &Cluster, table: &mut Table) -> Result<()> {
    let class = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": { "name": NAME },
        "provisioner": "mainstay.io/local-path", "parameters": { "mainstay.io/size": "image" },
        "volumeBindingMode": "WaitForFirstConsumer", "reclaimPolicy": "Delete",
    });
    cluster.client.create(&kinds::STORAGE_CLASS, "", &class).await?;
    let mut all = Vec::new();
    for number in 0..WARM_UP + PODS {
        all.push(one(cluster, &format!("{NAME}-{number}")).await?);
    }
    let all = Times::new(all.split_off(WARM_UP));
    let bare = Times::new((0..PODS).map(|_| bare(cluster.folder.path())).collect::<Result<_>>()?);
    for (name, share, target) in [("p50", 0.5, "<= 300 ms"), ("p99", 0.99, "")] {
        let (value, beside) = (all.quantile(share), bare.quantile(share));
        let what = format!("pod with a new 1 GiB image, claim to Running, {name} of {PODS}");
        table.row(&what, ms(value), format!("mkfs.ext4 {}", ms(beside)), times(value, beside), target);
    }
    Ok(())
}

async fn one(cluster: &Cluster, name: &str) -> Result<Duration> {
    let (pods, claims) = (&kinds::POD, &kinds::PERSISTENT_VOLUME_CLAIM);
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": name },
        "spec": {
            "storageClassName": NAME, "accessModes": ["ReadWriteOnce"],
                "resources": { "requests": { "storage": SIZE.to_string() } },
        },
    });
    let mut container = pod::container();
    container["volumeMounts"] = json!([{ "name": "data", "mountPath": "/data" }]);
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
        "spec": {
            "containers": [container], "terminationGracePeriodSeconds": 5,
            "volumes": [{ "name": "data", "persistentVolumeClaim": { "claimName": name } }],
        },
    });
    let mut watch = cluster.watch_from_now(pods).await?;
    let begun = Instant::now();
    cluster.client.create(claims, NAMESPACE, &claim).await?;
    cluster.client.create(pods, NAMESPACE, &pod).await?;
    wait(&mut watch, |event| {
        put(event).is_some_and(|pod| object::name(pod) == name && pod["status"]["phase"] == "Running")
    })
    .await
    .with_context(|| format!("{name} is Running"))?;
    let time = begun.elapsed();
    let mut claims_watch = cluster.watch_from_now(claims).await?;
    cluster.client.delete(pods, NAMESPACE, name, &json!({})).await?;
    cluster.client.delete(claims, NAMESPACE, name, &json!({})).await?;
    // The claim is protected as long as its pod is there.
    wait(&mut claims_watch, |event| matches!(event, WatchEvent::Gone(claim) if object::name(claim) == name))
        .await
        .with_context(|| format!("claim {name} is gone"))?;
    Ok(time)
}

/// The same image without a cluster around it.
fn bare(folder: &Path) -> Result<Duration> {
    let image = folder.join("bare.img");
    let begun = Instant::now();
    File::create(&image)?.set_len(SIZE)?;
    let mut mkfs = Command::new("mkfs.ext4");
    mkfs.args(["-q", "-F"]).arg(&image).stdin(Stdio::null()).stdout(Stdio::null());
    ensure!(mkfs.status().context("mkfs.ext4 (e2fsprogs)")?.success(), "mkfs.ext4 {}", image.display());
    let time = begun.elapsed();
    std::fs::remove_file(image)?;
    Ok(time)
}
