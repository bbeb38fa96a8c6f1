//! Records and structures, which both ends share: what is read and written again is the same.

use super::protocol::{Attributes, SetAttributes, SetTime, Time};
use super::rpc::{self, Credentials};
use super::xdr::{Reader, Writer};

/// A stream of records, each read in every way there is.
pub fn run(input: &[u8]) {
    let (mut stream, mut record) = (input, Vec::new());
    while let Ok(true) = rpc::read_record(&mut stream, &mut record, || Ok(())) {
        read(&record);
    }
    read(input);
}

fn read(record: &[u8]) {
    let mut reader = Reader::new(record);
    if let Ok(call) = rpc::read_call(&mut reader)
        && let Some(credentials) = &call.credentials
    {
        let again = rpc::write_call(call.xid, call.program, call.version, call.procedure, credentials);
        let again = rpc::read_call(&mut Reader::new(&again.0[4..]));
        assert_eq!(again, Ok(rpc::Call { rpc_version: 2, ..call }));
    }
    let _ = rpc::read_reply(&mut Reader::new(record));
    let _ = Attributes::read_weak(&mut Reader::new(record));
    let mut reader = Reader::new(record);
    if let Ok(attributes) = Attributes::read(&mut reader) {
        let mut again = Writer::new();
        attributes.write(&mut again);
        assert_eq!(again.0, record[..record.len() - reader.rest().len()]);
    }
    if let Ok(wanted) = SetAttributes::read(&mut Reader::new(record)) {
        let mut again = Writer::new();
        wanted.write(&mut again);
        assert_eq!(SetAttributes::read(&mut Reader::new(&again.0)), Ok(wanted));
    }
}

/// A call, replies and structures.
pub fn seeds() -> Vec<Vec<u8>> {
    let credentials = Credentials { uid: 7, gid: 8, groups: vec![1, 2, 3] };
    let mut stream = Vec::new();
    let mut replies = vec![rpc::write_call(5, 100_003, 3, 1, &credentials), rpc::accepted(5)];
    replies.push(rpc::refused(5, rpc::Refusal::ProgramMismatch(3, 3)));
    for message in replies {
        rpc::write_record(&mut stream, message).expect("memory");
    }
    let mut attributes = Writer::new();
    Attributes { kind: 1, size: 99, ..Attributes::default() }.write(&mut attributes);
    let mut wanted = Writer::new();
    let modified = SetTime::To(Time { seconds: 5, nanoseconds: 6 });
    SetAttributes { mode: Some(0o644), size: Some(9), accessed: SetTime::Now, modified, ..SetAttributes::default() }
        .write(&mut wanted);
    vec![
        stream.get(4..).unwrap_or_default().to_vec(),
        stream,
        attributes.0,
        wanted.0,
        [0, 0, 0, 1, b'a', 0x80, 0, 0, 1, b'b'].to_vec(),
    ]
}
