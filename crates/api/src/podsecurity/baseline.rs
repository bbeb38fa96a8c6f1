//! The checks of the baseline level.

use std::collections::BTreeSet;

use super::{Pod, Violation, containers, context, plural, quoted, setters};
use crate::kinds::field::Field;

const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
/// Kernel parameters that are the pod's own, and since which minor version that is known.
const SYSCTLS: [(&str, u32); 14] = [
    ("kernel.shm_rmid_forced", 0),
    ("net.ipv4.ip_local_port_range", 0),
    ("net.ipv4.tcp_syncookies", 0),
    ("net.ipv4.ping_group_range", 0),
    ("net.ipv4.ip_unprivileged_port_start", 0),
    ("net.ipv4.ip_local_reserved_ports", 27),
    ("net.ipv4.tcp_keepalive_time", 29),
    ("net.ipv4.tcp_fin_timeout", 29),
    ("net.ipv4.tcp_keepalive_intvl", 29),
    ("net.ipv4.tcp_keepalive_probes", 29),
    ("net.ipv4.tcp_rmem", 32),
    ("net.ipv4.tcp_wmem", 32),
    ("net.ipv4.tcp_slow_start_after_idle", 37),
    ("net.ipv4.tcp_notsent_lowat", 37),
];

/// All checks. As part of the restricted level those are left out that it has stricter ones for.
pub(super) fn check(pod: &Pod, restricted: bool) -> Vec<Violation> {
    let stricter = |check: &str| match check {
        "capabilities" => restricted && pod.minor >= 22,
        "hostPathVolumes" => restricted,
        "procMount" => restricted && pod.minor >= 35,
        "seccompProfile" => restricted && pod.minor >= 19,
        _ => false,
    };
    let all: [(&str, fn(&Pod) -> Option<Violation>); 12] = [
        ("appArmorProfile", app_armor),
        ("capabilities", capabilities),
        ("hostNamespaces", host_namespaces),
        ("hostPathVolumes", host_path_volumes),
        ("hostPorts", host_ports),
        ("hostProbes", host_probes),
        ("privileged", privileged),
        ("procMount", proc_mount_baseline),
        ("seLinuxOptions", selinux),
        ("seccompProfile", seccomp),
        ("sysctls", sysctls),
        ("windowsHostProcess", windows_host_process),
    ];
    all.iter().filter(|(name, _)| !stricter(name)).filter_map(|(_, check)| check(pod)).collect()
}

fn app_armor(pod: &Pod) -> Option<Violation> {
    let is_bad =
        |profile: &Field| profile.is_set() && !matches!(profile.get("type").text(), "RuntimeDefault" | "Localhost");
    let own = pod.context(&["appArmorProfile"]);
    let named = pod.named(|container| is_bad(&context(container, &["appArmorProfile"])));
    let mut values: Vec<String> = std::iter::once(own.clone())
        .chain(pod.containers().map(|container| context(&container, &["appArmorProfile"])))
        .filter(is_bad)
        .map(|profile| profile.get("type").text().to_owned())
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect();
    let allowed = |value: &str| value.is_empty() || value == "runtime/default" || value.starts_with("localhost/");
    let annotations: Vec<String> = pod
        .annotations()
        .filter(|(key, value)| key.starts_with("container.apparmor.security.beta.kubernetes.io/") && !allowed(value))
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    let mut parts: Vec<String> = setters(is_bad(&own), &named).into_iter().collect();
    if !annotations.is_empty() {
        parts.push(plural("annotation", "annotations", annotations.len()).to_owned());
        values.extend(annotations);
    }
    (!parts.is_empty()).then(|| Violation {
        reason: plural("forbidden AppArmor profile", "forbidden AppArmor profiles", values.len()),
        detail: format!("{} must not set AppArmor profile type to {}", parts.join(" and "), quoted(values)),
    })
}

fn capabilities(pod: &Pod) -> Option<Violation> {
    let added = |container: &Field| {
        let all = context(container, &["capabilities", "add"]).items().map(|c| c.text().to_owned()).collect::<Vec<_>>();
        all.into_iter().filter(|c| !CAPABILITIES.contains(&c.as_str())).collect::<Vec<_>>()
    };
    let named = pod.named(|container| !added(container).is_empty());
    let all: BTreeSet<String> = pod.containers().flat_map(|container| added(&container)).collect();
    (!named.is_empty()).then(|| Violation {
        reason: "non-default capabilities",
        detail: format!("{} must not include {} in securityContext.capabilities.add", containers(&named), quoted(all)),
    })
}

