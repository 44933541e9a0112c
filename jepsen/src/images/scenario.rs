//! The runs that are recorded.

use std::{path::Path, sync::Arc};

use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use parking_lot::Mutex;
use prost::Message as _;
use proto::{
    command::{Command, Outcome, command::Op, outcome::Result as Answer},
    etcdserverpb::{
        CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RequestOp, TxnRequest,
        request_op::Request,
    },
};
use raft::Node;
use storage::Payload;

use super::{
    member::Cluster,
    trace::{self, Mark, Trace, mark},
};

/// Clients that write at once, so that batches hold several entries.
const CLIENTS: usize = 6;
const HOT_KEYS: u64 = 5;
const KEY_PREFIX: &[u8] = b"w/";
/// The number of the first write after a first crash.
const FIRST_AGAIN: u64 = 1_000_000;
/// Revisions that a compaction leaves.
const REVISIONS_KEPT: i64 = 20;
/// Writes until a segment is used again: the log lets go of one when the store has been flushed, which takes its time.
const FURTHER: u64 = 20;
const FURTHER_MAX: u64 = 4000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Scenario {
    /// One member: segments fill and are let go, the store is flushed and compacted, the member is started again.
    Single,
    /// Three members: a leader is cut off with entries that nobody else has, and one falls so far behind that it gets
    /// a snapshot.
    Three,
    /// One member that comes back with an image of a crash, and crashes again: while it recovers, or soon after.
    Twice,
}

/// The number of a write, from the command that makes it.
pub fn write_of(payload: &Payload) -> Option<u64> {
    let Payload::Command(command) = payload else { return None };
    let put = match Command::decode(command.clone()).ok()?.op? {
        Op::Put(put) => put,
        Op::Txn(txn) => match txn.success.into_iter().next()?.request? {
            Request::RequestPut(put) => put,
            _ => return None,
        },
        _ => return None,
    };
    std::str::from_utf8(put.key.strip_prefix(KEY_PREFIX)?).ok()?.parse().ok()
}

/// Numbers writes, and remembers the newest revision for compactions.
#[derive(Default)]
struct Writes {
    next: Mutex<u64>,
    revision: Mutex<i64>,
}

impl Writes {
    /// `count` writes through any of `nodes`; gives how many were acknowledged.
    async fn make(&self, nodes: &[&Node], count: u64) -> u64 {
        let numbers = {
            let mut next = self.next.lock();
            let numbers = *next..*next + count;
            *next = numbers.end;
            numbers
        };
        let writes = stream::iter(numbers).map(|number| self.write(nodes[number as usize % nodes.len()], number));
        writes.buffer_unordered(CLIENTS).filter(|done| futures::future::ready(*done)).count().await as u64
    }

    async fn write(&self, node: &Node, number: u64) -> bool {
        if number % 40 == 39 {
            let revision = *self.revision.lock() - REVISIONS_KEPT;
            let compaction = CompactionRequest { revision, physical: false };
            if revision > 0 && node.propose(encode(Op::Compact(compaction))).await.is_err() {
                return false;
            }
        }
        mark(Mark::Issued(number));
        let Ok(outcome) = node.propose(command(number)).await else { return false };
        let revision = revision_of(&outcome);
        let Some(revision) = revision else { return false };
        mark(Mark::Acknowledged { write: number, revision });
        let mut newest = self.revision.lock();
        *newest = revision.max(*newest);
        true
    }
}

fn revision_of(outcome: &Outcome) -> Option<i64> {
    let header = match outcome.result.as_ref()? {
        Answer::Put(put) => put.header.as_ref(),
        Answer::Txn(txn) => txn.header.as_ref(),
        _ => None,
    };
    header.map(|header| header.revision)
}

fn encode(op: Op) -> Bytes {
    Command { op: Some(op), auth: None }.encode_to_vec().into()
}

/// Small and large puts, transactions with several changes, deletes, leases.
fn command(number: u64) -> Bytes {
    let len = match number % 7 {
        5 => 1500 + 1000 * (number % 8) as usize,
        _ => 40 + (number % 300) as usize,
    };
    let value = Bytes::from([&number.to_be_bytes()[..], &vec![number as u8 | 1; len]].concat());
    let key = [KEY_PREFIX, number.to_string().as_bytes()].concat();
    let put = PutRequest { key: key.into(), value: value.clone(), ..Default::default() };
    if number % 7 != 3 {
        return encode(Op::Put(put));
    }
    let hot = |n: u64| Bytes::from(format!("hot/{}", n % HOT_KEYS));
    let update = PutRequest { key: hot(number), value, ..Default::default() };
    let delete = DeleteRangeRequest { key: hot(number + 1), ..Default::default() };
    let requests = [Request::RequestPut(put), Request::RequestPut(update), Request::RequestDeleteRange(delete)];
    let success = requests.map(|request| RequestOp { request: Some(request) }).to_vec();
    encode(Op::Txn(TxnRequest { success, ..Default::default() }))
}

/// Runs a scenario below `root`, which is on the file system, and gives what was done there. Of [`Scenario::Twice`] it
/// is what comes before the first crash.
pub async fn record(scenario: Scenario, root: &Path, writes: u64) -> Result<Trace> {
    let size = if scenario == Scenario::Three { 3 } else { 1 };
    let mut cluster = Cluster::new(root, size)?;
    trace::start(root)?;
    let result = match scenario {
        Scenario::Single | Scenario::Twice => single(&mut cluster, writes, scenario == Scenario::Single).await,
        Scenario::Three => three(&mut cluster, writes).await,
    };
    end(cluster, result).await
}

