//! Who a request is from, and whether they may: asked of the API server, as upstream's kubelet does (webhook
//! authentication and authorization), with its answers' ages.
//!
//! A certificate of the cluster or a bearer token says who it is, a SubjectAccessReview whether they may. The API
//! server itself and administrators are known by their certificates alone (see [`super::tls`]): they are answered
//! whatever the API server does.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header::AUTHORIZATION;
use http::{HeaderMap, Method};
use mainstay_client::Client;
use mainstay_tasks::{Share, Shares};
use serde_json::{Value, json};

use super::backend::Pending;

/// How long it holds that a token is somebody's, or nobody's.
pub const TOKEN_TTL: Duration = Duration::from_secs(120);
/// How long it holds that somebody may.
pub const ALLOWED_TTL: Duration = Duration::from_secs(300);
/// How long it holds that they may not.
pub const DENIED_TTL: Duration = Duration::from_secs(30);
/// Answers of each kind that are remembered.
const REMEMBERED: usize = 1024;
/// A user whose names are longer than this together (bytes) is asked about each time.
const MAX_USER: usize = 64 * 1024;
/// No token of anybody's is longer (bytes).
const MAX_TOKEN: usize = 32 * 1024;
/// Questions of each kind under way, and those that one address (or user) may have of them.
const REVIEWS: u32 = 16;
const REVIEWS_EACH: u32 = 2;
/// How long a place among them stays taken after an answer other than yes: so many forged tokens a second at most are
/// asked about.
const PAUSE: Duration = Duration::from_millis(250);
/// How long a request waits for its turn and the answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The group of everybody who is somebody.
const AUTHENTICATED: &str = "system:authenticated";

/// Whoever answers reviews: the API server.
pub trait Reviews: Send + Sync + 'static {
    /// Posts a review to its path; it comes back with its `status`.
    ///
    /// # Errors
    /// In words: it cannot be asked, or refuses.
    fn review<'a>(&'a self, path: &'a str, review: &'a Value) -> Pending<'a, Result<Value, String>>;
}

impl Reviews for Client {
    fn review<'a>(&'a self, path: &'a str, review: &'a Value) -> Pending<'a, Result<Value, String>> {
        Box::pin(async move { self.post(path, review).await.map_err(|error| error.to_string()) })
    }
}

/// Somebody, as the API server knows them.
#[derive(Clone, Debug, PartialEq)]
pub struct User {
    pub name: String,
    pub groups: Vec<String>,
    uid: String,
    /// `extra` of a UserInfo.
    extra: Value,
}

impl User {
    /// Whom a certificate is for.
    pub fn of_certificate(name: String, mut groups: Vec<String>) -> User {
        if !groups.iter().any(|group| group == AUTHENTICATED) {
            groups.push(AUTHENTICATED.to_owned());
        }
        User { name, groups, uid: String::new(), extra: Value::Null }
    }

    /// `status.user` of a TokenReview; `None` of one without a name.
    fn of_review(info: &Value) -> Option<User> {
        let text = |field: &str| info.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let groups = info.get("groups").and_then(Value::as_array).into_iter().flatten();
        let groups = groups.filter_map(Value::as_str).map(str::to_owned).collect();
        let user = User {
            uid: text("uid"),
            extra: info.get("extra").cloned().unwrap_or_default(),
            ..User::of_certificate(text("username"), groups)
        };
        (!user.name.is_empty()).then_some(user)
    }
}

/// What a request needs: a verb on one of a node's subresources, tried in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    pub verb: &'static str,
    pub subresources: &'static [&'static str],
}

impl Needs {
    /// As upstream maps methods and paths (KubeletFineGrainedAuthz), by the path's first element. What runs something
    /// or writes needs `create`, whatever the method: a WebSocket begins with a GET, and `get` is for who reads.
    pub fn of(method: &Method, first: &str) -> Needs {
        let verb = match *method {
            Method::GET | Method::HEAD => "get",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE => "delete",
            _ => "",
        };
        let (verb, subresources): (_, &[&str]) = match first {
            "pods" | "runningpods" => (verb, &["pods", "proxy"]),
            "healthz" => (verb, &["healthz", "proxy"]),
            "configz" => (verb, &["configz", "proxy"]),
            "stats" => (verb, &["stats"]),
            "metrics" => (verb, &["metrics"]),
            "logs" => (verb, &["log"]),
            "exec" | "attach" | "portForward" | "images" => ("create", &["proxy"]),
            _ => (verb, &["proxy"]),
        };
        Needs { verb, subresources }
    }
}

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nobody is known to send it: 401.
    Unauthorized,
    /// They may not: 403, in upstream's words.
    Forbidden(String),
    /// Whether they may could not be found out: 500, in upstream's words.
    Unknown(String),
}

