//! The embedded engine: two tables in one redb file, one durable commit per group.
//!
//! `data`: key -> (revision, value), the live keys only; a deletion removes its row, and the pages it frees are used
//! again, so the file is bounded by the live data, not by the history. `meta`: `format`, `revision`.
//!
//! An I/O error poisons the engine, and a group that failed may or may not be on disk. It is then opened again (at
//! once, else before the next group), and if it holds the failed group, the group's keys are put back to what memory
//! holds: memory is the truth, for nobody ever saw anything else.

use crate::disk::Disk;
use crate::limits::ENGINE_CACHE;
use crate::state::{Change, Keys, Stored};
use crate::{CommitError, OpenError, Revision};
use bytes::Bytes;
use redb::{Builder, Database, ReadableDatabase, ReadableTable, TableDefinition, TableError};
use std::collections::BTreeSet;
use std::io::ErrorKind;

const DATA: TableDefinition<&[u8], (u64, &[u8])> = TableDefinition::new("data");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// The format of the file that this version writes.
const FORMAT: u64 = 1;

#[derive(Debug)]
pub(crate) struct Engine {
    disk: Disk,
    /// `None` after a failure, until the file could be opened again.
    db: Option<Database>,
    /// The keys of groups that failed: where the disk may differ from memory.
    in_doubt: BTreeSet<Bytes>,
    quick_repair: bool,
}

impl Engine {
    /// Opens (or makes) the file, repairs it after a crash, and reads all of it.
    pub fn open(disk: Disk, quick_repair: bool) -> Result<(Self, Keys, Revision), OpenError> {
        let db = open_database(&disk).map_err(|error| match error {
            redb::Error::Corrupted(why) => OpenError::Damaged(why),
            other => OpenError::Engine(other.to_string()),
        })?;
        let mut engine = Self { disk, db: None, in_doubt: BTreeSet::new(), quick_repair };
        let (keys, revision) = load(&db)?;
        if revision == Revision(0) {
            engine.put(&db, std::iter::empty(), revision).map_err(|error| OpenError::Engine(error.to_string()))?;
        }
        engine.db = Some(db);
        Ok((engine, keys, revision))
    }

    /// Makes a group durable. When this fails, memory (`keys` at `revision`) stays as it is.
    pub fn write(
        &mut self,
        keys: &Keys,
        revision: Revision,
        changes: &[Change],
        last: Revision,
    ) -> Result<(), CommitError> {
        let db = self.usable(keys, revision).map_err(|error| self.explain(&error))?;
        let rows = changes.iter().map(|Change { event, .. }| {
            let put = (event.revision, &event.value);
            (&event.key, (!event.deleted).then_some(put))
        });
        match self.put(&db, rows, last) {
            Ok(()) => {
                self.db = Some(db);
                Ok(())
            }
            Err(error) => {
                let explained = self.explain(&error);
                tracing::warn!(%error, "a commit failed; the store's file is opened again");
                drop(db);
                self.in_doubt.extend(changes.iter().map(|change| change.event.key.clone()));
                match self.usable(keys, revision) {
                    Ok(db) => self.db = Some(db),
                    Err(error) => tracing::error!(%error, "the store cannot write; it tries again at the next commit"),
                }
                Err(explained)
            }
        }
    }

    /// The open database, holding what memory holds.
    fn usable(&mut self, keys: &Keys, revision: Revision) -> Result<Database, redb::Error> {
        if let Some(db) = self.db.take() {
            return Ok(db);
        }
        self.disk.settle()?;
        let db = open_database(&self.disk)?;
        let on_disk = stored_revision(&db)?;
        if on_disk != revision {
            tracing::warn!(%on_disk, %revision, "a failed commit had reached the disk; it is undone");
            let rows =
                self.in_doubt.iter().map(|key| (key, keys.get(key).map(|stored| (stored.revision, &stored.value))));
            self.put(&db, rows, revision)?;
        }
        self.in_doubt.clear();
        Ok(db)
    }

    fn put<'a>(
        &self,
        db: &Database,
        rows: impl Iterator<Item = (&'a Bytes, Option<(Revision, &'a Bytes)>)>,
        last: Revision,
    ) -> Result<(), redb::Error> {
        let mut write = db.begin_write()?;
        write.set_quick_repair(self.quick_repair);
        {
            let mut data = write.open_table(DATA)?;
            for (key, row) in rows {
                match row {
                    Some((revision, value)) => data.insert(&key[..], (revision.0, &value[..]))?,
                    None => data.remove(&key[..])?,
                };
            }
            let mut meta = write.open_table(META)?;
            meta.insert("format", FORMAT)?;
            meta.insert("revision", last.0)?;
        }
        Ok(write.commit()?)
    }

    fn explain(&self, error: &redb::Error) -> CommitError {
        let kind = match error {
            redb::Error::Io(error) => Some(error.kind()),
            redb::Error::PreviousIo => self.disk.last_error(),
            _ => None,
        };
        match kind {
            Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge) => CommitError::Full,
            _ => CommitError::Io(error.to_string()),
        }
    }
}

fn open_database(disk: &Disk) -> Result<Database, redb::Error> {
    Ok(Builder::new().set_cache_size(ENGINE_CACHE).create_with_backend(disk.clone())?)
}

fn stored_revision(db: &Database) -> Result<Revision, redb::Error> {
    match db.begin_read()?.open_table(META) {
        Ok(meta) => Ok(Revision(meta.get("revision")?.map_or(0, |revision| revision.value()))),
        Err(TableError::TableDoesNotExist(_)) => Ok(Revision(0)),
        Err(error) => Err(error.into()),
    }
}

fn load(db: &Database) -> Result<(Keys, Revision), OpenError> {
    let (format, revision, keys) = read_all(db).map_err(|error| OpenError::Engine(error.to_string()))?;
    if format > FORMAT {
        return Err(OpenError::Newer { found: format, known: FORMAT });
    }
    if let Some((key, stored)) = keys.iter().find(|(_, stored)| stored.revision > revision) {
        return Err(OpenError::Damaged(format!("{key:?} has revision {}, the store {revision}", stored.revision)));
    }
    Ok((keys, revision))
}

fn read_all(db: &Database) -> Result<(u64, Revision, Keys), redb::Error> {
    let mut keys = Keys::new_sync();
    let read = db.begin_read()?;
    let format = match read.open_table(META) {
        Ok(meta) => meta.get("format")?.map_or(FORMAT, |format| format.value()),
        Err(TableError::TableDoesNotExist(_)) => return Ok((FORMAT, Revision(0), keys)),
        Err(error) => return Err(error.into()),
    };
    // A newer format's rows may be of other types; the caller says so before anything else.
    if format <= FORMAT {
        for row in read.open_table(DATA)?.iter()? {
            let (key, row) = row?;
            let (revision, value) = row.value();
            let stored = Stored { value: Bytes::copy_from_slice(value), revision: Revision(revision) };
            keys.insert_mut(Bytes::copy_from_slice(key.value()), stored);
        }
    }
    Ok((format, stored_revision(db)?, keys))
}
