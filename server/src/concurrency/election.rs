//! etcd's Election service: whose key is the oldest below the name leads, and the key's value is what it proclaims.
//! Sources: etcd, `server/etcdserver/api/v3election/election.go`, `client/v3/concurrency/election.go`.

use std::pin::Pin;

use bytes::Bytes;
use futures::Stream;
use proto::{
    etcdserverpb::{TxnRequest, TxnResponse, response_op::Response as OpResponse},
    v3electionpb::{
        CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ProclaimResponse,
        ResignRequest, ResignResponse, election_server::Election,
    },
};
use tonic::{Request, Response, Status};

use super::{
    caller::{Caller, Local},
    observe,
    place::{self, Header, Place},
    queue,
};

pub struct ElectionService {
    local: Local,
}

impl ElectionService {
    pub fn new(local: Local) -> Self {
        ElectionService { local }
    }
}

#[tonic::async_trait]
impl Election for ElectionService {
    /// Answers when the candidate leads.
    async fn campaign(&self, request: Request<CampaignRequest>) -> Result<Response<CampaignResponse>, Status> {
        let (caller, CampaignRequest { name, lease, value }) = self.local.for_caller(request);
        let lease = caller.session(lease).await?;
        let prefix = queue::prefix(&name);
        let key = queue::key(&prefix, lease);
        let entered = place::to_the_end(enter(caller.clone(), key.clone(), value.clone(), lease)).await?;
        let Entered { mut place, header, previous } = entered;
        let rev = place.create_revision();
        if previous.is_some_and(|previous| previous != value)
            && let Err(status) = proclaim(&caller, &key, rev, value, lease).await
        {
            place.withdraw().await;
            return Err(status);
        }
        // A wait that fails leaves the candidate in the queue; only a client that goes away leaves it.
        let waited = place.wait_for_turn(&prefix).await;
        place.keep();
        // etcd does not look, and calls a candidate the leader whose session has ended.
        waited?.ok_or_else(|| Status::unknown("election: session is expired"))?;
        let leader = Some(LeaderKey { name, key: key.into(), rev, lease });
        Ok(Response::new(CampaignResponse { header, leader }))
    }

    async fn proclaim(&self, request: Request<ProclaimRequest>) -> Result<Response<ProclaimResponse>, Status> {
        let (caller, ProclaimRequest { leader, value }) = self.local.for_caller(request);
        let leader = leader.ok_or_else(missing_leader)?;
        let lease = caller.session(leader.lease).await?;
        let header = proclaim(&caller, &leader.key, leader.rev, value, lease).await?;
        Ok(Response::new(ProclaimResponse { header }))
    }

    async fn leader(&self, request: Request<LeaderRequest>) -> Result<Response<LeaderResponse>, Status> {
        let (caller, LeaderRequest { name }) = self.local.for_caller(request);
        let mut answer = caller.range(queue::first(&queue::prefix(&name))).await?;
        let kv = answer.kvs.pop().ok_or_else(|| Status::unknown("election: no leader"))?;
        Ok(Response::new(LeaderResponse { header: answer.header, kv: Some(kv) }))
    }

    type ObserveStream = Pin<Box<dyn Stream<Item = Result<LeaderResponse, Status>> + Send>>;

    async fn observe(&self, request: Request<LeaderRequest>) -> Result<Response<Self::ObserveStream>, Status> {
        let (caller, LeaderRequest { name }) = self.local.for_caller(request);
        Ok(Response::new(Box::pin(observe::leaders(caller, queue::prefix(&name)))))
    }

    async fn resign(&self, request: Request<ResignRequest>) -> Result<Response<ResignResponse>, Status> {
        let (caller, ResignRequest { leader }) = self.local.for_caller(request);
        let leader = leader.ok_or_else(missing_leader)?;
        caller.session(leader.lease).await?;
        // Who does not lead any more has nothing to give up: no error.
        let header = caller.txn(place::withdrawal(&leader.key, leader.rev)).await?.header;
        Ok(Response::new(ResignResponse { header }))
    }
}

fn missing_leader() -> Status {
    Status::unknown(r#""leader" field must be provided"#)
}

struct Entered {
    place: Place,
    header: Header,
    /// The candidate's value, if it was in the queue already.
    previous: Option<Bytes>,
}

/// Puts the candidate's key into the queue where it is not in it yet.
async fn enter(caller: Caller, key: Vec<u8>, value: Bytes, lease: i64) -> Result<Entered, Status> {
    let txn = TxnRequest {
        compare: vec![queue::created_at(&key, 0)],
        success: vec![queue::put_op(&key, value, lease)],
        failure: vec![queue::get_op(queue::single(&key))],
    };
    let TxnResponse { header, succeeded, mut responses } = caller.txn(txn).await?;
    let previous = match responses.pop().and_then(|op| op.response) {
        Some(OpResponse::ResponseRange(mut range)) if !succeeded => range.kvs.pop(),
        _ => None,
    };
    let revision = header.as_ref().map_or(0, |header| header.revision);
    let created = previous.as_ref().map_or(revision, |kv| kv.create_revision);
    // Whoever leads already does not lose it by campaigning again.
    let place = Place::new(caller, key, created, !succeeded);
    Ok(Entered { place, header, previous: previous.map(|kv| kv.value) })
}

/// Sets the value of a candidate's key, if it is still the one that was created at `rev`.
async fn proclaim(caller: &Caller, key: &[u8], rev: i64, value: Bytes, lease: i64) -> Result<Header, Status> {
    let txn = TxnRequest {
        compare: vec![queue::created_at(key, rev)],
        success: vec![queue::put_op(key, value, lease)],
        failure: Vec::new(),
    };
    let answer = caller.txn(txn).await?;
    if !answer.succeeded {
        return Err(Status::unknown("election: not leader"));
    }
    Ok(answer.header)
}
