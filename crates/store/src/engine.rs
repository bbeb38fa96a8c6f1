//! The embedded engine: two tables in one redb file ([`format`]), one durable commit per group.
//!
//! An open reads all of the file, looks at every page's and every row's checksum and at their sum, and changes nothing
//! before all is found sound (A10).
//!
//! An I/O error poisons the engine, and a group that failed may or may not be on disk. It is then opened again (at
//! once, else before the next group), and if it holds the failed group, the group's keys are put back to what memory
//! holds: memory is the truth, for nobody ever saw anything else.
//!
//! Values may be sealed on the disk ([`crate::sealing`]); memory has them plain.

use crate::checksum::{Sum, Summary};
use crate::disk::Disk;
use crate::format::{self, Content, FORMAT};
use crate::guarded::guarded;
use crate::limits::ENGINE_CACHE;
use crate::sealing::{Seal, Sealing};
use crate::state::{Change, Keys};
use crate::store::Owner;
use crate::{ClusterId, CommitError, Damage, Entry, OpenError, Revision, Txn};
use bytes::Bytes;
use redb::{Builder, Database};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Debug)]
pub(crate) struct Engine {
    disk: Disk,
    /// `None` after a failure, until the file could be opened again.
    db: Option<Database>,
    /// What memory holds, in short.
    summary: Summary,
    /// The keys of groups that failed: where the disk may differ from memory.
    in_doubt: BTreeSet<Bytes>,
    /// Undoing one failed: it may have reached the disk all the same, with rows that were sealed anew.
    undo_failed: bool,
    quick_repair: bool,
    sealing: Sealing,
}

impl Engine {
    /// Opens (or makes) the file, repairs it after a crash, and reads all of it.
    pub fn open(
        disk: Disk,
        quick_repair: bool,
        owner: Owner,
        seal: Option<Arc<dyn Seal>>,
    ) -> Result<(Self, Keys), OpenError> {
        let mut content = Content::default();
        let db = read_verified(&disk, &mut content)?;
        let mut summary = Summary { cluster: owner.admit(&content, disk.name())?, ..content.summary };
        let mut sealing = Sealing::new(seal);
        let stale = sealing.open(&mut content.keys, disk.name())?;
        let current = content.format == Some(FORMAT) && summary == content.summary && stale.is_empty();
        disk.release().map_err(|error| OpenError::Engine(error.to_string()))?;
        // Older rows have no checksums yet; others are to be sealed by another key, or not any more.
        let all: Vec<Bytes> = match content.format {
            Some(FORMAT) => stale,
            _ => content.keys.keys().cloned().collect(),
        };
        let again = sealing.again(&content.keys, all.into_iter(), summary.sum);
        summary.sum = again.sum;
        sealing.done(again.checksums);
        let mut engine =
            Self { disk, db: None, summary, in_doubt: BTreeSet::new(), undo_failed: false, quick_repair, sealing };
        if !current {
            engine
                .put(&db, rows_of(&again.rows), &summary, true)
                .map_err(|error| OpenError::Engine(error.to_string()))?;
        }
        engine.db = Some(db);
        Ok((engine, content.keys))
    }

    /// Makes a file of these rows, in one durable commit.
    pub fn make(
        disk: Disk,
        cluster: Option<ClusterId>,
        revision: Revision,
        entries: &[&Entry],
    ) -> Result<(), OpenError> {
        let engine = |error: redb::Error| OpenError::Engine(error.to_string());
        let (db, _) = open_database(&disk).map_err(engine)?;
        disk.release().map_err(|error| OpenError::Engine(error.to_string()))?;
        let sum = Sum::of(entries.iter().map(|entry| (&entry.key, entry.revision, &entry.value)));
        let summary = Summary { revision, sum, cluster };
        let sealing = Sealing::default();
        let (in_doubt, undo_failed, quick_repair) = (BTreeSet::new(), false, false);
        let made = Self { disk, db: None, summary, in_doubt, undo_failed, quick_repair, sealing };
        let rows = entries.iter().map(|entry| (&entry.key, Some((entry.revision, entry.value.clone()))));
        made.put(&db, rows, &summary, true).map_err(engine)?;
        made.disk.mark(revision);
        Ok(())
    }

    /// The newest revision.
    pub fn revision(&self) -> Revision {
        self.summary.revision
    }

