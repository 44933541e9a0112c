//! Streams that watchers share.
//!
//! All watchers of a client are on one stream, as long as it holds. Each has a bounded queue. One whose queue is full is
//! taken off the stream, so that it holds up no other; when it has emptied the queue it comes back, and goes on from the
//! revision it has reached.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, OnceLock},
};

use parking_lot::Mutex;
use proto::etcdserverpb::{
    WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
    watch_client::WatchClient, watch_request::RequestUnion,
};
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    task::AbortHandle,
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Request, Status, metadata::MetadataValue};

use super::position::ALL;
use crate::{Error, connection::Route, endpoint::Member, identity::Token};

/// How many responses wait for a watcher that is slow.
const QUEUE: usize = 32;

/// Why a stream ended.
#[derive(Debug, Clone)]
pub(super) enum Broken {
    /// Another stream may do better.
    Resumable(Error),
    /// It would end the same way.
    ForGood(Error),
}

/// The stream that watchers join.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    current: Mutex<Option<Arc<Stream>>>,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub target: Arc<Member>,
    pub token: Token,
    /// It has one watcher, for which it waits when that is slow.
    is_alone: bool,
    /// None: it is closed.
    watchers: Mutex<Option<Watchers>>,
    reason: OnceLock<Broken>,
    reader: OnceLock<AbortHandle>,
}

#[derive(Debug)]
struct Watchers {
    /// Not bounded: a watcher has at most one request of each kind on its way.
    requests: mpsc::UnboundedSender<WatchRequest>,
    queues: HashMap<i64, mpsc::Sender<WatchResponse>>,
    /// Those that the server has not answered yet, in the order of their requests.
    pending: VecDeque<i64>,
    next_id: i64,
}

/// A watcher's place on a stream. Dropping it takes the watcher off.
#[derive(Debug)]
pub(super) struct Subscription {
    pub stream: Arc<Stream>,
    id: i64,
    pub responses: mpsc::Receiver<WatchResponse>,
}

fn message(request: RequestUnion) -> WatchRequest {
    WatchRequest { request_union: Some(request) }
}

impl Hub {
    /// Puts a watcher on the stream, or on a new one.
    pub(super) fn join(&self, route: &Route, token: Token, create: WatchCreateRequest, alone: bool) -> Subscription {
        if alone {
            return Stream::open(route, token, create, true).1;
        }
        let mut current = self.current.lock();
        let open = current.as_ref().filter(|stream| stream.token.is_same(&token));
        if let Some(joined) = open.and_then(|stream| stream.join(&create)) {
            return joined;
        }
        let (stream, subscription) = Stream::open(route, token, create, false);
        *current = Some(stream);
        subscription
    }
}

impl Stream {
    /// A stream with its first watcher.
    fn open(route: &Route, token: Token, create: WatchCreateRequest, is_alone: bool) -> (Arc<Stream>, Subscription) {
        let (requests, to_send) = mpsc::unbounded_channel();
        let watchers = Watchers { requests, queues: HashMap::new(), pending: VecDeque::new(), next_id: 1 };
        let stream = Arc::new(Stream {
            target: route.target(),
            token,
            is_alone,
            watchers: Mutex::new(Some(watchers)),
            reason: OnceLock::new(),
            reader: OnceLock::new(),
        });
        let subscription = stream.join(&create).expect("nobody has closed it yet");
        let reader = tokio::spawn(read(stream.clone(), route.clone(), to_send));
        stream.reader.get_or_init(|| reader.abort_handle());
        (stream, subscription)
    }

    /// None: it is closed.
    fn join(self: &Arc<Stream>, create: &WatchCreateRequest) -> Option<Subscription> {
        let mut watchers = self.watchers.lock();
        let watchers = watchers.as_mut()?;
        let id = watchers.next_id;
        watchers.next_id += 1;
        let (queue, responses) = mpsc::channel(QUEUE);
        let create = WatchCreateRequest { watch_id: id, ..create.clone() };
        watchers.requests.send(message(RequestUnion::CreateRequest(create))).ok()?;
        watchers.queues.insert(id, queue);
        watchers.pending.push_back(id);
        Some(Subscription { stream: self.clone(), id, responses })
    }

    /// Why there is nothing more. None: the watcher was too slow.
    pub fn reason(&self) -> Option<Broken> {
        self.reason.get().cloned()
    }

