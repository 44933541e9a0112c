//! Proposals on their way to the leader.
//!
//! ```text
//! propose ─> queue ─> batcher ─ this member leads ──> many entries at once into the log ─> each answered when applied
//!                             └ another one does ───> one Propose call with all of them
//! ```
//!
//! There is no timer: a batch is what came while the one before was handed over. A proposal that was certainly not
//! taken is proposed again when there is a leader; one whose fate is unknown never is.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use bytes::Bytes;
use futures::{
    StreamExt,
    future::{self, Either},
    stream::{self, FuturesUnordered},
};
use openraft::errors::{ClientWriteError, Fatal};
use proto::{
    command::Outcome,
    peer::{self, propose_response::result::Result as Answer},
};
use storage::host;
use tokio::sync::{
    mpsc::{self, error::TrySendError},
    oneshot,
};

use crate::{
    network::client::Peers,
    status::Leadership,
    types::{Command, Raft, TypeConfig, position},
};

/// Proposals on their way, at most. (etcd: `maxGapBetweenApplyAndCommitIndex` serves the same end.)
const PENDING_MAX: i64 = 20_000;
const BATCH_MAX: usize = 256;

/// What became of a proposal.
pub enum Fate {
    /// Applied by the member that proposed it, at this position of the log.
    Applied {
        index: u64,
        outcome: Outcome,
    },
    NotProposed,
    /// It may be applied, now or later, or never.
    Unknown,
}

type Waiting = (Bytes, oneshot::Sender<Fate>);

#[derive(Clone)]
pub struct Proposer {
    raft: Raft,
    queue: mpsc::Sender<Waiting>,
    pending: Arc<AtomicI64>,
}

/// More proposals are on their way than the node takes.
pub struct Overloaded;

/// Counts a proposal as pending as long as it is held.
struct Pending<'a>(&'a AtomicI64);

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Proposer {
    /// Starts the batcher, which ends when the last clone is dropped.
    pub fn start(raft: Raft, peers: Peers, leadership: Leadership) -> Self {
        let (queue, received) = mpsc::channel(PENDING_MAX as usize);
        host::spawn(hand_over(raft.clone(), peers, leadership, received));
        Proposer { raft, queue, pending: Arc::default() }
    }

    /// Proposes to the leader there is now, if there is one.
    pub async fn propose(&self, command: Bytes) -> Result<Fate, Overloaded> {
        let pending = Pending(&self.pending);
        if pending.0.fetch_add(1, Ordering::Relaxed) >= PENDING_MAX {
            return Err(Overloaded);
        }
        let (sender, fate) = oneshot::channel();
        match self.queue.try_send((command, sender)) {
            Ok(()) => {}
            // Those who asked have gone, and what they asked for waits still.
            Err(TrySendError::Full(_)) => return Err(Overloaded),
            Err(TrySendError::Closed(_)) => return Ok(Fate::NotProposed),
        }
        Ok(fate.await.unwrap_or(Fate::Unknown))
    }

    /// Proposes if this member leads, and waits for all.
    pub async fn propose_here(&self, commands: Vec<Bytes>) -> Vec<Fate> {
        let (batch, fates): (Vec<Waiting>, Vec<_>) = commands
            .into_iter()
            .map(|command| {
                let (sender, fate) = oneshot::channel();
                ((command, sender), fate)
            })
            .unzip();
        write(&self.raft, batch).await.await;
        futures::future::join_all(fates).await.into_iter().map(|fate| fate.unwrap_or(Fate::Unknown)).collect()
    }
}

