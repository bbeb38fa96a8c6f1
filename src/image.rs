//! `mainstay image …`: the node's images, straight in its image store; a running node sees them at once.
//! `load --all-nodes` sends archives to the nodes instead.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use mainstay_api::{kinds, object};
use mainstay_cli::args::{AdminArgs, ImageCommand};
use mainstay_client::{Client, ListOptions};
use mainstay_node::streaming::images::PROTOCOL;
use mainstay_runtime::images::{ImageStore, Progress};
use tokio::io::AsyncReadExt as _;

/// `mainstay image …`.
pub fn run(command: &ImageCommand) -> Result<()> {
    match command {
        ImageCommand::Load { admin, all_nodes, files } => {
            for file in files {
                std::fs::metadata(file).with_context(|| file.display().to_string())?;
            }
            if *all_nodes { crate::up::runtime()?.block_on(load_everywhere(admin, files)) } else { load(admin, files) }
        }
        ImageCommand::Ls { data_dir } => {
            let folder = data_dir.join("images");
            crate::instance::there_is("image store", data_dir, folder.exists())?;
            let store = ImageStore::open(&folder)?;
            say!("{:<50} {:<20} {:>10}", "NAME", "IMAGE ID", "SIZE");
            for image in store.list() {
                let id = image.id.trim_start_matches("sha256:");
                for name in &image.names {
                    say!("{name:<50} {:<20} {:>10}", &id[..id.len().min(12)], size(image.size));
                }
            }
            Ok(())
        }
        ImageCommand::Pull { data_dir, reference } => {
            crate::need_root("mainstay image pull")?;
            let _ = rustls::crypto::ring::default_provider().install_default();
            let store = open_or_make(data_dir)?;
            let shown = Shown::new(reference.clone());
            let pulled =
                crate::up::runtime()?.block_on(store.pull(reference, None, &mut |progress| shown.show(progress)));
            shown.clear();
            say!("pulled {reference}: {}", pulled.with_context(|| format!("pulling {reference}"))?.id);
            Ok(())
        }
    }
}

fn load(admin: &AdminArgs, files: &[PathBuf]) -> Result<()> {
    crate::need_root("mainstay image load")?;
    let store = open_or_make(&admin.data_dir)?;
    for file in files {
        let shown = Shown::new(file.display().to_string());
        let names = store
            .load(file, &mut |progress| shown.show(progress))
            .with_context(|| format!("{} was not loaded", file.display()))?;
        shown.clear();
        for name in names {
            say!("loaded {name}");
        }
    }
    Ok(())
}

/// One node after the other; those that cannot be had are named at the end.
async fn load_everywhere(admin: &AdminArgs, files: &[PathBuf]) -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = crate::token::client(admin)?;
    let nodes = client.list(&kinds::NODE, "", &ListOptions::default()).await.context("listing the nodes")?;
    let nodes = nodes["items"].as_array().cloned().unwrap_or_default();
    let mut failed = Vec::new();
    for file in files {
        for node in nodes.iter().map(object::name) {
            match load_on(&client, node, file).await {
                Ok(names) => names.lines().for_each(|name| say!("loaded {name} on {node}")),
                Err(error) => {
                    tell!("mainstay: {} was not loaded on {node}: {error:#}", file.display());
                    failed.push(node);
                }
            }
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    failed.sort_unstable();
    failed.dedup();
    bail!("not every node has the images: {}", failed.join(", "))
}

/// The names that a node has loaded, a line each.
async fn load_on(client: &Client, node: &str, file: &Path) -> Result<String> {
    let archive = tokio::fs::File::open(file).await?;
    let metadata = archive.metadata().await?;
    ensure!(metadata.is_file(), "only archives are sent to nodes");
    let bytes = metadata.len();
    let path = format!("/api/v1/nodes/{node}/proxy/images/load?bytes={bytes}");
    let shown = Shown::new(format!("{} to {node}", file.display()));
    let sent = |done_bytes| shown.show(Progress { step: "sending".to_owned(), done_bytes, total_bytes: Some(bytes) });
    // A file that grows meanwhile is sent as far as was said.
    let answer = client.upload(&path, PROTOCOL, archive.take(bytes), sent).await;
    shown.clear();
    Ok(object::text(&answer?, &["message"]).to_owned())
}

/// The images of a node, or of one that is to be: images may be there before its first start. A folder that nobody has
/// made is none, unless it is where a node is when nothing else is said: more likely its name has a mistake, and a
/// running node would never see what is brought there.
fn open_or_make(data_dir: &Path) -> Result<ImageStore> {
    if !data_dir.exists() && data_dir != Path::new(mainstay_cli::args::DATA_DIR) {
        bail!("there is no {}: name the --data-dir of a node, or make that folder first", data_dir.display());
    }
    crate::instance::take(data_dir)?;
    let folder = data_dir.join("images");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(ImageStore::open(&folder)?)
}

/// Bytes in the largest unit that leaves a number of at least one.
fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{} kB", bytes / 1000),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.2} GB", bytes as f64 / 1e9),
    }
}

/// One line that is written over, on a terminal; nothing elsewhere.
struct Shown {
    what: String,
    terminal: bool,
}

impl Shown {
    fn new(what: String) -> Self {
        Self { what, terminal: std::io::stderr().is_terminal() }
    }

    fn show(&self, progress: Progress) {
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K{}: {} {}", self.what, progress.step, size(progress.done_bytes));
            let _ = std::io::stderr().flush();
        }
    }

    fn clear(&self) {
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_brought_to_a_folder_that_is_there_and_is_ours_or_empty() {
        let base = tempfile::tempdir().unwrap();
        let mistyped = base.path().join("mainstaj");
        let refused = open_or_make(&mistyped).map(drop).unwrap_err().to_string();
        assert!(refused.contains("there is no") && refused.contains("mainstaj") && !mistyped.exists(), "{refused}");
        std::fs::create_dir(&mistyped).unwrap();
        open_or_make(&mistyped).unwrap();
        open_or_make(&mistyped).unwrap();
        let others = base.path().join("others");
        std::fs::create_dir_all(others.join("pods")).unwrap();
        assert!(open_or_make(&others).is_err() && !others.join("images").exists(), "somebody's");
    }
}
