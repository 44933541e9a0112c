//! The client and pintlectl against real servers, etcd's and Pintle's.

mod agree;
mod backup;
mod examples;
mod look;
mod mirror;
mod pintlectl;
mod secure;
mod server;
mod snapshot;

use std::time::Duration;

use client::{
    Client, Compare, Delete, Error, EtcdError, Get, LeaseId, Op, Put, Txn, Watch, Watcher,
    pb::{
        range_request::{SortOrder, SortTarget},
        response_op::Response,
    },
};
use tokio::time::timeout;

use crate::server::Etcd;

const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn keys_are_written_read_and_deleted() {
    let etcd = Etcd::start(1).await;
    let client = etcd.client();
    let first = client.put(Put::new("a", "1")).await.unwrap().header.unwrap().revision;
    client.put(Put::new("b", "2")).await.unwrap();
    let before = client.put(Put::new("a", "3").prev_kv()).await.unwrap().prev_kv.unwrap();
    assert_eq!((before.value.as_ref(), before.mod_revision), (&b"1"[..], first));

    let by_change = Get::prefix("").sort(SortTarget::Mod, SortOrder::Descend);
    let answer = client.get(by_change).await.unwrap();
    assert_eq!(answer.kvs.iter().map(|kv| kv.key.as_ref()).collect::<Vec<_>>(), [b"a", b"b"]);
    let answer = client.get(Get::key("a").revision(first).serializable()).await.unwrap();
    assert_eq!(answer.kvs[0].value, "1");
    let answer = client.get(Get::prefix("").limit(1).keys_only()).await.unwrap();
    assert!(answer.more && answer.count == 2 && answer.kvs[0].value.is_empty());

    client.compact(first + 1, true).await.unwrap();
    let error = client.get(Get::key("a").revision(first)).await.unwrap_err();
    assert_eq!(error, Error::Etcd(EtcdError::Compacted));

    let deleted = client.delete(Delete::prefix("").prev_kv()).await.unwrap();
    assert_eq!((deleted.deleted, deleted.prev_kvs.len()), (2, 2));
    assert_eq!(client.get(Get::prefix("").count_only()).await.unwrap().count, 0);

    // Ten megabytes in one answer.
    for index in 0..10 {
        client.put(Put::new(format!("big/{index}"), vec![index; 1 << 20])).await.unwrap();
    }
    assert_eq!(client.get(Get::prefix("big/")).await.unwrap().kvs.len(), 10);
}

#[tokio::test]
async fn a_transaction_does_one_thing_or_the_other() {
    let etcd = Etcd::start(1).await;
    let client = etcd.client();
    let create = || {
        Txn::new()
            .when(Compare::create_revision("lock").equals(0))
            .then(Op::put(Put::new("lock", "mine")))
            .otherwise(Op::get(Get::key("lock")))
    };
    assert!(client.txn(create()).await.unwrap().succeeded);
    let second = client.txn(create()).await.unwrap();
    assert!(!second.succeeded);
    let Some(Response::ResponseRange(found)) = &second.responses[0].response else { panic!("a range was asked for") };
    assert_eq!(found.kvs[0].value, "mine");
    let by_value = Txn::new()
        .when(Compare::value("lock").equals("mine"))
        .when(Compare::version("lock").less_than(2))
        .then(Op::delete(Delete::key("lock")));
    assert!(client.txn(by_value).await.unwrap().succeeded);
    assert_eq!(client.get(Get::key("lock")).await.unwrap().count, 0);
}

#[tokio::test]
async fn a_lease_lives_as_long_as_it_is_kept_alive() {
    let etcd = Etcd::start(1).await;
    let client = etcd.client();
    let granted = client.lease_grant(1, LeaseId(0)).await.unwrap();
    let id = LeaseId(granted.id);
    client.put(Put::new("k", "v").lease(id)).await.unwrap();
    let mut keeper = client.keep_alive(id);
    let lasts = Duration::from_secs(granted.ttl.unsigned_abs());
    let kept = tokio::time::Instant::now() + lasts * 2;
    while tokio::time::Instant::now() < kept {
        timeout(lasts, keeper.next()).await.expect("a lease is renewed before it ends").unwrap();
    }
    let left = client.lease_time_to_live(id, true).await.unwrap();
    // Whole seconds, rounded down; -1 would be a lease that is gone.
    assert!(left.ttl >= 0 && left.keys == ["k"], "{left:?}");
    assert_eq!(client.leases().await.unwrap().leases.len(), 1);

    client.lease_revoke(id).await.unwrap();
    timeout(SOON, keeper.gone()).await.unwrap();
    assert_eq!(client.get(Get::key("k")).await.unwrap().count, 0);
    assert_eq!(client.lease_keep_alive_once(id).await.unwrap_err(), Error::Etcd(EtcdError::LeaseNotFound));
    assert_eq!(client.lease_time_to_live(id, false).await.unwrap().ttl, -1);
}

