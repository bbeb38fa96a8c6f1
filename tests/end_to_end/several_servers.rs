//! Several servers on one etcd cluster of three members: reads see what any of them wrote, controllers run in one of
//! them, and the death of a server or a member is no one else's.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use crate::harness::etcd::{Etcd, Member};
use crate::harness::machines::{Lan, address};
use crate::harness::{Cluster, text};

fn serve(machine: &mut Cluster, number: u8, store: &str) {
    machine.serve(&["--advertise-address", &address(number), "--store", store, "--pod-network", "routes"]);
}

/// The server that runs the controllers.
fn holder_of(server: &Cluster) -> String {
    let path = "jsonpath={.spec.holderIdentity}";
    server.kubectl(&["-n", "kube-system", "get", "lease", "mainstay-controllers", "-o", path])
}

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      containers: [{name: main, image: 'test.local/busybox:1', imagePullPolicy: Never, command: [sleep, '100000']}]
";

#[test]
#[expect(clippy::too_many_lines, reason = "one story")]
fn servers_share_a_store_and_one_of_them_runs_the_controllers_m1_m2_m3() {
    let lan = Lan::new();
    let mut servers: [Cluster; 3] = std::array::from_fn(|_| Cluster::unstarted().open_to_pods());
    for (number, machine) in (1..).zip(&servers) {
        lan.plug(machine, number);
    }
    let etcd = Etcd::on(&[1, 2, 3]);
    let mut members: Vec<Option<Member>> =
        (1..).zip(&servers).map(|(number, machine)| Some(etcd.start(machine, number))).collect();
    (1..).zip(&servers).for_each(|(number, machine)| etcd.answers(machine, number));
    let store = etcd.store();
    serve(&mut servers[0], 1, &store);
    let seal = servers[0].data_dir().join("seal.key");
    // Without the seal a server has no keys.
    let said = servers[1].refused_to_serve(&["--advertise-address", &address(2), "--store", &store]);
    assert!(said.contains("the cluster's keys are sealed"), "{said}");
    for (index, number) in [(1, 2), (2, 3)] {
        fs::create_dir_all(servers[index].data_dir()).expect("a folder");
        fs::copy(&seal, servers[index].data_dir().join("seal.key")).expect("copied");
        serve(&mut servers[index], number, &store);
    }

    // M2: what one has acknowledged, the others show at once.
    for round in 0..10 {
        let (writer, name) = (&servers[round % 3], format!("map-{round}"));
        writer.kubectl(&["create", "configmap", &name]);
        for reader in &servers {
            assert_eq!(reader.kubectl(&["get", "configmap", &name, "-o", "name"]), format!("configmap/{name}\n"), "M2");
        }
    }

    let mut node = Cluster::unstarted();
    lan.plug(&node, 4);
    let mut words = servers[0].invitation();
    words.extend(["--node-name".to_owned(), "node-1".to_owned()]);
    node.join(&words);
    node.load(&["busybox"]);
    servers[1].eventually("all servers are published", || {
        let found = servers[1].field("endpoints/kubernetes", "{.subsets[0].addresses[*].ip}");
        found.split(' ').map(str::to_owned).collect::<BTreeSet<_>>() == (1..4).map(address).collect()
    });
    // Whoever administrates has them all in the file, too.
    servers[1].eventually("the kubeconfig names all servers", || {
        let contexts = servers[1].kubectl(&["config", "get-contexts", "-o", "name"]);
        let named = |number: u8| contexts.contains(&format!("mainstay@{}:6443", address(number)));
        contexts.lines().any(|name| name == "mainstay") && named(1) && named(3)
    });
    let other = format!("mainstay@{}:6443", address(3));
    assert_eq!(
        servers[1].kubectl(&["--context", &other, "get", "configmap", "map-0", "-o", "name"]),
        "configmap/map-0\n"
    );
    servers[1].eventually("the node knows all servers", || {
        let member = fs::read_to_string(node.data_dir().join("node/member.json")).expect("kept");
        (1..4).all(|number| member.contains(&format!("{}:6443", address(number))))
    });
    servers[2].apply(WEB);
    servers[1].kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);

    // The leader's machine dies: server and member.
    let holder = holder_of(&servers[0]);
    let leader = (0..3).find(|index| holder.starts_with(&format!("{}-", address(index + 1)))).expect("one of them");
    let leader = usize::from(leader);
    let other = (leader + 1) % 3;
    let begun = Instant::now();
    servers[leader].kill9();
    members[leader] = None;
    servers[other].eventually("another server answers", || {
        servers[other].try_kubectl(&["scale", "deployment/web", "--replicas=3"]).status.success()
    });
    servers[other].eventually("another server's controllers act", || {
        servers[other].field("deployment/web", "{.status.replicas}") == "3"
    });
    eprintln!("controllers act {} ms after the leader's death", begun.elapsed().as_millis());
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    servers[other].kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    let next = holder_of(&servers[other]);
    assert_ne!(next, holder);
    // The node goes on with the others, and is reached through them.
    let pods = servers[other].kubectl(&["get", "pods", "-o", "jsonpath={.items[*].metadata.name}"]);
    for pod in pods.split(' ') {
        assert_eq!(servers[other].exec(pod, &["hostname"]).trim(), pod);
    }
    servers[other].eventually("the dead server is not published", || {
        !servers[other]
            .field("endpoints/kubernetes", "{.subsets[0].addresses[*].ip}")
            .contains(&address(u8::try_from(leader).expect("few") + 1))
    });

    // It comes back as it was.
    let number = u8::try_from(leader).expect("few") + 1;
    members[leader] = Some(etcd.start(&servers[leader], number));
    serve(&mut servers[leader], number, &store);
    assert_eq!(servers[leader].field("deployment/web", "{.spec.replicas}"), "3");
    assert_eq!(
        servers[leader]
            .kubectl(&["get", "configmaps", "-o", "name"])
            .lines()
            .filter(|name| name.contains("/map-"))
            .count(),
        10
    );
}

