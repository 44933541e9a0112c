//! Pintle beside etcd: both run on fresh data on the same disk; every workload runs on one, then at once on the other,
//! and the next round begins with the other one. Ratios are formed within a round, so that what slows the machine down
//! for a while slows both.

use std::{fmt::Write as _, fs, path::PathBuf, time::Duration};

use clap::Args;
use serde::Serialize;

use crate::{
    Shape,
    measure::{Measured, Settings},
    node::Cluster,
    report::{self, Spread, mib, number},
    workload::{self, Spec},
};

const DEFAULT_WORKLOADS: &str =
    "put:1,put:100,put:1000,get:100,get-serializable:100,list:4,kube:100,watch:100,lease:100";

#[derive(Args)]
pub struct Options {
    #[arg(long)]
    etcd: PathBuf,
    #[arg(long)]
    pintle: PathBuf,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Members of each cluster.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=7))]
    nodes: u16,
    #[arg(long, value_delimiter = ',', default_value = DEFAULT_WORKLOADS)]
    workloads: Vec<Spec>,
    #[command(flatten)]
    shape: Shape,
    /// Measured time per workload and round, seconds.
    #[arg(long, default_value = "5", value_parser = crate::seconds)]
    duration: Duration,
    #[arg(long, default_value = "1", value_parser = crate::seconds)]
    warmup: Duration,
    /// Pause after each run, seconds: its last writes and background work shall not burden the other one's run.
    #[arg(long, default_value = "1", value_parser = crate::seconds)]
    settle: Duration,
    /// Open loop at this rate, the same for both. Without: closed loop.
    #[arg(long, value_parser = crate::positive)]
    rate: Option<f64>,
    /// Ports are taken from here on: two per member, etcd's after Pintle's.
    #[arg(long, default_value_t = 29_100)]
    base_port: u16,
    /// Where the data directories are made.
    #[arg(long, default_value = "target/bench")]
    dir: PathBuf,
    /// A file for the Markdown.
    #[arg(long)]
    out: Option<PathBuf>,
    /// A file for the figures of every run.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// The figures of one workload on one system in one round.
#[derive(Debug, Clone, Serialize)]
struct Figures {
    round: u32,
    workload: String,
    system: &'static str,
    operations: u64,
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    p999_ms: f64,
    cpu_us_per_operation: Option<f64>,
    rss_mib: f64,
    anon_mib: f64,
    load_cpu_us_per_operation: Option<f64>,
    written_per_put: Option<f64>,
    fsyncs_per_second: Option<f64>,
    missed: u64,
    errors: u64,
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

const PINTLE: &str = "Pintle";
const ETCD: &str = "etcd";

pub async fn run(options: Options) -> anyhow::Result<()> {
    anyhow::ensure!(options.shape.keys > 0, "--keys must be above 0");
    let mut figures = Vec::new();
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
                let endpoints = cluster.endpoints();
                let settings = Settings {
                    connections: spec.connections(endpoints.len()),
                    endpoints,
                    warmup: options.warmup,
                    duration: options.duration,
                    rate: options.rate,
                    pids: cluster.pids(),
                    shape: options.shape.clone(),
                };
                let measured = workload::run(spec, &settings).await?;
                eprintln!("round {round} {spec} {system}: {:.0}/s", measured.per_second());
                for (error, count) in &measured.errors {
                    eprintln!("  {count} x {error}");
                }
                anyhow::ensure!(measured.operations > 0, "{spec} on {system}: no operation was answered");
                figures.push(Figures::new(round, spec, system, &measured));
                // What a server still does behind its last answer cannot be waited for from outside.
                tokio::time::sleep(options.settle).await;
            }
        }
        pintle.stop().await?;
        etcd.stop().await?;
    }
    let text = format!("{}\n{}", header.unwrap_or_default(), table(&options.workloads, &figures));
    println!("{text}");
    if let Some(out) = &options.out {
        fs::write(out, &text)?;
    }
    if let Some(json) = &options.json {
        fs::write(json, serde_json::to_string_pretty(&figures)?)?;
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
        "- load: {loop_kind}, {} s measured after {} s of warm-up, {} rounds, the two in turn; {} keys of {} B \
         (kube: 1 KiB at least); both run all the time, the one that is not measured idles; load generator on the same \
         machine, one thread",
        options.duration.as_secs_f64(),
        options.warmup.as_secs_f64(),
        options.rounds,
        options.shape.keys,
        options.shape.value_size,
    )?;
    text += "- `name:N` is a workload with N clients (watch: N watchers; its operations are events received, its \
             latency is the time from the put to the event); ratio is Pintle / etcd within a round\n";
    Ok(text)
}

