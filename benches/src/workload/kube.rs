//! The transactions Kubernetes' API server makes of the writes of objects (its storage layer's `etcd3/store.go`): each
//! compares the revision at which the object was last changed.

use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::etcdserverpb::{
    CompactionRequest, Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op::Request,
};
use rand::{Rng, rngs::SmallRng};
use tonic::Status;

use super::{encode, fanout::stamped, key, kv, lease, random, revision};
use crate::{
    drive::{Answer, Call, Client, wrong},
    measure::Recorder,
    wire::protobuf,
};

/// Objects one client keeps alive.
const OBJECTS_PER_CLIENT: usize = 200;
/// Kubernetes puts its events on leases, so many on each.
const EVENTS_PER_LEASE: usize = 1000;
const EVENT_TTL_SECONDS: i64 = 3600;
const COMPACT: Call = Call::unary("/etcdserverpb.KV/Compact");

/// An object and the revision at which this client last saw it changed.
struct Object {
    key: Bytes,
    mod_revision: i64,
}

/// What a transaction answers.
pub struct Decided {
    pub succeeded: bool,
    pub revision: i64,
    /// When the object was last changed, as the read of a refused transaction tells.
    pub mod_revision: Option<i64>,
}

impl Decided {
    pub fn read(answer: &[u8]) -> Decided {
        let read = protobuf::bytes(answer, 3).and_then(|response| protobuf::bytes(response, 1));
        let kv = read.and_then(|range| protobuf::bytes(range, kv::KVS));
        Decided {
            succeeded: protobuf::number(answer, 2) != 0,
            revision: revision(answer),
            mod_revision: kv.map(|kv| protobuf::number(kv, 3)),
        }
    }
}

/// `then` if the object was last changed at `mod_revision` (0: does not exist); `or_read`: else it is read.
pub fn if_unchanged(key: &Bytes, mod_revision: i64, then: Request, or_read: bool) -> TxnRequest {
    let unchanged = Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: key.clone(),
        target_union: Some(TargetUnion::ModRevision(mod_revision)),
        ..Default::default()
    };
    let op = |request| RequestOp { request: Some(request) };
    let read = || Request::RequestRange(RangeRequest { key: key.clone(), ..Default::default() });
    TxnRequest {
        compare: vec![unchanged],
        success: vec![op(then)],
        failure: or_read.then(|| op(read())).into_iter().collect(),
    }
}

fn put(key: &Bytes, value: &Bytes) -> Request {
    Request::RequestPut(PutRequest { key: key.clone(), value: value.clone(), ..Default::default() })
}

fn done(key: &Bytes, value: &Bytes) -> Answer {
    Answer::Done { put_bytes: (key.len() + value.len()) as u64 }
}

#[derive(Clone, Copy)]
enum Doing {
    Create,
    Update { index: usize, stale: bool },
    Delete { index: usize },
}

/// `kube`: objects are created, updated and deleted; one update in fifty is stale.
pub struct Objects {
    prefix: String,
    objects: Vec<Object>,
    created: usize,
    value: Bytes,
    random: SmallRng,
    doing: Doing,
}

impl Objects {
    pub fn new(prefix: String, client: usize, value: Bytes) -> Objects {
        let objects = Vec::with_capacity(OBJECTS_PER_CLIENT);
        Objects { prefix, objects, created: 0, value, random: random(client), doing: Doing::Create }
    }

    /// Six updates to two creations and one deletion; with all objects there, a deletion instead of a creation.
    fn next(&mut self) -> Doing {
        let full = self.objects.len() >= OBJECTS_PER_CLIENT;
        match self.random.random_range(0..9) {
            _ if self.objects.is_empty() => Doing::Create,
            0 | 1 if !full => Doing::Create,
            0..=2 => Doing::Delete { index: self.random.random_range(0..self.objects.len()) },
            _ => {
                let index = self.random.random_range(0..self.objects.len());
                Doing::Update { index, stale: self.random.random_range(0..50) == 0 }
            }
        }
    }
}

impl Client for Objects {
    fn request(&mut self, _due: Instant, message: &mut Vec<u8>) -> Call {
        self.doing = self.next();
        let transaction = match self.doing {
            Doing::Create => {
                let key = key(&self.prefix, self.created);
                if_unchanged(&key, 0, put(&key, &self.value), false)
            }
            Doing::Update { index, stale } => {
                let Object { key, mod_revision } = &self.objects[index];
                if_unchanged(key, *mod_revision - i64::from(stale), put(key, &self.value), true)
            }
            Doing::Delete { index } => {
                let Object { key, mod_revision } = &self.objects[index];
                let delete = DeleteRangeRequest { key: key.clone(), ..Default::default() };
                if_unchanged(key, *mod_revision, Request::RequestDeleteRange(delete), true)
            }
        };
        encode(&transaction, message);
        kv::TXN
    }

