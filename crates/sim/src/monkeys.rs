//! Users who change their minds, and things that break. All from the seed.

use jiff::{SignedDuration, Timestamp};
use mainstay_api::{Kind, ObjectKey, Status, kinds, object};
use mainstay_server::api::{self, DeleteOptions, Part, key};
use serde_json::{Value, json};

use crate::seed::Seed;
use crate::server::Server;

/// Where everything is.
pub const NAMESPACE: &str = "default";

/// A StatefulSet as a user wants it.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub name: String,
    pub replicas: i64,
    pub image: String,
    pub is_parallel: bool,
    /// The claims' access mode; no claims without.
    pub claims: Option<&'static str>,
    /// The claims are for volumes that people make, not for the default class.
    pub is_static: bool,
    /// `whenDeleted` and `whenScaled` are Delete.
    pub deletes: (bool, bool),
    /// How long its pods tolerate a silent node, in seconds; the default without.
    pub tolerates: Option<i64>,
}

/// One thing that a user does.
#[derive(Clone, Debug)]
pub enum Deed {
    /// Makes the set, or brings it to this.
    Apply(Wanted),
    Scale(String, i64),
    Image(String, String),
    Partition(String, i64),
    /// Sets fields of the set's spec.
    Change(String, Value),
    Delete(Kind, String, Option<&'static str>),
    /// A pod that looks like one of the set's and is nobody's (S10).
    Stranger(String),
    /// A pod that uses the claim of one of the set's pods, beside it (V9).
    Guest(String, i64),
    /// A pod leaves the API at once, whatever still runs of it.
    Force(String),
    /// Makes so many volumes, from this number on, with this reclaim policy, and one after the other on so many nodes.
    Volumes(u64, u64, &'static str, u64),
    /// Makes a Deployment in this namespace, which is made too, or brings it to this many replicas of this image.
    Deploy(&'static str, i64, String),
}

/// The class of the volumes that people make.
pub const STATIC: &str = "static";
/// A namespace that comes and goes.
pub const PASSING: &str = "passing";

/// What the users of a world do most: much of one thing shows more than a little of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Any,
    /// They delete pods and claims, and scale.
    Restless,
    /// They change the template and how a set is updated.
    Rolling,
}

impl Mood {
    /// How many things they do with a set.
    fn deeds(self, seed: &mut Seed) -> i64 {
        if self == Self::Any { seed.between(3, 9) } else { seed.between(8, 15) }
    }

    /// What sort the next of them is; see [`Script::one_set`].
    fn deed(self, seed: &mut Seed) -> u64 {
        let most: &[u64] = match self {
            Self::Any => return seed.below(17),
            Self::Restless => &[0, 0, 0, 0, 3, 4, 4, 9, 10, 11],
            Self::Rolling => &[0, 4, 6, 7, 7, 7, 8, 12, 13, 13],
        };
        most.get(seed.index(most.len())).copied().unwrap_or(0)
    }
}

/// What users do, and when. It does not depend on what goes wrong.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// In order of time.
    pub deeds: Vec<(Timestamp, Deed)>,
    /// What all is brought to when the storm is over.
    pub last: Vec<Deed>,
}

impl Script {
    /// A script for a storm of that length on so many nodes, with users who are restless, or of any mood.
    pub fn random(seed: &mut Seed, start: Timestamp, length: SignedDuration, nodes: u64, is_restless: bool) -> Self {
        let mut script = Self::default();
        let policy = ["Retain", "Recycle", "Recycle"].get(seed.index(3)).copied().unwrap_or("Retain");
        let is_static = seed.one_in(3);
        if is_static {
            script.deeds.push((start, Deed::Volumes(0, 6, policy, nodes)));
        }
        let moods = [Mood::Any, Mood::Any, Mood::Restless, Mood::Rolling];
        let drawn = moods.get(seed.index(moods.len())).copied().unwrap_or(Mood::Any);
        let mood = if is_restless { Mood::Restless } else { drawn };
        // Pods without claims may move to other nodes.
        let without = if mood == Mood::Restless { 4 } else { 2 };
        let sets = if seed.one_in(3) { 2 } else { 1 };
        for index in 0..sets {
            let wanted = Wanted {
                name: ["web", "db"].get(index).copied().unwrap_or("web").to_owned(),
                replicas: seed.between(1, 4),
                image: "app:1".to_owned(),
                is_parallel: seed.one_in(4),
                claims: match seed.index(without + 6) {
                    of if of < without => None,
                    of if of < without + 2 && !is_static => Some("ReadWriteOncePod"),
                    _ => Some("ReadWriteOnce"),
                },
                is_static,
                deletes: (seed.one_in(3), seed.one_in(3)),
                tolerates: None,
            };
            script.one_set(wanted, mood, seed, start, length);
        }
        if seed.one_in(3) {
            script.deployments(seed, start, length);
        }
        script.deeds.sort_by_key(|(at, _)| *at);
        // Volumes that were retained are nobody's for ever: in the end there are enough for all.
        if is_static {
            script.last.push(Deed::Volumes(100, 24, policy, nodes));
        }
        script
    }

