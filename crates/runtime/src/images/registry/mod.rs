//! Reading from a registry (the OCI distribution specification, and Docker's media types before it), of which nothing
//! is believed: what is read has a limit and a deadline, what has a digest is checked by it, and credentials go to the
//! registry and to the token server that it names, and to nobody else that they send us to.

mod auth;
mod bounds;
#[cfg(any(test, fuzzing, feature = "fuzzing"))]
pub mod fuzzing;
#[cfg(test)]
mod tests;
mod wire;

use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderName, HeaderValue, LOCATION};
use serde::Deserialize;
use tokio::time::timeout;

use self::auth::Challenge;
pub use self::bounds::{Budget, Patience};
use self::bounds::{
    MAX_MANIFEST, MAX_NESTING, MAX_REDIRECTS, MAX_REFUSAL, MAX_RESUMPTIONS, MAX_TOKEN, MAX_WORDS, Pace, Share,
};
use self::wire::{Answer, Location, Wanted, Wire};
use super::archive::{MAX_DOCUMENT, digest_of, is_digest, is_this_platform};
use super::partial::Sink;
use super::{Reference, RegistryAuth};

const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
const ANYTHING: &str = "*/*";
const JSON: &str = "application/json";
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// The host that serves what is named `docker.io/…`.
const DOCKER_HUB: &str = "registry-1.docker.io";

/// What a manifest refers to.
#[derive(Clone, Debug, Deserialize)]
pub struct Descriptor {
    pub digest: String,
    /// Bytes.
    pub size: u64,
    #[serde(default)]
    platform: Option<Platform>,
}

#[derive(Clone, Debug, Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

/// A manifest or an index, of either family.
#[derive(Deserialize)]
struct Listed {
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
}

/// What a manifest's bytes are.
enum Found {
    /// The digest of what it has for this machine.
    Index {
        ours: String,
    },
    Image {
        config: Descriptor,
        layers: Vec<Descriptor>,
    },
}

fn read_manifest(bytes: &[u8]) -> Result<Found, String> {
    match serde_json::from_slice::<Listed>(bytes).map_err(|error| format!("it is not readable: {error}"))? {
        Listed { manifests: Some(manifests), .. } => {
            let is_ours = |platform: &Platform| is_this_platform(&platform.os, &platform.architecture);
            let ours = manifests.into_iter().find(|entry| entry.platform.as_ref().is_some_and(is_ours));
            let arch = std::env::consts::ARCH;
            let ours = ours.ok_or_else(|| format!("no match for platform in manifest: linux/{arch}"))?.digest;
            if is_digest(&ours) { Ok(Found::Index { ours }) } else { Err(format!("{:?} is no digest", words(&ours))) }
        }
        Listed { config: Some(config), layers: Some(layers), .. } => Ok(Found::Image { config, layers }),
        Listed { .. } => Err("it is of an unsupported kind".to_owned()),
    }
}

/// Why a layer did not come whole.
enum Cut {
    /// The connection ended: what is missing may come over another one.
    Broken(String),
    Refused(String),
}

impl From<String> for Cut {
    fn from(why: String) -> Cut {
        Cut::Refused(why)
    }
}

/// One image for this machine.
#[derive(Debug)]
pub struct Manifest {
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
    /// Of the manifest, and of the indexes that led to it.
    pub digests: Vec<String>,
}

/// What was read whole, with its part of the memory that all have.
pub struct Document {
    pub bytes: Vec<u8>,
    _share: Share,
}

/// One repository of one registry, for one pull.
pub struct Registry {
    base: Location,
    reference: Reference,
    auth: Option<RegistryAuth>,
    /// What the registry took last.
    authorization: Option<HeaderValue>,
    wire: Wire,
    patience: Patience,
    budget: Budget,
}

impl Registry {
    /// HTTPS, and plain HTTP where the registry is on this machine's loopback.
    pub fn new(
        reference: &Reference,
        auth: Option<&RegistryAuth>,
        patience: Patience,
        budget: &Budget,
    ) -> Result<Registry, String> {
        Registry::over(Wire::new(patience), reference, auth, patience, budget)
    }

