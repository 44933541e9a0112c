//! The transactions Kubernetes' API server makes of the writes of objects.

use std::time::Instant;

use bytes::Bytes;
use proto::etcdserverpb::{
    Compare, PutRequest, RangeRequest, RequestOp, TxnRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op::Request,
};
use rand::{Rng, rngs::SmallRng};
use tonic::Status;

use super::{encode, key, kv, random, revision};
use crate::{
    drive::{Answer, Call, Client, wrong},
    measure::Recorder,
    wire::protobuf,
};

/// Objects one client keeps alive; from then on it only updates.
const OBJECTS_PER_CLIENT: usize = 200;

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

    /// When the object was last changed, after this transaction.
    pub fn changed_at(&self) -> Option<i64> {
        if self.succeeded { Some(self.revision) } else { self.mod_revision }
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

enum Doing {
    Create(Bytes),
    Update { index: usize, stale: bool },
}

pub struct Kube {
    prefix: String,
    objects: Vec<Object>,
    value: Bytes,
    random: SmallRng,
    doing: Option<Doing>,
}

impl Kube {
    pub fn new(prefix: String, client: usize, value: Bytes) -> Kube {
        let objects = Vec::with_capacity(OBJECTS_PER_CLIENT);
        Kube { prefix, objects, value, random: random(client), doing: None }
    }

    fn next(&mut self) -> Doing {
        let room = self.objects.len() < OBJECTS_PER_CLIENT;
        if self.objects.is_empty() || room && self.random.random_range(0..5) == 0 {
            return Doing::Create(key(&self.prefix, self.objects.len()));
        }
        let index = self.random.random_range(0..self.objects.len());
        Doing::Update { index, stale: self.random.random_range(0..50) == 0 }
    }
}

impl Client for Kube {
    fn request(&mut self, _due: Instant, message: &mut Vec<u8>) -> Call {
        let doing = self.next();
        let (key, mod_revision, or_read) = match &doing {
            Doing::Create(key) => (key, 0, false),
            Doing::Update { index, stale } => {
                let object = &self.objects[*index];
                (&object.key, object.mod_revision - i64::from(*stale), true)
            }
        };
        let put = PutRequest { key: key.clone(), value: self.value.clone(), ..Default::default() };
        encode(&if_unchanged(key, mod_revision, Request::RequestPut(put), or_read), message);
        self.doing = Some(doing);
        kv::TXN
    }

    fn answer(&mut self, message: &[u8], _now: Instant, _recorder: &mut Recorder) -> Result<Answer, Status> {
        let decided = Decided::read(message);
        let put_bytes = |key: &Bytes| if decided.succeeded { (key.len() + self.value.len()) as u64 } else { 0 };
        match self.doing.take() {
            Some(Doing::Create(key)) => {
                if !decided.succeeded {
                    return Err(wrong("an object exists that nobody else could have created"));
                }
                let put_bytes = put_bytes(&key);
                self.objects.push(Object { key, mod_revision: decided.revision });
                Ok(Answer::Done { put_bytes })
            }
            Some(Doing::Update { index, stale }) => {
                let object = &mut self.objects[index];
                let put_bytes = put_bytes(&object.key);
                if decided.succeeded == stale {
                    return Err(wrong("an update was decided against the object's revision"));
                }
                object.mod_revision = decided.changed_at().ok_or_else(|| wrong("an object is gone"))?;
                Ok(Answer::Done { put_bytes })
            }
            None => Err(wrong("an answer without a request")),
        }
    }
}
