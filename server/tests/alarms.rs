//! Alarms and the quota, by what etcd answers and shows.

mod member;

use member::Member;
use proto::{
    EtcdError,
    etcdserverpb::{
        AlarmMember, AlarmRequest, AlarmType, CompactionRequest, DeleteRangeRequest, LeaseGrantRequest,
        LeaseRevokeRequest, PutRequest, RangeRequest, RequestOp, StatusRequest, TxnRequest, alarm_request::AlarmAction,
        kv_client::KvClient, lease_client::LeaseClient, maintenance_client::MaintenanceClient,
        request_op::Request as Op,
    },
};
use tonic::{Status, transport::Channel};

struct Served {
    member: Member,
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    maintenance: MaintenanceClient<Channel>,
}

async fn serve(dir: &std::path::Path, arguments: &[&str]) -> Served {
    connect(Member::start(dir, arguments)).await
}

async fn connect(member: Member) -> Served {
    let channel = Channel::from_shared(member.endpoint()).unwrap().connect().await.unwrap();
    let (kv, lease) = (KvClient::new(channel.clone()), LeaseClient::new(channel.clone()));
    Served { member, kv, lease, maintenance: MaintenanceClient::new(channel) }
}

fn put(key: String, bytes: usize) -> PutRequest {
    PutRequest { key: key.into(), value: vec![b'v'; bytes].into(), ..Default::default() }
}

fn alarm(action: AlarmAction, member_id: u64, alarm: AlarmType) -> AlarmRequest {
    AlarmRequest { action: action as i32, member_id, alarm: alarm as i32 }
}

fn assert_refused<T: std::fmt::Debug>(answer: Result<T, Status>, error: EtcdError) {
    let status = answer.unwrap_err();
    assert_eq!((status.code(), status.message()), (error.code(), error.message()));
}

impl Served {
    async fn ask(&mut self, action: AlarmAction, member_id: u64, kind: AlarmType) -> Vec<(u64, AlarmType)> {
        let answer = self.maintenance.alarm(alarm(action, member_id, kind)).await.unwrap().into_inner();
        assert!(answer.header.unwrap().revision > 0);
        answer.alarms.iter().map(|alarm: &AlarmMember| (alarm.member_id, alarm.alarm())).collect()
    }
}

#[tokio::test]
async fn alarms_are_raised_listed_and_taken_back_by_hand() {
    let dir = tempfile::tempdir().unwrap();
    let mut served = serve(dir.path(), &[]).await;
    use {AlarmAction::*, AlarmType::*};
    assert_eq!(served.ask(Activate, 7, None).await, []);
    assert_eq!(served.ask(Activate, 7, Nospace).await, [(7, Nospace)]);
    assert_eq!(served.ask(Activate, 7, Nospace).await, [(7, Nospace)]);
    assert_eq!(served.ask(Activate, 7, Corrupt).await, [(7, Corrupt)]);
    assert_eq!(served.ask(Get, 0, None).await, [(7, Nospace), (7, Corrupt)]);
    assert_eq!(served.ask(Get, 0, Corrupt).await, [(7, Corrupt)]);
    assert_eq!(served.ask(Deactivate, 8, Corrupt).await, []);
    assert_eq!(served.ask(Deactivate, 7, None).await, []);
    let status = served.maintenance.status(StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.errors, ["memberID:7 alarm:NOSPACE", "memberID:7 alarm:CORRUPT"]);

    // They outlive the process.
    let (client, peer) = (served.member.client, served.member.peer);
    assert_eq!(served.member.stop(), Some(0));
    let mut served = connect(Member::start_on(dir.path(), client, peer, &[])).await;
    assert_eq!(served.ask(Deactivate, 7, Corrupt).await, [(7, Corrupt)]);
    assert_eq!(served.ask(Get, 0, None).await, [(7, Nospace)]);
}

