//! The pod security standards: which pods a namespace takes, by its labels.
//!
//! `pod-security.kubernetes.io/{enforce,audit,warn}` name a level, with `-version` the version of its checks. A policy
//! is judged on plain JSON; names, order and words of the checks are upstream's.

mod baseline;
mod restricted;

use serde_json::Value;

use crate::kinds::field::Field;
use crate::object::{at, text};
use crate::status::Cause;

const PREFIX: &str = "pod-security.kubernetes.io/";
/// The newest minor version that has checks of its own.
const NEWEST: u32 = 37;

/// How strict a namespace is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// Everything is allowed.
    Privileged,
    /// What is known to lead out of a container is not.
    Baseline,
    /// Only what is known to be safe is.
    Restricted,
}

/// A level as of a Kubernetes version.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LevelVersion {
    /// The level.
    pub level: Level,
    /// The minor version of its checks; `None` for the newest.
    pub minor: Option<u32>,
}

/// What a namespace's labels ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Pods that break this are refused.
    pub enforce: LevelVersion,
    /// Whoever writes what breaks this is told.
    pub warn: LevelVersion,
    /// What breaks this is noted in the audit log.
    pub audit: LevelVersion,
}

/// A check that a pod does not pass: upstream's reason, and the details.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// `host namespaces`.
    pub reason: &'static str,
    /// `hostNetwork=true`.
    pub detail: String,
}

impl std::fmt::Display for LevelVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.minor {
            Some(minor) => write!(f, "{level}:v1.{minor}"),
            None => write!(f, "{level}:latest"),
        }
    }
}

impl Policy {
    /// Reads a namespace's labels. What they say wrong is in the causes, and then the strictest is enforced.
    pub fn of(namespace: &Value) -> (Self, Vec<Cause>) {
        let anything = LevelVersion { level: Level::Privileged, minor: None };
        let mut policy = Self { enforce: anything, warn: anything, audit: anything };
        let mut causes = Vec::new();
        let label =
            |name: &str| at(namespace, &["metadata", "labels", &format!("{PREFIX}{name}")]).and_then(Value::as_str);
        let mut read = |name: &str, to: &mut LevelVersion, otherwise: Level| {
            if let Some(level) = label(name) {
                to.level = parse_level(level).unwrap_or_else(|| {
                    let why = "must be one of privileged, baseline, restricted";
                    causes.push(Cause::invalid(format!("metadata.labels[{PREFIX}{name}]"), level, why));
                    otherwise
                });
            }
            if let Some(version) = label(&format!("{name}-version")) {
                to.minor = parse_version(version).unwrap_or_else(|| {
                    let why = "must be \"latest\" or \"v1.x\"";
                    causes.push(Cause::invalid(format!("metadata.labels[{PREFIX}{name}-version]"), version, why));
                    None
                });
            }
        };
        read("enforce", &mut policy.enforce, Level::Restricted);
        read("audit", &mut policy.audit, Level::Privileged);
        read("warn", &mut policy.warn, Level::Privileged);
        // Who enforces a level is warned of it too, so that controllers' authors hear of it.
        let enforces = label("enforce").and_then(parse_level).is_some();
        if label("warn").is_none() && enforces && policy.enforce.level > policy.warn.level {
            policy.warn.level = policy.enforce.level;
            if label("warn-version").is_none() {
                policy.warn.minor = policy.enforce.minor;
            }
        }
        (policy, causes)
    }

    /// Whether there is nothing to check.
    pub fn is_open(&self) -> bool {
        [self.enforce, self.warn, self.audit].iter().all(|level| level.level == Level::Privileged)
    }
}

fn parse_level(text: &str) -> Option<Level> {
    match text {
        "privileged" => Some(Level::Privileged),
        "baseline" => Some(Level::Baseline),
        "restricted" => Some(Level::Restricted),
        _ => None,
    }
}

/// `None` for what is no version; `Some(None)` for the newest.
fn parse_version(text: &str) -> Option<Option<u32>> {
    if text == "latest" {
        return Some(None);
    }
    let minor = text.strip_prefix("v1.")?;
    let plain = minor.bytes().all(|b| b.is_ascii_digit()) && (minor == "0" || !minor.starts_with('0'));
    minor.parse().ok().filter(|_| plain).map(Some)
}

/// The checks of a level that a pod (or a template: anything with `metadata` and `spec`) does not pass, in upstream's
/// order.
pub fn violations(level: LevelVersion, pod: &Value) -> Vec<Violation> {
    let minor = level.minor.map_or(NEWEST, |minor| minor.min(NEWEST));
    let pod = Pod { spec: Field::root(pod).get("spec"), whole: pod, minor };
    match level.level {
        Level::Privileged => Vec::new(),
        Level::Baseline => baseline::check(&pod, false),
        Level::Restricted => baseline::check(&pod, true).into_iter().chain(restricted::check(&pod)).collect(),
    }
}

