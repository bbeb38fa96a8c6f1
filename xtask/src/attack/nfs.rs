//! A pod that floods the NFS server: calls without end on many connections, whose answers are never read. Whoever asks
//! from another address is served meanwhile (X5), and memory is bounded (X4).

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::bench::cluster::Cluster;
use crate::bench::processes;
use crate::bench::table::{Times, ms};

/// Connections that flood, half of them with writes and commits, half with reads.
const CONNECTIONS: usize = 250;
/// For how long; one that is cut begins anew.
const WINDOW: Duration = Duration::from_secs(15);
/// How long the other one waits for an answer.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOK: Duration = Duration::from_millis(100);
/// The largest READ and WRITE (bytes).
const MOST: u32 = 1 << 20;
/// How long the file is that is written again and again (bytes).
const FILE: u64 = 16 << 20;
/// The server's memory may not grow beyond this (KiB).
const MOST_MEMORY: u64 = 256 << 10;
const PORT: u16 = 2049;
const MOUNT: u32 = 100_005;
const NFS: u32 = 100_003;
const READ: u32 = 6;
const WRITE: u32 = 7;
const CREATE: u32 = 8;
const COMMIT: u32 = 21;
/// Who floods, and who only wants to be served.
const FLOODER: [u8; 4] = [127, 0, 0, 2];
const HONEST: [u8; 4] = [127, 0, 0, 3];

/// A server of its own, killed with this.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(binary: &Path, folder: &Path) -> Result<Server> {
    let export = folder.join("export");
    std::fs::create_dir_all(&export)?;
    let mut command = Command::new(binary);
    command.args(["nfs-server", "--listen", &format!("127.0.0.1:{PORT}"), "--state-dir"]).arg(folder.join("state"));
    command.arg("--export").arg(format!("{}:no_root_squash,clients=127.0.0.0/8", export.display()));
    Ok(Server(command.stdout(Stdio::null()).spawn().context("mainstay nfs-server")?))
}

/// Bytes of a message as XDR has them.
#[derive(Clone, Default)]
struct Xdr(Vec<u8>);

impl Xdr {
    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn opaque(mut self, bytes: &[u8]) -> Self {
        self = self.u32(u32::try_from(bytes.len()).unwrap_or(0));
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}

/// A whole record with a call of root's.
fn call((program, procedure): (u32, u32), arguments: &Xdr) -> Vec<u8> {
    let root = Xdr::default().u32(0).opaque(b"attack").u32(0).u32(0).u32(0);
    let head = Xdr::default().u32(1).u32(0).u32(2).u32(program).u32(3).u32(procedure).u32(1).opaque(&root.0);
    let body = [head.u32(0).u32(0).0, arguments.0.clone()].concat();
    let length = u32::try_from(body.len()).unwrap_or(0) | 1 << 31;
    [length.to_be_bytes().as_slice(), &body].concat()
}

async fn connect(from: [u8; 4]) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(4 << 10)?;
    socket.bind(SocketAddr::new(IpAddr::from(from), 0))?;
    Ok(socket.connect(SocketAddr::from(([127, 0, 0, 1], PORT))).await?)
}

/// Calls and reads the results, from after the status, which is to be OK.
async fn ask(stream: &mut TcpStream, number: (u32, u32), arguments: &Xdr) -> Result<Vec<u8>> {
    stream.write_all(&call(number, arguments)).await?;
    let length = stream.read_u32().await? & !(1 << 31);
    let mut answer = vec![0; length as usize];
    stream.read_exact(&mut answer).await?;
    // Number, REPLY, accepted, an empty verifier, carried out; then the procedure's status.
    let (head, results) = answer.split_at_checked(28).context("a short answer")?;
    ensure!(head.get(8..).is_some_and(|rest| rest.iter().all(|byte| *byte == 0)), "procedure {number:?}: {head:?}");
    Ok(results.to_vec())
}

/// A handle at the beginning of results.
fn handle(results: &[u8]) -> Result<Vec<u8>> {
    let length = results.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)).context("no handle")?;
    Ok(results.get(4..4 + length as usize).context("no handle")?.to_vec())
}

async fn create(stream: &mut TcpStream, root: &[u8], name: &str) -> Result<Vec<u8>> {
    // UNCHECKED, mode 0644, nothing else.
    let attributes = [0, 1, 0o644, 0, 0, 0, 0, 0];
    let arguments = Xdr::default().opaque(root).opaque(name.as_bytes());
    let results = ask(stream, (NFS, CREATE), &attributes.into_iter().fold(arguments, Xdr::u32)).await?;
    handle(results.get(4..).unwrap_or_default())
}

