//! persistentVolumeClaim: the claim's volume, when it is really the claim's and really here.
//!
//! V1: claim and volume must name each other by uid. V5: a provisioned directory is made once, on first use, and
//! then noted on the volume; one that is noted and missing is lost data, and no empty look-alike takes its place.

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{NFSVolumeSource, NodeSelectorTerm, PersistentVolume, PersistentVolumeClaim, Volume};
use mainstay_api::kinds;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use mainstay_logic::volume::room::OVERCOMMIT;
use mainstay_logic::volume::{BUILT_IN, PROVISIONED_BY, source};
pub(super) use mainstay_logic::volume::{LOCAL_PATH_FINALIZER as FINALIZER, MADE_ON, MADE_SIZE, is_image};

use super::image::copy::Hold;
use super::image::{Growth, Image};
use super::{
    Answer, Driver, Ready, Request, VolumeError, block, blocking_for, blocking_host, blocking_long, blocking_on,
    blocking_owner, freeze, growth, host, nfs, ownership, recovery,
};
use mainstay_runtime::safe_path::{self, make_private_dir};

/// A claim's volume: local, hostPath, or a directory that Mainstay provisioned.
pub struct Claim;

impl Driver for Claim {
    fn name(&self) -> &'static str {
        "kubernetes.io/persistent-volume"
    }

    fn takes(&self, volume: &Volume) -> bool {
        volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some()
    }

    fn ensure<'a>(&'a self, request: Request<'a>) -> Answer<'a> {
        Box::pin(ensure(request))
    }
}

async fn ensure(request: Request<'_>) -> Result<Ready, VolumeError> {
    let context = request.context;
    let (name, asked_read_only) = match &request.volume.persistent_volume_claim {
        Some(source) => (source.claim_name.clone(), source.read_only == Some(true)),
        None => (format!("{}-{}", context.name, request.volume.name), false),
    };
    // What a former machine of this name has mounted may be in use there (S1).
    if !request.again {
        super::reconciler::wait_held(request.kubelet).await?;
    }
    let claim = get_claim(&request, &name).await?;
    let bound_to = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or("");
    // Before the volume is read: from here on it is not unmounted, and a growth that comes later is not overlooked.
    begin(&request, &claim, bound_to).await?;
    let volume = get_volume(&request, &claim).await?;
    let volume_name = volume.metadata.name.clone().unwrap_or_default();
    if !reaches_node(&volume, &request.kubelet.config.node_name) {
        return Err(VolumeError::Refused(format!("volume \"{volume_name}\" is not on this node")));
    }
    let spec = volume.spec.clone().unwrap_or_default();
    let is_block = mainstay_logic::volume::is_block(&volume);
    block::check_use(context, &request.volume.name, is_block)?;
    let read_only = asked_read_only
        || spec.access_modes.iter().flatten().all(|mode| mode == "ReadOnlyMany") && spec.access_modes.is_some();
    let access = group_of(&volume);
    if is_block {
        return give_device(&request, &volume, read_only).await;
    }
    if let Some(source) = spec.nfs {
        let source = NFSVolumeSource { server: source.server, path: source.path, read_only: source.read_only };
        let options = spec.mount_options.unwrap_or_default();
        let ready = nfs::mount(&request, source, options, Some(volume_name), read_only).await?;
        return Ok(Ready { group: access, ..ready });
    }
    let (path, type_) = match (&spec.local, &spec.host_path) {
        (Some(local), _) => (PathBuf::from(&local.path), "Directory".to_owned()),
        (_, Some(path)) => (PathBuf::from(&path.path), path.type_.clone().unwrap_or_default()),
        _ => return Err(VolumeError::Refused(format!("this node has no driver for volume \"{volume_name}\""))),
    };
    let root = request.kubelet.volumes.root().to_owned();
    let provisioned = is_provisioned(&volume);
    let path = match provisioned {
        true => ensure_provisioned(&request, &volume, &root, request.kubelet.volumes.placed(path)).await?,
        false => path,
    };
    if spec.local.is_some() && !provisioned {
        let device = path.clone();
        if blocking_host(&context.uid, move || Ok(block::is_device(&device))).await? {
            return mount_device(&request, &volume, path, read_only).await;
        }
    }
    let host_path = spec.host_path.is_some();
    let group = request.fs_group().filter(|_| !host_path || provisioned);
    let (group, on_root_mismatch) = (group.filter(|_| !request.again && !read_only), request.on_root_mismatch());
    let ready =
        Ready { path: path.clone(), read_only, volume: Some(volume_name.clone()), group: access, ..Ready::default() };
    let give = move |path: &Path| match group {
        Some(group) => {
            ownership::give_to_group(path, group, on_root_mismatch).map_err(VolumeError::io("applying fsGroup"))
        }
        None => Ok(()),
    };
    if !provisioned {
        // Whatever the machine has there: whoever made the PersistentVolume may have named a link to it.
        let work = move || {
            host::check_type(&path, &type_)?;
            if group.is_none() {
                return Ok(());
            }
            give(&path.canonicalize().map_err(VolumeError::io("following the volume's path"))?)
        };
        blocking_host(&context.uid, work).await?;
    } else if group.is_some() {
        blocking_owner(&volume_name, move || give(&path)).await?;
    }
    Ok(ready)
}

