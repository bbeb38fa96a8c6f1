//! What one request (or one decision of a controller) has asked and was answered, over the runs of its verb.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use mainstay_api::schema::{self, FieldValidation};
use mainstay_api::{Kind, Status, object};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::matching::{Attributes, Operation, is_exempt};
use super::policy::Case;
use super::{Set, asking, policy};
use crate::api::{Api, Batch, Env, Tape};
use crate::audit::Record;
use crate::auth::User;
use crate::authorize::escalation::Requester;

/// How often a verb comes back with new questions, before its client is told that others change the object too often.
const MAX_ROUNDS: usize = 32;
/// How long a request may take with all that it asks (upstream's limit of a request).
const MAX_TIME: Duration = Duration::from_secs(60);

/// Whether an object may be changed, or only refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    Mutating,
    /// A second time, these of the mutating webhooks.
    Again(BTreeSet<usize>),
    Validating,
}

/// A question.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Ask {
    pub phase: Phase,
    pub attributes: Attributes,
    pub object: Option<Value>,
    pub old: Option<Value>,
}

/// What came of it, where nobody refused.
#[derive(Clone, Default, Debug)]
pub(super) struct Admitted {
    /// The object, where it was changed.
    pub changed: Option<Value>,
    pub warnings: Vec<String>,
    /// Mutating webhooks to be asked again: because a later one has changed the object, and if anybody else does.
    pub again: BTreeSet<usize>,
    pub again_if_changed: BTreeSet<usize>,
}

/// What a request's parameters say.
#[derive(Clone, Debug, Default)]
pub struct Terms {
    pub dry_run: bool,
    /// Of the options: `fieldManager`, `fieldValidation`.
    pub fields: Vec<(&'static str, String)>,
}

/// See the module.
pub struct Session {
    pub(super) set: Arc<Set>,
    /// `authentication.k8s.io/v1` UserInfo.
    pub(super) user: Value,
    /// `None` for our own controllers.
    pub(super) requester: Option<Requester>,
    pub(super) record: Option<Arc<Record>>,
    pub(super) terms: OnceLock<Terms>,
    started: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    now: Option<Timestamp>,
    /// What was drawn for each write.
    tapes: BTreeMap<usize, Tape>,
    slot: usize,
    answers: Vec<(Arc<Ask>, Result<Admitted, Status>)>,
    pending: Vec<Arc<Ask>>,
    rounds: usize,
}

/// The answer of a verb that has left a question; nobody outside of the server sees it.
fn suspended() -> Status {
    Status::internal("admission has not been asked yet")
}

impl Session {
    /// For who makes a request, with what is configured.
    pub fn new(set: Arc<Set>, requester: &Requester) -> Self {
        let record = requester.record.clone();
        Self { requester: Some(requester.clone()), record, ..Self::of_controller(set, &requester.user) }
    }

