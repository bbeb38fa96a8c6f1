//! `/metrics`: what the server counts of its requests, watches and controllers, under upstream's names, in Prometheus'
//! text. What is ours alone begins with `mainstay_`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mainstay_logic::promises;

/// How often a broken promise is logged before that becomes rare.
const LOUD: u64 = 10;
/// Upstream's bounds for the durations of requests, in seconds.
const BOUNDS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    45.0, 60.0,
];
/// How many combinations of labels are kept; requests of further ones are counted together, without labels.
const MAX_SERIES: usize = 4096;

/// What a request is about, as metrics name it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels {
    /// `GET`, `LIST`, `WATCH`, `POST`, `PUT`, `PATCH`, `APPLY`, `DELETE`, `DELETECOLLECTION`, `CONNECT`.
    pub verb: &'static str,
    /// The API group, version and resource; empty for other paths.
    pub group: String,
    pub version: String,
    pub resource: String,
    /// Of an object; or a path that is none.
    pub subresource: String,
    /// `cluster`, `namespace`, `resource`, or empty.
    pub scope: &'static str,
    /// `All` of one that changes nothing.
    pub dry_run: &'static str,
}

impl Labels {
    fn text(&self, more: &str) -> String {
        let Self { verb, group, version, resource, subresource, scope, dry_run } = self;
        format!(
            "{{component=\"apiserver\",dry_run=\"{dry_run}\",group={group:?},resource={resource:?},scope=\"{scope}\",\
             subresource={subresource:?},verb=\"{verb}\",version={version:?}{more}}}"
        )
    }
}

#[derive(Default)]
struct Series {
    codes: BTreeMap<u16, u64>,
    buckets: [u64; BOUNDS.len()],
    seconds: f64,
    timed: u64,
    /// Under way, of those that take as long as the client likes.
    long: i64,
}

/// The counters of one server.
#[derive(Default)]
pub struct Instruments {
    requests: Mutex<BTreeMap<Labels, Series>>,
    watch_events: Mutex<BTreeMap<(String, String, String), Arc<AtomicU64>>>,
    mutating: AtomicI64,
    reading: AtomicI64,
    /// Of the controllers.
    pub controllers: Arc<Controllers>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts something while it is there.
pub struct Counted {
    instruments: Arc<Instruments>,
    what: What,
}

enum What {
    Mutating,
    Reading,
    Long(Box<Labels>),
}

impl Drop for Counted {
    fn drop(&mut self) {
        match &self.what {
            What::Mutating => drop(self.instruments.mutating.fetch_sub(1, Ordering::Relaxed)),
            What::Reading => drop(self.instruments.reading.fetch_sub(1, Ordering::Relaxed)),
            What::Long(labels) => self.instruments.with(labels, |series| series.long -= 1),
        }
    }
}

impl Instruments {
    fn with(&self, labels: &Labels, change: impl FnOnce(&mut Series)) {
        let mut all = lock(&self.requests);
        if let Some(series) = all.get_mut(labels) {
            return change(series);
        }
        let labels = if all.len() < MAX_SERIES { labels.clone() } else { Labels::default() };
        change(all.entry(labels).or_default());
    }

    /// A request that was answered; `took` is none of one that goes on.
    pub fn answered(&self, labels: &Labels, code: u16, took: Option<Duration>) {
        self.with(labels, |series| {
            *series.codes.entry(code).or_default() += 1;
            let Some(took) = took.map(|took| took.as_secs_f64()) else { return };
            series.seconds += took;
            series.timed += 1;
            BOUNDS
                .iter()
                .zip(&mut series.buckets)
                .filter(|(bound, _)| took <= **bound)
                .for_each(|(_, count)| *count += 1);
        });
    }

    /// A request that is being worked on.
    pub fn working(self: &Arc<Self>, is_mutating: bool) -> Counted {
        let (gauge, what) = if is_mutating { (&self.mutating, What::Mutating) } else { (&self.reading, What::Reading) };
        gauge.fetch_add(1, Ordering::Relaxed);
        Counted { instruments: self.clone(), what }
    }

    /// An answer that goes on for as long as the client likes.
    pub fn long(self: &Arc<Self>, labels: &Labels) -> Counted {
        self.with(labels, |series| series.long += 1);
        Counted { instruments: self.clone(), what: What::Long(Box::new(labels.clone())) }
    }

    /// The counter of the events that watches of a resource are sent.
    pub fn watch_events(&self, group: &str, version: &str, resource: &str) -> Arc<AtomicU64> {
        let key = (group.to_owned(), version.to_owned(), resource.to_owned());
        lock(&self.watch_events).entry(key).or_default().clone()
    }

