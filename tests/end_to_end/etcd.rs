//! A server and its etcd: silence, certificates, who is first, what was brought back from a snapshot.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

use crate::harness::etcd::Etcd;
use crate::harness::machines::{Lan, address};
use crate::harness::{Cluster, text};

/// A machine that is plugged in.
fn machine(lan: &Lan, number: u8) -> Cluster {
    let machine = Cluster::unstarted().open_to_pods();
    lan.plug(&machine, number);
    machine
}

fn words<'a>(own: &'a str, store: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["--advertise-address", own, "--store", store, "--pod-network", "routes"], more].concat()
}

#[test]
fn a_silent_etcd_is_waited_for_and_said_in_words() {
    let lan = Lan::new();
    let (own, etcd) = (address(1), Etcd::on(&[1]));
    let (store, mut server) = (etcd.store(), machine(&lan, 1));
    // Nobody is there yet.
    server.serve_unready(&words(&own, &store, &[]));
    server.eventually("it says what it waits for", || {
        let log = server.log();
        log.contains("waiting for etcd to answer") && log.contains(&format!("http://{own}:2379"))
    });
    // Also while it waits it is stopped by a word.
    server.stop();
    server.serve_unready(&words(&own, &store, &[]));
    let member = etcd.start(&server, 1);
    server.eventually("it serves", || server.try_kubectl(&["create", "configmap", "first"]).status.success());

    // Silent while it runs: both reads and writes are answered, in words, and it is not ready.
    member.pause(true);
    let begun = Instant::now();
    let said = server.refused(&["--request-timeout=30s", "get", "configmap", "first"]);
    assert!(said.contains("ServiceUnavailable") && said.contains("etcdserver: request timed out"), "{said}");
    let said = server.refused(&["get", "--raw", "/readyz?verbose"]);
    assert!(said.contains("[-]etcd-readiness failed: etcd is silent for"), "{said}");
    assert!(server.kubectl(&["get", "--raw", "/livez"]).contains("ok"));
    eprintln!("words after {} ms of silence", begun.elapsed().as_millis());
    // Of a write that was on its way nobody knows.
    let said = server.refused(&["--request-timeout=30s", "create", "configmap", "in-doubt"]);
    assert!(said.contains("etcdserver: request timed out"), "{said}");
    member.pause(false);
    server.eventually("it is ready again", || server.try_kubectl(&["get", "--raw", "/readyz"]).status.success());
    server.kubectl(&["create", "configmap", "second"]);
    assert_eq!(server.kubectl(&["get", "configmap", "first", "-o", "name"]), "configmap/first\n", "A2");
}

/// A CA, and files of what it signs.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("signed").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    fn write(&self, folder: &Path, name: &str, names: &[String]) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(names.to_vec()).expect("names");
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let signed = params.signed_by(&key, &self.issuer).expect("signed");
        fs::write(folder.join(format!("{name}.pem")), signed.pem()).expect("written");
        fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).expect("written");
    }
}

