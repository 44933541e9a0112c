//! The versions that a key has had, newest first: they stand side by side in `data`.

use proto::{Revision, mvccpb::KeyValue};

use crate::{
    db::DATA,
    error::{ReadError, StorageError},
    keys,
    range::Snapshot,
    store::Store,
};

/// Bytes of values after which a page of history ends.
const PAGE_BYTES: usize = 4 << 20;

/// What one write made of a key.
#[derive(Debug, Clone, PartialEq)]
pub struct Version {
    pub revision: Revision,
    /// None for a delete.
    pub kv: Option<KeyValue>,
}

impl Store {
    /// Versions of `key` below revision `before` (0 for all), up to `limit` of them and some megabytes, newest first,
    /// down to the one that was in force at the compacted revision. With them, whether there are more.
    pub fn history(&self, key: &[u8], before: i64, limit: usize) -> Result<(Vec<Version>, bool), ReadError> {
        Ok(self.inner.view().snapshot().history(key, before, limit)?)
    }
}

impl Snapshot<'_> {
    fn history(&self, key: &[u8], before: i64, limit: usize) -> Result<(Vec<Version>, bool), StorageError> {
        let newest = if before > 0 { self.revision.min(before - 1) } else { self.revision };
        let (mut versions, mut bytes) = (Vec::new(), 0);
        let end = keys::after_versions(key);
        let mut cursor = self.db.cursor(DATA);
        cursor.seek(&keys::data_key(key, Revision::new(newest, i64::MAX)));
        while let Some((at, value)) = cursor.item()?.filter(|(at, _)| *at < end.as_slice()) {
            let (_, revision) =
                keys::parse_data_key(at).ok_or_else(|| self.db.damaged(DATA, at, "the key is not a version's"))?;
            let kv = self.db.decode_version(at, value, key)?;
            // What compaction has not come to yet is forgotten nevertheless, and so is a delete from before.
            let is_last = revision.main <= self.compacted;
            if is_last && kv.is_none() {
                break;
            }
            if versions.len() == limit || bytes >= PAGE_BYTES {
                return Ok((versions, true));
            }
            bytes += kv.as_ref().map_or(0, |kv| kv.value.len());
            versions.push(Version { revision, kv });
            if is_last {
                break;
            }
            cursor.next();
        }
        Ok((versions, false))
    }
}
