//! SPDY/3.1 frames, without IO: bytes in, frames out, and back.
//!
//! ```text
//! control  |1| version 15 | type 16 | flags 8 | length 24 | payload
//! data     |0| stream id 31         | flags 8 | length 24 | payload
//! ```
//!
//! A control frame is taken whole, up to [`MAX_CONTROL_FRAME`]. A data frame is given out in pieces as they come: its
//! 24 bits of length (clients do send one huge frame for one huge write) then cost no memory.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::headers::{HeaderDecoder, HeaderEncoder, HeaderError, Headers};

/// The largest control frame's payload (bytes).
pub const MAX_CONTROL_FRAME: usize = 64 * 1024;
/// The largest piece of a data frame that is given out, and the largest data frame that is sent (bytes).
pub const MAX_PIECE: usize = 32 * 1024;

const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;
const STREAM_MASK: u32 = 0x7fff_ffff;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// RST_STREAM's status codes that are sent.
pub mod reset {
    pub const PROTOCOL_ERROR: u32 = 1;
    pub const REFUSED_STREAM: u32 = 3;
}

/// One frame, or a piece of a data frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    SynStream {
        stream: u32,
        headers: Headers,
        fin: bool,
    },
    SynReply {
        stream: u32,
        headers: Headers,
        fin: bool,
    },
    Reset {
        stream: u32,
        status: u32,
    },
    Settings,
    Ping {
        id: u32,
    },
    GoAway {
        last_stream: u32,
        status: u32,
    },
    Headers {
        stream: u32,
        headers: Headers,
        fin: bool,
    },
    WindowUpdate {
        stream: u32,
        delta: u32,
    },
    /// `fin` only with the frame's last piece.
    Data {
        stream: u32,
        bytes: Bytes,
        fin: bool,
    },
    /// A control frame of another type, to be passed over.
    Unknown {
        kind: u16,
    },
}

/// Why a connection cannot go on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("control frame of SPDY version {0}")]
    Version(u16),
    #[error("control frame of {0} bytes, more than {MAX_CONTROL_FRAME}")]
    TooLarge(usize),
    #[error("control frame of type {0} is too short")]
    Short(u16),
    #[error(transparent)]
    Headers(#[from] HeaderError),
}

/// A data frame whose payload has not come whole.
struct Open {
    stream: u32,
    fin: bool,
    remaining: usize,
}

/// Bytes from the peer to frames.
#[derive(Default)]
pub struct Decoder {
    buffer: BytesMut,
    open: Option<Open>,
    headers: HeaderDecoder,
}

impl Decoder {
    /// Adds what was read. Call [`Decoder::next`] until it has nothing more before the next call: then no more than
    /// [`MAX_CONTROL_FRAME`] bytes are kept.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next frame or piece; None until more was fed.
    ///
    /// # Errors
    /// Anything that makes the rest unreadable.
    #[expect(clippy::should_implement_trait, reason = "a frame that is not there yet is no end")]
    pub fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(open) = self.open.take() {
            return Ok(self.piece(open));
        }
        let Some(head) = self.buffer.first_chunk::<8>() else { return Ok(None) };
        let [a, b, c, d, flags, l0, l1, l2] = *head;
        let length = u32::from_be_bytes([0, l0, l1, l2]) as usize;
        if a & 0x80 == 0 {
            self.buffer.advance(8);
            return Ok(self.piece(Open {
                stream: u32::from_be_bytes([a, b, c, d]),
                fin: flags & FLAG_FIN != 0,
                remaining: length,
            }));
        }
        let version = u16::from_be_bytes([a & 0x7f, b]);
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if length > MAX_CONTROL_FRAME {
            return Err(FrameError::TooLarge(length));
        }
        if self.buffer.len() < 8 + length {
            return Ok(None);
        }
        self.buffer.advance(8);
        let payload = self.buffer.split_to(length).freeze();
        self.control(u16::from_be_bytes([c, d]), flags & FLAG_FIN != 0, payload).map(Some)
    }

    fn piece(&mut self, open: Open) -> Option<Frame> {
        let taken = open.remaining.min(self.buffer.len()).min(MAX_PIECE);
        if taken == 0 && open.remaining > 0 {
            self.open = Some(open);
            return None;
        }
        let bytes = self.buffer.split_to(taken).freeze();
        let remaining = open.remaining - taken;
        let fin = open.fin && remaining == 0;
        let stream = open.stream;
        if remaining > 0 {
            self.open = Some(Open { remaining, ..open });
        }
        Some(Frame::Data { stream, bytes, fin })
    }

    fn control(&mut self, kind: u16, fin: bool, mut payload: Bytes) -> Result<Frame, FrameError> {
        let word = |payload: &mut Bytes| payload.try_get_u32().map_err(|_| FrameError::Short(kind));
        let stream = |payload: &mut Bytes| word(payload).map(|word| word & STREAM_MASK);
        Ok(match kind {
            SYN_STREAM => {
                let id = stream(&mut payload)?;
                // The associated stream, priority and slot mean nothing here.
                if payload.len() < 6 {
                    return Err(FrameError::Short(kind));
                }
                payload.advance(6);
                Frame::SynStream { stream: id, headers: self.headers.decode(&payload)?, fin }
            }
            SYN_REPLY => {
                Frame::SynReply { stream: stream(&mut payload)?, headers: self.headers.decode(&payload)?, fin }
            }
            HEADERS => Frame::Headers { stream: stream(&mut payload)?, headers: self.headers.decode(&payload)?, fin },
            RST_STREAM => Frame::Reset { stream: stream(&mut payload)?, status: word(&mut payload)? },
            PING => Frame::Ping { id: word(&mut payload)? },
            GOAWAY => Frame::GoAway { last_stream: stream(&mut payload)?, status: word(&mut payload)? },
            WINDOW_UPDATE => Frame::WindowUpdate { stream: stream(&mut payload)?, delta: stream(&mut payload)? },
            SETTINGS => Frame::Settings,
            kind => Frame::Unknown { kind },
        })
    }
}

