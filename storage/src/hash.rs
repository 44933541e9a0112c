//! Hashes that members compare.

use std::{collections::HashSet, time::Instant};

use bytes::Bytes;
use prost::Message;
use proto::{EtcdError, Revision, etcdserverpb::RangeRequest, mvccpb::KeyValue};

use crate::{
    db::{ALARM, AUTH, DATA, Db, EVENTS, LEASE, MEMBER},
    error::{ReadError, StorageError},
    keys,
    record::Kind,
    stats::Work,
    store::{Store, View},
};

/// Versions read between two looks at whether to go on.
const STEP_VERSIONS: u64 = 1000;
/// Versions hashed in one reading of the store, of which 24 bytes each are kept meanwhile.
const PART_VERSIONS: usize = 4 << 20;
static ZEROS: [u8; 4096] = [0; 4096];

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
    of_parts(view, finished, to, PART_VERSIONS, goes_on)
}

/// The hash is of versions in the order of revisions, and they stand in the order of keys: to look each up would read a
/// block of a table for it. So all are read as they stand, what each adds is put where it belongs, for `part_versions`
/// in each reading, and added in order when all are there.
fn of_parts(
    view: &View,
    finished: i64,
    to: i64,
    part_versions: usize,
    goes_on: impl Fn() -> bool,
) -> Result<Option<u32>, ReadError> {
    let forgotten = forgotten(view, finished, to)?;
    let is_hashed = |at: Revision, is_tombstone| {
        let is_forgotten = at.main <= view.compacted && (is_tombstone || forgotten.contains(&at));
        !is_forgotten
    };
    let mut hash = crc32c::crc32c(b"key");
    let mut from = Some(Revision::new(0, 0));
    while let Some(begin) = from.take() {
        let mut part = Vec::new();
        let (mut seen, mut is_whole) = (0u64, true);
        view.db.each_event_from(begin, to, |at, event| {
            if part.len() == part_versions {
                from = Some(at);
                return Ok(false);
            }
            let is_tombstone = event.kind == Kind::Delete;
            if is_hashed(at, is_tombstone) {
                part.push(if is_tombstone { Piece::new(at, true, event.key, &[]) } else { Piece::missing(at) });
            }
            seen += 1;
            is_whole = !seen.is_multiple_of(STEP_VERSIONS) || goes_on();
            Ok(is_whole)
        })?;
        if !is_whole || !find_versions(&view.db, &mut part, &goes_on)? {
            return Ok(None);
        }
        hash = part.iter().fold(hash, |hash, piece| piece.added_to(hash));
    }
    Ok(Some(hash))
}

/// Puts what versions add in the places where it is missing. False when it was not to go on.
fn find_versions(db: &Db, part: &mut [Piece], goes_on: impl Fn() -> bool) -> Result<bool, StorageError> {
    let mut missing = part.iter().filter(|piece| piece.is_missing()).count();
    let mut cursor = db.scan(DATA);
    let mut seen = 0u64;
    while missing > 0
        && let Some((at, value)) = cursor.item()?
    {
        let (key, revision) =
            keys::parse_data_key(at).ok_or_else(|| db.damaged(DATA, at, "the key is not one of a version"))?;
        if let Ok(place) = part.binary_search_by_key(&revision, |piece| piece.at)
            && part[place].is_missing()
            && let Some(version) = db.open_version(at, value)?
        {
            part[place] = Piece::new(revision, false, key.into(), version);
            missing -= 1;
        }
        seen += 1;
        if seen.is_multiple_of(STEP_VERSIONS) && !goes_on() {
            return Ok(false);
        }
        cursor.next();
    }
    match part.iter().find(|piece| piece.is_missing()) {
        Some(piece) => Err(db.damaged(EVENTS, &keys::event_key(piece.at), "the version of a put is missing")),
        None => Ok(true),
    }
}

/// What one version adds to the hash.
struct Piece {
    at: Revision,
    /// Its remainder alone: of a CRC that begins and ends without being inverted, so that it is a linear function.
    remainder: u32,
    /// 0 where the version has not been read.
    bytes: u32,
}

impl Piece {
    fn missing(at: Revision) -> Piece {
        Piece { at, remainder: 0, bytes: 0 }
    }

