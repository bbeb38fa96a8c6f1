//! What a node runs short of: thresholds, the conditions that follow from them, which pods are not taken then, and
//! which pod is evicted first.
//!
//! Guarantees X4: pods that fill the node's disk, each within its limits or without any, are ended before everybody's
//! writes fail, in upstream's words and order. S2 stays: a pod that is evicted has failed, its set makes it again.
//!
//! Differs, where state is at stake: a pod is evicted only where that gives something back ([`noticeable`]). Upstream
//! evicts one pod after another while a disk is short, also those that have nothing on it; a full disk of volumes would
//! end every database whose files they are. Volumes of claims are nobody's local storage and are never counted. The
//! thresholds of `imagefs` are for images that have a file system of their own; where they share the node's, its
//! thresholds are those of both. Nothing is evicted for memory or process ids: those conditions keep new pods away,
//! and the kernel ends a container that has too much, which starts again in its place.

use std::collections::{BTreeMap, BTreeSet};

use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Container, Pod};
use mainstay_api::quantity::{Format, Quantity};

use super::admission::Refusal;
use super::eviction::{RESOURCE, Usage};
use super::qos;
use crate::resources;

/// Pods of this priority and above are never evicted for others' sake, and always taken.
const CRITICAL_PRIORITY: i32 = 2_000_000_000;
/// A pod whose eviction would give back less is not evicted, on a disk that is large: as much as one container's
/// rotated logs may come to, and a little.
const NOTICEABLE_BYTES: u64 = 64 << 20;
const NOTICEABLE_INODES: u64 = 16_384;
/// On a small file system it is this part of it.
const NOTICEABLE_PART: u64 = 100;
/// Why a pod with this reason was not taken, or was ended.
const EVICTED: &str = "Evicted";

/// What is measured. Ordered by what is looked at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    MemoryAvailable,
    /// The file system of the data folder: root file systems, logs, emptyDirs.
    NodefsAvailable,
    NodefsInodesFree,
    /// That of the images, where it is another one.
    ImagefsAvailable,
    ImagefsInodesFree,
    PidAvailable,
}

impl Signal {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::MemoryAvailable,
        Self::NodefsAvailable,
        Self::NodefsInodesFree,
        Self::ImagefsAvailable,
        Self::ImagefsInodesFree,
        Self::PidAvailable,
    ];

    /// Upstream's name of it.
    pub fn name(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory.available",
            Self::NodefsAvailable => "nodefs.available",
            Self::NodefsInodesFree => "nodefs.inodesFree",
            Self::ImagefsAvailable => "imagefs.available",
            Self::ImagefsInodesFree => "imagefs.inodesFree",
            Self::PidAvailable => "pid.available",
        }
    }

    /// The condition that says it is short.
    pub fn condition(self) -> Condition {
        match self {
            Self::MemoryAvailable => Condition::MemoryPressure,
            Self::PidAvailable => Condition::PidPressure,
            _ => Condition::DiskPressure,
        }
    }

    /// What it is called in messages.
    pub fn resource(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory",
            Self::NodefsAvailable | Self::ImagefsAvailable => RESOURCE,
            Self::NodefsInodesFree | Self::ImagefsInodesFree => "inodes",
            Self::PidAvailable => "pids",
        }
    }

    /// Whether it counts files instead of bytes.
    pub fn counts_inodes(self) -> bool {
        matches!(self, Self::NodefsInodesFree | Self::ImagefsInodesFree)
    }
}

/// A condition of a Node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    MemoryPressure,
    DiskPressure,
    PidPressure,
}

impl Condition {
    /// All of them, as they stand in a Node.
    pub const ALL: [Self; 3] = [Self::MemoryPressure, Self::DiskPressure, Self::PidPressure];

    /// Its type.
    pub fn name(self) -> &'static str {
        match self {
            Self::MemoryPressure => "MemoryPressure",
            Self::DiskPressure => "DiskPressure",
            Self::PidPressure => "PIDPressure",
        }
    }

    /// The reason and the message of the condition.
    pub fn words(self, is_short: bool) -> (&'static str, &'static str) {
        match (self, is_short) {
            (Self::MemoryPressure, true) => {
                ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available")
            }
            (Self::MemoryPressure, false) => ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            (Self::DiskPressure, true) => ("KubeletHasDiskPressure", "kubelet has disk pressure"),
            (Self::DiskPressure, false) => ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            (Self::PidPressure, true) => ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
            (Self::PidPressure, false) => ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        }
    }

    /// The reason of the event that says it began or ended.
    pub fn event(self, is_short: bool) -> &'static str {
        match (self, is_short) {
            (Self::MemoryPressure, true) => "NodeHasInsufficientMemory",
            (Self::MemoryPressure, false) => "NodeHasSufficientMemory",
            (Self::DiskPressure, true) => "NodeHasDiskPressure",
            (Self::DiskPressure, false) => "NodeHasNoDiskPressure",
            (Self::PidPressure, true) => "NodeHasInsufficientPID",
            (Self::PidPressure, false) => "NodeHasSufficientPID",
        }
    }
}

