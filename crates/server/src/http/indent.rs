//! JSON with lines and indents, for people who read answers as they are.

use bytes::{Buf as _, BufMut, Bytes, BytesMut};

/// What is indented at a time, about (bytes).
const PIECE: usize = 64 << 10;

/// Indents JSON that comes in pieces, two spaces for each step, as upstream does; what is empty stays on its line.
#[derive(Clone, Debug, Default)]
pub struct Indenter {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
    /// A list or an object was begun, and nothing of it is written yet.
    is_begun: bool,
}

impl Indenter {
    /// The next piece of what is left, which gets shorter: small ones, since what stands deep in other lists is many
    /// times as large with its indents (X4).
    pub fn next_of(&mut self, left: &mut Bytes) -> Bytes {
        let mut text = BytesMut::with_capacity(PIECE.min(left.len().saturating_mul(2)));
        let mut taken = 0;
        for byte in left.iter() {
            if text.len() >= PIECE {
                break;
            }
            self.take(&mut text, *byte);
            taken += 1;
        }
        left.advance(taken);
        text.freeze()
    }

    fn take(&mut self, text: &mut BytesMut, byte: u8) {
        if self.in_string {
            text.put_u8(byte);
            self.in_string = self.is_escaped || byte != b'"';
            self.is_escaped = !self.is_escaped && byte == b'\\';
            return;
        }
        if byte.is_ascii_whitespace() {
            return;
        }
        let is_end = matches!(byte, b']' | b'}');
        if std::mem::take(&mut self.is_begun) {
            if !is_end {
                self.depth += 1;
                self.line(text);
            }
        } else if is_end {
            self.depth = self.depth.saturating_sub(1);
            self.line(text);
        }
        text.put_u8(byte);
        match byte {
            b'{' | b'[' => self.is_begun = true,
            b',' => self.line(text),
            b':' => text.put_u8(b' '),
            b'"' => self.in_string = true,
            _ => {}
        }
    }

    fn line(&self, text: &mut BytesMut) {
        text.put_u8(b'\n');
        text.put_bytes(b' ', 2 * self.depth);
    }
}

/// JSON that is indented as it is read, a piece at a time.
#[derive(Clone, Debug)]
pub struct Indented {
    indenter: Indenter,
    left: Bytes,
    next: Option<Bytes>,
}

impl Indented {
    /// The text itself where it is small, else its pieces.
    pub fn new(json: Bytes) -> Result<Bytes, Self> {
        let mut indented = Self { indenter: Indenter::default(), left: json, next: None };
        let first = indented.indenter.next_of(&mut indented.left);
        if indented.left.is_empty() { Ok(first) } else { Err(Self { next: Some(first), ..indented }) }
    }

    /// How many bytes it keeps in memory, about.
    pub fn weight(&self) -> u64 {
        (self.left.len() + PIECE) as u64
    }
}

impl Iterator for Indented {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let is_more = self.next.is_some() || !self.left.is_empty();
        is_more.then(|| self.next.take().unwrap_or_else(|| self.indenter.next_of(&mut self.left)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pieces_become_what_the_whole_becomes() {
        let value = json!({ "a": [1, { "b": "x,{\"]:\\" }, [], {}], "c": null, "d": { "e": "\\" }, "f": "\\\"" });
        let text = value.to_string();
        let whole = serde_json::to_string_pretty(&value).expect("JSON");
        for length in 1..text.len() {
            let mut indenter = Indenter::default();
            let pieces = text.as_bytes().chunks(length).map(Bytes::copy_from_slice);
            let pieces: Vec<u8> = pieces.flat_map(|mut piece| indenter.next_of(&mut piece)).collect();
            assert_eq!(String::from_utf8_lossy(&pieces), whole, "pieces of {length}");
        }
    }

    #[test]
    fn x4_depth_makes_many_pieces_and_no_large_one() {
        let value = (0..100).fold(json!(vec![0; 20_000]), |inner, _| json!([inner]));
        let whole = serde_json::to_string_pretty(&value).expect("JSON");
        let mut pieces = Indented::new(Bytes::from(value.to_string())).expect_err("not small");
        let mut text = Vec::new();
        for piece in &mut pieces {
            assert!(piece.len() <= PIECE + 512, "{}", piece.len());
            text.extend_from_slice(&piece);
        }
        assert!(text == whole.as_bytes() && pieces.next().is_none());
        assert_eq!(Indented::new(Bytes::from("[]")).expect("small"), "[]");
    }
}
