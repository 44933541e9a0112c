//! Puts, and reads of one key or of many.

use std::time::Instant;

use bytes::Bytes;
use proto::etcdserverpb::{PutRequest, RangeRequest};
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
