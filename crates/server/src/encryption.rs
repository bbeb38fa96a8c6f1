//! Secrets and other resources encrypted on the disk: `--encryption-provider-config`, upstream's
//! EncryptionConfiguration.
//!
//! The first entry of `resources` that names a resource says how it is stored: by the first of its providers; each of
//! them is tried when it is read. A change of the order is taken in at the next start, when every row that another
//! provider or key has written is written anew; the old key may be taken out then.
//!
//! A sealed value is as upstream's: `k8s:enc:<provider>:v1:<key>:`, then what the provider makes of it ([`ciphers`]).
//! `aesgcm` has keys of 16 or 32 bytes, `secretbox` of 32, `aescbc` of 16, 24 or 32; `identity` leaves a value plain.
//! What a provider seals is opened by that provider's keys alone, and a value that is damaged, or another row's, by
//! none.
//!
//! `kms` v2 ([`kms`]) asks a plugin. Where that is away when the server starts, it starts all the same: rows that the
//! plugin has to open stay sealed in memory, too, so reading them is an error (500), nothing removes or changes them
//! (A10), and `/readyz/kms-providers` says it; once the plugin answers they are opened, each by a write of what it is.
//! In memory everything is plain, so a plugin that goes away later keeps nobody from reading.
//!
//! Differs: `kms` v1 is refused in words, and so are keys of 24 bytes for `aesgcm`. A plugin that is not well is said
//! by `/readyz` alone, not by `/livez`. Upstream's `secretbox` and `aescbc`
//! take a value from one row into another, and `aescbc` does not notice a change: here both are taken only for the
//! object that the row is named after. Who can write to the disk and knows what stands there may still change what
//! `aescbc` has sealed: `aesgcm` and `secretbox` are what to use. Upstream writes a row anew only when its object is
//! written.

mod ciphers;
mod kms;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use ciphers::{Algorithm, Cipher};
use kms::{Closed, Kms};
use mainstay_api::schema::yaml;
use mainstay_store::{Entry, Expect, Op, Opened, SEALED_PREFIX, Seal, Store, Txn};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::Deserialize;
use tokio::sync::watch;

use crate::api::codec;

/// Resources and providers in a file, at most.
const MAX_ENTRIES: usize = 256;

/// A parsed file.
pub struct Encryption {
    /// The file, for whoever reads an error.
    file: String,
    rules: Vec<Rule>,
    random: SystemRandom,
    /// Those of all rules.
    plugins: Vec<Arc<Kms>>,
    /// Whether there may be rows that a plugin has yet to open.
    is_closed: AtomicBool,
}

impl std::fmt::Debug for Encryption {
    /// Without keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.file)
    }
}

struct Rule {
    resources: Vec<Resource>,
    providers: Vec<Provider>,
}

/// `secrets`, `deployments.apps`, `*.apps`, `*.` (all of the core group) or `*.*`.
#[derive(Debug, PartialEq)]
struct Resource {
    /// `*` for any.
    plural: String,
    group: String,
}

enum Provider {
    Sealed(Algorithm, Vec<Key>),
    Kms(Arc<Kms>),
    Identity,
}

struct Key {
    name: String,
    cipher: Cipher,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    api_version: String,
    kind: String,
    resources: Vec<FileRule>,
}

#[derive(Deserialize)]
struct FileRule {
    resources: Vec<String>,
    providers: Vec<serde_json::Map<String, serde_json::Value>>,
}

#[derive(Deserialize)]
struct FileKeys {
    keys: Vec<FileKey>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileKms {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    endpoint: String,
    timeout: Option<String>,
    cachesize: Option<i64>,
}

#[derive(Deserialize)]
struct FileKey {
    name: String,
    secret: String,
}

impl Resource {
    fn parse(text: &str) -> Result<Self, String> {
        let (plural, group) = text.split_once('.').unwrap_or((text, ""));
        let is_name = |text: &str| {
            text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte))
        };
        let is_plural = plural == "*" && text.contains('.') || !plural.is_empty() && is_name(plural);
        let is_group = group == "*" && plural == "*" || is_name(group);
        if !is_plural || !is_group {
            return Err(format!("resources: {text:?} is none of NAME, NAME.GROUP, *.GROUP, *. and *.*"));
        }
        Ok(Self { plural: plural.to_owned(), group: group.to_owned() })
    }

    fn matches(&self, group: &str, plural: &str) -> bool {
        (self.plural == "*" || self.plural == plural) && (self.group == "*" || self.group == group)
    }
}

