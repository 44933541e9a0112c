//! The Maintenance service. Source: etcd, `server/etcdserver/api/v3rpc/maintenance.go`.

use std::{sync::Arc, time::Instant};

use proto::{
    EtcdError, MemberId,
    command::{command::Op, outcome::Result as Outcome},
    etcdserverpb::{
        AlarmMember, AlarmRequest, AlarmResponse, DefragmentRequest, DefragmentResponse, DowngradeRequest,
        DowngradeResponse, HashKvRequest, HashKvResponse, HashRequest, HashResponse, MoveLeaderRequest,
        MoveLeaderResponse, SnapshotRequest, StatusRequest, StatusResponse, alarm_request::AlarmAction,
        maintenance_server::Maintenance,
    },
};
use raft::RaftError;
use storage::host;
use tonic::{Request, Response, Status};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    ETCD_VERSION,
    admit::{Learner, admit},
    context::Context,
    gates::Gate,
    snapshot::{SnapshotStream, Snapshots},
    version,
};

/// (etcd: `server/etcdserver/errors`, ErrTimeoutLeaderTransfer.)
const TRANSFER_TIMEOUT: &str = "etcdserver: request timed out, leader transfer took too long";

pub struct MaintenanceService {
    ctx: Arc<Context>,
    health: HealthReporter,
}

impl MaintenanceService {
    pub fn new(ctx: Arc<Context>, health: HealthReporter) -> Self {
        MaintenanceService { ctx, health }
    }
}

/// Compacts the store. With the gate `StopGRPCServiceOnDefrag` the health service says meanwhile that this member does
/// not serve, so that clients which ask for it go to another one.
async fn defragment(ctx: Arc<Context>, health: HealthReporter) -> Result<(), Status> {
    tracing::info!("starting defragment");
    if ctx.gates.is_on(Gate::StopGRPCServiceOnDefrag) {
        tracing::warn!(status = "NOT_SERVING", reason = "defrag is active", "grpc service status changed");
        health.set_service_status("", ServingStatus::NotServing).await;
    }
    let began = Instant::now();
    ctx.metrics.store.defrag_inflight.set(1);
    let done = ctx.blocking(|store| Ok(store.defragment()?)).await;
    ctx.metrics.store.defrag_inflight.set(0);
    ctx.metrics.store.defrags.observe(began.elapsed().as_secs_f64());
    health.set_service_status("", ServingStatus::Serving).await;
    tracing::info!("finished defragment");
    done
}

#[tonic::async_trait]
impl Maintenance for MaintenanceService {
    async fn alarm(&self, request: Request<AlarmRequest>) -> Result<Response<AlarmResponse>, Status> {
        admit(&self.ctx, request.metadata(), Learner::Refuses)?;
        let caller = self.ctx.auth.caller(&request);
        if request.get_ref().action == AlarmAction::Get as i32 {
            self.ctx.auth.require_user(&caller).await?;
        } else {
            self.ctx.auth.require_admin(&caller).await?;
        }
        match self.ctx.propose_by(&caller, Op::Alarm(request.into_inner())).await? {
            Outcome::Alarm(mut response) => {
                self.ctx.stamp(&mut response.header);
                Ok(Response::new(response))
            }
            other => Err(self.ctx.wrong_outcome("Alarm", &other)),
        }
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        admit(&self.ctx, request.metadata(), Learner::Serves)?;
        self.ctx.auth.require_user(&self.ctx.auth.caller(&request)).await?;
        let size = self.ctx.blocking(|store| Ok(store.size()?)).await?;
        let status = self.ctx.node.status();
        Ok(Response::new(StatusResponse {
            header: Some(self.ctx.header(self.ctx.store.revision())),
            version: ETCD_VERSION.into(),
            db_size: size.on_disk,
            leader: status.leader.map_or(0, |leader| leader.0),
            raft_index: status.committed_index,
            raft_term: status.term,
            raft_applied_index: status.applied_index,
            errors: problems(&status, &self.ctx.store.alarms()),
            db_size_in_use: size.in_use,
            is_learner: status.is_learner,
            storage_version: version::storage_text(&self.ctx.store),
            db_size_quota: self.ctx.limits.quota_backend_bytes,
            downgrade_info: Some(version::downgrade_info(&self.ctx.store)),
        }))
    }

    async fn defragment(&self, request: Request<DefragmentRequest>) -> Result<Response<DefragmentResponse>, Status> {
        admit(&self.ctx, request.metadata(), Learner::Refuses)?;
        self.ctx.auth.require_admin(&self.ctx.auth.caller(&request)).await?;
        // A task of its own: it goes on, and the member's health is set right, when the client gives up.
        let task = host::spawn(defragment(self.ctx.clone(), self.health.clone()));
        task.await.map_err(|_| EtcdError::Stopped)??;
        Ok(Response::new(DefragmentResponse::default()))
    }

