//! Compaction: forgets what only revisions below the compacted one can see.
//!
//! Applying a compaction names its revision, from when on readers are refused. A thread then follows `events` from the
//! last compaction to this one: each event names the version it superseded, which goes; a tombstone goes with it, but
//! one at the very revision stays, because a watcher may begin there, until the next compaction. The work is
//! proportional to what changed in between, and is done in steps of a bounded size, with a rest behind each: whoever
//! writes meanwhile waits for one step at most, and gets half of the time.
//!
//! ```text
//! events    5 put a    6 put a (superseded 5)    7 delete a (superseded 6)    8 put b     compacted: 8
//! removed   5          6                         7
//! ```
//!
//! Where members compare what they had at compactions, the hash at each is computed before anything is removed. That
//! reads the whole store, so it is done only when asked for ([`crate::Store::keep_compaction_hashes`]).

use std::{
    collections::VecDeque,
    sync::{
        Arc, Weak,
        atomic::{
            AtomicBool,
            Ordering::{self, Relaxed},
        },
    },
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use proto::Revision;
use rocksdb::WriteBatch;
use tokio::sync::Notify;

use crate::{
    db::{DATA, Db, EVENTS, META},
    error::{ReadError, StorageError},
    event::Observer,
    hash::{self, HashKv},
    host::{self, Worker},
    keys, planted,
    record::{EventRecord, Kind},
    stats::{self, Counters},
    store::{View, meta},
};

/// Versions removed in one write at most, unless told less: what is applied waits as long as a write takes.
const STEP_VERSIONS: usize = 100;
/// Hashes that are kept, and compactions that wait for theirs. (etcd: `mvcc/hash.go`, hashStorageMaxSize.)
const HASHES_MAX: usize = 10;

/// A pause is slept through in pieces of this length, so that it ends early when the store is closed.
const NAP: Duration = Duration::from_millis(10);

/// Owns the thread, which ends when this is dropped.
pub(crate) struct Compactor {
    shared: Arc<Shared>,
    _worker: Worker,
}

struct Shared {
    work: Mutex<Work>,
    /// There is something to do, or to stop for.
    wanted: Notify,
    /// A compaction has ended.
    ended: Notify,
    keeps_hashes: AtomicBool,
    pace: Mutex<Pace>,
    observer: Arc<dyn Observer>,
    counters: Arc<Counters>,
}

/// How fast a compaction goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Versions removed in one write, at most.
    pub step_versions: usize,
    /// After each write; 0 stands for as long as the step took.
    pub pause: Duration,
}

struct Work {
    /// Weak while there is nothing to do, so that a replaced store is closed.
    db: Weak<Db>,
    finished: i64,
    target: i64,
    /// Compactions up to `target` that are to be hashed, each with the state before it.
    to_hash: VecDeque<(i64, Arc<View>)>,
    /// In order of revisions.
    hashes: VecDeque<HashKv>,
    stop: bool,
    failed: Option<StorageError>,
}

/// A compaction that is due.
struct Next {
    db: Arc<Db>,
    finished: i64,
    target: i64,
    before: Option<Arc<View>>,
}

impl Work {
    fn is_of(&self, db: &Arc<Db>) -> bool {
        self.db.as_ptr() == Arc::as_ptr(db)
    }
}

impl Compactor {
    pub fn start(
        db: Arc<Db>,
        finished: i64,
        target: i64,
        observer: Arc<dyn Observer>,
        counters: Arc<Counters>,
    ) -> Self {
        let work = Work {
            db: Arc::downgrade(&db),
            finished,
            target,
            to_hash: VecDeque::new(),
            hashes: VecDeque::new(),
            stop: false,
            failed: None,
        };
        let shared = Shared {
            work: Mutex::new(work),
            wanted: Notify::new(),
            ended: Notify::new(),
            keeps_hashes: AtomicBool::new(false),
            pace: Mutex::new(Pace { step_versions: STEP_VERSIONS, pause: Duration::ZERO }),
            observer,
            counters,
        };
        let shared = Arc::new(shared);
        let of_thread = shared.clone();
        let worker = host::worker("compaction", async move { of_thread.run().await })
            .expect("a thread can be started while the store is opened");
        Compactor { shared, _worker: worker }
    }

