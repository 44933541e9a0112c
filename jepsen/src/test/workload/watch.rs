//! Watches of every kind beside writers, deletes, transactions and compactions. They are resumed when they break,
//! where they broke, on another member.

use jepsen::check::history::{DeleteRange, Keys, Put, Range, Request, Txn, TxnOp, WatchRequest};
use rand::Rng as _;

use super::{Body, Case, Finding, Workload};
use crate::test::{
    client::{Choice, Client, Context},
    watching,
};

const PREFIX: &str = "watch/";
const KEYS: u32 = 8;
const WRITERS: u64 = 5;
const WATCHERS: u64 = 8;
/// The watches must not only show what is new.
const COMPACTION_LAG: i64 = 100;

pub const WATCH: Workload = Workload {
    name: "watch",
    about: "watches are ordered, unique, atomic, reliable, resumable, bookmarkable, and tell what was before",
    processes: WRITERS,
    rate: 30.0,
    process: |context, index| Box::pin(run(context, index)),
    observers: WATCHERS,
    observe: |context, kind| Box::pin(watch(context, kind)),
    finish,
    check,
    ..Workload::PLAIN
};

async fn run(context: Context, index: u64) -> anyhow::Result<()> {
    match index {
        0 => super::compact(Client::choosing(&context, index, Choice::AfterFailure), COMPACTION_LAG).await,
        _ => write(Client::new(&context, index)).await,
    }
}

fn key(client: &mut Client) -> String {
    format!("{PREFIX}{}", client.random.random_range(0..KEYS))
}

fn put(client: &mut Client) -> Put {
    let value = client.recorder().value().to_string().into();
    Put { key: key(client).into(), value, ..Put::default() }
}

async fn write(mut client: Client) -> anyhow::Result<()> {
    while client.goes_on().await {
        let request = match client.random.random_range(0..10) {
            0..2 => Request::DeleteRange(DeleteRange { keys: Keys::one(key(&mut client)), prev_kv: false }),
            2 => Request::DeleteRange(DeleteRange { keys: Keys::prefix(PREFIX), prev_kv: false }),
            3..5 => Request::Txn(several(&mut client)),
            _ => Request::Put(put(&mut client)),
        };
        client.call(request).await;
    }
    Ok(())
}

/// Several keys at one revision: their events must come together.
fn several(client: &mut Client) -> Txn {
    let first = client.random.random_range(0..KEYS);
    let mut success = Vec::new();
    for key in 0..client.random.random_range(2..5) {
        let key = format!("{PREFIX}{}", (first + key) % KEYS);
        success.push(match client.random.random_ratio(1, 4) {
            true => TxnOp::DeleteRange(DeleteRange { keys: Keys::one(key), prev_kv: false }),
            false => TxnOp::Put(Put { key: key.into(), ..put(client) }),
        });
    }
    Txn { success, ..Txn::default() }
}

/// Each process has a kind of watch of its own, and begins new ones, some of them in the past.
async fn watch(context: Context, kind: u64) -> anyhow::Result<()> {
    let mut client = Client::choosing(&context, kind, Choice::AfterFailure);
    while !client.is_stopped() {
        let request = request(&mut client, kind);
        let life = client.random_ms(4_000..15_000);
        watching::watch(&mut client, request, Some(life)).await;
    }
    Ok(())
}

fn request(client: &mut Client, kind: u64) -> WatchRequest {
    let all = WatchRequest { keys: Keys::prefix(PREFIX), ..WatchRequest::default() };
    let newest = client.recorder().revision();
    let start_revision = match client.random.random_range(0..4) {
        0 => 0,
        1 => newest + 1,
        // The first that is there: what it replaced is not.
        2 => client.recorder().compacted(),
        // Perhaps compacted already.
        _ => (newest - client.random.random_range(0..3 * COMPACTION_LAG)).max(1),
    };
    let all = WatchRequest { start_revision, ..all };
    match kind % 8 {
        0 => all,
        1 => WatchRequest { prev_kv: true, ..all },
        2 => WatchRequest { keys: Keys::one(key(client)), prev_kv: true, ..all },
        3 => WatchRequest { no_put: true, prev_kv: true, ..all },
        4 => WatchRequest { no_delete: true, ..all },
        5 => WatchRequest { progress_notify: true, ..all },
        6 => WatchRequest { fragment: true, prev_kv: true, ..all },
        _ => WatchRequest { keys: Keys { range_end: format!("{PREFIX}4").into(), ..Keys::one(PREFIX) }, ..all },
    }
}

fn finish(context: Context) -> Body {
    super::ask_each_member(context, vec![Request::Range(Range { keys: Keys::prefix(PREFIX), ..Range::default() })])
}

fn check(case: &Case) -> Vec<Finding> {
    vec![case.against_truth("watches", |truth| Ok(jepsen::check::watch::check(case.history, truth, case.quiet_at)))]
}
