//! Follows what the members run, and lets the cluster's version follow.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use proto::command::{ClusterVersion, Downgrade, command::Op};
use serde::Deserialize;
use storage::host;
use tokio::time::timeout;

use super::{Version, decide, downgrade_target, of_cluster};
use crate::context::Context;

/// (etcd: `server.go`, monitorVersionInterval.)
const INTERVAL: Duration = Duration::from_secs(4);
/// Beside two election timeouts. (etcd: `config.go`, ReqTimeout.)
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Starts what runs until the process ends. `downgrade_check` is None where a downgrade is not to end by itself.
pub fn start(ctx: &Arc<Context>, downgrade_check: Option<Duration>) {
    host::spawn(follow(ctx.clone()));
    if let Some(interval) = downgrade_check {
        host::spawn(end_downgrades(ctx.clone(), interval));
    }
}

/// Now and then, and whenever this member begins to lead.
async fn follow(ctx: Arc<Context>) {
    let mut status = ctx.node.watch_status();
    let mut is_ready_for = None;
    loop {
        if status.borrow_and_update().is_leader {
            update(&ctx).await;
        }
        let target = downgrade_target(&ctx.store).filter(|target| of_cluster(&ctx.store) == Some(*target));
        if is_ready_for != target {
            if let Some(target) = target {
                tracing::info!(
                    target_version = %target,
                    server_version = crate::ETCD_VERSION,
                    "The server is ready to downgrade"
                );
            }
            is_ready_for = target;
        }
        tokio::select! {
            () = ctx.shutdown.cancelled() => return,
            // Without Raft the process stops.
            changed = timeout(INTERVAL, status.changed()) => if let Ok(Err(_)) = changed { return },
        }
    }
}

async fn update(ctx: &Arc<Context>) {
    let lowest = decide::lowest(&releases(ctx).await);
    let known = of_cluster(&ctx.store);
    match decide::next(known, lowest, downgrade_target(&ctx.store)) {
        Ok(Some(version)) => set(ctx, known, version).await,
        Ok(None) => {}
        Err(error) => tracing::error!(%error, "Failed to monitor cluster version"),
    }
}

async fn set(ctx: &Arc<Context>, from: Option<Version>, to: Version) {
    match from {
        None => tracing::info!(cluster_version = %to, "setting up initial cluster version using v3 API"),
        Some(from) => tracing::info!(%from, %to, "updating cluster version using v3 API"),
    }
    match ctx.propose(Op::ClusterVersion(ClusterVersion { version: to.full() })).await {
        Ok(_) => tracing::info!(cluster_version = %to, "cluster version is updated"),
        Err(error) => tracing::warn!(error = error.message(), "failed to update cluster version"),
    }
}

async fn end_downgrades(ctx: Arc<Context>, interval: Duration) {
    loop {
        tokio::select! {
            () = ctx.shutdown.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
        let Some(target) = downgrade_target(&ctx.store).filter(|_| ctx.node.status().is_leader) else { continue };
        if !decide::is_over(target, &releases(&ctx).await) {
            continue;
        }
        tracing::info!(cluster_version = %target, "the cluster has been downgraded");
        if let Err(error) = ctx.propose(Op::Downgrade(Downgrade { target: None })).await {
            tracing::warn!(error = error.message(), "failed to cancel downgrade");
        }
    }
}

/// What each member runs; None where it does not say.
async fn releases(ctx: &Context) -> Vec<Option<Version>> {
    let releases = ctx.node.members().into_iter().map(|member| async move {
        if member.id == ctx.member {
            return Some(Version::own());
        }
        for url in &member.peer_urls {
            match release(ctx, url).await {
                Ok(version) => return Some(version),
                Err(error) => {
                    tracing::warn!(remote_member_id = %member.id, url, error, "failed to get version");
                }
            }
        }
        None
    });
    join_all(releases).await
}

/// The part of `/version` that counts.
#[derive(Deserialize)]
struct Release {
    etcdserver: String,
}

async fn release(ctx: &Context, url: &str) -> Result<Version, String> {
    let patience = REQUEST_TIMEOUT + 2 * ctx.election_timeout;
    let answer = ctx.peer_http.get(url, "/version", patience).await.map_err(|error| error.to_string())?;
    let Release { etcdserver } = answer.json()?;
    Version::parse(&etcdserver).ok_or_else(|| format!("{etcdserver:?} is no version"))
}
