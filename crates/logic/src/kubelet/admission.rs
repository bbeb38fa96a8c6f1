//! Whether this node takes a pod that was bound to it: by the scheduler, which has looked, or by name, where nobody
//! has. A pod that is refused fails at once, with upstream's reason; its owner makes another one.
//!
//! Differs: what this node cannot do and a pod asks for in a field of its security is refused here, with the reason
//! `PodFeatureUnsupported`; upstream passes some of it over in silence.

use k8s_openapi::api::core::v1::{Container, Node, Pod, PodSpec};

use super::sysctl;
use crate::matching::tolerates;
use crate::resources;
use crate::scheduler::affinity;

/// What a node says to a pod that it does not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The pod's `status.reason`.
    pub reason: &'static str,
    pub message: String,
}

/// What this node's machine and its administrator permit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// Names, or beginnings that end in `*`.
    pub unsafe_sysctls: Vec<String>,
    /// The kernel enforces AppArmor profiles.
    pub has_apparmor: bool,
    /// The kernel enforces SELinux labels. This node's containers get none: a pod that asks for one is refused here,
    /// and taken where nothing enforces them, as upstream's runtimes do.
    pub has_selinux: bool,
    /// The kernel makes user namespaces.
    pub has_user_namespaces: bool,
}

const UNSUPPORTED: &str = "PodFeatureUnsupported";
/// Where AppArmor profiles were named before there was a field.
const APPARMOR_ANNOTATION: &str = "container.apparmor.security.beta.kubernetes.io/";

/// Why a pod is not taken, whatever runs here; None where nothing speaks against it.
pub fn refuses(pod: &Pod, abilities: &Abilities) -> Option<Refusal> {
    let spec = pod.spec.as_ref()?;
    let refuse = |reason, message: &str| Some(Refusal { reason, message: message.to_owned() });
    if spec.os.as_ref().is_some_and(|os| os.name != "linux") {
        return refuse("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS");
    }
    let sysctls = spec.security_context.iter().flat_map(|security| security.sysctls.iter().flatten());
    let (host_network, host_ipc) = (spec.host_network == Some(true), spec.host_ipc == Some(true));
    for wanted in sysctls {
        if let Some(message) = sysctl::refusal(&wanted.name, &abilities.unsafe_sysctls, host_network, host_ipc) {
            return Some(Refusal { reason: "SysctlForbidden", message });
        }
    }
    if wants_apparmor(pod, spec) {
        let why = if abilities.has_apparmor {
            "Cannot enforce AppArmor: this node applies no profiles"
        } else {
            "Cannot enforce AppArmor: AppArmor is not enabled on the host"
        };
        return refuse("AppArmor", why);
    }
    unsupported(spec, abilities).map(|message| Refusal { reason: UNSUPPORTED, message })
}

/// The containers of all kinds that the pod is made with.
fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

fn wants_apparmor(pod: &Pod, spec: &PodSpec) -> bool {
    let of_pod = spec.security_context.iter().filter_map(|security| security.app_armor_profile.as_ref());
    let of_containers =
        containers(spec).filter_map(|container| container.security_context.as_ref()?.app_armor_profile.as_ref());
    let annotations = pod.metadata.annotations.iter().flatten();
    let mut annotated =
        annotations.filter(|(name, value)| name.starts_with(APPARMOR_ANNOTATION) && *value != "unconfined");
    of_pod.chain(of_containers).any(|profile| profile.type_ != "Unconfined") || annotated.next().is_some()
}

/// The first field that this node cannot honour, with why.
fn unsupported(spec: &PodSpec, abilities: &Abilities) -> Option<String> {
    let security = spec.security_context.as_ref();
    let has_own_users = spec.host_users == Some(false);
    if has_own_users && !abilities.has_user_namespaces {
        return Some("spec.hostUsers: the host's kernel makes no user namespaces".to_owned());
    }
    if spec.resource_claims.as_ref().is_some_and(|claims| !claims.is_empty()) {
        return Some("spec.resourceClaims: this node has no drivers for devices".to_owned());
    }
    if security.is_some_and(|security| has_any(&security.windows_options)) {
        return Some("spec.securityContext.windowsOptions: this node runs Linux".to_owned());
    }
    if abilities.has_selinux && security.is_some_and(|security| has_any(&security.se_linux_options)) {
        return Some("spec.securityContext.seLinuxOptions: this node labels no processes".to_owned());
    }
    containers(spec).find_map(|container| unsupported_in(container, has_own_users, abilities))
}

