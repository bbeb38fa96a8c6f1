//! The files that every container of a pod gets: /etc/hosts, /etc/hostname, /etc/resolv.conf, and the termination log.

use std::fs;
use std::io::{self, Read as _, Seek as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::PodSpec;

use super::disk::Disk;
use super::{Kubelet, PodContext};
use crate::streaming::logs::lines;
use mainstay_runtime::safe_path::make_private_dir;

/// The largest termination message, as upstream.
const MAX_MESSAGE: u64 = 4096;
/// Of a log that stands in for a termination message: bytes and lines, as upstream.
const MAX_LOG_TAIL: u64 = 2048;
const MAX_LOG_LINES: usize = 80;
/// What a log line begins with takes no more.
const MAX_HEADING: u64 = 64;
/// The longest line that a resolver is promised to read of `search`, and how many domains, as upstream.
const MAX_SEARCH: usize = 32;
const MAX_NAMESERVERS: usize = 3;
/// The node's own resolver settings are read up to this size.
const MAX_RESOLV: u64 = 64 << 10;

/// Where a pod's files are.
pub fn dir(disk: &Disk, uid: &str) -> io::Result<PathBuf> {
    Ok(disk.pod_dir(uid)?.join("files"))
}

/// What the pod's containers are told of their hostname: the node's name where they use its network, as upstream.
pub fn hostname(kubelet: &Kubelet, context: &PodContext) -> String {
    let host_network = context.spec().is_some_and(|spec| spec.host_network == Some(true));
    if host_network { kubelet.config.node_name.clone() } else { own_hostname(context) }
}

/// The pod's own hostname: `spec.hostname`, else its name, cut to what Linux takes.
fn own_hostname(context: &PodContext) -> String {
    let spec = context.spec();
    let given = spec
        .and_then(|spec| spec.hostname_override.as_deref().or(spec.hostname.as_deref()))
        .filter(|name| !name.is_empty());
    let name = given.unwrap_or(&context.name);
    let cut: String = name.chars().take(63).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// The pod's fully qualified name, where its subdomain gives it one.
fn domain_name(kubelet: &Kubelet, context: &PodContext) -> Option<String> {
    let subdomain = context.spec()?.subdomain.as_deref().filter(|name| !name.is_empty())?;
    Some(format!("{}.{subdomain}.{}.svc.{}", own_hostname(context), context.namespace, kubelet.config.cluster_domain))
}

/// The longest hostname that the kernel takes.
const MAX_HOSTNAME: usize = 64;

/// What `hostname` says in the pod: its hostname, or with `setHostnameAsFQDN` its fully qualified name.
///
/// # Errors
/// That name is longer than what the kernel takes; in upstream's words.
pub fn kernel_hostname(kubelet: &Kubelet, context: &PodContext) -> Result<String, String> {
    let wants_domain =
        context.spec().is_some_and(|spec| spec.set_hostname_as_fqdn == Some(true) && spec.host_network != Some(true));
    match domain_name(kubelet, context).filter(|_| wants_domain) {
        None => Ok(hostname(kubelet, context)),
        Some(name) if name.len() <= MAX_HOSTNAME => Ok(name),
        Some(name) => Err(format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {name} is too long ({MAX_HOSTNAME} \
             characters is the max, {} characters requested)",
            name.len()
        )),
    }
}

/// Writes the pod's files; again after each start of a sandbox, since the address may be new.
pub fn write(kubelet: &Kubelet, context: &PodContext, ip: Option<&str>) -> io::Result<()> {
    let dir = dir(&kubelet.disk, &context.uid)?;
    make_private_dir(&dir)?;
    let host_network = context.spec().is_some_and(|spec| spec.host_network == Some(true));
    let hosts = if host_network {
        let mut own = read_limited(Path::new("/etc/hosts"), MAX_RESOLV).unwrap_or_default();
        own.push_str(&aliases(context));
        format!("# Kubernetes-managed hosts file (host network).\n{own}")
    } else {
        hosts(context, ip, domain_name(kubelet, context))
    };
    put(&dir.join("hosts"), &hosts)?;
    put(&dir.join("hostname"), &format!("{}\n", hostname(kubelet, context)))?;
    if let Some(spec) = context.spec() {
        let own = read_limited(&kubelet.config.host_resolv_conf, MAX_RESOLV).unwrap_or_default();
        let dns = kubelet.config.cluster_dns.to_string();
        put(
            &dir.join("resolv.conf"),
            &resolv_conf(spec, &context.namespace, &dns, &kubelet.config.cluster_domain, &own),
        )?;
    }
    Ok(())
}

/// In place, so that containers that have the file bound in see the change.
fn put(path: &Path, text: &str) -> io::Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}

fn read_limited(path: &Path, limit: u64) -> io::Result<String> {
    let mut text = String::new();
    fs::File::open(path)?.take(limit).read_to_string(&mut text)?;
    Ok(text)
}

