//! Metrics as Prometheus' text: families with their samples together, in the order of their names.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};

use jiff::Timestamp;

/// What is exposed under one path.
#[derive(Default)]
pub struct Exposition(BTreeMap<&'static str, Family>);

struct Family {
    kind: &'static str,
    help: &'static str,
    samples: String,
}

impl Exposition {
    /// A family, which is told of also while it has no samples. `kind` is `counter`, `gauge` or `histogram`.
    pub fn family(&mut self, name: &'static str, kind: &'static str, help: &'static str) {
        self.0.entry(name).or_insert_with(|| Family { kind, help, samples: String::new() });
    }

    /// A sample of a family that there is, with its [`labels`].
    pub fn add(&mut self, name: &'static str, labels: &str, value: impl Display, at: Option<Timestamp>) {
        self.add_of(name, "", labels, value, at);
    }

    /// The same, of a part of a histogram: `_bucket`, `_sum`, `_count`.
    pub fn add_of(&mut self, name: &'static str, part: &str, labels: &str, value: impl Display, at: Option<Timestamp>) {
        let Some(family) = self.0.get_mut(name) else { return };
        let _ = match at {
            Some(at) => writeln!(family.samples, "{name}{part}{labels} {value} {}", at.as_millisecond()),
            None => writeln!(family.samples, "{name}{part}{labels} {value}"),
        };
    }

    pub fn text(self) -> String {
        let mut out = String::new();
        for (name, Family { kind, help, samples }) in self.0 {
            let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{samples}");
        }
        out
    }
}

/// `{a="b",c="d"}`, with what Prometheus wants escaped.
pub fn labels(pairs: &[(&str, &str)]) -> String {
    let mut out = String::from("{");
    for (at, (name, value)) in pairs.iter().enumerate() {
        let value = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', "\\n");
        let comma = if at > 0 { "," } else { "" };
        let _ = write!(out, "{comma}{name}=\"{value}\"");
    }
    out.push('}');
    out
}

/// Nanoseconds as seconds: `1.500000000`.
pub fn seconds(nanos: u64) -> String {
    format!("{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_come_in_order_with_their_samples_and_nothing_breaks_out_of_a_label() {
        let mut exposition = Exposition::default();
        exposition.family("b", "gauge", "B.");
        exposition.family("a", "counter", "A.");
        let labels = labels(&[("x", "1\"} 7\n\\"), ("y", "")]);
        exposition.add("b", "", 1, None);
        exposition.add("a", &labels, 2, Some(Timestamp::from_millisecond(5).unwrap()));
        exposition.add("unknown", "", 3, None);
        let wanted =
            "# HELP a A.\n# TYPE a counter\na{x=\"1\\\"} 7\\n\\\\\",y=\"\"} 2 5\n# HELP b B.\n# TYPE b gauge\nb 1\n";
        assert_eq!(exposition.text(), wanted);
    }
}
