//! etcd's Lock service: whose key is the oldest below the name holds the lock.
//! Sources: etcd, `server/etcdserver/api/v3lock/lock.go`, `client/v3/concurrency/mutex.go`.

use proto::{
    etcdserverpb::{TxnRequest, response_op::Response as OpResponse},
    v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse, lock_server::Lock},
};
use tonic::{Request, Response, Status};

use super::{
    caller::{Caller, Local},
    queue,
};

pub struct LockService {
    local: Local,
}

impl LockService {
    pub fn new(local: Local) -> Self {
        LockService { local }
    }
}

#[tonic::async_trait]
impl Lock for LockService {
    /// Answers when the lock is held.
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let (caller, LockRequest { name, lease }) = self.local.for_caller(request);
        let lease = caller.session(lease).await?;
        let prefix = queue::prefix(&name);
        let key = queue::key(&prefix, lease);
        let Queued { header, create_revision, is_first } = enqueue(&caller, &prefix, &key, lease).await?;
        let header = if is_first {
            header
        } else {
            let place = Place { held: Some((caller, key.clone())) };
            place.wait(&prefix, create_revision).await?
        };
        Ok(Response::new(LockResponse { header, key: key.into() }))
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        let (caller, UnlockRequest { key }) = self.local.for_caller(request);
        let header = caller.delete_range(queue::delete(&key)).await?.header;
        Ok(Response::new(UnlockResponse { header }))
    }
}

type Header = Option<proto::etcdserverpb::ResponseHeader>;

/// A key in the queue.
struct Queued {
    header: Header,
    create_revision: i64,
    is_first: bool,
}

/// Puts the key into the queue where it is not in it yet, and sees who is first.
async fn enqueue(caller: &Caller, prefix: &[u8], key: &[u8], lease: i64) -> Result<Queued, Status> {
    let owner = queue::get_op(queue::first(prefix));
    let txn = TxnRequest {
        compare: vec![queue::created_at(key, 0)],
        success: vec![queue::put_op(key, Default::default(), lease), owner.clone()],
        failure: vec![queue::get_op(queue::single(key)), owner],
    };
    let answer = caller.txn(txn).await?;
    let first_created = |index: usize| match &answer.responses.get(index)?.response {
        Some(OpResponse::ResponseRange(range)) => range.kvs.first().map(|kv| kv.create_revision),
        _ => None,
    };
    let revision = answer.header.as_ref().map_or(0, |header| header.revision);
    let create_revision = if answer.succeeded { revision } else { first_created(0).unwrap_or(revision) };
    let is_first = first_created(1).is_none_or(|owner| owner == create_revision);
    Ok(Queued { header: answer.header, create_revision, is_first })
}

/// A place in the queue that is given up unless the lock is got: when the wait fails, and when the client goes away,
/// which drops the call.
struct Place {
    held: Option<(Caller, Vec<u8>)>,
}

impl Place {
    async fn wait(mut self, prefix: &[u8], create_revision: i64) -> Result<Header, Status> {
        let (caller, key) = self.held.as_ref().expect("a place is held until the wait ends");
        queue::wait_for_turn(caller, prefix, create_revision - 1).await?;
        let own = caller.range(queue::single(key)).await?;
        self.held = None;
        if own.kvs.is_empty() {
            // The lease has ended meanwhile, and the key with it.
            return Err(Status::unknown("mutex: session is expired"));
        }
        Ok(own.header)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some((caller, key)) = self.held.take() else { return };
        tokio::spawn(async move {
            if let Err(status) = caller.delete_range(queue::delete(&key)).await {
                tracing::debug!(error = status.message(), "a waiter's key stays until its lease ends");
            }
        });
    }
}
