//! How members talk to each other: gRPC, as `peer.proto` has it.
//!
//! Every call names the cluster it belongs to, the member it is meant for, and the one it is from; one that reached
//! someone else is refused, with both ids in the text, and so is one from a member that has been removed.

pub mod acknowledged;
pub mod client;
pub mod connect;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
pub mod server;
pub mod transfer;

use openraft::raft::{AppendEntriesRequest, StreamAppendError, StreamAppendResult, VoteRequest, VoteResponse};
use proto::{MemberId, peer};
use tonic::{Status, metadata::MetadataMap};

use crate::{
    convert::{Malformed, entry_from_wire, entry_to_wire, id_from_wire, id_to_wire, vote_from_wire, vote_to_wire},
    roster::Roster,
    types::TypeConfig,
};

const CLUSTER: &str = "pintle-cluster";
const MEMBER: &str = "pintle-member";
const FROM: &str = "pintle-from";
/// Time between two pings on an idle connection, and the time to wait for an answer, as a part of the election timeout.
const KEEP_ALIVE_PARTS: u32 = 2;

fn id_in(metadata: &MetadataMap, name: &str) -> Option<u64> {
    metadata.get(name).and_then(|value| u64::from_str_radix(value.to_str().ok()?, 16).ok())
}

/// Who calls; 0 when it does not say.
fn sender(metadata: &MetadataMap) -> MemberId {
    MemberId(id_in(metadata, FROM).unwrap_or_default())
}

/// Refuses a call from a member that has been removed.
fn check_sender(metadata: &MetadataMap, roster: &Roster) -> Result<(), Status> {
    match id_in(metadata, FROM) {
        Some(from) if roster.removed.contains(&from) => {
            Err(Status::permission_denied("the member has been permanently removed from the cluster"))
        }
        _ => Ok(()),
    }
}

/// Refuses a call that is meant for another cluster or another member.
fn check_target(metadata: &MetadataMap, cluster: u64, member: u64) -> Result<(), Status> {
    match (id_in(metadata, CLUSTER), id_in(metadata, MEMBER)) {
        (Some(of), _) if of != cluster => Err(Status::failed_precondition(format!(
            "cluster ID mismatch: this is {cluster:x}, the call is for {of:x}"
        ))),
        (_, Some(to)) if to != member => {
            Err(Status::failed_precondition(format!("member ID mismatch: this is {member:x}, the call is for {to:x}")))
        }
        (Some(_), Some(_)) => Ok(()),
        _ => Err(Status::failed_precondition("the call names no cluster and member: it is not from a member")),
    }
}

fn append_to_wire(request: AppendEntriesRequest<TypeConfig>) -> peer::AppendRequest {
    peer::AppendRequest {
        leader: Some(vote_to_wire(&request.vote)),
        previous: request.prev_log_id.as_ref().map(id_to_wire),
        committed: request.leader_commit.as_ref().map(id_to_wire),
        entries: request.entries.into_iter().map(entry_to_wire).collect(),
        acknowledged: 0,
    }
}

fn append_from_wire(request: peer::AppendRequest) -> Result<AppendEntriesRequest<TypeConfig>, Malformed> {
    Ok(AppendEntriesRequest {
        vote: vote_from_wire(request.leader)?,
        prev_log_id: request.previous.map(id_from_wire),
        leader_commit: request.committed.map(id_from_wire),
        entries: request.entries.into_iter().map(entry_from_wire).collect::<Result<_, _>>()?,
    })
}

fn appended_to_wire(result: StreamAppendResult<TypeConfig>) -> peer::AppendResponse {
    use peer::append_response::{Matching, Result as Answer};
    let answer = match result {
        Ok(id) => Answer::Matching(Matching { id: id.as_ref().map(id_to_wire) }),
        Err(StreamAppendError::Conflict(id)) => Answer::Conflict(id_to_wire(&id)),
        Err(StreamAppendError::HigherVote(vote)) => Answer::Higher(vote_to_wire(&vote)),
    };
    peer::AppendResponse { result: Some(answer) }
}

fn appended_from_wire(response: peer::AppendResponse) -> Result<StreamAppendResult<TypeConfig>, Malformed> {
    use peer::append_response::Result as Answer;
    Ok(match response.result.ok_or(Malformed("an append answer without result"))? {
        Answer::Matching(matching) => Ok(matching.id.map(id_from_wire)),
        Answer::Conflict(id) => Err(StreamAppendError::Conflict(id_from_wire(id))),
        Answer::Higher(vote) => Err(StreamAppendError::HigherVote(vote_from_wire(Some(vote))?)),
    })
}

fn vote_request_to_wire(request: VoteRequest<TypeConfig>) -> peer::VoteRequest {
    peer::VoteRequest {
        candidate: Some(vote_to_wire(&request.vote)),
        last: request.last_log_id.as_ref().map(id_to_wire),
        leadership_transfer: request.leadership_transfer,
    }
}

fn vote_request_from_wire(request: peer::VoteRequest) -> Result<VoteRequest<TypeConfig>, Malformed> {
    let vote = vote_from_wire(request.candidate)?;
    let mut out = VoteRequest::new(vote, request.last.map(id_from_wire));
    out.leadership_transfer = request.leadership_transfer;
    Ok(out)
}

fn voted_to_wire(response: VoteResponse<TypeConfig>) -> peer::VoteResponse {
    peer::VoteResponse {
        vote: Some(vote_to_wire(&response.vote)),
        granted: response.vote_granted,
        last: response.last_log_id.as_ref().map(id_to_wire),
    }
}

fn voted_from_wire(response: peer::VoteResponse) -> Result<VoteResponse<TypeConfig>, Malformed> {
    Ok(VoteResponse::new(vote_from_wire(response.vote)?, response.last.map(id_from_wire), response.granted))
}
