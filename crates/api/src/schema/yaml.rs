//! YAML bodies, read into JSON values as upstream reads them ([`write()`]: answers): one document, string keys, merge
//! keys (`<<`), and the scalars of YAML 1.1 that Go's library keeps (`yes`, `0o17`, `0x1f`), since manifests count on
//! them.
//!
//! The text is a stranger's: depth, aliases and what they come to are bounded.

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError};
use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value};

use super::budget::{Budget, Exceeded};
use super::parse::{MAX_DEPTH, MAX_DUPLICATES, Parsed};

mod write;

pub use write::{write, write_item};

/// How many values a document may hold, those that aliases repeat counted each time.
pub const MAX_VALUES: usize = 1_000_000;
/// How often aliases may be used: a few bytes each, but each stands for all that it names.
pub const MAX_ALIASES: usize = 10_000;

/// Why a text is not one JSON value.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum YamlError {
    /// It is not YAML.
    #[error("yaml: line {line}: {message}")]
    Syntax {
        /// From 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// It breaks a limit of this module.
    #[error("yaml: {0}")]
    Limit(&'static str),
    /// A key that JSON has no word for.
    #[error("yaml: line {line}: {message}")]
    Key {
        /// From 1.
        line: usize,
        /// Why.
        message: &'static str,
    },
}

/// Upstream's words.
const ALIASING: YamlError = YamlError::Limit("document contains excessive aliasing");

impl From<Exceeded> for YamlError {
    fn from(Exceeded: Exceeded) -> Self {
        Self::Limit("document has too many parts")
    }
}

impl From<ScanError> for YamlError {
    fn from(error: ScanError) -> Self {
        Self::Syntax { line: error.marker().line(), message: error.info().to_owned() }
    }
}

/// The first document of a text; an empty text is null.
///
/// # Errors
/// See [`YamlError`].
pub fn parse(text: &str) -> Result<Parsed, YamlError> {
    let parser = Parser::new_from_str(text);
    let mut reader = Reader {
        parser,
        anchors: Vec::new(),
        duplicates: Vec::new(),
        values: 0,
        aliases: 0,
        budget: Budget::default(),
    };
    let value = loop {
        match reader.next()? {
            (Event::StreamEnd | Event::DocumentEnd, _) => break Value::Null,
            (Event::StreamStart | Event::DocumentStart(_) | Event::Nothing, _) => {}
            (event, line) => break reader.value(event, line, 0)?,
        }
    };
    Ok(Parsed { value, duplicates: reader.duplicates })
}

/// A configuration file, which is one of ours or upstream's forms, not an object: every key stands once.
///
/// # Errors
/// What is wrong with the text, or with its form, in words.
pub fn read<T: DeserializeOwned>(text: &str) -> Result<T, String> {
    let Parsed { value, duplicates } = parse(text).map_err(|error| error.to_string())?;
    match duplicates.into_iter().next() {
        Some(duplicate) => Err(duplicate),
        None => serde_json::from_value(value).map_err(|error| error.to_string()),
    }
}

struct Reader<'a> {
    parser: Parser<'a, saphyr_parser::StrInput<'a>>,
    /// By the parser's number of the anchor: the value, and how many values it holds.
    anchors: Vec<Option<(Value, usize)>>,
    /// Upstream's words for each key that stands twice in its map; the last one counts.
    duplicates: Vec<String>,
    values: usize,
    aliases: usize,
    /// What all values may still take, those that anchors keep among them.
    budget: Budget,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<(Event<'a>, usize), YamlError> {
        match self.parser.next() {
            Some(Ok((event, span))) => Ok((event, span.start.line())),
            Some(Err(error)) => Err(error.into()),
            None => Ok((Event::StreamEnd, 0)),
        }
    }

    fn count(&mut self, values: usize) -> Result<(), YamlError> {
        self.values = self.values.saturating_add(values);
        if self.values > MAX_VALUES { Err(ALIASING) } else { Ok(()) }
    }

    fn value(&mut self, event: Event<'a>, line: usize, depth: usize) -> Result<Value, YamlError> {
        if depth > MAX_DEPTH {
            return Err(YamlError::Limit("exceeded max depth"));
        }
        self.count(1)?;
        let before = self.values;
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_text = tag.is_some_and(|tag| tag.is_yaml_core_schema() && tag.suffix == "str");
                let value = match style {
                    ScalarStyle::Plain if !is_text => plain(&text),
                    _ => Value::String(text.into_owned()),
                };
                self.budget.copy(&value)?;
                (value, anchor)
            }
            Event::SequenceStart(anchor, _) => (self.sequence(depth)?, anchor),
            Event::MappingStart(anchor, _) => (self.mapping(depth)?, anchor),
            Event::Alias(anchor) => return self.alias(anchor, line),
            _ => return Err(YamlError::Syntax { line, message: "did not find expected node content".to_owned() }),
        };
        if anchor > 0 {
            if self.anchors.len() <= anchor {
                self.anchors.resize(anchor + 1, None);
            }
            self.budget.copy(&value).map_err(|_| ALIASING)?;
            if let Some(slot) = self.anchors.get_mut(anchor) {
                *slot = Some((value.clone(), 1 + self.values - before));
            }
        }
        Ok(value)
    }

    fn alias(&mut self, anchor: usize, line: usize) -> Result<Value, YamlError> {
        self.aliases += 1;
        if self.aliases > MAX_ALIASES {
            return Err(ALIASING);
        }
        let Some((value, values)) = self.anchors.get(anchor).and_then(Option::as_ref) else {
            return Err(YamlError::Syntax { line, message: "anchor value contains itself".to_owned() });
        };
        self.budget.copy(value).map_err(|_| ALIASING)?;
        let (value, values) = (value.clone(), *values);
        self.count(values)?;
        Ok(value)
    }

    fn sequence(&mut self, depth: usize) -> Result<Value, YamlError> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(items.into()),
                (event, line) => {
                    self.budget.item()?;
                    items.push(self.value(event, line, depth + 1)?);
                }
            }
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Value, YamlError> {
        let (mut map, mut merged) = (Map::new(), Vec::new());
        loop {
            let (event, line) = self.next()?;
            if event == Event::MappingEnd {
                break;
            }
            let is_merge = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, ..) if text == "<<");
            let key = match self.value(event, line, depth + 1)? {
                Value::String(key) => key,
                Value::Bool(key) => key.to_string(),
                Value::Number(key) => key.to_string(),
                Value::Null => "null".to_owned(),
                _ => return Err(YamlError::Key { line, message: "invalid map key: a list or a map" }),
            };
            let (event, value_line) = self.next()?;
            let value = self.value(event, value_line, depth + 1)?;
            if is_merge {
                merged.push((line, value));
                continue;
            }
            if map.contains_key(&key) && self.duplicates.len() < MAX_DUPLICATES {
                self.duplicates.push(format!("line {line}: key {key:?} already set in map"));
            }
            self.budget.field(map.len(), &key)?;
            map.insert(key, value);
        }
        for (line, value) in merged {
            let sources = match value {
                Value::Object(source) => vec![source],
                Value::Array(items) => {
                    let source = |item| if let Value::Object(source) = item { Some(source) } else { None };
                    items.into_iter().map(source).collect::<Option<Vec<_>>>().ok_or_else(|| no_maps(line))?
                }
                _ => return Err(no_maps(line)),
            };
            for (key, value) in sources.into_iter().flatten() {
                self.budget.field(map.len(), &key)?;
                map.entry(key).or_insert(value);
            }
        }
        Ok(Value::Object(map))
    }
}

