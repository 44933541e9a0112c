//! The checks of a request that need no state: in etcd's order, with etcd's answers.
//! Source: etcd, `server/etcdserver/api/v3rpc/key.go`.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use proto::{
    EtcdError,
    etcdserverpb::{
        DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
        range_request::{SortOrder, SortTarget},
        request_op::Request,
    },
};
use tonic::Status;

pub fn range(request: &RangeRequest) -> Result<(), EtcdError> {
    if request.key.is_empty() {
        return Err(EtcdError::EmptyKey);
    }
    if SortOrder::try_from(request.sort_order).is_err() || SortTarget::try_from(request.sort_target).is_err() {
        return Err(EtcdError::InvalidSortOption);
    }
    Ok(())
}

pub fn range_stream(request: &RangeRequest) -> Result<(), Status> {
    range(request)?;
    let is_unsorted = request.sort_order == SortOrder::None as i32;
    let is_by_key = request.sort_target == SortTarget::Key as i32 && request.sort_order == SortOrder::Ascend as i32;
    if !is_unsorted && !is_by_key {
        return Err(Status::unimplemented("RangeStream does not support custom sort orders"));
    }
    let filters =
        [request.min_mod_revision, request.max_mod_revision, request.min_create_revision, request.max_create_revision];
    if filters.iter().any(|&revision| revision != 0) {
        return Err(Status::unimplemented("RangeStream does not support revision filters"));
    }
    Ok(())
}

