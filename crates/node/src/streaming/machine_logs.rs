//! `/logs/`: the machine's own log files, as upstream's kubelet serves `/var/log`: folders as a page of links, files as
//! they are.
//!
//! *Differs*: a link that leads out of the folder is not there (upstream follows every link, so that whoever may write
//! a link into the folder reads the machine's files), nor is anything but folders and plain files; a folder's page ends
//! after [`MOST_NAMES`] names, and a file where it ended when it was opened.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::header::LOCATION;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use mainstay_runtime::safe_path;
use nix::fcntl::OFlag;
use tokio::sync::mpsc;

use super::routes::{Body, in_time, plain};

/// Names that a folder's page has.
pub const MOST_NAMES: usize = 10_000;
/// Bytes of a file that are read at once, and how many such pieces wait for a reader.
const PIECE: u64 = 64 << 10;
const PIECES: usize = 2;

/// What is at a path below the machine's logs; `None` is the folder, without the slash that its links go on from.
pub async fn answer(root: PathBuf, path: Option<String>) -> Response<Body> {
    const TEXT: &str = "text/plain; charset=utf-8";
    const NO_SNIFF: HeaderName = HeaderName::from_static("x-content-type-options");
    let found = match path {
        Some(path) => find(root, path).await,
        None => Ok(Found::Folder("logs/".to_owned())),
    };
    let mut response = match found {
        Ok(Found::Page(page)) => plain(StatusCode::OK, "text/html; charset=utf-8", page),
        Ok(Found::Folder(to)) => {
            let mut response = plain(StatusCode::MOVED_PERMANENTLY, TEXT, Bytes::new());
            match HeaderValue::from_str(&to) {
                Ok(to) => drop(response.headers_mut().insert(LOCATION, to)),
                Err(_) => *response.status_mut() = StatusCode::NOT_FOUND,
            }
            response
        }
        Ok(Found::File { is_text, bytes }) => in_time(if is_text { TEXT } else { "application/octet-stream" }, bytes),
        // In the words of upstream's file server.
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound => plain(StatusCode::NOT_FOUND, TEXT, "404 page not found\n"),
            io::ErrorKind::PermissionDenied => plain(StatusCode::FORBIDDEN, TEXT, "403 Forbidden\n"),
            _ => plain(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "500 Internal Server Error\n"),
        },
    };
    response.headers_mut().insert(NO_SNIFF, HeaderValue::from_static("nosniff"));
    response
}

/// What there is at a path.
enum Found {
    /// A folder's page, as HTML.
    Page(String),
    /// A folder that was asked for as a file: its name with a slash, as it is in a URL.
    Folder(String),
    /// A file: whether it is text, and its bytes.
    File { is_text: bool, bytes: mpsc::Receiver<Bytes> },
}

/// What is at a path below the folder; `path` as it was asked for, without escapes.
///
/// # Errors
/// `NotFound`, also of what leads out of the folder; the kernel's.
async fn find(root: PathBuf, path: String) -> io::Result<Found> {
    let looked = tokio::task::spawn_blocking(move || look(&root, &path)).await.map_err(io::Error::other)?;
    let (file, first, left) = match looked? {
        Looked::Folder(found) => return Ok(found),
        Looked::File { file, first, left } => (file, first, left),
    };
    let is_text = match std::str::from_utf8(&first) {
        Ok(_) => !first.contains(&0),
        // It may have been cut within a character.
        Err(error) => error.error_len().is_none() && !first.contains(&0),
    };
    let (sender, bytes) = mpsc::channel(PIECES);
    tokio::spawn(send(file, first, left, sender));
    Ok(Found::File { is_text, bytes })
}

enum Looked {
    Folder(Found),
    File { file: File, first: Bytes, left: u64 },
}

fn look(root: &Path, path: &str) -> io::Result<Looked> {
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    let folder = safe_path::open_root(root)?;
    let inside = path.trim_matches('/');
    let found = match inside {
        "" => folder,
        inside => {
            let inside = safe_path::plain(inside).map_err(|_| missing())?;
            safe_path::open_within(&folder, inside, OFlag::O_PATH).map_err(|error| match error.raw_os_error() {
                // Out of the folder, through what is no folder, in a circle, by what is no name.
                Some(libc::EXDEV | libc::ENOTDIR | libc::ELOOP | libc::ENAMETOOLONG | libc::EINVAL) => missing(),
                _ => error,
            })?
        }
    };
    let at = safe_path::fd_path(&found);
    let metadata = fs::metadata(&at)?;
    if metadata.is_dir() {
        return Ok(Looked::Folder(match path.is_empty() || path.ends_with('/') {
            true => Found::Page(page(Path::new(&at))?),
            false => Found::Folder(format!("{}/", escaped_path(inside.rsplit('/').next().unwrap_or_default()))),
        }));
    }
    // Nothing that does something when it is opened.
    if !metadata.is_file() {
        return Err(missing());
    }
    let mut file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(&at)?;
    let first = piece(&mut file, metadata.len())?;
    let left = metadata.len().saturating_sub(first.len() as u64);
    Ok(Looked::File { file, first, left })
}

