//! What stands in which bucket of etcd's file. Source: etcd, `server/storage/schema`.
//!
//! | bucket | key | value |
//! |---|---|---|
//! | `alarm` | `AlarmMember` | |
//! | `auth` | `authEnabled`, `authRevision` | a byte; a number |
//! | `authRoles`, `authUsers` | name | `Role`, `User` |
//! | `key` | revision | `KeyValue` |
//! | `lease` | lease id | `leasepb.Lease` |
//! | `members` | member id in hex | JSON |
//! | `members_removed` | member id in hex | `removed` |
//! | `meta` | name | consistent index, term, confState, compaction, storage version |

use prost::Message;
use proto::Revision;
use storage::Kind;

/// Names of buckets.
pub mod bucket {
    pub const ALARM: &str = "alarm";
    pub const AUTH: &str = "auth";
    pub const AUTH_ROLES: &str = "authRoles";
    pub const AUTH_USERS: &str = "authUsers";
    pub const CLUSTER: &str = "cluster";
    pub const KEY: &str = "key";
    pub const LEASE: &str = "lease";
    pub const MEMBERS: &str = "members";
    pub const MEMBERS_REMOVED: &str = "members_removed";
    pub const META: &str = "meta";
}

/// Keys of the buckets `auth` and `meta`.
pub mod meta {
    pub const AUTH_ENABLED: &[u8] = b"authEnabled";
    pub const AUTH_REVISION: &[u8] = b"authRevision";
    pub const CONF_STATE: &[u8] = b"confState";
    pub const CONSISTENT_INDEX: &[u8] = b"consistent_index";
    pub const FINISHED_COMPACTION: &[u8] = b"finishedCompactRev";
    pub const SCHEDULED_COMPACTION: &[u8] = b"scheduledCompactRev";
    pub const STORAGE_VERSION: &[u8] = b"storageVersion";
    pub const TERM: &[u8] = b"term";
}

/// etcd's `leasepb.Lease`.
#[derive(Clone, PartialEq, Message)]
pub struct Lease {
    #[prost(int64, tag = "1")]
    pub id: i64,
    #[prost(int64, tag = "2")]
    pub ttl: i64,
    #[prost(int64, tag = "3")]
    pub remaining_ttl: i64,
}

/// A revision as a key: main, `_`, sub, and a `t` behind those of a tombstone.
pub fn revision_key(at: Revision, kind: Kind) -> Vec<u8> {
    let mut out = Vec::with_capacity(18);
    out.extend(at.main.to_be_bytes());
    out.push(b'_');
    out.extend(at.sub.to_be_bytes());
    out.extend((kind == Kind::Delete).then_some(b't'));
    out
}

/// Reads what [`revision_key`] makes.
pub fn parse_revision_key(key: &[u8]) -> Option<(Revision, Kind)> {
    let (key, kind) = match key.len() {
        17 => (key, Kind::Put),
        18 => (key.strip_suffix(b"t")?, Kind::Delete),
        _ => return None,
    };
    let number = |bytes: &[u8]| i64::from_be_bytes(bytes.try_into().expect("eight bytes"));
    let at = Revision::new(number(&key[..8]), number(&key[9..]));
    (key[8] == b'_' && at.main > 0 && at.sub >= 0).then_some((at, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_what_etcd_writes() {
        let at = Revision::new(0x0102, 3);
        let (put, delete) = (revision_key(at, Kind::Put), revision_key(at, Kind::Delete));
        assert_eq!(put, b"\0\0\0\0\0\0\x01\x02_\0\0\0\0\0\0\0\x03");
        assert_eq!(delete, b"\0\0\0\0\0\0\x01\x02_\0\0\0\0\0\0\0\x03t");
        assert_eq!(parse_revision_key(&put), Some((at, Kind::Put)));
        assert_eq!(parse_revision_key(&delete), Some((at, Kind::Delete)));
        for bad in [&put[..16], &[&put[..], b"x"].concat(), &[0; 17], &[0xff; 17]] {
            assert_eq!(parse_revision_key(bad), None);
        }
    }
}