    /// A set whose pods could live anywhere and tolerate a silent node for seconds, and a user who deletes one of them
    /// now and then, wherever it is.
    pub fn of_movers(start: Timestamp, seconds: i64) -> Self {
        let web = Wanted {
            name: "web".to_owned(),
            replicas: 3,
            image: "app:1".to_owned(),
            is_parallel: true,
            claims: None,
            is_static: false,
            deletes: (false, false),
            tolerates: Some(5),
        };
        let at = |seconds| start.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(start);
        let deletions = (20..seconds)
            .step_by(15)
            .map(|second| (at(second), Deed::Delete(kinds::POD.clone(), format!("web-{}", second / 15 % 3), None)));
        Self {
            deeds: [(at(0), Deed::Apply(web.clone()))].into_iter().chain(deletions).collect(),
            last: vec![Deed::Apply(web)],
        }
    }

    /// A set with volumes of its nodes, and a user who begins with fresh ones now and then, and in the end.
    pub fn of_twins(number: u64, start: Timestamp, seconds: i64) -> Self {
        let web = Wanted {
            name: "web".to_owned(),
            replicas: 4,
            image: "app:1".to_owned(),
            is_parallel: true,
            claims: Some("ReadWriteOnce"),
            is_static: false,
            deletes: (false, false),
            tolerates: None,
        };
        let (mut seed, mut script) = (Seed::new(number ^ 0x7717), Self::default());
        let at = |seconds| start.saturating_add(SignedDuration::from_secs(seconds)).unwrap_or(start);
        script.deeds.push((start, Deed::Apply(web.clone())));
        for second in (15..seconds).step_by(9) {
            script.begin_anew("web", seed.between(0, 3), at(second + seed.between(0, 8)));
        }
        script.deeds.sort_by_key(|(at, _)| *at);
        script.last.push(Deed::Apply(web));
        for ordinal in 0..4 {
            let claim = format!("data-web-{ordinal}");
            script.last.push(Deed::Delete(kinds::PERSISTENT_VOLUME_CLAIM.clone(), claim, None));
            script.last.push(Deed::Force(format!("web-{ordinal}")));
        }
        script
    }

    /// A Deployment, and another one in a namespace that goes with all that is in it.
    fn deployments(&mut self, seed: &mut Seed, start: Timestamp, length: SignedDuration) {
        let moment = |seed: &mut Seed| {
            let offset =
                SignedDuration::from_millis(seed.between(1000, i64::try_from(length.as_millis()).unwrap_or(1001)));
            start.saturating_add(offset).unwrap_or(start)
        };
        for number in 0..seed.between(2, 7) {
            let at = moment(seed);
            let namespace = if seed.one_in(2) { NAMESPACE } else { PASSING };
            let deed = match seed.below(5) {
                0 => Deed::Delete(kinds::NAMESPACE.clone(), PASSING.to_owned(), None),
                1 => Deed::Deploy(namespace, 1, "bad:1".to_owned()),
                _ => Deed::Deploy(namespace, seed.between(0, 4), format!("app:{number}")),
            };
            self.deeds.push((at, deed));
        }
        self.last.push(Deed::Deploy(NAMESPACE, seed.between(1, 4), "app:98".to_owned()));
        self.last.push(Deed::Delete(kinds::NAMESPACE.clone(), PASSING.to_owned(), None));
    }

