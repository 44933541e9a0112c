use std::collections::{BTreeMap, BTreeSet};

use proto::LeaseId;
use storage::{Change, LeaseChange, Observer as _};

use super::*;
use crate::{auth::Tokens, observer::Observer};

/// Names, types and labels of a page.
fn families(page: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut families: BTreeMap<String, (String, BTreeSet<String>)> = BTreeMap::new();
    for line in page.lines() {
        if let Some(typed) = line.strip_prefix("# TYPE ") {
            let (name, kind) = typed.split_once(' ').unwrap();
            families.insert(name.into(), (kind.into(), BTreeSet::new()));
        } else if let Some((name, labels)) = line.split_once('{') {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            let name = if families.contains_key(name) { name } else { base.unwrap_or(name) };
            let (labels, _) = labels.rsplit_once('}').unwrap();
            let names = labels.split("\",").filter_map(|label| label.split_once('=')).map(|(label, _)| label);
            let family = families.get_mut(name).unwrap_or_else(|| panic!("{line} has no type"));
            family.1.extend(names.filter(|label| *label != "le").map(String::from));
        }
    }
    families
}

fn observe_everything(metrics: &Arc<Metrics>) {
    let observer = Observer::new(&Hub::new(), &Clock::new(), &Arc::new(Tokens::None), metrics);
    for work in [
        Work::Command { op: "Put", is_done: true },
        Work::Batch { entries: 1 },
        Work::Write,
        Work::Range { is_done: false },
    ] {
        observer.took(work, Duration::from_millis(1));
    }
    metrics.rpc.clients(true, Some("3.7")).inc();
}

#[test]
fn every_family_of_etcd_is_there_with_its_type_and_labels() {
    let metrics = Metrics::for_tests();
    observe_everything(&metrics);
    metrics.request("Put").done();
    let members = vec![MemberId(7), MemberId(8)];
    let now = Now { cluster_version: "3.7".into(), members, ..Default::default() };
    let found = families(&metrics.page(&now).unwrap());
    let list = include_str!("etcd.txt").lines().filter(|line| !line.starts_with('#'));
    for line in list {
        let mut parts = line.split(' ');
        let (name, kind) = (parts.next().unwrap(), parts.next().unwrap());
        let labels: BTreeSet<String> =
            parts.next().map_or(BTreeSet::new(), |l| l.split(',').map(String::from).collect());
        assert_eq!(found.get(name), Some(&(kind.into(), labels)), "{name}");
    }
}

#[test]
fn the_page_shows_what_is_now() {
    let metrics = Metrics::for_tests();
    let pending = metrics.proposal();
    let now = Now {
        status: raft::Status { leader: Some(MemberId(1)), applied_index: 9, ..Default::default() },
        size: Size { on_disk: 3, in_use: 2 },
        compacted: -1,
        stats: Stats { puts: 4, ..Default::default() },
        alarms: vec![(MemberId(7), "NOSPACE".into())],
        ..Default::default()
    };
    let page = metrics.page(&now).unwrap();
    for line in [
        "etcd_server_has_leader 1",
        "etcd_server_is_leader 0",
        "etcd_server_proposals_applied_total 9",
        "etcd_server_proposals_pending 1",
        "etcd_mvcc_db_total_size_in_bytes 3",
        "etcd_mvcc_put_total 4",
        "etcd_debugging_mvcc_compact_revision -1",
        "etcd_debugging_server_alarms{alarm_type=\"NOSPACE\",server_id=\"7\"} 1",
        "etcd_server_feature_enabled{name=\"AllAlpha\",stage=\"ALPHA\"} 0",
        "etcd_server_feature_enabled{name=\"FastLeaseKeepAlive\",stage=\"BETA\"} 1",
        "etcd_server_version{server_version=\"3.7.1\"} 1",
        "etcd_server_id{server_id=\"7\"} 1",
        "etcd_server_quota_backend_bytes 5",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
    }
    drop(pending);
    // What was counted stays, what is gone goes.
    let page = metrics.page(&Now::default()).unwrap();
    assert!(page.contains("etcd_server_proposals_pending 0") && page.contains("etcd_mvcc_put_total 4"));
    assert!(!page.contains("NOSPACE"));
}

#[test]
fn leases_are_counted_as_they_change() {
    let metrics = Metrics::for_tests();
    let observer = Observer::new(&Hub::new(), &Clock::new(), &Arc::new(Tokens::None), &metrics);
    let id = LeaseId(1);
    let leases = vec![LeaseChange::Granted { id, ttl: 60 }, LeaseChange::Revoked { id }];
    observer.applied(Change { leases, ..Default::default() });
    let page = metrics.page(&Now::default()).unwrap();
    for line in [
        "etcd_debugging_lease_granted_total 1",
        "etcd_debugging_lease_revoked_total 1",
        "etcd_debugging_lease_ttl_total_sum 60",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
    }
}

#[test]
fn a_peer_is_active_from_its_first_answer_to_the_first_failure() {
    use raft::{Meter as _, PeerEvent};
    let metrics = Metrics::for_tests();
    let line = |text: &str| metrics.page(&Now::default()).unwrap().lines().any(|line| line == text);
    metrics.network.peer(MemberId(9), PeerEvent::Received(10));
    assert!(line("etcd_network_active_peers{Local=\"7\",Remote=\"9\"} 1"));
    assert!(line("etcd_network_peer_received_bytes_total{From=\"9\"} 10"));
    metrics.network.peer(MemberId(9), PeerEvent::SendFailed);
    metrics.network.peer(MemberId(9), PeerEvent::SendFailed);
    assert!(line("etcd_network_active_peers{Local=\"7\",Remote=\"9\"} 0"));
    assert!(line("etcd_network_disconnected_peers_total{Local=\"7\",Remote=\"9\"} 1"));
    assert!(line("etcd_network_peer_sent_failures_total{To=\"9\"} 2"));
}

#[tokio::test]
async fn a_leader_counts_when_it_comes_and_not_while_it_stays() {
    let metrics = Metrics::for_tests();
    let status = |term, leader: Option<u64>| raft::Status { term, leader: leader.map(MemberId), ..Default::default() };
    let (sender, receiver) = tokio::sync::watch::channel(status(1, Some(1)));
    let counting = tokio::spawn(count_leaders(metrics.clone(), receiver));
    tokio::task::yield_now().await;
    for (term, leader, count) in [(1, None, 1), (2, Some(1), 2), (3, Some(1), 2), (4, Some(2), 3)] {
        sender.send(status(term, leader)).unwrap();
        // On this runtime of one thread the other task runs now, up to where it waits again.
        tokio::task::yield_now().await;
        assert_eq!(metrics.leader_changes.get(), count, "in term {term}");
    }
    drop(sender);
    counting.await.unwrap();
}
