//! Watchers that are not synced: each must still see every event once.

use super::*;

const KIB_64: Bytes = Bytes::from_static(&[0; 64 << 10]);

#[tokio::test]
async fn a_client_that_reads_slowly_misses_nothing() {
    let (hub, history) = hub_at(0);
    let mut client = Client::open(&hub, TestMember::new());
    client.create_all(0);
    client.created().await;
    // More than its outbox takes, and less than what is kept in memory.
    for revision in 2..=151 {
        hub.applied(history.put("k", KIB_64));
        eventually("it is delivered, or the watch lags", || hub.position() == revision || hub.synced_count() == 0)
            .await;
    }
    assert_eq!(hub.synced_count(), 0);
    client.sees_each_revision(2, 151).await;
    assert_eq!(*history.reads.lock(), 0);
    eventually("it is synced again", || hub.synced_count() == 1).await;
    hub.applied(history.put("k", Bytes::new()));
    client.sees_each_revision(152, 152).await;
}

#[tokio::test]
async fn a_client_that_is_further_behind_than_memory_reaches_reads_the_history() {
    let (hub, history) = hub_at(0);
    let mut client = Client::open(&hub, TestMember::new());
    client.create_all(0);
    client.created().await;
    for _ in 0..600 {
        hub.applied(history.put("k", KIB_64));
    }
    client.sees_each_revision(2, 601).await;
    assert!(*history.reads.lock() > 0);
    eventually("it is synced again", || hub.synced_count() == 1).await;
}

#[tokio::test]
async fn more_events_in_memory_than_are_read_in_one_go_come_without_a_gap() {
    let (hub, history) = hub_at(0);
    for _ in 0..6000 {
        hub.applied(history.put("k", Bytes::new()));
    }
    let mut client = Client::open(&hub, TestMember::new());
    client.create_all(2);
    client.created().await;
    client.sees_each_revision(2, 6001).await;
    assert_eq!(*history.reads.lock(), 0);
}

#[tokio::test]
async fn a_watch_from_now_on_leaves_out_what_readers_saw_before_the_hub() {
    let (hub, history) = hub_at(0);
    let seen = history.put("k", Bytes::new());
    let mut client = Client::open(&hub, TestMember::new());
    client.create_all(0);
    assert_eq!(client.created().await.header.unwrap().revision, 2);
    hub.applied(seen);
    hub.applied(history.put("k", Bytes::new()));
    client.sees_each_revision(3, 3).await;
}

#[tokio::test]
async fn a_watch_from_now_on_sees_what_is_applied_while_it_begins() {
    let (hub, history) = hub_at(0);
    hub.applied(history.put("k", Bytes::new()));
    let (writer, other_hub) = (history.clone(), hub.clone());
    *history.after_revision.lock() = Some(Box::new(move || other_hub.applied(writer.put("k", Bytes::new()))));
    let mut client = Client::open(&hub, TestMember::new());
    client.create_all(0);
    assert_eq!(client.created().await.header.unwrap().revision, 2);
    client.sees_each_revision(3, 3).await;
}

