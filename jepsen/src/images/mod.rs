//! Crash consistency by enumeration: what a crash may leave of a run, all of it, opened again.
//!
//! ```text
//! scenario ──> interpose, trace      a short run of the real store, log and Raft; every change of a file, in order
//!    tap ────────┘                   and what clients and members were promised meanwhile
//! legal, disk ─> images              at each point all that a crash may leave, each once
//! recover ─────> outcomes            each opened by the real code
//! verdict                            acknowledged ⊆ recovered ⊆ issued
//! ```
//!
//! Source: Pillai et al., "All File Systems Are Not Created Equal" (OSDI 2014), whose tool ALICE does this for system
//! calls; Mohan et al., "Finding Crash-Consistency Bugs with Bounded Black-Box Crash Testing" (OSDI 2018).

mod disk;
mod double;
mod enumerate;
mod interpose;
mod legal;
mod member;
mod recover;
mod scenario;
mod tap;
#[cfg(test)]
mod tests;
mod trace;
mod verdict;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tempfile::TempDir;

use self::{
    double::Double,
    enumerate::{Enumeration, Plan},
    legal::Marker,
    member::dir_name,
    recover::Entries,
    scenario::Scenario,
    trace::{Op, Trace},
    verdict::{BALLOTS, CONFLICTING, LEADS_ON, PURGED},
};

#[derive(clap::Args)]
pub struct Arguments {
    /// What to run; all when none is given
    #[arg(long = "scenario", value_enum)]
    scenarios: Vec<Scenario>,
    /// Writes of a run
    #[arg(long, default_value_t = 240)]
    writes: u64,
    /// Of the points at which a crash is looked at, so many of a hundred
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u8).range(1..=100))]
    share: u8,
    /// Images of a first crash that a member goes on with, before a second one
    #[arg(long, default_value_t = 30)]
    again: usize,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Images that are opened at once
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Where images stand while they are opened: memory, since nothing of it has to last
    #[arg(long, default_value = "/dev/shm")]
    dir: PathBuf,
    /// Something that is done wrong, to see that it is found: the run then fails unless it is
    #[arg(long, value_enum)]
    double: Option<Double>,
    /// Where images that violate something are kept
    #[arg(long)]
    keep: Option<PathBuf>,
}

/// Of the points of a run at which a first crash comes, before a second one.
const FIRST_SHARE: u8 = 5;
const WRITES_AGAIN: u64 = 12;
const KEPT_MAX: usize = 5;
const SHOWN_MAX: usize = 20;

pub async fn run(arguments: Arguments) -> Result<()> {
    let all = [Scenario::Single, Scenario::Three, Scenario::Twice];
    let scenarios = if arguments.scenarios.is_empty() { &all[..] } else { &arguments.scenarios[..] };
    let mut violations = 0;
    for scenario in scenarios {
        let run = Run {
            scenario: *scenario,
            arguments: &arguments,
            plan: Plan {
                seed: arguments.seed,
                share: arguments.share,
                workers: arguments.workers,
                double: arguments.double,
            },
            scratch: TempDir::with_prefix_in("images-", &arguments.dir)?,
        };
        violations += match scenario {
            Scenario::Single | Scenario::Three => run.once().await?,
            Scenario::Twice => run.twice().await?,
        };
    }
    match (violations, arguments.double) {
        (0, None) => Ok(()),
        (0, Some(double)) => bail!("{double:?} was not found"),
        (_, Some(_)) => Ok(()),
        (count, None) => bail!("{count} violations"),
    }
}

struct Run<'a> {
    scenario: Scenario,
    arguments: &'a Arguments,
    plan: Plan,
    scratch: TempDir,
}

impl Run<'_> {
    async fn once(&self) -> Result<usize> {
        let (trace, recorded) = self.record().await?;
        let found = self.enumerate(&trace, &self.plan, Entries::default())?;
        println!("{}", summary(self.scenario, self.arguments, &trace, &found, recorded));
        self.show(&found, &trace, &self.plan)?;
        if found.verdict.violations.is_empty() && self.arguments.double.is_none() {
            check_markers(self.scenario, &found, &trace)?;
        }
        Ok(found.verdict.violations.len())
    }

    /// The member goes on with some of the images, and all that a second crash may leave of that is opened too.
    async fn twice(&self) -> Result<usize> {
        let (trace, _) = self.record().await?;
        // What becomes of these is looked at by another scenario.
        let first = Plan { share: FIRST_SHARE, ..self.plan };
        let before = self.enumerate(&trace, &first, Entries::default())?;
        let mut random = StdRng::seed_from_u64(self.plan.seed);
        let (mut unique, mut built, mut violations) = (0, 0, before.verdict.violations.len());
        self.show(&before, &trace, &first)?;
        let began = Instant::now();
        for _ in 0..self.arguments.again {
            let image = random.random_range(0..before.unique);
            let root = self.scratch.path().join("again");
            before.image(&trace, &first, image)?.write(&root.join(dir_name(0)))?;
            let told = scenario::told_before(&trace, before.position(image).unwrap_or(0));
            let second = scenario::record_again(&root.canonicalize()?, &told, WRITES_AGAIN).await;
            let second = second.with_context(|| before.describe(&trace, &first, image))?;
            fs::remove_dir_all(&root)?;
            let entries = before.entries.of(&before.outcomes[image])?;
            let found = self.enumerate(&second, &self.plan, entries)?;
            if !found.verdict.violations.is_empty() {
                println!("  after the first crash:\n{}", before.describe(&trace, &first, image));
            }
            self.show(&found, &second, &self.plan)?;
            unique += found.unique;
            built += found.built;
            violations += found.verdict.violations.len();
        }
        let (took, again) = (began.elapsed().as_secs_f64(), self.arguments.again);
        println!("Twice, seed {}: {again} members that went on after a crash", self.plan.seed);
        println!("  images of a second crash: {built}, {unique} different ones opened in {took:.1} s");
        println!("  violations: {violations}\n");
        Ok(violations)
    }

    async fn record(&self) -> Result<(Trace, Duration)> {
        let root = self.scratch.path().join("run");
        fs::create_dir(&root)?;
        let began = Instant::now();
        let mut trace = scenario::record(self.scenario, &root.canonicalize()?, self.arguments.writes).await?;
        if let Some(double) = self.arguments.double {
            double.change_trace(&mut trace);
        }
        Ok((trace, began.elapsed()))
    }

    fn enumerate(&self, trace: &Trace, plan: &Plan, entries: Entries) -> Result<Enumeration> {
        tokio::task::block_in_place(|| enumerate::run(trace, plan, self.scratch.path(), entries))
    }

    fn show(&self, found: &Enumeration, trace: &Trace, plan: &Plan) -> Result<()> {
        for violation in found.verdict.violations.iter().take(SHOWN_MAX) {
            println!("  at operation {}: {}", violation.at, violation.what);
            if let Some(image) = violation.image {
                println!("{}", found.describe(trace, plan, image));
            }
        }
        match &self.arguments.keep {
            Some(keep) => keep_images(found, trace, plan, keep),
            None => Ok(()),
        }
    }
}

