//! Range: which keys, in which order, how many. (etcd: `server/etcdserver/txn/range.go`, `mvcc/kvstore_txn.go`.)
//!
//! A version stands in `data` as it stands in an answer, but for its key. So an answer that takes versions as they come
//! ([`is_plain`]) is put together from their bytes, and none is decoded.
//!
//! At the current revision the key index answers everything but the values: the count, the order by any number, keys
//! only. At an older revision the `data` column family is scanned, where the versions of a key stand newest first.

use bytes::Bytes;
use prost::encoding::{encode_varint, encoded_len_varint};
use proto::{
    EtcdError, KeyRange, Revision,
    etcdserverpb::{
        RangeRequest, RangeResponse, ResponseHeader,
        range_request::{SortOrder, SortTarget},
    },
    mvccpb::KeyValue,
};

use crate::{
    db::{Cursor, DATA, Db},
    error::{ReadError, StorageError},
    index::{Entry, Index},
    keys,
    record::Kind,
};

/// How far a cursor steps before it seeks instead.
const STEPS_MAX: usize = 8;

/// One state of the store, as a reader or a running transaction sees it.
pub(crate) struct Snapshot<'a> {
    pub db: &'a Db,
    pub index: &'a Index,
    pub revision: i64,
    pub compacted: i64,
    /// Versions that are not in `db` yet.
    pub pending: Option<&'a Pending>,
}

/// Versions of one batch, by revision.
#[derive(Default)]
pub(crate) struct Pending(Vec<(Revision, KeyValue)>);

impl Pending {
    /// Adds one that is newer than all before.
    pub fn push(&mut self, revision: Revision, kv: KeyValue) {
        self.0.push((revision, kv));
    }

