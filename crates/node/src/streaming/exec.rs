//! A command or a container's own process, joined to a client's channels.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use mainstay_api::Status;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::channels::{Channels, ErrorStyle, Input, MAX_PIECE, Output};
use mainstay_runtime::{AttachHandle, ExecHandle, InputStream, OutputStream, RuntimeError, TerminalSize};

/// The longest run of bytes on the resize channel that is not a size.
const MAX_RESIZE: usize = 1024;

/// How a session ended: an exit code, or why it could not be told.
pub type Exit = Pin<Box<dyn Future<Output = Result<i32, String>> + Send>>;

/// What runs: its streams, and its end. Dropping it ends a command, and detaches from a container.
pub struct Session {
    pub stdin: Option<InputStream>,
    pub stdout: OutputStream,
    pub stderr: Option<OutputStream>,
    pub resize: mpsc::Sender<TerminalSize>,
    /// None where the end of the output is the end.
    pub exit: Option<Exit>,
}

impl From<ExecHandle> for Session {
    fn from(mut handle: ExecHandle) -> Self {
        let stdin = handle.stdin.take();
        let stderr = handle.stderr.take();
        let stdout = std::mem::replace(&mut handle.stdout, Box::new(tokio::io::empty()));
        let resize = handle.resize.clone();
        let exit: Exit =
            Box::pin(async move { handle.wait().await.map(|exit| exit.code).map_err(|error| error.to_string()) });
        Session { stdin, stdout, stderr, resize, exit: Some(exit) }
    }
}

impl From<AttachHandle> for Session {
    fn from(handle: AttachHandle) -> Self {
        let AttachHandle { stdin, stdout, stderr, resize } = handle;
        Session { stdin, stdout, stderr, resize, exit: None }
    }
}

/// Joins them until what runs has ended and everything it wrote has reached the client, or until the client is gone.
///
/// Differs: upstream lets a command run on when its client is gone; here it is killed with its terminal or pipe, as a
/// login shell's would be, so that nothing runs that nobody asked for any more.
pub async fn run(session: Result<Session, RuntimeError>, channels: Channels) {
    let Channels { stdin, stdout, stderr, error, resize, style, link } = channels;
    let result = match session {
        Err(error) => {
            for output in [stdout, stderr].into_iter().flatten() {
                output.end().await;
            }
            Err(format!("error executing command in container: {error}"))
        }
        Ok(session) => {
            tokio::select! {
                biased;
                () = link.closed() => return,
                result = join(session, stdin, stdout, stderr, resize) => result,
            }
        }
    };
    let mut error = error;
    if let Some(status) = outcome(style, &result) {
        let _ = error.write(status.into()).await;
    }
    error.end().await;
    link.finish().await;
}

async fn join(
    session: Session,
    stdin: Option<Input>,
    stdout: Option<Output>,
    stderr: Option<Output>,
    resize: Option<Input>,
) -> Result<i32, String> {
    let Session { stdin: to, stdout: out, stderr: err, resize: sizes, exit } = session;
    let inputs = async {
        tokio::join!(feed(stdin, to), resizes(resize, sizes));
        // Their ends are not the session's.
        std::future::pending::<Infallible>().await
    };
    let outputs = async {
        tokio::join!(drain(Some(out), stdout), drain(err, stderr));
    };
    let exit = async {
        match exit {
            Some(exit) => exit.await,
            None => Ok(0),
        }
    };
    tokio::select! {
        never = inputs => match never {},
        (result, ()) = async { tokio::join!(exit, outputs) } => result,
    }
}

async fn feed(from: Option<Input>, to: Option<InputStream>) {
    let Some(mut to) = to else { return };
    let Some(mut from) = from else {
        // Held to the session's end: letting go would end a container's input that another client writes.
        return std::future::pending().await;
    };
    while let Some(bytes) = from.read().await {
        if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
    let _ = to.shutdown().await;
}

/// Reads to the end even where the client does not want it (or no longer): a full pipe would stop the command.
async fn drain(from: Option<OutputStream>, to: Option<Output>) {
    let mut to = to;
    if let Some(mut from) = from {
        let mut buffer = vec![0u8; MAX_PIECE];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            if let Some(output) = &mut to
                && output.write(Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default())).await.is_err()
            {
                to = None;
            }
        }
    }
    if let Some(to) = to {
        to.end().await;
    }
}

