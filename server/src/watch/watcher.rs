//! One watch of a client.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicI64, Ordering::SeqCst},
};

use proto::{KeyRange, mvccpb::event::EventType};
use storage::planted;

use super::{outbox::Outbox, recent::SharedEvent};

/// The watch id that stands for all watches of a stream, and for none.
pub const NO_WATCH_ID: i64 = -1;

/// Kinds of events that a client does not want.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Filter {
    pub no_put: bool,
    pub no_delete: bool,
}

impl Filter {
    pub fn passes(self, event: &SharedEvent) -> bool {
        match event.event.kind {
            EventType::Put => !self.no_put || planted!(FilterIgnored),
            EventType::Delete => !self.no_delete,
        }
    }
}

/// What a client asks for.
#[derive(Debug, Clone)]
pub struct Watch {
    /// 0 lets the stream choose.
    pub id: i64,
    pub range: KeyRange,
    /// 0: from now on.
    pub start: i64,
    pub filter: Filter,
    pub previous: bool,
    pub fragment: bool,
    pub progress: bool,
}

#[derive(Debug)]
pub struct Watcher {
    /// Unique in the hub; in order of creation.
    pub serial: u64,
    /// With the id that was chosen.
    pub watch: Watch,
    pub outbox: Arc<Outbox>,
    /// What it has not seen yet begins here, or where the hub has delivered to when that is further. Changed by who
    /// serves it: the hub while it is synced, its stream while it lags.
    next: AtomicI64,
    /// Changed under the hub's lock only.
    state: SyncState,
    /// Whether it was sent events since progress was last due.
    active: AtomicBool,
}

#[derive(Debug, Default)]
struct SyncState {
    synced: AtomicBool,
    canceled: AtomicBool,
}

impl Watcher {
    pub fn new(serial: u64, watch: Watch, outbox: Arc<Outbox>, next: i64) -> Arc<Self> {
        let (next, active) = (AtomicI64::new(next), AtomicBool::new(false));
        Arc::new(Watcher { serial, watch, outbox, next, state: SyncState::default(), active })
    }

    /// Of its stream, and its own.
    pub fn serials(&self) -> (u64, u64) {
        (self.outbox.serial, self.serial)
    }

    pub fn next(&self) -> i64 {
        self.next.load(SeqCst)
    }

    /// Everything before `revision` has been seen.
    pub fn advance(&self, revision: i64) {
        self.next.fetch_max(revision, SeqCst);
    }

    /// For a planted bug.
    pub fn go_back(&self, revision: i64) {
        self.next.store(revision, SeqCst);
    }

    pub fn is_synced(&self) -> bool {
        self.state.synced.load(SeqCst)
    }

    pub fn set_synced(&self, synced: bool) {
        self.state.synced.store(synced, SeqCst);
    }

    pub fn is_canceled(&self) -> bool {
        self.state.canceled.load(SeqCst)
    }

    pub fn cancel(&self) {
        self.state.canceled.store(true, SeqCst);
    }

    pub fn sent_events(&self) {
        self.active.store(true, SeqCst);
    }

    /// Whether it was sent events since the last call.
    pub fn take_active(&self) -> bool {
        self.active.swap(false, SeqCst)
    }
}
