//! Credentials that are asked for: certificates by CertificateSigningRequest, and bootstrap tokens.
//!
//! One task follows both in the store (tokens of service accounts in Secrets have another, [`accounts`]): it approves
//! what kubelets may have, signs what is approved, takes away what is old, and keeps the signatures of `cluster-info`.
//! What is to be done with one request is decided by [`next`], which is pure; the key that signs is only here.

pub mod accounts;
mod addresses;
mod open;
pub mod request;
pub mod token;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use mainstay_api::{Kind, ObjectKey, Status, kinds, object};
use mainstay_client::bootstrap_token;
use mainstay_store::{Event, WatchError, Watcher};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::api::{self, Api, Batch, Body, DeleteOptions, Outcome, Part, codec, key};
use crate::auth::User;
use crate::authorize::{Attributes, Authorizer};
use crate::driver::events;
use crate::pki::Pki;
use crate::presence;
use addresses::Claimed;
pub use open::Open;
use request::{Asked, KUBELET_CLIENT, KUBELET_SERVING, has};

/// How long an approved request stays.
const APPROVED: SignedDuration = SignedDuration::from_hours(1);
/// How long a denied or failed one stays.
const DENIED: SignedDuration = SignedDuration::from_hours(1);
/// How long one that nobody has decided on stays.
const PENDING: SignedDuration = SignedDuration::from_hours(24);
/// The longest sleep without a look at the clock.
const MAX_SLEEP: Duration = Duration::from_secs(600);
/// The pause after a write that failed.
const PAUSE: SignedDuration = SignedDuration::from_secs(1);
/// The first pause after a look at a request that is not to be approved yet.
const REVIEW_AGAIN: SignedDuration = SignedDuration::from_secs(10);
const GROUP: &str = "certificates.k8s.io";

/// What is to be done with a request.
#[derive(Debug, PartialEq)]
pub enum Next {
    /// Nothing before this time; at it the request is taken away.
    Keep(Timestamp),
    /// Its time is over.
    Remove,
    /// A kubelet asks for itself, or for a new node; whether it may is the authorizer's to say.
    Review(Asked),
    /// A kubelet asks for its server's certificate; whether the names in it are its own is to be seen.
    ReviewServing(Asked),
    /// It is approved and is to be signed.
    Sign(Asked),
    /// It is approved, and its signer does not give that.
    Fail(String),
}

/// What is to be done with a request now.
pub fn next(request: &Value, now: Timestamp) -> Next {
    let time = |text: &str| text.parse::<Timestamp>().ok();
    let since = |condition: &str| {
        let all = object::at(request, &["status", "conditions"]).and_then(Value::as_array)?;
        let found = all.iter().find(|found| object::text(found, &["type"]) == condition)?;
        time(object::text(found, &["lastUpdateTime"])).or_else(|| time(object::text(found, &["lastTransitionTime"])))
    };
    let created = time(object::text(request, &["metadata", "creationTimestamp"])).unwrap_or(now);
    let (begin, stays) = if has(request, "Denied") || has(request, "Failed") {
        (since("Denied").or_else(|| since("Failed")).unwrap_or(created), DENIED)
    } else if has(request, "Approved") {
        (since("Approved").unwrap_or(created), APPROVED)
    } else {
        (created, PENDING)
    };
    let end = begin.checked_add(stays).unwrap_or(Timestamp::MAX);
    if now >= end {
        return Next::Remove;
    }
    let is_open = !has(request, "Denied")
        && !has(request, "Failed")
        && object::text(request, &["status", "certificate"]).is_empty();
    if !is_open || !request::is_ours(request) {
        return Next::Keep(end);
    }
    let asked = request::read(request).and_then(|asked| {
        request::suits(request, &asked)?;
        Ok(asked)
    });
    match (has(request, "Approved"), asked) {
        (true, Ok(asked)) => Next::Sign(asked),
        (true, Err(why)) => Next::Fail(why.to_owned()),
        (false, Ok(asked)) if object::text(request, &["spec", "signerName"]) == KUBELET_CLIENT => Next::Review(asked),
        (false, Ok(asked)) if object::text(request, &["spec", "signerName"]) == KUBELET_SERVING => {
            Next::ReviewServing(asked)
        }
        (false, _) => Next::Keep(end),
    }
}

