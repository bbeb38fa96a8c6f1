//! Not shipped: what tests re-execute as a container's supervisor, in place of the real binary.

fn main() {
    mainstay_node::shim::run_if_supervisor();
    std::process::exit(2);
}
