//! The tools of the demonstration's image, which has no shell: a web server with a counter, a DNS client, an HTTP
//! client.

mod dns;
mod http;
mod server;

pub use dns::lookup;
pub use http::{fetch, get};
pub use server::serve;