struct Row {
    name: &'static str,
    /// What is better, so that a reader need not think about it.
    better: &'static str,
    value: fn(&Figures) -> Option<f64>,
}

const ROWS: [Row; 10] = [
    Row { name: "operations/s", better: "higher", value: |f| Some(f.per_second) },
    Row { name: "p50 ms", better: "lower", value: |f| Some(f.p50_ms) },
    Row { name: "p99 ms", better: "lower", value: |f| Some(f.p99_ms) },
    Row { name: "p99.9 ms", better: "lower", value: |f| Some(f.p999_ms) },
    Row { name: "server CPU us/operation", better: "lower", value: |f| f.cpu_us_per_operation },
    Row { name: "RSS MiB", better: "lower", value: |f| Some(f.rss_mib) },
    Row { name: "of it anonymous MiB", better: "lower", value: |f| Some(f.anon_mib) },
    Row { name: "load generator CPU us/operation", better: "", value: |f| f.load_cpu_us_per_operation },
    Row { name: "bytes written per byte put", better: "lower", value: |f| f.written_per_put },
    Row { name: "log syncs/s", better: "", value: |f| f.fsyncs_per_second },
];

fn table(workloads: &[Spec], figures: &[Figures]) -> String {
    let mut text = String::from(
        "| workload | figure | better | Pintle (median) | etcd (median) | ratio min / median / max |\n\
         |---|---|---|---:|---:|---:|\n",
    );
    for spec in workloads {
        let name = spec.to_string();
        let of = |system: &'static str| figures.iter().filter(|f| f.workload == name && f.system == system).collect();
        let (pintle, etcd): (Vec<&Figures>, Vec<&Figures>) = (of(PINTLE), of(ETCD));
        for row in &ROWS {
            let median = |of: &[&Figures]| {
                Spread::of(of.iter().filter_map(|f| (row.value)(f))).map_or("-".to_string(), |s| number(s.median))
            };
            let ratios = pintle.iter().filter_map(|ours| {
                let theirs = etcd.iter().find(|theirs| theirs.round == ours.round)?;
                let (ours, theirs) = ((row.value)(ours)?, (row.value)(theirs)?);
                (theirs > 0.0).then(|| ours / theirs)
            });
            let ratio = Spread::of(ratios).map_or("-".to_string(), |spread| spread.to_string());
            let (figure, better) = (row.name, row.better);
            text += &format!("| {name} | {figure} | {better} | {} | {} | {ratio} |\n", median(&pintle), median(&etcd));
        }
        let failed = |of: &[&Figures]| of.iter().map(|f| f.errors + f.missed).sum::<u64>();
        if failed(&pintle) + failed(&etcd) > 0 {
            let (pintle, etcd) = (failed(&pintle), failed(&etcd));
            text += &format!("| {name} | errors and missed, all rounds | lower | {pintle} | {etcd} | |\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(round: u32, system: &'static str, per_second: f64) -> Figures {
        Figures {
            round,
            workload: "put:1".to_string(),
            system,
            operations: 1,
            per_second,
            p50_ms: 1.0,
            p99_ms: 2.0,
            p999_ms: 3.0,
            cpu_us_per_operation: None,
            rss_mib: 10.0,
            anon_mib: 5.0,
            load_cpu_us_per_operation: None,
            written_per_put: None,
            fsyncs_per_second: None,
            missed: 0,
            errors: 0,
        }
    }

    #[test]
    fn ratios_are_formed_within_a_round() {
        let all =
            [figures(1, PINTLE, 200.0), figures(1, ETCD, 100.0), figures(2, ETCD, 1000.0), figures(2, PINTLE, 1000.0)];
        let table = table(&["put:1".parse().unwrap()], &all);
        assert!(table.contains("| put:1 | operations/s | higher | 600 | 550 | 1.00 / 1.50 / 2.00 |"), "{table}");
        assert!(table.contains("| put:1 | server CPU us/operation | lower | - | - | - |"), "{table}");
        assert!(!table.contains("errors"), "{table}");
    }
}
