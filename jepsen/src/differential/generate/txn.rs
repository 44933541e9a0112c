//! Transactions, nested up to two deep, most of them valid.

use bytes::Bytes;
use proto::etcdserverpb::{self as pb, compare::TargetUnion, request_op::Request as Op};
use rand::Rng as _;

use super::Generator;

/// etcd's --max-txn-ops.
const OPS_MAX: usize = 128;
const DEPTH_MAX: u32 = 2;

pub(super) const NO_END: &[u8] = b"\0";
pub(super) const BEHIND_ALL: Bytes = Bytes::from_static(b"\xff\xff\xff");

impl Generator {
    pub(super) fn txn(&mut self) -> pb::TxnRequest {
        if self.chance(0.01) {
            return self.crowded_txn();
        }
        self.txn_below(0)
    }

    /// A transaction in which no other is nested.
    pub(super) fn flat_txn(&mut self) -> pb::TxnRequest {
        self.txn_below(DEPTH_MAX)
    }

    fn txn_below(&mut self, depth: u32) -> pb::TxnRequest {
        let mut txn = self.txn_at(depth);
        let mut puts = false;
        for_each_op(&mut txn, &mut |op| puts |= matches!(op, Op::RequestPut(_)));
        if puts {
            // etcd does not see that a delete without an end overlaps with a put, executes both, and dies of it: at once
            // if the put is to keep the value or the lease of the deleted key, or when a key that was changed twice in
            // one revision is read after a compaction.
            for_each_op(&mut txn, &mut |op| match op {
                Op::RequestDeleteRange(delete) if delete.range_end.as_ref() == NO_END => delete.range_end = BEHIND_ALL,
                _ => {}
            });
        }
        txn
    }

    fn txn_at(&mut self, depth: u32) -> pb::TxnRequest {
        pb::TxnRequest {
            compare: (0..self.rng.random_range(0..=3)).map(|_| self.compare()).collect(),
            success: self.branch(depth),
            failure: self.branch(depth),
        }
    }

    /// Around the limit of operations, in one branch or in a nested one, which gets what the outer leaves.
    fn crowded_txn(&mut self) -> pb::TxnRequest {
        let reads = |generator: &mut Generator, count: usize| -> Vec<pb::RequestOp> {
            let key = generator.written_key();
            (0..count)
                .map(|_| op(Op::RequestRange(pb::RangeRequest { key: key.clone(), ..Default::default() })))
                .collect()
        };
        let count = OPS_MAX + self.rng.random_range(0..3) - 1;
        match self.rng.random_range(0..3) {
            0 => pb::TxnRequest { success: reads(self, count), ..Default::default() },
            1 => pb::TxnRequest { compare: vec![self.compare(); count], ..Default::default() },
            _ => {
                let inner = pb::TxnRequest { success: reads(self, count - 1), ..Default::default() };
                pb::TxnRequest { failure: vec![op(Op::RequestTxn(inner))], ..Default::default() }
            }
        }
    }

    fn branch(&mut self, depth: u32) -> Vec<pb::RequestOp> {
        (0..self.rng.random_range(0..=3)).map(|_| self.op(depth)).collect()
    }

    fn op(&mut self, depth: u32) -> pb::RequestOp {
        match self.rng.random_range(0..200) {
            0 => pb::RequestOp { request: None },
            1..60 => op(Op::RequestRange(self.range())),
            60..140 => op(Op::RequestPut(self.put())),
            140..165 => op(Op::RequestDeleteRange(self.delete())),
            _ if depth < DEPTH_MAX => op(Op::RequestTxn(self.txn_at(depth + 1))),
            _ => op(Op::RequestPut(self.put())),
        }
    }

    fn compare(&mut self) -> pb::Compare {
        let target_union = match self.rng.random_range(0..20) {
            0 => None,
            1..5 => Some(TargetUnion::Version(self.within(0..=4))),
            5..9 => Some(TargetUnion::CreateRevision(if self.chance(0.4) { 0 } else { self.past_revision() })),
            9..13 => Some(TargetUnion::ModRevision(if self.chance(0.4) { 0 } else { self.past_revision() })),
            13..17 => Some(TargetUnion::Value(self.value())),
            _ => Some(TargetUnion::Lease(self.lease_id())),
        };
        let target = match &target_union {
            // The target and what it is compared with need not belong together.
            _ if self.chance(0.03) => self.within(-1..=6) as i32,
            None | Some(TargetUnion::Version(_)) => pb::compare::CompareTarget::Version as i32,
            Some(TargetUnion::CreateRevision(_)) => pb::compare::CompareTarget::Create as i32,
            Some(TargetUnion::ModRevision(_)) => pb::compare::CompareTarget::Mod as i32,
            Some(TargetUnion::Value(_)) => pb::compare::CompareTarget::Value as i32,
            Some(TargetUnion::Lease(_)) => pb::compare::CompareTarget::Lease as i32,
        };
        let result = if self.chance(0.02) { self.pick(&[-1, 4, 99]) } else { self.within(0..=3) as i32 };
        let range_end = if self.chance(0.3) { self.range_end() } else { Default::default() };
        let key = if self.chance(0.01) { Default::default() } else { self.key() };
        pb::Compare { result, target, key, range_end, target_union }
    }
}

fn op(request: Op) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn for_each_op(txn: &mut pb::TxnRequest, visit: &mut impl FnMut(&mut Op)) {
    for op in txn.success.iter_mut().chain(&mut txn.failure).filter_map(|op| op.request.as_mut()) {
        visit(op);
        if let Op::RequestTxn(nested) = op {
            for_each_op(nested, visit);
        }
    }
}
