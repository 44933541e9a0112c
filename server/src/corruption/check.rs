//! The checks themselves: hashes are fetched, judged, and what was found is told to the log and the cluster.

use std::{sync::Arc, time::Duration};

use anyhow::bail;
use proto::{
    MemberId,
    command::command::Op,
    etcdserverpb::{AlarmRequest, AlarmType, alarm_request::AlarmAction},
};
use storage::HashKv;
use tonic::Status;

use super::{
    peers::{self, PeerHash, Unanswered, patience},
    verdict::{self, Compared},
};
use crate::context::Context;

/// In an alarm: the whole cluster.
const NOBODY_IN_PARTICULAR: MemberId = MemberId(0);

/// Compares this member with the others before it serves anybody.
///
/// # Errors
/// When another one has other data at the same revision.
pub async fn initial(ctx: &Arc<Context>) -> anyhow::Result<()> {
    tracing::info!(local_member_id = %ctx.member, timeout = ?patience(ctx), "starting initial corruption check");
    let failed = |status: Status| anyhow::anyhow!("{} failed to fetch hash ({})", ctx.member, status.message());
    let own = hash(ctx).await.map_err(failed)?;
    let mut differing = 0;
    for peer in peers::ask(ctx, own.hash_revision).await {
        differing += usize::from(differs(ctx, own, &peer));
    }
    if differing > 0 {
        bail!("checkInitialHashKV failed: {} found data inconsistency with peers", ctx.member);
    }
    tracing::info!(local_member_id = %ctx.member, "initial corruption checking passed; no corruption");
    Ok(())
}

/// Whether a member's answer shows that the two have different data; tells what stands in the way of knowing.
fn differs(ctx: &Context, own: HashKv, peer: &PeerHash) -> bool {
    macro_rules! warn {
        ($message:literal, $($field:tt)*) => {
            tracing::warn!(
                local_member_id = %ctx.member,
                local_member_revision = own.hash_revision,
                local_member_compact_revision = own.compact_revision,
                local_member_hash = own.hash,
                remote_peer_id = %peer.member,
                $($field)*,
                $message
            )
        };
    }
    match &peer.answer {
        Ok(theirs) if theirs.hash == own.hash => false,
        Ok(theirs) => {
            let is_same_state = theirs.compact_revision == own.compact_revision;
            let (revision, compacted) = (theirs.revision, theirs.compact_revision);
            if is_same_state {
                warn!(
                    "found different hash values from remote peer",
                    remote_peer_revision = revision,
                    remote_peer_compact_revision = compacted,
                    remote_peer_hash = theirs.hash
                );
            } else {
                warn!(
                    "found different compact revision values from remote peer",
                    remote_peer_revision = revision,
                    remote_peer_compact_revision = compacted,
                    remote_peer_hash = theirs.hash
                );
            }
            is_same_state
        }
        Err(error) => {
            match error {
                Unanswered::FutureRevision => warn!("cannot fetch hash from slow remote peer", %error),
                Unanswered::Compacted => {
                    warn!("cannot fetch hash from remote peer; local member is behind", %error)
                }
                Unanswered::OtherCluster => warn!("cluster ID mismatch", %error),
                // Told when it was asked.
                Unanswered::Other(_) => {}
            }
            false
        }
    }
}

/// Compares all members now and then, where this one leads.
pub async fn periodically(ctx: Arc<Context>, interval: Duration) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    ticks.tick().await;
    loop {
        tokio::select! {
            () = ctx.shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        if ctx.node.status().is_leader
            && let Err(error) = compare_now(&ctx).await
        {
            tracing::warn!(error = error.message(), "failed to check hash KV");
        }
    }
}

async fn compare_now(ctx: &Arc<Context>) -> Result<(), Status> {
    let before = hash(ctx).await?;
    let peers = peers::ask(ctx, before.hash_revision).await;
    ctx.read_barrier().await?;
    let after = hash(ctx).await?;
    let answered: Vec<(MemberId, HashKv)> =
        peers.iter().filter_map(|peer| Some((peer.member, *peer.answer.as_ref().ok()?))).collect();
    let faults = verdict::periodic(ctx.member, before, after, &answered);
    for (member, fault) in &faults {
        tracing::warn!(
            ?fault,
            member_id = %member,
            leader_before = ?before,
            leader_after = ?after,
            follower = ?answered.iter().find(|(id, _)| id == member).map(|(_, hash)| hash),
            "found hash mismatch"
        );
    }
    if let Some((member, _)) = faults.first() {
        raise(ctx, *member).await;
    }
    tracing::info!(number_of_peers_checked = answered.len(), "finished peer corruption check");
    Ok(())
}