async fn resizes(from: Option<Input>, to: mpsc::Sender<TerminalSize>) {
    let Some(mut from) = from else { return };
    let mut sizes = Sizes::default();
    while let Some(bytes) = from.read().await {
        // Only the last size matters, and a terminal that is not ready for it gets the next.
        if let Some(size) = sizes.feed(&bytes) {
            let _ = to.send(size).await;
        }
    }
}

/// A stream of JSON objects `{"Width":80,"Height":24}`, cut anywhere.
#[derive(Default)]
struct Sizes {
    buffer: Vec<u8>,
}

impl Sizes {
    /// The last size that is complete now.
    fn feed(&mut self, bytes: &[u8]) -> Option<TerminalSize> {
        self.buffer.extend_from_slice(bytes);
        let mut objects = serde_json::Deserializer::from_slice(&self.buffer).into_iter::<Value>();
        let mut last = None;
        while let Some(Ok(object)) = objects.next() {
            let number =
                |field: &str| object.get(field).and_then(Value::as_u64).and_then(|number| u16::try_from(number).ok());
            if let (Some(width), Some(height)) = (number("Width"), number("Height")) {
                last = Some(TerminalSize { width, height });
            }
        }
        let read = objects.byte_offset();
        self.buffer.drain(..read.min(self.buffer.len()));
        if self.buffer.len() > MAX_RESIZE {
            self.buffer.clear();
        }
        last
    }
}

/// What the error channel says at the end.
fn outcome(style: ErrorStyle, result: &Result<i32, String>) -> Option<String> {
    match (style, result) {
        (ErrorStyle::Status, Ok(0)) => Some(json!({ "metadata": {}, "status": "Success" }).to_string()),
        (ErrorStyle::Status, Ok(code)) => {
            let status = json!({
                "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
                "message": format!("command terminated with non-zero exit code: exit status {code}"),
                "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
            });
            Some(status.to_string())
        }
        (ErrorStyle::Status, Err(why)) => Some(Status::internal(why).to_json().to_string()),
        (ErrorStyle::Text, Ok(0)) => None,
        (ErrorStyle::Text, Ok(code)) => Some(format!("command terminated with non-zero exit code: exit status {code}")),
        (ErrorStyle::Text, Err(why)) => Some(why.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_in_pieces_and_nonsense_is_passed_over() {
        let mut sizes = Sizes::default();
        assert_eq!(sizes.feed(br#"{"Width":80,"#), None);
        assert_eq!(
            sizes.feed(b"\"Height\":24}\n{\"Width\":100,\"Height\":50}\n{"),
            Some(TerminalSize { width: 100, height: 50 })
        );
        assert_eq!(sizes.feed(&[b'x'; 2 * MAX_RESIZE]), None);
        assert_eq!(sizes.feed(br#"{"Width":1,"Height":2}"#), Some(TerminalSize { width: 1, height: 2 }));
        assert_eq!(sizes.feed(br#"{"Width":70000,"Height":2}"#), None);
    }

    #[test]
    fn results_are_told_as_clients_read_them() {
        assert_eq!(outcome(ErrorStyle::Status, &Ok(0)).as_deref(), Some(r#"{"metadata":{},"status":"Success"}"#));
        assert_eq!(outcome(ErrorStyle::Text, &Ok(0)), None);
        let status: Value = serde_json::from_str(&outcome(ErrorStyle::Status, &Ok(3)).unwrap()).unwrap();
        assert_eq!(status.pointer("/details/causes/0"), Some(&json!({ "reason": "ExitCode", "message": "3" })));
        let status: Value = serde_json::from_str(&outcome(ErrorStyle::Status, &Err("no".into())).unwrap()).unwrap();
        assert_eq!(status.pointer("/message"), Some(&json!("Internal error occurred: no")));
    }
}
