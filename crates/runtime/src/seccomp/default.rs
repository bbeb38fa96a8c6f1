//! The runtime's own profile: `syscalls.txt`, and what depends on arguments.

use std::collections::BTreeSet;

use super::profile::{Condition, Operator, Profile, Rule, Verdict};
use super::table::{self, Access};

/// `clone` flags that make namespaces.
const NEW_NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP) as u64;

/// Linux, 32-bit Linux, both with the old uname, and the question which it is.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x20000, 0x20008, 0xffff_ffff];

/// The profile for a container with these capabilities (names without `CAP_`).
pub fn profile(capabilities: &BTreeSet<String>) -> Profile {
    let may = |access: &Access| match access {
        Access::All => true,
        Access::Nobody | Access::ByArguments => false,
        Access::Capabilities(names) => names.iter().any(|name| capabilities.contains(*name)),
    };
    let allowed = table::all().iter().filter(|call| may(&call.access)).map(|call| call.name.to_owned()).collect();
    let rule = |name: &str, verdict, conditions| Rule { names: vec![name.to_owned()], verdict, conditions };
    let condition = |op, value| vec![Condition { index: 0, value, value_two: 0, op }];
    let mut rules = vec![Rule { names: allowed, verdict: Verdict::ALLOW, conditions: Vec::new() }];
    for personality in PERSONALITIES {
        rules.push(rule("personality", Verdict::ALLOW, condition(Operator::Equal, personality)));
    }
    // Sockets of virtual machines' hosts have no namespace.
    rules.push(rule("socket", Verdict::ALLOW, condition(Operator::NotEqual, libc::AF_VSOCK as u64)));
    if capabilities.contains("SYS_ADMIN") {
        rules.push(rule("clone", Verdict::ALLOW, Vec::new()));
        rules.push(rule("clone3", Verdict::ALLOW, Vec::new()));
    } else {
        rules.push(rule("clone", Verdict::ALLOW, condition(Operator::MaskedEqual, NEW_NAMESPACES)));
        // Its flags are behind a pointer, where no filter can see them: C libraries fall back to clone.
        rules.push(rule("clone3", Verdict::errno(libc::ENOSYS as u16), Vec::new()));
    }
    Profile {
        default: Verdict::errno(libc::EPERM as u16),
        architectures: vec!["SCMP_ARCH_X86".to_owned()],
        flags: 0,
        rules,
    }
}