    /// Ends it for all its watchers, who go elsewhere.
    pub fn close(&self, reason: Broken) {
        self.reason.get_or_init(|| reason);
        *self.watchers.lock() = None;
        if let Some(reader) = self.reader.get() {
            reader.abort();
        }
    }

    fn leave(&self, id: i64) {
        let mut watchers = self.watchers.lock();
        let Some(open) = watchers.as_mut() else { return };
        open.remove(id);
        if open.queues.is_empty() {
            *watchers = None;
            if let Some(reader) = self.reader.get() {
                reader.abort();
            }
        }
    }

    fn only_queue(&self) -> Option<mpsc::Sender<WatchResponse>> {
        let watchers = self.watchers.lock();
        watchers.as_ref().filter(|_| self.is_alone).and_then(|watchers| watchers.queues.values().next().cloned())
    }

    /// Hands a response to those whom it is for.
    fn dispatch(&self, mut response: WatchResponse) {
        let mut watchers = self.watchers.lock();
        let Some(watchers) = watchers.as_mut() else { return };
        if response.created {
            // A server that refuses a watcher does not tell which; the answers have the order of the requests.
            let first = watchers.pending.pop_front();
            if response.watch_id == ALL {
                response.watch_id = first.unwrap_or(ALL);
            }
        } else if response.watch_id == ALL {
            // To one that is not created yet it says nothing: what it asked for is still to come.
            let is_created = |id: &i64| !watchers.pending.contains(id);
            let ids: Vec<i64> = watchers.queues.keys().copied().filter(is_created).collect();
            ids.into_iter().for_each(|id| watchers.hand_over(id, response.clone()));
            return;
        }
        let (id, is_last) = (response.watch_id, response.canceled);
        watchers.hand_over(id, response);
        if is_last {
            watchers.queues.remove(&id);
        }
    }
}

impl Watchers {
    fn hand_over(&mut self, id: i64, response: WatchResponse) {
        let Some(queue) = self.queues.get(&id) else { return };
        if let Err(TrySendError::Full(_)) = queue.try_send(response) {
            tracing::debug!(id, "a watcher is slow, and comes back later");
            self.remove(id);
        }
    }

    fn remove(&mut self, id: i64) {
        if self.queues.remove(&id).is_some() {
            // Fails when the stream has ended, and the watcher with it.
            let _ = self.requests.send(message(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: id })));
        }
    }
}

impl Subscription {
    /// Asks the server to say how far it is.
    pub fn request_progress(&self) {
        if let Some(watchers) = self.stream.watchers.lock().as_ref() {
            // Fails when the stream has ended, which the watcher finds out by itself.
            let _ = watchers.requests.send(message(RequestUnion::ProgressRequest(WatchProgressRequest {})));
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.stream.leave(self.id);
    }
}

async fn read(stream: Arc<Stream>, route: Route, requests: mpsc::UnboundedReceiver<WatchRequest>) {
    let mut request = Request::new(UnboundedReceiverStream::new(requests));
    // A member that has lost its leader shall end the stream, so that we go to one that has not.
    request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
    let connection = stream.token.connection(stream.target.channel.clone());
    let mut client = WatchClient::new(connection).max_decoding_message_size(route.answer_bytes_max());
    let ended = async {
        let mut responses = client.watch(request).await?.into_inner();
        while let Some(response) = responses.message().await? {
            stream.target.works();
            match stream.only_queue() {
                // Fails when the watcher has gone, and the stream with it.
                Some(queue) => queue.send(response).await.unwrap_or_default(),
                None => stream.dispatch(response),
            }
        }
        Ok(())
    };
    let reason = match ended.await {
        Ok(()) => Broken::Resumable(Error::Unreachable("the watch stream was closed".to_string())),
        Err(status) => broken(status, &route, &stream.token),
    };
    route.give_up(&stream.target);
    stream.close(reason);
}

/// Broken connections and members that go down have many codes; what another attempt cannot mend has few.
fn broken(status: Status, route: &Route, token: &Token) -> Broken {
    let for_good = matches!(
        status.code(),
        Code::InvalidArgument
            | Code::NotFound
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
    );
    let error = Error::from(status);
    let is_stale = route.is_stale(token, &error);
    if for_good && !is_stale { Broken::ForGood(error) } else { Broken::Resumable(error) }
}
