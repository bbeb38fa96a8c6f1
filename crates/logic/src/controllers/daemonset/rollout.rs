//! From one template to the next: deleting old pods within `maxUnavailable`, or making new ones beside them within
//! `maxSurge`.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::{Observed, Plan, is_updated};
use crate::decision::{Decision, Waiting};
use crate::pods::{self, is_terminating};

/// One step of the update. Called only when every node has what it shall have.
pub fn roll<'a>(
    o: &Observed<'a>,
    hash: &str,
    (surge, unavailable): (usize, usize),
    now: Timestamp,
    plan: &mut Plan<'a>,
    d: &mut Decision,
) {
    if surge == 0 { replace(o, hash, unavailable, now, plan, d) } else { double(o, hash, surge, now, plan, d) }
}

/// A node's (new, old) pod; `None` where there are several of one sort, which [`super::manage`] clears up first.
fn pair<'a>(pods: &[&'a Pod], hash: &str) -> Option<(Option<&'a Pod>, Option<&'a Pod>)> {
    let (mut new, mut old) = (None, None);
    for pod in pods.iter().copied().filter(|pod| !is_terminating(&pod.metadata)) {
        let slot = if is_updated(pod, hash) { &mut new } else { &mut old };
        if slot.replace(pod).is_some() {
            return None;
        }
    }
    Some((new, old))
}

fn available(o: &Observed, pod: &Pod, now: Timestamp) -> bool {
    pods::is_available(pod, o.min_ready_seconds(), now)
}

fn replace<'a>(o: &Observed<'a>, hash: &str, most: usize, now: Timestamp, plan: &mut Plan<'a>, d: &mut Decision) {
    let (mut away, mut candidates) = (0_usize, Vec::new());
    for pods in o.pods.values() {
        match pair(pods, hash) {
            Some((None, Some(old))) if available(o, old, now) => candidates.push(old),
            // What does not serve anyway is replaced at once, beyond any bound (S7).
            Some((None, Some(old))) => {
                plan.delete.push(old);
                away += 1;
            }
            Some((Some(new), None)) if available(o, new, now) => {}
            _ => away += 1,
        }
    }
    let free = most.saturating_sub(away);
    if candidates.len() > free {
        d.waiting.push(Waiting::UnavailableBudgetUsed);
    }
    plan.delete.extend(candidates.into_iter().take(free));
}

fn double<'a>(o: &Observed<'a>, hash: &str, most: usize, now: Timestamp, plan: &mut Plan<'a>, d: &mut Decision) {
    let (mut doubled, mut candidates) = (0_usize, Vec::new());
    for (node, pods) in &o.pods {
        match pair(pods, hash) {
            None => doubled += 1,
            Some((_, None)) => {}
            Some((None, Some(old))) if available(o, old, now) => candidates.push(*node),
            Some((None, Some(_))) => plan.create.push(node),
            Some((Some(new), Some(_))) => {
                // The old one goes with what is beyond the surge. The status looks at it alone.
                doubled += 1;
                if let Some(at) = pods::available_at(new, o.min_ready_seconds()) {
                    d.waiting.push(Waiting::NotYetAvailable);
                    d.wake(at);
                }
            }
        }
    }
    let free = most.saturating_sub(doubled);
    if candidates.len() > free {
        d.waiting.push(Waiting::UnavailableBudgetUsed);
    }
    plan.create.extend(candidates.into_iter().take(free));
}

/// With a surge a node may have two pods: an old one that is Ready and a new one that is not available yet. Any other
/// goes.
pub fn beyond_surge<'a>(o: &Observed, running: &[&'a Pod], hash: &str, now: Timestamp) -> Vec<&'a Pod> {
    let (mut new, mut old, mut excess) = (None, None, Vec::new());
    for pod in running {
        let slot = if is_updated(pod, hash) { &mut new } else { &mut old };
        match slot {
            None => *slot = Some(*pod),
            Some(_) => excess.push(*pod),
        }
    }
    if let (Some(new), Some(old)) = (new, old)
        && (!pods::is_ready(old) || available(o, new, now))
    {
        excess.push(old);
    }
    excess
}
