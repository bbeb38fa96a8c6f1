//! Reading the rows of a file that the engine refuses: its pages, as they are, past what is damaged.
//!
//! The engine keeps a tree of tables, whose leaves name the root of each table's tree. A page is a leaf (1) or a
//! branch (2); where a page makes no sense, what hangs from it is left out, and everything else is read. A row counts
//! only if it matches its own checksum. A page is what its parent says by the parent's checksum of it: of one that is
//! not (damaged, or another one, maybe from long ago) the rows are read, it is said how many they are, and no other
//! row gives way to one of them that is older.
//!
//! Where rows are missing then, every page of the file is looked at, whether anything leads to it or not. What is found
//! so may be older, or have been deleted: it is said, unless the file's own sum of all rows shows that it is all of
//! them and nothing else.

use crate::checksum::{Sum, Summary, of_row};
use crate::format::{Content, FORMAT};
use crate::limits::{MAX_KEY, MAX_VALUE};
use crate::{ClusterId, Damage, Revision};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use xxhash_rust::xxh3::xxh3_128;

/// The trees are never deeper; what is deeper goes in a circle.
const MAX_DEPTH: usize = 24;
/// Bytes; the engine's own are larger.
const MIN_PAGE: u64 = 512;
/// Bytes of the engine's own, wherever the header does not say.
const PAGE: usize = 4096;
/// Bytes of a leaf that are looked at where its size is not known: a row as large as any, and as much beside it.
const MAX_LEAF: usize = 2 * (MAX_KEY + MAX_VALUE);
/// So many of the rows that were found so are named one by one.
const NAMED: usize = 20;
const LEAF: u8 = 1;
const BRANCH: u8 = 2;
/// Where the two commit slots are in the engine's header.
const SLOTS: [usize; 2] = [64, 192];

/// Reads what can be read of a file: what its newest commit leads to, else what the one before leads to with all that
/// is found of the newest.
pub(crate) fn salvage(file: &[u8], refused: Damage) -> Content {
    let newest = usize::from(file.get(9).is_some_and(|state| state & 1 != 0));
    let pages = Pages::of(file);
    let read = |slot: usize| pages.as_ref().and_then(|pages| pages.read(SLOTS[slot]));
    let mut content = match read(newest) {
        Some(content) if content.keys.size() + content.damage.keys < content.expected() => add_stray(file, content),
        Some(content) => content,
        None => add_stray(file, of_before(file, read(1 - newest))),
    };
    let found = content.keys.size() + content.damage.keys;
    let unreachable = content.expected().saturating_sub(found);
    if unreachable > 0 {
        content.damage.whole.push(format!("{unreachable} rows cannot be reached, and their keys are not known"));
    }
    if unreachable == 0 && content.damage.is_none() && Sum::of(content.rows()) != content.summary.sum {
        content.damage.whole.push("its rows are not those that were written; some may be older ones".to_owned());
    }
    content.damage.whole.extend(refused.whole);
    content
}

impl Content {
    /// How many rows there should be.
    fn expected(&self) -> usize {
        usize::try_from(self.summary.sum.rows).unwrap_or(usize::MAX)
    }

    /// What another version wrote is not guessed at.
    fn of_another(format: u64) -> Self {
        let whole = vec![format!("it has the format {format}, of which no damaged file is read")];
        Self { format: Some(format), damage: Damage { whole, ..Damage::default() }, ..Self::default() }
    }
}

/// What the commit before the newest leads to, if anything, and what the file says of the newest, wherever that stands.
fn of_before(file: &[u8], before: Option<Content>) -> Content {
    let (format, summary) = newest_summary(file);
    if let Some(other) = format.filter(|format| *format != FORMAT) {
        return Content::of_another(other);
    }
    let what = match before {
        Some(_) => "its newest commit cannot be found; it is read as of the one before",
        None => "its tables cannot be found",
    };
    let mut content = before.unwrap_or_default();
    content.damage.whole.insert(0, what.to_owned());
    if summary.revision >= content.summary.revision {
        (content.format, content.summary) = (format, summary);
    }
    content
}

