//! Leases with chosen ids and long TTLs: none expires while the requests run.

use proto::etcdserverpb as pb;
use rand::Rng as _;

use super::{Generator, Request};

const TTL_SECONDS_MAX: i64 = 9_000_000_000;
const TTL_SECONDS_LONG: i64 = 5_000;
const LEASES_MAX: usize = 24;

impl Generator {
    pub(super) fn lease_id(&mut self) -> i64 {
        if !self.leases.is_empty() && self.chance(0.8) {
            let index = self.rng.random_range(0..self.leases.len());
            return self.leases[index];
        }
        match self.rng.random_range(0..30) {
            0 => 0,
            1 => -7,
            2 => i64::MAX,
            3 => i64::MIN,
            _ => self.within(1..=40),
        }
    }

    pub(super) fn lease_grant(&mut self) -> Request {
        if self.leases.len() >= LEASES_MAX {
            return Request::LeaseRevoke(pb::LeaseRevokeRequest { id: self.lease_id() });
        }
        let id = match self.lease_id() {
            // The server would pick one, and the two servers not the same.
            0 => 1,
            id => id,
        };
        let ttl = match self.rng.random_range(0..20) {
            0 => TTL_SECONDS_MAX,
            1 => TTL_SECONDS_MAX + 1,
            2 => i64::MAX,
            _ => TTL_SECONDS_LONG + self.within(0..=1_000),
        };
        Request::LeaseGrant(pb::LeaseGrantRequest { ttl, id })
    }
}
