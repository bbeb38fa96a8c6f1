//! What is under way for a pod: begun once, ended when the pod ends, tried again after a pause.

use super::*;

struct Desk {
    agenda: Agenda,
    now: Timestamp,
}

fn versioned(version: &str, spec: &Value) -> Pod {
    let mut pod = pod(spec.clone());
    pod.metadata.resource_version = Some(version.to_owned());
    pod
}

fn going(version: &str, spec: &Value) -> Pod {
    let mut pod = versioned(version, spec);
    pod.metadata.deletion_timestamp = Some(Timestamp::UNIX_EPOCH.into());
    pod.metadata.deletion_grace_period_seconds = Some(1);
    pod
}

fn fact_of(name: &str, attempt: u32, life: Life) -> ContainerFact {
    ContainerFact {
        name: name.to_owned(),
        attempt,
        image: String::new(),
        image_id: "i".to_owned(),
        sandbox_made_at: None,
        user: None,
        life,
    }
}

fn ended(code: i32, fenced: bool) -> Life {
    let at = Timestamp::UNIX_EPOCH;
    Life::Exited { code, signal: None, oom: false, fenced, started: at, finished: at, message: None }
}

const RUNNING: Life = Life::Running { since: Timestamp::UNIX_EPOCH };

impl Desk {
    fn new(spec: &Value) -> Self {
        let mut agenda = Agenda::new(PodView::new(versioned("1", spec), Vec::new()), false);
        let now = Timestamp::UNIX_EPOCH;
        agenda.view.apply(Fact::Sandbox(Sandbox::Ready { ip: None, made_at: Some(now) }), now);
        Self { agenda, now }
    }

    fn observe(&mut self, name: &str, attempt: u32, life: Life) -> Vec<PodEvent> {
        self.agenda.observe(fact_of(name, attempt, life), self.now)
    }

    fn step(&mut self) -> Step {
        self.agenda.step(self.now)
    }

    /// What begins, but for statuses, which the API takes at once.
    fn begins(&mut self) -> Vec<Key> {
        let begun = self.step().begin;
        if begun.iter().any(|(key, _)| *key == Key::Status) {
            self.agenda.view.pod.status = Some(decide(&self.agenda.view, self.now).status);
            self.finish(&Key::Status, End::Done);
            let mut keys: Vec<Key> = begun.into_iter().map(|(key, _)| key).filter(|key| *key != Key::Status).collect();
            keys.extend(self.begins());
            return keys;
        }
        begun.into_iter().map(|(key, _)| key).collect()
    }

    fn finish(&mut self, key: &Key, end: End) {
        self.agenda.finish(key, end, self.now);
    }

    fn pass(&mut self, seconds: i64) {
        self.now = self.now.checked_add(SignedDuration::from_secs(seconds)).unwrap();
    }

    fn lives(&self) -> Vec<(String, u32, bool)> {
        let all = self.agenda.view.containers.iter();
        all.map(|fact| (fact.name.clone(), fact.attempt, fact.is_alive())).collect()
    }
}

fn probed() -> Value {
    let mut spec = one_container();
    spec["containers"][0]["readinessProbe"] = json!({ "exec": {} });
    spec["containers"].as_array_mut().unwrap().push(json!({ "name": "d", "image": "img:1" }));
    spec
}

