//! `mainstay store check|export|restore`: a store's file while no server runs on it.
//!
//! An export is lines of JSON: first what it is, then a row each, last how many there were and what is missing.
//!
//! ```text
//! {"mainstay":"store export","version":1,"cluster":"…","revision":1234}
//! {"key":"/core/pods/default/web-0","revision":1230,"checksum":"…","value":"{\"kind\":…"}
//! {"rows":1,"damaged":[],"problems":[]}
//! ```
//!
//! Where a key or a value is not UTF-8, it is `keyBase64` or `valueBase64`. Rows that are encrypted are exported as
//! they are: who restores them needs the same keys.

use std::fs::{self, File};
use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use mainstay_store::{
    ClusterId, CommitError, Encoded, Entry, Etcd, Examination, Expect, Op, OpenError, Options, RestoreError, Revision,
    SEALED_PREFIX, Store, Txn, row_checksum,
};
use serde::{Deserialize, Serialize};

use crate::api::codec;
use crate::identity::{BEHIND, Noted, STORE, set_aside};
use crate::start::StartError;

const TITLE: &str = "store export";
const VERSION: u32 = 1;
/// A restored store goes on so far beyond every revision that is known: what was written after the export was seen by
/// somebody, and its revisions must not be given out again (A3). As much as etcd's own tools are told to leave.
const LEAP: u64 = 1_000_000_000;

