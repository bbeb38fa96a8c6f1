//! Keys that all servers of a cluster share, in the store and sealed: the CA's, that of service account tokens, and the
//! front proxy's CA's.
//!
//! ```text
//! /!sealed/<file>      nonce (12 bytes) | AES-256-GCM of the file, with the key's name and the cluster's as context
//! <data>/seal.key      32 bytes in hexadecimal digits, 0600: the same on every server, brought there by a person
//! ```
//!
//! The first server makes the seal (`seal.key.first` until its keys are the store's) and the keys; the others are given
//! the seal. Whoever has the store alone (a member of etcd, a backup of it) has none of these keys. A server's files in
//! `<data>/pki` are what was unsealed.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use mainstay_store::{CommitError, Encoded, Expect, Op, Store, Txn};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::api::Env;
use crate::pki::{PkiError, write_private};
use crate::presence;
use crate::start::StartError;

/// The seal's file in the data folder.
pub const SEAL: &str = "seal.key";
/// What begins a seal that is not yet the cluster's.
const NEW: &str = "first";
/// What ends the name of a seal that was set aside.
const ASIDE: &str = ".before";
/// What is shared: where in the store, and the files; the CA's certificate goes with its key.
pub struct Shared {
    prefix: &'static str,
    files: &'static [&'static str],
}

/// The cluster's CA, and the key of service account tokens.
pub const KEYS: Shared = Shared { prefix: "", files: &["ca.key", "ca.crt", "sa.key"] };
/// The CA by which extension servers know the cluster's servers: every one of them is believed.
pub const FRONT_PROXY: Shared = Shared { prefix: "front-proxy-", files: &["ca.key", "ca.crt"] };
const SEAL_BYTES: usize = 32;

fn row(file: &str) -> Bytes {
    Bytes::from(format!("/!sealed/{file}"))
}

fn context(cluster: &str, file: &str) -> String {
    format!("mainstay {cluster} {file}")
}

/// Brings the shared keys of the store into the folder of keys; whether there were any. Those of the folder that differ
/// are replaced: the cluster's are the store's.
///
/// # Errors
/// [`StartError::NoSeal`] where they are sealed and the seal is not there, [`StartError::OtherSeal`] where another one
/// is.
pub fn unseal(store: &Store, seal: &Path, pki: &Path, shared: &Shared) -> Result<bool, StartError> {
    let cluster = store.cluster().map(|cluster| cluster.to_string()).unwrap_or_default();
    let mut plain = Vec::new();
    let Some(first) = shared.files.first().and_then(|file| store.get(&row(&shared.name(file)))) else {
        return Ok(false);
    };
    let key = match read_seal(seal)? {
        Some(key) => key,
        // Made by a server that ended before it could say so, or whose seal came second.
        None => {
            let name = shared.name(shared.files.first().copied().unwrap_or_default());
            let own = read_seal(&new(seal))?.filter(|key| open(key, &context(&cluster, &name), &first.value).is_some());
            let Some(key) = own else {
                remove(&new(seal))?;
                return Err(StartError::NoSeal(seal.to_owned()));
            };
            take_up(seal)?;
            key
        }
    };
    for file in shared.files {
        let name = shared.name(file);
        let sealed = store.get(&row(&name)).ok_or(PkiError::Pem)?;
        let opened = open(&key, &context(&cluster, &name), &sealed.value);
        plain.push(opened.ok_or_else(|| StartError::OtherSeal(seal.to_owned()))?);
    }
    for (file, plain) in shared.files.iter().zip(plain) {
        write_private(&pki.join(file), &plain)?;
    }
    Ok(true)
}