    /// Somebody looks into a pod's volume with a pod of their own for a while; meanwhile the pod and its claim are to
    /// begin anew.
    fn guest(&mut self, name: &str, seed: &mut Seed, start: Timestamp, length: SignedDuration) {
        let half = i64::try_from(length.as_millis()).unwrap_or(2) / 2;
        let at = |milliseconds| start.saturating_add(SignedDuration::from_millis(milliseconds)).unwrap_or(start);
        let (comes, stays) = (seed.between(3000, half.max(3001)), seed.between(3000, half.max(3001)));
        let (ordinal, gone) = (seed.between(0, 2), Deed::Delete(kinds::POD.clone(), format!("{name}-guest"), None));
        self.deeds.push((at(comes), Deed::Guest(name.to_owned(), ordinal)));
        self.begin_anew(name, ordinal, at(comes + stays / 2));
        self.deeds.push((at(comes + stays), gone.clone()));
        self.last.push(gone);
        for _ in 0..2 {
            self.begin_anew(name, seed.between(0, 3), at(seed.between(3000, 2 * half.max(3001))));
        }
    }

    /// As somebody does who wants a pod without its data: claim and pod at once, by force.
    fn begin_anew(&mut self, name: &str, ordinal: i64, at: Timestamp) {
        let claim = format!("data-{name}-{ordinal}");
        self.deeds.push((at, Deed::Delete(kinds::PERSISTENT_VOLUME_CLAIM.clone(), claim, None)));
        self.deeds.push((at, Deed::Force(format!("{name}-{ordinal}"))));
    }

    /// A stranger goes and comes back under its name, twice in a moment, while decisions about it are under way (A8).
    fn strangers(&mut self, name: &str, seed: &mut Seed, start: Timestamp, length: SignedDuration) {
        self.deeds.push((start, Deed::Stranger(name.to_owned())));
        for _ in 0..2 {
            let offset = seed.between(3000, i64::try_from(length.as_millis()).unwrap_or(3001));
            let at = start.saturating_add(SignedDuration::from_millis(offset)).unwrap_or(start);
            for _ in 0..2 {
                self.deeds.push((at, Deed::Force(format!("{name}-stranger"))));
                self.deeds.push((at, Deed::Stranger(name.to_owned())));
            }
        }
    }

