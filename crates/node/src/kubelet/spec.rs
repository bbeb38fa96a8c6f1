//! A pod's spec as the runtime wants it: everything resolved, nothing left to look up.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use k8s_openapi::api::core::v1::{Container, PodSecurityContext, SecurityContext, VolumeMount};
use mainstay_api::{kinds, object};
use mainstay_logic::kubelet::admission;
use mainstay_tasks::Pool;

use super::environment::{self, Addresses, Dependencies, Sources, Variables};
use super::{Kubelet, PodContext, files, node_status, resources};
use crate::volumes::{VolumeError, block, subpath, threads};
use mainstay_runtime::images::{Image, ImageStore, ResolvedUser};
use mainstay_runtime::safe_path::make_private_dir;
use mainstay_runtime::{BlockDevice, ContainerSpec, Mount, MountPropagation, SandboxSpec, SeccompProfile};

/// The handler of the one runtime that this node has.
const RUNTIME: &str = "mainstay";

/// What a container finds in PATH where its image says nothing.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Environments are made of lists that strangers wrote, which take their time: not on the threads of what must answer.
static ENVIRONMENTS: LazyLock<Pool> = LazyLock::new(|| Pool::patient("making environments", 4, 2));

/// The sandbox of a pod.
pub fn sandbox(kubelet: &Kubelet, context: &PodContext) -> Result<SandboxSpec, String> {
    let spec = context.spec().ok_or("the pod has no spec")?;
    let sysctls = spec.security_context.as_ref().and_then(|security| security.sysctls.as_ref());
    let host_network = spec.host_network == Some(true);
    Ok(SandboxSpec {
        pod_uid: context.uid.clone(),
        namespace: context.namespace.clone(),
        name: context.name.clone(),
        hostname: files::kernel_hostname(kubelet, context)?,
        host_network,
        cgroup: resources::cgroup(&context.pod, &context.uid),
        sysctls: sysctls.into_iter().flatten().map(|sysctl| (sysctl.name.clone(), sysctl.value.clone())).collect(),
        host_ipc: spec.host_ipc == Some(true),
        host_pid: spec.host_pid == Some(true),
        share_process_namespace: spec.share_process_namespace == Some(true),
        shm_bytes: None,
        user_namespace: has_own_users(context),
        limits: resources::of_pod(spec),
    })
}

/// Whether the pod asks for a user namespace of its own.
fn has_own_users(context: &PodContext) -> bool {
    context.spec().is_some_and(|spec| spec.host_users == Some(false))
}

/// Whether this node has the runtime that the pod's RuntimeClass names: it has one, under its own name.
///
/// # Errors
/// There is no such class, or it is of another runtime; in upstream's words.
pub async fn check_runtime_class(kubelet: &Kubelet, context: &PodContext) -> Result<(), String> {
    let name = context.spec().and_then(|spec| spec.runtime_class_name.as_deref()).unwrap_or("");
    if name.is_empty() {
        return Ok(());
    }
    let missing = || format!("RuntimeClass.node.k8s.io {name:?} not found");
    let kind = kinds::find("node.k8s.io", "v1", "runtimeclasses").ok_or_else(missing)?;
    let class = kubelet.objects.get(&kind, "", name).await.map_err(|error| {
        if error.is_not_found() { missing() } else { format!("reading RuntimeClass {name:?}: {error}") }
    })?;
    let handler = object::text(&class, &["handler"]);
    if handler == RUNTIME { Ok(()) } else { Err(format!("no runtime for {handler:?} is configured")) }
}

