//! Calls to a server: a pool of connections, each with one call at a time; a deadline for everything; only calls that
//! may be carried out twice are sent twice.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::super::protocol::{
    self, Attributes, MAX_HANDLE, MOUNT, NFS, PORTMAP, PORTMAP_PORT, PORTMAP_VERSION, V3, procedure, status,
};
use super::super::rpc::{self, Credentials};
use super::super::xdr::{Garbage, Reader, Writer};
use super::connect::connect;
use mainstay_runtime::fence::Watched;

/// Idle connections that are kept.
const POOL: usize = 8;
/// How long one attempt to connect may take.
const CONNECT: Duration = Duration::from_secs(3);
/// Between two attempts while the server refuses.
const AGAIN: Duration = Duration::from_millis(200);

/// Between two attempts while the server asks for patience (`NFS3ERR_JUKEBOX`).
const LATER: Duration = Duration::from_millis(500);

/// An errno.
pub type Errno = i32;

/// Of a call that must not be sent twice: its answer did not come, so it was carried out or not. No status of a server
/// is this errno; a process is told EIO.
pub const LOST: Errno = libc::ETIMEDOUT;

/// A server's NFS program.
pub struct Remote {
    address: SocketAddr,
    /// After this a call fails with EIO: soft, so that a dead server leaves nobody in uninterruptible sleep (V11).
    timeout: Duration,
    /// After this nothing is sent any more: the files may be another machine's by then (S13).
    fence: Option<Arc<Watched>>,
    idle: Mutex<Vec<TcpStream>>,
    next_xid: AtomicU32,
}

impl Remote {
    /// The program at an address; connected when it is first called.
    pub fn new(address: SocketAddr, timeout: Duration) -> Self {
        let first = std::process::id().wrapping_mul(0x9e37_79b9);
        Self { address, timeout, fence: None, idle: Mutex::default(), next_xid: AtomicU32::new(first) }
    }

    /// The same with a deadline: once it has passed every call fails, and none is sent or sent again.
    pub fn with_fence(self, fence: Option<Arc<Watched>>) -> Self {
        Self { fence, ..self }
    }

    /// After how long a call fails.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    /// One call of an NFS procedure. The answer's status is looked at; what follows it is given back.
    pub fn call(&self, number: u32, who: &Credentials, arguments: impl Fn(&mut Writer)) -> Result<Reply, Errno> {
        let once = matches!(
            number,
            procedure::CREATE
                | procedure::MKDIR
                | procedure::SYMLINK
                | procedure::MKNOD
                | procedure::REMOVE
                | procedure::RMDIR
                | procedure::RENAME
                | procedure::LINK
        );
        let deadline = Instant::now() + self.timeout;
        loop {
            let reply = self.exchange_by((NFS, V3, number), who, !once, &arguments, deadline);
            // Over its time it is EIO like any other: a server that does not answer is not asked what it did.
            let is_lost = once && Instant::now() + AGAIN < deadline;
            let reply = reply.map_err(|_| if is_lost { LOST } else { libc::EIO })?;
            // Not done, and to be asked again later: it counts what a folder uses, or is short of something.
            if reply.read(Reader::u32)? != status::JUKEBOX || Instant::now() + LATER >= deadline {
                return reply.succeeded();
            }
            std::thread::sleep(LATER);
        }
    }

    /// One call of any program. A program or procedure that the server does not have is [`io::ErrorKind::Unsupported`].
    pub(super) fn exchange(
        &self,
        (program, version, number): (u32, u32, u32),
        who: &Credentials,
        again: bool,
        arguments: impl Fn(&mut Writer),
    ) -> io::Result<Reply> {
        self.exchange_by((program, version, number), who, again, arguments, Instant::now() + self.timeout)
    }

    fn exchange_by(
        &self,
        (program, version, number): (u32, u32, u32),
        who: &Credentials,
        again: bool,
        arguments: impl Fn(&mut Writer),
        deadline: Instant,
    ) -> io::Result<Reply> {
        let xid = self.next_xid.fetch_add(1, Ordering::Relaxed);
        loop {
            let found = self.connection(deadline);
            // Now, not before: connecting takes its time.
            if self.fence.as_ref().is_some_and(|fence| fence.has_passed()) {
                return Err(io::Error::other("the deadline of the mount's pod has passed"));
            }
            let mut stream = match found {
                Ok(stream) => stream,
                Err(error) if Instant::now() + AGAIN >= deadline => return Err(error),
                Err(_) => {
                    std::thread::sleep(AGAIN);
                    continue;
                }
            };
            let mut message = rpc::write_call(xid, program, version, number, who);
            arguments(&mut message);
            match attempt(&mut stream, xid, message, deadline) {
                Ok(reply) => {
                    let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
                    if idle.len() < POOL {
                        idle.push(stream);
                    }
                    return Ok(reply);
                }
                Err(error)
                    if !again || error.kind() == io::ErrorKind::Unsupported || Instant::now() + AGAIN >= deadline =>
                {
                    return Err(error);
                }
                Err(_) => std::thread::sleep(AGAIN),
            }
        }
    }

