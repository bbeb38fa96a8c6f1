"""The official Python client (Debian's python3-kubernetes) over every verb, patch type and stream.

Runs in a pod whose account may do everything, as a program inside a cluster does: address, CA and token are those of
the pod. One function for each thing that clients do. Exits with 1 if one failed.
"""

import json
import threading
import time
import traceback

import kubernetes
from kubernetes import client, config, watch
from kubernetes.dynamic import DynamicClient
from kubernetes.stream import portforward, stream

NAMESPACE = "python-client"
# Nothing here takes this long unless it hangs (seconds).
PATIENCE = 60
TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
PARTIAL = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"
MAPS = f"/api/v1/namespaces/{NAMESPACE}/configmaps"

config.load_incluster_config()
core, apps, batch = client.CoreV1Api(), client.AppsV1Api(), client.BatchV1Api()
custom, definitions = client.CustomObjectsApi(), client.ApiextensionsV1Api()
# Streams take the client's connections for themselves.
streams = client.CoreV1Api(client.ApiClient())
STEPS = []


def step(function):
    """One thing that clients do, in the order in which they stand here."""
    STEPS.append(function)
    return function


def equal(seen, wanted):
    assert seen == wanted, f"{seen!r} is not {wanted!r}"


def refused(status, function, *args, **kwargs):
    """What must be refused with this status; the answer."""
    try:
        function(*args, **kwargs)
    except client.ApiException as error:
        assert error.status == status, f"{error.status}, not {status}: {error.body}"
        return json.loads(error.body)
    raise AssertionError(f"this was not refused with {status}")


