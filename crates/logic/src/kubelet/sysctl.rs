//! Which kernel parameters a pod may set: those of its own namespaces that harm nobody else, and what the node's
//! administrator allows beside them.

/// What has a value per namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    Ipc,
    Net,
}

impl Namespace {
    fn word(self) -> &'static str {
        match self {
            Self::Ipc => "ipc",
            Self::Net => "net",
        }
    }
}

/// Upstream's list (1.32 and later), each since its kernel, which every kernel that this runs on has.
const SAFE: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
];

/// With dots: of `a/b.c/d` (where the dot is part of a name) the separators are exchanged.
pub fn dotted(name: &str) -> String {
    let exchange = |c| match c {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    match name.find(['.', '/']) {
        Some(first) if name.as_bytes().get(first) == Some(&b'/') => name.chars().map(exchange).collect(),
        _ => name.to_owned(),
    }
}

/// The namespace that a parameter (or the beginning of its dotted name) belongs to; None where it is the host's.
pub fn namespace(dotted: &str) -> Option<Namespace> {
    let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."];
    if dotted == "kernel.sem" || ipc.iter().any(|prefix| dotted.starts_with(prefix)) {
        return Some(Namespace::Ipc);
    }
    dotted.starts_with("net.").then_some(Namespace::Net)
}

/// What is wrong with what the administrator wants to allow (names, or beginnings that end in `*`), in upstream's
/// words: one that no namespace has.
pub fn wrongly_allowed(patterns: &[String]) -> Option<String> {
    let wrong = patterns.iter().find(|pattern| {
        let name = dotted(pattern);
        namespace(name.strip_suffix('*').unwrap_or(&name)).is_none()
    });
    wrong.map(|pattern| format!("the sysctl {pattern:?} is not known to be namespaced"))
}

/// Why a pod may not set a parameter, in upstream's words.
pub(super) fn refusal(name: &str, allowed: &[String], host_network: bool, host_ipc: bool) -> Option<String> {
    let name = dotted(name);
    let matches = |pattern: &String| {
        let pattern = dotted(pattern);
        pattern.strip_suffix('*').map_or(name == pattern, |prefix| name.starts_with(prefix))
    };
    let listed = SAFE.contains(&name.as_str()) || allowed.iter().any(matches);
    match namespace(&name).filter(|_| listed) {
        None => Some(format!("forbidden sysctl: {name:?} not allowlisted")),
        Some(of) if (of == Namespace::Net && host_network) || (of == Namespace::Ipc && host_ipc) => {
            Some(format!("forbidden sysctl: {name:?} not allowed with host {} enabled", of.word()))
        }
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x6_only_safe_namespaced_parameters_may_be_set() {
        let allowed = ["net.core.*".to_owned(), "kernel/msgmax".to_owned(), "vm.*".to_owned()];
        for (name, host_network, host_ipc, expected) in [
            ("net.ipv4.tcp_rmem", false, false, None),
            ("net/ipv4/tcp_rmem", false, false, None),
            ("net.ipv4.tcp_rmem", false, true, None),
            ("kernel.shm_rmid_forced", true, false, None),
            ("kernel.shm_rmid_forced", true, false, None),
            ("net.core.somaxconn", false, false, None),
            ("kernel.msgmax", true, false, None),
            ("net.ipv4.tcp_rmem", true, false, Some("\"net.ipv4.tcp_rmem\" not allowed with host net enabled")),
            ("kernel.shm_rmid_forced", false, true, Some("not allowed with host ipc enabled")),
            ("net.ipv4.ip_forward", false, false, Some("forbidden sysctl: \"net.ipv4.ip_forward\" not allowlisted")),
            ("vm.stat_interval", false, false, Some("\"vm.stat_interval\" not allowlisted")),
            ("kernel.core_pattern", false, false, Some("not allowlisted")),
            ("net.core", false, false, Some("not allowlisted")),
        ] {
            let why = refusal(name, &allowed, host_network, host_ipc);
            assert_eq!(why.is_some(), expected.is_some(), "{name}: {why:?}");
            assert!(why.unwrap_or_default().contains(expected.unwrap_or_default()), "{name}");
        }
    }

    #[test]
    fn an_administrator_allows_only_what_is_namespaced() {
        let wrong = |pattern: &str| wrongly_allowed(&[pattern.to_owned()]);
        assert_eq!((wrong("net.*"), wrong("kernel.msg*"), wrong("kernel.sem")), (None, None, None));
        for pattern in ["vm.swappiness", "kernel.*", "*", "kernel.core_pattern", ""] {
            assert!(wrong(pattern).is_some(), "{pattern}");
        }
        assert_eq!(dotted("net/ipv4/conf/eth0.1/x"), "net.ipv4.conf.eth0/1.x");
        assert_eq!(dotted("net.ipv4.conf.eth0/1.x"), "net.ipv4.conf.eth0/1.x");
    }
}
