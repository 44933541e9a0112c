//! Every unary call the tester makes, as one value: it can be generated, printed, sent to either peer and compared.

use proto::etcdserverpb as pb;
use tonic::{Status, transport::Channel};

use super::normal::Normalise;

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

/// One connection's worth of etcd's unary services.
#[derive(Clone)]
pub struct Clients {
    kv: pb::kv_client::KvClient<Channel>,
    lease: pb::lease_client::LeaseClient<Channel>,
    cluster: pb::cluster_client::ClusterClient<Channel>,
    maintenance: pb::maintenance_client::MaintenanceClient<Channel>,
    auth: pb::auth_client::AuthClient<Channel>,
}

impl Clients {
    pub fn new(channel: Channel) -> Clients {
        Clients {
            kv: pb::kv_client::KvClient::new(channel.clone()).max_decoding_message_size(usize::MAX),
            lease: pb::lease_client::LeaseClient::new(channel.clone()).max_decoding_message_size(usize::MAX),
            cluster: pb::cluster_client::ClusterClient::new(channel.clone()),
            maintenance: pb::maintenance_client::MaintenanceClient::new(channel.clone()),
            auth: pb::auth_client::AuthClient::new(channel),
        }
    }

    /// One message on a keep-alive stream of its own, and the first answer to it.
    async fn keep_alive(&self, request: pb::LeaseKeepAliveRequest) -> Result<pb::LeaseKeepAliveResponse, Status> {
        let mut answers = self.lease.clone().lease_keep_alive(tokio_stream::once(request)).await?.into_inner();
        answers.message().await?.ok_or_else(|| Status::aborted("the stream ended without an answer"))
    }
}

macro_rules! calls {
    ($($kind:ident: $client:ident.$method:ident($request:ident) -> $response:ident;)*) => {
        #[derive(Clone, Debug)]
        pub enum Request {
            KeepAlive(pb::LeaseKeepAliveRequest),
            $($kind(pb::$request),)*
        }

        #[derive(Clone, Debug, PartialEq)]
        pub enum Reply {
            KeepAlive(pb::LeaseKeepAliveResponse),
            $($kind(pb::$response),)*
        }

        impl Request {
            pub const KINDS: &'static [&'static str] = &["KeepAlive", $(stringify!($kind),)*];

            pub fn kind(&self) -> &'static str {
                match self {
                    Request::KeepAlive(_) => "KeepAlive",
                    $(Request::$kind(_) => stringify!($kind),)*
                }
            }
        }

        impl Reply {
            pub fn header(&self) -> Option<&pb::ResponseHeader> {
                match self {
                    Reply::KeepAlive(response) => response.header.as_ref(),
                    $(Reply::$kind(response) => response.header.as_ref(),)*
                }
            }
        }

        impl Normalise for Reply {
            fn normalise(&mut self) {
                match self {
                    Reply::KeepAlive(response) => response.normalise(),
                    $(Reply::$kind(response) => response.normalise(),)*
                }
            }
        }

        impl Clients {
            pub async fn call(&self, request: Request) -> Answer {
                Ok(match request {
                    Request::KeepAlive(request) => Reply::KeepAlive(self.keep_alive(request).await?),
                    $(Request::$kind(request) => {
                        Reply::$kind(self.$client.clone().$method(request).await?.into_inner())
                    })*
                })
            }
        }
    };
}

calls! {
    Range: kv.range(RangeRequest) -> RangeResponse;
    Put: kv.put(PutRequest) -> PutResponse;
    DeleteRange: kv.delete_range(DeleteRangeRequest) -> DeleteRangeResponse;
    Txn: kv.txn(TxnRequest) -> TxnResponse;
    Compact: kv.compact(CompactionRequest) -> CompactionResponse;
    LeaseGrant: lease.lease_grant(LeaseGrantRequest) -> LeaseGrantResponse;
    LeaseRevoke: lease.lease_revoke(LeaseRevokeRequest) -> LeaseRevokeResponse;
    LeaseTimeToLive: lease.lease_time_to_live(LeaseTimeToLiveRequest) -> LeaseTimeToLiveResponse;
    LeaseLeases: lease.lease_leases(LeaseLeasesRequest) -> LeaseLeasesResponse;
    MemberList: cluster.member_list(MemberListRequest) -> MemberListResponse;
    MemberAdd: cluster.member_add(MemberAddRequest) -> MemberAddResponse;
    MemberRemove: cluster.member_remove(MemberRemoveRequest) -> MemberRemoveResponse;
    MemberUpdate: cluster.member_update(MemberUpdateRequest) -> MemberUpdateResponse;
    MemberPromote: cluster.member_promote(MemberPromoteRequest) -> MemberPromoteResponse;
    Alarm: maintenance.alarm(AlarmRequest) -> AlarmResponse;
    Status: maintenance.status(StatusRequest) -> StatusResponse;
    Defragment: maintenance.defragment(DefragmentRequest) -> DefragmentResponse;
    Hash: maintenance.hash(HashRequest) -> HashResponse;
    HashKv: maintenance.hash_kv(HashKvRequest) -> HashKvResponse;
    MoveLeader: maintenance.move_leader(MoveLeaderRequest) -> MoveLeaderResponse;
    Downgrade: maintenance.downgrade(DowngradeRequest) -> DowngradeResponse;
    AuthStatus: auth.auth_status(AuthStatusRequest) -> AuthStatusResponse;
    AuthEnable: auth.auth_enable(AuthEnableRequest) -> AuthEnableResponse;
    AuthDisable: auth.auth_disable(AuthDisableRequest) -> AuthDisableResponse;
    Authenticate: auth.authenticate(AuthenticateRequest) -> AuthenticateResponse;
    UserAdd: auth.user_add(AuthUserAddRequest) -> AuthUserAddResponse;
    UserGet: auth.user_get(AuthUserGetRequest) -> AuthUserGetResponse;
    UserList: auth.user_list(AuthUserListRequest) -> AuthUserListResponse;
    UserDelete: auth.user_delete(AuthUserDeleteRequest) -> AuthUserDeleteResponse;
    UserChangePassword: auth.user_change_password(AuthUserChangePasswordRequest) -> AuthUserChangePasswordResponse;
    UserGrantRole: auth.user_grant_role(AuthUserGrantRoleRequest) -> AuthUserGrantRoleResponse;
    UserRevokeRole: auth.user_revoke_role(AuthUserRevokeRoleRequest) -> AuthUserRevokeRoleResponse;
    RoleAdd: auth.role_add(AuthRoleAddRequest) -> AuthRoleAddResponse;
    RoleGet: auth.role_get(AuthRoleGetRequest) -> AuthRoleGetResponse;
    RoleList: auth.role_list(AuthRoleListRequest) -> AuthRoleListResponse;
    RoleDelete: auth.role_delete(AuthRoleDeleteRequest) -> AuthRoleDeleteResponse;
    RoleGrantPermission: auth.role_grant_permission(AuthRoleGrantPermissionRequest) -> AuthRoleGrantPermissionResponse;
    RoleRevokePermission: auth.role_revoke_permission(AuthRoleRevokePermissionRequest) -> AuthRoleRevokePermissionResponse;
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
        )
    }
}
