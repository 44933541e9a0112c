//! Commands that are run, and how they end, in Go's words.

use std::{ffi::OsStr, io, os::unix::process::ExitStatusExt as _, process::ExitStatus};

pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("signal: {signal}"),
        (None, None) => status.to_string(),
    }
}

pub fn cannot_start(command: &OsStr, error: &io::Error) -> String {
    let command = crate::print::go::quote(command.as_encoded_bytes());
    match error.kind() {
        io::ErrorKind::NotFound => format!("exec: {command}: executable file not found in $PATH"),
        _ => format!("exec: {command}: {error}"),
    }
}
