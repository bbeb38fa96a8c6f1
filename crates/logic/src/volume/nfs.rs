//! Volumes that are sub-directories of an NFS export, one for each claim, made by a node.
//!
//! The volume is declared for its claim like any other, but the claim is bound only when the folder is there: a server
//! that is away leaves the claim Pending, and whatever happens meanwhile, the volume says what there is to clean up.
//!
//! ```text
//! claim          -> volume with claimRef, FINALIZER, WORK_ON: a node      (this module, persistentvolume controller)
//! that node      -> makes the folder, then MADE_ON, SIZE, MADE_SIZE       (node::volumes::export)
//! claim          -> bound                                                 (persistentvolumeclaim controller)
//! claim grows    -> capacity; that node tells the server, then MADE_SIZE
//! volume deleted -> that node removes the folder, then FINALIZER
//! ```
//!
//! Any node can do it; when the one that was asked is not ready, another is. Guarantees V6 (the folder's name holds the
//! claim's uid), V3 (what is removed is that folder, found below the class's share).
//! Differs: a `subDir` that does not name the volume gets a folder of the volume's name below it, so that a claim made
//! again never meets old data.

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use mainstay_api::{ObjectKey, kinds};
use serde_json::{Value, json};

use super::{MADE_ON, PROVISIONED_BY, PV_PROTECTION, SELECTED_NODE, SIZE, SIZE_NONE, annotation, capacity, made_size};
use crate::decision::{Event, Write};
use crate::nodes::is_ready;
use crate::snapshot::{Index, Snapshot};

/// The provisioner's own name.
pub const PROVISIONER: &str = "mainstay.io/nfs";
/// Other provisioners' names, which are answered to where the class says which server: otherwise somebody else does.
const OTHERS: [&str; 3] =
    ["nfs.csi.k8s.io", "cluster.local/nfs-subdir-external-provisioner", "k8s-sigs.io/nfs-subdir-external-provisioner"];
/// Kept on the volume until a node has done with its folder what the policy says.
pub const FINALIZER: &str = "mainstay.io/nfs";
/// On the volume: the node that makes, resizes and removes its folder.
pub const WORK_ON: &str = "mainstay.io/work-on";
/// On the volume: the share below which its folder is.
pub const SHARE: &str = "mainstay.io/nfs-share";
/// On the volume: what becomes of the folder with policy Delete: `delete`, `retain` or `archive`.
pub const ON_DELETE: &str = "mainstay.io/nfs-on-delete";
/// On the volume: the folder's mode, octal.
pub const MODE: &str = "mainstay.io/nfs-mode";
/// [`SIZE`]: the server keeps it.
pub const SIZE_SERVER: &str = "server";
/// [`SIZE`], until the folder is made: by the server if it can, else by nobody.
const SIZE_AUTO: &str = "auto";
/// The longest name of a folder.
const MAX_NAME: usize = 255;

/// What a class asks for.
#[derive(Debug, PartialEq, Eq)]
struct Parameters<'a> {
    server: &'a str,
    share: &'a str,
    sub_dir: Option<&'a str>,
    on_delete: &'a str,
    mode: &'a str,
    size: &'a str,
}

fn parameter<'a>(class: &'a StorageClass, name: &str) -> Option<&'a str> {
    class.parameters.as_ref()?.get(name).map(String::as_str)
}

/// Whether this program provisions for the class.
pub fn provisions(class: &StorageClass) -> bool {
    let named = parameter(class, "server").is_some() && parameter(class, "share").is_some();
    class.provisioner == PROVISIONER || (named && OTHERS.contains(&class.provisioner.as_str()))
}

