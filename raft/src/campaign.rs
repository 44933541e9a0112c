//! Leaves a campaign the time that slow disks need.
//!
//! A candidate syncs its vote, then the voters do before they answer, then the leader syncs that it leads. openraft lets
//! the next campaign begin after one election timeout of its own, whoever is at work on the last. Where syncs take a
//! good part of that, each campaign would be overtaken by the next, for ever. So a member begins none for some time
//! after a vote that gave no leader was followed by another, and the longer the more of them there were. The first
//! campaign after a leader's death is not held up.

use std::{sync::Arc, time::Duration};

use openraft::async_runtime::WatchReceiver as _;
use tokio::time::Instant;

use crate::{runtime::Runtime, types::Raft};

/// In election timeouts of openraft. Two of them are etcd's shortest; a disk that needs more than this is no disk for a
/// member with this `--election-timeout`.
const PAUSE_MAX: u32 = 6;

/// Ends with Raft.
pub async fn pace(raft: Raft, config: Arc<openraft::Config>) {
    let elections = raft.runtime_config();
    let mut metrics = raft.server_metrics();
    let mut vote = metrics.borrow_watched().vote;
    // Votes, one after another, of which none made a leader.
    let mut in_vain = 0;
    let mut paused_until = None;
    loop {
        let pause = async {
            match paused_until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = metrics.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = pause => {
                paused_until = None;
                elections.elect(true);
            }
        }
        let held = metrics.borrow_watched().vote;
        if held == vote {
            continue;
        }
        vote = held;
        in_vain = if vote.is_committed() { 0 } else { in_vain + 1 };
        paused_until = (in_vain > 1).then(|| {
            let timeout = Duration::from_millis(config.new_rand_election_timeout::<Runtime>());
            Instant::now() + timeout * in_vain.min(PAUSE_MAX)
        });
        elections.elect(paused_until.is_none());
    }
}
