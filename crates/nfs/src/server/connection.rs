//! One connection: its calls are read one after the other, and carried out by as many threads as the client keeps busy.
//!
//! Whoever has read a call carries it out, while another thread reads the next. A client that waits for each answer is
//! served by one thread, without ever waking a second.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::call::{self, Peer};
use super::room::{self, Held};
use super::{RECORD_TIMEOUT, Server};
use crate::rpc;

/// A connection's two directions.
pub struct Connection<R, W> {
    client: Peer,
    reading: Mutex<Reading<R>>,
    writing: Mutex<W>,
    /// Threads that wait to read the next call.
    waiting: AtomicUsize,
    /// Hears of each call, and of each that was answered.
    hears: Box<dyn Fn(Moment) + Send + Sync>,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    Called,
    Answered,
}

struct Reading<R> {
    stream: R,
    ended: bool,
}

impl<R: Read, W: Write> Connection<R, W> {
    pub fn new(client: Peer, reader: R, writer: W, hears: impl Fn(Moment) + Send + Sync + 'static) -> Self {
        let reading = Mutex::new(Reading { stream: reader, ended: false });
        let hears = Box::new(hears);
        Self { client, reading, writing: Mutex::new(writer), waiting: AtomicUsize::new(0), hears }
    }

    /// Answers calls until the client ends the connection; one that only `helps`, until another waits to read the
    /// next. `wait` sets how long the next read may take; `help` is
    /// asked for another thread to work here after each call that was read while none waits to read the next.
    ///
    /// # Errors
    /// What was read is no call, or the stream's own: whoever has the stream then ends it for the other threads, too.
    pub fn work(
        &self,
        server: &Server,
        helps: bool,
        mut wait: impl FnMut(Option<Duration>) -> io::Result<()>,
        mut help: impl FnMut(),
    ) -> io::Result<()> {
        let mut record = Vec::new();
        loop {
            let mut held = None;
            if !self.next(server, &mut record, &mut held, &mut wait, &mut help)? {
                return Ok(());
            }
            let answer = call::answer(server, self.client, &record);
            let answer = answer.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not an RPC call"))?;
            // Whoever does not take its answer, or asks for nothing more, keeps no memory for what it asked.
            if held.is_some() {
                record = Vec::new();
                drop(held);
            }
            let mut stream = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
            rpc::write_record(&mut *stream, answer.message)?;
            drop((stream, answer.held));
            (self.hears)(Moment::Answered);
            if helps && self.waiting.load(Ordering::SeqCst) > 0 {
                return Ok(());
            }
        }
    }

    /// Reads the next call, and takes the room for it; `false` at the end.
    fn next(
        &self,
        server: &Server,
        record: &mut Vec<u8>,
        held: &mut Option<Held>,
        wait: &mut impl FnMut(Option<Duration>) -> io::Result<()>,
        help: &mut impl FnMut(),
    ) -> io::Result<bool> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        if reading.ended {
            return Ok(false);
        }
        wait(None)?;
        let room = |length| {
            // For the longest, at once: what waits for more has nothing that another waits for.
            if held.is_none() && length >= room::SMALL {
                *held = server.room.take(self.client.address, rpc::MAX_RECORD, RECORD_TIMEOUT)?;
            }
            Ok(())
        };
        let begun = || wait(Some(RECORD_TIMEOUT));
        let read = rpc::read_record_within(&mut reading.stream, record, begun, room);
        reading.ended = !matches!(read, Ok(true));
        if !reading.ended {
            (self.hears)(Moment::Called);
        }
        if !reading.ended && self.waiting.load(Ordering::SeqCst) == 0 {
            help();
        }
        read
    }
}
