//! New certificates before the old ones end.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use mainstay_client::{Client, Rotating};
use tokio::sync::Notify;
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
/// it has as long as a new one is not to be had.
pub async fn keep_fresh(
    client: Client,
    data_dir: PathBuf,
    member: Member,
    certificates: Certificates,
    now: Arc<Notify>,
) {
    let (mut asked, mut again) = (false, AGAIN);
    loop {
        let clock = Timestamp::now().as_second();
        let is_due = |pair: &Rotating| asked || validity(pair).is_none_or(|validity| due(validity) <= clock);
        let (identity, serving) = (is_due(&certificates.identity), is_due(&certificates.serving));
        // One of a start without a server, when the address had changed already.
        let serving = serving || !carries(&certificates.serving, IpAddr::V4(member.address));
        let mut pause = MAX_SLEEP;
        if identity || serving {
            match replace(&client, &data_dir, &member, &certificates, (identity, serving)).await {
                Ok(()) => (asked, again) = (false, AGAIN),
                Err(error) => {
                    tracing::warn!(%error, "a new certificate is not to be had yet");
                    pause = again;
                    again = (again * 2).min(MAX_AGAIN);
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
            () = now.notified() => (asked, again) = (true, AGAIN),
        }
    }
}

async fn replace(
    client: &Client,
    data_dir: &std::path::Path,
    member: &Member,
    certificates: &Certificates,
    (identity, serving): (bool, bool),
) -> Result<(), JoinError> {
    let kept = Kept::open(data_dir)?;
    if identity {
        let pair = request::client(client, &kept, &member.node).await?;
        kept.write_client(&pair)?;
        certificates.identity.replace(&pair.certificate, &pair.key)?;
    }
    if serving {
        let pair = request::serving(client, &kept, &member.node, member.address).await?;
        kept.write_serving(&pair)?;
        certificates.serving.replace(&pair.certificate, &pair.key)?;
    }
    Ok(())
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
}
