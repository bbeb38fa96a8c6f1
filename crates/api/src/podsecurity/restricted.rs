//! The checks that the restricted level adds to the baseline.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Pod, Violation, baseline, containers, context, plural, quoted, setters};
use crate::kinds::field::Field;

/// What a volume may be made of.
const VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// All of them.
pub(super) fn check(pod: &Pod) -> Vec<Violation> {
    let all: [fn(&Pod) -> Option<Violation>; 7] =
        [privilege_escalation, capabilities, proc_mount, volumes, run_as_non_root, run_as_user, seccomp];
    all.iter().filter_map(|check| check(pod)).collect()
}

fn privilege_escalation(pod: &Pod) -> Option<Violation> {
    if pod.minor < 8 || (pod.minor >= 25 && pod.is_windows()) {
        return None;
    }
    let named = pod.named(|container| context(container, &["allowPrivilegeEscalation"]).value != &Value::Bool(false));
    (!named.is_empty()).then(|| Violation {
        reason: "allowPrivilegeEscalation != false",
        detail: format!("{} must set securityContext.allowPrivilegeEscalation=false", containers(&named)),
    })
}

fn capabilities(pod: &Pod) -> Option<Violation> {
    if pod.minor < 22 || (pod.minor >= 25 && pod.is_windows()) {
        return None;
    }
    let drops = |container: &Field| context(container, &["capabilities", "drop"]).items().any(|c| c.text() == "ALL");
    let added = |container: &Field| {
        let all = context(container, &["capabilities", "add"]).items().map(|c| c.text().to_owned()).collect::<Vec<_>>();
        all.into_iter().filter(|c| c != "NET_BIND_SERVICE").collect::<Vec<_>>()
    };
    let mut details = Vec::new();
    let keeping = pod.named(|container| !drops(container));
    if !keeping.is_empty() {
        details.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", containers(&keeping)));
    }
    let adding = pod.named(|container| !added(container).is_empty());
    if !adding.is_empty() {
        let all: BTreeSet<String> = pod.containers().flat_map(|container| added(&container)).collect();
        let names = containers(&adding);
        details.push(format!("{names} must not include {} in securityContext.capabilities.add", quoted(all)));
    }
    (!details.is_empty()).then(|| Violation { reason: "unrestricted capabilities", detail: details.join("; ") })
}

fn proc_mount(pod: &Pod) -> Option<Violation> {
    if pod.minor < 35 { None } else { baseline::proc_mount(pod) }
}

fn volumes(pod: &Pod) -> Option<Violation> {
    // Everything in a volume but its name is what it is made of.
    let source = |volume: &Field| {
        volume
            .entries()
            .map(|(field, _)| field.to_owned())
            .find(|field| field != "name")
            .unwrap_or("unknown".to_owned())
    };
    let bad: Vec<Field> = pod
        .spec
        .get("volumes")
        .items()
        .filter(|volume| !VOLUMES.iter().any(|kind| volume.get(kind).is_set()))
        .collect();
    let kinds: BTreeSet<String> = bad.iter().map(source).collect();
    (!bad.is_empty()).then(|| Violation {
        reason: "restricted volume types",
        detail: format!(
            "{} {} {} {} {}",
            plural("volume", "volumes", bad.len()),
            quoted(bad.iter().map(|volume| volume.get("name").text())),
            plural("uses", "use", bad.len()),
            plural("restricted volume type", "restricted volume types", kinds.len()),
            quoted(kinds)
        ),
    })
}

fn run_as_non_root(pod: &Pod) -> Option<Violation> {
    const REASON: &str = "runAsNonRoot != true";
    if pod.minor >= 35 && pod.has_own_users() {
        return None;
    }
    let own = pod.context(&["runAsNonRoot"]);
    let refusing = pod.named(|container| context(container, &["runAsNonRoot"]).value == &Value::Bool(false));
    if let Some(setters) = setters(own.value == &Value::Bool(false), &refusing) {
        let detail = format!("{setters} must not set securityContext.runAsNonRoot=false");
        return Some(Violation { reason: REASON, detail });
    }
    let silent = pod.named(|container| !own.is_true() && !context(container, &["runAsNonRoot"]).is_set());
    (!silent.is_empty()).then(|| Violation {
        reason: REASON,
        detail: format!("pod or {} must set securityContext.runAsNonRoot=true", containers(&silent)),
    })
}

fn run_as_user(pod: &Pod) -> Option<Violation> {
    if pod.minor < 23 || (pod.minor >= 35 && pod.has_own_users()) {
        return None;
    }
    let named = pod.named(|container| context(container, &["runAsUser"]).int() == Some(0));
    setters(pod.context(&["runAsUser"]).int() == Some(0), &named)
        .map(|setters| Violation { reason: "runAsUser=0", detail: format!("{setters} must not set runAsUser=0") })
}

fn seccomp(pod: &Pod) -> Option<Violation> {
    if pod.minor < 19 || (pod.minor >= 25 && pod.is_windows()) {
        return None;
    }
    if let Some(explicit) = baseline::explicit_seccomp(pod) {
        return Some(explicit);
    }
    let own = pod.context(&["seccompProfile"]).is_set();
    let silent = pod.named(|container| !own && !context(container, &["seccompProfile"]).is_set());
    (!silent.is_empty()).then(|| Violation {
        reason: "seccompProfile",
        detail: format!(
            "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
            containers(&silent)
        ),
    })
}
