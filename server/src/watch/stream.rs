//! One stream of watches: a task reads its requests; the response side sends what comes into its outbox.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream::unfold};
use proto::{
    EtcdError, KeyRange,
    etcdserverpb::{
        WatchCreateRequest, WatchRequest, watch_create_request::FilterType, watch_request::RequestUnion as Request,
    },
    raw::WatchResponse,
};
use storage::{StorageError, host};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Status};

use super::{
    Hub, Member, catch_up,
    encode::{self, encode},
    hub::{Shared, Watches},
    outbox::{Item, Taken},
    watcher::{Filter, Watch, Watcher},
};

/// Responses that go together, in bytes, unless it is a single one.
const TOGETHER_BYTES: usize = 32 << 10;

/// Opens a stream. It ends when the responses are dropped, with an error when `leader_lost` is ready, when the member
/// stops or when a request cannot be read; not with the last request.
pub(super) fn open(
    hub: &Hub,
    member: Arc<dyn Member>,
    requests: impl Stream<Item = Result<WatchRequest, Status>> + Send + Unpin + 'static,
    leader_lost: impl Future<Output = ()> + Send + 'static,
    permission: impl Permission,
) -> Responses {
    let (hub, watches) = (hub.shared(), hub.shared().watches());
    hub.streams.fetch_add(1, Relaxed);
    let gone = CancellationToken::new();
    let receiver = Receiver { hub: hub.clone(), watches: watches.clone(), gone: gone.clone() };
    host::spawn(receiver.run(requests, leader_lost, permission, member.shutdown(), member.progress_interval()));
    Responses {
        hub,
        member,
        watches,
        ready: VecDeque::new(),
        items: VecDeque::new(),
        header: encode::Header::default(),
        lagging: Vec::new(),
        serve_lagging: false,
        _gone: gone.drop_guard(),
    }
}

struct Receiver {
    hub: Arc<Shared>,
    watches: Arc<Watches>,
    /// The responses were dropped.
    gone: CancellationToken,
}

impl Receiver {
    async fn run(
        self,
        mut requests: impl Stream<Item = Result<WatchRequest, Status>> + Unpin,
        leader_lost: impl Future<Output = ()>,
        permission: impl Permission,
        shutdown: CancellationToken,
        progress_interval: Duration,
    ) {
        // So that the streams of clients that came together do not all tell progress together.
        let interval = progress_interval.mul_f64(1.0 + rand::random_range(0.0..0.1));
        let mut ticks = tokio::time::interval_at(Instant::now() + interval, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let outbox = &self.watches.outbox;
        let mut open = true;
        tokio::pin!(leader_lost);
        loop {
            let request = async {
                outbox.room().await;
                requests.next().await
            };
            tokio::select! {
                biased;
                () = self.gone.cancelled() => return,
                () = shutdown.cancelled() => return outbox.end(EtcdError::Stopped.into()),
                () = &mut leader_lost => return outbox.end(EtcdError::NoLeader.into()),
                _ = ticks.tick() => self.hub.tick(&self.watches),
                request = request, if open => match request {
                    Some(Ok(request)) => self.handle(request, &permission).await,
                    Some(Err(status)) => return outbox.end(read_error(status)),
                    // As in etcd the watches go on.
                    None => open = false,
                },
            }
        }
    }

    fn refuse(&self, reason: &'static str) {
        self.watches.outbox.answer(Item::Refused { reason, revision: self.hub.history().revision() });
    }

    /// (etcd: `v3rpc/watch.go`, recvLoop.)
    async fn handle(&self, request: WatchRequest, permission: &impl Permission) {
        match request.request_union {
            Some(Request::CreateRequest(create)) if create.start_revision < 0 => {
                self.refuse(EtcdError::Compacted.message());
            }
            Some(Request::CreateRequest(create)) => {
                let watch = watch(create);
                match permission.check(&watch.range).await {
                    Ok(()) => self.hub.watch(&self.watches, watch),
                    Err(error) => self.refuse(denial(error)),
                }
            }
            Some(Request::CancelRequest(cancel)) => self.hub.cancel(&self.watches, cancel.watch_id),
            Some(Request::ProgressRequest(_)) => self.hub.request_progress(&self.watches),
            None => tracing::debug!("a watch request of an unknown kind is passed over"),
        }
    }
}

/// Whether a client may watch a range. It is asked when a watch is created, and not again.
pub(super) trait Permission: Send + Sync + 'static {
    fn check(&self, range: &KeyRange) -> impl Future<Output = Result<(), EtcdError>> + Send;
}

/// The reason for refusing a watch, in etcd's words: with the code. (etcd: `v3rpc/watch.go`.)
fn denial(error: EtcdError) -> &'static str {
    match error {
        EtcdError::InvalidAuthToken => "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token",
        EtcdError::AuthOldRevision => {
            "rpc error: code = InvalidArgument desc = etcdserver: revision of auth store is old"
        }
        EtcdError::UserEmpty => "rpc error: code = InvalidArgument desc = etcdserver: user name is empty",
        _ => "rpc error: code = PermissionDenied desc = etcdserver: permission denied",
    }
}

