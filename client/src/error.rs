//! What can go wrong, by what a caller can do about it.

use proto::{EtcdError, LeaseId};
use tonic::{Code, Status};

use crate::retry;

/// What requests give.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a request, a watch, or what is built on them failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The endpoint cannot be used as written, or is none of the client's.
    #[error("endpoint {url}: {reason}")]
    Endpoint {
        /// As it was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The files or names that TLS was to be used with.
    #[error("TLS: {0}")]
    Tls(String),
    /// A token that is no text a header can have.
    #[error("the token is no text that can be sent")]
    Token,
    /// No connection could be made: the request was not sent.
    #[error("no connection: {0}")]
    Unreachable(String),
    /// No answer in time. A write may have happened and may yet happen.
    #[error("no answer in time")]
    Timeout,
    /// The request is larger than [`crate::Options::request_bytes_max`], and was not sent.
    #[error("the request has {bytes} bytes, and may have {max}")]
    TooLarge {
        /// Of the request.
        bytes: usize,
        /// What is allowed.
        max: usize,
    },
    /// An error etcd has a name for.
    #[error("{0}")]
    Etcd(EtcdError),
    /// Any other failure of the call.
    #[error("{code:?}: {message}")]
    Rpc {
        /// gRPC's code.
        code: Code,
        /// What the server, or the connection, has said.
        message: String,
    },
    /// The watched revisions are compacted; the oldest that can still be watched is `compact_revision`.
    #[error("required revision has been compacted, the oldest is {compact_revision}")]
    WatchCompacted {
        /// From here on can be watched.
        compact_revision: i64,
    },
    /// The server ended the watch for a reason that trying again does not mend.
    #[error("watch canceled: {0}")]
    WatchCanceled(String),
    /// The session holds this lock already, or waits for it.
    #[error("the session holds the lock {0:?} already, or waits for it")]
    HeldAlready(String),
    /// Somebody else leads, or the leadership was given up.
    #[error("election: not leader")]
    NotLeader,
    /// The lease has expired or was revoked.
    #[error("lease {0} is gone")]
    LeaseGone(LeaseId),
}

impl Error {
    /// Whether a write that failed so may have happened nevertheless, or may happen yet.
    pub fn may_have_happened(&self) -> bool {
        match self {
            Error::Timeout => true,
            Error::Etcd(error) => {
                matches!(error.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled)
                    && !retry::refused_before_proposal(*error)
            }
            // A connection that broke, a proxy, a server that is going down: nobody knows.
            Error::Rpc { code, .. } => !matches!(
                code,
                Code::InvalidArgument | Code::Unimplemented | Code::Unauthenticated | Code::PermissionDenied
            ),
            Error::Endpoint { .. }
            | Error::Tls(_)
            | Error::Token
            | Error::TooLarge { .. }
            | Error::Unreachable(_)
            | Error::WatchCompacted { .. }
            | Error::WatchCanceled(_)
            | Error::HeldAlready(_)
            | Error::NotLeader
            | Error::LeaseGone(_) => false,
        }
    }
}

impl Error {
    /// Whether the same request may well succeed a little later: a server could not be reached, or could not answer.
    pub fn is_transient(&self) -> bool {
        match self {
            Error::Timeout | Error::Unreachable(_) | Error::Etcd(EtcdError::RequestTooManyRequests) => true,
            Error::Etcd(error) => error.code() == Code::Unavailable,
            Error::Rpc { code, .. } => {
                matches!(code, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown)
            }
            _ => false,
        }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Error {
        if retry::not_sent(&status) {
            return Error::Unreachable(deepest_reason(&status));
        }
        match EtcdError::from_message(status.message()) {
            Some(error) => Error::Etcd(error),
            None if retry::connection_broke(&status) => {
                let message = format!("connection broke: {}", deepest_reason(&status));
                Error::Rpc { code: status.code(), message }
            }
            None => Error::Rpc { code: status.code(), message: status.message().to_string() },
        }
    }
}

/// What went wrong at the bottom, such as a refused connection or certificate.
fn deepest_reason(status: &Status) -> String {
    let mut reason = status.message().to_string();
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        reason = error.to_string();
        source = error.source();
    }
    reason
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_refusals_are_certain_not_to_have_happened() {
        let happened = |status: Status| Error::from(status).may_have_happened();
        assert!(happened(EtcdError::Timeout.into()));
        assert!(happened(EtcdError::LeaderChanged.into()));
        assert!(happened(Status::unavailable("connection reset")));
        assert!(happened(Status::unknown("broken pipe")));
        assert!(!happened(EtcdError::NoLeader.into()));
        assert!(!happened(EtcdError::NoSpace.into()));
        assert!(!happened(Status::unimplemented("no such method")));
        assert!(Error::Timeout.may_have_happened());
        assert!(!Error::Unreachable("refused".to_string()).may_have_happened());
    }
}
