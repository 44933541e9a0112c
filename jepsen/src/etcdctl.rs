//! One script of etcdctl commands, run against etcd and Pintle side by side.
//!
//! Whatever etcdctl prints, and how it exits, must be the same for both once ids, addresses, sizes and times are taken
//! out. The script is `etcdctl/script.txt`.
//!
//! With `--pintlectl`, pintlectl runs it in etcdctl's place, against etcd and against Pintle, and must print what etcdctl
//! prints for etcd. What only reads is asked of one etcd by both, too, and then every byte counts.

mod normalise;
mod same;
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
    /// Compare pintlectl with etcdctl
    #[arg(long)]
    pintlectl: Option<PathBuf>,
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
    let (etcd, pintle, etcdctl) = (&arguments.etcd, &arguments.pintle, &arguments.etcdctl);
    let compared = match &arguments.pintlectl {
        None => vec![("pintle", pintle, etcdctl)],
        Some(pintlectl) => vec![("etcd by pintlectl", etcd, pintlectl), ("pintle by pintlectl", pintle, pintlectl)],
    };
    let mut reference = Side::start("etcd", etcd, etcdctl, &arguments, dir.path()).await?;
    let mut sides = Vec::new();
    for (label, server, control) in compared {
        sides.push(Side::start(label, server, control, &arguments, dir.path()).await?);
    }
    let outcome = compare(&mut reference, &mut sides, &arguments).await;
    if outcome.is_err() {
        dir.disable_cleanup(true);
        let logs: String = sides.iter().map(|side| side.cluster.log_tails()).collect();
        eprintln!("{logs}data and logs are in {}", dir.path().display());
    }
    outcome
}

async fn compare(reference: &mut Side, sides: &mut [Side], arguments: &Arguments) -> Result<()> {
    let mut steps = script::parse(include_str!("etcdctl/script.txt"))?;
    if arguments.pintlectl.is_some() {
        steps.retain(|step| !step.etcdctl_alone);
    }
    let mut differing = 0;
    for step in &steps {
        let others = futures::future::join_all(sides.iter_mut().map(|side| side.run(step)));
        let (expected, others) = tokio::join!(reference.run(step), others);
        let command = step.words.join(" ");
        let expected = expected.with_context(|| format!("etcd: {command}"))?;
        if arguments.verbose {
            println!("$ {command}\n{}", expected.join("\n"));
        }
        let mut differences = String::new();
        for (side, actual) in sides.iter().zip(others) {
            let actual = actual.unwrap_or_else(|error| vec![format!("{error:#}")]);
            differences += &difference(&side.label, &expected, &actual);
        }
        if let Some(pintlectl) = arguments.pintlectl.as_ref().filter(|_| same::only_reads(step)) {
            differences += &same::compare(reference, pintlectl, step).await?;
        }
        if !differences.is_empty() {
            differing += 1;
            println!("$ {command}\n{differences}");
        }
    }
    if arguments.perf {
        for side in std::iter::once(&*reference).chain(&*sides) {
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

/// Lines that are not those of etcd.
fn difference(label: &str, expected: &[String], actual: &[String]) -> String {
    let mut difference = String::new();
    for line in 0..expected.len().max(actual.len()) {
        let (expected, actual) = (expected.get(line), actual.get(line));
        if expected != actual {
            for (side, text) in [("etcd", expected), (label, actual)] {
                let text = text.map_or("(nothing)", String::as_str);
                writeln!(difference, "  {side:20} | {text}").expect("a string takes all that is written");
            }
        }
    }
    difference
}

/// One of the clusters, and the program that is asked to do things with it.
struct Side {
    label: String,
    control: PathBuf,
    etcdutl: PathBuf,
    /// Whether the program is another one than etcdctl, or is compared with one.
    among_programs: bool,
    cluster: Cluster,
    names: Names,
    /// What commands have kept, and without that: a folder for files, a client URL, the id of a member that does not
    /// lead.
    kept: HashMap<String, String>,
}

impl Side {
    async fn start(label: &str, binary: &Path, control: &Path, arguments: &Arguments, dir: &Path) -> Result<Side> {
        let dir = dir.join(label.replace(' ', "-"));
        std::fs::create_dir(&dir)?;
        let cluster = Cluster::start(&Target::new(binary)?, arguments.nodes, &dir, &[]).await?;
        let mut names =
            timeout(COMMAND_LIMIT, names(&cluster)).await.context("not all members made themselves known")??;
        let canonical =
            |path: &Path| path.canonicalize().with_context(|| format!("there is no program {}", path.display()));
        let (control, etcdctl) = (canonical(control)?, canonical(&arguments.etcdctl)?);
        let dir = dir.to_string_lossy().into_owned();
        names.add_address(&dir, "dir");
        let kept = HashMap::from([("dir".to_owned(), dir), ("endpoint".to_owned(), cluster.nodes[0].endpoint())]);
        Ok(Side {
            label: label.to_owned(),
            control,
            etcdutl: etcdctl.with_file_name("etcdutl"),
            among_programs: arguments.pintlectl.is_some(),
            cluster,
            names,
            kept,
        })
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
        let mut command = self.program(&self.control, words);
        self.tell_endpoints(&mut command, words);
        command
    }

    /// etcdctl refuses to be told twice.
    fn tell_endpoints(&self, command: &mut Command, words: &[String]) {
        if !words.iter().any(|word| word.starts_with("--endpoints=")) {
            command.env("ETCDCTL_ENDPOINTS", self.cluster.endpoints().join(","));
        }
    }

    /// A command on files.
    fn offline_command(&self, words: &[String]) -> Command {
        self.program(&self.etcdutl, words)
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
        let mut child = command.spawn().context("cannot be run")?;
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
        let (stdout, stderr) = match self.among_programs {
            true => (normalise::without_use(&output.stdout), normalise::complaints(&output.stderr)),
            false => (output.stdout.as_slice(), output.stderr),
        };
        let mut lines = normalise::output(&step.words, stdout, &self.names)?;
        lines.extend(
            normalise::errors(&step.words, &stderr, &self.names).into_iter().map(|line| format!("error: {line}")),
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
