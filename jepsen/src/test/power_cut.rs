//! The power of members cut under load, again and again.
//!
//! A round: writers, readers and watchers run against all members; at a random moment the power of one member or all of
//! them is cut, which takes from their disks whatever they had not synced; they are started again, and writing must go
//! on. Every few rounds the load stops, and [`crate::verify`] compares all that the members hold with all that clients
//! were told.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::{
    nemesis::victims,
    nodes::{Nodes, Options},
};
use crate::{
    load::{Done, Load, Progress},
    process::Target,
    verify::Verifier,
    watcher::Watcher,
};

/// How long writes may fail after a power cut before the round is lost.
const RECOVERY_LIMIT: Duration = Duration::from_secs(30);
const WATCHERS: usize = 3;

#[derive(clap::Args)]
pub struct Arguments {
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
    /// Decides whose power is cut and when, and what is written
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    writers: u32,
    /// A further flag for each member, such as --node-flag=--snapshot-count=500
    #[arg(long, value_name = "FLAG", allow_hyphen_values = true)]
    node_flag: Vec<String>,
    /// Keep the members' logs
    #[arg(long)]
    keep: bool,
}

pub async fn run(arguments: Arguments) -> Result<()> {
    let mut dir = tempfile::Builder::new().prefix("pintle-power-").tempdir()?;
    dir.disable_cleanup(arguments.keep);
    let target = Target::new(&arguments.binary)?;
    let options = Options {
        size: arguments.nodes.into(),
        flags: arguments.node_flag.clone(),
        seed: arguments.seed,
        ..Options::default()
    };
    let nodes = Nodes::start(&target, dir.path(), options).await?;
    let mut run = Run::new(nodes, &arguments);
    let outcome = run.rounds().await;
    println!("{}", run.summary(&target));
    if let Err(error) = outcome {
        dir.disable_cleanup(true);
        run.nodes.keep(&dir.path().join("kept"))?;
        eprintln!("{}data and logs are in {}", run.nodes.log_tails(), dir.path().display());
        return Err(error);
    }
    run.nodes.shutdown().await
}

struct Run<'a> {
    arguments: &'a Arguments,
    nodes: Nodes,
    random: StdRng,
    progress: Arc<Progress>,
    watchers: Vec<Watcher>,
    verifier: Verifier,
    rounds_done: u32,
    power_cuts: u64,
    bytes_lost: u64,
    /// From the moment that all power is back to the next acknowledged write.
    recoveries: Vec<Duration>,
}

impl<'a> Run<'a> {
    fn new(nodes: Nodes, arguments: &'a Arguments) -> Run<'a> {
        let watchers = (0..WATCHERS).map(|first| Watcher::start(nodes.endpoints(), first)).collect();
        Run {
            arguments,
            nodes,
            random: StdRng::seed_from_u64(arguments.seed),
            progress: Arc::new(Progress::new()),
            watchers,
            verifier: Verifier::new(),
            rounds_done: 0,
            power_cuts: 0,
            bytes_lost: 0,
            recoveries: Vec::new(),
        }
    }

    async fn rounds(&mut self) -> Result<()> {
        while self.rounds_done < self.arguments.rounds {
            let begin = Instant::now();
            let rounds = self.arguments.check_every.min(self.arguments.rounds - self.rounds_done);
            self.stretch(rounds).await.with_context(|| format!("after {} rounds", self.rounds_done))?;
            println!(
                "round {}: {} writes acknowledged so far, all there; {} unsynced bytes lost; {:.1} s",
                self.rounds_done,
                self.verifier.acknowledged(),
                self.bytes_lost,
                begin.elapsed().as_secs_f64(),
            );
        }
        ensure!(self.bytes_lost > 0, "no power cut lost a byte: this proves nothing");
        Ok(())
    }

    /// Some rounds under one load, and a comparison of everything.
    async fn stretch(&mut self, rounds: u32) -> Result<()> {
        let endpoints = self.nodes.endpoints();
        let load = Load::start(&endpoints, self.arguments.writers, &self.progress, self.random.random());
        for _ in 0..rounds {
            self.round().await?;
            self.rounds_done += 1;
        }
        self.progress.wait_for(self.arguments.writers.into(), RECOVERY_LIMIT).await.context("after the last round")?;
        let Done { writes, reads, stale, .. } = load.stop().await?;
        let (watchers, random) = (&mut self.watchers, &mut self.random);
        self.verifier.check(&self.nodes.cluster, writes, reads, watchers, &self.progress, random).await?;
        ensure!(stale.is_empty(), "stale reads:\n{}", stale.join("\n"));
        Ok(())
    }

    async fn round(&mut self) -> Result<()> {
        let writes = self.random.random_range(10..150);
        self.progress.wait_for(writes, RECOVERY_LIMIT).await.context("before a power cut")?;
        // All at once loses most: nobody else holds what was lost.
        let count = match self.random.random_bool(0.7) {
            true => self.nodes.len(),
            false => self.random.random_range(1..=self.nodes.len()),
        };
        let off = match count == self.nodes.len() {
            true => (0..count).collect(),
            false => victims::choose(&self.nodes, count, &mut self.random).await?,
        };
        self.bytes_lost += self.nodes.cut_power(&off).await?;
        self.power_cuts += off.len() as u64;
        self.nodes.restore_power(&off)?;
        let restored = Instant::now();
        self.nodes.start_stopped().await?;
        self.progress.wait_for(1, RECOVERY_LIMIT).await.context("after a power cut")?;
        self.recoveries.push(restored.elapsed());
        self.nodes.check_running()
    }

    fn summary(&self, target: &Target) -> String {
        let mut lines = vec![
            format!("{} with {} members, seed {}:", target.label(), self.nodes.len(), self.arguments.seed),
            format!("  rounds passed: {} of {}", self.rounds_done, self.arguments.rounds),
            format!(
                "  writes: {} acknowledged and found, {} unanswered but done",
                self.verifier.acknowledged(),
                self.verifier.unknown_done(),
            ),
            format!("  power cuts: {}, {} unsynced bytes lost", self.power_cuts, self.bytes_lost),
            format!("  watchers resumed: {} times", self.watchers.iter().map(Watcher::resumed).sum::<u64>()),
        ];
        let mut times = self.recoveries.clone();
        times.sort();
        if let (Some(first), Some(last)) = (times.first(), times.last()) {
            lines.push(format!(
                "  power back to the next acknowledged write: min {} ms, median {} ms, max {} ms",
                first.as_millis(),
                times[times.len() / 2].as_millis(),
                last.as_millis(),
            ));
        }
        lines.join("\n")
    }
}