/// One container. An error is a `CreateContainerConfigError` and its message.
pub async fn container(
    kubelet: &Kubelet,
    context: &PodContext,
    name: &str,
    attempt: u32,
    image_id: &str,
    dependencies: &mut Dependencies,
) -> Result<ContainerSpec, String> {
    let container = context.container(name).ok_or_else(|| format!("the pod has no container {name}"))?;
    if let Some(why) = admission::unsupported_in(container, has_own_users(context), &kubelet.abilities) {
        return Err(why);
    }
    let image = kubelet.images.resolve_apart(image_id).await.ok_or_else(|| format!("image {image_id} is gone"))?;
    let empty = (PodSecurityContext::default(), SecurityContext::default());
    let pod_security = context.spec().and_then(|spec| spec.security_context.as_ref()).unwrap_or(&empty.0);
    let security = container.security_context.as_ref().unwrap_or(&empty.1);
    let whose = (kubelet.images.clone(), image.clone(), pod_security.clone(), security.clone());
    // The image's files say who that is.
    let user = tokio::task::spawn_blocking(move || user(&whose.0, &whose.1, &whose.2, &whose.3));
    let user = user.await.map_err(|error| error.to_string())??;
    check_non_root(context, name, &image, &user, pod_security, security)?;

    let host_network = context.spec().is_some_and(|spec| spec.host_network == Some(true));
    let pod_ip = if host_network { Some(kubelet.config.node_ip.to_string()) } else { kubelet.pods.ip(&context.uid) };
    let sources = environment::read(kubelet, context, container, dependencies).await?;
    let addresses = Addresses { node: kubelet.config.node_ip.to_string(), pod: pod_ip };
    let program = Program {
        context: context.clone(),
        container: name.to_owned(),
        image: image.clone(),
        user: user.clone(),
        hostname: files::hostname(kubelet, context),
        addresses,
        sources,
    };
    let made = ENVIRONMENTS.run(&context.namespace, move || program.make()).await;
    let Made { own, args, env } = made.map_err(|error| error.to_string())??;
    let mut mounts = mounts(kubelet, context, container, attempt, &own).await?;
    let owner =
        (security.run_as_user.or(pod_security.run_as_user), security.run_as_group.or(pod_security.run_as_group));
    let devices = devices(kubelet, context, container, owner, &mut mounts).await?;
    let wanted = resources::of(container);
    let log_path = kubelet.disk.log_path(&context.namespace, &context.name, &context.uid, name, attempt);
    if let Some(parent) = log_path.parent() {
        make_private_dir(parent).map_err(|error| format!("making the log's folder: {error}"))?;
    }
    let capabilities = security.capabilities.as_ref();
    let working_dir =
        container.working_dir.clone().filter(|dir| !dir.is_empty()).unwrap_or_else(|| image.config.working_dir.clone());
    Ok(ContainerSpec {
        pod_uid: context.uid.clone(),
        name: name.to_owned(),
        attempt,
        image: container.image.clone().unwrap_or_default(),
        image_id: image_id.to_owned(),
        args,
        env,
        working_dir: if working_dir.is_empty() { "/".to_owned() } else { working_dir },
        supplemental_groups: groups(&user, pod_security, &volume_groups(kubelet, context)?)?,
        user: Some(user.uid),
        group: Some(user.gid),
        mounts,
        tty: container.tty == Some(true),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        privileged: security.privileged == Some(true),
        read_only_root: security.read_only_root_filesystem == Some(true),
        no_new_privileges: security.allow_privilege_escalation == Some(false),
        capabilities_add: capabilities.and_then(|capabilities| capabilities.add.clone()).unwrap_or_default(),
        capabilities_drop: capabilities.and_then(|capabilities| capabilities.drop.clone()).unwrap_or_default(),
        cpu_request_milli: wanted.cpu_request_milli,
        cpu_limit_milli: wanted.cpu_limit_milli,
        memory_limit: wanted.memory_limit,
        pids_limit: mainstay_runtime::cgroups::most_processes_of_one(),
        oom_score_adj: resources::oom_score_adj(&context.pod, &wanted, node_status::memory_bytes()),
        log_path,
        devices,
        unmasked_proc: security.proc_mount.as_deref() == Some("Unmasked"),
        deadline: None,
        sandbox_made_at_ms: None,
        seccomp: seccomp(kubelet, pod_security, security)?,
        processes_of: target(kubelet, context, name)?,
    })
}