    /// All of it as text.
    pub fn text(&self) -> String {
        let mut out = Text::default();
        self.requests_text(&mut out);
        out.family("apiserver_watch_events_total", "counter", "Number of events sent in watch clients");
        for ((group, version, resource), count) in lock(&self.watch_events).iter() {
            let labels = format!("{{group={group:?},resource={resource:?},version={version:?}}}");
            out.line("apiserver_watch_events_total", &labels, count.load(Ordering::Relaxed));
        }
        out.family(
            "apiserver_current_inflight_requests",
            "gauge",
            "Maximal number of currently used inflight request limit of this apiserver per request kind in last \
                second.",
        );
        for (kind, gauge) in [("mutating", &self.mutating), ("readOnly", &self.reading)] {
            let labels = format!("{{request_kind=\"{kind}\"}}");
            out.line("apiserver_current_inflight_requests", &labels, gauge.load(Ordering::Relaxed));
        }
        self.controllers.text(&mut out);
        out.0
    }

    fn requests_text(&self, out: &mut Text) {
        let all = lock(&self.requests);
        out.family(
            "apiserver_request_total",
            "counter",
            "Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, scope, \
                component, and HTTP response code.",
        );
        for (labels, series) in all.iter() {
            for (code, count) in &series.codes {
                out.line("apiserver_request_total", &labels.text(&format!(",code=\"{code}\"")), count);
            }
        }
        const DURATION: &str = "apiserver_request_duration_seconds";
        out.family(
            DURATION,
            "histogram",
            "Response latency distribution in seconds for each verb, dry run value, group, version, resource, \
                subresource, scope and component.",
        );
        for (labels, series) in all.iter().filter(|(_, series)| series.timed > 0) {
            for (bound, count) in BOUNDS.iter().zip(&series.buckets) {
                out.line("apiserver_request_duration_seconds_bucket", &labels.text(&format!(",le=\"{bound}\"")), count);
            }
            out.line("apiserver_request_duration_seconds_bucket", &labels.text(",le=\"+Inf\""), series.timed);
            out.line("apiserver_request_duration_seconds_sum", &labels.text(""), series.seconds);
            out.line("apiserver_request_duration_seconds_count", &labels.text(""), series.timed);
        }
        out.family(
            "apiserver_longrunning_requests",
            "gauge",
            "Gauge of all active long-running apiserver requests broken out by verb, group, version, resource, scope \
                and component. Not all requests are tracked this way.",
        );
        for (labels, series) in all.iter().filter(|(_, series)| series.long > 0) {
            out.line("apiserver_longrunning_requests", &labels.text(""), series.long);
        }
    }
}

/// Text that is made family by family.
#[derive(Default)]
pub struct Text(pub String);

impl Text {
    /// A family's head.
    pub fn family(&mut self, name: &str, type_: &str, help: &str) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {type_}\n");
    }

    /// One of its lines; `labels` with their braces, or nothing.
    pub fn line(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    /// A family of one line.
    pub fn one(&mut self, name: &str, type_: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, type_, help);
        self.line(name, "", value);
    }
}

/// What the controllers do. The driver counts, `/metrics` reads.
#[derive(Default)]
pub struct Controllers {
    queues: Mutex<BTreeMap<&'static str, Queue>>,
    waiting: Mutex<BTreeMap<(&'static str, String), u64>>,
    /// How often each of [`promises::WATCHED`] was broken.
    broken: [AtomicU64; promises::WATCHED.len()],
}

#[derive(Clone, Copy, Default)]
struct Queue {
    adds: u64,
    depth: i64,
    retries: u64,
    decided: u64,
    seconds: f64,
}

impl Controllers {
    fn with(&self, controller: &'static str, change: impl FnOnce(&mut Queue)) {
        change(lock(&self.queues).entry(controller).or_default());
    }

    /// A key was woken that was not before.
    pub fn added(&self, controller: &'static str) {
        self.with(controller, |queue| {
            queue.adds += 1;
            queue.depth += 1;
        });
    }

    /// So many keys were taken out to be decided.
    pub fn taken(&self, controller: &'static str, keys: usize) {
        self.with(controller, |queue| queue.depth -= i64::try_from(keys).unwrap_or(0));
    }

    /// Keys were decided.
    pub fn decided(&self, controller: &'static str, keys: usize, took: Duration) {
        self.with(controller, |queue| {
            queue.decided += keys as u64;
            queue.seconds += took.as_secs_f64();
        });
    }