    fn get(&self, revision: Revision) -> Option<&KeyValue> {
        let at = self.0.binary_search_by_key(&revision, |(at, _)| *at).ok()?;
        Some(&self.0[at].1)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// Why a range on a [`Snapshot`] has no result.
#[derive(Debug)]
pub(crate) enum Failed {
    Read(ReadError),
    /// A version that the snapshot's index names is not in the store: a compaction overtook the reader, or it is lost.
    Missing {
        key: Bytes,
        revision: Revision,
    },
}

impl<E: Into<ReadError>> From<E> for Failed {
    fn from(error: E) -> Self {
        Failed::Read(error.into())
    }
}

impl Failed {
    /// The error when no compaction can have overtaken the reader.
    pub fn into_error(self, db: &Db) -> ReadError {
        match self {
            Failed::Read(error) => error,
            Failed::Missing { key, revision } => {
                let detail = format!("key {key:?} has no version at revision {revision}, but the index names it");
                StorageError::damaged(db.path(), detail).into()
            }
        }
    }
}

/// A key on its way into the answer. The value is fetched last, for what is left after filters and limit.
struct Found {
    kv: KeyValue,
    at: Revision,
    has_value: bool,
}

impl Found {
    fn from_index(key: &[u8], entry: &Entry) -> Self {
        let kv = KeyValue {
            key: Bytes::copy_from_slice(key),
            create_revision: entry.create_revision,
            mod_revision: entry.mod_revision.main,
            version: entry.version,
            value: Bytes::new(),
            lease: entry.lease,
        };
        Found { kv, at: entry.mod_revision, has_value: false }
    }
}

impl Snapshot<'_> {
    /// The whole of Range. The header holds the revision only.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Failed> {
        let revision = self.revision_of(request.revision)?;
        let range = KeyRange::new(request.key.clone(), request.range_end.clone());
        let header = Some(ResponseHeader { revision: self.revision, ..Default::default() });
        if request.count_only {
            return Ok(RangeResponse { header, count: self.count(&range, revision)? as i64, ..Default::default() });
        }

        let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0);
        // With an order or filters everything is read before it is cut.
        let read_limit = limit.filter(|_| !is_reordered(request) && !is_filtered(request)).map(|limit| limit + 1);
        let (mut found, count) = self.find(&range, revision, read_limit)?;
        found.retain(|found| passes(&found.kv, request));
        if request.sort_target() == SortTarget::Value {
            self.fetch(&mut found)?;
        }
        sort(&mut found, request);
        let more = limit.is_some_and(|limit| found.len() > limit);
        found.truncate(limit.unwrap_or(usize::MAX));
        if !request.keys_only {
            self.fetch(&mut found)?;
        }
        let mut kvs: Vec<KeyValue> = found.into_iter().map(|found| found.kv).collect();
        if request.keys_only {
            kvs.iter_mut().for_each(|kv| kv.value = Bytes::new());
        }
        Ok(RangeResponse { header, kvs, more, count: count as i64 })
    }

    /// [`Snapshot::range`] of a request that [`is_plain`], encoded behind the header, which `begin` writes for the
    /// revision of this state.
    pub fn range_encoded(&self, request: &RangeRequest, begin: impl Fn(i64, &mut Vec<u8>)) -> Result<Vec<u8>, Failed> {
        debug_assert!(is_plain(request) && self.pending.is_none());
        let revision = self.revision_of(request.revision)?;
        let range = KeyRange::new(request.key.clone(), request.range_end.clone());
        let limit = usize::try_from(request.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let mut out = Encoded { bytes: Vec::new(), keys: 0 };
        begin(self.revision, &mut out.bytes);
        let (count, more) = if revision == self.revision {
            let count = self.index.count(&range);
            self.encode_current(&range, limit.min(count), &mut out)?;
            (count, count > limit)
        } else {
            let mut found = 0;
            self.scan(&range, revision, limit.saturating_add(1), |key, _, at, value| {
                let Some(version) = self.db.open_version(at, value)? else { return Ok(false) };
                found += 1;
                if found <= limit {
                    out.put(key, version);
                }
                Ok(true)
            })?;
            (if found > limit { self.count(&range, revision)? } else { found }, found > limit)
        };
        Ok(out.end(more, count))
    }

    /// The first `keys` of a range, at the current revision.
    fn encode_current(&self, range: &KeyRange, keys: usize, out: &mut Encoded) -> Result<(), Failed> {
        let missing = |key: &[u8], entry: &Entry| Failed::Missing {
            key: Bytes::copy_from_slice(key),
            revision: entry.mod_revision,
        };
        let entries = self.index.range(range).take(keys);
        if keys <= STEPS_MAX {
            for (key, entry) in entries {
                let at = keys::data_key(key, entry.mod_revision);
                let value = self.db.get(DATA, &at)?.ok_or_else(|| missing(key, entry))?;
                let version = self.db.open_version(&at, &value)?.ok_or_else(|| missing(key, entry))?;
                out.put(key, version);
            }
            return Ok(());
        }
        let mut cursor = self.db.cursor(DATA);
        let mut wanted = Vec::new();
        for (i, (key, entry)) in entries.enumerate() {
            wanted.clear();
            keys::put_data_key(key, entry.mod_revision, &mut wanted);
            advance_to(&mut cursor, &wanted)?;
            let version = match cursor.item()? {
                Some((at, value)) if at == wanted => self.db.open_version(at, value)?,
                _ => None,
            };
            out.put(key, version.ok_or_else(|| missing(key, entry))?);
            if i + 1 == SAMPLE {
                out.reserve_for(keys - SAMPLE);
            }
        }
        Ok(())
    }

    /// The revision a request means: 0 and below is the current one.
    pub fn revision_of(&self, requested: i64) -> Result<i64, EtcdError> {
        let revision = if requested <= 0 { self.revision } else { requested };
        match () {
            _ if revision > self.revision => Err(EtcdError::FutureRev),
            _ if revision < self.compacted => Err(EtcdError::Compacted),
            _ => Ok(revision),
        }
    }

    /// The value of a version that the index names.
    pub fn version(&self, key: &[u8], at: Revision) -> Result<KeyValue, Failed> {
        if let Some(kv) = self.pending.and_then(|pending| pending.get(at)) {
            return Ok(kv.clone());
        }
        let missing = || Failed::Missing { key: Bytes::copy_from_slice(key), revision: at };
        self.db.version(key, at)?.ok_or_else(missing)
    }

    /// Up to `limit` keys of the range, and the number of all.
    fn find(&self, range: &KeyRange, revision: i64, limit: Option<usize>) -> Result<(Vec<Found>, usize), Failed> {
        if revision == self.revision {
            let entries = self.index.range(range).take(limit.unwrap_or(usize::MAX));
            let found = entries.map(|(key, entry)| Found::from_index(key, entry)).collect();
            return Ok((found, self.index.count(range)));
        }
        let mut found = Vec::new();
        self.scan(range, revision, limit.unwrap_or(usize::MAX), |key, version, at, value| {
            let kv = self.db.decode_version(at, value, key)?;
            let is_there = kv.is_some();
            found.extend(kv.map(|kv| Found { kv, at: version, has_value: true }));
            Ok(is_there)
        })?;
        let all_read = limit.is_none_or(|limit| found.len() < limit);
        let count = if all_read { found.len() } else { self.count(range, revision)? };
        Ok((found, count))
    }

    /// The number of keys in the range at a revision: those of now, less what was created since, plus what was deleted.
    fn count(&self, range: &KeyRange, revision: i64) -> Result<usize, Failed> {
        let now = self.index.count(range);
        if revision == self.revision {
            return Ok(now);
        }
        let mut count = now as i64;
        self.db.each_event(revision + 1, self.revision, |_, event| {
            if range.contains(&event.key) {
                match event.kind {
                    Kind::Put => count -= event.prev.is_none() as i64,
                    Kind::Delete => count += 1,
                }
            }
            Ok(true)
        })?;
        // A compaction that overtakes the reader makes it wrong; then all is read again.
        Ok(count.max(0) as usize)
    }

    /// Calls `visit` with each key, its last change up to `revision`, and where and what the record of that is, in key
    /// order, until `visit` has said of `limit` of them that they are versions and no tombstones.
    fn scan(
        &self,
        range: &KeyRange,
        revision: i64,
        limit: usize,
        mut visit: impl FnMut(&[u8], Revision, &[u8], &[u8]) -> Result<bool, StorageError>,
    ) -> Result<(), StorageError> {
        debug_assert!(self.pending.is_none_or(Pending::is_empty), "a scan sees what is written only");
        let mut cursor = self.db.cursor(DATA);
        cursor.seek(&keys::data_prefix(range.start()));
        let mut left = limit;
        while left > 0
            && let Some((at, value)) = cursor.item()?
        {
            let (key, version) =
                keys::parse_data_key(at).ok_or_else(|| self.db.damaged(DATA, at, "the key is not a version's"))?;
            if !range.contains(&key) {
                break;
            }
            if version.main > revision {
                let newest = Revision::new(revision, i64::MAX);
                advance_to(&mut cursor, &keys::data_key(&key, newest))?;
                continue;
            }
            if visit(&key, version, at, value)? {
                left -= 1;
            }
            advance_to(&mut cursor, &keys::after_versions(&key))?;
        }
        Ok(())
    }

    /// Fetches the values that are not there yet: one by one when few, else along one cursor.
    fn fetch(&self, found: &mut [Found]) -> Result<(), Failed> {
        if found.len() <= STEPS_MAX {
            for found in found.iter_mut().filter(|found| !found.has_value) {
                found.kv = self.version(&found.kv.key, found.at)?;
                found.has_value = true;
            }
            return Ok(());
        }
        let mut cursor = self.db.cursor(DATA);
        for found in found.iter_mut().filter(|found| !found.has_value) {
            if let Some(kv) = self.pending.and_then(|pending| pending.get(found.at)) {
                found.kv = kv.clone();
            } else {
                let wanted = keys::data_key(&found.kv.key, found.at);
                advance_to(&mut cursor, &wanted)?;
                let kv = match cursor.item()? {
                    Some((at, value)) if at == wanted => self.db.decode_version(at, value, &found.kv.key)?,
                    _ => None,
                };
                let missing = || Failed::Missing { key: found.kv.key.clone(), revision: found.at };
                found.kv = kv.ok_or_else(missing)?;
            }
            found.has_value = true;
        }
        Ok(())
    }
}

