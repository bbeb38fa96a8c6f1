//! A certificate by request: a key that never leaves this machine, a CertificateSigningRequest, and its answer.

use std::net::Ipv4Addr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mainstay_api::{kinds, object};
use mainstay_client::{Client, Informer, ListOptions, Notice};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::kept::{Kept, Pair};
use super::{JoinError, text, user};

/// How long approval and signature may take; the server gives both at once, if at all without a person.
const WAIT: Duration = Duration::from_secs(60);

/// What a certificate is for.
struct Purpose<'a> {
    /// Below which name it is kept what was asked for.
    file: &'a str,
    signer: &'a str,
    usage: &'a str,
    names: Vec<String>,
}

/// The node's certificate as a client of the API server.
pub async fn client(asker: &Client, kept: &Kept, node: &str) -> Result<Pair, JoinError> {
    let signer = "kubernetes.io/kube-apiserver-client-kubelet";
    let purpose = Purpose { file: "client", signer, usage: "client auth", names: Vec::new() };
    request(asker, kept, node, &purpose).await
}

/// The node's certificate as a server, for its name and address.
pub async fn serving(asker: &Client, kept: &Kept, node: &str, address: Ipv4Addr) -> Result<Pair, JoinError> {
    let (signer, names) = ("kubernetes.io/kubelet-serving", vec![node.to_owned(), address.to_string()]);
    let purpose = Purpose { file: "serving", signer, usage: "server auth", names };
    request(asker, kept, node, &purpose).await
}

/// Asks, or waits for the answer to what was asked before: a request that a person has yet to approve is one, however
/// often this machine looks for its answer.
async fn request(asker: &Client, kept: &Kept, node: &str, purpose: &Purpose<'_>) -> Result<Pair, JoinError> {
    let before = kept.asked(purpose.file)?.filter(|asked| asked.is_for(node, purpose));
    let asked = match before {
        Some(asked) => asked,
        None => Asked::new(node, purpose)?,
    };
    // First of all: what is asked for and not known any more would wait for nobody.
    kept.write_asked(purpose.file, Some(&asked))?;
    let kind = &kinds::CERTIFICATE_SIGNING_REQUEST;
    let name = asked.name.clone();
    let made = match asker.create(kind, "", &asked.object(purpose)).await {
        Ok(made) => made,
        Err(error) if error.is_conflict() => asker.get(kind, "", &name).await.map_err(refused)?,
        Err(error) => return Err(refused(error)),
    };
    if text(&made, &["spec", "request"]) != asked.encoded() {
        // Somebody else's, or of a time when this machine was another node.
        kept.write_asked(purpose.file, None)?;
        return Err(JoinError::Refused { name, why: "another request has its name; asking again".to_owned() });
    }
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
    // Whatever it is, it is the answer: who asks again asks for something new.
    kept.write_asked(purpose.file, None)?;
    let certificate = answer.map_err(|why| JoinError::Refused { name, why })?;
    Ok(Pair { certificate, key: asked.key })
}

fn refused(source: mainstay_client::Error) -> JoinError {
    match source.code() {
        Some(401) => JoinError::Token,
        _ => JoinError::Api { what: "asking for a certificate", source },
    }
}

/// What this machine has asked for, and has no answer to. The key is secret (X2).
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Asked {
    /// The CertificateSigningRequest's name: it follows from the key.
    name: String,
    /// PEM.
    key: String,
    /// PEM.
    request: String,
    node: String,
    names: Vec<String>,
}

impl Asked {
    fn new(node: &str, purpose: &Purpose<'_>) -> Result<Self, JoinError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(purpose.names.clone())?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
        params.distinguished_name.push(DnType::CommonName, user(node));
        let request = params.serialize_request(&key)?.pem()?;
        let digest = ring::digest::digest(&ring::digest::SHA256, key.public_key_raw());
        let hex: String = digest.as_ref().iter().take(10).map(|byte| format!("{byte:02x}")).collect();
        let (names, node) = (purpose.names.clone(), node.to_owned());
        Ok(Self { name: format!("csr-{hex}"), key: key.serialize_pem(), request, node, names })
    }

    fn is_for(&self, node: &str, purpose: &Purpose<'_>) -> bool {
        self.node == node && self.names == purpose.names
    }

    fn encoded(&self) -> String {
        STANDARD.encode(&self.request)
    }

    fn object(&self, purpose: &Purpose<'_>) -> Value {
        json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
            "metadata": { "name": self.name },
            "spec": { "signerName": purpose.signer, "request": self.encoded(),
                "usages": ["digital signature", purpose.usage] },
        })
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x7_what_was_asked_for_and_has_no_answer_is_asked_for_once() {
        let folder = tempfile::tempdir().unwrap();
        let kept = Kept::open(folder.path()).unwrap();
        let purpose = |address: &str| Purpose {
            file: "serving",
            signer: "kubernetes.io/kubelet-serving",
            usage: "server auth",
            names: vec!["a".to_owned(), address.to_owned()],
        };
        assert!(kept.asked("serving").unwrap().is_none());
        let asked = Asked::new("a", &purpose("192.0.2.1")).unwrap();
        kept.write_asked("serving", Some(&asked)).unwrap();
        let again = kept.asked("serving").unwrap().expect("kept over a restart");
        assert!(again == asked && again.object(&purpose("192.0.2.1")) == asked.object(&purpose("192.0.2.1")));
        assert!(again.is_for("a", &purpose("192.0.2.1")));
        assert!(!again.is_for("a", &purpose("192.0.2.2")), "this machine has another address by now");
        assert!(!again.is_for("b", &purpose("192.0.2.1")), "or is another node");
        assert!(kept.asked("client").unwrap().is_none());
        assert_ne!(Asked::new("a", &purpose("192.0.2.1")).unwrap().name, asked.name, "a new key is a new request");
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(folder.path().join("node/serving.asked")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "X2");
        // Torn by a full disk: nothing was asked for.
        std::fs::write(folder.path().join("node/serving.asked"), "{").unwrap();
        assert!(kept.asked("serving").unwrap().is_none());
        kept.write_asked("serving", None).unwrap();
        kept.write_asked("serving", None).unwrap();
        assert!(!folder.path().join("node/serving.asked").exists());
    }
}
