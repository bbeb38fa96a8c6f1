//! Requests about objects: out of HTTP, through the pipeline, back.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, header};
use mainstay_api::kinds::Subresource;
use mainstay_api::parameters::is_true;
use mainstay_api::patch::{self, PatchType};
use mainstay_api::schema::{self, FieldValidation};
use mainstay_api::table::{IncludeObject, Media, Offer, Representation, negotiate};
use mainstay_api::{Kind, Status, kinds, object, protobuf};
use serde_json::Value;

use super::received::Received;
use super::respond::{self, Body};
use super::route::Target;
use super::shape::Shape;
use super::socket::Asked;
use super::watching::WatchBody;
use super::{Server, bounds, decoding, forward, proxy};
use crate::api::{
    self, Batch, DeleteOptions, FieldManager, ListOptions, Outcome, Part, Query, Reply, Scaling, Selection, Watch,
};
use crate::authorize::escalation::Requester;
use crate::authorize::rbac;
use crate::convert::{self, Conversions};
use crate::dynamic::matching::{Attributes, Operation};
use crate::dynamic::{self, Session, Terms};

/// Requests with larger bodies leave the threads that all connections share (bytes).
const LIGHT_BODY: usize = 32 << 10;
/// A watch without `timeoutSeconds` ends after this and up to twice as long, as upstream, so that not all end at once.
const MIN_WATCH: Duration = Duration::from_secs(1800);
/// The longest `timeoutSeconds`.
const MAX_WATCH: u64 = 86_400;

/// What the parts of a request are to the functions here.
#[derive(Clone)]
struct Call<'a> {
    server: &'a Arc<Server>,
    target: &'a Target,
    query: &'a Query,
    form: (Representation, Media),
    content_type: String,
    /// Who writes, for `managedFields`.
    manager: FieldManager,
    /// Who asks, for checks that are part of the write.
    requester: Requester,
    /// Who else is asked, where anybody is.
    session: Option<Arc<Session>>,
    /// What a webhook converts, where one does.
    conversions: Option<Arc<Conversions>>,
}

/// A request whose body is there: what is needed to make it again when webhooks were asked.
struct Job {
    server: Arc<Server>,
    target: Target,
    query: Query,
    form: (Representation, Media),
    content_type: String,
    manager: FieldManager,
    requester: Requester,
    session: Option<Arc<Session>>,
    conversions: Option<Arc<Conversions>>,
    verb: &'static str,
    body: Bytes,
}

impl Job {
    async fn run(&self) -> Result<Response<Body>, Status> {
        let call = Call {
            server: &self.server,
            target: &self.target,
            query: &self.query,
            form: self.form,
            content_type: self.content_type.clone(),
            manager: self.manager.clone(),
            requester: self.requester.clone(),
            session: self.session.clone(),
            conversions: self.conversions.clone(),
        };
        dispatch(&call, self.verb, self.body.clone()).await
    }

    /// Does the work, and does it again when the webhooks that it found to be asked have answered.
    async fn perform(self: Arc<Self>, user: &str, is_heavy: bool) -> Result<Response<Body>, Status> {
        let (api, bounds) = (&self.server.api, &self.server.bounds);
        let (is_large, is_huge) = (self.body.len() > LIGHT_BODY, self.body.len() > bounds::HUGE_BODY);
        let pool = if is_huge { &bounds.huge } else { &bounds.heavy };
        loop {
            let answered = if is_heavy {
                let (runtime, job, freed) = (tokio::runtime::Handle::current(), self.clone(), bounds.freed.clone());
                let work = move || {
                    let answered = runtime.block_on(job.run());
                    if is_large {
                        freed.notify_one();
                    }
                    answered
                };
                pool.run(user, work).await.map_err(bounds::refused)?
            } else {
                self.run().await
            };
            // No thread of the pool waits for a webhook.
            if let Some(conversions) = self.conversions.as_ref().filter(|conversions| conversions.is_pending()) {
                conversions.settle(api).await?;
                continue;
            }
            match self.session.as_ref().filter(|session| session.is_suspended()) {
                Some(session) => session.settle(api).await?,
                None => return answered,
            }
        }
    }
}

