//! What is not an object: discovery, OpenAPI, health, version, metrics.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Response;
use mainstay_api::{Kind, Registry, Status, discovery, object, openapi};
use serde_json::{Value, json};

use super::openapi::{hash, public, tagged, v3};
use super::respond::{self, Body};
use super::{Server, health};
use crate::aggregation::{Extension, described, discovery as merged};
use crate::api::{ISSUER, key};
use crate::instruments::{self, Text};

/// The Kubernetes level that is spoken.
const VERSION: (&str, &str) = ("1", "37");
/// The oldest level with which it gets on: the one before, as upstream.
const COMPATIBLE: (&str, &str) = ("1", "36");

/// What a client says beside the path.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// The query's parameters.
    pub query: Vec<(String, String)>,
    /// Where it reached the server.
    pub host: String,
    /// The `Accept` header.
    pub accept: String,
    /// The `If-None-Match` header: what it has already.
    pub known: String,
}

/// Answers `GET` of a path.
pub fn get(server: &Server, path: &str, asked: &Asked) -> Result<Response<Body>, Status> {
    let path = if path.len() > 1 { path.trim_end_matches('/') } else { path };
    if let Some(answer) = health::get(server, path, &asked.query) {
        return answer;
    }
    match path {
        "/version" => return Ok(respond::json(200, version())),
        "/.well-known/openid-configuration" => return Ok(issuer(server)),
        "/openid/v1/jwks" => {
            let keys = respond::json(200, server.tokens.key_set().to_string());
            return Ok(cached(respond::of_type(keys, "application/jwk-set+json")));
        }
        "/metrics" => {
            let text = respond::text(200, metrics(server));
            return Ok(respond::of_type(text, "text/plain; version=0.0.4; charset=utf-8"));
        }
        _ => {}
    }
    let registry = server.api.served.now();
    let extensions = server.extensions.now(&registry);
    if matches!(path, "/" | "/index.html") {
        let text = json!({ "paths": paths(&registry, &extensions, health::paths(server)) }).to_string();
        let hash = hash(text.as_bytes());
        return Ok(tagged(respond::json(200, text), &hash, &asked.known));
    }
    document(server, (&registry, &extensions), path, asked).ok_or_else(Status::no_such_resource)
}

/// What there is to ask for, in order: each group and version, checks of health, and documents.
fn paths(registry: &Registry, extensions: &[Arc<Extension>], health: Vec<String>) -> BTreeSet<String> {
    const OTHERS: [&str; 8] = [
        "/.well-known/openid-configuration",
        "/api",
        "/apis",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/version",
    ];
    let own = discovery::served_versions(registry).into_iter();
    let others = extensions.iter().map(|extension| (&*extension.group, &*extension.version));
    let versions = own.chain(others).flat_map(|(group, version)| match group {
        "" => vec![format!("/api/{version}")],
        group => vec![format!("/apis/{group}"), format!("/apis/{group}/{version}")],
    });
    health.into_iter().chain(OTHERS.map(str::to_owned)).chain(versions).collect()
}

/// What whoever checks service accounts' tokens by themselves needs to know (OpenID Connect Discovery).
fn issuer(server: &Server) -> Response<Body> {
    let document = json!({
        "issuer": ISSUER,
        "jwks_uri": format!("https://{}/openid/v1/jwks", server.advertise),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    });
    cached(respond::json(200, document.to_string()))
}

/// Keys change seldom: upstream lets clients keep both documents for an hour.
fn cached(mut response: Response<Body>) -> Response<Body> {
    let value = http::HeaderValue::from_static("public, max-age=3600");
    response.headers_mut().insert(http::header::CACHE_CONTROL, value);
    response
}

/// The commit that the binary was built from, 40 hexadecimal digits; whoever has `main` says it.
pub static COMMIT: OnceLock<&'static str> = OnceLock::new();

/// What `/version` says, in upstream's order.
#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Spoken {
    major: &'static str,
    minor: &'static str,
    emulation_major: &'static str,
    emulation_minor: &'static str,
    min_compatibility_major: &'static str,
    min_compatibility_minor: &'static str,
    git_version: String,
    git_commit: &'static str,
    git_tree_state: &'static str,
    build_date: &'static str,
    go_version: &'static str,
    compiler: &'static str,
    platform: &'static str,
}

