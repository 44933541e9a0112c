//! One seed, from its first moment to its verdict.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::time::sleep;

use super::{
    clients::{self, Load},
    cluster::Cluster,
    disk::NameRule,
    entropy,
    faults::{Nemesis, Plan},
    member::Settings,
    network::Network,
    world::World,
};

/// Between two looks at the members.
const TICK: Duration = Duration::from_millis(100);
/// Between two times of rest.
const EPOCH: Duration = Duration::from_secs(180);
/// What is left of a cluster that has lost its majority is watched for so long.
const AFTERMATH: Duration = Duration::from_secs(180);
/// Left alone, a cluster must be whole again within this.
const RECOVERY_LIMIT: Duration = Duration::from_secs(120);

/// What a seed came to.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct Verdict {
    pub seed: u64,
    pub violation: Option<String>,
    /// A hash over all that happened: equal for two runs of a seed.
    pub trace: u64,
    pub traced: u64,
    pub simulated: Duration,
    pub took: Duration,
    pub faults: u64,
    pub revision: i64,
    pub checked: u64,
    pub markers: BTreeMap<String, u64>,
}

/// What is run.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    pub seed: u64,
    /// Simulated.
    pub time: Duration,
    /// At its end a majority is destroyed.
    pub goes_beyond: bool,
}

