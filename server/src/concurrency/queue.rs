//! The queue below a name: its first key, and the wait for the keys before one's own to go.

use futures::StreamExt as _;
use proto::{
    EtcdError,
    etcdserverpb::{
        Compare, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, WatchCreateRequest,
        compare::{CompareResult, CompareTarget, TargetUnion},
        range_request::{SortOrder, SortTarget},
        request_op::Request as Op,
    },
    mvccpb::event::EventType,
};
use storage::planted;
use tonic::Status;

use super::caller::{Caller, in_etcds_code};

/// The range of all keys that begin with `prefix`.
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    // Up to the last key there is.
    vec![0]
}

/// What the keys of a queue begin with.
pub fn prefix(name: &[u8]) -> Vec<u8> {
    [name, b"/"].concat()
}

/// The key of a lease in a queue.
pub fn key(prefix: &[u8], lease: i64) -> Vec<u8> {
    let sign = if lease < 0 { "-" } else { "" };
    [prefix, format!("{sign}{:x}", lease.unsigned_abs()).as_bytes()].concat()
}

/// Asks for the oldest key below `prefix`: the holder's.
pub fn first(prefix: &[u8]) -> RangeRequest {
    RangeRequest {
        key: prefix.to_vec().into(),
        range_end: prefix_end(prefix).into(),
        limit: 1,
        sort_target: SortTarget::Create as i32,
        sort_order: SortOrder::Ascend as i32,
        ..Default::default()
    }
}

pub fn single(key: &[u8]) -> RangeRequest {
    RangeRequest { key: key.to_vec().into(), ..Default::default() }
}

/// That `key` was created at `revision`; at 0, that there is none.
pub fn created_at(key: &[u8], revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Create as i32,
        key: key.to_vec().into(),
        target_union: Some(TargetUnion::CreateRevision(revision)),
        ..Default::default()
    }
}

pub fn get_op(request: RangeRequest) -> RequestOp {
    RequestOp { request: Some(Op::RequestRange(request)) }
}

pub fn put_op(key: &[u8], value: bytes::Bytes, lease: i64) -> RequestOp {
    let put = PutRequest { key: key.to_vec().into(), value, lease, ..Default::default() };
    RequestOp { request: Some(Op::RequestPut(put)) }
}

pub fn delete_op(key: &[u8]) -> RequestOp {
    RequestOp { request: Some(Op::RequestDeleteRange(delete(key))) }
}

pub fn delete(key: &[u8]) -> DeleteRangeRequest {
    DeleteRangeRequest { key: key.to_vec().into(), ..Default::default() }
}

/// Returns when no key below `prefix` is left that was created at `create_revision_max` or before. Only the last of
/// them is waited for at a time, so that the end of one wakes one. (etcd: `concurrency/key.go`.)
pub async fn wait_for_turn(caller: &Caller, prefix: &[u8], create_revision_max: i64) -> Result<(), Status> {
    if planted!(LockGivenAtOnce) {
        return Ok(());
    }
    let last_before = RangeRequest {
        sort_order: SortOrder::Descend as i32,
        max_create_revision: create_revision_max,
        ..first(prefix)
    };
    loop {
        let mut before = caller.range(last_before.clone()).await?;
        let revision = before.header.map_or(0, |header| header.revision);
        let Some(kv) = before.kvs.pop() else { return Ok(()) };
        wait_for_delete(caller, &kv.key, revision).await?;
    }
}

async fn wait_for_delete(caller: &Caller, key: &[u8], from_revision: i64) -> Result<(), Status> {
    let create = WatchCreateRequest { key: key.to_vec().into(), start_revision: from_revision, ..Default::default() };
    let mut responses = caller.watch(create).await?;
    while let Some(response) = responses.next().await {
        let response = response.map_err(|status| in_etcds_code(&status))?;
        if response.events.iter().any(|event| event.r#type() == EventType::Delete) {
            return Ok(());
        }
        if response.compact_revision != 0 {
            return Err(Status::unknown(EtcdError::Compacted.message()));
        }
        if response.canceled {
            return Err(Status::unknown(response.cancel_reason));
        }
    }
    Err(Status::unknown("lost watcher waiting for delete"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_the_name_and_the_lease_in_hexadecimal() {
        assert_eq!(key(&prefix(b"jobs"), 0x3269_5410_dcc0_ca06), b"jobs/32695410dcc0ca06");
        assert_eq!(key(&prefix(b""), -26), b"/-1a");
    }

    #[test]
    fn a_prefix_ends_before_the_next_key_of_its_length() {
        assert_eq!(prefix_end(b"a/"), b"a0");
        assert_eq!(prefix_end(b"a\xff"), b"b");
        assert_eq!(prefix_end(b"\xff"), b"\0");
    }
}
