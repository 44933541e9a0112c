//! How a member learns that it has been removed.
//!
//! The leader sends nothing more to a member once its removal is in the log, so that the member rarely sees the entry.
//! What it sees is silence; then it asks the others. (etcd's members find out from the refusals of others, too:
//! `api/rafthttp`, "the member has been permanently removed from the cluster".)

use std::{sync::Arc, time::Duration};

use openraft::async_runtime::WatchReceiver as _;
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};

use crate::{
    network::client::Peers,
    roster::Roster,
    types::{Peer, Raft},
};

/// When this member heard from a leader last. Clones share it.
#[derive(Clone)]
pub struct Heard(Arc<Mutex<Instant>>);

impl Heard {
    pub fn now() -> Heard {
        Heard(Arc::new(Mutex::new(Instant::now())))
    }

    pub fn note(&self) {
        *self.0.lock() = Instant::now();
    }

    fn silence(&self) -> Duration {
        self.0.lock().elapsed()
    }
}

pub struct Watcher {
    pub member: u64,
    pub raft: Raft,
    pub peers: Peers,
    pub heard: Heard,
    pub roster: watch::Receiver<Arc<Roster>>,
    pub election_timeout: Duration,
}

impl Watcher {
    /// Says so once it is known that this member has been removed. Ends with Raft.
    pub async fn run(mut self, removed: watch::Sender<bool>) {
        let mut ticks = tokio::time::interval(self.election_timeout);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let roster = self.roster.borrow_and_update().clone();
            self.peers.forget_others_than(roster.membership());
            if roster.removed.contains(&self.member) || self.is_told_so().await {
                removed.send_replace(true);
                return;
            }
            tokio::select! {
                changed = self.roster.changed() => if changed.is_err() { return },
                _ = ticks.tick() => {}
            }
        }
    }

    async fn is_told_so(&self) -> bool {
        let others: Vec<(u64, Peer)> = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            if metrics.state.is_leader() || self.heard.silence() < 2 * self.election_timeout {
                return false;
            }
            let all = metrics.membership_config.membership().nodes();
            all.filter(|(id, _)| **id != self.member).map(|(id, peer)| (*id, peer.clone())).collect()
        };
        self.peers.ask_about(self.member, others).await.is_removed
    }
}