impl Encryption {
    /// Reads a file's text; `file` is its name.
    ///
    /// # Errors
    /// What is wrong, in words. Secrets are not in them.
    pub fn parse(file: &str, text: &str) -> Result<Self, String> {
        let parsed: File = yaml::read(text)?;
        if parsed.kind != "EncryptionConfiguration" || parsed.api_version != "apiserver.config.k8s.io/v1" {
            return Err("not an EncryptionConfiguration of apiserver.config.k8s.io/v1".to_owned());
        }
        if parsed.resources.is_empty() || parsed.resources.len() > MAX_ENTRIES {
            return Err(format!("resources: from 1 to {MAX_ENTRIES} entries are needed"));
        }
        let rules = parsed.resources.iter().map(Rule::of).collect::<Result<Vec<_>, _>>()?;
        let providers = rules.iter().flat_map(|rule| &rule.providers);
        let plugins: Vec<Arc<Kms>> = providers.filter_map(Provider::plugin).cloned().collect();
        let again = |at: usize| plugins.iter().take(at).any(|other| other.name == plugins[at].name);
        if let Some(at) = (0..plugins.len()).find(|at| again(*at)) {
            return Err(format!("kms: the name {:?} is given twice", plugins[at].name));
        }
        let (random, is_closed) = (SystemRandom::new(), AtomicBool::new(false));
        Ok(Self { file: file.to_owned(), rules, random, plugins, is_closed })
    }

    /// Whether there are plugins.
    pub fn has_plugins(&self) -> bool {
        !self.plugins.is_empty()
    }

    /// What is wrong with plugins, or with rows that they have yet to open.
    pub fn trouble(&self) -> Option<String> {
        let wrong = self.plugins.iter().find_map(|plugin| plugin.trouble());
        let closed = "stored objects wait for their KMS provider to decrypt them";
        wrong.or_else(|| self.is_closed.load(Ordering::Relaxed).then(|| closed.to_owned()))
    }

    /// Asks every plugin how it is. Gives whether all are well.
    pub async fn check(&self) -> bool {
        let mut are_well = true;
        for plugin in &self.plugins {
            are_well &= plugin.check(&self.random).await;
        }
        are_well
    }

    /// Asks plugins again and again, and opens what they could not open when the store was opened.
    pub async fn keep(self: Arc<Self>, store: Store, mut closing: watch::Receiver<bool>) {
        loop {
            let are_well = self.check().await;
            if are_well && self.is_closed.load(Ordering::Relaxed) && self.open_closed(&store).await {
                self.is_closed.store(false, Ordering::Relaxed);
            }
            let is_done = are_well && !self.is_closed.load(Ordering::Relaxed);
            tokio::select! {
                () = tokio::time::sleep(if is_done { kms::WELL } else { kms::UNWELL }) => {}
                _ = closing.wait_for(|closing| *closing) => return,
            }
        }
    }

    /// Writes what stayed sealed as what it is. Gives whether nothing is left.
    async fn open_closed(self: &Arc<Self>, store: &Store) -> bool {
        let look = {
            let store = store.clone();
            move || store.range(b"", None, usize::MAX, None).map(|page| page.entries)
        };
        let Ok(Ok(entries)) = tokio::task::spawn_blocking(look).await else { return false };
        let closed = entries.into_iter().filter(|entry| entry.value.starts_with(SEALED_PREFIX));
        let mut is_all = true;
        for entry in closed {
            let encryption = self.clone();
            let opened = tokio::task::spawn_blocking(move || encryption.reopened(entry)).await;
            let (key, why) = match opened {
                Ok(Ok(Some((key, txn)))) => match store.commit(txn).await {
                    Ok(_) => continue,
                    Err(error) => (key, error.to_string()),
                },
                Ok(Ok(None)) => {
                    is_all = false;
                    continue;
                }
                Ok(Err(failed)) => failed,
                Err(_) => return false,
            };
            is_all = false;
            tracing::error!(key, why, "a stored object could not be decrypted");
        }
        is_all
    }