/// `/version`, indented as upstream prints it: people read it with `curl`.
fn version() -> String {
    let (major, minor) = VERSION;
    let spoken = Spoken {
        major,
        minor,
        emulation_major: major,
        emulation_minor: minor,
        min_compatibility_major: COMPATIBLE.0,
        min_compatibility_minor: COMPATIBLE.1,
        git_version: format!("v{major}.{minor}.0+mainstay-{}", env!("CARGO_PKG_VERSION")),
        git_commit: COMMIT.get().copied().unwrap_or_default(),
        git_tree_state: "clean",
        build_date: "1970-01-01T00:00:00Z",
        go_version: "",
        compiler: "rustc",
        platform: "linux/amd64",
    };
    serde_json::to_string_pretty(&spoken).unwrap_or_default()
}

fn metrics(server: &Server) -> String {
    let mut out = Text(server.instruments.text());
    let store = &server.api.store;
    out.family(
        "apiserver_storage_objects",
        "gauge",
        "Number of stored objects at the time of last check split by kind. In case of a fetching error, the value \
            will be -1.",
    );
    for kind in server.api.served.now().all_stored() {
        let count = i64::try_from(store.count(&key::prefix(kind, None))).unwrap_or(i64::MAX);
        out.line("apiserver_storage_objects", &format!("{{resource={:?}}}", kind.resource()), count);
    }
    out.family(
        "apiserver_flowcontrol_nominal_limit_seats",
        "gauge",
        "Nominal number of execution seats configured for each priority level.",
    );
    for (level, seats) in server.fairness.seats() {
        out.line("apiserver_flowcontrol_nominal_limit_seats", &format!("{{priority_level={level:?}}}"), seats);
    }
    let size = std::fs::metadata(&server.store_file).map_or(0, |file| file.len());
    out.family(
        "apiserver_storage_size_bytes",
        "gauge",
        "Size of the storage database file physically allocated in bytes.",
    );
    out.line("apiserver_storage_size_bytes", "{storage_cluster_id=\"etcd-0\"}", size);
    let (major, minor) = VERSION;
    out.family(
        "kubernetes_build_info",
        "gauge",
        "A metric with a constant '1' value labeled by the version that is spoken.",
    );
    let labels =
        format!("{{git_version=\"v{major}.{minor}.0\",major=\"{major}\",minor=\"{minor}\",platform=\"linux/amd64\"}}");
    out.line("kubernetes_build_info", &labels, 1);
    instruments::process(&mut out);
    let counters = &server.counters;
    let count = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    out.one("mainstay_requests_total", "counter", "Requests answered.", count(&counters.requests));
    out.one("mainstay_request_failures_total", "counter", "Requests answered with 5xx.", count(&counters.failures));
    out.one("mainstay_connections", "gauge", "Connections that are open.", count(&counters.connections));
    out.one("mainstay_watches_total", "counter", "Watches that were opened.", count(&counters.watches));
    out.one("mainstay_store_revision", "gauge", "The store's newest revision.", store.revision().0);
    let oldest = "The oldest revision that can be watched from.";
    out.one("mainstay_store_compacted_revision", "gauge", oldest, store.compacted().0);
    let window = store.window();
    let kept = "For how long the oldest change that can still be watched has been kept.";
    out.one("mainstay_store_window_seconds", "gauge", kept, window.age.as_secs());
    out.one("mainstay_store_window_events", "gauge", "Past changes that can be watched.", window.events);
    out.one("mainstay_store_window_bytes", "gauge", "Memory that they take.", window.bytes);
    let most = "Memory that they take at most; by the memory of the machine.";
    out.one("mainstay_store_window_bytes_limit", "gauge", most, window.most_bytes);
    out.0
}

/// The resources of a group and version. Those that are stored have a hash of the kind in whose form they are: a client
/// sees by it that it has to write them anew. Eight bytes of SHA-256, as upstream.
fn resources(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let mut list = discovery::api_resource_list(registry, group, version)?;
    for resource in list.get_mut("resources").and_then(Value::as_array_mut).into_iter().flatten() {
        let is_stored = resource["verbs"].as_array().is_some_and(|verbs| verbs.iter().any(|verb| verb == "update"));
        let kind = registry.find(group, version, object::text(resource, &["name"])).filter(|_| is_stored);
        let Some(stored) = kind.map(Kind::stored) else { continue };
        let name = format!("{}/{}/{}", stored.group, stored.version, stored.kind);
        let digest = ring::digest::digest(&ring::digest::SHA256, name.as_bytes());
        let hash = digest.as_ref().get(..8).map(|bytes| STANDARD.encode(bytes));
        object::ensure(resource, &[]).extend(hash.map(|hash| ("storageVersionHash".to_owned(), hash.into())));
    }
    Some(list)
}

