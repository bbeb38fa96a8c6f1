//! The audit log: one line of JSON (`audit.k8s.io/v1` Event) per stage of a request, as a policy file says.
//!
//! Lines are written by a thread of the log's own; a request waits for it only when [`QUEUE`] lines are under way.

pub mod policy;

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use jiff::Timestamp;
use mainstay_api::{protobuf, schema};
use serde_json::{Value, json};

use crate::auth::User;
use crate::authorize::Attributes;
use policy::{Level, Policy, Stage, Verdict};

/// Lines that may wait for the disk.
const QUEUE: usize = 1024;
/// The longest user agent that is recorded, in bytes; upstream's.
const MAX_AGENT: usize = 1024;

/// The log of a server.
pub struct Log {
    policy: Policy,
    lines: SyncSender<String>,
}

impl Log {
    /// Opens the file (`-`: standard output), making it with mode 0600.
    pub fn open(policy: Policy, path: &Path) -> std::io::Result<Self> {
        let mut out: Box<dyn std::io::Write + Send> = if path == Path::new("-") {
            Box::new(std::io::stdout())
        } else {
            Box::new(std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)?)
        };
        let (lines, queue) = sync_channel::<String>(QUEUE);
        std::thread::Builder::new().name("audit-log".into()).spawn(move || {
            while let Ok(mut line) = queue.recv() {
                line.push('\n');
                if let Err(error) = out.write_all(line.as_bytes()).and_then(|()| out.flush()) {
                    tracing::error!(%error, "the audit log could not be written; a line is lost");
                }
            }
        })?;
        Ok(Self { policy, lines })
    }

    /// Begins the record of a request; `None` where the policy records nothing of it. The policy is asked about whoever
    /// sent it, whoever they act as.
    pub fn begin(self: &Arc<Self>, user: &User, what: &Attributes, head: Head) -> Option<Arc<Record>> {
        let verdict = self.policy.judge(head.sender.as_ref().unwrap_or(user), what);
        if verdict.level == Level::None {
            return None;
        }
        let record = Record {
            log: self.clone(),
            event: event(user, what, &head, verdict.level),
            verdict,
            bodies: Mutex::default(),
        };
        let record = Arc::new(record);
        record.write(Stage::RequestReceived, None, head.received);
        Some(record)
    }
}

/// What is known of a request when it begins.
pub struct Head {
    /// `Audit-Id`.
    pub id: String,
    /// Path and query.
    pub uri: String,
    /// The sender's address.
    pub source: String,
    /// `User-Agent`.
    pub agent: String,
    /// Who was before impersonation, where there was one.
    pub sender: Option<User>,
    /// The version of the resource's group.
    pub version: String,
    /// When it came.
    pub received: Timestamp,
}

/// The record of one request.
pub struct Record {
    log: Arc<Log>,
    event: Value,
    verdict: Verdict,
    bodies: Mutex<Bodies>,
}

#[derive(Default)]
struct Bodies {
    request: Option<Value>,
    annotations: serde_json::Map<String, Value>,
}

/// What an answer was.
pub struct Answer<'a> {
    /// The HTTP status code.
    pub code: u16,
    /// The body, where it is there as a whole.
    pub body: Option<&'a Bytes>,
    /// Whether it goes on (a watch, a stream).
    pub is_long: bool,
}

impl Record {
    fn bodies(&self) -> std::sync::MutexGuard<'_, Bodies> {
        self.bodies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the request's body, where the policy asks for it; JSON, YAML or protobuf.
    pub fn request(&self, body: &[u8]) {
        if self.verdict.level >= Level::Request && !body.is_empty() {
            self.bodies().request = read(body).or_else(|| read_yaml(body));
        }
    }

    /// Notes why the request was let in or refused.
    pub fn decision(&self, allowed: bool, reason: &str) {
        let mut bodies = self.bodies();
        let decision = if allowed { "allow" } else { "forbid" };
        bodies.annotations.insert("authorization.k8s.io/decision".to_owned(), decision.into());
        bodies.annotations.insert("authorization.k8s.io/reason".to_owned(), reason.into());
    }

    /// Notes what admission says of the request; the first note of a name stays.
    pub fn annotate(&self, name: String, note: String) {
        self.bodies().annotations.entry(name).or_insert_with(|| note.into());
    }

    /// Notes the answer.
    pub fn end(&self, answer: &Answer<'_>, now: Timestamp) {
        if answer.is_long {
            self.write(Stage::ResponseStarted, Some(answer), now);
        }
        self.write(Stage::ResponseComplete, Some(answer), now);
    }

