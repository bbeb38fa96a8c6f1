//! Processes of ours that are instructed line by line through standard input and answer on standard output.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// The longest answer that is heard.
const MAX_ANSWER: u64 = 4096;

/// The other end of one. It ends when this is dropped, which waits for it.
pub struct Instructed {
    name: &'static str,
    child: Option<Child>,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Instructed {
    /// Starts it as `command` says, apart from its input and output.
    ///
    /// # Errors
    /// In words, as of all that follow.
    pub fn start(name: &'static str, command: &mut Command) -> Result<Self, String> {
        command.env_clear().current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child =
            command.stderr(Stdio::null()).spawn().map_err(|error| format!("cannot start {name}: {error}"))?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let stdout = BufReader::new(stdout.ok_or("it has no output")?);
        Ok(Self { name, child: Some(child), stdin, stdout })
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// Sends a line.
    ///
    /// # Errors
    /// It has ended.
    pub fn instruct(&mut self, line: &str) -> Result<(), String> {
        let stdin = self.stdin.as_mut().ok_or("it has no input")?;
        writeln!(stdin, "{line}").map_err(|error| format!("cannot instruct {}: {error}", self.name))
    }

    /// An empty line is success, any other one an explanation.
    ///
    /// # Errors
    /// The explanation; it has ended.
    pub fn expect_done(&mut self) -> Result<(), String> {
        let mut answer = String::new();
        let read = (&mut self.stdout).take(MAX_ANSWER).read_line(&mut answer);
        match (read, answer.trim_end()) {
            (Ok(1..), "") => Ok(()),
            (Ok(0), _) => Err(format!("{} ended", self.name)),
            (Ok(_), why) => Err(why.to_owned()),
            (Err(error), _) => Err(format!("cannot hear {}: {error}", self.name)),
        }
    }

    /// Leaves it to itself: it is not waited for.
    pub fn leave(mut self) {
        self.child = None;
    }
}

impl Drop for Instructed {
    fn drop(&mut self) {
        // The end of its input is its end.
        self.stdin = None;
        if let Some(mut child) = self.child.take() {
            let _ = child.wait();
        }
    }
}

/// Such a process's answer; false where nobody goes on with it.
pub fn answer(done: &Result<(), String>) -> bool {
    let line = done.as_ref().err().map_or("", |why| why.as_str()).replace('\n', " ");
    let mut output = io::stdout();
    writeln!(output, "{line}").and_then(|()| output.flush()).is_ok() && done.is_ok()
}
