//! Tells the watches, the lease clock, the tokens and the metrics what was applied.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use storage::{Change, LogEntry, Work};

use crate::{auth::Tokens, backup::Tap, console::Writes, lease::Clock, metrics::Metrics, watch::Hub};

/// Keeps none of those that hold the store, which holds this.
pub struct Observer {
    hub: Weak<Hub>,
    clock: Weak<Clock>,
    tokens: Weak<Tokens>,
    metrics: Weak<Metrics>,
    writes: Option<Arc<Writes>>,
    /// Where backups are kept.
    tap: Option<Arc<Tap>>,
}

impl Observer {
    pub fn new(hub: &Arc<Hub>, clock: &Arc<Clock>, tokens: &Arc<Tokens>, metrics: &Arc<Metrics>) -> Self {
        Observer {
            hub: Arc::downgrade(hub),
            clock: Arc::downgrade(clock),
            tokens: Arc::downgrade(tokens),
            metrics: Arc::downgrade(metrics),
            writes: None,
            tap: None,
        }
    }

    /// Counts written keys there, too.
    pub fn with_writes(self, writes: Option<Arc<Writes>>) -> Self {
        Observer { writes, ..self }
    }

    /// Tells backups, too.
    pub fn with_tap(self, tap: Option<Arc<Tap>>) -> Self {
        Observer { tap, ..self }
    }
}

impl storage::Observer for Observer {
    fn applied(&self, change: Change) {
        if let Some(tokens) = self.tokens.upgrade() {
            tokens.applied(&change.auth);
        }
        if let Some(metrics) = self.metrics.upgrade() {
            change.leases.iter().for_each(|lease| metrics.store.lease_changed(lease));
        }
        if let Some(writes) = &self.writes {
            writes.count(change.events.iter().map(|event| &event.kv.key));
        }
        if let Some(clock) = self.clock.upgrade() {
            clock.applied(&change.leases);
        }
        if let Some(hub) = self.hub.upgrade() {
            hub.applied(change);
        }
    }

    fn logged(&self, entries: &[LogEntry], revisions: &[i64]) {
        if let Some(tap) = &self.tap {
            tap.logged(entries, revisions);
        }
    }

    fn restored(&self, revision: i64, compacted: i64) {
        if let Some(tap) = &self.tap {
            tap.restored();
        }
        if let Some(tokens) = self.tokens.upgrade() {
            tokens.restored();
        }
        if let Some(clock) = self.clock.upgrade() {
            clock.restored();
        }
        if let Some(hub) = self.hub.upgrade() {
            hub.restored(revision, compacted);
        }
    }

    fn took(&self, work: Work, time: Duration) {
        if let Some(metrics) = self.metrics.upgrade() {
            metrics.took(work, time);
        }
    }
}
