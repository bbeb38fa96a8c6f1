//! Clients of the world's server that list and watch, as everybody's informers do: what they see is judged by what the
//! store holds (A4 to A7).
//!
//! Each lists page by page, watches from the list's revision, is cut off, resumes from the last event (or from one that
//! it has seen long ago), and lists again where the server says that this is too old. They only read: the world beside
//! them is the same without them.

use std::collections::BTreeMap;

use bytes::Bytes;
use mainstay_api::kinds;
use mainstay_server::api::key;
use mainstay_store::{Event, Page, ReadError, Revision, Store, WatchError, Watcher};

use crate::bugs::Bug;
use crate::checkers::Violation;
use crate::seed::Seed;

/// How many clients there are.
const CLIENTS: usize = 3;
/// How many rows a page has.
const PAGE: usize = 2;
/// Of how many of its past states a client may resume from one.
const PAST: usize = 12;
/// A number beside the world's, so that what these draw shifts nothing else.
const APART: u64 = 0x6c69_7374_7761_7463;

/// All keys below a client's prefix, with their revisions.
type Rows = BTreeMap<Bytes, Revision>;

/// The clients of a world.
pub struct Clients {
    seed: Seed,
    clients: Vec<Client>,
    bug: Option<Bug>,
}

/// One client: what it knows, and how it came to know it.
#[derive(Default)]
struct Client {
    prefix: Bytes,
    rows: Rows,
    /// The revision up to which it has seen everything.
    at: Revision,
    /// The newest revision that it ever saw (A5).
    newest: Revision,
    state: State,
    /// States in which it was, with all their rows.
    past: Vec<(Revision, Rows)>,
}

#[derive(Default)]
enum State {
    /// It knows nothing and asks for a list.
    #[default]
    New,
    /// It has some pages of a list at this revision.
    Listing(Revision, Rows),
    /// It has a list and does not watch yet.
    Listed,
    /// It was cut off, and resumes from where it was; from a past state where that is set.
    CutOff {
        far: bool,
    },
    Watching(Watcher, Since),
}

/// What a client does that was cut off.
#[derive(Clone, Copy)]
enum After {
    Resumes,
    ResumesFromThePast,
    ListsAgain,
}

/// How a watch came to be: which promise is broken when it lacks something.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Since {
    List,
    Event,
    /// From a revision that the server no longer has all changes after.
    Compacted,
}

/// The server, as it answers; with what is broken on purpose.
struct Wire<'a> {
    store: &'a Store,
    bug: Option<Bug>,
}

impl Wire<'_> {
    fn list(&self, prefix: &Bytes, after: Option<&[u8]>, at: Option<Revision>) -> Result<Page, ReadError> {
        let at = match self.bug {
            // From a cache that nobody keeps fresh.
            Some(Bug::ListsThePast) if at.is_none() => Some(self.store.compacted().max(Revision(1))),
            // Each page is of the moment that it is read in.
            Some(Bug::PagesOfNow) => None,
            _ => at,
        };
        self.store.range(prefix, after, PAGE, at)
    }

    fn watch(&self, prefix: &Bytes, after: Revision, since: Since) -> Result<Watcher, ReadError> {
        let newest = self.store.revision();
        let after = match self.bug {
            Some(Bug::WatchesFromNow) if since == Since::List => newest,
            Some(Bug::ForgetsCompaction) if after < self.store.compacted() => newest,
            _ => after,
        };
        self.store.watch(prefix.clone(), after)
    }

    fn next(&self, watcher: &mut Watcher) -> Result<Option<Event>, WatchError> {
        let event = watcher.try_next()?;
        match (self.bug, &event) {
            (Some(Bug::WatchLosesEvents), Some(event)) if event.revision.0.is_multiple_of(11) => watcher.try_next(),
            _ => Ok(event),
        }
    }
}

impl Clients {
    /// The clients of the world with this number.
    pub fn new(number: u64, bug: Option<Bug>) -> Self {
        let prefixes = [&kinds::POD, &kinds::STATEFUL_SET, &kinds::PERSISTENT_VOLUME_CLAIM];
        let client = |index: usize| Client {
            prefix: prefixes.get(index).map_or_else(Bytes::new, |kind| key::prefix(kind, None)),
            ..Client::default()
        };
        Self { seed: Seed::new(number ^ APART), clients: (0..CLIENTS).map(client).collect(), bug }
    }

    /// The server is gone, and all connections with it.
    pub fn cut_off(&mut self) {
        for client in &mut self.clients {
            client.cut_off(After::Resumes);
        }
    }

    /// Each client does one thing, or nothing; what it then knows must be what there is.
    pub fn step(&mut self, store: &Store) -> Result<(), Violation> {
        let wire = Wire { store, bug: self.bug };
        for client in &mut self.clients {
            if self.seed.one_in(60) {
                let after = [After::Resumes, After::ResumesFromThePast, After::ListsAgain];
                client.cut_off(after.get(self.seed.index(after.len())).copied().unwrap_or(After::Resumes));
            }
            if self.seed.one_in(3) {
                let pick = self.seed.index(PAST);
                client.step(&wire, pick)?;
            }
        }
        Ok(())
    }
}

