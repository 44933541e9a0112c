//! Requests of a history sent over gRPC, one message for one request, and what comes back.
//!
//! Nothing is sent twice. Every member is asked by a connection of its own, so that it is known who answered.

mod answer;
mod message;

use std::error::Error as _;

use anyhow::Result;
use proto::{
    EtcdError,
    etcdserverpb::{
        AuthenticateRequest, DefragmentRequest, LeaseGrantRequest, LeaseKeepAliveRequest, LeaseRevokeRequest,
        LeaseTimeToLiveRequest, SnapshotRequest, auth_client::AuthClient, kv_client::KvClient,
        lease_client::LeaseClient, maintenance_client::MaintenanceClient,
    },
    v3electionpb::{CampaignRequest, LeaderRequest, ProclaimRequest, ResignRequest, election_client::ElectionClient},
    v3lockpb::{LockRequest, UnlockRequest, lock_client::LockClient},
};
use tonic::{Code, ConnectError, Status, transport::Channel};

use jepsen::check::history::{AuthChange, Request, Response};

use message::leader_key;
pub use message::watch_create;

/// A connection, and who speaks over it.
#[derive(Clone)]
pub struct Caller {
    pub channel: Channel,
    pub token: Option<String>,
}

impl Caller {
    pub fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        if let Some(token) = &self.token {
            let token = token.parse().expect("a token is made of characters that a header may have");
            request.metadata_mut().insert("token", token);
        }
        request
    }

    fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    fn lease(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel.clone())
    }

    fn election(&self) -> ElectionClient<Channel> {
        ElectionClient::new(self.channel.clone())
    }

    fn maintenance(&self) -> MaintenanceClient<Channel> {
        MaintenanceClient::new(self.channel.clone())
    }

    /// Sends one request. Requests that stand for several, or for a stream, are made by their workloads.
    pub async fn send(&self, request: &Request) -> Result<Response, Status> {
        match request {
            Request::Put(put) => Ok((&self.kv().put(self.request(message::put(put))).await?.into_inner()).into()),
            Request::Range(range) => {
                Ok((&self.kv().range(self.request(message::range(range))).await?.into_inner()).into())
            }
            Request::DeleteRange(delete) => {
                let delete = self.request(message::delete_range(delete));
                Ok((&self.kv().delete_range(delete).await?.into_inner()).into())
            }
            Request::Txn(txn) => {
                let answer = self.kv().txn(self.request(message::txn(txn))).await?.into_inner();
                Response::try_from(&answer).map_err(|error| Status::internal(format!("{error:#}")))
            }
            Request::Compact { revision } => {
                answer::compact(self.kv().compact(self.request(message::compact(*revision))).await?)
            }
            Request::LeaseGrant { .. }
            | Request::LeaseRevoke { .. }
            | Request::LeaseKeepAlive { .. }
            | Request::LeaseTimeToLive { .. } => self.send_lease(request).await,
            Request::Lock { .. }
            | Request::Unlock { .. }
            | Request::Campaign { .. }
            | Request::Proclaim { .. }
            | Request::Leader { .. }
            | Request::Resign { .. } => self.send_concurrency(request).await,
            Request::HashKv { revision } => {
                answer::hash_kv(self.maintenance().hash_kv(self.request(message::hash_kv(*revision))).await?)
            }
            Request::Defragment => {
                answer::defragment(self.maintenance().defragment(self.request(DefragmentRequest {})).await?)
            }
            Request::Snapshot => {
                let parts = self.maintenance().snapshot(self.request(SnapshotRequest {})).await?.into_inner();
                answer::snapshot(parts).await
            }
            Request::Auth(change) => self.send_auth(change).await,
            Request::As { request, .. } => Box::pin(self.send(request)).await,
            Request::Watch { .. } | Request::Append { .. } | Request::Registers { .. } => {
                unreachable!("{request:?} is made of several messages")
            }
        }
    }

    async fn send_lease(&self, request: &Request) -> Result<Response, Status> {
        match request {
            Request::LeaseGrant { lease, ttl_s } => {
                let grant = LeaseGrantRequest { id: *lease, ttl: *ttl_s };
                answer::lease_grant(self.lease().lease_grant(self.request(grant)).await?)
            }
            Request::LeaseRevoke { lease } => {
                let revoke = LeaseRevokeRequest { id: *lease };
                answer::lease_revoke(self.lease().lease_revoke(self.request(revoke)).await?)
            }
            Request::LeaseKeepAlive { lease } => {
                let once = tokio_stream::once(LeaseKeepAliveRequest { id: *lease });
                let mut answers = self.lease().lease_keep_alive(self.request(once)).await?.into_inner();
                answer::lease_keep_alive(answers.message().await?)
            }
            Request::LeaseTimeToLive { lease, keys } => {
                let time_to_live = LeaseTimeToLiveRequest { id: *lease, keys: *keys };
                answer::lease_time_to_live(self.lease().lease_time_to_live(self.request(time_to_live)).await?)
            }
            _ => unreachable!("{request:?} is not about a lease"),
        }
    }

    async fn send_concurrency(&self, request: &Request) -> Result<Response, Status> {
        match request {
            Request::Lock { name, lease } => {
                let lock = LockRequest { name: name.0.clone(), lease: *lease };
                answer::lock(LockClient::new(self.channel.clone()).lock(self.request(lock)).await?)
            }
            Request::Unlock { key } => {
                let unlock = UnlockRequest { key: key.0.clone() };
                answer::unlock(LockClient::new(self.channel.clone()).unlock(self.request(unlock)).await?)
            }
            Request::Campaign { name, lease, value } => {
                let campaign = CampaignRequest { name: name.0.clone(), lease: *lease, value: value.0.clone() };
                answer::campaign(self.election().campaign(self.request(campaign)).await?)
            }
            Request::Proclaim { leader, create_revision, value } => {
                let leader = leader_key(leader, *create_revision);
                let proclaim = ProclaimRequest { leader: Some(leader), value: value.0.clone() };
                answer::proclaim(self.election().proclaim(self.request(proclaim)).await?)
            }
            Request::Leader { name } => {
                let leader = LeaderRequest { name: name.0.clone() };
                answer::leader(self.election().leader(self.request(leader)).await?)
            }
            Request::Resign { leader, create_revision } => {
                let resign = ResignRequest { leader: Some(leader_key(leader, *create_revision)) };
                answer::resign(self.election().resign(self.request(resign)).await?)
            }
            _ => unreachable!("{request:?} is about no lock and no election"),
        }
    }

    async fn send_auth(&self, change: &AuthChange) -> Result<Response, Status> {
        macro_rules! call {
            ($method:ident, $message:expr) => {{
                let answer = AuthClient::new(self.channel.clone()).$method(self.request($message)).await?;
                Ok(answer::auth(answer.into_inner().header))
            }};
        }
        use proto::etcdserverpb as pb;
        match change.clone() {
            AuthChange::Enable => call!(auth_enable, pb::AuthEnableRequest {}),
            AuthChange::Disable => call!(auth_disable, pb::AuthDisableRequest {}),
            AuthChange::UserAdd { user } => call!(user_add, message::user_add(&user)),
            AuthChange::UserDelete { user } => call!(user_delete, pb::AuthUserDeleteRequest { name: user }),
            AuthChange::UserChangePassword { user } => {
                call!(user_change_password, message::user_change_password(&user))
            }
            AuthChange::UserGrantRole { user, role } => {
                call!(user_grant_role, pb::AuthUserGrantRoleRequest { user, role })
            }
            AuthChange::UserRevokeRole { user, role } => {
                call!(user_revoke_role, pb::AuthUserRevokeRoleRequest { name: user, role })
            }
            AuthChange::RoleAdd { role } => call!(role_add, pb::AuthRoleAddRequest { name: role }),
            AuthChange::RoleDelete { role } => call!(role_delete, pb::AuthRoleDeleteRequest { role }),
            AuthChange::RoleGrantPermission { role, keys, permission } => {
                call!(role_grant_permission, message::role_grant_permission(role, &keys, permission))
            }
            AuthChange::RoleRevokePermission { role, keys } => {
                let (key, range_end) = (keys.key.0, keys.range_end.0);
                call!(role_revoke_permission, pb::AuthRoleRevokePermissionRequest { role, key, range_end })
            }
        }
    }

    /// A token for a user, whose password is the user's name.
    pub async fn authenticate(&self, user: &str) -> Result<String, Status> {
        let request = AuthenticateRequest { name: user.to_owned(), password: user.to_owned() };
        Ok(AuthClient::new(self.channel.clone()).authenticate(request).await?.into_inner().token)
    }
}

