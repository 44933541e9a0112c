//! Metrics move when the thing they count is done.

mod member;

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use member::Member;
use proto::etcdserverpb::{
    CompactionRequest, DefragmentRequest, DeleteRangeRequest, HashKvRequest, LeaseGrantRequest, LeaseKeepAliveRequest,
    LeaseRevokeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, WatchCreateRequest, WatchRequest,
    kv_client::KvClient, lease_client::LeaseClient, maintenance_client::MaintenanceClient, request_op::Request as Op,
    watch_client::WatchClient, watch_request::RequestUnion,
};
use tonic::{Request, transport::Channel};

/// Samples by name with labels.
struct Samples(BTreeMap<String, f64>);

impl Samples {
    fn of(member: &Member) -> Samples {
        let (code, page) = member.get("/metrics");
        assert_eq!(code, 200);
        let lines = page.lines().filter(|line| !line.starts_with('#'));
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_string(), value.parse().unwrap())
        };
        Samples(lines.map(sample).collect())
    }

    fn get(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or(0.0)
    }
}

fn put(key: &'static str, value: &'static str) -> PutRequest {
    PutRequest { key: key.into(), value: value.into(), ..Default::default() }
}

fn range(key: &'static str) -> RangeRequest {
    RangeRequest { key: key.into(), ..Default::default() }
}

async fn use_everything(channel: Channel) {
    let mut kv = KvClient::new(channel.clone());
    let mut versioned = Request::new(put("a", "1"));
    versioned.metadata_mut().insert("client-api-version", "3.7".parse().unwrap());
    kv.put(versioned).await.unwrap();
    kv.put(put("b", "2")).await.unwrap();
    kv.range(range("a")).await.unwrap();
    let ops = [Op::RequestPut(put("a", "22")), Op::RequestRange(range("b"))];
    let success = ops.map(|op| RequestOp { request: Some(op) }).to_vec();
    kv.txn(TxnRequest { success, ..Default::default() }).await.unwrap();
    kv.delete_range(DeleteRangeRequest { key: "b".into(), ..Default::default() }).await.unwrap();
    let mut lease = LeaseClient::new(channel.clone());
    for id in [1, 2] {
        lease.lease_grant(LeaseGrantRequest { ttl: 60, id }).await.unwrap();
    }
    let alive = tokio_stream::iter([LeaseKeepAliveRequest { id: 1 }]);
    let mut renewed = lease.lease_keep_alive(alive).await.unwrap().into_inner();
    assert_eq!(renewed.message().await.unwrap().unwrap().ttl, 60);
    lease.lease_revoke(LeaseRevokeRequest { id: 1 }).await.unwrap();
    let mut maintenance = MaintenanceClient::new(channel);
    maintenance.hash_kv(HashKvRequest::default()).await.unwrap();
    kv.compact(CompactionRequest { revision: 4, physical: true }).await.unwrap();
    maintenance.defragment(DefragmentRequest {}).await.unwrap();
}

