//! Programs are run here by an interpreter of their few instructions, and once by the kernel.

use std::collections::BTreeSet;

use super::filter::{Instruction, compile as compile_for};
use super::profile::{Verdict, parse};
use super::table::{Architecture, find};
use super::{Program, SeccompProfile, compile, default};

const EPERM: Verdict = Verdict::errno(libc::EPERM as u16);
const ENOSYS: Verdict = Verdict::errno(libc::ENOSYS as u16);

/// What the kernel's BPF machine would return.
fn run(program: &Program, architecture: u32, number: u32, arguments: [u64; 6]) -> Verdict {
    let mut data = [number, architecture, 0, 0].to_vec();
    for argument in arguments {
        data.extend([argument as u32, (argument >> 32) as u32]);
    }
    let (mut at, mut word) = (0, 0);
    loop {
        let Instruction { code, jump_true, jump_false, value } = program.instructions[at];
        at += 1;
        let mut jump = |taken: bool| at += usize::from(if taken { jump_true } else { jump_false });
        match code {
            0x20 => word = data[value as usize / 4],
            0x54 => word &= value,
            0x05 => at += value as usize,
            0x15 => jump(word == value),
            0x25 => jump(word > value),
            0x35 => jump(word >= value),
            0x06 => return Verdict(value),
            _ => panic!("{code:#x}"),
        }
    }
}

fn ask(program: &Program, name: &str, arguments: [u64; 6]) -> Verdict {
    let number = find(name).unwrap().number(Architecture::X86_64).unwrap();
    run(program, Architecture::X86_64.audit(), number, arguments)
}

fn default_for(capabilities: &[&str]) -> Program {
    let capabilities = capabilities.iter().map(|name| (*name).to_owned()).collect();
    compile_for(&default::profile(&capabilities), Architecture::X86_64).unwrap()
}

#[test]
fn x6_the_default_refuses_what_containerd_refuses_and_capabilities_open_what_is_theirs() {
    let plain = default_for(&["CHOWN", "SYS_CHROOT"]);
    let none = [0; 6];
    for name in [
        "mount",
        "umount2",
        "unshare",
        "setns",
        "pivot_root",
        "bpf",
        "perf_event_open",
        "add_key",
        "keyctl",
        "request_key",
        "kexec_load",
        "init_module",
        "finit_module",
        "delete_module",
        "swapon",
        "swapoff",
        "reboot",
        "settimeofday",
        "clock_settime",
        "iopl",
        "ioperm",
        "quotactl",
        "acct",
        "userfaultfd",
        "io_uring_setup",
        "open_by_handle_at",
        "move_pages",
        "mbind",
        "set_mempolicy",
        "kcmp",
        "fsopen",
        "fsmount",
        "move_mount",
        "open_tree",
        "mount_setattr",
        "sethostname",
        "setdomainname",
        "syslog",
        "vhangup",
        "nfsservctl",
        "uselib",
        "ustat",
        "sysfs",
        "_sysctl",
        "lookup_dcookie",
        "fanotify_init",
    ] {
        assert_eq!(ask(&plain, name, none), EPERM, "{name}");
    }
    for name in ["read", "openat", "execve", "chroot", "futex", "ptrace", "seccomp", "mseal", "fchmodat2", "rseq"] {
        assert_eq!(ask(&plain, name, none), Verdict::ALLOW, "{name}");
    }
    assert_eq!(ask(&default_for(&[]), "chroot", none), EPERM);
    for (capability, name) in [
        ("SYS_ADMIN", "mount"),
        ("SYS_ADMIN", "bpf"),
        ("BPF", "bpf"),
        ("PERFMON", "perf_event_open"),
        ("SYS_MODULE", "init_module"),
        ("SYS_TIME", "clock_settime"),
        ("SYS_NICE", "mbind"),
        ("SYS_BOOT", "reboot"),
        ("SYSLOG", "syslog"),
        ("DAC_READ_SEARCH", "open_by_handle_at"),
        ("SYS_PTRACE", "kcmp"),
        ("SYS_ADMIN", "clone3"),
    ] {
        assert_eq!(ask(&default_for(&[capability]), name, none), Verdict::ALLOW, "{capability} {name}");
    }
}

