//! Where a cluster is and how to prove who we are: the part of a kubeconfig that the client needs.

use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use mainstay_api::schema::yaml;
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
    /// The file is not what Mainstay writes: a kubeconfig with inline certificates.
    #[error("kubeconfig: {0}")]
    Malformed(String),
    /// A certificate or key is not usable.
    #[error("TLS: {0}")]
    Tls(String),
}

/// The context of kubeconfigs that `mainstay up` writes.
const CONTEXT: &str = "mainstay";

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
    /// Reads a kubeconfig as `mainstay up` writes it, also after `kubectl config` has rewritten it (as YAML, in order
    /// of names) or somebody has added clusters: it takes the cluster and user of the context `mainstay`, or else the
    /// first ones. Further clusters of the same CA are other servers of that one.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let bytes =
            std::fs::read(path).map_err(|source| ConfigError::Read { path: path.display().to_string(), source })?;
        match serde_json::from_slice(&bytes) {
            Ok(file) => Self::of(file),
            Err(_) => Self::of_yaml(&bytes),
        }
    }

    fn of_yaml(bytes: &[u8]) -> Result<Self, ConfigError> {
        let text = std::str::from_utf8(bytes).map_err(|error| ConfigError::Malformed(error.to_string()))?;
        Self::of(yaml::read(text).map_err(ConfigError::Malformed)?)
    }

    /// As [`Config::read`], in the JSON form that `mainstay up` writes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConfigError> {
        Self::of(serde_json::from_slice(bytes).map_err(|error| ConfigError::Malformed(error.to_string()))?)
    }

    fn of(mut file: Value) -> Result<Self, ConfigError> {
        put_first(&mut file);
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

/// Moves the cluster and the user of our context before all others.
fn put_first(file: &mut Value) {
    let contexts = file.get("contexts").and_then(Value::as_array).into_iter().flatten();
    let own = contexts.filter(|context| context["name"] == CONTEXT).map(|context| context["context"].clone()).next();
    let Some(own) = own else { return };
    for (section, name) in [("clusters", &own["cluster"]), ("users", &own["user"])] {
        if let Some(all) = file.get_mut(section).and_then(Value::as_array_mut) {
            all.sort_by_key(|one| one["name"] != *name);
        }
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
    #[test]
    fn what_kubectl_made_of_a_kubeconfig_is_read_too() {
        let clusters = "- cluster: {certificate-authority-data: b3RoZXI=, server: 'https://another:1'}\n  name: a\n\
                        - cluster: {certificate-authority-data: Y2E=, server: 'https://ours:1'}\n  name: mainstay\n";
        let contexts = "- context: {cluster: a, user: a}\n  name: a\n\
                        - context: {cluster: mainstay, user: admin}\n  name: mainstay\n";
        let users = "- name: a\n  user: {token: another}\n- name: admin\n  user: {token: ours}\n";
        let text =
            format!("kind: Config\nclusters:\n{clusters}contexts:\n{contexts}current-context: a\nusers:\n{users}");
        let config = Config::of_yaml(text.as_bytes()).unwrap();
        assert_eq!((config.server.as_str(), config.ca_pem.as_str()), ("ours:1", "ca"));
        assert_eq!(config.token.as_deref(), Some("ours"));
    }
}
