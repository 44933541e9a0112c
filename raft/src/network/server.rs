//! What a member answers to others.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt as _, stream::BoxStream};
use openraft::{errors::Fatal, raft::TransferLeaderRequest};
use prost::Message as _;
use proto::peer::{self, peer_server};
use storage::Store;
use tokio::{sync::watch, time::Instant};
use tonic::{Request, Response, Status, Streaming};

use super::{
    append_from_wire, appended_to_wire, check_sender, check_target, sender, transfer, vote_request_from_wire,
    voted_to_wire,
};
use crate::{
    ChangeError, LeaderHandler, Meter, PeerEvent, RaftError,
    convert::{Malformed, change_from_wire, id_from_wire, stored_from_wire, vote_from_wire, vote_to_wire},
    log::{Log, WeakLog},
    membership::Changes,
    propose::{Fate, Proposer},
    read_index::ReadIndex,
    removal::Heard,
    roster::Roster,
    state_machine::SnapshotData,
    types::{Raft, Snapshot, SnapshotMeta, TypeConfig, Vote},
};

/// The service of one member.
pub struct PeerService {
    pub cluster: u64,
    pub member: u64,
    pub raft: Raft,
    pub store: Store,
    pub proposer: Proposer,
    pub reads: ReadIndex,
    pub log: WeakLog,
    pub snapshots: Arc<transfer::Folder>,
    pub leader_handler: Arc<dyn LeaderHandler>,
    pub changes: Changes,
    pub roster: watch::Receiver<Arc<Roster>>,
    pub heard: Heard,
    /// Why this member must not go on, once that is known.
    pub failure: watch::Sender<Option<String>>,
    pub meter: Arc<dyn Meter>,
    /// What a change of the membership may take.
    pub change_timeout: Duration,
}

impl PeerService {
    fn check<T>(&self, request: Request<T>) -> Result<T, Status> {
        if self.failure.borrow().is_some() {
            return Err(Status::unavailable("this member is ending"));
        }
        check_target(request.metadata(), self.cluster, self.member)?;
        check_sender(request.metadata(), &self.roster.borrow())?;
        Ok(request.into_inner())
    }
}

/// What the log lacks of the entries that the member has told the leader of this vote to have.
fn lost(log: &Log, leader: &Vote, acknowledged: u64) -> Option<String> {
    let held = log.held();
    held.lacks(leader, acknowledged).then(|| {
        let ((path, offset), count) = (log.tail(), held.count);
        format!(
            "{}: the log ends at offset {offset} with {count} entries, and this member has answered for \
             {acknowledged}: the disk has lost what it had synced; \
             remove this member from the cluster and let a new one take its place",
            path.display()
        )
    })
}

