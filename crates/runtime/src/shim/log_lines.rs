//! The container library explains its failures only to `tracing`. A supervisor writes those lines to shim.log, and puts
//! the last ones into the error that the user sees.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write as _};
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::field::{Field, Visit};
use tracing::span;

/// shim.log stops growing here.
const MAX_LOG: u64 = 256 * 1024;
/// How much of it an error quotes.
const MAX_QUOTED: u64 = 2048;

static LOG: OnceLock<File> = OnceLock::new();
static QUIET: AtomicBool = AtomicBool::new(false);

struct Lines;

/// Errors go to `file` from now on, also from the processes that the library forks.
pub fn install(file: OwnedFd) {
    if LOG.set(File::from(file)).is_ok() {
        let _ = tracing::subscriber::set_global_default(Lines);
    }
}

/// The container runs: what is said from now on is ours and not worth a file.
pub fn quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// An error with its causes, and what the library's processes last said.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    let said = last_words();
    if said.is_empty() { text } else { format!("{text} ({said})") }
}

fn last_words() -> String {
    let Some(mut file) = LOG.get().and_then(|file| file.try_clone().ok()) else { return String::new() };
    let length = file.metadata().map(|metadata| metadata.len()).unwrap_or(0);
    let mut bytes = Vec::new();
    if file.seek(SeekFrom::Start(length.saturating_sub(MAX_QUOTED))).is_err()
        || file.take(MAX_QUOTED).read_to_end(&mut bytes).is_err()
    {
        return String::new();
    }
    let text = String::from_utf8_lossy(&bytes);
    // The first line is the cause; later ones report that it was reported.
    text.lines().next().unwrap_or_default().to_owned()
}

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::ERROR && !QUIET.load(Ordering::Relaxed)
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let Some(mut file) = LOG.get() else { return };
        if file.metadata().is_ok_and(|metadata| metadata.len() > MAX_LOG) {
            return;
        }
        let mut line = Line::default();
        event.record(&mut line);
        let text = format!("{}{}\n", line.message, line.fields).replace('\n', " ");
        let _ = file.write_all(text.trim_end().as_bytes()).and_then(|()| file.write_all(b"\n"));
    }
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            let _ = write!(self.fields, " {}={value:?}", field.name());
        }
    }
}
