//! `GET` of a collection: bytes as they are stored, at one revision.

use bytes::Bytes;
use mainstay_api::Status;
use mainstay_store::{Entry, ReadError, Revision, Store};

use super::codec;
use super::options::{Continue, ListOptions, Match, Selection};

/// How many keys are read at a time when a selector sorts out most of them.
const CHUNK: usize = 500;

/// A list, or a part of one.
#[derive(Debug)]
pub struct List {
    /// The state that it shows.
    pub revision: Revision,
    /// The token of the next part; empty when this is all.
    pub next: String,
    /// How many items are left, where that is known.
    pub remaining: Option<usize>,
    /// In order of their keys.
    pub items: Vec<Entry>,
}

/// Lists what is selected. All parts of a list that was begun with `limit` show one revision (A5, A7).
pub fn list(store: &Store, selection: &Selection, options: &ListOptions) -> Result<List, Status> {
    let prefix = selection.prefix();
    let at = match options.version {
        Match::Newest => None,
        Match::NotOlderThan(revision) => {
            let newest = store.revision();
            if revision > newest {
                return Err(Status::too_large_resource_version(revision.0, newest.0));
            }
            None
        }
        Match::Exact(revision) => Some(revision),
    };
    let fails = |error: ReadError| match (&error, &options.from) {
        (ReadError::Compacted { .. }, Some(from)) => Status::expired_continue(from.of_what_there_is(&prefix)),
        _ => read_error(error),
    };
    let since = options.since;
    let limit = if options.limit == 0 { usize::MAX } else { options.limit };
    if selection.is_everything() {
        let after = options.from.as_ref().map(|from| &from.after[..]);
        let page = store.range(&prefix, after, limit, at).map_err(fails)?;
        // They go out as they are in memory, where one may be that nobody could open (A10).
        page.entries.iter().try_for_each(|entry| codec::is_open(&entry.value))?;
        let (mut next, mut remaining) = (String::new(), None);
        if let Some(last) = page.entries.last().filter(|_| page.more) {
            // Counted once, for all parts show one state.
            let left = options.from.as_ref().and_then(|from| from.left?.checked_sub(page.entries.len()));
            let left = match left {
                Some(left) => left,
                None => store.count_after(&prefix, &last.key, page.revision).map_err(fails)?,
            };
            remaining = Some(left);
            next = Continue { revision: page.revision, after: last.key.clone(), left: remaining, since }.token(&prefix);
        }
        return Ok(List { revision: page.revision, next, remaining, items: page.entries });
    }
    let found = selection.index_text().filter(|_| at.is_none() && options.from.is_none());
    if let Some(page) = found.and_then(|text| store.found(&prefix, &text, limit)) {
        let (revision, mut items) = (page.revision, Vec::with_capacity(page.entries.len()));
        for entry in page.entries {
            if selection.matches(&entry.value)? {
                items.push(entry);
            }
        }
        return Ok(List { revision, next: String::new(), remaining: None, items });
    }
    select(store, selection, &prefix, options, limit, at).map_err(|error| match error {
        Failed::Read(error) => fails(error),
        Failed::Status(status) => status,
    })
}

enum Failed {
    Read(ReadError),
    Status(Status),
}

fn select(
    store: &Store,
    selection: &Selection,
    prefix: &Bytes,
    options: &ListOptions,
    limit: usize,
    mut at: Option<Revision>,
) -> Result<List, Failed> {
    let mut after = options.from.as_ref().map(|from| from.after.clone());
    let mut items = Vec::new();
    loop {
        // Without a limit one read has it all; otherwise later reads are pinned to the first one's revision.
        let chunk = if limit == usize::MAX { usize::MAX } else { CHUNK };
        let page = store.range(prefix, after.as_deref(), chunk, at).map_err(Failed::Read)?;
        at = Some(page.revision);
        for (index, entry) in page.entries.iter().enumerate() {
            if !selection.matches(&entry.value).map_err(Failed::Status)? {
                continue;
            }
            items.push(entry.clone());
            if items.len() == limit {
                let is_last = !page.more && index + 1 == page.entries.len();
                let after = entry.key.clone();
                let next = Continue { revision: page.revision, after, left: None, since: options.since };
                let next = next.token(prefix);
                let next = if is_last { String::new() } else { next };
                return Ok(List { revision: page.revision, next, remaining: None, items });
            }
        }
        match page.entries.last().filter(|_| page.more) {
            Some(last) => after = Some(last.key.clone()),
            None => return Ok(List { revision: page.revision, next: String::new(), remaining: None, items }),
        }
    }
}

/// What a revision that cannot be shown is for a client (A7).
pub fn read_error(error: ReadError) -> Status {
    match error {
        ReadError::Compacted { asked, compacted } => Status::too_old(asked.0, compacted.0),
        ReadError::Behind => Status::store_is_silent("the newest state is not known"),
        ReadError::Future { asked, newest } => Status::too_large_resource_version(asked.0, newest.0),
    }
}
