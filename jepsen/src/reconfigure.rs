//! Members added, replaced and removed under load.
//!
//! A cycle: the cluster grows by one member at a time from one to `--largest`, half of the new members as learners that
//! are promoted when they have caught up, half as voters at once; a killed follower and the leader are replaced; then
//! the cluster shrinks back to one member, the leader first. Writers, readers and watchers run all the while. After
//! each of the three stages the load stops, and all that the members hold is compared with all that clients were told.
//!
//! What must hold besides: a client's failed request is cured by trying again, members that were removed stop by
//! themselves, and all members name the same members.

pub mod membership;

use std::{
    fmt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use proto::etcdserverpb::Member;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::{sync::watch, time::timeout};

use crate::{
    failover,
    load::{Done, Endpoints, Load, Progress},
    process::{Cluster, Node, Target},
    verify::Verifier,
    watcher::Watcher,
};

/// How long a client may have to try again, and a step may hold up all writes.
const OUTAGE_LIMIT: Duration = Duration::from_secs(30);
/// How long a removed member may take to stop.
const STOP_LIMIT: Duration = Duration::from_secs(30);
const WATCHERS: usize = 3;
/// Acknowledged writes before the first and after each step.
const WRITES_BETWEEN: std::ops::Range<u64> = 50..300;

#[derive(clap::Args)]
pub struct Arguments {
    /// The server to run: Pintle or etcd
    #[arg(long)]
    binary: PathBuf,
    /// How often to grow and shrink
    #[arg(long, default_value_t = 1)]
    cycles: u32,
    /// To how many members the cluster grows
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(2..=7))]
    largest: u32,
    /// Decides who is added how and who is removed, and what is written
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    writers: u32,
    /// Fail if no write is acknowledged for longer
    #[arg(long, value_name = "MILLISECONDS")]
    max_gap_ms: Option<u64>,
    /// A further flag for each member, such as --node-flag=--snapshot-count=500
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    node_flag: Vec<String>,
    /// Keep the members' data and logs
    #[arg(long)]
    keep: bool,
}

pub async fn run(arguments: Arguments) -> Result<()> {
    let mut dir = tempfile::Builder::new().prefix("pintle-reconfigure-").tempdir()?;
    dir.disable_cleanup(arguments.keep);
    let target = Target::new(&arguments.binary)?;
    let cluster = Cluster::start(&target, 1, dir.path(), &arguments.node_flag).await?;
    let mut run = Run::new(cluster, &arguments);
    let outcome = run.cycles().await;
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

/// One change of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    AddLearner,
    AddVoter,
    ReplaceDead,
    ReplaceLeader,
    RemoveFollower,
    RemoveLeader,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Step::AddLearner => "add a learner and promote it",
            Step::AddVoter => "add a voter",
            Step::ReplaceDead => "kill a follower and replace it",
            Step::ReplaceLeader => "remove the leader and add another member",
            Step::RemoveFollower => "remove a follower",
            Step::RemoveLeader => "remove the leader",
        })
    }
}

/// The longest time without an acknowledged write around a step.
struct Gap {
    step: Step,
    size_before: usize,
    gap: Duration,
}

struct Run<'a> {
    arguments: &'a Arguments,
    cluster: Cluster,
    endpoint_sender: watch::Sender<Vec<String>>,
    endpoints: Endpoints,
    random: StdRng,
    progress: Arc<Progress>,
    watchers: Vec<Watcher>,
    verifier: Verifier,
    gaps: Vec<Gap>,
    failures: std::collections::BTreeMap<String, u64>,
    longest_outage: Duration,
}

