//! How fast a size may change: stabilisation windows, policies, and the smallest and largest size.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde_json::{Value, json};

/// Where the history is kept, on the autoscaler.
pub const HISTORY: &str = "mainstay.io/autoscaling-history";
/// How long a larger recommendation holds where nothing else is said (seconds; upstream's).
const DOWN_WINDOW: i64 = 300;
/// Notes of each kind in the history, at most; older ones give way.
const MAX_NOTES: usize = 128;
/// A recommendation that stays the same is noted anew after so long (seconds): its window ends no earlier than it
/// should, and so much later at most.
const RENEW: i64 = 60;

/// What was recommended, and what was scaled, and when (seconds since 1970).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct History {
    recommended: Vec<(i64, i32)>,
    scaled: Vec<(i64, i32)>,
}

/// What is left of a proposal.
pub struct Limited {
    pub replicas: i32,
    /// `ScaleUpStabilized` or `ScaleDownStabilized`.
    pub is_stabilized: Option<&'static str>,
    /// Reason and message of what held it back.
    pub limit: Option<(&'static str, &'static str)>,
}

impl History {
    /// What an autoscaler has noted. Whoever may write its annotations may write this, too: what cannot have been noted
    /// until now is left out, and so holds nothing for longer than its window.
    pub fn of(meta: &ObjectMeta, now: Timestamp) -> Self {
        let noted: Value = raw(meta).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
        let mut recommended = notes(&noted["recommended"], now);
        recommended.iter_mut().for_each(|(_, replicas)| *replicas = (*replicas).max(0));
        Self { recommended, scaled: notes(&noted["scaled"], now) }
    }

    /// The size that is found counts as the first recommendation, also where all others were forgotten while there
    /// were no metrics: nothing shrinks at the first look.
    pub fn begin(&mut self, current: i32, now: Timestamp) {
        if self.recommended.is_empty() {
            self.recommend(current, now);
        }
    }

    /// A size was recommended. Of the same size in a row only the first note and the last are needed.
    fn recommend(&mut self, replicas: i32, now: Timestamp) {
        let now = now.as_second();
        match self.recommended.last_mut() {
            Some((at, last)) if *last == replicas => {
                if now - *at >= RENEW {
                    *at = now;
                }
            }
            _ => self.recommended.push((now, replicas)),
        }
        let excess = self.recommended.len().saturating_sub(MAX_NOTES);
        self.recommended.drain(..excess);
    }

    /// The size was changed by so many.
    pub fn scaled(&mut self, by: i32, now: Timestamp) {
        self.scaled.push((now.as_second(), by));
        let excess = self.scaled.len().saturating_sub(MAX_NOTES);
        self.scaled.drain(..excess);
    }

    /// How many were added (or, `down`, taken away) in the last so many seconds.
    fn changed(&self, seconds: i32, down: bool, now: Timestamp) -> i32 {
        let since = now.as_second() - i64::from(seconds);
        let all = self.scaled.iter().filter(|(at, by)| *at > since && (*by < 0) == down);
        all.fold(0_i32, |sum, (_, by)| sum.saturating_add(by.saturating_abs()))
    }

    /// The sizes that were recommended in the last so many seconds.
    fn lately(&self, seconds: i64, now: Timestamp) -> impl Iterator<Item = i32> + '_ {
        let since = now.as_second() - seconds;
        // A note that was not renewed yet holds a little longer.
        self.recommended.iter().filter(move |(at, _)| *at + RENEW > since).map(|(_, replicas)| *replicas)
    }

    /// Forgets what is older than every window and period.
    pub fn forget(&mut self, spec: &HorizontalPodAutoscalerSpec, now: Timestamp) {
        let rules = [up(spec), down(spec)].into_iter().flatten();
        let mut longest = DOWN_WINDOW;
        for rules in rules {
            longest = longest.max(i64::from(rules.stabilization_window_seconds.unwrap_or(0)));
            let periods = rules.policies.iter().flatten().map(|policy| i64::from(policy.period_seconds));
            longest = periods.fold(longest, i64::max);
        }
        let since = now.checked_sub(SignedDuration::from_secs(longest + RENEW)).map_or(0, Timestamp::as_second);
        self.recommended.retain(|(at, _)| *at >= since);
        self.scaled.retain(|(at, _)| *at >= since);
    }

    /// The annotation, where it differs from the text that is there.
    pub fn patch(&self, meta: &ObjectMeta) -> Option<Value> {
        let text = json!(self).to_string();
        let is_new = raw(meta).map_or(*self != Self::default(), |noted| noted != text);
        is_new.then(|| json!({ HISTORY: text }))
    }
}

fn raw(meta: &ObjectMeta) -> Option<&str> {
    meta.annotations.as_ref()?.get(HISTORY).map(String::as_str)
}

/// Notes (when, how many) by time, the last [`MAX_NOTES`] of those that were made until now. One of a clock that goes a
/// little faster (another server's) counts as made now.
fn notes(noted: &Value, now: Timestamp) -> Vec<(i64, i32)> {
    let now = now.as_second();
    let note = |pair: &Value| {
        let [at, replicas] = pair.as_array()?.as_slice() else { return None };
        let at = at.as_i64().filter(|at| (0..=now.saturating_add(RENEW)).contains(at))?;
        let replicas = replicas.as_i64().unwrap_or_else(|| replicas.as_f64().unwrap_or(0.0) as i64);
        Some((at.min(now), replicas.clamp(i32::MIN.into(), i32::MAX.into()) as i32))
    };
    let mut notes: Vec<(i64, i32)> = noted.as_array().into_iter().flatten().filter_map(note).collect();
    notes.sort_by_key(|(at, _)| *at);
    notes.drain(..notes.len().saturating_sub(MAX_NOTES));
    notes
}

