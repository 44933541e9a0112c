//! Changes of the membership, with writes going on.

mod harness;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt as _;
use harness::{Cluster, ELECTION, put, put_on, value};
use prost::Message;
use proto::{
    EtcdError, MemberId,
    command::{Command, MemberAttributes, command::Op},
};
use raft::{Change, ChangeError, ChangePolicy, Node, RaftError};
use tokio::{task::JoinHandle, time::timeout};

const STRICT: ChangePolicy = ChangePolicy { is_strict: true, learners_max: 1 };
const LONG: Duration = Duration::from_secs(20);

fn id(i: usize) -> MemberId {
    MemberId(i as u64 + 1)
}

fn voter(cluster: &Cluster, i: usize) -> Change {
    Change::AddVoter { id: id(i), peer_urls: vec![cluster.url(i)] }
}

/// What a member's server says of it when it has started.
async fn say_name(node: &Node, i: usize) {
    let attributes = MemberAttributes { id: id(i).0, name: format!("m{i}"), client_urls: Vec::new() };
    let command = Command { op: Some(Op::MemberAttributes(attributes)), auth: None }.encode_to_vec();
    node.propose(command.into()).await.unwrap();
}

async fn start(size: usize) -> Cluster {
    let cluster = Cluster::start(size).await;
    cluster.leader().await;
    for i in 0..size {
        say_name(cluster.node(i), i).await;
    }
    cluster
}

/// Adds a voter through member `by`, and starts it.
async fn grow(cluster: &mut Cluster, by: usize) -> usize {
    let new = cluster.new_place().await;
    let change = voter(cluster, new);
    let members = change_until_healthy(cluster.node(by), change).await;
    assert!(members.iter().any(|member| member.id == id(new) && !member.is_learner));
    cluster.start_node(new).await;
    timeout(LONG, cluster.node(new).read_index()).await.unwrap().unwrap();
    say_name(cluster.node(new), new).await;
    new
}

/// The leader may not have heard yet of a member that has just started, or of how far it is.
async fn change_until_healthy(node: &Node, change: Change) -> Vec<raft::Member> {
    let mut status = node.watch_status();
    loop {
        match node.change_members(change.clone(), STRICT).await {
            Ok(members) => return members,
            Err(ChangeError::Refused(EtcdError::Unhealthy | EtcdError::LearnerNotReady)) => {
                let _ = timeout(ELECTION / 2, status.changed()).await;
            }
            Err(error) => panic!("{change:?}: {error}"),
        }
    }
}

/// Waits until Raft of every member has these voters, and they have a leader among them.
async fn settled(cluster: &Cluster, voters: &[usize]) {
    let leads = async {
        loop {
            let leader = cluster.leader_among(voters).await;
            if cluster.node(leader).voters() == voters.iter().map(|i| id(*i)).collect::<BTreeSet<_>>() {
                return;
            }
            // A delay: each member comes to know of its voters on its own, and none tells.
            tokio::time::sleep(ELECTION / 10).await;
        }
    };
    timeout(LONG, leads).await.unwrap();
}

