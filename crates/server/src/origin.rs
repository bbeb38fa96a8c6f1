//! What a cluster was made with, and is for as long as it lives: where its addresses come from, its domain, its keys.
//! Addresses, names and certificates that were given out say so everywhere; a start that says otherwise is refused.
//!
//! ```text
//! /!origin    {"serviceCIDR":"10.96.0.0/16","clusterCIDR":"10.244.0.0/16","clusterDomain":"cluster.local",
//!              "ca":"sha256:<of the CA's public key, in hexadecimal digits>"}
//! ```
//!
//! It is in the store, so that all servers of one etcd agree, and an export has it. A store of an older version, which
//! has no such row, is taken by what its objects show.

use std::net::Ipv4Addr;
use std::path::Path;

use bytes::Bytes;
use mainstay_api::{Kind, kinds, object};
use mainstay_store::{CommitError, Encoded, Expect, Op, Revision, Store, Txn};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::api::{Cidr, codec, key};
use crate::bootstrap::{API_PLACE, SETTINGS};
use crate::start::StartError;

const ROW: &[u8] = b"/!origin";
/// What a cluster's keys are, in the folder of keys. Whatever else is there is made of them.
const KEYS: [&str; 3] = ["ca.crt", "ca.key", "sa.key"];
/// What can be done where a start says something else.
const MORE_SERVICES: &str = "a ServiceCIDR object gives Services more addresses";
const ANOTHER: &str = "what was given out names it, so only a new cluster can have another";

/// What is noted. What an older or a newer version does not say is taken from the start that finds it so.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Origin {
    /// Where Services' addresses come from: `10.96.0.0/16`.
    #[serde(rename = "serviceCIDR")]
    pub service_cidr: String,
    /// Where nodes' ranges of pod addresses come from.
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: String,
    /// `cluster.local`
    #[serde(rename = "clusterDomain")]
    pub cluster_domain: String,
    /// The CA, by its public key's hash ([`crate::pki::Pki::ca_hash`]).
    pub ca: String,
}

/// What a store notes, and whether there is a cluster in it at all.
#[derive(Debug)]
pub struct Found {
    noted: Option<(Origin, Revision)>,
    /// Some of its objects are there: keys were made for it before.
    pub is_made: bool,
}

/// Looks whether a start suits the cluster that a store holds; writes nothing.
///
/// # Errors
/// [`StartError::Origin`]: the cluster was made with something else.
pub fn check(store: &Store, start: &Origin) -> Result<Found, StartError> {
    // A namespace is the first of all objects.
    let is_made = store.count(b"/core/") > 0;
    // What cannot be read is not as good as missing: it would be noted anew as this start says (A10).
    let read = |value: &[u8]| {
        serde_json::from_slice::<Origin>(value).map_err(|error| StartError::OriginUnreadable(error.to_string()))
    };
    let noted = store.get(ROW).map(|row| Ok::<_, StartError>((read(&row.value)?, row.revision))).transpose()?;
    match &noted {
        // One whose first start came to nothing may still be made with what is right. (Where there are several servers,
        // another one may be about to make it.)
        Some((noted, _)) if is_made || store.is_shared() => {
            differs("--service-cidr", &noted.service_cidr, &start.service_cidr, MORE_SERVICES)?;
            differs("--cluster-cidr", &noted.cluster_cidr, &start.cluster_cidr, ANOTHER)?;
            differs("--cluster-domain", &noted.cluster_domain, &start.cluster_domain, ANOTHER)?;
        }
        Some(_) => {}
        None => shown(store, start)?,
    }
    Ok(Found { noted, is_made })
}

impl Found {
    /// Whether these keys, which are there or not, may be the cluster's.
    ///
    /// # Errors
    /// [`StartError::NoKeys`]: there was a cluster, and some of its keys are not in the folder.
    pub fn may_make_keys(&self, folder: &Path) -> Result<(), StartError> {
        let missing = missing(folder);
        if missing.is_empty() || !self.is_made {
            return Ok(());
        }
        Err(StartError::NoKeys { folder: folder.to_owned(), missing: missing.join(", ") })
    }

    /// Whether the keys of the folder are the cluster's.
    ///
    /// # Errors
    /// [`StartError::OtherKeys`]: they are another cluster's.
    pub fn may_have_ca(&self, folder: &Path, ca: &str) -> Result<(), StartError> {
        match &self.noted {
            Some((noted, _)) if self.is_made && !noted.ca.is_empty() && noted.ca != ca => {
                Err(StartError::OtherKeys(folder.to_owned()))
            }
            _ => Ok(()),
        }
    }
}

/// The keys of a cluster that are not in a folder.
pub fn missing(folder: &Path) -> Vec<&'static str> {
    KEYS.into_iter().filter(|file| !folder.join(file).exists()).collect()
}