/// `reason (detail), reason (detail)`.
pub fn told(violations: &[Violation]) -> String {
    let one = |violation: &Violation| match violation.detail.as_str() {
        "" => violation.reason.to_owned(),
        detail => format!("{} ({detail})", violation.reason),
    };
    violations.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Only images and new containers of a pod that is there are worth a new look.
pub fn is_significant(new: &Value, old: &Value) -> bool {
    let images = |pod: &Value, list: &str| -> Vec<(String, String)> {
        let containers = Field::root(pod).dig(&["spec", list]).items();
        containers.map(|c| (c.get("name").text().to_owned(), c.get("image").text().to_owned())).collect()
    };
    let differ = |list: &str| {
        let plain = |pod: &Value| images(pod, list).into_iter().map(|(_, image)| image).collect::<Vec<_>>();
        plain(new) != plain(old)
    };
    let ephemeral = images(old, "ephemeralContainers");
    differ("containers")
        || differ("initContainers")
        || images(new, "ephemeralContainers").iter().any(|container| !ephemeral.contains(container))
}

/// A pod under a check.
struct Pod<'a> {
    whole: &'a Value,
    spec: Field<'a>,
    minor: u32,
}

impl<'a> Pod<'a> {
    fn containers(&self) -> impl Iterator<Item = Field<'a>> {
        ["initContainers", "containers", "ephemeralContainers"].into_iter().flat_map(|list| self.spec.get(list).items())
    }

    /// The names of the containers of which something is so.
    fn named(&self, test: impl Fn(&Field<'a>) -> bool) -> Vec<&'a str> {
        self.containers().filter(|container| test(container)).map(|container| container.get("name").text()).collect()
    }

    /// A field of the pod's own security context.
    fn context(&self, path: &[&str]) -> Field<'a> {
        self.spec.get("securityContext").dig(path)
    }

    fn annotations(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let annotations = at(self.whole, &["metadata", "annotations"]).and_then(Value::as_object);
        annotations.into_iter().flatten().map(|(key, value)| (key.as_str(), value.as_str().unwrap_or("")))
    }

    fn annotation(&self, key: &str) -> Option<&'a str> {
        at(self.whole, &["metadata", "annotations", key]).and_then(Value::as_str)
    }

    fn is_windows(&self) -> bool {
        text(self.whole, &["spec", "os", "name"]) == "windows"
    }

    /// A pod in a user namespace of its own has no root of the host's.
    fn has_own_users(&self) -> bool {
        self.spec.get("hostUsers").value == &Value::Bool(false)
    }
}

/// A field of a container's security context.
fn context<'a>(container: &Field<'a>, path: &[&str]) -> Field<'a> {
    container.get("securityContext").dig(path)
}

/// `"a", "b"`.
fn quoted<T: AsRef<str>>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| format!("\"{}\"", item.as_ref())).collect::<Vec<_>>().join(", ")
}

/// One word or the other.
fn plural(one: &'static str, several: &'static str, count: usize) -> &'static str {
    if count == 1 { one } else { several }
}

/// `container "a"` or `containers "a", "b"`.
fn containers(names: &[&str]) -> String {
    format!("{} {}", plural("container", "containers", names.len()), quoted(names))
}