/// The longest `fieldManager`, in characters (upstream's).
const MAX_MANAGER: usize = 128;

/// The `fieldManager` parameter, or what stands before the `/` of the user agent.
fn manager(query: &Query, subresource: &str, request: &Request<Received>) -> Result<FieldManager, Status> {
    let named = query.get("fieldManager").map_or("", String::as_str);
    if named.chars().count() > MAX_MANAGER || named.chars().any(char::is_control) {
        return Err(Status::new(
            422,
            "Invalid",
            "CreateOptions.meta.k8s.io \"\" is invalid: fieldManager: Invalid value: may not be more than 128 \
                printable characters",
        ));
    }
    let agent = request.headers().get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or("");
    let name = if named.is_empty() {
        agent.split('/').next().unwrap_or("").chars().take(MAX_MANAGER).collect()
    } else {
        named.to_owned()
    };
    Ok(FieldManager {
        name: if name.is_empty() { "unknown".to_owned() } else { name },
        subresource: subresource.to_owned(),
    })
}

/// Answers a request about objects; the user may make it.
pub async fn serve(
    server: &Arc<Server>,
    user: &str,
    requester: Requester,
    target: Target,
    verb: &'static str,
    query: Query,
    mut request: Request<Received>,
) -> Result<Response<Body>, Status> {
    if let Some(streaming) = proxy::Streaming::of(&target) {
        if !target.kind.has(streaming.subresource()) {
            return Err(Status::no_such_resource());
        }
        if streaming != proxy::Streaming::Log {
            let subresource = target.subresource.clone();
            connect(server, &requester, &target, &subresource, request.uri()).await?;
        }
        return proxy::stream(server, &target, streaming, request).await;
    }
    if target.subresource.is_empty() && !target.kind.verbs.is_empty() && !target.kind.verbs.contains(&verb) {
        return Err(Status::method_not_allowed());
    }
    if target.subresource == "proxy" {
        if !target.kind.has(Subresource::Proxy) {
            return Err(Status::no_such_resource());
        }
        connect(server, &requester, &target, "proxy", request.uri()).await?;
        return forward::serve(server, user, &target, request).await;
    }
    if target.kind.group == kinds::podmetrics::GROUP {
        let offer = Offer { has_message: false, is_watch: verb == "watch" };
        let form = negotiate(super::serve::accept(&request), offer)?;
        let answer = crate::metrics::serve::serve(server, user, target, query, form.0).await?;
        return Ok(respond::agreed(answer, form.1));
    }
    // An action on an object answers what has a message, whatever the object is.
    let has_message = protobuf::has_message(&target.kind) || matches!(target.subresource.as_str(), "scale");
    let form = negotiate(super::serve::accept(&request), Offer { has_message, is_watch: verb == "watch" })?;
    if matches!(verb, "get" | "list") {
        form.0.of(&target.kind.kind, verb == "list")?;
    }
    let content_type =
        request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
    let manager = manager(&query, &target.subresource, &request)?;
    let socket = if verb == "watch" { Asked::of(&mut request)? } else { None };
    let method = request.method().clone();
    let body =
        if matches!(method, Method::GET | Method::HEAD) { Bytes::new() } else { request.into_body().whole().await? };
    if let Some(record) = &requester.record {
        record.request(&body);
    }
    let media = form.1;
    let is_write = !matches!(verb, "get" | "list" | "watch");
    // What a role gives is compared with all that its writer has.
    let is_role = is_write && target.kind.group == rbac::GROUP;
    let is_heavy = is_heavy(verb, &query, body.len())
        || is_role
        || is_write && stored_length(server, &target) > LIGHT_BODY
        || verb == "list" && media == Media::Protobuf;
    let session = if is_write { session(server, &requester) } else { None };
    let conversions = (is_write && convert::webhook(&target.kind).is_some()).then(Arc::<Conversions>::default);
    let deprecation = kinds::lifecycle::deprecation(&target.kind).map(str::to_owned);
    let server = server.clone();
    let job = Job { server, target, query, form, content_type, manager, requester, session, conversions, verb, body };
    let mut response = respond::agreed(Arc::new(job).perform(user, is_heavy).await?, media);
    respond::warnings(&mut response, deprecation.as_slice());
    Ok(match socket {
        Some(socket) => socket.carry(response),
        None => response,
    })
}