/// Notes what the cluster is made with, where that is not noted already.
///
/// # Errors
/// As [`check`], which is asked again when another server was quicker; [`StartError::Silent`] when etcd does not
/// answer.
pub async fn note(store: &Store, start: &Origin) -> Result<(), StartError> {
    loop {
        let expect = match check(store, start)?.noted {
            Some((noted, _)) if noted == *start => return Ok(()),
            Some((_, revision)) => Expect::Unchanged(revision),
            // A row that nobody can read is no row: replaced as it was found.
            None => store.get(ROW).map_or(Expect::Absent, |row| Expect::Unchanged(row.revision)),
        };
        let row = serde_json::to_vec(start).map_err(|error| StartError::Bootstrap(error.to_string()))?;
        let op = Op::Put { key: Bytes::from_static(ROW), value: Encoded::plain(row) };
        match store.commit(Txn { expect: vec![(Bytes::from_static(ROW), expect)], ops: vec![op] }).await {
            Ok(_) => return Ok(()),
            Err(CommitError::Expectation { .. }) => {}
            Err(CommitError::Unreached(why)) => return Err(StartError::Silent(why)),
            Err(error) => return Err(StartError::Bootstrap(error.to_string())),
        }
    }
}

fn differs(option: &'static str, was: &str, given: &str, hint: &'static str) -> Result<(), StartError> {
    if was.is_empty() || was == given {
        return Ok(());
    }
    Err(StartError::Origin { option, was: was.to_owned(), given: given.to_owned(), hint })
}

