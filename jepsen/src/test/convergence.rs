//! After a run all members must hold the same.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use proto::etcdserverpb::{
    HashKvRequest, HashKvResponse, RangeRequest, kv_client::KvClient, maintenance_client::MaintenanceClient,
};
use tokio::time::{sleep, timeout};
use tonic::transport::Channel;

use super::client::Endpoint;
use crate::process;

/// How long members may take to be of one mind when all faults are healed.
pub const CONVERGENCE_LIMIT: Duration = Duration::from_secs(60);
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// A hash is of the whole store, which may be large.
const HASH_LIMIT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// What all members agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreement {
    pub revision: i64,
    pub hash: u32,
    pub after: Duration,
}

/// Waits until every member answers with the same hash of the same revision. Members that differ at a revision that
/// all have reached, compacted alike, will never agree: that is an error at once.
pub async fn converge(endpoints: &[Endpoint]) -> Result<Agreement> {
    let begin = Instant::now();
    let members = channels(endpoints);
    let mut reason = "nothing was asked".to_owned();
    while begin.elapsed() < CONVERGENCE_LIMIT {
        match attempt(&members).await {
            Ok(Attempt::Agreed { revision, hash }) => return Ok(Agreement { revision, hash, after: begin.elapsed() }),
            Ok(Attempt::Differs(hashes)) => bail!("the members hold different data: {hashes}"),
            Ok(Attempt::NotYet(why)) => reason = why,
            Err(error) => reason = format!("{error:#}"),
        }
        sleep(POLL_INTERVAL).await;
    }
    bail!("the members did not agree within {CONVERGENCE_LIMIT:?}: {reason}")
}

/// The newest revision, from whoever tells it first that all members serve linearizable reads.
pub async fn newest_revision_of(endpoints: &[Endpoint]) -> i64 {
    let members = channels(endpoints);
    loop {
        match newest_revision(&members).await {
            Ok(revision) => return revision,
            Err(_) => sleep(POLL_INTERVAL).await,
        }
    }
}

fn channels(endpoints: &[Endpoint]) -> Vec<(&str, Channel)> {
    endpoints.iter().map(|endpoint| (endpoint.name.as_str(), process::channel(&endpoint.url))).collect()
}

enum Attempt {
    Agreed { revision: i64, hash: u32 },
    Differs(String),
    NotYet(String),
}

async fn attempt(members: &[(&str, Channel)]) -> Result<Attempt> {
    let revision = newest_revision(members).await?;
    let mut hashes = Vec::with_capacity(members.len());
    for (name, channel) in members {
        hashes.push(hash(channel.clone(), revision).await.with_context(|| format!("the hash of {name}"))?);
    }
    let shown = || {
        let of = |(member, hash): (&(&str, Channel), &HashKvResponse)| {
            format!("{} has {:08x} (compacted at {})", member.0, hash.hash, hash.compact_revision)
        };
        format!("at revision {revision} {}", members.iter().zip(&hashes).map(of).collect::<Vec<_>>().join(", "))
    };
    ensure!(!hashes.is_empty(), "no members");
    // A member that has not been compacted as far as the others has another hash, rightly.
    if hashes.iter().any(|hash| hash.compact_revision != hashes[0].compact_revision) {
        return Ok(Attempt::NotYet(shown()));
    }
    if hashes.iter().any(|hash| hash.hash != hashes[0].hash) {
        return Ok(Attempt::Differs(shown()));
    }
    Ok(Attempt::Agreed { revision, hash: hashes[0].hash })
}

/// Every member must serve a linearizable read; the newest revision that one of them shows.
async fn newest_revision(members: &[(&str, Channel)]) -> Result<i64> {
    let mut newest = 0;
    for (name, channel) in members {
        let range = RangeRequest { key: "any".into(), count_only: true, ..RangeRequest::default() };
        let answer = timeout(REQUEST_LIMIT, KvClient::new(channel.clone()).range(range)).await;
        let answer = answer.with_context(|| format!("{name} does not answer"))?;
        let answer = answer.with_context(|| format!("a read from {name}"))?.into_inner();
        newest = newest.max(answer.header.context("no header")?.revision);
    }
    Ok(newest)
}

async fn hash(channel: Channel, revision: i64) -> Result<HashKvResponse> {
    let request = HashKvRequest { revision };
    let answer = timeout(HASH_LIMIT, MaintenanceClient::new(channel).hash_kv(request)).await??;
    Ok(answer.into_inner())
}
