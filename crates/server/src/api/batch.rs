//! Writes that are prepared together: what was read, what must still hold, and what is to be written.
//!
//! A batch becomes one [`Txn`]. Every key that it writes is expected to be as it was read, so a batch that raced
//! another write fails as a whole and is prepared anew by whoever runs it (A8, A9). Later writes of a batch see the
//! earlier ones, and take their place: what is charged to one quota for each of many objects is written once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use mainstay_api::{Kind, ObjectKey, Registry, Status, schema};
use mainstay_store::limits::MAX_VALUE;
use mainstay_store::{Encoded, Entry, Expect, Op, Store, Txn};
use serde_json::Value;

use super::{Allocated, Api, Env, Settings, codec, key};
use crate::authorize::escalation::Requester;
use crate::convert::{self, Conversions};
use crate::credentials::Open;
use crate::dynamic::Session;

/// See [`Batch::named_like`].
const MAX_ALIKE: usize = 512;

/// The work of one request or one decision, over a store that it reads and does not change.
pub struct Batch<'a> {
    pub(super) store: &'a Store,
    pub(super) env: &'a Env,
    pub(crate) settings: &'a Settings,
    pub(super) allocated: &'a Allocated,
    pub(crate) requests: &'a Open,
    /// The kinds that the request sees.
    pub(crate) registry: Registry,
    /// The same instant for everything that the batch does.
    pub now: Timestamp,
    /// How often the same was prepared before, and others were quicker.
    pub attempt: usize,
    txn: Txn,
    /// Keys and values of the ops, as the store counts them.
    bytes: usize,
    known: BTreeMap<Bytes, Known>,
    /// What there was before a part that may be taken back.
    before: Option<Before>,
    /// Told to the client in `Warning` headers.
    pub warnings: Vec<String>,
    /// Whether anybody hears them: what they would say is not worked out for controllers of ours.
    pub is_heard: bool,
    /// Who writes, for `managedFields`; controllers of ours keep none.
    pub manager: Option<FieldManager>,
    /// Who asks for it; controllers of ours are not asked what they may.
    pub requester: Option<Requester>,
    /// What webhooks have said of it; without one they are not asked.
    pub session: Option<Arc<Session>>,
    /// What webhooks have converted for it; without it custom resources are taken in the version that they are stored
    /// in.
    pub conversions: Option<Arc<Conversions>>,
}

/// A client as `managedFields` names it.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldManager {
    /// The `fieldManager` parameter, or what stands before the `/` of the user agent.
    pub name: String,
    /// `status`, `scale`, or empty.
    pub subresource: String,
}

struct Known {
    entry: Option<Entry>,
    is_expected: bool,
    /// The op that changes it last.
    op: Option<usize>,
    /// What this batch made of it, if it did: the object, or `None` for deleted.
    written: Option<Option<Value>>,
    /// The object as it was only looked at; forgotten when it is written.
    seen: Option<Arc<Value>>,
}

/// A batch before [`Batch::try_part`]: how much of each list was there, and what has changed of that since.
struct Before {
    ops: usize,
    expect: usize,
    bytes: usize,
    warnings: usize,
    replaced: Vec<(usize, Op)>,
    /// The first state of each key that was touched: whether it is expected, its op, what was made of it.
    touched: BTreeMap<Bytes, (bool, Option<usize>, Option<Option<Value>>)>,
}

/// What a verb answers, once its batch is committed.
#[derive(Debug)]
pub struct Outcome {
    /// The HTTP status code.
    pub code: u16,
    /// The body.
    pub body: Body,
}

/// Where the answer's body comes from.
#[derive(Debug)]
pub enum Body {
    /// The object that this op of the batch writes (or the last state of the one that it deletes).
    Op(usize),
    /// An object that is shown instead of the one that this op writes, at the same version.
    Shown {
        /// The op.
        op: usize,
        /// The object, as [`codec::encode`] gives it.
        value: Encoded,
    },
    /// Bytes as they are stored.
    Stored(Bytes),
    /// An object made for the answer.
    Value(Value),
}

impl Outcome {
    pub(super) fn ok(body: Body) -> Self {
        Self { code: 200, body }
    }

    pub(super) fn created(body: Body) -> Self {
        Self { code: 201, body }
    }
}

