//! Whom the server believes to be a webhook or an extension server: who has a certificate of its `caBundle` for its
//! name; without a bundle, of this machine's public authorities.
//!
//! As with upstream's, the bundle may hold the end's own certificate: self-signed, it is its own authority.

use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mainstay_client::Rotating;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Where distributions keep the certificates of public authorities, each in one file.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The certificates of public authorities, by which whoever is not told otherwise believes a server: those of
/// `SSL_CERT_FILE` and of the folders in `SSL_CERT_DIR` (with `:` between them) where either is set, as for pulls of
/// images; else those of this machine.
///
/// # Errors
/// The file or a folder cannot be read, or the file is not PEM.
pub fn public_authorities() -> Result<Vec<CertificateDer<'static>>, String> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let (file, folders) = (set("SSL_CERT_FILE").map(PathBuf::from), set("SSL_CERT_DIR"));
    let own = || BUNDLES.iter().map(PathBuf::from).find(|path| path.exists()).unwrap_or_else(|| BUNDLES[0].into());
    let file = if file.is_none() && folders.is_none() { Some(own()) } else { file };
    let mut all = Vec::new();
    if let Some(file) = file {
        let pem = std::fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        all = parse(&pem).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    for folder in folders.iter().flat_map(std::env::split_paths) {
        let entries = std::fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        // Beside certificates there may be lists of withdrawn ones, and texts.
        let files = entries.flatten().filter_map(|entry| std::fs::read(entry.path()).ok());
        all.extend(files.filter_map(|pem| parse(&pem).ok()).flatten());
    }
    Ok(all)
}

fn parse(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let all = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>();
    all.map_err(|error| format!("unable to load root certificates: {error}"))
}

/// TLS that trusts a `caBundle` (base64 of PEM; empty for public authorities) and shows no certificate.
///
/// # Errors
/// What is wrong with the bundle, in words.
pub fn client(bundle: &str) -> Result<Arc<rustls::ClientConfig>, String> {
    Ok(Arc::new(builder(Some(bundle))?.with_no_client_auth()))
}

/// As [`client`], and whoever is asked is shown this certificate as it is then. Without a bundle anybody is believed.
///
/// # Errors
/// As [`client`].
pub fn client_with(bundle: Option<&str>, shown: Arc<Rotating>) -> Result<Arc<rustls::ClientConfig>, String> {
    let mut config = builder(bundle)?.with_client_cert_resolver(shown);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn builder(
    bundle: Option<&str>,
) -> Result<rustls::ConfigBuilder<rustls::ClientConfig, rustls::client::WantsClientCert>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let is_anyone = bundle.is_none();
    let trusted = match bundle {
        None => Vec::new(),
        Some("") => public_authorities()?,
        Some(bundle) => parse(&STANDARD.decode(bundle).map_err(|error| format!("caBundle: {error}"))?)?,
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(trusted.iter().cloned());
    if trusted.is_empty() && !is_anyone {
        return Err("unable to load root certificates: unable to parse bytes as PEM block".to_owned());
    }
    let roots = (!roots.is_empty()).then(|| {
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .map_err(|error| error.to_string())
    });
    let own = if bundle.is_none_or(str::is_empty) { Vec::new() } else { trusted };
    let verifier = Verifier { roots: roots.transpose()?, own, is_anyone, provider: provider.clone() };
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier)))
}

/// Checks a path to an authority, or that the certificate is itself one of those that are trusted.
#[derive(Debug)]
struct Verifier {
    roots: Option<Arc<WebPkiServerVerifier>>,
    own: Vec<CertificateDer<'static>>,
    /// `insecureSkipTLSVerify`: nothing is checked.
    is_anyone: bool,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    /// A certificate that is trusted by itself is still for a name and a time.
    fn verify_own(end: &CertificateDer<'_>, name: &ServerName<'_>, now: UnixTime) -> Result<(), rustls::Error> {
        rustls::client::verify_server_name(&ParsedCertificate::try_from(end)?, name)?;
        let (_, parsed) = X509Certificate::from_der(end).map_err(|_| CertificateError::BadEncoding)?;
        let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
        if now > parsed.validity().not_after.timestamp() {
            return Err(CertificateError::Expired.into());
        }
        if now < parsed.validity().not_before.timestamp() {
            return Err(CertificateError::NotValidYet.into());
        }
        Ok(())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.is_anyone {
            return Ok(ServerCertVerified::assertion());
        }
        if self.own.iter().any(|own| own == end_entity) {
            return Self::verify_own(end_entity, server_name, now).map(|()| ServerCertVerified::assertion());
        }
        match &self.roots {
            Some(roots) => roots.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now),
            None => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, PKCS_ECDSA_P256_SHA256};

    /// A self-signed certificate for a name, and whether it may sign others.
    fn own(name: &str, is_ca: bool) -> (CertificateDer<'static>, String) {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        if is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        let signed = params.self_signed(&key).expect("signed");
        (signed.der().clone(), STANDARD.encode(signed.pem()))
    }

