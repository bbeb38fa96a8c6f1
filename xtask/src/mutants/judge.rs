//! Which tests come across which mutants, and whether they notice them.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::Verdict;
use super::scratch::{Program, Scratch};

/// A test that takes longer is run after all others.
const FAST: Duration = Duration::from_millis(200);
/// How many times as long as they took, and how much longer, tests may take before a mutant counts as endless.
const SLOWER: u32 = 3;
const AT_LEAST: Duration = Duration::from_secs(5);
/// A test alone may take so long.
const ALONE: Duration = Duration::from_mins(10);
/// Memory of a program of tests, KiB: some mutants never stop collecting.
const MEMORY: &str = "4194304";

/// A test as it is when nothing is wrong.
#[derive(Debug)]
pub struct Test {
    pub program: usize,
    pub name: String,
    pub time: Duration,
}

/// What is known of the tests.
pub struct Recorded {
    pub tests: Vec<Test>,
    /// By mutant: the tests that come across it.
    pub reaching: BTreeMap<usize, Vec<usize>>,
}

impl Recorded {
    /// A few tests that take longest.
    pub fn longest(&self) -> impl Iterator<Item = &Test> {
        let mut tests: Vec<&Test> = self.tests.iter().collect();
        tests.sort_by_key(|test| std::cmp::Reverse(test.time));
        tests.into_iter().take(5)
    }
}

/// How a run of tests ended.
enum Ended {
    Passed,
    /// A test failed, or the program did not end well or in time.
    Failed,
}

/// Runs each test alone, but for those whose names contain one of `skip`.
pub fn record(scratch: &Scratch, programs: &[Program], skip: &[String]) -> Result<Recorded> {
    let mut names = Vec::new();
    for (index, program) in programs.iter().enumerate() {
        let listed = Command::new(&program.path).args(["--list", "--format", "terse"]).output()?;
        ensure!(listed.status.success(), "{}: {}", program.path.display(), listed.status);
        let listed = String::from_utf8(listed.stdout)?;
        let listed = listed.lines().filter_map(|line| line.strip_suffix(": test"));
        let listed = listed.filter(|name| !skip.iter().any(|part| name.contains(part.as_str())));
        names.extend(listed.map(|name| (index, name.to_owned())));
    }
    let recorded = Mutex::new((Vec::new(), BTreeMap::<usize, Vec<usize>>::new()));
    for_each(names.len(), |at| {
        let (index, name) = &names[at];
        let reached = scratch.run.path().join(format!("reached-{at}"));
        let begun = Instant::now();
        let mut command = command(scratch, &programs[*index], &[name.as_str()]);
        command.env("MUTANTS_REACHED", &reached);
        let ended = run(command, ALONE)?;
        if matches!(ended, Ended::Failed) {
            println!("  {name} fails without any mutant: it judges nothing");
            return Ok(());
        }
        let numbers = std::fs::read_to_string(&reached).unwrap_or_default();
        let mut recorded = recorded.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (tests, reaching) = &mut *recorded;
        numbers
            .lines()
            .filter_map(|number| number.parse().ok())
            .for_each(|number| reaching.entry(number).or_default().push(tests.len()));
        tests.push(Test { program: *index, name: name.clone(), time: begun.elapsed() });
        Ok(())
    })?;
    let (tests, reaching) = recorded.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(Recorded { tests, reaching })
}

/// What becomes of these mutants, until `end`: those whose turn did not come are missing. `each` is called at once.
pub fn judge(
    scratch: &Scratch,
    programs: &[Program],
    recorded: &Recorded,
    mutants: &[usize],
    end: Instant,
    each: impl Fn(usize, &Verdict) + Sync,
) -> Result<BTreeMap<usize, Verdict>> {
    let verdicts = Mutex::new(BTreeMap::new());
    for_each(mutants.len(), |at| {
        if Instant::now() >= end {
            return Ok(());
        }
        let number = mutants[at];
        let verdict = match recorded.reaching.get(&number) {
            None => Verdict::Unreached,
            Some(tests) if notices(scratch, programs, recorded, number, tests)? => Verdict::Killed,
            Some(_) => Verdict::Survived,
        };
        each(number, &verdict);
        verdicts.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(number, verdict);
        Ok(())
    })?;
    Ok(verdicts.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// Whether one of the tests fails with a mutant: first the fast ones of each program, then the slow ones.
fn notices(
    scratch: &Scratch,
    programs: &[Program],
    recorded: &Recorded,
    number: usize,
    tests: &[usize],
) -> Result<bool> {
    for is_fast in [true, false] {
        for (index, program) in programs.iter().enumerate() {
            let chosen: Vec<&Test> = tests
                .iter()
                .map(|test| &recorded.tests[*test])
                .filter(|test| test.program == index && (test.time <= FAST) == is_fast)
                .collect();
            if chosen.is_empty() {
                continue;
            }
            let names: Vec<&str> = chosen.iter().map(|test| test.name.as_str()).collect();
            let time: Duration = chosen.iter().map(|test| test.time).sum();
            let mut command = command(scratch, program, &names);
            command.env("MUTANT", number.to_string());
            if matches!(run(command, time * SLOWER + AT_LEAST)?, Ended::Failed) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn command(scratch: &Scratch, program: &Program, names: &[&str]) -> Command {
    let mut command = Command::new("nice");
    command
        .args(["-n", "19", "sh", "-c", &format!("ulimit -v {MEMORY}; exec \"$@\""), "sh"])
        .arg(&program.path)
        .args(["--exact", "--test-threads=1"])
        .args(names)
        .current_dir(&program.folder)
        .env("CARGO_MANIFEST_DIR", &program.folder)
        .env("TMPDIR", scratch.run.path())
        // The same inputs every time, and none that is written down or looked for longer than it needs to fail.
        .envs([("PROPTEST_RNG_SEED", "1"), ("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "true")])
        .envs([("PROPTEST_MAX_SHRINK_ITERS", "0"), ("RUST_BACKTRACE", "0")]);
    command
}

/// Runs tests until one of them fails or all have passed.
fn run(mut command: Command, limit: Duration) -> Result<Ended> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("running tests")?;
    let stdout = child.stdout.take().context("its output")?;
    let (sender, lines) = channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(std::io::Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    let end = Instant::now() + limit;
    let mut ended = None;
    while ended.is_none() {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) if line.starts_with("test ") && line.ends_with("FAILED") => ended = Some(Ended::Failed),
            Ok(line) if line.starts_with("test result: ok") => ended = Some(Ended::Passed),
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => ended = Some(Ended::Failed),
        }
    }
    // One that has ended already is only waited for.
    let _ = child.kill();
    child.wait().context("waiting for tests")?;
    drop(lines);
    let _ = reader.join();
    Ok(ended.unwrap_or(Ended::Failed))
}

/// Does something with each number below `count`, on as many threads as there are processors.
fn for_each(count: usize, each: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= count {
                return Ok(());
            }
            each(at)?;
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        running.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| anyhow::bail!("a thread panicked")))
    })
}
