//! Tokens of other issuers: their keys are fetched from where they publish them, and kept.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::Value;
use tokio::sync::watch;

use super::User;
use super::config::Jwt;
use crate::dynamic::trust;

/// A token longer than this is none (bytes).
const MAX_TOKEN: usize = 16 << 10;
/// A discovery document or key set beyond this is refused (bytes).
const MAX_DOCUMENT: usize = 1 << 20;
/// Keys of one issuer that are kept.
const MAX_KEYS: usize = 64;
/// How long fetching a document may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often an issuer is asked again for a key that it did not have, or after a failure.
const PAUSE: Duration = Duration::from_secs(10);

/// Why a token of another issuer is refused.
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    /// Not a JSON Web Token.
    #[error("the token cannot be read")]
    Malformed,
    /// Of nobody who is configured.
    #[error("the token's issuer is not known")]
    Issuer,
    /// No key of the issuer's fits.
    #[error("the token's signature is wrong")]
    Signature,
    /// Before its time, or after it.
    #[error("the token has expired")]
    Expired,
    /// Its claims are not what is asked for.
    #[error("{0}")]
    Claims(String),
    /// The keys could not be had.
    #[error("the issuer's keys could not be fetched: {0}")]
    Fetch(String),
}

/// A key as the issuer publishes it (JWK).
#[derive(Clone, Debug)]
struct Key {
    id: String,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

/// What became of a fetch, once it is over.
type Fetched = Option<Result<(), String>>;

#[derive(Default)]
struct Kept {
    keys: Arc<[Key]>,
    /// When the last fetch ended.
    tried: Option<Instant>,
    /// The fetch that is under way.
    flight: Option<watch::Receiver<Fetched>>,
}

struct Source {
    jwt: Jwt,
    tls: Arc<rustls::ClientConfig>,
    kept: Mutex<Kept>,
}

/// All issuers.
#[derive(Default)]
pub struct Issuers(BTreeMap<String, Arc<Source>>);

impl Issuers {
    /// Those of a configuration. An error names what of it cannot be used.
    pub fn new(jwt: &[Jwt]) -> Result<Self, String> {
        let sources = jwt.iter().map(|jwt| {
            let tls = client_tls(&jwt.issuer.certificate_authority)
                .map_err(|error| format!("{}: {error}", jwt.issuer.url))?;
            let source = Source { jwt: jwt.clone(), tls: Arc::new(tls), kept: Mutex::default() };
            Ok((jwt.issuer.url.clone(), Arc::new(source)))
        });
        Ok(Self(sources.collect::<Result<_, String>>()?))
    }

    /// Whether the token says that one of these has issued it. Nothing of it is believed yet.
    pub fn knows(&self, token: &str) -> bool {
        !self.0.is_empty() && payload(token).is_ok_and(|claims| self.source(&claims).is_some())
    }

    fn source(&self, claims: &Value) -> Option<&Arc<Source>> {
        self.0.get(claims.get("iss")?.as_str()?)
    }

    /// The user of a token, if it is good.
    pub async fn user(&self, token: &str, now: Timestamp) -> Result<User, OidcError> {
        let claims = payload(token)?;
        let source = self.source(&claims).ok_or(OidcError::Issuer)?;
        source.verify(token).await?;
        let second = |field: &str| claims.get(field).and_then(Value::as_f64);
        #[expect(clippy::cast_precision_loss, reason = "seconds of a time are far below 2^52")]
        let now = now.as_second() as f64;
        if second("exp").is_none_or(|end| now >= end) || second("nbf").is_some_and(|begin| now < begin) {
            return Err(OidcError::Expired);
        }
        source.jwt.user(&claims).map_err(OidcError::Claims)
    }
}

fn part(text: &str) -> Result<Vec<u8>, OidcError> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| OidcError::Malformed)
}

fn json(bytes: &[u8]) -> Result<Value, OidcError> {
    serde_json::from_slice(bytes).map_err(|_| OidcError::Malformed)
}

fn payload(token: &str) -> Result<Value, OidcError> {
    if token.len() > MAX_TOKEN {
        return Err(OidcError::Malformed);
    }
    let (text, _) = token.rsplit_once('.').ok_or(OidcError::Malformed)?;
    let (_, body) = text.split_once('.').ok_or(OidcError::Malformed)?;
    json(&part(body)?)
}

impl Source {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn verify(self: &Arc<Self>, token: &str) -> Result<(), OidcError> {
        let (text, signature) = token.rsplit_once('.').ok_or(OidcError::Malformed)?;
        let head = json(&part(text.split('.').next().unwrap_or(""))?)?;
        let member = |name: &str| head.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
        let (algorithm, id) = (member("alg"), member("kid"));
        let signature = part(signature)?;
        let fits = |keys: &[Key]| {
            let mut all = keys.iter().filter(|key| id.is_empty() || key.id == id);
            all.any(|key| key.verifies(&algorithm, text.as_bytes(), &signature))
        };
        // Whose key is known waits for nobody, whatever others ask the issuer about meanwhile (X5).
        let keys = self.kept().keys.clone();
        if fits(&keys) {
            return Ok(());
        }
        if keys.iter().any(|key| key.id == id) {
            return Err(OidcError::Signature);
        }
        let mut flight = self.flight().ok_or(OidcError::Signature)?;
        let fetched = flight.wait_for(Option::is_some).await.map(|fetched| fetched.clone());
        if let Ok(Some(Err(why))) = fetched {
            return Err(OidcError::Fetch(why));
        }
        let keys = self.kept().keys.clone();
        if fits(&keys) { Ok(()) } else { Err(OidcError::Signature) }
    }

