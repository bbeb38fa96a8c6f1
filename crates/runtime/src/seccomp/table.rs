//! The numbers of system calls, by architecture.

use std::sync::LazyLock;

/// An architecture, by its column in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    X86_64,
    I386,
    Aarch64,
}

impl Architecture {
    /// What `seccomp_data.arch` says (`AUDIT_ARCH_*`).
    pub fn audit(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::I386 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
        }
    }

    /// The one that this architecture's kernel runs too, as profiles name it.
    pub fn companion(self) -> Option<(&'static str, Architecture)> {
        (self == Self::X86_64).then_some(("SCMP_ARCH_X86", Self::I386))
    }
}

/// This program's; None where the table has no column for it.
pub fn native() -> Option<Architecture> {
    match std::env::consts::ARCH {
        "x86_64" => Some(Architecture::X86_64),
        "aarch64" => Some(Architecture::Aarch64),
        _ => None,
    }
}

/// Who may use a system call under the default profile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    All,
    Nobody,
    /// Whoever has one of these capabilities, named without `CAP_`.
    Capabilities(Vec<&'static str>),
    ByArguments,
}

/// One line of the table.
pub struct SystemCall {
    pub name: &'static str,
    numbers: [Option<u32>; 3],
    pub access: Access,
}

impl SystemCall {
    /// Its number, where the architecture has it.
    pub fn number(&self, architecture: Architecture) -> Option<u32> {
        let [x86_64, i386, aarch64] = self.numbers;
        match architecture {
            Architecture::X86_64 => x86_64,
            Architecture::I386 => i386,
            Architecture::Aarch64 => aarch64,
        }
    }
}

/// All that are known, sorted by name.
pub fn all() -> &'static [SystemCall] {
    static TABLE: LazyLock<Vec<SystemCall>> =
        LazyLock::new(|| include_str!("syscalls.txt").lines().filter_map(line).collect());
    &TABLE
}

fn line(text: &'static str) -> Option<SystemCall> {
    let mut words = text.split(' ').filter(|_| !text.starts_with('#'));
    let name = words.next()?;
    let mut number = || words.next().map(|word| word.parse().ok());
    let numbers = [number()?, number()?, number()?];
    let access = match words.next()? {
        "all" => Access::All,
        "none" => Access::Nobody,
        "by-arguments" => Access::ByArguments,
        names => Access::Capabilities(names.split(',').collect()),
    };
    Some(SystemCall { name, numbers, access })
}

/// One by its name.
pub fn find(name: &str) -> Option<&'static SystemCall> {
    let all = all();
    all.binary_search_by(|call| call.name.cmp(name)).ok().and_then(|index| all.get(index))
}

/// The largest number in use: what is above was given out later.
pub fn last(architecture: Architecture) -> u32 {
    all().iter().filter_map(|call| call.number(architecture)).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_whole_and_agrees_with_this_machine() {
        assert!(all().is_sorted_by(|a, b| a.name < b.name));
        assert_eq!(all().len(), include_str!("syscalls.txt").lines().filter(|line| !line.starts_with('#')).count());
        for (name, number) in [
            ("read", libc::SYS_read),
            ("clone", libc::SYS_clone),
            ("clone3", libc::SYS_clone3),
            ("mount", libc::SYS_mount),
            ("openat2", libc::SYS_openat2),
            ("io_uring_setup", libc::SYS_io_uring_setup),
        ] {
            assert_eq!(find(name).and_then(|call| call.number(native()?)).map(i64::from), Some(number), "{name}");
        }
    }
}
