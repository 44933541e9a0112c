//! Sessions, locks, elections, transactional memory, namespaces: what several processes agree on.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use client::{Client, Compare, Delete, Error, Get, Isolation, Keys, LeaseId, Op, Put, Txn, Watch, mvccpb::KeyValue};
use tokio::time::{Instant, timeout};

use crate::server::{Etcd, Store, on_both};

on_both! {
    a_lock_has_one_holder_at_a_time,
    a_lock_is_given_up_with_its_session_its_guard_and_its_future,
    each_leader_is_observed,
    money_is_neither_made_nor_lost,
    a_snapshot_sees_no_half_of_a_transaction,
    a_namespace_hides_its_prefix_everywhere,
    endpoints_follow_the_members,
}

const SOON: Duration = Duration::from_secs(30);

async fn soon<T>(work: impl Future<Output = T>) -> T {
    timeout(SOON, work).await.expect("it ends in time")
}

async fn a_lock_has_one_holder_at_a_time(store: Store) {
    let etcd = Etcd::of(store, 1).await;
    let (inside, last) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicI64::new(0)));
    let holders = (0..6).map(|_| {
        let (client, inside, last) = (etcd.client(), inside.clone(), last.clone());
        tokio::spawn(async move {
            let session = client.session(30).await.unwrap();
            for _ in 0..5 {
                let lock = session.lock("name").await.unwrap();
                assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "somebody else is inside");
                assert!(last.swap(lock.revision(), Ordering::SeqCst) < lock.revision(), "who comes later has more");
                let mine = Txn::new().when(lock.is_held()).then(Op::put(Put::new("counted", "v")));
                assert!(client.txn(mine).await.unwrap().succeeded);
                inside.fetch_sub(1, Ordering::SeqCst);
                lock.unlock().await.unwrap();
            }
            session.close().await.unwrap();
        })
    });
    for holder in holders.collect::<Vec<_>>() {
        soon(holder).await.unwrap();
    }
    let counted = etcd.client().get(Get::key("counted")).await.unwrap();
    assert_eq!(counted.kvs[0].version, 30);
    assert_eq!(etcd.client().get(Get::prefix("name/")).await.unwrap().count, 0);
}

async fn a_lock_is_given_up_with_its_session_its_guard_and_its_future(store: Store) {
    let etcd = Etcd::of(store, 1).await;
    let client = etcd.client();
    let (first, second) = (client.session(30).await.unwrap(), client.session(30).await.unwrap());
    let lock = first.try_lock("name").await.unwrap().expect("nobody has it");
    assert!(second.try_lock("name").await.unwrap().is_none());
    assert_eq!(first.lock("name").await.map(|_| ()), Err(Error::HeldAlready("name".to_string())));

    // Nobody waits any more: the place is left.
    let mut places = client.watch(Watch::prefix("name/")).await.unwrap();
    assert!(timeout(Duration::from_millis(200), second.lock("name")).await.is_err());
    let left = async {
        while client.get(Get::prefix("name/")).await.unwrap().count > 1 {
            places.next().await.unwrap();
        }
    };
    soon(left).await;

    // Dropped without waiting.
    drop(lock);
    let lock = soon(second.lock("name")).await.unwrap();
    // The session's end is the lock's.
    let waiting = tokio::spawn(async move { first.lock("name").await.map(|lock| (first, lock)) });
    client.lease_revoke(second.lease()).await.unwrap();
    soon(lock.lost()).await;
    let (first, _lock) = soon(waiting).await.unwrap().unwrap();
    let late = Txn::new().when(lock.is_held()).then(Op::put(Put::new("k", "v")));
    assert!(!client.txn(late).await.unwrap().succeeded, "who has lost it can do no harm");
    assert_eq!(second.lock("other").await.map(|_| ()), Err(Error::LeaseGone(second.lease())));
    first.close().await.unwrap();
}

