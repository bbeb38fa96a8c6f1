//! What a CertificateSigningRequest asks for, and whether its signer gives that: upstream's rules of the built-in
//! signers.

use std::net::IpAddr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mainstay_api::object;
use serde_json::Value;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME;
use x509_parser::prelude::{FromDer, X509CertificationRequest};

use crate::subject::Subject;

/// For clients of the API server; approved by people only.
pub const CLIENT: &str = "kubernetes.io/kube-apiserver-client";
/// For kubelets as clients; approved by itself for who may.
pub const KUBELET_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// For kubelets as servers; approved by people only.
pub const KUBELET_SERVING: &str = "kubernetes.io/kubelet-serving";
/// A request longer than this is not read, in bytes.
const MAX_REQUEST: usize = 64 << 10;

/// What the request in `spec.request` says. A certificate is made of this alone: what was not read is not signed.
#[derive(Debug, Default, PartialEq)]
pub struct Asked {
    /// The request itself, DER: of it only the key is taken, and that the asker has its private half.
    pub der: Vec<u8>,
    /// `CN` and each `O`.
    pub subject: Subject,
    /// DNS names.
    pub names: Vec<String>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// Mail addresses.
    pub mails: Vec<String>,
    /// URIs.
    pub uris: Vec<String>,
}

impl Asked {
    /// DNS names or addresses.
    fn has_names(&self) -> bool {
        !self.names.is_empty() || !self.addresses.is_empty()
    }

    /// Mail addresses or URIs.
    fn has_other_names(&self) -> bool {
        !self.mails.is_empty() || !self.uris.is_empty()
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// Reads `spec.request`: base64 of PEM. Else why it cannot be read, or could be read in more than one way.
pub fn read(request: &Value) -> Result<Asked, &'static str> {
    const BROKEN: &str = "the request is not a PEM encoded PKCS#10 certificate request";
    let text = object::text(request, &["spec", "request"]);
    if text.len() > MAX_REQUEST {
        return Err("the request is too long");
    }
    let pem = STANDARD.decode(text).map_err(|_| BROKEN)?;
    let (_, block) = x509_parser::pem::parse_x509_pem(&pem).map_err(|_| BROKEN)?;
    if !matches!(block.label.as_str(), "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST") {
        return Err(BROKEN);
    }
    let (_, parsed) = X509CertificationRequest::from_der(&block.contents).map_err(|_| BROKEN)?;
    let subject = Subject::read(&parsed.certification_request_info.subject)
        .ok_or("the subject has more than one common name, or a name that is not UTF-8 text")?;
    let mut asked = Asked { subject, ..Asked::default() };
    let attributes = parsed.certification_request_info.iter_attributes();
    let requested = attributes.filter_map(|attribute| match attribute.parsed_attribute() {
        ParsedCriAttribute::ExtensionRequest(requested) => Some(&requested.extensions),
        _ => None,
    });
    let mut lists = 0;
    for extension in requested.flatten() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => {
                lists += 1;
                names.general_names.iter().try_for_each(|name| take_name(&mut asked, name))?;
            }
            _ if extension.oid == OID_X509_EXT_SUBJECT_ALT_NAME => return Err("the subjectAltNames cannot be read"),
            _ => {}
        }
    }
    if lists > 1 {
        return Err("there is more than one list of subjectAltNames");
    }
    drop(parsed);
    asked.der = block.contents;
    Ok(asked)
}

fn take_name(asked: &mut Asked, name: &GeneralName<'_>) -> Result<(), &'static str> {
    match name {
        GeneralName::DNSName(name) => asked.names.push((*name).to_owned()),
        GeneralName::IPAddress(bytes) => asked.addresses.push(address(bytes).ok_or("a subjectAltName is no address")?),
        GeneralName::RFC822Name(mail) => asked.mails.push((*mail).to_owned()),
        GeneralName::URI(uri) => asked.uris.push((*uri).to_owned()),
        _ => return Err("only DNS, IP, email and URI subjectAltNames can be signed"),
    }
    Ok(())
}

/// Whether the signer gives a certificate for this; else why not.
pub fn suits(request: &Value, asked: &Asked) -> Result<(), &'static str> {
    let usages = object::at(request, &["spec", "usages"]).and_then(Value::as_array).into_iter().flatten();
    let usages: Vec<&str> = usages.filter_map(Value::as_str).collect();
    let only = |needed: &[&str], also: &[&str]| {
        needed.iter().all(|usage| usages.contains(usage))
            && usages.iter().all(|usage| needed.contains(usage) || also.contains(usage))
    };
    let is_node = || {
        if asked.subject.groups != ["system:nodes"] {
            return Err("subject organization is not system:nodes");
        }
        if !asked.subject.name.starts_with("system:node:") {
            return Err("subject common name does not begin with system:node:");
        }
        Ok(())
    };
    match object::text(request, &["spec", "signerName"]) {
        CLIENT if !only(&["client auth"], &["digital signature", "key encipherment"]) => {
            Err("usages did not match [client auth digital signature key encipherment]")
        }
        CLIENT if asked.subject.groups.iter().any(|group| group == "system:masters") => {
            Err("use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed")
        }
        CLIENT => Ok(()),
        KUBELET_CLIENT => {
            is_node()?;
            if asked.has_names() || asked.has_other_names() {
                return Err("DNS, IP, email and URI subjectAltNames are not allowed");
            }
            if !only(&["client auth", "digital signature"], &["key encipherment"]) {
                return Err("usages did not match [client auth digital signature key encipherment]");
            }
            Ok(())
        }
        KUBELET_SERVING => {
            is_node()?;
            if !asked.has_names() {
                return Err("DNS or IP subjectAltName is required");
            }
            if asked.has_other_names() {
                return Err("email and URI subjectAltNames are not allowed");
            }
            if !only(&["digital signature", "server auth"], &["key encipherment"]) {
                return Err("usages did not match [digital signature key encipherment server auth]");
            }
            // The node asks for itself, or somebody else's machine would answer in its name.
            if object::text(request, &["spec", "username"]) != asked.subject.name {
                return Err("the requesting user is not the node of the subject");
            }
            Ok(())
        }
        _ => Err("not a signer of this server"),
    }
}

