//! etcd's messages as answers of a history, where the history does not take them in by itself.

use jepsen::check::history::{Answer, Header, Response};
use proto::{etcdserverpb as pb, v3electionpb, v3lockpb};
use tonic::{Status, Streaming};

type Answered<T> = tonic::Response<T>;

fn header(header: Option<pb::ResponseHeader>) -> Header {
    header.as_ref().into()
}

pub fn compact(answer: Answered<pb::CompactionResponse>) -> Result<Response, Status> {
    Ok(Response { header: header(answer.into_inner().header), answer: Answer::Compact })
}

pub fn lease_grant(answer: Answered<pb::LeaseGrantResponse>) -> Result<Response, Status> {
    let answer = answer.into_inner();
    Ok(Response { header: header(answer.header), answer: Answer::LeaseGrant { lease: answer.id, ttl_s: answer.ttl } })
}

pub fn lease_revoke(answer: Answered<pb::LeaseRevokeResponse>) -> Result<Response, Status> {
    Ok(Response { header: header(answer.into_inner().header), answer: Answer::LeaseRevoke })
}

pub fn lease_keep_alive(answer: Option<pb::LeaseKeepAliveResponse>) -> Result<Response, Status> {
    let answer = answer.ok_or_else(|| Status::unavailable("the stream ended without an answer"))?;
    Ok(Response {
        header: header(answer.header),
        answer: Answer::LeaseKeepAlive { lease: answer.id, ttl_s: answer.ttl },
    })
}

pub fn lease_time_to_live(answer: Answered<pb::LeaseTimeToLiveResponse>) -> Result<Response, Status> {
    let answer = answer.into_inner();
    let keys = answer.keys.into_iter().map(Into::into).collect();
    let (lease, ttl_s, granted_ttl_s) = (answer.id, answer.ttl, answer.granted_ttl);
    Ok(Response {
        header: header(answer.header),
        answer: Answer::LeaseTimeToLive { lease, ttl_s, granted_ttl_s, keys },
    })
}

pub fn lock(answer: Answered<v3lockpb::LockResponse>) -> Result<Response, Status> {
    let answer = answer.into_inner();
    Ok(Response { header: header(answer.header), answer: Answer::Lock { key: answer.key.into() } })
}

pub fn unlock(answer: Answered<v3lockpb::UnlockResponse>) -> Result<Response, Status> {
    Ok(Response { header: header(answer.into_inner().header), answer: Answer::Unlock })
}

pub fn campaign(answer: Answered<v3electionpb::CampaignResponse>) -> Result<Response, Status> {
    let answer = answer.into_inner();
    let leader = answer.leader.ok_or_else(|| Status::internal("a campaign was won without a leader"))?;
    Ok(Response {
        header: header(answer.header),
        answer: Answer::Campaign { leader: leader.key.into(), create_revision: leader.rev },
    })
}

pub fn proclaim(answer: Answered<v3electionpb::ProclaimResponse>) -> Result<Response, Status> {
    Ok(Response { header: header(answer.into_inner().header), answer: Answer::Proclaim })
}

pub fn leader(answer: Answered<v3electionpb::LeaderResponse>) -> Result<Response, Status> {
    let answer = answer.into_inner();
    Ok(Response { header: header(answer.header), answer: Answer::Leader { kv: answer.kv.as_ref().map(Into::into) } })
}

pub fn resign(answer: Answered<v3electionpb::ResignResponse>) -> Result<Response, Status> {
    Ok(Response { header: header(answer.into_inner().header), answer: Answer::Resign })
}

pub fn hash_kv(answer: Answered<pb::HashKvResponse>) -> Result<Response, Status> {
    let answer = answer.into_inner();
    let (hash, hash_revision, compact_revision) = (answer.hash, answer.hash_revision, answer.compact_revision);
    Ok(Response { header: header(answer.header), answer: Answer::HashKv { hash, hash_revision, compact_revision } })
}

pub fn defragment(answer: Answered<pb::DefragmentResponse>) -> Result<Response, Status> {
    Ok(Response { header: header(answer.into_inner().header), answer: Answer::Defragment })
}

/// Reads a backup to its end.
pub async fn snapshot(mut parts: Streaming<pb::SnapshotResponse>) -> Result<Response, Status> {
    let (mut bytes, mut head, mut remaining) = (0, None, None);
    while let Some(part) = parts.message().await? {
        bytes += part.blob.len() as u64;
        head = part.header.or(head);
        remaining = Some(part.remaining_bytes);
    }
    // The last part says that nothing remains, and may be nothing but that.
    match remaining {
        Some(0) => Ok(Response { header: header(head), answer: Answer::Snapshot { bytes } }),
        remaining => Err(Status::data_loss(format!("the backup ended with {remaining:?} bytes remaining"))),
    }
}

pub fn auth(head: Option<pb::ResponseHeader>) -> Response {
    Response { header: header(head), answer: Answer::Auth }
}
