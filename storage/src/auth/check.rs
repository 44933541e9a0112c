//! Whether a command may be applied on behalf of a user. (etcd: `server/etcdserver/apply/auth.go`.)
//!
//! It was checked when it was proposed, too; but what a user may do can have changed before it is applied.

use proto::{
    EtcdError, LeaseId,
    command::{AuthInfo, command::Op},
    etcdserverpb::{DeleteRangeRequest, PutRequest, RequestOp, TxnRequest, request_op::Request},
};

use super::{AuthState, Right};
use crate::lease::Leases;

/// Refuses a command that `auth` may not carry out.
pub(crate) fn check_command(
    state: &AuthState,
    leases: &Leases,
    auth: Option<&AuthInfo>,
    op: &Op,
) -> Result<(), EtcdError> {
    let check = Check { state, leases, auth };
    match op {
        Op::Put(put) => check.put(put),
        Op::DeleteRange(delete) => check.delete_range(delete),
        Op::Txn(txn) => check.txn(txn),
        Op::LeaseRevoke(revoke) => check.lease(revoke.id),
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
        | Op::RoleRevokePermission(_) => state.check_admin(auth),
        // Who asks for these is checked before they are proposed; the others are members' own.
        _ => Ok(()),
    }
}

impl AuthState {
    /// Whether a transaction that only reads may be carried out.
    pub fn check_read_txn(&self, auth: Option<&AuthInfo>, txn: &TxnRequest) -> Result<(), EtcdError> {
        Check { state: self, leases: &Leases::default(), auth }.txn(txn)
    }
}

struct Check<'a> {
    state: &'a AuthState,
    leases: &'a Leases,
    auth: Option<&'a AuthInfo>,
}

impl Check<'_> {
    fn keys(&self, key: &[u8], range_end: &[u8], right: Right) -> Result<(), EtcdError> {
        self.state.check_keys(self.auth, key, range_end, right)
    }

    fn put(&self, put: &PutRequest) -> Result<(), EtcdError> {
        self.keys(&put.key, b"", Right::Write)?;
        // Who may not write the keys that hang on a lease may hang no other there either: it would go with them.
        self.lease(put.lease)?;
        if put.prev_kv { self.keys(&put.key, b"", Right::Read) } else { Ok(()) }
    }

    fn delete_range(&self, delete: &DeleteRangeRequest) -> Result<(), EtcdError> {
        self.keys(&delete.key, &delete.range_end, Right::Write)?;
        if delete.prev_kv { self.keys(&delete.key, &delete.range_end, Right::Read) } else { Ok(()) }
    }

    /// All of it, whichever branch it will take.
    fn txn(&self, txn: &TxnRequest) -> Result<(), EtcdError> {
        for compare in &txn.compare {
            self.keys(&compare.key, &compare.range_end, Right::Read)?;
        }
        txn.success.iter().chain(&txn.failure).try_for_each(|op| self.operation(op))
    }

    fn operation(&self, op: &RequestOp) -> Result<(), EtcdError> {
        match &op.request {
            Some(Request::RequestRange(range)) => self.keys(&range.key, &range.range_end, Right::Read),
            Some(Request::RequestPut(put)) => self.put(put),
            Some(Request::RequestDeleteRange(delete)) => self.delete_range(delete),
            Some(Request::RequestTxn(txn)) => self.txn(txn),
            None => Ok(()),
        }
    }

    fn lease(&self, id: i64) -> Result<(), EtcdError> {
        self.state.check_lease_keys(self.auth, self.leases.keys(LeaseId(id)), Right::Write)
    }
}
