//! Requests, each given a limit.

use std::{future::Future, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use proto::{
    etcdserverpb::{
        CompactionRequest, DeleteRangeRequest, HashKvRequest, LeaseGrantRequest, LeaseKeepAliveRequest,
        LeaseRevokeRequest, PutRequest, RangeRequest, RangeResponse, RequestOp, TxnRequest, TxnResponse,
        WatchCreateRequest, WatchRequest, WatchResponse, kv_client::KvClient, lease_client::LeaseClient,
        maintenance_client::MaintenanceClient, request_op::Request, watch_client::WatchClient,
        watch_request::RequestUnion,
    },
    mvccpb::Event,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming, transport::Channel};

use crate::process::Node;

pub const REQUEST_LIMIT: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub struct Client {
    channel: Channel,
}

/// The answer within the limit.
async fn answer<T>(request: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Status> {
    let late = |_| Status::deadline_exceeded(format!("no answer within {REQUEST_LIMIT:?}"));
    timeout(REQUEST_LIMIT, request).await.map_err(late)?.map(Response::into_inner)
}

impl Client {
    pub fn of(node: &Node) -> Client {
        Client { channel: node.channel() }
    }

    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel()).max_decoding_message_size(usize::MAX)
    }

    /// The revision of the put.
    pub async fn put(&self, key: &str, value: impl Into<Bytes>) -> Result<i64, Status> {
        self.put_on(key, value, 0).await
    }

    /// The same, on a lease.
    pub async fn put_on(&self, key: &str, value: impl Into<Bytes>, lease: i64) -> Result<i64, Status> {
        let put = PutRequest { key: key.to_owned().into(), value: value.into(), lease, ..PutRequest::default() };
        Ok(answer(self.kv().put(put)).await?.header.unwrap_or_default().revision)
    }

    pub async fn delete(&self, key: &str) -> Result<i64, Status> {
        let delete = DeleteRangeRequest { key: key.to_owned().into(), ..DeleteRangeRequest::default() };
        Ok(answer(self.kv().delete_range(delete)).await?.header.unwrap_or_default().revision)
    }

    pub async fn txn(&self, txn: TxnRequest) -> Result<TxnResponse, Status> {
        answer(self.kv().txn(txn)).await
    }

    /// Puts all keys in one transaction; gives its revision.
    pub async fn put_all(&self, keys: &[&str], value: &Bytes) -> Result<i64, Status> {
        let success = keys.iter().map(|key| put_op(key, value.clone())).collect();
        let response = self.txn(TxnRequest { success, ..TxnRequest::default() }).await?;
        Ok(response.header.unwrap_or_default().revision)
    }

    pub async fn range(&self, range: RangeRequest) -> Result<RangeResponse, Status> {
        answer(self.kv().range(range)).await
    }

    /// One key, as a linearizable read shows it.
    pub async fn get(&self, key: &str) -> Result<RangeResponse, Status> {
        self.range(range_of(key)).await
    }

    /// The current revision.
    pub async fn revision(&self) -> Result<i64> {
        Ok(self.get("any").await?.header.context("no header")?.revision)
    }

    pub async fn compact(&self, revision: i64) -> Result<()> {
        answer(self.kv().compact(CompactionRequest { revision, physical: true })).await?;
        Ok(())
    }

    pub async fn hash(&self, revision: i64) -> Result<u32> {
        let mut client = MaintenanceClient::new(self.channel());
        Ok(answer(client.hash_kv(HashKvRequest { revision })).await?.hash)
    }

    pub async fn grant(&self, ttl: i64) -> Result<i64> {
        let mut client = LeaseClient::new(self.channel());
        Ok(answer(client.lease_grant(LeaseGrantRequest { id: 0, ttl })).await?.id)
    }

    pub async fn revoke(&self, id: i64) -> Result<i64, Status> {
        let mut client = LeaseClient::new(self.channel());
        let response = answer(client.lease_revoke(LeaseRevokeRequest { id })).await?;
        Ok(response.header.unwrap_or_default().revision)
    }

    /// Renews once; the TTL that was answered.
    pub async fn keep_alive(&self, id: i64) -> Result<i64, Status> {
        let mut client = LeaseClient::new(self.channel());
        let requests = tokio_stream::iter([LeaseKeepAliveRequest { id }]);
        let mut responses = answer(client.lease_keep_alive(requests)).await?;
        let late = |_| Status::deadline_exceeded("no answer to a keep-alive");
        let response = timeout(REQUEST_LIMIT, responses.message()).await.map_err(late)??;
        response.map(|response| response.ttl).ok_or_else(|| Status::unavailable("the keep-alives ended"))
    }

    /// Begins a watch, and waits until it is created.
    pub async fn watch(&self, create: WatchCreateRequest) -> Result<Watch> {
        let (requests, receiver) = mpsc::channel(4);
        let mut client = WatchClient::new(self.channel()).max_decoding_message_size(usize::MAX);
        requests.send(WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }).await?;
        let responses = answer(client.watch(ReceiverStream::new(receiver))).await?;
        let mut watch = Watch { requests, responses };
        let created = watch.next().await?;
        ensure!(created.created && !created.canceled, "the watch was not created: {created:?}");
        Ok(watch)
    }
}

/// One watch on a stream of its own.
pub struct Watch {
    pub requests: mpsc::Sender<WatchRequest>,
    responses: Streaming<WatchResponse>,
}

impl Watch {
    pub async fn next(&mut self) -> Result<WatchResponse> {
        let response = timeout(REQUEST_LIMIT, self.responses.message()).await;
        response.context("the watch fell silent")??.context("the watch ended by itself")
    }

    /// The next response with events.
    pub async fn events(&mut self) -> Result<Vec<Event>> {
        loop {
            let response = self.next().await?;
            if response.canceled {
                bail!("the watch was cancelled: {response:?}");
            }
            if !response.events.is_empty() {
                return Ok(response.events);
            }
        }
    }
}

/// A watch on all keys.
pub fn watch_all(start_revision: i64) -> WatchCreateRequest {
    let all = Bytes::from_static(b"\0");
    WatchCreateRequest { key: all.clone(), range_end: all, start_revision, ..WatchCreateRequest::default() }
}

pub fn range_of(key: &str) -> RangeRequest {
    RangeRequest { key: key.to_owned().into(), ..RangeRequest::default() }
}

pub fn put_op(key: &str, value: Bytes) -> RequestOp {
    let put = PutRequest { key: key.to_owned().into(), value, ..PutRequest::default() };
    RequestOp { request: Some(Request::RequestPut(put)) }
}

pub fn key_of(event: &Event) -> &[u8] {
    event.kv.as_ref().map_or(b"", |kv| &kv.key)
}

pub fn revision_of(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}
