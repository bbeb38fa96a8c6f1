//! Messages between the main process and its supervisors: JSON, one per packet, with file descriptors beside it.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Largest message: an exec's arguments and environment must fit (the kernel's own limit for them is 128 KiB each).
const MAX_MESSAGE: usize = 1 << 20;
/// Descriptors beside one message: stdin, stdout, stderr.
const MAX_FDS: usize = 3;

/// What a container's supervisor says, in this order: `Created`, then after `Go` one of `Started` and `Failed`.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromShim {
    /// Everything is made and the container's process waits. The supervisor gives up if nobody says `Go`, so that a
    /// main process that died here finds no container it does not know of.
    Created {
        pid: i32,
    },
    Started {
        started_at_ms: i64,
    },
    Failed {
        why: String,
    },
}

/// What a supervisor is told.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToShim {
    Go,
}

/// What `__exec` is asked to run; its descriptors follow as stdin, stdout, stderr (none with a terminal).
#[derive(Debug, Serialize, Deserialize)]
pub struct ExecRequest {
    pub dir: std::path::PathBuf,
    pub container: String,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub tty: bool,
}

/// What `__exec` answers: `Started` (with the terminal's master beside it), then `Exited`; or `Failed`.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromExec {
    Started,
    Exited { code: i32 },
    Failed { why: String },
}

/// A pair of connected packet sockets.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    for fd in [&a, &b] {
        // A message must fit into the socket's buffer as a whole.
        let _ = nix::sys::socket::setsockopt(fd, nix::sys::socket::sockopt::SndBufForce, &(2 * MAX_MESSAGE));
    }
    Ok((a, b))
}

/// Sends one message.
pub fn send<T: Serialize>(socket: BorrowedFd<'_>, message: &T, fds: &[RawFd]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "arguments and environment are larger than 1 MiB"));
    }
    let rights = [ControlMessage::ScmRights(fds)];
    let control: &[ControlMessage] = if fds.is_empty() { &[] } else { &rights };
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(&bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives one message; None when the other side is gone.
pub fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut buffer = vec![0u8; MAX_MESSAGE];
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    let (length, fds) = {
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let message = loop {
            match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC) {
                Err(nix::errno::Errno::EINTR) => continue,
                result => break result?,
            }
        };
        let mut fds = Vec::new();
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(received) = part {
                // SAFETY: the kernel just gave these descriptors to this process; nobody else owns them.
                fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        (message.bytes, fds)
    };
    if length == 0 {
        return Ok(None);
    }
    let message = serde_json::from_slice(buffer.get(..length).unwrap_or_default())?;
    Ok(Some((message, fds)))
}
