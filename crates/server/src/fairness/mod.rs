//! Priority and fairness: how many requests are worked on at a time, and whose turn it is (X7).
//!
//! A request belongs to a flow of a priority level, by the FlowSchemas that are stored. Each level has its own seats,
//! so that workloads never take those of nodes; within a level flows take turns, so that one client's thousand requests
//! wait for another's one no longer than for one of their own.
//!
//! Differs: each flow has a queue of its own instead of a hand of shared ones, with a queue's limit; levels lend each
//! other nothing. A watch holds its seat only until it has begun.

pub mod schema;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use mainstay_api::flows::{self, GROUP};
use mainstay_api::kinds::{FLOW_SCHEMA, PRIORITY_LEVEL_CONFIGURATION};
use mainstay_api::{Kind, Status, object};
use mainstay_store::{Entry, Store};
use tokio::sync::oneshot;

use crate::api::{Follower, News, codec};
use crate::auth::User;
use crate::authorize::Attributes;
use schema::{Level, Limited, Schema};

/// Seats of all levels together: requests are short, and more at a time than this only wait for each other.
const SEATS: u32 = 128;
/// How long a request may wait for a seat; upstream's quarter of a request's time.
const PATIENCE: Duration = Duration::from_secs(15);

/// Who may work when.
pub struct Fairness {
    state: Arc<Mutex<State>>,
}

struct State {
    stored: Follower,
    schemas: Vec<Schema>,
    rooms: HashMap<String, Room>,
}

/// A level at work.
struct Room {
    uid: Option<HeaderValue>,
    /// `None` is without limits.
    limited: Option<Limited>,
    seats: u32,
    taken: u32,
    waiting: usize,
    /// By flow; each that is here is in `turns` too.
    queues: HashMap<String, VecDeque<oneshot::Sender<Seat>>>,
    /// Whose turn is next.
    turns: VecDeque<String>,
}

/// A place at work; dropping it gives it to the next.
pub struct Seat {
    level: String,
    state: Option<Arc<Mutex<State>>>,
    /// By what the request was classified.
    pub uids: Uids,
}

/// The uids of a request's FlowSchema and PriorityLevelConfiguration, which its answer names. None of what is not
/// stored.
#[derive(Clone, Debug, Default)]
pub struct Uids {
    schema: Option<HeaderValue>,
    level: Option<HeaderValue>,
}

