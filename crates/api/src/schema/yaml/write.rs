//! JSON values as YAML, as upstream answers them: block style, keys in order, lists as far left as their key.
//!
//! Whoever reads it as YAML 1.1 or 1.2 gets the same value back: a string that either would take for something else is
//! quoted.

use serde_json::{Map, Value};

use super::plain;

/// A key above so many bytes stands on a line of its own: readers look no further for its colon (1,024 characters).
const MAX_SIMPLE_KEY: usize = 128;

/// Spaces that the lines of one document, or of one item, are indented by altogether (bytes): what stands deep in other
/// lists and is long itself would otherwise be many times as large as its JSON (X4). What is beyond is written on one
/// line, in flow style.
const MAX_INDENTS: usize = 4 << 20;

/// A document.
pub fn write(value: &Value) -> String {
    let mut text = String::new();
    Writer { text: &mut text, left: MAX_INDENTS }.block(value, 0, true);
    text
}

/// Such items of a list as stand below their key in a map that is not indented: `- a: 1\n`.
pub fn write_item(text: &mut String, item: &Value) {
    text.push_str("- ");
    Writer { text, left: MAX_INDENTS }.block(item, 1, true);
}

struct Writer<'a> {
    text: &'a mut String,
    /// Of [`MAX_INDENTS`].
    left: usize,
}

impl Writer<'_> {
    /// A value whose lines begin at this depth; the first of them is begun already where `is_begun` says so.
    fn block(&mut self, value: &Value, depth: usize, is_begun: bool) {
        match value {
            Value::Object(map) if !map.is_empty() && self.has_room(map.len(), depth) => {
                self.mapping(map, depth, is_begun);
            }
            Value::Array(items) if !items.is_empty() && self.has_room(items.len(), depth) => {
                self.sequence(items, depth, is_begun);
            }
            _ => {
                self.begin(depth, is_begun);
                // Lines without any indent could begin a document.
                self.inline(value, depth.max(1));
                self.text.push('\n');
            }
        }
    }

    fn mapping(&mut self, map: &Map<String, Value>, depth: usize, mut is_begun: bool) {
        for (key, value) in map {
            self.begin(depth, std::mem::take(&mut is_begun));
            if key.len() > MAX_SIMPLE_KEY {
                self.text.push_str("? ");
                quoted(self.text, key);
                self.text.push('\n');
                self.begin(depth, false);
            } else {
                line(self.text, key);
            }
            self.text.push(':');
            match value {
                Value::Object(map) if !map.is_empty() && self.has_room(map.len(), depth + 1) => {
                    self.text.push('\n');
                    self.mapping(map, depth + 1, false);
                }
                Value::Array(items) if !items.is_empty() && self.has_room(items.len(), depth) => {
                    self.text.push('\n');
                    self.sequence(items, depth, false);
                }
                _ => {
                    self.text.push(' ');
                    self.inline(value, depth + 1);
                    self.text.push('\n');
                }
            }
        }
    }

    fn sequence(&mut self, items: &[Value], depth: usize, mut is_begun: bool) {
        for item in items {
            self.begin(depth, std::mem::take(&mut is_begun));
            self.text.push_str("- ");
            self.block(item, depth + 1, true);
        }
    }

    /// Whether so many lines, and as many for their keys, may still be indented by this depth.
    fn has_room(&self, lines: usize, depth: usize) -> bool {
        lines.saturating_mul(4 * depth) <= self.left
    }

    /// Two spaces for each step of depth, unless the line is begun.
    fn begin(&mut self, depth: usize, is_begun: bool) {
        if !is_begun {
            self.left = self.left.saturating_sub(2 * depth);
            self.text.extend(std::iter::repeat_n("  ", depth));
        }
    }

    /// What follows on a line that is begun: a scalar, or everything else in flow style.
    fn inline(&mut self, value: &Value, depth: usize) {
        match value {
            Value::String(string) if is_literal(string) && self.has_room(string.matches('\n').count(), depth) => {
                self.literal(string, depth);
            }
            Value::String(string) => line(self.text, string),
            other => flow(self.text, other),
        }
    }

    /// `|`, and how the end of the text is meant: no line end (`-`), one, or all that are there (`+`).
    fn literal(&mut self, string: &str, depth: usize) {
        let body = string.strip_suffix('\n');
        self.text.push_str(match body {
            None => "|-",
            Some(body) if body.ends_with('\n') => "|+",
            Some(_) => "|",
        });
        for line in body.unwrap_or(string).split('\n') {
            self.text.push('\n');
            if !line.is_empty() {
                self.begin(depth, false);
                self.text.push_str(line);
            }
        }
    }
}

/// In one line: `{"a": [1, "b"]}`.
fn flow(text: &mut String, value: &Value) {
    match value {
        Value::String(string) => quoted(text, string),
        Value::Array(items) => {
            text.push('[');
            for (place, item) in items.iter().enumerate() {
                text.push_str(if place == 0 { "" } else { ", " });
                flow(text, item);
            }
            text.push(']');
        }
        Value::Object(map) => {
            text.push('{');
            for (place, (key, value)) in map.iter().enumerate() {
                text.push_str(if place == 0 { "" } else { ", " });
                text.push_str(if key.len() > MAX_SIMPLE_KEY { "? " } else { "" });
                quoted(text, key);
                text.push_str(": ");
                flow(text, value);
            }
            text.push('}');
        }
        // Numbers and the other words are JSON's.
        other => text.push_str(&other.to_string()),
    }
}

