//! Service account tokens: JWTs signed with ES256, bound to the account (and, where asked for, to a pod) by uid.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use mainstay_api::{Kind, Status, kinds, object};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use serde_json::{Value, json};

use super::Batch;
use crate::authorize::restriction;

/// Who signs, and who the tokens are for when nobody else is named: the API server.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
/// What stands before the point in the `SubjectPublicKeyInfo` of a P-256 key.
const SPKI_P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
/// The shortest life of a token, in seconds.
const MIN_SECONDS: i64 = 600;
/// The longest life of a token, in seconds.
const MAX_SECONDS: i64 = 1 << 32;
/// What a request that does not say gets, in seconds.
const DEFAULT_SECONDS: i64 = 3600;
/// A longer token is none of ours (bytes).
const MAX_TOKEN: usize = 8 << 10;
/// Who signs tokens that live in a Secret, as upstream: they have no end and no audience but the API server.
const LASTING_ISSUER: &str = "kubernetes/serviceaccount";
/// What the claims of such a token begin with.
const LASTING: &str = "kubernetes.io/serviceaccount/";

/// Signs and checks tokens.
pub struct Tokens {
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

/// What a token that was checked says.
#[derive(Clone, Debug, PartialEq)]
pub struct Claims {
    /// The account's namespace.
    pub namespace: String,
    /// The account's name.
    pub account: String,
    /// The account's uid.
    pub uid: String,
    /// What it ends with beside the account.
    pub bound: Vec<Bound>,
    /// For whom it is, of those who were asked for.
    pub audiences: Vec<String>,
    /// The node of the pod that it is bound to: name and uid. The token does not end with it.
    pub node: Option<(String, String)>,
    /// Its own id (`jti`).
    pub id: String,
    /// The Secret that must hold it, of a token that has no end.
    pub secret: Option<String>,
}

/// An object that a token is bound to.
#[derive(Clone, Debug, PartialEq)]
pub struct Bound {
    /// Pod, Secret or Node.
    pub kind: Kind,
    /// Its name; a pod or secret is in the account's namespace.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

/// What tokens may be bound to, by the name of the claim.
const BINDINGS: [(&str, &Kind); 3] = [("pod", &kinds::POD), ("secret", &kinds::SECRET), ("node", &kinds::NODE)];

/// Why a token is refused. What it says is never told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a token of ours.
    #[error("the token cannot be read")]
    Malformed,
    /// Signed by somebody else.
    #[error("the token's signature is wrong")]
    Signature,
    /// Before its time, or after it.
    #[error("the token has expired")]
    Expired,
    /// Its account, or what it is bound to, is gone.
    #[error("the token's account or the object that it is bound to is gone")]
    Gone,
    /// For somebody else.
    #[error("the token is for another audience")]
    Audience,
}

impl Tokens {
    /// From a PKCS#8 key.
    pub fn new(pkcs8: &[u8]) -> Option<Self> {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &random).ok()?;
        Some(Self { pair, random })
    }

