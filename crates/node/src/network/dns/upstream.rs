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
/// How much of that is tried by TCP: a firewall on the way may drop it without a word, and then UDP is asked.
const TIMEOUT_TCP: Duration = Duration::from_secs(1);

/// How a client asked, and so how it is asked for it: whoever came by TCP got a datagram that was cut short.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Over {
    Udp,
    Tcp,
}

/// The first answer of servers that are asked in turn. One that is not reached by TCP is asked by UDP all the same.
pub async fn ask(servers: &[SocketAddr], question: &[u8], over: Over) -> Option<Message> {
    for server in servers {
        let work = async {
            match over {
                Over::Udp => by_udp(*server, question).await,
                Over::Tcp => match tokio::time::timeout(TIMEOUT_TCP, by_tcp(*server, question)).await {
                    Ok(Ok(answer)) => Ok(answer),
                    _ => by_udp(*server, question).await,
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

#[cfg(test)]
mod tests {
    use hickory_proto::op::{MessageType, OpCode};
    use tokio::net::TcpSocket;

    use super::*;

    /// Connections to a server whose queue is full are dropped without an answer, as firewalls do.
    #[tokio::test]
    async fn n4_a_server_behind_a_firewall_that_drops_tcp_is_asked_by_udp() {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let server = udp.local_addr().unwrap();
        let listener = TcpSocket::new_v4().unwrap();
        listener.bind(server).unwrap();
        let _never_accepts = listener.listen(0).unwrap();
        let mut queued = Vec::new();
        while let Ok(one) = tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(server)).await {
            queued.push(one.unwrap());
            assert!(queued.len() < 64, "the queue has no end");
        }
        let question = Message::new(77, MessageType::Query, OpCode::Query).to_vec().unwrap();
        let answers = async {
            let mut buffer = [0; 512];
            loop {
                let (read, from) = udp.recv_from(&mut buffer).await.unwrap();
                udp.send_to(&buffer[..read], from).await.unwrap();
            }
        };
        let servers = [server];
        let answer = tokio::select! {
            answer = ask(&servers, &question, Over::Tcp) => answer,
            () = answers => None,
        };
        assert_eq!(answer.map(|answer| answer.metadata.id), Some(77));
    }
}
