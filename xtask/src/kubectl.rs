//! `cargo xtask kubectl`: Debian's kubectl (1.20) in `.cache/kubectl`, beside the machine's own: old clients must work.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Where it is unpacked, below the workspace.
const FOLDER: &str = ".cache/kubectl";

/// Downloads and unpacks the package unless that was done before. It is not installed: its file collides with another
/// package's.
pub fn run() -> Result<()> {
    let folder = Path::new(FOLDER);
    if folder.join("usr/bin/kubectl").exists() {
        return Ok(());
    }
    std::fs::create_dir_all(folder)?;
    let download = Command::new("apt-get")
        .args(["-o", "APT::Sandbox::User=root", "-qq", "download", "kubernetes-client"])
        .current_dir(folder)
        .status()
        .context("running apt-get")?;
    ensure!(download.success(), "apt-get download kubernetes-client: {download} (run `apt-get update` once)");
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            let unpack = Command::new("dpkg").arg("-x").arg(&path).arg(folder).status()?;
            ensure!(unpack.success(), "dpkg -x: {unpack}");
        }
    }
    Ok(())
}
