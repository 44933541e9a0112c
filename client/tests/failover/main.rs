//! What the client does when servers fail, against servers that fail on cue.

mod fake;

use std::time::{Duration, Instant};

use client::{
    Balance, Client, Credentials, Error, EtcdError, Get, LeaseId, Options, Put, Watch, mirror, mvccpb::Event,
    pb::WatchResponse,
};
use tokio::{sync::oneshot, time::timeout};
use tonic::{Code, Status};

use crate::fake::{Act, Fake, canceled, created, events};

fn client(endpoints: &[&str]) -> Client {
    let options = Options { request_timeout: Duration::from_secs(3), ..Options::default() };
    Client::with_options(endpoints.iter().copied(), options).unwrap()
}

fn revisions(events: &[Event]) -> Vec<i64> {
    events.iter().map(|event| event.kv.as_ref().unwrap().mod_revision).collect()
}

/// Watches until `count` events have come.
async fn watch(client: &Client, watch: Watch, count: usize) -> Vec<i64> {
    let mut watcher = client.watch(watch).await.unwrap();
    let mut seen = Vec::new();
    while seen.len() < count {
        let response: WatchResponse = watcher.next().await.unwrap();
        seen.extend(revisions(&response.events));
    }
    seen
}

#[tokio::test]
async fn a_watch_goes_on_elsewhere_without_gap_and_without_duplicate() {
    let first = Fake::start([vec![
        Act::Send(created(4)),
        Act::Send(events(5, &[5])),
        // The store is at 9, but only 6 was sent: the rest is still to come.
        Act::Send(events(9, &[6])),
        Act::Fail(Status::unavailable("going down")),
    ]])
    .await;
    let second = Fake::start([vec![
        Act::Send(created(9)),
        Act::Send(events(9, &[6, 7, 8])),
        Act::Send(events(9, &[9])),
        Act::Hold,
    ]])
    .await;
    let client = client(&[first.url(), second.url()]);
    assert_eq!(watch(&client, Watch::prefix("k"), 5).await, [5, 6, 7, 8, 9]);
    assert_eq!(first.watches_from(), [0]);
    assert_eq!(second.watches_from(), [7]);
}

#[tokio::test]
async fn a_watch_that_saw_nothing_yet_resumes_from_its_creation() {
    let server = Fake::start([
        vec![Act::Send(created(4)), Act::Fail(Status::unknown("broken pipe"))],
        vec![Act::Send(created(6)), Act::Send(events(6, &[5, 6])), Act::Hold],
    ])
    .await;
    assert_eq!(watch(&client(&[server.url()]), Watch::key("k"), 2).await, [5, 6]);
    assert_eq!(server.watches_from(), [0, 5]);
}

#[tokio::test]
async fn a_watch_leaves_a_member_without_a_leader() {
    let first = Fake::start([vec![Act::Send(created(4)), Act::Send(canceled("etcdserver: no leader", 0))]]).await;
    let second = Fake::start([vec![Act::Send(created(5)), Act::Send(events(5, &[5])), Act::Hold]]).await;
    assert_eq!(watch(&client(&[first.url(), second.url()]), Watch::key("k"), 1).await, [5]);
}

#[tokio::test]
async fn a_watch_of_compacted_revisions_ends_and_says_from_where_to_watch() {
    let server =
        Fake::start([vec![Act::Send(created(9)), Act::Send(canceled(EtcdError::Compacted.message(), 7)), Act::Hold]])
            .await;
    let mut watcher = client(&[server.url()]).watch(Watch::key("k").from_revision(2)).await.unwrap();
    let compacted = Error::WatchCompacted { compact_revision: 7 };
    assert_eq!(watcher.next().await.unwrap_err(), compacted);
    assert_eq!(watcher.next().await.unwrap_err(), compacted, "it has ended and stays so");
    assert_eq!(server.watches_from(), [2]);
}

