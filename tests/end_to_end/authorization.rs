//! Who may do what, as people meet it: `kubectl --as`, `kubectl auth`, and a pod with nothing but its own token.

use crate::harness::{Checks, Cluster, text};

const POD: &str = r#"
apiVersion: v1
kind: ServiceAccount
metadata: { name: reader }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: { name: reader }
rules:
- { apiGroups: [""], resources: [configmaps], verbs: [get, list] }
- { apiGroups: [""], resources: [secrets], resourceNames: [mine], verbs: [get] }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: { name: reader }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader }
subjects: [{ kind: ServiceAccount, name: reader }]
---
apiVersion: v1
kind: Secret
metadata: { name: mine }
---
apiVersion: v1
kind: Secret
metadata: { name: other }
---
apiVersion: v1
kind: Pod
metadata: { name: inside }
spec:
  serviceAccountName: reader
  containers:
  - name: c
    image: test.local/busybox:1
    command: [sleep, "100000"]
    volumeMounts: [{ name: host, mountPath: /host, readOnly: true }, { name: vault, mountPath: /vault }]
  volumes:
  - { name: host, hostPath: { path: / } }
  - name: vault
    projected: { sources: [{ serviceAccountToken: { path: token, audience: vault, expirationSeconds: 600 } }] }
"#;

/// The HTTP code of a GET from inside the pod, with the machine's curl and the pod's own token and CA.
fn get(cluster: &Cluster, token: &str, path: &str) -> String {
    let folder = "/var/run/secrets/kubernetes.io/serviceaccount";
    let line = format!(
        "T=$(cat {token}); cat {folder}/ca.crt | chroot /host curl -s --cacert /dev/stdin -o /dev/null -w \
            '%{{http_code}}' \
         -H \"Authorization: Bearer $T\" https://$KUBERNETES_SERVICE_HOST{path}"
    );
    cluster.exec("inside", &["sh", "-c", &line])
}

#[test]
fn x1_a_pod_with_its_own_token_has_its_role_and_no_more() {
    let mut cluster = Cluster::unstarted().open_to_pods();
    cluster.up();
    cluster.load(&["busybox"]);
    cluster.apply(POD);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/inside", "--timeout=60s"]);
    let checks = Checks::default();
    let own = "/var/run/secrets/kubernetes.io/serviceaccount/token";
    for (path, code) in [
        ("/api", "200"),
        ("/openid/v1/jwks", "200"),
        ("/.well-known/openid-configuration", "200"),
        ("/api/v1/namespaces/default/configmaps", "200"),
        ("/api/v1/namespaces/default/secrets/mine", "200"),
        ("/api/v1/namespaces/default/secrets/other", "403"),
        ("/api/v1/namespaces/default/secrets", "403"),
        ("/api/v1/namespaces/kube-system/configmaps", "403"),
        ("/api/v1/configmaps", "403"),
        ("/api/v1/nodes", "403"),
        ("/metrics", "403"),
    ] {
        checks.equal(path, &get(&cluster, own, path), code);
    }
    checks.equal("a token for another audience", &get(&cluster, "/vault/token", "/api"), "401");
    // What the token says of its pod, others learn from a review.
    let token = cluster.exec("inside", &["cat", own]);
    let review = format!(
        r#"{{"apiVersion":"authentication.k8s.io/v1","kind":"TokenReview","metadata":{{"name":"r"}},"spec":{{"token":"{}"}}}}"#,
        token.trim()
    );
    let answer = text(&cluster.kubectl_with(&["create", "-o", "json", "-f", "-"], &review));
    for wanted in
        ["authentication.kubernetes.io/pod-name", "inside", "authentication.kubernetes.io/node-name", "node-1", "JTI="]
    {
        checks.contains("the review names the pod, its node and the token", &answer, wanted);
    }
}

#[test]
fn x1_kubectl_auth_answers_as_roles_say() {
    let cluster = Cluster::new();
    let checks = Checks::default();
    let says = |line: &[&str]| text(&cluster.try_kubectl(line)).trim().to_owned();
    cluster.kubectl(&["create", "namespace", "team"]);
    cluster.kubectl(&["create", "rolebinding", "jane", "--clusterrole=edit", "--user=jane", "-n", "team"]);
    cluster.kubectl(&["create", "clusterrolebinding", "ops", "--clusterrole=view", "--group=ops"]);
    cluster.eventually("view and edit are aggregated", || {
        says(&["auth", "can-i", "create", "deployments.apps", "-n", "team", "--as=jane"]) == "yes"
            && says(&["auth", "can-i", "list", "pods", "-A", "--as=bob", "--as-group=ops"]) == "yes"
    });
    for (line, answer) in [
        ("auth can-i delete pods -n team --as=jane", "yes"),
        ("auth can-i delete pods -n default --as=jane", "no"),
        ("auth can-i get secrets -n team --as=jane", "yes"),
        ("auth can-i get secrets -n team --as=bob --as-group=ops", "no"),
        ("auth can-i create rolebindings -n team --as=jane", "no"),
        ("auth can-i get /api --as=bob", "yes"),
        ("auth can-i impersonate users --as=bob", "no"),
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        checks.holds(line, says(&words).lines().any(|said| said == answer), &says(&words));
    }
    checks.contains("--list", &says(&["auth", "can-i", "--list", "-n", "team", "--as=jane"]), "deployments.apps");
    checks.contains("whoami", &says(&["auth", "whoami"]), "X509SHA256=");
    let refused = says(&["get", "pods", "-n", "default", "--as=jane"]);
    let wanted = "Error from server (Forbidden): pods is forbidden: User \"jane\" cannot list resource \"pods\" in \
        API group \"\" in the namespace \"default\"";
    checks.equal("403 in upstream's words", &refused, wanted);
    // A role of her own making gives nothing that she does not have.
    cluster.kubectl(&["create", "clusterrole", "roles", "--verb=create,get,update", "--resource=roles,rolebindings"]);
    cluster.kubectl(&["create", "rolebinding", "roles", "--clusterrole=roles", "--user=jane", "-n", "team"]);
    let own = says(&["create", "role", "own", "--verb=get", "--resource=pods", "-n", "team", "--as=jane"]);
    checks.contains("what she has", &own, "created");
    let more = says(&["create", "role", "more", "--verb=get", "--resource=nodes", "-n", "team", "--as=jane"]);
    checks.contains("what she has not", &more, "is attempting to grant RBAC permissions not currently held");
    let admin = says(&["create", "rolebinding", "a", "--clusterrole=admin", "--user=jane", "-n", "team", "--as=jane"]);
    checks.contains("a role above hers", &admin, "is attempting to grant RBAC permissions not currently held");
    let role = cluster.kubectl(&["get", "role", "own", "-n", "team", "-o", "yaml"]);
    let wider = role.replace("- get", "- get\n  - list");
    let reconciled = text(&cluster.kubectl_with(&["auth", "reconcile", "-f", "-"], &wider));
    checks.contains("kubectl auth reconcile", &reconciled, "reconciled");
    checks.contains("its rules", &cluster.kubectl(&["get", "role", "own", "-n", "team", "-o", "yaml"]), "- list");
}

