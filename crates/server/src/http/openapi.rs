//! Documents that clients keep: each has a hash by which they ask whether theirs is still the newest (`ETag`), and that
//! of an OpenAPI document stands in its address, so that it may be kept for ever.
//!
//! A hash is worked out when somebody first asks for the index after the kinds of its group have changed; the documents
//! themselves are not kept.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use mainstay_api::{Kind, Registry, discovery, object, openapi};
use serde_json::Value;

use super::respond::{self, Body};

/// How long what never changes may be kept, in seconds: a year, as upstream.
const FOR_EVER: i64 = 366 * 24 * 3600;

/// The hash of a document, as upstream writes it.
pub fn hash(document: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA512, document);
    digest.as_ref().iter().map(|byte| format!("{byte:02X}")).collect()
}

/// The hashes of the documents of version 3.
#[derive(Default)]
pub struct Hashes(Mutex<Known>);

#[derive(Default)]
struct Known {
    /// For which kinds all of them are known.
    of: Option<Registry>,
    by_group: BTreeMap<(String, String), (Vec<Kind>, String)>,
}

impl Hashes {
    /// `/openapi/v3`: where each document is, with its hash.
    pub fn index(&self, registry: &Registry) -> Value {
        let mut index = openapi::v3_index(registry);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.catch_up(registry);
        let paths = object::ensure(&mut index, &["paths"]);
        for ((group, version), (_, hash)) in &known.by_group {
            let path = if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
            if let Some(entry) = paths.get_mut(&path) {
                let url = format!("/openapi/v3/{path}?hash={hash}");
                object::ensure(entry, &[]).insert("serverRelativeURL".to_owned(), url.into());
            }
        }
        index
    }
}

impl Known {
    fn catch_up(&mut self, registry: &Registry) {
        if self.of.as_ref().is_some_and(|of| of.is_same(registry)) {
            return;
        }
        let mut old = std::mem::take(&mut self.by_group);
        for (group, version) in discovery::served_versions(registry) {
            let own = registry.all().iter().filter(|kind| kind.group == group && kind.version == version);
            let own: Vec<Kind> = own.cloned().collect();
            let key = (group.to_owned(), version.to_owned());
            // Most groups stay as they are when a definition comes or goes.
            let kept = old.remove(&key).filter(|(kinds, _)| {
                kinds.len() == own.len() && kinds.iter().zip(&own).all(|(one, other)| one.is_same_row(other))
            });
            let entry = kept.or_else(|| {
                let document = openapi::v3(registry, group, version)?;
                Some((own, hash(document.text().as_bytes())))
            });
            self.by_group.extend(entry.map(|entry| (key, entry)));
        }
        self.of = Some(registry.clone());
    }
}

/// One of the documents of version 3. Who asks by a hash and has an old one is sent to the newest; who has the newest
/// may keep it.
pub fn v3(text: String, path: &str, query: &[(String, String)], known: &str, now: jiff::Timestamp) -> Response<Body> {
    let hash = hash(text.as_bytes());
    let asked = query.iter().find(|(name, value)| name == "hash" && !value.is_empty()).map(|(_, value)| value);
    if asked.is_some_and(|asked| *asked != hash) {
        let mut answer = respond::text(301, Bytes::new());
        if let Ok(location) = HeaderValue::try_from(format!("{path}?hash={hash}")) {
            answer.headers_mut().insert(header::LOCATION, location);
        }
        return answer;
    }
    let mut answer = respond::json(200, text);
    if asked.is_some() {
        let headers = answer.headers_mut();
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
        let until = now.checked_add(jiff::SignedDuration::from_secs(FOR_EVER)).unwrap_or(now);
        let until = until.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        headers.extend(HeaderValue::try_from(until).map(|until| (header::EXPIRES, until)));
    }
    tagged(answer, &hash, known)
}

/// A document with its hash; without its body (304) for who has it.
pub fn tagged(mut answer: Response<Body>, hash: &str, known: &str) -> Response<Body> {
    let tag = format!("\"{hash}\"");
    let is_known =
        known.split(',').map(str::trim).any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == tag);
    let headers = answer.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    headers.extend(HeaderValue::try_from(tag).map(|tag| (header::ETAG, tag)));
    if is_known {
        headers.remove(header::CONTENT_TYPE);
        *answer.status_mut() = StatusCode::NOT_MODIFIED;
        *answer.body_mut() = Body::Full(None);
    }
    answer
}

/// What everybody may keep as long as its hash is the same.
pub fn public(mut answer: Response<Body>) -> Response<Body> {
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn header_of(answer: &Response<Body>, name: header::HeaderName) -> &str {
        answer.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
    }

    #[test]
    fn the_index_has_the_hash_of_each_document_and_keeps_it() {
        let (hashes, registry) = (Hashes::default(), Registry::built_in());
        let index = hashes.index(&registry);
        let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().expect("an address");
        let document = openapi::v3(&registry, "apps", "v1").expect("a document");
        let wanted = hash(document.text().as_bytes());
        assert_eq!(url, format!("/openapi/v3/apis/apps/v1?hash={wanted}"));
        let all = index["paths"].as_object().expect("paths").values();
        assert!(all.map(|entry| entry["serverRelativeURL"].as_str().unwrap_or("")).all(|url| url.contains("?hash=")));
        // Another group that comes and goes changes no other's.
        let without = registry.with("metrics.k8s.io", "pods", Vec::new());
        let other = hashes.index(&without);
        assert_eq!(other["paths"]["apis/apps/v1"], index["paths"]["apis/apps/v1"]);
        assert_ne!(other["paths"]["apis/metrics.k8s.io/v1beta1"], index["paths"]["apis/metrics.k8s.io/v1beta1"]);
        assert_eq!(hashes.index(&registry), index);
    }

    #[test]
    fn who_has_the_newest_document_is_told_so_and_who_has_an_old_one_where_it_is() {
        let document = json!({ "openapi": "3.0.0" }).to_string();
        let hash = hash(document.as_bytes());
        let ask = |asked: &str, known: &str| {
            let query = if asked.is_empty() { vec![] } else { vec![("hash".to_owned(), asked.to_owned())] };
            v3(document.clone(), "/openapi/v3/api/v1", &query, known, jiff::Timestamp::UNIX_EPOCH)
        };
        let plain = ask("", "");
        assert_eq!((plain.status(), header_of(&plain, header::ETAG)), (StatusCode::OK, &*format!("\"{hash}\"")));
        assert_eq!(header_of(&plain, header::EXPIRES), "");
        let kept = ask(&hash, "");
        assert_eq!(header_of(&kept, header::CACHE_CONTROL), "public, immutable");
        assert_eq!(header_of(&kept, header::EXPIRES), "Sat, 02 Jan 1971 00:00:00 GMT");
        let old = ask("AB", "");
        assert_eq!(
            (old.status(), header_of(&old, header::LOCATION)),
            (StatusCode::MOVED_PERMANENTLY, &*format!("/openapi/v3/api/v1?hash={hash}"),)
        );
        for known in [format!("\"{hash}\""), format!("\"x\", W/\"{hash}\""), "*".to_owned()] {
            assert_eq!(ask(&hash, &known).status(), StatusCode::NOT_MODIFIED, "{known}");
        }
        assert_eq!(ask(&hash, &hash).status(), StatusCode::OK, "a tag has quotes");
    }
}
