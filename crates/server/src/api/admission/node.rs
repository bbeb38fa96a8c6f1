//! Ranges of pod addresses: each belongs to one Node, by a key of its own in the store that is made and taken away
//! together with the Node.
//!
//! Differs: upstream's controller gives a Node its range a moment after it was made; here it comes with the answer to
//! its creation, so that a machine that joins waits for nothing. When all ranges are in use, Nodes have none, as
//! upstream.

use mainstay_api::status::Cause;
use mainstay_api::{Status, kinds, object};
use serde_json::{Value, json};

use crate::api::{Batch, Cidr, key};

/// The bits of a node's own range: upstream's `--node-cidr-mask-size`.
pub const NODE_BITS: u32 = 24;

/// Who was too late once looks at most so many ranges further on, and twice as many with each time.
const MEET: u64 = 8;
/// That is no more than so often doubled.
const SPREAD_BITS: usize = 8;

fn range_of(node: &Value) -> &str {
    object::text(node, &["spec", "podCIDR"])
}

/// Gives the Node a range that nobody has; one that it asks for (a machine whose Node was deleted while its pods
/// run) it gets if nobody else has it.
pub fn allocate(batch: &mut Batch<'_>, node: &mut Value) -> Result<(), Status> {
    let asked = range_of(node).to_owned();
    let all = batch.settings.cluster_cidr;
    if !asked.is_empty() {
        // A node that named any other range would be sent what is others'.
        let is_node = batch.requester.as_ref().is_some_and(|requester| requester.user.node().is_some());
        if is_node && !is_one_of(&all, &asked) {
            let why = format!("a node may only ask for a /{NODE_BITS} of {all}");
            return Err(Status::forbidden(&kinds::NODE, object::name(node), &why));
        }
        if batch.has(key::pod_range(&asked)) {
            let cause = Cause::invalid("spec.podCIDR", asked, "provided range is already allocated");
            return Err(Status::invalid(&kinds::NODE, object::name(node), &[cause]));
        }
        return Ok(());
    }
    // As many as are taken are tried last: the one after them is mostly free, however many there are. Machines that
    // join at the same time all find that one; whoever was too late looks further on, so that they do not meet again.
    let further = match u32::try_from(batch.attempt.min(SPREAD_BITS)) {
        Ok(attempt) if attempt > 0 => u64::from_be_bytes(batch.random()) % (MEET << attempt),
        _ => 0,
    };
    let (begin, end) = (batch.allocated.free_range(all, further).unwrap_or(0), all.ranges(NODE_BITS));
    // What this batch itself gives away, and what was given a moment ago, is not known there.
    let mut ranges = (begin..end).chain(0..begin).filter_map(|index| all.range(NODE_BITS, index));
    let Some(free) = ranges.find(|range: &Cidr| !batch.is_taken(&key::pod_range(&range.to_string()))) else {
        batch.warnings.push(format!("all ranges of {all} are in use: this Node has no addresses for pods"));
        return Ok(());
    };
    let spec = object::ensure(node, &["spec"]);
    spec.insert("podCIDR".to_owned(), free.to_string().into());
    spec.insert("podCIDRs".to_owned(), json!([free.to_string()]));
    Ok(())
}

/// Whether a text is a whole range for one node, as it is written here.
fn is_one_of(all: &Cidr, asked: &str) -> bool {
    Cidr::parse(asked).is_some_and(|range| {
        range.to_string() == asked
            && range.len() == 1 << (32 - NODE_BITS)
            && range.nth(0).is_some_and(|at| all.contains(at))
    })
}

/// Makes the key of the range that the Node has now. A Node keeps its range for life: an update may only give it one.
pub fn claim(batch: &mut Batch<'_>, node: &Value, old: Option<&Value>) {
    let (had, has) = (old.map(range_of).unwrap_or_default(), range_of(node));
    if has != had && !has.is_empty() {
        batch.take_free(key::pod_range(has), object::name(node));
    }
}

/// Takes the key away.
pub fn release(batch: &mut Batch<'_>, node: &Value) {
    if !range_of(node).is_empty() {
        batch.remove_mark(key::pod_range(range_of(node)));
    }
}

/// Makes the keys of Nodes that had their ranges before there were keys, as many as one transaction takes; whether
/// those were all.
pub fn claim_all(batch: &mut Batch<'_>) -> Result<bool, Status> {
    for node in batch.all(&kinds::NODE)? {
        if batch.is_full() {
            return Ok(false);
        }
        let range = key::pod_range(range_of(&node));
        if !range_of(&node).is_empty() && !batch.has(range.clone()) {
            batch.reserve(range, object::name(&node));
        }
    }
    Ok(true)
}