/// `pod and containers "a", "b"`, of those that did it.
fn setters(pod: bool, names: &[&str]) -> Option<String> {
    let parts: Vec<String> =
        pod.then(|| "pod".to_owned()).into_iter().chain((!names.is_empty()).then(|| containers(names))).collect();
    (!parts.is_empty()).then(|| parts.join(" and "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(spec: Value) -> Value {
        let mut whole =
            json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
        if let (Some(target), Value::Object(fields)) = (whole["spec"].as_object_mut(), spec) {
            target.extend(fields);
        }
        whole
    }

    fn said(level: Level, spec: Value) -> String {
        told(&violations(LevelVersion { level, minor: None }, &pod(spec)))
    }

    fn container(context: Value) -> Value {
        json!({ "containers": [{ "name": "c", "image": "i", "securityContext": context }] })
    }

    #[test]
    fn labels_are_read_as_upstream_reads_them() {
        let of = |labels: Value| Policy::of(&json!({ "metadata": { "labels": labels } }));
        let (policy, causes) = of(json!({ "pod-security.kubernetes.io/enforce": "baseline",
                "pod-security.kubernetes.io/enforce-version": "v1.30" }));
        assert_eq!(
            (policy.enforce.to_string(), policy.warn.to_string(), causes.len()),
            ("baseline:v1.30".into(), "baseline:v1.30".into(), 0)
        );
        assert!(of(json!({})).0.is_open());
        let (policy, causes) = of(
            json!({ "pod-security.kubernetes.io/enforce": "strict", "pod-security.kubernetes.io/warn-version": "1.2" }),
        );
        assert_eq!(policy.enforce.level, Level::Restricted);
        let messages: Vec<String> = causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
        assert_eq!(
            messages,
            [
                r#"metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: "strict": must be one of privileged, baseline, restricted"#,
                r#"metadata.labels[pod-security.kubernetes.io/warn-version]: Invalid value: "1.2": must be "latest" or "v1.x""#,
            ]
        );
    }

    #[test]
    fn every_baseline_check_has_upstreams_words() {
        let table = [
            (json!({ "hostNetwork": true, "hostPID": true }), "host namespaces (hostNetwork=true, hostPID=true)"),
            (
                json!({ "volumes": [{ "name": "a", "hostPath": { "path": "/" } },
                    { "name": "b", "hostPath": { "path": "/" } }] }),
                r#"hostPath volumes (volumes "a", "b")"#,
            ),
            (
                json!({ "containers": [{ "name": "c", "ports": [{ "hostPort": 80 }, { "hostPort": 443 }] }] }),
                r#"hostPort (container "c" uses hostPorts 443, 80)"#,
            ),
            (
                json!({ "containers": [{ "name": "c", "livenessProbe": { "httpGet": { "host": "h" } } }] }),
                r#"probe or lifecycle host (container "c" uses probe or lifecycle host "h")"#,
            ),
            (
                container(json!({ "privileged": true })),
                r#"privileged (container "c" must not set securityContext.privileged=true)"#,
            ),
            (
                container(json!({ "procMount": "Unmasked" })),
                r#"procMount (container "c" must not set securityContext.procMount to "Unmasked")"#,
            ),
            (
                container(json!({ "seLinuxOptions": { "type": "spc_t", "user": "u" } })),
                r#"seLinuxOptions (container "c" set forbidden securityContext.seLinuxOptions: type "spc_t"; user may not be set)"#,
            ),
            (
                container(json!({ "capabilities": { "add": ["NET_RAW", "CHOWN"] } })),
                r#"non-default capabilities (container "c" must not include "NET_RAW" in securityContext.capabilities.add)"#,
            ),
            (
                json!({ "securityContext": { "seccompProfile": { "type": "Unconfined" } } }),
                r#"seccompProfile (pod must not set securityContext.seccompProfile.type to "Unconfined")"#,
            ),
            (
                container(json!({ "appArmorProfile": { "type": "Unconfined" } })),
                r#"forbidden AppArmor profile (container "c" must not set AppArmor profile type to "Unconfined")"#,
            ),
            (
                json!({ "securityContext": { "windowsOptions": { "hostProcess": true } } }),
                "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)",
            ),
            (
                json!({ "securityContext": { "sysctls": [{ "name": "kernel.msgmax" },
                    { "name": "net.ipv4.tcp_rmem" }] } }),
                "forbidden sysctls (kernel.msgmax)",
            ),
        ];
        for (spec, wanted) in table {
            assert_eq!(said(Level::Baseline, spec.clone()), wanted, "{spec}");
            assert_eq!(said(Level::Privileged, spec), "");
        }
        assert_eq!(said(Level::Baseline, json!({})), "");
    }

    #[test]
    fn a_plain_pod_breaks_the_restricted_level_in_four_ways() {
        let wanted = r#"allowPrivilegeEscalation != false (container "c" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container "c" must set securityContext.capabilities.drop=["ALL"]), runAsNonRoot != true (pod or container "c" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container "c" must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost")"#;
        assert_eq!(said(Level::Restricted, json!({})), wanted);
        let good = json!({
            "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{ "name": "c", "image": "i", "securityContext": { "allowPrivilegeEscalation": false,
                "capabilities": { "drop": ["ALL"], "add": ["NET_BIND_SERVICE"] } } }],
            "volumes": [{ "name": "a", "emptyDir": {} }, { "name": "b",
                "persistentVolumeClaim": { "claimName": "x" } }],
        });
        assert_eq!(said(Level::Restricted, good.clone()), "");
        let mut root = good.clone();
        root["securityContext"]["runAsUser"] = json!(0);
        assert_eq!(said(Level::Restricted, root), "runAsUser=0 (pod must not set runAsUser=0)");
        let mut nfs = good;
        nfs["volumes"] = json!([{ "name": "n", "nfs": { "server": "s", "path": "/" } }]);
        assert_eq!(
            said(Level::Restricted, nfs),
            r#"restricted volume types (volume "n" uses restricted volume type "nfs")"#
        );
    }

    #[test]
    fn older_versions_know_less() {
        let sysctl = pod(json!({ "securityContext": { "sysctls": [{ "name": "net.ipv4.tcp_rmem" }] } }));
        let at = |minor| violations(LevelVersion { level: Level::Baseline, minor: Some(minor) }, &sysctl).len();
        assert_eq!((at(31), at(32)), (1, 0));
        let image = |image: &str| pod(json!({ "containers": [{ "name": "c", "image": image }] }));
        assert!(is_significant(&image("b"), &image("a")) && !is_significant(&image("a"), &image("a")));
    }
}