impl Uids {
    /// Writes them into an answer.
    pub fn write(self, headers: &mut HeaderMap) {
        headers.extend(self.schema.map(|uid| (HeaderName::from_static("x-kubernetes-pf-flowschema-uid"), uid)));
        headers.extend(self.level.map(|uid| (HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid"), uid)));
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let Some(state) = self.state.take() else { return };
        // A seat that nobody took comes back here, outside the lock.
        let mut refused = Vec::new();
        {
            let mut locked = lock(&state);
            let Some(room) = locked.rooms.get_mut(&self.level) else { return };
            room.taken = room.taken.saturating_sub(1);
            room.give(&self.level, &state, &mut refused);
        }
        drop(refused);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Room {
    fn new(limited: Option<Limited>, seats: u32) -> Self {
        Self { uid: None, limited, seats, taken: 0, waiting: 0, queues: HashMap::new(), turns: VecDeque::new() }
    }

    /// Gives free seats to who waits, flow by flow.
    fn give(&mut self, level: &str, state: &Arc<Mutex<State>>, refused: &mut Vec<Seat>) {
        while self.taken < self.seats {
            let Some(flow) = self.turns.pop_front() else { return };
            let Some(queue) = self.queues.get_mut(&flow) else { continue };
            let next = queue.pop_front();
            if queue.is_empty() {
                self.queues.remove(&flow);
            } else {
                self.turns.push_back(flow);
            }
            let Some(next) = next else { continue };
            self.waiting = self.waiting.saturating_sub(1);
            let seat = Seat { level: level.to_owned(), state: Some(state.clone()), uids: Uids::default() };
            match next.send(seat) {
                Ok(()) => self.taken += 1,
                // It has gone away meanwhile.
                Err(mut seat) => {
                    seat.state = None;
                    refused.push(seat);
                }
            }
        }
    }
}

impl Fairness {
    /// By the schemas and levels that the store has, or the defaults where it has none.
    pub fn new(store: &Store) -> Self {
        let state = State { stored: Follower::new(store, prefix()), schemas: Vec::new(), rooms: HashMap::new() };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// How many requests of each level may be worked on at a time; of one without limits none are counted.
    pub fn seats(&self) -> Vec<(String, u32)> {
        let mut state = lock(&self.state);
        state.catch_up();
        let seats = |room: &Room| if room.limited.is_some() { room.seats } else { 0 };
        let mut all: Vec<_> = state.rooms.iter().map(|(name, room)| (name.clone(), seats(room))).collect();
        all.sort();
        all
    }

    /// Waits for the request's turn.
    ///
    /// # Errors
    /// 429 where too many of its flow wait already, or its turn does not come.
    pub async fn seat(&self, user: &User, what: &Attributes) -> Result<Seat, Status> {
        let (waits, uids) = {
            let mut state = lock(&self.state);
            state.catch_up();
            let Some((level, flow, schema)) = state.classify(user, what) else { return Err(busy()) };
            let Some(room) = state.rooms.get_mut(&level) else { return Err(busy()) };
            let uids = Uids { schema, level: room.uid.clone() };
            let Some(limited) = room.limited else { return Ok(Seat { level, state: None, uids }) };
            if room.taken < room.seats && room.waiting == 0 {
                room.taken += 1;
                return Ok(Seat { level, state: Some(self.state.clone()), uids });
            }
            let queued = room.queues.get(&flow).map_or(0, VecDeque::len);
            if queued >= limited.flow || room.waiting >= limited.total {
                return Err(busy());
            }
            let (sender, waits) = oneshot::channel();
            if queued == 0 {
                room.turns.push_back(flow.clone());
            }
            room.queues.entry(flow).or_default().push_back(sender);
            room.waiting += 1;
            (waits, uids)
        };
        match tokio::time::timeout(PATIENCE, waits).await {
            Ok(Ok(mut seat)) => {
                seat.uids = uids;
                Ok(seat)
            }
            Ok(Err(_)) | Err(_) => Err(busy()),
        }
    }
}

/// What the keys of schemas and levels begin with.
fn prefix() -> String {
    format!("/{GROUP}/")
}

fn busy() -> Status {
    Status::too_many_requests("too many requests, please try again later", 1)
}

impl State {
    fn catch_up(&mut self) {
        let all = match self.stored.news() {
            Ok(News::Changes(none)) if none.is_empty() => return,
            Ok(News::Changes(_)) => self.stored.all(),
            Ok(News::All(all)) => Ok(all),
            Err(error) => Err(error),
        };
        match all {
            Ok(all) => self.arrange(&all),
            Err(error) => tracing::error!(%error, "flow schemas and priority levels could not be read"),
        }
    }

    /// Takes in the configuration anew; who is at work stays so.
    fn arrange(&mut self, entries: &[Entry]) {
        let prefix = prefix();
        let mut objects: Vec<(String, serde_json::Value)> = Vec::new();
        for entry in entries {
            let plural =
                std::str::from_utf8(&entry.key).ok().and_then(|key| key.strip_prefix(&prefix)?.split('/').next());
            if let (Some(plural), Ok(object)) = (plural, codec::decode(&entry.value))
                && !object::name(&object).is_empty()
            {
                objects.push((plural.to_owned(), object));
            }
        }
        // The defaults are in force beside what was made, or one schema of somebody's own would take the nodes' seats
        // away. Who makes an object of the same name has their own instead; but the mandatory ones are in force however
        // the stored one came to be what it is.
        for made in flows::defaults() {
            let same = |(of, found): &&mut (String, _)| *of == made.kind.plural && object::name(found) == made.name();
            match objects.iter_mut().find(same) {
                Some((_, found)) if made.is_mandatory() => {
                    object::ensure(found, &[]).insert("spec".to_owned(), made.spec().clone());
                }
                Some(_) => {}
                None => objects.push((made.kind.plural.to_string(), made.object.clone())),
            }
        }
        let of = |kind: &'static Kind| objects.iter().filter(|(of, _)| *of == kind.plural).map(|(_, object)| object);
        self.schemas = of(&FLOW_SCHEMA).map(Schema::read).collect();
        self.schemas.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
        let levels: BTreeMap<String, Level> =
            of(&PRIORITY_LEVEL_CONFIGURATION).map(Level::read).map(|level| (level.name.clone(), level)).collect();
        let limits = levels.values().filter_map(|level| level.limited);
        let sum: u32 = limits.map(|limited| limited.shares).sum::<u32>().max(1);
        for (name, Level { limited, uid, .. }) in &levels {
            let shares = limited.map_or(0, |limited| limited.shares);
            // Rounded up: every level works, however small.
            let seats = (SEATS.saturating_mul(shares).div_ceil(sum)).max(1);
            let room = self.rooms.entry(name.clone()).or_insert_with(|| Room::new(*limited, seats));
            (room.limited, room.seats) = (*limited, seats);
            room.uid.clone_from(uid);
        }
        self.rooms.retain(|name, room| levels.contains_key(name) || room.taken > 0 || room.waiting > 0);
    }

    /// The level and the flow of a request, and its schema's uid.
    fn classify(&self, user: &User, what: &Attributes) -> Option<(String, String, Option<HeaderValue>)> {
        let schema =
            self.schemas.iter().find(|schema| self.rooms.contains_key(&schema.level) && schema.fits(user, what))?;
        Some((schema.level.clone(), schema.flow(user, what), schema.uid.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::task::{Context, Poll, Waker};

    fn fairness() -> Fairness {
        let disk = mainstay_store::Source::backend(redb::backends::InMemoryBackend::new());
        let store = Store::open(disk, mainstay_store::Options::inline()).expect("a store");
        Fairness::new(&store)
    }

    fn of(name: &str, groups: &[&str]) -> User {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        User { name: name.to_owned(), groups, ..User::default() }
    }

    fn poll<T>(future: &mut Pin<Box<dyn Future<Output = T> + '_>>) -> Option<T> {
        match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        }
    }

    #[tokio::test]
    async fn x7_one_busy_client_stops_neither_nodes_nor_others_of_its_level() {
        let fairness = fairness();
        let what =
            Attributes { verb: "list".into(), resource: "pods".into(), namespace: "a".into(), ..Attributes::default() };
        let greedy = of("system:serviceaccount:a:greedy", &["system:serviceaccounts", "system:authenticated"]);
        let modest = of("system:serviceaccount:a:modest", &["system:serviceaccounts", "system:authenticated"]);
        let node = of("system:node:n", &["system:nodes", "system:authenticated"]);
        let (mut seats, mut queue) = (Vec::new(), Vec::new());
        let refused = loop {
            let mut asks: Pin<Box<dyn Future<Output = Result<Seat, Status>>>> = Box::pin(fairness.seat(&greedy, &what));
            match poll(&mut asks) {
                Some(Ok(seat)) => seats.push(seat),
                Some(Err(status)) => break status,
                None => queue.push(asks),
            }
            assert!(seats.len() + queue.len() < 10_000);
        };
        assert_eq!((refused.code, queue.len()), (429, 50));
        // 128 seats by shares: 100 of 245.
        assert_eq!(seats.len(), 53);
        let mut of_node: Pin<Box<dyn Future<Output = Result<Seat, Status>>>> = Box::pin(fairness.seat(&node, &what));
        assert!(matches!(poll(&mut of_node), Some(Ok(_))));
        let mut asks: Pin<Box<dyn Future<Output = Result<Seat, Status>>>> = Box::pin(fairness.seat(&modest, &what));
        assert!(poll(&mut asks).is_none());
        // Two seats come free: one for each flow.
        seats.truncate(seats.len() - 2);
        let modest_seat = poll(&mut asks);
        assert!(matches!(modest_seat, Some(Ok(_))));
        let served: Vec<Result<Seat, Status>> = queue.iter_mut().filter_map(poll).collect();
        assert!(matches!(served.as_slice(), [Ok(_)]), "{}", served.len());
        // Who goes away while waiting takes no seat.
        drop(queue);
        drop((seats, served, modest_seat));
        let state = lock(&fairness.state);
        assert_eq!(state.rooms["workload-low"].taken, 0);
    }

    #[tokio::test]
    async fn x7_a_schema_of_ones_own_leaves_the_nodes_their_seats() {
        let cluster = crate::api::tests::Cluster::new();
        let before = Fairness::new(&cluster.api.store).seats();
        let schema = json!({ "metadata": { "name": "own" }, "spec": { "matchingPrecedence": 1000,
            "priorityLevelConfiguration": { "name": "workload-low" } } });
        cluster.create(&FLOW_SCHEMA, schema).expect("created");
        let fairness = Fairness::new(&cluster.api.store);
        assert!(before.len() > 2);
        assert_eq!(fairness.seats(), before);
        let node = of("system:node:n", &["system:nodes", "system:authenticated"]);
        let what = Attributes { verb: "list".into(), resource: "pods".into(), ..Attributes::default() };
        let seat = fairness.seat(&node, &what).await.expect("a seat");
        assert_eq!(seat.level, "system");
    }

    #[tokio::test]
    async fn conformance_answers_name_the_schema_and_the_level_of_their_requests() {
        let cluster = crate::api::tests::Cluster::new();
        let limited = json!({ "nominalConcurrencyShares": 1, "limitResponse": { "type": "Reject" } });
        let level = json!({ "metadata": { "name": "own" }, "spec": { "type": "Limited", "limited": limited } });
        let level = cluster.create(&PRIORITY_LEVEL_CONFIGURATION, level).expect("created");
        let rules = json!([{ "subjects": [{ "kind": "User", "user": { "name": "ann" } }],
            "nonResourceRules": [{ "verbs": ["*"], "nonResourceURLs": ["*"] }] }]);
        let schema = json!({ "metadata": { "name": "of-ann" }, "spec": { "matchingPrecedence": 1000, "rules": rules,
            "priorityLevelConfiguration": { "name": "own" } } });
        let schema = cluster.create(&FLOW_SCHEMA, schema).expect("created");
        let fairness = Fairness::new(&cluster.api.store);
        let what = Attributes { verb: "get".into(), path: "/version".into(), ..Attributes::default() };
        let seat = fairness.seat(&of("ann", &["system:authenticated"]), &what).await.expect("a seat");
        let mut headers = HeaderMap::new();
        seat.uids.clone().write(&mut headers);
        let uid = |object: &serde_json::Value| object["metadata"]["uid"].as_str().expect("a uid").to_owned();
        assert_eq!(headers["x-kubernetes-pf-flowschema-uid"], uid(&schema));
        assert_eq!(headers["x-kubernetes-pf-prioritylevel-uid"], uid(&level));
        let seats = fairness.seats();
        assert!(seats.iter().any(|(name, seats)| name == "own" && *seats > 0), "{seats:?}");
    }

    #[tokio::test]
    async fn administrators_wait_for_nobody() {
        let fairness = fairness();
        let what = Attributes { verb: "list".into(), resource: "pods".into(), ..Attributes::default() };
        let admin = of("admin", &["system:masters", "system:authenticated"]);
        for _ in 0..1000 {
            let mut asks = pin!(fairness.seat(&admin, &what));
            let asked = asks.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert!(matches!(asked, Poll::Ready(Ok(_))));
        }
    }
}