/// Whether this program made the volume's folder, or is to.
pub fn is_ours(volume: &PersistentVolume) -> bool {
    volume.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

/// Whether the volume's folder is not there yet.
pub fn is_folder_unmade(volume: &PersistentVolume) -> bool {
    is_ours(volume) && annotation(&volume.metadata, MADE_ON).is_empty()
}

/// Whether the server keeps the volume's size.
pub fn is_sized(volume: &PersistentVolume) -> bool {
    is_ours(volume) && annotation(&volume.metadata, SIZE) == SIZE_SERVER
}

fn parameters(class: &StorageClass) -> Result<Parameters<'_>, String> {
    let mut found =
        Parameters { server: "", share: "", sub_dir: None, on_delete: "delete", mode: "0777", size: SIZE_AUTO };
    // The subdir provisioner's default, for classes that were written for it.
    let mut archive = class.provisioner.ends_with("/nfs-subdir-external-provisioner");
    for (name, value) in class.parameters.iter().flatten() {
        match name.as_str() {
            "server" => found.server = value,
            "share" => found.share = value,
            "subDir" | "pathPattern" => found.sub_dir = Some(value.as_str()).filter(|value| !value.is_empty()),
            "onDelete" if ["delete", "retain", "archive"].contains(&value.as_str()) => found.on_delete = value,
            "archiveOnDelete" if ["true", "false"].contains(&value.as_str()) => archive &= value == "true",
            "mountPermissions" if value == "0" => {}
            "mountPermissions" if u32::from_str_radix(value, 8).is_ok_and(|mode| mode <= 0o7777) => found.mode = value,
            SIZE if [SIZE_AUTO, SIZE_SERVER, SIZE_NONE].contains(&value.as_str()) => found.size = value,
            "csi.storage.k8s.io/fstype" => {}
            _ => return Err(format!("parameter {name}: \"{value}\" is not understood")),
        }
    }
    if archive && parameter(class, "onDelete").is_none() {
        found.on_delete = "archive";
    }
    let plain = |text: &str| !text.chars().any(|c| c.is_whitespace() || c.is_control());
    if found.server.is_empty() || found.server.contains('/') || !plain(found.server) {
        return Err(format!("parameter server: \"{}\" is not the name or address of a server", found.server));
    }
    if !found.share.starts_with('/') || !found.share.split('/').skip(1).all(|name| name.is_empty() || is_name(name)) {
        return Err(format!("parameter share: \"{}\" is not an absolute path", found.share));
    }
    Ok(found)
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && name.len() <= MAX_NAME && !name.chars().any(char::is_control)
}

/// The volume's folder below the share: its names. The last one holds the claim's uid.
fn folder(claim: &PersistentVolumeClaim, sub_dir: Option<&str>) -> Result<Vec<String>, String> {
    let own = super::provisioned_name(claim);
    let (name, namespace) =
        (claim.metadata.name.as_deref().unwrap_or(""), claim.metadata.namespace.as_deref().unwrap_or(""));
    let mut path = sub_dir.unwrap_or("").to_owned();
    for (pattern, value) in [
        ("${pvc.metadata.name}", name),
        ("${pvc.metadata.namespace}", namespace),
        ("${pv.metadata.name}", own.as_str()),
        ("${.PVC.name}", name),
        ("${.PVC.namespace}", namespace),
    ] {
        path = path.replace(pattern, value);
    }
    let mut names: Vec<String> = path.split('/').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    if !names.last().is_some_and(|last| last.contains(&own)) {
        names.push(own);
    }
    match names.iter().find(|name| !is_name(name) || name.contains('$')) {
        Some(wrong) => Err(format!("parameter subDir: \"{wrong}\" cannot be the name of a folder")),
        None => Ok(names),
    }
}

/// Whether a folder is what a claim asks for. One that asks for a copy of other data must wait rather than start empty.
fn suits(claim: &PersistentVolumeClaim) -> Result<(), String> {
    super::plain(claim)?;
    if super::asks_for_block(claim) {
        return Err("the provisioner does not support volume mode Block".to_owned());
    }
    match claim.spec.as_ref() {
        Some(spec) if spec.data_source.is_some() || spec.data_source_ref.is_some() => {
            Err("the provisioner does not support data sources".to_owned())
        }
        _ => Ok(()),
    }
}

/// Why the class can make nothing for a claim.
pub fn provisionable(claim: &PersistentVolumeClaim, class: &StorageClass) -> Result<(), String> {
    suits(claim)?;
    folder(claim, parameters(class)?.sub_dir).map(|_| ())
}

/// A node for the work: the one that was asked or selected if it is ready, else the first ready one.
pub fn worker<'a>(snapshot: &'a Snapshot, asked: &str) -> Option<&'a str> {
    let ready = |node: &Node| is_ready(node);
    let all = || snapshot.found::<Node>(Index::NodesReady, "", "").next();
    let same = snapshot.nodes.get_key_value(&ObjectKey::new("", asked)).filter(|(_, node)| ready(node));
    same.or_else(all).map(|(key, _)| &*key.name)
}

