//! ClusterTrustBundle: certificates that pods may trust.

use std::borrow::Cow::Borrowed;

use serde_json::json;

use super::cells::{self, NAME, text_column};
use super::field::Field;
use super::{BASE, Kind, NameRule, Row, lifecycle};
use crate::names;
use crate::object::{name, text};
use crate::status::Cause;

/// The row of ClusterTrustBundle.
pub static CLUSTER_TRUST_BUNDLE: Kind = Kind::BuiltIn(&Row {
    group: Borrowed("certificates.k8s.io"),
    kind: Borrowed("ClusterTrustBundle"),
    plural: Borrowed("clustertrustbundles"),
    singular: Borrowed("clustertrustbundle"),
    namespaced: false,
    type_name: Borrowed("io.k8s.api.certificates.v1.ClusterTrustBundle"),
    // A signer's bundles have its name before theirs, with colons.
    name_rule: NameRule::PathSegment,
    fields: |_, bundle| vec![("spec.signerName", text(bundle, &["spec", "signerName"]).to_owned())],
    columns: Borrowed(&[NAME, text_column("SignerName", "Whose certificates it trusts.")]),
    row: |_, bundle, _| vec![json!(name(bundle)), cells::or_none(text(bundle, &["spec", "signerName"]))],
    validate: |_, bundle, causes| {
        let root = Field::root(bundle);
        let (title, signer) = (root.dig(&["metadata", "name"]), root.dig(&["spec", "signerName"]));
        let certificates = root.dig(&["spec", "trustBundle"]);
        if signer.text().is_empty() {
            if title.text().contains(':') {
                causes.push(title.invalid("ClusterTrustBundle without signer name must not have \":\" in its name"));
            } else {
                causes.extend(names::subdomain(title.text()).iter().map(|wrong| title.invalid(wrong)));
            }
        } else {
            super::certificatesigningrequest::validate_signer(&signer, causes);
            let prefix = format!("{}:", signer.text().replace('/', ":"));
            match title.text().strip_prefix(&prefix) {
                None => {
                    let signer = signer.text();
                    let why = format!("ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}");
                    causes.push(title.invalid(&why));
                }
                Some(rest) => causes.extend(names::subdomain(rest).iter().map(|wrong| title.invalid(wrong))),
            }
        }
        if !certificates.text().contains("-----BEGIN CERTIFICATE-----") {
            let why = "at least one trust anchor must be provided";
            causes.push(Cause::invalid(&certificates.path, "<value omitted>", why));
        }
    },
    validate_update: |_, new, old, causes| {
        let signer = ["spec", "signerName"];
        Field::root(new).dig(&signer).immutable(&Field::root(old).dig(&signer), causes);
    },
    warnings: lifecycle::nothing_acts,
    ..BASE
});
