//! A request's body on its way in. What nobody read of it is read and thrown away after the answer, within limits, so
//! that neither the connection nor (in HTTP/2) the stream ends badly for a client that is still sending. Memory for
//! large bodies is taken from a budget that all requests share (X4, X7).

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use mainstay_api::Status;
use mainstay_tasks::{Share, Shares};

/// How much of a body that nobody wanted is read (bytes), and for how long.
const MAX_DRAINED: usize = 8 << 20;
const DRAIN: Duration = Duration::from_secs(10);
/// Larger bodies of what is not passed on are refused (bytes; upstream's limit).
const MAX_BODY: usize = 3 << 20;
/// How long a client may take to send one.
const BODY_TIME: Duration = Duration::from_secs(30);
/// Bodies up to this size (bytes) are not counted.
const SMALL: u64 = 64 << 10;

/// A body.
#[derive(Debug)]
pub struct Received {
    incoming: Option<Incoming>,
    /// Whether the client waits to be asked for the body.
    is_expecting: bool,
    bill: Option<Bill>,
    /// What has arrived, where it was read as a whole.
    arrived: Option<Bytes>,
}

/// Who pays for a body's memory, and where what was paid is kept until the request is over.
#[derive(Clone, Debug)]
pub struct Bill {
    /// KiB of bodies in memory.
    pub shares: Shares,
    /// The user.
    pub user: String,
    /// What is held.
    pub paid: Arc<Mutex<Option<Share>>>,
}

impl Received {
    /// A body that has just begun to arrive; `is_expecting` where the request has an `Expect` header.
    pub fn new(incoming: Incoming, is_expecting: bool) -> Self {
        Self { incoming: Some(incoming), is_expecting, bill: None, arrived: None }
    }

    /// Says who pays for it.
    pub fn bill(&mut self, bill: Bill) {
        self.bill = Some(bill);
    }

    /// Waits until the body is there as a whole, once.
    ///
    /// # Errors
    /// 413 for one that is too large, 408 or 504 for one that does not come in time, 400 for one that breaks off.
    pub async fn arrive(&mut self) -> Result<(), Status> {
        if self.arrived.is_some() {
            return Ok(());
        }
        if self.size_hint().lower() > MAX_BODY as u64 {
            return Err(Status::too_large(MAX_BODY));
        }
        let work = async {
            self.reserve(MAX_BODY).await;
            self.read().await
        };
        let late = |_| Status::timeout("the request's body did not arrive in time");
        let all = tokio::time::timeout(BODY_TIME, work).await.map_err(late)??;
        self.arrived = Some(all);
        Ok(())
    }

    /// The whole body. Fails as [`Received::arrive`] does.
    pub async fn whole(mut self) -> Result<Bytes, Status> {
        self.arrive().await?;
        Ok(self.arrived.take().unwrap_or_default())
    }

    /// What is over the limit is left in the body, which reads on by itself.
    async fn read(&mut self) -> Result<Bytes, Status> {
        let mut all = BytesMut::new();
        while let Some(frame) = self.frame().await {
            let frame = frame.map_err(|_| Status::bad_request("the request's body ended early"))?;
            let Ok(piece) = frame.into_data() else { continue };
            if all.len() + piece.len() > MAX_BODY {
                return Err(Status::too_large(MAX_BODY));
            }
            all.extend_from_slice(&piece);
        }
        Ok(all.freeze())
    }

    /// Waits until there is room for the body in memory; `limit` is how large it may be where it does not say.
    async fn reserve(&self, limit: usize) {
        let Some(bill) = &self.bill else { return };
        let size = self.size_hint().upper().unwrap_or(limit as u64).min(limit as u64);
        if size > SMALL {
            let share = bill.shares.take(&bill.user, u32::try_from(size.div_ceil(1024)).unwrap_or(u32::MAX)).await;
            *bill.paid.lock().unwrap_or_else(PoisonError::into_inner) = Some(share);
        }
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.get_mut().incoming {
            Some(incoming) => Pin::new(incoming).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or_else(|| SizeHint::with_exact(0), Incoming::size_hint)
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        let left = self.incoming.take().filter(|left| !left.is_end_stream() && !self.is_expecting);
        if let (Some(left), Ok(runtime)) = (left, tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move {
                let _ = tokio::time::timeout(DRAIN, drain(left)).await;
            });
        }
    }
}

async fn drain(mut left: Incoming) {
    let mut drained = 0;
    while let Some(Ok(frame)) = left.frame().await {
        drained += frame.data_ref().map_or(0, Bytes::len);
        if drained > MAX_DRAINED {
            return;
        }
    }
}
