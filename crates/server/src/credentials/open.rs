//! How many certificate requests wait for somebody's word, of each user.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use mainstay_api::{Status, kinds, object};
use mainstay_store::Store;
use serde_json::Value;

use super::request::has;
use crate::api::{Follower, codec, key};

/// So many of one user's may be open (X7): they stay for a day. A thousand machines that join by one token at the same
/// moment have theirs approved one after the other.
const MAX_OPEN: usize = 1_000;
/// When somebody who has too many is to try again, in seconds.
const AGAIN: u32 = 30;

/// The requests that are open, as the store has them. No task keeps that: whoever asks takes in what has changed since.
#[derive(Clone)]
pub struct Open(Arc<Mutex<Inner>>);

struct Inner {
    stored: Follower,
    /// Who made which.
    by: BTreeMap<Bytes, String>,
    counts: HashMap<String, usize>,
}

impl Open {
    /// Those of a store.
    pub fn of(store: &Store) -> Self {
        let stored = Follower::new(store, key::prefix(&kinds::CERTIFICATE_SIGNING_REQUEST, None));
        Self(Arc::new(Mutex::new(Inner { stored, by: BTreeMap::new(), counts: HashMap::new() })))
    }

    /// Whether a user may make one more. Of several that are made at the same moment each may be the last one.
    ///
    /// # Errors
    /// 429: a thousand are open.
    pub fn may_make(&self, user: &str) -> Result<(), Status> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.catch_up();
        if inner.counts.get(user).is_none_or(|count| *count < MAX_OPEN) {
            return Ok(());
        }
        let why = format!(
            "{MAX_OPEN} certificate requests of {user:?} are neither approved nor denied: they are to be decided on \
             (kubectl certificate approve or deny), or deleted, before there is another one"
        );
        Err(Status::too_many_requests(why, AGAIN))
    }
}

impl Inner {
    fn catch_up(&mut self) {
        let rows = match self.stored.rows(&self.by) {
            Ok(rows) => rows,
            Err(error) => return tracing::error!(%error, "certificate requests could not be read"),
        };
        for (key, value) in rows {
            if let Some(user) = self.by.remove(&key)
                && let Some(count) = self.counts.get_mut(&user)
            {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&user);
                }
            }
            if let Some(user) = value.and_then(|value| waiting(&codec::decode(&value).ok()?)) {
                *self.counts.entry(user.clone()).or_default() += 1;
                self.by.insert(key, user);
            }
        }
    }
}

/// Whose request it is, where nobody has decided on it.
fn waiting(request: &Value) -> Option<String> {
    let is_open = !["Approved", "Denied", "Failed"].iter().any(|condition| has(request, condition));
    is_open.then(|| object::text(request, &["spec", "username"]).to_owned())
}

#[cfg(test)]
mod tests {
    use mainstay_store::{Encoded, Op, Txn};
    use serde_json::json;

    use super::*;

    #[test]
    fn x7_nobody_has_more_than_a_thousand_requests_that_wait_and_others_go_on() {
        let cluster = crate::api::tests::Cluster::new();
        let open = Open::of(&cluster.api.store);
        let key = |number: usize| key::object(&kinds::CERTIFICATE_SIGNING_REQUEST, "", &format!("csr-{number:04}"));
        let put = |numbers: std::ops::Range<usize>, conditions: &Value| {
            let op = |number| {
                let request = json!({ "metadata": { "name": format!("csr-{number:04}") },
                    "spec": { "username": "jane" }, "status": { "conditions": conditions } });
                Op::Put { key: key(number), value: Encoded::plain(request.to_string()) }
            };
            cluster.api.store.commit_blocking(Txn { expect: vec![], ops: numbers.map(op).collect() }).expect("stored");
        };
        open.may_make("jane").expect("none is there");
        put(0..MAX_OPEN - 1, &json!([]));
        open.may_make("jane").expect("one more");
        put(MAX_OPEN - 1..MAX_OPEN, &json!([]));
        for open in [&open, &Open::of(&cluster.api.store)] {
            let refused = open.may_make("jane").expect_err("too many");
            assert_eq!((refused.code, refused.message.contains("kubectl certificate")), (429, true), "{refused:?}");
            open.may_make("anne").expect("another user");
        }
        put(0..1, &json!([{ "type": "Approved", "status": "True" }]));
        open.may_make("jane").expect("one is decided on");
        put(0..1, &json!([]));
        open.may_make("jane").expect_err("again");
        let op = Op::Delete { key: key(7), last: Encoded::plain("") };
        cluster.api.store.commit_blocking(Txn { expect: vec![], ops: vec![op] }).expect("deleted");
        open.may_make("jane").expect("one is gone");
        assert_eq!(open.0.lock().expect("held").by.len(), MAX_OPEN - 1);
    }
}
