//! Random histories against a model so plain that it can be believed: the whole map, kept once for each revision.

mod common;

use std::collections::BTreeMap;

use common::Bench;
use proptest::prelude::*;
use proto::{
    EtcdError, KeyRange, Revision,
    command::{command::Op, outcome},
    etcdserverpb::{
        CompactionRequest, DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, request_op::Request,
    },
    mvccpb::{KeyValue, event::EventType},
};
use storage::ReadError;

type Map = BTreeMap<Vec<u8>, KeyValue>;

struct Model {
    /// The map at each revision from 1 on.
    at: Vec<Map>,
    /// Of each revision from 1 on: key, put or delete.
    events: Vec<Vec<(Vec<u8>, bool)>>,
    compacted: i64,
}

impl Model {
    fn revision(&self) -> i64 {
        self.at.len() as i64
    }

    fn map(&self, revision: i64) -> &Map {
        &self.at[revision as usize - 1]
    }

    fn write(&mut self, changes: &[(Vec<u8>, Option<Vec<u8>>)]) {
        let revision = self.revision() + 1;
        let mut map = self.map(revision - 1).clone();
        let mut events = Vec::new();
        for (key, value) in changes {
            let before = map.get(key).cloned();
            match value {
                Some(value) => {
                    let kv = KeyValue {
                        key: key.clone().into(),
                        value: value.clone().into(),
                        mod_revision: revision,
                        create_revision: before.as_ref().map_or(revision, |kv| kv.create_revision),
                        version: before.map_or(0, |kv| kv.version) + 1,
                        lease: 0,
                    };
                    map.insert(key.clone(), kv);
                    events.push((key.clone(), true));
                }
                None if before.is_some() => {
                    map.remove(key);
                    events.push((key.clone(), false));
                }
                None => {}
            }
        }
        if !events.is_empty() {
            self.at.push(map);
            self.events.push(events);
        }
    }

    fn range(&self, range: &KeyRange, revision: i64) -> Vec<KeyValue> {
        self.map(revision).values().filter(|kv| range.contains(&kv.key)).cloned().collect()
    }
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8),
    Delete(u8, u8),
    /// Several writes in one transaction.
    Txn(Vec<(u8, Option<u8>)>),
    /// Puts that are applied in one batch.
    Batch(Vec<(u8, u8)>),
    /// This many revisions before the newest.
    Compact(u8),
    Range(u8, u8, u8, u8),
    Events(u8, u8, u8),
    Crash,
    Reopen,
    Flush,
    WaitCompacted,
}

fn step() -> impl Strategy<Value = Step> {
    let key = || 0u8..12;
    prop_oneof![
        6 => (key(), any::<u8>()).prop_map(|(key, value)| Step::Put(key, value)),
        2 => (key(), key()).prop_map(|(from, to)| Step::Delete(from, to)),
        2 => proptest::collection::btree_map(key(), any::<Option<u8>>(), 1..5)
            .prop_map(|ops| Step::Txn(ops.into_iter().collect())),
        2 => proptest::collection::vec((key(), any::<u8>()), 1..20).prop_map(Step::Batch),
        1 => (0u8..20).prop_map(Step::Compact),
        6 => (key(), key(), any::<u8>(), 0u8..6).prop_map(|(a, b, c, d)| Step::Range(a, b, c, d)),
        3 => (key(), key(), any::<u8>()).prop_map(|(a, b, c)| Step::Events(a, b, c)),
        1 => Just(Step::Crash),
        1 => Just(Step::Reopen),
        1 => Just(Step::Flush),
        1 => Just(Step::WaitCompacted),
    ]
}

/// Keys that are prefixes of each other, and have zero bytes.
fn key(n: u8) -> Vec<u8> {
    let keys: [&[u8]; 12] =
        [b"\0", b"\0\0", b"a", b"a\0", b"a\0\0", b"a\0\x01", b"a\x01", b"aa", b"b", b"b\xff", b"\xff", b"\xff\xff"];
    keys[usize::from(n)].to_vec()
}

fn put(key: Vec<u8>, value: u8) -> PutRequest {
    PutRequest { key: key.into(), value: vec![value].into(), ..Default::default() }
}

fn check_range(bench: &Bench, model: &Model, range: (Vec<u8>, Vec<u8>), revision: i64, limit: i64) {
    let request = RangeRequest {
        key: range.0.clone().into(),
        range_end: range.1.clone().into(),
        revision,
        limit,
        ..Default::default()
    };
    let result = bench.range(&request);
    let revision = if revision == 0 { model.revision() } else { revision };
    match result {
        Err(ReadError::Request(EtcdError::Compacted)) => assert!(revision < model.compacted),
        Err(ReadError::Request(EtcdError::FutureRev)) => assert!(revision > model.revision()),
        Err(error) => panic!("{error}"),
        Ok(response) => {
            assert!(revision >= model.compacted && revision <= model.revision());
            let mut expected = model.range(&KeyRange::new(range.0.into(), range.1.into()), revision);
            assert_eq!(response.count, expected.len() as i64);
            assert_eq!(response.more, limit > 0 && expected.len() as i64 > limit);
            if limit > 0 {
                expected.truncate(limit as usize);
            }
            assert_eq!(response.kvs, expected, "at revision {revision}");
        }
    }
}

