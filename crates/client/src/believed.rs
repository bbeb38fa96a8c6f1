//! Who is believed to be an API server (X1): whoever the cluster's CA says so of, but no node. A node has a serving
//! certificate of the same CA, for its own port; who has its key must not be taken for a server at an address that the
//! node had once or has by its own word.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// What a node's name as a user begins with.
const NODE: &str = "system:node:";

/// Believes what these roots sign, nodes apart.
pub(crate) fn api_servers(roots: RootCertStore) -> Result<Arc<dyn ServerCertVerifier>, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build();
    Ok(Arc::new(NoNode(inner.map_err(|error| Error::General(error.to_string()))?)))
}

#[derive(Debug)]
struct NoNode(Arc<WebPkiServerVerifier>);

/// Whether a certificate is a node's; one that cannot be read may be.
fn is_nodes(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return true };
    let mut names = certificate.subject().iter_common_name();
    names.any(|name| name.as_str().map_or(true, |name| name.starts_with(NODE)))
}

impl ServerCertVerifier for NoNode {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.0.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        match is_nodes(end_entity) {
            true => Err(Error::General("invalid peer certificate: it is a node's, and no API server's".to_owned())),
            false => Ok(verified),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    use super::*;

    #[test]
    fn x1_a_nodes_certificate_is_no_api_servers() {
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let signed = ca.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(ca, ca_key);
        let mut roots = RootCertStore::empty();
        roots.add(signed.der().clone()).unwrap();
        let believed = api_servers(roots).unwrap();
        let verify = |user: &str| {
            let mut params = CertificateParams::new(vec!["192.0.2.7".to_owned()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, user);
            let leaf = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
            let name = ServerName::try_from("192.0.2.7").unwrap();
            believed.verify_server_cert(leaf.der(), &[], &name, &[], UnixTime::now())
        };
        assert!(verify("kube-apiserver").is_ok());
        assert!(verify("system:node:b").is_err_and(|error| error.to_string().contains("a node's")));
    }
}
