//! Many keys, a stop, a start: how long until the server is ready again, what memory and disk it takes.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use proto::etcdserverpb::RangeRequest;

use crate::{
    fill,
    node::{self, Cluster},
    report::{self, Spread, mib, number},
    workload,
};

/// A server that is not ready by then will not be.
const READY_WITHIN: Duration = Duration::from_secs(600);

#[derive(Args)]
pub struct Options {
    #[arg(long)]
    etcd: PathBuf,
    #[arg(long)]
    pintle: PathBuf,
    #[command(flatten)]
    fill: fill::Options,
    /// How often each is restarted.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    restarts: u32,
    #[arg(long, default_value_t = 29_200)]
    base_port: u16,
    /// Where the data directories are made.
    #[arg(long, default_value = "target/bench")]
    dir: PathBuf,
    /// A file for the Markdown.
    #[arg(long)]
    out: Option<PathBuf>,
}

/// A server that was loaded and then restarted several times.
struct Measured {
    load: fill::Filled,
    rss_loaded: node::Memory,
    restarts: Vec<Restart>,
}

struct Restart {
    stop: Duration,
    disk_bytes: u64,
    ready: Duration,
    cpu_ready: Duration,
    rss_ready: node::Memory,
    rss_read: node::Memory,
}

pub async fn run(options: Options) -> anyhow::Result<()> {
    fs::create_dir_all(&options.dir)?;
    let pintle = measure(&options.pintle, &options).await?;
    let etcd = measure(&options.etcd, &options).await;
    let text = render(&options, &pintle, &etcd);
    println!("{text}");
    if let Some(out) = &options.out {
        fs::write(out, &text)?;
    }
    Ok(())
}

/// One after the other: each has the machine for itself.
async fn measure(binary: &Path, options: &Options) -> anyhow::Result<Measured> {
    let mut cluster = Cluster::start(binary, 1, options.base_port, &options.dir).await?;
    eprintln!("{}: loading {} keys below {}", binary.display(), options.fill.keys, cluster.dir().display());
    let load = fill::fill(&fill::connect(&cluster.endpoints(), 4).await?, &options.fill).await?;
    eprintln!("{}: {load}", binary.display());
    let rss_loaded = node::memory(&cluster.pids())?;
    let mut restarts = Vec::new();
    for _ in 0..options.restarts {
        let stop = cluster.stop().await?;
        let disk_bytes = cluster.disk_bytes()?;
        let ready = cluster.launch(READY_WITHIN).await?;
        let (rss_ready, cpu_ready) = (node::memory(&cluster.pids())?, node::cpu_time(&cluster.pids())?);
        check(&cluster, &options.fill).await?;
        let rss_read = node::memory(&cluster.pids())?;
        eprintln!("{}: stopped in {stop:.2?}, ready in {ready:.2?}", binary.display());
        restarts.push(Restart { stop, disk_bytes, ready, cpu_ready, rss_ready, rss_read });
    }
    cluster.stop().await?;
    Ok(Measured { load, rss_loaded, restarts })
}

/// Ready with nothing in it would be quick: every key is counted, and some are read.
async fn check(cluster: &Cluster, fill: &fill::Options) -> anyhow::Result<()> {
    let mut kv = fill::kv(fill::connect(&cluster.endpoints(), 1).await?.remove(0));
    let all = RangeRequest {
        key: fill.prefix.clone().into(),
        range_end: workload::prefix_end(&fill.prefix),
        count_only: true,
        ..Default::default()
    };
    let count = kv.range(all).await?.into_inner().count;
    anyhow::ensure!(count == fill.keys as i64, "{count} keys after the restart, {} put", fill.keys);
    let values = workload::Values::new(fill.value_size);
    for index in (0..fill.keys).step_by((fill.keys / 1000).max(1)) {
        let key = workload::key(&fill.prefix, index);
        let answer = kv.range(RangeRequest { key, ..Default::default() }).await?.into_inner();
        anyhow::ensure!(
            answer.kvs.first().is_some_and(|kv| kv.value == values.of(index)),
            "key {index} lost its value"
        );
    }
    Ok(())
}

