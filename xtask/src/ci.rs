//! `cargo xtask ci`: everything that must hold before a change is on main.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Runs each step; the first that fails ends it.
pub fn run() -> Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    crate::tidy::run()?;
    cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])?;
    crate::images::run(&[])?;
    crate::kubectl::run()?;
    crate::helm::run()?;
    cargo(&["nextest", "run", "--workspace", "--no-fail-fast"])
}

fn cargo(args: &[&str]) -> Result<()> {
    println!("== cargo {}", args.join(" "));
    let status = Command::new("cargo").args(args).status().context("running cargo")?;
    ensure!(status.success(), "cargo {}: {status}", args.join(" "));
    Ok(())
}
