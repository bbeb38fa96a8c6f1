//! A copy of the workspace with all mutants of one crate in it, and the programs of its tests.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::edit::{Edit, Rendered, render};
use super::find::is_test;

/// How often what does not compile is taken out before it is given up. The compiler says what is wrong with types
/// first, and only when that is right what is wrong with borrows.
const ROUNDS: usize = 16;
/// The mutants that did not compile in earlier runs, below `target/mutants`.
const KNOWN: &str = "left-out";

/// In the mutated crate: which mutant is on, and (while it is recorded) which are come across.
const SWITCH: &str = r#"
#[doc(hidden)]
#[allow(missing_docs, clippy::all)]
pub mod mutant {
    use std::io::Write as _;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{LazyLock, Mutex};
    static CHOSEN: LazyLock<usize> =
        LazyLock::new(|| std::env::var("MUTANT").ok().and_then(|it| it.parse().ok()).unwrap_or(usize::MAX));
    static REACHED: LazyLock<Option<Mutex<std::fs::File>>> = LazyLock::new(|| {
        let file = std::env::var_os("MUTANTS_REACHED")?;
        std::fs::OpenOptions::new().create(true).append(true).open(file).ok().map(Mutex::new)
    });
    static SEEN: [AtomicBool; COUNT] = [const { AtomicBool::new(false) }; COUNT];
    pub fn on(number: usize) -> bool {
        if let Some(file) = &*REACHED
            && !SEEN[number].swap(true, Ordering::Relaxed)
        {
            let _ = file.lock().unwrap().write_all(format!("{number}\n").as_bytes());
        }
        *CHOSEN == number
    }
}
"#;

/// The copy and where its builds lie.
pub struct Scratch {
    pub tree: PathBuf,
    pub target: PathBuf,
    /// Programs of tests, and what they make: this run's own.
    pub run: tempfile::TempDir,
}

/// A program of tests.
#[derive(Clone, Debug)]
pub struct Program {
    pub path: PathBuf,
    /// Where cargo would run it.
    pub folder: PathBuf,
}

/// What came of a build.
pub struct Built {
    pub programs: Vec<Program>,
    pub left_out: BTreeSet<usize>,
}

/// Each file's text, and the numbers of its edits.
pub type Files = BTreeMap<PathBuf, (String, Range<usize>)>;

