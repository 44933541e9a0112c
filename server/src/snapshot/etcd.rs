//! Writes the buckets of `etcd_schema.rs`.
//!
//! The bucket `cluster` is empty. etcd would keep its cluster version there, and an etcd that is older than that
//! version would refuse to start from the file; without it, a restored cluster finds out its version as a new one does.

use std::io::{Seek, Write};

use prost::Message;
use proto::{MemberId, Revision, mvccpb::KeyValue};
use serde::Serialize;
use storage::{AuthState, Export, Kind, StorageError};

use crate::{
    bbolt::{Bucket, Writer},
    etcd_schema::{Lease, bucket, meta as names, revision_key},
};

/// Of etcd's `raftpb.ConfState`, what a membership outside of a change holds.
#[derive(Serialize)]
struct ConfState {
    voters: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    learners: Vec<u64>,
    auto_leave: bool,
}

/// etcd's `membership.Member`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Member {
    id: u64,
    #[serde(rename = "peerURLs")]
    peer_urls: Vec<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    is_learner: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(rename = "clientURLs", skip_serializing_if = "Vec::is_empty")]
    client_urls: Vec<String>,
}

/// Why there is no file.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// This node cannot read its store.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The file cannot be written.
    #[error(transparent)]
    File(#[from] std::io::Error),
    /// The store holds a membership that Raft does not read.
    #[error(transparent)]
    Membership(#[from] raft::MembershipError),
}

/// Writes the state as a bbolt file; returns it and its length.
pub fn write<W: Write + Seek>(state: &Export<'_>, storage_version: &str, out: W) -> Result<(W, u64), WriteError> {
    let raft::Members { members, removed } = raft::Members::of(state.applied(), state.member_attributes()?)?;
    let mut file = Writer::new(out)?;
    // In the order of their names.
    alarms(state, file.bucket(bucket::ALARM))?;
    auth(&state.auth()?, &mut file)?;
    file.bucket(bucket::CLUSTER).finish()?;
    versions(state, file.bucket(bucket::KEY))?;
    leases(state, file.bucket(bucket::LEASE))?;
    self::members(&members, file.bucket(bucket::MEMBERS))?;
    removed_members(&removed, file.bucket(bucket::MEMBERS_REMOVED))?;
    meta(state, &members, storage_version, file.bucket(bucket::META))?;
    Ok(file.finish()?)
}

fn alarms<W: Write>(state: &Export<'_>, mut bucket: Bucket<'_, W>) -> Result<(), WriteError> {
    let mut alarms: Vec<Vec<u8>> = state.alarms()?.iter().map(Message::encode_to_vec).collect();
    alarms.sort();
    for alarm in alarms {
        bucket.put(&alarm, &[])?;
    }
    Ok(bucket.finish()?)
}

fn auth<W: Write + Seek>(auth: &AuthState, file: &mut Writer<W>) -> Result<(), WriteError> {
    let mut bucket = file.bucket(bucket::AUTH);
    bucket.put(names::AUTH_ENABLED, &[u8::from(auth.is_enabled())])?;
    bucket.put(names::AUTH_REVISION, &auth.revision().to_be_bytes())?;
    bucket.finish()?;
    let mut bucket = file.bucket(bucket::AUTH_ROLES);
    for role in auth.roles() {
        bucket.put(&role.name, &role.encode_to_vec())?;
    }
    bucket.finish()?;
    let mut bucket = file.bucket(bucket::AUTH_USERS);
    for user in auth.users() {
        bucket.put(&user.name, &user.encode_to_vec())?;
    }
    Ok(bucket.finish()?)
}

fn versions<W: Write>(state: &Export<'_>, mut bucket: Bucket<'_, W>) -> Result<(), WriteError> {
    state.each_version(|at, kind, kv: KeyValue| {
        bucket.put(&revision_key(at, kind), &kv.encode_to_vec())?;
        Ok::<_, WriteError>(())
    })?;
    Ok(bucket.finish()?)
}

fn leases<W: Write>(state: &Export<'_>, mut bucket: Bucket<'_, W>) -> Result<(), WriteError> {
    state.each_lease(|lease| {
        let value = Lease { id: lease.id.0, ttl: lease.ttl, remaining_ttl: lease.remaining_ttl };
        bucket.put(&lease.id.0.to_be_bytes(), &value.encode_to_vec())?;
        Ok::<_, WriteError>(())
    })?;
    Ok(bucket.finish()?)
}

fn members<W: Write>(members: &[raft::Member], mut bucket: Bucket<'_, W>) -> Result<(), WriteError> {
    let mut named: Vec<(String, Vec<u8>)> =
        members.iter().map(|member| (format!("{:x}", member.id.0), json(&Member::from(member)))).collect();
    named.sort();
    for (name, member) in named {
        bucket.put(name.as_bytes(), &member)?;
    }
    Ok(bucket.finish()?)
}

fn removed_members<W: Write>(removed: &[MemberId], mut bucket: Bucket<'_, W>) -> Result<(), WriteError> {
    let mut names: Vec<String> = removed.iter().map(|id| format!("{:x}", id.0)).collect();
    names.sort();
    for name in names {
        bucket.put(name.as_bytes(), b"removed")?;
    }
    Ok(bucket.finish()?)
}

fn meta<W: Write>(
    state: &Export<'_>,
    members: &[raft::Member],
    storage_version: &str,
    mut bucket: Bucket<'_, W>,
) -> Result<(), WriteError> {
    let ids = |learners: bool| members.iter().filter(|m| m.is_learner == learners).map(|m| m.id.0).collect();
    let conf_state = ConfState { voters: ids(false), learners: ids(true), auto_leave: false };
    let compaction = |revision: i64| revision_key(Revision::new(revision, 0), Kind::Put);
    // In the order of their names.
    bucket.put(names::CONF_STATE, &json(&conf_state))?;
    bucket.put(names::CONSISTENT_INDEX, &state.applied().index.to_be_bytes())?;
    if state.compaction_finished() >= 0 {
        bucket.put(names::FINISHED_COMPACTION, &compaction(state.compaction_finished()))?;
    }
    // When it lies above the finished one, etcd goes on with the compaction as it starts.
    if state.compacted() >= 0 {
        bucket.put(names::SCHEDULED_COMPACTION, &compaction(state.compacted()))?;
    }
    bucket.put(names::STORAGE_VERSION, storage_version.as_bytes())?;
    bucket.put(names::TERM, &state.applied().term.to_be_bytes())?;
    Ok(bucket.finish()?)
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("numbers and strings are JSON")
}

impl From<&raft::Member> for Member {
    fn from(member: &raft::Member) -> Self {
        let raft::Member { id, name, peer_urls, client_urls, is_learner } = member.clone();
        Member { id: id.0, peer_urls, is_learner, name, client_urls }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_named_as_in_etcds_json() {
        let member = raft::Member {
            id: MemberId(u64::MAX),
            name: "n".into(),
            peer_urls: vec!["http://p".into()],
            client_urls: vec!["http://c".into()],
            is_learner: false,
        };
        let text = |member: &raft::Member| String::from_utf8(json(&Member::from(member))).unwrap();
        assert_eq!(
            text(&member),
            r#"{"id":18446744073709551615,"peerURLs":["http://p"],"name":"n","clientURLs":["http://c"]}"#
        );
        let new = raft::Member { name: String::new(), client_urls: vec![], is_learner: true, ..member };
        assert_eq!(text(&new), r#"{"id":18446744073709551615,"peerURLs":["http://p"],"isLearner":true}"#);
        let conf_state = ConfState { voters: vec![1, 2], learners: vec![], auto_leave: false };
        assert_eq!(json(&conf_state), br#"{"voters":[1,2],"auto_leave":false}"#);
    }
}