/// Lines that can stand as they are: the first of them says how far they are indented, and so begins with no space.
fn is_literal(string: &str) -> bool {
    string.contains('\n')
        && !string.starts_with([' ', '\t', '\n'])
        && string.chars().all(|letter| matches!(letter, '\n' | '\t') || is_printable(letter))
}

/// A string on one line: plain where nothing else can be meant by it.
fn line(text: &mut String, string: &str) {
    if !string.chars().all(is_printable) || is_other(string) {
        quoted(text, string);
    } else if is_plain(string) {
        text.push_str(string);
    } else {
        text.push('\'');
        text.push_str(&string.replace('\'', "''"));
        text.push('\'');
    }
}

/// Whether a reader would take the plain text for something that is no string: what the reader of this house takes so,
/// and dates, times of day (base 60) and the two words that YAML 1.1 reserves.
fn is_other(string: &str) -> bool {
    let digits = string.strip_prefix(['-', '+']).unwrap_or(string);
    let is_number_of_old =
        digits.starts_with(|first: char| first.is_ascii_digit()) && (digits.contains(':') || is_date(digits));
    !plain(string).is_string() || is_number_of_old || matches!(string, "=" | "<<")
        // Infinities and what is no number.
        || matches!(digits.to_ascii_lowercase().as_str(), ".inf" | ".nan")
}

/// `2026-1…`.
fn is_date(digits: &str) -> bool {
    let bytes = digits.as_bytes();
    bytes.len() > 5 && bytes[..4].iter().all(u8::is_ascii_digit) && bytes[4] == b'-' && bytes[5].is_ascii_digit()
}

/// Whether the grammar lets it stand without quotes.
fn is_plain(string: &str) -> bool {
    let mut letters = string.chars();
    let is_begun_well = match (letters.next(), letters.next()) {
        (Some('-'), Some(second)) => second != ' ' && !string.starts_with("---"),
        (Some(first), _) => {
            !matches!(
                first,
                '-' | '?'
                    | ':'
                    | ','
                    | '['
                    | ']'
                    | '{'
                    | '}'
                    | '#'
                    | '&'
                    | '*'
                    | '!'
                    | '|'
                    | '>'
                    | '\''
                    | '"'
                    | '%'
                    | '@'
                    | '`'
                    | ' '
            ) && !string.starts_with("...")
        }
        (None, _) => false,
    };
    is_begun_well && !string.ends_with([' ', ':']) && !string.contains(": ") && !string.contains(" #")
}

/// What is written as it is: neither a control nor a break of lines nor a mark of the byte order.
fn is_printable(letter: char) -> bool {
    !letter.is_control() && !matches!(letter, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}')
}

