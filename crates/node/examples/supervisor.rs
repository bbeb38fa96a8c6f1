//! Not shipped: what the volumes' tests re-execute in place of the real binary, as a supervisor, a freezer of volumes
//! or an NFS mount.

fn main() {
    mainstay_node::run_if_supervisor();
    std::process::exit(2)
}