#[test]
fn a_pod_that_is_told_to_go_cuts_what_may_be_cut_and_nothing_else() {
    let spec = probed();
    let mut desk = Desk::new(&spec);
    desk.observe("c", 0, RUNNING);
    let begun = desk.begins();
    assert_eq!(begun, [Key::Probe("c".to_owned(), 0, ProbeKind::Readiness), Key::Image("d".to_owned())]);
    assert_eq!(desk.begins(), [], "each is under way once");
    assert_eq!(desk.step().cut, [], "it goes on");
    desk.agenda.verify();
    desk.agenda.take_pod(going("2", &spec), desk.now);
    let cut = desk.step().cut;
    assert_eq!(cut, [Key::Image("d".to_owned())], "its readiness is of use until it has ended");
    assert_eq!(desk.step().cut, [], "once");
    desk.finish(&Key::Status, End::Refused);
    // What cannot be cut is waited for before anything is taken away for good.
    desk.agenda.view.apply(Fact::Remembered(true), desk.now);
    desk.finish(&Key::Remember, End::Done);
    desk.observe("c", 0, ended(0, false));
    assert_eq!(desk.step().cut, [Key::Probe("c".to_owned(), 0, ProbeKind::Readiness)]);
    desk.finish(&Key::Status, End::Refused);
    assert_eq!(desk.begins(), [], "the question is under way");
    desk.finish(&Key::Verify, End::Done);
    assert_eq!(desk.begins(), [Key::RemoveSandbox]);
}

#[test]
fn what_failed_is_tried_again_after_a_pause_and_keeps_nothing_else_waiting() {
    let spec = probed();
    let mut desk = Desk::new(&spec);
    desk.observe("c", 0, RUNNING);
    desk.observe("d", 0, RUNNING);
    desk.agenda.take_pod(going("2", &spec), desk.now);
    desk.begins();
    desk.agenda.view.apply(Fact::Remembered(true), desk.now);
    desk.finish(&Key::Remember, End::Done);
    let (c, d) = (Key::Stop("c".to_owned(), 0), Key::Stop("d".to_owned(), 0));
    assert_eq!(desk.begins(), [c.clone(), d.clone()]);
    desk.finish(&c, End::Failed);
    assert_eq!(desk.begins(), [], "not at once");
    assert_eq!(desk.step().wake_at, Some(Timestamp::from_second(1).unwrap()));
    desk.pass(1);
    assert_eq!(desk.begins(), std::slice::from_ref(&c), "and the other one is under way");
    desk.finish(&c, End::Done);
    assert_eq!(desk.begins(), [c], "it runs, so it is stopped");
    // What fails in other ways is a fact, whose back-off is the decision's.
    let mut desk = Desk::new(&spec);
    desk.observe("c", 0, RUNNING);
    desk.begins();
    desk.finish(&Key::Image("d".to_owned()), End::Failed);
    assert_eq!(desk.begins(), [Key::Image("d".to_owned())]);
    // A pause after one that is retried holds back only those.
    desk.observe("c", 1, ended(0, false));
    desk.observe("c", 2, RUNNING);
    desk.observe("c", 0, ended(0, false));
    let remove = Key::Remove("c".to_owned(), 0);
    assert!(desk.begins().contains(&remove));
    desk.finish(&remove, End::Failed);
    desk.finish(&Key::Image("d".to_owned()), End::Failed);
    assert_eq!(desk.begins(), [Key::Image("d".to_owned())]);
}

#[test]
fn a_container_that_was_removed_is_forgotten_and_no_other() {
    let mut desk = Desk::new(&probed());
    for (name, attempt, life) in
        [("c", 0, ended(0, false)), ("c", 1, ended(0, false)), ("c", 2, RUNNING), ("d", 0, RUNNING)]
    {
        desk.observe(name, attempt, life);
    }
    let all = desk.lives();
    desk.finish(&Key::Remove("c".to_owned(), 0), End::Refused);
    assert_eq!(desk.lives(), all, "it was not removed");
    desk.finish(&Key::Remove("c".to_owned(), 0), End::Done);
    assert_eq!(desk.lives(), all[1..]);
}

