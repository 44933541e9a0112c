//! Takes down what happens in a run, in the order of time.

use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
    time::Instant,
};

use parking_lot::Mutex;

use jepsen::check::history::{
    Answer, Entry, Event, FaultNote, History, ListOp, RegisterOp, Request, RunNote, WatchNote, WatchSeen,
};

/// What the witness is in the place of a workload. It belongs to all.
pub const WITNESS: &str = "witness";
/// The process that stands for the run and its nemesis in a history.
const RUN: u64 = 0;

/// Whether an entry shows that a quorum was there: what is merely read may come from one member.
pub fn is_acknowledged_write(event: &Event) -> bool {
    let Event::Ok(response) = event else { return false };
    match &response.answer {
        Answer::Append { ops } => ops.iter().any(|op| matches!(op, ListOp::Append { .. })),
        Answer::Registers { ops } => ops.iter().any(|op| matches!(op, RegisterOp::Write { .. })),
        Answer::Put { .. } | Answer::DeleteRange { .. } | Answer::Txn { .. } | Answer::LeaseGrant { .. } => true,
        _ => false,
    }
}

pub struct Recorder {
    begin: Instant,
    history: Mutex<History>,
    next_process: AtomicU64,
    next_watcher: AtomicU64,
    next_lease: AtomicI64,
    next_value: AtomicU64,
    /// The highest revision that anyone was told.
    revision: AtomicI64,
    /// The highest revision that anyone asked to compact at.
    compacted: AtomicI64,
    /// The revision up to which the witness has seen everything.
    witnessed: AtomicI64,
    /// When a write last succeeded, in nanoseconds since the begin.
    last_success_ns: AtomicU64,
}

impl Recorder {
    pub fn new() -> Recorder {
        Recorder {
            begin: Instant::now(),
            history: Mutex::default(),
            next_process: AtomicU64::new(RUN + 1),
            next_watcher: AtomicU64::new(1),
            next_lease: AtomicI64::new(1),
            next_value: AtomicU64::new(1),
            revision: AtomicI64::new(1),
            compacted: AtomicI64::new(1),
            witnessed: AtomicI64::new(1),
            last_success_ns: AtomicU64::new(0),
        }
    }

    /// A process of a workload that nobody was before.
    pub fn process(&self, workload: &'static str) -> u64 {
        let process = self.next_process.fetch_add(1, Ordering::Relaxed);
        self.note(process, None, Event::Run(RunNote::Process { workload: workload.to_owned() }));
        process
    }

    pub fn watcher(&self) -> u64 {
        self.next_watcher.fetch_add(1, Ordering::Relaxed)
    }

    /// A lease's id that nobody asked for before.
    pub fn lease(&self) -> i64 {
        self.next_lease.fetch_add(1, Ordering::Relaxed)
    }

    /// A number that is written nowhere else in the run.
    pub fn value(&self) -> u64 {
        self.next_value.fetch_add(1, Ordering::Relaxed)
    }

    /// The highest revision that anyone was told.
    pub fn revision(&self) -> i64 {
        self.revision.load(Ordering::Relaxed)
    }

    /// The highest revision that anyone asked to compact at.
    pub fn compacted(&self) -> i64 {
        self.compacted.load(Ordering::Relaxed)
    }

    pub fn witnessed(&self) -> i64 {
        self.witnessed.load(Ordering::Relaxed)
    }

    pub fn set_witnessed(&self, revision: i64) {
        self.witnessed.fetch_max(revision, Ordering::Relaxed);
    }

    pub fn elapsed_ns(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_nanos()).expect("a run is shorter than 500 years")
    }

    /// Time since the last write of any process that succeeded.
    pub fn silence_ns(&self) -> u64 {
        self.elapsed_ns().saturating_sub(self.last_success_ns.load(Ordering::Relaxed))
    }

    pub fn note(&self, process: u64, node: Option<&str>, event: Event) {
        if let Event::Ok(response) = &event {
            self.revision.fetch_max(response.header.revision, Ordering::Relaxed);
        }
        if let Event::Invoke(Request::Compact { revision }) = &event {
            self.compacted.fetch_max(*revision, Ordering::Relaxed);
        }
        let node = node.map(str::to_owned);
        let mut history = self.history.lock();
        // The clock is read under the lock, so that entries are in the order of time.
        let time_ns = self.elapsed_ns();
        if is_acknowledged_write(&event) {
            self.last_success_ns.store(time_ns, Ordering::Relaxed);
        }
        history.push(Entry { time_ns, process, node, event });
    }

    pub fn watch(&self, process: u64, node: Option<&str>, watcher: u64, seen: WatchSeen) {
        self.note(process, node, Event::Watch(WatchNote { watcher, seen }));
    }

    pub fn fault(&self, fault: FaultNote) {
        self.note(RUN, None, Event::Fault(fault));
    }

    pub fn run(&self, note: RunNote) {
        self.note(RUN, None, Event::Run(note));
    }

    /// All that was taken down so far, of which nothing is kept.
    pub fn take(&self) -> History {
        std::mem::take(&mut *self.history.lock())
    }
}
