//! The clients that people use, in five languages, against a cluster with TLS whose leader dies.
//!
//! Each program in `jepsen/clients` is made from packages by name, with the language's own tools. It runs the same
//! scenario: puts, transactions, leases, then writes with a watch, locks and a kept lease all at once, then elections.
//! It prints a JSON line for each step and exits with 1 at the first violation. When it says that the load has begun,
//! the leader is killed, and comes back under it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use proto::etcdserverpb::{HashKvRequest, RangeRequest, kv_client::KvClient, maintenance_client::MaintenanceClient};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::{
    failover,
    process::{Cluster, Target},
    tls::Tls,
};

/// How long a program may take beyond its load: leases end, locks of dead sessions time out.
const BEYOND_THE_LOAD: Duration = Duration::from_secs(180);
/// After the load has begun: the leader then dies under it.
const LOAD_BEFORE_THE_KILL: Duration = Duration::from_secs(3);
/// How long the dead leader stays away.
const DOWN: Duration = Duration::from_secs(4);
const BUILD_LIMIT: Duration = Duration::from_secs(900);

#[derive(clap::Args)]
pub struct Arguments {
    /// The server to run: Pintle or etcd
    #[arg(long)]
    binary: PathBuf,
    /// The languages, separated by commas
    #[arg(long, value_delimiter = ',', default_values = ["go", "python", "node", "java", "rust"])]
    only: Vec<Language>,
    /// How long each program's load lasts
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(15..=3600))]
    seconds: u32,
    /// Where the programs are made, so that the next run need not make them again
    #[arg(long)]
    build_dir: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Language {
    Go,
    Python,
    Node,
    Java,
    Rust,
}

impl Language {
    fn name(self) -> &'static str {
        match self {
            Language::Go => "go",
            Language::Python => "python",
            Language::Node => "node",
            Language::Java => "java",
            Language::Rust => "rust",
        }
    }

    fn package(self) -> &'static str {
        match self {
            Language::Go => "go.etcd.io/etcd/client/v3",
            Language::Python => "etcd3 (PyPI)",
            Language::Node => "etcd3 (npm)",
            Language::Java => "io.etcd:jetcd-core",
            Language::Rust => "etcd-client (crates.io)",
        }
    }

    /// What makes the program, in its folder.
    fn build(self) -> &'static [&'static [&'static str]] {
        match self {
            Language::Go => &[&["go", "build", "-o", "scenario", "."]],
            Language::Python => {
                &[&["python3", "-m", "venv", "venv"], &["venv/bin/pip", "install", "-q", "-r", "requirements.txt"]]
            }
            Language::Node => &[&["npm", "install", "--no-package-lock", "--no-audit", "--no-fund"]],
            Language::Java => &[&["mvn", "-q", "-B", "package"]],
            Language::Rust => &[&["cargo", "build", "--release", "--target-dir", "target"]],
        }
    }

    /// What runs it, in its folder.
    fn program(self) -> &'static [&'static str] {
        match self {
            Language::Go => &["./scenario"],
            Language::Python => &["venv/bin/python", "scenario.py"],
            Language::Node => &["node", "scenario.js"],
            Language::Java => &["java", "-cp", "target/classes:target/dependency/*", "Scenario"],
            Language::Rust => &["target/release/scenario"],
        }
    }
}

pub async fn run(arguments: Arguments) -> Result<()> {
    let dir = tempfile::Builder::new().prefix("pintle-clients-").tempdir()?;
    let builds = arguments.build_dir.clone().unwrap_or_else(|| dir.path().join("build"));
    for language in &arguments.only {
        build(*language, &builds.join(language.name())).await?;
    }
    let tls = Tls::new(dir.path())?;
    let target = Target::new(&arguments.binary)?.over_tls(tls.clone());
    let mut cluster = Cluster::start(&target, 3, dir.path(), &[]).await?;
    println!("{}: three members with TLS, the leader killed under each program", target.label());
    for language in arguments.only {
        let folder = builds.join(language.name());
        let ran = scenario(language, &folder, &mut cluster, &tls, arguments.seconds).await;
        let loaded = ran.with_context(|| format!("{} {}", language.name(), language.package()));
        let loaded = loaded.inspect_err(|_| eprintln!("{}", cluster.log_tails()))?;
        let (writes, events, locked) = (&loaded["writes"], &loaded["events"], &loaded["locked"]);
        println!("{:<24} {writes} writes, {events} events, {locked} under the lock: ok", language.package());
    }
    check_hashes(&cluster).await
}

