//! Links of pages that were fetched through the proxy: what leads to the backend must lead through the proxy again.

/// Attributes that hold one address, whatever their element.
const ATTRIBUTES: &[&str] = &[
    "action",
    "background",
    "cite",
    "classid",
    "codebase",
    "data",
    "formaction",
    "href",
    "icon",
    "longdesc",
    "manifest",
    "poster",
    "profile",
    "src",
    "usemap",
];

/// The address through the proxy, where it leads to the backend: an absolute path, or an absolute address of its host.
///
/// `/a?b` with the prefix `/api/v1/namespaces/n/pods/p/proxy` becomes `/api/v1/namespaces/n/pods/p/proxy/a?b`. Relative
/// addresses, other hosts and what leads through the proxy already are left alone (`None`).
pub fn lead(address: &str, prefix: &str, host: &str) -> Option<String> {
    let path = match address.split_once("://") {
        Some(("http" | "https", rest)) => {
            let (there, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
            (there == host).then_some(path)?
        }
        _ if address.starts_with("//") => {
            let rest = address.get(2..)?;
            let (there, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
            (there == host).then_some(path)?
        }
        _ if address.starts_with('/') => address,
        _ => return None,
    };
    if path == prefix || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/')) {
        return None;
    }
    Some(format!("{prefix}{path}"))
}

/// A page with its links led through the proxy; everything else stays byte for byte.
pub fn rewrite(page: &[u8], prefix: &str, host: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(page.len() + page.len() / 8);
    let mut rest = page;
    while let Some(at) = rest.iter().position(|byte| *byte == b'<') {
        let (before, tag) = rest.split_at(at);
        out.extend_from_slice(before);
        if let Some(comment) = tag.strip_prefix(b"<!--") {
            let end = find(comment, b"-->").map_or(tag.len(), |end| 4 + end + 3);
            out.extend_from_slice(&tag[..end]);
            rest = &tag[end..];
            continue;
        }
        let end = tag_end(tag);
        rewrite_tag(&tag[..end], prefix, host, &mut out);
        rest = &tag[end..];
    }
    out.extend_from_slice(rest);
    out
}

/// Where a tag ends: after its `>` outside of quotes, or with the page.
fn tag_end(tag: &[u8]) -> usize {
    let mut quote = None;
    for (at, byte) in tag.iter().enumerate().skip(1) {
        match (quote, byte) {
            (None, b'>') => return at + 1,
            (None, b'"' | b'\'') => quote = Some(*byte),
            (Some(open), byte) if open == *byte => quote = None,
            _ => {}
        }
    }
    tag.len()
}

fn rewrite_tag(tag: &[u8], prefix: &str, host: &str, out: &mut Vec<u8>) {
    let mut at = 0;
    while let Some(equals) = tag[at..].iter().position(|byte| *byte == b'=').map(|found| at + found) {
        let name: Vec<u8> = tag[..equals]
            .iter()
            .rev()
            .skip_while(|byte| byte.is_ascii_whitespace())
            .take_while(|byte| byte.is_ascii_alphanumeric() || **byte == b'-')
            .map(u8::to_ascii_lowercase)
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .collect();
        let blank = tag[equals + 1..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        let begin = equals + 1 + blank;
        let (value, end) = match tag.get(begin) {
            Some(quote @ (b'"' | b'\'')) => {
                let length = tag[begin + 1..].iter().take_while(|byte| *byte != quote).count();
                (begin + 1..begin + 1 + length, (begin + length + 2).min(tag.len()))
            }
            _ => {
                let length = tag[begin.min(tag.len())..]
                    .iter()
                    .take_while(|byte| !byte.is_ascii_whitespace() && **byte != b'>')
                    .count();
                (begin..begin + length, begin + length)
            }
        };
        let led = std::str::from_utf8(&tag[value.clone()])
            .ok()
            .filter(|_| ATTRIBUTES.iter().any(|known| known.as_bytes() == name))
            .and_then(|address| lead(address, prefix, host));
        match led {
            Some(led) => {
                out.extend_from_slice(&tag[at..value.start]);
                out.extend_from_slice(led.as_bytes());
                out.extend_from_slice(&tag[value.end..end]);
            }
            None => out.extend_from_slice(&tag[at..end]),
        }
        at = end;
    }
    out.extend_from_slice(&tag[at..]);
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFIX: &str = "/api/v1/namespaces/n/pods/p/proxy";
    const HOST: &str = "10.244.0.5:80";

    #[test]
    fn addresses_lead_through_the_proxy() {
        let through = |path: &str| Some(format!("{PREFIX}{path}"));
        let table = [
            ("/a?b#c", through("/a?b#c")),
            ("http://10.244.0.5:80/a", through("/a")),
            ("//10.244.0.5:80/a", through("/a")),
            ("http://10.244.0.5:80", through("")),
            ("http://example.com/a", None),
            ("a/b", None),
            ("#c", None),
            ("mailto:a", None),
            (PREFIX, None),
            ("/api/v1/namespaces/n/pods/p/proxy/x", None),
        ];
        for (address, wanted) in table {
            assert_eq!(lead(address, PREFIX, HOST), wanted, "{address}");
        }
    }

    #[test]
    fn pages_keep_every_byte_but_their_links() {
        let table = [
            (r#"<a href="/rewriteme">test</a>"#, format!(r#"<a href="{PREFIX}/rewriteme">test</a>"#)),
            ("<IMG alt='a>b' SRC = '/i.png' />x", format!("<IMG alt='a>b' SRC = '{PREFIX}/i.png' />x")),
            ("<a href=/x>", format!("<a href={PREFIX}/x>")),
            (r#"<a title="/x" href="y">"#, r#"<a title="/x" href="y">"#.to_owned()),
            (r#"<!-- <a href="/x"> --><p>"#, r#"<!-- <a href="/x"> --><p>"#.to_owned()),
            ("a < b = /c", "a < b = /c".to_owned()),
            ("<a href=", "<a href=".to_owned()),
            ("<a href=\"/x", format!("<a href=\"{PREFIX}/x")),
            ("", String::new()),
        ];
        for (page, wanted) in table {
            assert_eq!(String::from_utf8_lossy(&rewrite(page.as_bytes(), PREFIX, HOST)), wanted, "{page}");
        }
    }

    #[test]
    fn any_bytes_are_a_page_x4() {
        let mut state = 7_u64;
        for _ in 0..2000 {
            let page: Vec<u8> = (0..40)
                .map(|_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    *b"<>=\"' a/href-!\xff".get((state >> 33) as usize % 15).unwrap_or(&b'<')
                })
                .collect();
            let rewritten = rewrite(&page, "", "h");
            assert_eq!(rewritten, page, "with an empty prefix nothing changes");
        }
    }
}
