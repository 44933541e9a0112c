//! Apply: the one place where the store changes.
//!
//! A batch of log entries becomes one RocksDB write, with the applied index in it:
//!
//! ```text
//! entry 41  put a=1            revision 7   data a@7.0, events 7.0
//! entry 42  txn: put b, del a  revision 8   data b@8.0, events 8.0, data a@8.1 (tombstone), events 8.1
//! entry 43  put c, lease 9     refused: there is no lease 9 (an answer, and no revision)
//! entry 44  lease grant 9      no revision  lease 9
//!           applied = 44, revision = 8      meta
//! ```
//!
//! Then readers see the new state, the observer is told, and the outcomes are returned: in this order. Apply is a
//! function of state and command: no clock, no random number, nothing that differs between members.

use std::{borrow::Cow, sync::Arc, time::Instant};

use bytes::Bytes;
use prost::Message;
use proto::{
    EtcdError, KeyRange, LeaseId, Revision,
    command::{
        AuthDone, AuthInfo, ClusterVersion, Command, Done, Downgrade, Outcome, command::Op, outcome::Result as Answer,
    },
    etcdserverpb::{
        AlarmMember, AlarmRequest, AlarmResponse, AlarmType, CompactionRequest, CompactionResponse, DeleteRangeRequest,
        DeleteRangeResponse, LeaseGrantRequest, LeaseGrantResponse, LeaseRevokeRequest, LeaseRevokeResponse,
        PutRequest, PutResponse, RangeRequest, RangeResponse, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
        alarm_request::AlarmAction, request_op::Request, response_op::Response,
    },
    mvccpb::KeyValue,
};
use rocksdb::WriteBatch;

use crate::{
    alarm,
    auth::{self, AuthChange, AuthState},
    db::{ALARM, DATA, EVENTS, LEASE, MEMBER, META},
    error::{ReadError, StorageError},
    event::{Change, Event, LeaseChange},
    index::{Entry, Index},
    keys,
    lease::{self, LeaseInfo},
    planted,
    range::{Failed, Pending, Snapshot},
    record::{self, EventRecord},
    stats::{self, Work},
    store::{Applied, Inner, State, Versions, View, meta},
    txn::{self, Path},
};

/// Longest TTL etcd grants, seconds. (etcd: `server/lease/lessor.go`, MaxLeaseTTL.)
const LEASE_TTL_MAX: i64 = 9_000_000_000;

/// A batch that touches no more keys than this is soon applied.
const BRIEF_KEYS_MAX: usize = 64;

/// One entry of the Raft log.
#[derive(Debug, Clone)]
pub struct LogEntry {
    pub index: u64,
    pub term: u64,
    pub payload: Payload,
}

#[derive(Debug, Clone)]
pub enum Payload {
    /// An encoded [`Command`].
    Command(Bytes),
    /// What a new leader begins with.
    Blank,
    /// A membership as Raft encodes it: kept, and not looked into.
    Membership(Bytes),
}

/// Changes the store. There is one.
pub struct Applier {
    inner: Arc<Inner>,
}

/// Entries as they are to be applied: decoded.
pub struct Prepared<'a> {
    entries: Cow<'a, [LogEntry]>,
    /// Of each entry that is a command.
    commands: Vec<Option<(Op, Option<AuthInfo>)>>,
}

