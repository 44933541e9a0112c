//! For the fuzzers in `jepsen/fuzz`: the decoders of what other members send and of what stands on disk. Not part of
//! any build but theirs.

use std::path::Path;

use prost::Message;
use proto::peer;

use crate::{
    convert::{change_from_wire, entry_from_wire, entry_to_wire},
    log, network,
    roster::Roster,
};

/// Whatever a member sends, it becomes a request of Raft's or is refused.
pub fn peer_messages(data: &[u8]) {
    network::fuzzing::messages(data);
    if let Ok(request) = peer::ChangeMembersRequest::decode(data) {
        let _ = change_from_wire(request);
    }
    if let Ok(entry) = peer::Entry::decode(data)
        && let Ok(entry) = entry_from_wire(entry)
    {
        assert_eq!(entry_from_wire(entry_to_wire(entry.clone())).unwrap(), entry);
    }
    if let Ok(roster) = Roster::from_bytes(data) {
        assert_eq!(Roster::from_bytes(&roster.to_bytes()).unwrap(), roster);
    }
}

/// Whatever parts of a snapshot come, they are written below `dir` or refused.
pub fn snapshot_parts(dir: &Path, parts: Vec<peer::SnapshotPart>) {
    network::fuzzing::snapshot_parts(dir, parts);
}

/// Whatever stands in the files of `dir`, the log is read or is found damaged.
pub fn log_recovery(dir: &Path) {
    log::fuzzing::recover(dir);
}

/// A segment file: `records` are kinds and bodies, each in a batch as `ends_batch` says; all of it has matching checksums.
pub fn segment(number: u64, first_batch: u64, records: &[(u8, bool, Vec<u8>)]) -> Vec<u8> {
    log::fuzzing::segment(number, first_batch, records)
}
