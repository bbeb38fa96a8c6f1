//! The cluster's DNS server: sockets and wire format around [`mainstay_logic::dns`]. Answers come straight from the
//! view that the watches keep, so that a name resolves as soon as the change has arrived (N1); what does not exist
//! is answered with a time to live of 0, so that nobody remembers it.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use mainstay_logic::dns::{self, Answer, Data, TTL_SECONDS, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

use super::view::View;

/// The largest UDP answer, whatever a client offers (fits every path's MTU).
const MAX_UDP: u16 = 1232;
/// A client without EDNS.
const PLAIN_UDP: u16 = 512;
/// Questions that wait for an upstream server at once; more are answered SERVFAIL.
const MAX_FORWARDED: usize = 256;
/// TCP connections at once.
const MAX_CONNECTIONS: usize = 128;
/// How long an upstream server may take, and how long a TCP client may be silent.
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(2);
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// Upstream servers that are tried, as in resolv.conf(5).
const MAX_UPSTREAMS: usize = 3;

/// A server whose sockets are bound.
pub struct Server {
    shared: Arc<Shared>,
    udp: Arc<UdpSocket>,
    tcp: TcpListener,
}

/// What every answer needs.
struct Shared {
    view: Arc<View>,
    domain: Name,
    upstreams: Vec<SocketAddr>,
    forwarded: Arc<Semaphore>,
}

/// The name servers of a resolv.conf, less the cluster's own.
pub fn upstreams(resolv_conf: &str, own: Ipv4Addr) -> Vec<SocketAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok())
        .filter(|address| *address != IpAddr::V4(own))
        .map(|address| SocketAddr::new(address, 53))
        .take(MAX_UPSTREAMS)
        .collect()
}

impl Server {
    /// Binds UDP and TCP on `address`:53. Names outside the cluster go to `upstreams`.
    ///
    /// # Errors
    /// The port is in use, or the address is not on this host.
    pub async fn bind(
        view: Arc<View>,
        domain: &str,
        address: Ipv4Addr,
        upstreams: Vec<SocketAddr>,
    ) -> io::Result<Self> {
        let udp = Arc::new(UdpSocket::bind((address, 53)).await?);
        let tcp = TcpListener::bind((address, 53)).await?;
        let domain = Name::from_ascii(format!("{domain}.")).map_err(io::Error::other)?;
        let forwarded = Arc::new(Semaphore::new(MAX_FORWARDED));
        Ok(Self { shared: Arc::new(Shared { view, domain, upstreams, forwarded }), udp, tcp })
    }

    /// Answers until dropped.
    pub async fn serve(self: Arc<Self>) {
        tokio::select! {
            () = serve_udp(self.shared.clone(), self.udp.clone()) => {}
            () = serve_tcp(self.shared.clone(), &self.tcp) => {}
        }
    }
}

async fn serve_udp(server: Arc<Shared>, socket: Arc<UdpSocket>) {
    let mut buffer = vec![0; 4096];
    loop {
        // An error here is an earlier answer's "port unreachable"; the socket stays good.
        let Ok((read, client)) = socket.recv_from(&mut buffer).await else { continue };
        let Some((question, limit)) = question(&buffer[..read]) else { continue };
        if let Some(answer) = server.cluster_answer(&question) {
            send(&socket, client, &answer, limit).await;
        } else {
            let (server, socket, datagram) = (server.clone(), socket.clone(), buffer[..read].to_vec());
            tokio::spawn(async move {
                let answer = server.upstream_answer(&question, &datagram).await;
                send(&socket, client, &answer, limit).await;
            });
        }
    }
}

/// Reads a message whose counts can be true: room is made for as many entries as it claims to have.
fn message(bytes: &[u8]) -> Option<Message> {
    /// Identifier, flags and four counts; the shortest query (root, type, class) and record (and time to live, length).
    const HEADER: usize = 12;
    const QUERY: usize = 5;
    const RECORD: usize = 11;
    let (header, rest) = bytes.split_first_chunk::<HEADER>()?;
    let count = |at: usize| usize::from(u16::from_be_bytes([header[at], header[at + 1]]));
    let least = count(4) * QUERY + (count(6) + count(8) + count(10)) * RECORD;
    if least > rest.len() { None } else { Message::from_vec(bytes).ok() }
}

/// Reads a datagram: the question, and how long its answer may be.
fn question(datagram: &[u8]) -> Option<(Message, u16)> {
    let question = message(datagram)?;
    let limit = question.edns.as_ref().map_or(PLAIN_UDP, |edns| edns.max_payload().clamp(PLAIN_UDP, MAX_UDP));
    Some((question, limit))
}

