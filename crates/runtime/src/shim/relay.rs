//! The supervisor's life while its container runs: output to the log and to whoever is attached, input from them, and
//! the end. One thread, one `poll`.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, SockFlag, accept4, recv, send};

use super::log::{ContainerLog, Stream, stamp};
use super::process;

/// Largest packet on an attach connection, kind byte included.
pub const MAX_PACKET: usize = 32 * 1024 + 1;
/// How many may be attached to one container at once.
const MAX_CLIENTS: usize = 16;
/// A client that reads so much slower than the container writes is cut off: nobody who watches may stop the container.
const MAX_CLIENT_QUEUE: usize = 1024 * 1024;
/// Input that the container has not read yet. When it is full, clients wait.
const MAX_INPUT_QUEUE: usize = 64 * 1024;
/// After the first process has ended and all others were killed, how long output may still trickle in.
const DRAIN: Duration = Duration::from_secs(2);

/// Packets of an attach connection begin with one of these.
pub mod packet {
    /// To the container: bytes for stdin; the end of stdin; width and height, two little-endian u16.
    pub const STDIN: u8 = 0;
    pub const STDIN_END: u8 = 3;
    pub const RESIZE: u8 = 4;
    /// From the container.
    pub const STDOUT: u8 = 1;
    pub const STDERR: u8 = 2;
}

struct Output {
    file: File,
    stream: Stream,
}

struct Client {
    socket: OwnedFd,
    queue: VecDeque<Vec<u8>>,
    queued: usize,
    gone: bool,
    /// The client has sent input, or the end of it: with stdinOnce, its leaving ends the input.
    reads_finished: bool,
}

/// Everything the loop looks after.
pub struct Relay {
    outputs: Vec<Output>,
    /// The write end of stdin, or the terminal.
    input: Option<File>,
    input_queue: VecDeque<u8>,
    /// The end of input came while `input_queue` was not yet empty.
    input_ends: bool,
    terminal: Option<File>,
    stdin_once: bool,
    listener: Option<OwnedFd>,
    clients: Vec<Client>,
    log: ContainerLog,
}

/// The container's ends of stdio, as the supervisor holds them.
pub enum Stdio {
    Terminal(OwnedFd),
    Pipes { stdin: Option<OwnedFd>, stdout: OwnedFd, stderr: OwnedFd },
}

impl Relay {
    pub fn new(stdio: Stdio, stdin_once: bool, listener: Option<OwnedFd>, log: ContainerLog) -> io::Result<Relay> {
        let mut relay = Relay {
            outputs: Vec::new(),
            input: None,
            input_queue: VecDeque::new(),
            input_ends: false,
            terminal: None,
            stdin_once,
            listener,
            clients: Vec::new(),
            log,
        };
        match stdio {
            Stdio::Terminal(master) => {
                relay.input = Some(File::from(master.try_clone()?));
                relay.terminal = Some(File::from(master.try_clone()?));
                relay.outputs.push(Output { file: File::from(master), stream: Stream::Stdout });
            }
            Stdio::Pipes { stdin, stdout, stderr } => {
                relay.input = stdin.map(File::from);
                relay.outputs.push(Output { file: File::from(stdout), stream: Stream::Stdout });
                relay.outputs.push(Output { file: File::from(stderr), stream: Stream::Stderr });
            }
        }
        for output in &relay.outputs {
            process::set_nonblocking(output.file.as_raw_fd())?;
        }
        if let Some(input) = &relay.input {
            process::set_nonblocking(input.as_raw_fd())?;
        }
        if let Some(listener) = &relay.listener {
            process::set_nonblocking(listener.as_raw_fd())?;
        }
        Ok(relay)
    }