const MEASURED: &str = r#"
apiVersion: v1
kind: ServiceAccount
metadata: { name: metrics-server }
---
apiVersion: v1
kind: ServiceAccount
metadata: { name: somebody }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: { name: metrics-server }
rules: [{ apiGroups: [""], resources: [nodes/metrics], verbs: [get] }]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: metrics-server }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: metrics-server }
subjects: [{ kind: ServiceAccount, name: metrics-server, namespace: default }]
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: { name: data }
spec: { accessModes: [ReadWriteOnce], resources: { requests: { storage: 64Mi } } }
---
apiVersion: v1
kind: Pod
metadata: { name: measured }
spec:
  containers:
  - name: c
    image: test.local/busybox:1
    command: [sh, -c, "while true; do nc -l -p 8080 -e echo hello; done"]
    readinessProbe: { tcpSocket: { port: 8080 }, periodSeconds: 1 }
    volumeMounts: [{ name: data, mountPath: /data }]
  volumes: [{ name: data, persistentVolumeClaim: { claimName: data } }]
"#;

/// What metrics-server and Prometheus do: they ask every node's kubelet itself, with their service account's token.
#[test]
fn conformance_x1_a_nodes_figures_are_read_with_a_token_by_who_may() {
    let cluster = Cluster::new();
    cluster.load(&["busybox"]);
    cluster.apply(MEASURED);
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/measured", "--timeout=60s"]);
    let node = cluster.field("node/node-1", "{.status.addresses[?(@.type==\"InternalIP\")].address}");
    let token = |of: &str| cluster.kubectl(&["create", "token", of]).trim().to_owned();
    // The code's line comes after the answer.
    let get = |token: &str, path: &str| {
        let bearer = format!("Authorization: Bearer {token}");
        let url = format!("https://{node}:10250{path}");
        let curl = ["-sk", "-m", "30", "-w", "\n%{http_code}", "-H", &bearer, &url];
        text(&cluster.inside("curl").args(curl).output().expect("curl"))
    };
    let checks = Checks::default();
    let (may, may_not) = (token("metrics-server"), token("somebody"));
    for (path, wanted) in [
        ("/metrics/resource", "pod_memory_working_set_bytes{namespace=\"default\",pod=\"measured\"} "),
        ("/metrics/cadvisor", "container_cpu_usage_seconds_total{container=\"c\",cpu=\"total\",id=\"/"),
        ("/metrics/cadvisor", "image=\"test.local/busybox:1\""),
        ("/metrics/cadvisor", "interface=\"eth0\""),
        ("/metrics/probes", "prober_probe_total{container=\"c\",namespace=\"default\",pod=\"measured\","),
        ("/metrics", "kubelet_volume_stats_capacity_bytes{namespace=\"default\",persistentvolumeclaim=\"data\"} "),
    ] {
        let answer = get(&may, path);
        checks.holds(path, answer.contains(wanted) && answer.ends_with("\n200"), &answer);
    }
    let refused = get(&may, "/stats/summary");
    let words = "Forbidden (user=system:serviceaccount:default:metrics-server, verb=get, resource=nodes, \
         subresource(s)=[stats])";
    checks.holds("another subresource", refused.contains(words) && refused.ends_with("\n403"), &refused);
    let refused = get(&may_not, "/metrics/resource");
    checks.holds("somebody", refused.contains("subresource(s)=[metrics])") && refused.ends_with("\n403"), &refused);
    checks.holds("a forged token", get("forged", "/metrics/resource").ends_with("Unauthorized\n401"), "");
    let summary = cluster.kubectl(&["get", "--raw", "/api/v1/nodes/node-1/proxy/stats/summary"]);
    checks.contains("the summary has the claim", &summary, "\"pvcRef\":{\"name\":\"data\",\"namespace\":\"default\"}");
    let running = cluster.kubectl(&["get", "--raw", "/api/v1/nodes/node-1/proxy/runningpods/"]);
    checks.contains("what runs", &running, "test.local/busybox:1");
}