/// An answer as a datagram, cut short (and marked so) where it is too large.
fn datagram(answer: &Message, limit: u16) -> Option<Vec<u8>> {
    let bytes = answer.to_vec().ok()?;
    if bytes.len() > usize::from(limit) { answer.truncate().to_vec().ok() } else { Some(bytes) }
}

async fn send(socket: &UdpSocket, client: SocketAddr, answer: &Message, limit: u16) {
    if let Some(bytes) = datagram(answer, limit) {
        // A client that is gone is no concern of the server's.
        let _ = socket.send_to(&bytes, client).await;
    }
}

async fn serve_tcp(server: Arc<Shared>, listener: &TcpListener) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else { continue };
        let server = server.clone();
        tokio::spawn(async move {
            let _ = serve_connection(&server, stream).await;
            drop(permit);
        });
    }
}

async fn serve_connection(server: &Shared, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let length = tokio::time::timeout(IDLE_TIMEOUT, stream.read_u16()).await??;
        let mut datagram = vec![0; usize::from(length)];
        tokio::time::timeout(IDLE_TIMEOUT, stream.read_exact(&mut datagram)).await??;
        let question = message(&datagram).ok_or(io::ErrorKind::InvalidData)?;
        let answer = match server.cluster_answer(&question) {
            Some(answer) => answer,
            None => server.upstream_answer(&question, &datagram).await,
        };
        let bytes = answer.to_vec().map_err(io::Error::other)?;
        let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes()[..], &bytes].concat()).await?;
    }
}

impl Shared {
    /// The answer, unless an upstream server has to be asked.
    fn cluster_answer(&self, question: &Message) -> Option<Message> {
        let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
        answer.metadata.recursion_desired = question.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.edns.clone_from(&question.edns);
        let [query] = &question.queries[..] else {
            answer.metadata.response_code = ResponseCode::FormErr;
            return Some(answer);
        };
        answer.add_query(query.clone());
        if question.metadata.op_code != OpCode::Query || query.query_class() != DNSClass::IN {
            answer.metadata.response_code = ResponseCode::NotImp;
            return Some(answer);
        }
        let found = self
            .view
            .read(|snapshot, zones| zones.answer(snapshot, &query.name().to_ascii(), type_of(query.query_type())));
        let about_addresses = query.query_type() == RecordType::PTR;
        if !self.view.is_whole() && (found != Answer::NotOurs || about_addresses) {
            // Just started: a client that is told this asks again; one that is told NXDOMAIN believes it.
            answer.metadata.response_code = ResponseCode::ServFail;
            return Some(answer);
        }
        match found {
            Answer::NotOurs => return None,
            Answer::NxDomain => {
                answer.metadata.response_code = ResponseCode::NXDomain;
                answer.add_authority(self.authority());
            }
            Answer::NoData => {
                answer.add_authority(self.authority());
            }
            Answer::Records { answers, additional } => {
                answer.add_answers(answers.iter().filter_map(record));
                answer.add_additionals(additional.iter().filter_map(record));
                if leads_outside(&answer, query).is_some() {
                    return None;
                }
            }
        }
        answer.metadata.authoritative = true;
        Some(answer)
    }

    /// The zone's SOA with nothing to remember: negative answers are never cached.
    fn authority(&self) -> Record {
        let server = Name::from_ascii("ns.dns")
            .and_then(|name| name.append_domain(&self.domain))
            .unwrap_or_else(|_| self.domain.clone());
        let soa = SOA::new(server.clone(), server, 1, 7200, 1800, 86400, 0);
        Record::from_rdata(self.domain.clone(), 0, RData::SOA(soa))
    }

    /// Asks the upstream servers in turn: for the question itself, or for the target of a CNAME that leaves the
    /// cluster.
    async fn upstream_answer(&self, question: &Message, datagram: &[u8]) -> Message {
        let mut failed = Message::response(question.metadata.id, question.metadata.op_code);
        failed.add_queries(question.queries.iter().cloned());
        failed.metadata.recursion_available = true;
        failed.metadata.response_code = ResponseCode::ServFail;
        let (Ok(_permit), [query]) = (self.forwarded.try_acquire(), &question.queries[..]) else { return failed };
        let found = self
            .view
            .read(|snapshot, zones| zones.answer(snapshot, &query.name().to_ascii(), type_of(query.query_type())));
        let Answer::Records { answers, .. } = found else {
            return self.ask(datagram).await.unwrap_or(failed);
        };
        let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
        answer.add_query(query.clone());
        answer.metadata.recursion_available = true;
        answer.add_answers(answers.iter().filter_map(record));
        if let Some(target) = leads_outside(&answer, query) {
            let mut next = Message::query();
            next.metadata.id = question.metadata.id;
            next.metadata.recursion_desired = true;
            next.add_query(Query::query(target, query.query_type()));
            if let Ok(datagram) = next.to_vec()
                && let Some(more) = self.ask(&datagram).await
            {
                answer.add_answers(more.answers);
            }
        }
        answer
    }

