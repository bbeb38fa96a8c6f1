//! `cargo xtask attack [--binary FILE] [NAME…]`: tries to break a cluster that it starts itself, in namespaces of its
//! own, and says for each attack what was tried, whether it was held, and what it cost: the answers' latency for
//! somebody else meanwhile, and the server's memory.
//!
//! Every attack is bounded in count and time, and goes to this machine's loopback and to pods only. A new one is a
//! function in a file of its own and a row in [`ATTACKS`].

mod bodies;
mod connections;
mod crafted;
mod escapes;
mod floods;
mod lists;
mod nfs;
mod patches;
mod pods;
mod probe;
mod races;
mod services;
mod stores;
mod streams;
mod watches;

use std::path::{Path, PathBuf};
use std::pin::Pin;

use anyhow::{Context as _, Result, ensure};

use crate::bench::cluster::Cluster;
use crate::bench::table::{Table, ms};
use crate::bench::{enter, inside, processes};
use probe::Probe;

/// What an attack found out: what was tried, in numbers. An error is an attack that was not held.
type Tried<'a> = Pin<Box<dyn Future<Output = Result<String>> + 'a>>;

/// One way to press or to fool a cluster.
struct Attack {
    name: &'static str,
    /// The promise that it attacks.
    promise: &'static str,
    run: for<'a> fn(&'a Cluster) -> Tried<'a>,
}

/// All attacks, in the order in which they are tried, each on the cluster that the one before has left.
const ATTACKS: &[Attack] = &[
    Attack { name: "api-connections", promise: "X5", run: |cluster| Box::pin(connections::api(cluster)) },
    Attack { name: "node-connections", promise: "X5", run: |cluster| Box::pin(connections::node(cluster)) },
    Attack { name: "patch-bombs", promise: "X4", run: |cluster| Box::pin(patches::bombs(cluster)) },
    Attack { name: "dense-bodies", promise: "X4", run: |cluster| Box::pin(bodies::bombs(cluster)) },
    Attack { name: "unread-lists", promise: "X7", run: |cluster| Box::pin(lists::unread(cluster)) },
    Attack { name: "many-watches", promise: "X7", run: |cluster| Box::pin(watches::many(cluster)) },
    Attack { name: "damaged-stores", promise: "A10", run: |cluster| Box::pin(stores::damaged(cluster)) },
    Attack { name: "crafted-images", promise: "X3", run: |cluster| Box::pin(crafted::images(cluster)) },
    Attack { name: "escapes", promise: "X6", run: |cluster| Box::pin(escapes::pods(cluster)) },
    Attack { name: "host-path-races", promise: "X6", run: |cluster| Box::pin(races::pods(cluster)) },
    Attack { name: "word-floods", promise: "X4", run: |cluster| Box::pin(floods::of_words(cluster)) },
    Attack { name: "unread-streams", promise: "X7", run: |cluster| Box::pin(streams::unread(cluster)) },
    Attack { name: "nfs-floods", promise: "X5", run: |cluster| Box::pin(nfs::flood(cluster)) },
    Attack { name: "stolen-addresses", promise: "X7", run: |cluster| Box::pin(services::stolen(cluster)) },
];

/// Tries what is named, or everything.
pub fn run(args: &[String]) -> Result<()> {
    let (mut binary, mut names) = (None, Vec::new());
    let mut words = args.iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--binary" => binary = Some(PathBuf::from(words.next().context("--binary FILE")?)),
            name => {
                let known: Vec<&str> = ATTACKS.iter().map(|attack| attack.name).collect();
                ensure!(known.contains(&name), "no attack is called {name:?} ({})", known.join(", "));
                names.push(name.to_owned());
            }
        }
    }
    if !inside() {
        return enter("attack", binary, &names);
    }
    let binary = binary.context("--binary is given inside")?;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let is_up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status()?.success();
    ensure!(is_up, "ip link set lo up");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            result = try_all(&binary, &names) => result,
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        }
    })
}

async fn try_all(binary: &Path, names: &[String]) -> Result<()> {
    let cluster = Cluster::new(binary).await?;
    let mut table =
        Table::titled(["attack", "tried", "held", "a get meanwhile: p50, p99, failed", "RSS: before, peak"]);
    let quiet = Probe::start(&cluster)?;
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let (memory, times) = (processes::memory(cluster.pid()?)?.rss, quiet.stop().await?);
    table.row("(quiet)", "", "", shown(&times), &mib(memory));
    let mut broken = Vec::new();
    for attack in ATTACKS.iter().filter(|attack| names.is_empty() || names.iter().any(|name| name == attack.name)) {
        let before = processes::memory(cluster.pid()?)?.rss;
        let probe = Probe::start(&cluster)?;
        let tried = (attack.run)(&cluster).await;
        let seen = probe.stop().await?;
        let (what, held) = match tried {
            Ok(what) if seen.failed == 0 => (what, "yes"),
            Ok(what) => (what, "no"),
            Err(error) => (format!("{error:#}"), "no"),
        };
        if held == "no" {
            broken.push(attack.name);
        }
        let memory = format!("{}, {}", mib(before), mib(seen.peak.max(before)));
        table.row(&format!("{} ({})", attack.name, attack.promise), what, held, shown(&seen), &memory);
    }
    print!("{table}");
    ensure!(broken.is_empty(), "not held: {}", broken.join(", "));
    Ok(())
}

fn mib(kib: u64) -> String {
    format!("{} MiB", kib / 1024)
}

fn shown(seen: &probe::Seen) -> String {
    format!("{}, {}, {} of {}", ms(seen.times.median()), ms(seen.times.quantile(0.99)), seen.failed, seen.count)
}