/// What webhooks are asked of a request in its sender's name; `None` where there is nobody to ask.
fn session(server: &Server, requester: &Requester) -> Option<Arc<Session>> {
    let set = server.api.hooks.now()?;
    Some(Arc::new(Session::new(set, requester)))
}

/// Asks webhooks about a connection to a pod, service or node.
async fn connect(
    server: &Server,
    requester: &Requester,
    target: &Target,
    subresource: &str,
    uri: &http::Uri,
) -> Result<(), Status> {
    let Some(session) = session(server, requester) else { return Ok(()) };
    let Target { kind, namespace, name, .. } = target;
    let (type_name, options) = proxy::options(kind, subresource, uri);
    let attributes = Attributes::new(kind, subresource, Operation::Connect, namespace, name);
    dynamic::connect(&server.api, &session, &attributes.with_type("", "v1", type_name), options).await.map(|_| ())
}

/// Whether a request's work may take more than a few milliseconds, so that it is not done on the threads that every
/// connection shares (X7): what has a large body, and selectors, for which every object is looked at.
fn is_heavy(verb: &str, query: &Query, size: usize) -> bool {
    let selects = |name: &str| query.get(name).is_some_and(|selector| !selector.is_empty());
    let by_name = query.get("fieldSelector").is_some_and(|selector| selector.starts_with("metadata.name="));
    size > LIGHT_BODY
        || matches!(verb, "list" | "watch") && (selects("labelSelector") || selects("fieldSelector") && !by_name)
}

/// How long the object is that a write by name is about, in bytes; 0 where there is none.
fn stored_length(server: &Server, target: &Target) -> usize {
    let Target { kind, namespace, name, .. } = target;
    let found = (!name.is_empty()).then(|| server.api.store.get(&api::key::object(kind, namespace, name))).flatten();
    found.map_or(0, |entry| entry.value.len())
}

async fn dispatch(call: &Call<'_>, verb: &'static str, body: Bytes) -> Result<Response<Body>, Status> {
    let target = call.target;
    if !target.subresource.is_empty() {
        return subresource(call, verb, body).await;
    }
    match verb {
        "get" => get(call).await,
        "list" => list(call).await,
        "watch" => watch(call),
        "create" => create(call, body).await,
        "update" => update(call, Part::Main, body).await,
        "patch" => patch(call, Part::Main, body).await,
        "delete" => delete(call, body).await,
        // One request must not remove every namespace.
        "deletecollection" if !target.kind.has(Subresource::Finalize) => delete_collection(call, body).await,
        _ => Err(Status::method_not_allowed()),
    }
}

async fn subresource(call: &Call<'_>, verb: &str, body: Bytes) -> Result<Response<Body>, Status> {
    let Target { kind, subresource, .. } = call.target;
    let needs = |subresource| if kind.has(subresource) { Ok(()) } else { Err(Status::no_such_resource()) };
    let part = match subresource.as_str() {
        "status" => {
            needs(Subresource::Status)?;
            Part::Status
        }
        "finalize" => {
            needs(Subresource::Finalize)?;
            Part::Finalize
        }
        "approval" => {
            needs(Subresource::Approval)?;
            Part::Approval
        }
        "ephemeralcontainers" => {
            needs(Subresource::EphemeralContainers)?;
            Part::EphemeralContainers
        }
        "resize" => {
            needs(Subresource::Resize)?;
            Part::Resize
        }
        "scale" => {
            needs(Subresource::Scale)?;
            return scale(call, verb, body).await;
        }
        "binding" | "eviction" | "token" => {
            if verb != "create" {
                return Err(Status::method_not_allowed());
            }
            return action(call, body).await;
        }
        _ => return Err(Status::no_such_resource()),
    };
    match verb {
        "get" => get(call).await,
        "update" => update(call, part, body).await,
        "patch" => patch(call, part, body).await,
        _ => Err(Status::method_not_allowed()),
    }
}

