//! The provider `kms` v2: values are sealed with seeds that a plugin, over a unix socket, keeps the key of.
//!
//! ```text
//! k8s:enc:kms:v2:<name>:  EncryptedObject { encryptedData 1, keyID 2, encryptedDEKSource 3, annotations 4, type 5 }
//! encryptedData           32 random bytes, then AES-256-GCM (nonce of 12 bytes, value, tag) with the row's key as
//!                         additional data; its key is HKDF-Expand of SHA-256 (seed, the 32 bytes)
//! ```
//!
//! A seed is made when the plugin first answers and whenever its key id has changed, and is the plugin's to encrypt
//! once (`Encrypt`); writes ask nobody. `Status` is asked every minute, every ten seconds while something is wrong.
//! With a plugin that is not well, writes go on for three minutes, as upstream; then they are refused: nothing is
//! stored plain. Seeds that were decrypted once are kept.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mainstay_client::grpc::{Call, Field, fields, put_nonempty, put_number, unary};
use ring::hkdf::{HKDF_SHA256, Prk};
use ring::rand::{SecureRandom as _, SystemRandom};

use super::ciphers::{Algorithm, Cipher};

/// What every value begins with; then the provider's name and a colon.
pub const PREFIX: &[u8] = b"k8s:enc:kms:v2:";
/// How often a plugin that is well is asked, and one that is not.
pub const WELL: Duration = Duration::from_secs(60);
pub const UNWELL: Duration = Duration::from_secs(10);
/// For how long after a good answer's question writes go on.
const WRITES: Duration = Duration::from_secs(180);
/// How long a plugin that gave no answer is not asked for a further seed.
const PAUSE: Duration = Duration::from_secs(3);
/// Longest key id and sealed seed, and longest annotations of one seed altogether, in bytes.
const MAX_KEY_ID: usize = 1024;
const MAX_SEALED_SEED: usize = 1024;
const MAX_ANNOTATIONS: usize = 32 << 10;
/// Longest answer of a plugin, in bytes.
const MAX_ANSWER: usize = 128 << 10;
/// Seeds that are kept: about one for each key and start of a server.
const MAX_SEEDS: usize = 4096;
/// Bytes of a seed, and of what a key is derived by.
const SEED: usize = 32;
const INFO: usize = 32;
/// `EncryptedDEKSourceType` of a seed; 0 is a key, which is not written here.
const IS_SEED: u64 = 1;

type Seed = Arc<Vec<u8>>;

/// A seed as a plugin has sealed it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct SealedSeed {
    key_id: String,
    bytes: Vec<u8>,
    annotations: BTreeMap<String, Vec<u8>>,
}

/// What values are sealed with now.
struct Current {
    seed: Seed,
    sealed: SealedSeed,
    until: Instant,
}

#[derive(Default)]
struct Held {
    current: Option<Current>,
    seeds: BTreeMap<SealedSeed, Seed>,
    /// What is wrong with the plugin; nothing where its last answer was good.
    wrong: Option<String>,
    /// When it was last asked for a seed and gave no answer.
    away: Option<(Instant, String)>,
}

/// A plugin, and what it has given.
pub struct Kms {
    /// As the file names it.
    pub name: String,
    socket: PathBuf,
    timeout: Duration,
    held: Mutex<Held>,
}

/// Why a value was not opened.
#[derive(Debug, PartialEq)]
pub enum Closed {
    /// The plugin does not decrypt its seed now.
    Now(String),
    /// It is not what was sealed.
    Damaged,
}

/// What a plugin says of itself.
struct Status {
    version: String,
    healthz: String,
    key_id: String,
}

impl SealedSeed {
    fn check(&self) -> Result<(), String> {
        check_key_id(&self.key_id)?;
        if self.bytes.is_empty() || self.bytes.len() > MAX_SEALED_SEED {
            let length = self.bytes.len();
            return Err(format!("a seed is sealed in {length} bytes: from 1 to {MAX_SEALED_SEED} are allowed"));
        }
        let size: usize = self.annotations.iter().map(|(name, value)| name.len() + value.len()).sum();
        if size > MAX_ANNOTATIONS {
            return Err(format!("annotations of {size} bytes: at most {MAX_ANNOTATIONS} are allowed"));
        }
        let is_name = |name: &String| {
            let is_label = |label: &str| {
                let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
                !label.is_empty()
                    && label.len() < 64
                    && label.bytes().all(is_inner)
                    && !label.starts_with('-')
                    && !label.ends_with('-')
            };
            name.len() < 254 && name.contains('.') && name.split('.').all(is_label)
        };
        match self.annotations.keys().find(|name| !is_name(name)) {
            Some(name) => Err(format!("the annotation {name:?} is not a fully qualified domain name")),
            None => Ok(()),
        }
    }

