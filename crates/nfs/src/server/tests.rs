//! The server as a client sees it, over loopback; needs root, as handles do.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use super::{ServerConfig, call, listen};
use crate::client::Source;
use crate::client::remote::{self, Remote};
use crate::protocol::{Attributes, MAX_HANDLE, MOUNT, NFS, PORTMAP, SetAttributes, procedure};
use crate::rpc::{self, Credentials};
use crate::xdr::{Reader, Writer};

/// A server on a free port of loopback, and its port.
fn serve(base: &Path, options: &str) -> u16 {
    let export = format!("{}:{options}", base.join("export").display());
    let listening = listen(&config(base, &export)).unwrap();
    let port = listening.address.port();
    std::thread::spawn(move || listening.serve());
    port
}

fn config(base: &Path, export: &str) -> ServerConfig {
    let listen = "127.0.0.1:0".parse().unwrap();
    ServerConfig { exports: vec![export.parse().unwrap()], listen, portmapper: false, state_dir: base.join("state") }
}

fn base() -> tempfile::TempDir {
    let base = tempfile::tempdir().unwrap();
    fs::set_permissions(base.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(base.path().join("export")).unwrap();
    base
}

fn mount(base: &Path, port: u16, path: &str) -> Result<(Remote, Vec<u8>), String> {
    let path = base.join("export").join(path).display().to_string();
    let path = path.trim_end_matches('/').to_owned();
    remote::open(&Source {
        server: "127.0.0.1".into(),
        path,
        port: Some(port),
        mount_port: Some(port),
        timeout_ms: 5000,
    })
}

fn root() -> Credentials {
    Credentials::default()
}

fn lookup(remote: &Remote, dir: &[u8], name: &[u8]) -> Result<Vec<u8>, i32> {
    let reply = remote.call(procedure::LOOKUP, &root(), |arguments| {
        arguments.opaque(dir).opaque(name);
    })?;
    reply.read(|reader| reader.opaque(MAX_HANDLE).map(<[u8]>::to_vec))
}

fn getattr(remote: &Remote, handle: &[u8]) -> Result<Attributes, i32> {
    remote
        .call(procedure::GETATTR, &root(), |arguments| {
            arguments.opaque(handle);
        })?
        .read(Attributes::read)
}

fn create(remote: &Remote, dir: &[u8], name: &[u8], who: &Credentials) -> Result<(), i32> {
    let arguments = |arguments: &mut Writer| {
        SetAttributes { mode: Some(0o644), ..SetAttributes::default() }
            .write(arguments.opaque(dir).opaque(name).u32(1));
    };
    remote.call(procedure::CREATE, who, arguments).map(drop)
}

#[test]
fn handles_outlive_renames_and_restarts_but_not_their_file() {
    let base = base();
    let export = base.path().join("export");
    fs::write(export.join("a"), "x").unwrap();
    let (remote, dir) = mount(base.path(), serve(base.path(), "no_root_squash"), "").unwrap();
    let handle = lookup(&remote, &dir, b"a").unwrap();
    fs::rename(export.join("a"), export.join("b")).unwrap();
    let (again, same_dir) = mount(base.path(), serve(base.path(), "no_root_squash"), "").unwrap();
    assert_eq!(same_dir, dir);
    assert_eq!(getattr(&again, &handle).unwrap().size, 1);
    fs::remove_file(export.join("b")).unwrap();
    fs::write(export.join("b"), "another").unwrap();
    assert_eq!(getattr(&again, &handle), Err(libc::ESTALE));
}

#[test]
fn nothing_leads_out_of_an_export_x3() {
    let base = base();
    let (export, outside) = (base.path().join("export"), base.path().join("outside"));
    fs::create_dir_all(export.join("dir/sub")).unwrap();
    fs::create_dir_all(outside.join("deep")).unwrap();
    fs::write(outside.join("secret"), "").unwrap();
    symlink(&outside, export.join("link")).unwrap();
    let port = serve(base.path(), "no_root_squash");
    let (remote, dir) = mount(base.path(), port, "").unwrap();
    assert_eq!(lookup(&remote, &dir, b"..").unwrap(), dir, "above the export is the export");
    let link = lookup(&remote, &dir, b"link").unwrap();
    assert!(lookup(&remote, &link, b"secret").is_err(), "links are the client's to follow");
    for name in [&b"../outside"[..], b"dir/sub", b"/etc", b"", b"a\0b"] {
        assert_eq!(lookup(&remote, &dir, name), Err(libc::EINVAL));
        assert!(create(&remote, &dir, name, &root()).is_err());
    }
    assert!(create(&remote, &dir, b"..", &root()).is_err());
    assert!(mount(base.path(), port, "link").is_err() && mount(base.path(), port, "../outside").is_err());
    // A folder that was moved out has no way up.
    let moved = lookup(&remote, &lookup(&remote, &dir, b"dir").unwrap(), b"sub").unwrap();
    fs::rename(export.join("dir/sub"), outside.join("sub")).unwrap();
    assert_eq!(lookup(&remote, &moved, b".."), Err(libc::ESTALE));
    // A handle that somebody made up: every bit counts.
    for bit in 0..dir.len() * 8 {
        let mut forged = dir.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(getattr(&remote, &forged), Err(libc::ESTALE));
    }
    assert!(getattr(&remote, &[]).is_err());
}

/// X4, X5: answers of a MiB that nobody reads, on more connections than there is room for.
#[test]
fn x4_x5_who_reads_no_answers_has_its_share_of_memory_and_keeps_nobody_waiting() {
    use std::io::Write as _;
    const CONNECTIONS: usize = 100;
    let base = base();
    let options = format!("{}:no_root_squash,clients=127.0.0.0/8", base.path().join("export").display());
    fs::write(base.path().join("export/large"), vec![1; 1 << 20]).unwrap();
    let listening = listen(&config(base.path(), &options)).unwrap();
    let (server, port) = (listening.server.clone(), listening.address.port());
    std::thread::spawn(move || listening.serve());
    let (honest, dir) = mount(base.path(), port, "").unwrap();
    let large = lookup(&honest, &dir, b"large").unwrap();
    let open = |_| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let (from, to): (std::net::SocketAddr, std::net::SocketAddr) =
            ("127.0.0.66:0".parse().unwrap(), ([127, 0, 0, 1], port).into());
        socket.bind(&from.into()).unwrap();
        socket.connect(&to.into()).unwrap();
        let mut stream = std::net::TcpStream::from(socket);
        for xid in 0..4 {
            let mut message = rpc::write_call(xid, NFS, 3, procedure::READ, &root());
            message.opaque(&large).u64(0).u32(1 << 20);
            rpc::write_record(&mut stream, message).unwrap();
        }
        stream.flush().unwrap();
        stream
    };
    let unread: Vec<std::net::TcpStream> = (0..CONNECTIONS).map(open).collect();
    // As many as have room are held up by their clients.
    while server.room.all() + (1 << 20) <= super::MAX_ROOM {
        std::thread::yield_now();
    }
    for _ in 0..10 {
        let reply = honest.call(procedure::READ, &root(), |arguments| {
            arguments.opaque(&large).u64(0).u32(1 << 20);
        });
        assert_eq!(reply.unwrap().bytes().len(), 88 + 12 + (1 << 20));
        assert!(server.room.all() <= super::MAX_ROOM + (1 << 20));
    }
    drop(unread);
    while server.room.all() > 0 {
        std::thread::yield_now();
    }
}

