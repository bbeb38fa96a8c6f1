//! The arithmetic of a rollout: how many pods each ReplicaSet shall have. Nothing is written here.

use k8s_openapi::api::apps::v1::{DeploymentSpec, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::pods::scaled;

/// Upstream's annotations of a ReplicaSet.
pub const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
pub const MAX: &str = "deployment.kubernetes.io/max-replicas";
pub const REVISION: &str = "deployment.kubernetes.io/revision";
pub const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";

/// What a Deployment asks for, in numbers.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// `spec.replicas`.
    pub replicas: i32,
    /// Pods beyond `replicas` while rolling.
    pub surge: i32,
    /// Pods that may be away while rolling.
    pub unavailable: i32,
    /// RollingUpdate, and not Recreate.
    pub rolling: bool,
}

impl Plan {
    /// Percentages of `replicas`: surge is rounded up, unavailable down; never both 0.
    pub fn of(spec: &DeploymentSpec) -> Self {
        let replicas = spec.replicas.unwrap_or(1).max(0);
        let strategy = spec.strategy.as_ref();
        if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate") {
            return Self { replicas, surge: 0, unavailable: 0, rolling: false };
        }
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let quarter = IntOrString::String("25%".into());
        let number = |value: Option<&IntOrString>, up| scaled(value.unwrap_or(&quarter), replicas, up).max(0);
        let surge = number(rolling.and_then(|rolling| rolling.max_surge.as_ref()), true);
        let unavailable = number(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()), false);
        let unavailable = if surge == 0 && unavailable == 0 { 1 } else { unavailable.min(replicas) };
        Self { replicas, surge, unavailable, rolling: true }
    }

    /// The most pods there may be.
    pub fn max(&self) -> i32 {
        if self.replicas == 0 { 0 } else { self.replicas.saturating_add(self.surge) }
    }

    /// How large the new ReplicaSet may be beside the others, which have `total` pods with its own `has`.
    pub fn size_of_new(&self, has: i32, total: i32) -> i32 {
        if !self.rolling {
            return self.replicas;
        }
        let room = self.replicas.saturating_add(self.surge).saturating_sub(total);
        if room <= 0 { has } else { has + room.min(self.replicas.saturating_sub(has)).max(0) }
    }

    /// The sizes of the old ReplicaSets (oldest first) after one step down: first what is not available anyway, then as
    /// many available pods as `unavailable` lets go. A ReplicaSet that was just shrunk may still count pods that are
    /// about to go: no more of them are counted on than it shall have.
    pub fn shrink_old(&self, new: Option<&ReplicaSet>, old: &[&ReplicaSet]) -> Vec<i32> {
        let available = |set: &ReplicaSet| available(set).min(size(set));
        let mut sizes: Vec<i32> = old.iter().map(|set| size(set)).collect();
        let total = sizes.iter().sum::<i32>() + new.map_or(0, size);
        let min_available = self.replicas - self.unavailable;
        let new_unavailable = new.map_or(0, |new| (size(new) - available(new)).max(0));
        let mut allowed = total - min_available - new_unavailable;
        if allowed <= 0 {
            return sizes;
        }
        for (size, set) in sizes.iter_mut().zip(old) {
            let dead = (*size - available(set)).clamp(0, allowed.max(0));
            *size -= dead;
            allowed -= dead;
        }
        let mut spare = old.iter().map(|set| available(set)).sum::<i32>() + new.map_or(0, &available) - min_available;
        for size in &mut sizes {
            let less = (*size).clamp(0, spare.max(0));
            *size -= less;
            spare -= less;
        }
        sizes
    }

    /// Scaling in the middle of a rollout: each ReplicaSet gets its share of the change, the largest what is left over.
    /// `sets` are those with pods, in the order of creation; the answer is in their order.
    pub fn proportional(&self, sets: &[&ReplicaSet], status_replicas: i32) -> Vec<i32> {
        let mut sizes: Vec<i32> = sets.iter().map(|set| size(set)).collect();
        let change = self.max() - sizes.iter().sum::<i32>();
        let mut order: Vec<usize> = (0..sets.len()).collect();
        // Growing favours the newest of equal size, shrinking the oldest.
        order.sort_by_key(|&at| {
            (std::cmp::Reverse(sizes.get(at).copied()), if change > 0 { usize::MAX - at } else { at })
        });
        let mut added = 0;
        for &at in &order {
            let (Some(size), Some(set)) = (sizes.get_mut(at), sets.get(at)) else { continue };
            if change == 0 || *size == 0 {
                continue;
            }
            let left = change - added;
            let share = self.share(set, status_replicas);
            let share = if change > 0 { share.clamp(0, left.max(0)) } else { share.clamp(left.min(0), 0) };
            *size = (*size + share).max(0);
            added += share;
        }
        if let Some(size) = order.first().and_then(|&at| sizes.get_mut(at)) {
            *size = (*size + change - added).max(0);
        }
        sizes
    }

    fn share(&self, set: &ReplicaSet, status_replicas: i32) -> i32 {
        let size = size(set);
        if self.replicas == 0 {
            return -size;
        }
        let before = annotated(set, MAX).filter(|max| *max > 0).unwrap_or(status_replicas);
        if before <= 0 {
            return 0;
        }
        let (product, before) =
            (i64::from(size) * i64::from(self.replicas.saturating_add(self.surge)), i64::from(before));
        i32::try_from((2 * product + before) / (2 * before)).unwrap_or(i32::MAX) - size
    }
}