    fn put_annotations(&self, out: &mut Vec<u8>) {
        for (name, value) in &self.annotations {
            let mut entry = Vec::new();
            put_nonempty(&mut entry, 1, name.as_bytes());
            put_nonempty(&mut entry, 2, value);
            put_nonempty(out, 4, &entry);
        }
    }
}

fn check_key_id(key_id: &str) -> Result<(), String> {
    match key_id.len() {
        0 => Err("the key id is empty".to_owned()),
        length if length > MAX_KEY_ID => Err(format!("a key id of {length} bytes: at most {MAX_KEY_ID} are allowed")),
        _ => Ok(()),
    }
}

fn text(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok()
}

fn annotation(entry: &[u8]) -> Option<(String, Vec<u8>)> {
    let (mut name, mut value) = (String::new(), Vec::new());
    for field in fields(entry)? {
        match field {
            (1, Field::Bytes(bytes)) => name = text(bytes)?,
            (2, Field::Bytes(bytes)) => value = bytes.to_vec(),
            _ => {}
        }
    }
    Some((name, value))
}

/// `EncryptedObject`: the sealed seed, its type, and the data.
fn envelope(stored: &[u8]) -> Option<(SealedSeed, u64, &[u8])> {
    let (mut sealed, mut type_, mut data) = (SealedSeed::default(), 0, &[][..]);
    for field in fields(stored)? {
        match field {
            (1, Field::Bytes(bytes)) => data = bytes,
            (2, Field::Bytes(bytes)) => sealed.key_id = text(bytes)?,
            (3, Field::Bytes(bytes)) => sealed.bytes = bytes.to_vec(),
            (4, Field::Bytes(bytes)) => sealed.annotations.extend([annotation(bytes)?]),
            (5, Field::Varint(number)) => type_ = number,
            _ => {}
        }
    }
    sealed.check().ok()?;
    Some((sealed, type_, data))
}

/// The key of one value.
fn derived(seed: &[u8], info: &[u8]) -> Option<Cipher> {
    let mut key = [0; SEED];
    Prk::new_less_safe(HKDF_SHA256, seed).expand(&[info], HKDF_SHA256).ok()?.fill(&mut key).ok()?;
    Cipher::new(Algorithm::AesGcm, &key)
}