#[test]
fn etcd_and_server_trust_each_other_by_certificates_only_x1() {
    let lan = Lan::new();
    let mut server = machine(&lan, 1);
    let folder = tempfile::tempdir().expect("a folder");
    let (ours, others) = (Authority::new("etcd-ca"), Authority::new("another-ca"));
    let own = address(1);
    ours.write(folder.path(), "member", &[own.clone(), "127.0.0.1".to_owned()]);
    ours.write(folder.path(), "client", &[]);
    others.write(folder.path(), "stranger", &[]);
    fs::write(folder.path().join("ca.pem"), &ours.pem).expect("written");
    fs::write(folder.path().join("other-ca.pem"), &others.pem).expect("written");
    let etcd = Etcd { tls: Some(folder.path().to_owned()), ..Etcd::on(&[1]) };
    let _member = etcd.start(&server, 1);
    etcd.answers(&server, 1);
    let (store, at) = (etcd.store(), |name: &str| folder.path().join(name).display().to_string());
    let (ca, other_ca) = (at("ca.pem"), at("other-ca.pem"));
    let (client, key, stranger, stranger_key) =
        (at("client.pem"), at("client.key"), at("stranger.pem"), at("stranger.key"));

    let refused = |more: &[&str], wanted: &str| {
        let begun = Instant::now();
        let said = server.refused_to_serve(&words(&own, &store, more));
        assert!(said.contains(wanted), "{wanted:?} is not in {said:?}");
        assert_eq!(said.lines().filter(|line| line.starts_with("mainstay: ")).count(), 1, "one sentence: {said}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    };
    let identity = ["--etcd-certfile", &client, "--etcd-keyfile", &key];
    refused(&identity, "name the CA of etcd's members with --etcd-cafile");
    let not_signed = format!("the certificate of https://{own}:2379 is not signed by the CA that was given for etcd");
    refused(&[&["--etcd-cafile", &other_ca], &identity[..]].concat(), &not_signed);
    let asks = format!("https://{own}:2379 asks for a client certificate, and none is given");
    refused(&["--etcd-cafile", &ca], &asks);
    let not_accepted = format!("https://{own}:2379 does not accept this server's client certificate");
    let strange = ["--etcd-cafile", &ca, "--etcd-certfile", &stranger, "--etcd-keyfile", &stranger_key];
    refused(&strange, &not_accepted);

    server.serve(&words(&own, &store, &[&["--etcd-cafile", &ca], &identity[..]].concat()));
    server.kubectl(&["create", "configmap", "map"]);
    assert!(
        etcd.etcdctl(&server, 1, &["get", "--prefix", "--keys-only", "/mainstay/core/configmaps/default/"])
            .contains("map")
    );
    // An export goes the same way.
    let (data, file) = (server.data_dir().display().to_string(), server.folder().join("export").display().to_string());
    let words = ["store", "export", "--data-dir", &data, "--store", &store, "--etcd-cafile", &ca];
    let output = server.mainstay(&[&words[..], &identity[..], &[&file]].concat()).output().expect("run");
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn of_servers_that_begin_at_once_one_is_the_first() {
    let lan = Lan::new();
    let mut servers: Vec<Cluster> = (1..=3).map(|number| machine(&lan, number)).collect();
    let etcd = Etcd::on(&[1]);
    let store = etcd.store();
    // All of them wait for the same moment.
    for (number, server) in (1..).zip(&mut servers) {
        server.serve_unready(&words(&address(number), &store, &[]));
    }
    for server in &servers {
        server.eventually("it waits", || server.log().contains("waiting for etcd to answer"));
    }
    let _member = etcd.start(&servers[0], 1);
    let sealed = |server: &Cluster| server.data_dir().join("seal.key").exists();
    let serves = |server: &Cluster| server.log().contains("API ready");
    let begun = Instant::now();
    let is_refused = |server: &Cluster| server.log().contains("the cluster's keys are sealed, and");
    while !servers.iter().all(|server| serves(server) || is_refused(server)) {
        assert!(begun.elapsed() < crate::harness::PATIENCE, "{}", servers[0].log());
        std::thread::sleep(Duration::from_millis(50));
    }
    let first: Vec<usize> = (0..3).filter(|index| serves(&servers[*index])).collect();
    assert_eq!(first.len(), 1, "one of them is the first: {first:?}");
    let first = first[0];
    // Whoever came later has left nothing that would be taken for the seal.
    for (index, server) in servers.iter_mut().enumerate() {
        assert_eq!(sealed(server), index == first);
        if index != first {
            server.gone_badly();
        }
    }
    let seal = fs::read(servers[first].data_dir().join("seal.key")).expect("the seal");
    let ca = |server: &Cluster| fs::read_to_string(server.data_dir().join("pki/ca.crt")).expect("a CA");
    let proxy = |server: &Cluster| fs::read_to_string(server.data_dir().join("pki/front-proxy/ca.crt")).expect("a CA");
    for index in (0..3).filter(|index| *index != first) {
        fs::write(servers[index].data_dir().join("seal.key"), &seal).expect("brought");
        let number = u8::try_from(index).expect("few") + 1;
        servers[index].serve(&words(&address(number), &store, &[]));
        assert_eq!(ca(&servers[index]), ca(&servers[first]), "one cluster, one CA");
        assert_eq!(proxy(&servers[index]), proxy(&servers[first]), "extension servers believe all of them");
        servers[first].kubectl(&["create", "configmap", &format!("map-{index}")]);
        servers[index].kubectl(&["get", "configmap", &format!("map-{index}")]);
    }
}

/// A map of so many bytes, of a name.
fn map_of(server: &Cluster, name: &str, bytes: usize) -> std::process::Output {
    let file = server.folder().join("bytes");
    fs::write(&file, "x".repeat(bytes)).expect("written");
    server.try_kubectl(&["create", "configmap", name, &format!("--from-file={}", file.display())])
}

#[test]
fn an_etcd_without_room_refuses_writes_in_words_until_it_has_room_a2() {
    let lan = Lan::new();
    let own = address(1);
    let etcd = Etcd { quota: 8 << 20, ..Etcd::on(&[1]) };
    let (store, mut server) = (etcd.store(), machine(&lan, 1));
    let member = etcd.start(&server, 1);
    server.serve(&words(&own, &store, &[]));
    let refused = (0..20).find_map(|number| {
        let output = map_of(&server, &format!("map-{number}"), 900_000);
        (!output.status.success()).then(|| (number, text(&output)))
    });
    let (number, said) = refused.expect("8 MiB are full");
    assert!(said.contains("no room") && said.contains("nothing was changed"), "{said}");
    // What is there is read, from a server that begins as well.
    let all = || server.kubectl(&["get", "configmaps", "-o", "name"]).matches("configmap/map-").count();
    assert_eq!(all(), number, "A2");
    assert!(server.try_kubectl(&["get", "--raw", "/readyz"]).status.success(), "reads are served");
    // Whoever frees room is let in.
    let deleted = server.try_kubectl(&["delete", "configmap", "map-0"]);
    assert!(deleted.status.success(), "{}", text(&deleted));
    assert_eq!(all(), number - 1);
    // With more room it goes on by itself.
    drop(member);
    let roomy = Etcd { quota: 64 << 20, ..etcd };
    let _member = roomy.start(&server, 1);
    roomy.answers(&server, 1);
    roomy.etcdctl(&server, 1, &["alarm", "disarm"]);
    server.eventually("it takes writes", || map_of(&server, "after", 900_000).status.success());
    assert_eq!(all(), number - 1, "A2");
}

#[test]
fn a_member_whose_disk_is_full_stops_nobody_a2_m3() {
    let lan = Lan::new();
    let machines: Vec<Cluster> = (1..=3).map(|number| machine(&lan, number)).collect();
    let mut server = machine(&lan, 4);
    let etcd = Etcd::on(&[1, 2, 3]);
    // Its log of 64 MB is made in advance, twice.
    let small = &machines[2];
    let folder = small.folder().join(etcd.folder);
    fs::create_dir(&folder).expect("a folder");
    let mut mount = small.inside("mount");
    mount.args(["-t", "tmpfs", "-o", "size=150m,mode=0700", "etcd"]).arg(&folder);
    assert!(mount.status().expect("mount").success());
    let mut members: Vec<_> = (1..).zip(&machines).map(|(number, machine)| etcd.start(machine, number)).collect();
    etcd.answers(&machines[0], 1);
    server.serve(&words(&address(4), &etcd.store(), &[]));
    let filler = folder.join("filler");
    let mut fill = small.inside("dd");
    fill.args(["if=/dev/zero", "bs=64k"]).arg(format!("of={}", filler.display())).stderr(std::process::Stdio::null());
    assert!(!fill.status().expect("dd").success(), "it is full");
    let mut written = 0;
    while !members[2].has_ended() {
        let output = map_of(&server, &format!("map-{written}"), 300_000);
        assert!(output.status.success(), "{}", text(&output));
        written += 1;
        assert!(written < 400, "a member goes on without room");
    }
    assert!(map_of(&server, "without-it", 10).status.success());
    assert!(small.inside("rm").arg(&filler).status().expect("rm").success());
    members[2] = etcd.start(small, 3);
    etcd.answers(small, 3);
    // It is needed now.
    members.remove(0);
    server.eventually("it takes writes", || map_of(&server, "with-it", 10).status.success());
    let all = server.kubectl(&["get", "configmaps", "-o", "name"]).matches("configmap/map-").count();
    assert_eq!(all, written, "A2");
}

/// A3: what was brought back from a snapshot is refused by a server that runs and by one that starts; an export of it
/// goes into an empty etcd with its revision beyond all that was.
#[test]
fn a_restored_snapshot_of_etcd_goes_forward_or_nowhere_a3() {
    let lan = Lan::new();
    let (own, etcd) = (address(1), Etcd::on(&[1]));
    let (store, mut server) = (etcd.store(), machine(&lan, 1));
    let member = etcd.start(&server, 1);
    server.serve(&words(&own, &store, &[]));
    server.kubectl(&["create", "configmap", "precious"]);
    let snapshot = server.folder().join("snapshot");
    etcd.etcdctl(&server, 1, &["snapshot", "save", &snapshot.display().to_string()]);
    server.kubectl(&["create", "configmap", "later"]);
    let version = |server: &Cluster| -> u64 {
        let list = server.kubectl(&["get", "--raw", "/api/v1/namespaces"]);
        let after = list.split_once("\"resourceVersion\":\"").expect("a list").1;
        after.split('"').next().expect("digits").parse().expect("a number")
    };
    let before = version(&server);
    drop(member);
    let restored = Etcd { folder: "etcd-restored", ..etcd.clone() };
    restored.restore(&server, 1, &snapshot);
    let member = restored.start(&server, 1);
    server.eventually("it says what is wrong", || {
        let output = server.try_kubectl(&["get", "--raw", "/readyz?verbose"]);
        text(&output).contains("an older copy was restored there")
    });
    let said = server.refused(&["create", "configmap", "wrong"]);
    assert!(said.contains("etcdserver"), "{said}");
    server.stop();
    let said = server.refused_to_serve(&words(&own, &store, &[]));
    assert!(said.contains("an older copy") && said.contains("mainstay store import"), "{said}");

    let data = server.data_dir().display().to_string();
    let file = server.folder().join("export").display().to_string();
    let mainstay = |args: &[&str]| {
        let output = server.mainstay(args).output().expect("run");
        assert!(output.status.success(), "{args:?}: {}", text(&output));
    };
    mainstay(&["store", "export", "--data-dir", &data, "--store", &store, &file]);
    drop(member);
    let empty = Etcd { folder: "etcd-empty", ..etcd };
    let _member = empty.start(&server, 1);
    empty.answers(&server, 1);
    mainstay(&["store", "import", "--data-dir", &data, "--store", &store, &file]);
    server.serve(&words(&own, &store, &[]));
    assert_eq!(server.kubectl(&["get", "configmap", "precious", "-o", "name"]), "configmap/precious\n");
    assert!(version(&server) > before, "A3");
}