type Key = [u8; 32];

/// What was answered, as long as it holds; of too much, what holds shortest goes.
struct Remembered<T>(Mutex<BTreeMap<Key, (Instant, T)>>);

impl<T> Default for Remembered<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> Remembered<T> {
    fn get(&self, key: &Key) -> Option<T> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.get(key).filter(|(until, _)| Instant::now() < *until).map(|(_, value)| value.clone())
    }

    fn put(&self, key: Key, value: T, ttl: Duration) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if entries.len() >= REMEMBERED && !entries.contains_key(&key) {
            entries.retain(|_, (until, _)| now < *until);
            let shortest = entries.iter().min_by_key(|(_, (until, _))| *until).map(|(key, _)| *key);
            if let Some(shortest) = shortest.filter(|_| entries.len() >= REMEMBERED) {
                entries.remove(&shortest);
            }
        }
        entries.insert(key, (now + ttl, value));
    }
}

fn digest(bytes: &[u8]) -> Key {
    let mut key = Key::default();
    key.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref());
    key
}

/// Asks the API server, and remembers for a while what it said. What it says of the forged and of the forbidden takes
/// no room from what it says of others.
pub struct Delegated {
    reviews: Arc<dyn Reviews>,
    node: String,
    known: Remembered<Arc<User>>,
    forged: Remembered<()>,
    allowed: Remembered<()>,
    denied: Remembered<()>,
    /// Questions about tokens, by address, and about what somebody may, by user.
    tokens: Shares,
    accesses: Shares,
    /// [`PATIENCE`] and [`PAUSE`], but in tests.
    patience: Duration,
    pause: Duration,
}

impl Delegated {
    pub fn new(reviews: Arc<dyn Reviews>, node: &str) -> Self {
        Self {
            reviews,
            node: node.to_owned(),
            known: Remembered::default(),
            forged: Remembered::default(),
            allowed: Remembered::default(),
            denied: Remembered::default(),
            tokens: Shares::new(REVIEWS, REVIEWS_EACH),
            accesses: Shares::new(REVIEWS, REVIEWS_EACH),
            patience: PATIENCE,
            pause: PAUSE,
        }
    }

    /// Whose token a request carries.
    ///
    /// # Errors
    /// None, nobody's, or one that could not be asked about within 10 s.
    pub async fn authenticate(&self, from: IpAddr, headers: &HeaderMap) -> Result<Arc<User>, Refusal> {
        let token = bearer(headers).filter(|token| token.len() <= MAX_TOKEN).ok_or(Refusal::Unauthorized)?;
        let asked = tokio::time::timeout(self.patience, self.token(from, token)).await;
        asked.ok().flatten().ok_or(Refusal::Unauthorized)
    }

    async fn token(&self, from: IpAddr, token: &str) -> Option<Arc<User>> {
        let key = digest(token.as_bytes());
        let answer = || match self.known.get(&key) {
            Some(user) => Some(Some(user)),
            None => self.forged.get(&key).map(|()| None),
        };
        if let Some(known) = answer() {
            return known;
        }
        let turn = self.tokens.take(&from.to_string(), 1).await;
        // Whoever had the turn before may have asked about the same one.
        if let Some(known) = answer() {
            return known;
        }
        let review = json!({
            "kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {}, "spec": { "token": token },
        });
        let answered = self.reviews.review("/apis/authentication.k8s.io/v1/tokenreviews", &review).await;
        let user = match &answered {
            Ok(answer) if answer.pointer("/status/authenticated") == Some(&Value::Bool(true)) => {
                answer.pointer("/status/user").and_then(User::of_review).map(Arc::new)
            }
            Ok(_) => None,
            Err(error) => {
                tracing::warn!(%error, "a token could not be reviewed");
                None
            }
        };
        match &user {
            Some(user) if length(user) <= MAX_USER => self.known.put(key, user.clone(), TOKEN_TTL),
            Some(_) => {}
            None => {
                if answered.is_ok() {
                    self.forged.put(key, (), TOKEN_TTL);
                }
                after(self.pause, turn);
            }
        }
        user
    }

