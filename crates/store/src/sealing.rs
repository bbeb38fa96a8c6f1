//! Rows whose values are encrypted on the disk, by whoever opens the store: it never knows how, or of what.
//!
//! A sealed value begins with [`PREFIX`], which no plain one does. In memory every value is plain; checksums are of
//! what is on the disk, so that a file can be looked at by who has no keys (`store check`, `store export`), and so that
//! they say nothing about what is sealed.

use crate::checksum::{Sum, of_row};
use crate::state::{Change, Keys, Stored};
use crate::{CommitError, Op, OpenError, Revision, Txn};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What every sealed value begins with, as upstream's do.
pub const PREFIX: &[u8] = b"k8s:enc:";

/// What was found in a row.
#[derive(Debug)]
pub struct Opened {
    /// The plain value; `None` where the row has it plain, or is sealed and cannot be opened now: then it is the sealed
    /// value that is in memory, until somebody writes the row.
    pub value: Option<Bytes>,
    /// Whether it would be stored differently now: it is stored anew at once.
    pub is_stale: bool,
}

/// Seals values on their way to the disk, and opens them when the store is opened.
pub trait Seal: Send + Sync + std::fmt::Debug {
    /// Whether a row can be sealed. Asked before each write of one; after that [`Seal::seal`] has to.
    ///
    /// # Errors
    /// Why not, in a sentence.
    fn ready(&self, key: &[u8]) -> Result<(), String> {
        let _ = key;
        Ok(())
    }
    /// The bytes to be stored, which begin with [`PREFIX`]; `None` where the value goes as it is. Not called of what is
    /// sealed.
    fn seal(&self, key: &[u8], value: &[u8]) -> Option<Vec<u8>>;
    /// What a row holds, sealed or plain.
    ///
    /// # Errors
    /// In a sentence that says which key is wrong, or missing, and where it should be.
    fn open(&self, key: &[u8], stored: &Bytes) -> Result<Opened, String>;
}

/// The store's side of it.
#[derive(Debug, Default)]
pub(crate) struct Sealing {
    seal: Option<Arc<dyn Seal>>,
    /// The checksums of sealed rows: of what is on the disk, and so not to be had from memory.
    checksums: BTreeMap<Bytes, u64>,
}

/// A group's rows as they go to the disk.
pub(crate) struct Sealed {
    /// In the order of the changes; `None` of those that take a row away.
    pub rows: Vec<Option<Bytes>>,
    /// The sum of all rows afterwards.
    pub sum: Sum,
    /// By key, of what is sealed then.
    pub checksums: BTreeMap<Bytes, Option<u64>>,
}

/// Rows that are written anew.
pub(crate) struct Again {
    /// What goes to the disk; `None` where nothing is to be.
    pub rows: Vec<(Bytes, Option<(Revision, Bytes)>)>,
    /// The sum of all rows afterwards.
    pub sum: Sum,
    /// By key, of what is sealed then.
    pub checksums: BTreeMap<Bytes, Option<u64>>,
}

impl Sealing {
    pub fn new(seal: Option<Arc<dyn Seal>>) -> Self {
        Self { seal, checksums: BTreeMap::new() }
    }

    /// Opens every row that was read, in place. Gives the keys of those that are to be stored anew.
    pub fn open(&mut self, keys: &mut Keys, file: &str) -> Result<Vec<Bytes>, OpenError> {
        let (mut plain, mut stale) = (Vec::new(), Vec::new());
        for (key, stored) in keys.iter() {
            let is_sealed = stored.value.starts_with(PREFIX);
            let opened = match &self.seal {
                Some(seal) => seal.open(key, &stored.value),
                None if is_sealed => Err("it is encrypted, and no keys were given".to_owned()),
                None => continue,
            };
            let opened = opened.map_err(|why| OpenError::Sealed {
                file: file.to_owned(),
                key: String::from_utf8_lossy(key).into_owned(),
                why,
            })?;
            if is_sealed {
                self.checksums.insert(key.clone(), of_row(key, stored.revision, &stored.value));
            }
            if let Some(value) = opened.value {
                plain.push((key.clone(), Stored { value, revision: stored.revision }));
            }
            if opened.is_stale {
                stale.push(key.clone());
            }
        }
        for (key, stored) in plain {
            keys.insert_mut(key, stored);
        }
        Ok(stale)
    }

    /// Whether all that a transaction writes can be sealed.
    pub fn ready(&self, txn: &Txn) -> Result<(), CommitError> {
        let Some(seal) = &self.seal else { return Ok(()) };
        let written = txn.ops.iter().filter(|op| matches!(op, Op::Put { .. }));
        written.map(Op::key).try_for_each(|key| seal.ready(key)).map_err(CommitError::Unsealable)
    }

    /// A value as it goes to the disk.
    fn raw(&self, key: &Bytes, value: &Bytes) -> Bytes {
        // What could not be opened stands in memory as it is on the disk.
        if value.starts_with(PREFIX) {
            return value.clone();
        }
        let sealed = self.seal.as_ref().and_then(|seal| seal.seal(key, value));
        sealed.map_or_else(|| value.clone(), Bytes::from)
    }

    /// A group's rows, and the sum of all rows after it.
    pub fn seal(&self, changes: &[Change], mut sum: Sum) -> Sealed {
        let mut checksums: BTreeMap<Bytes, Option<u64>> = BTreeMap::new();
        let mut rows = Vec::with_capacity(changes.len());
        for Change { event, previous, .. } in changes {
            if let (Some(value), Some(revision)) = (&event.previous, previous) {
                // The row may have been sealed in this same group.
                let sealed =
                    checksums.get(&event.key).copied().unwrap_or_else(|| self.checksums.get(&event.key).copied());
                sum.remove(sealed.unwrap_or_else(|| of_row(&event.key, *revision, value)));
            }
            if event.deleted {
                checksums.insert(event.key.clone(), None);
                rows.push(None);
                continue;
            }
            let raw = self.raw(&event.key, &event.value);
            let checksum = of_row(&event.key, event.revision, &raw);
            sum.add(checksum);
            checksums.insert(event.key.clone(), raw.starts_with(PREFIX).then_some(checksum));
            rows.push(Some(raw));
        }
        if self.seal.is_none() && self.checksums.is_empty() {
            checksums.clear();
        }
        Sealed { rows, sum, checksums }
    }

    /// Takes in what is on the disk now.
    pub fn done(&mut self, checksums: BTreeMap<Bytes, Option<u64>>) {
        for (key, checksum) in checksums {
            match checksum {
                Some(checksum) => drop(self.checksums.insert(key, checksum)),
                None => drop(self.checksums.remove(&key)),
            }
        }
    }

    /// Rows that are written anew as they are in memory: what goes to the disk, with the sum of all rows afterwards.
    /// Nothing is taken in before it is there ([`Sealing::done`]): it may not get there.
    pub fn again(&self, keys: &Keys, again: impl Iterator<Item = Bytes>, mut sum: Sum) -> Again {
        let (mut rows, mut checksums) = (Vec::new(), BTreeMap::new());
        for key in again {
            let Some(stored) = keys.get(&key) else {
                rows.push((key, None));
                continue;
            };
            let raw = self.raw(&key, &stored.value);
            let before = self.checksums.get(&key).copied();
            let after = of_row(&key, stored.revision, &raw);
            sum.remove(before.unwrap_or_else(|| of_row(&key, stored.revision, &stored.value)));
            sum.add(after);
            checksums.insert(key.clone(), raw.starts_with(PREFIX).then_some(after));
            rows.push((key, Some((stored.revision, raw))));
        }
        Again { rows, sum, checksums }
    }
}
