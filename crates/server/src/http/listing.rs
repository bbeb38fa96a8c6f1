//! A list as a response body: made piece by piece as the client reads it, out of bytes that the store has anyway, so
//! that a list that nobody reads costs little more than the places of its items (X7).

use bytes::{BufMut, Bytes, BytesMut};
use mainstay_store::Entry;

use super::respond::BodyError;
use super::shape::Shape;

/// Items are gathered into one chunk up to about this size, in bytes; larger ones go by themselves.
const CHUNK: usize = 64 << 10;
/// How many items are decoded for one chunk.
const DECODED: usize = 32;
/// What a list of many items holds beside the items' places (bytes): a chunk here, one at the connection.
const HELD: u64 = 128 << 10;

/// The body of a list.
pub struct Listing {
    head: Bytes,
    items: std::vec::IntoIter<Entry>,
    tail: &'static [u8],
    shape: Shape,
    /// The whole length, where it is known before.
    length: Option<u64>,
    weight: u64,
    is_first: bool,
    /// A large item that goes out next, as the store has it.
    large: Option<Bytes>,
    ended: bool,
}

impl Listing {
    /// A list whose items stand between `head` and `tail`, separated by commas.
    pub fn new(head: Bytes, items: Vec<Entry>, tail: &'static [u8], shape: Shape) -> Self {
        let bytes: usize = items.iter().map(|entry| entry.value.len() + 1).sum();
        let length = head.len() + bytes.saturating_sub(1) + tail.len();
        let length = shape.is_plain().then_some(length as u64);
        let weight = (items.len() * size_of::<Entry>()) as u64 + HELD.min(bytes as u64);
        Self { head, items: items.into_iter(), tail, shape, length, weight, is_first: true, large: None, ended: false }
    }

    /// How many bytes it keeps in memory while it is sent.
    pub fn weight(&self) -> u64 {
        self.weight
    }

    /// Its whole length, where it is known.
    pub fn length(&self) -> Option<u64> {
        self.length
    }
}

/// Chunks. An item that cannot be read ends the connection: a list that lacks it must not look whole (A10).
impl Iterator for Listing {
    type Item = Result<Bytes, BodyError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(large) = self.large.take() {
            return Some(Ok(large));
        }
        if self.ended {
            return None;
        }
        let mut chunk = BytesMut::from(&std::mem::take(&mut self.head)[..]);
        let mut decoded = 0;
        while chunk.len() < CHUNK && decoded < DECODED {
            let Some(entry) = self.items.next() else {
                chunk.put_slice(self.tail);
                self.ended = true;
                break;
            };
            if !std::mem::take(&mut self.is_first) {
                chunk.put_u8(b',');
            }
            if self.shape.is_plain() && entry.value.len() > CHUNK {
                // Not copied: however many lists wait to be read, these bytes are there once.
                self.large = Some(entry.value);
                break;
            }
            if self.shape.is_plain() {
                chunk.put_slice(&entry.value);
                continue;
            }
            decoded += 1;
            match self.shape.item(&entry.value) {
                Ok(item) => chunk.put_slice(&item),
                Err(error) => {
                    self.ended = true;
                    tracing::error!(key = %String::from_utf8_lossy(&entry.key), %error, "an item of a list cannot be read");
                    return Some(Err(Box::new(error)));
                }
            }
        }
        Some(Ok(chunk.freeze()))
    }
}
