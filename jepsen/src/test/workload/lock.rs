//! Locks and elections of the server, held by leases that their holders may fail to keep alive.
//!
//! A lock alone promises nothing about what is done under it: a holder that was paused goes on after its lease has
//! expired and another one holds the lock (Jepsen's analysis of etcd 3.4.3). So what is done is guarded by the lock's
//! key: a transaction that writes only if the key is still there, as it was created. Those effects exclude each other.
//! Effects without the guard are made too, under other keys; they are counted, and no more is asked of them.

use jepsen::check::{
    history::{Answer, Blob, Compare, CompareResult, CompareTarget, Keys, Put, Range, Request, Response, Txn, TxnOp},
    lock,
};
use rand::Rng as _;
use std::time::Duration;

use super::{Body, Case, Finding, Workload};
use crate::test::client::{Choice, Client, Context};

const LOCK: &str = "lock/mutex";
const ELECTION: &str = "lock/election";
const EFFECT: &str = "lock-effect/";
const TTL_S: i64 = 3;
/// Holders before this one have their time.
pub const LOCK_LIMIT: Duration = Duration::from_secs(10);

pub const LOCKS: Workload = Workload {
    name: "lock",
    about: "effects guarded by a lock or a leadership exclude each other",
    processes: 6,
    rate: 20.0,
    process: |context, index| Box::pin(run(context, index)),
    finish,
    check,
    ..Workload::PLAIN
};

async fn run(context: Context, index: u64) -> anyhow::Result<()> {
    let mut client = Client::choosing(&context, index, Choice::AfterFailure);
    while client.goes_on().await {
        if index % 2 == 0 { lock(&mut client).await } else { lead(&mut client).await }
    }
    Ok(())
}

async fn grant(client: &mut Client) -> Option<i64> {
    let lease = client.recorder().lease();
    client.call(Request::LeaseGrant { lease, ttl_s: TTL_S }).await?;
    Some(lease)
}

async fn lock(client: &mut Client) {
    let Some(lease) = grant(client).await else { return };
    let request = Request::Lock { name: LOCK.into(), lease };
    if let Some(Response { header, answer: Answer::Lock { key } }) = client.call_within(LOCK_LIMIT, request).await {
        let created = created(client, &key).await.unwrap_or(header.revision);
        effects(client, &key, created, lease, "mutex").await;
        if client.random.random_ratio(4, 5) {
            client.call(Request::Unlock { key }).await;
        }
    }
    // What is left of it goes with the lease, by itself if nobody revokes it.
    if client.random.random_ratio(4, 5) {
        client.call(Request::LeaseRevoke { lease }).await;
    }
}

/// A holder knows the revision at which its key was created; the answer to a lock does not tell it.
async fn created(client: &mut Client, key: &Blob) -> Option<i64> {
    let range = Range { keys: Keys { key: key.clone(), ..Keys::default() }, ..Range::default() };
    match client.call(Request::Range(range)).await?.answer {
        Answer::Range { kvs, .. } => Some(kvs.first()?.create_revision),
        _ => None,
    }
}

async fn lead(client: &mut Client) {
    let Some(lease) = grant(client).await else { return };
    let value = client.recorder().value().to_string();
    let request = Request::Campaign { name: ELECTION.into(), lease, value: value.into() };
    if let Some(Response { answer: Answer::Campaign { leader, create_revision }, .. }) =
        client.call_within(LOCK_LIMIT, request).await
    {
        effects(client, &leader, create_revision, lease, "election").await;
        if client.random.random() {
            let value = client.recorder().value().to_string();
            client.call(Request::Proclaim { leader: leader.clone(), create_revision, value: value.into() }).await;
        }
        client.call(Request::Leader { name: ELECTION.into() }).await;
        if client.random.random_ratio(4, 5) {
            client.call(Request::Resign { leader, create_revision }).await;
        }
    }
    if client.random.random_ratio(4, 5) {
        client.call(Request::LeaseRevoke { lease }).await;
    }
}

/// Does a few things under the lock. Sometimes it stays away for longer than its lease lasts.
async fn effects(client: &mut Client, key: &Blob, create_revision: i64, lease: i64, what: &str) {
    for _ in 0..client.random.random_range(1..5) {
        let pause = match client.random.random_ratio(1, 25) {
            true => Duration::from_secs(TTL_S as u64 + 2),
            false => client.random_ms(5..80),
        };
        if !client.wait(pause).await {
            return;
        }
        let value = client.recorder().value().to_string();
        let guarded = client.random.random_ratio(3, 4);
        let place = if guarded { "guarded" } else { "bare" };
        let effect = Put { key: format!("{EFFECT}{what}/{place}").into(), value: value.into(), ..Put::default() };
        let request = match guarded {
            true => Request::Txn(Txn {
                compares: vec![Compare {
                    keys: Keys { key: key.clone(), ..Keys::default() },
                    result: CompareResult::Equal,
                    target: CompareTarget::CreateRevision(create_revision),
                }],
                success: vec![TxnOp::Put(effect)],
                failure: Vec::new(),
            }),
            false => Request::Put(effect),
        };
        let answer = client.call(request).await;
        if let Some(Response { answer: Answer::Txn { succeeded: false, .. }, .. }) = answer {
            return;
        }
        client.call(Request::LeaseKeepAlive { lease }).await;
    }
}

fn finish(context: Context) -> Body {
    let effects = Request::Range(Range { keys: Keys::prefix(EFFECT), ..Range::default() });
    super::ask_each_member(context, vec![effects])
}

fn check(case: &Case) -> Vec<Finding> {
    vec![case.against_truth("guarded effects exclude each other", |truth| lock::check(case.history, truth))]
}
