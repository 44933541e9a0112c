"""A scenario of the Python client `etcd3`, run while the cluster's leader is killed.

Usage: scenario.py ENDPOINTS CA CERT KEY PREFIX SECONDS. Each step prints one JSON line. "load" says that the long part
has begun. A violation ends the program with exit code 1 and says what it was.
"""

import json
import os
import queue
import sys
import threading
import time

import etcd3
import grpc

# Bounds one try; between two tries the cluster may elect a leader.
REQUEST = 5
MINUTE = 60
# What one try may end with while a member is down.
FAILED = (etcd3.exceptions.Etcd3Exception, grpc.RpcError)


def step(name, **facts):
    print(json.dumps({"step": name, **facts}), flush=True)


class Violation(Exception):
    pass


def ensure(holds, what):
    if not holds:
        raise Violation(what)


class Cluster:
    """One connection at a time: the client speaks to one member, and its user goes to the next when that one is down."""

    def __init__(self, endpoints, ca, cert, key):
        self.members = [endpoint.removeprefix("https://").rsplit(":", 1) for endpoint in endpoints]
        self.tls = {"ca_cert": ca, "cert_cert": cert, "cert_key": key}
        self.turn = 0

    def client(self):
        host, port = self.members[self.turn % len(self.members)]
        self.turn += 1
        return etcd3.client(host=host, port=int(port), timeout=REQUEST, **self.tls)

    def again(self, request):
        """Repeats what may be repeated, with one member after the other."""
        end = time.monotonic() + MINUTE
        while True:
            try:
                return request(self.client())
            except FAILED as error:
                ensure(time.monotonic() < end, f"no answer for a minute: {error!r}")


def puts(cluster, prefix):
    client, last = cluster.client(), 0
    for i in range(100):
        revision = client.put(f"{prefix}{i:03}", str(i)).header.revision
        ensure(revision > last, f"revision {revision} follows {last}")
        last = revision
    got = list(client.get_prefix(prefix, sort_order="descend", sort_target="key"))
    ensure(len(got) == 100 and got[0][0] == b"99", f"100 puts gave {len(got)} keys")
    deleted = client.delete_prefix(prefix).deleted
    ensure(deleted == 100, f"deleted {deleted} of 100")
    step("puts")


def transactions(cluster, prefix):
    client = cluster.client()
    tx = client.transactions

    def create():
        return client.transaction(
            compare=[tx.create(prefix + "a") == 0],
            success=[tx.put(prefix + "a", "1"), tx.put(prefix + "b", "1")],
            failure=[tx.get(prefix + "a"), tx.txn(compare=[], success=[tx.put(prefix + "b", "2")], failure=[])],
        )[0]

    ensure(create(), "a key that is not there was not created")
    ensure(not create(), "a key was created twice")
    ensure(client.get(prefix + "b")[0] == b"2", "the nested transaction had no effect")
    ensure(client.replace(prefix + "b", "2", "3"), "a key that is as compared was not replaced")
    ensure(not client.replace(prefix + "b", "2", "4"), "a key that is not as compared was replaced")
    step("txns")


def leases(cluster, prefix):
    client = cluster.client()
    lease = client.lease(2)
    client.put(prefix + "short", "gone soon", lease=lease)
    granted, ended = time.monotonic(), queue.Queue()
    watch = client.add_watch_callback(prefix + "short", ended.put)
    event = ended.get(timeout=4 * REQUEST).events[0]
    ensure(isinstance(event, etcd3.events.DeleteEvent), f"an expired lease gave {event!r}")
    lived = time.monotonic() - granted
    ensure(lived > 1.9, f"a lease of 2 s lived for {lived} s")
    client.cancel_watch(watch)
    step("leases")


