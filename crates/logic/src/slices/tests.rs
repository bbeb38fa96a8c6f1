//! N1: which slices an owner's endpoints are put into, and what of those that are there is written.

use super::*;
use crate::snapshot::Snapshot;

fn endpoint(address: &str) -> Endpoint {
    let target = json!({ "kind": "Pod", "uid": format!("uid-{address}") });
    serde_json::from_value(json!({ "addresses": [address, "192.0.2.255"], "targetRef": target })).unwrap()
}

/// A slice of port 80 with endpoints of these addresses.
fn slice(name: &str, addresses: &[&str], over: Value) -> EndpointSlice {
    let endpoints: Vec<Endpoint> = addresses.iter().map(|address| endpoint(address)).collect();
    let mut slice = json!({ "metadata": { "namespace": "default", "name": name, "uid": name, "labels": { "a": "b" } },
        "addressType": "IPv4", "endpoints": endpoints, "ports": [{ "name": "http", "protocol": "TCP", "port": 80 }] });
    crate::world::merge(&mut slice, over);
    serde_json::from_value(slice).unwrap()
}

fn port(name: &str, number: i32) -> Port {
    (name.to_owned(), "TCP".to_owned(), number, None)
}

fn wanted(ports: Vec<Port>, addresses: &[&str]) -> (Group, Endpoints) {
    let of = |address: &&str| (identity(&endpoint(address)), endpoint(address));
    (("IPv4", ports), addresses.iter().map(of).collect())
}

/// What is written: `-name`, `name: addresses` with `~` where labels change, and `+: addresses` for one that is made;
/// and how many of the writes stand or fall alone.
fn arranged(groups: Vec<(Group, Endpoints)>, slices: &[EndpointSlice]) -> (Vec<String>, usize) {
    let metadata: ObjectMeta =
        serde_json::from_value(json!({ "namespace": "default", "name": "web", "uid": "u" })).unwrap();
    let labels: Labels = [("a".to_owned(), "b".to_owned())].into();
    let owner = Owner { kind: &kinds::SERVICE, metadata: &metadata, labels };
    let mut decision = Decision::default();
    let there: Vec<&EndpointSlice> = slices.iter().collect();
    arrange(&mut decision, &owner, groups.into_iter().collect(), &there, &Snapshot::default().endpoint_slices);
    let addresses = |content: &Value| {
        let all = content.as_array().into_iter().flatten().map(|one| one["addresses"][0].as_str().unwrap().to_owned());
        let all: Vec<String> = all.collect();
        if all.len() > 5 { format!("{} of them", all.len()) } else { all.join(" ") }
    };
    let shown = |write: &Write| match write {
        Write::Create { object, .. } => format!("+: {}", addresses(&object["endpoints"])),
        Write::Patch { key, patch, .. } => {
            let labels = &patch["metadata"]["labels"];
            let labels = if labels.is_null() { String::new() } else { format!(" ~{labels}") };
            let content = patch.get("endpoints").map_or("as before".to_owned(), &addresses);
            format!("{}: {content}{labels}", key.name)
        }
        Write::Delete { key, .. } => format!("-{}", key.name),
        other => format!("{other:?}"),
    };
    let groups: std::collections::BTreeSet<u32> =
        (0..decision.writes.len()).map(|write| decision.group(write)).collect();
    (decision.writes.iter().map(shown).collect(), groups.len())
}