fn no_maps(line: usize) -> YamlError {
    let message = "map merge requires map or sequence of maps as the value".to_owned();
    YamlError::Syntax { line, message }
}

/// What a plain scalar is: null, a truth value, a number, or the text itself.
fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" => return true.into(),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N" => return false.into(),
        _ => {}
    }
    number(text).map_or_else(|| Value::String(text.to_owned()), Value::Number)
}

/// A number as Go reads it: underscores are left out, a leading zero means base 8, whatever fits no integer of 64 bits
/// may be a decimal fraction.
fn number(text: &str) -> Option<Number> {
    let is_fraction = text.starts_with('.');
    if !is_fraction && !text.starts_with(|first: char| first.is_ascii_digit() || matches!(first, '+' | '-')) {
        return None;
    }
    let digits: String = text.chars().filter(|letter| *letter != '_' || is_fraction).collect();
    let (sign, magnitude) = match digits.split_at_checked(1) {
        Some((sign @ ("-" | "+"), rest)) => (sign, rest),
        _ => ("", digits.as_str()),
    };
    let (base, rest) = match magnitude.get(..2).map(str::to_ascii_lowercase).as_deref() {
        Some("0x") => (16, &magnitude[2..]),
        Some("0b") => (2, &magnitude[2..]),
        Some("0o") => (8, &magnitude[2..]),
        _ if magnitude.len() > 1 && magnitude.starts_with('0') => (8, &magnitude[1..]),
        _ => (10, magnitude),
    };
    // A second sign would be taken by the parser of integers.
    if rest.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        if let Ok(value) = i64::from_str_radix(&format!("{sign}{rest}"), base) {
            return Some(value.into());
        }
        if let (true, Ok(value)) = (sign.is_empty(), u64::from_str_radix(rest, base)) {
            return Some(value.into());
        }
    }
    // Not its words for infinities.
    if !magnitude.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-')) {
        return None;
    }
    whole(digits.parse().ok()?)
}

