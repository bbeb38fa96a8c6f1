//! Keeps the pods connected: what of the pod network somebody took away while the node runs, or while it did not, is
//! made again ([`crate::network::Network::look`]).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Kubelet;
use super::worker::IP_ANNOTATION;

/// How often it is looked.
const LOOK: Duration = Duration::from_secs(5);

/// Looks until dropped.
pub(super) async fn run(kubelet: Arc<Kubelet>) {
    loop {
        look(&kubelet).await;
        tokio::time::sleep(LOOK).await;
    }
}

/// The pods that were given an address, with their network namespaces. One that is not whole yet, or not any more, is
/// its worker's.
fn connected(kubelet: &Kubelet) -> Vec<(String, PathBuf)> {
    let sandboxes = kubelet.runtime.sandboxes().into_iter();
    let whole = sandboxes.filter(|sandbox| sandbox.ready && sandbox.annotations.contains_key(IP_ANNOTATION));
    whole.filter_map(|sandbox| Some((sandbox.pod_uid, sandbox.netns_path?))).collect()
}

async fn look(kubelet: &Arc<Kubelet>) {
    let of = kubelet.clone();
    let looked = tokio::task::spawn_blocking(move || of.network.look(&connected(&of))).await;
    let looked = match looked {
        Ok(Ok(looked)) => looked,
        Ok(Err(error)) => return tracing::error!(%error, "the pod network cannot be made again; trying again"),
        Err(error) => return tracing::error!(%error, "looking at the pod network ended badly"),
    };
    if !looked.made.is_empty() {
        let made = looked.made.join(", ");
        tracing::warn!(made, "somebody took parts of the pod network away; they are made again");
    }
    for (pod, error) in looked.lost {
        // One that was removed meanwhile has lost nothing.
        if connected(kubelet).iter().any(|(uid, _)| *uid == pod) {
            tracing::error!(pod, error, "a pod has lost its network, and it cannot be made again; trying again");
        }
    }
}
