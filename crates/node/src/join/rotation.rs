//! New certificates before the old ones end.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use mainstay_client::{Client, Rotating};
use tokio::sync::{Notify, watch};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::kept::Kept;
use super::{JoinError, Member, request};

/// A certificate is replaced when this much of its time is over, in percent; upstream's kubelet does it somewhere
/// between 70 and 90.
const SPENT: i64 = 80;
/// The longest sleep without a look at the clock.
const MAX_SLEEP: Duration = Duration::from_secs(3600);
/// Between attempts: the first pause, which doubles. All of them wait for the answer to one request.
const AGAIN: Duration = Duration::from_secs(60);
const MAX_AGAIN: Duration = Duration::from_secs(1800);
/// Before an answer that waits for a person is listened for again.
const LISTEN: Duration = Duration::from_secs(1);

/// A node's two certificates.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// As a client of the API server.
    pub identity: Arc<Rotating>,
    /// As a server.
    pub serving: Arc<Rotating>,
}

/// Beginning and end of a certificate, Unix seconds.
fn validity(pair: &Rotating) -> Option<(i64, i64)> {
    let der = pair.certificate()?;
    let (_, certificate) = X509Certificate::from_der(&der).ok()?;
    let validity = certificate.validity();
    Some((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// How long a certificate is still good; negative when it is not.
pub fn seconds_left(pair: &Rotating, now: Timestamp) -> i64 {
    validity(pair).map_or(-1, |(_, end)| end - now.as_second())
}

/// When to replace a certificate of this time, Unix seconds.
fn due((begin, end): (i64, i64)) -> i64 {
    begin.saturating_add(end.saturating_sub(begin) / 100 * SPENT)
}

/// Whether a certificate has an address.
pub fn carries(pair: &Rotating, address: IpAddr) -> bool {
    let Some(der) = pair.certificate() else { return false };
    let Ok((_, certificate)) = X509Certificate::from_der(&der) else { return false };
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return false };
    let bytes = match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    names.value.general_names.iter().any(|name| matches!(name, GeneralName::IPAddress(own) if *own == bytes))
}

/// Replaces both certificates in time, until dropped; at once when `now` is notified. The node goes on with those that
/// it has as long as a new one is not to be had. Nothing is asked for any more once another machine is this node, as
/// `replaced` says: its certificates are that one's to have (M4).
pub async fn keep_fresh(
    client: Client,
    data_dir: PathBuf,
    member: Member,
    certificates: Certificates,
    now: Arc<Notify>,
    mut replaced: watch::Receiver<bool>,
) {
    tokio::select! {
        biased;
        true = async { replaced.wait_for(|replaced| *replaced).await.is_ok() } => std::future::pending().await,
        () = replace_in_time(&client, &data_dir, &member, &certificates, &now) => {}
    }
}

async fn replace_in_time(client: &Client, data_dir: &Path, member: &Member, certificates: &Certificates, now: &Notify) {
    let (mut asked, mut again) = ((false, false), AGAIN);
    let mut told = String::new();
    loop {
        let clock = Timestamp::now().as_second();
        let is_due = |pair: &Rotating| validity(pair).is_none_or(|validity| due(validity) <= clock);
        let identity = asked.0 || is_due(&certificates.identity);
        let serving = asked.1 || is_due(&certificates.serving);
        // One of a start without a server, when the address had changed already.
        let serving = serving || !carries(&certificates.serving, IpAddr::V4(member.address));
        let mut pause = MAX_SLEEP;
        if identity || serving {
            let results = replace(client, data_dir, member, certificates, (identity, serving)).await;
            // Who waits for one of them has the other.
            asked = (asked.0 && results.0.is_err(), asked.1 && results.1.is_err());
            match waits_for(results) {
                Ok(()) => (again, told) = (AGAIN, String::new()),
                Err(error) => {
                    let words = error.to_string();
                    if words != told {
                        tracing::warn!(%error, "a new certificate is not to be had yet");
                        told = words;
                    }
                    (pause, again) = pauses(&error, again);
                }
            }
        } else {
            let pairs = [&certificates.identity, &certificates.serving];
            let next = pairs.into_iter().filter_map(|pair| validity(pair).map(due)).min().unwrap_or(clock);
            let left = u64::try_from(next.saturating_sub(clock)).unwrap_or(0).max(1);
            pause = pause.min(Duration::from_secs(left));
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = now.notified() => (asked, again) = ((true, true), AGAIN),
        }
    }
}

/// What is in the way of both certificates; the one that waits for a person before all else.
fn waits_for((identity, serving): (Result<(), JoinError>, Result<(), JoinError>)) -> Result<(), JoinError> {
    match serving {
        Err(error @ JoinError::NotApproved(_)) => Err(error),
        serving => identity.and(serving),
    }
}

/// The pause after a failure, and that after the next one. What waits for a person is listened for on and on, or its
/// approval would be seen long after it was given.
fn pauses(error: &JoinError, again: Duration) -> (Duration, Duration) {
    match error {
        JoinError::NotApproved(_) => (LISTEN, AGAIN),
        _ => (again, (again * 2).min(MAX_AGAIN)),
    }
}

/// Both at once: one that a person must approve does not hold up the other.
async fn replace(
    client: &Client,
    data_dir: &Path,
    member: &Member,
    certificates: &Certificates,
    (identity, serving): (bool, bool),
) -> (Result<(), JoinError>, Result<(), JoinError>) {
    let identity = async {
        if identity {
            let kept = Kept::open(data_dir)?;
            let pair = request::client(client, &kept, &member.node).await?;
            kept.write_client(&pair)?;
            certificates.identity.replace(&pair.certificate, &pair.key)?;
        }
        Ok(())
    };
    let serving = async {
        if serving {
            let kept = Kept::open(data_dir)?;
            let pair = request::serving(client, &kept, &member.node, member.address).await?;
            kept.write_serving(&pair)?;
            certificates.serving.replace(&pair.certificate, &pair.key)?;
        }
        Ok(())
    };
    tokio::join!(identity, serving)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_replaced_before_they_end_m4() {
        assert_eq!(due((0, 1000)), 800);
        assert_eq!(due((500, 500)), 500);
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["192.0.2.7".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2030, 1, 1);
        params.not_after = rcgen::date_time_ymd(2030, 1, 11);
        let pem = params.self_signed(&key).unwrap().pem();
        let pair = Rotating::new(&pem, &key.serialize_pem()).unwrap();
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert_eq!(seconds_left(&pair, at("2030-01-10T00:00:00Z")), 86_400);
        assert!(seconds_left(&pair, at("2030-01-12T00:00:00Z")) < 0);
        assert_eq!(validity(&pair).map(due), Some(at("2030-01-09T00:00:00Z").as_second()));
        assert!(carries(&pair, [192, 0, 2, 7].into()) && !carries(&pair, [192, 0, 2, 8].into()));
        let other = rcgen::KeyPair::generate().unwrap();
        assert!(pair.replace(&pem, &other.serialize_pem()).is_err(), "a key of another certificate");
    }

    #[test]
    fn s12_an_answer_that_waits_for_a_person_is_listened_for_whatever_the_other_certificate_meets() {
        let waits = || Err(JoinError::NotApproved("csr-1".to_owned()));
        let mut again = AGAIN;
        for _ in 0..20 {
            (_, again) = pauses(&JoinError::Token, again);
        }
        assert_eq!(pauses(&JoinError::Token, again), (MAX_AGAIN, MAX_AGAIN));
        for results in [(Ok(()), waits()), (waits(), Ok(())), (Err(JoinError::Token), waits())] {
            let error = waits_for(results).unwrap_err();
            assert_eq!(pauses(&error, again), (LISTEN, AGAIN), "{error}");
        }
        assert!(waits_for((Ok(()), Ok(()))).is_ok());
        assert!(waits_for((Ok(()), Err(JoinError::Token))).is_err());
    }

    #[tokio::test]
    async fn m4_s12_both_certificates_are_asked_for_at_once_and_none_once_another_machine_is_the_node() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2020, 1, 11);
        let pem = params.self_signed(&key).unwrap().pem();
        let pair = || Rotating::new(&pem, &key.serialize_pem()).unwrap();
        let member = Member {
            server: "127.0.0.1:1".to_owned(),
            ca_pem: pem.clone(),
            node: "n".to_owned(),
            address: std::net::Ipv4Addr::LOCALHOST,
            is_address_given: None,
            pod_cidr: String::new(),
            lease_seconds: None,
            settings: crate::join::Settings::default(),
        };
        for (is_replaced, expected) in [(false, true), (true, false)] {
            let data = tempfile::tempdir().unwrap();
            let certificates = Certificates { identity: pair(), serving: pair() };
            let client = super::super::client_of(&member, certificates.identity.clone()).unwrap();
            let (_says, replaced) = watch::channel(is_replaced);
            let (folder, now) = (data.path().to_owned(), Arc::default());
            let fresh = keep_fresh(client, folder, member.clone(), certificates, now, replaced);
            // What is asked for is noted before the first thing that is waited for.
            tokio::select! {
                biased;
                () = fresh => panic!("it ended"),
                () = std::future::ready(()) => {}
            }
            for name in ["client.asked", "serving.asked"] {
                assert_eq!(data.path().join("node").join(name).exists(), expected, "{name}");
            }
        }
    }
}