/// A number without a fraction is printed without one, and so is an integer to whoever reads it.
fn whole(value: f64) -> Option<Number> {
    const LARGEST: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() <= LARGEST {
        return Some((value as i64).into());
    }
    Number::from_f64(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn value(text: &str) -> Result<Value, YamlError> {
        parse(text).map(|parsed| parsed.value)
    }

    #[test]
    fn manifests_become_json() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels: {on: 'yes', \"n\": \"1\"}\nspec:\n  \
            hostNetwork: no\n  containers:\n  - name: c\n    args: [\"-c\", 0x1f, 0644, 1_000, 1.5, 1e3, -7, ~, \
                1:30]\n    \
            command: |\n      a\n      b\n";
        let wanted = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "a", "labels": { "true": "yes", "n": "1" } },
            "spec": { "hostNetwork": false, "containers": [{
                "name": "c", "args": ["-c", 31, 420, 1000, 1.5, 1000, -7, null, "1:30"], "command": "a\nb\n" }] },
        });
        assert_eq!(value(text), Ok(wanted));
        assert_eq!(value(""), Ok(Value::Null));
        assert_eq!(value("{\"a\": [1, true]}"), Ok(json!({ "a": [1, true] })), "JSON is YAML");
        assert_eq!(value("--- 1\n--- 2\n"), Ok(json!(1)), "the first document");
    }

    #[test]
    fn plain_scalars_are_what_go_takes_them_for() {
        let numbers = [
            ("0x1F", json!(31)),
            ("0X1f", json!(31)),
            ("-0x10", json!(-16)),
            ("+0x10", json!(16)),
            ("0xffff_ffff_ffff_ffff", json!(u64::MAX)),
            ("0b101", json!(5)),
            ("-0B11", json!(-3)),
            ("0o17", json!(15)),
            ("0O17", json!(15)),
            ("017", json!(15)),
            ("-017", json!(-15)),
            ("00", json!(0)),
            ("0", json!(0)),
            ("-0", json!(0)),
            ("+5", json!(5)),
            ("1_000", json!(1000)),
            ("9223372036854775807", json!(i64::MAX)),
            ("-9223372036854775808", json!(i64::MIN)),
            ("18446744073709551615", json!(u64::MAX)),
            ("18446744073709551616", json!(18446744073709551616.0)),
            ("-9223372036854775809", json!(-9223372036854775809.0)),
            // No number of base 8, but a fraction could be written so.
            ("089", json!(89)),
            ("019.5", json!(19.5)),
            ("1.5", json!(1.5)),
            ("1.", json!(1)),
            ("-.5", json!(-0.5)),
            (".5", json!(0.5)),
            (".5e1", json!(5)),
            ("1e3", json!(1000)),
            ("1E+3", json!(1000)),
            ("15e-1", json!(1.5)),
            ("1_000.5", json!(1000.5)),
            ("1e20", json!(1e20)),
        ];
        for (text, wanted) in numbers {
            assert_eq!(value(text), Ok(wanted), "{text}");
        }
        let texts = [
            "0x",
            "0xg",
            "0b2",
            "0o8",
            "0x-1",
            "--1",
            "+-1",
            "1e",
            "1.2.3",
            "1-2",
            ".",
            "+",
            ".e1",
            "._5",
            ".5_0",
            "_1",
            "1e999",
            "-.inf",
            "inf",
            "nan",
            "1:30",
            "2026-01-01",
            "12a",
            "0x1_g",
            "1e3e",
            "٣",
        ];
        for text in texts {
            assert_eq!(value(text), Ok(json!(text)), "{text}");
        }
        for (text, wanted) in [("!!str 5", json!("5")), ("!!str yes", json!("yes")), ("'5'", json!("5"))] {
            assert_eq!(value(text), Ok(wanted), "{text}");
        }
        // Keys are text, whatever they look like.
        assert_eq!(
            value("{1: a, ~: b, yes: c, 1.5: d}"),
            Ok(json!({ "1": "a", "null": "b", "true": "c", "1.5": "d" }))
        );
    }

    #[test]
    fn anchors_and_merge_keys_are_resolved() {
        let text = "base: &b {a: 1, b: 2}\nuse: *b\nmerged:\n  <<: *b\n  b: 3\nboth: {<<: [*b, {c: 4}]}\n";
        let wanted = json!({
            "base": { "a": 1, "b": 2 }, "use": { "a": 1, "b": 2 }, "merged": { "a": 1, "b": 3 },
            "both": { "a": 1, "b": 2, "c": 4 },
        });
        assert_eq!(value(text), Ok(wanted));
    }

    #[test]
    fn x4_what_grows_without_end_is_refused() {
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..12 {
            let last = format!("*a{}", level - 1);
            bomb.push_str(&format!("a{level}: &a{level} [{}]\n", vec![last; 10].join(",")));
        }
        assert_eq!(value(&bomb), Err(YamlError::Limit("document contains excessive aliasing")));
        let deep = |depth: usize| value(&format!("{}1{}", "[".repeat(depth), "]".repeat(depth))).is_ok();
        assert_eq!([deep(5000), deep(MAX_DEPTH + 1), deep(MAX_DEPTH)], [false, false, true]);
        // What stands once and is named often counts as often; so does being named.
        let named = |times: usize| value(&format!("- &a 1\n{}", "- *a\n".repeat(times))).is_ok();
        assert_eq!([named(MAX_ALIASES), named(MAX_ALIASES + 1)], [true, false]);
        assert!(parse("a: &a [*a]").is_err());
    }

    #[test]
    fn what_json_has_no_word_for_is_refused() {
        let twice = parse("a: 1\na: 2").expect("YAML");
        assert_eq!(twice.duplicates, ["line 2: key \"a\" already set in map"]);
        assert_eq!(twice.value, json!({ "a": 2 }));
        for text in ["[1]: 2", "a: b: c", "a: *nowhere", "a: [1", "<<: 1", "<<: [{a: 1}, 2]"] {
            assert!(parse(text).is_err(), "{text:?}: {:?}", parse(text));
        }
    }
}
