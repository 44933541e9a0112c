//! What the log's files are synced after, and before what, as the kernel is asked for it.
//!
//! A power cut shows a sync that is missing only where the file system has not written by itself meanwhile. strace sees
//! every call: between two writes to a segment of the log there is a sync of it, and a segment is written to only after
//! the directory that names it was synced. (Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014.)

use std::{fs, path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};

use super::{Setup, client::Client, reads::elsewhere};
use crate::{failover, process::Node};

/// More than a segment holds.
const PUTS: usize = 90;
const PUT_BYTES: usize = 1 << 20;
const WRITERS: usize = 8;
const STRACE_LIMIT: Duration = Duration::from_secs(20);

pub async fn sync_order(setup: &Setup<'_>) -> Result<()> {
    let mut cluster = setup.cluster(3, &[]).await?;
    let leader = failover::leader(&cluster.nodes).await?;
    let follower = (leader + 1) % 3;
    let traces = setup.dir.join("traces");
    fs::create_dir(&traces)?;
    let strace = attach(&cluster.nodes[follower], &traces).await?;
    let client = Client::of(&cluster.nodes[follower]);
    let value = Bytes::from(vec![7; PUT_BYTES]);
    let puts = stream::iter(0..PUTS).map(|_| client.put("k", value.clone()));
    puts.buffer_unordered(WRITERS).try_for_each(|_| async { Ok(()) }).await?;
    // A vote, given or asked for.
    cluster.nodes[leader].kill()?;
    cluster.nodes[leader].exited().await?;
    elsewhere(&cluster, leader, async |client| Ok(client.put("k", "after").await?)).await?;
    detach(strace).await?;

    let mut seen = Seen::default();
    for entry in fs::read_dir(&traces)? {
        // Each thread's calls are in a file of their own, in order.
        let mut order = Order::default();
        for line in fs::read_to_string(entry?.path())?.lines() {
            order.follow(line, &mut seen)?;
        }
    }
    ensure!(seen.writes > 10 && seen.names > 0, "too little was seen of the log: {seen:?}");
    Ok(())
}

async fn attach(node: &Node, traces: &Path) -> Result<Child> {
    let mut strace = Command::new("strace")
        .args(["-ff", "-y", "-s", "0", "-e", "trace=pwrite64,fdatasync,fsync,rename", "-o"])
        .arg(traces.join("thread"))
        .args(["-p", &node.pid()?.to_string()])
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .context("this needs strace")?;
    let mut lines = BufReader::new(strace.stderr.take().context("strace's output is piped")?).lines();
    let attached = timeout(STRACE_LIMIT, lines.next_line()).await.context("strace does not attach")??;
    ensure!(attached.as_ref().is_some_and(|line| line.contains("attached")), "strace says {attached:?}");
    // Read to the end, so that strace never waits for a reader.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Ok(strace)
}

async fn detach(mut strace: Child) -> Result<()> {
    let pid = strace.id().context("strace has ended by itself")?;
    // SAFETY: plain system call. strace has not been waited for, so the id cannot belong to another process.
    ensure!(unsafe { libc::kill(pid as libc::pid_t, libc::SIGINT) } == 0, "strace cannot be stopped");
    timeout(STRACE_LIMIT, strace.wait()).await.context("strace does not end")??;
    Ok(())
}

/// How much there was to check.
#[derive(Debug, Default)]
struct Seen {
    writes: u64,
    names: u64,
}

/// What one thread has still to sync.
#[derive(Default)]
struct Order {
    /// The segment that was written to.
    written: Option<String>,
    /// The segment whose name its directory does not hold for sure.
    named: Option<String>,
}

impl Order {
    fn follow(&mut self, line: &str, seen: &mut Seen) -> Result<()> {
        let Some((call, rest)) = line.split_once('(') else { return Ok(()) };
        let file = || rest.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map_or("", |(path, _)| path);
        match call {
            "pwrite64" if file().ends_with(".log") => {
                seen.writes += 1;
                ensure!(self.written.is_none(), "{} was written to twice without a sync in between", file());
                ensure!(self.named.as_deref() != Some(file()), "{} was written to before its name was synced", file());
                self.written = Some(file().to_owned());
            }
            "fdatasync" if self.written.as_deref() == Some(file()) => self.written = None,
            "fsync"
                if self.named.as_deref().is_some_and(|named| Path::new(named).parent() == Some(Path::new(file()))) =>
            {
                self.named = None;
            }
            "rename" => {
                let to = rest.split('"').nth(3).unwrap_or_default();
                if to.ends_with(".log") {
                    seen.names += 1;
                    self.named = Some(to.to_owned());
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RENAME: &str = r#"rename("/d/wal/new", "/d/wal/2.log") = 0"#;
    const WRITE: &str = r#"pwrite64(9</d/wal/2.log>, ""..., 100, 0) = 100"#;

    fn follow(lines: &[&str]) -> Result<()> {
        let mut order = Order::default();
        lines.iter().try_for_each(|line| order.follow(line, &mut Seen::default()))
    }

    #[test]
    fn synced_writes_pass() {
        let sync = "fdatasync(9</d/wal/2.log>) = 0";
        follow(&[RENAME, "fsync(5</d/wal>) = 0", WRITE, sync, WRITE, sync]).unwrap();
    }

    #[test]
    fn a_write_that_is_not_synced_is_found() {
        assert!(follow(&[WRITE, "fdatasync(9</d/wal/1.log>) = 0", WRITE]).is_err());
    }

    #[test]
    fn a_name_that_is_not_synced_is_found() {
        assert!(follow(&[RENAME, "fsync(5</d/store>) = 0", WRITE]).is_err());
    }
}