impl Client {
    fn cut_off(&mut self, after: After) {
        self.state = match (std::mem::take(&mut self.state), after) {
            (State::Watching(..) | State::CutOff { .. }, After::ListsAgain) => State::New,
            (State::Watching(..) | State::CutOff { .. }, _) => {
                State::CutOff { far: matches!(after, After::ResumesFromThePast) }
            }
            // The token of the next page is of the server that gave it.
            (other, _) => other,
        };
    }

    fn step(&mut self, wire: &Wire<'_>, pick: usize) -> Result<(), Violation> {
        self.state = match std::mem::take(&mut self.state) {
            State::New => self.page(wire, None, Rows::new())?,
            State::Listing(at, rows) => self.page(wire, Some(at), rows)?,
            State::Listed => self.watch(wire, Since::List),
            State::CutOff { far } => {
                if let Some((at, rows)) = self.past.get(pick).filter(|_| far) {
                    (self.at, self.rows) = (*at, rows.clone());
                }
                let is_old = self.at < wire.store.compacted();
                self.watch(wire, if is_old { Since::Compacted } else { Since::Event })
            }
            State::Watching(watcher, since) => self.read(wire, watcher, since)?,
        };
        Ok(())
    }

    /// One page of a list, all of which is of one revision.
    fn page(&mut self, wire: &Wire<'_>, at: Option<Revision>, mut rows: Rows) -> Result<State, Violation> {
        let after = rows.last_key_value().map(|(key, _)| key.clone());
        let Ok(page) = wire.list(&self.prefix, after.as_deref(), at) else {
            // The token is too old (A7): from the beginning.
            return Ok(State::New);
        };
        let revision = at.unwrap_or(page.revision);
        if revision < self.newest {
            let message = format!("a list of revision {revision} after {} was seen", self.newest);
            return Err(Violation::new("A5", message));
        }
        for entry in &page.entries {
            if entry.revision > revision {
                let message = format!("a list of revision {revision} has {:?} of {}", entry.key, entry.revision);
                return Err(Violation::new("A6", message));
            }
            rows.insert(entry.key.clone(), entry.revision);
        }
        if page.more {
            return Ok(State::Listing(revision, rows));
        }
        (self.rows, self.at) = (rows, revision);
        self.newest = self.newest.max(revision);
        Ok(State::Listed)
    }

    fn watch(&mut self, wire: &Wire<'_>, since: Since) -> State {
        match wire.watch(&self.prefix, self.at, since) {
            Ok(watcher) => State::Watching(watcher, since),
            Err(_) => State::New,
        }
    }

    /// Reads what there is; then it must know what the store holds.
    fn read(&mut self, wire: &Wire<'_>, mut watcher: Watcher, mut since: Since) -> Result<State, Violation> {
        // What a bookmark says when all was sent.
        let (newest, begun) = (wire.store.revision(), self.at);
        loop {
            match wire.next(&mut watcher) {
                Err(_) => return Ok(State::New),
                Ok(None) => break,
                Ok(Some(event)) => {
                    let known = self.rows.get(&event.key).copied();
                    if event.revision <= self.at || known.is_some_and(|known| known >= event.revision) {
                        let name = if since == Since::List { "A6" } else { "A4" };
                        let message = format!("{:?} of {} comes after {}", event.key, event.revision, self.at);
                        return Err(Violation::new(name, message));
                    }
                    match event.deleted {
                        true => self.rows.remove(&event.key),
                        false => self.rows.insert(event.key, event.revision),
                    };
                    self.at = event.revision;
                    // What comes later than the first is this watch's own.
                    if since == Since::List && self.is_whole(wire, event.revision) {
                        since = Since::Event;
                    }
                }
            }
        }
        // Nothing has changed since it was last compared.
        if newest == begun && self.at == begun && since == Since::Event {
            return Ok(State::Watching(watcher, since));
        }
        let Ok(truth) = wire.store.range(&self.prefix, None, usize::MAX, Some(newest)) else { return Ok(State::New) };
        let truth: Rows = truth.entries.into_iter().map(|entry| (entry.key, entry.revision)).collect();
        if truth != self.rows {
            let name = match since {
                Since::List => "A6",
                Since::Event => "A4",
                Since::Compacted => "A7",
            };
            let other = truth.iter().find(|(key, revision)| self.rows.get(*key) != Some(revision));
            let message =
                format!("at {newest} it lacks {other:?}; it knows {} rows, there are {}", self.rows.len(), truth.len());
            return Err(Violation::new(name, message));
        }
        self.at = newest;
        self.newest = self.newest.max(newest);
        self.past.insert(0, (newest, self.rows.clone()));
        self.past.truncate(PAST);
        // It has everything now, however it began.
        Ok(State::Watching(watcher, Since::Event))
    }

    /// Whether it knows all that there was at a revision.
    fn is_whole(&self, wire: &Wire<'_>, at: Revision) -> bool {
        let truth = wire.store.range(&self.prefix, None, usize::MAX, Some(at));
        truth.is_ok_and(|page| page.entries.iter().map(|entry| (&entry.key, &entry.revision)).eq(self.rows.iter()))
    }
}
