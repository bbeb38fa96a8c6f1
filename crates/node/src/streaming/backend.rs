//! What the kubelet tells the streaming server, and which container a request means.

use std::future::Future;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ContainerStatus as ApiStatus, Pod};
use mainstay_api::Status;

use super::exec::Session;
use super::room::Claimed;
use mainstay_runtime::{ContainerState, ContainerStats, ContainerStatus, ExecSpec, Runtime, RuntimeError};

/// A future that a trait object gives.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// The kubelet's knowledge of the pods of this node.
pub trait Backend: Send + Sync + 'static {
    /// A pod of this node as the API server has it, with its status. Of several of one name the newest.
    fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Pod>>;
    /// All pods of this node.
    fn pods(&self) -> Vec<Arc<Pod>>;
    /// The node's name.
    fn node_name(&self) -> &str;
    /// Where the log of one attempt of a container is (the current file; rotated ones are beside it as `<name>.<n>`).
    fn log_path(&self, pod: &Pod, container: &str, attempt: u32) -> PathBuf;
    /// Where this node has its data, and its images.
    fn folders(&self) -> (PathBuf, PathBuf);
    /// The claims that pods of this node have mounted. Blocking, for a moment.
    fn claims(&self) -> Vec<Claimed>;
    /// `/metrics/probes`.
    fn probe_metrics(&self) -> String;
    /// Loads the images of an archive; the names that it brought. Blocking.
    ///
    /// # Errors
    /// In words: it cannot be read, is no archive of images, or the disk is full.
    fn load_images(&self, archive: &mut dyn std::io::Read) -> Result<Vec<String>, String>;
}

/// What an interface has counted in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub bytes: u64,
    pub packets: u64,
    pub errors: u64,
    pub dropped: u64,
}

/// A network interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub received: Traffic,
    pub sent: Traffic,
}

/// The interfaces in `/proc/<pid>/net/dev`, without loopback and ends of others' (as cAdvisor leaves them out).
pub fn interfaces(text: &str) -> Vec<Interface> {
    let one = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_whitespace().map(|number| number.parse().unwrap_or(0)).collect();
        let traffic = |at: usize| {
            let [bytes, packets, errors, dropped] = *numbers.get(at..at + 4)? else { return None };
            Some(Traffic { bytes, packets, errors, dropped })
        };
        let interface = Interface { name: name.trim().to_owned(), received: traffic(0)?, sent: traffic(8)? };
        let is_shown = !["lo", "veth"].iter().any(|prefix| interface.name.starts_with(prefix));
        is_shown.then_some(interface)
    };
    text.lines().filter_map(one).collect()
}

/// The containers themselves.
pub trait Containers: Send + Sync + 'static {
    /// All containers, running and ended.
    fn all(&self) -> Vec<ContainerStatus>;
    /// Those of a pod.
    fn of_pod(&self, pod_uid: &str) -> Vec<ContainerStatus> {
        let mut all = self.all();
        all.retain(|container| container.pod_uid == pod_uid);
        all
    }
    /// The file that pins the pod's network namespace; None where the pod has the node's own.
    ///
    /// # Errors
    /// The pod has no sandbox.
    fn network(&self, pod_uid: &str) -> Result<Option<PathBuf>, RuntimeError>;
    /// Runs a command.
    fn exec<'a>(&'a self, id: &'a str, spec: ExecSpec) -> Pending<'a, Result<Session, RuntimeError>>;
    /// Joins the container's own process.
    fn attach<'a>(&'a self, id: &'a str) -> Pending<'a, Result<Session, RuntimeError>>;
    /// What a running container uses; `None` of one that does not run.
    fn stats(&self, id: &str) -> Option<ContainerStats>;
    /// A pod's control group, and what it counts: also what its ended containers used.
    fn pod_stats(&self, pod_uid: &str) -> Option<(String, ContainerStats)>;
    /// A container's control group.
    fn group(&self, id: &str) -> Option<String>;
    /// The interfaces of a pod's own network, by one of these processes of its containers; none of the node's.
    fn interfaces(&self, pod_uid: &str, pids: &[u32]) -> Vec<Interface>;
    /// Returns when the container does not run (any more).
    fn ended<'a>(&'a self, id: &'a str) -> Pending<'a, ()>;
}

