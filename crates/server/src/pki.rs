//! The cluster's keys and certificates: one CA, and what it signs. P-256 everywhere.
//!
//! Kept over restarts in `<data>/pki`, folder 0700 and keys 0600 (X2); a certificate is made again when it is
//! near its end or when the addresses that it must carry have changed. The CA's own key is never replaced
//! silently: a CA that has run out, or that is not there beside a store that has a cluster (`origin`), is an error that
//! a person must see.

use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use jiff::{Timestamp, ToSpan, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SubjectPublicKeyInfo,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509CertificationRequest};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::credentials::request::Asked;
use crate::subject::{Subject, put_into};

/// How much earlier than now a certificate that was asked for begins, in seconds.
const CLOCKS_APART: i64 = 300;
/// How long the CA is good for, in days.
const CA_DAYS: i64 = 3650;
/// How long a signed certificate is good for, in days.
const LEAF_DAYS: i64 = 365;
/// A certificate with fewer days left than this is made again at the next start.
const RENEW_DAYS: i64 = 90;

/// A certificate and its key, both PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate chain.
    pub certificate: String,
    /// The private key, PKCS#8. Never logged (X2).
    pub key: String,
}

impl Identity {
    /// As rustls wants them.
    pub fn der(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), PkiError> {
        let chain = CertificateDer::pem_slice_iter(self.certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| PkiError::Pem)?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).map_err(|_| PkiError::Pem)?;
        Ok((chain, key))
    }
}

/// Why the keys could not be had.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// Reading or writing a file failed.
    #[error("{path}: {source}")]
    File { path: PathBuf, source: std::io::Error },
    /// A file is there but is not what it should be.
    #[error(
        "a key or certificate could not be read; bring the pki folder back from a backup, or move it away and start \
         with --new-keys"
    )]
    Pem,
    /// The CA's certificate has run out.
    #[error("the cluster's CA certificate in {0} has expired; move the pki folder away and start with --new-keys")]
    CaExpired(PathBuf),
    /// The CA's certificate begins after now.
    #[error(
        "the cluster's CA certificate in {path} is good from {from} on, and this machine's clock says that it is \
         {now}: set the clock"
    )]
    CaTooNew { path: PathBuf, from: Timestamp, now: Timestamp },
    /// A certificate request is broken, or is not signed with the key that it is for.
    #[error("the certificate request is not signed with its own key")]
    Request,
    /// What was signed is not what was judged.
    #[error("the certificate would not say what was asked for")]
    Differs,
    /// Signing failed.
    #[error("making a certificate failed: {0}")]
    Sign(#[from] rcgen::Error),
}

/// Everything under `<data>/pki`.
pub struct Pki {
    folder: PathBuf,
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Moves a folder of keys away that has one half of its CA alone: [`Pki::open`] would write over it, and somebody may
/// find the other half again.
pub fn set_half_aside(folder: &Path) -> Result<(), PkiError> {
    if folder.join("ca.crt").exists() == folder.join("ca.key").exists() {
        return Ok(());
    }
    let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let free = (1..).map(|number: u32| folder.with_file_name(format!("{name}.before-{number}")));
    let aside = free.into_iter().find(|path| !path.exists()).unwrap_or_else(|| unreachable!("some number is free"));
    std::fs::rename(folder, aside).map_err(|source| PkiError::File { path: folder.to_owned(), source })
}

/// What a certificate is for.
enum Purpose<'a> {
    Server(&'a [String]),
    Client,
    Both(&'a [String]),
}

impl Pki {
    /// Opens the folder, or makes it with a new CA.
    pub fn open(folder: &Path, now: Timestamp) -> Result<Self, PkiError> {
        make_private_folder(folder)?;
        let certificate = folder.join("ca.crt");
        let key = folder.join("ca.key");
        if !certificate.exists() || !key.exists() {
            let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
            let mut params = CertificateParams::new(Vec::new())?;
            params.distinguished_name.push(DnType::CommonName, "mainstay-ca");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages =
                vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign];
            valid_for(&mut params, now, CA_DAYS);
            let signed = params.self_signed(&pair)?;
            // The key first: a certificate without its key would look like a finished CA after a crash.
            write_private(&key, pair.serialize_pem().as_bytes())?;
            write_private(&certificate, signed.pem().as_bytes())?;
        }
        let ca_pem = read(&certificate)?;
        if days_left(&ca_pem, now).ok_or(PkiError::Pem)? <= 0 {
            return Err(PkiError::CaExpired(certificate));
        }
        if let Some(from) = begin(&ca_pem).filter(|from| *from > now) {
            return Err(PkiError::CaTooNew { path: certificate, from, now });
        }
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, KeyPair::from_pem(&read(&key)?)?)?;
        Ok(Self { folder: folder.to_owned(), ca_pem, issuer })
    }

