//! Everything that touches Linux: containers, images, cgroups, network namespaces, volumes, DNS sockets,
//! the packet filter, and the kubelet's loop that drives them. The only crate with `unsafe`.

pub mod images;
pub mod network;
pub mod runtime;
pub mod shim;