impl<'a> Prepared<'a> {
    /// # Errors
    /// When an entry of the log does not decode.
    pub(crate) fn new(entries: Cow<'a, [LogEntry]>, inner: &Inner) -> Result<Prepared<'a>, StorageError> {
        let decode = |entry: &LogEntry| {
            let Payload::Command(command) = &entry.payload else { return Ok(None) };
            let command = Command::decode(command.clone()).ok();
            let command = command.and_then(|command| Some((command.op?, command.auth)));
            let unknown = || {
                let detail = format!("entry {} of the log holds no command known here", entry.index);
                StorageError::damaged(&inner.dir, detail)
            };
            command.map(Some).ok_or_else(unknown)
        };
        let commands = entries.iter().map(decode).collect::<Result<_, _>>()?;
        Ok(Prepared { entries, commands })
    }

    /// Whether this is soon done, in about half a millisecond: there are few commands, and none goes over a range.
    pub fn is_brief(&self) -> bool {
        let commands = self.commands.iter().map(|command| command.as_ref().map_or(Some(0), |(op, _)| txn::keys_of(op)));
        commands.sum::<Option<usize>>().is_some_and(|keys| keys <= BRIEF_KEYS_MAX)
    }
}

impl Applier {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        Applier { inner }
    }

    /// Applies entries in order and returns an outcome for each.
    ///
    /// # Errors
    /// When this node cannot go on: its disk failed, or an entry of the log does not decode.
    ///
    /// # Panics
    /// When an entry has been applied already.
    pub fn apply(&mut self, entries: &[LogEntry]) -> Result<Vec<Outcome>, StorageError> {
        let prepared = Prepared::new(entries.into(), &self.inner)?;
        self.apply_prepared(prepared)
    }

    /// The same with what was prepared before.
    ///
    /// # Errors
    /// When this node cannot go on: its disk failed.
    ///
    /// # Panics
    /// When an entry has been applied already.
    pub fn apply_prepared(&mut self, prepared: Prepared<'_>) -> Result<Vec<Outcome>, StorageError> {
        let Prepared { entries, commands } = prepared;
        let began = Instant::now();
        self.inner.compactor.check()?;
        let mut state = self.inner.state.lock();
        let mut applied = self.inner.applied.read().clone();
        let mut batch = Batch {
            inner: &self.inner,
            state: &mut state,
            writes: WriteBatch::default(),
            versions: Vec::new(),
            pending: Pending::default(),
            change: Change::default(),
            compactions: Vec::new(),
        };
        let mut outcomes = Vec::with_capacity(entries.len());
        let mut revisions = Vec::with_capacity(entries.len());
        for (entry, command) in std::iter::zip(&*entries, commands) {
            assert!(entry.index > applied.index, "entry {} applied after {}", entry.index, applied.index);
            let outcome = match &entry.payload {
                Payload::Command(_) => {
                    let (op, auth) = command.expect("a command was decoded");
                    // A scan of the past sees what is written only: what the entries before this one did must be.
                    if matches!(&op, Op::Txn(txn) if txn::reads_history(txn, batch.state.revision)) {
                        batch.write(&applied)?;
                    }
                    batch.timed(op, auth.as_ref(), entry)?
                }
                Payload::Blank => Answer::Done(Done {}),
                Payload::Membership(membership) => {
                    applied.membership = membership.clone();
                    batch.put_meta(meta::MEMBERSHIP, membership);
                    Answer::Done(Done {})
                }
            };
            (applied.index, applied.term) = (entry.index, entry.term);
            outcomes.push(Outcome { result: Some(outcome) });
            revisions.push(batch.state.revision);
        }
        batch.write(&applied)?;
        self.inner.options.observer.logged(&entries, &revisions);
        let entries = entries.len();
        self.inner.options.observer.took(Work::Batch { entries }, began.elapsed());
        Ok(outcomes)
    }
}

/// What is gathered for one write.
struct Batch<'a> {
    inner: &'a Inner,
    state: &'a mut State,
    writes: WriteBatch,
    /// What is to be written to `data`.
    versions: Vec<(Vec<u8>, Vec<u8>)>,
    /// Those of `versions`, which RocksDB does not know yet.
    pending: Pending,
    change: Change,
    /// Compactions to begin, with the state before where it is to be hashed.
    compactions: Vec<(i64, Option<Arc<View>>)>,
}

