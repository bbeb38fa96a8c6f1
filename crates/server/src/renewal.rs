//! The certificates that a running server shows, made anew before they end: a server need not be started again for them
//! (M3).

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use mainstay_client::{ConfigError, Rotating};
use tokio::sync::watch;

use crate::api::Env;
use crate::pki::{Identity, Pki};
use crate::start::StartError;

/// How often they are looked at; they have months left when they are made anew.
const DAY: Duration = Duration::from_secs(86_400);

/// What the server shows, and by what it is made.
pub(crate) struct Renewal {
    pki: Arc<Pki>,
    /// What it is reached by.
    names: Vec<String>,
    /// To its clients.
    pub serving: Arc<Rotating>,
    /// To kubelets.
    pub kubelet_client: Arc<Rotating>,
}

impl Renewal {
    /// The server's certificates, made where they are not there or end soon.
    pub fn new(pki: Arc<Pki>, names: Vec<String>, now: Timestamp) -> Result<Self, StartError> {
        let rotating = |made: Identity| Rotating::new(&made.certificate, &made.key).map_err(|error| tls(&error));
        let serving = rotating(pki.serving(&names, now)?)?;
        let kubelet_client = rotating(kubelet_client(&pki, now)?)?;
        Ok(Self { pki, names, serving, kubelet_client })
    }

    /// Makes those anew that end soon; connections that begin from then on are shown them.
    pub fn look(&self, now: Timestamp) -> Result<(), StartError> {
        let replace = |by: &Rotating, made: Identity| by.replace(&made.certificate, &made.key).map_err(|e| tls(&e));
        replace(&self.serving, self.pki.serving(&self.names, now)?)?;
        replace(&self.kubelet_client, kubelet_client(&self.pki, now)?)
    }

    /// Looks once a day, until the server stops.
    pub async fn run(self: Arc<Self>, env: Arc<Env>, mut closing: watch::Receiver<bool>) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(DAY) => {}
                _ = closing.wait_for(|closing| *closing) => return,
            }
            let (renewal, now) = (self.clone(), (env.now)());
            // On a thread that may wait for the disk.
            match tokio::task::spawn_blocking(move || renewal.look(now)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "the server's certificates could not be made anew"),
                Err(error) => tracing::error!(%error, "making the server's certificates anew broke"),
            }
        }
    }
}

fn kubelet_client(pki: &Pki, now: Timestamp) -> Result<Identity, StartError> {
    Ok(pki.client("kubelet-client", "kube-apiserver-kubelet-client", &["system:masters"], now)?)
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
        let pki = Arc::new(Pki::open(folder.path(), begun).expect("made"));
        let renewal = Renewal::new(pki, vec!["localhost".to_owned()], begun).expect("made");
        let shown = || [renewal.serving.certificate(), renewal.kubelet_client.certificate()];
        let first = shown();
        renewal.look(later(200)).expect("looked");
        assert_eq!(shown(), first, "they have long left");
        renewal.look(later(300)).expect("looked");
        let next = shown();
        assert!(next.iter().zip(&first).all(|(next, first)| next != first), "they end soon");
        renewal.look(later(301)).expect("looked");
        assert_eq!(shown(), next);
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