#[tokio::test]
async fn a_corrupt_cluster_changes_nothing_but_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut served = serve(dir.path(), &[]).await;
    served.kv.put(put("k".into(), 1)).await.unwrap();
    served.lease.lease_grant(LeaseGrantRequest { id: 1, ttl: 600 }).await.unwrap();
    served.ask(AlarmAction::Activate, 0, AlarmType::Corrupt).await;
    let delete = DeleteRangeRequest { key: "k".into(), ..Default::default() };
    assert_refused(served.kv.put(put("k".into(), 1)).await, EtcdError::Corrupt);
    assert_refused(served.kv.delete_range(delete.clone()).await, EtcdError::Corrupt);
    assert_refused(
        served.kv.compact(CompactionRequest { revision: 2, ..Default::default() }).await,
        EtcdError::Corrupt,
    );
    assert_refused(served.lease.lease_grant(LeaseGrantRequest { id: 2, ttl: 600 }).await, EtcdError::Corrupt);
    assert_refused(served.lease.lease_revoke(LeaseRevokeRequest { id: 1 }).await, EtcdError::Corrupt);
    let read = RangeRequest { key: "k".into(), ..Default::default() };
    assert_eq!(served.kv.range(read).await.unwrap().into_inner().count, 1);
    let (code, health) = served.member.get("/health");
    assert_eq!((code, health.trim()), (503, r#"{"health":"false","reason":"ALARM CORRUPT"}"#));
    assert_eq!(served.member.get("/readyz/data_corruption").0, 503);
    assert_eq!(served.member.get("/livez").0, 200);

    served.ask(AlarmAction::Deactivate, 0, AlarmType::Corrupt).await;
    served.kv.delete_range(delete).await.unwrap();
    assert_eq!(served.member.get("/readyz/data_corruption").0, 200);
}

#[tokio::test]
async fn beyond_the_quota_only_what_frees_space_goes_on_until_the_alarm_is_taken_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut served = serve(dir.path(), &["--quota-backend-bytes=2000000"]).await;
    let mut written = 0;
    let refused = loop {
        match served.kv.put(put(format!("k{written}"), 20_000)).await {
            Ok(_) => written += 1,
            Err(status) => break status,
        }
        assert!(written < 1000, "the quota is not enforced");
    };
    assert!(written > 20, "refused after {written} puts of 20 kB already");
    assert_refused::<()>(Err(refused), EtcdError::NoSpace);
    let id = served.kv.range(RangeRequest { key: "k0".into(), ..Default::default() }).await.unwrap();
    let id = id.into_inner().header.unwrap().member_id;
    assert_eq!(served.ask(AlarmAction::Get, 0, AlarmType::None).await, [(id, AlarmType::Nospace)]);
    // However small.
    assert_refused(served.kv.put(put("small".into(), 0)).await, EtcdError::NoSpace);
    assert_refused(served.lease.lease_grant(LeaseGrantRequest { id: 2, ttl: 600 }).await, EtcdError::NoSpace);
    let txn = |request| TxnRequest { failure: vec![RequestOp { request: Some(request) }], ..Default::default() };
    assert_refused(served.kv.txn(txn(Op::RequestPut(put("t".into(), 0)))).await, EtcdError::NoSpace);
    let (code, health) = served.member.get("/health");
    assert_eq!((code, health.trim()), (503, r#"{"health":"false","reason":"ALARM NOSPACE"}"#));
    assert_eq!(served.member.get("/health?exclude=NOSPACE").0, 200);

    let all = DeleteRangeRequest { key: "k".into(), range_end: "l".into(), ..Default::default() };
    served.kv.txn(txn(Op::RequestDeleteRange(all))).await.unwrap();
    let revision = served.maintenance.status(StatusRequest {}).await.unwrap().into_inner().header.unwrap().revision;
    served.kv.compact(CompactionRequest { revision, physical: true }).await.unwrap();
    served.maintenance.defragment(proto::etcdserverpb::DefragmentRequest {}).await.unwrap();
    assert_refused(served.kv.put(put("k".into(), 0)).await, EtcdError::NoSpace);
    served.ask(AlarmAction::Deactivate, id, AlarmType::Nospace).await;
    served.kv.put(put("k".into(), 20_000)).await.unwrap();
    served.lease.lease_grant(LeaseGrantRequest { id: 2, ttl: 600 }).await.unwrap();
}
