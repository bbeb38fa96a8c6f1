//! A DNS client that asks the servers of /etc/resolv.conf and nobody else.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};

/// How long a server may take.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How often a question is asked.
const ATTEMPTS: usize = 2;

struct ResolvConf {
    servers: Vec<SocketAddr>,
    search: Vec<String>,
    ndots: usize,
}

fn resolv_conf() -> Result<ResolvConf> {
    let text = std::fs::read_to_string("/etc/resolv.conf").context("reading /etc/resolv.conf")?;
    let mut conf = ResolvConf { servers: Vec::new(), search: Vec::new(), ndots: 1 };
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => {
                conf.servers.extend(
                    words.next().and_then(|word| word.parse().ok()).map(|address: IpAddr| SocketAddr::new(address, 53)),
                );
            }
            Some("search") => conf.search = words.map(str::to_owned).collect(),
            Some("options") => {
                let ndots = words.filter_map(|word| word.strip_prefix("ndots:")?.parse().ok()).next_back();
                conf.ndots = ndots.unwrap_or(conf.ndots);
            }
            _ => {}
        }
    }
    Ok(conf)
}

/// The names to try in turn, as resolver libraries do: with fewer dots than `ndots` the search list comes first.
fn candidates(name: &str, conf: &ResolvConf) -> Vec<String> {
    if let Some(absolute) = name.strip_suffix('.') {
        return vec![absolute.to_owned()];
    }
    let searched = conf.search.iter().map(|domain| format!("{name}.{domain}"));
    if name.matches('.').count() >= conf.ndots {
        std::iter::once(name.to_owned()).chain(searched).collect()
    } else {
        searched.chain(std::iter::once(name.to_owned())).collect()
    }
}

fn ask(name: &str, record_type: RecordType, conf: &ResolvConf) -> Result<Message> {
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(Name::from_ascii(format!("{name}."))?, record_type));
    let datagram = question.to_vec()?;
    let mut last = anyhow::anyhow!("no nameserver in /etc/resolv.conf");
    for server in conf.servers.iter().cycle().take(conf.servers.len() * ATTEMPTS) {
        let exchange = || -> Result<Message> {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            socket.set_read_timeout(Some(TIMEOUT))?;
            socket.connect(server)?;
            socket.send(&datagram)?;
            let mut buffer = [0; 4096];
            let read = socket.recv(&mut buffer)?;
            let answer = Message::from_vec(&buffer[..read])?;
            if answer.metadata.id != question.metadata.id {
                bail!("the answer is to another question");
            }
            Ok(answer)
        };
        match exchange() {
            Ok(answer) => return Ok(answer),
            Err(error) => last = error.context(format!("asking {server}")),
        }
    }
    Err(last)
}

/// Asks for a name's records by the search list; one line per record, sorted: `name type data`.
pub fn lookup(name: &str, record_type: &str) -> Result<Vec<String>> {
    let wanted: RecordType =
        record_type.to_ascii_uppercase().parse().with_context(|| format!("record type {record_type}"))?;
    let conf = resolv_conf()?;
    let names = match (wanted, name.parse::<Ipv4Addr>()) {
        (RecordType::PTR, Ok(address)) => {
            let [a, b, c, d] = address.octets();
            vec![format!("{d}.{c}.{b}.{a}.in-addr.arpa")]
        }
        _ => candidates(name, &conf),
    };
    let mut last = String::new();
    for name in names {
        let answer = ask(&name, wanted, &conf)?;
        let mut lines: Vec<String> = answer
            .answers
            .iter()
            .map(|record| {
                format!("{} {} {}", record.name.to_ascii().trim_end_matches('.'), record.record_type(), record.data)
            })
            .collect();
        if !lines.is_empty() {
            lines.sort();
            return Ok(lines);
        }
        last = if answer.metadata.response_code == ResponseCode::NoError {
            format!("{name}: no {wanted} records")
        } else {
            format!("{name}: {}", answer.metadata.response_code)
        };
    }
    bail!(last)
}

/// The first address of a host, which may be an address already.
pub fn address(host: &str) -> Result<IpAddr> {
    if let Ok(address) = host.parse() {
        return Ok(address);
    }
    let conf = resolv_conf()?;
    for name in candidates(host, &conf) {
        let answer = ask(&name, RecordType::A, &conf)?;
        let address = answer.answers.iter().find_map(|record| match &record.data {
            RData::A(address) => Some(IpAddr::V4(address.0)),
            _ => None,
        });
        if let Some(address) = address {
            return Ok(address);
        }
    }
    bail!("{host}: no such host")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_searched_first() {
        let conf = ResolvConf {
            servers: Vec::new(),
            search: vec!["default.svc.cluster.local".into(), "svc.cluster.local".into()],
            ndots: 5,
        };
        assert_eq!(
            candidates("web-0.web", &conf),
            ["web-0.web.default.svc.cluster.local", "web-0.web.svc.cluster.local", "web-0.web"]
        );
        assert_eq!(candidates("example.org.", &conf), ["example.org"]);
    }
}
