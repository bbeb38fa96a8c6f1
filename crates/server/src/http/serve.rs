//! One request: who, what, may they; then to where it is answered.

use std::str::Utf8Error;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::{HeaderMap, HeaderValue, Method, Request, Response, header};
use hyper::body::Incoming;
use mainstay_api::selector::Fields;
use mainstay_api::table::{Media, Offer, negotiate};
use mainstay_api::{Status, parameters};
use mainstay_tasks::listen::Connection;

use super::received::{Bill, Received};
use super::respond::{self, Body};
use super::route::{self, Route, Target, query, route, without_watch};
use super::sending::{self, Sending, Wanted};
use super::{MAX_HEAD, Peer, Server, bounds, documents, extension, objects, reviews};
use crate::aggregation::{Extension, settled};
use crate::api::{self, Query};
use crate::audit::{Answer, Head, Record};
use crate::auth::{Impersonation, User};
use crate::authorize::escalation::Requester;
use crate::authorize::{Attributes, forbidden};
use crate::credentials;
use crate::fairness::Uids;
use crate::instruments::Labels;

/// Answers a request. Every failure is a `metav1.Status`.
pub async fn serve(
    server: Arc<Server>,
    connection: Connection,
    peer: Peer,
    request: Request<Incoming>,
) -> Response<Sending> {
    let active = connection.begin();
    server.counters.requests.fetch_add(1, Ordering::Relaxed);
    let audit = audit_id(&server, &request);
    let wanted = Wanted::of(&request);
    let is_expecting = request.headers().contains_key(header::EXPECT);
    let mut request = request.map(|body| Received::new(body, is_expecting));
    request.extensions_mut().insert(connection.clone());
    // What the request holds, and in whose name.
    let mut bill = Bill { shares: server.bounds.bodies.clone(), user: String::new(), paid: Arc::default() };
    let mut record = None;
    let begun = std::time::Instant::now();
    let mut labels = Labels::default();
    let mut uids = Uids::default();
    let mut early = server.audit.as_ref().map(|_| Early::of(&request, audit.as_ref(), &peer, server.api.now()));
    let asking = Asking {
        connection: &connection,
        peer,
        audit: audit.as_ref(),
        labels: &mut labels,
        uids: &mut uids,
        early: &mut early,
    };
    // What has no message of its own (failures, reviews) is written as the client likes best.
    let media = negotiate(accept(&request), Offer::ALL).map_or(Media::Json, |(_, media)| media);
    let by_a_person = respond::is_read_by_a_person(&request);
    let mut response = match answer(&server, asking, &mut record, request, &mut bill).await {
        Ok(response) => response,
        Err(status) => respond::status(&status),
    };
    let user = std::mem::take(&mut bill.user);
    drop(bill);
    if response.status().is_server_error() {
        server.counters.failures.fetch_add(1, Ordering::Relaxed);
    }
    let is_long = !matches!(response.body(), Body::Full(_) | Body::List(_));
    let code = response.status().as_u16();
    server.instruments.answered(&labels, code, (!is_long).then(|| begun.elapsed()));
    let long = is_long.then(|| server.instruments.long(&labels));
    // What was refused before it was known what it asks for (or who asks) is recorded too.
    let early = early.filter(|_| record.is_none()).zip(server.audit.as_ref());
    let record = record.or_else(|| early.and_then(|(early, log)| log.begin(&early.sender, &early.what, early.head)));
    if let Some(record) = record {
        let body = match response.body() {
            Body::Full(bytes) => bytes.as_ref(),
            _ => None,
        };
        record.end(&Answer { code, body, is_long }, server.api.now());
    }
    response = respond::in_media(response, media, by_a_person);
    if let Some(audit) = audit {
        response.headers_mut().insert("audit-id", audit);
    }
    uids.write(response.headers_mut());
    sending::send(response, wanted, &server.bounds.answers, &user, &connection, active, long).await
}