/// A line of the table: what it shows, and its value at each restart (or the one value there is).
struct Row {
    name: &'static str,
    values: fn(&Measured) -> Vec<f64>,
}

fn each(measured: &Measured, value: fn(&Restart) -> f64) -> Vec<f64> {
    measured.restarts.iter().map(value).collect()
}

const ROWS: [Row; 13] = [
    Row { name: "load, keys/s", values: |m| vec![m.load.per_second()] },
    Row { name: "first tenth of the load, keys/s", values: |m| vec![m.load.first_tenth] },
    Row { name: "last tenth of the load, keys/s", values: |m| vec![m.load.last_tenth] },
    Row { name: "RSS after the load, MiB", values: |m| vec![mib(m.rss_loaded.rss_bytes)] },
    Row { name: "of it anonymous, MiB", values: |m| vec![mib(m.rss_loaded.anon_bytes)] },
    Row { name: "stop, s", values: |m| each(m, |r| r.stop.as_secs_f64()) },
    Row { name: "disk, MiB", values: |m| each(m, |r| mib(r.disk_bytes)) },
    Row { name: "start to ready, s", values: |m| each(m, |r| r.ready.as_secs_f64()) },
    Row { name: "CPU time until ready, s", values: |m| each(m, |r| r.cpu_ready.as_secs_f64()) },
    Row { name: "RSS when ready, MiB", values: |m| each(m, |r| mib(r.rss_ready.rss_bytes)) },
    Row { name: "of it anonymous, MiB", values: |m| each(m, |r| mib(r.rss_ready.anon_bytes)) },
    Row { name: "RSS after the reads, MiB", values: |m| each(m, |r| mib(r.rss_read.rss_bytes)) },
    Row { name: "of it anonymous, MiB", values: |m| each(m, |r| mib(r.rss_read.anon_bytes)) },
];

/// What etcd refuses is said instead of its figures.
fn render(options: &Options, pintle: &Measured, etcd: &anyhow::Result<Measured>) -> String {
    let fill = &options.fill;
    let mut text = format!(
        "### Restart with {} keys of {} B, one node, {}\n\n{}",
        fill.keys,
        fill.value_size,
        report::today(),
        report::machine(&options.dir)
    );
    text += &format!(
        "- loaded with {} keys a transaction by {} clients; stopped by SIGTERM; the page cache is warm at the restart; \
         ready means `/health` says so; every key counted and 1,000 read afterwards\n\
         - medians of {} restarts, with least and greatest; ratio is Pintle / etcd\n\n",
        fill.batch, fill.clients, options.restarts
    );
    if let Err(refusal) = etcd {
        text += &format!("etcd did not get there: {refusal:#}\n\n");
    }
    text += "| figure | Pintle | etcd | ratio |\n|---|---:|---:|---:|\n";
    for Row { name, values } in &ROWS {
        let Some(ours) = Spread::of(values(pintle)) else { continue };
        let theirs = etcd.as_ref().ok().and_then(|etcd| Spread::of(values(etcd)));
        let ratio = theirs.as_ref().filter(|theirs| theirs.median > 0.0);
        let ratio = ratio.map_or("-".to_string(), |theirs| format!("{:.2}", ours.median / theirs.median));
        text += &format!("| {name} | {} | {} | {ratio} |\n", cell(ours), theirs.map_or("-".to_string(), cell));
    }
    text
}

fn cell(spread: Spread) -> String {
    if spread.min == spread.max {
        return number(spread.median);
    }
    format!("{} ({} to {})", number(spread.median), number(spread.min), number(spread.max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_shows_the_spread_where_there_is_one() {
        assert_eq!(cell(Spread { min: 2.0, median: 2.0, max: 2.0 }), "2.00");
        assert_eq!(cell(Spread { min: 0.5, median: 2.0, max: 30.0 }), "2.00 (0.500 to 30.0)");
    }
}
