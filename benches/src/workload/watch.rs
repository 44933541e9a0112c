//! Watches of etcd's benchmark tool besides the fan-out: the way of one event, and catching up while others read.

use std::{
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use bytes::Bytes;
use proto::etcdserverpb::{
    PutRequest, WatchCancelRequest, WatchCreateRequest, WatchRequest, watch_request::RequestUnion,
};
use tonic::Status;

use super::{
    encode,
    fanout::{Heard, WATCH},
    kv, prefix_end, revision,
};
use crate::{
    drive::{Answer, Call, Client, wrong},
    measure::Recorder,
    wire::protobuf,
};

/// Between two ways through the history. Without it, a server that is quick at it would do more of it, and be measured
/// as slow at the reads beside.
const REST: Duration = Duration::from_millis(500);

fn watch(request: RequestUnion, message: &mut Vec<u8>) -> Call {
    encode(&WatchRequest { request_union: Some(request) }, message);
    WATCH
}

/// `watch-latency`: an operation is a put and its event at the watcher of the same key; both have come when it ends.
pub struct RoundTrip {
    key: Bytes,
    value: Bytes,
    created: bool,
    /// Of the put's answer and its event, what has come.
    came: usize,
}

impl RoundTrip {
    pub fn new(key: Bytes, value: Bytes) -> RoundTrip {
        RoundTrip { key, value, created: false, came: 0 }
    }

    fn one_came(&mut self) -> Answer {
        self.came += 1;
        match self.came {
            2 => {
                self.came = 0;
                Answer::Done { put_bytes: (self.key.len() + self.value.len()) as u64 }
            }
            _ => Answer::Listen,
        }
    }
}

impl Client for RoundTrip {
    fn request(&mut self, _due: Instant, message: &mut Vec<u8>) -> Call {
        if !self.created {
            let create = WatchCreateRequest { key: self.key.clone(), ..Default::default() };
            return watch(RequestUnion::CreateRequest(create), message);
        }
        encode(&PutRequest { key: self.key.clone(), value: self.value.clone(), ..Default::default() }, message);
        kv::PUT
    }

    fn answer(&mut self, message: &[u8], _now: Instant, _recorder: &mut Recorder) -> Result<Answer, Status> {
        // The put's answer has no watch id, and no field but its header.
        let heard = Heard::read(message, |_| {})?;
        match (heard.created, heard.events) {
            (true, _) => {
                self.created = true;
                Ok(Answer::Next)
            }
            (false, 0) if revision(message) == 0 => Err(wrong("an answer without a revision")),
            (false, 0 | 1) => Ok(self.one_came()),
            (false, more) => Err(wrong(format!("{more} events of one put"))),
        }
    }
}

/// `watch-get`'s background: reads a history from its beginning to its end, cancels, rests, and begins anew.
pub struct CatchUp {
    prefix: String,
    revisions: RangeInclusive<i64>,
    /// The watcher, once it is made, and whether it has seen all.
    watcher: Option<i64>,
    cancels: bool,
}

impl CatchUp {
    pub fn new(prefix: &str, revisions: RangeInclusive<i64>) -> CatchUp {
        CatchUp { prefix: prefix.to_string(), revisions, watcher: None, cancels: false }
    }
}

impl Client for CatchUp {
    fn request(&mut self, _due: Instant, message: &mut Vec<u8>) -> Call {
        let request = match self.watcher {
            Some(watch_id) => RequestUnion::CancelRequest(WatchCancelRequest { watch_id }),
            None => RequestUnion::CreateRequest(WatchCreateRequest {
                key: self.prefix.clone().into(),
                range_end: prefix_end(&self.prefix),
                start_revision: *self.revisions.start(),
                ..Default::default()
            }),
        };
        watch(request, message)
    }

    fn answer(&mut self, message: &[u8], _now: Instant, _recorder: &mut Recorder) -> Result<Answer, Status> {
        let canceled = protobuf::number(message, 4) != 0;
        if self.cancels && canceled {
            (self.watcher, self.cancels) = (None, false);
            return Ok(Answer::After(REST));
        }
        let mut newest = 0;
        let heard = Heard::read(message, |kv| newest = newest.max(protobuf::number(kv, 3)))?;
        if heard.created {
            self.watcher = Some(protobuf::number(message, 2));
        }
        if !self.cancels && newest >= *self.revisions.end() {
            self.cancels = true;
            return Ok(Answer::Next);
        }
        Ok(Answer::Listen)
    }

    fn background(&self) -> bool {
        true
    }
}