    fn answer(&mut self, message: &[u8], _now: Instant, _recorder: &mut Recorder) -> Result<Answer, Status> {
        let decided = Decided::read(message);
        match self.doing {
            Doing::Create | Doing::Delete { .. } if !decided.succeeded => {
                Err(wrong("an object was changed that nobody else knows"))
            }
            Doing::Create => {
                let key = key(&self.prefix, self.created);
                self.created += 1;
                let answer = done(&key, &self.value);
                self.objects.push(Object { key, mod_revision: decided.revision });
                Ok(answer)
            }
            Doing::Update { stale, .. } if decided.succeeded == stale => {
                Err(wrong("an update was decided against the object's revision"))
            }
            Doing::Update { stale: true, .. } => Ok(Answer::DONE),
            Doing::Update { index, .. } => {
                self.objects[index].mod_revision = decided.revision;
                Ok(done(&self.objects[index].key, &self.value))
            }
            Doing::Delete { index } => {
                self.objects.swap_remove(index);
                Ok(Answer::DONE)
            }
        }
    }
}

/// How the values of updates are made.
pub enum Values {
    Same(Bytes),
    /// Each begins with the time it was due, since this moment.
    Stamped(Instant, Bytes),
}

/// `kube-update`, `kube-lease`: objects that exist are updated in turn. One that somebody else has changed is read by
/// the same transaction and tried again, within the same operation.
pub struct Updates {
    objects: Vec<Object>,
    values: Values,
    next: usize,
    put_bytes: u64,
    /// Whether these are the operations of the run, or what others watch.
    counts: bool,
}

impl Updates {
    /// Every `clients`-th object of `count`, so that each is one client's.
    pub fn new(prefix: &str, count: usize, client: usize, clients: usize, values: Values) -> Updates {
        let keys = (client % count..count).step_by(clients).map(|index| key(prefix, index));
        let objects = keys.map(|key| Object { key, mod_revision: 0 }).collect();
        let counts = matches!(values, Values::Same(_));
        Updates { objects, values, next: client, put_bytes: 0, counts }
    }
}

impl Client for Updates {
    fn request(&mut self, due: Instant, message: &mut Vec<u8>) -> Call {
        let Object { key, mod_revision } = &self.objects[self.next % self.objects.len()];
        let value = match &self.values {
            Values::Same(value) => value.clone(),
            Values::Stamped(epoch, filler) => stamped(due.saturating_duration_since(*epoch), filler),
        };
        self.put_bytes = (key.len() + value.len()) as u64;
        encode(&if_unchanged(key, *mod_revision, put(key, &value), true), message);
        kv::TXN
    }

    fn answer(&mut self, message: &[u8], _now: Instant, _recorder: &mut Recorder) -> Result<Answer, Status> {
        let decided = Decided::read(message);
        let index = self.next % self.objects.len();
        if !decided.succeeded {
            self.objects[index].mod_revision = decided.mod_revision.ok_or_else(|| wrong("an object is gone"))?;
            return Ok(Answer::Next);
        }
        self.objects[index].mod_revision = decided.revision;
        self.next += 1;
        Ok(if self.counts { Answer::Done { put_bytes: self.put_bytes } } else { Answer::Aside })
    }
}

/// `kube-events`: objects that are created on leases, which are granted as they are needed.
pub struct Events {
    prefix: String,
    value: Bytes,
    created: usize,
    lease: Option<i64>,
}

impl Events {
    pub fn new(prefix: String, value: Bytes) -> Events {
        Events { prefix, value, created: 0, lease: None }
    }
}

impl Client for Events {
    fn request(&mut self, _due: Instant, message: &mut Vec<u8>) -> Call {
        let Some(lease) = self.lease else {
            encode(&LeaseGrantRequest { ttl: EVENT_TTL_SECONDS, id: 0 }, message);
            return lease::GRANT;
        };
        let key = key(&self.prefix, self.created);
        let put = PutRequest { key: key.clone(), value: self.value.clone(), lease, ..Default::default() };
        encode(&if_unchanged(&key, 0, Request::RequestPut(put), false), message);
        kv::TXN
    }

    fn answer(&mut self, message: &[u8], _now: Instant, _recorder: &mut Recorder) -> Result<Answer, Status> {
        if self.lease.is_none() {
            self.lease = Some(protobuf::number(message, 2));
            return Ok(Answer::Next);
        }
        if !Decided::read(message).succeeded {
            return Err(wrong("an event exists that nobody else could have created"));
        }
        let answer = done(&key(&self.prefix, self.created), &self.value);
        self.created += 1;
        if self.created.is_multiple_of(EVENTS_PER_LEASE) {
            self.lease = None;
        }
        Ok(answer)
    }
}

/// Compacts again and again to the revision of one period ago, beside other work.
pub struct Compactor {
    every: Duration,
    /// The revision that the next compaction goes to.
    seen: Option<i64>,
}

impl Compactor {
    pub fn new(every: Duration) -> Compactor {
        Compactor { every, seen: None }
    }
}

impl Client for Compactor {
    fn request(&mut self, _due: Instant, message: &mut Vec<u8>) -> Call {
        match self.seen.take() {
            Some(revision) => {
                encode(&CompactionRequest { revision, physical: false }, message);
                COMPACT
            }
            None => {
                encode(&RangeRequest { key: "/".into(), count_only: true, ..Default::default() }, message);
                kv::RANGE
            }
        }
    }

    fn answer(&mut self, message: &[u8], _now: Instant, _recorder: &mut Recorder) -> Result<Answer, Status> {
        self.seen = Some(revision(message));
        Ok(Answer::After(self.every))
    }

    fn background(&self) -> bool {
        true
    }
}
