//! How long a member takes to be back when there is much to give it.
//!
//! The store is filled, and under a light load members are lost with their disks and replaced, or lag until nothing but
//! a snapshot helps them. A member is back when it votes and has applied all that the leader had applied when it was
//! let in.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use proto::etcdserverpb::{PutRequest, RequestOp, TxnRequest, kv_client::KvClient, request_op::Request};
use rand::{RngCore as _, SeedableRng as _, rngs::StdRng};
use tokio::time::timeout;

use super::{
    client::Endpoint,
    convergence,
    nemesis::{self, Nemesis},
    nodes::{Nodes, Options},
    rounds::distribution,
};
use crate::{
    load::{Load, Progress},
    process::Target,
};

/// Each way to be gone.
const WAYS: [&str; 2] = ["replace-member", "lagging-member"];
const BACK_LIMIT: Duration = Duration::from_secs(300);
const WRITES_BETWEEN: u64 = 50;
const WRITES_LIMIT: Duration = Duration::from_secs(60);
const PUTS_AT_ONCE: u64 = 64;
const TXNS_AT_ONCE: usize = 8;
const MIB: u64 = 1 << 20;

#[derive(clap::Args)]
pub struct Arguments {
    /// The server to run: Pintle or etcd
    #[arg(long)]
    binary: PathBuf,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=7))]
    nodes: u8,
    /// What the values of all keys come to
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..))]
    megabytes: u64,
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=1 << 14))]
    value_bytes: u64,
    /// How often a member is gone in each way
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=256))]
    writers: u32,
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

pub async fn run(arguments: Arguments) -> Result<()> {
    let mut dir = tempfile::Builder::new().prefix("pintle-rejoin-").tempdir()?;
    let target = Target::new(&arguments.binary)?;
    let bytes = arguments.megabytes * MIB;
    let options = Options {
        size: arguments.nodes.into(),
        flags: vec![format!("--quota-backend-bytes={}", 4 * bytes + 1024 * MIB)],
        disk_bytes: 5 * bytes + 2048 * MIB,
        disk_in_file: true,
        needs: nemesis::by_name("lagging-member")?.needs(),
        seed: arguments.seed,
        ..Options::default()
    };
    let mut nodes = Nodes::start(&target, dir.path(), options).await?;
    match rejoin(&arguments, &target, &mut nodes).await {
        Ok(()) => nodes.shutdown().await,
        Err(error) => {
            dir.disable_cleanup(true);
            Err(error.context(format!("{}logs are in {}", nodes.log_tails(), dir.path().display())))
        }
    }
}

async fn rejoin(arguments: &Arguments, target: &Target, nodes: &mut Nodes) -> Result<()> {
    let begin = Instant::now();
    let keys = fill(nodes, arguments).await.context("filling the store")?;
    let goal = nodes.applied_by_leader().await?;
    until_all_have(nodes, goal).await?;
    println!(
        "{} with {} members, seed {}: {keys} keys with values of {} bytes, written in {:.1} s",
        target.label(),
        arguments.nodes,
        arguments.seed,
        arguments.value_bytes,
        begin.elapsed().as_secs_f64(),
    );
    for node in 0..nodes.len() {
        let status = nodes.status(node).await.with_context(|| format!("{} does not answer", nodes.name(node)))?;
        println!("  {}: a store of {} MiB", nodes.name(node), status.db_size as u64 / MIB);
    }
    let mut random = StdRng::seed_from_u64(arguments.seed);
    let progress = Arc::new(Progress::new());
    let load = Load::start(&nodes.endpoints(), arguments.writers, &progress, arguments.seed);
    for way in WAYS {
        let mut times = Vec::new();
        let mut outages = Vec::new();
        for _ in 0..arguments.rounds {
            progress.wait_for(WRITES_BETWEEN, WRITES_LIMIT).await.context("before a fault")?;
            let (back, outage) = round(nemesis::by_name(way)?, nodes, &progress, &mut random).await?;
            times.push(back);
            outages.push(outage);
        }
        for (what, times) in [("until it is back", &times), ("longest time without an acknowledged write", &outages)] {
            println!("{way}, {what}: {}", distribution(times).expect("there is a round"));
        }
    }
    progress.wait_for(WRITES_BETWEEN, WRITES_LIMIT).await.context("after the last fault")?;
    let stale = load.stop().await?.stale;
    ensure!(stale.is_empty(), "stale reads:\n{}", stale.join("\n"));
    let endpoints: Vec<Endpoint> = nodes.cluster.endpoints().iter().map(|url| Endpoint::of(url)).collect();
    let agreement = convergence::converge(&endpoints).await?;
    println!("all members have the hash {:08x} at revision {}", agreement.hash, agreement.revision);
    Ok(())
}