impl Containers for Runtime {
    fn all(&self) -> Vec<ContainerStatus> {
        self.list()
    }

    fn pod_stats(&self, pod_uid: &str) -> Option<(String, ContainerStats)> {
        Runtime::pod_stats(self, pod_uid)
    }

    fn group(&self, id: &str) -> Option<String> {
        Runtime::group(self, id)
    }

    fn interfaces(&self, pod_uid: &str, pids: &[u32]) -> Vec<Interface> {
        let Ok(Some(network)) = self.network(pod_uid) else { return Vec::new() };
        let inode = |path: &Path| std::fs::metadata(path).map(|metadata| metadata.ino()).ok();
        let Some(own) = inode(&network) else { return Vec::new() };
        let read = |pid: &u32| {
            let process = PathBuf::from(format!("/proc/{pid}"));
            let text = std::fs::read_to_string(process.join("net/dev")).ok()?;
            // Looked at afterwards: the number of a process that has ended may be another one's by now.
            (inode(&process.join("ns/net")) == Some(own)).then(|| interfaces(&text))
        };
        pids.iter().find_map(read).unwrap_or_default()
    }

    fn network(&self, pod_uid: &str) -> Result<Option<PathBuf>, RuntimeError> {
        let sandbox = self.sandboxes().into_iter().find(|sandbox| sandbox.pod_uid == pod_uid && sandbox.ready);
        sandbox.map(|sandbox| sandbox.netns_path).ok_or_else(|| RuntimeError::SandboxNotFound(pod_uid.to_owned()))
    }

    fn stats(&self, id: &str) -> Option<ContainerStats> {
        Runtime::stats(self, id).ok()
    }

    fn exec<'a>(&'a self, id: &'a str, spec: ExecSpec) -> Pending<'a, Result<Session, RuntimeError>> {
        Box::pin(async move { Runtime::exec(self, id, spec).await.map(Session::from) })
    }

    fn attach<'a>(&'a self, id: &'a str) -> Pending<'a, Result<Session, RuntimeError>> {
        Box::pin(async move { Runtime::attach(self, id).await.map(Session::from) })
    }

    fn ended<'a>(&'a self, id: &'a str) -> Pending<'a, ()> {
        Box::pin(async move {
            let mut changes = self.subscribe();
            // Subscribed first, looked second: no change falls between.
            while self
                .status(id)
                .is_some_and(|status| matches!(status.state, ContainerState::Created | ContainerState::Running { .. }))
            {
                loop {
                    match changes.recv().await {
                        Ok(change) if change.id != id => {}
                        Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
                        _ => break,
                    }
                }
            }
        })
    }
}

/// A container whose log is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogTarget {
    pub id: String,
    pub path: PathBuf,
    /// It may still write.
    pub running: bool,
}

/// What a request is about, with everything that answers it.
pub struct Lookup<'a> {
    pub backend: &'a dyn Backend,
    pub containers: &'a dyn Containers,
}

impl Lookup<'_> {
    /// The pod.
    ///
    /// # Errors
    /// 404 in the kubelet's words.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<Arc<Pod>, Status> {
        self.backend
            .pod(namespace, name)
            .ok_or_else(|| Status::new(404, "NotFound", format!("pod {name:?} does not exist")))
    }

    /// The id of a running container, for exec and attach.
    ///
    /// # Errors
    /// 404 for the pod; `container not found ("x")` where it does not run.
    pub fn running(&self, namespace: &str, name: &str, container: &str) -> Result<String, Status> {
        let pod = self.pod(namespace, name)?;
        let running =
            self.newest(&pod, container).filter(|newest| matches!(newest.state, ContainerState::Running { .. }));
        running.map(|newest| newest.id).ok_or_else(|| Status::internal(format!("container not found ({container:?})")))
    }

    /// Which log a request means.
    ///
    /// # Errors
    /// 404 for a pod or container that is not there, 400 in upstream's words for one without a log.
    pub fn log(&self, namespace: &str, name: &str, container: &str, previous: bool) -> Result<LogTarget, Status> {
        let pod = self.pod(namespace, name)?;
        if !has_container(&pod, container) {
            return Err(Status::new(404, "NotFound", format!("container {container:?} not found in pod {name:?}")));
        }
        let newest = self.newest(&pod, container);
        let status = api_status(&pod, container);
        let attempt = attempt(newest.as_ref(), status, &pod, container, previous)?;
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let path = self.backend.log_path(&pod, container, attempt);
        let current = newest.filter(|newest| newest.attempt == attempt);
        let running = current
            .is_some_and(|newest| matches!(newest.state, ContainerState::Created | ContainerState::Running { .. }));
        if !running && !path.exists() {
            return Err(if previous { no_previous(container, name) } else { not_available(container, name) });
        }
        Ok(LogTarget { id: mainstay_runtime::container_id(&uid, container, attempt), path, running })
    }

    fn newest(&self, pod: &Pod, container: &str) -> Option<ContainerStatus> {
        let all = self.containers.of_pod(pod.metadata.uid.as_deref().unwrap_or_default());
        all.into_iter().filter(|status| status.name == container).max_by_key(|status| status.attempt)
    }
}

