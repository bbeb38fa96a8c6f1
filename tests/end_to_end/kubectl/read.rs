//! What is only looked at: tables, selectors, output formats, descriptions, discovery, reviews.

use super::{User, deployment, piped, with_both};
use crate::harness::Cluster;

const SET: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, labels: {app: web}}
spec: {clusterIP: None, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: web}
spec:
  serviceName: web
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
        - name: main
          image: 'test.local/busybox:1'
          command: [sleep, '100000']
          volumeMounts: [{name: data, mountPath: /data}]
          readinessProbe: {exec: {command: ['true']}, periodSeconds: 1}
  volumeClaimTemplates:
    - metadata: {name: data}
      spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 10Mi}}}
";

#[test]
fn tables_formats_and_descriptions() {
    let cluster = Cluster::new();
    cluster.load(&["busybox"]);
    with_both(&cluster, |user| {
        user.says(&piped(SET, "kubectl create -f -"), &["service/web created", "statefulset.apps/web created"]);
        user.says(&piped(&deployment("dep"), "kubectl create -f -"), &["deployment.apps/dep created"]);
        user.says("kubectl rollout status statefulset/web --timeout=60s", &["roll out complete"]);
        user.says("kubectl rollout status deployment/dep --timeout=60s", &["successfully rolled out"]);
        tables(user);
        formats(user);
        descriptions(user);
    });
}

fn tables(user: &User<'_>) {
    for (kinds, columns) in [
        ("pods", "NAME,READY,STATUS,RESTARTS,AGE,IP,NODE,NOMINATED NODE,READINESS GATES"),
        ("services", "NAME,TYPE,CLUSTER-IP,EXTERNAL-IP,PORT(S),AGE,SELECTOR"),
        ("statefulsets", "NAME,READY,AGE,CONTAINERS,IMAGES"),
        ("deployments", "NAME,READY,UP-TO-DATE,AVAILABLE,AGE,CONTAINERS,IMAGES,SELECTOR"),
        ("replicasets", "NAME,DESIRED,CURRENT,READY,AGE,CONTAINERS,IMAGES,SELECTOR"),
        ("pvc", "NAME,STATUS,VOLUME,CAPACITY,ACCESS MODES,STORAGECLASS,VOLUMEATTRIBUTESCLASS,AGE,VOLUMEMODE"),
        (
            "pv",
            "NAME,CAPACITY,ACCESS MODES,RECLAIM \
                POLICY,STATUS,CLAIM,STORAGECLASS,VOLUMEATTRIBUTESCLASS,REASON,AGE,VOLUMEMODE",
        ),
        ("storageclasses", "NAME,PROVISIONER,RECLAIMPOLICY,VOLUMEBINDINGMODE,ALLOWVOLUMEEXPANSION,AGE"),
        ("configmaps", "NAME,DATA,AGE"),
        ("serviceaccounts", "NAME,SECRETS,AGE"),
        ("endpoints", "NAME,ENDPOINTS,AGE"),
        ("endpointslices", "NAME,ADDRESSTYPE,PORTS,ENDPOINTS,AGE"),
        ("controllerrevisions", "NAME,CONTROLLER,REVISION,AGE"),
        ("namespaces", "NAME,STATUS,AGE"),
        ("events", "LAST SEEN,TYPE,REASON,OBJECT,SUBOBJECT,SOURCE,MESSAGE,FIRST SEEN,COUNT,NAME"),
        ("nodes", "NAME,STATUS,ROLES,AGE,VERSION,INTERNAL-IP,EXTERNAL-IP,OS-IMAGE,KERNEL-VERSION,CONTAINER-RUNTIME"),
        ("leases -n kube-node-lease", "NAME,HOLDER,AGE"),
    ] {
        assert_eq!(user.columns(&format!("kubectl get {kinds} -o wide")), columns, "{kinds}");
    }
    user.says("kubectl get pods", &["web-0", "1/1", "Running"]);
    user.says("kubectl get pods --show-labels", &["LABELS", "statefulset.kubernetes.io/pod-name=web-0"]);
    user.says("kubectl get pods -L app", &["APP"]);
    user.says("kubectl get all -A", &["NAMESPACE", "kube-system", "service/kube-dns", "statefulset.apps/web"]);
    user.says("kubectl get pods/web-0 sts/web", &["pod/web-0", "statefulset.apps/web"]);
    user.says("kubectl get pods -n nowhere", &["No resources found in nowhere namespace."]);
    assert_eq!(user.says("kubectl get pods -l 'app in (web,dep),app!=dep' -o name", &[]), "pod/web-0\npod/web-1\n");
    assert_eq!(
        user.says("kubectl get pods --field-selector metadata.name=web-0,status.phase=Running -o name", &[]),
        "pod/web-0\n"
    );
    assert_eq!(
        user.says("kubectl get pods -l app=web --sort-by=.status.podIP --chunk-size=1 -o name", &[]).lines().count(),
        2
    );
    user.says(
        "kubectl get events --field-selector involvedObject.name=web-0,type=Normal",
        &["Scheduled", "Container started"],
    );
    user.is_refused("kubectl get pods --field-selector foo=bar", &["field label not supported: foo"]);
    user.is_refused(
        "kubectl get pods -l 'app in ('",
        &["BadRequest", "unable to parse requirement: found '', expected: ',', ')' or identifier"],
    );
    user.is_refused("kubectl get pod nothere", &["Error from server (NotFound): pods \"nothere\" not found"]);
    user.is_refused("kubectl get nothings", &["the server doesn't have a resource type \"nothings\""]);
}

