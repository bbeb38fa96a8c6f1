//! How often probes ran, how they ended and how long they took: `/metrics/probes`, with upstream's names. Of a pod's
//! containers only, and only while the pod is here.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use mainstay_logic::kubelet::{ProbeKind, ProbeOutcome};

use super::pods::PodHandle;
use crate::streaming::exposition::{Exposition, labels};

/// Ends of the histogram's buckets in seconds: those of every client of Prometheus.
const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// What was counted, by pod uid, container and kind of probe.
#[derive(Default)]
pub struct Probed(Mutex<BTreeMap<(String, String, ProbeKind), Counted>>);

#[derive(Clone, Default)]
struct Counted {
    successful: u64,
    failed: u64,
    /// How many took at most so long, of those that were successful.
    buckets: [u64; BUCKETS.len()],
    seconds: f64,
}

impl Probed {
    /// A probe has run. One that could not be run does not count, and how long a failure took neither, as upstream.
    pub fn count(&self, uid: &str, container: &str, kind: ProbeKind, outcome: &ProbeOutcome, took: Duration) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = match outcome {
            ProbeOutcome::Error(_) => return,
            _ => all.entry((uid.to_owned(), container.to_owned(), kind)).or_default(),
        };
        if matches!(outcome, ProbeOutcome::Failure(_)) {
            counted.failed += 1;
            return;
        }
        let seconds = took.as_secs_f64();
        counted.successful += 1;
        counted.seconds += seconds;
        for (end, count) in BUCKETS.iter().zip(&mut counted.buckets) {
            *count += u64::from(seconds <= *end);
        }
    }

    /// The pod is over.
    pub fn forget(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|(of, ..), _| of != uid);
    }

    /// What was counted of these pods.
    pub fn metrics(&self, pods: &[PodHandle]) -> String {
        let names = pods.iter().map(|handle| &handle.context);
        let names = names.map(|of| (of.uid.as_str(), (of.namespace.as_str(), of.name.as_str()))).collect();
        self.told(&names)
    }

    fn told(&self, names: &BTreeMap<&str, (&str, &str)>) -> String {
        const TOTAL: &str = "prober_probe_total";
        const DURATION: &str = "prober_probe_duration_seconds";
        let counted = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut out = Exposition::default();
        let help = "Cumulative number of a liveness, readiness or startup probe for a container by result.";
        out.family(TOTAL, "counter", help);
        out.family(DURATION, "histogram", "Duration in seconds for a probe response.");
        for ((uid, container, kind), of) in &counted {
            let Some((namespace, pod)) = names.get(uid.as_str()) else { continue };
            let mut pairs =
                vec![("container", container.as_str()), ("namespace", namespace), ("pod", pod), ("pod_uid", uid)];
            pairs.push(("probe_type", kind.title()));
            for (result, count) in [("failed", of.failed), ("successful", of.successful)] {
                if count > 0 {
                    out.add(TOTAL, &labels(&[&pairs[..], &[("result", result)]].concat()), count, None);
                }
            }
            if of.successful == 0 {
                continue;
            }
            pairs.retain(|(name, _)| *name != "pod_uid");
            let ends = BUCKETS.iter().map(f64::to_string).chain(["+Inf".to_owned()]);
            for (end, count) in ends.zip(of.buckets.into_iter().chain([of.successful])) {
                let labels = labels(&[&pairs[..], &[("le", &end)]].concat());
                out.add_of(DURATION, "_bucket", &labels, count, None);
            }
            out.add_of(DURATION, "_sum", &labels(&pairs), of.seconds, None);
            out.add_of(DURATION, "_count", &labels(&pairs), of.successful, None);
        }
        out.text()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conformance_probes_are_counted_by_result_while_their_pod_is_here() {
        let probed = Probed::default();
        let count = |kind, outcome, took| probed.count("u", "c", kind, &outcome, Duration::from_millis(took));
        count(ProbeKind::Liveness, ProbeOutcome::Success, 20);
        count(ProbeKind::Liveness, ProbeOutcome::Warning("leads elsewhere".to_owned()), 30_000);
        count(ProbeKind::Liveness, ProbeOutcome::Failure("no".to_owned()), 9);
        count(ProbeKind::Readiness, ProbeOutcome::Error("no such container".to_owned()), 1);
        probed.count("gone", "c", ProbeKind::Startup, &ProbeOutcome::Success, Duration::ZERO);
        let text = probed.told(&BTreeMap::from([("u", ("ns", "p"))]));
        let of = |result: &str| {
            format!(
                "prober_probe_total{{container=\"c\",namespace=\"ns\",pod=\"p\",pod_uid=\"u\",probe_type=\"Liveness\",\
                    result=\"{result}\"}}"
            )
        };
        let bucket = |end: &str| {
            format!(
                "prober_probe_duration_seconds_bucket{{container=\"c\",namespace=\"ns\",pod=\"p\",\
                    probe_type=\"Liveness\",le=\"{end}\"}}"
            )
        };
        for line in [
            format!("{} 2", of("successful")),
            format!("{} 1", of("failed")),
            format!("{} 0", bucket("0.01")),
            format!("{} 1", bucket("0.025")),
            format!("{} 1", bucket("10")),
            format!("{} 2", bucket("+Inf")),
        ] {
            assert!(text.lines().any(|told| told == line), "{line}\n{text}");
        }
        assert!(!text.contains("Readiness") && !text.contains("Startup"), "{text}");
        probed.forget("u");
        assert!(!probed.told(&BTreeMap::from([("u", ("ns", "p"))])).contains("Liveness"));
    }
}
