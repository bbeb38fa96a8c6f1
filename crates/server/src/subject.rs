//! The subject of a certificate that is signed here. How one is read, and what it is as bytes, is
//! [`mainstay_client::subject`]'s to say, for all who decide by it.

pub use mainstay_client::subject::Subject;
use mainstay_client::subject::{SEQUENCE, header_length, tagged};
use rcgen::{KeyPair, SigningKey as _};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::pki::PkiError;

/// DER's tag.
const BIT_STRING: u8 = 0x03;

/// Puts a subject in a certificate (DER) in place of the one there, and signs it again. rcgen's own names are a
/// map: they hold one `O` only.
pub fn put_into(subject: &Subject, certificate: &[u8], key: &KeyPair) -> Result<Vec<u8>, PkiError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| PkiError::Pem)?;
    let (whole, old) = (parsed.tbs_certificate.as_ref(), parsed.tbs_certificate.subject.as_raw());
    let before = old.as_ptr().addr().checked_sub(whole.as_ptr().addr()).ok_or(PkiError::Pem)?;
    let fields = whole.get(header_length(whole)..before).ok_or(PkiError::Pem)?;
    let after = whole.get(before + old.len()..).ok_or(PkiError::Pem)?;
    let body = tagged(SEQUENCE, &[fields, &subject.der(), after].concat());
    // The algorithm stands between what is signed and the signature; it stays, as the key does.
    let rest = certificate.get(header_length(certificate) + whole.len()..).ok_or(PkiError::Pem)?;
    let length = header_length(rest) + rest.get(1).copied().map_or(0, usize::from);
    let algorithm = rest.get(..length).ok_or(PkiError::Pem)?;
    let signature = [&[0][..], &key.sign(&body)?].concat();
    Ok(tagged(SEQUENCE, &[&body, algorithm, &tagged(BIT_STRING, &signature)].concat()))
}
