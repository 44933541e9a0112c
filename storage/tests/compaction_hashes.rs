//! Hashes at compactions: of the state before each, whatever has been removed since.

mod common;

use common::Bench;
use proto::{
    EtcdError,
    command::command::Op,
    etcdserverpb::{CompactionRequest, DeleteRangeRequest, PutRequest},
};
use storage::{HashKv, ReadError};

fn put(key: &'static str, value: String) -> Op {
    Op::Put(PutRequest { key: key.into(), value: value.into(), ..Default::default() })
}

fn delete(key: &'static str) -> Op {
    Op::DeleteRange(DeleteRangeRequest { key: key.into(), ..Default::default() })
}

fn compact(revision: i64) -> Op {
    Op::Compact(CompactionRequest { revision, ..Default::default() })
}

#[test]
fn the_hash_from_before_a_compaction_is_answered_at_its_revision() {
    let (mut keeping, mut other) = (Bench::new(), Bench::new());
    keeping.store.keep_compaction_hashes();
    let mut expected: Vec<HashKv> = Vec::new();
    for round in 0..12 {
        let ops = || [put("a", format!("{round}")), put("b", "b".into()), delete("b"), put("c", format!("{round}"))];
        for bench in [&mut keeping, &mut other] {
            bench.apply_all(ops());
        }
        // Not the newest revision: what comes after it is not in the hash.
        let revision = keeping.store.revision() - 1;
        expected.push(other.store.hash_kv(revision).unwrap());
        for bench in [&mut keeping, &mut other] {
            bench.apply(compact(revision));
            futures::executor::block_on(bench.store.wait_compacted(revision)).unwrap();
        }
        let HashKv { hash, compact_revision, hash_revision, .. } = expected[round];
        let kept = keeping.store.hash_kv(revision).unwrap();
        assert_eq!((kept.hash, kept.compact_revision, kept.hash_revision), (hash, compact_revision, hash_revision));
        assert_eq!(kept.revision, keeping.store.revision());
        assert_eq!(kept.compact_revision, if round == 0 { -1 } else { expected[round - 1].hash_revision });
    }
    let kept: Vec<(i64, u32)> =
        keeping.store.compaction_hashes().iter().map(|kept| (kept.hash_revision, kept.hash)).collect();
    let newest: Vec<(i64, u32)> = expected[2..].iter().map(|hash| (hash.hash_revision, hash.hash)).collect();
    assert_eq!(kept, newest);
    assert!(other.store.compaction_hashes().is_empty());
    let forgotten = keeping.store.hash_kv(expected[0].hash_revision);
    assert!(matches!(forgotten, Err(ReadError::Request(EtcdError::Compacted))));
}

#[test]
fn compactions_that_come_at_once_are_hashed_one_by_one() {
    let (mut keeping, mut other) = (Bench::new(), Bench::new());
    keeping.store.keep_compaction_hashes();
    for bench in [&mut keeping, &mut other] {
        bench.apply_all((0..9).map(|i| put("a", format!("{i}"))));
    }
    keeping.apply_all([compact(4), compact(6), compact(8)]);
    futures::executor::block_on(keeping.store.wait_compacted(8)).unwrap();
    for (kept, revision) in keeping.store.compaction_hashes().into_iter().zip([4, 6, 8]) {
        let before = other.store.hash_kv(revision).unwrap();
        assert_eq!((kept.hash, kept.compact_revision), (before.hash, before.compact_revision));
        other.apply(compact(revision));
        futures::executor::block_on(other.store.wait_compacted(revision)).unwrap();
    }
    assert_eq!(keeping.store.compaction_hashes().len(), 3);
    assert_eq!(keeping.store.hash_kv(0).unwrap(), other.store.hash_kv(0).unwrap());
}
