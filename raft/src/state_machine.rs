//! The state machine as openraft sees it: entries that are committed together are applied to the store in one batch.
//!
//! ```text
//! batch ── brief, and RocksDB takes writes at once ──> applied where it is
//!       └─ otherwise ───────────────────────────────> applied by a thread: the store blocks, and has no async
//! ```
//! Handing a batch to a thread and its answers back takes two wakeups, which is longer than most batches take.

use std::{io, path::Path, sync::Arc};

use futures::{Stream, StreamExt as _};
use openraft::{
    OptionalSend, RaftSnapshotBuilder,
    storage::{ApplyResponder, EntryResponder, RaftStateMachine},
};
use parking_lot::Mutex;
use proto::command::Outcome;
use storage::{
    Applied, Applier, LogEntry, Prepared, StorageError, Store,
    host::{self, Worker},
    planted,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    log::Log,
    network::transfer::Checkpoint,
    roster::Roster,
    types::{Entry, LogId, Payload, Snapshot, SnapshotMeta, StoredMembership, TypeConfig, log_id, position},
};

/// Entries of one batch, and the bytes of their commands.
const BATCH_ENTRIES: usize = 256;
const BATCH_BYTES: usize = 4 << 20;

/// A snapshot's content.
pub enum SnapshotData {
    /// This node's own: a checkpoint of the store is made when it is sent.
    Own,
    /// Received from the leader, complete and synced. Whoever sent it may have gone before it is installed.
    Received(Checkpoint),
}

/// What entries came to, each with who waits for it.
type Answers = Vec<(ApplyResponder<TypeConfig>, Outcome)>;

enum Job {
    Apply(Batch, oneshot::Sender<Result<Answers, StorageError>>),
    Install(Checkpoint, oneshot::Sender<Result<Applied, io::Error>>),
}

/// Entries that are to be applied, with who waits for each.
struct Batch {
    prepared: Prepared<'static>,
    responders: Vec<Option<ApplyResponder<TypeConfig>>>,
    last: u64,
    /// The members there are then, where that changes.
    roster: Option<Arc<Roster>>,
}

pub struct StateMachine {
    store: Store,
    log: Log,
    state: Arc<Mutex<Changing>>,
    jobs: mpsc::Sender<Job>,
    _worker: Worker,
    /// [`Log::appended_bytes`] when the store was flushed last.
    flushed_at: u64,
}

impl StateMachine {
    /// `progress` is told the position (from 1) up to which the store has been applied, `roster` of changed members.
    pub fn new(
        store: Store,
        log: Log,
        progress: watch::Sender<u64>,
        roster: watch::Sender<Arc<Roster>>,
    ) -> io::Result<Self> {
        let (jobs, mut received) = mpsc::channel(4);
        let state = Changing { store: store.clone(), applier: store.applier(), progress, roster };
        let state = Arc::new(Mutex::new(state));
        let of_worker = state.clone();
        let worker = host::worker("apply", async move {
            while let Some(job) = received.recv().await {
                match job {
                    Job::Apply(batch, done) => drop(done.send(of_worker.lock().apply(batch))),
                    Job::Install(received, done) => drop(done.send(of_worker.lock().install(&received.0))),
                }
            }
        })?;
        Ok(StateMachine { store, log, state, jobs, _worker: worker, flushed_at: 0 })
    }

    /// What others have committed may not be in the own log yet. The store must not have it before: it may be flushed at
    /// any time, and after a power cut would be ahead of the log.
    async fn apply_batch(&self, batch: Vec<EntryResponder<TypeConfig>>) -> Result<(), io::Error> {
        let Some((last, _)) = batch.last() else { return Ok(()) };
        self.log.wait_written(last.log_id.index).await.map_err(io::Error::other)?;
        let batch = self.prepare(batch).map_err(io::Error::other)?;
        let answers = if batch.prepared.is_brief() && !self.store.writes_wait() {
            self.state.lock().apply(batch)
        } else {
            self.run(|done| Job::Apply(batch, done)).await?
        };
        let answers = answers.map_err(io::Error::other)?;
        // From here, and not from the thread: one thread wakes the other once for all of them.
        answers.into_iter().for_each(|(responder, outcome)| responder.send(outcome));
        Ok(())
    }

    fn prepare(&self, entries: Vec<EntryResponder<TypeConfig>>) -> Result<Batch, StorageError> {
        let before = self.state.lock().roster.borrow().clone();
        let mut roster = before.clone();
        let last = entries.last().map_or(0, |(entry, _)| position(entry.log_id.index));
        let (entries, responders): (Vec<LogEntry>, Vec<_>) =
            entries.into_iter().map(|(entry, responder)| (to_log_entry(entry, &mut roster), responder)).unzip();
        let roster = (!Arc::ptr_eq(&before, &roster)).then_some(roster);
        Ok(Batch { prepared: self.store.prepare(entries)?, responders, last, roster })
    }

