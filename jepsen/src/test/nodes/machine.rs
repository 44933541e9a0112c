//! What one node has for itself: an address in a network of its own, a disk, limits.

use std::{
    fs::File,
    io,
    net::Ipv4Addr,
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Result;

use super::{
    Options,
    cgroup::{Group, Hierarchies},
    clock::Clock,
    disk::{Disk, Kind},
    namespace::Namespace,
    switch::Switch,
    system::check,
};
use crate::process::{Host, Node, Target};

/// Where the harness itself is.
pub const HARNESS_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The address of node n is this and n.
const FIRST_ADDRESS: u8 = 10;

/// Why a node may end by itself.
pub struct Excuse {
    pub words: Vec<String>,
    pub log_from: u64,
}

pub struct Machine {
    pub address: Ipv4Addr,
    pub disk: Disk,
    pub group: Group,
    pub frozen: bool,
    pub clock: Option<Clock>,
    /// If the node may end: the words that its log then has to hold from that byte on.
    pub excuse: Option<Excuse>,
    namespace: Namespace,
    name: String,
    log: PathBuf,
}

/// The name of the node that has this address.
pub fn name_at(address: Ipv4Addr) -> Option<String> {
    let number = u32::from(address).checked_sub(u32::from(HARNESS_ADDRESS) + u32::from(FIRST_ADDRESS - 1))?;
    (1..=u32::from(u8::MAX - FIRST_ADDRESS)).contains(&number).then(|| format!("n{number}"))
}

impl Machine {
    /// Sets up a machine for the node with that number and plugs it into the network.
    pub fn set_up(
        number: u8,
        dir: &Path,
        options: &Options,
        hierarchies: &Hierarchies,
        switch: &Switch,
    ) -> Result<Machine> {
        let name = format!("n{number}");
        let address = Ipv4Addr::from(u32::from(HARNESS_ADDRESS) + u32::from(FIRST_ADDRESS - 1 + number));
        let (namespace, tun) = Namespace::with_tun(address)?;
        switch.connect(address, tun);
        let mount_point = dir.join(&name);
        let kind = Kind { in_file: options.disk_in_file, failing: options.needs.failing_disk };
        let disk = Disk::new(&mount_point, kind, options.disk_bytes)?;
        let group = Group::create(hierarchies, &name)?;
        let clock = match options.needs.own_clock {
            true => Some(Clock::new(dir.join(format!("{name}.clock")), options.monotonic_clock_too)?),
            false => None,
        };
        let log = dir.join(format!("{name}.log"));
        Ok(Machine { address, disk, group, frozen: false, clock, excuse: None, namespace, name, log })
    }

    /// The node that runs here.
    pub fn node(&self, target: &Target, flags: &[String]) -> Result<Node> {
        let data_dir = self.disk.path().join("data");
        let environment = self.clock.as_ref().map_or(Ok(Vec::new()), Clock::environment)?;
        let host = Host { address: self.address, enter: self.way_in()?, environment };
        Ok(Node::on_host(target, &self.name, data_dir, self.log.clone(), flags, host))
    }

    fn way_in(&self) -> Result<Arc<dyn Fn() -> io::Result<()> + Send + Sync>> {
        let (doors, namespace) = (self.group.doors()?, self.namespace.clone());
        Ok(Arc::new(move || {
            for door in &doors {
                go_through(door)?;
            }
            namespace.enter()
        }))
    }
}

/// Moves this process into a control group.
fn go_through(door: &File) -> io::Result<()> {
    // SAFETY: one byte is written from a constant of one.
    check(unsafe { libc::write(door.as_raw_fd(), c"0".as_ptr().cast(), 1) } as libc::c_int).map(drop)
}
