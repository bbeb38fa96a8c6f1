//! Names that go while their file is open here: the file is put aside under another name, as a server that knows of no
//! open files would remove it, and removed when it is closed.

use super::super::protocol::{Attributes, kind, procedure};
use super::super::rpc::Credentials;
use super::files::{Done, Files, settled};
use super::nodes::Hidden;
use super::remote::{Calls, Errno, LOST};
use super::wire::{Answer, Request, Words, op};

/// What the names of files begin with that were removed while open.
const HIDDEN: &str = ".nfs";

/// A file under another name, until it is known what becomes of its own.
pub struct Aside {
    handle: Vec<u8>,
    hidden: Hidden,
}

impl<R: Calls> Files<R> {
    /// What has a name.
    pub(super) fn is_there(
        &self,
        dir: &[u8],
        name: &[u8],
        who: &Credentials,
    ) -> Result<Option<(Vec<u8>, Attributes)>, Errno> {
        match self.find(dir, name, who) {
            Err(libc::ENOENT) => Ok(None),
            found => found.map(Some),
        }
    }

    /// Puts aside what has a name and was found there, if it is a file that is open here. A folder needs none of that:
    /// nobody can remove one, or rename another over it, that has anything in it (V4).
    pub(super) fn put_aside(
        &self,
        dir: &[u8],
        name: &[u8],
        there: Option<(Vec<u8>, Attributes)>,
        who: &Credentials,
    ) -> Result<Option<Aside>, Errno> {
        let Some((handle, _)) = there.filter(|there| self.goes_aside(there)) else { return Ok(None) };
        let hash = handle
            .iter()
            .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        let hidden = format!("{HIDDEN}{hash:016x}{:08x}", std::process::id()).into_bytes();
        self.move_name(dir, name, dir, &hidden, who)?;
        Ok(Some(Aside { handle, hidden: Hidden { dir: dir.to_vec(), name: hidden, who: who.clone() } }))
    }

    /// Whether it is a file, or the like, that is open here.
    fn goes_aside(&self, (handle, attributes): &(Vec<u8>, Attributes)) -> bool {
        let is_open = self.nodes().open_by_handle(handle).is_some_and(|node| node.hidden.is_none());
        is_open && attributes.kind != kind::DIRECTORY
    }

    /// Its name is gone: it goes when it is closed.
    pub(super) fn is_removed(&self, aside: Aside) -> Result<(), Errno> {
        let hidden = aside.hidden;
        if let Some(node) = self.nodes().open_by_handle(&aside.handle) {
            node.hidden = Some(hidden);
            return Ok(());
        }
        // Closed meanwhile.
        self.remove(procedure::REMOVE, &hidden.dir, &hidden.name, &hidden.who).map(drop)
    }

    /// Gives it its name back, unless something else has that by now: then it goes when it is closed. Where the server
    /// does not say, it stays under its other name, so that nothing is lost.
    fn bring_back(&self, aside: Aside, name: &[u8]) {
        let Hidden { dir, name: hidden, who } = &aside.hidden;
        let linked = self.remote.call(procedure::LINK, who, |arguments| {
            arguments.opaque(&aside.handle).opaque(dir).opaque(name);
        });
        let _ = match linked {
            Ok(_) => self.remove(procedure::REMOVE, dir, hidden, who).map(drop),
            Err(libc::EEXIST) => self.is_removed(aside),
            Err(errno) => Err(errno),
        };
    }

    pub(super) fn rename(&self, request: &Request, body: &mut Words<'_>, who: &Credentials) -> Done {
        let to = body.u64().ok_or(libc::EINVAL)?;
        if request.operation == op::RENAME2 {
            let flags = body.u64().ok_or(libc::EINVAL)?;
            if flags as u32 != 0 {
                return Err(libc::EINVAL);
            }
        }
        let (from_name, to_name) = (body.name().ok_or(libc::EINVAL)?, body.name().ok_or(libc::EINVAL)?);
        let (from, to) = (self.handle(request.node)?, self.handle(to)?);
        let is_same = (from.as_slice(), from_name) == (to.as_slice(), to_name);
        let there = self.is_there(&to, to_name, who)?;
        if !is_same && there.as_ref().is_some_and(|there| self.goes_aside(there)) {
            // What the server would refuse is refused before: with the name aside it would not.
            match self.is_there(&from, from_name, who)? {
                None => return Err(libc::ENOENT),
                Some((_, attributes)) if attributes.kind == kind::DIRECTORY => return Err(libc::ENOTDIR),
                Some(_) => {}
            }
        }
        let before = there.as_ref().map(|(handle, _)| handle.clone());
        let aside = if is_same { None } else { self.put_aside(&to, to_name, there, who)? };
        let renamed = settled(
            || self.move_name(&from, from_name, &to, to_name, who),
            || {
                // What had the old name was there a moment ago: the kernel has looked.
                let (Ok(from), Ok(to)) = (self.is_there(&from, from_name, who), self.is_there(&to, to_name, who))
                else {
                    return Some(Err(LOST));
                };
                let is_new = to.is_some_and(|(handle, _)| before.as_ref() != Some(&handle));
                match from {
                    None if is_new => Some(Ok(())),
                    None => Some(Err(LOST)),
                    Some(_) => None,
                }
            },
        );
        match (aside, &renamed) {
            (Some(aside), Ok(())) => self.is_removed(aside)?,
            (Some(aside), Err(_)) => self.bring_back(aside, to_name),
            (None, _) => {}
        }
        renamed.map(|()| Answer::default())
    }