fn host_namespaces(pod: &Pod) -> Option<Violation> {
    let used: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .into_iter()
        .filter(|field| pod.spec.get(field).is_true())
        .map(|field| format!("{field}=true"))
        .collect();
    (!used.is_empty()).then(|| Violation { reason: "host namespaces", detail: used.join(", ") })
}

fn host_path_volumes(pod: &Pod) -> Option<Violation> {
    let volumes = pod.spec.get("volumes").items().filter(|volume| volume.get("hostPath").is_set());
    let named: Vec<&str> = volumes.map(|volume| volume.get("name").text()).collect();
    (!named.is_empty()).then(|| Violation {
        reason: "hostPath volumes",
        detail: format!("{} {}", plural("volume", "volumes", named.len()), quoted(named)),
    })
}

fn host_ports(pod: &Pod) -> Option<Violation> {
    let ports = |container: &Field| {
        let all = container.get("ports").items().filter_map(|port| port.get("hostPort").int()).collect::<Vec<_>>();
        all.into_iter().filter(|port| *port != 0).map(|port| port.to_string()).collect::<Vec<_>>()
    };
    let named = pod.named(|container| !ports(container).is_empty());
    let all: BTreeSet<String> = pod.containers().flat_map(|container| ports(&container)).collect();
    (!named.is_empty()).then(|| Violation {
        reason: "hostPort",
        detail: format!(
            "{} {} {} {}",
            containers(&named),
            plural("uses", "use", named.len()),
            plural("hostPort", "hostPorts", all.len()),
            all.into_iter().collect::<Vec<_>>().join(", ")
        ),
    })
}

fn host_probes(pod: &Pod) -> Option<Violation> {
    const HANDLERS: [&[&str]; 5] = [
        &["livenessProbe"],
        &["readinessProbe"],
        &["startupProbe"],
        &["lifecycle", "postStart"],
        &["lifecycle", "preStop"],
    ];
    let hosts = |container: &Field| {
        let handlers = HANDLERS.iter().map(|path| container.dig(path));
        let all = handlers.flat_map(|handler| ["httpGet", "tcpSocket"].map(|kind| handler.dig(&[kind, "host"])));
        all.map(|host| host.text().to_owned()).filter(|host| !host.is_empty()).collect::<Vec<_>>()
    };
    if pod.minor < 34 {
        return None;
    }
    let named: BTreeSet<&str> = pod.named(|container| !hosts(container).is_empty()).into_iter().collect();
    let named: Vec<&str> = named.into_iter().collect();
    let all: BTreeSet<String> = pod.containers().flat_map(|container| hosts(&container)).collect();
    (!named.is_empty()).then(|| Violation {
        reason: "probe or lifecycle host",
        detail: format!(
            "{} {} {} {}",
            containers(&named),
            plural("uses", "use", named.len()),
            plural("probe or lifecycle host", "probe or lifecycle hosts", all.len()),
            quoted(all)
        ),
    })
}

fn privileged(pod: &Pod) -> Option<Violation> {
    let named = pod.named(|container| context(container, &["privileged"]).is_true());
    (!named.is_empty()).then(|| Violation {
        reason: "privileged",
        detail: format!("{} must not set securityContext.privileged=true", containers(&named)),
    })
}

fn proc_mount_baseline(pod: &Pod) -> Option<Violation> {
    if pod.minor >= 35 && pod.has_own_users() { None } else { proc_mount(pod) }
}

/// `/proc` is masked. The restricted level asks for that in any case.
pub(super) fn proc_mount(pod: &Pod) -> Option<Violation> {
    let bad = |container: &Field| {
        let kind = context(container, &["procMount"]).text().to_owned();
        Some(kind).filter(|kind| !kind.is_empty() && kind != "Default")
    };
    let named = pod.named(|container| bad(container).is_some());
    let all: BTreeSet<String> = pod.containers().filter_map(|container| bad(&container)).collect();
    (!named.is_empty()).then(|| Violation {
        reason: "procMount",
        detail: format!("{} must not set securityContext.procMount to {}", containers(&named), quoted(all)),
    })
}

