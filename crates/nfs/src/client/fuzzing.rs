//! A server's replies as bytes, to the kernel's requests.

use std::cell::RefCell;
use std::io::Cursor;

use super::files::Files;
use super::nodes::ROOT;
use super::remote::{Calls, Errno, Reply, receive};
use super::wire::{Answer, Request, op};
use crate::protocol::{Attributes, kind};
use crate::rpc::{self, Credentials};
use crate::xdr::Writer;
use mainstay_runtime::fuzzing::{join, parts};

/// Calls are numbered by nobody: every reply is to this one.
const XID: u32 = 1;
/// What the kernel may ask for in an input.
const OPERATIONS: [u32; 20] = [
    op::LOOKUP,
    op::GETATTR,
    op::SETATTR,
    op::READLINK,
    op::SYMLINK,
    op::MKNOD,
    op::MKDIR,
    op::UNLINK,
    op::RMDIR,
    op::RENAME,
    op::LINK,
    op::OPEN,
    op::CREATE,
    op::READ,
    op::WRITE,
    op::FLUSH,
    op::RELEASE,
    op::READDIR,
    op::STATFS,
    op::ACCESS,
];

/// Answers calls with what stands next in the input.
struct Script(RefCell<Cursor<Vec<u8>>>);

impl Calls for Script {
    fn call(&self, _number: u32, who: &Credentials, arguments: impl Fn(&mut Writer)) -> Result<Reply, Errno> {
        arguments(&mut rpc::write_call(XID, 0, 0, 0, who));
        receive(&mut *self.0.borrow_mut(), XID).map_err(|_| libc::EIO)?.succeeded()
    }
}

/// The first part names the kernel's requests (operation, file, open file: a byte each); the others are the replies.
pub fn run(input: &[u8]) {
    let parts = parts(input);
    let Some((requests, replies)) = parts.split_first() else { return };
    let mut stream = Vec::new();
    for reply in replies {
        let mut message = rpc::record();
        message.0.extend_from_slice(reply);
        rpc::write_record(&mut stream, message).expect("memory");
    }
    let files = Files::new(Script(RefCell::new(Cursor::new(stream))), vec![0; 32]);
    for request in requests.chunks_exact(3).take(64) {
        let operation = OPERATIONS[usize::from(request[0]) % OPERATIONS.len()];
        let (node, open) = (u64::from(request[1]).max(ROOT), u64::from(request[2]));
        let request = Request { operation, unique: 1, node, uid: 0, gid: 0, pid: 0, body: body(operation, node, open) };
        if let Ok(answer) = files.execute(&request) {
            assert!(answer.body().len() <= 1 << 20, "{} bytes for the kernel", answer.body().len());
        }
    }
}

/// A request's body as the kernel would write it.
fn body(operation: u32, node: u64, open: u64) -> Vec<u8> {
    const SIZE: u32 = 64 << 10;
    let mut body = Answer::default();
    match operation {
        op::SETATTR => [0; 9].into_iter().fold(body.u32(0x7f).u32(0).u64(open), |body, word| body.u64(word)),
        op::MKNOD => body.u32(libc::S_IFIFO).u32(0).u32(0).u32(0),
        op::MKDIR => body.u32(0o755).u32(0),
        op::RENAME | op::LINK => body.u64(node),
        op::OPEN | op::ACCESS => body.u32(0).u32(0),
        op::CREATE => body.u32(0).u32(0o644).u32(0).u32(0),
        op::READ | op::READDIR => body.u64(open).u64(0).u32(SIZE).u32(0),
        op::WRITE => body.u64(open).u64(0).u32(8).u32(0).u64(0).u64(0).u64(0),
        op::RELEASE => body.u64(open),
        _ => &mut body,
    };
    body.raw(b"a\0b\0").raw(&[0; 8]);
    body.body().to_vec()
}

fn reply(results: impl Fn(&mut Writer)) -> Vec<u8> {
    let mut message = rpc::accepted(XID);
    results(message.u32(0));
    message.0.split_off(4)
}

fn present(reply: &mut Writer) {
    Attributes { kind: kind::REGULAR, mode: 0o644, size: 99, ..Attributes::default() }.write(reply.bool(true));
}

/// Whole sessions.
pub fn seeds() -> Vec<Vec<u8>> {
    let number = |operation: u32| OPERATIONS.iter().position(|known| *known == operation).unwrap_or(0) as u8;
    let ask = |operations: &[(u32, u8, u8)]| -> Vec<u8> {
        operations.iter().flat_map(|(operation, node, open)| [number(*operation), *node, *open]).collect()
    };
    let found = reply(|reply| {
        present(reply.opaque(&[7; 28]));
        present(reply);
    });
    let made = reply(|reply| {
        present(reply.bool(true).opaque(&[8; 28]));
        present(reply.bool(false));
    });
    let attributes = reply(|reply| Attributes::default().write(reply));
    let weak = reply(|reply| present(reply.bool(false)));
    let link = reply(|reply| {
        present(reply);
        reply.opaque(b"target");
    });
    let granted = reply(|reply| {
        present(reply);
        reply.u32(63);
    });
    let bytes = reply(|reply| {
        present(reply);
        reply.u32(5).bool(true).opaque(b"bytes");
    });
    let written = reply(|reply| {
        present(reply.bool(false));
        reply.u32(8).u32(0).u64(77);
    });
    let committed = reply(|reply| {
        present(reply.bool(false));
        reply.u64(77);
    });
    let entries = reply(|reply| {
        present(reply);
        reply
            .u64(0)
            .bool(true)
            .u64(5)
            .opaque(b"one")
            .u64(1)
            .bool(true)
            .u64(6)
            .opaque(b"three")
            .u64(2)
            .bool(false)
            .bool(true);
    });
    let space = reply(|reply| {
        present(reply);
        reply.u64(9 << 20).u64(8 << 20).u64(7 << 20).u64(6).u64(5).u64(4).u32(0);
    });
    let session = |operations: &[(u32, u8, u8)], replies: &[&Vec<u8>]| {
        let asked = ask(operations);
        let all: Vec<&[u8]> = std::iter::once(&asked[..]).chain(replies.iter().map(|reply| &reply[..])).collect();
        join(&all)
    };
    vec![
        session(&[(op::LOOKUP, 1, 0), (op::GETATTR, 2, 0), (op::SETATTR, 2, 0)], &[&found, &attributes, &weak]),
        session(&[(op::READLINK, 1, 0), (op::STATFS, 1, 0), (op::ACCESS, 1, 0)], &[&link, &space, &granted]),
        session(&[(op::SYMLINK, 1, 0), (op::MKNOD, 1, 0), (op::MKDIR, 1, 0)], &[&made, &made, &made]),
        session(
            &[(op::OPEN, 1, 0), (op::READ, 1, 2), (op::READDIR, 1, 2), (op::RELEASE, 1, 2)],
            &[&granted, &bytes, &entries],
        ),
        session(&[(op::CREATE, 1, 0), (op::WRITE, 2, 3), (op::FLUSH, 2, 3)], &[&made, &written, &committed]),
        session(&[(op::CREATE, 1, 0), (op::UNLINK, 1, 0), (op::RELEASE, 2, 3)], &[&made, &made, &weak, &weak]),
        session(
            &[(op::RENAME, 1, 0), (op::LINK, 1, 0), (op::RMDIR, 1, 0)],
            &[&found, &weak, &weak, &attributes, &weak],
        ),
    ]
}
