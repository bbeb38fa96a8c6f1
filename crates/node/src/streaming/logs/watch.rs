//! Waking when a folder's files change: inotify.

use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;

struct Fd(Inotify);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Watches one folder.
pub struct Watch(AsyncFd<Fd>);

impl Watch {
    /// Begins to watch; what changes from now on wakes.
    ///
    /// # Errors
    /// What the system says, `ENOSPC` for too many watches included.
    pub fn new(folder: &Path) -> io::Result<Watch> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        inotify.add_watch(folder, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_FROM | AddWatchFlags::IN_DELETE)?;
        Ok(Watch(AsyncFd::with_interest(Fd(inotify), tokio::io::Interest::READABLE)?))
    }

    /// Returns after something has changed since the last call. Cancel-safe.
    ///
    /// # Errors
    /// What the system says.
    pub async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut any = false;
            loop {
                match ready.try_io(|fd| Ok(fd.get_ref().0.read_events()?)) {
                    // Many changes are one: the reader reads to the end anyway.
                    Ok(Ok(_)) => any = true,
                    Ok(Err(error)) => return Err(error),
                    Err(_) => break,
                }
            }
            if any {
                return Ok(());
            }
        }
    }
}
