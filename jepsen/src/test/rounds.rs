//! One fault after another under load, and everything compared every few rounds.
//!
//! A round: writers, readers and watchers run against all members; at a random moment the nemesis strikes, the fault
//! lasts a while, it is healed, and writing must go on. Every few rounds the load stops, and [`crate::verify`] compares
//! all that the members hold with all that clients were told. What comes of it besides are figures: how long no write
//! was acknowledged, and how long it took from healing to the next.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::time::sleep;

use super::{
    nemesis::{self, Mixed, Nemesis},
    nodes::{Nodes, Options},
};
use crate::{
    load::{Done, Load, Progress},
    process::Target,
    verify::Verifier,
    watcher::Watcher,
};

/// How long writes may fail after healing before the round is lost.
const RECOVERY_LIMIT: Duration = Duration::from_secs(30);
/// The one nemesis that this comparison of whole histories cannot stand, and one that has it among others.
const COMPACTS: &str = "compaction-storm";
const MIXED: &str = "mixed";
const WATCHERS: usize = 3;
const WRITES_BEFORE: std::ops::Range<u64> = 10..150;

#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    common: Common,
    /// What to do, `all` for one after the other
    #[arg(long, default_value = "all")]
    nemesis: String,
    /// How long a fault lasts at most
    #[arg(long, default_value_t = 3000)]
    hold_ms: u64,
}

#[derive(clap::Args)]
pub struct PowerCutArguments {
    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args)]
struct Common {
    /// The server to run: Pintle or etcd
    #[arg(long)]
    binary: PathBuf,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=7))]
    nodes: u8,
    #[arg(long, default_value_t = 10)]
    rounds: u32,
    /// After how many rounds everything is compared
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    check_every: u32,
    /// Decides who is struck and when, and what is written
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    writers: u32,
    /// A further flag for each member, such as --node-flag=--snapshot-count=500
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    node_flag: Vec<String>,
    /// Keep the disks in files of the temporary folder and not in memory
    #[arg(long)]
    disk_in_file: bool,
}

/// Any nemesis.
pub async fn run(arguments: Arguments) -> Result<()> {
    let nemeses = match arguments.nemesis.as_str() {
        "all" => nemesis::names().into_iter().filter(|name| *name != COMPACTS).map(by_name).collect::<Result<_>>()?,
        name => vec![by_name(name)?],
    };
    let mut failed = Vec::new();
    for nemesis in nemeses {
        let name = nemesis.name();
        if let Err(error) = strike(&arguments.common, nemesis, Duration::from_millis(arguments.hold_ms)).await {
            eprintln!("FAILED {name}: {error:#}");
            failed.push(name);
        }
    }
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

fn by_name(name: &str) -> Result<Box<dyn Nemesis>> {
    match name {
        COMPACTS => bail!("{COMPACTS} compacts what the comparison here has not seen yet: use `pintle-jepsen test`"),
        MIXED => Ok(Box::new(Mixed::without(COMPACTS))),
        name => nemesis::by_name(name),
    }
}

/// Power cuts, without a pause between a cut and the start.
pub async fn run_power_cut(arguments: PowerCutArguments) -> Result<()> {
    strike(&arguments.common, nemesis::by_name("power-cut")?, Duration::ZERO).await
}

/// All rounds of one nemesis, on a cluster of their own.
async fn strike(common: &Common, nemesis: Box<dyn Nemesis>, hold: Duration) -> Result<()> {
    let mut dir = tempfile::Builder::new().prefix("pintle-nodes-").tempdir()?;
    let target = Target::new(&common.binary)?;
    let options = Options {
        size: common.nodes.into(),
        flags: common.node_flag.clone(),
        disk_in_file: common.disk_in_file,
        needs: nemesis.needs(),
        seed: common.seed,
        ..Options::default()
    };
    let nodes = Nodes::start(&target, dir.path(), options).await?;
    let mut run = Run::new(common, nemesis, hold, nodes);
    let outcome = run.rounds().await;
    println!("{}", run.summary(&target));
    match outcome {
        Ok(()) => run.nodes.shutdown().await,
        Err(error) => {
            dir.disable_cleanup(true);
            Err(error.context(run.last_words(dir.path())))
        }
    }
}

struct Run<'a> {
    common: &'a Common,
    nemesis: Box<dyn Nemesis>,
    hold: Duration,
    nodes: Nodes,
    random: StdRng,
    progress: Arc<Progress>,
    watchers: Vec<Watcher>,
    verifier: Verifier,
    rounds_done: u32,
    counters: BTreeMap<&'static str, u64>,
    /// From the begin of healing to the next acknowledged write.
    recoveries: Vec<Duration>,
    /// From the begin of healing until all nodes run.
    healings: Vec<Duration>,
    /// The longest time without an acknowledged write around each fault.
    outages: Vec<Duration>,
}

