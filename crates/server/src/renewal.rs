//! The certificates that a running server shows and hands out, made anew before they end: a server need not be started
//! again for them (M3). All that it makes are made here, each as long as the server runs.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use mainstay_client::{ConfigError, Rotating};
use tokio::sync::watch;

use crate::api::Env;
use crate::bootstrap;
use crate::pki::{Identity, Pki};
use crate::presence::Kubeconfigs;
use crate::start::StartError;

/// How often they are looked at; they have months left when they are made anew.
const DAY: Duration = Duration::from_secs(86_400);
/// The user of the administrator's kubeconfig.
pub(crate) const ADMIN: &str = "kubernetes-admin";

/// By what certificates are made.
pub(crate) struct Source {
    pub pki: Arc<Pki>,
    /// By which extension servers know this one.
    pub proxy: Pki,
    /// What the server is reached by.
    pub names: Vec<String>,
    /// The name of the server's own node, and what that is reached by.
    pub node: Option<(String, Vec<String>)>,
}

/// Something of each certificate.
struct Each<T> {
    serving: T,
    kubelet_client: T,
    front_proxy: T,
    admin: T,
    node: Option<T>,
}

impl<T> Each<T> {
    fn map<U>(self, mut make: impl FnMut(T) -> Result<U, StartError>) -> Result<Each<U>, StartError> {
        Ok(Each {
            serving: make(self.serving)?,
            kubelet_client: make(self.kubelet_client)?,
            front_proxy: make(self.front_proxy)?,
            admin: make(self.admin)?,
            node: self.node.map(make).transpose()?,
        })
    }

    fn all(self) -> impl Iterator<Item = T> {
        [self.serving, self.kubelet_client, self.front_proxy, self.admin].into_iter().chain(self.node)
    }
}

impl Source {
    /// What is kept in the folder, or is made where that is not there or ends soon.
    fn make(&self, now: Timestamp) -> Result<Each<Identity>, StartError> {
        let pki = &self.pki;
        let node = self.node.as_ref().map(|(name, names)| pki.node(name, names, now)).transpose()?;
        Ok(Each {
            serving: pki.serving(&self.names, now)?,
            kubelet_client: pki.client("kubelet-client", "kube-apiserver-kubelet-client", &["system:masters"], now)?,
            front_proxy: self.proxy.client(bootstrap::FRONT_PROXY, bootstrap::FRONT_PROXY, &[], now)?,
            admin: pki.client("admin", ADMIN, &["system:masters"], now)?,
            node,
        })
    }
}

/// A certificate of the server's, as it is now.
pub(crate) struct Issued {
    present: Mutex<Identity>,
    /// For connections: those that begin from now on are shown the present one.
    pub rotating: Arc<Rotating>,
}

impl Issued {
    fn new(made: Identity) -> Result<Arc<Self>, StartError> {
        let rotating = Rotating::new(&made.certificate, &made.key).map_err(|error| tls(&error))?;
        Ok(Arc::new(Self { present: Mutex::new(made), rotating }))
    }

    /// With its key.
    pub fn identity(&self) -> Identity {
        self.present.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether it is another one than before.
    fn replace(&self, made: Identity) -> Result<bool, StartError> {
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        if present.certificate == made.certificate {
            return Ok(false);
        }
        self.rotating.replace(&made.certificate, &made.key).map_err(|error| tls(&error))?;
        *present = made;
        Ok(true)
    }
}

/// What the server shows, and by what it is made.
pub(crate) struct Renewal {
    source: Source,
    issued: Each<Arc<Issued>>,
}

impl Renewal {
    /// The server's certificates, made where they are not there or end soon.
    pub fn new(source: Source, now: Timestamp) -> Result<Self, StartError> {
        let issued = source.make(now)?.map(Issued::new)?;
        Ok(Self { source, issued })
    }

    /// To the server's clients.
    pub fn serving(&self) -> Arc<Rotating> {
        self.issued.serving.rotating.clone()
    }

    /// To kubelets.
    pub fn kubelet_client(&self) -> Arc<Rotating> {
        self.issued.kubelet_client.rotating.clone()
    }

    /// To extension servers.
    pub fn front_proxy(&self) -> Arc<Rotating> {
        self.issued.front_proxy.rotating.clone()
    }

    /// The administrator's.
    pub fn admin(&self) -> Arc<Issued> {
        self.issued.admin.clone()
    }

    /// The own node's, as client and as server.
    pub fn node(&self) -> Option<Arc<Issued>> {
        self.issued.node.clone()
    }

    /// The CA of the front proxy's certificate, PEM.
    pub fn proxy_ca_pem(&self) -> &str {
        self.source.proxy.ca_pem()
    }

    /// Makes those anew that end soon; connections that begin from then on are shown them. Whether there were any.
    pub fn look(&self, now: Timestamp) -> Result<bool, StartError> {
        let made = self.source.make(now)?;
        let Each { serving, kubelet_client, front_proxy, admin, node } = &self.issued;
        let issued = [serving, kubelet_client, front_proxy, admin].into_iter().chain(node);
        let mut is_new = false;
        for (issued, made) in issued.zip(made.all()) {
            is_new |= issued.replace(made)?;
        }
        Ok(is_new)
    }

