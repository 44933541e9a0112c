//! Reads that could come from the past.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use proto::etcdserverpb::RangeRequest;
use tokio::{task::JoinSet, time::sleep};

use super::{
    Setup,
    client::{Client, range_of},
};
use crate::{
    failover,
    process::{Cluster, Node},
};

/// Each may show it or not: the leader hears of the other one in the same moment.
const PAUSES: usize = 8;
const READS: usize = 50;
const OWN_WRITES: usize = 500;
const ELECTION_LIMIT: Duration = Duration::from_secs(20);
/// What requests to a paused member take into its socket, of which nothing tells.
const ARRIVAL: Duration = Duration::from_millis(100);

/// Sends a signal to a running member.
fn signal(node: &Node, signal: libc::c_int) -> Result<()> {
    let pid = node.pid()?;
    // SAFETY: plain system call. The node has not been waited for, so the id cannot belong to another process.
    match unsafe { libc::kill(pid as libc::pid_t, signal) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()).with_context(|| format!("cannot signal {}", node.name())),
    }
}

/// Stops a member as SIGSTOP does.
pub fn pause(node: &Node) -> Result<()> {
    signal(node, libc::SIGSTOP)
}

pub fn resume(node: &Node) -> Result<()> {
    signal(node, libc::SIGCONT)
}

/// Does something at the members but one, in turn, until one of them lets it.
pub async fn elsewhere<T>(
    cluster: &Cluster,
    but: usize,
    mut attempt: impl AsyncFnMut(&Client) -> Result<T>,
) -> Result<T> {
    let others: Vec<Client> =
        cluster.nodes.iter().enumerate().filter(|(index, _)| *index != but).map(|(_, node)| Client::of(node)).collect();
    let began = Instant::now();
    for client in others.iter().cycle() {
        match attempt(client).await {
            Ok(done) => return Ok(done),
            Err(error) if began.elapsed() > ELECTION_LIMIT => return Err(error.context("no other leader")),
            Err(_) => sleep(ARRIVAL).await,
        }
    }
    bail!("there is no other member")
}

/// Asks a paused leader something, many times, after another has taken over; gives the answers that come when it goes
/// on. `prepare` is run at the old leader before, `meanwhile` at the new one.
pub async fn asked_while_paused<T>(
    cluster: &mut Cluster,
    prepare: impl AsyncFnOnce(&Client) -> Result<()>,
    meanwhile: impl AsyncFnMut(&Client) -> Result<()>,
    ask: impl AsyncFn(Client) -> Option<T>,
) -> Result<Vec<T>> {
    let leader = failover::leader(&cluster.nodes).await?;
    let client = Client::of(&cluster.nodes[leader]);
    prepare(&client).await?;
    pause(&cluster.nodes[leader])?;
    let taken_over = elsewhere(cluster, leader, meanwhile).await;
    let asked = futures::future::join_all((0..READS).map(|_| ask(client.clone())));
    let going_on = async {
        sleep(ARRIVAL).await;
        resume(&cluster.nodes[leader])
    };
    let (answers, resumed) = tokio::join!(asked, going_on);
    resumed?;
    taken_over?;
    Ok(answers.into_iter().flatten().collect())
}

pub async fn paused_leader(setup: &Setup<'_>) -> Result<()> {
    let mut cluster = setup.cluster(3, &[]).await?;
    for pause in 0..PAUSES {
        let (before, after) = (format!("before {pause}"), format!("after {pause}"));
        let prepare = async |client: &Client| {
            client.put("k", before.clone()).await?;
            client.get("k").await?;
            Ok(())
        };
        let meanwhile = async |client: &Client| {
            client.put("k", after.clone()).await?;
            Ok(())
        };
        let ask = async |client: Client| client.get("k").await.ok();
        let answers = asked_while_paused(&mut cluster, prepare, meanwhile, ask).await?;
        for answer in answers {
            let value = answer.kvs.first().map(|kv| kv.value.clone()).unwrap_or_default();
            ensure!(
                value == after,
                "a stale read: a replaced leader answered {value:?}, after {after:?} was acknowledged"
            );
        }
    }
    Ok(())
}

pub async fn own_writes(setup: &Setup<'_>) -> Result<()> {
    let cluster = setup.cluster(3, &[]).await?;
    let leader = failover::leader(&cluster.nodes).await?;
    let follower = Client::of(&cluster.nodes[(leader + 1) % 3]);
    let mut writers = JoinSet::new();
    for writer in 0..4 {
        let follower = follower.clone();
        writers.spawn(async move {
            let key = format!("k{writer}");
            for _ in 0..OWN_WRITES {
                let revision = follower.put(&key, "v").await?;
                let range = RangeRequest { serializable: true, ..range_of(&key) };
                let seen = follower.range(range).await?.kvs.first().map_or(0, |kv| kv.mod_revision);
                ensure!(seen >= revision, "a put was answered at {revision}, and its member then showed {seen}");
            }
            Ok(())
        });
    }
    while let Some(done) = writers.join_next().await {
        done??;
    }
    Ok(())
}
