//! Transactions: which branches are taken, what is refused before anything is written, and the parts that only read.
//! (etcd: `server/etcdserver/txn/txn.go`.)
//!
//! Every comparison, nested ones included, is evaluated against the state before the transaction. So a transaction is
//! first turned into a [`Path`], the branch taken at each level; then all operations on it are checked; then executed.

use std::cmp::Ordering;

use proto::{
    EtcdError, KeyRange, LeaseId,
    command::command::Op,
    etcdserverpb::{
        Compare, PutRequest, RangeRequest, RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
        compare::{CompareResult, CompareTarget, TargetUnion},
        request_op::Request,
        response_op::Response,
    },
};

use crate::{
    index::Entry,
    planted,
    range::{Failed, Snapshot},
};

/// The branch a transaction takes, and those of the transactions nested in it, in order.
#[derive(Debug)]
pub(crate) struct Path {
    pub succeeded: bool,
    pub nested: Vec<Path>,
}

impl Path {
    pub fn choose(before: &Snapshot<'_>, txn: &TxnRequest) -> Result<Path, Failed> {
        let mut succeeded = true;
        for compare in &txn.compare {
            if !holds(before, compare)? {
                succeeded = false;
                break;
            }
        }
        let mut nested = Vec::new();
        for op in branch(txn, succeeded) {
            if let Some(Request::RequestTxn(txn)) = &op.request {
                nested.push(Path::choose(before, txn)?);
            }
        }
        Ok(Path { succeeded, nested })
    }
}

/// The operations of the branch taken.
pub(crate) fn branch(txn: &TxnRequest, succeeded: bool) -> &[RequestOp] {
    if succeeded { &txn.success } else { &txn.failure }
}

/// Refuses a transaction one of whose operations could not be executed; `lease_exists` knows the leases.
pub(crate) fn check(
    txn: &TxnRequest,
    path: &Path,
    before: &Snapshot<'_>,
    lease_exists: &dyn Fn(LeaseId) -> bool,
) -> Result<(), EtcdError> {
    let mut nested = path.nested.iter();
    for op in branch(txn, path.succeeded) {
        match &op.request {
            Some(Request::RequestRange(range)) => check_range(range, before)?,
            Some(Request::RequestPut(put)) => check_put(put, before, lease_exists)?,
            Some(Request::RequestTxn(txn)) => {
                check(txn, nested.next().expect("a nested transaction has a path"), before, lease_exists)?
            }
            Some(Request::RequestDeleteRange(_)) | None => {}
        }
    }
    Ok(())
}

fn check_range(range: &RangeRequest, before: &Snapshot<'_>) -> Result<(), EtcdError> {
    match range.revision {
        0 => Ok(()),
        revision if revision > before.revision => Err(EtcdError::FutureRev),
        revision if revision < before.compacted && !planted!(TxnReadsCompacted) => Err(EtcdError::Compacted),
        _ => Ok(()),
    }
}

/// Refuses a put on an unknown lease, and one that keeps what does not exist.
pub(crate) fn check_put(
    put: &PutRequest,
    before: &Snapshot<'_>,
    lease_exists: &dyn Fn(LeaseId) -> bool,
) -> Result<(), EtcdError> {
    if put.lease != 0 && !lease_exists(LeaseId(put.lease)) {
        return Err(EtcdError::LeaseNotFound);
    }
    if (put.ignore_value || put.ignore_lease) && before.index.get(&put.key).is_none() {
        return Err(EtcdError::KeyNotFound);
    }
    Ok(())
}

/// Whether a range in it reads an older revision than `revision`.
pub(crate) fn reads_history(txn: &TxnRequest, revision: i64) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match &op.request {
        Some(Request::RequestRange(range)) => range.revision > 0 && range.revision < revision,
        Some(Request::RequestTxn(txn)) => reads_history(txn, revision),
        _ => false,
    })
}

/// The number of keys that a command touches at most; None where that cannot be seen without the store.
pub(crate) fn keys_of(op: &Op) -> Option<usize> {
    match op {
        Op::Put(_) | Op::LeaseGrant(_) => Some(1),
        Op::DeleteRange(delete) => delete.range_end.is_empty().then_some(1),
        Op::Txn(txn) => keys_of_txn(txn),
        _ => None,
    }
}

