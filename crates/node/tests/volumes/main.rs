//! One suite for every kind of volume, and one for every reclaim policy: what [`drivers`] promise about mounting, and
//! [`policies`] about what becomes of the data. With a real API server and its controllers, real mounts and real
//! containers. A new kind of volume is a new line in [`suite!`], a new policy of one a new line in [`reclaim!`].
//!
//! kill -9 comes at some moments of all; `MAINSTAY_SUITE_MOMENTS=1000` tries every one, `MAINSTAY_SUITE_SEED=7` others.

#[path = "../../../runtime/tests/support/mod.rs"]
mod support;

/// What is re-executed as a supervisor.
const SUPERVISOR: &str = "supervisor";

mod block;
mod copies;
mod dead_server;
mod drivers;
mod kill;
mod policies;
mod steps;
mod testbed;

/// Where a volume comes from. `DIR` stands for a folder of the machine's that is exported by NFS too.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// A pod's own volume.
    Pod(&'static str),
    /// A claim of a PersistentVolume that somebody made.
    Volume(&'static str),
    /// A claim of a class with these parameters.
    Class(&'static str),
    /// The same, made for one pod.
    Ephemeral(&'static str),
}

/// What is in the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// What its pod writes, as long as there is the pod.
    OfPod,
    /// What any pod wrote.
    Kept,
    /// The file `key` with the text `given`; pods can't write.
    Given,
}

/// Whether `fsGroup` gets the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    Applied,
    Ignored,
}

/// A kind of volume.
#[derive(Clone, Copy, Debug)]
pub struct Kind {
    pub source: Source,
    pub data: Data,
    pub group: Group,
}

macro_rules! suite {
    ($($name:ident: $source:expr, $data:expr, $group:expr;)*) => {
        $(
            pub const $name: Kind = Kind { source: $source, data: $data, group: $group };
            #[allow(non_snake_case)]
            mod $name {
                #[test]
                fn v5_v7_v8_passes_the_suite() {
                    crate::drivers::all(stringify!($name), super::$name);
                }
                #[test]
                fn v4_v7_kill_9_between_any_two_steps() {
                    crate::kill::mounting(stringify!($name), super::$name);
                }
            }
        )*
    };
}

macro_rules! reclaim {
    ($($name:ident: $kind:expr, $policy:ident;)*) => {
        $(
            #[allow(non_snake_case)]
            mod $name {
                #[test]
                fn v2_v3_v6_keeps_its_policy() {
                    crate::policies::all(stringify!($name), $kind, crate::policies::Policy::$policy);
                }
            }
        )*
    };
}

use Data::{Given, Kept, OfPod};
use Group::{Applied, Ignored};
use Source::{Class, Ephemeral, Pod, Volume};

suite! {
    EMPTY_DIR: Pod(r#"{"emptyDir": {}}"#), OfPod, Applied;
    EMPTY_DIR_IN_MEMORY: Pod(r#"{"emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}}"#), OfPod, Applied;
    HOST_PATH: Pod(r#"{"hostPath": {"path": "DIR", "type": "Directory"}}"#), Kept, Ignored;
    CONFIG_MAP: Pod(r#"{"configMap": {"name": "settings"}}"#), Given, Applied;
    SECRET: Pod(r#"{"secret": {"secretName": "settings"}}"#), Given, Applied;
    DOWNWARD_API: Pod(r#"{"downwardAPI": {"items": [{"path": "key", "fieldRef": {"fieldPath": "metadata.labels['given']"}}]}}"#), Given, Applied;
    PROJECTED: Pod(r#"{"projected": {"sources": [{"configMap": {"name": "settings"}}, {"serviceAccountToken": {"path": "token"}}]}}"#), Given, Applied;
    NFS: Pod(r#"{"nfs": {"server": "127.0.0.1", "path": "DIR"}}"#), Kept, Ignored;
    CLAIM_OF_HOST_PATH: Volume(r#"{"hostPath": {"path": "DIR"}}"#), Kept, Ignored;
    CLAIM_OF_LOCAL: Volume(r#"{"local": {"path": "DIR"}}"#), Kept, Applied;
    CLAIM_OF_NFS: Volume(r#"{"nfs": {"server": "127.0.0.1", "path": "DIR"}}"#), Kept, Ignored;
    LOCAL_PATH_IMAGE: Class(r#"{"mainstay.io/size": "image"}"#), Kept, Applied;
    LOCAL_PATH_NONE: Class(r#"{"mainstay.io/size": "none"}"#), Kept, Applied;
    EPHEMERAL: Ephemeral(r#"{"mainstay.io/size": "image"}"#), OfPod, Applied;
}

reclaim! {
    DELETE_AN_IMAGE: crate::LOCAL_PATH_IMAGE, Delete;
    DELETE_A_FOLDER: crate::LOCAL_PATH_NONE, Delete;
    RETAIN_AN_IMAGE: crate::LOCAL_PATH_IMAGE, Retain;
    RETAIN_A_FOLDER: crate::LOCAL_PATH_NONE, Retain;
    RETAIN_A_LOCAL_VOLUME: crate::CLAIM_OF_LOCAL, Retain;
    RETAIN_AN_EXPORT: crate::CLAIM_OF_NFS, Retain;
    RECYCLE_A_HOST_PATH: crate::CLAIM_OF_HOST_PATH, Recycle;
    RECYCLE_AN_EXPORT: crate::CLAIM_OF_NFS, Recycle;
}
