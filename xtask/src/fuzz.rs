//! `cargo xtask fuzz [SECONDS] [TARGET…]`: looks for inputs that break what `mainstay_node::fuzzing` promises, with
//! libFuzzer (`cargo install cargo-fuzz` first). Not part of `cargo xtask ci`: the tests of that module are.

use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

/// So long for each target, where it is not said otherwise (seconds).
const SECONDS: u64 = 120;
/// Memory of the whole process, of one allocation (a zstd window is the largest), and how long one input may take.
const LIMITS: [&str; 4] = ["-rss_limit_mb=1024", "-malloc_limit_mb=160", "-timeout=20", "-max_len=8192"];

/// Runs each target in turn; the first finding ends it, and cargo-fuzz says where it lies.
pub fn run(args: &[String]) -> Result<()> {
    let (seconds, wanted) = match args.split_first() {
        Some((first, rest)) if first.parse::<u64>().is_ok() => (first.parse()?, rest),
        _ => (SECONDS, args),
    };
    let mut targets: Vec<String> = std::fs::read_dir("fuzz/fuzz_targets")
        .context("fuzz/fuzz_targets (run this where the workspace is)")?
        .filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_str()?.to_owned()))
        .filter(|target| wanted.is_empty() || wanted.contains(target))
        .collect();
    targets.sort();
    if targets.is_empty() {
        bail!("no such target: {}", wanted.join(", "));
    }
    // What is shipped is what is tried: the same versions of everything.
    std::fs::copy("Cargo.lock", "fuzz/Cargo.lock").context("copying Cargo.lock")?;
    for target in targets {
        println!("== {target}, {seconds} seconds");
        let mut cargo = Command::new("cargo");
        // Sanitizers are not stable yet.
        cargo
            .env("RUSTC_BOOTSTRAP", "1")
            .args(["fuzz", "run", &target, "--", &format!("-max_total_time={seconds}")])
            .args(LIMITS);
        let status = cargo.status().context("running cargo fuzz (cargo install cargo-fuzz)")?;
        ensure!(status.success(), "{target}: {status}");
    }
    Ok(())
}
