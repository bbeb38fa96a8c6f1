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
        has + room.min(self.replicas.saturating_sub(has)).max(0)
    }

    /// The sizes of the old ReplicaSets (oldest first) after one step down: first what is not available anyway, then as
    /// many available pods as `unavailable` lets go. A ReplicaSet that was just shrunk may still count pods that are
    /// about to go: no more of them are counted on than it shall have.
    pub fn shrink_old(&self, new: Option<&ReplicaSet>, old: &[&ReplicaSet]) -> Vec<i32> {
        let available = |set: &ReplicaSet| available(set).min(size(set));
        let mut sizes: Vec<i32> = old.iter().map(|set| size(set)).collect();
        let total = sizes.iter().sum::<i32>() + new.map_or(0, size);
        let min_available = self.replicas - self.unavailable;
        let new_unavailable = new.map_or(0, |new| size(new) - available(new));
        let mut allowed = total - min_available - new_unavailable;
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
    fn what_is_asked_for_in_numbers() {
        let of = |strategy: serde_json::Value, replicas: i32| {
            let plan = plan(json!({"replicas": replicas, "selector": {}, "template": {}, "strategy": strategy}));
            (plan.surge, plan.unavailable, plan.max(), plan.rolling)
        };
        let bounds =
            |surge: i32, unavailable: i32| json!({"rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}});
        assert_eq!(of(json!({}), 10), (3, 2, 13, true), "a quarter of each");
        assert_eq!(of(bounds(3, 0), 4), (3, 0, 7, true));
        assert_eq!(of(bounds(0, 2), 4), (0, 2, 4, true));
        assert_eq!(of(bounds(0, 0), 4), (0, 1, 4, true));
        assert_eq!(of(bounds(1, 9), 4), (1, 4, 5, true), "not more than there are");
        assert_eq!(of(bounds(2, 0), 0), (2, 0, 0, true), "nothing is nothing");
        assert_eq!(of(json!({"type": "Recreate"}), 4), (0, 0, 4, false));
        let recreate = Plan { replicas: 4, surge: 0, unavailable: 0, rolling: false };
        assert_eq!(recreate.size_of_new(1, 9), 4);
        let rolling = Plan { replicas: 4, surge: 1, unavailable: 0, rolling: true };
        assert_eq!([(0, 5), (0, 4), (2, 9), (6, 0)].map(|(has, total)| rolling.size_of_new(has, total)), [0, 1, 2, 6]);
    }

    /// Never more than `unavailable` are away, whatever of it is broken in which ReplicaSet.
    #[test]
    fn old_pods_go_as_far_as_others_serve() {
        let plan = Plan { replicas: 10, surge: 3, unavailable: 2, rolling: true };
        let shrunk = |new: Option<(i32, i32)>, old: &[(i32, i32)]| {
            let sets: Vec<ReplicaSet> = old.iter().map(|&(size, available)| set(size, available, 13)).collect();
            let new = new.map(|(size, available)| set(size, available, 13));
            plan.shrink_old(new.as_ref(), &sets.iter().collect::<Vec<_>>())
        };
        assert_eq!(shrunk(Some((3, 0)), &[(10, 5)]), [8], "what is broken, too, no faster than new ones come");
        assert_eq!(shrunk(Some((5, 5)), &[(4, 0), (4, 0)]), [0, 3], "the oldest first");
        assert_eq!(shrunk(Some((4, 4)), &[(3, 3), (5, 5)]), [0, 4]);
        assert_eq!(shrunk(None, &[(8, 8)]), [8]);
        assert_eq!(shrunk(None, &[(9, 9)]), [8]);
        assert_eq!(shrunk(Some((3, 3)), &[(2, 5)]), [2], "those that go are not counted on");
        assert_eq!(shrunk(Some((10, 0)), &[(8, 8)]), [8]);
    }

    #[test]
    fn what_a_share_leaves_over_goes_to_the_largest() {
        let plan = |replicas: i32, surge: i32| Plan { replicas, surge, unavailable: 0, rolling: true };
        let share = |plan: Plan, sizes: &[(i32, i32)], before: i32| {
            let sets: Vec<ReplicaSet> = sizes.iter().map(|&(size, max)| set(size, size, max)).collect();
            plan.proportional(&sets.iter().collect::<Vec<_>>(), before)
        };
        assert_eq!(share(plan(13, 0), &[(5, 10), (5, 10)], 10), [6, 7], "the newest of two grows");
        assert_eq!(share(plan(7, 0), &[(5, 10), (5, 10)], 10), [3, 4], "the oldest of two shrinks");
        assert_eq!(share(plan(10, 0), &[(4, 6), (6, 6)], 10), [4, 6], "there are as many as there shall be");
        assert_eq!(share(plan(10, 0), &[(2, 6), (4, 6)], 6), [3, 7]);
        assert_eq!(share(plan(0, 3), &[(8, 13), (5, 13)], 13), [0, 0], "nothing is asked for");
        // Without a note of how many there were, the status says it; without that, the largest gets all.
        assert_eq!(share(plan(12, 0), &[(4, 0), (4, 0)], 8), [6, 6]);
        assert_eq!(share(plan(12, 0), &[(4, 8), (4, 8)], 100), [6, 6], "the note counts");
        assert_eq!(share(plan(10, 0), &[(4, 0), (2, 0)], 0), [8, 2]);
    }

    #[test]
    fn scaling_in_the_middle_of_a_rollout_is_proportional() {
        let plan = Plan { replicas: 15, surge: 3, unavailable: 2, rolling: true };
        assert_eq!(plan.proportional(&[&set(8, 8, 13), &set(5, 5, 13)], 13), [11, 7]);
        let none = Plan { replicas: 0, surge: 0, unavailable: 0, rolling: true };
        assert_eq!(none.proportional(&[&set(8, 8, 13), &set(5, 5, 13)], 13), [0, 0]);
    }
}
