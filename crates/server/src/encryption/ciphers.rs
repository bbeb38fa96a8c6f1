//! What the providers of an EncryptionConfiguration make of a value, and of what they have made: upstream's bytes.
//!
//! ```text
//! aesgcm     nonce of 12 bytes, AES-GCM of the value with the row's key as additional data, tag
//! secretbox  nonce of 24 bytes, tag, XSalsa20 of the value, authenticated by Poly1305
//! aescbc     initialization vector of 16 bytes, AES-CBC of the value, filled up to whole blocks (PKCS #7)
//! ```
//!
//! Only the first binds a value to its row, and the last does not notice a change. What those two open to is therefore
//! looked at: it must be the object of its row ([`is_of`]).

use aes::cipher::block_padding::Pkcs7;
use aes::cipher::{BlockDecryptMut as _, BlockEncryptMut as _, KeyIvInit as _};
use aes::{Aes128, Aes192, Aes256};
use cbc::{Decryptor, Encryptor};
use crypto_secretbox::aead::{AeadInPlace as _, KeyInit as _};
use crypto_secretbox::{Nonce as BoxNonce, Tag, XSalsa20Poly1305};
use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::Deserialize;

/// Bytes of a vector of `secretbox`, of its tag, and of a block of AES.
const BOX_NONCE: usize = 24;
const BOX_TAG: usize = 16;
const BLOCK: usize = 16;

/// A provider that encrypts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Algorithm {
    AesGcm,
    Secretbox,
    AesCbc,
}

impl Algorithm {
    pub const ALL: [Self; 3] = [Self::AesGcm, Self::Secretbox, Self::AesCbc];

    /// As a file names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AesGcm => "aesgcm",
            Self::Secretbox => "secretbox",
            Self::AesCbc => "aescbc",
        }
    }

    /// What stands before a key's name in a sealed value.
    pub const fn prefix(self) -> &'static [u8] {
        match self {
            Self::AesGcm => b"k8s:enc:aesgcm:v1:",
            Self::Secretbox => b"k8s:enc:secretbox:v1:",
            Self::AesCbc => b"k8s:enc:aescbc:v1:",
        }
    }

    /// How long its keys are (bytes).
    pub const fn sizes(self) -> &'static [usize] {
        match self {
            Self::AesGcm => &[16, 32],
            Self::Secretbox => &[32],
            Self::AesCbc => &[16, 24, 32],
        }
    }

    /// How many random bytes a value begins with.
    pub const fn vector(self) -> usize {
        match self {
            Self::AesGcm => NONCE_LEN,
            Self::Secretbox => BOX_NONCE,
            Self::AesCbc => BLOCK,
        }
    }

    /// Whether what it seals can be opened in its own row alone.
    const fn binds(self) -> bool {
        matches!(self, Self::AesGcm)
    }
}

/// A key, as its algorithm has it.
pub enum Cipher {
    AesGcm(Box<LessSafeKey>),
    Secretbox(Box<XSalsa20Poly1305>),
    AesCbc(Vec<u8>),
}

impl Cipher {
    /// Of a secret; `None` where it is not as long as the algorithm's are.
    pub fn new(algorithm: Algorithm, secret: &[u8]) -> Option<Self> {
        Some(match (algorithm, secret.len()) {
            (Algorithm::AesGcm, 16) => {
                Self::AesGcm(Box::new(LessSafeKey::new(UnboundKey::new(&AES_128_GCM, secret).ok()?)))
            }
            (Algorithm::AesGcm, 32) => {
                Self::AesGcm(Box::new(LessSafeKey::new(UnboundKey::new(&AES_256_GCM, secret).ok()?)))
            }
            (Algorithm::Secretbox, 32) => Self::Secretbox(Box::new(XSalsa20Poly1305::new_from_slice(secret).ok()?)),
            (Algorithm::AesCbc, 16 | 24 | 32) => Self::AesCbc(secret.to_vec()),
            _ => return None,
        })
    }

    const fn algorithm(&self) -> Algorithm {
        match self {
            Self::AesGcm(_) => Algorithm::AesGcm,
            Self::Secretbox(_) => Algorithm::Secretbox,
            Self::AesCbc(_) => Algorithm::AesCbc,
        }
    }