/// The first field of a container that this node cannot honour, with why; `has_own_users` where its pod has a user
/// namespace. Ephemeral containers come after the admission and are looked at when they start.
pub fn unsupported_in(container: &Container, has_own_users: bool, abilities: &Abilities) -> Option<String> {
    let name = &container.name;
    let mut rules = container.restart_policy_rules.iter().flatten();
    if let Some(rule) = rules.find(|rule| !matches!(&*rule.action, "Restart" | super::restart_all::ACTION)) {
        return Some(format!("container {name}: restartPolicyRules: this node has no action {}", rule.action));
    }
    let own = container.security_context.as_ref()?;
    let why = if own.proc_mount.as_deref() == Some("Unmasked") && !has_own_users {
        "procMount: without a user namespace of its own a container with all of /proc would have the host's"
    } else if has_any(&own.windows_options) {
        "windowsOptions: this node runs Linux"
    } else if abilities.has_selinux && has_any(&own.se_linux_options) {
        "seLinuxOptions: this node labels no processes"
    } else if own.app_armor_profile.as_ref().is_some_and(|profile| profile.type_ != "Unconfined") {
        "appArmorProfile: this node applies no profiles"
    } else {
        return None;
    };
    Some(format!("container {name}: securityContext.{why}"))
}

/// Whether an object is there and says anything.
fn has_any<T: Default + PartialEq>(field: &Option<T>) -> bool {
    field.as_ref().is_some_and(|value| *value != T::default())
}

/// Why a pod does not fit beside the others that are here, the first of upstream's checks that fails.
pub fn misfit<'a>(pod: &Pod, node: &Node, others: impl Iterator<Item = &'a Pod> + Clone) -> Option<Refusal> {
    let (wanted, has) = (resources::of_pod(pod), resources::of_node(node));
    let (used, count) = resources::used(others.clone());
    if let Some(refusal) = shortage(&wanted, &has, &used, count) {
        return Some(refusal);
    }
    let failed = |name, description: &str| {
        Some(Refusal { reason: name, message: format!("Predicate {name} failed: {description}") })
    };
    if !affinity::admits_node(pod, node) {
        return failed("NodeAffinity", "node(s) didn't match Pod's node affinity/selector");
    }
    let ports = resources::host_ports(pod);
    let taken = others.flat_map(resources::host_ports).map(|port| (port, 1)).collect();
    if resources::collide(&ports, &taken) || resources::takes_reserved(pod, &ports, node) {
        return failed("NodePorts", "node(s) didn't have free ports for the requested pod ports");
    }
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let mut evicting = taints.iter().filter(|taint| taint.effect == "NoExecute");
    if evicting.any(|taint| !tolerations.iter().any(|toleration| tolerates(toleration, taint))) {
        return failed("TaintToleration", "node(s) had taints that the pod didn't tolerate");
    }
    None
}