/// Fills in who asks: whatever the client wrote there is not believed.
pub fn identify(batch: &Batch<'_>, kind: &Kind, object: &mut Value) {
    if !is_request(kind) {
        return;
    }
    let user = batch.requester.as_ref().map(|requester| requester.user.clone()).unwrap_or_default();
    let spec = object::ensure(object, &["spec"]);
    for field in ["username", "uid", "groups", "extra"] {
        spec.remove(field);
    }
    if user.name.is_empty() {
        return;
    }
    spec.insert("username".to_owned(), user.name.as_str().into());
    spec.insert("groups".to_owned(), json!(user.groups));
    if !user.uid.is_empty() {
        spec.insert("uid".to_owned(), user.uid.as_str().into());
    }
    if !user.extra.is_empty() {
        spec.insert("extra".to_owned(), json!(user.extra));
    }
}

/// Refuses a decision on a request, or a certificate for it, by whoever may not `approve` or `sign` for its signer.
pub fn check(batch: &Batch<'_>, kind: &Kind, new: &Value, old: Option<&Value>) -> Result<(), Status> {
    let (true, Some(requester)) = (is_request(kind), &batch.requester) else { return Ok(()) };
    let (name, signer) = (object::name(new), object::text(new, &["spec", "signerName"]));
    let Some(old) = old else {
        let asked = request::read(new).unwrap_or_default();
        if signer == request::CLIENT && asked.subject.groups.iter().any(|group| group == crate::authorize::MASTERS) {
            let why = "use of kubernetes.io/kube-apiserver-client signer with system:masters group is not allowed";
            return Err(Status::forbidden(kind, name, why));
        }
        return batch.requests.may_make(&requester.user.name);
    };
    let condition = |request: &Value, kind: &str| {
        let all = object::at(request, &["status", "conditions"]).and_then(Value::as_array).into_iter().flatten();
        all.into_iter().find(|found| object::text(found, &["type"]) == kind).cloned()
    };
    let changes = |kind: &str| condition(new, kind) != condition(old, kind);
    let certificate = ["status", "certificate"];
    let verb = if changes("Approved") || changes("Denied") {
        "approve"
    } else if changes("Failed") || object::text(new, &certificate) != object::text(old, &certificate) {
        "sign"
    } else {
        return Ok(());
    };
    let domain = signer.split_once('/').map_or(signer, |(domain, _)| domain);
    let may = [signer.to_owned(), format!("{domain}/*")].into_iter().any(|name| {
        let what = Attributes {
            verb: verb.to_owned(),
            group: GROUP.to_owned(),
            resource: "signers".to_owned(),
            name,
            ..Attributes::default()
        };
        requester.authorizer.allows(&requester.user, &what).is_ok()
    });
    if may {
        return Ok(());
    }
    let why = format!("user not permitted to {verb} requests with signerName {signer:?}");
    Err(Status::forbidden(kind, name, &why))
}

fn is_request(kind: &Kind) -> bool {
    kind.group == GROUP && kind.plural == "certificatesigningrequests"
}

/// The task's tools.
pub struct Issuer {
    /// The pipeline.
    pub api: Api,
    /// Who may have what.
    pub authorizer: Arc<Authorizer>,
    /// What signs.
    pub pki: Arc<Pki>,
    /// What this server is reached by; no node's certificate may have it.
    pub names: Vec<String>,
    /// What Nodes say of their addresses.
    nodes: Claimed,
}

/// What is thought of a request that nobody has decided on.
#[derive(Debug, PartialEq)]
enum Reviewed {
    /// It is approved, with these words.
    Approved(&'static str),
    /// It waits for a person.
    Open,
    /// It waits for a person because of this, which the Node of this uid is told.
    Refused { why: String, uid: String },
}

/// What the task hears.
enum Heard {
    /// Of a request.
    Request(Event),
    /// Of a bootstrap token, or of `cluster-info`.
    Tokens,
    /// It is time for something.
    Due,
    Lagged,
    Closed,
}

impl Issuer {
    /// One of this server, which is reached by these names.
    pub fn new(api: Api, authorizer: Arc<Authorizer>, pki: Arc<Pki>, names: Vec<String>) -> Self {
        let nodes = Claimed::of(&api.store);
        Self { api, authorizer, pki, names, nodes }
    }

