//! `mainstay demo`: a throw-away cluster in namespaces and a folder of its own.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::Parser as _;
use mainstay_cli::args::{Cli, Command, DemoArgs, UpArgs};
use mainstay_cli::demo::{self, Screen, Started};
use mainstay_client::{Client, Config};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tokio::signal::unix::{SignalKind, signal};

/// `mainstay demo`.
pub fn run(args: &DemoArgs) -> Result<()> {
    let begun = Instant::now();
    crate::need_root("mainstay demo")?;
    crate::up::log_to_stderr();
    // Before any thread is made: a network without a way out, and mounts that nobody else sees.
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("making a network and mount namespace")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .context("making mounts private")?;
    let folder = std::env::temp_dir().join(format!("mainstay-demo-{}", std::process::id()));
    let folder = crate::instance::canonical(&folder).context("the folder for temporary files")?;
    let data_dir = folder.to_str().context("the temporary folder's name is not UTF-8")?.to_owned();
    let cli = Cli::parse_from([
        "mainstay",
        "up",
        "--listen",
        "127.0.0.1:6443",
        "--node-name",
        "demo",
        "--data-dir",
        &data_dir,
    ]);
    let Command::Up(up) = cli.command else { unreachable!("`up` was given") };
    let runtime = crate::up::runtime()?;
    let shown = std::panic::catch_unwind(AssertUnwindSafe(|| runtime.block_on(shown(&up, args, begun))));
    let result = shown.unwrap_or_else(|_| Err(anyhow::anyhow!("the demonstration broke")));
    // Whatever happened, nothing of it stays.
    let result = result.and(runtime.block_on(crate::down::clean(&folder)));
    let removed = std::fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()));
    result.and(removed)
}

/// Shows it, unless somebody ends that: with a signal, or by closing the terminal.
async fn shown(up: &UpArgs, args: &DemoArgs, begun: Instant) -> Result<()> {
    let shown = async {
        let cluster = crate::up::start(up, begun).await?;
        let result = show(&cluster, args, begun).await;
        cluster.stop(&up.data_dir).await;
        result
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        result = shown => result,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow::anyhow!("stopped")),
        _ = hangup.recv() => Err(anyhow::anyhow!("stopped")),
    }
}

async fn show(cluster: &crate::up::Cluster, args: &DemoArgs, begun: Instant) -> Result<()> {
    let node = crate::up::node_ready(&cluster.client, &cluster.node_name, begun).await;
    crate::up::make_demo_image(&cluster.node).await;
    let client = Client::new(Config::parse(cluster.server.admin.kubeconfig.as_bytes())?)?;
    demo::run(&client, &Screen::new(args.plain), Started { api: cluster.api_ready, node }).await
}
