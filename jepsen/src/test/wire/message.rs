//! Requests of a history as etcd's messages.

use proto::{
    authpb,
    etcdserverpb::{
        self as pb, compare::TargetUnion, request_op, watch_create_request::FilterType, watch_request::RequestUnion,
    },
    v3electionpb::LeaderKey,
};

use jepsen::check::history::{
    Blob, Compare, CompareResult, CompareTarget, DeleteRange, Keys, Permission, Put, Range, Txn, TxnOp, WatchRequest,
};

pub fn put(put: &Put) -> pb::PutRequest {
    pb::PutRequest {
        key: put.key.0.clone(),
        value: put.value.0.clone(),
        lease: put.lease,
        prev_kv: put.prev_kv,
        ignore_value: put.ignore_value,
        ignore_lease: put.ignore_lease,
    }
}

pub fn range(range: &Range) -> pb::RangeRequest {
    pb::RangeRequest {
        key: range.keys.key.0.clone(),
        range_end: range.keys.range_end.0.clone(),
        revision: range.revision,
        limit: range.limit,
        serializable: range.serializable,
        keys_only: range.keys_only,
        count_only: range.count_only,
        ..pb::RangeRequest::default()
    }
}

pub fn delete_range(delete: &DeleteRange) -> pb::DeleteRangeRequest {
    pb::DeleteRangeRequest {
        key: delete.keys.key.0.clone(),
        range_end: delete.keys.range_end.0.clone(),
        prev_kv: delete.prev_kv,
    }
}

pub fn txn(txn: &Txn) -> pb::TxnRequest {
    pb::TxnRequest {
        compare: txn.compares.iter().map(compare).collect(),
        success: txn.success.iter().map(txn_op).collect(),
        failure: txn.failure.iter().map(txn_op).collect(),
    }
}

fn txn_op(op: &TxnOp) -> pb::RequestOp {
    let request = match op {
        TxnOp::Put(op) => request_op::Request::RequestPut(put(op)),
        TxnOp::Range(op) => request_op::Request::RequestRange(range(op)),
        TxnOp::DeleteRange(op) => request_op::Request::RequestDeleteRange(delete_range(op)),
        TxnOp::Txn(op) => request_op::Request::RequestTxn(txn(op)),
    };
    pb::RequestOp { request: Some(request) }
}

fn compare(compare: &Compare) -> pb::Compare {
    use pb::compare::{CompareResult as WireResult, CompareTarget as WireTarget};
    let result = match compare.result {
        CompareResult::Equal => WireResult::Equal,
        CompareResult::NotEqual => WireResult::NotEqual,
        CompareResult::Greater => WireResult::Greater,
        CompareResult::Less => WireResult::Less,
    };
    let (target, union) = match &compare.target {
        CompareTarget::Value(value) => (WireTarget::Value, TargetUnion::Value(value.0.clone())),
        CompareTarget::Version(version) => (WireTarget::Version, TargetUnion::Version(*version)),
        CompareTarget::CreateRevision(revision) => (WireTarget::Create, TargetUnion::CreateRevision(*revision)),
        CompareTarget::ModRevision(revision) => (WireTarget::Mod, TargetUnion::ModRevision(*revision)),
        CompareTarget::Lease(lease) => (WireTarget::Lease, TargetUnion::Lease(*lease)),
    };
    pb::Compare {
        result: result.into(),
        target: target.into(),
        key: compare.keys.key.0.clone(),
        range_end: compare.keys.range_end.0.clone(),
        target_union: Some(union),
    }
}

pub fn compact(revision: i64) -> pb::CompactionRequest {
    pb::CompactionRequest { revision, physical: false }
}

pub fn hash_kv(revision: i64) -> pb::HashKvRequest {
    pb::HashKvRequest { revision }
}

pub fn watch_create(watch: &WatchRequest) -> pb::WatchRequest {
    let filters = [(watch.no_put, FilterType::Noput), (watch.no_delete, FilterType::Nodelete)];
    let create = pb::WatchCreateRequest {
        key: watch.keys.key.0.clone(),
        range_end: watch.keys.range_end.0.clone(),
        start_revision: watch.start_revision,
        progress_notify: watch.progress_notify,
        filters: filters.into_iter().filter(|(set, _)| *set).map(|(_, filter)| filter.into()).collect(),
        prev_kv: watch.prev_kv,
        fragment: watch.fragment,
        ..pb::WatchCreateRequest::default()
    };
    pb::WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }
}

/// The leader as the election service takes it. Its key is `name/lease`, the lease in hexadecimal.
pub fn leader_key(key: &Blob, create_revision: i64) -> LeaderKey {
    let text = String::from_utf8_lossy(key);
    let (name, lease) = text.rsplit_once('/').expect("a leader's key ends in its lease");
    LeaderKey {
        name: name.to_owned().into(),
        key: key.0.clone(),
        rev: create_revision,
        lease: i64::from_str_radix(lease, 16).expect("a leader's lease is a hexadecimal number"),
    }
}

pub fn user_add(user: &str) -> pb::AuthUserAddRequest {
    pb::AuthUserAddRequest {
        name: user.to_owned(),
        password: user.to_owned(),
        options: Some(authpb::UserAddOptions { no_password: false }),
        ..pb::AuthUserAddRequest::default()
    }
}

/// To the same one: what counts is that tokens made before are of an older state.
pub fn user_change_password(user: &str) -> pb::AuthUserChangePasswordRequest {
    pb::AuthUserChangePasswordRequest {
        name: user.to_owned(),
        password: user.to_owned(),
        ..pb::AuthUserChangePasswordRequest::default()
    }
}

pub fn role_grant_permission(role: String, keys: &Keys, permission: Permission) -> pb::AuthRoleGrantPermissionRequest {
    use authpb::permission::Type;
    let kind = match permission {
        Permission::Read => Type::Read,
        Permission::Write => Type::Write,
        Permission::ReadWrite => Type::Readwrite,
    };
    let (key, range_end) = (keys.key.0.clone(), keys.range_end.0.clone());
    let perm = authpb::Permission { perm_type: kind.into(), key, range_end };
    pb::AuthRoleGrantPermissionRequest { name: role, perm: Some(perm) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaders_key_tells_name_and_lease() {
        let key = leader_key(&"election/7fffffffffffffff".into(), 12);
        assert_eq!((&*key.name, key.rev, key.lease), (b"election".as_slice(), 12, i64::MAX));
        assert_eq!(&*key.key, b"election/7fffffffffffffff");
    }
}
