//! From the messages of the API to what a history holds of them.

use anyhow::{Context as _, Error, Result, bail};
use proto::{
    etcdserverpb::{self as pb, compare as pb_compare, request_op, response_op, watch_create_request::FilterType},
    mvccpb,
};

use super::{
    Answer, Blob, Compare, CompareResult, CompareTarget, DeleteRange, Header, KeyValue, Keys, Put, Range, Response,
    Txn, TxnOp, TxnResult, WatchEvent, WatchRequest, WatchSeen,
};

fn keys(key: &bytes::Bytes, range_end: &bytes::Bytes) -> Keys {
    Keys { key: Blob(key.clone()), range_end: Blob(range_end.clone()) }
}

impl From<&pb::PutRequest> for Put {
    fn from(put: &pb::PutRequest) -> Put {
        Put {
            key: Blob(put.key.clone()),
            value: Blob(put.value.clone()),
            lease: put.lease,
            prev_kv: put.prev_kv,
            ignore_value: put.ignore_value,
            ignore_lease: put.ignore_lease,
        }
    }
}

impl TryFrom<&pb::RangeRequest> for Range {
    type Error = Error;

    fn try_from(range: &pb::RangeRequest) -> Result<Range> {
        let filters =
            [range.min_mod_revision, range.max_mod_revision, range.min_create_revision, range.max_create_revision];
        if range.sort_order != 0 || range.sort_target != 0 || filters != [0; 4] {
            bail!("histories have no sorted or filtered ranges: {range:?}");
        }
        Ok(Range {
            keys: keys(&range.key, &range.range_end),
            revision: range.revision,
            limit: range.limit,
            serializable: range.serializable,
            keys_only: range.keys_only,
            count_only: range.count_only,
        })
    }
}

impl From<&pb::DeleteRangeRequest> for DeleteRange {
    fn from(delete: &pb::DeleteRangeRequest) -> DeleteRange {
        DeleteRange { keys: keys(&delete.key, &delete.range_end), prev_kv: delete.prev_kv }
    }
}

impl TryFrom<&pb::TxnRequest> for Txn {
    type Error = Error;

    fn try_from(txn: &pb::TxnRequest) -> Result<Txn> {
        let branch = |ops: &[pb::RequestOp]| ops.iter().map(TxnOp::try_from).collect::<Result<Vec<TxnOp>>>();
        Ok(Txn {
            compares: txn.compare.iter().map(Compare::try_from).collect::<Result<_>>()?,
            success: branch(&txn.success)?,
            failure: branch(&txn.failure)?,
        })
    }
}

impl TryFrom<&pb::RequestOp> for TxnOp {
    type Error = Error;

    fn try_from(op: &pb::RequestOp) -> Result<TxnOp> {
        Ok(match op.request.as_ref().context("an empty operation")? {
            request_op::Request::RequestPut(put) => TxnOp::Put(put.into()),
            request_op::Request::RequestRange(range) => TxnOp::Range(range.try_into()?),
            request_op::Request::RequestDeleteRange(delete) => TxnOp::DeleteRange(delete.into()),
            request_op::Request::RequestTxn(txn) => TxnOp::Txn(txn.try_into()?),
        })
    }
}

impl TryFrom<&pb::Compare> for Compare {
    type Error = Error;

    fn try_from(compare: &pb::Compare) -> Result<Compare> {
        Ok(Compare {
            keys: keys(&compare.key, &compare.range_end),
            result: match compare.result() {
                pb_compare::CompareResult::Equal => CompareResult::Equal,
                pb_compare::CompareResult::NotEqual => CompareResult::NotEqual,
                pb_compare::CompareResult::Greater => CompareResult::Greater,
                pb_compare::CompareResult::Less => CompareResult::Less,
            },
            target: match compare.target_union.as_ref().context("a comparison with nothing")? {
                pb_compare::TargetUnion::Value(value) => CompareTarget::Value(Blob(value.clone())),
                pb_compare::TargetUnion::Version(version) => CompareTarget::Version(*version),
                pb_compare::TargetUnion::CreateRevision(revision) => CompareTarget::CreateRevision(*revision),
                pb_compare::TargetUnion::ModRevision(revision) => CompareTarget::ModRevision(*revision),
                pb_compare::TargetUnion::Lease(lease) => CompareTarget::Lease(*lease),
            },
        })
    }
}

impl From<&pb::WatchCreateRequest> for WatchRequest {
    fn from(watch: &pb::WatchCreateRequest) -> WatchRequest {
        WatchRequest {
            keys: keys(&watch.key, &watch.range_end),
            start_revision: watch.start_revision,
            prev_kv: watch.prev_kv,
            progress_notify: watch.progress_notify,
            fragment: watch.fragment,
            no_put: watch.filters().any(|filter| filter == FilterType::Noput),
            no_delete: watch.filters().any(|filter| filter == FilterType::Nodelete),
        }
    }
}

impl From<Option<&pb::ResponseHeader>> for Header {
    fn from(header: Option<&pb::ResponseHeader>) -> Header {
        header.map_or_else(Header::default, |header| Header {
            revision: header.revision,
            member: header.member_id,
            term: header.raft_term,
        })
    }
}

impl From<&mvccpb::KeyValue> for KeyValue {
    fn from(kv: &mvccpb::KeyValue) -> KeyValue {
        KeyValue {
            key: Blob(kv.key.clone()),
            value: Blob(kv.value.clone()),
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
            version: kv.version,
            lease: kv.lease,
        }
    }
}

fn kvs(kvs: &[mvccpb::KeyValue]) -> Vec<KeyValue> {
    kvs.iter().map(KeyValue::from).collect()
}

