//! The Raft log: entries, vote, committed index, in segment files of our own.
//!
//! ```text
//! append(entries) ─> queue ─> writer: one write, one fdatasync for all that is queued ─> flushed
//!        └> recent entries (memory) ─> replication, apply      older ones are read from the files
//! ```
//!
//! [`record`] says what stands in the files, [`recovery`] what is believed of it after a crash, `docs/format.md` both.

#[cfg(any(fuzzing, test))]
pub(crate) mod fuzzing;
mod record;
mod recovery;
mod segment;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod unsynced;
mod writer;

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::{Stream, StreamExt as _, TryStreamExt as _, stream};
use openraft::{
    RaftLogReader,
    storage::{IOFlushed, LogState, RaftLogStorage},
};
use parking_lot::{Mutex, RwLock};
use storage::{
    host::{self, Worker},
    planted,
};
use tokio::sync::{Notify, mpsc, oneshot, watch};

pub(crate) use self::segment::Folder;
use self::{
    record::{Record, Start},
    recovery::{Position, State},
    segment::Segment,
    writer::{Job, Writer},
};
use crate::{
    Meter, StartError,
    disk::{Disk, DiskFile},
    network::acknowledged::Held,
    types::{Entry, LogId, Payload, TypeConfig, Vote},
};

/// Entries kept in memory, in bytes, beside those that are not written yet.
const RECENT_BYTES: usize = 32 << 20;
/// Entries of one replication message, in bytes, unless it is a single one.
const MESSAGE_BYTES: usize = 1 << 20;

/// A failure of the log's files. The node cannot go on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    /// What stands in a file is not what was written there.
    #[error(
        "{path}: damaged at offset {offset}: {detail}; \
         remove this member from the cluster and let a new one catch up, or restore it from a backup"
    )]
    Damaged { path: PathBuf, offset: u64, detail: String },
    /// The file system refused.
    #[error("{path}: {detail}")]
    Io { path: PathBuf, detail: String },
}

impl LogError {
    fn io(path: &Path, error: io::Error) -> Self {
        LogError::Io { path: path.into(), detail: error.to_string() }
    }

    pub(crate) fn damaged(path: &Path, offset: u64, detail: impl Into<String>) -> Self {
        LogError::Damaged { path: path.into(), offset, detail: detail.into() }
    }
}

impl From<LogError> for StartError {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Damaged { .. } => StartError::Damaged(error.to_string()),
            LogError::Io { .. } => StartError::Io(error.to_string()),
        }
    }
}

/// Makes an empty log in `path`, of segments of `segment_bytes`, unless there is one. It is on the disk when this
/// returns.
pub async fn make(disk: Arc<dyn Disk>, path: PathBuf, segment_bytes: u64) -> Result<(), StartError> {
    let folder = Folder { disk, path, segment_bytes };
    let make = host::blocking(move || folder.make().and_then(|()| recovery::recover(&folder)));
    make.await.map_err(|error| StartError::Io(error.to_string()))??;
    Ok(())
}

/// The log. Clones share it.
#[derive(Clone)]
pub(crate) struct Log {
    shared: Arc<Shared>,
    /// Closes the log when the last clone is dropped.
    _closer: Arc<Closer>,
}

/// The log, as long as someone else keeps it open.
#[derive(Clone)]
pub(crate) struct WeakLog {
    shared: Weak<Shared>,
    closer: Weak<Closer>,
}

impl WeakLog {
    pub fn upgrade(&self) -> Option<Log> {
        Some(Log { shared: self.shared.upgrade()?, _closer: self.closer.upgrade()? })
    }
}

struct Closer {
    shared: Arc<Shared>,
    _worker: Worker,
    /// Ends after the one above.
    _closing: Worker,
}

struct Shared {
    queue: Mutex<Queue>,
    queued: Notify,
    state: Mutex<Memory>,
    files: RwLock<BTreeMap<u64, (PathBuf, Arc<dyn DiskFile>)>>,
    meter: Arc<dyn Meter>,
    /// Writes are synced.
    syncs: bool,
    segment_bytes: u64,
    appended_bytes: AtomicU64,
    /// The index behind the last entry that is written, and synced if anything is; or why nothing is written any more.
    written: watch::Sender<Result<u64, LogError>>,
}

