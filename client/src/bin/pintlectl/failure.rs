//! How a command fails: etcdctl's exit codes and texts, and what to try instead.
//!
//! What a server refuses is said in etcdctl's words, because scripts look for them; what to try stands on lines of its
//! own, and only on a terminal. Where etcdctl says no more than that the time is over, because there was no connection,
//! we say what was wrong with it. Source of the codes: etcd, `pkg/cobrautl/error.go`.

use std::{
    fmt,
    io::{self, IsTerminal as _},
};

use client::{Error, EtcdError};

pub const ERROR: u8 = 1;
const BAD_CONNECTION: u8 = 2;
const INVALID_INPUT: u8 = 3;
const BAD_FEATURE: u8 = 4;
const INTERRUPTED: u8 = 5;
const BAD_ARGUMENTS: u8 = 128;

/// An error with its exit code.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    /// None: all was said.
    text: Option<String>,
    /// What to try.
    hint: Option<String>,
    /// Not on a terminal alone: what etcdctl says of it helps nobody, so no script looks for it.
    always_hint: bool,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text.as_deref().unwrap_or_default())
    }
}

impl std::error::Error for Failure {}

impl Failure {
    pub fn new(code: u8, text: impl Into<String>) -> Failure {
        Failure { code, text: Some(text.into()), hint: None, always_hint: false }
    }

    /// Everything was said already.
    pub fn silent(code: u8) -> Failure {
        Failure { code, text: None, hint: None, always_hint: false }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    /// What to try about an error that was told of in other words.
    pub fn hint_about(self, error: &Error) -> Failure {
        Failure { hint: hint(error), always_hint: always_hint(error), ..self }
    }
}

/// Arguments that are missing, superfluous, or make no sense.
pub fn bad_arguments(text: impl Into<String>) -> Failure {
    Failure::new(BAD_ARGUMENTS, text)
}

/// A value that no flag of this name has.
pub fn bad_feature(text: impl Into<String>) -> Failure {
    Failure::new(BAD_FEATURE, text)
}

/// Standard input that is not what was expected.
pub fn invalid_input(text: impl Into<String>) -> Failure {
    Failure::new(INVALID_INPUT, text)
}

pub fn interrupted(text: impl Into<String>) -> Failure {
    Failure::new(INTERRUPTED, text)
}

/// Whatever is refused before the command itself; and commands about leases call every refusal so.
pub fn bad_connection(error: Error) -> Failure {
    Failure { code: BAD_CONNECTION, ..Failure::from(error) }
}

/// A client that cannot be made of what was given.
pub fn bad_client(error: Error) -> Failure {
    Failure { code: BAD_ARGUMENTS, ..Failure::from(error) }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::new(ERROR, describe(&error)).hint_about(&error)
    }
}

fn always_hint(error: &Error) -> bool {
    matches!(error, Error::Unreachable(_) | Error::Tls(_)) || broke(error)
}

/// The connection was made, and then ended: so it looks where the server wants TLS, or a certificate.
fn broke(error: &Error) -> bool {
    matches!(error, Error::Rpc { message, .. } if message.starts_with("connection broke"))
}

/// An error of the client in the words of etcd's Go client.
pub fn describe(error: &Error) -> String {
    match error {
        Error::Etcd(error) => error.to_string(),
        Error::Timeout => "context deadline exceeded".to_string(),
        Error::Unreachable(reason) => format!("cannot connect: {reason}"),
        Error::TooLarge { bytes, max } => {
            format!(
                "rpc error: code = ResourceExhausted desc = trying to send message larger than max ({bytes} vs. {max})"
            )
        }
        Error::Rpc { code, message } => format!("rpc error: code = {} desc = {message}", code_name(*code)),
        Error::WatchCompacted { .. } => EtcdError::Compacted.to_string(),
        Error::WatchCanceled(reason) => reason.clone(),
        other => other.to_string(),
    }
}

fn code_name(code: tonic::Code) -> String {
    match code {
        tonic::Code::Cancelled => "Canceled".to_string(),
        tonic::Code::Ok => "OK".to_string(),
        other => format!("{other:?}"),
    }
}

/// What a person may try.
fn hint(error: &Error) -> Option<String> {
    let hint = match error {
        Error::Unreachable(reason) => unreachable_hint(reason),
        error if broke(error) => {
            "does the server want TLS (https:// in --endpoints), or a certificate of ours (--cert and --key)?"
        }
        Error::Timeout => {
            "the server did not answer in time: ask again with a longer --command-timeout, and see who answers with \
             `pintlectl endpoint status --cluster`"
        }
        Error::Endpoint { .. } => "an endpoint is host:port, http://host:port, https://host:port or unix:///path",
        Error::Tls(_) => "--cacert names who is trusted; --cert and --key, both, who this client is",
        Error::Etcd(EtcdError::AuthFailed) => {
            "the user or the password is wrong: --user=name asks for the password, --user=name:password has it, and so \
             have ETCDCTL_USER and ETCDCTL_PASSWORD"
        }
        Error::Etcd(EtcdError::UserEmpty) => "authentication is on: say who you are with --user=name",
        Error::Etcd(EtcdError::PermissionDenied) => {
            "`pintlectl user get NAME --detail`, asked as root, shows what a user may do"
        }
        Error::Etcd(EtcdError::Compacted) | Error::WatchCompacted { .. } => {
            "history up to that revision is gone: ask without --rev, or for a later one; `pintlectl history KEY` shows \
             what of a key is left"
        }
        Error::Etcd(EtcdError::NoSpace) => {
            "the store is full: `pintlectl compaction REVISION`, then `pintlectl defrag`, then `pintlectl alarm disarm`"
        }
        Error::Etcd(EtcdError::NoLeader) => "no member leads: `pintlectl endpoint status --cluster` shows who is there",
        _ => return None,
    };
    Some(hint.to_string())
}

fn unreachable_hint(reason: &str) -> &'static str {
    let reason = reason.to_lowercase();
    if reason.contains("certificate") || reason.contains("unknownissuer") {
        "the server's certificate is not trusted: --cacert names who has signed it; or it asks for one of ours: --cert and \
         --key"
    } else if reason.contains("corrupt message") || reason.contains("invalidcontenttype") || reason.contains("tls") {
        "does the server speak TLS? https:// in --endpoints is with TLS, http:// is without"
    } else if reason.contains("broken pipe") || reason.contains("reset") || reason.contains("closed") {
        "the server closed the connection: perhaps it wants TLS, https:// in --endpoints"
    } else {
        "is a server running there? --endpoints or ETCDCTL_ENDPOINTS says where; 127.0.0.1:2379 without"
    }
}

/// Says what went wrong, and gives the exit code.
pub fn report(error: anyhow::Error) -> u8 {
    // Whoever read our output has read enough.
    if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
        return 0;
    }
    let failure = match error.downcast::<Failure>() {
        Ok(failure) => failure,
        Err(error) => match error.downcast::<Error>() {
            Ok(error) => Failure::from(error),
            Err(error) => Failure::new(ERROR, format!("{error:#}")),
        },
    };
    if let Some(text) = &failure.text {
        eprintln!("Error: {text}");
    }
    if let Some(hint) = failure.hint.filter(|_| failure.always_hint || io::stderr().is_terminal()) {
        eprintln!("Try: {hint}");
    }
    failure.code
}