    /// A promise was broken. Each is logged ten times, and then when as many again have come.
    pub fn broke(&self, promise: &'static str, how: &str) {
        let slot = promises::WATCHED.iter().position(|watched| *watched == promise);
        let Some(count) = slot.and_then(|slot| self.broken.get(slot)) else { return };
        let count = count.fetch_add(1, Ordering::Relaxed) + 1;
        if count <= LOUD || count.is_power_of_two() {
            tracing::error!(promise, how, count, "a promise is broken");
        }
    }

    /// The promises that were broken, and how often.
    pub fn broken(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let counts = self.broken.iter().map(|count| count.load(Ordering::Relaxed));
        promises::WATCHED.into_iter().zip(counts).filter(|(_, count)| *count > 0)
    }

    /// A key is tried again after a failure.
    pub fn retried(&self, controller: &'static str) {
        self.with(controller, |queue| queue.retries += 1);
    }

    /// A key waits for other reasons than before. Each reason is the variant's name.
    pub fn waits<W: std::fmt::Debug>(&self, controller: &'static str, before: &[W], now: &[W]) {
        if before.is_empty() && now.is_empty() {
            return;
        }
        let mut all = lock(&self.waiting);
        for reason in before.iter().map(variant) {
            let key = (controller, reason);
            if let Some(count) = all.get_mut(&key) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    all.remove(&key);
                }
            }
        }
        for reason in now.iter().map(variant) {
            *all.entry((controller, reason)).or_default() += 1;
        }
    }

    fn text(&self, out: &mut Text) {
        let queues = lock(&self.queues).clone();
        let mut family = |name: &str, type_: &str, help: &str, value: fn(&Queue) -> String| {
            out.family(name, type_, help);
            for (controller, queue) in &queues {
                out.line(name, &format!("{{name=\"{controller}\"}}"), value(queue));
            }
        };
        family("workqueue_adds_total", "counter", "Total number of adds handled by workqueue", |queue| {
            queue.adds.to_string()
        });
        family("workqueue_depth", "gauge", "Current depth of workqueue", |queue| queue.depth.to_string());
        family("workqueue_retries_total", "counter", "Total number of retries handled by workqueue", |queue| {
            queue.retries.to_string()
        });
        family("mainstay_decisions_total", "counter", "Keys that controllers have decided.", |queue| {
            queue.decided.to_string()
        });
        family(
            "mainstay_decision_seconds_total",
            "counter",
            "Time that controllers have taken for their decisions.",
            |queue| queue.seconds.to_string(),
        );
        out.family("mainstay_waiting", "gauge", "Keys of a controller that wait, by the reason.");
        for ((controller, reason), count) in lock(&self.waiting).iter() {
            out.line("mainstay_waiting", &format!("{{controller=\"{controller}\",reason=\"{reason}\"}}"), count);
        }
        const BROKEN: &str = "mainstay_promise_violations_total";
        out.family(BROKEN, "counter", "Changes and decisions that broke what is promised, by the promise's name.");
        for (promise, count) in promises::WATCHED.iter().zip(&self.broken) {
            out.line(BROKEN, &format!("{{promise=\"{promise}\"}}"), count.load(Ordering::Relaxed));
        }
    }
}

/// `PodTerminating { ordinal: 1 }` → `PodTerminating`.
fn variant(reason: &impl std::fmt::Debug) -> String {
    let text = format!("{reason:?}");
    text.split([' ', '(', '{']).next().unwrap_or("").to_owned()
}