/// How little of something is too little.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Least {
    /// Bytes, files or process ids.
    Units(u64),
    /// Thousandths of a percent of all there is.
    Part(u32),
    /// The same, and no more than so many units.
    PartUpTo(u32, u64),
}

impl Least {
    fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Units(units) => units,
            Self::Part(part) => u64::try_from(u128::from(capacity) * u128::from(part) / 100_000).unwrap_or(u64::MAX),
            Self::PartUpTo(part, most) => Self::Part(part).of(capacity).min(most),
        }
    }
}

/// More than this of a disk is not held back, unless somebody says so: what a node needs to go on is bytes, no share.
const MOST_OF_A_DISK: u64 = 1 << 30;

/// A hard threshold of each signal that has one.
pub type Thresholds = BTreeMap<Signal, Least>;

/// Upstream's thresholds. Differs: of a disk's bytes no more than a GiB. Upstream's tenth of a large disk is room that
/// volumes were promised: a database would fill what is its own, and could not start again.
pub fn default_thresholds() -> Thresholds {
    [
        (Signal::MemoryAvailable, Least::Units(100 << 20)),
        (Signal::NodefsAvailable, Least::PartUpTo(10_000, MOST_OF_A_DISK)),
        (Signal::NodefsInodesFree, Least::Part(5_000)),
        (Signal::ImagefsAvailable, Least::PartUpTo(15_000, MOST_OF_A_DISK)),
        (Signal::ImagefsInodesFree, Least::Part(5_000)),
    ]
    .into()
}

/// How much there is of something, and of that how much is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measure {
    pub available: u64,
    pub capacity: u64,
}

/// A threshold that was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shortage {
    pub signal: Signal,
    pub measure: Measure,
    /// What should be available at least.
    pub least: u64,
}

/// What there is too little of. What could not be measured is not short.
pub fn shortages(thresholds: &Thresholds, measures: &BTreeMap<Signal, Measure>) -> Vec<Shortage> {
    let met = thresholds.iter().filter_map(|(signal, least)| {
        let measure = *measures.get(signal)?;
        let least = least.of(measure.capacity);
        (measure.available < least).then_some(Shortage { signal: *signal, measure, least })
    });
    met.collect()
}

/// Which conditions hold: those whose signals are short, and were so within the transition period.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conditions {
    last_short: BTreeMap<Condition, SignedDuration>,
}

impl Conditions {
    /// Takes in what is short at a time of a clock that only goes forward; says what holds.
    pub fn observe(
        &mut self,
        shortages: &[Shortage],
        now: SignedDuration,
        held: SignedDuration,
    ) -> BTreeSet<Condition> {
        self.last_short.extend(shortages.iter().map(|shortage| (shortage.signal.condition(), now)));
        self.last_short.retain(|_, last| now == *last || now.saturating_sub(*last) < held);
        self.last_short.keys().copied().collect()
    }
}

/// Whether a pod belongs to what a node cannot do without.
pub fn is_critical(pod: &Pod) -> bool {
    pod.spec.as_ref().and_then(|spec| spec.priority).is_some_and(|priority| priority >= CRITICAL_PRIORITY)
}

/// Why a node with these conditions does not take a pod. Where memory alone is short it takes those that say how much
/// they need, as upstream.
pub fn refuses(pod: &Pod, conditions: &BTreeSet<Condition>) -> Option<Refusal> {
    if conditions.is_empty() || is_critical(pod) {
        return None;
    }
    if conditions.iter().eq([&Condition::MemoryPressure]) && (qos::class(pod) != "BestEffort" || tolerates(pod)) {
        return None;
    }
    let names: Vec<&str> = conditions.iter().map(|condition| condition.name()).collect();
    Some(Refusal { reason: EVICTED, message: format!("The node had condition: [{}]. ", names.join(" ")) })
}