    /// The CA's certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// By what the CA is known however often its certificate is renewed: `sha256:<of its public key>`.
    pub fn ca_hash(&self) -> Result<String, PkiError> {
        let der = CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).map_err(|_| PkiError::Pem)?;
        let (_, ca) = X509Certificate::from_der(&der).map_err(|_| PkiError::Pem)?;
        let digest = ring::digest::digest(&ring::digest::SHA256, ca.public_key().raw);
        let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(format!("sha256:{hex}"))
    }

    /// The API server's serving certificate, for these names and addresses.
    pub fn serving(&self, names: &[String], now: Timestamp) -> Result<Identity, PkiError> {
        self.identity("server", "kube-apiserver", &[], &Purpose::Server(names), now)
    }

    /// A client certificate: `CN` is the user's name and each `O` a group.
    pub fn client(&self, file: &str, user: &str, groups: &[&str], now: Timestamp) -> Result<Identity, PkiError> {
        self.identity(file, user, groups, &Purpose::Client, now)
    }

    /// A node's certificate: client of the API server, and server of its own kubelet port.
    pub fn node(&self, node: &str, names: &[String], now: Timestamp) -> Result<Identity, PkiError> {
        self.identity(
            &format!("node-{node}"),
            &format!("system:node:{node}"),
            &["system:nodes"],
            &Purpose::Both(names),
            now,
        )
    }

    /// Signs what was asked for, for at most `seconds` and [`LEAF_DAYS`], as a server's or a client's; PEM. Who may
    /// have it was decided before. Of the request itself only the key is taken: the subject and the names are those
    /// that were judged, and what came of them is looked at once more.
    pub fn sign(&self, asked: &Asked, serves: bool, seconds: Option<i64>, now: Timestamp) -> Result<String, PkiError> {
        let (_, request) = X509CertificationRequest::from_der(&asked.der).map_err(|_| PkiError::Request)?;
        request.verify_signature().map_err(|_| PkiError::Request)?;
        let key = SubjectPublicKeyInfo::from_der(request.certification_request_info.subject_pki.raw)?;
        let longest = LEAF_DAYS * 86_400;
        let left = days_left(&self.ca_pem, now).unwrap_or(0) * 86_400;
        let seconds = seconds.unwrap_or(longest).clamp(1, longest.min(left).max(1));
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::NoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![if serves { ExtendedKeyUsagePurpose::ServerAuth } else { ExtendedKeyUsagePurpose::ClientAuth }];
        let text = |text: &String| text.as_str().try_into();
        let names = asked.names.iter().map(|name| Ok(SanType::DnsName(text(name)?)));
        let mails = asked.mails.iter().map(|mail| Ok(SanType::Rfc822Name(text(mail)?)));
        let uris = asked.uris.iter().map(|uri| Ok(SanType::URI(text(uri)?)));
        let addresses = asked.addresses.iter().map(|address| Ok(SanType::IpAddress(*address)));
        params.subject_alt_names =
            names.chain(mails).chain(uris).chain(addresses).collect::<Result<_, rcgen::Error>>()?;
        // A little before now: other machines' clocks may be behind.
        let at = |second: i64| {
            rcgen::date_time_ymd(1970, 1, 1) + std::time::Duration::from_secs(u64::try_from(second).unwrap_or(0))
        };
        params.not_before = at(now.as_second().saturating_sub(CLOCKS_APART));
        params.not_after = at(now.as_second().saturating_add(seconds));
        let der = self.issue(params, &key, &asked.subject)?;
        let (_, made) = X509Certificate::from_der(&der).map_err(|_| PkiError::Pem)?;
        let addresses = asked.addresses.iter().map(IpAddr::to_string);
        let is_as_judged = Subject::read(made.subject()).as_ref() == Some(&asked.subject)
            && !made.is_ca()
            && made.public_key().raw == request.certification_request_info.subject_pki.raw
            && carried_names(&made) == asked.names.iter().cloned().chain(addresses).collect::<Vec<_>>();
        if !is_as_judged {
            return Err(PkiError::Differs);
        }
        Ok(pem(&der))
    }

    /// A certificate of these parameters, whose subject is this one; DER.
    fn issue(
        &self,
        params: CertificateParams,
        key: &impl PublicKeyData,
        subject: &Subject,
    ) -> Result<Vec<u8>, PkiError> {
        put_into(subject, params.signed_by(key, &self.issuer)?.der(), self.issuer.key())
    }

    /// The ES256 key that signs service account tokens: PKCS#8 PEM, made once.
    pub fn token_key(&self) -> Result<KeyPair, PkiError> {
        let path = self.folder.join("sa.key");
        if !path.exists() {
            write_private(&path, KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?.serialize_pem().as_bytes())?;
        }
        Ok(KeyPair::from_pem(&read(&path)?)?)
    }

    fn identity(
        &self,
        file: &str,
        user: &str,
        groups: &[&str],
        purpose: &Purpose<'_>,
        now: Timestamp,
    ) -> Result<Identity, PkiError> {
        let subject = Subject { name: user.to_owned(), groups: groups.iter().map(|&group| group.to_owned()).collect() };
        let certificate = self.folder.join(format!("{file}.crt"));
        let key = self.folder.join(format!("{file}.key"));
        if certificate.exists() && key.exists() {
            let kept = Identity { certificate: read(&certificate)?, key: read(&key)? };
            if self.is_still_good(&kept, &subject, purpose, now) {
                return Ok(kept);
            }
        }
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let names = match purpose {
            Purpose::Server(names) | Purpose::Both(names) => names.to_vec(),
            Purpose::Client => Vec::new(),
        };
        let mut params = CertificateParams::new(names)?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = match purpose {
            Purpose::Server(_) => vec![ExtendedKeyUsagePurpose::ServerAuth],
            Purpose::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
            Purpose::Both(_) => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        };
        valid_for(&mut params, now, LEAF_DAYS);
        let signed = self.issue(params, &pair, &subject)?;
        let made = Identity { certificate: pem(&signed), key: pair.serialize_pem() };
        // Not waited for: what is lost or torn with the machine is made again.
        replace_private(&key, made.key.as_bytes(), Durable::No)?;
        replace_private(&certificate, made.certificate.as_bytes(), Durable::No)?;
        Ok(made)
    }

    /// Signed by this CA for this user, of the key beside it, good by now, far from its end, and carrying every name
    /// that is asked for now.
    fn is_still_good(&self, kept: &Identity, subject: &Subject, purpose: &Purpose<'_>, now: Timestamp) -> bool {
        if days_left(&kept.certificate, now).is_none_or(|days| days < RENEW_DAYS) {
            return false;
        }
        // The clock was ahead when it was made.
        if begin(&kept.certificate).is_none_or(|from| from > now) {
            return false;
        }
        let (Ok(leaf), Ok(ca)) = (
            CertificateDer::from_pem_slice(kept.certificate.as_bytes()),
            CertificateDer::from_pem_slice(self.ca_pem.as_bytes()),
        ) else {
            return false;
        };
        let (Ok((_, leaf)), Ok((_, ca))) = (X509Certificate::from_der(&leaf), X509Certificate::from_der(&ca)) else {
            return false;
        };
        let is_of_user = Subject::read(leaf.subject()).as_ref() == Some(subject);
        let names = match purpose {
            Purpose::Server(names) | Purpose::Both(names) => *names,
            Purpose::Client => &[],
        };
        let carried = carried_names(&leaf);
        let public = KeyPair::from_pem(&kept.key).map(|pair| pair.public_key_raw().to_vec());
        is_of_user
            && public.is_ok_and(|public| public == *leaf.public_key().subject_public_key.data)
            && leaf.issuer() == ca.subject()
            && authority_matches(&leaf, &ca)
            && names.iter().all(|name| carried.contains(name))
    }
}