    /// The write that makes a row plain in memory; `None` where it still cannot be opened.
    fn reopened(&self, entry: Entry) -> Result<Option<(String, Txn)>, (String, String)> {
        let key = String::from_utf8_lossy(&entry.key).into_owned();
        let failed = |why: String| (key.clone(), why);
        let opened = self.open(&entry.key, &entry.value).map_err(failed)?;
        let Some(plain) = opened.value else { return Ok(None) };
        let mut object = codec::decode(&plain).map_err(|status| failed(status.message))?;
        let value = codec::encode(&mut object).map_err(|status| failed(status.message))?;
        let expect = vec![(entry.key.clone(), Expect::Unchanged(entry.revision))];
        Ok(Some((key.clone(), Txn { expect, ops: vec![Op::Put { key: entry.key, value }] })))
    }

    /// The rule of a store's key, `/<group or "core">/<plural>/…`; `None` where nothing is encrypted.
    fn rule(&self, key: &[u8]) -> Option<&Rule> {
        let mut segments = std::str::from_utf8(key).ok()?.strip_prefix('/')?.split('/');
        let (group, plural) = (segments.next()?, segments.next()?);
        if group.starts_with('!') {
            return None;
        }
        let group = if group == "core" { "" } else { group };
        self.rules.iter().find(|rule| rule.resources.iter().any(|resource| resource.matches(group, plural)))
    }

    fn wrong(&self, what: &str) -> String {
        format!("{what} (of --encryption-provider-config {})", self.file)
    }
}

impl Rule {
    fn of(rule: &FileRule) -> Result<Self, String> {
        if rule.resources.is_empty() || rule.providers.is_empty() {
            return Err("resources: each entry needs resources and providers".to_owned());
        }
        let resources = rule.resources.iter().map(|text| Resource::parse(text)).collect::<Result<_, _>>()?;
        let providers = rule.providers.iter().map(Provider::of).collect::<Result<_, _>>()?;
        Ok(Self { resources, providers })
    }
}

impl Provider {
    fn of(entry: &serde_json::Map<String, serde_json::Value>) -> Result<Self, String> {
        let mut entries = entry.iter();
        match (entries.next(), entries.next()) {
            (Some((name, _)), None) if name == "identity" => Ok(Self::Identity),
            (Some((name, plugin)), None) if name == "kms" => Self::kms(plugin).map_err(|why| format!("kms: {why}")),
            (Some((name, keys)), None) => {
                let algorithm = Algorithm::ALL.into_iter().find(|algorithm| algorithm.name() == name);
                let algorithm = algorithm.ok_or_else(|| {
                    format!("the provider {name:?} is not known here: use kms, aesgcm, secretbox, aescbc or identity")
                })?;
                let keys = FileKeys::deserialize(keys).map_err(|error| format!("{name}: {error}"))?.keys;
                if keys.is_empty() || keys.len() > MAX_ENTRIES {
                    return Err(format!("{name}: from 1 to {MAX_ENTRIES} keys are needed"));
                }
                let keys = keys.iter().map(|key| Key::of(algorithm, key)).collect::<Result<_, _>>()?;
                Ok(Self::Sealed(algorithm, keys))
            }
            _ => Err("providers: each entry has exactly one provider".to_owned()),
        }
    }

    fn plugin(&self) -> Option<&Arc<Kms>> {
        if let Self::Kms(plugin) = self { Some(plugin) } else { None }
    }

