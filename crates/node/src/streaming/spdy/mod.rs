//! SPDY/3.1 as Kubernetes' streaming clients speak it (kubectl before 1.31, client-go's executors, and every newer
//! kubectl where WebSockets fail).
//!
//! - [`headers`]: compressed header blocks
//! - [`frame`]: frames, without IO
//! - [`connection`]: a connection and its streams
//! - [`channels`]: the streams of an exec or attach as [`super::channels::Channels`]

pub mod channels;
pub mod connection;
pub mod frame;
#[cfg(test)]
mod frame_tests;
pub mod headers;
