//! Somebody else, who only wants an answer: a new connection and one `get`, again and again, while an attack goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use mainstay_api::kinds;
use mainstay_client::{Client, Config};

use crate::bench::cluster::Cluster;
use crate::bench::processes;
use crate::bench::table::Times;

/// Between two requests.
const EVERY: Duration = Duration::from_millis(50);
/// After this an answer counts as none.
const PATIENCE: Duration = Duration::from_secs(10);

/// A thread that asks. It has a runtime of its own, so that the attack's work is not measured along.
pub struct Probe {
    ends: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Result<Seen>>,
}

/// What it saw.
pub struct Seen {
    pub times: Times,
    pub count: usize,
    pub failed: usize,
    /// The server's memory at its largest, KiB.
    pub peak: u64,
}

impl Probe {
    /// Asks from now on.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        let (config, pid) = (cluster.client.config().clone(), cluster.pid()?);
        let ends = Arc::new(AtomicBool::new(false));
        let stopped = ends.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(ask(&config, pid, &stopped))
        });
        Ok(Self { ends, thread })
    }

    /// What it saw until now.
    pub async fn stop(self) -> Result<Seen> {
        self.ends.store(true, Ordering::Relaxed);
        tokio::task::spawn_blocking(move || self.thread.join()).await?.map_err(|_| anyhow!("the probe panicked"))?
    }
}

async fn ask(config: &Config, pid: u32, ends: &AtomicBool) -> Result<Seen> {
    let (mut times, mut failed, mut peak) = (Vec::new(), 0, 0);
    while !ends.load(Ordering::Relaxed) || times.is_empty() {
        let begun = Instant::now();
        let client = Client::new(config.clone())?;
        let asked = tokio::time::timeout(PATIENCE, client.get(&kinds::NAMESPACE, "", "default")).await;
        if !matches!(asked, Ok(Ok(_))) {
            failed += 1;
        }
        times.push(begun.elapsed());
        peak = peak.max(processes::memory(pid)?.rss);
        tokio::time::sleep(EVERY).await;
    }
    let count = times.len();
    Ok(Seen { times: Times::new(times), count, failed, peak })
}
