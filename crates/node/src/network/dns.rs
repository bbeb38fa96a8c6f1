//! The cluster's DNS server: sockets and wire format around [`mainstay_logic::dns`]. Answers come straight from the
//! view that the watches keep, so that a name resolves as soon as the change has arrived (N1); what does not exist
//! is answered with a time to live of 0, so that nobody remembers it.

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod upstream;
mod wire;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use mainstay_logic::dns::{self, Answer, Data, TTL_SECONDS, Type};
use mainstay_tasks::Shares;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use self::upstream::Over;
use self::wire::{message, question};
use super::view::View;

/// Questions that wait for an upstream server at once, of all clients and of one address; more are answered SERVFAIL.
const MAX_FORWARDED: u32 = 256;
const MAX_FORWARDED_EACH: u32 = 64;
/// TCP connections at once, of all clients and of one address; more are closed.
const MAX_CONNECTIONS: u32 = 128;
const MAX_CONNECTIONS_EACH: u32 = 16;
/// How long a TCP client may be silent, and how long it may take to read an answer.
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
    forwarded: Shares,
}

/// The name servers of a resolv.conf, less the cluster's own.
pub fn upstreams(resolv_conf: &str, own: Ipv4Addr) -> Vec<SocketAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next()? == "nameserver").then(|| words.next()?.parse::<IpAddr>().ok())?
        })
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
        let forwarded = Shares::new(MAX_FORWARDED, MAX_FORWARDED_EACH);
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
        if let Some(answer) = server.cluster_answer(&question, limit) {
            send(&socket, client, answer, limit).await;
        } else {
            let (server, socket, datagram) = (server.clone(), socket.clone(), buffer[..read].to_vec());
            tokio::spawn(async move {
                let answer = server.upstream_answer(&question, &datagram, client.ip(), Over::Udp).await;
                send(&socket, client, answer, limit).await;
            });
        }
    }
}

async fn send(socket: &UdpSocket, client: SocketAddr, answer: Message, limit: u16) {
    if let Some(bytes) = wire::bytes(answer, limit) {
        // A client that is gone is no concern of the server's.
        let _ = socket.send_to(&bytes, client).await;
    }
}

async fn serve_tcp(server: Arc<Shared>, listener: &TcpListener) {
    let connections = Shares::new(MAX_CONNECTIONS, MAX_CONNECTIONS_EACH);
    loop {
        let Ok((stream, client)) = listener.accept().await else { continue };
        let Some(slot) = connections.try_take(&client.ip().to_string(), 1) else { continue };
        let server = server.clone();
        tokio::spawn(async move {
            let _ = serve_connection(&server, stream, client.ip()).await;
            drop(slot);
        });
    }
}

async fn serve_connection(server: &Shared, mut stream: TcpStream, client: IpAddr) -> io::Result<()> {
    loop {
        let length = tokio::time::timeout(IDLE_TIMEOUT, stream.read_u16()).await??;
        let mut datagram = vec![0; usize::from(length)];
        tokio::time::timeout(IDLE_TIMEOUT, stream.read_exact(&mut datagram)).await??;
        let question = message(&datagram).ok_or(io::ErrorKind::InvalidData)?;
        let answer = match server.cluster_answer(&question, u16::MAX) {
            Some(answer) => answer,
            None => server.upstream_answer(&question, &datagram, client, Over::Tcp).await,
        };
        let bytes = wire::bytes(answer, u16::MAX).ok_or(io::ErrorKind::InvalidData)?;
        let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes()[..], &bytes].concat();
        tokio::time::timeout(IDLE_TIMEOUT, stream.write_all(&framed)).await??;
    }
}