    fn over(
        wire: Wire,
        reference: &Reference,
        auth: Option<&RegistryAuth>,
        patience: Patience,
        budget: &Budget,
    ) -> Result<Registry, String> {
        let domain = if reference.domain == "docker.io" { DOCKER_HUB } else { &reference.domain };
        let path = format!("{domain}/v2/{}/", reference.repository);
        // Plain HTTP is refused everywhere but on the loopback.
        let base =
            Location::parse(&format!("http://{path}")).or_else(|_| Location::parse(&format!("https://{path}")))?;
        let (reference, auth, budget) = (reference.clone(), auth.cloned(), budget.clone());
        Ok(Registry { base, reference, auth, authorization: None, wire, patience, budget })
    }

    /// The manifest of the image for this machine, through the index where there is one.
    pub async fn manifest(&mut self) -> Result<Manifest, String> {
        let mut wanted = self.reference.digest.clone();
        let mut digests = Vec::new();
        for _ in 0..=MAX_NESTING {
            let (bytes, digest) = self.manifest_bytes(wanted.as_deref()).await?;
            let listed = read_manifest(&bytes.bytes).map_err(|why| format!("manifest {digest}: {why}"))?;
            digests.push(digest);
            match listed {
                Found::Index { ours } => wanted = Some(ours),
                Found::Image { config, layers } => return Ok(Manifest { config, layers, digests }),
            }
        }
        Err(format!("its indexes are nested more than {MAX_NESTING} deep"))
    }

    /// A manifest's or index's bytes and digest, by digest or (without one) by the reference's tag.
    async fn manifest_bytes(&mut self, digest: Option<&str>) -> Result<(Document, String), String> {
        let name = digest.or(self.reference.tag.as_deref()).unwrap_or_default().to_owned();
        let url = self.base.join(&format!("manifests/{name}"))?;
        let patience = self.patience.document;
        let read = async {
            let mut answer = self.ask(&url, whole(MANIFESTS)).await?;
            let claimed = answer.header(&CONTENT_DIGEST).map(str::to_owned);
            let document = read_document(&mut answer, MAX_MANIFEST, &self.budget).await?;
            self.wire.keep(answer).await;
            Ok((document, claimed))
        };
        let (document, claimed) = timeout(patience, read).await.unwrap_or_else(|_| Err(too_slow(&url)))?;
        let actual = digest_of(&document.bytes);
        let claimed = claimed.filter(|claimed| is_digest(claimed));
        match digest.map(str::to_owned).or(claimed).filter(|expected| *expected != actual) {
            Some(expected) => Err(format!("manifest {name}: its digest is {actual}, expected was {expected}")),
            None => Ok((document, actual)),
        }
    }

    /// An image's config, as long as the manifest says and of that digest.
    pub async fn config(&mut self, config: &Descriptor) -> Result<Document, String> {
        let failed = |why: String| format!("config {}: {why}", words(&config.digest));
        let url = self.blob_url(config).map_err(failed)?;
        let length = usize::try_from(config.size).ok().filter(|length| *length as u64 <= MAX_DOCUMENT);
        let length = length.ok_or_else(|| failed(format!("{} bytes are more than {MAX_DOCUMENT}", config.size)))?;
        let patience = self.patience.document;
        let read = async {
            let mut answer = self.ask(&url, whole(ANYTHING)).await?;
            let document = read_document(&mut answer, length, &self.budget).await.map_err(failed)?;
            self.wire.keep(answer).await;
            Ok(document)
        };
        let document = timeout(patience, read).await.unwrap_or_else(|_| Err(too_slow(&url)))?;
        let actual = digest_of(&document.bytes);
        if document.bytes.len() != length {
            return Err(failed(format!("it has {} bytes, expected were {length}", document.bytes.len())));
        }
        if actual != config.digest {
            return Err(failed(format!("its digest is {actual}")));
        }
        Ok(document)
    }