async fn each_leader_is_observed(store: Store) {
    let etcd = Etcd::of(store, 1).await;
    let client = etcd.client();
    let mut observer = client.observe("post").await.unwrap();
    assert!(client.leader("post").await.unwrap().is_none());
    let candidates = (0..8).map(|number| {
        let client = client.clone();
        tokio::spawn(async move {
            let session = client.session(30).await.unwrap();
            let leadership = session.campaign("post", format!("{number}")).await.unwrap();
            leadership.proclaim(format!("{number} speaks")).await.unwrap();
            // Who leads for the shortest time is seen, too.
            leadership.resign().await.unwrap();
        })
    });
    let candidates: Vec<_> = candidates.collect();
    let mut seen: Vec<String> = Vec::new();
    for _ in 0..16 {
        let KeyValue { value, .. } = soon(observer.next()).await.unwrap();
        seen.push(String::from_utf8(value.to_vec()).unwrap());
    }
    for pair in seen.chunks(2) {
        assert_eq!(pair[1], format!("{} speaks", pair[0]));
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 16, "{seen:?}");
    for candidate in candidates {
        candidate.await.unwrap();
    }
    assert!(timeout(Duration::from_millis(200), observer.next()).await.is_err(), "nobody leads");

    // One whose session has ended does not lead, and is told so.
    let session = client.session(30).await.unwrap();
    let leadership = session.campaign("post", "last").await.unwrap();
    assert_eq!(soon(observer.next()).await.unwrap().value, "last");
    session.clone().close().await.unwrap();
    soon(leadership.lost()).await;
    assert_eq!(leadership.proclaim("still here").await, Err(Error::NotLeader));
}

const ACCOUNTS: usize = 5;

async fn money_is_neither_made_nor_lost(store: Store) {
    let etcd = Etcd::of(store, 1).await;
    let client = etcd.client();
    for account in 0..ACCOUNTS {
        client.put(Put::new(format!("account/{account}"), "100")).await.unwrap();
    }
    let (attempts, transfers) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let clerks = (0..6).map(|clerk: usize| {
        let (client, attempts, transfers) = (etcd.client(), attempts.clone(), transfers.clone());
        tokio::spawn(async move {
            let isolations = [Isolation::SerializableSnapshot, Isolation::Serializable, Isolation::RepeatableReads];
            for round in 0..20 {
                let (from, to) = ((clerk + round) % ACCOUNTS, (clerk * 2 + round * 3 + 1) % ACCOUNTS);
                if from != to {
                    transfers.fetch_add(1, Ordering::Relaxed);
                    transfer(&client, isolations[clerk % 3], from, to, &attempts).await;
                }
            }
        })
    });
    for clerk in clerks.collect::<Vec<_>>() {
        soon(clerk).await.unwrap();
    }
    let mut sum = 0;
    for kv in client.get(Get::prefix("account/")).await.unwrap().kvs {
        sum += number(&kv.value);
    }
    assert_eq!(sum, 100 * ACCOUNTS as i64);
    let [attempts, transfers] = [attempts, transfers].map(|count| count.load(Ordering::Relaxed));
    assert!(attempts > transfers, "{attempts} attempts: without contention it proves little");
}

fn number(text: &[u8]) -> i64 {
    String::from_utf8_lossy(text).parse().unwrap()
}

async fn transfer(client: &Client, isolation: Isolation, from: usize, to: usize, attempts: &AtomicUsize) {
    let moved = client.stm(isolation, |tx| async move {
        attempts.fetch_add(1, Ordering::Relaxed);
        let (from, to) = (format!("account/{from}"), format!("account/{to}"));
        let has = number(&tx.get(from.clone()).await?.expect("it is there"));
        let gets = number(&tx.get(to.clone()).await?.expect("it is there"));
        let amount = has.min(7);
        tx.put(from.clone(), (has - amount).to_string());
        tx.put(to, (gets + amount).to_string());
        // A transaction reads what it has written.
        assert_eq!(number(&tx.get(from).await?.expect("it was put")), has - amount);
        Ok::<(), Error>(())
    });
    moved.await.unwrap();
}

async fn a_snapshot_sees_no_half_of_a_transaction(store: Store) {
    let etcd = Etcd::of(store, 1).await;
    let client = etcd.client();
    let both = |value: &str| {
        Txn::new().then(Op::put(Put::new("a", value.to_string()))).then(Op::put(Put::new("b", value.to_string())))
    };
    client.txn(both("1")).await.unwrap();
    let (other, runs) = (client.clone(), AtomicUsize::new(0));
    let seen = client
        .stm(Isolation::SerializableSnapshot, |tx| {
            let (other, first) = (other.clone(), runs.fetch_add(1, Ordering::Relaxed) == 0);
            async move {
                let a = tx.get("a").await?;
                if first {
                    other.txn(both("2")).await?;
                }
                let b = tx.get("b").await?;
                assert_eq!(a, b, "both are of the revision of the first read");
                tx.put("seen", a.clone().unwrap());
                Ok::<_, Error>(a.unwrap())
            }
        })
        .await
        .unwrap();
    assert_eq!((seen.as_ref(), runs.load(Ordering::Relaxed)), (&b"2"[..], 2), "the first run was not committed");
    // An error writes nothing.
    let refused = client.stm(Isolation::default(), |tx| async move {
        tx.put("seen", "never");
        Err::<(), _>(Error::NotLeader)
    });
    assert_eq!(refused.await, Err(Error::NotLeader));
    // What was written since the first read must not be overwritten, though it was not read.
    let runs = AtomicUsize::new(0);
    let overwritten = client.stm(Isolation::SerializableSnapshot, |tx| {
        let (other, first) = (other.clone(), runs.fetch_add(1, Ordering::Relaxed) == 0);
        async move {
            tx.get("a").await?;
            if first {
                other.put(Put::new("unread", "theirs")).await?;
            }
            tx.put("unread", "ours");
            tx.delete("b");
            Ok::<_, Error>(())
        }
    });
    overwritten.await.unwrap();
    assert_eq!(runs.load(Ordering::Relaxed), 2);
    assert_eq!(client.get(Get::key("seen")).await.unwrap().kvs[0].value, "2");
    assert_eq!(client.get(Get::key("b")).await.unwrap().count, 0);
}

