//! How much room is left in the volumes that pods claim. A dead file server holds up its own volume's figures alone:
//! they are left out, and it takes one thread until it answers (V11).

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::Duration;

use mainstay_tasks::Pool;

use crate::volumes::block;

/// Threads that look, of which one mount takes one.
static LOOKING: LazyLock<Pool> = LazyLock::new(|| Pool::new("looking at volumes", 32, 1));
/// How long whoever asks waits for all of them.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a file system has, in bytes and inodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub capacity: u64,
    /// What is left for who is not root.
    pub available: u64,
    pub used: u64,
    pub inodes: u64,
    pub inodes_free: u64,
    /// It has no file system that is known here: only the capacity is.
    pub is_block: bool,
}

impl Room {
    /// Of the file system that a path is on; `None` where it cannot be read. Blocking, for ever where a server is dead.
    pub fn of(path: &Path) -> Option<Room> {
        let system = nix::sys::statvfs::statvfs(path).ok()?;
        let bytes = |blocks: u64| blocks.saturating_mul(system.fragment_size());
        Some(Room {
            capacity: bytes(system.blocks()),
            available: bytes(system.blocks_available()),
            used: bytes(system.blocks().saturating_sub(system.blocks_free())),
            inodes: system.files(),
            inodes_free: system.files_free(),
            is_block: false,
        })
    }

    /// Of a volume of mode Block, by what is behind it. Blocking.
    fn of_block(source: &Path) -> Option<Room> {
        let capacity = block::size(source)?;
        Some(Room { capacity, available: 0, used: 0, inodes: 0, inodes_free: 0, is_block: true })
    }
}

/// A claim that a pod has mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimed {
    pub namespace: String,
    pub claim: String,
    pub pod_uid: String,
    /// Of the pod's volume.
    pub name: String,
    pub path: PathBuf,
    /// The path is what is behind a volume of mode Block.
    pub is_block: bool,
}

/// What is left in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRoom {
    pub namespace: String,
    pub claim: String,
    pub pod_uid: String,
    pub name: String,
    pub room: Room,
}

/// Looks into all of them at once; what does not answer within 2 s is left out.
pub async fn look(claims: Vec<Claimed>) -> Vec<VolumeRoom> {
    look_with(claims, PATIENCE, Room::of).await
}

async fn look_with(claims: Vec<Claimed>, patience: Duration, of: fn(&Path) -> Option<Room>) -> Vec<VolumeRoom> {
    let until = tokio::time::Instant::now() + patience;
    let looks = claims.into_iter().map(|claimed| async move {
        let Claimed { namespace, claim, pod_uid, name, path, is_block } = claimed;
        let of = if is_block { Room::of_block } else { of };
        let target = path.to_string_lossy().into_owned();
        let looked = tokio::time::timeout_at(until, LOOKING.run(&target, move || of(&path))).await;
        let room = looked.ok()?.ok()??;
        Some(VolumeRoom { namespace, claim, pod_uid, name, room })
    });
    futures_util::future::join_all(looks).await.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claimed(claim: &str, path: &Path) -> Claimed {
        let [namespace, pod_uid, name] = ["ns", "u", "data"].map(str::to_owned);
        Claimed { namespace, claim: claim.to_owned(), pod_uid, name, path: path.to_owned(), is_block: false }
    }

    #[tokio::test]
    async fn v11_x7_a_volume_that_does_not_answer_is_left_out_and_takes_one_thread() {
        fn room(path: &Path) -> Option<Room> {
            if path.ends_with("dead") {
                std::thread::sleep(Duration::from_secs(3));
            }
            Room::of(Path::new("/"))
        }
        let folder = tempfile::tempdir().unwrap();
        let claims = || vec![claimed("a", folder.path()), claimed("b", &folder.path().join("dead"))];
        for _ in 0..40 {
            let told = look_with(claims(), Duration::from_millis(20), room).await;
            assert!(told.iter().all(|one| one.claim == "a"), "{told:?}");
        }
        // However often it was asked about, there are threads for others.
        let told = look_with(vec![claimed("a", folder.path())], Duration::from_secs(20), room).await;
        assert_eq!(told.len(), 1);
        assert!(told[0].room.capacity > 0 && told[0].room.used <= told[0].room.capacity);
    }
}
