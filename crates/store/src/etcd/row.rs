//! A row as etcd stores it.

use super::INDEX_BITS;
use super::wire::KeyValue;
use crate::checksum::of_row;
use crate::state::Stored;
use crate::{Encoded, Revision};
use bytes::{BufMut as _, Bytes, BytesMut};

const FORM: u8 = 1;
/// Bytes before the value.
const HEAD: usize = 15;
/// Where the digits go, of a value that carries none.
const NOWHERE: u32 = u32::MAX;

/// The revision of an op of a transaction.
pub(super) fn revision(etcd: i64, index: u16) -> Revision {
    Revision(etcd.cast_unsigned() << INDEX_BITS | u64::from(index))
}

/// The newest that a revision of etcd's can bring: all of its ops were seen.
pub(super) fn whole(etcd: i64) -> Revision {
    revision(etcd, (1 << INDEX_BITS) - 1)
}

/// etcd's revision.
pub(super) fn etcd_revision(revision: Revision) -> i64 {
    (revision.0 >> INDEX_BITS).cast_signed()
}

pub(super) fn encode(key: &[u8], value: &Encoded, index: u16) -> Bytes {
    let hole = value.revision_at.and_then(|at| u32::try_from(at).ok()).unwrap_or(NOWHERE);
    let mut out = BytesMut::with_capacity(HEAD + value.bytes.len());
    out.put_u8(FORM);
    out.put_u32_le(hole);
    out.put_u16_le(index);
    out.put_u64_le(checksum(key, hole, index, &value.bytes));
    out.put_slice(&value.bytes);
    out.freeze()
}

fn checksum(key: &[u8], hole: u32, index: u16, value: &[u8]) -> u64 {
    of_row(key, Revision(u64::from(hole) << 16 | u64::from(index)), value)
}

/// A row, as it was written: without its revision.
pub(super) fn decode(key: &[u8], raw: &Bytes) -> Option<(Encoded, u16)> {
    let head = raw.get(..HEAD)?;
    let hole = u32::from_le_bytes(head[1..5].try_into().ok()?);
    let index = u16::from_le_bytes(head[5..7].try_into().ok()?);
    let bytes = raw.slice(HEAD..);
    let sound = u64::from_le_bytes(head[7..].try_into().ok()?) == checksum(key, hole, index, &bytes);
    let revision_at = if hole == NOWHERE { None } else { Some(usize::try_from(hole).ok()?) };
    (head[0] == FORM && sound).then_some((Encoded { bytes, revision_at }, index))
}

/// The state that a key of etcd's holds, as it is served. `None` where it is not what was written (A10).
pub(super) fn stored(key: &[u8], kv: &KeyValue) -> Option<Stored> {
    let (value, index) = decode(key, &kv.value)?;
    let revision = revision(kv.mod_revision, index);
    Some(Stored { value: value.at(revision), revision })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_what_was_written_or_nothing_a10() {
        let value = Encoded { bytes: r#"{"v":""}"#.into(), revision_at: Some(6) };
        let raw = encode(b"k", &value, 3);
        let kv = |value: Bytes| KeyValue { mod_revision: 5, value, ..KeyValue::default() };
        let read = stored(b"k", &kv(raw.clone())).unwrap();
        assert_eq!((&read.value[..], read.revision), (&br#"{"v":"5123"}"#[..], Revision(5123)));
        assert_eq!(etcd_revision(read.revision), 5);
        assert!(read.revision < whole(5) && whole(5) < revision(6, 0));
        assert_eq!(stored(b"other", &kv(raw.clone())), None);
        for at in 0..raw.len() {
            let mut damaged = raw.to_vec();
            damaged[at] ^= 4;
            assert_eq!(stored(b"k", &kv(damaged.into())), None, "byte {at}");
        }
        assert_eq!(stored(b"k", &kv(raw.slice(..HEAD - 1))), None);
    }
}
