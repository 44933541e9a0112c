//! What large stores do to puts and gets: old revisions compacted meanwhile, a snapshot sent meanwhile, more and more
//! keys. One server after the other; each has the machine for itself.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::{Args, Subcommand};
use client::Connection;
use proto::etcdserverpb::{CompactionRequest, SnapshotRequest, maintenance_client::MaintenanceClient};

use crate::{
    Shape,
    drive::{self, Client},
    fill,
    measure::{Measured, Settings},
    node::Cluster,
    report::{self, mib, number},
    workload::{self, KeySpace, kv},
};

const CLIENTS: usize = 100;
/// How often each key is put before a compaction.
const VERSIONS: usize = 10;
/// Of a large key space, so many keys are used: to know ten million takes memory that the servers need.
const SAMPLE: usize = 100_000;
const PREFIX: &str = "/bench/scale/";

#[derive(Args)]
pub struct Options {
    #[command(subcommand)]
    scale: Scale,
}

#[derive(Subcommand)]
enum Scale {
    /// p99 of puts while old revisions are compacted, against p99 when idle.
    Compaction {
        #[arg(long, default_value_t = 1_000_000)]
        revisions: usize,
        #[command(flatten)]
        common: Common,
    },
    /// p99 of puts while a snapshot is sent, against p99 when idle.
    Snapshot {
        #[arg(long, default_value_t = 1 << 20)]
        keys: usize,
        #[command(flatten)]
        common: Common,
    },
    /// The cost of a put and of a get, as the store grows.
    Growth {
        /// Keys in the store at each step, in growing order.
        #[arg(long, value_delimiter = ',', default_value = "10000,100000,1000000,10000000")]
        keys: Vec<usize>,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(Args)]
struct Common {
    #[arg(long)]
    etcd: PathBuf,
    #[arg(long)]
    pintle: PathBuf,
    /// Size of a value, bytes.
    #[arg(long, default_value_t = 1024)]
    value_size: usize,
    /// Puts per second (open loop), so that both are loaded alike. Growth: closed loop.
    #[arg(long, default_value = "2000", value_parser = crate::positive)]
    rate: f64,
    /// Measured time of each run, seconds.
    #[arg(long, default_value = "10", value_parser = crate::seconds)]
    duration: Duration,
    #[arg(long, default_value = "1", value_parser = crate::seconds)]
    warmup: Duration,
    #[arg(long, default_value_t = 29_400)]
    base_port: u16,
    /// Where the data directories are made.
    #[arg(long, default_value = "target/bench")]
    dir: PathBuf,
}

/// A name, and a value for each server.
type Lines = Vec<(String, f64)>;

pub async fn run(options: Options) -> anyhow::Result<()> {
    let (Scale::Compaction { common, .. } | Scale::Snapshot { common, .. } | Scale::Growth { common, .. }) =
        &options.scale;
    fs::create_dir_all(&common.dir)?;
    let ours = options.scale.measure(common, &common.pintle).await?;
    let theirs = options.scale.measure(common, &common.etcd).await?;
    println!("### {}, {}\n\n{}", options.scale.title(), report::today(), report::machine(&common.dir));
    println!("| figure | Pintle | etcd | ratio |\n|---|---:|---:|---:|");
    for ((name, ours), (_, theirs)) in ours.iter().zip(&theirs) {
        let ratio = if *theirs > 0.0 { number(ours / theirs) } else { "-".to_string() };
        println!("| {name} | {} | {} | {ratio} |", number(*ours), number(*theirs));
    }
    Ok(())
}

impl Scale {
    fn title(&self) -> String {
        match self {
            Scale::Compaction { revisions, common } => {
                format!("Puts while {revisions} revisions of {} B are compacted", common.value_size)
            }
            Scale::Snapshot { keys, common } => {
                format!("Puts while a snapshot of {keys} keys of {} B is sent", common.value_size)
            }
            Scale::Growth { common, .. } => format!("Cost by keys in the store, values of {} B", common.value_size),
        }
    }

    async fn measure(&self, common: &Common, binary: &Path) -> anyhow::Result<Lines> {
        let mut cluster = Cluster::start(binary, 1, common.base_port, &common.dir).await?;
        let target = Target { common, channels: fill::connect(&cluster.endpoints(), 4).await?, cluster: &cluster };
        eprintln!("{}: {}", binary.display(), self.title());
        let lines = match self {
            Scale::Compaction { revisions, .. } => target.compaction(*revisions).await?,
            Scale::Snapshot { keys, .. } => target.snapshot(*keys).await?,
            Scale::Growth { keys, .. } => target.growth(keys).await?,
        };
        cluster.stop().await?;
        Ok(lines)
    }
}

struct Target<'a> {
    common: &'a Common,
    cluster: &'a Cluster,
    channels: Vec<Connection>,
}

