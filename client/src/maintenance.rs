//! What concerns one member, named by its endpoint, and alarms, which concern the cluster.

use proto::{
    MemberId,
    etcdserverpb::{
        AlarmRequest, AlarmResponse, AlarmType, DefragmentRequest, DefragmentResponse, HashKvRequest, HashKvResponse,
        MoveLeaderRequest, MoveLeaderResponse, StatusRequest, StatusResponse, alarm_request::AlarmAction,
        kv_client::KvClient, maintenance_client::MaintenanceClient,
    },
};
use tonic::Code;

use crate::{Client, Error, EtcdError, Get, Result, retry::Repeat};

impl Client {
    /// Version, size, leader and Raft's numbers of the member at this endpoint.
    pub async fn status(&self, endpoint: &str) -> Result<StatusResponse> {
        self.call_at(endpoint, async |channel| MaintenanceClient::new(channel).status(StatusRequest {}).await).await
    }

    /// Whether the member at this endpoint can have a linearizable read answered, within the request timeout.
    pub async fn health(&self, endpoint: &str) -> Result<()> {
        let request = Get::key("health").0;
        match self.call_at(endpoint, async |channel| KvClient::new(channel).range(request).await).await {
            Ok(_) => Ok(()),
            // Whoever may not read the key was told so by a cluster that works.
            Err(Error::Etcd(EtcdError::PermissionDenied)) => Ok(()),
            Err(Error::Rpc { code: Code::PermissionDenied, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A hash of everything the member holds up to `revision` (0: the newest). Members agree on it.
    pub async fn hash_kv(&self, endpoint: &str, revision: i64) -> Result<HashKvResponse> {
        let request = HashKvRequest { revision };
        self.call_at(endpoint, async |channel| MaintenanceClient::new(channel).hash_kv(request).await).await
    }

    /// Gives unused space of the member's store back to the file system.
    pub async fn defragment(&self, endpoint: &str) -> Result<DefragmentResponse> {
        let request = DefragmentRequest {};
        self.call_at(endpoint, async |channel| MaintenanceClient::new(channel).defragment(request).await).await
    }

    /// Makes another member the leader. The endpoint must be the present leader's.
    pub async fn move_leader(&self, endpoint: &str, to: MemberId) -> Result<MoveLeaderResponse> {
        let request = MoveLeaderRequest { target_id: to.0 };
        self.call_at(endpoint, async |channel| MaintenanceClient::new(channel).move_leader(request).await).await
    }

    /// The alarms that are raised.
    pub async fn alarms(&self) -> Result<AlarmResponse> {
        self.alarm(Repeat::Always, AlarmAction::Get, MemberId(0), AlarmType::None).await
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
        self.call(repeat, request, async |channel, request| MaintenanceClient::new(channel).alarm(request).await).await
    }
}