/// Why a store could not be looked at, saved or brought back.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// Opening it failed.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The data folder is in use, or not to be used.
    #[error(transparent)]
    Folder(#[from] StartError),
    /// The export could not be read or written.
    #[error("the export: {0}")]
    File(#[from] io::Error),
    /// A line of an export is not what was written.
    #[error("line {line} of the export: {why}")]
    Line { line: usize, why: String },
    /// The export is of another cluster than the folder.
    #[error(
        "the export is of cluster {found}, and {path} holds cluster {expected}; restore it into a folder of its own"
    )]
    OtherCluster { path: PathBuf, found: ClusterId, expected: ClusterId },
    /// There is a store already.
    #[error("{0} has a store already; --replace sets that one aside")]
    Exists(PathBuf),
    /// There is something in etcd already.
    #[error("etcd holds a cluster already; choose another --etcd-prefix, or remove what is there")]
    NotEmpty,
    /// etcd did not take it.
    #[error("etcd: {0}")]
    Commit(#[from] CommitError),
    /// The new store could not be made.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}

/// What was found in a store's file.
#[derive(Clone, Debug)]
pub struct Report {
    /// The file.
    pub file: String,
    /// Whose it is.
    pub cluster: Option<String>,
    /// Its revision.
    pub revision: u64,
    /// How many rows are sound.
    pub rows: usize,
    /// How many of those are encrypted: they are exported as they are stored.
    pub encrypted: usize,
    /// How many rows are damaged.
    pub damaged_rows: usize,
    /// Their keys, the first thousand.
    pub damaged: Vec<String>,
    /// What else is wrong.
    pub problems: Vec<String>,
}

impl Report {
    /// Whether all is well.
    pub fn is_sound(&self) -> bool {
        self.damaged_rows == 0 && self.problems.is_empty()
    }

    fn of(found: &Examination) -> Self {
        Self {
            file: found.file.clone(),
            cluster: found.cluster.map(|cluster| cluster.to_string()),
            revision: found.revision.0,
            rows: found.entries.len(),
            encrypted: found.entries.iter().filter(|entry| entry.value.starts_with(SEALED_PREFIX)).count(),
            damaged_rows: found.damage.keys,
            damaged: found.damage.named.iter().map(|key| String::from_utf8_lossy(key).into_owned()).collect(),
            problems: found.damage.whole.clone(),
        }
    }
}

/// Looks at every page and every row of the store; changes nothing.
///
/// # Errors
/// When it is in use, or cannot be read at all.
pub fn check(data_dir: &Path) -> Result<Report, OfflineError> {
    let found = mainstay_store::examine(&data_dir.join(STORE))?;
    let mut report = Report::of(&found);
    if let Some(noted) = Noted::read(data_dir)? {
        if found.cluster.is_some_and(|cluster| cluster != noted.cluster) {
            report.problems.push(format!("it is not the store of cluster {}, which this folder holds", noted.cluster));
        }
        if found.revision < noted.revision {
            report.problems.push(format!("it is an older copy: it was at revision {} before", noted.revision));
        }
    }
    Ok(report)
}

#[derive(Serialize, Deserialize)]
struct Head {
    mainstay: String,
    version: u32,
    cluster: Option<String>,
    revision: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    revision: u64,
    checksum: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Tail {
    rows: usize,
    damaged: Vec<String>,
    problems: Vec<String>,
}

impl Row {
    fn of(entry: &Entry) -> Self {
        let text = |bytes: &Bytes| std::str::from_utf8(bytes).ok().map(str::to_owned);
        let (key, value) = (text(&entry.key), text(&entry.value));
        Self {
            key_base64: key.is_none().then(|| STANDARD.encode(&entry.key)),
            value_base64: value.is_none().then(|| STANDARD.encode(&entry.value)),
            key,
            revision: entry.revision.0,
            checksum: format!("{:016x}", row_checksum(entry)),
            value,
        }
    }

    fn entry(self) -> Result<Entry, String> {
        let bytes = |text: Option<String>, base64: Option<String>| match (text, base64) {
            (Some(text), None) => Ok(Bytes::from(text)),
            (None, Some(base64)) => STANDARD.decode(base64).map(Bytes::from).map_err(|error| error.to_string()),
            _ => Err("it has no key or no value".to_owned()),
        };
        let entry = Entry {
            key: bytes(self.key, self.key_base64)?,
            value: bytes(self.value, self.value_base64)?,
            revision: Revision(self.revision),
        };
        if format!("{:016x}", row_checksum(&entry)) == self.checksum {
            Ok(entry)
        } else {
            Err(format!("the row of key {} does not match its checksum", String::from_utf8_lossy(&entry.key)))
        }
    }
}

/// Writes every sound row of the store; the report says what could not be saved.
///
/// # Errors
/// As [`check`]; and when the export cannot be written.
pub fn export(data_dir: &Path, out: &mut impl Write) -> Result<Report, OfflineError> {
    let found = mainstay_store::examine(&data_dir.join(STORE))?;
    let report = Report::of(&found);
    let head = Head {
        mainstay: TITLE.to_owned(),
        version: VERSION,
        cluster: report.cluster.clone(),
        revision: report.revision,
    };
    line(out, &head)?;
    for entry in &found.entries {
        line(out, &Row::of(entry))?;
    }
    line(out, &Tail { rows: report.rows, damaged: report.damaged.clone(), problems: report.problems.clone() })?;
    out.flush()?;
    Ok(report)
}

/// As [`export`], of a store in etcd: what servers keep there for themselves stays there.
///
/// # Errors
/// When etcd does not answer, holds no store or a damaged one; when the export cannot be written.
pub fn export_etcd(etcd: Etcd, out: &mut impl Write) -> Result<Report, OfflineError> {
    let store = Store::open_etcd(etcd, Options::default())?;
    let page = store.range(b"", None, usize::MAX, None).map_err(|error| OpenError::Engine(error.to_string()))?;
    let entries: Vec<&Entry> = page.entries.iter().filter(|entry| !is_servers_own(&entry.key)).collect();
    let report = Report {
        file: "etcd".to_owned(),
        cluster: store.cluster().map(|cluster| cluster.to_string()),
        revision: page.revision.0,
        rows: entries.len(),
        encrypted: 0,
        damaged_rows: 0,
        damaged: Vec::new(),
        problems: Vec::new(),
    };
    let (cluster, revision) = (report.cluster.clone(), report.revision);
    line(out, &Head { mainstay: TITLE.to_owned(), version: VERSION, cluster, revision })?;
    for entry in entries {
        line(out, &Row::of(entry))?;
    }
    line(out, &Tail { rows: report.rows, damaged: Vec::new(), problems: Vec::new() })?;
    out.flush()?;
    Ok(report)
}

/// Keys that are about the servers of a store in etcd, and about no object.
fn is_servers_own(key: &[u8]) -> bool {
    [&b"/!cluster"[..], b"/!sealed/", b"/!leader", FORWARD].iter().any(|own| key.starts_with(own))
}

/// The key that is written to have the revision go forward.
const FORWARD: &[u8] = b"/!forward";
/// Writes of that on their way at once.
const AT_ONCE: usize = 32;
/// Rows, and bytes, of one transaction of an import, unless a row alone is larger.
const ROWS: usize = 64;
const ROW_BYTES: usize = 512 << 10;

/// Puts an export into etcd, below a prefix where nothing is. Every row gets a new revision there, beyond all that the
/// export and the folder know (A3); an object says so in its resourceVersion. The folder's own store is set aside.
///
/// # Errors
/// When the export is not whole, when something is there, when etcd does not take it. What was written until then names
/// no cluster, and no server starts on it.
pub fn import(data_dir: &Path, etcd: Etcd, input: impl BufRead) -> Result<Restored, OfflineError> {
    let Export { head, entries } = read_export(input)?;
    let exported = head.cluster.as_deref().and_then(ClusterId::parse);
    let noted = Noted::read(data_dir)?;
    if let (Some(found), Some(Noted { cluster: expected, .. })) = (exported, noted)
        && found != expected
    {
        return Err(OfflineError::OtherCluster { path: data_dir.to_owned(), found, expected });
    }
    let cluster = exported
        .or(noted.map(|noted| noted.cluster))
        .ok_or_else(|| OfflineError::Line { line: 1, why: "it names no cluster".to_owned() })?;
    if let Some(sealed) = entries.iter().position(|entry| entry.value.starts_with(SEALED_PREFIX)) {
        let why =
            "it is encrypted; write it unencrypted first (the provider `identity`), etcd's rows are not".to_owned();
        return Err(OfflineError::Line { line: sealed + 2, why });
    }
    let store = Store::open_etcd(etcd, Options::default())?;
    let there = store.range(b"", None, 1, None).map_err(|error| OpenError::Engine(error.to_string()))?;
    if !there.entries.is_empty() {
        return Err(OfflineError::NotEmpty);
    }
    go_beyond(&store, Revision(head.revision.max(newest_of_folder(data_dir, noted)?)))?;
    let (mut txn, mut bytes, rows) = (Txn::default(), 0, entries.len());
    for entry in entries {
        let value = encoded(&entry.value);
        let size = entry.key.len() + value.bytes.len();
        if txn.ops.len() >= ROWS || bytes + size > ROW_BYTES {
            store.commit_blocking(std::mem::take(&mut txn))?;
            bytes = 0;
        }
        bytes += size;
        txn.expect.push((entry.key.clone(), Expect::Absent));
        txn.ops.push(Op::Put { key: entry.key, value });
    }
    // Whose it is comes last: only now it is a store.
    let owner = Bytes::from_static(b"/!cluster");
    txn.ops.push(Op::Put { key: owner, value: Encoded::plain(cluster.to_string()) });
    let revision = store.commit_blocking(txn)?.last;
    let aside = set_aside(data_dir)?;
    Noted { cluster, revision }.write(data_dir).map_err(StartError::Pki)?;
    Ok(Restored { rows, revision: revision.0, aside })
}

/// The newest revision that the folder's store can have had: as it says itself, else as far as it can have gone beyond
/// its note.
fn newest_of_folder(data_dir: &Path, noted: Option<Noted>) -> Result<u64, OfflineError> {
    let at_least = noted.map_or(0, |noted| noted.revision.0);
    let noted = noted.map_or(0, |noted| noted.revision.0.saturating_add(BEHIND));
    match mainstay_store::examine(&data_dir.join(STORE)) {
        // One that is behind its note is an older copy.
        Ok(found) if found.damage.is_none() && found.revision.0 >= at_least => Ok(found.revision.0),
        Ok(found) => Ok(found.revision.0.max(noted)),
        Err(OpenError::InUse(_)) => Err(StartError::InUse(data_dir.to_owned()).into()),
        Err(_) => Ok(noted),
    }
}

/// Writes until the revision is beyond this one.
fn go_beyond(store: &Store, least: Revision) -> Result<(), CommitError> {
    while store.revision() <= least {
        let write = || {
            let op = Op::Put { key: Bytes::from_static(FORWARD), value: Encoded::plain("") };
            store.commit_blocking(Txn { ops: vec![op], ..Txn::default() }).map(|_| ())
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(write)).collect();
            threads.into_iter().try_for_each(|thread| thread.join().unwrap_or(Err(CommitError::Closed)))
        })?;
    }
    Ok(())
}

