//! Image archives that an administrator sends to a node: `POST /images/load?bytes=N`, a path of ours, upgraded to a
//! stream of bytes. The archive comes first, so many bytes of it; then, the other way, one `metav1.Status` whose
//! message has the names that were loaded, a line each.
//!
//! What is in it is as hostile as any other archive ([`mainstay_runtime::images`] bounds it). One is loaded at a time.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use mainstay_api::Status;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Semaphore, mpsc};

use super::backend::Backend;

/// What a client asks to switch to.
pub const PROTOCOL: &str = "mainstay-image-archive";
/// How many bytes are taken at once, and how many such pieces wait for the disk.
const PIECE: usize = 256 << 10;
const PIECES: usize = 4;
/// How long the next piece may take to arrive.
const PATIENCE: Duration = Duration::from_secs(60);

/// Loads an archive of so many bytes, and says what came of it. All of it is read, whatever becomes of it, so that
/// whoever sends it has the answer.
pub async fn load(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    bytes: u64,
    backend: Arc<dyn Backend>,
    turn: Arc<Semaphore>,
) {
    let answer = match receive(&mut stream, bytes, backend, &turn).await {
        Ok(names) => json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
            "message": names.join("\n") }),
        Err(status) => status.to_json(),
    };
    let said = async {
        stream.write_all(answer.to_string().as_bytes()).await?;
        stream.shutdown().await
    };
    // Whoever asked may have gone.
    let _ = tokio::time::timeout(PATIENCE, said).await;
}

async fn receive(
    stream: &mut (impl AsyncRead + Unpin),
    bytes: u64,
    backend: Arc<dyn Backend>,
    turn: &Semaphore,
) -> Result<Vec<String>, Status> {
    let _turn = turn.acquire().await.map_err(|error| Status::internal(error.to_string()))?;
    let (sender, pieces) = mpsc::channel(PIECES);
    let loading = tokio::task::spawn_blocking(move || backend.load_images(&mut Pieces { pieces, rest: Bytes::new() }));
    let mut left = bytes;
    while left > 0 {
        let mut piece = BytesMut::with_capacity(PIECE);
        let mut next = (&mut *stream).take(left.min(PIECE as u64));
        let read =
            tokio::time::timeout(PATIENCE, next.read_buf(&mut piece)).await.unwrap_or_else(|late| Err(late.into()));
        let piece = match read {
            Ok(0) => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            Ok(length) => {
                left -= length as u64;
                Ok(piece.freeze())
            }
            Err(error) => Err(error),
        };
        let is_broken = piece.is_err();
        // Where loading has failed already, the rest is thrown away.
        let _ = sender.send(piece).await;
        if is_broken {
            break;
        }
    }
    drop(sender);
    let loaded = loading.await.map_err(|error| Status::internal(error.to_string()))?;
    loaded.map_err(Status::bad_request)
}

/// What arrives, as a file that is read on another thread.
struct Pieces {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_empty() {
            self.rest = self.pieces.blocking_recv().transpose()?.unwrap_or_default();
        }
        let length = self.rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..length), self.rest.get(..length)) {
            to.copy_from_slice(from);
        }
        self.rest.advance(length);
        Ok(length)
    }
}
