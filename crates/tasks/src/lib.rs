//! What keeps a program answering while it is pressed, for server and node alike. Knows nothing of Kubernetes.
//!
//! - [`keep`]: long-lived tasks with an owner that begins them anew, and whether they are well
//! - [`shares`]: a bounded amount of something, of which no user gets all
//! - [`pool`]: blocking work in pools of their own
//! - [`slots`]: who has a connection, and who gives way when there are too many
//! - [`listen`]: TLS connections within slots and deadlines

pub mod keep;
pub mod listen;
pub mod pool;
pub mod shares;
pub mod slots;

pub use keep::{Health, keep};
pub use pool::{Pool, PoolError};
pub use shares::{Share, Shares};
pub use slots::{Limits, Slot, Slots};

use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a thread that panicked left behind is as good as what it found: every change here is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
