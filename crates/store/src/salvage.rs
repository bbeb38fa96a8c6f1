//! Reading the rows of a file that the engine refuses: its pages, as they are, past what is damaged.
//!
//! The engine keeps a tree of tables, whose leaves name the root of each table's tree. A page is a leaf (1) or a
//! branch (2); where a page makes no sense, what hangs from it is left out, and everything else is read. A row counts
//! only if it matches its own checksum, so a page that was taken for another one does no harm.

use crate::checksum::{Sum, Summary};
use crate::format::{Content, FORMAT};
use crate::{ClusterId, Damage, Revision};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// The trees are never deeper; what is deeper goes in a circle.
const MAX_DEPTH: usize = 24;
/// Bytes; the engine's own are larger.
const MIN_PAGE: u64 = 512;
const LEAF: u8 = 1;
const BRANCH: u8 = 2;
/// Where the two commit slots are in the engine's header.
const SLOTS: [usize; 2] = [64, 192];

/// Reads what can be read of a file, as of its newest commit, else as of the one before.
pub(crate) fn salvage(file: &[u8], refused: Damage) -> Content {
    let mut content = Content::default();
    if let Some(pages) = Pages::of(file) {
        let newest = usize::from(file.get(9).is_some_and(|state| state & 1 != 0));
        for slot in [newest, 1 - newest] {
            content = pages.read(SLOTS[slot]).unwrap_or_default();
            if content.format.is_some() || content.keys.size() > 0 {
                break;
            }
        }
    }
    let found = (content.keys.size() + content.damage.keys) as u64;
    let unreachable = content.summary.sum.rows.saturating_sub(found);
    if unreachable > 0 {
        content.damage.whole.push(format!("{unreachable} rows cannot be reached, and their keys are not known"));
    }
    content.damage.whole.extend(refused.whole);
    content
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

    fn read(&self, slot: usize) -> Option<Content> {
        let mut tables = BTreeMap::new();
        self.walk(self.number(slot + 8)?, None, &mut |name, definition| {
            // Kind of table (1 byte), length (8), whether there is a root (1), the root.
            if let Some(root) = definition.get(10..18).and_then(|root| root.try_into().ok()) {
                tables.insert(name.to_vec(), u64::from_le_bytes(root));
            }
        });
        let mut meta = BTreeMap::new();
        if let Some(root) = tables.get(&b"meta"[..]) {
            self.walk(*root, Some(8), &mut |name, value| {
                if let Ok(value) = value.try_into() {
                    meta.insert(name.to_vec(), u64::from_le_bytes(value));
                }
            });
        }
        let said = |name: &str| meta.get(name.as_bytes()).copied();
        let mut content = Content { format: said("format"), ..Content::default() };
        let cluster =
            u128::from(said("cluster-high").unwrap_or(0)) << 64 | u128::from(said("cluster-low").unwrap_or(0));
        let summary = Summary {
            revision: Revision(said("revision").unwrap_or(0)),
            sum: Sum { rows: said("rows").unwrap_or(0), digest: said("digest").unwrap_or(0) },
            cluster: ClusterId::new(cluster),
        };
        let sealed = said("seal") == Some(summary.seal());
        if sealed {
            content.summary = summary;
        } else {
            content.damage.whole.push("its summary does not match its checksum".to_owned());
        }
        let rows = tables.get(&b"rows"[..]).filter(|_| content.format.is_none_or(|format| format == FORMAT))?;
        self.walk(*rows, None, &mut |key, row| {
            let number = |at: usize| Some(u64::from_le_bytes(row.get(at..at + 8)?.try_into().ok()?));
            if let (Some(revision), Some(checksum), Some(value)) = (number(0), number(8), row.get(16..)) {
                content.add(Bytes::copy_from_slice(key), Revision(revision), checksum, value);
            }
        });
        if !sealed {
            content.summary.revision = content.rows().map(|(_, revision, _)| revision).max().unwrap_or_default();
        }
        Some(content)
    }

    fn number(&self, at: usize) -> Option<u64> {
        Some(u64::from_le_bytes(self.file.get(at..at + 8)?.try_into().ok()?))
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

    /// Shows every pair of a tree.
    fn walk(&self, root: u64, value_length: Option<usize>, show: &mut dyn FnMut(&[u8], &[u8])) {
        let (mut seen, mut left) = (BTreeSet::new(), vec![(root, 0)]);
        while let Some((number, depth)) = left.pop() {
            let Some(page) = self.page(number).filter(|_| depth <= MAX_DEPTH && seen.insert(number)) else { continue };
            match page {
                [LEAF, ..] => leaf(page, value_length, show),
                [BRANCH, ..] => left.extend(children(page).into_iter().map(|child| (child, depth + 1))),
                _ => {}
            }
        }
    }
}

fn count(page: &[u8]) -> usize {
    usize::from(u16::from_le_bytes([page[2], page[3]]))
}

fn end(page: &[u8], at: usize) -> Option<usize> {
    Some(u32::from_le_bytes(page.get(at..at + 4)?.try_into().ok()?) as usize)
}

/// A branch: type, padding, number of keys (2 bytes), padding (4); the children's checksums (16 each), their numbers.
fn children(page: &[u8]) -> Vec<u64> {
    let children = count(page) + 1;
    let first = 8 + 16 * children;
    let number = |at: usize| Some(u64::from_le_bytes(page.get(at..at + 8)?.try_into().ok()?));
    (0..children).filter_map(|index| number(first + 8 * index)).collect()
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
