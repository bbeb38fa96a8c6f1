//! Pods that write more to this machine's disk than they may: limits on `ephemeral-storage` and `emptyDir.sizeLimit`.
//!
//! Guarantees X6: what a pod writes where the node's own disk is has a bound where somebody set one; beyond it the pod
//! is evicted, in upstream's words. What is written meanwhile is bounded by how often the node looks.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, Volume};
use mainstay_api::quantity::{Format, Quantity};

use crate::pods::is_sidecar;

/// The resource's name.
pub(super) const RESOURCE: &str = "ephemeral-storage";

/// A limit in bytes, and as people read it.
type Limit = (u64, Quantity);

/// What a pod may have on the node's disk.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Limits {
    /// By the name of an emptyDir on disk; also of those without a limit, which count for the pod.
    volumes: BTreeMap<String, Option<Limit>>,
    /// By container.
    containers: BTreeMap<String, Limit>,
    /// Of all containers and volumes together.
    pod: Option<Limit>,
}

/// What a pod has on the node's disk, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// By the name of an emptyDir.
    pub volumes: BTreeMap<String, u64>,
    /// Root file systems and logs, by container, all attempts together; by no name what they share.
    pub containers: BTreeMap<String, u64>,
}

impl Usage {
    /// All of it together.
    pub fn total(&self) -> u64 {
        let all = self.volumes.values().chain(self.containers.values());
        all.fold(0, |sum: u64, used| sum.saturating_add(*used))
    }
}

/// Which emptyDirs of a pod are on the node's disk.
pub fn volumes(pod: &Pod) -> impl Iterator<Item = &Volume> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter(|volume| {
        let medium = volume.empty_dir.as_ref().map(|source| source.medium.as_deref().unwrap_or(""));
        medium.is_some_and(str::is_empty)
    })
}

/// A pod's limits; `None` where it has none, so that nothing of it is ever counted.
pub fn limits(pod: &Pod) -> Option<Limits> {
    let spec = pod.spec.as_ref()?;
    let size = |volume: &Volume| limit(&volume.empty_dir.as_ref()?.size_limit.as_ref()?.0);
    let volumes: BTreeMap<String, Option<Limit>> =
        volumes(pod).map(|volume| (volume.name.clone(), size(volume))).collect();
    let (init, main) = (spec.init_containers.as_deref().unwrap_or_default(), &spec.containers);
    let containers: BTreeMap<String, Limit> =
        init.iter().chain(main).filter_map(|container| Some((container.name.clone(), limit_of(container)?))).collect();
    let pod = pod_limit(init, main);
    // Where a container has a limit, so has the pod.
    let is_limited = pod.is_some() || volumes.values().any(Option::is_some);
    is_limited.then_some(Limits { volumes, containers, pod })
}

/// The containers' together, or that of an init container, whichever is more.
fn pod_limit(init: &[Container], main: &[Container]) -> Option<Limit> {
    let together: Vec<Limit> =
        init.iter().filter(|container| is_sidecar(container)).chain(main).filter_map(limit_of).collect();
    let sum = match together.as_slice() {
        [] => None,
        [one] => Some(*one),
        many => {
            let bytes = many.iter().fold(0, |sum: u64, (bytes, _)| sum.saturating_add(*bytes));
            Some((bytes, Quantity::from_units(i64::try_from(bytes).unwrap_or(i64::MAX), Format::BinarySi)))
        }
    };
    init.iter().filter_map(limit_of).chain(sum).max_by_key(|(bytes, _)| *bytes)
}

fn limit_of(container: &Container) -> Option<Limit> {
    limit(&container.resources.as_ref()?.limits.as_ref()?.get(RESOURCE)?.0)
}

fn limit(text: &str) -> Option<Limit> {
    let quantity: Quantity = text.parse().ok()?;
    let bytes = u64::try_from(quantity.units()).ok()?;
    (bytes > 0).then_some((bytes, quantity))
}

impl Limits {
    /// Which emptyDirs count.
    pub fn volumes(&self) -> impl Iterator<Item = &str> {
        self.volumes.keys().map(String::as_str)
    }

    /// Whether containers count, too.
    pub fn counts_containers(&self) -> bool {
        self.pod.is_some()
    }

    /// Bytes above which it does not matter how many more they are.
    pub fn enough(&self) -> u64 {
        let volumes = self.volumes.values().flatten();
        volumes.chain(self.containers.values()).chain(&self.pod).map(|(bytes, _)| *bytes).max().unwrap_or(0)
    }