fn hosts(context: &PodContext, ip: Option<&str>, domain: Option<String>) -> String {
    let mut text =
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
                    fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
            .to_owned();
    if let Some(ip) = ip {
        let names = match domain {
            Some(domain) => format!("{domain}\t{}", own_hostname(context)),
            None => own_hostname(context),
        };
        text.push_str(&format!("{ip}\t{names}\n"));
    }
    text.push_str(&aliases(context));
    text
}

fn aliases(context: &PodContext) -> String {
    let all: Vec<_> = context.spec().into_iter().flat_map(|spec| spec.host_aliases.iter().flatten()).collect();
    if all.is_empty() {
        return String::new();
    }
    let mut text = "\n# Entries added by HostAliases.\n".to_owned();
    for alias in all {
        text.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.as_deref().unwrap_or_default().join("\t")));
    }
    text
}

/// `/etc/resolv.conf` by `dnsPolicy` and `dnsConfig`. `own` is the node's file.
pub fn resolv_conf(spec: &PodSpec, namespace: &str, cluster_dns: &str, cluster_domain: &str, own: &str) -> String {
    let lines = |keyword: &str| -> Vec<String> {
        own.lines()
            .filter_map(|line| line.trim().strip_prefix(keyword).filter(|rest| rest.starts_with([' ', '\t'])))
            .map(|rest| rest.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
            .next_back()
            .unwrap_or_default()
    };
    let host_servers: Vec<String> = own
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .map(|rest| rest.trim().to_owned())
        .collect();
    let host_network = spec.host_network == Some(true);
    let (mut servers, mut search, mut options) = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "None" => (Vec::new(), Vec::new(), Vec::new()),
        "Default" => (host_servers, lines("search"), lines("options")),
        "ClusterFirst" if host_network => (host_servers, lines("search"), lines("options")),
        _ => {
            let mut search = vec![
                format!("{namespace}.svc.{cluster_domain}"),
                format!("svc.{cluster_domain}"),
                cluster_domain.to_owned(),
            ];
            search.extend(lines("search"));
            (vec![cluster_dns.to_owned()], search, vec!["ndots:5".to_owned()])
        }
    };
    if let Some(config) = &spec.dns_config {
        servers.extend(config.nameservers.iter().flatten().cloned());
        search.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let Some(name) = &option.name else { continue };
            options.retain(|old| old.split(':').next() != Some(name));
            options.push(option.value.as_ref().map_or(name.clone(), |value| format!("{name}:{value}")));
        }
    }
    let unique = |all: Vec<String>, most: usize| {
        let mut kept: Vec<String> = Vec::new();
        for one in all {
            if !kept.contains(&one) && kept.len() < most {
                kept.push(one);
            }
        }
        kept
    };
    let (servers, search) = (unique(servers, MAX_NAMESERVERS), unique(search, MAX_SEARCH));
    let mut text = String::new();
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !search.is_empty() {
        text.push_str(&format!("search {}\n", search.join(" ")));
    }
    if !options.is_empty() {
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    text
}

/// The file that a container's termination log is bound to; made empty for each attempt.
pub fn termination_log(disk: &Disk, uid: &str, container: &str, attempt: u32) -> io::Result<PathBuf> {
    Ok(dir(disk, uid)?.join(format!("termination-{container}-{attempt}")))
}

/// Makes that file, writable for whatever user the container runs as.
pub fn make_termination_log(disk: &Disk, uid: &str, container: &str, attempt: u32) -> io::Result<PathBuf> {
    let path = termination_log(disk, uid, container, attempt)?;
    make_private_dir(&dir(disk, uid)?)?;
    put(&path, "")?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666))?;
    Ok(path)
}

/// The note that an attempt's postStart hook has run.
fn hook_note(disk: &Disk, uid: &str, container: &str, attempt: u32) -> io::Result<PathBuf> {
    Ok(dir(disk, uid)?.join(format!("post-start-{container}-{attempt}")))
}

/// Notes that an attempt's postStart hook has run: an agent that starts anew does not run it again.
pub fn note_hook(disk: &Disk, uid: &str, container: &str, attempt: u32) -> io::Result<()> {
    make_private_dir(&dir(disk, uid)?)?;
    fs::write(hook_note(disk, uid, container, attempt)?, "")
}

/// Whether an attempt's postStart hook is noted to have run.
pub fn has_hook_run(disk: &Disk, uid: &str, container: &str, attempt: u32) -> bool {
    hook_note(disk, uid, container, attempt).is_ok_and(|note| note.exists())
}

/// Removes what an attempt left beside its log.
pub fn forget_attempt(disk: &Disk, uid: &str, container: &str, attempt: u32) {
    for file in [termination_log(disk, uid, container, attempt), hook_note(disk, uid, container, attempt)] {
        let _ = file.and_then(fs::remove_file);
    }
}

