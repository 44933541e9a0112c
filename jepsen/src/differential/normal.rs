//! What two servers may answer differently though neither is wrong: ids, sizes, clocks and unordered sets.
//!
//! A value that merely has to be there is replaced by 1, so that absence still shows.

use proto::{etcdserverpb as pb, v3electionpb as election, v3lockpb as lock};

use super::request::{Answer, Reply};

/// How far two remaining TTLs may be apart: each is floored to a second, at slightly different moments.
const REMAINING_TTL_SECONDS_APART_MAX: i64 = 2;

/// Removes what is comparable in shape only.
pub trait Normalise {
    fn normalise(&mut self);
}

impl Normalise for Option<pb::ResponseHeader> {
    fn normalise(&mut self) {
        if let Some(header) = self {
            header.cluster_id = header.cluster_id.min(1);
            header.member_id = header.member_id.min(1);
            header.raft_term = header.raft_term.min(1);
        }
    }
}

macro_rules! only_the_header {
    ($($response:path),*) => {$(
        impl Normalise for $response {
            fn normalise(&mut self) {
                self.header.normalise();
            }
        }
    )*};
}

only_the_header! {
    pb::RangeResponse, pb::PutResponse, pb::DeleteRangeResponse, pb::CompactionResponse, pb::LeaseGrantResponse, pb::LeaseRevokeResponse, pb::LeaseKeepAliveResponse, pb::DefragmentResponse, pb::HashKvResponse, pb::MoveLeaderResponse, pb::AuthStatusResponse, pb::AuthEnableResponse, pb::AuthDisableResponse, pb::AuthUserAddResponse, pb::AuthUserGetResponse, pb::AuthUserListResponse, pb::AuthUserDeleteResponse, pb::AuthUserChangePasswordResponse, pb::AuthUserGrantRoleResponse, pb::AuthUserRevokeRoleResponse, pb::AuthRoleAddResponse, pb::AuthRoleGetResponse, pb::AuthRoleListResponse, pb::AuthRoleDeleteResponse, pb::AuthRoleGrantPermissionResponse, pb::AuthRoleRevokePermissionResponse, pb::WatchResponse, pb::AlarmResponse, election::CampaignResponse, election::ProclaimResponse, election::LeaderResponse, election::ResignResponse, lock::LockResponse, lock::UnlockResponse
}

impl Normalise for pb::TxnResponse {
    fn normalise(&mut self) {
        self.header.normalise();
        for op in &mut self.responses {
            match &mut op.response {
                Some(pb::response_op::Response::ResponseRange(response)) => response.normalise(),
                Some(pb::response_op::Response::ResponsePut(response)) => response.normalise(),
                Some(pb::response_op::Response::ResponseDeleteRange(response)) => response.normalise(),
                Some(pb::response_op::Response::ResponseTxn(response)) => response.normalise(),
                None => {}
            }
        }
    }
}

impl Normalise for pb::LeaseTimeToLiveResponse {
    fn normalise(&mut self) {
        self.header.normalise();
        self.keys.sort();
    }
}

impl Normalise for pb::LeaseLeasesResponse {
    fn normalise(&mut self) {
        self.header.normalise();
        self.leases.sort_by_key(|lease| lease.id);
    }
}

/// URLs hold ports: of each only the scheme stays.
fn normalise_member(member: &mut pb::Member) {
    member.id = member.id.min(1);
    for url in member.peer_ur_ls.iter_mut().chain(&mut member.client_ur_ls) {
        url.truncate(url.find("://").unwrap_or(0));
    }
}

macro_rules! members {
    ($($response:ident)*) => {$(
        impl Normalise for pb::$response {
            fn normalise(&mut self) {
                self.header.normalise();
                // Ordered by id, and ids differ.
                self.members.iter_mut().for_each(normalise_member);
                self.members.sort_by(|a, b| a.name.cmp(&b.name));
            }
        }
    )*};
}

members! { MemberListResponse MemberRemoveResponse MemberUpdateResponse MemberPromoteResponse }

impl Normalise for pb::MemberAddResponse {
    fn normalise(&mut self) {
        self.header.normalise();
        self.member.iter_mut().chain(&mut self.members).for_each(normalise_member);
        self.members.sort_by(|a, b| a.name.cmp(&b.name));
    }
}

impl Normalise for pb::StatusResponse {
    fn normalise(&mut self) {
        self.header.normalise();
        self.version = if self.version.is_empty() { String::new() } else { "some version".into() };
        self.db_size = self.db_size.signum();
        self.db_size_in_use = self.db_size_in_use.signum();
        self.leader = self.leader.min(1);
        self.raft_index = self.raft_index.min(1);
        self.raft_term = self.raft_term.min(1);
        self.raft_applied_index = self.raft_applied_index.min(1);
        // An alarm as Go's protobuf prints it, with blanks that differ from release to release.
        for error in &mut self.errors {
            *error = error.split_whitespace().collect::<Vec<_>>().join(" ");
        }
    }
}

/// The hash is of the whole backend file, which no two servers have alike.
impl Normalise for pb::HashResponse {
    fn normalise(&mut self) {
        self.header.normalise();
        self.hash = self.hash.min(1);
    }
}

impl Normalise for pb::DowngradeResponse {
    fn normalise(&mut self) {
        self.header.normalise();
        self.version = if self.version.is_empty() { String::new() } else { "some version".into() };
    }
}

/// The first part of a backend file, of which more may follow.
impl Normalise for pb::SnapshotResponse {
    fn normalise(&mut self) {
        self.header.normalise();
        self.remaining_bytes = 0;
        self.blob.truncate(1);
        self.version = if self.version.is_empty() { String::new() } else { "some version".into() };
    }
}

impl Normalise for pb::AuthenticateResponse {
    fn normalise(&mut self) {
        self.header.normalise();
        self.token = if self.token.is_empty() { String::new() } else { "some token".into() };
    }
}

/// Whether two normalised answers say the same.
pub fn same(etcd: &Answer, pintle: &Answer) -> bool {
    match (etcd, pintle) {
        (Ok(Reply::LeaseTimeToLive(etcd)), Ok(Reply::LeaseTimeToLive(pintle))) if etcd.ttl >= 0 && pintle.ttl >= 0 => {
            let adjusted = pb::LeaseTimeToLiveResponse { ttl: etcd.ttl, ..pintle.clone() };
            adjusted == *etcd && etcd.ttl.abs_diff(pintle.ttl) <= REMAINING_TTL_SECONDS_APART_MAX as u64
        }
        (etcd, pintle) => etcd == pintle,
    }
}