/// The container's profile, else the pod's, else the node's default. Profiles of the node's own are below
/// `<data>/seccomp`.
fn seccomp(kubelet: &Kubelet, pod: &PodSecurityContext, own: &SecurityContext) -> Result<SeccompProfile, String> {
    let default =
        || if kubelet.config.seccomp_default { SeccompProfile::RuntimeDefault } else { SeccompProfile::Unconfined };
    let Some(profile) = own.seccomp_profile.as_ref().or(pod.seccomp_profile.as_ref()) else { return Ok(default()) };
    match profile.type_.as_str() {
        "RuntimeDefault" => Ok(SeccompProfile::RuntimeDefault),
        "Unconfined" => Ok(SeccompProfile::Unconfined),
        "Localhost" => match profile.localhost_profile.as_deref().filter(|path| !path.is_empty()) {
            Some(path) => {
                Ok(SeccompProfile::Localhost { root: kubelet.config.data_dir.join("seccomp"), path: path.to_owned() })
            }
            None => Err("localhostProfile must be set if seccompProfile type is Localhost.".to_owned()),
        },
        other => Err(format!("seccomp profile type {other:?} is not known")),
    }
}

/// The running container that an ephemeral one looks at.
fn target(kubelet: &Kubelet, context: &PodContext, container: &str) -> Result<Option<String>, String> {
    let Some(target) = context.target_of(container) else { return Ok(None) };
    let of_target = kubelet.runtime.list().into_iter().filter(|status| {
        status.pod_uid == context.uid
            && status.name == target
            && matches!(status.state, mainstay_runtime::ContainerState::Running { .. })
    });
    let newest = of_target.max_by_key(|status| status.attempt);
    newest.map(|status| Some(status.id)).ok_or_else(|| format!("unable to find target container \"{target}\""))
}

fn id(value: i64) -> Result<u32, String> {
    u32::try_from(value).map_err(|_| format!("{value} is not a user or group id"))
}

/// `runAsUser` and `runAsGroup` of the container, else of the pod, else the image's user.
fn user(
    images: &ImageStore,
    image: &Image,
    pod: &PodSecurityContext,
    own: &SecurityContext,
) -> Result<ResolvedUser, String> {
    let asked = own.run_as_user.or(pod.run_as_user).map(id).transpose()?;
    let name = asked.map_or_else(|| image.config.user.clone(), |uid| uid.to_string());
    let mut user = if name.is_empty() || name == "0" {
        let root = images.resolve_user(&image.id, "0");
        root.unwrap_or_else(|_| ResolvedUser { home: "/root".to_owned(), ..ResolvedUser::default() })
    } else {
        images.resolve_user(&image.id, &name).map_err(|error| error.to_string())?
    };
    if let Some(group) = own.run_as_group.or(pod.run_as_group) {
        user.gid = id(group)?;
    }
    Ok(user)
}

fn check_non_root(
    context: &PodContext,
    container: &str,
    image: &Image,
    user: &ResolvedUser,
    pod: &PodSecurityContext,
    own: &SecurityContext,
) -> Result<(), String> {
    if own.run_as_non_root.or(pod.run_as_non_root) != Some(true) {
        return Ok(());
    }
    let whose = format!("(pod: \"{}_{}({})\", container: {container})", context.name, context.namespace, context.uid);
    let asked = own.run_as_user.or(pod.run_as_user);
    if asked == Some(0) {
        return Err(format!("container's runAsUser breaks non-root policy {whose}"));
    }
    let name = image.config.user.split(':').next().unwrap_or("");
    if asked.is_none() && !name.is_empty() && name.parse::<u32>().is_err() {
        return Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root {whose}"
        ));
    }
    if user.uid == 0 {
        return Err(format!("container has runAsNonRoot and image will run as root {whose}"));
    }
    Ok(())
}

/// The groups to which the pod's PersistentVolumes give access.
fn volume_groups(kubelet: &Kubelet, context: &PodContext) -> Result<Vec<u32>, String> {
    let volumes = context.spec().into_iter().flat_map(|spec| spec.volumes.iter().flatten());
    let claims = volumes.filter(|volume| volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some());
    let groups = claims.map(|volume| {
        let record = kubelet.volumes.mounted(&context.uid, &volume.name).map_err(|error| error.to_string())?;
        Ok(record.group)
    });
    groups.filter_map(Result::transpose).collect()
}