/// Binding, eviction, token request: objects that are only ever posted.
async fn action(call: &Call<'_>, body: Bytes) -> Result<Response<Body>, Status> {
    let Target { kind, namespace, name, subresource } = call.target;
    let needed = match subresource.as_str() {
        "binding" => Subresource::Binding,
        "eviction" => Subresource::Eviction,
        _ => Subresource::Token,
    };
    if !kind.has(needed) {
        return Err(Status::no_such_resource());
    }
    let posted = decoding::parse(&call.content_type, &body)?;
    let name = if name.is_empty() { object::name(&posted).to_owned() } else { name.clone() };
    // An Eviction carries its options one level down.
    let options = if subresource == "eviction" { posted.get("deleteOptions").unwrap_or(&Value::Null) } else { &posted };
    let dry_run = is_dry_run(call.query, options, CREATE_OPTIONS)?;
    let posting = |verb: &'static str| {
        let (posted, name) = (posted.clone(), name.clone());
        move |batch: &mut Batch<'_>| match verb {
            "binding" => api::bind(batch, namespace, &name, &posted),
            _ => api::evict(batch, namespace, &name, &posted),
        }
    };
    match subresource.as_str() {
        "binding" => write(call, dry_run, posting("binding")).await.map(respond::reply),
        "eviction" => write(call, dry_run, posting("eviction")).await.map(respond::reply),
        _ => {
            let mut batch = call.server.api.batch();
            batch.requester = Some(call.requester.clone());
            batch.join(call.session.as_ref());
            describe(call, dry_run);
            let attributes = Attributes::new(kind, "token", Operation::Create, namespace, &name);
            let attributes = attributes.with_type("authentication.k8s.io", "v1", "TokenRequest");
            let posted = dynamic::posted(&mut batch, attributes, &posted)?;
            let answer = call.server.tokens.request(&mut batch, namespace, &name, posted)?;
            Ok(respond::json(201, object::print(&answer)))
        }
    }
}

async fn scale(call: &Call<'_>, verb: &str, body: Bytes) -> Result<Response<Body>, Status> {
    let Target { kind, namespace, name, .. } = call.target;
    let shape = || shape(call, &kinds::SCALE);
    match verb {
        "get" => get(call).await,
        "update" => {
            let validation = decoding::validation(call.query, UPDATE_OPTIONS)?;
            let (new, warnings) = decoding::decode(&kinds::SCALE, &call.content_type, &body, validation)?;
            let dry_run = is_dry_run(call.query, &Value::Null, UPDATE_OPTIONS)?;
            let verb = |batch: &mut Batch<'_>| {
                api::scaled(batch, kind, namespace, name, &Scaling::Changed(&|_| Ok(new.clone())))
            };
            Ok(answer(shape(), write(call, dry_run, verb).await?, warnings))
        }
        "patch" => patch_scale(call, body).await,
        _ => Err(Status::method_not_allowed()),
    }
}

async fn patch_scale(call: &Call<'_>, body: Bytes) -> Result<Response<Body>, Status> {
    let Target { kind, namespace, name, .. } = call.target;
    let asked = PatchAsked::of(call)?;
    if asked.patch_type == PatchType::Apply {
        let (config, warnings) = asked.config(&kinds::SCALE, &body)?;
        let force = asked.force;
        let verb = |batch: &mut Batch<'_>| {
            api::scaled(batch, kind, namespace, name, &Scaling::Applied { config: &config, force })
        };
        let written = write(call, asked.dry_run, verb).await?;
        return Ok(answer(shape(call, &kinds::SCALE), written, warnings));
    }
    // As upstream, what a custom resource has is not merged strategically, and its Scale neither.
    let merged_as = if kind.custom.is_some() { kind } else { &kinds::SCALE };
    let verb = |batch: &mut Batch<'_>| {
        let warnings = std::cell::RefCell::new(Vec::new());
        let change = |old: &Value| {
            let mut patched = patch::patched(merged_as, asked.patch_type, old, &body)?;
            let shown = |new: &Value| patch::shown(asked.patch_type, &body, new);
            *warnings.borrow_mut() = schema::decode_patched(
                &kinds::SCALE,
                &mut patched.object,
                patched.duplicates,
                asked.validation,
                &shown,
            )?;
            Ok(patched.object)
        };
        let outcome = api::scaled(batch, kind, namespace, name, &Scaling::Changed(&change))?;
        batch.warnings.extend(warnings.into_inner());
        Ok(outcome)
    };
    let written = write(call, asked.dry_run, verb).await?;
    Ok(answer(shape(call, &kinds::SCALE), written, Vec::new()))
}

