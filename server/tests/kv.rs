//! The KV, Cluster and Maintenance services of one member, by what etcd answers.

mod member;

use std::path::Path;

use member::Member;
use proto::{
    EtcdError,
    etcdserverpb::{
        AlarmRequest, CompactionRequest, DeleteRangeRequest, HashKvRequest, MemberAddRequest, MemberListRequest,
        PutRequest, RangeRequest, RangeResponse, RequestOp, ResponseOp, StatusRequest, TxnRequest,
        cluster_client::ClusterClient, kv_client::KvClient, maintenance_client::MaintenanceClient,
        request_op::Request as Op, response_op::Response as OpResponse,
    },
};
use tonic::{Code, Request, Status, transport::Channel};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

struct Served {
    member: Member,
    kv: KvClient<Channel>,
    channel: Channel,
}

async fn serve(dir: &Path, arguments: &[&str]) -> Served {
    connect(Member::start(dir, arguments)).await
}

async fn connect(member: Member) -> Served {
    let channel = Channel::from_shared(member.endpoint()).unwrap().connect().await.unwrap();
    let kv = KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX);
    Served { member, kv, channel }
}

fn put(key: &'static str, value: impl Into<Vec<u8>>) -> PutRequest {
    PutRequest { key: key.into(), value: value.into().into(), ..Default::default() }
}

fn range(key: &'static str, range_end: &'static str) -> RangeRequest {
    RangeRequest { key: key.into(), range_end: range_end.into(), ..Default::default() }
}

fn assert_refused<T: std::fmt::Debug>(answer: Result<T, Status>, error: EtcdError) {
    let status = answer.unwrap_err();
    assert_eq!((status.code(), status.message()), (error.code(), error.message()));
}

#[tokio::test]
async fn what_is_put_is_read_and_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let Served { member, mut kv, .. } = serve(dir.path(), &[]).await;
    let header = kv.put(put("a", "1")).await.unwrap().into_inner().header.unwrap();
    assert_eq!(header.revision, 2);
    assert!(header.cluster_id != 0 && header.member_id != 0 && header.raft_term != 0);
    assert_eq!(kv.put(put("b", "2")).await.unwrap().into_inner().header.unwrap().revision, 3);
    let deleted = kv.delete_range(DeleteRangeRequest { key: "b".into(), ..Default::default() }).await.unwrap();
    assert_eq!(deleted.into_inner().deleted, 1);
    let (client, peer) = (member.client, member.peer);
    assert_eq!(member.stop(), Some(0));

    let Served { mut kv, member: _running, .. } = connect(Member::start_on(dir.path(), client, peer, &[])).await;
    let all = kv.range(range("\0", "\0")).await.unwrap().into_inner();
    assert_eq!(all.header.map(|h| (h.revision, h.member_id)), Some((4, header.member_id)));
    assert_eq!((all.count, all.kvs.len()), (1, 1));
    assert_eq!((all.kvs[0].key.as_ref(), all.kvs[0].value.as_ref()), (&b"a"[..], &b"1"[..]));
    let before = kv.range(RangeRequest { revision: 3, ..range("\0", "\0") }).await.unwrap().into_inner();
    assert_eq!(before.count, 2);
}

#[tokio::test]
async fn requests_that_etcd_refuses_are_refused_in_its_words() {
    let dir = tempfile::tempdir().unwrap();
    let Served { mut kv, member: _running, .. } = serve(dir.path(), &["--max-txn-ops=2"]).await;
    assert_refused(kv.put(put("", "v")).await, EtcdError::EmptyKey);
    assert_refused(kv.put(PutRequest { ignore_value: true, ..put("k", "v") }).await, EtcdError::ValueProvided);
    assert_refused(kv.put(PutRequest { ignore_value: true, ..put("k", "") }).await, EtcdError::KeyNotFound);
    assert_refused(kv.put(PutRequest { lease: 7, ..put("k", "v") }).await, EtcdError::LeaseNotFound);
    assert_refused(kv.range(RangeRequest { sort_target: 9, ..range("k", "") }).await, EtcdError::InvalidSortOption);
    assert_refused(kv.range(RangeRequest { revision: 9, ..range("k", "") }).await, EtcdError::FutureRev);
    let put_op = |key| RequestOp { request: Some(Op::RequestPut(put(key, "v"))) };
    let txn = |success| TxnRequest { success, ..Default::default() };
    assert_refused(kv.txn(txn(vec![put_op("a"), put_op("b"), put_op("c")])).await, EtcdError::TooManyOps);
    assert_refused(kv.txn(txn(vec![put_op("a"), put_op("a")])).await, EtcdError::DuplicateKey);
    assert_refused(kv.compact(CompactionRequest { revision: 9, physical: false }).await, EtcdError::FutureRev);
    assert_eq!(kv.range(range("\0", "\0")).await.unwrap().into_inner().header.unwrap().revision, 1, "nothing changed");
}

#[tokio::test]
async fn sizes_are_bounded_where_etcd_bounds_them() {
    const MAX: usize = 10_000;
    let dir = tempfile::tempdir().unwrap();
    let Served { mut kv, member: _running, .. } = serve(dir.path(), &["--max-request-bytes=10000"]).await;
    kv.put(put("k", vec![0; MAX - 100])).await.unwrap();
    assert_refused(kv.put(put("k", vec![0; MAX])).await, EtcdError::RequestTooLarge);
    let longer = kv.put(put("k", vec![0; MAX + 512 * 1024])).await.unwrap_err();
    assert_eq!(longer.code(), Code::ResourceExhausted);
    assert!(longer.message().starts_with("grpc: received message larger than max ("), "{}", longer.message());
}

