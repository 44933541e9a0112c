//! Everything that stands in the store at one point, read while others write.
//!
//! The point is a RocksDB snapshot: one write of the applier is in it whole or not at all, so what is read here is the
//! state behind one applied entry. A compaction that is at work is seen as far as it has come:
//! [`Export::compaction_finished`] then lies below [`Export::compacted`].

use prost::Message;
use proto::{Revision, command::MemberAttributes, etcdserverpb::AlarmMember, mvccpb::KeyValue};

use crate::{
    auth::AuthState,
    db::{ALARM, DATA, Db, EVENTS, LEASE, MEMBER},
    error::StorageError,
    keys,
    lease::{self, LeaseInfo},
    record::Kind,
    store::{Applied, Meta, Store},
};

/// The state of a store at one point.
pub struct Export<'a> {
    db: &'a Db,
    point: rocksdb::Snapshot<'a>,
    meta: Meta,
}

impl Store {
    /// Calls `read` with the state as it is now. It keeps what it shows from being reclaimed until `read` returns, and
    /// holds up nobody.
    pub fn export<T, E: From<StorageError>>(&self, read: impl FnOnce(&Export<'_>) -> Result<T, E>) -> Result<T, E> {
        let view = self.inner.view();
        let db = &*view.db;
        let point = db.raw().snapshot();
        let meta = Meta::read_at(db, &point)?;
        read(&Export { db, point, meta })
    }
}

impl Export<'_> {
    pub fn applied(&self) -> &Applied {
        &self.meta.applied
    }

    pub fn revision(&self) -> i64 {
        self.meta.revision
    }

    /// -1 when the store was never compacted.
    pub fn compacted(&self) -> i64 {
        self.meta.compacted
    }

    /// The last compaction whose versions are all gone; -1 when there was none.
    pub fn compaction_finished(&self) -> i64 {
        self.meta.compaction_finished
    }

    /// Every version that stands in the store, in order of revisions. A tombstone holds its key only.
    pub fn each_version<E: From<StorageError>>(
        &self,
        mut visit: impl FnMut(Revision, Kind, KeyValue) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut refused = Ok(());
        self.db.each_event_at(Some(&self.point), Revision::default(), i64::MAX, |at, event| {
            let kv = match event.kind {
                Kind::Delete => KeyValue { key: event.key, ..Default::default() },
                Kind::Put => self.version(&event.key, at)?,
            };
            refused = visit(at, event.kind, kv);
            Ok(refused.is_ok())
        })?;
        refused
    }

    /// In order of ids as unsigned numbers.
    pub fn each_lease<E: From<StorageError>>(
        &self,
        mut visit: impl FnMut(LeaseInfo) -> Result<(), E>,
    ) -> Result<(), E> {
        self.each(LEASE, |key, value| {
            visit(lease::decode(key, value).ok_or_else(|| self.db.damaged(LEASE, key, "not a lease"))?)
        })
    }

    /// What members said of themselves, in order of ids.
    pub fn member_attributes(&self) -> Result<Vec<MemberAttributes>, StorageError> {
        self.messages(MEMBER)
    }

    pub fn auth(&self) -> Result<AuthState, StorageError> {
        AuthState::load_at(self.db, &self.point)
    }

    /// In order of members, then of types.
    pub fn alarms(&self) -> Result<Vec<AlarmMember>, StorageError> {
        self.messages(ALARM)
    }

    fn messages<M: Message + Default>(&self, family: &'static str) -> Result<Vec<M>, StorageError> {
        let mut all = Vec::new();
        self.each(family, |key, value| {
            all.push(M::decode(value).map_err(|e| self.db.damaged(family, key, e))?);
            Ok::<_, StorageError>(())
        })?;
        Ok(all)
    }

    fn each<E: From<StorageError>>(
        &self,
        family: &'static str,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut cursor = self.db.cursor_at(family, Some(&self.point));
        cursor.seek(b"");
        while let Some((key, value)) = cursor.item()? {
            visit(key, value)?;
            cursor.next();
        }
        Ok(())
    }

    fn version(&self, key: &[u8], at: Revision) -> Result<KeyValue, StorageError> {
        let stands_at = keys::data_key(key, at);
        let value = self.point.get_pinned_cf(self.db.cf(DATA), &stands_at).map_err(|e| self.db.error(e))?;
        let version = match value {
            Some(value) => self.db.decode_version(&stands_at, &value, key)?,
            None => None,
        };
        version.ok_or_else(|| self.db.damaged(EVENTS, &keys::event_key(at), "the version of a put is missing"))
    }
}
