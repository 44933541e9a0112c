//! The store's front: opening, and everything that is read.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use prost::Message;
use proto::{
    KeyRange, LeaseId, Revision,
    command::MemberAttributes,
    etcdserverpb::{AlarmMember, RangeRequest, RangeResponse, ResponseHeader, TxnRequest, TxnResponse},
    mvccpb::KeyValue,
};

use crate::{
    apply::{Applier, LogEntry, Prepared},
    auth::AuthState,
    compact::{Compactor, Pace},
    db::{ALARM, Db, LEASE, MEMBER, META},
    error::{ReadError, StorageError},
    event::Observer,
    index::{Entry, Index},
    lease::{self, LeaseInfo, Leases},
    planted,
    range::{Failed, Snapshot},
    record::Kind,
    snapshot,
    stats::{Counters, Going, Work},
    txn,
};

pub(crate) const FORMAT_VERSION: u32 = 1;

/// Keys of the column family `meta`.
pub(crate) mod meta {
    pub const FORMAT: &[u8] = b"format";
    pub const APPLIED: &[u8] = b"applied";
    pub const MEMBERSHIP: &[u8] = b"membership";
    pub const REVISION: &[u8] = b"revision";
    pub const COMPACTED: &[u8] = b"compacted";
    pub const COMPACTION_FINISHED: &[u8] = b"compaction_finished";
    pub const CLUSTER_VERSION: &[u8] = b"cluster_version";
    pub const DOWNGRADE_TARGET: &[u8] = b"downgrade_target";
}

/// The compacted revision of a store that was never compacted, as etcd has it.
pub(crate) const NEVER_COMPACTED: i64 = -1;
pub(crate) const FIRST_REVISION: i64 = 1;

/// RocksDB's names for sizes.
const FILES_BYTES: &str = "rocksdb.total-sst-files-size";
const MEMORY_BYTES: &str = "rocksdb.cur-size-all-mem-tables";

pub struct Options {
    /// Told of every change.
    pub observer: Arc<dyn Observer>,
    /// Block cache, in bytes.
    pub cache_bytes: usize,
}

/// How far the Raft log has been applied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    pub index: u64,
    pub term: u64,
    /// The newest membership payload applied.
    pub membership: Bytes,
}

/// What the cluster has agreed on about the releases of its members.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Versions {
    /// None in a cluster that is new.
    pub cluster: Option<String>,
    /// While the cluster is being downgraded.
    pub downgrade_target: Option<String>,
}

/// Sizes in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    /// Files and memory not yet written to files.
    pub on_disk: i64,
    /// An estimate of what would be left if everything deleted were gone from the files.
    pub in_use: i64,
}

/// The multi-version store. Cheap to clone; every method may be called from any thread, and blocks while it reads.
#[derive(Clone)]
pub struct Store {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub dir: PathBuf,
    /// What readers see: replaced after each applied batch.
    pub view: RwLock<Arc<View>>,
    /// What the applier works on.
    pub state: Mutex<State>,
    pub leases: RwLock<Leases>,
    pub members: RwLock<BTreeMap<u64, MemberAttributes>>,
    /// Member and alarm type.
    pub alarms: RwLock<BTreeSet<(u64, i32)>>,
    pub applied: RwLock<Applied>,
    pub compactor: Compactor,
    pub counters: Arc<Counters>,
    /// Last: who waits for the end of the observer finds the files closed.
    pub options: Options,
}

/// One state of the store that readers share.
pub(crate) struct View {
    pub db: Arc<Db>,
    pub index: Index,
    pub revision: i64,
    pub compacted: i64,
    pub auth: Arc<AuthState>,
    pub versions: Arc<Versions>,
}

/// The applier's side of the same.
#[derive(Clone)]
pub(crate) struct State {
    pub db: Arc<Db>,
    pub index: Index,
    pub revision: i64,
    pub compacted: i64,
    pub auth: Arc<AuthState>,
    pub versions: Arc<Versions>,
}

/// All that stands in a RocksDB, brought into memory.
pub(crate) struct Loaded {
    pub state: State,
    pub leases: Leases,
    pub members: BTreeMap<u64, MemberAttributes>,
    pub alarms: BTreeSet<(u64, i32)>,
    pub applied: Applied,
    pub compaction_finished: i64,
}