    fn one_set(&mut self, mut wanted: Wanted, mood: Mood, seed: &mut Seed, start: Timestamp, length: SignedDuration) {
        self.deeds.push((start, Deed::Apply(wanted.clone())));
        let name = wanted.name.clone();
        self.strangers(&name, seed, start, length);
        if wanted.claims.is_some() {
            self.guest(&name, seed, start, length);
        }
        // Volumes that are emptied and given to others while what had them may still run (V3).
        for _ in 0..if wanted.is_static { 6 } else { 0 } {
            let offset = seed.between(3000, i64::try_from(length.as_millis()).unwrap_or(3001));
            let at = start.saturating_add(SignedDuration::from_millis(offset)).unwrap_or(start);
            self.begin_anew(&name, seed.between(0, 3), at);
        }
        if mood == Mood::Rolling && seed.one_in(3) {
            let soon = start.saturating_add(SignedDuration::from_secs(5)).unwrap_or(start);
            let strategy = json!({ "type": "OnDelete", "rollingUpdate": null });
            self.deeds.push((soon, Deed::Change(name.clone(), json!({ "updateStrategy": strategy }))));
        }
        for number in 0..mood.deeds(seed) {
            let offset =
                SignedDuration::from_millis(seed.between(3000, i64::try_from(length.as_millis()).unwrap_or(3001)));
            let at = start.saturating_add(offset).unwrap_or(start);
            let ordinal = seed.between(0, 4);
            let deed = match mood.deed(seed) {
                13..=16 => {
                    let fields = fields(seed);
                    if fields["updateStrategy"]["type"] == "OnDelete" {
                        // Which shows only when there is something to update to.
                        let later = at.saturating_add(SignedDuration::from_secs(10)).unwrap_or(at);
                        self.deeds.push((later, Deed::Image(name.clone(), format!("app:{number}"))));
                    }
                    Deed::Change(name.clone(), fields)
                }
                0..=2 => Deed::Delete(kinds::POD.clone(), format!("{name}-{ordinal}"), None),
                3 => Deed::Delete(kinds::PERSISTENT_VOLUME_CLAIM.clone(), format!("data-{name}-{ordinal}"), None),
                4 | 5 => Deed::Scale(name.clone(), seed.between(0, 5)),
                6 => Deed::Image(
                    name.clone(),
                    format!("{}:{number}", ["bad", "crash"].get(seed.index(2)).unwrap_or(&"bad")),
                ),
                7 => Deed::Image(name.clone(), format!("app:{number}")),
                8 => Deed::Partition(name.clone(), seed.between(0, 3)),
                9 => Deed::Force(format!("{name}-{ordinal}")),
                10 if wanted.is_static => {
                    Deed::Delete(kinds::PERSISTENT_VOLUME.clone(), format!("{STATIC}-{ordinal}"), None)
                }
                10 => Deed::Delete(kinds::PERSISTENT_VOLUME_CLAIM.clone(), format!("data-{name}-{ordinal}"), None),
                11 => {
                    self.begin_anew(&name, ordinal, at);
                    continue;
                }
                _ => {
                    let policy = ["Background", "Foreground", "Orphan"].get(seed.index(3)).copied();
                    self.deeds.push((at, Deed::Delete(kinds::STATEFUL_SET.clone(), name.clone(), policy)));
                    Deed::Apply(wanted.clone())
                }
            };
            self.deeds.push((at, deed));
        }
        wanted.replicas = seed.between(1, 4);
        wanted.image = "app:99".to_owned();
        self.last.push(Deed::Apply(wanted.clone()));
        self.last.push(Deed::Partition(name, 0));
    }
}

/// What a user may set of a StatefulSet at any time.
fn fields(seed: &mut Seed) -> Value {
    let word = |seed: &mut Seed| if seed.one_in(2) { "Delete" } else { "Retain" };
    match seed.below(7) {
        0 | 1 => json!({ "minReadySeconds": seed.between(0, 6) }),
        2 => json!({ "updateStrategy": { "type": "OnDelete", "rollingUpdate": null } }),
        3 => {
            let rolling = json!({ "maxUnavailable": seed.between(1, 4), "partition": seed.between(0, 3) });
            json!({ "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": rolling } })
        }
        4 => {
            json!({ "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": {
                "partition": seed.between(0, 3) } } })
        }
        5 => json!({ "ordinals": { "start": seed.between(0, 3) } }),
        _ => json!({ "persistentVolumeClaimRetentionPolicy": { "whenDeleted": word(seed), "whenScaled": word(seed) } }),
    }
}

