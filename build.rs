//! Notes the commit that the binary is built from, for `/version`.

use std::process::Command;

fn main() {
    // Every commit and every switch of branches writes to this log.
    match git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        Some(log) => println!("cargo:rerun-if-changed={log}"),
        None => println!("cargo:rerun-if-changed=build.rs"),
    }
    let unknown = "0".repeat(40);
    println!("cargo:rustc-env=MAINSTAY_COMMIT={}", git(&["rev-parse", "HEAD"]).unwrap_or(unknown));
}

/// What git prints, where there is a git and this is its tree; sources from an archive have neither.
fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
