//! Regular expressions of schemas and rules. They are written in Go's syntax (RE2); the `regex` crate's differs in what
//! is listed at [`translated`].

use std::iter::Peekable;
use std::str::Chars;

/// Bytes that one compiled pattern may take: `[\p{L}\p{N}]{1,63}` takes several megabytes.
pub(super) const MAX_PATTERN: usize = 8 << 20;
/// Bytes that a pattern may take which an expression makes while it runs, and perhaps another one for every item.
pub const MAX_MADE: usize = 1 << 20;
/// Bytes that it may take while it is looked for.
const MAX_LOOKING: usize = 1 << 20;
/// What a small one is taken to take (bytes).
pub const LEAST_PATTERN: usize = 8 << 10;
/// How often Go lets something be repeated by a count.
const MAX_REPEAT: u32 = 1000;
/// How many characters are looked ahead for the end of a count or of a class' name: the longest that mean something,
/// `[:^xdigit:]` and `{1000,1000}`, have fewer. Without a bound, a pattern of braces would cost its square.
const MAX_AHEAD: usize = 32;

/// Compiles a pattern of Go's syntax. What it can't be, and what takes more than [`MAX_PATTERN`], is an error.
pub fn compile(text: &str) -> Result<regex::Regex, regex::Error> {
    built(&translated(text)?, MAX_PATTERN)
}

fn built(translated: &str, most: usize) -> Result<regex::Regex, regex::Error> {
    regex::RegexBuilder::new(translated).size_limit(most).dfa_size_limit(MAX_LOOKING).build()
}

/// As [`compile`], of what takes at most `most` bytes, with how many it takes: the least limit that it fits, which is
/// [`LEAST_PATTERN`] times a power of two.
pub fn measured(text: &str, most: usize) -> Result<(regex::Regex, usize), regex::Error> {
    let translated = translated(text)?;
    let mut size = LEAST_PATTERN;
    loop {
        match built(&translated, size) {
            Err(regex::Error::CompiledTooBig(_)) if size < most => size *= 2,
            done => return Ok((done?, size)),
        }
    }
}

/// The same pattern in the syntax of `regex`. In Go, `[` and set operators are plain characters inside of a class; `{`
/// is one where no count follows; `\d`, `\s`, `\w` and `\b` are about ASCII; `\Q…\E`, octal escapes and `\p{^…}` exist;
/// a backslash makes any punctuation plain, also `<` and `>`.
fn translated(text: &str) -> Result<String, regex::Error> {
    let mut out = String::with_capacity(text.len() + 16);
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\\' if rest.next_if_eq(&'Q').is_some() => quoted(&mut rest, &mut out),
            '\\' => escape(&mut rest, &mut out, false),
            '[' => class(&mut rest, &mut out),
            '{' => count(&mut rest, &mut out)?,
            c => out.push(c),
        }
    }
    Ok(out)
}

/// What is plain up to `\E`.
fn quoted(rest: &mut Peekable<Chars<'_>>, out: &mut String) {
    while let Some(c) = rest.next() {
        if c == '\\' && rest.next_if_eq(&'E').is_some() {
            return;
        }
        plain(c, out);
    }
}

/// What a backslash begins.
fn escape(rest: &mut Peekable<Chars<'_>>, out: &mut String, in_class: bool) {
    let Some(c) = rest.next() else { return out.push('\\') };
    match c {
        'd' => out.push_str("[0-9]"),
        'D' => out.push_str("[^0-9]"),
        's' => out.push_str(r"[\t\n\f\r ]"),
        'S' => out.push_str(r"[^\t\n\f\r ]"),
        'w' => out.push_str("[0-9A-Za-z_]"),
        'W' => out.push_str("[^0-9A-Za-z_]"),
        'b' if !in_class => out.push_str(r"(?-u:\b)"),
        'p' | 'P' => unicode_class(c == 'P', rest, out),
        // A single digit but 0 would refer back, which neither can.
        '0'..='7' if c == '0' || rest.peek().is_some_and(|next| ('0'..='7').contains(next)) => {
            let mut code = c.to_digit(8).unwrap_or(0);
            for _ in 0..2 {
                let Some(digit) = rest.peek().and_then(|next| next.to_digit(8)) else { break };
                code = code * 8 + digit;
                rest.next();
            }
            out.push_str(&format!(r"\x{{{code:x}}}"));
        }
        c if c.is_ascii_punctuation() => plain(c, out),
        c => {
            out.push('\\');
            out.push(c);
        }
    }
}

