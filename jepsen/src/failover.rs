//! Who leads, and how long nobody does after the leader's death.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use proto::etcdserverpb::{PutRequest, StatusRequest, kv_client::KvClient, maintenance_client::MaintenanceClient};
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};
use tonic::transport::Channel;

use crate::{
    history::{Change, Outcome, Write},
    load::Progress,
    process::Node,
};

const LEADER_LIMIT: Duration = Duration::from_secs(30);
const PROBE_INTERVAL: Duration = Duration::from_millis(10);
/// With the interval, bounds how many probes are under way.
const PROBE_LIMIT: Duration = Duration::from_millis(500);

/// The index of the node that all running nodes take for their leader.
pub async fn leader(nodes: &[Node]) -> Result<usize> {
    let begin = Instant::now();
    loop {
        if let Some(leader) = agreed_leader(nodes).await {
            return Ok(leader);
        }
        ensure!(begin.elapsed() < LEADER_LIMIT, "the members agreed on no leader within {LEADER_LIMIT:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn agreed_leader(nodes: &[Node]) -> Option<usize> {
    let mut agreed = None;
    let mut leading = None;
    for (index, node) in nodes.iter().enumerate().filter(|(_, node)| node.is_running()) {
        let mut client = MaintenanceClient::new(node.channel());
        let status = timeout(Duration::from_secs(1), client.status(StatusRequest {})).await.ok()?.ok()?.into_inner();
        if status.leader == 0 || *agreed.get_or_insert(status.leader) != status.leader {
            return None;
        }
        if status.header?.member_id == status.leader {
            leading = Some(index);
        }
    }
    leading
}

/// Writes through the survivors, in short intervals and without waiting for answers, until one write is acknowledged.
/// Gives the time since `killed` and all the writes.
pub async fn time_to_next_write(
    killed: Instant,
    survivors: &[Channel],
    progress: &Arc<Progress>,
    limit: Duration,
) -> Result<(Duration, Vec<Write>)> {
    let mut writes = Vec::new();
    let mut probes = JoinSet::new();
    let mut ticks = interval(PROBE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut survivor = survivors.iter().cycle();
    loop {
        tokio::select! {
            biased;
            Some(probe) = probes.join_next() => {
                let (index, outcome): (usize, Outcome) = probe?;
                let write: &mut Write = &mut writes[index];
                write.outcome = outcome;
                if let Outcome::Done(_) = outcome {
                    // The probes that are still under way stay of unknown outcome.
                    return Ok((killed.elapsed(), writes));
                }
            }
            _ = ticks.tick() => {
                if killed.elapsed() > limit {
                    bail!("no write was acknowledged within {limit:?} of the leader's death");
                }
                let channel = survivor.next().context("no survivor")?.clone();
                let write = probe(progress);
                let index = writes.len();
                probes.spawn(send(channel, write.clone(), index, Arc::clone(progress)));
                writes.push(write);
            }
        }
    }
}

fn probe(progress: &Progress) -> Write {
    let number = progress.next_number();
    let change = Change::Put { keys: vec!["failover".into()], value: format!("{number}:").into() };
    Write { number, change, begun_after: progress.told(), outcome: Outcome::Unknown }
}

async fn send(channel: Channel, write: Write, index: usize, progress: Arc<Progress>) -> (usize, Outcome) {
    let Change::Put { keys, value } = write.change else { unreachable!("a probe puts one key") };
    let put = PutRequest { key: keys[0].clone(), value, ..PutRequest::default() };
    let outcome = match timeout(PROBE_LIMIT, KvClient::new(channel).put(put)).await {
        Ok(Ok(response)) => {
            let revision = response.into_inner().header.unwrap_or_default().revision;
            progress.acknowledge(revision);
            Outcome::Done(revision)
        }
        Ok(Err(_)) | Err(_) => Outcome::Unknown,
    };
    (index, outcome)
}
