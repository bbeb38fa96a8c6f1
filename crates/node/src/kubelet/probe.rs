//! Probes and lifecycle hooks: exec in the container; HTTP, TCP and gRPC from the node to the pod's address.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, LifecycleHandler, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use mainstay_logic::kubelet::ProbeOutcome;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{Kubelet, PodContext, grpc};
use mainstay_runtime::{RuntimeError, container_id};

/// How much of an HTTP answer is read; the body goes into the event.
const MAX_ANSWER: u64 = 10 << 10;
/// How much of a probe's output is told.
const MAX_OUTPUT: usize = 1 << 10;
/// How many servers one probe asks, as Go's client.
const MAX_REDIRECTS: usize = 10;
/// A postStart hook has no deadline of its own upstream; a hung one must not hold its task for ever.
const HOOK_TIMEOUT: Duration = Duration::from_secs(3600);

/// Runs a probe once.
pub(super) async fn run(
    kubelet: &Kubelet,
    context: &PodContext,
    container: &str,
    attempt: u32,
    probe: &Probe,
) -> ProbeOutcome {
    let timeout = Duration::from_secs(u64::try_from(probe.timeout_seconds.unwrap_or(1)).unwrap_or(1).max(1));
    if let Some(exec) = &probe.exec {
        let args = exec.command.clone().unwrap_or_default();
        return match kubelet.runtime.exec_probe(&container_id(&context.uid, container, attempt), &args, timeout).await {
            Ok((0, _)) => ProbeOutcome::Success,
            Ok((_, output)) => ProbeOutcome::Failure(shorten(&String::from_utf8_lossy(&output))),
            Err(error @ RuntimeError::ExecTimeout(_)) => ProbeOutcome::Failure(error.to_string()),
            Err(error) => ProbeOutcome::Error(error.to_string()),
        };
    }
    let spec = context.container(container);
    if let Some(action) = &probe.http_get {
        return match http(kubelet, context, spec, action, timeout).await {
            Ok(Answer { code, .. }) if (200..300).contains(&code) => ProbeOutcome::Success,
            // It leads elsewhere: who probes asks this pod, and nobody else.
            Ok(Answer { code, body, .. }) if (300..400).contains(&code) => {
                ProbeOutcome::Warning(format!("Probe terminated redirects, Response body: {}", shorten(&body)))
            }
            Ok(Answer { code, .. }) => ProbeOutcome::Failure(format!("HTTP probe failed with statuscode: {code}")),
            Err(message) => ProbeOutcome::Failure(message),
        };
    }
    if let Some(action) = &probe.tcp_socket {
        let Some(address) = address(kubelet, context, spec, action.host.as_deref(), &action.port) else {
            return ProbeOutcome::Error("the probe's port is not known".to_owned());
        };
        return match tokio::time::timeout(timeout, TcpStream::connect((address.0.as_str(), address.1))).await {
            Ok(Ok(_)) => ProbeOutcome::Success,
            Ok(Err(error)) => {
                ProbeOutcome::Failure(format!("dial tcp {}:{}: connect: {}", address.0, address.1, plain(&error)))
            }
            Err(_) => ProbeOutcome::Failure(format!("dial tcp {}:{}: i/o timeout", address.0, address.1)),
        };
    }
    if let Some(action) = &probe.grpc {
        let port = IntOrString::Int(action.port);
        return match address(kubelet, context, spec, None, &port) {
            Some((host, port)) => {
                grpc::check(&format!("{host}:{port}"), action.service.as_deref().unwrap_or(""), timeout).await
            }
            None => ProbeOutcome::Error("the probe's port is not known".to_owned()),
        };
    }
    ProbeOutcome::Error("missing probe handler".to_owned())
}