    /// Has a layer written down, from the byte on that is not there yet. A connection that breaks is gone on with, up
    /// to 5 times. At the end the bytes are as many, and of that digest, as the manifest says; what earlier pulls left
    /// may be what is wrong, so that all is asked for once more.
    pub async fn layer(&mut self, layer: &Descriptor, sink: &mut Sink<'_>) -> Result<(), String> {
        let url = self.blob_url(layer)?;
        let mut resumptions = 0;
        let (mut is_pieced, mut may_begin_anew) = (sink.length() > 0, true);
        loop {
            let before = sink.length();
            match self.rest_of(layer, &url, sink).await {
                Ok(()) => {}
                Err(Cut::Broken(_)) if sink.length() > before && resumptions < MAX_RESUMPTIONS => {
                    (resumptions, is_pieced) = (resumptions + 1, true);
                    continue;
                }
                Err(Cut::Broken(why) | Cut::Refused(why)) => return Err(why),
            }
            let actual = sink.digest().await?;
            if actual == layer.digest {
                return Ok(());
            }
            sink.begin_anew().await?;
            if !is_pieced || !may_begin_anew {
                return Err(format!("its digest is {actual}"));
            }
            (is_pieced, may_begin_anew) = (false, false);
        }
    }

    /// Asks for what is not there of a layer, and takes it.
    async fn rest_of(&mut self, layer: &Descriptor, url: &Location, sink: &mut Sink<'_>) -> Result<(), Cut> {
        if sink.length() == layer.size && layer.size > 0 {
            return Ok(());
        }
        let mut answer = self.ask_for_rest(layer, url, sink).await?;
        let mut left = layer.size - sink.length();
        if let Some(other) = content_length(&answer).filter(|length| *length != left) {
            return Err(Cut::Refused(format!(
                "it has {} bytes, the manifest says {}",
                sink.length().saturating_add(other),
                layer.size
            )));
        }
        let mut pace = Pace::new(self.patience);
        while let Some(bytes) = answer.chunk().await.map_err(|why| Cut::Broken(format!("Get \"{url}\": {why}")))? {
            left = left.checked_sub(bytes.len() as u64).ok_or_else(|| {
                Cut::Refused(format!("it is longer than the {} bytes that the manifest says", layer.size))
            })?;
            sink.take(&bytes).await?;
            if left > 0 && !pace.took(bytes.len()) {
                return Err(Cut::Refused(too_slow(url)));
            }
        }
        if left > 0 {
            let why = format!("it ends {left} bytes before the {} that the manifest says", layer.size);
            return Err(Cut::Broken(why));
        }
        self.wire.keep(answer).await;
        Ok(())
    }

    /// An answer that begins where the sink ends: who does not know ranges sends all, and then all is taken.
    async fn ask_for_rest(&mut self, layer: &Descriptor, url: &Location, sink: &mut Sink<'_>) -> Result<Answer, Cut> {
        loop {
            let from = sink.length();
            let asked = timeout(self.patience.document, self.ask(url, Wanted { accept: ANYTHING, from })).await;
            let answer = asked.unwrap_or_else(|_| Err(too_slow(url))).map_err(Cut::Refused)?;
            match answer.status() {
                StatusCode::PARTIAL_CONTENT => {
                    let range = answer.header(&CONTENT_RANGE).unwrap_or_default();
                    return match is_rest(range, from, layer.size) {
                        true => Ok(answer),
                        false => Err(Cut::Refused(format!(
                            "Get \"{url}\": asked for bytes {from} to the end of {}, it sends {:?}",
                            layer.size,
                            words(range)
                        ))),
                    };
                }
                StatusCode::RANGE_NOT_SATISFIABLE => {
                    self.wire.keep(answer).await;
                    sink.begin_anew().await?;
                }
                _ => {
                    if from > 0 {
                        sink.begin_anew().await?;
                    }
                    return Ok(answer);
                }
            }
        }
    }

