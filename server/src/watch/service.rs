//! etcd's Watch service.

use std::{sync::Arc, time::Duration};

use futures::{Stream, StreamExt as _, TryStreamExt as _, stream::BoxStream};
use proto::{
    EtcdError, KeyRange,
    etcdserverpb::{ResponseHeader, WatchRequest},
    raw::{WatchResponse, watch_server::Watch},
};
use storage::StorageError;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use super::{
    Hub, Member, leader_lost,
    stream::{self, Permission, Responses},
};
use crate::{
    admit::{Learner, admit},
    auth::Caller,
    context::Context,
    streaming::Encoded,
};

/// What gRPC takes beside the request. (etcd: `v3rpc/grpc.go`, grpcOverheadBytes.)
const OVERHEAD_BYTES: usize = 512 * 1024;
/// (etcd: `v3rpc/watch.go`.)
const PROGRESS_INTERVAL_MIN: Duration = Duration::from_millis(100);

pub struct WatchService {
    context: Arc<Context>,
    hub: Arc<Hub>,
}

impl WatchService {
    pub fn new(context: Arc<Context>, hub: Arc<Hub>) -> Self {
        WatchService { context, hub }
    }

    /// Watch, whose responses are put together as they stand on the wire.
    pub fn watch_encoded<S>(&self, request: Request<S>) -> Result<Encoded, Status>
    where
        S: Stream<Item = Result<WatchRequest, Status>> + Send + Unpin + 'static,
    {
        Ok(self.open(request)?.encoded().boxed())
    }

    fn open<S>(&self, request: Request<S>) -> Result<Responses, Status>
    where
        S: Stream<Item = Result<WatchRequest, Status>> + Send + Unpin + 'static,
    {
        let context = &self.context;
        admit(context, request.metadata(), Learner::Refuses)?;
        let leader_lost = leader_lost(context, request.metadata());
        let permission = OfCaller { caller: Caller::of(&request), context: context.clone() };
        let metrics = context.metrics.clone();
        let requests = request.into_inner();
        let requests = requests.inspect_err(move |status| metrics.rpc.receive_failed("watch", status));
        Ok(stream::open(&self.hub, context.clone(), requests, leader_lost, permission))
    }
}

#[tonic::async_trait]
impl Watch for WatchService {
    type WatchStream = BoxStream<'static, Result<WatchResponse, Status>>;

    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(self.open(request)?.one_by_one().boxed()))
    }
}

/// What the client that opened a stream may watch.
struct OfCaller {
    caller: Caller,
    context: Arc<Context>,
}

impl Permission for OfCaller {
    async fn check(&self, range: &KeyRange) -> Result<(), EtcdError> {
        let (key, range_end): (&[u8], &[u8]) = match range {
            KeyRange::Single(key) => (key, b""),
            KeyRange::Span { start, end: None } => (start, b"\0"),
            KeyRange::Span { start, end: Some(end) } => (start, end),
        };
        self.context.auth.require_range(&self.caller, key, range_end).await.map(|_| ())
    }
}

impl Member for Context {
    fn header(&self, revision: i64) -> ResponseHeader {
        Context::header(self, revision)
    }

    fn response_bytes_max(&self) -> usize {
        self.limits.max_request_bytes + OVERHEAD_BYTES
    }

    fn progress_interval(&self) -> Duration {
        self.watch_progress_interval.max(PROGRESS_INTERVAL_MIN)
    }

    fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    fn fatal(&self, error: &StorageError) {
        self.fatal.report(error);
    }
}