    /// Runs until the server stops. A change is a look at what has changed and at nothing else: whoever makes many
    /// requests does not make others wait (X7).
    pub async fn run(self: Arc<Self>, mut closing: watch::Receiver<bool>) {
        let Some(kind) = kinds::find(GROUP, "v1", "certificatesigningrequests") else { return };
        let requests = key::prefix(&kind, None);
        let tokens = format!("/core/secrets/{}/{}", bootstrap_token::NAMESPACE, bootstrap_token::PREFIX);
        let cluster_info = key::object(&kinds::CONFIG_MAP, "kube-public", "cluster-info");
        while !*closing.borrow() {
            let revision = self.api.store.revision();
            let open = |prefix: bytes::Bytes| self.api.store.watch(prefix, revision);
            let prefixes = [requests.clone(), tokens.clone().into(), cluster_info.clone()];
            let Ok(mut watchers) = prefixes.map(open).into_iter().collect::<Result<Vec<Watcher>, _>>() else { return };
            let mut schedule = Schedule::default();
            self.look_at_all(&kind, &mut schedule).await;
            loop {
                let sleep = schedule.sleep(self.api.now());
                let heard = tokio::select! {
                    heard = any(&mut watchers) => heard,
                    () = tokio::time::sleep(sleep) => Heard::Due,
                    _ = closing.wait_for(|closing| *closing) => Heard::Closed,
                };
                match heard {
                    Heard::Request(event) => self.hear(&kind, &requests, &event, &mut schedule).await,
                    Heard::Tokens => self.look_at_tokens(&mut schedule).await,
                    Heard::Due => self.look_at_due(&kind, &mut schedule).await,
                    Heard::Lagged => break,
                    Heard::Closed => return,
                }
            }
        }
    }

    /// Looks at everything once.
    async fn look_at_all(&self, kind: &Kind, schedule: &mut Schedule) {
        for request in self.stored(&key::prefix(kind, None)) {
            self.look_at(kind, &request, schedule).await;
            tokio::task::yield_now().await;
        }
        self.look_at_tokens(schedule).await;
    }

    /// Looks at the request that an event is about.
    async fn hear(&self, kind: &Kind, prefix: &[u8], event: &Event, schedule: &mut Schedule) {
        let Some(name) = event.key.strip_prefix(prefix).and_then(|name| std::str::from_utf8(name).ok()) else { return };
        if event.deleted {
            return schedule.set(name, None);
        }
        match codec::decode(&event.value) {
            Ok(request) => self.look_at(kind, &request, schedule).await,
            Err(_) => schedule.set(name, None),
        }
    }

    /// Looks at what it is time for.
    async fn look_at_due(&self, kind: &Kind, schedule: &mut Schedule) {
        for name in schedule.take_due(self.api.now()) {
            if name.is_empty() {
                self.look_at_tokens(schedule).await;
            } else if let Some(entry) = self.api.store.get(&key::object(kind, "", &name))
                && let Ok(request) = codec::decode(&entry.value)
            {
                self.look_at(kind, &request, schedule).await;
            }
        }
    }

    async fn look_at(&self, kind: &Kind, request: &Value, schedule: &mut Schedule) {
        let (name, now) = (object::name(request), self.api.now());
        let tended = self.tend(kind, request, now).await;
        if let Err(status) = &tended {
            tracing::warn!(request = name, error = %status.message, "a certificate request could not be tended");
        }
        schedule.set(name, tended.unwrap_or_else(|_| now.checked_add(PAUSE).ok()));
    }

    async fn look_at_tokens(&self, schedule: &mut Schedule) {
        let now = self.api.now();
        let tended = self.tend_tokens(now).await;
        if let Err(status) = &tended {
            tracing::warn!(error = %status.message, "bootstrap tokens could not be tended");
        }
        schedule.set("", tended.unwrap_or_else(|_| now.checked_add(PAUSE).ok()));
    }

