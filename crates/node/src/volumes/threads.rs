//! Threads for work on volumes, apart for each kind, so that what hangs holds up nothing else (V11).

use std::sync::LazyLock;

use mainstay_tasks::Pool;

use super::VolumeError;

/// Work on this machine's own disks.
static LOCAL: LazyLock<Pool> = LazyLock::new(|| Pool::patient("work on local volumes", 16, 16));
/// Calls to file servers, of which a dead one gets few.
static SERVERS: LazyLock<Pool> = LazyLock::new(|| Pool::new("calls to file servers", 64, 4));
/// Work below a pod's mounted volumes, some of which may not answer.
static PODS: LazyLock<Pool> = LazyLock::new(|| Pool::new("work on pods' mounts", 64, 2));

async fn run<T: Send + 'static>(
    pool: &Pool,
    target: &str,
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    pool.run(target, work).await.unwrap_or_else(|error| Err(VolumeError::Refused(error.to_string())))
}

/// Work on this machine's own disks.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    run(&LOCAL, "this machine", work).await
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
