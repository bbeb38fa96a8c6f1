//! What happened, line by line: the same seed gives the same bytes.

use std::fmt::Write as _;

use jiff::Timestamp;

/// The story of one world.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    text: String,
}

impl Trace {
    /// Adds a line.
    pub fn note(&mut self, now: Timestamp, who: &str, what: &str) {
        let seconds = now.as_second().rem_euclid(86_400);
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "{seconds:>6}.{:03} {who:<32} {what}", now.subsec_millisecond());
    }

    /// All of it.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The last lines of it.
    pub fn tail(&self, lines: usize) -> String {
        let all: Vec<&str> = self.text.lines().collect();
        all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
    }
}
