//! `mainstay leave`: this machine is no node any more. Its pods go elsewhere, its volumes stay where they are.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use mainstay_api::{ObjectKey, kinds, object};
use mainstay_cli::args::LeaveArgs;
use mainstay_client::{Client, Informer, ListOptions, Notice, PatchType};
use mainstay_node::join::MACHINE;
use mainstay_node::join::{self, Kept};
use serde_json::{Value, json};

/// Between two attempts to evict a pod whose disruption budget is used up, as `kubectl drain`.
const AGAIN: Duration = Duration::from_secs(5);

/// `mainstay leave`.
pub fn run(args: &LeaveArgs) -> Result<()> {
    crate::need_root("mainstay leave")?;
    crate::up::log_to_stderr();
    let _ = rustls::crypto::ring::default_provider().install_default();
    crate::instance::enter(&args.data_dir).context("entering the node's network namespace")?;
    crate::up::runtime()?.block_on(async {
        let (client, member) = join::member(&args.data_dir)?;
        let node = member.node.as_str();
        let machine = join::machine(&args.data_dir)?;
        let emptied = async {
            match standing(&client, node, &machine).await? {
                Standing::Own(_) => {}
                // Nothing of it is left to drain.
                Standing::Gone => return Ok(()),
                Standing::Others => bail!(
                    "another machine is node {node} now; `mainstay leave --force` puts away what is here and leaves \
                     that node alone"
                ),
            }
            let volumes = volumes_here(&client, node).await?;
            if !volumes.is_empty() && !args.force {
                bail!(
                    "volumes live on this machine ({}); pods that use them would wait until it joins again as {node}. \
                     Move them first, or leave with --force: the volumes stay in {}",
                    volumes.join(", "),
                    args.data_dir.display()
                );
            }
            let empty = tokio::time::timeout(Duration::from_secs(args.timeout), drain(&client, node)).await;
            empty.map_err(|_| anyhow::anyhow!("pods are still here after {} s", args.timeout))?
        };
        let is_reached = match emptied.await {
            Ok(()) => true,
            Err(error) if args.force => {
                eprintln!("mainstay: {error:#}; leaving all the same");
                false
            }
            Err(error) => return Err(error),
        };
        crate::down::stop_running(&args.data_dir).await?;
        let _held = crate::down::hold_stopped(&args.data_dir)?;
        crate::down::clean(&args.data_dir).await?;
        let removed = tokio::time::timeout(Duration::from_secs(10), remove(&client, node, &machine)).await;
        match removed.unwrap_or_else(|_| Err(anyhow::anyhow!("no server answers"))) {
            Ok(true) => println!("mainstay: node {node} has left; its volumes stay in {}", args.data_dir.display()),
            Ok(false) => println!("mainstay: this machine has left; node {node} is another machine, and stays"),
            Err(error) => {
                println!("mainstay: node {node} is stopped, but its Node is still there ({error:#}):");
                println!("mainstay: an administrator removes it with `kubectl delete node {node}`");
            }
        }
        if !is_reached {
            println!("mainstay: pods that ran here were stopped without a word to their controllers");
        }
        Kept::open(&args.data_dir)?.forget()?;
        Ok(())
    })
}

/// The names of PersistentVolumes that live on this node only.
async fn volumes_here(client: &Client, node: &str) -> Result<Vec<String>> {
    let list = client.list(&kinds::PERSISTENT_VOLUME, "", &ListOptions::default()).await?;
    let lives_here = |volume: &Value| {
        let terms = volume.pointer("/spec/nodeAffinity/required/nodeSelectorTerms").and_then(Value::as_array);
        let expressions = terms.into_iter().flatten().filter_map(|term| term["matchExpressions"].as_array()).flatten();
        let mut hosts = expressions
            .filter(|expression| expression["key"] == "kubernetes.io/hostname")
            .filter_map(|expression| expression["values"].as_array())
            .flatten();
        hosts.any(|host| host == node)
    };
    let items = list["items"].as_array().into_iter().flatten();
    Ok(items.filter(|volume| lives_here(volume)).map(|volume| object::name(volume).to_owned()).collect())
}

