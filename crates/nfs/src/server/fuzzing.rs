//! A client's connection as bytes, against a real export. Handles are sealed and name inodes, so an input has
//! placeholders for them ([`handle`]); records are framed anew after these were replaced.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::symlink;

use nix::fcntl::OFlag;

use super::call::Peer;
use super::connection::Connection;
use super::export::Export;
use super::limits::Limits;
use super::{Server, call, identity};
use crate::protocol::{MOUNT, NFS, PORTMAP, PORTMAP_VERSION, SIZES, SetAttributes, V3, procedure as p, sizes};
use crate::rpc::{self, Credentials};
use crate::xdr::Writer;
use mainstay_runtime::fuzzing::{Folder, join, parts};

/// Somebody who may do the most.
const CLIENT: Peer = Peer { address: IpAddr::V4(Ipv4Addr::LOCALHOST), port: 700, is_here: true };
/// Of the export as [`run`] makes it: itself, a file, a folder, a file in it, a link out, a folder with a size of its
/// own and a file in it.
const FILES: [&str; 7] = [".", "file", "dir", "dir/inner", "link", "sized", "sized/inner"];
/// The size of that folder (bytes).
const SIZE: u64 = 16 << 10;

/// As an input writes the handle of a file: `H0` is the first of [`FILES`].
fn handle(number: usize) -> Vec<u8> {
    vec![b'H', b'0' + number as u8]
}

/// Bytes of the client to read; answers are thrown away.
struct Wire<'a>(&'a [u8]);

impl Read for Wire<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Wire<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One connection: the bytes as they are (first byte odd), or parts that become records.
pub fn run(input: &[u8]) {
    let folder = Folder::new();
    let root = folder.inside().join("export");
    for dir in [&root, &root.join("dir"), &root.join("sized"), &folder.inside().join("state")] {
        fs::create_dir(dir).expect("a folder");
    }
    fs::write(root.join("file"), "some text").expect("a file");
    fs::write(root.join("dir/inner"), "").expect("a file");
    symlink(format!("../../{}", Folder::WAY_OUT), root.join("dir/link")).expect("a link");
    symlink(format!("../{}", Folder::WAY_OUT), root.join("link")).expect("a link");
    let exports = vec![export(&root)];
    let limits = Limits::open(&folder.inside().join("state"), &exports).expect("a folder");
    let sized = open(&exports[0], "sized");
    let stat = nix::sys::stat::fstat(sized.as_raw_fd()).expect("a folder");
    limits.set(&exports[0], &sized, &stat, SIZE).expect("an empty folder");
    fs::write(root.join("sized/inner"), "").expect("a file");
    let server = Server::new(exports, limits, &[7; 32], 2049);
    let Some((what, rest)) = input.split_first() else { return };
    let stream = if what % 2 == 1 { rest.to_vec() } else { records(&server, rest) };
    let _ = Connection::new(CLIENT, Wire(&stream), Wire(&[]), |_| ()).work(&server, false, |_| Ok(()), || ());
    let _ = call::answer_datagram(&server, CLIENT.address, rest);
    folder.assert_untouched();
}

/// An export where clients may do the most.
fn export(path: &std::path::Path) -> Export {
    // Connections have threads of their own, whose umask is empty.
    identity::own_thread().expect("root");
    Export::open(&format!("{}:no_root_squash", path.display()).parse().expect("an export")).expect("a folder")
}

fn open(export: &Export, name: &str) -> OwnedFd {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW;
    mainstay_runtime::safe_path::open_within(&export.root, name.as_ref(), flags).expect("a file")
}

fn records(server: &Server, input: &[u8]) -> Vec<u8> {
    let export = &server.exports[0];
    let real: Vec<Vec<u8>> = FILES
        .iter()
        .map(|name| {
            let limit = name.starts_with("sized").then(|| server.limits.by_id(1)).flatten();
            server.handle_of(export, limit.as_deref(), &open(export, name)).expect("a handle")
        })
        .collect();
    let mut stream = Vec::new();
    for part in parts(input) {
        let mut message = rpc::record();
        let mut rest = part;
        while let Some((word, after)) = rest.split_first_chunk::<4>() {
            let named = after.first_chunk::<4>().filter(|_| *word == [0, 0, 0, 2]).and_then(|name| match name {
                [b'H', number, 0, 0] => real.get(usize::from(number.wrapping_sub(b'0'))),
                _ => None,
            });
            match named {
                Some(handle) => {
                    message.opaque(handle);
                    rest = after.get(4..).unwrap_or_default();
                }
                None => {
                    message.0.extend_from_slice(word);
                    rest = after;
                }
            }
        }
        message.0.extend_from_slice(rest);
        rpc::write_record(&mut stream, message).expect("memory");
    }
    stream
}

