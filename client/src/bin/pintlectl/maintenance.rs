//! defrag, alarm, move-leader, downgrade.

use clap::{Args, Subcommand};
use client::{
    Client, MemberId,
    pb::{AlarmResponse, downgrade_request::DowngradeAction},
};

use crate::{
    Context,
    endpoint::Which,
    failure::{self, Failure},
    number,
    print::{
        cluster::{Downgraded, LeaderMoved},
        print_line,
    },
};

#[derive(Args)]
pub struct Defrag {
    #[command(flatten)]
    which: Which,
    #[arg(hide = true)]
    args: Vec<String>,
}

impl Defrag {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let mut failed = None;
        for endpoint in self.which.endpoints(&context.client).await? {
            match context.client.defragment(&endpoint).await {
                Ok(_) => print_line(&format!("Finished defragmenting etcd member[{endpoint}]"))?,
                Err(error) => {
                    eprintln!("Failed to defragment etcd member[{endpoint}] ({})", failure::describe(&error));
                    failed.get_or_insert(error);
                }
            }
        }
        failed.map_or(Ok(()), |error| Err(Failure::silent(failure::ERROR).hint_about(&error).into()))
    }
}

#[derive(Subcommand)]
pub enum Alarm {
    /// Print the alarms that are raised.
    List {
        #[arg(hide = true)]
        args: Vec<String>,
    },
    /// Take all alarms back.
    Disarm {
        #[arg(hide = true)]
        args: Vec<String>,
    },
}

impl Alarm {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let answer = match self {
            Alarm::List { args } if args.is_empty() => context.client.alarms().await?,
            Alarm::Disarm { args } if args.is_empty() => disarm_all(&context.client).await?,
            Alarm::List { .. } => return Err(failure::bad_arguments("alarm list command accepts no arguments").into()),
            Alarm::Disarm { .. } => {
                return Err(failure::bad_arguments("alarm disarm command accepts no arguments").into());
            }
        };
        context.print(&answer)
    }
}

/// Those that were raised when it was asked. As etcd's client does it, the answer has no header.
async fn disarm_all(client: &Client) -> Result<AlarmResponse, client::Error> {
    let mut disarmed = AlarmResponse::default();
    for raised in client.alarms().await?.alarms {
        let answer = client.disarm(MemberId(raised.member_id), raised.alarm()).await?;
        disarmed.alarms.extend(answer.alarms);
    }
    Ok(disarmed)
}

#[derive(Args)]
#[command(override_usage = "pintlectl move-leader <MEMBER_ID>")]
pub struct MoveLeader {
    /// Who is to lead; the endpoints must hold that of the present leader.
    #[arg(value_name = "MEMBER_ID")]
    args: Vec<String>,
}

impl MoveLeader {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let [id] = self.args.as_slice() else {
            return Err(failure::bad_arguments("move-leader command needs 1 argument").into());
        };
        let to = MemberId(number::uint(id, 16).map_err(failure::bad_arguments)?);
        let endpoints = context.client.endpoints();
        for endpoint in &endpoints {
            let status = context.client.status(endpoint).await?;
            if status.header.is_some_and(|header| header.member_id == status.leader) {
                let answer = context.client.move_leader(endpoint, to).await?;
                return context.print(&LeaderMoved { from: MemberId(status.leader), to, answer });
            }
        }
        Err(failure::bad_arguments(format!("no leader endpoint given at [{}]", endpoints.join(" "))).into())
    }
}

#[derive(Subcommand)]
pub enum Downgrade {
    /// Ask whether the cluster can go to a version.
    #[command(override_usage = "pintlectl downgrade validate <VERSION>")]
    Validate {
        #[arg(value_name = "VERSION")]
        args: Vec<String>,
    },
    /// Have the cluster go to a version.
    #[command(override_usage = "pintlectl downgrade enable <VERSION>")]
    Enable {
        #[arg(value_name = "VERSION")]
        args: Vec<String>,
    },
    /// Take that back.
    Cancel {
        #[arg(hide = true)]
        args: Vec<String>,
    },
}

impl Downgrade {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let (name, action, version) = match &self {
            Downgrade::Validate { args } => ("validate", DowngradeAction::Validate, target(args)?),
            Downgrade::Enable { args } => ("enable", DowngradeAction::Enable, target(args)?),
            Downgrade::Cancel { args: _ } => ("cancel", DowngradeAction::Cancel, ""),
        };
        let answer = context.client.downgrade(action, version).await?;
        context.print(&Downgraded { action: name, answer })
    }
}

fn target(args: &[String]) -> Result<&str, Failure> {
    match args {
        [] => Err(failure::bad_arguments("TARGET_VERSION not provided")),
        [version] if version.is_empty() => Err(failure::bad_arguments("target version not provided")),
        [version] => Ok(version),
        _ => Err(failure::bad_arguments("too many arguments")),
    }
}
