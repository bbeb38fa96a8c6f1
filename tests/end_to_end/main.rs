//! End to end: the real binary, the real kubectl, kill -9. One program, so that it is linked once.

mod authorization;
mod claims;
mod crash;
mod dns;
mod harness;
mod helm;
mod kill_postgres;
mod kubectl;
mod machines;
mod network;
mod nfs_class;
mod nfs_client;
mod pod_confinement;
mod pod_environment;
mod pod_lifecycle;
mod pressure;
mod registry;
mod several_servers;
mod snapshots;
mod store;
mod up_and_down;
mod volumes;
mod walkthrough_httpd;
mod walkthrough_nfs;
mod walkthrough_postgres;
mod workloads;