/// Frames to bytes for the peer.
#[derive(Default)]
pub struct Encoder {
    headers: HeaderEncoder,
}

impl Encoder {
    /// Appends a frame. Data longer than [`MAX_PIECE`] becomes several frames.
    pub fn encode(&mut self, frame: &Frame, out: &mut BytesMut) {
        match frame {
            Frame::SynStream { stream, headers, fin } => {
                let block = self.headers.encode(headers);
                control(out, SYN_STREAM, *fin, 10 + block.len());
                out.put_u32(*stream & STREAM_MASK);
                out.put_bytes(0, 6);
                out.put_slice(&block);
            }
            Frame::SynReply { stream, headers, fin } => self.with_headers(out, SYN_REPLY, *stream, headers, *fin),
            Frame::Headers { stream, headers, fin } => self.with_headers(out, HEADERS, *stream, headers, *fin),
            Frame::Reset { stream, status } => words(out, RST_STREAM, &[*stream, *status]),
            Frame::Ping { id } => words(out, PING, &[*id]),
            Frame::GoAway { last_stream, status } => words(out, GOAWAY, &[*last_stream, *status]),
            Frame::WindowUpdate { stream, delta } => words(out, WINDOW_UPDATE, &[*stream, *delta]),
            Frame::Settings => words(out, SETTINGS, &[0]),
            Frame::Data { stream, bytes, fin } => {
                let mut rest = bytes.as_ref();
                loop {
                    let (piece, after) = rest.split_at(rest.len().min(MAX_PIECE));
                    out.put_u32(*stream & STREAM_MASK);
                    let flags = if *fin && after.is_empty() { FLAG_FIN } else { 0 };
                    out.put_u32(u32::from(flags) << 24 | piece.len() as u32);
                    out.put_slice(piece);
                    rest = after;
                    if rest.is_empty() {
                        break;
                    }
                }
            }
            Frame::Unknown { .. } => {}
        }
    }

    fn with_headers(&mut self, out: &mut BytesMut, kind: u16, stream: u32, headers: &Headers, fin: bool) {
        let block = self.headers.encode(headers);
        control(out, kind, fin, 4 + block.len());
        out.put_u32(stream & STREAM_MASK);
        out.put_slice(&block);
    }
}

fn control(out: &mut BytesMut, kind: u16, fin: bool, length: usize) {
    out.put_u16(0x8000 | VERSION);
    out.put_u16(kind);
    out.put_u32(u32::from(fin) << 24 | (length as u32 & 0x00ff_ffff));
}

fn words(out: &mut BytesMut, kind: u16, words: &[u32]) {
    control(out, kind, false, words.len() * 4);
    for word in words {
        out.put_u32(*word);
    }
}
