//! `mainstay leave`: this machine is no node any more. Its pods go elsewhere, its volumes stay where they are.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
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
    crate::instance::there_is("node", &args.data_dir, crate::instance::was_here(&args.data_dir))?;
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
            let here = Here::default();
            let empty = tokio::time::timeout(Duration::from_secs(args.timeout), drain(&client, node, &here)).await;
            empty.map_err(|_| {
                let (after, told) = (args.timeout, here.told());
                let hint = format!("the node takes no new ones until `kubectl uncordon {node}`");
                anyhow::anyhow!("pods are still here after {after} s: {told}; {hint}")
            })?
        };
        let is_reached = match emptied.await {
            Ok(()) => true,
            Err(error) if args.force => {
                tell!("mainstay: {error:#}; leaving all the same");
                false
            }
            Err(error) => return Err(error),
        };
        crate::down::stop_running(&args.data_dir).await?;
        let _held = crate::down::hold_stopped(&args.data_dir)?;
        crate::down::clean(&args.data_dir).await?;
        let removed = tokio::time::timeout(Duration::from_secs(10), remove(&client, node, &machine)).await;
        match removed.unwrap_or_else(|_| Err(anyhow::anyhow!("no server answers"))) {
            Ok(true) => say!("mainstay: node {node} has left; its volumes stay in {}", args.data_dir.display()),
            Ok(false) => say!("mainstay: this machine has left; node {node} is another machine, and stays"),
            Err(error) => {
                say!("mainstay: node {node} is stopped, but its Node is still there ({error:#}):");
                say!("mainstay: an administrator removes it with `kubectl delete node {node}`");
            }
        }
        if !is_reached {
            say!("mainstay: pods that ran here were stopped without a word to their controllers");
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

/// Pods that are to go and are here still, with their uids and why they were not evicted yet.
#[derive(Clone, Default)]
struct Here(Arc<Mutex<BTreeMap<ObjectKey, (String, String)>>>);

impl Here {
    fn with<T>(&self, look: impl FnOnce(&mut BTreeMap<ObjectKey, (String, String)>) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether this is the first that is heard of the pod.
    fn insert(&self, key: &ObjectKey, uid: &str) -> bool {
        self.with(|here| {
            if here.get(key).is_some_and(|(before, _)| before == uid) {
                return false;
            }
            here.insert(key.clone(), (uid.to_owned(), "it has not ended".to_owned()));
            true
        })
    }

    /// Says why a pod is not evicted, once.
    fn waits(&self, key: &ObjectKey, uid: &str, why: &str) {
        let is_new = self.with(|here| match here.get_mut(key) {
            Some((of, told)) if of == uid && told != why => {
                told.replace_range(.., why);
                true
            }
            _ => false,
        });
        if is_new {
            tell!("mainstay: pod {key} is not evicted yet: {why}");
        }
    }

    /// The first few, and why.
    fn told(&self) -> String {
        const MOST: usize = 10;
        self.with(|here| {
            let some = here.iter().take(MOST).map(|(key, (_, why))| format!("{key} ({why})")).collect::<Vec<_>>();
            let more = here.len().saturating_sub(MOST);
            some.join(", ") + &if more > 0 { format!(", and {more} more") } else { String::new() }
        })
    }
}

/// Takes no new pods, and evicts those that are here; DaemonSets' pods stay, they belong to the node. Of a Node that
/// somebody deleted there is nothing to be evicted: its pods go as those of a node that is gone.
async fn drain(client: &Client, node: &str, here: &Here) -> Result<()> {
    let cordon = json!({ "spec": { "unschedulable": true } });
    match client.patch(&kinds::NODE, "", node, "", PatchType::Merge, &cordon).await {
        Err(error) if error.is_not_found() => return Ok(()),
        done => done.context("cordoning this node")?,
    };
    let options = ListOptions { field_selector: format!("spec.nodeName={node}"), ..ListOptions::default() };
    let mut pods = Informer::new(client.clone(), &kinds::POD, "", options);
    let mut evicting = tokio::task::JoinSet::new();
    let mut is_listed = false;
    while !is_listed || here.with(|here| !here.is_empty()) {
        match pods.next().await {
            Notice::Put(key, pod) if goes(&pod) => {
                let uid = object::uid(&pod);
                if here.insert(&key, uid) {
                    evicting.spawn(evict(client.clone(), key, uid.to_owned(), here.clone()));
                }
            }
            // One that has ended and is being deleted is here until the node has said so.
            Notice::Put(_, pod) if object::is_terminating(&pod) => {}
            // It has ended, or was one of those that stay from the beginning.
            Notice::Put(key, _) => drop(here.with(|here| here.remove(&key))),
            Notice::Gone(key, _) => drop(here.with(|here| here.remove(&key))),
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
async fn evict(client: Client, key: ObjectKey, uid: String, here: Here) {
    let (namespace, name) = (&*key.namespace, &*key.name);
    let eviction = json!({
        "apiVersion": "policy/v1", "kind": "Eviction", "metadata": { "name": name, "namespace": namespace },
        "deleteOptions": { "preconditions": { "uid": uid } },
    });
    loop {
        match client.create_sub(&kinds::POD, namespace, name, "eviction", &eviction).await {
            Ok(_) => return,
            Err(error) if error.is_not_found() => return,
            Err(error) => here.waits(&key, &uid, &error.to_string()),
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
