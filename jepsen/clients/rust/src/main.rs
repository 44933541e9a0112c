//! A scenario of the Rust client `etcd-client`, run while the cluster's leader is killed. Its locks and elections are
//! the server's.
//!
//! Usage: `scenario ENDPOINTS CA CERT KEY PREFIX SECONDS`. Each step prints one JSON line. "load" says that the long
//! part has begun. A violation ends the program with exit code 1 and says what it was.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use etcd_client::{
    Certificate, Client, Compare, CompareOp, ConnectOptions, DeleteOptions, EventType, GetOptions, Identity, LeaderKey,
    LockOptions, ProclaimOptions, PutOptions, ResignOptions, SortOrder, SortTarget, TlsOptions, Txn, TxnOp,
    WatchOptions,
};
use serde_json::json;
use tokio::time::timeout;

/// Bounds one try; between two tries the cluster may elect a leader.
const REQUEST: Duration = Duration::from_secs(5);

#[tokio::main]
async fn main() {
    if let Err(error) = run().await {
        println!("{}", json!({ "step": "violation", "what": format!("{error:#}") }));
        std::process::exit(1);
    }
}

async fn run() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [endpoints, ca, cert, key, prefix, seconds] = arguments.as_slice() else {
        bail!("usage: ENDPOINTS CA CERT KEY PREFIX SECONDS");
    };
    let identity = Identity::from_pem(std::fs::read(cert)?, std::fs::read(key)?);
    let tls = TlsOptions::new().ca_certificate(Certificate::from_pem(std::fs::read(ca)?)).identity(identity);
    let options = ConnectOptions::new().with_tls(tls).with_connect_timeout(REQUEST).with_timeout(REQUEST);
    let endpoints: Vec<&str> = endpoints.split(',').collect();
    let client = Client::connect(endpoints, Some(options)).await.context("connect")?;
    let length = Duration::from_secs(seconds.parse().context("SECONDS")?);

    puts(client.clone(), &format!("{prefix}put/")).await.context("puts")?;
    transactions(client.clone(), &format!("{prefix}txn/")).await.context("txns")?;
    leases(client.clone(), &format!("{prefix}lease/")).await.context("leases")?;
    load(client.clone(), prefix, length).await.context("load")?;
    elections(client, &format!("{prefix}election")).await.context("elections")?;
    println!("{}", json!({ "step": "done" }));
    Ok(())
}

/// Repeats what may be repeated: this client gives each connection its turn, also those to a member that is down.
async fn again<T>(mut request: impl AsyncFnMut() -> Result<T, etcd_client::Error>) -> Result<T> {
    let end = Instant::now() + 12 * REQUEST;
    loop {
        match timeout(REQUEST, request()).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => ensure!(Instant::now() < end, "{error}"),
            Err(_) => ensure!(Instant::now() < end, "no answer for a minute"),
        }
    }
}

fn step(name: &str) {
    println!("{}", json!({ "step": name }));
}

async fn puts(mut client: Client, prefix: &str) -> Result<()> {
    let mut last = 0;
    for i in 0..100 {
        let put = client.put(format!("{prefix}{i:03}"), i.to_string(), None).await?;
        let revision = put.header().context("a header")?.revision();
        ensure!(revision > last, "revision {revision} follows {last}");
        last = revision;
    }
    let sorted = GetOptions::new().with_prefix().with_sort(SortTarget::Key, SortOrder::Descend);
    let got = client.get(prefix, Some(sorted)).await?;
    ensure!(got.count() == 100 && got.kvs()[0].value() == b"99", "100 puts gave {} keys", got.count());
    let deleted = client.delete(prefix, Some(DeleteOptions::new().with_prefix().with_prev_key())).await?;
    ensure!(deleted.deleted() == 100 && deleted.prev_kvs().len() == 100, "deleted {} of 100", deleted.deleted());
    step("puts");
    Ok(())
}

async fn transactions(mut client: Client, prefix: &str) -> Result<()> {
    let (a, b) = (format!("{prefix}a"), format!("{prefix}b"));
    let create = Txn::new()
        .when([Compare::create_revision(a.clone(), CompareOp::Equal, 0)])
        .and_then([TxnOp::put(a.clone(), "1", None), TxnOp::put(b.clone(), "1", None)])
        .or_else([TxnOp::get(a.clone(), None), TxnOp::txn(Txn::new().and_then([TxnOp::put(b.clone(), "2", None)]))]);
    ensure!(client.txn(create.clone()).await?.succeeded(), "a key that is not there was not created");
    ensure!(!client.txn(create).await?.succeeded(), "a key was created twice");
    ensure!(client.get(b, None).await?.kvs()[0].value() == b"2", "the nested transaction had no effect");
    step("txns");
    Ok(())
}