#[tokio::test]
async fn a_transaction_reads_and_writes_at_one_revision() {
    let dir = tempfile::tempdir().unwrap();
    let Served { mut kv, member: _running, .. } = serve(dir.path(), &[]).await;
    let read = || RequestOp { request: Some(Op::RequestRange(range("a", "z"))) };
    let write = |key| RequestOp { request: Some(Op::RequestPut(put(key, "v"))) };
    let request = TxnRequest { success: vec![write("a"), write("b"), read()], ..Default::default() };
    let answer = kv.txn(request).await.unwrap().into_inner();
    assert!(answer.succeeded);
    assert_eq!(answer.header.as_ref().unwrap().revision, 2);
    let Some(ResponseOp { response: Some(OpResponse::ResponseRange(seen)) }) = answer.responses.last() else {
        panic!("no range in {answer:?}");
    };
    assert_eq!(seen.count, 2);
    let only_reads = TxnRequest { success: vec![read()], ..Default::default() };
    assert_eq!(kv.txn(only_reads).await.unwrap().into_inner().header.unwrap().revision, 2);
}

#[tokio::test]
async fn a_streamed_range_is_the_range_in_parts() {
    let dir = tempfile::tempdir().unwrap();
    let Served { mut kv, member: _running, .. } = serve(dir.path(), &[]).await;
    for i in 0..40_u32 {
        let key = format!("k{i:02}").into();
        kv.put(PutRequest { key, value: vec![7; 100_000].into(), ..Default::default() }).await.unwrap();
    }
    let whole = kv.range(range("k", "l")).await.unwrap().into_inner();
    let mut parts = kv.range_stream(range("k", "l")).await.unwrap().into_inner();
    let (mut merged, mut count) = (RangeResponse::default(), 0);
    while let Some(part) = parts.message().await.unwrap() {
        let part = part.range_response.unwrap();
        count += 1;
        merged.kvs.extend(part.kvs);
        (merged.header, merged.more, merged.count) = (part.header.or(merged.header), part.more, part.count);
    }
    assert!(count > 1, "4 MB came in one part");
    assert_eq!(merged, whole);
    let sorted = RangeRequest { sort_order: 2, ..range("k", "l") };
    assert_eq!(kv.range_stream(sorted).await.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_compaction_forgets_and_a_physical_one_waits() {
    let dir = tempfile::tempdir().unwrap();
    let Served { mut kv, channel, member: _running } = serve(dir.path(), &[]).await;
    for value in ["1", "2", "3"] {
        kv.put(put("k", value)).await.unwrap();
    }
    let compacted = kv.compact(CompactionRequest { revision: 3, physical: true }).await.unwrap();
    assert_eq!(compacted.into_inner().header.unwrap().revision, 4);
    assert_refused(kv.range(RangeRequest { revision: 2, ..range("k", "") }).await, EtcdError::Compacted);
    assert_eq!(kv.range(RangeRequest { revision: 3, ..range("k", "") }).await.unwrap().into_inner().kvs.len(), 1);
    let mut maintenance = MaintenanceClient::new(channel);
    let hashed = maintenance.hash_kv(HashKvRequest { revision: 0 }).await.unwrap().into_inner();
    assert_eq!((hashed.compact_revision, hashed.hash_revision), (3, 4));
    assert_refused(maintenance.hash_kv(HashKvRequest { revision: 2 }).await, EtcdError::Compacted);
}

#[tokio::test]
async fn the_member_tells_who_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let Served { member, channel, mut kv } = serve(dir.path(), &["--name=n1"]).await;
    member.wait_for_log("published the member's name");
    let mut cluster = ClusterClient::new(channel.clone());
    let list = cluster.member_list(MemberListRequest { linearizable: true }).await.unwrap().into_inner();
    assert_eq!(list.header.as_ref().unwrap().revision, 0, "as etcd leaves it out");
    let [own] = &list.members[..] else { panic!("{list:?}") };
    assert_eq!((own.name.as_str(), &own.client_ur_ls[..]), ("n1", &[member.endpoint()][..]));
    let mut maintenance = MaintenanceClient::new(channel);
    let status = maintenance.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.leader, status.version.as_str()), (own.id, "3.7.1"));
    assert_eq!((status.db_size_quota, status.errors.len(), status.is_learner), (2 << 30, 0, false));
    assert!(status.db_size > 0 && status.raft_applied_index > 0);
    assert!(maintenance.alarm(AlarmRequest::default()).await.unwrap().into_inner().alarms.is_empty());
    assert_refused(cluster.member_add(MemberAddRequest::default()).await, EtcdError::MemberBadURLs);
    let mut with_leader = Request::new(range("k", ""));
    with_leader.metadata_mut().insert("hasleader", "true".parse().unwrap());
    kv.range(with_leader).await.unwrap();
}

#[tokio::test]
async fn health_and_reflection_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let Served { channel, member: _running, .. } = serve(dir.path(), &[]).await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    let serving = health.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(serving.status(), tonic_health::pb::health_check_response::ServingStatus::Serving);

    let list = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices("".into())),
        ..Default::default()
    };
    let mut reflection = ServerReflectionClient::new(channel.clone());
    let mut answers = reflection.server_reflection_info(tokio_stream::once(list)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(services)) = answer else { panic!("{answer:?}") };
    let names: Vec<&str> = services.service.iter().map(|service| service.name.as_str()).collect();
    for name in ["etcdserverpb.KV", "etcdserverpb.Watch", "etcdserverpb.Lease", "v3lockpb.Lock"] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }

    let mut v1alpha = tonic_reflection::pb::v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    v1alpha.server_reflection_info(tokio_stream::empty()).await.unwrap();
}