impl<'a> Batch<'a> {
    pub(super) fn new(api: &'a Api) -> Self {
        Self {
            store: &api.store,
            env: &api.env,
            settings: &api.settings,
            allocated: &api.allocated,
            requests: &api.requests,
            registry: api.served.now(),
            now: api.now(),
            attempt: 0,
            txn: Txn::default(),
            bytes: 0,
            known: BTreeMap::new(),
            before: None,
            warnings: Vec::new(),
            is_heard: true,
            manager: None,
            requester: None,
            session: None,
            conversions: None,
        }
    }

    /// Makes this a run of a session's verb.
    pub fn join(&mut self, session: Option<&Arc<Session>>) {
        if let Some(session) = session {
            self.now = session.begin(self.now);
            self.session = Some(session.clone());
        }
    }

    /// Makes this a run of a verb whose objects are converted.
    pub fn convert_with(&mut self, conversions: Option<&Arc<Conversions>>) {
        if let Some(conversions) = conversions {
            // A session keeps time and randomness already.
            if self.session.is_none() {
                self.now = conversions.begin(self.now);
            }
            self.conversions = Some(conversions.clone());
        }
    }

    /// Does something that webhooks are not asked about: part of what they were asked about already.
    pub fn unasked<T>(&mut self, work: impl FnOnce(&mut Self) -> T) -> T {
        let session = self.session.take();
        let done = work(self);
        self.session = session;
        done
    }

    /// Does one of several things that the batch is for. Where it fails, nothing of it is left in the batch.
    pub fn try_part<T>(&mut self, part: impl FnOnce(&mut Self) -> Result<T, Status>) -> Result<T, Status> {
        self.before = Some(Before {
            ops: self.txn.ops.len(),
            expect: self.txn.expect.len(),
            bytes: self.bytes,
            warnings: self.warnings.len(),
            replaced: Vec::new(),
            touched: BTreeMap::new(),
        });
        let done = part(self);
        let before = self.before.take();
        if let (Err(_), Some(before)) = (&done, before) {
            self.take_back(before);
        }
        done
    }

    fn take_back(&mut self, before: Before) {
        for (number, op) in before.replaced.into_iter().rev() {
            if let Some(replaced) = self.txn.ops.get_mut(number) {
                *replaced = op;
            }
        }
        self.txn.ops.truncate(before.ops);
        self.txn.expect.truncate(before.expect);
        self.warnings.truncate(before.warnings);
        self.bytes = before.bytes;
        for (key, (is_expected, op, written)) in before.touched {
            let known = self.know(key);
            (known.is_expected, known.op, known.written, known.seen) = (is_expected, op, written, None);
        }
    }

    /// A key is about to be changed or expected.
    fn touch(&mut self, key: &Bytes) {
        if self.before.as_ref().is_none_or(|before| before.touched.contains_key(key)) {
            return;
        }
        let known = self.know(key.clone());
        let state = (known.is_expected, known.op, known.written.clone());
        if let Some(before) = &mut self.before {
            before.touched.insert(key.clone(), state);
        }
    }

    /// The object, as this batch has it. Its `metadata.resourceVersion` is the stored one, even after a write of
    /// this batch: preconditions are about what was there before.
    pub fn get(&mut self, kind: &Kind, namespace: &str, name: &str) -> Result<Option<Value>, Status> {
        let known = self.know(key::object(kind, namespace, name));
        let mut object = match (&known.written, &known.entry) {
            (Some(written), _) => written.clone(),
            (None, Some(entry)) => Some(codec::decode(&entry.value)?),
            (None, None) => None,
        };
        if let Some(object) = &mut object {
            match self.converts(kind) {
                Some(conversions) => conversions.convert(kind, &kind.version, object)?,
                None if convert::webhook(kind).is_some() => {}
                None => kind.from_stored(object),
            }
            // A row of an older version may say what is empty; that is no difference to what is written now (S11).
            schema::drop_empty(kind, object);
        }
        Ok(object)
    }

    /// As [`Batch::get`], for what many objects of a batch have in common and only look at (their namespace, their
    /// account): decoded once. Of kinds that have one version.
    pub(super) fn look_at(&mut self, kind: &Kind, namespace: &str, name: &str) -> Result<Option<Arc<Value>>, Status> {
        let key = key::object(kind, namespace, name);
        if let Some(seen) = &self.know(key.clone()).seen {
            return Ok(Some(seen.clone()));
        }
        let object = self.get(kind, namespace, name)?.map(Arc::new);
        self.know(key).seen.clone_from(&object);
        Ok(object)
    }

    /// An object as it is stored, and since when.
    pub(super) fn row(&mut self, key: Bytes) -> Option<Entry> {
        self.know(key).entry.clone()
    }

