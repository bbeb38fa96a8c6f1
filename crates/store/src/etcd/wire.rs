//! The few messages of etcd's v3 API that the store needs, as protobuf. Field numbers are those of etcd's `rpc.proto`
//! and `kv.proto`. Whatever a reader does not know it passes over.

use bytes::{BufMut as _, Bytes, BytesMut};

/// A key's state, as etcd has it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct KeyValue {
    pub key: Bytes,
    pub create_revision: i64,
    pub mod_revision: i64,
    pub value: Bytes,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Range {
    pub key: Bytes,
    /// The first key that is not meant any more; empty for one key.
    pub end: Bytes,
    pub limit: i64,
    /// 0: the newest.
    pub revision: i64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct RangeAnswer {
    pub revision: i64,
    pub kvs: Vec<KeyValue>,
    pub more: bool,
}

/// What must hold of a key.
#[derive(Clone, Debug)]
pub(super) enum Compare {
    Absent(Bytes),
    Present(Bytes),
    ModRevision(Bytes, i64),
}

#[derive(Clone, Debug)]
pub(super) enum Write {
    Put(Bytes, Bytes),
    Delete(Bytes),
}

#[derive(Clone, Debug, Default)]
pub(super) struct Txn {
    pub compare: Vec<Compare>,
    pub writes: Vec<Write>,
    /// Read when a comparison does not hold.
    pub else_get: Vec<Bytes>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct TxnAnswer {
    pub revision: i64,
    pub succeeded: bool,
    /// An answer for each of `else_get`.
    pub found: Vec<Option<KeyValue>>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Event {
    pub deleted: bool,
    pub kv: KeyValue,
    pub previous: Option<KeyValue>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct WatchAnswer {
    pub revision: i64,
    /// The first answer: at which revision etcd was when the watch began.
    pub created: bool,
    /// The rest of it is in the next one.
    pub fragment: bool,
    pub canceled: bool,
    pub compact_revision: i64,
    pub reason: String,
    pub events: Vec<Event>,
}

/// Bytes that are no such message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

fn varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

fn number(out: &mut BytesMut, field: u64, value: i64) {
    if value != 0 {
        varint(out, field << 3);
        varint(out, value.cast_unsigned());
    }
}

fn bytes(out: &mut BytesMut, field: u64, value: &[u8]) {
    varint(out, field << 3 | 2);
    varint(out, value.len() as u64);
    out.put_slice(value);
}

fn message(out: &mut BytesMut, field: u64, write: impl FnOnce(&mut BytesMut)) {
    let mut inner = BytesMut::new();
    write(&mut inner);
    bytes(out, field, &inner);
}

impl Range {
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        self.write(&mut out);
        out.freeze()
    }

    fn write(&self, out: &mut BytesMut) {
        bytes(out, 1, &self.key);
        if !self.end.is_empty() {
            bytes(out, 2, &self.end);
        }
        number(out, 3, self.limit);
        number(out, 4, self.revision);
    }
}

impl Compare {
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Absent(key) | Self::Present(key) | Self::ModRevision(key, _) => key,
        }
    }

    fn write(&self, out: &mut BytesMut) {
        let (equal, not_equal, create, modified) = (0, 3, 1, 2);
        let (result, target, field, value) = match self {
            Self::Absent(_) => (equal, create, 5, 0),
            Self::Present(_) => (not_equal, create, 5, 0),
            Self::ModRevision(_, revision) => (equal, modified, 6, *revision),
        };
        number(out, 1, result);
        number(out, 2, target);
        bytes(out, 3, self.key());
        // A member of a oneof is written also when it is zero.
        varint(out, field << 3);
        varint(out, value.cast_unsigned());
    }
}

impl Txn {
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        for compare in &self.compare {
            message(&mut out, 1, |out| compare.write(out));
        }
        for write in &self.writes {
            message(&mut out, 2, |out| match write {
                Write::Put(key, value) => message(out, 2, |out| {
                    bytes(out, 1, key);
                    bytes(out, 2, value);
                }),
                Write::Delete(key) => message(out, 3, |out| bytes(out, 1, key)),
            });
        }
        for key in &self.else_get {
            let range = Range { key: key.clone(), ..Range::default() };
            message(&mut out, 3, |out| message(out, 1, |out| range.write(out)));
        }
        out.freeze()
    }
}

/// Forgets what was before a revision.
pub(super) fn compaction(revision: i64) -> Bytes {
    let mut out = BytesMut::new();
    number(&mut out, 1, revision);
    out.freeze()
}

/// Begins a watch of a range of keys, from a revision on, whose answers come in pieces where they are long.
pub(super) fn watch(key: &[u8], end: &[u8], from: i64) -> Bytes {
    let mut out = BytesMut::new();
    message(&mut out, 1, |out| {
        bytes(out, 1, key);
        bytes(out, 2, end);
        number(out, 3, from);
        number(out, 4, 1);
        number(out, 6, 1);
        number(out, 8, 1);
    });
    out.freeze()
}