fn keys_of_txn(txn: &TxnRequest) -> Option<usize> {
    let compared = txn.compare.iter().map(|compare| compare.range_end.is_empty().then_some(1));
    let done = txn.success.iter().chain(&txn.failure).map(|op| match &op.request {
        Some(Request::RequestRange(range)) => (range.range_end.is_empty() && range.revision <= 0).then_some(1),
        Some(Request::RequestPut(_)) => Some(1),
        Some(Request::RequestDeleteRange(delete)) => delete.range_end.is_empty().then_some(1),
        Some(Request::RequestTxn(txn)) => keys_of_txn(txn),
        None => Some(0),
    });
    compared.chain(done).sum()
}

/// Executes a transaction that has ranges only.
pub(crate) fn read_only(snapshot: &Snapshot<'_>, txn: &TxnRequest) -> Result<TxnResponse, Failed> {
    let path = Path::choose(snapshot, txn)?;
    let mut responses = Vec::new();
    for op in branch(txn, path.succeeded) {
        let Some(Request::RequestRange(range)) = &op.request else {
            unreachable!("only a transaction of ranges is read-only");
        };
        responses.push(ResponseOp { response: Some(Response::ResponseRange(snapshot.range(range)?)) });
    }
    Ok(TxnResponse { header: Some(ResponseHeader::default()), succeeded: path.succeeded, responses })
}

/// Whether a comparison holds for every key of its range; a range without keys counts as one key that does not exist.
fn holds(snapshot: &Snapshot<'_>, compare: &Compare) -> Result<bool, Failed> {
    let range = KeyRange::new(compare.key.clone(), compare.range_end.clone());
    let is_value = compare.target == CompareTarget::Value as i32;
    let mut none = true;
    for (key, entry) in snapshot.index.range(&range) {
        none = false;
        let order = if is_value {
            snapshot.version(key, entry.mod_revision)?.value.as_ref().cmp(match &compare.target_union {
                Some(TargetUnion::Value(value)) => value,
                _ => b"",
            })
        } else {
            compare_number(compare, Some(entry))
        };
        if !is_wanted(compare.result, order) {
            return Ok(false);
        }
    }
    // A value cannot be compared with that of a key that does not exist.
    Ok(!none || (!is_value && is_wanted(compare.result, compare_number(compare, None))))
}

/// The number a comparison is about, of a key or of none, against the one it gives; 0 where it gives another kind.
fn compare_number(compare: &Compare, entry: Option<&Entry>) -> Ordering {
    let of = |field: fn(&Entry) -> i64| entry.map_or(0, field);
    let (actual, given) = match (CompareTarget::try_from(compare.target), &compare.target_union) {
        (Ok(CompareTarget::Version), given) => {
            (of(|e| e.version), if let Some(TargetUnion::Version(n)) = given { *n } else { 0 })
        }
        (Ok(CompareTarget::Create), given) => {
            (of(|e| e.create_revision), if let Some(TargetUnion::CreateRevision(n)) = given { *n } else { 0 })
        }
        (Ok(CompareTarget::Mod), given) => {
            (of(|e| e.mod_revision.main), if let Some(TargetUnion::ModRevision(n)) = given { *n } else { 0 })
        }
        (Ok(CompareTarget::Lease), given) => {
            (of(|e| e.lease), if let Some(TargetUnion::Lease(n)) = given { *n } else { 0 })
        }
        (Ok(CompareTarget::Value) | Err(_), _) => (0, 0),
    };
    actual.cmp(&given)
}

/// etcd lets a comparison with an unknown operator hold.
fn is_wanted(result: i32, order: Ordering) -> bool {
    match CompareResult::try_from(result) {
        Ok(CompareResult::Equal) => order.is_eq(),
        Ok(CompareResult::NotEqual) => order.is_ne(),
        Ok(CompareResult::Greater) => order.is_gt(),
        Ok(CompareResult::Less) => order.is_lt(),
        Err(_) => true,
    }
}