fn tolerates(pod: &Pod) -> bool {
    let taint = k8s_openapi::api::core::v1::Taint {
        key: "node.kubernetes.io/memory-pressure".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Default::default()
    };
    let mut tolerations = pod.spec.iter().flat_map(|spec| spec.tolerations.iter().flatten());
    tolerations.any(|toleration| crate::matching::tolerates(toleration, &taint))
}

/// How much a pod must have for its eviction to help.
pub fn noticeable(shortage: &Shortage) -> u64 {
    let most = if shortage.signal.counts_inodes() { NOTICEABLE_INODES } else { NOTICEABLE_BYTES };
    most.min(shortage.measure.capacity / NOTICEABLE_PART).max(1)
}

/// Which of these pods is to go, with why: who has more than it asked for before who has not, the least important
/// first, then who has most beyond its request. `usage` is of what is short: bytes, or files.
pub fn victim<'a>(pods: &'a [(&'a Pod, Usage)], shortage: &Shortage) -> Option<(&'a Pod, String)> {
    let asked = |pod: &Pod| match shortage.signal.counts_inodes() {
        true => 0,
        false => u64::try_from(resources::of_pod(pod).get(RESOURCE)).unwrap_or(0),
    };
    let candidates = pods.iter().filter(|(pod, used)| !is_critical(pod) && used.total() >= noticeable(shortage));
    let rank = |(pod, used): &&(&Pod, Usage)| {
        let (used, asked) = (used.total(), asked(pod));
        let priority = pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0);
        let beyond = i128::from(used) - i128::from(asked);
        (used <= asked, priority, -beyond)
    };
    let (pod, used) = candidates.min_by_key(rank)?;
    Some((pod, message(pod, used, shortage)))
}

/// Why a pod is evicted, in upstream's words.
fn message(pod: &Pod, used: &Usage, shortage: &Shortage) -> String {
    let resource = shortage.signal.resource();
    let shown = |amount: u64| Quantity::from_units(i64::try_from(amount).unwrap_or(i64::MAX), Format::BinarySi);
    let (least, available) = (shown(shortage.least), shown(shortage.measure.available));
    let mut text =
        format!("The node was low on resource: {resource}. Threshold quantity: {least}, available: {available}. ");
    if shortage.signal.counts_inodes() {
        return text;
    }
    for container in pod.spec.iter().flat_map(|spec| &spec.containers) {
        let (has, asked) = (used.containers.get(&container.name).copied().unwrap_or(0), request(container));
        if has > u64::try_from(asked.units()).unwrap_or(0) {
            let (name, has) = (&container.name, shown(has));
            text += &format!(
                "Container {name} was using {has}, request is {asked}, has larger consumption of {resource}. "
            );
        }
    }
    text
}