fn quoted(text: &mut String, string: &str) {
    text.push('"');
    for letter in string.chars() {
        match letter {
            '"' | '\\' => text.extend(['\\', letter]),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            _ if is_printable(letter) => text.push(letter),
            // None of these is above four digits.
            _ => text.push_str(&format!("\\u{:04x}", u32::from(letter))),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::super::parse;
    use super::*;

    #[test]
    fn an_object_is_written_as_upstream_writes_it() {
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "a", "labels": {}, "creationTimestamp": "2026-11-22T10:00:00Z", "generation": 1,
                "annotations": { "note": "a: b", "on": "true", "version": "1.10", "empty": "", "star": "*",
                    "who": "it's" } },
            "spec": { "containers": [
                { "name": "c", "args": ["-c", "a # b", "10.0.0.1", "1:20", "a\nb"], "env": [] },
                { "name": "d", "command": ["x\n", "y\n\n", " z\n", "\u{1}"], "tty": true, "nothing": null }] },
        });
        let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  annotations:\n    empty: \"\"\n    note: 'a: b'\n    \
            \"on\": \"true\"\n    star: '*'\n    version: \"1.10\"\n    who: it's\n  \
            creationTimestamp: \"2026-11-22T10:00:00Z\"\n  \
            generation: 1\n  labels: {}\n  name: a\nspec:\n  containers:\n  - args:\n    - -c\n    - 'a # b'\n    \
            - 10.0.0.1\n    - \"1:20\"\n    - |-\n      a\n      b\n    env: []\n    name: c\n  - command:\n    \
            - |\n      x\n    - |+\n      y\n\n    - \" z\\n\"\n    - \"\\u0001\"\n    name: d\n    nothing: null\n    \
            tty: true\n";
        assert_eq!(write(&object), text);
        let mut items = String::new();
        write_item(&mut items, &json!({ "a": [1, [2]], "b": {} }));
        write_item(&mut items, &json!({ "a": "x" }));
        assert_eq!(items, "- a:\n  - 1\n  - - 2\n  b: {}\n- a: x\n");
    }

    /// What a reader of any YAML would take for something else is quoted, and nothing more.
    #[test]
    fn what_is_no_plain_text_is_quoted() {
        let plain = ["2026-", "2026-x1", "2026a1", "2a26-01", "202-11-1", "a:b", "a#b", "-a", "a...", "1.2.3"];
        for string in plain {
            assert_eq!(write(&json!({ "a": string })), format!("a: {string}\n"));
        }
        let double = [
            "2026-01-01",
            "2026-1",
            "12:30",
            "-1:30",
            "+1:30",
            ".inf",
            "-.INF",
            ".NaN",
            "=",
            "<<",
            "0x1f",
            "1e3",
            "no",
            "\u{85}",
            "",
        ];
        for string in double {
            let shown = if string == "\u{85}" { "\\u0085" } else { string };
            assert_eq!(write(&json!({ "a": string })), format!("a: \"{shown}\"\n"));
        }
        for string in ["...", "...a", "--- a", "- a", "a: b", "a:", "a #b", " a", "a ", "*a", "%a"] {
            assert_eq!(write(&json!({ "a": string })), format!("a: '{string}'\n"));
        }
        assert_eq!(write(&json!({ "a": "b\tc\r\n\"\\" })), "a: \"b\\tc\\r\\n\\\"\\\\\"\n");
        // A longer key stands on its own line, also where everything is on one.
        let [short, long] = [128, 129].map(|length| "k".repeat(length));
        assert_eq!(write(&json!({ short.as_str(): 1 })), format!("{short}: 1\n"));
        assert_eq!(write(&json!({ long.as_str(): 1 })), format!("? \"{long}\"\n: 1\n"));
        let mut text = String::new();
        flow(&mut text, &json!({ short.as_str(): 1, long.as_str(): [1, "a"] }));
        assert_eq!(text, format!("{{\"{short}\": 1, ? \"{long}\": [1, \"a\"]}}"));
    }

    /// What is long, and deep in other lists.
    fn deep(leaf: Value, times: usize) -> Value {
        (0..60).fold(
            json!(vec![leaf; times]),
            |inner, step| if step % 2 == 0 { json!([inner]) } else { json!({ "a": inner }) },
        )
    }

    #[test]
    fn x4_depth_does_not_make_a_document_many_times_as_large() {
        for leaf in [json!(0), json!([0]), json!({ "b": 0 }), json!("a\nb"), json!("a\n".repeat(100))] {
            let value = deep(leaf.clone(), 1_000);
            let (mut text, left) = (String::new(), 20_000);
            Writer { text: &mut text, left }.block(&value, 0, true);
            let most = 2 * value.to_string().len() + left;
            assert!(text.len() <= most, "{leaf}: {} of at most {most} bytes", text.len());
            assert_eq!(parse(&text).map(|parsed| parsed.value), Ok(value), "{leaf}");
        }
        let lines = deep(json!(0), 1_000);
        assert!(write(&lines).lines().count() >= 1_000, "what is small enough stands in lines");
    }

    fn text() -> impl Strategy<Value = String> {
        let odd = prop_oneof!["[ \n\t\r:#'\"|>&*!%@`,{}\\[\\]?~=<.0-9a-z+_-]{0,9}", "\\PC{0,6}", any::<String>()];
        let known = proptest::sample::select(vec![
            "true",
            "no",
            "Off",
            "y",
            "~",
            "null",
            "0x1f",
            "0o17",
            "017",
            "1_000",
            "1e3",
            ".5",
            "-.inf",
            ".NaN",
            "1:30",
            "2026-11-22",
            "---",
            "...",
            "--- a",
            "- a",
            "-",
            "?",
            "? a",
            ":",
            ": a",
            "a:",
            "a: b",
            "a #b",
            "#",
            "=",
            "<<",
            "\u{feff}",
            "\u{2028}",
            "\u{85}",
            "a\n\n\n",
            "a\n b\n",
            "a\n\n  b",
            "\n",
            "a\r\nb",
            "a\n---\nb\n",
            "% a",
            "+1",
        ]);
        prop_oneof![3 => odd, 1 => known.prop_map(str::to_owned), 1 => "[a]{120,140}"]
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            // One without a fraction is read as an integer.
            (-1e9..1e9).prop_map(|number: f64| Value::from(number.trunc() + 0.5)),
            text().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map(text(), inner, 0..5).prop_map(|map| map.into_iter().collect::<Value>()),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(value in value()) {
            let text = write(&value);
            let read = parse(&text).map(|parsed| parsed.value);
            prop_assert_eq!(read, Ok(value.clone()), "{:?}", text);
            let mut item = String::new();
            write_item(&mut item, &value);
            let read = parse(&item).map(|parsed| parsed.value);
            prop_assert_eq!(read, Ok(json!([value.clone()])), "{:?}", item);
            let mut narrow = String::new();
            Writer { text: &mut narrow, left: 20 }.block(&value, 0, true);
            let read = parse(&narrow).map(|parsed| parsed.value);
            prop_assert_eq!(read, Ok(value), "{:?}", narrow);
        }
    }
}
