//! Which cluster it is: its CA, from anybody who answers, believed by its hash.

use mainstay_api::kinds;
use mainstay_client::{Client, Config};
use ring::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Invitation, JoinError, text};

/// What a hash begins with.
const ALGORITHM: &str = "sha256:";

/// The SHA-256 of a CA certificate's SubjectPublicKeyInfo as it is typed: `sha256:` and 64 hexadecimal digits, as
/// kubeadm's `--discovery-token-ca-cert-hash`. `None` where the PEM has no certificate.
pub fn hash_of(ca_pem: &str) -> Option<String> {
    let der = CertificateDer::from_pem_slice(ca_pem.as_bytes()).ok()?;
    let hex: String = hash(&der)?.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(format!("{ALGORITHM}{hex}"))
}

/// Reads what [`hash_of`] writes.
pub fn parse_hash(typed: &str) -> Option<[u8; 32]> {
    let digits = typed.strip_prefix(ALGORITHM).filter(|digits| digits.len() == 64 && digits.is_ascii())?;
    let mut hash = [0; 32];
    for (byte, digits) in hash.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(hash)
}

fn hash(der: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    digest(&SHA256, certificate.public_key().raw).as_ref().try_into().ok()
}

/// Whether a CA (PEM) is the one that an invitation is for.
pub fn is_of(ca_pem: &str, invitation: &Invitation) -> bool {
    CertificateDer::from_pem_slice(ca_pem.as_bytes()).is_ok_and(|ca| hash(&ca) == Some(invitation.ca_hash))
}

/// The cluster's CA, PEM. Nothing else of the answer is believed, and no secret is in the question.
pub async fn discover(invitation: &Invitation) -> Result<String, JoinError> {
    let server = invitation.server.clone();
    let failed = |why: String| JoinError::Discovery { server: server.clone(), why };
    let config = Config { server: server.clone(), is_unverified: true, ..Config::default() };
    let client = Client::new(config)?;
    let info = client.get(&kinds::CONFIG_MAP, "kube-public", "cluster-info").await;
    let info = info.map_err(|error| failed(error.to_string()))?;
    let kubeconfig = Config::parse(text(&info, &["data", "kubeconfig"]).as_bytes());
    let ca_pem = kubeconfig.map_err(|error| failed(error.to_string()))?.ca_pem;
    let all = CertificateDer::pem_slice_iter(ca_pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let all = all.map_err(|error| failed(error.to_string()))?;
    // One that is not the one that was meant is trusted in nothing: there may be no other beside it.
    match all.as_slice() {
        [only] if hash(only) == Some(invitation.ca_hash) => Ok(ca_pem),
        _ => Err(JoinError::OtherCa(server)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_typed_as_it_is_printed_m4() {
        let key = rcgen::KeyPair::generate().unwrap();
        let pem = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap().pem();
        let typed = hash_of(&pem).unwrap();
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        assert_eq!(parse_hash(&typed), hash(&der));
        assert!(parse_hash(&typed).is_some());
        for wrong in ["", "sha256:", "sha1:00", &typed[..70], &typed.replace("sha256:", ""), &format!("{typed}0")] {
            assert_eq!(parse_hash(wrong), None, "{wrong}");
        }
    }
}
