//! What `/metrics` shows, under etcd's names where Pintle has the same thing to count.
//!
//! ```text
//! families.rs   making and registering
//! rpc.rs        calls of clients
//! store.rs      the store, leases, watches
//! network.rs    the log's disk, other members
//! process.rs    file descriptors, bytes of the network
//! sample.rs     the counters at one moment, for the console
//! ```
//!
//! Invariant: counting is an addition; what takes longer to find out is found out when someone looks.

mod backup;
mod families;
pub mod network;
mod process;
pub mod rpc;
mod sample;
mod store;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use prometheus::{
    Encoder, Error, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder,
    process_collector::ProcessCollector,
};
use proto::MemberId;
use storage::{Engine, Size, Stats, Work};

pub use self::backup::BackupMetrics;
pub use self::sample::{Sample, Times};
use self::{
    families::{Families, advance},
    network::NetworkMetrics,
    process::ProcessMetrics,
    rpc::RpcMetrics,
    store::StoreMetrics,
};
use crate::{
    gates::{Gate, Gates, Stage},
    lease::Clock,
    watch::Hub,
};

/// A linearizable read that waits longer for its index is slow. (etcd: `readIndexRetryTime`.)
const READ_INDEX_SLOW: Duration = Duration::from_millis(500);

/// What the flags say of metrics.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    pub quota_bytes: i64,
    /// `--metrics=extensive`: how long each RPC took, too.
    pub is_extensive: bool,
    /// A batch of the log that takes longer to apply is told of in the log.
    pub slow_apply: Duration,
}

/// The counters and gauges of this process.
pub struct Metrics {
    registry: Registry,
    member: MemberId,
    settings: Settings,
    has_leader: IntGauge,
    is_leader: IntGauge,
    is_learner: IntGauge,
    pub leader_changes: IntCounter,
    committed: IntGauge,
    applied: IntGauge,
    pending: IntGauge,
    pub proposals_failed: IntCounter,
    read_indexes_failed: IntCounter,
    slow_read_indexes: IntCounter,
    learners_promoted: IntCounter,
    learners_not_promoted: IntCounterVec,
    requests: HistogramVec,
    known_peers: IntGaugeVec,
    cluster_version: IntGaugeVec,
    alarms: IntGaugeVec,
    auth_revision: IntGauge,
    size: IntGauge,
    size_in_use: IntGauge,
    keys: IntGauge,
    revision: IntGauge,
    compacted: IntGauge,
    pub health_success: IntCounter,
    pub health_failures: IntCounter,
    healthcheck: IntGaugeVec,
    healthchecks: IntCounterVec,
    pub rpc: RpcMetrics,
    pub store: StoreMetrics,
    pub network: Arc<NetworkMetrics>,
    pub backup: Arc<BackupMetrics>,
    process: ProcessMetrics,
    sources: OnceLock<(Arc<Hub>, Arc<Clock>)>,
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

/// A request that has failed when this is dropped, unless it was done.
pub struct Timed<'a> {
    times: &'a HistogramVec,
    kind: &'static str,
    began: Instant,
    is_done: bool,
}

impl Timed<'_> {
    pub fn done(mut self) {
        self.is_done = true;
    }
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        let success = if self.is_done { "true" } else { "false" };
        self.times.with_label_values(&[self.kind, success]).observe(self.began.elapsed().as_secs_f64());
    }
}

/// What is read at the moment someone looks.
#[derive(Default)]
pub struct Now {
    pub status: raft::Status,
    pub size: Size,
    pub keys: usize,
    pub revision: i64,
    pub compacted: i64,
    pub stats: Stats,
    pub engine: Engine,
    pub auth_revision: u64,
    /// Member and kind.
    pub alarms: Vec<(MemberId, String)>,
    pub cluster_version: String,
    pub members: Vec<MemberId>,
}