impl Batch<'_> {
    /// Writes what was gathered, shows it to readers, tells the observer.
    fn write(&mut self, applied: &Applied) -> Result<(), StorageError> {
        let mut position = [0; 16];
        let written = if planted!(AppliedIndexApart) { self.inner.applied.read().clone() } else { applied.clone() };
        position[..8].copy_from_slice(&written.index.to_be_bytes());
        position[8..].copy_from_slice(&written.term.to_be_bytes());
        self.put_meta(meta::APPLIED, &position);
        self.put_meta(meta::REVISION, &self.state.revision.to_be_bytes());
        self.versions.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let data = self.state.db.cf(DATA);
        self.versions.drain(..).for_each(|(at, version)| self.writes.put_cf(data, at, version));
        let began = Instant::now();
        self.state.db.write(std::mem::take(&mut self.writes))?;
        self.inner.options.observer.took(Work::Write, began.elapsed());
        self.pending.clear();

        *self.inner.view.write() = Arc::new(self.state.view());
        *self.inner.applied.write() = applied.clone();
        for (revision, before) in self.compactions.drain(..) {
            self.inner.compactor.compact(revision, before);
        }
        let mut change = std::mem::take(&mut self.change);
        if planted!(EventsReordered) {
            change.events.sort_by_key(|event| (event.revision.main, -event.revision.sub));
        }
        let (revision, compacted) = (self.state.revision, self.state.compacted);
        self.inner.options.observer.applied(Change { revision, compacted, ..change });
        Ok(())
    }

    fn timed(&mut self, op: Op, by: Option<&AuthInfo>, entry: &LogEntry) -> Result<Answer, StorageError> {
        let (began, name) = (Instant::now(), stats::name_of(&op));
        let answer = self.execute(op, by, entry)?;
        let work = Work::Command { op: name, is_done: stats::is_done(&answer) };
        self.inner.options.observer.took(work, began.elapsed());
        Ok(answer)
    }

    fn execute(&mut self, op: Op, by: Option<&AuthInfo>, entry: &LogEntry) -> Result<Answer, StorageError> {
        let term = entry.term;
        if let Some(refusal) = alarm::refusal(&self.inner.alarms.read(), &op) {
            return Ok(Answer::Failure(refusal.into()));
        }
        if self.state.auth.is_enabled() && !planted!(RightsCheckedEarly) {
            let checked = auth::check_command(&self.state.auth, &self.inner.leases.read(), by, &op);
            if let Err(refusal) = checked {
                return Ok(Answer::Failure(refusal.into()));
            }
        }
        let answer = match op {
            Op::Put(put) => self.put(&put).map(Answer::Put),
            Op::DeleteRange(delete) => self.delete_range(&delete).map(Answer::DeleteRange),
            Op::Txn(txn) => self.txn(&txn).map(Answer::Txn),
            Op::Compact(compact) => self.compact(&compact).map(Answer::Compact),
            Op::LeaseGrant(grant) => self.grant(&grant).map(Answer::LeaseGrant),
            Op::LeaseRevoke(revoke) => self.revoke(&revoke).map(Answer::LeaseRevoke),
            Op::LeaseExpire(expire) => {
                for id in expire.ids.into_iter().map(LeaseId).filter(|_| expire.term == term) {
                    if self.inner.leases.read().get(id).is_some() {
                        self.drop_lease(id)?;
                    }
                }
                Ok(Answer::Done(Done {}))
            }
            Op::LeaseCheckpoint(checkpoint) => {
                for entry in checkpoint.checkpoints.iter().filter(|_| checkpoint.term == term) {
                    self.checkpoint_lease(LeaseId(entry.id), entry.remaining_ttl);
                }
                Ok(Answer::Done(Done {}))
            }
            Op::MemberAttributes(member) => {
                self.writes.put_cf(self.state.db.cf(MEMBER), member.id.to_be_bytes(), member.encode_to_vec());
                self.inner.members.write().insert(member.id, member);
                Ok(Answer::Done(Done {}))
            }
            Op::ClusterVersion(ClusterVersion { version }) => {
                self.put_meta(meta::CLUSTER_VERSION, version.as_bytes());
                self.set_versions(|versions| versions.cluster = Some(version));
                Ok(Answer::Done(Done {}))
            }
            Op::Downgrade(Downgrade { target }) => {
                match &target {
                    Some(target) => self.put_meta(meta::DOWNGRADE_TARGET, target.as_bytes()),
                    None => self.writes.delete_cf(self.state.db.cf(META), meta::DOWNGRADE_TARGET),
                }
                self.set_versions(|versions| versions.downgrade_target = target);
                Ok(Answer::Done(Done {}))
            }
            Op::Alarm(alarm) => Ok(Answer::Alarm(self.alarm(&alarm))),
            Op::AuthEnable(_)
            | Op::AuthDisable(_)
            | Op::UserAdd(_)
            | Op::UserDelete(_)
            | Op::UserChangePassword(_)
            | Op::UserGrantRole(_)
            | Op::UserRevokeRole(_)
            | Op::RoleAdd(_)
            | Op::RoleDelete(_)
            | Op::RoleGrantPermission(_)
            | Op::RoleRevokePermission(_)
            | Op::Authenticate(_) => self.auth(&op, entry.index).map(Answer::AuthDone),
        };
        match answer.map_err(|failed| failed.into_error(&self.state.db)) {
            Ok(answer) => Ok(answer),
            Err(ReadError::Request(error)) => Ok(Answer::Failure(error.into())),
            Err(ReadError::Local(error)) => Err(error),
        }
    }

    fn put(&mut self, put: &PutRequest) -> Result<PutResponse, Failed> {
        txn::check_put(put, &self.snapshot(), &|id| self.inner.leases.read().get(id).is_some())?;
        let mut write = Write::begin(self);
        let response = write.put(put)?;
        write.end();
        self.inner.counters.add_put(put);
        Ok(response)
    }

    fn delete_range(&mut self, delete: &DeleteRangeRequest) -> Result<DeleteRangeResponse, Failed> {
        let mut write = Write::begin(self);
        let response = write.delete_range(delete)?;
        write.end();
        self.inner.counters.add_deletes(1);
        Ok(response)
    }

    fn txn(&mut self, request: &TxnRequest) -> Result<TxnResponse, Failed> {
        let before = self.snapshot();
        let path = Path::choose(&before, request)?;
        txn::check(request, &path, &before, &|id| self.inner.leases.read().get(id).is_some())?;
        let mut write = match txn::reads_history(request, i64::MAX) {
            true => Write::begin_with_history(self),
            false => Write::begin(self),
        };
        let mut response = write.txn(request, &path)?;
        let revision = write.end();
        self.inner.counters.add_txn(request, &response);
        response.header = header(revision);
        Ok(response)
    }

    /// Only names the revision; what it forgets is removed beside, in small steps.
    fn compact(&mut self, compact: &CompactionRequest) -> Result<CompactionResponse, Failed> {
        if compact.revision <= self.state.compacted {
            return Err(EtcdError::Compacted.into());
        }
        if compact.revision > self.state.revision {
            return Err(EtcdError::FutureRev.into());
        }
        let before = self.inner.compactor.keeps_hashes().then(|| Arc::new(self.state.view()));
        self.compactions.push((compact.revision, before));
        self.state.compacted = compact.revision;
        self.put_meta(meta::COMPACTED, &compact.revision.to_be_bytes());
        Ok(CompactionResponse { header: header(self.state.revision) })
    }

    fn grant(&mut self, grant: &LeaseGrantRequest) -> Result<LeaseGrantResponse, Failed> {
        let id = LeaseId(grant.id);
        if grant.id == 0 {
            return Err(EtcdError::LeaseNotFound.into());
        }
        if grant.ttl > LEASE_TTL_MAX {
            return Err(EtcdError::LeaseTTLTooLarge.into());
        }
        if self.inner.leases.read().get(id).is_some() {
            return Err(EtcdError::LeaseExist.into());
        }
        self.set_lease(LeaseInfo { id, ttl: grant.ttl, remaining_ttl: 0 });
        self.change.leases.push(LeaseChange::Granted { id, ttl: grant.ttl });
        let header = header(self.state.revision);
        Ok(LeaseGrantResponse { header, id: grant.id, ttl: grant.ttl, error: String::new() })
    }

    fn revoke(&mut self, revoke: &LeaseRevokeRequest) -> Result<LeaseRevokeResponse, Failed> {
        let id = LeaseId(revoke.id);
        if self.inner.leases.read().get(id).is_none() {
            return Err(EtcdError::LeaseNotFound.into());
        }
        self.drop_lease(id)?;
        Ok(LeaseRevokeResponse { header: header(self.state.revision) })
    }

    /// Deletes a lease, and its keys in key order in one revision.
    fn drop_lease(&mut self, id: LeaseId) -> Result<(), StorageError> {
        let keys = self.inner.leases.read().keys(id);
        self.inner.counters.add_deletes(keys.len() as u64);
        let mut write = Write::begin(self);
        for key in keys {
            if planted!(LeaseRevokeNotAtomic) {
                write.end();
                write = Write::begin(self);
            }
            write.delete(&key)?;
        }
        write.end();
        self.inner.leases.write().remove(id);
        self.writes.delete_cf(self.state.db.cf(LEASE), id.0.to_be_bytes());
        self.change.leases.push(LeaseChange::Revoked { id });
        Ok(())
    }

    fn checkpoint_lease(&mut self, id: LeaseId, remaining_ttl: i64) {
        let lease = self.inner.leases.read().get(id);
        if let Some(lease) = lease {
            self.set_lease(LeaseInfo { remaining_ttl, ..lease });
            self.change.leases.push(LeaseChange::Checkpointed { id, remaining_ttl });
        }
    }

    fn set_lease(&mut self, lease: LeaseInfo) {
        self.writes.put_cf(self.state.db.cf(LEASE), lease.id.0.to_be_bytes(), lease::encode(&lease));
        self.inner.leases.write().set(lease);
    }

    /// (etcd: `server/etcdserver/apply`, Alarm.)
    fn alarm(&mut self, request: &AlarmRequest) -> AlarmResponse {
        let mut alarms = self.inner.alarms.write();
        let alarm = (request.member_id, request.alarm);
        let key = || alarm::key(alarm.0, alarm.1);
        let member = AlarmMember { member_id: alarm.0, alarm: alarm.1 };
        let is_kind = request.alarm != AlarmType::None as i32;
        let answered = match AlarmAction::try_from(request.action) {
            Ok(AlarmAction::Get) => {
                let wanted = alarms.iter().filter(|(_, kind)| !is_kind || *kind == request.alarm);
                wanted.map(|&(member_id, alarm)| AlarmMember { member_id, alarm }).collect()
            }
            Ok(AlarmAction::Activate) if is_kind => {
                alarms.insert(alarm);
                self.writes.put_cf(self.state.db.cf(ALARM), key(), member.encode_to_vec());
                vec![member]
            }
            Ok(AlarmAction::Deactivate) if alarms.remove(&alarm) => {
                self.writes.delete_cf(self.state.db.cf(ALARM), key());
                vec![member]
            }
            _ => Vec::new(),
        };
        AlarmResponse { header: header(self.state.revision), alarms: answered }
    }

    /// Users, roles and tokens.
    fn auth(&mut self, op: &Op, index: u64) -> Result<AuthDone, Failed> {
        let mut auth = AuthState::clone(&self.state.auth);
        let changed = auth.execute(op, index).expect("only what is about users, roles and tokens comes here")?;
        auth.write_changes(&self.state.auth, &self.state.db, &mut self.writes);
        let token = match &changed {
            Some(AuthChange::TokenAssigned { token, .. }) => token.clone(),
            _ => String::new(),
        };
        self.change.auth.extend(changed);
        self.state.auth = Arc::new(auth);
        Ok(AuthDone { revision: self.state.revision, auth_revision: self.state.auth.revision(), token })
    }

    fn set_versions(&mut self, set: impl FnOnce(&mut Versions)) {
        set(Arc::make_mut(&mut self.state.versions));
    }

    fn put_meta(&mut self, key: &[u8], value: &[u8]) {
        self.writes.put_cf(self.state.db.cf(META), key, value);
    }

    fn snapshot(&self) -> Snapshot<'_> {
        Snapshot {
            db: &self.state.db,
            index: &self.state.index,
            revision: self.state.revision,
            compacted: self.state.compacted,
            pending: Some(&self.pending),
        }
    }
}