/// Whether the leaf names the CA's key as its issuer's: after the pki folder's CA was replaced, old leaves are of no
/// use.
fn authority_matches(leaf: &X509Certificate<'_>, ca: &X509Certificate<'_>) -> bool {
    use x509_parser::extensions::ParsedExtension;
    let authority = leaf.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
        _ => None,
    });
    let subject = ca.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    });
    // rcgen writes no authority key identifier unless asked; then the names decide.
    authority.is_none() || authority == subject
}

fn carried_names(certificate: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let names = names.value.general_names.iter();
    names
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => match bytes.len() {
                4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
                _ => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
            },
            _ => None,
        })
        .collect()
}

/// A certificate as PEM.
fn pem(der: &[u8]) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let text = STANDARD.encode(der);
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// Until when a certificate (DER) is good.
pub fn end(der: &[u8]) -> Option<Timestamp> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Timestamp::from_second(certificate.validity().not_after.timestamp()).ok()
}

/// From when on a certificate is good.
fn begin(pem: &str) -> Option<Timestamp> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    Timestamp::from_second(certificate.validity().not_before.timestamp()).ok()
}

fn days_left(pem: &str, now: Timestamp) -> Option<i64> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    Some((certificate.validity().not_after.timestamp() - now.as_second()) / 86_400)
}

