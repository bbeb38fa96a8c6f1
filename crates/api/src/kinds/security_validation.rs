//! What security contexts, name resolution settings and mounts of a pod must look like (X3, X8): numbers that are users
//! and groups, paths that stay below the node's folder, and nothing that contradicts itself.

use super::addresses::legacy_address;
use super::container_validation::{local_path, no_backsteps};
use super::field::Field;
use crate::names;
use crate::status::Cause;

const MAX_ID: i64 = 2_147_483_647;
const NOT_AN_ID: &str = "must be between 0 and 2147483647, inclusive";
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_LENGTH: usize = 2048;

fn id(at: &Field, causes: &mut Vec<Cause>) {
    if at.int().is_some_and(|id| !(0..=MAX_ID).contains(&id)) {
        causes.push(at.invalid(NOT_AN_ID));
    }
}

fn seccomp(profile: &Field, causes: &mut Vec<Cause>) {
    if !profile.is_set() {
        return;
    }
    let (type_, path) = (profile.get("type"), profile.get("localhostProfile"));
    match type_.text() {
        "" => causes.push(Cause::required(&type_.path, "type is required when seccompProfile is set")),
        "Localhost" if path.text().is_empty() => {
            causes.push(Cause::required(&path.path, "must be set when seccomp type is Localhost"));
        }
        "Localhost" => local_path(&path, causes),
        _ if path.is_set() => causes.push(path.invalid("can only be set when seccomp type is Localhost")),
        _ => type_.one_of(causes, &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
}

fn app_armor(profile: &Field, causes: &mut Vec<Cause>) {
    if !profile.is_set() {
        return;
    }
    let (type_, name) = (profile.get("type"), profile.get("localhostProfile"));
    match type_.text() {
        "" => causes.push(Cause::required(&type_.path, "type is required when appArmorProfile is set")),
        "Localhost" if name.text().trim().is_empty() => {
            causes.push(Cause::required(&name.path, "must be set when AppArmor type is Localhost"));
        }
        "Localhost" if name.text().trim() != name.text() => {
            causes.push(name.invalid("must not be padded with whitespace"));
        }
        "Localhost" => {}
        _ if name.is_set() => causes.push(name.invalid("can only be set when AppArmor type is Localhost")),
        _ => type_.one_of(causes, &["Localhost", "RuntimeDefault", "Unconfined"]),
    }
}

/// A pod's own security context.
pub fn pod(context: &Field, causes: &mut Vec<Cause>) {
    for field in ["runAsUser", "runAsGroup", "fsGroup"] {
        id(&context.get(field), causes);
    }
    for group in context.get("supplementalGroups").items() {
        id(&group, causes);
    }
    seccomp(&context.get("seccompProfile"), causes);
    app_armor(&context.get("appArmorProfile"), causes);
    context.get("fsGroupChangePolicy").one_of(causes, &["Always", "OnRootMismatch"]);
    context.get("supplementalGroupsPolicy").one_of(causes, &["Merge", "Strict"]);
    context.get("seLinuxChangePolicy").one_of(causes, &["MountOption", "Recursive"]);
}

/// A container's security context, its mounts and its devices.
pub fn container(container: &Field, causes: &mut Vec<Cause>) {
    let context = container.get("securityContext");
    for field in ["runAsUser", "runAsGroup"] {
        id(&context.get(field), causes);
    }
    seccomp(&context.get("seccompProfile"), causes);
    app_armor(&context.get("appArmorProfile"), causes);
    context.get("procMount").one_of(causes, &["Default", "Unmasked"]);
    let is_privileged = context.get("privileged").is_true();
    if context.get("allowPrivilegeEscalation").value == &serde_json::Value::Bool(false) {
        let mut added = context.dig(&["capabilities", "add"]).items();
        if is_privileged {
            causes.push(context.invalid("cannot set `allowPrivilegeEscalation` to false and `privileged` to true"));
        }
        if added.any(|capability| capability.text() == "CAP_SYS_ADMIN") {
            causes.push(
                context.invalid("cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN"),
            );
        }
    }
    for mount in container.get("volumeMounts").items() {
        let propagation = mount.get("mountPropagation");
        if propagation.text() == "Bidirectional" && !is_privileged {
            let why = "Bidirectional mount propagation is available only to privileged containers";
            causes.push(Cause::forbidden(&propagation.path, why));
        }
        read_only_below(&mount, causes);
    }
    for device in container.get("volumeDevices").items() {
        no_backsteps(&device.get("devicePath"), causes);
    }
}

/// Whether what is mounted below a mount is read-only, too.
fn read_only_below(mount: &Field, causes: &mut Vec<Cause>) {
    let (below, propagation) = (mount.get("recursiveReadOnly"), mount.get("mountPropagation"));
    below.one_of(causes, &["Disabled", "Enabled", "IfPossible"]);
    if !matches!(below.text(), "Enabled" | "IfPossible") {
        return;
    }
    if !mount.get("readOnly").is_true() {
        causes.push(Cause::forbidden(&below.path, "may only be specified when readOnly is true"));
    }
    if !matches!(propagation.text(), "" | "None") {
        let why = "may only be specified when mountPropagation is None or not specified";
        causes.push(Cause::forbidden(&below.path, why));
    }
}

/// What goes into a pod's `/etc/hosts` and `/etc/resolv.conf`, where a line end would begin something else.
pub fn names_and_servers(spec: &Field, causes: &mut Vec<Cause>) {
    for alias in spec.get("hostAliases").items() {
        for host in alias.get("hostnames").items() {
            causes.extend(names::subdomain(host.text()).iter().map(|wrong| host.invalid(wrong)));
        }
    }
    let config = spec.get("dnsConfig");
    let (servers, searches) = (config.get("nameservers"), config.get("searches"));
    if servers.len() > MAX_NAMESERVERS {
        causes.push(servers.invalid(&format!("must not have more than {MAX_NAMESERVERS} nameservers")));
    }
    for server in servers.items() {
        causes.extend(legacy_address(server.text()).iter().map(|wrong| server.invalid(wrong)));
    }
    let spaces = searches.len().saturating_sub(1);
    let length = searches.items().map(|search| search.text().len()).fold(spaces, usize::saturating_add);
    if searches.len() > MAX_SEARCHES {
        causes.push(searches.invalid(&format!("must not have more than {MAX_SEARCHES} search paths")));
    }
    if length > MAX_SEARCH_LENGTH {
        let why =
            format!("must not have more than {MAX_SEARCH_LENGTH} characters (including spaces) in the search list");
        causes.push(searches.invalid(&why));
    }
    for search in searches.items().filter(|search| search.text() != ".") {
        // Underscores are for names such as `_tcp.example.com`.
        let plain = search.text().strip_suffix('.').unwrap_or(search.text()).replace('_', "x");
        causes.extend(names::subdomain(&plain).iter().map(|wrong| search.invalid(wrong)));
    }
    for option in config.get("options").items() {
        let name = option.get("name");
        let texts = [name.clone(), option.get("value")];
        if name.text().is_empty() {
            causes.push(Cause::required(&option.path, "must not be empty"));
        }
        // Differs: upstream takes any text.
        for text in texts.iter().filter(|text| text.text().contains(char::is_control)) {
            causes.push(text.invalid("must not contain control characters"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pod_spec_validation;
    use super::*;
    use serde_json::{Value, json};

    fn refused(spec: Value, container: Value) -> Vec<String> {
        let mut pod = json!({ "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "volumes": [
            { "name": "v", "emptyDir": {} }], "containers": [{ "name": "c", "image": "x",
                "imagePullPolicy": "Always" }] });
        for (at, more) in [("", spec), ("/containers/0", container)] {
            let into = pod.pointer_mut(at).and_then(Value::as_object_mut).unwrap();
            into.extend(more.as_object().unwrap().clone());
        }
        let mut causes = Vec::new();
        pod_spec_validation::validate(&Field::root(&json!({ "spec": pod })).get("spec"), &mut causes);
        causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
    }

    #[test]
    fn x8_a_security_context_is_what_the_node_can_do_or_refused() {
        let of = |context: Value| refused(json!({}), json!({ "securityContext": context }));
        for good in [
            json!({ "runAsUser": 0, "runAsGroup": 2_147_483_647, "procMount": "Default" }),
            json!({ "seccompProfile": { "type": "Localhost", "localhostProfile": "a/b.json" } }),
            json!({ "privileged": true, "allowPrivilegeEscalation": true,
                "capabilities": { "add": ["CAP_SYS_ADMIN"] } }),
        ] {
            assert_eq!(of(good.clone()), [""; 0], "{good}");
        }
        for (bad, why) in [
            (json!({ "runAsUser": -1 }), NOT_AN_ID),
            (json!({ "runAsUser": 4_294_967_296_i64 }), NOT_AN_ID),
            (json!({ "runAsGroup": -1 }), NOT_AN_ID),
            (json!({ "seccompProfile": { "type": "Localhost", "localhostProfile": "../../etc/passwd" } }), "'..'"),
            (json!({ "seccompProfile": { "type": "Localhost", "localhostProfile": "/etc/passwd" } }), "relative"),
            (json!({ "seccompProfile": { "type": "Localhost" } }), "must be set when"),
            (json!({ "seccompProfile": { "type": "Unconfined", "localhostProfile": "a" } }), "can only be set"),
            (json!({ "seccompProfile": { "type": "None" } }), "supported values"),
            (json!({ "procMount": "Bare" }), "supported values"),
            (json!({ "appArmorProfile": {} }), "type is required"),
            (json!({ "appArmorProfile": { "type": "None" } }), "supported values"),
            (json!({ "appArmorProfile": { "type": "Localhost" } }), "must be set when"),
            (json!({ "appArmorProfile": { "type": "Unconfined", "localhostProfile": "a" } }), "can only be set"),
            (json!({ "privileged": true, "allowPrivilegeEscalation": false }), "`privileged` to true"),
            (
                json!({ "allowPrivilegeEscalation": false, "capabilities": { "add": ["CAP_SYS_ADMIN"] } }),
                "CAP_SYS_ADMIN",
            ),
        ] {
            let seen = of(bad.clone());
            assert!(matches!(seen.as_slice(), [one] if one.contains(why)), "{bad}: {seen:?}");
        }
        let of_pod = |context: Value| refused(json!({ "securityContext": context }), json!({}));
        for bad in [
            json!({ "fsGroup": -1 }),
            json!({ "supplementalGroups": [1, -2] }),
            json!({ "runAsUser": -3 }),
            json!({ "supplementalGroupsPolicy": "Some" }),
            json!({ "seLinuxChangePolicy": "Some" }),
            json!({ "appArmorProfile": { "type": "Some" } }),
        ] {
            assert_eq!(of_pod(bad.clone()).len(), 1, "{bad}");
        }
        assert_eq!(of_pod(json!({ "supplementalGroupsPolicy": "Strict" })), [""; 0]);
        let mount = |below: &str, read_only: bool, propagation: &str| {
            refused(
                json!({}),
                json!({ "volumeMounts": [{ "name": "v", "mountPath": "/v",
                "recursiveReadOnly": below, "readOnly": read_only, "mountPropagation": propagation }] }),
            )
        };
        assert_eq!(mount("Enabled", true, "None"), [""; 0]);
        assert_eq!(mount("Disabled", false, "HostToContainer"), [""; 0]);
        assert_eq!(mount("IfPossible", true, "HostToContainer").len(), 1);
        assert_eq!(mount("IfPossible", false, "None").len(), 1);
        assert_eq!(mount("Surely", true, "None").len(), 1);
    }

    #[test]
    fn conformance_words_of_a_container_that_nobody_knows_are_refused() {
        let of = |container: Value| refused(json!({}), container);
        let rule = |action: &str, operator: &str| {
            json!({ "restartPolicy": "Never", "restartPolicyRules": [
            { "action": action, "exitCodes": { "operator": operator, "values": [1] } }] })
        };
        let resize = |resource: &str, policy: &str| {
            json!({ "resizePolicy": [
            { "resourceName": resource, "restartPolicy": policy }] })
        };
        for good in [rule("Restart", "In"), resize("cpu", "NotRequired"), resize("memory", "RestartContainer")] {
            assert_eq!(of(good.clone()), [""; 0], "{good}");
        }
        for bad in [
            json!({ "restartPolicy": "Sometimes" }),
            rule("Sleep", "In"),
            rule("Restart", "Like"),
            resize("disk", "NotRequired"),
            resize("cpu", "Sometimes"),
        ] {
            let seen = of(bad.clone());
            assert!(matches!(seen.as_slice(), [one] if one.contains("supported values")), "{bad}: {seen:?}");
        }
        let rules = |rules: Value| of(json!({ "restartPolicy": "Never", "restartPolicyRules": rules }));
        let one =
            json!({ "action": "RestartAllContainers", "exitCodes": { "operator": "In", "values": vec![1; 255] } });
        assert_eq!(rules(json!(vec![one.clone(); 20])), [""; 0]);
        assert!(rules(json!(vec![one.clone(); 21]))[0].contains("must have at most 20 items"));
        assert!(rules(json!([{ "action": "Restart" }]))[0].ends_with("exitCodes: Required value: must be specified"));
        let many = json!({ "operator": "In", "values": vec![1; 256] });
        assert!(rules(json!([{ "action": "Restart", "exitCodes": many }]))[0].contains("must have at most 255 items"));
        let without = of(json!({ "restartPolicyRules": [one] }));
        assert!(without[0].ends_with("Required value: must specify restartPolicy when restart rules are used"));
        let twice = json!({ "resizePolicy": [{ "resourceName": "cpu", "restartPolicy": "NotRequired" },
            { "resourceName": "cpu", "restartPolicy": "NotRequired" }] });
        assert_eq!(of(twice).len(), 1);
        for bad in [
            json!({ "os": { "name": "beos" } }),
            json!({ "os": {} }),
            json!({ "hostnameOverride": "A_B" }),
            json!({ "volumes": [{ "name": "v", "image": { "reference": "i", "pullPolicy": "Sometimes" } }] }),
        ] {
            assert_eq!(refused(bad.clone(), json!({})).len(), 1, "{bad}");
        }
    }

    #[test]
    fn x3_paths_of_files_in_volumes_stay_below_them() {
        let source = |source: Value| refused(json!({ "volumes": [source] }), json!({}));
        let field = json!({ "fieldPath": "metadata.name" });
        for path in ["../x", "/x", "..", "a/../x", "..data"] {
            for volume in [
                json!({ "name": "v", "configMap": { "name": "a", "items": [{ "key": "k", "path": path }] } }),
                json!({ "name": "v", "secret": { "secretName": "a", "items": [{ "key": "k", "path": path }] } }),
                json!({ "name": "v", "downwardAPI": { "items": [{ "path": path, "fieldRef": field }] } }),
                json!({ "name": "v", "projected": { "sources": [{ "serviceAccountToken": { "path": path } }] } }),
                json!({ "name": "v", "projected": { "sources": [{ "downwardAPI": { "items": [{ "path": path,
                    "fieldRef": field }] } }] } }),
            ] {
                assert_eq!(source(volume.clone()).len(), 1, "{volume}");
            }
        }
        let good = json!({ "name": "v", "downwardAPI": { "items": [{ "path": "a/b..c", "fieldRef": field }] } });
        assert_eq!(source(good), [""; 0]);
        let mount = |mount: Value| refused(json!({}), json!({ "volumeMounts": [mount] }));
        assert_eq!(mount(json!({ "name": "v", "mountPath": "/a:b" })), [""; 0]);
        let shared = json!({ "name": "v", "mountPath": "/a", "mountPropagation": "Bidirectional" });
        assert!(mount(shared.clone())[0].contains("only to privileged containers"));
        let privileged = json!({ "volumeMounts": [shared], "securityContext": { "privileged": true } });
        assert_eq!(refused(json!({}), privileged), [""; 0]);
    }

    #[test]
    fn x3_what_goes_into_files_of_lines_is_of_one_line() {
        let of = |spec: Value| refused(spec, json!({}));
        let dns = |config: Value| refused(json!({ "dnsConfig": config }), json!({}));
        assert_eq!(of(json!({ "hostAliases": [{ "ip": "1.2.3.4", "hostnames": ["a.b", "c"] }] })), [""; 0]);
        assert_eq!(of(json!({ "hostAliases": [{ "ip": "1.2.3.4", "hostnames": ["a\n6.6.6.6 b"] }] })).len(), 1);
        let good = json!({ "nameservers": ["1.2.3.4"], "searches": ["a.b.", ".", "_tcp.a"],
            "options": [{ "name": "ndots",
            "value": "2" }, { "name": "edns0" }] });
        assert_eq!(dns(good), [""; 0]);
        for bad in [
            json!({ "nameservers": ["x"] }),
            json!({ "nameservers": ["1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"] }),
            json!({ "searches": ["a b\nnameserver 1.1.1.1"] }),
            json!({ "searches": vec!["a.b"; 33] }),
            json!({ "options": [{ "name": "ndots\nnameserver 6.6.6.6" }] }),
            json!({ "options": [{ "value": "2" }] }),
        ] {
            assert_eq!(dns(bad.clone()).len(), 1, "{bad}");
        }
    }
}