/// One transaction's changes, all at one revision.
struct Write<'w, 'b> {
    batch: &'w mut Batch<'b>,
    /// The state before, which a range at a given revision reads, where there is one.
    before: Option<Index>,
    /// The revision the first change makes.
    revision: i64,
    changes: i64,
}

impl<'w, 'b> Write<'w, 'b> {
    fn begin(batch: &'w mut Batch<'b>) -> Self {
        let revision = batch.state.revision + 1;
        Write { batch, before: None, revision, changes: 0 }
    }

    /// One that may read at a given revision. The index before is kept, and so copied where it changes.
    fn begin_with_history(batch: &'w mut Batch<'b>) -> Self {
        let before = Some(batch.state.index.clone());
        Write { before, ..Write::begin(batch) }
    }

    /// The current revision, as the transaction itself sees it.
    fn current(&self) -> i64 {
        if self.changes > 0 { self.revision } else { self.revision - 1 }
    }

    /// Makes the changes the store's newest revision; returns the current one.
    fn end(self) -> i64 {
        self.batch.state.revision = self.current();
        self.batch.state.revision
    }

    fn txn(&mut self, request: &TxnRequest, path: &Path) -> Result<TxnResponse, Failed> {
        let mut nested = path.nested.iter();
        let mut responses = Vec::new();
        for op in txn::branch(request, path.succeeded) {
            let response = match &op.request {
                Some(Request::RequestRange(range)) => Some(Response::ResponseRange(self.range(range)?)),
                Some(Request::RequestPut(put)) => Some(Response::ResponsePut(self.put(put)?)),
                Some(Request::RequestDeleteRange(delete)) => {
                    Some(Response::ResponseDeleteRange(self.delete_range(delete)?))
                }
                Some(Request::RequestTxn(txn)) => {
                    let path = nested.next().expect("a nested transaction has a path");
                    if planted!(TxnComparesLate) {
                        let path = Path::choose(&self.batch.snapshot(), txn)?;
                        Some(Response::ResponseTxn(self.txn(txn, &path)?))
                    } else {
                        Some(Response::ResponseTxn(self.txn(txn, path)?))
                    }
                }
                None => None,
            };
            responses.push(ResponseOp { response });
        }
        Ok(TxnResponse { header: Some(ResponseHeader::default()), succeeded: path.succeeded, responses })
    }