/// Whether somebody is a part of the cluster itself (a node, a controller) or may do everything: their connections have
/// slots that nobody else can take (X7).
pub fn is_system(user: &User) -> bool {
    ["system:masters", "system:nodes", "system:serviceaccounts:kube-system"].iter().any(|group| user.is_in(group))
}

/// 431 for a head that is too large.
fn check_head(request: &Request<Received>) -> Result<(), Status> {
    let fields: usize = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let path = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    if fields + path <= MAX_HEAD {
        return Ok(());
    }
    Err(Status::new(
        431,
        "RequestHeaderFieldsTooLarge",
        format!("Request header fields too large: limit is {MAX_HEAD}"),
    ))
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

/// Who asks, over what.
struct Asking<'a> {
    connection: &'a Connection,
    peer: Peer,
    audit: Option<&'a HeaderValue>,
    /// What the request is about, for `/metrics`.
    labels: &'a mut Labels,
    /// By which schema and level it is worked on.
    uids: &'a mut Uids,
    /// What is recorded of a request that ends before it is known what it asks for; `None` from there on.
    early: &'a mut Option<Early>,
}

/// What the audit log notes of a request that is refused for whoever sends it, or leads nowhere.
struct Early {
    sender: User,
    what: Attributes,
    head: Head,
}

impl Early {
    fn of(request: &Request<Received>, audit: Option<&HeaderValue>, peer: &Peer, received: jiff::Timestamp) -> Self {
        let path = request.uri().path().to_owned();
        let verb = request.method().as_str().to_lowercase();
        let head = head(request, audit, peer.address.clone(), &Route::Path(path.clone()), received);
        Self { sender: User::default(), what: Attributes { verb, path, ..Attributes::default() }, head }
    }
}

async fn answer(
    server: &Arc<Server>,
    asking: Asking<'_>,
    record: &mut Option<Arc<Record>>,
    mut request: Request<Received>,
    bill: &mut Bill,
) -> Result<Response<Body>, Status> {
    let Asking { connection, peer, audit, labels, uids, early } = asking;
    labels.verb = method_of(request.method());
    check_head(&request)?;
    let sender = authenticate(server, peer.certified(server.api.now()), &request).await?;
    if let Some(early) = early {
        early.sender.clone_from(&sender);
    }
    if !sender.is_in("system:unauthenticated") && !connection.authenticate(&sender.name, is_system(&sender)) {
        return Err(Status::too_many_requests("too many connections", 1));
    }
    bill.user.clone_from(&sender.name);
    request.body_mut().bill(bill.clone());
    let impersonation = Impersonation::of(request.headers())?;
    let user = match impersonation {
        None => sender.clone(),
        // Whom the sender may act as.
        Some(impersonation) => {
            impersonation.asks().iter().try_for_each(|ask| server.authorizer.check(&sender, ask))?;
            impersonation.user()
        }
    };
    let Understood { extension, query, route, what } = understand(server, &mut request)?;
    let about = labels_of(&route, &what, &query, &request);
    // Strangers have counters of their own only for what they may.
    if !user.is_anonymous() {
        labels.clone_from(&about);
    }
    check_timeout(&what, &query)?;
    if !matches!(route, Route::Path(_)) && !is_content_with_less(&query) {
        // M2: what any server has acknowledged is seen from here on, also by the authorizer.
        let seen = server.api.store.catch_up().await;
        let why = || server.api.store.trouble().unwrap_or_else(|| "the newest state is not known".to_owned());
        seen.map_err(|_| Status::store_is_silent(&why()))?;
    }
    if let Some(log) = &server.audit {
        let head = head(&request, audit, peer.address, &route, server.api.now());
        *record = log.begin(&user, &what, Head { sender: (sender != user).then_some(sender), ..head });
        *early = None;
    }
    let _working = server.instruments.working(!request.method().is_safe());
    decide(server, &user, &what, record.as_deref())?;
    *labels = about;
    // Who waits for others (a body that is still on its way, a pod, another server) keeps no seat from anybody.
    let is_passed_on = extension.is_some() || is_long(&what);
    let _seat = if is_passed_on {
        None
    } else {
        if !request.method().is_safe() && !matches!(route, Route::Path(_)) {
            request.body_mut().arrive().await?;
        }
        let seat = server.fairness.seat(&user, &what).await?;
        uids.clone_from(&seat.uids);
        Some(seat)
    };
    if let Some(extension) = extension {
        return extension::serve(server, &user, &extension, request).await;
    }
    match route {
        Route::Path(path) => {
            if !matches!(*request.method(), Method::GET | Method::HEAD) {
                return Err(Status::method_not_allowed());
            }
            document(server, &bill.user, path, &request).await
        }
        Route::Review { group, resource, namespace } => {
            if *request.method() != Method::POST {
                return Err(Status::method_not_allowed());
            }
            reviews::create(server, &user, (&group, &resource, &namespace), request).await
        }
        Route::Objects(target) => {
            let verb = verb_of(request.method(), &target, is_watch(&query)).ok_or_else(Status::method_not_allowed)?;
            let authorizer = server.authorizer.clone();
            let requester = Requester { user: Arc::new(user), authorizer, record: record.clone() };
            if what.verb != "create" && may_execute(&what, request.headers()) {
                requester.check(&Attributes { verb: "create".to_owned(), ..what })?;
            }
            objects::serve(server, &bill.user, requester, target, verb, query, request).await
        }
    }
}