/// Runs a lifecycle hook to its end, within `limit`.
pub(super) async fn hook(
    kubelet: &Kubelet,
    context: &PodContext,
    container: &str,
    attempt: u32,
    handler: &LifecycleHandler,
    limit: Option<Duration>,
) -> Result<(), String> {
    let timeout = limit.unwrap_or(HOOK_TIMEOUT);
    if let Some(exec) = &handler.exec {
        let args = exec.command.clone().unwrap_or_default();
        return match kubelet.runtime.exec_hook(&container_id(&context.uid, container, attempt), &args, timeout).await {
            Ok((0, _)) => Ok(()),
            Ok((code, output)) => Err(format!(
                "command '{}' exited with {code}: {}",
                args.join(" "),
                shorten(&String::from_utf8_lossy(&output))
            )),
            Err(error) => Err(error.to_string()),
        };
    }
    if let Some(action) = &handler.http_get {
        return http(kubelet, context, context.container(container), action, timeout).await.map(|_| ());
    }
    if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0)).min(timeout)).await;
    }
    Ok(())
}

/// Where a probe connects: the pod's address (or the given host) and a port by number or by name.
fn address(
    kubelet: &Kubelet,
    context: &PodContext,
    spec: Option<&Container>,
    host: Option<&str>,
    port: &IntOrString,
) -> Option<(String, u16)> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(name) => {
            let named = spec?
                .ports
                .iter()
                .flatten()
                .find(|port| port.name.as_deref() == Some(name))
                .map(|port| port.container_port);
            named.or_else(|| name.parse().ok())?
        }
    };
    let host_network = context.spec().is_some_and(|spec| spec.host_network == Some(true));
    let host = match host {
        Some(host) if !host.is_empty() => host.to_owned(),
        _ if host_network => kubelet.config.node_ip.to_string(),
        _ => kubelet.pods.ip(&context.uid)?,
    };
    Some((host, u16::try_from(number).ok()?))
}

/// A GET that follows redirects to the same host, as upstream's, but no other. What it came to, or what went wrong in
/// the words of upstream's HTTP client.
async fn http(
    kubelet: &Kubelet,
    context: &PodContext,
    spec: Option<&Container>,
    action: &HTTPGetAction,
    timeout: Duration,
) -> Result<Answer, String> {
    let Some((host, port)) = address(kubelet, context, spec, action.host.as_deref(), &action.port) else {
        return Err("the probe's port is not known".to_owned());
    };
    let https = action.scheme.as_deref() == Some("HTTPS");
    let path = action.path.as_deref().unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let mut target = Target { https, host, port, path };
    let url = target.url();
    let work = async {
        for _ in 0..MAX_REDIRECTS {
            let answer = target.get(action).await?;
            match answer.location.as_deref().and_then(|location| target.led_to(location)) {
                Some(next) => target = next,
                None => return Ok(answer),
            }
        }
        Err(format!("stopped after {MAX_REDIRECTS} redirects"))
    };
    match tokio::time::timeout(timeout, work).await {
        Ok(result) => result.map_err(|message| format!("Get \"{url}\": {message}")),
        Err(_) => {
            Err(format!("Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"))
        }
    }
}

/// Where a GET goes.
#[derive(Clone, Debug, PartialEq)]
struct Target {
    https: bool,
    host: String,
    port: u16,
    path: String,
}

impl Target {
    fn url(&self) -> String {
        let Self { https, host, port, path } = self;
        format!("{}://{host}:{port}{path}", if *https { "https" } else { "http" })
    }

    async fn get(&self, action: &HTTPGetAction) -> Result<Answer, String> {
        let Self { https, host, port, path } = self;
        let request = request(host, *port, path, action);
        let tcp = TcpStream::connect((host.as_str(), *port))
            .await
            .map_err(|error| format!("dial tcp {host}:{port}: connect: {}", plain(&error)))?;
        if !https {
            return exchange(tcp, &request).await;
        }
        let connector = tokio_rustls::TlsConnector::from(unverified_tls()?);
        let name = rustls::pki_types::ServerName::try_from(host.clone()).map_err(|error| error.to_string())?;
        exchange(connector.connect(name, tcp).await.map_err(|error| error.to_string())?, &request).await
    }

