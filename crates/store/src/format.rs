//! What is in the engine's file, and how it is read.
//!
//! `rows`: key -> (revision, checksum, value), the live keys only; a deletion removes its row, and the pages it frees
//! are used again, so the file is bounded by the live data, not by the history. `meta`: `format`, and the file's
//! [`Summary`]. Format 1 had `data`: key -> (revision, value), and no more than the revision in `meta`; it is
//! written as format 2 when it is opened.

use crate::checksum::{Sum, Summary, of_row};
use crate::state::{Keys, Stored};
use crate::{ClusterId, Damage, Revision};
use bytes::Bytes;
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, TableError, WriteTransaction};

/// A format 2 row: revision, checksum, value.
type Row<'a> = (u64, u64, &'a [u8]);

const ROWS: TableDefinition<&[u8], Row<'static>> = TableDefinition::new("rows");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
/// Format 1's rows.
const DATA: TableDefinition<&[u8], (u64, &[u8])> = TableDefinition::new("data");
/// The format of the file that this version writes.
pub(crate) const FORMAT: u64 = 2;
/// Of the damaged keys, so many are named one by one.
const NAMED: usize = 1000;

/// All that a file holds.
#[derive(Debug, Default)]
pub(crate) struct Content {
    /// `None` of a file that nothing was ever written to.
    pub format: Option<u64>,
    pub summary: Summary,
    /// The rows that are sound.
    pub keys: Keys,
    pub damage: Damage,
}

/// Reads everything and looks at every checksum. Of a format newer than [`FORMAT`], no row is read.
pub(crate) fn read(db: &Database, content: &mut Content) -> Result<(), redb::Error> {
    let read = db.begin_read()?;
    let meta = match read.open_table(META) {
        Ok(meta) => meta,
        Err(TableError::TableDoesNotExist(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let number = |name: &str| Ok::<_, redb::Error>(meta.get(name)?.map(|number| number.value()));
    let format = number("format")?.unwrap_or(0);
    content.format = Some(format);
    let high = number("cluster-high")?.unwrap_or(0);
    let cluster = u128::from(high) << 64 | u128::from(number("cluster-low")?.unwrap_or(0));
    content.summary = Summary {
        revision: Revision(number("revision")?.unwrap_or(0)),
        sum: Sum { rows: number("rows")?.unwrap_or(0), digest: number("digest")?.unwrap_or(0) },
        cluster: ClusterId::new(cluster),
    };
    match format {
        1 => read_format_1(&read, content)?,
        FORMAT => {
            let seal = number("seal")?;
            read_rows(&read, content)?;
            content.judge(seal);
        }
        0 => content.damage.whole.push("its format is not recorded".to_owned()),
        _ => {}
    }
    Ok(())
}

fn read_rows(read: &ReadTransaction, content: &mut Content) -> Result<(), redb::Error> {
    for row in read.open_table(ROWS)?.iter()? {
        let (key, row) = row?;
        let (revision, checksum, value) = row.value();
        content.add(Bytes::copy_from_slice(key.value()), Revision(revision), checksum, value);
    }
    Ok(())
}

fn read_format_1(read: &ReadTransaction, content: &mut Content) -> Result<(), redb::Error> {
    for row in read.open_table(DATA)?.iter()? {
        let (key, row) = row?;
        let (revision, value) = row.value();
        let stored = Stored { value: Bytes::copy_from_slice(value), revision: Revision(revision) };
        content.keys.insert_mut(Bytes::copy_from_slice(key.value()), stored);
    }
    content.summary.sum = Sum::of(content.rows());
    content.judge(Some(content.summary.seal()));
    Ok(())
}

impl Content {
    /// The sound rows.
    pub fn rows(&self) -> impl Iterator<Item = (&Bytes, Revision, &Bytes)> {
        self.keys.iter().map(|(key, stored)| (key, stored.revision, &stored.value))
    }

    /// Takes a row, if it is sound.
    pub fn add(&mut self, key: Bytes, revision: Revision, checksum: u64, value: &[u8]) {
        if of_row(&key, revision, value) == checksum {
            self.keys.insert_mut(key, Stored { value: Bytes::copy_from_slice(value), revision });
        } else {
            self.damage.add_key(key, NAMED);
        }
    }

    /// Compares the rows with what the file says of them all.
    fn judge(&mut self, seal: Option<u64>) {
        let (found, said) = (Sum::of(self.rows()), self.summary);
        let mut whole = Vec::new();
        if seal != Some(said.seal()) {
            whole.push("its summary does not match its checksum".to_owned());
        } else if self.damage.keys == 0 && found.rows != said.sum.rows {
            whole.push(format!("it holds {} rows, {} were written", found.rows, said.sum.rows));
        } else if self.damage.keys == 0 && found.digest != said.sum.digest {
            whole.push("its rows are not those that were written".to_owned());
        }
        if let Some((key, revision, _)) = self.rows().find(|(_, revision, _)| *revision > said.revision) {
            let key = String::from_utf8_lossy(key);
            whole.push(format!("key {key} has revision {revision}, the store {}", said.revision));
        }
        self.damage.whole.extend(whole);
    }
}

/// Writes rows (a removal where there is none) and what the file then says of itself.
pub(crate) fn write<'a>(
    write: &WriteTransaction,
    rows: impl Iterator<Item = (&'a Bytes, Option<(Revision, Bytes)>)>,
    summary: &Summary,
) -> Result<(), redb::Error> {
    let mut table = write.open_table(ROWS)?;
    for (key, row) in rows {
        match row {
            Some((revision, value)) => {
                table.insert(&key[..], (revision.0, of_row(key, revision, &value), &value[..]))?
            }
            None => table.remove(&key[..])?,
        };
    }
    let mut meta = write.open_table(META)?;
    meta.insert("revision", summary.revision.0)?;
    meta.insert("rows", summary.sum.rows)?;
    meta.insert("digest", summary.sum.digest)?;
    meta.insert("seal", summary.seal())?;
    Ok(())
}

/// Writes what a commit leaves as it is: format and cluster; and takes away what an older format had.
pub(crate) fn write_once(write: &WriteTransaction, summary: &Summary) -> Result<(), redb::Error> {
    let cluster = summary.cluster.map_or(0, |cluster| cluster.0);
    let mut meta = write.open_table(META)?;
    meta.insert("format", FORMAT)?;
    meta.insert("cluster-high", (cluster >> 64) as u64)?;
    meta.insert("cluster-low", cluster as u64)?;
    write.delete_table(DATA)?;
    Ok(())
}

/// The revision alone, of a file that was read before.
pub(crate) fn revision(db: &Database) -> Result<Revision, redb::Error> {
    match db.begin_read()?.open_table(META) {
        Ok(meta) => Ok(Revision(meta.get("revision")?.map_or(0, |revision| revision.value()))),
        Err(TableError::TableDoesNotExist(_)) => Ok(Revision(0)),
        Err(error) => Err(error.into()),
    }
}
