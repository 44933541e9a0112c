//! What the store counts and times, for metrics. Counting is an addition each; nothing here waits.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};

use proto::{
    command::{command::Op, outcome::Result as Answer},
    etcdserverpb::{PutRequest, TxnRequest, TxnResponse, request_op::Request, response_op::Response},
};

use crate::{db::Db, error::StorageError, store::Store, txn};

/// Work whose duration [`Observer::took`](crate::Observer::took) is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// One command of the log, evaluated.
    Command {
        op: &'static str,
        is_done: bool,
    },
    /// A batch of entries: evaluated, written, told.
    Batch {
        entries: usize,
    },
    /// The write of a batch.
    Write,
    Range {
        is_done: bool,
    },
    /// One write of a compaction.
    CompactionStep,
    Compaction,
    Hash,
    HashRevision,
}

/// What has happened since the store was opened. (etcd: `server/storage/mvcc/metrics.go`.)
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    pub ranges: u64,
    pub puts: u64,
    /// DeleteRange requests, and keys of leases that ended.
    pub deletes: u64,
    /// Transactions of more than one operation.
    pub txns: u64,
    /// Keys and values of puts.
    pub put_bytes: u64,
    /// Versions and tombstones that compaction removed.
    pub compacted_versions: u64,
    /// Unix seconds; 0 when there was none.
    pub last_compaction: i64,
    /// Reads that are going on now.
    pub open_reads: i64,
    /// A snapshot is taking the store's place now.
    pub is_installing: bool,
}

/// What the engine says of itself, in bytes where it is no number of files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Engine {
    pub memtable_bytes: u64,
    pub block_cache_bytes: u64,
    pub table_readers_bytes: u64,
    pub pending_compaction_bytes: u64,
    pub running_compactions: u64,
    /// By level.
    pub files: Vec<u64>,
}

const LEVELS: usize = 7;

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub ranges: AtomicU64,
    pub puts: AtomicU64,
    pub deletes: AtomicU64,
    pub txns: AtomicU64,
    pub put_bytes: AtomicU64,
    pub compacted_versions: AtomicU64,
    pub last_compaction: AtomicI64,
    pub open_reads: AtomicI64,
    pub installing: AtomicI64,
}

/// Adds one as long as it is held.
pub(crate) struct Going<'a>(&'a AtomicI64);

impl<'a> Going<'a> {
    pub fn on(count: &'a AtomicI64) -> Self {
        count.fetch_add(1, Relaxed);
        Going(count)
    }
}

impl Drop for Going<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// The operations of one transaction.
#[derive(Default)]
struct Operations {
    ranges: u64,
    puts: u64,
    deletes: u64,
    put_bytes: u64,
}

impl Operations {
    fn add_put(&mut self, put: &PutRequest) {
        self.puts += 1;
        self.put_bytes += (put.key.len() + put.value.len()) as u64;
    }

    fn add_txn(&mut self, request: &TxnRequest, response: &TxnResponse) {
        for (request, response) in txn::branch(request, response.succeeded).iter().zip(&response.responses) {
            match (&request.request, &response.response) {
                (Some(Request::RequestRange(_)), _) => self.ranges += 1,
                (Some(Request::RequestPut(put)), _) => self.add_put(put),
                (Some(Request::RequestDeleteRange(_)), _) => self.deletes += 1,
                (Some(Request::RequestTxn(txn)), Some(Response::ResponseTxn(response))) => self.add_txn(txn, response),
                _ => {}
            }
        }
    }
}

impl Counters {
    pub fn add_put(&self, put: &PutRequest) {
        let mut operations = Operations::default();
        operations.add_put(put);
        self.add(&operations);
    }

    pub fn add_txn(&self, request: &TxnRequest, response: &TxnResponse) {
        let mut operations = Operations::default();
        operations.add_txn(request, response);
        self.add(&operations);
    }

    pub fn add_deletes(&self, deletes: u64) {
        self.add(&Operations { deletes, ..Default::default() });
    }