/// Whether this server signs for the request's signer.
pub fn is_ours(request: &Value) -> bool {
    matches!(object::text(request, &["spec", "signerName"]), CLIENT | KUBELET_CLIENT | KUBELET_SERVING)
}

/// Whether `status.conditions` has one of this type.
pub fn has(request: &Value, condition: &str) -> bool {
    let all = object::at(request, &["status", "conditions"]).and_then(Value::as_array).into_iter().flatten();
    all.into_iter().any(|found| object::text(found, &["type"]) == condition)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ECDSA_P256_SHA256};
    use serde_json::json;

    /// A request of this subject, as `spec.request` has it.
    pub fn asking(signer: &str, name: &str, groups: &[&str], sans: &[&str], usages: &[&str]) -> Value {
        let mut subject = DistinguishedName::new();
        subject.push(DnType::CommonName, name);
        // rcgen has one of each type; the same type by its number is a second one.
        let types = [DnType::OrganizationName, DnType::CustomDnType(vec![2, 5, 4, 10])];
        types.into_iter().zip(groups).for_each(|(kind, group)| subject.push(kind, *group));
        asking_as(signer, name, subject, sans, usages)
    }

    /// A request of this user and subject.
    pub fn asking_as(signer: &str, name: &str, subject: DistinguishedName, sans: &[&str], usages: &[&str]) -> Value {
        let mut params =
            CertificateParams::new(sans.iter().map(|san| (*san).to_owned()).collect::<Vec<_>>()).expect("names");
        params.distinguished_name = subject;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        let pem = params.serialize_request(&key).expect("a request").pem().expect("PEM");
        json!({
            "apiVersion": "certificates.k8s.io/v1", "kind": "CertificateSigningRequest",
            "metadata": { "name": "csr", "creationTimestamp": "2030-01-01T00:00:00Z" },
            "spec": { "signerName": signer, "request": STANDARD.encode(pem), "usages": usages, "username": name },
        })
    }

    #[test]
    fn m4_each_signer_gives_only_what_it_is_for() {
        let client = ["client auth", "digital signature"];
        let server = ["server auth", "digital signature", "key encipherment"];
        let judged = |request: Value| suits(&request, &read(&request).expect("a request"));
        assert_eq!(judged(asking(KUBELET_CLIENT, "system:node:a", &["system:nodes"], &[], &client)), Ok(()));
        assert_eq!(judged(asking(KUBELET_SERVING, "system:node:a", &["system:nodes"], &["10.0.0.1"], &server)), Ok(()));
        assert_eq!(judged(asking(CLIENT, "jane", &["dev"], &[], &client)), Ok(()));
        for refused in [
            asking(KUBELET_CLIENT, "jane", &["system:nodes"], &[], &client),
            asking(KUBELET_CLIENT, "system:node:a", &["system:nodes", "system:masters"], &[], &client),
            asking(KUBELET_CLIENT, "system:node:a", &["system:nodes"], &["a.example"], &client),
            asking(KUBELET_CLIENT, "system:node:a", &["system:nodes"], &[], &server),
            asking(KUBELET_SERVING, "system:node:a", &["system:nodes"], &[], &server),
            asking(KUBELET_SERVING, "system:node:a", &["system:nodes"], &["10.0.0.1"], &client),
            asking(CLIENT, "jane", &["system:masters"], &[], &client),
            asking(CLIENT, "jane", &[], &[], &server),
            asking("example.org/signer", "jane", &[], &[], &client),
        ] {
            assert!(judged(refused.clone()).is_err(), "{refused}");
        }
        let mut other = asking(KUBELET_SERVING, "system:node:a", &["system:nodes"], &["10.0.0.1"], &server);
        other["spec"]["username"] = json!("system:node:b");
        assert!(judged(other).is_err());
        for broken in ["", "AAAA", "%", &"A".repeat(MAX_REQUEST + 1)] {
            assert!(read(&json!({ "spec": { "request": broken } })).is_err());
        }
    }
}
