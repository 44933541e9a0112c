//! Clients that ask too much, or take too little, and what a well-behaved client notices of them.
//!
//! A single member is flooded in one way after the other. All the while one client puts a small key and asks for it,
//! again and again; its latencies and the member's memory are the result. A flood fails the run when the member ends,
//! a call of the well-behaved client fails, or the member's memory goes beyond `--megabytes-max`.

mod cases;
mod observe;

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::process::{Node, Target};
use cases::Case;
use observe::Observer;

#[derive(clap::Args)]
pub struct Arguments {
    /// The server to run: Pintle, or etcd to compare with
    #[arg(long)]
    binary: PathBuf,
    /// Only the floods whose name contains this
    #[arg(long)]
    only: Option<String>,
    /// Divides how many connections, watches and requests there are
    #[arg(long, default_value_t = 1)]
    smaller: usize,
    /// Memory of the member, in MiB, that no flood may push it beyond
    #[arg(long, default_value_t = 4096)]
    megabytes_max: u64,
}

pub async fn run(arguments: Arguments) -> Result<()> {
    let target = Target::new(&arguments.binary)?;
    println!(
        "{:<24} {:>9} {:>9} {:>9}  {:>8} {:>8} {:>8}  notes",
        "flood", "MiB", "MiB peak", "MiB after", "p50 ms", "p99 ms", "max ms"
    );
    let mut failures = Vec::new();
    for case in Case::ALL {
        if arguments.only.as_ref().is_some_and(|only| !case.name().contains(only.as_str())) {
            continue;
        }
        // Each begins with a member of its own, so that memory is compared with that of a fresh one.
        let dir = tempfile::Builder::new().prefix("pintle-flood-").tempdir()?;
        let mut node = Node::single(&target, &dir.path().join("data"), &[])?;
        node.start().await?;
        case.prepare(&node).await?;
        let before = observe::resident_bytes(node.pid()?)?;
        let observer = Observer::start(node.endpoint(), node.pid()?);
        let flooded = case.flood(&node, arguments.smaller.max(1)).await;
        let seen = observer.finish().await?;
        ensure!(!node.has_exited()?, "{}: the member has ended\n{}", case.name(), node.log_tail());
        let after = observe::resident_bytes(node.pid()?)?;
        let mib = |bytes: u64| bytes >> 20;
        println!(
            "{:<24} {:>9} {:>9} {:>9}  {:>8.1} {:>8.1} {:>8.1}  {}",
            case.name(),
            mib(before),
            mib(seen.bytes_peak),
            mib(after),
            seen.latency(0.5),
            seen.latency(0.99),
            seen.latency(1.0),
            flooded?.note(seen.bytes_peak.saturating_sub(before)),
        );
        if let Some(failure) = seen.failures.first() {
            failures.push(format!("{}: a well-behaved client failed: {failure}", case.name()));
        }
        if mib(seen.bytes_peak) > arguments.megabytes_max {
            failures.push(format!("{}: {} MiB of memory", case.name(), mib(seen.bytes_peak)));
        }
        node.kill()?;
        node.exited().await?;
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}