async fn leases(mut client: Client, prefix: &str) -> Result<()> {
    let key = format!("{prefix}short");
    let lease = client.lease_grant(2, None).await?.id();
    let put = client.put(key.clone(), "gone soon", Some(PutOptions::new().with_lease(lease))).await?;
    let granted = Instant::now();
    let from = put.header().context("a header")?.revision() + 1;
    let mut watch = client.watch(key, Some(WatchOptions::new().with_start_revision(from))).await?;
    let ended = loop {
        let response = timeout(4 * REQUEST, watch.message()).await.context("an expired lease")??;
        let response = response.context("the watch ended")?;
        if let Some(event) = response.events().first() {
            break event.event_type();
        }
    };
    ensure!(ended == EventType::Delete, "an expired lease gave {ended:?}");
    ensure!(granted.elapsed() > Duration::from_millis(1900), "a lease of 2 s lived for {:?}", granted.elapsed());
    step("leases");
    Ok(())
}

/// Writes, watches, locks and keeps a lease alive, all at once, while the leader dies.
async fn load(mut client: Client, prefix: &str, length: Duration) -> Result<()> {
    let (key, ttl) = (format!("{prefix}kept"), 15);
    let lease = client.lease_grant(ttl, None).await?.id();
    client.put(key.clone(), "alive", Some(PutOptions::new().with_lease(lease))).await?;
    let keeper = tokio::spawn(keep_alive(client.clone(), lease));
    step("load");
    let end = Instant::now() + length;
    let (written, counted) = tokio::try_join!(
        async { watched(client.clone(), &format!("{prefix}watched/"), end).await.context("watch") },
        async { locked(client.clone(), &format!("{prefix}locked/"), end).await.context("lock") },
    )?;
    let kept = again(async || client.clone().get(key.clone(), None).await).await?;
    ensure!(kept.count() == 1, "a lease that was kept alive is gone");
    keeper.abort();
    again(async || client.clone().lease_revoke(lease).await).await?;
    println!("{}", json!({ "step": "loaded", "writes": written.0, "events": written.1, "locked": counted }));
    Ok(())
}