#[tokio::test]
async fn a_refused_watch_is_not_tried_again() {
    let server = Fake::start([vec![Act::Fail(EtcdError::PermissionDenied.into())]]).await;
    let error = client(&[server.url()]).watch(Watch::key("k")).await.unwrap_err();
    assert_eq!(error, Error::Etcd(EtcdError::PermissionDenied));
    assert_eq!(server.watches_from(), [0]);
}

#[tokio::test]
async fn progress_is_reported_where_it_was_asked_for_and_moves_the_watch() {
    let script = || [vec![Act::Send(created(4)), Act::Send(events(8, &[])), Act::Fail(Status::unavailable("down"))]];
    let server = Fake::start(script().into_iter().chain([vec![Act::Send(created(9)), Act::Hold]])).await;
    let mut watcher = client(&[server.url()]).watch(Watch::key("k").progress_notify()).await.unwrap();
    let response = watcher.next().await.unwrap();
    assert!(response.events.is_empty());
    assert_eq!(watcher.next_revision(), 9);
    let resumed = timeout(Duration::from_millis(500), watcher.next()).await;
    assert!(resumed.is_err(), "nothing more was sent");
    assert_eq!(server.watches_from(), [0, 9]);
}

#[tokio::test]
async fn a_write_goes_elsewhere_only_when_it_was_not_proposed() {
    // No connection.
    let second = Fake::start([]).await;
    client(&[&fake::nobody().await, second.url()]).put(Put::new("k", "v")).await.unwrap();
    assert_eq!(second.puts(), 1);

    // Refused before it was proposed.
    let first = Fake::start([]).await;
    first.answer_with(EtcdError::NoLeader.into());
    client(&[first.url(), second.url()]).put(Put::new("k", "v")).await.unwrap();
    assert_eq!((first.puts(), second.puts()), (1, 2));

    // Sent, and nobody knows what became of it.
    let first = Fake::start([]).await;
    first.answer_with(Status::unavailable("connection reset by peer"));
    let error = client(&[first.url(), second.url()]).put(Put::new("k", "v")).await.unwrap_err();
    assert!(error.may_have_happened());
    assert_eq!(error, Error::Rpc { code: Code::Unavailable, message: "connection reset by peer".to_string() });
    assert_eq!((first.puts(), second.puts()), (1, 2), "a second put might be a second write");
}

#[tokio::test]
async fn a_read_goes_elsewhere_when_a_server_fails_or_hangs() {
    let second = Fake::start([]).await;
    for failure in [Act::Fail(EtcdError::LeaderChanged.into()), Act::Hold] {
        let first = Fake::start([]).await;
        match failure {
            Act::Fail(status) => first.answer_with(status),
            _ => first.hang(),
        }
        let begin = Instant::now();
        let client = client(&[first.url(), second.url()]);
        client.get(Get::key("k")).await.unwrap();
        client.get(Get::key("k")).await.unwrap();
        assert!(begin.elapsed() < Duration::from_secs(3));
        assert_eq!(first.gets(), 1, "the second read went to the server that works");
    }
    assert_eq!(second.gets(), 4);
}