impl Metrics {
    pub fn new(member: MemberId, settings: Settings, gates: &Gates) -> Result<Arc<Metrics>, Error> {
        let registry = Registry::new();
        let make = Families(&registry);
        registry.register(Box::new(ProcessCollector::for_self()))?;
        let one = |name: &str, help: &str, label: &str, value: &str| -> Result<(), Error> {
            make.gauges(name, help, &[label])?.with_label_values(&[value]).set(1);
            Ok(())
        };
        one("etcd_server_version", "1, with the version as label.", "server_version", crate::ETCD_VERSION)?;
        one("etcd_server_go_version", "1; there is no Go here.", "server_go_version", "none")?;
        one("etcd_server_id", "1, with the member's id as label.", "server_id", &member.to_string())?;
        let quota = make.gauge("etcd_server_quota_backend_bytes", "The quota of the store.")?;
        quota.set(settings.quota_bytes);
        show_gates(&make, gates)?;
        let metrics = Metrics {
            member,
            settings,
            has_leader: make.gauge("etcd_server_has_leader", "Whether a leader is known.")?,
            is_leader: make.gauge("etcd_server_is_leader", "Whether this member is the leader.")?,
            is_learner: make.gauge("etcd_server_is_learner", "Whether this member is a learner.")?,
            leader_changes: make.counter("etcd_server_leader_changes_seen_total", "Leaders seen.")?,
            committed: make.gauge("etcd_server_proposals_committed_total", "Index of the newest committed entry.")?,
            applied: make.gauge("etcd_server_proposals_applied_total", "Index of the newest applied entry.")?,
            pending: make.gauge("etcd_server_proposals_pending", "Proposals that wait for their outcome.")?,
            proposals_failed: make.counter("etcd_server_proposals_failed_total", "Proposals without an outcome.")?,
            read_indexes_failed: make
                .counter("etcd_server_read_indexes_failed_total", "Linearizable reads that got no index.")?,
            slow_read_indexes: make
                .counter("etcd_server_slow_read_indexes_total", "Linearizable reads that waited long for an index.")?,
            learners_promoted: make.counter("etcd_server_learner_promote_successes", "Learners promoted.")?,
            learners_not_promoted: make.counters(
                "etcd_server_learner_promote_failures",
                "Promotions that were refused.",
                &["Reason"],
            )?,
            requests: make.histograms(
                "etcd_server_request_duration_seconds",
                "How long requests took on this member, from the call to the answer.",
                &["type", "success"],
                prometheus::exponential_buckets(0.001, 2.0, 14)?,
            )?,
            known_peers: make.gauges(
                "etcd_network_known_peers",
                "1 for each of the other members.",
                &["Local", "Remote"],
            )?,
            cluster_version: make.gauges(
                "etcd_cluster_version",
                "1, with the cluster's version as label.",
                &["cluster_version"],
            )?,
            alarms: make.gauges(
                "etcd_debugging_server_alarms",
                "1 for each alarm that is raised.",
                &["server_id", "alarm_type"],
            )?,
            auth_revision: make.gauge("etcd_debugging_auth_revision", "The revision of users and roles.")?,
            size: make.gauge("etcd_mvcc_db_total_size_in_bytes", "Size of the store.")?,
            size_in_use: make.gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "Size of what the store needs.")?,
            keys: make.gauge("etcd_debugging_mvcc_keys_total", "Living keys.")?,
            revision: make.gauge("etcd_debugging_mvcc_current_revision", "The current revision.")?,
            compacted: make.gauge("etcd_debugging_mvcc_compact_revision", "The compacted revision.")?,
            health_success: make.counter("etcd_server_health_success", "Answers of /health that were good.")?,
            health_failures: make.counter("etcd_server_health_failures", "Answers of /health that were not.")?,
            healthcheck: make.gauges(
                "etcd_server_healthcheck",
                "The result of each kind of health check.",
                &["type", "name"],
            )?,
            healthchecks: make.counters(
                "etcd_server_healthchecks_total",
                "Health checks by kind and result.",
                &["type", "name", "status"],
            )?,
            rpc: RpcMetrics::new(&make, settings.is_extensive)?,
            store: StoreMetrics::new(&make)?,
            network: Arc::new(NetworkMetrics::new(&make, member)?),
            backup: Arc::new(BackupMetrics::new(&make)?),
            process: ProcessMetrics::new(&make)?,
            sources: OnceLock::new(),
            started: Instant::now(),
            uptime: make.gauge("pintle_uptime_seconds", "Seconds since the process began.")?,
            registry,
        };
        Ok(Arc::new(metrics))
    }

    /// Names those who count for themselves.
    pub fn attach(&self, hub: Arc<Hub>, clock: Arc<Clock>) {
        assert!(self.sources.set((hub, clock)).is_ok(), "they are named once");
    }

    pub fn proposal(&self) -> Pending<'_> {
        self.pending.inc();
        Pending(&self.pending)
    }

    /// Times a request of this kind, in etcd's words, from now on.
    pub fn request(&self, kind: &'static str) -> Timed<'_> {
        Timed { times: &self.requests, kind, began: Instant::now(), is_done: false }
    }

    pub fn read_index_took(&self, time: Duration, is_done: bool) {
        if !is_done {
            self.read_indexes_failed.inc();
        }
        if time > READ_INDEX_SLOW {
            self.slow_read_indexes.inc();
        }
    }

    pub fn promoted(&self, promoted: Result<(), &tonic::Status>) {
        match promoted {
            Ok(()) => self.learners_promoted.inc(),
            Err(status) => self.learners_not_promoted.with_label_values(&[status.message()]).inc(),
        }
    }

    /// The store's work; a batch that took too long is told of in the log.
    pub fn took(&self, work: Work, time: Duration) {
        if self.store.took(work, time, self.settings.slow_apply) {
            let Work::Batch { entries } = work else { return };
            tracing::warn!(
                took = ?time,
                expected_duration = ?self.settings.slow_apply,
                entries,
                "apply request took too long"
            );
        }
    }

    pub fn checked(&self, kind: &str, name: &str, is_good: bool) {
        self.healthcheck.with_label_values(&[kind, name]).set(is_good.into());
        let status = if is_good { "success" } else { "error" };
        self.healthchecks.with_label_values(&[kind, name, status]).inc();
    }

    /// The page, in Prometheus' text format.
    pub fn page(&self, now: &Now) -> Result<String, Error> {
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
        self.auth_revision.set(now.auth_revision as i64);
        self.known_peers.reset();
        for peer in now.members.iter().filter(|peer| **peer != self.member) {
            self.known_peers.with_label_values(&[&self.member.to_string(), &peer.to_string()]).set(1);
        }
        self.cluster_version.reset();
        if !now.cluster_version.is_empty() {
            self.cluster_version.with_label_values(&[&now.cluster_version]).set(1);
        }
        self.alarms.reset();
        for (member, kind) in &now.alarms {
            self.alarms.with_label_values(&[&member.to_string(), kind]).set(1);
        }
        self.uptime.set(self.started.elapsed().as_secs() as i64);
        self.process.show();
        let mut traffic = Default::default();
        if let Some((hub, clock)) = self.sources.get() {
            traffic = hub.traffic();
            let (renewed, expired) = clock.counts();
            advance(&self.store.leases_renewed, renewed);
            advance(&self.store.leases_expired, expired);
        }
        self.store.show(&now.stats, &now.engine, &traffic);
        let mut page = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut page)?;
        String::from_utf8(page).map_err(|error| Error::Msg(error.to_string()))
    }

    #[cfg(test)]
    pub fn for_tests() -> Arc<Metrics> {
        let settings = Settings { quota_bytes: 5, is_extensive: true, slow_apply: Duration::from_millis(100) };
        Metrics::new(MemberId(7), settings, &Gates::default()).unwrap()
    }
}

/// Which gates are on. They stay as they are.
fn show_gates(make: &Families<'_>, gates: &Gates) -> Result<(), Error> {
    let help = "1 for a feature gate that is on, 0 for one that is off.";
    let features = make.gauges("etcd_server_feature_enabled", help, &["name", "stage"])?;
    for gate in Gate::ALL {
        features.with_label_values(&[gate.name(), gate.stage().label()]).set(gates.is_on(*gate).into());
    }
    for stage in [Stage::Alpha, Stage::Beta] {
        features.with_label_values(&[stage.group(), stage.label()]).set(gates.group(stage).unwrap_or(false).into());
    }
    Ok(())
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
