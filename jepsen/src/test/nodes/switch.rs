//! The network between the nodes: a switch in user space.
//!
//! Each node's one interface is a TUN device whose other end is read here, packet by packet. So every fault of a link
//! is made in one place, on any kernel that has TUN, and what took effect is counted rather than believed.

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, HashMap},
    fs::File,
    io::{self, Read as _, Write as _},
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    sync::{Arc, Weak},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use rand::{SeedableRng as _, rngs::StdRng};

use super::{
    damage::Snapshots,
    interface::MTU,
    link::{Fate, Link, Memory, Traffic},
    system::check,
};

/// Packets read from one node before the others have their turn.
const READ_AT_ONCE: usize = 64;
const IPV4_HEADER_BYTES: usize = 20;

type Direction = (Ipv4Addr, Ipv4Addr);

/// The running switch; it stops when this is dropped.
pub struct Switch {
    shared: Arc<Mutex<Shared>>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    links: HashMap<Direction, Link>,
    traffic: Traffic,
    by_direction: HashMap<Direction, u64>,
    arrivals: Vec<Port>,
    departures: Vec<Ipv4Addr>,
}

struct Port {
    address: Ipv4Addr,
    tun: File,
}

impl Switch {
    pub fn start(seed: u64) -> Result<Switch> {
        let shared = Arc::new(Mutex::new(Shared::default()));
        // SAFETY: the descriptor is owned from here on.
        let wake = unsafe { check(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK)) }
            .map(|fd| Arc::new(unsafe { OwnedFd::from_raw_fd(fd) }))
            .context("cannot make an eventfd")?;
        let forwarding = Forwarding {
            shared: Arc::downgrade(&shared),
            wake: Arc::clone(&wake),
            ports: Vec::new(),
            memories: HashMap::new(),
            snapshots: Snapshots::default(),
            queue: BinaryHeap::new(),
            sequence: 0,
            random: StdRng::seed_from_u64(seed),
        };
        let thread = thread::Builder::new().name("switch".to_owned()).spawn(move || forwarding.run())?;
        Ok(Switch { shared, wake, thread: Some(thread) })
    }

    pub fn connect(&self, address: Ipv4Addr, tun: File) {
        self.shared.lock().arrivals.push(Port { address, tun });
        self.wake();
    }

    pub fn disconnect(&self, address: Ipv4Addr) {
        self.shared.lock().departures.push(address);
        self.wake();
    }

    /// What is wrong from now on with what the one sends to the other.
    pub fn set(&self, from: Ipv4Addr, to: Ipv4Addr, link: Link) {
        let mut shared = self.shared.lock();
        match link == Link::default() {
            true => shared.links.remove(&(from, to)),
            false => shared.links.insert((from, to), link),
        };
    }

    pub fn link(&self, from: Ipv4Addr, to: Ipv4Addr) -> Link {
        self.shared.lock().links.get(&(from, to)).copied().unwrap_or_default()
    }

    /// All packets so far.
    pub fn traffic(&self) -> Traffic {
        self.shared.lock().traffic
    }

    /// The packets that have passed from the one to the other so far.
    pub fn passed(&self, from: Ipv4Addr, to: Ipv4Addr) -> u64 {
        self.shared.lock().by_direction.get(&(from, to)).copied().unwrap_or_default()
    }

    fn wake(&self) {
        let one = 1u64;
        // SAFETY: eight bytes are written from a value of eight. A full counter wakes as well.
        unsafe { libc::write(self.wake.as_raw_fd(), (&raw const one).cast(), size_of::<u64>()) };
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        // The thread ends when what it shares is gone.
        self.shared = Arc::default();
        self.wake();
        if let Some(thread) = self.thread.take() {
            // It has no result, and its panic has been printed.
            let _ = thread.join();
        }
    }
}

struct Forwarding {
    shared: Weak<Mutex<Shared>>,
    wake: Arc<OwnedFd>,
    ports: Vec<Port>,
    memories: HashMap<Direction, Memory>,
    snapshots: Snapshots,
    queue: BinaryHeap<Waiting>,
    sequence: u64,
    random: StdRng,
}

/// A packet on its way.
struct Waiting {
    due: Instant,
    sequence: u64,
    to: Ipv4Addr,
    packet: Vec<u8>,
}

