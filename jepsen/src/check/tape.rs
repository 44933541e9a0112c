//! Histories for tests, in few words.

use super::history::{
    Answer, Entry, Event, Failure, Header, History, KeyValue, Keys, Put, Range, Request, Response, WatchNote, WatchSeen,
};

#[derive(Clone, Default)]
pub struct Tape {
    pub history: History,
    now_ns: u64,
}

impl Tape {
    pub fn note(&mut self, process: u64, event: Event) -> &mut Tape {
        self.now_ns += 1;
        self.history.push(Entry { time_ns: self.now_ns, process, node: None, event });
        self
    }

    /// Lets time pass until this long after the beginning.
    pub fn at_ms(&mut self, ms: u64) -> &mut Tape {
        assert!(ms * 1_000_000 >= self.now_ns);
        self.now_ns = ms * 1_000_000;
        self
    }

    pub fn ask(&mut self, process: u64, request: Request) -> &mut Tape {
        self.note(process, Event::Invoke(request))
    }

    pub fn told(&mut self, process: u64, revision: i64, answer: Answer) -> &mut Tape {
        let header = Header { revision, ..Header::default() };
        self.note(process, Event::Ok(Response { header, answer }))
    }

    /// An operation with nothing between its invocation and its answer.
    pub fn done(&mut self, process: u64, request: Request, revision: i64, answer: Answer) -> &mut Tape {
        self.ask(process, request).told(process, revision, answer)
    }

    pub fn put(&mut self, process: u64, key: &str, value: &str, revision: i64) -> &mut Tape {
        self.done(process, put(key, value), revision, Answer::Put { prev_kv: None })
    }

    pub fn get(&mut self, process: u64, key: &str, revision: i64, kvs: Vec<KeyValue>) -> &mut Tape {
        self.done(process, get(key), revision, range_of(kvs))
    }

    pub fn failed(&mut self, process: u64, error: &str) -> &mut Tape {
        self.note(process, Event::Fail(Failure { error: error.to_owned() }))
    }

    pub fn lost(&mut self, process: u64) -> &mut Tape {
        self.note(process, Event::Info(Failure { error: "timeout".to_owned() }))
    }

    pub fn seen(&mut self, watcher: u64, seen: WatchSeen) -> &mut Tape {
        self.note(1000 + watcher, Event::Watch(WatchNote { watcher, seen }))
    }
}

pub fn put(key: &str, value: &str) -> Request {
    Request::Put(Put { key: key.into(), value: value.into(), ..Put::default() })
}

pub fn get(key: &str) -> Request {
    Request::Range(Range { keys: Keys::one(key), ..Range::default() })
}

pub fn range_of(kvs: Vec<KeyValue>) -> Answer {
    Answer::Range { count: kvs.len() as i64, kvs, more: false }
}

/// Created, modified, version.
pub fn kv(key: &str, value: &str, numbers: (i64, i64, i64)) -> KeyValue {
    let (create_revision, mod_revision, version) = numbers;
    KeyValue { key: key.into(), value: value.into(), create_revision, mod_revision, version, lease: 0 }
}