/// A field's value as it is on the wire.
enum Wire {
    Number(u64),
    Bytes(Bytes),
    Other,
}

impl Wire {
    fn number(self) -> i64 {
        if let Self::Number(number) = self { number.cast_signed() } else { 0 }
    }

    fn bytes(self) -> Bytes {
        if let Self::Bytes(bytes) = self { bytes } else { Bytes::new() }
    }
}

fn take_varint(rest: &mut Bytes) -> Result<u64, Malformed> {
    let mut value = 0_u64;
    for (index, byte) in rest.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f).checked_shl(index as u32 * 7).ok_or(Malformed)?;
        if byte & 0x80 == 0 {
            let _ = rest.split_to(index + 1);
            return Ok(value);
        }
    }
    Err(Malformed)
}

fn take(rest: &mut Bytes, count: u64) -> Result<Bytes, Malformed> {
    let count = usize::try_from(count).map_err(|_| Malformed)?;
    if count > rest.len() { Err(Malformed) } else { Ok(rest.split_to(count)) }
}

/// Shows each field of a message.
fn fields(mut rest: Bytes, mut show: impl FnMut(u64, Wire) -> Result<(), Malformed>) -> Result<(), Malformed> {
    while !rest.is_empty() {
        let tag = take_varint(&mut rest)?;
        let wire = match tag & 7 {
            0 => Wire::Number(take_varint(&mut rest)?),
            1 => take(&mut rest, 8).map(|_| Wire::Other)?,
            2 => {
                let length = take_varint(&mut rest)?;
                Wire::Bytes(take(&mut rest, length)?)
            }
            5 => take(&mut rest, 4).map(|_| Wire::Other)?,
            _ => return Err(Malformed),
        };
        show(tag >> 3, wire)?;
    }
    Ok(())
}

fn header(bytes: Bytes) -> Result<i64, Malformed> {
    let mut revision = 0;
    fields(bytes, |field, wire| {
        if field == 3 {
            revision = wire.number();
        }
        Ok(())
    })?;
    Ok(revision)
}

fn key_value(bytes: Bytes) -> Result<KeyValue, Malformed> {
    let mut kv = KeyValue::default();
    fields(bytes, |field, wire| {
        match field {
            1 => kv.key = wire.bytes(),
            2 => kv.create_revision = wire.number(),
            3 => kv.mod_revision = wire.number(),
            5 => kv.value = wire.bytes(),
            _ => {}
        }
        Ok(())
    })?;
    Ok(kv)
}

impl RangeAnswer {
    pub fn decode(bytes: Bytes) -> Result<Self, Malformed> {
        let mut answer = Self::default();
        fields(bytes, |field, wire| {
            match field {
                1 => answer.revision = header(wire.bytes())?,
                2 => answer.kvs.push(key_value(wire.bytes())?),
                3 => answer.more = wire.number() != 0,
                _ => {}
            }
            Ok(())
        })?;
        Ok(answer)
    }
}

impl TxnAnswer {
    pub fn decode(bytes: Bytes) -> Result<Self, Malformed> {
        let mut answer = Self::default();
        fields(bytes, |field, wire| {
            match field {
                1 => answer.revision = header(wire.bytes())?,
                2 => answer.succeeded = wire.number() != 0,
                3 => fields(wire.bytes(), |field, wire| {
                    if field == 1 {
                        answer.found.push(RangeAnswer::decode(wire.bytes())?.kvs.into_iter().next());
                    }
                    Ok(())
                })?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(answer)
    }
}

impl WatchAnswer {
    pub fn decode(bytes: Bytes) -> Result<Self, Malformed> {
        let mut answer = Self::default();
        fields(bytes, |field, wire| {
            match field {
                1 => answer.revision = header(wire.bytes())?,
                3 => answer.created = wire.number() != 0,
                4 => answer.canceled = wire.number() != 0,
                5 => answer.compact_revision = wire.number(),
                6 => answer.reason = String::from_utf8_lossy(&wire.bytes()).into_owned(),
                7 => answer.fragment = wire.number() != 0,
                11 => answer.events.push(event(wire.bytes())?),
                _ => {}
            }
            Ok(())
        })?;
        Ok(answer)
    }
}

fn event(bytes: Bytes) -> Result<Event, Malformed> {
    let mut event = Event::default();
    fields(bytes, |field, wire| {
        match field {
            1 => event.deleted = wire.number() == 1,
            2 => event.kv = key_value(wire.bytes())?,
            3 => event.previous = Some(key_value(wire.bytes())?),
            _ => {}
        }
        Ok(())
    })?;
    Ok(event)
}

#[cfg(test)]
mod tests;