fn has_container(pod: &Pod, container: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let regular = spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(|one| one.name == container);
    regular || spec.ephemeral_containers.iter().flatten().any(|one| one.name == container)
}

fn api_status<'a>(pod: &'a Pod, container: &str) -> Option<&'a ApiStatus> {
    let status = pod.status.as_ref()?;
    let all = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    all.into_iter().flatten().flatten().find(|status| status.name == container)
}

fn bad(message: String) -> Status {
    Status::bad_request(message)
}

fn no_previous(container: &str, pod: &str) -> Status {
    bad(format!("previous terminated container {container:?} in pod {pod:?} not found"))
}

fn not_available(container: &str, pod: &str) -> Status {
    bad(format!("container {container:?} in pod {pod:?} is not available"))
}

/// The attempt whose log is meant. The runtime knows best; where it has forgotten, the pod's status remembers.
fn attempt(
    newest: Option<&ContainerStatus>,
    status: Option<&ApiStatus>,
    pod: &Pod,
    container: &str,
    previous: bool,
) -> Result<u32, Status> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let waiting = status.and_then(|status| status.state.as_ref()?.waiting.as_ref());
    let of_id = |id: Option<&String>| id?.rsplit_once('/')?.1.parse::<u32>().ok();
    let last = status.and_then(|status| of_id(status.last_state.as_ref()?.terminated.as_ref()?.container_id.as_ref()));
    let terminated = status.and_then(|status| of_id(status.state.as_ref()?.terminated.as_ref()?.container_id.as_ref()));
    if previous {
        let before = match newest {
            // Between two attempts the newest one is the previous one.
            Some(newest)
                if waiting.is_some()
                    && matches!(newest.state, ContainerState::Exited { .. } | ContainerState::Unknown) =>
            {
                Some(newest.attempt)
            }
            Some(newest) => newest.attempt.checked_sub(1),
            None => last,
        };
        return before.ok_or_else(|| no_previous(container, name));
    }
    if let Some(attempt) = newest.map(|newest| newest.attempt).or(terminated).or(last) {
        return Ok(attempt);
    }
    let reason = waiting.and_then(|waiting| waiting.reason.as_deref());
    let why = match reason {
        Some("ErrImagePull") => "image can't be pulled",
        Some("ImagePullBackOff") => "trying and failing to pull image",
        Some(reason) => reason,
        // Nothing of this pod was reported yet.
        None if status.is_none() => "ContainerCreating",
        None => return Err(not_available(container, name)),
    };
    Err(bad(format!("container {container:?} in pod {name:?} is waiting to start: {why}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_read_as_the_kernel_writes_them() {
        let text = [
            "Inter-|   Receive                   |  Transmit",
            " face |bytes packets errs drop|bytes packets",
            "    lo:  52 1 0 0 0 0 0 0 52 1 0 0 0 0 0 0",
            "  eth0:10 2 3 4 5 6 7 8 90 10 11 12 13 14 15 16",
            "veth1: 1 1 1 1 1 1 1 1 1 1 1 1",
            " short: 1 2",
        ];
        let received = Traffic { bytes: 10, packets: 2, errors: 3, dropped: 4 };
        let sent = Traffic { bytes: 90, packets: 10, errors: 11, dropped: 12 };
        assert_eq!(interfaces(&text.join("\n")), [Interface { name: "eth0".to_owned(), received, sent }]);
    }
}