/// What follows `\p` or `\P`: one letter, or `{Name}`, or `{^Name}` for all others.
fn unicode_class(is_without: bool, rest: &mut Peekable<Chars<'_>>, out: &mut String) {
    let is_braced = rest.next_if_eq(&'{').is_some();
    let inverted = is_braced && rest.next_if_eq(&'^').is_some();
    out.push_str(if is_without == inverted { r"\p" } else { r"\P" });
    if is_braced {
        out.push('{');
        // One that is never closed is refused as it stands.
        let name = ahead(rest, '}').map_or(0, |name| name.chars().count() + 1);
        out.extend(rest.by_ref().take(name));
    }
}

/// A class, up to its `]`.
fn class(rest: &mut Peekable<Chars<'_>>, out: &mut String) {
    out.push('[');
    if rest.next_if_eq(&'^').is_some() {
        out.push('^');
    }
    if rest.next_if_eq(&']').is_some() {
        out.push_str(r"\]");
    }
    let mut is_range = false;
    while let Some(c) = rest.next() {
        let was_range = std::mem::replace(&mut is_range, false);
        match c {
            ']' => return out.push(']'),
            '\\' => escape(rest, out, true),
            '[' if rest.peek() == Some(&':') => named_class(rest, out),
            '-' if !was_range => {
                is_range = true;
                out.push('-');
            }
            c => plain(c, out),
        }
    }
}

/// `[:name:]`, whose `[` has been read, or the characters themselves where it is none.
fn named_class(rest: &mut Peekable<Chars<'_>>, out: &mut String) {
    match ahead(rest, ']').filter(|name| name.len() > 2 && name.ends_with(':')) {
        Some(name) => {
            out.push('[');
            out.extend(rest.by_ref().take(name.chars().count() + 1));
        }
        None => out.push_str(r"\["),
    }
}

/// `{n}`, `{n,}` and `{n,m}`, whose `{` has been read; anything else is a plain brace.
fn count(rest: &mut Peekable<Chars<'_>>, out: &mut String) -> Result<(), regex::Error> {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let written = ahead(rest, '}').unwrap_or_default();
    let (least, most) = written.split_once(',').unwrap_or((&written, ""));
    if !is_number(least) || !(most.is_empty() || is_number(most)) {
        out.push_str(r"\{");
        return Ok(());
    }
    let is_too_often = |text: &str| is_number(text) && text.parse().unwrap_or(u32::MAX) > MAX_REPEAT;
    if is_too_often(least) || is_too_often(most) {
        return Err(regex::Error::Syntax(format!("invalid repeat count: `{{{written}}}`")));
    }
    out.push('{');
    out.extend(rest.by_ref().take(written.len() + 1));
    Ok(())
}

/// What stands before `end`, if `end` comes within [`MAX_AHEAD`] characters.
fn ahead(rest: &Peekable<Chars<'_>>, end: char) -> Option<String> {
    let mut text = String::new();
    for c in rest.clone().take(MAX_AHEAD) {
        if c == end {
            return Some(text);
        }
        text.push(c);
    }
    None
}