impl Deed {
    /// Does it. An error of the server's own (5xx) means: again later. That the thing is not there is no error.
    pub fn perform(&self, server: &mut Server) -> Result<(), Status> {
        let result = match self {
            Self::Apply(wanted) => apply(server, wanted),
            Self::Scale(name, replicas) => change(server, name, &json!({ "spec": { "replicas": replicas } })),
            Self::Image(name, image) => change(server, name, &json!({ "spec": { "template": template(name, image) } })),
            Self::Partition(name, partition) => {
                let strategy = json!({ "type": "RollingUpdate", "rollingUpdate": { "partition": partition } });
                change(server, name, &json!({ "spec": { "updateStrategy": strategy } }))
            }
            Self::Change(name, spec) => change(server, name, &json!({ "spec": spec })),
            Self::Delete(kind, name, policy) => {
                let options = DeleteOptions { propagation: policy.map(str::to_owned), ..DeleteOptions::default() };
                let namespace = if kind.namespaced { NAMESPACE } else { "" };
                server.write(|batch| api::delete(batch, kind, namespace, name, &options)).map(|_| ())
            }
            Self::Force(name) => {
                let options = DeleteOptions { grace: Some(0), ..DeleteOptions::default() };
                server.write(|batch| api::delete(batch, &kinds::POD, NAMESPACE, name, &options)).map(|_| ())
            }
            Self::Volumes(first, count, policy, nodes) => {
                (*first..first + count).try_for_each(|number| make_volume(server, number, policy, number % nodes))
            }
            Self::Deploy(namespace, replicas, image) => deploy(server, namespace, *replicas, image),
            Self::Stranger(name) => {
                let mut pod = template(name, "app:1");
                pod["metadata"]["name"] = json!(format!("{name}-stranger"));
                server.write(|batch| api::create(batch, &kinds::POD, NAMESPACE, pod.clone())).map(|_| ())
            }
            Self::Guest(name, ordinal) => {
                let mut pod = template(&format!("{name}-guest"), "app:1");
                pod["metadata"]["name"] = json!(format!("{name}-guest"));
                let claim = json!({ "claimName": format!("data-{name}-{ordinal}") });
                pod["spec"]["volumes"] = json!([{ "name": "data", "persistentVolumeClaim": claim }]);
                pod["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "data", "mountPath": "/data" }]);
                server.write(|batch| api::create(batch, &kinds::POD, NAMESPACE, pod.clone())).map(|_| ())
            }
        };
        match result {
            // A pod before its service account: the user tries again.
            Err(status)
                if status.code >= 500
                    || (status.code == 403 && matches!(self, Self::Stranger(_) | Self::Guest(..))) =>
            {
                Err(status)
            }
            _ => Ok(()),
        }
    }
}

fn read(server: &Server, namespace: &str, kind: &Kind, name: &str) -> Option<Value> {
    let entry = server.up.as_ref()?.api.store.get(&key::object(kind, namespace, name))?;
    serde_json::from_slice(&entry.value).ok()
}

fn change(server: &mut Server, name: &str, patch: &Value) -> Result<(), Status> {
    server
        .write(|batch| {
            let change = |old: &Value| {
                let mut new = old.clone();
                api::merge_patch(&mut new, patch.clone());
                Ok(new)
            };
            api::patch(batch, &kinds::STATEFUL_SET, NAMESPACE, name, Part::Main, &change)
        })
        .map(|_| ())
}

/// A folder of one node's.
fn make_volume(server: &mut Server, number: u64, policy: &str, node: u64) -> Result<(), Status> {
    let rule = json!({ "key": "kubernetes.io/hostname", "operator": "In", "values": [format!("n{node}")] });
    let volume = json!({ "metadata": { "name": format!("{STATIC}-{number}") }, "spec": {
        "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteOnce"], "storageClassName": STATIC,
        "persistentVolumeReclaimPolicy": policy, "hostPath": { "path": format!("/exports/data-{number}") },
        "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [rule] }] } },
    } });
    match server.write(|batch| api::create(batch, &kinds::PERSISTENT_VOLUME, "", volume.clone())) {
        // Made before the server died of it.
        Err(status) if status.code == 409 => Ok(()),
        made => made.map(|_| ()),
    }
}

fn deploy(server: &mut Server, namespace: &str, replicas: i64, image: &str) -> Result<(), Status> {
    match read(server, "", &kinds::NAMESPACE, namespace) {
        Some(old) if object::is_terminating(&old) => {
            return Err(Status::unavailable("the old namespace is still there"));
        }
        Some(_) => {}
        None => {
            let made = json!({ "metadata": { "name": namespace } });
            server.write(|batch| api::create(batch, &kinds::NAMESPACE, "", made.clone()))?;
        }
    }
    let spec = json!({ "replicas": replicas, "selector": { "matchLabels": { "app": "shop" } },
        "template": template("shop", image) });
    if read(server, namespace, &kinds::DEPLOYMENT, "shop").is_none() {
        let made = json!({ "metadata": { "name": "shop" }, "spec": spec });
        return server.write(|batch| api::create(batch, &kinds::DEPLOYMENT, namespace, made.clone())).map(|_| ());
    }
    let change = |old: &Value| {
        let mut new = old.clone();
        api::merge_patch(&mut new, json!({ "spec": spec }));
        Ok(new)
    };
    server.write(|batch| api::patch(batch, &kinds::DEPLOYMENT, namespace, "shop", Part::Main, &change)).map(|_| ())
}

