//! Faults one after another, each taken back before the next.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, bail};
use jepsen::check::history::{FaultNote, FaultPhase};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedMutRandom as _};
use tokio::time::{Instant, sleep, timeout};

use super::{
    nemesis::{Effect, Fault, Nemesis},
    nodes::Nodes,
    recorder::Recorder,
};

/// From the begin of one fault to that of the next, where the fault itself does not take longer.
const INTERVAL_MS: std::ops::Range<u64> = 1_000..5_000;

/// For making a fault and for taking it back.
const FAULT_LIMIT: Duration = Duration::from_secs(180);

/// Between two faults, however long the first one took.
const CALM_MIN: Duration = Duration::from_millis(300);

/// What a nemesis did in a run.
#[derive(Default)]
pub struct Toll {
    pub faults: u64,
    /// By what is counted.
    pub counters: BTreeMap<String, u64>,
}

/// Strikes and heals, each time with any of the nemeses, until the time is over. What happened until an error is in the
/// toll too.
pub async fn rage(
    nemeses: &mut [Box<dyn Nemesis>],
    nodes: &mut Nodes,
    recorder: &Recorder,
    seed: u64,
    until: Instant,
    toll: &mut Toll,
) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    // The load is to be under way before the first fault.
    sleep(Duration::from_millis(random.random_range(500..1_500))).await;
    while Instant::now() < until {
        let begin = Instant::now();
        let interval = Duration::from_millis(random.random_range(INTERVAL_MS));
        let hold = interval.mul_f64(random.random_range(0.2..0.8));
        let nemesis = nemeses.choose_mut(&mut random).expect("a run with faults has a nemesis");
        one_fault(&mut **nemesis, nodes, recorder, &mut random, hold, toll).await?;
        nodes.check_running().await?;
        let calm = interval.saturating_sub(begin.elapsed()).max(CALM_MIN);
        sleep(calm.min(until.saturating_duration_since(Instant::now()))).await;
    }
    Ok(())
}

async fn one_fault(
    nemesis: &mut dyn Nemesis,
    nodes: &mut Nodes,
    recorder: &Recorder,
    random: &mut StdRng,
    hold: Duration,
    toll: &mut Toll,
) -> Result<()> {
    toll.faults += 1;
    let mut note = FaultNote {
        fault: toll.faults,
        name: nemesis.name().to_owned(),
        nodes: Vec::new(),
        phase: FaultPhase::Begin,
        counters: BTreeMap::new(),
    };
    recorder.fault(note.clone());
    let begin = Instant::now();
    let struck = in_time(nemesis.strike(nodes, random)).await;
    if struck.is_err() {
        // Those that were cut off for it are to be compared with the others.
        nodes.heal_links();
    }
    let Fault { description, victims, .. } = struck.with_context(|| format!("{} could not strike", nemesis.name()))?;
    sleep(hold.saturating_sub(begin.elapsed())).await;
    let healed = in_time(nemesis.heal(nodes, random)).await;
    let Effect { counters, .. } = healed.with_context(|| format!("after {}: {description}", nemesis.name()))?;
    for (name, count) in &counters {
        *toll.counters.entry((*name).to_owned()).or_default() += count;
    }
    note.nodes = victims;
    note.phase = FaultPhase::End;
    note.counters = counters.into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
    recorder.fault(note);
    Ok(())
}

async fn in_time<T>(fault: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(FAULT_LIMIT, fault).await.unwrap_or_else(|_| bail!("not done within {FAULT_LIMIT:?}"))
}
