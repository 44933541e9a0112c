//! Leases as data: what was granted, and which keys hang on it. When one expires is decided elsewhere, by a clock.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use proto::LeaseId;

pub(crate) type Key = Arc<[u8]>;

/// A granted lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseInfo {
    pub id: LeaseId,
    /// Granted time to live, seconds.
    pub ttl: i64,
    /// Seconds left at the last checkpoint; 0 when there was none.
    pub remaining_ttl: i64,
}

/// All leases and their keys. Which keys hang on a lease follows from the key index and is not stored again.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    granted: BTreeMap<LeaseId, LeaseInfo>,
    keys: HashMap<LeaseId, BTreeSet<Key>>,
}

impl Leases {
    pub fn get(&self, id: LeaseId) -> Option<LeaseInfo> {
        self.granted.get(&id).copied()
    }

    /// In order of ids.
    pub fn all(&self) -> Vec<LeaseInfo> {
        self.granted.values().copied().collect()
    }

    /// In key order.
    pub fn keys(&self, id: LeaseId) -> Vec<Key> {
        self.keys.get(&id).into_iter().flatten().cloned().collect()
    }

    pub fn set(&mut self, lease: LeaseInfo) {
        self.granted.insert(lease.id, lease);
    }

    pub fn remove(&mut self, id: LeaseId) {
        self.granted.remove(&id);
        self.keys.remove(&id);
    }

    /// Hangs `key` on the lease `id`; 0 is no lease.
    pub fn attach(&mut self, key: &[u8], id: i64) {
        if id != 0 {
            self.keys.entry(LeaseId(id)).or_default().insert(key.into());
        }
    }

    pub fn detach(&mut self, key: &[u8], id: i64) {
        if let Some(keys) = self.keys.get_mut(&LeaseId(id)) {
            keys.remove(key);
            if keys.is_empty() {
                self.keys.remove(&LeaseId(id));
            }
        }
    }
}

/// The `lease` value: ttl and remaining ttl, big-endian.
pub(crate) fn encode(lease: &LeaseInfo) -> [u8; 16] {
    let mut out = [0; 16];
    out[..8].copy_from_slice(&lease.ttl.to_be_bytes());
    out[8..].copy_from_slice(&lease.remaining_ttl.to_be_bytes());
    out
}

pub(crate) fn decode(key: &[u8], value: &[u8]) -> Option<LeaseInfo> {
    let number = |bytes: &[u8]| Some(i64::from_be_bytes(bytes.try_into().ok()?));
    let (ttl, remaining_ttl) = (number(value.get(..8)?)?, number(value.get(8..)?)?);
    Some(LeaseInfo { id: LeaseId(number(key)?), ttl, remaining_ttl })
}