    /// As [`Batch::row`], unless this batch has written it.
    pub(super) fn unwritten(&mut self, key: &Bytes) -> Option<Entry> {
        let known = self.know(key.clone());
        known.entry.clone().filter(|_| known.written.is_none())
    }

    /// The object, or 404 in upstream's words.
    pub fn must_get(&mut self, kind: &Kind, namespace: &str, name: &str) -> Result<Value, Status> {
        self.get(kind, namespace, name)?.ok_or_else(|| Status::not_found(kind, name))
    }

    /// Whether a key is there, as this batch has it.
    pub fn has(&mut self, key: Bytes) -> bool {
        let known = self.know(key);
        known.written.as_ref().map_or(known.entry.is_some(), Option::is_some)
    }

    /// As [`Batch::has`], without remembering: for looking through many keys.
    pub(super) fn is_taken(&self, key: &Bytes) -> bool {
        match self.known.get(key).and_then(|known| known.written.as_ref()) {
            Some(written) => written.is_some(),
            None => self.store.get(key).is_some(),
        }
    }

    /// All objects of a cluster-scoped kind, as stored.
    pub(super) fn all(&self, kind: &Kind) -> Result<Vec<Value>, Status> {
        self.stored(kind, None)
    }

    /// All objects of a kind in a namespace, as stored.
    pub(super) fn all_in(&self, kind: &Kind, namespace: &str) -> Result<Vec<Value>, Status> {
        self.stored(kind, Some(namespace))
    }

    /// All objects of a kind, in a namespace where it has one, in the kind's own form.
    pub(crate) fn every(&self, kind: &Kind, namespace: &str) -> Result<Vec<Value>, Status> {
        let mut all = self.stored(kind, kind.namespaced.then_some(namespace))?;
        all.iter_mut().for_each(|object| kind.from_stored(object));
        Ok(all)
    }

    fn stored(&self, kind: &Kind, namespace: Option<&str>) -> Result<Vec<Value>, Status> {
        let page = self
            .store
            .range(&key::prefix(kind, namespace), None, usize::MAX, None)
            .map_err(|error| Status::internal(error.to_string()))?;
        page.entries.iter().map(|entry| codec::decode(&entry.value)).collect()
    }

    /// The name of an object in a namespace whose name begins and ends like this, as this batch has it. Among many that
    /// begin so only [`MAX_ALIKE`] are looked at.
    pub fn named_like(&self, kind: &Kind, namespace: &str, begin: &str, end: &str) -> Option<String> {
        let prefix = key::object(kind, namespace, begin);
        let is_one = |key: &&Bytes| key.ends_with(end.as_bytes());
        let name = |key: &Bytes| key::name_in(key).map(str::to_owned);
        let own = self.known.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
        let own = own.filter(|(key, known)| is_one(key) && matches!(known.written, Some(Some(_))));
        if let Some((key, _)) = own.last() {
            return name(key);
        }
        let page = self.store.range(&prefix, None, MAX_ALIKE, Some(self.store.revision())).ok()?;
        let mut stored = page.entries.iter().rev().map(|entry| &entry.key).filter(is_one);
        stored.find(|key| self.is_taken(key)).and_then(name)
    }

    /// Whether the names of at least so many objects of a namespace begin like this.
    pub fn has_more_like(&self, kind: &Kind, namespace: &str, begin: &str, count: usize) -> bool {
        let prefix = key::object(kind, namespace, begin);
        let own = self.known.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
        let own = own.filter(|(_, known)| matches!(known.written, Some(Some(_)))).count();
        let stored = self.store.range(&prefix, None, count, Some(self.store.revision()));
        stored.is_ok_and(|page| page.entries.len() + own >= count)
    }