    /// Of a `version` as it stands in the store, without its key; a tombstone has none.
    fn new(at: Revision, is_tombstone: bool, key: Bytes, version: &[u8]) -> Piece {
        let bucket_key = bucket_key(at, is_tombstone);
        let begin = KeyValue { key, ..Default::default() }.encode_to_vec();
        let parts = [&bucket_key, &begin, version];
        let inverted = parts.into_iter().fold(!0, crc32c::crc32c_append);
        let bytes = parts.into_iter().map(<[u8]>::len).sum::<usize>();
        Piece { at, remainder: !inverted, bytes: u32::try_from(bytes).expect("a version fits in a request") }
    }

    fn is_missing(&self) -> bool {
        self.bytes == 0
    }

    /// The hash with this behind it: what as many zeros make of it, and the remainder.
    fn added_to(&self, mut hash: u32) -> u32 {
        let mut left = self.bytes as usize;
        while left > 0 {
            let zeros = &ZEROS[..left.min(ZEROS.len())];
            hash = crc32c::crc32c_append(hash, zeros);
            left -= zeros.len();
        }
        hash ^ self.remainder
    }
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

/// A revision as etcd's bucket has it: main, `_`, sub, and a `t` behind that of a tombstone.
fn bucket_key(at: Revision, is_tombstone: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(18);
    out.extend(at.main.to_be_bytes());
    out.push(b'_');
    out.extend(at.sub.to_be_bytes());
    out.extend(is_tombstone.then_some(b't'));
    out
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use proto::{
        command::{Command, command::Op},
        etcdserverpb::{DeleteRangeRequest, PutRequest},
    };
    use rocksdb::WriteBatch;
    use tempfile::TempDir;

    use super::*;
    use crate::{Change, LogEntry, Observer, Options, Payload};

    pub(crate) struct Nobody;

    impl Observer for Nobody {
        fn applied(&self, _: Change) {}

        fn restored(&self, _: i64, _: i64) {}
    }

    fn put(key: &'static str, bytes: usize) -> Op {
        Op::Put(PutRequest { key: key.into(), value: vec![7; bytes].into(), ..Default::default() })
    }

    fn delete_all() -> Op {
        Op::DeleteRange(DeleteRangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() })
    }

    fn store_after(dir: &TempDir, ops: impl IntoIterator<Item = Op>) -> Store {
        let options = Options { observer: Arc::new(Nobody), cache_bytes: 1 << 20 };
        let store = Store::open(&dir.path().join("db"), options).unwrap();
        let command = |op| Payload::Command(Command { op: Some(op), auth: None }.encode_to_vec().into());
        let entry = |(index, op)| LogEntry { index, term: 1, payload: command(op) };
        store.applier().apply(&(1..).zip(ops).map(entry).collect::<Vec<_>>()).unwrap();
        store
    }

    #[test]
    fn parts_of_any_size_have_the_hash_of_all_versions_in_order() {
        let dir = TempDir::new().unwrap();
        let large = ZEROS.len() + 1;
        let ops =
            [put("b", 1), put("a", large), put("a\0", 0), put("a", 3 * large), put("b", 2), delete_all(), put("a", 9)];
        let store = store_after(&dir, ops);
        let view = store.inner.view();
        let mut expected = crc32c::crc32c(b"key");
        let each = |at, event: crate::record::EventRecord| {
            let is_tombstone = event.kind == Kind::Delete;
            let version = view.db.version(&event.key, at)?;
            let kv = version.unwrap_or_else(|| KeyValue { key: event.key, ..Default::default() });
            expected = crc32c::crc32c_append(expected, &bucket_key(at, is_tombstone));
            expected = crc32c::crc32c_append(expected, &kv.encode_to_vec());
            Ok(true)
        };
        view.db.each_event(0, view.revision, each).unwrap();
        for part_versions in [1, 2, 3, 4, 9, 10] {
            let hash = of_parts(&view, -1, view.revision, part_versions, || true);
            assert_eq!(hash.unwrap(), Some(expected), "{part_versions} at a time");
        }
    }

    #[test]
    fn a_version_that_is_missing_is_named_by_its_event() {
        let dir = TempDir::new().unwrap();
        let store = store_after(&dir, [put("a", 1), put("b", 1)]);
        let db = &store.inner.view().db;
        let mut batch = WriteBatch::default();
        batch.delete_cf(db.cf(DATA), keys::data_key(b"a", Revision::new(2, 0)));
        db.write(batch).unwrap();
        let error = store.hash_kv(0).unwrap_err().to_string();
        let at = "column family events, key 00000000000000020000000000000000: the version of a put is missing";
        assert!(error.contains(at), "{error}");
    }
}
