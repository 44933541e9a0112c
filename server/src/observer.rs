//! Tells the watches, the lease clock, the tokens and the metrics what was applied.

use std::{sync::Arc, time::Duration};

use storage::{Change, Work};

use crate::{auth::Tokens, lease::Clock, metrics::Metrics, watch::Hub};

pub struct Observer {
    hub: Arc<Hub>,
    clock: Arc<Clock>,
    tokens: Arc<Tokens>,
    metrics: Arc<Metrics>,
}

impl Observer {
    pub fn new(hub: Arc<Hub>, clock: Arc<Clock>, tokens: Arc<Tokens>, metrics: Arc<Metrics>) -> Self {
        Observer { hub, clock, tokens, metrics }
    }
}

impl storage::Observer for Observer {
    fn applied(&self, change: Change) {
        self.tokens.applied(&change.auth);
        change.leases.iter().for_each(|lease| self.metrics.store.lease_changed(lease));
        self.clock.applied(&change.leases);
        self.hub.applied(change);
    }

    fn restored(&self, revision: i64, compacted: i64) {
        self.tokens.restored();
        self.clock.restored();
        self.hub.restored(revision, compacted);
    }

    fn took(&self, work: Work, time: Duration) {
        self.metrics.took(work, time);
    }
}
