//! Transactions over several keys, as clients of etcd make them: read, and write if nothing has changed meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use jepsen::check::history::{
    Answer, Compare, CompareResult, CompareTarget, Header, KeyValue, Keys, Put, Range, Request, Response, Txn, TxnOp,
    TxnResult,
};

use crate::test::{client::Unanswered, wire::Caller};

/// Keys live for so long: what is unknown about them would else become more and more.
const GENERATION_NS: u64 = 3_000_000_000;
const KEYS: u64 = 8;

/// A key of the generation that this time is in.
pub fn key_at(elapsed_ns: u64, choice: u64) -> u64 {
    elapsed_ns / GENERATION_NS * KEYS + choice % KEYS
}

/// All keys up to this time, by generation.
pub fn generations_until(elapsed_ns: u64) -> impl Iterator<Item = std::ops::Range<u64>> {
    (0..=elapsed_ns / GENERATION_NS).map(|generation| generation * KEYS..(generation + 1) * KEYS)
}

/// What was read of some keys at one revision.
pub struct View {
    pub header: Header,
    kvs: BTreeMap<u64, KeyValue>,
}

impl View {
    pub fn value(&self, key: u64) -> Option<&[u8]> {
        self.kvs.get(&key).map(|kv| &*kv.value)
    }
}

pub fn name(prefix: &str, key: u64) -> String {
    format!("{prefix}/{key}")
}

pub fn range(prefix: &str, key: u64) -> TxnOp {
    TxnOp::Range(Range { keys: Keys::one(name(prefix, key)), ..Range::default() })
}

pub fn put(prefix: &str, key: u64, value: String) -> TxnOp {
    TxnOp::Put(Put { key: name(prefix, key).into(), value: value.into(), ..Put::default() })
}

/// Reads keys at one revision. That fails without consequence.
pub async fn read(caller: &Caller, prefix: &str, keys: &BTreeSet<u64>) -> Result<View, Unanswered> {
    let reads = keys.iter().map(|key| range(prefix, *key)).collect();
    let (header, _, results) = send(caller, Txn { success: reads, ..Txn::default() })
        .await
        .map_err(|unanswered| Unanswered { certain: true, ..unanswered })?;
    let mut kvs = BTreeMap::new();
    for (key, result) in keys.iter().zip(results) {
        kvs.extend(first_kv(result).map(|kv| (*key, kv)));
    }
    Ok(View { header, kvs })
}

/// Writes values if none of the keys that were read has changed since.
pub async fn write_if_unchanged(
    caller: &Caller,
    prefix: &str,
    view: &View,
    keys: &BTreeSet<u64>,
    values: BTreeMap<u64, String>,
) -> Result<Header, Unanswered> {
    let unchanged = |key: &u64| Compare {
        keys: Keys::one(name(prefix, *key)),
        result: CompareResult::Equal,
        target: CompareTarget::ModRevision(view.kvs.get(key).map_or(0, |kv| kv.mod_revision)),
    };
    let txn = Txn {
        compares: keys.iter().map(unchanged).collect(),
        success: values.into_iter().map(|(key, value)| put(prefix, key, value)).collect(),
        failure: Vec::new(),
    };
    match send(caller, txn).await? {
        (header, true, _) => Ok(header),
        (_, false, _) => Err(Unanswered { error: "a key has changed meanwhile".to_owned(), certain: true }),
    }
}

/// Sends a transaction: the header, whether it succeeded, the results.
pub async fn send(caller: &Caller, txn: Txn) -> Result<(Header, bool, Vec<TxnResult>), Unanswered> {
    match caller.send(&Request::Txn(txn)).await {
        Ok(Response { header, answer: Answer::Txn { succeeded, results } }) => Ok((header, succeeded, results)),
        Ok(Response { answer, .. }) => unreachable!("a transaction was answered with {answer:?}"),
        Err(status) => Err(Unanswered::of(&status)),
    }
}

pub fn first_kv(result: TxnResult) -> Option<KeyValue> {
    match result {
        TxnResult::Range { kvs, .. } => kvs.into_iter().next(),
        _ => None,
    }
}