/// A character that stands for itself.
fn plain(c: char, out: &mut String) {
    if matches!(
        c,
        '\\' | '.' | '+' | '*' | '?' | '(' | ')' | '|' | '[' | ']' | '{' | '}' | '^' | '$' | '#' | '&' | '-' | '~'
    ) {
        out.push('\\');
    }
    out.push(c);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pattern, what it matches and what not, as Go has it.
    const TABLE: &[(&str, &[&str], &[&str])] = &[
        // A class of an ingress controller's definition.
        (r#"^[^()<>@,;:\\"\/[\]?={} \t\x7f]+$"#, &["name"], &["a[b", "a]b", "a/b", "a b", ""]),
        (r"^[a&&b]$", &["a", "&", "b"], &["c"]),
        (r"^[a~~b]$", &["~"], &["c"]),
        (r"^[+--]$", &["+", ",", "-"], &["."]),
        (r"^[a-]$", &["a", "-"], &["b"]),
        (r"^[]a]$", &["]", "a"], &["b"]),
        (r"^[[:alpha:][]+$", &["a[b"], &["1"]),
        (r"^[[:x]$", &["[", ":", "x"], &["a"]),
        (r"^{{.*}}$", &["{{ a }}"], &["a"]),
        (r"^a{,2}$", &["a{,2}"], &["aa"]),
        (r"^a{2}b{1,}c{0,1}$", &["aab", "aabbc"], &["ab"]),
        (r"^\d\w\s$", &["1_ "], &["١_ ", "1é "]),
        (r"^[\d\-.]+$", &["1-2.3"], &["a"]),
        (r"^[^\W\d]$", &["a"], &["1", "-"]),
        (r"^\Qa.b[\E.$", &["a.b[c"], &["axb[c"]),
        (r"^\<a\>$", &["<a>"], &["a"]),
        (r"^\101\0$", &["A\0"], &["1010"]),
        (r"^\p{^Greek}\P{^Greek}\pL$", &["aαb"], &["ααb"]),
        (r"^\p{L}+$", &["aα"], &["a1", "{L}"]),
        (r"^\P{L}$", &["1"], &["a"]),
        (r"^[\p{L}\p{N}_.-]{1,63}$", &["é_1.a-b"], &["a b", ""]),
        (r"^[^\p{Lu}]+$", &["abc"], &["aB"]),
        (r"^[\P{^Greek}x]+$", &["αx"], &["ab"]),
        (r"^(?P<year>\d{4})\/(?:a|b)\z", &["2026/b"], &["2026/c"]),
        (r"\bcat\b", &["a cat"], &["cats"]),
        (r"^\Qa\b\E$", &[r"a\b"], &["ab", "a"]),
        (r"^[^]a]$", &["b"], &["]", "a"]),
        (r"^\12\x41$", &["\nA"], &["12A"]),
        (r"^a{2,x}$", &["a{2,x}"], &["aa"]),
        (r"^a{x2}$", &["a{x2}"], &["aa"]),
        (r"^a{2}}$", &["aa}"], &["aa"]),
        (r"^[a{2}]+$", &["a{2}"], &["b"]),
    ];

    #[test]
    fn patterns_mean_what_they_mean_in_go() {
        for (pattern, matching, others) in TABLE {
            let compiled = compile(pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
            for text in *matching {
                assert!(compiled.is_match(text), "{pattern} and {text:?}");
            }
            for text in *others {
                assert!(!compiled.is_match(text), "{pattern} and {text:?}");
            }
        }
    }

    #[test]
    fn x4_braces_that_never_close_cost_what_they_are_long() {
        for (hostile, written) in [("{", r"\{"), ("[[:", r"[\[:")] {
            let times = 300_000;
            let pattern = hostile.repeat(times);
            assert_eq!(ahead(&pattern.chars().peekable(), '}'), None);
            let translated = translated(&pattern).unwrap();
            assert!(translated.starts_with(written), "{}", &translated[..8]);
        }
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for pattern in [
            "(",
            "[",
            "[a",
            "a{1001}",
            "a{2,1001}",
            "a{00000000001001}",
            r"\1",
            "*",
            r"\8",
            "(?<!a)b",
            "a\\",
            r"\p{L",
            r"\p{}",
            r"\p{^}",
            r"\p",
            r"[\b]",
            r"\7",
        ] {
            assert!(compile(pattern).is_err(), "{pattern}");
        }
        // What is as often as may be is taken.
        assert!(compile("a{1000}").is_ok() && compile("a{2,1000}").is_ok());
    }
}