    fn kms(plugin: &serde_json::Value) -> Result<Self, String> {
        let FileKms { api_version, name, endpoint, timeout, cachesize } =
            FileKms::deserialize(plugin).map_err(|error| error.to_string())?;
        match api_version.as_str() {
            "v2" => {}
            "" | "v1" => return Err("apiVersion v1 is not known here, upstream has given it up: use v2".to_owned()),
            other => return Err(format!("unsupported apiVersion {other:?}: v2 is known")),
        }
        if name.is_empty() || name.contains(':') {
            return Err(format!("{name:?} is no name of a plugin: it is empty or has a colon"));
        }
        if cachesize.is_some() {
            return Err("cachesize is not supported in v2".to_owned());
        }
        let socket = endpoint.strip_prefix("unix://").filter(|path| path.starts_with('/'));
        let socket = socket.ok_or_else(|| format!("endpoint: {endpoint:?} is not unix:///PATH"))?;
        let timeout = match timeout {
            None => Duration::from_secs(3),
            Some(text) => {
                let timeout = mainstay_api::cron::duration(&text).filter(|timeout| !timeout.is_zero());
                timeout.ok_or_else(|| format!("timeout: {text:?} is no positive duration"))?
            }
        };
        Ok(Self::Kms(Arc::new(Kms::new(name, PathBuf::from(socket), timeout))))
    }
}

impl Key {
    fn of(algorithm: Algorithm, key: &FileKey) -> Result<Self, String> {
        let (FileKey { name, secret }, provider) = (key, algorithm.name());
        if name.is_empty() || name.contains(':') {
            return Err(format!("{provider}: {name:?} is no name of a key: it is empty or has a colon"));
        }
        let secret =
            STANDARD.decode(secret).map_err(|_| format!("{provider}: the secret of key {name:?} is not base64"))?;
        let cipher = Cipher::new(algorithm, &secret).ok_or_else(|| {
            let sizes: Vec<String> = algorithm.sizes().iter().map(ToString::to_string).collect();
            let (length, sizes) = (secret.len(), sizes.join(" or "));
            format!("{provider}: the secret of key {name:?} has {length} bytes: {sizes} are needed")
        })?;
        Ok(Self { name: name.clone(), cipher })
    }
}

impl Encryption {
    fn open_by_plugin(&self, key: &[u8], stored: &Bytes, providers: &[Provider]) -> Result<Opened, String> {
        let rest = stored.strip_prefix(kms::PREFIX).unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == b':').unwrap_or(rest.len());
        let (name, sealed) = (&rest[..end], rest.get(end + 1..).unwrap_or_default());
        let mut plugins = providers.iter().enumerate().filter_map(|(at, provider)| Some((at, provider.plugin()?)));
        let named = format!("it is encrypted by the KMS provider {:?}", String::from_utf8_lossy(name));
        let Some((at, plugin)) = plugins.find(|(_, plugin)| plugin.name.as_bytes() == name) else {
            return Err(self.wrong(&format!("{named}, which is not among its providers")));
        };
        match plugin.open(key, sealed) {
            Ok((plain, is_old)) => {
                let is_stale = (at > 0 || is_old) && self.ready(key).is_ok();
                Ok(Opened { value: Some(Bytes::from(plain)), is_stale })
            }
            Err(Closed::Now(why)) => {
                if !self.is_closed.swap(true, Ordering::Relaxed) {
                    let key = String::from_utf8_lossy(key).into_owned();
                    tracing::error!(key, why, "stored objects cannot be decrypted now; they are left as they are");
                }
                Ok(Opened { value: None, is_stale: false })
            }
            Err(Closed::Damaged) => Err(self.wrong(&format!("{named}, whose seed does not open it"))),
        }
    }
}

impl Seal for Encryption {
    fn seal(&self, key: &[u8], value: &[u8]) -> Option<Vec<u8>> {
        let sealed = match self.rule(key)?.providers.first()? {
            Provider::Identity => return None,
            Provider::Kms(plugin) => plugin.seal(key, value, &self.random),
            Provider::Sealed(algorithm, keys) => {
                let first = keys.first()?;
                let mut vector = vec![0; algorithm.vector()];
                let sealed = self.random.fill(&mut vector).ok().and_then(|()| first.cipher.seal(key, &vector, value));
                sealed.map(|sealed| [algorithm.prefix(), first.name.as_bytes(), b":", &sealed].concat())
            }
        };
        if sealed.is_none() {
            // Without randomness nothing can be kept secret: better no answer than plain text on the disk. That a
            // plugin gave its seed was looked at before ([`Seal::ready`]).
            tracing::error!("the system has no randomness, or a value is too large to be encrypted");
            std::process::abort();
        }
        sealed
    }