    /// For one of our own controllers.
    pub fn of_controller(set: Arc<Set>, user: &User) -> Self {
        let (terms, started) = (OnceLock::new(), Instant::now());
        Self { set, user: user.info(), requester: None, record: None, terms, started, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what the request's parameters say, once.
    pub fn describe(&self, terms: Terms) {
        let _ = self.terms.set(terms);
    }

    /// A run of the verb begins: its time is that of the first.
    pub fn begin(&self, now: Timestamp) -> Timestamp {
        self.enter(0);
        *self.state().now.get_or_insert(now)
    }

    /// What is drawn from now on belongs to the write of this number.
    pub fn enter(&self, write: usize) {
        let mut state = self.state();
        state.slot = write;
        state.tapes.entry(write).or_default().rewind();
    }

    /// Fills a buffer as the runs before did at this place, else with what nobody can guess.
    pub fn random(&self, env: &Env, bytes: &mut [u8]) {
        let mut state = self.state();
        let slot = state.slot;
        state.tapes.entry(slot).or_default().fill(env, bytes);
    }

    /// Whether the last run has left questions.
    pub fn is_suspended(&self) -> bool {
        !self.state().pending.is_empty()
    }

    /// The time that is left for calls; `None` when it is over.
    pub(super) fn left(&self) -> Option<Duration> {
        MAX_TIME.checked_sub(self.started.elapsed()).filter(|left| !left.is_zero())
    }

    /// Asks what the last run has left, all at once. Dropping this takes back what is not answered yet.
    ///
    /// # Errors
    /// 504 where it was asked too often, or for too long.
    pub async fn settle(self: &Arc<Self>, api: &Api) -> Result<(), Status> {
        let pending = {
            let mut state = self.state();
            state.rounds += 1;
            if state.rounds > MAX_ROUNDS {
                state.pending.clear();
                let why = "the object was changed by others again and again while admission was asked about it";
                return Err(Status::timeout(why));
            }
            std::mem::take(&mut state.pending)
        };
        let mut asked = JoinSet::new();
        for ask in pending {
            let (session, api) = (self.clone(), api.clone());
            asked.spawn(async move {
                let answer = asking::ask(&api, &session, &ask).await;
                (ask, answer)
            });
        }
        while let Some(answered) = asked.join_next().await {
            let answered = answered.map_err(|error| Status::internal(error.to_string()))?;
            self.state().answers.push(answered);
        }
        Ok(())
    }

    /// The answer, if there is one; else leaves the question.
    fn find(&self, ask: Ask) -> Result<Admitted, Status> {
        let mut state = self.state();
        let known = state.answers.iter().rev().find(|(known, _)| **known == ask);
        match known {
            Some((_, answer)) => answer.clone(),
            None => {
                if !state.pending.iter().any(|pending| **pending == ask) {
                    state.pending.push(Arc::new(ask));
                }
                Err(suspended())
            }
        }
    }

    /// As [`Session::find`], where one may wait.
    async fn find_now(self: &Arc<Self>, api: &Api, ask: Ask) -> Result<Admitted, Status> {
        match self.find(ask.clone()) {
            Err(_) if self.is_suspended() => {
                self.settle(api).await?;
                self.find(ask)
            }
            known => known,
        }
    }
}

/// Whether anybody would be asked.
fn concerns(batch: &mut Batch<'_>, session: &Session, ask: &Ask) -> Result<bool, Status> {
    if is_exempt(&ask.attributes.kind) {
        return Ok(false);
    }
    for (index, hook) in asking::hooks(session, &ask.phase) {
        if matches!(&ask.phase, Phase::Again(these) if !these.contains(&index)) {
            continue;
        }
        if asking::invocation(batch, session, hook, ask, ask.object.as_ref())?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn find(batch: &mut Batch<'_>, session: &Session, ask: Ask) -> Result<Option<Admitted>, Status> {
    if !concerns(batch, session, &ask)? {
        return Ok(None);
    }
    let admitted = session.find(ask)?;
    batch.warnings.extend(admitted.warnings.iter().cloned());
    Ok(Some(admitted))
}

/// Lets whoever is configured to change an object do so; whether anybody did. `again` is what is made of an object that
/// was changed: its defaults, and what the built-in plugins give it; then webhooks that want to see that are asked once
/// more.
///
/// # Errors
/// A refusal; or that the question has to be asked first ([`Session::is_suspended`]).
pub fn mutate(
    batch: &mut Batch<'_>,
    attributes: &Attributes,
    object: &mut Value,
    old: Option<&Value>,
    again: &dyn Fn(&mut Batch<'_>, &mut Value) -> Result<(), Status>,
) -> Result<bool, Status> {
    let Some(session) = batch.session.clone() else { return Ok(false) };
    let ask = |phase, object: &Value| Ask {
        phase,
        attributes: attributes.clone(),
        object: Some(object.clone()),
        old: old.cloned(),
    };
    if is_exempt(&attributes.kind) {
        return Ok(false);
    }
    let before = object.clone();
    let policies = &session.set.mutating_policies;
    let mut is_changed = policy::mutate(batch, policies, &session, attributes, object, old, false)?;
    if is_changed {
        *object = settled(attributes, &before, object.take())?;
    }
    let admitted = find(batch, &session, ask(Phase::Mutating, object))?.unwrap_or_default();
    if let Some(changed) = admitted.changed {
        *object = settled(attributes, &before, changed)?;
        is_changed = true;
    }
    if !is_changed {
        return Ok(false);
    }
    let output = object.clone();
    again(batch, object)?;
    if policy::mutate(batch, policies, &session, attributes, object, old, true)? {
        *object = settled(attributes, &before, object.take())?;
    }
    let mut these = admitted.again;
    if *object != output {
        these.extend(admitted.again_if_changed);
    }
    if these.is_empty() {
        return Ok(true);
    }
    if let Some(changed) =
        find(batch, &session, ask(Phase::Again(these), object))?.and_then(|admitted| admitted.changed)
    {
        *object = settled(attributes, &before, changed)?;
        again(batch, object)?;
    }
    Ok(true)
}

/// A deletion has no object that could be changed; who may change objects is asked about it all the same.
pub fn mutate_deletion(batch: &mut Batch<'_>, attributes: &Attributes, old: &Value) -> Result<(), Status> {
    let Some(session) = batch.session.clone() else { return Ok(()) };
    let (attributes, old) = (attributes.clone(), Some(old.clone()));
    find(batch, &session, Ask { phase: Phase::Mutating, attributes, object: None, old }).map(|_| ())
}

/// Both, for what is posted to a subresource and is no object of its own: a Binding, an Eviction. What it is then.
///
/// # Errors
/// As [`mutate`].
pub fn posted(batch: &mut Batch<'_>, attributes: Attributes, posted: &Value) -> Result<Value, Status> {
    let mut posted = posted.clone();
    if batch.session.is_none() {
        return Ok(posted);
    }
    if let Some(named) = &attributes.object_type {
        let fields = object::ensure(&mut posted, &[]);
        let (group, version) = (&named.group, &named.version);
        let api_version = if group.is_empty() { version.to_string() } else { format!("{group}/{version}") };
        fields.insert("kind".to_owned(), named.kind.clone().into());
        fields.insert("apiVersion".to_owned(), api_version.into());
    }
    mutate(batch, &attributes, &mut posted, None, &|_, _| Ok(()))?;
    validate(batch, &attributes, Some(&posted), None)?;
    Ok(posted)
}

/// Lets whoever is configured refuse what is written.
///
/// # Errors
/// As [`mutate`].
pub fn validate(
    batch: &mut Batch<'_>,
    attributes: &Attributes,
    object: Option<&Value>,
    old: Option<&Value>,
) -> Result<(), Status> {
    let Some(session) = batch.session.clone() else { return Ok(()) };
    if !is_exempt(&attributes.kind) {
        let case = Case { session: &session, attributes, object, old };
        policy::validate(batch, &session.set.validating_policies, &case)?;
    }
    let (object, old) = (object.cloned(), old.cloned());
    find(batch, &session, Ask { phase: Phase::Validating, attributes: attributes.clone(), object, old }).map(|_| ())
}

/// Asks about a connection (exec, attach, port-forward, proxy); `options` is what is asked for. Differs: it may be
/// refused, not changed. The warnings.
///
/// # Errors
/// A refusal.
pub async fn connect(
    api: &Api,
    session: &Arc<Session>,
    attributes: &Attributes,
    options: Value,
) -> Result<Vec<String>, Status> {
    let mut warnings = Vec::new();
    for phase in [Phase::Mutating, Phase::Validating] {
        let phase_is_last = phase == Phase::Validating;
        let ask = Ask { phase, attributes: attributes.clone(), object: Some(options.clone()), old: None };
        if phase_is_last && !is_exempt(&attributes.kind) {
            let mut batch = api.batch();
            let case = Case { session, attributes, object: ask.object.as_ref(), old: None };
            policy::validate(&mut batch, &session.set.validating_policies, &case)?;
            warnings.append(&mut batch.warnings);
        }
        if concerns(&mut api.batch(), session, &ask)? {
            warnings.extend(session.find_now(api, ask).await?.warnings);
        }
    }
    Ok(warnings)
}

/// A changed object with what no webhook changes: who it is, and who manages its fields.
fn settled(attributes: &Attributes, before: &Value, mut changed: Value) -> Result<Value, Status> {
    const KEPT: [&str; 6] = ["name", "namespace", "uid", "creationTimestamp", "resourceVersion", "managedFields"];
    let fields = object::ensure(&mut changed, &[]);
    for field in ["apiVersion", "kind"] {
        if let Some(kept) = before.get(field) {
            fields.insert(field.to_owned(), kept.clone());
        }
    }
    let metadata = object::ensure(&mut changed, &["metadata"]);
    for field in KEPT {
        match object::at(before, &["metadata", field]) {
            Some(kept) => metadata.insert(field.to_owned(), kept.clone()),
            None => metadata.remove(field),
        };
    }
    if attributes.object_type.is_none() {
        checked(&attributes.kind, &mut changed)?;
    }
    Ok(changed)
}

/// What a webhook made of an object, cleaned; 500 where it is none of its kind any more.
pub(super) fn checked(kind: &Kind, changed: &mut Value) -> Result<(), Status> {
    schema::decode(kind, changed, FieldValidation::Ignore).map_err(|status| Status::internal(status.message))?;
    Ok(())
}

/// The options of a request as a review shows them.
pub(super) fn options(terms: Option<&Terms>, attributes: &Attributes) -> Value {
    let kind = match attributes.operation {
        Operation::Connect => return Value::Null,
        Operation::Create => "CreateOptions",
        Operation::Update => "UpdateOptions",
        Operation::Delete => "DeleteOptions",
    };
    let mut options = match &attributes.options {
        Value::Object(_) => attributes.options.clone(),
        _ => json!({}),
    };
    options["kind"] = kind.into();
    options["apiVersion"] = "meta.k8s.io/v1".into();
    for (field, value) in terms.map(|terms| terms.fields.as_slice()).unwrap_or_default() {
        if attributes.operation != Operation::Delete {
            options[*field] = value.as_str().into();
        }
    }
    if terms.is_some_and(|terms| terms.dry_run) {
        options["dryRun"] = json!(["All"]);
    }
    options
}
