//! A network and a mount table of the harness's own.
//!
//! Entered before any thread is started, so that all of them are in it. Whatever is set up inside (addresses, mounts,
//! loop devices, which free themselves with their last mount) is gone when the last process inside is, however it ends.

use std::{io, ptr};

use anyhow::{Context as _, Result};

use super::{interface, system::check};

/// Leaves the machine's network and mount table for fresh ones. Needs root.
pub fn enter() -> Result<()> {
    // SAFETY: plain system calls; the paths are constant C strings.
    unsafe {
        check(libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS))
            .context("a network and a mount table of its own can be had by root only")?;
        let flags = libc::MS_REC | libc::MS_PRIVATE;
        check(libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), flags, ptr::null()))
            .context("cannot keep mounts private")?;
    }
    interface::up("lo").context("cannot use the loopback interface")
}

/// A network that nothing else is in. The calling thread moves into it.
pub fn move_thread_to_new_network() -> io::Result<()> {
    // SAFETY: plain system call, concerning this thread only.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}
