//! Lists in pages and watchers that stand still, while others write: whether they are cut off by 410 (A7).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use mainstay_api::{kinds, object};
use mainstay_client::{Client, ListOptions, WatchEvent};
use serde_json::{Value, json};

use super::cluster::{Cluster, NAMESPACE, PATIENCE};
use super::processes;
use super::table::Table;

/// How many objects the list has.
const OBJECTS: usize = 50_000;
/// Objects of a page.
const PAGE: usize = 500;
/// What the reader does with each page.
const BETWEEN_PAGES: Duration = Duration::from_millis(100);
/// Those who write meanwhile, and how often all of them together at most, per second. Each waits for its answer, so of
/// few of them the rate is their number by the time of a sync, whatever the server can do.
const WRITERS: usize = 64;
const RATE: usize = 4_000;
/// The size of what they write.
const BYTES: usize = 1024;
/// For how long the watcher reads nothing.
const PAUSE: Duration = Duration::from_secs(10);

/// The list and the watcher, at once.
pub async fn measure(cluster: &Cluster, table: &mut Table) -> Result<()> {
    fill(cluster).await?;
    let (ends, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..WRITERS {
        writers.spawn(write(cluster.another_client()?, number, ends.clone(), written.clone()));
    }
    let (own, servers) = (std::process::id(), cluster.pid()?);
    let used = || [own, servers].map(|pid| processes::cpu(pid).as_secs_f64());
    let (begun, before) = (Instant::now(), used());
    let (listed, watched) = tokio::join!(list(cluster.another_client()?), watch(cluster.another_client()?));
    let took = begun.elapsed().as_secs_f64();
    let rate = written.load(Ordering::Relaxed) as f64 / took;
    let after = used();
    let [of_writers, of_server] = [0, 1].map(|who| (after[who] - before[who]) / took);
    ends.store(true, Ordering::Relaxed);
    while let Some(done) = writers.join_next().await {
        done??;
    }
    let (listed, watched) = (listed?, watched?);
    let name = format!("{OBJECTS} objects in pages of {PAGE}, {rate:.0} writes/s");
    let expired = |times: usize| format!("{times} times 410");
    let took = format!("{:.1} s, {}", listed.took.as_secs_f64(), expired(listed.expired));
    table.row(&name, took, format!("{} objects", listed.objects), "", "no 410");
    let seen = format!("{} events, {}, {} begun anew", watched.events, expired(watched.expired), watched.streams - 1);
    let pause = format!("a watcher that stood still for {} s, {rate:.0} writes/s", PAUSE.as_secs());
    table.row(&pause, seen, format!("up to date after {:.1} s", watched.took.as_secs_f64()), "", "no 410");
    let shares = format!("server {of_server:.2}, writers and readers {of_writers:.2}");
    table.row("processors that it took", shares, "", "", "");
    table.row("the past that is kept then", kept(&cluster.another_client()?).await?, "", "", "");
    let pss = processes::memory(servers)?.pss;
    table.row("main process PSS after that", format!("{:.1} MiB", pss as f64 / 1024.0), "", "", "");
    Ok(())
}

/// What the server says of its window.
async fn kept(client: &Client) -> Result<String> {
    let metrics = client.get_text("/metrics").await?;
    let of = |name: &str| -> Result<f64> {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.with_context(|| name.to_owned())?.parse()?)
    };
    let (seconds, events) = (of("mainstay_store_window_seconds")?, of("mainstay_store_window_events")?);
    let [bytes, most] = ["mainstay_store_window_bytes", "mainstay_store_window_bytes_limit"].map(of);
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    Ok(format!("{seconds} s, {events} changes, {:.0} of {:.0} MiB", mib(bytes?), mib(most?)))
}