fn selinux(pod: &Pod) -> Option<Violation> {
    let allowed = |kind: &str| {
        matches!(kind, "" | "container_t" | "container_init_t" | "container_kvm_t")
            || (kind == "container_engine_t" && pod.minor >= 31)
    };
    let has = |options: &Field, field: &str| !options.get(field).text().is_empty();
    let is_bad = |options: &Field| !allowed(options.get("type").text()) || has(options, "user") || has(options, "role");
    let own = pod.context(&["seLinuxOptions"]);
    let named = pod.named(|container| is_bad(&context(container, &["seLinuxOptions"])));
    let setters = setters(is_bad(&own), &named)?;
    let all: Vec<Field> = std::iter::once(own)
        .chain(pod.containers().map(|container| context(&container, &["seLinuxOptions"])))
        .filter(|options| is_bad(options))
        .collect();
    let kinds: BTreeSet<&str> =
        all.iter().map(|options| options.get("type").text()).filter(|kind| !allowed(kind)).collect();
    let mut wrong = Vec::new();
    if !kinds.is_empty() {
        wrong.push(format!("{} {}", plural("type", "types", kinds.len()), quoted(kinds)));
    }
    for field in ["user", "role"] {
        if all.iter().any(|options| has(options, field)) {
            wrong.push(format!("{field} may not be set"));
        }
    }
    Some(Violation {
        reason: "seLinuxOptions",
        detail: format!("{setters} set forbidden securityContext.seLinuxOptions: {}", wrong.join("; ")),
    })
}

/// Whether a seccomp profile is set to something that confines nothing.
pub(super) fn is_bad_seccomp(profile: &Field) -> bool {
    profile.is_set() && !matches!(profile.get("type").text(), "RuntimeDefault" | "Localhost")
}

fn seccomp(pod: &Pod) -> Option<Violation> {
    if pod.minor < 19 { seccomp_annotations(pod) } else { explicit_seccomp(pod) }
}

/// Profiles that are set and may not be.
pub(super) fn explicit_seccomp(pod: &Pod) -> Option<Violation> {
    let own = pod.context(&["seccompProfile"]);
    let named = pod.named(|container| is_bad_seccomp(&context(container, &["seccompProfile"])));
    let setters = setters(is_bad_seccomp(&own), &named)?;
    let values: BTreeSet<&str> = std::iter::once(own)
        .chain(pod.containers().map(|container| context(&container, &["seccompProfile"])))
        .filter(is_bad_seccomp)
        .map(|profile| profile.get("type").text())
        .collect();
    Some(Violation {
        reason: "seccompProfile",
        detail: format!("{setters} must not set securityContext.seccompProfile.type to {}", quoted(values)),
    })
}

fn seccomp_annotations(pod: &Pod) -> Option<Violation> {
    let allowed =
        |value: &str| matches!(value, "runtime/default" | "docker/default") || value.starts_with("localhost/");
    let of_containers =
        pod.containers().map(|c| format!("container.seccomp.security.alpha.kubernetes.io/{}", c.get("name").text()));
    let keys = std::iter::once("seccomp.security.alpha.kubernetes.io/pod".to_owned()).chain(of_containers);
    let bad: BTreeSet<String> = keys
        .filter_map(|key| pod.annotation(&key).filter(|value| !allowed(value)).map(|value| format!("{key}={value:?}")))
        .collect();
    (!bad.is_empty()).then(|| Violation {
        reason: "seccompProfile",
        detail: format!(
            "forbidden {} {}",
            plural("annotation", "annotations", bad.len()),
            bad.into_iter().collect::<Vec<_>>().join(", ")
        ),
    })
}

fn sysctls(pod: &Pod) -> Option<Violation> {
    let allowed = |name: &str| SYSCTLS.iter().any(|(known, since)| *known == name && *since <= pod.minor);
    let all = pod.context(&["sysctls"]).items().map(|sysctl| sysctl.get("name").text());
    let bad: Vec<&str> = all.filter(|name| !allowed(name)).collect();
    (!bad.is_empty()).then(|| Violation { reason: "forbidden sysctls", detail: bad.join(", ") })
}

fn windows_host_process(pod: &Pod) -> Option<Violation> {
    let path = ["windowsOptions", "hostProcess"];
    let named = pod.named(|container| context(container, &path).is_true());
    setters(pod.context(&path).is_true(), &named).map(|setters| Violation {
        reason: "hostProcess",
        detail: format!("{setters} must not set securityContext.windowsOptions.hostProcess=true"),
    })
}
