//! The KV service: reads from the store behind a read barrier, writes through Raft.
//!
//! ```text
//! Range, read-only Txn ── serializable? ──no──> read barrier ──> store
//! Put, DeleteRange, Txn, Compact ──> propose ──> outcome of applying it here
//! both on behalf of a caller, whose rights are checked: for reads here, for writes when they are applied
//! ```
//! Source: etcd, `server/etcdserver/v3_server.go`.

use std::{pin::Pin, sync::Arc};

use bytes::Bytes;
use futures::Stream;
use proto::{
    command::{AuthInfo, command::Op, outcome::Result as Outcome},
    etcdserverpb::{
        CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse,
        RangeRequest, RangeResponse, RangeStreamResponse, TxnRequest, TxnResponse, kv_server::Kv,
    },
};
use storage::{AuthState, RangeCursor, ReadError, Right, Store, cost, host};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::{
    admit::{Learner, admit},
    auth::Caller,
    checks,
    context::Context,
    guard::answers::{self, Answers},
    quota, unary,
};

/// Of answers.
const HEADER_FIELD: u32 = 1;
/// A range that may bring more keys than this is read on a thread that may block.
const INLINE_KEYS_MAX: i64 = 32;
const STREAM_PART_BYTES: usize = 512 * 1024;
/// Parts of a streamed range that wait for the client. When they are full, reading goes on when it has taken one.
const STREAM_PARTS_AHEAD: usize = 2;

pub struct KvService {
    ctx: Arc<Context>,
}

impl KvService {
    pub fn new(ctx: Arc<Context>) -> Self {
        KvService { ctx }
    }

    async fn read_range<T: Send + 'static>(
        &self,
        request: RangeRequest,
        answers: Option<&Answers>,
        read: impl FnOnce(&Store, &RangeRequest) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, Status> {
        let is_counted_by_index = request.count_only && request.revision <= 0;
        if is_short(&request) || is_counted_by_index {
            wait_for(answers.map(Answers::room)).await;
            read(&self.ctx.store, &request).map_err(|error| self.ctx.read_error(error))
        } else {
            // In a box: a read of one key is not to have room for this.
            let read = Box::pin(async {
                let _place = wait_for(answers.map(Answers::room_for_range)).await;
                self.ctx.blocking(move |store| read(store, &request)).await
            });
            read.await
        }
    }

    /// Range, by `read`; with what bounds the answers of the connection.
    async fn range_by<T: Send + 'static>(
        &self,
        request: Request<RangeRequest>,
        read: impl FnOnce(&Store, &RangeRequest) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<(T, Option<Arc<Answers>>), Status> {
        self.admit_range(&request)?;
        let answers = answers::of(&request);
        let (caller, request) = (self.ctx.auth.caller(&request), request.into_inner());
        checks::range(&request)?;
        let timed = self.ctx.metrics.request("Range");
        if !request.serializable {
            self.ctx.read_barrier().await?;
        }
        let (key, range_end) = (request.key.clone(), request.range_end.clone());
        let check = |auth: &AuthState, info: Option<&AuthInfo>| auth.check_keys(info, &key, &range_end, Right::Read);
        let read = self.read_range(request, answers.as_deref(), read);
        let read = self.ctx.read_by(&caller, check, read).await?;
        timed.done();
        Ok((read, answers))
    }

    /// Range, whose answer is put together as it stands on the wire where that can be: a message with its prefix.
    pub async fn range_encoded(self: Arc<Self>, request: Request<RangeRequest>) -> Result<Response<Bytes>, Status> {
        if !storage::is_plain(request.get_ref()) {
            let (message, answer, extensions) = self.range(request).await?.into_parts();
            return Ok(Response::from_parts(message, unary::with_prefix(&answer)?, extensions));
        }
        let ctx = self.ctx.clone();
        let begin = move |revision, out: &mut Vec<u8>| {
            out.extend([0; unary::PREFIX_BYTES]);
            prost::encoding::message::encode(HEADER_FIELD, &ctx.header(revision), out);
        };
        let read = move |store: &Store, request: &RangeRequest| store.range_encoded(request, &begin);
        let (mut message, answers) = self.range_by(request, read).await?;
        unary::set_prefix(&mut message)?;
        let bytes = message.len();
        Ok(answers::counted_bytes(Bytes::from(message), bytes, answers.as_ref()))
    }

