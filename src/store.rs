//! `mainstay store …`: the cluster's store while no server runs on it.

use std::fs::{File, OpenOptions};
use std::io::{BufReader, BufWriter, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use mainstay_cli::args::{StoreArgs, StoreCommand};
use mainstay_server::identity::STORE;
use mainstay_server::offline::{self, Report};

/// `mainstay store …`.
pub fn run(command: &StoreCommand) -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    match command {
        StoreCommand::Check { data_dir } => {
            there_is_a_store(data_dir)?;
            let report = offline::check(data_dir)?;
            say!("{}", summary(&report));
            verdict(&report, "it is not opened until it is restored")
        }
        StoreCommand::Export { data_dir, store, file } => export(data_dir, store, file),
        StoreCommand::Import { data_dir, store, file } => {
            let etcd = crate::server::etcd(store)?.context("where to? name etcd with --store etcd=URL,URL…")?;
            let export = File::open(file).with_context(|| file.display().to_string())?;
            let imported = offline::import(data_dir, etcd, BufReader::new(export))?;
            say!("imported {} rows at revision {}", imported.rows, imported.revision);
            if let Some(aside) = imported.aside {
                say!("the store that was in {} is in {}", data_dir.display(), aside.display());
            }
            Ok(())
        }
        StoreCommand::Restore { data_dir, file, replace } => {
            let export = File::open(file).with_context(|| file.display().to_string())?;
            let mut id = [0; 16];
            File::open("/dev/urandom")?.read_exact(&mut id)?;
            let restored = offline::restore(data_dir, BufReader::new(export), *replace, u128::from_be_bytes(id))?;
            say!("restored {} rows at revision {}", restored.rows, restored.revision);
            if let Some(aside) = restored.aside {
                say!("the store that was there is in {}", aside.display());
            }
            Ok(())
        }
    }
}

/// # Errors
/// There is none.
fn there_is_a_store(data_dir: &Path) -> Result<()> {
    crate::instance::there_is("store", data_dir, data_dir.join(STORE).exists())
}

fn export(data_dir: &Path, store: &StoreArgs, file: &Path) -> Result<()> {
    let etcd = crate::server::etcd(store)?;
    if etcd.is_none() {
        there_is_a_store(data_dir)?;
    }
    // Secrets are in it.
    let out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    let out = out.with_context(|| format!("making {}", file.display()))?;
    let saved = match etcd {
        Some(etcd) => offline::export_etcd(etcd, &mut BufWriter::new(&out)),
        None => offline::export(data_dir, &mut BufWriter::new(&out)),
    };
    let saved = saved.inspect_err(|_| {
        let _ = std::fs::remove_file(file);
    });
    let report = saved?;
    out.sync_all()?;
    say!("{}; saved in {}", summary(&report), file.display());
    verdict(&report, "what is sound is saved; what is said above is missing or in doubt")
}

fn summary(report: &Report) -> String {
    let cluster = report.cluster.as_deref().unwrap_or("without a name");
    let encrypted = match report.encrypted {
        0 => String::new(),
        some => format!(
            " ({some} of them encrypted: an export has them as they are stored, and what is restored from it is opened \
             with the same --encryption-provider-config only)"
        ),
    };
    format!("{}: cluster {cluster}, revision {}, {} sound rows{encrypted}", report.file, report.revision, report.rows)
}

fn verdict(report: &Report, then: &str) -> Result<()> {
    if report.is_sound() {
        return Ok(());
    }
    for key in &report.damaged {
        say!("damaged: {key}");
    }
    let unnamed = report.damaged_rows.saturating_sub(report.damaged.len());
    if unnamed > 0 {
        say!("damaged: {unnamed} more");
    }
    for problem in &report.problems {
        say!("damaged: {problem}");
    }
    bail!("{} is damaged; {then}", report.file)
}