/// Runs a seed. Stores stand below `folder`. With `tells`, what happens is printed.
///
/// A process runs one seed, once: what a process counts (tokio does, for its own random numbers) is part of the run.
pub fn run(case: Case, folder: &Path, tells: bool) -> Result<Verdict> {
    entropy::seed(case.seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    let began = Instant::now();
    let mut verdict = runtime.block_on(simulate(case, folder, tells))?;
    verdict.took = began.elapsed();
    // Who would go on is ended with the process.
    std::mem::forget(runtime);
    Ok(verdict)
}

fn draw(rng: &mut StdRng) -> (u64, Settings, Load, Plan) {
    let size = if rng.random_range(0..3) == 0 { 5 } else { 3 };
    let heartbeat = Duration::from_millis([100, 200, 500][rng.random_range(0..3)]);
    let settings = Settings {
        heartbeat,
        election_timeout: 10 * heartbeat,
        snapshot_count: rng.random_range(20..200),
        catch_up_entries: rng.random_range(5..100),
        names: if rng.random() { NameRule::Posix } else { NameRule::Journal },
    };
    let load = Load {
        clients: rng.random_range(2..6),
        pause: Duration::from_millis(rng.random_range(200..2000)),
        keys: rng.random_range(3..40),
    };
    let plan = Plan {
        every: (Duration::from_secs(1), Duration::from_secs(5)),
        with_clocks: rng.random_range(0..3) == 0,
        with_disks: rng.random_range(0..3) > 0,
        with_members: rng.random(),
        members_max: 5,
    };
    (size, settings, load, plan)
}

async fn simulate(case: Case, folder: &Path, tells: bool) -> Result<Verdict> {
    let Case { seed, time, goes_beyond } = case;
    let mut rng = StdRng::seed_from_u64(seed);
    let world = World::new(tells);
    let (size, settings, load, plan) = draw(&mut rng);
    world.trace(format_args!("seed {seed}: {size} members, {settings:?}, {load:?}, {plan:?}"));
    world.oracle().clocks_lie = plan.with_clocks;
    let network = Network::new(rng.random(), 2 * settings.election_timeout);
    let of_network = world.clone();
    network.trace(move |trace| of_network.trace(format_args!("{trace:?}")));
    let mut cluster = Cluster::start(size, folder, settings, &world, &network, &mut rng)?;
    clients::start(&world, &network, &cluster.endpoints, &load, &mut rng);
    let mut nemesis = Nemesis::new(plan, StdRng::seed_from_u64(rng.random()), world.clone(), folder.into());

    while world.now() < time && world.violation().is_none() {
        let until = (world.now() + EPOCH).min(time);
        go_on(until, &mut cluster, &mut nemesis, &world).await?;
        rest(&mut cluster, &mut nemesis, &world).await?;
    }
    if goes_beyond && world.violation().is_none() {
        nemesis.overwhelm(&mut cluster).await?;
        go_on(world.now() + AFTERMATH, &mut cluster, &mut nemesis, &world).await?;
    }
    // What was claimed of the newest revisions is seen by the watchers a little later.
    let (trace, traced) = world.traced();
    let oracle = world.oracle();
    Ok(Verdict {
        seed,
        violation: world.violation(),
        trace,
        traced,
        simulated: world.now(),
        took: Duration::ZERO,
        faults: nemesis.faults,
        revision: oracle.frontier(),
        checked: oracle.checked,
        markers: all_markers(&world, &network, &cluster),
    })
}

/// Lets clients and the nemesis have their way.
async fn go_on(until: Duration, cluster: &mut Cluster, nemesis: &mut Nemesis, world: &World) -> Result<()> {
    while world.now() < until && world.violation().is_none() {
        sleep(TICK).await;
        cluster.look().await?;
        nemesis.turn(cluster).await?;
        cluster.look_at_quorum();
    }
    Ok(())
}

/// All faults are taken back: the cluster must come back, and its members must agree.
async fn rest(cluster: &mut Cluster, nemesis: &mut Nemesis, world: &Arc<World>) -> Result<()> {
    if world.violation().is_some() {
        return Ok(());
    }
    let quiet = RECOVERY_LIMIT * 2;
    nemesis.heal(cluster, quiet).await?;
    let began = world.now();
    let frontier = world.oracle().frontier();
    loop {
        sleep(TICK).await;
        cluster.look().await?;
        nemesis.turn(cluster).await?;
        let told = world.oracle().floor();
        let is_back = cluster
            .members
            .values()
            .all(|member| member.up().is_some_and(|up| up.ctx.store.revision() >= told.min(world.oracle().frontier())));
        // Somebody wrote since, and it was seen.
        if is_back && cluster.damaged.is_empty() && world.oracle().frontier() > frontier + 3 {
            break;
        }
        if world.violation().is_some() {
            return Ok(());
        }
        if world.now() > began + RECOVERY_LIMIT {
            let revisions: Vec<_> = cluster
                .members
                .values()
                .map(|member| (member.number, member.up().map(|up| (up.ctx.store.revision(), up.ctx.node.status()))))
                .collect();
            let frontier = world.oracle().frontier();
            world.violated(format!("not whole after {RECOVERY_LIMIT:?} of rest; known: {frontier}; {revisions:?}"));
            return Ok(());
        }
    }
    world.mark("recovered");
    world.mark_times("recovery, in ms", (world.now() - began).as_millis() as u64);
    cluster.compare();
    nemesis.go_on();
    Ok(())
}

fn all_markers(world: &World, network: &Network, cluster: &Cluster) -> BTreeMap<String, u64> {
    let mut markers: BTreeMap<String, u64> =
        world.markers().into_iter().map(|(name, times)| (name.to_string(), times)).collect();
    let counts = network.counts();
    for (name, times) in [
        ("messages sent", counts.sent),
        ("messages lost", counts.lost),
        ("messages duplicated", counts.duplicated),
        ("messages reordered", counts.reordered),
        ("messages stalled", counts.stalled),
        ("calls broken", counts.broken),
    ] {
        markers.insert(name.into(), times);
    }
    for disk in &cluster.disks {
        let counts = disk.counts();
        for (name, times) in [
            ("syncs", counts.syncs),
            ("syncs cut off", counts.syncs_interrupted),
            ("syncs failed", counts.syncs_failed),
            ("disk crashes", counts.crashes),
            ("bits rotten", counts.bits_flipped),
            ("writes misdirected", counts.writes_misdirected),
        ] {
            *markers.entry(name.into()).or_default() += times;
        }
    }
    markers
}
