//! Whether what the store follows (an etcd cluster) is silent, since when, and why.

use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// After so long it is better to ask another server.
pub(crate) const LONG: Duration = Duration::from_secs(5);

/// Of one store.
#[derive(Debug)]
pub(crate) struct Silence {
    now: Mutex<Now>,
    long: watch::Sender<bool>,
}

#[derive(Debug, Default)]
enum Now {
    #[default]
    Followed,
    Since(Instant, String),
    /// For good.
    Ended(String),
}

impl Default for Silence {
    fn default() -> Self {
        Self { now: Mutex::default(), long: watch::Sender::new(false) }
    }
}

impl Silence {
    /// It is not followed; whether that is news.
    pub fn begin(&self, why: &str) -> bool {
        let mut now = crate::lock(&self.now);
        let is_news = matches!(&*now, Now::Followed);
        match &mut *now {
            Now::Followed => *now = Now::Since(Instant::now(), why.to_owned()),
            Now::Since(_, known) => why.clone_into(known),
            Now::Ended(_) => {}
        }
        is_news
    }

    /// It is followed; whether that is news.
    pub fn over(&self) -> bool {
        let mut now = crate::lock(&self.now);
        let is_news = matches!(&*now, Now::Since(..));
        if is_news {
            *now = Now::Followed;
            self.long.send_replace(false);
        }
        is_news
    }

    /// It will not be followed again.
    pub fn end(&self, why: &str) {
        *crate::lock(&self.now) = Now::Ended(why.to_owned());
        self.long.send_replace(true);
    }

    /// Looks whether it has become long.
    pub fn look(&self) {
        if matches!(&*crate::lock(&self.now), Now::Since(since, _) if since.elapsed() >= LONG) {
            self.long.send_replace(true);
        }
    }

    /// For people; `None` where all is well.
    pub fn words(&self) -> Option<String> {
        match &*crate::lock(&self.now) {
            Now::Followed => None,
            Now::Since(since, why) => Some(format!("etcd is silent for {} s: {why}", since.elapsed().as_secs())),
            Now::Ended(why) => Some(why.clone()),
        }
    }

    /// Whether it is long: another server is better asked.
    pub fn is_long(&self) -> bool {
        *self.long.borrow()
    }

    /// Follows whether it is long.
    pub fn long(&self) -> watch::Receiver<bool> {
        self.long.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_has_words_until_it_is_over() {
        let silence = Silence::default();
        assert!(!silence.over() && silence.words().is_none());
        assert!(silence.begin("first") && !silence.begin("then"));
        assert_eq!(silence.words().unwrap(), "etcd is silent for 0 s: then");
        silence.look();
        assert!(!silence.is_long(), "it has just begun");
        assert!(silence.over() && silence.words().is_none());
        silence.end("older");
        assert!(!silence.over() && !silence.begin("x") && silence.is_long());
        assert_eq!(silence.words().unwrap(), "older");
    }
    #[test]
    fn silence_is_long_after_a_while_and_those_who_follow_it_are_told() {
        let silence = Silence::default();
        let long = silence.long();
        let begun = |ago: Duration| *crate::lock(&silence.now) = Now::Since(Instant::now() - ago, "why".to_owned());
        for (ago, is_long) in [(LONG - Duration::from_secs(2), false), (LONG, true)] {
            begun(ago);
            silence.look();
            assert_eq!((silence.is_long(), *long.borrow()), (is_long, is_long), "{ago:?}");
        }
        assert_eq!(silence.words().unwrap(), "etcd is silent for 5 s: why");
        assert!(!silence.begin("still") && silence.is_long());
        assert_eq!(silence.words().unwrap(), "etcd is silent for 5 s: still");
        assert!(silence.over() && !silence.is_long() && !*long.borrow());
        silence.look();
        assert!(!silence.is_long());
    }
}
