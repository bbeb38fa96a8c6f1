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
            "mainstay-tasks",
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
        let lines = text.lines().count();
        if lines > MAX_LINES {
            wrong.push(format!("{}: {lines} lines, more than {MAX_LINES}", path.display()));
        }
        for (number, line) in text.lines().enumerate().filter(|(_, line)| is_too_wide(line)) {
            wrong.push(format!("{}:{}: {} columns", path.display(), number + 1, line.chars().count()));
        }
        let may_be_unsafe = UNSAFE_ROOMS.iter().any(|room| path.starts_with(room));
        if path.starts_with("./crates")
            && !may_be_unsafe
            && text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains("unsafe {"))
        {
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

/// Whether `rustfmt`, which leaves comments and macros alone, would have broken it.
fn is_too_wide(line: &str) -> bool {
    line.chars().count() > MAX_COLUMNS && (line.trim_start().starts_with("//") || !line.contains('"'))
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
        for dependency in
            package["dependencies"].as_array().into_iter().flatten().filter(|dependency| dependency["kind"].is_null())
        {
            let on = dependency["name"].as_str().unwrap_or("");
            if on.starts_with("mainstay") && !may.contains(&on) {
                wrong.push(format!("{name} must not depend on {on}"));
            }
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
        } else if name.ends_with(".rs") {
            visit(&path, &std::fs::read_to_string(&path)?);
        }
    }
    Ok(())
}