    fn ready(&self, key: &[u8]) -> Result<(), String> {
        match self.rule(key).and_then(|rule| rule.providers.first()) {
            Some(Provider::Kms(plugin)) => plugin.ready(Instant::now()),
            _ => Ok(()),
        }
    }

    fn open(&self, key: &[u8], stored: &Bytes) -> Result<Opened, String> {
        let rule = self.rule(key);
        let providers = rule.map_or(&[Provider::Identity][..], |rule| &rule.providers);
        if !stored.starts_with(SEALED_PREFIX) {
            let known = providers.iter().position(|provider| matches!(provider, Provider::Identity));
            let known =
                known.ok_or_else(|| self.wrong("it is not encrypted, and identity is not among its providers"))?;
            return Ok(Opened { value: None, is_stale: known > 0 && self.ready(key).is_ok() });
        }
        if stored.starts_with(kms::PREFIX) {
            return self.open_by_plugin(key, stored, providers);
        }
        let named = Algorithm::ALL.into_iter().find_map(|algorithm| {
            let rest = stored.strip_prefix(algorithm.prefix())?;
            let end = rest.iter().position(|byte| *byte == b':')?;
            Some((algorithm, std::str::from_utf8(&rest[..end]).ok()?, &rest[end + 1..]))
        });
        let Some((algorithm, name, rest)) = named else {
            let provider = String::from_utf8_lossy(stored.get(SEALED_PREFIX.len()..).unwrap_or_default());
            let provider = provider.split(':').next().unwrap_or("").to_owned();
            return Err(self.wrong(&format!("it is encrypted by {provider:?}, which is not known here")));
        };
        let mut is_known = false;
        for (at, provider) in providers.iter().enumerate() {
            let Provider::Sealed(of, keys) = provider else { continue };
            if *of != algorithm {
                continue;
            }
            for (number, candidate) in keys.iter().enumerate().filter(|(_, candidate)| candidate.name == name) {
                is_known = true;
                if let Some(plain) = candidate.cipher.open(key, rest) {
                    let is_stale = (at > 0 || number > 0) && self.ready(key).is_ok();
                    return Ok(Opened { value: Some(Bytes::from(plain)), is_stale });
                }
            }
        }
        let provider = algorithm.name();
        Err(self.wrong(&match is_known {
            true => format!("it is encrypted by {provider}, and the secret of key {name:?} does not open it"),
            false => format!("it is encrypted by {provider} with key {name:?}, which is not among its providers' keys"),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mainstay_store::{Encoded, Expect, Op, OpenError, Options, Store, Txn};
    use std::path::Path;
    use std::sync::Arc;

    const KEY: &[u8] = b"/core/secrets/default/a";

    fn key(name: &str, byte: u8) -> String {
        format!("{{ name: {name}, secret: {} }}", STANDARD.encode([byte; 32]))
    }

    fn config(providers: &str) -> Result<Encryption, String> {
        Encryption::parse(
            "enc.yaml",
            &format!(
                "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\nresources:\n\
                 - resources: [secrets, '*.example.com']\n  providers: [{providers}]\n"
            ),
        )
    }

    fn gcm(keys: &[String]) -> String {
        format!("{{ aesgcm: {{ keys: [{}] }} }}", keys.join(", "))
    }

    fn open(folder: &Path, providers: Option<&str>) -> Result<Store, OpenError> {
        let seal = providers.map(|providers| Arc::new(config(providers).expect("a configuration")) as Arc<dyn Seal>);
        Store::open_sealed(folder, Options::inline(), seal)
    }

    fn put(store: &Store, key: &'static [u8], value: &'static str) {
        let expect = store.get(key).map_or(Expect::Absent, |entry| Expect::Unchanged(entry.revision));
        let op = Op::Put { key: Bytes::from_static(key), value: Encoded::plain(value) };
        let txn = Txn { expect: vec![(Bytes::from_static(key), expect)], ops: vec![op] };
        store.commit_blocking(txn).expect("a commit");
    }

    fn holds(folder: &Path, text: &str) -> bool {
        let file = std::fs::read(folder.join(mainstay_store::FILE)).expect("the store's file");
        file.windows(text.len()).any(|window| window == text.as_bytes())
    }

    #[test]
    fn a10_secrets_are_on_the_disk_encrypted_and_nothing_else_opens_them() {
        let dir = tempfile::tempdir().expect("a folder");
        let one = gcm(&[key("one", 1)]);
        let store = open(dir.path(), Some(&one)).expect("a store");
        put(&store, KEY, r#"{"data":"hunter2-plain"}"#);
        put(&store, KEY, r#"{"data":"hunter2-again"}"#);
        put(&store, b"/example.com/things/default/b", "hunter2-custom");
        put(&store, b"/core/configmaps/default/c", "not-a-secret");
        assert_eq!(store.get(KEY).expect("a row").value, r#"{"data":"hunter2-again"}"#);
        drop(store);
        assert!(!holds(dir.path(), "hunter2"), "in plain text on the disk");
        assert!(holds(dir.path(), "not-a-secret") && holds(dir.path(), "k8s:enc:aesgcm:v1:one:"));
        // Whoever has no keys sees that the file is sound, and no more.
        let seen = mainstay_store::examine(dir.path()).expect("an examination");
        assert!(seen.damage.is_none());
        assert_eq!(seen.entries.iter().filter(|entry| entry.value.starts_with(SEALED_PREFIX)).count(), 2);
        let store = open(dir.path(), Some(&one)).expect("the same keys");
        assert_eq!(store.get(KEY).expect("a row").value, r#"{"data":"hunter2-again"}"#);
        drop(store);
        let refused = |providers: Option<&str>| open(dir.path(), providers).expect_err("refused").to_string();
        let wrong = refused(Some(&gcm(&[key("one", 9)])));
        assert!(wrong.contains("enc.yaml") && wrong.contains("key \"one\" does not open it"), "{wrong}");
        assert!(wrong.contains("/core/secrets/default/a"), "{wrong}");
        let missing = refused(Some(&gcm(&[key("two", 1)])));
        assert!(missing.contains("key \"one\", which is not among"), "{missing}");
        assert!(refused(Some("{ identity: {} }")).contains("with key \"one\""));
        assert!(refused(None).contains("it is encrypted, and no keys were given"));
        assert!(mainstay_store::examine(dir.path()).expect("an examination").damage.is_none(), "nothing was changed");
    }

    #[test]
    fn keys_are_rotated_by_their_order_at_the_next_start() {
        let dir = tempfile::tempdir().expect("a folder");
        put(&open(dir.path(), None).expect("a store"), KEY, "hunter2");
        let (one, two) = (key("one", 1), key("two", 2));
        let strict = open(dir.path(), Some(&gcm(std::slice::from_ref(&one)))).expect_err("plain rows are not expected");
        assert!(strict.to_string().contains("identity is not among its providers"), "{strict}");
        let stored = |providers: &str| {
            let store = open(dir.path(), Some(providers)).expect(providers);
            assert_eq!(store.get(KEY).expect("a row").value, "hunter2", "{providers}");
            drop(store);
            let seen = mainstay_store::examine(dir.path()).expect("an examination");
            assert!(seen.damage.is_none(), "{providers}");
            seen.entries[0].value.clone()
        };
        let with_one = stored(&format!("{}, {{ identity: {{}} }}", gcm(std::slice::from_ref(&one))));
        assert!(with_one.starts_with(b"k8s:enc:aesgcm:v1:one:"));
        assert_eq!(stored(&gcm(&[one.clone(), two.clone()])), with_one, "the first key is the same");
        assert!(stored(&gcm(&[two.clone(), one.clone()])).starts_with(b"k8s:enc:aesgcm:v1:two:"));
        assert!(stored(&gcm(std::slice::from_ref(&two))).starts_with(b"k8s:enc:aesgcm:v1:two:"), "one is not needed");
        assert_eq!(stored(&format!("{{ identity: {{}} }}, {}", gcm(&[two]))), "hunter2", "back to plain text");
    }

    fn of(provider: &str, keys: &[String]) -> String {
        format!("{{ {provider}: {{ keys: [{}] }} }}", keys.join(", "))
    }

    /// A10: from each provider to each other one, with the old one's key behind: every row is written anew, at once.
    #[test]
    fn a10_providers_are_rotated_by_their_order() {
        const OBJECT: &str = r#"{"metadata":{"name":"a","namespace":"default"},"data":"hunter2"}"#;
        let dir = tempfile::tempdir().expect("a folder");
        put(&open(dir.path(), None).expect("a store"), KEY, OBJECT);
        let mut before = "{ identity: {} }".to_owned();
        for (number, name) in ["aesgcm", "secretbox", "aescbc", "aesgcm", "aescbc", "secretbox"].iter().enumerate() {
            let now = of(name, &[key("one", u8::try_from(number).expect("small"))]);
            let refused = open(dir.path(), Some(&now)).expect_err("of a provider that is not there");
            assert!(refused.to_string().contains("enc.yaml"), "{refused}");
            for providers in [format!("{now}, {before}"), now.clone()] {
                let store = open(dir.path(), Some(&providers)).expect(name);
                assert_eq!(store.get(KEY).expect("a row").value, OBJECT, "{name}");
                drop(store);
                let seen = mainstay_store::examine(dir.path()).expect("an examination");
                let begins = format!("k8s:enc:{name}:v1:one:");
                assert!(seen.damage.is_none() && seen.entries[0].value.starts_with(begins.as_bytes()), "{name}");
            }
            before = now;
        }
        // The same key in another provider opens nothing.
        let refused = open(dir.path(), Some(&of("aescbc", &[key("one", 5)]))).expect_err("another provider");
        assert!(refused.to_string().contains("encrypted by secretbox with key \"one\""), "{refused}");
    }

    #[test]
    fn what_cannot_be_done_is_refused_in_words() {
        let fails = |providers: &str| config(providers).expect_err("refused");
        let kms = |fields: &str| fails(&format!("{{ kms: {{ {fields} }} }}"));
        assert!(kms("name: k, endpoint: 'unix:///k.sock'").contains("apiVersion v1 is not known here"));
        assert!(kms("apiVersion: v1, name: k, endpoint: 'unix:///k.sock'").contains("apiVersion v1 is not known here"));
        assert!(kms("apiVersion: v2, name: 'a:b', endpoint: 'unix:///k.sock'").contains("has a colon"));
        assert!(kms("apiVersion: v2, name: k, endpoint: 'https://k'").contains("is not unix:///PATH"));
        assert!(kms("apiVersion: v2, name: k, endpoint: 'unix:///k', timeout: 0s").contains("no positive duration"));
        assert!(kms("apiVersion: v2, name: k, endpoint: 'unix:///k', cachesize: 9").contains("not supported in v2"));
        let twice = "{ kms: { apiVersion: v2, name: k, endpoint: 'unix:///k' } }";
        assert!(fails(&format!("{twice}, {twice}")).contains("is given twice"));
        assert!(fails("{ aescbc: { keys: [] } }").contains("keys are needed"));
        assert!(fails("{ secretbox: { keys: [] } }").contains("keys are needed"));
        let short = format!("{{ keys: [{{ name: a, secret: {} }}] }}", STANDARD.encode([1; 16]));
        assert!(fails(&format!("{{ secretbox: {short} }}")).contains("has 16 bytes: 32 are needed"));
        assert!(config(&format!("{{ aescbc: {short} }}")).is_ok());
        assert!(fails("{ aesgcm: { keys: [] } }").contains("keys are needed"));
        assert!(fails("{ aesgcm: { keys: [{ name: a, secret: eA== }] } }").contains("has 1 bytes"));
        assert!(fails("{ aesgcm: { keys: [{ name: 'a:b', secret: eA== }] } }").contains("no name of a key"));
        assert!(fails("{ identity: {}, aesgcm: { keys: [] } }").contains("exactly one provider"));
        assert!(Encryption::parse("f", "kind: Pod\napiVersion: v1\nresources: []").is_err());
        for (text, wanted) in [("secrets", true), ("a.b.c", true), ("*.apps", true), ("*.", true), ("*.*", true)] {
            assert_eq!(Resource::parse(text).is_ok(), wanted, "{text}");
        }
        for text in ["*", "", "Secrets", "a.*", ".a", "a/b"] {
            assert!(Resource::parse(text).is_err(), "{text}");
        }
        let core = Resource::parse("*.").expect("all of the core group");
        assert!(core.matches("", "secrets") && !core.matches("apps", "deployments"));
    }
}
