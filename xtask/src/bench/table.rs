//! The printed result, and the few statistics in it.

use std::fmt;
use std::time::Duration;

/// Rows of text; columns are aligned when printed.
pub struct Table {
    head: [&'static str; 5],
    rows: Vec<[String; 5]>,
}

impl Default for Table {
    fn default() -> Self {
        Self::titled(["", "value", "beside", "ratio", "target"])
    }
}

impl Table {
    /// With other columns than a bench has.
    pub fn titled(head: [&'static str; 5]) -> Self {
        Self { head, rows: Vec::new() }
    }

    /// Adds a measure: its value, the same work done bare, the ratio of the two, and the design's target.
    pub fn row(
        &mut self,
        measure: &str,
        value: impl Into<String>,
        beside: impl Into<String>,
        ratio: impl Into<String>,
        target: &str,
    ) {
        let row = [measure.to_owned(), value.into(), beside.into(), ratio.into(), target.to_owned()];
        // A run of minutes says how far it is.
        eprintln!("{}: {}", row[0], row[1]);
        self.rows.push(row);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let head = self.head.map(str::to_owned);
        let rows = || std::iter::once(&head).chain(&self.rows);
        let width = |column: usize| rows().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        for row in rows() {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
            writeln!(out, "{}", cells.join("  ").trim_end())?;
        }
        Ok(())
    }
}

/// Durations in order.
pub struct Times(Vec<Duration>);

impl Times {
    /// Of at least one.
    pub fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    /// The smallest of which this share (0 to 1) is not above it.
    pub fn quantile(&self, share: f64) -> Duration {
        let rank = (self.0.len() as f64 * share).ceil() as usize;
        self.0.get(rank.saturating_sub(1).min(self.0.len().saturating_sub(1))).copied().unwrap_or_default()
    }

    /// The one in the middle.
    pub fn median(&self) -> Duration {
        self.quantile(0.5)
    }

    /// `12 ms (10..15 of 7)`.
    pub fn summary(&self) -> String {
        let ends = [self.0.first(), self.0.last()].map(|end| end.map_or(0.0, |time| time.as_secs_f64() * 1e3));
        format!("{} ({:.0}..{:.0} of {})", ms(self.median()), ends[0], ends[1], self.0.len())
    }
}

/// `12.3 ms`.
pub fn ms(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// `1.5x`.
pub fn times(value: Duration, beside: Duration) -> String {
    format!("{:.1}x", value.as_secs_f64() / beside.as_secs_f64().max(1e-9))
}
