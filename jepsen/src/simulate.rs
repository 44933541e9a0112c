//! `pintle-jepsen simulate`: many seeds, each in a process of its own, or one of them again.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use futures::{StreamExt as _, stream};
use jepsen::simulation::run::{self, Case, Verdict};
use tokio::process::Command;

#[derive(clap::Args)]
pub struct Arguments {
    /// How many seeds
    #[arg(long, default_value_t = 100, conflicts_with = "seed")]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// One seed only: what happened to it before happens again
    #[arg(long)]
    seed: Option<u64>,
    /// Simulated minutes of each
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Destroys a majority at the end of each seed: what is left must stop, and not lie
    #[arg(long)]
    beyond_quorum: bool,
    /// Seeds at a time
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// With --seed: prints all that happens
    #[arg(long)]
    tell: bool,
    /// With --seed: prints the verdict as JSON
    #[arg(long)]
    json: bool,
    /// Where stores stand; a directory in memory is fastest
    #[arg(long, default_value = "/dev/shm")]
    folder: PathBuf,
    /// Real minutes after which a seed counts as hanging; 30 and a tenth of the simulated ones, unless it is said
    #[arg(long)]
    patience: Option<f64>,
}

/// Runs one seed in this process. Not within a runtime.
pub fn run_one(arguments: &Arguments, seed: u64) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("pintle-simulation-").tempdir_in(&arguments.folder)?;
    let time = Duration::from_secs_f64(arguments.minutes * 60.0);
    let case = Case { seed, time, goes_beyond: arguments.beyond_quorum };
    // What names the directory is part of what happens: it is the same in all runs.
    std::env::set_current_dir(folder.path())?;
    let verdict = run::run(case, Path::new("."), arguments.tell)?;
    drop(folder);
    if arguments.json {
        println!("{}", serde_json::to_string(&verdict)?);
    } else {
        print!("{}", told(&verdict));
        verdict.markers.iter().for_each(|(name, times)| println!("    {name}: {times}"));
    }
    // Not by returning: RocksDB's threads and whatever else is left end with the process.
    server::start::end(if verdict.violation.is_some() { 1 } else { 0 });
}

impl Arguments {
    pub fn one(&self) -> Option<u64> {
        self.seed
    }
}

fn told(verdict: &Verdict) -> String {
    let Verdict { seed, trace, traced, faults, revision, checked, .. } = verdict;
    let (simulated, took) = (verdict.simulated.as_secs_f64(), verdict.took.as_secs_f64());
    let violation = verdict.violation.as_ref().map_or(String::new(), |what| format!("  VIOLATION {what}\n"));
    format!(
        "seed {seed}: trace {trace:016x} of {traced}; {simulated:.0} s in {took:.1} s; {faults} faults; \
         revision {revision}; {checked} answers checked\n{violation}"
    )
}

/// Runs all seeds.
pub async fn run(arguments: Arguments) -> Result<()> {
    let program = std::env::current_exe().context("the path of this program")?;
    let began = Instant::now();
    let seeds = arguments.first..arguments.first + arguments.seeds;
    let mut verdicts = stream::iter(seeds)
        .map(|seed| {
            let (program, arguments) = (&program, &arguments);
            async move { (seed, in_process(program, arguments, seed).await) }
        })
        .buffer_unordered(arguments.jobs.max(1));
    let (mut failed, mut markers) = (Vec::new(), BTreeMap::<String, u64>::new());
    let (mut simulated, mut faults, mut checked, mut passed) = (Duration::ZERO, 0, 0, 0);
    while let Some((seed, verdict)) = verdicts.next().await {
        match verdict {
            Ok(verdict) => {
                simulated += verdict.simulated;
                faults += verdict.faults;
                checked += verdict.checked;
                for (name, times) in &verdict.markers {
                    *markers.entry(name.clone()).or_default() += times;
                }
                if verdict.violation.is_some() {
                    print!("{}", told(&verdict));
                    failed.push(seed);
                } else {
                    passed += 1;
                }
            }
            Err(error) => {
                println!("seed {seed}: {error:#}");
                failed.push(seed);
            }
        }
    }
    let took = began.elapsed();
    println!("{passed} of {} seeds passed", arguments.seeds);
    println!("  simulated hours: {:.1}; per real hour: {:.0}", hours(simulated), hours(simulated) / hours(took));
    println!("  faults: {faults}, {:.2} per simulated second", faults as f64 / simulated.as_secs_f64());
    println!("  answers checked: {checked}");
    markers.iter().for_each(|(name, times)| println!("  {name}: {times}"));
    let mode = if arguments.beyond_quorum { " --beyond-quorum" } else { "" };
    for seed in &failed {
        println!("again: pintle-jepsen simulate --seed {seed} --minutes {}{mode} --tell", arguments.minutes);
    }
    let required = REQUIRED.iter().chain(if arguments.beyond_quorum { REQUIRED_BEYOND } else { &[] });
    let missing: Vec<&&str> = required.filter(|name| markers.get(**name).copied().unwrap_or_default() == 0).collect();
    if !failed.is_empty() {
        bail!("{} seeds failed", failed.len());
    }
    if arguments.seeds >= ENOUGH_SEEDS && !missing.is_empty() {
        bail!("these never happened, so that the runs prove too little: {missing:?}");
    }
    Ok(())
}

/// From so many seeds on, each of these must have happened.
const ENOUGH_SEEDS: u64 = 50;
const REQUIRED: &[&str] = &[
    "leaders killed",
    "leaders that lost power",
    "followers that lost power",
    "stopped while starting",
    "stopped between commit and apply",
    "pauses",
    "partitions",
    "one-way partitions",
    "lossy networks",
    "messages duplicated",
    "messages reordered",
    "syncs cut off",
    "syncs failed",
    "full disks",
    "disks wiped",
    "members replaced",
    "voters added",
    "learners promoted",
    "leadership handed over",
    "compactions",
    "reads of the past",
    "watches of the past",
    "watches compacted",
    "hashes compared",
];

/// And these where a majority is destroyed.
const REQUIRED_BEYOND: &[&str] =
    &["quorums lost", "members gone for good", "logs lost", "stores lost", "members that stopped for their disk"];

fn hours(time: Duration) -> f64 {
    time.as_secs_f64() / 3600.0
}

async fn in_process(program: &Path, arguments: &Arguments, seed: u64) -> Result<Verdict> {
    let child = Command::new(program)
        .arg("simulate")
        .args(["--seed", &seed.to_string(), "--minutes", &arguments.minutes.to_string(), "--json"])
        .args(arguments.beyond_quorum.then_some("--beyond-quorum"))
        .arg("--folder")
        .arg(&arguments.folder)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let minutes = arguments.patience.unwrap_or(30.0 + arguments.minutes / 10.0);
    let patience = Duration::from_secs_f64(minutes * 60.0);
    let output = match tokio::time::timeout(patience, child.wait_with_output()).await {
        Ok(output) => output?,
        Err(_) => bail!("no verdict after {patience:?}"),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().unwrap_or_default();
    serde_json::from_str(line).with_context(|| {
        let said = String::from_utf8_lossy(&output.stderr);
        format!("ended with {}: {}", output.status, said.trim())
    })
}
