//! Sends the leader's heartbeats.
//!
//! openraft has one setting for how often one is sent and for how long its answer, and the beginning of any stream of
//! entries, is waited for. A member may be farther away than etcd's interval, of which at least five are in an election
//! timeout (server/embed/config.go): openraft's setting is the wait, and the interval is kept here.

use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::types::Raft;

/// Ends with Raft.
pub async fn send(raft: Raft, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // Of a member that does not lead, openraft sends none.
        if raft.trigger().heartbeat().await.is_err() {
            return;
        }
    }
}