#[test]
fn n1_an_endpoint_stays_where_it_is_and_others_fill_what_has_room() {
    let http = || vec![port("http", 80)];
    let one = |addresses: &[&str]| vec![wanted(http(), addresses)];
    let nothing = || json!({});
    let arranged = |groups, slices: &[EndpointSlice]| arranged(groups, slices).0;
    assert_eq!(arranged(one(&["1", "2"]), &[]), ["+: 1 2"]);
    assert_eq!(arranged(one(&[]), &[]), ["+: "], "one that is empty, so that it is known that there are none");
    assert_eq!(arranged(one(&["1", "2"]), &[slice("s", &["1", "2"], nothing())]), [""; 0]);
    assert_eq!(arranged(one(&["2", "3"]), &[slice("s", &["1", "2"], nothing())]), ["s: 2 3"]);
    assert_eq!(arranged(one(&[]), &[slice("s", &["1"], nothing())]), ["s: "], "the last one stays");
    assert_eq!(arranged(one(&[]), &[slice("s", &[], nothing()), slice("t", &["1"], nothing())]), ["-t"]);
    assert_eq!(arranged(one(&["2"]), &[slice("s", &["1"], nothing()), slice("t", &["2"], nothing())]), ["-s"]);
    assert_eq!(
        arranged(one(&["2", "3"]), &[slice("s", &["1"], nothing()), slice("t", &["2"], nothing())]),
        ["s: 3"],
        "new ones fill in the order of slices"
    );
    assert_eq!(identity(&endpoint("1")), ("1".to_owned(), "uid-1".to_owned()));
    // The same address of another pod is another endpoint.
    let again = json!({ "endpoints": [{ "addresses": ["1"], "targetRef": { "kind": "Pod", "uid": "before" } }] });
    assert_eq!(arranged(one(&["1"]), &[slice("s", &[], again)]), ["s: 1"]);
    // In whichever order its ports were written; protocols that are not said are TCP.
    let both = || vec![port("a", 1), port("b", 2)];
    let ports = json!({ "ports": [{ "name": "b", "port": 2 }, { "name": "a", "port": 1, "protocol": "TCP" }] });
    assert_eq!(arranged(vec![wanted(both(), &["1"])], &[slice("s", &["1"], ports)]), [""; 0]);
    // Labels are the owner's, and nobody else's.
    let labels = json!({ "metadata": { "labels": { "a": "x", "more": "y" } } });
    assert_eq!(arranged(one(&["1"]), &[slice("s", &["1"], labels)]), [r#"s: as before ~{"a":"b","more":null}"#]);
    let more = json!({ "metadata": { "labels": { "more": "y" } } });
    assert_eq!(arranged(one(&["1"]), &[slice("s", &["1"], more)]), [r#"s: as before ~{"a":"b","more":null}"#]);
    // Full slices: what is beyond a hundred gets more of them.
    let many: Vec<String> = (0..250).map(|number| format!("{number:03}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(arranged(one(&many), &[]), ["+: 100 of them", "+: 100 of them", "+: 50 of them"]);
    assert_eq!(arranged(one(&many[..100]), &[]), ["+: 100 of them"]);
    let grown = arranged(one(&many), &[slice("s", &many[..40], nothing())]);
    assert_eq!(grown, ["s: 100 of them", "+: 100 of them", "+: 50 of them"]);
}

/// N1: what replaces a slice is there before that goes, and they stand or fall together; nothing else does.
#[test]
fn n1_a_slice_of_old_ports_goes_after_its_successor() {
    let old = || slice("old", &["1"], json!({ "ports": [{ "name": "http", "protocol": "TCP", "port": 79 }] }));
    let http = || vec![wanted(vec![port("http", 80)], &["1"])];
    assert_eq!(arranged(http(), &[old()]), (vec!["+: 1".to_owned(), "-old".to_owned()], 1));
    assert_eq!(
        arranged(vec![], &[old(), slice("s", &["2"], json!({}))]),
        (vec!["-old".to_owned(), "-s".to_owned()], 2)
    );
    let two = || vec![wanted(vec![port("a", 1)], &["1"]), wanted(vec![port("b", 2)], &["1"])];
    assert_eq!(arranged(two(), &[]), (vec!["+: 1".to_owned(), "+: 1".to_owned()], 2));
    // By whom a slice is written is said by its label.
    let labelled = |by: &str| slice("s", &[], json!({ "metadata": { "labels": { MANAGED_BY: by } } }));
    assert!(is_managed_by(&labelled("me"), "me") && !is_managed_by(&labelled("you"), "me"));
    assert!(!is_managed_by(&slice("s", &[], json!({})), "me"));
}