/// One member gone and back. Gives how long it took from its being let in, and the longest time without a write from
/// its going on.
async fn round(
    mut nemesis: Box<dyn Nemesis>,
    nodes: &mut Nodes,
    progress: &Progress,
    random: &mut StdRng,
) -> Result<(Duration, Duration)> {
    progress.longest_silence_of_step();
    let gone = nemesis.strike(nodes, random).await?;
    // A new leader, if it was the leader that went, and what it has by now.
    let goal = nodes.applied_by_leader().await?;
    let letting_in = Instant::now();
    let effect = nemesis.heal(nodes, random).await.with_context(|| format!("after: {}", gone.description))?;
    until_all_have(nodes, goal).await.with_context(|| format!("after: {}", gone.description))?;
    let back = letting_in.elapsed();
    let outage = progress.longest_silence_of_step();
    for (counter, count) in &effect.counters {
        ensure!(*count > 0, "{counter}: 0. This proves nothing");
    }
    println!(
        "{}; {} after {:.2} s; longest time without an acknowledged write: {} ms",
        gone.description,
        effect.description,
        back.as_secs_f64(),
        outage.as_millis(),
    );
    nodes.check_running().await?;
    Ok((back, outage))
}

async fn until_all_have(nodes: &Nodes, index: u64) -> Result<()> {
    for node in 0..nodes.len() {
        nodes.until_applied(node, index, BACK_LIMIT).await?;
    }
    Ok(())
}

/// Writes values that cannot be compressed, and gives the number of keys.
async fn fill(nodes: &Nodes, arguments: &Arguments) -> Result<u64> {
    let channel = nodes.cluster.nodes[nodes.leader().await?].channel();
    let keys = (arguments.megabytes * MIB).div_ceil(arguments.value_bytes);
    let txns = (0..keys).step_by(PUTS_AT_ONCE as usize).map(|first| {
        let (channel, seed) = (channel.clone(), arguments.seed ^ first);
        let puts = (first..keys.min(first + PUTS_AT_ONCE)).map(|key| format!("live/{key:010}"));
        let value_bytes = arguments.value_bytes as usize;
        let puts: Vec<String> = puts.collect();
        async move {
            let mut random = StdRng::seed_from_u64(seed);
            let success = puts.into_iter().map(|key| put(key, value_bytes, &mut random)).collect();
            let txn = TxnRequest { success, ..TxnRequest::default() };
            timeout(WRITES_LIMIT, KvClient::new(channel).txn(txn)).await??;
            anyhow::Ok(())
        }
    });
    stream::iter(txns).buffer_unordered(TXNS_AT_ONCE).try_collect::<()>().await?;
    Ok(keys)
}

fn put(key: String, value_bytes: usize, random: &mut StdRng) -> RequestOp {
    let mut value = vec![0; value_bytes];
    random.fill_bytes(&mut value);
    let put = PutRequest { key: key.into(), value: Bytes::from(value), ..PutRequest::default() };
    RequestOp { request: Some(Request::RequestPut(put)) }
}
