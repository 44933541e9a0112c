//! Compaction: forgets what only revisions below the compacted one can see.
//!
//! Applying a compaction names its revision, from when on readers are refused. A thread then follows `events` from the
//! last compaction to this one: each event names the version it superseded, which goes; a tombstone goes with it, but
//! one at the very revision stays, because a watcher may begin there, until the next compaction. The work is
//! proportional to what changed in between, and is done in steps of a bounded size.
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
    thread,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::{Condvar, Mutex};
use proto::Revision;
use rocksdb::WriteBatch;

use crate::{
    db::{DATA, Db, EVENTS, META},
    error::{ReadError, StorageError},
    event::Observer,
    hash::{self, HashKv},
    keys, planted,
    record::{EventRecord, Kind},
    stats::{self, Counters},
    store::{View, meta},
};

/// Versions removed in one write, unless told otherwise.
const STEP_VERSIONS: usize = 1000;
/// Hashes that are kept, and compactions that wait for theirs. (etcd: `mvcc/hash.go`, hashStorageMaxSize.)
const HASHES_MAX: usize = 10;

/// Owns the thread, which ends when this is dropped.
pub(crate) struct Compactor {
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

struct Shared {
    work: Mutex<Work>,
    changed: Condvar,
    keeps_hashes: AtomicBool,
    pace: Mutex<Pace>,
    observer: Arc<dyn Observer>,
    counters: Arc<Counters>,
}

/// How fast a compaction goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Versions removed in one write.
    pub step_versions: usize,
    /// After each write.
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
            changed: Condvar::new(),
            keeps_hashes: AtomicBool::new(false),
            pace: Mutex::new(Pace { step_versions: STEP_VERSIONS, pause: Duration::ZERO }),
            observer,
            counters,
        };
        let shared = Arc::new(shared);
        let of_thread = shared.clone();
        let thread = thread::Builder::new()
            .name("compaction".into())
            .spawn(move || of_thread.run())
            .expect("a thread can be started while the store is opened");
        Compactor { shared, thread: Some(thread) }
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
        self.shared.changed.notify_all();
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
        self.shared.changed.notify_all();
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

    /// Blocks until the compaction at `revision` is finished.
    pub fn wait(&self, revision: i64) -> Result<(), StorageError> {
        let mut work = self.shared.work.lock();
        while work.finished < revision && work.failed.is_none() && !work.stop {
            self.shared.changed.wait(&mut work);
        }
        work.failed.clone().map_or(Ok(()), Err)
    }
}

impl Drop for Compactor {
    fn drop(&mut self) {
        self.shared.work.lock().stop = true;
        self.shared.changed.notify_all();
        // The last reader may be dropped by the thread itself.
        if let Some(thread) = self.thread.take().filter(|thread| thread.thread().id() != thread::current().id()) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        loop {
            let (db, finished, target, before) = {
                let mut work = self.work.lock();
                while !work.stop && (work.finished >= work.target || work.failed.is_some()) {
                    self.changed.wait(&mut work);
                }
                if work.stop {
                    return;
                }
                let Some(db) = work.db.upgrade() else { return };
                let (target, before) = match work.to_hash.pop_front() {
                    Some((revision, before)) => (revision, Some(before)),
                    None => (work.target, None),
                };
                (db, work.finished, target, before)
            };
            let result = match before {
                Some(before) => self.hash(&db, &before, finished, target),
                None => Ok(()),
            };
            let result = result.and_then(|()| self.remove(&db, finished, target));
            let mut work = self.work.lock();
            if work.is_of(&db) {
                match result {
                    Ok(true) => work.finished = target,
                    Ok(false) => {}
                    Err(error) => work.failed = Some(error),
                }
            }
            self.changed.notify_all();
        }
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
    fn remove(&self, db: &Arc<Db>, finished: i64, target: i64) -> Result<bool, StorageError> {
        let began = Instant::now();
        let mut step = WriteBatch::default();
        let (mut going_on, mut removed) = (true, 0);
        let pace = *self.pace.lock();
        let last = target + i64::from(planted!(CompactionOffByOne));
        db.each_event(finished, last, |at, event| {
            for_each_removed(at, &event, finished, target, |revision| {
                step.delete_cf(db.cf(DATA), keys::data_key(&event.key, revision));
                step.delete_cf(db.cf(EVENTS), keys::event_key(revision));
                removed += 1;
            });
            if step.len() >= 2 * pace.step_versions {
                self.write(db, std::mem::take(&mut step))?;
                self.pause(pace.pause);
                going_on = self.is_wanted(db);
            }
            Ok(going_on)
        })?;
        if going_on {
            step.put_cf(db.cf(META), meta::COMPACTION_FINISHED, target.to_be_bytes());
            self.write(db, step)?;
        }
        self.counters.compacted_versions.fetch_add(removed, Relaxed);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.counters.last_compaction.store(now.as_secs() as i64, Relaxed);
        self.observer.took(stats::Work::Compaction, began.elapsed());
        Ok(going_on)
    }

    /// Ends early when the store is closed.
    fn pause(&self, pause: Duration) {
        let end = Instant::now() + pause;
        let mut work = self.work.lock();
        while !pause.is_zero() && !work.stop && !self.changed.wait_until(&mut work, end).timed_out() {}
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
