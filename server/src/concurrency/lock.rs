//! etcd's Lock service: whose key is the oldest below the name holds the lock.
//! Sources: etcd, `server/etcdserver/api/v3lock/lock.go`, `client/v3/concurrency/mutex.go`.

use proto::{
    etcdserverpb::{TxnRequest, response_op::Response as OpResponse},
    v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse, lock_server::Lock},
};
use tonic::{Request, Response, Status};

use super::{
    caller::{Caller, Local},
    place::{self, Header, Place},
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
        let queued = place::to_the_end(enqueue(caller.clone(), prefix.clone(), key.clone(), lease)).await?;
        let Queued { mut place, header, is_first } = queued;
        let header = if is_first { header } else { wait(&mut place, &prefix).await? };
        place.keep();
        Ok(Response::new(LockResponse { header, key: key.into() }))
    }

    async fn unlock(&self, request: Request<UnlockRequest>) -> Result<Response<UnlockResponse>, Status> {
        let (caller, UnlockRequest { key }) = self.local.for_caller(request);
        let header = caller.delete_range(queue::delete(&key)).await?.header;
        Ok(Response::new(UnlockResponse { header }))
    }
}

struct Queued {
    place: Place,
    header: Header,
    is_first: bool,
}

/// Puts the key into the queue where it is not in it yet, and sees who is first.
async fn enqueue(caller: Caller, prefix: Vec<u8>, key: Vec<u8>, lease: i64) -> Result<Queued, Status> {
    let owner = queue::get_op(queue::first(&prefix));
    let txn = TxnRequest {
        compare: vec![queue::created_at(&key, 0)],
        success: vec![queue::put_op(&key, Default::default(), lease), owner.clone()],
        failure: vec![queue::get_op(queue::single(&key)), owner],
    };
    let answer = caller.txn(txn).await?;
    let first_created = |index: usize| match &answer.responses.get(index)?.response {
        Some(OpResponse::ResponseRange(range)) => range.kvs.first().map(|kv| kv.create_revision),
        _ => None,
    };
    let revision = answer.header.as_ref().map_or(0, |header| header.revision);
    let is_new = answer.succeeded;
    let create_revision = if is_new { revision } else { first_created(0).unwrap_or(revision) };
    let is_first = first_created(1).is_none_or(|owner| owner == create_revision);
    // Whoever holds the lock already does not lose it by asking again.
    let place = Place::new(caller, key, create_revision, !is_new);
    Ok(Queued { place, header: answer.header, is_first })
}

/// Waits for the lock. An error gives the place up.
async fn wait(place: &mut Place, prefix: &[u8]) -> Result<Header, Status> {
    let turn = place.wait_for_turn(prefix).await?;
    turn.ok_or_else(|| Status::unknown("mutex: session is expired"))
}