    async fn run<T>(&self, job: impl FnOnce(oneshot::Sender<T>) -> Job) -> Result<T, io::Error> {
        let (done, result) = oneshot::channel();
        let stopped = || io::Error::other("the apply thread has stopped");
        self.jobs.send(job(done)).await.map_err(|_| stopped())?;
        result.await.map_err(|_| stopped())
    }
}

/// What changes the store, and is told of it.
struct Changing {
    store: Store,
    applier: Applier,
    progress: watch::Sender<u64>,
    roster: watch::Sender<Arc<Roster>>,
}

impl Changing {
    fn apply(&mut self, batch: Batch) -> Result<Answers, StorageError> {
        let Batch { prepared, responders, last, roster } = batch;
        let outcomes = self.applier.apply_prepared(prepared)?;
        if let Some(roster) = roster {
            self.roster.send_replace(roster);
        }
        self.progress.send_replace(last);
        Ok(responders
            .into_iter()
            .zip(outcomes)
            .filter_map(|(responder, outcome)| Some((responder?, outcome)))
            .collect())
    }

    fn install(&mut self, dir: &Path) -> Result<Applied, io::Error> {
        let applied = self.store.install_checkpoint(dir).map_err(io::Error::other)?;
        self.roster.send_replace(Arc::new(roster_of(&applied)?));
        self.progress.send_replace(applied.index);
        Ok(applied)
    }
}

pub fn to_log_entry(entry: Entry, roster: &mut Arc<Roster>) -> LogEntry {
    let payload = match entry.payload {
        Payload::Blank => storage::Payload::Blank,
        Payload::Normal(command) => storage::Payload::Command(command.0),
        Payload::Membership(membership) => {
            *roster = Arc::new(roster.then(StoredMembership::new(Some(entry.log_id), membership)));
            storage::Payload::Membership(roster.to_bytes())
        }
    };
    LogEntry { index: position(entry.log_id.index), term: entry.log_id.leader_id.term, payload }
}

/// The id of the last entry applied.
pub fn applied_id(applied: &Applied) -> Option<LogId> {
    applied.index.checked_sub(1).map(|index| log_id(applied.term, index))
}

/// What openraft wants to know of a state of the store.
pub fn meta_of(applied: &Applied) -> Result<SnapshotMeta, io::Error> {
    Ok(SnapshotMeta { last_log_id: applied_id(applied), last_membership: roster_of(applied)?.stored })
}

/// The members that the store knows of.
pub fn roster_of(applied: &Applied) -> Result<Roster, io::Error> {
    Roster::from_bytes(&applied.membership).map_err(io::Error::other)
}

fn snapshot_of(applied: &Applied) -> Result<Snapshot, io::Error> {
    Ok(Snapshot { meta: meta_of(applied)?, snapshot: SnapshotData::Own })
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let applied = self.store.applied();
        Ok((applied_id(&applied), roster_of(&applied)?.stored))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(entry) = entries.next().await {
            let entry = entry?;
            if let Payload::Normal(command) = &entry.0.payload {
                bytes += command.0.len();
            }
            batch.push(entry);
            if batch.len() >= BATCH_ENTRIES || bytes >= BATCH_BYTES {
                self.apply_batch(std::mem::take(&mut batch)).await?;
                bytes = 0;
            }
        }
        self.apply_batch(batch).await
    }

    /// A snapshot is the flushed store: nothing is copied. It is put off until a segment of the log could be let go.
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<SnapshotBuilder> {
        let appended = self.log.appended_bytes();
        if !force && appended < self.flushed_at + self.log.segment_bytes() {
            return None;
        }
        self.flushed_at = appended;
        Some(SnapshotBuilder { store: self.store.clone() })
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder { store: self.store.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> Result<(), io::Error> {
        let SnapshotData::Received(received) = snapshot else {
            return Err(io::Error::other("a snapshot of this node itself was to be installed"));
        };
        if let Some(last) = meta.last_log_id {
            self.log.note_installation(last).await.map_err(io::Error::other)?;
        }
        let applied = self.run(|done| Job::Install(received, done)).await??;
        match applied_id(&applied) == meta.last_log_id {
            true => Ok(()),
            false => Err(io::Error::other(format!("the snapshot ends at {applied:?}, and not at {meta}"))),
        }
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let applied = self.store.applied();
        if applied.index == 0 {
            return Ok(None);
        }
        snapshot_of(&applied).map(Some)
    }
}

/// Flushes the store, so that the log up to there is not needed any more.
pub struct SnapshotBuilder {
    store: Store,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let store = self.store.clone();
        let flushed = host::blocking(move || {
            let applied = store.applied();
            if planted!(LogPurgedBeforeFlush) {
                return Ok(applied);
            }
            store.flush().map(|_| applied)
        });
        snapshot_of(&flushed.await.map_err(io::Error::other)?.map_err(io::Error::other)?)
    }
}
