//! Pintle beside etcd: both run on fresh data on the same disk; every workload runs on one, then at once on the other,
//! and the next round begins with the other one. Ratios are formed within a round, so that what slows the machine down
//! for a while slows both.

use std::{fmt::Write as _, fs, path::PathBuf, time::Duration};

use clap::Args;
use serde::Serialize;

use crate::{
    Shape, Times, ceilings, marked,
    measure::{Measured, Settings},
    node::Cluster,
    plot,
    report::{self, mib},
    table::{self, Disk},
    workload::{self, Spec},
};

const DEFAULT_WORKLOADS: &str = "put:1,put:100,put:1000,put-sequential:100,txn-put:100,get:1000,get-serializable:1000,\
                                 range:100,list:4,stm:100,lease:1000,watch:1000,watch-latency:10,watch-get:10,kube:300,\
                                 kube-update:300,kube-compact:300,kube-lease:300,kube-events:100,kube-page:4,kube-watch:10";
/// How long the disk alone is measured in a round, for each size of its batches.
const DISK_TIME: Duration = Duration::from_secs(1);

#[derive(Args)]
pub struct Options {
    #[arg(long)]
    etcd: PathBuf,
    #[arg(long)]
    pintle: PathBuf,
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Members of each cluster.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=7))]
    nodes: u16,
    #[arg(long, value_delimiter = ',', default_value = DEFAULT_WORKLOADS)]
    workloads: Vec<Spec>,
    #[command(flatten)]
    shape: Shape,
    #[command(flatten)]
    times: Times,
    /// Pause after each run, seconds: its last writes and background work shall not burden the other one's run.
    #[arg(long, default_value = "1", value_parser = crate::seconds)]
    settle: Duration,
    /// Connections. Default: one per 20 clients.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    connections: Option<u16>,
    /// Open loop at this rate, the same for both. Without: closed loop.
    #[arg(long, value_parser = crate::positive)]
    rate: Option<f64>,
    /// Ports are taken from here on: two per member, etcd's after Pintle's.
    #[arg(long, default_value_t = 29_100)]
    base_port: u16,
    /// Where the data directories are made.
    #[arg(long, default_value = "target/bench")]
    dir: PathBuf,
    /// Without the echo server and the disk.
    #[arg(long)]
    no_ceilings: bool,
    /// A Markdown file whose part between `<!-- begin compare NAME -->` and `<!-- end compare NAME -->` is replaced; one
    /// that has no such part gets it at its end. Plots go into a folder beside it with its name.
    #[arg(long)]
    docs: Option<PathBuf>,
    /// The part's name.
    #[arg(long, default_value = "one-node")]
    name: String,
    /// A file for the Markdown.
    #[arg(long)]
    out: Option<PathBuf>,
    /// A file for the figures of every run.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// The figures of one workload on one system in one round.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Figures {
    pub round: u32,
    pub workload: String,
    pub system: &'static str,
    pub operations: u64,
    pub per_second: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub p999_ms: f64,
    pub cpu_us_per_operation: Option<f64>,
    pub rss_mib: f64,
    pub anon_mib: f64,
    pub load_cpu_us_per_operation: Option<f64>,
    pub written_per_put: Option<f64>,
    pub fsyncs_per_second: Option<f64>,
    pub missed: u64,
    pub errors: u64,
}

impl Figures {
    fn new(round: u32, spec: &Spec, system: &'static str, measured: &Measured) -> Figures {
        Figures {
            round,
            workload: spec.to_string(),
            system,
            operations: measured.operations,
            per_second: measured.per_second(),
            p50_ms: measured.quantile_ms(0.5),
            p99_ms: measured.quantile_ms(0.99),
            p999_ms: measured.quantile_ms(0.999),
            cpu_us_per_operation: measured.cpu_us_per_operation(),
            rss_mib: measured.server.map_or(0.0, |server| mib(server.memory.rss_bytes)),
            anon_mib: measured.server.map_or(0.0, |server| mib(server.memory.anon_bytes)),
            load_cpu_us_per_operation: measured.own_cpu_us_per_operation(),
            written_per_put: measured.written_per_put(),
            fsyncs_per_second: measured.fsyncs_per_second,
            missed: measured.missed,
            errors: measured.error_count(),
        }
    }
}

pub const PINTLE: &str = "Pintle";
pub const ETCD: &str = "etcd";
pub const ECHO: &str = "gRPC alone";