def load(cluster, prefix, seconds):
    """Writes, watches, locks and keeps a lease alive, all at once, while the leader dies."""
    lease = cluster.client().lease(15).id
    cluster.client().put(prefix + "kept", "alive", lease=lease)
    end, results, stop = time.monotonic() + seconds, {}, threading.Event()

    def run(name, work, *arguments):
        try:
            results[name] = work(cluster, *arguments)
        except Exception as error:  # Told by the main thread, which ends the program.
            results[name] = error

    step("load")
    keeper = threading.Thread(target=run, args=("kept", keep_alive, lease, stop))
    keeper.start()
    threads = [threading.Thread(target=run, args=("written", watched, prefix + "watched/", end))]
    threads += [threading.Thread(target=run, args=(f"locked{i}", locked, prefix + "locked/", end)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = cluster.again(lambda client: client.get(prefix + "kept"))[0]
    stop.set()
    keeper.join()
    for result in results.values():
        if isinstance(result, Exception):
            raise result
    ensure(kept == b"alive", "a lease that was kept alive is gone")
    added = results["locked0"] + results["locked1"]
    stored = int(cluster.again(lambda client: client.get(prefix + "locked/count"))[0] or 0)
    # An increment whose answer was lost may have happened.
    ensure(0 < added <= stored, f"{added} increments were acknowledged, and the count is {stored}")
    writes, events = results["written"]
    step("loaded", writes=writes, events=events, locked=added)


def keep_alive(cluster, lease, stop):
    while not stop.wait(1):
        answers = cluster.again(lambda client: list(client.refresh_lease(lease)))
        ensure(answers[0].TTL > 0, "a lease that is kept alive has ended")


def watched(cluster, prefix, end):
    """Writes one key after the other, and gives how many writes were acknowledged and how many events came."""
    seen, last, failures = {}, [None], []
    start = cluster.again(lambda client: client.get_response(prefix)).header.revision + 1
    thread = threading.Thread(target=follow, args=(cluster, prefix, start, seen, last, failures))
    thread.start()
    acknowledged, i = {}, 0
    while time.monotonic() < end:
        # A try whose fate is unknown may have written: then the key has two events.
        key = f"{prefix}{i:06}"
        acknowledged[cluster_put(cluster, key)] = key
        i += 1
    last[0] = max(acknowledged)
    thread.join(6 * REQUEST)
    ensure(not thread.is_alive(), f"the watch has not come to the last write at {last[0]}")
    ensure(not failures, f"{failures}")
    missed = [revision for revision, key in acknowledged.items() if seen.get(revision) != key]
    ensure(not missed, f"the watch missed the writes at {missed[:5]}")
    return len(acknowledged), len(seen)


writer = threading.local()


def cluster_put(cluster, key):
    """The writer keeps its connection as long as it answers."""
    try:
        return writer.client.put(key, "v").header.revision
    except AttributeError:
        pass
    except FAILED:
        pass

    def put(client):
        writer.client = client
        return client.put(key, "v").header.revision

    return cluster.again(put)


def follow(cluster, prefix, start, seen, last, failures):
    """All events up to the revision that `last` comes to hold. A watch that breaks is taken up behind its last event."""
    try:
        while last[0] is None or not seen or max(seen) < last[0]:
            client = cluster.client()
            events = queue.Queue()
            after = max(seen) + 1 if seen else start
            try:
                client.add_watch_callback(prefix, events.put, range_end=etcd3.utils.increment_last_byte(prefix.encode()), start_revision=after)
                while last[0] is None or not seen or max(seen) < last[0]:
                    response = events.get(timeout=REQUEST)
                    if isinstance(response, Exception):
                        raise response
                    for event in response.events:
                        newest = next(reversed(seen)) if seen else 0
                        ensure(event.mod_revision > newest, f"an event of revision {event.mod_revision} follows {newest}")
                        seen[event.mod_revision] = event.key.decode()
            except FAILED + (queue.Empty,):
                continue
            finally:
                client.close()
    except Violation as violation:
        failures.append(str(violation))


def locked(cluster, prefix, end):
    """Counts under a lock. What is written is guarded by the lock's own key: a lock alone promises nothing once its
    lease is gone."""
    added = 0
    while time.monotonic() < end:
        client = cluster.client()
        try:
            lock = client.lock(prefix + "mutex", ttl=5)
            if not lock.acquire(timeout=REQUEST):
                continue
            tx = client.transactions
            value = int(client.get(prefix + "count")[0] or 0)
            added += client.transaction(
                compare=[tx.value(lock.key) == lock.uuid],
                success=[tx.put(prefix + "count", str(value + 1))],
                failure=[],
            )[0]
            lock.release()
        except FAILED:
            continue
        finally:
            client.close()
    return added


def elections(cluster, prefix):
    """The client has no elections; this is the field's recipe from its parts: the oldest key leads."""

    def campaign(name):
        lease = cluster.again(lambda client: client.lease(30)).id
        key = f"{prefix}{lease:x}"
        cluster.again(lambda client: client.put(key, name, lease=lease))
        return key

    def leader():
        oldest = cluster.again(lambda client: list(client.get_prefix(prefix, sort_order="ascend", sort_target="create")))
        return oldest[0][0]

    first = campaign("first")
    second = campaign("second")
    ensure(leader() == b"first", "the second campaigner leads")
    client = cluster.again(lambda client: (client.status(), client)[1])
    resigned = queue.Queue()
    client.add_watch_callback(first, resigned.put)
    cluster.again(lambda client: client.delete(first))
    resigned.get(timeout=REQUEST)
    ensure(leader() == b"second", "the second does not lead after the first has resigned")
    cluster.again(lambda client: client.delete(second))
    step("elections")


def main():
    try:
        _, endpoints, ca, cert, key, prefix, seconds = sys.argv
        cluster = Cluster(endpoints.split(","), ca, cert, key)
        puts(cluster, prefix + "put/")
        transactions(cluster, prefix + "txn/")
        leases(cluster, prefix + "lease/")
        load(cluster, prefix, int(seconds))
        elections(cluster, prefix + "election/")
        step("done")
        status = 0
    except Exception as error:
        step("violation", what=f"{type(error).__name__}: {error}")
        status = 1
    # The client's watch threads do not end by themselves.
    sys.stdout.flush()
    os._exit(status)


main()
