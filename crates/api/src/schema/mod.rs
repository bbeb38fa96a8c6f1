//! The schemas of all kinds: which fields exist, of what type, and how each is merged.
//!
//! [`raw`] has the JSON schemas with their prose (for OpenAPI), [`types`] the compact form that the
//! request path uses, [`list_keys`] the facts about lists that schemas do not state, `omitted` what is the same empty
//! and not set, [`parse`] reads JSON text within limits ([`yaml`]: YAML; [`budget`]: what it may come to), and
//! [`decode`] checks an object against its type.

pub mod budget;
pub mod decode;
#[cfg(test)]
mod decode_tests;
pub mod list_keys;
mod omitted;
pub mod parse;
pub mod raw;
#[cfg(test)]
pub(crate) mod roots;
pub mod types;
pub mod yaml;

pub use decode::{FieldValidation, decode, decode_bytes, decode_config, decode_patched, decode_yaml, parse_yaml};
pub use omitted::drop_empty;
pub use types::{Field, Shape, Struct, shape_of, shape_of_kind};
