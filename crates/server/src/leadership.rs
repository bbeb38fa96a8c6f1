//! Which of several servers runs the controllers (M1).
//!
//! ```text
//! kube-system/mainstay-controllers   a Lease: who leads, renewed every second; for people, and for those who wait
//! /!leader                           a key that is written when leadership changes hands, and never else
//! ```
//!
//! Whoever has seen the Lease stand still for its duration takes both in one transaction. Every commit of the leader's
//! controllers compares the key's revision in its own transaction, so what a deposed leader still decides is refused by
//! the store, however late it arrives and whatever its clock says. A server with a store of its own leads without
//! election.

use std::time::{Duration, Instant};

use bytes::Bytes;
use mainstay_api::{Status, kinds, object};
use mainstay_store::{Expect, Revision};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::api::{self, Api, Body, Outcome, Part, codec, key};

const NAMESPACE: &str = "kube-system";
const NAME: &str = "mainstay-controllers";
/// How long a Lease that stands still is its holder's.
const DURATION: Duration = Duration::from_secs(3);
/// How often it is renewed.
const RENEW: Duration = Duration::from_millis(750);
/// Between attempts when the store does not answer.
const AGAIN: Duration = Duration::from_millis(500);

/// The key that changes hands.
fn mark() -> Bytes {
    Bytes::from_static(b"/!leader")
}

/// A time of leadership: what every commit of it compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    revision: Revision,
}

impl Term {
    /// The comparison.
    pub fn guard(&self) -> (Bytes, Expect) {
        (mark(), Expect::Unchanged(self.revision))
    }

    /// Whether a refused transaction was refused because of it: another server leads.
    pub fn is_about(&self, refused: &[u8]) -> bool {
        refused == &mark()[..]
    }
}

/// A server that may lead.
#[derive(Clone)]
pub struct Candidate {
    /// The pipeline.
    pub api: Api,
    /// The server's own name, which no other has.
    pub id: String,
}

impl Candidate {
    /// Runs `work` while this server leads, with a pipeline whose commits carry the term; until the server stops.
    /// `work` is told by its second argument when it is to end.
    pub async fn run<F: Future<Output = ()>>(
        self,
        mut closing: watch::Receiver<bool>,
        work: impl Fn(Api, watch::Receiver<bool>) -> F,
    ) {
        if !self.api.store.is_shared() {
            return work(self.api.clone(), closing).await;
        }
        while !*closing.borrow() {
            let Some(term) = self.elected(&mut closing).await else { return };
            tracing::warn!(server = self.id, "this server runs the controllers now");
            let (stop, stopped) = watch::channel(false);
            let guarded = Api { term: Some(term.clone()), ..self.api.clone() };
            let mut work = Box::pin(work(guarded, stopped));
            let is_closing = tokio::select! {
                () = &mut work => false,
                () = self.keep(&term) => {
                    tracing::warn!(server = self.id, "another server runs the controllers now");
                    false
                }
                () = closed(&mut closing) => true,
            };
            if is_closing {
                stop.send_replace(true);
                work.await;
                // Whoever waits need not wait out the Lease.
                if let Err(status) = self.renew(&term, "").await {
                    tracing::debug!(error = status.message, "leadership was not given back");
                }
                return;
            }
        }
    }

    fn lease(&self) -> Option<Value> {
        codec::decode(&self.api.store.get(&key::object(&kinds::LEASE, NAMESPACE, NAME))?.value).ok()
    }

    /// Waits until this server leads; `None` when it stops before.
    async fn elected(&self, closing: &mut watch::Receiver<bool>) -> Option<Term> {
        // How long the Lease stands still is measured here: no clock of another machine is believed.
        let mut seen: Option<(String, Instant)> = None;
        loop {
            if self.api.store.is_closed() {
                closed(closing).await;
                return None;
            }
            let revision = self.api.store.revision();
            let mut changes = self.api.store.watch(key::object(&kinds::LEASE, NAMESPACE, NAME), revision).ok()?;
            let lease = self.lease();
            let version = lease.as_ref().map(object::resource_version).unwrap_or_default().to_owned();
            if seen.as_ref().is_none_or(|(known, _)| *known != version) {
                seen = Some((version.clone(), Instant::now()));
            }
            let holder =
                lease.as_ref().map(|lease| object::text(lease, &["spec", "holderIdentity"])).unwrap_or_default();
            let age = seen.as_ref().map_or(Duration::ZERO, |(_, since)| since.elapsed());
            let left = if holder.is_empty() { Duration::ZERO } else { DURATION.saturating_sub(age) };
            let pause = if left.is_zero() {
                match self.take(&version).await {
                    Ok(term) => return Some(term),
                    Err(status) => tracing::debug!(error = status.message, "leadership was not taken"),
                }
                AGAIN
            } else {
                left
            };
            tokio::select! {
                _ = changes.next() => {}
                () = tokio::time::sleep(pause) => {}
                () = closed(closing) => return None,
            }
        }
    }