#[tokio::test]
async fn watches_of_one_stream_catch_up_from_where_each_begins() {
    let (hub, history) = hub_at(3000);
    let mut client = Client::open(&hub, TestMember::new());
    let starts = [1, 2, 700, 2999, 3001, 0, 5000];
    for start in starts {
        client.create_all(start);
    }
    let mut next: std::collections::HashMap<i64, i64> =
        (0..).zip(starts).map(|(id, start)| (id, if start == 0 { 3002 } else { start.max(2) })).collect();
    let mut created = 0;
    let mut awaiting = next.values().filter(|&&next| next <= 3001).count();
    let mut told = false;
    while awaiting > 0 || created < starts.len() || !told {
        if awaiting == 0 && created == starts.len() && !told {
            hub.applied(history.put("k", Bytes::new()));
            awaiting = starts.len() - 1;
            told = true;
        }
        let response = client.next().await;
        if response.created {
            assert_eq!(response.watch_id, created as i64);
            created += 1;
            continue;
        }
        let next = next.get_mut(&response.watch_id).unwrap();
        for event in events(&response) {
            assert_eq!(event.kv.unwrap().mod_revision, *next, "watch {}", response.watch_id);
            *next += 1;
        }
        if *next == 3002 || *next == 3003 {
            awaiting -= 1;
        }
    }
    assert_eq!(next[&6], 5000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_that_begin_anywhere_while_writes_go_on_have_neither_gap_nor_duplicate() {
    const WRITES: i64 = 20_000;
    let (hub, history) = hub_at(200);
    let writer = std::thread::spawn({
        let (hub, history) = (hub.clone(), history.clone());
        move || {
            for write in 0..WRITES {
                hub.applied(history.put("k", Bytes::new()));
                if write % 64 == 0 {
                    std::thread::yield_now();
                }
            }
        }
    });
    let mut readers = Vec::new();
    for reader in 0..40 {
        let (hub, history) = (hub.clone(), history.clone());
        readers.push(tokio::spawn(async move {
            let mut client = Client::open(&hub, TestMember::new());
            // Back, now, and ahead.
            let start = match reader % 4 {
                0 => 2,
                1 => history.revision().saturating_sub(50).max(2),
                2 => 0,
                _ => history.revision() + 100,
            };
            client.create_all(start);
            let now = client.created().await.header.unwrap().revision;
            let first = if start == 0 { now + 1 } else { start };
            client.sees_each_revision(first, 201 + WRITES).await;
        }));
    }
    for reader in readers {
        reader.await.unwrap();
    }
    writer.join().unwrap();
    eventually("nobody watches any more", || hub.synced_count() == 0).await;
}

#[tokio::test]
async fn after_a_snapshot_watches_read_what_led_there() {
    let (hub, history) = hub_at(0);
    let mut client = Client::open(&hub, TestMember::new());
    client.create_all(0);
    client.create_all(30);
    client.created().await;
    client.created().await;
    hub.applied(history.put("k", Bytes::new()));
    client.sees_each_revision(2, 2).await;
    for _ in 0..10 {
        history.put("k", Bytes::new());
    }
    hub.restored(12, -1);
    client.sees_each_revision(3, 12).await;
    for _ in 13..30 {
        hub.applied(history.put("k", Bytes::new()));
    }
    client.sees_each_revision(13, 29).await;
    client.cancel(0);
    while !client.next().await.canceled {}
    // The watch that begins in the future still does.
    hub.applied(history.put("k", Bytes::new()));
    let response = client.next().await;
    assert_eq!((response.watch_id, events(&response).len()), (1, 1));
}

#[tokio::test]
async fn a_watch_that_needs_what_is_compacted_ends_once() {
    let (hub, history) = hub_at(20);
    hub.applied(history.compact(10));
    let mut client = Client::open(&hub, TestMember::new());
    client.create_all(9);
    client.create_all(10);
    assert_eq!(client.created().await.watch_id, 0);
    assert_eq!(client.created().await.watch_id, 1);
    let mut canceled = None;
    let mut seen = 9;
    while canceled.is_none() || seen < 21 {
        let response = client.next().await;
        if response.canceled {
            assert_eq!((response.watch_id, response.compact_revision, response.events.len()), (0, 10, 0));
            assert_eq!((response.cancel_reason.as_str(), response.header.unwrap().revision), ("", 0));
            assert!(canceled.replace(()).is_none());
        } else {
            assert_eq!(response.watch_id, 1);
            seen += response.events.len() as i64;
        }
    }
    // As in etcd, a cancel of the client's is answered all the same, once.
    client.cancel(0);
    let response = client.next().await;
    assert_eq!((response.watch_id, response.canceled, response.compact_revision), (0, true, 0));
    client.cancel(0);
    client.cancel(1);
    let response = client.next().await;
    assert_eq!((response.watch_id, response.canceled, response.compact_revision), (1, true, 0));
}

#[tokio::test]
async fn a_slow_watch_that_compaction_overtakes_ends() {
    let (hub, history) = hub_at(0);
    let mut client = Client::open(&hub, TestMember::new());
    client.create_all(0);
    client.created().await;
    for _ in 0..600 {
        hub.applied(history.put("k", KIB_64));
    }
    eventually("it lags", || hub.synced_count() == 0).await;
    hub.applied(history.compact(600));
    loop {
        let response = client.next().await;
        if response.canceled {
            assert_eq!(response.compact_revision, 600);
            break;
        }
    }
    client.create_all(600);
    client.created().await;
    client.sees_each_revision(600, 601).await;
}