fn apply(server: &mut Server, wanted: &Wanted) -> Result<(), Status> {
    let name = &wanted.name;
    if wanted.is_static && read(server, "", &kinds::STORAGE_CLASS, STATIC).is_none() {
        let class = json!({ "metadata": { "name": STATIC }, "provisioner": "kubernetes.io/no-provisioner" });
        server.write(|batch| api::create(batch, &kinds::STORAGE_CLASS, "", class.clone()))?;
    }
    serve(server, name, name, &json!({ "clusterIP": "None" }))?;
    serve(server, &format!("{name}-any"), name, &json!({}))?;
    match read(server, NAMESPACE, &kinds::STATEFUL_SET, name) {
        None => {
            let made = set(wanted);
            server.write(|batch| api::create(batch, &kinds::STATEFUL_SET, NAMESPACE, made.clone())).map(|_| ())
        }
        Some(old) if object::is_terminating(&old) => Err(Status::unavailable("the old set is still there")),
        Some(_) => change(
            server,
            name,
            &json!({ "spec": { "replicas": wanted.replicas, "template": template(name, &wanted.image) } }),
        ),
    }
}

/// A Service for the pods of an app, unless it is there.
fn serve(server: &mut Server, name: &str, app: &str, more: &Value) -> Result<(), Status> {
    let mut service =
        json!({ "metadata": { "name": name }, "spec": { "selector": { "app": app }, "ports": [{ "port": 80 }] } });
    object::merge(&mut service["spec"], more.clone());
    if read(server, NAMESPACE, &kinds::SERVICE, name).is_none() {
        server.write(|batch| api::create(batch, &kinds::SERVICE, NAMESPACE, service.clone()))?;
    }
    Ok(())
}

fn template(name: &str, image: &str) -> Value {
    json!({
        "metadata": { "labels": { "app": name } },
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "containers": [{ "name": "app", "image": image, "readinessProbe": { "exec": { "command": ["true"] },
                "periodSeconds": 1 } }],
        },
    })
}

fn set(wanted: &Wanted) -> Value {
    let word = |delete| if delete { "Delete" } else { "Retain" };
    let mut set = json!({
        "metadata": { "name": wanted.name },
        "spec": {
            "replicas": wanted.replicas, "serviceName": wanted.name,
            "selector": { "matchLabels": { "app": wanted.name } },
            "podManagementPolicy": if wanted.is_parallel { "Parallel" } else { "OrderedReady" },
            "persistentVolumeClaimRetentionPolicy": { "whenDeleted": word(wanted.deletes.0),
                "whenScaled": word(wanted.deletes.1) },
            "template": template(&wanted.name, &wanted.image),
        },
    });
    if let Some(seconds) = wanted.tolerates {
        let toleration = |key: &str| {
            json!({ "key": format!("node.kubernetes.io/{key}"), "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": seconds })
        };
        set["spec"]["template"]["spec"]["tolerations"] = json!([toleration("unreachable"), toleration("not-ready")]);
    }
    if let Some(mode) = wanted.claims {
        set["spec"]["volumeClaimTemplates"] = json!([{
            "metadata": { "name": "data" },
            "spec": { "accessModes": [mode], "resources": { "requests": { "storage": "1Gi" } } },
        }]);
        if wanted.is_static {
            set["spec"]["volumeClaimTemplates"][0]["spec"]["storageClassName"] = json!(STATIC);
        }
        set["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] =
            json!([{ "name": "data", "mountPath": "/data" }]);
    }
    set
}

/// One thing that breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The server dies now; with its machine's power, or alone.
    ServerDies { power: bool },
    /// The server dies after so many further commits, before whoever wrote has an answer.
    ServerDiesAfter(u64),
    /// A call to the server's disk, so many calls ahead, fails, is torn, or is where the power goes.
    Disk(u64, mainstay_store::testing::Fault),
    /// The server's disk is full for a while (milliseconds).
    DiskFull(i64),
    /// The controllers do not get their turn for a while.
    DriverStalls(i64),
    /// The controllers' watch ends: they list again.
    DriverRelists,
    /// An agent dies and comes back.
    AgentRestarts(usize),
    /// A node does not reach the server for a while.
    NodeCutOff(usize, i64),
    /// What a node sends arrives for a while, and no answer does.
    NodeDeaf(usize, i64),
    /// An agent does nothing for a while.
    NodeStalls(usize, i64),
    /// A container ends by itself.
    ContainerCrashes(usize),
    /// A machine starts anew.
    NodeReboots(usize),
    /// A machine has no power for a while.
    NodeLosesPower(usize, i64),
    /// As before; and a user, who knows it, takes the Node away.
    NodeIsLost(usize, i64),
    /// As before; and another machine joins under that name, or has a copy of its data folder.
    NodeIsReplaced(i64),
}

