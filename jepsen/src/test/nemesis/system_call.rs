//! A system call that goes wrong: the n-th `fdatasync` of a node fails, or is its last.
//!
//! strace attaches to the running node and tampers with the call. Unlike a disk that fails, this leaves the file system
//! sound: whoever tries again after an error will be told that all is well.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures::{FutureExt as _, future::BoxFuture};
use rand::{Rng as _, rngs::StdRng};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};

use super::{Effect, Fault, Nemesis, victims};
use crate::{
    process::die_with_parent,
    test::nodes::{Needs, Nodes},
};

const ATTACH_LIMIT: Duration = Duration::from_secs(20);
/// Under load a node syncs all the time.
const NOTICE_LIMIT: Duration = Duration::from_secs(30);
const CALLS_BEFORE: std::ops::Range<u32> = 1..30;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Error,
    Kill,
}

pub struct SystemCall {
    kind: Kind,
    victims: Vec<usize>,
    tracers: Vec<Child>,
}

impl SystemCall {
    pub fn new(kind: Kind) -> SystemCall {
        SystemCall { kind, victims: Vec::new(), tracers: Vec::new() }
    }
}

impl Nemesis for SystemCall {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Error => "fdatasync-error",
            Kind::Kill => "fdatasync-kill",
        }
    }

    fn needs(&self) -> Needs {
        Needs { strace: true, ..Needs::default() }
    }

    fn strike<'a>(&'a mut self, nodes: &'a mut Nodes, random: &'a mut StdRng) -> BoxFuture<'a, Result<Fault>> {
        async move {
            self.victims = victims::minority(nodes, random).await?;
            let at = Instant::now();
            let call = random.random_range(CALLS_BEFORE);
            for victim in &self.victims {
                nodes.may_end(*victim, &[]);
                let what = match self.kind {
                    Kind::Error => format!("inject=fdatasync:error=EIO:when={call}"),
                    Kind::Kill => format!("inject=fdatasync:signal=KILL:when={call}"),
                };
                self.tracers.push(tamper(nodes.cluster.nodes[*victim].pid()?, &what).await?);
            }
            let verb = if self.kind == Kind::Error { "fails" } else { "is the last of" };
            let description = format!("the next fdatasync but {call} {verb} {}", nodes.names(&self.victims));
            Ok(Fault::new(nodes, &self.victims, at, description))
        }
        .boxed()
    }

    fn heal<'a>(&'a mut self, nodes: &'a mut Nodes, _: &'a mut StdRng) -> BoxFuture<'a, Result<Effect>> {
        async move {
            nodes.await_end(&self.victims, NOTICE_LIMIT).await.context("a system call was to end it")?;
            for mut tracer in self.tracers.drain(..) {
                timeout(ATTACH_LIMIT, tracer.wait()).await.context("strace outlives what it traces")??;
            }
            nodes.start_stopped().await?;
            let description = format!("started {}", nodes.names(&self.victims));
            Ok(Effect::now(description, &[("nodes ended by a system call", self.victims.len() as u64)]))
        }
        .boxed()
    }
}

/// Attaches strace to a process and waits until it has.
async fn tamper(pid: u32, what: &str) -> Result<Child> {
    let mut command = Command::new("strace");
    command
        .args(["-f", "-e", "trace=fdatasync", "-e", what, "-o", "/dev/null", "-p", &pid.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    die_with_parent(&mut command);
    let mut tracer = command.spawn().context("there is no strace: run script/setup")?;
    let stderr = tracer.stderr.take().context("its output is a pipe")?;
    let mut lines = BufReader::new(stderr).lines();
    let first = timeout(ATTACH_LIMIT, lines.next_line()).await.context("strace does not attach")??;
    let first = first.context("strace ended at once")?;
    ensure!(first.contains("attached"), "strace: {first}");
    // Nobody may be held up by what it says later.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Ok(tracer)
}
