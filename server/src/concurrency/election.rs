//! etcd's Election service: whose key is the oldest below the name leads, and the key's value is what it proclaims.
//! Sources: etcd, `server/etcdserver/api/v3election/election.go`, `client/v3/concurrency/election.go`.

use std::pin::Pin;

use bytes::Bytes;
use futures::Stream;
use proto::{
    etcdserverpb::{ResponseHeader, TxnRequest, TxnResponse, response_op::Response as OpResponse},
    mvccpb::KeyValue,
    v3electionpb::{
        CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest, ProclaimResponse,
        ResignRequest, ResignResponse, election_server::Election,
    },
};
use tonic::{Request, Response, Status};

use super::{
    caller::{Caller, Local},
    observe, queue,
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
        let (header, previous, rev) = enter(&caller, &key, &value, lease).await?;
        let mut candidacy = Candidacy { held: Some((caller.clone(), key.clone(), rev)) };
        if previous.is_some_and(|kv| kv.value != value)
            && let Err(status) = proclaim(&caller, &key, rev, value, lease).await
        {
            candidacy.withdraw().await;
            return Err(status);
        }
        // A wait that fails leaves the candidate in the queue; only a client that goes away leaves it.
        let waited = queue::wait_for_turn(&caller, &prefix, rev - 1).await;
        candidacy.held = None;
        waited?;
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
        let header = caller.txn(resignation(&leader.key, leader.rev)).await?.header;
        Ok(Response::new(ResignResponse { header }))
    }
}

fn missing_leader() -> Status {
    Status::unknown(r#""leader" field must be provided"#)
}

type Header = Option<ResponseHeader>;

/// Puts the candidate's key into the queue. Gives the key as it was, if it was in it already, and the revision that the
/// key was created at.
async fn enter(
    caller: &Caller,
    key: &[u8],
    value: &Bytes,
    lease: i64,
) -> Result<(Header, Option<KeyValue>, i64), Status> {
    let txn = TxnRequest {
        compare: vec![queue::created_at(key, 0)],
        success: vec![queue::put_op(key, value.clone(), lease)],
        failure: vec![queue::get_op(queue::single(key))],
    };
    let TxnResponse { header, succeeded, mut responses } = caller.txn(txn).await?;
    let previous = match responses.pop().and_then(|op| op.response) {
        Some(OpResponse::ResponseRange(mut range)) if !succeeded => range.kvs.pop(),
        _ => None,
    };
    let revision = header.as_ref().map_or(0, |header| header.revision);
    let created = previous.as_ref().map_or(revision, |kv| kv.create_revision);
    Ok((header, previous, created))
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

/// Deletes a candidate's key, if it is still the one that was created at `rev`.
fn resignation(key: &[u8], rev: i64) -> TxnRequest {
    TxnRequest { compare: vec![queue::created_at(key, rev)], success: vec![queue::delete_op(key)], failure: Vec::new() }
}

/// A key in the queue that is withdrawn when the client goes away, which drops the call.
struct Candidacy {
    held: Option<(Caller, Vec<u8>, i64)>,
}

impl Candidacy {
    async fn withdraw(&mut self) {
        if let Some((caller, key, rev)) = self.held.take() {
            withdraw(caller, key, rev).await;
        }
    }
}

impl Drop for Candidacy {
    fn drop(&mut self) {
        if let Some((caller, key, rev)) = self.held.take() {
            tokio::spawn(withdraw(caller, key, rev));
        }
    }
}

async fn withdraw(caller: Caller, key: Vec<u8>, rev: i64) {
    if let Err(status) = caller.txn(resignation(&key, rev)).await {
        tracing::debug!(error = status.message(), "a candidate's key stays until its lease ends");
    }
}
