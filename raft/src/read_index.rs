//! Linearizable reads: up to which entry a member has to have applied. (Raft, section 6.4 of the dissertation.)
//!
//! One question to the leader serves every read that was waiting when it was asked; those that come meanwhile wait for
//! the next one.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use futures::FutureExt as _;
use openraft::{ReadPolicy, async_runtime::WatchReceiver as _};
use parking_lot::Mutex;
use proto::peer;
use storage::{host, planted};
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot,
};

use crate::{
    network::client::Peers,
    status::Leadership,
    types::{Raft, position, position_of},
};

const WAITING_MAX: usize = 20_000;

/// The leader did not say. Nothing has been changed: it can be asked again.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the leader has not confirmed its leadership: {0}")]
pub struct NotConfirmed(String);

type Answer = Result<u64, NotConfirmed>;

#[derive(Clone)]
pub struct ReadIndex {
    raft: Raft,
    queue: mpsc::Sender<oneshot::Sender<Answer>>,
}

impl ReadIndex {
    /// Starts the task that asks, which ends when the last clone is dropped. A question is given up after `patience`.
    pub fn start(raft: Raft, peers: Peers, leadership: Leadership, patience: Duration) -> Self {
        let (queue, received) = mpsc::channel(WAITING_MAX);
        let reads = ReadIndex { raft: raft.clone(), queue };
        host::spawn(rounds(raft, peers, leadership, patience, received));
        reads
    }

    /// The position in the log that a read that begins now has to see.
    pub async fn index(&self) -> Answer {
        let (sender, answer) = oneshot::channel();
        let stopped = || NotConfirmed("the node has stopped".into());
        match self.queue.try_send(sender) {
            Ok(()) => {}
            Err(TrySendError::Full(sender)) => self.queue.send(sender).boxed().await.map_err(|_| stopped())?,
            Err(TrySendError::Closed(_)) => return Err(stopped()),
        }
        answer.await.map_err(|_| stopped())?
    }

    /// The same when this member leads.
    pub async fn index_here(&self) -> Answer {
        confirm(&self.raft).await
    }
}

async fn rounds(
    raft: Raft,
    peers: Peers,
    leadership: Leadership,
    patience: Duration,
    mut queue: mpsc::Receiver<oneshot::Sender<Answer>>,
) {
    let mut waiting = Vec::new();
    while queue.recv_many(&mut waiting, WAITING_MAX).await > 0 {
        let answer = tokio::time::timeout(patience, ask(&raft, &peers, &leadership)).await;
        let answer = answer.unwrap_or_else(|_| Err(NotConfirmed("no answer in time".into())));
        for waiting in waiting.drain(..) {
            // Who asked may have gone.
            drop(waiting.send(answer.clone()));
        }
    }
}

async fn ask(raft: &Raft, peers: &Peers, leadership: &Leadership) -> Answer {
    match leadership.leader() {
        Some((leader, _)) if leader == leadership.member() => confirm(raft).await,
        Some((leader, peer)) => {
            let response = peers.forwarding(leader, &peer).read_index(peer::ReadIndexRequest {}).await;
            response.map(|response| response.into_inner().index).map_err(|e| NotConfirmed(e.message().into()))
        }
        None => Err(NotConfirmed("there is no leader".into())),
    }
}

async fn confirm(raft: &Raft) -> Answer {
    if planted!(StaleReadAfterPause) || planted!(LeaseReadTooLong) {
        return confirm_wrongly(raft).await;
    }
    confirm_by_majority(raft).await
}

async fn confirm_by_majority(raft: &Raft) -> Answer {
    let linearizer = raft.get_read_linearizer(ReadPolicy::ReadIndex).await;
    linearizer.map(|linearizer| position(linearizer.read_log_id().index())).map_err(|e| NotConfirmed(e.to_string()))
}

/// For planted bugs: what this member takes for committed counts, without asking anybody, or as long as it has not been
/// long since somebody was asked.
async fn confirm_wrongly(raft: &Raft) -> Answer {
    static CONFIRMED: Mutex<BTreeMap<u64, Instant>> = Mutex::new(BTreeMap::new());
    let (member, is_leader, committed) = {
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        (metrics.id, metrics.state.is_leader(), position_of(metrics.local_committed.as_ref()))
    };
    let is_fresh = |at: &Instant| host::now().duration_since(*at) < Duration::from_secs(5);
    let is_leased = planted!(StaleReadAfterPause) || CONFIRMED.lock().get(&member).is_some_and(is_fresh);
    if is_leader && is_leased {
        return Ok(committed);
    }
    let index = confirm_by_majority(raft).await?;
    CONFIRMED.lock().insert(member, host::now());
    Ok(index)
}