/// How objects of the kind are shown: that of the call's target, or its Scale.
fn shape(call: &Call<'_>, kind: &Kind) -> Shape {
    let include = call.query.get("includeObject").map_or("", String::as_str);
    let include = IncludeObject::from_parameter(include).unwrap_or(IncludeObject::Metadata);
    Shape::new(kind, call.form, include, call.server.api.now())
}

async fn get(call: &Call<'_>) -> Result<Response<Body>, Status> {
    let Target { kind, namespace, name, subresource } = call.target;
    if let Some(version) = call.query.get("resourceVersion").filter(|version| !matches!(version.as_str(), "" | "0")) {
        let (wanted, newest) = (api::resource_version(version)?, call.server.api.store.revision());
        if wanted > newest {
            return Err(Status::too_large_resource_version(wanted.0, newest.0));
        }
    }
    let entry = call
        .server
        .api
        .store
        .get(&api::key::object(kind, namespace, name))
        .ok_or_else(|| Status::not_found(kind, name))?;
    api::codec::is_open(&entry.value)?;
    let value = convert::shown(&call.server.api, kind, entry.value).await?;
    if subresource == "scale" {
        let scale = Bytes::from(object::print(&api::scale_of(kind, &api::codec::decode(&value)?)));
        return Ok(respond::json(200, shape(call, &kinds::SCALE).one(&scale)));
    }
    Ok(respond::json(200, shape(call, kind).one(&value)))
}

async fn list(call: &Call<'_>) -> Result<Response<Body>, Status> {
    let selection = Selection::new(&call.target.kind, &call.target.namespace, call.query)?;
    let options = ListOptions::new(call.query, &selection.prefix(), call.server.api.now())?;
    let mut list = api::list(&call.server.api.store, &selection, &options)?;
    convert::selected(&call.server.api, &selection, &mut list.items).await?;
    shape(call, &call.target.kind).list(list).map(respond::list)
}

fn watch(call: &Call<'_>) -> Result<Response<Body>, Status> {
    let Target { kind, namespace, name, .. } = call.target;
    let selection = match name.as_str() {
        "" => Selection::new(kind, namespace, call.query)?,
        name => Selection::one(kind, namespace, name, call.query)?,
    };
    let watch = Watch::open(&call.server.api.store, selection, call.query)?;
    let timeout = match call.query.get("timeoutSeconds").map(|text| text.parse::<u64>()) {
        Some(Ok(seconds)) if seconds > 0 => Duration::from_secs(seconds.min(MAX_WATCH)),
        Some(Err(_)) => return Err(Status::bad_request("timeoutSeconds: strconv.ParseInt: invalid syntax")),
        _ => {
            let mut spread = [0];
            (call.server.api.env.random)(&mut spread);
            MIN_WATCH + MIN_WATCH * u32::from(spread[0]) / 256
        }
    };
    call.server.counters.watches.fetch_add(1, Ordering::Relaxed);
    let sent = call.server.instruments.watch_events(&kind.group, &kind.version, &kind.plural);
    // Where etcd is silent a watch brings nothing: its client may ask another server (M2).
    if call.server.api.store.is_silent() {
        return Err(Status::store_is_silent(&call.server.api.store.trouble().unwrap_or_default()));
    }
    let ends = super::either(call.server.closing(), call.server.api.store.silent());
    let body = WatchBody::new(watch, shape(call, &call.target.kind), timeout, sent, ends);
    Ok(respond::watch(match convert::webhook(kind) {
        Some(_) => body.converting(call.server.api.clone()),
        None => body,
    }))
}