def eventually(holds):
    """Waits until something is so; what it came to."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        seen = holds()
        if seen:
            return seen
        time.sleep(0.1)
    raise AssertionError(f"waited in vain; seen last: {seen!r}")


def gone(read, *args):
    try:
        read(*args)
    except client.ApiException as error:
        return error.status == 404
    return False


def call(method, path, body=None, query=(), accept="application/json", content_type="application/json"):
    """What the generated methods do not offer: any content type, any form of the answer."""
    headers = {"Accept": accept, "Content-Type": content_type}
    answer, _, _ = core.api_client.call_api(
        path, method, query_params=list(query), header_params=headers, body=body, auth_settings=["BearerToken"],
        response_type="object")
    return answer


def config_map(name, **labels):
    return client.V1ConfigMap(metadata=client.V1ObjectMeta(name=name, labels=labels), data={"first": "1"})


def busybox(name, *command, **more):
    return client.V1Container(name=name, image="test.local/busybox:1", command=list(command), **more)


# Reading and writing


@step
def discovery():
    client.VersionApi().get_code()
    groups = {group.name for group in client.ApisApi().get_api_versions().groups}
    assert {"apps", "batch", "apiextensions.k8s.io", "policy"} <= groups, groups
    resources = {resource.name for resource in core.get_api_resources().resources}
    assert {"pods/exec", "pods/eviction", "serviceaccounts/token"} <= resources, resources


@step
def every_list_of_every_group():
    """What the client knows and the server does not serve any more are alpha and beta versions."""
    refusals = []
    for name in (name for name in dir(client) if name.endswith("Api") and name != "CustomObjectsApi"):
        api = getattr(client, name)()
        for method in (method for method in dir(api) if method.startswith("list_") and "http_info" not in method):
            arguments = [NAMESPACE] if "namespaced" in method else []
            try:
                getattr(api, method)(*arguments, _preload_content=False)
            except client.ApiException as error:
                if error.status != 404 or not ("alpha" in name or "beta" in name):
                    refusals.append((name, method, error.status))
    equal(refusals, [])


@step
def create():
    core.create_namespace(client.V1Namespace(metadata=client.V1ObjectMeta(name=NAMESPACE)))
    core.create_namespaced_config_map(NAMESPACE, config_map("a", x="1"), dry_run="All")
    assert gone(core.read_namespaced_config_map, "a", NAMESPACE), "a dry run creates nothing"
    made = core.create_namespaced_config_map(NAMESPACE, config_map("a", x="1"))
    assert made.metadata.uid and made.metadata.creation_timestamp and made.metadata.managed_fields
    equal(refused(409, core.create_namespaced_config_map, NAMESPACE, config_map("a"))["reason"], "AlreadyExists")
    named = client.V1ConfigMap(metadata=client.V1ObjectMeta(generate_name="made-"))
    assert core.create_namespaced_config_map(NAMESPACE, named).metadata.name.startswith("made-")
    secret = client.V1Secret(metadata=client.V1ObjectMeta(name="s"), string_data={"word": "b"})
    equal(core.create_namespaced_secret(NAMESPACE, secret).data, {"word": "Yg=="})


@step
def create_strictly():
    body = {"metadata": {"name": "strict"}, "bogus": 1}
    said = refused(400, call, "POST", MAPS, body, [("fieldValidation", "Strict")])
    assert 'unknown field "bogus"' in said["message"], said


@step
def get():
    whole = core.read_namespaced_config_map("a", NAMESPACE)
    equal((whole.kind, whole.api_version, whole.data), ("ConfigMap", "v1", {"first": "1"}))
    equal(refused(404, core.read_namespaced_config_map, "none", NAMESPACE)["details"]["name"], "none")
    table = call("GET", MAPS, accept=TABLE)
    equal([column["name"] for column in table["columnDefinitions"]], ["Name", "Data", "Age"])
    partial = call("GET", MAPS + "/a", accept=PARTIAL)
    equal((partial["kind"], "data" in partial), ("PartialObjectMetadata", False))
    refused(406, call, "GET", MAPS + "/a", accept="text/html")


@step
def replace():
    read = core.read_namespaced_config_map("a", NAMESPACE)
    read.data["first"] = "2"
    equal(core.replace_namespaced_config_map("a", NAMESPACE, read).data, {"first": "2"})
    equal(refused(409, core.replace_namespaced_config_map, "a", NAMESPACE, read)["reason"], "Conflict")


@step
def patch():
    """Strategic merge, JSON, merge and apply patches; the client chooses the first two by the body's type."""
    merge, apply = "application/merge-patch+json", "application/apply-patch+yaml"
    core.patch_namespaced_config_map("a", NAMESPACE, {"data": {"strategic": "1", "gone": "1"}})
    core.patch_namespaced_config_map("a", NAMESPACE, [{"op": "add", "path": "/data/json", "value": "1"}])
    call("PATCH", MAPS + "/a", {"data": {"gone": None, "merged": "1"}}, content_type=merge)
    words = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {%s: applied}\n"
    query = [("fieldManager", "python")]
    patched = call("PATCH", MAPS + "/a", words % "applied", query, content_type=apply)
    keys = {"first": "2", "strategic": "1", "json": "1", "merged": "1", "applied": "applied"}
    equal(patched["data"], keys)
    said = refused(409, call, "PATCH", MAPS + "/a", words % "first", query, content_type=apply)
    equal(said["details"]["causes"][0]["field"], ".data.first")
    forced = call("PATCH", MAPS + "/a", words % "first", query + [("force", "true")], content_type=apply)
    equal((forced["data"]["first"], "applied" in forced["data"]), ("applied", False))
    test = [{"op": "test", "path": "/data/json", "value": "another"}]
    refused(422, core.patch_namespaced_config_map, "a", NAMESPACE, test)


@step
def list_by_selectors_and_pages():
    for number in range(25):
        core.create_namespaced_config_map(NAMESPACE, config_map(f"page-{number:02}", page="yes"))
    names, token = [], None
    while token != "":
        page = core.list_namespaced_config_map(NAMESPACE, limit=10, label_selector="page", _continue=token)
        names += [item.metadata.name for item in page.items]
        token = page.metadata._continue or ""
    equal(names, [f"page-{number:02}" for number in range(25)])
    by_field = core.list_namespaced_config_map(NAMESPACE, field_selector="metadata.name=page-07")
    equal([item.metadata.name for item in by_field.items], ["page-07"])
    first = core.list_namespaced_config_map(NAMESPACE, limit=1)
    every = core.list_namespaced_config_map(NAMESPACE)
    equal(first.metadata.remaining_item_count, len(every.items) - 1)
    refused(400, core.list_namespaced_config_map, NAMESPACE, label_selector="x in")
    refused(400, core.list_namespaced_config_map, NAMESPACE, field_selector="spec.none=1")
    refused(400, core.list_namespaced_config_map, NAMESPACE, limit=1, _continue="nonsense")


