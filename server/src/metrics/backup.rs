//! Backups to `--backup-dir`. All of them are 0 without it.

use prometheus::{Error, Histogram, IntCounter, IntGauge};

use super::families::Families;

pub struct BackupMetrics {
    pub is_configured: IntGauge,
    pub is_archiving: IntGauge,
    pub archived_index: IntGauge,
    pub archive_time: IntGauge,
    pub archived_bytes: IntCounter,
    pub archive_failures: IntCounter,
    pub queue_bytes: IntGauge,
    pub chains: IntCounter,
    pub bases: IntCounter,
    pub base_failures: IntCounter,
    pub base_time: IntGauge,
    pub base_seconds: Histogram,
}

impl BackupMetrics {
    pub fn new(make: &Families<'_>) -> Result<BackupMetrics, Error> {
        Ok(BackupMetrics {
            is_configured: make.gauge("pintle_backup_configured", "1 with --backup-dir.")?,
            is_archiving: make.gauge(
                "pintle_backup_archiving",
                "1 while the log is archived, 0 when the last try failed or there was none.",
            )?,
            archived_index: make.gauge("pintle_backup_archived_index", "Index of the newest archived entry.")?,
            archive_time: make
                .gauge("pintle_backup_archive_last_success_timestamp_seconds", "When the log was archived last.")?,
            archived_bytes: make
                .counter("pintle_backup_archived_bytes_total", "Bytes of the log that were archived.")?,
            archive_failures: make
                .counter("pintle_backup_archive_failures_total", "Times the log could not be archived.")?,
            queue_bytes: make.gauge("pintle_backup_queue_bytes", "What is applied and not yet archived, in memory.")?,
            chains: make.counter(
                "pintle_backup_chains_total",
                "Chains begun: the first one, and one behind each gap in the archived log.",
            )?,
            bases: make.counter("pintle_backup_full_total", "Full backups taken.")?,
            base_failures: make
                .counter("pintle_backup_full_failures_total", "Full backups that failed, and removals of old ones.")?,
            base_time: make
                .gauge("pintle_backup_full_last_success_timestamp_seconds", "When the last full backup was taken.")?,
            base_seconds: make.histogram(
                "pintle_backup_full_duration_seconds",
                "How long full backups took.",
                0.1,
                16,
            )?,
        })
    }
}
