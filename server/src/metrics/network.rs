//! The Raft log's disk, and what goes between members. Names and bounds are etcd's.
//! Source: etcd, `server/etcdserver/api/rafthttp/metrics.go`, `server/storage/wal/metrics.go`.
//!
//! etcd keeps streams between all members. Here a follower talks to the leader, so `active_peers` and
//! `disconnected_peers_total` know of others only what calls have told.

use std::{collections::HashSet, time::Duration};

use parking_lot::Mutex;
use prometheus::{
    Error, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, exponential_buckets,
};
use proto::MemberId;
use raft::{LogWrite, PeerEvent};

use super::families::Families;

/// A sync of the log that takes longer is told of. (etcd: `warnSyncDuration`)
const SLOW_SYNC: Duration = Duration::from_secs(1);

pub struct NetworkMetrics {
    local: String,
    /// Seconds.
    log_syncs: Histogram,
    log_writes: Histogram,
    log_bytes: IntGauge,
    log_batches: Histogram,
    heartbeat_failures: IntCounter,
    active: IntGaugeVec,
    disconnected: IntCounterVec,
    sent: IntCounterVec,
    received: IntCounterVec,
    sent_failures: IntCounterVec,
    received_failures: IntCounterVec,
    round_trips: HistogramVec,
    snapshots_sending: IntGaugeVec,
    snapshots_sent: IntCounterVec,
    snapshots_unsent: IntCounterVec,
    snapshot_send_times: HistogramVec,
    snapshots_receiving: IntGaugeVec,
    snapshots_received: IntCounterVec,
    snapshots_unreceived: IntCounterVec,
    snapshot_receive_times: HistogramVec,
    snapshot_saves: Histogram,
    connected: Mutex<HashSet<MemberId>>,
}

impl NetworkMetrics {
    pub fn log_syncs(&self) -> &Histogram {
        &self.log_syncs
    }

    pub fn new(make: &Families<'_>, member: MemberId) -> Result<NetworkMetrics, Error> {
        let to = |name: &str, help: &str| make.counters(name, help, &["To"]);
        let from = |name: &str, help: &str| make.counters(name, help, &["From"]);
        let transfer_bounds = || exponential_buckets(0.1, 2.0, 10);
        let pair = ["Local", "Remote"];
        Ok(NetworkMetrics {
            local: member.to_string(),
            log_syncs: make.histogram(
                "etcd_disk_wal_fsync_duration_seconds",
                "How long syncs of the Raft log took.",
                0.001,
                14,
            )?,
            log_writes: make.histogram(
                "etcd_disk_wal_write_duration_seconds",
                "How long writes of the Raft log took.",
                0.001,
                14,
            )?,
            log_bytes: make.gauge("etcd_disk_wal_write_bytes_total", "Bytes written to the Raft log.")?,
            log_batches: make.histogram(
                "pintle_log_batch_records",
                "Records in one write of the Raft log.",
                1.0,
                14,
            )?,
            heartbeat_failures: make
                .counter("etcd_server_heartbeat_send_failures_total", "Heartbeats of this leader without an answer.")?,
            active: make.gauges("etcd_network_active_peers", "1 for a peer that the last call reached.", &pair)?,
            disconnected: make.counters("etcd_network_disconnected_peers_total", "Peers lost.", &pair)?,
            sent: to("etcd_network_peer_sent_bytes_total", "Bytes sent to peers.")?,
            received: from("etcd_network_peer_received_bytes_total", "Bytes received from peers.")?,
            sent_failures: to("etcd_network_peer_sent_failures_total", "Calls to peers that failed.")?,
            received_failures: from("etcd_network_peer_received_failures_total", "Streams of peers that broke.")?,
            round_trips: make.histograms(
                "etcd_network_peer_round_trip_time_seconds",
                "Time from a call to a peer to its answer.",
                &["To"],
                exponential_buckets(0.0001, 2.0, 16)?,
            )?,
            snapshots_sending: make.gauges(
                "etcd_network_snapshot_send_inflights_total",
                "Snapshots on their way to peers.",
                &["To"],
            )?,
            snapshots_sent: to("etcd_network_snapshot_send_success", "Snapshots sent.")?,
            snapshots_unsent: to("etcd_network_snapshot_send_failures", "Snapshots that were not sent.")?,
            snapshot_send_times: make.histograms(
                "etcd_network_snapshot_send_total_duration_seconds",
                "How long sending a snapshot took.",
                &["To"],
                transfer_bounds()?,
            )?,
            snapshots_receiving: make.gauges(
                "etcd_network_snapshot_receive_inflights_total",
                "Snapshots on their way from peers.",
                &["From"],
            )?,
            snapshots_received: from("etcd_network_snapshot_receive_success", "Snapshots received.")?,
            snapshots_unreceived: from("etcd_network_snapshot_receive_failures", "Snapshots that broke off.")?,
            snapshot_receive_times: make.histograms(
                "etcd_network_snapshot_receive_total_duration_seconds",
                "How long receiving a snapshot took.",
                &["From"],
                transfer_bounds()?,
            )?,
            snapshot_saves: make.histogram(
                "etcd_snap_db_save_total_duration_seconds",
                "How long receiving and saving a snapshot took.",
                0.1,
                10,
            )?,
            connected: Mutex::default(),
        })
    }

