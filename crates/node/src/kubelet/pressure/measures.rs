//! How much this machine has left, read from the kernel.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use mainstay_logic::kubelet::pressure::{Measure, Signal};

/// All signals that can be measured, of the file system of the node's data and, where it is another one, of that of its
/// images. Blocking.
pub fn read(data_dir: &Path, images: &Path) -> BTreeMap<Signal, Measure> {
    let mut measures = BTreeMap::new();
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    file_system(&mut measures, data_dir, [Signal::NodefsAvailable, Signal::NodefsInodesFree]);
    if device(data_dir) != device(images) {
        file_system(&mut measures, images, [Signal::ImagefsAvailable, Signal::ImagefsInodesFree]);
    }
    measures.extend(memory().map(|memory| (Signal::MemoryAvailable, memory)));
    measures.extend(process_ids().map(|ids| (Signal::PidAvailable, ids)));
    measures
}

/// A file system without a bound on its files says that it has none, and is not short of them.
fn file_system(measures: &mut BTreeMap<Signal, Measure>, path: &Path, [room, inodes]: [Signal; 2]) {
    let Ok(system) = nix::sys::statvfs::statvfs(path) else { return };
    let bytes = |blocks: u64| blocks.saturating_mul(system.fragment_size());
    if system.blocks() > 0 {
        let (available, capacity) = (bytes(system.blocks_available()), bytes(system.blocks()));
        measures.insert(room, Measure { available, capacity });
    }
    if system.files() > 0 {
        measures.insert(inodes, Measure { available: system.files_available(), capacity: system.files() });
    }
}

fn memory() -> Option<Measure> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let bytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    Some(Measure { available: bytes("MemAvailable")?, capacity: bytes("MemTotal")? })
}

fn process_ids() -> Option<Measure> {
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let most = number("/proc/sys/kernel/pid_max")?.min(number("/proc/sys/kernel/threads-max")?);
    // `0.20 0.18 0.12 1/80 11206`: of 80 threads one runs.
    let load = fs::read_to_string("/proc/loadavg").ok()?;
    let threads = load.split_whitespace().nth(3)?.split_once('/')?.1.parse::<u64>().ok()?;
    Some(Measure { available: most.saturating_sub(threads), capacity: most })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let measures = read(folder.path(), folder.path());
        for signal in [Signal::MemoryAvailable, Signal::NodefsAvailable, Signal::PidAvailable] {
            let measure = measures[&signal];
            assert!(measure.available > 0 && measure.available <= measure.capacity, "{signal:?} {measure:?}");
        }
        assert!(!measures.contains_key(&Signal::ImagefsAvailable), "images share the node's file system");
        let apart = read(folder.path(), Path::new("/proc"));
        assert!(!apart.contains_key(&Signal::ImagefsAvailable), "a file system that has no room is not short of it");
    }
}
