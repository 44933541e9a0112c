//! The one thread that writes the log.
//!
//! It takes everything that is queued, writes it as one batch, syncs once, and only then tells those who wait: group
//! commit, without a timer. After a failed write or sync it stops for good: what the disk then holds is not known, so
//! nothing is tried again.

use std::{io, sync::Arc, time::Instant};

use openraft::storage::IOFlushed;
use storage::planted;
use tokio::sync::{mpsc, oneshot};

use super::{
    LogError, Shared,
    record::{self, HEADER_LEN, Record},
    recovery::Position,
    segment::{Folder, Segment},
};
use crate::{
    LogWrite,
    disk::DiskFile,
    types::{Entry, LogId, TypeConfig},
};

/// A batch is written when it has grown to this, though more is queued.
const BATCH_BYTES: usize = 8 << 20;

pub(super) type Done = oneshot::Sender<Result<(), LogError>>;

/// What the writer is asked for.
pub(super) enum Job {
    Append(Vec<Entry>, IOFlushed<TypeConfig>),
    /// A record that is no entry; it is waited for.
    Write(Record, Done),
}

enum Waiting {
    Append(IOFlushed<TypeConfig>),
    Write(Done),
}

pub(super) struct Writer {
    pub shared: Arc<Shared>,
    pub folder: Folder,
    /// In order; the last one is written to.
    pub segments: Vec<Segment>,
    pub end: u64,
    /// The end of the segment before the last one.
    pub previous_end: u64,
    pub next_batch: u64,
    /// What the disk is known to hold as committed.
    pub committed: Option<LogId>,
    /// Entries before this one are not needed any more, as was said since the log was opened.
    pub purged_before: Option<u64>,
    /// Files of purged segments go here to be closed.
    pub removed: mpsc::UnboundedSender<Arc<dyn DiskFile>>,
}

/// Records gathered for one write.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    begins: Vec<usize>,
    /// Of each record: what the log's state has to follow.
    records: Vec<Follow>,
    waiting: Vec<Waiting>,
}

enum Follow {
    Entry(LogId),
    Other(Record),
}

impl Writer {
    /// Works until the log is closed, or a write fails.
    pub async fn run(mut self) {
        while let Some((jobs, committed)) = self.shared.next_jobs(!self.has_purged()).await {
            let mut batch = Batch::default();
            for job in jobs {
                match job {
                    Job::Append(entries, flushed) => {
                        self.shared.count_appended(&entries);
                        for entry in entries {
                            let follow = Follow::Entry(entry.log_id);
                            batch.add(&Record::Entry(entry), follow);
                            if batch.bytes.len() >= BATCH_BYTES && !self.write(std::mem::take(&mut batch), None).await {
                                flushed.io_completed(Err(self.shared.failure()));
                                return;
                            }
                        }
                        batch.waiting.push(Waiting::Append(flushed));
                    }
                    Job::Write(record, done) => {
                        batch.add(&record, Follow::Other(record.clone()));
                        batch.waiting.push(Waiting::Write(done));
                    }
                }
            }
            if !self.write(batch, committed).await || !self.drop_purged() {
                return;
            }
        }
    }

    /// Writes and syncs a batch, with what is committed up to it, and tells those who wait for it; false when that
    /// failed.
    async fn write(&mut self, mut batch: Batch, committed: Option<LogId>) -> bool {
        let waiting = std::mem::take(&mut batch.waiting);
        let result = self.write_records(batch, committed).await;
        if let Err(error) = &result {
            self.fail(error);
        }
        for waiting in waiting {
            match waiting {
                Waiting::Append(flushed) => flushed.io_completed(result.clone().map_err(io::Error::other)),
                // Who asked may have been dropped meanwhile.
                Waiting::Write(done) => drop(done.send(result.clone())),
            }
        }
        result.is_ok()
    }

    fn fail(&self, error: &LogError) {
        tracing::error!(%error, "the log cannot be written any more");
        self.shared.fail(error.clone());
    }