    fn stored(&self, prefix: &[u8]) -> Vec<Value> {
        let page = self.api.store.range(prefix, None, usize::MAX, None);
        page.map(|page| page.entries.iter().filter_map(|entry| codec::decode(&entry.value).ok()).collect())
            .unwrap_or_default()
    }

    async fn tend(&self, kind: &Kind, request: &Value, now: Timestamp) -> Result<Option<Timestamp>, Status> {
        let condition = |type_: &str, reason: &str, message: &str| {
            let at = mainstay_api::time::rfc3339(now);
            json!({ "type": type_, "status": "True", "reason": reason, "message": message, "lastUpdateTime": at,
                "lastTransitionTime": at })
        };
        match next(request, now) {
            Next::Keep(end) => Ok(Some(end)),
            Next::Remove => self.remove(kind, request).await.map(|()| None),
            reviewed @ (Next::Review(_) | Next::ReviewServing(_)) => {
                let verdict = match &reviewed {
                    Next::Review(asked) => self.review(request, asked).map_or(Reviewed::Open, Reviewed::Approved),
                    Next::ReviewServing(asked) => self.review_serving(asked)?,
                    _ => Reviewed::Open,
                };
                match (verdict, &reviewed) {
                    (Reviewed::Approved(message), _) => {
                        let approved = condition("Approved", "AutoApproved", message);
                        self.write_status(kind, request, |status| add(status, approved.clone())).await?;
                    }
                    (Reviewed::Refused { why, uid }, Next::ReviewServing(asked)) => {
                        self.tell(request, asked, &uid, &why).await?;
                    }
                    _ => {}
                }
                // Others' changes may make it its own: another look, ever more rarely.
                Ok(later(request, now))
            }
            Next::Fail(why) => {
                let failed = condition("Failed", "SignerValidationFailure", &why);
                self.write_status(kind, request, |status| add(status, failed.clone())).await.map(|()| None)
            }
            Next::Sign(asked) => {
                let seconds = object::at(request, &["spec", "expirationSeconds"]).and_then(Value::as_i64);
                let serves = object::text(request, &["spec", "signerName"]) == request::KUBELET_SERVING;
                match self.pki.sign(&asked, serves, seconds, now) {
                    Ok(pem) => {
                        use base64::Engine as _;
                        let text = base64::engine::general_purpose::STANDARD.encode(pem);
                        self.write_status(kind, request, |status| {
                            object::ensure(status, &[]).insert("certificate".to_owned(), text.as_str().into());
                        })
                        .await
                        .map(|()| None)
                    }
                    Err(error) => {
                        let failed = condition("Failed", "SigningError", &error.to_string());
                        self.write_status(kind, request, |status| add(status, failed.clone())).await.map(|()| None)
                    }
                }
            }
        }
    }

    /// Whether whoever asked may have it without a person's word; then what is noted.
    fn review(&self, request: &Value, asked: &Asked) -> Option<&'static str> {
        let groups = object::at(request, &["spec", "groups"]).and_then(Value::as_array).into_iter().flatten();
        let user = User {
            name: object::text(request, &["spec", "username"]).to_owned(),
            groups: groups.filter_map(Value::as_str).map(str::to_owned).collect(),
            uid: object::text(request, &["spec", "uid"]).to_owned(),
            ..User::default()
        };
        let may = |subresource: &str| {
            let what = Attributes {
                verb: "create".to_owned(),
                group: GROUP.to_owned(),
                resource: "certificatesigningrequests".to_owned(),
                subresource: subresource.to_owned(),
                ..Attributes::default()
            };
            self.authorizer.allows(&user, &what).is_ok()
        };
        if user.name == asked.subject.name && may("selfnodeclient") {
            return Some("Auto approving self kubelet client certificate after SubjectAccessReview.");
        }
        may("nodeclient").then_some("Auto approving kubelet client certificate after SubjectAccessReview.")
    }

