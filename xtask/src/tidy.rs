//! `cargo xtask tidy`: the house rules that a compiler does not know.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

/// Who may depend on whom, among ours. Tests of any crate may use more.
const ARROWS: &[(&str, &[&str])] = &[
    (
        "mainstay",
        &[
            "mainstay-api",
            "mainstay-cli",
            "mainstay-client",
            "mainstay-nfs",
            "mainstay-node",
            "mainstay-runtime",
            "mainstay-server",
        ],
    ),
    ("mainstay-api", &[]),
    ("mainstay-store", &[]),
    ("mainstay-runtime", &[]),
    ("mainstay-tasks", &[]),
    ("mainstay-nfs", &["mainstay-runtime"]),
    ("mainstay-logic", &["mainstay-api"]),
    ("mainstay-client", &["mainstay-api"]),
    ("mainstay-server", &["mainstay-api", "mainstay-client", "mainstay-logic", "mainstay-store", "mainstay-tasks"]),
    (
        "mainstay-node",
        &["mainstay-api", "mainstay-client", "mainstay-logic", "mainstay-nfs", "mainstay-runtime", "mainstay-tasks"],
    ),
    ("mainstay-cli", &["mainstay-api", "mainstay-client"]),
    ("mainstay-sim", &["mainstay-api", "mainstay-client", "mainstay-logic", "mainstay-server", "mainstay-store"]),
    ("xtask", &["mainstay-api", "mainstay-client"]),
];

/// The crates that may have `unsafe`.
const UNSAFE_ROOMS: &[&str] = &["./crates/runtime/", "./crates/node/"];

/// A file longer than this is a room that wants dividing.
const MAX_LINES: usize = 800;

/// A line is no wider than this many columns, but for a text that would be harder to find in pieces.
const MAX_COLUMNS: usize = 120;

/// What `logic` must not touch.
const NOT_IN_LOGIC: &[&str] =
    &["std::fs", "std::net::Tcp", "std::net::Udp", "std::time::", "tokio::", "HashMap", "async fn", "Timestamp::now"];

/// Checks everything and says all that is wrong at once.
pub fn run() -> Result<()> {
    let mut wrong = arrows()?;
    walk(Path::new("."), &mut |path, text| {
        if path.extension().is_some_and(|extension| extension == "md") {
            wrong.extend(wide_lines(path, text, is_too_wide_in_markdown()));
            return;
        }
        let lines = text.lines().count();
        if lines > MAX_LINES {
            wrong.push(format!("{}: {lines} lines, more than {MAX_LINES}", path.display()));
        }
        wrong.extend(wide_lines(path, text, is_too_wide));
        let may_be_unsafe = UNSAFE_ROOMS.iter().any(|room| path.starts_with(room));
        if !may_be_unsafe && text.lines().any(is_unsafe) {
            wrong.push(format!("{}: unsafe outside of runtime and node", path.display()));
        }
        if path.starts_with("./crates/logic/src") {
            for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//")) {
                for word in NOT_IN_LOGIC.iter().filter(|word| line.contains(**word)) {
                    wrong.push(format!("{}:{}: {word} in logic", path.display(), number + 1));
                }
            }
        }
    })?;
    if wrong.is_empty() {
        println!("tidy");
        return Ok(());
    }
    bail!("{}", wrong.join("\n"))
}

/// The lines of a file that are too wide, as they are told.
fn wide_lines(path: &Path, text: &str, mut is_too_wide: impl FnMut(&str) -> bool) -> Vec<String> {
    let wide = text.lines().enumerate().filter(|(_, line)| is_too_wide(line));
    let told =
        |(number, line): (usize, &str)| format!("{}:{}: {} columns", path.display(), number + 1, line.chars().count());
    wide.map(told).collect()
}

/// Whether `rustfmt`, which leaves comments and macros alone, would have broken it.
fn is_too_wide(line: &str) -> bool {
    line.chars().count() > MAX_COLUMNS && (line.trim_start().starts_with("//") || !line.contains('"'))
}

/// The same of the lines of one Markdown file, asked in order: rows of tables, what programs print, and items that
/// begin with a piece of code stay whole.
fn is_too_wide_in_markdown() -> impl FnMut(&str) -> bool {
    let mut fenced = false;
    move |line| {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        }
        !fenced && !line.starts_with('|') && !line.starts_with("- `") && line.chars().count() > MAX_COLUMNS
    }
}

/// Whether a line of code, not a comment, opens or declares what the compiler does not check.
fn is_unsafe(line: &str) -> bool {
    // In two pieces, since this file is looked at too.
    let forms = [
        concat!("unsafe", " {"),
        concat!("unsafe", " fn"),
        concat!("unsafe", " impl"),
        concat!("unsafe", " trait"),
        concat!("unsafe", " extern"),
    ];
    !line.trim_start().starts_with("//") && forms.iter().any(|form| line.contains(form))
}

fn arrows() -> Result<Vec<String>> {
    let output = Command::new("cargo").args(["metadata", "--format-version", "1", "--no-deps"]).output()?;
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let allowed: BTreeMap<_, _> = ARROWS.iter().copied().collect();
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or("");
        let Some(may) = allowed.get(name) else {
            wrong.push(format!("{name} has no line in xtask's arrows"));
            continue;
        };
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        let dependencies = dependencies.filter(|dependency| dependency["kind"].is_null());
        let on: Vec<&str> = dependencies.filter_map(|dependency| dependency["name"].as_str()).collect();
        for on in on.iter().filter(|on| on.starts_with("mainstay") && !may.contains(on)) {
            wrong.push(format!("{name} must not depend on {on}"));
        }
        for unused in may.iter().filter(|allowed| !on.contains(allowed)) {
            wrong.push(format!("{name} may depend on {unused}, and does not: take it out of xtask's arrows"));
        }
    }
    Ok(wrong)
}

fn walk(folder: &Path, visit: &mut dyn FnMut(&Path, &str)) -> Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                walk(&path, visit)?;
            }
        } else if name.ends_with(".rs") || name.ends_with(".md") {
            visit(&path, &std::fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_markdown_are_wrapped_but_what_stays_whole() {
        let wide = "x".repeat(MAX_COLUMNS + 1);
        let text = format!("{wide}\n| {wide} |\n- `{wide}`: why\n```\n{wide}\n```\n- {wide}\n{}", &wide[1..]);
        let told = wide_lines(Path::new("a.md"), &text, is_too_wide_in_markdown());
        assert_eq!(told, ["a.md:1: 121 columns", "a.md:7: 123 columns"]);
    }

    #[test]
    fn what_the_compiler_does_not_check_is_seen_in_every_form() {
        for form in ["{ call() }", "fn call()", "impl Send for A {}", "extern \"C\" {}", "trait A {}"] {
            assert!(is_unsafe(&["    unsafe", form].join(" ")), "{form}");
        }
        for line in [concat!("// unsafe", " { call() }"), "#![forbid(unsafe_code)]", "let unsafe_sysctls = 1;"] {
            assert!(!is_unsafe(line), "{line}");
        }
    }
}