/// Puts this server's keys into the store, where there are none: of several servers that begin at once the first one's
/// count, and only its seal becomes one. The others are to unseal what is there.
///
/// # Errors
/// [`StartError::Silent`] when etcd does not answer.
pub async fn seal(store: &Store, env: &Env, seal: &Path, pki: &Path, shared: &Shared) -> Result<(), StartError> {
    let cluster = store.cluster().map(|cluster| cluster.to_string()).unwrap_or_default();
    let (key, is_new) = match read_seal(seal)? {
        Some(key) => (key, false),
        None => (read_seal(&new(seal))?.map_or_else(|| make_seal(env, &new(seal)), Ok)?, true),
    };
    let mut txn = Txn::default();
    for file in shared.files {
        let (path, name) = (pki.join(file), shared.name(file));
        let plain = std::fs::read(&path).map_err(|source| PkiError::File { path, source })?;
        let mut nonce = [0; NONCE_LEN];
        (env.random)(&mut nonce);
        let sealed = close(&key, nonce, &context(&cluster, &name), plain).ok_or(PkiError::Pem)?;
        txn.expect.push((row(&name), Expect::Absent));
        txn.ops.push(Op::Put { key: row(&name), value: Encoded::plain(sealed) });
    }
    match store.commit(txn).await {
        Ok(_) if is_new => take_up(seal),
        Ok(_) | Err(CommitError::Expectation { .. }) => Ok(()),
        Err(CommitError::Unreached(why)) => Err(StartError::Silent(why)),
        Err(error) => Err(StartError::Bootstrap(error.to_string())),
    }
}

/// Takes away the keys that are sealed, where the seal is lost or is another one: the folder's can be sealed anew then.
/// Nothing is done where they can be unsealed.
///
/// # Errors
/// [`StartError::KeysInUse`] where another server runs, [`StartError::Silent`] when etcd does not answer.
pub async fn forget_lost(store: &Store, seal: &Path, pki: &Path) -> Result<(), StartError> {
    let is_lost = matches!(unseal(store, seal, pki, &KEYS), Err(StartError::NoSeal(_) | StartError::OtherSeal(_)));
    if !is_lost {
        return Ok(());
    }
    if presence::is_another_alive(store).await {
        return Err(StartError::KeysInUse);
    }
    let mut txn = Txn::default();
    for shared in [&KEYS, &FRONT_PROXY] {
        for key in shared.files.iter().map(|file| row(&shared.name(file))) {
            if let Some(entry) = store.get(&key) {
                txn.expect.push((key.clone(), Expect::Unchanged(entry.revision)));
                txn.ops.push(Op::Delete { key, last: Encoded::plain("") });
            }
        }
    }
    match store.commit(txn).await {
        // Whoever is quicker: what is there is tried again.
        Ok(_) | Err(CommitError::Expectation { .. }) => {}
        Err(CommitError::Unreached(why)) => return Err(StartError::Silent(why)),
        Err(error) => return Err(StartError::Bootstrap(error.to_string())),
    }
    // One that opens nothing is in the way of the new one, and may be another cluster's.
    remove(&new(seal))?;
    let mut aside = seal.file_name().unwrap_or_default().to_owned();
    aside.push(ASIDE);
    match std::fs::rename(seal, seal.with_file_name(aside)) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(PkiError::File { path: seal.to_owned(), source }.into())
        }
        _ => Ok(()),
    }
}

impl Shared {
    fn name(&self, file: &str) -> String {
        format!("{}{file}", self.prefix)
    }
}

/// A seal that nothing is sealed with yet.
fn new(seal: &Path) -> PathBuf {
    let mut name = seal.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(NEW);
    seal.with_file_name(name)
}

fn make_seal(env: &Env, path: &Path) -> Result<[u8; SEAL_BYTES], StartError> {
    let mut bytes = [0; SEAL_BYTES];
    (env.random)(&mut bytes);
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    write_private(path, format!("{hex}\n").as_bytes())?;
    Ok(bytes)
}

/// The new seal is the cluster's.
fn take_up(seal: &Path) -> Result<(), StartError> {
    let failed = |source| PkiError::File { path: seal.to_owned(), source };
    std::fs::rename(new(seal), seal).map_err(failed)?;
    let folder = seal.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    Ok(())
}

fn remove(path: &Path) -> Result<(), StartError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(PkiError::File { path: path.to_owned(), source }.into())
        }
        _ => Ok(()),
    }
}

fn read_seal(path: &Path) -> Result<Option<[u8; SEAL_BYTES]>, StartError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(PkiError::File { path: path.to_owned(), source }.into()),
    };
    let damaged = || StartError::OtherSeal(PathBuf::from(path));
    let digits = text.trim_end().as_bytes();
    if digits.len() != 2 * SEAL_BYTES {
        return Err(damaged());
    }
    let mut key = [0; SEAL_BYTES];
    for (byte, digits) in key.iter_mut().zip(digits.chunks(2)) {
        let digits = std::str::from_utf8(digits).map_err(|_| damaged())?;
        *byte = u8::from_str_radix(digits, 16).map_err(|_| damaged())?;
    }
    Ok(Some(key))
}