    /// Put, whose answer is encoded as it stands on the wire: a message with its prefix.
    pub async fn put_encoded(self: Arc<Self>, request: Request<PutRequest>) -> Result<Response<Bytes>, Status> {
        Ok(Response::new(unary::with_prefix(&self.put_by(request).await?)?))
    }

    async fn put_by(&self, request: Request<PutRequest>) -> Result<PutResponse, Status> {
        admit(&self.ctx, request.metadata(), Learner::Refuses)?;
        let (caller, request) = (self.ctx.auth.caller(&request), request.into_inner());
        quota::check(&self.ctx, cost::put(&request)).await?;
        checks::put(&request)?;
        match self.ctx.propose_by(&caller, Op::Put(request)).await? {
            Outcome::Put(mut response) => {
                self.ctx.stamp(&mut response.header);
                Ok(response)
            }
            other => Err(self.ctx.wrong_outcome("Put", &other)),
        }
    }

    async fn read_txn(&self, request: TxnRequest, answers: Option<&Answers>) -> Result<TxnResponse, Status> {
        let compares_keys = request.compare.iter().all(|compare| compare.range_end.is_empty());
        let keys = request.compare.len() + request.success.len().max(request.failure.len());
        if compares_keys && keys <= INLINE_KEYS_MAX as usize && checks::ranges(&request).flatten().all(is_single) {
            wait_for(answers.map(Answers::room)).await;
            self.ctx.store.read_txn(&request).map_err(|error| self.ctx.read_error(error))
        } else {
            let _place = wait_for(answers.map(Answers::room_for_range)).await;
            self.ctx.blocking(move |store| store.read_txn(&request)).await
        }
    }

    async fn read_txn_by(
        &self,
        caller: &Caller,
        request: TxnRequest,
        answers: Option<&Answers>,
    ) -> Result<TxnResponse, Status> {
        if !self.ctx.auth.is_enabled() {
            return self.read_txn(request, answers).await;
        }
        let checked = request.clone();
        let check = |auth: &AuthState, info: Option<&AuthInfo>| auth.check_read_txn(info, &checked);
        self.ctx.read_by(caller, check, self.read_txn(request, answers)).await
    }

    fn admit_range(&self, request: &Request<RangeRequest>) -> Result<(), Status> {
        let learner = if request.get_ref().serializable { Learner::Serves } else { Learner::Refuses };
        admit(&self.ctx, request.metadata(), learner)
    }
}

#[tonic::async_trait]
impl Kv for KvService {
    async fn range(&self, request: Request<RangeRequest>) -> Result<Response<RangeResponse>, Status> {
        let (mut response, answers) = self.range_by(request, Store::range).await?;
        self.ctx.stamp(&mut response.header);
        Ok(answers::counted(response, answers.as_ref()))
    }

    type RangeStreamStream = Pin<Box<dyn Stream<Item = Result<RangeStreamResponse, Status>> + Send>>;