    /// Why the pod is to go, if it is.
    pub fn exceeded(&self, usage: &Usage) -> Option<String> {
        for (name, used) in &usage.volumes {
            if let Some(Some((bytes, limit))) = self.volumes.get(name)
                && used > bytes
            {
                return Some(format!("Usage of EmptyDir volume \"{name}\" exceeds the limit \"{limit}\". "));
            }
        }
        if let Some((_, limit)) = self.pod.filter(|(bytes, _)| usage.total() > *bytes) {
            return Some(format!("Pod ephemeral local storage usage exceeds the total limit of containers {limit}. "));
        }
        usage.containers.iter().find_map(|(name, used)| {
            let (_, limit) = self.containers.get(name).filter(|(bytes, _)| used > bytes)?;
            Some(format!("Container {name} exceeded its local ephemeral storage limit \"{limit}\". "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({ "spec": spec })).unwrap()
    }

    fn usage(volumes: &[(&str, u64)], containers: &[(&str, u64)]) -> Usage {
        let map = |all: &[(&str, u64)]| all.iter().map(|(name, used)| ((*name).to_owned(), *used)).collect();
        Usage { volumes: map(volumes), containers: map(containers) }
    }

    #[test]
    fn x6_a_pod_beyond_a_limit_goes_in_upstreams_words() {
        let limited = |name: &str, limit: &str| json!({ "name": name, "resources": { "limits": { RESOURCE: limit } } });
        let volumes = json!([{ "name": "small", "emptyDir": { "sizeLimit": "1Mi" } },
            { "name": "free", "emptyDir": {} },
            { "name": "memory", "emptyDir": { "medium": "Memory", "sizeLimit": "1Ki" } }, { "name": "none",
                "emptyDir": { "sizeLimit": "0" } }]);
        let both = pod(json!({ "volumes": volumes, "containers": [limited("a", "2Mi"), limited("b", "3Mi")] }));
        let limits = limits(&both).unwrap();
        assert_eq!(limits.volumes().collect::<Vec<_>>(), ["free", "none", "small"], "those in memory are their own");
        assert_eq!(limits.enough(), 5 << 20);
        let mib = 1 << 20;
        for (used, expected) in [
            (usage(&[("small", mib)], &[("a", 2 * mib)]), None),
            (usage(&[("free", mib), ("small", mib)], &[("a", 2 * mib), ("b", mib)]), None),
            (usage(&[("none", 1), ("memory", mib)], &[]), None),
            (usage(&[("small", mib + 1)], &[]), Some("Usage of EmptyDir volume \"small\" exceeds the limit \"1Mi\". ")),
            (
                usage(&[("free", 4 * mib)], &[("a", mib), ("b", 1)]),
                Some("Pod ephemeral local storage usage exceeds the total limit of containers 5Mi. "),
            ),
            (
                usage(&[], &[("a", 2 * mib + 1), ("b", mib)]),
                Some("Container a exceeded its local ephemeral storage limit \"2Mi\". "),
            ),
        ] {
            assert_eq!(limits.exceeded(&used).as_deref(), expected, "{used:?}");
        }
    }

    #[test]
    fn pods_without_a_limit_are_never_counted() {
        let unlimited = json!({ "volumes": [{ "name": "e", "emptyDir": {} }], "containers": [{ "name": "a",
            "resources": { "limits": { "memory": "1Gi" } } }] });
        assert_eq!(limits(&pod(unlimited)), None);
        let one = pod(json!({ "initContainers": [{ "name": "i", "resources": { "limits": { RESOURCE: "9M" } } }],
            "containers": [{ "name": "a", "resources": { "limits": { RESOURCE: "1G" } } }] }));
        let limits = limits(&one).unwrap();
        assert_eq!(limits.pod, Some((1_000_000_000, "1G".parse().unwrap())));
        assert!(limits.counts_containers());
    }

    #[test]
    fn a_pod_is_limited_by_what_says_so() {
        let with = |name: &str, limit: &str, policy: Value| {
            let resources = json!({ "limits": { RESOURCE: limit } });
            json!({ "name": name, "restartPolicy": policy, "resources": resources })
        };
        let none = || json!({ "name": "n" });
        // Init containers, containers; the pod's limit in bytes, whether containers count.
        for (init, main, expected) in [
            (json!([]), json!([with("a", "1Ki", json!(null)), none()]), 1024),
            (json!([]), json!([with("a", "1Ki", json!(null)), with("b", "1Ki", json!(null))]), 2048),
            (json!([with("i", "4Ki", json!(null))]), json!([with("a", "1Ki", json!(null))]), 4096),
            (json!([with("i", "1Ki", json!(null))]), json!([with("a", "1Ki", json!(null))]), 1024),
            (json!([with("s", "1Ki", json!("Always"))]), json!([with("a", "1Ki", json!(null))]), 2048),
            (json!([with("s", "1Ki", json!("Always")), with("i", "1Ki", json!(null))]), json!([none()]), 1024),
        ] {
            let limits = limits(&pod(json!({ "initContainers": init, "containers": main }))).unwrap();
            assert_eq!(limits.pod.map(|(bytes, _)| bytes), Some(expected), "{init} {main}");
            assert!(limits.counts_containers());
        }
        let volumes = json!([{ "name": "e", "emptyDir": {} }, { "name": "f", "emptyDir": { "sizeLimit": "1Ki" } }]);
        let limits = limits(&pod(json!({ "volumes": volumes, "containers": [none()] }))).unwrap();
        assert!(!limits.counts_containers(), "only its volumes are looked at");
        assert!(limits.exceeded(&usage(&[("f", 1025)], &[])).is_some());
    }
}