/// What a request is about.
struct Understood {
    /// The server that answers it, if that is another one.
    extension: Option<Arc<Extension>>,
    query: Query,
    route: Route,
    what: Attributes,
}

/// Reads path and query. Those of a request that is passed on are put right first.
fn understand(server: &Server, request: &mut Request<Received>) -> Result<Understood, Status> {
    let registry = server.api.served.now();
    let extension = server.extensions.find(&registry, request.uri().path());
    if extension.is_some() {
        *request.uri_mut() = settled(request.uri())?;
    }
    let mut query = query(request.uri().query().unwrap_or(""));
    let path = match without_watch(request.uri().path()) {
        Some(path) if matches!(*request.method(), Method::GET | Method::HEAD) => {
            query.insert("watch".to_owned(), "true".to_owned());
            path
        }
        Some(_) => return Err(Status::method_not_allowed()),
        None => request.uri().path().to_owned(),
    };
    let route = match &extension {
        Some(_) => Route::Path(path.clone()),
        None => route(&registry, &path)?,
    };
    let what = match &extension {
        Some(extension) => extension.asked(&path, request.method(), &query),
        None => asked(&route, request.method(), &query)?,
    };
    Ok(Understood { extension, query, route, what })
}

/// Refuses what the user may not do, and records why.
fn decide(server: &Server, user: &User, what: &Attributes, record: Option<&Record>) -> Result<(), Status> {
    match record {
        None => server.authorizer.check(user, what)?,
        Some(record) => {
            let decided = server.authorizer.explain(user, what);
            let (Ok(reason) | Err(reason)) = &decided;
            record.decision(decided.is_ok(), reason);
            decided.map_err(|reason| forbidden(user, what, &reason))?;
        }
    }
    Ok(())
}

/// A document that is about no object: versions, descriptions, health, metrics.
async fn document(
    server: &Arc<Server>,
    user: &str,
    path: String,
    request: &Request<Received>,
) -> Result<Response<Body>, Status> {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| request.uri().authority().map(|authority| authority.as_str())).unwrap_or("");
    let known = request.headers().get_all(header::IF_NONE_MATCH).iter().filter_map(|tag| tag.to_str().ok());
    let asked = documents::Asked {
        query: route::parameters(request.uri().query().unwrap_or("")),
        host: host.to_owned(),
        accept: accept(request).to_owned(),
        known: known.collect::<Vec<_>>().join(","),
    };
    let (of, bounds) = (server.clone(), &server.bounds);
    let is_described = path.starts_with("/openapi");
    let pool = match &*path {
        "/openapi/v2" | "/openapi/v3" => &bounds.descriptions,
        _ if is_described || path == "/metrics" => &bounds.heavy,
        _ => return documents::get(&of, &path, &asked),
    };
    let document = pool.run(user, move || documents::get(&of, &path, &asked)).await;
    if is_described {
        bounds.freed.notify_one();
    }
    document.map_err(bounds::refused)?
}