/// From the day before (clocks of other machines may be behind) until `days` from now.
fn valid_for(params: &mut CertificateParams, now: Timestamp, days: i64) {
    let date = |days: i64| {
        let date = now.to_zoned(TimeZone::UTC).date().saturating_add(days.days());
        rcgen::date_time_ymd(i32::from(date.year()), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    params.not_before = date(-1);
    params.not_after = date(days);
}

fn read(path: &Path) -> Result<String, PkiError> {
    std::fs::read_to_string(path).map_err(|source| PkiError::File { path: path.to_owned(), source })
}

/// Makes a folder that only its owner may enter, and closes one that is open to others.
pub fn make_private_folder(path: &Path) -> Result<(), PkiError> {
    let fails = |source| PkiError::File { path: path.to_owned(), source };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(fails)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).map_err(fails)
}

/// Whether a file has to be on the disk before anybody goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Durable {
    /// What cannot be made again.
    Yes,
    /// What is looked at, and made again, at every start.
    No,
}

/// As [`replace_private`], durably.
pub fn write_private(path: &Path, content: &[u8]) -> Result<(), PkiError> {
    replace_private(path, content, Durable::Yes)
}

/// Replaces a file in one step: written beside it with mode 0600, synced if it is to be durable, renamed. One that is
/// so already is left as it is: that needs no room on the disk.
pub fn replace_private(path: &Path, content: &[u8], durable: Durable) -> Result<(), PkiError> {
    let fails = |source| PkiError::File { path: path.to_owned(), source };
    let private = std::fs::symlink_metadata(path)
        .is_ok_and(|there| there.is_file() && there.permissions().mode() & 0o7777 == 0o600);
    if private && std::fs::read(path).is_ok_and(|there| there == content) {
        return Ok(());
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    // A left-over of a crash may have another mode.
    let _ = std::fs::remove_file(&temporary);
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).map_err(fails)?;
    file.write_all(content).map_err(fails)?;
    if durable == Durable::Yes {
        file.sync_all().map_err(fails)?;
    }
    std::fs::rename(&temporary, path).map_err(fails)
}

/// The present context of our kubeconfigs, and what others' names begin with.
pub const CONTEXT: &str = "mainstay";

