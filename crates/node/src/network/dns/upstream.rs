//! Asking the name servers outside of the cluster.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::Message;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};

use super::wire::message;

/// How long one server may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// How a client asked, and so how it is asked for it: whoever came by TCP got a datagram that was cut short.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Over {
    Udp,
    Tcp,
}

/// The first answer of servers that are asked in turn. One that has no TCP is asked by UDP all the same.
pub async fn ask(servers: &[SocketAddr], question: &[u8], over: Over) -> Option<Message> {
    for server in servers {
        let work = async {
            match over {
                Over::Udp => by_udp(*server, question).await,
                Over::Tcp => match by_tcp(*server, question).await {
                    Err(_) => by_udp(*server, question).await,
                    answered => answered,
                },
            }
        };
        if let Ok(Ok(answer)) = tokio::time::timeout(TIMEOUT, work).await {
            return Some(answer);
        }
    }
    None
}

async fn by_udp(server: SocketAddr, question: &[u8]) -> io::Result<Message> {
    // A socket of its own per question: a random port against forged answers.
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let read = socket.recv(&mut buffer).await?;
        if buffer.get(..2) == question.get(..2) {
            return message(&buffer[..read]).ok_or_else(|| io::ErrorKind::InvalidData.into());
        }
    }
}

async fn by_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], question].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    let is_its = answer.get(..2) == question.get(..2);
    message(&answer).filter(|_| is_its).ok_or_else(|| io::ErrorKind::InvalidData.into())
}
