//! Members killed under load, again and again.
//!
//! A round: writers, readers and watchers run against all members; at a random moment SIGKILL ends one member or all
//! of them; they are started again, sometimes killed once more while they recover; writing must go on. Then the load
//! stops, and [`verify`] compares all that the members hold with all that clients were told.

use std::{
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use proto::etcdserverpb::{CompactionRequest, kv_client::KvClient};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tonic::transport::Channel;

use crate::{
    failover,
    history::Write,
    load::{Done, Endpoints, Load, Progress},
    process::{Cluster, Target},
    verify::Verifier,
    watcher::Watcher,
};

/// How long writes may fail after a fault before the round is lost.
const RECOVERY_LIMIT: Duration = Duration::from_secs(30);
/// Twice the election timeout that etcd and Pintle have by default.
const TWO_ELECTION_TIMEOUTS: Duration = Duration::from_millis(2000);
const WATCHERS: usize = 3;

#[derive(clap::Args)]
pub struct Arguments {
    /// The server to run: Pintle or etcd
    #[arg(long)]
    binary: PathBuf,
    /// Members of the cluster
    #[arg(long, default_value_t = 1, value_parser = parse_size)]
    nodes: usize,
    #[arg(long, default_value_t = 10)]
    rounds: u32,
    /// Decides whom to kill and when, and what is written
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    writers: u32,
    /// Whom to kill, if there are three members
    #[arg(long, value_enum, default_value_t = Victims::Any)]
    victims: Victims,
    /// Fail if it takes longer from the leader's death to the next acknowledged write
    #[arg(long, value_name = "MILLISECONDS")]
    max_failover_ms: Option<u64>,
    /// A further flag for each member, such as --node-flag=--snapshot-count=500
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    node_flag: Vec<String>,
    /// Keep the members' data and logs
    #[arg(long)]
    keep: bool,
}

pub fn parse_size(text: &str) -> Result<usize, String> {
    match text {
        "1" => Ok(1),
        "3" => Ok(3),
        _ => Err("1 or 3".to_owned()),
    }
}

pub async fn run(arguments: Arguments) -> Result<()> {
    let mut dir = tempfile::Builder::new().prefix("pintle-kill-").tempdir()?;
    dir.disable_cleanup(arguments.keep);
    let target = Target::new(&arguments.binary)?;
    let cluster = Cluster::start(&target, arguments.nodes, dir.path(), &arguments.node_flag).await?;
    let mut run = Run::new(cluster, &arguments);
    let outcome = run.rounds().await;
    println!("{}", run.summary(&target));
    if let Err(error) = outcome {
        dir.disable_cleanup(true);
        eprintln!("{}data and logs are in {}", run.cluster.log_tails(), dir.path().display());
        return Err(error);
    }
    if arguments.keep {
        println!("data and logs are in {}", dir.path().display());
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Victims {
    /// Half of the time the leader, else a follower or all members
    Any,
    Leader,
    Follower,
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Leader(usize),
    Follower(usize),
    All,
}

#[derive(Default)]
struct Kills {
    leader: u32,
    follower: u32,
    all: u32,
    recovering: u32,
}

struct Run<'a> {
    arguments: &'a Arguments,
    cluster: Cluster,
    endpoints: Endpoints,
    random: StdRng,
    progress: Arc<Progress>,
    watchers: Vec<Watcher>,
    verifier: Verifier,
    rounds_done: u32,
    kills: Kills,
    failovers: Vec<Duration>,
}

impl<'a> Run<'a> {
    fn new(cluster: Cluster, arguments: &'a Arguments) -> Run<'a> {
        let (_, endpoints) = watch::channel(cluster.endpoints());
        let watchers = (0..WATCHERS).map(|first| Watcher::start(endpoints.clone(), first)).collect();
        Run {
            arguments,
            cluster,
            endpoints,
            random: StdRng::seed_from_u64(arguments.seed),
            progress: Arc::new(Progress::new()),
            watchers,
            verifier: Verifier::new(),
            rounds_done: 0,
            kills: Kills::default(),
            failovers: Vec::new(),
        }
    }

    async fn rounds(&mut self) -> Result<()> {
        for round in 1..=self.arguments.rounds {
            let begin = Instant::now();
            let victim = self.round().await.with_context(|| format!("round {round}"))?;
            self.rounds_done = round;
            println!(
                "round {round}: killed {victim}; {} writes acknowledged so far, all there; {:.1} s",
                self.verifier.acknowledged(),
                begin.elapsed().as_secs_f64(),
            );
        }
        self.check_failovers()
    }

    async fn round(&mut self) -> Result<Victim> {
        let load = Load::start(&self.endpoints, self.arguments.writers, &self.progress, self.random.random());
        let before_kill = self.random.random_range(20..1500);
        self.progress.wait_for(before_kill, RECOVERY_LIMIT).await.context("before the kill")?;
        if self.random.random_ratio(1, 3) {
            self.compact();
        }
        sleep(Duration::from_micros(self.random.random_range(0..20_000))).await;

        let victim = self.choose_victim().await?;
        let probes = self.kill(victim).await?;
        sleep(Duration::from_millis(self.random.random_range(0..300))).await;
        if self.random.random_ratio(1, 4) {
            self.kill_recovering().await?;
        }
        self.cluster.start_stopped().await?;
        let after_kill = self.random.random_range(50..500);
        self.progress.wait_for(after_kill, RECOVERY_LIMIT).await.context("after the kill")?;
        for node in &mut self.cluster.nodes {
            ensure!(!node.has_exited()?, "{} ended by itself", node.name());
        }

        let Done { mut writes, reads, stale, .. } = load.stop().await?;
        writes.extend(probes);
        self.verifier.check(&self.cluster, writes, reads, &mut self.watchers, &self.progress, &mut self.random).await?;
        ensure!(stale.is_empty(), "stale reads while {victim} was killed:\n{}", stale.join("\n"));
        Ok(victim)
    }

    /// Asks for a compaction somewhere in the part of the history that has been read, and does not wait for it: the
    /// kill may come before, between or after its steps.
    fn compact(&mut self) {
        let Some(revision) = self.verifier.choose_compaction(&mut self.random) else { return };
        let node = self.random.random_range(0..self.cluster.nodes.len());
        let mut client = KvClient::new(self.cluster.nodes[node].channel());
        let physical = self.random.random();
        tokio::spawn(async move {
            // Whether it is done shows in the history: the outcome is not needed.
            let _ = timeout(RECOVERY_LIMIT, client.compact(CompactionRequest { revision, physical })).await;
        });
    }

    async fn choose_victim(&mut self) -> Result<Victim> {
        let size = self.cluster.nodes.len();
        let victims = match (self.arguments.victims, self.random.random_range(0..10)) {
            _ if size == 1 => Victims::All,
            (Victims::Any, 0..5) => Victims::Leader,
            (Victims::Any, 5..8) => Victims::Follower,
            (Victims::Any, _) => Victims::All,
            (chosen, _) => chosen,
        };
        if victims == Victims::All {
            return Ok(Victim::All);
        }
        let leader = failover::leader(&self.cluster.nodes).await?;
        Ok(match victims {
            Victims::Leader => Victim::Leader(leader),
            _ => Victim::Follower((leader + self.random.random_range(1..size)) % size),
        })
    }

    /// Kills, and gives the writes that measured the failover, if there was one.
    async fn kill(&mut self, victim: Victim) -> Result<Vec<Write>> {
        match victim {
            Victim::Leader(leader) => {
                self.kills.leader += 1;
                let survivors: Vec<Channel> = (self.cluster.nodes.iter().enumerate())
                    .filter(|(index, _)| *index != leader)
                    .map(|(_, node)| node.channel())
                    .collect();
                let killed = self.cluster.nodes[leader].kill()?;
                let next_write = failover::time_to_next_write(killed, &survivors, &self.progress, RECOVERY_LIMIT);
                let (time, probes) = next_write.await?;
                self.cluster.nodes[leader].exited().await?;
                self.failovers.push(time);
                Ok(probes)
            }
            Victim::Follower(follower) => {
                self.kills.follower += 1;
                self.cluster.nodes[follower].kill()?;
                self.cluster.nodes[follower].exited().await?;
                Ok(Vec::new())
            }
            Victim::All => {
                self.kills.all += 1;
                for node in &mut self.cluster.nodes {
                    node.kill()?;
                }
                for node in &mut self.cluster.nodes {
                    node.exited().await?;
                }
                Ok(Vec::new())
            }
        }
    }

    /// Starts what is down and kills it at some point of its recovery.
    async fn kill_recovering(&mut self) -> Result<()> {
        self.kills.recovering += 1;
        let mut recovering: Vec<_> = self.cluster.nodes.iter_mut().filter(|node| !node.is_running()).collect();
        for node in &mut recovering {
            node.spawn()?;
        }
        sleep(Duration::from_millis(self.random.random_range(0..300))).await;
        for node in &mut recovering {
            if node.has_exited()? {
                bail!("{} ended by itself", node.name());
            }
            node.kill()?;
        }
        for node in recovering {
            node.exited().await?;
        }
        Ok(())
    }

    fn check_failovers(&self) -> Result<()> {
        let (Some(longest), Some(limit)) = (self.failovers.iter().max(), self.arguments.max_failover_ms) else {
            return Ok(());
        };
        ensure!(*longest <= Duration::from_millis(limit), "a failover took {longest:?}, longer than {limit} ms");
        Ok(())
    }

    fn summary(&self, target: &Target) -> String {
        let Kills { leader, follower, all, recovering } = self.kills;
        let members = self.cluster.nodes.len();
        let mut lines = vec![
            format!("{} with {members} members, seed {}:", target.label(), self.arguments.seed),
            format!("  rounds passed: {} of {}", self.rounds_done, self.arguments.rounds),
            format!(
                "  writes: {} acknowledged and found, {} unanswered but done",
                self.verifier.acknowledged(),
                self.verifier.unknown_done(),
            ),
            format!("  kills: {leader} leader, {follower} follower, {all} all members, {recovering} while recovering"),
            format!("  watchers resumed: {} times", self.watchers.iter().map(Watcher::resumed).sum::<u64>()),
            format!("  compactions: {}", self.verifier.compactions()),
            format!("  longest time without an acknowledged write: {} ms", self.progress.longest_silence().as_millis()),
        ];
        if !self.failovers.is_empty() {
            let mut times = self.failovers.clone();
            times.sort();
            let late = times.iter().filter(|time| **time > TWO_ELECTION_TIMEOUTS).count();
            lines.push(format!(
                "  leader's death to the next acknowledged write: min {} ms, median {} ms, max {} ms; {late} of {} \
                 longer than two election timeouts ({} ms)",
                times[0].as_millis(),
                times[times.len() / 2].as_millis(),
                times[times.len() - 1].as_millis(),
                times.len(),
                TWO_ELECTION_TIMEOUTS.as_millis(),
            ));
        }
        lines.join("\n")
    }
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Victim::Leader(index) => write!(f, "the leader, n{}", index + 1),
            Victim::Follower(index) => write!(f, "a follower, n{}", index + 1),
            Victim::All => write!(f, "all members"),
        }
    }
}
