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

use std::{
    sync::{Arc, Weak},
    thread,
};

use parking_lot::{Condvar, Mutex};
use proto::Revision;
use rocksdb::WriteBatch;

use crate::{
    db::{DATA, Db, EVENTS, META},
    error::StorageError,
    keys,
    record::{EventRecord, Kind},
    store::meta,
};

/// Versions removed in one write.
const STEP_VERSIONS: usize = 1000;

/// Owns the thread, which ends when this is dropped.
pub(crate) struct Compactor {
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

struct Shared {
    work: Mutex<Work>,
    changed: Condvar,
}

struct Work {
    /// Weak while there is nothing to do, so that a replaced store is closed.
    db: Weak<Db>,
    finished: i64,
    target: i64,
    stop: bool,
    failed: Option<StorageError>,
}

impl Compactor {
    pub fn start(db: Arc<Db>, finished: i64, target: i64) -> Self {
        let work = Work { db: Arc::downgrade(&db), finished, target, stop: false, failed: None };
        let shared = Arc::new(Shared { work: Mutex::new(work), changed: Condvar::new() });
        let of_thread = shared.clone();
        let thread = thread::Builder::new()
            .name("compaction".into())
            .spawn(move || of_thread.run())
            .expect("a thread can be started while the store is opened");
        Compactor { shared, thread: Some(thread) }
    }

    /// Goes on up to `revision`.
    pub fn compact(&self, revision: i64) {
        self.shared.work.lock().target = revision;
        self.shared.changed.notify_all();
    }

    /// Works on another store from now on.
    pub fn replace(&self, db: &Arc<Db>, finished: i64, target: i64) {
        let mut work = self.shared.work.lock();
        (work.db, work.finished, work.target) = (Arc::downgrade(db), finished, target);
        self.shared.changed.notify_all();
    }

    /// The revision whose compaction was finished last.
    pub fn finished(&self) -> i64 {
        self.shared.work.lock().finished
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
            let (db, finished, target) = {
                let mut work = self.work.lock();
                while !work.stop && (work.finished >= work.target || work.failed.is_some()) {
                    self.changed.wait(&mut work);
                }
                if work.stop {
                    return;
                }
                let Some(db) = work.db.upgrade() else { return };
                (db, work.finished, work.target)
            };
            let result = self.remove(&db, finished, target);
            let mut work = self.work.lock();
            if work.db.as_ptr() == Arc::as_ptr(&db) {
                match result {
                    Ok(true) => work.finished = target,
                    Ok(false) => {}
                    Err(error) => work.failed = Some(error),
                }
            }
            self.changed.notify_all();
        }
    }

    /// Removes what lies between two compactions; false when it was told to stop.
    fn remove(&self, db: &Arc<Db>, finished: i64, target: i64) -> Result<bool, StorageError> {
        let mut step = WriteBatch::default();
        let mut going_on = true;
        db.each_event(finished, target, |at, event| {
            for_each_removed(at, &event, finished, target, |revision| {
                step.delete_cf(db.cf(DATA), keys::data_key(&event.key, revision));
                step.delete_cf(db.cf(EVENTS), keys::event_key(revision));
            });
            if step.len() >= 2 * STEP_VERSIONS {
                db.write(std::mem::take(&mut step))?;
                let work = self.work.lock();
                going_on = !work.stop && work.db.as_ptr() == Arc::as_ptr(db);
            }
            Ok(going_on)
        })?;
        if going_on {
            step.put_cf(db.cf(META), meta::COMPACTION_FINISHED, target.to_be_bytes());
            db.write(step)?;
        }
        Ok(going_on)
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
    if event.kind == Kind::Delete && at.main < target {
        remove(at);
    }
}