    fn sign(&self, claims: &Value) -> Result<String, Status> {
        let head = URL_SAFE_NO_PAD.encode(json!({ "alg": "ES256", "kid": self.key_id() }).to_string());
        let body = URL_SAFE_NO_PAD.encode(claims.to_string());
        let text = format!("{head}.{body}");
        let signature =
            self.pair.sign(&self.random, text.as_bytes()).map_err(|_| Status::internal("signing a token failed"))?;
        Ok(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// The key's name: the digest of its public half, as `SubjectPublicKeyInfo`.
    fn key_id(&self) -> String {
        let mut info = SPKI_P256.to_vec();
        info.extend_from_slice(self.pair.public_key().as_ref());
        URL_SAFE_NO_PAD.encode(ring::digest::digest(&ring::digest::SHA256, &info))
    }

    /// `/openid/v1/jwks`: the public key, for whoever checks tokens by themselves.
    pub fn key_set(&self) -> Value {
        let point = self.pair.public_key().as_ref();
        // An uncompressed point: 4, then both coordinates.
        let (x, y) = point.get(1..).unwrap_or_default().split_at(point.len().saturating_sub(1) / 2);
        json!({ "keys": [{
            "use": "sig", "kty": "EC", "kid": self.key_id(), "crv": "P-256", "alg": "ES256",
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        }] })
    }

    /// Checks signature, time and audience: the token must be for one of `audiences`. Whether the account, and what the
    /// token is bound to, still exist is for the caller to look up.
    pub fn check(&self, token: &str, audiences: &[&str], now: Timestamp) -> Result<Claims, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::Malformed);
        }
        let (text, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (head, body) = text.split_once('.').ok_or(TokenError::Malformed)?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed);
        let parse = |bytes: Vec<u8>| serde_json::from_slice::<Value>(&bytes).map_err(|_| TokenError::Malformed);
        let signature = decode(signature)?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key().as_ref())
            .verify(text.as_bytes(), &signature)
            .map_err(|_| TokenError::Signature)?;
        if object::text(&parse(decode(head)?)?, &["alg"]) != "ES256" {
            return Err(TokenError::Signature);
        }
        let claims = parse(decode(body)?)?;
        if object::text(&claims, &["iss"]) == LASTING_ISSUER {
            return lasting(&claims, audiences);
        }
        let second = |field: &str| claims.get(field).and_then(Value::as_i64);
        let now = now.as_second();
        if second("exp").is_none_or(|end| now >= end) || second("nbf").is_some_and(|begin| now < begin) {
            return Err(TokenError::Expired);
        }
        if object::text(&claims, &["iss"]) != ISSUER {
            return Err(TokenError::Signature);
        }
        let own = claims.get("aud").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
        let audiences: Vec<String> = own.filter(|own| audiences.contains(own)).map(str::to_owned).collect();
        if audiences.is_empty() {
            return Err(TokenError::Audience);
        }
        let text = |path: &[&str]| object::text(&claims, path).to_owned();
        let has = |claim: &str| object::at(&claims, &["kubernetes.io", claim]).is_some();
        let bound = BINDINGS.iter().filter(|(claim, _)| has(claim) && (*claim != "node" || !has("pod"))).map(
            |(claim, kind)| Bound {
                kind: (*kind).clone(),
                name: text(&["kubernetes.io", claim, "name"]),
                uid: text(&["kubernetes.io", claim, "uid"]),
            },
        );
        Ok(Claims {
            namespace: text(&["kubernetes.io", "namespace"]),
            account: text(&["kubernetes.io", "serviceaccount", "name"]),
            uid: text(&["kubernetes.io", "serviceaccount", "uid"]),
            bound: bound.collect(),
            audiences,
            node: has("node")
                .then(|| (text(&["kubernetes.io", "node", "name"]), text(&["kubernetes.io", "node", "uid"]))),
            id: text(&["jti"]),
            secret: None,
        })
    }

    /// A token without an end, for the Secret that is to hold it: it counts no longer than that does.
    pub fn lasting(&self, namespace: &str, account: &str, uid: &str, secret: &str) -> Result<String, Status> {
        let mut claims =
            json!({ "iss": LASTING_ISSUER, "sub": format!("system:serviceaccount:{namespace}:{account}") });
        for (claim, value) in [
            ("namespace", namespace),
            ("secret.name", secret),
            ("service-account.name", account),
            ("service-account.uid", uid),
        ] {
            claims[format!("{LASTING}{claim}")] = value.into();
        }
        self.sign(&claims)
    }

    /// `POST serviceaccounts/<name>/token`: a TokenRequest, answered with its token.
    pub fn request(
        &self,
        batch: &mut Batch<'_>,
        namespace: &str,
        name: &str,
        mut request: Value,
    ) -> Result<Value, Status> {
        let account = batch.must_get(&kinds::SERVICE_ACCOUNT, namespace, name)?;
        let seconds =
            object::at(&request, &["spec", "expirationSeconds"]).and_then(Value::as_i64).unwrap_or(DEFAULT_SECONDS);
        if !(MIN_SECONDS..=MAX_SECONDS).contains(&seconds) {
            let why = if seconds < MIN_SECONDS {
                "may not specify a duration less than 10 minutes"
            } else {
                "may not specify a duration larger than 2^32 seconds"
            };
            let cause = mainstay_api::status::Cause::invalid("spec.expirationSeconds", seconds, why);
            return Err(Status::new(
                422,
                "Invalid",
                format!("TokenRequest.authentication.k8s.io \"\" is invalid: {}: {}", cause.field, cause.message),
            ));
        }
        let audiences = match object::at(&request, &["spec", "audiences"])
            .and_then(Value::as_array)
            .filter(|list| !list.is_empty())
        {
            Some(asked) => asked.clone(),
            None => vec![ISSUER.into()],
        };
        restriction::check_token(batch, namespace, name, &request)?;
        let bound = bound_object(batch, namespace, name, &request)?;
        let now = batch.now.as_second();
        let end = now.saturating_add(seconds);
        let mut cluster = json!({
            "namespace": namespace,
            "serviceaccount": { "name": name, "uid": object::uid(&account) },
        });
        for (what, who) in bound {
            cluster[what] = who;
        }
        let claims = json!({
            "aud": audiences, "exp": end, "iat": now, "nbf": now, "iss": ISSUER,
            "sub": format!("system:serviceaccount:{namespace}:{name}"), "kubernetes.io": cluster,
            "jti": super::metadata::new_uid(batch),
        });
        let token = self.sign(&claims)?;
        let expires = Timestamp::from_second(end).unwrap_or(Timestamp::MAX);
        let fields = object::ensure(&mut request, &[]);
        fields.insert("kind".to_owned(), "TokenRequest".into());
        fields.insert("apiVersion".to_owned(), "authentication.k8s.io/v1".into());
        fields.insert(
            "status".to_owned(),
            json!({ "token": token, "expirationTimestamp": mainstay_api::time::rfc3339(expires) }),
        );
        let spec = object::ensure(&mut request, &["spec"]);
        spec.insert("audiences".to_owned(), audiences.into());
        spec.insert("expirationSeconds".to_owned(), json!(seconds));
        let metadata = object::ensure(&mut request, &["metadata"]);
        metadata.insert("name".to_owned(), name.into());
        metadata.insert("namespace".to_owned(), namespace.into());
        Ok(request)
    }
}

