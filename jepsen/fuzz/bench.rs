//! Stores for the fuzzers.

#![allow(dead_code)] // Each target uses a part of it.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use prost::Message;
use proto::command::{Command, Outcome, command::Op};
use proto::etcdserverpb::{CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, PutRequest};
use storage::{Applier, Change, LogEntry, Observer, Options, Payload, Store};
use tempfile::TempDir;

/// Inputs that share a store: opening one takes longer than most of them.
const INPUTS_PER_STORE: usize = 64;

struct Silent;

impl Observer for Silent {
    fn applied(&self, _: Change) {}
    fn restored(&self, _: i64, _: i64) {}
}

struct Bench {
    store: Store,
    applier: Applier,
    index: u64,
    _dir: TempDir,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a folder");
        let options = Options { observer: Arc::new(Silent), cache_bytes: 1 << 20 };
        let store = Store::open(dir.path(), options).expect("an empty store opens");
        Bench { applier: store.applier(), store, index: 0, _dir: dir }
    }

    fn apply(&mut self, commands: &[Bytes]) -> Vec<Outcome> {
        let entries: Vec<LogEntry> = commands
            .iter()
            .map(|command| {
                self.index += 1;
                LogEntry { index: self.index, term: 1, payload: Payload::Command(command.clone()) }
            })
            .collect();
        self.applier.apply(&entries).expect("a command that decodes is applied or refused")
    }

    fn state(&self) -> (u32, i64) {
        futures::executor::block_on(self.store.wait_compacted(self.store.compacted_revision())).expect("compaction works");
        self.store.hash().expect("the store is read")
    }
}

/// Applies the commands as one batch, and one by one, and compares.
pub fn apply_twice(commands: &[Command]) {
    static BENCHES: Mutex<Option<(usize, Bench, Bench)>> = Mutex::new(None);
    let mut benches = BENCHES.lock().expect("a panic ends the process");
    let (inputs, batched, single) = benches.get_or_insert_with(|| (0, Bench::new(), Bench::new()));
    let commands: Vec<Bytes> = commands.iter().map(|command| command.encode_to_vec().into()).collect();
    let together = batched.apply(&commands);
    let one_by_one: Vec<Outcome> =
        commands.iter().flat_map(|command| single.apply(std::slice::from_ref(command))).collect();
    assert_eq!(together, one_by_one);
    assert_eq!(batched.state(), single.state());
    *inputs += 1;
    if *inputs == INPUTS_PER_STORE {
        *benches = None;
    }
}

/// A store with a history: versions, tombstones, a lease, a compaction.
pub fn with_filled(read: impl FnOnce(&Store)) {
    static FILLED: Mutex<Option<Bench>> = Mutex::new(None);
    let mut filled = FILLED.lock().expect("a panic ends the process");
    let bench = filled.get_or_insert_with(|| {
        let mut bench = Bench::new();
        let put = |i: u8| {
            let key = vec![b'a' + i % 8; 1 + usize::from(i % 3)];
            Op::Put(PutRequest {
                key: key.into(),
                value: vec![i].into(),
                lease: i64::from(i % 2),
                ..Default::default()
            })
        };
        let mut ops = vec![Op::LeaseGrant(LeaseGrantRequest { id: 1, ttl: 60 })];
        ops.extend((0..40).map(put));
        ops.push(Op::DeleteRange(DeleteRangeRequest { key: "b".into(), range_end: "c".into(), ..Default::default() }));
        ops.push(Op::Compact(CompactionRequest { revision: 20, physical: true }));
        ops.extend((40..60).map(put));
        let encode = |op| Command { op: Some(op), auth: None }.encode_to_vec().into();
        bench.apply(&ops.into_iter().map(encode).collect::<Vec<_>>());
        bench.state();
        bench
    });
    read(&bench.store);
}
