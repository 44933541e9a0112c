//! The corruption checks, on three members of which one was given other data than it should have.

mod member;

use std::{fs, path::Path, sync::Arc, time::Duration};

use member::{Member, Places};
use prost::Message;
use proto::{
    command::{Command, command::Op},
    etcdserverpb::{
        AlarmRequest, AlarmType, CompactionRequest, HashKvRequest, PutRequest, StatusRequest, kv_client::KvClient,
        maintenance_client::MaintenanceClient,
    },
};
use storage::{Change, LogEntry, Observer, Options, Payload, Store};
use tempfile::TempDir;
use tonic::transport::Channel;

const CHECK_INTERVAL: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(30);

async fn channel(member: &Member) -> Channel {
    Channel::from_shared(member.endpoint()).unwrap().connect().await.unwrap()
}

async fn put(member: &Member, key: &str, value: &str) {
    let request = PutRequest { key: key.to_string().into(), value: value.to_string().into(), ..Default::default() };
    KvClient::new(channel(member).await).put(request).await.unwrap();
}

/// The alarms, once there are some.
async fn raised_alarms(member: &Member) -> Vec<(u64, AlarmType)> {
    let mut maintenance = MaintenanceClient::new(channel(member).await);
    let raised = async {
        loop {
            let alarms = maintenance.alarm(AlarmRequest::default()).await.unwrap().into_inner().alarms;
            if !alarms.is_empty() {
                return alarms.iter().map(|alarm| (alarm.member_id, alarm.alarm())).collect();
            }
            // The next check is as far away.
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
    };
    tokio::time::timeout(PATIENCE, raised).await.expect("an alarm is raised")
}

/// Applied index, term and id.
async fn position(member: &Member) -> (u64, u64, u64) {
    let status = MaintenanceClient::new(channel(member).await).status(StatusRequest {}).await.unwrap().into_inner();
    (status.raft_applied_index, status.raft_term, status.header.unwrap().member_id)
}

struct Nobody;

impl Observer for Nobody {
    fn applied(&self, _: Change) {}
    fn restored(&self, _: i64, _: i64) {}
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Lets member 2 apply another put than the one that the others, and its own log, have at that place.
async fn corrupt_member_2(places: &Places, members: &mut Vec<Member>) -> u64 {
    // On that member, so that it has it when it is stopped.
    put(&members[2], "before", "same").await;
    assert_eq!(members.pop().unwrap().stop(), Some(0));
    let store = places.dirs[2].path().join("member").join("store");
    let kept = TempDir::new().unwrap();
    copy(&store, kept.path());

    let member = places.start(2, &[]);
    put(&member, "k", "right").await;
    let (index, term, id) = position(&member).await;
    assert_eq!(member.stop(), Some(0));
    fs::remove_dir_all(&store).unwrap();
    copy(kept.path(), &store);
    let op = Op::Put(PutRequest { key: "k".into(), value: "wrong".into(), ..Default::default() });
    let payload = Payload::Command(Command { op: Some(op), auth: None }.encode_to_vec().into());
    let opened = Store::open(&store, Options { observer: Arc::new(Nobody), cache_bytes: 1 << 20 }).unwrap();
    opened.applier().apply(&[LogEntry { index, term, payload }]).unwrap();
    opened.flush().unwrap();
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_finds_the_odd_member_now_and_then() {
    let places = Places::new();
    let mut members = places.start_all(&["--corrupt-check-time=300ms"]);
    members[0].wait_for_log("enabled corruption checking");
    let odd = corrupt_member_2(&places, &mut members).await;
    let odd_member = places.start(2, &["--corrupt-check-time=300ms"]);
    // Whoever leads tells.
    let raised = raised_alarms(&members[0]).await;
    let leader_is_odd = position_of_leader(&members[0]).await == odd;
    assert!(raised == [(odd, AlarmType::Corrupt)] || leader_is_odd, "{raised:?}");
    // The odd one knows it, too, as soon as it has answered about it.
    assert_eq!(raised_alarms(&odd_member).await, raised);
    let (code, health) = odd_member.get("/readyz/data_corruption");
    assert_eq!(code, 503, "{health}");
    let mut kv = KvClient::new(channel(&members[1]).await);
    let refused = kv.put(PutRequest { key: "k".into(), ..Default::default() }).await.unwrap_err();
    assert_eq!(refused.message(), "etcdserver: corrupt cluster");
}

async fn position_of_leader(member: &Member) -> u64 {
    MaintenanceClient::new(channel(member).await).status(StatusRequest {}).await.unwrap().into_inner().leader
}

#[tokio::test(flavor = "multi_thread")]
async fn compactions_show_the_odd_member_by_majority() {
    let places = Places::new();
    let checks = &["--feature-gates=CompactHashCheck=true", "--compact-hash-check-time=300ms"];
    let mut members = places.start_all(checks);
    let odd = corrupt_member_2(&places, &mut members).await;
    members.push(places.start(2, checks));
    put(&members[0], "k", "later").await;
    let mut kv = KvClient::new(channel(&members[0]).await);
    kv.compact(CompactionRequest { revision: 3, physical: true }).await.unwrap();
    // Whoever leads, also the odd one itself.
    let raised = raised_alarms(&members[0]).await;
    assert_eq!(raised, [(odd, AlarmType::Corrupt)]);
    // What was compared is what HashKV answers at the compacted revision.
    let mut maintenance = MaintenanceClient::new(channel(&members[0]).await);
    let kept = maintenance.hash_kv(HashKvRequest { revision: 3 }).await.unwrap().into_inner();
    assert_eq!((kept.hash_revision, kept.compact_revision), (3, -1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_with_other_data_does_not_start_again() {
    let places = Places::new();
    let mut members = places.start_all(&[]);
    corrupt_member_2(&places, &mut members).await;
    let url = |i: usize| format!("m{i}=http://127.0.0.1:{}", places.peers[i]);
    let mut command = member::command(places.dirs[2].path(), places.clients[2], places.peers[2]);
    let cluster = format!("--initial-cluster={},{},{}", url(0), url(1), url(2));
    let (code, log) =
        member::refusal(command.args([cluster.as_str(), "--name=m2", "--feature-gates=InitialCorruptCheck=true"]));
    assert_eq!(code, 1, "{log}");
    assert!(log.contains("found different hash values from remote peer"), "{log}");
    assert!(log.contains("found data inconsistency with peers"), "{log}");

    // The others agree.
    assert_eq!(members.pop().unwrap().stop(), Some(0));
    let member = places.start(1, &["--initial-corrupt-check"]);
    member.wait_for_log("initial corruption checking passed; no corruption");
}
