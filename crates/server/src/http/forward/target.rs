//! Whom a `proxy` request is for: scheme and port out of the name, and the address of the pod, endpoint or node.

use std::net::IpAddr;
use std::sync::Arc;

use mainstay_api::{Status, kinds, object};
use serde_json::Value;

use super::super::{Server, proxy};
use super::Target;
use crate::api::Api;

/// How a backend is spoken to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Tls {
    /// Plain HTTP.
    None,
    /// As the kubelet of this node is asked: its certificate is checked, and it is shown ours.
    Kubelet(String),
    /// TLS without looking at the certificate, as upstream: nobody says what a pod's should be.
    Unverified,
}

/// Where a request is passed on to.
#[derive(Debug, PartialEq)]
pub struct Backend {
    /// `10.244.0.5:8080`
    pub address: String,
    /// How.
    pub tls: Tls,
}

/// A name as the proxy takes it: `name`, `name:port`, or `scheme:name:port`.
#[derive(Debug, PartialEq)]
struct Named<'a> {
    is_https: bool,
    name: &'a str,
    /// A number, a name, or empty.
    port: &'a str,
}

impl<'a> Named<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        let (scheme, name, port) = match *parts.as_slice() {
            [name] => ("", name, ""),
            [name, port] => ("", name, port),
            [scheme @ ("http" | "https" | ""), name, port] => (scheme, name, port),
            _ => return None,
        };
        (!name.is_empty()).then_some(Self { is_https: scheme == "https", name, port })
    }
}

/// The backend of a request.
///
/// # Errors
/// See [`super::serve`].
pub fn resolve(server: &Server, target: &Target) -> Result<Backend, Status> {
    let named = Named::parse(&target.name)
        .ok_or_else(|| Status::bad_request(format!("invalid {} request {:?}", target.kind.singular, target.name)))?;
    let mut batch = server.api.batch();
    if target.kind == kinds::POD {
        let pod = batch.must_get(&kinds::POD, &target.namespace, named.name)?;
        return of_pod(&named, &pod);
    }
    if target.kind == kinds::SERVICE {
        let service = batch.must_get(&kinds::SERVICE, &target.namespace, named.name)?;
        let endpoints = batch.get(&kinds::ENDPOINTS, &target.namespace, named.name)?.unwrap_or(Value::Null);
        let mut random = [0; 2];
        (server.api.env.random)(&mut random);
        return of_service(&named, &service, &endpoints, usize::from(u16::from_be_bytes(random)));
    }
    if target.kind == kinds::NODE {
        let node = batch.must_get(&kinds::NODE, "", named.name)?;
        let kubelet = proxy::kubelet_address_of(&node)?;
        let (host, port) = kubelet.rsplit_once(':').unwrap_or((&kubelet, ""));
        if named.port.is_empty() || named.port == port {
            return Ok(Backend { address: kubelet, tls: Tls::Kubelet(named.name.to_owned()) });
        }
        return at(host.trim_matches(['[', ']']), named.port, named.is_https);
    }
    Err(Status::no_such_resource())
}

fn of_pod(named: &Named<'_>, pod: &Value) -> Result<Backend, Status> {
    let containers = object::at(pod, &["spec", "containers"]).and_then(Value::as_array).into_iter().flatten();
    let declared = containers
        .filter_map(|container| container.get("ports")?.as_array()?.first()?.get("containerPort")?.as_u64())
        .next();
    let port = match (named.port, declared) {
        ("", Some(port)) => port.to_string(),
        (port, _) => port.to_owned(),
    };
    at(object::text(pod, &["status", "podIP"]), &port, named.is_https)
}

fn of_service(named: &Named<'_>, service: &Value, endpoints: &Value, pick: usize) -> Result<Backend, Status> {
    let unavailable = |message: String| Status::new(503, "ServiceUnavailable", message);
    let ports: Vec<&Value> =
        object::at(service, &["spec", "ports"]).and_then(Value::as_array).into_iter().flatten().collect();
    let port_name = match named.port.parse::<u64>() {
        Ok(number) => ports
            .iter()
            .find(|port| port.get("port").and_then(Value::as_u64) == Some(number))
            .map(|port| object::text(port, &["name"]))
            .ok_or_else(|| {
                unavailable(format!("no service port {:?} found for service {:?}", named.port, named.name))
            })?,
        Err(_) => match ports.as_slice() {
            [only] if named.port.is_empty() => object::text(only, &["name"]),
            _ => named.port,
        },
    };
    let subsets: Vec<&Value> =
        object::at(endpoints, &["subsets"]).and_then(Value::as_array).into_iter().flatten().collect();
    let mut found: Vec<(&str, u64)> = Vec::new();
    for subset in subsets {
        let list = |name: &str| subset.get(name).and_then(Value::as_array).into_iter().flatten();
        for port in list("ports").filter(|port| object::text(port, &["name"]) == port_name) {
            let number = port.get("port").and_then(Value::as_u64).unwrap_or(0);
            found.extend(list("addresses").map(|address| (object::text(address, &["ip"]), number)));
        }
    }
    let (ip, port) = pick
        .checked_rem(found.len())
        .and_then(|index| found.get(index))
        .ok_or_else(|| unavailable(format!("no endpoints available for service {:?}", named.name)))?;
    at(ip, &port.to_string(), named.is_https)
}

