//! What a pod's volumes must look like: a name, and exactly one source.

use std::collections::BTreeSet;

use super::certificatesigningrequest;
use super::container_validation::{file_path, no_backsteps};
use super::downward_validation::{self, Told};
use super::field::Field;
use super::pod_spec_validation::validate_amount;
use crate::metadata::validate_label_selector;
use crate::names;
use crate::status::{Cause, MAX_CAUSES};

const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const HOST_PATH_TYPES: [&str; 7] =
    ["BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];

/// The list of volumes; returns the names that mounts may use.
pub fn validate<'a>(volumes: &Field<'a>, causes: &mut Vec<Cause>) -> BTreeSet<&'a str> {
    let mut seen = BTreeSet::new();
    for volume in volumes.items() {
        if causes.len() > MAX_CAUSES {
            break;
        }
        let name = volume.get("name");
        if name.need_text(causes) {
            let wrong = names::label(name.text());
            causes.extend(wrong.iter().map(|wrong| name.invalid(wrong)));
            if !seen.insert(name.text()) {
                causes.push(Cause::duplicate(&name.path, name.text()));
            }
        }
        let sources = volume.value.as_object().into_iter().flatten();
        let mut sources =
            sources.filter(|(key, value)| *key != "name" && !value.is_null()).map(|(key, _)| key.as_str());
        match sources.next() {
            None => causes.push(Cause::required(&volume.path, "must specify a volume type")),
            Some(first) => source(first, &volume.get(first), causes),
        }
        for extra in sources {
            causes.push(Cause::forbidden(volume.get(extra).path, "may not specify more than 1 volume type"));
        }
    }
    seen
}

fn source(kind: &str, at: &Field, causes: &mut Vec<Cause>) {
    match kind {
        "hostPath" => host_path(at, causes),
        "emptyDir" if at.get("sizeLimit").is_set() => {
            validate_amount(&at.get("sizeLimit"), causes);
        }
        "secret" => {
            at.get("secretName").need_text(causes);
            files(at, causes);
        }
        "configMap" => {
            at.get("name").need_text(causes);
            files(at, causes);
        }
        "downwardAPI" => downward(at, causes),
        "persistentVolumeClaim" => {
            at.get("claimName").need_text(causes);
        }
        "nfs" => nfs(at, causes),
        "image" => at.get("pullPolicy").one_of(causes, &["Always", "IfNotPresent", "Never"]),
        "projected" => projected(at, causes),
        _ => {}
    }
}

/// `hostPath` of a pod or a PersistentVolume.
pub fn host_path(at: &Field, causes: &mut Vec<Cause>) {
    let path = at.get("path");
    if path.need_text(causes) {
        no_backsteps(&path, causes);
    }
    at.get("type").one_of(causes, &HOST_PATH_TYPES);
}

/// `nfs` of a pod or a PersistentVolume.
pub fn nfs(at: &Field, causes: &mut Vec<Cause>) {
    at.get("server").need_text(causes);
    let path = at.get("path");
    if path.need_text(causes) && !path.text().starts_with('/') {
        causes.push(path.invalid("must be an absolute path"));
    }
}

fn files(at: &Field, causes: &mut Vec<Cause>) {
    mode(&at.get("defaultMode"), causes);
    for item in at.get("items").items() {
        item.get("key").need_text(causes);
        let path = item.get("path");
        if path.need_text(causes) {
            file_path(&path, causes);
        }
        mode(&item.get("mode"), causes);
    }
}

fn downward(at: &Field, causes: &mut Vec<Cause>) {
    mode(&at.get("defaultMode"), causes);
    for item in at.get("items").items() {
        let path = item.get("path");
        if path.need_text(causes) {
            file_path(&path, causes);
        }
        let (field, resource) = (item.get("fieldRef"), item.get("resourceFieldRef"));
        match (field.is_set(), resource.is_set()) {
            (true, false) => downward_validation::field(&field, Told::File, causes),
            (false, true) => downward_validation::resource(&resource, Told::File, causes),
            (true, true) => {
                causes.push(item.invalid("fieldRef and resourceFieldRef can not be specified simultaneously"))
            }
            (false, false) => {
                causes.push(Cause::required(&item.path, "one of fieldRef and resourceFieldRef is required"))
            }
        }
        mode(&item.get("mode"), causes);
    }
}

