//! The room that commands ask for, as etcd estimates it, in bytes. (etcd: `server/storage/quota.go`.)

use proto::{
    command::command::Op,
    etcdserverpb::{PutRequest, RequestOp, TxnRequest, request_op::Request},
};

pub const LEASE_GRANT: u64 = 64;
/// What stands beside the key and value of a version.
const VERSION: u64 = 256;

pub fn put(put: &PutRequest) -> u64 {
    VERSION + put.key.len() as u64 + put.value.len() as u64
}

/// That of the dearer branch: which one is taken shows only when the transaction is executed.
pub fn txn(request: &TxnRequest) -> u64 {
    let branch = |ops: &[RequestOp]| ops.iter().filter_map(|op| op.request.as_ref()).map(of_request).sum::<u64>();
    branch(&request.success).max(branch(&request.failure))
}

fn of_request(request: &Request) -> u64 {
    match request {
        Request::RequestPut(request) => put(request),
        Request::RequestTxn(request) => txn(request),
        Request::RequestRange(_) | Request::RequestDeleteRange(_) => 0,
    }
}

/// 0 for a command that needs none.
pub(crate) fn of_command(op: &Op) -> u64 {
    match op {
        Op::Put(request) => put(request),
        Op::Txn(request) => txn(request),
        Op::LeaseGrant(_) => LEASE_GRANT,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use proto::etcdserverpb::{DeleteRangeRequest, LeaseGrantRequest};

    use super::*;

    fn branch(requests: Vec<Request>) -> Vec<RequestOp> {
        requests.into_iter().map(|request| RequestOp { request: Some(request) }).collect()
    }

    #[test]
    fn a_txn_costs_what_its_dearer_branch_does() {
        let of = |bytes| PutRequest { key: "k".into(), value: vec![0; bytes].into(), ..Default::default() };
        let nested = TxnRequest { success: branch(vec![Request::RequestPut(of(10))]), ..Default::default() };
        let delete = Request::RequestDeleteRange(DeleteRangeRequest::default());
        let both = TxnRequest {
            success: branch(vec![Request::RequestPut(of(1)), Request::RequestTxn(nested)]),
            failure: branch(vec![Request::RequestPut(of(1000)), delete.clone()]),
            ..Default::default()
        };
        assert_eq!(put(&of(9)), 266);
        assert_eq!(txn(&both), 1257);
        assert_eq!(txn(&TxnRequest { failure: both.success, ..Default::default() }), 258 + 267);
        assert_eq!(txn(&TxnRequest { success: branch(vec![delete]), ..Default::default() }), 0);
        assert_eq!(of_command(&Op::LeaseGrant(LeaseGrantRequest::default())), 64);
    }
}