impl Forwarding {
    fn run(mut self) {
        let mut buffer = vec![0; MTU];
        loop {
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(error) => {
                    eprintln!("the switch stops: {error}");
                    return;
                }
            };
            if !self.take_changes() {
                return;
            }
            for index in ready {
                self.read(index, &mut buffer);
            }
            self.deliver_due();
        }
    }

    /// Waits until packets or changes are there, or a waiting packet is due. Gives the ports that have packets.
    fn wait(&self) -> io::Result<Vec<usize>> {
        let poll = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut polled: Vec<libc::pollfd> = self.ports.iter().map(|port| poll(port.tun.as_raw_fd())).collect();
        polled.push(poll(self.wake.as_raw_fd()));
        let limit = self.queue.peek().map(|next| next.due.saturating_duration_since(Instant::now()));
        let limit = limit.map(|limit| libc::timespec {
            tv_sec: limit.as_secs() as libc::time_t,
            tv_nsec: limit.subsec_nanos().into(),
        });
        let limit_pointer = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: the array and the limit outlive the call.
        let outcome = unsafe {
            check(libc::ppoll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, limit_pointer, std::ptr::null()))
        };
        match outcome {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok((0..self.ports.len()).filter(|index| polled[*index].revents != 0).collect()),
        }
    }

    /// Takes note of new and gone nodes. False if the switch is to stop.
    fn take_changes(&mut self) -> bool {
        let Some(shared) = self.shared.upgrade() else { return false };
        let mut shared = shared.lock();
        let mut count = 0u64;
        // SAFETY: eight bytes are read into a value of eight. Nothing to read is no error here.
        unsafe { libc::read(self.wake.as_raw_fd(), (&raw mut count).cast(), size_of::<u64>()) };
        for gone in shared.departures.drain(..) {
            self.ports.retain(|port| port.address != gone);
        }
        self.ports.append(&mut shared.arrivals);
        true
    }

    fn read(&mut self, index: usize, buffer: &mut [u8]) {
        let Some(shared) = self.shared.upgrade() else { return };
        for _ in 0..READ_AT_ONCE {
            let Some(port) = self.ports.get_mut(index) else { return };
            // A node that has just been disconnected has nothing more to say.
            let Ok(length) = port.tun.read(buffer) else { return };
            let packet = &buffer[..length];
            let Some(direction) = direction(packet) else { continue };
            self.forward(packet, direction, &mut shared.lock());
        }
    }

    fn forward(&mut self, packet: &[u8], direction: Direction, shared: &mut Shared) {
        let now = Instant::now();
        let link = shared.links.get(&direction).copied().unwrap_or_default();
        let memory = self.memories.entry(direction).or_default();
        let fate = link.fate(packet.len(), now, memory, &mut self.random, &mut shared.traffic);
        let (due, copies) = match fate {
            Fate::Lost => return,
            Fate::Due(due) => (due, 1),
            Fate::Twice(due) => (due, 2),
        };
        *shared.by_direction.entry(direction).or_default() += 1;
        let damaged = link
            .damage
            .and_then(|damage| self.snapshots.damage(packet, direction, damage, &mut self.random, &mut shared.traffic));
        let packet = damaged.as_deref().unwrap_or(packet);
        for _ in 0..copies {
            if due <= now {
                self.deliver(direction.1, packet);
            } else {
                self.sequence += 1;
                self.queue.push(Waiting { due, sequence: self.sequence, to: direction.1, packet: packet.to_vec() });
            }
        }
    }

    fn deliver_due(&mut self) {
        let now = Instant::now() + Duration::from_micros(50);
        while self.queue.peek().is_some_and(|next| next.due <= now) {
            let next = self.queue.pop().expect("one was seen");
            self.deliver(next.to, &next.packet);
        }
    }

    fn deliver(&mut self, to: Ipv4Addr, packet: &[u8]) {
        if let Some(port) = self.ports.iter_mut().find(|port| port.address == to) {
            // As on any network, what the receiver has no room for is lost.
            let _ = port.tun.write(packet);
        }
    }
}

/// Who sends an IPv4 packet to whom.
fn direction(packet: &[u8]) -> Option<Direction> {
    if packet.len() < IPV4_HEADER_BYTES || packet[0] >> 4 != 4 {
        return None;
    }
    let address = |at: usize| Ipv4Addr::new(packet[at], packet[at + 1], packet[at + 2], packet[at + 3]);
    Some((address(12), address(16)))
}

/// The heap gives the greatest: that is the one due first.
impl Ord for Waiting {
    fn cmp(&self, other: &Waiting) -> Ordering {
        (other.due, other.sequence).cmp(&(self.due, self.sequence))
    }
}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Waiting) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Waiting) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Waiting {}
