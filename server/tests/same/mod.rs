//! Two stores, Pintle's or etcd's, and whether they hold the same.

#![allow(dead_code)] // Each test file uses a part of it.

use proto::{
    EtcdError,
    etcdserverpb::{
        CompactionRequest, DeleteRangeRequest, HashKvRequest, PutRequest, RangeRequest, RangeResponse,
        kv_client::KvClient, maintenance_client::MaintenanceClient,
    },
};
use tonic::transport::Channel;

pub async fn connect(endpoint: String) -> Channel {
    Channel::from_shared(endpoint).unwrap().connect().await.unwrap()
}

pub fn kv(channel: &Channel) -> KvClient<Channel> {
    KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX)
}

pub fn put(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> PutRequest {
    PutRequest { key: key.into().into(), value: value.into().into(), ..Default::default() }
}

pub fn delete(key: &str) -> DeleteRangeRequest {
    DeleteRangeRequest { key: key.to_string().into(), ..Default::default() }
}

pub async fn compact(channel: &Channel, revision: i64) {
    kv(channel).compact(CompactionRequest { revision, physical: true }).await.unwrap();
}

pub async fn read_all(channel: &Channel, revision: i64) -> Result<RangeResponse, tonic::Status> {
    let all = RangeRequest { key: "\0".into(), range_end: "\0".into(), revision, ..Default::default() };
    kv(channel).range(all).await.map(|answer| RangeResponse { header: None, ..answer.into_inner() })
}

pub async fn hash_kv(channel: &Channel, revision: i64) -> (u32, i64) {
    let answer = MaintenanceClient::new(channel.clone()).hash_kv(HashKvRequest { revision }).await.unwrap();
    (answer.get_ref().hash, answer.get_ref().compact_revision)
}

/// Both have the same keys at every revision, the same hash, and refuse the same revisions.
pub async fn assert_same(pintle: &Channel, etcd: &Channel, compacted: i64, revision: i64) {
    assert_eq!(hash_kv(pintle, 0).await, hash_kv(etcd, 0).await);
    for at in compacted.max(2)..=revision {
        assert_eq!(read_all(pintle, at).await.unwrap(), read_all(etcd, at).await.unwrap(), "revision {at}");
    }
    for channel in [pintle, etcd] {
        let future = read_all(channel, revision + 1).await.unwrap_err();
        assert_eq!(future.message(), EtcdError::FutureRev.message());
        if compacted > 0 {
            let old = read_all(channel, compacted - 1).await.unwrap_err();
            assert_eq!(old.message(), EtcdError::Compacted.message());
        }
    }
}
