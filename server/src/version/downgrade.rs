//! The RPC Downgrade, and what a member that joins asks about it.
//! Source: etcd, `server/etcdserver/v3_server.go`, `version/version.go`, `server.go` (downgradeEnabledHandler).

use std::sync::Arc;

use axum::{
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use proto::{
    EtcdError,
    command::{Downgrade, command::Op},
    etcdserverpb::{DowngradeRequest, downgrade_request::DowngradeAction},
};
use tonic::Status;

use super::{Version, downgrade_target, of_cluster};
use crate::{context::Context, http, join::CLUSTER_HEADER};

pub const ENABLED_PATH: &str = "/downgrade/enabled";

/// Validates, begins or cancels a downgrade; gives the cluster version.
pub async fn downgrade(ctx: &Context, request: &DowngradeRequest) -> Result<String, Status> {
    match DowngradeAction::try_from(request.action) {
        Ok(DowngradeAction::Validate) => {
            let target = parse(&request.version)?;
            let cluster = cluster_version(ctx)?;
            validate(ctx, target).await?;
            return Ok(cluster.to_string());
        }
        Ok(DowngradeAction::Enable) => {
            if let Err(status) = enable(ctx, &request.version).await {
                tracing::warn!(error = status.message(), "reject downgrade request");
                return Err(status);
            }
        }
        // As in etcd, the client is not told that there was nothing to cancel.
        Ok(DowngradeAction::Cancel) => {
            if let Err(status) = cancel(ctx).await {
                tracing::warn!(error = status.message(), "failed to cancel downgrade");
            }
        }
        // etcd has no gRPC code for it.
        Err(_) => return Err(Status::unknown("etcdserver: unknown method")),
    }
    Ok(cluster_version(ctx)?.to_string())
}

fn parse(version: &str) -> Result<Version, EtcdError> {
    Version::parse_target(version).ok_or(EtcdError::WrongDowngradeVersionFormat)
}

fn cluster_version(ctx: &Context) -> Result<Version, EtcdError> {
    of_cluster(&ctx.store).ok_or(EtcdError::ClusterVersionUnavailable)
}

async fn validate(ctx: &Context, target: Version) -> Result<(), Status> {
    ctx.read_barrier().await?;
    if cluster_version(ctx)?.before() != Some(target) {
        return Err(EtcdError::InvalidDowngradeTargetVersion.into());
    }
    match downgrade_target(&ctx.store) {
        Some(_) => Err(EtcdError::DowngradeInProcess.into()),
        None => Ok(()),
    }
}

async fn enable(ctx: &Context, version: &str) -> Result<(), Status> {
    let target = parse(version)?;
    validate(ctx, target).await?;
    ctx.propose(Op::Downgrade(Downgrade { target: Some(target.full()) })).await?;
    Ok(())
}

async fn cancel(ctx: &Context) -> Result<(), Status> {
    ctx.read_barrier().await?;
    if downgrade_target(&ctx.store).is_none() {
        return Err(EtcdError::NoInflightDowngrade.into());
    }
    ctx.propose(Op::Downgrade(Downgrade { target: None })).await?;
    Ok(())
}

/// Answers another member whether a downgrade is under way.
pub async fn is_enabled(State(ctx): State<Arc<Context>>) -> Response {
    let cluster = (CLUSTER_HEADER, ctx.cluster.to_string());
    match ctx.read_barrier().await {
        Ok(()) => {
            let is_enabled = downgrade_target(&ctx.store).is_some().to_string();
            ([cluster, ("content-type", "text/plain".into())], is_enabled).into_response()
        }
        Err(status) => {
            let text = format!("failed linearized read: {}", status.message());
            ([cluster], http::error(StatusCode::INTERNAL_SERVER_ERROR, &text)).into_response()
        }
    }
}