#[test]
fn what_is_observed_is_of_one_attempt_and_an_end_is_final() {
    let mut desk = Desk::new(&probed());
    desk.observe("c", 0, RUNNING);
    desk.observe("d", 0, RUNNING);
    desk.observe("c", 1, RUNNING);
    desk.observe("c", 0, ended(0, false));
    let expected = [("c", 0, false), ("c", 1, true), ("d", 0, true)]
        .map(|(name, attempt, alive)| (name.to_owned(), attempt, alive));
    assert_eq!(desk.lives(), expected);
    desk.observe("c", 0, RUNNING);
    assert_eq!(desk.lives(), expected, "what arrives late says nothing");
    // S13: one that its deadline ended is told of, once the API has not heard of it.
    desk.agenda.view.apply(Fact::Deadline(40), desk.now);
    let events = desk.observe("d", 0, ended(137, true));
    let messages: Vec<&str> = events.iter().map(|event| event.message.as_str()).collect();
    assert_eq!(messages, ["Stopped by its supervisor: this node could not renew its lease for 40 s"]);
    assert!(events[0].warning && events[0].reason == "Fenced" && events[0].container.as_deref() == Some("d"));
    desk.agenda.view.pod.status = Some(decide(&desk.agenda.view, desk.now).status);
    desk.agenda.view.containers.clear();
    assert_eq!(desk.observe("d", 0, ended(137, true)), [], "a restarted agent says nothing that was said");
    assert_eq!(desk.observe("d", 1, ended(137, true)).len(), 1, "of the next attempt it was not");
}

#[test]
fn what_becomes_true_is_told_once_and_again_when_it_comes_back() {
    let mut desk = Desk::new(&one_container());
    desk.observe("c", 0, ended(1, false));
    let failed = |desk: &mut Desk| {
        let result = Err(("ErrImagePull", "why".to_owned()));
        let fact = Fact::Image { container: "c".into(), image: "img:1".into(), result };
        desk.agenda.view.apply(fact, desk.now);
    };
    failed(&mut desk);
    let told = |step: Step| step.events.iter().map(|event| event.reason).collect::<Vec<_>>();
    assert_eq!(told(desk.step()), ["BackOff", "Failed"]);
    assert_eq!(told(desk.step()), [""; 0]);
    desk.pass(10);
    assert_eq!(told(desk.step()), [""; 0], "it is tried again");
    failed(&mut desk);
    assert_eq!(told(desk.step()), ["BackOff", "Failed"]);
}

#[test]
fn a_status_is_written_when_it_or_the_pod_is_another_one() {
    let spec = one_container();
    let mut desk = Desk::new(&spec);
    desk.observe("c", 0, RUNNING);
    let writes = |desk: &mut Desk| desk.step().begin.iter().any(|(key, _)| *key == Key::Status);
    assert!(writes(&mut desk));
    desk.finish(&Key::Status, End::Done);
    assert!(!writes(&mut desk));
    desk.agenda.take_pod(versioned("1", &spec), desk.now);
    assert!(!writes(&mut desk), "the same pod as before the write");
    desk.agenda.take_pod(versioned("2", &spec), desk.now);
    assert!(writes(&mut desk), "somebody took it back");
    desk.finish(&Key::Status, End::Done);
    desk.observe("c", 0, ended(0, false));
    assert!(writes(&mut desk), "there is something else to say");
    desk.finish(&Key::Status, End::Done);
    // One that the API has is not written.
    let status = Some(decide(&desk.agenda.view, desk.now).status);
    desk.agenda.view.pod.status = status;
    assert!(!writes(&mut desk));
    // Of a pod that is gone nothing is written.
    desk.agenda.view.apply(Fact::Gone, desk.now);
    desk.agenda.view.pod.status = None;
    assert!(!writes(&mut desk));
}

