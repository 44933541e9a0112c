//! Transactions: comparisons, and what is done when all of them hold and when one does not.

use bytes::Bytes;
use proto::etcdserverpb::{
    self as pb, RequestOp, TxnRequest, TxnResponse,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op::Request,
};

use crate::{
    Client, Delete, Get, Put, Result,
    kv::{fitting, kv},
    retry::Repeat,
};

/// A transaction: one revision, whatever it changes.
#[derive(Debug, Clone, Default)]
pub struct Txn(TxnRequest);

/// As many operations as etcd and Pintle take in a transaction by default are 128; some are left for what is around.
const OPS_MAX: usize = 120;

fn nested(mut ops: Vec<Op>, width: usize) -> Txn {
    while ops.len() > width {
        let mut outer = Vec::with_capacity(ops.len().div_ceil(width));
        let mut ops_left = ops.into_iter().peekable();
        while ops_left.peek().is_some() {
            outer.push(Op::txn(ops_left.by_ref().take(width).fold(Txn::new(), Txn::then)));
        }
        ops = outer;
    }
    ops.into_iter().fold(Txn::new(), Txn::then)
}

impl Txn {
    /// One that does nothing yet.
    pub fn new() -> Txn {
        Txn::default()
    }

    /// All of this, in this order. As much as a server takes in one transaction goes into transactions within it when
    /// it is more than [`OPS_MAX`].
    pub fn all_of(ops: Vec<Op>) -> Txn {
        // What is within a transaction may be as much as the limit less what the outer one has. Source: etcd,
        // `server/etcdserver/api/v3rpc/key.go` (checkTxnRequest).
        let depth = (1u32..).find(|depth| (OPS_MAX / *depth as usize).pow(*depth) >= ops.len()).unwrap_or(1);
        nested(ops, OPS_MAX / depth as usize)
    }

    /// Adds a comparison. All of them must hold.
    pub fn when(mut self, comparison: Comparison) -> Txn {
        self.0.compare.push(comparison.0);
        self
    }

    /// Adds what is done when all comparisons hold.
    pub fn then(mut self, op: Op) -> Txn {
        self.0.success.push(op.0);
        self
    }

    /// Adds what is done when one does not hold.
    pub fn otherwise(mut self, op: Op) -> Txn {
        self.0.failure.push(op.0);
        self
    }

    fn writes(&self) -> bool {
        fn any(ops: &[RequestOp]) -> bool {
            ops.iter().any(|op| match &op.request {
                Some(Request::RequestRange(_)) | None => false,
                Some(Request::RequestTxn(txn)) => any(&txn.success) || any(&txn.failure),
                Some(Request::RequestPut(_) | Request::RequestDeleteRange(_)) => true,
            })
        }
        any(&self.0.success) || any(&self.0.failure)
    }
}

/// One operation of a transaction.
#[derive(Debug, Clone)]
pub struct Op(RequestOp);

impl Op {
    fn new(request: Request) -> Op {
        Op(RequestOp { request: Some(request) })
    }

    /// A read; its answer is among those of the transaction.
    pub fn get(get: Get) -> Op {
        Op::new(Request::RequestRange(get.0))
    }

    /// A write of one key.
    pub fn put(put: Put) -> Op {
        Op::new(Request::RequestPut(put.0))
    }

    /// A delete.
    pub fn delete(delete: Delete) -> Op {
        Op::new(Request::RequestDeleteRange(delete.0))
    }

    /// A transaction within the transaction, with conditions of its own.
    pub fn txn(txn: Txn) -> Op {
        Op::new(Request::RequestTxn(txn.0))
    }
}

/// What of a key is compared: `Compare::mod_revision("k").equals(7)`. A key that is not there has 0 for every number.
#[derive(Debug, Clone)]
pub struct Compare<T> {
    key: Bytes,
    target: CompareTarget,
    with: fn(T) -> TargetUnion,
}

/// A complete comparison.
#[derive(Debug, Clone)]
pub struct Comparison(pb::Compare);

