//! The Cluster service. Source: etcd, `server/etcdserver/api/v3rpc/member.go`.
//!
//! Whichever member is asked, the leader decides: `raft::Node::change_members`.

use std::{sync::Arc, time::UNIX_EPOCH};

use proto::{
    EtcdError, MemberId,
    etcdserverpb::{
        Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse, MemberPromoteRequest,
        MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse, MemberUpdateRequest, MemberUpdateResponse,
        cluster_server::Cluster,
    },
};
use raft::{Change, ChangeError};
use storage::host;
use tonic::{Request, Response, Status};

use crate::{
    admit::{Learner, admit},
    context::Context,
    identity,
    urls::{self, Url},
};

#[derive(Clone)]
pub struct ClusterService {
    ctx: Arc<Context>,
}

impl ClusterService {
    pub fn new(ctx: Arc<Context>) -> Self {
        ClusterService { ctx }
    }

    /// Changes the membership; gives all members there are then.
    async fn change(&self, change: Change) -> Result<Vec<Member>, Status> {
        tracing::info!(change = describe(&change), "the membership is to be changed");
        match self.ctx.node.change_members(change.clone(), self.ctx.change_policy).await {
            Ok(members) => {
                tracing::info!(change = describe(&change), members = members.len(), "the membership was changed");
                Ok(members.into_iter().map(member).collect())
            }
            Err(error) => {
                tracing::warn!(change = describe(&change), %error, "the membership was not changed");
                Err(match error {
                    ChangeError::Refused(error) => error.into(),
                    ChangeError::Raft(error) => self.ctx.raft_error(error),
                })
            }
        }
    }
}

#[tonic::async_trait]
impl Cluster for ClusterService {
    async fn member_list(&self, request: Request<MemberListRequest>) -> Result<Response<MemberListResponse>, Status> {
        admit(&self.ctx, request.metadata(), Learner::Refuses)?;
        if request.get_ref().linearizable {
            self.ctx.read_barrier().await?;
        }
        self.ctx.auth.require_user(&self.ctx.auth.caller(&request)).await?;
        let members = self.ctx.node.members().into_iter().map(member).collect();
        // etcd leaves the revision out of this header, and those below.
        Ok(Response::new(MemberListResponse { header: Some(self.ctx.header(0)), members }))
    }

    async fn member_add(&self, request: Request<MemberAddRequest>) -> Result<Response<MemberAddResponse>, Status> {
        admit(&self.ctx, request.metadata(), Learner::Refuses)?;
        let caller = self.ctx.auth.caller(&request);
        let MemberAddRequest { peer_ur_ls, is_learner } = request.into_inner();
        let peer_urls = checked(&peer_ur_ls)?;
        self.ctx.auth.require_admin(&caller).await?;
        let now = host::system_time().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let id = identity::added_member_id(&peer_urls, now);
        let peer_urls = urls::to_strings(&peer_urls);
        let change = match is_learner {
            true => Change::AddLearner { id, peer_urls: peer_urls.clone() },
            false => Change::AddVoter { id, peer_urls: peer_urls.clone() },
        };
        let members = self.change(change).await?;
        let added = Member { id: id.0, peer_ur_ls: peer_urls, is_learner, ..Default::default() };
        Ok(Response::new(MemberAddResponse { header: Some(self.ctx.header(0)), member: Some(added), members }))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        admit(&self.ctx, request.metadata(), Learner::Refuses)?;
        self.ctx.auth.require_admin(&self.ctx.auth.caller(&request)).await?;
        let members = self.change(Change::Remove(MemberId(request.get_ref().id))).await?;
        Ok(Response::new(MemberRemoveResponse { header: Some(self.ctx.header(0)), members }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        admit(&self.ctx, request.metadata(), Learner::Refuses)?;
        self.ctx.auth.require_admin(&self.ctx.auth.caller(&request)).await?;
        let MemberUpdateRequest { id, peer_ur_ls } = request.into_inner();
        // etcd leaves this check to its client, and stops all members when it was not made.
        let peer_urls = urls::to_strings(&checked(&peer_ur_ls)?);
        let members = self.change(Change::Update { id: MemberId(id), peer_urls }).await?;
        Ok(Response::new(MemberUpdateResponse { header: Some(self.ctx.header(0)), members }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        admit(&self.ctx, request.metadata(), Learner::Refuses)?;
        self.ctx.auth.require_admin(&self.ctx.auth.caller(&request)).await?;
        let promoted = self.change(Change::Promote(MemberId(request.get_ref().id))).await;
        self.ctx.metrics.promoted(promoted.as_ref().map(|_| ()));
        let members = promoted?;
        Ok(Response::new(MemberPromoteResponse { header: Some(self.ctx.header(0)), members }))
    }
}

/// Peer URLs as a client gives them, sorted.
fn checked(peer_urls: &[String]) -> Result<Vec<Url>, Status> {
    let mut urls = peer_urls
        .iter()
        .map(|url| Url::parse(url))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| EtcdError::MemberBadURLs)?;
    if urls.is_empty() {
        return Err(EtcdError::MemberBadURLs.into());
    }
    urls.sort();
    Ok(urls)
}

/// For the log.
fn describe(change: &Change) -> String {
    match change {
        Change::AddVoter { id, peer_urls } => format!("add {id} at {}", peer_urls.join(",")),
        Change::AddLearner { id, peer_urls } => format!("add learner {id} at {}", peer_urls.join(",")),
        Change::Remove(id) => format!("remove {id}"),
        Change::Promote(id) => format!("promote {id}"),
        Change::Update { id, peer_urls } => format!("move {id} to {}", peer_urls.join(",")),
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
