//! check perf, check datascale: a load, and whether the cluster bears it. Source: etcd, `etcdctl/ctlv3/command/check.go`.

use std::time::Duration;

use clap::{Args, Subcommand};
use client::{Client, Delete, Error, Get, Put};
use indicatif::ProgressBar;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use crate::{
    Context,
    failure::{self, Failure},
    print::print_line,
};

const PERF_DURATION: Duration = Duration::from_secs(60);
/// How often new writes are given out.
const TICK: Duration = Duration::from_millis(2);
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(30);
const SLOWEST_MAX: f64 = 0.5;
const DEVIATION_MAX: f64 = 0.1;
const RESIDENT: &str = "process_resident_memory_bytes";

#[derive(Subcommand)]
pub enum Check {
    /// Whether the cluster bears so many writes a second, for a minute.
    Perf(Load),
    /// How much memory so many keys take on the first endpoint.
    Datascale(Load),
}

#[derive(Args)]
pub struct Load {
    #[arg(hide = true)]
    args: Vec<String>,
    /// s, m, l, xl.
    #[arg(long, default_value = "s")]
    load: String,
    /// What the keys begin with; there must be none yet.
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: String,
    /// Compact afterwards.
    #[arg(long)]
    auto_compact: bool,
    /// Defragment afterwards.
    #[arg(long)]
    auto_defrag: bool,
}

/// How much is written by how many.
struct Model {
    /// Writes a second, or writes.
    limit: u32,
    clients: usize,
}

impl Load {
    fn model(&self, limits: [u32; 4]) -> Result<Model, Failure> {
        let (size, clients) = match self.load.as_str() {
            "s" | "small" => (0, 50),
            "m" | "medium" => (1, 200),
            "l" | "large" => (2, 500),
            "xl" | "xLarge" => (3, 1000),
            other => return Err(failure::bad_feature(format!("unknown load option {other}"))),
        };
        Ok(Model { limit: limits[size], clients })
    }

    fn prefix(&self, default: &str) -> String {
        if self.prefix.is_empty() { default.to_string() } else { self.prefix.clone() }
    }

    /// Gives space back, where that is wanted.
    async fn tidy(&self, client: &Client, revision: i64) -> anyhow::Result<()> {
        let client = client.with_request_timeout(CLEANUP_TIMEOUT);
        if self.auto_compact {
            print_line(&format!("Compacting with revision {revision}"))?;
            client.compact(revision, true).await?;
            print_line(&format!("Compacted with revision {revision}"))?;
        }
        if self.auto_defrag {
            for endpoint in client.endpoints() {
                print_line(&format!("Defragmenting \"{endpoint}\""))?;
                client.defragment(&endpoint).await?;
                print_line(&format!("Defragmented \"{endpoint}\""))?;
            }
        }
        Ok(())
    }
}

impl Check {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        match self {
            Check::Perf(load) => perf(context, load).await,
            Check::Datascale(load) => datascale(context, load).await,
        }
    }
}

async fn must_be_empty(client: &Client, prefix: &str) -> anyhow::Result<()> {
    let answer = client.get(Get::prefix(prefix.to_string()).limit(1)).await?;
    match answer.kvs.is_empty() {
        true => Ok(()),
        false => {
            let text = format!("prefix \"{prefix}\" has keys. Delete with 'pintlectl del --prefix {prefix}' first");
            Err(failure::invalid_input(text).into())
        }
    }
}

/// How writes went.
#[derive(Default)]
struct Report {
    /// Seconds that each successful one took.
    took: Vec<f64>,
    errors: std::collections::BTreeMap<String, usize>,
}

impl Report {
    fn slowest(&self) -> f64 {
        self.took.iter().copied().fold(0.0, f64::max)
    }

    fn deviation(&self) -> f64 {
        let count = self.took.len().max(1) as f64;
        let mean = self.took.iter().sum::<f64>() / count;
        (self.took.iter().map(|took| (took - mean).powi(2)).sum::<f64>() / count).sqrt()
    }