impl<'a> Run<'a> {
    fn new(common: &'a Common, nemesis: Box<dyn Nemesis>, hold: Duration, nodes: Nodes) -> Run<'a> {
        let watchers = (0..WATCHERS).map(|first| Watcher::start(nodes.endpoints(), first)).collect();
        Run {
            common,
            nemesis,
            hold,
            nodes,
            random: StdRng::seed_from_u64(common.seed),
            progress: Arc::new(Progress::new()),
            watchers,
            verifier: Verifier::new(),
            rounds_done: 0,
            counters: BTreeMap::new(),
            recoveries: Vec::new(),
            healings: Vec::new(),
            outages: Vec::new(),
        }
    }

    async fn rounds(&mut self) -> Result<()> {
        while self.rounds_done < self.common.rounds {
            let begin = Instant::now();
            let rounds = self.common.check_every.min(self.common.rounds - self.rounds_done);
            self.stretch(rounds).await.with_context(|| format!("after {} rounds", self.rounds_done))?;
            println!(
                "{}, round {}: {} writes acknowledged so far, all there; {:.1} s",
                self.nemesis.name(),
                self.rounds_done,
                self.verifier.acknowledged(),
                begin.elapsed().as_secs_f64(),
            );
        }
        match self.counters.iter().find(|(_, count)| **count == 0) {
            Some((counter, _)) => bail!("{counter}: 0. This proves nothing"),
            None => Ok(()),
        }
    }

    /// Some rounds under one load, and a comparison of everything.
    async fn stretch(&mut self, rounds: u32) -> Result<()> {
        let endpoints = self.nodes.endpoints();
        let load = Load::start(&endpoints, self.common.writers, &self.progress, self.random.random());
        for _ in 0..rounds {
            self.round().await?;
            self.rounds_done += 1;
        }
        self.progress.wait_for(self.common.writers.into(), RECOVERY_LIMIT).await.context("after the last round")?;
        let Done { writes, reads, stale, .. } = load.stop().await?;
        let (watchers, random) = (&mut self.watchers, &mut self.random);
        self.verifier.check(&self.nodes.cluster, writes, reads, watchers, &self.progress, random).await?;
        ensure!(stale.is_empty(), "stale reads:\n{}", stale.join("\n"));
        Ok(())
    }

    async fn round(&mut self) -> Result<()> {
        let writes = self.random.random_range(WRITES_BEFORE);
        self.progress.wait_for(writes, RECOVERY_LIMIT).await.context("before a fault")?;
        self.progress.longest_silence_of_step();
        let begin = Instant::now();
        let fault = self.nemesis.strike(&mut self.nodes, &mut self.random).await?;
        let hold = self.hold.mul_f64(self.random.random_range(0.1..=1.0));
        sleep(hold.saturating_sub(begin.elapsed())).await;

        let healing = Instant::now();
        let heal = async {
            let effect = self.nemesis.heal(&mut self.nodes, &mut self.random).await;
            effect.map(|effect| (effect, healing.elapsed()))
        };
        let next_write = async {
            // Healing has a limit of its own.
            let next = self.progress.wait_for(1, 2 * RECOVERY_LIMIT).await;
            next.map(|()| healing.elapsed())
        };
        let (healed, next_write) = tokio::join!(heal, next_write);
        let (effect, healed_after) = healed.with_context(|| format!("healing of: {}", fault.description))?;
        self.healings.push(healed_after);
        self.recoveries.push(next_write.with_context(|| format!("after: {}", fault.description))?);
        self.outages.push(self.progress.longest_silence_of_step());
        for (counter, count) in effect.counters {
            *self.counters.entry(counter).or_default() += count;
        }
        self.nodes.check_running().await.with_context(|| format!("after: {}", fault.description))
    }

    fn summary(&self, target: &Target) -> String {
        let (name, members, seed) = (self.nemesis.name(), self.nodes.len(), self.common.seed);
        let mut lines = vec![
            format!("{name} of {} with {members} members, seed {seed}:", target.label()),
            format!("  rounds passed: {} of {}", self.rounds_done, self.common.rounds),
            format!(
                "  writes: {} acknowledged and found, {} unanswered but done",
                self.verifier.acknowledged(),
                self.verifier.unknown_done(),
            ),
            format!("  watchers resumed: {} times", self.watchers.iter().map(Watcher::resumed).sum::<u64>()),
        ];
        lines.extend(self.counters.iter().map(|(counter, count)| format!("  {counter}: {count}")));
        for (what, times) in [
            ("longest time without an acknowledged write around a fault", &self.outages),
            ("begin of healing to all members serving", &self.healings),
            ("begin of healing to a write acknowledged after it", &self.recoveries),
        ] {
            lines.extend(distribution(times).map(|text| format!("  {what}: {text}")));
        }
        lines.join("\n")
    }

    /// Keeps what there is to look at after a failure, and says where.
    fn last_words(&self, dir: &Path) -> String {
        let kept = self.nodes.keep(&dir.join("kept"));
        let kept =
            kept.map_or_else(|error| format!("{error:#}"), |()| format!("data and logs are in {}", dir.display()));
        format!("{}{kept}", self.nodes.log_tails())
    }
}

pub fn distribution(times: &[Duration]) -> Option<String> {
    let mut times = times.to_vec();
    times.sort();
    let last = times.last()?;
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_millis();
    let count = times.len();
    Some(format!("p50 {} ms, p99 {} ms, max {} ms of {count}", at(50), at(99), last.as_millis()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_times() {
        let times: Vec<Duration> = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!(distribution(&times).unwrap(), "p50 101 ms, p99 199 ms, max 200 ms of 200");
        assert_eq!(distribution(&[]), None);
    }
}