/// A page that something refers to.
#[derive(Clone, Copy)]
struct Reference {
    page: u64,
    /// What it should have; `None` where whoever refers to it is not what it should be.
    checksum: Option<u128>,
}

impl Reference {
    /// A number (8 bytes) and a checksum (16).
    fn of(bytes: &[u8]) -> Option<Self> {
        let (page, checksum) = (bytes.get(..8)?.try_into().ok()?, bytes.get(8..24)?.try_into().ok()?);
        Some(Self { page: u64::from_le_bytes(page), checksum: Some(u128::from_le_bytes(checksum)) })
    }
}

struct Pages<'a> {
    file: &'a [u8],
    page: u64,
    region: u64,
    region_header: u64,
}

impl<'a> Pages<'a> {
    fn of(file: &'a [u8]) -> Option<Self> {
        let number = |at: usize| Some(u64::from(u32::from_le_bytes(file.get(at..at + 4)?.try_into().ok()?)));
        let (page, header_pages, pages) = (number(12)?, number(16)?, number(20)?);
        let region = header_pages.checked_add(pages)?.checked_mul(page)?;
        if page < MIN_PAGE {
            return None;
        }
        Some(Self { file, page, region, region_header: header_pages.checked_mul(page)? })
    }

    /// What a commit leads to; `None` where that is no table of rows.
    fn read(&self, slot: usize) -> Option<Content> {
        let mut tables = BTreeMap::new();
        self.walk(Reference::of(self.file.get(slot + 8..)?)?, None, &mut |name, definition, is_sure| {
            // Kind of table (1 byte), length (8), whether there is a root (1), the root.
            if let (Some(has_root), Some(mut root)) = (definition.get(9), definition.get(10..).and_then(Reference::of))
            {
                root.checksum = root.checksum.filter(|_| is_sure);
                tables.insert(name.to_vec(), Some(root).filter(|_| *has_root == 1));
            }
        });
        let (mut meta, mut is_sure) = (BTreeMap::new(), true);
        if let Some(Some(root)) = tables.get(&b"meta"[..]) {
            self.walk(*root, Some(8), &mut |name, value, is| {
                is_sure &= is;
                if let Ok(value) = value.try_into() {
                    meta.insert(name.to_vec(), u64::from_le_bytes(value));
                }
            });
        }
        let rows = tables.get(&b"rows"[..])?;
        let (format, summary) = said(&meta);
        if let Some(other) = format.filter(|format| is_sure && *format != FORMAT) {
            return Some(Content::of_another(other));
        }
        let mut content = Content { format: format.filter(|format| *format == FORMAT), ..Content::default() };
        let sealed = summary.is_some();
        if let Some(summary) = summary {
            content.summary = summary;
        } else {
            content.damage.whole.push("its summary does not match its checksum".to_owned());
        }
        let mut unsure = 0u64;
        if let Some(root) = rows {
            self.walk(*root, None, &mut |key, row, is_sure| {
                if let Some((revision, checksum, value)) = parts(row) {
                    unsure += u64::from(!is_sure);
                    if content.keys.get(key).is_none_or(|known| known.revision < revision) {
                        content.add(Bytes::copy_from_slice(key), revision, checksum, value);
                    }
                }
            });
        }
        if unsure > 0 {
            content.damage.whole.push(format!(
                "{unsure} rows are in pages that are not what was written there last: each is as it was written once, \
                 and may be an older one"
            ));
        }
        if !sealed {
            content.summary.revision = content.rows().map(|(_, revision, _)| revision).max().unwrap_or_default();
        }
        Some(content)
    }

