//! A certificate that is replaced while it is in use.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::ResolvesClientCert;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{SignatureScheme, crypto};

use crate::config::ConfigError;

/// A certificate and its key, of a client or a server: each new connection shows the present one.
#[derive(Debug)]
pub struct Rotating {
    present: RwLock<Arc<CertifiedKey>>,
    /// Where a client's is read anew for each connection: the certificate's file and the key's.
    files: Option<(PathBuf, PathBuf)>,
}

impl Rotating {
    /// From a certificate (with its chain) and a key, both PEM.
    ///
    /// # Errors
    /// They cannot be read, or the key is of no kind that TLS has.
    pub fn new(certificate_pem: &str, key_pem: &str) -> Result<Arc<Self>, ConfigError> {
        Ok(Arc::new(Self { present: RwLock::new(read(certificate_pem, key_pem)?), files: None }))
    }

    /// A client's, from a certificate's file and a key's. They are read anew for each connection; where they cannot be,
    /// or do not belong together, the last good ones are shown.
    ///
    /// # Errors
    /// They cannot be read now, or as [`Rotating::new`].
    pub fn of_files(certificate: &Path, key: &Path) -> Result<Arc<Self>, ConfigError> {
        let files = (certificate.to_owned(), key.to_owned());
        Ok(Arc::new(Self { present: RwLock::new(read_files(&files)?), files: Some(files) }))
    }

    /// Shows another one from now on. Connections that are open stay so.
    ///
    /// # Errors
    /// As [`Rotating::new`]; then the present one stays.
    pub fn replace(&self, certificate_pem: &str, key_pem: &str) -> Result<(), ConfigError> {
        let next = read(certificate_pem, key_pem)?;
        *self.present.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    /// The present certificate, DER.
    pub fn certificate(&self) -> Option<CertificateDer<'static>> {
        self.present().cert.first().cloned()
    }

    fn present(&self) -> Arc<CertifiedKey> {
        self.present.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn read_files((certificate, key): &(PathBuf, PathBuf)) -> Result<Arc<CertifiedKey>, ConfigError> {
    let text = |path: &PathBuf| {
        std::fs::read_to_string(path).map_err(|error| ConfigError::Tls(format!("{}: {error}", path.display())))
    };
    read(&text(certificate)?, &text(key)?)
}

fn read(certificate_pem: &str, key_pem: &str) -> Result<Arc<CertifiedKey>, ConfigError> {
    let tls = |error: &dyn std::fmt::Display| ConfigError::Tls(error.to_string());
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificate_pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| tls(&error))?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|error| tls(&error))?;
    let provider = crypto::ring::default_provider();
    CertifiedKey::from_der(chain, key, &provider).map(Arc::new).map_err(|error| tls(&error))
}

impl ResolvesClientCert for Rotating {
    fn resolve(&self, _roots: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        if let Some(files) = &self.files
            && let Ok(next) = read_files(files)
        {
            *self.present.write().unwrap_or_else(PoisonError::into_inner) = next;
        }
        Some(self.present())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Rotating {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.present())
    }
}
