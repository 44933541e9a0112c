//! Tells the watches, the lease clock and the tokens what was applied.

use std::sync::Arc;

use storage::Change;

use crate::{auth::Tokens, lease::Clock, watch::Hub};

pub struct Observer {
    hub: Arc<Hub>,
    clock: Arc<Clock>,
    tokens: Arc<Tokens>,
}

impl Observer {
    pub fn new(hub: Arc<Hub>, clock: Arc<Clock>, tokens: Arc<Tokens>) -> Self {
        Observer { hub, clock, tokens }
    }
}

impl storage::Observer for Observer {
    fn applied(&self, change: Change) {
        self.tokens.applied(&change.auth);
        self.clock.applied(&change.leases);
        self.hub.applied(change);
    }

    fn restored(&self, revision: i64, compacted: i64) {
        self.tokens.restored();
        self.clock.restored();
        self.hub.restored(revision, compacted);
    }
}
