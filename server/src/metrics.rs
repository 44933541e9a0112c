//! What `/metrics` shows, under etcd's names where Pintle has the same thing to count.

use std::{sync::Arc, time::Instant};

use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
    process_collector::ProcessCollector,
};
use storage::Size;

use crate::gates::{Gate, Gates, Stage};

/// The counters and gauges of this process.
pub struct Metrics {
    registry: Registry,
    has_leader: IntGauge,
    is_leader: IntGauge,
    is_learner: IntGauge,
    pub leader_changes: IntCounter,
    committed: IntGauge,
    applied: IntGauge,
    pending: IntGauge,
    pub proposals_failed: IntCounter,
    /// Seconds.
    pub log_syncs: Histogram,
    size: IntGauge,
    size_in_use: IntGauge,
    quota: IntGauge,
    keys: IntGauge,
    revision: IntGauge,
    compacted: IntGauge,
    pub health_success: IntCounter,
    pub health_failures: IntCounter,
    healthcheck: IntGaugeVec,
    healthchecks: IntCounterVec,
    pub rpc_started: IntCounterVec,
    pub rpc_handled: IntCounterVec,
    started: Instant,
    uptime: IntGauge,
}

/// Counts a proposal as pending until it is dropped.
pub struct Pending<'a>(&'a IntGauge);

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// What is read at the moment someone looks.
pub struct Now {
    pub status: raft::Status,
    pub size: Size,
    pub keys: usize,
    pub revision: i64,
    pub compacted: i64,
}

impl Metrics {
    pub fn new(quota_bytes: i64) -> Result<Arc<Metrics>, prometheus::Error> {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let counter = |name: &str, help: &str| -> Result<IntCounter, prometheus::Error> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let counters = |name: &str, help: &str, labels: &[&str]| -> Result<IntCounterVec, prometheus::Error> {
            let counters = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counters.clone()))?;
            Ok(counters)
        };
        let healthcheck = IntGaugeVec::new(
            Opts::new("etcd_server_healthcheck", "The result of each kind of health check."),
            &["type", "name"],
        )?;
        registry.register(Box::new(healthcheck.clone()))?;
        registry.register(Box::new(ProcessCollector::for_self()))?;
        let version =
            IntGaugeVec::new(Opts::new("etcd_server_version", "1, with the version as label."), &["server_version"])?;
        version.with_label_values(&[crate::ETCD_VERSION]).set(1);
        registry.register(Box::new(version))?;
        // From 1 ms, doubling, as etcd's.
        let bounds = prometheus::exponential_buckets(0.001, 2.0, 14)?;
        let log_syncs = Histogram::with_opts(
            HistogramOpts::new("etcd_disk_wal_fsync_duration_seconds", "How long syncs of the Raft log took.")
                .buckets(bounds),
        )?;
        registry.register(Box::new(log_syncs.clone()))?;
        let rpc = ["grpc_type", "grpc_service", "grpc_method"];
        let metrics = Metrics {
            has_leader: gauge("etcd_server_has_leader", "Whether a leader is known.")?,
            is_leader: gauge("etcd_server_is_leader", "Whether this member is the leader.")?,
            is_learner: gauge("etcd_server_is_learner", "Whether this member is a learner.")?,
            leader_changes: counter("etcd_server_leader_changes_seen_total", "Leaders seen.")?,
            committed: gauge("etcd_server_proposals_committed_total", "Index of the newest committed entry.")?,
            applied: gauge("etcd_server_proposals_applied_total", "Index of the newest applied entry.")?,
            pending: gauge("etcd_server_proposals_pending", "Proposals that wait for their outcome.")?,
            proposals_failed: counter("etcd_server_proposals_failed_total", "Proposals without an outcome.")?,
            log_syncs,
            size: gauge("etcd_mvcc_db_total_size_in_bytes", "Size of the store.")?,
            size_in_use: gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "Size of what the store needs.")?,
            quota: gauge("etcd_server_quota_backend_bytes", "The quota that Status reports.")?,
            keys: gauge("etcd_debugging_mvcc_keys_total", "Living keys.")?,
            revision: gauge("etcd_debugging_mvcc_current_revision", "The current revision.")?,
            compacted: gauge("etcd_debugging_mvcc_compact_revision", "The compacted revision.")?,
            health_success: counter("etcd_server_health_success", "Answers of /health that were good.")?,
            health_failures: counter("etcd_server_health_failures", "Answers of /health that were not.")?,
            healthcheck,
            healthchecks: counters(
                "etcd_server_healthchecks_total",
                "Health checks by kind and result.",
                &["type", "name", "status"],
            )?,
            rpc_started: counters("grpc_server_started_total", "RPCs begun.", &rpc)?,
            rpc_handled: counters(
                "grpc_server_handled_total",
                "RPCs ended, by code.",
                &["grpc_type", "grpc_service", "grpc_method", "grpc_code"],
            )?,
            started: Instant::now(),
            uptime: gauge("pintle_uptime_seconds", "Seconds since the process began.")?,
            registry,
        };
        metrics.quota.set(quota_bytes);
        Ok(Arc::new(metrics))
    }

    /// Shows which gates are on. They stay as they are.
    pub fn show_gates(&self, gates: &Gates) -> Result<(), prometheus::Error> {
        let opts = Opts::new("etcd_server_feature_enabled", "1 for a feature gate that is on, 0 for one that is off.");
        let features = IntGaugeVec::new(opts, &["name", "stage"])?;
        for gate in Gate::ALL {
            features.with_label_values(&[gate.name(), gate.stage().label()]).set(gates.is_on(*gate).into());
        }
        for stage in [Stage::Alpha, Stage::Beta] {
            features.with_label_values(&[stage.group(), stage.label()]).set(gates.group(stage).unwrap_or(false).into());
        }
        self.registry.register(Box::new(features))
    }

    pub fn proposal(&self) -> Pending<'_> {
        self.pending.inc();
        Pending(&self.pending)
    }

    pub fn checked(&self, kind: &str, name: &str, is_good: bool) {
        self.healthcheck.with_label_values(&[kind, name]).set(is_good.into());
        let status = if is_good { "success" } else { "error" };
        self.healthchecks.with_label_values(&[kind, name, status]).inc();
    }

    /// The page, in Prometheus' text format.
    pub fn page(&self, now: &Now) -> Result<String, prometheus::Error> {
        self.has_leader.set(now.status.leader.is_some().into());
        self.is_leader.set(now.status.is_leader.into());
        self.is_learner.set(now.status.is_learner.into());
        self.committed.set(now.status.committed_index as i64);
        self.applied.set(now.status.applied_index as i64);
        self.size.set(now.size.on_disk);
        self.size_in_use.set(now.size.in_use);
        self.keys.set(now.keys as i64);
        self.revision.set(now.revision);
        self.compacted.set(now.compacted);
        self.uptime.set(self.started.elapsed().as_secs() as i64);
        let mut page = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut page)?;
        String::from_utf8(page).map_err(|error| prometheus::Error::Msg(error.to_string()))
    }
}