/// `process_*`, out of `/proc/self`.
pub fn process(out: &mut Text) {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (stat, system) = (read("/proc/self/stat"), read("/proc/stat"));
    // The program's name, in parentheses, may have spaces.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    // Counted in hundredths of a second, on every machine that Linux runs on today.
    let ticks = 100.0;
    let booted = system.lines().find_map(|line| line.strip_prefix("btime ")?.parse::<f64>().ok()).unwrap_or(0.0);
    out.one(
        "process_cpu_seconds_total",
        "counter",
        "Total user and system CPU time spent in seconds.",
        (number(11) + number(12)) / ticks,
    );
    let page = 4096.0;
    out.one("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", number(21) * page);
    out.one("process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.", number(20));
    out.one(
        "process_start_time_seconds",
        "gauge",
        "Start time of the process since unix epoch in seconds.",
        booted + number(19) / ticks,
    );
    let open = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    out.one("process_open_fds", "gauge", "Number of open file descriptors.", open);
    let limits = read("/proc/self/limits");
    let most = limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next());
    out.one("process_max_fds", "gauge", "Maximum number of open file descriptors.", most.unwrap_or("0"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_what_they_are_about() {
        let instruments = Arc::new(Instruments::default());
        let labels = Labels {
            verb: "LIST",
            resource: "pods".into(),
            version: "v1".into(),
            scope: "cluster",
            ..Labels::default()
        };
        instruments.answered(&labels, 200, Some(Duration::from_millis(30)));
        instruments.answered(&labels, 200, Some(Duration::from_secs(90)));
        instruments.answered(&labels, 410, None);
        let watching = instruments.long(&labels);
        let working = instruments.working(true);
        instruments.watch_events("", "v1", "pods").fetch_add(3, Ordering::Relaxed);
        let text = instruments.text();
        let of = |more: &str| {
            format!(
                "{{component=\"apiserver\",dry_run=\"\",group=\"\",resource=\"pods\",scope=\"cluster\",subresource=\"\",verb=\"LIST\",version=\"v1\"{more}}}"
            )
        };
        for line in [
            format!("apiserver_request_total{} 2", of(",code=\"200\"")),
            format!("apiserver_request_total{} 1", of(",code=\"410\"")),
            format!("apiserver_request_duration_seconds_bucket{} 0", of(",le=\"0.025\"")),
            format!("apiserver_request_duration_seconds_bucket{} 1", of(",le=\"0.05\"")),
            format!("apiserver_request_duration_seconds_bucket{} 2", of(",le=\"+Inf\"")),
            format!("apiserver_request_duration_seconds_count{} 2", of("")),
            format!("apiserver_longrunning_requests{} 1", of("")),
            "apiserver_watch_events_total{group=\"\",resource=\"pods\",version=\"v1\"} 3".to_owned(),
            "apiserver_current_inflight_requests{request_kind=\"mutating\"} 1".to_owned(),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        drop((watching, working));
        let text = instruments.text();
        assert!(!text.contains("apiserver_longrunning_requests{"));
        assert!(text.contains("{request_kind=\"mutating\"} 0"));
    }

    #[test]
    fn broken_promises_are_counted_and_those_that_hold_are_shown() {
        let instruments = Instruments::default();
        instruments.controllers.broke("S8", "a claim is gone");
        instruments.controllers.broke("S8", "another one, too");
        instruments.controllers.broke("not one of them", "nothing");
        let text = instruments.text();
        for line in ["{promise=\"S8\"} 2", "{promise=\"A2\"} 0", "{promise=\"V9\"} 0"] {
            let line = format!("mainstay_promise_violations_total{line}");
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(!text.contains("not one of them"));
        assert_eq!(instruments.controllers.broken().collect::<Vec<_>>(), [("S8", 2)]);
    }

    #[test]
    fn x7_labels_are_bounded() {
        let instruments = Instruments::default();
        for number in 0..MAX_SERIES + 10 {
            let labels = Labels { resource: number.to_string(), verb: "GET", ..Labels::default() };
            instruments.answered(&labels, 200, None);
        }
        assert!(lock(&instruments.requests).len() <= MAX_SERIES + 1);
    }

    #[test]
    fn why_keys_wait_is_counted_by_reason() {
        #[derive(Debug)]
        enum Reason {
            #[expect(dead_code, reason = "shown")]
            Terminating {
                ordinal: i64,
            },
            Backoff,
        }
        let controllers = Controllers::default();
        controllers.waits("a", &[], &[Reason::Terminating { ordinal: 1 }, Reason::Backoff]);
        controllers.waits("a", &[], &[Reason::Terminating { ordinal: 2 }]);
        controllers.waits("a", &[Reason::Backoff], &[]);
        controllers.added("a");
        let mut text = Text::default();
        controllers.text(&mut text);
        assert!(text.0.contains("mainstay_waiting{controller=\"a\",reason=\"Terminating\"} 2\n"), "{}", text.0);
        assert!(!text.0.contains("Backoff"));
        assert!(text.0.contains("workqueue_depth{name=\"a\"} 1\n"));
    }

    #[test]
    fn the_process_says_what_it_uses() {
        let mut text = Text::default();
        process(&mut text);
        let value = |name: &str| {
            let line = text.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.parse::<f64>().ok()).unwrap_or(-1.0)
        };
        for name in
            ["process_resident_memory_bytes", "process_open_fds", "process_max_fds", "process_start_time_seconds"]
        {
            assert!(value(name) > 0.0, "{name}\n{}", text.0);
        }
    }
}