    fn blob_url(&self, blob: &Descriptor) -> Result<Location, String> {
        if !is_digest(&blob.digest) {
            return Err(format!("{:?} is not a digest", words(&blob.digest)));
        }
        self.base.join(&format!("blobs/{}", blob.digest))
    }

    /// An answer with status 200, or one of those that [`Wanted::from`] may have. Who is asked for credentials shows
    /// them, once for each question: a token may have expired under a long pull.
    async fn ask(&mut self, url: &Location, wanted: Wanted) -> Result<Answer, String> {
        let authorization = self.authorization.clone();
        let (answer, by) = self.follow(url, wanted, authorization.as_ref()).await?;
        if answer.status() != StatusCode::UNAUTHORIZED || by.origin != self.base.origin {
            return self.accepted(answer, &by, wanted).await;
        }
        let Some(authorization) = self.authorize(answer.headers()).await? else {
            return self.accepted(answer, &by, wanted).await;
        };
        self.wire.keep(answer).await;
        self.authorization = Some(authorization.clone());
        let (answer, by) = self.follow(url, wanted, Some(&authorization)).await?;
        self.accepted(answer, &by, wanted).await
    }

    async fn accepted(&self, answer: Answer, by: &Location, wanted: Wanted) -> Result<Answer, String> {
        match answer.status() {
            StatusCode::OK => Ok(answer),
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if wanted.from > 0 => Ok(answer),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) if by.origin != self.base.origin => {
                let said = read_refusal(answer, self.patience).await;
                Err(with(
                    format!(
                        "pull access denied for {}: the registry leads to {by}, which answers {status}; the pull's \
                         credentials are shown to the registry alone",
                        self.reference.name()
                    ),
                    &said,
                ))
            }
            _ => Err(self.refusal(answer, by).await),
        }
    }

    /// What to show for a challenge; None where there is nothing that could be.
    async fn authorize(&mut self, headers: &HeaderMap) -> Result<Option<HeaderValue>, String> {
        let password = self.auth.as_ref().map(auth::basic).transpose()?;
        let (realm, service) = match auth::challenge(headers) {
            Some(Challenge::Bearer { realm, service }) => (realm, service),
            Some(Challenge::Basic) => return Ok(password),
            None => return Ok(None),
        };
        let realm = self.base.join(&realm)?;
        self.check_downgrade(&self.base, &realm)?;
        let url = realm.with_query(&auth::token_query(service.as_deref(), &self.reference.repository));
        let (mut answer, by) = self.follow(&url, whole(JSON), password.as_ref()).await?;
        if answer.status() != StatusCode::OK {
            return Err(format!("failed to authorize: {}", self.refusal(answer, &by).await));
        }
        let token = read_document(&mut answer, MAX_TOKEN, &self.budget).await;
        let token = token.map_err(|why| format!("Get \"{by}\": {why}"))?;
        self.wire.keep(answer).await;
        auth::bearer(&token.bytes).map(Some)
    }

    /// Asks, and goes on where it is sent to; what is shown goes no further than to whom it was meant for.
    async fn follow(
        &mut self,
        url: &Location,
        wanted: Wanted,
        authorization: Option<&HeaderValue>,
    ) -> Result<(Answer, Location), String> {
        let (mut at, mut authorization) = (url.clone(), authorization);
        for _ in 0..=MAX_REDIRECTS {
            let answer = self.wire.get(&at, wanted, authorization).await?;
            let is_redirected = matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            let Some(to) = answer.header(&LOCATION).filter(|_| is_redirected) else { return Ok((answer, at)) };
            let to = at.join(to)?;
            self.check_downgrade(&at, &to)?;
            if to.origin != at.origin {
                authorization = None;
            }
            self.wire.keep(answer).await;
            at = to;
        }
        Err(format!("Get \"{url}\": stopped after {MAX_REDIRECTS} redirects"))
    }

    /// Who is spoken to over TLS sends nobody to plain HTTP, which would be this machine's own.
    fn check_downgrade(&self, from: &Location, to: &Location) -> Result<(), String> {
        if from.origin.is_secure && !to.origin.is_secure {
            return Err(format!("Get \"{from}\": it leads to {to}, which is plain HTTP"));
        }
        Ok(())
    }

    /// Upstream's words for what a registry does not give.
    async fn refusal(&self, answer: Answer, by: &Location) -> String {
        let status = answer.status();
        let said = read_refusal(answer, self.patience).await;
        let with = |text: String| with(text, &said);
        match status {
            StatusCode::NOT_FOUND => with(format!("{}: not found", self.reference)),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => with(format!(
                "pull access denied for {}, repository does not exist or may require authorization",
                self.reference.name()
            )),
            _ => with(format!("unexpected status from GET request to {by}: {status}")),
        }
    }
}

