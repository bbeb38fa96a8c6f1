//! An answer's body on its way out: compressed where the client takes that, without bytes for `HEAD`, within a budget
//! that all answers share, and cut when the client does not read it (X4, X7).

use std::io::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body::{Body as HttpBody, Frame, SizeHint};
use mainstay_tasks::listen::{Active, Connection};
use mainstay_tasks::{Share, Shares};

use super::respond::{Body, BodyError};
use crate::instruments::Counted;

/// Smaller answers are not compressed (bytes; upstream's).
const MIN_COMPRESSED: u64 = 128 << 10;
/// What is compressed at a time (bytes).
const PIECE: usize = 64 << 10;
/// Answers up to this size (bytes) are not counted.
const SMALL: u64 = 64 << 10;
/// A counted answer of which the client has taken nothing for so long ends its connection.
const UNREAD: Duration = Duration::from_secs(60);

/// A body, with what is to last until its end.
pub struct Sending {
    coding: Coding,
    /// Frames that were taken.
    taken: Arc<AtomicU64>,
    watchdog: Option<tokio::task::AbortHandle>,
    _share: Option<Share>,
    _active: Active,
    /// Counts it while it goes on, where it does so for as long as the client likes.
    _long: Option<Counted>,
}

enum Coding {
    Plain(Body),
    Gzip(Box<Gzip>),
    Nothing,
}

impl Drop for Sending {
    fn drop(&mut self) {
        if let Some(watchdog) = &self.watchdog {
            watchdog.abort();
        }
    }
}

/// How a client wants its answer.
pub struct Wanted {
    pub is_head: bool,
    pub gzip: bool,
}

impl Wanted {
    /// Reads a request's head.
    pub fn of<B>(request: &http::Request<B>) -> Self {
        Self { is_head: request.method() == http::Method::HEAD, gzip: takes_gzip(request.headers()) }
    }
}

/// Whether `Accept-Encoding` names gzip, and not with weight 0.
fn takes_gzip(headers: &HeaderMap) -> bool {
    let codings = headers.get_all(header::ACCEPT_ENCODING).into_iter().filter_map(|value| value.to_str().ok());
    codings.flat_map(|value| value.split(',')).any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let is_gzip = parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip"));
        let is_refused = parts.any(|part| {
            part.strip_prefix("q=").is_some_and(|weight| weight.parse::<f32>().is_ok_and(|weight| weight <= 0.0))
        });
        is_gzip && !is_refused
    })
}

/// Makes an answer ready for the wire. Waits where the user already has as much in flight as it may.
pub async fn send(
    response: Response<Body>,
    wanted: Wanted,
    answers: &Shares,
    user: &str,
    connection: &Connection,
    active: Active,
    long: Option<Counted>,
) -> Response<Sending> {
    let (mut head, body) = response.into_parts();
    let weight = body.weight();
    let share = if weight > SMALL && !wanted.is_head {
        Some(answers.take(user, u32::try_from(weight.div_ceil(1024)).unwrap_or(u32::MAX)).await)
    } else {
        None
    };
    let exact = body.size_hint().exact();
    let coding = if wanted.is_head {
        if let Some(length) = exact.filter(|_| !head.headers.contains_key(header::CONTENT_LENGTH)) {
            head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        Coding::Nothing
    } else if wanted.gzip && body.is_compressible() && exact.is_none_or(|size| size >= MIN_COMPRESSED) {
        head.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        head.headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        Coding::Gzip(Box::new(Gzip::new(body)))
    } else {
        Coding::Plain(body)
    };
    let taken = Arc::new(AtomicU64::new(0));
    let watchdog = share.is_some().then(|| tokio::spawn(watch(taken.clone(), connection.clone())).abort_handle());
    Response::from_parts(head, Sending { coding, taken, watchdog, _share: share, _active: active, _long: long })
}

/// Cuts the connection when nothing more is taken.
async fn watch(taken: Arc<AtomicU64>, connection: Connection) {
    let mut before = 0;
    loop {
        tokio::time::sleep(UNREAD).await;
        let now = taken.load(Ordering::Relaxed);
        if now == before {
            tracing::debug!("a client does not read its answer; its connection is cut");
            return connection.cut();
        }
        before = now;
    }
}

impl HttpBody for Sending {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let polled = match &mut this.coding {
            Coding::Plain(body) => Pin::new(body).poll_frame(cx),
            Coding::Gzip(gzip) => gzip.poll(cx).map(|bytes| bytes.map(|bytes| bytes.map(Frame::data))),
            Coding::Nothing => Poll::Ready(None),
        };
        if polled.is_ready() {
            this.taken.fetch_add(1, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.coding {
            Coding::Plain(body) => body.is_end_stream(),
            Coding::Gzip(gzip) => gzip.encoder.is_none(),
            Coding::Nothing => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.coding {
            Coding::Plain(body) => body.size_hint(),
            Coding::Gzip(_) | Coding::Nothing => SizeHint::default(),
        }
    }
}

/// A body that is compressed a piece at a time.
struct Gzip {
    body: Body,
    /// What of the body's last frame is not compressed yet.
    left: Bytes,
    /// `None` when all was compressed.
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl Gzip {
    fn new(body: Body) -> Self {
        Self { body, left: Bytes::new(), encoder: Some(GzEncoder::new(Vec::new(), Compression::fast())) }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        loop {
            let Some(encoder) = &mut self.encoder else { return Poll::Ready(None) };
            if self.left.is_empty() {
                match Pin::new(&mut self.body).poll_frame(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Some(Ok(frame))) => self.left = frame.into_data().unwrap_or_default(),
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                    Poll::Ready(None) => {
                        let finished = self.encoder.take().map(GzEncoder::finish);
                        return Poll::Ready(
                            finished.map(|bytes| bytes.map(Bytes::from).map_err(|error| Box::new(error) as BodyError)),
                        );
                    }
                }
            }
            let piece = self.left.split_to(self.left.len().min(PIECE));
            if let Err(error) = encoder.write_all(&piece) {
                return Poll::Ready(Some(Err(Box::new(error))));
            }
            if !encoder.get_ref().is_empty() {
                return Poll::Ready(Some(Ok(Bytes::from(std::mem::take(encoder.get_mut())))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn what_is_compressed_is_the_same_again() {
        let text = (0..100_000).flat_map(|number| format!("{{\"item\":{number}}}").into_bytes()).collect::<Vec<u8>>();
        let mut gzip = Gzip::new(Body::Full(Some(Bytes::from(text.clone()))));
        let mut packed = Vec::new();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        while let Poll::Ready(Some(piece)) = gzip.poll(&mut cx) {
            packed.extend_from_slice(&piece.expect("a piece"));
        }
        assert!(packed.len() < text.len());
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut unpacked).expect("gzip");
        assert_eq!(unpacked, text);
    }

    #[test]
    fn gzip_is_for_those_who_take_it() {
        let takes = |value: &'static str| {
            takes_gzip(&HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_static(value))]))
        };
        assert!(takes("gzip") && takes("br, GZIP;q=0.5") && !takes("br") && !takes("gzip;q=0") && !takes(""));
    }
}