fn check_events(bench: &Bench, model: &Model, range: &KeyRange, from: i64) {
    let mut expected = Vec::new();
    for revision in from..=model.revision() {
        for (sub, (key, is_put)) in model.events[revision as usize - 1].iter().enumerate() {
            if range.contains(key) {
                expected.push((Revision::new(revision, sub as i64), key.clone(), *is_put));
            }
        }
    }
    let mut found = Vec::new();
    let mut next = from;
    while next <= model.revision() {
        // Small pieces, so that there are many.
        match bench.store.events(range, next, i64::MAX, 3) {
            Ok((events, then)) => {
                assert!(then > next);
                for event in events {
                    let before = event.revision.main - 1;
                    let previous = bench.store.previous(&event).unwrap();
                    if before >= model.compacted.max(1) {
                        let known = model.map(before).get(event.kv.key.as_ref());
                        // A key may be written twice in a transaction's revision only by a delete and a put.
                        assert_eq!(previous.as_ref(), known);
                    }
                    found.push((event.revision, event.kv.key.to_vec(), event.kind == EventType::Put));
                }
                next = then;
            }
            Err(ReadError::Request(EtcdError::Compacted)) => {
                assert!(from < model.compacted);
                return;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(from >= model.compacted || from > model.revision());
    assert_eq!(found, expected);
}

fn write(bench: &mut Bench, model: &mut Model, op: Op, changes: &[(Vec<u8>, Option<Vec<u8>>)]) {
    let outcome = bench.apply(op);
    assert!(!matches!(outcome.result, Some(outcome::Result::Failure(_))), "{outcome:?}");
    model.write(changes);
    assert_eq!(bench.store.revision(), model.revision());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_store_behaves_as_the_model_does(steps in proptest::collection::vec(step(), 1..120)) {
        let mut bench = Bench::new();
        let mut model = Model { at: vec![Map::new()], events: vec![Vec::new()], compacted: -1 };
        for step in steps {
            match step {
                Step::Put(k, value) => {
                    write(&mut bench, &mut model, Op::Put(put(key(k), value)), &[(key(k), Some(vec![value]))]);
                }
                Step::Delete(from, to) => {
                    let range = KeyRange::new(key(from).into(), key(to).into());
                    let gone: Vec<_> =
                        model.range(&range, model.revision()).iter().map(|kv| (kv.key.to_vec(), None)).collect();
                    let request = DeleteRangeRequest {
                        key: key(from).into(), range_end: key(to).into(), ..Default::default()
                    };
                    write(&mut bench, &mut model, Op::DeleteRange(request), &gone);
                }
                Step::Txn(ops) => {
                    let success = ops.iter().map(|(k, value)| {
                        let request = match value {
                            Some(value) => Request::RequestPut(put(key(*k), *value)),
                            None => Request::RequestDeleteRange(DeleteRangeRequest {
                                key: key(*k).into(), ..Default::default()
                            }),
                        };
                        RequestOp { request: Some(request) }
                    });
                    let txn = TxnRequest { success: success.collect(), ..Default::default() };
                    let changes: Vec<_> = ops.iter().map(|(k, value)| (key(*k), value.map(|v| vec![v]))).collect();
                    write(&mut bench, &mut model, Op::Txn(txn), &changes);
                }
                Step::Batch(puts) => {
                    bench.apply_all(puts.iter().map(|(k, value)| Op::Put(put(key(*k), *value))));
                    puts.iter().for_each(|(k, value)| model.write(&[(key(*k), Some(vec![*value]))]));
                }
                Step::Compact(back) => {
                    let revision = model.revision() - i64::from(back);
                    let op = Op::Compact(CompactionRequest { revision, physical: false });
                    match bench.apply(op).result {
                        Some(outcome::Result::Compact(_)) => {
                            assert!(revision > model.compacted);
                            model.compacted = revision;
                        }
                        Some(outcome::Result::Failure(_)) => assert!(revision <= model.compacted),
                        other => panic!("{other:?}"),
                    }
                }
                Step::Range(from, to, back, limit) => {
                    let revision = (model.revision() + 1 - i64::from(back % 30)).max(0);
                    check_range(&bench, &model, (key(from), key(to)), revision, limit.into());
                }
                Step::Events(from, to, back) => {
                    let first = (model.revision() + 1 - i64::from(back % 40)).max(1);
                    check_events(&bench, &model, &KeyRange::new(key(from).into(), key(to).into()), first);
                }
                Step::Crash => bench.crash(),
                Step::Reopen => bench.reopen(),
                Step::Flush => drop(bench.store.flush().unwrap()),
                Step::WaitCompacted => futures::executor::block_on(bench.store.wait_compacted(model.compacted)).unwrap(),
            }
        }
        let hash = bench.store.hash_kv(0).unwrap();
        bench.crash();
        assert_eq!(bench.store.hash_kv(0).unwrap(), hash);
        for revision in model.compacted.max(1)..=model.revision() {
            check_range(&bench, &model, (vec![0], vec![0]), revision, 0);
        }
        check_events(&bench, &model, &KeyRange::all(), model.compacted.max(1));
    }
}
