//! The promises of the store, tested.

mod basics;
mod content;
mod crash;
mod damage;
mod disk;
mod etcd;
mod fallen;
mod faulty;
mod group;
mod index;
mod kill;
mod model;
mod past;
mod salvaged;
mod sealed;
mod shared;
mod watchers;
mod window;

use crate::{Encoded, Op, Txn};
use bytes::Bytes;

/// A transaction of one put, without expectation.
fn put(key: &str, value: &str) -> Txn {
    Txn { expect: vec![], ops: vec![put_op(key, value)] }
}

pub(crate) fn put_op(key: &str, value: &str) -> Op {
    Op::Put { key: Bytes::copy_from_slice(key.as_bytes()), value: Encoded::plain(value.to_owned()) }
}

pub(crate) fn delete_op(key: &str) -> Op {
    Op::Delete { key: Bytes::copy_from_slice(key.as_bytes()), last: Encoded::plain("gone") }
}