/// The volume that is declared for a claim, and what people are told.
///
/// # Errors
/// See [`provisionable`].
pub fn provision(
    snapshot: &Snapshot,
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
) -> Result<(Write, Event), String> {
    suits(claim)?;
    let asked = parameters(class)?;
    let path = folder(claim, asked.sub_dir)?.join("/");
    let share = asked.share.trim_end_matches('/');
    let spec = claim.spec.as_ref();
    let name = super::provisioned_name(claim);
    let work_on = worker(snapshot, annotation(&claim.metadata, SELECTED_NODE));
    let object = json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {
            "name": name,
            "annotations": {
                PROVISIONED_BY: class.provisioner, SIZE: asked.size, SHARE: asked.share, ON_DELETE: asked.on_delete,
                MODE: asked.mode, WORK_ON: work_on.unwrap_or(""),
            },
            "finalizers": [PV_PROTECTION, FINALIZER],
        },
        "spec": {
            "capacity": {"storage": spec.and_then(|spec| spec.resources.as_ref()?.requests.as_ref()?.get("storage"))},
            "accessModes": super::access_modes(claim),
            "volumeMode": "Filesystem",
            "persistentVolumeReclaimPolicy": class.reclaim_policy.as_deref().unwrap_or("Delete"),
            "storageClassName": class.metadata.name,
            "mountOptions": class.mount_options.as_deref().unwrap_or_default(),
            "claimRef": super::reference(claim),
            "nfs": {"server": asked.server, "path": format!("{share}/{path}")},
        },
    });
    let message = format!(
        "Provisioning volume for claim \"{}\": a folder of {}:{}",
        crate::decision::key_of(&claim.metadata),
        asked.server,
        asked.share
    );
    let event = Event::normal(&kinds::PERSISTENT_VOLUME_CLAIM, &claim.metadata, "Provisioning", message);
    Ok((Write::Create { kind: kinds::PERSISTENT_VOLUME.clone(), object }, event))
}

/// What a node is to do for a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    Make,
    Grow,
    /// With policy Delete, in the way that [`ON_DELETE`] says.
    Remove,
}

/// What is to be done for a volume, by whichever node.
fn due(volume: &PersistentVolume) -> Option<Task> {
    if volume.metadata.deletion_timestamp.is_some() {
        // While another finalizer holds it, it may still be in use (V2).
        let last = volume.metadata.finalizers.as_deref() == Some(&[FINALIZER.to_owned()]);
        let deletes =
            volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref()) == Some("Delete");
        return (last && deletes).then_some(Task::Remove);
    }
    if is_folder_unmade(volume) {
        return Some(Task::Make);
    }
    (is_sized(volume) && made_size(volume).is_none_or(|made| made != capacity(volume))).then_some(Task::Grow)
}

/// What this node is to do for a volume.
pub fn task(volume: &PersistentVolume, node: &str) -> Option<Task> {
    if annotation(&volume.metadata, WORK_ON) == node { due(volume) } else { None }
}

/// Whether a volume waits for a node's work.
pub fn is_waiting(volume: &PersistentVolume) -> bool {
    due(volume).is_some()
}

/// The write that asks a node for what is due, where the one that was asked is not ready.
pub fn appoint(snapshot: &Snapshot, volume: &PersistentVolume) -> Option<Write> {
    let asked = annotation(&volume.metadata, WORK_ON);
    let worker = worker(snapshot, asked).filter(|worker| is_waiting(volume) && *worker != asked)?;
    let patch = json!({"metadata": {"annotations": {WORK_ON: worker}}});
    Some(Write::patch(&kinds::PERSISTENT_VOLUME, &volume.metadata, patch))
}

/// Where a volume's folder is: server, share, and the names below it.
///
/// # Errors
/// The volume was changed so that it is not below its share any more, or is not its own.
pub fn location(volume: &PersistentVolume) -> Result<(&str, &str, Vec<&str>), String> {
    let name = volume.metadata.name.as_deref().unwrap_or("");
    let source = volume
        .spec
        .as_ref()
        .and_then(|spec| spec.nfs.as_ref())
        .ok_or_else(|| format!("volume \"{name}\" is not of kind nfs"))?;
    let share = annotation(&volume.metadata, SHARE);
    let below = source.path.strip_prefix(share.trim_end_matches('/')).and_then(|rest| rest.strip_prefix('/'));
    let names: Vec<&str> = below.unwrap_or("").split('/').collect();
    let own = names.last().is_some_and(|last| !name.is_empty() && last.contains(name));
    if share.is_empty() || !own || !names.iter().all(|name| is_name(name)) {
        return Err(format!("volume \"{name}\": {} is not its own folder below the share {share}", source.path));
    }
    Ok((&source.server, share, names))
}