    /// The fetch of the keys that is under way, or a new one; `None` where there was one a moment ago. It goes on when
    /// whoever asked for it has gone.
    fn flight(self: &Arc<Self>) -> Option<watch::Receiver<Fetched>> {
        let mut kept = self.kept();
        if let Some(flight) = kept.flight.as_ref().filter(|flight| flight.has_changed().is_ok()) {
            return Some(flight.clone());
        }
        if kept.tried.is_some_and(|tried| tried.elapsed() < PAUSE) {
            return None;
        }
        let (over, flight) = watch::channel(None);
        kept.flight = Some(flight.clone());
        let source = self.clone();
        tokio::spawn(async move {
            let fetched = source.fetch().await;
            let mut kept = source.kept();
            // Counted from its end: an issuer that is silent is not asked all the time.
            kept.tried = Some(Instant::now());
            kept.flight = None;
            let fetched = fetched.map(|keys| kept.keys = keys.into());
            drop(kept);
            over.send_replace(Some(fetched));
        });
        Some(flight)
    }

    async fn fetch(&self) -> Result<Vec<Key>, String> {
        let issuer = &self.jwt.issuer;
        let discovery = match issuer.discovery_url.as_str() {
            "" => format!("{}/.well-known/openid-configuration", issuer.url.trim_end_matches('/')),
            url => url.to_owned(),
        };
        let document = get(&self.tls, &discovery).await?;
        if document.get("issuer").and_then(Value::as_str) != Some(issuer.url.as_str()) {
            return Err("the discovery document is another issuer's".to_owned());
        }
        let keys = document.get("jwks_uri").and_then(Value::as_str).ok_or("the discovery document names no keys")?;
        let set = get(&self.tls, keys).await?;
        let keys = set.get("keys").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        Ok(keys.iter().take(MAX_KEYS).filter_map(Key::read).collect())
    }
}

impl Key {
    fn read(jwk: &Value) -> Option<Self> {
        let text = |name: &str| jwk.get(name).and_then(Value::as_str).unwrap_or("");
        if !matches!(text("use"), "" | "sig") {
            return None;
        }
        let bytes = |name: &str| URL_SAFE_NO_PAD.decode(text(name)).ok().filter(|bytes| !bytes.is_empty());
        let point = |length: usize| {
            let (x, y) = (bytes("x")?, bytes("y")?);
            (x.len() == length && y.len() == length).then(|| [&[4][..], &x, &y].concat())
        };
        let kind = match (text("kty"), text("crv")) {
            ("RSA", _) => Kind::Rsa { n: bytes("n")?, e: bytes("e")? },
            ("EC", "P-256") => Kind::P256(point(32)?),
            ("EC", "P-384") => Kind::P384(point(48)?),
            ("OKP", "Ed25519") => Kind::Ed25519(bytes("x")?),
            _ => return None,
        };
        Some(Self { id: text("kid").to_owned(), kind })
    }

    /// An algorithm goes with its kind of key only, whatever the token says.
    fn verifies(&self, algorithm: &str, text: &[u8], signature: &[u8]) -> bool {
        let rsa =
            |n: &Vec<u8>, e: &Vec<u8>, parameters| RsaPublicKeyComponents { n, e }.verify(parameters, text, signature);
        let plain = |key: &Vec<u8>, kind: &'static dyn signature::VerificationAlgorithm| {
            UnparsedPublicKey::new(kind, key).verify(text, signature)
        };
        let verified = match (&self.kind, algorithm) {
            (Kind::Rsa { n, e }, "RS256") => rsa(n, e, &signature::RSA_PKCS1_2048_8192_SHA256),
            (Kind::Rsa { n, e }, "RS384") => rsa(n, e, &signature::RSA_PKCS1_2048_8192_SHA384),
            (Kind::Rsa { n, e }, "RS512") => rsa(n, e, &signature::RSA_PKCS1_2048_8192_SHA512),
            (Kind::Rsa { n, e }, "PS256") => rsa(n, e, &signature::RSA_PSS_2048_8192_SHA256),
            (Kind::Rsa { n, e }, "PS384") => rsa(n, e, &signature::RSA_PSS_2048_8192_SHA384),
            (Kind::Rsa { n, e }, "PS512") => rsa(n, e, &signature::RSA_PSS_2048_8192_SHA512),
            (Kind::P256(key), "ES256") => plain(key, &signature::ECDSA_P256_SHA256_FIXED),
            (Kind::P384(key), "ES384") => plain(key, &signature::ECDSA_P384_SHA384_FIXED),
            (Kind::Ed25519(key), "EdDSA") => plain(key, &signature::ED25519),
            _ => return false,
        };
        verified.is_ok()
    }
}