    fn write(&self, stage: Stage, answer: Option<&Answer<'_>>, now: Timestamp) {
        if self.verdict.omitted.contains(&stage) {
            return;
        }
        let mut event = self.event.clone();
        event["stage"] = stage.name().into();
        event["stageTimestamp"] = micros(now).into();
        let bodies = self.bodies();
        if let Some(request) = &bodies.request {
            event["requestObject"] = self.shown(request.clone());
        }
        if !bodies.annotations.is_empty() {
            event["annotations"] = Value::Object(bodies.annotations.clone());
        }
        drop(bodies);
        if let Some(answer) = answer {
            event["responseStatus"] = json!({ "metadata": {}, "code": answer.code });
            let parsed = answer.body.filter(|_| answer.code >= 400 || self.verdict.level == Level::RequestResponse);
            if let Some(body) = parsed.and_then(|body| read(body)) {
                if answer.code >= 400 {
                    for field in ["status", "message", "reason", "details"] {
                        if let Some(value) = body.get(field) {
                            event["responseStatus"][field] = value.clone();
                        }
                    }
                }
                if self.verdict.level == Level::RequestResponse && stage == Stage::ResponseComplete {
                    event["responseObject"] = self.shown(body);
                }
            }
        }
        // The log's thread ends only with the log.
        let _ = self.log.lines.send(event.to_string());
    }

    fn shown(&self, mut object: Value) -> Value {
        if self.verdict.omit_managed_fields
            && let Some(Value::Object(metadata)) = object.get_mut("metadata")
        {
            metadata.remove("managedFields");
        }
        object
    }
}

/// An object of a body, JSON or protobuf.
fn read(body: &[u8]) -> Option<Value> {
    match body.starts_with(protobuf::MAGIC) {
        true => protobuf::read_any(body).ok(),
        false => serde_json::from_slice(body).ok(),
    }
}

fn read_yaml(body: &[u8]) -> Option<Value> {
    let parsed = schema::yaml::parse(std::str::from_utf8(body).ok()?).ok()?;
    Some(parsed.value).filter(Value::is_object)
}

fn event(user: &User, what: &Attributes, head: &Head, level: Level) -> Value {
    let mut agent = head.agent.clone();
    agent.truncate(agent.floor_char_boundary(MAX_AGENT));
    let mut event = json!({
        "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": level.name(), "auditID": head.id,
        "requestURI": head.uri, "verb": what.verb, "user": user.info(), "sourceIPs": [head.source], "userAgent": agent,
        "requestReceivedTimestamp": micros(head.received),
    });
    if let Some(sender) = &head.sender {
        event["user"] = sender.info();
        event["impersonatedUser"] = user.info();
    }
    if what.path.is_empty() {
        let fields = [
            ("resource", &what.resource),
            ("namespace", &what.namespace),
            ("name", &what.name),
            ("apiGroup", &what.group),
            ("apiVersion", &head.version),
            ("subresource", &what.subresource),
        ];
        for (field, value) in fields.into_iter().filter(|(_, value)| !value.is_empty()) {
            event["objectRef"][field] = value.as_str().into();
        }
    }
    event
}

fn micros(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x2_a_record_holds_what_its_level_says_and_no_more() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("audit.log");
        let policy = json!({ "apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
            "rules": [
            { "level": "Metadata", "resources": [{ "group": "", "resources": ["secrets"] }] },
            { "level": "RequestResponse" },
        ] });
        let log = Arc::new(Log::open(serde_json::from_value(policy).expect("a policy"), &path).expect("a log"));
        let user = User { name: "jane".into(), ..User::default() };
        for resource in ["secrets", "configmaps"] {
            let what = Attributes { verb: "create".into(), resource: resource.into(), ..Attributes::default() };
            let head = Head {
                id: "1".into(),
                uri: "/x".into(),
                source: "127.0.0.1".into(),
                agent: "test".into(),
                sender: None,
                version: "v1".into(),
                received: Timestamp::UNIX_EPOCH,
            };
            let record = log.begin(&user, &what, head).expect("recorded");
            record.request(br#"{"data":{"a":"hidden"}}"#);
            record.decision(true, "RBAC: allowed");
            let body = Bytes::from_static(br#"{"data":{"a":"hidden"},"kind":"X"}"#);
            record.end(&Answer { code: 201, body: Some(&body), is_long: false }, Timestamp::UNIX_EPOCH);
        }
        let lines = || std::fs::read_to_string(&path).expect("readable");
        while lines().lines().count() < 2 {
            std::thread::yield_now();
        }
        let all: Vec<Value> = lines().lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!((all[0]["level"].as_str(), all[0]["stage"].as_str()), (Some("Metadata"), Some("ResponseComplete")));
        assert!(!all[0].to_string().contains("hidden"), "{}", all[0]);
        assert_eq!(all[1]["requestObject"]["data"]["a"], "hidden");
        assert_eq!(all[1]["responseObject"]["kind"], "X");
        assert_eq!(all[1]["annotations"]["authorization.k8s.io/decision"], "allow");
        assert_eq!(all[1]["requestReceivedTimestamp"], "1970-01-01T00:00:00.000000Z");
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    }
}