/// Makes a volume of mode Block ready: its device, and the place for the nodes that the pod's containers get of it.
async fn give_device(request: &Request<'_>, volume: &PersistentVolume, read_only: bool) -> Result<Ready, VolumeError> {
    let name = volume.metadata.name.clone().unwrap_or_default();
    let Some(local) = volume.spec.as_ref().and_then(|spec| spec.local.clone()) else {
        return Err(VolumeError::Refused(format!("this node has no driver for volume \"{name}\" of mode Block")));
    };
    let path = PathBuf::from(local.path);
    let source = if is_provisioned(volume) {
        let folder = request.kubelet.volumes.placed(path);
        ensure_provisioned(request, volume, request.kubelet.volumes.root(), folder).await?
    } else {
        let device = path.clone();
        blocking_host(&request.context.uid, move || block::check_device(&device)).await?;
        path
    };
    let target = request.target.clone();
    let place = target.clone();
    blocking_for(&request.context.uid, move || block::make_place(&place)).await?;
    let (block, volume) = (Some(source), Some(name));
    Ok(Ready { path: target, read_only, volume, block, ..Ready::default() })
}

/// Mounts a local PersistentVolume that is a device, for this pod, and gives it to its group.
async fn mount_device(
    request: &Request<'_>,
    volume: &PersistentVolume,
    device: PathBuf,
    read_only: bool,
) -> Result<Ready, VolumeError> {
    let name = volume.metadata.name.clone().unwrap_or_default();
    let spec = volume.spec.clone().unwrap_or_default();
    let made = mainstay_logic::volume::annotation(&volume.metadata, MADE_ON) == request.kubelet.config.node_name;
    let wanted = block::Wanted {
        kind: spec.local.and_then(|local| local.fs_type),
        options: spec.mount_options.unwrap_or_default(),
        read_only,
        made,
    };
    let alone = request.kubelet.volumes.users().lock(&name).await;
    let (target, from) = (request.target.clone(), device.clone());
    let work = move || {
        let _alone = alone;
        block::mount(&from, &target, &wanted)
    };
    let formatted = blocking_long(&name, work).await?;
    if !made && !read_only {
        // Before the pod writes: from now on a blank device in its place is another one (V5).
        match growth::note(request.kubelet, volume, None).await {
            // Of a volume that is tied to a node by other labels, the API lets no node write.
            Err(error) if !names_hosts(volume) => tracing::debug!(volume = name, %error, "its use is not noted"),
            noted => noted?,
        }
    }
    if formatted {
        let message = format!("device {} of volume \"{name}\" was blank; it has a file system now", device.display());
        recovery::record(request.kubelet, request.context, false, "VolumeFormatted", message);
    }
    let (group, on_root_mismatch) = (request.fs_group(), request.on_root_mismatch());
    if let Some(group) = group.filter(|_| !request.again && !read_only) {
        let target = request.target.clone();
        let give = move || ownership::give_to_group(&target, group, on_root_mismatch);
        blocking_owner(&name, move || give().map_err(VolumeError::io("applying fsGroup"))).await?;
    }
    let (path, group) = (request.target.clone(), group_of(volume));
    Ok(Ready { path, read_only, volume: Some(name), group, ..Ready::default() })
}

/// The group to which a PersistentVolume gives access, by upstream's annotation; None where that is no group's number,
/// as upstream.
fn group_of(volume: &PersistentVolume) -> Option<u32> {
    volume.metadata.annotations.as_ref()?.get("pv.beta.kubernetes.io/gid")?.parse().ok()
}

/// Says that the pod uses a volume, and waits until whoever empties or removes it is done: what is read from here on is
/// what came of that.
async fn begin(request: &Request<'_>, claim: &PersistentVolumeClaim, volume: &str) -> Result<(), VolumeError> {
    let users = request.kubelet.volumes.users().clone();
    // V9, also for pods that no scheduler has placed. One that had it before a restart keeps it.
    if mainstay_logic::volume::asks_for(claim, "ReadWriteOncePod") && !request.again {
        let mine = users
            .begin_alone(volume, &request.context.uid)
            .map_err(VolumeError::io("reading which volumes are in use"))?;
        if !mine {
            let why = "volume uses the ReadWriteOncePod access mode and is already in use by another pod";
            return Err(VolumeError::Refused(why.to_owned()));
        }
    }
    users.begin(volume, &request.context.uid);
    drop(users.lock(volume).await);
    Ok(())
}

