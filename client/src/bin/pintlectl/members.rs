//! endpoint, member, defrag, alarm.

use std::time::{Duration, Instant};

use anyhow::bail;
use clap::{Args, Subcommand};
use client::{
    Client, MemberId,
    pb::{AlarmType, HashKvResponse, StatusResponse},
};

use crate::{Context, json, print, text};

#[derive(Args)]
pub struct Which {
    /// All members of the cluster, instead of the endpoints given.
    #[arg(long)]
    cluster: bool,
}

impl Which {
    /// A client of the endpoints meant.
    async fn client(&self, context: &Context) -> anyhow::Result<Client> {
        if !self.cluster {
            return Ok(context.client.clone());
        }
        let members = context.client.member_list(true).await?.members;
        context.client_for(members.into_iter().flat_map(|member| member.client_ur_ls).collect())
    }
}

#[derive(Subcommand)]
pub enum Endpoint {
    /// Version, size, leader and Raft's numbers.
    Status(Which),
    /// Whether a linearizable read is answered.
    Health(Which),
    /// A hash of the keys and their history. Members agree on it.
    Hashkv {
        #[command(flatten)]
        which: Which,
        /// Up to this revision; 0: the newest.
        #[arg(long, default_value_t = 0)]
        rev: i64,
    },
}

/// Whether one endpoint is healthy.
pub struct Health {
    pub endpoint: String,
    pub took: Duration,
    pub error: Option<String>,
}

impl Endpoint {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Endpoint::Status(which) => {
                let client = which.client(context).await?;
                let (mut found, mut failed) = (Vec::<(String, StatusResponse)>::new(), false);
                for endpoint in client.endpoints() {
                    match client.status(&endpoint).await {
                        Ok(status) => found.push((endpoint.to_string(), status)),
                        Err(error) => {
                            eprintln!("Failed to get the status of endpoint {endpoint} ({error})");
                            failed = true;
                        }
                    }
                }
                context.print(|| text::status(&found), || json::each::<_, json::EndpointStatus>(&found))?;
                if failed {
                    bail!("not all endpoints have answered");
                }
                Ok(())
            }
            Endpoint::Health(which) => {
                let client = which.client(context).await?;
                let mut found = Vec::new();
                for endpoint in client.endpoints() {
                    let asked = Instant::now();
                    let error = client.health(&endpoint).await.err().map(|error| error.to_string());
                    found.push(Health { endpoint: endpoint.to_string(), took: asked.elapsed(), error });
                }
                context.print(|| text::health(&found), || json::each::<_, json::EndpointHealth>(&found))?;
                if found.iter().any(|health| health.error.is_some()) {
                    bail!("unhealthy cluster");
                }
                Ok(())
            }
            Endpoint::Hashkv { which, rev } => {
                let client = which.client(context).await?;
                let (mut found, mut failed) = (Vec::<(String, HashKvResponse)>::new(), false);
                for endpoint in client.endpoints() {
                    match client.hash_kv(&endpoint, rev).await {
                        Ok(hash) => found.push((endpoint.to_string(), hash)),
                        Err(error) => {
                            eprintln!("Failed to get the hash of endpoint {endpoint} ({error})");
                            failed = true;
                        }
                    }
                }
                context.print(|| text::hash_kv(&found), || json::each::<_, json::EndpointHash>(&found))?;
                if failed {
                    bail!("not all endpoints have answered");
                }
                Ok(())
            }
        }
    }
}

#[derive(Subcommand)]
pub enum Member {
    /// Prints the members.
    List {
        /// Ask for what the server knows, which may be behind, instead of what the cluster has agreed on.
        #[arg(long)]
        serializable: bool,
    },
}

impl Member {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let Member::List { serializable } = self;
        let answer = context.client.member_list(!serializable).await?;
        context.print(|| text::members(&answer), || json::Members::from(&answer))
    }
}

#[derive(Args)]
pub struct Defrag {
    #[command(flatten)]
    which: Which,
}

impl Defrag {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let client = self.which.client(context).await?;
        let mut failed = false;
        for endpoint in client.endpoints() {
            match client.defragment(&endpoint).await {
                // As in etcdctl, the same in both formats.
                Ok(_) => print(format!("Finished defragmenting etcd member[{endpoint}]\n").as_bytes())?,
                Err(error) => {
                    eprintln!("Failed to defragment etcd member[{endpoint}] ({error})");
                    failed = true;
                }
            }
        }
        if failed {
            bail!("not all members were defragmented");
        }
        Ok(())
    }
}

#[derive(Subcommand)]
pub enum Alarm {
    /// Prints the alarms that are raised.
    List,
    /// Takes all alarms back.
    Disarm,
}

impl Alarm {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let answer = match self {
            Alarm::List => context.client.alarms().await?,
            Alarm::Disarm => context.client.disarm(MemberId(0), AlarmType::None).await?,
        };
        context.print(|| text::alarms(&answer), || json::Alarms::from(&answer))
    }
}
