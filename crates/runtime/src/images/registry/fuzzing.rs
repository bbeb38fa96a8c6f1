//! What a registry answers: a challenge, where it sends us, a manifest or index, a refusal, a token.

use http::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde_json::json;

use super::auth::{self, Challenge};
use super::bounds::MAX_WORDS;
use super::wire::{Location, is_loopback};
use super::{Found, is_digest, read_manifest, said};
use crate::fuzzing::{join, parts};

const BASE: &str = "https://registry.example:5000/v2/team/app/";

/// Five parts, each a kind of answer.
pub fn run(input: &[u8]) {
    let parts = parts(input);
    let part = |number: usize| parts.get(number).copied().unwrap_or_default();
    let base = Location::parse(BASE).expect("a URL");
    if let Ok(value) = HeaderValue::from_bytes(part(0))
        && let Some(Challenge::Bearer { realm, service }) =
            auth::challenge(&HeaderMap::from_iter([(WWW_AUTHENTICATE, value)]))
        && let Ok(realm) = base.join(&realm)
    {
        let url = realm.with_query(&auth::token_query(service.as_deref(), "team/app"));
        assert!(url.origin == realm.origin);
    }
    if let Ok(to) = std::str::from_utf8(part(1)).map_err(|_| String::new()).and_then(|text| base.join(text)) {
        let shown = to.to_string();
        assert!(!shown.contains('?'), "what a query has is shown: {shown}");
        let host = shown.trim_start_matches("http://").split(['/', ':']).next().unwrap_or_default();
        assert!(to.origin.is_secure || is_loopback(host) || shown.starts_with("http://["), "{shown}");
    }
    if let Ok(Found::Index { ours }) = read_manifest(part(2)) {
        assert!(is_digest(&ours));
    }
    let said = said(part(3));
    assert!(said.chars().count() <= MAX_WORDS && !said.chars().any(char::is_control));
    if let Ok(token) = auth::bearer(part(4)) {
        assert!(token.is_sensitive());
    }
}

/// A registry's usual answers, and some that are not.
pub fn seeds() -> Vec<Vec<u8>> {
    let digest = format!("sha256:{}", "a".repeat(64));
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let index = json!({ "manifests": [{ "digest": digest, "size": 7,
        "platform": { "os": "linux", "architecture": arch } }] });
    let image = json!({ "schemaVersion": 2, "config": { "digest": digest, "size": 7 },
        "layers": [{ "digest": digest, "size": 8, "mediaType": "x" }] });
    let refusal = json!({ "errors": [{ "code": "MANIFEST_UNKNOWN", "message": "manifest unknown" }], "details": "no" });
    let token = json!({ "token": "abc", "expires_in": 300 });
    let bearer = "Bearer realm=\"https://auth.example/token?a=b\",service=\"reg, \\\"x\\\"\",scope=\"y\"";
    let texts = |challenge: &str, location: &str, manifest: &serde_json::Value| {
        let [manifest, refusal, token] = [manifest, &refusal, &token].map(ToString::to_string);
        let parts = [challenge, location, &manifest, &refusal, &token].map(str::as_bytes);
        join(&parts)
    };
    vec![
        texts(bearer, "https://cdn.example/blob?signature=x#y", &index),
        texts("Basic realm=\"r\", Bearer realm=t", "//localhost:80/../x", &image),
        texts("Negotiate abc==", "http://[::1]:5000/x", &image),
    ]
}