/// `spec.replicas` of a ReplicaSet.
pub fn size(set: &ReplicaSet) -> i32 {
    set.spec.replicas.unwrap_or(1).max(0)
}

/// `status.availableReplicas`.
pub fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

/// An annotation that is a number.
pub fn annotated<T: std::str::FromStr>(set: &ReplicaSet, name: &str) -> Option<T> {
    set.metadata.annotations.as_ref()?.get(name)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn plan(json: serde_json::Value) -> Plan {
        let spec: DeploymentSpec = serde_json::from_value(json).unwrap_or_default();
        Plan::of(&spec)
    }

    fn set(size: i32, available: i32, max: i32) -> ReplicaSet {
        let object = json!({"metadata": {"annotations": {MAX: max.to_string()}},
            "spec": {"replicas": size, "selector": {}}, "status": {"replicas": size, "availableReplicas": available}});
        serde_json::from_value(object).unwrap_or_default()
    }

    #[test]
    fn percentages_round_towards_availability() {
        let rolling = |surge: &str, unavailable: &str, replicas: i32| {
            let plan = plan(json!({"replicas": replicas, "selector": {}, "template": {},
                    "strategy": {"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}}}));
            (plan.surge, plan.unavailable)
        };
        assert_eq!(rolling("25%", "25%", 10), (3, 2));
        assert_eq!(rolling("0%", "10%", 5), (0, 1), "both 0 would never move");
        assert_eq!(rolling("1%", "100%", 3), (1, 3));
    }

    #[test]
    fn a_step_of_a_rollout() {
        let plan = Plan { replicas: 10, surge: 3, unavailable: 2, rolling: true };
        assert_eq!(plan.size_of_new(0, 10), 3, "as much as surge allows");
        assert_eq!(plan.size_of_new(3, 13), 3, "no room");
        assert_eq!(plan.size_of_new(8, 9), 10, "never more than asked for");
        let (new, old) = (set(3, 0, 13), set(10, 10, 13));
        assert_eq!(plan.shrink_old(Some(&new), &[&old]), [8], "the new ones are not available yet");
        let (broken, old) = (set(4, 0, 13), set(8, 8, 13));
        assert_eq!(plan.shrink_old(Some(&set(1, 1, 13)), &[&broken, &old]), [0, 7], "what is broken goes first");
    }

    #[test]
    fn scaling_in_the_middle_of_a_rollout_is_proportional() {
        let plan = Plan { replicas: 15, surge: 3, unavailable: 2, rolling: true };
        assert_eq!(plan.proportional(&[&set(8, 8, 13), &set(5, 5, 13)], 13), [11, 7]);
        let none = Plan { replicas: 0, surge: 0, unavailable: 0, rolling: true };
        assert_eq!(none.proportional(&[&set(8, 8, 13), &set(5, 5, 13)], 13), [0, 0]);
    }
}