/// X5: connections that say nothing, more than there are slots, from one address.
#[test]
fn x5_idle_connections_of_one_client_lock_nobody_out() {
    let base = base();
    let port = serve(base.path(), "no_root_squash");
    let (before, dir) = mount(base.path(), port, "").unwrap();
    let idle = |_| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let (from, to): (std::net::SocketAddr, std::net::SocketAddr) =
            (([127, 0, 0, 66], 0).into(), ([127, 0, 0, 1], port).into());
        socket.bind(&from.into()).unwrap();
        socket.connect(&to.into()).unwrap();
        socket
    };
    let flood: Vec<socket2::Socket> = (0..super::MAX_CONNECTIONS + 44).map(idle).collect();
    create(&before, &dir, b"by-who-was-there", &root()).unwrap();
    let (newcomer, dir) = mount(base.path(), port, "").unwrap();
    create(&newcomer, &dir, b"by-a-newcomer", &root()).unwrap();
    drop(flood);
}

#[test]
fn root_is_squashed_read_only_is_and_clients_are_chosen() {
    let base = base();
    let export = base.path().join("export");
    fs::write(export.join("private"), "x").unwrap();
    fs::set_permissions(export.join("private"), fs::Permissions::from_mode(0o600)).unwrap();
    let (squashed, dir) = mount(base.path(), serve(base.path(), ""), "").unwrap();
    assert_eq!(create(&squashed, &dir, b"new", &root()), Err(libc::EACCES));
    let private = lookup(&squashed, &dir, b"private").unwrap();
    let read = |remote: &Remote| {
        let arguments = |arguments: &mut Writer| {
            arguments.opaque(&private).u64(0).u32(10);
        };
        remote.call(procedure::READ, &root(), arguments).map(drop)
    };
    assert_eq!(read(&squashed), Err(libc::EACCES));
    let (trusted, dir) = mount(base.path(), serve(base.path(), "no_root_squash"), "").unwrap();
    assert_eq!(read(&trusted), Ok(()));
    create(&trusted, &dir, b"new", &root()).unwrap();
    fs::set_permissions(&export, fs::Permissions::from_mode(0o777)).unwrap();
    create(&squashed, &dir, b"users", &Credentials { uid: 1234, gid: 1235, groups: vec![] }).unwrap();
    let metadata = fs::metadata(export.join("users")).unwrap();
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o777), (1234, 1235, 0o644));
    let (read_only, dir) = mount(base.path(), serve(base.path(), "ro,no_root_squash"), "").unwrap();
    assert_eq!(create(&read_only, &dir, b"more", &root()), Err(libc::EROFS));
    let port = serve(base.path(), "clients=192.0.2.0/24");
    assert!(mount(base.path(), port, "").err().unwrap().contains("Permission denied"));
    let stranger = Remote::new(([127, 0, 0, 1], port).into(), std::time::Duration::from_secs(5));
    assert_eq!(getattr(&stranger, &dir), Err(libc::EACCES), "a handle alone is not enough");
}