    /// An idle connection that the server has not closed, else a new one.
    fn connection(&self, deadline: Instant) -> io::Result<TcpStream> {
        loop {
            let Some(stream) = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop() else { break };
            stream.set_nonblocking(true)?;
            let quiet = matches!(stream.peek(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock);
            stream.set_nonblocking(false)?;
            if quiet {
                return Ok(stream);
            }
        }
        let left = deadline.saturating_duration_since(Instant::now()).clamp(Duration::from_millis(1), CONNECT);
        let stream = connect(self.address, left)?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Who carries out NFS calls: [`Remote`], or a script where there is no server.
pub trait Calls {
    /// See [`Remote::call`].
    fn call(&self, number: u32, who: &Credentials, arguments: impl Fn(&mut Writer)) -> Result<Reply, Errno>;
}

impl Calls for Remote {
    fn call(&self, number: u32, who: &Credentials, arguments: impl Fn(&mut Writer)) -> Result<Reply, Errno> {
        self.call(number, who, arguments)
    }
}

/// A reply, from after its header or status.
pub struct Reply {
    record: Vec<u8>,
    begin: usize,
}

impl Reply {
    /// The results.
    pub fn bytes(&self) -> &[u8] {
        self.record.get(self.begin..).unwrap_or_default()
    }

    /// Where a part of the results stands in [`Self::into_record`].
    pub fn range(&self, part: &[u8]) -> std::ops::Range<usize> {
        let begin = (part.as_ptr() as usize).saturating_sub(self.record.as_ptr() as usize).min(self.record.len());
        begin..(begin + part.len()).min(self.record.len())
    }

    /// The whole message.
    pub fn into_record(self) -> Vec<u8> {
        self.record
    }

    /// What follows the status of an NFS procedure; any but OK is an error.
    pub fn succeeded(self) -> Result<Self, Errno> {
        match self.read(Reader::u32)? {
            0 => Ok(Self { begin: self.begin + 4, ..self }),
            status => Err(protocol::errno_of(status)),
        }
    }

    /// Reads the results; a malformed answer is EIO.
    pub fn read<'a, T>(&'a self, read: impl FnOnce(&mut Reader<'a>) -> Result<T, Garbage>) -> Result<T, Errno> {
        read(&mut Reader::new(self.bytes())).map_err(|Garbage| libc::EIO)
    }
}

fn attempt(stream: &mut TcpStream, xid: u32, message: Writer, deadline: Instant) -> io::Result<Reply> {
    let left = || deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    stream.set_write_timeout(Some(left()))?;
    rpc::write_record(stream, message)?;
    stream.set_read_timeout(Some(left()))?;
    receive(stream, xid)
}

/// Reads the reply to the call of this number.
///
/// # Errors
/// The stream's own, its end, or an answer that is none to this call.
pub fn receive(stream: &mut impl io::Read, xid: u32) -> io::Result<Reply> {
    let mut record = Vec::new();
    if !rpc::read_record(stream, &mut record, || Ok(()))? {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut reader = Reader::new(&record);
    let malformed = || io::Error::from(io::ErrorKind::InvalidData);
    let (answered, accepted) = rpc::read_reply(&mut reader).map_err(|_| malformed())?;
    if answered != xid {
        return Err(malformed());
    }
    if !accepted {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let begin = record.len() - reader.rest().len();
    Ok(Reply { record, begin })
}

/// What `mount` needs to know.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Source {
    pub server: String,
    pub path: String,
    /// Named by `port=` and `mountport=`; else the port mapper is asked, else it is 2049.
    pub port: Option<u16>,
    pub mount_port: Option<u16>,
    /// Milliseconds after which a call is EIO.
    pub timeout_ms: u64,
}

/// Asks the server's mount program for an export's first handle.
///
/// # Errors
/// One sentence that says what the server answered, or that it did not.
pub fn open(source: &Source) -> Result<(Remote, Vec<u8>), String> {
    use std::net::ToSocketAddrs as _;
    let timeout = Duration::from_millis(source.timeout_ms.max(100));
    let server = source.server.trim_start_matches('[').trim_end_matches(']');
    let found = (server, 0).to_socket_addrs().map_err(|error| format!("server {server} is not known: {error}"))?;
    let ip = found.map(|address| address.ip()).next().ok_or_else(|| format!("server {server} has no address"))?;
    let port = |named: Option<u16>, program| named.or_else(|| ask_port(ip, program)).unwrap_or(protocol::NFS_PORT);
    let nfs = port(source.port, NFS);
    let mount = Remote::new((ip, port(source.mount_port, MOUNT)).into(), timeout);
    let root = Credentials::default();
    let reply = mount
        .exchange((MOUNT, V3, 1), &root, true, |arguments| {
            arguments.opaque(source.path.as_bytes());
        })
        .map_err(|error| format!("mounting {server}:{} failed: {error}", source.path))?;
    let answer = reply.read(|reader| match reader.u32()? {
        0 => reader.opaque(MAX_HANDLE).map(|handle| Ok(handle.to_vec())),
        status => Ok(Err(status)),
    });
    match answer {
        Ok(Ok(handle)) => Ok((Remote::new((ip, nfs).into(), timeout), handle)),
        Ok(Err(status)) => {
            let error = io::Error::from_raw_os_error(protocol::errno_of(status));
            Err(format!("mounting {server}:{} failed, reason given by server: {error}", source.path))
        }
        Err(_) => Err(format!("mounting {server}:{} failed: the answer is malformed", source.path)),
    }
}

/// Asks the port mapper; `None` where there is none or it does not know.
fn ask_port(ip: IpAddr, program: u32) -> Option<u16> {
    const GETPORT: u32 = 3;
    const TCP: u32 = 6;
    let mapper = Remote::new((ip, PORTMAP_PORT).into(), AGAIN);
    let ask = |arguments: &mut Writer| {
        arguments.u32(program).u32(V3).u32(TCP).u32(0);
    };
    let reply = mapper.exchange((PORTMAP, PORTMAP_VERSION, GETPORT), &Credentials::default(), true, ask).ok()?;
    let port = reply.read(|reader| reader.u32()).ok()?;
    u16::try_from(port).ok().filter(|port| *port != 0)
}

/// A made or found file: handle and attributes, asked for where the server left them out.
pub fn found(
    remote: &impl Calls,
    who: &Credentials,
    handle: &[u8],
    attributes: Option<Attributes>,
) -> Result<Attributes, Errno> {
    match attributes {
        Some(attributes) => Ok(attributes),
        None => {
            let reply = remote.call(procedure::GETATTR, who, |arguments| {
                arguments.opaque(handle);
            })?;
            reply.read(Attributes::read)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use mainstay_runtime::Deadline;
    use mainstay_runtime::fence::{Fence, Page, boottime};

    use super::*;

    /// A server that hangs up on every call: what may be sent twice is sent again until the deadline.
    #[test]
    fn s13_nothing_is_sent_again_after_the_deadline() {
        let folder = tempfile::tempdir().unwrap();
        let renewals = folder.path().join("renewals");
        let now = boottime();
        Page::open(&renewals).unwrap().write(|known| known.renewed(now, now, Duration::from_secs(1))).unwrap();
        let fence = Fence { renewals, of: Deadline { seconds: 1, since: now } };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let timeout = Duration::from_secs(30);
        let remote = Remote::new(listener.local_addr().unwrap(), timeout).with_fence(fence.watch().ok().map(Arc::new));
        let calls = std::thread::spawn(move || {
            let clients = listener.incoming().map_while(Result::ok);
            let called = |mut client: TcpStream| rpc::read_record(&mut client, &mut Vec::new(), || Ok(()));
            clients.map(called).take_while(|called| matches!(called, Ok(true))).count()
        });
        let begun = Instant::now();
        assert_eq!(remote.call(procedure::WRITE, &Credentials::default(), |_| {}).err(), Some(libc::EIO));
        let took = begun.elapsed();
        assert!(took < timeout / 2, "it is tried for {took:?}");
        assert_eq!(remote.call(procedure::GETATTR, &Credentials::default(), |_| {}).err(), Some(libc::EIO));
        // The last connection was made and brought no call, or this one is it.
        drop((TcpStream::connect(remote.address), remote));
        assert!(calls.join().unwrap() >= 1);
    }
}
