//! Paths of fields as people read them, never longer than that (X4): a key of a map may be as long as a body, and what
//! is below it may be wrong a hundred thousand times.

use std::borrow::Cow;

/// The longest path that is shown (bytes). A longer one is cut there and ends with an ellipsis.
pub const MAX_PATH: usize = 1024;

/// One step from an object to what it contains.
#[derive(Clone, Debug)]
pub enum Step {
    /// A field or a map's key.
    Field(String),
    /// An item of a list.
    Index(usize),
}

/// At most so many bytes of a text; what is cut ends with an ellipsis, and is cut no further.
pub fn cut(text: &str, most: usize) -> Cow<'_, str> {
    const MARK: &str = "…";
    if text.len() <= most + MARK.len() {
        return Cow::Borrowed(text);
    }
    Cow::Owned(format!("{}{MARK}", &text[..text.floor_char_boundary(most)]))
}

/// The path of a field: `spec.replicas`.
pub fn field(path: &str, name: &str) -> String {
    let (path, name) = (cut(path, MAX_PATH), cut(name, MAX_PATH));
    match (path.len(), path.is_empty()) {
        (_, true) => name.into_owned(),
        (length, _) if length >= MAX_PATH => path.into_owned(),
        _ => cut(&format!("{path}.{name}"), MAX_PATH).into_owned(),
    }
}

/// The path of an item of a list: `spec.containers[0]`.
pub fn item(path: &str, index: usize) -> String {
    let path = cut(path, MAX_PATH);
    if path.len() >= MAX_PATH { path.into_owned() } else { format!("{path}[{index}]") }
}

/// The path of a property in a schema: `spec.properties[replicas]`.
pub fn property(path: &str, name: &str) -> String {
    field(path, &format!("properties[{}]", cut(name, MAX_PATH)))
}

/// A whole path: `spec.containers[0].name`.
pub fn shown(steps: &[Step]) -> String {
    let mut text = String::new();
    for step in steps {
        if text.len() > MAX_PATH {
            break;
        }
        match step {
            Step::Field(name) => {
                text.push_str(if text.is_empty() { "" } else { "." });
                text.push_str(&cut(name, MAX_PATH));
            }
            Step::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    cut(&text, MAX_PATH).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x4_a_path_is_never_longer_than_what_is_read() {
        assert_eq!(item(&field(&field("", "spec"), "containers"), 0), "spec.containers[0]");
        let long = "\u{fc}".repeat(1 << 20);
        let path = field("data", &long);
        assert!(path.starts_with("data.\u{fc}") && path.ends_with('…') && path.len() <= MAX_PATH + 3, "{}", path.len());
        assert_eq!((field(&path, "x"), item(&path, 7)), (path.clone(), path.clone()));
        assert_eq!(field(&format!("data.{long}"), "x"), path);
        let steps = [Step::Field("data".to_owned()), Step::Field(long), Step::Index(1), Step::Field("x".to_owned())];
        assert_eq!(shown(&steps), path);
        assert_eq!(shown(&[Step::Field("a".to_owned()), Step::Index(1), Step::Field("b".to_owned())]), "a[1].b");
    }
}
