//! The discovery documents.
