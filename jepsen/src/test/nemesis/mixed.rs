//! Any faults, several at once, within what a quorum survives.
//!
//! One fault after another is drawn, and one or two more that go with it. Two faults go together when both leave a
//! quorum alone: links that are bad but not cut, clocks, and resources go with everything. What takes members away is
//! made alone, so that two minorities do not make a majority.

use std::time::Instant;

use anyhow::Result;
use futures::{FutureExt as _, future::BoxFuture};
use rand::{Rng as _, rngs::StdRng, seq::IndexedRandom as _};

use super::{Effect, Fault, Nemesis, by_name};
use crate::test::nodes::{Needs, Nodes};

/// Take members away, or change who they are: one at a time.
const MAIN: &[&str] = &[
    "kill",
    "pause",
    "restart-all",
    "rolling-restart",
    "power-cut",
    "power-cut-any-subset",
    "partition-halves",
    "partition-ring",
    "partition-one-way",
    "partition-leader",
    "partition-flapping",
    "sync-error",
    "fdatasync-error",
    "fdatasync-kill",
    "disk-full",
    "bad-sectors",
    "bit-flip",
    "bit-flip-running",
    "truncation",
    "replace-member",
    "add-remove-member",
    "move-leader",
    "memory-pressure",
];

/// Go with any other. Those of links do not go with partitions, nor with each other: a link has one state.
const BESIDE: &[&str] = &["slow-sync", "compaction-storm", "clock"];
const BESIDE_LINKS: &[&str] = &["lossy-links", "slow-links", "reordering-links", "duplicating-links"];

/// A disk is told one thing at a time, and the syncs that a system call's failure counts must come.
const FAIL_DISKS: &[&str] = &["sync-error", "bad-sectors", "fdatasync-error", "fdatasync-kill"];

#[derive(Default)]
pub struct Mixed {
    /// One that is never drawn.
    left_out: Option<&'static str>,
    /// In the order in which they struck.
    at_work: Vec<Box<dyn Nemesis>>,
}

impl Mixed {
    /// All but one of those that go with any other.
    pub fn without(name: &'static str) -> Mixed {
        Mixed { left_out: Some(name), ..Mixed::default() }
    }
}

impl Nemesis for Mixed {
    fn name(&self) -> &'static str {
        "mixed"
    }

    fn needs(&self) -> Needs {
        let all = MAIN.iter().chain(BESIDE).chain(BESIDE_LINKS);
        let nemeses = all.map(|name| by_name(name).expect("the names are those of nemeses"));
        nemeses.fold(Needs::default(), |needs, nemesis| needs.and(nemesis.needs()))
    }

    fn strike<'a>(&'a mut self, nodes: &'a mut Nodes, random: &'a mut StdRng) -> BoxFuture<'a, Result<Fault>> {
        async move {
            let (at, mut victims, mut descriptions) = (Instant::now(), Vec::new(), Vec::new());
            for name in draw(random, self.left_out) {
                self.at_work.push(by_name(name)?);
                let nemesis = self.at_work.last_mut().expect("one was added");
                let fault = nemesis.strike(nodes, random).await?;
                victims.extend(fault.victims);
                descriptions.push(fault.description);
            }
            victims.sort();
            victims.dedup();
            Ok(Fault { at, description: descriptions.join("; "), victims })
        }
        .boxed()
    }

    fn heal<'a>(&'a mut self, nodes: &'a mut Nodes, random: &'a mut StdRng) -> BoxFuture<'a, Result<Effect>> {
        async move {
            let (mut struck, mut descriptions) = (0, Vec::new());
            // What went along first, so that members that come back find sound links.
            for nemesis in &mut self.at_work {
                let effect = nemesis.heal(nodes, random).await?;
                // A fault that came and went may have met nothing; one in a mixture is not counted on.
                struck += u64::from(effect.counters.iter().all(|(_, count)| *count > 0));
                descriptions.push(effect.description);
            }
            self.at_work.clear();
            Ok(Effect::now(descriptions.join("; "), &[("faults that took effect", struck)]))
        }
        .boxed()
    }
}

/// The faults of one strike: what goes along, and one that may take members away.
fn draw(random: &mut StdRng, left_out: Option<&str>) -> Vec<&'static str> {
    let beside: Vec<_> = BESIDE.iter().copied().filter(|name| left_out != Some(*name)).collect();
    let main = *MAIN.choose(random).expect("there are some");
    let mut drawn = Vec::new();
    if random.random_bool(0.4) && !FAIL_DISKS.contains(&main) {
        drawn.push(*beside.choose(random).expect("there are some"));
    }
    // A change of the members is asked for, and answered: a leader must be had over the links.
    if random.random_bool(0.4) && !main.starts_with("partition") && main != "add-remove-member" {
        drawn.push(*BESIDE_LINKS.choose(random).expect("there are some"));
    }
    drawn.push(main);
    drawn
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn each_strike_has_one_fault_that_takes_members_away() {
        let mut random = StdRng::seed_from_u64(1);
        let mut seen = BTreeSet::new();
        for _ in 0..2000 {
            let drawn = draw(&mut random, None);
            assert_eq!(drawn.iter().filter(|name| MAIN.contains(name)).count(), 1, "{drawn:?}");
            let links = drawn.iter().filter(|name| name.ends_with("-links")).count();
            let partitions = drawn.iter().filter(|name| name.starts_with("partition")).count();
            assert!(links + partitions <= 1, "{drawn:?}");
            seen.extend(drawn);
        }
        assert_eq!(seen.len(), MAIN.len() + BESIDE.len() + BESIDE_LINKS.len());
    }

    #[test]
    fn what_is_left_out_is_never_drawn() {
        let mut random = StdRng::seed_from_u64(1);
        let seen: BTreeSet<_> = (0..2000).flat_map(|_| draw(&mut random, Some("compaction-storm"))).collect();
        assert_eq!(seen.len(), MAIN.len() + BESIDE.len() - 1 + BESIDE_LINKS.len());
        assert!(!seen.contains("compaction-storm"));
    }

    #[test]
    fn every_name_is_that_of_a_nemesis() {
        assert_ne!(Mixed::default().needs(), Needs::default());
    }
}