#[test]
fn arguments_and_numbers_of_others_are_looked_at() {
    let plain = default_for(&[]);
    let first = |value| [value, 0, 0, 0, 0, 0];
    assert_eq!(ask(&plain, "clone", first(0x11)), Verdict::ALLOW);
    assert_eq!(ask(&plain, "clone", first(libc::CLONE_NEWUSER as u64 | 0x11)), EPERM);
    assert_eq!(ask(&default_for(&["SYS_ADMIN"]), "clone", first(libc::CLONE_NEWUSER as u64)), Verdict::ALLOW);
    assert_eq!(ask(&plain, "clone3", first(0)), ENOSYS);
    assert_eq!(ask(&plain, "personality", first(8)), Verdict::ALLOW);
    assert_eq!(ask(&plain, "personality", first(0x4_0000)), EPERM);
    assert_eq!(ask(&plain, "personality", first(0x1_0000_0008)), EPERM, "the upper half counts");
    assert_eq!(ask(&plain, "socket", first(libc::AF_VSOCK as u64)), EPERM);
    assert_eq!(ask(&plain, "socket", first(libc::AF_INET as u64)), Verdict::ALLOW);
    let number = |architecture, number| run(&plain, architecture, number, [0; 6]);
    let native = Architecture::X86_64.audit();
    assert_eq!(number(native, 100_000), ENOSYS);
    assert_eq!(number(native, 0x4000_0000), ENOSYS, "x32");
    assert_eq!(number(native, u32::MAX), ENOSYS);
    assert_eq!(number(Architecture::I386.audit(), 3), Verdict::ALLOW, "read on i386");
    assert_eq!(number(Architecture::I386.audit(), 21), EPERM, "mount on i386");
    assert_eq!(number(Architecture::Aarch64.audit(), 63), ENOSYS);
}

#[test]
fn every_comparison_is_that_of_64_bit_numbers() {
    let big = 0x2_0000_0005u64;
    let values = [0, 4, 5, 6, big - 1, big, big + 1, 0x1_ffff_ffff, u64::MAX];
    type Holds = fn(u64, u64) -> bool;
    let table: [(&str, Holds); 6] = [
        ("SCMP_CMP_NE", |a, b| a != b),
        ("SCMP_CMP_LT", |a, b| a < b),
        ("SCMP_CMP_LE", |a, b| a <= b),
        ("SCMP_CMP_EQ", |a, b| a == b),
        ("SCMP_CMP_GE", |a, b| a >= b),
        ("SCMP_CMP_GT", |a, b| a > b),
    ];
    for (op, holds) in table {
        for value in [5, big] {
            // The second condition shows that a jump out of the first passes over all of the rule.
            let text = serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["read"],
                "action": "SCMP_ACT_ERRNO", "errnoRet": 7, "args": [
                    { "index": 5, "op": op, "value": value }, { "index": 0, "op": "SCMP_CMP_EQ", "value": 1 }] }] });
            let program = compile_for(&parse(text.to_string().as_bytes()).unwrap(), Architecture::X86_64).unwrap();
            for argument in values {
                for second in [0, 1] {
                    let expected = holds(argument, value) && second == 1;
                    let verdict = ask(&program, "read", [second, 0, 0, 0, 0, argument]);
                    assert_eq!(verdict == Verdict::errno(7), expected, "{argument} {op} {value}, {second}");
                }
            }
        }
    }
}

