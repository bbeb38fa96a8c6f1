//! Bootstrap tokens: Secrets `bootstrap-token-<id>` of `kube-system`, by which a new machine shows that it was invited.
//!
//! `<id>.<secret>` is a bearer token of the user `system:bootstrap:<id>` in the group `system:bootstrappers`; such a
//! token also signs the ConfigMap `kube-public/cluster-info`, so that whoever has it knows the cluster again.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use mainstay_api::{kinds, object};
use mainstay_client::bootstrap_token::{NAMESPACE, PREFIX, TYPE, field};
use ring::hmac;
use serde_json::{Value, json};

use crate::api::{Api, codec, key};
use crate::auth::User;

/// The group of whoever shows one.
const BOOTSTRAPPERS: &str = "system:bootstrappers";
const ID_LENGTH: usize = 6;
const SECRET_LENGTH: usize = 16;
/// The longest name of a further group.
const MAX_GROUP: usize = 275;

/// Takes `<id>.<secret>` apart; `None` for anything else.
fn split(token: &str) -> Option<(&str, &str)> {
    let (id, secret) = token.split_once('.')?;
    let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    (id.len() == ID_LENGTH && secret.len() == SECRET_LENGTH && is_plain(id) && is_plain(secret)).then_some((id, secret))
}

/// When the token's time is over; `None` where it has no end. What cannot be read is over.
pub fn expiry(secret: &Value) -> Option<Timestamp> {
    match field(secret, "expiration").as_str() {
        "" => None,
        text => Some(text.parse().unwrap_or(Timestamp::UNIX_EPOCH)),
    }
}

/// The token of a Secret, where it is one that still counts.
fn valid(secret: &Value, id: &str, now: Timestamp) -> bool {
    object::text(secret, &["type"]) == TYPE
        && !object::is_terminating(secret)
        && field(secret, "token-id") == id
        && field(secret, "token-secret").len() == SECRET_LENGTH
        && expiry(secret).is_none_or(|end| now < end)
}

/// Whether a bearer token has the form of these.
pub fn looks_like_one(token: &str) -> bool {
    split(token).is_some()
}

/// The user who shows this token, if there is such a one and it may be used for that.
pub fn user(api: &Api, token: &str) -> Option<User> {
    let (id, shown) = split(token)?;
    let entry = api.store.get(&key::object(&kinds::SECRET, NAMESPACE, &format!("{PREFIX}{id}")))?;
    let secret = codec::decode(&entry.value).ok()?;
    if !valid(&secret, id, api.now()) || field(&secret, "usage-bootstrap-authentication") != "true" {
        return None;
    }
    // Compared by their digests, so that no time tells how much of a guess is right.
    let digest = |text: &str| ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    if digest(&field(&secret, "token-secret")).as_ref() != digest(shown).as_ref() {
        return None;
    }
    let further = field(&secret, "auth-extra-groups");
    let further: Vec<&str> = further.split(',').filter(|group| !group.is_empty()).collect();
    if !further.iter().all(|group| is_group(group)) {
        return None;
    }
    let mut groups = vec![BOOTSTRAPPERS.to_owned()];
    groups.extend(further.into_iter().map(str::to_owned));
    groups.push(crate::auth::AUTHENTICATED.to_owned());
    Some(User { name: format!("system:bootstrap:{id}"), groups, ..User::default() })
}

/// `system:bootstrappers:<…>`: a token makes nobody an administrator.
fn is_group(group: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    group.len() <= MAX_GROUP
        && group.strip_prefix("system:bootstrappers:").is_some_and(|rest| {
            rest.bytes().all(|byte| plain(byte) || matches!(byte, b':' | b'-'))
                && rest.bytes().last().is_some_and(plain)
        })
}

/// The signatures that `cluster-info` is to have: `jws-kubeconfig-<id>` for each token that signs.
pub fn signatures(secrets: &[Value], kubeconfig: &str, now: Timestamp) -> serde_json::Map<String, Value> {
    let mut all = serde_json::Map::new();
    for secret in secrets {
        let id = field(secret, "token-id");
        if valid(secret, &id, now) && field(secret, "usage-bootstrap-signing") == "true" {
            all.insert(format!("jws-kubeconfig-{id}"), jws(&id, &field(secret, "token-secret"), kubeconfig).into());
        }
    }
    all
}

/// A detached JWS (HS256) of the text.
fn jws(id: &str, secret: &str, text: &str) -> String {
    let head = URL_SAFE_NO_PAD.encode(json!({ "alg": "HS256", "kid": id }).to_string());
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let signature = hmac::sign(&key, format!("{head}.{}", URL_SAFE_NO_PAD.encode(text)).as_bytes());
    format!("{head}..{}", URL_SAFE_NO_PAD.encode(signature))
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::engine::general_purpose::STANDARD;

    fn secret(fields: &[(&str, &str)]) -> Value {
        let mut data = json!({});
        for (name, value) in [("token-id", "abcdef"), ("token-secret", "0123456789abcdef")].iter().chain(fields) {
            data[*name] = STANDARD.encode(value).into();
        }
        json!({ "type": TYPE, "metadata": { "name": "bootstrap-token-abcdef" }, "data": data })
    }

    #[test]
    fn x1_only_what_has_the_form_of_a_bootstrap_token_is_taken_for_one() {
        assert!(looks_like_one("abcdef.0123456789abcdef"));
        for other in
            ["", ".", "abcdef.", "ABCDEF.0123456789abcdef", "abcdef.0123456789abcde", "abcdef.0123456789abcdef0"]
        {
            assert!(!looks_like_one(other), "{other}");
        }
        for group in ["system:bootstrappers:a", "system:bootstrappers:kubeadm:default-node-token"] {
            assert!(is_group(group), "{group}");
        }
        for group in ["system:masters", "system:bootstrappers:", "system:bootstrappers:a-", "system:bootstrappers:A"] {
            assert!(!is_group(group), "{group}");
        }
    }

    #[test]
    fn x1_a_token_whose_end_cannot_be_read_is_over() {
        let mut secret = secret(&[("usage-bootstrap-signing", "true")]);
        let count = |secret: &Value| signatures(std::slice::from_ref(secret), "config", Timestamp::UNIX_EPOCH).len();
        assert_eq!(count(&secret), 1);
        secret["data"]["expiration"] = STANDARD.encode(b"\xff\xfe").into();
        assert_eq!(count(&secret), 0);
    }

    #[test]
    fn a_token_signs_while_its_time_runs() {
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().expect("a time");
        let signs = ("usage-bootstrap-signing", "true");
        let count = |secret: Value| signatures(&[secret], "config", now).len();
        assert_eq!(count(secret(&[signs])), 1);
        assert_eq!(count(secret(&[signs, ("expiration", "2030-01-01T00:00:01Z")])), 1);
        assert_eq!(count(secret(&[signs, ("expiration", "2030-01-01T00:00:00Z")])), 0);
        assert_eq!(count(secret(&[signs, ("expiration", "soon")])), 0);
        assert_eq!(count(secret(&[])), 0);
        let all = signatures(&[secret(&[signs])], "config", now);
        let jws = all["jws-kubeconfig-abcdef"].as_str().expect("a signature");
        let parts: Vec<&str> = jws.split('.').collect();
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"0123456789abcdef");
        let signed = format!("{}.{}", parts[0], URL_SAFE_NO_PAD.encode("config"));
        let tag = URL_SAFE_NO_PAD.decode(parts[2]).expect("base64");
        assert!(parts[1].is_empty() && hmac::verify(&key, signed.as_bytes(), &tag).is_ok());
    }
}
