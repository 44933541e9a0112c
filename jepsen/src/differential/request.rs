//! Every call the tester makes, as one value: it can be generated, printed, sent to either peer through either door, and
//! compared. Of streams the first answer counts; what watches deliver is compared in `watch`.

use futures::StreamExt as _;
use prost::Message as _;
use proto::etcdserverpb as pb;
use tonic::{Status, Streaming, transport::Channel};

use super::normal::Normalise;

/// The messages and clients of all packages.
mod wire {
    pub use proto::{etcdserverpb::*, v3electionpb::*, v3lockpb::*};
}

/// Where clients put their token.
const TOKEN: &str = "token";

/// A refused call, as clients see it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Failure {
    pub code: String,
    pub message: String,
}

/// Instead of a gRPC code, when a server leaves a call open.
const UNANSWERED: &str = "unanswered";

impl Failure {
    pub fn unanswered(limit: std::time::Duration) -> Failure {
        Failure { code: UNANSWERED.into(), message: format!("no answer in {limit:?}") }
    }

    /// What the gateway said was no answer of etcd's.
    pub fn of_gateway(error: &anyhow::Error) -> Failure {
        Failure { code: "gateway".into(), message: format!("{error:#}") }
    }

    /// Whether no server has answered at all.
    pub fn is_of_transport(&self) -> bool {
        self.code == UNANSWERED
            || ["transport error", "tcp connect error"].contains(&self.message.as_str())
            || self.message.starts_with("h2 protocol error")
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        Failure { code: format!("{:?}", status.code()), message: status.message().to_owned() }
    }
}

pub type Answer = Result<Reply, Failure>;

/// Who calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Caller {
    /// Without a token
    #[default]
    Nobody,
    /// With the token that this user got last, or none if there was none
    User(&'static str),
    /// With a token that no server gave
    Forger,
}

/// Through which door a request goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Door {
    #[default]
    Grpc,
    /// The JSON gateway
    Json,
}

/// A request as it is sent.
#[derive(Clone, Debug)]
pub struct Call {
    pub request: Request,
    pub caller: Caller,
    pub door: Door,
}

impl From<Request> for Call {
    fn from(request: Request) -> Call {
        Call { request, caller: Caller::default(), door: Door::default() }
    }
}

/// One connection's worth of etcd's services.
#[derive(Clone)]
pub struct Clients {
    kv: pb::kv_client::KvClient<Channel>,
    watch: pb::watch_client::WatchClient<Channel>,
    lease: pb::lease_client::LeaseClient<Channel>,
    cluster: pb::cluster_client::ClusterClient<Channel>,
    maintenance: pb::maintenance_client::MaintenanceClient<Channel>,
    auth: pb::auth_client::AuthClient<Channel>,
    election: wire::election_client::ElectionClient<Channel>,
    lock: wire::lock_client::LockClient<Channel>,
}

impl Clients {
    pub fn new(channel: Channel) -> Clients {
        Clients {
            kv: pb::kv_client::KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX),
            watch: pb::watch_client::WatchClient::new(channel.clone()).max_decoding_message_size(usize::MAX),
            lease: pb::lease_client::LeaseClient::new(channel.clone()).max_decoding_message_size(usize::MAX),
            cluster: pb::cluster_client::ClusterClient::new(channel.clone()),
            maintenance: pb::maintenance_client::MaintenanceClient::new(channel.clone()),
            auth: pb::auth_client::AuthClient::new(channel.clone()),
            election: wire::election_client::ElectionClient::new(channel.clone()),
            lock: wire::lock_client::LockClient::new(channel),
        }
    }
}

fn with_token<T>(message: T, token: Option<&str>) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    if let Some(token) = token {
        request.metadata_mut().insert(TOKEN, token.parse().expect("a token is printable"));
    }
    request
}

/// A stream that says one thing and stays open.
fn only<T: Send + 'static>(message: T) -> impl futures::Stream<Item = T> + Send + 'static {
    tokio_stream::once(message).chain(futures::stream::pending())
}

async fn first<T>(mut answers: Streaming<T>) -> Result<T, Status> {
    answers.message().await?.ok_or_else(|| Status::aborted("the stream ended without an answer"))
}