    /// RENAME.
    fn move_name(
        &self,
        from: &[u8],
        from_name: &[u8],
        to: &[u8],
        to_name: &[u8],
        who: &Credentials,
    ) -> Result<(), Errno> {
        let arguments = |arguments: &mut crate::xdr::Writer| {
            arguments.opaque(from).opaque(from_name).opaque(to).opaque(to_name);
        };
        self.remote.call(procedure::RENAME, who, arguments).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::super::nodes::ROOT;
    use super::super::remote::{Remote, Reply, Source};
    use super::*;
    use crate::server;
    use crate::xdr::Writer;

    /// A server on loopback, and its export's handle.
    fn serve(base: &Path) -> (Remote, Vec<u8>) {
        let export = base.join("export");
        fs::create_dir(&export).unwrap();
        let config = server::ServerConfig {
            exports: vec![format!("{}:no_root_squash", export.display()).parse().unwrap()],
            listen: "127.0.0.1:0".parse().unwrap(),
            portmapper: false,
            state_dir: base.join("state"),
        };
        let listening = server::listen(&config).unwrap();
        let port = Some(listening.address.port());
        std::thread::spawn(move || listening.serve());
        let path = export.display().to_string();
        let source = Source { server: "127.0.0.1".into(), path, port, mount_port: port, timeout_ms: 5000 };
        super::super::remote::open(&source).unwrap()
    }

    /// A mount without a kernel.
    fn mount(base: &Path) -> Files {
        let (remote, root) = serve(base);
        Files::new(remote, root)
    }

    fn ask<R: Calls>(
        files: &Files<R>,
        operation: u32,
        node: u64,
        body: impl FnOnce(&mut Answer) -> &mut Answer,
    ) -> (Request, Done) {
        let mut words = Answer::default();
        body(&mut words);
        let body = words.body().to_vec();
        let request = Request { operation, unique: 1, node, uid: 0, gid: 0, pid: 0, body };
        let done = files.execute(&request);
        (request, done)
    }

    fn lookup<R: Calls>(files: &Files<R>, name: &str) -> u64 {
        let (_, done) = ask(files, op::LOOKUP, ROOT, |body| body.raw(format!("{name}\0").as_bytes()));
        Words(done.unwrap().body()).u64().unwrap()
    }

    fn open(files: &Files, operation: u32, node: u64) -> (Request, Answer) {
        let (request, done) = ask(files, operation, node, |body| body.u32(0).u32(0));
        (request, done.unwrap())
    }

    fn rename(files: &Files, from: &str, to: &str) -> Result<(), Errno> {
        let names = format!("{from}\0{to}\0");
        ask(files, op::RENAME, ROOT, |body| body.u64(ROOT).raw(names.as_bytes())).1.map(drop)
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = entries.collect();
        names.sort();
        names
    }

    #[test]
    fn v4_nothing_is_renamed_over_a_folder_with_content_that_is_open_and_a_failure_gives_names_back() {
        let base = tempfile::tempdir().unwrap();
        let files = mount(base.path());
        let export = base.path().join("export");
        fs::create_dir(export.join("a")).unwrap();
        fs::create_dir(export.join("b")).unwrap();
        fs::write(export.join("b/precious"), "x").unwrap();
        fs::write(export.join("file"), "kept").unwrap();
        open(&files, op::OPENDIR, lookup(&files, "b"));
        open(&files, op::OPEN, lookup(&files, "file"));
        assert_eq!(rename(&files, "a", "b"), Err(libc::ENOTEMPTY));
        assert_eq!(rename(&files, "a", "file"), Err(libc::ENOTDIR));
        assert_eq!(rename(&files, "missing", "file"), Err(libc::ENOENT));
        assert_eq!(names(&export), ["a", "b", "file"]);
        assert!(export.join("b/precious").exists());
        assert_eq!(fs::read_to_string(export.join("file")).unwrap(), "kept");
    }

    #[test]
    fn x4_what_a_killed_process_opened_is_closed_and_goes_when_it_was_removed() {
        let base = tempfile::tempdir().unwrap();
        let files = mount(base.path());
        let export = base.path().join("export");
        fs::write(export.join("file"), "x").unwrap();
        fs::write(export.join("other"), "y").unwrap();
        let node = lookup(&files, "file");
        let (request, answer) = open(&files, op::OPEN, node);
        ask(&files, op::UNLINK, ROOT, |body| body.raw(b"file\0")).1.unwrap();
        assert_eq!(names(&export).len(), 2, "it is open");
        // Renamed over while open: the same.
        let other = lookup(&files, "other");
        let (second, second_answer) = open(&files, op::OPEN, other);
        fs::write(export.join("new"), "z").unwrap();
        rename(&files, "new", "other").unwrap();
        assert_eq!(fs::read_to_string(export.join("other")).unwrap(), "z");
        assert_eq!(names(&export).len(), 3);
        files.undo(&request, &answer);
        files.undo(&second, &second_answer);
        assert_eq!(names(&export), ["other"]);
        // One that was made and opened: both are taken back.
        let (request, done) = ask(&files, op::CREATE, ROOT, |body| body.u32(0).u32(0o644).u32(0).u32(0).raw(b"made\0"));
        let answer = done.unwrap();
        let made = Words(answer.body()).u64().unwrap();
        files.undo(&request, &answer);
        assert!(files.nodes().get(made).is_none() && export.join("made").exists());
        let (request, done) = ask(&files, op::LOOKUP, ROOT, |body| body.raw(b"made\0"));
        let answer = done.unwrap();
        files.undo(&request, &answer);
        assert!(files.nodes().get(Words(answer.body()).u64().unwrap()).is_none());
    }

    /// A server that carries out what it is asked, and ends before it answers: once for each procedure that must not be
    /// carried out twice.
    struct Dying {
        server: Remote,
        dies: std::sync::Mutex<Vec<u32>>,
    }

    impl Calls for Dying {
        fn call(&self, number: u32, who: &Credentials, arguments: impl Fn(&mut Writer)) -> Result<Reply, Errno> {
            let done = self.server.call(number, who, arguments);
            let mut dies = self.dies.lock().unwrap();
            match dies.iter().position(|dies| *dies == number) {
                Some(position) => {
                    dies.remove(position);
                    Err(LOST)
                }
                None => done,
            }
        }
    }

    #[test]
    fn v4_a_name_change_whose_answer_was_lost_is_answered_with_what_became_of_it() {
        let base = tempfile::tempdir().unwrap();
        let (server, root) = serve(base.path());
        let export = base.path().join("export");
        let dies = [procedure::RENAME, procedure::RENAME, procedure::REMOVE, procedure::RMDIR, procedure::LINK];
        let dying = Dying { server, dies: std::sync::Mutex::new(dies.to_vec()) };
        let dies = |files: &Files<Dying>| files.remote.dies.lock().unwrap().len();
        let files = Files::new(dying, root);
        fs::write(export.join("a"), "moved").unwrap();
        fs::write(export.join("b"), "replaced").unwrap();
        fs::create_dir(export.join("dir")).unwrap();
        let two = |operation: u32| ask(&files, operation, ROOT, |body| body.u64(ROOT).raw(b"a\0b\0")).1;
        two(op::RENAME).unwrap();
        assert_eq!((names(&export), dies(&files)), (vec!["b".to_owned(), "dir".to_owned()], 4));
        assert_eq!(fs::read_to_string(export.join("b")).unwrap(), "moved");
        // What is not there is lost all the same: the second is looked for and not found.
        assert_eq!(two(op::RENAME).map(drop), Err(libc::EIO));
        let node = lookup(&files, "b");
        ask(&files, op::LINK, ROOT, |body| body.u64(node).raw(b"c\0")).1.unwrap();
        ask(&files, op::UNLINK, ROOT, |body| body.raw(b"b\0")).1.unwrap();
        ask(&files, op::RMDIR, ROOT, |body| body.raw(b"dir\0")).1.unwrap();
        assert_eq!((names(&export), dies(&files)), (vec!["c".to_owned()], 0));
    }
}