#[test]
fn an_exclusive_creation_that_is_asked_again_is_the_same_one() {
    let base = base();
    let (remote, dir) = mount(base.path(), serve(base.path(), "no_root_squash"), "").unwrap();
    let exclusive = |verifier: u64| {
        let arguments = |arguments: &mut Writer| {
            arguments.opaque(&dir).opaque(b"lock").u32(2).u64(verifier);
        };
        remote.call(procedure::CREATE, &root(), arguments).map(drop)
    };
    assert_eq!(exclusive(0x1234_5678_9abc_def0), Ok(()));
    assert_eq!(exclusive(0x1234_5678_9abc_def0), Ok(()));
    assert_eq!(exclusive(7), Err(libc::EEXIST));
}

#[test]
fn a_large_folder_is_listed_once_each() {
    let base = base();
    let export = base.path().join("export");
    (0..3000).for_each(|n| fs::write(export.join(format!("file-{n:04}")), "").unwrap());
    let (remote, dir) = mount(base.path(), serve(base.path(), "no_root_squash"), "").unwrap();
    let (mut names, mut cookie, mut end) = (Vec::new(), 0, false);
    while !end {
        let reply = remote.call(procedure::READDIR, &root(), |arguments| {
            arguments.opaque(&dir).u64(cookie).u64(0).u32(4096);
        });
        end = reply
            .unwrap()
            .read(|reader| {
                Attributes::read_optional(reader)?;
                reader.u64()?;
                while reader.bool()? {
                    reader.u64()?;
                    names.push(reader.opaque(255)?.to_vec());
                    cookie = reader.u64()?;
                }
                reader.bool()
            })
            .unwrap();
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 3002, "with . and ..");
}

#[test]
fn any_bytes_get_an_answer_or_none_but_never_a_panic_x4() {
    let base = base();
    fs::write(base.path().join("export/file"), "content").unwrap();
    let export = format!("{}:ro", base.path().join("export").display());
    let server = listen(&config(base.path(), &export)).unwrap().server;
    let handle = server.handle_of(&server.exports[0], None, &server.exports[0].root).unwrap();
    let mut random = 1u64;
    let mut next = move |limit: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % limit
    };
    let client = std::net::IpAddr::from([127, 0, 0, 1]).into();
    let mut work = move || {
        for round in 0..20_000 {
            let program = [NFS, MOUNT, PORTMAP][next(3)];
            let mut message = rpc::write_call(round, program, [2, 3, 3, 3][next(4)], next(23) as u32, &root());
            message.opaque(&handle).opaque(b"file").opaque(&handle).opaque(b"new");
            for _ in 0..next(24) {
                message.u32([0, 1, 2, 3, u32::MAX][next(5)]);
            }
            let mut record = message.0.split_off(4);
            for _ in 0..next(4) {
                let at = next(record.len());
                record[at] = next(256) as u8;
            }
            record.truncate(record.len() - next(40));
            if let Some(call::Answer { message: reply, .. }) = call::answer(&server, client, &record) {
                rpc::read_reply(&mut Reader::new(&reply.0[4..])).unwrap();
                assert!(reply.0.len() < rpc::MAX_RECORD);
            }
        }
    };
    std::thread::spawn(move || {
        super::identity::own_thread().unwrap();
        work();
    })
    .join()
    .unwrap();
    assert_eq!(fs::read_dir(base.path().join("export")).unwrap().count(), 1, "read-only stayed so");
}