    /// Whether every name in a kubelet's serving certificate is its own: the Node's name, and addresses that the Node
    /// has and that are nobody's else for certain: no server's, and no other Node's. What a Node says of itself is its
    /// own word (X1); others wait for a person's, and are told why.
    ///
    /// That the certificate is shown by no other node's server is seen by who asks it: the subject is the node.
    /// Differs: upstream leaves all of these to people.
    fn review_serving(&self, asked: &Asked) -> Result<Reviewed, Status> {
        let Some(name) = asked.subject.name.strip_prefix("system:node:") else { return Ok(Reviewed::Open) };
        let Some(node) = self.api.batch().get(&kinds::NODE, "", name)? else { return Ok(Reviewed::Open) };
        let own = addresses::of_node(&node);
        let mut servers: BTreeSet<IpAddr> = self.names.iter().filter_map(|name| name.parse().ok()).collect();
        servers.extend(presence::known(&self.api).iter().map(SocketAddr::ip));
        let settings = &self.api.settings;
        let is_usable = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => {
                !ip.is_loopback() && !settings.service_cidr.contains(ip) && !settings.cluster_cidr.contains(ip)
            }
            IpAddr::V6(ip) => !ip.is_loopback(),
        };
        let against = |ip: &IpAddr| {
            if !own.contains(ip) {
                return Some(format!("{ip} is none of its addresses"));
            }
            if !is_usable(*ip) {
                return Some(format!("{ip} is no address that a node may have"));
            }
            if servers.contains(ip) {
                return Some(format!("{ip} is the address of an API server"));
            }
            let other = self.nodes.by_another(*ip, name)?;
            Some(format!("the Node {other} says that it has the address {ip} too"))
        };
        // A name that the API server is called by is no node's, whatever Nodes are called.
        let is_servers = |dns: &str| dns.starts_with("kubernetes.") || self.names.iter().any(|own| own == dns);
        let is_foreign = |dns: &&String| *dns != name || is_servers(dns);
        let foreign = asked.names.iter().find(is_foreign).map(|dns| format!("{dns} is not its name alone"));
        Ok(match asked.addresses.iter().find_map(against).or(foreign) {
            None => Reviewed::Approved("Auto approving kubelet server certificate: its names are the Node's own."),
            Some(why) => Reviewed::Refused { why, uid: object::uid(&node).to_owned() },
        })
    }

    /// Tells why a node's certificate waits for a person: its server shows the one of before, or none.
    async fn tell(&self, request: &Value, asked: &Asked, uid: &str, why: &str) -> Result<(), Status> {
        let node = asked.subject.name.strip_prefix("system:node:").unwrap_or_default();
        let name = object::name(request);
        let message = format!(
            "its serving certificate is not given without a person's word (kubectl certificate approve {name}): {why}"
        );
        tracing::warn!(node, request = name, why, "a node's serving certificate waits for a person");
        let event = mainstay_logic::Event {
            kind: kinds::NODE.clone(),
            key: ObjectKey::new("", node),
            uid: uid.to_owned(),
            warning: true,
            reason: "ServingCertificateNotApproved",
            message,
        };
        let told = self.api.write(false, |batch| {
            events::record(batch, "certificate-controller", &event);
            Ok(Outcome { code: 200, body: Body::Value(Value::Null) })
        });
        told.await.map(|_| ())
    }

    /// Changes the status of the request as it was seen; one that has changed since is looked at again.
    async fn write_status(&self, kind: &Kind, request: &Value, change: impl Fn(&mut Value)) -> Result<(), Status> {
        let (name, version) = (object::name(request), object::resource_version(request));
        let written = self.api.write(false, |batch| {
            let Some(mut new) = batch.get(kind, "", name)?.filter(|new| object::resource_version(new) == version)
            else {
                return Ok(Outcome { code: 200, body: Body::Value(Value::Null) });
            };
            change(object::ensure(&mut new, &[]).entry("status").or_insert_with(|| json!({})));
            let op = batch.put(kind, new)?;
            Ok(Outcome { code: 200, body: Body::Op(op) })
        });
        written.await.map(|_| ())
    }

    async fn remove(&self, kind: &Kind, object: &Value) -> Result<(), Status> {
        let options = DeleteOptions { uid: Some(object::uid(object).to_owned()), ..DeleteOptions::default() };
        let (namespace, name) = (object::namespace(object), object::name(object));
        match self.api.write(false, |batch| api::delete(batch, kind, namespace, name, &options)).await {
            Err(status) if status.code != 404 && status.code != 409 => Err(status),
            _ => Ok(()),
        }
    }

    /// Takes away tokens whose time is over, and keeps the signatures of `cluster-info`.
    async fn tend_tokens(&self, now: Timestamp) -> Result<Option<Timestamp>, Status> {
        let prefix = format!("/core/secrets/{}/{}", bootstrap_token::NAMESPACE, bootstrap_token::PREFIX);
        let secrets = self.stored(prefix.as_bytes());
        let mut next = None;
        for secret in &secrets {
            match token::expiry(secret) {
                Some(end) if now >= end => self.remove(&kinds::SECRET, secret).await?,
                Some(end) => next = Some(next.map_or(end, |next: Timestamp| next.min(end))),
                None => {}
            }
        }
        let (namespace, name) = ("kube-public", "cluster-info");
        let Some(entry) = self.api.store.get(&key::object(&kinds::CONFIG_MAP, namespace, name)) else {
            return Ok(next);
        };
        let info = codec::decode(&entry.value)?;
        let wanted = signed(&info, &secrets, now);
        if wanted != info {
            let change = |old: &Value| Ok(signed(old, &secrets, now));
            let write =
                |batch: &mut Batch<'_>| api::patch(batch, &kinds::CONFIG_MAP, namespace, name, Part::Main, &change);
            self.api.write(false, write).await?;
        }
        Ok(next)
    }
}