macro_rules! calls {
    (
        unary { $($kind:ident: $client:ident.$method:ident($request:ident) -> $response:ident $($path:literal)?;)* }
        first_answer { $($s_kind:ident: $s_client:ident.$s_method:ident($s_request:ident $($wrap:ident)?) -> $s_response:ident $($s_path:literal)?;)* }
    ) => {
        #[derive(Clone, Debug)]
        pub enum Request {
            $($kind(wire::$request),)*
            $($s_kind(wire::$s_request),)*
        }

        #[derive(Clone, Debug, PartialEq)]
        pub enum Reply {
            $($kind(wire::$response),)*
            $($s_kind(wire::$s_response),)*
        }

        impl Request {
            pub const KINDS: &'static [&'static str] = &[$(stringify!($kind),)* $(stringify!($s_kind),)*];

            pub fn kind(&self) -> &'static str {
                match self {
                    $(Request::$kind(_) => stringify!($kind),)*
                    $(Request::$s_kind(_) => stringify!($s_kind),)*
                }
            }

            /// Where the JSON gateway takes it, if it is sent there.
            pub fn path(&self) -> Option<&'static str> {
                let paths: &[&'static str] = match self {
                    $(Request::$kind(_) => &[$($path)?],)*
                    $(Request::$s_kind(_) => &[$($s_path)?],)*
                };
                paths.first().copied()
            }

            /// The names of the request's and the answer's messages.
            pub fn messages(&self) -> (&'static str, &'static str) {
                match self {
                    $(Request::$kind(_) => (stringify!($request), stringify!($response)),)*
                    $(Request::$s_kind(_) => (stringify!($s_request), stringify!($s_response)),)*
                }
            }

            pub fn encoded(&self) -> Vec<u8> {
                match self {
                    $(Request::$kind(request) => request.encode_to_vec(),)*
                    $(Request::$s_kind(request) => request.encode_to_vec(),)*
                }
            }

            /// An answer to this request from its bytes.
            pub fn decode_reply(&self, bytes: &[u8]) -> Result<Reply, prost::DecodeError> {
                Ok(match self {
                    $(Request::$kind(_) => Reply::$kind(wire::$response::decode(bytes)?),)*
                    $(Request::$s_kind(_) => Reply::$s_kind(wire::$s_response::decode(bytes)?),)*
                })
            }
        }

        impl Reply {
            pub fn header(&self) -> Option<&pb::ResponseHeader> {
                match self {
                    $(Reply::$kind(response) => response.header.as_ref(),)*
                    $(Reply::$s_kind(response) => response.header.as_ref(),)*
                }
            }
        }

        impl Normalise for Reply {
            fn normalise(&mut self) {
                match self {
                    $(Reply::$kind(response) => response.normalise(),)*
                    $(Reply::$s_kind(response) => response.normalise(),)*
                }
            }
        }

        impl Clients {
            /// Sends a request; of a stream the first answer counts.
            pub async fn call(&self, request: Request, token: Option<&str>) -> Answer {
                Ok(match request {
                    $(Request::$kind(request) => {
                        let request = with_token(request, token);
                        Reply::$kind(self.$client.clone().$method(request).await?.into_inner())
                    })*
                    $(Request::$s_kind(request) => {
                        $(let request = $wrap(request);)?
                        let request = with_token(request, token);
                        Reply::$s_kind(first(self.$s_client.clone().$s_method(request).await?.into_inner()).await?)
                    })*
                })
            }
        }
    };
}

