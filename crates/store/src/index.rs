//! What rows are found by beside their keys: a text that is in their values, so that whoever asks for the few rows with
//! one text looks at no others, and is woken by no others.

use crate::Event;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};

/// An index of the rows below a prefix.
#[derive(Clone, Copy, Debug)]
pub struct Index {
    /// Which rows.
    pub prefix: &'static [u8],
    /// By what a row with this value is found; `None` where that cannot be read, so that whoever asks for any text has
    /// to see the row.
    pub text_of: fn(&[u8]) -> Option<Bytes>,
}

/// Who a change concerns among those who ask for one text.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Concern {
    /// Nobody: the row is not in the index.
    #[default]
    Nobody,
    /// Those who ask for what it was found by, or is.
    Of([Option<Bytes>; 2]),
    /// Everybody: what it is found by is not known.
    Everybody,
}

impl Concern {
    pub fn is_of(&self, text: &Bytes) -> bool {
        match self {
            Self::Nobody => false,
            Self::Of(texts) => texts.iter().flatten().any(|of| of == text),
            Self::Everybody => true,
        }
    }
}

impl Index {
    /// Who an event concerns.
    pub(crate) fn concern(&self, event: &Event) -> Concern {
        if !event.key.starts_with(self.prefix) {
            return Concern::Nobody;
        }
        let was = event.previous.as_ref().map(|value| (self.text_of)(value));
        let is = (!event.deleted).then(|| (self.text_of)(&event.value));
        if was == Some(None) || is == Some(None) {
            return Concern::Everybody;
        }
        let (was, is) = (was.flatten(), is.flatten());
        let is = is.filter(|is| was.as_ref() != Some(is));
        Concern::Of([was, is])
    }
}

/// The keys of the indexed rows, by what these are found by; `None`: not known.
#[derive(Debug, Default)]
pub(crate) struct Found(BTreeMap<Option<Bytes>, BTreeSet<Bytes>>);

impl Found {
    pub fn insert(&mut self, text: Option<Bytes>, key: Bytes) {
        self.0.entry(text).or_default().insert(key);
    }

    pub fn remove(&mut self, text: &Option<Bytes>, key: &Bytes) {
        let Some(keys) = self.0.get_mut(text) else { return };
        keys.remove(key);
        if keys.is_empty() {
            self.0.remove(text);
        }
    }

    /// Takes in a change.
    pub fn apply(&mut self, concern: &Concern, index: &Index, event: &Event) {
        match concern {
            Concern::Nobody => {}
            Concern::Of([was, is]) => {
                if event.previous.is_some() && (event.deleted || is.is_some()) {
                    self.remove(was, &event.key);
                }
                // Where it is found by the same as before, only that is named.
                if let Some(is) = is {
                    self.insert(Some(is.clone()), event.key.clone());
                }
            }
            Concern::Everybody => {
                if let Some(previous) = &event.previous {
                    self.remove(&(index.text_of)(previous), &event.key);
                }
                if !event.deleted {
                    self.insert((index.text_of)(&event.value), event.key.clone());
                }
            }
        }
    }

    /// The keys of the rows with a text, and of those of which it is not known, in order.
    pub fn keys(&self, text: &Bytes) -> BTreeSet<&Bytes> {
        let all = [self.0.get(&Some(text.clone())), self.0.get(&None)];
        all.into_iter().flatten().flatten().collect()
    }
}
