//! Leases that are kept alive, revoked, or left to expire, with keys that must go with them: not before, not one by one,
//! and not much later.

use std::time::Duration;

use jepsen::check::{
    history::{Answer, Keys, Put, Range, Request, Response, Txn, TxnOp, WatchRequest},
    lease,
};
use rand::Rng as _;

use super::{Body, Case, Finding, Workload};
use crate::test::{
    client::{Choice, Client, Context},
    watching,
};

const PREFIX: &str = "lease/";
/// A member that becomes leader gives each lease its whole time again.
const GONE_LIMIT: Duration = Duration::from_secs(20);
/// Clocks of members go at one rate here. A lease's end waits for a leader, and a new one extends it.
const BOUNDS: lease::Bounds = lease::Bounds { early_ns: 200_000_000, late_ns: 60_000_000_000 };
const POLL_INTERVAL: Duration = Duration::from_millis(150);

pub const LEASE: Workload = Workload {
    name: "lease",
    about: "leases expire not early, and then with all their keys at one revision",
    processes: 8,
    rate: 10.0,
    process: |context, index| Box::pin(run(context, index)),
    observers: 1,
    observe: |context, _| Box::pin(watch(context)),
    finish,
    check,
    ..Workload::PLAIN
};

async fn run(context: Context, index: u64) -> anyhow::Result<()> {
    let mut client = Client::choosing(&context, index, Choice::AfterFailure);
    while client.goes_on().await {
        life(&mut client).await;
    }
    Ok(())
}

/// Sees in which revisions the keys of leases go.
async fn watch(context: Context) -> anyhow::Result<()> {
    let mut client = Client::choosing(&context, 0, Choice::AfterFailure);
    let request = WatchRequest { keys: Keys::prefix(PREFIX), prev_kv: true, ..WatchRequest::default() };
    while !client.is_stopped() {
        watching::watch(&mut client, request.clone(), None).await;
    }
    Ok(())
}

fn keys(lease: i64) -> Keys {
    Keys::prefix(format!("{PREFIX}{lease:08}/"))
}

/// From grant to end.
async fn life(client: &mut Client) {
    let lease = client.recorder().lease();
    let ttl_s = client.random.random_range(2..5);
    if client.call(Request::LeaseGrant { lease, ttl_s }).await.is_none() {
        return;
    }
    if client.call(attach(client, lease)).await.is_none() {
        return;
    }
    let renewals = client.random.random_range(0..5);
    for _ in 0..renewals {
        let pause = Duration::from_secs_f64(ttl_s as f64 * client.random.random_range(0.1..0.6));
        if !client.wait(pause).await || !renew(client, lease).await {
            return;
        }
    }
    match client.random.random_range(0..4) {
        0 => {
            client.call(Request::LeaseRevoke { lease }).await;
            client.call(read(lease)).await;
        }
        _ => see_it_go(client, lease).await,
    }
}

/// All its keys at once, so that none has a time of its own.
fn attach(client: &Client, lease: i64) -> Request {
    let put = |key: u32| {
        let key = format!("{PREFIX}{lease:08}/{key}");
        TxnOp::Put(Put { key: key.into(), value: client.process().to_string().into(), lease, ..Put::default() })
    };
    Request::Txn(Txn { success: (0..3).map(put).collect(), ..Txn::default() })
}

fn read(lease: i64) -> Request {
    Request::Range(Range { keys: keys(lease), ..Range::default() })
}

/// False if the lease is not there any more.
async fn renew(client: &mut Client, lease: i64) -> bool {
    let answer = client.call(Request::LeaseKeepAlive { lease }).await;
    client.call(read(lease)).await;
    !matches!(answer, Some(Response { answer: Answer::LeaseKeepAlive { ttl_s: ..=0, .. }, .. }))
}

/// Looks at the lease and its keys until they are gone, or for as long as they may be there at most.
async fn see_it_go(client: &mut Client, lease: i64) {
    let begin = std::time::Instant::now();
    while begin.elapsed() < GONE_LIMIT && client.wait(POLL_INTERVAL).await {
        if client.random.random() {
            client.call(Request::LeaseTimeToLive { lease, keys: true }).await;
        }
        let Some(response) = client.call(read(lease)).await else { continue };
        if matches!(response.answer, Answer::Range { count: 0, .. }) {
            // Once more: what is gone does not come back.
            client.call(read(lease)).await;
            client.call(Request::LeaseTimeToLive { lease, keys: true }).await;
            return;
        }
    }
}

fn finish(context: Context) -> Body {
    let all = Request::Range(Range { keys: Keys::prefix(PREFIX), ..Range::default() });
    super::ask_each_member(context, vec![all])
}

fn check(case: &Case) -> Vec<Finding> {
    vec![case.against_truth("never early, gone after", |truth| lease::check(case.history, truth, BOUNDS))]
}