/// What an ended container said last: its termination log, or the end of its log where it asked for that.
pub fn termination_message(
    disk: &Disk,
    context: &PodContext,
    container: &str,
    attempt: u32,
    code: i32,
) -> Option<String> {
    let path = termination_log(disk, &context.uid, container, attempt).ok()?;
    // The container could write here; a link it made is not followed.
    let open =
        |path: &Path| fs::OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path);
    let mut bytes = Vec::new();
    if let Ok(file) = open(&path) {
        file.take(MAX_MESSAGE).read_to_end(&mut bytes).ok()?;
    }
    let fallback = context.container(container).and_then(|spec| spec.termination_message_policy.as_deref())
        == Some("FallbackToLogsOnError");
    if bytes.is_empty() && fallback && code != 0 {
        return log_tail(&disk.log_path(&context.namespace, &context.name, &context.uid, container, attempt));
    }
    Some(String::from_utf8_lossy(&bytes).into_owned()).filter(|text| !text.is_empty())
}

/// The end of a log as the container wrote it: so many lines at most, and of those so many bytes.
fn log_tail(path: &Path) -> Option<String> {
    let mut file = fs::File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    // A heading is about 40 bytes a line.
    let from = length.saturating_sub(MAX_LOG_TAIL + MAX_LOG_LINES as u64 * MAX_HEADING);
    file.seek(io::SeekFrom::Start(from)).ok()?;
    let mut bytes = Vec::new();
    file.take(length.saturating_sub(from)).read_to_end(&mut bytes).ok()?;
    let whole = match bytes.iter().position(|byte| *byte == b'\n').filter(|_| from > 0) {
        Some(end) => bytes.get(end + 1..)?,
        None => &bytes,
    };
    let mut content = Vec::new();
    lines::Filter::new(&lines::LogOptions::default()).feed(whole, &mut content);
    let ends = content.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1);
    // The end of the last line is no beginning of another.
    let first = ends.filter(|at| *at < content.len()).nth(MAX_LOG_LINES - 1).unwrap_or(0);
    let first = first.max(content.len().saturating_sub(MAX_LOG_TAIL as usize));
    Some(String::from_utf8_lossy(content.get(first..)?).into_owned()).filter(|tail| !tail.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A termination message is what the container wrote, with a line end where it wrote one.
    #[test]
    fn a_log_tail_is_what_the_container_wrote() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let tail = |text: &str| {
            fs::write(&path, text).unwrap();
            log_tail(&path)
        };
        let time = "2026-11-21T04:00:00.000000001Z";
        assert_eq!(tail(&format!("{time} stdout F one\n{time} stderr P DONE\n")).as_deref(), Some("one\nDONE"));
        assert_eq!(tail(&format!("{time} stdout F DONE\n")).as_deref(), Some("DONE\n"));
        assert_eq!(tail(""), None);
        let many: String = (0..200).map(|n| format!("{time} stdout F {n}\n")).collect();
        let lines = tail(&many).unwrap();
        assert_eq!((lines.lines().next(), lines.lines().count()), (Some("120"), 80));
        let long: String = (0..50).map(|_| format!("{time} stdout F {}\n", "x".repeat(99))).collect();
        assert_eq!(tail(&long).unwrap().len(), 2048);
    }

    #[test]
    fn a_hook_that_has_run_is_noted_for_its_attempt_alone() {
        let root = tempfile::tempdir().unwrap();
        let disk = Disk::new(root.path());
        assert!(!has_hook_run(&disk, "u", "c", 0));
        note_hook(&disk, "u", "c", 0).unwrap();
        let ran = |attempt| has_hook_run(&disk, "u", "c", attempt);
        assert_eq!((ran(0), ran(1), has_hook_run(&disk, "u", "d", 0)), (true, false, false));
        forget_attempt(&disk, "u", "c", 0);
        assert!(!ran(0));
    }

    fn spec(value: serde_json::Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn resolv_conf_follows_the_policy() {
        let own = "nameserver 192.0.2.1\nsearch example.org\noptions timeout:1\n";
        let text = |value| resolv_conf(&spec(value), "ns", "10.96.0.10", "cluster.local", own);
        assert_eq!(
            text(serde_json::json!({ "containers": [] })),
            "nameserver 10.96.0.10\nsearch ns.svc.cluster.local svc.cluster.local cluster.local example.org\noptions \
                ndots:5\n"
        );
        assert_eq!(
            text(serde_json::json!({ "containers": [], "dnsPolicy": "Default" })),
            "nameserver 192.0.2.1\nsearch example.org\noptions timeout:1\n"
        );
        assert_eq!(
            text(serde_json::json!({ "containers": [], "hostNetwork": true })),
            "nameserver 192.0.2.1\nsearch example.org\noptions timeout:1\n"
        );
        assert_eq!(
            text(serde_json::json!({ "containers": [], "dnsPolicy": "None", "dnsConfig": {
                "nameservers": ["192.0.2.7"], "searches": ["a.test"], "options": [{ "name": "ndots", "value": "1" },
                    { "name": "edns0" }] } })),
            "nameserver 192.0.2.7\nsearch a.test\noptions ndots:1 edns0\n"
        );
        assert_eq!(
            text(
                serde_json::json!({ "containers": [], "dnsConfig": { "options": [{ "name": "ndots", "value": "2" }] } })
            ),
            "nameserver 10.96.0.10\nsearch ns.svc.cluster.local svc.cluster.local cluster.local example.org\noptions \
                ndots:2\n"
        );
    }
}