impl Scratch {
    /// Copies what git knows or would add.
    pub fn copy(root: &Path) -> Result<Scratch> {
        let target = root.join("target/mutants");
        let tree = target.join("tree");
        let listed =
            Command::new("git").args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).output()?;
        ensure!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
        let listed = String::from_utf8(listed.stdout)?;
        let wanted: BTreeSet<&Path> = listed
            .split('\0')
            .filter(|name| !name.is_empty())
            .map(Path::new)
            .filter(|file| root.join(file).is_file())
            .collect();
        for file in &wanted {
            write_if_changed(&tree.join(file), &std::fs::read(root.join(file))?)?;
        }
        let mut stale = Vec::new();
        walk(&tree, &mut |path| {
            if path.strip_prefix(&tree).is_ok_and(|below| !wanted.contains(below)) {
                stale.push(path.to_owned());
            }
        })?;
        stale.iter().try_for_each(std::fs::remove_file)?;
        Ok(Scratch { tree, run: tempfile::tempdir_in(&target)?, target })
    }

    /// A crate's own sources but for its tests.
    pub fn sources(&self, package: &str) -> Result<Vec<PathBuf>> {
        let folder = Path::new("crates").join(package).join("src");
        ensure!(self.tree.join(&folder).join("lib.rs").is_file(), "no such crate: {package}");
        let (mut files, mut tests) = (Vec::new(), Vec::new());
        walk(&self.tree.join(&folder), &mut |path| files.push(path.to_owned()))?;
        files.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
        for path in &files {
            let parsed =
                syn::parse_file(&std::fs::read_to_string(path)?).with_context(|| path.display().to_string())?;
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let beside = path.parent().unwrap_or(path);
            let below = if matches!(&*stem, "lib" | "mod") { beside.to_owned() } else { beside.join(&*stem) };
            for item in &parsed.items {
                if let syn::Item::Mod(module) = item
                    && module.content.is_none()
                    && is_test(&module.attrs)
                {
                    tests.push(below.join(module.ident.to_string()));
                }
            }
        }
        let is_test =
            |path: &Path| tests.iter().any(|test| path.starts_with(test) || *path == test.with_extension("rs"));
        let mut files: Vec<PathBuf> = files.into_iter().filter(|path| !is_test(path)).collect();
        files.sort();
        files.into_iter().map(|path| Ok(path.strip_prefix(&self.tree)?.to_owned())).collect()
    }

    /// Builds the tests with all edits that compile.
    pub fn build(&self, package: &str, with: &[String], files: &Files, edits: &[Edit]) -> Result<Built> {
        // What did not compile last time does not now.
        let known = std::fs::read_to_string(self.target.join(KNOWN)).unwrap_or_default();
        let mut known: BTreeSet<String> = known.lines().map(str::to_owned).collect();
        let name =
            |edit: &Edit| format!("{}: {}: {}", edit.mutant.file.display(), edit.mutant.function, edit.mutant.change);
        let mut left_out: BTreeSet<usize> =
            (0..edits.len()).filter(|number| known.contains(&name(&edits[*number]))).collect();
        for _ in 0..ROUNDS {
            let mut rendered = BTreeMap::new();
            let entry = Path::new("crates").join(package).join("src/lib.rs");
            let switch = SWITCH.replace("COUNT", &edits.len().to_string());
            if !files.contains_key(&entry) {
                let text = std::fs::read_to_string(Path::new(".").join(&entry))?;
                write_if_changed(&self.tree.join(&entry), format!("{text}{switch}").as_bytes())?;
            }
            for (file, (text, numbers)) in files {
                let wanted: Vec<(usize, &Edit)> = numbers
                    .clone()
                    .filter(|number| !left_out.contains(number))
                    .map(|number| (number, &edits[number]))
                    .collect();
                let made = render(text, &wanted);
                let end = if *file == entry { &*switch } else { "" };
                write_if_changed(&self.tree.join(file), format!("{}{end}", made.text).as_bytes())?;
                rendered.insert(file.clone(), made);
            }
            let (programs, errors) = self.cargo(package, with)?;
            if errors.is_empty() {
                known.extend(left_out.iter().map(|number| name(&edits[*number])));
                let known: Vec<String> = known.into_iter().collect();
                std::fs::write(self.target.join(KNOWN), known.join("\n"))?;
                return Ok(Built { programs: self.keep(programs)?, left_out });
            }
            let before = left_out.len();
            for error in &errors {
                left_out.extend(blamed(error, &rendered, edits));
            }
            println!("  {} do not compile yet", left_out.len());
            if left_out.len() == before {
                bail!("does not compile, whatever is left out:\n{}", errors[0]["rendered"].as_str().unwrap_or(""));
            }
        }
        bail!("does not compile after {ROUNDS} rounds")
    }

    /// One build: its programs, or the compiler's errors.
    fn cargo(&self, package: &str, with: &[String]) -> Result<(Vec<Program>, Vec<Value>)> {
        let mut cargo = Command::new(std::env::var_os("MUTANTS_CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["test", "--no-run", "--lib", "--tests", "--message-format=json"]).current_dir(&self.tree);
        for name in std::iter::once(package).chain(with.iter().map(String::as_str)) {
            cargo.args(["-p", &format!("mainstay-{name}")]);
        }
        // No lines for debuggers: nobody looks, and they take most of the linking.
        cargo.env("CARGO_TARGET_DIR", self.target.join("build")).env("CARGO_PROFILE_DEV_DEBUG", "0");
        let output = cargo.stderr(Stdio::piped()).output().context("running cargo")?;
        let (mut programs, mut errors) = (Vec::new(), Vec::new());
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let Ok(message) = serde_json::from_str::<Value>(line) else { continue };
            let text = |path: &str| message.pointer(path).and_then(Value::as_str).map(str::to_owned);
            match message["reason"].as_str() {
                // The last one only counts the others: it has no span.
                Some("compiler-message") if message.pointer("/message/level") == Some(&Value::from("error")) => {
                    errors.extend(message.get("message").filter(|it| it["spans"] != Value::Array(Vec::new())).cloned());
                }
                Some("compiler-artifact") if message.pointer("/profile/test") == Some(&Value::Bool(true)) => {
                    if let (Some(path), Some(manifest)) = (text("/executable"), text("/manifest_path")) {
                        let folder = Path::new(&manifest).parent().unwrap_or(Path::new("/")).to_owned();
                        programs.push(Program { path: path.into(), folder });
                    }
                }
                _ => {}
            }
        }
        if !output.status.success() && errors.is_empty() {
            bail!("cargo: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok((programs, errors))
    }

    /// Programs that the next build does not touch.
    fn keep(&self, programs: Vec<Program>) -> Result<Vec<Program>> {
        let kept = programs.into_iter().map(|program| {
            let path = self.run.path().join(program.path.file_name().unwrap_or_default());
            std::fs::copy(&program.path, &path).with_context(|| program.path.display().to_string())?;
            Ok(Program { path, folder: program.folder })
        });
        kept.collect()
    }
}

/// The mutants that are to blame for an error: those that it is in, the innermost for each part of the code that it
/// names; else those that it is around; else all of the functions that it names. (An assignment that a mutant leaves
/// out may prolong a borrow, and then nothing that the error names is near it.)
fn blamed(error: &Value, rendered: &BTreeMap<PathBuf, Rendered>, edits: &[Edit]) -> BTreeSet<usize> {
    let mut spans = Vec::new();
    let mut all = vec![error];
    all.extend(error["children"].as_array().into_iter().flatten());
    for message in all {
        for span in message["spans"].as_array().into_iter().flatten() {
            let byte = |key: &str| span[key].as_u64().and_then(|byte| usize::try_from(byte).ok()).unwrap_or(0);
            let file = Path::new(span["file_name"].as_str().unwrap_or(""));
            if let Some(made) = rendered.get(file) {
                spans.push((made, byte("byte_start")..byte("byte_end"), span["is_primary"] == true));
            }
        }
    }
    let inside = |primary: bool| {
        let spans = spans.iter().filter(move |(.., is_primary)| *is_primary || !primary);
        let innermost = spans.filter_map(|(made, span, _)| {
            let around = made.places.iter().filter(|(place, _)| place.start <= span.start && span.end <= place.end);
            around.min_by_key(|(place, _)| place.len()).map(|(_, number)| *number)
        });
        innermost.collect::<BTreeSet<usize>>()
    };
    let around = || {
        let within = spans.iter().flat_map(|(made, span, _)| {
            made.places.iter().filter(move |(place, _)| span.start <= place.start && place.end <= span.end)
        });
        within.map(|(_, number)| *number).collect::<BTreeSet<usize>>()
    };
    let same_function = || {
        let within = spans.iter().flat_map(|(made, span, _)| {
            let distance =
                |place: &Range<usize>| place.start.saturating_sub(span.end).max(span.start.saturating_sub(place.end));
            let nearest = made.places.iter().min_by_key(|(place, _)| distance(place));
            let function = nearest.map(|(_, number)| &edits[*number].mutant.function);
            made.places.iter().filter(move |(_, number)| Some(&edits[*number].mutant.function) == function)
        });
        within.map(|(_, number)| *number).collect::<BTreeSet<usize>>()
    };
    let found = [inside(true), inside(false), around()].into_iter().find(|blamed| !blamed.is_empty());
    found.unwrap_or_else(same_function)
}

/// Writes a file only where that changes something: builds go by its time.
fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<()> {
    if std::fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    std::fs::create_dir_all(path.parent().unwrap_or(path))?;
    std::fs::write(path, bytes).with_context(|| path.display().to_string())
}

fn walk(folder: &Path, each: &mut dyn FnMut(&Path)) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), each)?;
        } else {
            each(&entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::find::edits;
    use super::*;

    #[test]
    fn an_error_beside_all_mutants_is_blamed_on_those_of_its_function() {
        let source = "fn f(a: &mut Vec<u8>) -> &mut u8 { while g() { a.clear(); } let b = &mut a[0]; b }\n\
                      fn h(a: &mut Vec<u8>) { a.clear(); }\n";
        let file = PathBuf::from("a.rs");
        let edits = edits(&file, source).unwrap();
        let numbered: Vec<(usize, &Edit)> = edits.iter().enumerate().collect();
        let made = render(source, &numbered);
        let blamed_for = |text: &str| {
            let at = made.text.find(text).unwrap();
            let span = serde_json::json!({"file_name": "a.rs", "byte_start": at, "byte_end": at + text.len(),
                                          "is_primary": true});
            let error = serde_json::json!({"spans": [span], "children": []});
            let rendered = BTreeMap::from([(file.clone(), render(source, &numbered))]);
            let changes = blamed(&error, &rendered, &edits).into_iter();
            changes.map(|number| edits[number].mutant.change.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(blamed_for("a.clear()"), ["without a.clear();"], "it is within that one");
        assert_eq!(blamed_for("let b = &mut a[0]"), ["g() → false", "without a.clear();"], "all of f, none of h");
    }
}
