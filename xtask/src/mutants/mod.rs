//! `cargo xtask mutants CRATE…`: small mistakes put into a crate one at a time, to see whether its tests notice.
//!
//! ```text
//! find     every expression that could be wrong in a usual way (`find`), in a copy of the workspace (`scratch`)
//! build    once: each mistake stands beside what is right, behind `on(number)` (`edit`); what does not compile is out
//! record   each test once alone: which mistakes does it come across, how long does it take (`judge`)
//! judge    each mistake switched on by an environment variable, under the tests that come across it, the fastest first
//! report   by file: what no test noticed and `docs/mutants.md` does not explain (`report`)
//! ```
//!
//! So a mutant costs a run of the few tests that could notice it, not a build. The user's files are never written to;
//! all that is made lies in `target/mutants`.

mod edit;
mod find;
mod judge;
mod report;
mod scratch;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use edit::Edit;
use scratch::Scratch;

const USAGE: &str = "cargo xtask mutants CRATE [--files PART,…] [--functions NAME,…] [--limit COUNT] [--seed NUMBER]
    [--minutes MINUTES] [--with CRATE,…] [--skip TEST,…]
  CRATE        logic, store, api, …: whose expressions are changed, and whose tests judge
  --files      only files whose paths contain one of these; --functions: only functions whose names do
  --limit      so many of all mutants, a sample by --seed (1); --minutes: judging ends after so long (30)
  --with       crates whose tests judge, too; --skip: but for the tests whose names contain one of these";

/// One mistake that a program could have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mutant {
    /// Below the workspace.
    pub file: PathBuf,
    pub line: usize,
    /// With its type, as in `Observed::ordered`.
    pub function: String,
    /// What was made of what, in one line.
    pub change: String,
}

/// What became of a mutant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A test failed, ended early or did not end.
    Killed,
    Survived,
    /// No test comes across it.
    Unreached,
}

#[derive(Debug)]
struct Options {
    package: String,
    files: Vec<String>,
    functions: Vec<String>,
    limit: usize,
    seed: u64,
    time: Duration,
    with: Vec<String>,
    skip: Vec<String>,
}

/// Tries the mutants of one crate and prints what survived.
pub fn run(args: &[String]) -> Result<()> {
    let options = parse(args)?;
    let root = std::env::current_dir()?;
    let scratch = Scratch::copy(&root)?;
    let mut found = Vec::new();
    for file in scratch.sources(&options.package)? {
        if options.files.is_empty() || options.files.iter().any(|part| file.to_string_lossy().contains(part)) {
            let text = std::fs::read_to_string(root.join(&file))?;
            let edits = find::edits(&file, &text).with_context(|| format!("reading {}", file.display()))?;
            let is_wanted = |edit: &Edit| {
                options.functions.is_empty()
                    || options.functions.iter().any(|part| edit.mutant.function.contains(part.as_str()))
            };
            found.push((file, text, edits.into_iter().filter(is_wanted).collect::<Vec<_>>()));
        }
    }
    let mut all: Vec<Edit> = Vec::new();
    let mut files = BTreeMap::new();
    for (file, text, edits) in found {
        let first = all.len();
        all.extend(edits);
        files.insert(file, (text, first..all.len()));
    }
    ensure!(!all.is_empty(), "no mutants in these files");
    println!("{} mutants; building once", all.len());
    let built = scratch.build(&options.package, &options.with, &files, &all)?;
    println!("{} do not compile and are left out; recording which test reaches what", built.left_out.len());
    let recorded = judge::record(&scratch, &built.programs, &options.skip)?;
    let all_tests = recorded.tests.iter().map(|test| test.time.as_secs_f64()).sum::<f64>();
    println!("{} tests in {all_tests:.0} s; those that take longest:", recorded.tests.len());
    recorded.longest().for_each(|test| println!("  {:.1} s {}", test.time.as_secs_f64(), test.name));
    let chosen = sample(all.len(), &built.left_out, options.limit, options.seed);
    let end = Instant::now() + options.time;
    let kept = report::Kept::read(&root)?;
    let verdicts = judge::judge(&scratch, &built.programs, &recorded, &chosen, end, |number, verdict| {
        kept.show(&all[number].mutant, verdict);
    })?;
    report::print(&all, &verdicts, chosen.len(), &kept);
    Ok(())
}

/// The numbers of the mutants to try, in an order that the seed gives.
fn sample(count: usize, left_out: &std::collections::BTreeSet<usize>, limit: usize, seed: u64) -> Vec<usize> {
    let mut chosen: Vec<usize> = (0..count).filter(|number| !left_out.contains(number)).collect();
    if limit < chosen.len() {
        let mut state = seed;
        let mut keyed: Vec<(u64, usize)> = chosen.into_iter().map(|number| (next(&mut state), number)).collect();
        keyed.sort_unstable();
        keyed.truncate(limit);
        chosen = keyed.into_iter().map(|(_, number)| number).collect();
    }
    chosen
}

/// The next of a row of numbers that look random (SplitMix64).
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn parse(args: &[String]) -> Result<Options> {
    let mut options = Options {
        package: String::new(),
        files: Vec::new(),
        functions: Vec::new(),
        limit: usize::MAX,
        seed: 1,
        time: Duration::from_mins(30),
        with: Vec::new(),
        skip: Vec::new(),
    };
    let list = |value: &str| value.split(',').map(str::to_owned).collect::<Vec<_>>();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value\n{USAGE}"));
        match arg.as_str() {
            "--files" => options.files = list(value()?),
            "--functions" => options.functions = list(value()?),
            "--limit" => options.limit = value()?.parse().context("--limit")?,
            "--seed" => options.seed = value()?.parse().context("--seed")?,
            "--minutes" => options.time = Duration::from_secs(60 * value()?.parse::<u64>().context("--minutes")?),
            "--with" => options.with = list(value()?),
            "--skip" => options.skip = list(value()?),
            name if !name.starts_with('-') && options.package.is_empty() => options.package = name.to_owned(),
            _ => bail!("{USAGE}"),
        }
    }
    ensure!(!options.package.is_empty(), "{USAGE}");
    Ok(options)
}