#[derive(Default)]
struct Queue {
    jobs: Vec<Job>,
    /// All of it has been queued.
    committed: Option<LogId>,
    closed: bool,
    failed: Option<LogError>,
}

/// What the log holds, and its newest entries.
struct Memory {
    log: State,
    /// The newest entries, in order; those behind `log.next()` are not written yet.
    recent: VecDeque<Entry>,
    recent_bytes: usize,
}

impl Log {
    /// Opens the log in `folder`, or makes an empty one there. `meter` is told of each write, and without `syncs` none
    /// of them is synced.
    pub fn open(folder: Folder, meter: Arc<dyn Meter>, syncs: bool) -> Result<Log, LogError> {
        folder.make()?;
        let recovered = recovery::recover(&folder)?;
        let files = recovered.segments.iter().map(|s| (s.number, (s.path.clone(), s.file.clone()))).collect();
        let committed = recovered.state.committed;
        // What a removed file held is freed when it is closed, which takes many milliseconds.
        let (removed, mut to_close) = mpsc::unbounded_channel();
        let closing = host::worker("log files", async move {
            while let Some(file) = to_close.recv().await {
                drop::<Arc<dyn DiskFile>>(file);
            }
        });
        let closing = closing.map_err(|e| LogError::io(&folder.path, e))?;
        let written = watch::Sender::new(Ok(recovered.state.next()));
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue { committed, ..Queue::default() }),
            queued: Notify::new(),
            state: Mutex::new(Memory { log: recovered.state, recent: VecDeque::new(), recent_bytes: 0 }),
            files: RwLock::new(files),
            meter,
            syncs,
            segment_bytes: folder.segment_bytes,
            appended_bytes: AtomicU64::new(0),
            written,
        });
        let writer = Writer {
            shared: shared.clone(),
            folder: folder.clone(),
            segments: recovered.segments,
            end: recovered.end,
            previous_end: recovered.previous_end,
            next_batch: recovered.next_batch,
            committed,
            purged_before: None,
            removed,
        };
        let worker = host::worker("log", writer.run()).map_err(|e| LogError::io(&folder.path, e))?;
        let closer = Closer { shared: shared.clone(), _worker: worker, _closing: closing };
        Ok(Log { shared, _closer: Arc::new(closer) })
    }

    pub fn downgrade(&self) -> WeakLog {
        WeakLog { shared: Arc::downgrade(&self.shared), closer: Arc::downgrade(&self._closer) }
    }

    /// Returns once an entry is written and synced.
    ///
    /// # Errors
    /// When that has failed, or a write before it.
    pub async fn wait_written(&self, index: u64) -> Result<(), LogError> {
        let mut written = self.shared.written.subscribe();
        let is_known = |written: &Result<u64, LogError>| written.as_ref().map_or(true, |end| *end > index);
        match written.wait_for(is_known).await {
            Ok(written) => written.clone().map(drop),
            Err(_) => Err(self.shared.log_failure()),
        }
    }

    /// Where the log ends, or where the newest snapshot that was to be installed does.
    pub fn end(&self) -> Option<LogId> {
        let state = self.shared.state.lock();
        state.log.last().max(state.log.installed)
    }

    /// What is in it, and whom it follows.
    pub fn held(&self) -> Held {
        let state = self.shared.state.lock();
        let end = state.log.last().max(state.log.installed);
        Held { vote: state.log.vote, count: end.map_or(0, |id| id.index + 1) }
    }

    pub fn purged(&self) -> Option<LogId> {
        self.shared.state.lock().log.purged
    }

    /// The file and offset behind the newest entry.
    pub fn tail(&self) -> (PathBuf, u64) {
        let state = self.shared.state.lock();
        let files = self.shared.files.read();
        let position = state.log.positions.back();
        match position
            .and_then(|at| files.get(&at.segment).map(|(path, _)| (path.clone(), at.offset + u64::from(at.len))))
        {
            Some(tail) => tail,
            None => files.last_key_value().map(|(_, (path, _))| (path.clone(), 0)).unwrap_or_default(),
        }
    }

    pub fn segment_bytes(&self) -> u64 {
        self.shared.segment_bytes
    }

    /// Bytes of entries appended since the log was opened.
    pub fn appended_bytes(&self) -> u64 {
        self.shared.appended_bytes.load(Ordering::Relaxed)
    }

    /// Notes durably that a snapshot up to `id` is about to replace the store.
    pub async fn note_installation(&self, id: LogId) -> Result<(), LogError> {
        self.write(Record::Installed(id)).await
    }

    async fn write(&self, record: Record) -> Result<(), LogError> {
        let (done, result) = oneshot::channel();
        self.shared.push(Job::Write(record, done))?;
        match result.await {
            Ok(result) => result,
            Err(_) => Err(self.shared.log_failure()),
        }
    }

    /// An entry; None when the log does not hold it.
    pub fn read(&self, index: u64) -> Result<Option<Entry>, LogError> {
        let position = {
            let state = self.shared.state.lock();
            if let Some(entry) = state.recent(index) {
                return Ok(Some(entry));
            }
            state.log.position(index)
        };
        position.map(|position| self.read_at(index, position)).transpose()
    }

    fn read_at(&self, index: u64, position: Position) -> Result<Entry, LogError> {
        let (path, file) = self.shared.files.read().get(&position.segment).cloned().ok_or_else(|| {
            // Purged between the two looks: openraft does not read what it has let go.
            LogError::Io { path: PathBuf::new(), detail: format!("entry {index} has been purged") }
        })?;
        let mut bytes = vec![0; position.len as usize];
        file.read_at(&mut bytes, position.offset).map_err(|e| LogError::io(&path, e))?;
        let found = record::find(position.segment, &bytes.into());
        let decoded = found.ok_or("a record's checksum does not match".to_string()).and_then(record::Found::decode);
        match decoded {
            Ok(Record::Entry(entry)) if entry.log_id.index == index => Ok(entry),
            Ok(_) => Err(LogError::damaged(&path, position.offset, format!("this is not entry {index}"))),
            Err(detail) => Err(LogError::damaged(&path, position.offset, detail)),
        }
    }
}

