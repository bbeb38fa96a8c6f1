//! Whom a `proxy` request is for: scheme and port out of the name, and the address of the pod, endpoint or node.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mainstay_api::{Status, kinds, object};
use serde_json::Value;

use super::super::{Server, proxy};
use super::Target;
use crate::api::Batch;
use crate::backends::{self, may_be_asked};

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
    /// `10.244.0.5:8080`: those to try, in this order. There is at least one.
    pub addresses: Vec<String>,
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
        let port = backends::port_name(&service, named.port)?;
        let is_own = |endpoint: &Value| is_of_own_pod(&mut batch, &target.namespace, endpoint);
        let all = backends::endpoints(&server.api, &service, &port, is_own)?;
        return among(&all, named.is_https);
    }
    if target.kind == kinds::NODE {
        let node = batch.must_get(&kinds::NODE, "", named.name)?;
        let kubelet = proxy::kubelet_address_of(&node)?;
        let (host, port) = kubelet.rsplit_once(':').unwrap_or((&kubelet, ""));
        if named.port.is_empty() || named.port == port {
            return Ok(Backend { addresses: vec![kubelet], tls: Tls::Kubelet(named.name.to_owned()) });
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

/// Whether an endpoint is where a pod of the Service's namespace is: who may write slices does not get the server to
/// ask whatever it can reach, as upstream.
fn is_of_own_pod(batch: &mut Batch<'_>, namespace: &str, endpoint: &Value) -> bool {
    let target = |field: &str| object::text(endpoint, &["targetRef", field]);
    if target("kind") != "Pod" || target("namespace") != namespace {
        return false;
    }
    let Ok(Some(pod)) = batch.get(&kinds::POD, namespace, target("name")) else { return false };
    let addresses = object::at(&pod, &["status", "podIPs"]).and_then(Value::as_array).into_iter().flatten();
    let address = endpoint.get("addresses").and_then(|all| all.get(0)).and_then(Value::as_str).unwrap_or("");
    addresses.map(|own| object::text(own, &["ip"])).any(|own| own == address)
}

/// Those of a Service's endpoints that may be asked.
fn among(all: &[SocketAddr], is_https: bool) -> Result<Backend, Status> {
    let allowed: Vec<String> = all.iter().filter(|at| may_be_asked(at.ip())).map(ToString::to_string).collect();
    if allowed.is_empty() {
        return Err(Status::bad_request("address not allowed"));
    }
    Ok(Backend { addresses: allowed, tls: tls(is_https) })
}

fn tls(is_https: bool) -> Tls {
    if is_https { Tls::Unverified } else { Tls::None }
}

/// An address that may be asked.
fn at(ip: &str, port: &str, is_https: bool) -> Result<Backend, Status> {
    let address: IpAddr = ip.parse().map_err(|_| Status::bad_request("address not allowed"))?;
    if !may_be_asked(address) {
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
    Ok(Backend { addresses: vec![SocketAddr::new(address, port).to_string()], tls: tls(is_https) })
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
        let address = |name: &str, ip: &str| of_pod(&named(name), &pod(ip)).map(|backend| backend.addresses.concat());
        assert_eq!(address("p", "10.244.0.5"), Ok("10.244.0.5:8080".into()));
        assert_eq!(address("p:81", "10.244.0.5"), Ok("10.244.0.5:81".into()));
        assert_eq!(of_pod(&named("https:p:443"), &pod("10.244.0.5")).map(|backend| backend.tls), Ok(Tls::Unverified));
        for own in ["127.0.0.1", "169.254.169.254", "0.0.0.0", "::1", "", "nobody"] {
            assert_eq!(address("p", own).map_err(|status| status.code), Err(400), "{own}");
        }
    }

    #[test]
    fn x1_only_endpoints_that_are_pods_of_the_namespace_are_asked_by_services_proxy() {
        let cluster = crate::api::tests::Cluster::new();
        cluster.create(&kinds::POD, crate::api::tests::pod("p")).expect("created");
        let status = json!({ "status": { "podIP": "10.244.0.5", "podIPs": [{ "ip": "10.244.0.5" }] } });
        cluster.merge(&kinds::POD, "p", crate::api::Part::Status, status).expect("patched");
        let is_own = |address: &str, namespace: &str, pod: &str| {
            let endpoint = json!({ "addresses": [address],
                "targetRef": { "kind": "Pod", "namespace": namespace, "name": pod } });
            is_of_own_pod(&mut cluster.api.batch(), "default", &endpoint)
        };
        assert!(is_own("10.244.0.5", "default", "p"));
        assert!(!is_own("192.0.2.1", "default", "p"), "an address that is not the pod's");
        assert!(!is_own("10.244.0.5", "other", "p") && !is_own("10.244.0.5", "default", "q"));
        assert!(!is_of_own_pod(&mut cluster.api.batch(), "default", &json!({ "addresses": ["10.244.0.5"] })));
        let at = |text: &str| text.parse().expect("an address");
        let both = among(&[at("127.0.0.1:80"), at("10.244.0.5:80")], true);
        assert_eq!(both, Ok(Backend { addresses: vec!["10.244.0.5:80".to_owned()], tls: Tls::Unverified }));
        assert_eq!(among(&[at("127.0.0.1:80")], false).map_err(|status| status.code), Err(400));
    }
}