    /// Relays until the process behind `pidfd` has ended; `ended` is called then (to kill what it left), and the rest
    /// of the output is taken before this returns.
    pub fn run(&mut self, pidfd: BorrowedFd<'_>, mut ended: impl FnMut()) -> io::Result<()> {
        let mut chunk = vec![0u8; MAX_PACKET];
        let mut drain_until: Option<Instant> = None;
        loop {
            let mut polled = self.interests();
            if drain_until.is_none() {
                polled.push(pollfd(pidfd.as_raw_fd(), libc::POLLIN));
            }
            let timeout =
                drain_until.map_or(-1, |until| until.saturating_duration_since(Instant::now()).as_millis() as i32);
            // SAFETY: the slice is valid for its length, and every descriptor in it is open.
            let ready = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout) };
            if ready < 0 {
                let error = io::Error::last_os_error();
                if error.kind() == io::ErrorKind::Interrupted {
                    continue;
                }
                return Err(error);
            }
            for entry in polled.iter().filter(|entry| entry.revents != 0) {
                if entry.fd == pidfd.as_raw_fd() {
                    ended();
                    drain_until = Some(Instant::now() + DRAIN);
                } else {
                    self.handle(entry.fd, entry.revents, &mut chunk);
                }
            }
            self.clients.retain(|client| !client.gone);
            let drained = self.outputs.is_empty() || drain_until.is_some_and(|until| Instant::now() >= until);
            if drain_until.is_some() && drained {
                break;
            }
        }
        self.log.finish(&stamp());
        self.flush_clients();
        Ok(())
    }

    fn interests(&self) -> Vec<libc::pollfd> {
        let mut polled: Vec<libc::pollfd> =
            self.outputs.iter().map(|output| pollfd(output.file.as_raw_fd(), libc::POLLIN)).collect();
        if let Some(listener) = self.listener.as_ref().filter(|_| self.clients.len() < MAX_CLIENTS) {
            polled.push(pollfd(listener.as_raw_fd(), libc::POLLIN));
        }
        let input_has_room = self.input_queue.len() < MAX_INPUT_QUEUE;
        for client in &self.clients {
            let mut events = if input_has_room { libc::POLLIN } else { 0 };
            if !client.queue.is_empty() {
                events |= libc::POLLOUT;
            }
            polled.push(pollfd(client.socket.as_raw_fd(), events));
        }
        if let Some(input) = self.input.as_ref().filter(|_| !self.input_queue.is_empty()) {
            polled.push(pollfd(input.as_raw_fd(), libc::POLLOUT));
        }
        polled
    }

    fn handle(&mut self, fd: RawFd, events: i16, chunk: &mut [u8]) {
        if let Some(index) = self.outputs.iter().position(|output| output.file.as_raw_fd() == fd) {
            self.take_output(index, chunk);
        } else if self.listener.as_ref().is_some_and(|listener| listener.as_raw_fd() == fd) {
            self.accept();
        } else if let Some(index) = self.clients.iter().position(|client| client.socket.as_raw_fd() == fd) {
            if events & libc::POLLOUT != 0
                && let Some(client) = self.clients.get_mut(index)
            {
                client.flush();
            }
            if events & (libc::POLLIN | libc::POLLHUP | libc::POLLERR) != 0 {
                self.take_packet(index, chunk);
            }
        } else if self.input.as_ref().is_some_and(|input| input.as_raw_fd() == fd) {
            self.write_input();
        }
    }

    fn take_output(&mut self, index: usize, chunk: &mut [u8]) {
        let Some(output) = self.outputs.get_mut(index) else { return };
        let stream = output.stream;
        let room = chunk.len() - 1;
        let length = match output.file.read(chunk.get_mut(..room).unwrap_or_default()) {
            // A terminal reports EIO once the last process has closed it.
            Ok(0) => 0,
            Ok(length) => length,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return,
            Err(_) => 0,
        };
        if length == 0 {
            self.outputs.remove(index);
            return;
        }
        let bytes = chunk.get(..length).unwrap_or_default();
        self.log.feed(stream, bytes, &stamp());
        let kind = if stream == Stream::Stdout { packet::STDOUT } else { packet::STDERR };
        for client in &mut self.clients {
            let mut message = Vec::with_capacity(length + 1);
            message.push(kind);
            message.extend_from_slice(bytes);
            client.push(message);
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        let Ok(fd) = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK) else { return };
        // SAFETY: accept4 just made this descriptor for us.
        let socket = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) };
        self.clients.push(Client { socket, queue: VecDeque::new(), queued: 0, gone: false, reads_finished: false });
    }

    fn take_packet(&mut self, index: usize, chunk: &mut [u8]) {
        let Some(client) = self.clients.get_mut(index) else { return };
        let length = match recv(client.socket.as_raw_fd(), chunk, MsgFlags::empty()) {
            Ok(length) => length,
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return,
            Err(_) => 0,
        };
        let message = chunk.get(..length).unwrap_or_default();
        let Some((kind, payload)) = message.split_first() else {
            client.gone = true;
            if self.stdin_once && (client.reads_finished || self.clients.len() == 1) {
                self.end_input();
            }
            return;
        };
        match *kind {
            packet::STDIN => {
                client.reads_finished = true;
                if self.input.is_some() && !self.input_ends {
                    self.input_queue.extend(payload);
                    self.write_input();
                }
            }
            packet::STDIN_END => {
                client.reads_finished = true;
                // Only stdinOnce ends the container's input with the client's: else the next one may go on writing.
                if self.stdin_once {
                    self.end_input();
                }
            }
            packet::RESIZE => self.resize(payload),
            _ => client.gone = true,
        }
    }

    fn end_input(&mut self) {
        self.input_ends = true;
        self.write_input();
    }

    fn write_input(&mut self) {
        while let Some(input) = &mut self.input {
            let (front, _) = self.input_queue.as_slices();
            if front.is_empty() {
                break;
            }
            match input.write(front) {
                Ok(written) => drop(self.input_queue.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => self.input = None,
            }
        }
        if self.input.is_none() {
            self.input_queue.clear();
        } else if self.input_ends {
            // A terminal has no end of its own: the line discipline makes one from its end-of-file character.
            if let (Some(_), Some(input)) = (&self.terminal, &mut self.input) {
                let _ = input.write(&[4]);
            }
            self.input = None;
        }
    }

    fn resize(&self, payload: &[u8]) {
        if let (Some(terminal), [w0, w1, h0, h1]) = (&self.terminal, payload) {
            set_size(terminal.as_raw_fd(), u16::from_le_bytes([*w0, *w1]), u16::from_le_bytes([*h0, *h1]));
        }
    }

    /// The last words: what fits into the sockets' buffers is delivered after we are gone.
    fn flush_clients(&mut self) {
        for client in &mut self.clients {
            client.flush();
        }
    }
}

impl Client {
    fn push(&mut self, message: Vec<u8>) {
        self.queued += message.len();
        self.queue.push_back(message);
        self.flush();
        if self.queued > MAX_CLIENT_QUEUE {
            self.gone = true;
        }
    }

    fn flush(&mut self) {
        while let Some(message) = self.queue.front() {
            match send(self.socket.as_raw_fd(), message, MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT) {
                Ok(_) => {
                    self.queued -= message.len();
                    self.queue.pop_front();
                }
                Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return,
                Err(_) => {
                    self.gone = true;
                    return;
                }
            }
        }
    }
}

fn pollfd(fd: RawFd, events: i16) -> libc::pollfd {
    libc::pollfd { fd, events, revents: 0 }
}

/// Tells a terminal its size; the kernel then signals the programs in it.
pub fn set_size(terminal: RawFd, width: u16, height: u16) {
    let size = libc::winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize.
    unsafe { libc::ioctl(terminal, libc::TIOCSWINSZ, &size) };
}
