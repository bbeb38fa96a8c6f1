//! What goes in and what comes out: the seam between the store and those who use it.

use bytes::Bytes;

/// A point in the store's history; 0 is the empty store. Never goes backwards (A3).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Revision(pub u64);

impl Revision {
    /// The revision after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Which cluster a store belongs to (A11). Never zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClusterId(pub(crate) u128);

impl ClusterId {
    /// From random bits; zero is nobody's.
    pub fn new(bits: u128) -> Option<Self> {
        (bits != 0).then_some(Self(bits))
    }

    /// From 32 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        digits.then(|| u128::from_str_radix(text, 16).ok()).flatten().and_then(Self::new)
    }
}

/// 32 hexadecimal digits.
impl std::fmt::Display for ClusterId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl std::fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// What was found wrong in a store's file (A10).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// How many rows do not match their checksum.
    pub keys: usize,
    /// Their keys; only the first thousand.
    pub named: Vec<Bytes>,
    /// What is wrong beyond single rows, in words.
    pub whole: Vec<String>,
}

impl Damage {
    /// Nothing is wrong.
    pub fn is_none(&self) -> bool {
        self.keys == 0 && self.whole.is_empty()
    }

    pub(crate) fn add_key(&mut self, key: Bytes, limit: usize) {
        self.keys += 1;
        if self.named.len() < limit {
            self.named.push(key);
        }
    }
}

/// One phrase: `the row of key /core/pods/a/b does not match its checksum (and 2 more)`.
impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let first = self.named.first().map(|key| {
            let more = if self.keys > 1 { format!(" (and {} more)", self.keys - 1) } else { String::new() };
            format!("the row of key {} does not match its checksum{more}", String::from_utf8_lossy(key))
        });
        let parts: Vec<&str> = first.as_deref().into_iter().chain(self.whole.iter().map(String::as_str)).collect();
        f.write_str(&parts.join("; "))
    }
}

/// Bytes to be stored. Where `revision_at` is set, the decimal revision of the write is spliced in at that
/// byte offset when it is committed, so that an encoded object carries its own version and is served as stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Encoded {
    /// The bytes, without the revision.
    pub bytes: Bytes,
    /// Where the revision's digits go; at most the length of `bytes`.
    pub revision_at: Option<usize>,
}

impl Encoded {
    /// Bytes that carry no revision.
    pub fn plain(bytes: impl Into<Bytes>) -> Self {
        Self { bytes: bytes.into(), revision_at: None }
    }

    /// The bytes as they are stored by a write at `revision`.
    ///
    /// `{"resourceVersion":""}` with the offset at 20 and revision 7 becomes `{"resourceVersion":"7"}`.
    /// A hole beyond the end is no hole (a transaction with one is refused before it gets here).
    pub fn at(&self, revision: Revision) -> Bytes {
        let Some((before, after)) = self.revision_at.and_then(|offset| self.bytes.split_at_checked(offset)) else {
            return self.bytes.clone();
        };
        let digits = revision.0.to_string();
        let mut whole = Vec::with_capacity(self.bytes.len() + digits.len());
        whole.extend_from_slice(before);
        whole.extend_from_slice(digits.as_bytes());
        whole.extend_from_slice(after);
        whole.into()
    }
}

/// One change.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Makes or replaces a key.
    Put { key: Bytes, value: Encoded },
    /// Takes a key away. `last` is what watchers are told the last state was (the object with its new revision).
    /// The key must be there: a delete of nothing fails the transaction like an expectation that does not hold.
    Delete { key: Bytes, last: Encoded },
}

impl Op {
    /// The key that is changed.
    pub fn key(&self) -> &Bytes {
        match self {
            Self::Put { key, .. } | Self::Delete { key, .. } => key,
        }
    }

    /// The bytes that come with the change.
    pub fn value(&self) -> &Encoded {
        match self {
            Self::Put { value, .. } => value,
            Self::Delete { last, .. } => last,
        }
    }
}

/// What must hold for a transaction to be carried out.
#[derive(Clone, Debug, PartialEq)]
pub enum Expect {
    /// There is no such key.
    Absent,
    /// The key was last changed at exactly this revision.
    Unchanged(Revision),
}

/// Ops that happen together or not at all.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Txn {
    /// All must hold, as of just before the ops.
    pub expect: Vec<(Bytes, Expect)>,
    /// In order; each gets the next revision.
    pub ops: Vec<Op>,
}

/// A key's state at one revision.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: Bytes,
    /// The bytes as served.
    pub value: Bytes,
    /// When it was last changed.
    pub revision: Revision,
}

/// What happened to a key.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// When.
    pub revision: Revision,
    /// To which key.
    pub key: Bytes,
    /// The new bytes, or, for a deletion, the last state.
    pub value: Bytes,
    /// The bytes before; `None` when the key was made.
    pub previous: Option<Bytes>,
    /// Whether the key is gone.
    pub deleted: bool,
}

/// A transaction that is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The revision of the first op.
    pub first: Revision,
    /// The revision of the last op. A transaction without ops has the store's revision in both.
    pub last: Revision,
}

/// A part of a range, in key order, all as of one revision.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// The entries, at most as many as were asked for.
    pub entries: Vec<Entry>,
    /// Whether there are keys after the last entry. Continue with `after` = its key and `at` = `revision`.
    pub more: bool,
    /// The revision that the page shows.
    pub revision: Revision,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_names_the_first_key_and_counts_all() {
        let mut damage = Damage::default();
        let mut said = Vec::new();
        for key in ["/a", "/b", "/c"] {
            damage.add_key(Bytes::from(key), 2);
            said.push(damage.to_string());
        }
        let first = "the row of key /a does not match its checksum";
        assert_eq!(said, [first.to_owned(), format!("{first} (and 1 more)"), format!("{first} (and 2 more)")]);
        assert_eq!((damage.keys, &damage.named[..]), (3, &[Bytes::from("/a"), Bytes::from("/b")][..]));
        damage.whole.push("and more".to_owned());
        assert_eq!(damage.to_string(), format!("{first} (and 2 more); and more"));
    }
}