/// Goes on from an image that stands in the member's directory below `root`. `before` is what clients had asked for and
/// been told when the first crash came.
pub async fn record_again(root: &Path, before: &[Mark], writes: u64) -> Result<Trace> {
    let mut cluster = Cluster::new(root, 1)?;
    trace::start(root)?;
    before.iter().cloned().for_each(mark);
    let result = again(&mut cluster, writes).await;
    end(cluster, result).await
}

/// What clients had asked for and been told at a point of a run.
pub fn told_before(trace: &Trace, at: usize) -> Vec<Mark> {
    let marks = trace.ops[..at].iter().filter_map(|op| match op {
        trace::Op::Mark(mark @ (Mark::Issued(_) | Mark::Acknowledged { .. })) => Some(mark.clone()),
        _ => None,
    });
    marks.collect()
}

async fn end(mut cluster: Cluster, result: Result<()>) -> Result<Trace> {
    let stopped = stop_all(&mut cluster).await;
    drop(cluster);
    let trace = trace::stop();
    result.and(stopped)?;
    trace
}

fn step(text: &str) {
    mark(Mark::Step(text.into()));
}

async fn stop_all(cluster: &mut Cluster) -> Result<()> {
    for member in 0..cluster.size() {
        cluster.stop(member, false).await?;
    }
    Ok(())
}

async fn single(cluster: &mut Cluster, count: u64, is_whole: bool) -> Result<()> {
    let writes = Writes::default();
    step("first start");
    cluster.start(0).await?;
    ensure!(writes.make(&[cluster.node(0)], count / 2).await == count / 2, "a write failed");
    step("a lease is granted");
    let lease = LeaseGrantRequest { id: 7, ttl: 60 };
    let granted = cluster.node(0).propose(encode(Op::LeaseGrant(lease))).await?;
    ensure!(matches!(granted.result, Some(Answer::LeaseGrant(_))), "a lease was not granted");
    step("stopped in the midst, and started again");
    cluster.stop(0, false).await?;
    cluster.start(0).await?;
    ensure!(writes.make(&[cluster.node(0)], count / 2).await == count / 2, "a write failed");
    step("written to until the log uses a segment again");
    let mut further = 0;
    while is_whole && !trace::has_reused_segment() {
        ensure!(further < FURTHER_MAX, "{further} further writes, and no segment was used again");
        ensure!(writes.make(&[cluster.node(0)], FURTHER).await == FURTHER, "a write failed");
        further += FURTHER;
    }
    step("stopped");
    cluster.stop(0, true).await
}

async fn again(cluster: &mut Cluster, count: u64) -> Result<()> {
    let writes = Writes { next: Mutex::new(FIRST_AGAIN), ..Writes::default() };
    step("started after a crash");
    cluster.start(0).await?;
    ensure!(writes.make(&[cluster.node(0)], count).await == count, "a write failed");
    step("stopped");
    Ok(())
}

async fn three(cluster: &mut Cluster, count: u64) -> Result<()> {
    let writes = Arc::new(Writes::default());
    step("first start");
    for member in 0..cluster.size() {
        cluster.start(member).await?;
    }
    let leader = cluster.leader_seen_by(0).await?;
    let all = |cluster: &Cluster| (0..cluster.size()).map(|member| cluster.node(member).clone()).collect::<Vec<Node>>();
    let made = writes.make(&all(cluster).iter().collect::<Vec<_>>(), count / 4).await;
    ensure!(made > 0, "no write was acknowledged");

    step("the leader is cut off, and takes entries that no one else gets");
    cluster.isolate(leader);
    let lonely = cluster.node(leader).clone();
    let of_lonely = writes.clone();
    let orphans = tokio::spawn(async move { of_lonely.make(&[&lonely], CLIENTS as u64).await });
    let next = cluster.leader_beside(leader).await?;
    let made = writes.make(&[cluster.node(next)], count / 4).await;
    ensure!(made > 0, "no write was acknowledged after the leader was cut off");
    step("it comes back, and its entries are truncated");
    cluster.heal();
    cluster.converge(next).await?;
    let orphans = orphans.await?;
    ensure!(orphans == 0, "{orphans} writes were acknowledged by a leader that was cut off");

    step("a follower is cut off until the log has let go of what it lacks");
    let leader = cluster.leader_seen_by(next).await?;
    let behind = (leader + 1) % cluster.size();
    cluster.isolate(behind);
    let made = writes.make(&[cluster.node(leader)], count / 2).await;
    ensure!(made > 0, "no write was acknowledged without a follower");
    step("it gets a snapshot");
    cluster.heal();
    cluster.converge(leader).await?;
    step("leadership is handed over");
    let leader = cluster.leader_seen_by(leader).await?;
    cluster.node(leader).transfer_leadership(None).await?;
    let next = cluster.leader_beside(leader).await?;
    if writes.make(&[cluster.node(next)], count / 8).await == 0 {
        bail!("no write was acknowledged by the new leader");
    }
    cluster.converge(next).await?;
    let states = (0..cluster.size()).map(|member| super::recover::state_of(cluster.store(member)));
    let states = states.collect::<Result<Vec<_>>>()?;
    ensure!(states.windows(2).all(|pair| pair[0] == pair[1]), "members differ: {states:?}");
    step("stopped");
    Ok(())
}
