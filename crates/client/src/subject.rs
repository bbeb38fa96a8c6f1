//! The subject of a certificate: whom it is for (`CN`) and which groups they are in (each `O`).
//!
//! One reading for all who decide by it: a subject that others might read differently (a second `CN`, a name in an
//! encoding that not everybody reads) is nobody's.

use x509_parser::oid_registry::{OID_X509_COMMON_NAME, OID_X509_ORGANIZATION_NAME};
use x509_parser::x509::X509Name;

/// Whom a certificate is for. What else a subject may say (`C`, `OU`, …) means nothing here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// `CN`; empty where there is none.
    pub name: String,
    /// Each `O`, in order.
    pub groups: Vec<String>,
}

/// DER's tag of a sequence.
pub const SEQUENCE: u8 = 0x30;
/// Other tags of DER.
const OBJECT_ID: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const SET: u8 = 0x31;
/// 2.5.4.3 and 2.5.4.10.
const COMMON_NAME: [u8; 3] = [0x55, 4, 3];
const ORGANIZATION: [u8; 3] = [0x55, 4, 10];

impl Subject {
    /// Reads a subject; `None` where it has more than one `CN`, or one of its names is not text that everybody reads.
    pub fn read(name: &X509Name<'_>) -> Option<Self> {
        let mut names = Vec::new();
        let mut groups = Vec::new();
        for attribute in name.iter_attributes() {
            if *attribute.attr_type() == OID_X509_COMMON_NAME {
                names.push(attribute.as_str().ok()?.to_owned());
            } else if *attribute.attr_type() == OID_X509_ORGANIZATION_NAME {
                groups.push(attribute.as_str().ok()?.to_owned());
            }
        }
        // What follows an attribute that the parser does not know is not seen by it, but may be by others.
        let is_whole = name.as_raw().len() == written_length(name);
        let name = names.pop().unwrap_or_default();
        (names.is_empty() && is_whole).then_some(Self { name, groups })
    }

    /// The subject as DER: a sequence of one `CN` (where there is one) and every `O`.
    pub fn der(&self) -> Vec<u8> {
        let attribute = |id: &[u8], text: &str| {
            let pair = [tagged(OBJECT_ID, id), tagged(UTF8_STRING, text.as_bytes())].concat();
            tagged(SET, &tagged(SEQUENCE, &pair))
        };
        let name = (!self.name.is_empty()).then(|| attribute(&COMMON_NAME, &self.name));
        let groups = self.groups.iter().map(|group| attribute(&ORGANIZATION, group));
        tagged(SEQUENCE, &name.into_iter().chain(groups).collect::<Vec<_>>().concat())
    }
}

/// How many bytes a name takes that is made of the attributes that were read of it.
fn written_length(name: &X509Name<'_>) -> usize {
    let with_header = |content: usize| content + tag_and_length(0, content).len();
    let sets = name.iter_rdn().map(|set| {
        let attributes = set.iter().map(|attribute| {
            let id = with_header(attribute.attr_type().as_bytes().len());
            with_header(id + with_header(attribute.attr_value().data.len()))
        });
        with_header(attributes.sum())
    });
    with_header(sets.sum())
}

/// A value of DER: tag, length, content.
pub fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut all = tag_and_length(tag, content.len());
    all.extend_from_slice(content);
    all
}

fn tag_and_length(tag: u8, length: usize) -> Vec<u8> {
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => vec![tag, short],
        _ => {
            let bytes = length.to_be_bytes();
            let bytes: Vec<u8> = bytes.into_iter().skip_while(|byte| *byte == 0).collect();
            // No more than the eight bytes of a usize.
            [&[tag, 0x80 | u8::try_from(bytes.len()).unwrap_or(8)][..], &bytes].concat()
        }
    }
}

/// How long the tag and the length before a content are, in bytes.
pub fn header_length(der: &[u8]) -> usize {
    match der.get(1) {
        Some(byte) if byte & 0x80 != 0 => 2 + usize::from(byte & 0x7f),
        _ => 2,
    }
}