    async fn range_stream(&self, request: Request<RangeRequest>) -> Result<Response<Self::RangeStreamStream>, Status> {
        self.admit_range(&request)?;
        let (caller, request) = (self.ctx.auth.caller(&request), request.into_inner());
        checks::range_stream(&request)?;
        if !request.serializable {
            self.ctx.read_barrier().await?;
        }
        let auth_revision = self.ctx.auth.require_range(&caller, &request.key, &request.range_end).await?;
        let cursor = self.ctx.blocking(move |store| store.range_cursor(&request, STREAM_PART_BYTES)).await?;
        let (sender, receiver) = mpsc::channel(STREAM_PARTS_AHEAD);
        host::spawn(send_parts(self.ctx.clone(), cursor, sender, auth_revision));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        self.put_by(request).await.map(Response::new)
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        admit(&self.ctx, request.metadata(), Learner::Refuses)?;
        let (caller, request) = (self.ctx.auth.caller(&request), request.into_inner());
        checks::delete_range(&request)?;
        match self.ctx.propose_by(&caller, Op::DeleteRange(request)).await? {
            Outcome::DeleteRange(mut response) => {
                self.ctx.stamp(&mut response.header);
                Ok(Response::new(response))
            }
            other => Err(self.ctx.wrong_outcome("DeleteRange", &other)),
        }
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        admit(&self.ctx, request.metadata(), Learner::Refuses)?;
        let answers = answers::of(&request);
        let (caller, request) = (self.ctx.auth.caller(&request), request.into_inner());
        quota::check(&self.ctx, cost::txn(&request)).await?;
        checks::txn(&request, self.ctx.limits.max_txn_ops)?;
        let mut response = if checks::is_read_only(&request) {
            let timed = self.ctx.metrics.request("ReadonlyTxn");
            if !checks::is_serializable(&request) {
                self.ctx.read_barrier().await?;
            }
            let response = self.read_txn_by(&caller, request, answers.as_deref()).await?;
            timed.done();
            response
        } else {
            match self.ctx.propose_by(&caller, Op::Txn(request)).await? {
                Outcome::Txn(response) => response,
                other => return Err(self.ctx.wrong_outcome("Txn", &other)),
            }
        };
        self.ctx.stamp(&mut response.header);
        Ok(answers::counted(response, answers.as_ref()))
    }

    async fn compact(&self, request: Request<CompactionRequest>) -> Result<Response<CompactionResponse>, Status> {
        admit(&self.ctx, request.metadata(), Learner::Refuses)?;
        let caller = self.ctx.auth.caller(&request);
        self.ctx.auth.require_admin(&caller).await?;
        let CompactionRequest { revision, physical } = *request.get_ref();
        let mut response = match self.ctx.propose_by(&caller, Op::Compact(request.into_inner())).await? {
            Outcome::Compact(response) => response,
            other => return Err(self.ctx.wrong_outcome("Compact", &other)),
        };
        if physical {
            self.ctx.store.wait_compacted(revision).await.map_err(|error| self.ctx.storage_error(error))?;
        }
        self.ctx.stamp(&mut response.header);
        Ok(Response::new(response))
    }
}

fn is_single(request: &RangeRequest) -> bool {
    request.range_end.is_empty()
}

/// Waits for room, where there is a connection to have it.
async fn wait_for<F: Future>(room: Option<F>) -> Option<F::Output> {
    match room {
        Some(room) => Some(room.await),
        None => None,
    }
}

/// Sorts and filters read the whole range, whatever the limit.
fn is_short(request: &RangeRequest) -> bool {
    let is_limited = (1..=INLINE_KEYS_MAX).contains(&request.limit) && checks::range_stream(request).is_ok();
    is_single(request) || is_limited
}

/// Reads part after part, each when there is room for it, until all are sent or the client is gone.
async fn send_parts(
    ctx: Arc<Context>,
    mut cursor: RangeCursor,
    sender: mpsc::Sender<Result<RangeStreamResponse, Status>>,
    auth_revision: u64,
) {
    loop {
        let Ok(place) = sender.reserve().await else { return };
        if let Err(error) = ctx.auth.require_unchanged(auth_revision) {
            return place.send(Err(error.into()));
        }
        let read = ctx.blocking(move |_| cursor.next_part().map(|part| (cursor, part))).await;
        match read {
            Ok((_, None)) => return,
            Ok((rest, Some(mut part))) => {
                cursor = rest;
                // Only the part that ends the range has a header.
                if part.header.is_some() {
                    ctx.stamp(&mut part.header);
                }
                place.send(Ok(RangeStreamResponse { range_response: Some(part) }));
            }
            Err(status) => return place.send(Err(status)),
        }
    }
}
