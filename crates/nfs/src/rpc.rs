//! ONC RPC (RFC 5531) over TCP: records in fragments, calls and replies.

use std::io::{self, Read, Write};

use super::xdr::{Garbage, Reader, Writer};

/// The longest record that is read: the largest READ or WRITE (see [`super::protocol::MAX_IO`]) and its header.
pub const MAX_RECORD: usize = (1 << 20) + (64 << 10);
/// Credentials and verifiers are at most this long (RFC 5531).
const MAX_AUTH: usize = 400;
/// Supplementary groups that AUTH_SYS has room for.
pub const MAX_GROUPS: usize = 16;
const LAST_FRAGMENT: u32 = 1 << 31;
const CALL: u32 = 0;
const REPLY: u32 = 1;
const AUTH_SYS: u32 = 1;

/// Reads one record into `record`; `false` at the end of the stream between two records.
///
/// # Errors
/// The stream's own, an end inside a record, or a record longer than [`MAX_RECORD`].
pub fn read_record(
    stream: &mut impl Read,
    record: &mut Vec<u8>,
    begun: impl FnMut() -> io::Result<()>,
) -> io::Result<bool> {
    read_record_within(stream, record, begun, |_| Ok(()))
}

/// The same; before there is memory for a fragment, `room` is asked with how long the record is then.
///
/// # Errors
/// As [`read_record`], and those of `room`.
pub fn read_record_within(
    stream: &mut impl Read,
    record: &mut Vec<u8>,
    mut begun: impl FnMut() -> io::Result<()>,
    mut room: impl FnMut(usize) -> io::Result<()>,
) -> io::Result<bool> {
    record.clear();
    loop {
        let mut header = [0; 4];
        let first = stream.read(&mut header)?;
        if first == 0 && record.is_empty() {
            return Ok(false);
        }
        if first == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        begun()?;
        stream.read_exact(header.get_mut(first..).unwrap_or_default())?;
        let header = u32::from_be_bytes(header);
        let length = (header & !LAST_FRAGMENT) as usize;
        let old = record.len();
        if old + length > MAX_RECORD {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("an RPC record is longer than {MAX_RECORD} bytes"),
            ));
        }
        room(old + length)?;
        // Reserved first: as many bytes as the limit allows, and they are not cleared before they are written.
        record.reserve_exact(length);
        if (&mut *stream).take(length as u64).read_to_end(record)? < length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if header & LAST_FRAGMENT != 0 {
            return Ok(true);
        }
    }
}

/// Room for a record's header, to be filled in by [`write_record`].
pub fn record() -> Writer {
    Writer(vec![0; 4])
}

/// Writes a message that was begun with [`record`], as one fragment.
pub fn write_record(stream: &mut impl Write, mut message: Writer) -> io::Result<()> {
    let length = u32::try_from(message.0.len().saturating_sub(4)).unwrap_or(u32::MAX) | LAST_FRAGMENT;
    if let Some(header) = message.0.first_chunk_mut() {
        *header = length.to_be_bytes();
    }
    stream.write_all(&message.0)
}

/// Who asks (AUTH_SYS), as the client says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    pub uid: u32,
    pub gid: u32,
    /// At most [`MAX_GROUPS`].
    pub groups: Vec<u32>,
}

/// A call's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    pub xid: u32,
    pub rpc_version: u32,
    pub program: u32,
    pub version: u32,
    pub procedure: u32,
    /// `None` without AUTH_SYS: nobody in particular.
    pub credentials: Option<Credentials>,
}

/// Reads a call's header; what is left are the arguments.
pub fn read_call(reader: &mut Reader<'_>) -> Result<Call, Garbage> {
    let xid = reader.u32()?;
    if reader.u32()? != CALL {
        return Err(Garbage);
    }
    let (rpc_version, program, version, procedure) = (reader.u32()?, reader.u32()?, reader.u32()?, reader.u32()?);
    let flavor = reader.u32()?;
    let body = reader.opaque(MAX_AUTH)?;
    let credentials = if flavor == AUTH_SYS { Some(read_credentials(Reader::new(body))?) } else { None };
    let _verifier = (reader.u32()?, reader.opaque(MAX_AUTH)?);
    Ok(Call { xid, rpc_version, program, version, procedure, credentials })
}

