//! `pintle-bench`: load for Pintle and for anything else that speaks etcd's API, and the two measured side by side.
//!
//! | module | holds |
//! |---|---|
//! | [`wire`] | gRPC over HTTP/2, as cheap as it can be for the sender of load |
//! | [`drive`], [`schedule`] | the loop that issues operations, closed or open |
//! | [`measure`] | what is measured meanwhile |
//! | [`workload`] | what the operations are |
//! | [`fill`] | many keys, quickly |
//! | [`node`] | servers as child processes: start, readiness, CPU time, memory, disk, stop |
//! | [`echo`], [`ceilings`] | a server that does nothing; what gRPC alone and the disk alone can do |
//! | [`compare`], [`restart`], [`scale`] | Pintle beside etcd |
//! | [`table`], [`plot`], [`marked`], [`report`] | the comparison as Markdown and SVG, within a document |
//!
//! ```text
//! pintle-bench run put --endpoints http://127.0.0.1:2379 --clients 100 --duration 10
//! pintle-bench compare --pintle target/release/pintle --etcd /usr/bin/etcd --rounds 3 --nodes 1
//! pintle-bench restart --pintle target/release/pintle --etcd /usr/bin/etcd --keys 1000000 --value-size 1024
//! ```

mod ceilings;
mod compare;
mod drive;
mod echo;
mod fill;
mod marked;
mod measure;
mod node;
mod plot;
mod report;
mod restart;
mod scale;
mod schedule;
mod table;
mod wire;
mod workload;

use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::{measure::Settings, workload::Spec};

/// Pintle's: what is compared with it shall not differ by this.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(name = "pintle-bench", version, about = "Loads etcd-compatible servers and measures them")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs one workload against a running server.
    Run(Run),
    /// Fills a running server with keys.
    Load(Load),
    /// Runs workloads on Pintle and etcd in turn and prints the ratios.
    Compare(compare::Options),
    /// Measures what gRPC alone and the disk alone can do.
    Ceilings(ceilings::Options),
    /// Serves KV, Lease and Watch with answers made up, to see what gRPC alone takes.
    Echo(echo::Options),
    /// Puts and gets in a large store: beside compactions, beside snapshots, and as it grows.
    Scale(scale::Options),
    /// Loads both, stops them, and measures the restart.
    Restart(restart::Options),
}

#[derive(Args)]
struct Run {
    /// The workload, with its clients if you like: `put:1000`. A name that does not exist lists them all.
    workload: Spec,
    #[command(flatten)]
    target: Target,
    /// Overrides the clients (for watch: the watchers).
    #[arg(long)]
    clients: Option<usize>,
    #[command(flatten)]
    shape: Shape,
    /// Measured time, seconds.
    #[arg(long, default_value = "10", value_parser = seconds)]
    duration: Duration,
    /// Time before the measurement starts, seconds.
    #[arg(long, default_value = "1", value_parser = seconds)]
    warmup: Duration,
    /// Operations per second, issued whether or not earlier ones were answered (open loop). Without: closed loop.
    #[arg(long, value_parser = positive)]
    rate: Option<f64>,
    /// Server processes whose CPU time and memory are measured.
    #[arg(long = "pid", value_delimiter = ',')]
    pids: Vec<u32>,
}

#[derive(Args)]
struct Load {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    fill: fill::Options,
}

#[derive(Args)]
struct Target {
    /// The servers' client URLs; connections are spread over them.
    #[arg(long, value_delimiter = ',', default_value = "http://127.0.0.1:2379")]
    endpoints: Vec<String>,
    /// Connections. Default: one per 20 clients.
    #[arg(long)]
    connections: Option<usize>,
}

/// What the operations look like.
#[derive(Args, Clone, Debug, Default)]
pub struct Shape {
    /// Size of a value, bytes (list, kube: always at least 1024).
    #[arg(long, default_value_t = 256)]
    pub value_size: usize,
    /// Keys the workload touches.
    #[arg(long, default_value_t = 10_000)]
    pub keys: usize,
    /// Objects that kube-page lists.
    #[arg(long, default_value_t = 100_000)]
    pub objects: usize,
    /// Puts in a transaction of txn-put.
    #[arg(long, default_value_t = 8)]
    pub txn_ops: usize,
    /// Take keys in order instead of at random.
    #[arg(long)]
    pub sequential: bool,
}

/// How long each workload runs where several are compared.
#[derive(Args, Clone, Copy, Debug)]
pub struct Times {
    /// Measured time per workload and round, seconds.
    #[arg(long, default_value = "5", value_parser = seconds)]
    pub duration: Duration,
    /// Time before the measurement starts, seconds.
    #[arg(long, default_value = "1", value_parser = seconds)]
    pub warmup: Duration,
}

pub fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|e| format!("{e}"))?;
    Duration::try_from_secs_f64(seconds).map_err(|e| e.to_string())
}

pub fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err("a number above 0 is needed".to_string()),
    }
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    // The load has a thread of its own. What runs here prepares it and idles meanwhile, or is the echo server, which
    // has as many threads as Pintle.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            result = run(cli) => result,
            // Servers started here are stopped and their data removed on the way out of `run`.
            signal = asked_to_end() => anyhow::bail!("ended by {}", signal?),
        }
    })
}

async fn asked_to_end() -> std::io::Result<&'static str> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => Ok("SIGINT"),
        _ = terminate.recv() => Ok("SIGTERM"),
    }
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Run(run) => run_one(run).await,
        Command::Load(load) => {
            let connections = load.target.connections.unwrap_or(4);
            let channels = fill::connect(&load.target.endpoints, connections).await?;
            let filled = fill::fill(&channels, &load.fill).await?;
            println!("{filled}");
            Ok(())
        }
        Command::Compare(options) => compare::run(options).await,
        Command::Ceilings(options) => ceilings::run(options).await,
        Command::Echo(options) => echo::run(options).await,
        Command::Scale(options) => scale::run(options).await,
        Command::Restart(options) => restart::run(options).await,
    }
}

async fn run_one(run: Run) -> anyhow::Result<()> {
    let mut spec = run.workload;
    if let Some(clients) = run.clients {
        anyhow::ensure!(clients > 0, "--clients must be above 0");
        spec.clients = clients;
    }
    let settings = Settings {
        connections: run.target.connections.unwrap_or_else(|| spec.connections(run.target.endpoints.len())),
        endpoints: run.target.endpoints,
        warmup: run.warmup,
        duration: run.duration,
        rate: run.rate,
        pids: run.pids,
        shape: run.shape,
    };
    anyhow::ensure!(settings.connections > 0 && settings.shape.keys > 0, "--connections and --keys must be above 0");
    println!("{spec}: {settings:?}");
    let measured = workload::run(&spec, &settings).await?;
    println!("{measured}");
    Ok(())
}