impl Drop for Closer {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.queued.notify_one();
    }
}

impl Shared {
    fn push(&self, job: Job) -> Result<(), LogError> {
        let mut queue = self.queue.lock();
        if let Some(failed) = &queue.failed {
            return Err(failed.clone());
        }
        queue.jobs.push(job);
        drop(queue);
        self.queued.notify_one();
        Ok(())
    }

    /// Everything that is queued, as soon as there is something unless nobody `waits`, and what is committed of it and of
    /// all before it; None when the log is closed.
    async fn next_jobs(&self, waits: bool) -> Option<(Vec<Job>, Option<LogId>)> {
        loop {
            {
                let mut queue = self.queue.lock();
                if !queue.jobs.is_empty() || !waits {
                    return Some((std::mem::take(&mut queue.jobs), queue.committed));
                }
                if queue.closed {
                    return None;
                }
            }
            self.queued.notified().await;
        }
    }

    fn fail(&self, error: LogError) {
        let mut queue = self.queue.lock();
        queue.failed = Some(error.clone());
        queue.jobs.clear();
        drop(queue);
        drop(self.written.send_replace(Err(error)));
    }

    fn log_failure(&self) -> LogError {
        let failed = self.queue.lock().failed.clone();
        failed.unwrap_or(LogError::Io { path: PathBuf::new(), detail: "the log is closed".into() })
    }

    fn failure(&self) -> io::Error {
        io::Error::other(self.log_failure())
    }

    fn start(&self, previous_end: u64) -> Start {
        self.state.lock().log.start(previous_end)
    }

    fn count_appended(&self, entries: &[Entry]) {
        let bytes: usize = entries.iter().map(size_of).sum();
        self.appended_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn add_file(&self, segment: &Segment) {
        self.files.write().insert(segment.number, (segment.path.clone(), segment.file.clone()));
    }

    fn remove_file(&self, segment: &Segment) {
        self.files.write().remove(&segment.number);
    }
}

impl Memory {
    fn recent(&self, index: u64) -> Option<Entry> {
        let first = self.recent.front()?.log_id.index;
        self.recent.get(index.checked_sub(first)? as usize).cloned()
    }

    fn push_recent(&mut self, entry: Entry) {
        self.recent_bytes += size_of(&entry);
        self.recent.push_back(entry);
    }

