//! What an idle cluster costs: three pods with volumes that sleep, and nobody who asks anything.

use std::time::Duration;

use anyhow::Result;

use super::cluster::Cluster;
use super::processes::{self, Memory};
use super::set;
use super::table::Table;

/// Before anything counts as idle.
const SETTLE: Duration = Duration::from_secs(60);
/// Over which the processor's time is counted.
const WINDOW: Duration = Duration::from_secs(40);

/// Memory after [`SETTLE`], processor time over [`WINDOW`].
pub async fn measure(cluster: &Cluster, table: &mut Table) -> Result<()> {
    set::create(cluster, 3).await?;
    eprintln!("bench: idle for {} s", SETTLE.as_secs());
    tokio::time::sleep(SETTLE).await;
    let main = cluster.pid()?;
    let all = processes::of_binary(cluster.binary())?;
    let helpers: Vec<u32> = all.iter().copied().filter(|pid| *pid != main).collect();
    let of_main = processes::memory(main)?;
    let mut of_helpers = Memory::default();
    for pid in &helpers {
        let memory = processes::memory(*pid)?;
        of_helpers = Memory { rss: of_helpers.rss + memory.rss, pss: of_helpers.pss + memory.pss };
    }
    let mib = |kib: u64| format!("{:.1} MiB", kib as f64 / 1024.0);
    table.row("idle, 3 pods: main process RSS", mib(of_main.rss), "", "", "");
    table.row("idle, 3 pods: main process PSS", mib(of_main.pss), "", "", "");
    table.row(&format!("idle, 3 pods: {} helper processes RSS", helpers.len()), mib(of_helpers.rss), "", "", "");
    table.row(&format!("idle, 3 pods: {} helper processes PSS", helpers.len()), mib(of_helpers.pss), "", "", "");
    table.row("idle, 3 pods: all PSS", mib(of_main.pss + of_helpers.pss), "", "", "<= 60 MiB");

    let used = || all.iter().map(|pid| processes::cpu(*pid)).sum::<Duration>();
    let woken = || all.iter().map(|pid| processes::switches(*pid)).sum::<u64>();
    let (before, woken_before) = (used(), woken());
    tokio::time::sleep(WINDOW).await;
    let share = (used().saturating_sub(before)).as_secs_f64() / WINDOW.as_secs_f64() * 100.0;
    let per_second = (woken().saturating_sub(woken_before)) as f64 / WINDOW.as_secs_f64();
    let name = format!("idle, 3 pods: CPU over {} s, of one core", WINDOW.as_secs());
    table.row(&name, format!("{share:.2} % ({per_second:.1} wake-ups/s)"), "", "", "< 0.5 %");
    Ok(())
}
