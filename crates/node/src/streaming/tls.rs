//! The server's TLS, and who may talk to it.

use std::sync::Arc;

use mainstay_client::Rotating;
use mainstay_client::subject::Subject;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::WebPkiClientVerifier;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::StreamingError;
use super::access::User;

/// The group whose members may do everything.
const MASTERS: &str = "system:masters";

/// Client certificates are asked for and checked against the cluster's CA; who has none learns so by a 401.
pub fn config(serving: Arc<Rotating>, client_ca_pem: &str) -> Result<rustls::ServerConfig, StreamingError> {
    let failed = |error: &dyn std::fmt::Display| StreamingError::Tls(error.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(client_ca_pem.as_bytes()) {
        roots.add(certificate.map_err(|error| failed(&error))?).map_err(|error| failed(&error))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| failed(&error))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(serving);
    // Upgrades exist only in HTTP/1.1.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Who a client is by its certificate.
#[derive(Clone, Debug, PartialEq)]
pub enum Access {
    /// The API server, or an administrator: may do everything, also while nobody can be asked.
    Full,
    /// Somebody else of this cluster.
    User(Arc<User>),
    /// No certificate, or one that names nobody.
    Nobody,
}

/// Judges a client by the certificate that TLS has already checked against the CA: a cluster administrator, or one of
/// `clients` by its common name. A subject that could be read in two ways is nobody's, as at the API.
pub fn access(certificates: Option<&[CertificateDer<'_>]>, clients: &[String]) -> Access {
    let Some(leaf) = certificates.and_then(|chain| chain.first()) else { return Access::Nobody };
    let Ok((_, certificate)) = X509Certificate::from_der(leaf) else { return Access::Nobody };
    let Some(Subject { name, groups }) = Subject::read(certificate.subject()) else { return Access::Nobody };
    let is_one = !name.is_empty() && clients.contains(&name) || groups.iter().any(|group| group == MASTERS);
    match is_one {
        true => Access::Full,
        false if name.is_empty() => Access::Nobody,
        false => Access::User(Arc::new(User::of_certificate(name, groups))),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn judged(names: &[(DnType, &str)]) -> Access {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        names.iter().for_each(|(kind, name)| params.distinguished_name.push(kind.clone(), *name));
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        access(Some(&[certificate.der().clone()]), &["api".to_owned()])
    }

    #[test]
    fn m4_x6_a_subject_that_can_be_read_in_two_ways_opens_nothing() {
        // rcgen's names are a map, in which these are two.
        let another = || DnType::CustomDnType(vec![2, 5, 4, 3]);
        let another_group = || DnType::CustomDnType(vec![2, 5, 4, 10]);
        assert_eq!(judged(&[(DnType::CommonName, "api")]), Access::Full);
        assert_eq!(judged(&[(DnType::CommonName, "me"), (DnType::OrganizationName, MASTERS)]), Access::Full);
        let me = Access::User(Arc::new(User::of_certificate("me".to_owned(), Vec::new())));
        assert_eq!(judged(&[(DnType::CommonName, "me")]), me);
        assert_eq!(judged(&[(DnType::CommonName, "api"), (another(), "me")]), Access::Nobody);
        assert_eq!(judged(&[(DnType::CommonName, "me"), (another(), "api")]), Access::Nobody);
        let two = [(DnType::CommonName, "me"), (another(), "you"), (DnType::OrganizationName, MASTERS)];
        assert_eq!(judged(&two), Access::Nobody);
        // Several groups are nothing unusual.
        let groups = [(DnType::OrganizationName, "others"), (another_group(), MASTERS)];
        assert_eq!(judged(&groups), Access::Full);
        assert_eq!(access(None, &[]), Access::Nobody);
    }
}