    /// Goes on up to `revision`; `before` is the state that a hash of this compaction is made of.
    pub fn compact(&self, revision: i64, before: Option<Arc<View>>) {
        let mut work = self.shared.work.lock();
        work.target = revision;
        if let Some(before) = before {
            // One that does not get its hash is not compared.
            if work.to_hash.len() == HASHES_MAX {
                work.to_hash.pop_front();
            }
            work.to_hash.push_back((revision, before));
        }
        self.shared.wanted.notify_one();
    }

    pub fn keep_hashes(&self) {
        self.shared.keeps_hashes.store(true, Ordering::Relaxed);
    }

    pub fn keeps_hashes(&self) -> bool {
        self.shared.keeps_hashes.load(Ordering::Relaxed)
    }

    /// The hashes of the newest compactions, in order of revisions. `revision` in them has no meaning.
    pub fn hashes(&self) -> Vec<HashKv> {
        self.shared.work.lock().hashes.iter().copied().collect()
    }

    /// Works on another store from now on.
    pub fn replace(&self, db: &Arc<Db>, finished: i64, target: i64) {
        let mut work = self.shared.work.lock();
        (work.db, work.finished, work.target) = (Arc::downgrade(db), finished, target);
        work.to_hash.clear();
        self.shared.wanted.notify_one();
    }

    /// The revision whose compaction was finished last.
    pub fn finished(&self) -> i64 {
        self.shared.work.lock().finished
    }

    /// From the next compaction on.
    pub fn set_pace(&self, pace: Pace) {
        *self.shared.pace.lock() = pace;
    }

    /// The failure that ended compaction, if one did.
    pub fn check(&self) -> Result<(), StorageError> {
        self.shared.work.lock().failed.clone().map_or(Ok(()), Err)
    }

    /// Waits until the compaction at `revision` is finished.
    pub async fn wait(&self, revision: i64) -> Result<(), StorageError> {
        loop {
            let ended = self.shared.ended.notified();
            {
                let work = self.shared.work.lock();
                if work.finished >= revision || work.failed.is_some() || work.stop {
                    return work.failed.clone().map_or(Ok(()), Err);
                }
            }
            ended.await;
        }
    }
}

impl Drop for Compactor {
    fn drop(&mut self) {
        self.shared.work.lock().stop = true;
        self.shared.wanted.notify_one();
    }
}

impl Shared {
    async fn run(&self) {
        while !self.work.lock().stop {
            let Some(Next { db, finished, target, before }) = self.next() else {
                self.wanted.notified().await;
                continue;
            };
            let hashed = match before {
                Some(before) => self.hash(&db, &before, finished, target),
                None => Ok(()),
            };
            let result = match hashed {
                Ok(()) => self.remove(&db, finished, target).await,
                Err(error) => Err(error),
            };
            let mut work = self.work.lock();
            if work.is_of(&db) {
                match result {
                    Ok(true) => work.finished = target,
                    Ok(false) => {}
                    Err(error) => work.failed = Some(error),
                }
            }
            drop(work);
            self.ended.notify_waiters();
        }
    }

    /// What is to be done now, if anything is.
    fn next(&self) -> Option<Next> {
        let mut work = self.work.lock();
        if work.stop || work.finished >= work.target || work.failed.is_some() {
            return None;
        }
        let db = work.db.upgrade()?;
        let (target, before) = match work.to_hash.pop_front() {
            Some((revision, before)) => (revision, Some(before)),
            None => (work.target, None),
        };
        Some(Next { db, finished: work.finished, target, before })
    }

    fn is_wanted(&self, db: &Arc<Db>) -> bool {
        let work = self.work.lock();
        !work.stop && work.is_of(db)
    }