calls! {
    unary {
        Range: kv.range(RangeRequest) -> RangeResponse "/v3/kv/range";
        Put: kv.put(PutRequest) -> PutResponse "/v3/kv/put";
        DeleteRange: kv.delete_range(DeleteRangeRequest) -> DeleteRangeResponse "/v3/kv/deleterange";
        Txn: kv.txn(TxnRequest) -> TxnResponse "/v3/kv/txn";
        Compact: kv.compact(CompactionRequest) -> CompactionResponse "/v3/kv/compaction";
        LeaseGrant: lease.lease_grant(LeaseGrantRequest) -> LeaseGrantResponse "/v3/lease/grant";
        LeaseRevoke: lease.lease_revoke(LeaseRevokeRequest) -> LeaseRevokeResponse "/v3/lease/revoke";
        LeaseTimeToLive: lease.lease_time_to_live(LeaseTimeToLiveRequest) -> LeaseTimeToLiveResponse "/v3/lease/timetolive";
        LeaseLeases: lease.lease_leases(LeaseLeasesRequest) -> LeaseLeasesResponse "/v3/lease/leases";
        MemberList: cluster.member_list(MemberListRequest) -> MemberListResponse "/v3/cluster/member/list";
        MemberAdd: cluster.member_add(MemberAddRequest) -> MemberAddResponse "/v3/cluster/member/add";
        MemberRemove: cluster.member_remove(MemberRemoveRequest) -> MemberRemoveResponse "/v3/cluster/member/remove";
        MemberUpdate: cluster.member_update(MemberUpdateRequest) -> MemberUpdateResponse "/v3/cluster/member/update";
        MemberPromote: cluster.member_promote(MemberPromoteRequest) -> MemberPromoteResponse "/v3/cluster/member/promote";
        Alarm: maintenance.alarm(AlarmRequest) -> AlarmResponse "/v3/maintenance/alarm";
        Status: maintenance.status(StatusRequest) -> StatusResponse "/v3/maintenance/status";
        Defragment: maintenance.defragment(DefragmentRequest) -> DefragmentResponse "/v3/maintenance/defragment";
        Hash: maintenance.hash(HashRequest) -> HashResponse "/v3/maintenance/hash";
        HashKv: maintenance.hash_kv(HashKvRequest) -> HashKvResponse "/v3/maintenance/hashkv";
        MoveLeader: maintenance.move_leader(MoveLeaderRequest) -> MoveLeaderResponse "/v3/maintenance/transfer-leadership";
        Downgrade: maintenance.downgrade(DowngradeRequest) -> DowngradeResponse "/v3/maintenance/downgrade";
        AuthStatus: auth.auth_status(AuthStatusRequest) -> AuthStatusResponse "/v3/auth/status";
        AuthEnable: auth.auth_enable(AuthEnableRequest) -> AuthEnableResponse "/v3/auth/enable";
        AuthDisable: auth.auth_disable(AuthDisableRequest) -> AuthDisableResponse "/v3/auth/disable";
        Authenticate: auth.authenticate(AuthenticateRequest) -> AuthenticateResponse "/v3/auth/authenticate";
        UserAdd: auth.user_add(AuthUserAddRequest) -> AuthUserAddResponse "/v3/auth/user/add";
        UserGet: auth.user_get(AuthUserGetRequest) -> AuthUserGetResponse "/v3/auth/user/get";
        UserList: auth.user_list(AuthUserListRequest) -> AuthUserListResponse "/v3/auth/user/list";
        UserDelete: auth.user_delete(AuthUserDeleteRequest) -> AuthUserDeleteResponse "/v3/auth/user/delete";
        UserChangePassword: auth.user_change_password(AuthUserChangePasswordRequest) -> AuthUserChangePasswordResponse "/v3/auth/user/changepw";
        UserGrantRole: auth.user_grant_role(AuthUserGrantRoleRequest) -> AuthUserGrantRoleResponse "/v3/auth/user/grant";
        UserRevokeRole: auth.user_revoke_role(AuthUserRevokeRoleRequest) -> AuthUserRevokeRoleResponse "/v3/auth/user/revoke";
        RoleAdd: auth.role_add(AuthRoleAddRequest) -> AuthRoleAddResponse "/v3/auth/role/add";
        RoleGet: auth.role_get(AuthRoleGetRequest) -> AuthRoleGetResponse "/v3/auth/role/get";
        RoleList: auth.role_list(AuthRoleListRequest) -> AuthRoleListResponse "/v3/auth/role/list";
        RoleDelete: auth.role_delete(AuthRoleDeleteRequest) -> AuthRoleDeleteResponse "/v3/auth/role/delete";
        RoleGrantPermission: auth.role_grant_permission(AuthRoleGrantPermissionRequest) -> AuthRoleGrantPermissionResponse "/v3/auth/role/grant";
        RoleRevokePermission: auth.role_revoke_permission(AuthRoleRevokePermissionRequest) -> AuthRoleRevokePermissionResponse "/v3/auth/role/revoke";
        Campaign: election.campaign(CampaignRequest) -> CampaignResponse "/v3/election/campaign";
        Proclaim: election.proclaim(ProclaimRequest) -> ProclaimResponse "/v3/election/proclaim";
        Leader: election.leader(LeaderRequest) -> LeaderResponse "/v3/election/leader";
        Resign: election.resign(ResignRequest) -> ResignResponse "/v3/election/resign";
        Lock: lock.lock(LockRequest) -> LockResponse "/v3/lock/lock";
        Unlock: lock.unlock(UnlockRequest) -> UnlockResponse "/v3/lock/unlock";
    }
    first_answer {
        KeepAlive: lease.lease_keep_alive(LeaseKeepAliveRequest only) -> LeaseKeepAliveResponse "/v3/lease/keepalive";
        Watch: watch.watch(WatchRequest only) -> WatchResponse;
        Snapshot: maintenance.snapshot(SnapshotRequest) -> SnapshotResponse;
        Observe: election.observe(LeaderRequest) -> LeaderResponse;
    }
}

impl Request {
    /// Whether neither success nor failure changes what any other request answers: such requests are sent together.
    pub fn is_read(&self) -> bool {
        matches!(
            self,
            Request::Range(_)
                | Request::LeaseTimeToLive(_)
                | Request::LeaseLeases(_)
                | Request::MemberList(_)
                | Request::Status(_)
                | Request::HashKv(_)
                | Request::Hash(_)
                | Request::AuthStatus(_)
                | Request::UserGet(_)
                | Request::UserList(_)
                | Request::RoleGet(_)
                | Request::RoleList(_)
                | Request::Watch(_)
                | Request::Snapshot(_)
                | Request::Observe(_)
                | Request::Leader(_)
        )
    }
}
