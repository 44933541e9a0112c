//! One script of etcdctl commands, run against etcd and Pintle side by side.
//!
//! Whatever etcdctl prints, and how it exits, must be the same for both once ids, addresses, sizes and times are taken
//! out. The script is `etcdctl/script.txt`.

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
use proto::etcdserverpb::{
    MemberListRequest, StatusRequest, cluster_client::ClusterClient, maintenance_client::MaintenanceClient,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::{
    failover,
    process::{Cluster, Target},
};
use normalise::Names;
use script::{Ends, Step};

const COMMAND_LIMIT: Duration = Duration::from_secs(15);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
/// `check perf --load=s` loads for a minute.
const PERF_LIMIT: Duration = Duration::from_secs(120);

#[derive(clap::Args)]
pub struct Arguments {
    /// etcdctl 3.5, with etcdutl beside it
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
    /// Also run `check perf --load=s` and `check datascale --load=s` on each, which takes more than a minute each time
    #[arg(long)]
    perf: bool,
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
    let steps = script::parse(include_str!("etcdctl/script.txt"))?;
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
    /// What commands have kept, and without that: a folder for files, a client URL, the id of a member that does not
    /// lead.
    kept: HashMap<String, String>,
}

impl Side {
    async fn start(label: &str, binary: &Path, arguments: &Arguments, dir: &Path) -> Result<Side> {
        let dir = dir.join(label);
        std::fs::create_dir(&dir)?;
        let cluster = Cluster::start(&Target::new(binary)?, arguments.nodes, &dir, &[]).await?;
        let mut names =
            timeout(COMMAND_LIMIT, names(&cluster)).await.context("not all members made themselves known")??;
        let etcdctl = arguments.etcdctl.canonicalize().context("no etcdctl")?;
        let dir = dir.to_string_lossy().into_owned();
        names.add_address(&dir, "dir");
        let kept = HashMap::from([("dir".to_owned(), dir), ("endpoint".to_owned(), cluster.nodes[0].endpoint())]);
        Ok(Side { etcdctl, cluster, names, kept })
    }

    /// Finds out which member does not lead now.
    async fn choose_follower(&mut self) -> Result<()> {
        let leader = failover::leader(&self.cluster.nodes).await?;
        let follower = &self.cluster.nodes[(leader + 1) % self.cluster.nodes.len()];
        let status = MaintenanceClient::new(follower.channel()).status(StatusRequest {}).await?.into_inner();
        let id = status.header.context("an answer without a header")?.member_id;
        self.kept.insert("follower".to_owned(), format!("{id:x}"));
        Ok(())
    }

    fn command(&self, words: &[String]) -> Command {
        let mut command = self.program(&self.etcdctl, words);
        // etcdctl refuses to be told twice.
        if !words.iter().any(|word| word.starts_with("--endpoints=")) {
            command.env("ETCDCTL_ENDPOINTS", self.cluster.endpoints().join(","));
        }
        command
    }

    /// A command on files.
    fn offline_command(&self, words: &[String]) -> Command {
        self.program(&self.etcdctl.with_file_name("etcdutl"), words)
    }

    fn program(&self, program: &Path, words: &[String]) -> Command {
        let mut command = Command::new(program);
        command
            .args(script::fill_in(words, &self.kept))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs a command and gives its outcome: what it printed, what it complained of, how it exited.
    async fn run(&mut self, step: &Step) -> Result<Vec<String>> {
        if step.words.iter().any(|word| word.contains("{follower}")) {
            self.choose_follower().await?;
        }
        let mut command = match step.offline {
            true => self.offline_command(&step.words),
            false => self.command(&step.words),
        };
        let mut child = command.spawn().context("cannot run etcdctl")?;
        let mut input = child.stdin.take().expect("the input is piped");
        // A command that has ended meanwhile wanted no input.
        let _ = input.write_all(step.input.as_bytes()).await;
        drop(input);
        let outcome = async {
            match &step.ends {
                None => anyhow::Ok((child.wait_with_output().await?, true)),
                Some(Ends::AfterLines { lines, beside }) => Ok((self.end_after(child, *lines, beside).await?, false)),
                Some(Ends::WhenPrinted(beside)) => Ok((self.end_when_printed(child, beside).await?, false)),
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
        lines.extend(
            normalise::errors(&step.words, &output.stderr, &self.names)
                .into_iter()
                .map(|line| format!("error: {line}")),
        );
        if by_itself && !output.status.success() {
            lines.push(output.status.to_string());
        }
        Ok(lines)
    }

    /// Reads so many lines, then ends the command. What it logs is not compared: it depends on how it is ended.
    async fn end_after(&self, mut child: Child, after: usize, beside: &[String]) -> Result<Output> {
        let mut lines = BufReader::new(child.stdout.take().expect("the output is piped")).lines();
        if !beside.is_empty() {
            let output = self.command(beside).output().await?;
            ensure!(output.status.success(), "{}: {}", beside.join(" "), String::from_utf8_lossy(&output.stderr));
        }
        let mut stdout = Vec::new();
        for _ in 0..after {
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

    /// Runs a command beside until it prints something, then ends the first. Gives what the one beside printed.
    async fn end_when_printed(&self, mut child: Child, beside: &[String]) -> Result<Output> {
        loop {
            let output = self.command(beside).output().await?;
            if !output.stdout.is_empty() {
                child.kill().await?;
                return Ok(Output { stderr: Vec::new(), ..output });
            }
            if let Some(status) = child.try_wait()? {
                let stderr = child.wait_with_output().await?.stderr;
                bail!("it ended by itself with {status}: {}", String::from_utf8_lossy(&stderr));
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// etcdctl's own judgement of a small load.
    async fn check_perf(&self) -> Result<()> {
        for check in ["perf", "datascale"] {
            let words = ["check", check, "--load=s"].map(str::to_owned);
            let output =
                timeout(PERF_LIMIT, self.command(&words).output()).await.context("the check does not end")??;
            let text = String::from_utf8_lossy(&output.stdout);
            for line in text.lines().filter(|line| line.starts_with("PASS") || line.starts_with("FAIL")) {
                println!("{}: {line}", self.cluster.nodes[0].endpoint());
            }
            ensure!(output.status.success(), "check {check}: {}\n{text}", output.status);
        }
        Ok(())
    }
}