/// TLS that trusts these authorities (PEM; empty for public ones) and shows no certificate.
pub fn client_tls(authority: &str) -> Result<rustls::ClientConfig, String> {
    let all = match authority {
        "" => trust::public_authorities()?,
        authority => CertificateDer::pem_slice_iter(authority.as_bytes())
            .collect::<Result<_, _>>()
            .map_err(|error| error.to_string())?,
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(all);
    if roots.is_empty() {
        return Err("certificateAuthority holds no certificate".to_owned());
    }
    Ok(rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

/// A JSON document over HTTPS. Redirections are not followed.
async fn get(tls: &Arc<rustls::ClientConfig>, url: &str) -> Result<Value, String> {
    tokio::time::timeout(PATIENCE, get_now(tls, url)).await.map_err(|_| format!("{url}: no answer in time"))?
}

async fn get_now(tls: &Arc<rustls::ClientConfig>, url: &str) -> Result<Value, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{url}: {error}");
    let uri: http::Uri = url.parse().map_err(|error| failed(&error))?;
    let host = uri.host().filter(|_| uri.scheme_str() == Some("https")).ok_or_else(|| failed(&"not an https URL"))?;
    let plain = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(plain.to_owned()).map_err(|error| failed(&error))?;
    let stream = tokio::net::TcpStream::connect((plain, uri.port_u16().unwrap_or(443))).await;
    let stream =
        tokio_rustls::TlsConnector::from(tls.clone()).connect(name, stream.map_err(|error| failed(&error))?).await;
    let stream = TokioIo::new(stream.map_err(|error| failed(&error))?);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(stream).await.map_err(|error| failed(&error))?;
    let path = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
    let authority = uri.authority().map_or(host, http::uri::Authority::as_str);
    let request = http::Request::get(path)
        .header(http::header::HOST, authority)
        .header(http::header::ACCEPT, "application/json")
        .body(Empty::<bytes::Bytes>::new())
        .map_err(|error| failed(&error))?;
    let work = async {
        let answer = sender.send_request(request).await.map_err(|error| failed(&error))?;
        if answer.status() != http::StatusCode::OK {
            return Err(failed(&answer.status()));
        }
        let body = Limited::new(answer.into_body(), MAX_DOCUMENT).collect().await.map_err(|error| failed(&error))?;
        serde_json::from_slice(&body.to_bytes()).map_err(|error| failed(&error))
    };
    let mut work = std::pin::pin!(work);
    // The connection is driven as long as the answer is awaited; what it has brought by its end is still read.
    tokio::select! {
        biased;
        done = work.as_mut() => done,
        _ = connection => work.await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};

    #[tokio::test]
    async fn x5_while_an_issuer_is_silent_tokens_of_known_keys_are_good() {
        let random = ring::rand::SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("a key");
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).expect("a key");
        let signed = |kid: &str| {
            let head = URL_SAFE_NO_PAD.encode(serde_json::json!({ "alg": "ES256", "kid": kid }).to_string());
            let text = format!("{head}.{}", URL_SAFE_NO_PAD.encode("{}"));
            let signature = pair.sign(&random, text.as_bytes()).expect("signed");
            format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
        };
        // Takes connections, and says nothing.
        let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let mut jwt = Jwt::default();
        jwt.issuer.url = format!("https://{}", silent.local_addr().expect("an address"));
        let authority = rcgen::generate_simple_self_signed(vec!["a".to_owned()]).expect("a certificate").cert.pem();
        let tls = Arc::new(client_tls(&authority).expect("TLS"));
        let known = Key { id: "known".into(), kind: Kind::P256(pair.public_key().as_ref().to_vec()) };
        let kept = Mutex::new(Kept { keys: Arc::new([known]), ..Kept::default() });
        let source = Arc::new(Source { jwt, tls, kept });
        let forged: Vec<_> = (0..4)
            .map(|_| {
                let (source, token) = (source.clone(), signed("forged"));
                tokio::spawn(async move { source.verify(&token).await })
            })
            .collect();
        let (connection, _) = silent.accept().await.expect("asked");
        tokio::time::timeout(Duration::from_secs(5), source.verify(&signed("known")))
            .await
            .expect("waits for nobody")
            .expect("good");
        assert!(matches!(source.verify(&signed("known").replace("e30", "e31")).await, Err(OidcError::Signature)));
        assert!(forged.iter().all(|asking| !asking.is_finished()));
        drop(connection);
        for asking in forged {
            assert!(matches!(asking.await.expect("joined"), Err(OidcError::Fetch(_))), "one answer for all");
        }
        // Not asked again at once.
        assert!(matches!(source.verify(&signed("forged")).await, Err(OidcError::Signature)));
    }
}