/// A kubeconfig with everything inside it: the servers (`host:port`; the first is in the present context, `mainstay`,
/// each other in `mainstay@host:port`), CA, client certificate and key. It is JSON, which is YAML too.
pub fn kubeconfig(servers: &[String], ca_pem: &str, user: &str, identity: &Identity) -> String {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    // The first is the present context.
    let name = |index: usize, server: &str| if index == 0 { CONTEXT.to_owned() } else { format!("{CONTEXT}@{server}") };
    let ca = STANDARD.encode(ca_pem);
    let clusters: Vec<_> = servers
        .iter()
        .enumerate()
        .map(|(index, server)| {
            serde_json::json!({
                "name": name(index, server),
                "cluster": { "server": format!("https://{server}"), "certificate-authority-data": ca },
            })
        })
        .collect();
    let contexts: Vec<_> = servers
        .iter()
        .enumerate()
        .map(|(index, server)| {
            serde_json::json!({
                "name": name(index, server), "context": { "cluster": name(index, server), "user": user },
            })
        })
        .collect();
    let config = serde_json::json!({
        "apiVersion": "v1", "kind": "Config", "preferences": {}, "current-context": CONTEXT,
        "clusters": clusters,
        "users": [{ "name": user, "user": {
            "client-certificate-data": STANDARD.encode(&identity.certificate),
                "client-key-data": STANDARD.encode(&identity.key),
        } }],
        "contexts": contexts,
    });
    format!("{config:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{DistinguishedName, DnType};

    #[test]
    fn a_certificate_is_kept_while_it_is_whole_and_made_again_when_the_machine_has_torn_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let pki = Pki::open(folder.path(), now).expect("opened");
        let first = pki.client("a", "a", &[], now).expect("made");
        let again = pki.client("a", "a", &[], now).expect("kept");
        assert_eq!((&first.certificate, &first.key), (&again.certificate, &again.key));
        let other = pki.client("b", "b", &[], now).expect("made");
        // A power failure may leave either file empty, or as it was before the other.
        for (file, content) in [("a.key", ""), ("a.crt", ""), ("a.key", other.key.as_str())] {
            std::fs::write(folder.path().join(file), content).expect("written");
            let healed = pki.client("a", "a", &[], now).expect("made again");
            assert_ne!(healed.certificate, first.certificate, "{file}");
            let pair = KeyPair::from_pem(&healed.key).expect("a key");
            let der = CertificateDer::from_pem_slice(healed.certificate.as_bytes()).expect("PEM");
            let (_, leaf) = X509Certificate::from_der(&der).expect("a certificate");
            assert_eq!(pair.public_key_raw(), &*leaf.public_key().subject_public_key.data, "{file}");
        }
    }

    #[test]
    fn a_certificate_of_a_clock_that_was_ahead_is_made_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let [now, ahead]: [Timestamp; 2] =
            ["2026-01-01T00:00:00Z", "2026-06-01T00:00:00Z"].map(|time| time.parse().expect("a time"));
        drop(Pki::open(folder.path(), now).expect("opened"));
        let names = ["127.0.0.1".to_owned()];
        let made = |at: Timestamp| {
            let pki = Pki::open(folder.path(), at).expect("opened");
            let all = [pki.serving(&names, at), pki.client("a", "a", &[], at), pki.node("n", &names, at)];
            all.map(|made| made.expect("made").certificate)
        };
        let early = made(ahead);
        for (right, early) in made(now).iter().zip(&early) {
            assert_ne!(right, early);
            assert!(begin(right).is_some_and(|from| from <= now));
        }
        assert_eq!(made(now), made(now), "and are kept then");
        let other = tempfile::tempdir().expect("a folder");
        drop(Pki::open(other.path(), ahead).expect("opened"));
        let refused = Pki::open(other.path(), now).map(drop).expect_err("not good yet").to_string();
        assert!(refused.contains("good from 2026-05-31") && refused.contains("set the clock"), "{refused}");
    }

    #[test]
    fn m4_a_certificate_says_what_was_judged_and_nothing_beside_it() {
        use crate::auth::User;
        use crate::credentials::request::tests::{asking, asking_as};
        use crate::credentials::request::{CLIENT, KUBELET_CLIENT, read, suits};
        let folder = tempfile::tempdir().expect("a folder");
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let pki = Pki::open(folder.path(), now).expect("opened");
        let usages = ["client auth", "digital signature"];
        let signed = |request: &serde_json::Value| {
            let asked = read(request)?;
            suits(request, &asked)?;
            let pem = pki.sign(&asked, false, None, now).map_err(|_| "not signed")?;
            let der = CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
            Ok::<_, &str>(User::of_certificate(&der).expect("somebody"))
        };
        let jane = signed(&asking(CLIENT, "jane", &["ga", "gb"], &["jane.example"], &usages)).expect("signed");
        assert_eq!((&*jane.name, &jane.groups[..2]), ("jane", &["ga".to_owned(), "gb".to_owned()][..]));
        // The last name of each type would win, or the one that only others can read.
        let teletex = |text: &str| rcgen::DnValue::TeletexString(text.try_into().expect("text"));
        let bmp = |text: &str| rcgen::DnValue::BmpString(text.try_into().expect("text"));
        for (kind, value) in [
            (3, rcgen::DnValue::from("system:kube-controller-manager")),
            (10, teletex("system:masters")),
            (10, bmp("system:masters")),
        ] {
            let mut subject = DistinguishedName::new();
            subject.push(DnType::CommonName, "system:node:new");
            subject.push(DnType::OrganizationName, "system:nodes");
            subject.push(DnType::CustomDnType(vec![2, 5, 4, kind]), value.clone());
            let request = asking_as(KUBELET_CLIENT, "system:node:new", subject.clone(), &[], &usages);
            let refused = signed(&request).expect_err("refused");
            assert!(refused.starts_with("the subject has more than one common name"), "{refused} {value:?}");
            // Nor is such a certificate anybody's, should it exist.
            let mut params = CertificateParams::default();
            params.distinguished_name = subject;
            let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
            assert_eq!(User::of_certificate(params.self_signed(&key).expect("signed").der()), None, "{value:?}");
        }
        // Our own are of every group that they are made for, and kept.
        let own = pki.client("x", "x", &["ga", "gb"], now).expect("made");
        let der = CertificateDer::from_pem_slice(own.certificate.as_bytes()).expect("PEM");
        assert_eq!(User::of_certificate(&der).expect("somebody").groups[..2], ["ga", "gb"]);
        assert_eq!(pki.client("x", "x", &["ga", "gb"], now).expect("kept").certificate, own.certificate);
    }
}
