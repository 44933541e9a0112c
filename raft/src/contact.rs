//! Tells the log when a member stops answering the leader, and when it answers again: once each.

use std::{collections::BTreeSet, time::Duration};

use openraft::{Instant as _, async_runtime::WatchReceiver as _};
use tokio::time::MissedTickBehavior;

use crate::types::Raft;

/// Ends with Raft.
pub async fn log_changes(raft: Raft, election_timeout: Duration) {
    let mut ticks = tokio::time::interval(election_timeout);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let metrics = raft.metrics();
    let mut silent = BTreeSet::new();
    // A new leader waits until all have had the time to answer.
    let mut leads_since_last = false;
    loop {
        ticks.tick().await;
        let now = metrics.borrow_watched().clone();
        if now.running_state.is_err() {
            return;
        }
        let Some(heard) = now.heartbeat.filter(|_| std::mem::replace(&mut leads_since_last, now.state.is_leader()))
        else {
            silent.clear();
            continue;
        };
        silent.retain(|id| heard.contains_key(id));
        for (id, at) in heard.into_iter().filter(|(id, _)| *id != now.id) {
            let is_silent = at.is_none_or(|at| at.elapsed() > election_timeout);
            let member = format!("{id:x}");
            match is_silent {
                true if silent.insert(id) => tracing::warn!(member, "a member does not answer"),
                false if silent.remove(&id) => tracing::info!(member, "a member answers again"),
                _ => {}
            }
        }
    }
}