/// Takes no new pods, and evicts those that are here; DaemonSets' pods stay, they belong to the node.
async fn drain(client: &Client, node: &str) -> Result<()> {
    let cordon = json!({ "spec": { "unschedulable": true } });
    client.patch(&kinds::NODE, "", node, "", PatchType::Merge, &cordon).await.context("cordoning this node")?;
    let options = ListOptions { field_selector: format!("spec.nodeName={node}"), ..ListOptions::default() };
    let mut pods = Informer::new(client.clone(), &kinds::POD, "", options);
    let mut here: BTreeSet<ObjectKey> = BTreeSet::new();
    let mut evicting = tokio::task::JoinSet::new();
    let mut is_listed = false;
    while !is_listed || !here.is_empty() {
        match pods.next().await {
            Notice::Put(key, pod) if goes(&pod) => {
                if here.insert(key.clone()) {
                    evicting.spawn(evict(client.clone(), key, object::uid(&pod).to_owned()));
                }
            }
            Notice::Put(..) => {}
            Notice::Gone(key, _) => drop(here.remove(&key)),
            Notice::Synced => is_listed = true,
        }
    }
    Ok(())
}

/// Whether a pod is to go before the node does.
fn goes(pod: &Value) -> bool {
    let phase = object::text(pod, &["status", "phase"]);
    let owners = object::at(pod, &["metadata", "ownerReferences"]).and_then(Value::as_array).into_iter().flatten();
    let is_daemon = owners.into_iter().any(|owner| owner["kind"] == "DaemonSet" && owner["controller"] == true);
    !is_daemon && phase != "Succeeded" && phase != "Failed"
}

/// Evicts a pod, as soon as its disruption budget allows.
async fn evict(client: Client, key: ObjectKey, uid: String) {
    let (namespace, name) = (&*key.namespace, &*key.name);
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": name, "namespace": namespace },
        "deleteOptions": { "preconditions": { "uid": uid } },
    });
    loop {
        match client.create_sub(&kinds::POD, namespace, name, "eviction", &eviction).await {
            Ok(_) => return,
            Err(error) if error.is_not_found() || error.is_conflict() => return,
            Err(error) => tracing::info!(pod = %key, %error, "not evicted yet"),
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// What the Node of a name is to this machine.
enum Standing {
    /// Its own, of this uid.
    Own(String),
    /// There is none.
    Gone,
    /// Another machine has the name by now.
    Others,
}

async fn standing(client: &Client, node: &str, machine: &str) -> Result<Standing> {
    let found = match client.get(&kinds::NODE, "", node).await {
        Err(error) if error.is_not_found() => return Ok(Standing::Gone),
        found => found.context("reading this node")?,
    };
    match object::text(&found, &["metadata", "annotations", MACHINE]) {
        of if of.is_empty() || of == machine => Ok(Standing::Own(object::uid(&found).to_owned())),
        _ => Ok(Standing::Others),
    }
}

/// Takes the Node away, with its Lease; false where it is another machine's.
async fn remove(client: &Client, node: &str, machine: &str) -> Result<bool> {
    let uid = match standing(client, node, machine).await? {
        Standing::Own(uid) => uid,
        Standing::Gone => return Ok(true),
        Standing::Others => return Ok(false),
    };
    let of_uid = json!({ "preconditions": { "uid": uid } });
    for (kind, namespace, options) in [(&kinds::LEASE, "kube-node-lease", json!({})), (&kinds::NODE, "", of_uid)] {
        match client.delete(kind, namespace, node, &options).await {
            Err(error) if !error.is_not_found() => return Err(error.into()),
            _ => {}
        }
    }
    Ok(true)
}