pub async fn run(options: Options) -> anyhow::Result<()> {
    let shape = &options.shape;
    anyhow::ensure!(shape.keys > 0 && shape.objects > 0 && shape.txn_ops > 0, "--keys, --objects, --txn-ops: above 0");
    let (mut figures, mut disks) = (Vec::new(), Vec::new());
    let mut header = None;
    fs::create_dir_all(&options.dir)?;
    let etcd_port = options.base_port + 2 * options.nodes;
    for round in 1..=options.rounds {
        let mut pintle = Cluster::start(&options.pintle, options.nodes, options.base_port, &options.dir).await?;
        let mut etcd = Cluster::start(&options.etcd, options.nodes, etcd_port, &options.dir).await?;
        if header.is_none() {
            header = Some(header_lines(&options, &pintle, &etcd).await?);
        }
        for spec in &options.workloads {
            let mut order = [(PINTLE, &pintle), (ETCD, &etcd)];
            if round % 2 == 0 {
                order.reverse();
            }
            for (system, cluster) in order {
                let measured = workload::run(spec, &options.settings(spec, cluster)).await?;
                figures.push(note(round, spec, system, &measured)?);
                // A delay: what a server still does behind its last answer cannot be waited for from outside.
                tokio::time::sleep(options.settle).await;
            }
            if let Some(measured) = options.on_echo(spec).await? {
                figures.push(note(round, spec, ECHO, &measured)?);
            }
        }
        pintle.stop().await?;
        etcd.stop().await?;
        if !options.no_ceilings {
            disks.push(Disk::measure(&options.dir, shape.value_size, DISK_TIME)?);
        }
    }
    write_out(&options, &header.unwrap_or_default(), &figures, &disks)
}

fn note(round: u32, spec: &Spec, system: &'static str, measured: &Measured) -> anyhow::Result<Figures> {
    eprintln!("round {round} {spec} {system}: {:.0}/s", measured.per_second());
    for (error, count) in &measured.errors {
        eprintln!("  {count} x {error}");
    }
    anyhow::ensure!(measured.operations > 0, "{spec} on {system}: no operation was answered");
    Ok(Figures::new(round, spec, system, measured))
}

impl Options {
    fn connections(&self, spec: &Spec, endpoints: usize) -> usize {
        self.connections.map_or_else(|| spec.connections(endpoints), usize::from)
    }

    fn settings(&self, spec: &Spec, cluster: &Cluster) -> Settings {
        let endpoints = cluster.endpoints();
        Settings {
            connections: self.connections(spec, endpoints.len()),
            endpoints,
            warmup: self.times.warmup,
            duration: self.times.duration,
            rate: self.rate,
            pids: cluster.pids(),
            shape: self.shape.clone(),
        }
    }

    async fn on_echo(&self, spec: &Spec) -> anyhow::Result<Option<Measured>> {
        if self.no_ceilings {
            return Ok(None);
        }
        let port = self.base_port + 4 * self.nodes;
        let connections = Some(self.connections(spec, 1));
        ceilings::on_echo(spec, &self.shape, port, connections, self.times).await
    }
}

fn write_out(options: &Options, header: &str, figures: &[Figures], disks: &[Disk]) -> anyhow::Result<()> {
    let mut text = format!("{header}\n{}", table::render(&options.workloads, figures, disks));
    if let Some(docs) = &options.docs {
        text += &plot::write(docs, &options.name, &options.workloads, figures)?;
        marked::replace(docs, &format!("compare {}", options.name), &text)?;
    }
    println!("{text}");
    if let Some(out) = &options.out {
        fs::write(out, &text)?;
    }
    if let Some(json) = &options.json {
        fs::write(json, serde_json::to_string_pretty(figures)?)?;
    }
    Ok(())
}

async fn header_lines(options: &Options, pintle: &Cluster, etcd: &Cluster) -> anyhow::Result<String> {
    let members = if options.nodes == 1 { "one node".to_string() } else { format!("{} nodes", options.nodes) };
    let mut text = format!("### Pintle and etcd, {members}, {}\n\n", report::today());
    text += &report::machine(&options.dir);
    writeln!(text, "- versions: Pintle `{}`, etcd `{}`", pintle.version().await?, etcd.version().await?)?;
    writeln!(text, "- flags of both: `{}`", pintle.flags_shown())?;
    let loop_kind = options.rate.map_or("closed loop".to_string(), |rate| format!("open loop, {rate} operations/s"));
    writeln!(
        text,
        "- load: {loop_kind}, {} s measured after {} s of warm-up, {} rounds, the two in turn; {} keys of {} B, \
         lists and objects 1 KiB at least; both run all the time, the one that is not measured idles; load generator on the same \
         machine, one thread",
        options.times.duration.as_secs_f64(),
        options.times.warmup.as_secs_f64(),
        options.rounds,
        options.shape.keys,
        options.shape.value_size,
    )?;
    text += "- `name:N` is a workload with N clients (watch: N watchers; its operations are events received, its \
             latency is the time from the put to the event); ratio is Pintle / etcd within a round\n";
    Ok(text)
}