fn with(text: String, said: &str) -> String {
    if said.is_empty() { text } else { format!("{text}: {said}") }
}

fn whole(accept: &'static str) -> Wanted {
    Wanted { accept, from: 0 }
}

fn too_slow(url: &Location) -> String {
    format!("Get \"{url}\": i/o timeout: it comes too slowly")
}

/// Whether a `Content-Range` is from a byte to the end of so many (RFC 9110, 14.4).
fn is_rest(range: &str, from: u64, size: u64) -> bool {
    let parsed = || {
        let (first, rest) = range.trim().strip_prefix("bytes ")?.trim().split_once('-')?;
        let (last, all) = rest.split_once('/')?;
        let is_all = all == "*" || all.parse() == Ok(size);
        Some(is_all && first.parse() == Ok(from) && last.parse::<u64>().ok()?.checked_add(1)? == size)
    };
    parsed().unwrap_or(false)
}

fn content_length(answer: &Answer) -> Option<u64> {
    answer.header(&CONTENT_LENGTH)?.parse().ok()
}

/// Reads an answer whole, up to a limit.
async fn read_document(answer: &mut Answer, limit: usize, budget: &Budget) -> Result<Document, String> {
    let too_long = || format!("it is longer than {limit} bytes");
    if content_length(answer).is_some_and(|length| length > limit as u64) {
        return Err(too_long());
    }
    let (mut bytes, mut share) = (Vec::new(), Share::new(budget));
    while let Some(chunk) = answer.chunk().await? {
        if chunk.len() > limit - bytes.len() {
            return Err(too_long());
        }
        if !share.grow(chunk.len()) {
            return Err("too many large documents of registries are being read at once".to_owned());
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(Document { bytes, _share: share })
}

/// What a refusal's body says, in a few words.
async fn read_refusal(mut answer: Answer, patience: Patience) -> String {
    let mut bytes = Vec::new();
    let read = async {
        while let Ok(Some(chunk)) = answer.chunk().await {
            let room = MAX_REFUSAL - bytes.len();
            bytes.extend_from_slice(chunk.get(..room.min(chunk.len())).unwrap_or_default());
            if bytes.len() == MAX_REFUSAL {
                break;
            }
        }
    };
    // What came by then is worth reading.
    let _ = timeout(patience.silence, read).await;
    said(&bytes)
}

fn said(refusal: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Said {
        #[serde(default)]
        errors: Vec<Why>,
        /// Docker Hub's token server says it here.
        #[serde(default)]
        details: String,
    }
    #[derive(Deserialize)]
    struct Why {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(said) = serde_json::from_slice::<Said>(refusal) else { return String::new() };
    let each = said.errors.iter().take(3).map(|why| {
        let code = why.code.to_lowercase().replace('_', " ");
        if why.message.is_empty() || why.message == code { code } else { format!("{code}: {}", why.message) }
    });
    let said = each.chain([said.details.clone()]).filter(|text| !text.is_empty());
    words(&said.collect::<Vec<_>>().join("; "))
}

/// A stranger's text, as short and plain as it may stand in an event.
fn words(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(MAX_WORDS).collect()
}