    fn print_errors(&self) -> anyhow::Result<()> {
        self.errors.iter().try_for_each(|(error, count)| print_line(&format!("FAIL: ERROR({error}) -> {count}")))
    }
}

/// A random key of this length after the prefix, and a value of zeros.
fn random_put(prefix: &str, key_bytes: usize, value_bytes: usize) -> Put {
    let mut key = prefix.as_bytes().to_vec();
    key.extend(rand::random::<[u8; 9]>());
    key.resize(prefix.len() + key_bytes, 0);
    Put::new(key, vec![0; value_bytes])
}

/// Clients with connections of their own, which write what they are given until there is no more.
struct Writers {
    puts: Vec<mpsc::Sender<Put>>,
    next: usize,
    tasks: JoinSet<Report>,
}

impl Writers {
    fn start(client: &Client, count: usize, bar: &ProgressBar) -> Result<Writers, Error> {
        let mut writers = Writers { puts: Vec::new(), next: 0, tasks: JoinSet::new() };
        for _ in 0..count {
            let client = Client::with_options(client.endpoints(), client.options().clone())?;
            let (sender, puts) = mpsc::channel(1);
            writers.puts.push(sender);
            writers.tasks.spawn(write(client, puts, bar.clone()));
        }
        Ok(writers)
    }

    /// Gives a put to the next writer; waits while that one has enough to do.
    async fn give(&mut self, put: Put) {
        self.next = (self.next + 1) % self.puts.len();
        self.puts[self.next].send(put).await.expect("a writer reads until there is no more");
    }

    async fn end(self) -> Report {
        drop(self.puts);
        self.tasks.join_all().await.into_iter().fold(Report::default(), |mut all, report| {
            all.took.extend(report.took);
            report.errors.into_iter().for_each(|(error, count)| *all.errors.entry(error).or_default() += count);
            all
        })
    }
}

async fn write(client: Client, mut puts: mpsc::Receiver<Put>, bar: ProgressBar) -> Report {
    let mut report = Report::default();
    while let Some(put) = puts.recv().await {
        let begun = Instant::now();
        match client.put(put).await {
            Ok(_) => report.took.push(begun.elapsed().as_secs_f64()),
            Err(error) => *report.errors.entry(failure::describe(&error)).or_default() += 1,
        }
        bar.inc(1);
    }
    report
}

async fn perf(context: &Context, load: Load) -> anyhow::Result<()> {
    let model = load.model([150, 1000, 8000, 15000])?;
    let prefix = load.prefix("/etcdctl-check-perf/");
    let client = &context.client;
    must_be_empty(client, &prefix).await?;
    let bar = crate::progress::bar(u64::from(model.limit) * PERF_DURATION.as_secs(), "writes");
    let mut writers = Writers::start(client, model.clients, &bar)?;
    let begun = Instant::now();
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut given = 0;
    // What could not be given in time is not made up for: the writers are too slow then, and that is the result.
    let given_all = timeout(PERF_DURATION, async {
        loop {
            tick.tick().await;
            let due = (begun.elapsed().as_secs_f64() * f64::from(model.limit)) as u64;
            while given < due {
                writers.give(random_put(&prefix, 256, 1024)).await;
                given += 1;
            }
        }
    });
    let Err(_elapsed) = given_all.await;
    let report = writers.end().await;
    let seconds = begun.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let deleted = client.with_request_timeout(CLEANUP_TIMEOUT).delete(Delete::prefix(prefix)).await;
    match deleted {
        Ok(answer) => load.tidy(client, answer.header.map_or(0, |header| header.revision)).await?,
        Err(error) => {
            let error = failure::describe(&error);
            print_line(&format!("FAIL: Cleanup failed during key deletion: ERROR({error})"))?;
        }
    }
    judge(&report, report.took.len() as f64 / seconds, f64::from(model.limit))
}

