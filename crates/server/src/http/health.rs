//! `/livez`, `/readyz` and `/healthz`: named checks, as upstream. `?verbose` lists them, `?exclude=<name>` passes one
//! over, `/livez/<name>` asks for one.

use http::Response;
use mainstay_api::Status;

use super::Server;
use super::respond::{self, Body};

/// Upstream's names of what is done when a server begins. Here it is one thing, and so they are done together.
const HOOKS: [&str; 19] = [
    "poststarthook/start-kube-apiserver-admission-initializer",
    "poststarthook/generic-apiserver-start-informers",
    "poststarthook/start-apiextensions-informers",
    "poststarthook/start-apiextensions-controllers",
    "poststarthook/crd-informer-synced",
    "poststarthook/start-system-namespaces-controller",
    "poststarthook/start-cluster-authentication-info-controller",
    "poststarthook/start-service-ip-repair-controllers",
    "poststarthook/rbac/bootstrap-roles",
    "poststarthook/scheduling/bootstrap-system-priority-classes",
    "poststarthook/priority-and-fairness-config-producer",
    "poststarthook/bootstrap-controller",
    "poststarthook/start-kubernetes-service-cidr-controller",
    "poststarthook/kube-apiserver-autoregistration",
    "autoregister-completion",
    "poststarthook/start-kube-aggregator-informers",
    "poststarthook/apiservice-registration-controller",
    "poststarthook/apiservice-status-available-controller",
    "poststarthook/apiservice-openapi-controller",
];

/// How many of the objects that do not decode are named.
const MAX_NAMED: usize = 10;

/// One check and what it found: empty when all is well.
struct Check {
    name: String,
    wrong: Option<String>,
}

/// Answers a path below one of the roots; `None` for any other path.
pub fn get(server: &Server, path: &str, query: &[(String, String)]) -> Option<Result<Response<Body>, Status>> {
    let (root, name) = match path.trim_start_matches('/').split_once('/') {
        Some((root, name)) => (root, Some(name)),
        None => (path.trim_start_matches('/'), None),
    };
    if !matches!(root, "livez" | "readyz" | "healthz") {
        return None;
    }
    let checks = checks(server, root == "readyz");
    let Some(name) = name else { return Some(Ok(all(root, &checks, query))) };
    Some(match checks.iter().find(|check| check.name == name) {
        None => Err(Status::no_such_resource()),
        Some(Check { wrong: None, .. }) => Ok(respond::text(200, "ok")),
        Some(Check { wrong: Some(wrong), .. }) => Ok(respond::text(500, format!("internal server error: {wrong}\n"))),
    })
}

/// The paths that answer [`get`].
pub fn paths(server: &Server) -> Vec<String> {
    let roots = ["livez", "readyz", "healthz"];
    let below = |root: &&str| {
        let checks = checks(server, *root == "readyz").into_iter().map(|check| check.name);
        checks.map(|name| format!("/{root}/{name}")).chain([format!("/{root}")]).collect::<Vec<_>>()
    };
    roots.iter().flat_map(below).collect()
}

fn all(root: &str, checks: &[Check], query: &[(String, String)]) -> Response<Body> {
    let excluded: Vec<&str> =
        query.iter().filter(|(key, _)| key == "exclude").flat_map(|(_, names)| names.split(',')).collect();
    let is_excluded = |check: &Check| excluded.contains(&check.name.as_str());
    let mut text = String::new();
    for check in checks {
        match &check.wrong {
            _ if is_excluded(check) => text.push_str(&format!("[+]{} excluded: ok\n", check.name)),
            None => text.push_str(&format!("[+]{} ok\n", check.name)),
            Some(wrong) => text.push_str(&format!("[-]{} failed: {wrong}\n", check.name)),
        }
    }
    let unknown: Vec<String> = excluded
        .iter()
        .filter(|name| !checks.iter().any(|check| check.name == **name))
        .map(|name| format!("{name:?}"))
        .collect();
    if !unknown.is_empty() {
        text.push_str(&format!("warn: some health checks cannot be excluded: no matches for {}\n", unknown.join(", ")));
    }
    if checks.iter().any(|check| check.wrong.is_some() && !is_excluded(check)) {
        return respond::text(500, format!("{text}{root} check failed\n"));
    }
    if query.iter().any(|(key, _)| key == "verbose") {
        return respond::text(200, format!("{text}{root} check passed\n"));
    }
    respond::text(200, "ok")
}

/// What is looked at. Who is not ready still lives: only `/readyz` looks at what heals by itself or is a person's to
/// mend.
fn checks(server: &Server, is_readyz: bool) -> Vec<Check> {
    let check = |name: &str, wrong: Option<String>| Check { name: name.to_owned(), wrong };
    let down = |is_well: bool| (!is_well).then(|| "broke a moment ago; it is begun anew".to_owned());
    let mut checks = vec![check("ping", None), check("log", None)];
    let store = server.api.store.is_closed().then(|| "the store does not take writes".to_owned());
    checks.push(check("etcd", store.clone()));
    if is_readyz {
        checks.push(check("etcd-readiness", server.api.store.trouble()));
        if let Some(encryption) = server.encryption.as_ref().filter(|encryption| encryption.has_plugins()) {
            checks.push(check("kms-providers", encryption.trouble()));
        }
        checks.push(check("informer-sync", undecodable(&server.undecodable.borrow())));
    }
    let begun = *server.ready.borrow();
    checks.extend(HOOKS.iter().map(|hook| check(hook, (!begun).then(|| "not finished".to_owned()))));
    for (task, is_well) in server.health.tasks() {
        checks.push(check(&format!("poststarthook/{task}"), down(is_well)));
    }
    if is_readyz {
        checks.push(check("shutdown", server.closing.borrow().then(|| "process is shutting down".to_owned())));
    }
    checks
}

/// What keeps controllers from deciding (A10): kinds and names; why is in the log.
fn undecodable(all: &[String]) -> Option<String> {
    let names: Vec<&str> = all.iter().take(MAX_NAMED).filter_map(|line| line.split(": ").next()).collect();
    (!all.is_empty()).then(|| format!("{} stored objects do not decode, among them {}", all.len(), names.join(", ")))
}