impl Compare<i64> {
    /// How often the key was put since it was created.
    pub fn version(key: impl Into<Bytes>) -> Compare<i64> {
        Compare { key: key.into(), target: CompareTarget::Version, with: TargetUnion::Version }
    }

    /// The revision at which the key was created.
    pub fn create_revision(key: impl Into<Bytes>) -> Compare<i64> {
        Compare { key: key.into(), target: CompareTarget::Create, with: TargetUnion::CreateRevision }
    }

    /// The revision at which the key was last put.
    pub fn mod_revision(key: impl Into<Bytes>) -> Compare<i64> {
        Compare { key: key.into(), target: CompareTarget::Mod, with: TargetUnion::ModRevision }
    }

    /// The id of the key's lease; 0 where it has none.
    pub fn lease(key: impl Into<Bytes>) -> Compare<i64> {
        Compare { key: key.into(), target: CompareTarget::Lease, with: TargetUnion::Lease }
    }
}

impl Compare<Bytes> {
    /// The value; a comparison with the value of a key that is not there never holds.
    pub fn value(key: impl Into<Bytes>) -> Compare<Bytes> {
        Compare { key: key.into(), target: CompareTarget::Value, with: TargetUnion::Value }
    }
}

impl<T> Compare<T> {
    fn is(self, result: CompareResult, with: impl Into<T>) -> Comparison {
        Comparison(pb::Compare {
            result: result.into(),
            target: self.target.into(),
            key: self.key,
            target_union: Some((self.with)(with.into())),
            range_end: Bytes::new(),
        })
    }

    /// Holds when it is this.
    pub fn equals(self, with: impl Into<T>) -> Comparison {
        self.is(CompareResult::Equal, with)
    }

    /// Holds when it is not this.
    pub fn differs_from(self, with: impl Into<T>) -> Comparison {
        self.is(CompareResult::NotEqual, with)
    }

    /// Holds when it is greater.
    pub fn greater_than(self, with: impl Into<T>) -> Comparison {
        self.is(CompareResult::Greater, with)
    }

    /// Holds when it is less.
    pub fn less_than(self, with: impl Into<T>) -> Comparison {
        self.is(CompareResult::Less, with)
    }
}

impl Client {
    /// Carries out a transaction.
    pub async fn txn(&self, txn: Txn) -> Result<TxnResponse> {
        let repeat = if txn.writes() { Repeat::IfNotProposed } else { Repeat::Always };
        let send = async |connection, request| kv(connection, self.options()).txn(request).await;
        Ok(self.left(self.call(repeat, fitting(self.entered(txn.0)?, self.options())?, send).await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_operations_are_nested_within_the_limit() {
        /// The most operations on the way from the outermost to an innermost one, and how many there are.
        fn measure(ops: &[RequestOp]) -> (usize, usize) {
            let within = ops.iter().map(|op| match &op.request {
                Some(Request::RequestTxn(txn)) => measure(&txn.success),
                _ => (0, 1),
            });
            let (deepest, count) = within.fold((0, 0), |(d, c), (deep, count)| (d.max(deep), c + count));
            (deepest + ops.len(), count)
        }
        for count in [0, 1, 120, 121, 3600, 3601, 50_000] {
            let txn = Txn::all_of((0..count).map(|key| Op::delete(Delete::key(key.to_string()))).collect());
            let (deepest, all) = measure(&txn.0.success);
            assert!(deepest <= OPS_MAX && all == count, "{count}: {deepest}, {all}");
        }
    }

    #[test]
    fn a_transaction_writes_when_anything_within_it_does() {
        let read = || Op::get(Get::key("k"));
        let nested = |op| Op::txn(Txn::new().otherwise(op));
        assert!(!Txn::new().then(read()).otherwise(nested(read())).writes());
        assert!(Txn::new().then(read()).otherwise(Op::put(Put::new("k", "v"))).writes());
        assert!(Txn::new().then(nested(nested(Op::delete(Delete::key("k"))))).writes());
    }
}
