//! Requests of clients, evaluated on a store: ranges, transactions that read, hashes, history.
#![no_main]

#[path = "../bench.rs"]
mod bench;

use prost::Message;
use proto::{
    KeyRange,
    etcdserverpb::{RangeRequest, RequestOp, TxnRequest, request_op::Request},
};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    bench::with_filled(|store| {
        if let Ok(request) = RangeRequest::decode(data) {
            if let Ok(answer) = store.range(&request) {
                let keys = answer.kvs.len() as i64;
                assert!(keys <= answer.count && (request.limit <= 0 || keys <= request.limit));
            }
            if let Ok(mut cursor) =
                store.range_cursor(&RangeRequest { limit: request.limit.max(0), ..request.clone() }, 64)
            {
                while let Ok(Some(_)) = cursor.next_part() {}
            }
            let range = KeyRange::new(request.key.clone(), request.range_end.clone());
            let _ = store.events(&range, request.revision, request.revision.saturating_add(request.limit), 100);
            let _ = store.hash_kv(request.revision);
        }
        // The server proposes every other transaction.
        let is_range = |op: &RequestOp| matches!(op.request, Some(Request::RequestRange(_)));
        if let Ok(request) = TxnRequest::decode(data)
            && request.success.iter().chain(&request.failure).all(is_range)
        {
            let _ = store.read_txn(&request);
        }
    });
});
