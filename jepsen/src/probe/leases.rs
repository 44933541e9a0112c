//! Leases, and the locks that stand on them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use proto::v3lockpb::{LockRequest, UnlockRequest, lock_client::LockClient};
use tokio::time::{sleep, timeout};

use super::{
    Setup,
    client::{Client, REQUEST_LIMIT},
    reads::{asked_while_paused, elsewhere},
};
use crate::failover;

const LONG_TTL: i64 = 600;
const SHORT_TTL: i64 = 4;
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// Beyond its time a lease may last an election, twice its timeout at most, and what it takes to be revoked.
const GONE_WITHIN: Duration = Duration::from_secs(SHORT_TTL as u64 + 8);
/// How long it is watched that a second holder has to wait.
const HELD: Duration = Duration::from_millis(500);

pub async fn paused_renewal(setup: &Setup<'_>) -> Result<()> {
    let mut cluster = setup.cluster(3, &[]).await?;
    for _ in 0..3 {
        let lease = Client::of(&cluster.nodes[0]).grant(LONG_TTL).await?;
        let prepare = async |client: &Client| {
            ensure!(client.keep_alive(lease).await? == LONG_TTL, "a lease that lives was not renewed");
            Ok(())
        };
        let meanwhile = async |client: &Client| match client.revoke(lease).await {
            // An attempt before this one was carried out, though it was not answered.
            Err(status) if status.message().contains("lease not found") => Ok(()),
            revoked => Ok(revoked.map(drop)?),
        };
        let ask = async |client: Client| client.keep_alive(lease).await.ok();
        for ttl in asked_while_paused(&mut cluster, prepare, meanwhile, ask).await? {
            ensure!(ttl == 0, "a replaced leader renewed a lease for {ttl} s that had been revoked");
        }
    }
    Ok(())
}

pub async fn over_election(setup: &Setup<'_>) -> Result<()> {
    let mut cluster = setup.cluster(3, &[]).await?;
    let leader = failover::leader(&cluster.nodes).await?;
    let lease = Client::of(&cluster.nodes[leader]).grant(SHORT_TTL).await?;
    Client::of(&cluster.nodes[leader]).put_on("k", "v", lease).await?;
    // From here on, at the earliest: the answer is from after.
    let granted = Instant::now();
    Client::of(&cluster.nodes[leader]).keep_alive(lease).await?;
    cluster.nodes[leader].kill()?;
    cluster.nodes[leader].exited().await?;
    let ttl = Duration::from_secs(SHORT_TTL as u64);
    loop {
        let asked = granted.elapsed();
        let is_there = elsewhere(&cluster, leader, async |client| Ok(!client.get("k").await?.kvs.is_empty())).await?;
        let answered = granted.elapsed();
        ensure!(is_there || answered >= ttl, "a lease of {ttl:?} was gone {answered:?} after it was renewed");
        if !is_there {
            return Ok(());
        }
        ensure!(asked < GONE_WITHIN, "a lease of {ttl:?} is still there after {asked:?}");
        sleep(POLL_INTERVAL).await;
    }
}

pub async fn keys(setup: &Setup<'_>) -> Result<()> {
    let node = setup.single(&[]).await?;
    let client = Client::of(&node);
    let (first, second) = (client.grant(LONG_TTL).await?, client.grant(LONG_TTL).await?);
    client.put_on("moved", "1", first).await?;
    client.put_on("moved", "2", second).await?;
    client.revoke(first).await?;
    ensure!(!client.get("moved").await?.kvs.is_empty(), "a key went with a lease that it was taken off before");
    for key in ["a", "b", "c"] {
        client.put_on(key, "v", second).await?;
    }
    let before = client.revision().await?;
    let after = client.revoke(second).await?;
    ensure!(after == before + 1, "a lease with four keys was revoked in {} revisions", after - before);
    for key in ["a", "b", "c", "moved"] {
        ensure!(client.get(key).await?.kvs.is_empty(), "{key} is there, and its lease is not");
    }
    Ok(())
}

pub async fn lock(setup: &Setup<'_>) -> Result<()> {
    let node = setup.single(&[]).await?;
    let client = Client::of(&node);
    let (first, second) = (client.grant(LONG_TTL).await?, client.grant(LONG_TTL).await?);
    let lock = |lease| {
        let mut locks = LockClient::new(client.channel());
        async move { locks.lock(LockRequest { name: "l".into(), lease }).await }
    };
    let key = timeout(REQUEST_LIMIT, lock(first)).await.context("a free lock was not given")??.into_inner().key;
    let mut waiting = tokio::spawn(lock(second));
    ensure!(timeout(HELD, &mut waiting).await.is_err(), "a lock that is held was given to another");
    LockClient::new(client.channel()).unlock(UnlockRequest { key }).await?;
    timeout(REQUEST_LIMIT, waiting).await.context("a lock was not given on")???;
    Ok(())
}
