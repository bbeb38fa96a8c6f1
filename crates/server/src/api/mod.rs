//! The pipeline between a request and the store: synchronous and without IO of its own.
//!
//! A verb (`create`, `update`, `delete`, …) reads through a [`Batch`], checks, and adds what is to be written to it.
//! Whoever runs the batch commits it: [`Api::write`] for requests (waiting for the disk), the driver for decisions,
//! the simulator inline. Time and randomness come in through [`Env`].

pub mod admission;
mod allocated;
pub mod batch;
pub mod codec;
mod create;
mod delete;
mod eviction;
mod follow;
pub mod key;
mod list;
mod metadata;
mod options;
mod pod;
mod served;
mod subresource;
mod tape;
mod token;
mod update;
mod watch;

use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use mainstay_api::Status;
use mainstay_api::object;
use mainstay_api::status::STORE_IS_SILENT;
use mainstay_store::{CommitError, Committed, Revision, Store, Txn};

use crate::backends::Slices;
use crate::convert::Webhooks;
use crate::credentials::Open;
use crate::dynamic::{Hooks, Session};
use crate::leadership::Term;

pub use allocated::Allocated;
pub use batch::{Batch, Body, FieldManager, Outcome};
pub use create::create;
pub use delete::{DeleteOptions, delete, delete_listed, expire, warning as deletion_warning};
pub use eviction::evict;
pub use follow::{Follower, News};
pub use list::{List, list, read_error};
pub use mainstay_api::object::merge as merge_patch;
pub use metadata::new_uid;
pub use options::{ListOptions, Match, Query, Selection, flag, resource_version};
pub use served::{METRICS_SERVICE, Served};
pub use subresource::{Scaling, bind, scale_of, scaled};
pub use tape::Tape;
pub use token::{Bound, Claims, ISSUER, TokenError, Tokens};
pub use update::{Part, apply, no_field_manager, part_of, patch, update};
pub use watch::{Frame, Watch};

/// How often a write is prepared anew when others changed what it had read, before its client is told (A9).
const MAX_ATTEMPTS: usize = 64;
/// How long a request waits for a commit whose outcome is not known: longer than the store takes to know that nothing
/// was done.
const IN_DOUBT: std::time::Duration = std::time::Duration::from_secs(12);

/// Where time and randomness come from: the clock and the system, or a seed.
pub struct Env {
    /// The current time.
    pub now: Box<dyn Fn() -> Timestamp + Send + Sync>,
    /// Fills a buffer with bytes that nobody can guess.
    pub random: Box<dyn Fn(&mut [u8]) + Send + Sync>,
}

/// What of the cluster's configuration the pipeline needs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where Service addresses come from first; ServiceCIDRs may add others.
    pub service_cidr: Cidr,
    /// Where nodes' ranges of pod addresses come from.
    pub cluster_cidr: Cidr,
    /// The CA's certificate, given to every namespace's pods.
    pub ca_pem: String,
}

/// An IPv4 range, as `10.96.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    network: u32,
    bits: u32,
}

impl Cidr {
    /// Reads `a.b.c.d/n`; bits beyond the mask are dropped.
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/')?;
        let address: std::net::Ipv4Addr = address.parse().ok()?;
        let bits: u32 = bits.parse().ok().filter(|bits| *bits <= 32)?;
        let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
        Some(Self { network: u32::from(address) & mask, bits })
    }

    /// How many addresses it has.
    pub fn len(&self) -> u64 {
        1 << (32 - self.bits)
    }

    /// A range is never empty.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The first and the last address that may be given away: neither the network's own nor that of a broadcast. `None`
    /// where there is none between them.
    pub fn usable(&self) -> Option<(std::net::Ipv4Addr, std::net::Ipv4Addr)> {
        let last = self.len().checked_sub(2).filter(|last| *last > 0)?;
        self.nth(1).zip(self.nth(last))
    }

    /// The address at a place; 0 is the network's own.
    pub fn nth(&self, index: u64) -> Option<std::net::Ipv4Addr> {
        let index = u32::try_from(index).ok().filter(|index| u64::from(*index) < self.len())?;
        Some(std::net::Ipv4Addr::from(self.network.checked_add(index)?))
    }

    /// How many ranges of so many bits it has; 0 where they are larger than it is.
    pub fn ranges(&self, bits: u32) -> u64 {
        bits.checked_sub(self.bits).map_or(0, |more| 1 << more)
    }

    /// The range of so many bits at an index, of [`Cidr::ranges`].
    pub fn range(&self, bits: u32, index: u64) -> Option<Self> {
        let first = self.nth(index.checked_mul(1 << (32 - bits))?)?;
        (index < self.ranges(bits)).then(|| Self { network: u32::from(first), bits })
    }

    /// Whether the address is in the range.
    pub fn contains(&self, address: std::net::Ipv4Addr) -> bool {
        u64::from(u32::from(address).wrapping_sub(self.network)) < self.len()
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", std::net::Ipv4Addr::from(self.network), self.bits)
    }
}