    /// A page by its number: its index in the region (20 bits), the region (20 bits), and how often it is doubled.
    fn page(&self, number: u64) -> Option<&'a [u8]> {
        let doubled = u32::try_from(number >> 59).ok()?;
        let length = self.page.checked_shl(doubled)?;
        let index = number & (0xf_ffff >> doubled);
        let region = (number >> 20 & 0xf_ffff).checked_mul(self.region)?;
        let inside = self.region_header.checked_add(index.checked_mul(length)?)?;
        let start = self.page.checked_add(region)?.checked_add(inside)?;
        let range = usize::try_from(start).ok()?..usize::try_from(start.checked_add(length)?).ok()?;
        self.file.get(range)
    }

    /// Shows every pair of a tree, and whether its page is sure to be the one that belongs there.
    fn walk(&self, root: Reference, value_length: Option<usize>, show: &mut dyn FnMut(&[u8], &[u8], bool)) {
        let (mut seen, mut left) = (BTreeSet::new(), vec![(root, 0)]);
        while let Some((Reference { page: number, checksum }, depth)) = left.pop() {
            let Some(page) = self.page(number).filter(|_| depth <= MAX_DEPTH && seen.insert(number)) else { continue };
            let is = |used: Option<usize>| {
                let used = used.and_then(|end| page.get(..end));
                checksum.is_some() && used.map(xxh3_128) == checksum
            };
            match page {
                [LEAF, ..] => {
                    let is_sure = is(leaf_end(page, value_length));
                    leaf(page, value_length, &mut |key, value| show(key, value, is_sure));
                }
                [BRANCH, ..] => {
                    let is_sure = is(branch_end(page));
                    left.extend(
                        children(page).into_iter().map(|child| {
                            (Reference { checksum: child.checksum.filter(|_| is_sure), ..child }, depth + 1)
                        }),
                    );
                }
                _ => {}
            }
        }
    }
}

/// Adds the rows that no page leads to any more: of each key the newest.
fn add_stray(file: &[u8], mut content: Content) -> Content {
    if content.format.is_some_and(|format| format != FORMAT) {
        return content;
    }
    let newest = Some(content.summary.revision).filter(|revision| *revision > Revision(0));
    let mut added = BTreeSet::new();
    for page in leaves(file) {
        leaf(page, None, &mut |key, row| {
            let Some((revision, checksum, value)) = parts(row) else { return };
            let is_older = content.keys.get(key).is_some_and(|known| known.revision >= revision);
            let is_later = newest.is_some_and(|newest| revision > newest);
            if is_older || is_later || of_row(key, revision, value) != checksum {
                return;
            }
            // Of a row that is damaged where it should be, an older state is no better.
            let key = Bytes::copy_from_slice(key);
            if !content.damage.named.contains(&key) {
                content.add(key.clone(), revision, checksum, value);
                added.insert(key);
            }
        });
    }
    if newest.is_none() {
        content.summary.revision = content.rows().map(|(_, revision, _)| revision).max().unwrap_or_default();
    }
    if added.is_empty() {
        return content;
    }
    let is_all = Sum::of(content.rows()) == content.summary.sum;
    let why = if is_all {
        "they are as they were written last"
    } else {
        "each is as it was written once, and may be an older one, or have been deleted since"
    };
    let mut named: Vec<_> = added.iter().take(NAMED).map(|key| String::from_utf8_lossy(key)).collect();
    if added.len() > NAMED {
        named.push("...".into());
    }
    let count = added.len();
    content.damage.whole.push(format!("{count} rows are in pages that nothing leads to: {why} ({})", named.join(", ")));
    content
}

/// What the file says of itself, wherever it stands: the newest that matches its checksum, with its format.
fn newest_summary(file: &[u8]) -> (Option<u64>, Summary) {
    let mut newest = (None, Summary::default());
    for page in leaves(file) {
        let mut meta = BTreeMap::new();
        leaf(page, Some(8), &mut |name, value| {
            if let Ok(value) = value.try_into() {
                meta.insert(name.to_vec(), u64::from_le_bytes(value));
            }
        });
        if let (Some(format), Some(summary)) = said(&meta)
            && summary.revision >= newest.1.revision
        {
            newest = (Some(format), summary);
        }
    }
    newest
}