impl Store {
    /// Opens the store in `dir`, or makes an empty one there.
    pub fn open(dir: &Path, options: Options) -> Result<Store, StorageError> {
        let db = Arc::new(Db::open(&snapshot::current(dir)?, options.cache_bytes)?);
        let Loaded { state, leases, members, alarms, applied, compaction_finished } = Loaded::from(db)?;
        let counters = Arc::<Counters>::default();
        let (told, counted) = (options.observer.clone(), counters.clone());
        let compactor = Compactor::start(state.db.clone(), compaction_finished, state.compacted, told, counted);
        let inner = Inner {
            dir: dir.into(),
            view: RwLock::new(Arc::new(state.view())),
            state: Mutex::new(state),
            leases: RwLock::new(leases),
            members: RwLock::new(members),
            alarms: RwLock::new(alarms),
            applied: RwLock::new(applied),
            compactor,
            counters,
            options,
        };
        Ok(Store { inner: Arc::new(inner) })
    }

    /// The one that changes the store. There must be one only.
    pub fn applier(&self) -> Applier {
        Applier::new(self.inner.clone())
    }

    /// Decodes entries that are to be applied.
    ///
    /// # Errors
    /// When one does not decode.
    pub fn prepare(&self, entries: Vec<LogEntry>) -> Result<Prepared<'static>, StorageError> {
        Prepared::new(entries.into(), &self.inner)
    }

    /// Whether a write would have to wait for RocksDB: what was written before is not on its way to the disk fast enough.
    pub fn writes_wait(&self) -> bool {
        self.inner.state.lock().db.writes_wait()
    }

    pub fn applied(&self) -> Applied {
        self.inner.applied.read().clone()
    }

    /// The current main revision; 1 when nothing was ever written.
    pub fn revision(&self) -> i64 {
        self.inner.view.read().revision
    }

    /// What is below this revision is forgotten; -1 when the store was never compacted.
    pub fn compacted_revision(&self) -> i64 {
        self.inner.view.read().compacted
    }

    /// The number of living keys.
    pub fn key_count(&self) -> usize {
        self.inner.view.read().index.len()
    }

    /// The whole of Range; the header holds the revision only.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, ReadError> {
        let began = Instant::now();
        self.inner.counters.add_range();
        let result = self.read(|snapshot| snapshot.range(request));
        self.inner.options.observer.took(Work::Range { is_done: result.is_ok() }, began.elapsed());
        result
    }

    /// The same for a request that [`is_plain`](crate::is_plain): an encoded `RangeResponse` behind what `begin` has
    /// written for the revision, which is to be its header.
    pub fn range_encoded(
        &self,
        request: &RangeRequest,
        begin: impl Fn(i64, &mut Vec<u8>),
    ) -> Result<Vec<u8>, ReadError> {
        let began = Instant::now();
        self.inner.counters.add_range();
        let result = self.read(|snapshot| snapshot.range_encoded(request, &begin));
        self.inner.options.observer.took(Work::Range { is_done: result.is_ok() }, began.elapsed());
        result
    }

    /// Evaluates a transaction that only reads, all at one revision.
    pub fn read_txn(&self, request: &TxnRequest) -> Result<TxnResponse, ReadError> {
        self.read(|snapshot| {
            txn::check(request, &txn::Path::choose(snapshot, request)?, snapshot, &|id| self.lease(id).is_some())?;
            let mut response = txn::read_only(snapshot, request)?;
            self.inner.counters.add_txn(request, &response);
            response.header = Some(ResponseHeader { revision: snapshot.revision, ..Default::default() });
            Ok(response)
        })
    }

    /// The version of `key` written at `at`; None when it has been compacted away.
    pub fn version_at(&self, key: &[u8], at: Revision) -> Result<Option<KeyValue>, StorageError> {
        self.inner.view().db.version(key, at)
    }

    /// In order of ids.
    pub fn leases(&self) -> Vec<LeaseInfo> {
        self.inner.leases.read().all()
    }

    pub fn lease(&self, id: LeaseId) -> Option<LeaseInfo> {
        self.inner.leases.read().get(id)
    }

    /// The keys that hang on a lease, in order.
    pub fn lease_keys(&self, id: LeaseId) -> Vec<Bytes> {
        self.inner.leases.read().keys(id).iter().map(|key| Bytes::copy_from_slice(key)).collect()
    }

    /// What members said of themselves, in order of ids.
    pub fn member_attributes(&self) -> Vec<MemberAttributes> {
        self.inner.members.read().values().cloned().collect()
    }

    /// In order of members, then of types.
    pub fn alarms(&self) -> Vec<AlarmMember> {
        self.inner.alarms.read().iter().map(|&(member_id, alarm)| AlarmMember { member_id, alarm }).collect()
    }

    /// Users and roles, as of the newest state that can be read.
    pub fn auth(&self) -> Arc<AuthState> {
        self.inner.view.read().auth.clone()
    }

    pub fn is_auth_enabled(&self) -> bool {
        self.inner.view.read().auth.is_enabled()
    }

    pub fn versions(&self) -> Arc<Versions> {
        self.inner.view.read().versions.clone()
    }

    pub fn size(&self) -> Result<Size, StorageError> {
        let db = &self.inner.view().db;
        let live = db.property("rocksdb.live-sst-files-size")?.min(db.property("rocksdb.estimate-live-data-size")?);
        let memory = db.property(MEMORY_BYTES)?;
        Ok(Size { on_disk: self.size_on_disk()?, in_use: (live + memory) as i64 })
    }

    /// [`Size::on_disk`] alone.
    pub fn size_on_disk(&self) -> Result<i64, StorageError> {
        let db = &self.inner.view().db;
        Ok((db.property(FILES_BYTES)? + db.property(MEMORY_BYTES)?) as i64)
    }

    /// Makes all that has been applied durable; returns the applied index that is durable now. The log may be purged
    /// up to there.
    pub fn flush(&self) -> Result<u64, StorageError> {
        let index = self.inner.applied.read().index;
        self.inner.view().db.flush()?;
        Ok(index)
    }

    /// Rewrites all files. Nothing needs it; etcd has it, so it is there.
    pub fn defragment(&self) -> Result<(), StorageError> {
        let view = self.inner.view();
        if planted!(DefragmentTearsFamilies) {
            view.db.flush_apart()?;
        }
        view.db.flush()?;
        view.db.compact();
        Ok(())
    }

    /// How fast compactions go from now on.
    pub fn pace_compaction(&self, pace: Pace) {
        self.inner.compactor.set_pace(pace);
    }

    /// Waits until what `revision`'s compaction forgets is gone from the store.
    pub async fn wait_compacted(&self, revision: i64) -> Result<(), StorageError> {
        self.inner.compactor.wait(revision).await
    }

    /// Runs a read on the newest state, and again when a compaction may have taken from under it what it was to read.
    fn read<T>(&self, read: impl Fn(&Snapshot<'_>) -> Result<T, Failed>) -> Result<T, ReadError> {
        let _going = Going::on(&self.inner.counters.open_reads);
        loop {
            let view = self.inner.view();
            let result = read(&view.snapshot());
            if self.compacted_revision() == view.compacted {
                return result.map_err(|failed| failed.into_error(&view.db));
            }
        }
    }
}