fn mode(at: &Field, causes: &mut Vec<Cause>) {
    if at.int().is_some_and(|mode| !(0..=0o777).contains(&mode)) {
        causes.push(at.invalid(MODE));
    }
}

fn projected(at: &Field, causes: &mut Vec<Cause>) {
    mode(&at.get("defaultMode"), causes);
    for source in at.get("sources").items() {
        for (kind, name) in [("secret", "name"), ("configMap", "name"), ("serviceAccountToken", "path")] {
            let field = source.get(kind);
            if field.is_set() {
                field.get(name).need_text(causes);
                files(&field, causes);
            }
        }
        let token = source.get("serviceAccountToken");
        file_path(&token.get("path"), causes);
        let expiration = token.get("expirationSeconds");
        if expiration.int().is_some_and(|seconds| seconds < 600) {
            causes.push(expiration.invalid("may not specify a duration less than 10 minutes"));
        } else if expiration.int().is_some_and(|seconds| seconds > 1 << 32) {
            causes.push(expiration.invalid("may not specify a duration larger than 2^32 seconds"));
        }
        downward(&source.get("downwardAPI"), causes);
        trust_bundle(&source.get("clusterTrustBundle"), causes);
        certificate(&source.get("podCertificate"), causes);
        if source.entries().filter(|(_, value)| value.is_set()).count() > 1 {
            causes.push(Cause::forbidden(&source.path, "may not specify more than 1 volume type per source"));
        }
    }
}

/// Certificates that are trusted: those of one ClusterTrustBundle, or those of a signer.
fn trust_bundle(at: &Field, causes: &mut Vec<Cause>) {
    if !at.is_set() {
        return;
    }
    let (name, signer, labels) = (at.get("name"), at.get("signerName"), at.get("labelSelector"));
    match (name.is_set(), signer.is_set()) {
        (true, true) => causes.push(at.invalid("only one of name and signerName may be used")),
        (true, false) => {
            if name.text().is_empty() {
                causes.push(Cause::required(&name.path, "must be a valid object name"));
            }
            let own = name.text().rsplit_once(':').map_or(name.text(), |(_, own)| own);
            let wrong = names::subdomain(own);
            causes.extend(wrong.iter().map(|why| name.invalid(&format!("not a valid clustertrustbundlename: {why}"))));
            if labels.is_set() {
                causes.push(labels.invalid("labelSelector must be unset if name is specified"));
            }
        }
        (false, true) => {
            certificatesigningrequest::validate_signer(&signer, causes);
            validate_label_selector(&labels, causes);
        }
        (false, false) => causes.push(Cause::required(&at.path, "either name or signerName must be specified")),
    }
    let path = at.get("path");
    if path.need_text(causes) {
        file_path(&path, causes);
    }
}

/// A certificate of the pod's own.
fn certificate(at: &Field, causes: &mut Vec<Cause>) {
    const KEYS: [&str; 6] = ["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];
    if !at.is_set() {
        return;
    }
    certificatesigningrequest::validate_signer(&at.get("signerName"), causes);
    let key = at.get("keyType");
    if !KEYS.contains(&key.text()) {
        causes.push(Cause::not_supported(&key.path, key.text(), &KEYS));
    }
    let expiration = at.get("maxExpirationSeconds");
    if expiration.int().is_some_and(|seconds| seconds < 3600) {
        causes.push(expiration.invalid("if provided, maxExpirationSeconds must be >= 3600"));
    }
    let paths = ["credentialBundlePath", "keyPath", "certificateChainPath"].map(|path| at.get(path));
    paths.iter().for_each(|path| file_path(path, causes));
    if paths.iter().all(|path| path.text().is_empty()) {
        let why = "specify at least one of credentialBundlePath, keyPath, and certificateChainPath";
        causes.push(Cause::required(&at.path, why));
    }
}