fn up(spec: &HorizontalPodAutoscalerSpec) -> Option<&HPAScalingRules> {
    spec.behavior.as_ref().and_then(|behavior| behavior.scale_up.as_ref())
}

fn down(spec: &HorizontalPodAutoscalerSpec) -> Option<&HPAScalingRules> {
    spec.behavior.as_ref().and_then(|behavior| behavior.scale_down.as_ref())
}

/// A proposed size as it may be.
pub fn limit(
    spec: &HorizontalPodAutoscalerSpec,
    current: i32,
    proposed: i32,
    history: &mut History,
    now: Timestamp,
) -> Limited {
    let window = |rules: Option<&HPAScalingRules>, default: i64| {
        rules.and_then(|rules| rules.stabilization_window_seconds).map_or(default, i64::from)
    };
    let (up_window, down_window) = (window(up(spec), 0), window(down(spec), DOWN_WINDOW));
    // What it may go up to at most, and down to at least, if all that was recommended in the windows is to agree.
    let lowest = lowest_lately(history, up_window, proposed, now);
    let highest = history.lately(down_window, now).fold(proposed, i32::max);
    history.recommend(proposed, now);
    let (replicas, is_stabilized) = if proposed > current {
        let stable = lowest.max(current);
        (stable, (stable < proposed).then_some("ScaleUpStabilized"))
    } else {
        let stable = if down_window == 0 { proposed } else { highest.min(current) };
        (stable, (stable > proposed).then_some("ScaleDownStabilized"))
    };
    let (replicas, limit) = at_most_and_least(spec, current, replicas, history, now);
    Limited { replicas, is_stabilized, limit }
}

fn lowest_lately(history: &History, window: i64, proposed: i32, now: Timestamp) -> i32 {
    if window == 0 { proposed } else { history.lately(window, now).fold(proposed, i32::min) }
}

fn at_most_and_least(
    spec: &HorizontalPodAutoscalerSpec,
    current: i32,
    wanted: i32,
    history: &History,
    now: Timestamp,
) -> (i32, Option<(&'static str, &'static str)>) {
    let (least, most) = (spec.min_replicas.unwrap_or(1), spec.max_replicas);
    if wanted > current {
        let fastest = scale_up_limit(spec, current, history, now);
        let (bound, why) = match fastest < most {
            true => (
                fastest.max(current),
                ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate"),
            ),
            false => (most, ("TooManyReplicas", "the desired replica count is more than the maximum replica count")),
        };
        return if wanted > bound { (bound, Some(why)) } else { (wanted, None) };
    }
    if wanted < current {
        let fastest = scale_down_limit(spec, current, history, now);
        let (bound, why) = match fastest > least {
            true => (
                fastest.min(current),
                ("ScaleDownLimit", "the desired replica count is decreasing faster than the maximum scale rate"),
            ),
            false => (least, ("TooFewReplicas", "the desired replica count is less than the minimum replica count")),
        };
        return if wanted < bound { (bound, Some(why)) } else { (wanted, None) };
    }
    (wanted, None)
}

/// The largest size that the policies allow now.
fn scale_up_limit(spec: &HorizontalPodAutoscalerSpec, current: i32, history: &History, now: Timestamp) -> i32 {
    let Some(rules) = up(spec) else { return current.saturating_mul(2).max(4) };
    let of = |policy: &HPAScalingPolicy| {
        let before = current.saturating_sub(history.changed(policy.period_seconds, false, now));
        match policy.type_.as_str() {
            "Pods" => before.saturating_add(policy.value),
            _ => share(before, 100 + i64::from(policy.value), true),
        }
    };
    choose(rules, of, current, i32::MAX, true)
}

/// The smallest size that the policies allow now.
fn scale_down_limit(spec: &HorizontalPodAutoscalerSpec, current: i32, history: &History, now: Timestamp) -> i32 {
    let Some(rules) = down(spec) else { return i32::MIN };
    let of = |policy: &HPAScalingPolicy| {
        let before = current.saturating_add(history.changed(policy.period_seconds, true, now));
        match policy.type_.as_str() {
            "Pods" => before.saturating_sub(policy.value),
            _ => share(before, 100 - i64::from(policy.value), false),
        }
    };
    choose(rules, of, current, i32::MIN, false)
}

/// By `selectPolicy`: the largest change (`Max`), the smallest (`Min`), or none at all. `free` where there is no
/// policy.
fn choose(rules: &HPAScalingRules, of: impl Fn(&HPAScalingPolicy) -> i32, current: i32, free: i32, is_up: bool) -> i32 {
    let all = rules.policies.iter().flatten().map(of);
    let chosen = match rules.select_policy.as_deref() {
        Some("Disabled") => return current,
        Some("Min") => {
            if is_up {
                all.min()
            } else {
                all.max()
            }
        }
        _ => {
            if is_up {
                all.max()
            } else {
                all.min()
            }
        }
    };
    chosen.unwrap_or(free)
}

/// So many percent, rounded up (or down).
fn share(replicas: i32, percent: i64, round_up: bool) -> i32 {
    let product = i64::from(replicas) * percent;
    let whole = if round_up {
        product.div_euclid(100) + i64::from(product.rem_euclid(100) != 0)
    } else {
        product.div_euclid(100)
    };
    i32::try_from(whole).unwrap_or(i32::MAX)
}