/// Carries out a verb in the name of the request's field manager.
async fn write(
    call: &Call<'_>,
    dry_run: bool,
    verb: impl Fn(&mut Batch<'_>) -> Result<Outcome, Status>,
) -> Result<Reply, Status> {
    let managed = |batch: &mut Batch<'_>| {
        batch.manager = Some(call.manager.clone());
        batch.requester = Some(call.requester.clone());
        batch.join(call.session.as_ref());
        batch.convert_with(call.conversions.as_ref());
        verb(batch)
    };
    describe(call, dry_run);
    let mut written = call.server.api.write(dry_run, managed).await?;
    written.body = convert::shown(&call.server.api, &call.target.kind, written.body).await?;
    Ok(written)
}

/// Tells those who are asked what the parameters say.
fn describe(call: &Call<'_>, dry_run: bool) {
    let Some(session) = &call.session else { return };
    let known = ["fieldManager", "fieldValidation"].into_iter();
    let fields = known.filter_map(|field| Some((field, call.query.get(field)?.clone())).filter(|(_, v)| !v.is_empty()));
    session.describe(Terms { dry_run, fields: fields.collect() });
}

/// The object of a body: read once for what is seen of it before the write, and only read again where the write is
/// prepared anew. A copy would cost as much, every time.
struct Read<'a> {
    call: &'a Call<'a>,
    body: &'a [u8],
    first: Mutex<Option<Value>>,
}

impl<'a> Read<'a> {
    fn new(call: &'a Call<'a>, body: &'a [u8], first: Value) -> Self {
        Self { call, body, first: Mutex::new(Some(first)) }
    }

    fn take(&self) -> Result<Value, Status> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        // Its parameters have passed before.
        first.map_or_else(|| Ok(decode(self.call, self.body, UPDATE_OPTIONS)?.0), Ok)
    }
}

async fn create(call: &Call<'_>, body: Bytes) -> Result<Response<Body>, Status> {
    let Target { kind, namespace, name, .. } = call.target;
    if !name.is_empty() {
        return Err(Status::method_not_allowed());
    }
    if kind.namespaced && namespace.is_empty() {
        return Err(Status::bad_request("an empty namespace may not be set during creation"));
    }
    let (object, warnings) = decode(call, &body, CREATE_OPTIONS)?;
    let dry_run = is_dry_run(call.query, &Value::Null, CREATE_OPTIONS)?;
    let read = Read::new(call, &body, object);
    let written = write(call, dry_run, |batch| {
        let mut object = read.take()?;
        object::ensure(&mut object, &["metadata"]).remove("managedFields");
        api::create(batch, kind, namespace, object)
    });
    let written = written.await?;
    Ok(answer(shape(call, kind), written, warnings))
}

async fn update(call: &Call<'_>, part: Part, body: Bytes) -> Result<Response<Body>, Status> {
    let Target { kind, namespace, name, .. } = call.target;
    let (object, warnings) = decode(call, &body, UPDATE_OPTIONS)?;
    let dry_run = is_dry_run(call.query, &Value::Null, UPDATE_OPTIONS)?;
    let read = Read::new(call, &body, object);
    let written = write(call, dry_run, |batch| api::update(batch, kind, namespace, name, part, read.take()?)).await?;
    Ok(answer(shape(call, kind), written, warnings))
}

/// What the parameters of a patch say.
struct PatchAsked {
    patch_type: PatchType,
    validation: FieldValidation,
    dry_run: bool,
    force: bool,
}

impl PatchAsked {
    fn of(call: &Call<'_>) -> Result<Self, Status> {
        let patch_type = decoding::patch_type(&call.content_type)?;
        let validation = decoding::validation(call.query, PATCH_OPTIONS)?;
        let dry_run = is_dry_run(call.query, &Value::Null, PATCH_OPTIONS)?;
        if patch_type != PatchType::Apply && call.query.get("force").is_some_and(|force| !force.is_empty()) {
            let why =
                "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch";
            return Err(Status::new(422, "Invalid", why));
        }
        if patch_type == PatchType::Apply && call.query.get("fieldManager").is_none_or(String::is_empty) {
            return Err(api::no_field_manager());
        }
        Ok(Self { patch_type, validation, dry_run, force: api::flag(call.query, "force") })
    }

