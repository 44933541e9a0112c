//! What alarms forbid. An alarm is part of the replicated state, so every member refuses the same commands.
//! (etcd: `server/etcdserver/apply/capped.go`, `corrupt.go`.)
//!
//! | alarm | refused | goes on |
//! |---|---|---|
//! | NOSPACE | what needs room: Put, LeaseGrant, a Txn with a put in one of its branches | reads, deletes, compaction, revoking leases |
//! | CORRUPT | every change of keys and leases | reads |

use std::collections::BTreeSet;

use proto::{EtcdError, command::command::Op, etcdserverpb::AlarmType};

use crate::cost;

/// Where an alarm stands in its column family.
pub(crate) fn key(member: u64, alarm: i32) -> Vec<u8> {
    [&member.to_be_bytes()[..], &alarm.to_be_bytes()[..]].concat()
}

/// Why a command may not be executed while these alarms (member and type) are active.
pub(crate) fn refusal(alarms: &BTreeSet<(u64, i32)>, op: &Op) -> Option<EtcdError> {
    if alarms.is_empty() {
        return None;
    }
    let is_active = |kind: AlarmType| alarms.iter().any(|&(_, active)| active == kind as i32);
    if is_active(AlarmType::Corrupt) && changes_keys_or_leases(op) {
        return Some(EtcdError::Corrupt);
    }
    (is_active(AlarmType::Nospace) && cost::of_command(op) > 0).then_some(EtcdError::NoSpace)
}

/// An expired lease is revoked by the same rule as one that a client revokes.
fn changes_keys_or_leases(op: &Op) -> bool {
    matches!(
        op,
        Op::Put(_)
            | Op::DeleteRange(_)
            | Op::Txn(_)
            | Op::Compact(_)
            | Op::LeaseGrant(_)
            | Op::LeaseRevoke(_)
            | Op::LeaseExpire(_)
    )
}

#[cfg(test)]
mod tests {
    use proto::{
        command::LeaseExpire,
        etcdserverpb::{
            CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RequestOp,
            TxnRequest, request_op::Request,
        },
    };

    use super::*;

    fn txn(success: Request, failure: Option<Request>) -> Op {
        let branch = |request| vec![RequestOp { request: Some(request) }];
        let failure = failure.map_or_else(Vec::new, branch);
        Op::Txn(TxnRequest { success: branch(success), failure, ..Default::default() })
    }

    #[test]
    fn without_space_what_frees_some_goes_on() {
        let alarms = BTreeSet::from([(7, AlarmType::Nospace as i32)]);
        let delete = Request::RequestDeleteRange(DeleteRangeRequest::default());
        for refused in [
            Op::Put(PutRequest::default()),
            Op::LeaseGrant(LeaseGrantRequest::default()),
            txn(delete.clone(), Some(Request::RequestPut(PutRequest::default()))),
        ] {
            assert_eq!(refusal(&alarms, &refused), Some(EtcdError::NoSpace), "{refused:?}");
        }
        for taken in [
            Op::DeleteRange(DeleteRangeRequest::default()),
            txn(delete, None),
            Op::Compact(CompactionRequest::default()),
            Op::LeaseRevoke(LeaseRevokeRequest::default()),
            Op::LeaseExpire(LeaseExpire::default()),
        ] {
            assert_eq!(refusal(&alarms, &taken), None, "{taken:?}");
        }
        assert_eq!(refusal(&BTreeSet::new(), &Op::Put(PutRequest::default())), None);
    }

    #[test]
    fn a_corrupt_cluster_changes_nothing_whatever_else_is_wrong() {
        let alarms = BTreeSet::from([(7, AlarmType::Corrupt as i32), (7, AlarmType::Nospace as i32)]);
        for refused in [
            Op::Put(PutRequest::default()),
            Op::DeleteRange(DeleteRangeRequest::default()),
            Op::Txn(TxnRequest::default()),
            Op::Compact(CompactionRequest::default()),
            Op::LeaseGrant(LeaseGrantRequest::default()),
            Op::LeaseRevoke(LeaseRevokeRequest::default()),
            Op::LeaseExpire(LeaseExpire::default()),
        ] {
            assert_eq!(refusal(&alarms, &refused), Some(EtcdError::Corrupt), "{refused:?}");
        }
        assert_eq!(refusal(&alarms, &Op::Alarm(Default::default())), None);
    }
}