/// A row's bytes as they are stored anew: an object's version is its new revision.
fn encoded(value: &Bytes) -> Encoded {
    let object = codec::decode(value).ok().filter(|object| object.get("metadata").is_some());
    object.and_then(|mut object| codec::encode(&mut object).ok()).unwrap_or_else(|| Encoded::plain(value.clone()))
}

fn line(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    out.write_all(b"\n")
}

/// What [`restore`] did.
#[derive(Clone, Debug)]
pub struct Restored {
    /// How many rows the new store has.
    pub rows: usize,
    /// Its revision.
    pub revision: u64,
    /// Where the store is that was there before.
    pub aside: Option<PathBuf>,
}

struct Export {
    head: Head,
    entries: Vec<Entry>,
}

fn read_export(input: impl BufRead) -> Result<Export, OfflineError> {
    let refused = |line: usize, why: String| OfflineError::Line { line: line + 1, why };
    let mut lines = input.lines().enumerate();
    let (_, first) = lines.next().ok_or_else(|| refused(0, "it is empty".to_owned()))?;
    let head: Head = serde_json::from_str(&first?).map_err(|error| refused(0, error.to_string()))?;
    if head.mainstay != TITLE || head.version != VERSION {
        return Err(refused(0, format!("this is no {TITLE} of version {VERSION}")));
    }
    let mut entries = Vec::new();
    for (number, line) in lines {
        let line = line?;
        if let Ok(tail) = serde_json::from_str::<Tail>(&line) {
            if tail.rows != entries.len() {
                return Err(refused(number, format!("{} rows were written, {} are here", tail.rows, entries.len())));
            }
            return Ok(Export { head, entries });
        }
        let row: Row = serde_json::from_str(&line).map_err(|error| refused(number, error.to_string()))?;
        entries.push(row.entry().map_err(|why| refused(number, why))?);
    }
    Err(refused(entries.len() + 1, "the end is missing".to_owned()))
}

