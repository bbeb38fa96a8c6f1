//! How much of the server its clients may have: connections, threads, memory (X4, X5, X7).

use std::sync::Arc;

use mainstay_api::Status;
use mainstay_tasks::{Limits, Pool, PoolError, Shares, Slots};
use tokio::sync::Notify;

/// Connections. A node's agent takes a few dozen: one for its leases, more for its watches.
const CONNECTIONS: Limits = Limits {
    strangers: 768,
    strangers_per_address: 256,
    known: 2048,
    known_per_user: 512,
    system: 1024,
    system_per_user: 256,
};
/// Large answers in flight: KiB in all, and of one user.
const ANSWERS: (u32, u32) = (256 << 10, 64 << 10);
/// Large request bodies in memory: KiB in all, and of one user.
const BODIES: (u32, u32) = (256 << 10, 64 << 10);

/// A request with a larger body (bytes) is worked on while no other one is: what is made of it takes many times its
/// size.
pub const HUGE_BODY: usize = 256 << 10;

/// What every request shares with the others.
pub struct Bounds {
    /// Connections.
    pub slots: Arc<Slots>,
    /// Threads for requests whose work takes long.
    pub heavy: Pool,
    /// The thread for requests whose work takes much memory. Its users have it in turn.
    pub huge: Pool,
    /// The thread on which the OpenAPI documents of all kinds are made: where many are defined, they take much memory.
    pub descriptions: Pool,
    /// Notified when such a request has given its memory back to the allocator.
    pub freed: Arc<Notify>,
    /// KiB of large answers in flight.
    pub answers: Shares,
    /// KiB of large request bodies in memory.
    pub bodies: Shares,
}

impl Bounds {
    /// The bounds of one server.
    pub fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 64);
        let cores = u32::try_from(cores).unwrap_or(2);
        Self {
            slots: Slots::new(CONNECTIONS),
            heavy: Pool::new("large requests", cores, cores / 2),
            huge: Pool::new("very large requests", 1, 1),
            descriptions: Pool::new("descriptions of kinds", 1, 1),
            freed: Arc::default(),
            answers: Shares::new(ANSWERS.0, ANSWERS.1),
            bodies: Shares::new(BODIES.0, BODIES.1),
        }
    }
}

/// Why work on a thread of its own was not done.
pub fn refused(error: PoolError) -> Status {
    match error {
        PoolError::Busy { .. } => Status::too_many_requests(error.to_string(), 1),
        PoolError::Broken { .. } => Status::internal(error.to_string()),
    }
}