/// Where a Service's port is answered, for the server's own calls: a ready endpoint, or the name that it stands for.
///
/// # Errors
/// Upstream's words: no such Service, no such port, no endpoints.
pub fn service_address(api: &Api, namespace: &str, name: &str, port: u16) -> Result<String, String> {
    let mut batch = api.batch();
    let service = batch.must_get(&kinds::SERVICE, namespace, name).map_err(|status| status.message)?;
    if object::text(&service, &["spec", "type"]) == "ExternalName" {
        return Ok(format!("{}:{port}", object::text(&service, &["spec", "externalName"])));
    }
    let endpoints = batch.get(&kinds::ENDPOINTS, namespace, name).map_err(|status| status.message)?;
    let port = port.to_string();
    let named = Named { is_https: true, name, port: &port };
    let mut random = [0; 2];
    (api.env.random)(&mut random);
    let pick = usize::from(u16::from_be_bytes(random));
    let backend = of_service(&named, &service, &endpoints.unwrap_or(Value::Null), pick);
    backend.map(|backend| backend.address).map_err(|status| status.message)
}

/// An address that may be asked.
fn at(ip: &str, port: &str, is_https: bool) -> Result<Backend, Status> {
    let address: IpAddr = ip.parse().map_err(|_| Status::bad_request("address not allowed"))?;
    let is_own = match address {
        IpAddr::V4(v4) => {
            v4.is_loopback() || v4.is_link_local() || v4.is_multicast() || v4.is_unspecified() || v4.is_broadcast()
        }
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_multicast() || v6.is_unspecified() || v6.is_unicast_link_local(),
    };
    if is_own {
        return Err(Status::bad_request("address not allowed"));
    }
    let port: u16 = match port {
        "" | "0" => {
            if is_https {
                443
            } else {
                80
            }
        }
        port => port.parse().map_err(|_| Status::bad_request(format!("invalid port {port:?}")))?,
    };
    let tls = if is_https { Tls::Unverified } else { Tls::None };
    Ok(Backend { address: std::net::SocketAddr::new(address, port).to_string(), tls })
}

/// TLS that takes any certificate.
pub fn unverified_tls() -> std::io::Result<Arc<rustls::ClientConfig>> {
    let config = mainstay_client::Config { is_unverified: true, ..mainstay_client::Config::default() };
    config.tls(&[]).map(Arc::new).map_err(std::io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn named(text: &str) -> Named<'_> {
        Named::parse(text).expect("a name")
    }

    #[test]
    fn names_carry_scheme_and_port() {
        let plain = |name, port| Some(Named { is_https: false, name, port });
        assert_eq!(Named::parse("web"), plain("web", ""));
        assert_eq!(Named::parse("web:http"), plain("web", "http"));
        assert_eq!(Named::parse("http:web:80"), plain("web", "80"));
        assert_eq!(Named::parse("https:web:"), Some(Named { is_https: true, name: "web", port: "" }));
        for bad in ["", ":80", "ftp:web:1", "a:b:c:d"] {
            assert_eq!(Named::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn pods_are_asked_at_their_port_and_never_at_the_machines_own_addresses_x1() {
        let pod = |ip: &str| {
            json!({ "spec": { "containers": [{}, { "ports": [{ "containerPort": 8080 }] }] },
            "status": { "podIP": ip } })
        };
        let address = |name: &str, ip: &str| of_pod(&named(name), &pod(ip)).map(|backend| backend.address);
        assert_eq!(address("p", "10.244.0.5"), Ok("10.244.0.5:8080".into()));
        assert_eq!(address("p:81", "10.244.0.5"), Ok("10.244.0.5:81".into()));
        assert_eq!(of_pod(&named("https:p:443"), &pod("10.244.0.5")).map(|backend| backend.tls), Ok(Tls::Unverified));
        for own in ["127.0.0.1", "169.254.169.254", "0.0.0.0", "::1", "", "nobody"] {
            assert_eq!(address("p", own).map_err(|status| status.code), Err(400), "{own}");
        }
    }

    #[test]
    fn services_are_asked_at_a_ready_endpoint() {
        let service = json!({ "spec": { "ports": [{ "name": "web", "port": 80 }, { "name": "admin", "port": 81 }] } });
        let endpoints = json!({ "subsets": [{
            "addresses": [{ "ip": "10.244.0.5" }, { "ip": "10.244.0.6" }],
            "notReadyAddresses": [{ "ip": "10.244.0.7" }],
            "ports": [{ "name": "web", "port": 8080 }],
        }] });
        let address =
            |name: &str, pick| of_service(&named(name), &service, &endpoints, pick).map(|backend| backend.address);
        assert_eq!(address("s:web", 0), Ok("10.244.0.5:8080".into()));
        assert_eq!(address("s:80", 3), Ok("10.244.0.6:8080".into()));
        let message = |name: &str| address(name, 0).map_err(|status| (status.code, status.message));
        assert_eq!(message("s:admin"), Err((503, "no endpoints available for service \"s\"".into())));
        assert_eq!(message("s:99"), Err((503, "no service port \"99\" found for service \"s\"".into())));
    }
}
