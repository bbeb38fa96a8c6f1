//! The API server: HTTP over the pipeline over the store, and the driver that runs logic.
//!
//! ```text
//! http (TLS, who, what, may they) -> api (verbs on a Batch) -> store::Txn -> store
//!                                                                              | events
//!                                          driver (snapshot, queue, decide) <--+--> watches
//! ```

#![forbid(unsafe_code)]

mod aggregation;
pub mod api;
mod audit;
mod auth;
mod authorize;
pub mod backends;
pub mod bootstrap;
pub mod convert;
mod credentials;
pub mod driver;
pub mod dynamic;
mod encryption;
mod fairness;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod http;
pub mod identity;
mod instruments;
pub mod kubeconfig;
mod leadership;
mod metrics;
pub mod offline;
mod origin;
pub mod pki;
mod pods;
mod presence;
mod renewal;
mod sealed;
mod start;
mod subject;

pub use credentials::Open;
pub use http::COMMIT;
pub use mainstay_store::{Endpoint, Etcd};
pub use start::{Credentials, Files, LocalNode, Running, ServerConfig, StartError, start, start_with, system_env};
