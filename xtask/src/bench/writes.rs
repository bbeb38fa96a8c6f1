//! Durable writes of single objects through the HTTPS API, beside bare writes with an fsync each on the same
//! filesystem.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use mainstay_api::kinds;
use serde_json::json;

use super::cluster::{Cluster, NAMESPACE};
use super::table::Table;

/// How long each is tried.
const WINDOW: Duration = Duration::from_secs(5);
/// The size of what is written, about that of a small pod.
const BYTES: usize = 1024;

/// Writes per second with one client and with sixteen.
pub async fn measure(cluster: &Cluster, table: &mut Table) -> Result<()> {
    for clients in [1, 16] {
        let api = through_api(cluster, clients).await?;
        let folder = cluster.data_dir();
        let bare = tokio::task::spawn_blocking(move || bare(&folder, clients)).await??;
        let name = format!("durable writes of 1 KiB, {clients} client{}", if clients == 1 { "" } else { "s" });
        table.row(&name, format!("{api:.0}/s"), format!("fsync {bare:.0}/s"), format!("{:.2}x", api / bare), "");
    }
    Ok(())
}

/// Each client replaces one ConfigMap of its own again and again.
async fn through_api(cluster: &Cluster, clients: usize) -> Result<f64> {
    let maps = &kinds::CONFIG_MAP;
    let mut tasks = tokio::task::JoinSet::new();
    let object = |name: &str, round: usize| {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name },
            "data": { "round": round.to_string(), "filling": "x".repeat(BYTES) },
        })
    };
    let names: Vec<String> = (0..clients).map(|number| format!("bench-{number}")).collect();
    for name in &names {
        cluster.client.create(maps, NAMESPACE, &object(name, 0)).await?;
    }
    let begun = Instant::now();
    for name in names.clone() {
        let client = cluster.another_client()?;
        tasks.spawn(async move {
            let mut written = 0usize;
            while begun.elapsed() < WINDOW {
                written += 1;
                client.update(maps, NAMESPACE, &name, "", &object(&name, written)).await?;
            }
            anyhow::Ok(written)
        });
    }
    let mut written = 0;
    while let Some(done) = tasks.join_next().await {
        written += done??;
    }
    let rate = written as f64 / begun.elapsed().as_secs_f64();
    for name in &names {
        cluster.client.delete(maps, NAMESPACE, name, &json!({})).await?;
    }
    Ok(rate)
}

/// Each thread appends to a file of its own.
fn bare(folder: &Path, threads: usize) -> Result<f64> {
    let begun = Instant::now();
    let one = |number: usize| -> Result<usize> {
        let mut file = std::fs::File::create(folder.join(format!("bench-{number}")))?;
        let mut written = 0;
        while begun.elapsed() < WINDOW {
            file.write_all(&[0x78; BYTES])?;
            file.sync_data()?;
            written += 1;
        }
        Ok(written)
    };
    let written = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|number| scope.spawn(move || one(number))).collect();
        threads.into_iter().map(|thread| thread.join().ok().context("a thread died")?).sum::<Result<usize>>()
    })?;
    Ok(written as f64 / begun.elapsed().as_secs_f64())
}
