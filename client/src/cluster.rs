//! Members of the cluster.

use proto::{
    MemberId,
    etcdserverpb::{
        MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
        MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse,
        cluster_client::ClusterClient,
    },
};

use crate::{Client, Result, retry::Repeat};

impl Client {
    /// The members. `linearizable`: as the cluster has agreed; else as the member asked knows.
    pub async fn member_list(&self, linearizable: bool) -> Result<MemberListResponse> {
        let request = MemberListRequest { linearizable };
        self.call(Repeat::Always, request, async |connection, request| {
            ClusterClient::new(connection).member_list(request).await
        })
        .await
    }

    /// Adds a member, which is to be started with these peer URLs; as a learner it does not vote yet.
    pub async fn member_add(&self, peer_urls: Vec<String>, learner: bool) -> Result<MemberAddResponse> {
        let request = MemberAddRequest { peer_ur_ls: peer_urls, is_learner: learner };
        self.call(Repeat::IfNotProposed, request, async |connection, request| {
            ClusterClient::new(connection).member_add(request).await
        })
        .await
    }

    /// Removes a member, whose id is never used again.
    pub async fn member_remove(&self, member: MemberId) -> Result<MemberRemoveResponse> {
        let request = MemberRemoveRequest { id: member.0 };
        self.call(Repeat::IfNotProposed, request, async |connection, request| {
            ClusterClient::new(connection).member_remove(request).await
        })
        .await
    }

    /// Changes the URLs at which the other members reach a member.
    pub async fn member_update(&self, member: MemberId, peer_urls: Vec<String>) -> Result<MemberUpdateResponse> {
        let request = MemberUpdateRequest { id: member.0, peer_ur_ls: peer_urls };
        self.call(Repeat::IfNotProposed, request, async |connection, request| {
            ClusterClient::new(connection).member_update(request).await
        })
        .await
    }

    /// Makes a learner a voter.
    pub async fn member_promote(&self, member: MemberId) -> Result<MemberPromoteResponse> {
        let request = MemberPromoteRequest { id: member.0 };
        self.call(Repeat::IfNotProposed, request, async |connection, request| {
            ClusterClient::new(connection).member_promote(request).await
        })
        .await
    }
}
