//! A store made of what was elsewhere: versions in order of their revisions, as etcd's files have them, and the rest.
//!
//! ```text
//! versions, by revision ─> `data`, which RocksDB sorts by key ─> one scan ─> `events`, each with what it superseded
//! ```
//!
//! Nothing is kept in memory for a key, so the store may be of any size. Nothing is durable, and the store may not be
//! opened, before [`Loader::finish`]; it stands nowhere in a log before [`settle`].

use std::path::Path;

use prost::Message;
use proto::{
    Revision,
    authpb::{Role, User},
    etcdserverpb::AlarmMember,
    mvccpb::KeyValue,
};
use rocksdb::WriteBatch;

use crate::{
    alarm,
    auth::AuthState,
    db::{ALARM, DATA, Db, EVENTS, LEASE, MEMBER, META},
    error::StorageError,
    keys,
    lease::{self, LeaseInfo},
    record::{self, EventRecord, Kind},
    snapshot,
    store::{Applied, FIRST_REVISION, FORMAT_VERSION, Meta, NEVER_COMPACTED, meta},
};

/// Written at once.
const BATCH_BYTES: usize = 1 << 20;
/// Nothing is read twice.
const CACHE_BYTES: usize = 8 << 20;
/// What a version superseded whose predecessor compaction has removed. No version ever stands there: the first
/// transaction makes revision 2.
const FORGOTTEN: Revision = Revision::new(FIRST_REVISION, 0);

/// How far a store was compacted, -1 where it never was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compaction {
    /// Versions that only revisions below can see are not shown any more.
    pub revision: i64,
    /// They are gone up to here.
    pub finished: i64,
}

impl Default for Compaction {
    fn default() -> Self {
        Compaction { revision: NEVER_COMPACTED, finished: NEVER_COMPACTED }
    }
}

/// A store in the making.
pub struct Loader {
    db: Db,
    batch: WriteBatch,
    newest: Revision,
}

impl Loader {
    /// Begins a store in `dir`, which is empty or is not there.
    pub fn create(dir: &Path) -> Result<Loader, StorageError> {
        let db = Db::open(&snapshot::current(dir)?, CACHE_BYTES)?;
        Ok(Loader { db, batch: WriteBatch::default(), newest: Revision::default() })
    }

    /// Adds a version; of a delete only the key counts.
    ///
    /// # Panics
    /// When it does not come behind the one before.
    pub fn version(&mut self, at: Revision, kind: Kind, kv: &KeyValue) -> Result<(), StorageError> {
        assert!(at > self.newest, "version {at} comes after {}", self.newest);
        self.newest = at;
        let key = keys::data_key(&kv.key, at);
        let value = match kind {
            Kind::Put => record::encode_version(&key, kv),
            Kind::Delete => record::encode_tombstone(&key),
        };
        self.batch.put_cf(self.db.cf(DATA), key, value);
        self.write_when(BATCH_BYTES)
    }

    pub fn lease(&mut self, lease: LeaseInfo) -> Result<(), StorageError> {
        self.batch.put_cf(self.db.cf(LEASE), lease.id.0.to_be_bytes(), lease::encode(&lease));
        self.write_when(BATCH_BYTES)
    }

    pub fn alarm(&mut self, alarm: &AlarmMember) {
        self.batch.put_cf(self.db.cf(ALARM), alarm::key(alarm.member_id, alarm.alarm), alarm.encode_to_vec());
    }

    /// All users and roles, whether they count, and their revision.
    pub fn auth(&mut self, is_enabled: bool, revision: u64, users: Vec<User>, roles: Vec<Role>) -> Result<(), String> {
        let auth = AuthState::of(is_enabled, revision, users, roles)?;
        auth.write_changes(&AuthState::default(), &self.db, &mut self.batch);
        Ok(())
    }