/// Writes numbered keys through one member until told to stop; gives those that were acknowledged.
fn write_through(node: &Node, name: &'static str, stop: &Arc<AtomicBool>) -> JoinHandle<Vec<String>> {
    let (node, stop) = (node.clone(), stop.clone());
    tokio::spawn(async move {
        let mut written = Vec::new();
        for i in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let key = format!("{name} {i}");
            match node.propose(put(&key, "x")).await {
                Ok(_) => written.push(key),
                Err(RaftError::LeaderChanged | RaftError::Timeout | RaftError::NoLeader) => {}
                Err(error) => panic!("{error}"),
            }
        }
        written
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_member_works_on_until_its_new_one_has_started() {
    let mut cluster = start(1).await;
    let new = cluster.new_place().await;
    let change = voter(&cluster, new);
    let members = cluster.node(0).change_members(change.clone(), STRICT).await.unwrap();
    assert_eq!(members.len(), 2);
    put_on(cluster.node(0), "alone", "1").await;
    let again = cluster.node(0).change_members(change, STRICT).await;
    assert!(matches!(again, Err(ChangeError::Refused(EtcdError::MemberNotEnoughStarted))), "{again:?}");
    cluster.start_node(new).await;
    timeout(LONG, cluster.node(new).read_index()).await.unwrap().unwrap();
    assert!(!cluster.node(new).status().is_learner);
    assert_eq!(value(cluster.store(new), "alone").unwrap(), "1");
    settled(&cluster, &[0, new]).await;
    put_on(cluster.node(new), "both", "2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_grows_to_five_and_shrinks_to_one_while_it_is_written_to() {
    let mut cluster = start(1).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = write_through(cluster.node(0), "key", &stop);
    let mut all = vec![0];
    for _ in 0..4 {
        let by = all[all.len() / 2];
        let new = grow(&mut cluster, by).await;
        all.push(new);
        settled(&cluster, &all).await;
    }
    while all.len() > 1 {
        let leader = cluster.leader_among(&all).await;
        // The leader itself goes in every other step, asked of itself or of another; member 0 stays: it writes.
        let gone = if all.len() % 2 == 0 && leader != 0 { leader } else { *all.last().unwrap() };
        let by = if all.len() > 3 { gone } else { 0 };
        change_until_healthy(cluster.node(by), Change::Remove(id(gone))).await;
        all.retain(|i| *i != gone);
        let mut status = cluster.node(gone).watch_status();
        timeout(LONG, status.wait_for(|status| status.is_removed)).await.unwrap().unwrap();
        cluster.node(gone).shutdown().await.unwrap();
        cluster.crash(gone).await;
        settled(&cluster, &all).await;
    }
    stop.store(true, Ordering::Relaxed);
    let written = timeout(LONG, writer).await.unwrap().unwrap();
    assert!(written.len() > 20, "{}", written.len());
    cluster.node(0).read_index().await.unwrap();
    assert!(written.iter().all(|key| value(cluster.store(0), key).is_some()));
    assert_eq!(cluster.node(0).members().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_learner_votes_once_it_is_promoted() {
    let mut cluster = start(3).await;
    let follower = (cluster.leader().await + 1) % 3;
    let new = cluster.new_place().await;
    let change = Change::AddLearner { id: id(new), peer_urls: vec![cluster.url(new)] };
    put_on(cluster.node(0), "a", "1").await;
    let members = cluster.node(follower).change_members(change, STRICT).await.unwrap();
    assert!(members.iter().any(|member| member.id == id(new) && member.is_learner));
    let promote = Change::Promote(id(new));
    let refused = cluster.node(follower).change_members(promote.clone(), STRICT).await;
    assert!(matches!(refused, Err(ChangeError::Refused(EtcdError::LearnerNotReady))), "{refused:?}");
    cluster.start_node(new).await;
    timeout(LONG, cluster.node(new).read_index()).await.unwrap().unwrap();
    assert!(cluster.node(new).status().is_learner);
    let members = change_until_healthy(cluster.node(new), promote.clone()).await;
    assert!(members.iter().all(|member| !member.is_learner));
    settled(&cluster, &[0, 1, 2, new]).await;
    let refused = cluster.node(0).change_members(promote, STRICT).await;
    assert!(matches!(refused, Err(ChangeError::Refused(EtcdError::MemberNotLearner))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_member_that_was_down_learns_of_it_and_counts_no_more() {
    let mut cluster = start(3).await;
    let leader = cluster.leader().await;
    let gone = (leader + 1) % 3;
    cluster.crash(gone).await;
    change_until_healthy(cluster.node(leader), Change::Remove(id(gone))).await;
    let back = voter(&cluster, gone);
    let refused = cluster.node(leader).change_members(back, STRICT).await;
    assert!(matches!(refused, Err(ChangeError::Refused(EtcdError::MemberNotFound))), "{refused:?}");
    let term = cluster.node(leader).status().term;
    cluster.start_node(gone).await;
    let mut status = cluster.node(gone).watch_status();
    timeout(LONG, status.wait_for(|status| status.is_removed)).await.unwrap().unwrap();
    assert!(cluster.node(gone).propose(put("from the dead", "1")).await.is_err());
    assert_eq!(cluster.node(leader).status().term, term);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_member_is_replaced_and_all_members_crash_meanwhile() {
    let mut cluster = start(3).await;
    let leader = cluster.leader().await;
    let dead = (leader + 2) % 3;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = write_through(cluster.node(leader), "key", &stop);
    cluster.crash(dead).await;
    change_until_healthy(cluster.node(leader), Change::Remove(id(dead))).await;
    let new = cluster.new_place().await;
    let change = voter(&cluster, new);
    change_until_healthy(cluster.node(leader), change).await;
    stop.store(true, Ordering::Relaxed);
    let written = timeout(LONG, writer).await.unwrap().unwrap();
    let survivors: Vec<usize> = (0..3).filter(|i| *i != dead).collect();
    // The membership that waits for the new member is in the logs only.
    for i in &survivors {
        cluster.crash(*i).await;
    }
    for i in &survivors {
        cluster.start_node(*i).await;
    }
    cluster.start_node(new).await;
    settled(&cluster, &[survivors[0], survivors[1], new]).await;
    timeout(LONG, cluster.node(new).read_index()).await.unwrap().unwrap();
    assert!(written.iter().all(|key| value(cluster.store(new), key).is_some()));
    let revision = cluster.store(new).revision();
    let hashes: BTreeSet<u32> =
        [survivors[0], new].iter().map(|i| cluster.store(*i).hash_kv(revision).unwrap().hash).collect();
    assert_eq!(hashes.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_joins_late_gets_a_snapshot() {
    let mut cluster = start(1).await;
    put_on(cluster.node(0), "first", "1").await;
    // More than what is kept of the log once the store has been flushed.
    let value_bytes = Bytes::from(vec![7; 8 << 10]);
    let node = cluster.node(0).clone();
    let puts = (0..12_000).map(|i| {
        let (node, command) = (node.clone(), put(&format!("key {}", i % 500), value_bytes.clone()));
        async move { node.propose(command).await.unwrap() }
    });
    futures::stream::iter(puts).buffer_unordered(256).for_each(|_| async {}).await;
    let new = grow(&mut cluster, 0).await;
    settled(&cluster, &[0, new]).await;
    assert_eq!(value(cluster.store(new), "first").unwrap(), "1");
    let revision = cluster.store(0).revision();
    let hash = |i: usize| cluster.store(i).hash_kv(revision).unwrap().hash;
    assert_eq!(hash(new), hash(0));
    assert_eq!(cluster.node(new).members(), cluster.node(0).members());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_is_found_at_its_new_url() {
    let mut cluster = start(3).await;
    let leader = cluster.leader().await;
    let moved = (leader + 1) % 3;
    cluster.crash(moved).await;
    let place = cluster.new_place().await;
    let change = Change::Update { id: id(moved), peer_urls: vec![cluster.url(place)] };
    let members = cluster.node(leader).change_members(change, STRICT).await.unwrap();
    assert!(members.iter().any(|member| member.peer_urls == [cluster.url(place)]));
    put_on(cluster.node(leader), "meanwhile", "1").await;
    cluster.addresses[moved] = cluster.addresses[place];
    cluster.start_node(moved).await;
    timeout(LONG, cluster.node(moved).read_index()).await.unwrap().unwrap();
    assert_eq!(value(cluster.store(moved), "meanwhile").unwrap(), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_survivor_goes_on_alone_and_the_dead_stay_out() {
    let mut cluster = start(3).await;
    let survivor = cluster.leader().await;
    for i in 0..50 {
        put_on(cluster.node(survivor), &format!("key {i}"), "1").await;
    }
    let revision = cluster.store(survivor).revision();
    for i in 0..3 {
        cluster.crash(i).await;
    }
    cluster.start_alone(survivor).await;
    timeout(LONG, cluster.node(survivor).read_index()).await.unwrap().unwrap();
    assert_eq!(cluster.store(survivor).revision(), revision);
    assert_eq!(cluster.node(survivor).members().iter().map(|member| member.id).collect::<Vec<_>>(), [id(survivor)]);
    put_on(cluster.node(survivor), "alone", "2").await;

    // The others have a majority between them, but the one that went on does not listen to them any more.
    let other = (survivor + 1) % 3;
    cluster.start_node(other).await;
    let mut status = cluster.node(other).watch_status();
    timeout(LONG, status.wait_for(|status| status.is_removed)).await.unwrap().unwrap();
    assert!(cluster.node(survivor).status().is_leader);

    // It may be told so again, and it grows again.
    cluster.crash(survivor).await;
    cluster.start_alone(survivor).await;
    timeout(LONG, cluster.node(survivor).read_index()).await.unwrap().unwrap();
    let new = grow(&mut cluster, survivor).await;
    assert_eq!(value(cluster.store(new), "alone").unwrap(), "2");
}
