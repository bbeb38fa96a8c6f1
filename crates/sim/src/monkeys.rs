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
    /// `whenDeleted` and `whenScaled` are Delete.
    pub deletes: (bool, bool),
}

/// One thing that a user does.
#[derive(Clone, Debug)]
pub enum Deed {
    /// Makes the set, or brings it to this.
    Apply(Wanted),
    Scale(String, i64),
    Image(String, String),
    Partition(String, i64),
    Delete(&'static Kind, String, Option<&'static str>),
    /// A pod that looks like one of the set's and is nobody's (S10).
    Stranger(String),
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
    /// A script for a storm of that length.
    pub fn random(seed: &mut Seed, start: Timestamp, length: SignedDuration) -> Self {
        let mut script = Self::default();
        let sets = if seed.one_in(3) { 2 } else { 1 };
        for place in 0..sets {
            let wanted = Wanted {
                name: ["web", "db"].get(place).copied().unwrap_or("web").to_owned(),
                replicas: seed.between(1, 4),
                image: "app:1".to_owned(),
                is_parallel: seed.one_in(4),
                claims: [None, Some("ReadWriteOnce"), Some("ReadWriteOnce"), Some("ReadWriteOncePod")]
                    .get(seed.index(4))
                    .copied()
                    .flatten(),
                deletes: (seed.one_in(3), seed.one_in(3)),
            };
            script.one_set(wanted, seed, start, length);
        }
        script.deeds.sort_by_key(|(at, _)| *at);
        script
    }

    fn one_set(&mut self, mut wanted: Wanted, seed: &mut Seed, start: Timestamp, length: SignedDuration) {
        self.deeds.push((start, Deed::Apply(wanted.clone())));
        self.deeds.push((start, Deed::Stranger(wanted.name.clone())));
        let name = wanted.name.clone();
        for number in 0..seed.between(3, 9) {
            let offset = SignedDuration::from_millis(seed.between(3000, i64::try_from(length.as_millis()).unwrap_or(3001)));
            let at = start.saturating_add(offset).unwrap_or(start);
            let ordinal = seed.between(0, 4);
            let deed = match seed.below(10) {
                0..=2 => Deed::Delete(&kinds::POD, format!("{name}-{ordinal}"), None),
                3 => Deed::Delete(&kinds::PERSISTENT_VOLUME_CLAIM, format!("data-{name}-{ordinal}"), None),
                4 | 5 => Deed::Scale(name.clone(), seed.between(0, 5)),
                6 => Deed::Image(name.clone(), format!("{}:{number}", ["bad", "crash"].get(seed.index(2)).unwrap_or(&"bad"))),
                7 => Deed::Image(name.clone(), format!("app:{number}")),
                8 => Deed::Partition(name.clone(), seed.between(0, 3)),
                _ => {
                    let policy = ["Background", "Foreground", "Orphan"].get(seed.index(3)).copied();
                    self.deeds.push((at, Deed::Delete(&kinds::STATEFUL_SET, name.clone(), policy)));
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
            Self::Delete(kind, name, policy) => {
                let options = DeleteOptions { propagation: policy.map(str::to_owned), ..DeleteOptions::default() };
                server.write(|batch| api::delete(batch, kind, NAMESPACE, name, &options)).map(|_| ())
            }
            Self::Stranger(name) => {
                let mut pod = template(name, "app:1");
                pod["metadata"]["name"] = json!(format!("{name}-stranger"));
                server.write(|batch| api::create(batch, &kinds::POD, NAMESPACE, pod.clone())).map(|_| ())
            }
        };
        match result {
            // A pod before its service account: the user tries again.
            Err(status) if status.code >= 500 || (status.code == 403 && matches!(self, Self::Stranger(_))) => Err(status),
            _ => Ok(()),
        }
    }
}

fn read(server: &Server, kind: &Kind, name: &str) -> Option<Value> {
    let entry = server.up.as_ref()?.api.store.get(&key::object(kind, NAMESPACE, name))?;
    serde_json::from_slice(&entry.value).ok()
}

fn change(server: &mut Server, name: &str, patch: &Value) -> Result<(), Status> {
    server
        .write(|batch| {
            let change = |old: &Value| {
                let mut new = old.clone();
                api::merge_patch(&mut new, patch);
                Ok(new)
            };
            api::patch(batch, &kinds::STATEFUL_SET, NAMESPACE, name, Part::Main, &change)
        })
        .map(|_| ())
}

fn apply(server: &mut Server, wanted: &Wanted) -> Result<(), Status> {
    let name = &wanted.name;
    let service = json!({ "metadata": { "name": name }, "spec": {
        "clusterIP": "None", "selector": { "app": name }, "ports": [{ "port": 80 }],
    } });
    if read(server, &kinds::SERVICE, name).is_none() {
        server.write(|batch| api::create(batch, &kinds::SERVICE, NAMESPACE, service.clone()))?;
    }
    match read(server, &kinds::STATEFUL_SET, name) {
        None => {
            let made = set(wanted);
            server.write(|batch| api::create(batch, &kinds::STATEFUL_SET, NAMESPACE, made.clone())).map(|_| ())
        }
        Some(old) if object::is_terminating(&old) => Err(Status::unavailable("the old set is still there")),
        Some(_) => change(server, name, &json!({ "spec": { "replicas": wanted.replicas, "template": template(name, &wanted.image) } })),
    }
}

fn template(name: &str, image: &str) -> Value {
    json!({
        "metadata": { "labels": { "app": name } },
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "containers": [{ "name": "app", "image": image, "readinessProbe": { "exec": { "command": ["true"] }, "periodSeconds": 1 } }],
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
            "persistentVolumeClaimRetentionPolicy": { "whenDeleted": word(wanted.deletes.0), "whenScaled": word(wanted.deletes.1) },
            "template": template(&wanted.name, &wanted.image),
        },
    });
    if let Some(mode) = wanted.claims {
        set["spec"]["volumeClaimTemplates"] = json!([{
            "metadata": { "name": "data" },
            "spec": { "accessModes": [mode], "resources": { "requests": { "storage": "1Gi" } } },
        }]);
        set["spec"]["template"]["spec"]["containers"][0]["volumeMounts"] = json!([{ "name": "data", "mountPath": "/data" }]);
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

/// The Node object of a machine that a user gives up.
pub fn forget_node(server: &mut Server, name: &str) -> Result<(), Status> {
    let at = ObjectKey::new("", name);
    server.write(|batch| api::delete(batch, &kinds::NODE, "", &at.name, &DeleteOptions::default())).map(|_| ())
}
