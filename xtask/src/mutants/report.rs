//! What became of the mutants, by file, and which survivors are explained.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::edit::Edit;
use super::{Mutant, Verdict};

const KEPT: &str = "docs/mutants.md";

/// The mutants that may survive: by file or folder, function and change; a `*` stands for anything.
pub struct Kept(Vec<[String; 3]>);

impl Kept {
    pub fn read(root: &Path) -> Result<Kept> {
        Ok(Kept::parse(&std::fs::read_to_string(root.join(KEPT)).context(KEPT)?))
    }

    /// Files are headings, mutants lines: "- `function`: `change`: why".
    fn parse(text: &str) -> Kept {
        let mut file = "";
        let mut kept = Vec::new();
        for line in text.lines() {
            if let Some(heading) = line.strip_prefix("## ") {
                file = heading.trim();
            } else if let Some((function, rest)) = line.strip_prefix("- `").and_then(|rest| rest.split_once("`: `"))
                && let Some((change, _)) = rest.split_once("`: ")
            {
                kept.push([file, function, change].map(str::to_owned));
            }
        }
        Kept(kept)
    }

    /// Prints a survivor that is not explained.
    pub fn show(&self, mutant: &Mutant, verdict: &Verdict) {
        if *verdict != Verdict::Killed && !self.explains(mutant) {
            let how = if *verdict == Verdict::Unreached { " (no test comes here)" } else { "" };
            println!("  {}:{}: `{}`: `{}`{how}", mutant.file.display(), mutant.line, mutant.function, mutant.change);
        }
    }

    fn explains(&self, mutant: &Mutant) -> bool {
        self.0.iter().any(|[file, function, change]| {
            mutant.file.starts_with(file) && fits(function, &mutant.function) && fits(change, &mutant.change)
        })
    }
}

/// Whether a text is as a pattern says, in which one `*` stands for anything.
fn fits(pattern: &str, text: &str) -> bool {
    match pattern.split_once(" * ").map_or_else(|| pattern.split_once('*'), |_| None) {
        Some((begin, end)) => text.len() >= begin.len() + end.len() && text.starts_with(begin) && text.ends_with(end),
        None => pattern == text,
    }
}

/// How many became what.
#[derive(Default)]
struct Counts {
    tried: usize,
    killed: usize,
    explained: usize,
    left: usize,
}

/// Prints a line for each file.
pub fn print(all: &[Edit], verdicts: &BTreeMap<usize, Verdict>, chosen: usize, kept: &Kept) {
    let mut files: BTreeMap<&Path, Counts> = BTreeMap::new();
    for (number, verdict) in verdicts {
        let mutant = &all[*number].mutant;
        let counts = files.entry(&mutant.file).or_default();
        counts.tried += 1;
        if *verdict == Verdict::Killed {
            counts.killed += 1;
        } else if kept.explains(mutant) {
            counts.explained += 1;
        } else {
            counts.left += 1;
        }
    }
    let mut total = Counts::default();
    for (file, counts) in &files {
        let Counts { tried, killed, explained, left } = counts;
        println!("{}: {tried} tried, {killed} killed, {explained} explained, {left} left", file.display());
        total.tried += tried;
        total.killed += killed;
        total.explained += explained;
        total.left += left;
    }
    let Counts { tried, killed, explained, left } = total;
    println!("all: {tried} tried, {killed} killed, {explained} explained, {left} left");
    if verdicts.len() < chosen {
        println!("time was up: {} were not tried", chosen - verdicts.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_explained_is_found_by_file_function_and_change() {
        let kept = Kept::parse(
            "# Kept\n\n## a/b.rs\n\n- `T::f`: `a < b → <=`: never equal.\n- `g`: odd\n- `*keys`: `* → true`: cheap\n",
        );
        let mutant = |file: &str, function: &str, change: &str| {
            kept.explains(&Mutant {
                file: file.into(),
                line: 1,
                function: function.to_owned(),
                change: change.to_owned(),
            })
        };
        assert!(mutant("a/b.rs", "T::f", "a < b → <=") && mutant("a/b.rs", "keys", "x → true"));
        assert!(!mutant("a/c.rs", "T::f", "a < b → <=") && !mutant("a/b.rs", "T::f", "a < b → not so"));
        assert!(!mutant("a/b.rs", "g", "x → true") && !mutant("a/b.rs", "keys", "x → false"));
    }
}