/// Makes the program in a copy of its folder.
async fn build(language: Language, folder: &Path) -> Result<()> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(language.name());
    copy(&source, folder)?;
    for command in language.build() {
        let [program, arguments @ ..] = command else { bail!("an empty command") };
        let status = Command::new(program)
            .args(arguments)
            .current_dir(folder)
            .env_remove("CARGO_TARGET_DIR")
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .status();
        let status = timeout(BUILD_LIMIT, status).await.with_context(|| format!("{command:?} takes too long"))?;
        let status = status.with_context(|| format!("cannot run {command:?}: is it installed?"))?;
        ensure!(status.success(), "{command:?} ended with {status}");
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("no programs at {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            // What has not changed keeps its time, and is not made again.
            let source = fs::read(entry.path())?;
            if fs::read(&target).is_ok_and(|there| there == source) {
                continue;
            }
            fs::write(target, source)?;
        }
    }
    Ok(())
}

/// Runs one program, kills the leader when its load has begun, and gives what it says of the load.
async fn scenario(language: Language, folder: &Path, cluster: &mut Cluster, tls: &Tls, seconds: u32) -> Result<Value> {
    let [program, arguments @ ..] = language.program() else { bail!("an empty command") };
    let mut child = Command::new(program)
        .args(arguments)
        .arg(cluster.endpoints().join(","))
        .args([&tls.ca, &tls.cert, &tls.key])
        .arg(format!("{}/", language.name()))
        .arg(seconds.to_string())
        .current_dir(folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(fs::File::create(folder.join("stderr"))?)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let limit = Duration::from_secs(seconds.into()) + BEYOND_THE_LOAD;
    let followed = timeout(limit, follow(&mut child, cluster)).await;
    followed.with_context(|| format!("the program has not ended after {limit:?}"))?
}

async fn follow(child: &mut Child, cluster: &mut Cluster) -> Result<Value> {
    let mut lines = BufReader::new(child.stdout.take().context("the program's output")?).lines();
    let (mut loaded, mut is_done) = (None, false);
    while let Some(line) = lines.next_line().await? {
        let step: Value = serde_json::from_str(&line).with_context(|| format!("no step: {line}"))?;
        match step["step"].as_str() {
            Some("load") => kill_leader(cluster).await?,
            Some("loaded") => loaded = Some(step),
            Some("done") => is_done = true,
            Some("violation") => bail!("violation: {}", step["what"]),
            _ => {}
        }
    }
    let status = child.wait().await?;
    ensure!(status.success() && is_done, "the program ended with {status} before it was done");
    loaded.context("the program has told nothing of its load")
}

async fn kill_leader(cluster: &mut Cluster) -> Result<()> {
    // A delay: the load is to be at full speed.
    sleep(LOAD_BEFORE_THE_KILL).await;
    let leader = failover::leader(&cluster.nodes).await?;
    let killed = cluster.nodes[leader].kill()?;
    cluster.nodes[leader].exited().await?;
    let next = failover::leader(&cluster.nodes).await?;
    let (dead, next) = (cluster.nodes[leader].name(), cluster.nodes[next].name());
    println!("{dead} killed; {next} leads after {:?}", killed.elapsed());
    // A delay: the clients are to go on without it.
    sleep(DOWN).await;
    cluster.start_stopped().await
}

/// All members hold the same.
async fn check_hashes(cluster: &Cluster) -> Result<()> {
    let mut first = None;
    for node in &cluster.nodes {
        // A linearizable read: the member then has all that there is.
        KvClient::new(node.channel()).range(RangeRequest { key: "x".into(), ..Default::default() }).await?;
        let mut client = MaintenanceClient::new(node.channel());
        let revision = first.as_ref().map_or(0, |(revision, _)| *revision);
        let answer = client.hash_kv(HashKvRequest { revision }).await?.into_inner();
        let (revision, hash) = first.get_or_insert((answer.header.context("a header")?.revision, answer.hash));
        ensure!(*hash == answer.hash, "{} has another hash at revision {revision}", node.name());
    }
    println!("HashKV is equal on all members");
    Ok(())
}
