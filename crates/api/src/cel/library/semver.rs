//! Semantic versions.

use std::cmp::Ordering;
use std::fmt;

use super::Answer;
use super::quantities::sign;
use crate::cel::Error;
use crate::cel::value::Value;

/// `major.minor.patch-pre+build`.
#[derive(Debug)]
pub struct Semver {
    numbers: [u64; 3],
    pre: Vec<String>,
    build: Vec<String>,
}

impl Semver {
    /// Reads a version. With `normalize`: a leading `v`, missing parts and zeros in front are taken.
    pub fn parse(text: &str, normalize: bool) -> Option<Self> {
        let text = if normalize { text.strip_prefix('v').unwrap_or(text) } else { text };
        let (text, build) = text.split_once('+').map_or((text, ""), |(text, build)| (text, build));
        let has_build = !build.is_empty();
        let (core, pre) = text.split_once('-').map_or((text, None), |(core, pre)| (core, Some(pre)));
        let is_word = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let is_number = |word: &str| word.bytes().all(|b| b.is_ascii_digit());
        let mut numbers = [0; 3];
        let parts: Vec<&str> = core.split('.').collect();
        if parts.len() > 3 || (parts.len() < 3 && !normalize) {
            return None;
        }
        for (number, part) in numbers.iter_mut().zip(&parts) {
            let has_zeros = part.len() > 1 && part.starts_with('0');
            if part.is_empty() || !is_number(part) || (has_zeros && !normalize) {
                return None;
            }
            *number = part.parse().ok()?;
        }
        let pre: Vec<String> = pre.map(|pre| pre.split('.').map(str::to_owned).collect()).unwrap_or_default();
        let bad_pre = |word: &String| !is_word(word) || (word.len() > 1 && word.starts_with('0') && is_number(word));
        let build: Vec<String> = if has_build { build.split('.').map(str::to_owned).collect() } else { Vec::new() };
        if pre.iter().any(bad_pre) || !build.iter().all(|word| is_word(word)) {
            return None;
        }
        Some(Self { numbers, pre, build })
    }

    /// The order of versions; what was built does not count.
    pub fn order(&self, other: &Self) -> Ordering {
        let pre = match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => {
                let number = |word: &str| word.parse::<u64>().ok();
                let mut pairs = self.pre.iter().zip(&other.pre).map(|(a, b)| match (number(a), number(b)) {
                    (Some(a), Some(b)) => a.cmp(&b),
                    (Some(_), None) => Ordering::Less,
                    (None, Some(_)) => Ordering::Greater,
                    (None, None) => a.cmp(b),
                });
                pairs.find(|order| order.is_ne()).unwrap_or_else(|| self.pre.len().cmp(&other.pre.len()))
            }
        };
        self.numbers.cmp(&other.numbers).then(pre)
    }
}

impl fmt::Display for Semver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [major, minor, patch] = self.numbers;
        write!(f, "{major}.{minor}.{patch}")?;
        if !self.pre.is_empty() {
            write!(f, "-{}", self.pre.join("."))?;
        }
        if !self.build.is_empty() {
            write!(f, "+{}", self.build.join("."))?;
        }
        Ok(())
    }
}

/// Calls one of these functions.
pub fn call<'a>(function: &str, args: &[Value<'a>]) -> Answer<'a> {
    let number = |at: usize, of: &Semver| Value::Int(i64::try_from(of.numbers[at]).unwrap_or(i64::MAX));
    Some(Ok(match (function, args) {
        ("semver" | "isSemver", [Value::String(text), rest @ ..]) => {
            let normalize = match rest {
                [] => false,
                [Value::Bool(flag)] => *flag,
                _ => return None,
            };
            match (function, Semver::parse(text, normalize)) {
                ("isSemver", parsed) => Value::Bool(parsed.is_some()),
                (_, Some(version)) => Value::Semver(version.into()),
                _ => return Some(Err(Error::failed(format!("semver parse error: {:?} is no version", &**text)))),
            }
        }
        ("major", [Value::Semver(of)]) => number(0, of),
        ("minor", [Value::Semver(of)]) => number(1, of),
        ("patch", [Value::Semver(of)]) => number(2, of),
        ("isLessThan", [Value::Semver(a), Value::Semver(b)]) => Value::Bool(a.order(b).is_lt()),
        ("isGreaterThan", [Value::Semver(a), Value::Semver(b)]) => Value::Bool(a.order(b).is_gt()),
        ("compareTo", [Value::Semver(a), Value::Semver(b)]) => Value::Int(sign(a.order(b))),
        _ => return None,
    }))
}