    /// Looks once a day, until the server stops.
    pub async fn run(self: Arc<Self>, env: Arc<Env>, files: Kubeconfigs, mut closing: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(DAY) => {}
                _ = closing.wait_for(|closing| *closing) => return,
            }
            let (renewal, files, now) = (self.clone(), files.clone(), (env.now)());
            let look = move || {
                let is_new = renewal.look(now)?;
                if is_new {
                    files.write_again();
                }
                Ok::<_, StartError>(())
            };
            // On a thread that may wait for the disk.
            match tokio::task::spawn_blocking(look).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "the server's certificates could not be made anew"),
                Err(error) => tracing::error!(%error, "making the server's certificates anew broke"),
            }
        }
    }
}

fn tls(error: &ConfigError) -> StartError {
    StartError::Tls(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn m3_a_running_server_shows_a_certificate_that_has_not_ended() {
        const DAYS: i64 = 86_400;
        let folder = tempfile::tempdir().expect("a folder");
        let begun = Timestamp::from_second(1_800_000_000).expect("in range");
        let later = |days: i64| Timestamp::from_second(begun.as_second() + days * DAYS).expect("in range");
        let source = Source {
            pki: Arc::new(Pki::open(folder.path(), begun).expect("made")),
            proxy: Pki::open(&folder.path().join("proxy"), begun).expect("made"),
            names: vec!["localhost".to_owned()],
            node: Some(("n".to_owned(), vec!["n".to_owned()])),
        };
        let renewal = Renewal::new(source, begun).expect("made");
        let kubeconfig = folder.path().join("kubeconfig");
        let shown_in = vec![(kubeconfig.clone(), ADMIN.to_owned(), renewal.admin())];
        let files = Kubeconfigs::new("CA".to_owned(), shown_in, Vec::new());
        files.write(&["localhost:6443".to_owned()]);
        let shown = || {
            let mut all = vec![renewal.serving(), renewal.kubelet_client(), renewal.front_proxy()];
            all.extend([renewal.admin().rotating.clone(), renewal.node().expect("a node").rotating.clone()]);
            all.iter().map(|one| one.certificate()).collect::<Vec<_>>()
        };
        let first = shown();
        assert!(!renewal.look(later(200)).expect("looked"));
        assert_eq!(shown(), first, "they have long left");
        assert!(renewal.look(later(300)).expect("looked"));
        let next = shown();
        assert!(next.iter().zip(&first).all(|(next, first)| next != first), "they end soon");
        assert!(!renewal.look(later(301)).expect("looked"));
        assert_eq!(shown(), next);
        let before = std::fs::read_to_string(&kubeconfig).expect("written");
        files.write_again();
        let after = std::fs::read_to_string(&kubeconfig).expect("written");
        assert!(after != before && after.contains("https://localhost:6443"), "the administrator's too");
        let theirs = "kind: Config\ncontexts: [{name: mine}, {name: work}]\n";
        std::fs::write(&kubeconfig, theirs).expect("written");
        files.write_again();
        let kept = std::fs::read_to_string(&kubeconfig).expect("read");
        assert_eq!(kept, theirs, "clusters that somebody added while the server runs stay");
    }

    /// What is made elsewhere would not be made anew.
    #[test]
    fn m3_no_certificate_of_a_running_server_is_made_elsewhere() {
        let start = include_str!("start.rs");
        for made in [".serving(&", ".client(\"", ".node(&"] {
            assert!(!start.contains(&format!("pki{made}")) && !start.contains(&format!("proxy_ca{made}")), "{made}");
        }
    }

    /// A client's files may be replaced, one after the other, by whoever makes them anew.
    #[test]
    fn m3_a_clients_certificate_is_read_anew_for_each_connection() {
        let folder = tempfile::tempdir().expect("a folder");
        let begun = Timestamp::from_second(1_800_000_000).expect("in range");
        let pki = Pki::open(&folder.path().join("pki"), begun).expect("made");
        let (certificate, key) = (folder.path().join("c.crt"), folder.path().join("c.key"));
        let one = pki.client("one", "etcd", &[], begun).expect("made");
        let two = pki.client("two", "etcd", &[], begun).expect("made");
        std::fs::write(&certificate, &one.certificate).expect("written");
        assert!(Rotating::of_files(&certificate, &key).is_err(), "there is no key");
        std::fs::write(&key, &one.key).expect("written");
        let rotating = Rotating::of_files(&certificate, &key).expect("both are there");
        let shown =
            || rustls::client::ResolvesClientCert::resolve(&*rotating, &[], &[]).expect("one").cert.first().cloned();
        let first = shown();
        std::fs::write(&certificate, &two.certificate).expect("written");
        assert_eq!(shown(), first, "the key is another's");
        std::fs::write(&key, &two.key).expect("written");
        assert_ne!(shown(), first);
    }
}