fn record(program: (u32, u32), procedure: u32, arguments: &Writer) -> Vec<u8> {
    let credentials = Credentials { uid: 0, gid: 0, groups: vec![1, 2] };
    let mut message = rpc::write_call(1, program.0, program.1, procedure, &credentials);
    message.0.extend_from_slice(&arguments.0);
    message.0.split_off(4)
}

fn nfs(procedure: u32, arguments: &Writer) -> Vec<u8> {
    record((NFS, V3), procedure, arguments)
}

/// Each procedure once, and a session of several.
pub fn seeds() -> Vec<Vec<u8>> {
    let on = |number: usize| Writer::new().opaque(&handle(number)).clone();
    let named = |number: usize, name: &[u8]| on(number).opaque(name).clone();
    let with = |mut arguments: Writer, wanted: &SetAttributes| {
        wanted.write(&mut arguments);
        arguments
    };
    let nothing = SetAttributes::default();
    let wanted =
        SetAttributes { mode: Some(0o4755), uid: Some(7), gid: Some(8), size: Some(20), ..SetAttributes::default() };
    let mut calls = vec![
        record((MOUNT, V3), 1, Writer::new().opaque(b"/dev/shm")),
        record((MOUNT, V3), 5, &Writer::new()),
        record((PORTMAP, PORTMAP_VERSION), 3, Writer::new().u32(NFS).u32(V3).u32(6).u32(0)),
        record((PORTMAP, PORTMAP_VERSION), 4, &Writer::new()),
        nfs(p::NULL, &Writer::new()),
        nfs(p::SETATTR, with(on(1), &wanted).bool(false)),
        nfs(p::LOOKUP, &named(0, b"dir")),
        nfs(p::LOOKUP, &named(2, b"..")),
        nfs(p::ACCESS, on(1).u32(63)),
        nfs(p::READ, on(1).u64(2).u32(4096)),
        nfs(p::WRITE, on(1).u64(4).u32(3).u32(2).opaque(b"abc")),
        nfs(p::CREATE, &with(named(0, b"new").u32(1).clone(), &wanted)),
        nfs(p::CREATE, named(2, b"new").u32(2).u64(99)),
        nfs(p::MKDIR, &with(named(0, b"folder"), &nothing)),
        nfs(p::SYMLINK, with(named(0, b"out"), &nothing).opaque(b"../outside")),
        nfs(p::MKNOD, with(named(0, b"device").u32(3).clone(), &wanted).u32(1).u32(3)),
        nfs(p::REMOVE, &named(0, b"file")),
        nfs(p::RMDIR, &named(0, b"dir")),
        nfs(p::RENAME, named(0, b"file").opaque(&handle(2)).opaque(b"moved")),
        nfs(p::LINK, on(1).opaque(&handle(2)).opaque(b"other")),
        nfs(p::READDIR, on(0).u64(0).u64(0).u32(4096)),
        nfs(p::READDIRPLUS, on(2).u64(0).u64(0).u32(512).u32(8192)),
        nfs(p::COMMIT, on(1).u64(0).u32(0)),
        record((SIZES, 1), sizes::SET, on(5).u64(SIZE * 2)),
        record((SIZES, 1), sizes::GET, &on(5)),
        nfs(p::WRITE, on(6).u64(4).u32(3).u32(2).opaque(b"abc")),
        nfs(p::WRITE, on(6).u64(SIZE).u32(3).u32(0).opaque(b"abc")),
        nfs(p::SETATTR, with(on(6), &wanted).bool(false)),
        nfs(p::CREATE, &with(named(5, b"new").u32(0).clone(), &wanted)),
        nfs(p::MKDIR, &with(named(5, b"folder"), &nothing)),
        nfs(p::RENAME, named(5, b"new").opaque(&handle(5)).opaque(b"inner")),
        nfs(p::RENAME, named(5, b"inner").opaque(&handle(0)).opaque(b"out")),
        nfs(p::LINK, on(6).opaque(&handle(5)).opaque(b"other")),
        nfs(p::REMOVE, &named(5, b"inner")),
        nfs(p::RMDIR, &named(5, b"folder")),
        nfs(p::FSSTAT, &on(5)),
        nfs(p::RMDIR, &named(0, b"sized")),
    ];
    for procedure in [p::GETATTR, p::READLINK, p::FSSTAT, p::FSINFO, p::PATHCONF] {
        calls.extend([nfs(procedure, &on(1)), nfs(procedure, &on(4))]);
    }
    let framed = |calls: &[&[u8]]| [&[0], &join(calls)[..]].concat();
    let mut seeds: Vec<Vec<u8>> = calls.iter().map(|call| framed(&[call])).collect();
    seeds.push(framed(&calls.iter().map(Vec::as_slice).collect::<Vec<_>>()));
    // As it is on the wire, in two fragments.
    let (one, two) = calls[4].split_at(8);
    seeds.push([&[1, 0, 0, 0, 8], one, &[0x80, 0, 0, two.len() as u8], two].concat());
    seeds
}