async fn fill(cluster: &Cluster) -> Result<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for part in 0..WRITERS {
        let client = cluster.another_client()?;
        tasks.spawn(async move {
            for number in (part..OBJECTS).step_by(WRITERS) {
                let map = json!({ "apiVersion": "v1", "kind": "ConfigMap",
                    "metadata": { "name": format!("page-{number:05}") },
                    "data": { "number": number.to_string() } });
                client.create(&kinds::CONFIG_MAP, NAMESPACE, &map).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// Replaces one object again and again, at its part of the rate.
async fn write(client: Client, number: usize, ends: Arc<AtomicBool>, written: Arc<AtomicUsize>) -> Result<()> {
    let name = format!("writer-{number}");
    let map = |round: usize| {
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name },
            "data": { "round": round.to_string(), "filling": "x".repeat(BYTES) } })
    };
    client.create(&kinds::CONFIG_MAP, NAMESPACE, &map(0)).await?;
    let mut ticks = tokio::time::interval(Duration::from_secs(1) * WRITERS as u32 / RATE as u32);
    let mut round = 0;
    while !ends.load(Ordering::Relaxed) {
        ticks.tick().await;
        round += 1;
        client.update(&kinds::CONFIG_MAP, NAMESPACE, &name, "", &map(round)).await?;
        written.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

struct Listed {
    took: Duration,
    objects: usize,
    expired: usize,
}

/// All pages, one after the other. One that is expired begins the list anew.
async fn list(client: Client) -> Result<Listed> {
    let begun = Instant::now();
    let (mut token, mut objects, mut expired) = (String::new(), 0, 0);
    loop {
        ensure!(begun.elapsed() < PATIENCE, "the list has no end");
        let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps?limit={PAGE}&continue={token}");
        let page = match client.get_text(&path).await {
            Ok(text) => serde_json::from_str::<Value>(&text).context("a page")?,
            Err(error) if error.is_expired() => {
                (token, objects, expired) = (String::new(), 0, expired + 1);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        objects += page["items"].as_array().map_or(0, Vec::len);
        token = object::text(&page, &["metadata", "continue"]).to_owned();
        if token.is_empty() {
            return Ok(Listed { took: begun.elapsed(), objects, expired });
        }
        tokio::time::sleep(BETWEEN_PAGES).await;
    }
}

struct Watched {
    took: Duration,
    events: usize,
    expired: usize,
    streams: usize,
}

/// Reads an event, then nothing for a while, then until it has what was written by the end of the pause.
async fn watch(client: Client) -> Result<Watched> {
    let newest = async || -> Result<u64> {
        let text = client.get_text(&format!("/api/v1/namespaces/{NAMESPACE}/configmaps?limit=1")).await?;
        Ok(object::text(&serde_json::from_str(&text)?, &["metadata", "resourceVersion"]).parse()?)
    };
    let mut seen = newest().await?;
    let (mut watched, mut goal) = (Watched { took: Duration::ZERO, events: 0, expired: 0, streams: 0 }, None);
    let mut resumed = Instant::now();
    while goal.is_none_or(|goal| seen < goal) {
        ensure!(resumed.elapsed() < PATIENCE, "the watcher is never up to date");
        let options = ListOptions { resource_version: seen.to_string(), ..ListOptions::default() };
        watched.streams += 1;
        let mut stream = match client.watch(&kinds::CONFIG_MAP, NAMESPACE, &options).await {
            Ok(stream) => stream,
            Err(error) if error.is_expired() => {
                (watched.expired, seen) = (watched.expired + 1, newest().await?);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        // What ends the stream otherwise (it was not read for long) is begun anew from what was seen last.
        while let Ok(Some(event)) = stream.next().await {
            let version = match &event {
                WatchEvent::Put(object) | WatchEvent::Gone(object) => object::resource_version(object),
                WatchEvent::Bookmark(version) => version,
            };
            seen = version.parse()?;
            watched.events += usize::from(!matches!(event, WatchEvent::Bookmark(_)));
            if goal.is_none() {
                tokio::time::sleep(PAUSE).await;
                goal = Some(newest().await?);
                resumed = Instant::now();
            }
            if goal.is_some_and(|goal| seen >= goal) {
                break;
            }
        }
    }
    watched.took = resumed.elapsed();
    Ok(watched)
}