    /// Whether a user may do what a request needs.
    ///
    /// # Errors
    /// They may not, or it could not be found out within 10 s.
    pub async fn authorize(&self, user: &User, needs: &Needs) -> Result<(), Refusal> {
        for subresource in needs.subresources {
            let asked = tokio::time::timeout(self.patience, self.may(user, needs.verb, subresource)).await;
            match asked.unwrap_or_else(|_| Err("no answer in time".to_owned())) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(%error, user = user.name, "what somebody may could not be reviewed");
                    return Err(Refusal::Unknown(format!(
                        "Authorization error (user={}, verb={}, resource=nodes, subresource={subresource})",
                        user.name, needs.verb
                    )));
                }
            }
        }
        Err(Refusal::Forbidden(format!(
            "Forbidden (user={}, verb={}, resource=nodes, subresource(s)=[{}])\n",
            user.name,
            needs.verb,
            needs.subresources.join(" ")
        )))
    }

    async fn may(&self, user: &User, verb: &str, subresource: &str) -> Result<bool, String> {
        if verb.is_empty() {
            return Ok(false);
        }
        let mut spec = json!({
            "user": user.name, "groups": user.groups,
            "resourceAttributes": {
                "verb": verb, "version": "v1", "resource": "nodes", "subresource": subresource, "name": self.node,
            },
        });
        if !user.uid.is_empty() {
            spec["uid"] = user.uid.as_str().into();
        }
        if !user.extra.is_null() {
            spec["extra"] = user.extra.clone();
        }
        let key = digest(spec.to_string().as_bytes());
        let answer = || match self.allowed.get(&key) {
            Some(()) => Some(true),
            None => self.denied.get(&key).map(|()| false),
        };
        if let Some(known) = answer() {
            return Ok(known);
        }
        let turn = self.accesses.take(&user.name, 1).await;
        if let Some(known) = answer() {
            return Ok(known);
        }
        let review = json!({
            "kind": "SubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "metadata": {}, "spec": spec,
        });
        let answered = self.reviews.review("/apis/authorization.k8s.io/v1/subjectaccessreviews", &review).await;
        let answered = answered.and_then(|answer| {
            answer.pointer("/status/allowed").and_then(Value::as_bool).ok_or_else(|| "no status".to_owned())
        });
        match &answered {
            Ok(true) => self.allowed.put(key, (), ALLOWED_TTL),
            Ok(false) => self.denied.put(key, (), DENIED_TTL),
            Err(_) => after(self.pause, turn),
        }
        answered
    }
}

/// Gives a place among the reviews back a little later.
fn after(pause: Duration, turn: Share) {
    tokio::spawn(async move {
        tokio::time::sleep(pause).await;
        drop(turn);
    });
}

/// Roughly what a user takes to remember, in bytes.
fn length(user: &User) -> usize {
    let groups: usize = user.groups.iter().map(String::len).sum();
    user.name.len() + user.uid.len() + groups + user.extra.to_string().len()
}

