//! Three machines that run `mainstay up` on one etcd: each is a server and a node.

use std::fs;

use crate::harness::Cluster;
use crate::harness::etcd::Etcd;
use crate::harness::machines::{Lan, address};

const WEB: &str = "
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: main, image: 'test.local/busybox:1', imagePullPolicy: Never, command: [sleep, '100000']}]
";

fn up(machine: &mut Cluster, number: u8, store: &str) {
    let (own, name) = (address(number), format!("node-{number}"));
    let words = ["--node-name", &name, "--node-ip", &own, "--advertise-address", &own, "--store", store];
    machine.up_with(&[&words[..], &["--pod-network", "routes"]].concat());
}

#[test]
fn machines_that_are_server_and_node_go_on_without_one_another_m3() {
    let lan = Lan::new();
    let mut machines: Vec<Cluster> = (1..=3).map(|_| Cluster::unstarted().open_to_pods()).collect();
    (1..).zip(&machines).for_each(|(number, machine)| lan.plug(machine, number));
    let store_machine = Cluster::unstarted();
    lan.plug(&store_machine, 4);
    let etcd = Etcd::on(&[4]);
    let _member = etcd.start(&store_machine, 4);
    etcd.answers(&store_machine, 4);
    let store = etcd.store();
    up(&mut machines[0], 1, &store);
    let seal = fs::read(machines[0].data_dir().join("seal.key")).expect("the seal");
    for number in 2..=3 {
        let machine = &mut machines[usize::from(number) - 1];
        fs::create_dir_all(machine.data_dir()).expect("a folder");
        fs::write(machine.data_dir().join("seal.key"), &seal).expect("brought");
        up(machine, number, &store);
    }
    machines.iter().for_each(|machine| machine.load(&["busybox"]));
    let ranges = machines[2].kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].spec.podCIDR}"]);
    assert_eq!(ranges, "10.244.0.0/24 10.244.1.0/24 10.244.2.0/24");
    machines[1].apply(WEB);
    machines[2].kubectl(&["rollout", "status", "daemonset/web", "--timeout=60s"]);
    let pod_of = |asked: &Cluster, node: &str| {
        let field = format!("--field-selector=spec.nodeName={node}");
        asked.kubectl(&["get", "pods", "-l", "app=web", &field, "-o", "jsonpath={.items[*].metadata.name}"])
    };
    let first = pod_of(&machines[2], "node-1");
    let process = machines[2].process_of(&first);

    // Server and agent of one machine die; what runs there goes on, and so do the others.
    machines[0].kill9();
    machines[1].eventually("the others answer", || {
        machines[1].try_kubectl(&["create", "configmap", "without-the-first"]).status.success()
    });
    assert!(fs::exists(format!("/proc/{process}")).expect("/proc"), "M3");
    let third = pod_of(&machines[1], "node-3");
    assert_eq!(machines[1].exec(&third, &["hostname"]).trim(), third);

    // One server loses etcd; its machine's node goes to another server, and gets work.
    let cut = |is_cut: bool| {
        let args = ["route", if is_cut { "add" } else { "del" }, "blackhole", &format!("{}/32", address(4))];
        assert!(machines[1].inside("ip").args(args).status().expect("ip").success());
    };
    cut(true);
    let second = pod_of(&machines[2], "node-2");
    machines[2].kubectl(&["delete", "pod", &second, "--wait=false"]);
    machines[2].eventually("a node without its server's etcd runs a new pod", || {
        let now = machines[2].try_kubectl(&[
            "get",
            "pods",
            "-l",
            "app=web",
            "--field-selector=spec.nodeName=node-2,status.phase=Running",
            "-o",
            "jsonpath={.items[*].metadata.name}",
        ]);
        let now = String::from_utf8_lossy(&now.stdout).into_owned();
        !now.is_empty() && !now.contains(&second)
    });
    cut(false);

    // The first one comes back as it was: its pod is adopted.
    up(&mut machines[0], 1, &store);
    machines[0].eventually("its pod is there", || pod_of(&machines[0], "node-1") == first);
    assert_eq!(machines[0].process_of(&first), process, "V7: it was not started again");
    machines[0].kubectl(&["wait", "--for=condition=Ready", "node", "--all", "--timeout=60s"]);
}