fn close(key: &[u8; SEAL_BYTES], nonce: [u8; NONCE_LEN], context: &str, mut plain: Vec<u8>) -> Option<Vec<u8>> {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).ok()?);
    let nonce_bytes = nonce;
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context.as_bytes()), &mut plain)
        .ok()?;
    Some([&nonce_bytes[..], &plain].concat())
}

fn open(key: &[u8; SEAL_BYTES], context: &str, sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, rest) = sealed.split_at_checked(NONCE_LEN)?;
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).ok()?);
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let mut bytes = rest.to_vec();
    key.open_in_place(nonce, Aad::from(context.as_bytes()), &mut bytes).ok().map(|plain| plain.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a11_a_seal_that_is_lost_is_made_anew_only_when_a_person_says_so_and_nobody_uses_the_keys() {
        use crate::api::{codec, key};
        use mainstay_api::kinds;
        let folder = tempfile::tempdir().unwrap();
        let (path, pki) = (folder.path().join(SEAL), folder.path().join("pki"));
        let store = crate::identity::open_store(folder.path(), &Default::default(), 1, None, None).unwrap();
        let env = crate::system_env();
        crate::pki::Pki::open(&pki, (env.now)()).unwrap().token_key().unwrap();
        seal(&store, &env, &path, &pki, &KEYS).await.unwrap();
        forget_lost(&store, &path, &pki).await.unwrap();
        assert!(unseal(&store, &path, &pki, &KEYS).unwrap(), "what can be unsealed stays");
        let (own, ca) = (std::fs::read(&path).unwrap(), std::fs::read(pki.join("ca.key")).unwrap());
        std::fs::write(&path, "00".repeat(SEAL_BYTES)).unwrap();
        assert!(matches!(unseal(&store, &path, &pki, &KEYS), Err(StartError::OtherSeal(_))));

        let lease = |number: u32| {
            let mut lease = serde_json::json!({ "metadata": { "name": "mainstay-server-a" }, "spec": number });
            let key = key::object(&kinds::LEASE, "kube-system", "mainstay-server-a");
            let op = Op::Put { key, value: codec::encode(&mut lease).unwrap() };
            store.commit_blocking(Txn { expect: Vec::new(), ops: vec![op] }).unwrap();
        };
        lease(0);
        let renewed = async {
            for number in 1.. {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                lease(number);
            }
        };
        let refused = tokio::select! {
            done = forget_lost(&store, &path, &pki) => done,
            () = renewed => unreachable!("it is renewed for ever"),
        };
        assert!(matches!(refused, Err(StartError::KeysInUse)), "{refused:?}");
        assert!(matches!(unseal(&store, &path, &pki, &KEYS), Err(StartError::OtherSeal(_))), "nothing was changed");

        // The Lease stands still: its server was killed.
        forget_lost(&store, &path, &pki).await.unwrap();
        assert!(!unseal(&store, &path, &pki, &KEYS).unwrap() && folder.path().join("seal.key.before").exists());
        seal(&store, &env, &path, &pki, &KEYS).await.unwrap();
        assert!(unseal(&store, &path, &pki, &KEYS).unwrap());
        assert_eq!(std::fs::read(pki.join("ca.key")).unwrap(), ca, "keys that are there are sealed anew");
        assert_ne!(std::fs::read(&path).unwrap(), own);
    }

    #[test]
    fn what_is_sealed_opens_with_its_seal_for_its_cluster_only_x2() {
        let (key, other) = ([7; SEAL_BYTES], [8; SEAL_BYTES]);
        let sealed = close(&key, [1; NONCE_LEN], "mainstay a ca.key", b"secret".to_vec()).unwrap();
        assert!(!sealed.windows(6).any(|part| part == b"secret"));
        assert_eq!(open(&key, "mainstay a ca.key", &sealed).as_deref(), Some(&b"secret"[..]));
        assert_eq!(open(&other, "mainstay a ca.key", &sealed), None);
        assert_eq!(open(&key, "mainstay b ca.key", &sealed), None);
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert_eq!(open(&key, "mainstay a ca.key", &damaged), None);
        }
        assert_eq!(open(&key, "mainstay a ca.key", b""), None);
    }
}
