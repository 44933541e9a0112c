//! Members that come, go, lead in turn, and lag behind.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture, stream};
use proto::{
    EtcdError,
    etcdserverpb::{
        Compare, MoveLeaderRequest, PutRequest, RequestOp, TxnRequest, TxnResponse,
        compare::{CompareResult, CompareTarget, TargetUnion},
        kv_client::KvClient,
        maintenance_client::MaintenanceClient,
        request_op::Request,
    },
};
use rand::{Rng as _, rngs::StdRng};
use tokio::time::timeout;
use tonic::{Response, Status, transport::Channel};

use super::{Effect, Fault, Nemesis, metrics, victims};
use crate::root::as_root;
use crate::test::nodes::{Needs, Nodes, link::Link};

const REQUEST_LIMIT: Duration = Duration::from_secs(10);
const CATCH_UP_LIMIT: Duration = Duration::from_secs(60);
/// More than the log that members keep, however little they are told to: they let go of it when it has grown by a segment
/// of 64 MiB, at the next of `--snapshot-count` entries, and these come to more than that many behind the segment.
const LOG_FILL_BYTES: usize = 96 << 20;
const LOG_FILL_REQUEST_BYTES: usize = 192 << 10;
const LOG_FILL_AT_ONCE: usize = 16;

/// A member's machine is lost with all that was on it, and another takes its place.
#[derive(Default)]
pub struct Replace {
    lost: Option<usize>,
}

impl Nemesis for Replace {
    fn name(&self) -> &'static str {
        "replace-member"
    }

    fn strike<'a>(&'a mut self, nodes: &'a mut Nodes, random: &'a mut StdRng) -> BoxFuture<'a, Result<Fault>> {
        async move {
            let victim = victims::choose(nodes, 1, random).await?[0];
            let at = Instant::now();
            nodes.kill(&[victim]).await?;
            self.lost = Some(victim);
            Ok(Fault::new(nodes, &[victim], at, format!("{} is lost with its disk", nodes.name(victim))))
        }
        .boxed()
    }

    fn heal<'a>(&'a mut self, nodes: &'a mut Nodes, random: &'a mut StdRng) -> BoxFuture<'a, Result<Effect>> {
        async move {
            let lost = self.lost.take().context("nothing was lost")?;
            nodes.replace_member(lost, random.random()).await?;
            let new = nodes.name(nodes.len() - 1).to_owned();
            Ok(Effect::now(format!("{new} takes its place"), &[("members replaced", 1)]))
        }
        .boxed()
    }
}

/// A member is added, as a learner at first or not, and then one is removed, perhaps the leader.
pub struct AddRemove;

impl Nemesis for AddRemove {
    fn name(&self) -> &'static str {
        "add-remove-member"
    }

    fn strike<'a>(&'a mut self, nodes: &'a mut Nodes, random: &'a mut StdRng) -> BoxFuture<'a, Result<Fault>> {
        async move {
            let at = Instant::now();
            let learner = random.random();
            let added = nodes.add_member(learner).await?;
            let how = if learner { "as a learner and promoted" } else { "as a voter" };
            Ok(Fault::new(nodes, &[added], at, format!("added {} {how}", nodes.name(added))))
        }
        .boxed()
    }

    fn heal<'a>(&'a mut self, nodes: &'a mut Nodes, random: &'a mut StdRng) -> BoxFuture<'a, Result<Effect>> {
        async move {
            let removed = victims::choose(nodes, 1, random).await?[0];
            let description = format!("removed {}", nodes.name(removed));
            nodes.remove_member(removed).await?;
            Ok(Effect::now(description, &[("members added", 1), ("members removed", 1)]))
        }
        .boxed()
    }
}

/// The leader is told to let another lead.
#[derive(Default)]
pub struct MoveLeader {
    moved: u64,
}

impl Nemesis for MoveLeader {
    fn name(&self) -> &'static str {
        "move-leader"
    }

    fn strike<'a>(&'a mut self, nodes: &'a mut Nodes, random: &'a mut StdRng) -> BoxFuture<'a, Result<Fault>> {
        async move {
            let leader = nodes.leader().await?;
            let to = (leader + random.random_range(1..nodes.len())) % nodes.len();
            let status = nodes.status(to).await.with_context(|| format!("{} does not answer", nodes.name(to)))?;
            let target_id = status.header.context("no header")?.member_id;
            let at = Instant::now();
            let channel = nodes.cluster.nodes[leader].channel();
            let asked = async {
                MaintenanceClient::new(as_root(channel).await?).move_leader(MoveLeaderRequest { target_id }).await
            };
            let moved = timeout(REQUEST_LIMIT, asked).await;
            // It is refused when another leads already, or when the other is too far behind.
            self.moved = u64::from(matches!(moved, Ok(Ok(_))));
            let outcome = if self.moved == 1 { "" } else { ", which it did not" };
            let description = format!("told {} to let {} lead{outcome}", nodes.name(leader), nodes.name(to));
            Ok(Fault::new(nodes, &[leader, to], at, description))
        }
        .boxed()
    }

    fn heal<'a>(&'a mut self, _: &'a mut Nodes, _: &'a mut StdRng) -> BoxFuture<'a, Result<Effect>> {
        async move { Ok(Effect::now("nothing to heal", &[("leaders moved", self.moved)])) }.boxed()
    }
}