/// Versions of which the size of an answer is estimated.
const SAMPLE: usize = 32;

// Fields of `RangeResponse` and `KeyValue`: the number above three bits of its encoding.
const KVS: u8 = 2 << 3 | 2;
const MORE: u8 = 3 << 3;
const COUNT: u8 = 4 << 3;
const KEY: u8 = 1 << 3 | 2;

/// An answer that is being put together.
struct Encoded {
    bytes: Vec<u8>,
    keys: usize,
}

impl Encoded {
    fn put(&mut self, key: &[u8], version: &[u8]) {
        let out = &mut self.bytes;
        // An empty field is left out.
        let key_bytes = if key.is_empty() { 0 } else { 1 + encoded_len_varint(key.len() as u64) + key.len() };
        out.push(KVS);
        encode_varint((key_bytes + version.len()) as u64, out);
        if !key.is_empty() {
            out.push(KEY);
            encode_varint(key.len() as u64, out);
            out.extend_from_slice(key);
        }
        out.extend_from_slice(version);
        self.keys += 1;
    }

    /// Makes room for so many further keys like those that there are.
    fn reserve_for(&mut self, keys: usize) {
        let each = self.bytes.len() / self.keys;
        self.bytes.reserve(keys * (each + each / 32));
    }

    fn end(self, more: bool, count: usize) -> Vec<u8> {
        let mut out = self.bytes;
        if more {
            out.extend([MORE, 1]);
        }
        if count > 0 {
            out.push(COUNT);
            encode_varint(count as u64, &mut out);
        }
        out
    }
}