fn watch(create: WatchCreateRequest) -> Watch {
    let filter = |kind: FilterType| create.filters.contains(&(kind as i32));
    let filter = Filter { no_put: filter(FilterType::Noput), no_delete: filter(FilterType::Nodelete) };
    // The smallest key there is.
    let key = if create.key.is_empty() { Bytes::from_static(b"\0") } else { create.key };
    Watch {
        id: create.watch_id,
        range: KeyRange::new(key, create.range_end),
        start: create.start_revision,
        filter,
        previous: create.prev_kv,
        fragment: create.fragment,
        progress: create.progress_notify,
    }
}

fn read_error(status: Status) -> Status {
    if status.code() == Code::Cancelled { EtcdError::WatchCanceled.into() } else { status }
}

pub(super) struct Responses {
    hub: Arc<Shared>,
    member: Arc<dyn Member>,
    watches: Arc<Watches>,
    /// To be sent at once.
    ready: VecDeque<WatchResponse>,
    /// To be encoded.
    items: VecDeque<Item>,
    header: encode::Header,
    /// To be brought up to date. All that went to these before has been sent when both of the above are empty.
    lagging: Vec<Arc<Watcher>>,
    /// Whether it is their turn: they and the outbox alternate.
    serve_lagging: bool,
    _gone: DropGuard,
}

impl Responses {
    /// The responses one by one.
    pub fn one_by_one(self) -> impl Stream<Item = Result<WatchResponse, Status>> + Send + 'static {
        unfold(Some(Box::new(self)), |responses| async {
            let mut responses = responses?;
            let next = responses.next().await;
            let rest = next.is_ok().then_some(responses);
            Some((next, rest))
        })
    }

    /// The responses as they stand on the wire, with their prefixes: as many together as there are.
    pub fn encoded(self) -> impl Stream<Item = Result<Bytes, Status>> + Send + 'static {
        unfold(Some(Box::new(self)), |responses| async {
            let mut responses = responses?;
            let next = responses.next_encoded().await;
            let rest = next.is_ok().then_some(responses);
            Some((next, rest))
        })
    }

    async fn next(&mut self) -> Result<WatchResponse, Status> {
        loop {
            if let Some(response) = self.ready.pop_front() {
                return Ok(response);
            }
            match self.take_item() {
                Some(item) => {
                    let history = self.hub.history().as_ref();
                    encode(item, self.member.as_ref(), history, &mut self.ready).map_err(|error| self.fatal(&error))?;
                }
                None => self.fill().await?,
            }
        }
    }

    async fn next_encoded(&mut self) -> Result<Bytes, Status> {
        while self.items.is_empty() {
            self.fill().await?;
        }
        let bytes = self.items.iter().map(Item::size).sum::<usize>().min(TOGETHER_BYTES);
        let mut out = encode::Out::new(bytes, std::mem::take(&mut self.header));
        while out.len() < TOGETHER_BYTES
            && let Some(item) = self.take_item()
        {
            let history = self.hub.history().as_ref();
            out.append(item, self.member.as_ref(), history).map_err(|error| self.fatal(&error))??;
        }
        let (bytes, header) = out.end();
        self.header = header;
        Ok(bytes)
    }

    fn take_item(&mut self) -> Option<Item> {
        let item = self.items.pop_front();
        if let Some(Item::Events(delivery)) = &item {
            delivery.watcher.sent_events();
        }
        item
    }

    fn take_in(&mut self, items: VecDeque<Item>) {
        let events = |item: &Item| if let Item::Events(delivery) = item { delivery.events.len() } else { 0 };
        self.hub.events.fetch_add(items.iter().map(events).sum::<usize>() as u64, Relaxed);
        self.items = items;
    }

    /// Gets what comes next, when there are no items. Those who wait for it look again.
    async fn fill(&mut self) -> Result<(), Status> {
        if self.serve_lagging && !self.lagging.is_empty() {
            self.serve_lagging = false;
            let deliveries = catch_up::catch_up(&self.hub, &self.watches, &mut self.lagging).await;
            let deliveries = deliveries.map_err(|error| self.fatal(&error))?;
            self.take_in(deliveries.into_iter().map(Item::Events).collect());
            return Ok(());
        }
        match self.watches.outbox.take() {
            Taken::Ended(status) => return Err(status),
            Taken::Items { items, mut lagging } => {
                self.take_in(items);
                self.lagging.append(&mut lagging);
                self.serve_lagging = true;
            }
        }
        if self.items.is_empty() && self.lagging.is_empty() {
            self.watches.outbox.filled().await;
        }
        Ok(())
    }

    fn fatal(&self, error: &StorageError) -> Status {
        self.member.fatal(error);
        EtcdError::Stopped.into()
    }
}

impl Drop for Responses {
    fn drop(&mut self) {
        self.hub.remove(&self.watches);
    }
}
