//! `mainstay image …`: the node's images, straight in its image store; a running node sees them at once.

use std::io::{IsTerminal as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use mainstay_cli::args::ImageCommand;
use mainstay_runtime::images::{ImageStore, Progress};

/// `mainstay image …`.
pub fn run(command: &ImageCommand) -> Result<()> {
    match command {
        ImageCommand::Load { data_dir, files } => {
            crate::need_root("mainstay image load")?;
            for file in files {
                std::fs::metadata(file).with_context(|| file.display().to_string())?;
            }
            let store = open(data_dir)?;
            for file in files {
                let shown = Shown::new(file.display().to_string());
                let names = store
                    .load(file, &mut |progress| shown.show(progress))
                    .with_context(|| format!("{} was not loaded", file.display()))?;
                shown.clear();
                for name in names {
                    println!("loaded {name}");
                }
            }
            Ok(())
        }
        ImageCommand::Ls { data_dir } => {
            let store = open(data_dir)?;
            println!("{:<50} {:<20} {:>10}", "NAME", "IMAGE ID", "SIZE");
            for image in store.list() {
                let id = image.id.trim_start_matches("sha256:");
                for name in &image.names {
                    println!("{name:<50} {:<20} {:>10}", &id[..id.len().min(12)], size(image.size));
                }
            }
            Ok(())
        }
        ImageCommand::Pull { data_dir, reference } => {
            crate::need_root("mainstay image pull")?;
            let _ = rustls::crypto::ring::default_provider().install_default();
            let store = open(data_dir)?;
            let shown = Shown::new(reference.clone());
            let pulled =
                crate::up::runtime()?.block_on(store.pull(reference, None, &mut |progress| shown.show(progress)));
            shown.clear();
            println!("pulled {reference}: {}", pulled.with_context(|| format!("pulling {reference}"))?.id);
            Ok(())
        }
    }
}

fn open(data_dir: &Path) -> Result<ImageStore> {
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
            eprint!("\r\x1b[K{}: {} {}", self.what, progress.step, size(progress.done_bytes));
            let _ = std::io::stderr().flush();
        }
    }

    fn clear(&self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }
}
