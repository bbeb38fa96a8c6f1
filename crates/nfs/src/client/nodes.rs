//! The files that the kernel knows of, and what it has open.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::rpc::Credentials;
use super::data::Kept;

/// The kernel's number of the mount's root.
pub const ROOT: u64 = 1;

/// A file that was removed while it was open: it lives under another name until it is closed.
pub struct Hidden {
    pub dir: Vec<u8>,
    pub name: Vec<u8>,
    pub who: Credentials,
}

/// A file.
#[derive(Default)]
pub struct Node {
    pub handle: Vec<u8>,
    /// How often the kernel was told of it, less how often it forgot.
    lookups: u64,
    opens: u64,
    pub hidden: Option<Hidden>,
    /// What of it is not known to be on the server's disk.
    pub kept: Kept,
}

/// An open file.
pub struct Open {
    pub node: u64,
    /// Who opened it: reads and writes are his, whoever makes them.
    pub who: Credentials,
}

/// All of them.
#[derive(Default)]
pub struct Nodes {
    by_number: HashMap<u64, Node>,
    by_handle: HashMap<Vec<u8>, u64>,
    open: HashMap<u64, Arc<Open>>,
    /// The bytes that all files keep.
    pub kept: usize,
    last: u64,
}

impl Nodes {
    /// With the mount's root, which is never forgotten.
    pub fn new(root: Vec<u8>) -> Self {
        let mut nodes = Self::default();
        nodes.found(root);
        nodes
    }

    /// The kernel is told of a file: its number. Numbers are not used twice.
    pub fn found(&mut self, handle: Vec<u8>) -> u64 {
        let number = *self.by_handle.entry(handle.clone()).or_insert_with(|| {
            self.last += 1;
            self.last
        });
        let node = self.by_number.entry(number).or_default();
        node.handle = handle;
        node.lookups += 1;
        number
    }

    /// The kernel forgets.
    pub fn forget(&mut self, number: u64, times: u64) {
        let Some(node) = self.by_number.get_mut(&number) else { return };
        node.lookups = node.lookups.saturating_sub(times);
        if node.lookups == 0 && node.opens == 0 && number != ROOT {
            let handle = std::mem::take(&mut node.handle);
            self.kept = self.kept.saturating_sub(node.kept.bytes());
            self.by_number.remove(&number);
            self.by_handle.remove(&handle);
        }
    }

    pub fn get(&mut self, number: u64) -> Option<&mut Node> {
        self.by_number.get_mut(&number)
    }

    /// An open file of this handle, if there is one.
    pub fn open_by_handle(&mut self, handle: &[u8]) -> Option<&mut Node> {
        let number = self.by_handle.get(handle)?;
        self.by_number.get_mut(number).filter(|node| node.opens > 0)
    }

    /// Opens a file: the number by which reads and writes name it.
    pub fn open(&mut self, number: u64, who: Credentials) -> u64 {
        if let Some(node) = self.by_number.get_mut(&number) {
            node.opens += 1;
        }
        self.last += 1;
        self.open.insert(self.last, Arc::new(Open { node: number, who }));
        self.last
    }

    pub fn opened(&self, open: u64) -> Option<Arc<Open>> {
        self.open.get(&open).cloned()
    }

    /// Closes it; what is to be removed now that nobody has it open.
    pub fn close(&mut self, open: u64) -> Option<Hidden> {
        let closed = self.open.remove(&open)?;
        let node = self.by_number.get_mut(&closed.node)?;
        node.opens = node.opens.saturating_sub(1);
        let hidden = if node.opens == 0 { node.hidden.take() } else { None };
        // The kernel may have forgotten it before.
        self.forget(closed.node, 0);
        hidden
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_never_used_twice_and_an_open_file_is_not_forgotten() {
        let mut nodes = Nodes::new(vec![0]);
        let first = nodes.found(vec![1]);
        assert_eq!((nodes.found(vec![1]), nodes.found(vec![0])), (first, ROOT));
        let open = nodes.open(first, Credentials::default());
        nodes.forget(first, 2);
        assert!(nodes.get(first).is_some() && nodes.open_by_handle(&[1]).is_some());
        assert!(nodes.close(open).is_none());
        nodes.forget(first, 0);
        assert!(nodes.get(first).is_none());
        assert_ne!(nodes.found(vec![1]), first);
        nodes.forget(ROOT, 99);
        assert!(nodes.get(ROOT).is_some());
    }
}