#[test]
fn a_pod_that_is_relabelled_has_its_volumes_looked_at() {
    let mut spec = one_container();
    spec["volumes"] = json!([{ "name": "v", "downwardAPI": {} }]);
    let mut desk = Desk::new(&spec);
    desk.agenda.view.apply(Fact::Volume { name: "v".into(), result: Ok(None) }, desk.now);
    desk.observe("c", 0, RUNNING);
    assert_eq!(desk.begins(), []);
    desk.agenda.take_pod(versioned("2", &spec), desk.now);
    assert_eq!(desk.begins(), [], "nothing that a volume shows has changed");
    let mut relabelled = versioned("3", &spec);
    relabelled.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into());
    desk.agenda.take_pod(relabelled.clone(), desk.now);
    assert_eq!(desk.begins(), [Key::Volume("v".to_owned())]);
    desk.finish(&Key::Volume("v".to_owned()), End::Done);
    desk.agenda.view.apply(Fact::Volume { name: "v".into(), result: Ok(None) }, desk.now);
    relabelled.metadata.resource_version = Some("4".to_owned());
    relabelled.metadata.annotations = Some([("a".to_owned(), "b".to_owned())].into());
    desk.agenda.take_pod(relabelled.clone(), desk.now);
    assert_eq!(desk.begins(), [Key::Volume("v".to_owned())]);
    desk.finish(&Key::Volume("v".to_owned()), End::Done);
    desk.agenda.view.apply(Fact::Volume { name: "v".into(), result: Ok(None) }, desk.now);
    relabelled.metadata.resource_version = Some("5".to_owned());
    let resources = json!({ "limits": { "memory": "64Mi" } });
    relabelled.spec.as_mut().unwrap().containers[0].resources = Some(serde_json::from_value(resources).unwrap());
    desk.agenda.take_pod(relabelled, desk.now);
    assert!(desk.begins().contains(&Key::Volume("v".to_owned())), "a resize is told by volumes, too");
}

/// S2: a deletion is confirmed once for each state of the pod; finalizers may keep it longer.
#[test]
fn s2_a_deletion_is_confirmed_once_and_again_when_it_was_refused() {
    let spec = one_container();
    let mut desk = Desk::new(&spec);
    desk.agenda.take_pod(going("2", &spec), desk.now);
    desk.agenda.view.apply(Fact::Remembered(true), desk.now);
    desk.agenda.view.apply(Fact::Sandbox(Sandbox::Absent), desk.now);
    desk.agenda.view.apply(Fact::Unmounted, desk.now);
    assert_eq!(desk.begins(), [Key::Confirm]);
    desk.finish(&Key::Confirm, End::Refused);
    assert_eq!(desk.begins(), [Key::Confirm], "it is still there");
    desk.finish(&Key::Confirm, End::Done);
    assert_eq!(desk.begins(), [], "a finalizer keeps it");
    let status = desk.agenda.view.pod.status.clone();
    let mut pod = going("3", &spec);
    pod.status = status;
    desk.agenda.take_pod(pod, desk.now);
    assert_eq!(desk.begins(), [Key::Confirm], "it has changed");
    desk.finish(&Key::Confirm, End::Done);
    // It is gone; a status that is still being written keeps nobody.
    desk.agenda.view.pod.status = None;
    assert_eq!(desk.step().begin.len(), 1, "a status");
    desk.agenda.view.apply(Fact::Gone, desk.now);
    let last: Vec<Key> = desk.step().begin.into_iter().map(|(key, _)| key).collect();
    assert_eq!(last, [Key::Forget]);
}

#[test]
fn a_pull_gives_way_to_that_of_another_image() {
    let mut desk = Desk::new(&one_container());
    let image = Key::Image("c".to_owned());
    assert_eq!(desk.begins(), std::slice::from_ref(&image));
    assert_eq!(desk.begins(), [], "it is under way");
    let mut spec = one_container();
    spec["containers"][0]["image"] = json!("img:2");
    desk.agenda.take_pod(versioned("2", &spec), desk.now);
    assert_eq!(desk.begins(), [image]);
    assert_eq!(desk.begins(), []);
}

