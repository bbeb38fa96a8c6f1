//! A certificate by request: a key that never leaves this machine, a CertificateSigningRequest, and its answer.

use std::net::Ipv4Addr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mainstay_api::{kinds, object};
use mainstay_client::{Client, Informer, ListOptions, Notice};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::{Value, json};

use super::kept::Pair;
use super::{JoinError, text, user};

/// How long approval and signature may take; the server gives both at once, if at all without a person.
const WAIT: Duration = Duration::from_secs(60);

/// The node's certificate as a client of the API server.
pub async fn client(asker: &Client, node: &str) -> Result<Pair, JoinError> {
    request(asker, node, "kubernetes.io/kube-apiserver-client-kubelet", "client auth", Vec::new()).await
}

/// The node's certificate as a server, for its name and address.
pub async fn serving(asker: &Client, node: &str, address: Ipv4Addr) -> Result<Pair, JoinError> {
    let names = vec![node.to_owned(), address.to_string()];
    request(asker, node, "kubernetes.io/kubelet-serving", "server auth", names).await
}

async fn request(asker: &Client, node: &str, signer: &str, usage: &str, names: Vec<String>) -> Result<Pair, JoinError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, user(node));
    let pem = params.serialize_request(&key)?.pem()?;
    let asked = json!({
        "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
        "metadata": { "generateName": "csr-" },
        "spec": { "signerName": signer, "request": STANDARD.encode(pem), "usages": ["digital signature", usage] },
    });
    let kind = &kinds::CERTIFICATE_SIGNING_REQUEST;
    let made = asker.create(kind, "", &asked).await.map_err(|source| match source.code() {
        Some(401) => JoinError::Token,
        _ => JoinError::Api { what: "asking for a certificate", source },
    })?;
    let name = object::name(&made).to_owned();
    let options = ListOptions { field_selector: format!("metadata.name={name}"), ..ListOptions::default() };
    let mut changes = Informer::new(asker.clone(), kind, "", options);
    let answered = async {
        loop {
            if let Notice::Put(_, request) = changes.next().await
                && let Some(answer) = answer(&request)
            {
                return answer;
            }
        }
    };
    let Ok(answer) = tokio::time::timeout(WAIT, answered).await else { return Err(JoinError::NotApproved(name)) };
    let certificate = answer.map_err(|why| JoinError::Refused { name, why })?;
    Ok(Pair { certificate, key: key.serialize_pem() })
}

/// The certificate, PEM, or why there is none; `None` while that is open.
fn answer(request: &Value) -> Option<Result<String, String>> {
    let mut conditions = object::at(request, &["status", "conditions"]).and_then(Value::as_array).into_iter().flatten();
    if let Some(condition) = conditions.find(|found| matches!(text(found, &["type"]), "Denied" | "Failed")) {
        return Some(Err(format!("{}: {}", text(condition, &["reason"]), text(condition, &["message"]))));
    }
    match text(request, &["status", "certificate"]) {
        "" => None,
        encoded => {
            let pem = STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            Some(pem.ok_or_else(|| "the certificate cannot be read".to_owned()))
        }
    }
}
