//! One writer, many watchers of one prefix: how many events a second arrive, and how long after the put was due.
//!
//! The value of each put begins with the time it was due, so a watcher knows an event's delay when it arrives. The
//! watchers share one stream per connection, as etcd's client library does; the writer has a connection of its own.

use std::time::{Duration, Instant};

use bytes::Bytes;
use proto::etcdserverpb::{
    PutRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, watch_request::RequestUnion,
};
use tonic::Status;

use super::{KeySpace, Keys, encode, kv, prefix_end, value};
use crate::{
    drive::{self, Answer, Call, Client, wrong},
    measure::{Measured, Recorder, Settings, micros},
    wire::protobuf::{self, Value},
};

pub const WATCH: Call = Call::stream("/etcdserverpb.Watch/Watch");
const TIMESTAMP_BYTES: usize = 8;

/// `operations` of the result are events received by all watchers together; latencies are delays of events.
pub async fn run(watchers: usize, settings: &Settings, prefix: &str) -> anyhow::Result<Measured> {
    let streams = settings.connections.min(watchers);
    let epoch = Instant::now();
    let mut clients: Vec<Box<dyn Client>> = Vec::new();
    for index in 0..streams {
        let share = (watchers + streams - 1 - index) / streams;
        clients.push(Box::new(Watchers::new(prefix, share, epoch)));
    }
    clients.push(Box::new(Writer {
        keys: KeySpace::new(prefix, settings.shape.keys, true).of(0),
        filler: value(settings.shape.value_size.saturating_sub(TIMESTAMP_BYTES)),
        epoch,
    }));
    drive::run(&Settings { connections: streams + 1, ..settings.clone() }, clients).await
}

/// A value that tells a watcher when its put was due.
pub fn stamped(since_epoch: Duration, filler: &[u8]) -> Bytes {
    [&micros(since_epoch).to_be_bytes(), filler].concat().into()
}

/// Several watchers on one stream.
pub struct Watchers {
    prefix: String,
    wanted: usize,
    created: usize,
    epoch: Instant,
    /// How often the stream's progress is asked for, as Kubernetes does for lists from its cache.
    progress_every: Option<Duration>,
}

impl Watchers {
    pub fn new(prefix: &str, wanted: usize, epoch: Instant) -> Watchers {
        Watchers { prefix: prefix.to_string(), wanted, created: 0, epoch, progress_every: None }
    }

    pub fn with_progress(self, every: Duration) -> Watchers {
        Watchers { progress_every: Some(every), ..self }
    }
}

/// What is needed of a WatchResponse.
#[derive(Default)]
pub struct Heard<'a> {
    pub created: bool,
    pub canceled: bool,
    pub cancel_reason: &'a [u8],
    pub events: usize,
}

impl<'a> Heard<'a> {
    /// Hands over each event's KeyValue.
    pub fn read(message: &'a [u8], mut kv: impl FnMut(&'a [u8])) -> Result<Heard<'a>, Status> {
        let mut heard = Heard::default();
        for field in protobuf::fields(message) {
            match field.ok_or_else(|| wrong("an answer that is no message"))? {
                (3, Value::Number(created)) => heard.created = created != 0,
                (4, Value::Number(canceled)) => heard.canceled = canceled != 0,
                (6, Value::Bytes(reason)) => heard.cancel_reason = reason,
                (11, Value::Bytes(event)) => {
                    heard.events += 1;
                    kv(protobuf::bytes(event, 2).unwrap_or_default());
                }
                _ => {}
            }
        }
        if heard.canceled {
            let reason = String::from_utf8_lossy(heard.cancel_reason);
            return Err(wrong(format!("a watcher was cancelled: {reason}")));
        }
        Ok(heard)
    }
}

impl Client for Watchers {
    fn request(&mut self, _due: Instant, message: &mut Vec<u8>) -> Call {
        if self.created == self.wanted {
            let progress = RequestUnion::ProgressRequest(WatchProgressRequest {});
            encode(&WatchRequest { request_union: Some(progress) }, message);
            return WATCH;
        }
        let create = WatchCreateRequest {
            key: self.prefix.clone().into(),
            range_end: prefix_end(&self.prefix),
            ..Default::default()
        };
        encode(&WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) }, message);
        WATCH
    }

    fn answer(&mut self, message: &[u8], now: Instant, recorder: &mut Recorder) -> Result<Answer, Status> {
        let (epoch, measures, mut broken) = (self.epoch, recorder.measures(now), false);
        let heard = Heard::read(message, |kv| {
            let sent = protobuf::bytes(kv, 5).and_then(|value| value.first_chunk::<TIMESTAMP_BYTES>());
            broken |= sent.is_none();
            if let (true, Some(sent)) = (measures, sent) {
                let sent = epoch + Duration::from_micros(u64::from_be_bytes(*sent));
                recorder.latency(now.saturating_duration_since(sent));
            }
        })?;
        if broken {
            return Err(wrong("an event without our timestamp"));
        }
        recorder.complete(heard.events as u64, 0, now);
        if heard.created {
            self.created += 1;
            if self.created < self.wanted {
                return Ok(Answer::Next);
            }
        }
        // Without events, it is the answer to a request for progress, or the last creation.
        match self.progress_every {
            Some(every) if heard.events == 0 => Ok(Answer::After(every)),
            _ => Ok(Answer::Listen),
        }
    }

    fn background(&self) -> bool {
        true
    }
}

/// Puts as fast as puts are answered, or at the rate that was asked for.
struct Writer {
    keys: Keys,
    filler: Bytes,
    epoch: Instant,
}

impl Client for Writer {
    fn request(&mut self, due: Instant, message: &mut Vec<u8>) -> Call {
        let value = stamped(due.saturating_duration_since(self.epoch), &self.filler);
        encode(&PutRequest { key: self.keys.pick(), value, ..Default::default() }, message);
        kv::PUT
    }

    fn answer(&mut self, _message: &[u8], _now: Instant, _recorder: &mut Recorder) -> Result<Answer, Status> {
        Ok(Answer::Aside)
    }
}