fn read_credentials(mut body: Reader<'_>) -> Result<Credentials, Garbage> {
    let _stamp = body.u32()?;
    let _machine = body.opaque(255)?;
    let (uid, gid, count) = (body.u32()?, body.u32()?, body.u32()?);
    if count as usize > MAX_GROUPS {
        return Err(Garbage);
    }
    let groups = (0..count).map(|_| body.u32()).collect::<Result<_, _>>()?;
    Ok(Credentials { uid, gid, groups })
}

/// Begins a call; the arguments follow.
pub fn write_call(xid: u32, program: u32, version: u32, procedure: u32, credentials: &Credentials) -> Writer {
    let mut body = Writer::new();
    body.u32(0).opaque(b"mainstay").u32(credentials.uid).u32(credentials.gid);
    let groups = credentials.groups.get(..MAX_GROUPS).unwrap_or(&credentials.groups);
    body.u32(u32::try_from(groups.len()).unwrap_or(0));
    for group in groups {
        body.u32(*group);
    }
    let mut message = record();
    message.u32(xid).u32(CALL).u32(2).u32(program).u32(version).u32(procedure);
    message.u32(AUTH_SYS).opaque(&body.0).u32(0).u32(0);
    message
}

/// Why a call was not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    ProgramUnavailable,
    /// Only these versions are served: lowest, highest.
    ProgramMismatch(u32, u32),
    ProcedureUnavailable,
    GarbageArguments,
    RpcMismatch,
}

/// Begins the reply to a call that is carried out; the results follow.
pub fn accepted(xid: u32) -> Writer {
    let mut message = record();
    message.u32(xid).u32(REPLY).u32(0).u32(0).u32(0).u32(0);
    message
}

/// The whole reply to a call that is not.
pub fn refused(xid: u32, refusal: Refusal) -> Writer {
    let mut message = record();
    message.u32(xid).u32(REPLY);
    match refusal {
        Refusal::RpcMismatch => message.u32(1).u32(0).u32(2).u32(2),
        Refusal::ProgramUnavailable => message.u32(0).u32(0).u32(0).u32(1),
        Refusal::ProgramMismatch(low, high) => message.u32(0).u32(0).u32(0).u32(2).u32(low).u32(high),
        Refusal::ProcedureUnavailable => message.u32(0).u32(0).u32(0).u32(3),
        Refusal::GarbageArguments => message.u32(0).u32(0).u32(0).u32(4),
    };
    message
}

/// Reads a reply's header: the call's number, and whether the results follow.
pub fn read_reply(reader: &mut Reader<'_>) -> Result<(u32, bool), Garbage> {
    let xid = reader.u32()?;
    if reader.u32()? != REPLY {
        return Err(Garbage);
    }
    if reader.u32()? != 0 {
        return Ok((xid, false));
    }
    let _verifier = (reader.u32()?, reader.opaque(MAX_AUTH)?);
    Ok((xid, reader.u32()? == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_read_as_it_was_written() {
        let credentials = Credentials { uid: 7, gid: 8, groups: vec![1, 2] };
        let mut stream = Vec::new();
        write_record(&mut stream, write_call(5, 100_003, 3, 1, &credentials)).unwrap();
        let mut record = Vec::new();
        assert!(read_record(&mut &stream[..], &mut record, || Ok(())).unwrap());
        let call = read_call(&mut Reader::new(&record)).unwrap();
        let expected =
            Call { xid: 5, rpc_version: 2, program: 100_003, version: 3, procedure: 1, credentials: Some(credentials) };
        assert_eq!(call, expected);
    }

    #[test]
    fn records_come_in_fragments_and_have_a_limit_x4() {
        let stream = [0, 0, 0, 2, b'a', b'b', 0x80, 0, 0, 1, b'c'];
        let mut record = Vec::new();
        assert!(read_record(&mut &stream[..], &mut record, || Ok(())).unwrap());
        assert_eq!(record, b"abc");
        assert!(!read_record(&mut &[][..], &mut record, || Ok(())).unwrap());
        assert!(read_record(&mut &[0xff, 0xff, 0xff, 0xff][..], &mut record, || Ok(())).is_err());
        assert!(read_record(&mut &[0, 0][..], &mut record, || Ok(())).is_err());
    }
}
