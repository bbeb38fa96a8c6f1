//! How much memory a text may take once it is read (X4).
//!
//! A JSON object of one field takes about 700 bytes where its text has eight; what aliases repeat has no text at all.
//! So what a reader makes is counted while it is made, and the size of a body alone bounds nothing.

use std::cell::Cell;

use serde_json::Value;

/// What one body may come to (bytes). The densest object that could be stored beside its managed fields is far below.
pub const MAX_MEMORY: usize = 48 << 20;

/// What a map takes as soon as it has a field: a node of its tree.
const NODE: usize = 640;
/// What a node has room for.
const FIELDS_OF_NODE: usize = 11;
/// A field beyond that, with what a half-full node wastes.
const FIELD: usize = 112;
/// A value in a list, with what a list that grows has to spare.
const ITEM: usize = 2 * size_of::<Value>();
/// What the allocator adds to a text.
const TEXT: usize = 16;

/// More than [`MAX_MEMORY`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("it has too many parts: they take more than {MAX_MEMORY} bytes")]
pub struct Exceeded;

/// What is left for one body.
#[derive(Debug)]
pub struct Budget(Cell<usize>);

impl Default for Budget {
    fn default() -> Self {
        Self(Cell::new(MAX_MEMORY))
    }
}

impl Budget {
    fn spend(&self, bytes: usize) -> Result<(), Exceeded> {
        self.0.set(self.0.get().checked_sub(bytes).ok_or(Exceeded)?);
        Ok(())
    }

    /// A text, or a field's name.
    ///
    /// # Errors
    /// [`Exceeded`], as all of these.
    pub fn text(&self, text: &str) -> Result<(), Exceeded> {
        self.bytes(text.len())
    }

    /// A text, or what becomes one, of so many bytes.
    ///
    /// # Errors
    /// [`Exceeded`].
    pub fn bytes(&self, length: usize) -> Result<(), Exceeded> {
        self.spend(TEXT.saturating_add(length))
    }

    /// A field of a map that has `before` already, with its name.
    ///
    /// # Errors
    /// [`Exceeded`].
    pub fn field(&self, before: usize, name: &str) -> Result<(), Exceeded> {
        let own = match before {
            0 => NODE,
            before if before < FIELDS_OF_NODE => 0,
            _ => FIELD,
        };
        self.spend(own + TEXT + name.len())
    }

    /// A value in a list.
    ///
    /// # Errors
    /// [`Exceeded`].
    pub fn item(&self) -> Result<(), Exceeded> {
        self.spend(ITEM)
    }

    /// A copy of a value that is there.
    ///
    /// # Errors
    /// [`Exceeded`].
    pub fn copy(&self, value: &Value) -> Result<(), Exceeded> {
        match value {
            Value::String(text) => self.text(text),
            Value::Array(items) => items.iter().try_for_each(|item| {
                self.item()?;
                self.copy(item)
            }),
            Value::Object(map) => map.iter().enumerate().try_for_each(|(before, (name, value))| {
                self.field(before, name)?;
                self.copy(value)
            }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::schema::{parse, yaml};

    #[test]
    fn x4_what_a_text_comes_to_is_bounded_and_not_only_its_length() {
        let many = |item: &str| format!("[{}]", vec![item; 3_000_000 / (item.len() + 1)].join(","));
        for dense in [r#"{"a":1}"#, "[1]", r#"[""]"#, r#"{"a":{}}"#] {
            let refused = parse::parse(many(dense).as_bytes()).expect_err(dense).to_string();
            assert!(refused.starts_with("it has too many parts"), "{refused}");
        }
        for sparse in [
            "1",
            "{}",
            r#""abcdefghijklmnopqrstuvwxyz""#,
            r#"{"name":"a","image":"registry.example.com/image:1","args":[]}"#,
        ] {
            let few = &many(sparse)[..1_000_000];
            let whole = format!("{}]", &few[..few.rfind(&format!("{sparse},")).expect("some") + sparse.len()]);
            assert!(parse::parse(whole.as_bytes()).is_ok(), "{sparse}");
        }
    }

    #[test]
    fn x4_what_aliases_and_anchors_repeat_counts_each_time() {
        let text = "x".repeat(1 << 20);
        let repeated = format!("a: &a {text}\nb: [{}]\n", vec!["*a"; 5_000].join(", "));
        assert!(yaml::parse(&repeated).is_err(), "5 GB of text");
        let anchors: String = (0..100).map(|level| format!("&a{level} [")).collect();
        let nested = format!("{anchors}{}{}", "a, ".repeat(200_000), "]".repeat(100));
        assert!(yaml::parse(&nested).is_err(), "each anchor keeps what is inside of it");
        assert!(yaml::parse("a: &a {b: c}\nd: *a\n").is_ok());
    }
}