/// Whether a range's answer is the versions as they come, in the order of their keys.
pub fn is_plain(request: &RangeRequest) -> bool {
    let is_in_order = request.sort_target() == SortTarget::Key && request.sort_order() != SortOrder::Descend;
    is_in_order && !is_filtered(request) && !request.count_only && !request.keys_only
}

/// Moves to the first key not below `target`: by steps while it is near and ahead, else by a seek.
fn advance_to(cursor: &mut Cursor<'_>, target: &[u8]) -> Result<(), StorageError> {
    for step in 0..STEPS_MAX {
        match cursor.item()? {
            Some((at, _)) if at < target => cursor.next(),
            // Not below the target, but only a cursor that came from below it stands at the first such key.
            Some((at, _)) if at == target || step > 0 => return Ok(()),
            _ => break,
        }
    }
    cursor.seek(target);
    Ok(())
}

fn is_filtered(request: &RangeRequest) -> bool {
    let RangeRequest { min_mod_revision, max_mod_revision, min_create_revision, max_create_revision, .. } = *request;
    [min_mod_revision, max_mod_revision, min_create_revision, max_create_revision].iter().any(|bound| *bound != 0)
}

/// etcd cuts before it sorts when no order is given, even if a target is.
fn is_reordered(request: &RangeRequest) -> bool {
    let ascending_keys = request.sort_target() == SortTarget::Key && request.sort_order() == SortOrder::Ascend;
    request.sort_order() != SortOrder::None && !ascending_keys
}

fn passes(kv: &KeyValue, request: &RangeRequest) -> bool {
    let within = |value: i64, min: i64, max: i64| (min == 0 || value >= min) && (max == 0 || value <= max);
    within(kv.mod_revision, request.min_mod_revision, request.max_mod_revision)
        && within(kv.create_revision, request.min_create_revision, request.max_create_revision)
}

/// Sorts stably: keys that compare equal stay in key order. etcd's sort is not stable beyond twelve keys.
fn sort(found: &mut [Found], request: &RangeRequest) {
    let descending = request.sort_order() == SortOrder::Descend;
    if request.sort_target() == SortTarget::Key && !descending {
        return;
    }
    found.sort_by(|a, b| {
        let (a, b) = (&a.kv, &b.kv);
        let order = match request.sort_target() {
            SortTarget::Key => a.key.cmp(&b.key),
            SortTarget::Version => a.version.cmp(&b.version),
            SortTarget::Create => a.create_revision.cmp(&b.create_revision),
            SortTarget::Mod => a.mod_revision.cmp(&b.mod_revision),
            SortTarget::Value => a.value.cmp(&b.value),
        };
        if descending { order.reverse() } else { order }
    });
}
