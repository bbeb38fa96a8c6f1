//! The compiled patterns of all definitions: each is compiled when it is first needed, shared by all schemas that have
//! it, and forgotten when others are needed more (X4). A pattern of ten bytes may take megabytes, and a definition may
//! have a hundred thousand.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use super::pattern;

/// Bytes that the patterns of one definition may take together, each counted once. Differs: upstream has no limit.
pub const MAX_OF_DEFINITION: usize = 64 << 20;
/// Bytes that are kept of all definitions together: more than one's, so that none forgets its own.
const MAX_KEPT: usize = 2 * MAX_OF_DEFINITION;

/// A pattern, and at least how many bytes it takes. One that is none matches everything: the definition's own
/// validation has refused it.
struct Compiled {
    regex: Option<regex::Regex>,
    size: usize,
}

impl Compiled {
    fn of(text: &str) -> (Self, Option<regex::Error>) {
        match pattern::measured(text, pattern::MAX_PATTERN) {
            Ok((regex, size)) => (Self { regex: Some(regex), size: size + text.len() }, None),
            Err(error) => (Self { regex: None, size: text.len() }, Some(error)),
        }
    }
}

/// What is kept, and when it was last asked for.
#[derive(Default)]
struct Kept {
    by_text: HashMap<Box<str>, (Arc<Compiled>, u64)>,
    total: usize,
    asked: u64,
}

impl Kept {
    fn get(&mut self, text: &str) -> Option<Arc<Compiled>> {
        self.asked += 1;
        let (compiled, asked) = self.by_text.get_mut(text)?;
        *asked = self.asked;
        Some(compiled.clone())
    }

    fn put(&mut self, text: &str, compiled: Arc<Compiled>, most: usize) {
        self.total += compiled.size;
        if let Some((before, _)) = self.by_text.insert(text.into(), (compiled, self.asked)) {
            self.total -= before.size;
        }
        while self.total > most {
            let oldest = self.by_text.iter().min_by_key(|(_, (_, asked))| *asked).map(|(text, _)| text.clone());
            let Some((forgotten, _)) = oldest.and_then(|text| self.by_text.remove(&text)) else { return };
            self.total -= forgotten.size;
        }
    }
}

static KEPT: LazyLock<Mutex<Kept>> = LazyLock::new(Mutex::default);

/// The pattern, and what is wrong with it where it had to be compiled now.
fn compiled(text: &str) -> (Arc<Compiled>, Option<regex::Error>) {
    let kept = || KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(compiled) = kept().get(text) {
        return (compiled, None);
    }
    let (compiled, error) = Compiled::of(text);
    let compiled = Arc::new(compiled);
    kept().put(text, compiled.clone(), MAX_KEPT);
    (compiled, error)
}

/// Whether the pattern is found in a value.
pub fn fits(text: &str, value: &str) -> bool {
    compiled(text).0.regex.as_ref().is_none_or(|regex| regex.is_match(value))
}

/// The patterns of a definition, of all its versions, while it is validated.
pub struct Patterns {
    seen: BTreeSet<Box<str>>,
    total: usize,
    most: usize,
}

impl Default for Patterns {
    fn default() -> Self {
        Self::up_to(MAX_OF_DEFINITION)
    }
}

impl Patterns {
    fn up_to(most: usize) -> Self {
        Self { seen: BTreeSet::new(), total: 0, most }
    }

    /// Takes one in, or says what is wrong with it.
    pub fn add(&mut self, text: &str) -> Result<(), String> {
        if self.total > self.most || self.seen.contains(text) {
            return Ok(()); // Told already, or fine.
        }
        let invalid = |error: regex::Error| format!("must be a valid regular expression, but isn't: {error}");
        let size = match compiled(text) {
            (_, Some(error)) => {
                // To see that it is too large has cost as much.
                self.total += if matches!(error, regex::Error::CompiledTooBig(_)) { pattern::MAX_PATTERN } else { 0 };
                return Err(invalid(error));
            }
            (known, None) if known.regex.is_none() => return pattern::compile(text).map(drop).map_err(invalid),
            (known, None) => known.size,
        };
        self.seen.insert(text.into());
        self.total += size;
        if self.total > self.most {
            let most = self.most >> 20;
            return Err(format!("the patterns of a definition may take at most {most} MiB in all when compiled"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x4_what_the_patterns_of_a_definition_take_together_is_bounded() {
        let mut patterns = Patterns::up_to(4 << 20);
        let told: Vec<String> =
            (0..2_000).filter_map(|index| patterns.add(&format!("^.{{400}}{index}$")).err()).collect();
        assert_eq!(told, ["the patterns of a definition may take at most 4 MiB in all when compiled"]);
        assert!(patterns.seen.len() < 50, "{} were compiled", patterns.seen.len());
        let mut small = Patterns::default();
        for index in 0..1_000 {
            assert_eq!(small.add(&format!("^[a-z0-9]([-a-z0-9]*[a-z0-9])?{index}$")), Ok(()));
        }
        // The same one, however often it stands there, is one.
        let mut same = Patterns::default();
        assert!((0..2_000).all(|_| same.add("^.{400}$").is_ok()));
        for _ in 0..2 {
            assert!(same.add("(").is_err_and(|why| why.starts_with("must be a valid regular expression")));
        }
    }

    #[test]
    fn x4_what_is_kept_of_all_patterns_is_bounded_and_the_oldest_goes() {
        let mut kept = Kept::default();
        let one = |text: &str| Arc::new(Compiled::of(text).0);
        let most = 10 * one("^a{10}$").size;
        for index in 10..100 {
            let text = format!("^a{{{index}}}$");
            kept.put(&text, one(&text), most);
            assert!(kept.get("^a{10}$").is_some(), "what is asked for stays");
            assert!(kept.total <= most);
        }
        assert!(kept.get("^a{11}$").is_none() && kept.by_text.len() < 20);
        assert_eq!(kept.total, kept.by_text.values().map(|(compiled, _)| compiled.size).sum::<usize>());
        assert!(fits("^a+$", "aa") && !fits("^a+$", "ab") && fits("(", "anything"));
    }
}