pub fn put(request: &PutRequest) -> Result<(), EtcdError> {
    if request.key.is_empty() {
        return Err(EtcdError::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(EtcdError::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(EtcdError::LeaseProvided);
    }
    Ok(())
}

pub fn delete_range(request: &DeleteRangeRequest) -> Result<(), EtcdError> {
    if request.key.is_empty() { Err(EtcdError::EmptyKey) } else { Ok(()) }
}

pub fn txn(request: &TxnRequest, max_ops: usize) -> Result<(), EtcdError> {
    operations(request, max_ops)?;
    // After the operations were counted, so that the work here is bounded.
    Changes::of(&request.success)?;
    Changes::of(&request.failure)?;
    Ok(())
}

fn operations(request: &TxnRequest, max_ops: usize) -> Result<(), EtcdError> {
    let count = request.compare.len().max(request.success.len()).max(request.failure.len());
    if count > max_ops {
        return Err(EtcdError::TooManyOps);
    }
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(EtcdError::EmptyKey);
    }
    for op in request.success.iter().chain(&request.failure) {
        match &op.request {
            Some(Request::RequestRange(request)) => range(request)?,
            Some(Request::RequestPut(request)) => put(request)?,
            Some(Request::RequestDeleteRange(request)) => delete_range(request)?,
            // A nested transaction gets what this one leaves.
            Some(Request::RequestTxn(request)) => operations(request, max_ops - count)?,
            None => return Err(EtcdError::KeyNotFound),
        }
    }
    Ok(())
}

/// What one branch of a transaction, with all that is nested in it, may change.
#[derive(Default)]
struct Changes {
    puts: HashSet<Bytes>,
    deletes: Intervals,
}

impl Changes {
    /// Fails where one key would be changed twice in a way that etcd refuses.
    fn of(ops: &[RequestOp]) -> Result<Changes, EtcdError> {
        let mut changes = Changes::default();
        for op in ops {
            if let Some(Request::RequestDeleteRange(delete)) = &op.request {
                changes.deletes.insert(&delete.key, &delete.range_end);
            }
        }
        for op in ops {
            let Some(Request::RequestTxn(nested)) = &op.request else { continue };
            let (then, otherwise) = (Changes::of(&nested.success)?, Changes::of(&nested.failure)?);
            for key in &then.puts {
                changes.put(key)?;
            }
            // Only one of the two branches runs, so a key may be in both.
            for key in otherwise.puts.difference(&then.puts) {
                changes.put(key)?;
            }
            changes.deletes.extend(then.deletes);
            changes.deletes.extend(otherwise.deletes);
        }
        for op in ops {
            if let Some(Request::RequestPut(put)) = &op.request {
                changes.put(&put.key)?;
            }
        }
        Ok(changes)
    }

    fn put(&mut self, key: &Bytes) -> Result<(), EtcdError> {
        if self.deletes.contains(key) || !self.puts.insert(key.clone()) {
            return Err(EtcdError::DuplicateKey);
        }
        Ok(())
    }
}

/// A set of keys, as disjoint intervals: start, and the end that is not in it.
#[derive(Default)]
struct Intervals(BTreeMap<Bytes, Bytes>);

impl Intervals {
    /// etcd compares the bounds as they are written. So an interval without end (`range_end` = `\0`) holds no key here:
    /// deleting "everything from k on" and putting a key behind k passes this check in etcd, and has to here.
    fn insert(&mut self, key: &Bytes, range_end: &Bytes) {
        let end = match range_end.is_empty() {
            true => [key, &b"\0"[..]].concat().into(),
            false => range_end.clone(),
        };
        if *key < end {
            self.merge(key.clone(), end);
        }
    }

    fn extend(&mut self, other: Intervals) {
        for (start, end) in other.0 {
            self.merge(start, end);
        }
    }

    fn merge(&mut self, mut start: Bytes, mut end: Bytes) {
        // Of the intervals that begin at or before `end`, those that reach `start` become one with it.
        while let Some((before, its_end)) = self.0.range(..=end.clone()).next_back() {
            if *its_end < start {
                break;
            }
            let before = before.clone();
            let its_end = self.0.remove(&before).expect("it was just found");
            start = start.min(before);
            end = end.max(its_end);
        }
        self.0.insert(start, end);
    }

    fn contains(&self, key: &Bytes) -> bool {
        self.0.range::<Bytes, _>(..=key).next_back().is_some_and(|(_, end)| key < end)
    }
}

/// Whether the transaction only reads, so that it need not be replicated. As in etcd, one with a nested transaction
/// counts as writing.
pub fn is_read_only(request: &TxnRequest) -> bool {
    ranges(request).all(|range| range.is_some())
}

/// Whether every read of it is content with this member's state. Where there is none, nobody said so, and it is not:
/// etcd (`txn.go`, `IsTxnSerializable`) lets a stale member decide the comparisons then.
pub fn is_serializable(request: &TxnRequest) -> bool {
    let mut ranges = ranges(request).peekable();
    ranges.peek().is_some() && ranges.all(|range| range.is_some_and(|range| range.serializable))
}

/// The operations of both branches; None for each that is no range.
pub fn ranges(request: &TxnRequest) -> impl Iterator<Item = Option<&RangeRequest>> {
    request.success.iter().chain(&request.failure).map(|op| match &op.request {
        Some(Request::RequestRange(range)) => Some(range),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use proto::etcdserverpb::Compare;

    use super::*;

    fn op(request: Request) -> RequestOp {
        RequestOp { request: Some(request) }
    }

    fn put_of(key: &'static str) -> RequestOp {
        op(Request::RequestPut(PutRequest { key: key.into(), ..Default::default() }))
    }

    fn delete_of(key: &'static str, range_end: &'static str) -> RequestOp {
        let (key, range_end) = (key.into(), range_end.into());
        op(Request::RequestDeleteRange(DeleteRangeRequest { key, range_end, ..Default::default() }))
    }

    fn range_of(key: &'static str, serializable: bool) -> RequestOp {
        op(Request::RequestRange(RangeRequest { key: key.into(), serializable, ..Default::default() }))
    }

    fn txn_of(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> TxnRequest {
        TxnRequest { success, failure, ..Default::default() }
    }

    fn nested(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        op(Request::RequestTxn(txn_of(success, failure)))
    }

    fn check(success: Vec<RequestOp>) -> Result<(), EtcdError> {
        txn(&txn_of(success.clone(), vec![]), 128)?;
        assert_eq!(txn(&txn_of(vec![], success), 128), Ok(()), "both branches have the same rules");
        Ok(())
    }

    #[test]
    fn a_range_needs_a_key_and_known_sort_options() {
        let request = RangeRequest { key: "k".into(), ..Default::default() };
        assert_eq!(range(&request), Ok(()));
        assert_eq!(range(&RangeRequest::default()), Err(EtcdError::EmptyKey));
        let target = RangeRequest { sort_target: 5, ..request.clone() };
        let order = RangeRequest { sort_order: -1, ..request };
        assert_eq!(range(&target), Err(EtcdError::InvalidSortOption));
        assert_eq!(range(&order), Err(EtcdError::InvalidSortOption));
    }

    #[test]
    fn a_streamed_range_takes_no_order_but_keys_ascending_and_no_filters() {
        let request = RangeRequest { key: "k".into(), sort_order: SortOrder::Ascend as i32, ..Default::default() };
        assert!(range_stream(&request).is_ok());
        let descending = RangeRequest { sort_order: SortOrder::Descend as i32, ..request.clone() };
        assert_eq!(range_stream(&descending).unwrap_err().code(), tonic::Code::Unimplemented);
        let filtered = RangeRequest { min_mod_revision: 1, ..request };
        assert_eq!(range_stream(&filtered).unwrap_err().message(), "RangeStream does not support revision filters");
    }

    #[test]
    fn a_put_that_keeps_the_value_or_the_lease_brings_none() {
        let request = PutRequest { key: "k".into(), value: "v".into(), lease: 7, ..Default::default() };
        assert_eq!(put(&request), Ok(()));
        assert_eq!(put(&PutRequest { ignore_value: true, ..request.clone() }), Err(EtcdError::ValueProvided));
        assert_eq!(put(&PutRequest { ignore_lease: true, ..request.clone() }), Err(EtcdError::LeaseProvided));
        assert_eq!(put(&PutRequest { key: Bytes::new(), ..request }), Err(EtcdError::EmptyKey));
    }

    #[test]
    fn operations_are_counted_by_the_longest_list_and_nested_ones_get_what_is_left() {
        let puts = |n: usize| {
            (0..n).map(|i| op(Request::RequestPut(PutRequest { key: i.to_string().into(), ..Default::default() })))
        };
        assert_eq!(txn(&txn_of(puts(3).collect(), puts(3).collect()), 3), Ok(()));
        assert_eq!(txn(&txn_of(puts(4).collect(), vec![]), 3), Err(EtcdError::TooManyOps));
        let compares =
            TxnRequest { compare: vec![Compare { key: "k".into(), ..Default::default() }; 4], ..Default::default() };
        assert_eq!(txn(&compares, 3), Err(EtcdError::TooManyOps));
        assert_eq!(txn(&txn_of(vec![nested(puts(2).collect(), vec![])], vec![]), 3), Ok(()));
        assert_eq!(txn(&txn_of(vec![nested(puts(3).collect(), vec![])], vec![]), 3), Err(EtcdError::TooManyOps));
    }

    #[test]
    fn an_empty_operation_and_an_empty_compare_are_refused() {
        assert_eq!(check(vec![RequestOp { request: None }]), Err(EtcdError::KeyNotFound));
        let request = TxnRequest { compare: vec![Compare::default()], ..Default::default() };
        assert_eq!(txn(&request, 128), Err(EtcdError::EmptyKey));
    }

    #[test]
    fn a_key_is_changed_once_in_a_branch() {
        let duplicate = Err(EtcdError::DuplicateKey);
        let refused = |ops: Vec<RequestOp>| assert_eq!(txn(&txn_of(ops, vec![]), 128), duplicate);
        refused(vec![put_of("a"), put_of("a")]);
        refused(vec![put_of("b"), delete_of("a", "c")]);
        refused(vec![delete_of("b", ""), put_of("b")]);
        refused(vec![put_of("a"), nested(vec![put_of("a")], vec![])]);
        refused(vec![delete_of("a", "c"), nested(vec![], vec![put_of("b")])]);
        refused(vec![nested(vec![put_of("a")], vec![]), nested(vec![], vec![put_of("a")])]);
        refused(vec![nested(vec![delete_of("a", "")], vec![]), put_of("a")]);
        assert_eq!(check(vec![put_of("a"), delete_of("b", "c"), put_of("c")]), Ok(()));
        assert_eq!(check(vec![nested(vec![put_of("a")], vec![put_of("a")])]), Ok(()));
        assert_eq!(check(vec![delete_of("a", "c"), delete_of("b", "d")]), Ok(()));
    }

    #[test]
    fn a_delete_without_end_is_not_compared_with_puts() {
        assert_eq!(check(vec![delete_of("a", "\0"), put_of("b")]), Ok(()));
    }

    #[test]
    fn intervals_that_touch_or_overlap_become_one() {
        let mut set = Intervals::default();
        for (start, end) in [("e", "g"), ("a", "c"), ("i", "k"), ("b", "f"), ("g", "h")] {
            set.insert(&start.into(), &end.into());
        }
        assert_eq!(set.0, BTreeMap::from([("a".into(), "h".into()), ("i".into(), "k".into())]));
        assert!(set.contains(&"a".into()) && set.contains(&"gz".into()) && !set.contains(&"h".into()));
    }

    #[test]
    fn only_plain_ranges_make_a_transaction_read_only() {
        assert!(is_read_only(&txn_of(vec![range_of("a", false)], vec![range_of("b", true)])));
        assert!(!is_read_only(&txn_of(vec![nested(vec![], vec![])], vec![])));
        assert!(!is_serializable(&txn_of(vec![range_of("a", false)], vec![range_of("b", true)])));
        assert!(is_serializable(&txn_of(vec![range_of("a", true)], vec![])));
        assert!(is_read_only(&txn_of(vec![], vec![])));
        assert!(!is_serializable(&txn_of(vec![], vec![])));
    }
}