/// The image's groups of the user, the pod's supplemental ones, `fsGroup`, and those of its volumes.
fn groups(user: &ResolvedUser, pod: &PodSecurityContext, volumes: &[u32]) -> Result<Vec<u32>, String> {
    let strict = pod.supplemental_groups_policy.as_deref() == Some("Strict");
    let mut groups = if strict { Vec::new() } else { user.groups.clone() };
    for group in pod.supplemental_groups.iter().flatten().chain(&pod.fs_group) {
        groups.push(id(*group)?);
    }
    groups.extend(volumes);
    groups.sort_unstable();
    groups.dedup();
    Ok(groups)
}

/// What a container's arguments and environment are made of.
struct Program {
    context: PodContext,
    container: String,
    image: Image,
    user: ResolvedUser,
    hostname: String,
    addresses: Addresses,
    sources: Sources,
}

/// A container's arguments and environment.
struct Made {
    /// The variables that references in the pod's spec mean.
    own: Variables,
    args: Vec<String>,
    env: Vec<(String, String)>,
}

impl Program {
    fn make(&self) -> Result<Made, String> {
        let container = self.context.container(&self.container);
        let container = container.ok_or_else(|| format!("the pod has no container {}", self.container))?;
        let own = environment::build(&self.context, container, &self.addresses, &self.sources)?;
        let env = with_image_env(&self.hostname, &self.image, &self.user, &own)?;
        let args = command(container, &self.image, &own, &env)?;
        Ok(Made { own, args, env: env.into_list()? })
    }
}

/// `command` replaces the entry point and drops the image's arguments; `args` replaces the arguments.
fn command(container: &Container, image: &Image, own: &Variables, env: &Variables) -> Result<Vec<String>, String> {
    let of = |all: &Option<Vec<String>>| all.clone().unwrap_or_default();
    let (command, args) = (of(&container.command), of(&container.args));
    let given = environment::arguments(&[command.as_slice(), args.as_slice()].concat(), own, env)?;
    let all = match (command.is_empty(), args.is_empty()) {
        (false, _) => given,
        (true, false) => [image.config.entrypoint.clone(), given].concat(),
        (true, true) => [image.config.entrypoint.clone(), image.config.cmd.clone()].concat(),
    };
    if all.is_empty() { Err("no command specified".to_owned()) } else { Ok(all) }
}

/// The image's variables under the pod's own; PATH, HOSTNAME and HOME where nobody gives them.
fn with_image_env(hostname: &str, image: &Image, user: &ResolvedUser, own: &Variables) -> Result<Variables, String> {
    let mut all = Variables::default();
    all.set("PATH", DEFAULT_PATH)?;
    all.set("HOSTNAME", hostname)?;
    let of_image = image.config.env.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in of_image.chain(own.iter()) {
        all.set(name, value)?;
    }
    // As container runtimes do, an empty one is taken for none.
    if all.get("HOME").is_none_or(str::is_empty) {
        all.set("HOME", if user.home.is_empty() { "/" } else { &user.home })?;
    }
    Ok(all)
}

async fn mounts(
    kubelet: &Kubelet,
    context: &PodContext,
    container: &Container,
    attempt: u32,
    env: &Variables,
) -> Result<Vec<Mount>, String> {
    let mut mounts = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        mounts.push(volume_mount(kubelet, context, &container.name, index, mount, env).await?);
    }
    let dir = files::dir(&kubelet.disk, &context.uid).map_err(|error| error.to_string())?;
    for (file, target) in [("hosts", "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")]
    {
        if !mounts.iter().any(|mount| mount.target.trim_end_matches('/') == target) {
            mounts.push(bind(&dir.join(file), target));
        }
    }
    let target =
        container.termination_message_path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/dev/termination-log");
    let log = files::make_termination_log(&kubelet.disk, &context.uid, &container.name, attempt);
    mounts.push(bind(&log.map_err(|error| format!("making the termination log: {error}"))?, target));
    Ok(mounts)
}

