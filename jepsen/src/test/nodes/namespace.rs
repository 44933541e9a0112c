//! A network of one node.

use std::{fs::File, io, net::Ipv4Addr, os::fd::AsRawFd as _, sync::Arc, thread};

use anyhow::{Context as _, Result, anyhow};

use super::{interface, sandbox, system::check};

/// A network namespace, which lives as long as this, or a process in it.
#[derive(Clone)]
pub struct Namespace {
    file: Arc<File>,
}

impl Namespace {
    /// Makes one with a TUN device of that address, whose other end is given.
    pub fn with_tun(address: Ipv4Addr) -> Result<(Namespace, File)> {
        // A thread of its own makes it: moving there is for good.
        let make = move || -> Result<(Namespace, File)> {
            sandbox::move_thread_to_new_network().context("cannot make a network namespace")?;
            interface::up("lo").context("cannot use the loopback interface")?;
            let tun = interface::tun(address).context("cannot make a TUN device")?;
            let file = File::open("/proc/thread-self/ns/net").context("cannot hold the namespace")?;
            Ok((Namespace { file: Arc::new(file) }, tun))
        };
        thread::spawn(make).join().map_err(|_| anyhow!("the thread that makes a namespace panicked"))?
    }

    /// Moves the calling thread there.
    pub fn enter(&self) -> io::Result<()> {
        // SAFETY: plain system call with a file that is open.
        check(unsafe { libc::setns(self.file.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
    }
}