/// Paths that are no objects and that metrics tell apart.
const PATHS: [&str; 9] =
    ["/api", "/apis", "/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"];

/// Subresources that metrics tell apart.
const SUBRESOURCES: [&str; 14] = [
    "approval",
    "attach",
    "binding",
    "ephemeralcontainers",
    "eviction",
    "exec",
    "finalize",
    "log",
    "portforward",
    "proxy",
    "resize",
    "scale",
    "status",
    "token",
];

/// Upstream's verb for a request of which no more is known.
fn method_of(method: &Method) -> &'static str {
    match *method {
        Method::GET | Method::HEAD => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

/// What a request is about, for `/metrics`.
fn labels_of(route: &Route, what: &Attributes, query: &Query, request: &Request<Received>) -> Labels {
    let method = method_of(request.method());
    let dry_run = if query.get("dryRun").is_some_and(|text| text == "All") { "All" } else { "" };
    let version = match route {
        Route::Objects(target) => target.kind.version.to_string(),
        Route::Review { .. } => "v1".to_owned(),
        Route::Path(path) => {
            let known = PATHS.iter().find(|known| *known == path).copied().unwrap_or("");
            return Labels { verb: method, subresource: known.to_owned(), dry_run, ..Labels::default() };
        }
    };
    let is_apply = || {
        let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        content_type.is_some_and(|media| media.starts_with("application/apply-patch"))
    };
    let verb = match (what.verb.as_str(), what.subresource.as_str()) {
        (_, "proxy" | "exec" | "attach" | "portforward") => "CONNECT",
        ("list", _) => "LIST",
        ("watch", _) => "WATCH",
        ("patch", _) if is_apply() => "APPLY",
        ("deletecollection", _) => "DELETECOLLECTION",
        _ => method,
    };
    let scope = match () {
        () if !what.name.is_empty() || what.verb == "create" => "resource",
        () if !what.namespace.is_empty() => "namespace",
        () => "cluster",
    };
    let Attributes { group, mut resource, mut subresource, .. } = what.clone();
    if matches!(route, Route::Review { .. }) && !reviews::is_one(&group, &resource) {
        resource.clear();
    }
    if !SUBRESOURCES.contains(&&*subresource) {
        subresource.clear();
    }
    Labels { verb, group, version, resource, subresource, scope, dry_run }
}

/// What the audit log notes of a request's head.
fn head(
    request: &Request<Received>,
    audit: Option<&HeaderValue>,
    source: String,
    route: &Route,
    received: jiff::Timestamp,
) -> Head {
    let text = |value: Option<&HeaderValue>| value.and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
    Head {
        id: text(audit),
        uri: request.uri().path_and_query().map(ToString::to_string).unwrap_or_default(),
        source,
        agent: text(request.headers().get(header::USER_AGENT)),
        sender: None,
        version: match route {
            Route::Objects(target) => target.kind.version.to_string(),
            Route::Review { .. } => "v1".to_owned(),
            Route::Path(_) => String::new(),
        },
        received,
    }
}

/// Whether any state that the server had is as good as the newest: a list from its memory, a watch from a revision.
fn is_content_with_less(query: &Query) -> bool {
    match query.get("resourceVersion").map(String::as_str) {
        None | Some("") => false,
        Some("0") => true,
        Some(_) => is_watch(query),
    }
}

fn is_watch(query: &Query) -> bool {
    api::flag(query, "watch")
}

/// Whether an answer goes on for as long as somebody else likes, and is neither a watch nor the server's own.
fn is_long(what: &Attributes) -> bool {
    matches!(&*what.subresource, "attach" | "exec" | "log" | "portforward" | "proxy")
}

/// 400 for a `timeout` that is no duration. Only what is over soon has one: a watch has `timeoutSeconds`.
fn check_timeout(what: &Attributes, query: &Query) -> Result<(), Status> {
    let is_long = what.verb == "watch" || is_long(what);
    match query.get("timeout").filter(|timeout| !timeout.is_empty() && !is_long) {
        Some(timeout) if !parameters::is_duration(timeout) => Err(Status::bad_request(format!(
            "invalid timeout specified in the request URL - time: invalid duration {timeout:?}"
        ))),
        _ => Ok(()),
    }
}

/// What a request asks for.
fn asked(route: &Route, method: &Method, query: &Query) -> Result<Attributes, Status> {
    Ok(match route {
        Route::Path(path) => {
            Attributes { verb: method.as_str().to_lowercase(), path: path.clone(), ..Attributes::default() }
        }
        Route::Review { group, resource, namespace } => Attributes {
            verb: "create".into(),
            group: group.clone(),
            resource: resource.clone(),
            namespace: namespace.clone(),
            ..Attributes::default()
        },
        Route::Objects(target) => {
            let verb = verb_of(method, target, is_watch(query)).ok_or_else(Status::method_not_allowed)?;
            attributes(target, verb, query)
        }
    })
}

/// What a request about objects asks for. A namespace is in itself, and a list of the one object that a field selector
/// names is about that object, so that roles can be given for them. What deletes a collection has no name, whatever it
/// selects, as upstream: no role with `resourceNames` is enough for it.
fn attributes(target: &Target, verb: &str, query: &Query) -> Attributes {
    let mut name = target.name.clone();
    if name.is_empty() && matches!(verb, "list" | "watch") {
        name = query.get("fieldSelector").and_then(|selector| named(selector)).unwrap_or_default();
    }
    let is_namespace = target.kind.group.is_empty() && target.kind.plural == "namespaces";
    let is_bare_binding = target.subresource == "binding" && target.name.is_empty();
    Attributes {
        verb: verb.to_owned(),
        group: target.kind.group.to_string(),
        resource: if is_bare_binding { "bindings".to_owned() } else { target.kind.plural.to_string() },
        subresource: if is_bare_binding { String::new() } else { target.subresource.clone() },
        namespace: if is_namespace { target.name.clone() } else { target.namespace.clone() },
        name,
        fields: query.get("fieldSelector").cloned().unwrap_or_default(),
        path: String::new(),
    }
}

/// Whether a request may run something, though its method only reads: a WebSocket is opened by a GET. For the streams
/// of pods upstream asks for `create`, too. Differs: for whatever is opened through `nodes/proxy`, by which a node's
/// own exec, attach and port-forward are reached, upstream is content with `get`.
fn may_execute(what: &Attributes, headers: &HeaderMap) -> bool {
    match &*what.subresource {
        "attach" | "exec" | "portforward" => true,
        "proxy" => what.resource == "nodes" && headers.contains_key(header::UPGRADE),
        _ => false,
    }
}

/// The one name that a field selector leaves, where it does.
fn named(selector: &str) -> Option<String> {
    Fields::required_by(selector, "metadata.name").filter(|name| !name.is_empty() && !name.contains('/'))
}

/// A bearer token goes before the certificate; a wrong one is refused, whatever else there is.
async fn authenticate(server: &Server, certified: Option<User>, request: &Request<Received>) -> Result<User, Status> {
    let others = &server.authenticators;
    let token = request.headers().get(header::AUTHORIZATION).and_then(bearer);
    let Some(token) = token.transpose().map_err(|_| Status::unauthorized())? else {
        return match certified {
            Some(user) => Ok(user),
            None if others.config.lets_anonymous(request.uri().path()) => Ok(User::anonymous()),
            None => Err(Status::unauthorized()),
        };
    };
    if let Some(user) = others.tokens.user(token) {
        return Ok(user);
    }
    let refused = |error: &dyn std::fmt::Display| {
        tracing::debug!(%error, "a token was refused");
        Status::unauthorized()
    };
    if credentials::token::looks_like_one(token) {
        return credentials::token::user(&server.api, token).ok_or_else(|| refused(&"not a valid bootstrap token"));
    }
    if others.issuers.knows(token) {
        return others.issuers.user(token, server.api.now()).await.map_err(|error| refused(&error));
    }
    let known = User::of_token(&server.api, &server.tokens, token, &[crate::api::ISSUER]);
    known.map(|(user, _)| user).map_err(|error| refused(&error))
}

/// The token of an `Authorization` header; its scheme's name has no case (RFC 9110, 11.1). An error where it is no
/// text: that is no token, but one was meant.
fn bearer(header: &HeaderValue) -> Option<Result<&str, Utf8Error>> {
    let (scheme, token) = header.as_bytes().trim_ascii_start().split_at_checked("bearer".len())?;
    (scheme.eq_ignore_ascii_case(b"bearer") && token.first() == Some(&b' '))
        .then(|| std::str::from_utf8(token).map(str::trim))
}

/// The `Accept` header.
pub fn accept(request: &Request<Received>) -> &str {
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
        // What is passed on may be asked for anything; as upstream, rules name no verb for it but `*`.
        Method::OPTIONS if target.subresource == "proxy" => "",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conformance_a_timeout_that_is_no_duration_is_refused() {
        let check = |verb: &str, subresource: &str, timeout: &str| {
            let what = Attributes { verb: verb.into(), subresource: subresource.into(), ..Attributes::default() };
            check_timeout(&what, &Query::from([("timeout".to_owned(), timeout.to_owned())]))
        };
        let refused = check("get", "", "invalid").expect_err("refused");
        let words = "invalid timeout specified in the request URL - time: invalid duration \"invalid\"";
        assert_eq!((refused.code, &*refused.message), (400, words));
        assert_eq!(check("delete", "", "30").expect_err("no unit").code, 400);
        for (verb, subresource, timeout) in
            [("get", "", "32s"), ("list", "", "0"), ("create", "", ""), ("watch", "", "x"), ("create", "exec", "x")]
        {
            assert_eq!(check(verb, subresource, timeout), Ok(()), "{verb} {subresource} {timeout}");
        }
    }

    #[test]
    fn x1_a_list_of_one_name_asks_for_that_name() {
        assert_eq!(named("status.phase=Running,metadata.name==a").as_deref(), Some("a"));
        for none in ["metadata.name!=a", r"metadata.namespace!=x\,metadata.name=a", "metadata.name=a/b"] {
            assert_eq!(named(none), None, "{none}");
        }
    }

    /// X1: a list or a watch of one name is about that name; deleting a collection and making an object never are, so a
    /// role for that name allows neither.
    #[test]
    fn x1_deleting_a_collection_is_about_no_name() {
        for (method, watch, verb, name) in [
            (Method::GET, "false", "list", "a"),
            (Method::GET, "true", "watch", "a"),
            (Method::DELETE, "false", "deletecollection", ""),
            (Method::POST, "false", "create", ""),
        ] {
            let target = Target {
                kind: mainstay_api::kinds::CONFIG_MAP.clone(),
                namespace: "default".to_owned(),
                name: String::new(),
                subresource: String::new(),
            };
            let pairs = [("watch", watch), ("fieldSelector", "metadata.name=a")];
            let query = Query::from(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())));
            let what = asked(&Route::Objects(target), &method, &query).expect("there is such a request");
            assert_eq!((&*what.verb, &*what.name), (verb, name));
        }
    }
}