async fn get_claim(request: &Request<'_>, name: &str) -> Result<PersistentVolumeClaim, VolumeError> {
    let kind =
        kinds::find("", "v1", "persistentvolumeclaims").ok_or_else(|| "no kind PersistentVolumeClaim".to_owned())?;
    let found = request.kubelet.objects.get(&kind, &request.context.namespace, name).await;
    let value = found.map_err(|error| {
        VolumeError::Refused(format!("error processing PVC {}/{name}: {error}", request.context.namespace))
    })?;
    let claim: PersistentVolumeClaim = serde_json::from_value(value).map_err(|error| error.to_string())?;
    // Differs: a pod that was there before its claim was told to go still gets it, say after a reboot. The claim stays
    // for that pod's sake (V2), so without it pod and claim would wait for each other for ever (S9).
    let deleted = claim.metadata.deletion_timestamp.as_ref().map(|time| time.0);
    let made = request.context.pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    if deleted.is_some_and(|deleted| made.is_none_or(|made| made > deleted)) && !request.again {
        return Err(VolumeError::Refused(format!("PVC {}/{name} is being deleted", request.context.namespace)));
    }
    if request.volume.ephemeral.is_some() {
        let owned = claim.metadata.owner_references.iter().flatten().any(|owner| owner.uid == request.context.uid);
        if !owned {
            return Err(VolumeError::Refused(format!(
                "PVC {}/{name} was not created for this pod",
                request.context.namespace
            )));
        }
    }
    Ok(claim)
}

/// The claim's volume, where both name each other.
async fn get_volume(request: &Request<'_>, claim: &PersistentVolumeClaim) -> Result<PersistentVolume, VolumeError> {
    let claim_name = claim.metadata.name.as_deref().unwrap_or("");
    let name = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or("");
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("");
    if name.is_empty() || phase == "Lost" {
        return Err(VolumeError::Refused(format!("PVC {}/{claim_name} is not bound", request.context.namespace)));
    }
    let kind = kinds::find("", "v1", "persistentvolumes").ok_or_else(|| "no kind PersistentVolume".to_owned())?;
    let found = request.kubelet.objects.get(&kind, "", name).await;
    let value = found.map_err(|error| VolumeError::Refused(format!("failed to fetch PV {name}: {error}")))?;
    let volume: PersistentVolume = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    if reference.and_then(|reference| reference.uid.as_ref()) != claim.metadata.uid.as_ref() {
        return Err(VolumeError::Refused(format!(
            "PV {name} is not bound to PVC {}/{claim_name}",
            request.context.namespace
        )));
    }
    Ok(volume)
}

/// Whether the volume's node affinity allows this node, as far as it speaks of hostnames.
pub fn reaches_node(volume: &PersistentVolume, node: &str) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref()?.required.as_ref());
    let Some(required) = affinity else { return true };
    let fits = |term: &NodeSelectorTerm| {
        term.match_expressions.iter().flatten().filter(|rule| rule.key == "kubernetes.io/hostname").all(|rule| {
            let named = rule.values.iter().flatten().any(|value| value == node);
            match rule.operator.as_str() {
                "In" => named,
                "NotIn" => !named,
                "DoesNotExist" => false,
                _ => true,
            }
        })
    };
    required.node_selector_terms.iter().any(fits)
}

/// Whether the volume's node affinity speaks of hostnames.
fn names_hosts(volume: &PersistentVolume) -> bool {
    let affinity = volume.spec.as_ref().and_then(|spec| spec.node_affinity.as_ref()?.required.as_ref());
    let terms = affinity.into_iter().flat_map(|required| &required.node_selector_terms);
    terms.flat_map(|term| term.match_expressions.iter().flatten()).any(|rule| rule.key == "kubernetes.io/hostname")
}

/// Whether this program declared the volume.
pub fn is_provisioned(volume: &PersistentVolume) -> bool {
    let by = volume.metadata.annotations.as_ref().and_then(|annotations| annotations.get(PROVISIONED_BY));
    by.is_some_and(|by| BUILT_IN.contains(&by.as_str()))
        || volume.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

/// The provisioned directory's path below the volume root.
pub fn relative<'a>(root: &Path, path: &'a Path) -> Result<&'a Path, VolumeError> {
    let outside =
        || VolumeError::Refused(format!("{} is not inside the volume root {}", path.display(), root.display()));
    let relative = path.strip_prefix(root).map_err(|_| outside())?;
    safe_path::plain(relative.to_str().ok_or_else(outside)?).map_err(|_| outside())
}

