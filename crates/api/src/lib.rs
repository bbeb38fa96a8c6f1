//! Kubernetes objects as plain data: the one table of kinds, defaults, validation, selectors,
//! quantities, patches, printer columns, schemas.
//!
//! No IO, no clock, no async. On the request path an object is a [`serde_json::Value`]; the typed
//! views of `k8s-openapi` (re-exported here) are for `logic` and `node` only, since a typed round
//! trip drops fields that the type does not know.

pub mod apply;
pub mod cel;
pub mod cron;
pub mod custom;
pub mod discovery;
pub mod flows;
pub mod int_or_string;
pub mod kinds;
pub mod metadata;
pub mod metrics;
pub mod names;
pub mod object;
pub mod openapi;
pub mod parameters;
pub mod patch;
pub mod paths;
pub mod pod_resources;
pub mod podsecurity;
pub mod protobuf;
pub mod quantity;
pub mod quota;
pub mod registry;
pub mod schema;
pub mod selector;
pub mod snapshots;
pub mod status;
pub mod table;
pub mod time;

pub use k8s_openapi;
pub use k8s_openapi::jiff;
pub use kinds::Kind;
pub use object::ObjectKey;
pub use registry::Registry;
pub use status::Status;