/// Times that are waited for move along with a clock that is set, and so does the pod's own time.
#[test]
fn s12_what_is_under_way_waits_no_longer_when_the_clock_is_set_back() {
    let spec = probed();
    let mut desk = Desk::new(&spec);
    desk.now = Timestamp::from_second(1000).unwrap();
    desk.observe("c", 0, RUNNING);
    desk.observe("d", 0, RUNNING);
    desk.agenda.take_pod(going("2", &spec), desk.now);
    desk.begins();
    desk.agenda.view.apply(Fact::Remembered(true), desk.now);
    desk.finish(&Key::Remember, End::Done);
    let (c, d) = (Key::Stop("c".to_owned(), 0), Key::Stop("d".to_owned(), 0));
    assert_eq!(desk.begins(), [c.clone(), d]);
    desk.finish(&c, End::Failed);
    let tombstoned = desk.agenda.view.tombstoned_since.unwrap();
    desk.now = Timestamp::from_second(400).unwrap();
    desk.agenda.clock_stepped(SignedDuration::from_secs(-600));
    assert_eq!(desk.agenda.view.tombstoned_since, Some(tombstoned - SignedDuration::from_secs(600)));
    assert_eq!(desk.step().wake_at, Some(Timestamp::from_second(401).unwrap()));
    // The other stop's deadline is that of before, by this clock: it is not asked for again.
    assert_eq!(desk.begins(), []);
    desk.pass(1);
    assert_eq!(desk.begins(), [c]);
}

#[test]
fn s1_a_pod_hears_who_has_its_name_and_when_nobody_has() {
    let mut desk = Desk::new(&one_container());
    let update = |desk: &mut Desk, uid: Option<&str>| {
        desk.agenda.update(PodUpdate::Predecessor(uid.map(str::to_owned)), desk.now)
    };
    assert_eq!(update(&mut desk, Some("older")), (Vec::new(), None));
    assert_eq!(desk.begins(), [], "it waits");
    update(&mut desk, None);
    assert_eq!(desk.begins(), [Key::Image("c".to_owned())]);
}

/// What ends early for a pod that goes: what asks whether it lives, too.
#[test]
fn a_liveness_probe_is_cut_when_its_pod_goes() {
    let mut spec = one_container();
    spec["containers"][0]["livenessProbe"] = json!({ "exec": {} });
    let mut desk = Desk::new(&spec);
    desk.observe("c", 0, RUNNING);
    let probe = Key::Probe("c".to_owned(), 0, ProbeKind::Liveness);
    assert_eq!(desk.begins(), std::slice::from_ref(&probe));
    desk.agenda.take_pod(going("2", &spec), desk.now);
    assert_eq!(desk.step().cut, [probe]);
}

/// A pause is of what failed: the end of something else neither makes one nor ends it.
#[test]
fn what_ends_otherwise_leaves_a_pause_as_it_is() {
    let spec = probed();
    let mut desk = Desk::new(&spec);
    desk.observe("c", 1, ended(0, false));
    desk.observe("c", 2, RUNNING);
    desk.observe("c", 0, ended(0, false));
    let (remove, image) = (Key::Remove("c".to_owned(), 0), Key::Image("d".to_owned()));
    assert!(desk.begins().contains(&remove));
    desk.finish(&image, End::Failed);
    desk.finish(&remove, End::Refused);
    assert!(desk.begins().contains(&remove), "what failed was not of its kind");
    desk.finish(&remove, End::Failed);
    desk.finish(&image, End::Done);
    assert!(!desk.begins().contains(&remove), "the pause goes on");
}

/// What was taken by the API, and has not come back by a watch yet, is told; what is on its way there is not.
#[test]
fn nothing_is_taken_away_before_its_end_is_told() {
    let spec = json!({ "containers": [{ "name": "c", "image": "img:1" }], "restartPolicy": "Never" });
    let mut desk = Desk::new(&spec);
    desk.observe("c", 0, RUNNING);
    assert_eq!(desk.begins(), []);
    desk.observe("c", 0, ended(0, false));
    let keys = |desk: &mut Desk| desk.step().begin.into_iter().map(|(key, _)| key).collect::<Vec<_>>();
    assert_eq!(keys(&mut desk), [Key::Status]);
    assert_eq!(keys(&mut desk), [], "it is being written");
    desk.finish(&Key::Status, End::Done);
    assert_eq!(keys(&mut desk), [Key::RemoveSandbox]);
}