    async fn write_records(&mut self, mut batch: Batch, committed: Option<LogId>) -> Result<(), LogError> {
        if batch.begins.is_empty() {
            return Ok(());
        }
        if let Some(id) = committed.filter(|_| committed > self.committed) {
            batch.add(&Record::Committed(id), Follow::Other(Record::Committed(id)));
            self.committed = committed;
        }
        let segment = self.segments.last().expect("there is always a segment");
        if self.end > HEADER_LEN && self.end + batch.bytes.len() as u64 > segment.size {
            let size = self.folder.segment_bytes.max(HEADER_LEN + batch.bytes.len() as u64 + 4096);
            let next = self.folder.create(segment.number + 1, size)?;
            self.shared.add_file(&next);
            self.segments.push(next);
            (self.previous_end, self.end) = (self.end, HEADER_LEN);
        }
        if self.end == HEADER_LEN {
            batch.begin_with(&Record::Start(self.shared.start(self.previous_end)));
        }

        let segment = self.segments.last_mut().expect("there is always a segment");
        record::seal(&mut batch.bytes, &batch.begins, segment.number, self.next_batch);
        let began = Instant::now();
        segment.file.write_at(&batch.bytes, self.end).map_err(|e| LogError::io(&segment.path, e))?;
        let write = began.elapsed();
        if self.shared.syncs && !batch.is_left_unsynced() {
            let mut synced = segment.file.sync_data().await;
            if synced.is_err() && planted!(FsyncRetried) {
                synced = segment.file.sync_data().await;
            }
            synced.map_err(|e| LogError::io(&segment.path, e))?;
        }
        let sync = began.elapsed() - write;
        let (bytes, records) = (batch.bytes.len(), batch.records.len());
        self.shared.meter.log_written(LogWrite { bytes, records, write, sync });

        let mut purged = false;
        let start_records = batch.begins.len() - batch.records.len();
        let mut state = self.shared.state.lock();
        for (i, follow) in batch.records.iter().enumerate() {
            let begin = batch.begins[i + start_records];
            let end = batch.begins.get(i + start_records + 1).copied().unwrap_or(batch.bytes.len());
            match follow {
                Follow::Entry(id) => {
                    debug_assert_eq!(id.index, state.log.next(), "entries are appended in order");
                    segment.last_index = segment.last_index.max(Some(id.index));
                    state.log.positions.push_back(Position {
                        segment: segment.number,
                        offset: self.end + begin as u64,
                        len: (end - begin) as u32,
                        term: id.leader_id.term,
                    });
                }
                Follow::Other(record) => {
                    purged |= matches!(record, Record::Purge(_));
                    state.follow(record);
                }
            }
        }
        state.evict();
        let (first, next) = (state.log.first(), state.log.next());
        drop(state);
        drop(self.shared.written.send_replace(Ok(next)));
        self.end += batch.bytes.len() as u64;
        self.next_batch += 1;
        if purged {
            self.purged_before = Some(first);
        }
        Ok(())
    }

    /// Whether all entries of the oldest segment are gone.
    fn has_purged(&self) -> bool {
        let is_purged =
            |last: Option<u64>| self.purged_before.is_some_and(|first| last.is_none_or(|last| last < first));
        self.segments.len() > 1 && is_purged(self.segments[0].last_index)
    }

    /// Recycles the oldest segment if all of its entries are gone: one behind each write, so that the next does not wait
    /// for many, and all while there is nothing to write. False when that failed.
    fn drop_purged(&mut self) -> bool {
        if !self.has_purged() {
            return true;
        }
        let segment = self.segments.remove(0);
        self.shared.remove_file(&segment);
        if let Err(error) = self.folder.recycle(&segment) {
            self.fail(&error);
            return false;
        }
        // When nobody takes it any more it is closed here.
        drop(self.removed.send(segment.file));
        true
    }
}

impl Batch {
    /// Never, but for a planted bug.
    fn is_left_unsynced(&self) -> bool {
        let has_vote = || self.records.iter().any(|record| matches!(record, Follow::Other(Record::Vote(_))));
        planted!(AnswerBeforeFsync) || (has_vote() && planted!(VoteNotSynced))
    }

    fn add(&mut self, record: &Record, follow: Follow) {
        self.begins.push(self.bytes.len());
        record.encode(&mut self.bytes);
        self.records.push(follow);
    }

    fn begin_with(&mut self, record: &Record) {
        let mut bytes = Vec::with_capacity(self.bytes.len() + 128);
        record.encode(&mut bytes);
        let shift = bytes.len();
        bytes.append(&mut self.bytes);
        self.bytes = bytes;
        self.begins.iter_mut().for_each(|begin| *begin += shift);
        self.begins.insert(0, 0);
    }
}