impl<'a> Run<'a> {
    fn new(cluster: Cluster, arguments: &'a Arguments) -> Run<'a> {
        let (endpoint_sender, endpoints) = watch::channel(cluster.endpoints());
        let watchers = (0..WATCHERS).map(|first| Watcher::start(endpoints.clone(), first)).collect();
        Run {
            arguments,
            cluster,
            endpoint_sender,
            endpoints,
            random: StdRng::seed_from_u64(arguments.seed),
            progress: Arc::new(Progress::new()),
            watchers,
            verifier: Verifier::new(),
            gaps: Vec::new(),
            failures: Default::default(),
            longest_outage: Duration::ZERO,
        }
    }

    async fn cycles(&mut self) -> Result<()> {
        for cycle in 1..=self.arguments.cycles {
            for (name, steps) in self.plan() {
                self.stage(&steps).await.with_context(|| format!("cycle {cycle}, while the cluster {name}"))?;
                println!(
                    "cycle {cycle}: the cluster {name} and has {} members; {} writes acknowledged so far, all there",
                    self.cluster.nodes.len(),
                    self.verifier.acknowledged(),
                );
            }
        }
        let longest = self.gaps.iter().map(|gap| gap.gap).max().unwrap_or_default();
        if let Some(limit) = self.arguments.max_gap_ms {
            ensure!(longest <= Duration::from_millis(limit), "no write for {longest:?}, longer than {limit} ms");
        }
        Ok(())
    }

    /// The steps from one member to one member, in stages.
    fn plan(&mut self) -> [(&'static str, Vec<Step>); 3] {
        let largest = self.arguments.largest as usize;
        let learner_first = self.random.random_bool(0.5) as usize;
        let grow = (1..largest)
            .map(|added| if (added + learner_first) % 2 == 0 { Step::AddLearner } else { Step::AddVoter })
            .collect();
        let mut replace = Vec::new();
        if largest > 2 {
            replace.push(Step::ReplaceDead);
        }
        replace.push(Step::ReplaceLeader);
        let shrink = (1..largest)
            .map(|removed| match removed {
                1 => Step::RemoveLeader,
                _ if self.random.random_bool(0.5) => Step::RemoveLeader,
                _ => Step::RemoveFollower,
            })
            .collect();
        [("grows", grow), ("exchanges members", replace), ("shrinks", shrink)]
    }

    async fn stage(&mut self, steps: &[Step]) -> Result<()> {
        let seed = self.random.random();
        let load = Load::start(&self.endpoints, self.arguments.writers, &self.progress, seed);
        self.write_on().await.context("before the first step")?;
        for step in steps {
            let (begin, size_before) = (Instant::now(), self.cluster.nodes.len());
            self.progress.longest_silence_of_step();
            let members = self.step(*step).await.with_context(|| format!("{step} ({size_before} members)"))?;
            self.write_on().await.with_context(|| format!("after: {step} ({size_before} members)"))?;
            let gap = self.progress.longest_silence_of_step();
            println!(
                "  {step}: {size_before} -> {members} members in {:.1} s, no write for at most {} ms",
                begin.elapsed().as_secs_f64(),
                gap.as_millis(),
            );
            self.gaps.push(Gap { step: *step, size_before, gap });
        }
        let done = load.stop().await?;
        self.check(done).await
    }

    async fn write_on(&mut self) -> Result<()> {
        let writes = self.random.random_range(WRITES_BETWEEN);
        self.progress.wait_for(writes, OUTAGE_LIMIT).await?;
        for node in &mut self.cluster.nodes {
            ensure!(!node.has_exited()?, "{} ended by itself", node.name());
        }
        Ok(())
    }

    /// Compares all that the members hold with all that clients were told.
    async fn check(&mut self, done: Done) -> Result<()> {
        for (failure, count) in done.failures {
            *self.failures.entry(failure).or_default() += count;
        }
        self.longest_outage = self.longest_outage.max(done.longest_outage);
        let (watchers, random) = (&mut self.watchers, &mut self.random);
        self.verifier.check(&self.cluster, done.writes, done.reads, watchers, &self.progress, random).await?;
        ensure!(done.stale.is_empty(), "stale reads:\n{}", done.stale.join("\n"));
        ensure!(
            done.final_failures.is_empty(),
            "errors that tell a client to give up:\n{}",
            done.final_failures.join("\n")
        );
        ensure!(self.longest_outage <= OUTAGE_LIMIT, "a client had to try again for {:?}", self.longest_outage);
        membership::check_lists(&self.cluster.nodes).await
    }

    /// Does the step and gives how many members there are after it.
    async fn step(&mut self, step: Step) -> Result<usize> {
        match step {
            Step::AddLearner => self.add(true).await?,
            Step::AddVoter => self.add(false).await?,
            Step::ReplaceDead => {
                let victim = self.follower().await?;
                self.cluster.nodes[victim].kill()?;
                self.cluster.nodes[victim].exited().await?;
                self.remove(victim).await?;
                self.add_either().await?;
            }
            Step::ReplaceLeader => {
                let leader = failover::leader(&self.cluster.nodes).await?;
                self.remove(leader).await?;
                self.add_either().await?;
            }
            Step::RemoveFollower => {
                let follower = self.follower().await?;
                self.remove(follower).await?;
            }
            Step::RemoveLeader => {
                let leader = failover::leader(&self.cluster.nodes).await?;
                self.remove(leader).await?;
            }
        }
        Ok(self.cluster.nodes.len())
    }

    async fn follower(&mut self) -> Result<usize> {
        let (leader, size) = (failover::leader(&self.cluster.nodes).await?, self.cluster.nodes.len());
        Ok((leader + self.random.random_range(1..size)) % size)
    }

    async fn add_either(&mut self) -> Result<()> {
        let learner = self.random.random();
        self.add(learner).await
    }

    /// Adds a member, starts it, and promotes it if it is a learner.
    async fn add(&mut self, learner: bool) -> Result<()> {
        let mut node = self.cluster.new_node()?;
        let first = self.random.random_range(0..self.cluster.nodes.len());
        let (id, members) = membership::add(&self.cluster.nodes, first, &node.peer_url(), learner).await?;
        node.join(initial_cluster(&members, &node));
        self.cluster.nodes.push(node);
        let node = self.cluster.nodes.last_mut().expect("a node was added");
        node.start().await?;
        // Clients may find the learner, which refuses them, before it is promoted.
        self.endpoint_sender.send_replace(self.cluster.endpoints());
        if learner {
            membership::promote(&self.cluster.nodes, first, id).await?;
        }
        Ok(())
    }

    /// Removes a member, which then stops by itself.
    async fn remove(&mut self, index: usize) -> Result<()> {
        let ask = self.random.random_range(0..self.cluster.nodes.len());
        let id = membership::id_of(&self.cluster.nodes, ask, &self.cluster.nodes[index].peer_url()).await?;
        membership::remove(&self.cluster.nodes, ask, id).await?;
        let mut node = self.cluster.nodes.remove(index);
        if node.is_running() {
            let stopped = timeout(STOP_LIMIT, node.exited()).await;
            let status = stopped.with_context(|| format!("{} goes on after its removal", node.name()))??;
            ensure!(status.success(), "{}, removed, stopped with {status}\n{}", node.name(), node.log_tail());
        }
        self.endpoint_sender.send_replace(self.cluster.endpoints());
        Ok(())
    }

    fn summary(&self, target: &Target) -> String {
        let mut lines = vec![
            format!("{}, {} cycles, seed {}:", target.label(), self.arguments.cycles, self.arguments.seed),
            format!(
                "  writes: {} acknowledged and found, {} unanswered but done",
                self.verifier.acknowledged(),
                self.verifier.unknown_done(),
            ),
            format!("  longest time that one client had to try again: {} ms", self.longest_outage.as_millis()),
        ];
        let mut gaps: Vec<&Gap> = self.gaps.iter().collect();
        gaps.sort_by_key(|gap| (gap.step, gap.size_before));
        lines.extend(gaps.chunk_by(|a, b| (a.step, a.size_before) == (b.step, b.size_before)).map(|gaps| {
            let longest = gaps.iter().map(|gap| gap.gap).max().unwrap_or_default();
            let Gap { step, size_before, .. } = gaps[0];
            format!("  {step}, of {size_before}: no write for at most {} ms", longest.as_millis())
        }));
        lines
            .extend(self.failures.iter().map(|(failure, count)| format!("  cured by trying again: {count} {failure}")));
        lines.join("\n")
    }
}

/// What a new member is told of its cluster. It is the one without a name so far.
fn initial_cluster(members: &[Member], new: &Node) -> String {
    let urls = members.iter().flat_map(|member| {
        let name = if member.name.is_empty() { new.name() } else { &member.name };
        member.peer_ur_ls.iter().map(move |url| format!("{name}={url}"))
    });
    urls.collect::<Vec<String>>().join(",")
}
