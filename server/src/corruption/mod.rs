//! Checks that all members hold the same data: HashKV of each is compared, and the alarm CORRUPT raised for the odd one.
//! Source: etcd, `server/etcdserver/corrupt.go`, `server.go` (monitorKVHash, monitorCompactHash).
//!
//! | check | when | compares |
//! |---|---|---|
//! | initial | at a restart, before anybody is served; gate `InitialCorruptCheck` | this member at its revision with the others: it does not start when they differ |
//! | periodic | every `--corrupt-check-time`, on the leader | the leader at its revision with the others |
//! | compact hash | every `--compact-hash-check-time`, on the leader; gate `CompactHashCheck` | what each member had when it began the same compaction |
//!
//! ```text
//! check.rs     the three checks
//! verdict.rs   who is odd, given the hashes
//! peers.rs     /members/hashkv: asking the other members, and answering them
//! ```

mod check;
mod peers;
mod verdict;

use std::{sync::Arc, time::Duration};

use storage::host;

use crate::{context::Context, gates::Gate};

pub use check::initial as initial_check;
pub use peers::{PATH, answer};

/// When the leader checks.
#[derive(Debug, Clone, Copy)]
pub struct Intervals {
    /// None: never.
    pub periodic: Option<Duration>,
    pub compact_hash: Duration,
}

/// Starts the checks that were asked for; they end with the process.
pub fn start(ctx: &Arc<Context>, intervals: Intervals) {
    if let Some(interval) = intervals.periodic {
        tracing::info!(local_member_id = %ctx.member, ?interval, "enabled corruption checking");
        host::spawn(check::periodically(ctx.clone(), interval));
    }
    if ctx.gates.is_on(Gate::CompactHashCheck) {
        ctx.store.keep_compaction_hashes();
        host::spawn(check::compactions(ctx.clone(), intervals.compact_hash));
    }
}
