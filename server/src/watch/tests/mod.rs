//! What a client of watches sees.

mod falling_behind;
mod script;
mod scripts;
mod streams;

use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Buf as _, Bytes};
use futures::{Stream, StreamExt, TryStreamExt as _};
use parking_lot::{Mutex, RwLock};
use prost::Message;
use proto::{
    EtcdError, KeyRange, Revision,
    etcdserverpb::{
        ResponseHeader, WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest,
        watch_request::RequestUnion,
    },
    mvccpb::{self, KeyValue, event::EventType},
    raw::WatchResponse,
};
use storage::{Change, Event, ReadError, StorageError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{History, Hub, Member, stream};
use crate::unary::{PREFIX_BYTES, length_in};

const PATIENCE: Duration = Duration::from_secs(30);

/// A member with a term of 7.
pub struct TestMember {
    pub response_bytes_max: usize,
    pub progress_interval: Duration,
    pub shutdown: CancellationToken,
}

impl TestMember {
    pub fn new() -> Self {
        let progress_interval = Duration::from_secs(3600);
        TestMember { response_bytes_max: 1 << 20, progress_interval, shutdown: CancellationToken::new() }
    }
}

impl Member for TestMember {
    fn header(&self, revision: i64) -> ResponseHeader {
        ResponseHeader { cluster_id: 1, member_id: 2, revision, raft_term: 7 }
    }

    fn response_bytes_max(&self) -> usize {
        self.response_bytes_max
    }

    fn progress_interval(&self) -> Duration {
        self.progress_interval
    }

    fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    fn fatal(&self, error: &StorageError) {
        panic!("{error}");
    }
}

/// A store of puts: one event per revision, all kept.
#[derive(Default)]
pub struct TestHistory {
    events: RwLock<Vec<Arc<Event>>>,
    compacted: Mutex<i64>,
    /// Reads of the history so far.
    pub reads: Mutex<usize>,
    /// Done once, right after the revision was read.
    pub after_revision: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl TestHistory {
    /// Adds a put at the next revision; what the hub is to be told of it.
    pub fn put(&self, key: &str, value: Bytes) -> Change {
        let mut events = self.events.write();
        let revision = events.len() as i64 + 2;
        let kv = KeyValue {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value,
            mod_revision: revision,
            ..Default::default()
        };
        let event = Arc::new(Event { kind: EventType::Put, kv, revision: Revision::new(revision, 0), prev: None });
        events.push(event.clone());
        Change { revision, compacted: *self.compacted.lock(), events: vec![event], ..Change::default() }
    }

    pub fn compact(&self, revision: i64) -> Change {
        *self.compacted.lock() = revision;
        Change { revision: self.revision(), compacted: revision, ..Default::default() }
    }
}

impl History for TestHistory {
    fn revision(&self) -> i64 {
        let revision = self.events.read().len() as i64 + 1;
        let act = self.after_revision.lock().take();
        if let Some(act) = act {
            act();
        }
        revision
    }

    fn compacted(&self) -> i64 {
        *self.compacted.lock()
    }

    fn events(
        &self,
        range: &KeyRange,
        from: i64,
        to: i64,
        max_bytes: usize,
    ) -> Result<(Vec<Arc<Event>>, i64), ReadError> {
        *self.reads.lock() += 1;
        if from < self.compacted() {
            return Err(EtcdError::Compacted.into());
        }
        let (mut found, mut bytes) = (Vec::new(), 0);
        for event in self.events.read().iter().skip((from - 2).max(0) as usize) {
            if event.revision.main > to {
                break;
            }
            if bytes > max_bytes {
                return Ok((found, event.revision.main));
            }
            if range.contains(&event.kv.key) {
                bytes += event.kv.value.len();
                found.push(event.clone());
            }
        }
        Ok((found, to + 1))
    }

    fn previous(&self, _event: &Event) -> Result<Option<KeyValue>, StorageError> {
        Ok(None)
    }
}

/// Everyone may watch everything that does not begin with this key.
pub const FORBIDDEN: &[u8] = b"forbidden";

struct AllButForbidden;

impl stream::Permission for AllButForbidden {
    async fn check(&self, range: &KeyRange) -> Result<(), EtcdError> {
        if range.start() == FORBIDDEN { Err(EtcdError::PermissionDenied) } else { Ok(()) }
    }
}

/// A client's end of a stream.
pub struct Client {
    pub requests: Option<mpsc::UnboundedSender<Result<WatchRequest, Status>>>,
    responses: Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>,
}

impl Client {
    pub fn open(hub: &Hub, member: TestMember) -> Client {
        Client::open_until(hub, member, std::future::pending())
    }

    pub fn open_until(hub: &Hub, member: TestMember, leader_lost: impl Future<Output = ()> + Send + 'static) -> Client {
        let (requests, receiver) = mpsc::unbounded_channel();
        let receiver = tokio_stream::wrappers::UnboundedReceiverStream::new(receiver);
        let responses = stream::open(hub, Arc::new(member), receiver, leader_lost, AllButForbidden);
        let responses = Box::pin(responses.encoded().map_ok(decoded).try_flatten());
        Client { requests: Some(requests), responses }
    }

    fn send(&self, request: RequestUnion) {
        let requests = self.requests.as_ref().expect("requests are open");
        requests.send(Ok(WatchRequest { request_union: Some(request) })).unwrap();
    }

    pub fn create(&self, create: WatchCreateRequest) {
        self.send(RequestUnion::CreateRequest(create));
    }

    /// Watches all keys.
    pub fn create_all(&self, start_revision: i64) {
        let (key, range_end) = (Bytes::from_static(b"\0"), Bytes::from_static(b"\0"));
        self.create(WatchCreateRequest { key, range_end, start_revision, ..Default::default() });
    }

    pub fn cancel(&self, watch_id: i64) {
        self.send(RequestUnion::CancelRequest(WatchCancelRequest { watch_id }));
    }

    pub fn request_progress(&self) {
        self.send(RequestUnion::ProgressRequest(WatchProgressRequest {}));
    }

    pub async fn next(&mut self) -> WatchResponse {
        self.next_result().await.expect("the stream goes on").expect("no error")
    }

    pub async fn next_result(&mut self) -> Option<Result<WatchResponse, Status>> {
        tokio::time::timeout(PATIENCE, self.responses.next()).await.expect("a response comes in time")
    }

    pub async fn created(&mut self) -> WatchResponse {
        let response = self.next().await;
        assert!(response.created && !response.canceled && response.events.is_empty(), "{response:?}");
        response
    }

    /// Of one watch of all keys: its events up to `last` are each revision once, in order, from `first` on.
    pub async fn sees_each_revision(&mut self, first: i64, last: i64) {
        let mut expected = first;
        while expected <= last {
            let response = self.next().await;
            assert!(!response.canceled, "{response:?}");
            let revision = response.header.as_ref().unwrap().revision;
            for event in events(&response) {
                let found = event.kv.unwrap().mod_revision;
                assert_eq!(found, expected);
                assert!(revision >= found, "header {revision}, event {found}");
                expected += 1;
            }
        }
    }
}

/// Responses that came together, each with its prefix.
fn decoded(mut together: Bytes) -> impl Stream<Item = Result<WatchResponse, Status>> {
    let mut responses = Vec::new();
    while let Some(prefix) = together.first_chunk::<PREFIX_BYTES>() {
        let length = length_in(prefix, usize::MAX).unwrap();
        together.advance(PREFIX_BYTES);
        responses.push(Ok(WatchResponse::decode(together.split_to(length)).unwrap()));
    }
    assert!(together.is_empty());
    futures::stream::iter(responses)
}

pub fn events(response: &WatchResponse) -> Vec<mvccpb::Event> {
    response.events.iter().map(|event| mvccpb::Event::decode(event.clone()).expect("an event")).collect()
}

/// Waits for what another thread is about to do.
pub async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        tokio::task::yield_now().await;
    }
}

/// A hub on a history with this many puts of `k`.
pub fn hub_at(puts: usize) -> (Arc<Hub>, Arc<TestHistory>) {
    let history = Arc::new(TestHistory { compacted: Mutex::new(-1), ..Default::default() });
    for _ in 0..puts {
        history.put("k", Bytes::new());
    }
    let hub = Hub::new();
    hub.attach_history(history.clone());
    (hub, history)
}