    /// Reads what the transaction has written so far, or, at a given revision, the state before it.
    fn range(&self, range: &RangeRequest) -> Result<RangeResponse, Failed> {
        let mut now = self.batch.snapshot();
        if planted!(TxnReadsCompacted) {
            now.compacted = 0;
        }
        let snapshot = match range.revision {
            ..=0 => Snapshot { revision: self.current(), ..now },
            _ => {
                let before =
                    self.before.as_ref().expect("a transaction that reads at a revision keeps the index before");
                Snapshot { index: before, revision: self.revision - 1, ..now }
            }
        };
        let mut response = snapshot.range(range)?;
        response.header = header(self.current());
        Ok(response)
    }

    fn put(&mut self, put: &PutRequest) -> Result<PutResponse, Failed> {
        let entry_before = self.batch.state.index.get(&put.key).copied();
        let before = match entry_before {
            Some(entry) if put.prev_kv || put.ignore_value => {
                Some(self.batch.snapshot().version(&put.key, entry.mod_revision)?)
            }
            _ => None,
        };
        let revision = self.next_revision();
        let entry = Entry {
            mod_revision: revision,
            create_revision: entry_before.map_or(revision.main, |before| before.create_revision),
            version: entry_before.map_or(0, |before| before.version) + 1,
            lease: if put.ignore_lease { entry_before.map_or(0, |before| before.lease) } else { put.lease },
        };
        let kv = KeyValue {
            key: put.key.clone(),
            create_revision: entry.create_revision,
            mod_revision: revision.main,
            version: entry.version,
            value: match &before {
                Some(before) if put.ignore_value => before.value.clone(),
                _ => put.value.clone(),
            },
            lease: entry.lease,
        };

        let prev = entry_before.map(|before| before.mod_revision);
        let Batch { inner, state, writes, versions, pending, change, .. } = &mut *self.batch;
        let at = keys::data_key(&put.key, revision);
        let version = record::encode_version(&at, &kv);
        versions.push((at, version));
        let at = keys::event_key(revision);
        writes.put_cf(state.db.cf(EVENTS), at, EventRecord::put(put.key.clone(), &entry, prev).encode(&at));
        let lease_before = entry_before.map_or(0, |before| before.lease);
        if lease_before != entry.lease {
            let mut leases = inner.leases.write();
            if !planted!(OldLeaseKeepsKey) {
                leases.detach(&put.key, lease_before);
            }
            leases.attach(&put.key, entry.lease);
        }
        state.index.insert(&put.key, entry);
        pending.push(revision, kv.clone());
        change.events.push(Arc::new(Event::put(revision, kv, prev)));
        Ok(PutResponse { header: header(revision.main), prev_kv: before.filter(|_| put.prev_kv) })
    }