fn request(container: &Container) -> Quantity {
    let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    requests.and_then(|requests| requests.get(RESOURCE)?.0.parse().ok()).unwrap_or(Quantity::ZERO)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    const GIB: u64 = 1 << 30;
    const MIB: u64 = 1 << 20;

    fn pod(name: &str, priority: i32, request: &str) -> Pod {
        let resources = json!({ "requests": { "ephemeral-storage": request } });
        from(json!({ "metadata": { "name": name }, "spec": { "priority": priority,
            "containers": [{ "name": "c", "resources": resources }] } }))
    }

    fn from(value: Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    fn uses(bytes: u64) -> Usage {
        Usage { containers: [("c".to_owned(), bytes)].into(), ..Usage::default() }
    }

    fn short(available: u64, capacity: u64) -> Shortage {
        let measures = [(Signal::NodefsAvailable, Measure { available, capacity })].into();
        shortages(&[(Signal::NodefsAvailable, Least::Part(10_000))].into(), &measures)[0]
    }

    #[test]
    fn x4_thresholds_are_met_below_them_and_hold_for_the_transition_period() {
        let thresholds = default_thresholds();
        let met = |signal, available, capacity| {
            let measures = [(signal, Measure { available, capacity })].into();
            shortages(&thresholds, &measures).first().map(|shortage| shortage.least)
        };
        assert_eq!(met(Signal::NodefsAvailable, 100, 1000), None, "what is there is enough");
        assert_eq!(met(Signal::NodefsAvailable, 99, 1000), Some(100));
        let (gib, large) = (1 << 30, 1 << 40);
        assert_eq!(met(Signal::NodefsAvailable, gib, large), None, "a large disk's tenth is the volumes'");
        assert_eq!(met(Signal::NodefsAvailable, gib - 1, large), Some(gib));
        assert_eq!(met(Signal::NodefsInodesFree, 49, 1000), Some(50));
        assert_eq!(met(Signal::ImagefsAvailable, 149, 1000), Some(150));
        assert_eq!(met(Signal::MemoryAvailable, 100 * MIB - 1, u64::MAX), Some(100 * MIB));
        assert_eq!(met(Signal::PidAvailable, 0, 1), None, "there is no threshold for it");
        let (mut conditions, held) = (Conditions::default(), SignedDuration::from_secs(300));
        let at = SignedDuration::from_secs;
        let disk = BTreeSet::from([Condition::DiskPressure]);
        assert_eq!(conditions.observe(&[], at(0), held), BTreeSet::new());
        assert_eq!(conditions.observe(&[short(1, 1000)], at(10), held), disk);
        assert_eq!(conditions.observe(&[], at(309), held), disk, "it holds");
        assert_eq!(conditions.observe(&[], at(310), held), BTreeSet::new());
        assert_eq!(conditions.observe(&[short(1, 1000)], at(320), SignedDuration::ZERO), disk);
    }

    #[test]
    fn x4_who_goes_first_is_upstreams_order() {
        let shortage = short(GIB, 100 * GIB);
        let one = |name: &str, priority, request: &str, used| (pod(name, priority, request), uses(used));
        let choose = |pods: &[(Pod, Usage)]| {
            let pods: Vec<_> = pods.iter().map(|(pod, used)| (pod, used.clone())).collect();
            victim(&pods, &shortage).map(|(pod, _)| pod.metadata.name.clone().unwrap())
        };
        let within = one("within", -5, "9Gi", 8 * GIB);
        let important = one("important", 7, "0", 9 * GIB);
        let most = one("most", 0, "1Gi", 5 * GIB);
        let most_in_all = one("most-in-all", 0, "3Gi", 6 * GIB);
        let critical = one("critical", CRITICAL_PRIORITY, "0", 50 * GIB);
        let all = [critical.clone(), within.clone(), important.clone(), most_in_all, most];
        assert_eq!(choose(&all).as_deref(), Some("most"), "beyond its request, of least priority, by most");
        assert_eq!(choose(&all[..3]).as_deref(), Some("important"), "who is within its request comes last");
        assert_eq!(choose(&all[..2]).as_deref(), Some("within"));
        assert_eq!(choose(&all[..1]), None, "what the node cannot do without stays");
        let exactly = one("exactly", -5, "1Gi", GIB);
        let little = one("little", 7, "1Gi", GIB + 1);
        assert_eq!(choose(&[exactly, little]).as_deref(), Some("little"), "who has what it asked for is within it");
    }

    /// S2, V8: a database whose volume fills the disk has next to nothing of its own there.
    #[test]
    fn x4_a_pod_whose_eviction_gives_nothing_back_is_left_alone() {
        let names = |pods: &[(Pod, Usage)], shortage: &Shortage| {
            let pods: Vec<_> = pods.iter().map(|(pod, used)| (pod, used.clone())).collect();
            victim(&pods, shortage).map(|(pod, _)| pod.metadata.name.clone().unwrap())
        };
        let database = (pod("db-0", 0, "0"), uses(50 * MIB));
        assert_eq!(names(std::slice::from_ref(&database), &short(0, 100 * GIB)), None);
        assert_eq!(names(&[database], &short(0, GIB)).as_deref(), Some("db-0"), "on a small disk that is something");
        // Exactly so much is something; of files it is their number that counts.
        let used = |bytes: u64| [(pod("a", 0, "0"), uses(bytes))];
        assert_eq!(names(&used(64 * MIB), &short(0, 100 * GIB)).as_deref(), Some("a"));
        assert_eq!(names(&used(64 * MIB - 1), &short(0, 100 * GIB)), None);
        let measure = Measure { available: 0, capacity: 1 << 40 };
        let inodes = Shortage { signal: Signal::NodefsInodesFree, measure, least: 1 };
        assert_eq!(names(&used(16_384), &inodes).as_deref(), Some("a"));
        assert_eq!(names(&used(16_383), &inodes), None);
        let nothing = (pod("idle", 0, "0"), uses(0));
        assert_eq!(names(&[nothing], &short(0, 40)), None);
    }

    #[test]
    fn an_eviction_says_why_in_upstreams_words() {
        let mut pod = pod("p", 0, "1Gi");
        let mut used = uses(2 * GIB);
        used.volumes.insert("v".to_owned(), GIB);
        let shortage = short(5 * GIB, 100 * GIB);
        let text = |pod: &Pod, used: &Usage, shortage: &Shortage| victim(&[(pod, used.clone())], shortage).unwrap().1;
        assert_eq!(
            text(&pod, &used, &shortage),
            "The node was low on resource: ephemeral-storage. Threshold quantity: 10Gi, available: 5Gi. \
             Container c was using 2Gi, request is 1Gi, has larger consumption of ephemeral-storage. "
        );
        used.containers.insert("c".to_owned(), GIB);
        let plain = "The node was low on resource: ephemeral-storage. Threshold quantity: 10Gi, available: 5Gi. ";
        assert_eq!(text(&pod, &used, &shortage), plain, "its container has what it asked for");
        used.containers.insert("c".to_owned(), 2 * GIB);
        pod.spec.as_mut().unwrap().containers[0].resources = None;
        assert!(text(&pod, &used, &shortage).ends_with(
            "2Gi, request is 0, has larger consumption of \
            ephemeral-storage. "
        ));
        let inodes =
            Shortage { signal: Signal::NodefsInodesFree, measure: Measure { available: 3, capacity: 1000 }, least: 50 };
        let expected = "The node was low on resource: inodes. Threshold quantity: 50, available: 3. ";
        assert_eq!(text(&pod, &used, &inodes), expected);
    }

    #[test]
    fn x4_a_node_that_is_short_takes_only_what_it_must() {
        let disk = BTreeSet::from([Condition::DiskPressure]);
        let memory = BTreeSet::from([Condition::MemoryPressure]);
        let plain = from(json!({ "spec": { "containers": [{ "name": "c" }] } }));
        let burstable = from(json!({ "spec": { "containers": [{ "name": "c",
            "resources": { "requests": { "memory": "1Mi" } } }] } }));
        let tolerant = from(json!({ "spec": { "containers": [{ "name": "c" }],
            "tolerations": [{ "operator": "Exists" }] } }));
        let other = from(json!({ "spec": { "containers": [{ "name": "c" }],
            "tolerations": [{ "key": "node.kubernetes.io/disk-pressure", "operator": "Exists" }] } }));
        let critical = from(json!({ "spec": { "priority": 2_000_001_000, "containers": [] } }));
        let both = disk.union(&memory).copied().collect();
        for (pod, conditions, expected) in [
            (&plain, &BTreeSet::new(), None),
            (&plain, &disk, Some("The node had condition: [DiskPressure]. ")),
            (&tolerant, &disk, Some("The node had condition: [DiskPressure]. ")),
            (&plain, &memory, Some("The node had condition: [MemoryPressure]. ")),
            (&burstable, &memory, None),
            (&tolerant, &memory, None),
            (&other, &memory, Some("The node had condition: [MemoryPressure]. ")),
            (&burstable, &both, Some("The node had condition: [MemoryPressure DiskPressure]. ")),
            (&critical, &both, None),
        ] {
            let refusal = refuses(pod, conditions);
            assert_eq!(refusal.as_ref().map(|refusal| refusal.message.as_str()), expected, "{conditions:?}");
            assert!(refusal.is_none_or(|refusal| refusal.reason == "Evicted"));
        }
    }

    #[test]
    fn signals_and_conditions_have_upstreams_names() {
        let named = Signal::ALL.map(|signal| (signal.name(), signal.condition().name(), signal.resource()));
        let expected = [
            ("memory.available", "MemoryPressure", "memory"),
            ("nodefs.available", "DiskPressure", "ephemeral-storage"),
            ("nodefs.inodesFree", "DiskPressure", "inodes"),
            ("imagefs.available", "DiskPressure", "ephemeral-storage"),
            ("imagefs.inodesFree", "DiskPressure", "inodes"),
            ("pid.available", "PIDPressure", "pids"),
        ];
        assert_eq!(named, expected);
        let told = Condition::ALL.map(|condition| [true, false].map(|is_short| condition.event(is_short)));
        let expected = [
            ["NodeHasInsufficientMemory", "NodeHasSufficientMemory"],
            ["NodeHasDiskPressure", "NodeHasNoDiskPressure"],
            ["NodeHasInsufficientPID", "NodeHasSufficientPID"],
        ];
        assert_eq!(told, expected);
    }
}