/// The client's stream ends with its connection; a new one goes on where it stopped.
async fn keep_alive(mut client: Client, lease: i64) -> Result<()> {
    loop {
        let Ok(Ok((mut keeper, mut answers))) = timeout(REQUEST, client.lease_keep_alive(lease)).await else {
            continue;
        };
        while keeper.keep_alive().await.is_ok() {
            let Ok(Ok(Some(_))) = timeout(REQUEST, answers.message()).await else { break };
            // A delay: the time between two renewals.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

/// Writes one key after the other, and gives how many writes were acknowledged and how many events came.
async fn watched(mut client: Client, prefix: &str, end: Instant) -> Result<(usize, usize)> {
    let from = client.get(prefix, None).await?.header().context("a header")?.revision() + 1;
    let (written, mut last) = tokio::sync::watch::channel(i64::MAX);
    let (watcher, prefix_of_watch) = (client.clone(), prefix.to_string());
    let events = tokio::spawn(async move { events(watcher, &prefix_of_watch, from, &mut last).await });
    let mut acknowledged = BTreeMap::new();
    for i in 0.. {
        if Instant::now() > end {
            break;
        }
        let key = format!("{prefix}{i:06}");
        // A try whose fate is unknown may have written: then the key has two events.
        let revision = loop {
            match timeout(REQUEST, client.put(key.clone(), "v", None)).await {
                Ok(Ok(put)) => break put.header().context("a header")?.revision(),
                Ok(Err(_)) | Err(_) => ensure!(Instant::now() < end + 12 * REQUEST, "no write succeeds any more"),
            }
        };
        acknowledged.insert(revision, key);
    }
    let (newest, _) = acknowledged.last_key_value().context("nothing was written")?;
    written.send_replace(*newest);
    let events = timeout(6 * REQUEST, events).await.context("the watch has not come to the last write")???;
    for (revision, key) in &acknowledged {
        ensure!(events.get(revision) == Some(key), "the watch missed the write of {key} at {revision}");
    }
    Ok((acknowledged.len(), events.len()))
}

/// All events from a revision on to the one that `last` comes to hold. A stream that breaks is taken up behind the last
/// event.
async fn events(
    mut client: Client,
    prefix: &str,
    from: i64,
    last: &mut tokio::sync::watch::Receiver<i64>,
) -> Result<BTreeMap<i64, String>> {
    let mut seen: BTreeMap<i64, String> = BTreeMap::new();
    loop {
        let next = seen.last_key_value().map_or(from, |(revision, _)| revision + 1);
        let options = WatchOptions::new().with_prefix().with_start_revision(next);
        let Ok(Ok(mut watch)) = timeout(REQUEST, client.watch(prefix, Some(options))).await else { continue };
        loop {
            let response = tokio::select! {
                response = watch.message() => response,
                _ = last.changed() => Ok(None),
            };
            let newest = seen.last_key_value().map_or(0, |(revision, _)| *revision);
            let Ok(Some(response)) = response else {
                if newest >= *last.borrow() {
                    return Ok(seen);
                }
                break;
            };
            ensure!(!response.canceled(), "the watch was cancelled: {}", response.cancel_reason());
            for event in response.events() {
                let kv = event.kv().context("an event without a key")?;
                let newest = seen.last_key_value().map_or(0, |(revision, _)| *revision);
                ensure!(kv.mod_revision() > newest, "an event of revision {} follows {newest}", kv.mod_revision());
                seen.insert(kv.mod_revision(), kv.key_str()?.to_string());
            }
            if seen.last_key_value().is_some_and(|(revision, _)| revision >= &*last.borrow()) {
                return Ok(seen);
            }
        }
    }
}

/// Two holders count under one lock. What is written is guarded by the lock's own key: a lock alone promises nothing
/// once its lease is gone.
async fn locked(client: Client, prefix: &str, end: Instant) -> Result<usize> {
    let holder = || {
        let (client, prefix) = (client.clone(), prefix.to_string());
        async move {
            let mut added = 0;
            while Instant::now() < end {
                let counted = timeout(3 * REQUEST, count(client.clone(), &prefix)).await;
                added += usize::from(matches!(counted, Ok(Ok(true))));
            }
            added
        }
    };
    let (one, other) = tokio::join!(tokio::spawn(holder()), tokio::spawn(holder()));
    let added = one? + other?;
    let got = again(async || client.clone().get(format!("{prefix}count"), None).await).await?;
    let stored: usize = got.kvs().first().context("nothing was counted under the lock")?.value_str()?.parse()?;
    // An increment whose answer was lost may have happened.
    ensure!(stored >= added, "{added} increments were acknowledged, and the count is {stored}");
    Ok(added)
}

/// Adds one under the lock, and says whether that was acknowledged.
async fn count(mut client: Client, prefix: &str) -> Result<bool> {
    let lease = client.lease_grant(5, None).await?.id();
    let lock = client.lock(format!("{prefix}mutex"), Some(LockOptions::new().with_lease(lease))).await?;
    let key = format!("{prefix}count");
    let got = client.get(key.clone(), None).await?;
    let value: usize = match got.kvs().first() {
        Some(kv) => kv.value_str()?.parse()?,
        None => 0,
    };
    let is_held = Compare::create_revision(lock.key(), CompareOp::Greater, 0);
    let add = Txn::new().when([is_held]).and_then([TxnOp::put(key, (value + 1).to_string(), None)]);
    let added = client.txn(add).await?.succeeded();
    client.unlock(lock.key()).await?;
    client.lease_revoke(lease).await?;
    Ok(added)
}

async fn elections(client: Client, name: &str) -> Result<()> {
    let lease = async || again(async || client.clone().lease_grant(30, None).await).await.map(|lease| lease.id());
    let (first, second) = (lease().await?, lease().await?);
    // Asked again, a candidate that leads already leads still.
    let campaign = async |value: &str, lease| -> Result<LeaderKey> {
        let mut won = again(async || client.clone().campaign(name, value, lease).await).await?;
        won.take_leader().context("a leader key")
    };
    let leader = campaign("first", first).await?;
    let mut now = again(async || client.clone().leader(name).await).await?;
    let now = now.take_kv().context("a leader")?;
    ensure!(now.value() == b"first", "{} leads", now.value_str()?);
    let option = || Some(ProclaimOptions::new().with_leader(leader.clone()));
    again(async || client.clone().proclaim("still first", option()).await).await?;
    let mut observed = again(async || client.clone().observe(name).await).await?;
    let mut next = async || -> Result<Vec<u8>> {
        let response = timeout(REQUEST, observed.message()).await.context("observe")??;
        Ok(response.and_then(|r| r.kv().map(|kv| kv.value().to_vec())).unwrap_or_default())
    };
    let seen = next().await?;
    ensure!(seen == b"still first", "observed {}", String::from_utf8_lossy(&seen));
    let resign = async |leader: LeaderKey| {
        let option = || Some(ResignOptions::new().with_leader(leader.clone()));
        again(async || client.clone().resign(option()).await).await
    };
    let waiting = async {
        let leader = campaign("second", second).await?;
        let seen = next().await?;
        ensure!(seen == b"second", "observed {} after the first resigned", String::from_utf8_lossy(&seen));
        Ok(leader)
    };
    let (_, leader) = tokio::try_join!(resign(leader), waiting)?;
    resign(leader).await?;
    step("elections");
    Ok(())
}