    fn delete_range(&mut self, delete: &DeleteRangeRequest) -> Result<DeleteRangeResponse, Failed> {
        let range = KeyRange::new(delete.key.clone(), delete.range_end.clone());
        let mut prev_kvs = Vec::new();
        if delete.prev_kv {
            let DeleteRangeRequest { key, range_end, .. } = delete.clone();
            prev_kvs = self.range(&RangeRequest { key, range_end, ..Default::default() })?.kvs;
        }
        let keys = self.batch.state.index.range(&range);
        let keys: Vec<Bytes> = keys.map(|(key, _)| Bytes::copy_from_slice(key)).collect();
        for key in &keys {
            self.delete(key)?;
        }
        Ok(DeleteRangeResponse { header: header(self.current()), deleted: keys.len() as i64, prev_kvs })
    }

    /// Deletes a key that exists.
    fn delete(&mut self, key: &[u8]) -> Result<(), StorageError> {
        let revision = self.next_revision();
        let Batch { inner, state, writes, versions, change, .. } = &mut *self.batch;
        let before = state.index.remove(key).expect("only keys of the index are deleted");
        if before.lease != 0 {
            inner.leases.write().detach(key, before.lease);
        }
        let key = Bytes::copy_from_slice(key);
        let at = keys::data_key(&key, revision);
        let tombstone = record::encode_tombstone(&at);
        versions.push((at, tombstone));
        let at = keys::event_key(revision);
        writes.put_cf(state.db.cf(EVENTS), at, EventRecord::delete(key.clone(), before.mod_revision).encode(&at));
        change.events.push(Arc::new(Event::delete(revision, key, before.mod_revision)));
        Ok(())
    }

    fn next_revision(&mut self) -> Revision {
        self.changes += 1;
        Revision::new(self.revision, self.changes - 1)
    }
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..Default::default() })
}