#[tokio::test]
async fn a_request_ends_within_its_time_when_nobody_can_be_reached() {
    let options = Options { request_timeout: Duration::from_millis(300), ..Options::default() };
    let client = Client::with_options([fake::nobody().await, fake::nobody().await], options).unwrap();
    let begin = Instant::now();
    assert!(matches!(client.get(Get::key("k")).await, Err(Error::Unreachable(_))));
    let error = client.put(Put::new("k", "v")).await.unwrap_err();
    assert!(!error.may_have_happened());
    assert!(begin.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_request_that_is_too_large_is_not_sent() {
    let server = Fake::start([]).await;
    let options = Options { request_bytes_max: 100, ..Options::default() };
    let client = Client::with_options([server.url()], options).unwrap();
    let error = client.put(Put::new("k", vec![b'v'; 100])).await.unwrap_err();
    assert_eq!(error, Error::TooLarge { bytes: 105, max: 100 });
    assert!(!error.may_have_happened());
    client.put(Put::new("k", vec![b'v'; 90])).await.unwrap();
    assert_eq!(server.puts(), 1);
}

#[tokio::test]
async fn a_lease_nobody_renews_is_reported_as_gone() {
    let server = Fake::start([]).await;
    server.renew_leases(2);
    let mut keeper = client(&[server.url()]).keep_alive(client::LeaseId(7));
    assert_eq!(keeper.next().await.unwrap().ttl, 1);
    assert_eq!(keeper.next().await.unwrap().ttl, 1);
    // From now on the server hangs, and the lease of a second runs out.
    let begin = Instant::now();
    assert_eq!(keeper.next().await.unwrap_err(), Error::LeaseGone(client::LeaseId(7)));
    assert!(begin.elapsed() < Duration::from_secs(2));
    keeper.gone().await;
}

fn with_password(endpoints: &[&str]) -> Client {
    let credentials = Some(Credentials::Password { user: "ann".to_string(), password: "word".to_string() });
    Client::with_options(endpoints.iter().copied(), Options { credentials, ..Options::default() }).unwrap()
}

#[tokio::test]
async fn a_token_is_renewed_once_for_all_requests_it_is_refused_to() {
    let server = Fake::start([]).await;
    server.turn_auth_on();
    let client = with_password(&[server.url()]);
    let all_at_once = async || {
        let puts = (0..20).map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.put(Put::new("k", "v")).await })
        });
        for put in puts.collect::<Vec<_>>() {
            put.await.unwrap().unwrap();
        }
    };
    all_at_once().await;
    assert_eq!(server.tokens(), 1);
    server.forget_tokens();
    all_at_once().await;
    assert_eq!(server.tokens(), 1002, "one more than was forgotten");
    assert_eq!(server.puts(), 40, "each was carried out once");
}

#[tokio::test]
async fn a_watch_that_is_refused_for_its_token_is_created_with_another() {
    let refused = "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token";
    let begins = || vec![Act::Send(created(4)), Act::Send(events(5, &[5])), Act::Hold];
    let refuses = vec![Act::Send(WatchResponse { created: true, ..canceled(refused, 0) }), Act::Hold];
    let server = Fake::start([refuses, begins()]).await;
    let mut watcher = with_password(&[server.url()]).watch(Watch::key("k")).await.unwrap();
    assert_eq!(revisions(&watcher.next().await.unwrap().events), [5]);
    assert_eq!(server.tokens(), 2);
}

#[tokio::test]
async fn a_watch_that_may_not_be_is_refused_as_such() {
    let refused = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
    let server =
        Fake::start([vec![Act::Send(WatchResponse { created: true, ..canceled(refused, 0) }), Act::Hold]]).await;
    let error = client(&[server.url()]).watch(Watch::key("k")).await.unwrap_err();
    assert_eq!(error, Error::Etcd(EtcdError::PermissionDenied));
}

#[tokio::test]
async fn a_token_that_is_never_good_does_not_keep_a_request_for_ever() {
    let server = Fake::start([]).await;
    server.answer_with(EtcdError::InvalidAuthToken.into());
    let error = with_password(&[server.url()]).get(Get::key("k")).await.unwrap_err();
    assert_eq!(error, Error::Etcd(EtcdError::InvalidAuthToken));
    assert_eq!(server.tokens(), server.gets());
}