    /// Where a `Location` leads, if that is the same host.
    fn led_to(&self, location: &str) -> Option<Self> {
        let location = location.split('#').next().unwrap_or_default();
        let (https, rest) = match location.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
            Some((before, _)) if !before.contains(['/', '?']) => return None,
            _ => match location.strip_prefix("//") {
                Some(rest) => (self.https, rest),
                None => return Some(Self { path: self.path_to(location), ..self.clone() }),
            },
        };
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at_checked(end)?;
        let default = if https { 443 } else { 80 };
        let (host, port) = match authority.rsplit_once(':').filter(|(_, port)| !port.contains(']')) {
            Some((host, port)) => (host, port.parse().ok()?),
            None => (authority, default),
        };
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        (host == self.host).then(|| Self { https, host: host.to_owned(), port, path })
    }

    /// The path that a reference without a host leads to.
    fn path_to(&self, reference: &str) -> String {
        let path = self.path.split('?').next().unwrap_or_default();
        match reference.chars().next() {
            Some('/') => reference.to_owned(),
            Some('?') => format!("{path}{reference}"),
            Some(_) => format!("{}/{reference}", path.rsplit_once('/').map_or("", |(folder, _)| folder)),
            None => self.path.clone(),
        }
    }
}

/// What a server answered, as far as it counts.
#[derive(Debug, PartialEq)]
struct Answer {
    code: u16,
    /// Of a redirect: where it leads, and the beginning of its text.
    location: Option<String>,
    body: String,
}