async fn a_namespace_hides_its_prefix_everywhere(store: Store) {
    let etcd = Etcd::of(store, 1).await;
    let outside = etcd.client();
    let client = outside.namespaced("a/").namespaced("b/");
    for key in ["a/a", "a/b", "a/b0", "a/c"] {
        outside.put(Put::new(key, "outside")).await.unwrap();
    }
    let mut watcher = client.watch(Watch::all().prev_kv()).await.unwrap();
    let lease = LeaseId(client.lease_grant(60, LeaseId(0)).await.unwrap().id);
    outside.put(Put::new("elsewhere", "v").lease(lease)).await.unwrap();
    client.put(Put::new("k", "1").lease(lease)).await.unwrap();
    assert_eq!(client.put(Put::new("k", "2").lease(lease).prev_kv()).await.unwrap().prev_kv.unwrap().key, "k");
    assert_eq!(outside.get(Get::key("a/b/k")).await.unwrap().kvs[0].value, "2");
    assert_eq!(client.lease_time_to_live(lease, true).await.unwrap().keys, ["k"]);
    let all = client.get(Get::new(Keys::all())).await.unwrap();
    assert_eq!(all.kvs.iter().map(|kv| kv.key.as_ref()).collect::<Vec<_>>(), [b"k"]);
    let nested = Txn::new().then(Op::get(Get::prefix("")));
    let txn = Txn::new().when(Compare::value("k").equals("2")).then(Op::txn(nested)).then(Op::get(Get::key("k")));
    let answer = format!("{:?}", client.txn(txn).await.unwrap());
    assert!(answer.contains("succeeded: true") && !answer.contains("a/b/k"), "{answer}");
    let deleted = client.delete(Delete::new(Keys::all()).prev_kv()).await.unwrap();
    assert_eq!((deleted.deleted, deleted.prev_kvs[0].key.as_ref()), (1, &b"k"[..]));
    let mut seen = Vec::new();
    while seen.len() < 3 {
        for event in soon(watcher.next()).await.unwrap().events {
            assert_eq!(event.kv.unwrap().key, "k");
            seen.extend(event.prev_kv.map_or(Some(String::new()), |kv| String::from_utf8(kv.key.to_vec()).ok()));
        }
    }
    assert_eq!(seen, ["", "k", "k"]);
    assert_eq!(outside.get(Get::prefix("a/").count_only()).await.unwrap().count, 4);
    // Locks of two namespaces are two locks.
    let session = client.session(30).await.unwrap();
    let _lock = session.lock("name").await.unwrap();
    assert!(outside.session(30).await.unwrap().try_lock("name").await.unwrap().is_some());
    assert!(client.session(30).await.unwrap().try_lock("name").await.unwrap().is_none());
}

async fn endpoints_follow_the_members(store: Store) {
    let mut etcd = Etcd::of(store, 3).await;
    let urls = etcd.urls();
    let options = client::Options {
        sync_interval: Some(Duration::from_millis(100)),
        balance: client::Balance::RoundRobin,
        ..client::Options::default()
    };
    let client = Client::with_options(&urls[..1], options).unwrap();
    let deadline = Instant::now() + SOON;
    while client.endpoints().len() < 3 {
        assert!(Instant::now() < deadline, "the others are not found");
        // The client tells nobody of it: it can only be asked again.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // The only endpoint it was given is gone.
    etcd.kill(0);
    let put = async {
        while let Err(error) = client.put(Put::new("k", "v")).await {
            assert!(error.is_transient(), "{error}");
        }
    };
    soon(put).await;
}
