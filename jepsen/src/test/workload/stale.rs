//! Serializable reads: they may be old, but what they show was once so, and one member never goes back.

use jepsen::check::{
    history::{Keys, Put, Range, Request},
    serializable,
};
use rand::Rng as _;

use super::{Case, Finding, Workload};
use crate::test::client::{Choice, Client, Context};

const PREFIX: &str = "stale/";
const KEYS: u64 = 10;
/// Faults in which a process ends, and comes back with what it had made durable.
const STOPPING: &[&str] = &[
    "kill",
    "restart-all",
    "rolling-restart",
    "memory-pressure",
    "power-cut",
    "power-cut-any-subset",
    "sync-error",
    "lost-syncs",
    "fdatasync-error",
    "fdatasync-kill",
    "disk-full",
    "bad-sectors",
    "bit-flip",
    "bit-flip-running",
    "truncation",
    "clock",
    "replace-member",
    "add-remove-member",
    "mixed",
];

pub const STALE: Workload = Workload {
    name: "stale",
    about: "serializable reads show states that existed, and a member never goes back",
    processes: 9,
    rate: 30.0,
    process: |context, index| Box::pin(run(context, index)),
    check,
    ..Workload::PLAIN
};

/// A third of the processes write, the others read, each always from the same member.
async fn run(context: Context, index: u64) -> anyhow::Result<()> {
    if index % 3 == 0 {
        write(Client::choosing(&context, index, Choice::AfterFailure)).await
    } else {
        read(Client::choosing(&context, index, Choice::Pinned)).await
    }
}

async fn write(mut client: Client) -> anyhow::Result<()> {
    while client.goes_on().await {
        let key = format!("{PREFIX}{}", client.random.random_range(0..KEYS));
        let value = client.recorder().value().to_string();
        client.call(Request::Put(Put { key: key.into(), value: value.into(), ..Put::default() })).await;
    }
    Ok(())
}

async fn read(mut client: Client) -> anyhow::Result<()> {
    while client.goes_on().await {
        // A linearizable read among them shows how far the others are behind.
        let serializable = client.random.random_ratio(9, 10);
        client.call(Request::Range(Range { keys: Keys::prefix(PREFIX), serializable, ..Range::default() })).await;
    }
    Ok(())
}

fn check(case: &Case) -> Vec<Finding> {
    let judge = |truth: &_| serializable::check(case.history, truth, STOPPING);
    vec![case.against_truth("no member goes back", judge)]
}
