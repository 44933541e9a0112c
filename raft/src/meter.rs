//! What happens on the disk and between members, for metrics.

use std::time::Duration;

use proto::MemberId;

/// One write of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogWrite {
    pub bytes: usize,
    /// Entries and other records in it.
    pub records: usize,
    pub write: Duration,
    pub sync: Duration,
}

/// What happened between this member and another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerEvent {
    /// Bytes of a message.
    Sent(usize),
    Received(usize),
    SendFailed,
    ReceiveFailed,
    /// The leader's heartbeat had no answer.
    HeartbeatFailed,
    /// A call and its answer.
    RoundTrip(Duration),
    SnapshotSends,
    SnapshotSent {
        took: Duration,
        is_done: bool,
    },
    SnapshotReceives,
    SnapshotReceived {
        took: Duration,
        is_done: bool,
    },
}

/// Is told of it. Must not block.
pub trait Meter: Send + Sync + 'static {
    fn log_written(&self, _write: LogWrite) {}
    fn peer(&self, _peer: MemberId, _event: PeerEvent) {}
}

/// Measures nothing.
impl Meter for () {}
