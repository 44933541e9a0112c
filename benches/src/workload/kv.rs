//! Puts, and reads of one key or of many.

use std::time::Instant;

use bytes::Bytes;
use proto::etcdserverpb::{PutRequest, RangeRequest, RequestOp, TxnRequest, request_op::Request};
use tonic::Status;

use super::{Keys, encode, prefix_end, revision};
use crate::{
    drive::{Answer, Call, Client, wrong},
    measure::Recorder,
    wire::protobuf::{self, Value},
};

pub const PUT: Call = Call::unary("/etcdserverpb.KV/Put");
pub const RANGE: Call = Call::unary("/etcdserverpb.KV/Range");
pub const TXN: Call = Call::unary("/etcdserverpb.KV/Txn");

/// The fields of a RangeResponse.
pub const KVS: u32 = 2;
pub const MORE: u32 = 3;
pub const COUNT: u32 = 4;

pub struct Put {
    keys: Keys,
    value: Bytes,
    put_bytes: u64,
}

impl Put {
    pub fn new(keys: Keys, value: Bytes) -> Put {
        Put { keys, value, put_bytes: 0 }
    }
}

impl Client for Put {
    fn request(&mut self, _due: Instant, message: &mut Vec<u8>) -> Call {
        let key = self.keys.pick();
        self.put_bytes = (key.len() + self.value.len()) as u64;
        encode(&PutRequest { key, value: self.value.clone(), ..Default::default() }, message);
        PUT
    }

    fn answer(&mut self, message: &[u8], _now: Instant, _recorder: &mut Recorder) -> Result<Answer, Status> {
        match revision(message) {
            0 => Err(wrong("a put without a revision")),
            _ => Ok(Answer::Done { put_bytes: self.put_bytes }),
        }
    }
}

/// Several puts in one transaction.
pub struct TxnPut {
    keys: Keys,
    value: Bytes,
    /// Consecutive keys are put, for no key may be put twice in a transaction.
    operations: usize,
    put_bytes: u64,
}

impl TxnPut {
    pub fn new(keys: Keys, value: Bytes, operations: usize) -> TxnPut {
        TxnPut { keys, value, operations, put_bytes: 0 }
    }
}

impl Client for TxnPut {
    fn request(&mut self, _due: Instant, message: &mut Vec<u8>) -> Call {
        let first = self.keys.pick_index();
        let keys = (0..self.operations).map(|offset| self.keys.at(first + offset));
        let puts: Vec<PutRequest> =
            keys.map(|key| PutRequest { key, value: self.value.clone(), ..Default::default() }).collect();
        self.put_bytes = puts.iter().map(|put| (put.key.len() + put.value.len()) as u64).sum();
        let success = puts.into_iter().map(|put| RequestOp { request: Some(Request::RequestPut(put)) }).collect();
        encode(&TxnRequest { success, ..Default::default() }, message);
        TXN
    }

    fn answer(&mut self, message: &[u8], _now: Instant, _recorder: &mut Recorder) -> Result<Answer, Status> {
        match protobuf::all(message, 3).count() == self.operations {
            true => Ok(Answer::Done { put_bytes: self.put_bytes }),
            false => Err(wrong("a transaction did not answer each of its puts")),
        }
    }
}

pub struct Get {
    keys: Keys,
    serializable: bool,
}

impl Get {
    pub fn new(keys: Keys, serializable: bool) -> Get {
        Get { keys, serializable }
    }
}

impl Client for Get {
    fn request(&mut self, _due: Instant, message: &mut Vec<u8>) -> Call {
        let request = RangeRequest { key: self.keys.pick(), serializable: self.serializable, ..Default::default() };
        encode(&request, message);
        RANGE
    }

    fn answer(&mut self, message: &[u8], _now: Instant, _recorder: &mut Recorder) -> Result<Answer, Status> {
        // On a cluster, a serializable read may ask a member that has not applied the filling yet; a linearizable one
        // not.
        match protobuf::bytes(message, KVS) {
            None if !self.serializable => Err(wrong("a key that was put is not there")),
            _ => Ok(Answer::DONE),
        }
    }
}

/// What a RangeResponse holds, found in one walk over it.
#[derive(Debug, Default)]
pub struct Listed<'a> {
    pub keys: i64,
    pub last: Option<&'a [u8]>,
    pub more: bool,
    pub count: i64,
    pub revision: i64,
}

