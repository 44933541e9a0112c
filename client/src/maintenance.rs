//! What concerns one member, named by its endpoint, and alarms, which concern the cluster.

use proto::{
    MemberId,
    etcdserverpb::{
        AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse, DowngradeRequest,
        DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest,
        MoveLeaderResponse, SnapshotRequest, SnapshotResponse, StatusRequest, StatusResponse,
        alarm_request::AlarmAction, downgrade_request::DowngradeAction, maintenance_client::MaintenanceClient,
    },
};
use tonic::{Code, Streaming};

use crate::{
    Client, Error, EtcdError, Get, Result, connection::ANSWER_BYTES_MAX, identity::Connection, kv::kv, retry::Repeat,
};

fn maintenance(connection: Connection) -> MaintenanceClient<Connection> {
    MaintenanceClient::new(connection).max_decoding_message_size(ANSWER_BYTES_MAX)
}

/// The methods with an `endpoint` ask that one, once; it need be none of the client's.
impl Client {
    /// Version, size, leader and Raft's numbers of the member at this endpoint.
    pub async fn status(&self, endpoint: &str) -> Result<StatusResponse> {
        let send = async |connection, request| maintenance(connection).status(request).await;
        self.at(endpoint)?.call(Repeat::Never, StatusRequest {}, send).await
    }

    /// Whether the member at this endpoint can have a linearizable read answered, within the request timeout.
    pub async fn health(&self, endpoint: &str) -> Result<()> {
        let request = Get::key("health").0;
        let send = async |connection, request| kv(connection, self.options()).range(request).await;
        match self.at(endpoint)?.call(Repeat::Never, request, send).await {
            Ok(_) => Ok(()),
            // Whoever may not read the key was told so by a cluster that works.
            Err(Error::Etcd(EtcdError::PermissionDenied)) => Ok(()),
            Err(Error::Rpc { code: Code::PermissionDenied, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A hash of the member's whole store, as it stands there. For comparing a member with itself only.
    pub async fn hash(&self, endpoint: &str) -> Result<HashResponse> {
        let send = async |connection, request| maintenance(connection).hash(request).await;
        self.at(endpoint)?.call(Repeat::Never, HashRequest {}, send).await
    }

    /// A hash of everything the member holds up to `revision` (0: the newest). Members agree on it.
    pub async fn hash_kv(&self, endpoint: &str, revision: i64) -> Result<HashKvResponse> {
        let send = async |connection, request| maintenance(connection).hash_kv(request).await;
        self.at(endpoint)?.call(Repeat::Never, HashKvRequest { revision }, send).await
    }

    /// Gives unused space of the member's store back to the file system.
    pub async fn defragment(&self, endpoint: &str) -> Result<DefragmentResponse> {
        let send = async |connection, request| maintenance(connection).defragment(request).await;
        self.at(endpoint)?.call(Repeat::Never, DefragmentRequest {}, send).await
    }

    /// The member's store as a file of etcd's, in parts. The request timeout is that of the stream's beginning.
    pub async fn snapshot(&self, endpoint: &str) -> Result<Streaming<SnapshotResponse>> {
        let send = async |connection, request| maintenance(connection).snapshot(request).await;
        self.at(endpoint)?.call(Repeat::Never, SnapshotRequest {}, send).await
    }

    /// Makes another member the leader. The endpoint must be the present leader's.
    pub async fn move_leader(&self, endpoint: &str, to: MemberId) -> Result<MoveLeaderResponse> {
        let send = async |connection, request| maintenance(connection).move_leader(request).await;
        self.at(endpoint)?.call(Repeat::Never, MoveLeaderRequest { target_id: to.0 }, send).await
    }

    /// Asks whether the cluster can go to a version, tells it to, or takes that back.
    pub async fn downgrade(&self, action: DowngradeAction, version: &str) -> Result<DowngradeResponse> {
        let request = DowngradeRequest { action: action.into(), version: version.to_string() };
        let send = async |connection, request| maintenance(connection).downgrade(request).await;
        self.call(Repeat::IfNotProposed, request, send).await
    }

    /// The alarms that are raised.
    pub async fn alarms(&self) -> Result<AlarmResponse> {
        self.alarm(Repeat::Always, AlarmAction::Get, MemberId(0), AlarmType::None).await
    }

    /// Raises an alarm.
    pub async fn raise_alarm(&self, member: MemberId, alarm: AlarmType) -> Result<AlarmResponse> {
        self.alarm(Repeat::IfNotProposed, AlarmAction::Activate, member, alarm).await
    }

    /// Takes an alarm back.
    pub async fn disarm(&self, member: MemberId, alarm: AlarmType) -> Result<AlarmResponse> {
        self.alarm(Repeat::IfNotProposed, AlarmAction::Deactivate, member, alarm).await
    }

    async fn alarm(
        &self,
        repeat: Repeat,
        action: AlarmAction,
        member: MemberId,
        alarm: AlarmType,
    ) -> Result<AlarmResponse> {
        let request = AlarmRequest { action: action.into(), member_id: member.0, alarm: alarm.into() };
        self.call(repeat, request, async |connection, request| maintenance(connection).alarm(request).await).await
    }
}