/// The next bytes of a file, at most `left`; none at its end.
fn piece(file: &mut File, left: u64) -> io::Result<Bytes> {
    let mut bytes = Vec::new();
    file.take(PIECE.min(left)).read_to_end(&mut bytes)?;
    Ok(Bytes::from(bytes))
}

/// Sends a file until its end as it was, or until nobody reads on.
async fn send(mut file: File, first: Bytes, mut left: u64, sender: mpsc::Sender<Bytes>) {
    let mut next = first;
    while !next.is_empty() {
        if sender.send(next).await.is_err() || left == 0 {
            return;
        }
        let read = tokio::task::spawn_blocking(move || piece(&mut file, left).map(|read| (file, read))).await;
        let Ok(Ok((same, read))) = read else { return };
        left = left.saturating_sub(read.len() as u64);
        (file, next) = (same, read);
    }
}

fn page(dir: &Path) -> io::Result<String> {
    let mut names = Vec::new();
    let mut is_cut = false;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if names.len() == MOST_NAMES {
            is_cut = true;
            break;
        }
        let mut name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            name.push('/');
        }
        names.push(name);
    }
    names.sort_unstable();
    let mut text = String::from("<!doctype html>\n<pre>\n");
    for name in &names {
        // A name with a colon is no scheme.
        text.push_str(&format!("<a href=\"./{}\">{}</a>\n", escaped_path(name), escaped_text(name)));
    }
    if is_cut {
        text.push_str(&format!("There are more than {MOST_NAMES}.\n"));
    }
    text.push_str("</pre>\n");
    Ok(text)
}

fn escaped_path(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte);
    let one = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    name.bytes().map(one).collect()
}

fn escaped_text(name: &str) -> String {
    let one = |letter: char| match letter {
        '&' => "&amp;".to_owned(),
        '<' => "&lt;".to_owned(),
        '>' => "&gt;".to_owned(),
        '"' => "&#34;".to_owned(),
        '\'' => "&#39;".to_owned(),
        letter => letter.to_string(),
    };
    name.chars().map(one).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    async fn text(root: &Path, path: &str) -> Result<String, io::ErrorKind> {
        match find(root.to_owned(), path.to_owned()).await.map_err(|error| error.kind())? {
            Found::Page(page) => Ok(page),
            Found::Folder(to) => Ok(format!("to {to}")),
            Found::File { is_text, mut bytes } => {
                let mut all = Vec::new();
                while let Some(piece) = bytes.recv().await {
                    all.extend(piece);
                }
                Ok(if is_text { String::from_utf8(all).unwrap() } else { format!("{} bytes", all.len()) })
            }
        }
    }

    #[tokio::test]
    async fn x3_nothing_outside_of_the_folder_is_read() {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("log");
        fs::create_dir_all(root.join("pods/a")).unwrap();
        fs::write(base.path().join("secret"), "secret").unwrap();
        fs::write(root.join("pods/a/0.log"), "one\n").unwrap();
        symlink("../secret", root.join("up")).unwrap();
        symlink(base.path().join("secret"), root.join("absolute")).unwrap();
        symlink("/", root.join("root")).unwrap();
        symlink("pods/a/0.log", root.join("inside")).unwrap();
        symlink("circle", root.join("circle")).unwrap();
        nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let missing = Err(io::ErrorKind::NotFound);
        for path in ["up", "absolute", "root/etc/passwd", "../secret", "pods/../../secret", "circle", "fifo", "x", "\0"]
        {
            assert_eq!(text(&root, path).await, missing, "{path}");
        }
        assert_eq!(text(&root, "inside").await.unwrap(), "one\n");
        assert_eq!(text(&root, "pods/a/0.log/").await.unwrap(), "one\n");
        assert_eq!(text(&root, "pods/a").await.unwrap(), "to a/");
        assert_eq!(text(&root, "pods/").await.unwrap(), "<!doctype html>\n<pre>\n<a href=\"./a/\">a/</a>\n</pre>\n");
    }

    #[tokio::test]
    async fn x4_large_files_come_in_pieces_and_names_are_escaped() {
        let root = tempfile::tempdir().unwrap();
        let long = "é".repeat(PIECE as usize);
        fs::write(root.path().join("<a href=\"x\">"), &long).unwrap();
        fs::write(root.path().join("binary"), [0, 255, 1]).unwrap();
        fs::write(root.path().join("empty"), "").unwrap();
        assert_eq!(text(root.path(), "<a href=\"x\">").await.unwrap(), long);
        assert_eq!(text(root.path(), "binary").await.unwrap(), "3 bytes");
        assert_eq!(text(root.path(), "empty").await.unwrap(), "");
        let page = text(root.path(), "").await.unwrap();
        let name = "<a href=\"./%3Ca%20href%3D%22x%22%3E\">&lt;a href=&#34;x&#34;&gt;</a>";
        assert!(page.contains(name), "{page}");
        // Who does not read on holds one file and no thread.
        let Found::File { mut bytes, .. } = find(root.path().to_owned(), "<a href=\"x\">".to_owned()).await.unwrap()
        else {
            panic!("a file")
        };
        assert_eq!(bytes.recv().await.unwrap().len() as u64, PIECE);
    }
}