/// Makes a store of an export. A store that is there is set aside if `replace` says so. The revision only goes
/// forward (A3). `id` is for a cluster that has no name yet: random bits.
///
/// # Errors
/// When the export is not whole, is of another cluster than the folder, or there is a store and `replace` is not set.
pub fn restore(data_dir: &Path, input: impl BufRead, replace: bool, id: u128) -> Result<Restored, OfflineError> {
    let Export { head, entries } = read_export(input)?;
    let exported = head.cluster.as_deref().and_then(ClusterId::parse);
    crate::pki::make_private_folder(data_dir).map_err(StartError::Pki)?;
    let noted = Noted::read(data_dir)?;
    if let (Some(found), Some(Noted { cluster: expected, .. })) = (exported, noted)
        && found != expected
    {
        return Err(OfflineError::OtherCluster { path: data_dir.to_owned(), found, expected });
    }
    let path = data_dir.join(STORE);
    let there = fs::metadata(path.join(mainstay_store::FILE)).is_ok_and(|file| file.len() > 0);
    if there && !replace {
        return Err(OfflineError::Exists(path));
    }
    let before = match mainstay_store::examine(&path) {
        Ok(found) => found.revision.0,
        Err(OpenError::InUse(_)) => return Err(StartError::InUse(data_dir.to_owned()).into()),
        Err(_) => 0,
    };
    let highest = head.revision.max(before).max(noted.map_or(0, |noted| noted.revision.0));
    let revision = Revision(highest.saturating_add(LEAP));
    let cluster = noted.map(|noted| noted.cluster).or(exported).or_else(|| ClusterId::new(id));
    let fresh = data_dir.join("store.restoring");
    match fs::remove_dir_all(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    mainstay_store::restore(&fresh, cluster, revision, &entries)?;
    let aside = set_aside(data_dir)?;
    if aside.is_none() && path.exists() {
        // An empty folder that a start left.
        fs::remove_dir_all(&path)?;
    }
    fs::rename(&fresh, &path)?;
    File::open(data_dir)?.sync_all()?;
    if let Some(cluster) = cluster {
        Noted { cluster, revision }.write(data_dir).map_err(StartError::Pki)?;
    }
    Ok(Restored { rows: entries.len(), revision: revision.0, aside })
}
