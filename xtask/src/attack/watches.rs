//! More watches than a connection carries, each of one object, as a node with very many ConfigMaps has them.

use std::time::Duration;

use anyhow::{Context as _, Result};
use mainstay_api::kinds;
use mainstay_client::ListOptions;

use crate::bench::cluster::{Cluster, NAMESPACE};

const WATCHES: usize = 5000;
/// How long they are held.
const WINDOW: Duration = Duration::from_secs(5);
/// How long one may take to be opened.
const PATIENCE: Duration = Duration::from_secs(10);

/// By one client, which gets answers to other requests meanwhile.
pub async fn many(cluster: &Cluster) -> Result<String> {
    let client = cluster.another_client()?;
    let mut held = Vec::with_capacity(WATCHES);
    for index in 0..WATCHES {
        let options = ListOptions { field_selector: format!("metadata.name=m{index}"), ..ListOptions::default() };
        let watch = tokio::time::timeout(PATIENCE, client.watch(&kinds::CONFIG_MAP, NAMESPACE, &options)).await;
        held.push(watch.with_context(|| format!("watch {index} got no answer"))??);
    }
    tokio::time::sleep(WINDOW).await;
    let answer = tokio::time::timeout(PATIENCE, client.get(&kinds::NAMESPACE, "", NAMESPACE)).await;
    answer.context("the client itself got no answer")??;
    Ok(format!("{} watches of one object each by one client", held.len()))
}