impl From<&pb::PutResponse> for Response {
    fn from(put: &pb::PutResponse) -> Response {
        let answer = Answer::Put { prev_kv: put.prev_kv.as_ref().map(KeyValue::from) };
        Response { header: put.header.as_ref().into(), answer }
    }
}

impl From<&pb::RangeResponse> for Response {
    fn from(range: &pb::RangeResponse) -> Response {
        let answer = Answer::Range { kvs: kvs(&range.kvs), count: range.count, more: range.more };
        Response { header: range.header.as_ref().into(), answer }
    }
}

impl From<&pb::DeleteRangeResponse> for Response {
    fn from(delete: &pb::DeleteRangeResponse) -> Response {
        let answer = Answer::DeleteRange { deleted: delete.deleted, prev_kvs: kvs(&delete.prev_kvs) };
        Response { header: delete.header.as_ref().into(), answer }
    }
}

impl TryFrom<&pb::TxnResponse> for Response {
    type Error = Error;

    fn try_from(txn: &pb::TxnResponse) -> Result<Response> {
        let answer = Answer::Txn { succeeded: txn.succeeded, results: results(&txn.responses)? };
        Ok(Response { header: txn.header.as_ref().into(), answer })
    }
}

fn results(responses: &[pb::ResponseOp]) -> Result<Vec<TxnResult>> {
    responses.iter().map(TxnResult::try_from).collect()
}

impl TryFrom<&pb::ResponseOp> for TxnResult {
    type Error = Error;

    fn try_from(op: &pb::ResponseOp) -> Result<TxnResult> {
        Ok(match op.response.as_ref().context("an empty answer")? {
            response_op::Response::ResponsePut(put) => {
                TxnResult::Put { prev_kv: put.prev_kv.as_ref().map(KeyValue::from) }
            }
            response_op::Response::ResponseRange(range) => {
                TxnResult::Range { kvs: kvs(&range.kvs), count: range.count, more: range.more }
            }
            response_op::Response::ResponseDeleteRange(delete) => {
                TxnResult::DeleteRange { deleted: delete.deleted, prev_kvs: kvs(&delete.prev_kvs) }
            }
            response_op::Response::ResponseTxn(txn) => {
                TxnResult::Txn { succeeded: txn.succeeded, results: results(&txn.responses)? }
            }
        })
    }
}

impl TryFrom<&mvccpb::Event> for WatchEvent {
    type Error = Error;

    fn try_from(event: &mvccpb::Event) -> Result<WatchEvent> {
        Ok(WatchEvent {
            kv: event.kv.as_ref().context("an event without a key")?.into(),
            delete: event.r#type() == mvccpb::event::EventType::Delete,
            prev_kv: event.prev_kv.as_ref().map(KeyValue::from),
        })
    }
}

impl WatchSeen {
    /// What one response of a watch tells. `request` is the one that was made last for this watcher.
    pub fn from_wire(response: &pb::WatchResponse, request: &WatchRequest) -> Result<WatchSeen> {
        let revision = response.header.as_ref().context("a response without a header")?.revision;
        Ok(match response {
            pb::WatchResponse { canceled: true, compact_revision: 1.., .. } => {
                WatchSeen::Compacted { compact_revision: response.compact_revision }
            }
            pb::WatchResponse { canceled: true, .. } => WatchSeen::Canceled { reason: response.cancel_reason.clone() },
            pb::WatchResponse { created: true, .. } => WatchSeen::Created { request: request.clone(), revision },
            pb::WatchResponse { events, fragment: false, .. } if events.is_empty() => WatchSeen::Progress { revision },
            pb::WatchResponse { events, fragment, .. } => {
                let events = events.iter().map(WatchEvent::try_from).collect::<Result<_>>()?;
                WatchSeen::Events { revision, fragment: *fragment, events }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response() -> pb::WatchResponse {
        let header = pb::ResponseHeader { revision: 7, ..Default::default() };
        pb::WatchResponse { header: Some(header), ..Default::default() }
    }

    fn seen(response: pb::WatchResponse) -> WatchSeen {
        WatchSeen::from_wire(&response, &WatchRequest::default()).unwrap()
    }

    #[test]
    fn responses_of_a_watch_are_told_apart() {
        let created = WatchSeen::Created { request: WatchRequest::default(), revision: 7 };
        assert_eq!(seen(pb::WatchResponse { created: true, ..response() }), created);
        assert_eq!(seen(response()), WatchSeen::Progress { revision: 7 });
        let compacted = pb::WatchResponse { canceled: true, compact_revision: 5, ..response() };
        assert_eq!(seen(compacted), WatchSeen::Compacted { compact_revision: 5 });
        let refused = pb::WatchResponse { created: true, canceled: true, cancel_reason: "why".into(), ..response() };
        assert_eq!(seen(refused), WatchSeen::Canceled { reason: "why".to_owned() });
        let kv = mvccpb::KeyValue { key: "a".into(), mod_revision: 6, ..Default::default() };
        let event = mvccpb::Event { r#type: 1, kv: Some(kv), prev_kv: None };
        let WatchSeen::Events { revision: 7, events, .. } =
            seen(pb::WatchResponse { events: vec![event], ..response() })
        else {
            panic!("no events");
        };
        assert!(events[0].delete && events[0].revision() == 6);
    }

    #[test]
    fn a_range_that_a_history_cannot_hold_is_refused() {
        let range = pb::RangeRequest { key: "a".into(), limit: 2, ..Default::default() };
        assert_eq!(Range::try_from(&range).unwrap().limit, 2);
        assert!(Range::try_from(&pb::RangeRequest { sort_order: 1, ..range.clone() }).is_err());
        assert!(Range::try_from(&pb::RangeRequest { max_mod_revision: 1, ..range }).is_err());
    }
}