/// What a token without an end says.
fn lasting(claims: &Value, audiences: &[&str]) -> Result<Claims, TokenError> {
    let text = |claim: &str| {
        let found = claims.get(format!("{LASTING}{claim}")).and_then(Value::as_str);
        found.filter(|found| !found.is_empty()).map(str::to_owned).ok_or(TokenError::Malformed)
    };
    if !audiences.contains(&ISSUER) {
        return Err(TokenError::Audience);
    }
    Ok(Claims {
        namespace: text("namespace")?,
        account: text("service-account.name")?,
        uid: text("service-account.uid")?,
        bound: Vec::new(),
        audiences: vec![ISSUER.to_owned()],
        node: None,
        id: String::new(),
        secret: Some(text("secret.name")?),
    })
}

/// The pod, secret or node that the token is to end with, and the pod's node; it must exist, and a pod must run as this
/// account (X2).
fn bound_object(
    batch: &mut Batch<'_>,
    namespace: &str,
    account: &str,
    request: &Value,
) -> Result<Vec<(&'static str, Value)>, Status> {
    let Some(reference) = object::at(request, &["spec", "boundObjectRef"]).filter(|reference| !reference.is_null())
    else {
        return Ok(Vec::new());
    };
    let (kind, name) = (object::text(reference, &["kind"]), object::text(reference, &["name"]));
    let Some((what, kind)) = BINDINGS.into_iter().find(|(_, row)| row.kind == kind) else {
        return Err(Status::bad_request(format!("cannot bind token for serviceaccount to object of type {kind}")));
    };
    let found = batch.must_get(kind, if kind.namespaced { namespace } else { "" }, name)?;
    let wanted = object::text(reference, &["uid"]);
    if !wanted.is_empty() && wanted != object::uid(&found) {
        return Err(Status::conflict_because(
            kind,
            name,
            "the UID in the bound object reference does not match the UID in record",
        ));
    }
    if what == "pod" && object::text(&found, &["spec", "serviceAccountName"]) != account {
        return Err(Status::bad_request(format!(
            "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
        )));
    }
    let mut bound = vec![(what, json!({ "name": name, "uid": object::uid(&found) }))];
    let node = object::text(&found, &["spec", "nodeName"]);
    if what == "pod" && !node.is_empty() {
        let uid = batch.get(&kinds::NODE, "", node)?.map(|node| object::uid(&node).to_owned());
        bound.push(("node", json!({ "name": node, "uid": uid })));
    }
    Ok(bound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};

    #[test]
    fn only_an_own_unexpired_token_for_this_server_is_believed() {
        let tokens = || {
            Tokens::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("key").serialized_der()).expect("pkcs8")
        };
        let (own, other) = (tokens(), tokens());
        let claims = |aud: &str, exp: i64| {
            json!({ "iss": ISSUER, "jti": "id", "aud": [aud], "nbf": 100, "exp": exp,
            "kubernetes.io": { "namespace": "ns", "serviceaccount": { "name": "a", "uid": "u" } } })
        };
        let now = |second| Timestamp::from_second(second).expect("time");
        let good = own.sign(&claims(ISSUER, 200)).expect("signed");
        let check = |tokens: &Tokens, token: &str, second| tokens.check(token, &[ISSUER], now(second));
        let wanted = Claims {
            namespace: "ns".into(),
            account: "a".into(),
            uid: "u".into(),
            bound: Vec::new(),
            audiences: vec![ISSUER.into()],
            node: None,
            id: "id".into(),
            secret: None,
        };
        assert_eq!(check(&own, &good, 150), Ok(wanted));
        assert_eq!(check(&own, &good, 99), Err(TokenError::Expired));
        assert_eq!(check(&own, &good, 200), Err(TokenError::Expired));
        assert_eq!(check(&other, &good, 150), Err(TokenError::Signature));
        let vault = own.sign(&claims("vault", 200)).expect("signed");
        assert_eq!(check(&own, &vault, 150), Err(TokenError::Audience));
        let accepted = own.check(&vault, &["x", "vault"], now(150)).expect("for the vault");
        assert_eq!(accepted.audiences, ["vault"]);
        let body = URL_SAFE_NO_PAD.encode(claims(ISSUER, 900).to_string());
        let parts: Vec<&str> = good.split('.').collect();
        assert_eq!(check(&own, &format!("{}.{body}.{}", parts[0], parts[2]), 150), Err(TokenError::Signature));
        for text in ["", ".", "..", "a.b.c", "\u{e9}.."] {
            assert!(check(&own, text, 150).is_err());
        }
    }
}