/// `cluster-info` with the signatures that it is to have.
fn signed(info: &Value, secrets: &[Value], now: Timestamp) -> Value {
    let mut new = info.clone();
    let signatures = token::signatures(secrets, object::text(info, &["data", "kubeconfig"]), now);
    if let Some(Value::Object(data)) = new.get_mut("data") {
        data.retain(|name, _| !name.starts_with("jws-kubeconfig-"));
        data.extend(signatures);
    }
    new
}

fn add(status: &mut Value, condition: Value) {
    let all = object::ensure(status, &[]).entry("conditions").or_insert_with(|| json!([]));
    if let Some(all) = all.as_array_mut() {
        all.push(condition);
    }
}

/// When to look again at a request that is not approved yet: after as long as it is old, and when its time is over.
fn later(request: &Value, now: Timestamp) -> Option<Timestamp> {
    let created = object::text(request, &["metadata", "creationTimestamp"]).parse::<Timestamp>().unwrap_or(now);
    let pause = now.duration_since(created).max(REVIEW_AGAIN);
    Some(now.checked_add(pause).ok()?.min(created.checked_add(PENDING).ok()?))
}

/// When it is time for what: names of requests, and the empty name for the tokens.
#[derive(Default)]
struct Schedule {
    times: BTreeMap<String, Timestamp>,
    order: BTreeSet<(Timestamp, String)>,
}

impl Schedule {
    fn set(&mut self, name: &str, at: Option<Timestamp>) {
        if let Some(before) = self.times.remove(name) {
            self.order.remove(&(before, name.to_owned()));
        }
        if let Some(at) = at {
            self.times.insert(name.to_owned(), at);
            self.order.insert((at, name.to_owned()));
        }
    }

    /// For what it is time; it is forgotten until it is set anew.
    fn take_due(&mut self, now: Timestamp) -> Vec<String> {
        let due: Vec<String> =
            self.order.iter().take_while(|(at, _)| *at <= now).map(|(_, name)| name.clone()).collect();
        due.iter().for_each(|name| self.set(name, None));
        due
    }

    /// How long there is nothing to do.
    fn sleep(&self, now: Timestamp) -> Duration {
        self.order.first().map_or(MAX_SLEEP, |(at, _)| {
            Duration::try_from(at.duration_since(now))
                .unwrap_or(Duration::ZERO)
                .clamp(Duration::from_millis(1), MAX_SLEEP)
        })
    }
}

