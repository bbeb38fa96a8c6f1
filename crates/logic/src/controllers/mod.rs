//! The controllers: one file each, one line each in [`CONTROLLERS`].
//!
//! A file opens with what it relies on, what it guarantees (by name from INVARIANTS.md) and where it differs from
//! upstream. It holds `observe(snapshot, key) -> Option<Observed>` and `decide(&Observed, now) -> Decision`, and its
//! row `CONTROLLER`.

use crate::decision::Controller;

pub mod clusterroleaggregation;
pub mod cronjob;
pub mod customresourcedefinition;
pub mod daemonset;
pub mod deployment;
pub mod disruption;
pub mod endpoints;
pub mod endpointslice;
pub mod endpointslicemirroring;
pub mod ephemeral;
pub mod fencing;
pub mod flowdefaults;
pub mod flowschema;
pub mod garbagecollector;
pub mod horizontalpodautoscaler;
pub mod ipaddress;
pub mod job;
pub mod jobtracking;
#[cfg(test)]
mod lifetimes;
pub mod namespace;
pub mod nodelifecycle;
pub mod persistentvolume;
pub mod persistentvolumeclaim;
pub mod podgc;
pub mod pvcprotection;
pub mod pvprotection;
#[cfg(test)]
mod refused;
pub mod replicaset;
pub mod replicationcontroller;
pub mod resourcequota;
pub mod serviceaccount;
pub mod servicecidr;
pub mod staledisruption;
pub mod statefulset;
pub mod tainteviction;
pub mod ttlafterfinished;
pub mod vacprotection;
pub mod validatingadmissionpolicy;
pub mod volumegroupsnapshot;
pub mod volumesnapshot;
pub mod volumesnapshotcontent;

/// Every controller that the driver runs. The order is of no consequence.
pub const CONTROLLERS: &[Controller] = &[
    crate::scheduler::CONTROLLER,
    clusterroleaggregation::CONTROLLER,
    cronjob::CONTROLLER,
    daemonset::CONTROLLER,
    customresourcedefinition::CONTROLLER,
    deployment::CONTROLLER,
    disruption::CONTROLLER,
    endpoints::CONTROLLER,
    endpointslice::CONTROLLER,
    endpointslicemirroring::CONTROLLER,
    ephemeral::CONTROLLER,
    fencing::CONTROLLER,
    flowdefaults::CONTROLLER,
    flowschema::CONTROLLER,
    garbagecollector::CONTROLLER,
    horizontalpodautoscaler::CONTROLLER,
    ipaddress::CONTROLLER,
    job::CONTROLLER,
    jobtracking::CONTROLLER,
    namespace::CONTROLLER,
    nodelifecycle::CONTROLLER,
    persistentvolume::CONTROLLER,
    persistentvolumeclaim::CONTROLLER,
    podgc::CONTROLLER,
    pvcprotection::CONTROLLER,
    pvprotection::CONTROLLER,
    replicaset::CONTROLLER,
    resourcequota::CONTROLLER,
    replicationcontroller::CONTROLLER,
    serviceaccount::CONTROLLER,
    servicecidr::CONTROLLER,
    staledisruption::CONTROLLER,
    statefulset::CONTROLLER,
    tainteviction::CONTROLLER,
    ttlafterfinished::CONTROLLER,
    vacprotection::CONTROLLER,
    validatingadmissionpolicy::CONTROLLER,
    volumegroupsnapshot::CONTROLLER,
    volumesnapshot::CONTROLLER,
    volumesnapshotcontent::CONTROLLER,
];
