//! Waking when a folder's files change: inotify.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use mainstay_runtime::layout;

/// Watches one folder.
pub struct Watch {
    inotify: Inotify,
    /// The same, for waiting.
    ready: AsyncFd<OwnedFd>,
}

impl Watch {
    /// Begins to watch; what changes from now on wakes.
    ///
    /// # Errors
    /// What the system says, `ENOSPC` for too many watches included.
    pub fn new(folder: &Path) -> io::Result<Watch> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let changes = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_DELETE;
        inotify.add_watch(folder, changes)?;
        let ready = layout::watched(inotify.as_fd().try_clone_to_owned()?, Interest::READABLE)?;
        Ok(Watch { inotify, ready })
    }

    /// Returns after something has changed since the last call. Cancel-safe.
    ///
    /// # Errors
    /// What the system says.
    pub async fn changed(&self) -> io::Result<()> {
        loop {
            let mut ready = self.ready.readable().await?;
            let mut any = false;
            // Many changes are one: the reader reads to the end anyway.
            while let Ok(read) = ready.try_io(|_| Ok(self.inotify.read_events()?)) {
                read?;
                any = true;
            }
            if any {
                return Ok(());
            }
        }
    }
}
