//! One request: who, what, may they; then to where it is answered.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::{HeaderValue, Method, Request, Response, header};
use hyper::body::Incoming;
use mainstay_api::Status;

use super::respond::{self, Body};
use super::route::{Route, Target, query, route};
use super::{Server, documents, objects, reviews};
use crate::auth::User;
use crate::authorize::{self, Attributes};

/// Answers a request. Every failure is a `metav1.Status`.
pub async fn serve(server: Arc<Server>, certified: Option<User>, request: Request<Incoming>) -> Response<Body> {
    server.counters.requests.fetch_add(1, Ordering::Relaxed);
    let audit = audit_id(&server, &request);
    let mut response = match answer(&server, certified, request).await {
        Ok(response) => response,
        Err(status) => respond::status(&status),
    };
    if response.status().is_server_error() {
        server.counters.failures.fetch_add(1, Ordering::Relaxed);
    }
    if let Some(audit) = audit {
        response.headers_mut().insert("audit-id", audit);
    }
    response
}

/// The client's own id for the request, or a new one.
fn audit_id(server: &Server, request: &Request<Incoming>) -> Option<HeaderValue> {
    match request.headers().get("audit-id") {
        Some(given) if given.len() <= 64 => Some(given.clone()),
        _ => {
            let mut bytes = [0; 16];
            (server.api.env.random)(&mut bytes);
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            HeaderValue::try_from(hex).ok()
        }
    }
}

async fn answer(
    server: &Arc<Server>,
    certified: Option<User>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Status> {
    let user = impersonated(server, authenticate(server, certified, &request)?, &request)?;
    let path = request.uri().path().to_owned();
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    if user.is_anonymous() && !(is_read && documents::is_public(&path)) {
        return Err(Status::unauthorized());
    }
    match route(&path)? {
        Route::Path(path) => {
            if !documents::is_public(&path) {
                let what = Attributes {
                    verb: request.method().as_str().to_lowercase(),
                    path: path.clone(),
                    ..Attributes::default()
                };
                authorize(server, &user, &what)?;
            }
            if !is_read {
                return Err(Status::method_not_allowed());
            }
            let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
            let host = host.or_else(|| request.uri().authority().map(|authority| authority.as_str())).unwrap_or("");
            documents::get(server, &path, &query(request.uri().query().unwrap_or("")), host, accept(&request))
        }
        Route::Review { resource } => {
            let group = if resource.starts_with("selfsubjectreview") || resource == "tokenreviews" {
                "authentication"
            } else {
                "authorization"
            };
            let what = Attributes {
                verb: "create".into(),
                group: format!("{group}.k8s.io"),
                resource: resource.clone(),
                ..Attributes::default()
            };
            authorize(server, &user, &what)?;
            if *request.method() != Method::POST {
                return Err(Status::method_not_allowed());
            }
            reviews::create(server, &user, &resource, request).await
        }
        Route::Objects(target) => {
            let query = query(request.uri().query().unwrap_or(""));
            let is_watch = query.get("watch").is_some_and(|watch| watch == "true" || watch == "1");
            let verb = verb_of(request.method(), &target, is_watch).ok_or_else(Status::method_not_allowed)?;
            let what = Attributes {
                verb: verb.to_owned(),
                group: target.kind.group.to_owned(),
                resource: target.kind.plural.to_owned(),
                subresource: target.subresource.clone(),
                namespace: target.namespace.clone(),
                name: target.name.clone(),
                path: String::new(),
            };
            authorize(server, &user, &what)?;
            objects::serve(server, target, verb, query, request).await
        }
    }
}

/// A bearer token goes before the certificate; a wrong one is refused, whatever else there is.
fn authenticate(server: &Server, certified: Option<User>, request: &Request<Incoming>) -> Result<User, Status> {
    let Some(token) = request.headers().get(header::AUTHORIZATION).and_then(bearer) else {
        return Ok(certified.unwrap_or_else(User::anonymous));
    };
    match User::of_token(&server.api, &server.tokens, token, &[crate::api::ISSUER]) {
        Ok((user, _)) => Ok(user),
        Err(error) => {
            tracing::debug!(%error, "a token was refused");
            Err(Status::unauthorized())
        }
    }
}

/// The token of an `Authorization` header; its scheme's name has no case (RFC 9110, 11.1).
fn bearer(header: &HeaderValue) -> Option<&str> {
    let (scheme, token) = header.to_str().ok()?.trim_start().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The user that `Impersonate-User` and `Impersonate-Group` name (`kubectl --as`), if the one who asks may act as them.
fn impersonated(server: &Server, user: User, request: &Request<Incoming>) -> Result<User, Status> {
    let all = |header: &str| {
        request.headers().get_all(header).into_iter().filter_map(|value| value.to_str().ok().map(str::to_owned))
    };
    let groups: Vec<String> = all("impersonate-group").collect();
    let uid = all("impersonate-uid").next().unwrap_or_default();
    let Some(name) = all("impersonate-user").next() else {
        if groups.is_empty() && uid.is_empty() {
            return Ok(user);
        }
        return Err(Status::bad_request("requested to impersonate groups or a uid without impersonating a user"));
    };
    let may = |resource: &str, namespace: &str, name: &str| {
        let what = Attributes {
            verb: "impersonate".to_owned(),
            resource: resource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            ..Attributes::default()
        };
        authorize(server, &user, &what)
    };
    match name.strip_prefix("system:serviceaccount:").and_then(|account| account.split_once(':')) {
        Some((namespace, account)) => may("serviceaccounts", namespace, account)?,
        None => may("users", "", &name)?,
    }
    groups.iter().try_for_each(|group| may("groups", "", group))?;
    if !uid.is_empty() {
        may("uids", "", &uid)?;
    }
    Ok(User::impersonated(name, groups, uid))
}

fn authorize(server: &Server, user: &User, what: &Attributes) -> Result<(), Status> {
    if authorize::allows(&server.api, user, what) { Ok(()) } else { Err(authorize::forbidden(user, what)) }
}

/// The `Accept` header.
pub fn accept(request: &Request<Incoming>) -> &str {
    request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("")
}

/// Upstream's verb for a method; `None` where the method has no meaning there.
fn verb_of(method: &Method, target: &Target, is_watch: bool) -> Option<&'static str> {
    let is_collection = target.name.is_empty();
    Some(match *method {
        Method::GET | Method::HEAD if is_watch => "watch",
        Method::GET | Method::HEAD if is_collection => "list",
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT if !is_collection => "update",
        Method::PATCH if !is_collection => "patch",
        Method::DELETE if is_collection => "deletecollection",
        Method::DELETE => "delete",
        _ => return None,
    })
}