/// The annotations by which a node says that a folder is there.
pub fn made(node: &str, volume: &PersistentVolume, sized: bool) -> Value {
    let bytes = sized.then(|| capacity(volume).to_string());
    json!({(MADE_ON): node, (SIZE): if sized { SIZE_SERVER } else { SIZE_NONE }, (super::MADE_SIZE): bytes})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(provisioner: &str, parameters: Value) -> StorageClass {
        serde_json::from_value(
            json!({"metadata": {"name": "nfs"}, "provisioner": provisioner, "parameters": parameters}),
        )
        .unwrap()
    }

    fn claim() -> PersistentVolumeClaim {
        serde_json::from_value(json!({"metadata": {"namespace": "shop", "name": "data", "uid": "u-1"}, "spec": {
            "accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}}))
        .unwrap()
    }

    fn path(provisioner: &str, parameters: Value) -> Result<String, String> {
        let (write, _) = provision(&Snapshot::default(), &claim(), &class(provisioner, parameters))?;
        let Write::Create { object, .. } = write else { panic!() };
        let volume: PersistentVolume = serde_json::from_value(object.clone()).unwrap();
        let (_, _, names) = location(&volume).unwrap();
        assert!(names.last().unwrap().contains("pvc-u-1"), "V6");
        Ok(format!(
            "{} {}",
            object["spec"]["nfs"]["path"].as_str().unwrap(),
            object["metadata"]["annotations"][ON_DELETE].as_str().unwrap()
        ))
    }

    #[test]
    fn v6_every_claim_has_a_folder_of_its_own_whatever_the_class_says() {
        let with = |more: Value| {
            let mut parameters = json!({"server": "nfs.example", "share": "/exports/a"});
            parameters.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            parameters
        };
        for (provisioner, parameters, expected) in [
            (PROVISIONER, json!({}), "/exports/a/pvc-u-1 delete"),
            (PROVISIONER, json!({"share": "/"}), "/pvc-u-1 delete"),
            (
                PROVISIONER,
                json!({"subDir": "${pvc.metadata.namespace}/${pvc.metadata.name}"}),
                "/exports/a/shop/data/pvc-u-1 delete",
            ),
            (
                OTHERS[0],
                json!({"subDir": "x-${pv.metadata.name}", "onDelete": "retain"}),
                "/exports/a/x-pvc-u-1 retain",
            ),
            (OTHERS[1], json!({"pathPattern": "${.PVC.namespace}"}), "/exports/a/shop/pvc-u-1 archive"),
            (OTHERS[2], json!({"archiveOnDelete": "false", "mountPermissions": "0770"}), "/exports/a/pvc-u-1 delete"),
        ] {
            assert_eq!(path(provisioner, with(parameters)).as_deref(), Ok(expected));
        }
        for wrong in [
            json!({"server": ""}),
            json!({"server": "a/b"}),
            json!({"share": "exports"}),
            json!({"share": "/exports/../etc"}),
            json!({"subDir": "../${pvc.metadata.name}"}),
            json!({"subDir": "${.PVC.annotations.path}"}),
            json!({"onDelete": "shred"}),
            json!({"mountPermissions": "rwx"}),
            json!({"csi.storage.k8s.io/provisioner-secret-name": "s"}),
            json!({SIZE: "quota"}),
        ] {
            assert!(path(PROVISIONER, with(wrong.clone())).is_err(), "{wrong}");
        }
        assert!(
            !provisions(&class(OTHERS[1], json!({"archiveOnDelete": "true"}))),
            "whoever runs that provisioner has the server's name"
        );
        assert!(provisions(&class(PROVISIONER, json!({}))), "and is told what is missing");
    }

    #[test]
    fn v3_only_the_volumes_own_folder_is_ever_named() {
        let volume = |path: &str, share: &str| -> PersistentVolume {
            serde_json::from_value(json!({"metadata": {"name": "pvc-u-1", "annotations": {SHARE: share}},
                    "spec": {"nfs": {"server": "s", "path": path}}}))
            .unwrap()
        };
        assert_eq!(location(&volume("/a/b/pvc-u-1", "/a")), Ok(("s", "/a", vec!["b", "pvc-u-1"])));
        for (path, share) in [
            ("/a", "/a"),
            ("/a/other", "/a"),
            ("/b/pvc-u-1", "/a"),
            ("/a/../pvc-u-1", "/a"),
            ("/a/pvc-u-1", ""),
            ("/a/pvc-u-1/x", "/a"),
        ] {
            assert!(location(&volume(path, share)).is_err(), "{path}");
        }
    }
}