/// As [`check`], by the objects of a store that notes nothing: the API's own Service has the first address of the range
/// that the cluster was made with, and what nodes have in common says what they have been told since.
fn shown(store: &Store, start: &Origin) -> Result<(), StartError> {
    let get = |kind: &Kind, namespace: &str, name: &str| {
        let row = store.get(&key::object(kind, namespace, name))?;
        codec::decode(&row.value).ok()
    };
    let address = |service: &Value| object::text(service, &["spec", "clusterIP"]).parse::<Ipv4Addr>().ok();
    let first = |range: &str| Cidr::parse(range).and_then(|range| range.nth(API_PLACE));
    if let Some(api) = get(&kinds::SERVICE, "default", "kubernetes").as_ref().and_then(address) {
        let range = get(&kinds::SERVICE_CIDR, "", kinds::servicecidr::DEFAULT);
        let ranges = range.iter().flat_map(kinds::servicecidr::ranges);
        match ranges.into_iter().find(|range| first(range) == Some(api)) {
            Some(range) => differs("--service-cidr", range, &start.service_cidr, MORE_SERVICES)?,
            None if first(&start.service_cidr) == Some(api) => {}
            None => {
                let was = format!("a range whose first address is {api}");
                differs("--service-cidr", &was, &start.service_cidr, MORE_SERVICES)?;
            }
        }
    }
    let settings = get(&kinds::CONFIG_MAP, "kube-system", SETTINGS).unwrap_or_default();
    let told = |name: &str| object::text(&settings, &["data", name]).to_owned();
    differs("--cluster-cidr", &told("clusterCIDR"), &start.cluster_cidr, ANOTHER)?;
    differs("--cluster-domain", &told("clusterDomain"), &start.cluster_domain, ANOTHER)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::identity::{Expected, open_store};

    fn origin() -> Origin {
        let text = str::to_owned;
        Origin {
            service_cidr: text("10.96.0.0/16"),
            cluster_cidr: text("10.244.0.0/16"),
            cluster_domain: text("cluster.local"),
            ca: text("sha256:a"),
        }
    }

    fn put(store: &Store, kind: &Kind, namespace: &str, mut object: Value) {
        let key = key::object(kind, namespace, object::name(&object));
        let value = codec::encode(&mut object).expect("encoded");
        store.commit_blocking(Txn { expect: vec![], ops: vec![Op::Put { key, value }] }).expect("stored");
    }

    fn namespace(store: &Store) {
        put(store, &kinds::NAMESPACE, "", json!({ "metadata": { "name": "default" } }));
    }

    /// Each other start, and what is said of it.
    fn others() -> [(Origin, [&'static str; 3]); 3] {
        let others = [
            Origin { service_cidr: "10.97.0.0/16".to_owned(), ..origin() },
            Origin { cluster_cidr: "10.245.0.0/16".to_owned(), ..origin() },
            Origin { cluster_domain: "other.local".to_owned(), ..origin() },
        ];
        let [services, pods, domain] = others;
        [
            (services, ["--service-cidr 10.96.0.0/16", "10.97.0.0/16", "ServiceCIDR"]),
            (pods, ["--cluster-cidr 10.244.0.0/16", "10.245.0.0/16", "new cluster"]),
            (domain, ["--cluster-domain cluster.local", "other.local", "new cluster"]),
        ]
    }

    fn refused(store: &Store, start: &Origin) -> String {
        check(store, start).expect_err("refused").to_string()
    }

    #[tokio::test]
    async fn a11_a_cluster_is_started_with_what_it_was_made_with_or_not_at_all() {
        let folder = tempfile::tempdir().expect("a folder");
        let open = || open_store(folder.path(), &Expected::default(), 1, None, None).expect("opened");
        let store = open();
        let wrong = Origin { service_cidr: "10.0.0.0/16".to_owned(), ..origin() };
        note(&store, &wrong).await.expect("noted");
        note(&store, &origin()).await.expect("nothing was made with it yet");
        namespace(&store);
        drop(store);
        let store = open();
        note(&store, &origin()).await.expect("as before");
        let revision = store.revision();
        for (other, words) in others() {
            let said = refused(&store, &other);
            assert!(words.iter().all(|words| said.contains(words)), "{said}");
            assert!(note(&store, &other).await.is_err());
        }
        let renewed = Origin { ca: "sha256:b".to_owned(), ..origin() };
        assert_eq!(store.revision(), revision, "a start that changes nothing writes nothing");
        note(&store, &renewed).await.expect("a person meant it");
        check(&store, &origin()).expect("keys are another matter").may_have_ca(folder.path(), "sha256:b").expect("it");
    }

    #[test]
    fn a10_what_a_cluster_was_made_with_is_not_noted_anew_where_it_cannot_be_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = open_store(folder.path(), &Expected::default(), 1, None, None).expect("opened");
        namespace(&store);
        let op = Op::Put { key: Bytes::from_static(ROW), value: Encoded::plain("{\"ca\":1}") };
        store.commit_blocking(Txn { expect: vec![], ops: vec![op] }).expect("stored");
        assert!(refused(&store, &origin()).contains("cannot be read"), "{}", refused(&store, &origin()));
    }

    #[tokio::test]
    async fn a11_a_store_of_an_older_version_shows_what_it_was_made_with() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = open_store(folder.path(), &Expected::default(), 1, None, None).expect("opened");
        check(&store, &origin()).expect("nothing is there");
        namespace(&store);
        check(&store, &origin()).expect("nothing is said");
        let api = json!({ "metadata": { "name": "kubernetes" }, "spec": { "clusterIP": "10.96.0.1" } });
        put(&store, &kinds::SERVICE, "default", api);
        let [(services, _), ..] = others();
        assert!(refused(&store, &services).contains("first address is 10.96.0.1"), "{}", refused(&store, &services));
        let range = |cidr: &str| json!({ "metadata": { "name": "kubernetes" }, "spec": { "cidrs": [cidr] } });
        // Written by a start that said something else, and no object has an address of it.
        put(&store, &kinds::SERVICE_CIDR, "", range("10.97.0.0/16"));
        check(&store, &origin()).expect("the Service's address is what counts");
        put(&store, &kinds::SERVICE_CIDR, "", range("10.96.0.0/16"));
        let data = json!({ "clusterCIDR": "10.244.0.0/16", "clusterDomain": "cluster.local" });
        let settings = json!({ "metadata": { "name": SETTINGS }, "data": data });
        put(&store, &kinds::CONFIG_MAP, "kube-system", settings);
        for (other, words) in others() {
            let said = refused(&store, &other);
            assert!(words.iter().all(|words| said.contains(words)), "{said}");
        }
        let wider = Origin { service_cidr: "10.96.0.0/12".to_owned(), ..origin() };
        assert!(refused(&store, &wider).contains("--service-cidr 10.96.0.0/16"), "nor a wider one");
        note(&store, &origin()).await.expect("noted");
        let noted = check(&store, &origin()).expect("noted").noted.expect("a row");
        assert_eq!(noted.0, origin());
    }

    #[tokio::test]
    async fn a11_keys_that_are_gone_or_anothers_are_not_made_anew_beside_a_cluster() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = open_store(folder.path(), &Expected::default(), 1, None, None).expect("opened");
        let found = || check(&store, &origin()).expect("as before");
        found().may_make_keys(folder.path()).expect("a first start");
        note(&store, &origin()).await.expect("noted");
        found().may_make_keys(folder.path()).expect("a first start that ended early");
        namespace(&store);
        for file in KEYS {
            let said = found().may_make_keys(folder.path()).expect_err("refused").to_string();
            assert!(said.contains(file) && said.contains("--new-keys") && said.contains("backup"), "{said}");
            std::fs::write(folder.path().join(file), "").expect("written");
        }
        found().may_make_keys(folder.path()).expect("all are there");
        found().may_have_ca(folder.path(), "sha256:a").expect("its own");
        let said = found().may_have_ca(folder.path(), "sha256:b").expect_err("refused").to_string();
        assert!(said.contains("another cluster") && said.contains("--new-keys"), "{said}");
    }
}