/// Whether a request that was answered so was certainly not done, and never will be.
///
/// Certain are: no connection; an answer by which the member says that it refused. All else may be the loss of an
/// answer, also `Unavailable`: it is what a member says that does not know what became of a proposal.
pub fn certainly_not_done(status: &Status) -> bool {
    if not_sent(status) {
        return true;
    }
    if status.source().is_some() {
        return false;
    }
    let refused_before_proposal = EtcdError::from_message(status.message())
        .is_some_and(|error| matches!(error, EtcdError::NotSupportedForLearner | EtcdError::RequestTooManyRequests));
    let answer = matches!(
        status.code(),
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
    );
    refused_before_proposal || answer || is_no_space(status)
}

/// Refused by the alarm. The transport says `ResourceExhausted` too, of a message that is too large to be read.
fn is_no_space(status: &Status) -> bool {
    EtcdError::from_message(status.message()) == Some(EtcdError::NoSpace)
}

/// No connection could be made, so the member saw nothing of the request.
fn not_sent(status: &Status) -> bool {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// A failure in one line.
pub fn describe(status: &Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut source = status.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refusal_is_certain() {
        let refused = Status::from_error(Box::new(ConnectError("connection refused".into())));
        assert!(certainly_not_done(&refused));
        assert!(certainly_not_done(&Status::not_found("etcdserver: requested lease not found")));
        assert!(certainly_not_done(&Status::resource_exhausted("etcdserver: mvcc: database space exceeded")));
        for unknown in [
            Status::unavailable("etcdserver: request timed out"),
            Status::unavailable("etcdserver: leader changed"),
            Status::deadline_exceeded("no answer in time"),
            Status::cancelled("the connection went away"),
            Status::unknown("raft: stopped"),
            Status::resource_exhausted("too large"),
            Status::from_error(Box::new(std::io::Error::other("broken pipe"))),
        ] {
            assert!(!certainly_not_done(&unknown), "{unknown:?}");
        }
    }
}
