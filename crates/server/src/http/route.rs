//! What a request's path means.

use mainstay_api::{Kind, Registry, Status, kinds};

use crate::api::Query;

/// Where a request goes.
#[derive(Debug, PartialEq)]
pub enum Route {
    /// Objects of a kind.
    Objects(Target),
    /// A review of the two virtual groups: group, resource, and the namespace of a local one.
    Review { group: String, resource: String, namespace: String },
    /// Everything else: discovery, health, metrics.
    Path(String),
}

/// A collection, an object, or a subresource of one.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// The kind.
    pub kind: Kind,
    /// Empty for all namespaces and for cluster-scoped kinds.
    pub namespace: String,
    /// Empty for the collection.
    pub name: String,
    /// Empty for the object itself.
    pub subresource: String,
}

/// The path that a path of the old form for watches is about (`/api/v1/watch/pods` → `/api/v1/pods`); `None` for any
/// other.
pub fn without_watch(path: &str) -> Option<String> {
    let before = if path.starts_with("/api/") { 3 } else { 4 };
    let (start, _) = path.match_indices('/').nth(before - 1)?;
    let (root, rest) = path.split_at(start);
    let rest = rest.strip_prefix("/watch/").filter(|_| path.starts_with("/api/") || path.starts_with("/apis/"))?;
    Some(format!("{root}/{rest}"))
}

/// Takes a path apart. 404 for a group, version or resource that is not served.
pub fn route(registry: &Registry, path: &str) -> Result<Route, Status> {
    let segments: Vec<String> = path.trim_matches('/').split('/').map(decode).collect();
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    let (group, version, rest) = match segments.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return Ok(Route::Path(path.to_owned())),
    };
    if matches!(group, "authentication.k8s.io" | "authorization.k8s.io") && version == "v1" {
        return match rest {
            [resource] => Ok(review(group, resource, "")),
            ["namespaces", namespace, resource] => Ok(review(group, resource, namespace)),
            _ => Err(Status::no_such_resource()),
        };
    }
    let find = |plural: &str| registry.find(group, version, plural).ok_or_else(Status::no_such_resource);
    let target = |kind: &Kind, namespace: &str, rest: &[&str]| {
        let (name, subresource) = match rest {
            [] => ("", ""),
            [name] => (*name, ""),
            [name, subresource] => (*name, *subresource),
            // What comes after is the backend's path, as the client wrote it.
            [name, "proxy", ..] => (*name, "proxy"),
            _ => return Err(Status::no_such_resource()),
        };
        if rest.first().is_some_and(|name| name.is_empty()) {
            return Err(Status::no_such_resource());
        }
        Ok(Route::Objects(Target {
            kind: kind.clone(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            subresource: subresource.to_owned(),
        }))
    };
    match rest {
        // `bindings` is a kind of its own in the path, but only ever an action on a pod.
        ["namespaces", namespace, "bindings"] if group.is_empty() => Ok(Route::Objects(Target {
            kind: kinds::POD.clone(),
            namespace: (*namespace).to_owned(),
            name: String::new(),
            subresource: "binding".to_owned(),
        })),
        ["namespaces", _, "status" | "finalize"] | ["namespaces", _] | ["namespaces"] if group.is_empty() => {
            target(find("namespaces")?, "", &rest[1..])
        }
        ["namespaces", namespace, plural, rest @ ..] if !namespace.is_empty() => {
            let kind = find(plural)?;
            if !kind.namespaced {
                return Err(Status::no_such_resource());
            }
            target(kind, namespace, rest)
        }
        [plural, rest @ ..] => {
            let kind = find(plural)?;
            if kind.namespaced && !rest.is_empty() {
                return Err(Status::no_such_resource());
            }
            target(kind, "", rest)
        }
        [] => Err(Status::no_such_resource()),
    }
}

fn review(group: &str, resource: &str, namespace: &str) -> Route {
    Route::Review { group: group.to_owned(), resource: resource.to_owned(), namespace: namespace.to_owned() }
}

/// Takes percent encoding away; what is not valid UTF-8 then is replaced, and names nothing.
pub fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = (bytes[at] == b'%')
            .then(|| text.get(at + 1..at + 3))
            .flatten()
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match hex {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Every parameter of a query in order, decoded.
pub fn parameters(query: &str) -> Vec<(String, String)> {
    let text = |part: &str| decode(&part.replace('+', " "));
    query
        .split('&')
        .filter(|part| !part.is_empty())
        .map(|part| {
            part.split_once('=').map_or_else(|| (text(part), String::new()), |(name, value)| (text(name), text(value)))
        })
        .collect()
}

/// The parameters by name; of a repeated one the first.
pub fn query(query: &str) -> Query {
    let mut map = Query::new();
    for (name, value) in parameters(query) {
        map.entry(name).or_insert(value);
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_may_be_asked_for_by_path() {
        let table = [
            ("/api/v1/watch/pods", Some("/api/v1/pods")),
            ("/api/v1/watch/namespaces/a/pods/b", Some("/api/v1/namespaces/a/pods/b")),
            ("/apis/apps/v1/watch/namespaces/a/deployments", Some("/apis/apps/v1/namespaces/a/deployments")),
            ("/api/v1/namespaces/watch/pods", None),
            ("/api/v1/pods", None),
            ("/apis/watch/v1/pods", None),
            ("/watch/v1/x/watch/a", None),
        ];
        for (path, wanted) in table {
            assert_eq!(without_watch(path).as_deref(), wanted, "{path}");
        }
    }

    #[test]
    fn paths_lead_where_upstreams_do() {
        let objects = |kind: &Kind, namespace: &str, name: &str, subresource: &str| {
            Ok(Route::Objects(Target {
                kind: kind.clone(),
                namespace: namespace.into(),
                name: name.into(),
                subresource: subresource.into(),
            }))
        };
        let table = [
            ("/api/v1/pods", objects(&kinds::POD, "", "", "")),
            ("/api/v1/namespaces/a/pods/b/log", objects(&kinds::POD, "a", "b", "log")),
            ("/api/v1/namespaces", objects(&kinds::NAMESPACE, "", "", "")),
            ("/api/v1/namespaces/a/finalize", objects(&kinds::NAMESPACE, "", "a", "finalize")),
            ("/api/v1/namespaces/a/bindings", objects(&kinds::POD, "a", "", "binding")),
            ("/apis/apps/v1/namespaces/a/statefulsets/b/scale", objects(&kinds::STATEFUL_SET, "a", "b", "scale")),
            ("/api/v1/nodes/n%2Fx", objects(&kinds::NODE, "", "n/x", "")),
            ("/apis/apps/v1", Ok(Route::Path("/apis/apps/v1".into()))),
            ("/api/v1/namespaces/a/pods/b:80/proxy/x/y", objects(&kinds::POD, "a", "b:80", "proxy")),
            ("/api/v1/pods/b", Err(404)),
            ("/api/v1/namespaces/a/nodes", Err(404)),
            ("/apis/apps/v2/deployments", Err(404)),
            ("/api/v1/namespaces/a/pods/b/c/d", Err(404)),
            ("/api/v1/namespaces//pods", Err(404)),
        ];
        for (path, wanted) in table {
            assert_eq!(route(&Registry::built_in(), path).map_err(|status| status.code), wanted, "{path}");
        }
        assert_eq!(
            parameters("a=b%2Cc&x&command=sh+-c"),
            [("a", "b,c"), ("x", ""), ("command", "sh -c")].map(|(a, b)| (a.into(), b.into()))
        );
    }
}