/// A user's SETATTR and CREATE, and what is left of them on the server.
#[test]
fn x6_whoever_owns_a_file_is_not_root_for_it() {
    let base = base();
    let export = base.path().join("export");
    fs::set_permissions(&export, fs::Permissions::from_mode(0o777)).unwrap();
    let user = Credentials { uid: 1000, gid: 1000, groups: vec![] };
    let evil = SetAttributes { size: Some(10), uid: Some(0), gid: Some(0), mode: Some(0o4755), ..Default::default() };
    for (options, owner) in [("", 1000), ("all_squash", 65_534)] {
        let (remote, dir) = mount(base.path(), serve(base.path(), options), "").unwrap();
        let name = format!("file{options}");
        create(&remote, &dir, name.as_bytes(), &user).unwrap();
        let file = lookup(&remote, &dir, name.as_bytes()).unwrap();
        let setattr = |wanted: &SetAttributes| {
            let done = remote.call(procedure::SETATTR, &user, |arguments| {
                wanted.write(arguments.opaque(&file));
                arguments.bool(false);
            });
            done.map(drop)
        };
        let seen = |name: &str| {
            let there = fs::metadata(export.join(name)).unwrap();
            (there.uid(), there.gid(), there.mode() & 0o7777)
        };
        for mode in [0o600, 0] {
            setattr(&SetAttributes { mode: Some(mode), ..Default::default() }).unwrap();
            assert_eq!(setattr(&evil), Err(libc::EPERM), "{options} {mode:o}");
            assert_eq!(seen(&name), (owner, owner, mode));
        }
        // What an owner may do with what it has open goes on, with its own rights.
        setattr(&SetAttributes { size: Some(5), ..Default::default() }).unwrap();
        let write = |arguments: &mut Writer| {
            arguments.opaque(&file).u64(0).u32(1).u32(0).opaque(b"x");
        };
        remote.call(procedure::WRITE, &user, write).unwrap();
        // A new file of mode 0 with a size.
        let made = format!("made{options}");
        let how = |arguments: &mut Writer| {
            SetAttributes { mode: Some(0), ..evil.clone() }
                .write(arguments.opaque(&dir).opaque(made.as_bytes()).u32(0));
        };
        assert_eq!(remote.call(procedure::CREATE, &user, how).map(drop), Err(libc::EPERM));
        assert_eq!(seen(&made), (owner, owner, 0));
    }
}

/// A disk that turns out to be full when the kernel writes back: the fsync of a SETATTR hears of it, and is the only
/// one that does.
#[test]
fn v4_what_one_calls_fsync_loses_the_next_commit_does_not_call_durable() {
    use nix::mount::{MsFlags, mount as mount_system};
    use nix::sched::{CloneFlags, unshare};
    const MIB: usize = 1 << 20;
    let run = |program: &str, arguments: &[&std::ffi::OsStr]| {
        assert!(std::process::Command::new(program).args(arguments).status().unwrap().success(), "{program}");
    };
    let test = move || {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount_system(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let base = base();
        let (small, export) = (base.path().join("small"), base.path().join("export"));
        fs::create_dir(&small).unwrap();
        mount_system(Some("small"), &small, Some("tmpfs"), MsFlags::empty(), Some("size=16m")).unwrap();
        let image = small.join("image");
        fs::File::create(&image).unwrap().set_len(64 * MIB as u64).unwrap();
        // No journal: one that cannot be written ends all writing.
        let plain = ["-q", "-N", "64", "-O", "^has_journal", "-E", "lazy_itable_init=0"].map(std::ffi::OsStr::new);
        run("mkfs.ext4", &[&plain[..], &[image.as_os_str()]].concat());
        run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_os_str(), export.as_os_str()]);
        let (remote, dir) = mount(base.path(), serve(base.path(), "no_root_squash"), "").unwrap();
        create(&remote, &dir, b"file", &root()).unwrap();
        let file = lookup(&remote, &dir, b"file").unwrap();
        let verifiers: Vec<u64> = (0..30)
            .map(|number| {
                let reply = remote.call(procedure::WRITE, &root(), |arguments| {
                    arguments.opaque(&file).u64(number * MIB as u64).u32(MIB as u32).u32(0).opaque(&[7; MIB]);
                });
                let read = |reader: &mut Reader<'_>| {
                    Attributes::read_weak(reader)?;
                    let _count_and_how = (reader.u32()?, reader.u32()?);
                    reader.u64()
                };
                reply.unwrap().read(read).unwrap()
            })
            .collect();
        let changed = remote.call(procedure::SETATTR, &root(), |arguments| {
            SetAttributes { mode: Some(0o600), ..Default::default() }.write(arguments.opaque(&file));
            arguments.bool(false);
        });
        assert!(changed.is_err(), "the disk is full");
        let committed = remote.call(procedure::COMMIT, &root(), |arguments| {
            arguments.opaque(&file).u64(0).u32(0);
        });
        // Either it says that it failed, or that what was written must be sent again.
        let committed = committed.and_then(|reply| {
            reply.read(|reader| {
                Attributes::read_weak(reader)?;
                reader.u64()
            })
        });
        assert!(committed.is_err() || verifiers.iter().all(|verifier| committed != Ok(*verifier)), "{committed:?}");
    };
    std::thread::spawn(test).join().unwrap();
}
