//! From exec to an API that answers and to a node that is Ready.

use std::path::Path;

use anyhow::Result;

use super::cluster::{Cluster, Started};
use super::table::{Table, Times};

/// How often each kind of start is measured.
const STARTS: usize = 7;

/// Starts on fresh folders, and again on one that was used.
pub async fn measure(binary: &Path, table: &mut Table) -> Result<()> {
    let mut fresh = Vec::new();
    for _ in 0..STARTS {
        let (mut cluster, started) = Cluster::start(binary).await?;
        cluster.stop().await?;
        fresh.push(started);
    }
    let (mut cluster, _) = Cluster::start(binary).await?;
    let mut again = Vec::new();
    for _ in 0..STARTS {
        cluster.stop().await?;
        again.push(cluster.up().await?);
    }
    let summary = |starts: &[Started], part: fn(&Started) -> std::time::Duration| {
        Times::new(starts.iter().map(part).collect()).summary()
    };
    table.row("start, new folder: exec to API ready", summary(&fresh, |start| start.api), "", "", "< 300 ms");
    table.row("start, new folder: exec to node Ready", summary(&fresh, |start| start.node), "", "", "< 1000 ms");
    table.row("start again: exec to API ready", summary(&again, |start| start.api), "", "", "< 300 ms");
    table.row("start again: exec to node Ready", summary(&again, |start| start.node), "", "", "< 1000 ms");
    Ok(())
}