async fn hand_over(raft: Raft, peers: Peers, leadership: Leadership, mut queue: mpsc::Receiver<Waiting>) {
    let (mut batch, mut answers) = (Vec::new(), Answers::default());
    loop {
        tokio::select! {
            biased;
            () = answers.next() => continue,
            count = queue.recv_many(&mut batch, BATCH_MAX) => if count == 0 {
                break;
            },
        }
        let batch = std::mem::take(&mut batch);
        match leadership.leader() {
            Some((leader, _)) if leader == leadership.member() => {
                let answer = write(&raft, batch).await;
                answers.push(Either::Left(answer));
            }
            Some((leader, peer)) => {
                let mut client = peers.forwarding(leader, &peer);
                answers.push(Either::Right(async move {
                    let (commands, senders): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
                    let response = client.propose(peer::ProposeRequest { commands }).await;
                    let mut results = response.map(|r| r.into_inner().results).unwrap_or_default().into_iter();
                    for sender in senders {
                        drop(sender.send(fate_of(results.next())));
                    }
                }));
            }
            None => batch.into_iter().for_each(|(_, sender)| drop(sender.send(Fate::NotProposed))),
        }
    }
    while !answers.is_empty() {
        answers.next().await;
    }
}

/// Batches that wait to be answered.
struct Answers<F>(FuturesUnordered<Either<future::Pending<()>, F>>);

impl<F: Future<Output = ()>> Default for Answers<F> {
    /// With one that is never ready: when everything in it has been polled and waits, FuturesUnordered wakes whoever polls
    /// it, and tokio then wakes a second thread to poll it again.
    fn default() -> Self {
        Answers(FuturesUnordered::from_iter([Either::Left(future::pending())]))
    }
}

impl<F: Future<Output = ()>> Answers<F> {
    fn push(&mut self, answer: F) {
        self.0.push(Either::Right(answer));
    }

    fn is_empty(&self) -> bool {
        self.0.len() == 1
    }

    /// Resolves when one more is answered.
    async fn next(&mut self) {
        self.0.next().await;
    }
}

fn fate_of(result: Option<peer::propose_response::Result>) -> Fate {
    match result.and_then(|result| result.result) {
        Some(Answer::Applied(peer::propose_response::Applied { index, outcome: Some(outcome) })) => {
            Fate::Applied { index, outcome }
        }
        Some(Answer::NotLeader(_)) => Fate::NotProposed,
        _ => Fate::Unknown,
    }
}

/// Hands a batch to Raft. What is returned gives the answers, which come when it is applied.
async fn write(raft: &Raft, batch: Vec<Waiting>) -> impl Future<Output = ()> + Send + use<> {
    let (commands, senders): (Vec<_>, Vec<_>) = batch.into_iter().map(|(command, s)| (Command(command), s)).unzip();
    let results = raft.client_write_many(commands).await;
    async move {
        // Without results it is not known what became of any.
        let mut results = results.map_or_else(|_| stream::empty().left_stream(), StreamExt::right_stream);
        for sender in senders {
            // Who asked may have gone.
            drop(sender.send(fate(results.next().await)));
        }
    }
}

type Written = Result<openraft::raft::WriteResult<TypeConfig>, Fatal<TypeConfig>>;

fn fate(written: Option<Written>) -> Fate {
    match written {
        Some(Ok(Ok(response))) => Fate::Applied { index: position(response.log_id.index), outcome: response.response },
        Some(Ok(Err(ClientWriteError::ForwardToLeader(_)))) => Fate::NotProposed,
        _ => Fate::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Wake},
    };

    use futures::FutureExt as _;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicI64);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_batch_wakes_nobody_until_it_is_answered() {
        let woken = Arc::new(Woken::default());
        let (waker, count) = (woken.clone().into(), || woken.0.load(Ordering::Relaxed));
        let mut context = Context::from_waker(&waker);
        let mut answers = Answers::default();
        assert!(pin!(answers.next()).poll(&mut context).is_pending());
        let before = count();
        let (answer, answered) = oneshot::channel::<()>();
        answers.push(answered.map(drop));
        assert!(pin!(answers.next()).poll(&mut context).is_pending());
        assert_eq!(count(), before);
        answer.send(()).unwrap();
        assert_eq!(count(), before + 1);
        assert!(pin!(answers.next()).poll(&mut context).is_ready() && answers.is_empty());
    }
}
