//! The FUSE client.
