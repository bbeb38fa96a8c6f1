//! Threads for work on volumes, apart for each kind, so that what hangs holds up nothing else (V11).

use std::sync::LazyLock;
use std::time::Duration;

use mainstay_tasks::{Pool, Shares};

use super::VolumeError;

/// Short work on this machine's own disks: tokens, ConfigMaps, notes, measures. Nothing that is long, or that may hang,
/// enters here: pods without any other volume, and the Node's status, wait for this (X7).
static LOCAL: LazyLock<Pool> = LazyLock::new(|| Pool::patient("work on local volumes", 16, 16));
/// Making, mounting, growing and checking the volumes of this node.
static OWN: LazyLock<Pool> = LazyLock::new(|| Pool::patient("work on volumes", 16, 2));
/// Copying and removing them.
static LONG: LazyLock<Pool> = LazyLock::new(|| Pool::patient("copying and removing volumes", 8, 2));
/// Giving what is in them to a pod's group.
static OWNERS: LazyLock<Pool> = LazyLock::new(|| Pool::patient("applying fsGroup", 8, 1));
/// Paths of the machine, which may be mounts of a server that is dead.
static HOST: LazyLock<Pool> = LazyLock::new(|| Pool::new("work on paths of the machine", 64, 2));
/// Calls to file servers, of which a dead one gets few.
static SERVERS: LazyLock<Pool> = LazyLock::new(|| Pool::new("calls to file servers", 64, 4));
/// Mounts of one pod that may wait for a file server at one time: one that names many dead ones waits by itself.
static MOUNTS: LazyLock<Shares> = LazyLock::new(|| Shares::new(64, 8));
/// How long a pod's mount waits for the pod's others.
const WAIT: Duration = Duration::from_secs(15);
/// Work below a pod's mounted volumes, some of which may not answer.
static PODS: LazyLock<Pool> = LazyLock::new(|| Pool::new("work on pods' mounts", 64, 2));

async fn run<T: Send + 'static>(
    pool: &Pool,
    target: &str,
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    pool.run(target, work).await.unwrap_or_else(|error| Err(VolumeError::Refused(error.to_string())))
}

/// Short work on this machine's own disks.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    run(&LOCAL, "this machine", work).await
}

/// Work on a volume of this node, by its name.
pub(super) async fn blocking_on<T: Send + 'static>(
    volume: &str,
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    run(&OWN, volume, work).await
}

/// The same, where all of its content may have to be copied or removed.
pub(super) async fn blocking_long<T: Send + 'static>(
    volume: &str,
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    run(&LONG, volume, work).await
}

/// The same, where all of its content may have to be given to a group.
pub(super) async fn blocking_owner<T: Send + 'static>(
    volume: &str,
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    run(&OWNERS, volume, work).await
}

/// Work on paths of this machine that a pod (by uid) names, whatever they are.
pub(super) async fn blocking_host<T: Send + 'static>(
    pod: &str,
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    run(&HOST, pod, work).await
}

/// A pod's (by uid) mount of what a file server has.
pub(super) async fn blocking_mount<T: Send + 'static>(
    pod: &str,
    server: &str,
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    let share = tokio::time::timeout(WAIT, MOUNTS.take(pod, 1)).await;
    let share = share.map_err(|_| "other volumes of this pod wait for their file servers".to_owned())?;
    blocking_at(server, move || {
        let _share = share;
        work()
    })
    .await
}

/// Calls to a file server.
pub(super) async fn blocking_at<T: Send + 'static>(
    server: &str,
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    run(&SERVERS, server, work).await
}

/// Work on what a pod (by uid) has mounted, whatever that is.
pub(crate) async fn blocking_for<T: Send + 'static>(
    pod: &str,
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    run(&PODS, pod, work).await
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    /// Work that hangs until the sender is dropped.
    type Hang = std::sync::Arc<std::sync::Mutex<std::sync::mpsc::Receiver<()>>>;

    fn hang(hang: &Hang) -> impl FnOnce() -> Result<(), VolumeError> + Send + use<> {
        let hang = hang.clone();
        move || {
            let _ = hang.lock().map(|hang| hang.recv());
            Ok(())
        }
    }

    #[tokio::test]
    async fn v11_x7_what_hangs_on_paths_of_the_machine_and_volumes_keeps_no_other_pod_from_its_token() {
        let (release, hung) = channel::<()>();
        let hung: Hang = std::sync::Arc::new(std::sync::Mutex::new(hung));
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..40 {
            let (host, long, own) = (hang(&hung), hang(&hung), hang(&hung));
            tasks.spawn(async move { blocking_host(&format!("pod-{number}"), host).await });
            tasks.spawn(async move { blocking_long(&format!("pvc-{number}"), long).await });
            tasks.spawn(async move { blocking_on(&format!("pvc-{number}"), own).await });
        }
        tokio::task::yield_now().await;
        blocking(|| Ok(())).await.expect("a token's thread");
        blocking_owner("pvc-new", || Ok(())).await.expect("a thread for an owner");
        blocking_for("another", || Ok(())).await.expect("a thread for another pod's end");
        drop(release);
        while tasks.join_next().await.is_some() {}
    }

    #[tokio::test]
    async fn v11_x7_a_pod_with_many_dead_servers_waits_by_itself() {
        let (release, hung) = channel::<()>();
        let hung: Hang = std::sync::Arc::new(std::sync::Mutex::new(hung));
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..120 {
            let work = hang(&hung);
            tasks.spawn(async move { blocking_mount("hostile", &format!("192.0.2.{}", number % 30), work).await });
        }
        while MOUNTS.try_take("hostile", 1).is_some() {
            tokio::task::yield_now().await;
        }
        let honest = tokio::time::timeout(WAIT / 3, blocking_mount("honest", "192.0.2.200", || Ok(7)));
        assert_eq!(honest.await.expect("a thread").expect("done"), 7);
        tasks.abort_all();
        drop(release);
        while tasks.join_next().await.is_some() {}
    }
}