fn formats(user: &User<'_>) {
    user.says(
        "kubectl get pod web-0 -o yaml",
        &["apiVersion: v1\nkind: Pod\n", "phase: Running", "qosClass: BestEffort"],
    );
    user.says("kubectl get pods -o json", &["\"kind\": \"List\"", "\"kind\": \"Pod\""]);
    assert_eq!(
        user.says("kubectl get pod web-0 -o jsonpath='{.metadata.labels.app} {.spec.hostname}'", &[]),
        "web web-0"
    );
    assert_eq!(user.says("kubectl get pod web-0 -o go-template='{{.spec.subdomain}}'", &[]), "web");
    assert_eq!(user.columns("kubectl get pods -o custom-columns=WHO:.metadata.name,WHERE:.spec.nodeName"), "WHO,WHERE");
    let watch = "timeout 1 \"$K\" -n $N get pods -w -o name; true";
    user.says(watch, &["pod/web-0\n", "pod/web-1\n"]);
    if user.is_new {
        user.says("kubectl get deployment dep --subresource=scale -o yaml", &["kind: Scale", "selector: app=dep"]);
        user.says("kubectl get statefulset web --subresource=status", &["2/2"]);
        user.says("kubectl events --for pod/web-0", &["Successfully assigned"]);
    }
}

fn descriptions(user: &User<'_>) {
    if user.is_new {
        // 1.20 describes them in v1beta1 only.
        user.says("kubectl describe endpointslice", &["AddressType:", "web-0"]);
    }
    for (what, fragments) in [
        (
            "pod/web-0",
            &[
                "Controlled By:  StatefulSet/web",
                "Restart Count:  0",
                "/data from data (rw)",
                "ClaimName:  data-web-0",
                "default-scheduler",
            ][..],
        ),
        (
            "statefulset/web",
            &[
                "2 desired | 2 total",
                "2 Running / 0 Waiting",
                "create Claim data-web-1 Pod web-1 in StatefulSet web success",
            ],
        ),
        (
            "deployment/dep",
            &[
                "1 desired | 1 updated | 1 total | 1 available | 0 unavailable",
                "NewReplicaSetAvailable",
                "25% max unavailable, 25% max surge",
            ],
        ),
        ("rs", &["Controlled By:  Deployment/dep", "1 current / 1 desired", "SuccessfulCreate"]),
        ("service/web", &["IP Families:", "TargetPort:", "8080/TCP"]),
        ("pvc/data-web-0", &["Bound", "[kubernetes.io/pvc-protection]", "local-path", "Used By:", "web-0"]),
        ("pv", &["Node Affinity:", "kubernetes.io/pv-protection", "Reclaim Policy:"]),
        ("storageclass", &["IsDefaultClass:", "Yes", "WaitForFirstConsumer"]),
        ("node", &["KubeletReady", "Allocatable:", "Non-terminated Pods:", "HolderIdentity:"]),
        ("namespace/default", &["Status:", "Active"]),
        ("configmap/kube-root-ca.crt", &["BEGIN CERTIFICATE"]),
        ("serviceaccount/default", &["Mountable secrets:"]),
        ("endpoints/web", &["NotReadyAddresses:", "http  8080  TCP"]),
        ("controllerrevision", &["StatefulSet", "Revision:"]),
    ] {
        user.says(&format!("kubectl describe {what}"), fragments);
    }
}

#[test]
fn discovery_documents_and_reviews() {
    let cluster = Cluster::new();
    with_both(&cluster, |user| {
        user.says("kubectl version", &["mainstay", "1.37"]);
        user.says("kubectl cluster-info", &["is running at"]);
        user.says("kubectl api-versions", &["apps/v1\n", "storage.k8s.io/v1\n", "\nv1\n"]);
        user.says(
            "kubectl api-resources",
            &["statefulsets", "sts", "endpointslices", "controllerrevisions", "leases", "persistentvolumeclaims"],
        );
        user.says("kubectl api-resources --namespaced=false -o name", &["nodes\n", "persistentvolumes\n"]);
        user.says("kubectl explain statefulset.spec.updateStrategy.rollingUpdate", &["partition", "FIELDS:"]);
        user.says("kubectl explain pod.spec.containers --recursive", &["readinessProbe", "volumeMounts"]);
        user.says("kubectl explain tokenreviews.spec", &["TokenReview\n", "audiences"]);
        user.says("kubectl explain bindings", &["Binding\n", "target"]);
        user.is_refused("kubectl explain pod.spec.nothing", &["nothing"]);
        user.says("kubectl get --raw /healthz", &["ok"]);
        user.says("kubectl get --raw '/readyz?verbose'", &["[+]ping ok", "readyz check passed"]);
        user.is_refused("kubectl get --raw /nothing", &["NotFound"]);
        user.says("kubectl top node", &["CPU(cores)", "node-1"]);
        user.says("kubectl auth can-i create pods", &["yes"]);
        user.says("kubectl auth can-i --list", &["*.*"]);
        user.is_refused("kubectl auth can-i list secrets --as=bob", &["no"]);
        user.is_refused(
            "kubectl get secrets --as=bob --as-group=staff",
            &["Forbidden", "User \"bob\" cannot list resource \"secrets\" in API group \"\" in the namespace"],
        );
        user.says("kubectl get namespaces --as=boss --as-group=system:masters -o name", &["namespace/default"]);
        if user.is_new {
            user.says("kubectl auth whoami", &["Username", "kubernetes-admin", "system:masters"]);
            user.says("kubectl auth whoami --as=bob", &["bob", "system:authenticated"]);
            user.says("kubectl create serviceaccount robot && kubectl create token robot", &["eyJ"]);
        }
    });
}