@step
def watch_from_a_version():
    version = core.list_namespaced_config_map(NAMESPACE).metadata.resource_version
    core.create_namespaced_config_map(NAMESPACE, config_map("w", watched="yes"))
    core.patch_namespaced_config_map("w", NAMESPACE, {"data": {"second": "2"}})
    # It leaves the selection, and goes.
    core.patch_namespaced_config_map("w", NAMESPACE, {"metadata": {"labels": {"watched": "no"}}})
    core.delete_namespaced_config_map("w", NAMESPACE)
    for selector, wanted in [("watched=yes", ["ADDED", "MODIFIED", "DELETED"]),
                             ("watched", ["ADDED", "MODIFIED", "MODIFIED", "DELETED"])]:
        events = watch.Watch().stream(core.list_namespaced_config_map, NAMESPACE, resource_version=version,
                                      label_selector=selector, timeout_seconds=1)
        equal([event["type"] for event in events], wanted)


@step
def watch_what_happens():
    version = core.list_namespaced_config_map(NAMESPACE).metadata.resource_version
    threading.Timer(0.3, core.create_namespaced_config_map, [NAMESPACE, config_map("later")]).start()
    watcher = watch.Watch()
    for event in watcher.stream(core.list_namespaced_config_map, NAMESPACE, resource_version=version,
                                timeout_seconds=PATIENCE):
        equal((event["type"], event["object"].metadata.name), ("ADDED", "later"))
        watcher.stop()


@step
def watch_from_the_beginning():
    query = [("watch", "true"), ("sendInitialEvents", "true"), ("allowWatchBookmarks", "true"),
             ("resourceVersionMatch", "NotOlderThan"), ("timeoutSeconds", "1")]
    answer, _, _ = core.api_client.call_api(MAPS, "GET", query_params=query, auth_settings=["BearerToken"],
                                            _preload_content=False)
    events = [json.loads(line) for line in answer.data.splitlines()]
    # Others write meanwhile: bookmarks of where the watch is may follow the one that says that all has been told.
    told = [event["type"] for event in events]
    assert "ADDED" in told and "BOOKMARK" in told, told
    end = events[told.index("BOOKMARK")]["object"]["metadata"]
    equal(end["annotations"]["k8s.io/initial-events-end"], "true")
    assert "ADDED" not in told[told.index("BOOKMARK"):], told
    refused(422, call, "GET", MAPS, query=[("watch", "true"), ("sendInitialEvents", "true")])


@step
def delete():
    core.delete_namespaced_config_map("a", NAMESPACE, dry_run="All")
    other = client.V1DeleteOptions(preconditions=client.V1Preconditions(uid="another"))
    refused(409, core.delete_namespaced_config_map, "a", NAMESPACE, body=other)
    core.delete_namespaced_config_map("a", NAMESPACE)
    assert gone(core.read_namespaced_config_map, "a", NAMESPACE)
    core.delete_collection_namespaced_config_map(NAMESPACE, label_selector="page")
    equal(core.list_namespaced_config_map(NAMESPACE, label_selector="page").items, [])
    assert core.list_namespaced_config_map(NAMESPACE).items, "what was not selected stays"


# Pods and their streams


@step
def run_a_pod():
    web = client.V1Container(name="web", image="test.local/httpd:1")
    echo = busybox("echo", "sh", "-c", "while read word; do echo got $word; done", stdin=True)
    spec = client.V1PodSpec(containers=[web, echo], termination_grace_period_seconds=0)
    core.create_namespaced_pod(NAMESPACE, client.V1Pod(
        metadata=client.V1ObjectMeta(name="p", labels={"app": "p"}), spec=spec))
    eventually(lambda: [status.ready for status in core.read_namespaced_pod_status("p", NAMESPACE)
                        .status.container_statuses or []] == [True, True])
    refused(422, core.patch_namespaced_pod, "p", NAMESPACE, {"spec": {"hostname": "another"}})


def execute(*command, **more):
    words = dict(container="echo", command=list(command), stdin=False, stdout=True, stderr=True, tty=False,
                 _request_timeout=PATIENCE)
    return stream(streams.connect_get_namespaced_pod_exec, "p", NAMESPACE, **{**words, **more})


