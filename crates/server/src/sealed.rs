//! Keys that all servers of a cluster share, in the store and sealed: the CA's and that of service account tokens.
//!
//! ```text
//! /!sealed/<file>      nonce (12 bytes) | AES-256-GCM of the file, with the key's name and the cluster's as context
//! <data>/seal.key      32 bytes in hexadecimal digits, 0600: the same on every server, brought there by a person
//! ```
//!
//! The first server makes the seal and the keys; the others are given the seal. Whoever has the store alone (a member of
//! etcd, a backup of it) has none of these keys. A server's files in `<data>/pki` are what was unsealed.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use mainstay_store::{CommitError, Encoded, Expect, Op, Store, Txn};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::api::Env;
use crate::pki::{PkiError, write_private};
use crate::start::StartError;

/// The seal's file in the data folder.
pub const SEAL: &str = "seal.key";
/// What is shared, by file name; the CA's certificate goes with its key.
const SHARED: [&str; 3] = ["ca.key", "ca.crt", "sa.key"];
const SEAL_BYTES: usize = 32;

fn row(file: &str) -> Bytes {
    Bytes::from(format!("/!sealed/{file}"))
}

fn context(cluster: &str, file: &str) -> String {
    format!("mainstay {cluster} {file}")
}

/// Brings the shared keys of the store into the folder of keys; whether there were any. Those of the folder that differ
/// are replaced: the cluster's are the store's.
pub fn unseal(store: &Store, seal: &Path, pki: &Path) -> Result<bool, StartError> {
    let cluster = store.cluster().map(|cluster| cluster.to_string()).unwrap_or_default();
    if store.get(&row(SHARED[0])).is_none() {
        return Ok(false);
    }
    let key = read_seal(seal)?.ok_or_else(|| StartError::NoSeal(seal.to_owned()))?;
    for file in SHARED {
        let sealed = store.get(&row(file)).ok_or(PkiError::Pem)?;
        let plain = open(&key, &context(&cluster, file), &sealed.value);
        let plain = plain.ok_or_else(|| StartError::OtherSeal(seal.to_owned()))?;
        write_private(&pki.join(file), &plain)?;
    }
    Ok(true)
}

/// Puts this server's keys into the store, where there are none; whether it did. When another server was quicker, theirs
/// are to be unsealed.
pub async fn seal(store: &Store, env: &Env, seal: &Path, pki: &Path) -> Result<bool, StartError> {
    let cluster = store.cluster().map(|cluster| cluster.to_string()).unwrap_or_default();
    let key = match read_seal(seal)? {
        Some(key) => key,
        None => {
            let mut bytes = [0; SEAL_BYTES];
            (env.random)(&mut bytes);
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            write_private(seal, format!("{hex}\n").as_bytes())?;
            bytes
        }
    };
    let mut txn = Txn::default();
    for file in SHARED {
        let path = pki.join(file);
        let plain = std::fs::read(&path).map_err(|source| PkiError::File { path, source })?;
        let mut nonce = [0; NONCE_LEN];
        (env.random)(&mut nonce);
        let sealed = close(&key, nonce, &context(&cluster, file), plain).ok_or(PkiError::Pem)?;
        txn.expect.push((row(file), Expect::Absent));
        txn.ops.push(Op::Put { key: row(file), value: Encoded::plain(sealed) });
    }
    match store.commit(txn).await {
        Ok(_) => Ok(true),
        Err(CommitError::Expectation { .. }) => Ok(false),
        Err(error) => Err(StartError::Bootstrap(error.to_string())),
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