    /// What stands in a row after the key's name, with this vector, which no other value may have. `None` where the
    /// vector is none, or the value is larger than the algorithm takes.
    pub fn seal(&self, row: &[u8], vector: &[u8], value: &[u8]) -> Option<Vec<u8>> {
        let sealed = match self {
            Self::AesGcm(key) => {
                let nonce = Nonce::try_assume_unique_for_key(vector).ok()?;
                let mut sealed = value.to_vec();
                key.seal_in_place_append_tag(nonce, Aad::from(row), &mut sealed).ok()?;
                sealed
            }
            Self::Secretbox(key) => {
                let nonce = BoxNonce::from(<[u8; BOX_NONCE]>::try_from(vector).ok()?);
                let mut sealed = value.to_vec();
                let tag = key.encrypt_in_place_detached(&nonce, b"", &mut sealed).ok()?;
                [tag.as_slice(), &sealed].concat()
            }
            Self::AesCbc(key) => {
                let mut sealed = vec![0; (value.len() / BLOCK + 1) * BLOCK];
                sealed.get_mut(..value.len())?.copy_from_slice(value);
                let length = value.len();
                let done = match key.len() {
                    16 => Encryptor::<Aes128>::new_from_slices(key, vector)
                        .ok()?
                        .encrypt_padded_mut::<Pkcs7>(&mut sealed, length)
                        .map(<[u8]>::len),
                    24 => Encryptor::<Aes192>::new_from_slices(key, vector)
                        .ok()?
                        .encrypt_padded_mut::<Pkcs7>(&mut sealed, length)
                        .map(<[u8]>::len),
                    _ => Encryptor::<Aes256>::new_from_slices(key, vector)
                        .ok()?
                        .encrypt_padded_mut::<Pkcs7>(&mut sealed, length)
                        .map(<[u8]>::len),
                };
                done.ok().filter(|length| *length == sealed.len())?;
                sealed
            }
        };
        Some([vector, &sealed].concat())
    }

    /// What [`Cipher::seal`] was given. `None` for what another key has made, what was changed or cut, and, where the
    /// algorithm binds no value to its row, for what is not the object of this row.
    pub fn open(&self, row: &[u8], stored: &[u8]) -> Option<Vec<u8>> {
        let (vector, sealed) = stored.split_at_checked(self.algorithm().vector())?;
        let mut plain = sealed.to_vec();
        match self {
            Self::AesGcm(key) => {
                let nonce = Nonce::try_assume_unique_for_key(vector).ok()?;
                let length = key.open_in_place(nonce, Aad::from(row), &mut plain).ok()?.len();
                plain.truncate(length);
            }
            Self::Secretbox(key) => {
                let nonce = BoxNonce::from(<[u8; BOX_NONCE]>::try_from(vector).ok()?);
                let (tag, rest) = sealed.split_at_checked(BOX_TAG)?;
                let tag = Tag::from(<[u8; BOX_TAG]>::try_from(tag).ok()?);
                plain = rest.to_vec();
                key.decrypt_in_place_detached(&nonce, b"", &mut plain, &tag).ok()?;
            }
            Self::AesCbc(key) => {
                let length = match key.len() {
                    16 => Decryptor::<Aes128>::new_from_slices(key, vector)
                        .ok()?
                        .decrypt_padded_mut::<Pkcs7>(&mut plain)
                        .map(<[u8]>::len),
                    24 => Decryptor::<Aes192>::new_from_slices(key, vector)
                        .ok()?
                        .decrypt_padded_mut::<Pkcs7>(&mut plain)
                        .map(<[u8]>::len),
                    _ => Decryptor::<Aes256>::new_from_slices(key, vector)
                        .ok()?
                        .decrypt_padded_mut::<Pkcs7>(&mut plain)
                        .map(<[u8]>::len),
                };
                plain.truncate(length.ok()?);
            }
        }
        (self.algorithm().binds() || is_of(row, &plain)).then_some(plain)
    }
}