impl Inner {
    pub fn view(&self) -> Arc<View> {
        self.view.read().clone()
    }
}

impl View {
    pub fn snapshot(&self) -> Snapshot<'_> {
        Snapshot { db: &self.db, index: &self.index, revision: self.revision, compacted: self.compacted, pending: None }
    }
}

impl State {
    pub fn view(&self) -> View {
        let State { db, index, revision, compacted, auth, versions } = self.clone();
        View { db, index, revision, compacted, auth, versions }
    }
}

/// What the column family `meta` holds.
pub(crate) struct Meta {
    /// None in an empty store.
    format: Option<u32>,
    pub applied: Applied,
    versions: Versions,
    pub revision: i64,
    pub compacted: i64,
    pub compaction_finished: i64,
}

impl Meta {
    pub fn read(db: &Db) -> Result<Self, StorageError> {
        Meta::decode(db, db.all(META)?)
    }

    pub fn read_at<'a>(db: &'a Db, point: &rocksdb::Snapshot<'a>) -> Result<Self, StorageError> {
        Meta::decode(db, db.all_at(META, Some(point))?)
    }

    fn decode(db: &Db, items: Vec<(Bytes, Bytes)>) -> Result<Self, StorageError> {
        let mut meta = Meta {
            format: None,
            applied: Applied::default(),
            versions: Versions::default(),
            revision: FIRST_REVISION,
            compacted: NEVER_COMPACTED,
            compaction_finished: NEVER_COMPACTED,
        };
        for (key, value) in items {
            let number =
                |at: usize| value.get(at..at + 8).map(|b| u64::from_be_bytes(b.try_into().expect("eight bytes")));
            let text = || String::from_utf8(value.to_vec()).map_err(|error| db.damaged(META, &key, error));
            let number = |at: usize| number(at).ok_or_else(|| db.damaged(META, &key, "the value is cut short"));
            match key.as_ref() {
                meta::FORMAT => meta.format = Some(number(0)? as u32),
                meta::APPLIED => (meta.applied.index, meta.applied.term) = (number(0)?, number(8)?),
                meta::MEMBERSHIP => meta.applied.membership = value.clone(),
                meta::REVISION => meta.revision = number(0)? as i64,
                meta::COMPACTED => meta.compacted = number(0)? as i64,
                meta::COMPACTION_FINISHED => meta.compaction_finished = number(0)? as i64,
                meta::CLUSTER_VERSION => meta.versions.cluster = Some(text()?),
                meta::DOWNGRADE_TARGET => meta.versions.downgrade_target = Some(text()?),
                _ => return Err(db.damaged(META, &key, "a key that is not known here")),
            }
        }
        Ok(meta)
    }
}