impl<'a> Listed<'a> {
    pub fn read(message: &'a [u8]) -> Result<Listed<'a>, Status> {
        let mut listed = Listed::default();
        for field in protobuf::fields(message) {
            match field.ok_or_else(|| wrong("an answer that is no message"))? {
                (1, Value::Bytes(header)) => listed.revision = protobuf::number(header, 3),
                (KVS, Value::Bytes(kv)) => (listed.keys, listed.last) = (listed.keys + 1, Some(kv)),
                (MORE, Value::Number(more)) => listed.more = more != 0,
                (COUNT, Value::Number(count)) => listed.count = count as i64,
                _ => {}
            }
        }
        Ok(listed)
    }
}

/// A hundred keys in one answer, from anywhere on.
pub struct Range {
    keys: Keys,
    end: Bytes,
}

impl Range {
    pub fn new(keys: Keys, prefix: &str) -> Range {
        Range { keys, end: prefix_end(prefix) }
    }
}

impl Client for Range {
    fn request(&mut self, _due: Instant, message: &mut Vec<u8>) -> Call {
        let (key, range_end) = (self.keys.pick(), self.end.clone());
        encode(&RangeRequest { key, range_end, limit: 100, ..Default::default() }, message);
        RANGE
    }

    fn answer(&mut self, message: &[u8], _now: Instant, _recorder: &mut Recorder) -> Result<Answer, Status> {
        let listed = Listed::read(message)?;
        if listed.keys != listed.count.min(100) || listed.keys == 0 || listed.more != (listed.count > 100) {
            return Err(wrong(format!("{} keys listed of {}", listed.keys, listed.count)));
        }
        Ok(Answer::DONE)
    }
}

/// All keys of a prefix at one revision, so many at a time: an operation is one page.
pub struct Paged {
    from: Bytes,
    first: Bytes,
    end: Bytes,
    limit: i64,
    revision: i64,
    seen: i64,
    expected: i64,
}

impl Paged {
    pub fn new(prefix: &str, keys: usize, limit: i64) -> Paged {
        let first = Bytes::from(prefix.to_string());
        let (from, end) = (first.clone(), prefix_end(prefix));
        Paged { from, first, end, limit, revision: 0, seen: 0, expected: keys as i64 }
    }
}

impl Client for Paged {
    fn request(&mut self, _due: Instant, message: &mut Vec<u8>) -> Call {
        let (key, range_end) = (self.from.clone(), self.end.clone());
        let request = RangeRequest { key, range_end, limit: self.limit, revision: self.revision, ..Default::default() };
        encode(&request, message);
        RANGE
    }

    fn answer(&mut self, message: &[u8], _now: Instant, _recorder: &mut Recorder) -> Result<Answer, Status> {
        let listed = Listed::read(message)?;
        let last = listed.last.and_then(|kv| protobuf::bytes(kv, 1)).ok_or_else(|| wrong("a page without keys"))?;
        if listed.count != self.expected - self.seen {
            return Err(wrong(format!("{} keys counted, {} put", listed.count + self.seen, self.expected)));
        }
        self.seen += listed.keys;
        if listed.more {
            self.revision = if self.revision == 0 { listed.revision } else { self.revision };
            self.from = [last, b"\0"].concat().into();
            return Ok(Answer::DONE);
        }
        if self.seen != self.expected {
            return Err(wrong(format!("{} keys listed, {} put", self.seen, self.expected)));
        }
        (self.from, self.revision, self.seen) = (self.first.clone(), 0, 0);
        Ok(Answer::DONE)
    }
}

/// All keys of a prefix in one answer.
pub struct List {
    request: RangeRequest,
    expected: i64,
}

impl List {
    pub fn new(prefix: &str, keys: usize) -> List {
        let request =
            RangeRequest { key: prefix.to_string().into(), range_end: prefix_end(prefix), ..Default::default() };
        List { request, expected: keys as i64 }
    }
}

impl Client for List {
    fn request(&mut self, _due: Instant, message: &mut Vec<u8>) -> Call {
        encode(&self.request, message);
        RANGE
    }

    fn answer(&mut self, message: &[u8], _now: Instant, _recorder: &mut Recorder) -> Result<Answer, Status> {
        let listed = Listed::read(message)?;
        if listed.count != self.expected || listed.keys != self.expected || listed.more {
            return Err(wrong(format!("{} keys listed, {} put", listed.keys, self.expected)));
        }
        Ok(Answer::DONE)
    }
}