    /// Takes the Lease as it was seen, and the key with it.
    async fn take(&self, version: &str) -> Result<Term, Status> {
        let mut random = [0; 8];
        (self.api.env.random)(&mut random);
        let turn = format!("{} {:016x}", self.id, u64::from_be_bytes(random));
        let now = micros(self.api.now());
        let write = |batch: &mut api::Batch<'_>| {
            let old = batch.get(&kinds::LEASE, NAMESPACE, NAME)?;
            if old.as_ref().map(object::resource_version).unwrap_or_default() != version {
                return Err(Status::new(409, "Conflict", "the Lease is another server's by now"));
            }
            batch.mark(mark(), &turn);
            let transitions = old.as_ref().and_then(|old| object::at(old, &["spec", "leaseTransitions"])?.as_i64());
            let spec = json!({
                "holderIdentity": self.id, "leaseDurationSeconds": DURATION.as_secs(), "acquireTime": now,
                "renewTime": now, "leaseTransitions": transitions.map_or(0, |count| count + 1),
            });
            match old {
                None => {
                    let lease = json!({ "metadata": { "name": NAME }, "spec": spec });
                    api::create(batch, &kinds::LEASE, NAMESPACE, lease)
                }
                Some(_) => {
                    let change = |old: &Value| {
                        let mut new = old.clone();
                        new["spec"] = spec.clone();
                        Ok(new)
                    };
                    api::patch(batch, &kinds::LEASE, NAMESPACE, NAME, Part::Main, &change)
                }
            }
        };
        self.api.write(false, write).await?;
        let taken = self.api.store.get(&mark()).filter(|entry| entry.value == turn.as_bytes());
        let taken = taken.ok_or_else(|| Status::new(409, "Conflict", "another server was quicker"))?;
        Ok(Term { revision: taken.revision })
    }

    /// Renews until another server has it, or until it is ours no more for all we know.
    async fn keep(&self, term: &Term) {
        let Ok(mut changes) = self.api.store.watch(mark(), term.revision) else { return };
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                _ = changes.next() => return,
                () = tokio::time::sleep(RENEW) => {}
            }
            let begun = Instant::now();
            let patience = DURATION.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(patience, self.renew(term, &self.id)).await {
                Ok(Ok(())) => renewed = begun,
                Ok(Err(status)) => tracing::warn!(error = status.message, "leadership was not renewed"),
                Err(_) => {}
            }
            if renewed.elapsed() >= DURATION {
                return;
            }
        }
    }

    async fn renew(&self, term: &Term, holder: &str) -> Result<(), Status> {
        let api = Api { term: Some(term.clone()), ..self.api.clone() };
        let now = micros(api.now());
        let write = |batch: &mut api::Batch<'_>| {
            let change = |old: &Value| {
                let mut new = old.clone();
                let spec = object::ensure(&mut new, &["spec"]);
                spec.insert("holderIdentity".to_owned(), holder.into());
                spec.insert("renewTime".to_owned(), now.as_str().into());
                Ok(new)
            };
            api::patch(batch, &kinds::LEASE, NAMESPACE, NAME, Part::Main, &change)?;
            Ok(Outcome { code: 200, body: Body::Value(Value::Null) })
        };
        api.write(false, write).await.map(|_| ())
    }
}

/// Until the server stops.
async fn closed(closing: &mut watch::Receiver<bool>) {
    drop(closing.wait_for(|closing| *closing).await);
}

/// As `MicroTime` is written.
pub fn micros(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::tests::Cluster;

    #[tokio::test]
    async fn a_deposed_leader_writes_nothing_m1() {
        let cluster = Cluster::new();
        let namespace = json!({ "metadata": { "name": NAMESPACE } });
        cluster.create(&kinds::NAMESPACE, namespace).expect("made");
        let candidate = |id: &str| Candidate { api: cluster.api.clone(), id: id.to_owned() };
        let (a, b) = (candidate("a"), candidate("b"));
        let version = |candidate: &Candidate| {
            candidate.lease().as_ref().map(object::resource_version).unwrap_or_default().to_owned()
        };
        let term = a.take("").await.expect("nobody led");
        assert!(b.take("").await.is_err(), "the Lease has changed since");
        let leading = Api { term: Some(term.clone()), ..cluster.api.clone() };
        let map = |name: &str| json!({ "metadata": { "name": name } });
        let write = |api: Api, name: &'static str| async move {
            api.write(false, |batch| api::create(batch, &kinds::CONFIG_MAP, "default", map(name))).await
        };
        write(leading.clone(), "first").await.expect("it leads");
        a.renew(&term, "a").await.expect("renewed");
        write(leading.clone(), "second").await.expect("a renewal changes no term");

        let next = b.take(&version(&b)).await.expect("taken over");
        let refused = write(leading.clone(), "third").await.expect_err("deposed");
        assert_eq!((refused.code, refused.message.as_str()), (409, "another server leads"));
        assert!(a.renew(&term, "a").await.is_err());
        assert_eq!(object::text(&b.lease().expect("a Lease"), &["spec", "holderIdentity"]), "b");
        assert_eq!(b.lease().expect("a Lease")["spec"]["leaseTransitions"], 1);
        write(Api { term: Some(next), ..cluster.api.clone() }, "third").await.expect("it leads");
    }
}
