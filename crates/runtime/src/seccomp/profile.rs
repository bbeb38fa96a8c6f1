//! Profiles as the OCI runtime specification has them.

use serde::Deserialize;

use super::filter::ALL_FLAGS;

/// How many rules, and names in all of them, a profile may have.
const MAX_RULES: usize = 4096;
const MAX_NAMES: usize = 16_384;

/// What becomes of a system call: the kernel's own number for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Verdict(pub u32);

impl Verdict {
    pub const ALLOW: Verdict = Verdict(0x7fff_0000);

    /// Fails with this error number.
    pub const fn errno(errno: u16) -> Verdict {
        Verdict(0x0005_0000 | errno as u32)
    }
}

/// How an argument is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Operator {
    #[serde(rename = "SCMP_CMP_NE")]
    NotEqual,
    #[serde(rename = "SCMP_CMP_LT")]
    Less,
    #[serde(rename = "SCMP_CMP_LE")]
    LessOrEqual,
    #[serde(rename = "SCMP_CMP_EQ")]
    Equal,
    #[serde(rename = "SCMP_CMP_GE")]
    GreaterOrEqual,
    #[serde(rename = "SCMP_CMP_GT")]
    Greater,
    /// `argument & value == value_two`
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEqual,
}

/// One condition on an argument (the first has index 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    pub index: u32,
    #[serde(default)]
    pub value: u64,
    #[serde(default)]
    pub value_two: u64,
    pub op: Operator,
}

/// What becomes of some system calls where all conditions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub names: Vec<String>,
    pub verdict: Verdict,
    pub conditions: Vec<Condition>,
}

/// A whole profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// For what no rule is about.
    pub default: Verdict,
    /// `SCMP_ARCH_*`; the machine's own is always meant.
    pub architectures: Vec<String>,
    /// `SECCOMP_FILTER_FLAG_*` for the installation.
    pub flags: u32,
    pub rules: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    default_action: String,
    default_errno_ret: Option<u16>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    #[serde(default)]
    flags: Option<Vec<String>>,
    #[serde(default)]
    listener_path: String,
    #[serde(default)]
    syscalls: Option<Vec<FileRule>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FileRule {
    names: Vec<String>,
    action: String,
    errno_ret: Option<u16>,
    #[serde(default)]
    args: Option<Vec<Condition>>,
}

/// Reads a profile. Fields that the specification does not have are passed over, as upstream's runtimes do.
///
/// # Errors
/// What is wrong with it, for a person.
pub fn parse(bytes: &[u8]) -> Result<Profile, String> {
    let file: File = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if !file.listener_path.is_empty() {
        return Err("listenerPath: notifications are not supported".to_owned());
    }
    let mut flags = 0;
    for flag in file.flags.iter().flatten() {
        flags |= ALL_FLAGS
            .iter()
            .find(|(name, _)| name == flag)
            .map(|(_, bit)| bit)
            .ok_or_else(|| format!("flag {flag:?} is not supported"))?;
    }
    let rules = file.syscalls.unwrap_or_default();
    if rules.len() > MAX_RULES || rules.iter().map(|rule| rule.names.len()).sum::<usize>() > MAX_NAMES {
        return Err(format!("it has more than {MAX_RULES} rules or {MAX_NAMES} names"));
    }
    let mut all = Vec::new();
    for rule in rules {
        let conditions = rule.args.unwrap_or_default();
        if let Some(condition) = conditions.iter().find(|condition| condition.index > 5) {
            return Err(format!("a system call has no argument of index {}", condition.index));
        }
        let verdict = verdict(&rule.action, rule.errno_ret)?;
        let mut indices: Vec<u32> = conditions.iter().map(|condition| condition.index).collect();
        indices.sort_unstable();
        if indices.windows(2).any(|pair| matches!(pair, [a, b] if a == b)) {
            // Two conditions on one argument are alternatives, as runc reads them.
            all.extend(conditions.into_iter().map(|condition| Rule {
                names: rule.names.clone(),
                verdict,
                conditions: vec![condition],
            }));
        } else {
            all.push(Rule { names: rule.names, verdict, conditions });
        }
    }
    Ok(Profile {
        default: verdict(&file.default_action, file.default_errno_ret)?,
        architectures: file.architectures.unwrap_or_default(),
        flags,
        rules: all,
    })
}

fn verdict(action: &str, errno: Option<u16>) -> Result<Verdict, String> {
    Ok(match action {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Verdict(0),
        "SCMP_ACT_KILL_PROCESS" => Verdict(0x8000_0000),
        "SCMP_ACT_TRAP" => Verdict(0x0003_0000),
        "SCMP_ACT_ERRNO" => Verdict::errno(errno.unwrap_or(libc::EPERM as u16)),
        "SCMP_ACT_TRACE" => Verdict(0x7ff0_0000 | u32::from(errno.unwrap_or(libc::EPERM as u16))),
        "SCMP_ACT_ALLOW" => Verdict::ALLOW,
        "SCMP_ACT_LOG" => Verdict(0x7ffc_0000),
        "SCMP_ACT_NOTIFY" => return Err("action SCMP_ACT_NOTIFY: notifications are not supported".to_owned()),
        _ => return Err(format!("action {action:?} is not known")),
    })
}
