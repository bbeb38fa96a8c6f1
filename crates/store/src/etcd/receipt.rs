//! Whether a transaction happened, when nobody says so.
//!
//! A connection that breaks, or a member that has lost its leader, leaves a transaction in doubt: it may have been
//! done, and what was not done yet may still be, for it waits in some member's queue. So each carries a receipt: it
//! compares the revision of a key that only this handle writes (its slot), and writes that key too.
//!
//! ```text
//! <prefix>/!receipt/<a number of the handle's own>/<slot>  ->  't' (a transaction) or 'f' (a fence), Unix seconds
//! ```
//!
//! Whoever has to know what became of a transaction writes its slot himself, with the same comparison: the fence.
//! Either that is done, and the transaction never will be; or it is refused, and the slot tells that the transaction
//! was done, and at which revision. Nothing is done twice, nothing is called refused that happened (A9).
//!
//! Receipts are in etcd only: memory does not show them. Those that nobody writes any more are taken away after a day.

use super::wire::{Compare, KeyValue, Txn, Write};
use bytes::{BufMut as _, Bytes, BytesMut};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

const FOLDER: &[u8] = b"/!receipt/";
const TRANSACTION: u8 = b't';
const FENCE: u8 = b'f';
/// After so long a receipt is nobody's: in-doubt transactions are settled in seconds.
const OLD: Duration = Duration::from_secs(86_400);

/// Whether a key, without the prefix, is a receipt.
pub(super) fn is_receipt(key: &[u8]) -> bool {
    key.starts_with(FOLDER)
}

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Whether a receipt was written so long ago that nobody needs it.
pub(super) fn is_old(kv: &KeyValue) -> bool {
    let written = std::str::from_utf8(kv.value.get(1..).unwrap_or_default()).ok().and_then(|text| text.parse().ok());
    now().saturating_sub(written.unwrap_or(0)) > OLD.as_secs()
}

/// Takes receipts away that are as they were seen.
pub(super) fn removal(of: &KeyValue) -> Txn {
    let compare = vec![Compare::ModRevision(of.key.clone(), of.mod_revision)];
    Txn { compare, writes: vec![Write::Delete(of.key.clone())], else_get: Vec::new() }
}

/// The slots of a handle: each is one transaction's at a time.
pub(super) struct Receipts {
    /// What their keys begin with.
    folder: Bytes,
    /// Those that are free, with their revisions; the lowest is used first, so that few are ever written.
    free: Mutex<BTreeMap<usize, i64>>,
    room: Arc<Semaphore>,
}

/// A slot in use; free again when dropped.
pub(super) struct Slot {
    number: usize,
    key: Bytes,
    /// As it was last seen; 0 before it is first written.
    revision: i64,
    receipts: Arc<Receipts>,
    _room: OwnedSemaphorePermit,
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// At this revision of etcd's.
    Done(i64),
    /// Neither now nor later.
    NotDone,
    /// Somebody else has written or removed the slot.
    Lost,
}

impl Receipts {
    /// For a handle with this number, which no other has.
    pub fn new(prefix: &[u8], handle: u64, slots: usize) -> Arc<Self> {
        let folder = [prefix, FOLDER, format!("{handle:016x}/").as_bytes()].concat().into();
        let free = Mutex::new((0..slots).map(|number| (number, 0)).collect());
        Arc::new(Self { folder, free, room: Arc::new(Semaphore::new(slots)) })
    }

    /// A free slot, waiting for one.
    pub async fn slot(self: &Arc<Self>) -> Option<Slot> {
        let room = self.room.clone().acquire_owned().await.ok()?;
        let (number, revision) = crate::lock(&self.free).pop_first()?;
        let mut key = BytesMut::from(&self.folder[..]);
        key.put_slice(format!("{number:02}").as_bytes());
        Some(Slot { number, key: key.freeze(), revision, receipts: self.clone(), _room: room })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        crate::lock(&self.receipts.free).insert(self.number, self.revision);
    }
}

impl Slot {
    fn sign(&self, txn: &mut Txn, by: u8) {
        txn.compare.push(match self.revision {
            0 => Compare::Absent(self.key.clone()),
            revision => Compare::ModRevision(self.key.clone(), revision),
        });
        let mut value = BytesMut::new();
        value.put_u8(by);
        value.put_slice(now().to_string().as_bytes());
        txn.writes.push(Write::Put(self.key.clone(), value.freeze()));
        txn.else_get.push(self.key.clone());
    }

