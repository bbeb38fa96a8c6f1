//! CertificateSigningRequest: a certificate that somebody asks for, and what became of that.

use std::borrow::Cow::Borrowed;
use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::cells::{self, AGE, NAME, text_column};
use super::field::{Field, default, each, inner, keep};
use super::{BASE, Kind, NameRule, Row, Subresource, lifecycle};
use crate::jiff::Timestamp;
use crate::names;
use crate::object::{ensure, name, text};
use crate::status::Cause;
use crate::time;

/// The shortest life that may be asked for, in seconds.
const MIN_EXPIRATION: i64 = 600;
/// What a certificate may be for, in upstream's order.
const USAGES: &[&str] = &[
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

/// The row of CertificateSigningRequest.
pub static CERTIFICATE_SIGNING_REQUEST: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("certificates.k8s.io"),
    kind: Borrowed("CertificateSigningRequest"),
    plural: Borrowed("certificatesigningrequests"),
    singular: Borrowed("certificatesigningrequest"),
    short_names: Borrowed(&[Borrowed("csr")]),
    namespaced: false,
    subresources: Borrowed(&[Subresource::Status, Subresource::Approval]),
    type_name: Borrowed("io.k8s.api.certificates.v1.CertificateSigningRequest"),
    name_rule: NameRule::PathSegment,
    fields: |_, request| vec![("spec.signerName", text(request, &["spec", "signerName"]).to_owned())],
    columns: Borrowed(&[
        NAME,
        AGE,
        text_column("SignerName", "Who is to sign it."),
        text_column("Requestor", "Who asks for it."),
        text_column("RequestedDuration", "How long it is to be good for."),
        text_column("Condition", "What became of it."),
    ]),
    row: |_, request, now| row(request, now),
    prepare_create: |_, request| lifecycle::begin_status(request, json!({})),
    prepare_update: |_, new, old| {
        lifecycle::keep_status(new, old);
        keep(new, old, "spec");
    },
    prepare_status: |_, new, old| keep_decisions(new, old),
    validate: |_, request, causes| validate(&Field::root(request).get("spec"), causes),
    validate_status: |_, new, old, causes| {
        validate_conditions(new, causes);
        let certificate = ["status", "certificate"];
        let (new, old) = (Field::root(new).dig(&certificate), Field::root(old).dig(&certificate));
        if !old.text().is_empty() && new.value != old.value {
            causes.push(Cause::forbidden(
                &new.path,
                "updates may not set certificate content if existing certificate content has been set",
            ));
        }
        if !new.text().is_empty() && pem_block(new.text(), "CERTIFICATE").is_err() {
            let why = "must contain at least one CERTIFICATE PEM block";
            causes.push(Cause::invalid(&new.path, "<certificate data>", why));
        }
    },
    ..BASE
});

/// Only `/approval` approves and denies: `/status` leaves those conditions as they are.
fn keep_decisions(new: &mut Value, old: &Value) {
    let is_decision = |condition: &Field| matches!(condition.get("type").text(), "Approved" | "Denied");
    let list = ["status", "conditions"];
    let kept = Field::root(old).dig(&list).items().filter(is_decision);
    let all: Vec<Value> =
        kept.chain(Field::root(new).dig(&list).items().filter(|c| !is_decision(c))).map(|c| c.value.clone()).collect();
    let status = ensure(new, &["status"]);
    if all.is_empty() {
        status.remove("conditions");
    } else {
        status.insert("conditions".to_owned(), all.into());
    }
}

/// Conditions without times are of now (RFC 3339).
pub fn stamp_conditions(request: &mut Value, now: &str) {
    if let Some(status) = inner(request, "status") {
        for condition in each(status, "conditions") {
            default(condition, "lastUpdateTime", now);
            default(condition, "lastTransitionTime", now);
        }
    }
}

/// What `/approval` may change: decisions come, and stay.
pub fn validate_approval(new: &Value, old: &Value, causes: &mut Vec<Cause>) {
    validate_conditions(new, causes);
    let of = |request, kind: &str| {
        let mut all = Field::root(request).dig(&["status", "conditions"]).items();
        all.find(|condition| condition.get("type").text() == kind).map(|condition| condition.value.clone())
    };
    for kind in ["Approved", "Denied", "Failed"] {
        match (of(old, kind), of(new, kind)) {
            (Some(_), None) => {
                let why = format!("updates may not remove a condition of type {kind:?}");
                causes.push(Cause::forbidden("status.conditions", &why));
            }
            (Some(before), Some(now)) if before != now && kind != "Failed" => {
                let why = format!("updates may not modify a condition of type {kind:?}");
                causes.push(Cause::forbidden("status.conditions", &why));
            }
            _ => {}
        }
    }
}

fn validate_conditions(request: &Value, causes: &mut Vec<Cause>) {
    let conditions = Field::root(request).dig(&["status", "conditions"]);
    let mut seen = BTreeSet::new();
    for condition in conditions.items() {
        let (kind, status) = (condition.get("type"), condition.get("status"));
        kind.need_text(causes);
        match (kind.text(), status.text()) {
            (_, "") => causes.push(Cause::required(&status.path, "")),
            ("Approved" | "Denied" | "Failed", "True") => {}
            ("Approved" | "Denied" | "Failed", _) => status.one_of(causes, &["True"]),
            _ => status.one_of(causes, &["False", "True", "Unknown"]),
        }
        let excluded = match kind.text() {
            "Approved" => seen.contains("Denied"),
            "Denied" => seen.contains("Approved"),
            _ => false,
        };
        if excluded {
            causes.push(kind.invalid("Approved and Denied conditions are mutually exclusive"));
        }
        if !seen.insert(kind.text()) {
            causes.push(Cause::duplicate(&kind.path, kind.text()));
        }
    }
}