/// Discovery and OpenAPI; `None` for any other path.
fn document(
    server: &Server,
    (registry, extensions): (&Registry, &[Arc<Extension>]),
    path: &str,
    Asked { query, host, accept, known }: &Asked,
) -> Option<Response<Body>> {
    let json = |document: Value| respond::json(200, object::print(&document));
    if matches!(path, "/api" | "/apis")
        && let Some(version) = discovery::wants_aggregated(accept)
    {
        let mut all = discovery::aggregated(registry, path == "/api", version);
        if path == "/apis" {
            merged::add_aggregated(&mut all, extensions);
        }
        let text = object::print(&all);
        let hash = hash(text.as_bytes());
        let answer = respond::of_type(respond::json(200, text), &discovery::aggregated_content_type(version));
        return Some(tagged(public(answer), &hash, known));
    }
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    Some(match segments.as_slice() {
        ["api"] => json(discovery::api_versions(host)),
        ["apis"] => {
            let mut list = discovery::api_group_list(registry);
            merged::add_groups(&mut list, extensions);
            json(list)
        }
        ["apis", group] => json(discovery::api_group(registry, group).or_else(|| merged::group(extensions, group))?),
        ["api", version] => json(resources(registry, "", version)?),
        ["apis", group, version] => json(resources(registry, group, version)?),
        ["openapi", "v2"] => {
            let mut document = openapi::v2(registry);
            extensions.iter().filter_map(|extension| extension.described()).for_each(|part| {
                described::merge(document.base_mut(), &part);
            });
            if openapi::wants_protobuf(accept) {
                let bytes = openapi::v2_protobuf(&document);
                let hash = hash(&bytes);
                let answer = respond::of_type(respond::json(200, bytes), openapi::V2_PROTOBUF_CONTENT_TYPE);
                return Some(tagged(answer, &hash, known));
            }
            let text = document.text();
            let hash = hash(text.as_bytes());
            tagged(respond::json(200, text), &hash, known)
        }
        ["openapi", "v3"] => {
            let mut index = server.openapi.index(registry);
            merged::add_documents(&mut index, extensions);
            json(index)
        }
        ["openapi", "v3", rest @ ..] => {
            let (group, version) = match rest {
                ["api", version] => ("", version),
                ["apis", group, version] => (*group, version),
                _ => return None,
            };
            v3(openapi::v3(registry, group, version)?.text(), path, query, known, server.api.now())
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who asks for the root is told what there is.
    #[test]
    fn conformance_the_root_lists_the_paths() {
        let all: Vec<String> = paths(&Registry::built_in(), &[], vec!["/readyz/ping".to_owned()]).into_iter().collect();
        for path in ["/api/v1", "/apis/apps", "/apis/apps/v1", "/openapi/v3", "/readyz/ping", "/version"] {
            assert!(all.iter().any(|known| known == path), "{path}");
        }
        assert!(all.is_sorted() && !all.iter().any(|path| path.contains("//")), "{all:?}");
    }

    /// People read it with `curl`; newer clients look at the levels that are emulated.
    #[test]
    fn conformance_the_version_is_printed_as_upstream_prints_it() {
        let head = "{\n  \"major\": \"1\",\n  \"minor\": \"37\",\n  \"emulationMajor\": \"1\",\n  \"emulationMinor\": \
                    \"37\",\n  \"minCompatibilityMajor\": \"1\",\n  \"minCompatibilityMinor\": \"36\",\n  \
                    \"gitVersion\": \"v1.37.0+mainstay-";
        let text = version();
        assert!(text.starts_with(head) && text.ends_with("\"platform\": \"linux/amd64\"\n}"), "{text}");
    }

    /// The hashes are upstream's: clients compare them with those that they have noted.
    #[test]
    fn conformance_what_is_stored_has_the_hash_of_its_form() {
        let registry = Registry::built_in();
        let hash = |group: &str, version: &str, name: &str| {
            let list = resources(&registry, group, version).expect("a list");
            let all = list["resources"].as_array().expect("resources").clone();
            let one = all.into_iter().find(|one| one["name"] == name).expect("the resource");
            one.get("storageVersionHash").and_then(Value::as_str).map(str::to_owned)
        };
        for (group, version, name, wanted) in [
            ("", "v1", "pods", Some("xPOwRZ+Yhw8=")),
            ("", "v1", "configmaps", Some("qFsyl6wFWjQ=")),
            ("apps", "v1", "deployments", Some("8aSe+NMegvE=")),
            ("events.k8s.io", "v1", "events", Some("r2yiGXH7wu8=")),
            ("", "v1", "pods/status", None),
            ("", "v1", "bindings", None),
            ("", "v1", "componentstatuses", None),
            ("authorization.k8s.io", "v1", "subjectaccessreviews", None),
        ] {
            assert_eq!(hash(group, version, name).as_deref(), wanted, "{name}");
        }
    }
}
