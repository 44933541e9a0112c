//! What everything in a simulation shares: time, the oracle, the trace, the first thing that went wrong, and markers.

use std::{
    collections::BTreeMap,
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use super::oracle::Oracle;

pub struct World {
    began: Instant,
    oracle: Mutex<Oracle>,
    trace: Mutex<Trace>,
    violation: Mutex<Option<String>>,
    markers: Mutex<BTreeMap<&'static str, u64>>,
}

/// A hash over all that happened, so that two runs of a seed can be compared; told as lines to who wants to read it.
struct Trace {
    hash: DefaultHasher,
    lines: u64,
    is_told: bool,
}

impl World {
    pub fn new(tells: bool) -> Arc<World> {
        Arc::new(World {
            began: Instant::now(),
            oracle: Mutex::new(Oracle::new()),
            // The default keys are fixed: the same in every process.
            trace: Mutex::new(Trace { hash: DefaultHasher::new(), lines: 0, is_told: tells }),
            violation: Mutex::default(),
            markers: Mutex::default(),
        })
    }

    /// Since the simulation began.
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    pub fn oracle(&self) -> MutexGuard<'_, Oracle> {
        self.oracle.lock()
    }

    /// Notes that something happened.
    pub fn trace(&self, what: fmt::Arguments<'_>) {
        let now = self.now();
        let trace = &mut *self.trace.lock();
        let line = what.to_string();
        (now, &line).hash(&mut trace.hash);
        trace.lines += 1;
        if trace.is_told {
            println!("{:12.3} {line}", now.as_secs_f64());
        }
    }

    /// The hash of all that happened until now, and how much that was.
    pub fn traced(&self) -> (u64, u64) {
        let trace = self.trace.lock();
        (trace.hash.finish(), trace.lines)
    }

    /// Something that must not happen did. The first one counts.
    pub fn violated(&self, what: String) {
        self.trace(format_args!("VIOLATION {what}"));
        self.violation.lock().get_or_insert_with(|| format!("at {:.3} s: {what}", self.now().as_secs_f64()));
    }

    pub fn check(&self, checked: Result<(), String>) {
        if let Err(what) = checked {
            self.violated(what);
        }
    }

    pub fn violation(&self) -> Option<String> {
        self.violation.lock().clone()
    }

    /// Something that a run is to have seen has happened.
    pub fn mark(&self, marker: &'static str) {
        self.mark_times(marker, 1);
    }

    pub fn mark_times(&self, marker: &'static str, times: u64) {
        *self.markers.lock().entry(marker).or_default() += times;
    }

    pub fn markers(&self) -> BTreeMap<&'static str, u64> {
        self.markers.lock().clone()
    }
}