/// The token of a request, where it has one.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut words = headers.get(AUTHORIZATION)?.to_str().ok()?.split_ascii_whitespace();
    let is_bearer = words.next()?.eq_ignore_ascii_case("bearer");
    words.next().filter(|_| is_bearer)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;

    /// Knows the tokens `good<n>`, of which `good1` may read metrics; counts what it is asked, and how much at once.
    struct Api {
        asked: AtomicUsize,
        under_way: AtomicUsize,
        most: AtomicUsize,
        /// Closed: no answer.
        open: Semaphore,
        is_absent: std::sync::atomic::AtomicBool,
    }

    fn api() -> Arc<Api> {
        let zero = AtomicUsize::default;
        let open = Semaphore::new(1000);
        Arc::new(Api { asked: zero(), under_way: zero(), most: zero(), open, is_absent: Default::default() })
    }

    impl Reviews for Api {
        fn review<'a>(&'a self, path: &'a str, review: &'a Value) -> Pending<'a, Result<Value, String>> {
            Box::pin(async move {
                self.asked.fetch_add(1, Ordering::SeqCst);
                let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
                self.most.fetch_max(now, Ordering::SeqCst);
                tokio::task::yield_now().await;
                drop(self.open.acquire().await);
                self.under_way.fetch_sub(1, Ordering::SeqCst);
                if self.is_absent.load(Ordering::SeqCst) {
                    return Err("connection refused".to_owned());
                }
                let spec = &review["spec"];
                Ok(if path.ends_with("tokenreviews") {
                    let token = spec["token"].as_str().unwrap();
                    let user = json!({ "username": format!("sa-{token}"), "uid": "7", "extra": { "pod": ["p"] } });
                    json!({ "status": { "authenticated": token.starts_with("good"), "user": user } })
                } else {
                    assert_eq!(spec["groups"], json!([AUTHENTICATED]));
                    assert_eq!((&spec["uid"], &spec["extra"]), (&json!("7"), &json!({ "pod": ["p"] })));
                    let what = &spec["resourceAttributes"];
                    assert_eq!((&what["name"], &what["resource"]), (&json!("n"), &json!("nodes")));
                    let may = spec["user"] == "sa-good1" && what["verb"] == "get" && what["subresource"] == "metrics";
                    json!({ "status": { "allowed": may } })
                })
            })
        }
    }

    fn with(token: &str) -> HeaderMap {
        HeaderMap::from_iter([(AUTHORIZATION, format!("Bearer {token}").parse().unwrap())])
    }

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[tokio::test]
    async fn conformance_x1_a_token_is_asked_about_and_what_its_owner_may() {
        let api = api();
        let door = Delegated::new(api.clone(), "n");
        let metrics = Needs::of(&Method::GET, "metrics");
        let one = door.authenticate(address(1), &with("good1")).await.unwrap();
        assert_eq!((one.name.as_str(), door.authorize(&one, &metrics).await), ("sa-good1", Ok(())));
        assert_eq!(api.asked.load(Ordering::SeqCst), 2);
        // Both are remembered, for whoever asks again.
        let again = door.authenticate(address(2), &with("good1")).await.unwrap();
        assert_eq!((door.authorize(&again, &metrics).await, api.asked.load(Ordering::SeqCst)), (Ok(()), 2));
        let words = "Forbidden (user=sa-good1, verb=get, resource=nodes, subresource(s)=[pods proxy])\n";
        let refused = door.authorize(&one, &Needs::of(&Method::GET, "pods")).await;
        assert_eq!(refused, Err(Refusal::Forbidden(words.to_owned())));
        let two = door.authenticate(address(1), &with("good2")).await.unwrap();
        let words = "Forbidden (user=sa-good2, verb=get, resource=nodes, subresource(s)=[metrics])\n";
        assert_eq!(door.authorize(&two, &metrics).await, Err(Refusal::Forbidden(words.to_owned())));
        let before = api.asked.load(Ordering::SeqCst);
        assert_eq!(door.authorize(&two, &metrics).await, Err(Refusal::Forbidden(words.to_owned())));
        assert_eq!(api.asked.load(Ordering::SeqCst), before, "a no is remembered, too");
        for headers in [HeaderMap::new(), with(""), with(&"x".repeat(MAX_TOKEN + 1)), with("forged")] {
            assert_eq!(door.authenticate(address(1), &headers).await, Err(Refusal::Unauthorized));
        }
        assert_eq!(api.asked.load(Ordering::SeqCst), before + 1, "only the last one is worth a question");
    }

    #[test]
    fn conformance_paths_need_what_upstreams_need_and_commands_more_than_reading() {
        let of = |method: &Method, first: &str| {
            let needs = Needs::of(method, first);
            format!("{} {}", needs.verb, needs.subresources.join(" "))
        };
        for (first, needs) in [
            ("metrics", "get metrics"),
            ("stats", "get stats"),
            ("pods", "get pods proxy"),
            ("runningpods", "get pods proxy"),
            ("healthz", "get healthz proxy"),
            ("configz", "get configz proxy"),
            ("containerLogs", "get proxy"),
            ("logs", "get log"),
            ("metricsx", "get proxy"),
            ("exec", "create proxy"),
            ("attach", "create proxy"),
            ("portForward", "create proxy"),
        ] {
            assert_eq!(of(&Method::GET, first), needs, "{first}");
        }
        assert_eq!(of(&Method::POST, "metrics"), "create metrics");
        assert_eq!(of(&Method::HEAD, "metrics"), "get metrics");
    }

    #[tokio::test]
    async fn x5_x7_forged_tokens_fill_nothing_and_are_asked_about_few_at_a_time() {
        let api = api();
        let pause = Duration::from_millis(10);
        let door =
            Arc::new(Delegated { pause, patience: Duration::from_secs(300), ..Delegated::new(api.clone(), "n") });
        door.authenticate(address(200), &with("good1")).await.unwrap();
        let begun = Instant::now();
        let mut flood = tokio::task::JoinSet::new();
        for at in 0..3000usize {
            let door = door.clone();
            let from = address(u8::try_from(at % 100).unwrap());
            flood.spawn(async move { door.authenticate(from, &with(&format!("forged{at}"))).await });
        }
        // One whose token nobody knows yet does not wait for all of them.
        assert!(door.authenticate(address(201), &with("good2")).await.is_ok());
        assert!(!flood.is_empty() && api.asked.load(Ordering::SeqCst) < 1000, "{:?}", api.asked);
        while let Some(one) = flood.join_next().await {
            assert_eq!(one.unwrap(), Err(Refusal::Unauthorized));
        }
        assert!(api.most.load(Ordering::SeqCst) <= REVIEWS as usize);
        let asked = api.asked.load(Ordering::SeqCst);
        let fit = REVIEWS as usize * (begun.elapsed().as_millis() / pause.as_millis() + 2) as usize;
        assert!(asked <= fit, "{asked} questions in {:?}", begun.elapsed());
        assert!(door.forged.0.lock().unwrap().len() <= REMEMBERED);
        let before = api.asked.load(Ordering::SeqCst);
        door.authenticate(address(7), &with("good1")).await.unwrap();
        assert_eq!(api.asked.load(Ordering::SeqCst), before, "what is known stays known");
    }

    #[tokio::test]
    async fn x7_an_api_server_that_is_not_there_is_no_answer_that_is_remembered() {
        let api = api();
        let mut door = Delegated::new(api.clone(), "n");
        let user = door.authenticate(address(1), &with("good1")).await.unwrap();
        api.is_absent.store(true, Ordering::SeqCst);
        let needs = Needs::of(&Method::GET, "metrics");
        let unknown = "Authorization error (user=sa-good1, verb=get, resource=nodes, subresource=metrics)";
        assert_eq!(door.authorize(&user, &needs).await, Err(Refusal::Unknown(unknown.to_owned())));
        assert_eq!(door.authenticate(address(1), &with("good2")).await, Err(Refusal::Unauthorized));
        api.is_absent.store(false, Ordering::SeqCst);
        assert_eq!(door.authorize(&user, &needs).await, Ok(()));
        assert!(door.authenticate(address(1), &with("good2")).await.is_ok());
        // One that is silent: the request ends all the same, and what is known goes on.
        let silent = api.open.acquire_many(1000).await.unwrap();
        door.patience = Duration::from_millis(50);
        assert_eq!(door.authenticate(address(1), &with("good3")).await, Err(Refusal::Unauthorized));
        assert!(door.authenticate(address(1), &with("good1")).await.is_ok());
        drop(silent);
        door.patience = PATIENCE;
        assert!(door.authenticate(address(1), &with("good3")).await.is_ok());
    }

    #[test]
    fn x4_of_too_many_answers_the_shortest_go() {
        let remembered = Remembered::default();
        let key = |at: usize| digest(&at.to_le_bytes());
        remembered.put(key(0), 0, ALLOWED_TTL);
        (1..REMEMBERED * 2).for_each(|at| remembered.put(key(at), at, DENIED_TTL));
        assert_eq!(remembered.0.lock().unwrap().len(), REMEMBERED);
        assert_eq!((remembered.get(&key(0)), remembered.get(&key(1))), (Some(0), None));
        remembered.put(key(1), 1, Duration::ZERO);
        assert_eq!(remembered.get(&key(1)), None, "its time is over");
    }
}