impl Target<'_> {
    /// The store's newest revision afterwards.
    async fn fill(&self, first: usize, keys: usize) -> anyhow::Result<i64> {
        let value_size = self.common.value_size;
        let prefix = PREFIX.to_string();
        let options = fill::Options { first, keys, value_size, batch: 64, clients: 16, prefix };
        Ok(*fill::fill(&self.channels, &options).await?.revisions.end())
    }

    async fn drive(&self, rate: Option<f64>, client: impl Fn(usize) -> Box<dyn Client>) -> anyhow::Result<Measured> {
        let Common { value_size, duration, warmup, .. } = *self.common;
        let settings = Settings {
            endpoints: self.cluster.endpoints(),
            connections: CLIENTS.div_ceil(20),
            warmup,
            duration,
            rate,
            pids: self.cluster.pids(),
            shape: Shape { value_size, ..Shape::default() },
        };
        let measured = drive::run(&settings, (0..CLIENTS).map(client).collect()).await?;
        for (error, count) in &measured.errors {
            eprintln!("  {count} x {error}");
        }
        ensure!(measured.operations > 0, "no operation was answered");
        Ok(measured)
    }

    /// Puts over keys that are there.
    async fn puts(&self, rate: Option<f64>, keys: usize) -> anyhow::Result<Measured> {
        let (keys, value) = (KeySpace::sample(PREFIX, keys, SAMPLE), workload::value(self.common.value_size));
        self.drive(rate, |i| Box::new(kv::Put::new(keys.of(i), value.clone()))).await
    }

    async fn gets(&self, keys: usize) -> anyhow::Result<Measured> {
        let keys = KeySpace::sample(PREFIX, keys, SAMPLE);
        self.drive(None, |i| Box::new(kv::Get::new(keys.of(i), false))).await
    }

    async fn compaction(&self, revisions: usize) -> anyhow::Result<Lines> {
        // Each of a transaction's keys is a change, but only the transaction is a revision: it is changes that a
        // compaction has to go through.
        let keys = (revisions / VERSIONS).max(1);
        let mut newest = 0;
        for _ in 0..VERSIONS {
            newest = self.fill(0, keys).await?;
        }
        let idle = self.puts(Some(self.common.rate), keys).await?;
        let mut kv = fill::kv(self.channels[0].clone());
        let warmup = self.common.warmup;
        let compaction = tokio::spawn(async move {
            // A delay: the compaction is to begin with the measured time.
            tokio::time::sleep(warmup).await;
            let begin = Instant::now();
            // Physical: the answer comes when it is done.
            let request = CompactionRequest { revision: newest, physical: true };
            kv.compact(request).await.map(|_| begin.elapsed())
        });
        let busy = self.puts(Some(self.common.rate), keys).await?;
        let took = compaction.await?.context("compact")?;
        let mut lines = against_idle(&idle, &busy);
        lines.push(("compaction, s".to_string(), took.as_secs_f64()));
        Ok(lines)
    }

    async fn snapshot(&self, keys: usize) -> anyhow::Result<Lines> {
        self.fill(0, keys).await?;
        let idle = self.puts(Some(self.common.rate), keys).await?;
        let over = Arc::new(AtomicBool::new(false));
        let sent = tokio::spawn(snapshots(self.channels[0].clone(), over.clone()));
        let busy = self.puts(Some(self.common.rate), keys).await?;
        over.store(true, Ordering::Relaxed);
        let sent = sent.await?.context("snapshot")?;
        let mut lines = against_idle(&idle, &busy);
        lines.push(("snapshot sent meanwhile, MiB/s".to_string(), mib(sent.bytes) / sent.elapsed.as_secs_f64()));
        Ok(lines)
    }

    async fn growth(&self, steps: &[usize]) -> anyhow::Result<Lines> {
        ensure!(steps.is_sorted() && steps.first().is_some_and(|first| *first > 0), "--keys grow, from above 0");
        let (mut lines, mut there) = (Vec::new(), 0);
        for &keys in steps {
            self.fill(there, keys).await?;
            there = keys;
            let (put, get) = (self.puts(None, keys).await?, self.gets(keys).await?);
            for (name, measured) in [("put", put), ("get", get)] {
                let cpu = measured.cpu_us_per_operation().context("the servers' CPU time is known")?;
                lines.push((format!("{keys} keys, {name}: server CPU us/operation"), cpu));
                lines.push((format!("{keys} keys, {name}: operations/s"), measured.per_second()));
                lines.push((format!("{keys} keys, {name}: p99 ms"), measured.quantile_ms(0.99)));
            }
        }
        Ok(lines)
    }
}

fn against_idle(idle: &Measured, busy: &Measured) -> Lines {
    let p99 = |measured: &Measured| measured.quantile_ms(0.99);
    vec![
        ("idle: put p50 ms".to_string(), idle.quantile_ms(0.5)),
        ("idle: put p99 ms".to_string(), p99(idle)),
        ("meanwhile: put p50 ms".to_string(), busy.quantile_ms(0.5)),
        ("meanwhile: put p99 ms".to_string(), p99(busy)),
        ("meanwhile: put p99.9 ms".to_string(), busy.quantile_ms(0.999)),
        ("p99 meanwhile / idle".to_string(), p99(busy) / p99(idle)),
        ("meanwhile: missed and errors".to_string(), (busy.missed + busy.error_count()) as f64),
    ]
}

struct Sent {
    bytes: u64,
    elapsed: Duration,
}

/// Takes snapshots, one after the other, until the run is over.
async fn snapshots(channel: Connection, over: Arc<AtomicBool>) -> Result<Sent, tonic::Status> {
    let mut maintenance = MaintenanceClient::new(channel).max_decoding_message_size(usize::MAX);
    let (begin, mut bytes) = (Instant::now(), 0);
    loop {
        let mut stream = maintenance.snapshot(SnapshotRequest {}).await?.into_inner();
        while let Some(part) = stream.message().await? {
            bytes += part.blob.len() as u64;
            if over.load(Ordering::Relaxed) {
                return Ok(Sent { bytes, elapsed: begin.elapsed() });
            }
        }
    }
}
