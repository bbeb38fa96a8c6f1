//! What is not an object: discovery, OpenAPI, health, version, metrics.

use std::sync::atomic::Ordering;

use http::Response;
use mainstay_api::{Registry, Status, discovery, object, openapi};
use serde_json::{Value, json};

use super::respond::{self, Body};
use super::{Server, health};
use crate::api::ISSUER;

/// The Kubernetes level that is spoken.
const VERSION: (&str, &str) = ("1", "37");

/// Answers `GET` of a path.
pub fn get(
    server: &Server,
    path: &str,
    query: &[(String, String)],
    host: &str,
    accept: &str,
) -> Result<Response<Body>, Status> {
    let path = if path.len() > 1 { path.trim_end_matches('/') } else { path };
    if let Some(answer) = health::get(server, path, query) {
        return answer;
    }
    match path {
        "/version" => return Ok(respond::json(200, version().to_string())),
        "/.well-known/openid-configuration" => return Ok(issuer(server)),
        "/openid/v1/jwks" => {
            let keys = respond::json(200, server.tokens.key_set().to_string());
            return Ok(cached(respond::of_type(keys, "application/jwk-set+json")));
        }
        "/metrics" => return Ok(respond::text(200, metrics(server))),
        _ => {}
    }
    document(&server.api.served.now(), path, host, accept).ok_or_else(Status::no_such_resource)
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
        "major": VERSION.0, "minor": VERSION.1, "gitVersion": format!("v{}.{}.0+mainstay-{}", VERSION.0, VERSION.1, env!("CARGO_PKG_VERSION")),
        "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "", "compiler": "rustc", "platform": "linux/amd64",
    })
}

fn metrics(server: &Server) -> String {
    let counters = &server.counters;
    let all = [
        ("mainstay_requests_total", "counter", "Requests answered.", counters.requests.load(Ordering::Relaxed)),
        (
            "mainstay_request_failures_total",
            "counter",
            "Requests answered with 5xx.",
            counters.failures.load(Ordering::Relaxed),
        ),
        ("mainstay_connections", "gauge", "Connections that are open.", counters.connections.load(Ordering::Relaxed)),
        ("mainstay_watches_total", "counter", "Watches that were opened.", counters.watches.load(Ordering::Relaxed)),
        ("mainstay_store_revision", "gauge", "The store's newest revision.", server.api.store.revision().0),
        (
            "mainstay_store_compacted_revision",
            "gauge",
            "The oldest revision that can be watched from.",
            server.api.store.compacted().0,
        ),
    ];
    all.iter()
        .map(|(name, type_, help, value)| format!("# HELP {name} {help}\n# TYPE {name} {type_}\n{name} {value}\n"))
        .collect()
}

/// Discovery and OpenAPI; `None` for any other path.
fn document(registry: &Registry, path: &str, host: &str, accept: &str) -> Option<Response<Body>> {
    let json = |document: Value| respond::json(200, object::print(&document));
    if matches!(path, "/api" | "/apis")
        && let Some(version) = discovery::wants_aggregated(accept)
    {
        let all = json(discovery::aggregated(registry, path == "/api", version));
        return Some(respond::of_type(all, &discovery::aggregated_content_type(version)));
    }
    let segments: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    Some(match segments.as_slice() {
        ["api"] => json(discovery::api_versions(host)),
        ["apis"] => json(discovery::api_group_list(registry)),
        ["apis", group] => json(discovery::api_group(registry, group)?),
        ["api", version] => json(discovery::api_resource_list(registry, "", version)?),
        ["apis", group, version] => json(discovery::api_resource_list(registry, group, version)?),
        ["openapi", "v2"] if openapi::wants_protobuf(accept) => {
            respond::of_type(respond::json(200, openapi::v2_protobuf(registry)), openapi::V2_PROTOBUF_CONTENT_TYPE)
        }
        ["openapi", "v2"] => json(openapi::v2_json(registry)),
        ["openapi", "v3"] => json(openapi::v3_index(registry)),
        ["openapi", "v3", "api", version] => json(openapi::v3_document(registry, "", version)?),
        ["openapi", "v3", "apis", group, version] => json(openapi::v3_document(registry, group, version)?),
        _ => return None,
    })
}