    /// The configuration that is to be applied, with warnings.
    fn config(&self, kind: &Kind, body: &[u8]) -> Result<(Value, Vec<String>), Status> {
        let (config, found) = schema::decode_config(kind, body)?;
        let warnings = judge_config(kind, &config, found, self.validation)?;
        Ok((config, warnings))
    }
}

async fn patch(call: &Call<'_>, part: Part, body: Bytes) -> Result<Response<Body>, Status> {
    let Target { kind, namespace, name, .. } = call.target;
    let asked = PatchAsked::of(call)?;
    let PatchAsked { patch_type, validation, dry_run, force } = asked;
    if patch_type == PatchType::Apply {
        let (config, warnings) = asked.config(kind, &body)?;
        let written =
            write(call, dry_run, |batch| api::apply(batch, kind, namespace, name, part, &config, force)).await?;
        return Ok(answer(shape(call, kind), written, warnings));
    }
    let verb = |batch: &mut Batch<'_>| {
        let warnings = std::cell::RefCell::new(Vec::new());
        let outcome = api::patch(batch, kind, namespace, name, part, &|old| {
            let mut patched = patch::patched(kind, patch_type, old, &body)?;
            // A refusal's words are in the audit log, and no Secret is (X2).
            let shown = |new: &Value| match *kind == kinds::SECRET {
                true => String::new(),
                false => patch::shown(patch_type, &body, new),
            };
            *warnings.borrow_mut() =
                schema::decode_patched(kind, &mut patched.object, patched.duplicates, validation, &shown)?;
            Ok(patched.object)
        })?;
        batch.warnings.extend(warnings.into_inner());
        Ok(outcome)
    };
    let written = write(call, dry_run, verb).await?;
    Ok(answer(shape(call, kind), written, Vec::new()))
}

/// What a configuration to be applied has that it should not: unknown fields are refused however it is validated, what
/// stands twice is (as upstream) a matter of `fieldValidation`. Returns the warnings.
fn judge_config(
    kind: &Kind,
    config: &Value,
    found: Vec<String>,
    validation: FieldValidation,
) -> Result<Vec<String>, Status> {
    let unknown = |message: &String| message.strip_prefix("unknown field \"")?.strip_suffix('"').map(str::to_owned);
    let paths: Vec<String> = found.iter().filter_map(unknown).collect();
    if !paths.is_empty() {
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        return Err(mainstay_api::apply::undeclared(kind, config, &paths));
    }
    match validation {
        FieldValidation::Strict if !found.is_empty() => {
            Err(Status::bad_request(format!("error strict decoding patch: {}", found.join(", "))))
        }
        FieldValidation::Warn => Ok(found),
        _ => Ok(Vec::new()),
    }
}

async fn delete(call: &Call<'_>, body: Bytes) -> Result<Response<Body>, Status> {
    let Target { kind, namespace, name, .. } = call.target;
    let (options, dry_run) = delete_options(call, &body)?;
    let mut written = write(call, dry_run, |batch| api::delete(batch, kind, namespace, name, &options)).await?;
    if let Some(converted) = shape(call, &call.target.kind).converted(&written.body) {
        written.body = converted;
    }
    written.warnings.extend(api::deletion_warning(kind, &options));
    Ok(respond::reply(written))
}

