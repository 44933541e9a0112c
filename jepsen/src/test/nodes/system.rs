//! What the C library leaves to do by hand.

use std::{ffi::CString, io, os::unix::ffi::OsStrExt as _, path::Path};

/// The error that a system call left, if it failed.
pub fn check(outcome: libc::c_int) -> io::Result<libc::c_int> {
    match outcome {
        -1 => Err(io::Error::last_os_error()),
        other => Ok(other),
    }
}

pub fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}