/// Makes a provisioned volume on first use, and notes that on the PersistentVolume before anything is written into it.
/// Gives what pods see.
async fn ensure_provisioned(
    request: &Request<'_>,
    volume: &PersistentVolume,
    root: &Path,
    path: PathBuf,
) -> Result<PathBuf, VolumeError> {
    let name = volume.metadata.name.clone().unwrap_or_default();
    let node = &request.kubelet.config.node_name;
    let made_on = volume.metadata.annotations.as_ref().and_then(|annotations| annotations.get(MADE_ON));
    if let Some(other) = made_on.filter(|made_on| *made_on != node) {
        return Err(VolumeError::Refused(format!("volume \"{name}\" lives on node \"{other}\"")));
    }
    let (made, image) = (made_on.is_some(), is_image(volume));
    let is_block = mainstay_logic::volume::is_block(volume);
    let overcommitted = mainstay_logic::volume::annotation(&volume.metadata, OVERCOMMIT) == "true";
    let size = mainstay_logic::volume::capacity(volume);
    let root = root.to_owned();
    let users = request.kubelet.volumes.users().clone();
    let copy_of = source::copy_of(volume).filter(|_| !made).map(str::to_owned);
    let exe = request.kubelet.config.shim_exe.clone();
    let (is_copy, volume_name) = (copy_of.is_some(), volume.metadata.name.as_deref().unwrap_or(""));
    let alone = users.lock_all([Some(name), copy_of.clone()].into_iter().flatten()).await;
    let make = move || {
        let _alone = alone;
        if image {
            let image = Image::new(&root, &path)?;
            let size = u64::try_from(size).unwrap_or(0);
            let Some(folder) = copy_of else {
                let growth = if is_block { image.ensure_block(size, made)? } else { image.ensure(size, made)? };
                if overcommitted {
                    image.note_overcommitted()?;
                }
                return Ok((if is_block { path } else { image.data() }, growth));
            };
            let from = Image::new(
                &root,
                &root.join(safe_path::plain(&folder).map_err(VolumeError::io("what is to be copied"))?),
            )?;
            let growth = image.ensure_copy(&from, Hold { exe: &exe, limit: freeze::LIMIT }, size, is_block)?;
            if overcommitted {
                image.note_overcommitted()?;
            }
            return Ok((if is_block { path } else { image.data() }, growth));
        }
        if is_block {
            return Err(VolumeError::Refused("a plain directory is no block device".to_owned()));
        }
        if copy_of.is_some() {
            return Err(VolumeError::Refused("a plain directory cannot be a copy of another volume".to_owned()));
        }
        if made { must_exist(&root, &path) } else { self::make(&root, &path) }.map(|()| (path, Growth::Done))
    };
    let done = if is_copy { blocking_long(volume_name, make).await } else { blocking_on(volume_name, make).await };
    let (seen, growth) = done?;
    let grown = image && growth == Growth::Done && growth::is_due(volume);
    if made && !grown {
        return Ok(seen);
    }
    growth::note(request.kubelet, volume, image.then_some(size)).await?;
    if made {
        growth::record_event(request.kubelet, volume, &Ok(Growth::Done));
    }
    Ok(seen)
}

/// A directory that was made must still be there (V5).
pub(super) fn must_exist(root: &Path, path: &Path) -> Result<(), VolumeError> {
    let inside = relative(root, path)?;
    let opened = safe_path::open_root(root)
        .and_then(|root| safe_path::open_strict(&root, inside, OFlag::O_DIRECTORY | OFlag::O_PATH));
    match opened {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(VolumeError::Refused(format!(
            "the volume's directory {} is missing: its data was made on this node and is gone; refusing to start on \
                an empty one",
            path.display()
        ))),
        Err(error) => Err(VolumeError::Io { what: format!("opening {}", path.display()), source: error }),
    }
}

/// Makes the directory: the root for root only, the directory itself for any user of the pod.
pub(super) fn make(root: &Path, path: &Path) -> Result<(), VolumeError> {
    let inside = relative(root, path)?.to_owned();
    let work = || -> io::Result<()> {
        make_private_dir(root)?;
        let mut dir = safe_path::open_root(root)?;
        for part in inside.components() {
            let part = Path::new(&part);
            match nix::sys::stat::mkdirat(Some(dir.as_raw_fd()), part, Mode::S_IRWXU) {
                Ok(()) => nix::unistd::fsync(dir.as_raw_fd())?,
                Err(nix::errno::Errno::EEXIST) => {}
                Err(error) => return Err(error.into()),
            }
            dir = safe_path::open_strict(&dir, part, OFlag::O_DIRECTORY)?;
        }
        fs::set_permissions(safe_path::fd_path(&dir), fs::Permissions::from_mode(0o777))
    };
    work().map_err(VolumeError::io(format!("making {}", path.display())))
}