    fn reached(&self, peer: MemberId, remote: &str, is_reached: bool) {
        let mut connected = self.connected.lock();
        let is_new = if is_reached { connected.insert(peer) } else { connected.remove(&peer) };
        if is_new {
            self.active.with_label_values(&[self.local.as_str(), remote]).set(is_reached.into());
            if !is_reached {
                self.disconnected.with_label_values(&[self.local.as_str(), remote]).inc();
            }
        }
    }
}

impl raft::Meter for NetworkMetrics {
    fn log_written(&self, LogWrite { bytes, records, write, sync }: LogWrite) {
        self.log_writes.observe(write.as_secs_f64());
        self.log_syncs.observe(sync.as_secs_f64());
        self.log_bytes.add(bytes as i64);
        self.log_batches.observe(records as f64);
        if sync > SLOW_SYNC {
            tracing::warn!(took = ?sync, expected_duration = ?SLOW_SYNC, "slow fdatasync");
        }
    }

    fn peer(&self, peer: MemberId, event: PeerEvent) {
        let remote = peer.to_string();
        let name = [remote.as_str()];
        match event {
            PeerEvent::Sent(bytes) => self.sent.with_label_values(&name).inc_by(bytes as u64),
            PeerEvent::Received(bytes) => {
                self.received.with_label_values(&name).inc_by(bytes as u64);
                self.reached(peer, &remote, true);
            }
            PeerEvent::SendFailed => {
                self.sent_failures.with_label_values(&name).inc();
                self.reached(peer, &remote, false);
            }
            PeerEvent::ReceiveFailed => {
                self.received_failures.with_label_values(&name).inc();
                self.reached(peer, &remote, false);
            }
            PeerEvent::HeartbeatFailed => self.heartbeat_failures.inc(),
            PeerEvent::RoundTrip(took) => self.round_trips.with_label_values(&name).observe(took.as_secs_f64()),
            PeerEvent::SnapshotSends => self.snapshots_sending.with_label_values(&name).inc(),
            PeerEvent::SnapshotSent { took, is_done } => {
                self.snapshots_sending.with_label_values(&name).dec();
                if is_done {
                    self.snapshots_sent.with_label_values(&name).inc();
                    self.snapshot_send_times.with_label_values(&name).observe(took.as_secs_f64());
                } else {
                    self.snapshots_unsent.with_label_values(&name).inc();
                }
            }
            PeerEvent::SnapshotReceives => self.snapshots_receiving.with_label_values(&name).inc(),
            PeerEvent::SnapshotReceived { took, is_done } => {
                self.snapshots_receiving.with_label_values(&name).dec();
                if is_done {
                    self.snapshots_received.with_label_values(&name).inc();
                    self.snapshot_receive_times.with_label_values(&name).observe(took.as_secs_f64());
                    self.snapshot_saves.observe(took.as_secs_f64());
                } else {
                    self.snapshots_unreceived.with_label_values(&name).inc();
                }
            }
        }
    }
}
