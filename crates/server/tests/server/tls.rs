//! What a server over TLS on loopback needs.

use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// Whoever connects is shown this certificate.
pub fn acceptor(certificate: CertificateDer<'static>, key: &KeyPair) -> TlsAcceptor {
    let private = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let tls = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], private)
        .expect("a certificate");
    TlsAcceptor::from(Arc::new(tls))
}

/// Any free port of loopback, with a certificate of its own for these names, which is also given as PEM.
pub async fn listen(names: &[&str]) -> (TcpListener, TlsAcceptor, String) {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let own = CertificateParams::new(names).expect("names").self_signed(&key).expect("signed");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    (listener, acceptor(own.der().clone(), &key), own.pem())
}
