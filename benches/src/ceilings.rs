//! What this machine and this stack can do at most: gRPC without a store behind it, RocksDB without anything before it,
//! and the disk. Every workload's share of that is what is left to win.

pub mod rocksdb;

use std::{
    fs::File,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::Args;

use crate::{
    Shape, Times, echo,
    measure::{Measured, Settings, latencies, micros},
    report::{self, number},
    workload::{self, Spec},
};

/// What a put takes in a log besides key and value: a request's fields, the entry's head, a checksum.
const ENTRY_OVERHEAD_BYTES: usize = 64;
pub const BATCH: usize = 100;

#[derive(Args)]
pub struct Options {
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "put:1,put:100,put:1000,get:1000,kube-update:300,list:4,kube-page:4,watch:1000,lease:1000"
    )]
    workloads: Vec<Spec>,
    #[command(flatten)]
    shape: Shape,
    #[command(flatten)]
    times: Times,
    #[arg(long, default_value_t = 29_300)]
    port: u16,
    /// Where the file is made that is appended to.
    #[arg(long, default_value = "target/bench")]
    dir: std::path::PathBuf,
}

pub async fn run(options: Options) -> anyhow::Result<()> {
    std::fs::create_dir_all(&options.dir)?;
    print!("{}", report::machine(&options.dir));
    println!("\n| ceiling | operations/s | p50 ms | p99 ms | CPU us/operation | load CPU us/operation |");
    println!("|---|---:|---:|---:|---:|---:|");
    for spec in options.workloads.iter() {
        let Some(measured) = on_echo(spec, &options.shape, options.port, None, options.times).await? else {
            println!("| {spec} | the echo server has no such answers | | | | |");
            continue;
        };
        println!(
            "| gRPC alone, {spec} | {:.0} | {} | {} | {} | {} |",
            measured.per_second(),
            number(measured.quantile_ms(0.5)),
            number(measured.quantile_ms(0.99)),
            measured.cpu_us_per_operation().map_or("-".to_string(), number),
            measured.own_cpu_us_per_operation().map_or("-".to_string(), number),
        );
    }
    let size = options.shape.value_size;
    for puts in [1, BATCH] {
        let disk = append(&options.dir, size, puts, options.times.duration)?;
        let (p50, p99) = (number(disk.p50_ms), number(disk.p99_ms));
        let name = format!("append and fdatasync, puts of {size} B a sync: {puts}");
        println!("| {name} | {:.0} | {p50} | {p99} | - | - |", disk.puts_per_second);
    }
    let batches = rocksdb::write(&options.dir, size, BATCH, options.times.duration)?;
    println!("| RocksDB, puts of {size} B a batch: {BATCH} | {batches:.0} | - | - | - | - |");
    Ok(())
}

/// Runs a workload against an echo server in a process of its own; `None` if it has no answers for it.
pub async fn on_echo(
    spec: &Spec,
    shape: &Shape,
    port: u16,
    connections: Option<usize>,
    times: Times,
) -> anyhow::Result<Option<Measured>> {
    let Some((value_size, keys)) = spec.kind.echoed(shape) else { return Ok(None) };
    let server = Process::start(port, value_size, keys)?;
    let settings = Settings {
        connections: connections.unwrap_or_else(|| spec.connections(1)),
        endpoints: vec![format!("http://127.0.0.1:{port}")],
        warmup: times.warmup,
        duration: times.duration,
        rate: None,
        pids: vec![server.0.id()],
        shape: shape.clone(),
    };
    Ok(Some(workload::run_unfilled(spec, &settings).await?))
}

/// An echo server, which ends with this value.
struct Process(Child);

impl Process {
    fn start(port: u16, value_size: usize, keys: usize) -> anyhow::Result<Process> {
        let child = Command::new(std::env::current_exe()?)
            .args(["echo", "--port", &port.to_string(), "--value-size", &value_size.to_string()])
            .args(["--keys", &keys.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the echo server")?;
        let mut process = Process(child);
        let output = process.0.stdout.take().context("its output is piped")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        ensure!(line.starts_with(echo::READY), "the echo server did not start on port {port}");
        Ok(process)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing can be done about a failure here; the child is ours and is reaped if it can be.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub struct Appended {
    pub puts_per_second: f64,
    /// Of one write and its sync.
    pub p50_ms: f64,
    pub p99_ms: f64,
}

/// Appends what so many puts take in a log and syncs it, again and again, in a file that has its blocks already.
pub fn append(dir: &Path, value_size: usize, puts: usize, duration: Duration) -> anyhow::Result<Appended> {
    const FILE_BYTES: usize = 64 << 20;
    let entry = workload::value(value_size + ENTRY_OVERHEAD_BYTES);
    let batch = entry.repeat(puts);
    ensure!(batch.len() <= FILE_BYTES, "{puts} puts of {value_size} B are more than a log's file holds");
    let mut file = tempfile::tempfile_in(dir).with_context(|| format!("make a file in {}", dir.display()))?;
    prepare(&mut file, FILE_BYTES)?;
    let mut latency = latencies();
    let (begin, mut at) = (Instant::now(), 0);
    while begin.elapsed() < duration {
        if at + batch.len() > FILE_BYTES {
            at = 0;
        }
        let sent = Instant::now();
        std::os::unix::fs::FileExt::write_all_at(&file, &batch, at as u64)?;
        file.sync_data()?;
        latency.saturating_record(micros(sent.elapsed()).max(1));
        at += batch.len();
    }
    let count = latency.len() * puts as u64;
    let ms = |quantile| latency.value_at_quantile(quantile) as f64 / 1000.0;
    Ok(Appended { puts_per_second: count as f64 / begin.elapsed().as_secs_f64(), p50_ms: ms(0.5), p99_ms: ms(0.99) })
}

fn prepare(file: &mut File, bytes: usize) -> anyhow::Result<()> {
    let zeros = vec![0; 1 << 20];
    for _ in 0..bytes / zeros.len() {
        file.write_all(&zeros)?;
    }
    file.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn appending_counts_puts_not_syncs() {
        let dir = tempfile::tempdir().unwrap();
        let appended = append(dir.path(), 10, 100, Duration::from_millis(50)).unwrap();
        assert!(appended.puts_per_second * appended.p50_ms / 1000.0 > 20.0);
        assert!(append(dir.path(), 1 << 20, 100, Duration::from_millis(1)).is_err());
    }
}
