//! What faults need of the machine, and whether it is there.
//!
//! A fault that cannot be made is refused by name before anything is started: a run without it would pass for one that
//! survived it.

use std::{fs::OpenOptions, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};

use super::{cgroup::Hierarchies, clock};

/// What goes beyond namespaces, TUN and loop devices, without which there are no nodes at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// A control group's cpu controller
    pub cpu_limit: bool,
    /// A control group's memory controller
    pub memory_limit: bool,
    /// FUSE, for a disk that fails as it is told
    pub failing_disk: bool,
    /// libfaketime, and a server that it works with
    pub own_clock: bool,
    /// Flags with which members soon forget what is in their logs, so that one that lags needs a snapshot
    pub short_log: bool,
    /// strace, to fail a system call
    pub strace: bool,
}

impl Needs {
    pub fn and(self, other: Needs) -> Needs {
        Needs {
            cpu_limit: self.cpu_limit || other.cpu_limit,
            memory_limit: self.memory_limit || other.memory_limit,
            failing_disk: self.failing_disk || other.failing_disk,
            own_clock: self.own_clock || other.own_clock,
            short_log: self.short_log || other.short_log,
            strace: self.strace || other.strace,
        }
    }

    /// An error that names the first that is not there.
    pub fn check(&self, hierarchies: &Hierarchies, binary: &Path) -> Result<()> {
        ensure!(!self.cpu_limit || hierarchies.limits_cpu(), "there is no control group with a cpu controller");
        ensure!(
            !self.memory_limit || hierarchies.limits_memory(),
            "there is no control group with a memory controller"
        );
        if self.failing_disk {
            let fuse = OpenOptions::new().read(true).write(true).open("/dev/fuse");
            fuse.context("there is no FUSE")?;
        }
        if self.own_clock {
            clock::check(binary)?;
        }
        if self.strace {
            let version = Command::new("strace").arg("--version").output();
            version.context("there is no strace: run script/setup")?;
        }
        Ok(())
    }
}
