//! Members that come, lag, or have lost what they knew.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use proto::etcdserverpb::{
    LeaseLeasesRequest, MemberAddRequest, RangeRequest, cluster_client::ClusterClient, lease_client::LeaseClient,
};
use rand::RngCore as _;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use super::{
    Setup,
    client::{Client, range_of, revision_of, watch_all},
    reads::{pause, resume},
};
use crate::{failover, process::Node};

/// What the store flushes after, so that the log is purged, and more.
const LAG_PUTS: usize = 3000;
const LAG_BYTES: usize = 64 << 10;
const WRITERS: usize = 16;
const KILLS: usize = 4;
const ONCE_PUTS: usize = 2000;
const ONCE_WRITERS: usize = 64;
const CATCH_UP_LIMIT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

pub async fn snapshot(setup: &Setup<'_>) -> Result<()> {
    let mut cluster = setup.cluster(3, &["--snapshot-count=100", "--snapshot-catchup-entries=10"]).await?;
    let leader = failover::leader(&cluster.nodes).await?;
    let behind = (leader + 1) % 3;
    let (ahead, lagging) = (Client::of(&cluster.nodes[leader]), Client::of(&cluster.nodes[behind]));
    let mut watch = lagging.watch(watch_all(0)).await?;
    let mut seen = 0;
    for _ in 0..5 {
        ahead.put("k", "1").await?;
        seen = watch.events().await?.last().map_or(seen, revision_of);
    }
    let kept = oldest_segment(&cluster.nodes[leader])?;
    pause(&cluster.nodes[behind])?;
    let filled = async {
        let lease = fill(&ahead).await?;
        until_gone(&kept).await?;
        anyhow::Ok(lease)
    };
    let filled = filled.await;
    resume(&cluster.nodes[behind])?;
    let lease = filled?;

    let last = ahead.put("last", "1").await?;
    let began = Instant::now();
    let range = RangeRequest { serializable: true, ..range_of("last") };
    while lagging.range(range.clone()).await?.kvs.is_empty() {
        ensure!(began.elapsed() < CATCH_UP_LIMIT, "a member did not catch up within {CATCH_UP_LIMIT:?}");
        sleep(POLL_INTERVAL).await;
    }
    let generation = fs::read_to_string(cluster.nodes[behind].data_dir().join("member/store/generation"))?;
    ensure!(generation.trim() != "1", "the member caught up without a snapshot: this shows nothing");

    let mut client = LeaseClient::new(lagging.channel());
    let leases = client.lease_leases(LeaseLeasesRequest {}).await?.into_inner().leases;
    ensure!(leases.iter().any(|found| found.id == lease), "after a snapshot lease {lease} is not among {leases:?}");
    while seen < last {
        for event in watch.events().await? {
            let revision = revision_of(&event);
            ensure!(revision == seen + 1, "a watch at revision {seen} was told of {revision} after a snapshot");
            seen = revision;
        }
    }
    cluster.nodes.clear();
    Ok(())
}

/// Makes the log so long that it is purged, after granting a lease.
async fn fill(client: &Client) -> Result<i64> {
    let lease = client.grant(600).await?;
    let puts = stream::iter(0..LAG_PUTS).map(|_| {
        let mut value = vec![0; LAG_BYTES];
        rand::rng().fill_bytes(&mut value);
        client.put("large", Bytes::from(value))
    });
    puts.buffer_unordered(WRITERS).try_for_each(|_| async { Ok(()) }).await?;
    Ok(lease)
}

fn oldest_segment(node: &Node) -> Result<PathBuf> {
    let files = fs::read_dir(node.data_dir().join("member/wal"))?.map(|entry| anyhow::Ok(entry?.path()));
    let files: Vec<PathBuf> = files.collect::<Result<_>>()?;
    let segments = files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "log"));
    segments.min().context("there is no log")
}

/// The leader lets go of what is on its way to a member when the connection to that member ends, and nobody tells.
async fn until_gone(segment: &Path) -> Result<()> {
    let began = Instant::now();
    while segment.exists() {
        ensure!(began.elapsed() < CATCH_UP_LIMIT, "{} was kept for {CATCH_UP_LIMIT:?}", segment.display());
        sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

pub async fn wiped(setup: &Setup<'_>) -> Result<()> {
    let mut cluster = setup.cluster(3, &[]).await?;
    let leader = failover::leader(&cluster.nodes).await?;
    Client::of(&cluster.nodes[leader]).put("k", "1").await?;
    // The leader knows what a member has answered for, and ends one that has lost it: here it is gone, too.
    for lost in [leader, (leader + 1) % 3] {
        cluster.nodes[lost].kill()?;
        cluster.nodes[lost].exited().await?;
    }
    let node = &mut cluster.nodes[(leader + 1) % 3];
    fs::remove_dir_all(node.data_dir())?;
    node.spawn()?;
    let status = node.ready_or_exit().await?.context("a member that lost its data was let in as itself")?;
    ensure!(!status.success(), "a member that lost its data ended without an error");
    Ok(())
}

pub async fn added(setup: &Setup<'_>) -> Result<()> {
    let mut cluster = setup.cluster(1, &[]).await?;
    let newcomer = cluster.new_node()?;
    let client = Client::of(&cluster.nodes[0]);
    let add = MemberAddRequest { peer_ur_ls: vec![newcomer.peer_url()], is_learner: false };
    let mut members = ClusterClient::new(client.channel());
    let answer = timeout(Duration::from_secs(5), members.member_add(add)).await;
    answer.context("a member cannot be added: the cluster waits for it to vote, and it has not started")??;
    client.put("k", "1").await.context("a put while the member that was added has not started")?;
    Ok(())
}

/// Each put is of a key of its own, so a key's version says how often it was done.
pub async fn done_once(setup: &Setup<'_>) -> Result<()> {
    let mut cluster = setup.cluster(3, &[]).await?;
    for round in 0..KILLS {
        let leader = failover::leader(&cluster.nodes).await?;
        let follower = Client::of(&cluster.nodes[(leader + 1) % 3]);
        let (started, mut starts) = watch::channel(0);
        let puts = stream::iter(0..ONCE_PUTS).map(|number| {
            started.send_replace(number);
            let (follower, key) = (follower.clone(), format!("once/{round}/{number}"));
            // Whether it is answered does not matter.
            async move { drop(follower.put(&key, "v").await) }
        });
        let putting = puts.buffer_unordered(ONCE_WRITERS).collect::<()>();
        let killing = async {
            starts.wait_for(|number| *number >= ONCE_PUTS / 4).await?;
            cluster.nodes[leader].kill()?;
            cluster.nodes[leader].exited().await?;
            Ok::<_, anyhow::Error>(())
        };
        let ((), killed) = tokio::join!(putting, killing);
        killed?;
        cluster.start_stopped().await?;
        let range = RangeRequest { range_end: "once0".into(), ..range_of("once/") };
        let kvs = follower.range(range).await?.kvs;
        for kv in &kvs {
            ensure!(kv.version == 1, "the one put of {:?} was done {} times", kv.key, kv.version);
        }
    }
    Ok(())
}
