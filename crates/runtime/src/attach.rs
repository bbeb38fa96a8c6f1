//! Attaching to a running container: packets to and from its supervisor, as streams.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, Interest, ReadBuf};
use tokio::sync::{mpsc, oneshot};

use super::{AttachHandle, Inner, InputStream, OutputStream, RuntimeError, TerminalSize, layout};
use crate::shim::process;
use crate::shim::relay::{MAX_PACKET, packet};

/// Bytes on their way to a slow reader, per stream.
const BUFFERED: usize = 64 * 1024;
/// Terminal sizes that wait to be set: only the last one matters.
const RESIZES_QUEUED: usize = 8;

type Socket = Arc<AsyncFd<OwnedFd>>;

impl Inner {
    pub fn attach(self: &Arc<Self>, id: &str) -> Result<AttachHandle, RuntimeError> {
        let entry = self.entry(id)?;
        if !entry.is_running() {
            return Err(RuntimeError::NotRunning(id.to_owned()));
        }
        let failed = |error: io::Error| RuntimeError::Exec(format!("cannot reach the container's supervisor: {error}"));
        let socket: Socket = Arc::new(
            connect_to(&entry.dir)
                .and_then(|fd| layout::watched(fd, Interest::READABLE | Interest::WRITABLE))
                .map_err(failed)?,
        );
        let (stdout, to_stdout) = tokio::io::duplex(BUFFERED);
        let (stderr, to_stderr) = tokio::io::duplex(BUFFERED);
        let (stdin, from_stdin) = tokio::io::duplex(BUFFERED);
        let (resize, sizes) = mpsc::channel(RESIZES_QUEUED);
        let (attached, detached) = oneshot::channel();
        let input = tokio::spawn(send_input(socket.clone(), from_stdin, sizes));
        tokio::spawn(async move {
            tokio::select! {
                () = receive_output(socket, to_stdout, to_stderr) => (),
                _ = detached => (),
            }
            input.abort();
        });
        let (has_stdin, tty) = (entry.spec.stdin, entry.spec.tty);
        Ok(AttachHandle {
            stdin: has_stdin.then(|| Box::new(stdin) as InputStream),
            stdout: Box::new(Attached { stream: stdout, _attached: attached }),
            stderr: (!tty).then(|| Box::new(stderr) as OutputStream),
            resize,
        })
    }
}

/// The container's output; dropping it detaches.
struct Attached {
    stream: DuplexStream,
    _attached: oneshot::Sender<()>,
}

impl AsyncRead for Attached {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

fn connect_to(dir: &Path) -> io::Result<OwnedFd> {
    // The path by way of the folder's descriptor is short enough for any data folder.
    let folder = std::fs::File::open(dir)?;
    let path = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(layout::ATTACH);
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(&path)?)?;
    process::set_nonblocking(fd.as_raw_fd())?;
    Ok(fd)
}

/// Until the supervisor closes the connection, or nobody reads any more.
async fn receive_output(socket: Socket, mut stdout: DuplexStream, mut stderr: DuplexStream) {
    let mut buffer = vec![0u8; MAX_PACKET];
    loop {
        let Ok(mut ready) = socket.readable().await else { return };
        let received = ready.try_io(|socket| Ok(recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?));
        let length = match received {
            Ok(Ok(length)) => length,
            Ok(Err(_)) => return,
            Err(_) => continue,
        };
        let Some((kind, bytes)) = buffer.get(..length).and_then(|message| message.split_first()) else { return };
        let written = match *kind {
            packet::STDOUT => stdout.write_all(bytes).await,
            // Whoever does not care for stderr must not stop stdout.
            packet::STDERR => stderr.write_all(bytes).await.or(Ok(())),
            _ => Ok(()),
        };
        if written.is_err() {
            return;
        }
    }
}

async fn send_input(socket: Socket, mut stdin: DuplexStream, mut sizes: mpsc::Receiver<TerminalSize>) {
    let mut buffer = vec![0u8; MAX_PACKET];
    let (mut reading, mut resizing) = (true, true);
    while reading || resizing {
        let message: Vec<u8> = tokio::select! {
            read = stdin.read(buffer.get_mut(1..).unwrap_or_default()), if reading => match read {
                Ok(length) if length > 0 => {
                    buffer.first_mut().into_iter().for_each(|kind| *kind = packet::STDIN);
                    buffer.get(..=length).unwrap_or_default().to_vec()
                }
                _ => {
                    reading = false;
                    vec![packet::STDIN_END]
                }
            },
            size = sizes.recv(), if resizing => match size {
                Some(size) => {
                    let ([w0, w1], [h0, h1]) = (size.width.to_le_bytes(), size.height.to_le_bytes());
                    vec![packet::RESIZE, w0, w1, h0, h1]
                }
                None => {
                    resizing = false;
                    continue;
                }
            },
        };
        if send_packet(&socket, &message).await.is_err() {
            return;
        }
    }
}

async fn send_packet(socket: &Socket, message: &[u8]) -> io::Result<()> {
    loop {
        let mut ready = socket.writable().await?;
        if let Ok(result) = ready.try_io(|socket| Ok(send(socket.as_raw_fd(), message, MsgFlags::MSG_NOSIGNAL)?)) {
            return result.map(|_| ());
        }
    }
}
