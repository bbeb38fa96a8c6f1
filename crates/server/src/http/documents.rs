//! What is not an object: discovery, OpenAPI, health, version, metrics.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::Response;
use mainstay_api::{Registry, Status, discovery, object, openapi};
use serde_json::{Value, json};

use super::openapi::{hash, public, tagged, v3};
use super::respond::{self, Body};
use super::{Server, health};
use crate::aggregation::{Extension, described, discovery as merged};
use crate::api::{ISSUER, key};
use crate::instruments::{self, Text};

/// The Kubernetes level that is spoken.
const VERSION: (&str, &str) = ("1", "37");

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
        "/version" => return Ok(respond::json(200, version().to_string())),
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
    document(server, (&registry, &extensions), path, asked).ok_or_else(Status::no_such_resource)
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

fn version() -> Value {
    json!({
        "major": VERSION.0, "minor": VERSION.1, "gitVersion": format!("v{}.{}.0+mainstay-{}", VERSION.0, VERSION.1,
            env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "", "compiler": "rustc", "platform": "linux/amd64",
    })
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
    out.0
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
        ["api", version] => json(discovery::api_resource_list(registry, "", version)?),
        ["apis", group, version] => json(discovery::api_resource_list(registry, group, version)?),
        ["openapi", "v2"] => {
            let mut document = openapi::v2_json(registry);
            extensions.iter().filter_map(|extension| extension.described()).for_each(|part| {
                described::merge(&mut document, &part);
            });
            if openapi::wants_protobuf(accept) {
                let bytes = openapi::v2_protobuf(&document);
                let hash = hash(&bytes);
                let answer = respond::of_type(respond::json(200, bytes), openapi::V2_PROTOBUF_CONTENT_TYPE);
                return Some(tagged(answer, &hash, known));
            }
            let text = object::print(&document);
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
            v3(&openapi::v3_document(registry, group, version)?, path, query, known, server.api.now())
        }
        _ => return None,
    })
}
