//! Tells the watches and the lease clock what was applied.

use std::sync::Arc;

use storage::Change;

use crate::{lease::Clock, watch::Hub};

pub struct Observer {
    hub: Arc<Hub>,
    clock: Arc<Clock>,
}

impl Observer {
    pub fn new(hub: Arc<Hub>, clock: Arc<Clock>) -> Self {
        Observer { hub, clock }
    }
}

impl storage::Observer for Observer {
    fn applied(&self, change: Change) {
        self.clock.applied(&change.leases);
        self.hub.applied(change);
    }

    fn restored(&self, revision: i64, compacted: i64) {
        self.clock.restored();
        self.hub.restored(revision, compacted);
    }
}
