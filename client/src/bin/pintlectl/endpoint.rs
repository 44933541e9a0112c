//! endpoint health, status, hashkv: the servers, one by one.

use std::time::Instant;

use clap::{Args, Subcommand};
use client::{Client, Error, EtcdError, Get, pb::AlarmType};
use futures::future::join_all;

use crate::{
    Context,
    failure::{self, Failure},
    member, number,
    print::{
        Format,
        endpoint::{Hashes, Health, Healths, Statuses},
    },
};

#[derive(Args)]
pub struct Which {
    /// All members of the cluster, instead of the endpoints given.
    #[arg(long, global = true)]
    cluster: bool,
}

impl Which {
    /// The endpoints meant.
    pub async fn endpoints(&self, client: &Client) -> Result<Vec<String>, Failure> {
        match self.cluster {
            true => member::client_urls(client).await,
            false => Ok(client.endpoints()),
        }
    }
}

#[derive(Args)]
#[command(subcommand_required = true, arg_required_else_help = true)]
pub struct Endpoint {
    #[command(flatten)]
    which: Which,
    #[command(subcommand)]
    question: Question,
}

#[derive(Subcommand)]
enum Question {
    /// Whether a linearizable read is answered.
    Health,
    /// Version, size, leader and Raft's numbers.
    Status,
    /// A hash of the keys and their history. Members agree on it.
    Hashkv {
        /// Up to this revision; 0: the newest.
        #[arg(long, default_value = "0", value_parser = number::decimal)]
        rev: i64,
    },
}

impl Endpoint {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let endpoints = self.which.endpoints(&context.client).await?;
        match self.question {
            Question::Health => health(context, endpoints).await,
            Question::Status => status(context, endpoints).await,
            Question::Hashkv { rev } => hash_kv(context, endpoints, rev).await,
        }
    }
}

async fn health(context: &Context, endpoints: Vec<String>) -> anyhow::Result<()> {
    let found = Healths(join_all(endpoints.into_iter().map(|endpoint| ask(&context.client, endpoint))).await);
    if context.printer.format == Format::Simple {
        found.complaints().for_each(|complaint| eprintln!("{complaint}"));
    }
    context.print(&found)?;
    if found.0.iter().all(|health| health.error.is_none()) {
        return Ok(());
    }
    let mut failure = Failure::new(failure::ERROR, "unhealthy cluster");
    if let Some(cause) = found.0.iter().find_map(|health| health.cause.as_ref()) {
        failure = failure.hint_about(cause);
    }
    Err(failure.into())
}

async fn ask(client: &Client, endpoint: String) -> Health {
    let asked = Instant::now();
    let client = match client.at(&endpoint) {
        Ok(client) => client,
        Err(cause) => {
            return Health { endpoint, took: None, error: Some(failure::describe(&cause)), cause: Some(cause) };
        }
    };
    let answer = client.get(Get::key("health")).await;
    let took = Some(asked.elapsed());
    match answer {
        // Whoever may not read the key was told so by a cluster that works.
        Ok(_) | Err(Error::Etcd(EtcdError::PermissionDenied)) => {
            Health { endpoint, took, error: alarms(&client).await, cause: None }
        }
        Err(cause) => Health { endpoint, took, error: Some(failure::describe(&cause)), cause: Some(cause) },
    }
}

/// What a server that works complains of.
async fn alarms(client: &Client) -> Option<String> {
    let Ok(answer) = client.alarms().await else { return Some("Unable to fetch the alarm list".to_string()) };
    let name = |alarm: AlarmType| match alarm {
        AlarmType::Nospace => "NOSPACE ",
        AlarmType::Corrupt => "CORRUPT ",
        AlarmType::None => "UNKNOWN ",
    };
    let alarms: String = answer.alarms.iter().map(|alarm| name(alarm.alarm())).collect();
    (!alarms.is_empty()).then(|| format!("Active Alarm(s): {alarms}"))
}

async fn status(context: &Context, endpoints: Vec<String>) -> anyhow::Result<()> {
    let mut found = Statuses(Vec::new());
    let mut failed = None;
    for endpoint in endpoints {
        match context.client.status(&endpoint).await {
            Ok(status) => found.0.push((endpoint, status)),
            Err(error) => {
                eprintln!("Failed to get the status of endpoint {endpoint} ({})", failure::describe(&error));
                failed.get_or_insert(error);
            }
        }
    }
    context.print(&found)?;
    failed.map_or(Ok(()), |error| Err(Failure::silent(failure::ERROR).hint_about(&error).into()))
}

async fn hash_kv(context: &Context, endpoints: Vec<String>, revision: i64) -> anyhow::Result<()> {
    let mut found = Hashes(Vec::new());
    let mut failed = None;
    for endpoint in endpoints {
        match context.client.hash_kv(&endpoint, revision).await {
            Ok(answer) => found.0.push((endpoint, answer)),
            Err(error) => {
                eprintln!("Failed to get the hash of endpoint {endpoint} ({})", failure::describe(&error));
                failed = Some(error);
            }
        }
    }
    context.print(&found)?;
    failed.map_or(Ok(()), |error| Err(Failure::from(error).into()))
}