impl Loaded {
    /// Rebuilds from `events` what is kept in memory of the keys, and reads the small column families.
    pub fn from(db: Arc<Db>) -> Result<Self, StorageError> {
        let Meta { format, applied, versions, revision, compacted, compaction_finished } = Meta::read(&db)?;
        match format {
            Some(FORMAT_VERSION) => {}
            Some(found) => {
                return Err(StorageError::Format { path: db.path().into(), found, known: FORMAT_VERSION });
            }
            None if applied.index == 0 => {
                let mut batch = rocksdb::WriteBatch::default();
                batch.put_cf(db.cf(META), meta::FORMAT, u64::from(FORMAT_VERSION).to_be_bytes());
                db.write(batch)?;
                db.flush()?;
            }
            None => return Err(db.damaged(META, meta::FORMAT, "there is no format version")),
        }

        let mut leases = Leases::default();
        for (key, value) in db.all(LEASE)? {
            leases.set(lease::decode(&key, &value).ok_or_else(|| db.damaged(LEASE, &key, "not a lease"))?);
        }
        let mut members = BTreeMap::new();
        for (key, value) in db.all(MEMBER)? {
            let member = MemberAttributes::decode(value).map_err(|e| db.damaged(MEMBER, &key, e))?;
            members.insert(member.id, member);
        }
        let mut alarms = BTreeSet::new();
        for (key, value) in db.all(ALARM)? {
            let alarm = AlarmMember::decode(value).map_err(|e| db.damaged(ALARM, &key, e))?;
            alarms.insert((alarm.member_id, alarm.alarm));
        }
        let index = load_index(&db, revision)?;
        let living = || index.range(&KeyRange::all()).map(|(_, entry)| entry.mod_revision.main).max();
        let revision = match compacted > 0 && planted!(RevisionFromLivingKeys) {
            true => living().unwrap_or(compacted),
            false => revision,
        };
        for (key, entry) in index.range(&KeyRange::all()) {
            leases.attach(key, entry.lease);
        }
        let auth = Arc::new(AuthState::load(&db)?);
        let state = State { db, index, revision, compacted, auth, versions: Arc::new(versions) };
        Ok(Loaded { state, leases, members, alarms, applied, compaction_finished })
    }
}

/// The living keys are those whose newest event is a put.
fn load_index(db: &Db, revision: i64) -> Result<Index, StorageError> {
    let mut newest: Vec<(Box<[u8]>, Revision, Option<Entry>)> = Vec::new();
    db.each_event(0, i64::MAX, |at, event| {
        if at.main > revision {
            return Err(db.damaged(
                "events",
                &crate::keys::event_key(at),
                format!("beyond the store's revision {revision}"),
            ));
        }
        newest.push((event.key.as_ref().into(), at, (event.kind == Kind::Put).then(|| event.entry(at))));
        Ok(true)
    })?;
    newest.sort_unstable_by(|(a, a_at, _), (b, b_at, _)| a.cmp(b).then(b_at.cmp(a_at)));
    newest.dedup_by(|later, first| later.0 == first.0);
    Ok(Index::from_sorted(newest.into_iter().filter_map(|(key, _, entry)| Some((key, entry?)))))
}
