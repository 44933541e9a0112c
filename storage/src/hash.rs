//! Hashes that members compare.

use std::{collections::HashSet, time::Instant};

use prost::Message;
use proto::{EtcdError, Revision, etcdserverpb::RangeRequest, mvccpb::KeyValue};

use crate::{
    db::{ALARM, AUTH, DATA, Db, LEASE, MEMBER},
    error::{ReadError, StorageError},
    keys,
    record::Kind,
    stats::Work,
    store::{Store, View},
};

/// Versions hashed between two looks at whether to go on.
const STEP_VERSIONS: u64 = 1000;

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
    /// At a revision that one of the newest compactions was at, the hash from before that compaction, where such are
    /// kept.
    ///
    /// # Errors
    /// `FutureRev` and `Compacted`, as Range has them.
    pub fn hash_kv(&self, revision: i64) -> Result<HashKv, ReadError> {
        let began = Instant::now();
        let hashed = self.hash_versions(revision)?;
        self.inner.options.observer.took(Work::HashRevision, began.elapsed());
        Ok(hashed)
    }

    fn hash_versions(&self, revision: i64) -> Result<HashKv, ReadError> {
        loop {
            let view = self.inner.view();
            if let Some(kept) = self.compaction_hashes().into_iter().find(|kept| kept.hash_revision == revision) {
                return Ok(HashKv { revision: view.revision, ..kept });
            }
            let at = if revision == 0 { view.revision } else { revision };
            if revision > 0 && revision < view.compacted {
                return Err(EtcdError::Compacted.into());
            }
            if revision > view.revision {
                return Err(EtcdError::FutureRev.into());
            }
            let hash = of_versions(&view, self.inner.compactor.finished(), at, || true);
            // A compaction that began meanwhile may have removed what had to be hashed.
            if self.compacted_revision() != view.compacted {
                continue;
            }
            let hash = hash?.expect("nobody has told it to stop");
            let (revision, compact_revision) = (view.revision, view.compacted);
            return Ok(HashKv { hash, revision, hash_revision: at, compact_revision });
        }
    }

    /// From now on the hash at each compaction is computed and kept, which reads the whole store each time.
    pub fn keep_compaction_hashes(&self) {
        self.inner.compactor.keep_hashes();
    }

    /// What is kept, in order of revisions. The hash and `compact_revision` are of the state before the compaction.
    pub fn compaction_hashes(&self) -> Vec<HashKv> {
        self.inner.compactor.hashes()
    }

    /// A hash over all that is replicated, and the current revision.
    pub fn hash(&self) -> Result<(u32, i64), ReadError> {
        let began = Instant::now();
        let HashKv { mut hash, revision, .. } = self.hash_versions(0)?;
        let db = &self.inner.view().db;
        for family in [LEASE, AUTH, MEMBER, ALARM] {
            for (key, value) in db.all(family)? {
                hash = crc32c::crc32c_append(crc32c::crc32c_append(hash, &key), &value);
            }
        }
        self.inner.options.observer.took(Work::Hash, began.elapsed());
        Ok((hash, revision))
    }
}

/// The hash of what `view` holds up to the revision `to`, while compactions up to `finished` have removed what they
/// forget. None when it was not to go on.
pub(crate) fn of_versions(
    view: &View,
    finished: i64,
    to: i64,
    goes_on: impl Fn() -> bool,
) -> Result<Option<u32>, ReadError> {
    let db = &*view.db;
    let forgotten = forgotten(view, finished, to)?;
    let mut hash = crc32c::crc32c(b"key");
    let (mut hashed, mut is_whole) = (0u64, true);
    db.each_event(0, to, |at, event| {
        hashed += 1;
        if hashed.is_multiple_of(STEP_VERSIONS) {
            is_whole = goes_on();
        }
        let is_tombstone = event.kind == Kind::Delete;
        if at.main <= view.compacted && (is_tombstone || forgotten.contains(&at)) {
            return Ok(is_whole);
        }
        let kv =
            if is_tombstone { KeyValue { key: event.key, ..Default::default() } } else { version(db, &event.key, at)? };
        hash = crc32c::crc32c_append(hash, &bucket_key(at, is_tombstone));
        hash = crc32c::crc32c_append(hash, &kv.encode_to_vec());
        Ok(is_whole)
    })?;
    Ok(is_whole.then_some(hash))
}

/// The versions up to the compacted revision that the hash leaves out: those that are not current at `to` any more, but
/// when no key lives at `to`, those that were not current at the compacted revision. (etcd: `kvHasher`, which asks the
/// index what to keep at `to`, and does not ask when that is nothing.)
fn forgotten(view: &View, finished: i64, to: i64) -> Result<HashSet<Revision>, ReadError> {
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