@step
def exec_its_output_input_and_exit_code():
    equal(sorted(execute("sh", "-c", "echo out; echo err >&2").split()), ["err", "out"])
    channel = execute("sh", "-c", "read word; echo got $word; exit 3", stdin=True, _preload_content=False)
    channel.write_stdin("hello\n")
    channel.run_forever(timeout=PATIENCE)
    equal((channel.read_stdout(), channel.returncode), ("got hello\n", 3))


@step
def exec_with_a_terminal():
    # Sizes and input come by channels of their own, in no order.
    script = "tty; read word; until [ \"$(stty size 2>&1)\" = '50 100' ]; do sleep 0.1; done; stty size"
    channel = execute("sh", "-c", script, stdin=True, tty=True, _preload_content=False)
    channel.write_channel(4, json.dumps({"Width": 100, "Height": 50}))
    channel.write_stdin("go on\n")
    channel.run_forever(timeout=PATIENCE)
    said = channel.read_stdout()
    assert "/dev/pts" in said and "50 100" in said, said


@step
def exec_with_much_output():
    channel = execute("sh", "-c", "yes | head -c 3000000", _preload_content=False)
    length = 0
    while channel.is_open():
        channel.update(timeout=1)
        length += len(channel.read_stdout() or "") if channel.peek_stdout() else 0
    equal(length, 3_000_000)


@step
def attach():
    channel = stream(streams.connect_get_namespaced_pod_attach, "p", NAMESPACE, container="echo", stdin=True,
                     stdout=True, stderr=True, tty=False, _preload_content=False)
    channel.write_stdin("attached\n")
    equal(channel.readline_stdout(timeout=PATIENCE), "got attached")
    channel.close()


@step
def logs():
    equal(core.read_namespaced_pod_log("p", NAMESPACE, container="echo"), "got attached\n")
    refused(400, core.read_namespaced_pod_log, "p", NAMESPACE)
    stamped = core.read_namespaced_pod_log("p", NAMESPACE, container="echo", timestamps=True, tail_lines=1)
    equal((stamped[4], stamped.split(" ", 1)[1]), ("-", "got attached\n"))
    threading.Timer(0.3, execute, ["sh", "-c", "echo followed >/proc/1/fd/1"]).start()
    follower = watch.Watch()
    lines = []
    for line in follower.stream(core.read_namespaced_pod_log, name="p", namespace=NAMESPACE, container="echo"):
        lines.append(line)
        if line == "followed":
            follower.stop()
    equal(lines, ["got attached", "followed"])


@step
def port_forward():
    forward = portforward(streams.connect_get_namespaced_pod_portforward, "p", NAMESPACE, ports="80")
    socket = forward.socket(80)
    socket.setblocking(True)
    socket.sendall(b"GET / HTTP/1.0\r\n\r\n")
    answer = b""
    while piece := socket.recv(4096):
        answer += piece
    assert b"It works!" in answer, answer
    equal(forward.error(80), None)


@step
def proxies():
    assert "It works!" in core.connect_get_namespaced_pod_proxy("p:80", NAMESPACE)
    ports = [client.V1ServicePort(name="http", port=8080, target_port=80)]
    core.create_namespaced_service(NAMESPACE, client.V1Service(
        metadata=client.V1ObjectMeta(name="web"), spec=client.V1ServiceSpec(selector={"app": "p"}, ports=ports)))
    eventually(lambda: any(subset.addresses for endpoints in core.list_namespaced_endpoints(NAMESPACE).items
                           for subset in endpoints.subsets or []))
    assert "It works!" in core.connect_get_namespaced_service_proxy("web:http", NAMESPACE)


@step
def ephemeral_containers():
    debugger = {"name": "debug", "image": "test.local/busybox:1", "command": ["sleep", "1000"]}
    core.patch_namespaced_pod_ephemeralcontainers("p", NAMESPACE, {"spec": {"ephemeralContainers": [debugger]}})
    eventually(lambda: [status.state.running for status in core.read_namespaced_pod("p", NAMESPACE)
                        .status.ephemeral_container_statuses or []] not in ([], [None]))