    async fn ask(&self, datagram: &[u8]) -> Option<Message> {
        for upstream in &self.upstreams {
            let work = async {
                // A socket of its own per question: a random port against forged answers.
                let any: IpAddr = if upstream.is_ipv4() {
                    Ipv4Addr::UNSPECIFIED.into()
                } else {
                    std::net::Ipv6Addr::UNSPECIFIED.into()
                };
                let socket = UdpSocket::bind((any, 0)).await.ok()?;
                socket.connect(upstream).await.ok()?;
                socket.send(datagram).await.ok()?;
                let mut buffer = vec![0; 4096];
                loop {
                    let read = socket.recv(&mut buffer).await.ok()?;
                    if buffer.get(..2) == datagram.get(..2) {
                        return message(&buffer[..read]);
                    }
                }
            };
            if let Ok(Some(answer)) = tokio::time::timeout(UPSTREAM_TIMEOUT, work).await {
                return Some(answer);
            }
        }
        None
    }
}

/// Where a chain of CNAMEs goes on outside the cluster.
fn leads_outside(answer: &Message, query: &Query) -> Option<Name> {
    if matches!(query.query_type(), RecordType::CNAME | RecordType::ANY) {
        return None;
    }
    match answer.answers.last().map(|record| &record.data) {
        Some(RData::CNAME(target)) => Some(target.0.clone()),
        _ => None,
    }
}

fn type_of(wanted: RecordType) -> Type {
    match wanted {
        RecordType::A => Type::A,
        RecordType::AAAA => Type::Aaaa,
        RecordType::CNAME => Type::Cname,
        RecordType::PTR => Type::Ptr,
        RecordType::SRV => Type::Srv,
        RecordType::TXT => Type::Txt,
        RecordType::ANY => Type::Any,
        _ => Type::Other,
    }
}

fn name(text: &str) -> Option<Name> {
    Name::from_ascii(format!("{text}.")).ok()
}

fn record(found: &dns::Record) -> Option<Record> {
    let data = match &found.data {
        Data::A(address) => RData::A((*address).into()),
        Data::Aaaa(address) => RData::AAAA((*address).into()),
        Data::Cname(target) => RData::CNAME(CNAME(name(target)?)),
        Data::Ptr(target) => RData::PTR(PTR(name(target)?)),
        Data::Srv { priority, weight, port, target } => RData::SRV(SRV::new(*priority, *weight, *port, name(target)?)),
        Data::Txt(text) => RData::TXT(TXT::new(vec![text.clone()])),
    };
    Some(Record::from_rdata(name(&found.name)?, TTL_SECONDS, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clusters_own_server_is_not_its_upstream() {
        let conf = "search lan\nnameserver 10.96.0.10\n nameserver 192.0.2.1\nnameserver nonsense\n";
        assert_eq!(upstreams(conf, Ipv4Addr::new(10, 96, 0, 10)), ["192.0.2.1:53".parse().expect("an address")]);
    }

    fn answer(server: &Shared, name: &str, wanted: RecordType) -> Message {
        let mut question = Message::query();
        question.add_query(Query::query(Name::from_ascii(name).expect("a name"), wanted));
        server.cluster_answer(&question).expect("the cluster's to answer")
    }

    /// RFC 2308: who caches keeps a negative answer for the lesser of the SOA's own time to live and its MINIMUM; some
    /// look at the latter alone.
    #[test]
    fn n1_nobody_remembers_what_does_not_exist_yet() {
        let server = fuzzing::server();
        for (name, wanted, code) in [
            ("web-1.web.default.svc.cluster.local.", RecordType::A, ResponseCode::NXDomain),
            ("none.default.svc.cluster.local.", RecordType::SRV, ResponseCode::NXDomain),
            ("web-0.web.default.svc.cluster.local.", RecordType::AAAA, ResponseCode::NoError),
        ] {
            let answer = answer(&server, name, wanted);
            assert_eq!((answer.metadata.response_code, answer.answers.len()), (code, 0), "{name}");
            let [authority] = &answer.authorities[..] else { panic!("{name}: {:?}", answer.authorities) };
            let RData::SOA(soa) = &authority.data else { panic!("{name}: {authority}") };
            assert_eq!((authority.ttl, soa.minimum), (0, 0), "{name}");
        }
        let there = answer(&server, "web-0.web.default.svc.cluster.local.", RecordType::A);
        assert_eq!(there.answers.iter().map(|record| record.ttl).collect::<Vec<_>>(), [5], "for a moment only");
    }
}
