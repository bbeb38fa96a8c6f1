//! The server's TLS, and who may talk to it.

use std::sync::Arc;

use mainstay_client::Rotating;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::WebPkiClientVerifier;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::StreamingError;

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

/// What a client's certificate entitles it to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Full,
    /// A certificate of this cluster, but of somebody else.
    Forbidden,
    /// No certificate.
    Anonymous,
}

/// Judges a client by the certificate that TLS has already checked against the CA: a cluster administrator, or one of
/// `clients` by its common name.
pub fn access(certificates: Option<&[CertificateDer<'_>]>, clients: &[String]) -> Access {
    let Some(leaf) = certificates.and_then(|chain| chain.first()) else { return Access::Anonymous };
    let Ok((_, certificate)) = X509Certificate::from_der(leaf) else { return Access::Forbidden };
    let subject = certificate.subject();
    let named = subject
        .iter_common_name()
        .filter_map(|name| name.as_str().ok())
        .any(|name| clients.iter().any(|client| client == name));
    let master = subject.iter_organization().filter_map(|group| group.as_str().ok()).any(|group| group == MASTERS);
    if named || master { Access::Full } else { Access::Forbidden }
}
