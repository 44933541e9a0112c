//! One script of etcdctl commands, run against etcd and Pintle side by side.
//!
//! Whatever etcdctl prints, and how it exits, must be the same for both once ids, addresses, sizes and times are taken
//! out. The script is `etcdctl/script.txt`, and `etcdctl/missing.txt` for what Pintle does not have yet.

mod normalise;
mod script;

use std::{
    collections::HashMap,
    fmt::Write as _,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use proto::etcdserverpb::{MemberListRequest, cluster_client::ClusterClient};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::process::{Cluster, Target};
use normalise::Names;
use script::{Ends, Step};

const COMMAND_LIMIT: Duration = Duration::from_secs(15);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// `check perf --load=s` loads for a minute.
const PERF_LIMIT: Duration = Duration::from_secs(120);

#[derive(clap::Args)]
pub struct Arguments {
    /// etcdctl 3.5
    #[arg(long)]
    etcdctl: PathBuf,
    /// The etcd to compare with
    #[arg(long)]
    etcd: PathBuf,
    #[arg(long)]
    pintle: PathBuf,
    /// Members of each cluster
    #[arg(long, default_value_t = 1, value_parser = crate::kill::parse_size)]
    nodes: usize,
    /// Also run `check perf --load=s` on each, which takes a minute each time
    #[arg(long)]
    perf: bool,
    /// Also run what Pintle does not have yet
    #[arg(long)]
    missing: bool,
    /// Print each command, and what etcd answers
    #[arg(long)]
    verbose: bool,
}

pub async fn run(arguments: Arguments) -> Result<()> {
    let mut dir = tempfile::Builder::new().prefix("pintle-etcdctl-").tempdir()?;
    let mut etcd = Side::start("etcd", &arguments.etcd, &arguments, dir.path()).await?;
    let mut pintle = Side::start("pintle", &arguments.pintle, &arguments, dir.path()).await?;
    let outcome = compare(&mut etcd, &mut pintle, &arguments).await;
    if outcome.is_err() {
        dir.disable_cleanup(true);
        eprintln!("{}data and logs are in {}", pintle.cluster.log_tails(), dir.path().display());
    }
    outcome
}

async fn compare(etcd: &mut Side, pintle: &mut Side, arguments: &Arguments) -> Result<()> {
    let mut steps = script::parse(include_str!("etcdctl/script.txt"))?;
    if arguments.missing {
        steps.extend(script::parse(include_str!("etcdctl/missing.txt"))?);
    }
    let mut differing = 0;
    for step in &steps {
        let (expected, actual) = tokio::join!(etcd.run(step), pintle.run(step));
        let command = step.words.join(" ");
        let expected = expected.with_context(|| format!("etcd: {command}"))?;
        if arguments.verbose {
            println!("$ {command}\n{}", expected.join("\n"));
        }
        let difference = match actual {
            Ok(actual) => difference(&expected, &actual),
            Err(error) => Some(format!("  etcd   | {}\n  pintle | {error:#}\n", expected.join("\n         | "))),
        };
        if let Some(difference) = difference {
            differing += 1;
            println!("$ {command}\n{difference}");
        }
    }
    if arguments.perf {
        for side in [&*etcd, pintle] {
            side.check_perf().await?;
        }
    }
    println!("{} commands, {differing} with another outcome", steps.len());
    ensure!(differing == 0, "{differing} of {} commands differ", steps.len());
    Ok(())
}

/// What the members of a cluster are called, as soon as all have told it.
async fn names(cluster: &Cluster) -> Result<Names> {
    let members = loop {
        let mut client = ClusterClient::new(cluster.nodes[0].channel());
        let list = client.member_list(MemberListRequest { linearizable: true }).await?.into_inner();
        if list.members.iter().all(|member| !member.client_ur_ls.is_empty()) {
            break list;
        }
        sleep(POLL_INTERVAL).await;
    };
    let mut names = Names::new(cluster.nodes.len() > 1);
    names.add_id(members.header.context("an answer without a header")?.cluster_id, "cluster");
    for member in members.members {
        names.add_id(member.id, &format!("member {}", member.name));
        for url in &member.client_ur_ls {
            names.add_address(url, &format!("client {}", member.name));
        }
        for url in &member.peer_ur_ls {
            names.add_address(url, &format!("peer {}", member.name));
        }
    }
    Ok(names)
}

fn difference(expected: &[String], actual: &[String]) -> Option<String> {
    let mut difference = String::new();
    for line in 0..expected.len().max(actual.len()) {
        let (expected, actual) = (expected.get(line), actual.get(line));
        if expected != actual {
            for (side, text) in [("etcd  ", expected), ("pintle", actual)] {
                let text = text.map_or("(nothing)", String::as_str);
                writeln!(difference, "  {side} | {text}").expect("a string takes all that is written");
            }
        }
    }
    (!difference.is_empty()).then_some(difference)
}

/// One of the two clusters.
struct Side {
    etcdctl: PathBuf,
    cluster: Cluster,
    names: Names,
    kept: HashMap<String, String>,
}

impl Side {
    async fn start(label: &str, binary: &Path, arguments: &Arguments, dir: &Path) -> Result<Side> {
        let dir = dir.join(label);
        std::fs::create_dir(&dir)?;
        let cluster = Cluster::start(&Target::new(binary)?, arguments.nodes, &dir, &[]).await?;
        let names =
            timeout(COMMAND_LIMIT, names(&cluster)).await.context("not all members made themselves known")??;
        let etcdctl = arguments.etcdctl.canonicalize().context("no etcdctl")?;
        Ok(Side { etcdctl, cluster, names, kept: HashMap::new() })
    }

    fn command(&self, words: &[String]) -> Command {
        let mut command = Command::new(&self.etcdctl);
        command
            .args(script::fill_in(words, &self.kept))
            .env("ETCDCTL_ENDPOINTS", self.cluster.endpoints().join(","))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs a command and gives its outcome: what it printed, what it complained of, how it exited.
    async fn run(&mut self, step: &Step) -> Result<Vec<String>> {
        let mut child = self.command(&step.words).spawn().context("cannot run etcdctl")?;
        let mut input = child.stdin.take().expect("the input is piped");
        // A command that has ended meanwhile wanted no input.
        let _ = input.write_all(step.input.as_bytes()).await;
        drop(input);
        let outcome = async {
            match &step.ends {
                None => anyhow::Ok((child.wait_with_output().await?, true)),
                Some(ends) => Ok((self.end_after(child, ends).await?, false)),
            }
        };
        let (output, by_itself): (Output, bool) =
            timeout(COMMAND_LIMIT, outcome).await.with_context(|| format!("no end within {COMMAND_LIMIT:?}"))??;

        if let Some((name, word)) = &step.keep {
            let text = String::from_utf8_lossy(&output.stdout);
            let value = text.split_whitespace().nth(word - 1).with_context(|| format!("no word {word} in {text:?}"))?;
            if let (Ok(id), true) = (u64::from_str_radix(value, 16), value.len() >= normalise::ID_DIGITS_MIN) {
                self.names.add_id(id, name);
            }
            self.kept.insert(name.clone(), value.to_owned());
        }
        let mut lines = normalise::output(&step.words, &output.stdout, &self.names)?;
        lines.extend(normalise::errors(&output.stderr, &self.names).into_iter().map(|line| format!("error: {line}")));
        if by_itself && !output.status.success() {
            lines.push(output.status.to_string());
        }
        Ok(lines)
    }

    /// Reads so many lines, then ends the command. What it logs is not compared: it depends on how it is ended.
    async fn end_after(&self, mut child: Child, ends: &Ends) -> Result<Output> {
        let mut lines = BufReader::new(child.stdout.take().expect("the output is piped")).lines();
        if !ends.beside.is_empty() {
            let beside = self.command(&ends.beside).output().await?;
            ensure!(beside.status.success(), "{}: {}", ends.beside.join(" "), String::from_utf8_lossy(&beside.stderr));
        }
        let mut stdout = Vec::new();
        for _ in 0..ends.after_lines {
            match lines.next_line().await? {
                Some(line) => stdout.extend_from_slice(format!("{line}\n").as_bytes()),
                None => {
                    let mut stderr = String::new();
                    if let Some(mut pipe) = child.stderr.take() {
                        pipe.read_to_string(&mut stderr).await?;
                    }
                    bail!("it ended by itself after {:?}: {stderr}", String::from_utf8_lossy(&stdout));
                }
            }
        }
        child.kill().await?;
        Ok(Output { status: child.wait().await?, stdout, stderr: Vec::new() })
    }

    /// etcdctl's own judgement of a small load.
    async fn check_perf(&self) -> Result<()> {
        let words = ["check", "perf", "--load=s"].map(str::to_owned);
        let output = timeout(PERF_LIMIT, self.command(&words).output()).await.context("check perf does not end")??;
        let text = String::from_utf8_lossy(&output.stdout);
        for line in text.lines().filter(|line| line.starts_with("PASS") || line.starts_with("FAIL")) {
            println!("{}: {line}", self.cluster.nodes[0].endpoint());
        }
        ensure!(output.status.success(), "check perf: {}\n{text}", output.status);
        Ok(())
    }
}
