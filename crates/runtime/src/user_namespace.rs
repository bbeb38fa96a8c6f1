//! User namespaces of pods (`hostUsers: false`): which host ids a pod has, and how its namespaces are made below one.
//!
//! A pod's ids 0 to 65,535 are a range of the host's that no other pod of this node has: 65,536 of them from a multiple
//! of 65,536 on. The first of them is kept in the sandbox's record, so it is given back when that goes, and found again
//! after a restart. Ranges that the host's own users have for theirs (`/etc/subuid`, `/etc/subgid`) are left out.
//!
//! The network, IPC and UTS namespaces of such a pod belong to its user namespace; mount and PID namespaces are made by
//! its supervisors as for every pod. A process enters the user namespace just before it executes the container's
//! program (`shim::mapped`). A thread cannot make a user namespace in a process with several, so `__namespaces` does.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, BufRead as _, BufReader};

use nix::sched::{CloneFlags, unshare};

use super::SandboxSpec;
use super::executable::Executable;
use super::shim::answers::{Instructed, answer};

/// How many ids a pod has.
pub const IDS: u32 = 1 << 16;
/// Ranges end below this: greater ids are negative numbers to some programs.
const END: u32 = 1 << 31;

/// The first id of a range that nobody has; None where there is none left. `used` are the first ids of other pods.
pub fn allocate(used: &BTreeSet<u32>, others: &[(u32, u32)]) -> Option<u32> {
    let is_taken =
        |first: u32| others.iter().any(|(start, count)| *start < first + IDS && first < start.saturating_add(*count));
    (IDS..END).step_by(IDS as usize).find(|first| !used.contains(first) && !is_taken(*first))
}

/// The ranges that the host's users have, as (first, count).
pub fn host_ranges() -> Vec<(u32, u32)> {
    let text = ["/etc/subuid", "/etc/subgid"].map(|path| fs::read_to_string(path).unwrap_or_default());
    text.iter().flat_map(|text| ranges(text)).collect()
}

/// Lines of `user:first:count`; what is none is passed over.
fn ranges(text: &str) -> impl Iterator<Item = (u32, u32)> {
    text.lines().filter_map(|line| {
        let mut words = line.trim().split(':').skip(1);
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    })
}

/// Whether this kernel makes user namespaces.
pub fn is_supported() -> bool {
    let most = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    most.trim().parse().is_ok_and(|most: u64| most > 0)
}

/// A process that has made a pod's namespaces, and holds them until it is dropped.
pub struct Holder(Instructed);

impl Holder {
    /// Makes the namespaces of a sandbox whose ids begin at `first`. Blocking.
    pub fn start(program: &Executable, spec: &SandboxSpec, first: u32) -> Result<Self, String> {
        const NAME: &str = "__namespaces";
        let mut holder = Instructed::start(NAME, program.command().arg(NAME))?;
        holder.expect_done()?;
        for map in ["uid_map", "gid_map"] {
            let path = format!("/proc/{}/{map}", holder.pid());
            fs::write(path, format!("0 {first} {IDS}\n"))
                .map_err(|error| format!("cannot write the {map} of a user namespace: {error}"))?;
        }
        holder.instruct(&serde_json::to_string(spec).map_err(|error| error.to_string())?)?;
        holder.expect_done()?;
        Ok(Self(holder))
    }

    pub fn pid(&self) -> u32 {
        self.0.pid()
    }
}

/// `__namespaces`: makes a user namespace, waits for its ids, makes the other namespaces that standard input asks for,
/// and holds them until that ends. The result is its exit code.
pub fn hold() -> i32 {
    let mut input = BufReader::new(io::stdin());
    let made = unshare(CloneFlags::CLONE_NEWUSER).map_err(|error| format!("cannot make a user namespace: {error}"));
    if !answer(&made) {
        return 1;
    }
    let mut line = String::new();
    let made = input.read_line(&mut line).map_err(|error| error.to_string()).and_then(|_| {
        let spec: SandboxSpec = serde_json::from_str(&line).map_err(|error| error.to_string())?;
        become_root()?;
        super::sandbox::make_namespaces(&spec).map(|_| ())
    });
    if !answer(&made) {
        return 1;
    }
    let _ = input.read_line(&mut String::new());
    0
}

/// Its root owns what it makes. There are no other threads.
fn become_root() -> Result<(), String> {
    use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    let done = setgroups(&[]).and_then(|()| setresgid(gid, gid, gid)).and_then(|()| setresuid(uid, uid, uid));
    done.map_err(|error| format!("cannot become root of a user namespace: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_of_one_pod_each_and_not_the_hosts_own_x6() {
        let used = |numbers: &[u32]| numbers.iter().map(|number| number * IDS).collect::<BTreeSet<u32>>();
        assert_eq!(allocate(&used(&[]), &[]), Some(IDS));
        assert_eq!(allocate(&used(&[1, 2, 4]), &[]), Some(3 * IDS));
        // Debian's first user has 100000 to 165535: a part of the first range and a part of the second.
        assert_eq!(allocate(&used(&[3]), &[(100_000, 65_536)]), Some(4 * IDS));
        assert_eq!(allocate(&used(&[]), &[(IDS, IDS)]), Some(2 * IDS), "it ends where the next begins");
        assert_eq!(allocate(&used(&[]), &[(0, u32::MAX)]), None);
    }

    #[test]
    fn lines_that_are_no_ranges_are_passed_over() {
        let text = "# a comment\nanna:100000:65536\nbroken:x:1\n\n1000:231072:65536\n";
        assert_eq!(ranges(text).collect::<Vec<_>>(), [(100_000, 65_536), (231_072, 65_536)]);
    }
}
