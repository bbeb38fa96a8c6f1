//! Where volumes are tried: a real API server with its controllers, a node's agents, an NFS server, and real mounts, in
//! namespaces of their own.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use mainstay_api::{Kind, kinds};
use mainstay_client::{Client, Config, Informer, ListOptions, Notice, PatchType};
use mainstay_nfs::server as nfs;
use mainstay_node::NodeConfig;
use mainstay_node::kubelet::disk::Disk;
use mainstay_node::kubelet::environment::Dependencies;
use mainstay_node::kubelet::events::Events;
use mainstay_node::kubelet::objects::Objects;
use mainstay_node::kubelet::{Kubelet, PodContext, files, spec};
use mainstay_node::network::{Between, Cidr, Network, NetworkConfig};
use mainstay_node::volumes::{Record, VolumeError, Volumes};
use mainstay_runtime::safe_path::mounts;
use mainstay_runtime::{ContainerState, Runtime, RuntimeConfig};
use mainstay_tasks::Health;
use serde_json::{Value, json};

use crate::support::{World, supervisor};
use crate::{Kind as Driver, Source};

/// Nothing here takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
pub const NODE: &str = "node-1";

/// What the agent of a node is made with; a victim of kill -9 gets it by its environment.
pub struct Agent {
    pub dir: PathBuf,
    pub kubeconfig: PathBuf,
    pub cgroup_root: String,
}

impl Agent {
    /// An agent that has just started, without its loops.
    pub fn start(&self) -> Arc<Kubelet> {
        let client = Client::new(Config::read(&self.kubeconfig).unwrap()).unwrap();
        let images = mainstay_runtime::images::ImageStore::open(&self.dir.join("images")).unwrap();
        let runtime = Runtime::open(RuntimeConfig {
            root: self.dir.join("containers"),
            cgroup_root: self.cgroup_root.clone(),
            shim_exe: supervisor(),
            images: images.clone(),
        });
        let range = |text| Cidr::parse(text).unwrap();
        let network = Network::open(NetworkConfig {
            folder: self.dir.join("network"),
            machine: "m".to_owned(),
            pod_cidr: range("10.244.0.0/24"),
            cluster_cidr: range("10.244.0.0/16"),
            service_cidr: range("10.96.0.0/16"),
            dns_address: [10, 96, 0, 10].into(),
            node_address: [127, 0, 0, 1].into(),
            between: Between::Routes,
        });
        let identity = client.config().identity.clone().unwrap();
        let serving = mainstay_client::Rotating::new(&identity.0, &identity.1).unwrap();
        let config = NodeConfig {
            client: client.clone(),
            data_dir: self.dir.clone(),
            node_name: NODE.into(),
            node_ip: [127, 0, 0, 1].into(),
            pod_cidr: "10.244.0.0/24".into(),
            cluster_cidr: "10.244.0.0/16".into(),
            service_cidr: "10.96.0.0/16".into(),
            between: Between::Routes,
            cluster_dns: [10, 96, 0, 10].into(),
            cluster_domain: "cluster.local".into(),
            cgroup_root: self.cgroup_root.clone(),
            store: Vec::new(),
            shim_exe: supervisor(),
            seccomp_default: true,
            allowed_unsafe_sysctls: Vec::new(),
            eviction: Default::default(),
            host_resolv_conf: "/etc/resolv.conf".into(),
            streaming_port: 0,
            serving,
            client_ca_pem: String::new(),
            machine: String::new(),
            take_over: String::new(),
            fencing: Default::default(),
            lease_seconds: 40,
        };
        Arc::new(Kubelet {
            runtime: runtime.unwrap(),
            images,
            network: Arc::new(network.unwrap()),
            volumes: Volumes::new(&self.dir),
            objects: Objects::start(client.clone(), Health::default()),
            disk: Disk::new(&self.dir),
            events: Events::start(client.clone(), NODE.into(), Health::default()),
            pods: Default::default(),
            hold: mainstay_node::kubelet::lease::Hold::undisputed(),
            deadlines: Default::default(),
            abilities: Default::default(),
            node: Default::default(),
            heartbeat: client,
            pressure: Default::default(),
            probed: Default::default(),
            reserved: mainstay_node::network::guard::Reserved::new(Default::default()),
            status_due: Default::default(),
            health: Health::default(),
            config,
        })
    }
}

