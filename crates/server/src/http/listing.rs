//! A list as a response body: made piece by piece as the client reads it, out of bytes that the store has anyway, so
//! that a list that nobody reads costs little more than the places of its items (X7).

use bytes::{BufMut, Bytes, BytesMut};
use mainstay_api::table::Media;
use mainstay_api::{Status, protobuf};
use mainstay_store::Entry;

use super::indent::Indenter;
use super::respond::BodyError;
use super::shape::Shape;

/// Items are gathered into one chunk up to about this size, in bytes; larger ones go by themselves.
const CHUNK: usize = 64 << 10;
/// How many items are decoded for one chunk.
const DECODED: usize = 32;
/// What a list of many items holds beside the items' places (bytes): a chunk here, one at the connection.
const HELD: u64 = 128 << 10;

/// How many bytes of messages are kept from when a list's length was counted; what comes after is made again.
const KEPT: usize = 1 << 20;

/// The body of a list.
pub struct Listing {
    head: Bytes,
    items: std::vec::IntoIter<Entry>,
    /// The first of the items as messages.
    made: std::vec::IntoIter<Vec<u8>>,
    tail: Bytes,
    shape: Shape,
    /// The whole length, where it is known before.
    length: Option<u64>,
    weight: u64,
    is_first: bool,
    /// A large item that goes out next, as the store has it.
    large: Option<Bytes>,
    ended: bool,
    /// For people who read it, and what is not indented yet of the last chunk.
    indenter: Option<Indenter>,
    left: Bytes,
}

impl Listing {
    /// A list whose items stand between `head` and `tail`, in JSON separated by commas.
    pub fn new(head: Bytes, items: Vec<Entry>, tail: Bytes, shape: Shape) -> Self {
        let bytes: usize = items.iter().map(|entry| entry.value.len() + 1).sum();
        let length = head.len() + bytes.saturating_sub(1) + tail.len();
        let length = shape.is_plain().then_some(length as u64);
        let weight = (items.len() * size_of::<Entry>()) as u64 + HELD.min(bytes as u64);
        let made = Vec::new().into_iter();
        Self {
            head,
            items: items.into_iter(),
            made,
            tail,
            shape,
            length,
            weight,
            is_first: true,
            large: None,
            ended: false,
            indenter: None,
            left: Bytes::new(),
        }
    }

    /// A list in protobuf: `head` gives what stands before the items, by how long they are altogether. That has to be
    /// known before the first byte is sent, so each item is made once to be counted, and all but the first of them once
    /// more to be sent.
    ///
    /// # Errors
    /// 500 for an item that has no message.
    pub fn of_messages(head: impl Fn(u64) -> Vec<u8>, items: Vec<Entry>, shape: Shape) -> Result<Self, Status> {
        let (mut length, mut kept, mut made, number) = (0, 0, Vec::new(), shape.item_field());
        for entry in &items {
            let message = shape.message(&entry.value)?;
            length += (protobuf::item(number, message.len()).len() + message.len()) as u64;
            if kept + message.len() <= KEPT && made.len() * size_of::<Vec<u8>>() <= KEPT {
                kept += message.len();
                made.push(message);
            } else {
                // From here on none is kept, since they go out in order.
                kept = usize::MAX >> 1;
            }
        }
        let head = head(length);
        let whole = head.len() as u64 + length + protobuf::list_tail().len() as u64;
        let kept = made.iter().map(|message| message.capacity() + size_of::<Vec<u8>>()).sum::<usize>() as u64;
        let mut listing = Self::new(Bytes::from(head), items, Bytes::from_static(protobuf::list_tail()), shape);
        listing.made = made.into_iter();
        listing.length = Some(whole);
        listing.weight += kept;
        Ok(listing)
    }

    /// An item with its separator as it is sent, where it is no stored bytes.
    fn made(&mut self, entry: &Entry) -> Result<(Vec<u8>, Bytes), Status> {
        match self.shape.media {
            Media::Json => return Ok((Vec::new(), self.shape.item(&entry.value)?)),
            Media::Yaml => return Ok((Vec::new(), self.shape.yaml_item(&entry.value)?)),
            Media::Protobuf => {}
        }
        let message = match self.made.next() {
            Some(message) => message,
            None => self.shape.message(&entry.value)?,
        };
        Ok((protobuf::item(self.shape.item_field(), message.len()), Bytes::from(message)))
    }

    /// The same in JSON with lines and indents, whose length is not known before.
    pub fn indented(mut self) -> Self {
        self.length = None;
        self.indenter = Some(Indenter::default());
        self
    }

    /// How many bytes it keeps in memory while it is sent.
    pub fn weight(&self) -> u64 {
        self.weight
    }

    /// What it is written as.
    pub fn media(&self) -> Media {
        self.shape.media
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
        if self.indenter.is_none() {
            return self.chunk();
        }
        if self.left.is_empty() {
            match self.chunk()? {
                Ok(chunk) => self.left = chunk,
                failed => return Some(failed),
            }
        }
        Some(Ok(self.indenter.as_mut()?.next_of(&mut self.left)))
    }
}

impl Listing {
    fn chunk(&mut self) -> Option<Result<Bytes, BodyError>> {
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
                chunk.put_slice(&self.tail);
                self.ended = true;
                break;
            };
            if !std::mem::take(&mut self.is_first) && self.shape.media == Media::Json {
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
            match self.made(&entry) {
                Ok((separator, item)) => {
                    chunk.put_slice(&separator);
                    chunk.put_slice(&item);
                }
                Err(error) => {
                    self.ended = true;
                    tracing::error!(key = %String::from_utf8_lossy(&entry.key), %error,
                        "an item of a list cannot be read");
                    return Some(Err(Box::new(error)));
                }
            }
        }
        Some(Ok(chunk.freeze()))
    }
}