    pub fn add_range(&self) {
        self.ranges.fetch_add(1, Relaxed);
    }

    fn add(&self, operations: &Operations) {
        let Operations { ranges, puts, deletes, put_bytes } = *operations;
        self.ranges.fetch_add(ranges, Relaxed);
        self.puts.fetch_add(puts, Relaxed);
        self.deletes.fetch_add(deletes, Relaxed);
        self.put_bytes.fetch_add(put_bytes, Relaxed);
        self.txns.fetch_add(u64::from(ranges + puts + deletes > 1), Relaxed);
    }

    fn read(&self) -> Stats {
        Stats {
            ranges: self.ranges.load(Relaxed),
            puts: self.puts.load(Relaxed),
            deletes: self.deletes.load(Relaxed),
            txns: self.txns.load(Relaxed),
            put_bytes: self.put_bytes.load(Relaxed),
            compacted_versions: self.compacted_versions.load(Relaxed),
            last_compaction: self.last_compaction.load(Relaxed),
            open_reads: self.open_reads.load(Relaxed),
            is_installing: self.installing.load(Relaxed) > 0,
        }
    }
}

impl Store {
    pub fn stats(&self) -> Stats {
        self.inner.counters.read()
    }

    pub fn engine(&self) -> Result<Engine, StorageError> {
        let db: &Db = &self.inner.view().db;
        let files = |level| db.property(&format!("rocksdb.num-files-at-level{level}"));
        Ok(Engine {
            memtable_bytes: db.property("rocksdb.cur-size-all-mem-tables")?,
            // The column families share the cache, so that the sum has it as often as there are any.
            block_cache_bytes: db.shared_property("rocksdb.block-cache-usage")?,
            table_readers_bytes: db.property("rocksdb.estimate-table-readers-mem")?,
            pending_compaction_bytes: db.property("rocksdb.estimate-pending-compaction-bytes")?,
            running_compactions: db.shared_property("rocksdb.num-running-compactions")?,
            files: (0..LEVELS).map(files).collect::<Result<_, _>>()?,
        })
    }
}

/// etcd's name for a command, as its metrics have it. (etcd: `server/etcdserver/apply/uber_applier.go`.)
pub fn name_of(op: &Op) -> &'static str {
    match op {
        Op::Put(_) => "Put",
        Op::DeleteRange(_) => "DeleteRange",
        Op::Txn(_) => "Txn",
        Op::Compact(_) => "Compaction",
        Op::LeaseGrant(_) => "LeaseGrant",
        Op::LeaseRevoke(_) | Op::LeaseExpire(_) => "LeaseRevoke",
        Op::LeaseCheckpoint(_) => "LeaseCheckpoint",
        Op::MemberAttributes(_) => "ClusterMemberAttrSet",
        Op::Alarm(_) => "Alarm",
        Op::AuthEnable(_) => "AuthEnable",
        Op::AuthDisable(_) => "AuthDisable",
        Op::UserAdd(_) => "AuthUserAdd",
        Op::UserDelete(_) => "AuthUserDelete",
        Op::UserChangePassword(_) => "AuthUserChangePassword",
        Op::UserGrantRole(_) => "AuthUserGrantRole",
        Op::UserRevokeRole(_) => "AuthUserRevokeRole",
        Op::RoleAdd(_) => "AuthRoleAdd",
        Op::RoleDelete(_) => "AuthRoleDelete",
        Op::RoleGrantPermission(_) => "AuthRoleGrantPermission",
        Op::RoleRevokePermission(_) => "AuthRoleRevokePermission",
        Op::Authenticate(_) => "Authenticate",
        Op::ClusterVersion(_) => "ClusterVersionSet",
        Op::Downgrade(_) => "DowngradeInfoSet",
    }
}

pub(crate) fn is_done(answer: &Answer) -> bool {
    !matches!(answer, Answer::Failure(_))
}