/// Makes all of a pod's volumes ready.
pub async fn mount(kubelet: &Kubelet, context: &PodContext) -> Result<Record, VolumeError> {
    for volume in context.spec().unwrap().volumes.iter().flatten() {
        kubelet.volumes.ensure(kubelet, context, volume, &mut Dependencies::new()).await?;
    }
    kubelet.volumes.mounted(&context.uid, "v")
}

/// A volume of some kind.
pub struct Instance {
    pub number: u32,
    /// As a pod's spec has it, without its name.
    pub volume: Value,
    /// A folder of the machine's that the volume may be of.
    pub dir: PathBuf,
    pub claim: Option<String>,
}

pub struct Testbed {
    pub world: World,
    pub admin: Client,
    pub agent: Agent,
    /// Everything that volumes come from and must not reach beyond.
    pub outside: PathBuf,
    _server: mainstay_server::Running,
    next: Cell<u32>,
}

impl Testbed {
    pub fn new(name: &str) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let world = World::new(name);
        assert!(std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        let (outside, dir) = (world.dir.join("outside"), world.dir.clone());
        fs::create_dir(&outside).unwrap();
        let exports = vec![format!("{}:no_root_squash", outside.display()).parse().unwrap()];
        let config = nfs::ServerConfig {
            exports,
            listen: ([127, 0, 0, 1], 2049).into(),
            portmapper: true,
            state_dir: dir.join("nfs"),
        };
        let listening = nfs::listen(&config).unwrap();
        // It ends with the process.
        std::thread::spawn(move || listening.serve());
        let server = world.block_on(mainstay_server::start(mainstay_server::ServerConfig {
            data_dir: dir.join("server"),
            listen: ([127, 0, 0, 1], 0).into(),
            advertise: None,
            service_cidr: "10.96.0.0/16".into(),
            cluster_cidr: "10.244.0.0/16".into(),
            cluster_domain: "cluster.local".into(),
            pod_network: "routes".into(),
            etcd: None,
            seal: None,
            node: Some(mainstay_server::LocalNode {
                name: NODE.into(),
                addresses: vec![[127, 0, 0, 1].into()],
                pods: None,
            }),
            cluster: mainstay_server::identity::Expected::default(),
            new_keys: false,
        }));
        let server = server.unwrap();
        let agent = Agent {
            dir,
            kubeconfig: server.node.as_ref().unwrap().path.clone(),
            cgroup_root: world.cgroup_root.clone(),
        };
        let admin = Client::new(Config::parse(server.admin.kubeconfig.as_bytes()).unwrap()).unwrap();
        let testbed = Self { world, admin, agent, outside, _server: server, next: Cell::new(0) };
        testbed.block_on(testbed.furnish());
        testbed
    }

    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.world.block_on(future)
    }

    /// The node, and what volumes are made of.
    async fn furnish(&self) {
        let node = json!({ "metadata": { "name": NODE, "labels": { "kubernetes.io/hostname": NODE },
            "annotations": { "mainstay.io/volume-root": self.agent.dir.join("volumes") } } });
        self.admin.create(&kinds::NODE, "", &node).await.unwrap();
        let ready = json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } });
        self.admin.patch(&kinds::NODE, "", NODE, "status", PatchType::Merge, &ready).await.unwrap();
        let settings = json!({ "metadata": { "name": "settings" }, "data": { "key": "given" } });
        self.admin.create(&kinds::find("", "v1", "configmaps").unwrap(), "default", &settings).await.unwrap();
        let secret = json!({ "metadata": { "name": "settings" }, "data": { "key": "Z2l2ZW4=" } });
        self.admin.create(&kinds::find("", "v1", "secrets").unwrap(), "default", &secret).await.unwrap();
        self.until(&kinds::find("", "v1", "serviceaccounts").unwrap(), "default", "default", |found| found.is_some())
            .await;
    }

    /// Waits until an object is as it should be; `None` is one that is not there.
    pub async fn until(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        holds: impl Fn(Option<&Value>) -> bool,
    ) -> Option<Value> {
        let options = ListOptions { field_selector: format!("metadata.name={name}"), ..ListOptions::default() };
        let mut informer = Informer::new(self.admin.clone(), kind, namespace, options);
        let mut last = None;
        let wait = async {
            let mut listed = false;
            loop {
                match informer.next().await {
                    Notice::Put(_, value) => last = Some(value),
                    Notice::Gone(..) => last = None,
                    Notice::Synced => listed = true,
                }
                if listed && holds(last.as_ref()) {
                    return;
                }
            }
        };
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            panic!("waited in vain for {} {name}: {last:#?}", kind.kind);
        }
        last
    }

    /// A volume of this kind that nobody has used, with its claim bound where it has one.
    pub async fn fresh(&self, driver: &Driver, policy: &str) -> Instance {
        let number = self.next.get();
        self.next.set(number + 1);
        let (name, dir) = (format!("c{number}"), self.outside.join(number.to_string()));
        fs::create_dir(&dir).unwrap();
        let source =
            |text: &str| -> Value { serde_json::from_str(&text.replace("DIR", dir.to_str().unwrap())).unwrap() };
        let claim = json!({ "claimName": name });
        let volume = match driver.source {
            Source::Pod(text) => source(text),
            Source::Volume(text) => {
                let mut spec = source(text);
                spec["capacity"] = json!({ "storage": "16Mi" });
                spec["accessModes"] = json!(["ReadWriteOnce"]);
                spec["storageClassName"] = json!(name);
                spec["persistentVolumeReclaimPolicy"] = json!(policy);
                if spec.get("local").is_some() {
                    let rule = json!({ "key": "kubernetes.io/hostname", "operator": "In", "values": [NODE] });
                    spec["nodeAffinity"] =
                        json!({ "required": { "nodeSelectorTerms": [{ "matchExpressions": [rule] }] } });
                }
                let volume = json!({ "metadata": { "name": format!("pv-{name}") }, "spec": spec });
                self.admin.create(&kinds::PERSISTENT_VOLUME, "", &volume).await.unwrap();
                self.claim(&name, &name).await;
                json!({ "persistentVolumeClaim": claim })
            }
            Source::Class(parameters) => {
                self.class(&name, parameters, policy).await;
                self.claim(&name, &name).await;
                json!({ "persistentVolumeClaim": claim })
            }
            Source::Ephemeral(parameters) => {
                self.class(&name, parameters, policy).await;
                let spec = json!({ "storageClassName": name, "accessModes": ["ReadWriteOnce"],
                    "resources": { "requests": { "storage": "16Mi" } } });
                json!({ "ephemeral": { "volumeClaimTemplate": { "spec": spec } } })
            }
        };
        let claim = volume.get("persistentVolumeClaim").map(|_| name);
        Instance { number, volume, dir, claim }
    }

    pub async fn class(&self, name: &str, parameters: &str, policy: &str) {
        let parameters: Value = serde_json::from_str(parameters).unwrap();
        let class = json!({ "metadata": { "name": name }, "provisioner": "mainstay.io/local-path",
            "volumeBindingMode": "Immediate",
            "reclaimPolicy": policy, "parameters": parameters });
        self.admin.create(&kinds::find("storage.k8s.io", "v1", "storageclasses").unwrap(), "", &class).await.unwrap();
    }

    /// A claim of a class, bound.
    pub async fn claim(&self, name: &str, class: &str) -> Value {
        let claim = json!({ "metadata": { "name": name }, "spec": { "storageClassName": class,
            "accessModes": ["ReadWriteOnce"],
            "resources": { "requests": { "storage": "16Mi" } } } });
        self.admin.create(&kinds::PERSISTENT_VOLUME_CLAIM, "default", &claim).await.unwrap();
        self.bound(name).await
    }

    pub async fn bound(&self, claim: &str) -> Value {
        let is_bound = |claim: Option<&Value>| claim.is_some_and(|claim| claim["status"]["phase"] == "Bound");
        self.until(&kinds::PERSISTENT_VOLUME_CLAIM, "default", claim, is_bound).await.unwrap()
    }

    /// A pod that has the volume, bound to the node by the API and run by nobody.
    pub async fn pod(&self, instance: &Instance, change: Value) -> PodContext {
        let number = self.next.get();
        self.next.set(number + 1);
        let mut volume = instance.volume.clone();
        volume["name"] = json!("v");
        let mut pod = json!({
            "metadata": { "name": format!("p{number}"), "namespace": "default", "labels": { "given": "given" } },
            "spec": {
                "nodeName": NODE, "hostNetwork": true, "terminationGracePeriodSeconds": 0,
                    "automountServiceAccountToken": false,
                "containers": [{ "name": "main", "image": "busybox:test",
                    "volumeMounts": [{ "name": "v", "mountPath": "/v" }] }],
                "volumes": [volume],
            },
        });
        merge(&mut pod, change);
        let made = self.admin.create(&kinds::POD, "default", &pod).await.unwrap();
        if instance.volume.get("ephemeral").is_some() {
            self.bound(&format!("p{number}-v")).await;
        }
        PodContext::new(&serde_json::from_value::<Pod>(made).unwrap())
    }

    /// The pod leaves the API at once.
    pub async fn forget(&self, context: &PodContext) {
        self.admin.delete(&kinds::POD, "default", &context.name, &json!({ "gracePeriodSeconds": 0 })).await.unwrap();
    }

    /// Runs a script in a container as the kubelet would; its exit code and what it said.
    pub async fn container(
        &self,
        kubelet: &Kubelet,
        context: &PodContext,
        script: &str,
    ) -> Result<(i32, String), String> {
        let image = self.world.busybox.as_str();
        files::write(kubelet, context, None).map_err(|error| error.to_string())?;
        kubelet.runtime.ensure_sandbox(&spec::sandbox(kubelet, context)?).await.map_err(|error| error.to_string())?;
        let attempt = self.next.get();
        self.next.set(attempt + 1);
        let built = spec::container(kubelet, context, "main", attempt, image, &mut Dependencies::new()).await;
        let result = match built {
            Err(error) => Err(error),
            Ok(mut wanted) => {
                wanted.args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
                let mut changes = kubelet.runtime.subscribe();
                let id = kubelet.runtime.start_container(&wanted).await.map_err(|error| error.to_string())?.id;
                let code = loop {
                    match kubelet.runtime.status(&id).unwrap().state {
                        ContainerState::Exited { code, .. } => break code,
                        ContainerState::Unknown => panic!("the container is lost"),
                        _ => drop(tokio::time::timeout(PATIENCE, changes.recv()).await.unwrap()),
                    }
                };
                let said = self.world.log(&wanted).join("\n");
                kubelet.runtime.remove_container(&id).await.unwrap();
                Ok((code, said))
            }
        };
        kubelet.runtime.remove_sandbox(&context.uid).await.unwrap();
        result
    }

    /// What volumes have left: mounts, loop devices, folders of a pod's.
    pub fn left(&self, uid: &str) -> Vec<String> {
        let mut left: Vec<String> = Vec::new();
        for dir in ["pods", "volumes", "recycle"] {
            left.extend(
                mounts::below(&self.agent.dir.join(dir))
                    .unwrap()
                    .iter()
                    .map(|point| format!("mount {}", point.display())),
            );
        }
        let file = |entry: fs::DirEntry| fs::read_to_string(entry.path().join("loop/backing_file")).ok();
        let ours = |file: &String| file.starts_with(self.agent.dir.to_str().unwrap());
        left.extend(
            fs::read_dir("/sys/block")
                .unwrap()
                .flatten()
                .filter_map(file)
                .filter(ours)
                .map(|file| format!("device of {file}")),
        );
        let pod = Disk::new(&self.agent.dir).pod_dir(uid).unwrap();
        left.extend(
            ["volumes", "subpaths"]
                .map(|dir| pod.join(dir))
                .iter()
                .filter(|dir| dir.exists())
                .map(|dir| dir.display().to_string()),
        );
        left
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        // Only then may the world be removed with what is in it.
        mounts::unmount_below(&self.agent.dir).unwrap();
        let _ = mainstay_node::volumes::image::detach_all(&self.agent.dir.join("volumes"));
    }
}

fn merge(into: &mut Value, change: Value) {
    match (into, change) {
        (Value::Object(into), Value::Object(change)) => {
            for (name, value) in change {
                merge(into.entry(name).or_insert(Value::Null), value);
            }
        }
        (Value::Array(into), Value::Array(change)) if into.len() == change.len() => {
            into.iter_mut().zip(change).for_each(|(into, change)| merge(into, change));
        }
        (into, change) => *into = change,
    }
}

/// Everything below a folder: paths and contents.
pub fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![dir.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            let name = path.strip_prefix(dir).unwrap().display().to_string();
            if kind.is_dir() {
                found.insert(format!("{name}/"), Vec::new());
                open.push(path);
            } else if kind.is_symlink() {
                found.insert(format!("{name} ->"), Vec::new());
            } else {
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    found
}
