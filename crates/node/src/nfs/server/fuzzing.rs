//! A client's connection as bytes, against a real export. Handles are sealed and name inodes, so an input has
//! placeholders for them ([`handle`]); records are framed anew after these were replaced.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::symlink;

use super::export::Export;
use super::{Server, call, converse, identity};
use crate::fuzzing::{Place, join, parts};
use crate::nfs::protocol::{MOUNT, NFS, PORTMAP, PORTMAP_VERSION, SetAttributes, V3, procedure as p};
use crate::nfs::rpc::{self, Credentials};
use crate::nfs::xdr::Writer;

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Of the export as [`run`] makes it: itself, a file, a folder, a file in it, a link out.
const FILES: [&str; 5] = [".", "file", "dir", "dir/inner", "link"];

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
    let place = Place::new();
    let root = place.inside();
    fs::create_dir(root.join("dir")).expect("a folder");
    fs::write(root.join("file"), "some text").expect("a file");
    fs::write(root.join("dir/inner"), "").expect("a file");
    symlink(format!("../{}", Place::WAY_OUT), root.join("dir/link")).expect("a link");
    symlink(Place::WAY_OUT, root.join("link")).expect("a link");
    let server = Server::new(vec![export(&root)], &[7; 32], 2049);
    let Some((what, rest)) = input.split_first() else { return };
    let stream = if what % 2 == 1 { rest.to_vec() } else { records(&server, rest) };
    let _ = converse(&server, &mut Wire(&stream), CLIENT, |_| Ok(()));
    let _ = call::answer_datagram(&server, CLIENT, rest);
    place.assert_untouched();
}

/// An export where clients may do the most.
fn export(path: &std::path::Path) -> Export {
    // Connections have threads of their own, whose umask is empty.
    identity::own_thread().expect("root");
    Export::open(&format!("{}:no_root_squash", path.display()).parse().expect("an export")).expect("a folder")
}

fn records(server: &Server, input: &[u8]) -> Vec<u8> {
    let export = &server.exports[0];
    let real: Vec<Vec<u8>> = FILES
        .iter()
        .map(|name| {
            let flags = nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_NOFOLLOW;
            let file = crate::volumes::beneath::open_within(&export.root, name.as_ref(), flags).expect("a file");
            server.handle_of(export, &file).expect("a handle")
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
    let wanted = SetAttributes { mode: Some(0o4755), uid: Some(7), gid: Some(8), size: Some(20), ..SetAttributes::default() };
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
