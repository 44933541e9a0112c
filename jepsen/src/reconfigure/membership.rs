//! Changes of membership, asked for as an operator would: again, and of another member, until they are done.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use client::Connection;
use proto::{
    EtcdError,
    etcdserverpb::{
        Member, MemberAddRequest, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest,
        cluster_client::ClusterClient,
    },
};
use tokio::time::{sleep, timeout};
use tonic::{Code, Status};

use crate::{process::Node, root::as_root};

/// Longer than etcd's strict check wants all members to have been connected.
const CHANGE_LIMIT: Duration = Duration::from_secs(60);
/// Longer than a new member takes to get a gigabyte on a busy machine.
pub const CATCH_UP_LIMIT: Duration = Duration::from_secs(300);
/// Longer than etcd takes to give up.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Refusals that pass: with time, or with the next member that is asked.
const PASSING: [&str; 4] =
    ["not enough started members", "in sync with leader", "too many learner members", "rpc not supported for learner"];

fn passes(status: &Status) -> bool {
    status.code() == Code::Unavailable || PASSING.iter().any(|text| status.message().contains(text))
}

/// Asks the members in turn, from `first` on, until one of them gives an answer or the change shows to be done.
async fn until_done<T, F>(
    nodes: &[Node],
    first: usize,
    limit: Duration,
    attempt: impl Fn(ClusterClient<Connection>) -> F,
) -> Result<T>
where
    F: Future<Output = Result<T, Status>>,
{
    let begin = Instant::now();
    let mut last = String::new();
    for node in nodes.iter().cycle().skip(first) {
        if begin.elapsed() > limit {
            bail!("not done within {limit:?}: {last}");
        }
        if !node.is_running() {
            continue;
        }
        let asked = async { attempt(ClusterClient::new(as_root(node.channel()).await?)).await };
        match timeout(REQUEST_LIMIT, asked).await {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(status)) if passes(&status) || is_cut_off(&status) => last = format!("{status}"),
            Ok(Err(status)) => return Err(status).with_context(|| format!("from {}", node.name())),
            Err(_) => last = format!("no answer within {REQUEST_LIMIT:?}"),
        }
        sleep(RETRY_PAUSE).await;
    }
    bail!("there is no member to ask")
}

/// The connection broke: the member that was asked may be the one that was removed.
fn is_cut_off(status: &Status) -> bool {
    std::error::Error::source(status).is_some() || status.code() == Code::Cancelled
}

async fn list(client: &mut ClusterClient<Connection>) -> Result<Vec<Member>, Status> {
    Ok(client.member_list(MemberListRequest { linearizable: true }).await?.into_inner().members)
}

/// Adds a member with a peer URL that no other has. Gives its id and all members.
pub async fn add(nodes: &[Node], first: usize, peer_url: &str, is_learner: bool) -> Result<(u64, Vec<Member>)> {
    let attempt = |mut client: ClusterClient<Connection>| async move {
        // An attempt without an answer may have been done.
        let known = list(&mut client).await?;
        if let Some(member) = with_url(&known, peer_url) {
            return Ok((member.id, known));
        }
        let add = MemberAddRequest { peer_ur_ls: vec![peer_url.to_owned()], is_learner };
        let added = client.member_add(add).await?.into_inner();
        Ok((added.member.map_or(0, |member| member.id), added.members))
    };
    let (id, members) = until_done(nodes, first, CHANGE_LIMIT, attempt).await.context("adding a member")?;
    ensure!(with_url(&members, peer_url).is_some_and(|member| member.id == id), "{id:x} is none of {members:?}");
    Ok((id, members))
}

pub async fn promote(nodes: &[Node], first: usize, id: u64) -> Result<()> {
    let attempt = |mut client: ClusterClient<Connection>| async move {
        let known = list(&mut client).await?;
        if known.iter().any(|member| member.id == id && !member.is_learner) {
            return Ok(known);
        }
        Ok(client.member_promote(MemberPromoteRequest { id }).await?.into_inner().members)
    };
    let members = until_done(nodes, first, CATCH_UP_LIMIT, attempt).await.context("promoting a learner")?;
    let promoted = members.iter().any(|member| member.id == id && !member.is_learner);
    ensure!(promoted, "{id:x} is no voter of {members:?}");
    Ok(())
}

pub async fn remove(nodes: &[Node], first: usize, id: u64) -> Result<()> {
    let attempt = |mut client: ClusterClient<Connection>| async move {
        let known = list(&mut client).await?;
        if known.iter().all(|member| member.id != id) {
            return Ok(known);
        }
        match client.member_remove(MemberRemoveRequest { id }).await {
            // By an earlier attempt, done after the members were listed.
            Err(status) if status.message() == EtcdError::MemberNotFound.message() => list(&mut client).await,
            answer => Ok(answer?.into_inner().members),
        }
    };
    let members = until_done(nodes, first, CHANGE_LIMIT, attempt).await.context("removing a member")?;
    ensure!(members.iter().all(|member| member.id != id), "{id:x} is still one of {members:?}");
    Ok(())
}

pub async fn id_of(nodes: &[Node], first: usize, peer_url: &str) -> Result<u64> {
    let attempt = |mut client: ClusterClient<Connection>| async move { list(&mut client).await };
    let members = until_done(nodes, first, CHANGE_LIMIT, attempt).await.context("listing the members")?;
    let member = with_url(&members, peer_url).with_context(|| format!("{peer_url} is no member's: {members:?}"))?;
    Ok(member.id)
}

fn with_url<'a>(members: &'a [Member], peer_url: &str) -> Option<&'a Member> {
    members.iter().find(|member| member.peer_ur_ls == [peer_url])
}

/// All members must name these nodes as voters, and nobody else.
pub async fn check_lists(nodes: &[Node]) -> Result<()> {
    let mut expected: Vec<(&str, String, String)> =
        nodes.iter().map(|node| (node.name(), node.peer_url(), node.endpoint())).collect();
    expected.sort();
    for node in nodes {
        let members = list(&mut ClusterClient::new(as_root(node.channel()).await?)).await?;
        let mut listed: Vec<(&str, String, String)> = members
            .iter()
            .map(|member| (member.name.as_str(), member.peer_ur_ls.join(","), member.client_ur_ls.join(",")))
            .collect();
        listed.sort();
        ensure!(listed == expected, "{} lists {listed:?} instead of {expected:?}", node.name());
        ensure!(members.iter().all(|member| !member.is_learner), "{} has learners: {members:?}", node.name());
    }
    Ok(())
}