@step
def evict():
    policy, budget = client.PolicyV1Api(), client.V1PodDisruptionBudgetSpec(
        min_available=1, selector=client.V1LabelSelector(match_labels={"app": "p"}))
    policy.create_namespaced_pod_disruption_budget(NAMESPACE, client.V1PodDisruptionBudget(
        metadata=client.V1ObjectMeta(name="b"), spec=budget))
    eventually(lambda: (status := policy.read_namespaced_pod_disruption_budget_status("b", NAMESPACE).status)
               and status.observed_generation and status.current_healthy == 1)
    eviction = client.V1Eviction(metadata=client.V1ObjectMeta(name="p"))
    said = refused(429, core.create_namespaced_pod_eviction, "p", NAMESPACE, eviction)
    equal(said["details"]["causes"][0]["reason"], "DisruptionBudget")
    policy.delete_namespaced_pod_disruption_budget("b", NAMESPACE)
    core.create_namespaced_pod_eviction("p", NAMESPACE, eviction)
    eventually(lambda: gone(core.read_namespaced_pod, "p", NAMESPACE))


@step
def bind():
    spec = client.V1PodSpec(scheduler_name="nobody", containers=[busybox("c", "sleep", "1000")],
                            termination_grace_period_seconds=0)
    core.create_namespaced_pod(NAMESPACE, client.V1Pod(metadata=client.V1ObjectMeta(name="bound"), spec=spec))
    node = core.list_node().items[0].metadata.name
    binding = client.V1Binding(metadata=client.V1ObjectMeta(name="bound"),
                               target=client.V1ObjectReference(api_version="v1", kind="Node", name=node))
    core.create_namespaced_pod_binding("bound", NAMESPACE, binding, _preload_content=False)
    equal(core.read_namespaced_pod("bound", NAMESPACE).spec.node_name, node)
    refused(409, core.create_namespaced_pod_binding, "bound", NAMESPACE, binding, _preload_content=False)


# Subresources of workloads, reviews, kinds of one's own


@step
def tokens_and_reviews():
    request = client.AuthenticationV1TokenRequest(spec=client.V1TokenRequestSpec(audiences=[], expiration_seconds=600))
    token = core.create_namespaced_service_account_token("default", NAMESPACE, request).status.token
    review = client.V1TokenReview(spec=client.V1TokenReviewSpec(token=token))
    seen = client.AuthenticationV1Api().create_token_review(review).status
    equal((seen.authenticated, seen.user.username), (True, f"system:serviceaccount:{NAMESPACE}:default"))
    asked = client.V1SubjectAccessReviewSpec(user=seen.user.username, resource_attributes=client.V1ResourceAttributes(
        verb="get", resource="pods", namespace=NAMESPACE))
    answer = client.AuthorizationV1Api().create_subject_access_review(client.V1SubjectAccessReview(spec=asked))
    equal(answer.status.allowed, False)


@step
def scale():
    template = client.V1PodTemplateSpec(
        metadata=client.V1ObjectMeta(labels={"d": "1"}),
        spec=client.V1PodSpec(containers=[busybox("c", "sleep", "1000")], termination_grace_period_seconds=0))
    apps.create_namespaced_deployment(NAMESPACE, client.V1Deployment(
        metadata=client.V1ObjectMeta(name="d"), spec=client.V1DeploymentSpec(
            replicas=0, selector=client.V1LabelSelector(match_labels={"d": "1"}), template=template)))
    apps.patch_namespaced_deployment_scale("d", NAMESPACE, {"spec": {"replicas": 2}})
    eventually(lambda: apps.read_namespaced_deployment_status("d", NAMESPACE).status.ready_replicas == 2)
    equal(apps.read_namespaced_deployment_scale("d", NAMESPACE).status.replicas, 2)
    container = {"name": "c", "env": [{"name": "A", "value": "1"}]}
    apps.patch_namespaced_deployment("d", NAMESPACE, {"spec": {"template": {"spec": {"containers": [container]}}}})
    [merged] = apps.read_namespaced_deployment("d", NAMESPACE).spec.template.spec.containers
    equal((merged.image, merged.env[0].name), ("test.local/busybox:1", "A"))
    apps.delete_namespaced_deployment("d", NAMESPACE, propagation_policy="Foreground")
    eventually(lambda: gone(apps.read_namespaced_deployment, "d", NAMESPACE))
    equal(core.list_namespaced_pod(NAMESPACE, label_selector="d=1").items, [])


