//! Single keys, written, read, and exchanged if they have an expected value.
//!
//! Keys change every few seconds: the search for an order is exponential in what is under way or unknown at once, and
//! a key that many faults have gone over would collect more and more unknown writes.

use jepsen::check::{
    history::{
        Answer, Compare, CompareResult, CompareTarget, KeyValue, Keys, Put, Range, Request, Txn, TxnOp, TxnResult,
    },
    linearizability,
    store::Store,
};
use rand::Rng as _;

use super::{Body, Case, Finding, Workload};
use crate::test::client::{Client, Context};

const KEYS: u64 = 4;
const KEY_LIFE_NS: u64 = 4_000_000_000;

pub const REGISTER: Workload = Workload {
    name: "register",
    about: "writes and reads of single keys are linearizable",
    processes: 10,
    rate: 40.0,
    process: |context, index| Box::pin(run(context, index, false)),
    finish,
    check,
    ..Workload::PLAIN
};

pub const CAS: Workload = Workload {
    name: "cas",
    about: "writes, reads and compare-and-set of single keys are linearizable",
    process: |context, index| Box::pin(run(context, index, true)),
    ..REGISTER
};

async fn run(context: Context, index: u64, cas: bool) -> anyhow::Result<()> {
    let mut client = Client::new(&context, index);
    let mut seen: Option<KeyValue> = None;
    while client.goes_on().await {
        let key = key(&mut client);
        let request = match client.random.random_range(0..10) {
            0..5 => read(&key),
            5..8 if cas => exchange(&mut client, &key, seen.take().filter(|kv| *kv.key == *key.as_bytes())),
            _ => write(&client, &key),
        };
        seen = client.call(request).await.and_then(|response| first_kv(response.answer));
    }
    Ok(())
}

fn key(client: &mut Client) -> String {
    let generation = client.recorder().elapsed_ns() / KEY_LIFE_NS;
    format!("{}/{generation}/{}", client.workload(), client.random.random_range(0..KEYS))
}

fn read(key: &str) -> Request {
    Request::Range(Range { keys: Keys::one(key), ..Range::default() })
}

fn put(client: &Client, key: &str) -> Put {
    Put { key: key.into(), value: client.recorder().value().to_string().into(), ..Put::default() }
}

fn write(client: &Client, key: &str) -> Request {
    Request::Put(put(client, key))
}

/// Writes if the key is as it was seen last, or else reads it.
fn exchange(client: &mut Client, key: &str, seen: Option<KeyValue>) -> Request {
    let target = match seen {
        None => CompareTarget::CreateRevision(0),
        Some(kv) if client.random.random() => CompareTarget::ModRevision(kv.mod_revision),
        Some(kv) => CompareTarget::Value(kv.value),
    };
    let compare = Compare { keys: Keys::one(key), result: CompareResult::Equal, target };
    let success = vec![TxnOp::Put(put(client, key))];
    let failure = vec![TxnOp::Range(Range { keys: Keys::one(key), ..Range::default() })];
    Request::Txn(Txn { compares: vec![compare], success, failure })
}

fn first_kv(answer: Answer) -> Option<KeyValue> {
    let kvs = match answer {
        Answer::Range { kvs, .. } => kvs,
        Answer::Txn { results, .. } => match results.into_iter().next()? {
            TxnResult::Range { kvs, .. } => kvs,
            _ => return None,
        },
        _ => return None,
    };
    kvs.into_iter().next()
}

/// The keys of the last generation once more, from each member.
fn finish(context: Context) -> Body {
    let generation = context.recorder.elapsed_ns() / KEY_LIFE_NS;
    let workload = context.workload;
    let names = (generation.saturating_sub(1)..=generation)
        .flat_map(|generation| (0..KEYS).map(move |key| format!("{workload}/{generation}/{key}")));
    super::ask_each_member(context, names.map(|key| read(&key)).collect())
}

fn check(case: &Case) -> Vec<Finding> {
    let judged = linearizability::check_keys(case.history, &Store::default());
    vec![Finding::of("each key is linearizable", judged, case.history)]
}