/// Compares what members had at compactions, where this one leads.
pub async fn compactions(ctx: Arc<Context>, interval: Duration) {
    // The newest compaction at which all members were found to be the same.
    let mut checked = i64::MIN;
    loop {
        tokio::select! {
            () = ctx.shutdown.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
        if ctx.node.status().is_leader {
            compare_compactions(&ctx, &mut checked).await;
        }
    }
}

/// From the newest on, until one could be compared on all members.
async fn compare_compactions(ctx: &Arc<Context>, checked: &mut i64) {
    tracing::info!(local_member_id = %ctx.member, timeout = ?patience(ctx), "starting compact hash check");
    let mut compared = 0;
    let mut unchecked = ctx.store.compaction_hashes();
    unchecked.retain(|hash| hash.hash_revision > *checked);
    while let Some(own) = unchecked.pop() {
        compared += 1;
        let peers = peers::ask(ctx, own.hash_revision).await;
        if !peers.is_empty() && compare_compaction(ctx, own, &peers, checked).await {
            break;
        }
    }
    tracing::info!(number_of_hashes_checked = compared, "finished compaction hash check");
}

/// Whether older compactions need not be looked at.
async fn compare_compaction(ctx: &Arc<Context>, own: HashKv, peers: &[PeerHash], checked: &mut i64) -> bool {
    let (leader_revision, leader_compact_revision) = (own.hash_revision, own.compact_revision);
    let followers: Vec<(MemberId, Option<u32>)> =
        peers.iter().map(|peer| (peer.member, comparable(ctx, own, peer))).collect();
    let peers_checked = followers.iter().filter(|(_, hash)| hash.is_some()).count();
    let (differing, has_majority) = match verdict::compaction(ctx.member, own.hash, &followers) {
        Compared::Same { is_everyone: true } => {
            tracing::info!(
                number_of_peers_checked = peers_checked,
                revision = leader_revision,
                compact_revision = leader_compact_revision,
                "successfully checked hash on whole cluster"
            );
            *checked = leader_revision.max(*checked);
            return true;
        }
        Compared::Same { is_everyone: false } => {
            tracing::warn!(
                number_of_peers_checked = peers_checked,
                number_of_peers = peers.len(),
                revision = leader_revision,
                compact_revision = leader_compact_revision,
                "skipped revision in compaction hash check; was not able to check all peers"
            );
            return false;
        }
        Compared::Odd(differing) => (differing, true),
        Compared::Undecided(differing) => (differing, false),
    };
    for (hash, members) in &differing {
        tracing::error!(
            leader_id = %ctx.member,
            leader_revision,
            leader_compact_revision,
            leader_hash = own.hash,
            peer_hash = hash,
            peer_ids = members.iter().map(MemberId::to_string).collect::<Vec<_>>().join(", "),
            quorum_exist = has_majority,
            "Detected compaction hash mismatch"
        );
    }
    if has_majority {
        for member in differing.into_values().flatten() {
            raise(ctx, member).await;
        }
    } else {
        raise(ctx, NOBODY_IN_PARTICULAR).await;
    }
    true
}

/// The hash of a member, if it is of the same compaction.
fn comparable(ctx: &Context, own: HashKv, peer: &PeerHash) -> Option<u32> {
    let reason = match &peer.answer {
        Ok(hash) if hash.compact_revision == own.compact_revision => return Some(hash.hash),
        Ok(hash) => format!(
            "the peer's CompactRevision {} doesn't match leader's CompactRevision {}",
            hash.compact_revision, own.compact_revision
        ),
        Err(_) => "no response".into(),
    };
    tracing::warn!(leader_id = %ctx.member, peer_id = %peer.member, reason, "Skipped peer's hash");
    None
}

async fn hash(ctx: &Arc<Context>) -> Result<HashKv, Status> {
    ctx.blocking(|store| store.hash_kv(0)).await
}

async fn raise(ctx: &Arc<Context>, member: MemberId) {
    let alarm = AlarmType::Corrupt as i32;
    let request = AlarmRequest { action: AlarmAction::Activate as i32, member_id: member.0, alarm };
    if let Err(error) = ctx.propose(Op::Alarm(request)).await {
        tracing::warn!(member_id = %member, error = error.message(), "could not raise the alarm CORRUPT");
    }
}