fn unavailable(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

#[tonic::async_trait]
impl peer_server::Peer for PeerService {
    type AppendStreamStream = BoxStream<'static, Result<peer::AppendResponse, Status>>;

    async fn append_stream(
        &self,
        request: Request<Streaming<peer::AppendRequest>>,
    ) -> Result<Response<Self::AppendStreamStream>, Status> {
        let from = sender(request.metadata());
        let requests = self.check(request)?;
        let (heard, meter) = (self.heard.clone(), self.meter.clone());
        let (log, failure) = (self.log.clone(), self.failure.clone());
        // A stream that breaks ends; the leader opens another.
        let requests = tokio_stream::StreamExt::map_while(requests, move |request| {
            heard.note();
            let request = request.inspect_err(|_| meter.peer(from, PeerEvent::ReceiveFailed)).ok()?;
            meter.peer(from, PeerEvent::Received(request.encoded_len()));
            let acknowledged = request.acknowledged;
            let request = append_from_wire(request).ok()?;
            // What it has forgotten it must not be given anew, as if it had never answered for it.
            if let Some(lost) = lost(&log.upgrade()?, &request.vote, acknowledged) {
                failure.send_replace(Some(lost));
                return None;
            }
            Some(request)
        });
        let responses = self.raft.stream_append(requests);
        let meter = self.meter.clone();
        let responses = responses.map(move |result: Result<_, Fatal<TypeConfig>>| {
            let response = result.map(appended_to_wire).map_err(unavailable)?;
            meter.peer(from, PeerEvent::Sent(response.encoded_len()));
            Ok(response)
        });
        Ok(Response::new(responses.boxed()))
    }

    async fn vote(&self, request: Request<peer::VoteRequest>) -> Result<Response<peer::VoteResponse>, Status> {
        let request = vote_request_from_wire(self.check(request)?)?;
        Ok(Response::new(voted_to_wire(self.raft.vote(request).await.map_err(unavailable)?)))
    }

    async fn pre_vote(&self, request: Request<peer::VoteRequest>) -> Result<Response<peer::VoteResponse>, Status> {
        let request = vote_request_from_wire(self.check(request)?)?;
        Ok(Response::new(voted_to_wire(self.raft.pre_vote(request).await.map_err(unavailable)?)))
    }

    async fn transfer_leader(
        &self,
        request: Request<peer::TransferLeaderRequest>,
    ) -> Result<Response<peer::TransferLeaderResponse>, Status> {
        let request = self.check(request)?;
        let leader = vote_from_wire(request.leader)?;
        let request = TransferLeaderRequest::new(leader, request.to, request.last.map(id_from_wire));
        let answer = self.raft.handle_transfer_leader(request).await.map_err(unavailable)?;
        let refused = answer.err().map_or_else(String::new, |error| error.to_string());
        Ok(Response::new(peer::TransferLeaderResponse { refused }))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<peer::SnapshotPart>>,
    ) -> Result<Response<peer::SnapshotResponse>, Status> {
        let from = sender(request.metadata());
        let mut parts = self.check(request)?;
        self.heard.note();
        let received = self.snapshots.receive(from, &mut parts).await?;
        let vote = vote_from_wire(received.begin.leader)?;
        let membership = received.begin.membership.ok_or(Malformed("a snapshot without membership"))?;
        let meta = SnapshotMeta {
            last_log_id: received.begin.last.map(id_from_wire),
            last_membership: stored_from_wire(membership)?,
        };
        let snapshot = Snapshot { meta, snapshot: SnapshotData::Received(received.checkpoint) };
        let response = self.raft.install_full_snapshot(vote, snapshot).await.map_err(unavailable)?;
        Ok(Response::new(peer::SnapshotResponse { vote: Some(vote_to_wire(&response.vote)) }))
    }

    async fn propose(&self, request: Request<peer::ProposeRequest>) -> Result<Response<peer::ProposeResponse>, Status> {
        use peer::propose_response::{self as answer, result::Result as Answer};
        let fates = self.proposer.propose_here(self.check(request)?.commands).await;
        let results = fates.into_iter().map(|fate| {
            let result = match fate {
                Fate::Applied { index, outcome } => Answer::Applied(answer::Applied { index, outcome: Some(outcome) }),
                Fate::NotProposed => Answer::NotLeader(answer::NotLeader {}),
                Fate::Unknown => Answer::Unknown(answer::Unknown {}),
            };
            answer::Result { result: Some(result) }
        });
        Ok(Response::new(peer::ProposeResponse { results: results.collect() }))
    }

    async fn read_index(
        &self,
        request: Request<peer::ReadIndexRequest>,
    ) -> Result<Response<peer::ReadIndexResponse>, Status> {
        self.check(request)?;
        let index = self.reads.index_here().await.map_err(unavailable)?;
        Ok(Response::new(peer::ReadIndexResponse { index }))
    }

    async fn is_bootstrapped(
        &self,
        request: Request<peer::IsBootstrappedRequest>,
    ) -> Result<Response<peer::IsBootstrappedResponse>, Status> {
        // One that has been removed may ask this.
        check_target(request.metadata(), self.cluster, self.member)?;
        let member = request.into_inner().member;
        let is_bootstrapped = self.store.member_attributes().iter().any(|attributes| attributes.id == member);
        let is_removed = self.roster.borrow().removed.contains(&member);
        Ok(Response::new(peer::IsBootstrappedResponse { is_bootstrapped, is_removed }))
    }

    async fn change_members(
        &self,
        request: Request<peer::ChangeMembersRequest>,
    ) -> Result<Response<peer::ChangeMembersResponse>, Status> {
        use peer::change_members_response::{NotLeader, Result as Answer};
        let (change, policy) = change_from_wire(self.check(request)?)?;
        let answer = match self.changes.make(&change, policy, Instant::now() + self.change_timeout).await {
            Ok(index) => Answer::Index(index),
            Err(ChangeError::Refused(error)) => Answer::Refused(error.into()),
            Err(ChangeError::Raft(RaftError::NotLeader)) => Answer::NotLeader(NotLeader {}),
            Err(ChangeError::Raft(RaftError::Timeout)) => return Err(Status::deadline_exceeded("no majority in time")),
            Err(ChangeError::Raft(error)) => return Err(unavailable(error)),
        };
        Ok(Response::new(peer::ChangeMembersResponse { result: Some(answer) }))
    }

    async fn ask_leader(
        &self,
        request: Request<peer::AskLeaderRequest>,
    ) -> Result<Response<peer::AskLeaderResponse>, Status> {
        let request = self.check(request)?.request;
        let response = self.leader_handler.handle(request).await?;
        Ok(Response::new(peer::AskLeaderResponse { response }))
    }
}
