//! A store under test, and the log it was applied from.

#![allow(dead_code)] // Each test file uses a part of it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use prost::Message;
use proto::{
    command::{AuthInfo, Command, Outcome, command::Op},
    etcdserverpb::{RangeRequest, RangeResponse, ResponseHeader},
};
use storage::{Applier, Change, LogEntry, Observer, Options, Payload, ReadError, Store};
use tempfile::TempDir;

/// Keeps what it is told.
#[derive(Default)]
pub struct Told(pub Mutex<Vec<Change>>);

impl Observer for Told {
    fn applied(&self, change: Change) {
        self.0.lock().push(change);
    }

    fn restored(&self, _: i64, _: i64) {}
}

pub struct Bench {
    pub store: Store,
    applier: Applier,
    pub told: Arc<Told>,
    /// Everything that was ever applied.
    log: Vec<LogEntry>,
    dir: TempDir,
}

impl Bench {
    pub fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let (store, told) = open(dir.path());
        Bench { applier: store.applier(), store, told, log: Vec::new(), dir }
    }

    /// A range, which must be the same when it is encoded by the store.
    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, ReadError> {
        let answer = self.store.range(request);
        if storage::is_plain(request) {
            let begin = |revision, out: &mut Vec<u8>| {
                let header = Some(ResponseHeader { revision, ..Default::default() });
                RangeResponse { header, ..Default::default() }.encode_raw(out);
            };
            match (&answer, self.store.range_encoded(request, begin)) {
                (Ok(answer), Ok(encoded)) => assert_eq!(encoded, answer.encode_to_vec(), "{request:?}"),
                (Err(error), Err(other)) => assert_eq!(error.to_string(), other.to_string()),
                (answer, encoded) => panic!("{request:?}: {answer:?}, and encoded {encoded:?}"),
            }
        }
        answer
    }

    pub fn apply(&mut self, op: Op) -> Outcome {
        self.apply_all([op]).remove(0)
    }

    /// Applies a command on behalf of a user.
    pub fn apply_by(&mut self, auth: Option<AuthInfo>, op: Op) -> Outcome {
        self.apply_commands([Command { op: Some(op), auth }]).remove(0)
    }

    /// Applies several commands as one batch.
    pub fn apply_all(&mut self, ops: impl IntoIterator<Item = Op>) -> Vec<Outcome> {
        self.apply_commands(ops.into_iter().map(|op| Command { op: Some(op), auth: None }))
    }

    fn apply_commands(&mut self, commands: impl IntoIterator<Item = Command>) -> Vec<Outcome> {
        let begin = self.log.len();
        for command in commands {
            let payload = Payload::Command(command.encode_to_vec().into());
            self.log.push(LogEntry { index: self.log.len() as u64 + 1, term: 1, payload });
        }
        self.applier.apply(&self.log[begin..]).unwrap()
    }

    /// Closes and opens.
    pub fn reopen(&mut self) {
        self.crash_onto(TempDir::new().unwrap(), true);
    }

    /// Goes on with what a crash now leaves on the disk, and applies the rest of the log anew.
    pub fn crash(&mut self) {
        self.crash_onto(TempDir::new().unwrap(), false);
    }

    fn crash_onto(&mut self, dir: TempDir, flush: bool) {
        if flush {
            self.store.flush().unwrap();
        }
        copy(self.dir.path(), dir.path());
        let (store, told) = open(dir.path());
        let applied = store.applied().index as usize;
        assert!(!flush || applied == self.log.len());
        self.applier = store.applier();
        self.applier.apply(&self.log[applied..]).unwrap();
        (self.store, self.told, self.dir) = (store, told, dir);
    }
}

fn open(dir: &Path) -> (Store, Arc<Told>) {
    let told = Arc::new(Told::default());
    let options = Options { observer: told.clone(), cache_bytes: 1 << 20 };
    (Store::open(&dir.join("db"), options).unwrap(), told)
}

/// Copies a folder as it is at one moment: again, until nothing has changed while it was copied.
fn copy(from: &Path, to: &Path) {
    loop {
        let before = contents(from);
        if before == contents(from) {
            for (path, bytes) in before {
                let path = to.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, bytes).unwrap();
            }
            return;
        }
    }
}

/// Every file below a folder; one that RocksDB is just removing may be left out.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let name = PathBuf::from(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            files.extend(contents(&entry.path()).into_iter().map(|(path, bytes)| (name.join(path), bytes)));
        } else if let Ok(bytes) = fs::read(entry.path()) {
            files.insert(name, bytes);
        }
    }
    files
}