fn row(request: &Value, now: Timestamp) -> Vec<Value> {
    let spec = Field::root(request).get("spec");
    let duration = spec.get("expirationSeconds").int().map_or("<none>".to_owned(), time::human);
    vec![
        json!(name(request)),
        cells::age(request, now),
        cells::or_none(spec.get("signerName").text()),
        json!(spec.get("username").text()),
        json!(duration),
        json!(condition(request)),
    ]
}

fn condition(request: &Value) -> String {
    let status = Field::root(request).get("status");
    let has = |kind: &str| status.get("conditions").items().any(|condition| condition.get("type").text() == kind);
    let decided = if has("Denied") {
        "Denied"
    } else if has("Approved") {
        "Approved"
    } else {
        "Pending"
    };
    let failed = if has("Failed") { ",Failed" } else { "" };
    let issued = if status.get("certificate").text().is_empty() { "" } else { ",Issued" };
    format!("{decided}{failed}{issued}")
}

fn validate(spec: &Field, causes: &mut Vec<Cause>) {
    let request = spec.get("request");
    if let Some(why) = pem_block(request.text(), "CERTIFICATE REQUEST").err() {
        causes.push(Cause::invalid(&request.path, request.value.clone(), why));
    }
    let (usages, mut seen) = (spec.get("usages"), BTreeSet::new());
    if usages.len() == 0 {
        causes.push(Cause::required(&usages.path, ""));
    }
    for usage in usages.items() {
        if !USAGES.contains(&usage.text()) {
            causes.push(Cause::not_supported(&usage.path, usage.text(), USAGES));
        }
        if !seen.insert(usage.text()) {
            causes.push(Cause::duplicate(&usage.path, usage.text()));
        }
    }
    let signer = spec.get("signerName");
    if signer.text() == "kubernetes.io/legacy-unknown" {
        causes.push(signer.invalid("the legacy signerName is not allowed via this API version"));
    } else {
        validate_signer(&signer, causes);
    }
    let expiration = spec.get("expirationSeconds");
    if expiration.int().is_some_and(|seconds| seconds < MIN_EXPIRATION) {
        causes.push(expiration.invalid("may not specify a duration less than 600 seconds (10 minutes)"));
    }
}

/// Whether base64 text holds a PEM block of this type; what is inside is the signer's to judge.
fn pem_block(base64: &str, kind: &str) -> Result<(), &'static str> {
    let bytes = decode_base64(base64).ok_or("PEM block type must be CERTIFICATE REQUEST")?;
    let text = String::from_utf8(bytes).map_err(|_| "PEM block type must be CERTIFICATE REQUEST")?;
    let begins = text.find(&format!("-----BEGIN {kind}-----"));
    let ends = text.find(&format!("-----END {kind}-----"));
    if begins.zip(ends).is_some_and(|(from, to)| from < to) {
        Ok(())
    } else {
        Err("PEM block type must be CERTIFICATE REQUEST")
    }
}

/// Standard base64; `None` where it is not.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0u32, 0u32);
    for byte in text.bytes().filter(|b| !b.is_ascii_whitespace() && *b != b'=') {
        let six = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(six)) & 0x00ff_ffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).unwrap_or(0));
        }
    }
    Some(bytes)
}

/// `example.com/signer`: a domain of two segments or more, and a path.
pub(super) fn validate_signer(signer: &Field, causes: &mut Vec<Cause>) {
    if !signer.need_text(causes) {
        return;
    }
    let parts: Vec<&str> = signer.text().split('/').collect();
    let [domain, path] = parts.as_slice() else {
        causes.push(signer.invalid("must be a fully qualified domain and path of the form 'example.com/signer-name'"));
        return;
    };
    if domain.len() > names::SUBDOMAIN_LENGTH {
        causes.push(Cause::too_long(&signer.path, names::SUBDOMAIN_LENGTH));
    }
    let mut labels = |text: &str, check: fn(&str) -> Vec<String>| {
        let wrong = text.split('.').map(|label| (label, check(label))).find(|(_, wrong)| !wrong.is_empty());
        for why in wrong.iter().flat_map(|(label, wrong)| wrong.iter().map(move |why| (label, why))) {
            let detail = format!("validating label {:?}: {}", why.0, why.1);
            causes.push(Cause::invalid(&signer.path, text, &detail));
        }
    };
    labels(domain, names::label);
    labels(path, names::subdomain);
    if !domain.contains('.') {
        let why = "should be a domain with at least two segments separated by dots";
        causes.push(Cause::invalid(&signer.path, *domain, why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_a_pem_block_in_base64() {
        let block =
            "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlJQgotLS0tLUVORCBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0K";
        assert_eq!(pem_block(block, "CERTIFICATE REQUEST"), Ok(()));
        assert!(pem_block("", "CERTIFICATE REQUEST").is_err() && pem_block("%", "CERTIFICATE REQUEST").is_err());
        assert_eq!(decode_base64("aGVsbG8="), Some(b"hello".to_vec()));
    }
}
