//! Where a cluster is and how to prove who we are: the part of a kubeconfig that the client needs.

use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;

use crate::rotating::Rotating;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("reading kubeconfig {path}: {source}")]
    Read {
        /// Which file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not what Mainstay writes: a kubeconfig in JSON form with inline certificates.
    #[error("kubeconfig: {0}")]
    Malformed(String),
    /// A certificate or key is not usable.
    #[error("TLS: {0}")]
    Tls(String),
}

/// A cluster and an identity.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// `host:port`, or several of one cluster: `host:port,host:port`.
    pub server: String,
    /// The cluster's CA, PEM.
    pub ca_pem: String,
    /// The client's certificate and key, PEM.
    pub identity: Option<(String, String)>,
    /// A client's certificate that is replaced while it is in use; goes before `identity`.
    pub rotating: Option<Arc<Rotating>>,
    /// A bearer token instead of (or beside) a certificate.
    pub token: Option<String>,
    /// Any server is talked to, whatever its certificate: only to ask for what proves itself, and never with a token.
    pub is_unverified: bool,
}

impl Config {
    /// Reads a kubeconfig as `mainstay up` writes it (JSON, which is YAML too) and takes its first cluster and user.
    /// Further clusters of the same CA are other servers of the first.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let bytes =
            std::fs::read(path).map_err(|source| ConfigError::Read { path: path.display().to_string(), source })?;
        Self::parse(&bytes)
    }

    /// See [`Config::read`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        let file: Value = serde_json::from_slice(bytes).map_err(|error| ConfigError::Malformed(error.to_string()))?;
        let inline = |pointer: &str| -> Result<Option<String>, ConfigError> {
            let Some(encoded) = file.pointer(pointer).and_then(Value::as_str) else { return Ok(None) };
            let decoded = base64::engine::general_purpose::STANDARD
                .decode(encoded)
                .map_err(|error| ConfigError::Malformed(format!("{pointer}: {error}")))?;
            String::from_utf8(decoded).map(Some).map_err(|error| ConfigError::Malformed(format!("{pointer}: {error}")))
        };
        let server = |cluster: &Value| {
            let server = cluster.pointer("/cluster/server")?.as_str()?.strip_prefix("https://")?;
            Some(server.trim_end_matches('/').to_owned())
        };
        let ca = |cluster: &Value| cluster.pointer("/cluster/certificate-authority-data").cloned();
        let clusters = file.get("clusters").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let first = clusters.first().and_then(server);
        let first =
            first.ok_or_else(|| ConfigError::Malformed("clusters[0].cluster.server is not an https address".into()))?;
        let others = clusters.iter().skip(1).filter(|other| clusters.first().is_some_and(|one| ca(one) == ca(other)));
        let servers: Vec<String> = std::iter::once(first).chain(others.filter_map(server)).collect();
        let certificate = inline("/users/0/user/client-certificate-data")?;
        let key = inline("/users/0/user/client-key-data")?;
        Ok(Self {
            server: servers.join(","),
            ca_pem: inline("/clusters/0/cluster/certificate-authority-data")?.ok_or_else(|| {
                ConfigError::Malformed("clusters[0].cluster.certificate-authority-data is missing".into())
            })?,
            identity: certificate.zip(key),
            rotating: None,
            is_unverified: false,
            token: file.pointer("/users/0/user/token").and_then(Value::as_str).map(str::to_owned),
        })
    }

    /// The TLS settings: only the cluster's own CA is trusted, and of what it signs no node's certificate.
    /// `alpn` as offered to the peer.
    pub fn tls(&self, alpn: &[&[u8]]) -> Result<rustls::ClientConfig, ConfigError> {
        let tls = |error: &dyn std::fmt::Display| ConfigError::Tls(error.to_string());
        if self.is_unverified {
            return crate::unverified::tls(alpn).map_err(|error| tls(&error));
        }
        let mut roots = rustls::RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(self.ca_pem.as_bytes()) {
            roots.add(certificate.map_err(|error| tls(&error))?).map_err(|error| tls(&error))?;
        }
        let builder = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| tls(&error))?;
        let builder = if roots.is_empty() {
            // Nobody is believed.
            builder.with_root_certificates(roots)
        } else {
            let believed = crate::believed::api_servers(roots).map_err(|error| tls(&error))?;
            builder.dangerous().with_custom_certificate_verifier(believed)
        };
        let mut config = match (&self.rotating, &self.identity) {
            (Some(rotating), _) => builder.with_client_cert_resolver(rotating.clone()),
            (None, None) => builder.with_no_client_auth(),
            (None, Some((certificate, key))) => {
                let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate.as_bytes())
                    .collect::<Result<_, _>>()
                    .map_err(|error| tls(&error))?;
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|error| tls(&error))?;
                builder.with_client_auth_cert(chain, key).map_err(|error| tls(&error))?
            }
        };
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kubeconfig_names_all_servers_of_its_cluster() {
        let cluster = |server: &str, ca: &str| {
            serde_json::json!({ "cluster": { "server": server,
            "certificate-authority-data": ca } })
        };
        let parse =
            |clusters: &[Value]| Config::parse(serde_json::json!({ "clusters": clusters }).to_string().as_bytes());
        let several =
            [cluster("https://a:1/", "Y2E="), cluster("https://b:1", "Y2E="), cluster("https://c:1", "b3RoZXI=")];
        assert_eq!(parse(&several).unwrap().server, "a:1,b:1");
        assert!(parse(&[]).is_err() && parse(&[cluster("http://a:1", "Y2E=")]).is_err());
    }
}