fn judge(report: &Report, rate: f64, wanted: f64) -> anyhow::Result<()> {
    let mut good = report.errors.is_empty();
    if !good {
        print_line("FAIL: too many errors")?;
        report.print_errors()?;
    }
    let mut verdict = |is_good: bool, pass: String, fail: String| {
        good &= is_good;
        print_line(if is_good { &pass } else { &fail })
    };
    let shown = rate as u64 + 1;
    verdict(
        rate / wanted > 0.9,
        format!("PASS: Throughput is {shown} writes/s"),
        format!("FAIL: Throughput too low: {shown} writes/s"),
    )?;
    let slowest = report.slowest();
    verdict(
        slowest <= SLOWEST_MAX,
        format!("PASS: Slowest request took {slowest:.6}s"),
        format!("Slowest request took too long: {slowest:.6}s"),
    )?;
    let deviation = report.deviation();
    verdict(
        deviation <= DEVIATION_MAX,
        format!("PASS: Stddev is {deviation:.6}s"),
        format!("Stddev too high: {deviation:.6}s"),
    )?;
    print_line(if good { "PASS" } else { "FAIL" })?;
    if good { Ok(()) } else { Err(Failure::silent(failure::ERROR).into()) }
}

async fn datascale(context: &Context, load: Load) -> anyhow::Result<()> {
    let model = load.model([10_000, 100_000, 1_000_000, 3_000_000])?;
    let prefix = load.prefix("/etcdctl-check-datascale/");
    let client = &context.client;
    must_be_empty(client, &prefix).await?;
    let endpoint = client.endpoints().swap_remove(0);
    let before = memory(&endpoint, "before").await?;
    print_line(&format!(
        "Start data scale check for work load [{} key-value pairs, 1024 bytes per key-value, {} concurrent clients].",
        model.limit, model.clients
    ))?;
    let bar = crate::progress::bar(u64::from(model.limit), "keys");
    let mut writers = Writers::start(client, model.clients, &bar)?;
    for _ in 0..model.limit {
        writers.give(random_put(&prefix, 512, 512)).await;
    }
    let report = writers.end().await;
    bar.finish_and_clear();
    let after = memory(&endpoint, "after").await;
    let deleted = client.with_request_timeout(CLEANUP_TIMEOUT).delete(Delete::prefix(prefix)).await?;
    load.tidy(client, deleted.header.map_or(0, |header| header.revision)).await?;
    let used = (after? - before) / (1024.0 * 1024.0);
    if !report.errors.is_empty() {
        print_line("FAIL: too many errors")?;
        report.print_errors()?;
        return Err(Failure::silent(failure::ERROR).into());
    }
    print_line(&format!("PASS: Approximate system memory used : {used:.2} MB."))
}

async fn memory(endpoint: &str, when: &str) -> anyhow::Result<f64> {
    match resident_bytes(endpoint).await {
        Ok(bytes) => Ok(bytes),
        Err(error) => {
            print_line(&format!("fetch error: {error:#}"))?;
            print_line(&format!("FAIL: Could not read {RESIDENT} {when} the put operations."))?;
            Err(Failure::silent(failure::ERROR).into())
        }
    }
}

/// What the server's own metrics say, over plain HTTP.
async fn resident_bytes(endpoint: &str) -> anyhow::Result<f64> {
    anyhow::ensure!(!endpoint.starts_with("https://"), "metrics are read without TLS only: give an http:// endpoint");
    let address = endpoint.strip_prefix("http://").unwrap_or(endpoint);
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let line = answer.lines().find_map(|line| line.strip_prefix(RESIDENT)?.strip_prefix(' '));
    Ok(line.ok_or_else(|| anyhow::anyhow!("could not find: {RESIDENT}"))?.trim().parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_knows_the_slowest_and_how_far_they_are_apart() {
        let report = Report { took: vec![0.1, 0.3], ..Report::default() };
        assert!((report.slowest() - 0.3).abs() < 1e-9 && (report.deviation() - 0.1).abs() < 1e-9);
        assert!(judge(&report, 150.0, 150.0).is_ok());
        assert!(judge(&report, 100.0, 150.0).is_err());
        let slow = Report { took: vec![0.6], ..Report::default() };
        assert!(judge(&slow, 150.0, 150.0).is_err());
    }
}