/// The block devices of a container, whose nodes are mounted into it.
///
/// As containerd where `device_ownership_from_security_context` is on: a node belongs to `runAsUser` and `runAsGroup`,
/// as far as the spec says them. `fsGroup` does not apply.
async fn devices(
    kubelet: &Kubelet,
    context: &PodContext,
    container: &Container,
    owner: (Option<i64>, Option<i64>),
    mounts: &mut Vec<Mount>,
) -> Result<Vec<BlockDevice>, String> {
    let owner = (owner.0.map_or(Ok(0), id)?, owner.1.map_or(Ok(0), id)?);
    let mut devices: Vec<BlockDevice> = Vec::new();
    let mut nodes: BTreeMap<&str, PathBuf> = BTreeMap::new();
    for given in container.volume_devices.iter().flatten() {
        if !given.device_path.starts_with('/') {
            return Err(format!("error DevicePath `{}` must be an absolute path", given.device_path));
        }
        let missing = || format!("cannot find volume \"{}\" to pass into container \"{}\"", given.name, container.name);
        let record = kubelet.volumes.mounted(&context.uid, &given.name).map_err(|_| missing())?;
        if record.block.is_none() {
            return Err(missing());
        }
        let place = record.device.clone();
        let node = match nodes.get(&*given.name) {
            Some(node) => node.clone(),
            None => {
                let made = block::node(kubelet, context, record, &container.name, owner).await;
                let (node, device) = made.map_err(|error| format!("{}: {error}", missing()))?;
                devices.push(device);
                nodes.insert(&given.name, node.clone());
                node
            }
        };
        mounts.push(Mount { device: place, ..bind(&node, &given.device_path) });
    }
    Ok(devices)
}

fn bind(source: &Path, target: &str) -> Mount {
    Mount {
        source: source.to_owned(),
        target: target.to_owned(),
        read_only: false,
        recursive_read_only: false,
        propagation: MountPropagation::None,
        device: None,
    }
}

async fn volume_mount(
    kubelet: &Kubelet,
    context: &PodContext,
    container: &str,
    index: usize,
    mount: &VolumeMount,
    env: &Variables,
) -> Result<Mount, String> {
    let volume = kubelet.volumes.mounted(&context.uid, &mount.name).map_err(|error| error.to_string())?;
    if volume.block.is_some() {
        // An ephemeral container, which came later than the volume: what is there are all containers' nodes (X6).
        return Err(format!("volume {} has volumeMode Block, but is specified in volumeMounts", mount.name));
    }
    let sub_path = match (&mount.sub_path, &mount.sub_path_expr) {
        (Some(path), _) if !path.is_empty() => Some(path.clone()),
        (_, Some(expression)) if !expression.is_empty() => Some(environment::path(expression, env)?),
        _ => None,
    };
    let source = match sub_path {
        None => volume.path.clone(),
        Some(sub_path) => {
            let dir = kubelet.disk.pod_dir(&context.uid).map_err(|error| error.to_string())?;
            let target = dir.join("subpaths").join(container).join(index.to_string());
            // The volume's server may not answer.
            let folder = volume.path.clone();
            let bound = threads::blocking_for(&context.uid, move || {
                subpath::bind(&folder, &sub_path, &target).map_err(|error| VolumeError::Refused(error.to_string()))
            });
            bound.await.map_err(|error| {
                format!(
                    "failed to prepare subPath for volumeMount \"{}\" of container \"{container}\": {error}",
                    mount.name
                )
            })?
        }
    };
    // A target is a place in the container; the runtime resolves it inside the root file system.
    let target =
        if mount.mount_path.starts_with('/') { mount.mount_path.clone() } else { format!("/{}", mount.mount_path) };
    Ok(Mount {
        source,
        target,
        read_only: mount.read_only == Some(true) || volume.read_only,
        recursive_read_only: matches!(mount.recursive_read_only.as_deref(), Some("Enabled" | "IfPossible")),
        propagation: match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => MountPropagation::HostToContainer,
            Some("Bidirectional") => MountPropagation::Bidirectional,
            _ => MountPropagation::None,
        },
        device: volume.device,
    })
}

/// The signal that asks a container to end: the spec's, else the image's; `None` is SIGTERM.
pub async fn stop_signal(kubelet: &Kubelet, context: &PodContext, container: &str, id: &str) -> Option<i32> {
    let asked = context.container(container).and_then(|spec| spec.lifecycle.as_ref()?.stop_signal.clone());
    if let Some(asked) = asked {
        return signal(&asked);
    }
    let image = kubelet.runtime.status(id)?.image_id;
    signal(&kubelet.images.resolve_apart(&image).await?.config.stop_signal?)
}