/// A follower is cut off until the others have forgotten what it misses, so that it needs a snapshot.
#[derive(Default)]
pub struct Lag {
    lagging: usize,
    snapshots_before: u64,
}

const SNAPSHOTS: &str = "etcd_network_snapshot_receive_success";

impl Lag {
    /// Which one lags.
    pub fn lagging(&self) -> usize {
        self.lagging
    }

    pub async fn cut_off(&mut self, nodes: &Nodes, random: &mut StdRng) -> Result<Fault> {
        let leader = nodes.leader().await?;
        self.lagging = (leader + random.random_range(1..nodes.len())) % nodes.len();
        self.snapshots_before = metrics::sum(nodes, self.lagging, SNAPSHOTS).await?;
        let at = Instant::now();
        for other in (0..nodes.len()).filter(|other| *other != self.lagging) {
            let cut = Link { cut: true, ..Link::default() };
            nodes.set_link(self.lagging, other, cut);
            nodes.set_link(other, self.lagging, cut);
        }
        let filled = fill_log(nodes, leader).await?;
        let description = format!("{} misses {filled} bytes of log and more", nodes.name(self.lagging));
        Ok(Fault::new(nodes, &[self.lagging], at, description))
    }

    /// Gives the number of snapshots that it took.
    pub async fn catch_up(&self, nodes: &Nodes, to: u64) -> Result<u64> {
        nodes.until_applied(self.lagging, to, CATCH_UP_LIMIT).await?;
        Ok(metrics::sum(nodes, self.lagging, SNAPSHOTS).await? - self.snapshots_before)
    }
}

impl Nemesis for Lag {
    fn name(&self) -> &'static str {
        "lagging-member"
    }

    fn needs(&self) -> Needs {
        Needs { short_log: true, ..Needs::default() }
    }

    fn strike<'a>(&'a mut self, nodes: &'a mut Nodes, random: &'a mut StdRng) -> BoxFuture<'a, Result<Fault>> {
        async move { self.cut_off(nodes, random).await }.boxed()
    }

    fn heal<'a>(&'a mut self, nodes: &'a mut Nodes, _: &'a mut StdRng) -> BoxFuture<'a, Result<Effect>> {
        async move {
            let to = nodes.applied_by_leader().await?;
            nodes.heal_links();
            let snapshots = self.catch_up(nodes, to).await?;
            Ok(Effect::now("it has caught up", &[("snapshots received", snapshots)]))
        }
        .boxed()
    }
}

/// Writes to the log and changes nothing: transactions whose condition does not hold. Those that carry large values
/// take room in the log all the same.
async fn fill_log(nodes: &Nodes, leader: usize) -> Result<usize> {
    let channel = nodes.cluster.nodes[leader].channel();
    let value = Bytes::from(vec![b'x'; LOG_FILL_REQUEST_BYTES]);
    let count = LOG_FILL_BYTES / LOG_FILL_REQUEST_BYTES;
    let requests = stream::iter(0..count).map(|_| {
        let (channel, txn) = (channel.clone(), without_effect(value.clone()));
        timeout(REQUEST_LIMIT, write_as_root(channel, txn))
    });
    let outcomes: Vec<_> = requests.buffer_unordered(LOG_FILL_AT_ONCE).collect().await;
    let done = outcomes.iter().filter(|outcome| matches!(outcome, Ok(Ok(_)))).count();
    // The leader may have changed on the way; most of it is enough.
    ensure!(done * 10 >= count * 9, "of {count} writes to the log {done} were done: {:?}", outcomes.last());
    Ok(done * LOG_FILL_REQUEST_BYTES)
}

/// A token that is out of date since users have changed is replaced.
async fn write_as_root(channel: Channel, txn: TxnRequest) -> Result<Response<TxnResponse>, Status> {
    loop {
        let answer = KvClient::new(as_root(channel.clone()).await?).txn(txn.clone()).await;
        let refusal = answer.as_ref().err().and_then(|status| EtcdError::from_message(status.message()));
        if !matches!(refusal, Some(EtcdError::InvalidAuthToken | EtcdError::AuthOldRevision)) {
            return answer;
        }
    }
}

fn without_effect(value: Bytes) -> TxnRequest {
    let key = Bytes::from_static(b"nobody's");
    let never = Compare {
        result: CompareResult::Greater.into(),
        target: CompareTarget::Version.into(),
        key: key.clone(),
        target_union: Some(TargetUnion::Version(i64::MAX)),
        ..Compare::default()
    };
    let put = PutRequest { key, value, ..PutRequest::default() };
    let success = vec![RequestOp { request: Some(Request::RequestPut(put)) }];
    TxnRequest { compare: vec![never], success, failure: vec![] }
}