/// Deletes what is selected, one by one, each as a `DELETE` of its own, as long as it is what was found; answers what
/// was there.
async fn delete_collection(call: &Call<'_>, body: Bytes) -> Result<Response<Body>, Status> {
    let Target { kind, namespace, .. } = call.target;
    if kind.namespaced && namespace.is_empty() {
        return Err(Status::method_not_allowed());
    }
    let (options, dry_run) = delete_options(call, &body)?;
    let selection = Selection::new(kind, namespace, call.query)?;
    let mut found = api::list(
        &call.server.api.store,
        &selection,
        &ListOptions::new(call.query, &selection.prefix(), call.server.api.now())?,
    )?;
    if selection.needs_conversion() {
        convert::selected(&call.server.api, &selection, &mut found.items).await?;
    }
    for entry in &found.items {
        let session = session(call.server, &call.requester);
        let of_one = Call { session: session.clone(), ..call.clone() };
        let delete = |batch: &mut Batch<'_>| {
            batch.requester = Some(call.requester.clone());
            api::delete_listed(batch, &selection, entry, &options)
        };
        describe(&of_one, dry_run);
        let deleted = call.server.api.write_asking(session.as_ref(), dry_run, delete).await;
        if let Err(status) = deleted
            && status.code != 404
        {
            return Err(status);
        }
    }
    convert::all(&call.server.api, kind, &mut found.items).await?;
    let mut response = shape(call, &call.target.kind).list(found).map(respond::list)?;
    respond::warnings(&mut response, api::deletion_warning(kind, &options).as_slice());
    Ok(response)
}

/// The written object in the form that was asked for.
fn answer(shape: Shape, mut written: Reply, warnings: Vec<String>) -> Response<Body> {
    written.warnings.extend(warnings);
    if !shape.is_plain() {
        written.body = shape.one(&written.body);
    }
    respond::reply(written)
}

fn decode(call: &Call<'_>, body: &[u8], options: &str) -> Result<(Value, Vec<String>), Status> {
    let validation = decoding::validation(call.query, options)?;
    decoding::decode(&call.target.kind, &call.content_type, body, validation)
}

/// What the parameters of each verb are called.
const CREATE_OPTIONS: &str = "CreateOptions";
const UPDATE_OPTIONS: &str = "UpdateOptions";
const PATCH_OPTIONS: &str = "PatchOptions";
const DELETE_OPTIONS: &str = "DeleteOptions";

/// `dryRun=All`, as a parameter or in the options of the body, which are of this type; any other value is refused.
fn is_dry_run(query: &Query, options: &Value, type_: &str) -> Result<bool, Status> {
    let not_a_list = || Status::bad_request("json: cannot unmarshal into Go struct field .dryRun of type []string");
    let mut asked: Vec<&str> = query.get("dryRun").map(String::as_str).into_iter().collect();
    match options.get("dryRun") {
        None | Some(Value::Null) => {}
        Some(Value::Array(all)) => {
            for word in all {
                asked.push(word.as_str().ok_or_else(not_a_list)?);
            }
        }
        Some(_) => return Err(not_a_list()),
    }
    asked.retain(|word| !word.is_empty());
    match asked.iter().find(|word| **word != "All") {
        None => Ok(!asked.is_empty()),
        Some(other) => Err(Status::new(
            422,
            "Invalid",
            format!(
                "{type_}.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: {other:?}: supported values: \
                    \"All\""
            ),
        )),
    }
}

/// `DeleteOptions` out of the body, else out of the parameters.
fn delete_options(call: &Call<'_>, body: &[u8]) -> Result<(DeleteOptions, bool), Status> {
    let posted =
        if body.iter().all(u8::is_ascii_whitespace) { Value::Null } else { decoding::parse(&call.content_type, body)? };
    let mut options = DeleteOptions::from_json(&posted)?;
    if posted.is_null() {
        let text = |name: &str| call.query.get(name).filter(|value| !value.is_empty());
        options.grace = match text("gracePeriodSeconds").map(|text| text.parse()) {
            Some(Err(_)) => return Err(Status::bad_request("gracePeriodSeconds: strconv.ParseInt: invalid syntax")),
            Some(Ok(seconds)) => Some(seconds),
            None => None,
        };
        options.propagation = text("propagationPolicy").cloned();
        options.orphan_dependents = text("orphanDependents").map(|text| is_true(text));
    }
    let dry_run = is_dry_run(call.query, &posted, DELETE_OPTIONS)?;
    Ok((options, dry_run))
}

/// The pod that a stream is about, if it can be reached.
pub fn pod_of(server: &Server, target: &Target) -> Result<Value, Status> {
    server.api.batch().must_get(&kinds::POD, &target.namespace, &target.name)
}