fn signal(name: &str) -> Option<i32> {
    let bare = name.strip_prefix("SIG").unwrap_or(name);
    if let Ok(number) = bare.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let real_time = |rest: &str, base: i32, sign: i32| {
        let offset = if rest.is_empty() { 0 } else { rest.get(1..)?.parse::<i32>().ok()? };
        Some(base + sign * offset).filter(|number| (34..=64).contains(number))
    };
    if let Some(rest) = bare.strip_prefix("RTMIN") {
        return real_time(rest, 34, 1);
    }
    if let Some(rest) = bare.strip_prefix("RTMAX") {
        return real_time(rest, 64, -1);
    }
    let names: [(&str, i32); 12] = [
        ("HUP", libc::SIGHUP),
        ("INT", libc::SIGINT),
        ("QUIT", libc::SIGQUIT),
        ("ABRT", libc::SIGABRT),
        ("KILL", libc::SIGKILL),
        ("USR1", libc::SIGUSR1),
        ("USR2", libc::SIGUSR2),
        ("PIPE", libc::SIGPIPE),
        ("ALRM", libc::SIGALRM),
        ("TERM", libc::SIGTERM),
        ("CONT", libc::SIGCONT),
        ("WINCH", libc::SIGWINCH),
    ];
    names.into_iter().find(|(known, _)| *known == bare).map(|(_, number)| number)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// conformance: "PersistentVolumes NFS … test write access" (the annotation pv.beta.kubernetes.io/gid).
    #[test]
    fn conformance_a_volume_gives_its_group_to_the_pod() {
        let user = ResolvedUser { groups: vec![5, 777], ..ResolvedUser::default() };
        let pod = PodSecurityContext { fs_group: Some(9), ..PodSecurityContext::default() };
        assert_eq!(groups(&user, &pod, &[777, 2]), Ok(vec![2, 5, 9, 777]));
        let strict = PodSecurityContext { supplemental_groups_policy: Some("Strict".to_owned()), ..pod };
        assert_eq!(groups(&user, &strict, &[2]), Ok(vec![2, 9]));
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for (name, number) in [
            ("SIGTERM", Some(15)),
            ("QUIT", Some(3)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("SIGRTMIN+99", None),
            ("99", None),
            ("SIGNONE", None),
        ] {
            assert_eq!(signal(name), number, "{name}");
        }
    }

    #[test]
    fn command_and_args_override_the_image() {
        let mut image = Image::default();
        image.config.entrypoint = vec!["e".into()];
        image.config.cmd = vec!["c".into()];
        let mut own = Variables::default();
        own.set("V", "v").unwrap();
        let container = |value: Value| serde_json::from_value::<Container>(value).unwrap();
        for (value, expected) in [
            (serde_json::json!({ "name": "x" }), vec!["e", "c"]),
            (serde_json::json!({ "name": "x", "command": ["a"] }), vec!["a"]),
            (serde_json::json!({ "name": "x", "args": ["$(V)"] }), vec!["e", "v"]),
            (serde_json::json!({ "name": "x", "command": ["a"], "args": ["b"] }), vec!["a", "b"]),
        ] {
            assert_eq!(command(&container(value), &image, &own, &own).unwrap(), expected);
        }
    }

    #[test]
    fn variables_of_the_pod_win_over_the_images_and_an_empty_home_is_none() {
        let mut image = Image::default();
        image.config.env = [("A", "image"), ("B", "image"), ("HOME", "/image")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec();
        let user = ResolvedUser { home: "/root".to_owned(), ..ResolvedUser::default() };
        let mut own = Variables::default();
        own.set("B", "pod").unwrap();
        let all = with_image_env("h", &image, &user, &own).unwrap();
        let shown = |all: &Variables| all.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>();
        let path = format!("PATH={DEFAULT_PATH}");
        assert_eq!(shown(&all), [path.as_str(), "HOSTNAME=h", "A=image", "B=pod", "HOME=/image"]);
        own.set("HOME", "").unwrap();
        assert_eq!(with_image_env("h", &image, &user, &own).unwrap().get("HOME"), Some("/root"));
    }
}