fn write(file: &[u8], offset: u64, bytes: &[u8]) -> Xdr {
    let count = u32::try_from(bytes.len()).unwrap_or(0);
    Xdr::default().opaque(file).u64(offset).u32(count).u32(0).opaque(bytes)
}

fn commit(file: &[u8]) -> Xdr {
    Xdr::default().opaque(file).u64(0).u32(0)
}

/// All of it.
pub async fn flood(cluster: &Cluster) -> Result<String> {
    let folder = cluster.folder.path().join("nfs");
    let server = start(cluster.binary(), &folder)?;
    let begun = Instant::now();
    let mut stream = loop {
        match connect(HONEST).await {
            Ok(stream) => break stream,
            Err(error) if begun.elapsed() > PATIENCE => bail!("the server does not answer: {error}"),
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    };
    let export = Xdr::default().opaque(folder.join("export").display().to_string().as_bytes());
    let root = handle(&ask(&mut stream, (MOUNT, 1), &export).await?)?;
    let (flooded, own) = (create(&mut stream, &root, "flooded").await?, create(&mut stream, &root, "own").await?);
    for offset in (0..FILE).step_by(MOST as usize) {
        ask(&mut stream, (NFS, WRITE), &write(&flooded, offset, &vec![1; MOST as usize])).await?;
    }
    let (quiet, before) = (honest(&own, Duration::from_secs(2)).await?, processes::memory(server.0.id())?.rss);
    let mut flooders = tokio::task::JoinSet::new();
    for index in 0..CONNECTIONS {
        flooders.spawn(press(flooded.clone(), index));
    }
    let (ends, pid) = (Instant::now() + WINDOW, server.0.id());
    let watching = tokio::spawn(async move {
        let mut peak = 0;
        while Instant::now() < ends {
            peak = processes::memory(pid).map_or(peak, |now| now.rss.max(peak));
            tokio::time::sleep(LOOK).await;
        }
        peak
    });
    let pressed = honest(&own, WINDOW).await;
    let (mut sent, peak) = (0, watching.await?);
    while let Some(done) = flooders.join_next().await {
        sent += done?;
    }
    let pressed = pressed.context("somebody else's write and commit")?;
    let shown = |times: &Times| format!("{}, {}", ms(times.median()), ms(times.quantile(0.99)));
    ensure!(peak <= MOST_MEMORY, "the NFS server has {} MiB", peak >> 10);
    Ok(format!(
        "{CONNECTIONS} connections, {} MiB of calls, no answer read; another's write and commit {} (quiet {}); \
         nfs-server RSS {}, {} MiB",
        sent >> 20,
        shown(&pressed),
        shown(&quiet),
        before >> 10,
        peak >> 10
    ))
}

/// Writes and commits as somebody who waits for each answer; how long each pair took.
async fn honest(file: &[u8], window: Duration) -> Result<Times> {
    let (begun, mut times) = (Instant::now(), Vec::new());
    while begun.elapsed() < window || times.is_empty() {
        let asked = Instant::now();
        let both = async {
            let mut stream = connect(HONEST).await?;
            ask(&mut stream, (NFS, WRITE), &write(file, 0, &[7; 4096])).await?;
            ask(&mut stream, (NFS, COMMIT), &commit(file)).await
        };
        tokio::time::timeout(PATIENCE, both).await.context("no answer")??;
        times.push(asked.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(Times::new(times))
}

/// One connection that floods; how many bytes it sent.
async fn press(file: Vec<u8>, index: usize) -> u64 {
    let (begun, mut sent, mut offset) = (Instant::now(), 0, 0);
    let read = call((NFS, READ), &Xdr::default().opaque(&file).u64(0).u32(MOST));
    let committed = call((NFS, COMMIT), &commit(&file));
    let bytes = vec![2; MOST as usize];
    while begun.elapsed() < WINDOW {
        let Ok(mut stream) = connect(FLOODER).await else {
            tokio::time::sleep(LOOK).await;
            continue;
        };
        loop {
            let left = WINDOW.saturating_sub(begun.elapsed());
            let messages = if index.is_multiple_of(2) {
                vec![read.clone()]
            } else {
                offset = (offset + u64::from(MOST)) % FILE;
                vec![call((NFS, WRITE), &write(&file, offset, &bytes)), committed.clone()]
            };
            let whole = messages.concat();
            match tokio::time::timeout(left, stream.write_all(&whole)).await {
                Ok(Ok(())) => sent += whole.len() as u64,
                Ok(Err(_)) => break,
                Err(_) => return sent,
            }
        }
    }
    sent
}
