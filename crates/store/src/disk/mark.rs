//! The acknowledged revision, noted where the engine does not look.
//!
//! A commit that does not read back whole is to the engine one that the power cut short, and it shows the one before.
//! Only who was there knows better: after each commit that reached the disk its revision is written into the unused
//! part of the file's first page, without a sync of its own (the next commit's does that). A file that shows less than
//! its mark has lost what was acknowledged. Two slots in turn, so that a torn one leaves the other.

use crate::Revision;
use crate::checksum::of_bytes;

/// Where the two are: sectors of their own, behind the engine's header, within its first page.
pub(super) const SLOTS: [u64; 2] = [1024, 2048];
/// Bytes of one.
pub(super) const LENGTH: usize = 24;
const MAGIC: &[u8; 8] = b"mainstay";

pub(super) fn encode(revision: Revision) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..16].copy_from_slice(&revision.0.to_le_bytes());
    let checksum = of_bytes(&bytes[..16]);
    bytes[16..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// `None` of a slot that was never written, or not whole.
pub(super) fn decode(bytes: &[u8; LENGTH]) -> Option<Revision> {
    let revision = Revision(u64::from_le_bytes(bytes[8..16].try_into().ok()?));
    (*bytes == encode(revision)).then_some(revision)
}
