//! Stores with a flipped byte: each is refused with a sentence or has every object as it was (A10).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use mainstay_api::{Kind, kinds};
use mainstay_client::{Client, Config, ListOptions};
use serde_json::{Value, json};

use crate::bench::cluster::{Cluster, NAMESPACE, PATIENCE};

/// How many stores are damaged, each at one offset.
const COUNT: usize = 1000;
/// Of those that are sound all the same, and of those that are not, every so manieth is also served.
const SERVED_EVERY: usize = 40;
/// Objects of each kind, and the bytes of a ConfigMap.
const OBJECTS: usize = 150;
const BYTES: usize = 2000;
/// What is looked at when a store is served.
const LOOKED_AT: &[&Kind] = &[&kinds::CONFIG_MAP, &kinds::PERSISTENT_VOLUME, &kinds::PERSISTENT_VOLUME_CLAIM];
/// Where those servers listen.
const LISTEN: &str = "127.0.0.1:17443";
/// How long a server that opened a damaged store may think about it before it is looked at.
const SETTLE: Duration = Duration::from_millis(500);

/// A server without a node, on a folder.
struct Served {
    child: tokio::process::Child,
    /// Kept to the end of the process's life: it must not meet a closed pipe.
    _output: tokio::io::Lines<tokio::io::BufReader<tokio::process::ChildStdout>>,
    client: Client,
}

impl Served {
    /// `Err` with what it said, where it does not start.
    async fn start(binary: &Path, data: &Path) -> Result<Result<Self, String>> {
        use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
        let mut command = tokio::process::Command::new(binary);
        command.args(["server", "--listen", LISTEN, "--data-dir"]).arg(data).kill_on_drop(true);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("piped")?).lines();
        let started = async {
            while let Some(line) = lines.next_line().await? {
                if line.contains("API ready") {
                    return anyhow::Ok(true);
                }
            }
            Ok(false)
        };
        if tokio::time::timeout(PATIENCE, started).await?? {
            let client = Client::new(Config::read(&data.join("kubeconfig"))?)?;
            return Ok(Ok(Self { child, _output: lines, client }));
        }
        let mut said = String::new();
        child.stderr.take().context("piped")?.read_to_string(&mut said).await?;
        ensure!(!child.wait().await?.success(), "a server that does not start ends well");
        Ok(Err(said))
    }

    /// Every object that is looked at, by kind and name, without what the server itself notes.
    async fn objects(&self) -> Result<BTreeMap<String, Value>> {
        let mut all = BTreeMap::new();
        for kind in LOOKED_AT {
            let list = self.client.list(kind, "", &ListOptions::default()).await?;
            for item in list["items"].as_array().into_iter().flatten() {
                let name = format!("{} {} {}", kind.plural, item["metadata"]["namespace"], item["metadata"]["name"]);
                all.insert(name, json!([item["metadata"]["uid"], item["spec"], item["data"]]));
            }
        }
        Ok(all)
    }

    async fn stop(mut self) -> Result<()> {
        let pid = self.child.id().context("running")?;
        ensure!(Command::new("kill").arg(pid.to_string()).status()?.success(), "kill");
        tokio::time::timeout(PATIENCE, self.child.wait()).await.context("the server does not stop")??;
        Ok(())
    }
}