fn keep_images(found: &Enumeration, trace: &Trace, plan: &Plan, keep: &Path) -> Result<()> {
    let images = found.verdict.violations.iter().filter_map(|violation| Some((violation.image?, violation)));
    for (image, violation) in images.take(KEPT_MAX) {
        let dir = keep.join(format!("image-{image}"));
        found.image(trace, plan, image).context("an image cannot be made again")?.write(&dir)?;
        let text = format!("{}\n{}\n", violation.what, found.describe(trace, plan, image));
        fs::write(dir.with_extension("txt"), text)?;
    }
    Ok(())
}

/// What the run did to files, for the eye and so that a quiet run does not pass for a good one.
fn coverage(trace: &Trace) -> BTreeMap<&'static str, usize> {
    let names = ["segments filled", "segments recycled", "segments reused", "stores replaced", "files made", "syncs"];
    let mut coverage = BTreeMap::from(names.map(|name| (name, 0)));
    for op in &trace.ops {
        let name = match op {
            Op::Rename { to, .. } if to.name.ends_with(".log") => "segments filled",
            Op::Rename { to, .. } if to.name.starts_with("recycled-") => "segments recycled",
            op if op.reuses_segment() => "segments reused",
            Op::Rename { to, from, .. } if to.dir != from.dir => "stores replaced",
            Op::Create { .. } => "files made",
            Op::Sync { .. } => "syncs",
            _ => continue,
        };
        *coverage.entry(name).or_default() += 1;
    }
    coverage
}

fn summary(
    scenario: Scenario,
    arguments: &Arguments,
    trace: &Trace,
    found: &Enumeration,
    recorded: Duration,
) -> String {
    let mut out = format!("{scenario:?}, {} writes, seed {}:\n", arguments.writes, arguments.seed);
    let mut line = |text: String| writeln!(out, "  {text}").expect("a string takes all");
    line(format!("recorded: {} operations in {:.1} s", trace.ops.len(), recorded.as_secs_f64()));
    let covered: Vec<String> = coverage(trace).iter().map(|(name, count)| format!("{name} {count}")).collect();
    line(format!("done to files: {}", covered.join(", ")));
    let rate = found.unique as f64 / found.took.as_secs_f64() * 60.0;
    line(format!(
        "images: {} at {} points, {} different ones opened in {:.1} s ({rate:.0} a minute)",
        found.built,
        found.points.len(),
        found.unique,
        found.took.as_secs_f64()
    ));
    for (model, markers) in &found.markers {
        let markers: Vec<String> = markers.iter().map(|(marker, count)| format!("{marker:?} {count}")).collect();
        line(format!("{model:?}: {}", markers.join(", ")));
    }
    let seen: Vec<String> = found.verdict.seen.iter().map(|(what, count)| format!("{what} {count}")).collect();
    line(format!("recovered: {}", seen.join(", ")));
    line(format!("violations: {}", found.verdict.violations.len()));
    out
}

/// A run that passed has shown something only when all this has happened.
fn check_markers(scenario: Scenario, found: &Enumeration, trace: &Trace) -> Result<()> {
    use Marker::{LostCreation, LostRemoval, LostRename, LostTail, Reordered, TornLog, TornStore, Whole, Zeros};
    let common = [Whole, LostTail, Reordered, TornLog, LostCreation, LostRename, LostRemoval];
    // A run with many files but a small share sees few writes to the store.
    let of_single: &[Marker] = if scenario == Scenario::Single { &[TornStore, Zeros] } else { &[] };
    for &marker in common.iter().chain(of_single) {
        let count: u64 = found.markers.values().filter_map(|markers| markers.get(&marker)).sum();
        ensure!(count > 0, "no image showed {marker:?}: the run is no proof");
    }
    for what in [LEADS_ON, PURGED].into_iter().chain((scenario == Scenario::Three).then_some(CONFLICTING)) {
        ensure!(found.verdict.seen[what] > 0, "no images {what}: the run is no proof");
    }
    ensure!(found.verdict.seen[BALLOTS] > 2, "the ballot has hardly changed: the run is no proof");
    let common = ["segments filled", "segments recycled", "segments reused"];
    let of_three = (scenario == Scenario::Three).then_some("stores replaced");
    for name in common.into_iter().chain(of_three) {
        ensure!(coverage(trace)[name] > 0, "the run had no {name}: it is no proof");
    }
    Ok(())
}
