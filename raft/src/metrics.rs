//! Counters that the node keeps of itself, cheap enough for the hot path.

use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Upper bounds of the buckets of sync durations, seconds; etcd's.
pub const FSYNC_BUCKETS: [f64; 14] =
    [0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192];

#[derive(Debug, Default)]
pub struct Metrics {
    fsync_buckets: [AtomicU64; FSYNC_BUCKETS.len()],
    fsync_count: AtomicU64,
    fsync_nanoseconds: AtomicU64,
    /// Proposals that are on their way.
    pub proposals_pending: AtomicI64,
    pub proposals_failed: AtomicU64,
    pub leader_changes_seen: AtomicU64,
}

/// How long the syncs of the log took.
#[derive(Debug, Clone, PartialEq)]
pub struct FsyncDurations {
    /// Cumulative counts for [`FSYNC_BUCKETS`].
    pub buckets: [u64; FSYNC_BUCKETS.len()],
    pub count: u64,
    pub sum_seconds: f64,
}

impl Metrics {
    pub(crate) fn fsynced(&self, took: Duration) {
        if let Some(bucket) = FSYNC_BUCKETS.iter().position(|bound| took.as_secs_f64() <= *bound) {
            self.fsync_buckets[bucket].fetch_add(1, Relaxed);
        }
        self.fsync_count.fetch_add(1, Relaxed);
        self.fsync_nanoseconds.fetch_add(took.as_nanos() as u64, Relaxed);
    }

    pub fn fsync_durations(&self) -> FsyncDurations {
        let mut sum = 0;
        let buckets = std::array::from_fn(|i| {
            sum += self.fsync_buckets[i].load(Relaxed);
            sum
        });
        let sum_seconds = self.fsync_nanoseconds.load(Relaxed) as f64 / 1e9;
        FsyncDurations { buckets, count: self.fsync_count.load(Relaxed), sum_seconds }
    }
}