@step
def a_job():
    spec = client.V1PodSpec(containers=[busybox("c", "true")], restart_policy="Never")
    batch.create_namespaced_job(NAMESPACE, client.V1Job(metadata=client.V1ObjectMeta(name="j"), spec=client.V1JobSpec(
        template=client.V1PodTemplateSpec(spec=spec))))
    eventually(lambda: batch.read_namespaced_job_status("j", NAMESPACE).status.succeeded == 1)


@step
def custom_resources():
    schema = {"type": "object", "properties": {
        "spec": {"type": "object", "properties": {"size": {"type": "integer", "default": 3, "maximum": 9}}},
        "status": {"type": "object", "properties": {"size": {"type": "integer"}}}}}
    version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": schema},
               "subresources": {"status": {}, "scale": {"specReplicasPath": ".spec.size",
                                                        "statusReplicasPath": ".status.size"}}}
    names = {"plural": "boxes", "singular": "box", "kind": "Box", "listKind": "BoxList"}
    definitions.create_custom_resource_definition({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "boxes.python.example.com"},
        "spec": {"group": "python.example.com", "scope": "Namespaced", "names": names, "versions": [version]}})
    eventually(lambda: any((condition.type, condition.status) == ("Established", "True") for condition in
                           definitions.read_custom_resource_definition("boxes.python.example.com")
                           .status.conditions or []))
    boxes = ("python.example.com", "v1", NAMESPACE, "boxes")
    box = {"apiVersion": "python.example.com/v1", "kind": "Box", "metadata": {"name": "b"}, "spec": {}}
    equal(custom.create_namespaced_custom_object(*boxes, box)["spec"], {"size": 3})
    refused(422, custom.patch_namespaced_custom_object, *boxes, "b", {"spec": {"size": 10}})
    custom.patch_namespaced_custom_object_status(*boxes, "b", {"status": {"size": 1}, "spec": {"size": 8}})
    custom.patch_namespaced_custom_object_scale(*boxes, "b", {"spec": {"replicas": 5}})
    seen = custom.get_namespaced_custom_object(*boxes, "b")
    equal((seen["spec"]["size"], seen["status"]["size"]), (5, 1))


@step
def the_dynamic_client():
    dynamic = DynamicClient(client.ApiClient())
    boxes = dynamic.resources.get(api_version="python.example.com/v1", kind="Box")
    body = {"apiVersion": "python.example.com/v1", "kind": "Box", "metadata": {"name": "a"}, "spec": {"size": 1}}
    boxes.create(body=body, namespace=NAMESPACE)
    patch = {"metadata": {"name": "a"}, "spec": {"size": 2}}
    boxes.patch(body=patch, namespace=NAMESPACE, content_type="application/merge-patch+json")
    equal([(box.metadata.name, box.spec.size) for box in boxes.get(namespace=NAMESPACE).items], [("a", 2), ("b", 5)])
    equal([event["type"] for event in boxes.watch(namespace=NAMESPACE, timeout=1)], ["ADDED", "ADDED"])
    boxes.delete(name="a", namespace=NAMESPACE)
    definitions.delete_custom_resource_definition("boxes.python.example.com")
    eventually(lambda: gone(definitions.read_custom_resource_definition, "boxes.python.example.com"))


@step
def delete_the_namespace():
    core.delete_namespace(NAMESPACE)
    eventually(lambda: gone(core.read_namespace, NAMESPACE))


def main():
    print(f"python3-kubernetes {kubernetes.__version__}", flush=True)
    failed = []
    for function in STEPS:
        begun = time.monotonic()
        try:
            function()
            print(f"{function.__name__}: {time.monotonic() - begun:.1f} s", flush=True)
        except Exception:
            failed.append(function.__name__)
            print(f"{function.__name__} FAILED\n{traceback.format_exc()}", flush=True)
    print(f"{len(STEPS)} steps, failed: {failed}", flush=True)
    raise SystemExit(1 if failed else 0)


main()