/// The next change that any of the watchers sees; the first one's are the requests'.
async fn any(watchers: &mut [Watcher]) -> Heard {
    std::future::poll_fn(|cx| {
        for (place, watcher) in watchers.iter_mut().enumerate() {
            match watcher.poll_next(cx) {
                Poll::Ready(Ok(event)) if place == 0 => return Poll::Ready(Heard::Request(event)),
                Poll::Ready(Ok(_)) => return Poll::Ready(Heard::Tokens),
                Poll::Ready(Err(WatchError::Lagged { .. })) => return Poll::Ready(Heard::Lagged),
                Poll::Ready(Err(WatchError::Closed)) => return Poll::Ready(Heard::Closed),
                Poll::Pending => {}
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;
    use request::tests::asking;

    fn at(minutes: i64) -> Timestamp {
        let begin: Timestamp = "2030-01-01T00:00:00Z".parse().expect("a time");
        begin.checked_add(SignedDuration::from_mins(minutes)).expect("in range")
    }

    #[test]
    fn a_request_is_decided_on_signed_and_taken_away_in_its_time() {
        let client = ["client auth", "digital signature"];
        let mut request = asking(KUBELET_CLIENT, "system:node:a", &["system:nodes"], &[], &client);
        assert!(matches!(next(&request, at(0)), Next::Review(asked) if asked.subject.name == "system:node:a"));
        assert_eq!(next(&request, at(24 * 60)), Next::Remove);
        request["status"] = json!({ "conditions": [{ "type": "Approved", "status": "True",
            "lastUpdateTime": "2030-01-01T00:10:00Z" }] });
        assert!(matches!(next(&request, at(11)), Next::Sign(_)));
        request["status"]["certificate"] = json!("abc");
        assert_eq!(next(&request, at(11)), Next::Keep(at(70)));
        assert_eq!(next(&request, at(70)), Next::Remove);
        let mut wrong = asking(KUBELET_CLIENT, "jane", &["system:nodes"], &[], &client);
        assert_eq!(next(&wrong, at(0)), Next::Keep(at(24 * 60)));
        wrong["status"] = request["status"].clone();
        wrong["status"]["certificate"] = json!("");
        assert!(matches!(next(&wrong, at(11)), Next::Fail(_)));
        wrong["status"]["conditions"] =
            json!([{ "type": "Denied", "status": "True", "lastUpdateTime": "2030-01-01T00:10:00Z" }]);
        assert_eq!(next(&wrong, at(11)), Next::Keep(at(70)));
        let person = asking(request::CLIENT, "jane", &[], &[], &client);
        assert_eq!(next(&person, at(0)), Next::Keep(at(24 * 60)));
    }
    /// What a Node says of its addresses is its own word: a server's, and another Node's, are not its (X1, M4).
    #[tokio::test]
    async fn x1_a_node_has_no_serving_certificate_with_the_address_of_a_server_or_of_another_node() {
        let cluster = crate::api::tests::Cluster::new();
        let folder = tempfile::tempdir().expect("a folder");
        cluster.create(&kinds::NAMESPACE, json!({ "metadata": { "name": "kube-system" } })).expect("made");
        let node = |name: &str, address: &str| {
            json!({ "metadata": { "name": name },
                "status": { "addresses": [{ "type": "InternalIP", "address": address }] } })
        };
        for (name, address) in [("a", "192.0.2.1"), ("b", "192.0.2.2"), ("c", "192.0.2.3"), ("d", "192.0.2.4")] {
            cluster.create(&kinds::NODE, node(name, address)).expect("made");
        }
        for (name, address) in [("twin", "192.0.2.4"), ("x", "192.0.2.9")] {
            cluster.create(&kinds::NODE, node(name, address)).expect("made");
        }
        let lease = json!({ "metadata": { "name": "mainstay-server-192.0.2.2-6443", "namespace": "kube-system",
            "annotations": { presence::ADDRESS: "192.0.2.2:6443" } } });
        cluster.write(|batch| api::create(batch, &kinds::LEASE, "kube-system", lease.clone())).expect("made");
        let listed = json!({ "metadata": { "name": crate::bootstrap::SETTINGS, "namespace": "kube-system" },
            "data": { "servers": "192.0.2.1:6443,192.0.2.9:6443" } });
        cluster.write(|batch| api::create(batch, &kinds::CONFIG_MAP, "kube-system", listed.clone())).expect("made");
        let now = at(0);
        let issuer = Issuer::new(
            cluster.api.clone(),
            Arc::new(Authorizer::new(&cluster.api.store).expect("rules")),
            Arc::new(Pki::open(folder.path(), now).expect("keys")),
            vec!["localhost".to_owned(), "192.0.2.1".to_owned()],
        );
        let table = [
            ("c", "192.0.2.3", ""),
            ("c", "192.0.2.2", "192.0.2.2 is none of its addresses"),
            ("a", "192.0.2.1", "192.0.2.1 is the address of an API server"),
            ("b", "192.0.2.2", "192.0.2.2 is the address of an API server"),
            ("x", "192.0.2.9", "192.0.2.9 is the address of an API server"),
            ("d", "192.0.2.4", "the Node twin says that it has the address 192.0.2.4 too"),
            ("twin", "192.0.2.4", "the Node d says that it has the address 192.0.2.4 too"),
        ];
        for (name, address, against) in table {
            let asked = Asked {
                subject: crate::subject::Subject { name: format!("system:node:{name}"), ..Default::default() },
                addresses: vec![address.parse().expect("an address")],
                names: vec![name.to_owned()],
                ..Asked::default()
            };
            match issuer.review_serving(&asked).expect("read") {
                Reviewed::Approved(_) => assert_eq!(against, "", "{name} {address}"),
                Reviewed::Refused { why, .. } => assert_eq!(why, against, "{name} {address}"),
                Reviewed::Open => panic!("{name} {address}"),
            }
        }
        // The Node that is in the way is not silently so, and one that lets go of the address is not.
        let asked = Asked {
            subject: crate::subject::Subject { name: "system:node:d".to_owned(), ..Default::default() },
            addresses: vec!["192.0.2.4".parse().expect("an address")],
            ..Asked::default()
        };
        let request = json!({ "metadata": { "name": "csr-d" } });
        issuer.tell(&request, &asked, "u", "the Node twin says so").await.expect("told");
        let told = cluster.api.store.range(b"/core/events/default/d.", None, 10, None).expect("listed").entries;
        let event: Value = serde_json::from_slice(&told[0].value).expect("JSON");
        let message = event["message"].as_str().expect("a message");
        assert!(message.contains("kubectl certificate approve csr-d): the Node twin says so"), "{message}");
        assert_eq!((&event["reason"], &event["type"]), (&json!("ServingCertificateNotApproved"), &json!("Warning")));
        let elsewhere = json!({ "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.5" }] } });
        cluster.merge(&kinds::NODE, "twin", api::Part::Status, elsewhere).expect("moved");
        assert!(matches!(issuer.review_serving(&asked).expect("read"), Reviewed::Approved(_)));
        cluster.write(|batch| api::delete(batch, &kinds::NODE, "", "d", &DeleteOptions::default())).expect("deleted");
        assert_eq!(issuer.review_serving(&asked).expect("read"), Reviewed::Open);
    }

    #[test]
    fn x7_only_what_it_is_time_for_is_looked_at() {
        let mut schedule = Schedule::default();
        assert_eq!(schedule.sleep(at(0)), MAX_SLEEP);
        for (name, minutes) in [("a", 5), ("b", 3), ("", 4), ("c", 9)] {
            schedule.set(name, Some(at(minutes)));
        }
        schedule.set("b", Some(at(6)));
        assert_eq!(schedule.sleep(at(2)), Duration::from_secs(120));
        assert_eq!(schedule.take_due(at(5)), ["", "a"]);
        assert_eq!(schedule.take_due(at(5)), Vec::<String>::new());
        schedule.set("b", None);
        assert_eq!(schedule.take_due(at(60)), ["c"]);
        assert!(schedule.times.is_empty() && schedule.order.is_empty());
    }

    /// A request that waits for a person costs a few looks in all, not one for each change of another.
    #[test]
    fn x7_a_request_that_waits_is_looked_at_ever_more_rarely() {
        let request = json!({ "metadata": { "creationTimestamp": "2030-01-01T00:00:00Z" } });
        let (mut now, mut looks) = (at(0), 0);
        while let Some(next) = later(&request, now).filter(|next| *next < at(24 * 60)) {
            assert!(next > now);
            (now, looks) = (next, looks + 1);
        }
        assert_eq!(later(&request, now), Some(at(24 * 60)));
        assert!((5..20).contains(&looks), "{looks}");
    }
}
