//! Namespaces: all keys of a client begin with a prefix that its user does not see. Source: etcd, `client/v3/namespace`.

use bytes::Bytes;
use proto::{
    EtcdError,
    etcdserverpb::{
        DeleteRangeRequest, DeleteRangeResponse, LeaseTimeToLiveResponse, PutRequest, PutResponse, RangeRequest,
        RangeResponse, RequestOp, ResponseOp, TxnRequest, TxnResponse, WatchCreateRequest, WatchResponse,
        request_op::Request, response_op::Response,
    },
    mvccpb::KeyValue,
};

use crate::{Client, Error, Keys, Result};

impl Client {
    /// The same client within a namespace: whatever it reads, writes, compares and watches has this prefix, which is put
    /// before keys and taken from them. A namespace within a namespace has both prefixes.
    ///
    /// Leases, locks and elections of a namespaced client are like those of others; of a lease's keys it sees its own.
    /// [`Client::call`] is not concerned.
    pub fn namespaced(&self, prefix: impl AsRef<[u8]>) -> Client {
        self.with_namespace([&self.namespace, prefix.as_ref()].concat().into())
    }

    /// A request as it is sent.
    pub(crate) fn entered<T: Enter>(&self, mut request: T) -> Result<T> {
        if !self.namespace.is_empty() {
            request.enter(&self.namespace)?;
        }
        Ok(request)
    }

    /// An answer as the caller sees it.
    pub(crate) fn left<T: Leave>(&self, mut answer: T) -> T {
        if !self.namespace.is_empty() {
            answer.leave(&self.namespace);
        }
        answer
    }
}

pub(crate) trait Enter {
    fn enter(&mut self, namespace: &[u8]) -> Result<()>;
}

pub(crate) trait Leave {
    fn leave(&mut self, namespace: &[u8]);
}

fn enter_range(namespace: &[u8], key: &mut Bytes, range_end: &mut Bytes) -> Result<()> {
    if key.is_empty() {
        // With the prefix it would be a key.
        return Err(Error::Etcd(EtcdError::EmptyKey));
    }
    *key = [namespace, key].concat().into();
    *range_end = match &range_end[..] {
        b"" => Bytes::new(),
        b"\0" => Keys::prefix(namespace.to_vec()).range_end,
        end => [namespace, end].concat().into(),
    };
    Ok(())
}

fn leave_key(namespace: &[u8], key: &mut Bytes) {
    if key.starts_with(namespace) {
        *key = key.slice(namespace.len()..);
    }
}

fn leave_all<'a>(namespace: &[u8], kvs: impl IntoIterator<Item = &'a mut KeyValue>) {
    kvs.into_iter().for_each(|kv| leave_key(namespace, &mut kv.key));
}

impl Enter for RangeRequest {
    fn enter(&mut self, namespace: &[u8]) -> Result<()> {
        enter_range(namespace, &mut self.key, &mut self.range_end)
    }
}

impl Enter for PutRequest {
    fn enter(&mut self, namespace: &[u8]) -> Result<()> {
        enter_range(namespace, &mut self.key, &mut Bytes::new())
    }
}

impl Enter for DeleteRangeRequest {
    fn enter(&mut self, namespace: &[u8]) -> Result<()> {
        enter_range(namespace, &mut self.key, &mut self.range_end)
    }
}

impl Enter for WatchCreateRequest {
    fn enter(&mut self, namespace: &[u8]) -> Result<()> {
        enter_range(namespace, &mut self.key, &mut self.range_end)
    }
}

impl Enter for TxnRequest {
    fn enter(&mut self, namespace: &[u8]) -> Result<()> {
        for compare in &mut self.compare {
            enter_range(namespace, &mut compare.key, &mut compare.range_end)?;
        }
        let ops = self.success.iter_mut().chain(&mut self.failure);
        ops.filter_map(|RequestOp { request }| request.as_mut()).try_for_each(|request| match request {
            Request::RequestRange(range) => range.enter(namespace),
            Request::RequestPut(put) => put.enter(namespace),
            Request::RequestDeleteRange(delete) => delete.enter(namespace),
            Request::RequestTxn(txn) => txn.enter(namespace),
        })
    }
}

impl Leave for RangeResponse {
    fn leave(&mut self, namespace: &[u8]) {
        leave_all(namespace, &mut self.kvs);
    }
}

impl Leave for PutResponse {
    fn leave(&mut self, namespace: &[u8]) {
        leave_all(namespace, &mut self.prev_kv);
    }
}

impl Leave for DeleteRangeResponse {
    fn leave(&mut self, namespace: &[u8]) {
        leave_all(namespace, &mut self.prev_kvs);
    }
}

impl Leave for WatchResponse {
    fn leave(&mut self, namespace: &[u8]) {
        for event in &mut self.events {
            leave_all(namespace, event.kv.iter_mut().chain(&mut event.prev_kv));
        }
    }
}

impl Leave for LeaseTimeToLiveResponse {
    fn leave(&mut self, namespace: &[u8]) {
        self.keys.retain(|key| key.starts_with(namespace));
        self.keys.iter_mut().for_each(|key| leave_key(namespace, key));
    }
}

impl Leave for TxnResponse {
    fn leave(&mut self, namespace: &[u8]) {
        for response in self.responses.iter_mut().filter_map(|ResponseOp { response }| response.as_mut()) {
            match response {
                Response::ResponseRange(range) => range.leave(namespace),
                Response::ResponsePut(put) => put.leave(namespace),
                Response::ResponseDeleteRange(delete) => delete.leave(namespace),
                Response::ResponseTxn(txn) => txn.leave(namespace),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_stays_within_the_namespace() {
        let entered = |namespace: &[u8], keys: Keys| {
            let (mut key, mut end) = (keys.key, keys.range_end);
            enter_range(namespace, &mut key, &mut end).unwrap();
            (key, end)
        };
        let bytes = |a: &'static [u8], b: &'static [u8]| (Bytes::from_static(a), Bytes::from_static(b));
        assert_eq!(entered(b"a/", Keys::one("k")), bytes(b"a/k", b""));
        assert_eq!(entered(b"a/", Keys::range("k", "m")), bytes(b"a/k", b"a/m"));
        assert_eq!(entered(b"a/", Keys::all()), bytes(b"a/\0", b"a0"));
        assert_eq!(entered(b"a/", Keys::from("k")), bytes(b"a/k", b"a0"));
        assert_eq!(entered(b"\xff", Keys::all()), bytes(b"\xff\0", b"\0"), "nothing comes after it");
        let refused = enter_range(b"a/", &mut Bytes::new(), &mut Bytes::new());
        assert_eq!(refused, Err(Error::Etcd(EtcdError::EmptyKey)));
    }
}
