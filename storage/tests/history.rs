//! The history of one key: every version that is not forgotten, newest first, and no other key's.

mod common;

use common::Bench;
use proto::{
    command::command::Op,
    etcdserverpb::{CompactionRequest, DeleteRangeRequest, PutRequest},
};

fn put(key: &'static str, value: &'static str) -> Op {
    Op::Put(PutRequest { key: key.into(), value: value.into(), ..Default::default() })
}

fn delete(key: &'static str) -> Op {
    Op::DeleteRange(DeleteRangeRequest { key: key.into(), ..Default::default() })
}

/// Revisions with values, `-` for a delete.
fn shown(bench: &Bench, key: &[u8], before: i64, limit: usize) -> (String, bool) {
    let (versions, more) = bench.store.history(key, before, limit).unwrap();
    let one = |version: &storage::Version| {
        let value = version.kv.as_ref().map(|kv| String::from_utf8_lossy(&kv.value).into_owned());
        format!("{}={}", version.revision.main, value.unwrap_or_else(|| "-".into()))
    };
    (versions.iter().map(one).collect::<Vec<_>>().join(" "), more)
}

#[test]
fn a_keys_versions_come_newest_first_page_by_page() {
    let mut bench = Bench::new();
    bench.apply_all([put("a", "1"), put("ab", "x"), put("a", "2"), delete("a"), put("a", "3"), put("a\0", "y")]);
    assert_eq!(shown(&bench, b"a", 0, 10), ("6=3 5=- 4=2 2=1".into(), false));
    assert_eq!(shown(&bench, b"a", 0, 2), ("6=3 5=-".into(), true));
    assert_eq!(shown(&bench, b"a", 5, 2), ("4=2 2=1".into(), false));
    assert_eq!(shown(&bench, b"a", 2, 2), ("".into(), false));
    assert_eq!(shown(&bench, b"no", 0, 2), ("".into(), false));
}

#[test]
fn what_is_compacted_is_forgotten_whether_it_is_removed_yet_or_not() {
    let mut bench = Bench::new();
    bench.apply_all([put("a", "1"), put("a", "2"), put("b", "1"), delete("b"), put("a", "3"), put("b", "2")]);
    bench.apply(Op::Compact(CompactionRequest { revision: 5, ..Default::default() }));
    for _ in 0..2 {
        assert_eq!(shown(&bench, b"a", 0, 10), ("6=3 3=2".into(), false));
        assert_eq!(shown(&bench, b"b", 0, 10), ("7=2".into(), false), "the delete is of before");
        futures::executor::block_on(bench.store.wait_compacted(5)).unwrap();
    }
}