#[tokio::test]
async fn what_is_done_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &["--metrics=extensive"]);
    let channel = Channel::from_shared(member.endpoint()).unwrap().connect().await.unwrap();
    let before = Samples::of(&member);
    use_everything(channel.clone()).await;
    let after = Samples::of(&member);
    let moved = |name: &str| after.get(name) - before.get(name);
    for (name, by) in [
        ("etcd_mvcc_put_total", 3.0),
        ("etcd_mvcc_range_total", 2.0),
        ("etcd_mvcc_delete_total", 1.0),
        ("etcd_mvcc_txn_total", 1.0),
        ("etcd_debugging_mvcc_total_put_size_in_bytes", 7.0),
        ("etcd_debugging_mvcc_current_revision", 4.0),
        ("etcd_debugging_mvcc_keys_total", 1.0),
        ("etcd_debugging_mvcc_db_compaction_keys_total", 1.0),
        ("etcd_debugging_mvcc_db_compaction_total_duration_milliseconds_count", 1.0),
        ("etcd_debugging_lease_granted_total", 2.0),
        ("etcd_debugging_lease_revoked_total", 1.0),
        ("etcd_debugging_lease_renewed_total", 1.0),
        ("etcd_debugging_lease_ttl_total_sum", 120.0),
        ("etcd_mvcc_hash_rev_duration_seconds_count", 1.0),
        ("etcd_disk_backend_defrag_duration_seconds_count", 1.0),
        ("etcd_server_apply_duration_seconds_count{op=\"Put\",success=\"true\",version=\"v3\"}", 2.0),
        ("etcd_server_apply_duration_seconds_count{op=\"Txn\",success=\"true\",version=\"v3\"}", 1.0),
        ("etcd_server_client_requests_total{client_api_version=\"3.7\",type=\"unary\"}", 1.0),
        ("etcd_server_client_requests_total{client_api_version=\"unknown\",type=\"stream\"}", 1.0),
    ] {
        assert_eq!(moved(name), by, "{name}");
    }
    let put = "grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"";
    for name in ["started", "msg_received", "msg_sent"] {
        assert_eq!(moved(&format!("grpc_server_{name}_total{{{put}}}")), 2.0, "{name}");
    }
    assert_eq!(moved(&format!("grpc_server_handled_total{{grpc_code=\"OK\",{put}}}")), 2.0);
    assert_eq!(moved(&format!("grpc_server_handling_seconds_count{{{put}}}")), 2.0);
    for name in [
        "etcd_network_client_grpc_received_bytes_total",
        "etcd_network_client_grpc_sent_bytes_total",
        "etcd_disk_wal_write_bytes_total",
        "etcd_disk_wal_fsync_duration_seconds_count",
        "etcd_disk_wal_write_duration_seconds_count",
        "etcd_disk_backend_commit_duration_seconds_count",
        "etcd_server_proposals_applied_total",
        "etcd_server_proposals_committed_total",
        "pintle_log_batch_records_count",
        "pintle_apply_batch_duration_seconds_count",
    ] {
        assert!(moved(name) > 0.0, "{name} moved by {}", moved(name));
    }
    for (name, value) in [
        ("etcd_server_has_leader", 1.0),
        ("etcd_server_is_leader", 1.0),
        ("etcd_disk_defrag_inflight", 0.0),
        ("etcd_mvcc_db_open_read_transactions", 0.0),
        ("etcd_cluster_version{cluster_version=\"3.7\"}", 1.0),
    ] {
        assert_eq!(after.get(name), value, "{name}");
    }
    assert!(after.get("os_fd_used") > 0.0 && after.get("os_fd_limit") >= after.get("os_fd_used"));
    assert!(after.get("etcd_debugging_mvcc_db_compaction_last") > 1e9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn watches_are_counted_while_they_last() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &[]);
    let channel = Channel::from_shared(member.endpoint()).unwrap().connect().await.unwrap();
    let create = WatchCreateRequest { key: "a".into(), ..Default::default() };
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let (requests, stream) = tokio::sync::mpsc::channel(1);
    requests.send(create).await.unwrap();
    let stream = tokio_stream::wrappers::ReceiverStream::new(stream);
    let mut watch = WatchClient::new(channel.clone()).watch(stream).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().unwrap().created);
    KvClient::new(channel).put(put("a", "1")).await.unwrap();
    assert_eq!(watch.message().await.unwrap().unwrap().events.len(), 1);
    let samples = Samples::of(&member);
    for (name, value) in [
        ("etcd_debugging_mvcc_watch_stream_total", 1.0),
        ("etcd_debugging_mvcc_watcher_total", 1.0),
        ("etcd_debugging_mvcc_slow_watcher_total", 0.0),
        ("etcd_debugging_mvcc_events_total", 1.0),
    ] {
        assert_eq!(samples.get(name), value, "{name}");
    }
    drop((watch, requests));
    // The member learns of it over the network.
    let is_gone = |samples: &Samples| samples.get("etcd_debugging_mvcc_watch_stream_total") == 0.0;
    let samples = wait_for(&member, "the stream is still counted", is_gone);
    assert_eq!(samples.get("etcd_debugging_mvcc_watcher_total"), 0.0);
}

#[tokio::test]
async fn what_takes_too_long_is_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--warning-apply-duration=1ns", "--warning-unary-request-duration=1ns", "--unsafe-no-fsync"];
    let member = Member::start(dir.path(), &flags);
    let channel = Channel::from_shared(member.endpoint()).unwrap().connect().await.unwrap();
    KvClient::new(channel).put(put("a", "1")).await.unwrap();
    member.wait_for_log("--unsafe-no-fsync");
    assert!(member.wait_for_log("apply request took too long").contains("\"expected-duration\":\"1ns\""));
    assert!(member.wait_for_log("request stats").contains("/etcdserverpb.KV/Put"));
    assert!(Samples::of(&member).get("etcd_server_slow_apply_total") > 0.0);
}

