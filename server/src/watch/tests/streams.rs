//! How streams go on and end, and progress.

use super::*;

#[tokio::test]
async fn a_half_closed_stream_goes_on() {
    let (hub, history) = hub_at(0);
    let mut client = Client::open(&hub, TestMember::new());
    client.create_all(0);
    client.requests = None;
    client.created().await;
    hub.applied(history.put("k", Bytes::new()));
    client.sees_each_revision(2, 2).await;
}

#[tokio::test]
async fn a_stream_ends_when_the_member_stops() {
    let (hub, _) = hub_at(0);
    let member = TestMember::new();
    let shutdown = member.shutdown.clone();
    let mut client = Client::open(&hub, member);
    client.create_all(0);
    client.created().await;
    shutdown.cancel();
    let status = client.next_result().await.unwrap().unwrap_err();
    assert_eq!((status.code(), status.message()), (tonic::Code::Unavailable, "etcdserver: server stopped"));
    assert!(client.next_result().await.is_none());
    assert_eq!(hub.synced_count(), 0);
}

#[tokio::test]
async fn a_stream_that_needs_a_leader_ends_without_one() {
    let (hub, _) = hub_at(0);
    let (lost, leader_lost) = tokio::sync::oneshot::channel();
    let mut client = Client::open_until(&hub, TestMember::new(), async { leader_lost.await.unwrap() });
    client.create_all(0);
    client.created().await;
    lost.send(()).unwrap();
    let status = client.next_result().await.unwrap().unwrap_err();
    assert_eq!((status.code(), status.message()), (tonic::Code::Unavailable, "etcdserver: no leader"));
}

#[tokio::test]
async fn a_request_that_cannot_be_read_ends_the_stream() {
    let (hub, _) = hub_at(0);
    for (sent, seen) in [(Status::cancelled("gone"), "etcdserver: watch canceled"), (Status::internal("odd"), "odd")] {
        let mut client = Client::open(&hub, TestMember::new());
        client.requests.as_ref().unwrap().send(Err(sent)).unwrap();
        assert_eq!(client.next_result().await.unwrap().unwrap_err().message(), seen);
    }
}

#[tokio::test]
async fn what_may_not_be_watched_is_refused_and_the_stream_goes_on() {
    let (hub, _) = hub_at(0);
    let mut client = Client::open(&hub, TestMember::new());
    client.create(WatchCreateRequest { key: FORBIDDEN.into(), ..Default::default() });
    let refused = client.next().await;
    assert!(refused.created && refused.canceled);
    assert_eq!(
        (refused.watch_id, refused.cancel_reason.as_str()),
        (-1, "rpc error: code = PermissionDenied desc = etcdserver: permission denied")
    );
    client.create_all(0);
    client.created().await;
}

#[tokio::test]
async fn a_client_that_goes_leaves_nothing_behind() {
    let (hub, _) = hub_at(5);
    let mut client = Client::open(&hub, TestMember::new());
    for _ in 0..100 {
        client.create_all(0);
    }
    for _ in 0..100 {
        client.created().await;
    }
    assert_eq!(hub.synced_count(), 100);
    drop(client);
    assert_eq!(hub.synced_count(), 0);
}

#[tokio::test]
async fn thousands_of_watches_on_one_stream_each_see_an_event() {
    const WATCHES: i64 = 5000;
    let (hub, history) = hub_at(0);
    let mut client = Client::open(&hub, TestMember::new());
    for _ in 0..WATCHES {
        client.create_all(0);
    }
    for id in 0..WATCHES {
        assert_eq!(client.created().await.watch_id, id);
    }
    for round in 0..3 {
        hub.applied(history.put("k", Bytes::from(vec![0; 1000])));
        let mut seen = std::collections::HashSet::new();
        while seen.len() < WATCHES as usize {
            let response = client.next().await;
            assert_eq!(events(&response)[0].kv.as_ref().unwrap().mod_revision, 2 + round);
            assert!(seen.insert(response.watch_id), "watch {} twice", response.watch_id);
        }
    }
}

#[tokio::test]
async fn progress_is_told_when_all_watches_of_the_stream_are_synced() {
    let (hub, history) = hub_at(3000);
    let mut client = Client::open(&hub, TestMember::new());
    // Without a watch there is nobody to tell.
    client.request_progress();
    client.create_all(2);
    client.create_all(0);
    client.request_progress();
    let (mut next, mut progress) = (2, None);
    while progress.is_none() {
        let response = client.next().await;
        if response.created {
            continue;
        }
        if response.events.is_empty() {
            progress = Some((response.watch_id, response.header.unwrap().revision));
        } else {
            next += response.events.len() as i64;
        }
    }
    assert_eq!((next, progress), (3002, Some((-1, 3001))));

    // It comes after the events that it tells of.
    hub.applied(history.put("k", Bytes::new()));
    client.request_progress();
    let mut watches = vec![client.next().await.watch_id, client.next().await.watch_id];
    watches.sort();
    assert_eq!(watches, [0, 1]);
    let response = client.next().await;
    assert_eq!((response.watch_id, response.events.len(), response.header.unwrap().revision), (-1, 0, 3002));
}

#[tokio::test]
async fn progress_is_not_told_for_a_watch_that_begins_in_the_future() {
    let (hub, history) = hub_at(0);
    let mut client = Client::open(&hub, TestMember::new());
    client.create_all(3);
    client.created().await;
    client.request_progress();
    client.cancel(9);
    client.cancel(0);
    assert!(client.next().await.canceled);
    client.create_all(0);
    client.created().await;
    hub.applied(history.put("k", Bytes::new()));
    client.sees_each_revision(2, 2).await;
}

#[tokio::test]
async fn progress_comes_by_itself_to_watches_without_events_that_asked_for_it() {
    let (hub, history) = hub_at(4);
    let member = TestMember { progress_interval: Duration::from_millis(200), ..TestMember::new() };
    let mut client = Client::open(&hub, member);
    for (key, progress_notify) in [("quiet", true), ("silent", false)] {
        client.create(WatchCreateRequest { key: key.into(), progress_notify, ..Default::default() });
    }
    client.created().await;
    client.created().await;
    hub.applied(history.put("k", Bytes::new()));
    eventually("the change is delivered", || hub.position() == 6).await;
    for _ in 0..2 {
        let response = client.next().await;
        assert_eq!(
            (response.watch_id, response.events.len(), response.created, response.canceled),
            (0, 0, false, false)
        );
        assert_eq!(response.header.unwrap().revision, 6);
    }
}

#[tokio::test]
async fn an_event_stands_for_the_next_progress() {
    let (hub, history) = hub_at(0);
    let shared = hub.shared();
    let watches = shared.watches();
    let watch = crate::watch::watcher::Watch {
        id: 0,
        range: KeyRange::all(),
        start: 0,
        filter: Default::default(),
        previous: false,
        fragment: false,
        progress: true,
    };
    shared.watch(&watches, watch);
    let taken = || match watches.outbox.take() {
        crate::watch::outbox::Taken::Items { items, .. } => items,
        crate::watch::outbox::Taken::Ended(status) => panic!("{status}"),
    };
    taken();
    shared.tick(&watches);
    assert_eq!(taken().len(), 1);
    hub.applied(history.put("k", Bytes::new()));
    eventually("the change is delivered", || hub.position() == 2).await;
    for item in taken() {
        if let crate::watch::outbox::Item::Events(delivery) = item {
            delivery.watcher.sent_events();
        }
    }
    shared.tick(&watches);
    assert_eq!(taken().len(), 0);
    shared.tick(&watches);
    assert_eq!(taken().len(), 1);
    shared.remove(&watches);
}