/// The pipeline over one store.
#[derive(Clone)]
pub struct Api {
    /// The store.
    pub store: Store,
    /// Time and randomness.
    pub env: Arc<Env>,
    /// The cluster's configuration.
    pub settings: Arc<Settings>,
    /// Which certificate requests wait for somebody's word.
    pub requests: Open,
    /// Which Service addresses are taken.
    pub allocated: Allocated,
    /// Which EndpointSlices a Service has.
    pub slices: Slices,
    /// The kinds that are served.
    pub served: Served,
    /// Who is asked before something is written.
    pub hooks: Hooks,
    /// Who converts custom resources between versions.
    pub converters: Webhooks,
    /// The leadership that its commits are part of, where they are (M1).
    pub term: Option<Term>,
}

/// The answer to a request, ready to be sent.
#[derive(Debug)]
pub struct Reply {
    /// The HTTP status code.
    pub code: u16,
    /// JSON.
    pub body: Bytes,
    /// For `Warning` headers.
    pub warnings: Vec<String>,
}

impl Api {
    /// A batch on the newest state.
    pub fn batch(&self) -> Batch<'_> {
        Batch::new(self)
    }

    /// The current time.
    pub fn now(&self) -> Timestamp {
        (self.env.now)()
    }

    /// As [`Api::commit`], for those who cannot wait until a commit in doubt is settled: only then it takes that long.
    async fn commit_soon(&self, txn: Txn) -> Result<Result<Committed, CommitError>, Status> {
        if !self.store.is_shared() {
            return Ok(self.commit(txn).await);
        }
        let in_doubt = |_| Status::timeout(format!("{STORE_IS_SILENT}; whether it was carried out is not known"));
        tokio::time::timeout(IN_DOUBT, self.commit(txn)).await.map_err(in_doubt)
    }

    /// Commits, as part of the leadership where there is one.
    pub async fn commit(&self, mut txn: Txn) -> Result<Committed, CommitError> {
        txn.expect.extend(self.term.as_ref().map(Term::guard));
        self.store.commit(txn).await
    }

    /// Whether a commit was refused because another server leads.
    pub fn is_deposed(&self, refused: &[u8]) -> bool {
        self.term.as_ref().is_some_and(|term| term.is_about(refused))
    }

    /// Prepares with `verb`, commits, and prepares anew as long as another write came in between. With `dry_run`
    /// nothing is committed and the answer is what would have been.
    pub async fn write(
        &self,
        dry_run: bool,
        verb: impl Fn(&mut Batch<'_>) -> Result<Outcome, Status>,
    ) -> Result<Reply, Status> {
        for attempt in 0..MAX_ATTEMPTS {
            let mut batch = self.batch();
            batch.attempt = attempt;
            let prepared = Prepared::make(batch, dry_run, &verb)?;
            if dry_run || prepared.txn.ops.is_empty() {
                return Ok(prepared.reply(None));
            }
            match self.commit_soon(prepared.txn.clone()).await? {
                Ok(committed) => return Ok(prepared.reply(Some(committed.first))),
                Err(CommitError::Expectation { key, .. }) if self.is_deposed(&key) => {
                    return Err(Status::new(409, "Conflict", "another server leads"));
                }
                Err(CommitError::Expectation { .. }) => {}
                Err(error) => return Err(commit_error(&error)),
            }
        }
        Err(Status::timeout("the object was changed by others again and again while this request was carried out"))
    }

    /// As [`Api::write`], and asks in between what `session` is to be asked.
    pub async fn write_asking(
        &self,
        session: Option<&Arc<Session>>,
        dry_run: bool,
        verb: impl Fn(&mut Batch<'_>) -> Result<Outcome, Status>,
    ) -> Result<Reply, Status> {
        let asked = |batch: &mut Batch<'_>| {
            batch.join(session);
            verb(batch)
        };
        loop {
            let written = self.write(dry_run, &asked).await;
            match session.filter(|session| session.is_suspended()) {
                Some(session) => session.settle(self).await?,
                None => return written,
            }
        }
    }

    /// As [`Api::write`], for one thread that waits: the simulator and tests.
    pub fn write_now(
        &self,
        dry_run: bool,
        verb: impl Fn(&mut Batch<'_>) -> Result<Outcome, Status>,
    ) -> Result<Reply, Status> {
        for attempt in 0..MAX_ATTEMPTS {
            let mut batch = self.batch();
            batch.attempt = attempt;
            let prepared = Prepared::make(batch, dry_run, &verb)?;
            if dry_run || prepared.txn.ops.is_empty() {
                return Ok(prepared.reply(None));
            }
            match self.store.commit_blocking(prepared.txn.clone()) {
                Ok(committed) => return Ok(prepared.reply(Some(committed.first))),
                Err(CommitError::Expectation { .. }) => {}
                Err(error) => return Err(commit_error(&error)),
            }
        }
        Err(Status::timeout("the object was changed by others again and again while this request was carried out"))
    }
}

/// What a store's refusal is for a client.
pub fn commit_error(error: &CommitError) -> Status {
    match error {
        CommitError::Expectation { .. } => Status::new(409, "Conflict", "the object was changed by others"),
        CommitError::Invalid(invalid) => Status::new(413, "RequestEntityTooLarge", invalid.to_string()),
        CommitError::Full => {
            let why = "the store has no room left (the server's disk, or etcd's quota); nothing was changed. What is \
                       deleted at once is still deleted in etcd; `etcdctl defrag` and `etcdctl alarm disarm` give the \
                       room back";
            Status::new(507, "InsufficientStorage", why)
        }
        CommitError::Io(why) => Status::internal(format!("the server's store failed: {why}")),
        CommitError::Unsealable(why) => Status::internal(why.clone()),
        CommitError::Unreached(why) => Status::store_is_silent(why),
        CommitError::Closed => Status::unavailable("the server is shutting down"),
    }
}

struct Prepared {
    txn: mainstay_store::Txn,
    code: u16,
    body: Body,
    dry: Option<Bytes>,
    warnings: Vec<String>,
}

impl Prepared {
    fn make(
        mut batch: Batch<'_>,
        dry_run: bool,
        verb: &impl Fn(&mut Batch<'_>) -> Result<Outcome, Status>,
    ) -> Result<Self, Status> {
        let Outcome { code, body } = verb(&mut batch)?;
        let dry = match &body {
            Body::Op(op) if dry_run => batch.dry(*op, None),
            Body::Shown { op, value } if dry_run => batch.dry(*op, Some(value)),
            Body::Op(_) | Body::Shown { .. } => None,
            Body::Stored(bytes) => Some(bytes.clone()),
            Body::Value(value) => Some(Bytes::from(object::print(value))),
        };
        let warnings = std::mem::take(&mut batch.warnings);
        Ok(Self { txn: batch.into_txn(), code, body, dry, warnings })
    }

    fn reply(self, first: Option<Revision>) -> Reply {
        let at = |first: Revision, op: usize| Revision(first.0 + op as u64);
        let written = match (first, &self.body) {
            (Some(first), Body::Op(op)) => self.txn.ops.get(*op).map(|done| done.value().at(at(first, *op))),
            (Some(first), Body::Shown { op, value }) => Some(value.at(at(first, *op))),
            _ => None,
        };
        Reply { code: self.code, body: written.or(self.dry).unwrap_or_default(), warnings: self.warnings }
    }
}

#[cfg(test)]
pub(crate) mod tests;
