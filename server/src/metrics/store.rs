//! What the store does: MVCC, its disk, leases. Bounds are etcd's.
//! Source: etcd, `server/storage/{mvcc,backend,wal}/metrics.go`, `server/lease/metrics.go`,
//! `server/etcdserver/txn/metrics.go`.

use std::time::Duration;

use prometheus::{Error, Histogram, HistogramVec, IntCounter, IntGauge, IntGaugeVec, exponential_buckets};
use storage::{Engine, LeaseChange, Stats, Work};

use super::families::{Families, advance};
use crate::watch::Traffic;

pub struct StoreMetrics {
    ranges: IntCounter,
    debugging_ranges: IntCounter,
    puts: IntCounter,
    deletes: IntCounter,
    txns: IntCounter,
    put_bytes: IntGauge,
    open_reads: IntGauge,
    compacted_versions: IntCounter,
    last_compaction: IntGauge,
    installing: IntGauge,
    applies: HistogramVec,
    range_times: HistogramVec,
    batch_times: Histogram,
    slow_applies: IntCounter,
    commits: Histogram,
    compaction_steps: Histogram,
    compactions: Histogram,
    hashes: Histogram,
    hashes_at_revision: Histogram,
    pub defrag_inflight: IntGauge,
    pub defrags: Histogram,
    pub backend_snapshots: Histogram,
    pub leases_granted: IntCounter,
    pub leases_revoked: IntCounter,
    pub leases_renewed: IntCounter,
    lease_ttls: Histogram,
    pub leases_expired: IntCounter,
    watch_streams: IntGauge,
    watchers: IntGauge,
    slow_watchers: IntGauge,
    events: IntCounter,
    pending_events: IntGauge,
    memtables: IntGauge,
    block_cache: IntGauge,
    table_readers: IntGauge,
    pending_compaction: IntGauge,
    running_compactions: IntGauge,
    files: IntGaugeVec,
}

impl StoreMetrics {
    pub fn commits(&self) -> &Histogram {
        &self.commits
    }

    pub fn new(make: &Families<'_>) -> Result<StoreMetrics, Error> {
        // Of bbolt, index and snapshot files that Pintle does not have, and of sending that the HTTP/2 connection does:
        // there, and never observed.
        for (name, first, bounds) in [
            ("etcd_debugging_disk_backend_commit_rebalance_duration_seconds", 0.001, 14),
            ("etcd_debugging_disk_backend_commit_spill_duration_seconds", 0.001, 14),
            ("etcd_debugging_disk_backend_commit_write_duration_seconds", 0.001, 14),
            ("etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds", 0.5, 14),
            ("etcd_debugging_snap_save_marshalling_duration_seconds", 0.001, 14),
            ("etcd_debugging_snap_save_total_duration_seconds", 0.001, 14),
            ("etcd_debugging_server_watch_send_loop_control_stream_duration_seconds", 0.001, 14),
            ("etcd_debugging_server_watch_send_loop_progress_duration_seconds", 0.001, 14),
            ("etcd_debugging_server_watch_send_loop_watch_stream_duration_per_event_seconds", 0.001, 14),
            ("etcd_debugging_server_watch_send_loop_watch_stream_duration_seconds", 0.001, 14),
            ("etcd_snap_fsync_duration_seconds", 0.001, 14),
            ("etcd_snap_db_fsync_duration_seconds", 0.001, 14),
        ] {
            make.histogram(name, "There is no such step in Pintle: never observed.", first, bounds)?;
        }
        let apply_bounds = || exponential_buckets(0.0001, 2.0, 20);
        Ok(StoreMetrics {
            ranges: make.counter("etcd_mvcc_range_total", "Ranges.")?,
            debugging_ranges: make.counter("etcd_debugging_mvcc_range_total", "Ranges, by the name of etcd 3.5.")?,
            puts: make.counter("etcd_mvcc_put_total", "Puts.")?,
            deletes: make.counter("etcd_mvcc_delete_total", "Deletes.")?,
            txns: make.counter("etcd_mvcc_txn_total", "Transactions of more than one operation.")?,
            put_bytes: make.gauge("etcd_debugging_mvcc_total_put_size_in_bytes", "Keys and values of puts.")?,
            open_reads: make.gauge("etcd_mvcc_db_open_read_transactions", "Reads that are going on.")?,
            compacted_versions: make
                .counter("etcd_debugging_mvcc_db_compaction_keys_total", "Versions that compaction removed.")?,
            last_compaction: make.gauge(
                "etcd_debugging_mvcc_db_compaction_last",
                "Unix time of the last compaction since the start; 0 without one.",
            )?,
            installing: make.gauge(
                "etcd_server_snapshot_apply_in_progress_total",
                "1 while a snapshot of another member takes the store's place.",
            )?,
            applies: make.histograms(
                "etcd_server_apply_duration_seconds",
                "How long it took to apply a command.",
                &["version", "op", "success"],
                apply_bounds()?,
            )?,
            range_times: make.histograms(
                "etcd_server_range_duration_seconds",
                "How long ranges took in the store.",
                &["success"],
                apply_bounds()?,
            )?,
            batch_times: make.histogram(
                "pintle_apply_batch_duration_seconds",
                "How long a batch of log entries took to be applied and written.",
                0.0001,
                20,
            )?,
            slow_applies: make
                .counter("etcd_server_slow_apply_total", "Batches that took longer than --warning-apply-duration.")?,
            commits: make.histogram(
                "etcd_disk_backend_commit_duration_seconds",
                "How long the store's writes took.",
                0.001,
                14,
            )?,
            compaction_steps: make.histogram(
                "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds",
                "How long one write of a compaction took.",
                1.0,
                13,
            )?,
            compactions: make.histogram(
                "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds",
                "How long compactions took.",
                100.0,
                14,
            )?,
            hashes: make.histogram("etcd_mvcc_hash_duration_seconds", "How long Hash took.", 0.01, 15)?,
            hashes_at_revision: make.histogram(
                "etcd_mvcc_hash_rev_duration_seconds",
                "How long HashKV took.",
                0.01,
                15,
            )?,
            defrag_inflight: make.gauge("etcd_disk_defrag_inflight", "1 while the member defragments.")?,
            defrags: make.histogram(
                "etcd_disk_backend_defrag_duration_seconds",
                "How long defragmenting took.",
                0.1,
                13,
            )?,
            backend_snapshots: make.histogram(
                "etcd_disk_backend_snapshot_duration_seconds",
                "How long snapshots of the store took to be sent.",
                0.01,
                17,
            )?,
            leases_granted: make.counter("etcd_debugging_lease_granted_total", "Leases granted.")?,
            leases_revoked: make.counter("etcd_debugging_lease_revoked_total", "Leases revoked or expired.")?,
            leases_renewed: make.counter("etcd_debugging_lease_renewed_total", "Renewals, on the leader.")?,
            lease_ttls: make.histogram("etcd_debugging_lease_ttl_total", "TTLs of leases granted.", 1.0, 24)?,
            leases_expired: make
                .counter("etcd_debugging_server_lease_expired_total", "Leases that expired, on the leader.")?,
            watch_streams: make.gauge("etcd_debugging_mvcc_watch_stream_total", "Watch streams.")?,
            watchers: make.gauge("etcd_debugging_mvcc_watcher_total", "Watches.")?,
            slow_watchers: make
                .gauge("etcd_debugging_mvcc_slow_watcher_total", "Watches that are behind the newest revision.")?,
            events: make.counter("etcd_debugging_mvcc_events_total", "Events sent to watches.")?,
            pending_events: make
                .gauge("etcd_debugging_mvcc_pending_events_total", "Events that wait to be handed to watches.")?,
            memtables: make.gauge("pintle_rocksdb_memtable_bytes", "RocksDB: not yet in files.")?,
            block_cache: make.gauge("pintle_rocksdb_block_cache_bytes", "RocksDB: cached blocks.")?,
            table_readers: make.gauge("pintle_rocksdb_table_readers_bytes", "RocksDB: memory of open files.")?,
            pending_compaction: make
                .gauge("pintle_rocksdb_pending_compaction_bytes", "RocksDB: estimate of what is to be compacted.")?,
            running_compactions: make.gauge("pintle_rocksdb_running_compactions", "RocksDB: compactions at work.")?,
            files: make.gauges("pintle_rocksdb_files", "RocksDB: files by level.", &["level"])?,
        })
    }