    /// Works out what each version superseded, and brings all to the disk. `progress` is told the bytes of each version
    /// that is looked at, and may end the work.
    pub fn finish<E: From<StorageError>>(
        mut self,
        compaction: Compaction,
        mut progress: impl FnMut(u64) -> Result<(), E>,
    ) -> Result<(), E> {
        self.write_when(0)?;
        let mut newer: Option<Version> = None;
        let mut cursor = self.db.cursor(DATA);
        cursor.seek(b"");
        while let Some((at, value)) = cursor.item()? {
            progress((at.len() + value.len()) as u64)?;
            let version = Version::read(&self.db, at, value)?;
            if let Some(newer) = &newer {
                newer.write_event(&self.db, &mut self.batch, Some(&version).filter(|older| older.key == newer.key));
            }
            newer = Some(version);
            if self.batch.size_in_bytes() >= BATCH_BYTES {
                self.db.write(std::mem::take(&mut self.batch))?;
            }
            cursor.next();
        }
        drop(cursor);
        if let Some(last) = newer {
            last.write_event(&self.db, &mut self.batch, None);
        }
        // As etcd does when it starts: what a compaction removed may have been the newest.
        let revision = self.newest.main.max(compaction.revision).max(FIRST_REVISION);
        let family = self.db.cf(META);
        self.batch.put_cf(family, meta::FORMAT, u64::from(FORMAT_VERSION).to_be_bytes());
        self.batch.put_cf(family, meta::REVISION, revision.to_be_bytes());
        if compaction.revision >= 0 {
            self.batch.put_cf(family, meta::COMPACTED, compaction.revision.to_be_bytes());
        }
        if compaction.finished >= 0 {
            self.batch.put_cf(family, meta::COMPACTION_FINISHED, compaction.finished.to_be_bytes());
        }
        self.write_when(0)?;
        Ok(self.db.flush()?)
    }

    fn write_when(&mut self, bytes: usize) -> Result<(), StorageError> {
        match self.batch.size_in_bytes() >= bytes {
            true => self.db.write(std::mem::take(&mut self.batch)),
            false => Ok(()),
        }
    }
}

/// What `events` holds of a version.
struct Version {
    key: bytes::Bytes,
    at: Revision,
    /// Without its value; None for a tombstone.
    put: Option<KeyValue>,
}

impl Version {
    fn read(db: &Db, at: &[u8], value: &[u8]) -> Result<Version, StorageError> {
        let (key, revision) =
            keys::parse_data_key(at).ok_or_else(|| db.damaged(DATA, at, "the key is not a key and a revision"))?;
        let put = db.decode_version(at, value, &key)?.map(|kv| KeyValue { value: Default::default(), ..kv });
        Ok(Version { key: key.into(), at: revision, put })
    }

    fn write_event(&self, db: &Db, batch: &mut WriteBatch, older: Option<&Version>) {
        let superseded = older.filter(|older| older.put.is_some()).map(|older| older.at);
        let Version { key, at, put } = self;
        let key = key.clone();
        let event = match put {
            Some(kv) => EventRecord {
                kind: Kind::Put,
                key,
                prev: superseded.or((older.is_none() && kv.version > 1).then_some(FORGOTTEN)),
                create_revision: kv.create_revision,
                version: kv.version,
                lease: kv.lease,
            },
            None => EventRecord::delete(key, superseded.unwrap_or(FORGOTTEN)),
        };
        let at = keys::event_key(*at);
        batch.put_cf(db.cf(EVENTS), at, event.encode(&at));
    }
}

/// What a store ended up with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    pub revision: i64,
    pub compacted: i64,
}

/// Gives the store in `dir`, which nobody has open, its place in a new log. With `bump` its revision grows by so much
/// first, and all before is compacted: clients then see that their revisions are of the past.
///
/// As in etcd the new revision holds an empty version of the empty key, and counts from the newest version there is.
/// (etcd: `etcdutl/snapshot/v3_snapshot.go`, modifyLatestRevision.)
pub fn settle(dir: &Path, bump: Option<i64>, applied: &Applied) -> Result<Settled, StorageError> {
    let db = Db::open(&snapshot::current(dir)?, CACHE_BYTES)?;
    let Meta { mut revision, mut compacted, .. } = Meta::read(&db)?;
    let mut batch = WriteBatch::default();
    if let Some(bump) = bump {
        let at = Revision::new(db.newest_event()?.unwrap_or_default().main.saturating_add(bump), 0);
        let key = keys::data_key(b"", at);
        batch.put_cf(db.cf(DATA), &key, record::encode_version(&key, &KeyValue::default()));
        let version = Version { key: Default::default(), at, put: Some(KeyValue::default()) };
        version.write_event(&db, &mut batch, None);
        (revision, compacted) = (revision.max(at.main), compacted.max(at.main));
        batch.put_cf(db.cf(META), meta::REVISION, revision.to_be_bytes());
        batch.put_cf(db.cf(META), meta::COMPACTED, compacted.to_be_bytes());
    }
    let position = [applied.index.to_be_bytes(), applied.term.to_be_bytes()].concat();
    batch.put_cf(db.cf(META), meta::APPLIED, position);
    batch.put_cf(db.cf(META), meta::MEMBERSHIP, &applied.membership);
    // The members there were are not those there will be.
    db.all(MEMBER)?.iter().for_each(|(id, _)| batch.delete_cf(db.cf(MEMBER), id));
    db.write(batch)?;
    db.flush()?;
    Ok(Settled { revision, compacted })
}
