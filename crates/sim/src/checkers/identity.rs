//! S1, S2, S3: one identity, one set of containers, one name.

use std::collections::{BTreeMap, BTreeSet};

use super::{Actor, Seen, Violation, set_of};
use crate::node::Node;

/// Pods that a person took out of the API while something of them may still run: whoever does that says that it does
/// not.
#[derive(Default)]
pub struct Forced(BTreeSet<String>);

impl Forced {
    /// Notes a deletion by force.
    pub fn note(&mut self, seen: &Seen<'_>) {
        if let (Actor::User, None, Some(old)) = (seen.actor, &seen.change.new, &seen.change.old) {
            self.0.insert(old.uid().to_owned());
        }
    }

    /// Whether this pod is one of them.
    pub fn has(&self, uid: &str) -> bool {
        self.0.contains(uid)
    }
}

/// Pods that a controller took out of the API because their node was silent.
#[derive(Default)]
pub struct Released(BTreeSet<String>);

impl Released {
    /// Notes one, and looks whether anything of it runs anywhere.
    pub fn note(&mut self, seen: &Seen<'_>) -> Result<(), Violation> {
        let by_deadline = *seen.actor == Actor::Controller("fencing-controller");
        if let (true, None, Some(old)) = (by_deadline, &seen.change.new, &seen.change.old) {
            self.0.insert(old.uid().to_owned());
        }
        self.s13_what_was_released_never_runs(seen.nodes)
    }

    /// S13: an identity leaves a silent node only when its containers are known to be stopped, and they never run
    /// again.
    pub fn s13_what_was_released_never_runs(&self, nodes: &[Node]) -> Result<(), Violation> {
        let running = nodes.iter().flat_map(|node| node.machine.running().map(move |(key, uid)| (node, key, uid)));
        match running.into_iter().find(|(_, _, uid)| self.0.contains(*uid)) {
            None => Ok(()),
            Some((node, key, uid)) => {
                Err(Violation::new("S13", format!("the name of {key} was given free, and {uid} runs on {}", node.name)))
            }
        }
    }

    /// How many there were.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// S1: at every instant at most one set of running containers per pod name, over all machines.
pub fn s1_one_set_of_containers(nodes: &[Node], forced: &Forced) -> Result<(), Violation> {
    let mut running = BTreeMap::new();
    for node in nodes {
        if let Some((key, container)) = node.machine.running_twice() {
            return Err(Violation::new("S1", format!("container {container} of {key} runs twice on {}", node.name)));
        }
        for (key, uid) in node.machine.running() {
            // Its node still sees to it that its successor waits.
            if let Some((other, on)) = running.insert(key, (uid, &node.name))
                && (*on == node.name || !(forced.has(uid) || forced.has(other)))
            {
                return Err(Violation::new(
                    "S1",
                    format!("{key} runs as {other} on {on} and as {uid} on {}", node.name),
                ));
            }
        }
    }
    Ok(())
}

/// S2: a pod is made only when nothing runs any more of the one that had its name. A machine without power is fenced.
pub fn s2_no_containers_of_a_predecessor(seen: &Seen<'_>, forced: &Forced) -> Result<(), Violation> {
    if !seen.is_made() {
        return Ok(());
    }
    for node in seen.nodes {
        if let Some((_, uid)) = node.machine.running().find(|(key, uid)| **key == seen.change.key && !forced.has(uid)) {
            return Err(Violation::new(
                "S2",
                format!("{} is made while {uid} still runs on {}", seen.change.key, node.name),
            ));
        }
    }
    Ok(())
}

/// S3: name, hostname, ordinal label and claim names are functions of set and ordinal.
pub fn s3_identity_from_set_and_ordinal(seen: &Seen<'_>) -> Result<(), Violation> {
    let Some(pod) = seen.after.pods.get(&seen.change.key).filter(|_| seen.is_made()) else { return Ok(()) };
    let Some((set, ordinal)) = set_of(seen.after, &seen.change.key, pod) else { return Ok(()) };
    let (name, spec) = (&*seen.change.key.name, pod.spec.clone().unwrap_or_default());
    let label =
        |label: &str| pod.metadata.labels.as_ref().and_then(|labels| labels.get(label)).map_or("", String::as_str);
    let mut wrong = Vec::new();
    if spec.hostname.as_deref() != Some(name) || spec.subdomain != set.spec.service_name {
        wrong.push("hostname or subdomain");
    }
    if label("statefulset.kubernetes.io/pod-name") != name
        || label("apps.kubernetes.io/pod-index") != ordinal.to_string()
    {
        wrong.push("labels");
    }
    for template in set.spec.volume_claim_templates.iter().flatten() {
        let template = template.metadata.name.as_deref().unwrap_or("");
        let volume = spec.volumes.iter().flatten().find(|volume| volume.name == template);
        let claim = volume
            .and_then(|volume| volume.persistent_volume_claim.as_ref())
            .map_or("", |claim| claim.claim_name.as_str());
        if claim != format!("{template}-{name}") {
            wrong.push("claim");
        }
    }
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(Violation::new("S3", format!("{name} has a wrong {}", wrong.join(", ")))),
    }
}
