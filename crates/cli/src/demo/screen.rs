//! The demonstration's lines, with colour where the terminal has it.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

/// Where the demonstration is shown.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    colour: bool,
}

impl Screen {
    /// Standard output; plain when asked for, when it is not a terminal, or with `NO_COLOR`.
    pub fn new(plain: bool) -> Self {
        Self { colour: !plain && std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none() }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Whoever reads may end: that ends nothing here.
    fn say(text: &str) {
        let _ = writeln!(std::io::stdout(), "{text}");
    }

    /// A heading.
    pub fn title(&self, text: &str) {
        Self::say(&format!("\n{}", self.paint("1", text)));
    }

    /// What a person would type.
    pub fn command(&self, text: &str) {
        Self::say(&format!("   {}", self.paint("36", &format!("$ {text}"))));
    }

    /// What comes back.
    pub fn line(&self, text: &str) {
        Self::say(&format!("   {text}"));
    }

    /// Something that is as promised.
    pub fn good(&self, text: &str) {
        Self::say(&format!("   {} {text}", self.paint("32", "✓")));
    }

    /// Rows with the first as heading, in columns.
    pub fn table<const N: usize>(&self, rows: &[[String; N]]) {
        let widths: [usize; N] =
            std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
        for (index, row) in rows.iter().enumerate() {
            let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
            let line = cells.join("   ");
            let line = if index == 0 { self.paint("2", line.trim_end()) } else { line.trim_end().to_owned() };
            Self::say(&format!("   {line}"));
        }
    }
}

/// `123 ms`, or `4.56 s` from ten seconds on.
pub fn millis(took: Duration) -> String {
    if took < Duration::from_secs(10) {
        format!("{} ms", took.as_millis())
    } else {
        format!("{:.2} s", took.as_secs_f64())
    }
}
