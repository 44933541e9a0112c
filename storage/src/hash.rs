//! Hashes that members compare.

use std::collections::HashSet;

use prost::Message;
use proto::{EtcdError, Revision, etcdserverpb::RangeRequest, mvccpb::KeyValue};

use crate::{
    db::{ALARM, AUTH, DATA, Db, LEASE, MEMBER},
    error::{ReadError, StorageError},
    keys,
    record::Kind,
    store::{Inner, Store, View},
};

/// The answer of HashKV.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashKv {
    pub hash: u32,
    /// The current revision.
    pub revision: i64,
    /// The revision the hash is of.
    pub hash_revision: i64,
    /// The compacted revision, -1 when there is none.
    pub compact_revision: i64,
}

impl Store {
    /// etcd's hash over all versions up to `revision` (0: the current one) that compaction keeps, to the bit: CRC-32C
    /// of the bucket's name, then of each revision and its marshaled version, in order. (etcd: `mvcc/hash.go`.)
    ///
    /// # Errors
    /// `FutureRev` and `Compacted`, as Range has them.
    pub fn hash_kv(&self, revision: i64) -> Result<HashKv, ReadError> {
        loop {
            let view = self.inner.view();
            let at = if revision == 0 { view.revision } else { revision };
            if revision > 0 && revision < view.compacted {
                return Err(EtcdError::Compacted.into());
            }
            if revision > view.revision {
                return Err(EtcdError::FutureRev.into());
            }
            let hash = hash_versions(&self.inner, &view, at);
            // A compaction that began meanwhile may have removed what had to be hashed.
            if self.compacted_revision() != view.compacted {
                continue;
            }
            let (revision, compact_revision) = (view.revision, view.compacted);
            return Ok(HashKv { hash: hash?, revision, hash_revision: at, compact_revision });
        }
    }

    /// A hash over all that is replicated, and the current revision.
    pub fn hash(&self) -> Result<(u32, i64), ReadError> {
        let HashKv { mut hash, revision, .. } = self.hash_kv(0)?;
        let db = &self.inner.view().db;
        for family in [LEASE, AUTH, MEMBER, ALARM] {
            for (key, value) in db.all(family)? {
                hash = crc32c::crc32c_append(crc32c::crc32c_append(hash, &key), &value);
            }
        }
        Ok((hash, revision))
    }
}

fn hash_versions(inner: &Inner, view: &View, to: i64) -> Result<u32, ReadError> {
    let db = &*view.db;
    let forgotten = forgotten(inner, view, to)?;
    let mut hash = crc32c::crc32c(b"key");
    db.each_event(0, to, |at, event| {
        let is_tombstone = event.kind == Kind::Delete;
        if at.main <= view.compacted && (is_tombstone || forgotten.contains(&at)) {
            return Ok(true);
        }
        let kv =
            if is_tombstone { KeyValue { key: event.key, ..Default::default() } } else { version(db, &event.key, at)? };
        hash = crc32c::crc32c_append(hash, &bucket_key(at, is_tombstone));
        hash = crc32c::crc32c_append(hash, &kv.encode_to_vec());
        Ok(true)
    })?;
    Ok(hash)
}

/// The versions up to the compacted revision that the hash leaves out: those that are not current at `to` any more, but
/// when no key lives at `to`, those that were not current at the compacted revision. (etcd: `kvHasher`, which asks the
/// index what to keep at `to`, and does not ask when that is nothing.)
fn forgotten(inner: &Inner, view: &View, to: i64) -> Result<HashSet<Revision>, ReadError> {
    let mut forgotten = HashSet::new();
    if view.compacted < 0 {
        return Ok(forgotten);
    }
    let living = view.snapshot().range(&RangeRequest {
        key: vec![0].into(),
        range_end: vec![0].into(),
        revision: to,
        count_only: true,
        ..Default::default()
    });
    let end = if living.map_err(|failed| failed.into_error(&view.db))?.count == 0 { view.compacted } else { to };
    // What superseded others up to there is gone already, and so is what it superseded.
    let finished = inner.compactor.finished();
    view.db.each_event(finished + 1, end, |_, event| {
        forgotten.extend(event.prev);
        Ok(true)
    })?;
    Ok(forgotten)
}

fn version(db: &Db, key: &[u8], at: Revision) -> Result<KeyValue, StorageError> {
    let missing = || db.damaged(DATA, &keys::data_key(key, at), "the version of a put is missing");
    db.version(key, at)?.ok_or_else(missing)
}

/// A revision as etcd's bucket has it: main, `_`, sub, and a `t` behind that of a tombstone.
fn bucket_key(at: Revision, is_tombstone: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(18);
    out.extend(at.main.to_be_bytes());
    out.push(b'_');
    out.extend(at.sub.to_be_bytes());
    out.extend(is_tombstone.then_some(b't'));
    out
}
