//! List, then watch, then again for ever: a kind's objects as a stream of changes.

use std::time::{Duration, Instant};

use mainstay_api::Kind;

use crate::list_watch::{ListWatch, Notice, Step};
use crate::request::{Client, Error, ListOptions, Watching};

/// Lists and watches one kind over HTTP, as its [`ListWatch`] says.
pub struct Informer {
    client: Client,
    kind: Kind,
    namespace: String,
    options: ListOptions,
    state: ListWatch,
    /// What a list had and is not given yet.
    listed: std::vec::IntoIter<Notice>,
    watching: Option<Watching>,
    /// When the newest watch was asked for.
    begun: Instant,
}

impl Informer {
    /// An informer for a kind in a namespace (`""`: all), narrowed by selectors.
    pub fn new(client: Client, kind: &Kind, namespace: &str, options: ListOptions) -> Self {
        Self {
            client,
            kind: kind.clone(),
            namespace: namespace.to_owned(),
            options,
            state: ListWatch::new(kind),
            listed: Vec::new().into_iter(),
            watching: None,
            begun: Instant::now(),
        }
    }

    /// The next change. Never ends and never fails: it retries with a pause of up to 5 s. Cancel-safe only
    /// between notices: drop the informer rather than the future.
    pub async fn next(&mut self) -> Notice {
        loop {
            if let Some(notice) = self.listed.next() {
                return notice;
            }
            match self.step().await {
                Ok(Some(notice)) => return notice,
                Ok(None) => {}
                Err(error) => {
                    let is_expired = error.is_expired();
                    if !is_expired {
                        tracing::debug!(kind = &*self.kind.kind, %error, "watch interrupted");
                    }
                    self.watching = None;
                    rest(self.state.failed(is_expired, self.begun.elapsed())).await;
                }
            }
        }
    }

    async fn step(&mut self) -> Result<Option<Notice>, Error> {
        match self.state.next() {
            Step::List => {
                self.options.resource_version.clear();
                let list = self.client.list(&self.kind, &self.namespace, &self.options).await?;
                self.listed = self.state.listed(list).into_iter();
            }
            Step::Watch => {
                self.begun = Instant::now();
                self.state.resource_version().clone_into(&mut self.options.resource_version);
                self.watching = Some(self.client.watch(&self.kind, &self.namespace, &self.options).await?);
                self.state.opened();
            }
            Step::Read => {
                let event = match &mut self.watching {
                    Some(watching) => watching.next().await?,
                    None => None,
                };
                match event {
                    Some(event) => return Ok(self.state.event(event)),
                    None => {
                        self.watching = None;
                        rest(self.state.closed(self.begun.elapsed())).await;
                    }
                }
            }
        }
        Ok(None)
    }
}

async fn rest(pause: Option<Duration>) {
    if let Some(pause) = pause {
        tokio::time::sleep(pause).await;
    }
}