    /// The objects of a namespace whose names begin like this, as this batch has them, of the first [`MAX_ALIKE`] that
    /// are stored.
    pub fn begun_like(&self, kind: &Kind, namespace: &str, begin: &str) -> Vec<Value> {
        let prefix = key::object(kind, namespace, begin);
        let stored = self.store.range(&prefix, None, MAX_ALIKE, Some(self.store.revision()));
        let stored = stored.map(|page| page.entries).unwrap_or_default();
        let stored =
            stored.into_iter().filter_map(|entry| Some((entry.key, serde_json::from_slice(&entry.value).ok()?)));
        let mut objects: BTreeMap<Bytes, Value> = stored.collect();
        for (key, known) in self.known.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix)) {
            match &known.written {
                Some(Some(written)) => drop(objects.insert(key.clone(), written.clone())),
                Some(None) => drop(objects.remove(key)),
                None => {}
            }
        }
        objects.into_values().collect()
    }

    /// How many writes are in the batch.
    pub fn written(&self) -> usize {
        self.txn.ops.len()
    }

    /// The names of a namespace's objects of a kind, with those that this batch makes and without those it takes away.
    pub(super) fn names_in(&self, kind: &Kind, namespace: &str) -> Result<BTreeSet<String>, Status> {
        let prefix = key::prefix(kind, Some(namespace));
        let page =
            self.store.range(&prefix, None, usize::MAX, None).map_err(|error| Status::internal(error.to_string()))?;
        let name = |key: &Bytes| {
            key.strip_prefix(&prefix[..]).and_then(|name| std::str::from_utf8(name).ok()).map(str::to_owned)
        };
        let mut names: BTreeSet<String> = page.entries.iter().filter_map(|entry| name(&entry.key)).collect();
        for (key, known) in self.known.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix)) {
            match (&known.written, name(key)) {
                (Some(Some(_)), Some(name)) => drop(names.insert(name)),
                (Some(None), Some(name)) => drop(names.remove(&name)),
                _ => {}
            }
        }
        Ok(names)
    }

    /// Makes the batch fail if a key that holds no object changes before it is committed.
    pub(super) fn expect_mark(&mut self, key: Bytes) {
        self.expect(key);
    }

    /// Makes the batch fail if the object changes before it is committed.
    pub(crate) fn hold(&mut self, kind: &Kind, namespace: &str, name: &str) {
        self.expect(key::object(kind, namespace, name));
    }

    /// Where objects of a kind are converted by a webhook, and may be.
    fn converts(&self, kind: &Kind) -> Option<Arc<Conversions>> {
        self.conversions.clone().filter(|_| convert::webhook(kind).is_some())
    }

    /// Makes an object one of the stored version.
    fn settle(&self, kind: &Kind, object: &mut Value) -> Result<(), Status> {
        match (self.converts(kind), &kind.custom) {
            (Some(conversions), Some(custom)) => conversions.convert(kind, &custom.stored_version, object)?,
            _ if convert::webhook(kind).is_some() => {}
            _ => kind.to_stored(object),
        }
        Ok(())
    }

    /// Writes an object, in the kind's stored form; gives the op's number.
    pub fn put(&mut self, kind: &Kind, mut object: Value) -> Result<usize, Status> {
        self.settle(kind, &mut object)?;
        let ObjectKey { namespace, name } = ObjectKey::of(&object);
        let encoded = codec::encode(&mut object)?;
        Ok(self.put_raw(key::object(kind, &namespace, &name), encoded, object))
    }

    /// Writes a key that holds no object.
    pub(super) fn reserve(&mut self, key: Bytes, value: &str) {
        self.put_raw(key, Encoded { bytes: Bytes::from(value.to_owned()), revision_at: None }, Value::Null);
    }

    /// Writes a key that nobody else may have. Where others took it after it was looked for ([`Batch::is_taken`]
    /// remembers nothing), the transaction is refused and prepared anew.
    pub(super) fn take_free(&mut self, key: Bytes, value: &str) {
        self.touch(&key);
        let known = self.know(key.clone());
        if !known.is_expected {
            known.is_expected = true;
            self.txn.expect.push((key.clone(), Expect::Absent));
        }
        self.reserve(key, value);
    }

    /// As [`Batch::reserve`], for marks that are no admission's.
    pub(crate) fn mark(&mut self, key: Bytes, value: &str) {
        self.reserve(key, value);
    }

    fn put_raw(&mut self, key: Bytes, value: Encoded, object: Value) -> usize {
        self.touch(&key);
        self.expect(key.clone());
        let is_mark = object.is_null();
        let known = self.know(key.clone());
        (known.written, known.seen) = (Some(Some(object)), None);
        // A mark that is taken away and made again is changed; an object that is made again is another one.
        self.change(Op::Put { key, value }, |before| matches!(before, Op::Put { .. }) || is_mark)
    }

    /// Adds a change; the op's number. A key is changed once where that comes to the same: etcd takes no more at once.
    fn change(&mut self, op: Op, may_replace: impl Fn(&Op) -> bool) -> usize {
        let size = |op: &Op| op.key().len() + op.value().bytes.len();
        self.bytes += size(&op);
        let next = self.txn.ops.len();
        let number = &mut self.known.entry(op.key().clone()).or_insert_with_key(|key| look(self.store, key)).op;
        if let Some((number, before)) = number.and_then(|number| Some((number, self.txn.ops.get_mut(number)?)))
            && may_replace(before)
        {
            self.bytes = self.bytes.saturating_sub(size(before));
            let replaced = std::mem::replace(before, op);
            if let Some(before) = &mut self.before {
                before.replaced.push((number, replaced));
            }
            return number;
        }
        *number = Some(next);
        self.txn.ops.push(op);
        next
    }

    /// Takes an object away; `last` is what watchers are told. Gives the op's number.
    pub fn remove(&mut self, kind: &Kind, last: &Value) -> Result<usize, Status> {
        let ObjectKey { namespace, name } = ObjectKey::of(last);
        let mut last = last.clone();
        self.settle(kind, &mut last)?;
        let encoded = codec::encode(&mut last)?;
        Ok(self.remove_raw(key::object(kind, &namespace, &name), encoded))
    }

    /// Takes a key away that holds no object, if it is there.
    pub(super) fn remove_mark(&mut self, key: Bytes) {
        if self.has(key.clone()) {
            self.remove_raw(key, Encoded { bytes: Bytes::new(), revision_at: None });
        }
    }

    pub(super) fn remove_raw(&mut self, key: Bytes, last: Encoded) -> usize {
        self.touch(&key);
        self.expect(key.clone());
        let known = self.know(key.clone());
        (known.written, known.seen) = (Some(None), None);
        let was_there = known.entry.is_some();
        self.change(Op::Delete { key, last }, |before| matches!(before, Op::Put { .. }) && was_there)
    }

    /// Bytes that nobody can guess.
    pub(super) fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        match (&self.session, &self.conversions) {
            (Some(session), _) => session.random(self.env, &mut bytes),
            (None, Some(conversions)) => conversions.random(self.env, &mut bytes),
            (None, None) => (self.env.random)(&mut bytes),
        }
        bytes
    }

    /// What is to be committed.
    pub fn into_txn(self) -> Txn {
        self.txn
    }

    /// Keys and values of the ops so far, in bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether nothing more fits into its transaction for certain: who writes many things goes on in another one. The
    /// last may be of any size that is allowed, with some for keys and allocations, where that leaves enough for
    /// others; and one Service may have hundreds of node ports. Where the last is too much, less is to be tried.
    pub fn is_full(&self) -> bool {
        let most = self.store.txn_limits();
        let bytes = most.bytes.saturating_sub(MAX_VALUE + (64 << 10)).max(most.bytes / 3);
        self.bytes > bytes || self.is_full_with(0) || self.txn.expect.len() > most.compares.min(most.ops) / 2
    }

    /// Whether it would be with so many ops more.
    pub fn is_full_with(&self, ops: usize) -> bool {
        let most = self.store.txn_limits();
        self.txn.ops.len() + ops > most.ops.min(most.compares) / 2
    }

    /// Whether its transaction may change a key twice: take an object away, and make another one of its name.
    pub fn may_repeat(&self) -> bool {
        !self.store.txn_limits().is_etcds
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.txn.ops.is_empty()
    }

    /// The encoded object of an op, without its revision.
    pub fn encoded(&self, op: usize) -> Option<&Encoded> {
        match self.txn.ops.get(op)? {
            Op::Put { value, .. } => Some(value),
            Op::Delete { last, .. } => Some(last),
        }
    }

    /// What an op would have made, or `shown` of it, for a dry run: an object that is there keeps its version, a new
    /// one has none.
    pub(super) fn dry(&self, op: usize, shown: Option<&Encoded>) -> Option<Bytes> {
        let stored = self.known.get(self.txn.ops.get(op)?.key()).and_then(|known| known.entry.as_ref());
        let encoded = shown.or_else(|| self.encoded(op))?;
        Some(stored.map_or_else(|| codec::without_version(&encoded.bytes), |entry| encoded.at(entry.revision)))
    }

    fn know(&mut self, key: Bytes) -> &mut Known {
        let store = self.store;
        self.known.entry(key).or_insert_with_key(|key| look(store, key))
    }

    fn expect(&mut self, key: Bytes) {
        self.touch(&key);
        let known = self.know(key.clone());
        if known.is_expected {
            return;
        }
        known.is_expected = true;
        let expect = known.entry.as_ref().map_or(Expect::Absent, |entry| Expect::Unchanged(entry.revision));
        self.txn.expect.push((key, expect));
    }
}

fn look(store: &Store, key: &Bytes) -> Known {
    Known { entry: store.get(key), is_expected: false, op: None, written: None, seen: None }
}
