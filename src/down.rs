//! `mainstay down`: takes away all that `up` made on this machine, but the data.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use mainstay_cli::args::DownArgs;
use mainstay_node::join::JoinError;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::instance::Namespace;

/// How long a running instance may take to stop.
const STOP: Duration = Duration::from_secs(20);

/// `mainstay down`.
pub fn run(args: &DownArgs) -> Result<()> {
    crate::need_root("mainstay down")?;
    crate::up::log_to_stderr();
    // What is removed below goes by its name: in a stranger's folder that would be the stranger's.
    crate::instance::there_is("cluster", &args.data_dir, crate::instance::was_here(&args.data_dir))?;
    // Before any thread is made, and while what is in the namespace still runs.
    let namespace = crate::instance::enter(&args.data_dir).context("entering the cluster's network namespace")?;
    crate::up::runtime()?.block_on(async {
        stop_running(&args.data_dir).await?;
        let _held = hold_stopped(&args.data_dir)?;
        clean(&args.data_dir).await
    })?;
    say!("mainstay: stopped; state, images and volumes stay in {}", args.data_dir.display());
    if let Namespace::Lost { inode } = namespace {
        say!(
            "mainstay: it ran in another network namespace, net:[{inode}], which no process is in any more; if \
             something still holds that, its links and rules are there: run `mainstay down` in it"
        );
    }
    Ok(())
}

/// Takes away pods, mounts, interfaces, rules and cgroups of an instance that does not run.
pub async fn clean(data_dir: &Path) -> Result<()> {
    let cgroup_root = crate::up::cgroup_root(data_dir);
    mainstay_node::cleanup(data_dir, &cgroup_root, &PathBuf::from("/proc/self/exe")).await.context("cleaning up")
}

/// Holds the folder of an instance that was stopped.
///
/// # Errors
/// One runs there whose process is not known: its pods would lose their network below it.
pub fn hold_stopped(data_dir: &Path) -> Result<File> {
    crate::instance::hold(data_dir).map_err(|error| match error {
        JoinError::InUse(_) => anyhow::anyhow!(
            "a mainstay runs on {}, and {} does not say which process it is; end that one (SIGTERM) and run this again",
            data_dir.display(),
            crate::up::pid_file(data_dir).display()
        ),
        error => error.into(),
    })
}

/// Asks the instance that runs on this folder to stop, and waits until it has.
pub async fn stop_running(data_dir: &Path) -> Result<()> {
    let file = crate::up::pid_file(data_dir);
    let Some(pid) = crate::instance::process(data_dir).and_then(|pid| i32::try_from(pid).ok()) else { return Ok(()) };
    let pid = Pid::from_raw(pid);
    kill(pid, Signal::SIGTERM).with_context(|| format!("stopping process {pid}"))?;
    let gone = async {
        while kill(pid, None).is_ok() && file.exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(STOP, gone).await.is_err() {
        bail!("process {pid} does not stop; end it and run `mainstay down` again");
    }
    Ok(())
}