    /// Follows a record that is no entry, among the recent entries too.
    fn follow(&mut self, record: &Record) {
        self.log.follow(record);
        match record {
            Record::Truncate(after) => {
                let end = after.as_ref().map_or(0, |id| id.index + 1);
                while let Some(last) = self.recent.pop_back_if(|entry| entry.log_id.index >= end) {
                    self.recent_bytes -= size_of(&last);
                }
            }
            Record::Purge(upto) => {
                while let Some(first) = self.recent.pop_front_if(|entry| entry.log_id.index <= upto.index) {
                    self.recent_bytes -= size_of(&first);
                }
            }
            _ => {}
        }
    }

    /// Forgets old entries beyond the bound; never one that is not written yet.
    fn evict(&mut self) {
        while self.recent_bytes > RECENT_BYTES
            && let Some(first) = self.recent.front().filter(|entry| entry.log_id.index < self.log.next())
        {
            self.recent_bytes -= size_of(first);
            self.recent.pop_front();
        }
    }
}

fn size_of(entry: &Entry) -> usize {
    std::mem::size_of::<Entry>()
        + match &entry.payload {
            Payload::Normal(command) => command.0.len(),
            Payload::Blank | Payload::Membership(_) => 0,
        }
}

/// The first index of a range, and the one behind its last.
fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(first) => *first,
        Bound::Excluded(before) => before + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last + 1,
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<TypeConfig> for Log {
    async fn try_get_log_entries<R>(&mut self, range: R) -> Result<Vec<Entry>, io::Error>
    where
        R: RangeBounds<u64> + Clone + Debug + openraft::OptionalSend,
    {
        let (start, end) = bounds(&range);
        let mut entries = Vec::new();
        for index in start..end {
            match self.read(index).map_err(io::Error::other)? {
                Some(entry) => entries.push(entry),
                None => break,
            }
        }
        Ok(entries)
    }

    /// What replication sends in one message.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for index in start..end {
            let Some(entry) = self.read(index).map_err(io::Error::other)? else { break };
            bytes += size_of(&entry);
            if bytes > MESSAGE_BYTES && !entries.is_empty() {
                break;
            }
            entries.push(entry);
        }
        Ok(entries)
    }

    /// What is applied: read piece by piece, since after a restart it may be much.
    async fn entries_stream<R>(
        &mut self,
        range: R,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + openraft::OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + openraft::OptionalSend,
    {
        let (start, end) = bounds(&range);
        stream::try_unfold((self.clone(), start), move |(mut log, start)| async move {
            let entries = log.limited_get_log_entries(start, end).await?;
            let next = start + entries.len() as u64;
            Ok::<_, io::Error>((!entries.is_empty()).then(|| (stream::iter(entries.into_iter().map(Ok)), (log, next))))
        })
        .try_flatten()
        .boxed()
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.shared.state.lock().log.vote)
    }
}

impl RaftLogStorage<TypeConfig> for Log {
    type LogReader = Log;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let state = self.shared.state.lock();
        Ok(LogState { last_purged_log_id: state.log.purged, last_log_id: state.log.last() })
    }

    async fn get_log_reader(&mut self) -> Log {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.write(Record::Vote(*vote)).await.map_err(io::Error::other)
    }

    /// Kept in memory and written with the batch of what is queued by now, at the earliest, so that the files never name
    /// an entry as committed that they lack. What is committed is found out anew after a crash; this only saves time.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let mut queue = self.shared.queue.lock();
        queue.committed = queue.committed.max(committed);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.shared.state.lock().log.committed)
    }

    async fn append<I>(&mut self, entries: I, flushed: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + openraft::OptionalSend,
        I::IntoIter: openraft::OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let mut state = self.shared.state.lock();
        entries.iter().for_each(|entry| state.push_recent(entry.clone()));
        drop(state);
        if planted!(AnswerBeforeWrite) {
            if let Some(last) = entries.last() {
                drop(self.shared.written.send_replace(Ok(last.log_id.index + 1)));
            }
            flushed.io_completed(Ok(()));
            return self.shared.push(Job::Append(entries, IOFlushed::noop())).map_err(io::Error::other);
        }
        self.shared.push(Job::Append(entries, flushed)).map_err(io::Error::other)
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        self.write(Record::Truncate(last)).await.map_err(io::Error::other)
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        self.write(Record::Purge(upto)).await.map_err(io::Error::other)
    }
}