/// The request as bytes. Header names and values with line ends are left out: they could smuggle in a request.
fn request(host: &str, port: u16, path: &str, action: &HTTPGetAction) -> String {
    let clean = |text: &str| !text.bytes().any(|byte| byte < b' ' || byte == 0x7f);
    let path: String = path.chars().filter(|c| !c.is_control() && *c != ' ').collect();
    let headers: Vec<_> =
        action.http_headers.iter().flatten().filter(|header| clean(&header.name) && clean(&header.value)).collect();
    let given = |name: &str| headers.iter().any(|header| header.name.eq_ignore_ascii_case(name));
    let mut request = format!("GET {path} HTTP/1.1\r\n");
    for (name, value) in
        [("Host", format!("{host}:{port}")), ("User-Agent", "kube-probe/1.37".into()), ("Accept", "*/*".into())]
    {
        if !given(name) {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    for header in &headers {
        request.push_str(&format!("{}: {}\r\n", header.name, header.value));
    }
    request.push_str("Connection: close\r\n\r\n");
    request
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> Result<Answer, String> {
    stream.write_all(request.as_bytes()).await.map_err(|error| plain(&error))?;
    let mut answer = Vec::new();
    let mut limited = stream.take(MAX_ANSWER);
    let mut buffer = [0; 2048];
    // The status line is all that counts, but for a redirect the head: the rest is not waited for.
    while !is_enough(&answer) {
        match limited.read(&mut buffer).await.map_err(|error| plain(&error))? {
            0 => break,
            read => answer.extend_from_slice(buffer.get(..read).unwrap_or_default()),
        }
    }
    if answer.is_empty() {
        return Err("EOF".to_owned());
    }
    let text = String::from_utf8_lossy(&answer).into_owned();
    let code = code(&text).ok_or("malformed HTTP response")?;
    let (head, body) = text.split_once("\r\n\r\n").or_else(|| text.split_once("\n\n")).unwrap_or((&text, ""));
    let location = head
        .lines()
        .skip(1)
        .filter_map(|line| line.split_once(':'))
        .find_map(|(name, value)| name.trim().eq_ignore_ascii_case("location").then(|| value.trim().to_owned()));
    let leads = matches!(code, 301 | 302 | 303 | 307 | 308);
    Ok(Answer { code, location: location.filter(|_| leads), body: body.to_owned() })
}

/// The code in an answer's first line.
fn code(answer: &str) -> Option<u16> {
    let mut words = answer.lines().next()?.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/"))?;
    words.next()?.parse().ok()
}

/// Whether so much of an answer says all that is asked.
fn is_enough(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer);
    let is_redirect = code(&text).is_some_and(|code| (300..400).contains(&code));
    text.contains('\n') && (!is_redirect || text.contains("\r\n\r\n") || text.contains("\n\n"))
}

/// An error without Rust's ` (os error 111)`, in lower case as other systems print it.
fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}

fn shorten(output: &str) -> String {
    let output = output.trim_end();
    let mut end = output.len().min(MAX_OUTPUT);
    while !output.is_char_boundary(end) {
        end -= 1;
    }
    output.get(..end).unwrap_or("").to_owned()
}

/// TLS that accepts any certificate, as upstream's probes do: they ask whether a server answers, not who it is.
fn unverified_tls() -> Result<Arc<rustls::ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &rustls::pki_types::CertificateDer<'_>,
        _intermediates: &[rustls::pki_types::CertificateDer<'_>],
        _server_name: &rustls::pki_types::ServerName<'_>,
        _ocsp: &[u8],
        _now: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &rustls::pki_types::CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &rustls::pki_types::CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conformance_a_probe_is_led_within_its_host_alone() {
        let at = |path: &str| Target { https: false, host: "10.0.0.1".into(), port: 8080, path: path.into() };
        let led = |location: &str| at("/a/b?c=d").led_to(location).map(|next| next.url());
        for (location, wanted) in [
            ("/healthz", "http://10.0.0.1:8080/healthz"),
            ("x?y#z", "http://10.0.0.1:8080/a/x?y"),
            ("?q=http://10.0.0.9/", "http://10.0.0.1:8080/a/b?q=http://10.0.0.9/"),
            ("http://10.0.0.1:9090/x", "http://10.0.0.1:9090/x"),
            ("HTTPS://10.0.0.1", "https://10.0.0.1:443/"),
            ("//10.0.0.1:1/x", "http://10.0.0.1:1/x"),
            ("", "http://10.0.0.1:8080/a/b?c=d"),
        ] {
            assert_eq!(led(location).as_deref(), Some(wanted), "{location}");
        }
        for elsewhere in ["http://0.0.0.0/", "//example.com/x", "ftp://10.0.0.1/", "http://10.0.0.1:x/"] {
            assert_eq!(led(elsewhere), None, "{elsewhere}");
        }
    }

    #[tokio::test]
    async fn conformance_of_a_redirect_the_whole_head_is_read() {
        let answered = async |text: &'static str| {
            let (near, mut far) = tokio::io::duplex(4096);
            for part in text.as_bytes().chunks(7) {
                far.write_all(part).await.expect("written");
            }
            drop(far);
            exchange(near, "").await
        };
        let found = answered("HTTP/1.1 302 Found\r\nX: y\r\nlocation: /x\r\n\r\nthere").await.expect("an answer");
        assert_eq!((found.code, found.location.as_deref()), (302, Some("/x")));
        let fine = answered("HTTP/1.1 200 OK\r\nLocation: /x\r\n\r\n").await.expect("an answer");
        assert_eq!((fine.code, fine.location), (200, None));
        let kept = answered("HTTP/1.1 304 Not Modified\r\nLocation: /x\r\n\r\n").await.expect("an answer");
        assert_eq!((kept.code, kept.location), (304, None));
        assert!(answered("SSH-2.0-x\r\n").await.is_err());
        assert_eq!(answered("").await, Err("EOF".to_owned()));
    }

    #[test]
    fn a_request_cannot_carry_another() {
        let action: HTTPGetAction = serde_json::from_value(serde_json::json!({
            "port": 80,
            "httpHeaders": [{ "name": "X-A", "value": "1" }, { "name": "X-B", "value": "1\r\n\r\nGET /admin" },
                { "name": "host", "value": "h" }]
        }))
        .unwrap();
        let text = request("10.0.0.1", 80, "/a b\r\nX: y", &action);
        assert_eq!(
            text,
            "GET /abX:y HTTP/1.1\r\nUser-Agent: kube-probe/1.37\r\nAccept: */*\r\nX-A: 1\r\nhost: h\r\nConnection: \
                close\r\n\r\n"
        );
    }
}
