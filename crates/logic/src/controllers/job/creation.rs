//! Making a Job's pods, and choosing which of too many go.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use mainstay_api::ObjectKey;
use mainstay_api::kinds::{JOB, POD};
use serde_json::{Value, json};

use super::counting::{Counts, TRACKING};
use super::indexes::{INDEX, Indexes, index_of, is_indexed};
use super::{Observed, backoff, by_index, policy};
use crate::decision::{Decision, Event, Waiting, Write};
use crate::history::suffix;
use crate::pod_template;
use crate::pods::{self, is_terminating};

/// How many pods one decision makes or deletes at most; upstream's.
pub const MAX_WRITES: usize = 500;
/// The variable with the index that every container gets.
const VARIABLE: &str = "JOB_COMPLETION_INDEX";

/// Makes up to `missing` pods: of an Indexed Job those of the lowest indexes that have none.
pub fn create(o: &Observed, counts: &Counts, missing: usize, now: Timestamp, d: &mut Decision) {
    let per_index = o.spec.backoff_limit_per_index.is_some();
    if !per_index && let Some(at) = backoff::until(o.spec, &o.pods).filter(|at| *at > now) {
        d.waiting.push(Waiting::Backoff);
        d.wake(at);
        return;
    }
    let count = missing.min(MAX_WRITES);
    if !is_indexed(o.job) {
        return make(o, &vec![None; count], counts, d);
    }
    let mut taken: BTreeSet<i32> = counts.active.iter().filter_map(|pod| index_of(pod)).collect();
    if policy::replaces_only_failed(o.spec) {
        let leaving = o.pods.iter().filter(|pod| is_terminating(&pod.metadata) && !pods::is_finished(pod));
        taken.extend(leaving.filter_map(|pod| index_of(pod)));
    }
    let failed = counts.failed_indexes.clone().unwrap_or_default();
    let settled: Indexes = counts.succeeded_indexes.union(&failed).with(taken);
    let mut chosen = Vec::new();
    for index in settled.missing(count, o.spec.completions.unwrap_or(0)) {
        let at = counts.last_failed.get(&index).and_then(|last| backoff::until_of_index(last));
        match at.filter(|at| *at > now) {
            Some(at) => {
                d.waiting.push(Waiting::Backoff);
                d.wake(at);
            }
            None => chosen.push(Some(index)),
        }
    }
    make(o, &chosen, counts, d);
}

fn make(o: &Observed, indexes: &[Option<i32>], counts: &Counts, d: &mut Decision) {
    let meta = &o.job.metadata;
    let (namespace, uid) = (meta.namespace.as_deref().unwrap_or(""), meta.uid.as_deref().unwrap_or(""));
    let job = meta.name.as_deref().unwrap_or("");
    let mut taken = BTreeSet::new();
    let mut attempt = 0;
    for index in indexes {
        let prefix = prefix(job, *index);
        // A name that is taken costs one more attempt; when all of them are, the next snapshot gives others.
        let name = loop {
            let name = pod_template::name(&prefix, &suffix(uid, o.revision, attempt));
            attempt += 1;
            if !o.all_pods.contains_key(&ObjectKey::new(namespace, name.as_str())) && taken.insert(name.clone()) {
                break name;
            }
            if attempt > 4 * MAX_WRITES as u64 {
                return;
            }
        };
        let template = template(o, *index, counts);
        d.apart(|d| {
            d.writes.push(Write::Create {
                kind: POD.clone(),
                object: pod_template::pod(&template, &JOB, meta, &prefix, &name),
            });
            d.events.push(Event::normal(&JOB, meta, "SuccessfulCreate", format!("Created pod: {name}")));
        });
    }
}

/// What a pod's name begins with; long names of Jobs are cut so that the whole is a label.
fn prefix(job: &str, index: Option<i32>) -> String {
    let Some(index) = index else { return format!("{job}-") };
    let end = format!("-{index}-");
    let room = mainstay_api::names::GENERATE_NAME_LENGTH.saturating_sub(end.len());
    format!("{}{end}", job.get(..room).unwrap_or(job))
}

/// The template of one pod: tracked and, of an Indexed Job, with its index in annotation, label, variable and host
/// name.
fn template(o: &Observed, index: Option<i32>, counts: &Counts) -> PodTemplateSpec {
    let mut template = o.spec.template.clone();
    let meta = template.metadata.get_or_insert_default();
    let finalizers = meta.finalizers.get_or_insert_default();
    if !finalizers.iter().any(|name| name == TRACKING) {
        finalizers.push(TRACKING.to_owned());
    }
    let Some(index) = index else { return template };
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(INDEX.to_owned(), index.to_string());
    if o.spec.backoff_limit_per_index.is_some() {
        let last = counts.last_failed.get(&index);
        let (failures, ignored) = last.map_or((0, 0), |last| backoff::counts_after(o.spec, last));
        annotations.insert(backoff::FAILURES.to_owned(), failures.to_string());
        if ignored > 0 {
            annotations.insert(backoff::IGNORED_FAILURES.to_owned(), ignored.to_string());
        }
    }
    meta.labels.get_or_insert_default().insert(INDEX.to_owned(), index.to_string());
    let Some(spec) = &mut template.spec else { return template };
    spec.hostname = Some(format!("{}-{index}", o.job.metadata.name.as_deref().unwrap_or("")));
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        let variables = container.env.get_or_insert_default();
        if !variables.iter().any(|variable| variable.name == VARIABLE) {
            variables.extend(variable());
        }
    }
    template
}

fn variable() -> Option<k8s_openapi::api::core::v1::EnvVar> {
    let field = format!("metadata.labels['{INDEX}']");
    let value: Value = json!({"name": VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": field}}});
    serde_json::from_value(value).ok()
}

/// The active pods that go: those of an index that another has too, or that the Job has not, and of the others as many
/// as are too many, the least far first.
pub fn surplus<'a>(o: &Observed, counts: &Counts<'a>, at_least: i32) -> Vec<&'a Pod> {
    let at_least = usize::try_from(at_least).unwrap_or(0);
    let (mut surplus, mut left) = (Vec::new(), Vec::new());
    if is_indexed(o.job) {
        let completions = o.spec.completions.unwrap_or(0);
        for (index, mut pods) in by_index(&counts.active) {
            pods.sort_by_cached_key(|pod| pod_template::rank(pod));
            let kept = index.filter(|index| *index < completions).and_then(|_| pods.pop());
            left.extend(kept);
            surplus.extend(pods);
        }
    } else {
        left.clone_from(&counts.active);
    }
    left.sort_by_cached_key(|pod| pod_template::rank(pod));
    let more = at_least.saturating_sub(surplus.len());
    surplus.extend(left.into_iter().take(more));
    surplus
}
