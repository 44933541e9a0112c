//! `stm`: software transactional memory as etcd's client library makes it of a read and a transaction, over keys that all
//! clients share: a key is read and put if nobody has changed it since; else it is tried again with what it is now.

use std::time::Instant;

use bytes::Bytes;
use proto::etcdserverpb::{PutRequest, RangeRequest, request_op::Request};
use tonic::Status;

use super::{
    Keys, encode,
    kube::{Decided, if_unchanged},
    kv,
};
use crate::{
    drive::{Answer, Call, Client, wrong},
    measure::Recorder,
    wire::protobuf,
};

pub struct Stm {
    keys: Keys,
    value: Bytes,
    key: Bytes,
    /// When the key was last changed, once it is read.
    read: Option<i64>,
}

impl Stm {
    pub fn new(keys: Keys, value: Bytes) -> Stm {
        Stm { keys, value, key: Bytes::new(), read: None }
    }
}

impl Client for Stm {
    fn request(&mut self, _due: Instant, message: &mut Vec<u8>) -> Call {
        let Some(mod_revision) = self.read else {
            self.key = self.keys.pick();
            encode(&RangeRequest { key: self.key.clone(), ..Default::default() }, message);
            return kv::RANGE;
        };
        let put = PutRequest { key: self.key.clone(), value: self.value.clone(), ..Default::default() };
        encode(&if_unchanged(&self.key, mod_revision, Request::RequestPut(put), true), message);
        kv::TXN
    }

    fn answer(&mut self, message: &[u8], _now: Instant, _recorder: &mut Recorder) -> Result<Answer, Status> {
        if self.read.is_none() {
            self.read = Some(protobuf::bytes(message, kv::KVS).map_or(0, |kv| protobuf::number(kv, 3)));
            return Ok(Answer::Next);
        }
        let decided = Decided::read(message);
        if decided.succeeded {
            self.read = None;
            return Ok(Answer::Done { put_bytes: (self.key.len() + self.value.len()) as u64 });
        }
        self.read = Some(decided.mod_revision.ok_or_else(|| wrong("a key is gone that nobody deletes"))?);
        Ok(Answer::Next)
    }
}