    async fn hash(&self, request: Request<HashRequest>) -> Result<Response<HashResponse>, Status> {
        admit(&self.ctx, request.metadata(), Learner::Refuses)?;
        self.ctx.auth.require_admin(&self.ctx.auth.caller(&request)).await?;
        let (hash, revision) = self.ctx.blocking(|store| store.hash()).await?;
        Ok(Response::new(HashResponse { header: Some(self.ctx.header(revision)), hash }))
    }

    async fn hash_kv(&self, request: Request<HashKvRequest>) -> Result<Response<HashKvResponse>, Status> {
        admit(&self.ctx, request.metadata(), Learner::Refuses)?;
        self.ctx.auth.require_admin(&self.ctx.auth.caller(&request)).await?;
        let revision = request.get_ref().revision;
        let hashed = self.ctx.blocking(move |store| store.hash_kv(revision)).await?;
        Ok(Response::new(HashKvResponse {
            header: Some(self.ctx.header(hashed.revision)),
            hash: hashed.hash,
            compact_revision: hashed.compact_revision,
            hash_revision: hashed.hash_revision,
        }))
    }

    type SnapshotStream = SnapshotStream;

    async fn snapshot(&self, request: Request<SnapshotRequest>) -> Result<Response<Self::SnapshotStream>, Status> {
        admit(&self.ctx, request.metadata(), Learner::Serves)?;
        self.ctx.auth.require_admin(&self.ctx.auth.caller(&request)).await?;
        Ok(Response::new(Snapshots::send(self.ctx.clone())))
    }

    async fn move_leader(&self, request: Request<MoveLeaderRequest>) -> Result<Response<MoveLeaderResponse>, Status> {
        admit(&self.ctx, request.metadata(), Learner::Refuses)?;
        self.ctx.auth.require_admin(&self.ctx.auth.caller(&request)).await?;
        move_leader(&self.ctx, MemberId(request.get_ref().target_id)).await?;
        Ok(Response::new(MoveLeaderResponse::default()))
    }

    async fn downgrade(&self, request: Request<DowngradeRequest>) -> Result<Response<DowngradeResponse>, Status> {
        admit(&self.ctx, request.metadata(), Learner::Refuses)?;
        self.ctx.auth.require_admin(&self.ctx.auth.caller(&request)).await?;
        let version = version::downgrade(&self.ctx, request.get_ref()).await?;
        let header = Some(self.ctx.header(self.ctx.store.revision()));
        Ok(Response::new(DowngradeResponse { header, version }))
    }
}

/// Returns when the other member leads.
async fn move_leader(ctx: &Context, to: MemberId) -> Result<(), Status> {
    if !ctx.node.status().is_leader {
        return Err(EtcdError::NotLeader.into());
    }
    if !ctx.node.members().iter().any(|member| member.id == to && !member.is_learner) {
        return Err(EtcdError::BadLeaderTransferee.into());
    }
    if to == ctx.member {
        return Ok(());
    }
    tracing::info!(local_member_id = %ctx.member, transferee_member_id = %to, "leadership transfer starting");
    match ctx.node.transfer_leadership(Some(to)).await {
        Ok(()) => {}
        // etcd has no gRPC code for it.
        Err(RaftError::Timeout) => return Err(Status::unknown(TRANSFER_TIMEOUT)),
        Err(error) => return Err(ctx.raft_error(error)),
    }
    tracing::info!(old_leader_member_id = %ctx.member, new_leader_member_id = %to, "leadership transfer finished");
    Ok(())
}

/// What Status reports as errors.
pub fn problems(status: &raft::Status, alarms: &[AlarmMember]) -> Vec<String> {
    let leader = status.leader.is_none().then(|| EtcdError::NoLeader.message().to_string());
    let alarms =
        alarms.iter().map(|alarm| format!("memberID:{} alarm:{}", alarm.member_id, alarm.alarm().as_str_name()));
    leader.into_iter().chain(alarms).collect()
}

#[cfg(test)]
mod tests {
    use proto::etcdserverpb::AlarmType;

    use super::*;

    #[test]
    fn status_reports_a_missing_leader_and_each_alarm() {
        let alarms = [AlarmMember { member_id: 7, alarm: AlarmType::Nospace as i32 }];
        assert_eq!(problems(&raft::Status::default(), &alarms), ["etcdserver: no leader", "memberID:7 alarm:NOSPACE"]);
    }
}
