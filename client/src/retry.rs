//! Which failed requests may be sent again, and how long to wait before.
//!
//! | request | sent again when |
//! |---|---|
//! | [`Repeat::Always`]: a read, or what twice does no harm | the server or the way to it is unavailable, or it did not answer in time |
//! | [`Repeat::IfNotProposed`]: a write | no connection could be made, or the server refused before proposing |
//! | [`Repeat::Never`]: a question to one member | never |
//!
//! Apart from that, whatever was refused for the token it came with is sent again with another one
//! ([`crate::Credentials`]).
//!
//! The rule is that of etcd's own client (`client/v3/retry.go`), and a little wider for writes: errors that a server
//! answers before it proposes anything are as good as a request never sent.

use std::{error::Error as _, time::Duration};

use proto::EtcdError;
use tonic::{Code, ConnectError, Status};

/// What sending a request twice would mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repeat {
    /// The same answer, or one as good.
    Always,
    /// Perhaps a second write: only where the first certainly was none.
    IfNotProposed,
    /// Nothing that helps: it is about the endpoint that was asked.
    Never,
}

impl Repeat {
    /// Whether a request that failed so may be sent again, to the next endpoint.
    pub fn allows(self, status: &Status) -> bool {
        if self == Repeat::Never {
            return false;
        }
        if not_sent(status) || EtcdError::from_message(status.message()).is_some_and(refused_before_proposal) {
            return true;
        }
        self == Repeat::Always && (status.code() == Code::Unavailable || connection_broke(status))
    }
}

/// No connection could be made, so the server saw nothing of the request.
pub(crate) fn not_sent(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// The connection broke under the request. The transport has no code of its own for it, but its error is the source;
/// what a server answers has none.
pub(crate) fn connection_broke(status: &Status) -> bool {
    status.source().is_some() && matches!(status.code(), Code::Unknown | Code::Internal | Code::Cancelled)
}

/// Errors that a member answers before it proposes anything.
pub(crate) fn refused_before_proposal(error: EtcdError) -> bool {
    matches!(error, EtcdError::NoLeader | EtcdError::NotLeader | EtcdError::NotSupportedForLearner)
}

/// Waiting times that double from `first` up to `most`, each shortened at random by up to a half, so that clients which
/// failed together do not come back together.
#[derive(Debug, Clone)]
pub struct Backoff {
    next: Duration,
    first: Duration,
    most: Duration,
}

impl Backoff {
    /// Waits `first`, then longer, but not longer than `most`.
    pub fn new(first: Duration, most: Duration) -> Backoff {
        Backoff { next: first, first, most }
    }

    /// How long to wait now.
    pub fn wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.most);
        wait.mul_f64(rand::random_range(0.5..=1.0))
    }

    /// Something worked: the next failure is a new one.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff::new(Duration::from_millis(25), Duration::from_secs(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect_error() -> Status {
        Status::from_error(Box::new(ConnectError("connection refused".into())))
    }

    #[test]
    fn a_write_is_repeated_only_where_it_was_not_proposed() {
        let write = Repeat::IfNotProposed;
        assert!(write.allows(&connect_error()));
        assert!(write.allows(&EtcdError::NoLeader.into()));
        assert!(!write.allows(&EtcdError::LeaderChanged.into()));
        assert!(!write.allows(&EtcdError::Timeout.into()));
        assert!(!write.allows(&EtcdError::Stopped.into()));
        assert!(!write.allows(&Status::unavailable("connection reset by peer")));
        assert!(!write.allows(&EtcdError::NoSpace.into()));
    }

    #[test]
    fn a_read_is_repeated_unless_it_was_refused() {
        let read = Repeat::Always;
        assert!(read.allows(&connect_error()));
        assert!(read.allows(&EtcdError::LeaderChanged.into()));
        assert!(read.allows(&Status::unavailable("connection reset by peer")));
        assert!(!read.allows(&EtcdError::Compacted.into()));
        assert!(!read.allows(&EtcdError::PermissionDenied.into()));
        assert!(!read.allows(&Status::unknown("panic in the handler")));
        assert!(!Repeat::Never.allows(&connect_error()));
    }

    #[test]
    fn waiting_times_double_up_to_the_most_and_start_again() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(30));
        for most in [10, 20, 30, 30] {
            let wait = backoff.wait();
            let most = Duration::from_millis(most);
            assert!(most / 2 <= wait && wait <= most, "{wait:?} of {most:?}");
        }
        backoff.reset();
        assert!(backoff.wait() <= Duration::from_millis(10));
    }
}