impl Fault {
    /// What breaks next.
    pub fn random(seed: &mut Seed, nodes: usize) -> Self {
        use mainstay_store::testing::Fault as DiskFault;
        let node = seed.index(nodes);
        match seed.below(24) {
            0 | 1 => Self::ServerDies { power: seed.one_in(2) },
            2..=6 => Self::ServerDiesAfter(seed.below(12)),
            7 | 8 => {
                let kinds = [DiskFault::Error, DiskFault::Torn, DiskFault::Full, DiskFault::PowerCut];
                Self::Disk(seed.below(12), kinds.get(seed.index(4)).copied().unwrap_or(DiskFault::Error))
            }
            9 => Self::DiskFull(seed.between(100, 4000)),
            10 | 11 => Self::DriverStalls(seed.between(100, 5000)),
            12 => Self::DriverRelists,
            13 | 14 => Self::AgentRestarts(node),
            15 | 16 => Self::NodeCutOff(node, seed.between(500, 90_000)),
            17 => Self::NodeStalls(node, seed.between(100, 8000)),
            18..=20 => Self::ContainerCrashes(node),
            21 => Self::NodeReboots(node),
            22 => Self::NodeLosesPower(node, seed.between(1000, 120_000)),
            _ => Self::NodeIsLost(node, seed.between(60_000, 200_000)),
        }
    }
}

impl Fault {
    /// What breaks next where nodes fall silent, one after the other, for longer than their pods tolerate it.
    pub fn silence(seed: &mut Seed, nodes: usize) -> Self {
        let (node, long) = (seed.index(nodes), seed.between(20_000, 150_000));
        match seed.below(12) {
            0..=2 => Self::NodeCutOff(node, long),
            3 | 4 => Self::NodeDeaf(node, long),
            5 | 6 => Self::NodeStalls(node, long),
            7 => Self::AgentRestarts(node),
            8 | 9 => Self::ContainerCrashes(node),
            10 => Self::NodeLosesPower(node, long),
            _ => Self::ServerDies { power: seed.one_in(2) },
        }
    }
}

impl Fault {
    /// What breaks next where another machine takes a node's name.
    pub fn replacement(seed: &mut Seed, nodes: usize) -> Self {
        let node = seed.index(nodes);
        match seed.below(8) {
            0..=3 => Self::NodeIsReplaced(seed.between(10_000, 60_000)),
            4 => Self::AgentRestarts(node),
            5 => Self::NodeCutOff(node, seed.between(500, 30_000)),
            6 => Self::NodeStalls(node, seed.between(100, 8000)),
            _ => Self::ServerDies { power: seed.one_in(2) },
        }
    }
}

/// The Node object of a machine that a user gives up.
pub fn forget_node(server: &mut Server, name: &str) -> Result<(), Status> {
    let at = ObjectKey::new("", name);
    server.write(|batch| api::delete(batch, &kinds::NODE, "", &at.name, &DeleteOptions::default())).map(|_| ())
}
