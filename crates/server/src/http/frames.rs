//! WebSocket frames that are passed on: each is written by itself, and so is a TLS record of its own.
//!
//! Upstream passes on record by record what a kubelet sends frame by frame. There are clients that rely on it without
//! knowing: older releases of the official Python client (Debian 12 has 22.6) wait for their socket to become readable
//! after each frame, and do not see that TLS has another one ready for them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The longest header of a frame (bytes): two, a length of eight, a mask of four.
const MAX_HEADER: usize = 14;
/// A header without an extended length and a mask (bytes).
const SHORT_HEADER: usize = 2;

/// A connection to a client; what is written to it is cut at the ends of frames.
pub struct FrameByFrame<IO> {
    io: IO,
    /// None: what is written are no frames.
    position: Option<Position>,
}

impl<IO> FrameByFrame<IO> {
    /// At the beginning of a frame, where they are frames.
    pub fn new(io: IO, is_websocket: bool) -> Self {
        Self { io, position: is_websocket.then(Position::default) }
    }
}

/// Where within a frame.
#[derive(Clone, Copy, Default)]
struct Position {
    header: [u8; MAX_HEADER],
    /// How much of the header is known (bytes).
    known: usize,
    /// How much of the payload is to come (bytes), once the header is known.
    left: u64,
}

impl Position {
    /// As far as it is known.
    fn header_length(&self) -> usize {
        let second = if self.known < SHORT_HEADER { 0 } else { self.header[1] };
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        SHORT_HEADER + extended(second) + mask
    }

    /// What the header says (bytes).
    fn payload_length(&self) -> u64 {
        let second = self.header[1];
        let number = self.header.iter().skip(SHORT_HEADER).take(extended(second));
        match extended(second) {
            0 => u64::from(second & 0x7f),
            _ => number.fold(0, |number, byte| number << 8 | u64::from(*byte)),
        }
    }

    /// Goes on through these bytes, at most to the end of the frame; how many of them that are.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while self.known < self.header_length() {
            let Some(byte) = bytes.get(taken) else { return taken };
            self.header[self.known] = *byte;
            (self.known, taken) = (self.known + 1, taken + 1);
            if self.known == self.header_length() {
                self.left = self.payload_length();
            }
        }
        let there = bytes.len() - taken;
        let here = usize::try_from(self.left).map_or(there, |left| left.min(there));
        self.left -= here as u64;
        if self.left == 0 {
            *self = Self::default();
        }
        taken + here
    }
}

/// The length of a frame's extended length (bytes), by its second byte.
fn extended(second: u8) -> usize {
    match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for FrameByFrame<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, into)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for FrameByFrame<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Some(mut position) = self.position else { return Pin::new(&mut self.io).poll_write(cx, bytes) };
        let begun = position;
        let piece = bytes.get(..position.take(bytes)).unwrap_or_default();
        let written = std::task::ready!(Pin::new(&mut self.io).poll_write(cx, piece))?;
        if written < piece.len() {
            position = begun;
            position.take(piece.get(..written).unwrap_or_default());
        }
        self.position = Some(position);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    /// Notes what each write brings, and takes no more than this at once (bytes).
    struct Writes(Vec<Vec<u8>>, usize);

    impl AsyncWrite for Writes {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let taken = bytes.len().min(self.1);
            self.0.push(bytes[..taken].to_vec());
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// A frame of each form of length and mask: none, short, of 16 and of 64 bits, masked.
    fn frames() -> Vec<Vec<u8>> {
        let of = |header: &[u8], payload: usize| [header, &vec![0xff; payload]].concat();
        vec![
            of(&[0x89, 0], 0),
            of(&[0x82, 125], 125),
            of(&[0x82, 126, 0, 126], 126),
            of(&[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0], 65536),
            of(&[0x81, 0x80 | 3, 1, 2, 3, 4], 3),
            of(&[0x88, 2, 3, 0xe8], 0),
        ]
    }

    /// What arrives of pieces of this size, where no more than `at_once` is taken.
    async fn written(is_websocket: bool, piece: usize, at_once: usize) -> Vec<Vec<u8>> {
        let mut client = FrameByFrame::new(Writes(Vec::new(), at_once), is_websocket);
        for piece in frames().concat().chunks(piece) {
            client.write_all(piece).await.expect("written");
        }
        client.io.0
    }

    #[tokio::test]
    async fn each_frame_is_written_by_itself_however_it_comes() {
        assert_eq!(written(true, usize::MAX, usize::MAX).await, frames());
        let ends: Vec<usize> = frames().iter().scan(0, |end, frame| (*end += frame.len(), Some(*end)).1).collect();
        for (piece, at_once) in [(1, 9), (3, 9), (200, 150), (9, 1), (usize::MAX, 7)] {
            let writes = written(true, piece, at_once).await;
            let here: Vec<usize> = writes.iter().scan(0, |end, write| (*end += write.len(), Some(*end)).1).collect();
            assert!(ends.iter().all(|end| here.contains(end)), "pieces of {piece}, {at_once} at once");
            assert_eq!(writes.concat(), frames().concat());
        }
    }

    #[tokio::test]
    async fn what_are_no_frames_goes_as_it_comes() {
        assert_eq!(written(false, usize::MAX, usize::MAX).await, [frames().concat()]);
    }

    #[test]
    fn a_length_that_nobody_can_send_is_waited_for() {
        let mut position = Position::default();
        assert_eq!(position.take(&[&[0x82, 127][..], &[0xff; 8], &[0; 100]].concat()), 110);
        assert_eq!(position.left, u64::MAX - 100);
    }
}
