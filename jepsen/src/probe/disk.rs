//! Crashes at moments when the store writes its files, and a disk that fails.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use proto::etcdserverpb::{
    Compare, DefragmentRequest, TxnRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    maintenance_client::MaintenanceClient,
};
use rand::RngCore as _;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
    time::{sleep, timeout},
};

use super::{
    Setup,
    client::{Client, put_op},
};
use crate::process::Node;

/// So much that a column family's memory is full twice over, and the log has been purged.
const LARGE_PUTS: usize = 2500;
const LARGE_BYTES: usize = 64 << 10;
const SMALL_PUTS: usize = 2000;
const WRITERS: usize = 16;
const DEFRAGMENTATIONS: u32 = 8;
const EXIT_LIMIT: Duration = Duration::from_secs(20);

async fn put_many(client: &Client, count: usize, bytes: usize) -> Result<()> {
    let puts = stream::iter(0..count).map(|number| {
        let mut value = vec![0; bytes];
        rand::rng().fill_bytes(&mut value);
        let key = format!("k{}", number % 100);
        async move { client.put(&key, Bytes::from(value)).await }
    });
    Ok(puts.buffer_unordered(WRITERS).try_for_each(|_| async { Ok(()) }).await?)
}

/// Kills a member that holds what it does, starts it again, and compares.
async fn kill_and_compare(node: &mut Node, revision: i64, hash: u32) -> Result<()> {
    node.kill()?;
    node.exited().await?;
    node.start().await.with_context(|| format!("the start after a kill\n{}", node.log_tail()))?;
    let client = Client::of(node);
    let found = client.revision().await.context("the revision after a kill")?;
    ensure!(found == revision, "the store was at revision {revision}, and is at {found} after a kill");
    let found = client.hash(revision).await.context("the hash after a kill")?;
    ensure!(found == hash, "the hash at revision {revision} was {hash}, and is {found} after a kill");
    Ok(())
}

pub async fn large_crash(setup: &Setup<'_>) -> Result<()> {
    let mut node = setup.single(&["--snapshot-count=500", "--snapshot-catchup-entries=10"]).await?;
    let client = Client::of(&node);
    put_many(&client, LARGE_PUTS, LARGE_BYTES).await?;
    let revision = client.revision().await?;
    let hash = client.hash(revision).await?;
    kill_and_compare(&mut node, revision, hash).await?;
    // And once more after a clean stop, behind which only little is left to be applied again.
    put_many(&Client::of(&node), SMALL_PUTS, 100).await?;
    let client = Client::of(&node);
    let revision = client.revision().await?;
    let hash = client.hash(revision).await?;
    ensure!(node.terminate(EXIT_LIMIT).await?.success(), "a clean stop gave an error");
    node.start().await?;
    kill_and_compare(&mut node, revision, hash).await
}

/// What makes the log long and leaves the store as it is: the log is purged when the store has been flushed, and not
/// because it had to write its files.
pub async fn purged_log(setup: &Setup<'_>) -> Result<()> {
    let mut node = setup.single(&["--snapshot-count=500", "--snapshot-catchup-entries=10"]).await?;
    let client = Client::of(&node);
    put_many(&client, SMALL_PUTS, 100).await?;
    let refused = stream::iter(0..LARGE_PUTS).map(|_| client.txn(refused_txn(LARGE_BYTES)));
    refused.buffer_unordered(WRITERS).try_for_each(|_| async { Ok(()) }).await?;
    let revision = client.revision().await?;
    let hash = client.hash(revision).await?;
    kill_and_compare(&mut node, revision, hash).await
}

/// A write that is not done, since a key that is not there has no such value.
fn refused_txn(bytes: usize) -> TxnRequest {
    let mut value = vec![0; bytes];
    rand::rng().fill_bytes(&mut value);
    let compare = Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Value.into(),
        key: "absent".into(),
        target_union: Some(TargetUnion::Value(value.into())),
        ..Compare::default()
    };
    TxnRequest { compare: vec![compare], success: vec![put_op("absent", "1".into())], failure: vec![] }
}

pub async fn defragment_crash(setup: &Setup<'_>) -> Result<()> {
    let mut node = setup.single(&[]).await?;
    for round in 0..DEFRAGMENTATIONS {
        let client = Client::of(&node);
        put_many(&client, SMALL_PUTS, 1000).await?;
        let revision = client.revision().await?;
        let hash = client.hash(revision).await?;
        let mut maintenance = MaintenanceClient::new(client.channel());
        let going_on = tokio::spawn(async move { maintenance.defragment(DefragmentRequest {}).await.map(drop) });
        // Over the time that it takes: where it is, it does not tell.
        sleep(Duration::from_millis(u64::from(round) * 75)).await;
        kill_and_compare(&mut node, revision, hash).await.with_context(|| format!("defragmentation {}", round + 1))?;
        // Whether it was done before the kill does not matter.
        drop(going_on.await);
    }
    Ok(())
}

/// An fsync that fails once has lost what was to be written, whatever the next one says (PostgreSQL's fsyncgate).
pub async fn failed_sync(setup: &Setup<'_>) -> Result<()> {
    let mut node = setup.single(&[]).await?;
    let client = Client::of(&node);
    client.put("k", "1").await?;
    let mut strace = Command::new("strace")
        .args(["-f", "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=1", "-p"])
        .arg(node.pid()?.to_string())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("this needs strace")?;
    let mut lines = BufReader::new(strace.stderr.take().context("strace's output is piped")?).lines();
    let attached = timeout(EXIT_LIMIT, lines.next_line()).await.context("strace does not attach")??;
    ensure!(attached.as_ref().is_some_and(|line| line.contains("attached")), "strace says {attached:?}");
    let output = tokio::spawn(async move {
        let mut seen = Vec::new();
        while let Ok(Some(line)) = lines.next_line().await {
            seen.push(line);
        }
        seen
    });

    let answer = client.put("k", "2").await;
    let began = Instant::now();
    let status = loop {
        if node.has_exited()? {
            break Some(node.exited().await?);
        }
        if began.elapsed() > EXIT_LIMIT {
            break None;
        }
        sleep(Duration::from_millis(50)).await;
    };
    drop(strace.start_kill());
    strace.wait().await?;
    let injected = output.await?.iter().filter(|line| line.contains("INJECTED")).count();
    ensure!(injected > 0, "no fsync failed: this shows nothing");
    let Some(status) = status else { bail!("a member goes on after an fsync failed; the put was answered {answer:?}") };
    ensure!(!status.success(), "a member whose fsync failed ended without an error");
    ensure!(answer.is_err(), "a put was acknowledged whose fsync had failed");
    Ok(())
}