/// Whether a value is the object of this row, `/<group>/<plural>/<namespace or "">/<name>`: JSON with its name and
/// namespace.
fn is_of(row: &[u8], value: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Object {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    struct Metadata {
        name: String,
        #[serde(default)]
        namespace: String,
    }
    let Ok(Object { metadata }) = serde_json::from_slice::<Object>(value) else { return false };
    let end = format!("/{}/{}", metadata.namespace, metadata.name);
    row.ends_with(end.as_bytes()) && row.iter().filter(|byte| **byte == b'/').count() == 4
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
        (0..hex.len()).step_by(2).map(digit).collect()
    }

    fn cipher(algorithm: Algorithm, secret: &str) -> Cipher {
        Cipher::new(algorithm, &bytes(secret)).expect("a key")
    }

    const ROW: &[u8] = b"/core/secrets/ns/a";

    fn object(name: &str) -> String {
        format!(r#"{{"kind":"Secret","metadata":{{"name":"{name}","namespace":"ns"}},"data":{{}}}}"#)
    }

    /// The example of NaCl's own tests.
    #[test]
    fn a10_secretbox_is_nacls() {
        let key = cipher(Algorithm::Secretbox, "1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389");
        let nonce = bytes("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37");
        let plain = bytes(concat!(
            "be075fc53c81f2d5cf141316ebeb0c7b5228c52a4c62cbd44b66849b64244ffce5ecbaaf33bd751a1ac728d45e6c61296cdc3c",
            "01233561f41db66cce314adb310e3be8250c46f06dceea3a7fa1348057e2f6556ad6b1318a024a838f21af1fde048977eb48f5",
            "9ffd4924ca1c60902e52f0a089bc76897040e082f937763848645e0705",
        ));
        let wanted = bytes(concat!(
            "f3ffc7703f9400e52a7dfb4b3d3305d98e993b9f48681273c29650ba32fc76ce48332ea7164d96a4476fb8c531a1186ac0dfc1",
            "7c98dce87b4da7f011ec48c97271d2c20f9b928fe2270d6fb863d51738b48eeee314a7cc8ab932164548e526ae90224368517acf",
            "eabd6bb3732bc0e9da99832b61ca01b6de56244a9e88d5f9b37973f622a43d14a6599b1f654cb45a74e355a5",
        ));
        assert_eq!(key.seal(ROW, &nonce, &plain).expect("sealed"), [nonce, wanted].concat());
    }

    /// The examples of NIST SP 800-38A, F.2: the first block, after which the padding's own follows.
    #[test]
    fn a10_aescbc_is_as_it_is_specified() {
        let (vector, plain) = (bytes("000102030405060708090a0b0c0d0e0f"), bytes("6bc1bee22e409f96e93d7e117393172a"));
        for (secret, wanted) in [
            ("2b7e151628aed2a6abf7158809cf4f3c", "7649abac8119b246cee98e9b12e9197d"),
            ("8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b", "4f021db243bc633d7178183a9fa071e8"),
            ("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4", "f58c4c04d6e5f1ba779eabfb5f7bfbd6"),
        ] {
            let sealed = cipher(Algorithm::AesCbc, secret).seal(ROW, &vector, &plain).expect("sealed");
            assert_eq!((&sealed[16..32], sealed.len()), (&*bytes(wanted), 48), "{secret}");
        }
    }

    /// Whatever is changed, cut or put into another row is not opened.
    #[test]
    fn a10_what_is_damaged_or_of_another_row_is_never_opened() {
        for algorithm in Algorithm::ALL {
            for size in algorithm.sizes() {
                let key = Cipher::new(algorithm, &vec![7; *size]).expect("a key");
                let vector = vec![9; algorithm.vector()];
                for padding in 0..17 {
                    let value = object("a").replace("\"data\"", &format!("{:?}", "d".repeat(padding + 1)));
                    let sealed = key.seal(ROW, &vector, value.as_bytes()).expect("sealed");
                    assert_eq!(key.open(ROW, &sealed).as_deref(), Some(value.as_bytes()), "{algorithm:?}");
                    assert_eq!(key.open(b"/core/secrets/ns/b", &sealed), None, "{algorithm:?}: another name");
                    assert_eq!(key.open(b"/core/secrets/n2/a", &sealed), None, "{algorithm:?}: another namespace");
                    let other = Cipher::new(algorithm, &vec![8; *size]).expect("a key");
                    assert_eq!(other.open(ROW, &sealed), None, "{algorithm:?}: another key");
                    assert_eq!(key.open(ROW, &sealed[..sealed.len() - 1]), None, "{algorithm:?}: cut");
                    assert_eq!(key.open(ROW, &[]), None, "{algorithm:?}: empty");
                    let mut changed = sealed.clone();
                    *changed.last_mut().expect("a byte") ^= 1;
                    // Of aescbc the last byte is the padding's, or makes the last block noise, which is no JSON.
                    assert_eq!(key.open(ROW, &changed), None, "{algorithm:?}: changed");
                }
            }
            assert!(Cipher::new(algorithm, &[1; 15]).is_none() && Cipher::new(algorithm, &[]).is_none());
        }
    }
}
