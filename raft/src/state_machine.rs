//! The state machine as openraft sees it: entries go to one thread, which applies them to the store.
//!
//! The thread is a plain one: the store blocks, and has no async. Entries that are committed together are applied in
//! one batch, and each proposer is told by the same thread.

use std::{io, path::PathBuf, thread};

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use openraft::{
    OptionalSend, RaftSnapshotBuilder,
    storage::{ApplyResponder, EntryResponder, RaftStateMachine},
};
use storage::{Applied, Applier, LogEntry, StorageError, Store};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    convert::{stored_from_bytes, stored_to_bytes},
    log::Log,
    types::{Entry, LogId, Payload, Snapshot, SnapshotMeta, StoredMembership, TypeConfig, log_id, position},
};

/// Entries of one batch, and the bytes of their commands.
const BATCH_ENTRIES: usize = 2048;
const BATCH_BYTES: usize = 4 << 20;
/// Log bytes between two flushes of the store that are made so that the log can be purged.
const FLUSH_EVERY_BYTES: u64 = 64 << 20;

/// A snapshot's content.
pub enum SnapshotData {
    /// This node's own: a checkpoint of the store is made when it is sent.
    Own,
    /// Received from the leader, complete and synced.
    Received(PathBuf),
}

enum Job {
    Apply(Vec<EntryResponder<TypeConfig>>, oneshot::Sender<Result<(), StorageError>>),
    Install(PathBuf, oneshot::Sender<Result<Applied, StorageError>>),
}

pub struct StateMachine {
    store: Store,
    log: Log,
    jobs: mpsc::Sender<Job>,
    /// [`Log::appended_bytes`] when the store was flushed last.
    flushed_at: u64,
}

impl StateMachine {
    /// `progress` is told the position (from 1) up to which the store has been applied.
    pub fn new(store: Store, log: Log, progress: watch::Sender<u64>) -> io::Result<Self> {
        let (jobs, mut received) = mpsc::channel(4);
        let (of_thread, mut applier) = (store.clone(), store.applier());
        thread::Builder::new().name("apply".into()).spawn(move || {
            while let Some(job) = received.blocking_recv() {
                match job {
                    Job::Apply(entries, done) => drop(done.send(apply(&mut applier, entries, &progress))),
                    Job::Install(dir, done) => {
                        let installed = of_thread.install_checkpoint(&dir);
                        if let Ok(applied) = &installed {
                            progress.send_replace(applied.index);
                        }
                        drop(done.send(installed));
                    }
                }
            }
        })?;
        Ok(StateMachine { store, log, jobs, flushed_at: 0 })
    }

    async fn run<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T, StorageError>>) -> Job) -> Result<T, io::Error> {
        let (done, result) = oneshot::channel();
        let stopped = || io::Error::other("the apply thread has stopped");
        self.jobs.send(job(done)).await.map_err(|_| stopped())?;
        result.await.map_err(|_| stopped())?.map_err(io::Error::other)
    }
}

fn apply(
    applier: &mut Applier,
    entries: Vec<EntryResponder<TypeConfig>>,
    progress: &watch::Sender<u64>,
) -> Result<(), StorageError> {
    let (entries, responders): (Vec<LogEntry>, Vec<Option<ApplyResponder<TypeConfig>>>) =
        entries.into_iter().map(|(entry, responder)| (to_log_entry(entry), responder)).unzip();
    let Some(last) = entries.last().map(|entry| entry.index) else { return Ok(()) };
    let outcomes = applier.apply(&entries)?;
    progress.send_replace(last);
    for (responder, outcome) in responders.into_iter().zip(outcomes) {
        if let Some(responder) = responder {
            responder.send(outcome);
        }
    }
    Ok(())
}

fn to_log_entry(entry: Entry) -> LogEntry {
    let payload = match entry.payload {
        Payload::Blank => storage::Payload::Blank,
        Payload::Normal(command) => storage::Payload::Command(command.0),
        Payload::Membership(membership) => {
            storage::Payload::Membership(stored_to_bytes(&StoredMembership::new(Some(entry.log_id), membership)))
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
    let last_membership = membership_of(&applied.membership)?;
    Ok(SnapshotMeta { last_log_id: applied_id(applied), last_membership })
}

fn membership_of(stored: &Bytes) -> Result<StoredMembership, io::Error> {
    stored_from_bytes(stored).map_err(io::Error::other)
}

fn snapshot_of(applied: &Applied) -> Result<Snapshot, io::Error> {
    Ok(Snapshot { meta: meta_of(applied)?, snapshot: SnapshotData::Own })
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let applied = self.store.applied();
        Ok((applied_id(&applied), membership_of(&applied.membership)?))
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
                let batch = std::mem::take(&mut batch);
                self.run(|done| Job::Apply(batch, done)).await?;
                bytes = 0;
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        self.run(|done| Job::Apply(batch, done)).await
    }

    /// A snapshot is the flushed store: nothing is copied. It is put off until enough of the log could be let go.
    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<SnapshotBuilder> {
        let appended = self.log.appended_bytes();
        if !force && appended < self.flushed_at + FLUSH_EVERY_BYTES {
            return None;
        }
        self.flushed_at = appended;
        Some(SnapshotBuilder { store: self.store.clone() })
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder { store: self.store.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> Result<(), io::Error> {
        let SnapshotData::Received(dir) = snapshot else {
            return Err(io::Error::other("a snapshot of this node itself was to be installed"));
        };
        if let Some(last) = meta.last_log_id {
            self.log.note_installation(last).await.map_err(io::Error::other)?;
        }
        let applied = self.run(|done| Job::Install(dir, done)).await?;
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
        let flushed = tokio::task::spawn_blocking(move || {
            let applied = store.applied();
            store.flush().map(|_| applied)
        });
        snapshot_of(&flushed.await.map_err(io::Error::other)?.map_err(io::Error::other)?)
    }
}
