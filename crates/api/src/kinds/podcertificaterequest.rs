//! PodCertificateRequest: a certificate that a node asks for in a pod's name.

use std::borrow::Cow::Borrowed;

use serde_json::json;

use super::cells::{self, AGE, NAME, text_column};
use super::field::{Field, default, made};
use super::{BASE, Kind, Row, Subresource, lifecycle};
use crate::names;
use crate::object::{name, text};

/// The shortest and longest life that may be asked for, in seconds.
const EXPIRATION: std::ops::RangeInclusive<i64> = 3600..=7_862_400;
/// Upstream's default life, in seconds.
const DEFAULT_EXPIRATION: i64 = 86_400;

/// The row of PodCertificateRequest.
pub static POD_CERTIFICATE_REQUEST: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("certificates.k8s.io"),
    kind: Borrowed("PodCertificateRequest"),
    plural: Borrowed("podcertificaterequests"),
    singular: Borrowed("podcertificaterequest"),
    subresources: Borrowed(&[Subresource::Status]),
    type_name: Borrowed("io.k8s.api.certificates.v1.PodCertificateRequest"),
    fields: |_, request| {
        let of = |field| text(request, &["spec", field]).to_owned();
        vec![("spec.signerName", of("signerName")), ("spec.podName", of("podName")), ("spec.nodeName", of("nodeName"))]
    },
    columns: Borrowed(&[
        NAME,
        text_column("PodName", "The pod that it is for."),
        text_column("ServiceAccountName", "The pod's service account."),
        text_column("NodeName", "The node that asks for it."),
        text_column("SignerName", "Who is to sign it."),
        text_column("State", "What became of it."),
        AGE,
    ]),
    row: |_, request, now| {
        let of = |field| json!(text(request, &["spec", field]));
        let conditions = Field::root(request).dig(&["status", "conditions"]);
        let state = conditions.items().map(|condition| condition.get("type").text()).next().unwrap_or("Pending");
        vec![
            json!(name(request)),
            of("podName"),
            of("serviceAccountName"),
            of("nodeName"),
            of("signerName"),
            json!(state),
            cells::age(request, now),
        ]
    },
    defaults: |_, request| {
        if let Some(spec) = made(request, "spec") {
            default(spec, "maxExpirationSeconds", DEFAULT_EXPIRATION);
        }
    },
    prepare_create: |_, request| lifecycle::begin_status(request, json!({})),
    prepare_update: |_, new, old| lifecycle::keep_status(new, old),
    validate: |_, request, causes| {
        let spec = Field::root(request).get("spec");
        super::certificatesigningrequest::validate_signer(&spec.get("signerName"), causes);
        for field in ["podName", "serviceAccountName", "nodeName"] {
            spec.get(field).need(causes, names::subdomain);
        }
        for field in ["podUID", "serviceAccountUID", "nodeUID", "stubPKCS10Request"] {
            spec.get(field).need_text(causes);
        }
        let life = spec.get("maxExpirationSeconds");
        if life.int().is_some_and(|seconds| !EXPIRATION.contains(&seconds)) {
            causes.push(life.invalid(&format!("must be in the range [{}, {}]", EXPIRATION.start(), EXPIRATION.end())));
        }
    },
    validate_update: |_, new, old, causes| {
        Field::root(new).get("spec").immutable(&Field::root(old).get("spec"), causes);
    },
    warnings: lifecycle::nothing_acts,
    ..BASE
});
