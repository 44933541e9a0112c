//! lock, elect: by the server's own Lock and Election services, whose keys are those of etcd's client library.

use std::{env, ffi::OsString};

use clap::Args;
use client::{
    Error, Get, Session,
    pb::{RangeResponse, ResponseHeader},
};
use proto::{
    v3electionpb::{CampaignRequest, LeaderKey, LeaderRequest, ResignRequest, election_client::ElectionClient},
    v3lockpb::{LockRequest, UnlockRequest, lock_client::LockClient},
};

use crate::{
    Context,
    failure::{self, Failure},
    number, process,
};

/// How long whoever takes part in an election may be away. Source: etcd, `client/v3/concurrency/session.go`.
const ELECTION_TTL: i64 = 60;

/// What cannot be ended now ends with its time.
async fn end(session: Session) {
    if let Err(error) = session.close().await {
        eprintln!("The session ends with its lease: {}", failure::describe(&error));
    }
}

/// Ends with the first signal to stop.
async fn stopped() -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
        _ = terminate.recv() => Ok(()),
    }
}

#[derive(Args)]
#[command(override_usage = "pintlectl lock [OPTIONS] <NAME> [-- COMMAND [ARGUMENTS]...]")]
pub struct Lock {
    /// The lock's name; and a command to run while it is held, which finds the lock in ETCD_LOCK_KEY and
    /// ETCD_LOCK_REV. Without one, the lock is held until a signal comes.
    #[arg(value_name = "NAME> [COMMAND", hide = true)]
    args: Vec<OsString>,
    /// How long the lock outlives this program when it cannot give the lock back, seconds.
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = number::decimal)]
    ttl: i64,
}

impl Lock {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let [name, command @ ..] = self.args.as_slice() else {
            return Err(
                failure::bad_arguments("lock takes a lock name argument and an optional command to execute").into()
            );
        };
        let client = &context.client;
        let session = client.session(self.ttl).await?;
        let request = LockRequest { name: name.as_encoded_bytes().to_vec().into(), lease: session.lease().0 };
        let mut locks = LockClient::new(client.connection().await?);
        // Whoever is stopped while it waits stands in the line no more: the server ends it with the request.
        let held = tokio::select! {
            held = locks.lock(request) => held.map_err(Error::from),
            stopped = stopped() => {
                end(session).await;
                return stopped.and(Err(Failure::new(failure::ERROR, "context canceled").into()));
            }
        };
        let held = match held {
            Ok(held) => held.into_inner(),
            Err(error) => {
                end(session).await;
                return Err(error.into());
            }
        };
        let revision = held.header.map_or(0, |header: ResponseHeader| header.revision);
        let done = match command {
            [] => hold(context, &held.key, &session).await,
            command => execute(command, &held.key, revision).await,
        };
        let unlocked = locks.unlock(UnlockRequest { key: held.key }).await.map_err(Error::from);
        end(session).await;
        done?;
        Ok(unlocked.map(drop)?)
    }
}

/// Shows the lock's key, and waits for the end.
async fn hold(context: &Context, key: &[u8], session: &Session) -> anyhow::Result<()> {
    let answer = context.client.get(Get::key(key.to_vec())).await?;
    if answer.kvs.is_empty() {
        return Err(Failure::new(failure::ERROR, "lock lost on init").into());
    }
    context.print(&answer)?;
    tokio::select! {
        stopped = stopped() => stopped,
        () = session.over() => Err(Failure::new(failure::ERROR, "session expired").into()),
    }
}

async fn execute(command: &[OsString], key: &[u8], revision: i64) -> anyhow::Result<()> {
    let mut child = tokio::process::Command::new(&command[0]);
    child.args(&command[1..]);
    // What the environment says already stays.
    for (name, value) in
        [("ETCD_LOCK_KEY", String::from_utf8_lossy(key).into_owned()), ("ETCD_LOCK_REV", revision.to_string())]
    {
        if env::var_os(name).is_none() {
            child.env(name, value);
        }
    }
    match child.status().await {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => {
            let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(failure::ERROR);
            Err(Failure::new(code, process::describe(status)).into())
        }
        Err(error) => Err(Failure::new(failure::ERROR, process::cannot_start(&command[0], &error)).into()),
    }
}

#[derive(Args)]
#[command(override_usage = "pintlectl elect [OPTIONS] <NAME> [PROPOSAL]")]
pub struct Elect {
    /// The election's name; and what this candidate proposes, who then leads until a signal comes.
    #[arg(value_name = "NAME> [PROPOSAL", hide = true)]
    args: Vec<OsString>,
    /// Print who leads, whenever that changes.
    #[arg(short, long)]
    listen: bool,
}

impl Elect {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        match (self.args.as_slice(), self.listen) {
            ([name], true) => observe(context, name).await,
            ([_], false) => Err(failure::bad_arguments("no proposal argument but -l not set").into()),
            ([name, proposal], false) => campaign(context, name, proposal).await,
            ([_, _], true) => Err(failure::bad_arguments("proposal given but -l is set").into()),
            _ => {
                let text = "elect takes one election name argument and an optional proposal argument";
                Err(failure::bad_arguments(text).into())
            }
        }
    }
}

fn bytes(arg: &OsString) -> bytes::Bytes {
    arg.as_encoded_bytes().to_vec().into()
}

async fn observe(context: &Context, name: &OsString) -> anyhow::Result<()> {
    let mut elections = ElectionClient::new(context.client.connection().await?);
    let mut leaders = elections.observe(LeaderRequest { name: bytes(name) }).await.map_err(Error::from)?.into_inner();
    loop {
        let leader = tokio::select! {
            leader = leaders.message() => leader.map_err(Error::from)?,
            stopped = stopped() => return stopped,
        };
        let Some(leader) = leader else {
            return Err(Failure::new(failure::ERROR, "elect: observer lost").into());
        };
        let kvs = leader.kv.into_iter().collect();
        context.print(&RangeResponse { header: leader.header, kvs, ..Default::default() })?;
    }
}

async fn campaign(context: &Context, name: &OsString, proposal: &OsString) -> anyhow::Result<()> {
    let client = &context.client;
    let session = client.session(ELECTION_TTL).await?;
    let mut elections = ElectionClient::new(client.connection().await?);
    let request = CampaignRequest { name: bytes(name), lease: session.lease().0, value: bytes(proposal) };
    let elected = tokio::select! {
        elected = elections.campaign(request) => elected.map_err(Error::from),
        stopped = stopped() => {
            end(session).await;
            return stopped.and(Err(Failure::new(failure::ERROR, "context canceled").into()));
        }
    };
    let leader = match elected {
        Ok(elected) => elected.into_inner().leader.unwrap_or_default(),
        Err(error) => {
            end(session).await;
            return Err(error.into());
        }
    };
    lead(context, leader, session, &mut elections).await
}

async fn lead(
    context: &Context,
    leader: LeaderKey,
    session: Session,
    elections: &mut ElectionClient<client::Connection>,
) -> anyhow::Result<()> {
    context.print(&context.client.get(Get::key(leader.key.clone())).await?)?;
    tokio::select! {
        stopped = stopped() => stopped?,
        () = session.over() => {
            return Err(Failure::new(failure::ERROR, "elect: session expired").into());
        }
    }
    elections.resign(ResignRequest { leader: Some(leader) }).await.map_err(Error::from)?;
    end(session).await;
    Ok(())
}
