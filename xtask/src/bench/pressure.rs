//! A `get` over a new connection, alone and while 64 clients ask for as much as they can get.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use mainstay_api::kinds;
use mainstay_client::{Client, Config, ListOptions};
use serde_json::json;

use super::cluster::{Cluster, NAMESPACE};
use super::table::{Table, Times, ms, times};

/// Clients that hammer.
const CLIENTS: usize = 64;
/// How many answers are timed.
const ANSWERS: usize = 300;
/// Between two.
const EVERY: Duration = Duration::from_millis(20);

/// The quiet figure, and the one under pressure beside it.
pub async fn measure(cluster: &Cluster, table: &mut Table) -> Result<()> {
    let quiet = answers(cluster.client.config().clone()).await?;
    table.row("get over a new connection, quiet: p50, p99", both(&quiet), "", "", "");
    let (ends, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..CLIENTS {
        tasks.spawn(hammer(cluster.another_client()?, number, ends.clone(), done.clone()));
    }
    let begun = Instant::now();
    let pressed = answers(cluster.client.config().clone()).await?;
    let rate = done.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64();
    ends.store(true, Ordering::Relaxed);
    while let Some(hammered) = tasks.join_next().await {
        hammered??;
    }
    let name = format!("the same, {CLIENTS} clients hammering ({rate:.0} requests/s)");
    let ratio = times(pressed.quantile(0.99), quiet.quantile(0.99));
    table.row(&name, both(&pressed), format!("quiet {}", both(&quiet)), ratio, "p99 < 100 ms");
    Ok(())
}

fn both(times: &Times) -> String {
    format!("{}, {}", ms(times.median()), ms(times.quantile(0.99)))
}

/// In a thread and a runtime of its own: what waits for the hammering clients' turn is not the server's doing.
async fn answers(config: Config) -> Result<Times> {
    let ask = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut times = Vec::with_capacity(ANSWERS);
            for _ in 0..ANSWERS {
                let begun = Instant::now();
                Client::new(config.clone())?.get(&kinds::NAMESPACE, "", NAMESPACE).await?;
                times.push(begun.elapsed());
                tokio::time::sleep(EVERY).await;
            }
            anyhow::Ok(Times::new(times))
        })
    };
    let thread = std::thread::spawn(ask);
    tokio::task::spawn_blocking(move || thread.join()).await?.map_err(|_| anyhow!("the probe panicked"))?
}

/// Reads, lists with a selector, and writes, one after the other, as fast as the answers come.
async fn hammer(client: Client, number: usize, ends: Arc<AtomicBool>, done: Arc<AtomicUsize>) -> Result<()> {
    let (maps, name) = (&kinds::CONFIG_MAP, format!("hammer-{number}"));
    let map = json!({ "metadata": { "name": name, "labels": { "hammer": "yes" } }, "data": { "a": "b" } });
    client.create(maps, NAMESPACE, &map).await?;
    let options = ListOptions { label_selector: "hammer=yes".to_owned(), ..ListOptions::default() };
    while !ends.load(Ordering::Relaxed) {
        client.get(maps, NAMESPACE, &name).await?;
        client.list(maps, NAMESPACE, &options).await?;
        client.update(maps, NAMESPACE, &name, "", &map).await?;
        done.fetch_add(3, Ordering::Relaxed);
    }
    client.delete(maps, NAMESPACE, &name, &json!({})).await?;
    Ok(())
}