/// The first resource that is short. Extended resources that no node has are somebody else's to give.
fn shortage(
    wanted: &resources::Amounts,
    has: &resources::Amounts,
    used: &resources::Amounts,
    count: i64,
) -> Option<Refusal> {
    let amount = resources::Amounts::get;
    let short = |reason, name: &str, requested: i64, used: i64, capacity: i64| {
        let message = format!(
            "Node didn't have enough resource: {name}, requested: {requested}, used: {used}, capacity: {capacity}"
        );
        (requested > capacity.saturating_sub(used)).then_some(Refusal { reason, message })
    };
    let pods = has.pods.unwrap_or(i64::MAX);
    short("OutOfpods", "pods", 1, count, pods).or_else(|| {
        let known = [
            ("cpu", "OutOfcpu"),
            ("memory", "OutOfmemory"),
            ("ephemeral-storage", "OutOfephemeral-storage"),
            ("hugepages-2Mi", "OutOfhugepages-2Mi"),
            ("hugepages-1Gi", "OutOfhugepages-1Gi"),
        ];
        known
            .into_iter()
            .filter(|(name, _)| amount(wanted, name) > 0)
            .find_map(|(name, reason)| short(reason, name, amount(wanted, name), amount(used, name), amount(has, name)))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(spec: Value) -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": "p" }, "spec": spec })).unwrap()
    }

    fn asks(cpu: &str) -> Value {
        json!({ "containers": [{ "name": "c", "resources": { "requests": { "cpu": cpu } } }] })
    }

    fn node() -> Node {
        serde_json::from_value(json!({
            "metadata": { "name": "n", "labels": { "zone": "a" },
                "annotations": { "mainstay.io/reserved-host-ports": "6443,10250" } },
            "spec": { "taints": [{ "key": "drained", "effect": "NoExecute" }, { "key": "x", "effect": "NoSchedule" }] },
            "status": { "allocatable": { "cpu": "2", "memory": "1Gi", "pods": "3" } },
        }))
        .unwrap()
    }

    #[test]
    fn what_does_not_fit_is_refused_with_upstreams_reasons() {
        let tolerant = |mut spec: Value| {
            spec["tolerations"] = json!([{ "key": "drained", "operator": "Exists" }]);
            pod(spec)
        };
        let with_port = |port: Value| json!({ "containers": [{ "name": "c", "ports": [port] }] });
        let there = [tolerant(asks("1500m")), tolerant(with_port(json!({ "hostPort": 80, "hostIP": "10.0.0.1" })))];
        for (candidate, expected) in [
            (tolerant(asks("500m")), None),
            (
                tolerant(asks("501m")),
                Some(("OutOfcpu", "Node didn't have enough resource: cpu, requested: 501, used: 1500, capacity: 2000")),
            ),
            (tolerant(json!({ "containers": [], "nodeSelector": { "zone": "a" } })), None),
            (
                tolerant(json!({ "containers": [], "nodeSelector": { "zone": "b" } })),
                Some((
                    "NodeAffinity",
                    "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector",
                )),
            ),
            (tolerant(with_port(json!({ "hostPort": 80, "hostIP": "10.0.0.2" }))), None),
            (tolerant(with_port(json!({ "hostPort": 80, "protocol": "UDP" }))), None),
            (
                tolerant(with_port(json!({ "hostPort": 80 }))),
                Some((
                    "NodePorts",
                    "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
                )),
            ),
            (
                tolerant(with_port(json!({ "hostPort": 10250 }))),
                Some((
                    "NodePorts",
                    "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports",
                )),
            ),
            (tolerant(with_port(json!({ "hostPort": 10250, "protocol": "UDP" }))), None),
            (
                pod(json!({ "containers": [] })),
                Some((
                    "TaintToleration",
                    "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate",
                )),
            ),
        ] {
            let refusal = misfit(&candidate, &node(), there.iter());
            let refusal = refusal.as_ref().map(|refusal| (refusal.reason, refusal.message.as_str()));
            assert_eq!(refusal, expected, "{candidate:?}");
        }
        // Each taint that evicts must be tolerated, and one that only keeps away must not.
        let mut twice = node();
        let taint = json!({ "key": "silent", "effect": "NoExecute" });
        twice.spec.as_mut().unwrap().taints.as_mut().unwrap().push(serde_json::from_value(taint).unwrap());
        let refusal = misfit(&tolerant(json!({ "containers": [] })), &twice, there.iter()).unwrap();
        assert_eq!(refusal.reason, "TaintToleration");
        // Who asks for nothing of what is short already is in nobody's way.
        let hungry = [tolerant(json!({ "containers": [{ "name": "c", "resources": { "requests": {
            "memory": "2Gi" } } }] }))];
        assert_eq!(misfit(&tolerant(asks("1")), &node(), hungry.iter()), None);
        let full = [there[1].clone(), there[1].clone(), there[1].clone()];
        assert_eq!(misfit(&there[0], &node(), full.iter()).unwrap().reason, "OutOfpods");
    }

    /// X8: a security field is honoured or refused in words.
    #[test]
    #[expect(clippy::too_many_lines, reason = "a list of cases")]
    fn x8_what_the_node_cannot_do_is_refused_in_words() {
        let rules =
            |action: &str| json!({ "containers": [{ "name": "c", "restartPolicyRules": [{ "action": action }] }] });
        let one = |security: Value| json!({ "containers": [{ "name": "c", "securityContext": security }] });
        for (spec, expected) in [
            (json!({ "containers": [], "hostUsers": false }), Some("PodFeatureUnsupported")),
            (json!({ "containers": [], "hostUsers": true }), None),
            (one(json!({ "procMount": "Unmasked" })), Some("PodFeatureUnsupported")),
            (one(json!({ "procMount": "Default", "seLinuxOptions": {}, "windowsOptions": {} })), None),
            (one(json!({ "seLinuxOptions": { "level": "s0" } })), None),
            (one(json!({ "windowsOptions": { "hostProcess": true } })), Some("PodFeatureUnsupported")),
            (one(json!({ "appArmorProfile": { "type": "RuntimeDefault" } })), Some("AppArmor")),
            (one(json!({ "appArmorProfile": { "type": "Unconfined" } })), None),
            (json!({ "containers": [], "os": { "name": "windows" } }), Some("PodOSNotSupported")),
            (json!({ "containers": [], "os": { "name": "linux" } }), None),
            (
                json!({ "containers": [], "securityContext": { "sysctls": [{ "name": "vm.stat_interval",
                    "value": "9" }] } }),
                Some("SysctlForbidden"),
            ),
            (json!({ "containers": [], "resourceClaims": [{ "name": "gpu" }] }), Some("PodFeatureUnsupported")),
            (json!({ "containers": [], "resources": { "limits": { "cpu": "1" }, "requests": { "cpu": "1" } } }), None),
            (json!({ "containers": [{ "name": "c", "restartPolicy": "Never" }] }), None),
            (rules("Restart"), None),
            (rules("RestartAllContainers"), None),
            (rules("RestartNode"), Some("PodFeatureUnsupported")),
            (json!({ "containers": [], "initContainers": [{ "name": "c", "restartPolicy": "Always" }] }), None),
            (
                json!({ "containers": [{ "name": "c", "volumeDevices": [{ "name": "v", "devicePath": "/dev/x" }] }] }),
                None,
            ),
        ] {
            let refusal = refuses(&pod(spec.clone()), &Abilities::default());
            assert_eq!(refusal.map(|refusal| refusal.reason), expected, "{spec}");
        }
        let refused =
            |spec: Value, abilities: &Abilities| refuses(&pod(spec), abilities).map(|refusal| refusal.message);
        let of_pod = |security: Value| json!({ "containers": [], "securityContext": security });
        let selinux = Abilities { has_selinux: true, has_apparmor: true, ..Abilities::default() };
        let (level, own) = (json!({ "level": "s0" }), json!({ "hostProcess": true }));
        assert_eq!(
            refused(of_pod(json!({ "seLinuxOptions": level })), &Abilities::default()),
            None,
            "nothing to enforce"
        );
        assert_eq!(refused(of_pod(json!({ "seLinuxOptions": {} })), &selinux), None);
        assert!(refused(of_pod(json!({ "seLinuxOptions": level })), &selinux).is_some(), "the kernel enforces others'");
        assert!(refused(one(json!({ "seLinuxOptions": level })), &selinux).is_some());
        assert!(refused(of_pod(json!({ "windowsOptions": own })), &selinux).is_some());
        assert_eq!(refused(of_pod(json!({ "windowsOptions": {} })), &selinux), None);
        assert_eq!(refused(json!({ "containers": [], "resourceClaims": [] }), &selinux), None);
        let profile = json!({ "appArmorProfile": { "type": "Localhost", "localhostProfile": "x" } });
        let words = "Cannot enforce AppArmor: this node applies no profiles";
        assert_eq!(refused(of_pod(profile.clone()), &selinux).as_deref(), Some(words));
        // An ephemeral container comes later, and is refused as it starts.
        let late = |security: &Value| {
            let container = serde_json::from_value(json!({ "name": "e", "securityContext": security })).unwrap();
            unsupported_in(&container, false, &selinux)
        };
        assert!(late(&profile).is_some());
        assert_eq!(late(&json!({ "appArmorProfile": { "type": "Unconfined" } })), None);
        // The namespaces that are the host's are not the pod's to change.
        let sets = |name: &str, own: &str| {
            let mut spec = of_pod(json!({ "sysctls": [{ "name": name, "value": "1" }] }));
            spec[own] = json!(true);
            refused(spec, &selinux).is_some()
        };
        let (net, ipc) = ("net.ipv4.tcp_syncookies", "kernel.shm_rmid_forced");
        assert_eq!([sets(net, "hostNetwork"), sets(ipc, "hostNetwork")], [true, false]);
        assert_eq!([sets(net, "hostIPC"), sets(ipc, "hostIPC")], [false, true]);
        assert_eq!([sets(net, "hostPID"), sets(ipc, "hostPID")], [false, false]);
        let able = Abilities { has_user_namespaces: true, ..Abilities::default() };
        let unmasked = json!([{ "name": "c", "securityContext": { "procMount": "Unmasked" } }]);
        assert_eq!(refuses(&pod(json!({ "containers": unmasked, "hostUsers": false })), &able), None);
        assert!(refuses(&pod(json!({ "containers": unmasked })), &able).is_some());
        let annotated: Pod = serde_json::from_value(json!({ "metadata": { "annotations": {
            "container.apparmor.security.beta.kubernetes.io/c": "localhost/x" } }, "spec": { "containers": [] } }))
        .unwrap();
        let message = refuses(&annotated, &Abilities::default()).unwrap().message;
        assert_eq!(message, "Cannot enforce AppArmor: AppArmor is not enabled on the host");
        for (name, value) in [("container.apparmor.security.beta.kubernetes.io/c", "unconfined"), ("x.io/c", "x")] {
            let mut other = annotated.clone();
            other.metadata.annotations = Some([(name.to_owned(), value.to_owned())].into());
            assert_eq!(refuses(&other, &Abilities::default()), None, "{name} {value}");
        }
    }
}