impl Shared {
    /// The answer, unless an upstream server has to be asked. No more is made of it than could fit into so many bytes,
    /// and one record, so that it is seen to be cut.
    fn cluster_answer(&self, question: &Message, limit: u16) -> Option<Message> {
        let most = usize::from(limit) / wire::LEAST_RECORD + 1;
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
        let found = self.found(query.name(), query.query_type());
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
                answer.add_answers(answers.iter().filter_map(record).take(most));
                answer.add_additionals(additional.iter().filter_map(record).take(most));
                match leads_on(&answer, query) {
                    Some(target) if self.domain.zone_of(&target) => {
                        // Nobody else is asked for the cluster's own names: not for one that is not there (yet), nor
                        // for a chain without an end.
                        answer.metadata.response_code = match self.found(&target, query.query_type()) {
                            Answer::NxDomain => ResponseCode::NXDomain,
                            Answer::NoData => ResponseCode::NoError,
                            _ => ResponseCode::ServFail,
                        };
                        answer.add_authority(self.authority());
                    }
                    Some(_) => return None,
                    None => {}
                }
            }
        }
        answer.metadata.authoritative = true;
        Some(answer)
    }

    /// What the cluster's zones say.
    fn found(&self, name: &Name, wanted: RecordType) -> Answer {
        self.view.read(|snapshot, zones| zones.answer(snapshot, &name.to_ascii(), type_of(wanted)))
    }

    /// The zone's SOA with nothing to remember: negative answers are never cached.
    fn authority(&self) -> Record {
        let server = Name::from_ascii("ns.dns")
            .and_then(|name| name.append_domain(&self.domain))
            .unwrap_or_else(|_| self.domain.clone());
        let soa = SOA::new(server.clone(), server, 1, 7200, 1800, 86400, 0);
        Record::from_rdata(self.domain.clone(), 0, RData::SOA(soa))
    }

    /// Asks the upstream servers: for the question itself, or for the target of a CNAME that leaves the cluster.
    async fn upstream_answer(&self, question: &Message, datagram: &[u8], client: IpAddr, over: Over) -> Message {
        let mut failed = Message::response(question.metadata.id, question.metadata.op_code);
        failed.add_queries(question.queries.iter().cloned());
        failed.metadata.recursion_available = true;
        failed.metadata.response_code = ResponseCode::ServFail;
        let permit = self.forwarded.try_take(&client.to_string(), 1);
        let (Some(_permit), [query]) = (permit, &question.queries[..]) else { return failed };
        let Answer::Records { answers, .. } = self.found(query.name(), query.query_type()) else {
            return upstream::ask(&self.upstreams, datagram, over).await.unwrap_or(failed);
        };
        let mut answer = Message::response(question.metadata.id, question.metadata.op_code);
        answer.add_query(query.clone());
        answer.metadata.recursion_available = true;
        answer.add_answers(answers.iter().filter_map(record));
        if let Some(target) = leads_on(&answer, query).filter(|target| !self.domain.zone_of(target)) {
            let mut next = Message::query();
            next.metadata.id = question.metadata.id;
            next.metadata.recursion_desired = true;
            next.add_query(Query::query(target, query.query_type()));
            if let Ok(datagram) = next.to_vec()
                && let Some(more) = upstream::ask(&self.upstreams, &datagram, over).await
            {
                answer.metadata.truncation = more.metadata.truncation;
                answer.add_answers(more.answers);
            }
        }
        answer
    }
}

/// Where a chain of CNAMEs goes on that the cluster's zones do not end.
fn leads_on(answer: &Message, query: &Query) -> Option<Name> {
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
        let conf = "search lan\nnameserver 10.96.0.10\n nameserver 192.0.2.1  # a note\nnameserver nonsense\n";
        assert_eq!(upstreams(conf, Ipv4Addr::new(10, 96, 0, 10)), ["192.0.2.1:53".parse().expect("an address")]);
    }

    fn answer(server: &Shared, name: &str, wanted: RecordType) -> Message {
        let mut question = Message::query();
        question.add_query(Query::query(Name::from_ascii(name).expect("a name"), wanted));
        server.cluster_answer(&question, u16::MAX).expect("the cluster's to answer")
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
        // An alias of what is not there is not asked for outside, nor is one without an end.
        let gone = answer(&server, "gone.default.svc.cluster.local.", RecordType::A);
        assert_eq!((gone.metadata.response_code, gone.answers.len()), (ResponseCode::NXDomain, 1));
        assert_eq!(gone.authorities.first().map(|authority| authority.ttl), Some(0));
        let endless = answer(&server, "loop.default.svc.cluster.local.", RecordType::A);
        assert_eq!(endless.metadata.response_code, ResponseCode::ServFail);
        let there = answer(&server, "web-0.web.default.svc.cluster.local.", RecordType::A);
        assert_eq!(there.answers.iter().map(|record| record.ttl).collect::<Vec<_>>(), [5], "for a moment only");
    }
}
