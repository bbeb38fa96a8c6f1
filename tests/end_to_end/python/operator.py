"""An operator for Fleets, as people write them: a Fleet owns a StatefulSet of its size.

Elects a leader by a Lease, watches its kind and the sets that it owns, reports in status and events, and lets a Fleet
go only when its finalizer is done. It may do nothing but what its Role says; a refusal ends it.
"""

import datetime
import os
import threading
import time

from kubernetes import client, config, watch

GROUP, VERSION, PLURAL, KIND = "fleets.example.com", "v1", "fleets", "Fleet"
FINALIZER = "fleets.example.com/farewell"
# A leader that has not renewed its lease for this long is none any more, and how often it does (seconds).
LEASE, RENEWAL = 4, 1

config.load_incluster_config()
core, apps, custom = client.CoreV1Api(), client.AppsV1Api(), client.CustomObjectsApi()
leases = client.CoordinationV1Api()
NAMESPACE = os.environ["NAMESPACE"]
NAME = os.environ["NAME"]


def now():
    return datetime.datetime.now(datetime.timezone.utc)


class Leadership:
    """The lease of the operator: who holds it leads. Written with the version that was read, so by one at a time."""

    def __init__(self):
        self.leads = threading.Event()
        # The version that was seen last, and since when: clocks of others do not count.
        self.seen = (None, 0.0)

    def run(self):
        while True:
            try:
                self.renew()
            except client.ApiException as error:
                # Another one was faster.
                if error.status != 409:
                    os._exit(1)
            time.sleep(RENEWAL)

    def renew(self):
        try:
            lease = leases.read_namespaced_lease("operator", NAMESPACE)
        except client.ApiException as error:
            if error.status != 404:
                raise
            spec = client.V1LeaseSpec(holder_identity=NAME, lease_duration_seconds=LEASE, acquire_time=now(),
                                      renew_time=now(), lease_transitions=0)
            lease = client.V1Lease(metadata=client.V1ObjectMeta(name="operator"), spec=spec)
            lease = leases.create_namespaced_lease(NAMESPACE, lease)
        if self.seen[0] != lease.metadata.resource_version:
            self.seen = (lease.metadata.resource_version, time.monotonic())
        is_mine = lease.spec.holder_identity == NAME
        if not is_mine and self.leads.is_set():
            os._exit(1)
        if is_mine or time.monotonic() - self.seen[1] > LEASE:
            if not is_mine:
                lease.spec.lease_transitions += 1
                lease.spec.acquire_time = now()
            lease.spec.holder_identity, lease.spec.renew_time = NAME, now()
            leases.replace_namespaced_lease("operator", NAMESPACE, lease)
            self.leads.set()


def record(fleet, reason, message):
    """Records an event about a Fleet."""
    meta = fleet["metadata"]
    about = client.V1ObjectReference(api_version=f"{GROUP}/{VERSION}", kind=KIND, name=meta["name"],
                                     namespace=NAMESPACE, uid=meta["uid"])
    core.create_namespaced_event(NAMESPACE, client.CoreV1Event(
        metadata=client.V1ObjectMeta(generate_name=meta["name"] + "."), involved_object=about, reason=reason,
        message=message, type="Normal", count=1, first_timestamp=now(), last_timestamp=now(),
        source=client.V1EventSource(component="operator")))


def statefulset(fleet):
    """The set that a Fleet owns."""
    meta = fleet["metadata"]
    name, labels = meta["name"], {"fleet": meta["name"]}
    owner = client.V1OwnerReference(api_version=f"{GROUP}/{VERSION}", kind=KIND, name=name, uid=meta["uid"],
                                    controller=True, block_owner_deletion=True)
    ship = client.V1Container(name="ship", image="test.local/busybox:1", command=["sleep", "1000000"])
    pod = client.V1PodSpec(containers=[ship], termination_grace_period_seconds=0)
    return client.V1StatefulSet(
        metadata=client.V1ObjectMeta(name=name, labels=labels, owner_references=[owner]),
        spec=client.V1StatefulSetSpec(
            replicas=fleet["spec"]["size"], service_name=name, selector=client.V1LabelSelector(match_labels=labels),
            template=client.V1PodTemplateSpec(metadata=client.V1ObjectMeta(labels=labels), spec=pod)))


def reconcile(name):
    """Makes what is there be what a Fleet says."""
    try:
        fleet = custom.get_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL, name)
    except client.ApiException as error:
        if error.status == 404:
            return
        raise
    finalizers = fleet["metadata"].get("finalizers", [])
    if "deletionTimestamp" in fleet["metadata"]:
        if FINALIZER in finalizers:
            record(fleet, "Farewell", f"said by {NAME}")
            change(name, {"metadata": {"finalizers": [other for other in finalizers if other != FINALIZER]}})
        return
    if FINALIZER not in finalizers:
        change(name, {"metadata": {"finalizers": finalizers + [FINALIZER]}})
    size, ready = fleet["spec"]["size"], 0
    try:
        found = apps.read_namespaced_stateful_set(name, NAMESPACE)
        ready = found.status.ready_replicas or 0
        if found.spec.replicas != size:
            apps.patch_namespaced_stateful_set_scale(name, NAMESPACE, {"spec": {"replicas": size}})
            record(fleet, "Scaled", f"{found.spec.replicas} to {size}")
    except client.ApiException as error:
        if error.status != 404:
            raise
        apps.create_namespaced_stateful_set(NAMESPACE, statefulset(fleet))
        record(fleet, "Launched", f"{size} ships")
    if fleet.get("status", {}).get("ready") != ready:
        status = {"status": {"ready": ready}}
        custom.patch_namespaced_custom_object_status(GROUP, VERSION, NAMESPACE, PLURAL, name, status)


def change(name, patch):
    custom.patch_namespaced_custom_object(GROUP, VERSION, NAMESPACE, PLURAL, name, patch)


def follow(changed, names_of, list_all, *args, **kwargs):
    """Tells the names of the Fleets of all objects, and from then on of those that change, for ever."""
    while True:
        for event in watch.Watch().stream(list_all, *args, **kwargs, timeout_seconds=60):
            changed.update(names_of(event["raw_object"]))


def main():
    leadership = Leadership()
    threading.Thread(target=leadership.run, daemon=True).start()
    leadership.leads.wait()
    print(f"{NAME} leads", flush=True)
    changed = set()
    own = (lambda fleet: [fleet["metadata"]["name"]], custom.list_namespaced_custom_object, GROUP, VERSION, NAMESPACE,
           PLURAL)
    owned = (lambda found: [found["metadata"].get("labels", {}).get("fleet")], apps.list_namespaced_stateful_set,
             NAMESPACE)
    for what in (own, owned):
        threading.Thread(target=lambda what=what: end_with(follow, changed, *what), daemon=True).start()
    while True:
        while changed:
            name = changed.pop()
            if name:
                attempt(name, changed)
        time.sleep(0.05)


def attempt(name, changed):
    """A write that somebody else's came before is tried again; anything else ends the operator."""
    try:
        reconcile(name)
    except client.ApiException as error:
        if error.status not in (404, 409):
            raise
        changed.add(name)


def end_with(function, *args):
    """What follows does not end, unless something is wrong."""
    try:
        function(*args)
    finally:
        os._exit(1)


main()