    fn verify(bundle: &str, end: &CertificateDer<'_>, name: &str) -> bool {
        let pem = STANDARD.decode(bundle).expect("base64");
        let trusted: Vec<_> = CertificateDer::pem_slice_iter(&pem).collect::<Result<_, _>>().expect("PEM");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(trusted.iter().cloned());
        let built = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
        let verifier = Verifier { roots: built.ok(), own: trusted, is_anyone: false, provider };
        let name = ServerName::try_from(name.to_owned()).expect("a name");
        verifier.verify_server_cert(end, &[], &name, &[], UnixTime::now()).is_ok()
    }

    #[test]
    fn x1_a_self_signed_end_is_believed_for_its_name_and_nobody_else_is() {
        for is_ca in [true, false] {
            let (end, bundle) = own("hook.ns.svc", is_ca);
            assert!(verify(&bundle, &end, "hook.ns.svc"), "its own authority: {is_ca}");
            assert!(!verify(&bundle, &end, "other.ns.svc"), "another name: {is_ca}");
            let (stranger, _) = own("hook.ns.svc", is_ca);
            assert!(!verify(&bundle, &stranger, "hook.ns.svc"), "a stranger of the same name: {is_ca}");
        }
        assert!(client("bm90IFBFTQ==").is_err());
        assert!(client("%").is_err());
    }

    /// Whether this end believes a server with this certificate to be hook.example.
    fn believes(config: rustls::ClientConfig, shown: &CertificateDer<'static>, key: &KeyPair) -> bool {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(key.serialize_der());
        let server = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(vec![shown.clone()], key.into()));
        let mut server = rustls::ServerConnection::new(Arc::new(server.expect("a server"))).expect("a server");
        let name = ServerName::try_from("hook.example").expect("a name");
        let mut client = rustls::ClientConnection::new(Arc::new(config), name).expect("a client");
        for _ in 0..10 {
            let (mut there, mut back) = (Vec::new(), Vec::new());
            while client.wants_write() {
                client.write_tls(&mut there).expect("into memory");
            }
            server.read_tls(&mut &there[..]).expect("from memory");
            let _ = server.process_new_packets();
            while server.wants_write() {
                server.write_tls(&mut back).expect("into memory");
            }
            client.read_tls(&mut &back[..]).expect("from memory");
            if client.process_new_packets().is_err() {
                return false;
            }
        }
        !client.is_handshaking()
    }

    /// The environment is read when it is needed, and is a process's own: the test is run again in one of its own.
    #[test]
    fn x1_public_authorities_are_those_that_ssl_cert_file_and_ssl_cert_dir_name() {
        const NAME: &str =
            "dynamic::trust::tests::x1_public_authorities_are_those_that_ssl_cert_file_and_ssl_cert_dir_name";
        let Some(folder) = std::env::var_os("MAINSTAY_TEST_AUTHORITIES").map(PathBuf::from) else {
            for (name, value) in [("SSL_CERT_FILE", "ca.pem"), ("SSL_CERT_DIR", ".")] {
                let folder = tempfile::tempdir().expect("a folder");
                let again = std::process::Command::new(std::env::current_exe().expect("this program"))
                    .args(["--exact", NAME, "--nocapture"])
                    .env_remove("SSL_CERT_FILE")
                    .env_remove("SSL_CERT_DIR")
                    .env(name, folder.path().join(value))
                    .env("MAINSTAY_TEST_AUTHORITIES", folder.path())
                    .output()
                    .expect("run");
                let told = String::from_utf8_lossy(&again.stdout);
                assert!(again.status.success() && told.contains("1 passed"), "{name}: {again:?}");
            }
            return;
        };
        let key = || KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        let (authority, own) = (key(), key());
        let mut params = CertificateParams::new(vec![]).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&authority).expect("signed");
        std::fs::write(folder.join("ca.pem"), root.pem()).expect("written");
        std::fs::write(folder.join("README"), "-----BEGIN CERTIFICATE-----").expect("written");
        let issuer = rcgen::Issuer::new(params, authority);
        let end = CertificateParams::new(vec!["hook.example".to_owned()]).expect("parameters");
        let end = end.signed_by(&own, &issuer).expect("signed");
        let hook = Arc::unwrap_or_clone(client("").expect("TLS"));
        let oidc = crate::auth::oidc::client_tls("").expect("TLS");
        assert!(believes(hook, end.der(), &own), "a webhook");
        assert!(believes(oidc, end.der(), &own), "an issuer of tokens");
        let stranger = CertificateParams::new(vec!["hook.example".to_owned()]).expect("parameters");
        let stranger = stranger.self_signed(&own).expect("signed");
        assert!(!believes(Arc::unwrap_or_clone(client("").expect("TLS")), stranger.der(), &own), "and nobody else");
    }
}
