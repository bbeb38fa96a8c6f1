//! A cluster to measure, in the namespaces that this process is in.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use mainstay_api::{Kind, kinds, object};
use mainstay_client::{Client, Config, ListOptions, WatchEvent, Watching};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout};

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// The namespace of all that is measured.
pub const NAMESPACE: &str = "default";

/// A running `mainstay up`. Dropping it takes it away, with all that it made.
pub struct Cluster {
    pub folder: tempfile::TempDir,
    binary: PathBuf,
    up: Option<Up>,
    pub client: Client,
}

/// The process, and what it said about its start.
struct Up {
    child: Child,
    /// Read to the end of the process's life: it must not meet a closed pipe.
    _output: Lines<BufReader<ChildStdout>>,
}

/// From `exec` on.
#[derive(Clone, Copy)]
pub struct Started {
    pub api: Duration,
    pub node: Duration,
}

impl Cluster {
    /// A fresh cluster with the image of the pods, and with what a pod needs before it can be created.
    pub async fn new(binary: &Path) -> Result<Self> {
        let (cluster, _) = Self::start(binary).await?;
        let archive = Path::new(crate::images::FOLDER).join(format!("{}.tar", super::IMAGE));
        cluster.mainstay(&["image", "load"], &[&archive]).context("mainstay image load")?;
        let accounts = &kinds::SERVICE_ACCOUNT;
        let mut watch = cluster.watch(accounts, "metadata.name=default").await?;
        wait(&mut watch, |event| matches!(event, WatchEvent::Put(_))).await.context("the default service account")?;
        Ok(cluster)
    }

    /// A cluster on a fresh folder, and how long its start took.
    pub async fn start(binary: &Path) -> Result<(Self, Started)> {
        let folder = tempfile::Builder::new().prefix("mainstay-bench-").tempdir()?;
        let mut config = Config::default();
        config.server.push_str("unset");
        let mut cluster = Self { folder, binary: binary.to_owned(), up: None, client: Client::new(config)? };
        let started = cluster.up().await?;
        Ok((cluster, started))
    }

    pub fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Starts server and node on the folder as it is.
    pub async fn up(&mut self) -> Result<Started> {
        let log = File::options().create(true).append(true).open(self.folder.path().join("log"))?;
        let mut command = tokio::process::Command::new(&self.binary);
        command.args(["up", "--listen", "127.0.0.1:6443", "--node-name", "node-1", "--data-dir"]).arg(self.data_dir());
        // Whatever else is on this disk.
        command.arg("--eviction-hard=");
        // A group of its own: Ctrl-C is this program's, which then stops it in order.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        let exec = Instant::now();
        let mut child = command.spawn().context("mainstay up")?;
        let mut output = BufReader::new(child.stdout.take().context("piped")?).lines();
        let mut api = None;
        let said = async {
            while let Some(line) = output.next_line().await? {
                let at = exec.elapsed();
                if line.contains("API ready") {
                    api = Some(own_words(&line)?);
                } else if line.contains("node ready") {
                    let api = api.context("the API's line came first")?;
                    // The process counts from its first line of code. What it does not see, the loading of the program,
                    // is what the node's line came later than it says; the API's line is late by that as well.
                    return Ok(Started { api: api + at.saturating_sub(own_words(&line)?), node: at });
                }
            }
            bail!("mainstay up ended")
        };
        let started = tokio::time::timeout(PATIENCE, said).await;
        self.up = Some(Up { child, _output: output });
        let started = started.map_err(anyhow::Error::from).and_then(|said| said);
        let started =
            started.with_context(|| std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default())?;
        self.client = Client::new(Config::read(&self.data_dir().join("kubeconfig"))?)?;
        Ok(started)
    }

    /// SIGTERM: containers go on.
    pub async fn stop(&mut self) -> Result<()> {
        let Some(mut up) = self.up.take() else { return Ok(()) };
        if let Some(pid) = up.child.id() {
            ensure!(std::process::Command::new("kill").arg(pid.to_string()).status()?.success(), "kill");
        }
        tokio::time::timeout(PATIENCE, up.child.wait()).await.context("mainstay up does not stop")??;
        Ok(())
    }

    /// The process of server and node.
    pub fn pid(&self) -> Result<u32> {
        self.up.as_ref().and_then(|up| up.child.id()).context("running")
    }

    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// Another client, with a connection of its own.
    pub fn another_client(&self) -> Result<Client> {
        Ok(Client::new(self.client.config().clone())?)
    }

    fn mainstay(&self, words: &[&str], files: &[&Path]) -> Result<()> {
        let mut command = std::process::Command::new(&self.binary);
        command.args(words).arg("--data-dir").arg(self.data_dir()).args(files).process_group(0);
        let output = command.stdin(Stdio::null()).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// Watches a kind of [`NAMESPACE`], beginning with what is there.
    pub async fn watch(&self, kind: &Kind, field_selector: &str) -> Result<Watching> {
        let options = ListOptions { field_selector: field_selector.to_owned(), ..ListOptions::default() };
        Ok(self.client.watch(kind, NAMESPACE, &options).await?)
    }

    /// Watches changes of a kind of [`NAMESPACE`] from now on.
    pub async fn watch_from_now(&self, kind: &Kind) -> Result<Watching> {
        let mut options = ListOptions::default();
        options.resource_version =
            object::resource_version(&self.client.list(kind, NAMESPACE, &options).await?).to_owned();
        Ok(self.client.watch(kind, NAMESPACE, &options).await?)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // `down` also stops a process that runs; its own child it could not reap, so that is killed first where it is
        // not gone yet. Data are thrown away with the folder: nothing is lost by it.
        if let Some(mut up) = self.up.take() {
            let _ = up.child.start_kill();
            for _ in 0..500 {
                if !matches!(up.child.try_wait(), Ok(None)) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        if let Err(error) = self.mainstay(&["down"], &[]) {
            eprintln!("bench: mainstay down --data-dir {}: {error:#}", self.data_dir().display());
        }
    }
}

/// The milliseconds at the end of a line.
fn own_words(line: &str) -> Result<Duration> {
    let number = line.trim_end().strip_suffix(" ms").and_then(|line| line.rsplit(' ').next()?.parse().ok());
    number.map(Duration::from_millis).with_context(|| format!("no milliseconds in {line:?}"))
}

/// The first event that is the one, within [`PATIENCE`].
pub async fn wait(watch: &mut Watching, mut wanted: impl FnMut(&WatchEvent) -> bool) -> Result<()> {
    let seen = async {
        while let Some(event) = watch.next().await? {
            if wanted(&event) {
                return Ok(());
            }
        }
        bail!("the watch ended")
    };
    tokio::time::timeout(PATIENCE, seen).await.context("waited in vain")?
}

/// The object of an event that says how an object is now.
pub fn put(event: &WatchEvent) -> Option<&Value> {
    match event {
        WatchEvent::Put(value) => Some(value),
        _ => None,
    }
}
