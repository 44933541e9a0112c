//! Snapshots damaged on their way from one node to another, and nothing else.
//!
//! Of what members send each other only a snapshot has checksums of its own; the rest they trust TCP with, as etcd's do.
//! Snapshots have connections of their own, which are known by what is sent first: the names of RocksDB's files, or the
//! path of etcd's request.

use std::{collections::HashSet, net::Ipv4Addr};

use rand::{Rng as _, rngs::StdRng};

use super::{
    link::{Traffic, hits},
    segment::{Ports, Segment},
};

/// What only snapshots begin with.
const MARKS: [&[u8]; 4] = [b"CURRENT", b"MANIFEST-", b"OPTIONS-", b"/raft/snapshot"];

/// What becomes of the packets of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    pub kind: Kind,
    /// Of the packets behind the first.
    pub permille: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One bit is another, and the checksum of TCP says that all is well
    Flip,
    /// The connection is reset, so that the snapshot ends before its end
    Cut,
}

/// The connections that carry snapshots, as far as they are known.
#[derive(Default)]
pub struct Snapshots(HashSet<(Ipv4Addr, Ipv4Addr, Ports)>);

impl Snapshots {
    /// The packet as it arrives, if it is another than was sent.
    pub fn damage(
        &mut self,
        packet: &[u8],
        (from, to): (Ipv4Addr, Ipv4Addr),
        damage: Damage,
        random: &mut StdRng,
        traffic: &mut Traffic,
    ) -> Option<Vec<u8>> {
        let mut changed = packet.to_vec();
        let mut segment = Segment::of(&mut changed)?;
        let connection = (from, to, segment.ports());
        if !self.0.contains(&connection) {
            if MARKS.iter().any(|mark| contains(segment.payload(), mark)) {
                self.0.insert(connection);
            }
            return None;
        }
        let bits = segment.payload().len() * 8;
        if bits == 0 || !hits(random, damage.permille) {
            return None;
        }
        match damage.kind {
            Kind::Flip => segment.flip(random.random_range(0..bits)),
            Kind::Cut => segment.reset(),
        }
        traffic.damaged += 1;
        Some(changed)
    }
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}