    /// Whose store this is.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.summary.cluster
    }

    /// Whether what a transaction writes can be encrypted.
    pub fn ready(&self, txn: &Txn) -> Result<(), CommitError> {
        self.sealing.ready(txn)
    }

    /// Makes a group durable. When this fails, memory (`keys`) stays as it is.
    pub fn write(&mut self, keys: &Keys, changes: &[Change], last: Revision) -> Result<(), CommitError> {
        let db = self.usable(keys).map_err(|error| explain(&error))?;
        let sealed = self.sealing.seal(changes, self.summary.sum);
        let summary = Summary { revision: last, sum: sealed.sum, ..self.summary };
        let rows = changes.iter().zip(&sealed.rows).map(|(Change { event, .. }, raw)| {
            let put = raw.as_ref().map(|raw| (event.revision, raw.clone()));
            (&event.key, put)
        });
        match self.put(&db, rows, &summary, false) {
            Ok(()) => {
                self.db = Some(db);
                self.summary = summary;
                self.sealing.done(sealed.checksums);
                self.disk.mark(last);
                Ok(())
            }
            Err(error) => {
                let explained = explain(&error);
                tracing::warn!(%error, "a commit failed; the store's file is opened again");
                close(db);
                self.in_doubt.extend(changes.iter().map(|change| change.event.key.clone()));
                match self.usable(keys) {
                    Ok(db) => self.db = Some(db),
                    Err(error) => tracing::error!(%error, "the store cannot write; it tries again at the next commit"),
                }
                Err(explained)
            }
        }
    }

    /// The open database, holding what memory holds.
    fn usable(&mut self, keys: &Keys) -> Result<Database, redb::Error> {
        if let Some(db) = self.db.take() {
            return Ok(db);
        }
        self.disk.settle()?;
        let (db, _) = open_database(&self.disk)?;
        let (on_disk, revision) = (guarded(|| format::revision(&db))?, self.summary.revision);
        if on_disk < revision {
            // Nothing of ours does that; the file must not be written over what it has lost.
            return Err(redb::Error::Corrupted(format!("it fell back from revision {revision} to {on_disk}")));
        }
        // What was to undo a failed commit may have reached the disk, and sealed rows anew, although it failed too.
        if on_disk != revision || self.undo_failed {
            tracing::warn!(%on_disk, %revision, "a failed commit had reached the disk; it is undone");
            let again = self.sealing.again(keys, self.in_doubt.iter().cloned(), self.summary.sum);
            let summary = Summary { sum: again.sum, ..self.summary };
            self.undo_failed = true;
            if let Err(error) = self.put(&db, rows_of(&again.rows), &summary, false) {
                close(db);
                return Err(error);
            }
            self.summary = summary;
            self.sealing.done(again.checksums);
        }
        self.undo_failed = false;
        self.in_doubt.clear();
        Ok(db)
    }

    fn put<'a>(
        &self,
        db: &Database,
        rows: impl IntoIterator<Item = (&'a Bytes, Option<(Revision, Bytes)>)>,
        summary: &Summary,
        all: bool,
    ) -> Result<(), redb::Error> {
        // A page may have gone bad since all of them were read.
        guarded(|| {
            let mut write = db.begin_write()?;
            write.set_quick_repair(self.quick_repair);
            format::write(&write, rows.into_iter(), summary)?;
            if all {
                format::write_once(&write, summary)?;
            }
            Ok(write.commit()?)
        })
    }
}

fn explain(error: &redb::Error) -> CommitError {
    let kind = if let redb::Error::Io(error) = error { Some(error.kind()) } else { None };
    match kind {
        Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge) => CommitError::Full,
        _ => CommitError::Io(error.to_string()),
    }
}

fn rows_of(rows: &[(Bytes, Option<(Revision, Bytes)>)]) -> impl Iterator<Item = (&Bytes, Option<(Revision, Bytes)>)> {
    rows.iter().map(|(key, row)| (key, row.clone()))
}

/// Opens the engine; says whether it had to repair, and so has just looked at every page.
fn open_database(disk: &Disk) -> Result<(Database, bool), redb::Error> {
    let repaired = Arc::new(AtomicBool::new(false));
    let seen = repaired.clone();
    let mut builder = Builder::new();
    builder.set_cache_size(ENGINE_CACHE).set_repair_callback(move |_| seen.store(true, Ordering::Relaxed));
    let db = guarded(|| Ok(builder.create_with_backend(disk.clone())?))?;
    Ok((db, repaired.load(Ordering::Relaxed)))
}

/// Lets go of a database that failed: it may also fail in that.
pub(crate) fn close(db: Database) {
    // What it would have written is of no use to anybody.
    let _ = guarded(|| {
        drop(db);
        Ok(())
    });
}

/// Opens a file that is held, and reads all of it: every page's checksum, every row's, and their sum.
pub(crate) fn read_verified(disk: &Disk, content: &mut Content) -> Result<Database, OpenError> {
    let (mut db, repaired) = open_database(disk).map_err(|error| failed(disk, &error))?;
    let read = guarded(|| {
        if !repaired {
            // After a clean end the engine believes what it reads, also about which pages are free.
            db.check_integrity()?;
        }
        format::read(&db, content)
    });
    let sound = read.map_err(|error| failed(disk, &error)).and_then(|()| judge(disk, content));
    match sound {
        Ok(()) => Ok(db),
        Err(refused) => {
            close(db);
            Err(refused)
        }
    }
}

/// Whether what was read is what was written, all of it.
fn judge(disk: &Disk, content: &mut Content) -> Result<(), OpenError> {
    if let Some(found) = content.format.filter(|format| *format > FORMAT) {
        return Err(OpenError::Newer { found, known: FORMAT });
    }
    let marked = disk.marked().map_err(|error| failed(disk, &redb::Error::Io(error)))?;
    if let Some(marked) = marked.filter(|marked| *marked > content.summary.revision) {
        let found = content.summary.revision;
        content
            .damage
            .whole
            .push(format!("revision {marked} was acknowledged, and the file is whole up to {found} only"));
    }
    if !content.damage.is_none() {
        return Err(OpenError::Damaged { file: disk.name().to_owned(), damage: content.damage.clone() });
    }
    Ok(())
}

fn damaged(disk: &Disk, why: String) -> OpenError {
    OpenError::Damaged { file: disk.name().to_owned(), damage: Damage { whole: vec![why], ..Damage::default() } }
}

/// What an error of the engine's at an open means: the disk's own failures are no damage.
fn failed(disk: &Disk, error: &redb::Error) -> OpenError {
    match error {
        redb::Error::Io(io) if !matches!(io.kind(), ErrorKind::UnexpectedEof | ErrorKind::InvalidData) => {
            OpenError::Engine(io.to_string())
        }
        redb::Error::Corrupted(why) => damaged(disk, why.clone()),
        other => damaged(disk, other.to_string()),
    }
}