#[tokio::test]
async fn a_slow_sync_of_the_log_is_told_of() {
    let dir = tempfile::tempdir().unwrap();
    let member = Member::start(dir.path(), &[]);
    let process = member.process_id().to_string();
    let slow = "inject=fdatasync:delay_exit=1100000:when=1";
    let mut tracer = Command::new("strace")
        .args(["-f", "-e", "trace=fdatasync", "-e", slow, "-o", "/dev/null", "-p", &process])
        .stderr(Stdio::piped())
        .spawn()
        .expect("script/setup --test installs strace");
    let mut attached = String::new();
    BufReader::new(tracer.stderr.take().unwrap()).read_line(&mut attached).unwrap();
    assert!(attached.contains("attached"), "{attached}");
    let channel = Channel::from_shared(member.endpoint()).unwrap().connect().await.unwrap();
    KvClient::new(channel).put(put("a", "1")).await.unwrap();
    let line = member.wait_for_log("slow fdatasync");
    assert!(line.contains("\"expected-duration\":\"1s\""), "{line}");
    tracer.kill().unwrap();
    tracer.wait().unwrap();
}

/// Waits until the samples are as they should be.
fn wait_for(member: &Member, what: &str, is_so: impl Fn(&Samples) -> bool) -> Samples {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    loop {
        let samples = Samples::of(member);
        if is_so(&samples) {
            return samples;
        }
        assert!(std::time::Instant::now() < deadline, "{what}: {:#?}", samples.0);
        // A delay: a member tells nobody that its metrics change, and each look takes its time from what it does.
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

#[test]
fn peers_are_counted_and_missed() {
    let dir = tempfile::tempdir().unwrap();
    let ports: [u16; 6] = member::free_ports();
    let (clients, peers) = ports.split_at(3);
    let urls: Vec<String> = (0..3).map(|i| format!("n{i}=http://127.0.0.1:{}", peers[i])).collect();
    let cluster = format!("--initial-cluster={}", urls.join(","));
    let start = &|i: usize| {
        let name = format!("--name=n{i}");
        Member::start_on(&dir.path().join(i.to_string()), clients[i], peers[i], &[&name, &cluster])
    };
    // None is ready without a majority.
    let mut members: Vec<Member> = std::thread::scope(|scope| {
        let starting: Vec<_> = (0..3).map(|i| scope.spawn(move || start(i))).collect();
        starting.into_iter().map(|member| member.join().unwrap()).collect()
    });
    let leader = members.iter().position(|member| Samples::of(member).get("etcd_server_is_leader") == 1.0).unwrap();
    let leader = members.remove(leader);
    let of_peers = |samples: &Samples, name: &str| -> Vec<f64> {
        samples.0.iter().filter(|(sample, _)| sample.starts_with(name)).map(|(_, value)| *value).collect()
    };
    let samples = wait_for(&leader, "both followers answer", |samples| {
        let round_trips = of_peers(samples, "etcd_network_peer_round_trip_time_seconds_count{");
        round_trips.len() == 2 && round_trips.iter().all(|count| *count > 0.0)
    });
    for name in ["etcd_network_active_peers{", "etcd_network_known_peers{"] {
        assert_eq!(of_peers(&samples, name), [1.0, 1.0], "{name}");
    }
    for name in ["etcd_network_peer_sent_bytes_total{", "etcd_network_peer_received_bytes_total{"] {
        assert!(of_peers(&samples, name).iter().all(|bytes| *bytes > 0.0), "{name}");
    }
    wait_for(&members[0], "the leader's bytes", |samples| {
        of_peers(samples, "etcd_network_peer_received_bytes_total{").iter().any(|bytes| *bytes > 0.0)
    });
    drop(members.remove(0));
    wait_for(&leader, "a follower that has gone is missed", |samples| {
        let active = of_peers(samples, "etcd_network_active_peers{");
        active.iter().sum::<f64>() == 1.0
            && samples.get("etcd_server_heartbeat_send_failures_total") > 0.0
            && of_peers(samples, "etcd_network_disconnected_peers_total{").iter().sum::<f64>() > 0.0
    });
}
