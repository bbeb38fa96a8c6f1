//! What was measured of pods, and what nobody stores in a form that logic reads: observed by the server, which asks the
//! nodes, and part of a snapshot like everything else.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

/// What a container used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Thousandths of a core, the mean over the window.
    pub cpu_milli: i64,
    /// Bytes, at the window's end.
    pub memory: i64,
}

/// What a pod's containers used.
#[derive(Clone, Debug, PartialEq)]
pub struct PodUsage {
    /// When the window ended.
    pub at: Timestamp,
    /// How long it was.
    pub window: SignedDuration,
    /// By name.
    pub containers: BTreeMap<String, Usage>,
}

/// The scale of an object whose kind logic sees by metadata only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scale {
    /// How many there shall be.
    pub replicas: i32,
    /// How many there are.
    pub current: i32,
    /// Which pods they are.
    pub selector: String,
    /// Where the object has the number that is to be changed: `spec`, `replicas`.
    pub path: Vec<String>,
}

/// Everything that was measured, at one time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// By pod uid.
    pub pods: BTreeMap<String, PodUsage>,
    /// By `apiVersion/kind/namespace/name`, of custom resources that an autoscaler scales.
    pub scales: BTreeMap<String, Scale>,
}
