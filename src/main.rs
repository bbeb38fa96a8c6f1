//! The binary: what was typed, and the wiring of server and node. Supervisors of containers are this same binary,
//! re-executed before anything else is set up.

/// As `println!`, but whoever reads may end (`mainstay up | head -1`): then nobody is told, and nothing else is changed
/// by that. Rust's own panics.
macro_rules! say {
    ($($part:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($part)*);
    }};
}
/// The same on standard error.
macro_rules! tell {
    ($($part:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($part)*);
    }};
}

mod demo;
mod down;
mod image;
mod instance;
mod join;
mod leave;
mod nfs_server;
mod server;
mod store;
mod token;
mod up;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use mainstay_cli::args::{Cli, Command};

fn main() -> ExitCode {
    mainstay_node::run_if_supervisor();
    let _ = mainstay_server::COMMIT.set(env!("MAINSTAY_COMMIT"));
    match run(<Cli as clap::Parser>::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell!("mainstay: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Demo(args) => demo::run(&args),
        Command::Up(mut args) => {
            args.data_dir = data_dir(&args.data_dir)?;
            up::run(&args)
        }
        Command::Server(mut args) => {
            args.data_dir = data_dir(&args.data_dir)?;
            server::run(&args)
        }
        Command::Join(mut args) => {
            args.data_dir = data_dir(&args.data_dir)?;
            join::run(&args)
        }
        Command::Leave(mut args) => {
            args.data_dir = data_dir(&args.data_dir)?;
            leave::run(&args)
        }
        Command::Token(command) => token::run(&command),
        Command::Down(mut args) => {
            args.data_dir = data_dir(&args.data_dir)?;
            down::run(&args)
        }
        Command::Image(command) => image::run(&command),
        Command::Store(command) => store::run(&command),
        Command::NfsServer(args) => nfs_server::run(&args),
        Command::Lookup { name, record_type } => {
            for line in mainstay_cli::tools::lookup(&name, &record_type)? {
                say!("{line}");
            }
            Ok(())
        }
        Command::Fetch { url } => {
            use std::io::Write as _;
            let _ = std::io::stdout().write_all(mainstay_cli::tools::fetch(&url)?.as_bytes());
            Ok(())
        }
        Command::DemoServer { data, port } => mainstay_cli::tools::serve(&data, port),
    }
}

/// An error with its causes, each told once: many of ours name their cause themselves.
fn chain(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for link in error.chain().map(ToString::to_string) {
        if told.is_empty() {
            told = link;
        } else if !told.contains(&link) {
            told = format!("{told}: {link}");
        }
    }
    told
}

/// Names of cgroups and of mounts are made from the folder's: it has one.
fn data_dir(given: &Path) -> Result<PathBuf> {
    instance::canonical(given).with_context(|| given.display().to_string())
}

/// Containers, namespaces and the packet filter are root's.
fn need_root(what: &str) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("{what} needs root: it makes namespaces, mounts and packet filter rules; run it with sudo");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let inner = anyhow::anyhow!("read-only file system");
        let named = Err::<(), _>(inner).context("/data: read-only file system").context("the data folder").unwrap_err();
        assert_eq!(chain(&named), "the data folder: /data: read-only file system");
    }
}
