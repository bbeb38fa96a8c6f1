//! The OpenAPI documents, made on demand.
