//! What makes damage visible (A10): every row has a checksum, and the file has the sum of all of them, so that a row
//! that was changed and a row that is not there any more are both noticed when the file is read.
//!
//! ```text
//! row     key | revision | checksum of (key, revision, value) | value
//! file    revision, rows, digest (wrapping sum of the rows' checksums), cluster | seal: checksum of all these
//! ```
//!
//! The sum is kept up by each commit from the rows that it changes alone, in the same transaction as the rows.
//! XXH3 is no defence against somebody who can write the file, and need not be: such a one has the cluster.

use crate::{ClusterId, Revision};
use bytes::Bytes;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// A row's checksum.
pub(crate) fn of_row(key: &[u8], revision: Revision, value: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&(key.len() as u64).to_le_bytes());
    hash.update(key);
    hash.update(&revision.0.to_le_bytes());
    hash.update(value);
    hash.digest()
}

/// How many rows there are, and the sum of their checksums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum {
    pub rows: u64,
    pub digest: u64,
}

impl Sum {
    /// A row that is there now.
    pub fn add(&mut self, checksum: u64) {
        self.rows = self.rows.wrapping_add(1);
        self.digest = self.digest.wrapping_add(checksum);
    }

    /// A row that was there.
    pub fn remove(&mut self, checksum: u64) {
        self.rows = self.rows.wrapping_sub(1);
        self.digest = self.digest.wrapping_sub(checksum);
    }

    /// Of these rows.
    pub fn of<'a>(rows: impl IntoIterator<Item = (&'a Bytes, Revision, &'a Bytes)>) -> Self {
        let mut sum = Self::default();
        for (key, revision, value) in rows {
            sum.add(of_row(key, revision, value));
        }
        sum
    }
}

/// What a file says of itself as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub revision: Revision,
    pub sum: Sum,
    pub cluster: Option<ClusterId>,
}

impl Summary {
    /// The checksum of the rest.
    pub fn seal(&self) -> u64 {
        let mut bytes = Vec::with_capacity(40);
        for number in [self.revision.0, self.sum.rows, self.sum.digest] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.cluster.map_or(0, |cluster| cluster.0).to_le_bytes());
        xxh3_64(&bytes)
    }
}

/// The checksum of a few bytes.
pub(crate) fn of_bytes(bytes: &[u8]) -> u64 {
    xxh3_64(bytes)
}