#[tokio::test]
async fn requests_go_round_the_endpoints_that_work() {
    let (first, second, third) = (Fake::start([]).await, Fake::start([]).await, Fake::start([]).await);
    let options = Options { balance: Balance::RoundRobin, ..Options::default() };
    let client = Client::with_options([first.url(), second.url(), third.url()], options).unwrap();
    for _ in 0..6 {
        client.get(Get::key("k")).await.unwrap();
    }
    assert_eq!([first.gets(), second.gets(), third.gets()], [2, 2, 2]);
    second.answer_with(Status::unavailable("going down"));
    for _ in 0..6 {
        client.get(Get::key("k")).await.unwrap();
    }
    assert_eq!(second.gets(), 3, "it is passed over after the first failure");
    let health: Vec<bool> = client.endpoint_health().iter().map(|endpoint| endpoint.is_healthy).collect();
    assert_eq!(health, [true, false, true]);
}

#[tokio::test]
async fn watchers_share_a_stream_and_leave_it() {
    let script = || vec![Act::Send(created(4)), Act::Send(events(5, &[5])), Act::Hold];
    let server = Fake::start([script(), script(), script()]).await;
    let client = client(&[server.url()]);
    let mut watchers = Vec::new();
    for key in ["a", "b", "c"] {
        watchers.push(client.watch(Watch::key(key)).await.unwrap());
    }
    for watcher in &mut watchers {
        assert_eq!(revisions(&watcher.next().await.unwrap().events), [5]);
    }
    assert_eq!(server.watch_streams(), 1);
    watchers.truncate(1);
    timeout(Duration::from_secs(10), server.canceled(2)).await.expect("the server is told");
    // The answer is for all of the stream, and moves nobody: an older server sends it too early.
    watchers[0].request_progress();
    assert!(watchers[0].next().await.unwrap().events.is_empty());
    assert_eq!(watchers[0].next_revision(), 6);
}

#[tokio::test]
async fn progress_that_another_watcher_asked_for_does_not_disturb_one_that_begins() {
    let begins = vec![Act::SendToAll(events(9, &[])), Act::Send(created(9)), Act::Send(events(10, &[10])), Act::Hold];
    let server = Fake::start([vec![Act::Send(created(4)), Act::Hold], begins]).await;
    let client = client(&[server.url()]);
    let _first = client.watch(Watch::key("a")).await.unwrap();
    let mut second = client.watch(Watch::key("b")).await.unwrap();
    assert_eq!(revisions(&second.next().await.unwrap().events), [10]);
}

#[tokio::test]
async fn a_slow_watcher_holds_up_no_other_and_misses_nothing() {
    const COUNT: i64 = 200;
    // Whoever was too slow comes back as often as it takes.
    let script = |_| vec![Act::Send(created(1)), Act::SendUpTo(COUNT), Act::Hold];
    let server = Fake::start((0..50).map(script)).await;
    let client = client(&[server.url()]);
    let mut slow = client.watch(Watch::key("a").from_revision(2)).await.unwrap();
    let mut quick = client.watch(Watch::key("b").from_revision(2)).await.unwrap();
    for watcher in [&mut quick, &mut slow] {
        let mut seen = Vec::new();
        while seen.last() != Some(&COUNT) {
            let response = timeout(Duration::from_secs(10), watcher.next()).await.expect("it goes on");
            seen.extend(revisions(&response.unwrap().events));
        }
        assert_eq!(seen, (2..=COUNT).collect::<Vec<_>>());
    }
    timeout(Duration::from_secs(10), server.canceled(1)).await.expect("it was taken off the stream");
}

#[tokio::test]
async fn parts_of_a_revision_come_together() {
    let part = |mod_revisions: &[i64]| WatchResponse { fragment: true, ..events(9, mod_revisions) };
    let server = Fake::start([
        vec![Act::Send(created(4)), Act::Send(part(&[5, 5])), Act::Fail(Status::unavailable("down"))],
        vec![Act::Send(created(4)), Act::Send(part(&[5, 5])), Act::Send(events(9, &[5, 6])), Act::Hold],
    ])
    .await;
    let mut watcher = client(&[server.url()]).watch(Watch::key("k").fragment()).await.unwrap();
    assert_eq!(revisions(&watcher.next().await.unwrap().events), [5, 5, 5, 6]);
    assert_eq!(server.watches_from(), [0, 5], "what has come in parts begins anew on another stream");
}

