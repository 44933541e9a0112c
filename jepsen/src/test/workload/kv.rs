//! All of KV on a few keys: ranges of many keys, old revisions, transactions in transactions, deletes, leases that
//! take their keys along. The whole store must be linearizable.

use jepsen::check::history::{
    Answer, Compare, CompareResult, CompareTarget, DeleteRange, KeyValue, Keys, Put, Range, Request, Txn, TxnOp,
};
use jepsen::check::{linearizability, store::Store};
use rand::Rng as _;

use super::{Body, Case, Finding, Workload};
use crate::test::client::{Client, Context};

const PREFIX: &str = "kv/";
const KEYS: u32 = 6;
/// No lease of this workload expires while it runs.
const TTL_S: i64 = 3600;

pub const KV: Workload = Workload {
    name: "kv",
    about: "ranges, transactions, deletes and leases together are linearizable",
    processes: 6,
    rate: 20.0,
    // The model knows each revision, so nobody else may write.
    shares: false,
    process: |context, index| Box::pin(run(context, index)),
    finish,
    check,
    ..Workload::PLAIN
};

struct Process {
    client: Client,
    /// What was read last.
    seen: Vec<KeyValue>,
    /// Granted to this process and not revoked by it.
    leases: Vec<i64>,
}

async fn run(context: Context, index: u64) -> anyhow::Result<()> {
    let mut process = Process { client: Client::new(&context, index), seen: Vec::new(), leases: Vec::new() };
    while process.client.goes_on().await {
        let request = process.choose();
        if let Some(response) = process.client.call(request).await {
            process.learn(response.answer);
        }
    }
    Ok(())
}

impl Process {
    fn choose(&mut self) -> Request {
        match self.client.random.random_range(0..100) {
            0..25 => Request::Put(self.put()),
            25..45 => Request::Range(self.range()),
            45..50 => Request::Range(Range { serializable: true, ..self.range() }),
            50..60 => Request::DeleteRange(self.delete()),
            60..88 => Request::Txn(self.txn(2)),
            88..94 => Request::LeaseGrant { lease: self.client.recorder().lease(), ttl_s: TTL_S },
            94..98 => match self.leases.pop() {
                Some(lease) => Request::LeaseRevoke { lease },
                None => Request::Put(self.put()),
            },
            _ => Request::Range(Range { revision: self.old_revision(), ..self.range() }),
        }
    }

    fn learn(&mut self, answer: Answer) {
        match answer {
            Answer::Range { kvs, .. } => self.seen = kvs,
            Answer::LeaseGrant { lease, .. } => self.leases.push(lease),
            _ => (),
        }
    }

    fn key(&mut self) -> String {
        format!("{PREFIX}{}", self.client.random.random_range(0..KEYS))
    }

    fn keys(&mut self) -> Keys {
        let key = self.key();
        match self.client.random.random_range(0..4) {
            0 => Keys::prefix(PREFIX),
            1 => Keys { range_end: format!("{PREFIX}{KEYS}").into(), ..Keys::one(key) },
            _ => Keys::one(key),
        }
    }

    fn put(&mut self) -> Put {
        let lease = match self.leases.last() {
            Some(lease) if self.client.random.random_ratio(1, 4) => *lease,
            _ => 0,
        };
        Put {
            key: self.key().into(),
            value: self.client.recorder().value().to_string().into(),
            lease,
            prev_kv: self.client.random.random_ratio(1, 3),
            ..Put::default()
        }
    }

    fn range(&mut self) -> Range {
        let limit = if self.client.random.random_ratio(1, 5) { self.client.random.random_range(1..4) } else { 0 };
        Range {
            keys: self.keys(),
            limit,
            keys_only: self.client.random.random_ratio(1, 10),
            count_only: self.client.random.random_ratio(1, 10),
            ..Range::default()
        }
    }

    fn old_revision(&mut self) -> i64 {
        let newest = self.client.recorder().revision();
        (newest - self.client.random.random_range(0..100)).max(1)
    }

    fn delete(&mut self) -> DeleteRange {
        DeleteRange { keys: self.keys(), prev_kv: self.client.random.random() }
    }

    /// Each branch writes a key at most once, or it would be refused.
    fn txn(&mut self, depth: u32) -> Txn {
        let compares = (0..self.client.random.random_range(0..3)).map(|_| self.compare()).collect();
        Txn { compares, success: self.branch(depth), failure: self.branch(depth) }
    }

    fn branch(&mut self, depth: u32) -> Vec<TxnOp> {
        let mut ops = Vec::new();
        let mut writes = 0;
        for _ in 0..self.client.random.random_range(0..4) {
            ops.push(match self.client.random.random_range(0..8) {
                0..3 if writes == 0 => {
                    writes += 1;
                    TxnOp::Put(self.put())
                }
                3 if writes == 0 => {
                    writes += 1;
                    TxnOp::DeleteRange(self.delete())
                }
                4 if depth > 1 && writes == 0 => {
                    writes += 1;
                    TxnOp::Txn(self.txn(depth - 1))
                }
                _ => TxnOp::Range(self.range()),
            });
        }
        ops
    }

    fn compare(&mut self) -> Compare {
        let results = [CompareResult::Equal, CompareResult::NotEqual, CompareResult::Greater, CompareResult::Less];
        let result = results[self.client.random.random_range(0..4)];
        // Comparing with what was seen makes both outcomes likely.
        let seen = match self.seen.len() {
            0 => KeyValue { key: self.key().into(), ..KeyValue::default() },
            count => self.seen[self.client.random.random_range(0..count)].clone(),
        };
        let target = match self.client.random.random_range(0..5) {
            0 => CompareTarget::Value(seen.value),
            1 => CompareTarget::Version(seen.version),
            2 => CompareTarget::CreateRevision(seen.create_revision),
            3 => CompareTarget::ModRevision(seen.mod_revision),
            _ => CompareTarget::Lease(seen.lease),
        };
        Compare { keys: Keys { key: seen.key, ..Keys::default() }, result, target }
    }
}

fn finish(context: Context) -> Body {
    super::ask_each_member(context, vec![Request::Range(Range { keys: Keys::prefix(PREFIX), ..Range::default() })])
}

fn check(case: &Case) -> Vec<Finding> {
    let judged = linearizability::check_store(case.history, &Store::default());
    vec![Finding::of("the whole store is linearizable", judged, case.history)]
}