/// Every page that may be a leaf, with what comes after it: how large it is says only who refers to it.
fn leaves(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    let pages = (PAGE..file.len()).step_by(PAGE).map(|at| &file[at..file.len().min(at + MAX_LEAF)]);
    pages.filter(|page| page.len() > 4 && page[0] == LEAF)
}

/// The format that a file's `meta` names, and its summary, if that matches its checksum.
fn said(meta: &BTreeMap<Vec<u8>, u64>) -> (Option<u64>, Option<Summary>) {
    let said = |name: &str| meta.get(name.as_bytes()).copied();
    let number = |name: &str| said(name).unwrap_or(0);
    let summary = Summary {
        revision: Revision(number("revision")),
        sum: Sum { rows: number("rows"), digest: number("digest") },
        cluster: ClusterId::new(u128::from(number("cluster-high")) << 64 | u128::from(number("cluster-low"))),
    };
    (said("format"), Some(summary).filter(|summary| said("seal") == Some(summary.seal())))
}

/// A row's revision, checksum and value.
fn parts(row: &[u8]) -> Option<(Revision, u64, &[u8])> {
    let number = |at: usize| Some(u64::from_le_bytes(row.get(at..at + 8)?.try_into().ok()?));
    Some((Revision(number(0)?), number(8)?, row.get(16..)?))
}

fn count(page: &[u8]) -> usize {
    usize::from(u16::from_le_bytes([page[2], page[3]]))
}

fn end(page: &[u8], at: usize) -> Option<usize> {
    Some(u32::from_le_bytes(page.get(at..at + 4)?.try_into().ok()?) as usize)
}

/// A branch: type, padding, number of keys (2 bytes), padding (4); the children's checksums (16 each), their numbers.
fn children(page: &[u8]) -> Vec<Reference> {
    let children = count(page) + 1;
    let child = |index: usize| {
        let (checksum, number) = (8 + 16 * index, 8 + 16 * children + 8 * index);
        Some(Reference {
            page: u64::from_le_bytes(page.get(number..number + 8)?.try_into().ok()?),
            checksum: Some(u128::from_le_bytes(page.get(checksum..checksum + 16)?.try_into().ok()?)),
        })
    };
    (0..children).filter_map(child).collect()
}

/// Where a branch's keys end, whose ends (4 bytes each) come after the children: its checksum is of all before that.
fn branch_end(page: &[u8]) -> Option<usize> {
    let keys = count(page);
    end(page, 8 + 24 * (keys + 1) + 4 * keys.checked_sub(1)?)
}

/// Where a leaf's values end: its checksum is of all before that.
fn leaf_end(page: &[u8], value_length: Option<usize>) -> Option<usize> {
    let pairs = count(page);
    let last = 4 * pairs.checked_sub(1)?;
    match value_length {
        Some(length) => end(page, 4 + last)?.checked_add(length * pairs),
        None => end(page, 4 + 4 * pairs + last),
    }
}

/// A leaf: type, padding, number of pairs (2 bytes), the ends of keys, those of values (4 each; not of values that
/// all have one length), keys, values.
fn leaf(page: &[u8], value_length: Option<usize>, show: &mut dyn FnMut(&[u8], &[u8])) {
    let pairs = count(page);
    let ends = if value_length.is_some() { 1 } else { 2 };
    let keys = 4 + 4 * ends * pairs;
    let Some(values) = pairs.checked_sub(1).and_then(|last| end(page, 4 + 4 * last)) else { return };
    for index in 0..pairs {
        let range = |first: usize, ends: usize| -> Option<Range<usize>> {
            let from = if index == 0 { first } else { end(page, ends + 4 * (index - 1))? };
            Some(from..end(page, ends + 4 * index)?)
        };
        let value = match value_length {
            Some(length) => Some(values + index * length..values + (index + 1) * length),
            None => range(values, 4 + 4 * pairs),
        };
        let pair = range(keys, 4).and_then(|key| page.get(key)).zip(value.and_then(|value| page.get(value)));
        if let Some((key, value)) = pair {
            show(key, value);
        }
    }
}