impl Kms {
    /// Of a plugin that listens at `socket`; each call may take `timeout`.
    pub fn new(name: String, socket: PathBuf, timeout: Duration) -> Self {
        let held = Held { wrong: Some("it was not asked yet".to_owned()), ..Held::default() };
        Self { name, socket, timeout, held: Mutex::new(held) }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is wrong with the plugin, in a sentence.
    pub fn trouble(&self) -> Option<String> {
        let wrong = self.held().wrong.clone()?;
        Some(format!("kmsv2 Provider {} is not healthy, error: {wrong}", self.name))
    }

    /// Whether values can be sealed.
    ///
    /// # Errors
    /// Why nothing is sealed any more, or not yet.
    pub fn ready(&self, now: Instant) -> Result<(), String> {
        let held = self.held();
        if held.current.as_ref().is_some_and(|current| now <= current.until) {
            return Ok(());
        }
        let wrong = held.wrong.as_deref().unwrap_or("it has not answered for three minutes");
        Err(format!("KMS provider {:?} cannot encrypt, and nothing is stored plain: {wrong}", self.name))
    }

    /// What stands in a row. `None` without a seed or randomness.
    pub fn seal(&self, row: &[u8], value: &[u8], random: &SystemRandom) -> Option<Vec<u8>> {
        let (seed, sealed) = {
            let held = self.held();
            let current = held.current.as_ref()?;
            (current.seed.clone(), current.sealed.clone())
        };
        let (mut info, mut nonce) = ([0; INFO], vec![0; Algorithm::AesGcm.vector()]);
        random.fill(&mut info).ok()?;
        random.fill(&mut nonce).ok()?;
        let data = [&info[..], &derived(&seed, &info)?.seal(row, &nonce, value)?].concat();
        let mut out = [PREFIX, self.name.as_bytes(), b":"].concat();
        put_nonempty(&mut out, 1, &data);
        put_nonempty(&mut out, 2, sealed.key_id.as_bytes());
        put_nonempty(&mut out, 3, &sealed.bytes);
        sealed.put_annotations(&mut out);
        put_number(&mut out, 5, IS_SEED);
        Some(out)
    }

    /// What [`Kms::seal`] was given, out of what follows the name's colon, and whether another key would seal it now.
    /// The plugin may be asked: this blocks, for its timeout at most.
    ///
    /// # Errors
    /// [`Closed::Now`] where the plugin does not decrypt the seed.
    pub fn open(&self, row: &[u8], stored: &[u8]) -> Result<(Vec<u8>, bool), Closed> {
        let (sealed, type_, data) = envelope(stored).ok_or(Closed::Damaged)?;
        if type_ != IS_SEED {
            return Err(Closed::Damaged);
        }
        let seed = self.seed(&sealed).map_err(Closed::Now)?;
        let (info, data) = data.split_at_checked(INFO).ok_or(Closed::Damaged)?;
        let plain = derived(&seed, info).and_then(|key| key.open(row, data)).ok_or(Closed::Damaged)?;
        let is_old = self.held().current.as_ref().is_some_and(|current| current.sealed.key_id != sealed.key_id);
        Ok((plain, is_old))
    }

    /// A seed, of those that are kept or from the plugin.
    fn seed(&self, sealed: &SealedSeed) -> Result<Seed, String> {
        {
            let held = self.held();
            if let Some(seed) = held.seeds.get(sealed) {
                return Ok(seed.clone());
            }
            if let Some((_, why)) = held.away.as_ref().filter(|(since, _)| since.elapsed() < PAUSE) {
                return Err(why.clone());
            }
        }
        // Not on the caller's thread, which may have a runtime of its own.
        let asked = std::thread::scope(|scope| {
            let ask = || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.map_err(|error| error.to_string())?.block_on(self.decrypt(sealed))
            };
            scope.spawn(ask).join().unwrap_or_else(|_| Err("asking it failed".to_owned()))
        });
        let mut held = self.held();
        match asked {
            Ok(seed) => {
                let seed = Arc::new(seed);
                Self::keep(&mut held, sealed.clone(), seed.clone());
                held.away = None;
                Ok(seed)
            }
            Err(why) => {
                held.away = Some((Instant::now(), why.clone()));
                Err(why)
            }
        }
    }

    fn keep(held: &mut Held, sealed: SealedSeed, seed: Seed) {
        if held.seeds.len() >= MAX_SEEDS {
            held.seeds.pop_first();
        }
        held.seeds.insert(sealed, seed);
    }

    /// Asks the plugin how it is; where it has another key by now, a new seed is made. Gives whether it is well.
    pub async fn check(&self, random: &SystemRandom) -> bool {
        let asked = Instant::now();
        let checked = self.checked(asked, random).await;
        let mut held = self.held();
        match (&checked, &held.wrong) {
            (Ok(()), Some(_)) => tracing::info!(provider = self.name, "the key management plugin is well"),
            (Err(why), was) if was.as_ref() != Some(why) => {
                tracing::error!(provider = self.name, why, "the key management plugin is not well");
            }
            _ => {}
        }
        held.wrong = checked.err();
        let is_well = held.wrong.is_none();
        if is_well {
            held.away = None;
        }
        is_well
    }