#[test]
fn profiles_are_read_as_runc_reads_them_and_refused_in_words() {
    let parsed = |value: serde_json::Value| parse(value.to_string().as_bytes());
    let two = parsed(serde_json::json!({ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "comment": "x",
        "syscalls": [{ "names": ["read", "nonsense"], "action": "SCMP_ACT_ALLOW", "args": [
            { "index": 1, "value": 3, "op": "SCMP_CMP_EQ" }, { "index": 1, "value": 4, "op": "SCMP_CMP_EQ" }] }] }));
    let program = compile_for(&two.unwrap(), Architecture::X86_64).unwrap();
    let second = |value| ask(&program, "read", [0, value, 0, 0, 0, 0]);
    assert_eq!((second(3), second(4), second(5)), (Verdict::ALLOW, Verdict::ALLOW, ENOSYS));
    assert_eq!(Program::from_bytes(&program.to_bytes()), Some(program));
    for (value, expected) in [
        (serde_json::json!({}), "missing field `defaultAction`"),
        (serde_json::json!({ "defaultAction": "SCMP_ACT_NOTIFY" }), "notifications are not supported"),
        (serde_json::json!({ "defaultAction": "allow" }), "action \"allow\" is not known"),
        (serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW", "flags": ["X"] }), "flag \"X\" is not supported"),
        (
            serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": ["read"],
                "action": "SCMP_ACT_ALLOW", "args": [{ "index": 6, "op": "SCMP_CMP_EQ" }] }] }),
            "no argument of index 6",
        ),
    ] {
        let why = parsed(value).unwrap_err();
        assert!(why.contains(expected), "{why}");
    }
    let names = |count: usize| vec!["read"; count];
    let bomb = serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{ "names": names(20_000),
        "action": "SCMP_ACT_ALLOW" }] });
    assert!(parsed(bomb).unwrap_err().contains("more than"));
    let long: Vec<_> = (0..2000)
        .map(|value| {
            serde_json::json!({ "names": ["read"], "action": "SCMP_ACT_LOG",
            "args": [{ "index": 0, "value": value, "op": "SCMP_CMP_EQ" }] })
        })
        .collect();
    let long = parsed(serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": long })).unwrap();
    assert!(compile_for(&long, Architecture::X86_64).unwrap_err().contains("the kernel takes 4096"));
}

/// X3: a profile's path does not lead out of the node's folder.
/// X6: what a list denies is denied by its other numbers as well.
#[test]
fn x6_a_profile_that_denies_by_name_is_not_bypassed_by_x32() {
    let text = serde_json::json!({ "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mount"], "action": "SCMP_ACT_ERRNO" }] });
    let program = compile_for(&parse(text.to_string().as_bytes()).unwrap(), Architecture::X86_64).unwrap();
    let number = |number| run(&program, Architecture::X86_64.audit(), number, [0; 6]);
    let mount = find("mount").unwrap().number(Architecture::X86_64).unwrap();
    assert_eq!((number(mount), number(0x3fff_ffff)), (EPERM, Verdict::ALLOW));
    assert_eq!((number(0x4000_0000 | mount), number(u32::MAX)), (ENOSYS, ENOSYS));
}

#[test]
fn x3_a_localhost_profile_is_below_the_nodes_folder() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("seccomp");
    std::fs::create_dir_all(root.join("profiles")).unwrap();
    std::fs::write(dir.path().join("outside.json"), r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#).unwrap();
    std::fs::write(root.join("profiles/fine.json"), r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#).unwrap();
    std::os::unix::fs::symlink("../outside.json", root.join("link.json")).unwrap();
    let load = |path: &str| {
        compile(&SeccompProfile::Localhost { root: root.clone(), path: path.to_owned() }, &BTreeSet::new())
    };
    assert!(load("profiles/fine.json").unwrap().is_some());
    for path in ["link.json", "../outside.json", "/etc/passwd", "missing.json", "profiles", ""] {
        let why = load(path).unwrap_err().to_string();
        assert!(why.starts_with(&format!("cannot load seccomp profile {path:?}: ")), "{why}");
    }
    assert!(compile(&SeccompProfile::Unconfined, &BTreeSet::new()).unwrap().is_none());
}

/// The kernel takes the default profile and does what the interpreter above does.
#[test]
fn x6_the_kernel_takes_the_program() {
    let program = compile(&SeccompProfile::RuntimeDefault, &BTreeSet::new()).unwrap().unwrap();
    let thread = std::thread::spawn(move || {
        // SAFETY: prctl and the calls below get no pointers; only this thread is filtered.
        unsafe {
            assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
            program.install().unwrap();
            let errno = |number| {
                let result = libc::syscall(number, 0, 0, 0, 0, 0, 0);
                (result == -1).then(|| std::io::Error::last_os_error().raw_os_error().unwrap())
            };
            assert_eq!(errno(libc::SYS_mount), Some(libc::EPERM));
            assert_eq!(errno(libc::SYS_unshare), Some(libc::EPERM), "with no flags it would succeed");
            assert_eq!(errno(libc::SYS_clone3), Some(libc::ENOSYS));
            assert_eq!(errno(libc::SYS_keyctl), Some(libc::EPERM));
            assert_eq!(errno(100_000), Some(libc::ENOSYS));
            assert_eq!(errno(libc::SYS_getppid), None);
        }
    });
    thread.join().unwrap();
}
