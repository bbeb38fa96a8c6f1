//! What goes with a pod's operating system: signals that stop its containers, and options of another system.

use super::field::Field;
use crate::names;
use crate::status::Cause;

/// Signals of Linux, in upstream's order.
const SIGNALS: &str = "SIGABRT SIGALRM SIGBUS SIGCHLD SIGCLD SIGCONT SIGFPE SIGHUP SIGILL SIGINT SIGIO SIGIOT SIGKILL \
    SIGPIPE SIGPOLL SIGPROF SIGPWR SIGQUIT SIGRTMAX SIGRTMAX-1 SIGRTMAX-10 SIGRTMAX-11 SIGRTMAX-12 SIGRTMAX-13 \
    SIGRTMAX-14 SIGRTMAX-2 SIGRTMAX-3 SIGRTMAX-4 SIGRTMAX-5 SIGRTMAX-6 SIGRTMAX-7 SIGRTMAX-8 SIGRTMAX-9 SIGRTMIN \
    SIGRTMIN+1 SIGRTMIN+10 SIGRTMIN+11 SIGRTMIN+12 SIGRTMIN+13 SIGRTMIN+14 SIGRTMIN+15 SIGRTMIN+2 SIGRTMIN+3 \
    SIGRTMIN+4 SIGRTMIN+5 SIGRTMIN+6 SIGRTMIN+7 SIGRTMIN+8 SIGRTMIN+9 SIGSEGV SIGSTKFLT SIGSTOP SIGSYS SIGTERM \
    SIGTRAP SIGTSTP SIGTTIN SIGTTOU SIGURG SIGUSR1 SIGUSR2 SIGVTALRM SIGWINCH SIGXCPU SIGXFSZ";
/// Largest specification of an account of Windows, KiB.
const MAX_SPEC_KIB: usize = 64;
/// Longest name of a user of Windows and, not included, of its domain.
const MAX_USER: usize = 104;
const MAX_DOMAIN: usize = 256;

/// Those of a whole PodSpec.
pub(super) fn validate(spec: &Field, causes: &mut Vec<Cause>) {
    let os = spec.get("os");
    let system = if os.is_set() { Some(os.get("name").text()) } else { None };
    windows(&spec.dig(&["securityContext", "windowsOptions"]), system, causes);
    let lists = ["containers", "initContainers", "ephemeralContainers"].map(|list| spec.get(list));
    for container in lists.iter().flat_map(Field::items) {
        stop_signal(&container.dig(&["lifecycle", "stopSignal"]), system, causes);
        windows(&container.dig(&["securityContext", "windowsOptions"]), system, causes);
    }
}

fn stop_signal(signal: &Field, system: Option<&str>, causes: &mut Vec<Cause>) {
    let known: Vec<&str> = match system {
        _ if !signal.is_set() => return,
        None => {
            let why = "may not be set for containers with empty `spec.os.name`";
            causes.push(Cause::forbidden(&signal.path, why));
            return;
        }
        Some("windows") => vec!["SIGKILL", "SIGTERM"],
        Some("linux") => SIGNALS.split(' ').collect(),
        // What else it may be called is refused as a system.
        Some(_) => return,
    };
    if !known.contains(&signal.text()) {
        causes.push(Cause::not_supported(&signal.path, signal.text(), &known));
    }
}

/// Options of Windows, of a pod or of one container.
fn windows(options: &Field, system: Option<&str>, causes: &mut Vec<Cause>) {
    if !options.is_set() {
        return;
    }
    if system == Some("linux") {
        causes.push(Cause::forbidden(&options.path, "windows options cannot be set for a linux pod"));
    }
    let name = options.get("gmsaCredentialSpecName");
    if name.is_set() {
        causes.extend(names::subdomain(name.text()).iter().map(|wrong| name.invalid(wrong)));
    }
    let specification = options.get("gmsaCredentialSpec");
    if specification.is_set() && specification.text().is_empty() {
        causes.push(specification.invalid("gmsaCredentialSpec cannot be an empty string"));
    } else if specification.text().len() > MAX_SPEC_KIB << 10 {
        causes.push(specification.invalid(&format!("gmsaCredentialSpec size must be under {MAX_SPEC_KIB} KiB")));
    }
    let user = options.get("runAsUserName");
    if user.is_set() {
        causes.extend(user_name(user.text()).iter().map(|wrong| user.invalid(wrong)));
    }
}

/// What is wrong with `DOMAIN\\user` or `user`.
fn user_name(text: &str) -> Vec<String> {
    let parts: Vec<&str> = text.split('\\').collect();
    let (domain, user) = match parts.as_slice() {
        _ if text.is_empty() => return vec!["runAsUserName cannot be an empty string".to_owned()],
        _ if text.chars().any(|c| c.is_ascii_control()) => {
            return vec!["runAsUserName cannot contain control characters".to_owned()];
        }
        [user] => (None, *user),
        [domain, user] => (Some(*domain), *user),
        _ => return vec!["runAsUserName cannot contain more than one backslash".to_owned()],
    };
    let mut wrong = Vec::new();
    if domain.is_some_and(|domain| domain.len() >= MAX_DOMAIN) {
        wrong.push(format!("runAsUserName's Domain length must be under {MAX_DOMAIN} characters"));
    }
    if domain.is_some_and(|domain| !is_net_bios(domain) && !is_dns(domain)) {
        wrong.push("runAsUserName's Domain doesn't match the NetBios nor the DNS format".to_owned());
    }
    if user.is_empty() {
        wrong.push("runAsUserName's User cannot be empty".to_owned());
    } else if user.len() > MAX_USER {
        wrong.push(format!("runAsUserName's User length must not be longer than {MAX_USER} characters"));
    } else if user.chars().all(|c| matches!(c, '.' | ' ')) {
        wrong.push("runAsUserName's User cannot contain only periods or spaces".to_owned());
    }
    if user.contains(['"', '/', '\\', ':', ';', '|', '=', ',', '+', '*', '?', '<', '>', '@', '[', ']']) {
        wrong.push(r#"runAsUserName's User cannot contain the following characters: "/\:;|=,+*?<>@[]"#.to_owned());
    }
    wrong
}

/// Up to fifteen characters, not beginning with a dot, none of them one that a path or a pattern is made of.
fn is_net_bios(domain: &str) -> bool {
    !domain.starts_with('.')
        && (1..=15).contains(&domain.chars().count())
        && !domain.contains(['\\', '/', ':', '*', '?', '"', '<', '>', '|'])
}

/// Labels of letters, digits and dashes, and digits alone nowhere at the end.
fn is_dns(domain: &str) -> bool {
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    domain.contains('.') && domain.split('.').all(is_label)
}
