// A scenario of the Node client `etcd3`, run while the cluster's leader is killed.
//
// Usage: node scenario.js ENDPOINTS CA CERT KEY PREFIX SECONDS. Each step prints one JSON line. "load" says that the
// long part has begun. A violation ends the program with exit code 1 and says what it was.

import { readFileSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import { Etcd3 } from 'etcd3';

// Bounds one try; between two tries the cluster may elect a leader.
const REQUEST = 5_000;
const MINUTE = 60_000;

const step = (name, facts = {}) => console.log(JSON.stringify({ step: name, ...facts }));

class Violation extends Error {}

function ensure(holds, what) {
  if (!holds) throw new Violation(what);
}

/** Rejects when `promise` takes longer than a request may. */
function bounded(promise, what, milliseconds = REQUEST) {
  const late = new AbortController();
  const timer = delay(milliseconds, undefined, { signal: late.signal }).then(() => {
    throw new Error(`${what}: no answer in ${milliseconds} ms`);
  });
  timer.catch(() => {});
  return Promise.race([promise, timer]).finally(() => late.abort());
}

/** Repeats what may be repeated. */
async function again(request, what) {
  const end = Date.now() + MINUTE;
  for (;;) {
    try {
      return await bounded(request(), what);
    } catch (error) {
      ensure(!(error instanceof Violation) && Date.now() < end, `${what}: ${error.message}`);
    }
  }
}

async function puts(client, prefix) {
  let last = 0n;
  for (let i = 0; i < 100; i++) {
    const put = await client.put(prefix + String(i).padStart(3, '0')).value(String(i)).exec();
    const revision = BigInt(put.header.revision);
    ensure(revision > last, `revision ${revision} follows ${last}`);
    last = revision;
  }
  const keys = await client.getAll().prefix(prefix).sort('Key', 'Descend').keys();
  ensure(keys.length === 100 && keys[0].endsWith('099'), `100 puts gave ${keys.length} keys`);
  const deleted = await client.delete().prefix(prefix).exec();
  ensure(deleted.deleted === '100', `deleted ${deleted.deleted} of 100`);
  step('puts');
}

async function transactions(client, prefix) {
  const create = () =>
    client
      .if(prefix + 'a', 'Create', '==', 0)
      .then(client.put(prefix + 'a').value('1'), client.put(prefix + 'b').value('1'))
      .else(client.get(prefix + 'a'), client.put(prefix + 'b').value('2'))
      .commit();
  ensure((await create()).succeeded, 'a key that is not there was not created');
  ensure(!(await create()).succeeded, 'a key was created twice');
  await client.stm().transact(async (tx) => {
    const b = await tx.get(prefix + 'b').string();
    await tx.put(prefix + 'b').value(b + '!');
  });
  const b = await client.get(prefix + 'b').string();
  ensure(b === '2!', `the software transaction wrote ${b}`);
  step('txns');
}

async function leases(client, prefix) {
  const key = prefix + 'short';
  const granted = await client.leaseClient.leaseGrant({ TTL: 2 });
  const watcher = await client.watch().key(key).create();
  const deleted = new Promise((resolve) => watcher.on('delete', resolve));
  await client.put(key).value('gone soon').lease(granted.ID).exec();
  const start = Date.now();
  await bounded(deleted, 'the end of a lease', 4 * REQUEST);
  const lived = Date.now() - start;
  ensure(lived > 1900, `a lease of 2 s lived for ${lived} ms`);
  await watcher.cancel();
  step('leases');
}

/** Writes, watches, locks and keeps a lease alive, all at once, while the leader dies. */
async function load(client, prefix, seconds) {
  const lease = client.lease(15);
  lease.on('lost', () => fail(new Violation('a lease that is kept alive was lost')));
  await lease.put(prefix + 'kept').value('alive').exec();
  step('load');
  const end = Date.now() + 1000 * seconds;
  const [written, one, other] = await Promise.all([
    watched(client, prefix + 'watched/', end),
    locked(client, prefix + 'locked/', end),
    locked(client, prefix + 'locked/', end),
  ]);
  ensure((await again(() => client.get(prefix + 'kept').string(), 'get')) === 'alive', 'a kept lease is gone');
  lease.release();
  const stored = Number((await again(() => client.get(prefix + 'locked/count').string(), 'get')) ?? 0);
  // An increment whose answer was lost may have happened.
  ensure(one + other > 0 && stored >= one + other, `${one + other} increments acknowledged, the count is ${stored}`);
  step('loaded', { ...written, locked: one + other });
}

/** Writes one key after the other; gives how many writes were acknowledged and how many events came. */
async function watched(client, prefix, end) {
  const seen = new Map();
  let newest = 0;
  const watcher = await client.watch().prefix(prefix).create();
  watcher.on('put', (kv) => {
    const revision = Number(kv.mod_revision);
    if (revision <= newest) fail(new Violation(`an event of revision ${revision} follows ${newest}`));
    newest = revision;
    seen.set(revision, kv.key.toString());
  });
  const acknowledged = new Map();
  for (let i = 0; Date.now() < end; i++) {
    // A try whose fate is unknown may have written: then the key has two events.
    const key = prefix + String(i).padStart(6, '0');
    const put = await again(() => client.put(key).value('v').exec(), 'put');
    acknowledged.set(Number(put.header.revision), key);
  }
  const last = Math.max(...acknowledged.keys());
  const caughtUp = new Promise((resolve) => {
    const look = () => newest >= last && resolve();
    watcher.on('put', look);
    look();
  });
  await bounded(caughtUp, `the watch to come to the last write at ${last}`, 6 * REQUEST);
  await watcher.cancel();
  const missed = [...acknowledged].filter(([revision, key]) => seen.get(revision) !== key);
  ensure(missed.length === 0, `the watch missed ${missed.length} acknowledged writes`);
  return { writes: acknowledged.size, events: seen.size };
}

/**
 * Counts under a lock. What is written is guarded by the count's own revision: a lock alone promises nothing once its
 * lease is gone.
 */
async function locked(client, prefix, end) {
  let added = 0;
  while (Date.now() < end) {
    const lock = client.lock(prefix + 'mutex').ttl(5);
    try {
      await bounded(lock.acquire(), 'lock');
    } catch {
      // Held by the other, or a member is down.
      await delay(10);
      continue;
    }
    try {
      const key = prefix + 'count';
      const now = (await bounded(client.get(key).exec(), 'get')).kvs[0];
      const value = now ? Number(now.value.toString()) : 0;
      const txn = client
        .if(key, 'Mod', '==', now?.mod_revision ?? 0)
        .then(client.put(key).value(String(value + 1)));
      added += (await bounded(txn.commit(), 'txn')).succeeded ? 1 : 0;
    } catch {
      // Its fate is unknown; it is not counted as acknowledged.
    }
    await bounded(lock.release(), 'unlock').catch(() => {});
  }
  return added;
}

async function elections(client, name) {
  const election = client.election(name, 30);
  const candidate = (value) => {
    const campaign = election.campaign(value);
    const elected = new Promise((resolve, reject) => campaign.on('elected', resolve).on('error', reject));
    return { campaign, elected };
  };
  const first = candidate('first');
  await bounded(first.elected, 'the first campaign', MINUTE);
  const second = candidate('second');
  ensure((await again(() => election.leader(), 'leader')) === 'first', 'the second campaigner leads');
  const observer = await bounded(election.observe(), 'observe', MINUTE);
  const became = (value) =>
    new Promise((resolve) => {
      const look = () => observer.leader() === value && resolve();
      observer.on('change', look);
      look();
    });
  await first.campaign.proclaim('still first');
  await bounded(became('still first'), 'the proclaimed value to be observed');
  await first.campaign.resign();
  await bounded(second.elected, 'the second campaign', MINUTE);
  await bounded(became('second'), 'the second leader to be observed');
  // Not waited for: an observer that has just seen a new leader does not notice it, and never ends.
  observer.cancel().catch(() => {});
  await second.campaign.resign();
  step('elections');
}

function fail(error) {
  step('violation', { what: String(error.stack ?? error) });
  process.exit(1);
}

async function main() {
  const [endpoints, ca, cert, key, prefix, seconds] = process.argv.slice(2);
  const client = new Etcd3({
    hosts: endpoints.split(','),
    credentials: { rootCertificate: readFileSync(ca), certChain: readFileSync(cert), privateKey: readFileSync(key) },
    dialTimeout: REQUEST,
  });
  await puts(client, prefix + 'put/');
  await transactions(client, prefix + 'txn/');
  await leases(client, prefix + 'lease/');
  await load(client, prefix, Number(seconds));
  await elections(client, prefix + 'election');
  step('done');
  client.close();
}

main().then(() => process.exit(0), fail);
