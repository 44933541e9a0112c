//! A cluster's promises to those who use it.

mod harness;

use std::{
    fs,
    path::Path,
    sync::{Arc, OnceLock},
    time::Instant,
};

use bytes::Bytes;
use harness::{
    Cluster, ELECTION, Tcp,
    holding_disk::{HoldingDisk, Syncs},
    put, put_on, try_start_member, try_start_member_on, value,
};
use prost::Message;
use proto::command::{Command, MemberAttributes, command::Op, outcome};
use raft::RaftError;
use tempfile::TempDir;
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread")]
async fn one_member_leads_at_once_and_keeps_what_it_acknowledged() {
    let mut cluster = Cluster::start(1).await;
    put_on(cluster.node(0), "a", "1").await;
    cluster.node(0).read_index().await.unwrap();
    assert_eq!(value(cluster.store(0), "a").unwrap(), "1");
    cluster.crash(0).await;
    let began = Instant::now();
    cluster.start_node(0).await;
    cluster.node(0).read_index().await.unwrap();
    assert!(began.elapsed() < 4 * ELECTION);
    assert_eq!(value(cluster.store(0), "a").unwrap(), "1");
    cluster.node(0).shutdown().await.unwrap();
    assert!(matches!(cluster.node(0).propose(put("b", "2")).await, Err(RaftError::Fatal(_) | RaftError::Stopped)));
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_forward_and_see_what_they_wrote() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    for i in 0..3 {
        let key = format!("from {i}");
        put_on(cluster.node(i), &key, "x").await;
        assert_eq!(value(cluster.store(i), &key).unwrap(), "x");
    }
    for i in 0..3 {
        cluster.node(i).read_index().await.unwrap();
        assert!((0..3).all(|from| value(cluster.store(i), &format!("from {from}")).is_some()));
        let answer = cluster.node(i).ask_leader("who".into()).await.unwrap();
        assert_eq!(answer[3..], (leader as u64 + 1).to_be_bytes());
        assert_eq!(cluster.node(i).members().len(), 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_possible_again_after_the_leaders_death() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    put_on(cluster.node(leader), "before", "1").await;
    cluster.crash(leader).await;
    let survivor = (0..3).find(|i| *i != leader).unwrap();
    let began = Instant::now();
    while let Err(error) = cluster.node(survivor).propose(put("after", "2")).await {
        assert!(matches!(error, RaftError::LeaderChanged), "{error}");
    }
    assert!(began.elapsed() < 4 * ELECTION, "{:?}", began.elapsed());
    assert_eq!(value(cluster.store(survivor), "before").unwrap(), "1");
    cluster.start_node(leader).await;
    cluster.node(leader).read_index().await.unwrap();
    assert_eq!(value(cluster.store(leader), "after").unwrap(), "2");
    let hashes: Vec<u32> = (0..3).map(|i| cluster.store(i).hash_kv(2).unwrap().hash).collect();
    assert!(hashes.windows(2).all(|pair| pair[0] == pair[1]), "{hashes:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_whose_disks_are_slow_elect_a_leader() {
    let mut cluster = Cluster::start(0).await;
    let disk = HoldingDisk::new();
    for _ in 0..3 {
        cluster.new_place().await;
    }
    for i in 0..3 {
        let (addresses, dir) = (cluster.addresses.clone(), cluster.dirs[i].path().to_path_buf());
        let running = try_start_member_on(Arc::new(disk.clone()), &dir, i, &addresses, 3).await.unwrap();
        cluster.running[i] = Some(running);
    }
    let leader = cluster.leader().await;
    put_on(cluster.node(leader), "before", "1").await;

    disk.0.send_replace(Syncs::Slow(ELECTION * 45 / 100));
    cluster.crash(leader).await;
    let began = Instant::now();
    cluster.leader().await;
    assert!(began.elapsed() < 20 * ELECTION, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_is_handed_over() {
    let cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    put_on(cluster.node(leader), "a", "1").await;
    cluster.node(leader).transfer_leadership(None).await.unwrap();
    assert_ne!(cluster.leader().await, leader);
    put_on(cluster.node(leader), "a", "2").await;
}

/// Three members, of which one has crashed and lacks more than what is kept of the log once the store has been flushed.
/// Which one that is, and who leads.
async fn one_far_behind() -> (Cluster, usize, usize) {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let late = (leader + 1) % 3;
    put_on(cluster.node(leader), "first", "1").await;
    cluster.crash(late).await;
    let value_bytes = Bytes::from(vec![7; 16 << 10]);
    loop {
        let leader = cluster.leader().await;
        let node = cluster.node(leader).clone();
        let puts = (0..12_000).map(|i| {
            let (node, command) = (node.clone(), put(&format!("key {}", i % 500), value_bytes.clone()));
            async move { node.propose(command).await }
        });
        let results = futures::StreamExt::collect::<Vec<_>>(futures::StreamExt::buffer_unordered(
            futures::stream::iter(puts),
            256,
        ))
        .await;
        if results.iter().all(Result::is_ok) {
            return (cluster, late, leader);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_far_behind_gets_a_snapshot() {
    let (mut cluster, late, leader) = one_far_behind().await;
    cluster.start_node(late).await;
    cluster.node(late).read_index().await.unwrap();
    assert_eq!(value(cluster.store(late), "first").unwrap(), "1");
    let revision = cluster.store(leader).revision();
    assert_eq!(cluster.store(late).revision(), revision);
    let hash = |i: usize| cluster.store(i).hash_kv(revision).unwrap().hash;
    assert_eq!(hash(late), hash(leader));
    // And it goes on from the log, also after another crash.
    put_on(cluster.node(late), "last", "2").await;
    cluster.crash(late).await;
    cluster.start_node(late).await;
    cluster.node(late).read_index().await.unwrap();
    assert_eq!(value(cluster.store(late), "last").unwrap(), "2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_takes_its_time_on_a_narrow_link() {
    let (mut cluster, late, _) = one_far_behind().await;
    cluster.links.narrow.set(cluster.url(late)).unwrap();
    cluster.start_node(late).await;
    timeout(60 * ELECTION, cluster.node(late).read_index()).await.unwrap().unwrap();
    assert_eq!(value(cluster.store(late), "first").unwrap(), "1");
}

/// Three members, of which one has crashed, and this link leads from the leader to the other follower. Who leads.
async fn two_of_three_over(link: impl Fn(&Tcp) -> &OnceLock<String>) -> (Cluster, usize) {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let (follower, gone) = ((leader + 1) % 3, (leader + 2) % 3);
    link(&cluster.links).set(cluster.url(follower)).unwrap();
    // It is connected to anew.
    cluster.crash(follower).await;
    cluster.start_node(follower).await;
    cluster.node(follower).read_index().await.unwrap();
    cluster.crash(gone).await;
    (cluster, leader)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_may_be_farther_away_than_a_heartbeat() {
    let (cluster, leader) = two_of_three_over(|links| &links.far).await;
    let term = cluster.node(leader).status().term;
    timeout(20 * ELECTION, put_on(cluster.node(leader), "a", "1")).await.unwrap();
    timeout(20 * ELECTION, cluster.node(leader).read_index()).await.unwrap().unwrap();
    // Where nothing is written, it is heartbeats alone that tell the leader that it leads.
    let mut status = cluster.node(leader).watch_status();
    timeout(4 * ELECTION, status.wait_for(|status| !status.is_leader)).await.unwrap_err();
    assert_eq!(cluster.node(leader).status().term, term);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_value_takes_its_time_on_a_narrow_link() {
    let (cluster, leader) = two_of_three_over(|links| &links.narrow).await;
    let value = Bytes::from(vec![7; 3 << 20]);
    let outcome = timeout(60 * ELECTION, cluster.node(leader).propose(put("a", value))).await.unwrap().unwrap();
    assert!(matches!(outcome.result, Some(outcome::Result::Put(_))), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_installed_though_its_sender_has_gone() {
    let (mut cluster, late, leader) = one_far_behind().await;
    let disk = HoldingDisk::new();
    let (dir, addresses) = (cluster.dirs[late].path().to_path_buf(), cluster.addresses.clone());
    let running = try_start_member_on(Arc::new(disk.clone()), &dir, late, &addresses, 3).await.unwrap();
    cluster.running[late] = Some(running);
    let received = dir.join("member").join("snapshots");
    until(|| fs::read_dir(&received).unwrap().next().is_some()).await;
    // It is noted in the log before it is installed: that is held.
    let files = disk.0.receiver_count();
    disk.0.send_replace(Syncs::Held);
    until(|| disk.0.receiver_count() > files).await;
    cluster.crash(leader).await;
    disk.0.send_replace(Syncs::Done);
    timeout(60 * ELECTION, cluster.node(late).read_index()).await.unwrap().unwrap();
    assert_eq!(value(cluster.store(late), "first").unwrap(), "1");
}

/// Waits for what another thread does and tells nobody.
async fn until(is_so: impl Fn() -> bool) {
    let asked = async {
        while !is_so() {
            tokio::task::yield_now().await;
        }
    };
    timeout(60 * ELECTION, asked).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_another_cluster_is_refused() {
    let cluster = Cluster::start(1).await;
    let client = proto::peer::peer_client::PeerClient::connect(format!("http://{}", cluster.addresses[0])).await;
    let mut request = tonic::Request::new(proto::peer::ReadIndexRequest {});
    request.metadata_mut().insert("pintle-cluster", "ff".parse().unwrap());
    request.metadata_mut().insert("pintle-member", "1".parse().unwrap());
    let refused = client.unwrap().read_index(request).await.unwrap_err();
    assert_eq!(refused.message(), "cluster ID mismatch: this is c1, the call is for ff");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_lost_its_directory_is_refused() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let lost = (leader + 1) % 3;
    let attributes = MemberAttributes { id: lost as u64 + 1, name: "m".into(), client_urls: Vec::new() };
    let command = Command { op: Some(Op::MemberAttributes(attributes)), auth: None }.encode_to_vec();
    cluster.node(leader).propose(command.into()).await.unwrap();
    cluster.crash(lost).await;
    let empty = TempDir::new().unwrap();
    let refused = try_start_member(empty.path(), lost, &cluster.addresses, 3).await.err().unwrap();
    assert!(refused.to_string().contains("already been bootstrapped"), "{refused}");
    // With its own directory it is welcome.
    cluster.start_node(lost).await;
    cluster.node(lost).read_index().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_disk_has_lost_what_it_had_synced_ends() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let (victim, other) = ((leader + 1) % 3, (leader + 2) % 3);
    put_on(cluster.node(leader), "a", "1").await;
    cluster.crash(victim).await;
    let before = TempDir::new().unwrap();
    copy(cluster.dirs[victim].path(), before.path());
    cluster.start_node(victim).await;
    // Without the other, the put is done when the victim has answered for it.
    cluster.crash(other).await;
    put_on(cluster.node(leader), "b", "2").await;
    cluster.start_node(other).await;
    cluster.node(other).read_index().await.unwrap();
    cluster.crash(victim).await;

    cluster.dirs[victim] = before;
    cluster.start_node(victim).await;
    let mut status = cluster.node(victim).watch_status();
    let status = status.wait_for(|status| status.fatal.is_some()).await.unwrap().clone();
    let reason = status.fatal.unwrap();
    assert!(reason.contains("the disk has lost what it had synced"), "{reason}");
    assert!(cluster.node(victim).propose(put("c", "3")).await.is_err());
    // The others go on.
    put_on(cluster.node(leader), "c", "3").await;
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => {
                fs::create_dir(&to).unwrap();
                copy(&entry.path(), &to);
            }
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_is_never_ahead_of_the_log() {
    let mut cluster = Cluster::start(3).await;
    let leader = cluster.leader().await;
    let victim = (leader + 1) % 3;
    cluster.crash(victim).await;
    let disk = HoldingDisk::new();
    let (addresses, dir) = (cluster.addresses.clone(), cluster.dirs[victim].path().to_path_buf());
    let running = try_start_member_on(Arc::new(disk.clone()), &dir, victim, &addresses, 3).await.unwrap();
    cluster.running[victim] = Some(running);
    put_on(cluster.node(leader), "a", "1").await;
    cluster.node(victim).read_index().await.unwrap();

    // The others commit what the victim's disk does not take. It is told, and its store may be flushed at any time.
    disk.0.send_replace(Syncs::Held);
    put_on(cluster.node(leader), "b", "2").await;
    timeout(2 * ELECTION, cluster.node(victim).read_index()).await.unwrap_err();
    assert_eq!(value(cluster.store(victim), "b"), None);
    cluster.store(victim).flush().unwrap();
    disk.0.send_replace(Syncs::Failed);
    let mut status = cluster.node(victim).watch_status();
    let _ = status.wait_for(|status| status.fatal.is_some()).await.unwrap();
    // It may be told again that the log has failed.
    let _ = cluster.node(victim).shutdown().await;
    cluster.crash(victim).await;

    cluster.start_node(victim).await;
    cluster.node(victim).read_index().await.unwrap();
    assert!(value(cluster.store(victim), "b").is_some());
}