/// Counts the leaders that come, until the process stops.
pub async fn count_leaders(metrics: Arc<Metrics>, mut status: tokio::sync::watch::Receiver<raft::Status>) {
    let mut known = None;
    loop {
        let leader = status.borrow_and_update().leader;
        // One that was lost and came back counts again, as in etcd.
        if leader.is_some() && leader != known {
            metrics.leader_changes.inc();
        }
        known = leader;
        if status.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use proto::MemberId;

    use super::*;

    #[test]
    fn the_page_shows_what_is_now() {
        let metrics = Metrics::new(5).unwrap();
        metrics.show_gates(&Gates::default()).unwrap();
        let pending = metrics.proposal();
        let status = raft::Status { leader: Some(MemberId(1)), applied_index: 9, ..Default::default() };
        let now = Now { status, size: Size { on_disk: 3, in_use: 2 }, keys: 4, revision: 7, compacted: -1 };
        let page = metrics.page(&now).unwrap();
        for line in [
            "etcd_server_has_leader 1",
            "etcd_server_is_leader 0",
            "etcd_server_proposals_applied_total 9",
            "etcd_server_proposals_pending 1",
            "etcd_mvcc_db_total_size_in_bytes 3",
            "etcd_debugging_mvcc_compact_revision -1",
            "etcd_server_feature_enabled{name=\"AllAlpha\",stage=\"ALPHA\"} 0",
            "etcd_server_feature_enabled{name=\"FastLeaseKeepAlive\",stage=\"BETA\"} 1",
            "etcd_server_version{server_version=\"3.7.1\"} 1",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
        }
        drop(pending);
        assert!(metrics.page(&now).unwrap().contains("etcd_server_proposals_pending 0"));
    }

    #[tokio::test]
    async fn a_leader_counts_when_it_comes_and_not_while_it_stays() {
        let metrics = Metrics::new(0).unwrap();
        let status =
            |term, leader: Option<u64>| raft::Status { term, leader: leader.map(MemberId), ..Default::default() };
        let (sender, receiver) = tokio::sync::watch::channel(status(1, Some(1)));
        let counting = tokio::spawn(count_leaders(metrics.clone(), receiver));
        tokio::task::yield_now().await;
        for (term, leader, count) in [(1, None, 1), (2, Some(1), 2), (3, Some(1), 2), (4, Some(2), 3)] {
            sender.send(status(term, leader)).unwrap();
            // On this runtime of one thread the other task runs now, up to where it waits again.
            tokio::task::yield_now().await;
            assert_eq!(metrics.leader_changes.get(), count, "in term {term}");
        }
        drop(sender);
        counting.await.unwrap();
    }
}