    /// True when it was a batch that took longer than `slow`.
    pub fn took(&self, work: Work, time: Duration, slow: Duration) -> bool {
        let (seconds, milliseconds) = (time.as_secs_f64(), time.as_secs_f64() * 1000.0);
        let text = |is_done| if is_done { "true" } else { "false" };
        match work {
            Work::Command { op, is_done } => {
                self.applies.with_label_values(&["v3", op, text(is_done)]).observe(seconds);
            }
            Work::Batch { .. } => {
                self.batch_times.observe(seconds);
                if time > slow {
                    self.slow_applies.inc();
                    return true;
                }
            }
            Work::Write => self.commits.observe(seconds),
            Work::Range { is_done } => self.range_times.with_label_values(&[text(is_done)]).observe(seconds),
            Work::CompactionStep => self.compaction_steps.observe(milliseconds),
            Work::Compaction => self.compactions.observe(milliseconds),
            Work::Hash => self.hashes.observe(seconds),
            Work::HashRevision => self.hashes_at_revision.observe(seconds),
        }
        false
    }

    pub fn lease_changed(&self, change: &LeaseChange) {
        match change {
            LeaseChange::Granted { ttl, .. } => {
                self.leases_granted.inc();
                self.lease_ttls.observe(*ttl as f64);
            }
            LeaseChange::Revoked { .. } => self.leases_revoked.inc(),
            LeaseChange::Checkpointed { .. } => {}
        }
    }

    pub fn show(&self, stats: &Stats, engine: &Engine, traffic: &Traffic) {
        advance(&self.ranges, stats.ranges);
        advance(&self.debugging_ranges, stats.ranges);
        advance(&self.puts, stats.puts);
        advance(&self.deletes, stats.deletes);
        advance(&self.txns, stats.txns);
        advance(&self.compacted_versions, stats.compacted_versions);
        self.put_bytes.set(stats.put_bytes as i64);
        self.open_reads.set(stats.open_reads);
        self.last_compaction.set(stats.last_compaction);
        self.installing.set(stats.is_installing.into());
        self.watch_streams.set(traffic.streams as i64);
        self.watchers.set(traffic.watchers as i64);
        self.slow_watchers.set(traffic.watchers.saturating_sub(traffic.synced) as i64);
        self.pending_events.set(traffic.pending as i64);
        advance(&self.events, traffic.events);
        self.memtables.set(engine.memtable_bytes as i64);
        self.block_cache.set(engine.block_cache_bytes as i64);
        self.table_readers.set(engine.table_readers_bytes as i64);
        self.pending_compaction.set(engine.pending_compaction_bytes as i64);
        self.running_compactions.set(engine.running_compactions as i64);
        for (level, files) in engine.files.iter().enumerate() {
            self.files.with_label_values(&[&level.to_string()]).set(*files as i64);
        }
    }
}