#[tokio::test]
async fn leases_are_renewed_on_one_stream() {
    let server = Fake::start([]).await;
    server.renew_leases(1000);
    let client = client(&[server.url()]);
    let mut keepers: Vec<_> = (1..=10).map(|id| client.keep_alive(LeaseId(id))).collect();
    for _ in 0..3 {
        for keeper in &mut keepers {
            keeper.next().await.unwrap();
        }
    }
    // One that comes later, too.
    client.keep_alive(LeaseId(11)).next().await.unwrap();
    assert_eq!(server.lease_streams(), 1);
}

#[tokio::test]
async fn a_renewal_on_its_way_serves_whoever_keeps_the_lease_from_then_on() {
    let server = Fake::start([]).await;
    let client = client(&[server.url()]);
    let _first = client.keep_alive(LeaseId(7));
    server.renewals_asked(1).await;
    let mut second = client.keep_alive(LeaseId(7));
    // Nothing is answered, so it is sent again on another stream: once for both.
    server.renewals_asked(2).await;
    assert_eq!((server.lease_requests(), server.lease_streams()), (2, 2));
    server.renew_leases(1);
    second.next().await.unwrap();
}

#[tokio::test]
async fn a_session_is_over_no_later_than_its_lease() {
    let server = Fake::start([]).await;
    server.renew_leases(1);
    let session = client(&[server.url()]).session_of(LeaseId(7));
    let begin = Instant::now();
    session.over().await;
    assert!(session.is_over() && begin.elapsed() < Duration::from_millis(1500), "{:?}", begin.elapsed());
    // What waits for the session's turn does not wait for ever.
    let error = session.lock("name").await.map(|_| ()).unwrap_err();
    assert_eq!(error, Error::LeaseGone(LeaseId(7)));
}

#[tokio::test]
async fn what_waits_can_wait_in_a_task_of_its_own() {
    fn is_send<F: Future + Send>(future: F) {
        drop(future);
    }
    let server = Fake::start([]).await;
    let client = client(&[server.url()]);
    is_send(client.get(Get::key("k")));
    is_send(client.watch(Watch::key("k")));
    is_send(client.observe("name"));
    is_send(client.stm(client::Isolation::default(), |tx| async move { tx.get("k").await }));
    let session = client.session_of(LeaseId(7));
    is_send(session.lock("name"));
    is_send(session.campaign("name", "value"));
    let mirror = client::mirror::Mirror::new(client.clone(), client.clone(), Default::default());
    is_send(mirror.run());
    is_send(mirror.cut_over(Duration::ZERO));
}

#[tokio::test]
async fn a_mirror_goes_on_while_its_source_does_not_list_leases() {
    let (happen, happens) = oneshot::channel();
    let nothing = || vec![Act::Send(created(0)), Act::Hold];
    let changes = vec![Act::Send(created(0)), Act::Await(happens), Act::Send(events(1, &[1])), Act::Hold];
    let source = Fake::start([nothing(), changes]).await;
    let destination = Fake::start([nothing()]).await;
    source.list_leases(1);
    destination.list_leases(1);
    let options = mirror::Options { keep_revisions: true, ..Default::default() };
    let mirror = mirror::Mirror::new(client(&[source.url()]), client(&[destination.url()]), options);
    let mut status = mirror.status();
    let mirrored = async {
        source.lease_lists_asked(2).await;
        happen.send(()).unwrap();
        status.wait_for(|status| status.mirrored_revision == 1).await.unwrap();
    };
    tokio::select! {
        ended = mirror.run() => panic!("{ended:?}"),
        done = timeout(Duration::from_secs(30), mirrored) => done.unwrap(),
    }
}
