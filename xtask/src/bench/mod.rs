//! `cargo xtask bench [--binary FILE] [NAME…]`: how fast and how small Mainstay is on this machine, beside the bare
//! work of the kernel and of runc. Numbers only, never pass or fail.
//!
//! Everything runs in network and mount namespaces of its own, on data folders of its own, and is taken away at the
//! end, also after a failure or Ctrl-C.

mod clone;
pub mod cluster;
mod crds;
mod full;
mod hollow;
mod idle;
mod nfs;
mod pages;
mod pod;
mod pressure;
pub mod processes;
mod scale;
mod set;
mod start;
pub mod table;
mod volume;
mod writes;

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use cluster::Cluster;
use table::Table;

/// What can be measured, in the order in which it is.
const NAMES: &[&str] = &[
    "binary",
    "nfs",
    "start",
    "idle",
    "pod",
    "volume",
    "clone",
    "set",
    "set-100",
    "writes",
    "pressure",
    "crds",
    "pages",
    "scale",
    "scale-full",
    "scale-inside",
];
/// Of these, what takes many minutes or a machine of its own: measured only where it is named.
const BY_NAME: &[&str] = &["pages", "scale", "scale-full", "scale-inside"];
/// Set in the process that is inside the namespaces.
const INSIDE: &str = "MAINSTAY_BENCH_INSIDE";
/// The image of every pod here.
const IMAGE: &str = "busybox";

/// Measures what is named, or everything.
pub fn run(args: &[String]) -> Result<()> {
    let (binary, names) = parse(args)?;
    if !inside() {
        return enter("bench", binary, &names);
    }
    let binary = binary.context("--binary is given inside")?;
    let _ = rustls::crypto::ring::default_provider().install_default();
    // A new network namespace has its loopback down.
    ensure!(Command::new("ip").args(["link", "set", "lo", "up"]).status()?.success(), "ip link set lo up");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut table = Table::default();
        let measured = tokio::select! {
            result = measure(&binary, &names, &mut table) => result,
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
        };
        // What was measured before a failure is worth having.
        print!("{table}");
        measured
    })
}

fn parse(args: &[String]) -> Result<(Option<PathBuf>, Vec<String>)> {
    let (mut binary, mut names) = (None, Vec::new());
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--binary" => binary = Some(PathBuf::from(args.next().context("--binary FILE")?)),
            name if NAMES.contains(&name) => names.push(name.to_owned()),
            other => bail!("nothing to measure is called {other:?} ({})", NAMES.join(", ")),
        }
    }
    if names.is_empty() {
        names = NAMES.iter().filter(|name| !BY_NAME.contains(name)).map(|name| (*name).to_owned()).collect();
    }
    Ok((binary, names))
}

/// Whether this is the process that [`enter`] has become.
pub fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Builds what is to be measured (or attacked) and becomes the same task inside new namespaces.
pub fn enter(task: &str, binary: Option<PathBuf>, names: &[String]) -> Result<()> {
    if !Path::new(crate::images::FOLDER).join(format!("{IMAGE}.tar")).exists() {
        crate::images::run(&[IMAGE.to_owned()])?;
    }
    let (binary, bench) = match binary {
        Some(binary) => {
            (binary.canonicalize().with_context(|| binary.display().to_string())?, std::env::current_exe()?)
        }
        None => {
            eprintln!("bench: building the release binary (several minutes the first time)");
            // This task too: a slow client would be measured along with the server.
            let build = ["build", "--quiet", "--release", "--bin", "mainstay", "--bin", "xtask"];
            ensure!(Command::new("cargo").args(build).status()?.success(), "cargo build --release");
            if names.iter().any(|name| name == "scale-inside") {
                let build = ["build", "--quiet", "--release", "--example", "scale"];
                ensure!(Command::new("cargo").args(build).status()?.success(), "cargo build --release --example scale");
            }
            let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
            let release = target.join("release").canonicalize()?;
            (release.join("mainstay"), release.join("xtask"))
        }
    };
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--propagation", "private", "--"]).arg(bench);
    command.args([task, "--binary"]).arg(binary).args(names).env(INSIDE, "1");
    Err(command.exec()).context("unshare (util-linux), as root")
}

async fn measure(binary: &Path, names: &[String], table: &mut Table) -> Result<()> {
    // Times of a machine that does something else as well are not those of an idle one.
    let processors = std::thread::available_parallelism()?;
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split_whitespace().next().unwrap_or("?").to_owned();
    table.row("machine", format!("{processors} CPUs, load {load} before"), "", "", "");
    let wanted = |name: &str| names.iter().any(|wanted| wanted == name);
    if wanted("binary") {
        let bytes = std::fs::metadata(binary)?.len();
        table.row("binary", format!("{:.1} MB", bytes as f64 / 1e6), "", "", "<= 40 MB");
    }
    if wanted("nfs") {
        nfs::measure(binary, table)?;
    }
    if wanted("start") {
        start::measure(binary, table).await?;
    }
    if wanted("idle") {
        let cluster = Cluster::new(binary).await?;
        idle::measure(&cluster, table).await?;
    }
    if wanted("crds") {
        let (mut cluster, _) = Cluster::start(binary).await?;
        crds::measure(&mut cluster, table).await?;
    }
    if wanted("pages") {
        let cluster = Cluster::new(binary).await?;
        pages::measure(&cluster, table).await?;
    }
    if wanted("scale") {
        let cluster = Cluster::new(binary).await?;
        scale::measure(&cluster, table).await?;
    }
    if wanted("scale-full") {
        let mut cluster = Cluster::new(binary).await?;
        full::measure(&mut cluster, table).await?;
    }
    if wanted("scale-inside") {
        scale::inside(table)?;
    }
    let rest = ["pod", "volume", "clone", "set", "set-100", "writes", "pressure"];
    if !rest.into_iter().any(wanted) {
        return Ok(());
    }
    let cluster = Cluster::new(binary).await?;
    if wanted("writes") {
        writes::measure(&cluster, table).await?;
    }
    if wanted("pod") {
        pod::measure(&cluster, table).await?;
    }
    if wanted("volume") {
        volume::measure(&cluster, table).await?;
    }
    if wanted("clone") {
        clone::measure(&cluster, table).await?;
    }
    for (name, replicas, target) in [("set", 3, ""), ("set", 30, ""), ("set-100", 100, "<= 20 s")] {
        if wanted(name) {
            set::measure(&cluster, replicas, target, table).await?;
        }
    }
    if wanted("pressure") {
        pressure::measure(&cluster, table).await?;
    }
    Ok(())
}
