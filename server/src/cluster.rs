//! The Cluster service. Source: etcd, `server/etcdserver/api/v3rpc/member.go`.

use std::sync::Arc;

use proto::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
    MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse,
    cluster_server::Cluster,
};
use tonic::{Request, Response, Status};

use crate::{
    admit::{Learner, admit},
    context::Context,
    unimplemented::unimplemented,
};

pub struct ClusterService {
    ctx: Arc<Context>,
}

impl ClusterService {
    pub fn new(ctx: Arc<Context>) -> Self {
        ClusterService { ctx }
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn member_list(&self, request: Request<MemberListRequest>) -> Result<Response<MemberListResponse>, Status> {
        admit(&self.ctx, request.metadata(), Learner::Refuses)?;
        if request.get_ref().linearizable {
            self.ctx.read_barrier().await?;
        }
        let members = self.ctx.node.members().into_iter().map(member).collect();
        // etcd leaves the revision out of this header.
        Ok(Response::new(MemberListResponse { header: Some(self.ctx.header(0)), members }))
    }

    async fn member_add(&self, _: Request<MemberAddRequest>) -> Result<Response<MemberAddResponse>, Status> {
        Err(unimplemented("etcdserverpb.Cluster/MemberAdd"))
    }

    async fn member_remove(&self, _: Request<MemberRemoveRequest>) -> Result<Response<MemberRemoveResponse>, Status> {
        Err(unimplemented("etcdserverpb.Cluster/MemberRemove"))
    }

    async fn member_update(&self, _: Request<MemberUpdateRequest>) -> Result<Response<MemberUpdateResponse>, Status> {
        Err(unimplemented("etcdserverpb.Cluster/MemberUpdate"))
    }

    async fn member_promote(
        &self,
        _: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        Err(unimplemented("etcdserverpb.Cluster/MemberPromote"))
    }
}

fn member(member: raft::Member) -> Member {
    Member {
        id: member.id.0,
        name: member.name,
        peer_ur_ls: member.peer_urls,
        client_ur_ls: member.client_urls,
        is_learner: member.is_learner,
    }
}
