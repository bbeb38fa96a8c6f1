//! What a cluster's processes use, as /proc has it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// Memory in KiB: resident, and with shared pages divided among those who share them.
#[derive(Clone, Copy, Default)]
pub struct Memory {
    pub rss: u64,
    pub pss: u64,
}

/// All processes that run this program (by file, not by name), but this one.
pub fn of_binary(binary: &Path) -> Result<Vec<u32>> {
    let program = fs::metadata(binary)?;
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if fs::metadata(entry.path().join("exe"))
            .is_ok_and(|exe| (exe.dev(), exe.ino()) == (program.dev(), program.ino()))
        {
            pids.push(pid);
        }
    }
    Ok(pids)
}

/// A process's memory, from smaps_rollup.
pub fn memory(pid: u32) -> Result<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let field = |name: &str| -> Result<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| name.to_owned())?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    };
    Ok(Memory { rss: field("Rss:")?, pss: field("Pss:")? })
}

/// The time that a process was on a processor, all threads together; zero for one that is gone. The scheduler's own
/// account in nanoseconds: the ticks of /proc/PID/stat miss what is shorter than a tick.
pub fn cpu(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of_task = |task: fs::DirEntry| -> Option<u64> {
        fs::read_to_string(task.path().join("schedstat")).ok()?.split_whitespace().next()?.parse().ok()
    };
    Duration::from_nanos(tasks.filter_map(of_task).sum())
}

/// Wake-ups of a process: voluntary switches of all its threads.
pub fn switches(pid: u32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of_task = |task: fs::DirEntry| -> Option<u64> {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse().ok()
    };
    tasks.filter_map(of_task).sum()
}