/// Damages a store of its own, not the cluster's.
pub async fn damaged(cluster: &Cluster) -> Result<String> {
    let folder = tempfile::Builder::new().prefix("mainstay-attack-").tempdir()?;
    let (sound, copy) = (folder.path().join("sound"), folder.path().join("copy"));
    let binary = cluster.binary();
    let server = Served::start(binary, &sound).await?.map_err(anyhow::Error::msg)?;
    fill(&server.client).await?;
    let wanted = server.objects().await?;
    server.stop().await?;
    let export = export(binary, &sound, folder.path())?.map_err(anyhow::Error::msg)?;
    let store = PathBuf::from("store/store.redb");
    let bytes = fs::read(sound.join(&store))?;
    ensure!(Command::new("cp").arg("-a").args([&sound, &copy]).status()?.success(), "cp");
    let (mut refused, mut the_same, mut served, mut state) = (0_usize, 0_usize, 0_usize, 1_u64);
    for _ in 0..COUNT {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (offset, bit) = (usize::try_from(state >> 33)? % bytes.len(), (state >> 20) % 8);
        let what = format!("bit {bit} of byte {offset} of {}", bytes.len());
        let mut damaged = bytes.clone();
        damaged[offset] ^= 1 << bit;
        fs::write(copy.join(&store), &damaged)?;
        let is_sound = match self::export(binary, &copy, folder.path())? {
            Ok(seen) => {
                ensure!(seen == export, "{what}: the export differs and nothing was said");
                the_same += 1;
                true
            }
            Err(said) => {
                one_sentence(&said).with_context(|| what.clone())?;
                refused += 1;
                false
            }
        };
        if !(if is_sound { the_same } else { refused }).is_multiple_of(SERVED_EVERY) {
            continue;
        }
        served += 1;
        fs::write(copy.join(&store), &damaged)?;
        match Served::start(binary, &copy).await? {
            Ok(server) => {
                ensure!(is_sound, "{what}: `store export` refuses it and a server does not");
                tokio::time::sleep(SETTLE).await;
                let seen = server.objects().await?;
                ensure!(seen == wanted, "{what}: a server has other objects");
                server.stop().await?;
            }
            Err(said) => {
                ensure!(!is_sound, "{what}: `store export` takes it and a server does not: {said}");
                one_sentence(&said).with_context(|| what.clone())?;
            }
        }
    }
    Ok(format!("{COUNT} stores with a flipped bit: {refused} refused, {the_same} sound all the same; {served} served"))
}

async fn fill(client: &Client) -> Result<()> {
    let accounts = ListOptions { field_selector: "metadata.name=default".to_owned(), ..ListOptions::default() };
    let mut watch = client.watch(&kinds::SERVICE_ACCOUNT, NAMESPACE, &accounts).await?;
    crate::bench::cluster::wait(&mut watch, |event| crate::bench::cluster::put(event).is_some()).await?;
    for index in 0..OBJECTS {
        let map = json!({ "metadata": { "name": format!("map-{index}") }, "data": { "a": "x".repeat(BYTES) } });
        client.create(&kinds::CONFIG_MAP, NAMESPACE, &map).await?;
        let name = format!("volume-{index}");
        let volume = json!({ "metadata": { "name": name }, "spec": { "capacity": { "storage": "1Gi" },
            "accessModes": ["ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Delete", "storageClassName": "none",
            "claimRef": { "namespace": NAMESPACE, "name": name }, "hostPath": { "path": "/nowhere" } } });
        client.create(&kinds::PERSISTENT_VOLUME, "", &volume).await?;
        let claim = json!({ "metadata": { "name": name }, "spec": { "accessModes": ["ReadWriteOnce"],
            "volumeName": name, "storageClassName": "none", "resources": { "requests": { "storage": "1Gi" } } } });
        client.create(&kinds::PERSISTENT_VOLUME_CLAIM, NAMESPACE, &claim).await?;
    }
    // All are bound before the store is taken.
    let bound = async {
        loop {
            let claims = client.list(&kinds::PERSISTENT_VOLUME_CLAIM, NAMESPACE, &ListOptions::default()).await?;
            let items = claims["items"].as_array().map_or(&[][..], Vec::as_slice);
            if items.iter().filter(|claim| claim["status"]["phase"] == "Bound").count() == OBJECTS {
                return anyhow::Ok(());
            }
            tokio::time::sleep(SETTLE).await;
        }
    };
    tokio::time::timeout(PATIENCE, bound).await.context("the claims are not bound")?
}

/// What `store export` saves, or what it says.
fn export(binary: &Path, data: &Path, folder: &Path) -> Result<Result<Vec<u8>, String>> {
    let file = folder.join("export");
    let _ = fs::remove_file(&file);
    let mut command = Command::new(binary);
    let output = command.args(["store", "export", "--data-dir"]).arg(data).arg(&file).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.code() {
        Some(0) => Ok(Ok(fs::read(&file)?)),
        Some(_) => Ok(Err(said)),
        None => bail!("it was ended by a signal: {said}"),
    }
}

/// A refusal in words, and no panic.
fn one_sentence(said: &str) -> Result<()> {
    let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    ensure!(lines.len() == 1 && lines[0].starts_with("mainstay: ") && !said.contains("panicked"), "{said:?}");
    Ok(())
}