#[test]
fn a_cluster_moves_to_etcd_and_back_with_its_revision_going_forward_a3() {
    let lan = Lan::new();
    let mut machine = Cluster::unstarted().open_to_pods();
    lan.plug(&machine, 1);
    let version = |machine: &Cluster| -> u64 {
        let list = machine.kubectl(&["get", "--raw", "/api/v1/namespaces"]);
        let after = list.split_once("\"resourceVersion\":\"").expect("a list").1;
        after.split('"').next().expect("digits").parse().expect("a number")
    };
    let data = machine.data_dir().display().to_string();
    let mainstay = |machine: &Cluster, args: &[&str]| {
        let output = machine.mainstay(args).output().expect("run");
        assert!(output.status.success(), "{args:?}: {}", text(&output));
        text(&output)
    };
    machine.serve(&["--advertise-address", &address(1)]);
    machine.kubectl(&["create", "configmap", "precious", "--from-literal=a=b"]);
    let (uid, before) = (machine.uid("configmap/precious"), version(&machine));
    machine.stop();
    let file = machine.folder().join("export").display().to_string();
    mainstay(&machine, &["store", "export", "--data-dir", &data, &file]);
    // What was written after the export, up to a kill, was seen by somebody: its revisions are not given out again.
    machine.serve(&["--advertise-address", &address(1)]);
    for number in 0..5 {
        machine.kubectl(&["create", "configmap", &format!("later-{number}")]);
    }
    let before = version(&machine).max(before);
    machine.kill9();

    let members = Etcd::on(&[1]);
    let _member = members.start(&machine, 1);
    members.answers(&machine, 1);
    let etcd = members.store();
    let said = mainstay(&machine, &["store", "import", "--data-dir", &data, "--store", &etcd, &file]);
    assert!(said.contains("imported"), "{said}");
    serve(&mut machine, 1, &etcd);
    assert_eq!(machine.uid("configmap/precious"), uid);
    assert_eq!(machine.field("configmap/precious", "{.data.a}"), "b");
    let moved = version(&machine);
    assert!(moved > before, "A3: {moved} after {before}");
    // A write goes by the version that was read.
    machine.kubectl(&["patch", "configmap", "precious", "-p", "{\"data\":{\"a\":\"c\"}}"]);
    machine.stop();

    let file = machine.folder().join("export-of-etcd").display().to_string();
    mainstay(&machine, &["store", "export", "--data-dir", &data, "--store", &etcd, &file]);
    mainstay(&machine, &["store", "restore", "--data-dir", &data, &file]);
    machine.serve(&["--advertise-address", &address(1)]);
    assert_eq!(
        (machine.uid("configmap/precious"), machine.field("configmap/precious", "{.data.a}")),
        (uid, "c".into())
    );
    assert!(version(&machine) > moved, "A3");
}