#[tokio::test]
async fn members_answer_for_themselves() {
    let etcd = Etcd::start(1).await;
    let client = etcd.client();
    let url = &etcd.urls()[0];
    client.put(Put::new("k", "v")).await.unwrap();
    let status = client.status(url).await.unwrap();
    assert_eq!(status.leader, status.header.unwrap().member_id);
    client.health(url).await.unwrap();
    assert_ne!(client.hash_kv(url, 0).await.unwrap().hash, 0);
    client.defragment(url).await.unwrap();
    assert!(client.alarms().await.unwrap().alarms.is_empty());
    let members = client.member_list(true).await.unwrap().members;
    assert_eq!((members.len(), members[0].name.as_str()), (1, "m0"));
    assert!(matches!(client.status("http://elsewhere").await, Err(Error::Endpoint { .. })));
}

/// Reads events until `last` was seen, and demands that no revision is missing and none comes twice.
async fn expect_all(watcher: &mut Watcher, from: i64, last: i64) {
    let mut expected = from;
    while expected <= last {
        let response = timeout(SOON, watcher.next()).await.expect("the watch goes on").unwrap();
        for event in response.events {
            assert_eq!(event.kv.unwrap().mod_revision, expected);
            expected += 1;
        }
    }
}

/// Puts until a put is acknowledged; a failed one may have been written, too.
async fn put_again(client: &Client, key: &'static str) -> i64 {
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        match client.put(Put::new(key, "v")).await {
            Ok(answer) => return answer.header.unwrap().revision,
            Err(error) => assert!(tokio::time::Instant::now() < deadline, "{error}"),
        }
    }
}

#[tokio::test]
async fn a_watch_goes_on_when_the_server_was_killed_and_started_again() {
    let mut etcd = Etcd::start(1).await;
    let client = etcd.client();
    let mut watcher = client.watch(Watch::prefix("k")).await.unwrap();
    let first = put_again(&client, "k1").await;
    expect_all(&mut watcher, first, first).await;
    etcd.kill(0);
    // The watcher finds out while nobody is there.
    assert!(timeout(Duration::from_millis(200), watcher.next()).await.is_err());
    etcd.restart(0).await;
    let last = put_again(&client, "k2").await;
    expect_all(&mut watcher, first + 1, last).await;
}

#[tokio::test]
async fn a_watch_goes_on_beyond_a_compaction_of_what_it_was_told_of() {
    let mut etcd = Etcd::start(1).await;
    let client = etcd.client();
    let mut watcher = client.watch(Watch::key("quiet")).await.unwrap();
    for _ in 0..10 {
        client.put(Put::new("busy", "v")).await.unwrap();
    }
    watcher.request_progress();
    let told = timeout(SOON, watcher.next()).await.unwrap().unwrap().header.unwrap().revision;
    etcd.kill(0);
    etcd.restart(0).await;
    put_again(&client, "busy").await;
    client.compact(told, true).await.unwrap();
    let last = client.put(Put::new("quiet", "v")).await.unwrap().header.unwrap().revision;
    let seen = timeout(SOON, watcher.next()).await.unwrap().unwrap();
    assert_eq!(seen.events[0].kv.as_ref().unwrap().mod_revision, last);
}

#[tokio::test]
async fn requests_and_watches_move_to_another_member_when_the_leader_is_killed() {
    let mut etcd = Etcd::start(3).await;
    let urls = etcd.urls();
    let status = etcd.client().status(&urls[0]).await.unwrap();
    let mut leader = 0;
    for (index, url) in urls.iter().enumerate() {
        if etcd.client().status(url).await.unwrap().header.unwrap().member_id == status.leader {
            leader = index;
        }
    }
    // The leader is the endpoint in use.
    let mut endpoints = urls.clone();
    endpoints.swap(0, leader);
    let client = Client::connect(endpoints).unwrap();
    let mut watcher = client.watch(Watch::prefix("k")).await.unwrap();
    let first = put_again(&client, "k1").await;
    expect_all(&mut watcher, first, first).await;
    etcd.kill(leader);
    let last = put_again(&client, "k2").await;
    assert_eq!(client.get(Get::key("k2")).await.unwrap().count, 1);
    expect_all(&mut watcher, first + 1, last).await;
}