    async fn checked(&self, asked: Instant, random: &SystemRandom) -> Result<(), String> {
        let status = self.status().await.map_err(|why| {
            let name = &self.name;
            format!("failed to perform status section of the healthz check for KMS Provider {name}, error: {why}")
        })?;
        if status.healthz != "ok" {
            return Err(format!("got unexpected healthz status: {}", status.healthz));
        }
        if !matches!(status.version.as_str(), "v2" | "v2beta1") {
            return Err(format!("expected KMSv2 API version v2, got {}", status.version));
        }
        check_key_id(&status.key_id)?;
        let until = asked + WRITES;
        if let Some(current) = self.held().current.as_mut().filter(|current| current.sealed.key_id == status.key_id) {
            current.until = until;
            return Ok(());
        }
        let mut seed = vec![0; SEED];
        random.fill(&mut seed).map_err(|_| "the system has no randomness".to_owned())?;
        let sealed = self.encrypt(&seed).await.map_err(|why| format!("failed to encrypt DEK, error: {why}"))?;
        sealed.check()?;
        if sealed.key_id != status.key_id {
            return Err("its Encrypt names another key than its Status".to_owned());
        }
        let (seed, mut held) = (Arc::new(seed), self.held());
        Self::keep(&mut held, sealed.clone(), seed.clone());
        if held.current.is_some() {
            tracing::info!(provider = self.name, "the key management plugin has a new key; writes are sealed by it");
        }
        held.current = Some(Current { seed, sealed, until });
        Ok(())
    }

    async fn call(&self, method: &str, message: &[u8]) -> Result<Vec<u8>, String> {
        let path = format!("/v2.KeyManagementService/{method}");
        let call = async {
            let socket = tokio::net::UnixStream::connect(&self.socket).await;
            let socket = socket.map_err(|error| format!("{}: {error}", self.socket.display()))?;
            let (timeout, most) = (self.timeout, MAX_ANSWER);
            let call = Call { path: &path, authority: "localhost", agent: "mainstay", timeout, message, most };
            unary(socket, call).await.map_err(|error| error.to_string())
        };
        let answer = tokio::time::timeout(self.timeout, call).await;
        answer.unwrap_or_else(|_| Err(format!("no answer within {:?}", self.timeout)))
    }

    async fn status(&self) -> Result<Status, String> {
        let answer = self.call("Status", &[]).await?;
        let mut status = Status { version: String::new(), healthz: String::new(), key_id: String::new() };
        for field in fields(&answer).ok_or(MALFORMED)? {
            let (place, bytes) = match field {
                (1, Field::Bytes(bytes)) => (&mut status.version, bytes),
                (2, Field::Bytes(bytes)) => (&mut status.healthz, bytes),
                (3, Field::Bytes(bytes)) => (&mut status.key_id, bytes),
                _ => continue,
            };
            *place = text(bytes).ok_or(MALFORMED)?;
        }
        Ok(status)
    }

    async fn encrypt(&self, seed: &[u8]) -> Result<SealedSeed, String> {
        let mut message = Vec::new();
        put_nonempty(&mut message, 1, seed);
        put_nonempty(&mut message, 2, uid().as_bytes());
        let answer = self.call("Encrypt", &message).await?;
        let mut sealed = SealedSeed::default();
        for field in fields(&answer).ok_or(MALFORMED)? {
            match field {
                (1, Field::Bytes(bytes)) => sealed.bytes = bytes.to_vec(),
                (2, Field::Bytes(bytes)) => sealed.key_id = text(bytes).ok_or(MALFORMED)?,
                (3, Field::Bytes(bytes)) => sealed.annotations.extend([annotation(bytes).ok_or(MALFORMED)?]),
                _ => {}
            }
        }
        Ok(sealed)
    }

    async fn decrypt(&self, sealed: &SealedSeed) -> Result<Vec<u8>, String> {
        let mut message = Vec::new();
        put_nonempty(&mut message, 1, &sealed.bytes);
        put_nonempty(&mut message, 2, uid().as_bytes());
        put_nonempty(&mut message, 3, sealed.key_id.as_bytes());
        sealed.put_annotations(&mut message);
        let answer = self.call("Decrypt", &message).await?;
        let seed = fields(&answer).ok_or(MALFORMED)?.into_iter().find_map(|field| match field {
            (1, Field::Bytes(bytes)) => Some(bytes.to_vec()),
            _ => None,
        });
        let length = seed.as_ref().map_or(0, Vec::len);
        seed.filter(|_| length >= SEED).ok_or_else(|| format!("it gave a seed of {length} bytes"))
    }
}

const MALFORMED: &str = "a malformed answer";

/// By which a plugin's log names a call.
fn uid() -> String {
    let mut bytes = [0; 16];
    // Only a name: whoever has no randomness gets no seed anyway.
    let _ = SystemRandom::new().fill(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