    /// The same transaction, with its receipt. The receipt is its last op, and the last of what is read when it is
    /// refused.
    pub fn signed(&self, txn: &Txn) -> Txn {
        let mut txn = txn.clone();
        self.sign(&mut txn, TRANSACTION);
        txn
    }

    /// What settles the transaction that was signed last.
    pub fn fence(&self) -> Txn {
        let mut txn = Txn::default();
        self.sign(&mut txn, FENCE);
        txn
    }

    /// Its key in etcd.
    pub fn key(&self) -> &Bytes {
        &self.key
    }

    /// What the slot tells of the transaction that was signed last, when that is not on its way any more.
    pub fn found(&mut self, found: Option<&KeyValue>) -> Outcome {
        match found.map_or(0, |kv| kv.mod_revision) == self.revision {
            true => Outcome::NotDone,
            false => self.settled(found),
        }
    }

    /// It was written, at this revision.
    pub fn wrote(&mut self, revision: i64) {
        self.revision = revision;
    }

    /// Whether a transaction was refused because of its receipt; then it may be signed anew: it was not done.
    pub fn is_stale(&mut self, found: Option<&KeyValue>) -> bool {
        let revision = found.map_or(0, |kv| kv.mod_revision);
        std::mem::replace(&mut self.revision, revision) != revision
    }

    /// What a refused fence tells: somebody wrote the slot before, the transaction or a fence that nobody has heard of.
    pub fn settled(&mut self, found: Option<&KeyValue>) -> Outcome {
        let before = self.revision;
        match found {
            Some(kv) if kv.mod_revision != before => {
                self.revision = kv.mod_revision;
                match kv.value.first() {
                    Some(&TRANSACTION) => Outcome::Done(kv.mod_revision),
                    Some(&FENCE) => Outcome::NotDone,
                    _ => Outcome::Lost,
                }
            }
            _ => {
                self.revision = found.map_or(0, |kv| kv.mod_revision);
                Outcome::Lost
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::block_on;

    fn kv(key: &Bytes, mod_revision: i64, by: u8) -> KeyValue {
        let value = [&[by][..], now().to_string().as_bytes()].concat().into();
        KeyValue { key: key.clone(), mod_revision, value, ..KeyValue::default() }
    }

    #[test]
    fn a_slot_tells_what_became_of_its_transaction_a9() {
        let receipts = Receipts::new(b"/p", 7, 2);
        let mut slot = block_on(receipts.slot()).unwrap();
        assert_eq!(&slot.key[..], b"/p/!receipt/0000000000000007/00");
        assert!(is_receipt(&slot.key[2..]) && !is_receipt(b"/core/pods//a"));
        assert!(matches!(&slot.signed(&Txn::default()).compare[..], [Compare::Absent(_)]));
        let key = slot.key.clone();
        assert_eq!(slot.settled(Some(&kv(&key, 9, TRANSACTION))), Outcome::Done(9));
        assert!(matches!(&slot.fence().compare[..], [Compare::ModRevision(_, 9)]));
        assert_eq!(slot.settled(Some(&kv(&key, 12, FENCE))), Outcome::NotDone);
        assert_eq!(slot.settled(None), Outcome::Lost);
        slot.wrote(20);
        assert!(!slot.is_stale(Some(&kv(&key, 20, TRANSACTION))));
        assert!(slot.is_stale(None), "somebody took it away");
        // Of what was answered: it was written, or not.
        assert_eq!(slot.found(Some(&kv(&key, 25, TRANSACTION))), Outcome::Done(25));
        assert_eq!(slot.found(Some(&kv(&key, 25, TRANSACTION))), Outcome::NotDone);
        assert_eq!(slot.found(None), Outcome::Lost);
        assert_eq!(slot.found(None), Outcome::NotDone, "it was never written");
        slot.wrote(30);
        let other = block_on(receipts.slot()).unwrap();
        assert!(other.key.ends_with(b"/01"));
        drop((slot, other));
        assert_eq!(block_on(receipts.slot()).unwrap().revision, 30, "it is remembered");
        assert!(!is_old(&kv(&key, 1, FENCE)) && is_old(&KeyValue { value: "t100".into(), ..KeyValue::default() }));
    }
}
