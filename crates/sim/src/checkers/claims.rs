//! S8: claims stay. S9: those that are waited for are made.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use mainstay_api::{ObjectKey, kinds};
use mainstay_logic::Snapshot;
use mainstay_logic::pods::{claim_names, is_terminating};

use super::{Actor, Seen, Violation, ordinals, parse_ordinal, set_of};

/// What the sets that there were said about their claims.
#[derive(Default)]
pub struct Claims {
    /// By the set's uid: its last state, and whether it was deleted with its dependents orphaned.
    sets: BTreeMap<String, (StatefulSet, bool)>,
    /// By the set's uid, and whether it is `whenScaled`: when the policy was Delete last.
    asked: BTreeMap<(String, bool), Timestamp>,
    /// By the pod's uid: since when it waits for a claim that is not there.
    waiting: BTreeMap<String, Timestamp>,
}

/// How long a pod may wait for a claim that nobody has made: longer than server and controllers are ever away.
const PATIENCE: SignedDuration = SignedDuration::from_secs(40);

/// How long what a policy asked for may still happen when it was taken back: somebody was about to.
const ABOUT_TO: SignedDuration = SignedDuration::from_secs(60);

fn policy(set: &StatefulSet, scaled: bool) -> bool {
    let policy = set.spec.persistent_volume_claim_retention_policy.as_ref();
    let word =
        policy.and_then(|policy| if scaled { policy.when_scaled.as_ref() } else { policy.when_deleted.as_ref() });
    word.is_some_and(|word| word == "Delete")
}

impl Claims {
    /// S9: a pod of a set that waits for a node has its claims, or gets them before long.
    pub fn s9_claims_are_made_again(&mut self, snapshot: &Snapshot, now: Timestamp) -> Result<(), Violation> {
        let is_placed = |pod: &Pod| pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        let mut waiting = BTreeMap::new();
        for (key, pod) in snapshot.pods.iter().filter(|(_, pod)| !is_placed(pod) && !is_terminating(&pod.metadata)) {
            let Some((set, ordinal)) = set_of(snapshot, key, pod) else { continue };
            let is_wanted = !is_terminating(&set.metadata) && ordinals(set).contains(&ordinal);
            let mut names = claim_names(pod).into_iter().map(|(claim, _)| claim);
            let missing = names.find(|claim| {
                let at = ObjectKey::new(key.namespace.clone(), claim.as_ref());
                !snapshot.persistent_volume_claims.contains_key(&at)
            });
            let (Some(claim), Some(uid)) = (missing.filter(|_| is_wanted), &pod.metadata.uid) else { continue };
            let since = self.waiting.get(uid).copied().unwrap_or(now);
            if now.duration_since(since) > PATIENCE {
                return Err(Violation::new("S9", format!("{key} waits for {claim}, which nobody makes")));
            }
            waiting.insert(uid.clone(), since);
        }
        self.waiting = waiting;
        Ok(())
    }

    /// S8: nothing but a retention policy or a user deletes a claim; `whenScaled` acts only after the pod is gone.
    pub fn s8_claims_stay(&mut self, seen: &Seen<'_>) -> Result<(), Violation> {
        if seen.is(&kinds::STATEFUL_SET)
            && let Some(set) = seen.after.stateful_sets.get(&seen.change.key)
        {
            let orphans = set.metadata.finalizers.iter().flatten().any(|held| held == "orphan");
            self.sets.insert(set.metadata.uid.clone().unwrap_or_default(), ((**set).clone(), orphans));
        }
        if seen.is(&kinds::STATEFUL_SET) {
            for set in [seen.before, seen.after].iter().filter_map(|world| world.stateful_sets.get(&seen.change.key)) {
                for scaled in [false, true].into_iter().filter(|scaled| policy(set, *scaled)) {
                    let uid = set.metadata.uid.clone().unwrap_or_default();
                    self.asked.insert((uid, scaled), seen.now);
                }
            }
        }
        if !seen.is(&kinds::PERSISTENT_VOLUME_CLAIM) || !seen.is_condemned() || *seen.actor == Actor::User {
            return Ok(());
        }
        let told = |message: &str| {
            Err(Violation::new("S8", format!("{} is deleted by {}: {message}", seen.change.key, seen.actor)))
        };
        let Some(old) = &seen.change.old else { return Ok(()) };
        let owners: Vec<_> = old.metadata.owner_references.iter().flatten().collect();
        let found = owners.iter().find_map(|owner| self.sets.get(&owner.uid));
        // A pod that owns a claim was scaled in; its set is known by the claim's name.
        let pod_name = seen.change.key.name.strip_prefix("data-").unwrap_or("");
        let Some((set_name, ordinal)) = parse_ordinal(pod_name) else { return told("it is no set's") };
        let living = seen.before.stateful_sets.get(&ObjectKey::new(seen.change.key.namespace.clone(), set_name));
        let policy = |set: &StatefulSet, scaled: bool| {
            let slot = (set.metadata.uid.clone().unwrap_or_default(), scaled);
            let lately = self.asked.get(&slot).is_some_and(|at| seen.now.duration_since(*at) < ABOUT_TO);
            policy(set, scaled) || lately
        };
        let by_deletion = found.is_some_and(|(set, orphans)| {
            let is_going = living.is_none_or(|living| {
                living.metadata.uid != set.metadata.uid || living.metadata.deletion_timestamp.is_some()
            });
            is_going && !orphans && policy(set, false)
        });
        if by_deletion {
            return Ok(());
        }
        if owners.is_empty() {
            return told("it has no owner");
        }
        // By a scale-in: its owner is the pod that went. The set may be gone since.
        let by_pod = owners.iter().any(|owner| owner.kind == "Pod");
        let asked = match living {
            Some(living) => policy(living, true) && (by_pod || !ordinals(living).contains(&ordinal)),
            None => {
                by_pod
                    && self
                        .sets
                        .values()
                        .any(|(set, _)| set.metadata.name.as_deref() == Some(set_name) && policy(set, true))
            }
        };
        if !asked {
            return told("its set does not ask for it");
        }
        let pod = seen.before.pods.get(&ObjectKey::new(seen.change.key.namespace.clone(), pod_name));
        if pod.is_some_and(|pod| owners.iter().any(|owner| Some(&owner.uid) == pod.metadata.uid.as_ref())) {
            return told("its pod is still there");
        }
        Ok(())
    }
}