    /// Keeps the hash at a compaction, unless told to stop.
    fn hash(&self, db: &Arc<Db>, before: &View, finished: i64, target: i64) -> Result<(), StorageError> {
        let hash = match hash::of_versions(before, finished, target, || self.is_wanted(db)) {
            Ok(Some(hash)) => hash,
            Ok(None) => return Ok(()),
            Err(ReadError::Local(error)) => return Err(error),
            Err(ReadError::Request(refusal)) => unreachable!("a compaction at an unreadable revision: {refusal}"),
        };
        let hash = HashKv { hash, revision: target, hash_revision: target, compact_revision: before.compacted };
        let mut work = self.work.lock();
        if work.hashes.len() == HASHES_MAX {
            work.hashes.pop_front();
        }
        work.hashes.push_back(hash);
        Ok(())
    }

    /// Removes what lies between two compactions; false when it was told to stop.
    async fn remove(&self, db: &Arc<Db>, finished: i64, target: i64) -> Result<bool, StorageError> {
        let began = Instant::now();
        let pace = *self.pace.lock();
        let mut from = Some(Revision::new(finished.max(0), 0));
        while let Some(at) = from {
            let step_began = host::now();
            let (mut step, next) = self.step(db, at, finished, target, pace.step_versions.min(STEP_VERSIONS))?;
            if next.is_none() {
                step.put_cf(db.cf(META), meta::COMPACTION_FINISHED, target.to_be_bytes());
            }
            self.write(db, step)?;
            from = next;
            if from.is_some() {
                let took = host::now().saturating_duration_since(step_began);
                self.pause(db, if pace.pause.is_zero() { took } else { pace.pause }).await;
                if !self.is_wanted(db) {
                    return Ok(false);
                }
            }
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.counters.last_compaction.store(now.as_secs() as i64, Relaxed);
        self.observer.took(stats::Work::Compaction, began.elapsed());
        Ok(true)
    }

    /// What the events from `from` on let go, up to about `versions` of them, and the event that is next; None when
    /// the target is reached.
    fn step(
        &self,
        db: &Db,
        from: Revision,
        finished: i64,
        target: i64,
        versions: usize,
    ) -> Result<(WriteBatch, Option<Revision>), StorageError> {
        let (mut step, mut versions_at, mut removed, mut next) = (WriteBatch::default(), Vec::new(), 0, None);
        let last = target + i64::from(planted!(CompactionOffByOne));
        db.each_event_from(from, last, |at, event| {
            if versions_at.len() >= versions {
                next = Some(at);
                return Ok(false);
            }
            for_each_removed(at, &event, finished, target, |revision| {
                versions_at.push(keys::data_key(&event.key, revision));
                step.delete_cf(db.cf(EVENTS), keys::event_key(revision));
                removed += 1;
            });
            Ok(true)
        })?;
        // In order, as RocksDB takes them best.
        versions_at.sort_unstable();
        versions_at.iter().for_each(|at| step.delete_cf(db.cf(DATA), at));
        self.counters.compacted_versions.fetch_add(removed, Relaxed);
        Ok((step, next))
    }

    /// Ends early when there is no need to go on.
    async fn pause(&self, db: &Arc<Db>, pause: Duration) {
        let mut rest = pause;
        loop {
            host::pause(rest.min(NAP)).await;
            rest = rest.saturating_sub(NAP);
            if rest.is_zero() || !self.is_wanted(db) {
                return;
            }
        }
    }

    fn write(&self, db: &Db, step: WriteBatch) -> Result<(), StorageError> {
        let began = Instant::now();
        db.write(step)?;
        self.observer.took(stats::Work::CompactionStep, began.elapsed());
        Ok(())
    }
}

/// What the event at `at` lets a compaction at `target` remove, when one at `finished` has been there before.
pub(crate) fn for_each_removed(
    at: Revision,
    event: &EventRecord,
    finished: i64,
    target: i64,
    mut remove: impl FnMut(Revision),
) {
    if let Some(prev) = event.prev
        && at.main > finished
    {
        remove(prev);
    }
    if event.kind == Kind::Delete && (at.main < target || planted!(DeleteEventCompacted)) {
        remove(at);
    }
}
