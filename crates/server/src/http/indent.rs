//! JSON with lines and indents, for people who read answers as they are.

use bytes::{BufMut, Bytes, BytesMut};

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
    /// The next piece.
    pub fn write(&mut self, piece: &[u8]) -> Bytes {
        let mut text = BytesMut::with_capacity(piece.len() * 2);
        for byte in piece {
            self.take(&mut text, *byte);
        }
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
            let pieces: Vec<u8> = text.as_bytes().chunks(length).flat_map(|piece| indenter.write(piece)).collect();
            assert_eq!(String::from_utf8_lossy(&pieces), whole, "pieces of {length}");
        }
    }
}
