//! The network's part of `crate::fuzzing`.

use std::path::Path;

use prost::Message;
use proto::peer;

use super::{append_from_wire, transfer, vote_request_from_wire};
use crate::convert::{stored_from_wire, vote_from_wire};

pub fn messages(data: &[u8]) {
    if let Ok(request) = peer::AppendRequest::decode(data) {
        let _ = append_from_wire(request);
    }
    if let Ok(request) = peer::VoteRequest::decode(data) {
        let _ = vote_request_from_wire(request);
    }
    if let Ok(request) = peer::TransferLeaderRequest::decode(data) {
        let _ = vote_from_wire(request.leader);
    }
    if let Ok(stored) = peer::StoredMembership::decode(data) {
        let _ = stored_from_wire(stored);
    }
}

pub fn snapshot_parts(dir: &Path, parts: Vec<peer::SnapshotPart>) {
    transfer::fuzzing(dir, parts);
}
